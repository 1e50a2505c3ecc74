"""The hypervisor's event log: buffers of the root's, what is in them, and what the root is told."""

from __future__ import annotations

import struct

import pytest

from hypervisor.event_log import (
    ENABLE_PARTITION,
    ENABLE_TEST,
    MAX_BUFFER_PAGES,
    MAX_BUFFERS,
    BufferState,
    LogEvent,
)
from hypervisor.hypercall import event_log_layouts as wire
from hypervisor.hypercall.abi import CallCode
from hypervisor.hypercall.layouts import PartitionInput
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SIZE
from hypervisor.partition import GRANTABLE_PRIVILEGES
from hypervisor.status import HvStatus
from hypervisor.synic.messages import HEADER_SIZE, MessageHeader, MessageType
from hypervisor.wire import Wire
from tests.doubles.hypercaller import Machine

HEADER, ENTRY = wire.EventLogBufferHeader.SIZE, wire.EventLogEntryHeader.SIZE + 8
FITS = (PAGE_SIZE - HEADER) // ENTRY
"""Events of a partition in a buffer of one page."""


@pytest.fixture
def machine() -> Machine:
    machine = Machine()
    machine.listen()
    return machine


def call(machine: Machine, code: CallCode, request: Wire) -> HvStatus:
    return machine.call(code, request).status


def group(machine: Machine, log_type: int = 0, buffers: int = 4, pages: int = 1, **fields: int) -> HvStatus:
    request = wire.EventLogGroupInput(log_type, buffers, pages, **fields)
    return call(machine, CallCode.INITIALIZE_EVENT_LOG_BUFFER_GROUP, request)


def create(machine: Machine, index: int, log_type: int = 0) -> HvStatus:
    return call(machine, CallCode.CREATE_EVENT_LOG_BUFFER, wire.CreateEventLogBufferInput(log_type, index))


def on(machine: Machine, code: CallCode, index: int = 0, log_type: int = 0) -> HvStatus:
    return call(machine, code, wire.EventLogBufferInput(log_type, index))


def enable(machine: Machine, sources: int) -> HvStatus:
    return call(machine, CallCode.SET_EVENT_LOG_GROUP_SOURCES, wire.EventLogSourcesInput(0, sources))


def contents(machine: Machine, index: int) -> tuple[wire.EventLogBufferHeader, list[tuple[int, int]]]:
    """A buffer as the root reads it: header, and (event, data) of each entry."""
    output = machine.must(CallCode.MAP_EVENT_LOG_BUFFER, wire.EventLogBufferInput(0, index))
    data = machine.root.memory.read(struct.unpack_from("<Q", output)[0] * PAGE_SIZE, PAGE_SIZE)
    assert on(machine, CallCode.UNMAP_EVENT_LOG_BUFFER, index) is HvStatus.SUCCESS
    header = wire.EventLogBufferHeader.decode(data[:HEADER])
    used = machine.hypervisor.event_log.buffer(0, index)[1].used
    entries, at = [], HEADER
    while at < used:
        entry = wire.EventLogEntryHeader.decode(data[at : at + wire.EventLogEntryHeader.SIZE])
        body = data[at + wire.EventLogEntryHeader.SIZE : at + entry.size]
        entries.append((entry.event, int.from_bytes(body, "little")))
        at += entry.size
    return header, entries


def told(machine: Machine) -> list[tuple[int, int]]:
    """(log type, buffer) of the messages that the root has, its slot emptied for the next."""
    found = []
    slot = (machine.low + 3) * PAGE_SIZE
    while (data := machine.root.memory.read(slot, 256))[:4] != bytes(4):
        header = MessageHeader.decode(data[:HEADER_SIZE])
        assert (header.message_type, header.origination_id) == (MessageType.EVENT_LOG_BUFFER_COMPLETE, 0)
        found.append(struct.unpack_from("<II", data, HEADER_SIZE))
        machine.root.memory.write(slot, bytes(4))
        machine.hypervisor.write_msr(machine.vp, Msr.EOM, 0)
    return found


def test_partitions_come_and_go(machine: Machine) -> None:
    """The root reads what happened while the source was enabled, in order, after it has flushed the buffer."""
    group(machine)
    create(machine, 2)
    machine.create()
    enable(machine, ENABLE_PARTITION)
    machine.now = 5_000
    child = machine.create()
    machine.must(CallCode.DELETE_PARTITION, PartitionInput(child.id))
    enable(machine, 0)
    machine.create()
    assert not told(machine)
    assert on(machine, CallCode.FLUSH_EVENT_LOG_BUFFER) is HvStatus.SUCCESS
    assert told(machine) == [(0, 2)]
    header, entries = contents(machine, 2)
    assert entries == [(LogEvent.PARTITION_CREATED, child.id), (LogEvent.PARTITION_DELETED, child.id)]
    assert (header.size, header.index, header.state) == (PAGE_SIZE, 2, BufferState.COMPLETE)
    assert header.next_offset == HEADER + 2 * ENTRY
    assert header.time == 5_000


def test_a_full_buffer_makes_way_for_the_next(machine: Machine) -> None:
    """Two buffers, three times as many events: what finds none is lost and counted in the next that is free."""
    group(machine, buffers=2)
    create(machine, 0)
    create(machine, 1)
    enable(machine, ENABLE_PARTITION)
    made = [machine.create().id for _ in range(2 * FITS + 3)]
    assert told(machine) == [(0, 0), (0, 1)]
    assert [number for _, number in contents(machine, 0)[1]] == made[:FITS]
    assert [number for _, number in contents(machine, 1)[1]] == made[FITS : 2 * FITS]
    assert on(machine, CallCode.RELEASE_EVENT_LOG_BUFFER, 0) is HvStatus.SUCCESS
    last = machine.create().id
    on(machine, CallCode.FLUSH_EVENT_LOG_BUFFER)
    header, entries = contents(machine, 0)
    assert header.lost == 3
    assert entries == [(LogEvent.PARTITION_CREATED, last)]


