"""A guest that sends its network adapter what it should not: refused, or its channel stopped; never more.

The numbers are those of the list of malformed inputs that the adapter is held to (64 to 80).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

import pytest
import trio

from tests.doubles.network_vsp import (
    MAC,
    NetworkPair,
    data_message,
    frame,
    info,
    initialize_message,
    serving,
    set_message,
)
from vmbus.gpadl import GpadlRange, page_range
from vmbus.ring import COMPLETION_REQUESTED, Packet, PacketType
from vsp_vsc.network import ndis
from vsp_vsc.network import protocol as nvsp
from vsp_vsc.network.protocol import NO_SECTION, NvspStatus, NvspType, NvspVersion
from vsp_vsc.network.rndis import Oid, PacketInfo, RndisStatus, RndisType

FAIL = NvspStatus.FAIL
GOOD = frame(64)


async def still_works(pair: NetworkPair) -> None:
    """The channel goes on, both ways."""
    before = len(pair.port.sent)
    assert await pair.transmit(data_message(GOOD)) == NvspStatus.SUCCESS
    assert pair.port.sent[before:] == [GOOD]
    assert pair.port.deliver(frame(61)) == 1
    assert (await pair.received())[0].endswith(frame(61))
    assert not pair.stopped


async def refused(pair: NetworkPair, message: bytes) -> None:
    """FAIL, nothing sent, and the channel goes on."""
    before, count = len(pair.port.sent), pair.vsp.statistics().refused
    assert await pair.transmit(message) == FAIL
    assert len(pair.port.sent) == before
    assert pair.vsp.statistics().refused == count + 1
    assert pair.trace.warnings[7, "network_refused"] == count + 1


async def stopped(pair: NetworkPair) -> None:
    """The channel is served no more; nothing was said, the port is free, and the guest has its pages."""
    await pair.ended.wait()
    assert len(pair.stopped) == 1
    assert pair.nothing()
    assert pair.port.adapter is None
    assert pair.vsp.statistics().stopped == pair.trace.warnings[7, "network_stopped"] == 1
    assert not pair.counts.count(5, 0xE1E11)


def nvsp_message(kind: int, body: bytes = b"") -> bytes:
    return (struct.pack("<I", kind) + body).ljust(40, b"\0")


# --- 64 to 68: coming to terms


@pytest.mark.parametrize("version", [0, 1, 3, 0x20000, 0x60002, 0x70000, 0xFFFF_FFFF])
async def test_64_a_version_that_nobody_speaks(version: int) -> None:
    """Told so, however often; then the guest may ask for a good one."""
    async with serving() as pair:
        for _ in range(3):
            answer = await pair.ask(NvspType.INIT, nvsp.NvspInit(version, NvspVersion.V6_1).encode())
            assert nvsp.NvspInitComplete.decode(answer, 4).status == NvspStatus.NONE
        await pair.start()
        await still_works(pair)


@pytest.mark.parametrize("kind", [kind for kind in NvspType if kind != NvspType.INIT])
async def test_65_anything_before_init_stops_the_channel(kind: NvspType) -> None:
    async with serving() as pair:
        await pair.say(nvsp_message(kind, bytes(12)))
        await stopped(pair)


@pytest.mark.parametrize("step", ["nothing", "config", "versions"])
async def test_65_a_packet_before_the_buffers_stops_the_channel(step: str) -> None:
    async with serving() as pair:
        await pair.ask(NvspType.INIT, nvsp.NvspInit(0x60001, 0x60001).encode())
        if step != "nothing":
            await pair.ask(NvspType.SEND_NDIS_CONFIG, nvsp.NdisConfig(1514, 0, 0).encode())
        if step == "versions":
            await pair.ask(NvspType.SEND_NDIS_VERSION, nvsp.NdisVersion(6, 30).encode())
        await pair.say(nvsp_message(NvspType.SEND_RNDIS_PACKET, struct.pack("<III", 1, NO_SECTION, 0)))
        await stopped(pair)


async def test_65_a_receive_buffer_before_the_mtu_stops_the_channel() -> None:
    """From version 3.2 on; version 1 has no SEND_NDIS_CONFIG."""
    async with serving() as pair:
        await pair.ask(NvspType.INIT, nvsp.NvspInit(NvspVersion.V2, NvspVersion.V2).encode())
        pair.lend(1, 64)
        await pair.say(nvsp_message(NvspType.SEND_RECEIVE_BUFFER, nvsp.SendBuffer(1, 7).encode()))
        await stopped(pair)


@pytest.mark.parametrize("ready", [False, True])
async def test_66_a_second_receive_buffer_stops_the_channel(ready: bool) -> None:
    """Whether frames lie in the first one or not; nothing of it is in anybody's hands then."""
    async with serving() as pair:
        await pair.negotiate()
        await pair.lend_buffers(send_pages=48 if ready else 0)
        pair.lend(9, 64)
        await pair.say(nvsp_message(NvspType.SEND_RECEIVE_BUFFER, nvsp.SendBuffer(9, 7).encode()))
        await stopped(pair)


