"""Frames into the pieces of a guest's receive buffer, and the ring packets that tell of them. Pure. Root side."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

from hypervisor.wire import BadValue
from vmbus.ring import COMPLETION_REQUESTED, Packet, PacketType
from vsp_vsc.network.adapter import AdapterState, Task
from vsp_vsc.network.buffers import ReceiveBuffer
from vsp_vsc.network.offload import TAG, remove_tag
from vsp_vsc.network.protocol import NO_SECTION, Capability, ChannelType, NvspType, message_size
from vsp_vsc.network.rndis import PACKET_HEADER_SIZE, PacketFilter, PacketInfo, ReceiveChecksum, RndisType

MAX_RANGES = 64
"""Pieces that one ring packet tells of. Hyper-V's switch has up to 375; a guest gives none back before it has all."""
INFO_SIZE = 16
MOST_HEADERS = PACKET_HEADER_SIZE + 2 * INFO_SIZE
_USUAL = PacketFilter.DIRECTED | PacketFilter.ALL_MULTICAST | PacketFilter.BROADCAST
_TRANSFER_PAGES = int(PacketType.TRANSFER_PAGES)
_message_header = struct.Struct("<11I")
_info = struct.Struct("<IIII")
_INFO_VALUE = 12
_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_LOOKED_AT = frozenset((TAG, _IPV4, _IPV6))
"""Ethernet types of frames that per-packet information may go with."""
_TCP, _UDP = 6, 17
_PADDING = [bytes(-size & 7) for size in range(8)]


def _header(size: int, information: int, length: int) -> bytes:
    """In front of so many bytes of per-packet information and a frame of `size` bytes."""
    return _message_header.pack(
        RndisType.PACKET,
        length,
        PACKET_HEADER_SIZE - 8 + information,
        size,
        0,
        0,
        0,
        PACKET_HEADER_SIZE - 8 if information else 0,
        information,
        0,
        0,
    )


class _Headers(dict[int, bytes]):
    """Of frames without per-packet information, by their length."""

    def __init__(self, alignment: int) -> None:
        super().__init__()
        self._mask = alignment - 1

    def __missing__(self, size: int) -> bytes:
        length = (PACKET_HEADER_SIZE + size + self._mask) & ~self._mask
        made = self[size] = _header(size, 0, length)
        return made


_PLAIN, _PADDED = _Headers(1), _Headers(8)
"""No frame is longer than some nine thousand bytes, and all adapters share them."""


@lru_cache(maxsize=MAX_RANGES)
def _ranges(count: int) -> struct.Struct:
    """The extended header of a transfer-page packet: buffer, ranges of length and offset."""
    return struct.Struct(f"<HBBI{2 * count}I")


@lru_cache
def _told(version: int, kind: ChannelType) -> bytes:
    body = struct.pack("<IIII", NvspType.SEND_RNDIS_PACKET, kind, NO_SECTION, 0)
    return body.ljust(message_size(version), b"\0")


