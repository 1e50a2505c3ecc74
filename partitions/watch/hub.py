"""Events of a host that runs, for any number of browsers: encoded once, kept a while, and never waited for. Root side.

The sink is called in the middle of guests' traps, so it only notes the event. One task takes what has come, in small
parts between which everybody else gets a turn, and hands the same bytes to each browser's queue. A browser that takes
nothing has its queue filled up and misses what comes then; it is told how much, and how the picture looks afterwards.
"""

from __future__ import annotations

import base64
import binascii
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import attrs
import msgspec
import trio

from hypervisor.trace import Layer, TraceEvent
from partitions.watch.feed import Feed, Told
from partitions.watch.rows import COLUMNS, MAX_DATA, Change, Row
from partitions.watch.scene import Scene
from partitions.watch.trees import Shapes
from partitions.watch.units import decoded
from vmbus.bell import Bell

PART: Final = 32
"""Events that are encoded without anybody else having a turn: less than a millisecond."""
SHARE: Final = 0.25
"""Of the host's time, while it has more to tell than that allows: what no longer fits then is dropped and counted."""
MAX_WAITING: Final = 20_000
"""Events noted and not yet encoded."""
BACKLOG: Final = 20_000
"""Events that a browser which comes later gets."""
BACKLOG_BYTES: Final = 8 << 20
MAX_QUEUED: Final = 20_000
"""Events that may wait for one browser beside the backlog."""
QUEUED_BYTES: Final = 8 << 20

_encode = msgspec.json.Encoder().encode


def message(kind: str, content: object) -> bytes:
    """One server-sent event."""
    return b"event: " + kind.encode() + b"\ndata: " + _encode(content) + b"\n\n"


@attrs.frozen
class _Part:
    """Some events in a row, as they go over the wire."""

    events: int
    data: bytes
    changes: tuple[Change, ...]


class Queue:
    """What waits for one browser. `dropped` is how many events it has missed."""

    def __init__(self) -> None:
        self.dropped = 0
        self._parts: deque[tuple[int, int, bytes]] = deque()
        self._events = 0
        self._bytes = 0
        self._missed = 0
        """Since it was last told."""
        self._bell = Bell()
        self._ended = False

    @property
    def missed(self) -> bool:
        """Whether the next part has to come with the picture as it was before."""
        return bool(self._missed)

    def put(self, events: int, data: bytes, before: Mapping[str, Any] | None) -> None:
        """Append, or count where there is no room. `before` is how the picture looked before these events."""
        if self._events + events > MAX_QUEUED or self._bytes + len(data) > QUEUED_BYTES:
            self.dropped += events
            self._missed += events
            return
        if self._missed and before is not None:
            self.force(message("gap", {"dropped": self._missed, **before}))
            self._missed = 0
        self._events += events
        self._bytes += len(data)
        self._append(events, len(data), data)

    def force(self, data: bytes) -> None:
        """Append, room or not: greetings, gaps, ends, and what is shared with others anyway."""
        self._append(0, 0, data)

    def end(self) -> None:
        """There is no more."""
        if self._missed:
            self.force(message("gap", {"dropped": self._missed}))
        self.force(message("end", {}))
        self._ended = True
        self._bell.ring()

    def _append(self, events: int, size: int, data: bytes) -> None:
        self._parts.append((events, size, data))
        self._bell.ring()

    async def next(self) -> bytes:
        """What comes next; nothing at the end."""
        while not self._parts:
            if self._ended:
                return b""
            await self._bell.wait()
        events, size, data = self._parts.popleft()
        self._events -= events
        self._bytes -= size
        return data


