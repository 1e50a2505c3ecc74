"""Checksums, segmentation and tags that a guest leaves to its adapter, against slow words-by-words arithmetic."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.wire import BadValue
from tests.doubles.network_vsp import frame
from vsp_vsc.network.offload import checksum, fill_checksums, insert_tag, ones_sum, remove_tag, segment
from vsp_vsc.network.rndis import TransmitChecksum as T

IPV4_TCP = int(T.IPV4 | T.TCP | T.IPV4_HEADER)


def slow_sum(data: bytes) -> int:
    """RFC 1071, as it is written."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


def packet4(protocol: int, payload: bytes, *, options: bytes = b"", identification: int = 7) -> bytes:
    """An IPv4 frame, its checksums zero."""
    size = 20 + len(options)
    head = struct.pack(
        ">BBHHHBBH4s4s",
        0x40 | size // 4,
        0,
        size + len(payload),
        identification,
        0x4000,
        64,
        protocol,
        0,
        b"\n\0\0\1",
        b"\n\0\0\2",
    )
    return frame(14, kind=0x0800) + head + options + payload


def packet6(protocol: int, payload: bytes) -> bytes:
    head = struct.pack(">IHBB16s16s", 6 << 28, len(payload), protocol, 64, bytes(15) + b"\1", bytes(15) + b"\2")
    return frame(14, kind=0x86DD) + head + payload


