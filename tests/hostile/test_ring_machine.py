"""Rings step by step: nothing is lost while both sides keep the rules, and a guest that breaks them gains nothing.

One ring each way between a host and a guest; the model is a list of packets that are on their way. The guest may write
anything into the pages at any time: then the host's ends give a `RingError`, or what the bytes say, and touch nothing
but their own words and the packets that they put in.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hypervisor.pages import PAGE_SIZE
from tests.doubles.campaign import examples
from vmbus.ring import Packet, PacketType, RingError, RingReader, RingWriter, ring_bytes

SIZE = PAGE_SIZE
GUARD = PAGE_SIZE
IN, OUT, MASK, PENDING = range(4)
packets = st.builds(
    lambda kind, flags, number, body: Packet(kind, flags, number, 0, body),
    st.sampled_from([PacketType.INBAND, PacketType.COMPLETION]),
    st.integers(0, 1),
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, 1, 7, 8, 16, 40, 52, 100, 1000, 4000]).map(
        lambda size: bytes(index & 0xFF for index in range(size))
    ),
)
extended = st.builds(
    lambda kind, number, pages, size: Packet(kind, 1, number, 8 * pages, bytes(range(8)) * pages + b"\x01" * size),
    st.sampled_from([PacketType.GPA_DIRECT, PacketType.TRANSFER_PAGES]),
    st.integers(0, 99),
    st.integers(1, 4),
    st.sampled_from([0, 8, 64]),
)
wild = st.one_of(
    st.sampled_from([0, SIZE - 8, SIZE, SIZE + 8]),
    st.integers(0, 2 * SIZE // 8).map(lambda unit: unit * 8),
    st.integers(0, 0xFFFF_FFFF),
)


class Way:
    """One direction, with pages before and behind that are nobody's to touch."""

    def __init__(self, *, shared: bool) -> None:
        self.memory = bytearray(b"\xee" * GUARD + bytes(PAGE_SIZE + SIZE) + b"\xee" * GUARD)
        self.region = memoryview(self.memory)[GUARD : GUARD + PAGE_SIZE + SIZE]
        self.control = self.region[:PAGE_SIZE].cast("I")
        self.writer = RingWriter(self.region, shared=shared)
        self.reader = RingReader(self.region, shared=shared)
        self.under_way: list[Packet] = []
        self.written = 0
        """Where the next packet begins, in bytes since the beginning."""
        self.read = 0
        self.broken = False
        """The guest has written where it should not have."""
        self.masked = False
        self.waits = 0
        """The room that the writer asked a signal for."""

    @property
    def held(self) -> int:
        return self.written - self.read

    @property
    def free(self) -> int:
        return SIZE - 8 - self.held

    def check_guards(self) -> None:
        assert self.memory[:GUARD] == b"\xee" * GUARD
        assert self.memory[-GUARD:] == b"\xee" * GUARD


