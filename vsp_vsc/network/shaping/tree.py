"""Who may send next, where ports share what there is: reserve, limit and weight at every level. Pure. Root side.

    host -- switch (what it carries) -- pool (what it may) -- ... -- flow (a port's queue)

Each level picks among its members that have something to send and may: first one whose reservation is due, then the one
with the least tag. A tag grows by `bits / weight` with each frame (start-time fair queueing), which needs no knowledge
of how much there is to share, so levels nest. A reservation that is served by its own due date is due again
`bits / reserve` later; one that is served by its tag is not (mClock). So a member gets what its weight gives, but
never less than its reservation nor more than its limit, and whatever one cannot use goes to the others.

A member that had nothing to send begins with its level's tag of now: rest earns nothing but a full bucket.
"""

from __future__ import annotations

import enum
import heapq
from collections import deque
from collections.abc import Iterator
from typing import Final

from vsp_vsc.network.shaping.bucket import SECOND, Bucket

_SCALE: Final = 20
"""Tags are bits by weight, times 2**20."""
_LAG_BITS: Final = 8 * 9022
"""How far a member may lag behind that was held up by a limit: a frame of any length."""
_STALE: Final = 64
NEVER: Final = 1 << 62

_Heap = list[tuple[int, int, int, "Member"]]
"""By when or what, then by ID; the number of the entry in between two says whether it is the member's latest."""


class State(enum.Enum):
    """Of a member at its level."""

    IDLE = enum.auto()
    """It has nothing to send."""
    READY = enum.auto()
    WAITING = enum.auto()
    """For a limit of its own, or one below it."""


class Member:
    """A node of the tree."""

    __slots__ = (
        "bucket",
        "due",
        "entry",
        "id",
        "name",
        "parent",
        "reserve",
        "reserved",
        "sent_bits",
        "state",
        "tag",
        "urgent",
        "wake",
        "weight",
    )

    def __init__(self, number: int, name: str, *, weight: int, reserve: int = 0, bucket: Bucket | None = None) -> None:
        """`number` decides between equals."""
        self.id = number
        self.name = name
        self.parent: Group | None = None
        self.weight = weight
        self.reserve = reserve
        self.reserved = 0
        """What it is guaranteed as things are: its own figure, or what those below it need that have something."""
        self.bucket = bucket
        self.tag = 0
        self.due = 0
        self.state = State.IDLE
        self.wake = 0
        self.entry = 0
        self.urgent = False
        self.sent_bits = 0


class Flow(Member):
    """Frames of one port that wait, each with when it came."""

    __slots__ = ("frames", "queued_bytes")

    def __init__(self, number: int, name: str, *, weight: int, reserve: int = 0, bucket: Bucket | None = None) -> None:
        """Empty."""
        super().__init__(number, name, weight=weight, reserve=reserve, bucket=bucket)
        self.frames: deque[tuple[bytes, int]] = deque()
        self.queued_bytes = 0


class Group(Member):
    """Those that share something."""

    __slots__ = ("active", "below", "members", "now_serving", "ready", "urgents", "waiting")

    def __init__(self, number: int, name: str, *, weight: int, reserve: int = 0, bucket: Bucket | None = None) -> None:
        """Empty."""
        super().__init__(number, name, weight=weight, reserve=reserve, bucket=bucket)
        self.members: dict[int, Member] = {}
        self.active = 0
        """Members that are not idle."""
        self.below = 0
        """What those need together, by their reservations."""
        self.now_serving = 0
        """The least tag among those that might be served, when one was served last."""
        self.ready: _Heap = []
        self.urgents: _Heap = []
        self.waiting: _Heap = []


