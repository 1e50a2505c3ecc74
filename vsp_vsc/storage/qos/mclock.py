"""mClock in a tree: which request may go, and when, by reservation, limit and shares at every level. Root side.

Each node has three tags (Gulati et al., OSDI 2010), exact integers that never depend on the order of callers:

    until   the limit: nothing below the node goes before it; each I/O moves it on by its cost over the limit
    due     the reservation: an I/O is owed from this moment on; each that is served because of it moves it on
    tag     the shares, a virtual start time (start-time fair queueing): each I/O moves it on by cost over weight

A request goes when every node from the root down to its disk is past its `until`. Of several that may, the root picks a
child, the child one of its own, down to a disk: one that is owed an I/O first, the one owed for longest; else the one
with the least `tag`. Hence a node gets its reservation, or its share if that is more, and never more than its limit.

A node that its limit holds below its share is behind its siblings' tags. It is to have an I/O in each interval of its
limit, and so its `deadline` is one interval after its `until`: of such nodes the one with the earliest goes, and before
one that is owed an I/O, if that has until later. (Earliest deadline first is what meets all deadlines if anything
does.) By tags alone it would wait for whoever else is behind, for longer than it can make up for.

    limit > reservation > shares     a node before its `until` is no candidate, whatever it is owed

The root's limit is what the host's storage can do; without one there is nothing to share, and only limits count. A
reservation of a node is at least the sum of those below it, so that a disk's is worth something in a pool without; and
at most its limit.

Neither credit nor debt grows old. A node that was idle comes back at its parent's present (`v`), without what it did
not use; one that a limit held back, or that its reservation put ahead, is at most `_LAG` requests from there. A
reservation that limits kept from being used is owed for half of `_DEBT` at most; when more is reserved than there is,
all that are owed forget the same. So a change of controls takes effect within some requests. Intervals between I/Os are
at least 1 / limit, but for those that had to wait for others: up to `_CATCH_UP` may follow as if those before them had
been in time. Without that a limit beside shares could not be reached, as moments when a limit and when its parent have
room seldom fall together. In any [t, t + X) go limit * X and one, and those that catch up. Whoever is beside larger
requests catches up on what two of those have kept from it.

Time is the caller's, in ns, and only moves forwards. `pull` takes what was due in its order with the moment at which it
was due, so a caller that is late changes nothing but that, not even for a guest that sends its next request only when
it has the answer to the one before. At once it makes up for at most `slack`, since a limit that holds on the average of
a stall and the rush after it does not hold in each second. For the rest of a stall the clock that limits go by stays
behind, by half a second at most, and runs 5 % faster than the caller's until it is there again: all that is said of
limits holds by that clock, and by the caller's to 5 % and the slack. No Trio, no clock.
"""

from __future__ import annotations

import enum
import heapq
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import attrs

_SUB: Final = 1 << 20
"""Parts of a ns that moments are counted in, so that intervals such as 1/300 s leave nothing behind."""
_SECOND: Final = 1_000_000_000 * _SUB
_SHARE: Final = 1 << 40
"""What a normalized I/O costs a node of weight 1."""
_LAG: Final = 8
_DEBT: Final = _SECOND // 10
"""For how long a reservation may be owed, until all of a node's children forget some of it."""
_CATCH_UP: Final = 2
_MOST_BEHIND: Final = _SECOND // 2
_PACE: Final = 20
"""Of a stall, one part in so many of the time since is made up for."""
_HEAP_ROOM: Final = 64
_PIECE: Final = 128
"""Normalized I/Os of one request that are let go at a time: others under the same limit come in between."""
MAX_RATE: Final = 1_000_000_000
"""The most I/Os a second that a reservation or limit may be."""


_Entry: TypeAlias = "tuple[int, int, Node]"
_Heap: TypeAlias = "list[_Entry]"


class Phase(enum.Enum):
    """Why a request went before others."""

    RESERVATION = "reservation"
    WEIGHT = "weight"


@attrs.define(eq=False)
class Request:
    """One I/O that waits."""

    leaf: Node
    cost: int
    """Normalized I/Os; 0 for what is not counted and only keeps its place."""
    payload: Any
    """The caller's."""
    arrived: int
    """ns."""
    phase: Phase | None = None
    """Set once it goes: by what its disk was picked."""
    gone: int = 0
    """Of its cost, while it waits."""


