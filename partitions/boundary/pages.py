"""What changed in a guest's memory, and whether the guest did it or the root. Root side.

Only one of them runs at a time. Whoever has just run is asked for: all that differs from the copy is its doing.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator

from hypervisor.pages import PAGE_SHIFT

PAGE = 1 << PAGE_SHIFT
_libc = ctypes.CDLL(None, use_errno=True)


class GuestPages:
    """A copy of the pages that were ever touched, compared with what is there now."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._copies: dict[int, bytes] = {}
        self._zeros = bytes(PAGE)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._first = -self._address % mmap.PAGESIZE
        pages = (len(memory) + mmap.PAGESIZE - 1) // mmap.PAGESIZE
        self._resident = (ctypes.c_ubyte * pages)()

    def changes(self) -> Iterator[tuple[int, bytes]]:
        """(GPA, bytes) since the last call, page by page, each from its first changed byte to its last."""
        memory, copies = self._memory, self._copies
        for page in self._touched():
            at = page << PAGE_SHIFT
            now = bytes(memory[at : at + PAGE])
            before = copies.get(page, self._zeros)
            if now != before:
                copies[page] = now
                first, last = _ends(before, now)
                yield at + first, now[first:last]

    def _touched(self) -> Iterator[int]:
        """Pages that have memory of the host behind them; where the host does not tell, all."""
        size = ctypes.c_size_t(len(self._memory))
        if self._first or _libc.mincore(ctypes.c_void_p(self._address), size, self._resident):
            yield from range(len(self._memory) >> PAGE_SHIFT)
            return
        per = mmap.PAGESIZE >> PAGE_SHIFT
        seen = bytes(self._resident)
        if per != 1:
            seen = b"".join(bytes([flag]) * per for flag in seen)
        seen = seen.translate(_LOW_BIT)
        page = seen.find(1)
        while page >= 0:
            yield page
            page = seen.find(1, page + 1)


_LOW_BIT = bytes(value & 1 for value in range(256))


def _ends(before: bytes, now: bytes) -> tuple[int, int]:
    """The first byte that differs and the one after the last, by halving: comparing runs is what C does."""
    low, high = 0, len(now)
    while high - low > 1:
        middle = (low + high) // 2
        if before[low:middle] != now[low:middle]:
            high = middle
        else:
            low = middle
    first = low
    low, high = first, len(now)
    while high - low > 1:
        middle = (low + high) // 2
        if before[middle:high] != now[middle:high]:
            low = middle
        else:
            high = middle
    return first, low + 1
