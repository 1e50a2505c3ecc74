"""The bus between partitions: channel messages, GPADLs, rings, channels. Both sides."""