class Tree:
    """All switches of a host. Nanoseconds; time never goes back."""

    def __init__(self) -> None:
        self.now = 0
        self.root = Group(0, "host", weight=1)
        self.queued = 0
        """Frames in all flows."""
        self._entries = 0

    # --- the tree

    def add(self, parent: Group, member: Member) -> None:
        """A member that is idle."""
        member.parent = parent
        parent.members[member.id] = member

    def remove(self, member: Member) -> list[tuple[bytes, int]]:
        """Its frames, and those of all below it."""
        dropped: list[tuple[bytes, int]] = []
        for flow in list(flows_of(member)):
            dropped += self.empty(flow)
        if member.parent is not None:
            del member.parent.members[member.id]
            member.parent = None
        return dropped

    def empty(self, flow: Flow) -> list[tuple[bytes, int]]:
        """Take all frames out."""
        frames = list(flow.frames)
        if frames:
            flow.frames.clear()
            flow.queued_bytes = 0
            self.queued -= len(frames)
            self._rest(flow)
        return frames

    def changed(self) -> None:
        """Figures of some member are other ones: all that wait look again, and reservations start from now."""
        for member in _below(self.root):
            if isinstance(member, Group):
                member.below = sum(self._need(other) for other in member.members.values())
            member.reserved = self._need(member)
            if member.state is not State.IDLE:
                member.due = self.now
                self._ready(member)

    # --- frames

    def put(self, flow: Flow, came: int, frame: bytes) -> None:
        """One more, behind the others, that came at `came` or is late. Call `advance` before and after."""
        flow.frames.append((frame, came))
        flow.queued_bytes += len(frame)
        self.queued += 1
        if len(flow.frames) == 1:
            self._wake(flow, max(came, self.now))

    def advance(self, now: int) -> list[tuple[int, Flow, bytes, int]]:
        """What leaves until then: when, of which flow, and when it came; in order."""
        out: list[tuple[int, Flow, bytes, int]] = []
        while self.queued:
            flow = self._pick(self.root, self.now)
            if flow is None:
                following = self._next_wake(self.root)
                if following > now:
                    break
                self.now = max(self.now, following)
                continue
            out.append((self.now, flow, *self._serve(flow)))
        self.now = max(self.now, now)
        return out

    @property
    def next_time(self) -> int | None:
        """When something leaves, at the earliest."""
        if not self.queued:
            return None
        _clean(self.root.ready, State.READY)
        if self.root.ready:
            return self.now  # it was put after `advance`
        following = self._next_wake(self.root)
        return None if following == NEVER else following

    # --- inside

    def _pick(self, group: Group, now: int) -> Flow | None:
        """Who is next below a group, or None if all wait."""
        waiting = group.waiting
        while waiting and waiting[0][0] <= now:
            _, _, entry, rested = heapq.heappop(waiting)
            if entry == rested.entry and rested.state is State.WAITING:
                self._ready(rested)
        while True:
            member = self._top(group, now)
            if member is None:
                return None
            if isinstance(member, Flow):
                flow = member
            else:
                assert isinstance(member, Group)
                below = self._pick(member, now)
                if below is None:
                    self._park(member, self._next_wake(member))
                    continue
                flow = below
            if member.bucket is not None:
                ready_at = member.bucket.ready_at(now, 8 * len(flow.frames[0][0]))
                if ready_at > now:
                    self._park(member, ready_at)
                    continue
            return flow

    def _top(self, group: Group, now: int) -> Member | None:
        """The member whose turn it is. Its entry stays, and is out of date once it was served or parked."""
        for heap in (group.urgents, group.ready):
            _clean(heap, State.READY)
            if heap and (heap is group.ready or heap[0][0] <= now):
                member = heap[0][3]
                member.urgent = heap is group.urgents
                return member
        return None

    def _next_wake(self, group: Group) -> int:
        _clean(group.waiting, State.WAITING)
        return group.waiting[0][0] if group.waiting else NEVER

    def _serve(self, flow: Flow) -> tuple[bytes, int]:
        """The first frame of a flow that was picked, and when it came."""
        frame, came = flow.frames.popleft()
        size = len(frame)
        bits = 8 * size
        flow.queued_bytes -= size
        self.queued -= 1
        member: Member = flow
        while member.parent is not None:
            parent = member.parent
            parent.now_serving = max(parent.now_serving, _least(parent))
            member.tag += (bits << _SCALE) // member.weight
            member.sent_bits += bits
            if member.urgent:
                member.due += bits * SECOND // max(1, member.reserved)
            if member.bucket is not None:
                member.bucket.take(self.now, bits)
            self._push(member)
            member = parent
        if not flow.frames:
            self._rest(flow)
        return frame, came

    def _park(self, member: Member, wake: int) -> None:
        assert member.parent is not None
        member.state = State.WAITING
        member.wake = wake
        self._entries += 1
        member.entry = self._entries
        heapq.heappush(member.parent.waiting, (wake, member.id, member.entry, member))
        _sweep(member.parent, member.parent.waiting)

    def _ready(self, member: Member) -> None:
        """It may be looked at, after it has waited."""
        assert member.parent is not None
        least = member.parent.now_serving - (_LAG_BITS << _SCALE) // member.weight
        member.tag = max(member.tag, least)
        member.state = State.READY
        self._push(member)

    def _push(self, member: Member) -> None:
        parent = member.parent
        assert parent is not None
        self._entries += 1
        member.entry = self._entries
        heapq.heappush(parent.ready, (member.tag, member.id, member.entry, member))
        if member.reserved:
            heapq.heappush(parent.urgents, (member.due, member.id, member.entry, member))
            _sweep(parent, parent.urgents)
        _sweep(parent, parent.ready)

    def _wake(self, flow: Flow, now: int) -> None:
        """It has something to send."""
        member: Member = flow
        while member.parent is not None:
            parent = member.parent
            if member.state is State.IDLE:
                member.tag = max(member.tag, parent.now_serving)
                member.due = max(member.due, now)
                parent.active += 1
                member.state = State.READY
                self._push(member)
            elif member.state is State.WAITING:
                self._ready(member)
            member = parent
        self._needs(flow)

    def _rest(self, flow: Flow) -> None:
        """It has nothing to send."""
        member: Member = flow
        while member.parent is not None and member.state is not State.IDLE:
            if isinstance(member, Group) and member.active:
                break
            member.state = State.IDLE
            member.parent.active -= 1
            member = member.parent
        self._needs(flow)

    def _need(self, member: Member) -> int:
        """What it is to be guaranteed as things are."""
        if member.state is State.IDLE:
            return 0
        need = max(member.reserve, member.below) if isinstance(member, Group) else member.reserve
        return need if member.bucket is None else min(need, member.bucket.rate)

    def _needs(self, member: Member) -> None:
        """Reservations on the way up, after a member began or ended."""
        while member.parent is not None:
            need = self._need(member)
            if need != member.reserved:
                member.parent.below += need - member.reserved
                member.reserved = need
                if member.state is State.READY:
                    member.due = max(member.due, self.now)
                    self._push(member)
            member = member.parent


def _least(group: Group) -> int:
    """The least tag of those that may send. Not of who is served: that may be ahead by its reservation."""
    _clean(group.ready, State.READY)
    return group.ready[0][0]


def _clean(heap: _Heap, state: State) -> None:
    """Take entries off its top that are out of date."""
    while heap and (heap[0][2] != heap[0][3].entry or heap[0][3].state is not state):
        heapq.heappop(heap)


def _sweep(group: Group, heap: _Heap) -> None:
    """Take entries out that are out of date, once there are many."""
    if len(heap) > 4 * group.active + _STALE:
        heap[:] = [one for one in heap if one[2] == one[3].entry and one[3].state is not State.IDLE]
        heapq.heapify(heap)


def _below(group: Group) -> Iterator[Member]:
    """All members at any depth, the lower ones first."""
    for member in list(group.members.values()):
        if isinstance(member, Group):
            yield from _below(member)
        yield member


def flows_of(member: Member) -> Iterator[Flow]:
    """Itself, or those below it."""
    if isinstance(member, Flow):
        yield member
    elif isinstance(member, Group):
        for below in list(member.members.values()):
            yield from flows_of(below)
