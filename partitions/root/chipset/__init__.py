"""The boot devices behind port intercepts: COM1 and power. Root side."""
