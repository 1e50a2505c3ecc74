"""What a driver can have of its network adapter: offloads, tags, filters, objects, link, subchannels."""

from __future__ import annotations

import struct

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.doubles.looking import faults, seen
from tests.doubles.network_vsp import (
    MAC,
    FakePort,
    NetworkPair,
    data_message,
    frame,
    info,
    initialize_message,
    serving,
    set_message,
)
from tests.vsp_vsc.network.test_offload import is_good, packet4, packet6, tcp, udp
from tests.vsp_vsc.network.test_spreading import KEY, packet
from vmbus.channel import Channel
from vmbus.ring import Packet, PacketType
from vsp_vsc.network import ndis
from vsp_vsc.network.protocol import NvspStatus, NvspType, NvspVersion, SubchannelRequest
from vsp_vsc.network.rndis import SEVERAL_PACKETS_PARAMETER, Oid, PacketInfo, RndisStatus, RndisType

TAGGED = 0x8
"""The guest wants VLAN tags beside its frames."""


# --- offloads


async def test_checksums_and_segments_are_done_before_the_switch() -> None:
    """It sees whole frames with good checksums; each sort is counted."""
    async with serving() as pair:
        await pair.start()
        offloads = [
            (packet4(6, tcp(b"hello")), info(PacketInfo.TCPIP_CHECKSUM, 0x15 | 34 << 16)),
            (packet4(17, udp(b"hello")), info(PacketInfo.TCPIP_CHECKSUM, 0x19 | 34 << 16)),
            (packet6(6, tcp(b"hello")), info(PacketInfo.TCPIP_CHECKSUM, 0x06 | 54 << 16)),
            (packet4(6, tcp(bytes(4000))), info(PacketInfo.TCP_LARGE_SEND, 1448 | 34 << 20)),
            (packet6(6, tcp(bytes(4000))), info(PacketInfo.TCP_LARGE_SEND, 1428 | 54 << 20 | 1 << 31)),
        ]
        for whole, information in offloads:
            assert await pair.transmit(data_message(whole, information)) == NvspStatus.SUCCESS
        assert len(pair.port.sent) == 3 + 3 + 3
        assert all(is_good(one) for one in pair.port.sent)
        counters = seen(pair.vsp.inspect(), "counters")
        assert (counters["filled"], counters["segmented"]) == (3, 2)


async def test_tags_go_into_the_frame_and_come_out_of_it() -> None:
    """Beside the frame for a guest that says it can; in it, as it is, for one that does not."""
    tag = info(PacketInfo.IEEE_8021Q, 37 << 4 | 5)
    tagged = frame(64)[:12] + b"\x81\0" + struct.pack(">H", 5 << 13 | 37) + frame(64)[12:]
    for capabilities in (0, TAGGED):
        async with serving() as pair:
            await pair.start(capabilities=capabilities)
            assert await pair.transmit(data_message(frame(64), tag)) == 1
            assert pair.port.sent == [tagged]
            pair.port.deliver(tagged, frame(60))
            beside, plain = await pair.received()
            assert beside == (data_message(frame(64), tag) if capabilities else data_message(tagged))
            assert plain == data_message(frame(60))


async def test_a_tag_and_a_checksum_together() -> None:
    """The checksum's place counts without the tag; segments are tagged each."""
    async with serving() as pair:
        await pair.start()
        tag = info(PacketInfo.IEEE_8021Q, 37 << 4)
        await pair.transmit(data_message(packet4(6, tcp(b"x")), info(0, 0x15 | 34 << 16) + tag))
        await pair.transmit(data_message(packet4(6, tcp(bytes(2000))), tag + info(2, 1000 | 34 << 20)))
        assert len(pair.port.sent) == 3
        assert all(one[12:16] == b"\x81\0\0\x25" and is_good(one, network=18) for one in pair.port.sent)


