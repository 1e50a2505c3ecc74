"""Hypercalls by which the root reads the hypervisor's event log. Hypervisor."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hypervisor.event_log import (
    ENABLE_KNOWN,
    ENABLE_TEST,
    LOG_TYPES,
    MAX_BUFFER_PAGES,
    MAX_BUFFERS,
    BufferState,
    LogEvent,
    LogGroup,
)
from hypervisor.hypercall.event_log_layouts import (
    CreateEventLogBufferInput,
    EventLogBufferInput,
    EventLogGroupInput,
    EventLogInput,
    EventLogSourcesInput,
    MapEventLogBufferOutput,
)
from hypervisor.hypercall.partitions import check_proximity
from hypervisor.pages import PAGE_SIZE
from hypervisor.partition import ROOT_ID, Partition
from hypervisor.status import HvError, HvStatus

if TYPE_CHECKING:
    from hypervisor.event_log import EventLog
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vp import VirtualProcessor


def _log(hypervisor: Hypervisor, vp: VirtualProcessor) -> EventLog:
    if vp.partition.id != ROOT_ID:
        raise HvError(HvStatus.ACCESS_DENIED)
    return hypervisor.event_log


def initialize_group(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: EventLogGroupInput
) -> None:
    """A log of a type, once; OBJECT_IN_USE until it is finalized."""
    log = _log(hypervisor, vp)
    buffers, pages = request.max_buffers, request.buffer_pages
    valid = 0 < buffers <= MAX_BUFFERS and 0 < pages <= MAX_BUFFER_PAGES and request.threshold <= buffers
    if request.log_type >= LOG_TYPES or not valid or request.time_basis > 1:
        raise HvError(HvStatus.INVALID_PARAMETER)
    if request.log_type in log.groups:
        raise HvError(HvStatus.OBJECT_IN_USE)
    log.groups[request.log_type] = LogGroup(request.log_type, buffers, pages, bool(request.time_basis))


def finalize_group(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: EventLogInput) -> None:
    """Its buffers must have been deleted."""
    log = _log(hypervisor, vp)
    if log.group(request.log_type).buffers:
        raise HvError(HvStatus.OPERATION_DENIED)
    del log.groups[request.log_type]


def create_buffer(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: CreateEventLogBufferInput
) -> None:
    """A free buffer. Raises INSUFFICIENT_MEMORY."""
    log = _log(hypervisor, vp)
    group = log.group(request.log_type)
    check_proximity(request.proximity)
    if request.index >= group.max_buffers or request.index in group.buffers:
        raise HvError(HvStatus.INVALID_PARAMETER)
    log.create(group, request.index)


def delete_buffer(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: EventLogBufferInput
) -> None:
    """Not while it is mapped. One in use stops being it, and what it has is lost."""
    log = _log(hypervisor, vp)
    group, buffer = log.buffer(request.log_type, request.index)
    if buffer.mapped:
        raise HvError(HvStatus.OPERATION_DENIED)
    if group.current is buffer:
        group.current = None
    log.delete(group, buffer)


def map_buffer(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: EventLogBufferInput) -> bytes:
    """Where the root finds it."""
    group, buffer = _log(hypervisor, vp).buffer(request.log_type, request.index)
    buffer.mapped = True
    pages = range(buffer.gpn, buffer.gpn + group.buffer_pages)
    return MapEventLogBufferOutput(struct.pack(f"<{len(pages)}Q", *pages).ljust(PAGE_SIZE, b"\0")).encode()


def unmap_buffer(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: EventLogBufferInput) -> None:
    """The root is done with its pages."""
    _, buffer = _log(hypervisor, vp).buffer(request.log_type, request.index)
    if not buffer.mapped:
        raise HvError(HvStatus.OPERATION_DENIED)
    buffer.mapped = False


def set_sources(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: EventLogSourcesInput) -> None:
    """What is logged from here on; the test source logs one event at once."""
    log = _log(hypervisor, vp)
    group = log.group(request.log_type)
    if request.enable & ~ENABLE_KNOWN:
        raise HvError(HvStatus.INVALID_PARAMETER)
    group.enabled = request.enable
    log.log(LogEvent.TEST, ENABLE_TEST, b"")


def release_buffer(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: EventLogBufferInput
) -> None:
    """The root has read a complete buffer; it is free again."""
    _, buffer = _log(hypervisor, vp).buffer(request.log_type, request.index)
    if buffer.state is not BufferState.COMPLETE:
        raise HvError(HvStatus.OPERATION_DENIED)
    buffer.state = BufferState.FREE


def flush_buffer(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: EventLogBufferInput) -> None:
    """Complete the buffer in use though it is not full; the buffer number is not looked at."""
    log = _log(hypervisor, vp)
    log.complete(log.group(request.log_type))
