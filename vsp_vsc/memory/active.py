"""How much of a VM's memory is in use, from a few of its pages: Waldspurger's estimate; pure. Root side.

What a guest has committed says what it may use one day. What it uses shows in a sample: in each period of the VM's own
time 100 of its pages are drawn, and the part of them that its guest touches until the period ends is, within some
percent, the part of all its memory that it touches (Waldspurger, OSDI 2002, section 5.3). One page is drawn at random
out of each hundredth of the memory: every page has the same chance, and less is left to chance than with all from
anywhere, where the error's sigma is 5 %.

Three averages smooth it, and the largest counts: a slow one, a fast one, and the fast one with what the period under
way has seen already. So a guest that uses more is known for it within two periods, most of it within one, and one that
uses less is not taken its memory at once.

Parts are whole numbers of `WHOLE`: no rounding of a processor's is in them, and the same draws give the same estimate
everywhere.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from random import Random
from typing import Final

from vsp_vsc.memory.ranges import PageSet

PERIOD_SECONDS: Final = 30.0
"""Of the VM's time: it stands still while the VM is paused."""
SAMPLE: Final = 100
WHOLE: Final = 1 << 20
"""All of the memory."""
_FAST: Final = 3, 4
"""What a new period counts in the average, and of how much: two periods bring it fifteen sixteenths of the way."""
_SLOW: Final = 1, 4
"""Two periods take a little less than half of what it was too high."""


class ActiveMemory:
    """One VM's. `touched` is told of what its guest accesses; the rest is for whoever has the time."""

    def __init__(self, chance: Random) -> None:
        """`chance` is this VM's own: nobody else draws from it."""
        self._chance = chance
        self._pages: list[int] = []
        """The sample, in order; a small memory may have a page in it twice."""
        self._seen = bytearray()
        """For each of them whether it was touched."""
        self._averages: tuple[int, int] | None = None
        """The slow one and the fast one."""
        self.periods = 0
        """That have ended."""

    @property
    def part(self) -> int | None:
        """Of `WHOLE`, what the guest uses; None before the first period has ended."""
        if self._averages is None:
            return None
        slow, fast = self._averages
        return max(slow, fast, _moved(fast, self._now, _FAST))

    def pages(self, total: int) -> int | None:
        """The same in pages of a memory of `total`."""
        part = self.part
        return None if part is None else part * total // WHOLE

    @property
    def _now(self) -> int:
        return self._seen.count(1) * WHOLE // max(1, len(self._seen))

    def touched(self, untrusted_gpn: int, untrusted_count: int) -> None:
        """The guest has accessed these pages; those that are not in the sample, or are not its own, change nothing."""
        first = bisect_left(self._pages, untrusted_gpn)
        last = bisect_left(self._pages, untrusted_gpn + untrusted_count)
        if first < last:
            self._seen[first:last] = b"\1" * (last - first)

    def next_period(self, memory: PageSet) -> None:
        """End the one that is under way, if there is any, and draw for another out of `memory`."""
        if self._seen:
            now, before = self._now, self._averages
            slow, fast = before or (now, now)
            self._averages = _moved(slow, now, _SLOW), _moved(fast, now, _FAST)
            self.periods += 1
        self._pages = draw(memory, self._chance)
        self._seen = bytearray(len(self._pages))


def draw(memory: PageSet, chance: Random) -> list[int]:
    """A page out of each hundredth of the memory, in order. Always as many draws, whatever there is."""
    chances = [chance.getrandbits(32) for _ in range(SAMPLE)]
    total = memory.total
    if not total:
        return []
    runs = list(memory)
    ends = list(accumulate(run.count for run in runs))
    found = []
    for at, drawn in enumerate(chances):
        place = ((at << 32) + drawn) * total // (SAMPLE << 32)
        run = bisect_left(ends, place + 1)
        found.append(runs[run].end - (ends[run] - place))
    return found


def _moved(average: int, value: int, gain: tuple[int, int]) -> int:
    part, of = gain
    return (average * (of - part) + value * part) // of
