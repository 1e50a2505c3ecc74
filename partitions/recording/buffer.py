"""A bounded buffer of whole pcapng blocks between who makes them and who writes them. Root side.

Whoever empties the buffer (`take`) may run on another thread and may be slow: what does not fit meanwhile is counted
and dropped, and what says so stands in its place (`gap`). Nothing here waits, or knows files or Trio.
"""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

BUFFER_BYTES: Final = 32 << 20
"""What may wait to be written: at a million packets in a second about a quarter of one."""
PAUSE_BYTES: Final = 1 << 20
"""How much is added to a buffer that is half full between two calls of `behind`."""
PIECE_BYTES: Final = 1 << 20
"""About what `take` gives at a time."""


class Dropped(msgspec.Struct):
    """What is not in a recording."""

    packets: int = 0
    """Channel messages and ring packets."""
    events: int = 0
    """All others."""

    def __bool__(self) -> bool:
        return bool(self.packets or self.events)

    def __str__(self) -> str:
        parts = []
        if self.packets:
            parts.append("1 packet" if self.packets == 1 else f"{self.packets} packets")
        if self.events:
            parts.append("1 event" if self.events == 1 else f"{self.events} events")
        return " and ".join(parts) or "nothing"


class BlockBuffer(abc.ABC):
    """What every recording has. Its maker puts blocks in, says in `gap` what was lost, and in `finish` the rest."""

    def __init__(
        self, *, limit: int = BUFFER_BYTES, ready: Callable[[], None] = lambda: None, ready_at: int = 1
    ) -> None:
        """`limit`: bytes that may wait. `ready` is called once each time `ready_at` wait, not again before `take`."""
        self.dropped = Dropped()
        """So far."""
        self.written = Dropped()
        """What is in the recording, in the same terms."""
        self._limit = limit
        self._ready = ready
        self._ready_at = ready_at
        self._told = False
        self.overflow: Callable[[], None] = lambda: None
        """Called when something is dropped for the first time."""
        self.behind: Callable[[], None] = lambda: None
        """Called now and then while more than half of the buffer waits: the last moment to do something about it."""
        self._pause_at = 0
        self._blocks: deque[tuple[bytes, int, int]] = deque()
        """Bytes, and how many packets and other events they are."""
        self._given = 0, 0
        """Packets and events of the last piece that was taken."""
        # Two counters, each with one writer, so that they need no lock.
        self._in = 0
        self._out = 0
        self._lost = Dropped()
        """Since the last gap."""
        self._lost_at = 0
        self._full = False

    @abc.abstractmethod
    def detach(self) -> None:
        """Record nothing more."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Detach, and put in what stands at the end, which always fits."""

    @abc.abstractmethod
    def gap(self) -> bytes:
        """What stands where something is missing; `_lost` counts anew from here."""

    @property
    def waiting(self) -> int:
        """Bytes that nobody has taken yet."""
        return self._in - self._out

    def take(self, size: int = PIECE_BYTES) -> bytes:
        """Whole blocks that wait, `size` bytes of them or a little more; empty if none do. For one thread, any."""
        self._told = False
        blocks, taken = self._blocks, []
        length = packets = events = 0
        while length < size:
            try:
                data, some, others = blocks.popleft()
            except IndexError:
                break
            taken.append(data)
            length += len(data)
            packets += some
            events += others
        self._out += length
        self._given = packets, events
        return b"".join(taken)

    def abandon(self) -> None:
        """The last piece that was taken is lost, and nobody will take the rest: count it all as dropped."""
        packets, events = self._given
        while self._blocks:
            data, some, others = self._blocks.popleft()
            self._out += len(data)
            packets += some
            events += others
        self._given = 0, 0
        self.written = Dropped(self.written.packets - packets, self.written.events - events)
        self.dropped = Dropped(self.dropped.packets + packets, self.dropped.events + events)

    def _drop(self, packets: int, events: int) -> None:
        first = not self.dropped
        for count in (self.dropped, self._lost):
            count.packets += packets
            count.events += events
        if first:
            self.overflow()

    def _fits(self, time: int, data: bytes, packets: int, events: int) -> bool:
        """Put it into the buffer, if there is room."""
        waiting = self._in - self._out
        # Once full it has to become half empty, or each event would be followed by one that says what is missing.
        if waiting + len(data) > (self._limit >> 1 if self._full else self._limit) or len(data) > self._limit:
            self._full = True
            self._lost_at = time
            return False
        if self._full:
            self._full = False
            self._put(self.gap())
        self._put(data, packets, events)
        return True

    def _put(self, data: bytes, packets: int = 0, events: int = 0) -> None:
        self._blocks.append((data, packets, events))
        self._in += len(data)
        if self._in - self._out > self._limit >> 1 and self._in >= self._pause_at:
            self._pause_at = self._in + PAUSE_BYTES
            self.behind()
        if not self._told and self._in - self._out >= self._ready_at:
            self._told = True
            self._ready()
