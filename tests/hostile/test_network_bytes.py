"""Any bytes for a network adapter: its decoders give a value or a `WireError`, its session goes on or stops."""

from __future__ import annotations

import struct

from hypothesis import example, given, settings
from hypothesis import strategies as st

from hypervisor.trace import Trace
from hypervisor.wire import WireError
from tests.doubles.campaign import examples
from tests.doubles.network_vsp import FakePort, frame
from tests.doubles.storage import PlainPlatform
from tests.hostile.test_network import nvsp_message
from vmbus.gpadl import page_range
from vmbus.ring import Packet, PacketType
from vmbus.server.opened import ChannelGpadls, HoldCounts
from vsp_vsc.network import control
from vsp_vsc.network import protocol as nvsp
from vsp_vsc.network.adapter import AdapterState, Counters
from vsp_vsc.network.from_guest import FrameReader
from vsp_vsc.network.negotiation import Negotiation
from vsp_vsc.network.offload import MAX_SEGMENTS, fill_checksums, segment
from vsp_vsc.network.rndis import Oid
from vsp_vsc.network.session import NetworkSession
from vsp_vsc.network.spreading import hash_input


def session(memory_pages: int = 64) -> tuple[NetworkSession, FakePort, AdapterState]:
    """A session that is ready, in plain memory."""
    platform, port = PlainPlatform(1 << 20), FakePort()
    state = AdapterState(port, "nic", 2, Counters())
    gpadls = ChannelGpadls(
        5, lambda _, gpadl: (page_range(range(gpadl, gpadl + memory_pages)),), HoldCounts(lambda *_: None)
    )
    made = NetworkSession(
        state,
        platform.guest,
        trace=Trace(lambda: 0),
        partition_id=7,
        channel_id=5,
        negotiation=Negotiation(state, platform.guest, gpadls),
        offer_sub_channels=lambda _: None,
    )
    for kind, body in (
        (1, nvsp.NvspInit(0x60001, 0x60001).encode()),
        (125, nvsp.NdisConfig(1514, 0, 8).encode()),
        (100, nvsp.NdisVersion(6, 30).encode()),
        (101, nvsp.SendBuffer(0, 7).encode()),
        (104, nvsp.SendBuffer(64, 0).encode()),
    ):
        made.take([Packet(PacketType.INBAND, 1, 1, 0, nvsp_message(kind, body))])
    made.outbox.clear()
    state.filter = 0x20
    return made, port, state


RNDIS_BYTES = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda words, tail: struct.pack(f"<{len(words)}I", *words) + tail,
        st.lists(st.one_of(st.integers(0, 64), st.integers(0, 0xFFFF_FFFF), st.sampled_from([*Oid])), max_size=24),
        st.binary(max_size=80),
    ),
)


@settings(max_examples=examples(400), deadline=None)
@given(
    st.lists(st.one_of(st.integers(0, 9), st.integers(0, 0xFFFF_FFFF)), min_size=1, max_size=11),
    st.binary(max_size=300),
)
def test_any_data_message_is_frames_or_an_error(words: list[int], tail: bytes) -> None:
    """Nothing but a `WireError`, and no frame of a message that has one."""
    data = struct.pack(f"<{len(words)}I", *words) + tail
    for borders in ((), (44,), (50, 60)):
        frames: list[bytes] = [b"before"]
        try:
            FrameReader(1522, Counters()).read(data, frames, borders)
        except WireError:
            assert frames == [b"before"]
        assert all(14 <= len(one) <= 1526 for one in frames[1:])


@settings(max_examples=examples(300), deadline=None)
@given(RNDIS_BYTES)
@example(struct.pack("<II", 2, 24) + bytes(16))
def test_any_control_message_has_an_answer_or_is_refused(data: bytes) -> None:
    """In all states; what an answer says lies within it."""
    _, _, state = session()
    for padded in (data, data.ljust(64, b"\0")):
        try:
            answered = control.check(padded)
        except WireError:
            continue
        if answered:
            reply, words = control.answer(state, padded)
            assert struct.unpack_from("<I", reply, 4)[0] == len(reply)
            assert words


@settings(max_examples=examples(300), deadline=None)
@given(st.binary(min_size=14, max_size=200), st.integers(0, 0xFFFF_FFFF), st.integers(0, 1600))
def test_any_frame_with_any_offload(data: bytes, flags: int, mss: int) -> None:
    """Frames, or an error; never more of them than there may be, and no byte is lost."""
    try:
        assert len(fill_checksums(data, flags & 0xFFFF, flags >> 16 & 0x3FF)) == len(data)
    except WireError:
        pass
    try:
        pieces = segment(data, mss, flags & 0x3FF, ipv6=bool(flags >> 31))
    except WireError:
        return
    assert 1 <= len(pieces) <= MAX_SEGMENTS
    hash_input(data, flags)


@settings(max_examples=examples(200), deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([PacketType.INBAND, PacketType.GPA_DIRECT, PacketType.COMPLETION]),
            st.sampled_from([1, 100, 101, 103, 104, 106, 107, 107, 107, 108, 125, 129, 131, 133, 9999]),
            st.integers(0, 40),
            st.lists(st.one_of(st.integers(0, 300), st.integers(0, 0xFFFF_FFFF)), max_size=10),
        ),
        max_size=12,
    ),
    RNDIS_BYTES,
)
def test_any_packets(packets: list[tuple[PacketType, int, int, list[int]]], message: bytes) -> None:
    """Whatever a guest sends, a session goes on or stops by a `WireError`; pieces are each in one place."""
    made, _, state = session()
    assert state.send is not None
    state.send.write(0, message[:6144])
    for kind, message_type, number, words in packets:
        body = struct.pack("<I", message_type) + struct.pack(f"<{len(words)}I", *words)
        offset = 0
        if kind == PacketType.GPA_DIRECT:
            extended = struct.pack("<IIIIQ", 0, 1, len(message) or 1, 0, 64)
            offset, body = len(extended), extended + body
        padded = body.ljust(-(-len(body) // 8) * 8, b"\0")
        try:
            made.take([Packet(kind, 1, number, offset, padded)])
        except WireError:
            return
        made.put([frame(70), frame(1514)])
        receive = state.receive
        if receive is not None:
            at_guest = [piece for pieces in made._writer.in_flight.values() for piece in pieces]
            everywhere = sorted([*receive.free, *receive.free_control, *at_guest])
            assert everywhere == list(range(receive.count))
        del made.outbox[:]
