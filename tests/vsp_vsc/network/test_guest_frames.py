"""RNDIS data messages as the driver writes and reads them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.wire import WireError
from vsp_vsc.network.guest_frames import Offload, header, header_with, pack_messages, take_messages
from vsp_vsc.network.rndis import PacketInfo, RndisPacket, TransmitChecksum

frames_of = st.lists(st.binary(min_size=14, max_size=200), min_size=1, max_size=20)


def taken(data: bytes) -> tuple[list[bytes], bytes | None]:
    frames: list[bytes] = []
    rest = take_messages(memoryview(b"before" + data + b"after"), 6, len(data), frames)
    return frames, rest


@given(frames_of, st.integers(60, 3000), st.integers(1, 9))
def test_what_is_packed_is_taken(frames: list[bytes], room: int, most: int) -> None:
    """In messages that begin at multiples of 8, no longer than there is room for, no more than may be."""
    start = 0
    while start < len(frames):
        message, count = pack_messages(frames, start, room, most)
        assert len(message) <= room
        assert count <= most
        if not count:
            assert message == b""
            assert 44 + len(frames[start]) + 7 & ~7 > room
            count = 1
        else:
            assert taken(message) == (frames[start : start + count], None)
            more = start + count < len(frames) and count < most
            assert not more or len(message) + (44 + len(frames[start + count]) + 7 & ~7) > room
        start += count


def test_one_frame_alone() -> None:
    """44 bytes and the frame, as Linux writes it."""
    message = header(60) + bytes(60)
    assert message[:44] == struct.pack("<11I", 1, 104, 36, 60, 0, 0, 0, 0, 0, 0, 0)
    assert taken(message) == ([bytes(60)], None)


@pytest.mark.parametrize(
    ("offload", "pieces"),
    [
        (Offload(), []),
        (Offload(vlan=7, priority=5), [(PacketInfo.IEEE_8021Q, 0x75)]),
        (
            Offload(checksum=TransmitChecksum.IPV4 | TransmitChecksum.UDP, transport_offset=34),
            [(PacketInfo.TCPIP_CHECKSUM, 0x0022_0009)],
        ),
        (
            Offload(checksum=TransmitChecksum.IPV4, transport_offset=34, segment=1460, vlan=1),
            [(PacketInfo.TCP_LARGE_SEND, 0x4220_05B4), (PacketInfo.IEEE_8021Q, 0x10)],
        ),
        (
            Offload(checksum=TransmitChecksum.IPV6, transport_offset=54, segment=1440),
            [(PacketInfo.TCP_LARGE_SEND, 0xC360_05A0)],
        ),
    ],
)
def test_offloads(offload: Offload, pieces: list[tuple[int, int]]) -> None:
    """Pieces of 16 bytes behind the packet's header, the frame behind them; none costs nothing."""
    info = offload.encode()
    assert info == b"".join(struct.pack("<4I", 16, kind, 12, value) for kind, value in pieces)
    message = header_with(100, info) + bytes(100)
    packet = RndisPacket.decode(message, 8)
    assert (packet.data_offset, packet.data_length, packet.info_length) == (36 + len(info), 100, len(info))
    assert packet.info_offset == (36 if info else 0)
    assert not info or message[8 + packet.info_offset :][: len(info)] == info


def test_a_tag_beside_the_frame_is_put_in() -> None:
    """VLAN, drop eligibility and priority; other information is passed over."""
    frame = bytes(range(20))
    info = struct.pack("<4I", 16, PacketInfo.HASH_VALUE, 12, 9) + struct.pack(
        "<4I", 16, PacketInfo.IEEE_8021Q, 12, 0x7D
    )
    frames, _ = taken(header_with(20, info) + frame)
    assert frames == [frame[:12] + b"\x81\x00\xb0\x07" + frame[12:]]
    frames, _ = taken(header_with(20, info[:16]) + frame)
    assert frames == [frame]


def test_control_messages_are_copied() -> None:
    """Whatever is no packet; the caller knows what to do with it, and frames before it are kept."""
    control = struct.pack("<III", 7, 20, 0) + bytes(8)
    assert taken(control) == ([], control)
    packed, _ = pack_messages([bytes(20)], 0, 1000, 1)
    assert taken(packed + control) == ([bytes(20)], control)


@pytest.mark.parametrize(
    ("words", "length"),
    [
        ((1, 200, 36, 60), 104),
        ((1, 43, 36, 0), 104),
        ((1, 104, 35, 60), 104),
        ((1, 104, 36, 61), 104),
        ((1, 104, 0xFFFF_FFFF, 60), 104),
        ((1, 104, 36, 0xFFFF_FFFF), 104),
        ((1, 104, 36, 60, 0, 0, 0, 30, 16), 104),
        ((1, 104, 36, 60, 0, 0, 0, 36, 61), 104),
        ((1, 104, 52, 44, 0, 0, 0, 36, 16), 104),
        ((1, 104), 7),
    ],
)
def test_messages_that_contradict_themselves(words: tuple[int, ...], length: int) -> None:
    """Longer than what is there, shorter than a header, data or information outside: `WireError`, and no frame."""
    data = struct.pack(f"<{len(words)}I", *words).ljust(104, b"\0")[:length]
    frames: list[bytes] = []
    with pytest.raises(WireError):
        take_messages(memoryview(data.ljust(200, b"\xff")), 0, length, frames)
    assert frames == []


def test_information_behind_the_message_is_not_read() -> None:
    """However well it looks: it is another message's, or nobody's."""
    info = struct.pack("<4I", 16, PacketInfo.IEEE_8021Q, 12, 0x10)
    message = struct.pack("<11I", 1, 64, 36, 20, 0, 0, 0, 56, 16, 0, 0) + bytes(20) + info
    with pytest.raises(WireError, match="16 bytes of per-packet information at 56 of 64"):
        take_messages(memoryview(message), 0, 64, [])


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes(data: bytes, packet: bool) -> None:
    """Are frames, a control message or a `WireError`."""
    if packet:
        data = struct.pack("<II", 1, len(data) + 8) + data
    try:
        taken(data)
    except WireError:
        pass
