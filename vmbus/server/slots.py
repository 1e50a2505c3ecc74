"""The channels that have an ID: their ports, and while open their rings, interrupts and device tasks. Root side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import attrs
import trio

from hypervisor.inspect import Branch, Hex
from hypervisor.memory import GpaFault, GuestMemory
from hypervisor.pages import PAGE_SIZE, Access
from hypervisor.status import HvError
from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, PacketBatch, Trace, TraceEvent
from hypervisor.wire import WireError
from vmbus.channel import RECEIVED, Channel
from vmbus.gpadl import GpadlRange
from vmbus.protocol.identifiers import INTERRUPTS_OFF, event_connection_id
from vmbus.protocol.pages import ConnectionPages
from vmbus.ring import Packet, packet_bytes, packet_words
from vmbus.server import actions as act
from vmbus.server.channels import ChannelState, ServerChannel
from vmbus.server.gpadls import gpadl_name
from vmbus.server.limits import MAX_SCATTERED_PAGES
from vmbus.server.offers import Device, InspectableDevice, Offer, PreparedDevice, SavableDevice
from vmbus.server.opened import ChannelGpadls, GpadlHold, HoldCounts, OpenedChannel
from vmbus.server.pages import PagesInUse
from vmbus.server.ports import EventConnection, HostPorts, ReceivePort
from vmbus.server.saved import CannotRestore, CannotSave


@attrs.define(eq=False)
class OfferedChannel:
    """A device on the bus, as its host sees it."""

    device: Device
    offer: Offer
    """The device's own, or that of one of its subchannels."""
    handle: int
    _record: Callable[[int], ServerChannel | None]
    _open: Callable[[int], Channel | None]

    @property
    def state(self) -> ChannelState | None:
        """None once it is rescinded and the guest has let it go."""
        record = self._record(self.handle)
        return None if record is None else record.state

    @property
    def channel_id(self) -> int | None:
        """What the guest calls it, while it may."""
        record = self._record(self.handle)
        return (record.channel_id or None) if record is not None else None

    @property
    def channel(self) -> Channel | None:
        """The open channel, for statistics and taps."""
        return self._open(self.channel_id or 0)


@attrs.define(eq=False)
class _Slot:
    """A channel that has an ID: its port, and what an open gave it."""

    offered: OfferedChannel
    port: ReceivePort | None = None
    """What the guest signals; None where that could not be had, or another channel has it."""
    connection_id: int = 0
    event_flag: int = 0
    monitor_id: int | None = None
    channel: Channel | None = None
    opened: OpenedChannel | None = None
    events: EventConnection | None = None
    """None where the guest wants no interrupts."""
    ring: GpadlHold | None = None
    scattered: int = 0
    scope: trio.CancelScope | None = None
    """Of the device's task, while that runs."""
    preparing: bool = False
    """Its device has not said yet whether the open succeeds."""
    closing: bool = False
    subchannels: list[OfferedChannel] = attrs.field(factory=list)
    """Offered by this opening of a primary channel; the first has index 1."""

    def woken(self) -> None:
        """The guest signalled the channel."""
        if self.channel is not None:
            self.channel.wake()

    def signal(self) -> None:
        """Wake the guest."""
        if self.events is not None:
            self.events.signal()

    def inspect(self) -> Branch:
        """What an open gave it."""
        opened, channel, device = self.opened, self.channel, self.offered.device
        seen: dict[str, object] = {
            "connection": Hex(self.connection_id) if self.port is not None else None,
            "event_flag": self.event_flag,
            "monitor": self.monitor_id,
            "served": self.scope is not None and not self.preparing,
            "closing": self.closing,
            "scattered": self.scattered,
            "subchannels": len(self.subchannels),
        }
        if opened is not None and channel is not None:
            ring = None if self.ring is None else gpadl_name((self.ring.gpadl_id, opened.channel_id))
            seen |= {"target_vp": opened.target_vp, "ring_gpadl": ring, "ring": channel.inspect}
            if isinstance(device, InspectableDevice):
                seen |= {"session": partial(device.inspect_channel, opened.channel_id)}
        return Branch(seen)


