"""Typed trace events, their sinks and counters: the one tap on everything that crosses a boundary. Hypervisor.

A trace point costs one attribute test while nobody listens:

    if trace.on:
        trace.emit(Layer.CONTROL, "offer_channel", partition.id, words=..., channel=5)
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from hypervisor.clock import Clock
from hypervisor.inspect import Branch, Many, counters, shown


class Layer(enum.StrEnum):
    """Where on a request's way an event was seen; the names that `--trace-filter layer=` takes."""

    HYPERCALL = "hypercall"
    MSR = "msr"
    SYNIC = "synic"
    """Messages and event flags between partitions."""
    INTERRUPT = "interrupt"
    PORT = "port"
    """Port I/O intercepts."""
    CONTROL = "control"
    """Channel messages: offers, GPADLs, open, close."""
    PACKET = "packet"
    """Ring packets and completions."""
    DEVICE = "device"
    """What a VSP or VSC makes of a packet."""
    STATE = "state"
    """States of partitions, VMs, connections and channels."""
    SCHEDULER = "scheduler"
    """Virtual processors on logical ones. Only who asks for this layer by name gets its events."""


SCHEDULER_EVENTS = frozenset({"dispatch", "continue", "slice_end", "capped", "preempt", "block", "suspend"})
"""All names of the scheduler's events."""


class Level(enum.IntEnum):
    """How much a person wants to see it; the numbers are those of the standard library's logging."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


class TraceEvent(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One thing that happened. `event` and the field names are stable: people's scripts read them."""

    time: int
    """100 ns units on the host's clock."""
    layer: Layer
    event: str
    """Snake case, a fixed set per layer, such as `open_channel` or `signal_event`."""
    partition: int
    """The child concerned, even where the root acts; 0 where there is none."""
    level: Level = Level.DEBUG
    direction: str = ""
    """`>root` from child to root, `>child` the other way, empty where neither."""
    channel: int | None = None
    size: int | None = None
    """Bytes."""
    words: str = ""
    """What it means, for people: `SCSI READ(10) lba=0 blocks=8`."""
    fields: dict[str, Any] = {}
    """Further numbers, by stable names."""
    vm: str = ""
    """The VM's name, where the event is about a VM that may have no partition; else the partition's name is meant."""
    data: bytes = b""
    """What crossed, where bytes did: a whole channel message, or a ring packet as it lies in the ring, descriptor and
    body without the trailer. Lines for people and scripts leave it out.
    """


class PacketBatch(msgspec.Struct, frozen=True, gc=False):
    """Ring packets that crossed together, for readers to whom an event each would cost too much."""

    time: int
    partition: int
    channel: int
    direction: str
    device: str
    """The short name of what is at the channel's end, such as `storage`; empty for one that we have no name for."""
    packets: Sequence[Any]
    """As whoever knows the ring has them."""


TO_ROOT = ">root"
TO_CHILD = ">child"
Sink = Callable[[TraceEvent], None]
PacketSink = Callable[[PacketBatch], None]
Packet = TypeVar("Packet")