@attrs.define(eq=False, repr=False)
class Node:
    """A disk, or whatever holds disks. Made by `MClock.add_node`; all that is here is for reading."""

    id: int
    name: str
    parent: Node | None
    reserve: int = 0
    """Normalized I/Os a second."""
    limit: int | None = None
    weight: int = 100
    children: dict[str, Node] = attrs.field(factory=dict)
    queue: OrderedDict[int, Request] = attrs.field(factory=OrderedDict)
    """Of a disk: what waits, by identity."""
    waiting: int = 0
    """Requests that wait, here or below."""
    owed: int = 0
    """The reservation that counts: its own or that of its children, if they have more."""
    arrived: int = 0
    """Normalized I/Os asked for, ever."""
    served: int = 0
    """Normalized I/Os let go, ever."""
    reserved: int = 0
    """Those of them that went because they were owed."""
    requests: int = 0
    """Requests let go, ever."""
    held: int = 0
    """ns, in `_SUB` parts, for which its limit held back what waited."""
    since: int = 0
    """When it had nothing to do last."""
    late: int = 0
    """How far it is behind its limit because the caller was late; then so is what its guest sends next."""
    until: int = 0
    due: int = 0
    tag: int = 0
    v: int = 0
    """The tag that was last served by weight among the children: their present."""
    forgiven: int = 0
    """How far the children's reservations lag behind the clock, since more is owed than there is."""
    ready: bool = False
    """Something below may go, as far as nodes from here down are concerned."""
    ready_children: int = 0
    throttled: int | None = None
    """Since when, while an event wakes it at `until`."""
    largest: int = 1
    """About the largest of its recent requests."""
    deadline: int = 0
    """By when it should go, if limits have held it behind its siblings; 0 if they have not."""
    by_deadline: _Heap = attrs.field(factory=list)
    """Children that may go and have a deadline; all others that have a weight are in `by_tag`."""
    by_tag: _Heap = attrs.field(factory=list)
    by_due: _Heap = attrs.field(factory=list)

    @property
    def path(self) -> str:
        """Names from below the root down."""
        names: list[str] = []
        node = self
        while node.parent is not None:
            names.append(node.name)
            node = node.parent
        return "/".join(reversed(names))

    @property
    def since_ns(self) -> int:
        """Since when something waits, in ns, where something does."""
        return self.since // _SUB

    def __repr__(self) -> str:
        return f"<Node {self.path or self.name}>"


