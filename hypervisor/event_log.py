"""The hypervisor's event log: buffers of the root's, filled one after the other and given back when read. Hypervisor.

A buffer is free, then in use, then complete; the root hears of it by a message to SINT0, reads it and releases it. An
event that finds no free buffer is lost and counted. What is logged is that partitions come and go.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING

import attrs

from hypervisor.hypercall.event_log_layouts import EventLogBufferHeader, EventLogBufferInput, EventLogEntryHeader
from hypervisor.pages import PAGE_SHIFT
from hypervisor.status import HvError, HvStatus
from hypervisor.synic.messages import INTERCEPT_SINT, MessageType
from hypervisor.synic.synic import Message

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor

LOG_TYPES = 3
"""Global system events, local and system diagnostics; the last two have no events here."""
SYSTEM_EVENTS = 0
MAX_BUFFERS = 64
"""Of a group; ours, so that a root cannot ask for more than it can mean."""
MAX_BUFFER_PAGES = 512
"""What one HvMapEventLogBuffer can name."""
NO_BUFFER = 0xFFFFFFFF

ENABLE_PARTITION = 1 << 2
ENABLE_TEST = 1 << 63
ENABLE_KNOWN = 0x7 | ENABLE_TEST
"""Audits of success and failure, partitions, a test event."""


class LogEvent(enum.IntEnum):
    """HV_EVENTLOG_OPERATIONAL_*, HV_EVENTLOG_ADMIN_TEST."""

    TEST = 0x4001
    PARTITION_CREATED = 0x4101
    PARTITION_DELETED = 0x4102


class BufferState(enum.IntEnum):
    """HV_EVENTLOG_BUFFER_STATE."""

    FREE = 1
    IN_USE = 2
    COMPLETE = 3


@attrs.define(eq=False)
class LogBuffer:
    """One buffer, in host memory that the root sees at `gpn` while it is mapped."""

    index: int
    gpn: int
    view: memoryview = attrs.field(repr=False)
    state: BufferState = BufferState.FREE
    used: int = 0
    mapped: bool = False


@attrs.define(eq=False)
class LogGroup:
    """The buffers of one type of log."""

    log_type: int
    max_buffers: int
    buffer_pages: int
    uses_tsc: bool
    enabled: int = 0
    lost: int = 0
    buffers: dict[int, LogBuffer] = attrs.field(factory=dict)
    current: LogBuffer | None = None


class EventLog:
    """All groups of one hypervisor."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor
        self.groups: dict[int, LogGroup] = {}

    def group(self, log_type: int) -> LogGroup:
        """Raises INVALID_PARAMETER for a type that is none or was not initialized."""
        group = self.groups.get(log_type)
        if group is None:
            raise HvError(HvStatus.INVALID_PARAMETER)
        return group

    def buffer(self, log_type: int, index: int) -> tuple[LogGroup, LogBuffer]:
        """Raises INVALID_PARAMETER for one that there is not."""
        group = self.group(log_type)
        buffer = group.buffers.get(index)
        if buffer is None:
            raise HvError(HvStatus.INVALID_PARAMETER)
        return group, buffer

    def create(self, group: LogGroup, index: int) -> None:
        """A free buffer, which the root's pool pays for page by page. Raises INSUFFICIENT_MEMORY."""
        root = self._hypervisor.root
        root.charge(group.buffer_pages)
        try:
            gpn, block = self._hypervisor.add_root_block(group.buffer_pages << PAGE_SHIFT, "event log")
        except HvError:
            root.discharge(group.buffer_pages)
            raise
        group.buffers[index] = LogBuffer(index, gpn, block.view)

    def delete(self, group: LogGroup, buffer: LogBuffer) -> None:
        """The caller has looked that it is neither in use nor mapped."""
        del group.buffers[buffer.index]
        buffer.view = memoryview(b"")
        self._hypervisor.remove_root_block(buffer.gpn)
        self._hypervisor.root.discharge(group.buffer_pages)

    def log(self, event: LogEvent, source: int, data: bytes) -> None:
        """Append an event where its source is enabled. Costs one look into a dictionary while there is no group."""
        group = self.groups.get(SYSTEM_EVENTS)
        if group is None or not group.enabled & source:
            return
        entry = EventLogEntryHeader(0, EventLogEntryHeader.SIZE + len(data), event, self._time(group)).encode() + data
        if group.current is not None and group.current.used + len(entry) > len(group.current.view):
            self.complete(group)
        buffer = group.current or self._take_free(group)
        if buffer is None:
            group.lost += 1
            return
        buffer.view[buffer.used : buffer.used + len(entry)] = entry
        buffer.used += len(entry)

    def _time(self, group: LogGroup) -> int:
        return self._hypervisor.read_tsc() if group.uses_tsc else self._hypervisor.root.reference_time.now()

    def _take_free(self, group: LogGroup) -> LogBuffer | None:
        buffer = next((each for each in group.buffers.values() if each.state is BufferState.FREE), None)
        if buffer is not None:
            group.current = buffer
            buffer.state = BufferState.IN_USE
            buffer.used = EventLogBufferHeader.SIZE
            buffer.view[:] = bytes(len(buffer.view))
            self._write_header(group, buffer)
            group.lost = 0
        return buffer

    def _write_header(self, group: LogGroup, buffer: LogBuffer) -> None:
        header = EventLogBufferHeader(
            *(len(buffer.view), buffer.index, group.lost),
            time=self._time(group),
            state=buffer.state,
            next_offset=buffer.used,
            log_type=group.log_type,
            next_index=NO_BUFFER,
        )
        buffer.view[: EventLogBufferHeader.SIZE] = header.encode()

    def complete(self, group: LogGroup) -> None:
        """Close the buffer in use, if there is one, and tell the root."""
        buffer, group.current = group.current, None
        if buffer is None:
            return
        buffer.state = BufferState.COMPLETE
        struct.pack_into("<II", buffer.view, 0x2C, buffer.state, buffer.used)
        first = self._hypervisor.root.vps[0]
        if first.synic.takes_messages:
            payload = EventLogBufferInput(group.log_type, buffer.index).encode()
            kind = MessageType.EVENT_LOG_BUFFER_COMPLETE
            first.synic.post(INTERCEPT_SINT, Message(kind, payload, 0, None, buffer))
