"""Trace events as a host emits them, made by hand: what crosses a channel, with the hops that a request should have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Level, TraceEvent
from vmbus.ring import PacketType

INBAND, COMPLETION = int(PacketType.INBAND), int(PacketType.COMPLETION)


@attrs.define
class Crossings:
    """A clock that goes on by a microsecond an event, and the events so far."""

    events: list[TraceEvent] = attrs.field(factory=list)
    now: int = 0

    def emit(self, layer: Layer, event: str, partition: int, **values: Any) -> TraceEvent:
        """One event; `fields` and the like as `TraceEvent` has them."""
        self.now += 10
        values.setdefault("level", Level.DEBUG)
        made = TraceEvent(self.now, layer, event, partition, **values)
        self.events.append(made)
        return made

    def signal(
        self,
        partition: int,
        channel: int,
        *,
        to_child: bool = False,
        trapped: bool = True,
        shared: bool = False,
        interrupt: bool = True,
    ) -> list[TraceEvent]:
        """HvSignalEvent as it is told; returns its events in the order of the hops."""
        way = TO_CHILD if to_child else TO_ROOT
        connection = (0x1000 + partition) if to_child else 2 if shared else 0x2000 + channel
        flag = 0 if shared else channel if to_child else 77
        fields = {"connection": connection, "port": 9, "sint": 2, "flag": flag}
        hops = [self.emit(Layer.SYNIC, "signal_event", partition, direction=way, fields=fields)]
        if interrupt:
            whose, vector = (partition, 0xF3) if to_child else (1, 0x32)
            hops.append(
                self.emit(Layer.INTERRUPT, "interrupt", whose, direction=way, fields={"vp": 0, "vector": vector})
            )
        if trapped:
            caller = 1 if to_child else partition
            words = f"HvSignalEvent connection_id={connection:#x} flag_number=0x0 reserved=0x0 -> SUCCESS"
            made = {"call": "HvSignalEvent", "status": "SUCCESS", "caller": caller, "vp": 0}
            hops.insert(0, self.emit(Layer.HYPERCALL, "hypercall", caller, words=words, fields=made))
        return hops

    def packets(
        self,
        partition: int,
        channel: int,
        numbers: Sequence[int],
        *,
        to_child: bool = False,
        kind: int = INBAND,
        flags: int = 1,
        data: bytes = b"",
    ) -> list[TraceEvent]:
        """A batch, all of it at one time."""
        moment = self.now + 10
        made = []
        for number in numbers:
            self.now = moment - 10
            made.append(
                self.emit(
                    Layer.PACKET,
                    "packet_sent" if to_child else "packet_received",
                    partition,
                    direction=TO_CHILD if to_child else TO_ROOT,
                    channel=channel,
                    size=64,
                    words=f"packet {number:#x}",
                    fields={"transaction_id": number, "type": kind, "flags": flags, "device": "storage"},
                    data=data,
                )
            )
        return made

    def answers(
        self, partition: int, channel: int, numbers: Sequence[int], *, to_child: bool = True
    ) -> list[TraceEvent]:
        """A batch of completions."""
        return self.packets(partition, channel, numbers, to_child=to_child, kind=COMPLETION, flags=0)

    def device(self, partition: int, channel: int, number: int, words: str, *, result: bool = False) -> TraceEvent:
        """What the VSP makes of a packet, or of the command in it."""
        return self.emit(
            Layer.DEVICE,
            "scsi_result" if result else "scsi_command",
            partition,
            direction=TO_CHILD if result else TO_ROOT,
            channel=channel,
            size=512,
            words=words,
            fields={"transaction": number},
        )

    def control(self, partition: int, event: str, channel: int | None = None, **values: Any) -> TraceEvent:
        """A channel message."""
        return self.emit(Layer.CONTROL, event, partition, channel=channel, **values)

    def noise(self, partition: int, kind: int) -> None:
        """Something that has nothing to do with any request."""
        match kind % 4:
            case 0:
                self.emit(
                    Layer.MSR, "write_msr", partition, words="EOI", fields={"vp": 0, "msr": 0x40000070, "value": 0}
                )
            case 1:
                self.emit(Layer.PORT, "port_out", partition, fields={"vp": 0, "port": 0x3F8, "value": 65})
            case 2:
                fields = {"call": "HvPostMessage", "status": "SUCCESS", "caller": partition}
                self.emit(Layer.HYPERCALL, "hypercall", partition, words="HvPostMessage", fields=fields)
            case _:
                self.emit(Layer.INTERRUPT, "interrupt", partition, direction=TO_CHILD, fields={"vp": 1, "vector": 0xEC})
