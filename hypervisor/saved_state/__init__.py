"""Partition state outside of the live hypervisor: declared records, a stream of them, and both ways. Hypervisor."""
