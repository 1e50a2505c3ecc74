"""The bus of one child: feeds the state machine with messages and does what it says. Root side.

Who runs what. Handlers of the root's interrupts put messages into a bounded queue and ring a bell. One task takes them
out, one by one, and carries out the actions. Each open channel's device runs in a task of its own, under a cancel scope
that the close of the channel cancels; what the close gives back to the guest goes only after that task has ended. Host
code (`offer`, `rescind`) acts at once, from whatever task calls it. All of it is in the Trio thread and no state
changes across an await.

Messages to the guest go through one queue. While it is not empty no message of the guest's is looked at, so a guest
that does not take its messages cannot make the host's memory grow.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Final, assert_never

import attrs
import trio

from hypervisor.memory import GpaFault, GuestMemory
from hypervisor.pages import PAGE_SIZE, Access
from hypervisor.status import HvError, HvStatus
from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Trace
from hypervisor.wire import WireError
from vmbus.bell import Bell
from vmbus.channel import RECEIVED, Channel
from vmbus.protocol.identifiers import (
    INTERRUPTS_OFF,
    MESSAGE_CONNECTION,
    MESSAGE_CONNECTION_MULTICLIENT,
    SINT,
    event_connection_id,
)
from vmbus.protocol.messages import Message
from vmbus.protocol.table import Direction, decode_message, describe, event_name
from vmbus.ring import Packet, PacketType
from vmbus.server import actions as act
from vmbus.server.actions import Action
from vmbus.server.channels import ChannelState, ServerChannel
from vmbus.server.connection import Phase
from vmbus.server.offers import Device, Offer
from vmbus.server.opened import ChannelGpadls, GpadlHold, HoldCounts, OpenedChannel
from vmbus.server.ports import EventConnection, HostPorts, MessageConnection, ReceivePort
from vmbus.server.state import ServerState

__all__ = ["Device", "Offer", "OfferedChannel", "OpenedChannel", "VmbusServer", "open_vmbus_server"]

INBOX_MESSAGES: Final = 1024
"""Guest messages that wait; more are dropped and counted. Linux has one in flight at a time, or a GPADL's few."""

MAX_SCATTERED_PAGES: Final = 4096
"""Per guest: each break in a ring's page list costs the host a memory mapping, of which a process has some 65,000."""

_MESSAGES_PER_TURN: Final = 16
_PACKET_NAMES: Final = {int(kind): kind.name for kind in PacketType}
_FIRST_RETRY, _LAST_RETRY = 0.001, 0.016
"""Seconds between attempts to post when the guest's port is full."""


@attrs.define(eq=False)
class _Slot:
    """A channel that has an ID: its port, and what an open gave it."""

    offered: OfferedChannel
    port: ReceivePort | None = None
    channel: Channel | None = None
    opened: OpenedChannel | None = None
    events: EventConnection | None = None
    """None where the guest wants no interrupts."""
    ring: GpadlHold | None = None
    scattered: int = 0
    scope: trio.CancelScope | None = None
    """Of the device's task, while that runs."""
    closing: bool = False

    def woken(self) -> None:
        """The guest signalled the channel."""
        if self.channel is not None:
            self.channel.wake()

    def signal(self) -> None:
        """Wake the guest."""
        if self.events is not None:
            self.events.signal()


@attrs.define(eq=False)
class OfferedChannel:
    """A device on the bus, as its host sees it."""

    device: Device
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


