"""What the processor scheduler schedules: groups and virtual processors, and each one's place in its queue. Hypervisor.

A group has two places, one for its normal and one for its batch processors: what the one class uses is unknown to the
other, so batch work changes nothing for who is normal. A virtual processor has one, in the class that it is of.
"""

from __future__ import annotations

import enum
from typing import NamedTuple, Protocol

import attrs

SCALE = 20
"""Tags are nanoseconds shifted left by so much and divided by the weight: integers, precise to a millionth."""
NEW = -1
"""The tag of who has never been ready."""


class State(enum.Enum):
    """What a virtual processor does with its time."""

    HALTED = "halted"
    """No work, or suspended."""
    READY = "ready"
    """Work, and no logical processor: others have them, or a group that it is in has no budget."""
    CAPPED = "capped"
    """Work, and no budget of its own."""
    RUNNING = "running"


class Reason(enum.Enum):
    """Why a virtual processor lost its logical processor."""

    SLICE_END = "slice end"
    CAPPED = "capped"
    """Its budget, or that of a group that it is in, is used up for this period."""
    PREEMPTED = "preempted"
    """It is batch, and a normal one became ready."""
    BLOCKED = "blocked"
    """It has no more work."""
    SUSPENDED = "suspended"


class Times(NamedTuple):
    """Nanoseconds until now. Of a virtual processor, the first four sum up to its life; of a group, sums over it."""

    run: int = 0
    ready: int = 0
    capped: int = 0
    halted: int = 0
    dispatches: int = 0
    """How often it was given a logical processor. What runs on because nobody else wants it counts once."""
    wait_total: int = 0
    """From ready to dispatched, waits for a budget included, all that have ended together."""
    wait_longest: int = 0
    """The longest of these."""


class Listener(Protocol):
    """Who is told what happens. Called from inside the kernel: must only take note, and not call it."""

    timely: bool
    """Wants to hear of each slice when it happens: whoever drives the kernel then advances it at every `next_time`."""

    def dispatched(self, vp: Vp, lp: int, slice_ns: int) -> None:
        """`vp` has `lp` for so long; 0: until somebody else wants it. Also where it goes on after a slice."""

    def descheduled(self, vp: Vp, lp: int, reason: Reason) -> None:
        """`vp` has `lp` no more."""

    def finished(self, vp: Vp) -> None:
        """All the work that `vp` had is done."""


@attrs.define(eq=False)
class Budget:
    """What is left of a capped node's time in this period.

    Periods begin at whole multiples of their length. Nothing is carried over but what was charged afterwards: a debt of
    time, or a credit.
    Granted slices are paid in advance. One that reaches into the next period is paid for by that period as far as it
    does, which is why no period ever sees more than `full`.
    """

    node: Group | Vp
    serial: int
    full: int
    """Nanoseconds a period."""
    period: int
    left: int
    until: int
    """When the period ends."""
    credit: int = 0
    """For the next ones on top: the host kept somebody from running who had been dispatched."""
    ends: int = 0
    """The sum of when the slices end that have been granted and still run..."""
    running: int = 0
    """...and their number: together what they will still run, at any time."""
    throttled: bool = False
    short: bool = False
    """The period before ended with some of it unused, although somebody in it was busy all the time."""
    fill_at: int = -1
    """For when its next fill is an event."""


@attrs.define(eq=False)
class Place:
    """Where somebody stands among its siblings of one class. Ordered by tag: what it was given, over its weight."""

    serial: int
    """In the order of making."""
    rank: int
    """Orders equal tags; no two siblings have the same."""
    weight: int
    step: int
    """By how much a whole quantum raises the tag."""
    above: Place = attrs.field(init=False)
    """Of the group that it is in; not set in a root."""
    queue: Queue = attrs.field(init=False)
    tag: int = NEW
    queued: bool = False
    """In the heap of `above`, with its present tag. Other entries there with its name are stale."""
    throttled: bool = False
    busy: int = 0
    """How many virtual processors in it are not halted; of one, 0 or 1."""
    idle_since: int = -1
    """When it had none last."""
    woken: bool = False
    """It was idle, and has not been queued since."""
    hungry: bool = False
    """It had to wait for others since it was queued last."""
    paused: bool = False
    """It had no budget, and has not been queued since."""
    spared: int = 0
    """Arrears that it was not queued with, since it has never waited: only good for not beginning to wait..."""
    era: int = 0
    """...until somebody comes to its siblings: what `above.eras` was when it got them."""
    eras: int = 0
    """How often one of its children was new, or had been idle."""
    heap: list[tuple[int, int, Place]] = attrs.Factory(list)
    """Who may be served, least tag first; always empty in a virtual processor."""
    served: int = 0
    """The highest tag of those that were served: the present of its children."""
    reach: int = 0
    """The step of who had that."""
    ready: int = 0
    """How many of them are queued."""
    crowd: int = 32
    """How long the heap may become before stale entries are swept out."""
    rate: int = 0
    """Its reserve."""
    due: int = 0
    """When it is owed service for that..."""
    term: int = 0
    """...and how long after that at the latest: a quantum, at its rate."""
    parked: list[Place] = attrs.Factory(list)
    """Reserved ones below that were owed while this one was throttled."""


