"""The real server against the real client: state against state, and service against service over one memory."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hypervisor.blocks import MemoryBlock
from hypervisor.memory import GuestMemory
from hypervisor.pages import PAGE_SIZE, Access
from hypervisor.status import HvStatus
from hypervisor.trace import Trace
from hypervisor.wire import Guid
from tests.doubles.guest_platform import FakePlatform
from tests.doubles.vmbus_guest import scsi
from vmbus.channel import Channel
from vmbus.client import state as c
from vmbus.client.service import VmbusClient, VmbusError, open_vmbus_client
from vmbus.client.state import ChannelPhase, ClientState, Output, Phase
from vmbus.gpadl import page_range
from vmbus.protocol import IMPLEMENTED, Feature, Version
from vmbus.ring import Packet, PacketType, RingError
from vmbus.server import actions as act
from vmbus.server.actions import Action
from vmbus.server.connection import Phase as ServerPhase
from vmbus.server.offers import Device, Offer
from vmbus.server.opened import OpenedChannel
from vmbus.server.service import VmbusServer, open_vmbus_server
from vmbus.server.state import ServerState

RING = 4 * PAGE_SIZE
PAGES = 512

# ------------------------------------------------------------------------------------------------ state against state


class Wire:
    """Two state machines and the messages between them, each way a queue that a test empties when it likes."""

    def __init__(self, *, versions: tuple[int, ...] = IMPLEMENTED, max_version: int | None = None, **client: object):
        self.client = ClientState(versions, **client)  # type: ignore[arg-type]
        self.server = ServerState(max_version=max_version)
        self.to_server: deque[tuple[int, bytes]] = deque()
        self.to_client: deque[bytes] = deque()
        self.devices: deque[Action] = deque()
        """What devices have been asked to do and have not done yet."""
        self.events: list[Output] = []
        self.faults: list[act.ProtocolFault] = []

    def guest(self, outputs: list[Output]) -> None:
        for output in outputs:
            if isinstance(output, c.Post):
                self.to_server.append((output.connection_id, output.payload))
            else:
                self.events.append(output)

    def host(self, actions: list[Action]) -> None:
        todo = deque(actions)
        while todo:
            action = todo.popleft()
            match action:
                case act.SendMessage(message):
                    self.to_client.append(message.encode())
                case act.DropMessageTarget():
                    self.to_client.clear()
                case act.OpenDevice() | act.CloseDevice():
                    self.devices.append(action)
                case act.MapGpadl(channel_id, gpadl_id, _):
                    todo += self.server.gpadl_mapped(channel_id, gpadl_id, True)
                case act.ReleaseGpadl(channel_id, gpadl_id):
                    todo += self.server.gpadl_released(channel_id, gpadl_id)
                case act.ProtocolFault():
                    self.faults.append(action)
                case _:
                    pass

    def step_server(self) -> None:
        connection, payload = self.to_server.popleft()
        self.host(self.server.handle(payload, multiclient=connection == 4))

    def step_client(self) -> None:
        self.guest(self.client.receive(self.to_client.popleft()))

    def step_device(self) -> None:
        match self.devices.popleft():
            case act.OpenDevice() as action:
                self.host(self.server.channel_opened(action.channel_id, True))
            case act.CloseDevice(channel_id):
                self.host(self.server.channel_closed(channel_id))

    def settle(self) -> None:
        while self.to_server or self.to_client or self.devices:
            if self.devices:
                self.step_device()
            if self.to_server:
                self.step_server()
            if self.to_client:
                self.step_client()

    def offer(self, number: int = 1) -> int:
        handle, actions = self.server.offer(scsi(number))
        self.host(actions)
        return handle


@pytest.mark.parametrize("most", IMPLEMENTED, ids=lambda version: f"{version >> 16}.{version & 0xFFFF}")
def test_every_version(most: int) -> None:
    """A host capped at any version and a guest that speaks all agree on it; then all of a channel's life works."""
    wire = Wire(max_version=most, features=Feature.GUEST_SPECIFIED_SIGNAL_PARAMETERS)
    wire.offer()
    wire.guest(wire.client.connect())
    wire.settle()
    assert wire.client.version == wire.server.version == most
    assert wire.client.features == wire.server.features
    (offer,) = wire.client.offers
    gpadl_id, outputs = wire.client.create_gpadl(offer.channel_id, [page_range(range(100))])
    wire.guest(outputs)
    wire.settle()
    wire.guest(wire.client.open(offer.channel_id, gpadl_id, downstream_page=50, user_data=b"u", target_vp=0))
    wire.settle()
    assert wire.client.channel_phase(offer.channel_id) is ChannelPhase.OPEN
    wire.guest(wire.client.close(offer.channel_id))
    wire.settle()
    assert wire.events[-1] == c.GpadlGone(gpadl_id)
    wire.guest(wire.client.unload())
    wire.settle()
    assert wire.events[-1] == c.Unloaded()
    assert wire.server.phase is ServerPhase.DISCONNECTED
    assert [fault.event for fault in wire.faults if fault.event != "refused_contact"] == []
    assert wire.client.ignored.total() == 0


