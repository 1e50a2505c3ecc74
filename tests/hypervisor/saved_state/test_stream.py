"""The stream of a saved partition: any state survives it, any other bytes are refused with a result."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec.structs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.pages import PAGE_SIZE
from hypervisor.saved_state.records import (
    MAGIC,
    RECORDS,
    VERSION,
    BeneathRecord,
    EndRecord,
    Kind,
    MessageRecord,
    OverlayRecord,
    Page,
    PartitionRecord,
    ProcessorRecord,
    RecordHeader,
    RegisterRecord,
    StreamHeader,
    TimerRecord,
)
from hypervisor.saved_state.stream import BadStream, SavedPartition, StateResult, decode, encode, seal
from hypervisor.wire import Wire

U32, U64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
PAGE = st.binary(min_size=0, max_size=32).map(lambda data: data.ljust(PAGE_SIZE, b"\0"))

CONFIGS = (0x20001, 0x20003, 0x2000F, 0x1101 | 0x20 << 4)
TIMES = st.tuples(U64, U64)
TIME = st.integers(0, (1 << 62) - 1)
REGISTERS = st.sampled_from([0x20000, 0x20010, 0x2000F])
"""RAX, RIP, R15, which take any 64 bits."""


def fixed(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


@st.composite
def states(draw: st.DrawFn) -> SavedPartition:
    """Every record kind, with the rules that hold among them."""
    indices = draw(st.lists(st.integers(0, 63), min_size=1, max_size=4, unique=True))
    vp = st.sampled_from(indices)
    header = StreamHeader(MAGIC, VERSION, 0, 0, 0, len(indices), draw(U32), draw(U64), draw(U64))
    words = (draw(U64) for _ in range(4))
    partition = PartitionRecord(*words, draw(TIME), draw(TIME), draw(U32), draw(fixed(40)))
    processors = [
        ProcessorRecord(index, draw(U32), draw(TIME), *(draw(U64) for _ in range(6)), draw(fixed(128)), draw(fixed(32)))
        for index in indices
    ]
    value = fixed(8).map(lambda data: data + bytes(8))
    registers = draw(st.lists(st.builds(RegisterRecord, vp, REGISTERS, value), max_size=4))
    messages = draw(
        st.lists(
            st.builds(
                MessageRecord,
                vp,
                st.integers(0, 15),
                st.integers(0, 240),
                st.integers(1, (1 << 32) - 1),
                U64,
                fixed(240),
            ),
            max_size=4,
        )
    )
    places = [(0, Page.HYPERCALL), (0, Page.REFERENCE_TSC)]
    places += [(index, page) for index in indices for page in (Page.MESSAGES, Page.EVENTS, Page.ASSIST)]
    chosen = draw(st.lists(st.sampled_from(places), unique=True, max_size=4))
    overlays = [OverlayRecord(index, page, draw(PAGE)) for index, page in chosen]
    gpns = draw(st.lists(st.integers(0, (1 << 52) - 1), unique=True, max_size=3))
    beneath = [BeneathRecord(gpn, draw(PAGE)) for gpn in gpns]
    slots = draw(st.lists(st.tuples(vp, st.integers(0, 3)), unique=True, max_size=4))
    timers = [TimerRecord(*slot, draw(st.sampled_from(CONFIGS)), 1 + draw(U32), *draw(TIMES), 1) for slot in slots]
    lists = (processors, registers, messages, overlays, beneath, timers)
    return SavedPartition(header, partition, *map(tuple, lists))


def small() -> SavedPartition:
    """One processor, one of each record."""
    return SavedPartition(
        StreamHeader(MAGIC, VERSION, 0, 0, 0, 1, 0x500, 10**9, 10**9),
        PartitionRecord(1, 2, 3, 0, 4, 5, 6, bytes(40)),
        (ProcessorRecord(0, 0, 1, 2, 3, 4, 5, 6, 7, bytes(128), bytes(32)),),
        (RegisterRecord(0, 0x20000, b"rax".ljust(16, b"\0")),),
        (MessageRecord(0, 2, 5, 1, 9, b"hello".ljust(240, b"\0")),),
        (OverlayRecord(0, Page.MESSAGES, b"slots".ljust(PAGE_SIZE, b"\0")),),
        (BeneathRecord(7, b"under".ljust(PAGE_SIZE, b"\0")),),
        (TimerRecord(0, 3, 0x20003, 1000, 5000, 0, 1),),
    )


@given(states(), st.binary(max_size=8))
@settings(max_examples=60, deadline=None)
def test_a_state_survives_its_stream(state: SavedPartition, behind: bytes) -> None:
    """What comes out is what went in, whatever lies behind the stream."""
    assert decode(encode(state) + behind) == state


@given(st.binary(max_size=600))
def test_any_bytes_have_an_answer(data: bytes) -> None:
    """A result code and no other exception."""
    with pytest.raises(BadStream):
        decode(data)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_change_of_a_stream_is_seen(data: st.DataObject) -> None:
    """One changed bit, anywhere, is corrupt data; so is an end that comes early."""
    stream = encode(small())
    at = data.draw(st.integers(0, 8 * len(stream) - 1))
    changed = bytearray(stream)
    changed[at >> 3] ^= 1 << (at & 7)
    for bad in (bytes(changed), stream[: at >> 3]):
        with pytest.raises(BadStream) as caught:
            decode(bad)
        assert caught.value.result is StateResult.CORRUPT_DATA


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_who_computes_the_checksum_gets_no_further(data: st.DataObject) -> None:
    """Records with arbitrary contents and a right checksum: a state that keeps the rules, or corrupt data."""
    kinds = st.sampled_from([*list(Kind), 99])
    records = data.draw(st.lists(st.tuples(kinds, st.integers(0, 300)), max_size=6))
    body = b""
    for kind, size in records:
        layout = RECORDS.get(kind)
        length = size if layout is None or size % 5 == 0 else layout.SIZE
        filler = data.draw(st.binary(max_size=40)).ljust(length, b"\0")[:length]
        body += RecordHeader(kind, 0, length).encode() + filler
    count, summary = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
    stream = sealed(body, StreamHeader(MAGIC, VERSION, 0, 0, summary, count))
    answer = decoded(stream)
    if isinstance(answer, SavedPartition):
        assert len(answer.processors) == count
    else:
        assert answer is StateResult.CORRUPT_DATA


def decoded(stream: bytes) -> SavedPartition | StateResult:
    try:
        return decode(stream)
    except BadStream as refusal:
        return refusal.result


def sealed(body: bytes, header: StreamHeader) -> bytes:
    """A stream of these records with all its checksums right."""
    whole: Any = msgspec.structs.replace(header, length=StreamHeader.SIZE + len(body) + 12)
    stream = seal(whole).encode() + body
    return stream + RecordHeader(Kind.END, 0, EndRecord.SIZE).encode() + EndRecord(zlib.crc32(stream)).encode()


def record(kind: Kind, value: Wire) -> bytes:
    return RecordHeader(kind, 0, value.SIZE).encode() + value.encode()


def test_another_version_is_told_from_a_damaged_one() -> None:
    """A header that is whole and of another version is that; its first fields stay in place for ever."""
    stream = encode(small())
    header: Any = StreamHeader.decode(stream)
    newer = seal(msgspec.structs.replace(header, version=VERSION + 1)).encode() + stream[StreamHeader.SIZE :]
    with pytest.raises(BadStream) as caught:
        decode(newer)
    assert caught.value.result is StateResult.UNSUPPORTED_VERSION


@pytest.mark.parametrize(
    "extra",
    [
        record(Kind.REGISTER, RegisterRecord(1, 0x20000, bytes(16))),
        record(Kind.REGISTER, RegisterRecord(0, 0x20010, b"\xff" * 16)),
        record(Kind.REGISTER, RegisterRecord(0, 0x7FFFFFFF, bytes(16))),
        record(Kind.MESSAGE, MessageRecord(1, 2, 0, 1, 0, bytes(240))),
        record(Kind.MESSAGE, MessageRecord(0, 16, 0, 1, 0, bytes(240))),
        record(Kind.MESSAGE, MessageRecord(0, 2, 241, 1, 0, bytes(240))),
        record(Kind.MESSAGE, MessageRecord(0, 2, 0, 0, 0, bytes(240))),
        record(Kind.OVERLAY, OverlayRecord(1, Page.MESSAGES, bytes(PAGE_SIZE))),
        record(Kind.OVERLAY, OverlayRecord(0, 9, bytes(PAGE_SIZE))),
        record(Kind.OVERLAY, OverlayRecord(0, Page.MESSAGES, bytes(PAGE_SIZE))) * 2,
        record(Kind.BENEATH, BeneathRecord(1 << 52, bytes(PAGE_SIZE))),
        record(Kind.BENEATH, BeneathRecord(1, bytes(PAGE_SIZE))) * 2,
        record(Kind.TIMER, TimerRecord(1, 0, 0x20001, 1, 1, 0, 1)),
        record(Kind.TIMER, TimerRecord(0, 4, 0x20001, 1, 1, 0, 1)),
        record(Kind.TIMER, TimerRecord(0, 0, 0x20003, 0, 1, 0, 1)),
        record(Kind.TIMER, TimerRecord(0, 0, 0x20002, 1, 1, 0, 1)),
        record(Kind.TIMER, TimerRecord(0, 0, 0x120001, 1, 1, 0, 0)),
        record(Kind.TIMER, TimerRecord(0, 0, 0x00003, 1, 1, 0, 1)),
        record(Kind.TIMER, TimerRecord(0, 0, 0x01001, 1, 1, 0, 0)),
        record(Kind.TIMER, TimerRecord(0, 0, 0x20001, 1, 1, 0, 1)) * 2,
        record(Kind.PROCESSOR, ProcessorRecord(0, 0, 0, 0, 0, 0, 0, 0, 0, bytes(128), bytes(32))),
        record(Kind.PARTITION, PartitionRecord(0, 0, 0, 0, 0, 0, 0, bytes(40))),
    ],
)
def test_records_that_contradict_each_other(extra: bytes) -> None:
    """Each rule among records, broken once under a right checksum."""
    whole = record(Kind.PARTITION, PartitionRecord(0, 0, 0, 0, 0, 0, 0, bytes(40)))
    whole += record(Kind.PROCESSOR, ProcessorRecord(0, 0, 0, 0, 0, 0, 0, 0, 0, bytes(128), bytes(32)))
    header = StreamHeader(MAGIC, VERSION, vp_count=1)
    decode(sealed(whole, header))
    with pytest.raises(BadStream) as caught:
        decode(sealed(whole + extra, header))
    assert caught.value.result is StateResult.CORRUPT_DATA


@pytest.mark.parametrize("most", [(1 << 62) - 1, 1 << 62, (1 << 64) - 1])
@pytest.mark.parametrize("which", ["runtime", "reference_time", "last_reading"])
def test_times_that_would_outgrow_their_words(which: str, most: int) -> None:
    """A time from a file goes on to be counted, and is written into 64 bits: by the task of all timers, say."""
    state = small()
    assert state.partition is not None
    if which == "runtime":
        processors = tuple(msgspec.structs.replace(one, runtime=most) for one in state.processors)  # type: ignore[type-var]
        forged = msgspec.structs.replace(state, processors=processors)
    else:
        forged = msgspec.structs.replace(state, partition=msgspec.structs.replace(state.partition, **{which: most}))  # type: ignore[type-var]
    if most < 1 << 62:
        decode(encode(forged))
        return
    with pytest.raises(BadStream) as caught:
        decode(encode(forged))
    assert caught.value.result is StateResult.CORRUPT_DATA