def test_the_test_event(machine: Machine) -> None:
    """Enabling its source logs it, by the TSC where the group wants that."""
    group(machine, time_basis=1)
    create(machine, 0)
    machine.now = 10_000
    assert enable(machine, ENABLE_TEST) is HvStatus.SUCCESS
    assert contents(machine, 0)[1] == [(LogEvent.TEST, 0)]
    assert contents(machine, 0)[0].time == machine.hypervisor.read_tsc() > 10_000


@pytest.mark.parametrize(
    ("log_type", "buffers", "pages", "fields", "status"),
    [
        (2, 1, 1, {}, HvStatus.SUCCESS),
        (3, 1, 1, {}, HvStatus.INVALID_PARAMETER),
        (0, 0, 1, {}, HvStatus.INVALID_PARAMETER),
        (0, MAX_BUFFERS + 1, 1, {}, HvStatus.INVALID_PARAMETER),
        (0, 1, 0, {}, HvStatus.INVALID_PARAMETER),
        (0, 1, MAX_BUFFER_PAGES + 1, {}, HvStatus.INVALID_PARAMETER),
        (0, 1, 1, {"threshold": 2}, HvStatus.INVALID_PARAMETER),
        (0, 1, 1, {"time_basis": 2}, HvStatus.INVALID_PARAMETER),
    ],
)
def test_groups(
    machine: Machine, log_type: int, buffers: int, pages: int, fields: dict[str, int], status: HvStatus
) -> None:
    assert group(machine, log_type, buffers, pages, **fields) is status


def test_the_order_of_things(machine: Machine) -> None:
    """Group, buffers, mapping; and back. Each step out of turn is refused and changes nothing."""
    finalize = CallCode.FINALIZE_EVENT_LOG_BUFFER_GROUP
    assert create(machine, 0) is HvStatus.INVALID_PARAMETER
    assert enable(machine, 0) is HvStatus.INVALID_PARAMETER
    assert group(machine, buffers=2, pages=3) is HvStatus.SUCCESS
    assert group(machine) is HvStatus.OBJECT_IN_USE
    before, bytes_before = machine.root.pool.in_use, machine.hypervisor.root_bytes
    assert create(machine, 1) is HvStatus.SUCCESS
    assert machine.root.pool.in_use == before + 3
    assert create(machine, 1) is HvStatus.INVALID_PARAMETER
    assert create(machine, 2) is HvStatus.INVALID_PARAMETER
    assert enable(machine, 1 << 5) is HvStatus.INVALID_PARAMETER
    for code in (
        *(CallCode.DELETE_EVENT_LOG_BUFFER, CallCode.MAP_EVENT_LOG_BUFFER, CallCode.UNMAP_EVENT_LOG_BUFFER),
        CallCode.RELEASE_EVENT_LOG_BUFFER,
    ):
        assert on(machine, code, 0) is HvStatus.INVALID_PARAMETER
    assert on(machine, CallCode.UNMAP_EVENT_LOG_BUFFER, 1) is HvStatus.OPERATION_DENIED
    assert on(machine, CallCode.RELEASE_EVENT_LOG_BUFFER, 1) is HvStatus.OPERATION_DENIED
    output = machine.must(CallCode.MAP_EVENT_LOG_BUFFER, wire.EventLogBufferInput(0, 1))
    pages = struct.unpack_from("<4Q", output)
    assert pages == (pages[0], pages[0] + 1, pages[0] + 2, 0)
    assert on(machine, CallCode.DELETE_EVENT_LOG_BUFFER, 1) is HvStatus.OPERATION_DENIED
    assert call(machine, finalize, wire.EventLogInput(0)) is HvStatus.OPERATION_DENIED
    assert on(machine, CallCode.UNMAP_EVENT_LOG_BUFFER, 1) is HvStatus.SUCCESS
    enable(machine, ENABLE_TEST)
    assert on(machine, CallCode.DELETE_EVENT_LOG_BUFFER, 1) is HvStatus.SUCCESS
    assert (machine.root.pool.in_use, machine.hypervisor.root_bytes) == (before, bytes_before)
    enable(machine, ENABLE_TEST)
    assert call(machine, finalize, wire.EventLogInput(0)) is HvStatus.SUCCESS
    assert call(machine, finalize, wire.EventLogInput(0)) is HvStatus.INVALID_PARAMETER


def test_buffers_are_paid_for(machine: Machine) -> None:
    """By the root's pool and the host's memory; where either is short nothing is made."""
    group(machine, pages=2)
    root = machine.root
    held = root.pool.available - 1
    root.charge(held)
    assert create(machine, 0) is HvStatus.INSUFFICIENT_MEMORY
    root.discharge(held)
    before = root.pool.in_use
    machine.hypervisor.memory_bytes = machine.hypervisor.root_bytes
    assert create(machine, 0) is HvStatus.INSUFFICIENT_MEMORY
    assert root.pool.in_use == before


@pytest.mark.parametrize("code", range(0x60, 0x69))
def test_the_log_is_the_roots(machine: Machine, code: int) -> None:
    """No privilege that a child can have opens it."""
    child = machine.child(GRANTABLE_PRIVILEGES)
    assert machine.call(code, bytes(32), caller=child).status is HvStatus.ACCESS_DENIED
