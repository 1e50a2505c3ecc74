"""What the processor scheduler schedules: groups and virtual processors, and each one's place in its queue. Hypervisor.

A group has two places, one for its normal and one for its batch processors: what the one class uses is unknown to the
other, so batch work changes nothing for who is normal. A virtual processor has one, in the class that it is of.
"""

from __future__ import annotations

import enum
from typing import NamedTuple, Protocol

import attrs

FINE = 16
"""Weights are shares shifted left by so much, since paces are no whole numbers of them."""
SCALE = 232_792_560 << FINE
"""Tags are nanoseconds times that over the weight: exact for shares of up to 20 and what divides a quantum, so that
equal tags are equal."""
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


@attrs.define(eq=False, repr=False)
class Place:
    """Where somebody stands among its siblings of one class. Ordered by tag: what it was given, over its weight."""

    serial: int
    """In the order of making."""
    rank: int
    """Orders equal tags; no two siblings have the same."""
    shares: int
    quantum: int
    weight: int = attrs.field(init=False)
    """Its shares, or what makes it as fast as its pace among its siblings, in 2^-16 of a share."""
    step: int = attrs.field(init=False)
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
    """When it had none last..."""
    idle_before: int = -1
    """...and when before that."""
    woken: bool = False
    """It was idle, and has not been queued since."""
    changed: bool = False
    """Controls of it, or around it, are new, and it has not been queued since."""
    bound: bool = False
    """It is due all that it can use: no weight would give it more, and what it loses it cannot have later."""
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
    floor: int = 0
    """Its reserve."""
    least: int = 0
    """What it, or those of it that are busy, have reserved, as `pace`..."""
    most: int = 0
    """...and what they can use together."""
    pace: int = 0
    """What it is due of logical processors, in 2^-32 of one: computed when somebody gets busy or idle."""
    rate: int = 0
    """Service that it is owed whether it is its turn or not, in 1/65536 of a logical processor."""
    due: int = 0
    """When it is owed the next for that..."""
    term: int = 0
    """...and how long after that at the latest..."""
    lead: int = 0
    """...and how far ahead of the present it may come by what it is served otherwise."""
    heavy: bool = False
    """It is due so much that it could not make up for waiting."""
    binding: Budget | None = None
    """It is due all that its cap allows: must be served in time for that budget to be used up."""
    density: int = 0
    """How much of each period that takes at least, in 1/65536, however many of it run at once."""
    parked: list[Place] = attrs.Factory(list)
    """Those below that were owed service while this one was throttled."""

    def __attrs_post_init__(self) -> None:
        self.weigh(self.shares << FINE)

    def weigh(self, weight: int) -> None:
        """From now on it has so much."""
        self.weight = weight
        self.step = self.quantum * SCALE // weight

    def __repr__(self) -> str:
        return f"<Place {self.serial}>"


@attrs.define(eq=False, repr=False)
class Vp(Place):
    """A virtual processor."""

    name: str = attrs.field(kw_only=True)
    id: int = attrs.field(kw_only=True)
    group: Group = attrs.field(kw_only=True)
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
    paid: tuple[tuple[Place, int], ...] = ()
    """Who was owed less for this slice, and by how much."""
    path: tuple[Place, ...] = ()
    """It and the groups' places up to, and without, the root that it is dispatched from."""
    budgets: tuple[Budget, ...] = ()
    """Of all that are capped up to the top."""
    group_capped: bool = False
    """Whether one of them is a group's."""
    owed: tuple[Place, ...] = ()
    """Those of its path that have a rate."""
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
    arrivals: list[Place] = attrs.Factory(list)
    """Who has become ready and is queued when time leaves this moment."""
    open: dict[Vp, None] = attrs.Factory(dict)
    """Who runs without an end to its slice."""
    owed: list[tuple[int, int, Place]] = attrs.Factory(list)
    """Those with a rate by when they are due, lazily as in the heaps of places."""
    urgent: list[tuple[int, int, Place]] = attrs.Factory(list)
    """Those that are due, by when they must have been served."""
    debtors: int = 64
    """How long both may become together before stale entries are swept out."""


@attrs.define(eq=False)
class Domain:
    """A set of logical processors and those that run on them."""

    group: Group
    """The root of it."""
    quantum: int
    lps: int = 0
    """As bits."""
    free: int = 0
    batch_lps: int = 0
    """Those where a batch processor runs."""
    normal: Queue = attrs.field(init=False)
    batch: Queue = attrs.field(init=False)
    stale: bool = True
    """Somebody has become busy or idle, or was told otherwise, since paces were computed."""
    touched: bool = False
    """That was so at this moment: paces are computed where something happens to normal ones, and not to batch."""
    paced_until: int = 0
    """Till then they are good enough."""
    strict: list[Place] = attrs.Factory(list)
    """Those that have to be served within a quantum of the beginning of a period for their budget to be used up."""
    tight: dict[Budget, int] = attrs.Factory(dict)
    """Caps that slices of a quantum do not leave enough turns for, and how long slices may be for their sake."""
    length: int = 0
    """The least of these; 0: a quantum."""
    contended: bool = False
    """Somebody with work and budget waits for a logical processor."""
    contended_since: int = 0
    contended_total: int = 0