class MClock:
    """One host's storage."""

    def __init__(self, capacity: int | None = None, *, slack: int = 50_000_000) -> None:
        """`capacity` in normalized I/Os a second, None where it is not modelled; `slack` in ns."""
        self.root = Node(0, "", None, limit=capacity)
        self._now = 0
        self._slack = slack * _SUB
        self._late = 0
        """Of the request that goes: from when it was due to now, at most the slack."""
        self._behind = 0
        """How far the clock was behind the caller's at `_stalled`, by the caller's."""
        self._stalled = 0
        self._serial = 0
        self._events: list[tuple[int, int, Node]] = []

    # --- the tree

    def add_node(
        self, parent: Node, name: str, *, reserve: int = 0, limit: int | None = None, weight: int = 100
    ) -> Node:
        """A node more. Weight 0 is for one that gets its reservation and never more. ValueError for a name twice."""
        if name in parent.children:
            raise ValueError(f"{parent.path}/{name} is there already")
        _check(reserve, limit, weight)
        self._serial += 1
        node = Node(self._serial, name, parent, reserve, limit, weight)
        node.tag, node.due = parent.v, self._now - parent.forgiven
        parent.children[name] = node
        _owe(node)
        return node

    def remove(self, node: Node) -> list[Request]:
        """A node less, with all below it; what waited there, in order."""
        assert node.parent is not None, "the root stays"
        left: list[Request] = []
        for child in list(node.children.values()):
            left += self.remove(child)
        for request in list(node.queue.values()):
            self.withdraw(request)
            left.append(request)
        del node.parent.children[node.name]
        _owe(node.parent)
        return left

    def move(self, node: Node, parent: Node) -> None:
        """Hang a node with all below it elsewhere; what waits goes on waiting. ValueError as `add_node`."""
        if node.name in parent.children:
            raise ValueError(f"{parent.path}/{node.name} is there already")
        old, moved = node.parent, node.waiting
        assert old is not None, "the root stays"
        above: Node | None = old
        while above is not None:
            above.waiting -= moved
            above = above.parent
        self._sleep(node)
        del old.children[node.name]
        _owe(old)
        node.parent = parent
        parent.children[node.name] = node
        node.tag, node.due = parent.v, self._now - parent.forgiven
        _owe(node)
        if moved:
            self._busy(parent, moved)
        self._wake(node)

    def change(
        self, node: Node, *, reserve: int | None = None, limit: int | None = None, weight: int | None = None
    ) -> None:
        """Other controls from now on; None leaves one as it is, and 0 as a limit is none."""
        new_reserve = node.reserve if reserve is None else reserve
        new_limit = node.limit if limit is None else limit or None
        new_weight = node.weight if weight is None else weight
        _check(new_reserve, new_limit, new_weight)
        node.reserve, node.limit, node.weight = new_reserve, new_limit, new_weight
        _owe(node)
        if node.limit is None:
            node.until = 0
        else:
            node.until = min(max(node.until, self._now), self._now + _interval(node.largest, node.limit))
        parent = node.parent
        if parent is not None:
            clock = self._now - parent.forgiven
            if node.owed:
                node.due = min(node.due, clock + _interval(node.largest, node.owed))
            if not node.waiting:
                node.due = max(node.due, clock)
            step = node.largest * _SHARE // node.weight if node.weight else 0
            node.tag = min(max(node.tag, parent.v - _LAG * step), parent.v + _LAG * step)
        self._sleep(node)
        node.throttled = None
        self._wake(node)

    # --- requests

    def add(self, leaf: Node, cost: int, payload: Any, now: int) -> Request:
        """A request comes at `now`. What was due before is for `pull` to take first, if it is to count as before."""
        self._now = max(self._now, self._clock(now * _SUB))
        request = Request(leaf, cost, payload, now)
        leaf.queue[id(request)] = request
        node: Node | None = leaf
        while node is not None:
            node.arrived += cost
            node = node.parent
        self._busy(leaf, 1)
        self._wake(leaf)
        return request

    def withdraw(self, request: Request) -> None:
        """A request that waits goes away."""
        leaf = request.leaf
        del leaf.queue[id(request)]
        node: Node | None = leaf
        while node is not None:
            node.waiting -= 1
            node = node.parent
        if not leaf.queue:
            self._sleep(leaf)

    def pull(self, now: int) -> Request | None:
        """The next request that goes at `now` or was to go before; None if there is none yet."""
        while self._turn(now * _SUB):
            request = self._go()
            if request is not None:
                return request
        return None

    def _clock(self, caller: int) -> int:
        """What time it is for limits."""
        behind = self._behind and self._behind - (caller - self._stalled) // _PACE
        if behind > 0:
            return caller - behind
        self._behind = 0
        return caller

    def _turn(self, caller: int) -> bool:
        """Whether something goes until then; `_now` is when."""
        root, events = self.root, self._events
        end = self._clock(caller)
        while events:
            moment = self._next_event()
            if moment is None or moment > (self._now if root.ready else end):
                break  # all that may go at this moment is there to choose from
            node = heapq.heappop(events)[2]
            self._now = max(self._now, moment)
            end = self._limited_stall(caller, end)
            assert node.throttled is not None, "or the entry would be dead"
            node.held += moment - node.throttled
            node.throttled = None
            self._wake(node)
        if not root.ready:
            self._now = max(self._now, end)
            return False
        end = self._limited_stall(caller, end)
        self._late = max(0, end - self._now)
        return True

    def _limited_stall(self, caller: int, end: int) -> int:
        """The same time as `end`, or an earlier one where the caller is later than can be made up for at once."""
        stall = end - self._slack - self._now
        if stall > 0:
            behind = min(caller - end + stall, _MOST_BEHIND)
            self._behind, self._stalled, end = behind, caller, caller - behind
            self._now = max(self._now, end - self._slack)
        return end

    def next_time(self) -> int | None:
        """The moment, in ns, before which `pull` gives nothing; None while nothing waits for one."""
        if self.root.ready:
            return self._now // _SUB
        moment = self._next_event()
        if moment is not None and self._behind:
            moment = max(moment, -(-(_PACE * (moment + self._behind) + self._stalled) // (_PACE + 1)))
        return None if moment is None else -(-moment // _SUB)

    # --- inside

    def _next_event(self) -> int | None:
        events = self._events
        while events:
            moment, _, node = events[0]
            if node.throttled is not None and node.until == moment and node.waiting:
                return moment
            heapq.heappop(events)
            if node.until == moment:
                node.throttled = None
        return None

    def _busy(self, node: Node | None, count: int) -> None:
        """So many requests more wait below a node. One that was idle has neither credit nor a claim from before."""
        while node is not None:
            parent = node.parent
            if not node.waiting:
                node.since = self._now - node.late
                if parent is not None:
                    node.tag = max(node.tag, parent.v)
                    node.due = max(node.due, self._now - parent.forgiven)
            node.waiting += count
            node = parent

    def _wake(self, node: Node | None) -> None:
        """A node may have something to go, and by that those above it."""
        while node is not None and not node.ready and (node.queue or node.ready_children):
            parent = node.parent
            until = node.until
            if parent is not None and not node.weight:
                until = max(until, node.due + parent.forgiven)
            if until > self._now:
                if node.throttled is None or node.until != until:
                    node.throttled = self._now
                    node.until = until
                    heapq.heappush(self._events, (until, node.id, node))
                return
            node.ready = True
            if parent is None:
                return
            parent.ready_children += 1
            if node.owed:
                node.due = max(node.due, self._now - parent.forgiven - _DEBT // 2)
            if node.weight:
                node.tag = max(node.tag, parent.v - _LAG * node.largest * _SHARE // node.weight)
            _enter(parent, node, self._now)
            node = parent

    def _sleep(self, node: Node | None) -> None:
        """A node has nothing to go, and by that perhaps those above it."""
        while node is not None and node.ready:
            node.ready = False
            node = node.parent
            if node is not None:
                node.ready_children -= 1
                if node.ready_children:
                    return

    def _go(self) -> Request | None:
        """Serve whoever is next, at this moment; None where its request is a large one, and has more to wait for."""
        now = self._now
        path: list[tuple[Node, Phase]] = []
        node = self.root
        while node.children:
            path.append(_pick(node, now))
            node = path[-1][0]
        request = next(iter(node.queue.values()))
        cost = request.cost - request.gone
        ends = cost <= _PIECE
        if ends:
            del node.queue[id(request)]
            request.phase = path[-1][1]
        else:
            cost = _PIECE
            request.gone += cost
        for child, phase in reversed(path):
            parent = child.parent
            assert parent is not None, "the root is nobody's child"
            if phase is Phase.WEIGHT:
                parent.v = max(parent.v, child.tag)
            elif cost:
                child.due += _interval(cost, child.owed)
                child.reserved += cost
            child.largest = max(cost, child.largest * (63 if child.children else 56) // 64, 1)
            if child.weight:
                step = _SHARE // child.weight
                child.tag = min(child.tag + cost * step, parent.v + _LAG * child.largest * step)
            self._served(child, cost, ends)
            if child.ready:
                _enter(parent, child, now)
            else:
                parent.ready_children -= 1
        self.root.largest = max(cost, self.root.largest * 63 // 64, 1)
        self._served(self.root, cost, ends)
        return request if ends else None

    def _served(self, node: Node, cost: int, ends: bool) -> None:
        """Count it, and see whether the node has more that may go now."""
        now, parent = self._now, node.parent
        node.waiting -= ends
        node.requests += ends
        node.served += cost
        if node.limit is not None:
            step = _interval(cost, node.limit)
            back = _CATCH_UP * step
            if self.root.largest > cost:
                back += _CATCH_UP * _kept(parent, cost)
            if not self._late:
                back = max(back, node.late)  # where it is late, `now` has been put back already
            node.until = max(node.until, node.since, now - back) + step
            node.late = min(max(node.late, self._late), max(0, now + self._late - node.until))
        until = node.until if node.weight or parent is None else max(node.until, node.due + parent.forgiven)
        node.ready = bool(node.queue or node.ready_children) and until <= now
        if not node.ready:
            self._throttle(node, until)

    def _throttle(self, node: Node, until: int) -> None:
        if (node.queue or node.ready_children) and until > self._now:
            node.until, node.throttled = until, self._now
            heapq.heappush(self._events, (until, node.id, node))


def _check(reserve: int, limit: int | None, weight: int) -> None:
    if not 0 <= reserve <= MAX_RATE or (limit is not None and not 1 <= limit <= MAX_RATE) or weight < 0:
        raise ValueError(f"reserve {reserve}, limit {limit}, weight {weight}")
    if not weight and not reserve:
        raise ValueError("neither reserve nor weight: nothing would ever go")


def _interval(cost: int, rate: int) -> int:
    """How long an I/O takes up a rate; rounded up, so that no limit is exceeded."""
    return -(-cost * _SECOND // rate)


def _kept(node: Node | None, cost: int) -> int:
    """How long a request may have to wait for a larger one that went before it, at any level from a node upwards."""
    longest = 0
    while node is not None:
        if node.limit is not None and node.largest > cost:
            longest = max(longest, _interval(node.largest, node.limit))
        node = node.parent
    return longest


def _owe(node: Node | None) -> None:
    """Add up what is owed from a node upwards."""
    while node is not None:
        below = sum(child.owed for child in node.children.values())
        node.owed = max(node.reserve, below)
        if node.limit is not None:
            node.owed = min(node.owed, node.limit)
        node = node.parent


def _enter(parent: Node, node: Node, now: int) -> None:
    """A child is a candidate with the tags that it has now; what the heaps have of it from before is dead."""
    node.deadline = 0
    if node.weight:
        if node.tag < parent.v:
            if node.limit is not None:
                node.deadline = node.until + _interval(node.largest, node.limit)
            elif node.children:
                node.deadline = now  # it is limits below that have held it back
        if node.deadline:
            parent.by_deadline = _with(parent.by_deadline, (node.deadline, node.id, node), parent, _urgent)
        else:
            parent.by_tag = _with(parent.by_tag, (node.tag, node.id, node), parent, _shares)
    if node.owed:
        parent.by_due = _with(parent.by_due, (node.due, node.id, node), parent, _is_owed)


def _with(heap: _Heap, entry: _Entry, parent: Node, lives: Callable[[_Entry, Node], bool]) -> _Heap:
    """With an entry more, and without dead ones if there were many."""
    if len(heap) > 2 * len(parent.children) + _HEAP_ROOM:
        heap = [one for one in set(heap) if lives(one, parent)]
        heapq.heapify(heap)
    heapq.heappush(heap, entry)
    return heap


def _urgent(entry: _Entry, parent: Node) -> bool:
    node = entry[2]
    return node.deadline == entry[0] and node.ready and node.parent is parent


def _shares(entry: _Entry, parent: Node) -> bool:
    node = entry[2]
    return node.tag == entry[0] and node.ready and node.parent is parent and node.weight > 0 and not node.deadline


def _is_owed(entry: _Entry, parent: Node) -> bool:
    node = entry[2]
    return node.due == entry[0] and node.ready and node.parent is parent and node.owed > 0


def _pick(parent: Node, now: int) -> tuple[Node, Phase]:
    """Who of a node's children is next; one at least is a candidate."""
    urgent = parent.by_deadline
    while urgent and not _urgent(urgent[0], parent):
        heapq.heappop(urgent)
    heap = parent.by_due
    while heap:
        if not _is_owed(heap[0], parent):
            heapq.heappop(heap)
            continue
        due, _, node = heap[0]
        clock = now - parent.forgiven
        if due > clock:
            break
        if clock - due > _DEBT:
            parent.forgiven += clock - due - _DEBT
        if urgent and urgent[0][0] < due + parent.forgiven + _interval(node.largest, node.owed):
            break
        return node, Phase.RESERVATION
    if urgent:
        return urgent[0][2], Phase.WEIGHT
    heap = parent.by_tag
    while not _shares(heap[0], parent):
        heapq.heappop(heap)
    return heap[0][2], Phase.WEIGHT
