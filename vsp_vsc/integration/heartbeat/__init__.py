"""Heartbeat: whether the guest is still there. Both sides."""
