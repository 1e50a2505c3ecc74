"""The ring: bytes, room, signals, masks, pending send size, and what a corrupt one does. Both sides."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hypervisor.pages import PAGE_SIZE
from vmbus.ring import (
    COMPLETION_REQUESTED,
    Packet,
    PacketType,
    RingError,
    RingReader,
    RingWriter,
    ring_bytes,
)

IN, OUT, MASK, PENDING, FEATURES = 0, 4, 8, 12, 64


def new_region(data_pages: int = 1) -> memoryview:
    return memoryview(bytearray(PAGE_SIZE * (1 + data_pages)))


def word(region: memoryview, offset: int) -> int:
    return int(struct.unpack_from("<I", region, offset)[0])


def set_word(region: memoryview, offset: int, value: int) -> None:
    struct.pack_into("<I", region, offset, value)


def pair(data_pages: int = 1, *, shared: bool = False, start: int = 0) -> tuple[memoryview, RingWriter, RingReader]:
    region = new_region(data_pages)
    set_word(region, IN, start)
    set_word(region, OUT, start)
    return region, RingWriter(region, shared=shared), RingReader(region, shared=shared)


def inband(body: bytes, transaction_id: int = 1, flags: int = 0) -> Packet:
    return Packet(PacketType.INBAND, flags, transaction_id, 0, body)


def padded(packet: Packet) -> Packet:
    body = packet.body.ljust((len(packet.body) + 7) & ~7, b"\0")
    return Packet(packet.type, packet.flags, packet.transaction_id, packet.data_offset, body)


def filled(writer: RingWriter, body: int) -> int:
    """Fill a ring with packets of one size; how many fitted."""
    count = 0
    while writer.write_batch([inband(bytes(body), count + 1)]):
        count += 1
    return count


# ------------------------------------------------------------------------------------------------------------- bytes


def test_packet_bytes() -> None:
    """Descriptor, body padded to 8, trailer with the offset of the descriptor in its upper half."""
    region, writer, _ = pair(start=8)
    writer.write_batch(
        [Packet(PacketType.GPA_DIRECT, COMPLETION_REQUESTED, 0x1122334455667788, 24, b"E" * 24 + b"abc")]
    )
    expected = (
        struct.pack("<HHHHQ", 9, 5, 6, 1, 0x1122334455667788) + b"E" * 24 + b"abc\0\0\0\0\0" + struct.pack("<II", 0, 8)
    )
    assert bytes(region[PAGE_SIZE + 8 : PAGE_SIZE + 8 + len(expected)]) == expected
    assert len(expected) == ring_bytes(27) == word(region, IN) - 8
    assert word(region, OUT) == 8


def test_linux_recorded_packet() -> None:
    """A packet as Linux's storvsc wrote it is read field by field, its trailer unread."""
    region, _, reader = pair()
    descriptor = struct.pack("<HHHHQ", 6, 2, 10, 1, 0xFFFF_FFFF_FFFF_FFFD)
    packet = descriptor + struct.pack("<II", 7, 1) + bytes(56) + b"\xaa" * 8
    region[PAGE_SIZE : PAGE_SIZE + len(packet)] = packet
    set_word(region, IN, len(packet))
    assert reader.read_batch() == [
        Packet(PacketType.INBAND, 1, 0xFFFF_FFFF_FFFF_FFFD, 0, struct.pack("<II", 7, 1) + bytes(56))
    ]


def test_extended_header_and_payload() -> None:
    """`extended` and `payload` split the body at the data offset."""
    _, writer, reader = pair()
    sent = Packet(PacketType.TRANSFER_PAGES, 0, 5, 16, b"e" * 16 + b"p" * 8)
    writer.write_batch([sent])
    (got,) = reader.read_batch()
    assert got == sent
    assert (got.extended, got.payload) == (b"e" * 16, b"p" * 8)
    assert inband(b"x" * 8).payload == b"x" * 8
    assert inband(b"x" * 8).extended == b""


