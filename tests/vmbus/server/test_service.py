"""The service between state machine, ports, memory and devices. Rings and channels are the real ones."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing

from hypervisor.blocks import MemoryBlock
from hypervisor.memory import GuestMemory
from hypervisor.pages import PAGE_SIZE, Access
from hypervisor.trace import Layer, Level, Trace, TraceEvent
from hypervisor.wire import BadValue
from tests.doubles.vmbus_guest import scsi
from tests.doubles.vmbus_ports import FakePorts
from vmbus.channel import Channel
from vmbus.gpadl import encode_gpadl, page_range
from vmbus.protocol import messages as m
from vmbus.protocol.identifiers import INTERRUPTS_OFF
from vmbus.protocol.messages import Message
from vmbus.protocol.table import Direction, decode_message
from vmbus.protocol.versions import Version
from vmbus.ring import Packet
from vmbus.server.channels import ChannelState
from vmbus.server.connection import Phase
from vmbus.server.limits import INBOX_MESSAGES, MAX_SCATTERED_PAGES
from vmbus.server.offers import Offer
from vmbus.server.opened import GpadlHold
from vmbus.server.service import OpenedChannel, VmbusServer, open_vmbus_server

PAGES = 8192
GPADL = 0xE1E10


class EchoDevice:
    """Sends every packet back. `fault` makes it stop with that error at the first packet."""

    def __init__(self, offer: Offer, fault: BaseException | None = None) -> None:
        self.offer = offer
        self.fault = fault
        self.opened: list[OpenedChannel] = []
        self.stopped = 0
        self.linger: float = 0
        """Seconds of shielded clean-up."""

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        self.opened.append(opened)
        try:
            while True:
                packets = await channel.receive_batch()
                if self.fault is not None:
                    raise self.fault
                await channel.send_batch(packets)
        finally:
            if self.linger:
                with trio.CancelScope(shield=True):
                    await trio.sleep(self.linger)
            self.stopped += 1


@attrs.define
class Bench:
    """A server with a guest made of method calls."""

    server: VmbusServer
    ports: FakePorts
    memory: GuestMemory
    trace: Trace
    seen: list[TraceEvent]

    async def say(self, message: Message | bytes, *, connection: int = 1) -> list[Message]:
        """Post, let everybody run, and return what came back."""
        before = len(self.ports.posted)
        self.ports.message_handlers[connection](message if isinstance(message, bytes) else message.encode())
        await trio.testing.wait_all_tasks_blocked()
        return self.heard(before)

    def heard(self, since: int = 0) -> list[Message]:
        """What was posted to the guest."""
        return [
            decode_message(data, sender=Direction.TO_CHILD, version=Version.V6_0, features=0xFF)
            for data in self.ports.posted[since:]
        ]

    async def connect(self, version: int = Version.V5_3) -> None:
        await self.say(m.initiate_contact(version))
        await self.say(m.RequestOffers())

    async def gpadl(self, gpns: range = range(0x10, 0x18), gpadl_id: int = GPADL) -> Message:
        *_, answer = [said for data in encode_gpadl(1, gpadl_id, [page_range(gpns)]) for said in await self.say(data)]
        return answer

    async def open(self, *, vp: int = 0, downstream: int = 4) -> list[Message]:
        return await self.say(
            m.OpenChannel(channel_id=1, open_id=1, gpadl_id=GPADL, target_vp=vp, downstream_page=downstream)
        )

    async def gpadl_and_open(self, *, vp: int = 0) -> Channel:
        """Returns the guest's end of the channel."""
        await self.gpadl()
        assert await self.open(vp=vp) == [m.OpenChannelResult(channel_id=1, open_id=1)]
        ring = self.memory.flat(range(0x10, 0x18), Access.READ_WRITE)
        border = 4 * PAGE_SIZE
        return Channel(
            outgoing=ring[:border],
            incoming=ring[border:],
            signal=lambda: self.ports.event_handlers[0x2001](),
            shared=False,
        )

    def warned(self, event: str) -> int:
        return self.trace.warnings[7, event]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    block = MemoryBlock.allocate(PAGES * PAGE_SIZE, "guest")
    memory = GuestMemory()
    memory.map_block(0, block, 0, PAGES, Access.READ_WRITE)
    yield memory
    memory.unmap(0, PAGES)
    block.close()


