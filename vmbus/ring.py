"""The ring buffer under a channel: control page, packets, when to signal. Both sides.

A ring is one control page and then the data pages; it has one writer and one reader, one on each side of a
partition's boundary. Nothing here waits, sends a signal or knows Trio: `vmbus.channel` does that.

    control page   in @0, out @4, interrupt mask @8, pending send size @12, feature bits @64, all u32
    packet         descriptor {type u16, offset8 u16, length8 u16, flags u16, transaction id u64}, extended header and
                   payload padded to 8, trailer {0 u32, ring offset of the descriptor u32}

The peer may write anything at any time. So a reader keeps its own `out`, reads the peer's `in` once a batch, copies
what is new into one `bytes` object and looks at that copy only; a writer keeps its own `in`.

The data pages are mapped once. Mapping them twice, back to back, would make a packet that crosses the end contiguous,
at the price of three kernel mappings a ring (a process has some 65,000) and of rings that must lie in adjacent pages.
The one copy that safety asks for joins the two halves for nothing on the way in, and two slice stores do it on the way
out.

Control words go through a view of 32-bit words: `struct.pack_into` clears its target first, which the peer would see as
a moment of zero. It is fine for packets, which nobody may read before `in` moves.
"""

from __future__ import annotations

import enum
import struct
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec

from hypervisor.inspect import Branch, Claim, Hex
from hypervisor.pages import PAGE_SIZE
from hypervisor.wire import WireError

BATCH_PACKETS = 64
"""How many packets a batch takes unless its caller says otherwise: enough to make the fixed cost of a batch small."""
BATCH_BYTES = 65536
"""How many bytes a reader copies for one batch, so that a peer with a large ring cannot make it copy megabytes."""
COMPLETION_REQUESTED = 1
"""The one legal packet flag: the receiver shall answer with a completion."""

_IN, _OUT, _MASK, _PENDING, _FEATURES = 0, 1, 2, 3, 16
_PENDING_SIZE_SUPPORTED = 1
_DESCRIPTOR = 16
_TRAILER = 8
_LONGEST_BODY = 0xFFFF * 8 - _DESCRIPTOR
_DESCRIPTOR_LAYOUT = struct.Struct("<HHHHQ")
_head_and_id = struct.Struct("<QQ").unpack_from
_WORD = 8
_begin = struct.Struct(f"<QQ{_WORD}s").unpack_from
_BEGIN = struct.Struct(f"<HHHHQ{_WORD}s")
_LEAST_PACKET = _DESCRIPTOR + _TRAILER

PartOf = Callable[[bytes, int], tuple[int, int] | None]
"""Which bytes of a payload are wanted, from where to where, told its first eight (all, where it has fewer) and its
length; none to leave this packet in the ring, and those behind it."""


class PacketType(enum.IntEnum):
    """What a packet's descriptor may call itself; any other number is a corrupt ring."""

    INBAND = 6
    TRANSFER_PAGES = 7
    """The payload lies in pages of an agreed buffer, named by ranges in the extended header."""
    GPA_DIRECT = 9
    """The extended header lists guest pages."""
    COMPLETION = 0xB


_NAMES = {int(kind): kind.name for kind in PacketType}
_LEAST_OFFSET8: dict[int, int] = {
    PacketType.INBAND: 2,
    PacketType.TRANSFER_PAGES: 3,
    PacketType.GPA_DIRECT: 3,
    PacketType.COMPLETION: 2,
}


class RingError(WireError):
    """The peer has written indices or a packet that cannot be. The channel on this ring stops."""


class Packet(msgspec.Struct, frozen=True, gc=False):
    """One packet, a private copy. A body read is padded to a multiple of 8: the ring does not say where data ends."""

    type: int
    flags: int
    transaction_id: int
    data_offset: int
    """Where the payload begins in `body`, a multiple of 8; 0 where there is no extended header."""
    body: bytes
    """Extended header and payload."""

    @property
    def payload(self) -> bytes:
        """What the device's protocol defines."""
        return self.body[self.data_offset :] if self.data_offset else self.body

    @property
    def extended(self) -> bytes:
        """What the packet type adds: GPA ranges or transfer page ranges."""
        return self.body[: self.data_offset]


def ring_bytes(body: int) -> int:
    """The room in bytes that a packet with `body` bytes takes: descriptor, padding and trailer included."""
    return _DESCRIPTOR + ((body + 7) & ~7) + _TRAILER