def test_region_sizes() -> None:
    """A ring is a control page and at least one whole data page; the size need not be a power of two."""
    for size in (0, PAGE_SIZE, PAGE_SIZE + 8, 2 * PAGE_SIZE - 1):
        with pytest.raises(ValueError, match="whole data pages"):
            RingReader(memoryview(bytearray(size)), shared=False)
    assert RingReader(new_region(3), shared=False).size == 3 * PAGE_SIZE


def test_writer_announces_pending_size() -> None:
    """Feature bit 0 goes into the ring that we send on, and nothing else of the control page changes."""
    region = new_region()
    RingReader(region, shared=False)
    assert bytes(region[:PAGE_SIZE]) == bytes(PAGE_SIZE)
    RingWriter(region, shared=False)
    assert word(region, FEATURES) == 1
    assert sum(region[:PAGE_SIZE]) == 1


def test_packet_across_the_end() -> None:
    """Wherever a packet begins, what is read is what was written, and the trailer says where it began."""
    packets = [inband(bytes(range(count)), count) for count in (40, 8, 0, 64)]
    for position in range(0, PAGE_SIZE, 8):
        region, writer, reader = pair(start=position)
        assert writer.write_batch(packets) == 4, position
        assert word(region, IN) < PAGE_SIZE, position
        assert reader.read_batch() == packets, position
        trailer_at = (position + ring_bytes(40) - 8) % PAGE_SIZE
        assert bytes(region[PAGE_SIZE + trailer_at : PAGE_SIZE + trailer_at + 8]) == struct.pack("<II", 0, position)


def test_ring_end_exactly() -> None:
    """An index that reaches the end is 0, never the size."""
    region, writer, reader = pair(start=PAGE_SIZE - ring_bytes(40))
    writer.write_batch([inband(bytes(40))])
    assert word(region, IN) == 0
    assert len(reader.read_batch()) == 1
    assert word(region, OUT) == 0


# -------------------------------------------------------------------------------------------------------------- room


def test_eight_bytes_stay_free() -> None:
    """A ring is never filled to the last byte, so that full differs from empty."""
    region, writer, reader = pair()
    assert writer.free_bytes == PAGE_SIZE - 8
    total = ring_bytes(0)
    assert filled(writer, 0) == (PAGE_SIZE - 8) // total
    assert word(region, IN) != word(region, OUT)
    assert writer.free_bytes < total
    assert reader.read_batch(1)
    assert writer.write_batch([inband(b"")]) == 1


def test_largest_packet() -> None:
    """The largest packet takes the ring's size less 16; a larger one is our caller's bug and writes nothing."""
    region, writer, reader = pair()
    largest = inband(bytes(writer.largest_body))
    assert ring_bytes(len(largest.body)) == PAGE_SIZE - 16
    too_large = inband(bytes(writer.largest_body + 1))
    with pytest.raises(ValueError, match="never fits"):
        writer.write_batch([inband(b"first"), too_large])
    assert word(region, IN) == 0
    assert writer.write_batch([largest]) == 1
    assert reader.read_batch(max_bytes=64) == [largest]


def test_length_field_bounds_packets() -> None:
    """In a huge ring a packet ends where its 16-bit length does."""
    _, writer, reader = pair(data_pages=200)
    largest = inband(b"x" * writer.largest_body)
    assert len(largest.body) == 0xFFFF * 8 - 16
    assert writer.write_batch([largest]) == 1
    assert reader.read_batch() == [largest]


def test_partial_batch() -> None:
    """What does not fit is left out from the first that has no room on, and order is kept."""
    _, writer, reader = pair()
    packets = [inband(bytes(3000), 1), inband(bytes(2000), 2), inband(bytes(8), 3)]
    assert writer.write_batch(packets) == 1
    assert writer.write_batch(packets[1:]) == 0
    assert [packet.transaction_id for packet in reader.read_batch()] == [1]


# ----------------------------------------------------------------------------------------------------------- batches