class ChannelSlots:
    """What the state machine's actions on channels come to. Knows no message and decides nothing about states."""

    def __init__(
        self,
        ports: HostPorts,
        memory: GuestMemory,
        *,
        partition_id: int,
        trace: Trace,
        shared: bool,
        counters: Counter[str],
        gpadl_ranges: Callable[[int, int], tuple[GpadlRange, ...] | None],
        gpadl_released: Callable[[int, int], None],
        opened: Callable[[int, bool], None],
        ended: Callable[[int], None],
        offer: Callable[[Device, Offer], OfferedChannel],
        withdraw: Callable[[OfferedChannel], None],
        device_names: Callable[[Offer], str],
    ) -> None:
        """`gpadl_released(channel_id, gpadl_id)`: no view is left; `opened(channel_id, ok)`: the answer to an open that
        `open_device` left unanswered; `ended(channel_id)`: the device has stopped.

        `offer` and `withdraw` are for subchannels; what is withdrawn may be gone by then. `device_names` is what traces
        call what is offered.
        """
        self._ports = ports
        self._memory = memory
        self._partition_id = partition_id
        self._trace = trace
        self._shared = shared
        self._counters = counters
        self._gpadl_ranges = gpadl_ranges
        self._opened = opened
        self._ended = ended
        self._offer = offer
        self._withdraw = withdraw
        self._device_names = device_names
        self._holds = HoldCounts(gpadl_released)
        self._pages = PagesInUse(ports, memory, ConnectionPages(), self._signaled)
        self._slots: dict[int, _Slot] = {}
        self._scattered = 0
        self._dropped = trio.Event()
        """Set, and replaced, when a channel is not open any more."""
        self._nursery: trio.Nursery | None = None
        self._restored: tuple[object] | None = None
        """What the device of the channel that is being opened was saved with, None in it where it had stopped."""

    def start(self, nursery: trio.Nursery) -> None:
        """Devices run in this nursery."""
        self._nursery = nursery

    def create(self, channel_id: int, offered: OfferedChannel) -> None:
        """The guest may signal the channel from now on."""
        slot = self._slots[channel_id] = _Slot(offered)
        devices = self._trace.devices.setdefault(self._partition_id, {})
        devices[channel_id] = self._device_names(offered.offer)
        try:
            self._listen(slot, event_connection_id(channel_id))
        except HvError as error:  # tried again when the guest opens it
            self._warn("no_channel_port", f"channel {channel_id}: {error}")

    def use_pages(self, pages: ConnectionPages) -> None:
        """What the guest gives to the connection from here on. No channel uses what it gave before."""
        self._pages.close()
        try:
            self._pages = PagesInUse(self._ports, self._memory, pages, self._signaled)
        except (GpaFault, HvError) as error:
            self._pages = PagesInUse(self._ports, self._memory, ConnectionPages(), self._signaled)
            self._warn("unused_pages", f"{pages}: {error}")

    def _signaled(self, untrusted_channel_ids: list[int]) -> None:
        """Bits in the guest's interrupt page."""
        stray = 0
        for untrusted in untrusted_channel_ids:
            slot = self._slots.get(untrusted)
            if slot is None:
                stray += 1
            else:
                slot.woken()
        if stray:
            self._counters["stray_bits"] += stray
            self._warn("stray_bits", f"the interrupt page names {stray} channels that there are not")

    def close(self, channel_id: int) -> OfferedChannel:
        """The ID is free again; returns whose it was."""
        slot = self._slots.pop(channel_id)
        del self._trace.devices[self._partition_id][channel_id]
        if slot.port is not None:
            slot.port.close()
        return slot.offered

    def _listen(self, slot: _Slot, connection_id: int) -> None:
        """Have the guest signal the channel by this ID. One of its choice may be a closed channel's, which loses it."""
        if slot.port is not None and slot.connection_id == connection_id:
            return
        for other in self._slots.values():
            if other.port is not None and other.connection_id == connection_id and other.channel is None:
                other.port.close()
                other.port = None
        port = self._ports.receive_events(connection_id, slot.woken)
        if slot.port is not None:
            slot.port.close()
        slot.port, slot.connection_id = port, connection_id

    def inspect(self, channel_id: int) -> dict[str, Any]:
        """A channel's ports and rings, as children for a branch."""
        slot = self._slots.get(channel_id)
        return {} if slot is None else dict(slot.inspect().children)

    def is_ring(self, channel_id: int, gpadl_id: int) -> bool:
        """Whether an open channel's rings lie in it."""
        slot = self._slots.get(channel_id)
        return slot is not None and slot.ring is not None and slot.ring.gpadl_id == gpadl_id

    @property
    def holds(self) -> HoldCounts:
        """How many views there are of each GPADL; for looking at only."""
        return self._holds

    @property
    def scattered(self) -> int:
        """Breaks in the page lists of open rings."""
        return self._scattered

    def channel(self, channel_id: int) -> Channel | None:
        """The channel, if it is open."""
        slot = self._slots.get(channel_id)
        return None if slot is None else slot.channel

    def ask_back(self, channel_id: int, gpadl_id: int) -> None:
        """Have `gpadl_released` called when no view of these pages is left."""
        self._holds.ask_back(channel_id, gpadl_id)

    # --- saved and restored

    def unrest(self) -> str:
        """Which device has taken something off a ring and not answered it; empty if none has."""
        for channel_id, slot in self._slots.items():
            device = slot.offered.device
            if slot.scope is not None and isinstance(device, SavableDevice) and device.save(channel_id) is None:
                return f"{slot.offered.offer} is at work"
        return ""

    def save(self, channel_id: int) -> bytes | None:
        """The device's own record of an open channel; None where it serves it no more. Raises `CannotSave`."""
        slot = self._slots[channel_id]
        if slot.scope is None:
            return None
        device = slot.offered.device
        record = device.save(channel_id) if isinstance(device, SavableDevice) else None
        if record is None:
            raise CannotSave(f"{slot.offered.offer} cannot be saved while its channel is open")
        return record

    @contextmanager
    def restoring(self, channel_id: int, record: bytes | None) -> Iterator[None]:
        """The open that comes now is one of a restored guest. Raises `CannotRestore` if its device says so."""
        slot = self._slots[channel_id]
        device, state = slot.offered.device, None
        if record is not None:
            if not isinstance(device, SavableDevice):
                raise CannotRestore(f"{slot.offered.offer} cannot be restored")
            state = device.load(record)
        self._restored = (state,)
        try:
            yield
        finally:
            self._restored = None

    def offer_subchannels(self, channel_id: int, count: int) -> None:
        """For a restored guest, which asked for them in its past life."""
        self._offer_subchannels(self._slots[channel_id], count)

    def shut_down(self) -> None:
        """Give up everything. No device runs any longer."""
        for slot in self._slots.values():
            if slot.port is not None:
                slot.port.close()
            if slot.channel is not None:
                slot.channel.close(by_peer=True)
            if slot.events is not None:
                slot.events.close()
        self._slots.clear()
        self._trace.devices.pop(self._partition_id, None)
        self._pages.close()
        self._dropped.set()

    async def wait_stopped(self, device: Device) -> None:
        """Until no channel to this device is open."""
        while any(slot.offered.device is device and slot.channel is not None for slot in self._slots.values()):
            await self._dropped.wait()
        await trio.lowlevel.checkpoint()

    def open_device(self, action: act.OpenDevice) -> bool | None:
        """Attach the rings, reach the target VP and start the device; False if the guest's terms do not allow it.

        None for a device that has to prepare itself: `opened` follows.

        The guest may have chosen its own connection ID and event flag; one that is taken, or none, refuses the open.
        """
        slot = self._slots[action.channel_id]
        gpns = action.ring.gpns
        scattered = sum(1 for before, after in pairwise(gpns) if after != before + 1)
        if self._scattered + scattered > MAX_SCATTERED_PAGES:
            self._counters["ring_limit"] += 1
            self._warn("refused_open", f"channel {action.channel_id}: rings in {scattered + 1} pieces")
            return False
        try:
            rings = self._memory.flat(gpns, Access.READ_WRITE)
            self._listen(slot, action.connection_id)
            slot.monitor_id = action.monitor_id
            latency = slot.offered.offer.monitor_latency
            if slot.monitor_id is not None and latency is not None:
                self._pages.use_monitor(slot.monitor_id, latency, action.connection_id)
            if action.target_vp != INTERRUPTS_OFF:
                slot.events = self._pages.connect_events(
                    action.target_vp, action.channel_id, action.event_flag, slot.monitor_id
                )
        except (GpaFault, HvError, MemoryError) as error:
            self._release_monitor(slot)
            self._warn("refused_open", f"channel {action.channel_id}: {error}")
            return False
        slot.event_flag = action.event_flag
        border = action.downstream_page * PAGE_SIZE
        # The guest's outgoing ring comes first; it is our incoming one.
        slot.channel = Channel(
            outgoing=rings[border:],
            incoming=rings[:border],
            signal=slot.signal,
            shared=self._shared,
            on_packets=partial(self._packets, action.channel_id, self._device_names(slot.offered.offer)),
            tap_switch=self._trace,
        )
        slot.ring = GpadlHold(self._holds, action.channel_id, action.gpadl_id, (action.ring,))
        slot.scattered = scattered
        self._scattered += scattered
        slot.opened = OpenedChannel(
            action.channel_id,
            action.target_vp,
            action.user_data,
            action.version,
            self._memory,
            ChannelGpadls(action.channel_id, self._gpadl_ranges, self._holds),
            subchannel_index=slot.offered.offer.subchannel_index,
            more=None if slot.offered.offer.subchannel_index else partial(self._offer_subchannels, slot),
        )
        slot.closing = False
        if self._restored is not None:
            (slot.opened.restored,) = self._restored
            if slot.opened.restored is None:
                return True  # its guest has made a mistake, and nobody serves it until it closes the channel
        slot.scope = trio.CancelScope()
        slot.preparing = isinstance(slot.offered.device, PreparedDevice)
        assert self._nursery is not None, "messages are taken only after start"
        name = f"partition {self._partition_id} {slot.offered.offer}"
        self._nursery.start_soon(self._serve, slot, slot.scope, name=name)
        return None if slot.preparing else True

    def stop_opening(self, channel_id: int) -> None:
        """Nobody waits for what a device prepares; the answer follows when it has stopped."""
        slot = self._slots[channel_id]
        if slot.preparing and slot.scope is not None:
            slot.scope.cancel()

    def _packets(self, channel_id: int, device: str, direction: str, packets: Sequence[Packet]) -> None:
        """The tap on a channel: packets as they are on the ring; what they mean is the device's to say."""
        if self._trace.on:
            way = TO_ROOT if direction == RECEIVED else TO_CHILD
            self._trace.emit_packets(self._partition_id, channel_id, way, device, packets, packet_event)

    async def _serve(self, slot: _Slot, scope: trio.CancelScope) -> None:
        """Run a channel's device to its end, which is the close of the channel or a fault of the guest's."""
        channel, opened = slot.channel, slot.opened
        assert channel is not None
        assert opened is not None
        device = slot.offered.device
        with scope:
            try:
                if isinstance(device, PreparedDevice) and await device.prepare(opened):
                    slot.preparing = False
                    self._opened(opened.channel_id, True)
                if not slot.preparing:
                    await device.serve(channel, opened)
            except* (WireError, GpaFault) as faults:
                self._counters["devices_stopped"] += 1
                self._trace.warn(
                    Layer.DEVICE,
                    "device_stopped",
                    self._partition_id,
                    f"{slot.offered.offer}: {_first_words(faults)}",
                    channel=opened.channel_id,
                )
        slot.scope = None
        if slot.preparing:
            slot.preparing = False
            opened.gpadls.release_all()
            self._drop_open(slot)
            self._opened(opened.channel_id, False)
            return
        # A primary channel that is not served any more has no subchannels: what they carry would have no session.
        while slot.subchannels:
            self._withdraw(slot.subchannels.pop())
        opened.gpadls.release_all()
        if slot.closing:
            self._device_ended(opened.channel_id)

    def _offer_subchannels(self, slot: _Slot, count: int) -> None:
        primary = slot.offered
        while len(slot.subchannels) < count:
            offer = primary.offer.subchannel(len(slot.subchannels) + 1)
            slot.subchannels.append(self._offer(primary.device, offer))

    def close_device(self, channel_id: int) -> None:
        """Stop the device; `ended` follows, now or when its task has come to its end."""
        slot = self._slots[channel_id]
        slot.closing = True
        if slot.scope is not None:
            slot.scope.cancel()
        else:
            self._device_ended(channel_id)

    def _device_ended(self, channel_id: int) -> None:
        """Drop the views, then say so."""
        self._drop_open(self._slots[channel_id])
        self._ended(channel_id)

    def _release_monitor(self, slot: _Slot) -> None:
        monitor_id, slot.monitor_id = slot.monitor_id, None
        if monitor_id is not None:
            self._pages.release_monitor(monitor_id)

    def _drop_open(self, slot: _Slot) -> None:
        self._release_monitor(slot)
        if slot.channel is not None:
            slot.channel.close(by_peer=True)
        if slot.events is not None:
            slot.events.close()
        ring, slot.ring = slot.ring, None
        slot.channel, slot.opened, slot.events, slot.closing = None, None, None, False
        self._scattered -= slot.scattered
        slot.scattered = 0
        if ring is not None:
            ring.release()
        self._dropped.set()
        self._dropped = trio.Event()

    def retarget(self, channel_id: int, target_vp: int) -> bool:
        """Move the interrupts to another VP; False if there is no such VP."""
        slot = self._slots[channel_id]
        try:
            events = self._pages.connect_events(target_vp, channel_id, slot.event_flag, slot.monitor_id)
        except HvError as error:
            self._warn("refused_modify", f"channel {channel_id} to VP {target_vp}: {error}")
            return False
        if slot.events is not None:
            slot.events.close()
        slot.events = events
        if slot.opened is not None:
            slot.opened.target_vp = target_vp
        return True

    def _warn(self, event: str, words: str) -> None:
        self._trace.warn(Layer.CONTROL, event, self._partition_id, words)


def packet_event(batch: PacketBatch, packet: Packet) -> TraceEvent:
    """Its size is that of the payload as it lies in the ring, which is all that the other end can know of it."""
    return TraceEvent(
        batch.time,
        Layer.PACKET,
        "packet_received" if batch.direction == TO_ROOT else "packet_sent",
        batch.partition,
        direction=batch.direction,
        channel=batch.channel,
        size=(len(packet.body) - packet.data_offset + 7) & ~7,
        words=packet_words(packet.type, packet.transaction_id, packet.flags),
        fields={
            "transaction_id": packet.transaction_id,
            "type": packet.type,
            "flags": packet.flags,
            "device": batch.device,
        },
        data=packet_bytes(packet),
    )


def _first_words(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