@asynccontextmanager
async def bench(memory: GuestMemory, *devices: EchoDevice, tracing: bool = False) -> AsyncIterator[Bench]:
    ports, trace, seen = FakePorts(), Trace(lambda: 0), []
    if tracing:
        trace.add_sink(seen.append)
    names = {scsi().interface: "disks"}
    async with open_vmbus_server(
        ports,
        memory,
        partition_id=7,
        trace=trace,
        shared=False,
        device_names=lambda offer: names.get(offer.interface, ""),
    ) as server:
        for device in devices:
            server.offer(device)
        yield Bench(server, ports, memory, trace, seen)
    assert ports.open == []
    assert not ports.message_handlers
    assert not ports.event_handlers


async def test_both_message_connections_reach_the_same_server(memory: GuestMemory) -> None:
    """Linux posts a 5.x contact to connection 4, and everything later to the one in the answer."""
    async with bench(memory) as b:
        assert await b.say(m.initiate_contact(Version.V5_3), connection=4) == [m.VersionResponse(supported=1, detail=1)]
        assert await b.say(m.RequestOffers(), connection=1) == [m.AllOffersDelivered()]
        assert (b.server.version, b.server.phase) == (Version.V5_3, Phase.CONNECTED)


async def test_packets_go_both_ways(memory: GuestMemory) -> None:
    """Guest ring first, host ring at the downstream page; signals by connection 0x2001 and by event flag 1."""
    async with bench(memory, EchoDevice(scsi())) as b:
        await b.connect()
        channel = await b.gpadl_and_open(vp=1)
        b.ports.on_signal = lambda flag: channel.wake()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send_later() -> None:
                await trio.testing.wait_all_tasks_blocked()
                await channel.send(Packet(6, 0, 42, 0, b"hello..."))

            (echo,) = await channel.receive_batch()
        assert (echo.transaction_id, echo.payload) == (42, b"hello...")
        (events,) = b.ports.events
        assert (events.vp, events.sint, events.flag, events.signals) == (1, 2, 1, 1)
        channel.close()


async def test_the_device_gets_what_the_guest_said(memory: GuestMemory) -> None:
    device = EchoDevice(scsi())
    async with bench(memory, device) as b:
        await b.connect(Version.V5_1)
        (await b.gpadl_and_open(vp=1)).close()
        (opened,) = device.opened
        assert (opened.channel_id, opened.target_vp, opened.version) == (1, 1, Version.V5_1)
        assert opened.memory is memory


async def test_close_stops_the_device_and_open_starts_it_again(memory: GuestMemory) -> None:
    device = EchoDevice(scsi())
    async with bench(memory, device) as b:
        await b.connect()
        (await b.gpadl_and_open()).close()
        assert await b.say(m.CloseChannel(channel_id=1)) == []
        assert (len(device.opened), device.stopped) == (1, 1)
        assert b.ports.open == b.ports.messages
        assert await b.open() == [m.OpenChannelResult(channel_id=1, open_id=1)]
        assert (len(device.opened), device.stopped) == (2, 1)


async def test_the_guest_gets_its_pages_back_when_the_device_has_really_ended(
    memory: GuestMemory, autojump_clock: trio.testing.MockClock
) -> None:
    """GPADL_TORNDOWN follows the end of the device, however long that takes."""
    device = EchoDevice(scsi())
    device.linger = 5
    async with bench(memory, device) as b:
        await b.connect()
        (await b.gpadl_and_open()).close()
        before = len(b.ports.posted)
        b.ports.message_handlers[1](m.CloseChannel(channel_id=1).encode())
        b.ports.message_handlers[1](m.GpadlTeardown(channel_id=1, gpadl_id=GPADL).encode())
        await trio.sleep(4.9)
        assert b.heard(before) == []
        await trio.sleep(0.2)
        assert b.heard(before) == [m.GpadlTorndown(gpadl_id=GPADL)]