async def test_frames_are_marked_good_for_a_guest_that_asks() -> None:
    """By kind, and only what the guest has on; fragments have no TCP header to be good."""
    async with serving() as pair:
        await pair.start()
        whole = packet4(6, tcp(b"x" * 20))
        pair.port.deliver(whole)
        assert await pair.received() == [data_message(whole)]
        wanted = ndis.OffloadParameters(ipv4_header=4, tcp_ipv4=4, udp_ipv4=4, tcp_ipv6=4, udp_ipv6=1)
        assert await pair.set(Oid.TCP_OFFLOAD_PARAMETERS, wanted.encode()) == 0
        (told,) = await pair.received()
        assert struct.unpack_from("<IIIII", told) == (7, 20 + 156, RndisStatus.TASK_OFFLOAD_CURRENT_CONFIG, 156, 12)
        assert told[20:] == (await pair.query(Oid.TCP_OFFLOAD_CURRENT_CONFIG))[1]
        fragment = whole[:20] + b"\x20\0" + whole[22:]
        cases = [
            (whole, 0x28),
            (packet4(17, udp(b"x" * 20)), 0x30),
            (packet4(1, bytes(20)), 0x20),
            (packet6(6, tcp(b"x")), 0x08),
            (packet6(17, udp(b"x" * 20)), 0),
            (fragment, 0x20),
            (frame(60), 0),
        ]
        pair.port.deliver(*(one for one, _ in cases))
        got = await pair.received()
        assert got == [data_message(one, info(0, good) if good else b"") for one, good in cases]


async def test_several_frames_in_a_piece_for_a_driver_that_takes_them() -> None:
    """As many as it holds, each on a multiple of eight; a driver that has not said so has one in each."""
    async with serving() as pair:
        await pair.start(capabilities=TAGGED)
        name = SEVERAL_PACKETS_PARAMETER.encode("utf-16-le")
        head = struct.pack("<5I", 20, len(name), 0, 20 + len(name), 4)
        assert await pair.set(Oid.GEN_RNDIS_CONFIG_PARAMETER, head + name + b"\1\0\0\0") == 0
        tagged = frame(64, kind=0x8100)
        frames = [frame(size, fill=size) for size in (60, 61, 64, 1514, 1514, 900, 100)] + [tagged]
        pair.port.deliver(*frames)
        pieces = await pair.received()
        got = []
        for piece in pieces:
            assert len(piece) <= 1806 - 36
            while piece:
                length, offset, size = struct.unpack_from("<III", piece, 4)
                assert length % 8 == 0
                got.append(piece[8 + offset : 8 + offset + size])
                piece = piece[length:]
        assert got == [*frames[:-1], tagged[:12] + tagged[16:]]
        assert len(pieces) == 4


@pytest.mark.parametrize("several", [False, True])
async def test_frames_that_no_piece_holds_are_dropped(several: bool) -> None:
    """A guest whose MTU is less than the port's: what fits comes, what does not is counted, no piece runs over."""
    async with serving(port=FakePort(mtu=9000)) as pair:
        await pair.start(capabilities=TAGGED)
        if several:
            name = SEVERAL_PACKETS_PARAMETER.encode("utf-16-le")
            head = struct.pack("<5I", 20, len(name), 0, 20 + len(name), 4)
            assert await pair.set(Oid.GEN_RNDIS_CONFIG_PARAMETER, head + name + b"\1\0\0\0") == 0
        wanted = ndis.OffloadParameters(ipv4_header=4, tcp_ipv4=4)
        await pair.set(Oid.TCP_OFFLOAD_PARAMETERS, wanted.encode())
        await pair.received()
        sizes = range(1600, 1800)
        for size in sizes:
            whole = packet4(6, tcp(bytes(size - 58)))
            tagged = whole[:12] + b"\x81\0\0\5" + whole[12:]
            assert len(tagged) == size
            pair.port.deliver(tagged)
        got = 0
        longest = 0
        await wait_all_tasks_blocked()
        while packets := pair.guest_end.try_receive_batch():
            for one in packets:
                for piece in pair.contents(one):
                    assert len(piece) <= 1806 - 36
                    longest = max(longest, struct.unpack_from("<I", piece, 12)[0])
                    got += 1
                await pair.acknowledge(one.transaction_id)
            await wait_all_tasks_blocked()
        assert got == longest + 4 - 1600 + 1 > 80
        assert seen(pair.vsp.inspect(), "counters")["too_long"] == len(sizes) - got


