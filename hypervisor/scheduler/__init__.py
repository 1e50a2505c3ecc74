"""Who runs when: the tree of shares, and the scheduler of virtual processors. Hypervisor."""
