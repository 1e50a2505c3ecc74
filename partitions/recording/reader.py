"""Recordings back into events, from a file or as they arrive: bytes in, events out. Root side.

A reader never waits and knows no files but in `read_recording`. Any bytes give events or a `RecordingError` that names
the place and what to do; what is cut off at the end, as after a crash, is no error: `truncated_at` says where.

Who wants few events of many gives a `Wanted`: what it refuses costs a look at the head of its block, and no words.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from hypervisor.clock import TICKS_PER_SECOND
from hypervisor.trace import Layer, Level, TraceEvent
from partitions.decode.message import row_of
from partitions.decode.summary import event_of_message, summary
from partitions.recording import pcapng
from partitions.recording.buffer import Dropped
from partitions.recording.event_codec import DROPPED, STARTED, decode_event
from partitions.recording.link import DIRECTIONS, LINK_TYPE, LINK_VERSION, NAMES, Kind, LinkHeader
from partitions.recording.pcapng import BlockType, Opt
from vmbus.ring import packet_words

CHUNK_BYTES: Final = 1 << 20
"""What `read_recording` reads at a time."""
_LINK = LinkHeader.STRUCT
_DESCRIPTOR = struct.Struct("<HHHHQ").unpack_from
_ORDINARY_TAIL: Final = 12
"""Bytes of options behind a packet of which all is said: its direction, and their end."""
_RESOLUTION_LIMIT: Final = 20
"""Times finer than 10^-20 s are nobody's."""
_BY_HAND = 'a recording is what "partita run --pcap FILE" writes'
_FOREIGN: Final = (
    (b"\xa1\xb2\xc3\xd4", f"it is a capture in the old pcap format; {_BY_HAND}"),
    (b"\xd4\xc3\xb2\xa1", f"it is a capture in the old pcap format; {_BY_HAND}"),
    (b"\x4d\x3c\xb2\xa1", f"it is a capture in the old pcap format; {_BY_HAND}"),
    (b"\xa1\xb2\x3c\x4d", f"it is a capture in the old pcap format; {_BY_HAND}"),
    (b"\x1f\x8b", "it is compressed; unpack it with gunzip first"),
    (b"\x28\xb5\x2f\xfd", "it is compressed; unpack it with zstd -d first"),
    (b"{", "it looks like JSON lines, which --trace writes; record with --pcap to read events back"),
)


class RecordingError(ValueError):
    """These bytes are no recording, or not from here on. The text names the place, the reason and what to do."""

    def __init__(self, place: str, reason: str, remedy: str) -> None:
        super().__init__(f"{place}: {reason}; {remedy}" if remedy else f"{place}: {reason}")
        self.place = place
        self.reason = reason
        self.remedy = remedy


class _Head(msgspec.Struct, gc=False):
    """As much of a custom block as `Wanted` asks for."""

    time: int
    layer: Layer
    event: str
    partition: int
    direction: str = ""
    channel: int | None = None
    vm: str = ""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which events to make; None wants all. All that are given have to fit."""

    layers: frozenset[Layer] | None = None
    vms: frozenset[str] | None = None
    """By name, as a trace prints them: `#7` for a partition without one."""
    partitions: frozenset[int] | None = None
    channels: frozenset[int] | None = None
    directions: frozenset[str] | None = None
    since: int | None = None
    """In 100 ns on the host's clock, this one included."""
    until: int | None = None

    def event(self, event: TraceEvent | _Head) -> bool:
        """Whether this one is wanted; its `vm` has to be filled in, as a reader does."""
        return (
            (self.layers is None or event.layer in self.layers)
            and (self.vms is None or event.vm in self.vms)
            and (self.partitions is None or event.partition in self.partitions)
            and (self.channels is None or event.channel in self.channels)
            and (self.directions is None or event.direction in self.directions)
            and (self.since is None or event.time >= self.since)
            and (self.until is None or event.time <= self.until)
        )


_decode_head = msgspec.msgpack.Decoder(_Head).decode


class _Interface(msgspec.Struct):
    """Whose packets these are, and what their times mean."""

    vm: str
    ours: bool
    wanted: bool
    """Whether any of its packets can be."""
    exact: bool = True
    """Times are those of the host's clock."""
    multiply: int = 1
    divide: int = 1
    add: int = 0

    def ticks(self, time: int) -> int:
        """A block's time on the host's clock."""
        return time if self.exact else time * self.multiply // self.divide + self.add