class Both(RuleBasedStateMachine):
    """Any wishes of host and guest, with messages delayed at will each way.

    However they cross, neither side ever says what the other must call a fault, and when all is delivered both hold the
    same picture.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wire = Wire(versions=(Version.V5_3,))
        self.handles: dict[int, int] = {}

        for number in (1, 2):
            self.handles[number] = self.wire.offer(number)
        self.wire.guest(self.wire.client.connect())
        self.wire.settle()

    @property
    def client(self) -> ClientState:
        return self.wire.client

    @rule()
    def settle(self) -> None:
        self.wire.settle()

    def open_gpadls(self) -> list[int]:
        return list(self.client._gpadls)

    @rule(number=st.integers(1, 3))
    def offer(self, number: int) -> None:
        if number not in self.handles:
            self.handles[number] = self.wire.offer(number)

    @rule(number=st.integers(1, 12))
    def rescind(self, number: int) -> None:
        if number in self.handles:
            self.wire.host(self.wire.server.rescind(self.handles.pop(number)))

    @precondition(lambda self: self.client.phase is Phase.DISCONNECTED)
    @rule()
    def connect(self) -> None:
        self.wire.guest(self.client.connect())

    @precondition(lambda self: self.client.phase is Phase.CONNECTED)
    @rule(really=st.integers(0, 9))
    def unload(self, really: int) -> None:
        if really == 9:
            self.wire.guest(self.client.unload())

    @precondition(lambda self: self.client.phase is Phase.CONNECTED and self.client.offers)
    @rule(data=st.data(), pages=st.sampled_from([8, 40]))
    def open(self, data: st.DataObject, pages: int) -> None:
        offer = data.draw(st.sampled_from(self.client.offers))
        ready = [
            gpadl_id
            for gpadl_id, gpadl in self.client._gpadls.items()
            if gpadl.channel_id == offer.channel_id and gpadl.phase is c.GpadlPhase.CREATED
        ]
        if ready and self.client.channel_phase(offer.channel_id) is ChannelPhase.CLOSED:
            self.wire.guest(self.client.open(offer.channel_id, ready[0], downstream_page=4, user_data=b"", target_vp=0))
        elif len(self.open_gpadls()) < 4:
            self.wire.guest(self.client.create_gpadl(offer.channel_id, [page_range(range(pages))])[1])

    @precondition(lambda self: self.client.phase is Phase.CONNECTED and self.client.offers)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        offer = data.draw(st.sampled_from(self.client.offers))
        self.wire.guest(self.client.close(offer.channel_id))

    @precondition(lambda self: self.client.phase is Phase.CONNECTED)
    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        used = {
            channel.ring_gpadl for channel in self.client._channels.values() if channel.phase is not ChannelPhase.CLOSED
        }
        free = [gpadl_id for gpadl_id in self.open_gpadls() if gpadl_id not in used]
        if free:
            self.wire.guest(self.client.teardown_gpadl(data.draw(st.sampled_from(free))))

    @precondition(lambda self: self.wire.to_server)
    @rule(count=st.integers(1, 3))
    def deliver_to_server(self, count: int) -> None:
        for _ in range(min(count, len(self.wire.to_server))):
            self.wire.step_server()

    @precondition(lambda self: self.wire.to_client)
    @rule(count=st.integers(1, 3))
    def deliver_to_client(self, count: int) -> None:
        for _ in range(min(count, len(self.wire.to_client))):
            self.wire.step_client()

    @precondition(lambda self: self.wire.devices)
    @rule()
    def device_acts(self) -> None:
        self.wire.step_device()

    @invariant()
    def no_faults(self) -> None:
        assert self.wire.faults == []

    def teardown(self) -> None:
        self.wire.settle()
        assert self.wire.faults == []
        server = self.wire.server
        if self.client.phase is Phase.CONNECTED:
            assert server.phase is ServerPhase.CONNECTED
            known = {channel_id for channel_id, channel in server.channels.items() if channel.known_to_guest}
            assert {offer.channel_id for offer in self.client.offers} == known
            assert len(known) == len(self.handles)
        else:
            assert self.client.phase is Phase.DISCONNECTED
            assert server.phase is ServerPhase.DISCONNECTED


TestBoth = Both.TestCase
TestBoth.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


# -------------------------------------------------------------------------------------------- service against service


@attrs.define(eq=False)
class Closable:
    undo: Callable[[], object]

    def close(self) -> None:
        self.undo()


@attrs.define(eq=False)
class ToGuest(Closable):
    deliver: Callable[[], HvStatus]

    def signal(self) -> HvStatus:
        return self.deliver()


@attrs.define(eq=False)
class Messages(Closable):
    deliver: Callable[[bytes], HvStatus]

    def post(self, payload: bytes) -> HvStatus:
        return self.deliver(payload)


class Loop:
    """A `HostPorts` and a `FakePlatform` back to back: what one posts or signals the other's handler takes at once."""

    def __init__(self) -> None:
        self.block = MemoryBlock.allocate(PAGES * PAGE_SIZE, "pair")
        self.memory = GuestMemory()
        self.memory.map_block(0, self.block, 0, PAGES, Access.ALL)
        self.platform = FakePlatform(memory=self.block.view, post=self.post, signal=self.signal)
        self.message_handlers: dict[int, Callable[[bytes], None]] = {}
        self.event_handlers: dict[int, Callable[[], None]] = {}
        self.busy = 0
        self.signals = 0

    def post(self, connection_id: int, payload: bytes) -> HvStatus:
        handler = self.message_handlers.get(connection_id)
        if handler is None:
            return HvStatus.INVALID_CONNECTION_ID
        if self.busy:
            self.busy -= 1
            return HvStatus.INSUFFICIENT_BUFFERS
        handler(payload)
        return HvStatus.SUCCESS

    def signal(self, connection_id: int) -> HvStatus:
        handler = self.event_handlers.get(connection_id)
        if handler is None:
            return HvStatus.INVALID_CONNECTION_ID
        self.signals += 1
        handler()
        return HvStatus.SUCCESS

    def receive_messages(self, connection_id: int, handler: Callable[[bytes], None]) -> Closable:
        self.message_handlers[connection_id] = handler
        return Closable(lambda: self.message_handlers.pop(connection_id))

    def receive_events(self, connection_id: int, handler: Callable[[], None]) -> Closable:
        self.event_handlers[connection_id] = handler
        return Closable(lambda: self.event_handlers.pop(connection_id))

    def connect_messages(self, vp: int, sint: int) -> Messages:
        def deliver(payload: bytes) -> HvStatus:
            if self.platform.message_handler is not None:
                self.platform.message_handler(payload)
            return HvStatus.SUCCESS

        return Messages(lambda: None, deliver)

    def connect_events(self, vp: int, sint: int, flag: int) -> ToGuest:
        def deliver() -> HvStatus:
            handler = self.platform.event_handlers.get(flag)
            if handler is not None:
                handler()
            return HvStatus.SUCCESS

        return ToGuest(lambda: None, deliver)


