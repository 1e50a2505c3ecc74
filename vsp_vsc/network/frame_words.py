"""What Ethernet frames are about, in a few words, for traces. Pure. Root side.

The frames are whatever guests send. Nothing here raises: what is cut off or unknown is told by what there is of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from vsp_vsc.network.switch.addresses import mac_words
from vsp_vsc.network.switch.frames import IPV4, IPV6, TAG, untagged, vlan_of

MOST: Final = 3
"""Frames of a batch that are described one by one."""
_ARP: Final = b"\x08\x06"
_ICMP, _TCP, _UDP, _ICMPV6 = 1, 6, 17, 58
_PROTOCOLS: Final = {_ICMP: "ICMP", 2: "IGMP", _TCP: "TCP", _UDP: "UDP", _ICMPV6: "ICMPv6"}
_ICMP_TYPES: Final = {0: "echo reply", 3: "unreachable", 8: "echo request", 11: "time exceeded"}
_ICMPV6_TYPES: Final = {
    1: "unreachable",
    3: "time exceeded",
    128: "echo request",
    129: "echo reply",
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbour solicitation",
    136: "neighbour advertisement",
}
_FLAGS: Final = ((0x02, "SYN"), (0x10, "ACK"), (0x01, "FIN"), (0x04, "RST"))


def batch_words(frames: Sequence[bytes]) -> str:
    """Of some frames that go together: how many, and what the first of them are about."""
    count = f"{len(frames)} frame{'s' if len(frames) > 1 else ''}"
    told = "; ".join(map(frame_words, frames[:MOST]))
    return f"{count}: {told}{'; ...' if len(frames) > MOST else ''}"


def frame_words(frame: bytes) -> str:
    """Of one frame, such as `ARP who has 10.0.0.2? tell 10.0.0.1`."""
    if len(frame) < 14:
        return f"{len(frame)} bytes, no frame"
    if frame[12:14] == TAG and len(frame) >= 18:
        return f"VLAN {vlan_of(frame)}, {frame_words(untagged(frame))}"
    match frame[12:14]:
        case b"\x08\x06" if len(frame) >= 42 and frame[14:20] == b"\x00\x01\x08\x00\x06\x04":
            return _arp(frame)
        case b"\x08\x00" if len(frame) >= 34:
            return _ipv4(frame)
        case b"\x86\xdd" if len(frame) >= 54:
            ends = str(IPv6Address(frame[22:38])), str(IPv6Address(frame[38:54]))
            return _within(frame[20], frame[54:58] + frame[67:68], *ends, _ICMPV6_TYPES, brackets=True)
        case ethertype:
            names = {_ARP: "ARP", IPV4: "IPv4", IPV6: "IPv6"}
            kind = names.get(ethertype, f"ethertype 0x{ethertype.hex()}")
            return f"{kind} {mac_words(frame[6:12])} > {mac_words(frame[:6])}"


def _arp(frame: bytes) -> str:
    sender, target = IPv4Address(frame[28:32]), IPv4Address(frame[38:42])
    if frame[20:22] == b"\x00\x02" or sender == target:
        return f"ARP {sender} is at {mac_words(frame[22:28])}"
    return f"ARP who has {target}? tell {sender}"


def _ipv4(frame: bytes) -> str:
    source, target = str(IPv4Address(frame[26:30])), str(IPv4Address(frame[30:34]))
    fragment = int.from_bytes(frame[20:22], "big")
    offset, protocol = (fragment & 0x1FFF) * 8, frame[23]
    if offset:
        return f"{_name(protocol)} {source} > {target}, fragment at {offset}"
    start = 14 + (frame[14] & 0x0F) * 4
    words = _within(protocol, frame[start : start + 4] + frame[start + 13 : start + 14], source, target, _ICMP_TYPES)
    return f"{words}, first fragment" if fragment & 0x2000 else words


def _name(protocol: int) -> str:
    return _PROTOCOLS.get(protocol, f"IP protocol {protocol}")


def _within(
    protocol: int, head: bytes, source: str, target: str, types: dict[int, str], *, brackets: bool = False
) -> str:
    """`head` has the first four bytes of what the packet carries, and the one in which TCP has its flags."""
    name = _name(protocol)
    if protocol in (_TCP, _UDP) and len(head) >= 4:
        if brackets:
            source, target = f"[{source}]", f"[{target}]"
        ports = int.from_bytes(head[:2], "big"), int.from_bytes(head[2:4], "big")
        flags = [word for bit, word in _FLAGS if protocol == _TCP and len(head) > 4 and head[4] & bit]
        return f"{' '.join([name, *flags])} {source}:{ports[0]} > {target}:{ports[1]}"
    if protocol in (_ICMP, _ICMPV6) and head and protocol == (_ICMPV6 if brackets else _ICMP):
        kind = types.get(head[0], f"type {head[0]}")
        return f"{name} {kind} {source} > {target}"
    return f"{name} {source} > {target}"
