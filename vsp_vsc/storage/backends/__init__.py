"""Where the bytes of disks rest, behind one interface. Root side."""