# --- filters


@pytest.mark.parametrize(
    ("filter_bits", "wanted"),
    [
        (0x01, "mine"),
        (0x04, "group listed"),
        (0x08, "all"),
        (0x02, "listed"),
        (0x0D, "mine group listed all"),
        (0x20, "mine other group listed all"),
        (0, ""),
    ],
)
async def test_a_guest_has_what_its_filter_lets_through(filter_bits: int, wanted: str) -> None:
    """Its own address, groups, those of its list, everybody's, anybody's."""
    addresses = {
        "mine": MAC,
        "other": b"\0\x15\x5d\0\0\x77",
        "group": b"\1\0\x5e\0\0\1",
        "listed": b"\1\0\x5e\0\0\2",
        "all": b"\xff" * 6,
    }
    async with serving() as pair:
        await pair.start(filter_bits=0)
        assert await pair.set(Oid.ETHERNET_MULTICAST_LIST, addresses["listed"]) == 0
        assert await pair.set(Oid.GEN_CURRENT_PACKET_FILTER, struct.pack("<I", filter_bits)) == 0
        frames = {name: frame(60, to=address) for name, address in addresses.items()}
        assert pair.port.deliver(*frames.values()) == 5
        expected = [data_message(frames[name]) for name in addresses if name in wanted.split()]
        assert (await pair.received() if expected else []) == expected
        assert pair.nothing()
        assert pair.vsp.statistics().filtered == 5 - len(expected)


async def test_an_address_of_the_guests_own_choice() -> None:
    """As Linux sets it: a parameter of that name."""
    async with serving() as pair:
        await pair.start()
        name, value = "NetworkAddress".encode("utf-16-le"), "00155dabcdef".encode("utf-16-le")
        head = struct.pack("<5I", 20, len(name), 2, 20 + len(name), len(value))
        assert await pair.set(Oid.GEN_RNDIS_CONFIG_PARAMETER, head + name + value) == 0
        assert await pair.query(Oid.ETHERNET_CURRENT_ADDRESS) == (0, bytes.fromhex("00155dabcdef"))
        assert await pair.query(Oid.ETHERNET_PERMANENT_ADDRESS) == (0, MAC)
        chosen = frame(60, to=bytes.fromhex("00155dabcdef"))
        pair.port.deliver(frame(60), chosen)
        assert await pair.received() == [data_message(chosen)]


# --- objects


async def test_what_linux_asks_for() -> None:
    """Size, address, offloads, link, speed, scaling: all known, and as its driver reads them."""
    async with serving(max_sub_channels=3) as pair:
        await pair.start()
        assert await pair.query(Oid.GEN_MAXIMUM_FRAME_SIZE) == (0, struct.pack("<I", 1500))
        assert await pair.query(Oid.ETHERNET_PERMANENT_ADDRESS) == (0, MAC)
        assert await pair.query(Oid.GEN_MEDIA_CONNECT_STATUS) == (0, bytes(4))
        assert await pair.query(Oid.GEN_LINK_SPEED) == (0, struct.pack("<I", 100_000_000))
        status, value = await pair.query(Oid.TCP_OFFLOAD_HARDWARE_CAPABILITIES)
        offload = ndis.Offload.decode(value)
        assert (status, len(value), offload.size, offload.revision) == (0, 156, 156, 3)
        assert (offload.ipv4_transmit, offload.ipv6_transmit) == (0x155, 0x55)
        assert (offload.lso_ipv4_max_size, offload.lso_ipv4_min_segments, offload.lso_ipv6_options) == (0xF53C, 2, 5)
        status, value = await pair.query(Oid.GEN_RECEIVE_SCALE_CAPABILITIES)
        assert value == ndis.RssCapabilities(capabilities=0x301, receive_queues=4).encode()
        status, name = await pair.query(Oid.GEN_FRIENDLY_NAME)
        assert (len(name), name.decode("utf-16-le").rstrip("\0")) == (512, "network")


