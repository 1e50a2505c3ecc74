"""The machine under every partition: hypercalls, SynIC, memory, virtual processors. Hypervisor.

It knows partitions only as identifiers, rights, memory and virtual processors, and has never heard of VMBus.
"""
