"""Samples, measures and pictures of who got what."""