class RecordingReader:
    """Feed it a recording in pieces of any size; each call gives the events that are whole now, in order."""

    def __init__(self, wanted: Wanted | None = None, *, name: str = "the recording") -> None:
        """`name` is what errors call it."""
        self.names: dict[int, str] = {}
        """Partition ID to VM name, as far as they have come up."""
        self.dropped = Dropped()
        """What the recorder could not write fast enough, as far as has been read."""
        self.started: int | None = None
        """Unix seconds when the host's clock began; 0 for a run on the virtual clock, None before it is known."""
        self.truncated_at: int | None = None
        """Where the last whole block ends, in bytes, if something follows it; known after `finish`."""
        self._wanted = wanted
        self._name = name
        self._blocks = pcapng.BlockReader()
        self._begun = False
        self._first = b""
        self._interfaces: list[_Interface] = []
        self._failure: RecordingError | None = None
        layers = None if wanted is None else wanted.layers
        carried = {Kind.PACKET: Layer.PACKET, Kind.MESSAGE: Layer.CONTROL}
        self._refused = {int(kind) for kind, layer in carried.items() if layers is not None and layer not in layers}
        self._take_packet: Callable[[bytes, int, int, int, list[TraceEvent]], None] = self._packet

    # ------------------------------------------------------------------------------------------------------- outside

    def feed(self, data: bytes) -> list[TraceEvent]:
        """The wanted events of the blocks that are whole now. Damage is raised by the call after the last good one."""
        if self._failure is not None:
            raise self._failure
        if not self._begun:
            data = self._begin(data)
        events: list[TraceEvent] = []
        while True:
            buffer, spans, damage = self._blocks.spans(data)
            data = b""
            try:
                self._take(buffer, spans, events)
                if damage is not None:
                    raise self._error(damage.offset, f"is damaged: {damage.reason}")
            except RecordingError as error:
                self._failure = error
                if not events:
                    raise
                return events
            if not spans:
                return events

    def finish(self) -> None:
        """There is no more. Raises `RecordingError` where `feed` had nothing to say yet, and for an empty file."""
        if self._failure is not None:
            raise self._failure
        if not self._begun:
            if not self._first:
                raise RecordingError(self._name, "it is empty", "nothing was recorded, or it was not written yet")
            raise RecordingError(self._name, f"its {len(self._first)} bytes are no recording", _BY_HAND)
        if self._blocks.waiting:
            self.truncated_at = self._blocks.offset

    # --------------------------------------------------------------------------------------------------------- inside

    def _begin(self, data: bytes) -> bytes:
        """Look at the first bytes, which say what else a file may be."""
        self._first += data
        if len(self._first) < 12:
            for magic, what in _FOREIGN:
                if self._first.startswith(magic):
                    raise RecordingError(self._name, what, "")
            return b""
        first, self._first = self._first, b""
        if not first.startswith(b"\x0a\x0d\x0d\x0a"):
            what = next((what for magic, what in _FOREIGN if first.startswith(magic)), f"no recording; {_BY_HAND}")
            raise RecordingError(self._name, what, "")
        self._begun = True
        return first

    def _error(self, offset: int, reason: str) -> RecordingError:
        remedy = "what comes before it can be read" if offset else _BY_HAND
        return RecordingError(f"{self._name}, byte {offset}", reason, remedy)

    def _take(self, buffer: bytes, spans: list[tuple[int, int, int, int]], events: list[TraceEvent]) -> None:
        for kind, offset, start, stop in spans:
            if kind == BlockType.PACKET:
                self._take_packet(buffer, offset, start, stop, events)
            elif kind in _OURS:
                payload = pcapng.own_payload(buffer[start:stop], self._blocks.order)
                if payload is not None:
                    self._custom(payload, offset, events)
            elif kind == BlockType.INTERFACE:
                self._interface(buffer[start:stop], offset)
            elif kind == BlockType.SECTION:
                self._section(buffer[start:stop], offset, events)

    def _section(self, body: bytes, offset: int, events: list[TraceEvent]) -> None:
        """A new section numbers its interfaces anew; two recordings one behind the other are one to read."""
        order = self._blocks.order
        self._interfaces.clear()
        self._take_packet = self._packet if order == "<" and self._wanted is not None else self._any_packet
        for code, value in pcapng.read_options(body, 16, order):
            if code == Opt.CUSTOM and (payload := pcapng.own_payload(value, order)) is not None:
                self._custom(payload, offset, events)

    def _interface(self, body: bytes, offset: int) -> None:
        order = self._blocks.order
        if len(body) < 8:
            raise self._error(offset, "is damaged: an interface without a link type")
        (link_type,) = struct.unpack_from(order + "H", body)
        name, resolution, begin = "", 6, 0
        for code, value in pcapng.read_options(body, 8, order):
            if code == Opt.NAME:
                name = value.decode("utf-8", "replace")
            elif code == Opt.RESOLUTION and value:
                resolution = value[0]
            elif code == Opt.OFFSET and len(value) == 8:
                (begin,) = struct.unpack(order + "q", value)
        if self.started is None:
            self.started = begin
        wanted = self._wanted
        made = _Interface(name, link_type == LINK_TYPE, wanted is None or wanted.vms is None or name in wanted.vms)
        made.divide = 1 << (resolution & 0x7F) if resolution & 0x80 else 10 ** min(resolution, _RESOLUTION_LIMIT)
        made.multiply = TICKS_PER_SECOND
        made.add = (begin - self.started) * TICKS_PER_SECOND
        made.exact = made.divide == made.multiply and not made.add
        if made.exact:
            made.multiply = made.divide = 1
        self._interfaces.append(made)

    def _custom(self, payload: bytes, offset: int, events: list[TraceEvent]) -> None:
        """An event that is no packet. What the recorder says of itself is learned, wanted or not."""
        wanted = self._wanted
        if wanted is not None:
            try:
                head = _decode_head(payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise self._error(offset, f"holds no event: {error}") from None
            if not wanted.event(head) and head.event not in (STARTED, DROPPED):
                return
        event = self._decoded(payload, offset)
        if event.event == STARTED:
            self._learn(event)
        elif event.event == DROPPED:
            self._missing(event)
        if event.vm and event.partition:
            self.names[event.partition] = event.vm
        if wanted is None or wanted.event(event):
            events.append(event)

    def _learn(self, event: TraceEvent) -> None:
        started, names = event.fields.get("started"), event.fields.get("names")
        if isinstance(started, int):
            self.started = started
        if isinstance(names, dict):
            for partition, name in names.items():
                if str(partition).isdecimal() and len(str(partition)) < 11:
                    self.names[int(partition)] = str(name)

    def _missing(self, event: TraceEvent) -> None:
        for name in ("packets", "events"):
            count = event.fields.get(name)
            if isinstance(count, int) and count > 0:
                setattr(self.dropped, name, getattr(self.dropped, name) + count)

    # --- packets

    def _packet(self, buffer: bytes, offset: int, start: int, stop: int, events: list[TraceEvent]) -> None:
        """The quick way to refuse one: its head in one call, and no more. Others go the long way."""
        wanted = self._wanted
        assert wanted is not None
        if stop - start >= _QUICK.size:
            number, high, low, _, _, _, kind, direction, _, partition, channel, _ = _QUICK.unpack_from(buffer, start)
            if (
                kind in self._refused
                or (wanted.channels is not None and channel not in wanted.channels)
                or (wanted.partitions is not None and partition not in wanted.partitions)
                or (wanted.directions is not None and direction < 2 and DIRECTIONS[direction] not in wanted.directions)
            ):
                return
            if number < len(self._interfaces):
                interface = self._interfaces[number]
                if not interface.wanted:
                    return
                time = interface.ticks(high << 32 | low)
                if (wanted.since is not None and time < wanted.since) or (
                    wanted.until is not None and time > wanted.until
                ):
                    return
        self._any_packet(buffer, offset, start, stop, events)

    def _any_packet(self, buffer: bytes, offset: int, start: int, stop: int, events: list[TraceEvent]) -> None:
        order = self._blocks.order
        if stop - start < 20:
            raise self._error(offset, "is damaged: a packet block without its head")
        number, high, low, size, _ = _PACKET[order](buffer, start)
        begin, end = start + 20, start + 20 + size
        if number >= len(self._interfaces) or end > stop:
            raise self._error(offset, "is damaged: a packet of no interface, or longer than its block")
        interface = self._interfaces[number]
        if not interface.ours:
            raise self._error(offset, "is a packet of another kind of capture, not of link type 147 (USER0)")
        if size < _LINK.size:
            raise self._error(offset, f"is a packet of {size} bytes, too short for a recording's")
        link = _LINK.unpack_from(buffer, begin)
        if link[0] != LINK_VERSION or link[2] > 1:
            raise self._error(offset, f"is a packet of layout version {link[0]}; this reader knows {LINK_VERSION}")
        data = buffer[begin + _LINK.size : end]
        event = _event(interface.vm, interface.ticks(high << 32 | low), link, data)
        if event is None:
            return  # a kind that later versions may have
        tail = begin + (size + 3 & ~3)
        if stop - tail > _ORDINARY_TAIL:
            event = self._with_said(event, buffer[tail:stop], offset)
        if event.vm and event.vm != f"#{event.partition}":
            self.names[event.partition] = event.vm
        if self._wanted is None or self._wanted.event(event):
            events.append(event)

    def _with_said(self, event: TraceEvent, options: bytes, offset: int) -> TraceEvent:
        """With what was said of a packet beyond its bytes, as why a message was refused."""
        order = self._blocks.order
        for code, value in pcapng.read_options(options, 0, order):
            if code == Opt.CUSTOM and (payload := pcapng.own_payload(value, order)) is not None:
                told = self._decoded(payload, offset)
                return msgspec.structs.replace(
                    event,
                    event=told.event,
                    level=told.level,
                    channel=told.channel,
                    words=told.words,
                    fields=told.fields,
                )
        return event

    def _decoded(self, payload: bytes, offset: int) -> TraceEvent:
        try:
            return decode_event(payload)
        except msgspec.DecodeError as error:
            raise self._error(offset, f"holds no event: {error}") from None


_OURS = (BlockType.CUSTOM, BlockType.HIDDEN)
_PACKET = {order: struct.Struct(order + "IIIII").unpack_from for order in "<>"}
_QUICK = struct.Struct("<5I4B3I")


def _event(vm: str, time: int, link: tuple[int, ...], data: bytes) -> TraceEvent | None:
    """The event that a packet was; None for a kind that is none of ours."""
    _, kind, way, code, partition, channel, version = link
    direction = DIRECTIONS[way]
    if kind == Kind.PACKET:
        name, size, words, fields = "packet_sent" if way else "packet_received", 0, f"{len(data)} bytes, no packet", {}
        if len(data) >= 16:
            number, offset8, _, flags, transaction_id = _DESCRIPTOR(data)
            size, words = max(len(data) - 8 * offset8, 0), packet_words(number, transaction_id, flags)
            fields = {
                "transaction_id": transaction_id,
                "type": number,
                "flags": flags,
                "device": NAMES.get(code, ""),
            }
        return TraceEvent(
            time, Layer.PACKET, name, partition, Level.DEBUG, direction, channel, size, words, fields, vm, data
        )
    if kind == Kind.MESSAGE:
        about = channel or (0 if _names_channel(data, version) else None)
        return TraceEvent(
            time,
            Layer.CONTROL,
            event_of_message(data, version or None),
            partition,
            direction=direction,
            channel=about,
            size=len(data),
            words=summary(Layer.CONTROL, data, NAMES.get(code, ""), direction, version or None),
            vm=vm,
            data=data,
        )
    return None


def _names_channel(data: bytes, version: int) -> bool:
    """Whether such a message is about a channel, be it number 0, which there is not."""
    row = row_of(data, version or None)
    return row is not None and any(field.name == "channel_id" for field in row.layout.FIELDS)


def read_recording(path: str | os.PathLike[str], wanted: Wanted | None = None) -> Iterator[TraceEvent]:
    """The wanted events of a file, in order. Raises `RecordingError`, and `OSError` for a file that is not there.

    Use `open_recording` to learn names, what was dropped and where it breaks off.
    """
    yield from Recording(path, wanted)


class Recording:
    """A file's events, to go through once; `reader` has what was learned on the way."""

    def __init__(self, path: str | os.PathLike[str], wanted: Wanted | None = None) -> None:
        self.path = Path(path)
        self.reader = RecordingReader(wanted, name=str(path))

    def __iter__(self) -> Iterator[TraceEvent]:
        with self.path.open("rb", buffering=0) as file:
            for piece in iter(functools.partial(file.read, CHUNK_BYTES), b""):
                yield from self.reader.feed(piece)
        self.reader.finish()