def packet_words(kind: int, transaction_id: int, flags: int) -> str:
    """A packet in words, by its descriptor: `GPA_DIRECT id=0x4 flags=1`."""
    return f"{_NAMES.get(kind) or kind} id={transaction_id:#x} flags={flags}"


def packet_bytes(packet: Packet) -> bytes:
    """The packet as it lies in a ring: descriptor and body, padded to a multiple of 8; the trailer is left out."""
    body8 = (len(packet.body) + 7) >> 3
    head = _DESCRIPTOR_LAYOUT.pack(
        packet.type, 2 + (packet.data_offset >> 3), 2 + body8, packet.flags, packet.transaction_id
    )
    return head + packet.body.ljust(body8 << 3, b"\0")


@lru_cache(maxsize=512)
def _fused(body8: int) -> struct.Struct:
    """One packet of `body8` eight-byte units as a single layout, for writing; a shorter body is padded by zeros."""
    return struct.Struct(f"<HHHHQ{body8 * 8}sQ")


@lru_cache(maxsize=512)
def _fused_reading(total: int) -> struct.Struct:
    """A packet of `total` bytes, the descriptor's first half as one word to compare at once, the trailer left out."""
    return struct.Struct(f"<QQ{total - _DESCRIPTOR - _TRAILER}s{_TRAILER}x")


@lru_cache(maxsize=512)
def _shape(head: int) -> tuple[int, int, int, int] | None:
    """Type, flags, data offset and bytes in the ring, from a descriptor's first half; none if it is corrupt."""
    kind, offset8, length8, flags = head & 0xFFFF, head >> 16 & 0xFFFF, head >> 32 & 0xFFFF, head >> 48
    least = _LEAST_OFFSET8.get(kind)
    if least is None or not least <= offset8 <= length8 or flags & ~COMPLETION_REQUESTED:
        return None
    return kind, flags, offset8 * 8 - _DESCRIPTOR, length8 * 8 + _TRAILER


class _Ring:
    """What both ends share: the views, and a fence where the peer runs on another processor."""

    __slots__ = ("_control", "_data", "_error", "_fence", "size")

    def __init__(self, region: memoryview, *, shared: bool) -> None:
        size = len(region) - PAGE_SIZE
        if size <= 0 or size % PAGE_SIZE:
            raise ValueError(f"a ring is a control page and whole data pages, not {len(region)} bytes")
        self.size = size
        """Bytes of the data pages."""
        self._control = region[:PAGE_SIZE].cast("I")
        self._data = region[PAGE_SIZE:]
        self._error: RingError | None = None
        # Taking and freeing a lock nobody else has is the cheapest full fence in plain Python (62 ns). Without one, a
        # store here may pass the peer's store there: both sides see the old words and a wake-up is lost.
        self._fence = threading.Lock() if shared else None

    def _index(self, word: int, name: str) -> int:
        """One of the ring's two indices, read once and checked. A bad one stops this end for good."""
        index = self._control[word]
        if index >= self.size or index & 7:
            raise self._fail(f"the {name} index is {index:#x} in a ring of {self.size:#x} bytes")
        return index

    def _own_index(self, word: int, name: str) -> int:
        """Where this end goes on, read once when the ring is opened. Bad words must not make opening fail."""
        try:
            return self._index(word, name)
        except RingError:
            return 0

    def _fail(self, reason: str) -> RingError:
        if self._error is None:
            self._error = RingError(reason)
        return self._error

    def _claim(self, word: int) -> Claim:
        """One of the two indices, as it stands in the guest's memory."""
        index = self._control[word]
        fault = ""
        if index >= self.size:
            fault = f"past the end of a ring of {self.size:#x} bytes"
        elif index & 7:
            fault = "no multiple of 8"
        return Claim(Hex(index), fault)

    def _inspect(self, ours: dict[str, object], start: Claim | int, end: Claim | int) -> Branch:
        """What lies from `start` to `end`, and the words of the control page."""
        control = self._control
        values = [place.value if isinstance(place, Claim) else place for place in (start, end)]
        faulty = any(isinstance(place, Claim) and place.fault for place in (start, end))
        used = None if faulty else (int(values[1]) - int(values[0])) % self.size
        return Branch(
            ours
            | {
                "used_bytes": used,
                "free_bytes": None if used is None else max(0, self.size - used - 8),
                "interrupt_mask": Claim(control[_MASK]),
                "pending_send_size": Claim(control[_PENDING]),
                "feature_bits": Claim(Hex(control[_FEATURES])),
                "fault": None if self._error is None else str(self._error),
            }
        )

    def release(self) -> None:
        """Give up the views, so that the memory beneath can go. Nothing else may be called afterwards."""
        self._control.release()
        self._data.release()