class Echo:
    """A device that answers each packet that asks for a completion with its own payload."""

    def __init__(self, number: int = 1) -> None:
        self.offer = Offer(Guid(b"e" * 16), Guid(bytes([number]) * 16), name="echo")
        self.user_data: list[bytes] = []
        self.ended = 0

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        self.user_data.append(opened.user_data)
        try:
            while True:
                batch = await channel.receive_batch()
                await channel.send_batch(
                    [Packet(PacketType.COMPLETION, 0, packet.transaction_id, 0, packet.payload) for packet in batch]
                )
        finally:
            self.ended += 1


@asynccontextmanager
async def running(*devices: Device) -> AsyncIterator[tuple[Loop, VmbusServer, VmbusClient]]:
    loop = Loop()
    trace = Trace(lambda: 0)
    async with open_vmbus_server(loop, loop.memory, partition_id=2, trace=trace, shared=False) as server:
        for device in devices:
            server.offer(device)
        async with open_vmbus_client(loop.platform) as client:
            await client.wait_offers_delivered()
            yield loop, server, client
    assert loop.message_handlers == {}
    assert loop.event_handlers == {}
    assert loop.platform.rings == {}


def questions(count: int, size: int = 24) -> list[Packet]:
    return [Packet(PacketType.INBAND, 1, number, 0, bytes([number & 0xFF]) * size) for number in range(1, count + 1)]


async def ask(channel: Channel, sent: list[Packet]) -> None:
    """Send them, and check that each comes back once and in order."""
    got: list[Packet] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.send_batch, sent)
        while len(got) < len(sent):
            got += await channel.receive_batch()
    assert [(packet.transaction_id, packet.payload) for packet in got] == [
        (packet.transaction_id, packet.payload) for packet in sent
    ]


