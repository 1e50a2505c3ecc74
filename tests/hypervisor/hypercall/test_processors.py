"""Hypercalls on virtual processors and their registers."""

from __future__ import annotations

import struct

import pytest

from hypervisor.hypercall import layouts
from hypervisor.hypercall.abi import ANY_VP, VP_INDEX_SELF, CallCode
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SIZE
from hypervisor.partition import PageCost, Partition
from hypervisor.status import HvStatus
from tests.doubles.hypercaller import Answer, Machine

EXPLICIT_SUSPEND, INTERCEPT_SUSPEND, RAX, VP_INDEX, SINT2 = 0, 1, 0x20000, 0x90003, 0xA0002


@pytest.fixture
def machine() -> Machine:
    return Machine()


def create(machine: Machine, child: Partition, index: int, proximity: int = 0, flags: int = 0) -> HvStatus:
    return machine.call(CallCode.CREATE_VP, layouts.CreateVpInput(child.id, index, proximity, flags)).status


def get(machine: Machine, child: Partition, index: int, *names: int, caller: Partition | None = None) -> Answer:
    request = layouts.VpInput(child.id, index)
    elements = struct.pack(f"<{len(names)}I", *names)
    return machine.call(CallCode.GET_VP_REGISTERS, request, count=len(names), elements=elements, caller=caller)


def put(
    machine: Machine, child: Partition, index: int, *pairs: tuple[int, int], caller: Partition | None = None
) -> Answer:
    request = layouts.VpInput(child.id, index)
    elements = b"".join(
        layouts.RegisterAssociation(name, value.to_bytes(16, "little")).encode() for name, value in pairs
    )
    return machine.call(CallCode.SET_VP_REGISTERS, request, count=len(pairs), elements=elements, caller=caller)


def test_a_vp_begins_explicitly_suspended_and_paid_for(machine: Machine) -> None:
    child = machine.active()
    before = child.pool.in_use
    assert create(machine, child, 0) is HvStatus.SUCCESS
    assert child.vps[0].explicit_suspend
    assert child.pool.in_use == before + PageCost.VP


@pytest.mark.parametrize(
    ("index", "proximity", "flags", "status"),
    [
        (63, 0, 0, HvStatus.SUCCESS),
        (64, 0, 0, HvStatus.INVALID_VP_INDEX),
        (ANY_VP, 0, 0, HvStatus.INVALID_VP_INDEX),
        (0, 0, 1, HvStatus.INVALID_PARAMETER),
        (0, layouts.PROXIMITY_VALID << 32 | 1, 0, HvStatus.INVALID_PARAMETER),
        (64, 0, 1, HvStatus.INVALID_VP_INDEX),  # objects before values
    ],
)
def test_creation_parameters(machine: Machine, index: int, proximity: int, flags: int, status: HvStatus) -> None:
    assert create(machine, machine.active(), index, proximity, flags) is status


def test_an_index_is_used_once_at_a_time(machine: Machine) -> None:
    child = machine.active()
    assert create(machine, child, 3) is HvStatus.SUCCESS
    assert create(machine, child, 3) is HvStatus.INVALID_VP_INDEX
    before = child.pool.in_use
    delete = layouts.VpInput(child.id, 3)
    assert machine.call(CallCode.DELETE_VP, delete, fast=True).status is HvStatus.SUCCESS
    assert child.pool.in_use == before - PageCost.VP
    assert machine.call(CallCode.DELETE_VP, delete, fast=True).status is HvStatus.INVALID_VP_INDEX
    assert create(machine, child, 3) is HvStatus.SUCCESS


def test_a_deleted_vp_takes_its_pages_along(machine: Machine) -> None:
    """What its message page hid is seen again."""
    child = machine.child()
    child.memory.write(5 * PAGE_SIZE, b"beneath")
    machine.hypervisor.write_msr(child.vps[0], Msr.SIMP, 5 * PAGE_SIZE | 1)
    assert child.memory.read(5 * PAGE_SIZE, 7) == bytes(7)
    machine.must(CallCode.DELETE_VP, layouts.VpInput(child.id, 0))
    assert child.memory.read(5 * PAGE_SIZE, 7) == b"beneath"


def test_a_short_pool(machine: Machine) -> None:
    child = machine.active()
    child.charge(child.pool.available - PageCost.VP + 1)
    assert create(machine, child, 0) is HvStatus.INSUFFICIENT_MEMORY
    assert not child.vps


def test_registers_set_are_registers_read(machine: Machine) -> None:
    """Values have 128 bits; a 64-bit register's upper half is zero."""
    child = machine.child()
    assert put(machine, child, 0, (RAX, 0x1122334455667788), (SINT2, 0x30)).status is HvStatus.SUCCESS
    answer = get(machine, child, 0, RAX, SINT2, VP_INDEX)
    assert struct.unpack_from("<6Q", answer.output) == (0x1122334455667788, 0, 0x30, 0, 0, 0)


def test_resuming_a_vp(machine: Machine) -> None:
    """Explicit suspend is a register of the parent's; intercept suspend may be cleared and not set."""
    child = machine.child()
    assert put(machine, child, 0, (EXPLICIT_SUSPEND, 0)).status is HvStatus.SUCCESS
    assert not child.vps[0].suspended
    assert put(machine, child, 0, (INTERCEPT_SUSPEND, 1)).status is HvStatus.INVALID_PARAMETER
    child.vps[0].stop_on_intercept()
    assert put(machine, child, 0, (INTERCEPT_SUSPEND, 0)).status is HvStatus.SUCCESS
    assert not child.vps[0].suspended


def test_elements_before_a_refused_one_stay_set(machine: Machine) -> None:
    child = machine.child()
    answer = put(machine, child, 0, (RAX, 1), (VP_INDEX, 7), (RAX, 2))
    assert (answer.status, answer.completed) == (HvStatus.INVALID_PARAMETER, 1)
    assert child.vps[0].get_register(RAX) == 1


def test_which_vp(machine: Machine) -> None:
    """The calling VP has a name of its own, for itself only."""
    child = machine.child()
    assert get(machine, child, 1, RAX).status is HvStatus.INVALID_VP_INDEX
    assert get(machine, child, VP_INDEX_SELF, RAX).status is HvStatus.INVALID_VP_INDEX
    own = get(machine, child, VP_INDEX_SELF, VP_INDEX, caller=child)
    assert own.status is HvStatus.SUCCESS


def test_a_child_reads_its_registers_and_does_not_set_them(machine: Machine) -> None:
    child = machine.child()
    assert get(machine, child, 0, RAX, caller=child).status is HvStatus.SUCCESS
    assert put(machine, child, 0, (EXPLICIT_SUSPEND, 0), caller=child).status is HvStatus.ACCESS_DENIED