def padded(packet: Packet) -> Packet:
    """As it comes out: the ring pads bodies to eight."""
    body = packet.body.ljust(-(-len(packet.body) // 8) * 8, b"\0")
    return Packet(int(packet.type), packet.flags, packet.transaction_id, packet.data_offset, body)


class RingMachine(RuleBasedStateMachine):
    """Way 0 runs from guest to host, way 1 back; the host reads from the one and writes to the other."""

    @initialize(shared=st.booleans())
    def begin(self, shared: bool) -> None:
        self.ways = [Way(shared=shared), Way(shared=shared)]

    # --- both keep the rules

    def legal(self, number: int) -> Way | None:
        return None if self.ways[number].broken else self.ways[number]

    @rule(number=st.integers(0, 1), batch=st.lists(packets | extended, min_size=1, max_size=6))
    def write(self, number: int, batch: list[Packet]) -> None:
        """What fits goes in, in order; the reader is woken where it may sleep on an empty ring."""
        way = self.legal(number)
        if way is None:
            return
        room, fits = way.free, 0
        for packet in batch:
            if ring_bytes(len(packet.body)) > room:
                break
            room -= ring_bytes(len(packet.body))
            fits += 1
        was_empty = not way.under_way
        assert way.writer.free_bytes == way.free
        assert way.writer.write_batch(batch) == fits
        assert way.writer.signal_needed() == (fits > 0 and was_empty and not way.masked)
        assert not way.writer.signal_needed()
        way.under_way += [padded(packet) for packet in batch[:fits]]
        way.written += sum(ring_bytes(len(packet.body)) for packet in batch[:fits])
        assert way.control[IN] == way.written % SIZE

    @rule(number=st.integers(0, 1), limit=st.integers(1, 70), most=st.sampled_from([16, 60, 500, 65536]))
    def read(self, number: int, limit: int, most: int) -> None:
        """What comes out is what went in; the writer is woken when the room it waits for is there."""
        way = self.legal(number)
        if way is None:
            return
        assert way.reader.available == way.held
        before = way.free + 8
        got = way.reader.read_batch(limit, most)
        assert bool(got) == bool(way.under_way)
        assert len(got) <= limit
        assert got == way.under_way[: len(got)]
        taken = sum(ring_bytes(len(packet.body)) for packet in got)
        assert taken <= most or len(got) == 1
        del way.under_way[: len(got)]
        way.read += taken
        crossed = bool(way.waits) and before <= way.waits < before + taken
        assert way.reader.signal_needed() == crossed
        assert way.control[OUT] == way.read % SIZE

    @rule(number=st.integers(0, 1), masked=st.booleans())
    def mask(self, number: int, masked: bool) -> None:
        way = self.legal(number)
        if way is None:
            return
        way.masked = masked
        if masked:
            way.reader.mask()
        else:
            assert way.reader.unmask() == bool(way.under_way)

    @rule(
        number=st.integers(0, 1),
        size=st.integers(0, 4000),
        more=st.sampled_from([None, 0, 8, 8, 16]),
        then=st.booleans(),
    )
    def wait_for_room(self, number: int, size: int, more: int | None, then: bool) -> None:
        """True if it is there; if not, the reader is asked for a signal, and never before a quarter is free."""
        way = self.legal(number)
        if way is None:
            return
        if more is not None and way.free >= ring_bytes(0):
            size = way.free + more - ring_bytes(0)
        room = ring_bytes(size)
        there = way.writer.wait_for(room)
        assert there == (way.free >= room)
        way.waits = 0 if there else max(room, SIZE // 4)
        assert way.control[PENDING] == way.waits
        if then:
            self.read(number, 1, 16)

    @rule(number=st.integers(0, 1))
    def stop_waiting(self, number: int) -> None:
        way = self.legal(number)
        if way is not None:
            way.writer.stop_waiting()
            way.waits = 0

    @rule(number=st.integers(0, 1), size=st.integers(SIZE - 39, 2 * SIZE))
    def too_large(self, number: int, size: int) -> None:
        """A packet that never fits is its sender's mistake, and nothing is written."""
        way = self.legal(number)
        if way is None:
            return
        before = bytes(way.memory)
        with pytest.raises(ValueError, match="never fits"):
            way.writer.write_batch([Packet(PacketType.INBAND, 0, 1, 0, bytes(size))])
        assert bytes(way.memory) == before

    @rule(number=st.integers(0, 1), shared=st.booleans())
    def go_on_after_a_restore(self, number: int, shared: bool) -> None:
        """New ends on the same pages go on where the old ones stood."""
        way = self.legal(number)
        if way is not None:
            way.writer, way.reader = RingWriter(way.region, shared=shared), RingReader(way.region, shared=shared)

    # --- the guest does not

    @rule(word=st.sampled_from([IN, OUT, MASK, PENDING]), value=wild, number=st.integers(0, 1), now=st.integers(0, 9))
    def corrupt_a_word(self, word: int, value: int, number: int, now: int) -> None:
        if now == 0:
            self.ways[number].control[word] = value
            self.ways[number].broken = True

    @precondition(lambda self: any(way.broken for way in self.ways))
    @rule(at=st.integers(0, SIZE - 1), data=st.binary(min_size=1, max_size=40), number=st.integers(0, 1))
    def corrupt_bytes(self, at: int, data: bytes, number: int) -> None:
        data = data[: SIZE - at]
        self.ways[number].region[PAGE_SIZE + at : PAGE_SIZE + at + len(data)] = data
        self.ways[number].broken = True

    @precondition(lambda self: any(way.broken for way in self.ways))
    @rule(
        kind=st.sampled_from([6, 7, 9, 11, 0, 77]),
        offset=st.integers(0, 5),
        length=wild,
        flags=st.sampled_from([0, 1, 2]),
        beyond=st.sampled_from([None, 0, 1, 2]),
    )
    def forge_a_descriptor(self, kind: int, offset: int, length: int, flags: int, beyond: int | None) -> None:
        """At the place where the host looks next; its packet may end just where the others do, or just behind."""
        way = self.ways[0]
        if beyond is not None:
            length = max(way.reader.available // 8 - 1, 0) + beyond
        at = way.control[OUT] % SIZE
        head = struct.pack("<HHHHQ", kind, offset, length & 0xFFFF, flags, 1)[: SIZE - at]
        way.region[PAGE_SIZE + at : PAGE_SIZE + at + len(head)] = head
        way.broken = True

    @precondition(lambda self: self.ways[0].broken)
    @rule(limit=st.integers(1, 70), most=st.sampled_from([16, 500, 65536]))
    def host_reads_what_it_should_not_trust(self, limit: int, most: int) -> None:
        """Whole packets that lie between the indices, or `RingError`, once and for all; only `out` is written."""
        reader, way = self.ways[0].reader, self.ways[0]
        before, available, bytes_read = bytes(way.memory), reader.available, reader.bytes_read
        failed = reader._error
        start, index = reader._out, way.control[IN]
        try:
            got = reader.read_batch(limit, most)
        except RingError:
            assert bytes(way.memory) == before
            with pytest.raises(RingError):
                reader.read_batch()
            return
        assert failed is None
        assert index < SIZE
        assert index % 8 == 0
        taken = sum(ring_bytes(len(packet.body)) for packet in got)
        assert taken <= available
        assert reader.bytes_read == bytes_read + taken
        data = before[GUARD + PAGE_SIZE : -GUARD] * 2
        for packet in got:
            head = struct.unpack_from("<HHHHQ", data, start)
            assert (packet.type, packet.flags, packet.transaction_id) == (head[0], head[3], head[4])
            assert packet.body == data[start + 16 : start + 16 + len(packet.body)]
            assert packet.flags in (0, 1)
            assert 0 <= packet.data_offset <= len(packet.body)
            start = (start + ring_bytes(len(packet.body))) % SIZE
        after = bytearray(before)
        if got:
            struct.pack_into("<I", after, GUARD + 4, start)
        assert bytes(way.memory) == bytes(after)
        reader.signal_needed()
        reader.unmask()

    @precondition(lambda self: self.ways[1].broken)
    @rule(batch=st.lists(packets, min_size=1, max_size=4))
    def host_writes_where_it_should_not_trust(self, batch: list[Packet]) -> None:
        """No more than the guest's `out` leaves room for, at the host's own place; or `RingError`, once and for all."""
        way = self.ways[1]
        writer, before = way.writer, bytes(way.memory)
        failed, start, out = writer._error, writer._in, way.control[OUT]
        try:
            written = writer.write_batch(batch)
        except RingError:
            assert failed is not None or out >= SIZE or out % 8
            assert bytes(way.memory) == before
            with pytest.raises(RingError):
                writer.write_batch(batch)
            return
        assert failed is None
        assert out < SIZE
        assert out % 8 == 0
        size = sum(ring_bytes(len(packet.body)) for packet in batch[:written])
        assert size <= (out - start - 8) % SIZE
        changed = {at - GUARD - PAGE_SIZE for at, byte in enumerate(way.memory) if byte != before[at]}
        mine = {(start + index) % SIZE for index in range(size)}
        assert {at for at in changed if at >= 0} <= mine
        assert {at for at in changed if at < 0} <= set(range(-PAGE_SIZE, 4 - PAGE_SIZE))
        writer.signal_needed()

    @precondition(lambda self: self.ways[1].broken)
    @rule(size=st.integers(0, 4000))
    def host_waits_where_it_should_not_trust(self, size: int) -> None:
        way = self.ways[1]
        try:
            way.writer.wait_for(ring_bytes(size))
        except RingError:
            assert way.writer._error is not None

    @precondition(lambda self: any(way.broken for way in self.ways))
    @rule(shared=st.booleans())
    def open_anew(self, shared: bool) -> None:
        """A guest that closes, clears its ring and opens again is served."""
        for number, way in enumerate(self.ways):
            if way.broken:
                self.ways[number] = Way(shared=shared)

    @invariant()
    def nothing_else_was_touched(self) -> None:
        for way in getattr(self, "ways", ()):
            way.check_guards()

    def teardown(self) -> None:
        """What was put in by the rules comes out, to the last packet."""
        for way in getattr(self, "ways", ()):
            if not way.broken:
                got: list[Packet] = []
                while batch := way.reader.read_batch():
                    got += batch
                assert got == way.under_way
                assert way.writer.free_bytes == SIZE - 8


TestRingMachine = RingMachine.TestCase
TestRingMachine.settings = settings(max_examples=examples(25), stateful_step_count=40, deadline=None)
