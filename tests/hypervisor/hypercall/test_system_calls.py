"""Calls on the machine as a whole, and a guest's line to its debugger."""

from __future__ import annotations

import struct

import pytest

from hypervisor.debug_port import INCOMING_BYTES, OUTGOING_BYTES
from hypervisor.hypercall import layouts
from hypervisor.hypercall import system_layouts as wire
from hypervisor.hypercall.abi import CallCode, control_word, result_status
from hypervisor.hypercall.system import CrashdumpAction, PartitionEvent, SystemProperty
from hypervisor.pages import PAGE_SIZE
from hypervisor.partition import GRANTABLE_PRIVILEGES, Partition
from hypervisor.privileges import Privilege
from hypervisor.properties import Property
from hypervisor.status import HvStatus
from tests.doubles.hypercaller import CHILD_INPUT, CHILD_OUTPUT, Answer, Machine


@pytest.fixture
def machine() -> Machine:
    return Machine(root_vps=4)


# --- the root's


@pytest.mark.parametrize(
    ("mask", "status"),
    [
        (0, HvStatus.SUCCESS),
        (0b1110, HvStatus.SUCCESS),
        (1, HvStatus.INVALID_PARAMETER),
        (16, HvStatus.INVALID_PARAMETER),
    ],
)
def test_parking(machine: Machine, mask: int, status: HvStatus) -> None:
    """Any of the four processors but the first."""
    assert machine.call(CallCode.PARK_LOGICAL_PROCESSORS, wire.ParkInput(mask), fast=True).status is status
    assert machine.hypervisor.parked_processors == (mask if status is HvStatus.SUCCESS else 0)


@pytest.mark.parametrize(
    ("code", "data"),
    [
        (CallCode.PARK_LOGICAL_PROCESSORS, wire.ParkInput(0)),
        (CallCode.SET_SYSTEM_PROPERTY, wire.SetSystemPropertyInput(1, bytes(8))),
        (CallCode.NOTIFY_PARTITION_EVENT, wire.PartitionEventInput(4)),
    ],
)
def test_they_are_the_roots_alone(machine: Machine, code: CallCode, data: wire.ParkInput) -> None:
    """A child with every privilege that a child can have included."""
    child = machine.child(GRANTABLE_PRIVILEGES)
    assert machine.call(code, data, caller=child).status is HvStatus.ACCESS_DENIED
    assert machine.call(code, data).status is HvStatus.SUCCESS


def sleep_state(machine: Machine, state: int) -> HvStatus:
    value = wire.SleepState(state, 5, 7).encode()
    return machine.call(CallCode.SET_SYSTEM_PROPERTY, wire.SetSystemPropertyInput(3, value)).status


def test_system_properties(machine: Machine) -> None:
    """They are kept; sleep states until the root locks them."""
    counter = wire.SetSystemPropertyInput(1, wire.PerformanceCounter(0x3C).encode(), 1_000_000)
    assert machine.call(CallCode.SET_SYSTEM_PROPERTY, counter).status is HvStatus.SUCCESS
    reserved = wire.SetSystemPropertyInput(1, wire.PerformanceCounter(0x3C, 0, 1).encode(), 1)
    assert machine.call(CallCode.SET_SYSTEM_PROPERTY, reserved).status is HvStatus.INVALID_PARAMETER
    unknown = wire.SetSystemPropertyInput(2, bytes(8))
    assert machine.call(CallCode.SET_SYSTEM_PROPERTY, unknown).status is HvStatus.UNKNOWN_PROPERTY
    assert sleep_state(machine, 5) is HvStatus.SUCCESS
    assert sleep_state(machine, 7) is HvStatus.INVALID_PARAMETER
    assert sleep_state(machine, 0) is HvStatus.INVALID_PARAMETER
    assert sleep_state(machine, 6) is HvStatus.SUCCESS
    assert sleep_state(machine, 5) is HvStatus.OPERATION_DENIED
    kept = machine.hypervisor.system_properties
    assert kept[SystemProperty.PERFORMANCE_COUNTER, 0x3C] == 1_000_000
    assert kept[SystemProperty.SLEEP_STATE, 5] == 0x705


def test_a_root_that_crashes_stops_its_children(machine: Machine) -> None:
    """Before it writes its dump; itself it leaves running."""
    child = machine.child()
    child.vps[0].set_explicit_suspend(False)
    event = wire.PartitionEventInput(PartitionEvent.ROOT_CRASHDUMP, CrashdumpAction.ENTRY)
    assert machine.call(CallCode.NOTIFY_PARTITION_EVENT, event, fast=True).status is HvStatus.SUCCESS
    assert not child.vps[0].suspended
    event = wire.PartitionEventInput(PartitionEvent.ROOT_CRASHDUMP, CrashdumpAction.SUSPEND_ALL_VPS)
    assert machine.call(CallCode.NOTIFY_PARTITION_EVENT, event, fast=True).status is HvStatus.SUCCESS
    assert child.vps[0].suspended
    assert not machine.vp.suspended


@pytest.mark.parametrize(("event", "argument"), [(0, 0), (3, 0), (5, 0), (2, 5)])
def test_events_that_are_none(machine: Machine, event: int, argument: int) -> None:
    request = wire.PartitionEventInput(event, argument)
    assert machine.call(CallCode.NOTIFY_PARTITION_EVENT, request, fast=True).status is HvStatus.INVALID_PARAMETER


