"""A bus with real memory, rings and devices, its guest and its host at random; each answer is foretold by `bus_model`.

Where `test_vmbus_server` asks what must never be, this asks what must be: after every step the guest has heard exactly
what was due, each mistake was counted once, and the host holds exactly what the guest has open.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import attrs
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hypervisor.blocks import MemoryBlock
from hypervisor.memory import GuestMemory
from hypervisor.pages import PAGE_SIZE, Access
from hypervisor.trace import Trace
from tests.doubles.campaign import examples
from tests.doubles.stepper import Stepper
from tests.doubles.vmbus_guest import instance, scsi
from tests.doubles.vmbus_ports import FakePorts
from tests.hostile.bus_model import OFF, BusModel, Gpadl, Heard, Line, Open
from vmbus.channel import Channel
from vmbus.gpadl import BODY_WORDS, HEADER_WORDS
from vmbus.protocol import messages as m
from vmbus.protocol.messages import Message
from vmbus.protocol.table import Direction, decode_message
from vmbus.protocol.versions import IMPLEMENTED, Version
from vmbus.ring import Packet, PacketType, RingReader, RingWriter
from vmbus.server.connection import Phase
from vmbus.server.offers import Offer
from vmbus.server.opened import GpadlHold, OpenedChannel
from vmbus.server.service import OfferedChannel, VmbusServer, open_vmbus_server

PAGES = 512
DEVICES = 4
LATENCY = 1000
MONITOR_PAGES = 0x1F0 * PAGE_SIZE, 0x1F1 * PAGE_SIZE
INTERRUPT_PAGE = 0x1F2 * PAGE_SIZE
PLACES = {instance(number): number for number in range(DEVICES)}
GPADLS = st.integers(1, 3)
VERSIONS = st.sampled_from([*[Version.V6_0] * 10, *IMPLEMENTED])
"""Most of what there is to go wrong is in the newest."""
PICK = st.integers(0, 7)
SELDOM = st.sampled_from([False] * 9 + [True])
PHASES = {"none": Phase.DISCONNECTED, "connected": Phase.CONNECTED, "leaving": Phase.DISCONNECTING}


class Echo:
    """Sends back what it gets; stops at once, or when the test lets it."""

    def __init__(self, number: int) -> None:
        latency = LATENCY if number == DEVICES - 1 else None
        self.offer = scsi(number, monitor_latency=latency)
        self.may_stop = trio.Event()
        self.may_stop.set()
        self.opened: dict[int, OpenedChannel] = {}
        self.holds: dict[tuple[int, int], list[GpadlHold]] = {}

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        assert opened.channel_id not in self.opened
        self.opened[opened.channel_id] = opened
        try:
            while True:
                await channel.send_batch(await channel.receive_batch())
        except trio.EndOfChannel:
            pass
        finally:
            with trio.CancelScope(shield=True):
                await self.may_stop.wait()
            del self.opened[opened.channel_id]


@attrs.define(eq=False)
class Bench:
    """What runs in Trio's thread."""

    server: VmbusServer
    ports: FakePorts
    memory: GuestMemory
    devices: list[Echo]


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    block = MemoryBlock.allocate(PAGES * PAGE_SIZE, "guest")
    memory = GuestMemory()
    memory.map_block(0, block, 0, PAGES, Access.READ_WRITE)
    ports = FakePorts()
    async with open_vmbus_server(ports, memory, partition_id=7, trace=Trace(lambda: 0), shared=False) as server:
        devices = [Echo(number) for number in range(DEVICES)]
        yield Bench(server, ports, memory, devices)
        for device in devices:
            device.may_stop.set()
    assert ports.open == []
    assert not ports.message_handlers
    assert not ports.event_handlers
    assert all(watch.closed for _, _, watch in ports.watched)
    memory.unmap(0, PAGES)
    block.close()


