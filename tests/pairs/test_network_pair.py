"""The real network VSP against the real VSC: the real switch between guests, real channels, plain memory."""

from __future__ import annotations

import random
import struct
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from partitions.child.net import frames as f
from tests.doubles.network_guests import adapters, driven, frame, mac, networks
from vmbus.channel import RECEIVED, SENT, Channel
from vmbus.ring import Packet, PacketType
from vsp_vsc.network.guest_queue import KEPT_FRAMES
from vsp_vsc.network.port import MAX_MTU
from vsp_vsc.network.protocol import VERSIONS, NvspType, NvspVersion, message_size
from vsp_vsc.network.rndis import PacketFilter, TransmitChecksum
from vsp_vsc.network.switch.settings import ALL_VLANS, PortSettings
from vsp_vsc.network.vsc import (
    Network,
    NetworkError,
    NetworkGone,
    NetworkSettings,
    Offload,
)


async def frames_of(network: Network, count: int) -> list[bytes]:
    got: list[bytes] = []
    while len(got) < count:
        got += await network.receive_batch()
    assert len(got) == count
    return got


# --- coming to terms


async def test_a_guest_finds_its_adapter() -> None:
    """Address, MTU, link, speed and what it does with frames, with the newest version."""
    async with networks(1) as (_, [network]):
        assert network.mac == mac(1)
        assert (network.mtu, network.link_up, network.version) == (1500, True, NvspVersion.V6_1)
        assert network.link_speed == 10**10
        assert network.offloads.ipv4_transmit
        assert network.offloads.lso_ipv4_max_size > 0xF000
        assert network.channels == 1


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_version_works(version: NvspVersion) -> None:
    """Alone, with its own message size; frames go both ways, one by one and many at a time."""
    async with networks(2, NetworkSettings(versions=[version])) as (wire, [one, two]):
        assert one.version == two.version == version
        sent: list[Packet] = []
        wire.guests[0].ends[0][1].on_packets = lambda way, packets: sent.extend(packets) if way == SENT else None
        await one.send(frame(2, 1))
        assert await two.receive() == frame(2, 1)
        batch = [frame(1, 2, bytes([index]) * 100) for index in range(50)]
        await two.send_batch(batch)
        assert await frames_of(one, 50) == batch
        size = message_size(version)
        sizes = {len(packet.payload) for packet in sent if packet.type == PacketType.INBAND}
        assert sizes == {size}, "the driver sends that size; the ring pads it on the way"


async def test_an_older_version_is_agreed_on_where_the_newest_is_refused() -> None:
    """One more round trip for each that is not spoken."""
    versions = [0x70000, 0x60002, NvspVersion.V5]
    async with adapters() as wire, driven(wire.guests[0], NetworkSettings(versions=versions)) as network:  # type: ignore[arg-type]
        assert network.version == NvspVersion.V5


async def test_no_common_version_is_an_error() -> None:
    """That says what was tried, and leaves no page behind."""
    async with adapters() as wire:
        free = wire.guests[0].platform.free_count
        with pytest.raises(NetworkError, match=r"none of the versions 7\.0, 6\.2"):
            async with driven(wire.guests[0], NetworkSettings(versions=[0x70000, 0x60002])):  # type: ignore[list-item]
                pass
        assert wire.guests[0].platform.free_count == free


async def test_too_little_memory() -> None:
    """Is the guest's own error, and what was allocated goes back."""
    async with adapters(memory=1 << 20) as wire:
        free = wire.guests[0].platform.free_count
        with pytest.raises(MemoryError):
            async with driven(wire.guests[0]):
                pass
        assert wire.guests[0].platform.free_count == free
        assert wire.guests[0].stopped == []
        small = NetworkSettings(receive_buffer=256 << 10, send_buffer=64 << 10)
        async with driven(wire.guests[0], small) as network:
            assert network.link_up


async def test_closed_and_opened_again() -> None:
    """As when a program unbinds the driver: all is new, and the adapter works."""
    async with adapters(2) as wire, driven(wire.guests[1]) as other:
        for _ in range(3):
            async with driven(wire.guests[0]) as network:
                await network.send(frame(2, 1))
                assert await other.receive() == frame(2, 1)
        assert wire.guests[0].stopped == []


