"""The guest's page allocator: contiguous runs of guest physical pages, first fit. Child side.

Rings, GPADL buffers, SynIC pages and the hypercall page all come from here. Everything lives in one sorted list of free
runs; a guest holds some dozens of runs, so a list and `bisect` beat any tree.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE

FIRST_PAGE = 0x100
"""Pages below 1 MiB are left alone, as PC kernels do: firmware tables and option ROMs live there."""
_ZEROS = bytes(64 * PAGE_SIZE)


class PageAllocator:
    """Hands out zeroed runs of pages above 1 MiB. Fresh guest memory is zero, so only pages used before are cleared."""

    __slots__ = ("_counts", "_memory", "_starts", "first", "limit", "on_growth", "on_short", "used_before")

    def __init__(self, memory: memoryview, first: int = FIRST_PAGE) -> None:
        self._memory = memory
        self.first = first
        self.limit = max(first, len(memory) >> PAGE_SHIFT)
        """The first page number that is not ours any more."""
        # Two parallel lists, sorted: free runs by first page, never empty, never touching one another.
        self._starts: list[int] = [first] if self.limit > first else []
        self._counts: list[int] = [self.limit - first] if self.limit > first else []
        self.used_before = first
        """High-water mark: pages from here on were never handed out and are still zero."""
        self.on_growth: Callable[[int], None] | None = None
        """Called with the new mark."""
        self.on_short: Callable[[int], None] | None = None
        """Called for so many adjacent pages that there are not: who has some to spare may free them."""

    @property
    def free_pages(self) -> int:
        """How many pages are free, in runs of any length."""
        return sum(self._counts)

    def allocate(self, count: int) -> int:
        """The first page number of `count` adjacent zeroed pages; `MemoryError` when no run is long enough."""
        if count <= 0:
            raise ValueError(f"{count} pages asked for")
        index = self._long_enough(count)
        if index is None and self.on_short is not None:
            self.on_short(count)
            index = self._long_enough(count)
        if index is None:
            free, ours = self.free_pages, self.limit - self.first
            raise MemoryError(f"no {count} adjacent guest pages: {free} of {ours} are free")
        run = self._counts[index]
        gpn = self._starts[index]
        if run == count:
            del self._starts[index], self._counts[index]
        else:
            self._starts[index] = gpn + count
            self._counts[index] = run - count
        if gpn < self.used_before:
            self._clear(gpn, min(gpn + count, self.used_before))
        if gpn + count > self.used_before:
            self.used_before = gpn + count
            if self.on_growth is not None:
                self.on_growth(self.used_before)
        return gpn

    def _long_enough(self, count: int) -> int | None:
        return next((index for index, run in enumerate(self._counts) if run >= count), None)

    def take_top(self, most: int) -> tuple[int, int] | None:
        """Up to `most` pages from the end of the highest free run, as they are: first page and count. None if none.

        For pages that nobody of this kernel writes; `note_written` is for those that somebody does.
        """
        if not self._counts:
            return None
        count = min(most, self._counts[-1])
        gpn = self._starts[-1] + self._counts[-1] - count
        self._counts[-1] -= count
        if not self._counts[-1]:
            del self._starts[-1], self._counts[-1]
        return gpn, count

    def take_aligned(self, count: int) -> int | None:
        """The highest `count` pages at a multiple of `count`, as they are; None where there are none."""
        for index in range(len(self._starts) - 1, -1, -1):
            start, run = self._starts[index], self._counts[index]
            gpn = (start + run) // count * count - count
            if gpn < start:
                continue
            behind = start + run - gpn - count
            if behind:
                self._starts.insert(index + 1, gpn + count)
                self._counts.insert(index + 1, behind)
            if gpn > start:
                self._counts[index] = gpn - start
            else:
                del self._starts[index], self._counts[index]
            return gpn
        return None

    def note_written(self, end: int) -> None:
        """Pages below `end` may not be zero any more."""
        if end > self.used_before:
            self.used_before = end
            if self.on_growth is not None:
                self.on_growth(end)

    def set_aside(self, end: int) -> int:
        """Before anything is handed out: leave the pages below `end` alone, as they are; `free` gives them back later.

        How many there are. What a past life of this guest used, its host may still look at.
        """
        count = min(max(end, self.first), self.limit) - self.first
        self._starts = [self.first + count] if self.first + count < self.limit else []
        self._counts = [self.limit - start for start in self._starts]
        self.used_before = self.first + count
        return count

    def free(self, gpn: int, count: int) -> None:
        """Give pages back, whole runs or parts of them. `ValueError` for pages that are free already."""
        end = gpn + count
        if count <= 0 or gpn < self.first or end > self.limit:
            raise ValueError(f"pages {gpn:#x}..{end:#x} are not this allocator's")
        after = bisect_right(self._starts, gpn)
        before = after - 1
        touches_before = before >= 0 and self._starts[before] + self._counts[before] >= gpn
        if touches_before and self._starts[before] + self._counts[before] > gpn:
            raise ValueError(f"page {gpn:#x} is freed twice")
        touches_after = after < len(self._starts) and self._starts[after] <= end
        if touches_after and self._starts[after] < end:
            raise ValueError(f"page {self._starts[after]:#x} is freed twice")
        if touches_before and touches_after:
            self._counts[before] += count + self._counts[after]
            del self._starts[after], self._counts[after]
        elif touches_before:
            self._counts[before] += count
        elif touches_after:
            self._starts[after] = gpn
            self._counts[after] += count
        else:
            self._starts.insert(after, gpn)
            self._counts.insert(after, count)

    def _clear(self, gpn: int, end: int) -> None:
        while gpn < end:
            piece = min(end - gpn, len(_ZEROS) >> PAGE_SHIFT)
            start = gpn << PAGE_SHIFT
            self._memory[start : start + (piece << PAGE_SHIFT)] = _ZEROS[: piece << PAGE_SHIFT]
            gpn += piece