class Hub:
    """One host's events. `names` says which VM a partition is; `title` is what the page calls the host."""

    def __init__(self, names: Mapping[int, str], *, title: str, instance: str, share: float = SHARE) -> None:
        """`share` of the loop's time is what this takes at most, while others have work to do."""
        self.title = title
        self.instance = instance
        """Tells a browser that comes again whether this is the host that it has seen."""
        self.seen = trio.Event()
        """A browser is looking."""
        self.lost = 0
        """Events that came faster than they could be encoded."""
        self._rest = 1 / share - 1
        self._feed = Feed(names)
        self._base = Scene()
        """The picture in front of the backlog."""
        self._backlog: deque[_Part] = deque()
        self._backlog_events = 0
        self._backlog_bytes = 0
        self._waiting: deque[TraceEvent] = deque()
        self._bell = Bell()
        self._queues: set[Queue] = set()
        self._lost_now = 0
        self._ended = False
        self._done = trio.Event()
        self._left = trio.Event()

    # --- the host's side

    def know(self, vm: str, state: str) -> None:
        """A VM that is there before anything happens."""
        self._feed.scene.set_vm(vm, state)
        self._base.set_vm(vm, state)

    def sink(self, event: TraceEvent) -> None:
        """For `Trace.add_sink`: note it. States and channel messages have room when packets have none any more."""
        waiting = len(self._waiting)
        if waiting >= MAX_WAITING and (
            event.layer not in (Layer.STATE, Layer.CONTROL) or waiting >= MAX_WAITING + BACKLOG
        ):
            self.lost += 1
            self._lost_now += 1
            return
        self._waiting.append(event)
        if not waiting:
            self._bell.ring()

    def end(self) -> None:
        """The host has ended; what was noted still goes out."""
        self._ended = True
        self._bell.ring()

    async def wait_told(self) -> None:
        """Until every browser has been sent all that was noted before `end`, or has gone."""
        await self._done.wait()
        while self._queues:
            self._left = trio.Event()
            await self._left.wait()

    async def run(self) -> None:
        """Encode and hand on, until `end`."""
        while True:
            while self._waiting:
                began = trio.current_time()
                self._hand_on([self._waiting.popleft() for _ in range(min(PART, len(self._waiting)))])
                rest = 0.0 if self._ended else self._rest * (trio.current_time() - began)
                await trio.sleep(rest)
            if self._ended:
                break
            await self._bell.wait()
        requests = self._feed.finish()
        if requests:
            self._publish(_Part(0, message("events", {"rows": [], "requests": requests}), ()), None)
        for queue in self._queues:
            queue.end()
        self._done.set()

    def _hand_on(self, events: list[TraceEvent]) -> None:
        before: dict[str, Any] | None = None
        if self._lost_now or any(queue.missed for queue in self._queues):
            before = {"before": self._feed.scene.snapshot()}
        if self._lost_now:
            lost, self._lost_now = self._lost_now, 0
            assert before is not None
            self._publish(_Part(0, message("gap", {"dropped": lost, **before}), tuple(before["before"])), before)
        rows, requests, changes = list[Row](), list[Told](), list[Change]()
        for event in events:
            row, over = self._feed.add(event)
            assert row is not None
            rows.append(row)
            requests += over
            if len(row) == len(COLUMNS):
                changes += row[-1]
        content: dict[str, Any] = {"rows": rows}
        if requests:
            content["requests"] = requests
        self._publish(_Part(len(rows), message("events", content), tuple(changes)), before)

    def _publish(self, part: _Part, before: dict[str, Any] | None) -> None:
        for queue in self._queues:
            queue.put(part.events, part.data, before)
        self._backlog.append(part)
        self._backlog_events += part.events
        self._backlog_bytes += len(part.data)
        while self._backlog_events > BACKLOG or self._backlog_bytes > BACKLOG_BYTES:
            oldest = self._backlog.popleft()
            self._backlog_events -= oldest.events
            self._backlog_bytes -= len(oldest.data)
            self._base.apply(oldest.changes)

    # --- a browser's side

    @contextmanager
    def listen(self) -> Iterator[Queue]:
        """All that is kept, then what comes."""
        queue = Queue()
        greeting = {"instance": self.instance, "columns": COLUMNS, "before": self._base.snapshot()}
        queue.force(message("hello", greeting))
        for part in self._backlog:
            queue.force(part.data)
        if self._done.is_set():
            queue.end()
        self._queues.add(queue)
        self.seen.set()
        try:
            yield queue
        finally:
            self._queues.discard(queue)
            self._left.set()

    def decode(self, body: bytes) -> bytes | None:
        """The fields of bytes that a browser shows; None for a question that is none."""
        try:
            asked = msgspec.json.decode(body, type=_Asked)
            data = base64.b64decode(asked.data, validate=True)
        except (msgspec.DecodeError, binascii.Error, UnicodeDecodeError, ValueError):
            return None
        version = self._feed.versions.get(asked.vm)
        field = decoded(asked.layer, data[:MAX_DATA], asked.device, asked.direction, version)
        if field is None:
            return None
        shapes = Shapes()
        tree = shapes.add(field)
        return _encode({"shapes": shapes.shapes, "tree": tree})


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    """What a page asks of the bytes of one event."""

    layer: Layer
    data: str
    vm: str = ""
    device: str = ""
    direction: str = ""
