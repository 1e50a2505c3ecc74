"""Frames as RNDIS data messages for the host, and the frames in what the host sends. Child side.

A message is an RNDIS header, pieces of per-packet information (offloads, the VLAN), and the frame. Several of them, one
after the other, are one NVSP message: that is what makes many small frames cheap. Everything here is bytes in and bytes
out; what the host has written is read once.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from hypervisor.wire import BadValue, ShortMessage
from vsp_vsc.network.rndis import (
    LSO_IPV6,
    LSO_MSS_MASK,
    LSO_OFFSET_MASK,
    LSO_OFFSET_SHIFT,
    PACKET_HEADER_SIZE,
    PacketInfo,
    RndisType,
    TransmitChecksum,
)

INFO_BYTES = 16
"""A piece of per-packet information of 32 bits, its header included."""
LSO_V2 = 1 << 30
"""In TCP_LARGE_SEND: the layout is that of version 2."""
TAG_TYPE = b"\x81\x00"
"""What stands behind the addresses of a frame with an 802.1Q tag."""
ADDRESSES = 12
"""Where a tag goes."""

_PACKET = int(RndisType.PACKET)
_LEAST_DATA_OFFSET = PACKET_HEADER_SIZE - 8
_header = struct.Struct("<11I")
_unpack_header = _header.unpack_from
_info = struct.Struct("<IIII")
_info_header = struct.Struct("<III").unpack_from
_PADDING = [bytes(-(PACKET_HEADER_SIZE + length) & 7) for length in range(8)]


class Offload(msgspec.Struct, frozen=True, kw_only=True):
    """What the host shall do with a frame on its way."""

    vlan: int = 0
    """Put a tag with this VLAN in; 0 is none."""
    priority: int = 0
    """Of the tag, 0 to 7."""
    checksum: int = 0
    """`TransmitChecksum`s to fill in; a TCP or UDP header then holds the sum of its pseudo-header."""
    transport_offset: int = 0
    """Where the TCP or UDP header is in the frame."""
    segment: int = 0
    """Cut a TCP packet into segments with at most so many bytes of data each; 0 is as it is."""

    def encode(self) -> bytes:
        """As per-packet information."""
        pieces = []
        if self.segment:
            large = self.segment & LSO_MSS_MASK | (self.transport_offset & LSO_OFFSET_MASK) << LSO_OFFSET_SHIFT | LSO_V2
            ipv6 = LSO_IPV6 if self.checksum & TransmitChecksum.IPV6 else 0
            pieces.append((PacketInfo.TCP_LARGE_SEND, large | ipv6))
        elif self.checksum:
            pieces.append((PacketInfo.TCPIP_CHECKSUM, self.checksum | self.transport_offset << 16))
        if self.vlan or self.priority:
            pieces.append((PacketInfo.IEEE_8021Q, self.priority | self.vlan << 4))
        return b"".join(_info.pack(INFO_BYTES, kind, 12, value) for kind, value in pieces)


@lru_cache(maxsize=4096)
def header(length: int) -> bytes:
    """What goes in front of a frame of that many bytes, alone in its message."""
    return _header.pack(_PACKET, PACKET_HEADER_SIZE + length, _LEAST_DATA_OFFSET, length, 0, 0, 0, 0, 0, 0, 0)


@lru_cache(maxsize=4096)
def padded_header(length: int) -> bytes:
    """The same where another message follows, which begins at a multiple of 8."""
    total = PACKET_HEADER_SIZE + length + 7 & ~7
    return _header.pack(_PACKET, total, _LEAST_DATA_OFFSET, length, 0, 0, 0, 0, 0, 0, 0)


def header_with(length: int, info: bytes) -> bytes:
    """Header and per-packet information for a frame of that many bytes."""
    size = len(info)
    offset = _LEAST_DATA_OFFSET + size
    start = _LEAST_DATA_OFFSET if size else 0
    return _header.pack(_PACKET, PACKET_HEADER_SIZE + size + length, offset, length, 0, 0, 0, start, size, 0, 0) + info


def pack_messages(frames: Sequence[bytes], start: int, room: int, most: int) -> tuple[bytes, int]:
    """As many of the frames from `start` on as `room` bytes and `most` packets hold, and how many those are.

    None where not even the first has room.
    """
    parts: list[bytes] = []
    size = count = 0
    for frame in frames[start : start + most]:
        length = len(frame)
        size += PACKET_HEADER_SIZE + length + 7 & ~7
        if size > room:
            break
        parts += padded_header(length), frame, _PADDING[length & 7]
        count += 1
    return b"".join(parts), count


def take_messages(memory: memoryview, start: int, length: int, frames: list[bytes]) -> bytes | None:
    """Add the frames in a range that the host has filled; a copy of the range where it is a control message.

    `memory` is what the host may write; a range outside it is the caller's mistake. Raises `WireError`.
    """
    end = start + length
    while True:
        left = end - start
        if left < PACKET_HEADER_SIZE:
            if left < 8:
                raise ShortMessage("RNDIS message", 8, left)
            return bytes(memory[start:end])
        kind, size, data_offset, data_length, _, _, _, info_offset, info_length, _, _ = _unpack_header(memory, start)
        if kind != _PACKET:
            return bytes(memory[start:end])
        data_start = start + 8 + data_offset
        data_end = data_start + data_length
        if size > left or size < PACKET_HEADER_SIZE or data_offset < _LEAST_DATA_OFFSET or data_end > start + size:
            raise BadValue(f"RNDIS packet of {size} bytes with {data_length} of data at {data_offset} where {left} are")
        frame = bytes(memory[data_start:data_end])
        if info_length:
            if info_offset < _LEAST_DATA_OFFSET or info_offset + info_length > size - 8:
                raise BadValue(f"{info_length} bytes of per-packet information at {info_offset} of {size}")
            info = start + 8 + info_offset
            frame = _with_tag(frame, bytes(memory[info : info + info_length]))
        frames.append(frame)
        if size == left:
            return None
        start += size


def _with_tag(frame: bytes, untrusted_info: bytes) -> bytes:
    """The frame with the tag that its per-packet information tells of; what else is in there is for others."""
    position = 0
    while position + 12 <= len(untrusted_info):
        size, kind, offset = _info_header(untrusted_info, position)
        if size < 12 or size > len(untrusted_info) - position:
            raise BadValue(f"a piece of per-packet information of {size} bytes")
        if kind == PacketInfo.IEEE_8021Q and 12 <= offset <= size - 4:
            value = int.from_bytes(untrusted_info[position + offset : position + offset + 4], "little")
            tag = (value & 7) << 13 | (value >> 3 & 1) << 12 | value >> 4 & 0xFFF
            return frame[:ADDRESSES] + TAG_TYPE + tag.to_bytes(2, "big") + frame[ADDRESSES:]
        position += size
    return frame