def heard(message: Message) -> Heard:
    """What matters in a message."""
    name = message.TYPE.name
    match message:
        case m.VersionResponse() | m.VersionResponse2():
            return name, message.supported
        case m.OfferChannel():
            assert message.connection_id == 0x2000 | message.channel_id
            return name, message.channel_id, PLACES[message.instance], message.subchannel_index
        case m.RescindChannelOffer() | m.CloseReservedResponse():
            return name, message.channel_id
        case m.OpenChannelResult():
            return name, message.channel_id, message.open_id, message.status
        case m.GpadlCreated():
            return name, message.channel_id, message.gpadl_id, message.status
        case m.GpadlTorndown():
            return name, message.gpadl_id
        case m.ModifyChannelResponse():
            return name, message.channel_id, message.status
        case m.ModifyConnectionResponse():
            return name, message.connection_state
        case _:
            return (name,)


class BusMachine(RuleBasedStateMachine):
    """Guest and host; every rule tells the model first, then does it, then compares."""

    def __init__(self) -> None:
        super().__init__()
        self.stepper = Stepper(bench)
        self.bench = self.stepper.made
        self.server, self.ports = self.bench.server, self.bench.ports
        self.model = BusModel()
        self.unsent: dict[int, list[int]] = {}
        """Words of unfinished GPADLs."""
        self.dirty: set[Gpadl] = set()
        """Rings that another ring was laid over: what is in them is nobody's word."""
        self.open_ids = 100

    # --- a step

    def act(self, function: Callable[[], object]) -> None:
        """Do it, and compare what came of it with what the model has said."""
        self.model.finish()
        said, faults = len(self.ports.posted), self.server.counters["faults"]
        self.stepper.step(function)
        fresh = [
            decode_message(data, sender=Direction.TO_CHILD, version=Version.V6_0, features=0xFF)
            for data in self.ports.posted[said:]
        ]
        got = [heard(message) for message in fresh]
        due, self.model.heard = self.model.heard, []
        missed, self.model.faults = self.model.faults, 0
        assert sorted(got, key=repr) == sorted(due, key=repr)
        ended, self.model.ended = self.model.ended, 0
        if ended <= 1 and sum(one[0] == "RESCIND_CHANNEL_OFFER" for one in due) <= 1:
            assert got == due
        assert self.server.counters["faults"] - faults == missed
        for message in fresh:
            if isinstance(message, m.OfferChannel):
                line = self.model.named(message.channel_id)
                assert line is not None
                line.monitored = bool(message.monitor_allocated)

    def say(self, message: Message | bytes) -> None:
        data = message if isinstance(message, bytes) else message.encode()
        self.act(lambda: self.ports.message_handlers[1](data))

    def pick(self, pick: int, *, view: str = "") -> int:
        """A channel that the guest knows; seldom one that there is not."""
        lines = [line for line in self.model.numbered() if line.view != "none"]
        numbers = [line.number for line in lines if line.view == view] or [line.number for line in lines]
        return [2047, 0][pick & 1] if pick == 7 or not numbers else numbers[pick % len(numbers)]

    # --- the connection

    @initialize(version=VERSIONS, pages=st.booleans(), offers=st.integers(1, DEVICES), opened=st.integers(0, 2))
    def boot(self, version: Version, pages: bool, offers: int, opened: int) -> None:
        for number in range(offers):
            self.host_offers(number)
        self.contact(version, 0xFF & ~0x08, pages, True)
        self.request_offers()
        for pick in range(min(opened, offers)):
            self.gpadl_and_open(pick, 1)

    @rule(version=VERSIONS, features=st.sampled_from([0, 0x27, 0x26]), pages=st.booleans(), now=SELDOM)
    def contact(self, version: int, features: int, pages: bool, now: bool) -> None:
        if not now and self.model.phase != "none":
            return
        self.model.contact(version, features)
        to_child, to_root = MONITOR_PAGES if pages else (0, 0)
        interrupt = INTERRUPT_PAGE if pages and version < Version.V2_4 else 0
        kind: type[Message] = m.InitiateContact
        more = {"features": features}
        if version < Version.V5_0:
            kind, more = m.InitiateContactLegacy, {"interrupt_page": interrupt}
        self.say(
            kind(version=version, parent_to_child_monitor_page=to_child, child_to_parent_monitor_page=to_root, **more)
        )

    @rule(version=st.integers(0, 0x70000), now=SELDOM)
    def strange_contact(self, version: int, now: bool) -> None:
        if now and version not in IMPLEMENTED:
            self.model.contact(version, 0)
            self.say(m.InitiateContact(version=version))

    @rule(now=SELDOM, back=st.sampled_from([True, True, False]), version=VERSIONS)
    def unload(self, now: bool, back: bool, version: Version) -> None:
        if now:
            self.model.unload()
            self.say(m.Unload())
        if back and self.model.phase == "none":
            self.contact(version, 0x27, False, True)
            self.request_offers()

    @rule()
    def request_offers(self) -> None:
        self.model.request_offers()
        self.say(m.RequestOffers())

    @rule(now=st.sampled_from([True, False, False]))
    def pause(self, now: bool) -> None:
        if now:
            self.model.pause()
            self.say(m.Pause())

    @rule(numbers=st.lists(st.integers(0, DEVICES - 1), min_size=1, max_size=3))
    def much_happens_in_a_pause(self, numbers: list[int]) -> None:
        self.pause(True)
        for number in numbers:
            self.host_rescinds(number, True)
            self.host_offers(number)
        self.resume()

    @rule()
    def resume(self) -> None:
        self.model.resume()
        self.say(m.Resume())

    @rule(pages=st.sampled_from([(0, 0), MONITOR_PAGES, MONITOR_PAGES[:1] * 2, (4096, 0), (1 << 40, 4096)]))
    def modify_connection(self, pages: tuple[int, int]) -> None:
        self.model.modify_connection(pages in ((0, 0), MONITOR_PAGES))
        self.say(m.ModifyConnection(parent_to_child_monitor_page=pages[0], child_to_parent_monitor_page=pages[1]))

    # --- GPADLs

    @rule(
        pick=PICK,
        number=GPADLS,
        start=st.sampled_from([0x10, 0x12, 0x14, 0x20, 0x30, 0x40, 0x60, 0x80]),
        pages=st.sampled_from([1, 4, 8, 8, 30, 70]),
        scattered=st.booleans(),
        kind=st.sampled_from(["ring"] * 6 + ["outside", "offset", "two", "none", "empty", "short"]),
        finish=st.sampled_from([True, True, True, False]),
    )
    def gpadl(self, pick: int, number: int, start: int, pages: int, scattered: bool, kind: str, finish: bool) -> None:
        channel = self.pick(pick)
        gpns = list(range(start, start + pages))
        if scattered:
            gpns = gpns[1::2] + gpns[::2]
        if kind == "outside":
            gpns[-1] = PAGES + start
        head, ranges = pages * PAGE_SIZE, 1
        words = [head, *gpns]
        if kind == "offset":
            words[0] = PAGE_SIZE << 32 | head
        elif kind == "two":
            words, ranges = [*words, 100, 3], 2
        elif kind == "none":
            ranges = 0
        elif kind == "empty":
            words[0] = 0
        elif kind == "short":
            words.pop()
        self.begin_gpadl(channel, number, words, ranges, tuple(gpns), kind)
        while finish and (unsent := self.unsent.get(number)):
            self.body(number, BODY_WORDS if len(unsent) > BODY_WORDS else len(unsent))

    def begin_gpadl(
        self, channel: int, number: int, words: list[int], ranges: int, gpns: tuple[int, ...], kind: str
    ) -> None:
        first, rest = words[:HEADER_WORDS], words[HEADER_WORDS:]
        sound = kind in ("ring", "outside", "two")
        record = Gpadl(number, gpns, kind != "two", sound, kind != "outside", len(words), len(rest))
        before = self.unfinished(number)
        self.model.header(channel, record, len(first))
        if rest and self.unfinished(number) is not before:
            self.unsent[number] = rest
        header = m.GpadlHeader(channel_id=channel, gpadl_id=number, byte_length=8 * len(words), range_count=ranges)
        self.say(header.encode() + b"".join(word.to_bytes(8, "little") for word in first))

    @rule(number=GPADLS, picks=st.lists(PICK, min_size=2, max_size=3))
    def unfinished_on_several_channels(self, number: int, picks: list[int]) -> None:
        """Bodies name no channel, so there can be one at a time."""
        gpns = tuple(range(0x90, 0xB0))
        for pick in picks:
            self.begin_gpadl(self.pick(pick), number, [len(gpns) * PAGE_SIZE, *gpns], 1, gpns, "ring")
        self.body(number, BODY_WORDS)

    def unfinished(self, number: int) -> Gpadl | None:
        found = [line.gpadls[number] for line in self.model.numbered() if number in line.gpadls]
        return next((gpadl for gpadl in found if gpadl.missing), None)

    @rule(number=GPADLS, words=st.integers(0, BODY_WORDS))
    def body(self, number: int, words: int) -> None:
        """The next words of an unfinished GPADL, and more than that at its end."""
        before = self.unfinished(number)
        rest = self.unsent.get(number, [])
        data = (rest[:words] if before is not None else []) + [0xABCD] * BODY_WORDS
        self.model.body(number, words)
        if before is not None and self.model.phase == "connected" and not self.model.paused:
            del rest[:words]
        if self.unfinished(number) is None:
            self.unsent.pop(number, None)
        self.say(m.GpadlBody(gpadl_id=number).encode() + b"".join(w.to_bytes(8, "little") for w in data[:words]))

    @rule(pick=PICK, number=GPADLS)
    def tear_down(self, pick: int, number: int) -> None:
        channel = self.pick(pick)
        self.model.teardown(channel, number)
        self.say(m.GpadlTeardown(channel_id=channel, gpadl_id=number))

    # --- channels

    @rule(
        pick=PICK,
        number=GPADLS,
        downstream=st.sampled_from([4, 4, 4, 2, 1, 7]),
        vp=st.sampled_from([0, 1, 1, 2, OFF]),
        terms=st.sampled_from([(0, 0), (0, 0), (0, 5), (0, 5000), (0x2001, 1), (0x2002, 2), (0x9000, 9), (1, 1)]),
    )
    def open(self, pick: int, number: int, downstream: int, vp: int, terms: tuple[int, int]) -> None:
        self.open_named(self.pick(pick, view="closed"), number, downstream, vp, terms)

    def open_named(
        self, channel: int, number: int, downstream: int = 4, vp: int = 0, terms: tuple[int, int] = (0, 0)
    ) -> None:
        line = self.model.named(channel)
        if line is not None and line.key[1] and line.view == "closing":
            return  # whether it is open again before its primary has ended is for Trio to say
        self.open_ids += 1
        common = {
            "channel_id": channel,
            "open_id": self.open_ids,
            "gpadl_id": number,
            "target_vp": vp,
            "downstream_page": downstream,
        }
        own = 0x2000 | channel, channel
        request = Open(number, downstream, vp, self.open_ids, *own)
        message: Message = m.OpenChannel(**common)
        if self.model.features & 3:
            connection, flag = terms[0] or own[0], terms[1] or channel & 0xFFFF
            message = m.OpenChannel2(connection_id=connection, event_flag=flag, **common)
            if self.model.features & 1:
                request.connection, request.flag = connection, flag
        self.clean_ring(channel, number, downstream)
        self.model.open(channel, request)
        self.say(message)

    @rule(pick=PICK, number=GPADLS)
    def gpadl_and_open(self, pick: int, number: int) -> None:
        """What a guest does; without it channels would hardly ever be open."""
        self.open_named(self.name_a_ring(pick, number), number)

    def name_a_ring(self, pick: int, number: int) -> int:
        channel = self.pick(pick, view="closed")
        gpns = tuple(range(0x100 + 8 * channel % 0x80, 0x108 + 8 * channel % 0x80))
        self.begin_gpadl(channel, number, [8 * PAGE_SIZE, *gpns], 1, gpns, "ring")
        return channel

    def clean_ring(self, channel: int, number: int, downstream: int) -> None:
        """A guest clears the ring that it offers."""
        line = self.model.named(channel)
        gpadl = line.gpadls.get(number) if line is not None else None
        if line is None or line.view == "open" or gpadl is None or not gpadl.owned or downstream >= len(gpadl.gpns):
            return
        others = [one.ring for one in self.model.numbered() if one.ring is not None and one is not line]
        self.dirty |= {ring for ring in others if set(ring.gpns) & set(gpadl.gpns)}
        if self.dirty & set(others):
            self.dirty.add(gpadl)
        for page in (gpadl.gpns[0], gpadl.gpns[downstream]):
            self.bench.memory.write(page * PAGE_SIZE, bytes(PAGE_SIZE))

    @rule(pick=PICK, number=GPADLS, downstream=st.sampled_from([4, 4, 9]))
    def reserve(self, pick: int, number: int, downstream: int) -> None:
        self.reserve_named(self.pick(pick, view="closed"), number, downstream)

    def reserve_named(self, channel: int, number: int, downstream: int) -> None:
        self.clean_ring(channel, number, downstream)
        self.model.reserve(channel, number, downstream)
        self.say(
            m.OpenReservedChannel(
                channel_id=channel, gpadl_id=number, downstream_page=downstream, target_vp=1, target_sint=5
            )
        )

    @rule(pick=PICK, number=GPADLS, leave=st.booleans())
    def gpadl_and_reserve(self, pick: int, number: int, leave: bool) -> None:
        """And go, which leaves it open."""
        channel = self.name_a_ring(pick, number)
        self.reserve_named(channel, number, 4)
        if leave:
            self.unload(True, False, Version.V6_0)

    @rule(pick=PICK)
    def close_reserved(self, pick: int) -> None:
        channel = next((line.number for line in self.model.numbered() if line.reserved), 0) or self.pick(pick)
        self.model.close_reserved(channel)
        self.say(m.CloseReservedChannel(channel_id=channel, target_vp=0, target_sint=3))

    @rule(pick=PICK)
    def close(self, pick: int) -> None:
        channel = self.pick(pick, view="open")
        self.model.close(channel)
        self.say(m.CloseChannel(channel_id=channel))

    @precondition(lambda self: any(line.view == "open" for line in self.model.lines.values()))
    @rule(pick=PICK, number=GPADLS, then=st.sampled_from(["", "open", "release", "tear down", "reconnect", "modify"]))
    def close_slowly(self, pick: int, number: int, then: str) -> None:
        """The device takes its time, and the guest none."""
        channel = self.pick(pick, view="open")
        line = self.model.named(channel)
        if line is None:
            return
        self.device_stops_slowly(line.key[0])
        self.model.close(channel)
        self.say(m.CloseChannel(channel_id=channel))
        match then:
            case "open":
                self.open_named(channel, number)
            case "release":
                self.model.release(channel)
                self.say(m.RelIdReleased(channel_id=channel))
            case "tear down":
                self.model.teardown(channel, 1)
                self.say(m.GpadlTeardown(channel_id=channel, gpadl_id=1))
            case "reconnect":
                self.contact(Version.V6_0, 0x27, False, True)
            case "modify":
                self.model.modify(channel, 1)
                self.say(m.ModifyChannel(channel_id=channel, target_vp=1))
            case _:
                pass

    @precondition(lambda self: any(line.view == "closing" for line in self.model.lines.values()))
    @rule(number=GPADLS, pick=PICK)
    def open_what_is_closing(self, number: int, pick: int) -> None:
        self.open_named(self.pick(pick, view="closing"), number)

    @rule(pick=PICK, view=st.sampled_from(["gone", "closed", "closing", "open"]))
    def release(self, pick: int, view: str) -> None:
        if view in ("closed", "closing") and pick:
            return
        channel = self.pick(pick, view=view)
        self.model.release(channel)
        self.say(m.RelIdReleased(channel_id=channel))

    @rule(pick=PICK, vp=st.sampled_from([0, 1, 2, OFF]))
    def modify(self, pick: int, vp: int) -> None:
        channel = self.pick(pick, view="open")
        self.model.modify(channel, vp)
        self.say(m.ModifyChannel(channel_id=channel, target_vp=vp))

    # --- rings

    def served(self) -> list[Line]:
        """Open channels whose rings are nobody else's too, and whose guest has not broken them."""
        return [
            line
            for line in self.model.numbered()
            if line.view == "open" and line.serving and not line.faulty and line.ring not in self.dirty
        ]

    @precondition(lambda self: self.served())
    @rule(pick=PICK, size=st.integers(0, 4000), count=st.integers(1, 5))
    def talk(self, pick: int, size: int, count: int) -> None:
        """What goes in comes back."""
        lines = self.served()
        line = lines[pick % len(lines)]
        writer, reader, _ = self.rings(line)
        sent = [Packet(PacketType.INBAND, 0, number, 0, bytes([number]) * (size & ~7)) for number in range(count)]
        sent = sent[: writer.write_batch(sent)]
        self.act(self.ring_the_bell(line))
        got: list[Packet] = []
        while batch := reader.read_batch():
            got += batch
        assert got == sent

    def rings(self, line: Line) -> tuple[RingWriter, RingReader, memoryview]:
        assert line.ring is not None
        assert line.request is not None
        region = self.stepper.step(lambda: self.bench.memory.flat(line.ring.gpns, Access.READ_WRITE))  # type: ignore[union-attr]
        border = line.request.downstream * PAGE_SIZE
        return (
            RingWriter(region[:border], shared=False),
            RingReader(region[border:], shared=False),
            region[:PAGE_SIZE].cast("I"),
        )

    def ring_the_bell(self, line: Line) -> Callable[[], None]:
        assert line.request is not None
        return self.ports.event_handlers[line.request.connection]

    @precondition(lambda self: self.served())
    @rule(pick=PICK, index=st.sampled_from([4, 1 << 31, 0xFFFF_FFF8]), now=SELDOM | st.booleans())
    def break_ring(self, pick: int, index: int, now: bool) -> None:
        """The device is not served any more; nobody hears of it."""
        if not now:
            return
        lines = self.served()
        line = lines[pick % len(lines)]
        self.rings(line)[2][0] = index
        self.model.break_ring(line)
        self.act(self.ring_the_bell(line))

    # --- the host

    def offer_of(self, line: Line) -> Offer:
        device = self.bench.devices[line.key[0]].offer
        return device if line.key[1] == 0 else device.subchannel(line.key[1])

    def find_offered(self, key: tuple[int, int]) -> OfferedChannel:
        return next(
            one for one in self.server.offered if (PLACES[one.offer.instance], one.offer.subchannel_index) == key
        )

    @rule(number=st.integers(0, DEVICES - 1))
    def host_offers(self, number: int) -> None:
        line = self.model.lines.get((number, 0))
        if line is None or not line.live:
            self.model.offer((number, 0))
            self.act(lambda: self.server.offer(self.bench.devices[number]))

    @rule(number=st.integers(0, DEVICES - 1), now=SELDOM | st.booleans())
    def host_rescinds(self, number: int, now: bool) -> None:
        line = self.model.lines.get((number, 0))
        if now and line is not None and line.live:
            self.model.rescind(line)
            offered = self.find_offered((number, 0))
            self.act(lambda: self.server.rescind(offered))

    @precondition(lambda self: any(line.live and line.view != "none" for line in self.model.numbered()))
    @rule(pick=PICK, busy=st.booleans(), again=st.booleans(), release=st.booleans())
    def host_rescinds_what_the_guest_has(self, pick: int, busy: bool, again: bool, release: bool) -> None:
        """While its ring is asked back and still in use; and offers it again before the guest lets go."""
        lines = [line for line in self.model.numbered() if line.live and line.view != "none" and line.key[1] == 0]
        if not lines:
            return
        line = lines[pick % len(lines)]
        number = line.number
        if busy and line.ring is not None:
            self.device_stops_slowly(line.key[0])
            ring = line.ring.number
            self.model.teardown(number, ring)
            self.say(m.GpadlTeardown(channel_id=number, gpadl_id=ring))
        self.host_rescinds(line.key[0], True)
        if again:
            self.host_offers(line.key[0])
        if release:
            self.model.release(number)
            self.say(m.RelIdReleased(channel_id=number))

    def primaries(self) -> list[Line]:
        return [
            line
            for line in self.model.numbered()
            if line.serving and not line.stopping and not line.faulty and line.live and line.key[1] == 0
        ]

    @precondition(lambda self: self.primaries())
    @rule(pick=PICK, count=st.integers(1, 2))
    def host_offers_subchannels(self, pick: int, count: int) -> None:
        line = self.primaries()[pick % len(self.primaries())]
        if any(self.model.lines.get((line.key[0], i), line) is not line for i in range(len(line.subs) + 1, count + 1)):
            return  # one of a past life is still there
        self.model.subchannels(line, count)
        opened = self.bench.devices[line.key[0]].opened[line.number]
        self.act(lambda: opened.offer_subchannels(count))

    @precondition(lambda self: any(line.serving for line in self.model.numbered()))
    @rule(pick=PICK, number=GPADLS)
    def device_looks_at_a_gpadl(self, pick: int, number: int) -> None:
        """And keeps it in view until it ends."""
        lines = [line for line in self.model.numbered() if line.serving]
        line = lines[pick % len(lines)]
        gpadl = line.gpadls.get(number)
        if gpadl is None or gpadl.missing or gpadl.going or not gpadl.seen:
            return
        gpadl.views += 1
        line.held.append(gpadl)
        opened = self.bench.devices[line.key[0]].opened[line.number]
        self.act(lambda: opened.gpadls.hold(number))

    @rule(number=st.integers(0, DEVICES - 1))
    def device_stops_slowly(self, number: int) -> None:
        if number not in self.model.slow and not any(
            line.serving and (line.stopping or line.faulty) and line.key[0] == number
            for line in self.model.lines.values()
        ):
            self.model.slow.add(number)
            self.bench.devices[number].may_stop = trio.Event()

    @precondition(lambda self: self.model.slow)
    @rule(pick=PICK)
    def device_has_stopped(self, pick: int) -> None:
        slow = sorted(self.model.slow)
        number = slow[pick % len(slow)]
        self.model.let_go(number)
        self.act(self.bench.devices[number].may_stop.set)

    # --- what holds

    @invariant()
    def the_host_holds_what_the_guest_has_open(self) -> None:
        numbered = self.model.numbered()
        assert set(self.server.channels) == {line.number for line in numbered}
        use = self.server.use()
        gpadls = [gpadl for line in numbered for gpadl in line.gpadls.values()]
        assert (use.channels, use.gpadls, use.messages_unsent) == (len(numbered), len(gpadls), 0)
        assert use.messages_waiting == 0
        assert use.gpadl_words == sum(gpadl.words for gpadl in gpadls)
        rings = [line.ring.gpns for line in numbered if line.ring is not None]
        breaks = sum(one + 1 != two for gpns in rings for one, two in pairwise(gpns))
        assert use.scattered_pages == breaks
        connections = {line.request.connection for line in numbered if line.request is not None}
        assert connections <= set(self.ports.event_handlers)
        assert set(self.ports.event_handlers) <= connections | {2} | {0x2000 | line.number for line in numbered} | {
            0x2001,
            0x2002,
            0x9000,
        }
        signalled = [line for line in numbered if line.request is not None and line.request.vp != OFF]
        assert sum(not one.closed for one in self.ports.events) == len(signalled)
        assert self.server.phase is PHASES[self.model.phase]
        assert (self.server.version or 0) == self.model.version
        running = {(line.key[0], line.number) for line in numbered if line.serving}
        assert {(n, c) for n, device in enumerate(self.bench.devices) for c in device.opened} == running
        shown = {(PLACES[one.offer.instance], one.offer.subchannel_index) for one in self.server.offered}
        assert shown == {line.key for line in self.model.lines.values() if line.live}

    @invariant()
    def without_a_guest_only_what_is_reserved_stays(self) -> None:
        if self.model.phase != "none":
            return
        assert self.model.numbered() or all(watch.closed for _, _, watch in self.ports.watched)
        assert 2 not in self.ports.event_handlers

    def teardown(self) -> None:
        """A reset ends everything, and the next guest is served."""
        try:
            for number in sorted(self.model.slow):
                self.model.let_go(number)
                self.act(self.bench.devices[number].may_stop.set)
            self.model.leave("reset")
            self.model.finish()
            self.stepper.wait(self.server.reset)
            self.the_host_holds_what_the_guest_has_open()
            assert not self.ports.event_handlers
            assert not self.ports.open
            self.model.heard, self.model.faults, self.model.ended = [], 0, 0
            self.contact(Version.V5_3, 0, False, True)
            self.request_offers()
        finally:
            self.stepper.close()


TestBusMachine = BusMachine.TestCase
TestBusMachine.settings = settings(max_examples=examples(25), stateful_step_count=40, deadline=None)
