"""The records of a saved partition, as they lie in its stream. Hypervisor.

They are apart from the live objects on purpose: to rename an attribute of a `VirtualProcessor` changes nothing here. A
change here is a new `VERSION`, and `tests/hypervisor/saved_state/` holds a stream of each version that is still read.
What is saved and what is not follows TLFS 2.0a, 17.1; the byte layout is this project's own.
"""

from __future__ import annotations

import enum
from typing import Annotated

from hypervisor.synic.messages import SINT_COUNT
from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import bytes8, bytes16, bytes240, u8, u16, u32, u64

bytes32 = Annotated[bytes, "32s"]
bytes40 = Annotated[bytes, "40s"]
bytes128 = Annotated[bytes, "128s"]
bytes4096 = Annotated[bytes, "4096s"]

MAGIC = b"HVSTATE\0"
VERSION = 1
"""What `encode` writes."""


class Kind(enum.IntEnum):
    """What a record is; the number before each."""

    END = 0
    """The last one: a checksum of all that came before."""
    PARTITION = 1
    PROCESSOR = 2
    REGISTER = 3
    MESSAGE = 4
    OVERLAY = 5
    BENEATH = 6
    TIMER = 7


class Page(enum.IntEnum):
    """Which overlay page a record is about; where it lies is in its register."""

    HYPERCALL = 1
    REFERENCE_TSC = 2
    MESSAGES = 3
    EVENTS = 4
    ASSIST = 5


@wire(size=48, spec="saved_state/records.py")
class StreamHeader(Wire):
    """What a stream, and a summary, begins with. The first three fields stay as they are in every version."""

    magic: bytes8 = at(0x00)
    version: u32 = at(0x08)
    checksum: u32 = at(0x0C, default=0)
    """CRC-32 of this header with zero here: a version is believed only where it was meant."""
    length: u32 = at(0x10, default=0)
    """Bytes of the whole stream."""
    summary: u32 = at(0x14, default=0)
    """1: there is no state in it, only what tells whether the state would fit."""
    vp_count: u32 = at(0x18, default=0)
    features: u32 = at(0x1C, default=0)
    """CPUID leaf 0x40000003, EDX, that the guest was shown."""
    tsc_frequency: u64 = at(0x20, default=0)
    apic_frequency: u64 = at(0x28, default=0)


@wire(size=8, spec="saved_state/records.py")
class RecordHeader(Wire):
    """Before each record."""

    kind: u16 = at(0x00)
    reserved: u16 = at(0x02)
    length: u32 = at(0x04)
    """Bytes that follow."""


@wire(size=4, spec="saved_state/records.py")
class EndRecord(Wire):
    """CRC-32 of the stream up to the header of this record."""

    checksum: u32 = at(0x00)


@wire(size=96, spec="saved_state/records.py")
class PartitionRecord(Wire):
    """Partition-wide registers and time."""

    guest_os_id: u64 = at(0x00)
    hypercall: u64 = at(0x08)
    reference_tsc: u64 = at(0x10)
    tsc_invariant: u64 = at(0x18)
    reference_time: u64 = at(0x20)
    """100 ns units that the partition has run."""
    last_reading: u64 = at(0x28)
    """The next one that a guest makes is greater; 0 before the first."""
    tsc_sequence: u32 = at(0x30)
    crash_parameters: bytes40 = at(0x38)
    """Five 64-bit words."""


@wire(size=232, spec="saved_state/records.py")
class ProcessorRecord(Wire):
    """One virtual processor."""

    index: u32 = at(0x00)
    intercept_suspend: u32 = at(0x04)
    """The explicit suspend bit is the parent's and not saved: it was set, and it will be."""
    runtime: u64 = at(0x08)
    vp_assist: u64 = at(0x10)
    tpr: u64 = at(0x18)
    icr: u64 = at(0x20)
    scontrol: u64 = at(0x28)
    siefp: u64 = at(0x30)
    simp: u64 = at(0x38)
    sints: bytes128 = at(0x40)
    """Sixteen 64-bit words."""
    pending: bytes32 = at(0xC0)
    """Interrupts raised and not taken, a bit a vector."""
    reserved: u64 = at(0xE0, default=0)


@wire(size=24, spec="saved_state/records.py")
class RegisterRecord(Wire):
    """A register of a processor proper, by its TLFS name."""

    vp: u32 = at(0x00)
    name: u32 = at(0x04)
    value: bytes16 = at(0x08)


@wire(size=264, spec="saved_state/records.py")
class MessageRecord(Wire):
    """A message that waits for its slot; records of one processor and SINT stand in their order."""

    vp: u32 = at(0x00)
    sint: u8 = at(0x04)
    size: u8 = at(0x05)
    message_type: u32 = at(0x08)
    origination_id: u64 = at(0x10)
    """The port's number. A port of this number that exists at the restore has one buffer less until it is delivered."""
    payload: bytes240 = at(0x18)


TIMER_RUNS, TIMER_WAITS = 1, 2


@wire(size=48, spec="saved_state/records.py")
class TimerRecord(Wire):
    """A synthetic timer that was ever written. Times are the partition's reference time."""

    vp: u32 = at(0x00)
    index: u32 = at(0x04)
    config: u64 = at(0x08)
    count: u64 = at(0x10)
    due: u64 = at(0x18)
    not_before: u64 = at(0x20)
    flags: u32 = at(0x28)
    """TIMER_RUNS: `due` means something. TIMER_WAITS: its message is among the records, for people."""


@wire(size=4104, spec="saved_state/records.py")
class OverlayRecord(Wire):
    """An overlay page that is shown or holds something. Those shown on one guest page stand from below to above."""

    vp: u32 = at(0x00)
    """0 for those of the whole partition."""
    page: u32 = at(0x04)
    content: bytes4096 = at(0x08)
    """Zero for those that the hypervisor writes itself."""


@wire(size=4104, spec="saved_state/records.py")
class BeneathRecord(Wire):
    """What the guest's own page holds under its overlays."""

    gpn: u64 = at(0x00)
    content: bytes4096 = at(0x08)


RECORDS: dict[Kind, type[Wire]] = {
    Kind.PARTITION: PartitionRecord,
    Kind.PROCESSOR: ProcessorRecord,
    Kind.REGISTER: RegisterRecord,
    Kind.MESSAGE: MessageRecord,
    Kind.OVERLAY: OverlayRecord,
    Kind.BENEATH: BeneathRecord,
    Kind.TIMER: TimerRecord,
}
SINT_WORDS = f"<{SINT_COUNT}Q"
CRASH_WORDS = "<5Q"
