"""Ethernet, 802.1Q, ARP, IPv4, ICMP and UDP as bytes. Child side.

Facts: IEEE 802.3 and 802.1Q; RFC 826 (ARP), 791 (IPv4), 792 (ICMP), 768 (UDP), 1071 (the checksum).
Addresses are bytes as they stand in packets, six of a MAC and four of IPv4; words for people are made on demand.
"""

from __future__ import annotations

import enum
import re
import socket
import struct
from typing import NamedTuple

ETHERNET_HEADER = 14
TAG_BYTES = 4
IPV4_HEADER = 20
"""Without options; we send none."""
UDP_HEADER = 8
ICMP_HEADER = 8
BROADCAST_MAC = b"\xff" * 6
NO_MAC = bytes(6)
BROADCAST = b"\xff" * 4
NO_ADDRESS = bytes(4)
MORE_FRAGMENTS, DONT_FRAGMENT, OFFSET_MASK = 0x2000, 0x4000, 0x1FFF
"""In the word with the fragment offset, which counts in eight bytes."""

_TAG_TYPE = 0x8100
_ETHERNET = struct.Struct(">6s6sH")
_TAGGED = struct.Struct(">6s6sHHH")
_ARP = struct.Struct(">HHBBH6s4s6s4s")
_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_UDP = struct.Struct(">HHHH")
_ICMP = struct.Struct(">BBHI")
_PSEUDO = struct.Struct(">4s4sBBH")
_ARP_KIND = (1, 0x0800, 6, 4)
"""Ethernet addresses for IPv4 ones, and their lengths."""


class EtherType(enum.IntEnum):
    """What a frame carries."""

    IPV4 = 0x0800
    ARP = 0x0806


class Protocol(enum.IntEnum):
    """What an IPv4 packet carries."""

    ICMP = 1
    UDP = 17


class ArpOperation(enum.IntEnum):
    """What an ARP packet says."""

    REQUEST = 1
    REPLY = 2


class IcmpType(enum.IntEnum):
    """The kinds of ICMP messages that we know."""

    ECHO_REPLY = 0
    UNREACHABLE = 3
    ECHO_REQUEST = 8
    TIME_EXCEEDED = 11


class Unreachable(enum.IntEnum):
    """The code of an `IcmpType.UNREACHABLE`, as far as we send or explain it."""

    NETWORK = 0
    HOST = 1
    PROTOCOL = 2
    PORT = 3
    FRAGMENTATION_NEEDED = 4
    PROHIBITED = 13


class BadPacket(ValueError):
    """A packet that is cut off or contradicts itself; its checksum is wrong. Dropped and counted."""


class Ethernet(NamedTuple):
    """A frame's header."""

    destination: bytes
    source: bytes
    kind: int
    vlan: int
    """Of its tag; 0 without one, and with one that says nothing but a priority."""
    start: int
    """Where its payload begins."""


class Arp(NamedTuple):
    """An ARP packet about IPv4 addresses on Ethernet."""

    operation: int
    sender_mac: bytes
    sender: bytes
    target_mac: bytes
    target: bytes


class Ipv4(NamedTuple):
    """A packet, its header checked."""

    source: bytes
    destination: bytes
    protocol: int
    ident: int
    fragment: int
    """Offset and flags as they stand in the header; 0, or `DONT_FRAGMENT` alone, is a whole packet."""
    ttl: int
    header: bytes
    """As it came, options included."""
    payload: bytes


class Udp(NamedTuple):
    """A datagram."""

    source_port: int
    destination_port: int
    data: bytes


class Icmp(NamedTuple):
    """A message."""

    kind: int
    code: int
    rest: int
    """The header's last four bytes: identifier and sequence number of an echo."""
    data: bytes


# ------------------------------------------------------------------------------------------------------------- words


def mac_text(mac: bytes) -> str:
    """As Hyper-V writes it: `00-15-5d-00-00-01`."""
    return mac.hex("-")


def parse_mac(text: str) -> bytes:
    """Pairs of digits with `-`, `:` or nothing between them. `ValueError`."""
    if not re.fullmatch(r"[0-9A-Fa-f]{2}([-:]?)(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}", text):
        raise ValueError(f"{text!r} is no MAC address such as 00-15-5d-00-00-01")
    return bytes.fromhex(re.sub("[-:]", "", text))


def address_text(address: bytes) -> str:
    """`10.0.0.2`."""
    return ".".join(map(str, address))


def parse_address(text: str) -> bytes:
    """Four decimal numbers. `ValueError`; there are no names here."""
    try:
        return socket.inet_pton(socket.AF_INET, text)
    except OSError:
        raise ValueError(f"{text!r} is no IPv4 address such as 10.0.0.2") from None


def parse_interface(text: str) -> tuple[bytes, int]:
    """An address and the bits of its network: `10.0.0.2/24`. `ValueError`."""
    address, slash, prefix = text.partition("/")
    if not slash or not prefix.isdecimal() or not 1 <= int(prefix) <= 32:
        raise ValueError(f"{text!r} is no address with a prefix length from 1 to 32, such as 10.0.0.2/24")
    return parse_address(address), int(prefix)


# --------------------------------------------------------------------------------------------------------- the checksum


def checksum(data: bytes) -> int:
    """The Internet checksum of these bytes, with zeros in the place of the sum itself.

    Adding 16-bit words with the carry put back is arithmetic modulo 65535, which Python's integers do at once.
    """
    number = int.from_bytes(data, "big") << (len(data) & 1) * 8
    rest = number % 0xFFFF
    return 0xFFFF - (rest or (0xFFFF if number else 0))


