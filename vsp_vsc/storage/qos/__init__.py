"""Reservation, limit and shares of disk I/O, in nested pools. Root side."""
