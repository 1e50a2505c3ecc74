"""Who got how much of the host: samples of every pool and VM, what they add up to, and pictures of them. Root side."""