@pytest.mark.parametrize(("major", "minor", "count"), [(5, 1, 38), (6, 1, 49), (6, 30, 51)])
async def test_every_object_that_is_listed_is_there(major: int, minor: int, count: int) -> None:
    """It can be asked for or set; how many there are depends on the guest's NDIS."""
    async with serving() as pair:
        await pair.ask(NvspType.INIT, struct.pack("<II", 0x60001, 0x60001))
        await pair.ask(NvspType.SEND_NDIS_CONFIG, struct.pack("<IIQ", 1514, 0, 0))
        await pair.ask(NvspType.SEND_NDIS_VERSION, struct.pack("<II", major, minor))
        await pair.lend_buffers()
        await pair.control(initialize_message())
        _, value = await pair.query(Oid.GEN_SUPPORTED_LIST)
        oids = struct.unpack(f"<{len(value) // 4}I", value)
        assert len(set(oids)) == len(oids) == count
        for oid in oids:
            status, value = await pair.query(oid)
            if status:
                assert status == RndisStatus.NOT_SUPPORTED
                assert await pair.set(oid, bytes(128)) != RndisStatus.NOT_SUPPORTED


async def test_a_version_of_ndis_that_nobody_knows() -> None:
    async with serving() as pair:
        await pair.ask(NvspType.INIT, struct.pack("<II", 0x60001, 0x60001))
        await pair.ask(NvspType.SEND_NDIS_CONFIG, struct.pack("<IIQ", 1514, 0, 0))
        await pair.ask(NvspType.SEND_NDIS_VERSION, struct.pack("<II", 7, 0))
        await pair.lend_buffers()
        assert await pair.query(Oid.GEN_SUPPORTED_LIST) == (RndisStatus.BAD_VERSION, b"")


async def test_statistics() -> None:
    """The guest's own view: what it sent and received."""
    async with serving() as pair:
        await pair.start()
        await pair.transmit(data_message(frame(64)) * 3)
        pair.port.deliver(frame(100), frame(100))
        await pair.received()
        await pair.transmit(data_message(frame(64)[:5]))
        for oid, value in (
            (Oid.GEN_XMIT_OK, struct.pack("<I", 3)),
            (Oid.GEN_RCV_OK, struct.pack("<I", 2)),
            (Oid.GEN_BYTES_XMIT, struct.pack("<Q", 192)),
            (Oid.GEN_BYTES_RCV, struct.pack("<Q", 200)),
            (Oid.GEN_XMIT_ERROR, struct.pack("<I", 1)),
        ):
            assert await pair.query(oid) == (0, value)


async def test_offloads_by_name() -> None:
    """As Windows sets them from its registry: a digit, one for each direction."""
    async with serving() as pair:
        await pair.start()
        for name, value in (("*TCPChecksumOffloadIPv4", "2"), ("*LsoV2IPv4", "0"), ("*Unknown", "1")):
            name16, value16 = name.encode("utf-16-le"), value.encode("utf-16-le")
            head = struct.pack("<5I", 20, len(name16), 2, 20 + len(name16), len(value16))
            assert await pair.set(Oid.GEN_RNDIS_CONFIG_PARAMETER, head + name16 + value16) == 0
        offload = ndis.Offload.decode((await pair.query(Oid.TCP_OFFLOAD_CURRENT_CONFIG))[1])
        assert not offload.ipv4_transmit & 0x10
        assert offload.ipv4_receive & 0x10
        assert not offload.lso_ipv4_max_size
        assert offload.lso_ipv6_max_size


