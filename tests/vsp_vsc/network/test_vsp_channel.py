"""The network VSP as a driver sees it that speaks bytes: initialization, frames both ways, what is told when."""

from __future__ import annotations

import struct

import pytest

from hypervisor.wire import BadValue
from tests.doubles.network_vsp import FakePort, data_message, frame, initialize_message, serving
from vmbus.ring import PacketType
from vsp_vsc.network import protocol as nvsp
from vsp_vsc.network.protocol import NO_SECTION, VERSIONS, NvspType, NvspVersion

USUAL_PIECES = (1806, 64 * 4096 // 1806)


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_version(version: NvspVersion) -> None:
    """INIT_COMPLETE has the size of the first one, what follows that of the one agreed on; frames go through."""
    async with serving() as pair:
        answer = await pair.ask(NvspType.INIT, nvsp.NvspInit(version, version).encode())
        told = 2 if version == NvspVersion.V1 else 0xFFFF_FFFF
        assert answer == struct.pack("<IIII", 2, told, 34, 1).ljust(32, b"\0")
        pair.version = version
        if version >= NvspVersion.V2:
            assert await pair.ask(NvspType.SEND_NDIS_CONFIG, nvsp.NdisConfig(1514, 0, 0).encode()) == b""
        assert await pair.ask(NvspType.SEND_NDIS_VERSION, nvsp.NdisVersion(6, 30).encode()) == b""
        await pair.lend_buffers()
        size, count = USUAL_PIECES
        expected = struct.pack("<IIIIIII", 102, 1, 1, 0, size, count, size * count)
        assert pair.pieces == expected.ljust(40 if version >= NvspVersion.V6_1 else 32, b"\0")
        await pair.control(initialize_message())
        await pair.set(0x1010E, struct.pack("<I", 0xD))
        assert await pair.transmit(data_message(frame(64))) == 1
        assert pair.port.sent == [frame(64)]
        pair.port.deliver(frame(60))
        packet = await pair.hear()
        assert len(packet.payload) == (40 if version >= NvspVersion.V6_1 else 32)
        (piece,) = pair.contents(packet)
        assert piece == data_message(frame(60))


async def test_an_unknown_version_is_told_so() -> None:
    """Status NONE, and the guest may ask again."""
    async with serving() as pair:
        for version in (0, 1, 3, 0x60002, 0xFFFF_FFFF):
            answer = await pair.ask(NvspType.INIT, nvsp.NvspInit(version, version).encode())
            assert answer == struct.pack("<IIII", 2, 0xFFFF_FFFF, 34, 0).ljust(32, b"\0")
        await pair.start()
        assert not pair.stopped


async def test_without_a_send_buffer() -> None:
    """The first RNDIS packet ends the initialization; messages lie in pages."""
    async with serving() as pair:
        await pair.negotiate()
        await pair.lend_buffers(send_pages=0)
        gpn = pair.platform.allocate_pages(1)
        message = initialize_message(9)
        pair.platform.memory[gpn << 12 : (gpn << 12) + len(message)] = message
        number = await pair.send_pages([(len(message), 0, [gpn])])
        assert await pair.completion(number) == nvsp.NvspStatus.SUCCESS
        (answer,) = await pair.received()
        assert struct.unpack("<13I", answer) == (0x8000_0002, 52, 9, 0, 1, 0, 1, 0, 8, 0xEFFF_FFFF, 3, 0, 0)


async def test_nothing_is_answered_that_wants_no_answer() -> None:
    """As Linux sends SEND_NDIS_CONFIG and SEND_NDIS_VERSION: without the flag."""
    async with serving() as pair:
        await pair.ask(NvspType.INIT, nvsp.NvspInit(0x60001, 0x60001).encode())
        await pair.say(struct.pack("<I", 125) + nvsp.NdisConfig(1514, 0, 0xAC).encode(), wanted=False)
        await pair.say(struct.pack("<I", 100) + nvsp.NdisVersion(6, 30).encode(), wanted=False)
        await pair.lend_buffers()
        assert pair.nothing()


@pytest.mark.parametrize(("mtu", "size"), [(0, 1806), (1513, 1806), (1514, 1806), (9216, 9508), (9217, 1806)])
async def test_an_mtu_that_cannot_be_is_the_default(mtu: int, size: int) -> None:
    """1514 to 9216, with the Ethernet header; a piece has room for it and headers."""
    async with serving(port=FakePort(mtu=9000)) as pair:
        await pair.negotiate(mtu=mtu)
        await pair.lend_buffers()
        assert struct.unpack_from("<I", pair.pieces, 16) == (size,)


async def test_sixteen_requests_at_once() -> None:
    """Completions first, then the answers in order, each in a piece of its own; the seventeenth waits for a piece."""
    async with serving() as pair:
        await pair.start()
        for number in range(17):
            await pair.send_message(struct.pack("<III", 8, 12, number), section=number)
        completions = [await pair.hear() for _ in range(17)]
        assert {packet.type for packet in completions} == {PacketType.COMPLETION}
        answers = [await pair.hear() for _ in range(16)]
        assert [pair.contents(packet) for packet in answers] == [
            [struct.pack("<IIII", 0x8000_0008, 16, number, 0)] for number in range(16)
        ]
        assert pair.nothing()
        await pair.acknowledge(answers[5].transaction_id)
        assert await pair.received() == [struct.pack("<IIII", 0x8000_0008, 16, 16, 0)]


async def test_a_message_that_begins_in_the_send_buffer() -> None:
    """And goes on in pages of the guest's, as Linux sends long frames."""
    async with serving() as pair:
        await pair.start()
        message = data_message(frame(1514))
        head, rest = message[:100], message[100:]
        pair.platform.memory[pair.send_at : pair.send_at + 100] = head
        gpn = pair.platform.allocate_pages(1)
        at = (gpn << 12) + 10
        pair.platform.memory[at : at + len(rest)] = rest
        number = await pair.send_pages([(len(rest), 10, [gpn])], section=0, size=100)
        assert await pair.completion(number) == 1
        assert pair.port.sent == [frame(1514)]


async def test_several_frames_of_different_kinds_in_one_message() -> None:
    """One after the other; and the same again, now that their headers are known."""
    async with serving() as pair:
        await pair.start()
        frames = [frame(size, fill=size) for size in (60, 60, 64, 1514, 60, 61)]
        message = b"".join(data_message(one) for one in frames)
        for _ in range(3):
            assert await pair.transmit(message) == 1
        assert pair.port.sent == frames * 3
        assert pair.port.batches == [6] * 3


async def test_frames_of_a_batch_go_to_the_switch_together() -> None:
    """However many messages they came in."""
    async with serving() as pair:
        await pair.start()
        for number in range(10):
            await pair.send_message(data_message(frame(64, fill=number)), section=number)
        for _ in range(10):
            await pair.hear()
        assert pair.port.batches == [10]


async def test_a_piece_is_used_again_only_after_its_completion() -> None:
    """What has no piece waits, in order, and comes when the guest gives some back."""
    async with serving() as pair:
        await pair.start()
        count = USUAL_PIECES[1] - 16
        frames = [frame(100, fill=index) for index in range(count + 10)]
        assert pair.port.deliver(*frames) == len(frames)
        packets = []
        got = []
        while len(got) < count:
            packets.append(await pair.hear())
            got += pair.contents(packets[-1])
        assert pair.nothing()
        assert len(got) == count
        for packet in packets:
            await pair.acknowledge(packet.transaction_id)
        while len(got) < count + 10:
            got += await pair.received()
        assert [piece[44:] for piece in got] == frames


async def test_what_finds_no_room_is_dropped_and_told() -> None:
    """The queue has an end; what is in it goes to the guest in order."""
    async with serving() as pair:
        await pair.start()
        frames = [frame(60, fill=index) for index in range(4000)]
        taken = pair.port.deliver(*frames)
        assert taken == USUAL_PIECES[1] - 16 + 2048
        assert pair.vsp.statistics().dropped == 4000 - taken
        got = []
        while len(got) < taken:
            got += await pair.received()
        assert [piece[44:] for piece in got] == frames[:taken]


async def test_a_ring_without_room() -> None:
    """A guest that does not read holds nothing up but itself; later it has everything in order."""
    async with serving(ring_bytes=8192) as pair:
        await pair.start()
        frames = [frame(60, fill=index) for index in range(100)]
        for one in frames:
            assert pair.port.deliver(one) == 1
        got = []
        while len(got) < 100:
            got += await pair.received()
        assert [piece[44:] for piece in got] == frames
        assert await pair.transmit(data_message(frame(64))) == 1


async def test_revoked_buffers_are_the_guests_again() -> None:
    """And it may lend others; what comes in between is dropped, or refused."""
    async with serving() as pair:
        await pair.start()
        pair.port.deliver(frame(60))
        packet = await pair.hear()
        await pair.say(struct.pack("<IH", 103, 0xCAFE), wanted=False)
        await pair.say(struct.pack("<IH", 106, 0), wanted=False)
        status = await pair.completion(await pair.send_message(data_message(frame(60))))
        assert status == nvsp.NvspStatus.FAIL
        for gpadl in (0xE1E11, 0xE1E12):
            assert pair.counts.count(5, gpadl) == 0
        assert pair.port.deliver(frame(60)) == 1
        assert pair.nothing()
        await pair.acknowledge(packet.transaction_id)
        await pair.lend_buffers()
        pair.port.deliver(frame(61))
        assert await pair.received() == [data_message(frame(61))]
        assert await pair.transmit(data_message(frame(62))) == 1
        assert not pair.stopped


async def test_pages_go_back_when_the_channel_closes() -> None:
    """Nothing holds them, and the port is free."""
    async with serving() as pair:
        await pair.start()
        assert pair.counts.count(5, 0xE1E11) == pair.counts.count(5, 0xE1E12) == 1
        pair.host_end.close()
        await pair.ended.wait()
        assert pair.counts.count(5, 0xE1E11) == pair.counts.count(5, 0xE1E12) == 0
        assert pair.port.adapter is None
        assert not pair.stopped


async def test_nothing_for_a_guest_that_is_not_there() -> None:
    """Before it has lent its buffers, and where it has set no filter."""
    async with serving() as pair:
        await pair.negotiate()
        assert pair.port.deliver(frame(60)) == 0
        await pair.lend_buffers()
        await pair.control(initialize_message())
        assert pair.port.deliver(frame(60)) == 1
        assert pair.nothing()
        assert pair.vsp.statistics().filtered == 1


async def test_scattered_pages() -> None:
    """A receive buffer in pages that lie anywhere: bytes go across their borders."""
    async with serving() as pair:
        await pair.negotiate()
        gpn = pair.lend(0xE1E11, 64, backwards=True) >> 12
        answer = await pair.ask(NvspType.SEND_RECEIVE_BUFFER, nvsp.SendBuffer(0xE1E11, 0xCAFE).encode())
        assert struct.unpack_from("<II", answer) == (102, 1)
        pair.send_at = pair.lend(0xE1E12, 4, backwards=True) + 3 * 4096
        await pair.ask(NvspType.SEND_SEND_BUFFER, nvsp.SendBuffer(0xE1E12, 0).encode())
        message = initialize_message()
        assert await pair.transmit(message) == 1
        packet = await pair.hear()
        at = struct.unpack_from("<I", packet.body, 12)[0]
        assert at == 0
        first = (gpn + 63) << 12
        assert bytes(pair.platform.memory[first : first + 4]) == b"\2\0\0\x80"
        await pair.acknowledge(packet.transaction_id)
        request = struct.pack("<I", 5) + struct.pack("<I", 32) + struct.pack("<IIIII", 1, 0x1010E, 4, 20, 0)
        assert await pair.transmit(request + struct.pack("<I", 0xD)) == 1
        await pair.acknowledge((await pair.hear()).transaction_id)
        sent = [frame(1514, fill=index) for index in range(4)]
        pair.port.deliver(*sent)
        packet = await pair.hear()
        whole = b"".join(bytes(pair.platform.memory[(gpn + 63 - n) << 12 : (gpn + 64 - n) << 12]) for n in range(64))
        for index, one in enumerate(sent):
            size, at = struct.unpack_from("<II", packet.body, 8 + 8 * index)
            assert whole[at : at + size] == data_message(one)


async def test_a_packet_without_a_section_or_pages_is_refused() -> None:
    """There is no message to look at."""
    async with serving() as pair:
        await pair.start()
        body = struct.pack("<IIII", 107, 0, NO_SECTION, 0)
        assert await pair.completion(await pair.say(body)) == nvsp.NvspStatus.FAIL


async def test_a_vsp_has_as_many_subchannels_as_there_can_be() -> None:
    """More, or less than none, is a mistake of ours."""
    from hypervisor.trace import Trace
    from tests.doubles.network_vsp import INSTANCE
    from vsp_vsc.network.vsp import NetworkVsp

    for count in (-1, 64):
        with pytest.raises(ValueError, match="0 to 63"):
            NetworkVsp(FakePort(), INSTANCE, Trace(lambda: 0), 7, max_sub_channels=count)


async def test_a_second_beginning_stops_the_channel() -> None:
    """Whatever is said twice."""
    for kind, body in (
        (NvspType.INIT, nvsp.NvspInit(0x60001, 0x60001).encode()),
        (NvspType.SEND_NDIS_CONFIG, nvsp.NdisConfig(1514, 0, 0).encode()),
        (NvspType.SEND_NDIS_VERSION, nvsp.NdisVersion(6, 30).encode()),
        (NvspType.SEND_RECEIVE_BUFFER, nvsp.SendBuffer(0xE1E11, 0xCAFE).encode()),
        (NvspType.SEND_SEND_BUFFER, nvsp.SendBuffer(0xE1E12, 0).encode()),
    ):
        async with serving() as pair:
            await pair.negotiate()
            await pair.lend_buffers()
            await pair.say(struct.pack("<I", kind) + body)
            await pair.ended.wait()
            assert [type(fault) for fault in pair.stopped] == [BadValue]
            assert pair.nothing()
