"""A network that is slow on purpose: who may send how much, and what becomes of frames on the way. Root side."""
