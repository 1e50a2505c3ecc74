"""Sets of pages as sorted runs that do not touch one another. Both sides.

A guest decides how many runs there are, a page each if it likes. So they lie in pieces, and a change moves the runs of
one piece and not all behind it.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice
from operator import lt
from typing import Final

from vsp_vsc.memory.protocol import Pages

_MOST: Final = 1024
"""Runs in a piece; then it is two."""


class PageSet:
    """Pages by number. Adding and removing costs two searches, and one insertion at most."""

    __slots__ = ("_firsts", "_pieces", "_runs", "total")

    def __init__(self, *runs: Pages) -> None:
        self._firsts: list[int] = []
        """The first page of each piece."""
        self._pieces: list[tuple[list[int], list[int]]] = []
        """Where its runs begin, and where they end; none is empty."""
        self._runs = 0
        self.total = 0
        """How many pages there are."""
        for run in runs:
            self.add(run)

    def __iter__(self) -> Iterator[Pages]:
        return self.runs_from(0)

    def __len__(self) -> int:
        """How many runs."""
        return self._runs

    def runs_from(self, page: int) -> Iterator[Pages]:
        """Those that begin there or later."""
        piece, at = self._find(page - 1)
        at += 1
        for starts, ends in self._pieces[piece:]:
            while at < len(starts):
                yield Pages(starts[at], ends[at] - starts[at])
                at += 1
            at = 0

    def covers(self, run: Pages) -> bool:
        """Whether all of these pages are in it."""
        piece, at = self._find(run.first)
        return at >= 0 and run.end <= self._pieces[piece][1][at]

    def meets(self, run: Pages) -> bool:
        """Whether any of these pages is in it."""
        piece, at = self._find(run.end - 1)
        return at >= 0 and self._pieces[piece][1][at] > run.first

    def add(self, run: Pages) -> None:
        """Pages that are not in it. `ValueError` where one is."""
        if run.count <= 0 or self.meets(run):
            raise ValueError(f"{run}: none, or some that are in already")
        self.total += run.count
        start, end = run.first, run.end
        piece, at = self._find(end)
        if at >= 0 and self._pieces[piece][0][at] == end:
            end = self._pieces[piece][1][at]
            self._delete(piece, at)
        piece, at = self._find(start)
        if at >= 0 and self._pieces[piece][1][at] == start:
            self._pieces[piece][1][at] = end
        else:
            self._insert(piece, at + 1, start, end)

    def remove(self, run: Pages) -> None:
        """Pages that are in it. `ValueError` where one is not."""
        if run.count <= 0 or not self.covers(run):
            raise ValueError(f"{run}: none, or some that are not in")
        self.total -= run.count
        piece, at = self._find(run.first)
        starts, ends = self._pieces[piece]
        start, end = starts[at], ends[at]
        if start < run.first:
            ends[at] = run.first
            if run.end < end:
                self._insert(piece, at + 1, run.end, end)
        elif run.end < end:
            starts[at] = run.end
            self._firsts[piece] = starts[0]
        else:
            self._delete(piece, at)

    def take(self, count: int, *, longest: int, most: int) -> list[Pages]:
        """Remove `count` pages, the lowest first, in at most `most` runs of at most `longest`; fewer if there are."""
        taken: list[Pages] = []
        while count > 0 and self._pieces and len(taken) < most:
            starts, ends = self._pieces[0]
            first = Pages(starts[0], min(ends[0] - starts[0], count, longest))
            self.remove(first)
            taken.append(first)
            count -= first.count
        return taken

    def within(self, other: PageSet) -> bool:
        """Whether all of its pages are in the other, too."""
        for starts, ends in self._pieces:
            if other.covers(Pages(starts[0], ends[-1] - starts[0])):
                continue
            if not all(other.covers(Pages(start, end - start)) for start, end in zip(starts, ends, strict=True)):
                return False
        return True

    def packed(self) -> bytes:
        """To be kept: where each run begins and ends, in order, as 64-bit numbers."""
        kept = array("Q")
        for starts, ends in self._pieces:
            both = [0] * (2 * len(starts))
            both[::2], both[1::2] = starts, ends
            kept.extend(both)
        if sys.byteorder == "big":
            kept.byteswap()
        return kept.tobytes()

    @classmethod
    def unpacked(cls, untrusted: bytes, limit: int) -> PageSet:
        """As it was, of pages below `limit`. Raises `ValueError`."""
        kept = array("Q")
        kept.frombytes(untrusted)
        if sys.byteorder == "big":
            kept.byteswap()
        # Runs that do not touch one another: every number is greater than the one before.
        if len(kept) % 2 or not all(map(lt, kept, islice(kept, 1, None))) or (kept and kept[-1] > limit):
            raise ValueError("runs of pages that there cannot be")
        made = cls()
        starts, ends = kept[::2].tolist(), kept[1::2].tolist()
        for at in range(0, len(starts), _MOST):
            made._firsts.append(starts[at])
            made._pieces.append((starts[at : at + _MOST], ends[at : at + _MOST]))
        made._runs, made.total = len(starts), sum(ends) - sum(starts)
        return made

    def clear(self) -> None:
        """No pages."""
        self._firsts.clear()
        self._pieces.clear()
        self._runs = self.total = 0

    # --- inside

    def _find(self, page: int) -> tuple[int, int]:
        """The piece and the place in it of the last run that begins at a page or before it; -1 where there is none."""
        piece = bisect_right(self._firsts, page) - 1
        return (piece, bisect_right(self._pieces[piece][0], page) - 1) if piece >= 0 else (0, -1)

    def _insert(self, piece: int, at: int, start: int, end: int) -> None:
        self._runs += 1
        if not self._pieces:
            self._firsts.append(start)
            self._pieces.append(([start], [end]))
            return
        starts, ends = self._pieces[piece]
        starts.insert(at, start)
        ends.insert(at, end)
        self._firsts[piece] = starts[0]
        if len(starts) > _MOST:
            half = _MOST // 2
            self._pieces.insert(piece + 1, (starts[half:], ends[half:]))
            self._firsts.insert(piece + 1, starts[half])
            del starts[half:], ends[half:]

    def _delete(self, piece: int, at: int) -> None:
        self._runs -= 1
        starts, ends = self._pieces[piece]
        del starts[at], ends[at]
        if starts:
            self._firsts[piece] = starts[0]
        else:
            del self._pieces[piece], self._firsts[piece]
