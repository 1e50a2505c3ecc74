"""Page arithmetic and access rights of guest physical memory. Both sides."""

from __future__ import annotations

import enum

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PAGE_MASK = PAGE_SIZE - 1


class Access(enum.IntFlag):
    """Rights on a guest physical page (TLFS 2.0a, 8.4)."""

    NONE = 0
    READ = 1
    WRITE = 2
    EXECUTE = 4

    READ_WRITE = READ | WRITE
    ALL = READ | WRITE | EXECUTE


def pages_for(length: int, offset: int = 0) -> int:
    """How many pages hold `length` bytes that begin `offset` bytes into the first."""
    return (offset + length + PAGE_MASK) >> PAGE_SHIFT
