"""Typed trace events, their sinks and counters: the one tap on everything that crosses a boundary. Hypervisor.

A trace point costs one attribute test while nobody listens:

    if trace.on:
        trace.emit(Layer.CONTROL, "offer_channel", partition.id, words=..., channel=5)
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from hypervisor.clock import Clock


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


TO_ROOT = ">root"
TO_CHILD = ">child"
Sink = Callable[[TraceEvent], None]


class Trace:
    """Hands events to sinks. Belongs to one hypervisor; every layer above reaches it through that."""

    __slots__ = ("_clock", "_sinks", "names", "on", "warnings")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sinks: list[Sink] = []
        self.on = False
        """True while somebody listens. Test it before building what `emit` takes."""
        self.names: dict[int, str] = {}
        """Partition ID to VM name, kept by the VID, so that sinks can print names."""
        self.warnings: Counter[tuple[int, str]] = Counter()
        """How often each (partition, event) was warned of; counted even while nobody listens."""

    def add_sink(self, sink: Sink) -> Callable[[], None]:
        """Start to send events to `sink`; returns the function that stops it."""
        self._sinks.append(sink)
        self.on = True

        def remove() -> None:
            self._sinks.remove(sink)
            self.on = bool(self._sinks)

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
        **fields: Any,
    ) -> None:
        """Build one event and hand it to every sink. A sink that raises is a bug of ours and is let through."""
        now = self._clock()
        happened = TraceEvent(now, layer, event, partition, level, direction, channel, size, words, fields, vm)
        for sink in self._sinks:
            sink(happened)

    def warn(self, layer: Layer, event: str, partition: int, words: str, **fields: Any) -> None:
        """A guest's mistake: always counted, and emitted at first and then at each power of two, so it cannot flood."""
        self.warnings[partition, event] += 1
        count = self.warnings[partition, event]
        if self._sinks and count & (count - 1) == 0:
            self.emit(layer, event, partition, level=Level.WARNING, words=words, count=count, **fields)