async def test_packets_there_and_back() -> None:
    """From a driver's open through many ring lengths of packets to its close, in guest memory both sides can see."""
    echo = Echo()
    async with running(echo) as (loop, _, client):
        assert client.version == "6.0"
        (offer,) = client.offers
        channel = await client.open(offer, outgoing_bytes=RING, incoming_bytes=2 * RING, user_data=b"who")
        await ask(channel, questions(2000))
        assert echo.user_data == [b"who".ljust(120, b"\0")]
        assert loop.signals < 500
        await client.close(channel)
        assert echo.ended == 1
        assert loop.platform.rings == {}
        channel = await client.open(offer, outgoing_bytes=RING, incoming_bytes=RING)
        await ask(channel, questions(10))
        await client.close(channel)


async def test_several_channels_at_once() -> None:
    """Channels do not disturb one another."""
    async with running(*(Echo(number) for number in range(1, 5))) as (_, _, client):
        channels = [await client.open(offer, outgoing_bytes=RING, incoming_bytes=RING) for offer in client.offers]
        async with trio.open_nursery() as nursery:
            for channel in channels:
                nursery.start_soon(ask, channel, questions(300, size=104))
        for channel in channels:
            await client.close(channel)


async def test_server_short_of_buffers(autojump_clock: trio.testing.MockClock) -> None:
    """Refused posts are made again and nothing is lost or reordered."""
    async with running(Echo()) as (loop, _, client):
        loop.busy = 7
        channel = await client.open(client.offers[0], outgoing_bytes=40 * PAGE_SIZE, incoming_bytes=40 * PAGE_SIZE)
        await ask(channel, questions(5))
        await client.close(channel)
        assert loop.busy == 0


async def test_hot_offer_and_rescind() -> None:
    """A device that comes and goes while its channel is in use."""
    echo = Echo()
    async with running() as (loop, server, client):
        offered = server.offer(echo)
        offer = await client.next_offer()
        channel = await client.open(offer, outgoing_bytes=RING, incoming_bytes=RING)
        await ask(channel, questions(5))
        async with trio.open_nursery() as nursery:

            async def ends() -> None:
                with pytest.raises(trio.EndOfChannel):
                    await channel.receive_batch()

            nursery.start_soon(ends)
            await trio.testing.wait_all_tasks_blocked()
            server.rescind(offered)
        await trio.testing.wait_all_tasks_blocked()
        assert client.offers == []
        assert echo.ended == 1
        assert loop.platform.rings == {}
        server.offer(echo)
        assert (await client.next_offer()).channel_id == offer.channel_id


async def test_unload_with_open_channels_and_reconnect() -> None:
    """UNLOAD closes what is open on the host too; a second connection finds everything as at first."""
    echo = Echo()
    async with running(echo) as (loop, _, client):
        for _ in range(2):
            channel = await client.open(client.offers[0], outgoing_bytes=RING, incoming_bytes=RING)
            await ask(channel, questions(5))
            await client.unload()
            assert channel.closed
            assert loop.platform.rings == {}
            await client.connect()
            await client.wait_offers_delivered()
        assert echo.ended == 2


async def test_guest_that_breaks_its_ring() -> None:
    """A corrupt ring stops its device and nothing else: the guest may close and open again."""
    echo, other = Echo(1), Echo(2)
    async with running(echo, other) as (_, server, client):
        channel, unharmed = [
            await client.open(offer, outgoing_bytes=RING, incoming_bytes=RING) for offer in client.offers
        ]
        await ask(channel, questions(1))
        channel._writer._control[0] = 12345
        channel._send_signal()
        await trio.testing.wait_all_tasks_blocked()
        assert echo.ended == 1
        assert server.counters["devices_stopped"] == 1
        await ask(unharmed, questions(10))
        await client.close(channel)
        channel = await client.open(client.offers[0], outgoing_bytes=RING, incoming_bytes=RING)
        await ask(channel, questions(10))
        await client.close(channel)
        await client.close(unharmed)


async def test_open_refused_by_the_real_server() -> None:
    """Pages that the guest does not have are refused, and nothing is left behind on either side."""
    async with running(Echo()) as (_, _, client):
        with pytest.raises(VmbusError):
            await client.create_gpadl(client.offers[0].channel_id, [PAGES + 1], PAGE_SIZE)


def test_ring_error_is_the_guests_fault() -> None:
    """The server tells a guest's broken ring from our own bugs by this."""
    from hypervisor.wire import WireError

    assert issubclass(RingError, WireError)
