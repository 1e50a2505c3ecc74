"""The tap as pcapng: a sink for events and for batches of packets, and a bounded buffer of whole blocks. Root side.

Each VM is an interface. Channel messages and ring packets are packets behind a `LinkHeader`; every other event is a
custom block (`event_codec`). The section header says what was known when the recording began: names, versions, open
channels. So a recording can begin at any time, and each piece of it that ends with a whole block can be read.

Where somebody reads along, custom blocks have a number that others pass over: Wireshark shows them among the packets,
but in a live capture it counts packets only, and so would end before the end.

Whoever empties the buffer (`take`) may run on another thread and may be slow: what does not fit meanwhile is counted
and dropped, and a `recording_dropped` event stands in its place. Nothing here waits, or knows files or Trio.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

import msgspec

from hypervisor.inspect import Branch, data
from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Level, PacketBatch, Sink, Trace, TraceEvent
from partitions.logs import ROOT_NAME, vm_name
from partitions.recording import pcapng
from partitions.recording.buffer import BUFFER_BYTES, BlockBuffer, Dropped
from partitions.recording.event_codec import DROPPED, STARTED, encode_event
from partitions.recording.link import DIRECTIONS, LINK_TYPE, LINK_VERSION, Kind, LinkHeader, device_code
from partitions.recording.pcapng import BlockType
from vmbus.protocol.messages import MessageType

APPLICATION: Final = "Partita"
"""What a capture's properties name as its maker."""
_KEPT_LINKS: Final = 4096
_DESCRIPTOR_HEAD = struct.Struct("<HHHH")
_MESSAGE_TYPE = struct.Struct("<I").unpack_from
_NAMES: Final = {int(kind): kind.name.lower() for kind in MessageType}


class _Interface:
    """One VM: a number in the file, and what its statistics say."""

    __slots__ = ("dropped", "id", "received")

    def __init__(self, number: int) -> None:
        self.id = number
        self.received = 0
        self.dropped = 0