def test_batch_limits() -> None:
    """A batch ends at `limit` packets, and at `max_bytes` unless the first packet alone has more."""
    _, writer, reader = pair(data_pages=4)
    writer.write_batch([inband(bytes(80), number) for number in range(20)])
    assert len(reader.read_batch(limit=3)) == 3
    assert len(reader.read_batch(max_bytes=5 * ring_bytes(80) + 8)) == 5
    assert len(reader.read_batch(max_bytes=1)) == 1
    assert len(reader.read_batch()) == 11
    assert reader.read_batch() == []
    assert reader.bytes_read == writer.bytes_written == 20 * ring_bytes(80)


def test_long_first_packet_across_the_end() -> None:
    """A first packet longer than `max_bytes` is copied in two steps, also where they meet the ring's end."""
    for start in range(PAGE_SIZE * 2 - 3000, PAGE_SIZE * 2, 248):
        _, writer, reader = pair(data_pages=2, start=start)
        packets = [inband(bytes(range(256)) * 12, 7), inband(b"after...", 8)]
        writer.write_batch(packets)
        assert reader.read_batch(max_bytes=512) == packets[:1]
        assert reader.read_batch(max_bytes=512) == packets[1:]


def test_packets_are_copies() -> None:
    """What the peer writes after the read does not change a packet."""
    region, writer, reader = pair()
    sent = [inband(bytes([number]) * 64, number) for number in range(4)]
    writer.write_batch(sent)
    got = reader.read_batch()
    region[PAGE_SIZE:] = b"\xff" * PAGE_SIZE
    assert got == sent


# ----------------------------------------------------------------------------------------------------------- signals


def test_writer_signals_only_an_empty_ring() -> None:
    """One signal is due when the ring was empty before a batch, none while the reader is behind."""
    _, writer, reader = pair()
    assert not writer.signal_needed()
    writer.write_batch([inband(b""), inband(b"")])
    assert writer.signal_needed()
    assert not writer.signal_needed()
    writer.write_batch([inband(b"")])
    assert not writer.signal_needed()
    reader.read_batch()
    writer.write_batch([inband(b"")])
    assert writer.signal_needed()


def test_writer_signal_is_not_lost_between_batches() -> None:
    """A signal due for an earlier batch is still due when nobody asked before the next."""
    _, writer, _ = pair()
    writer.write_batch([inband(b"")])
    writer.write_batch([inband(b"")])
    assert writer.signal_needed()


def test_masked_reader_is_not_signalled() -> None:
    """While the mask is set no write asks for a signal; `unmask` tells of what came meanwhile."""
    region, writer, reader = pair()
    reader.mask()
    assert word(region, MASK) == 1
    writer.write_batch([inband(b"")])
    assert not writer.signal_needed()
    assert reader.unmask()
    assert word(region, MASK) == 0
    reader.read_batch()
    assert not reader.unmask()


@pytest.mark.parametrize("low_bits", [0, 1, 7])
def test_reader_signals_when_pending_size_is_crossed(low_bits: int) -> None:
    """The writer is signalled once more than the pending size is free; equal is not enough; low bits mean nothing."""
    region, writer, reader = pair()
    total = ring_bytes(0)
    count = filled(writer, 0)
    free = PAGE_SIZE - count * total
    set_word(region, PENDING, free + total + low_bits)
    reader.read_batch(1)
    assert not reader.signal_needed()
    reader.read_batch(1)
    assert reader.signal_needed()
    reader.read_batch(1)
    assert not reader.signal_needed()


def test_reader_never_signals_unasked() -> None:
    """Without a pending size nobody waits for room; bits below 8 are no size."""
    region, writer, reader = pair()
    filled(writer, 0)
    set_word(region, PENDING, 7)
    reader.read_batch()
    assert not reader.signal_needed()


def test_wait_for_room() -> None:
    """At least a quarter of the ring is asked for; nothing is where there is room; success and giving up clear it."""
    region, writer, reader = pair()
    assert writer.wait_for(ring_bytes(0))
    assert word(region, PENDING) == 0
    filled(writer, 0)
    assert not writer.wait_for(ring_bytes(0))
    assert word(region, PENDING) == PAGE_SIZE // 4
    reader.read_batch(1)
    assert not reader.signal_needed()
    reader.read_batch()
    assert reader.signal_needed()
    assert writer.wait_for(ring_bytes(0))
    assert word(region, PENDING) == 0
    filled(writer, 0)
    assert not writer.wait_for(PAGE_SIZE - 16)
    assert word(region, PENDING) == PAGE_SIZE - 16
    writer.stop_waiting()
    assert word(region, PENDING) == 0


