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

import functools
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, assert_never

import msgspec
import trio

from hypervisor.clock import seconds
from hypervisor.inspect import Branch, Hex, Many, counters
from hypervisor.memory import GuestMemory
from hypervisor.status import HvError, HvStatus
from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Trace
from hypervisor.wire import Guid, WireError
from vmbus.bell import Bell
from vmbus.protocol.features import Feature
from vmbus.protocol.identifiers import (
    MESSAGE_CONNECTION,
    MESSAGE_CONNECTION_MULTICLIENT,
)
from vmbus.protocol.messages import Message
from vmbus.protocol.table import Direction, decode_message, describe, event_name
from vmbus.protocol.versions import version_text
from vmbus.server import actions as act
from vmbus.server.actions import Action
from vmbus.server.channels import ServerChannel
from vmbus.server.connection import Judged, Phase
from vmbus.server.gpadls import ServerGpadl, gpadl_key, gpadl_name
from vmbus.server.limits import INBOX_MESSAGES, MAX_RESERVED_TARGETS, BusUse
from vmbus.server.offers import Device, Offer
from vmbus.server.opened import OpenedChannel
from vmbus.server.pages import usable
from vmbus.server.ports import HostPorts, MessageConnection
from vmbus.server.saved import SavedBus
from vmbus.server.saved_capture import LiveBus, capture, unrest
from vmbus.server.saved_replay import replay
from vmbus.server.slots import ChannelSlots, OfferedChannel
from vmbus.server.socket_stream import HostSocket
from vmbus.server.sockets import Accept, HostSockets, Listening, SocketListeners, random_endpoint
from vmbus.server.state import ServerState

__all__ = ["Device", "Offer", "OfferedChannel", "OpenedChannel", "VmbusServer", "open_vmbus_server"]

_MESSAGES_PER_TURN: Final = 16
_CONTACTS_KEPT: Final = 16
_FIRST_RETRY, _LAST_RETRY = 0.001, 0.016
"""Seconds between attempts to post when the guest's port is full."""


