"""The synthetic keyboard: scan codes from the host to a guest, lamps back. Both sides."""