# --- frames


async def test_frames_of_all_sizes_keep_their_bytes_and_order() -> None:
    """From an Ethernet header alone to a full one with a tag; mixed, in batches and alone."""
    choose = random.Random(5)
    async with networks(2) as (_, [one, two]):
        sent = [frame(2, 1, b"")]
        sent += [frame(2, 1, choose.randbytes(choose.randrange(1501))) for _ in range(400)]
        sent += [frame(2, 1, choose.randbytes(1500))]

        async def send() -> None:
            left = sent[:]
            while left:
                count = choose.choice((1, 1, 2, 7, 40, 100))
                batch, left = left[:count], left[count:]
                await (one.send_batch(batch) if count > 1 else one.send(batch[0]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await frames_of(two, len(sent)) == sent
        assert one.statistics().refused == two.statistics().bad_messages == 0
        assert two.statistics().bytes_received == sum(map(len, sent)) == one.statistics().bytes_sent


async def test_batches_are_few_messages_both_ways() -> None:
    """Eight small frames are one message out, and a batch is one packet or two in."""
    async with networks(2) as (wire, [one, two]):
        counted = {RECEIVED: 0, SENT: 0}

        def count(way: str, packets: list[Packet]) -> None:
            counted[way] += sum(packet.type == PacketType.TRANSFER_PAGES for packet in packets)

        wire.guests[1].ends[0][1].on_packets = count  # type: ignore[assignment]
        await one.send_batch([frame(2, 1)] * 64)
        assert await frames_of(two, 64) == [frame(2, 1)] * 64
        assert one.statistics().messages_sent == 8
        assert counted[RECEIVED] <= 8
        assert one.statistics().frames_sent == 64


async def test_without_a_send_buffer() -> None:
    """All goes in pages that the packets name; a message there is a page at most unless one frame is longer."""
    settings = NetworkSettings(send_buffer=0, mtu=MAX_MTU)
    async with networks(2, settings, mtu=MAX_MTU) as (_, [one, two]):
        batch = [frame(2, 1, bytes([index]) * (37 * index)) for index in range(240)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send_batch, batch)
            assert await frames_of(two, len(batch)) == batch


async def test_jumbo_frames() -> None:
    """As long as the port and the driver both take them, in pages of their own as they fit no section."""
    async with networks(2, NetworkSettings(mtu=MAX_MTU), mtu=MAX_MTU) as (_, [one, two]):
        assert one.mtu == MAX_MTU
        long = frame(2, 1, random.Random(1).randbytes(MAX_MTU))
        await one.send(long)
        assert await two.receive() == long
        with pytest.raises(ValueError, match=f"a frame of {14 + MAX_MTU + 5} bytes: 14 to {14 + MAX_MTU + 4} go"):
            await one.send(frame(2, 1, bytes(MAX_MTU + 5)))


@pytest.mark.parametrize(("asked", "there"), [(1500, MAX_MTU), (MAX_MTU, 1500)])
async def test_the_smaller_mtu_holds(asked: int, there: int) -> None:
    """Of what the driver asks for and what the port has."""
    async with networks(1, NetworkSettings(mtu=asked), mtu=there) as (_, [network]):
        assert network.mtu == 1500


async def test_frames_that_are_none() -> None:
    """Shorter than a header: the caller's mistake, and nothing of the batch is sent."""
    async with networks(1) as (_, [network]):
        with pytest.raises(ValueError, match="a frame of 13 bytes"):
            await network.send_batch([frame(2, 1), bytes(13)])
        await network.send_batch([])
        assert network.statistics().frames_sent == 0


async def test_many_senders_at_once() -> None:
    """Each in its own order; more messages than there are sections wait their turn."""
    async with networks(2, NetworkSettings(send_buffer=24 << 10)) as (_, [one, two]):

        async def send(number: int) -> None:
            for index in range(100):
                await one.send(frame(2, 1, struct.pack("<II", number, index)))

        got: list[tuple[int, int]] = []
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(send, number)
            got = [struct.unpack_from("<II", one, 14) for one in await frames_of(two, 500)]
        for number in range(5):
            assert [index for who, index in got if who == number] == list(range(100))


async def test_a_flood_with_small_rings() -> None:
    """Both rings full in both directions: nobody waits for ever, and what the host has no room for is dropped."""
    async with networks(2, NetworkSettings(receive_buffer=64 << 10), ring_bytes=8192) as (wire, [one, two]):

        async def flood(network: Network, to: int, source: int) -> None:
            for index in range(100):
                await network.send_batch([frame(to, source, struct.pack("<I", index) * 250)] * 16)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood, one, 2, 1)
            nursery.start_soon(flood, two, 1, 2)
        await wait_all_tasks_blocked()
        assert one.statistics().frames_sent == two.statistics().frames_sent == 1600
        for network, guest in ((one, wire.guests[0]), (two, wire.guests[1])):
            assert network.statistics().frames_received > 100
            assert guest.stopped == []
        await one.send(frame(2, 1, b"still there"))


async def test_a_program_that_does_not_read() -> None:
    """Loses frames, which are counted; the host is not held up."""
    async with networks(2) as (_, [one, two]):
        sent = 0
        while sent < KEPT_FRAMES + 100:
            await one.send_batch([frame(2, 1)] * 64)
            sent += 64
        await wait_all_tasks_blocked()
        assert two.statistics().dropped == sent - KEPT_FRAMES


async def test_who_else_reads() -> None:
    """A queue of its own gets each frame from then on; nobody's queue fills for nothing."""
    async with networks(2) as (_, [one, two]):
        with_ip = two.frames()
        await one.send(frame(2, 1, b"first"))
        assert await with_ip.receive() == frame(2, 1, b"first")
        await wait_all_tasks_blocked()
        assert len(two._own_queue) == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(two.receive)
            await wait_all_tasks_blocked()
            await one.send(frame(2, 1, b"second"))
        assert await with_ip.receive() == frame(2, 1, b"second")
        with_ip.close()
        await one.send(frame(2, 1, b"third"))
        assert await two.receive() == frame(2, 1, b"third")
        assert len(two._queues) == 1


async def test_a_filter() -> None:
    """Frames for others come to who asks for all of them, as far as the switch sends them there."""
    async with networks(3, settings=PortSettings(spoofing=True)) as (_, [one, two, three]):
        await two.set_filter(PacketFilter.PROMISCUOUS)
        stray = frame(99, 1)
        await one.send(stray)
        await one.send(frame(3, 1))
        assert await two.receive() == stray
        assert await three.receive() == frame(3, 1)
        await two.set_filter(PacketFilter(0))
        await one.send(frame(2, 1))
        await wait_all_tasks_blocked()
        assert two.statistics().frames_received == 1


# --- offloads


async def test_tags() -> None:
    """In the frame or beside it: the receiver has it in the frame."""
    async with networks(2, settings=PortSettings(trunk=ALL_VLANS)) as (_, [one, two]):
        await one.send(frame(2, 1, vlan=7))
        assert await two.receive() == frame(2, 1, vlan=7)
        await one.send(frame(2, 1), Offload(vlan=9, priority=5))
        tagged = await two.receive()
        assert f.parse_ethernet(tagged).vlan == 9
        assert tagged[14] >> 5 == 5
        assert tagged[:12] + tagged[16:] == frame(2, 1)
        full = frame(2, 1, bytes(1500), vlan=7)
        await one.send(full)
        assert await two.receive() == full


def ipv4(protocol: int, payload: bytes) -> bytes:
    source, destination = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
    return f.ethernet_header(mac(2), mac(1), 0x0800) + f.encode_ipv4(source, destination, protocol, payload, ident=7)


def pseudo_sum(protocol: int, length: int) -> int:
    """What a driver leaves in the place of a checksum."""
    words = bytes([10, 0, 0, 1, 10, 0, 0, 2]) + struct.pack(">HH", protocol, length)
    return 0xFFFF - f.checksum(words)


async def test_a_checksum_that_is_left_to_the_host() -> None:
    """UDP's, and the one of the IPv4 header: the receiver finds both right."""
    async with networks(2) as (_, [one, two]):
        data = b"some data that is odd"
        length = 8 + len(data)
        whole = ipv4(17, struct.pack(">HHHH", 5000, 7, length, pseudo_sum(17, length)) + data)
        spoiled = whole[:24] + bytes(2) + whole[26:]
        flags = TransmitChecksum.IPV4 | TransmitChecksum.UDP | TransmitChecksum.IPV4_HEADER
        await one.send(spoiled, Offload(checksum=flags, transport_offset=34))
        packet = f.parse_ipv4((await two.receive())[14:])
        assert f.parse_udp(packet.source, packet.destination, packet.payload).data == data


async def test_a_segment_that_is_left_to_the_host() -> None:
    """60 KiB of TCP come as full frames, with sequence numbers, flags and checksums of their own."""
    async with networks(2) as (_, [one, two]):
        data = random.Random(2).randbytes(60_000)
        tcp = struct.pack(">HHIIBBHHH", 5000, 80, 1000, 2000, 0x50, 0x19, 512, 0, 0) + data
        whole = ipv4(6, tcp)
        await one.send(whole, Offload(checksum=TransmitChecksum.IPV4, transport_offset=34, segment=1460))
        count = -(-len(data) // 1460)
        got = b""
        for index, part in enumerate(await frames_of(two, count)):
            packet = f.parse_ipv4(part[14:])
            header = struct.unpack_from(">HHIIBB", packet.payload)
            assert header[2] == 1000 + len(got)
            assert header[5] == (0x19 if index == count - 1 else 0x10)
            pseudo = packet.source + packet.destination + struct.pack(">HH", 6, len(packet.payload))
            assert f.sum_is_right(pseudo + packet.payload)
            got += packet.payload[20:]
        assert got == data
        assert two.statistics().frames_received == count


# --- subchannels


async def test_subchannels() -> None:
    """One more for each further processor; flows are spread over them, both ways, and each keeps its order."""
    settings = NetworkSettings(sub_channels=8)
    async with networks(2, settings, processors=4, max_sub_channels=8) as (wire, [one, two]):
        assert (one.channels, two.channels) == (4, 4)
        sent: dict[int, list[bytes]] = {}
        for index in range(600):
            port = 5000 + index % 30
            udp = struct.pack(">HHHH", port, 7, 12, 0) + struct.pack(">I", index)
            sent.setdefault(port, []).append(ipv4(17, udp))
        batch = [flow[index] for index in range(20) for flow in sent.values()]
        await wait_all_tasks_blocked()  # the host tells by which channels to send
        await one.send_batch(batch[:300])
        for each in batch[300:]:
            await one.send(each)
        got = await frames_of(two, 600)
        for port, flow in sent.items():
            assert [each for each in got if each[34:36] == port.to_bytes(2, "big")] == flow
        used = [[end.statistics() for _, end in guest.ends] for guest in wire.guests]
        assert sum(each.bytes_out > 2000 for each in used[0]) == 4
        assert sum(each.bytes_in > 200 for each in used[1]) == 4


async def test_fewer_subchannels_than_wanted() -> None:
    """As many as the adapter has; an older version has none."""
    async with networks(1, NetworkSettings(sub_channels=8), processors=8, max_sub_channels=2) as (_, [network]):
        assert network.channels == 3
    old = NetworkSettings(versions=[NvspVersion.V4], sub_channels=8)
    async with networks(1, old, processors=8, max_sub_channels=2) as (_, [network]):
        assert network.channels == 1


# --- link


async def test_the_cable_is_pulled_and_plugged_in() -> None:
    """The driver hears of it; frames meanwhile are dropped and counted at the guest's end."""
    async with networks(2) as (wire, [one, two]):
        changes: list[bool] = []

        async def follow() -> None:
            while True:
                changes.append(await one.link_change())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await wait_all_tasks_blocked()
            wire.guests[0].port.set_enabled(False)
            await one.wait_link(False)
            await one.send(frame(2, 1))
            await one.send_batch([frame(2, 1)] * 3)
            assert one.statistics().not_sent == 4
            wire.guests[0].port.set_enabled(True)
            await one.wait_link()
            await one.send(frame(2, 1, b"again"))
            assert await two.receive() == frame(2, 1, b"again")
            assert changes == [False, True]
            nursery.cancel_scope.cancel()


async def test_a_link_that_is_down_at_first() -> None:
    """Is learned when the driver asks."""
    async with adapters() as wire:
        wire.guests[0].port.set_enabled(False)
        async with driven(wire.guests[0]) as network:
            assert not network.link_up


# --- the end


async def test_rescinded_while_busy() -> None:
    """Who sends, who reads, who waits for the link: all hear of it; the others' guests go on, and no page is lost."""
    async with adapters(3) as wire, driven(wire.guests[1]) as two, driven(wire.guests[2]) as three:
        ended: list[str] = []

        async def flood(network: Network) -> None:
            try:
                while True:
                    await network.send_batch([frame(2, 1, bytes(1000))] * 100)
            except NetworkGone:
                ended.append("send")

        async def until_the_end(name: str, wait: partial[object]) -> None:
            try:
                while True:
                    await wait()  # type: ignore[misc]
            except trio.EndOfChannel:
                ended.append(name)

        async with driven(wire.guests[0]) as one, trio.open_nursery() as nursery:
            nursery.start_soon(flood, one)
            nursery.start_soon(until_the_end, "receive", partial(one.receive_batch))
            nursery.start_soon(until_the_end, "link", partial(one.link_change))
            await three.send(frame(2, 3))
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            wire.guests[0].rescind()
        assert sorted(ended) == ["link", "receive", "send"]
        with pytest.raises(NetworkGone):
            await one.set_filter(PacketFilter.DIRECTED)
        await three.send(frame(2, 3, b"last"))
        while await two.receive() != frame(2, 3, b"last"):
            pass


async def test_closed_while_busy(autojump_clock: MockClock) -> None:
    """The driver lets go in the middle of traffic: what is under way is answered first."""
    async with adapters(2) as wire, driven(wire.guests[1]) as two:
        async with driven(wire.guests[0]) as one:
            await one.send_batch([frame(2, 1, bytes(1000))] * 300)
            await two.send_batch([frame(1, 2, bytes(1000))] * 300)
        assert len(await frames_of(two, 300)) == 300


async def test_the_guest_is_switched_off_in_the_middle() -> None:
    """Its tasks are cancelled wherever they are, again and again: the host goes on, and the next life is a new one."""
    choose = random.Random(8)
    async with adapters(2) as wire, driven(wire.guests[1]) as two:
        for _ in range(20):
            with trio.CancelScope() as power:

                async def pull(power: trio.CancelScope = power) -> None:
                    for _ in range(choose.randrange(60)):
                        await trio.lowlevel.checkpoint()
                    power.cancel()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(pull)
                    async with driven(wire.guests[0]) as one:
                        while True:
                            await one.send_batch([frame(2, 1)] * 10)
            await wait_all_tasks_blocked()
            assert wire.guests[0].gpadls == {}, "what a cancelled driver leaves is cleaned up behind it"
        async with driven(wire.guests[0]) as one:
            await one.send(frame(2, 1, b"at last"))
        while await two.receive() != frame(2, 1, b"at last"):
            pass


async def test_a_cancelled_sender_leaves_nothing_taken() -> None:
    """Sections of what was not sent are free again; the others come back with their answers."""
    async with networks(2, NetworkSettings(send_buffer=60 << 10), ring_bytes=8192) as (_, [one, _two]):
        for _ in range(30):
            with trio.move_on_after(0.0005):
                while True:
                    await one.send_batch([frame(2, 1, bytes(1400))] * 40)
        await wait_all_tasks_blocked()
        sections = one._sender.sections
        assert sections is not None
        assert len(sections.free) == sections.count


# --- a host that stands still


def full(host_end: Channel) -> list[Packet]:
    """What lies in the guest's ring, taken out."""
    packets: list[Packet] = []
    while batch := host_end.try_receive_batch():
        packets += batch
    return packets


async def test_no_room_in_the_ring(autojump_clock: MockClock) -> None:
    """Senders wait, and one that is cancelled gives back the sections of what was not sent."""
    async with networks(1, NetworkSettings(send_buffer=1 << 20), ring_bytes=8192) as (wire, [network]):
        host_end = wire.guests[0].stand_still()
        await wait_all_tasks_blocked()
        with trio.move_on_after(0):
            await network.send_batch([frame(2, 1, bytes(1400))] * 500)
        with trio.move_on_after(0.01) as batch:
            await network.send_batch([frame(2, 1, bytes(1400))] * 500)
        with trio.move_on_after(0.01) as single:
            while True:
                await network.send(frame(2, 1))
        assert batch.cancelled_caught
        assert single.cancelled_caught
        sections = network._sender.sections
        assert sections is not None
        sent = [packet.transaction_id - 1 for packet in full(host_end)]
        assert len(sent) > 50
        assert sorted([*sections.free, *sent]) == list(range(sections.count))


async def test_no_room_for_answers(autojump_clock: MockClock) -> None:
    """They are kept and go when there is room: the driver reads on meanwhile."""
    async with networks(1, NetworkSettings(send_buffer=1 << 20), ring_bytes=8192) as (wire, [network]):
        host_end = wire.guests[0].stand_still()
        with trio.move_on_after(0.01):
            await network.send_batch([frame(2, 1, bytes(1400))] * 500)
        ranges = struct.pack("<HBBIII", 0xCAFE, 0, 0, 1, 0, 0)
        body = ranges + struct.pack("<I", NvspType.SEND_RNDIS_PACKET).ljust(32, b"\0")
        for number in range(100, 160):
            await host_end.send(Packet(PacketType.TRANSFER_PAGES, 1, number, 16, body))
        await wait_all_tasks_blocked()
        answered = [packet.transaction_id for packet in full(host_end) if packet.type == PacketType.COMPLETION]
        assert len(answered) < 10
        await wait_all_tasks_blocked()
        answered += [packet.transaction_id for packet in full(host_end) if packet.type == PacketType.COMPLETION]
        assert answered == list(range(100, 160))
        assert network.statistics().bad_messages == 60


# --- a host that talks nonsense


async def test_nonsense_from_the_host_ends_the_driver_alone() -> None:
    """A packet that cannot be: whoever uses the adapter hears why."""
    async with networks(1) as (wire, [network]):
        host_end = wire.guests[0].ends[0][0]
        body = struct.pack("<HBBIII", 0xBEEF, 0, 0, 1, 10, 0) + struct.pack("<I", NvspType.SEND_RNDIS_PACKET).ljust(
            32, b"\0"
        )
        host_end.try_send_batch([Packet(PacketType.TRANSFER_PAGES, 1, 99, 16, body)])
        with pytest.raises(trio.EndOfChannel):
            await network.receive()
        with pytest.raises(NetworkGone, match="corrupt: 1 transfer ranges of buffer 0xbeef"):
            await network.send(frame(2, 1))


async def test_a_bad_range_costs_its_frames_only() -> None:
    """Outside of the receive buffer, or no RNDIS message: dropped, counted, answered."""
    async with networks(1) as (wire, [network]):
        host_end = wire.guests[0].ends[0][0]
        ranges = struct.pack("<HBBI", 0xCAFE, 0, 0, 3) + struct.pack("<6I", 10, 0xFFFF_0000, 4, 0, 0xFFFF_FFFF, 8)
        body = ranges + struct.pack("<I", NvspType.SEND_RNDIS_PACKET).ljust(32, b"\0")
        host_end.try_send_batch([Packet(PacketType.TRANSFER_PAGES, 1, 99, 32, body)])
        host_end.try_send_batch([Packet(PacketType.INBAND, 0, 0, 0, struct.pack("<I", 77))])
        await wait_all_tasks_blocked()
        assert network.statistics().bad_messages == 3
        assert network.statistics().unexpected == 1
        assert network.link_up