def test_room_for_the_largest_packet_is_signalled() -> None:
    """A writer that waits for the largest packet is told when the ring is empty."""
    _, writer, reader = pair()
    filled(writer, 0)
    assert not writer.wait_for(ring_bytes(writer.largest_body))
    while reader.read_batch(1):
        pass
    assert reader.signal_needed()


# ---------------------------------------------------------------------------------------------------------- corruption


def descriptor(kind: int = 6, offset8: int = 2, length8: int = 3, flags: int = 0) -> bytes:
    return struct.pack("<HHHHQ", kind, offset8, length8, flags, 1)


@pytest.mark.parametrize(
    "head",
    [
        descriptor(kind=0),
        descriptor(kind=5),
        descriptor(kind=8),
        descriptor(kind=0xC),
        descriptor(kind=0x106),
        descriptor(offset8=1),
        descriptor(offset8=0),
        descriptor(offset8=4),
        descriptor(kind=7, offset8=2),
        descriptor(kind=9, offset8=2),
        descriptor(length8=1, offset8=1),
        descriptor(length8=0, offset8=0),
        descriptor(flags=2),
        descriptor(flags=0x8001),
        descriptor(length8=5),
        descriptor(length8=0xFFFF),
    ],
    ids=lambda head: head[:8].hex(),
)
def test_corrupt_descriptor(head: bytes) -> None:
    """A descriptor that cannot be stops the ring: `RingError`, then and ever after, and the packets before it count."""
    region, writer, reader = pair()
    writer.write_batch([inband(b"good", 7), inband(b"good", 8)])
    start = word(region, IN)
    region[PAGE_SIZE + start : PAGE_SIZE + start + 16] = head
    set_word(region, IN, start + 32)  # length8 3 and a trailer: exactly what the default descriptor says
    assert [packet.transaction_id for packet in reader.read_batch()] == [7, 8]
    assert word(region, OUT) == start
    for _ in range(2):
        with pytest.raises(RingError):
            reader.read_batch()
    assert reader.unmask()
    region[PAGE_SIZE + start : PAGE_SIZE + start + 16] = descriptor()
    with pytest.raises(RingError):
        reader.read_batch()


def test_plain_descriptor_is_not_corrupt() -> None:
    """The default of the table above is legal, so each row of it fails for its own reason."""
    region, _, reader = pair()
    region[PAGE_SIZE : PAGE_SIZE + 16] = descriptor()
    set_word(region, IN, 32)
    assert reader.read_batch() == [inband(bytes(8))]


@pytest.mark.parametrize("index", [4, 12, PAGE_SIZE, PAGE_SIZE + 8, 0xFFFF_FFF8, 0xFFFF_FFFF])
@pytest.mark.parametrize("offset", [IN, OUT])
def test_corrupt_index(index: int, offset: int) -> None:
    """An index of the peer's that is no multiple of 8 or not inside the ring is `RingError`, at both ends."""
    region, writer, reader = pair()
    set_word(region, offset, index)
    use: Callable[[], object] = reader.read_batch if offset == IN else lambda: writer.write_batch([inband(b"")])
    for _ in range(2):
        with pytest.raises(RingError):
            use()


@pytest.mark.parametrize("offset", [IN, OUT])
def test_corrupt_start(offset: int) -> None:
    """A bad index of our own end at the beginning does not make opening fail; it is an error of the first use."""
    region = new_region()
    set_word(region, offset, 3)
    writer, reader = RingWriter(region, shared=False), RingReader(region, shared=False)
    with pytest.raises(RingError):
        writer.write_batch([inband(b"")])
    with pytest.raises(RingError):
        reader.read_batch()


@pytest.mark.parametrize("available", [8, 16])
def test_too_little_for_a_packet(available: int) -> None:
    """Fewer bytes than a descriptor and a trailer are no packet."""
    region, _, reader = pair()
    region[PAGE_SIZE : PAGE_SIZE + 16] = descriptor(length8=2)
    set_word(region, IN, available)
    with pytest.raises(RingError):
        reader.read_batch()