async def test_reset_and_halt() -> None:
    """RESET says that the filter is gone; after HALT, which has no answer, INITIALIZE works again, not before."""
    async with serving() as pair:
        await pair.start()
        again = await pair.control(initialize_message(4))
        assert struct.unpack_from("<II", again, 8) == (4, RndisStatus.FAILURE)
        assert await pair.control(struct.pack("<III", 6, 12, 0)) == struct.pack("<IIII", 0x8000_0006, 16, 0, 1)
        assert await pair.query(Oid.GEN_CURRENT_PACKET_FILTER) == (0, bytes(4))
        assert await pair.transmit(struct.pack("<III", RndisType.HALT, 12, 9)) == 1
        assert pair.nothing()
        again = await pair.control(initialize_message(5))
        assert struct.unpack_from("<II", again, 8) == (5, RndisStatus.SUCCESS)


# --- the cable


async def told_links(pair: NetworkPair) -> list[str]:
    """All indications until nothing more happens."""
    await wait_all_tasks_blocked()
    told = []
    while packets := pair.guest_end.try_receive_batch():
        for one in packets:
            (message,) = pair.contents(one)
            kind, _, status = struct.unpack_from("<III", message)
            assert kind == RndisType.INDICATE_STATUS
            told.append({0x4001000B: "up", 0x4001000C: "down"}[status])
            await pair.acknowledge(one.transaction_id)
        await wait_all_tasks_blocked()
    return told


async def test_the_guest_hears_of_its_cable(autojump_clock: MockClock) -> None:
    """Each change at once; one that is over before it was told is told as two, five seconds apart."""
    async with serving() as pair:
        await pair.start()
        pair.port.change_link(False)
        assert await told_links(pair) == ["down"]
        assert await pair.query(Oid.GEN_MEDIA_CONNECT_STATUS) == (0, struct.pack("<I", 1))
        pair.port.change_link(True)
        assert await told_links(pair) == ["up"]
        pair.port.change_link(False)
        pair.port.change_link(True)
        assert await told_links(pair) == ["down"]
        await trio.sleep(4.9)
        assert await told_links(pair) == []
        await trio.sleep(0.2)
        assert await told_links(pair) == ["up"]
        await trio.sleep(10)
        assert await told_links(pair) == []


async def test_a_cable_that_is_pulled_while_it_is_to_come_back(autojump_clock: MockClock) -> None:
    """The guest ends up with what is; nothing is told twice."""
    async with serving() as pair:
        await pair.start()
        pair.port.change_link(True)
        assert await told_links(pair) == ["down"]
        await trio.sleep(1)
        pair.port.change_link(False)
        assert await told_links(pair) == ["up"]
        await trio.sleep(6)
        assert await told_links(pair) == ["down"]


async def test_a_cable_that_changes_before_the_guest_has_asked(autojump_clock: MockClock) -> None:
    """It will ask."""
    async with serving() as pair:
        await pair.negotiate()
        await pair.lend_buffers()
        pair.port.change_link(False)
        assert await told_links(pair) == []
        await pair.control(initialize_message())
        assert await pair.query(Oid.GEN_MEDIA_CONNECT_STATUS) == (0, struct.pack("<I", 1))
        assert await told_links(pair) == []


# --- subchannels


async def ask_sub_channels(pair: NetworkPair, count: int, operation: int = 1) -> tuple[int, int]:
    answer = await pair.ask(NvspType.SUBCHANNEL, SubchannelRequest(operation, count).encode())
    kind, status, granted = struct.unpack_from("<III", answer)
    assert kind == NvspType.SUBCHANNEL
    return status, granted


async def start_spread(pair: NetworkPair, channels: int) -> list[Channel]:
    """All channels open, and frames spread over them; the guest's ends."""
    await pair.start(filter_bits=0x20)
    assert await ask_sub_channels(pair, channels - 1) == (1, channels - 1)
    ends = [pair.guest_end, *(pair.open_sub_channel(index) for index in range(1, channels))]
    table = await pair.hear()
    assert (table.type, table.flags, table.transaction_id) == (PacketType.INBAND, 0, 0)
    expected = struct.pack("<III", 134, 16, 12) + struct.pack("<16I", *(index % channels for index in range(16)))
    assert table.body == expected.ljust(80, b"\0")
    parameters = ndis.RssParameters(hash_info=0x301, table_size=512, table_offset=80, key_size=40, key_offset=40)
    entries = struct.pack("<128I", *(index % channels for index in range(128)))
    assert await pair.set(Oid.GEN_RECEIVE_SCALE_PARAMETERS, parameters.encode() + KEY + entries) == 0
    return ends


