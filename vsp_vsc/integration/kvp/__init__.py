"""Key-value pairs: short texts between host and guest. Both sides."""
