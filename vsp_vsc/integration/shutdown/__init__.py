"""Shutdown: the host asks the guest to power off or to restart. Both sides."""
