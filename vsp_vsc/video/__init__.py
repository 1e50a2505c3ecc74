"""The synthetic video device: a frame buffer in guest memory, and what its guest says about it. Both sides."""