class _Contacted(msgspec.Struct, frozen=True):
    """A contact that the guest made."""

    number: int
    time: int
    judged: Judged

    def inspect(self) -> Branch:
        """What came of it."""
        judged = self.judged
        return Branch(
            {
                "time": seconds(self.time),
                "asked": version_text(judged.asked),
                "accepted": judged.accepted,
                "why": judged.why,
            }
        )


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
        device_names: Callable[[Offer], str] = lambda offer: "",
        listeners: SocketListeners | None = None,
        new_endpoint: Callable[[], Guid] = random_endpoint,
    ) -> None:
        self.partition_id = partition_id
        self.counters: Counter[str] = Counter()
        """messages_in, messages_out, messages_lost, inbox_overflows, faults, devices_stopped, and faults by event."""
        self._ports = ports
        self._memory = memory
        self._trace = trace
        self._state = ServerState(max_version=max_version, usable=functools.partial(usable, memory))
        self._inbox: deque[tuple[bool, bytes]] = deque()
        self._outbox: deque[tuple[Message, bytes]] = deque()
        self._todo: deque[Action] = deque()
        self._performing = False
        self._replaying = False
        self._unread: tuple[bytes, str] | None = None
        """A message of the guest's that has no event yet, since it cannot be read, and why."""
        self._bell = Bell()
        self._try_again = Bell()
        self._phase_changed = trio.Event()
        self._messages: MessageConnection | None = None
        self._reserved: dict[tuple[int, int], MessageConnection] = {}
        """Targets of reserved channels by VP and SINT, the one used last at the end."""
        self._offered: dict[int, OfferedChannel] = {}
        self._slots = ChannelSlots(
            ports,
            memory,
            partition_id=partition_id,
            trace=trace,
            shared=shared,
            counters=self.counters,
            gpadl_ranges=self._state.gpadl_ranges,
            gpadl_released=self._gpadl_released,
            opened=self._device_opened,
            ended=self._device_ended,
            offer=self._offer,
            withdraw=self._withdraw,
            device_names=device_names,
        )
        self.sockets = HostSockets(
            self._state,
            trace=trace,
            partition_id=partition_id,
            counters=self.counters,
            listeners=SocketListeners() if listeners is None else listeners,
            offer=self.offer,
            withdraw=self._withdraw,
            answer=self._connect_answered,
            new_endpoint=new_endpoint,
        )
        """Hyper-V sockets between this guest and the host."""
        self._target = (0, 0)
        """VP and SINT that take messages, while somebody does."""
        self._contacts: list[_Contacted] = []
        """The last of them."""
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

    def try_again(self) -> bool:
        """If messages wait for room in the guest's port, try now, not when it is time to. Says whether any do."""
        if self._outbox:
            self._try_again.ring()
        return bool(self._outbox)

    @property
    def channels(self) -> Mapping[int, ServerChannel]:
        """Channels that have an ID, by ID; for looking at only."""
        return self._state.channels

    @property
    def offered(self) -> list[OfferedChannel]:
        """All devices that are on the bus now, their subchannels too; those that were withdrawn are not."""
        records = self._state.offers
        return [
            offered
            for offered in self._offered.values()
            if (record := records.get(offered.handle)) is not None and not record.rescinded
        ]

    def use(self) -> BusUse:
        """What the guest has taken now, and how often it was at a limit."""
        return BusUse(
            channels=len(self._state.channels),
            gpadls=len(self._state.gpadls),
            gpadl_words=self._state.gpadls.words,
            scattered_pages=self._slots.scattered,
            messages_waiting=len(self._inbox),
            messages_unsent=len(self._outbox),
            gpadls_over_limit=self.counters["gpadl_limit"],
            opens_over_limit=self.counters["ring_limit"],
            messages_dropped=self.counters["inbox_overflows"],
            sockets=len(self.sockets.live),
            sockets_refused=self.counters["sockets_refused"],
        )

    def inspect(self) -> Branch:
        """The connection, how it came about, and everything that hangs on it."""
        state = self._state
        version, target = state.version, self._target
        return Branch(
            {
                "state": state.phase.value,
                "version": None if version is None else version_text(version),
                "highest_version": version_text(state.max_version),
                "features": Feature(state.features).name if state.features else "none",
                "target_vp": None if self._messages is None else target[0],
                "target_sint": None if self._messages is None else target[1],
                "offers": len(self._offered),
                "offers_requested": state.offers_sent,
                "paused": state.paused,
                "interrupt_page": Hex(state.pages.interrupt),
                "monitor_page_to_child": Hex(state.pages.to_child),
                "monitor_page_to_root": Hex(state.pages.to_root),
                "contacts": lambda: Branch({str(told.number): told.inspect() for told in self._contacts}),
                "limits": lambda: self.use().inspect(),
                "counters": lambda: counters(self.counters),
                "channels": Many(state.channels, int, show=self._inspect_channel),
                "gpadls": Many(state.gpadls.by_key, gpadl_key, name=gpadl_name, show=self._inspect_gpadl),
            }
        )

    def _inspect_channel(self, record: ServerChannel) -> Branch:
        """One that has an ID."""
        return Branch(record.inspect() | self._slots.inspect(record.channel_id))

    def _inspect_gpadl(self, gpadl: ServerGpadl) -> Branch:
        holds, key = self._slots.holds, (gpadl.channel_id, gpadl.gpadl_id)
        kind = "ring" if self._slots.is_ring(*key) else "data"
        holders = {"kind": kind, "views": holds.count(*key), "wanted_back": holds.wanted_back(*key)}
        return Branch({**holders, **gpadl.inspect().children})

    def offer(self, device: Device) -> OfferedChannel:
        """Put a device on the bus, now or hot. ValueError for one that is there already."""
        return self._offer(device, device.offer)

    def _offer(self, device: Device, offer: Offer) -> OfferedChannel:
        handle, actions = self._state.offer(offer)
        offered = OfferedChannel(device, offer, handle, self._state.offers.get, self._slots.channel)
        self._offered[handle] = offered
        self._perform(actions)
        return offered

    def listen(self, service: Guid, accept: Accept) -> Listening:
        """Take what the guest connects to a service, until the result is closed. ValueError for one that is taken."""
        return self.sockets.listeners.listen(service, accept)

    async def connect(self, service: Guid) -> HostSocket:
        """A stream to a service that the guest listens on. Raises `SocketRefused`."""
        return await self.sockets.connect(service)

    def rescind(self, offered: OfferedChannel) -> None:
        """Take a device off the bus, its subchannels first. KeyError for one that is not there any longer."""
        self._perform(self._state.rescind(offered.handle))
        self._forget_gone()

    async def wait_stopped(self, device: Device) -> None:
        """Until no channel is open to this device: its tasks have ended and its views of guest pages are gone."""
        await self._slots.wait_stopped(device)

    def _withdraw(self, offered: OfferedChannel) -> None:
        """Rescind what may be gone: a subchannel with its primary, or a socket with its guest."""
        record = self._state.offers.get(offered.handle)
        if record is not None and not record.rescinded:
            self.rescind(offered)
        else:
            self._forget_gone()

    async def reset(self) -> None:
        """The machine was reset: forget the guest, keep the offers of primary channels. Returns when no device runs."""
        self._inbox.clear()
        self._drop_reserved_targets()
        self.sockets.end_all("its guest was reset")
        self._perform(self._state.reset())
        await self.wait_phase(Phase.DISCONNECTED)

    async def wait_phase(self, phase: Phase) -> None:
        """Until the connection is in this state."""
        while self._state.phase is not phase:
            await self._phase_changed.wait()
        await trio.lowlevel.checkpoint()

    # ---------------------------------------------------------------------------------------------- saved and restored

    def unrest(self) -> str:
        """What the host is still busy with while the guest stands still; empty once `save` can be called."""
        return self.sockets.unrest() or unrest(self._live)

    def save(self) -> SavedBus:
        """The bus as records; it goes on as it is. Raises `CannotSave`."""
        return capture(self._live)

    def restore(self, saved: SavedBus) -> None:
        """Bring a bus without a guest, its devices offered, to where another one was saved. Raises `CannotRestore`.

        Memory has to be there already. After a failure the bus is of no use any more.
        """
        replay(self, self._live, self._perform, saved)

    @property
    def _live(self) -> LiveBus:
        return LiveBus(self._state, self._slots, self._inbox, self._outbox)

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """The guest has heard all that is said meanwhile."""
        self._replaying = True
        try:
            yield
        finally:
            self._replaying = False

    def queue_saved(self, outbox: Sequence[Message], inbox: Sequence[tuple[bool, bytes]]) -> None:
        """What the guest has not heard, and what it has said since; taken up when the bus next runs."""
        self._outbox.extend((message, message.encode()) for message in outbox)
        self._inbox.extend(inbox)
        self._bell.ring()

    # ------------------------------------------------------------------------------------------------- guest to host

    def start(self, nursery: trio.Nursery) -> None:
        """Begin to take messages. Devices run in this nursery too."""
        self._slots.start(nursery)
        self.sockets.start(nursery)
        nursery.start_soon(self._run, name=f"partition {self.partition_id} vmbus")

    def _arrived(self, untrusted: bytes, *, multiclient: bool) -> None:
        """In the root's interrupt: note and wake."""
        if len(self._inbox) >= INBOX_MESSAGES:
            self.counters["inbox_overflows"] += 1
            words = "too many channel messages wait"
            self._warn("message_overflow", words, direction=TO_ROOT, size=len(untrusted), data=untrusted)
            return
        self._inbox.append((multiclient, untrusted))
        self._bell.ring()

    async def _run(self) -> None:
        while True:
            await self._bell.wait()
            retry, turn = _FIRST_RETRY, 0
            while True:
                if not self._flush():
                    with trio.move_on_after(retry):
                        await self._try_again.wait()
                    retry = min(2 * retry, _LAST_RETRY)
                    continue
                retry = _FIRST_RETRY
                if not self._inbox or self.sockets.busy:
                    break  # a message, or an answer to one of the guest's requests, rings
                self._receive(*self._inbox.popleft())
                turn += 1
                if turn % _MESSAGES_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()

    def _receive(self, multiclient: bool, untrusted: bytes) -> None:
        self.counters["messages_in"] += 1
        if self._trace.on:
            try:
                message = decode_message(
                    untrusted, sender=Direction.TO_ROOT, version=self._state.version, features=self._state.features
                )
            except WireError as error:
                self._unread = untrusted, str(error)
            else:
                self._emit(message, untrusted, TO_ROOT)
        self._perform(self._state.handle(untrusted, multiclient=multiclient))
        if self._unread is not None:  # the state machine does not mind it
            _, words = self._unread
            self._trace.emit(Layer.CONTROL, "ignored_message", self.partition_id, words=words, **self._take_unread())

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
                self._posted(message, data)
            else:
                self._lose(message, status.name)
        return True

    def _posted(self, message: Message, data: bytes) -> None:
        self.counters["messages_out"] += 1
        if self._trace.on:
            self._emit(message, data, TO_CHILD)

    def _lose(self, message: Message, why: str) -> None:
        self.counters["messages_lost"] += 1
        self._warn("message_lost", f"{describe(message)}: {why}")

    def _emit(self, message: Message, data: bytes, direction: str) -> None:
        self._trace.emit(
            Layer.CONTROL,
            event_name(message),
            self.partition_id,
            direction=direction,
            channel=getattr(message, "channel_id", None),
            size=len(data),
            words=describe(message),
            data=data,
        )

    def _warn(self, event: str, words: str, **more: Any) -> None:
        self._trace.warn(Layer.CONTROL, event, self.partition_id, words, **more)

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
        if self._state.judged:
            self._note_contacts()
        if self._outbox and not self._flush():
            self._bell.ring()

    def _note_contacts(self) -> None:
        """Keep what came of the guest's contacts; a guest may make them for ever."""
        judged, self._state.judged = self._state.judged, []
        for one in judged:
            self.counters["contacts"] += 1
            self._contacts.append(_Contacted(self.counters["contacts"], self._trace.clock(), one))
        del self._contacts[:-_CONTACTS_KEPT]

    def _carry_out(self, action: Action) -> None:
        match action:
            case act.SendMessage(message):
                if not self._replaying:
                    self._outbox.append((message, message.encode()))
            case act.SendReserved(message, vp, sint):
                self._send_reserved(message, vp, sint)
            case act.SetMessageTarget(vp, sint, or_first):
                self._set_message_target(vp, sint)
                if or_first and vp and self._messages is None:
                    self._set_message_target(0, sint)
            case act.DropMessageTarget():
                self._drop_message_target()
            case act.UsePages(pages):
                self._slots.use_pages(pages)
            case act.CreateChannel(channel_id, handle):
                self._slots.create(channel_id, self._offered[handle])
            case act.DropChannel(channel_id):
                offered = self._slots.close(channel_id)
                self.sockets.released(offered.device)
                self._forget_gone()
            case act.OpenDevice():
                opened = self._slots.open_device(action)
                if opened is not None:
                    self._device_opened(action.channel_id, opened)
            case act.StopOpening(channel_id):
                self._slots.stop_opening(channel_id)
            case act.RetargetChannel(channel_id, target_vp):
                ok = self._slots.retarget(channel_id, target_vp)
                self._perform(self._state.channel_modified(channel_id, target_vp, ok))
            case act.CloseDevice(channel_id):
                self._slots.close_device(channel_id)
            case act.MapGpadl(channel_id, gpadl_id, ranges):
                ok = all(self._memory.source(gpn) is not None for part in ranges for gpn in part.gpns)
                self._perform(self._state.gpadl_mapped(channel_id, gpadl_id, ok))
            case act.ReleaseGpadl(channel_id, gpadl_id):
                self._slots.ask_back(channel_id, gpadl_id)
            case act.ConnectSocket(number, endpoint, service):
                self.sockets.connect_from_guest(number, endpoint, service)
            case act.StateChanged(channel_id, before, after):
                self._state_changed(channel_id, before, after)
            case act.ProtocolFault(event, words):
                self.counters["faults"] += 1
                self.counters[event] += 1
                self._warn(event, words, **self._take_unread())
            case _:
                assert_never(action)

    def _state_changed(self, channel_id: int | None, before: str, after: str) -> None:
        if channel_id is None:
            self._phase_changed.set()
            self._phase_changed = trio.Event()
            self._trace.versions[self.partition_id] = self._state.version or 0
            if before == Phase.CONNECTED.value:
                self.sockets.end_all("its guest left the bus")
        if self._trace.on:
            event = "vmbus_connection" if channel_id is None else "vmbus_channel"
            words = f"{before} -> {after}"
            self._trace.emit(Layer.STATE, event, self.partition_id, channel=channel_id, words=words)

    def _take_unread(self) -> dict[str, Any]:
        """What an event says of a message that could not be read; nothing where there is none."""
        unread, self._unread = self._unread, None
        return {} if unread is None else {"direction": TO_ROOT, "size": len(unread[0]), "data": unread[0]}

    def _set_message_target(self, vp: int, sint: int) -> None:
        self._drop_message_target()
        try:
            self._messages = self._ports.connect_messages(vp, sint)
            self._target = vp, sint
        except HvError as error:
            self._warn("no_message_target", f"VP {vp} SINT {sint}: {error}")

    def _send_reserved(self, message: Message, vp: int, sint: int) -> None:
        """Past the queue, the pause and the connection: what a reserved channel has to say may be all that works."""
        key = vp, sint
        target = self._reserved.pop(key, None)
        try:
            if target is None:
                target = self._ports.connect_messages(vp, sint)
        except HvError as error:
            self._lose(message, f"VP {vp} SINT {sint}: {error}")
            return
        self._reserved[key] = target
        if len(self._reserved) > MAX_RESERVED_TARGETS:
            self._reserved.pop(next(iter(self._reserved))).close()
        data = message.encode()
        status = target.post(data)
        if status == HvStatus.SUCCESS:
            self._posted(message, data)
        else:
            self._lose(message, status.name)

    def _drop_message_target(self) -> None:
        """Whatever is still in the queue was for a guest that is gone."""
        self._outbox.clear()
        if self._messages is not None:
            self._messages.close()
            self._messages = None

    def _drop_reserved_targets(self) -> None:
        while self._reserved:
            self._reserved.popitem()[1].close()

    def _connect_answered(self, number: int, refused: bool) -> None:
        self._perform(self._state.connect_answered(number, refused=refused))
        self._bell.ring()

    def _device_opened(self, channel_id: int, ok: bool) -> None:
        self._perform(self._state.channel_opened(channel_id, ok))

    def _gpadl_released(self, channel_id: int, gpadl_id: int) -> None:
        self._perform(self._state.gpadl_released(channel_id, gpadl_id))

    def _device_ended(self, channel_id: int) -> None:
        self._perform(self._state.channel_closed(channel_id))

    # -------------------------------------------------------------------------------------------------------- the end

    def _forget_gone(self) -> None:
        """Offers whose device is gone, and those that a later offer of the same device has replaced."""
        offers = self._state.offers
        if len(self._offered) > len(offers):
            for handle in self._offered.keys() - offers.keys():
                del self._offered[handle]

    def shut_down(self) -> None:
        """Give up every port, connection and view. No task of the server runs any longer."""
        for port in self._message_ports:
            port.close()
        self._trace.versions.pop(self.partition_id, None)
        self.sockets.end_all("its VM is off")
        self._slots.shut_down()
        self._drop_message_target()
        self._drop_reserved_targets()


