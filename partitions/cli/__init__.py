"""The command `partita`: parse, call the Python API, print; one file a verb. Root side."""
