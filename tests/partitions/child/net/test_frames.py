"""Layouts of Ethernet, ARP, IPv4, ICMP and UDP, with tshark as the judge of what we write."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.child.net import frames as f
from tests.doubles.ethernet import judged, mac
from tests.doubles.tshark import needs_tshark

HERE, THERE = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 3])
addresses = st.binary(min_size=4, max_size=4)


def plain_checksum(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for index in range(0, len(data), 2):
        total += int.from_bytes(data[index : index + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@given(st.binary(max_size=200))
def test_the_checksum_is_that_of_the_rfc(data: bytes) -> None:
    """Arithmetic modulo 65535 is the same as words with the carry put back, for zeros too."""
    assert f.checksum(data) == plain_checksum(data)
    assert f.checksum(bytes(len(data))) == 0xFFFF
    assert f.checksum(data + f.checksum(data + bytes(len(data) & 1)).to_bytes(2, "big")) == 0 or len(data) & 1


def test_a_checksum_of_zero_is_not_said() -> None:
    """In UDP it would mean that there is none; all ones say the same number."""
    datagrams = (f.encode_udp(HERE, THERE, 7, 9, number.to_bytes(2, "big")) for number in range(0x10000))
    ones = [datagram for datagram in datagrams if datagram[6:8] == b"\xff\xff"]
    assert len(ones) == 1
    assert f.parse_udp(HERE, THERE, ones[0]).source_port == 7


@given(addresses, addresses, st.binary(max_size=100), st.integers(0, 0xFFFF))
def test_what_is_written_is_read(source: bytes, destination: bytes, data: bytes, ident: int) -> None:
    """Packets of all kinds, and padding behind them is none of theirs."""
    packet = f.parse_ipv4(f.encode_ipv4(source, destination, 17, data, ident=ident, ttl=3) + b"padding")
    assert (packet.source, packet.destination, packet.protocol, packet.ident, packet.ttl, packet.payload) == (
        source,
        destination,
        17,
        ident,
        3,
        data,
    )
    udp = f.parse_udp(source, destination, f.encode_udp(source, destination, 7, ident, data))
    assert udp == (7, ident, data)
    assert f.parse_icmp(f.encode_icmp(8, 0, ident << 16, data)) == (8, 0, ident << 16, data)
    arp = f.Arp(2, mac(1), source, mac(2), destination)
    assert f.parse_arp(f.encode_arp(arp) + bytes(18)) == arp


@given(st.binary(max_size=80), st.integers(0, 79), st.integers(1, 255))
def test_one_wrong_byte_is_noticed(data: bytes, place: int, change: int) -> None:
    """Whatever byte of an IPv4 header, a datagram or an ICMP message it is; but a UDP checksum of 0 is none."""

    def spoiled(good: bytes) -> bytes:
        at = place % len(good)
        return good[:at] + bytes([good[at] ^ change]) + good[at + 1 :]

    with pytest.raises(f.BadPacket):
        f.parse_ipv4(spoiled(f.encode_ipv4(HERE, THERE, 17, b"", ident=1)))
    with pytest.raises(f.BadPacket):
        f.parse_icmp(spoiled(f.encode_icmp(8, 0, 5, data)))
    good = f.encode_udp(HERE, THERE, 7, 9, data)
    bad = spoiled(good)
    if bad[6:8] != b"\0\0":
        with pytest.raises(f.BadPacket):
            f.parse_udp(HERE, THERE, bad)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_packet_or_a_bad_one(data: bytes) -> None:
    """Never another exception."""
    for parse in (f.parse_ethernet, f.parse_arp, f.parse_ipv4, f.parse_icmp):
        try:
            parse(data)
        except f.BadPacket:
            pass
    try:
        f.parse_udp(HERE, THERE, data)
    except f.BadPacket:
        pass


def test_tags() -> None:
    """802.1Q: in front of the type, and read back; a priority alone is no VLAN."""
    tagged = f.ethernet_header(mac(1), mac(2), 0x0800, 7) + b"x"
    assert tagged.hex() == "00155d000001" + "00155d000002" + "8100" + "0007" + "0800" + "78"
    assert f.parse_ethernet(tagged) == (mac(1), mac(2), 0x0800, 7, 18)
    assert f.parse_ethernet(tagged.replace(b"\x81\x00\x00\x07", b"\x81\x00\xe0\x00")).vlan == 0
    with pytest.raises(f.BadPacket, match="ends in its tag"):
        f.parse_ethernet(tagged[:16])


def test_words() -> None:
    """Addresses as people write them, and what is none."""
    assert f.mac_text(mac(171)) == "00-15-5d-00-00-ab"
    assert (
        f.parse_mac("00-15-5D-00-00-AB") == f.parse_mac("00:15:5d:00:00:ab") == f.parse_mac("00155d0000ab") == mac(171)
    )
    assert f.address_text(f.parse_address("10.0.0.2")) == "10.0.0.2"
    assert f.parse_interface("10.0.0.2/24") == (HERE, 24)
    for bad in ("10.0.0.2", "10.0.0.2/0", "10.0.0.2/33", "10.0.0/24", "10.0.0.256/24", "/24", "10.0.0.2/x"):
        with pytest.raises(ValueError, match="is no"):
            f.parse_interface(bad)
    for bad in ("00-15-5d-00-00", "00-15:5d-00-00-01", "00155d00000g", ""):
        with pytest.raises(ValueError, match="is no MAC address"):
            f.parse_mac(bad)


@needs_tshark
def test_an_independent_reader_agrees(tmp_path: Path) -> None:
    """tshark reads the same addresses, ports and data, and finds every checksum right."""
    ip = f.ethernet_header(mac(3), mac(2), f.EtherType.IPV4)
    frames = [
        f.ethernet_header(f.BROADCAST_MAC, mac(2), f.EtherType.ARP)
        + f.encode_arp(f.Arp(1, mac(2), HERE, f.NO_MAC, THERE)),
        ip + f.encode_ipv4(HERE, THERE, 17, f.encode_udp(HERE, THERE, 40001, 40002, b"odd"), ident=9),
        ip + f.encode_ipv4(HERE, THERE, 1, f.encode_icmp(8, 0, 0x0001_0002, bytes(48)), ident=10),
        f.ethernet_header(mac(3), mac(2), f.EtherType.IPV4, 42)
        + f.encode_ipv4(HERE, THERE, 17, f.encode_udp(HERE, THERE, 1, 2, b""), ident=11),
    ]
    names = ["arp.opcode", "arp.dst.proto_ipv4", "ip.src", "udp.srcport", "udp.dstport", "data.data", "icmp.type"]
    assert judged(tmp_path / "frames.pcap", frames, [*names, "icmp.seq", "vlan.id"]) == [
        ["1", "10.0.0.3", "", "", "", "", "", "", ""],
        ["", "", "10.0.0.2", "40001", "40002", "6f6464", "", "", ""],
        ["", "", "10.0.0.2", "", "", "00" * 40, "8", "2", ""],  # it takes the first eight for a time
        ["", "", "10.0.0.2", "1", "2", "", "", "", "42"],
    ]