async def test_a_device_holds_a_further_gpadl_as_long_as_it_looks_at_it(memory: GuestMemory) -> None:
    device = EchoDevice(scsi())
    async with bench(memory, device) as b:
        await b.connect()
        (await b.gpadl_and_open()).close()
        await b.gpadl(range(0x40, 0x42), gpadl_id=5)
        gpadls = device.opened[0].gpadls
        assert gpadls.ranges(5) == (page_range([0x40, 0x41]),)
        hold = gpadls.hold(5)
        assert isinstance(hold, GpadlHold)
        assert await b.say(m.GpadlTeardown(channel_id=1, gpadl_id=5)) == []
        with pytest.raises(BadValue):
            gpadls.ranges(5)
        hold.release()
        hold.release()
        await trio.testing.wait_all_tasks_blocked()
        assert b.heard()[-1] == m.GpadlTorndown(gpadl_id=5)


async def test_holds_end_with_the_device(memory: GuestMemory) -> None:
    device = EchoDevice(scsi())
    async with bench(memory, device) as b:
        await b.connect()
        (await b.gpadl_and_open()).close()
        await b.gpadl(range(0x40, 0x42), gpadl_id=5)
        device.opened[0].gpadls.hold(5)
        await b.say(m.GpadlTeardown(channel_id=1, gpadl_id=5))
        assert await b.say(m.CloseChannel(channel_id=1)) == [m.GpadlTorndown(gpadl_id=5)]


async def test_a_fault_of_the_guests_stops_the_device_and_leaves_the_channel_open(memory: GuestMemory) -> None:
    """It is traced; the channel can be closed and opened again; nothing else is disturbed."""
    device = EchoDevice(scsi(), fault=BadValue("nonsense"))
    async with bench(memory, device) as b:
        await b.connect()
        channel = await b.gpadl_and_open()
        await channel.send(Packet(6, 0, 1, 0, bytes(8)))
        await trio.testing.wait_all_tasks_blocked()
        assert device.stopped == 1
        assert b.warned("device_stopped") == 1
        assert b.server.channels[1].state is ChannelState.OPEN
        await b.say(m.CloseChannel(channel_id=1))
        assert await b.open() == [m.OpenChannelResult(channel_id=1, open_id=1)]
        channel.close()


async def test_a_corrupt_ring_stops_the_device_only(memory: GuestMemory) -> None:
    device = EchoDevice(scsi())
    async with bench(memory, device) as b:
        await b.connect()
        (await b.gpadl_and_open()).close()
        memory.write(0x10 << 12, (0x7FFFFFF1).to_bytes(4, "little"))
        b.ports.event_handlers[0x2001]()
        await trio.testing.wait_all_tasks_blocked()
        assert b.warned("device_stopped") == 1
        assert await b.say(m.Unload()) == [m.UnloadComplete()]


async def test_a_bug_in_a_device_is_let_through(memory: GuestMemory) -> None:
    """It ends the bus with a traceback; it is not a guest's to cause."""
    with pytest.RaisesGroup(pytest.RaisesExc(ZeroDivisionError)):
        async with bench(memory, EchoDevice(scsi(), fault=ZeroDivisionError())) as b:
            await b.connect()
            channel = await b.gpadl_and_open()
            await channel.send(Packet(6, 0, 1, 0, bytes(8)))
            await trio.sleep_forever()


async def test_pages_outside_the_guests_memory_are_refused(memory: GuestMemory) -> None:
    async with bench(memory, EchoDevice(scsi())) as b:
        await b.connect()
        failure = m.GpadlCreated(channel_id=1, gpadl_id=GPADL, status=0x8000FFFF)
        assert await b.gpadl(range(PAGES - 4, PAGES + 4)) == failure
        assert await b.gpadl(range(2**52, 2**52 + 8)) == failure
        assert await b.gpadl(range(2**64 - 8, 2**64)) == failure
        assert await b.gpadl() == m.GpadlCreated(channel_id=1, gpadl_id=GPADL)


async def test_pages_that_went_since_fail_the_open(memory: GuestMemory) -> None:
    async with bench(memory, EchoDevice(scsi())) as b:
        await b.connect()
        await b.gpadl(range(PAGES - 8, PAGES))
        block, page, access = memory.source(PAGES - 1) or pytest.fail("mapped")
        memory.unmap(PAGES - 1, 1)
        assert await b.open() == [m.OpenChannelResult(channel_id=1, open_id=1, status=0x8000FFFF)]
        memory.map_block(PAGES - 1, block, page, 1, access)
        assert await b.open() == [m.OpenChannelResult(channel_id=1, open_id=1)]