@asynccontextmanager
async def open_vmbus_server(
    ports: HostPorts,
    memory: GuestMemory,
    *,
    partition_id: int,
    trace: Trace,
    shared: bool,
    max_version: int | None = None,
    device_names: Callable[[Offer], str] = lambda offer: "",
    listeners: SocketListeners | None = None,
    new_endpoint: Callable[[], Guid] = random_endpoint,
) -> AsyncIterator[VmbusServer]:
    """Serve the bus to one child until the block ends; then devices are cancelled and everything is given up.

    `shared` says that the guest runs on another thread or in another process; `max_version` caps the versions;
    `device_names` is what traces call what is offered; `listeners` are those in the host who take the guest's sockets,
    and `new_endpoint` makes the endpoints of the host's own. An exception of a device that is no fault of the guest's
    cancels the block and comes out of it, in an exception group. HvError if the message ports cannot be made.
    """
    server = VmbusServer(
        ports,
        memory,
        partition_id=partition_id,
        trace=trace,
        shared=shared,
        max_version=max_version,
        device_names=device_names,
        listeners=listeners,
        new_endpoint=new_endpoint,
    )
    try:
        async with trio.open_nursery() as nursery:
            server.start(nursery)
            yield server
            nursery.cancel_scope.cancel()
    finally:
        server.shut_down()
