"""A VNC server for each VM with a screen: RFB 3.8 on this machine's own address. Root side."""