FLOWS = [packet("10.0.0.1", "10.0.0.2", (port, 80)) for port in range(40)]


async def test_frames_are_spread_over_the_channels() -> None:
    """By flow, in order; what has no flow is on the primary. Pieces come back by the channel they went by."""
    async with serving(max_sub_channels=3) as pair:
        ends = await start_spread(pair, 4)
        assert pair.sub_channels == [3]
        for _ in range(20):
            assert pair.port.deliver(*FLOWS, frame(60)) == 41
            got: list[list[bytes]] = []
            for end in ends:
                one = await end.receive()
                got.append([piece[44:] for piece in pair.contents(one)])
                await end.send(Packet(PacketType.COMPLETION, 0, one.transaction_id, 0, struct.pack("<II", 108, 1)))
            assert sorted(one for share in got for one in share) == sorted([*FLOWS, frame(60)])
            assert all(len(share) > 3 for share in got)
            assert got[0][-1] == frame(60)
            for share in got:
                assert [one for one in [*FLOWS, frame(60)] if one in share] == share
        assert pair.vsp.statistics().channels == 4


async def test_a_subchannel_sends_too() -> None:
    """With messages of the size that the primary agreed on; control messages are refused on it."""
    async with serving(max_sub_channels=1) as pair:
        ends = await start_spread(pair, 2)
        pair.guest_end = ends[1]
        assert await pair.transmit(data_message(frame(64))) == 1
        number = await pair.send_message(set_message(1, Oid.GEN_CURRENT_PACKET_FILTER, bytes(4)))
        completion = await pair.hear()
        assert completion.transaction_id == number
        assert completion.body == struct.pack("<II", 108, 2).ljust(40, b"\0")
        assert await pair.transmit(data_message(frame(64))) == 1


@pytest.mark.parametrize("kind", [1, 100, 101, 103, 104, 106, 125, 129, 133])
async def test_the_primarys_messages_stop_a_subchannel(kind: int) -> None:
    """Only that one; frames for it go by the primary from then on."""
    async with serving(max_sub_channels=1) as pair:
        ends = await start_spread(pair, 2)
        await ends[1].send(Packet(PacketType.INBAND, 1, 1, 0, struct.pack("<I", kind).ljust(40, b"\0")))
        await wait_all_tasks_blocked()
        assert len(pair.stopped) == 1
        pair.port.deliver(*FLOWS)
        assert len(await pair.received()) == len(FLOWS)
        assert await pair.transmit(data_message(frame(64))) == 1


async def test_requests_for_subchannels_that_are_not_granted() -> None:
    """More than there are, another operation, a bus that has no room; none is granted, and the channel goes on."""
    async with serving(max_sub_channels=2) as pair:
        await pair.start()
        for count, operation in ((3, 1), (0xFFFF_FFFF, 1), (1, 0), (1, 2)):
            assert await ask_sub_channels(pair, count, operation) == (2, 0)
        assert await ask_sub_channels(pair, 0) == (1, 0)
        pair.no_room = True
        assert await ask_sub_channels(pair, 1) == (2, 0)
        pair.no_room = False
        assert pair.sub_channels == []
        assert await ask_sub_channels(pair, 1) == (1, 1)
        assert await ask_sub_channels(pair, 2) == (1, 2)
        assert pair.sub_channels == [1, 2]


async def test_a_subchannel_that_closes_gives_its_pieces_back() -> None:
    """They serve the others."""
    async with serving(max_sub_channels=1) as pair:
        await start_spread(pair, 2)
        pair.port.deliver(*FLOWS)
        assert seen(pair.vsp.inspect(), "adapter/receive_buffer/free") == 129 - len(FLOWS)
        first = await pair.hear()
        pair.host_ends[1].close(by_peer=True)  # as the bus does
        await wait_all_tasks_blocked()
        await pair.acknowledge(first.transaction_id)
        await wait_all_tasks_blocked()
        assert seen(pair.vsp.inspect(), "adapter/receive_buffer/free") == 129