async def test_rings_in_many_pieces_are_limited(memory: GuestMemory) -> None:
    """Each piece costs the host a mapping; a few are fine, thousands are not."""
    async with bench(memory, EchoDevice(scsi())) as b:
        await b.connect()
        for _ in range(3):  # what is closed does not count any more
            await b.gpadl(range(0, MAX_SCATTERED_PAGES, 2))
            assert await b.open() == [m.OpenChannelResult(channel_id=1, open_id=1)]
            await b.say(m.CloseChannel(channel_id=1))
            await b.say(m.GpadlTeardown(channel_id=1, gpadl_id=GPADL))
        scattered = [page * 2 % (PAGES - 1) for page in range(MAX_SCATTERED_PAGES + 2)]
        for data in encode_gpadl(1, GPADL, [page_range(scattered)]):
            await b.say(data)
        assert await b.open() == [m.OpenChannelResult(channel_id=1, open_id=1, status=0x8000FFFF)]


async def test_a_target_vp_that_is_not_there_fails_the_open(memory: GuestMemory) -> None:
    async with bench(memory, EchoDevice(scsi())) as b:
        await b.connect()
        await b.gpadl()
        assert await b.open(vp=9) == [m.OpenChannelResult(channel_id=1, open_id=1, status=0x8000FFFF)]


async def test_a_channel_without_interrupts_has_no_event_connection(memory: GuestMemory) -> None:
    async with bench(memory, EchoDevice(scsi())) as b:
        await b.connect()
        channel = await b.gpadl_and_open(vp=INTERRUPTS_OFF)
        await channel.send(Packet(6, 0, 1, 0, bytes(8)))
        await trio.testing.wait_all_tasks_blocked()
        assert len(channel.try_receive_batch()) == 1
        assert b.ports.events == []
        channel.close()


async def test_modify_moves_the_events_to_another_vp(memory: GuestMemory) -> None:
    device = EchoDevice(scsi())
    async with bench(memory, device) as b:
        await b.connect()
        (await b.gpadl_and_open()).close()
        assert await b.say(m.ModifyChannel(channel_id=1, target_vp=1)) == [m.ModifyChannelResponse(channel_id=1)]
        assert [(events.vp, events.closed) for events in b.ports.events] == [(0, True), (1, False)]
        assert device.opened[0].target_vp == 1
        (refused,) = await b.say(m.ModifyChannel(channel_id=1, target_vp=5))
        assert refused == m.ModifyChannelResponse(channel_id=1, status=0x8000FFFF)
        assert device.opened[0].target_vp == 1


async def test_a_message_target_that_is_not_there_loses_the_answer_only(memory: GuestMemory) -> None:
    async with bench(memory) as b:
        assert await b.say(m.InitiateContact(version=Version.V5_3, target_vp=99)) == []
        assert b.warned("no_message_target") == 1
        assert b.server.counters["messages_lost"] == 1
        assert await b.say(m.initiate_contact(Version.V5_3)) == [m.VersionResponse(supported=1, detail=1)]


async def test_nothing_is_heard_while_the_guest_takes_nothing(
    memory: GuestMemory, autojump_clock: trio.testing.MockClock
) -> None:
    """Answers wait in order, guest messages wait unread, and posts are tried again 1 to 16 ms apart."""
    async with bench(memory, EchoDevice(scsi())) as b:
        await b.say(m.initiate_contact(Version.V5_3))
        b.ports.room = 0
        handler = b.ports.message_handlers[1]
        handler(m.RequestOffers().encode())
        await trio.sleep(0.020)
        for data in encode_gpadl(1, GPADL, [page_range(range(8))]):
            handler(data)
        tries = b.ports.full
        await trio.sleep(1.6)
        assert 95 <= b.ports.full - tries <= 105
        assert b.server.use().gpadls == 0
        b.ports.room = 1
        await trio.sleep(0.1)
        assert [type(message) for message in b.heard(1)] == [m.OfferChannel]
        b.ports.room = 100
        await trio.sleep(0.1)
        assert b.heard(2) == [m.AllOffersDelivered(), m.GpadlCreated(channel_id=1, gpadl_id=GPADL)]