class Recorder(BlockBuffer):
    """Make it, `attach` it, and `take` what there is; `finish` after the last event."""

    def __init__(
        self,
        trace: Trace,
        *,
        started: int = 0,
        limit: int = BUFFER_BYTES,
        ready: Callable[[], None] = lambda: None,
        ready_at: int = 1,
        hidden: bool = False,
    ) -> None:
        """`started`: Unix seconds when the host's clock began. `limit`: bytes that may wait to be taken. `hidden`: for
        a reader that reads along and may be Wireshark.

        `ready` is called once each time `ready_at` bytes wait, not again before `take`; in the middle of guests' traps.
        """
        super().__init__(limit=limit, ready=ready, ready_at=ready_at)
        self._trace = trace
        self._started = started
        self._custom = BlockType.HIDDEN if hidden else BlockType.CUSTOM
        self._interfaces: dict[str, _Interface] = {}
        self._links: dict[tuple[int, int, str, str, int], bytes] = {}
        self._remove: Callable[[], None] | None = None
        self._last = 0
        facts = encode_event(self._start_event())
        if len(facts) <= pcapng.LONGEST_PAYLOAD:
            self._put(pcapng.section(APPLICATION, facts))
        else:
            self._put(pcapng.section(APPLICATION, b"") + pcapng.custom(facts, self._custom))
        # An interface has to follow: tools take the file's link type from the first, and do not look far for it.
        for name in dict.fromkeys((ROOT_NAME, *trace.names.values())):
            self._interface(name)

    # ------------------------------------------------------------------------------------------------- beginning, end

    def attach(self, select_from: Callable[[Sink], Sink] | None = None) -> None:
        """Begin to record: everything, or what `select_from`, a filter before a sink, lets through."""
        if select_from is None:
            self._remove = self._trace.add_sink(self.event, packets=self.packets)
        else:
            self._remove = self._trace.add_sink(select_from(self.event))

    def detach(self) -> None:
        """Record nothing more."""
        if self._remove is not None:
            self._remove()
            self._remove = None

    def finish(self) -> None:
        """Say at the end what was dropped, and each interface's counts. These always fit."""
        self.detach()
        if self._lost:
            self._put(self.gap())
        for each in self._interfaces.values():
            self._put(pcapng.statistics(each.id, self._last, each.received, each.dropped))

    def _start_event(self) -> TraceEvent:
        trace = self._trace
        fields: dict[str, Any] = {
            "started": self._started,
            "names": {str(partition): name for partition, name in trace.names.items()},
            "versions": {str(partition): number for partition, number in trace.versions.items() if number},
            "channels": [
                [partition, channel, device]
                for partition, channels in trace.devices.items()
                for channel, device in channels.items()
            ],
        }
        return TraceEvent(trace.clock(), Layer.STATE, STARTED, 0, Level.INFO, fields=fields)

    def inspect(self) -> Branch:
        """How much was recorded, and how much is missing."""
        return Branch(
            {
                "written": data(self.written),
                "dropped": data(self.dropped),
                "waiting_bytes": self._in - self._out,
                "most_waiting_bytes": self._limit,
            }
        )

    # ----------------------------------------------------------------------------------------------------- the sinks

    def event(self, event: TraceEvent) -> None:
        """Any event; packets too, for those who filter before."""
        self._last = event.time
        if event.data and event.layer in _CARRIERS:
            self._carried(event)
            return
        name = vm_name(self._trace.names, event)
        if name != event.vm:
            event = msgspec.structs.replace(event, vm=name)
        if self._fits(event.time, pcapng.custom(encode_event(event), self._custom), 0, 1):
            self.written.events += 1
        else:
            self._drop(0, 1)

    def packets(self, batch: PacketBatch) -> None:
        """Ring packets, without an event each."""
        self._last = time = batch.time
        interface = self._interface(vm_name_of(self._trace.names, batch.partition))
        link = self._link(Kind.PACKET, batch.partition, batch.channel, batch.direction, batch.device)
        outbound = batch.direction == TO_CHILD
        blocks: list[bytes] = []
        append = blocks.append
        kind = flags = offset = length = -1
        for packet in batch.packets:
            body = packet.body
            if len(body) != length or packet.type != kind or packet.flags != flags or packet.data_offset != offset:
                kind, flags, offset, length = packet.type, packet.flags, packet.data_offset, len(body)
                body8 = (length + 7) >> 3
                start = link + _DESCRIPTOR_HEAD.pack(kind, 2 + (offset >> 3), 2 + body8, flags)
                form = pcapng.packet_form(len(start), body8 << 3, outbound)
                pack, tail = form.pack, form.tail
                head = form.head(interface.id, time, start)
            append(pack(head, packet.transaction_id, body, tail))
        self._count(interface, time, b"".join(blocks), len(blocks))

    def _carried(self, event: TraceEvent) -> None:
        """A channel message or a ring packet that is an event."""
        interface = self._interface(vm_name(self._trace.names, event))
        if event.layer is Layer.CONTROL:
            devices = self._trace.devices.get(event.partition, {})
            device = None if not event.channel else devices.get(event.channel, "")
            link = self._link(Kind.MESSAGE, event.partition, event.channel or 0, event.direction or TO_ROOT, device)
            more = _unsaid(event)
        else:
            device = event.fields.get("device", "")
            link = self._link(Kind.PACKET, event.partition, event.channel or 0, event.direction, device)
            more = ()
        block = pcapng.packet(interface.id, event.time, link + event.data, event.direction == TO_CHILD, *more)
        self._count(interface, event.time, block, 1)

    def _count(self, interface: _Interface, time: int, data: bytes, packets: int) -> None:
        interface.received += packets
        if self._fits(time, data, packets, 0):
            self.written.packets += packets
        else:
            interface.dropped += packets
            self._drop(packets, 0)

    def _link(self, kind: Kind, partition: int, channel: int, direction: str, device: str | None) -> bytes:
        bus_version = self._trace.versions.get(partition, 0)
        key = partition, channel | kind << 32, direction, device or "", bus_version
        link = self._links.get(key)
        if link is None:
            if len(self._links) >= _KEPT_LINKS:
                self._links.clear()
            link = self._links[key] = LinkHeader(
                version=LINK_VERSION,
                kind=kind,
                direction=DIRECTIONS.index(direction),
                device=device_code(device),
                partition=partition,
                channel=channel,
                bus_version=bus_version,
            ).encode()
        return link

    def _interface(self, name: str) -> _Interface:
        known = self._interfaces.get(name)
        if known is None:
            known = self._interfaces[name] = _Interface(len(self._interfaces))
            # Past the limit if need be: packets are numbers without it, and there are no more of them than VMs.
            self._put(pcapng.interface(LINK_TYPE, name, self._started))
        return known

    def gap(self) -> bytes:
        """What stands where something is missing."""
        lost, self._lost = self._lost, Dropped()
        event = TraceEvent(
            self._lost_at,
            Layer.STATE,
            DROPPED,
            0,
            Level.WARNING,
            words=f"{lost} came faster than the recording was written",
            fields={"packets": lost.packets, "events": lost.events},
        )
        counts = [
            pcapng.statistics(each.id, self._lost_at, each.received, each.dropped)
            for each in self._interfaces.values()
            if each.dropped
        ]
        return b"".join((pcapng.custom(encode_event(event), self._custom), *counts))


_CARRIERS: Final = (Layer.CONTROL, Layer.PACKET)


def vm_name_of(names: dict[int, str], partition: int) -> str:
    """The VM's name, or what `vm_name` calls a partition without one."""
    return names.get(partition) or f"#{partition}"


def _unsaid(event: TraceEvent) -> tuple[bytes, ...]:
    """Options for what the message's own bytes do not tell: that it was refused, and why."""
    number = _MESSAGE_TYPE(event.data)[0] if len(event.data) >= 4 else -1
    if event.event == _NAMES.get(number) and not event.fields and event.level is Level.DEBUG:
        return ()
    comment = f"{event.event}: {event.words}".encode("utf-8", "backslashreplace")
    rest = encode_event(msgspec.structs.replace(event, data=b""))
    options = pcapng.option(pcapng.Opt.COMMENT, comment)
    return (options,) if len(rest) > pcapng.LONGEST_PAYLOAD else (options, pcapng.custom_option(rest))