class FrameWriter:
    """Of one channel."""

    def __init__(self, adapter: AdapterState, outbox: list[Packet]) -> None:
        self.in_flight: dict[int, list[int]] = {}
        """Pieces that the guest has, by transaction."""
        self._lent: ReceiveBuffer | None = None
        """The buffer that they are of; the guest may have taken that back and lent another."""
        self._adapter = adapter
        self._outbox = outbox

    def wanted(self, frames: Sequence[bytes]) -> list[bytes]:
        """The frames that the guest's filter lets through and that a piece of its buffer holds; others are counted."""
        adapter = self._adapter
        receive = adapter.receive
        if receive is None or not adapter.filter:
            adapter.counters.filtered += len(frames)
            return []
        longest = receive.usable - MOST_HEADERS - 7  # and padding
        if adapter.filter == _USUAL:
            address = adapter.address
            wanted = [frame for frame in frames if frame[:6] == address or frame[0] & 1]
        else:
            wanted = [frame for frame in frames if adapter.wants(frame)]
        adapter.counters.filtered += len(frames) - len(wanted)
        if wanted and len(max(wanted, key=len)) > longest:
            before = len(wanted)
            wanted = [frame for frame in wanted if len(frame) <= longest]
            adapter.counters.too_long += before - len(wanted)
        return wanted

    def write(self, frames: Sequence[bytes]) -> int:
        """Put as many frames as there are pieces for into them, and packets into the outbox. Returns how many."""
        receive = self._adapter.receive
        if receive is None:
            return 0
        done = 0
        while done < len(frames) and receive.free:
            if self._adapter.several_packets:
                took = self._write_several(receive, frames, done)
            else:
                took = self._write_single(
                    receive, frames if len(frames) <= MAX_RANGES else frames[done : done + MAX_RANGES]
                )
            done += took
        if done:
            counters = self._adapter.counters
            counters.received_frames += done
            counters.received_bytes += sum(map(len, frames if done == len(frames) else frames[:done]))
        return done

    def control(self, message: bytes) -> bool:
        """Put a control message into a piece of its own, if there is one; whether there was."""
        receive = self._adapter.receive
        if receive is None or not receive.free_control:
            return False
        piece = receive.free_control.pop()
        offset = piece * receive.piece_size
        receive.buffer.write(offset, message)
        self._tell(receive, [piece], [len(message), offset], ChannelType.CONTROL)
        return True

    def completed(self, transaction_id: int) -> bool:
        """The guest has done with what it was sent by that transaction; false if there is none."""
        pieces = self.in_flight.pop(transaction_id, None)
        if pieces is None:
            return False
        if self._lent is not None and self._lent is self._adapter.receive:
            self._lent.give_back(pieces)
        return True

    def restore(self, in_flight: list[tuple[int, list[int]]]) -> None:
        """What the guest had when it was saved. Raises `BadValue`."""
        self._lent = self._adapter.receive
        for transaction_id, pieces in in_flight:
            if not pieces or transaction_id in self.in_flight:
                raise BadValue(f"a saved transaction {transaction_id:#x} of {len(pieces)} pieces")
            if self._lent is not None:
                self._lent.take_away(pieces)
            self.in_flight[transaction_id] = pieces

    def forget(self) -> None:
        """The channel or the buffer has gone: all pieces are the host's again."""
        if self._lent is not None and self._lent is self._adapter.receive:
            for pieces in self.in_flight.values():
                self._lent.give_back(pieces)
        self.in_flight.clear()

    def _write_single(self, receive: ReceiveBuffer, frames: Sequence[bytes]) -> int:
        """A piece for each frame."""
        adapter, free = self._adapter, receive.free
        count = min(len(frames), len(free))
        pieces = free[-count:]
        pieces.reverse()
        del free[-count:]
        size, view = receive.piece_size, receive.buffer.flat
        ranges: list[int] = []
        plain = not adapter.marks_good and not adapter.capabilities & Capability.IEEE8021Q
        for piece, frame in zip(pieces, frames, strict=False):
            if plain or frame[12:14] not in _LOOKED_AT:
                data = _PLAIN[len(frame)] + frame
            else:
                data = b"".join(self._dressed(frame, 1))
            offset = piece * size
            length = len(data)
            if view is not None:
                view[offset : offset + length] = data
            else:
                receive.buffer.write(offset, data)
            ranges += (length, offset)
        self._tell(receive, pieces, ranges, ChannelType.DATA)
        return count

    def _write_several(self, receive: ReceiveBuffer, frames: Sequence[bytes], start: int) -> int:
        """As many frames into each piece as it holds."""
        adapter, free, usable = self._adapter, receive.free, receive.usable
        pieces: list[int] = []
        ranges: list[int] = []
        parts: list[bytes] = []
        used = 0
        plain = not adapter.marks_good and not adapter.capabilities & Capability.IEEE8021Q
        position, last = start, len(frames)
        while position < last:
            frame = frames[position]
            if plain or frame[12:14] not in _LOOKED_AT:
                head = _PADDED[len(frame)]
            else:
                head, frame = self._dressed(frame, 8)
            size = len(frame)
            total = (len(head) + 7 + size) & ~7
            if used + total > usable:
                self._fill(receive, parts, used, pieces, ranges)
                parts, used = [], 0
                if not free or len(pieces) == MAX_RANGES:
                    break
            parts += (head, frame, _PADDING[(PACKET_HEADER_SIZE + size) & 7])
            used += total
            position += 1
        if parts:
            self._fill(receive, parts, used, pieces, ranges)
        self._tell(receive, pieces, ranges, ChannelType.DATA)
        return position - start

    @staticmethod
    def _fill(receive: ReceiveBuffer, parts: list[bytes], used: int, pieces: list[int], ranges: list[int]) -> None:
        piece = receive.free.pop()
        offset = piece * receive.piece_size
        view = receive.buffer.flat
        if view is not None:
            view[offset : offset + used] = b"".join(parts)
        else:
            receive.buffer.write(offset, b"".join(parts))
        pieces.append(piece)
        ranges += (used, offset)

    def _tell(self, receive: ReceiveBuffer, pieces: list[int], ranges: list[int], kind: ChannelType) -> None:
        """A packet about pieces that are filled."""
        if receive is not self._lent:
            self.in_flight.clear()
            self._lent = receive
        count = len(pieces)
        extended = _ranges(count).pack(receive.buffer_id, 0, 0, count, *ranges)
        transaction_id = pieces[0]
        self.in_flight[transaction_id] = pieces
        body = extended + _told(self._adapter.version, kind)
        self._outbox.append(Packet(_TRANSFER_PAGES, COMPLETION_REQUESTED, transaction_id, len(extended), body))
        self._adapter.counters.received_packets += 1

    def _dressed(self, frame: bytes, alignment: int) -> tuple[bytes, bytes]:
        """What stands in front of a frame, per-packet information included, and the frame without its tag."""
        adapter = self._adapter
        tag = -1
        if frame[12:14] == TAG and len(frame) >= 18 and adapter.capabilities & Capability.IEEE8021Q:
            frame, tag = remove_tag(frame)
        good = checked(frame, adapter.offloads.receive) if adapter.marks_good else 0
        return _informed(len(frame), tag, good, alignment), frame