async def test_the_inbox_is_bounded(memory: GuestMemory) -> None:
    """More than 1,024 unread messages are dropped and counted."""
    async with bench(memory) as b:
        for _ in range(INBOX_MESSAGES + 5):
            b.ports.message_handlers[1](bytes(8))
        assert b.server.counters["inbox_overflows"] == 5
        assert b.warned("message_overflow") == 5
        await trio.testing.wait_all_tasks_blocked()
        assert b.server.counters["messages_in"] == INBOX_MESSAGES
        assert b.warned("malformed_message") == INBOX_MESSAGES


async def test_reset_ends_devices_and_keeps_offers(memory: GuestMemory, autojump_clock: trio.testing.MockClock) -> None:
    """It returns when no device runs; what was unread is forgotten; the next boot sees the same channel."""
    device = EchoDevice(scsi())
    device.linger = 1
    async with bench(memory, device) as b:
        await b.connect()
        (await b.gpadl_and_open()).close()
        b.ports.room = 0
        b.server.offer(EchoDevice(scsi(2)))
        b.ports.message_handlers[1](m.initiate_contact(Version.V4_0).encode())
        await b.server.reset()
        await trio.testing.wait_all_tasks_blocked()
        assert device.stopped == 1
        assert b.server.phase is Phase.DISCONNECTED
        assert b.server.use().gpadls == 0
        b.ports.room = 100
        before = len(b.ports.posted)
        await b.say(m.initiate_contact(Version.V5_3))
        await b.say(m.RequestOffers())
        assert [type(message) for message in b.heard(before)] == [
            m.VersionResponse,
            m.OfferChannel,
            m.OfferChannel,
            m.AllOffersDelivered,
        ]
        (await b.gpadl_and_open()).close()


async def test_hot_offer_and_rescind(memory: GuestMemory) -> None:
    device = EchoDevice(scsi())
    async with bench(memory) as b:
        await b.connect()
        offered = b.server.offer(device)
        assert offered.channel_id == 1
        (await b.gpadl_and_open()).close()
        assert offered.channel is not None
        b.server.rescind(offered)
        await trio.testing.wait_all_tasks_blocked()
        assert b.heard()[-1] == m.RescindChannelOffer(channel_id=1)
        assert device.stopped == 1
        assert offered.state is ChannelState.REVOKED
        await b.say(m.RelIdReleased(channel_id=1))
        assert offered.state is None
        assert 0x2001 not in b.ports.event_handlers
        with pytest.raises(KeyError):
            b.server.rescind(offered)


async def test_a_device_that_comes_back_is_the_new_one(memory: GuestMemory) -> None:
    """Offered again before the release: after it the guest opens the new device under the same ID."""
    old, new = EchoDevice(scsi()), EchoDevice(scsi())
    async with bench(memory) as b:
        await b.connect()
        b.server.rescind(b.server.offer(old))
        b.server.offer(new)
        await b.say(m.RelIdReleased(channel_id=1))
        (await b.gpadl_and_open()).close()
        assert (len(old.opened), len(new.opened)) == (0, 1)


async def test_every_message_is_traced_both_ways(memory: GuestMemory) -> None:
    """By lower-case name, with its size, its channel and its meaning in words; states and packets too."""
    async with bench(memory, EchoDevice(scsi()), tracing=True) as b:
        await b.connect()
        channel = await b.gpadl_and_open()
        await channel.send(Packet(6, 1, 42, 0, b"hello..."))
        await trio.testing.wait_all_tasks_blocked()
        channel.close()
    control = [(e.event, e.direction, e.channel, e.size) for e in b.seen if e.layer is Layer.CONTROL]
    assert control == [
        ("initiate_contact", ">root", None, 40),
        ("version_response", ">child", None, 16),
        ("request_offers", ">root", None, 8),
        ("offer_channel", ">child", 1, 196),
        ("all_offers_delivered", ">child", None, 8),
        ("gpadl_header", ">root", 1, 92),
        ("gpadl_created", ">child", 1, 20),
        ("open_channel", ">root", 1, 148),
        ("open_channel_result", ">child", 1, 20),
    ]
    assert "OPEN_CHANNEL channel=1 gpadl=0xe1e10 vp=0 downstream=4" in [e.words for e in b.seen]
    packets = [(e.event, e.direction, e.size, e.words) for e in b.seen if e.layer is Layer.PACKET]
    assert packets == [
        ("packet_received", ">root", 8, "INBAND id=0x2a flags=1"),
        ("packet_sent", ">child", 8, "INBAND id=0x2a flags=1"),
    ]
    assert ("vmbus_channel", "opening -> open") in [(e.event, e.words) for e in b.seen if e.layer is Layer.STATE]
    assert [e.fields for e in b.seen if e.layer is Layer.PACKET] == 2 * [
        {"transaction_id": 42, "type": 6, "flags": 1, "device": "disks"}
    ]


