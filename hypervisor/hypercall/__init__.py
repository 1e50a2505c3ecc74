"""Hypercalls: the calling convention, one table of calls, and what each does. Hypervisor."""
