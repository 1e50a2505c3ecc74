"""The virtual switch: ports, VLANs, access lists, guards, learning. Without Trio, clock and I/O. Root side."""
