"""The memory of one running VM: what it was built with, what its guest gave back, what was added. Root side.

    assigned = built with + added - ballooned

Pages in the balloon stay mapped and their memory is given back to the system, so host memory really falls. A guest that
uses such a page all the same gets zeros, and loses what it wrote there: every minute the balloon is emptied again.
Added memory lies above what the VM was built with, at multiples of what its driver asks for, 128 MiB for Linux; it is
the guest's until it is reset or off.

A guest that refuses, or does not answer, keeps what it has: nothing waits for it but who asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

import attrs

from hypervisor.clock import seconds, ticks
from hypervisor.inspect import Branch
from hypervisor.pages import PAGE_SHIFT
from hypervisor.trace import Layer
from partitions.root.memory_added import RETRY_SECONDS, AddedMemory
from partitions.root.memory_state import MemoryState, shown
from partitions.topology_controls import DynamicMemoryTable, memory_range
from partitions.topology_schema import VmTable, size_words
from vsp_vsc.memory.active import PERIOD_SECONDS, ActiveMemory
from vsp_vsc.memory.balance import Change, Claim, HostState, Standing, Step, Target, pressure, step
from vsp_vsc.memory.protocol import BALLOON_UNIT, Pages
from vsp_vsc.memory.ranges import PageSet
from vsp_vsc.memory.session import Asked, Report
from vsp_vsc.memory.vsp import MemoryVsp

if TYPE_CHECKING:
    from hypervisor.scheduler.tree import Node
    from partitions.root.vid import Vid, VmPartition

ANSWER_SECONDS: Final = 60.0
"""After so long a guest counts as one that does not answer. What it says later counts all the same."""
SWEEP_SECONDS: Final = 60.0
MOST_RUNS: Final = 1 << 17
"""Of pages in a balloon, from which on nothing more is asked for: each of them costs the host some memory and time."""
SWEPT_AT_ONCE: Final = 1024
"""Runs of pages, of which a guest may make very many."""
_ASK_AT_ONCE: Final = 64 * BALLOON_UNIT
_PAGE: Final = 1 << PAGE_SHIFT


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

    @property
    def mean(self) -> int | None:
        return self.total // self.count if self.count else None


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
        """Has the balancer look again soon, however often it is called; its desk's."""
        self.limit: int | None = None
        """Pages that pools around it leave to it."""
        self.pinned: int | None = None
        """Pages that somebody asked for by hand; of a VM without dynamic memory, always."""
        self.ram = PageSet(Pages(0, self.startup))
        self.device = MemoryVsp(vid.hypervisor.trace, built.id, self)
        self._more = AddedMemory(settings, built, vid, self.device)
        self.target: Target | None = None
        self.demand: int | None = None
        self._active: ActiveMemory | None = None
        """While somebody samples what its guest uses."""
        self._touches = 0
        """That there had been when its guest began: what one before it told says nothing of this one."""
        self._period_ends = 0
        """By its own clock."""
        self.available: int | None = None
        self.swapped: int | None = None
        self._given = 0
        """Pages in the balloon that the host's account has."""
        self._rest_until = 0
        """Until then it is not asked for pages."""
        self._asked_at = 0
        self._swept_at = self._clock()
        self._sweeps_from: int | None = None
        """The page at which it goes on in the next second; None while nothing is left to do."""
        self._last_short = ""
        self._silent = False
        """It is known for not answering."""
        self._pressure = _Pressure()
        self.added_total = self.removed_total = 0
        self.used_again = 0
        """Bytes that its guest had used of pages in its balloon, whenever these were emptied again."""
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
    def waited(self) -> float:
        """Seconds since its guest was last asked for something."""
        return seconds(self._clock() - self._asked_at)

    @property
    def host_free(self) -> int:
        """Bytes of the host's that no VM has."""
        return self._vid.vm_memory_free

    @property
    def driver(self) -> str:
        """How its driver is."""
        return self.device.state if self.answers else "does not answer"

    @property
    def pool(self) -> Node | None:
        """The pool around it whose limit leaves it least, if there is any with a limit."""
        resources = None if self._vid.resources is None else self._vid.resources.made
        if resources is None or not resources.pools:
            return None
        from partitions.root.memory_pools import tightest

        return tightest(resources, self.name)

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
            active=self.active,
            buffer=self.buffer,
            weight=self.weight,
        )

    @property
    def active(self) -> int | None:
        """Pages that its guest uses, by a sample of them; None where nobody samples, or its guest does not tell."""
        if self._active is None or self._built.partition.counters["touches"] == self._touches:
            return None
        return self._active.pages(self.ram.total)

    @property
    def cannot_save(self) -> str:
        """Why the VM cannot be saved now; empty if it can."""
        offered = None if self.device.session is None else self.device.session.offered
        if not self._more and offered is None:
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
            active=None if (active := self.active) is None else active * _PAGE,
            target=None if self.target is None else self.target.pages * _PAGE,
            pressure=pressure(self.demand, self.assigned),
            ballooned=self.ballooned * _PAGE,
            added=self.added * _PAGE,
            swapped=None if self.swapped is None else self.swapped * _PAGE,
            added_memory=self.added_total * _PAGE,
            removed_memory=self.removed_total * _PAGE,
            driver=self.driver,
            cause=self.cause(),
        )

    def inspect(self) -> Branch:
        """Hyper-V's counters, in bytes and percent."""
        available = None if self.available is None else self.available * _PAGE
        return shown(
            self.state(),
            guest_available_memory=available,
            average_pressure=self._pressure.mean,
            minimum_pressure=self._pressure.least,
            maximum_pressure=self._pressure.most,
            memory_add_operations=self.add_operations,
            memory_remove_operations=self.remove_operations,
            used_while_ballooned=self.used_again,
            last_refusal=self._last_short or ("its guest takes no more memory, ever" if self._more.refused else None),
        )

    # --- what can be changed while it runs

    def follow(self, table: VmTable) -> None:
        """Other settings: bounds of a dynamic VM, the size of another, which the balancer then takes it to."""
        dynamic = table.dynamic_memory
        if dynamic is None or not self.dynamic:
            self.pin(table.memory >> PAGE_SHIFT)
            return
        least, most = memory_range(table)
        self.minimum, self.maximum = least >> PAGE_SHIFT, most >> PAGE_SHIFT
        self.buffer, self.weight = dynamic.buffer, dynamic.weight

    def pin(self, pages: int) -> None:
        """Keep it at so many pages, until `release`; the balancer, or whoever waits for it, takes it there."""
        self.pinned = pages
        self._ask_again()

    def release(self) -> None:
        """The balancer decides again; nothing for a VM without dynamic memory."""
        if self.dynamic:
            self.pinned = None
            self.wake()

    def by_hand(self, pages: int) -> Step:
        """As the balancer's step, but to the page and in no hurry to stop."""
        more = pages - self.assigned
        if more > 0:
            more = min(more, max(0, self._free_pages()))
            if self._given:
                return Step(Change.UNBALLOON, min(more, self._given))
            return Step(Change.HOT_ADD, min(more, self._more.room))
        return Step(Change.BALLOON, min(-more, _ASK_AT_ONCE)) if not self._resting() else Step()

    def why_not(self, pages: int) -> str:
        """Why `by_hand` has nothing to do, though it is not there yet."""
        if pages < self.assigned:
            return self._last_short or "its driver cannot give any back"
        if self._last_short:
            return self._last_short
        return "its driver takes no more memory" if not self._more.room else "the host has no more memory"

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
                return self._more.offer(wanted.pages)
        return ""

    def look_for_answers(self) -> None:
        """Once for each question that nobody answers, a warning."""
        if self.answers:
            self._silent = False
        elif not self._silent:
            self._silent = True
            asked = self.device.asked.value
            words = f"its guest has not answered a question about its memory ({asked}) for {ANSWER_SECONDS:.0f} s"
            self._vid.hypervisor.trace.warn(Layer.DEVICE, "memory_not_answered", self.partition_id, words)

    def next_step(self, state: HostState, free: int, over: int = 0) -> Step:
        """What brings it nearer to its target; `over` is what a pool around it has above its limit."""
        if not self.device.idle:
            return Step()
        if self.pinned is not None:
            size = self.pinned if self.limit is None or not self.dynamic else min(self.pinned, self.limit)
            return self.by_hand(size) if size != self.assigned else Step()
        if self.target is None:
            return Step()
        standing = Standing(
            assigned=self.assigned,
            ballooned=self._given,
            least=self.minimum,
            room=min(self._more.room, max(0, self.maximum - self.ram.total)),
            balloons=not self._resting(),
            over=over,
        )
        return step(self.target.pages, standing, state, free)

    def sample(self, on: bool) -> None:
        """Whether somebody wants to know what its guest uses; to be said again and again, which ends periods."""
        partition = self._built.partition
        if not on:
            self._active = partition.on_touch = None
            return
        now = partition.reference_time.now()
        if self._active is None:
            self._active = ActiveMemory(self._vid.chance(f"active memory of {self.name}"))
            partition.on_touch = self._active.touched
            self._period_ends = now
        if now >= self._period_ends:
            self._active.next_period(self.ram)
            period = ticks(PERIOD_SECONDS)
            self._period_ends = max(self._period_ends, now - period) + period

    def sweep(self, now: int) -> None:
        """Empty the balloon again, once a minute: a guest may have written there."""
        if self._sweeps_from is None:
            if not self._given or now - self._swept_at < ticks(SWEEP_SECONDS):
                return
            self._swept_at, self._sweeps_from = now, 0
        swept = list(islice(self.device.ballooned.runs_from(self._sweeps_from), SWEPT_AT_ONCE))
        before = self._resident()
        for run in swept:
            self._built.partition.memory.discard(run.first, run.count)
        self.used_again += max(0, before - self._resident())
        self._sweeps_from = swept[-1].end if len(swept) == SWEPT_AT_ONCE else None

    def _resident(self) -> int:
        return sum({block: block.resident for _, block, *_ in self._built.partition.memory.extents()}.values())

    def _resting(self) -> bool:
        session = self.device.session
        if session is None or not session.capabilities.balloon or len(session.ballooned) >= MOST_RUNS:
            return True
        return self._clock() < self._rest_until

    def _ask_again(self) -> None:
        self._rest_until = 0
        self._more.try_again()

    def _free_pages(self) -> int:
        return self._vid.vm_memory_free >> PAGE_SHIFT

    # --- `MemoryOwner`

    def began(self) -> None:
        """Somebody may wait for it, or a pool have more than its limit since it started."""
        if self.pinned not in (None, self.assigned) or (self.dynamic and self._settings.pool):
            self.wake()

    def reported(self, report: Report) -> None:
        """Committed memory counts what is in the balloon, and is cut to what the guest can have."""
        session = self.device.session
        returning = 0 if session is None else session.returning
        most = 4 * max(self.maximum, self.ram.total)
        self.demand = min(max(0, report.committed - self._given - returning), most)
        self.available = min(report.available, self.ram.total)
        self.swapped = report.page_file
        now = pressure(self.demand, self.assigned)
        if now is not None:
            self._pressure.add(now)

    def restored(self, pages: int) -> None:
        """Of which nothing was kept; so many runs a second are emptied all the same."""
        self._account(pages)
        self.removed_total += pages
        self._sweeps_from = 0

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
            self._more.give_up(taken)
            words = "takes no more, ever" if never_again else "cannot take it now"
            self._last_short = f"its guest took {size_words(taken * _PAGE)} of {size_words(offered.count * _PAGE)}"
            self._last_short += f" and {words}"
        if taken:
            self.ram.add(Pages(offered.first, taken))
            self.added_total += taken
            self.add_operations += 1
        elif not never_again:
            self._more.rest()
        self._more.refused = self._more.refused or never_again

    def session_ended(self, offered: Pages | None) -> None:
        """The guest's driver is gone: what it gave is the guest's, and what was offered may be."""
        if self._given:
            self._account(-self._given)
        if offered is not None:
            self.ram.add(offered)
        self.demand = self.available = self.swapped = self.target = None

    # --- its end

    def was_reset(self) -> None:
        """The guest begins again with what it was built with; nobody serves its device."""
        self._more.begin_anew()
        self.ram = PageSet(Pages(0, self.startup))
        self.demand = self.available = self.swapped = self.target = None
        self.sample(on=False)
        self._touches = self._built.partition.counters["touches"]
        self._rest_until = 0
        self._last_short = ""
        self.wake()

    def close(self) -> None:
        """The VM is off, and its partition about to go."""
        self._more.remove_all()
        self.ram = PageSet(Pages(0, self.startup))

    def _account(self, pages: int) -> None:
        self._given += pages
        self._vid.given_back(pages * _PAGE)
