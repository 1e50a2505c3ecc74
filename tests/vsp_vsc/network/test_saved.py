"""A network adapter whose guest is saved: another host's VSP goes on where it was."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from hypervisor.wire import BadValue, WireError
from tests.doubles.looking import seen
from tests.doubles.network_vsp import INSTANCE, FakePort, data_message, frame, serving
from tests.vsp_vsc.network.test_vsp_features import FLOWS, TAGGED, start_spread
from vmbus.ring import Packet, PacketType
from vsp_vsc.network import ndis
from vsp_vsc.network.rndis import Oid
from vsp_vsc.network.saved import SavedAdapter, SavedSession, decode_session
from vsp_vsc.network.vsp import NetworkVsp


async def test_a_restored_adapter_goes_on() -> None:
    """Settings, buffers, and which pieces the guest has: all as it was."""
    async with serving() as pair:
        await pair.start(capabilities=TAGGED, filter_bits=0x20)
        wanted = ndis.OffloadParameters(tcp_ipv4=1, lso_v2_ipv6=1)
        assert await pair.set(Oid.TCP_OFFLOAD_PARAMETERS, wanted.encode()) == 0
        await pair.received()
        offloads = await pair.query(Oid.TCP_OFFLOAD_CURRENT_CONFIG)
        pair.port.deliver(*(frame(60, fill=index) for index in range(100)))
        first, second = await pair.hear(), await pair.hear()
        await pair.save_and_restore()
        assert pair.vsp.statistics().version == 0x60001
        assert await pair.query(Oid.TCP_OFFLOAD_CURRENT_CONFIG) == offloads
        assert await pair.query(Oid.GEN_CURRENT_PACKET_FILTER) == (0, struct.pack("<I", 0x20))
        assert await pair.transmit(data_message(frame(64))) == 1
        pair.port.deliver(*(frame(61, fill=index) for index in range(40)))
        packet = await pair.hear()
        assert len(pair.contents(packet)) == 29  # the others are at the guest
        for one in (first, second, packet):
            await pair.acknowledge(one.transaction_id)
        assert len(await pair.received()) == 11
        assert not pair.stopped


async def test_saved_in_the_middle_of_the_beginning() -> None:
    """After each step; the next one is taken as if nothing had been."""
    async with serving() as pair:
        await wait_all_tasks_blocked()
        await pair.save_and_restore()
        await pair.negotiate()
        await pair.save_and_restore()
        await pair.lend_buffers(send_pages=0)
        await pair.save_and_restore()
        pair.send_at = pair.lend(0xE1E12, 48)
        await pair.ask(104, struct.pack("<IH", 0xE1E12, 0))
        await pair.save_and_restore()
        assert await pair.transmit(data_message(frame(64))) == 1
        assert not pair.stopped


async def test_answers_that_had_no_room_are_kept() -> None:
    """And control messages that wait for a piece."""
    async with serving(ring_bytes=8192) as pair:
        await pair.start()
        sent = [await pair.send_message(struct.pack("<III", 8, 12, number), section=number) for number in range(20)]
        await wait_all_tasks_blocked()
        pair.port.deliver(*(frame(60, fill=index) for index in range(60)))
        for number in range(40):
            pair.port.deliver(frame(60, fill=60 + number))
        await wait_all_tasks_blocked()
        await pair.save_and_restore()
        completions: list[int] = []
        frames: list[bytes] = []
        replies: list[int] = []
        while packets := pair.guest_end.try_receive_batch():
            for packet in packets:
                if packet.type == PacketType.COMPLETION:
                    completions.append(packet.transaction_id)
                    continue
                for piece in pair.contents(packet):
                    if piece[:4] == b"\1\0\0\0":
                        frames.append(piece[44:])
                    else:
                        replies.append(struct.unpack_from("<I", piece, 8)[0])
                await pair.acknowledge(packet.transaction_id)
            await wait_all_tasks_blocked()
        assert completions == sent
        assert replies == list(range(20))
        assert 60 <= len(frames) < 100  # what waited for room in the ring is lost
        assert frames == [frame(60, fill=index) for index in range(len(frames))]
        assert seen(pair.vsp.inspect(), "adapter/receive_buffer/free") == 129  # all were told of and given back
        assert await pair.transmit(data_message(frame(64))) == 1


async def test_channels_that_were_spread_over_stay_so() -> None:
    """Pieces that the guest has by way of a subchannel come back by that one."""
    async with serving(max_sub_channels=1) as pair:
        ends = await start_spread(pair, 2)
        pair.port.deliver(*FLOWS)
        packets = [await end.receive() for end in ends]
        await pair.save_and_restore(max_sub_channels=1)
        for end, packet in zip(ends, packets, strict=True):
            await end.send(Packet(PacketType.COMPLETION, 0, packet.transaction_id, 0, struct.pack("<II", 108, 1)))
        await wait_all_tasks_blocked()
        state = pair.vsp._state
        assert state is not None
        assert state.receive is not None
        assert len(state.receive.free) == 129
        assert pair.port.deliver(*FLOWS) == len(FLOWS)
        got = [pair.contents(await end.receive()) for end in ends]
        assert sum(map(len, got)) == len(FLOWS)
        assert all(got)
        assert not pair.stopped


async def test_another_link_is_told() -> None:
    """The cable may hang loose at the new host."""
    async with serving() as pair:
        await pair.start()
        pair.port.link_up = False
        await pair.save_and_restore()
        (told,) = await pair.received()
        assert struct.unpack_from("<III", told) == (7, 20, 0x4001_000C)


async def good_records() -> list[bytes]:
    async with serving(max_sub_channels=1) as pair:
        await start_spread(pair, 2)
        pair.port.deliver(*FLOWS)
        records = [pair.vsp.save(5), pair.vsp.save(6)]
        assert all(records)
        return [record for record in records if record]


@pytest.mark.parametrize(
    "change",
    [
        {"state": "elsewhere"},
        {"version": 3},
        {"version": 0},
        {"rndis": "running"},
        {"config_mtu": 100},
        {"channels": 3},
        {"channels": 0},
        {"max_channels": 65},
        {"filter": -1},
        {"capabilities": -1},
        {"transmit": 32},
        {"address": b"12345"},
        {"multicast": [b"12345"]},
        {"multicast": [b"123456"] * 65},
        {"control": [bytes(8)]},
        {"control": [b"\3\0\0\0".ljust(12, b"\0")]},
        {"control": [b"\x08\0\0\0".ljust(12, b"\0")] * 9000},
        {"ndis": (1 << 32, 0)},
        {"ndis": None},
        {"receive": (1 << 32, 0)},
        {"receive": (1, 1 << 16)},
        {"spreading": (bytes(39), [0] * 128, 1)},
        {"spreading": (bytes(40), [0] * 127, 1)},
        {"spreading": (bytes(40), [2] * 128, 1)},
    ],
)
async def test_a_record_that_cannot_be(change: dict[str, object]) -> None:
    """Refused before anything is made of it."""
    record, _ = await good_records()
    saved = msgspec.msgpack.decode(record, type=SavedSession)
    assert isinstance(saved.adapter, SavedAdapter)
    decode_session(msgspec.msgpack.encode(saved))
    changed = msgspec.structs.replace(saved, adapter=msgspec.structs.replace(saved.adapter, **change))
    with pytest.raises(BadValue):
        decode_session(msgspec.msgpack.encode(changed))


async def test_records_that_do_not_go_together_stop_the_channel() -> None:
    """Pieces in two places, buffers that are no GPADLs, a subchannel's for the primary; another host with less."""
    primary, _ = await good_records()
    saved = msgspec.msgpack.decode(primary, type=SavedSession)
    twice = [*saved.in_flight, (99, saved.in_flight[0][1])]
    far = [(99, [1 << 20])]
    for forged in (
        msgspec.structs.replace(saved, in_flight=twice),
        msgspec.structs.replace(saved, in_flight=far),
        msgspec.structs.replace(saved, in_flight=[(99, [])]),
        msgspec.structs.replace(saved, adapter=None),
        saved,  # whose GPADLs this guest has not
    ):
        async with serving(max_sub_channels=1) as pair:
            if forged is not saved:
                await pair.negotiate()
                await pair.lend_buffers()
            pair.host_end.close(by_peer=True)
            await pair.ended.wait()
            assert pair.nursery is not None
            restored = pair.vsp.load(msgspec.msgpack.encode(forged))
            pair.nursery.start_soon(pair._serve, pair.rings[0].new_host(), 0, restored)
            await wait_all_tasks_blocked()
            assert len(pair.stopped) == 1
            assert not pair.counts.count(5, 0xE1E11)
    less = NetworkVsp(FakePort(), INSTANCE, pair.trace, 7)
    with pytest.raises(BadValue, match="2 channels"):
        less.load(primary)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_an_error(untrusted: bytes) -> None:
    try:
        decode_session(untrusted)
    except WireError:
        pass


@pytest.mark.parametrize(
    "packet",
    [(9, 0, 0, 0, b""), (6, 2, 0, 0, b""), (6, 0, -1, 0, b""), (7, 1, 0, 4, bytes(8)), (7, 1, 0, 16, bytes(8))],
)
def test_packets_that_no_adapter_sends(packet: tuple[int, int, int, int, bytes]) -> None:
    with pytest.raises(BadValue):
        decode_session(msgspec.msgpack.encode(SavedSession(None, [], [packet])))
