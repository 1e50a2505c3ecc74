"""What the switch looks at inside a frame: its VLAN tag, its IP addresses, what it says to a client. Root side.

The frames are whatever guests send. Nothing here raises; what cannot be told is None.
"""

from __future__ import annotations

import enum
from typing import Final

TAG: Final = b"\x81\x00"
"""Ethertype of an 802.1Q tag."""
TAGS: Final = frozenset({TAG, b"\x88\xa8", b"\x91\x00", b"\x92\x00"})
"""Every ethertype that some switch or driver takes for a tag: a second one behind the first is how guests try to leave
their VLAN."""
IPV4: Final = b"\x08\x00"
IPV6: Final = b"\x86\xdd"
_UDP, _ICMPV6, _FRAGMENT = 17, 58, 44
_EXTENSIONS = frozenset({0, 43, 60, 135, 139, 140})
"""IPv6 extension headers with a length in their second byte, in units of eight beyond the first eight."""
_MOST_EXTENSIONS = 16
_SERVER_V4, _CLIENT_V4, _CLIENT_V6, _SERVER_V6 = 67, 68, 546, 547
_ADVERTISEMENT, _REDIRECT = 134, 137
_LEAST_TYPE: Final = b"\x06\x00"
"""Below it a frame has a length where others have their type, and LLC behind that."""
_SNAP: Final = frozenset({b"\xaa\xaa\x03\0\0\0", b"\xaa\xaa\x03\0\0\xf8"})


def vlan_of(frame: bytes) -> int:
    """The VLAN ID of a frame with a tag, which has eighteen bytes at least."""
    return (frame[14] & 0x0F) << 8 | frame[15]


def untagged(frame: bytes) -> bytes:
    """Without its tag."""
    return frame[:12] + frame[16:]


def tagged(frame: bytes, vlan: int) -> bytes:
    """With a tag, of priority 0."""
    return frame[:12] + TAG + vlan.to_bytes(2, "big") + frame[12:]


def _out_of_snap(frame: bytes) -> bytes:
    """As if its type stood where it usually does. Some systems take IP behind LLC and SNAP (RFC 1042), whatever length
    is said, so a guard that does not look there is none (CVE-2021-27854, CVE-2021-27862).
    """
    if frame[12:14] < _LEAST_TYPE and frame[14:20] in _SNAP:
        return frame[:12] + frame[20:]
    return frame


def ip_addresses(frame: bytes) -> tuple[bytes, bytes] | None:
    """Source and destination of an untagged IP frame, 4 or 16 bytes each; of one that is cut off, empty. Else None."""
    frame = _out_of_snap(frame)
    match frame[12:14]:
        case b"\x08\x00":
            return (frame[26:30], frame[30:34]) if len(frame) >= 34 else (b"", b"")
        case b"\x86\xdd":
            return (frame[22:38], frame[38:54]) if len(frame) >= 54 else (b"", b"")
        case kind:
            return (b"", b"") if kind in TAGS else None  # a tag behind SNAP


class Says(enum.Flag):
    """What guards look for."""

    NOTHING = 0
    DHCP_SERVER = enum.auto()
    """What only a DHCP server sends, for IPv4 or IPv6."""
    ROUTER = enum.auto()
    """What only a router sends: ICMPv6 router advertisements and redirects."""
    HIDDEN = enum.auto()
    """The first fragment or header chain is made so that nobody can tell (RFC 7113, RFC 6980)."""


def says(frame: bytes) -> Says:
    """Of an untagged frame of at least fourteen bytes."""
    frame = _out_of_snap(frame)
    match frame[12:14]:
        case b"\x08\x00":
            return _says_v4(frame)
        case b"\x86\xdd":
            return _says_v6(frame)
        case kind:
            return Says.HIDDEN if kind in TAGS else Says.NOTHING


def _says_v4(frame: bytes) -> Says:
    if len(frame) < 34 or frame[23] != _UDP:
        return Says.NOTHING
    if frame[20] & 0x1F or frame[21]:
        return Says.NOTHING  # a later fragment is of no use without the first
    start = 14 + (frame[14] & 0x0F) * 4
    ports = frame[start : start + 4]
    if len(ports) < 4:
        return Says.HIDDEN
    source, destination = int.from_bytes(ports[:2], "big"), int.from_bytes(ports[2:], "big")
    return Says.DHCP_SERVER if source == _SERVER_V4 or destination == _CLIENT_V4 else Says.NOTHING


def _says_v6(frame: bytes) -> Says:
    if len(frame) < 54:
        return Says.NOTHING
    protocol, position = frame[20], 54
    for _ in range(_MOST_EXTENSIONS):
        if protocol in _EXTENSIONS or protocol == _FRAGMENT:
            header = frame[position : position + 8]
            if len(header) < 8:
                return Says.HIDDEN
            if protocol == _FRAGMENT:
                if int.from_bytes(header[2:4], "big") & 0xFFF8:
                    return Says.NOTHING  # a later fragment
                position += 8
            else:
                position += 8 + header[1] * 8
            protocol = header[0]
            continue
        if protocol == _UDP:
            ports = frame[position : position + 4]
            if len(ports) < 4:
                return Says.HIDDEN
            source, destination = int.from_bytes(ports[:2], "big"), int.from_bytes(ports[2:], "big")
            return Says.DHCP_SERVER if source == _SERVER_V6 or destination == _CLIENT_V6 else Says.NOTHING
        if protocol == _ICMPV6:
            kind = frame[position : position + 1]
            if not kind:
                return Says.HIDDEN
            return Says.ROUTER if kind[0] in (_ADVERTISEMENT, _REDIRECT) else Says.NOTHING
        return Says.NOTHING
    return Says.HIDDEN