@attrs.define(eq=False)
class Vp(Place):
    """A virtual processor."""

    name: str = attrs.field(kw_only=True)
    id: int = attrs.field(kw_only=True)
    group: Group = attrs.field(kw_only=True)
    shares: int = attrs.field(kw_only=True)
    cap: int | None = attrs.field(kw_only=True)
    reserve: int = attrs.field(kw_only=True)
    period: int = attrs.field(kw_only=True)
    batch: bool = attrs.field(kw_only=True)
    born: int = attrs.field(kw_only=True)
    budget: Budget | None = None
    state: State = State.HALTED
    suspended: bool = False
    left: int | None = 0
    """Of its work at the beginning of this slice; None: it never ends."""
    since: int = 0
    """When its state began."""
    mark: int = 0
    """How long its group had been throttled then."""
    run: int = 0
    waited: int = 0
    """Ready, or kept waiting by a group without budget."""
    capped: int = 0
    halted: int = 0
    dispatches: int = 0
    wait_total: int = 0
    wait_longest: int = 0
    waiting_since: int = 0
    lp: int = -1
    """Where it runs, or ran last."""
    start: int = 0
    """When this slice begins to count as run: behind the switch."""
    slice: int = 0
    """What was granted; 0: the slice is open, nothing has been paid, and it ends when somebody else is ready."""
    paid: tuple[Place, ...] = ()
    """Whose reserve this slice was taken from."""
    path: tuple[Place, ...] = ()
    """It and the groups' places up to, and without, the root that it is dispatched from."""
    budgets: tuple[Budget, ...] = ()
    """Of all that are capped up to the top."""
    group_capped: bool = False
    """Whether one of them is a group's."""
    reserved: tuple[Place, ...] = ()
    """Those of its path with a reserve."""
    awaited: bool = False
    """It is in the heap of those with work that ends."""
    gone: bool = False

    def __repr__(self) -> str:
        return f"<Vp {self.name}>"


@attrs.define(eq=False)
class Group:
    """A pool, a VM, or the machine itself."""

    name: str
    id: int
    group: Group | None
    shares: int
    cap: int | None
    reserve: int
    period: int
    processors: frozenset[int] | None
    normal: Place
    batch: Place
    children: dict[int, Group | Vp] = attrs.Factory(dict)
    """By rank."""
    budget: Budget | None = None
    blocked: int = 0
    """How many of it and the groups above have no budget."""
    blocked_since: int = 0
    blocked_total: int = 0
    domain: Domain | None = None
    """Of a group with processors of its own, and of the machine."""

    def __repr__(self) -> str:
        return f"<Group {self.name}>"


@attrs.define(eq=False)
class Queue:
    """One class in one domain."""

    root: Place
    domain: Domain
    batch: bool
    waiting: int = 0
    """Virtual processors that stand in the queues of their groups."""
    lenient: bool = False
    """Who ends a slice may go on, if it deserves to: somebody was spared arrears, or there was an LP to spare."""
    ended: list[Vp] = attrs.Factory(list)
    """Whose slices have ended at this moment, if so."""
    keepers: list[Vp] = attrs.Factory(list)
    """Those of them that go on, the first one last."""
    arrivals: list[Place] = attrs.Factory(list)
    """Who has become ready and is queued when time leaves this moment."""
    open: dict[Vp, None] = attrs.Factory(dict)
    """Who runs without an end to its slice."""
    owed: list[tuple[int, int, Place]] = attrs.Factory(list)
    """Reserved ones by when they are due, lazily as in the heaps of places."""
    urgent: list[tuple[int, int, Place]] = attrs.Factory(list)
    """Those that are due, by when they must have been served."""
    debtors: int = 64
    """How long `owed` may become before stale entries are swept out."""


@attrs.define(eq=False)
class Domain:
    """A set of logical processors and those that run on them."""

    lps: int
    """As bits."""
    free: int
    batch_lps: int = 0
    """Those where a batch processor runs."""
    normal: Queue = attrs.field(init=False)
    batch: Queue = attrs.field(init=False)
    spare: bool = False
    """One of them was free when time left the last moment."""
    spare_at: int = -1
    """When that was so last, while there were caps."""
    tight: dict[Budget, int] = attrs.Factory(dict)
    """Caps that slices of a quantum do not leave enough turns for, and how long slices may be for their sake."""
    length: int = 0
    """The least of these; 0: a quantum."""
    contended: bool = False
    """Somebody with work and budget waits for a logical processor."""
    contended_since: int = 0
    contended_total: int = 0
