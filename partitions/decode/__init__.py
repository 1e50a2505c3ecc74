"""Bytes put into words: channel messages, ring packets, hypercalls, registers and pages as trees of fields. Root side.

Nothing here does I/O or knows Trio, and no bytes make it raise: what cannot be is a `Field` with a fault. Names,
offsets and sizes come from the `@wire` declarations that the running system uses, words from the enumerations beside
them.
"""
