"""A run in a file: the events of the tap as pcapng, written while it goes and read back at any time. Root side."""
