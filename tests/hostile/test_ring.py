"""Any bytes in a ring give packets or `RingError`, also where they change while we look. Both sides."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hypervisor.pages import PAGE_SIZE
from tests.doubles.campaign import examples
from vmbus.ring import Packet, PacketType, RingError, RingReader, RingWriter, ring_bytes

words = st.one_of(
    st.integers(0, 2 * PAGE_SIZE // 8).map(lambda units: units * 8), st.integers(0, 0xFFFF_FFFF), st.just(0)
)
heads = st.builds(
    lambda kind, offset8, length8, flags: struct.pack("<HHHHQ", kind, offset8, length8, flags, 0x77),
    st.sampled_from([6, 7, 9, 0xB, 0, 0xFFFF]),
    st.integers(0, 6),
    st.one_of(st.integers(0, 8), st.integers(0, 0xFFFF)),
    st.sampled_from([0, 0, 0, 1, 2, 0x8000]),
)
contents = st.lists(st.one_of(heads, st.binary(max_size=48)), max_size=30).map(b"".join)


def region_of(index_in: int, index_out: int, mask: int, pending: int, data: bytes) -> memoryview:
    region = bytearray(2 * PAGE_SIZE)
    struct.pack_into("<IIII", region, 0, index_in, index_out, mask, pending)
    region[PAGE_SIZE:] = data[:PAGE_SIZE].ljust(PAGE_SIZE, b"\x06")
    return memoryview(region)


@settings(max_examples=examples(400), deadline=None)
@given(words, words, words, words, contents, st.integers(1, 70), st.sampled_from([16, 24, 100, 65536]), st.booleans())
@example(8, 0, 0, 0, b"", 64, 65536, False)
@example(0, 8, 0, 0, struct.pack("<HHHHQ", 6, 2, 0xFFFF, 0, 1), 64, 65536, False)
def test_any_bytes(
    index_in: int, index_out: int, mask: int, pending: int, data: bytes, limit: int, max_bytes: int, shared: bool
) -> None:
    """A reader returns what lies between the indices, checked, or raises `RingError`; it ends and takes no more."""
    reader = RingReader(region_of(index_in, index_out, mask, pending, data), shared=shared)
    available = reader.available
    taken = 0
    try:
        while batch := reader.read_batch(limit, max_bytes):
            assert len(batch) <= limit
            for packet in batch:
                taken += ring_bytes(len(packet.body))
                assert packet.type in (6, 7, 9, 0xB)
                assert packet.flags in (0, 1)
                assert 0 <= packet.data_offset <= len(packet.body)
                assert isinstance(packet.body, bytes)
            assert taken <= available
        assert taken == available
    except RingError:
        assert taken <= available
    assert reader.bytes_read == taken
    reader.signal_needed()
    reader.unmask()


@settings(max_examples=examples(200), deadline=None)
@given(words, words, words, words, st.lists(st.integers(0, 500), max_size=20), st.booleans())
def test_any_control_words_for_a_writer(
    index_in: int, index_out: int, mask: int, pending: int, sizes: list[int], shared: bool
) -> None:
    """A writer stays inside the data pages and inside the room that the peer's index leaves, or raises `RingError`."""
    region = region_of(index_in, index_out, mask, pending, b"")
    writer = RingWriter(region, shared=shared)
    try:
        room = writer.free_bytes
        written = writer.write_batch([Packet(PacketType.INBAND, 0, 1, 0, bytes(size)) for size in sizes])
        assert sum(ring_bytes(size) for size in sizes[:written]) <= room
        writer.wait_for(ring_bytes(100))
    except RingError:
        pass
    writer.signal_needed()


class Flipping:
    """Control words that another processor changes between any two looks: each read takes the next value of a list."""

    def __init__(self, values: dict[int, list[int]]) -> None:
        self.values = values
        self.reads: list[int] = []
        self.stored: dict[int, int] = {}

    def __getitem__(self, word: int) -> int:
        self.reads.append(word)
        values = self.values.get(word, [0])
        return values.pop(0) if len(values) > 1 else values[0]

    def __setitem__(self, word: int, value: int) -> None:
        self.stored[word] = value


def one_packet_region() -> memoryview:
    region = memoryview(bytearray(2 * PAGE_SIZE))
    RingWriter(region, shared=False).write_batch([Packet(PacketType.INBAND, 0, 1, 0, b"8 bytes.")])
    return region


def test_in_index_is_read_once_a_batch() -> None:
    """Checked and used are the same value: a second, wild value behind the first changes nothing in this batch."""
    reader = RingReader(one_packet_region(), shared=False)
    control = Flipping({0: [32, 0xFFFF_FFFF]})
    reader._control = control  # type: ignore[assignment]
    assert len(reader.read_batch()) == 1
    assert control.reads.count(0) == 1
    assert control.stored == {1: 32}
    with pytest.raises(RingError):
        reader.read_batch()


def test_wild_in_index_at_the_signal_question() -> None:
    """The second look at `in`, for the pending size, may find anything: it can cost that guest a signal, no more."""
    for wild in (0, 8, 0xFFFF_FFFF, PAGE_SIZE):
        reader = RingReader(one_packet_region(), shared=False)
        reader._control = Flipping({0: [32, wild], 3: [4000]})  # type: ignore[assignment]
        assert len(reader.read_batch()) == 1
        reader.signal_needed()


def test_out_index_changes_under_the_writer() -> None:
    """Room is counted from one look at `out`; the later look decides on the signal only."""
    region = memoryview(bytearray(2 * PAGE_SIZE))
    writer = RingWriter(region, shared=False)
    control = Flipping({1: [0, 0xFFFF_FFFF], 2: [0]})
    writer._control = control  # type: ignore[assignment]
    assert writer.write_batch([Packet(PacketType.INBAND, 0, 1, 0, bytes(100))]) == 1
    assert control.reads.count(1) == 2
    assert not writer.signal_needed()


class Rewriting(RingReader):
    """Has the peer overwrite the whole ring after each copy that is taken of it."""

    __slots__ = ("copies", "region")
    copies: int
    region: memoryview

    def _copy(self, start: int, length: int) -> bytes:
        copied = super()._copy(start, length)
        self.copies += 1
        self.region[PAGE_SIZE:] = b"\xff" * (len(self.region) - PAGE_SIZE)
        return copied


def test_bytes_change_after_the_copy() -> None:
    """Only the snapshot is looked at: each byte is copied once, and a descriptor that was checked is the one used."""
    region = memoryview(bytearray(3 * PAGE_SIZE))
    sent = [Packet(PacketType.INBAND, 0, number, 0, bytes([number]) * 64) for number in range(20)]
    RingWriter(region, shared=False).write_batch(sent)
    reader = Rewriting(region, shared=False)
    reader.region, reader.copies = region, 0
    assert reader.read_batch() == sent
    assert reader.copies == 1


def test_descriptor_changes_between_two_copies() -> None:
    """Of a packet longer than the first copy, the descriptor copied first holds; only the rest is fetched."""
    region = memoryview(bytearray(3 * PAGE_SIZE))
    body = bytes(range(250)) * 16
    RingWriter(region, shared=False).write_batch([Packet(PacketType.INBAND, 0, 1, 0, body)])
    reader = Rewriting(region, shared=False)
    reader.region, reader.copies = region, 0
    (packet,) = reader.read_batch(max_bytes=512)
    assert reader.copies == 2
    assert packet.body == body[: 512 - 16] + b"\xff" * (len(body) - 512 + 16)