async def test_a_buffer_that_is_lent_anew_while_a_subchannel_has_pieces_of_the_old() -> None:
    """They are of no buffer any more: whatever the guest says of them, no piece of the new one is free twice."""
    async with serving(max_sub_channels=1) as pair:
        ends = await start_spread(pair, 2)
        for _ in range(3):
            pair.port.deliver(*FLOWS)
        packets = [[await end.receive() for _ in range(3)][2] for end in ends]
        await pair.say(struct.pack("<IH", 103, 0xCAFE), wanted=False)
        pair.receive_at = pair.lend(0xE1E13, 64)
        answer = await pair.ask(NvspType.SEND_RECEIVE_BUFFER, struct.pack("<IH", 0xE1E13, 0xCAFE))
        assert struct.unpack_from("<II", answer) == (102, 1)
        pair.port.deliver(*FLOWS)
        for _ in range(2):
            for end, one in zip(ends, packets, strict=True):
                await end.send(Packet(PacketType.COMPLETION, 0, one.transaction_id, 0, struct.pack("<II", 108, 1)))
            await wait_all_tasks_blocked()
            assert seen(pair.vsp.inspect(), "adapter/receive_buffer/free") == 129 - len(FLOWS)


async def test_what_versions_before_5_have_not() -> None:
    async with serving(max_sub_channels=1) as pair:
        await pair.start(NvspVersion.V4)
        await pair.say(struct.pack("<III", 133, 1, 1).ljust(28, b"\0"))
        await pair.ended.wait()
        assert len(pair.stopped) == 1


async def test_queries_beside_rndis_and_other_paths() -> None:
    """OID_QUERY_EX is not supported; the data path is synthetic whatever a guest would have."""
    async with serving() as pair:
        await pair.start()
        answer = await pair.ask(NvspType.OID_QUERY_EX, bytes(8))
        assert answer == struct.pack("<III", 132, RndisStatus.NOT_SUPPORTED, 0).ljust(40, b"\0")
        assert await pair.ask(NvspType.SWITCH_DATA_PATH, struct.pack("<I", 1)) == b""
        assert await pair.transmit(data_message(frame(64))) == 1


# --- for people


async def test_the_tree_and_the_trace() -> None:
    """All of it can be looked at in every state; what happens is told in words."""
    async with serving(listen=True, max_sub_channels=1) as pair:
        assert not faults(seen(pair.vsp.inspect()))
        await wait_all_tasks_blocked()
        assert seen(pair.vsp.inspect(), "traffic/state") == "version"
        await start_spread(pair, 2)
        pair.port.deliver(frame(60))
        await pair.received()
        await pair.transmit(data_message(frame(64)[:5]))
        tree = seen(pair.vsp.inspect())
        assert not faults(tree)
        assert tree["adapter"]["nvsp"] == "6.1"
        assert tree["traffic"]["version"] == "6.1"
        assert tree["adapter"]["rndis"] == "operational"
        assert tree["adapter"]["receive_buffer"]["pieces"] == 145
        assert tree["port"]["name"] == "web/0"
        for channel in (5, 6):
            branch = pair.vsp.inspect_channel(channel)
            assert not faults(seen(branch))
        with pytest.raises(LookupError):
            pair.vsp.inspect_channel(7)
        words = [event.words for event in pair.events]
        for expected in ("INIT 6.1", "SUBCHANNEL 1", "SET GEN_CURRENT_PACKET_FILTER"):
            assert expected in words
        assert any(text.startswith("1 frame: ") for text in words)
        (refused,) = [event for event in pair.events if event.event == "network_refused"]
        assert refused.words == "a frame of 5 bytes"
        assert attrs.asdict(pair.vsp.statistics())["refused"] == 1