@pytest.mark.parametrize("kind", [NvspType.SEND_RECEIVE_BUFFER, NvspType.SEND_SEND_BUFFER])
@pytest.mark.parametrize(
    "ranges",
    [
        pytest.param(None, id="unknown"),
        pytest.param((GpadlRange(4096 * 64 - 8, 0, tuple(range(64))),), id="not whole pages"),
        pytest.param((GpadlRange(4096 * 64, 8, tuple(range(65))),), id="an offset"),
        pytest.param((page_range(range(32)), page_range(range(32))), id="two ranges"),
        pytest.param((page_range(range(4090, 4190)),), id="past the end of memory"),
        pytest.param((page_range([(1 << 64) - 1] * 64),), id="page numbers of all ones"),
    ],
)
async def test_67_a_buffer_that_is_none(kind: NvspType, ranges: tuple[GpadlRange, ...] | None) -> None:
    """Status FAIL, nothing is held, and the guest may name another."""
    async with serving() as pair:
        await pair.negotiate()
        if ranges is not None:
            pair.gpadls[77] = ranges
        answer = await pair.ask(kind, nvsp.SendBuffer(77, 5).encode())
        assert struct.unpack_from("<III", answer) == (kind + 1, FAIL, 0)
        assert not pair.counts.count(5, 77)
        assert pair.vsp.statistics().refused == 1
        await pair.lend_buffers()
        await pair.control(initialize_message())
        await pair.set(Oid.GEN_CURRENT_PACKET_FILTER, struct.pack("<I", 0xD))
        await still_works(pair)


async def test_67_a_ring_full_of_buffers_holds_nobody_up() -> None:
    """A buffer may lie in any number of pages, and takes as long to look at; others run after each."""
    async with serving() as pair, trio.open_nursery() as nursery:
        await pair.start()
        pair.lend(77, 48, backwards=True)
        told = [pair.host_end.statistics().packets_out]

        async def somebody_else() -> None:
            while True:
                told.append(pair.host_end.statistics().packets_out)
                await trio.lowlevel.checkpoint()

        revoke = nvsp_message(NvspType.REVOKE_SEND_BUFFER, nvsp.RevokeBuffer(0).encode())
        lend = nvsp_message(NvspType.SEND_SEND_BUFFER, nvsp.SendBuffer(77, 0).encode())
        nursery.start_soon(somebody_else)
        both = [Packet(PacketType.INBAND, COMPLETION_REQUESTED, 1, 0, body) for body in (revoke, lend)]
        assert pair.guest_end.try_send_batch(both * 16) == 32
        answers: list[Packet] = []
        while len(answers) < 32:
            answers += await pair.guest_end.receive_batch()
        told.append(pair.host_end.statistics().packets_out)
        assert max(later - before for before, later in pairwise(told)) <= 2
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("pages", [1, 7])
async def test_68_a_receive_buffer_without_a_piece_for_frames(pages: int) -> None:
    """Sixteen pieces are for answers; a buffer of no more is refused."""
    async with serving() as pair:
        await pair.negotiate()
        pair.lend(3, pages)
        answer = await pair.ask(NvspType.SEND_RECEIVE_BUFFER, nvsp.SendBuffer(3, 5).encode())
        assert struct.unpack_from("<II", answer, 4) == (FAIL, 0)
        pair.lend(4, 8)
        answer = await pair.ask(NvspType.SEND_RECEIVE_BUFFER, nvsp.SendBuffer(4, 5).encode())
        assert struct.unpack_from("<IIIIII", answer, 4) == (1, 1, 0, 1806, 18, 1806 * 18)


# --- 69 to 71: where a message is


@pytest.mark.parametrize(
    ("section", "size"),
    [(32, 64), (0xFFFF_FFFE, 64), (699_051, 64), (0, 6145), (31, 6145), (0, 0xFFFF_FFFF), (NO_SECTION, 64), (0, 0)],
)
async def test_69_a_section_that_is_not_there(section: int, size: int) -> None:
    """Past the last, longer than one, or so far out that 32 bits do not hold where; or empty."""
    async with serving() as pair:
        await pair.start()
        body = struct.pack("<III", 0, section, size)
        assert await pair.completion(await pair.say(nvsp_message(NvspType.SEND_RNDIS_PACKET, body))) == FAIL
        await still_works(pair)