async def test_traced_bytes_are_those_that_crossed(memory: GuestMemory) -> None:
    """A channel message as it was posted; a packet with its descriptor, padded to 8 and without its trailer."""
    async with bench(memory, EchoDevice(scsi()), tracing=True) as b:
        await b.connect()
        channel = await b.gpadl_and_open()
        await channel.send(Packet(9, 1, 42, 16, bytes(range(29))))
        await trio.testing.wait_all_tasks_blocked()
        channel.close()
    told = {e.event: e.data for e in b.seen if e.data}
    assert told["initiate_contact"] == m.initiate_contact(Version.V5_3).encode()
    assert told["offer_channel"] in b.ports.posted
    assert all(len(e.data) == e.size for e in b.seen if e.layer is Layer.CONTROL)
    descriptor = struct.pack("<HHHHQ", 9, 4, 6, 1, 42)
    assert told["packet_received"] == told["packet_sent"] == descriptor + bytes(range(29)) + bytes(3)
    assert [e.size for e in b.seen if e.layer is Layer.PACKET] == [16, 16]


async def test_a_message_that_cannot_be_read_is_traced_each_time_with_its_bytes(memory: GuestMemory) -> None:
    """Once each: the warning where there is one, with the fault in words, and an event of no weight where not."""
    async with bench(memory, tracing=True) as b:
        for number in range(5):
            await b.say(struct.pack("<II", 99, number))
        await b.say(m.RelIdReleased(channel_id=1))  # as Linux does after UNLOAD: no fault
        await b.say(m.RequestOffers())
        await b.say(m.initiate_contact(Version.V5_3))
        await b.say(m.OpenChannel(channel_id=1, open_id=1, gpadl_id=5))  # read, and refused
    told = [(e.event, e.level, e.words, e.data) for e in b.seen if e.layer is Layer.CONTROL and e.direction == ">root"]
    unknown = "no channel message has type 99"
    debug, warning = Level.DEBUG, Level.WARNING
    assert told[:5] == [
        ("malformed_message", level, unknown, struct.pack("<II", 99, number))
        for number, level in enumerate((warning, warning, debug, warning, debug))
    ]
    ignored, malformed, contact, refused = told[5:]
    assert ignored[:3] == ("ignored_message", debug, "REL_ID_RELEASED is not legal without a connection")
    assert malformed[0] == "malformed_message"
    assert (contact[0], refused[0]) == ("initiate_contact", "open_channel")
    assert [e.data for e in b.seen if e.event == "unexpected_message"] == [b""]


async def test_what_overflows_the_inbox_is_traced_with_its_bytes(memory: GuestMemory) -> None:
    async with bench(memory, tracing=True) as b:
        for number in range(INBOX_MESSAGES + 3):
            b.ports.message_handlers[1](struct.pack("<II", 3, number))
        lost = [e.data for e in b.seen if e.event == "message_overflow"]
        assert lost == [struct.pack("<II", 3, INBOX_MESSAGES + each) for each in range(3)]


async def test_the_trace_knows_version_and_devices_while_there_are_any(memory: GuestMemory) -> None:
    """A recording that begins late has to say what the bytes mean."""
    async with bench(memory, EchoDevice(scsi())) as b:
        assert (b.trace.versions, b.trace.devices) == ({}, {})
        await b.connect(Version.V5_1)
        assert (b.trace.versions, b.trace.devices) == ({7: Version.V5_1}, {7: {1: "disks"}})
        await b.say(m.Unload())
        assert (b.trace.versions, b.trace.devices) == ({7: 0}, {7: {}})
    assert (b.trace.versions, b.trace.devices) == ({}, {})