@lru_cache(maxsize=1024)
def _informed(size: int, tag: int, good: int, alignment: int) -> bytes:
    """A header with the per-packet information that there is."""
    information = b""
    if tag >= 0:
        information = _info.pack(INFO_SIZE, PacketInfo.IEEE_8021Q, _INFO_VALUE, tag)
    if good:
        information += _info.pack(INFO_SIZE, PacketInfo.TCPIP_CHECKSUM, _INFO_VALUE, good)
    length = (PACKET_HEADER_SIZE + len(information) + size + alignment - 1) & -alignment
    return _header(size, len(information), length) + information


def checked(frame: bytes, tasks: Task) -> int:
    """The `ReceiveChecksum` bits of a frame whose checksums are good; whoever put it into the switch has seen to it."""
    kind = frame[12:14]
    if kind == _IPV4 and len(frame) >= 34:
        good = ReceiveChecksum.IPV4_HEADER_GOOD if tasks & Task.IPV4_HEADER else 0
        protocol = 0 if int.from_bytes(frame[20:22], "big") & 0x3FFF else frame[23]
        tcp, udp = tasks & Task.TCP_IPV4, tasks & Task.UDP_IPV4
    elif kind == _IPV6 and len(frame) >= 54:
        good, protocol = 0, frame[20]
        tcp, udp = tasks & Task.TCP_IPV6, tasks & Task.UDP_IPV6
    else:
        return 0
    if protocol == _TCP and tcp:
        return int(good | ReceiveChecksum.TCP_GOOD)
    if protocol == _UDP and udp:
        return int(good | ReceiveChecksum.UDP_GOOD)
    return int(good)