def tcp(payload: bytes, *, sequence: int = 100, flags: int = 0x18, options: bytes = b"", wrong: int = 0xBEEF) -> bytes:
    size = 20 + len(options)
    return struct.pack(">HHIIBBHHH", 1, 2, sequence, 9, size // 4 << 4, flags, 500, wrong, 0) + options + payload


def udp(payload: bytes) -> bytes:
    return struct.pack(">HHHH", 5, 6, 8 + len(payload), 0xBEEF) + payload


def is_good(whole: bytes, *, network: int = 14) -> bool:
    """As a receiver checks: all sums with their checksums in place are all ones."""
    if whole[network] >> 4 == 4:
        size = (whole[network] & 15) * 4
        end = network + int.from_bytes(whole[network + 2 : network + 4], "big")
        protocol, addresses = whole[network + 9], whole[network + 12 : network + 20]
        if slow_sum(whole[network : network + size]) != 0xFFFF:
            return False
    else:
        size, end = 40, network + 40 + int.from_bytes(whole[network + 4 : network + 6], "big")
        protocol, addresses = whole[network + 6], whole[network + 8 : network + 40]
    body = whole[network + size : end]
    return slow_sum(addresses + struct.pack(">HH", protocol, len(body)) + body) == 0xFFFF


@given(st.binary(min_size=1, max_size=2000))
def test_sums_are_those_of_words(data: bytes) -> None:
    """One division does what a loop does; zero and all ones are one number."""
    assert ones_sum(data) % 0xFFFF == slow_sum(data) % 0xFFFF
    assert checksum(ones_sum(data)) == (~slow_sum(data) & 0xFFFF if any(data) else 0)


@pytest.mark.parametrize("size", [0, 1, 2, 5, 100, 1459, 1460])
@pytest.mark.parametrize("explicit", [False, True])
def test_tcp_and_udp_over_both(size: int, explicit: bool) -> None:
    """Whatever stood in the field before; with the header's place told or not."""
    payload = bytes(index * 7 & 0xFF for index in range(size))
    for whole, flags, transport in (
        (packet4(6, tcp(payload)), IPV4_TCP, 34),
        (packet4(17, udp(payload)), int(T.IPV4 | T.UDP | T.IPV4_HEADER), 34),
        (packet6(6, tcp(payload)), int(T.IPV6 | T.TCP), 54),
        (packet6(17, udp(payload)), int(T.IPV6 | T.UDP), 54),
    ):
        assert not is_good(whole)
        filled = fill_checksums(whole, flags, transport if explicit else 0)
        assert is_good(filled)
        assert len(filled) == len(whole)


def test_padding_behind_the_packet_does_not_count() -> None:
    """Short frames are padded to sixty bytes; the sum ends where IP says."""
    whole = packet4(17, udp(b"x")) + b"padding"
    filled = fill_checksums(whole, int(T.IPV4 | T.UDP | T.IPV4_HEADER), 34)
    assert filled.endswith(b"padding")
    assert is_good(filled)


def test_ip_options_and_tags_in_the_frame() -> None:
    """The TCP header is where the guest says."""
    whole = packet4(6, tcp(b"hello"), options=b"\1" * 8)
    assert is_good(fill_checksums(whole, IPV4_TCP, 42))
    plain = packet4(6, tcp(b"hello"))
    tagged = insert_tag(plain, 5 << 4)
    filled = fill_checksums(tagged, IPV4_TCP, 38)
    assert is_good(filled, network=18)
    assert remove_tag(filled) == (fill_checksums(plain, IPV4_TCP, 34), 5 << 4)


def test_a_udp_sum_of_zero_is_all_ones() -> None:
    """Zero would say that there is none."""
    for low in range(0x10000):
        whole = packet4(17, udp(struct.pack(">H", low)))
        filled = fill_checksums(whole, int(T.IPV4 | T.UDP), 34)
        if filled[40:42] == b"\xff\xff":
            break
    else:
        raise AssertionError("some payload has that sum")
    assert is_good(fill_checksums(filled, int(T.IPV4 | T.UDP | T.IPV4_HEADER), 34))


def test_only_what_was_asked_for_is_filled() -> None:
    """No version, no checksum; the IP header alone; TCP alone."""
    whole = packet4(6, tcp(b"hello"))
    assert fill_checksums(whole, int(T.TCP), 34) == whole
    header = fill_checksums(whole, int(T.IPV4 | T.IPV4_HEADER), 34)
    assert header[24:26] != b"\0\0"
    assert header[50:52] == b"\xbe\xef"
    only = fill_checksums(whole, int(T.IPV4 | T.TCP), 34)
    assert only[24:26] == b"\0\0"
    assert only[50:52] != b"\xbe\xef"


@pytest.mark.parametrize(("flags", "transport"), [(5, 33), (5, 1023), (6, 53), (9, 13)])
def test_a_place_outside_raises(flags: int, transport: int) -> None:
    with pytest.raises(BadValue):
        fill_checksums(packet4(6, tcp(b"hello")), flags, transport)


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize(("size", "mss"), [(3000, 1460), (2920, 1460), (1, 1460), (0, 1460), (10, 3), (65000, 1440)])
@pytest.mark.parametrize("options", [b"", b"\1" * 12])
def test_segments(ipv6: bool, size: int, mss: int, options: bytes) -> None:
    """Together they are the payload; each is a packet of its own with good checksums, and only the last ends anything.

    Sequence numbers go on, past 32 bits; IPv4 identifications too. CWR is in the first, FIN and PSH in the last.
    """
    payload = bytes(index * 5 & 0xFF for index in range(size))
    first = 0xFFFF_FF00
    body = tcp(payload, sequence=first, flags=0x99, options=options)
    whole = packet6(6, body) if ipv6 else packet4(6, body, identification=0xFFFF)
    transport = 54 if ipv6 else 34
    pieces = segment(whole, mss, transport, ipv6=ipv6)
    assert len(pieces) == max(1, -(-size // mss))
    got = b""
    for index, piece in enumerate(pieces):
        assert is_good(piece)
        start = transport + 20 + len(options)
        assert int.from_bytes(piece[transport + 4 : transport + 8], "big") == (first + len(got)) & 0xFFFF_FFFF
        got += piece[start:]
        assert len(piece) - start <= mss
        flags = piece[transport + 13]
        assert bool(flags & 0x09) == (index == len(pieces) - 1)
        assert bool(flags & 0x80) == (index == 0)
        assert flags & 0x10
        if not ipv6:
            assert int.from_bytes(piece[18:20], "big") == (0xFFFF + index) & 0xFFFF
    assert got == payload


def test_what_is_no_tcp_packet_is_not_cut() -> None:
    """It goes out as it is."""
    for whole in (b"\xcc" * 60, packet6(6, tcp(b"x" * 100)), packet4(6, tcp(b"x" * 30, options=b"\1" * 40)[:50])):
        assert segment(whole, 10, 34, ipv6=False) == [whole]


@given(st.binary(min_size=14, max_size=100), st.integers(0, 0xFFFF))
def test_a_tag_comes_off_as_it_went_on(data: bytes, info: int) -> None:
    tagged = insert_tag(data, info)
    assert tagged[12:14] == b"\x81\0"
    assert tagged[14:16] == struct.pack(">H", (info & 7) << 13 | (info >> 3 & 1) << 12 | info >> 4)
    assert remove_tag(tagged) == (data, info)
