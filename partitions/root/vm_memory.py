"""The memory of one running VM: what it was built with, what its guest gave back, what was added. Root side.

    assigned = built with + added - ballooned

Pages in the balloon stay mapped and their memory is given back to the system, so host memory really falls. A guest that
uses such a page all the same gets zeros, and loses what it wrote there: every minute the balloon is emptied again.
Added memory lies above what the VM was built with, at multiples of what its driver asks for, 128 MiB for Linux; it is
the guest's until it is reset or off.

A guest that refuses, or does not answer, keeps what it has: nothing waits for it but who asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

import attrs
import trio

from hypervisor.clock import seconds, ticks
from hypervisor.inspect import Branch
from hypervisor.pages import PAGE_SHIFT
from partitions.root.exits import CannotStart
from partitions.root.memory_state import CannotResize, MemoryState
from partitions.root.winhv import HypercallFailed
from partitions.topology_controls import DynamicMemoryTable, memory_range
from partitions.topology_schema import Backend, VmTable, size_words
from vsp_vsc.memory.balance import Change, Claim, HostState, Standing, Step, Target, pressure, step
from vsp_vsc.memory.protocol import BALLOON_UNIT, CHUNK, Pages
from vsp_vsc.memory.ranges import PageSet
from vsp_vsc.memory.session import Asked, Report
from vsp_vsc.memory.vsp import MemoryVsp

if TYPE_CHECKING:
    from partitions.root.vid import Vid, VmPartition

ANSWER_SECONDS: Final = 60.0
"""After so long a guest counts as one that does not answer. What it says later counts all the same."""
RETRY_SECONDS: Final = 10.0
"""Before a guest is asked again that gave less than was wanted, or could not take more for now."""
SWEEP_SECONDS: Final = 60.0
MOST_RUNS: Final = 1 << 17
"""Of pages in a balloon, from which on nothing more is asked for: each of them costs the host some memory and time."""
SWEPT_AT_ONCE: Final = 1024
"""Runs of pages, of which a guest may make very many."""
LOW_LIMIT: Final = 0xC000_0000 >> PAGE_SHIFT
HIGH_START: Final = 0x1_0000_0000 >> PAGE_SHIFT
"""Between these two are the windows of devices."""
_ASK_AT_ONCE: Final = 64 * BALLOON_UNIT
_PAGE: Final = 1 << PAGE_SHIFT


@attrs.define
class _Block:
    """Memory that was added in one piece."""

    run: Pages
    source: int
    """Where the root sees it."""
    unused: int = 0
    """Pages behind it that the guest did not take."""


@attrs.define
class _Pressure:
    """Of all reports of one run."""

    least: int | None = None
    most: int | None = None
    total: int = 0
    count: int = 0

    def add(self, value: int) -> None:
        self.least = value if self.least is None else min(self.least, value)
        self.most = value if self.most is None else max(self.most, value)
        self.total += value
        self.count += 1


class VmMemory:
    """One VM's memory in one run: a `MemoryOwner` for its device. For the Trio thread."""

    def __init__(self, settings: VmTable, built: VmPartition, vid: Vid) -> None:
        self.name = settings.name
        self._settings = settings
        self._built = built
        self._vid = vid
        self._clock = vid.hypervisor.clock
        self.startup = settings.memory >> PAGE_SHIFT
        self.dynamic = settings.dynamic_memory is not None
        least, most = memory_range(settings)
        self.minimum, self.maximum = least >> PAGE_SHIFT, most >> PAGE_SHIFT
        table = settings.dynamic_memory or DynamicMemoryTable()
        self.buffer, self.weight = table.buffer, table.weight
        self.settle: Callable[[Mapping[str, object]], None] | None = None
        """Changes its settings, by keys as in its topology; its desk's. Raises `ResourceError`."""
        self.make_room: Callable[[int], Awaitable[None]] | None = None
        """Has others give back so many bytes, as far as they can; its desk's."""
        self.wake: Callable[[], None] = lambda: None
        """Has the balancer look again; its desk's."""
        self.limit: int | None = None
        """Pages that pools around it leave to it."""
        self.pinned: int | None = None
        """Pages that somebody asked for by hand; of a VM without dynamic memory, always."""
        self.ram = PageSet(Pages(0, self.startup))
        self.device = MemoryVsp(vid.hypervisor.trace, built.id, self)
        self.target: Target | None = None
        self.demand: int | None = None
        self.available: int | None = None
        self._blocks: list[_Block] = []
        self._given = 0
        """Pages in the balloon that the host's account has."""
        self._never_add = False
        self._rest_until = 0
        """Until then it is not asked for pages."""
        self._rest_adding_until = 0
        self._asked_at = 0
        self._swept_at = self._clock()
        self._sweeps_from = 0
        """The page at which it goes on in the next second; 0 while nothing is left to do."""
        self._last_short = ""
        self._pressure = _Pressure()
        self.added_total = self.removed_total = 0
        self.add_operations = self.remove_operations = 0

    # --- how it is, in pages

    @property
    def assigned(self) -> int:
        """What it has."""
        return self.ram.total - self._given

    @property
    def ballooned(self) -> int:
        """What its guest has given."""
        return self._given

    @property
    def added(self) -> int:
        """What it has above what it was built with."""
        return self.ram.total - self.startup

    @property
    def most_pages(self) -> int:
        """What the guest is told that it can ever have: nothing where nobody has said so."""
        return self.maximum if self.dynamic else 0

    @property
    def answers(self) -> bool:
        """Whether its guest is not late with an answer."""
        return self.device.asked is Asked.NOTHING or self._clock() - self._asked_at < ticks(ANSWER_SECONDS)

    @property
    def driver(self) -> str:
        """How its driver is."""
        return self.device.state if self.answers else "does not answer"

    @property
    def refuses(self) -> bool:
        """Whether its guest has just said that it has no more to give."""
        return self._resting()

    @property
    def moving(self) -> bool:
        """Whether the balancer has something to do for it."""
        return self.dynamic or self.pinned not in (None, self.assigned)

    @property
    def partition_id(self) -> int:
        """The hypervisor's number for it."""
        return self._built.id

    def claim(self) -> Claim | None:
        """What it asks of the host, without the limits of pools; None while its memory stays as it is."""
        if not self.device.ready or not (self.dynamic or self.pinned is not None):
            return None
        least, most = self.minimum, self.maximum
        if self.pinned is not None:
            least = most = self.pinned
        return Claim(
            name=self.name,
            least=least,
            most=most,
            assigned=self.assigned,
            demand=self.demand,
            buffer=self.buffer,
            weight=self.weight,
        )

    @property
    def cannot_save(self) -> str:
        """Why the VM cannot be saved now; empty if it can."""
        offered = None if self.device.session is None else self.device.session.offered
        if not self._blocks and offered is None:
            return ""
        return (
            f"{size_words(self.added * _PAGE)} of memory were added while it ran, and where it is restored it begins "
            "without: start it with more"
        )

    def cause(self) -> str:
        """Why it has less than it was built with."""
        target = self.target
        if self.assigned >= self.startup:
            return ""
        if self.pinned is not None:
            return "asked"
        if self.limit is not None and target is not None and target.wish >= self.limit:
            return "limit"
        return "host" if target is not None and target.contended else "idle"

    def state(self) -> MemoryState:
        """As of now."""
        least, most = self.minimum, self.maximum
        if not self.dynamic and self.pinned is not None:
            least = most = self.pinned  # a person has given it another size
        return MemoryState(
            dynamic=self.dynamic,
            startup=self.startup * _PAGE,
            minimum=least * _PAGE,
            maximum=most * _PAGE,
            buffer=self.buffer,
            weight=self.weight,
            assigned=self.assigned * _PAGE,
            visible=self.ram.total * _PAGE,
            demand=None if self.demand is None else self.demand * _PAGE,
            target=None if self.target is None else self.target.pages * _PAGE,
            pressure=pressure(self.demand, self.assigned),
            ballooned=self.ballooned * _PAGE,
            added=self.added * _PAGE,
            added_memory=self.added_total * _PAGE,
            removed_memory=self.removed_total * _PAGE,
            driver=self.driver,
            cause=self.cause(),
        )

    def inspect(self) -> Branch:
        """Hyper-V's counters, in bytes and percent, and what can be set."""
        state, seen = self.state(), self._pressure
        shown: dict[str, object] = {
            "physical_memory": state.assigned,
            "guest_visible_physical_memory": state.visible,
            "guest_available_memory": None if self.available is None else self.available * _PAGE,
            "demand": state.demand,
            "target": state.target,
            "ballooned": state.ballooned,
            "added": state.added,
            "current_pressure": state.pressure,
            "average_pressure": seen.total // seen.count if seen.count else None,
            "minimum_pressure": seen.least,
            "maximum_pressure": seen.most,
            "added_memory": state.added_memory,
            "removed_memory": state.removed_memory,
            "memory_add_operations": self.add_operations,
            "memory_remove_operations": self.remove_operations,
            "startup": state.startup,
            "driver": state.driver,
            "cause": state.cause or None,
            "last_refusal": self._last_short or None,
        }
        if self.dynamic:
            shown |= {
                "minimum": state.minimum,
                "maximum": state.maximum,
                "buffer": state.buffer,
                "weight": state.weight,
            }
        return Branch(shown)

    # --- what can be changed while it runs

    def follow(self, table: VmTable) -> None:
        """Other settings: bounds of a dynamic VM, the size of another, which the balancer then takes it to."""
        dynamic = table.dynamic_memory
        if dynamic is None or not self.dynamic:
            self.pinned = table.memory >> PAGE_SHIFT
            self._rest_until = self._rest_adding_until = 0
            return
        least, most = memory_range(table)
        self.minimum, self.maximum = least >> PAGE_SHIFT, most >> PAGE_SHIFT
        self.buffer, self.weight = dynamic.buffer, dynamic.weight

    async def resize(self, size: int, patience: float = ANSWER_SECONDS) -> None:
        """Bring it to `size` bytes; raises `CannotResize` where that cannot be had, with what was had kept.

        A VM with dynamic memory stays there until `release`. `patience` is what one answer of the guest's may take, in
        seconds, and the time in which it must have a driver.
        """
        try:
            pages = _pages(size, "memory")
        except ValueError as error:
            raise CannotResize(f'VM "{self.name}": {error}') from None
        if self.dynamic and not self.minimum <= pages <= self.maximum:
            words = f"from {size_words(self.minimum * _PAGE)} to {size_words(self.maximum * _PAGE)}"
            raise CannotResize(f'VM "{self.name}": memory must be {words}, is {size_words(size)}')
        self.pinned = pages
        self._rest_until = self._rest_adding_until = 0
        with trio.move_on_after(patience):
            while not self.device.ready:
                await self.device.changed()
        if not self.device.ready:
            raise CannotResize(
                f'VM "{self.name}": its guest has no driver for dynamic memory ({self.device.state}); '
                "Linux has one in hv_balloon"
            )
        while self.pinned == pages and (why := await self._resize_step(pages, patience)) != "done":
            if why:
                raise CannotResize(f'VM "{self.name}" has {size_words(self.assigned * _PAGE)} now: {why}')
        await trio.lowlevel.checkpoint()

    def release(self) -> None:
        """The balancer decides again; nothing for a VM without dynamic memory."""
        if self.dynamic:
            self.pinned = None

    async def _resize_step(self, pages: int, patience: float) -> str:
        """One question nearer; "done" at the end, or why it cannot go on."""
        device = self.device
        if not device.ready:
            return f"its driver has gone ({device.state})"
        more = (pages - self.assigned) * _PAGE
        if more > self._vid.vm_memory_free and self.make_room is not None:
            await self.make_room(more)
        if device.idle:
            if self.assigned == pages:
                return "done"
            change = self._by_hand(pages)
            if change.change is Change.NOTHING or not change.pages:
                return self._why_not(pages)
            why = self.apply(change)
            if why:
                return why
        left = patience - seconds(self._clock() - self._asked_at)
        if left <= 0:
            return "its guest does not answer"
        with trio.move_on_after(left):
            await device.changed()
        return ""

    def _by_hand(self, pages: int) -> Step:
        """As the balancer's step, but to the page and in no hurry to stop."""
        more = pages - self.assigned
        if more > 0:
            more = min(more, max(0, self._free_pages()))
            if self._given:
                return Step(Change.UNBALLOON, min(more, self._given))
            return Step(Change.HOT_ADD, min(more, self._room()))
        return Step(Change.BALLOON, min(-more, _ASK_AT_ONCE)) if not self._resting() else Step()

    def _why_not(self, pages: int) -> str:
        if pages < self.assigned:
            return self._last_short or "its driver cannot give any back"
        if self._last_short:
            return self._last_short
        return "its driver takes no more memory" if not self._room() else "the host has no more memory"

    # --- the balancer's

    def apply(self, wanted: Step) -> str:
        """Do a step; why it could not be done, or empty. Only while the device is idle."""
        if not wanted.pages or wanted.change is Change.NOTHING:
            return ""
        self._asked_at = self._clock()
        match wanted.change:
            case Change.BALLOON:
                self.device.balloon(wanted.pages)
            case Change.UNBALLOON:
                pages = min(wanted.pages, self._given, max(0, self._free_pages()))
                if not pages:
                    return "the host has no more memory"
                pages = self.device.unballoon(pages)
                self._account(-pages)
                self.added_total += pages
                self.add_operations += 1
            case Change.HOT_ADD:
                return self._offer(wanted.pages)
        return ""

    def next_step(self, state: HostState, free: int) -> Step:
        """What brings it nearer to its target."""
        if not self.device.idle:
            return Step()
        if self.pinned is not None:
            return self._by_hand(self.pinned) if self.pinned != self.assigned else Step()
        if self.target is None:
            return Step()
        standing = Standing(
            assigned=self.assigned,
            ballooned=self._given,
            least=self.minimum,
            room=min(self._room(), max(0, self.maximum - self.ram.total)),
            balloons=not self._resting(),
        )
        return step(self.target.pages, standing, state, free)

    def sweep(self, now: int) -> None:
        """Empty the balloon again, once a minute: a guest may have written there."""
        if not self._sweeps_from:
            if not self._given or now - self._swept_at < ticks(SWEEP_SECONDS):
                return
            self._swept_at = now
        swept = list(islice(self.device.ballooned.runs_from(self._sweeps_from), SWEPT_AT_ONCE))
        for run in swept:
            self._built.partition.memory.discard(run.first, run.count)
        self._sweeps_from = swept[-1].end if len(swept) == SWEPT_AT_ONCE else 0

    def _resting(self) -> bool:
        session = self.device.session
        if session is None or not session.capabilities.balloon or len(session.ballooned) >= MOST_RUNS:
            return True
        return self._clock() < self._rest_until

    def _free_pages(self) -> int:
        return self._vid.vm_memory_free >> PAGE_SHIFT

    # --- adding memory

    def _place(self) -> tuple[int, int]:
        """Where the next memory goes, and how much fits up to the end of its chunk."""
        session = self.device.session
        assert session is not None, "its device is ready"
        alignment = max(session.capabilities.alignment, 1)
        last = self._blocks[-1].run if self._blocks else None
        first = -(-self.startup // alignment) * alignment if last is None else last.end
        if first < HIGH_START and first + alignment > LOW_LIMIT:
            first = HIGH_START
        chunk = max(alignment, CHUNK)
        return first, chunk - first % chunk

    def _room(self) -> int:
        """Pages that can be offered now."""
        session = self.device.session
        if self._never_add or session is None or not session.ready or not session.capabilities.hot_add:
            return 0
        if self._clock() < self._rest_adding_until:
            return 0
        return self._place()[1]

    def _offer(self, pages: int) -> str:
        """Map memory and offer it; why not, or empty."""
        first, room = self._place()
        run = Pages(first, min(pages, room))
        huge = self._settings.backend is Backend.KVM
        try:
            source = self._vid.add_memory(
                self._built, run.first, run.count * _PAGE, f"{self.name} added", huge_pages=huge
            )
        except (CannotStart, HypercallFailed) as error:
            self._rest_adding_until = self._clock() + ticks(RETRY_SECONDS)
            return str(error)
        self._blocks.append(_Block(run, source))
        self.device.hot_add(run)
        return ""

    def _give_up(self, taken: int) -> None:
        """Of the last block, only the first `taken` pages are the guest's."""
        block = self._blocks.pop()
        if not taken:
            self._remove(block)
            return
        run = block.run
        block.run, block.unused = Pages(run.first, taken), run.count - taken
        self._built.unmap(run.first + taken, block.unused)
        self._vid.given_back(block.unused * _PAGE)
        self._blocks.append(block)

    def _remove(self, block: _Block) -> None:
        self._vid.given_back(-block.unused * _PAGE)
        size = (block.run.count + block.unused) * _PAGE
        self._vid.remove_memory(self._built, block.run.first, size, block.source)

    # --- `MemoryOwner`

    def reported(self, report: Report) -> None:
        """Committed memory counts what is in the balloon, and is cut to what the guest can have."""
        session = self.device.session
        returning = 0 if session is None else session.returning
        most = 4 * max(self.maximum, self.ram.total)
        self.demand = min(max(0, report.committed - self._given - returning), most)
        self.available = min(report.available, self.ram.total)
        now = pressure(self.demand, self.assigned)
        if now is not None:
            self._pressure.add(now)

    def given(self, runs: Sequence[Pages]) -> None:
        """Their memory is the host's from now on."""
        memory = self._built.partition.memory
        for run in runs:
            memory.discard(run.first, run.count)
        pages = sum(run.count for run in runs)
        self._account(pages)
        self.removed_total += pages

    def balloon_done(self, asked: int, given: int) -> None:
        """Fewer than asked for: it is left alone for a while."""
        self.remove_operations += 1
        self._last_short = ""
        if given < asked:
            self._rest_until = self._clock() + ticks(RETRY_SECONDS)
            self._last_short = (
                f"its guest gave {size_words(given * _PAGE)} of {size_words(asked * _PAGE)}, and has no more to give"
            )

    def unballoon_done(self, pages: int) -> None:
        """It can be asked again."""
        self._last_short = ""

    def hot_add_done(self, offered: Pages, taken: int, never_again: bool) -> None:
        """What it did not take goes back."""
        self._last_short = ""
        if taken < offered.count:
            self._give_up(taken)
            words = "takes no more, ever" if never_again else "cannot take it now"
            self._last_short = f"its guest took {size_words(taken * _PAGE)} of {size_words(offered.count * _PAGE)}"
            self._last_short += f" and {words}"
        if taken:
            self.ram.add(Pages(offered.first, taken))
            self.added_total += taken
            self.add_operations += 1
        elif not never_again:
            self._rest_adding_until = self._clock() + ticks(RETRY_SECONDS)
        self._never_add = self._never_add or never_again

    def session_ended(self, offered: Pages | None) -> None:
        """The guest's driver is gone: what it gave is the guest's, and what was offered may be."""
        if self._given:
            self._account(-self._given)
        if offered is not None:
            self.ram.add(offered)
        self.demand = self.available = self.target = None

    # --- its end

    def was_reset(self) -> None:
        """The guest begins again with what it was built with; nobody serves its device."""
        self._remove_added()
        self.demand = self.available = self.target = None
        self._never_add = False
        self._rest_until = self._rest_adding_until = 0
        self._last_short = ""
        self.wake()

    def close(self) -> None:
        """The VM is off, and its partition about to go."""
        self._remove_added()

    def _remove_added(self) -> None:
        for block in self._blocks:
            self._remove(block)
        self._blocks.clear()
        self.ram = PageSet(Pages(0, self.startup))

    def _account(self, pages: int) -> None:
        self._given += pages
        self._vid.given_back(pages * _PAGE)


def _pages(size: int, key: str) -> int:
    """Bytes as whole units of a balloon. Raises `ValueError`."""
    if size <= 0 or size % (BALLOON_UNIT * _PAGE):
        raise ValueError(f"{key}: must be a multiple of 2 MiB and not 0, is {size_words(size)}")
    return size >> PAGE_SHIFT


async def change_memory(
    memory: VmMemory,
    *,
    size: int | None,
    minimum: int | None,
    maximum: int | None,
    buffer: int | None,
    weight: int | None,
    patience: float,
) -> MemoryState:
    """Bounds first, then the size; without a size, the balancer decides. Raises `CannotResize`.

    A size that is not had leaves the VM's settings at what it has.
    """
    from hypervisor.scheduler.tree import ResourceError

    bounds = {"minimum": minimum, "maximum": maximum, "buffer": buffer, "weight": weight}
    values: dict[str, object] = {f"dynamic_memory.{key}": value for key, value in bounds.items() if value is not None}
    if size is not None and not memory.dynamic:
        values["memory"] = size
    if values and memory.settle is not None:
        try:
            memory.settle(values)
        except ResourceError as error:
            raise CannotResize(str(error)) from None
    if size is None:
        memory.release()
        await trio.lowlevel.checkpoint()
        return memory.state()
    try:
        await memory.resize(size, patience)
    except CannotResize:
        if memory.settle is not None and not memory.dynamic:  # its settings say what it has
            with contextlib.suppress(ResourceError):  # why it has not the size asked for is what the caller is told
                memory.settle({"memory": memory.assigned * _PAGE})
        raise
    return memory.state()