class VmbusServer:
    """The bus of one child partition. Made by `open_vmbus_server`."""

    def __init__(
        self,
        ports: HostPorts,
        memory: GuestMemory,
        *,
        partition_id: int,
        trace: Trace,
        shared: bool,
        max_version: int | None = None,
    ) -> None:
        self.partition_id = partition_id
        self.counters: Counter[str] = Counter()
        """messages_in, messages_out, messages_lost, inbox_overflows, faults, devices_stopped."""
        self._ports = ports
        self._memory = memory
        self._nursery: trio.Nursery | None = None
        self._trace = trace
        self._shared = shared
        self._state = ServerState(max_version=max_version)
        self._inbox: deque[tuple[bool, bytes]] = deque()
        self._outbox: deque[tuple[Message, bytes]] = deque()
        self._todo: deque[Action] = deque()
        self._performing = False
        self._bell = Bell()
        self._phase_changed = trio.Event()
        self._messages: MessageConnection | None = None
        self._slots: dict[int, _Slot] = {}
        self._offered: dict[int, OfferedChannel] = {}
        self._holds = HoldCounts(self._gpadl_released)
        self._scattered = 0
        self._message_ports = [
            ports.receive_messages(MESSAGE_CONNECTION, lambda data: self._arrived(data, multiclient=False)),
            ports.receive_messages(MESSAGE_CONNECTION_MULTICLIENT, lambda data: self._arrived(data, multiclient=True)),
        ]

    # ------------------------------------------------------------------------------------------------- for the host

    @property
    def phase(self) -> Phase:
        """The state of the connection."""
        return self._state.phase

    @property
    def version(self) -> int | None:
        """The negotiated version; None while there is no connection."""
        return self._state.version

    @property
    def features(self) -> int:
        """The negotiated `Feature` bits."""
        return self._state.features

    @property
    def channels(self) -> Mapping[int, ServerChannel]:
        """Channels that have an ID, by ID; for looking at only."""
        return self._state.channels

    @property
    def gpadl_count(self) -> int:
        """GPADLs of all channels, unfinished ones too."""
        return len(self._state.gpadls)

    def offer(self, device: Device) -> OfferedChannel:
        """Put a device on the bus, now or hot. ValueError for one that is there already."""
        handle, actions = self._state.offer(device.offer)
        offered = self._offered[handle] = OfferedChannel(device, handle, self._state.offers.get, self._open_channel)
        self._perform(actions)
        return offered

    def rescind(self, offered: OfferedChannel) -> None:
        """Take a device off the bus, its subchannels first. KeyError for one that is not there any longer."""
        self._perform(self._state.rescind(offered.handle))
        self._forget_gone()

    async def reset(self) -> None:
        """The machine was reset: forget the guest and keep the offers. Returns when no device runs."""
        self._inbox.clear()
        self._perform(self._state.reset())
        await self.wait_phase(Phase.DISCONNECTED)

    async def wait_phase(self, phase: Phase) -> None:
        """Until the connection is in this state."""
        while self._state.phase is not phase:
            await self._phase_changed.wait()
        await trio.lowlevel.checkpoint()

    # ------------------------------------------------------------------------------------------------- guest to host

    def start(self, nursery: trio.Nursery) -> None:
        """Begin to take messages. Devices run in this nursery too."""
        self._nursery = nursery
        nursery.start_soon(self._run, name=f"partition {self.partition_id} vmbus")

    def _arrived(self, data: bytes, *, multiclient: bool) -> None:
        """In the root's interrupt: note and wake."""
        if len(self._inbox) >= INBOX_MESSAGES:
            self.counters["inbox_overflows"] += 1
            self._trace.warn(Layer.CONTROL, "message_overflow", self.partition_id, "too many channel messages wait")
            return
        self._inbox.append((multiclient, data))
        self._bell.ring()

    async def _run(self) -> None:
        while True:
            await self._bell.wait()
            retry, turn = _FIRST_RETRY, 0
            while True:
                if not self._flush():
                    await trio.sleep(retry)
                    retry = min(2 * retry, _LAST_RETRY)
                    continue
                retry = _FIRST_RETRY
                if not self._inbox:
                    break
                self._receive(*self._inbox.popleft())
                turn += 1
                if turn % _MESSAGES_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()

    def _receive(self, multiclient: bool, data: bytes) -> None:
        self.counters["messages_in"] += 1
        if self._trace.on:
            try:
                message = decode_message(
                    data, sender=Direction.TO_ROOT, version=self._state.version, features=self._state.features
                )
            except WireError:
                pass  # the state machine says so, as a fault
            else:
                self._emit(message, len(data), TO_ROOT)
        self._perform(self._state.handle(data, multiclient=multiclient))

    # ---------------------------------------------------------------------------------------------- host to guest

    def _flush(self) -> bool:
        """Post what there is room for; False if something is left."""
        while self._outbox:
            message, data = self._outbox[0]
            status = HvStatus.INVALID_CONNECTION_ID if self._messages is None else self._messages.post(data)
            if status == HvStatus.INSUFFICIENT_BUFFERS:
                return False
            self._outbox.popleft()
            if status == HvStatus.SUCCESS:
                self.counters["messages_out"] += 1
                if self._trace.on:
                    self._emit(message, len(data), TO_CHILD)
            else:
                self.counters["messages_lost"] += 1
                self._warn("message_lost", f"{describe(message)}: {status.name}")
        return True

    def _emit(self, message: Message, size: int, direction: str) -> None:
        self._trace.emit(
            Layer.CONTROL,
            event_name(message),
            self.partition_id,
            direction=direction,
            channel=getattr(message, "channel_id", None),
            size=size,
            words=describe(message),
        )

    def _warn(self, event: str, words: str) -> None:
        self._trace.warn(Layer.CONTROL, event, self.partition_id, words)

    # ---------------------------------------------------------------------------------------------------- actions

    def _perform(self, actions: Sequence[Action]) -> None:
        """Carry out actions in order. Those that an action brings about come after all that were there before."""
        self._todo.extend(actions)
        if self._performing:
            return
        self._performing = True
        try:
            while self._todo:
                self._carry_out(self._todo.popleft())
        finally:
            self._performing = False
        if self._outbox and not self._flush():
            self._bell.ring()

    def _carry_out(self, action: Action) -> None:
        match action:
            case act.SendMessage(message):
                self._outbox.append((message, message.encode()))
            case act.SetMessageTarget(vp, sint):
                self._set_message_target(vp, sint)
            case act.DropMessageTarget():
                self._drop_message_target()
            case act.CreateChannelPort(channel_id, handle):
                slot = self._slots[channel_id] = _Slot(self._offered[handle])
                slot.port = self._ports.receive_events(event_connection_id(channel_id), slot.woken)
            case act.CloseChannelPort(channel_id):
                slot = self._slots.pop(channel_id)
                self._close_slot(slot)
                if slot.offered.handle not in self._state.offers:
                    self._offered.pop(slot.offered.handle, None)
            case act.OpenDevice():
                self._perform(self._state.channel_opened(action.channel_id, self._open_device(action)))
            case act.RetargetChannel(channel_id, target_vp):
                ok = self._retarget(self._slots[channel_id], channel_id, target_vp)
                self._perform(self._state.channel_modified(channel_id, target_vp, ok))
            case act.CloseDevice(channel_id):
                self._close_device(channel_id)
            case act.MapGpadl(channel_id, gpadl_id, ranges):
                ok = all(self._memory.source(gpn) is not None for part in ranges for gpn in part.gpns)
                self._perform(self._state.gpadl_mapped(channel_id, gpadl_id, ok))
            case act.ReleaseGpadl(channel_id, gpadl_id):
                self._holds.ask_back(channel_id, gpadl_id)
            case act.StateChanged(channel_id, before, after):
                self._state_changed(channel_id, before, after)
            case act.ProtocolFault(event, words):
                self.counters["faults"] += 1
                self._warn(event, words)
            case _:
                assert_never(action)

    def _state_changed(self, channel_id: int | None, before: str, after: str) -> None:
        if channel_id is None:
            self._phase_changed.set()
            self._phase_changed = trio.Event()
        if self._trace.on:
            event = "vmbus_connection" if channel_id is None else "vmbus_channel"
            words = f"{before} -> {after}"
            self._trace.emit(Layer.STATE, event, self.partition_id, channel=channel_id, words=words)

    def _set_message_target(self, vp: int, sint: int) -> None:
        self._drop_message_target()
        try:
            self._messages = self._ports.connect_messages(vp, sint)
        except HvError as error:
            self._warn("no_message_target", f"VP {vp} SINT {sint}: {error}")

    def _drop_message_target(self) -> None:
        """Whatever is still in the queue was for a guest that is gone."""
        self._outbox.clear()
        if self._messages is not None:
            self._messages.close()
            self._messages = None

    # ------------------------------------------------------------------------------------------ devices and their rings

    def _open_device(self, action: act.OpenDevice) -> bool:
        """Attach the rings, reach the target VP and start the device; False if the guest's terms do not allow it."""
        slot = self._slots[action.channel_id]
        gpns = action.ring.gpns
        scattered = sum(1 for before, after in pairwise(gpns) if after != before + 1)
        if self._scattered + scattered > MAX_SCATTERED_PAGES:
            self._warn("refused_open", f"channel {action.channel_id}: rings in {scattered + 1} pieces")
            return False
        try:
            rings = self._memory.flat(gpns, Access.READ_WRITE)
            if action.target_vp != INTERRUPTS_OFF:
                slot.events = self._ports.connect_events(action.target_vp, SINT, action.channel_id)
        except (GpaFault, HvError, MemoryError) as error:
            self._warn("refused_open", f"channel {action.channel_id}: {error}")
            return False
        border = action.downstream_page * PAGE_SIZE
        # The guest's outgoing ring comes first; it is our incoming one.
        slot.channel = Channel(
            outgoing=rings[border:],
            incoming=rings[:border],
            signal=slot.signal,
            shared=self._shared,
            on_packets=lambda direction, packets: self._packets(action.channel_id, direction, packets),
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
            ChannelGpadls(action.channel_id, self._state.gpadl_ranges, self._holds),
        )
        slot.scope = trio.CancelScope()
        slot.closing = False
        assert self._nursery is not None, "messages are taken only after start"
        name = f"partition {self.partition_id} {slot.offered.device.offer}"
        self._nursery.start_soon(self._serve, slot, slot.scope, name=name)
        return True

    def _packets(self, channel_id: int, direction: str, packets: list[Packet]) -> None:
        """The tap on a channel: packets as they are on the ring; what they mean is the device's to say."""
        if not self._trace.on:
            return
        event, way = ("packet_received", TO_ROOT) if direction == RECEIVED else ("packet_sent", TO_CHILD)
        for packet in packets:
            kind = _PACKET_NAMES.get(packet.type, str(packet.type))
            self._trace.emit(
                Layer.PACKET,
                event,
                self.partition_id,
                direction=way,
                channel=channel_id,
                size=len(packet.payload),
                words=f"{kind} id={packet.transaction_id:#x} flags={packet.flags}",
                transaction_id=packet.transaction_id,
            )

    async def _serve(self, slot: _Slot, scope: trio.CancelScope) -> None:
        """Run a channel's device to its end, which is the close of the channel or a fault of the guest's."""
        channel, opened = slot.channel, slot.opened
        assert channel is not None
        assert opened is not None
        with scope:
            try:
                await slot.offered.device.serve(channel, opened)
            except* (WireError, GpaFault) as faults:
                self.counters["devices_stopped"] += 1
                self._trace.warn(
                    Layer.DEVICE,
                    "device_stopped",
                    self.partition_id,
                    f"{slot.offered.device.offer}: {_first_words(faults)}",
                    channel=opened.channel_id,
                )
        slot.scope = None
        opened.gpadls.release_all()
        if slot.closing:
            self._device_ended(opened.channel_id)

    def _close_device(self, channel_id: int) -> None:
        slot = self._slots[channel_id]
        slot.closing = True
        if slot.scope is not None:
            slot.scope.cancel()
        else:
            self._device_ended(channel_id)

    def _device_ended(self, channel_id: int) -> None:
        """Drop the views, then let the state machine know."""
        self._drop_open(self._slots[channel_id])
        self._perform(self._state.channel_closed(channel_id))

    def _drop_open(self, slot: _Slot) -> None:
        if slot.channel is not None:
            slot.channel.close()
        if slot.events is not None:
            slot.events.close()
        ring, slot.ring = slot.ring, None
        slot.channel, slot.opened, slot.events, slot.closing = None, None, None, False
        self._scattered -= slot.scattered
        slot.scattered = 0
        if ring is not None:
            ring.release()

    def _retarget(self, slot: _Slot, channel_id: int, target_vp: int) -> bool:
        try:
            events = self._ports.connect_events(target_vp, SINT, channel_id)
        except HvError as error:
            self._warn("refused_modify", f"channel {channel_id} to VP {target_vp}: {error}")
            return False
        if slot.events is not None:
            slot.events.close()
        slot.events = events
        if slot.opened is not None:
            slot.opened.target_vp = target_vp
        return True

    def _gpadl_released(self, channel_id: int, gpadl_id: int) -> None:
        self._perform(self._state.gpadl_released(channel_id, gpadl_id))

    def _open_channel(self, channel_id: int) -> Channel | None:
        slot = self._slots.get(channel_id)
        return None if slot is None else slot.channel

    # -------------------------------------------------------------------------------------------------------- the end

    def _forget_gone(self) -> None:
        """Offers whose device is gone, and those that a later offer of the same device has replaced."""
        for handle in self._offered.keys() - self._state.offers.keys():
            del self._offered[handle]

    def _close_slot(self, slot: _Slot) -> None:
        if slot.port is not None:
            slot.port.close()

    def shut_down(self) -> None:
        """Give up every port, connection and view. No task of the server runs any longer."""
        for port in self._message_ports:
            port.close()
        for slot in self._slots.values():
            self._close_slot(slot)
            if slot.channel is not None:
                slot.channel.close()
            if slot.events is not None:
                slot.events.close()
        self._slots.clear()
        self._drop_message_target()


def _first_words(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


@asynccontextmanager
async def open_vmbus_server(
    ports: HostPorts,
    memory: GuestMemory,
    *,
    partition_id: int,
    trace: Trace,
    shared: bool,
    max_version: int | None = None,
) -> AsyncIterator[VmbusServer]:
    """Serve the bus to one child until the block ends; then devices are cancelled and everything is given up.

    `shared` says that the guest runs on another thread or in another process; `max_version` caps the versions. An
    exception of a device that is no fault of the guest's cancels the block and comes out of it, in an exception group.
    HvError if the message ports cannot be made.
    """
    server = VmbusServer(ports, memory, partition_id=partition_id, trace=trace, shared=shared, max_version=max_version)
    try:
        async with trio.open_nursery() as nursery:
            server.start(nursery)
            yield server
            nursery.cancel_scope.cancel()
    finally:
        server.shut_down()
