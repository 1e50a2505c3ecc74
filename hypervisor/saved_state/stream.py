"""A partition's saved state as values, and as the bytes that HvSavePartitionState hands out. Hypervisor.

    StreamHeader, then records {RecordHeader, body}, the last of them an EndRecord with a checksum

Pure: no hypervisor, no clock. Whatever bytes come in, the answer is a state, or a `BadStream` that says which result
code they deserve.
"""

from __future__ import annotations

import enum
import zlib
from typing import Any

import msgspec
import msgspec.structs

from hypervisor.pages import PAGE_SHIFT
from hypervisor.processor_registers import legal_bits
from hypervisor.saved_state.records import (
    MAGIC,
    RECORDS,
    TIMER_RUNS,
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
from hypervisor.synic.messages import LEAST_VECTOR, PAYLOAD_MAX, SINT_COUNT
from hypervisor.synic.timer_registers import CONFIG_BITS, SINT_SHIFT, TIMER_COUNT, VECTOR_SHIFT, TimerConfig
from hypervisor.wire import BadValue, Wire, WireError

MAX_STREAM = 64 << 20
"""Bytes: some hundred KiB for each of the most processors that a partition may have."""
_MOST_GPN = 1 << 64 - PAGE_SHIFT
_MOST_TIME = 1 << 62
"""100 ns units, some 14,000 years: what is counted on from there still fits 64 bits wherever it is written."""


class StateResult(enum.IntEnum):
    """HV_SAVE_RESTORE_STATE_RESULT: what both calls answer beside their status."""

    COMPLETE = 0
    INCOMPLETE = 1
    RESTORABLE = 2
    CORRUPT_DATA = 3
    UNSUPPORTED_VERSION = 4
    PROCESSOR_FEATURES_MISMATCH = 5
    PROCESSOR_COUNT_MISMATCH = 7
    PROCESSOR_INDEX_MISMATCH = 9
    INCOMPATIBLE_PROCESSOR = 11


class BadStream(Exception):
    """A stream that cannot be restored; `result` says so to the caller, the text to people."""

    def __init__(self, result: StateResult, words: str) -> None:
        super().__init__(words)
        self.result = result


class SavedPartition(msgspec.Struct, frozen=True):
    """What a stream says. Orders within the tuples are the stream's."""

    header: StreamHeader
    """Length and checksum are zero here; they belong to the bytes."""
    partition: PartitionRecord | None
    """None in a summary."""
    processors: tuple[ProcessorRecord, ...] = ()
    registers: tuple[RegisterRecord, ...] = ()
    messages: tuple[MessageRecord, ...] = ()
    overlays: tuple[OverlayRecord, ...] = ()
    beneath: tuple[BeneathRecord, ...] = ()
    timers: tuple[TimerRecord, ...] = ()

    @property
    def indices(self) -> list[int]:
        """Of its processors, in order."""
        return sorted(processor.index for processor in self.processors)


def encode(saved: SavedPartition) -> bytes:
    """The stream."""
    records: list[tuple[Kind, Wire]] = []
    if saved.partition is not None:
        records.append((Kind.PARTITION, saved.partition))
    records += [(Kind.PROCESSOR, record) for record in saved.processors]
    records += [(Kind.REGISTER, record) for record in saved.registers]
    records += [(Kind.MESSAGE, record) for record in saved.messages]
    records += [(Kind.OVERLAY, record) for record in saved.overlays]
    records += [(Kind.BENEATH, record) for record in saved.beneath]
    records += [(Kind.TIMER, record) for record in saved.timers]
    body = b"".join(RecordHeader(kind, 0, record.SIZE).encode() + record.encode() for kind, record in records)
    length = StreamHeader.SIZE + len(body) + RecordHeader.SIZE + EndRecord.SIZE
    stream = seal(_replace(saved.header, length=length)).encode() + body
    return stream + RecordHeader(Kind.END, 0, EndRecord.SIZE).encode() + EndRecord(zlib.crc32(stream)).encode()


def seal(header: StreamHeader) -> StreamHeader:
    """The header with its own checksum."""
    bare = _replace(header, checksum=0)
    return _replace(bare, checksum=zlib.crc32(bare.encode()))


def _replace(header: Any, **fields: int) -> StreamHeader:
    changed: StreamHeader = msgspec.structs.replace(header, **fields)
    return changed


def decode_header(untrusted: bytes) -> StreamHeader:
    """What a stream begins with, from at least that many bytes. Raises `BadStream`."""
    try:
        header = StreamHeader.decode(untrusted)
    except WireError as error:
        raise BadStream(StateResult.CORRUPT_DATA, str(error)) from None
    if header.magic != MAGIC or seal(header) != header:
        raise BadStream(StateResult.CORRUPT_DATA, "no header of a saved partition")
    if header.version != VERSION:
        raise BadStream(StateResult.UNSUPPORTED_VERSION, f"version {header.version}; this is {VERSION}")
    if not StreamHeader.SIZE + RecordHeader.SIZE + EndRecord.SIZE <= header.length <= MAX_STREAM or header.summary > 1:
        raise BadStream(StateResult.CORRUPT_DATA, f"a stream of {header.length} bytes")
    return header


def decode(untrusted: bytes) -> SavedPartition:
    """A whole stream; bytes behind it are not looked at. Raises `BadStream` and nothing else."""
    header = decode_header(untrusted)
    try:
        return _decode(header, untrusted[: header.length])
    except WireError as error:
        raise BadStream(StateResult.CORRUPT_DATA, str(error)) from None


def _decode(header: StreamHeader, data: bytes) -> SavedPartition:
    if len(data) < header.length:
        raise BadValue(f"{header.length} bytes are announced, {len(data)} are there")
    found: dict[Kind, list[Any]] = {kind: [] for kind in RECORDS}
    position = StreamHeader.SIZE
    while True:
        record = RecordHeader.decode(data, position)
        body = position + RecordHeader.SIZE
        if record.kind == Kind.END:
            if EndRecord.decode(data, body).checksum != zlib.crc32(data[:position]):
                raise BadValue("the checksum is wrong")
            if record.length != EndRecord.SIZE or body + record.length != len(data):
                raise BadValue(f"the end stands at {position} of {len(data)} bytes")
            break
        layout = RECORDS.get(record.kind)  # type: ignore[call-overload]
        if layout is None or record.length != layout.SIZE:
            raise BadValue(f"record {record.kind} of {record.length} bytes")
        found[Kind(record.kind)].append(layout.decode(data, body))
        position = body + record.length
    return _check(header, found)


def _check(header: StreamHeader, found: dict[Kind, list[Any]]) -> SavedPartition:
    """What the records have to say together. A checksum keeps accidents out, not somebody who computes it."""
    partitions = found[Kind.PARTITION]
    saved = SavedPartition(
        _replace(header, length=0, checksum=0),
        partitions[0] if partitions else None,
        *(tuple(records) for kind, records in found.items() if kind is not Kind.PARTITION),
    )
    if len(partitions) != 1 - header.summary:
        raise BadValue(f"{len(partitions)} partition records")
    known = set(saved.indices)
    if len(saved.processors) != header.vp_count or len(known) != header.vp_count:
        raise BadValue(f"{len(known)} processors, {header.vp_count} are announced")
    times = [processor.runtime for processor in saved.processors]
    if saved.partition is not None:
        times += [saved.partition.reference_time, saved.partition.last_reading]
    if any(time >= _MOST_TIME for time in times):
        raise BadValue("more time than there is")
    for message in saved.messages:
        if message.vp not in known or message.sint >= SINT_COUNT or not 0 < message.size + 1 <= PAYLOAD_MAX + 1:
            raise BadValue(f"a message of {message.size} bytes to processor {message.vp}, SINT {message.sint}")
        if not message.message_type:
            raise BadValue("a message without a type")
    if any(register.vp not in known for register in saved.registers):
        raise BadValue("a register of a processor that is not there")
    if not all(map(_holds, saved.registers)):
        raise BadValue("a register that there is not, or a value that it cannot have")
    pages = {(record.vp, record.page) for record in saved.overlays}
    if len(pages) != len(saved.overlays) or not all(_sensible(record, known) for record in saved.overlays):
        raise BadValue("an overlay page of nobody's, or one twice")
    gpns = {record.gpn for record in saved.beneath}
    if len(gpns) != len(saved.beneath) or any(gpn >= _MOST_GPN for gpn in gpns):
        raise BadValue("what lies beneath overlays is not one page each")
    timers = {(timer.vp, timer.index) for timer in saved.timers}
    if len(timers) != len(saved.timers) or not all(_possible(timer, known) for timer in saved.timers):
        raise BadValue("a timer that no register could have set, or one twice")
    return saved


def _sensible(record: OverlayRecord, known: set[int]) -> bool:
    match record.page:
        case Page.HYPERCALL | Page.REFERENCE_TSC:
            return record.vp == 0
        case Page.MESSAGES | Page.EVENTS | Page.ASSIST:
            return record.vp in known
        case _:
            return False


def _holds(register: RegisterRecord) -> bool:
    """Whether HvSetVpRegisters would take the value: what is too long for its field would be met in a message."""
    legal = legal_bits(register.name)
    return bool(legal) and not int.from_bytes(register.value, "little") & ~legal


def _possible(timer: TimerRecord, known: set[int]) -> bool:
    """The rules of the timer registers: what breaks them would divide by a period of zero, say."""
    config = timer.config
    if timer.vp not in known or timer.index >= TIMER_COUNT or config & ~CONFIG_BITS:
        return False
    direct = bool(config & TimerConfig.DIRECT)
    if direct and config >> VECTOR_SHIFT & 0xFF < LEAST_VECTOR:
        return False
    reaches = direct or config >> SINT_SHIFT & 0xF
    can_run = bool(config & TimerConfig.ENABLE and timer.count and reaches)
    return can_run or not timer.flags & TIMER_RUNS