def sum_is_right(data: bytes) -> bool:
    """Whether bytes that hold their own checksum add up."""
    return (int.from_bytes(data, "big") << (len(data) & 1) * 8) % 0xFFFF == 0


# ------------------------------------------------------------------------------------------------------------- Ethernet


def ethernet_header(destination: bytes, source: bytes, kind: int, vlan: int = 0) -> bytes:
    """With a tag if there is a VLAN."""
    if vlan:
        return _TAGGED.pack(destination, source, _TAG_TYPE, vlan, kind)
    return _ETHERNET.pack(destination, source, kind)


def parse_ethernet(frame: bytes) -> Ethernet:
    """A frame's header. Raises `BadPacket`."""
    if len(frame) < ETHERNET_HEADER:
        raise BadPacket(f"a frame of {len(frame)} bytes")
    destination, source, kind = _ETHERNET.unpack_from(frame)
    if kind != _TAG_TYPE:
        return Ethernet(destination, source, kind, 0, ETHERNET_HEADER)
    if len(frame) < ETHERNET_HEADER + TAG_BYTES:
        raise BadPacket("a frame that ends in its tag")
    tag, kind = struct.unpack_from(">HH", frame, ETHERNET_HEADER)
    return Ethernet(destination, source, kind, tag & 0xFFF, ETHERNET_HEADER + TAG_BYTES)


# ------------------------------------------------------------------------------------------------------------------ ARP


def encode_arp(packet: Arp) -> bytes:
    """A packet's bytes."""
    return _ARP.pack(*_ARP_KIND, *packet)


def parse_arp(data: bytes) -> Arp:
    """What follows the Ethernet header. Raises `BadPacket`."""
    if len(data) < _ARP.size:
        raise BadPacket(f"an ARP packet of {len(data)} bytes")
    fields = _ARP.unpack_from(data)
    if fields[:4] != _ARP_KIND:
        raise BadPacket("an ARP packet about other addresses than Ethernet's and IPv4's")
    return Arp(*fields[4:])


# ----------------------------------------------------------------------------------------------------------------- IPv4


def encode_ipv4(
    source: bytes, destination: bytes, protocol: int, payload: bytes, *, ident: int, fragment: int = 0, ttl: int = 64
) -> bytes:
    """A packet with its header's checksum."""
    total = IPV4_HEADER + len(payload)
    header = _IPV4.pack(0x45, 0, total, ident, fragment, ttl, protocol, 0, source, destination)
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + payload


def parse_ipv4(data: bytes) -> Ipv4:
    """What follows the Ethernet header; bytes behind the packet are padding. Raises `BadPacket`."""
    if len(data) < IPV4_HEADER:
        raise BadPacket(f"an IPv4 packet of {len(data)} bytes")
    first, _, total, ident, fragment, ttl, protocol, _, source, destination = _IPV4.unpack_from(data)
    length = (first & 0xF) * 4
    if first >> 4 != 4 or length < IPV4_HEADER:
        raise BadPacket(f"an IPv4 packet that begins with {first:#04x}")
    if not length <= total <= len(data):
        raise BadPacket(f"an IPv4 packet of {total} bytes where {len(data)} are there")
    header = data[:length]
    if not sum_is_right(header):
        raise BadPacket("the checksum of an IPv4 header")
    return Ipv4(source, destination, protocol, ident, fragment, ttl, header, data[length:total])


# ------------------------------------------------------------------------------------------------------------ UDP, ICMP


def encode_udp(source: bytes, destination: bytes, source_port: int, destination_port: int, data: bytes) -> bytes:
    """A datagram with its checksum, which covers the addresses too."""
    length = UDP_HEADER + len(data)
    datagram = _UDP.pack(source_port, destination_port, length, 0) + data
    total = checksum(_PSEUDO.pack(source, destination, 0, Protocol.UDP, length) + datagram)
    return datagram[:6] + (total or 0xFFFF).to_bytes(2, "big") + data


def parse_udp(source: bytes, destination: bytes, payload: bytes) -> Udp:
    """A packet's payload. A checksum of 0 is none. Raises `BadPacket`."""
    if len(payload) < UDP_HEADER:
        raise BadPacket(f"a UDP datagram of {len(payload)} bytes")
    source_port, destination_port, length, total = _UDP.unpack_from(payload)
    if not UDP_HEADER <= length <= len(payload):
        raise BadPacket(f"a UDP datagram of {length} bytes where {len(payload)} are there")
    datagram = payload[:length]
    if total and not sum_is_right(_PSEUDO.pack(source, destination, 0, Protocol.UDP, length) + datagram):
        raise BadPacket("the checksum of a UDP datagram")
    return Udp(source_port, destination_port, datagram[UDP_HEADER:])


def encode_icmp(kind: int, code: int, rest: int, data: bytes) -> bytes:
    """A message with its checksum."""
    message = _ICMP.pack(kind, code, 0, rest) + data
    return message[:2] + checksum(message).to_bytes(2, "big") + message[4:]


def parse_icmp(payload: bytes) -> Icmp:
    """A packet's payload. Raises `BadPacket`."""
    if len(payload) < ICMP_HEADER:
        raise BadPacket(f"an ICMP message of {len(payload)} bytes")
    if not sum_is_right(payload):
        raise BadPacket("the checksum of an ICMP message")
    kind, code, _, rest = _ICMP.unpack_from(payload)
    return Icmp(kind, code, rest, payload[ICMP_HEADER:])
