"""Receive side scaling: the hash by Microsoft's published examples, and which channel a frame goes by."""

from __future__ import annotations

import ipaddress
import struct

import pytest

from tests.doubles.network_vsp import frame
from vsp_vsc.network.ndis import HashInfo
from vsp_vsc.network.spreading import KEPT_FLOWS, Spreading, Toeplitz, hash_input

KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
# "Verifying the RSS Hash Calculation", Windows driver documentation: destination, source, with and without ports.
IPV4 = [
    ("161.142.100.80:1766", "66.9.149.187:2794", 0x323E8FC2, 0x51CCC178),
    ("65.69.140.83:4739", "199.92.111.2:14230", 0xD718262A, 0xC626B0EA),
    ("12.22.207.184:38024", "24.19.198.95:12898", 0xD2D0A5DE, 0x5C2B394A),
    ("209.142.163.6:2217", "38.27.205.30:48228", 0x82989176, 0xAFC7327F),
    ("202.188.127.2:1303", "153.39.163.191:44251", 0x5D1809C5, 0x10E828A2),
]
IPV6 = [
    ("3ffe:2501:200:3::1", 1766, "3ffe:2501:200:1fff::7", 2794, 0x2CC18CD5, 0x40207D3D),
    ("ff02::1", 4739, "3ffe:501:8::260:97ff:fe40:efab", 14230, 0x0F0C461C, 0xDDE51BBF),
    ("fe80::200:f8ff:fe21:67cf", 38024, "3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251, 0x4B61E985, 0x02D1FEEF),
]
ALL4 = HashInfo.TOEPLITZ | HashInfo.IPV4 | HashInfo.TCP_IPV4
ALL6 = HashInfo.TOEPLITZ | HashInfo.IPV6 | HashInfo.TCP_IPV6


def packet(
    source: str, destination: str, ports: tuple[int, int], *, protocol: int = 6, fragment: int = 0, tag: bytes = b""
) -> bytes:
    one, two = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    body = struct.pack(">HH", *ports) + bytes(16)
    if one.version == 4:
        head = struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, fragment, 64, protocol, 0)
        kind = 0x0800
    else:
        head = struct.pack(">IHBB", 6 << 28, len(body), protocol, 64)
        kind = 0x86DD
    return frame(14)[:12] + tag + struct.pack(">H", kind) + head + one.packed + two.packed + body


@pytest.mark.parametrize(("to", "source", "addresses", "ports"), IPV4)
def test_published_hashes_of_ipv4(to: str, source: str, addresses: int, ports: int) -> None:
    """Over addresses, and over addresses and ports; tagged or not."""
    (to_ip, to_port), (from_ip, from_port) = to.split(":"), source.split(":")
    toeplitz = Toeplitz(KEY)
    whole = packet(from_ip, to_ip, (int(from_port), int(to_port)))
    tagged = packet(from_ip, to_ip, (int(from_port), int(to_port)), tag=b"\x81\0\0\5")
    for one in (whole, tagged):
        assert toeplitz.hash(hash_input(one, ALL4)) == ports
        assert toeplitz.hash(hash_input(one, HashInfo.IPV4)) == addresses


@pytest.mark.parametrize(("to", "to_port", "source", "from_port", "addresses", "ports"), IPV6)
def test_published_hashes_of_ipv6(
    to: str, to_port: int, source: str, from_port: int, addresses: int, ports: int
) -> None:
    toeplitz = Toeplitz(KEY)
    whole = packet(source, to, (from_port, to_port))
    assert toeplitz.hash(hash_input(whole, ALL6)) == ports
    assert toeplitz.hash(hash_input(whole, HashInfo.IPV6)) == addresses


def test_what_has_no_ports_is_hashed_by_its_addresses() -> None:
    """Fragments, whose ports are in the first of them only, and other protocols; other frames not at all."""
    first = packet("10.0.0.1", "10.0.0.2", (5, 6), fragment=0x2000)
    later = packet("10.0.0.1", "10.0.0.2", (7, 8), fragment=0x0100)
    icmp = packet("10.0.0.1", "10.0.0.2", (9, 9), protocol=1)
    datagram = packet("10.0.0.1", "10.0.0.2", (9, 9), protocol=17)
    same = {hash_input(one, ALL4) for one in (first, later, icmp, datagram)}
    assert same == {bytes([10, 0, 0, 1, 10, 0, 0, 2])}
    assert hash_input(datagram, ALL4 | HashInfo.UDP_IPV4).endswith(struct.pack(">HH", 9, 9))
    assert hash_input(frame(64), ALL4) == b""
    assert hash_input(packet("10.0.0.1", "10.0.0.2", (5, 6)), ALL6) == b""
    assert hash_input(first[:33], ALL4) == b""


def test_a_flow_stays_on_its_channel() -> None:
    """By the low bits of its hash, whether it is known or not; what is not hashed is on the first."""
    table = tuple(range(4)) * 32
    spreading = Spreading(KEY, table, ALL4)
    whole = packet("66.9.149.187", "161.142.100.80", (2794, 1766))
    assert spreading.channel_of(whole) == 0x51CCC178 & 3
    assert spreading.channel_of(frame(64)) == 0
    for port in range(KEPT_FLOWS + 10):
        spreading.channel_of(packet("10.0.0.1", "10.0.0.2", (port, 80)))
    assert spreading.channel_of(whole) == 0x51CCC178 & 3
    assert len({spreading.channel_of(packet("10.0.0.1", "10.0.0.2", (port, 80))) for port in range(64)}) == 4
