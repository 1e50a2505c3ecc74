"""What waits for a moment of the hypervisor's clock, earliest first; and nothing else. Hypervisor.

One queue a hypervisor: virtual processors with a timer that runs, mapped statistics pages. What does not wait is not in
it. Setting a deadline anew is cheap, and the queue stays as small as what waits however often that is done.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

import attrs

_STALE = 64
"""Dead entries that are left in the heap; more are swept out once they outnumber the live ones."""


class Waiting(Protocol):
    """Who is told when its moment has come; compared by identity."""

    def fire(self) -> None:
        """The deadline has passed; it is forgotten, and may be set anew from here."""


@attrs.define(order=True)
class _Entry:
    deadline: int
    serial: int
    waiting: Waiting | None = attrs.field(order=False)
    """None once it is dead."""


class TimerQueue:
    """Deadlines in 100 ns units of the hypervisor's clock."""

    __slots__ = ("_entries", "_heap", "_next_turn", "_serial", "on_earlier")

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._entries: dict[int, _Entry] = {}
        """Live ones by the identity of who waits, which the entry keeps alive."""
        self._next_turn: list[Waiting] = []
        """Those that wait for no moment but for others to have had a turn."""
        self._serial = 0
        self.on_earlier: Callable[[], None] | None = None
        """Called when there is an earlier deadline than before; the driver's."""

    def __len__(self) -> int:
        return len(self._entries)

    def set(self, waiting: Waiting, deadline: int | None) -> None:
        """Fire `waiting` once at `deadline`, in place of what was set before; never, with None."""
        entry = self._entries.get(id(waiting))
        if entry is not None:
            if entry.deadline == deadline:
                return
            entry.waiting = None
            del self._entries[id(waiting)]
            if len(self._heap) > 2 * len(self._entries) + _STALE:
                self._heap = list(self._entries.values())
                heapq.heapify(self._heap)
        if deadline is None:
            return
        before = self.deadline()
        self._serial += 1
        entry = self._entries[id(waiting)] = _Entry(deadline, self._serial, waiting)
        heapq.heappush(self._heap, entry)
        if (before is None or deadline < before) and self.on_earlier is not None:
            self.on_earlier()

    def next_turn(self, waiting: Waiting) -> None:
        """Fire `waiting` once in the next turn of Trio's loop: who can run now has run when that has happened twice."""
        self._next_turn.append(waiting)
        if len(self._next_turn) == 1 and self.on_earlier is not None:
            self.on_earlier()

    def no_turn(self, waiting: Waiting) -> None:
        """Take that back."""
        self._next_turn.remove(waiting)
        if not self._next_turn and self.on_earlier is not None:
            self.on_earlier()

    def deadline(self) -> int | None:
        """The earliest; None while nobody waits."""
        if self._next_turn:
            return 0
        heap = self._heap
        while heap and heap[0].waiting is None:
            heapq.heappop(heap)
        return heap[0].deadline if heap else None

    def fire_due(self, now: int, limit: int) -> bool:
        """Fire what is due at `now`, at most `limit` of it. Returns whether more may be due, after a turn of others."""
        turn, self._next_turn = self._next_turn, []
        for waiting in turn:
            waiting.fire()
        for _ in range(limit):
            if self._next_turn:
                return True
            deadline = self.deadline()
            if deadline is None or deadline > now:
                return False
            due = heapq.heappop(self._heap).waiting
            assert due is not None
            del self._entries[id(due)]
            due.fire()
        return True
