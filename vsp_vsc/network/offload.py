"""What a guest leaves to its adapter: checksums, cutting long TCP segments, the VLAN tag. Pure, on frames. Root side.

A checksum that its frame has no room for, or of a frame that is not what the guest says, is left as it is: the receiver
drops it, as from a cable. What points outside of its frame raises `BadValue`.
"""

from __future__ import annotations

import struct

from hypervisor.wire import BadValue
from vsp_vsc.network.rndis import TransmitChecksum

ETHERNET_HEADER = 14
TAG = b"\x81\x00"
MAX_SEGMENTS = 2048
"""Of one frame, and frames of one message; with less than 31 bytes a segment a guest would have the host do its worst
for it."""
_ADDRESSES = 12
_TCP, _UDP = 6, 17
_IPV4_LEAST, _IPV6_LEAST = 20, 40
_TCP_LEAST = 20
_FIN_PUSH, _CWR = 0x09, 0x80
_put16 = struct.Struct(">H").pack_into
_put32 = struct.Struct(">I").pack_into
_get16 = struct.Struct(">H").unpack_from
_get32 = struct.Struct(">I").unpack_from
_WANTED = TransmitChecksum.TCP | TransmitChecksum.UDP


def ones_sum(data: bytes | bytearray) -> int:
    """The sum of 16-bit words in ones' complement, before it is inverted; 0 stands for 0xFFFF too."""
    if len(data) & 1:
        data = data + b"\0"
    # 2**16 is 1 modulo 0xFFFF, so the remainder of the whole number is the sum of its words.
    return int.from_bytes(data, "big") % 0xFFFF


def checksum(total: int) -> int:
    """The checksum for a sum of sums."""
    return 0xFFFF - (total % 0xFFFF or 0xFFFF)


def insert_tag(frame: bytes, info: int) -> bytes:
    """The frame with an 802.1Q tag for per-packet information of the kind IEEE_8021Q."""
    tag = (info & 7) << 13 | (info >> 3 & 1) << 12 | info >> 4 & 0xFFF
    return frame[:_ADDRESSES] + TAG + tag.to_bytes(2, "big") + frame[_ADDRESSES:]


def remove_tag(frame: bytes) -> tuple[bytes, int]:
    """The way back, for a frame that has a tag."""
    tag = int.from_bytes(frame[14:16], "big")
    return frame[:_ADDRESSES] + frame[16:], tag >> 13 | (tag >> 12 & 1) << 3 | (tag & 0xFFF) << 4


def fill_checksums(frame: bytes, flags: int, transport: int) -> bytes:
    """The frame with the checksums that `flags` (`TransmitChecksum`) names; `transport` 0: behind an IP header of the
    least size. Raises `BadValue`.
    """
    ipv4, ipv6 = bool(flags & TransmitChecksum.IPV4), bool(flags & TransmitChecksum.IPV6)
    if not ipv4 and not ipv6:
        return frame
    network = _network_offset(frame)
    tcp = flags & _WANTED
    if tcp:
        least = network + (_IPV4_LEAST if ipv4 else _IPV6_LEAST)
        if not transport:
            transport = least
        elif transport < least or transport >= len(frame):
            raise BadValue(f"a transport header at {transport} in a frame of {len(frame)} bytes")
    filled = bytearray(frame)
    if ipv4 and flags & TransmitChecksum.IPV4_HEADER:
        _fill_ipv4_header(filled, network)
    if tcp and len(frame) > network and frame[network] >> 4 == (4 if ipv4 else 6):
        end = len(frame)
        if ipv4:
            said = network + int.from_bytes(frame[network + 2 : network + 4], "big")
        else:
            said = network + _IPV6_LEAST + int.from_bytes(frame[network + 4 : network + 6], "big")
        if transport < said <= end:
            end = said  # behind it is padding
        protocol = _TCP if flags & TransmitChecksum.TCP else _UDP
        _fill_transport(filled, network, transport, end, protocol, ipv4=ipv4)
    return bytes(filled)


def segment(frame: bytes, mss: int, transport: int, *, ipv6: bool) -> list[bytes]:
    """The TCP segment in the frame, cut into those of at most `mss` bytes of payload, checksums filled in.

    Raises `BadValue`.
    """
    if transport + 12 >= len(frame):
        raise BadValue(f"a TCP header at {transport} in a frame of {len(frame)} bytes")
    if not mss:
        raise BadValue("segments of no bytes")
    network = _network_offset(frame)
    payload = transport + (frame[transport + 12] >> 4) * 4
    least = network + (_IPV6_LEAST if ipv6 else _IPV4_LEAST)
    version = frame[network] >> 4 if network < len(frame) else 0
    if version != (6 if ipv6 else 4) or transport < least or payload < transport + _TCP_LEAST or payload > len(frame):
        return [frame]
    count = max(1, -(-(len(frame) - payload) // mss))
    if count > MAX_SEGMENTS:
        raise BadValue(f"{count} segments in one frame")
    header = bytearray(frame[:payload])
    first = _get32(header, transport + 4)[0]
    flags = header[transport + 13]
    identification = _get16(header, network + 4)[0]
    segments = []
    for index in range(count):
        start = payload + index * mss
        data = frame[start : start + mss]
        _put32(header, transport + 4, (first + index * mss) & 0xFFFF_FFFF)
        last, begins = index == count - 1, index == 0
        header[transport + 13] = flags & ~((0 if last else _FIN_PUSH) | (0 if begins else _CWR))
        if ipv6:
            _put16(header, network + 4, payload - network - _IPV6_LEAST + len(data))
        else:
            _put16(header, network + 2, payload - network + len(data))
            _put16(header, network + 4, (identification + index) & 0xFFFF)
            _fill_ipv4_header(header, network)
        whole = header + data
        _fill_transport(whole, network, transport, len(whole), _TCP, ipv4=not ipv6)
        segments.append(bytes(whole))
    return segments


def _network_offset(frame: bytes) -> int:
    return ETHERNET_HEADER + 4 if frame[_ADDRESSES:ETHERNET_HEADER] == TAG else ETHERNET_HEADER


def _fill_ipv4_header(frame: bytearray, network: int) -> None:
    if len(frame) < network + _IPV4_LEAST or frame[network] >> 4 != 4:
        return
    size = (frame[network] & 15) * 4
    if size < _IPV4_LEAST or len(frame) < network + size:
        return
    _put16(frame, network + 10, 0)
    _put16(frame, network + 10, checksum(ones_sum(frame[network : network + size])))


def _fill_transport(frame: bytearray, network: int, transport: int, end: int, protocol: int, *, ipv4: bool) -> None:
    field = transport + (16 if protocol == _TCP else 6)
    if field + 2 > end:
        return
    addresses = frame[network + 12 : network + 20] if ipv4 else frame[network + 8 : network + 40]
    _put16(frame, field, 0)
    pseudo = ones_sum(addresses) + protocol + (end - transport)
    value = checksum(pseudo + ones_sum(frame[transport:end]))
    if not value and protocol == _UDP:
        value = 0xFFFF  # zero says that there is no checksum
    _put16(frame, field, value)
