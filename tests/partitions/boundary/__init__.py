"""Records of a boundary, and their replay."""
