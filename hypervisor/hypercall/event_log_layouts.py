"""The hypervisor's event log: inputs and outputs of its hypercalls, and what is in its buffers. Both sides."""

from __future__ import annotations

from typing import Annotated

from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import bytes8, u8, u16, u32, u64

bytes4096 = Annotated[bytes, "4096s"]


@wire(size=32, spec="HvCallInitializeEventLogBufferGroup input")
class EventLogGroupInput(Wire):
    """Bytes 20 to 23 are padding. `time_basis`: 0 reference time, 1 TSC."""

    log_type: u32 = at(0x00)
    max_buffers: u32 = at(0x04)
    buffer_pages: u32 = at(0x08)
    threshold: u32 = at(0x0C, default=0)
    time_basis: u32 = at(0x10, default=0)
    system_time: u64 = at(0x18, default=0)


@wire(size=8, spec="HvCallFinalizeEventLogBufferGroup input")
class EventLogInput(Wire):
    """Bytes 4 to 7 are padding."""

    log_type: u32 = at(0x00)


@wire(size=16, spec="HvCallCreateEventLogBuffer input")
class CreateEventLogBufferInput(Wire):
    """A buffer's number is the root's to choose."""

    log_type: u32 = at(0x00)
    index: u32 = at(0x04)
    proximity: u64 = at(0x08, default=0)


@wire(size=8, spec="HvCall{Delete,Map,Unmap,Release,Flush}EventLogBuffer input; HV_EVENTLOG_MESSAGE_PAYLOAD")
class EventLogBufferInput(Wire):
    """A buffer by its number; the message that tells of a full one says the same."""

    log_type: u32 = at(0x00)
    index: u32 = at(0x04, default=0)


@wire(size=4096, spec="HvCallMapEventLogBuffer output")
class MapEventLogBufferOutput(Wire):
    """Up to 512 page numbers of the root's."""

    pages: bytes4096 = at(0x00)


@wire(size=16, spec="HvCallSetEventLogGroupSources input")
class EventLogSourcesInput(Wire):
    """Bytes 4 to 7 are padding."""

    log_type: u32 = at(0x00)
    enable: u64 = at(0x08)


@wire(size=72, spec="HV_EVENTLOG_BUFFER_HEADER")
class EventLogBufferHeader(Wire):
    """At the start of a buffer. Entries follow up to `next_offset`."""

    size: u32 = at(0x00)
    index: u32 = at(0x04)
    lost: u32 = at(0x08, default=0)
    """Events that found no buffer before this one."""
    references: u32 = at(0x0C, default=0)
    time: u64 = at(0x10, default=0)
    reserved_1: u64 = at(0x18, default=0)
    reserved_2: u64 = at(0x20, default=0)
    processor: u8 = at(0x28, default=0)
    alignment: u8 = at(0x29, default=0)
    logger: u16 = at(0x2A, default=0)
    state: u32 = at(0x2C, default=0)
    next_offset: u32 = at(0x30, default=0)
    log_type: u32 = at(0x34, default=0)
    next_index: u32 = at(0x38, default=0)
    reserved_3: u32 = at(0x3C, default=0)
    reserved_4: bytes8 = at(0x40, default=bytes(8))


@wire(size=16, spec="HV_EVENTLOG_ENTRY_HEADER")
class EventLogEntryHeader(Wire):
    """Before each entry's data."""

    context: u32 = at(0x00)
    size: u16 = at(0x04)
    """Of header and data."""
    event: u16 = at(0x06)
    time: u64 = at(0x08)
