"""Device pairs: a VSP in the root, a VSC in the child, and the protocol between them. Both sides."""
