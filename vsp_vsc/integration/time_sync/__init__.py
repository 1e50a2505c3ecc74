"""Time synchronization: the host tells the guest the date. Both sides."""
