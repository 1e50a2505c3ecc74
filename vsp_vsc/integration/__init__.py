"""Integration components: small services between the host and a guest, one channel each. Both sides."""
