"""Guest file copy: the host puts a file into the guest. Both sides."""