def test_long_waits_for_a_spin_lock_are_counted(machine: Machine) -> None:
    child = machine.child()
    for count in (0, 0xFFFFFFFF):
        request = layouts.LongSpinWaitInput(count)
        assert machine.call(CallCode.NOTIFY_LONG_SPIN_WAIT, request, fast=True, caller=child).status is HvStatus.SUCCESS
    assert child.counters["long_spin_waits"] == 2


# --- debugging


@pytest.fixture
def child(machine: Machine) -> Partition:
    """A guest with a channel to its debugger."""
    child = machine.child(Privilege.DEBUGGING)
    machine.must(
        CallCode.SET_PARTITION_PROPERTY, layouts.SetPartitionPropertyInput(child.id, Property.DEBUG_CHANNEL_ID, 1)
    )
    return child


def call(machine: Machine, child: Partition, code: int, data: bytes) -> Answer:
    """Input on a page of its own, as its size demands."""
    child.memory.write(CHILD_INPUT, data)
    value = machine.hypervisor.hypercall(child.vps[0], control_word(code), CHILD_INPUT, CHILD_OUTPUT)
    return Answer(result_status(value), 0, child.memory.read(CHILD_OUTPUT, PAGE_SIZE))


def post(machine: Machine, child: Partition, data: bytes, count: int | None = None, options: int = 0) -> Answer:
    head = struct.pack("<II", len(data) if count is None else count, options)
    return call(machine, child, CallCode.POST_DEBUG_DATA, (head + data).ljust(PAGE_SIZE, b"\0"))


def retrieve(machine: Machine, child: Partition, count: int, options: int = 0) -> Answer:
    return call(machine, child, CallCode.RETRIEVE_DEBUG_DATA, wire.RetrieveDebugInput(count, options, 10**7).encode())


def reset(machine: Machine, child: Partition, options: int) -> HvStatus:
    return machine.call(CallCode.RESET_DEBUG_SESSION, wire.ResetDebugInput(options), fast=True, caller=child).status


def test_bytes_go_out_until_there_is_no_room(machine: Machine, child: Partition) -> None:
    """The answer says how many found none; a guest that talks to nobody costs the host so much and no more."""
    assert post(machine, child, b"hello").status is HvStatus.SUCCESS
    port = child.debug_port
    assert port is not None
    assert port.take() == b"hello"
    chunk = bytes(wire.DEBUG_BYTES)
    whole, rest = divmod(OUTGOING_BYTES, wire.DEBUG_BYTES)
    for _ in range(whole):
        assert post(machine, child, chunk).output[:4] == bytes(4)
    answer = post(machine, child, chunk)
    assert answer.status is HvStatus.SUCCESS
    assert struct.unpack_from("<I", answer.output)[0] == wire.DEBUG_BYTES - rest
    assert post(machine, child, b"x").status is HvStatus.INSUFFICIENT_BUFFERS
    assert post(machine, child, b"").status is HvStatus.SUCCESS
    assert len(port.take()) == OUTGOING_BYTES


def test_packets_come_in_whole(machine: Machine, child: Partition) -> None:
    """One a call; one that is longer than the caller's room stays."""
    assert retrieve(machine, child, 100).status is HvStatus.NO_DATA
    port = child.debug_port
    assert port is not None
    assert port.send(b"first")
    assert port.send(b"second")
    assert retrieve(machine, child, 4).status is HvStatus.PARTIAL_PACKET
    answer = retrieve(machine, child, 5)
    assert struct.unpack_from("<II", answer.output) == (5, 6)
    assert answer.output[8:].rstrip(b"\0") == b"first"
    answer = retrieve(machine, child, wire.DEBUG_BYTES)
    assert struct.unpack_from("<II", answer.output) == (6, 0)
    assert retrieve(machine, child, 5).status is HvStatus.NO_DATA
    assert not port.send(b"")
    assert not port.send(bytes(INCOMING_BYTES + 1))
    assert port.send(bytes(INCOMING_BYTES))
    assert not port.send(b"x")


def test_a_session_begins_anew(machine: Machine, child: Partition) -> None:
    """Each direction by its bit."""
    post(machine, child, b"out")
    port = child.debug_port
    assert port is not None
    port.send(b"in")
    assert reset(machine, child, 2) is HvStatus.SUCCESS
    assert port.take() == b""
    assert port.incoming
    assert reset(machine, child, 1) is HvStatus.SUCCESS
    assert retrieve(machine, child, 10).status is HvStatus.NO_DATA
    assert reset(machine, child, 4) is HvStatus.INVALID_PARAMETER


def test_debugging_calls_that_are_refused(machine: Machine, child: Partition) -> None:
    """More than a call carries, options that are none; without a channel INACTIVE, without the privilege nothing."""
    too_much = wire.DEBUG_BYTES + 1
    assert post(machine, child, b"", too_much).status is HvStatus.INVALID_PARAMETER
    assert retrieve(machine, child, too_much).status is HvStatus.INVALID_PARAMETER
    assert post(machine, child, b"x", options=2).status is HvStatus.INVALID_PARAMETER
    assert retrieve(machine, child, 1, options=4).status is HvStatus.INVALID_PARAMETER
    quiet = machine.child(Privilege.DEBUGGING)
    assert post(machine, quiet, b"x").status is HvStatus.INACTIVE
    assert retrieve(machine, quiet, 1).status is HvStatus.INACTIVE
    assert reset(machine, quiet, 3) is HvStatus.INACTIVE
    assert quiet.debug_port is None
    plain = machine.child()
    assert post(machine, plain, b"x").status is HvStatus.ACCESS_DENIED
