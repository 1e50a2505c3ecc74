"""The guest's memory by what it is used for, as programs see it and as the balloon driver uses it. Child side.

    total = kernel + used by programs + cache + free + ballooned

Programs of a model guest do not really fill their memory: they say how much they use, as they say how long they work,
and the kernel keeps real pages for it, and tells the hypervisor which of them were accessed. Memory short, the kernel
drops its cache, then swaps, which takes time, for its own needs too, and for the balloon. A page that is swapped out
comes in again when it is touched, if there is room by then.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final, Protocol

from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE
from vsp_vsc.memory.guest import floor_pages
from vsp_vsc.memory.protocol import BALLOON_UNIT, Pages
from vsp_vsc.memory.ranges import PageSet

if TYPE_CHECKING:
    from partitions.child.pages import PageAllocator

SWAP_SECONDS: Final = 0.000_1
"""That a page takes from or to the disk: some 40 MB a second."""


class _Time(Protocol):
    memory: memoryview

    def touched(self, gpn: int, count: int) -> None:
        """Programs have accessed these pages."""

    async def sleep(self, seconds: float) -> None:
        """Of the partition's time."""


class Memory:
    """The memory of one guest: `guest.memory`. Sizes are bytes."""

    def __init__(self, pages: PageAllocator, platform: _Time) -> None:
        self._pages = pages
        pages.on_short = self._make_room
        self._platform = platform
        self._boot = pages.limit
        """Pages at boot, those below 1 MiB too."""
        self._added = PageSet()
        self._free_added = PageSet()
        self._resident = PageSet()
        """What programs use."""
        self._swapped = 0
        self._cache = 0
        self._active = 0
        self._balloon = 0
        self.swap_size = 2 * self._boot << PAGE_SHIFT
        """Bytes that can be swapped out: as people size it, twice the memory."""
        self.swap_seed = 0
        """Decides which of the pages that programs do not use are swapped out for the balloon."""
        self._chance: Random | None = None
        self.hot_add = True
        """Whether this guest ever takes memory that is added."""

    # --- for programs

    @property
    def size(self) -> int:
        """All that the guest sees, with what the balloon holds."""
        return self.total << PAGE_SHIFT

    @property
    def free(self) -> int:
        """In no use at all."""
        return self.available - self._cached << PAGE_SHIFT

    @property
    def cached(self) -> int:
        """Used for want of anything better: given up when somebody needs it."""
        return self._cached << PAGE_SHIFT

    @property
    def used(self) -> int:
        """What programs use, swapped out or not."""
        return self._resident.total + self._swapped << PAGE_SHIFT

    @property
    def active(self) -> int:
        """What programs have touched last."""
        return min(self._active, self._resident.total) << PAGE_SHIFT

    @property
    def swapped(self) -> int:
        """Of what programs use, that which is not in memory."""
        return self._swapped << PAGE_SHIFT

    @property
    def ballooned(self) -> int:
        """What the host has taken."""
        return self._balloon << PAGE_SHIFT

    @property
    def added(self) -> int:
        """What the host has added since the boot."""
        return self._added.total << PAGE_SHIFT

    @property
    def demand(self) -> int:
        """What the host is told that this guest needs: what is in use, and what its kernel wants to keep free."""
        return self.committed + floor_pages(self.total) << PAGE_SHIFT

    async def use(self, size: int, *, touch: bool = False) -> float:
        """A program uses so much more memory; the seconds that it took, which is nothing while there is enough.

        With `touch` the memory is really written, a byte a page, so that the host's grows. Raises MemoryError where
        there is no room in memory and swap together, and ValueError.
        """
        pages = _pages(size)
        short = max(0, pages - self.available)
        if self._swapped + short > self.swap_size >> PAGE_SHIFT:
            raise MemoryError(
                f"{size} bytes wanted: {self.available << PAGE_SHIFT} are available, and "
                f"{self.swap_size - self.swapped} of swap are left"
            )
        for run in self._take_pages(pages - short):
            self._resident.add(run)
            self._platform.touched(run.first, run.count)
            if touch:
                self._write(run)
        self._swapped += short
        self._active = pages
        return await self._swap(short)

    async def touch(self, size: int | None = None) -> float:
        """A program goes through so much of what it uses, all by default; the seconds that swapping took.

        What was touched last stays in memory. What is swapped out comes in as far as there is room, and the rest takes
        its turn: each page in, and another out.
        """
        everything = self._resident.total + self._swapped
        pages = everything if size is None else min(_pages(size), everything)
        moved = 0
        if pages > self._resident.total:
            back = min(pages - self._resident.total, self._swapped, self.available)
            for run in self._take_pages(back):
                self._resident.add(run)
            self._swapped -= back
            moved = back + 2 * max(0, pages - self._resident.total)
        self._active = pages
        for run in self._resident:
            if pages <= 0:
                break
            self._platform.touched(run.first, min(run.count, pages))
            pages -= run.count
        return await self._swap(moved)

    def release(self, size: int | None = None) -> None:
        """A program uses so much less, or nothing more. What is swapped out goes first."""
        everything = self._resident.total + self._swapped
        pages = everything if size is None else min(_pages(size), everything)
        swapped = min(pages, self._swapped)
        self._swapped -= swapped
        for run in self._resident.take(pages - swapped, longest=1 << 40, most=1 << 40):
            self._free(run)
        self._active = min(self._active, self._resident.total)

    def cache(self, size: int) -> None:
        """So much of what is free holds copies of files."""
        self._cache = _pages(size)

    # --- for the balloon driver: pages

    @property
    def total(self) -> int:
        """All pages that there are, ballooned or not."""
        return self._boot + self._added.total

    @property
    def available(self) -> int:
        """Free pages and those of the cache."""
        return self._pages.free_pages + self._free_added.total

    @property
    def committed(self) -> int:
        """The kernel's pages and the programs'."""
        return self.total - self.available - self._balloon + self._swapped

    @property
    def swappable(self) -> int:
        """Programs' pages that could be swapped out."""
        return max(0, min(self._resident.total, (self.swap_size >> PAGE_SHIFT) - self._swapped))

    @property
    def swapped_pages(self) -> int:
        """What the page file holds."""
        return self._swapped

    def swap_out(self, count: int) -> float:
        """Programs' pages become free: at random out of those that were not touched last, then of the others.

        Whole units of the balloon as far as there are some, so that it is not made of single pages.
        """
        left = count = min(count, self.swappable)
        if self._chance is None:
            self._chance = Random(self.swap_seed)
        for runs in self._by_use():
            whole, rest = _units(runs)
            self._chance.shuffle(whole)
            first = left // BALLOON_UNIT
            rest += whole[first : first + 1]
            self._chance.shuffle(rest)
            for run in whole[:first] + rest:
                if not left:
                    break
                gone = Pages(run.first, min(run.count, left))
                self._swap_run(gone)
                left -= gone.count
        return count * SWAP_SECONDS

    def take(self, count: int) -> Pages | None:
        """Pages for the balloon: of added memory first, then from the top."""
        run = self._take_added(count) or self._take_boot(count)
        if run is not None:
            self._balloon += run.count
        return run

    def give(self, run: Pages) -> None:
        """The balloon's pages are free again."""
        self._balloon -= run.count
        self._free(run)

    def online(self, run: Pages) -> int:
        """Added memory: for programs alone, since it may go again. All is taken."""
        if run.first < self._boot or self._added.meets(run):
            return 0
        self._added.add(run)
        self._free_added.add(run)
        return run.count

    # --- inside

    @property
    def _cached(self) -> int:
        return min(self._cache, self.available)

    def _take_added(self, count: int) -> Pages | None:
        for run in self._free_added:
            first = -(-run.first // count) * count if count == BALLOON_UNIT else run.first
            if first + count <= run.end:
                taken = Pages(first, count)
                self._free_added.remove(taken)
                return taken
        return None

    def _take_boot(self, count: int) -> Pages | None:
        first = self._pages.take_aligned(count)
        return None if first is None else Pages(first, count)

    def _take_pages(self, count: int) -> list[Pages]:
        """That many, which are available, in as few runs as there are."""
        runs = self._free_added.take(count, longest=1 << 40, most=1 << 40)
        count -= sum(run.count for run in runs)
        while count and (top := self._pages.take_top(count)) is not None:
            runs.append(Pages(*top))
            count -= top[1]
        self._cache = self._cached
        return runs

    def _make_room(self, count: int) -> None:
        """The kernel needs adjacent pages below those that were added, and all are in use: of a program's, then."""
        if self._swapped + count > self.swap_size >> PAGE_SHIFT:
            return
        for run in self._resident:
            if run.count >= count and run.first + count <= self._boot:
                self._swap_run(Pages(run.first, count))
                return

    def _swap_run(self, run: Pages) -> None:
        self._resident.remove(run)
        self._free(run)
        self._swapped += run.count

    def _by_use(self) -> tuple[list[Pages], list[Pages]]:
        """What programs have in memory: what was not touched last, and what was."""
        left, idle, active = self._active, [], []
        for run in self._resident:
            used = min(left, run.count)
            left -= used
            if used:
                active.append(Pages(run.first, used))
            if used < run.count:
                idle.append(Pages(run.first + used, run.count - used))
        return idle, active

    def _free(self, run: Pages) -> None:
        boot = min(run.end, self._boot) - run.first
        if boot > 0:
            self._pages.free(run.first, boot)
        if boot < run.count:
            first = max(run.first, self._boot)
            self._free_added.add(Pages(first, run.end - first))

    def _write(self, run: Pages) -> None:
        """One byte a page. Added memory is elsewhere, where this kernel does not reach."""
        end = min(run.end, self._boot)
        memory = self._platform.memory
        for gpa in range(run.first << PAGE_SHIFT, end << PAGE_SHIFT, PAGE_SIZE):
            memory[gpa] = 1
        self._pages.note_written(end)

    async def _swap(self, pages: int) -> float:
        spent = pages * SWAP_SECONDS
        await self._platform.sleep(spent)
        return spent


def _units(runs: list[Pages]) -> tuple[list[Pages], list[Pages]]:
    """The balloon's units in these runs, and what lies around them."""
    whole, rest = [], []
    for run in runs:
        start = min(-(-run.first // BALLOON_UNIT) * BALLOON_UNIT, run.end)
        end = max(start, run.end // BALLOON_UNIT * BALLOON_UNIT)
        whole += [Pages(first, BALLOON_UNIT) for first in range(start, end, BALLOON_UNIT)]
        rest += [Pages(first, last - first) for first, last in ((run.first, start), (end, run.end)) if first < last]
    return whole, rest


def _pages(size: int) -> int:
    if size < 0:
        raise ValueError(f"{size} bytes of memory")
    return size + PAGE_SIZE - 1 >> PAGE_SHIFT