def test_rest_after_a_packet() -> None:
    """Eight bytes behind a whole packet are no packet either."""
    region, writer, reader = pair()
    writer.write_batch([inband(b"")])
    set_word(region, IN, word(region, IN) + 8)
    assert len(reader.read_batch()) == 1
    with pytest.raises(RingError):
        reader.read_batch()


def test_own_index_is_private() -> None:
    """Neither end believes what the other wrote over its own index."""
    region, writer, reader = pair()
    writer.write_batch([inband(b"one")])
    set_word(region, OUT, 0x40)
    assert len(reader.read_batch()) == 1
    assert word(region, OUT) == ring_bytes(3)
    set_word(region, IN, 0x40)
    writer.write_batch([inband(b"two")])
    assert word(region, IN) == 2 * ring_bytes(3)


def test_release_lets_memory_go() -> None:
    """After `release` nothing holds the region: its buffer can be resized."""
    memory = bytearray(2 * PAGE_SIZE)
    region = memoryview(memory)
    writer, reader = RingWriter(region, shared=True), RingReader(region, shared=True)
    writer.write_batch([inband(b"x")])
    reader.read_batch()
    writer.release()
    reader.release()
    region.release()
    memory.clear()


# --------------------------------------------------------------------------------------------------------- properties

packets = st.builds(
    lambda kind, flags, transaction_id, extended, payload: Packet(
        kind, flags, transaction_id, 8 * extended, bytes(8 * extended) + payload
    ),
    st.sampled_from([PacketType.INBAND, PacketType.COMPLETION]),
    st.integers(0, 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 3),
    st.one_of(st.binary(max_size=40), st.binary(min_size=64, max_size=64), st.binary(max_size=1500)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(packets, max_size=40), st.integers(1, 20), st.booleans())
def test_round_trip(sent: list[Packet], limit: int, shared: bool) -> None:
    """Any packets come out as they went in, padded to eight bytes, in order, whatever the batches."""
    _, writer, reader = pair(shared=shared, start=PAGE_SIZE - 64)
    got: list[Packet] = []
    left = sent
    while left:
        left = left[writer.write_batch(left) :]
        got += reader.read_batch(limit)
    while batch := reader.read_batch(limit):
        got += batch
    assert got == [padded(packet) for packet in sent]


class Model(RuleBasedStateMachine):
    """A ring against a queue, with a reader and a writer that sleep by the rules and must never oversleep."""

    def __init__(self) -> None:
        super().__init__()
        self.region, self.writer, self.reader = pair()
        self.queue: deque[Packet] = deque()
        self.asleep = False
        self.waiting_for = 0

    @rule(batch=st.lists(packets, max_size=8))
    def write(self, batch: list[Packet]) -> None:
        if self.waiting_for:
            return
        written = self.writer.write_batch(batch)
        self.queue.extend(padded(packet) for packet in batch[:written])
        if self.writer.signal_needed():
            self.asleep = False
        if written < len(batch):
            need = ring_bytes(len(batch[written].body))
            if not self.writer.wait_for(need):
                self.waiting_for = need

    @rule(limit=st.integers(1, 8), max_bytes=st.sampled_from([16, 200, 65536]))
    def read(self, limit: int, max_bytes: int) -> None:
        if self.asleep:
            return
        self.reader.mask()
        got = self.reader.read_batch(limit, max_bytes)
        assert got == [self.queue.popleft() for _ in got]
        if self.reader.signal_needed() and self.waiting_for and self.writer.wait_for(self.waiting_for):
            self.waiting_for = 0
        if not got and not self.reader.unmask():
            self.asleep = True

    @invariant()
    def nobody_oversleeps(self) -> None:
        assert not (self.asleep and self.queue)
        assert not (self.asleep and self.waiting_for)
        assert self.reader.available == sum(ring_bytes(len(packet.body)) for packet in self.queue)


Model.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestModel = Model.TestCase
