"""The software that runs in each kind of partition, and the way in for people. Both sides."""
