"""Frames out of a guest's RNDIS data messages, offloads done. Pure. Root side.

Headers come in few kinds: a sender's frames of one length have one header. One that was checked is known by its bytes
from then on, and a message that is nothing but such frames is taken apart in one go.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

from hypervisor.wire import BadValue, ShortMessage
from vsp_vsc.network.adapter import Counters
from vsp_vsc.network.offload import ETHERNET_HEADER, MAX_SEGMENTS, fill_checksums, insert_tag, segment
from vsp_vsc.network.rndis import (
    HEADER_SIZE,
    LSO_IPV6,
    LSO_MSS_MASK,
    LSO_OFFSET_MASK,
    LSO_OFFSET_SHIFT,
    PACKET_HEADER_SIZE,
    PacketInfo,
    RndisPacketInfo,
    RndisType,
)

_KEPT_HEADERS = 256
_PACKET = int(RndisType.PACKET)
_header = struct.Struct("<11I").unpack_from
_info_header = struct.Struct("<III").unpack_from
_u32 = struct.Struct("<I").unpack_from
_INFO_HEADER_SIZE = RndisPacketInfo.SIZE
_CHECKSUM, _LSO, _VLAN = int(PacketInfo.TCPIP_CHECKSUM), int(PacketInfo.TCP_LARGE_SEND), int(PacketInfo.IEEE_8021Q)
_OFFLOADS = (_CHECKSUM, _LSO, _VLAN)


@lru_cache(maxsize=256)
def _run(before: int, size: int, behind: int) -> struct.Struct:
    """A data message as one layout: its header, and its frame."""
    return struct.Struct(f"<{PACKET_HEADER_SIZE}s{before}x{size}s{behind}x")


class FrameReader:
    """For the messages of one channel."""

    def __init__(self, longest: int, counters: Counters) -> None:
        """`longest`: bytes that a frame may have."""
        self._longest = longest
        self._counters = counters
        self.known: dict[bytes, tuple[int, int, int]] = {}
        """By header, where the frame begins and ends and where the message does; without per-packet information."""

    def read(self, data: bytes, frames: list[bytes], borders: Sequence[int] = ()) -> None:
        """Add the frames of one NVSP message to `frames`. `borders`: where one range of pages ends and the next begins.

        Raises `WireError`; then nothing has been added.
        """
        head = data[:PACKET_HEADER_SIZE]
        known = self.known.get(head)
        if known is not None and not borders:
            start, stop, length = known
            size = len(data)
            if length == size:
                frames.append(data[start:stop])
                return
            if not size % length and size <= length * MAX_SEGMENTS and start >= PACKET_HEADER_SIZE:
                run = [
                    frame
                    for other, frame in _run(start - PACKET_HEADER_SIZE, stop - start, length - stop).iter_unpack(data)
                    if other == head
                ]
                if len(run) * length == size:
                    frames += run
                    return
        frames += self._read(data, borders)

    def _read(self, data: bytes, borders: Sequence[int]) -> list[bytes]:
        frames: list[bytes] = []
        position, end = 0, len(data)
        while position < end:
            position = self._message(data, position, frames, borders)
            if len(frames) > MAX_SEGMENTS:  # a message is dealt with in one go, and nobody else's turn comes before
                raise BadValue(f"a message of more than {MAX_SEGMENTS} frames")
        return frames

    def _message(self, data: bytes, position: int, frames: list[bytes], borders: Sequence[int]) -> int:
        """One data message; returns where the next one begins."""
        length: int
        room = len(data) - position
        if room < PACKET_HEADER_SIZE:
            raise ShortMessage("RNDIS packet", PACKET_HEADER_SIZE, room)
        (
            kind,
            length,
            data_offset,
            data_length,
            oob_offset,
            oob_length,
            oob_count,
            info_offset,
            info_length,
            handle,
            _,
        ) = _header(data, position)
        if kind != _PACKET:
            raise BadValue(f"RNDIS message of type {kind:#x} behind a packet")
        if not PACKET_HEADER_SIZE <= length <= room:
            raise BadValue(f"RNDIS packet of {length} bytes where {room} are")
        if oob_offset or oob_length or oob_count or handle:
            raise BadValue("RNDIS packet with out-of-band data or a handle")
        body = length - HEADER_SIZE
        if data_offset + data_length > body:
            raise BadValue(f"a frame of {data_length} bytes at {data_offset} in an RNDIS packet of {length}")
        if data_length < ETHERNET_HEADER:
            raise BadValue(f"a frame of {data_length} bytes")
        start = position + HEADER_SIZE + data_offset
        stop = start + data_length
        end: int = position + length
        _whole(borders, position, position + PACKET_HEADER_SIZE)
        if info_length:
            if info_offset + info_length > body:
                raise BadValue(f"{info_length} bytes of information at {info_offset} in an RNDIS packet of {length}")
            first = position + HEADER_SIZE + info_offset
            _whole(borders, first, first + info_length)
            frames += self._offloaded(data[start:stop], data[first : first + info_length])
            return end
        if data_length > self._longest:
            raise BadValue(f"a frame of {data_length} bytes, {self._longest} are the limit")
        frames.append(data[start:stop])
        if len(self.known) >= _KEPT_HEADERS:
            self.known.clear()
        self.known[data[position : position + PACKET_HEADER_SIZE]] = start - position, stop - position, length
        return end

    def _offloaded(self, frame: bytes, information: bytes) -> list[bytes]:
        """What becomes of a frame with per-packet information."""
        found = _information(information)
        lso = found.get(_LSO)
        frames = [frame]
        if lso is not None:
            transport = lso >> LSO_OFFSET_SHIFT & LSO_OFFSET_MASK
            frames = segment(frame, lso & LSO_MSS_MASK, transport, ipv6=bool(lso & LSO_IPV6))
            self._counters.segmented += 1
        else:
            wanted = found.get(_CHECKSUM)
            if wanted:
                frames = [fill_checksums(frame, wanted & 0xFFFF, wanted >> 16 & 0x3FF)]
                self._counters.filled += 1
        longest = max(map(len, frames))
        if longest > self._longest:
            raise BadValue(f"a frame of {longest} bytes, {self._longest} are the limit")
        tag = found.get(_VLAN)
        return frames if tag is None else [insert_tag(one, tag) for one in frames]


def _information(data: bytes) -> dict[int, int]:
    """Per-packet information by kind, as far as we use any. Raises `WireError`."""
    found: dict[int, int] = {}
    position, end = 0, len(data)
    while position < end:
        if end - position < _INFO_HEADER_SIZE:
            raise ShortMessage("per-packet information", _INFO_HEADER_SIZE, end - position)
        size, kind, offset = _info_header(data, position)
        if size < _INFO_HEADER_SIZE or size > end - position or offset > size:
            raise BadValue(f"per-packet information of {size} bytes, its value at {offset}, where {end - position} are")
        if kind in _OFFLOADS:
            if offset + 4 > size:
                raise ShortMessage("per-packet information", offset + 4, size)
            found[kind] = _u32(data, position + offset)[0]
        position += size
    return found


def _whole(borders: Sequence[int], start: int, stop: int) -> None:
    """Headers lie in one range, as drivers have to put them."""
    if any(start < border < stop for border in borders):
        raise BadValue("headers of an RNDIS packet that cross into the next range of pages")