LAST_PAGE = (16 << 20) // 4096 - 1


@pytest.mark.parametrize(
    "ranges",
    [
        pytest.param([], id="no range"),
        pytest.param([(0, 0, [3])], id="an empty range"),
        pytest.param([(100, 4096, [3, 4])], id="an offset past the page"),
        pytest.param([(4097, 0, [3])], id="too few pages"),
        pytest.param([(100, 0, [LAST_PAGE + 1])], id="past the end of memory"),
        pytest.param([(100, 0, [(1 << 64) - 1])], id="a page number of all ones"),
        pytest.param([(5000, 0, [LAST_PAGE, LAST_PAGE + 1])], id="half past the end"),
        pytest.param([(4096 * 65, 0, [3] * 65)], id="more than a message may have"),
        pytest.param([(0xFFFF_FFFF, 4095, [3])], id="a length that overflows"),
    ],
)
async def test_70_pages_that_cannot_be(ranges: Sequence[tuple[int, int, Sequence[int]]]) -> None:
    async with serving() as pair:
        await pair.start()
        assert await pair.completion(await pair.send_pages(ranges)) == FAIL
        await still_works(pair)


async def test_70_a_message_longer_than_any_may_be() -> None:
    """However good it is: the host copies no more than so much for one completion."""
    message = data_message(frame(1500)) * (nvsp.MAX_MESSAGE // 1544 + 1)
    async with serving(ring_bytes=1 << 20) as pair:
        await pair.start()
        for size, status in ((nvsp.MAX_MESSAGE // 1544 * 1544, NvspStatus.SUCCESS), (len(message), FAIL)):
            pages = -(-size // 4096)
            gpn = pair.platform.allocate_pages(pages)
            pair.platform.memory[gpn << 12 : (gpn << 12) + size] = message[:size]
            number = await pair.send_pages([(size, 0, range(gpn, gpn + pages))])
            assert await pair.completion(number) == status
        assert len(pair.port.sent) == nvsp.MAX_MESSAGE // 1544
        await still_works(pair)


async def test_70_headers_that_cross_into_the_next_range() -> None:
    """Refused wherever the border is; a frame may cross."""
    async with serving() as pair:
        await pair.start()
        message = data_message(GOOD, info(PacketInfo.IEEE_8021Q, 0x50))
        for border in range(1, len(message)):
            first, second = pair.platform.allocate_pages(1), pair.platform.allocate_pages(1)
            pair.platform.memory[first << 12 : (first << 12) + border] = message[:border]
            pair.platform.memory[second << 12 : (second << 12) + len(message) - border] = message[border:]
            number = await pair.send_pages([(border, 0, [first]), (len(message) - border, 0, [second])])
            status = await pair.completion(number)
            whole = border == 44 or border >= 60
            assert status == (NvspStatus.SUCCESS if whole else FAIL), border
            pair.platform.free_pages(first, 1)
            pair.platform.free_pages(second, 1)
        await still_works(pair)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(data_message(GOOD, data_offset=0xFFFF_FFFF), id="70 data offset of all ones"),
        pytest.param(data_message(GOOD, data_offset=0xFFFF_FFE4), id="70 offset and length past 32 bits"),
        pytest.param(data_message(GOOD, data_offset=37), id="70 a frame that reaches past its message"),
        pytest.param(data_message(GOOD, data_length=65), id="70 a frame longer than its message"),
        pytest.param(data_message(GOOD, data_length=0xFFFF_FFFF), id="70 a length of all ones"),
        pytest.param(data_message(GOOD, data_length=0), id="70 no frame"),
        pytest.param(data_message(GOOD, info_offset=36, info_length=0xFFFF_FFFF), id="70 information of all ones"),
        pytest.param(data_message(GOOD, info_offset=0xFFFF_FFF0, info_length=32), id="70 information past 32 bits"),
        pytest.param(data_message(GOOD, bytes(16)), id="70 information of size 0"),
        pytest.param(data_message(GOOD, struct.pack("<IIII", 11, 6, 8, 0)), id="70 information without a header"),
        pytest.param(data_message(GOOD, struct.pack("<IIII", 17, 6, 12, 0)), id="70 information past the end"),
        pytest.param(data_message(GOOD, struct.pack("<IIII", 16, 6, 17, 0)), id="70 a value past its information"),
        pytest.param(data_message(GOOD, struct.pack("<IIII", 16, 6, 13, 0)), id="70 a value of three bytes"),
        pytest.param(data_message(GOOD, info(6, 0) + b"\x10\0\0\0"), id="70 a piece of four bytes behind another"),
        pytest.param(data_message(GOOD, oob_length=4), id="70 out-of-band data"),
        pytest.param(data_message(GOOD, oob_offset=4), id="70 an offset of out-of-band data"),
        pytest.param(data_message(GOOD, oob_count=1), id="70 a count of out-of-band data"),
        pytest.param(data_message(GOOD, vc_handle=1), id="70 a handle"),
        pytest.param(data_message(GOOD, length=0), id="71 length 0"),
        pytest.param(data_message(GOOD, length=7), id="71 length 7"),
        pytest.param(data_message(GOOD, length=43), id="71 shorter than its header"),
        pytest.param(
            data_message(b"", data_offset=0, data_length=14, length=40, reserved=1) + data_message(GOOD)[4:],
            id="71 a header that begins in another's",
        ),
        pytest.param(data_message(GOOD, length=109), id="71 longer than there is"),
        pytest.param(data_message(GOOD, length=0xFFFF_FFFF), id="71 length of all ones"),
        pytest.param(data_message(GOOD) + b"\0", id="71 a byte behind it"),
        pytest.param(data_message(GOOD) + data_message(GOOD)[:43], id="71 another that is cut short"),
        pytest.param(data_message(GOOD) + set_message(1, 0x1010E, bytes(4)).ljust(64, b"\0"), id="71 another kind"),
        pytest.param(data_message(GOOD)[:43], id="71 cut short"),
        pytest.param(b"\1\0\0\0", id="71 four bytes"),
        pytest.param(b"\1", id="71 one byte"),
        pytest.param(data_message(GOOD[:13]), id="79 shorter than an Ethernet header"),
        pytest.param(data_message(frame(1523)), id="79 longer than the MTU with two tags"),
        pytest.param(data_message(frame(1523), info(6, 0x10)), id="79 longer than the MTU, and to be tagged"),
    ],
)
async def test_a_data_message_that_makes_no_sense(message: bytes) -> None:
    """FAIL, and not one frame of it is sent, alone or behind good ones."""
    async with serving() as pair:
        await pair.start()
        await refused(pair, message)
        await refused(pair, data_message(GOOD) + message)
        await refused(pair, data_message(GOOD) * 2 + message)
        await still_works(pair)


async def test_79_frames_as_long_as_can_be() -> None:
    """Fourteen bytes, and the MTU with an Ethernet header and two tags."""
    async with serving() as pair:
        await pair.start()
        for size in (14, 1522):
            assert await pair.transmit(data_message(frame(size))) == 1
        assert list(map(len, pair.port.sent)) == [14, 1522]


async def test_78_frames_of_anybodys_address_go_to_the_switch() -> None:
    """Which address may send, and into which VLAN, is for the switch to say: it has every frame as it is."""
    async with serving() as pair:
        await pair.start()
        spoofed = frame(64, to=b"\xff" * 6, source=b"\0\x15\x5d\xff\xff\xff")
        tagged = frame(64, kind=0x8100)
        for one in (spoofed, tagged):
            assert await pair.transmit(data_message(one)) == 1
        assert await pair.transmit(data_message(GOOD, info(PacketInfo.IEEE_8021Q, 0xFFFF_FFFF))) == 1
        assert pair.port.sent == [spoofed, tagged, GOOD[:12] + b"\x81\0\xff\xff" + GOOD[12:]]


# --- 72 to 77: control


@pytest.mark.parametrize("oid", [0, 0x0001_0100, 0x0001_0219, 0xFFFF_FFFF, 0x0101_01FF])
async def test_72_an_object_that_is_not_there(oid: int) -> None:
    """NOT_SUPPORTED; the answer's offset is there all the same, as Linux wants it."""
    async with serving() as pair:
        await pair.start()
        assert await pair.query(oid) == (RndisStatus.NOT_SUPPORTED, b"")
        assert await pair.set(oid, bytes(64)) == RndisStatus.NOT_SUPPORTED
        await still_works(pair)


@pytest.mark.parametrize(
    ("oid", "value", "status"),
    [
        (Oid.GEN_CURRENT_PACKET_FILTER, b"", RndisStatus.INVALID_LENGTH),
        (Oid.GEN_CURRENT_PACKET_FILTER, b"\x0d\0\0", RndisStatus.INVALID_LENGTH),
        (Oid.ETHERNET_MULTICAST_LIST, b"\1\0\x5e\0\0", RndisStatus.INVALID_LENGTH),
        (Oid.ETHERNET_MULTICAST_LIST, MAC, RndisStatus.INVALID_DATA),
        (Oid.ETHERNET_MULTICAST_LIST, b"\1\0\x5e\0\0\1" * 65, RndisStatus.MULTICAST_FULL),
        (Oid.TCP_OFFLOAD_PARAMETERS, b"\x80\1\x14", RndisStatus.INVALID_LENGTH),
        (Oid.TCP_OFFLOAD_PARAMETERS, ndis.OffloadParameters(size=21).encode(), RndisStatus.INVALID_DATA),
        (Oid.TCP_OFFLOAD_PARAMETERS, ndis.OffloadParameters(size=19).encode(), RndisStatus.INVALID_DATA),
        (Oid.TCP_OFFLOAD_PARAMETERS, ndis.OffloadParameters(revision=0).encode(), RndisStatus.INVALID_DATA),
        (Oid.TCP_OFFLOAD_PARAMETERS, ndis.OffloadParameters(object_type=0xA7).encode(), RndisStatus.INVALID_DATA),
        (Oid.TCP_OFFLOAD_PARAMETERS, ndis.OffloadParameters(lso_v1=2).encode(), RndisStatus.NOT_SUPPORTED),
        (Oid.OFFLOAD_ENCAPSULATION, ndis.OffloadEncapsulation(ipv4_header_size=18).encode(), RndisStatus.NOT_SUPPORTED),
        (Oid.OFFLOAD_ENCAPSULATION, ndis.OffloadEncapsulation(ipv6_type=1).encode(), RndisStatus.NOT_SUPPORTED),
        (Oid.OFFLOAD_ENCAPSULATION, b"\xa8\1\x1c\0", RndisStatus.INVALID_DATA),
        (Oid.GEN_RNDIS_CONFIG_PARAMETER, bytes(19), RndisStatus.INVALID_LENGTH),
        (Oid.GEN_RNDIS_CONFIG_PARAMETER, struct.pack("<5I", 20, 256, 2, 20, 0), RndisStatus.INVALID_DATA),
        (Oid.GEN_RNDIS_CONFIG_PARAMETER, struct.pack("<5I", 20, 0, 2, 20, 256), RndisStatus.INVALID_DATA),
        (Oid.GEN_RNDIS_CONFIG_PARAMETER, struct.pack("<5I", 0xFFFF_FFFF, 8, 2, 20, 0), RndisStatus.INVALID_LENGTH),
        (Oid.GEN_RNDIS_CONFIG_PARAMETER, struct.pack("<5I", 20, 0, 2, 20, 0), RndisStatus.INVALID_DATA),
        (Oid.GEN_RNDIS_CONFIG_PARAMETER, struct.pack("<5I2s", 20, 2, 2, 20, 0, b"\0\xd8"), RndisStatus.INVALID_DATA),
        (Oid.GEN_RNDIS_CONFIG_PARAMETER, struct.pack("<5I", 20, 0, 0, 20, 0), RndisStatus.INVALID_LENGTH),
    ],
)
async def test_72_a_value_that_makes_no_sense(oid: Oid, value: bytes, status: RndisStatus) -> None:
    """A status in its answer; nothing has changed."""
    async with serving() as pair:
        await pair.start()
        before = await pair.query(Oid.TCP_OFFLOAD_CURRENT_CONFIG)
        assert await pair.set(oid, value) == status
        assert await pair.query(Oid.TCP_OFFLOAD_CURRENT_CONFIG) == before
        await still_works(pair)


@pytest.mark.parametrize(("offset", "length"), [(0, 4), (19, 4), (20, 5), (0xFFFF_FFFF, 4), (20, 0xFFFF_FFFF), (24, 4)])
async def test_72_a_value_that_is_not_in_its_message(offset: int, length: int) -> None:
    """However the sum overflows."""
    async with serving() as pair:
        await pair.start()
        changed = {"info_offset": offset, "info_length": length}
        assert await pair.set(Oid.GEN_CURRENT_PACKET_FILTER, bytes(4), **changed) == RndisStatus.INVALID_DATA
        await still_works(pair)


@pytest.mark.parametrize("kind", [0, 9 + 1, 0x8000_0002, 0x8000_0004, 0xFFFF_FFFF, 0xFF00_0001])
async def test_71_a_control_message_of_no_known_kind(kind: int) -> None:
    async with serving() as pair:
        await pair.start()
        await refused(pair, struct.pack("<II", kind, 64).ljust(64, b"\0"))
        await still_works(pair)


@pytest.mark.parametrize(("kind", "least"), [(2, 24), (3, 12), (4, 28), (5, 28), (6, 12), (8, 12), (7, 20), (9, 28)])
async def test_71_a_control_message_that_is_cut_short(kind: int, least: int) -> None:
    async with serving() as pair:
        await pair.start()
        for size in range(4, least):
            await refused(pair, struct.pack("<II", kind, size).ljust(size, b"\0")[:size])
        await still_works(pair)


@pytest.mark.parametrize("kind", [RndisType.INDICATE_STATUS, RndisType.SET_EX])
async def test_what_only_a_host_says_is_not_answered(kind: RndisType) -> None:
    """It is taken as any message, counted, and that is all."""
    async with serving() as pair:
        await pair.start()
        message = struct.pack("<II", kind, 28).ljust(28, b"\0")
        assert await pair.transmit(message) == NvspStatus.SUCCESS
        assert pair.nothing()
        assert pair.vsp.statistics().refused == 1
        await still_works(pair)


def rss(**changes: int) -> bytes:
    """Good parameters for two channels, but for the changes."""
    values = {"hash_info": 0x201, "table_size": 16, "table_offset": 80, "key_size": 40, "key_offset": 40, **changes}
    return ndis.RssParameters(**values).encode() + bytes(range(40)) + struct.pack("<4I", 0, 1, 0, 1)


@pytest.mark.parametrize(
    ("value", "status"),
    [
        pytest.param(rss(key_size=0), RndisStatus.INVALID_DATA, id="73 no key"),
        pytest.param(rss(key_size=39), RndisStatus.INVALID_DATA, id="73 a key of 39 bytes"),
        pytest.param(rss(key_size=0xFFFF), RndisStatus.INVALID_DATA, id="73 a key of 65535 bytes"),
        pytest.param(rss(key_offset=0xFFFF_FFFF), RndisStatus.INVALID_LENGTH, id="73 a key that is not there"),
        pytest.param(rss(key_offset=57), RndisStatus.INVALID_LENGTH, id="73 a key that is cut short"),
        pytest.param(rss(table_size=0), RndisStatus.INVALID_DATA, id="73 no table"),
        pytest.param(rss(table_size=6), RndisStatus.INVALID_DATA, id="73 a table of one entry and a half"),
        pytest.param(rss(table_size=20), RndisStatus.INVALID_LENGTH, id="73 a table that is cut short"),
        pytest.param(rss(table_size=0xFFFC), RndisStatus.INVALID_LENGTH, id="73 a table of 65532 bytes"),
        pytest.param(rss(table_offset=0xFFFF_FFFF), RndisStatus.INVALID_LENGTH, id="73 a table that is not there"),
        pytest.param(rss()[:-4] + b"\2\0\0\0", RndisStatus.INVALID_DATA, id="74 a channel that is not there"),
        pytest.param(rss()[:-4] + b"\xff\xff\xff\xff", RndisStatus.INVALID_DATA, id="74 a channel of all ones"),
        pytest.param(rss(), RndisStatus.SUCCESS, id="good"),
        pytest.param(rss(flags=0x10, key_size=0), RndisStatus.SUCCESS, id="turned off"),
        pytest.param(b"", RndisStatus.SUCCESS, id="nothing at all is turned off"),
    ],
)
async def test_receive_side_scaling_that_makes_no_sense(value: bytes, status: RndisStatus) -> None:
    """Refused, and the frames go where they went."""
    async with serving(max_sub_channels=1) as pair:
        await pair.start()
        assert await pair.set(Oid.GEN_RECEIVE_SCALE_PARAMETERS, value) == status
        await still_works(pair)


def tcp(payload: int = 3000, *, offset: int = 5) -> bytes:
    """An IPv4 frame with TCP."""
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40 + payload, 7, 0, 64, 6, 0, b"\n\0\0\1", b"\n\0\0\2")
    header = struct.pack(">HHIIBBHHH", 1000, 80, 5, 6, offset << 4, 0x18, 100, 0, 0)
    return frame(14, kind=0x0800) + ip + header + bytes(payload)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(data_message(tcp(), info(2, 1460 | 1000 << 20)), id="75 no TCP header there, frame too long"),
        pytest.param(data_message(tcp(100), info(2, 1460 | 142 << 20)), id="75 header past the frame"),
        pytest.param(data_message(tcp(100), info(2, 1460 | 1023 << 20)), id="75 header far past the frame"),
        pytest.param(data_message(tcp(100), info(2, 34 << 20)), id="75 segments of no bytes"),
        pytest.param(data_message(tcp(), info(2, 1 | 34 << 20)), id="75 three thousand segments"),
        pytest.param(data_message(tcp(), info(2, 0xF_FFFF | 34 << 20)), id="75 segments longer than the MTU"),
        pytest.param(data_message(tcp(), info(2, 1460 | 34 << 20 | 1 << 31)), id="75 said to be IPv6"),
        pytest.param(data_message(tcp(100), info(0, 0x5 | 13 << 16)), id="75 checksum in the Ethernet header"),
        pytest.param(data_message(tcp(100), info(0, 0x5 | 33 << 16)), id="75 checksum in the IP header"),
        pytest.param(data_message(tcp(100), info(0, 0x5 | 154 << 16)), id="75 checksum past the frame"),
        pytest.param(data_message(tcp(100), info(0, 0x6 | 53 << 16)), id="75 checksum in an IPv6 header"),
    ],
)
async def test_75_offloads_that_point_outside_of_their_frame(message: bytes) -> None:
    async with serving() as pair:
        await pair.start()
        await refused(pair, message)
        await still_works(pair)


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(data_message(tcp(2048), info(2, 1 | 34 << 20)), id="segments of one byte, many times"),
        pytest.param(data_message(frame(14)), id="frames of fourteen bytes"),
        pytest.param(data_message(frame(14)) + data_message(frame(15)), id="and of fifteen"),
    ],
)
async def test_75_a_message_of_which_more_frames_come_than_others_can_wait_for(one: bytes) -> None:
    """256 KiB of these would have been a quarter of a million frames, in one go, while no other guest is served."""
    async with serving() as pair:
        await pair.start()
        await pair.transmit(data_message(frame(14)))  # its header is known
        pair.port.sent.clear()
        message = one * (nvsp.MAX_MESSAGE // len(one))
        pages = -(-len(message) // 4096)
        at = pair.lend(99, pages)
        pair.platform.memory[at : at + len(message)] = message
        number = await pair.send_pages([(len(message), 0, range(at >> 12, (at >> 12) + pages))])
        packet = await pair.hear()
        assert (packet.transaction_id, struct.unpack_from("<II", packet.payload)) == (number, (108, FAIL))
        assert not pair.port.sent
        await still_works(pair)


async def test_75_a_header_that_is_no_tcp_header_is_sent_as_it_is() -> None:
    """It is within the frame, so nothing points outside; whoever gets it drops it."""
    async with serving() as pair:
        await pair.start()
        garbage = b"\xcc" * 60
        for value in (info(2, 1460 | 34 << 20), info(0, 0x15), info(0, 0x6)):
            assert await pair.transmit(data_message(garbage, value)) == 1
        assert pair.port.sent == [garbage] * 3


@pytest.mark.parametrize("mtu", [0, 13, 65535, 0xFFFF_FFFF])
async def test_76_an_mtu_that_cannot_be(mtu: int) -> None:
    """The usual one is taken; frames longer than it do not get through."""
    async with serving() as pair:
        await pair.start(mtu=mtu)
        assert await pair.query(Oid.GEN_MAXIMUM_FRAME_SIZE) == (0, struct.pack("<I", 1500))
        await refused(pair, data_message(frame(1600)))
        pair.port.deliver(frame(9000))
        assert pair.nothing()
        await still_works(pair)


async def test_77_too_many_control_messages() -> None:
    """Sixteen are at the guest, 100 KiB wait; more are refused, and those that wait are answered when there is room."""
    async with serving() as pair:
        await pair.start()
        message = set_message(5, Oid.GEN_CURRENT_PACKET_FILTER, struct.pack("<I", 0xD)).ljust(6144, b"\0")
        taken = 0
        answers: list[Packet] = []
        while True:
            await pair.send_message(message)
            packet = await pair.hear()
            if struct.unpack_from("<I", packet.payload, 4)[0] == FAIL:
                break
            taken += 1
            if taken <= 16:
                answers.append(await pair.hear())
        assert taken == 16 + nvsp.MAX_CONTROL_BYTES // 6144
        while taken > 16:
            for packet in answers:
                await pair.acknowledge(packet.transaction_id)
            answers = [await pair.hear() for _ in range(min(16, taken - 16))]
            taken -= len(answers)
        for packet in answers:
            await pair.acknowledge(packet.transaction_id)
        await still_works(pair)


# --- 80: completions


@pytest.mark.parametrize("status", [0, 2, 6, 0xFFFF_FFFF])
async def test_80_a_completion_of_another_status(status: int) -> None:
    """The pieces are the host's again whatever became of the frames."""
    async with serving() as pair:
        await pair.start()
        for _ in range(300):
            pair.port.deliver(GOOD)
            packet = await pair.hear()
            await pair.acknowledge(packet.transaction_id, status=status)
        await still_works(pair)


@pytest.mark.parametrize(("number", "kind"), [(17, 108), (1 << 63, 108), (0xFFFF_FFFF_FFFF_FFFF, 108), (16, 107)])
async def test_80_a_completion_of_nothing(number: int, kind: int) -> None:
    """Ignored and counted; no piece is free twice."""
    async with serving() as pair:
        await pair.start()
        pair.port.deliver(GOOD)
        packet = await pair.hear()
        assert packet.transaction_id == 16
        for _ in range(3):
            await pair.acknowledge(number, kind=kind)
        await pair.acknowledge(16)
        await pair.acknowledge(16)
        await still_works(pair)
        assert pair.trace.warnings[7, "network_bad_completion"] == 4
        frames = [frame(60, fill=index) for index in range(129)]
        pair.port.deliver(*frames)
        got: list[bytes] = []
        numbers = []
        while len(got) < 129:
            packet = await pair.hear()
            numbers.append(packet.transaction_id)
            got += pair.contents(packet)
        assert [piece[44:] for piece in got] == frames
        assert len(set(numbers)) == len(numbers)


async def test_80_a_completion_without_words() -> None:
    async with serving() as pair:
        await pair.start()
        pair.port.deliver(GOOD)
        packet = await pair.hear()
        await pair.guest_end.send(Packet(PacketType.COMPLETION, 0, packet.transaction_id, 0, b""))
        await still_works(pair)


async def test_a_completion_before_anything_was_sent_stops_the_channel() -> None:
    async with serving() as pair:
        await pair.acknowledge(0)
        await stopped(pair)


# --- packets that are none, and what comes after the beginning


@pytest.mark.parametrize("kind", [0, 2, 99, 102, 105, 108, 109, 124, 128, 130, 132, 134, 135, 136, 137, 0xFFFF_FFFF])
async def test_messages_that_no_guest_may_send_stop_the_channel(kind: int) -> None:
    async with serving() as pair:
        await pair.start()
        await pair.say(nvsp_message(kind))
        await stopped(pair)


@pytest.mark.parametrize(
    ("version", "kind"),
    [(NvspVersion.V1, 125), (NvspVersion.V2, 129), (NvspVersion.V4, 131), (NvspVersion.V4, 133)],
)
async def test_messages_of_a_later_version_stop_the_channel(version: NvspVersion, kind: int) -> None:
    async with serving() as pair:
        await pair.start(version)
        await pair.say(nvsp_message(kind, struct.pack("<III", 1, 1, 0)))
        await stopped(pair)


@pytest.mark.parametrize("size", [0, 1, 3])
async def test_a_packet_too_short_for_a_message_stops_the_channel(size: int) -> None:
    """The ring pads to eight bytes, so only an empty one is that short on the wire."""
    async with serving() as pair:
        await pair.start()
        await pair.say(bytes(size)[:0])
        await stopped(pair)


async def test_a_transfer_page_packet_of_a_guests_stops_the_channel() -> None:
    async with serving() as pair:
        await pair.start()
        await pair.guest_end.send(Packet(PacketType.TRANSFER_PAGES, 1, 1, 8, bytes(48)))
        await stopped(pair)


async def test_after_it_has_stopped_the_guest_may_open_the_channel_again() -> None:
    """And begins anew, with the same adapter at the same port."""
    async with serving() as pair:
        await pair.start()
        await pair.say(nvsp_message(99))
        await stopped(pair)
        pair.stopped.clear()
        pair.guest_end = pair.open_sub_channel(0)
        await pair.start()
        await still_works(pair)


async def test_frames_in_front_of_a_mistake_were_sent() -> None:
    """What comes first in the ring is done, whatever follows."""
    async with serving() as pair:
        await pair.start()
        await pair.send_message(data_message(GOOD))
        await pair.say(nvsp_message(99))
        await pair.ended.wait()
        assert pair.port.sent == [GOOD]