class RingReader(_Ring):
    """The end that takes packets out. A bad index or packet raises `RingError` now and at each later read."""

    __slots__ = ("_out", "_signal", "bytes_read")

    def __init__(self, region: memoryview, *, shared: bool) -> None:
        super().__init__(region, shared=shared)
        self._out = self._own_index(_OUT, "out")
        self._signal = False
        self.bytes_read = 0
        """Bytes taken out so far, descriptors, padding and trailers included."""

    def inspect(self) -> Branch:
        """Indices, masks and room; `in` is the peer's."""
        end, out = self._claim(_IN), Hex(self._out)
        return self._inspect({"size": self.size, "in": end, "out": out, "bytes_read": self.bytes_read}, self._out, end)

    @property
    def available(self) -> int:
        """Bytes that the peer says are there, for people; not checked."""
        return (self._control[_IN] - self._out) % self.size

    def read_batch(self, limit: int = BATCH_PACKETS, max_bytes: int = BATCH_BYTES) -> list[Packet]:
        """Take out up to `limit` packets, and about `max_bytes` bytes unless the first packet alone has more.

        Empty when the ring is. Raises `RingError`; packets in front of a corrupt one are returned first. Ask
        `signal_needed` afterwards.
        """
        if self._error is not None:
            raise self._error
        size, out = self.size, self._out
        available = self._index(_IN, "in") - out
        if available == 0:
            return []
        if available < 0:
            available += size
        snapshot = self._copy(out, min(available, max(max_bytes, _DESCRIPTOR)))
        packets, taken, needed = self._parse(snapshot, limit, available)
        if needed:
            # The first packet is longer than the copy. The part already copied is kept: the peer may have changed it.
            snapshot += self._copy((out + len(snapshot)) % size, needed - len(snapshot))
            packets, taken, _ = self._parse(snapshot, 1, available)
        if not packets and self._error is not None:
            raise self._error
        self._commit(taken)
        return packets

    def read_parts(self, part_of: PartOf, packets: list[Packet] | None = None) -> list[bytes]:
        """Take out packets of which only a part is wanted, up to 64; one copy a packet, straight out of the ring.

        Whole packets are put into `packets`, where somebody wants to see them. Raises `RingError`, and what `part_of`
        raises; packets in front of a bad one are returned first. Ask `signal_needed` afterwards.
        """
        if self._error is not None:
            raise self._error
        size, data, out = self.size, self._data, self._out
        available = (self._index(_IN, "in") - out) % size
        parts: list[bytes] = []
        taken = 0
        try:
            while taken < available and len(parts) < BATCH_PACKETS:
                if available - taken < _LEAST_PACKET:
                    raise self._fail(f"{available - taken} bytes are no packet")
                position = (out + taken) % size
                if position + _LEAST_PACKET <= size:
                    head, transaction_id, begin = _begin(data, position)
                else:
                    head, transaction_id, begin = _begin(self._copy(position, _LEAST_PACKET))
                shape = _shape(head)
                if shape is None:
                    raise self._fail(f"no packet begins with {head.to_bytes(8, 'little').hex()}")
                kind, flags, data_offset, total = shape
                if total > available - taken:
                    raise self._fail(f"a packet of {total} bytes where {available - taken} are there")
                length = total - _LEAST_PACKET - data_offset
                at = position + _DESCRIPTOR + data_offset
                if packets is not None:
                    body = self._copy((position + _DESCRIPTOR) % size, total - _LEAST_PACKET)
                    begin = body[data_offset : data_offset + _WORD]
                elif data_offset or length < _WORD:
                    begin = self._copy(at % size, min(length, _WORD))
                part = part_of(begin, length)
                if part is None:
                    break
                start, stop = part
                if packets is None:
                    parts.append(self._copy((at + start) % size, stop - start))
                else:
                    packets.append(Packet(kind, flags, transaction_id, data_offset, body))
                    parts.append(body[data_offset + start : data_offset + stop])
                taken += total
        except WireError:
            if not taken:
                raise
        if taken:
            self._commit(taken)
        return parts

    def signal_needed(self) -> bool:
        """Whether the writer waits for the room that the reads since the last question made."""
        needed, self._signal = self._signal, False
        return needed

    def mask(self) -> None:
        """Ask the writer not to signal: we are going to look anyway."""
        self._control[_MASK] = 1

    def unmask(self) -> bool:
        """Ask the writer to signal; true if there is something to read already, and then no signal may ever come."""
        self._control[_MASK] = 0
        if self._fence is not None:
            self._fence.acquire()
            self._fence.release()
        return self._control[_IN] != self._out or self._error is not None

    def _copy(self, start: int, length: int) -> bytes:
        stop = start + length
        if stop <= self.size:
            return bytes(self._data[start:stop])
        return bytes(self._data[start:]) + bytes(self._data[: stop - self.size])

    def _parse(self, snapshot: bytes, limit: int, available: int) -> tuple[list[Packet], int, int]:
        """The packets at the front of a snapshot, the bytes they take, and the bytes the first needs if it is cut off.

        `available` is what the ring holds from the snapshot's start on. Only the snapshot is looked at. A corrupt
        packet sets the error and ends the batch.
        """
        packets: list[Packet] = []
        append = packets.append
        position, end = 0, len(snapshot)
        known = -1
        kind = flags = data_offset = total = 0
        while position + _DESCRIPTOR <= end and len(packets) < limit:
            head, transaction_id = _head_and_id(snapshot, position)
            if head != known:
                shape = _shape(head)
                if shape is None:
                    self._fail(f"no packet begins with {head.to_bytes(8, 'little').hex()}")
                    return packets, position, 0
                known = head
                kind, flags, data_offset, total = shape
            elif position + total <= end:
                # A run of equal shapes, the usual case: checked once, then one C call a packet.
                count = min(limit - len(packets), (end - position) // total)
                rows = memoryview(snapshot)[position : position + count * total]
                for head, transaction_id, body in _fused_reading(total).iter_unpack(rows):
                    if head != known:
                        break
                    append(Packet(kind, flags, transaction_id, data_offset, body))
                    position += total
                continue
            stop = position + total
            if stop > available:
                self._fail(f"a packet of {total} bytes where {available - position} are there")
                return packets, position, 0
            if stop > end:
                return packets, position, 0 if packets else stop
            append(Packet(kind, flags, transaction_id, data_offset, snapshot[position + _DESCRIPTOR : stop - _TRAILER]))
            position = stop
        if end - position < _DESCRIPTOR and position < end == available:
            self._fail(f"{end - position} bytes are no packet")
        return packets, position, 0

    def _commit(self, taken: int) -> None:
        """Publish how far we have read, and find out whether the writer waits for the room."""
        size = self.size
        self._out = out = (self._out + taken) % size
        self.bytes_read += taken
        control, fence = self._control, self._fence
        if fence is None:
            control[_OUT] = out
        else:
            fence.acquire()  # the copy is read before the room is given back (a fence that x86 would not need)
            fence.release()
            control[_OUT] = out
            fence.acquire()
            fence.release()
        pending = control[_PENDING]
        if pending:
            free = size - (control[_IN] - out) % size
            if free - taken <= pending < free:
                self._signal = True


class RingWriter(_Ring):
    """The end that puts packets in. A bad `out` index of the peer's raises `RingError` now and at each later write."""

    __slots__ = ("_in", "_signal", "bytes_written", "largest_body")

    def __init__(self, region: memoryview, *, shared: bool) -> None:
        super().__init__(region, shared=shared)
        self._in = self._own_index(_IN, "in")
        self._signal = False
        self.bytes_written = 0
        """Bytes put in so far, descriptors, padding and trailers included."""
        self.largest_body = min(_LONGEST_BODY, self.size - 16 - _DESCRIPTOR - _TRAILER)
        """The most bytes of body that a packet on this ring can ever have."""
        self._control[_FEATURES] = _PENDING_SIZE_SUPPORTED

    def inspect(self) -> Branch:
        """Indices, masks and room; `out` is the peer's."""
        start, own = self._claim(_OUT), Hex(self._in)
        seen: dict[str, object] = {"size": self.size, "in": own, "out": start, "bytes_written": self.bytes_written}
        return self._inspect(seen, start, self._in)

    @property
    def free_bytes(self) -> int:
        """Room for packets in bytes; eight are kept free so that a full ring differs from an empty one. `RingError`."""
        return (self._index(_OUT, "out") - self._in - 8) % self.size

    @property
    def empty(self) -> bool:
        """Whether the peer has taken all. `RingError`."""
        return self._index(_OUT, "out") == self._in

    def write_batch(self, packets: Sequence[Packet]) -> int:
        """Put in as many packets as there is room for, publish them together, and return how many that were.

        A packet that no empty ring could hold is a bug of our caller's: `ValueError`, and nothing is written. Ask
        `signal_needed` afterwards.
        """
        if self._error is not None:
            raise self._error
        size, data = self.size, self._data
        start = position = self._in
        room = (self._index(_OUT, "out") - start - 8) % size
        largest = self.largest_body
        written = 0
        length = -1
        for packet in packets:
            body = packet.body
            if len(body) != length:
                length = len(body)
                if length > largest:
                    raise ValueError(f"a packet with {length} bytes of body never fits this ring: {largest} do")
                fused = _fused((length + 7) >> 3)
                total = fused.size
                length8 = (total >> 3) - 1
            if total > room:
                break
            room -= total
            end = position + total
            if end < size:
                fused.pack_into(
                    data,
                    position,
                    packet.type,
                    2 + (packet.data_offset >> 3),
                    length8,
                    packet.flags,
                    packet.transaction_id,
                    body,
                    position << 32,
                )
                position = end
            else:
                position = self._write_across(fused, packet, position)
            written += 1
        if written:
            self._publish(start, position)
        return written

    def write_parts(self, word: bytes, data: memoryview) -> bool:
        """Put in one in-band packet, without an ID, whose body is a word of eight bytes and then `data`, format `B`.

        False if there is no room for it now. The data is copied once, straight into the ring. `ValueError` and
        `signal_needed` as with `write_batch`.
        """
        if self._error is not None:
            raise self._error
        length = len(data)
        body8 = (length + 2 * _WORD - 1) >> 3
        if _WORD + length > self.largest_body:
            raise ValueError(f"{_WORD + length} bytes of body never fit this ring: {self.largest_body} do")
        size, ring, position = self.size, self._data, self._in
        total = (body8 << 3) + _LEAST_PACKET
        if total > (self._index(_OUT, "out") - position - 8) % size:
            return False
        end = position + total
        if end < size:
            _BEGIN.pack_into(ring, position, PacketType.INBAND, 2, 2 + body8, 0, 0, word)
            start = position + _LEAST_PACKET
            stop = start + length
            ring[start:stop] = data
            ring[stop:end] = bytes(end - stop - 4) + position.to_bytes(4, "little")
        else:
            packet = Packet(PacketType.INBAND, 0, 0, 0, b"".join((word, data)))
            end = self._write_across(_fused(body8), packet, position)
        self._publish(position, end)
        return True

    def signal_needed(self) -> bool:
        """Whether the reader may sleep on what the writes since the last question put in."""
        needed, self._signal = self._signal, False
        return needed

    def wait_for(self, room: int) -> bool:
        """Ask the reader to signal once `room` bytes are free; true if they are already, and then nothing is asked.

        `room` is a packet's `ring_bytes`. A quarter of the ring is asked for at least, so that a slow reader does not
        signal for each packet.
        """
        self._control[_PENDING] = max(room, self.size // 4)
        if self._fence is not None:
            self._fence.acquire()
            self._fence.release()
        if self.free_bytes < room:
            return False
        self._control[_PENDING] = 0
        return True

    def stop_waiting(self) -> None:
        """No signal for room is wanted any more."""
        self._control[_PENDING] = 0

    def _write_across(self, fused: struct.Struct, packet: Packet, position: int) -> int:
        """Write a packet that reaches the end of the data pages or crosses it. Returns where the next one begins."""
        packed = fused.pack(
            packet.type,
            2 + (packet.data_offset >> 3),
            (fused.size >> 3) - 1,
            packet.flags,
            packet.transaction_id,
            packet.body,
            position << 32,
        )
        head = self.size - position
        self._data[position:] = packed[:head]
        rest = len(packed) - head
        self._data[:rest] = packed[head:]
        return rest

    def _publish(self, start: int, position: int) -> None:
        """Make packets visible, and find out whether the reader had emptied the ring and wants to be told."""
        self.bytes_written += (position - start) % self.size
        self._in = position
        control, fence = self._control, self._fence
        if fence is None:
            control[_IN] = position
        else:
            fence.acquire()  # packets before the index that publishes them (a fence that x86 would not need)
            fence.release()
            control[_IN] = position
            fence.acquire()
            fence.release()
        if control[_MASK] == 0 and control[_OUT] == start:
            self._signal = True
