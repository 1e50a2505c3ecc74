"""The ways in which a virtual processor executes. Hypervisor."""
