"""Sets of pages as sorted runs that do not touch one another. Both sides."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from vsp_vsc.memory.protocol import Pages


class PageSet:
    """Pages by number. Adding and removing costs a search, and one insertion at most."""

    __slots__ = ("_ends", "_starts", "total")

    def __init__(self, *runs: Pages) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.total = 0
        """How many pages there are."""
        for run in runs:
            self.add(run)

    def __iter__(self) -> Iterator[Pages]:
        return (Pages(start, end - start) for start, end in zip(self._starts, self._ends, strict=True))

    def __len__(self) -> int:
        """How many runs."""
        return len(self._starts)

    def covers(self, run: Pages) -> bool:
        """Whether all of these pages are in it."""
        at = bisect_right(self._starts, run.first) - 1
        return at >= 0 and run.end <= self._ends[at]

    def meets(self, run: Pages) -> bool:
        """Whether any of these pages is in it."""
        at = bisect_right(self._starts, run.end - 1) - 1
        return at >= 0 and self._ends[at] > run.first

    def add(self, run: Pages) -> None:
        """Pages that are not in it. `ValueError` where one is."""
        if run.count <= 0 or self.meets(run):
            raise ValueError(f"{run}: none, or some that are in already")
        start, end = run.first, run.end
        at = bisect_right(self._starts, start)
        if at and self._ends[at - 1] == start:
            at -= 1
            start = self._starts[at]
            del self._starts[at], self._ends[at]
        if at < len(self._starts) and self._starts[at] == end:
            end = self._ends[at]
            del self._starts[at], self._ends[at]
        self._starts.insert(at, start)
        self._ends.insert(at, end)
        self.total += run.count

    def remove(self, run: Pages) -> None:
        """Pages that are in it. `ValueError` where one is not."""
        if run.count <= 0 or not self.covers(run):
            raise ValueError(f"{run}: none, or some that are not in")
        at = bisect_right(self._starts, run.first) - 1
        start, end = self._starts[at], self._ends[at]
        del self._starts[at], self._ends[at]
        if run.end < end:
            self._starts.insert(at, run.end)
            self._ends.insert(at, end)
        if start < run.first:
            self._starts.insert(at, start)
            self._ends.insert(at, run.first)
        self.total -= run.count

    def take(self, count: int, *, longest: int, most: int) -> list[Pages]:
        """Remove `count` pages, the lowest first, in at most `most` runs of at most `longest`; fewer if there are."""
        taken: list[Pages] = []
        while count > 0 and self._starts and len(taken) < most:
            first = Pages(self._starts[0], min(self._ends[0] - self._starts[0], count, longest))
            self.remove(first)
            taken.append(first)
            count -= first.count
        return taken

    def clear(self) -> None:
        """No pages."""
        self._starts.clear()
        self._ends.clear()
        self.total = 0