class Trace:
    """Hands events to sinks. Belongs to one hypervisor; every layer above reaches it through that."""

    __slots__ = (
        "_batch_sinks",
        "_clock",
        "_each_sinks",
        "_scheduler_asked",
        "_scheduler_sinks",
        "_sinks",
        "devices",
        "names",
        "on",
        "on_scheduler",
        "versions",
        "warnings",
    )

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sinks: list[Sink] = []
        self._each_sinks: list[Sink] = []
        """Those of them that take packets one by one."""
        self._batch_sinks: list[PacketSink] = []
        self._scheduler_asked: list[Sink] = []
        self._scheduler_sinks: list[Sink] = []
        """Those that get the scheduler's events."""
        self.on_scheduler: Callable[[bool], None] | None = None
        """Told whether somebody wants the scheduler's events; the scheduler's."""
        self.on = False
        """True while somebody listens. Test it before building what `emit` takes."""
        self.names: dict[int, str] = {}
        """Partition ID to VM name, kept by the VID, so that sinks can print names."""
        self.versions: dict[int, int] = {}
        """Partition ID to the version that its bus has negotiated, kept by the bus: bytes mean nothing without it."""
        self.devices: dict[int, dict[int, str]] = {}
        """Partition ID, channel, and the short name of its device while the channel is there; kept by the bus."""
        self.warnings: Counter[tuple[int, str]] = Counter()
        """How often each (partition, event) was warned of; counted even while nobody listens."""

    @property
    def clock(self) -> Clock:
        """The host's."""
        return self._clock

    def inspect(self) -> Branch:
        """Who listens, by the name that a sink gives itself, and what guests were warned of."""
        # A sink may be a method; who it belongs to has more to show.
        whose = [getattr(sink, "__self__", sink) for sink in self._sinks]
        sinks = {str(getattr(sink, "name", number)): sink for number, sink in enumerate(whose)}
        warned = {f"{self.names.get(vm, vm)} {event}": count for (vm, event), count in self.warnings.items()}
        return Branch({"on": self.on, "sinks": Many(sinks, str, show=shown), "warnings": lambda: counters(warned)})

    def add_sink(self, sink: Sink, *, packets: PacketSink | None = None, scheduler: bool = False) -> Callable[[], None]:
        """Start to send events to `sink`; returns the function that stops it.

        With `packets` ring packets go there as they crossed, many at once, and never to `sink`. With `scheduler`, or
        an attribute `wants_scheduler` that is true, it also gets the events of that layer, which are many.
        """
        self._sinks.append(sink)
        if packets is None:
            self._each_sinks.append(sink)
        else:
            self._batch_sinks.append(packets)
        if scheduler:
            self._scheduler_asked.append(sink)
        self.on = True
        self.review_sinks()

        def remove() -> None:
            # In new lists: a sink may remove itself while the others are being called.
            self._sinks = _without(self._sinks, sink)
            if packets is None:
                self._each_sinks = _without(self._each_sinks, sink)
            else:
                self._batch_sinks = _without(self._batch_sinks, packets)
            if scheduler:
                self._scheduler_asked = _without(self._scheduler_asked, sink)
            self.on = bool(self._sinks)
            self.review_sinks()

        return remove

    def emit(
        self,
        layer: Layer,
        event: str,
        partition: int,
        *,
        level: Level = Level.DEBUG,
        direction: str = "",
        channel: int | None = None,
        size: int | None = None,
        words: str = "",
        vm: str = "",
        data: bytes = b"",
        **fields: Any,
    ) -> None:
        """Build one event and hand it to every sink. A sink that raises is a bug of ours and is let through."""
        now = self._clock()
        happened = TraceEvent(now, layer, event, partition, level, direction, channel, size, words, fields, vm, data)
        for sink in self._sinks:
            sink(happened)

    def review_sinks(self) -> None:
        """What a sink wants may have changed."""
        asked = self._scheduler_asked
        sinks = [sink for sink in self._sinks if sink in asked or getattr(sink, "wants_scheduler", False)]
        before, self._scheduler_sinks = bool(self._scheduler_sinks), sinks
        if before != bool(sinks) and self.on_scheduler is not None:
            self.on_scheduler(bool(sinks))

    def emit_scheduler(self, happened: TraceEvent) -> None:
        """An event of the scheduler's, which knows its time; to those that have asked for them."""
        for sink in self._scheduler_sinks:
            sink(happened)

    def emit_packets(
        self,
        partition: int,
        channel: int,
        direction: str,
        device: str,
        packets: Sequence[Packet],
        event_of: Callable[[PacketBatch, Packet], TraceEvent],
    ) -> None:
        """Hand on ring packets that crossed together; `event_of` makes one an event, for sinks that want it so."""
        batch = PacketBatch(self._clock(), partition, channel, direction, device, packets)
        for take in self._batch_sinks:
            take(batch)
        if self._each_sinks:
            for packet in packets:
                happened = event_of(batch, packet)
                for sink in self._each_sinks:
                    sink(happened)

    def warn(
        self,
        layer: Layer,
        event: str,
        partition: int,
        words: str,
        *,
        data: bytes = b"",
        **fields: Any,
    ) -> None:
        """A guest's mistake: always counted, and a warning at first and then at each power of two, so it cannot flood.

        A mistake that has `data`, what the guest sent, is an event each time: what crossed is never left out.
        """
        self.warnings[partition, event] += 1
        if not self._sinks:
            return
        count = self.warnings[partition, event]
        if count & (count - 1) == 0:
            self.emit(layer, event, partition, level=Level.WARNING, words=words, data=data, count=count, **fields)
        elif data:
            self.emit(layer, event, partition, words=words, data=data, count=count, **fields)


S = TypeVar("S")


def _without(sinks: list[S], sink: S) -> list[S]:
    left = list(sinks)
    left.remove(sink)
    return left
