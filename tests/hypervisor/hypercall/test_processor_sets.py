"""Calls that name sets of processors: interrupts and flushes, with their variable headers."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.hypercall import processor_layouts as wire
from hypervisor.hypercall.abi import CallCode, control_word, result_completed, result_status
from hypervisor.hypercall.layouts import CreateVpInput
from hypervisor.hypercall.processor_set import SetFormat
from hypervisor.partition import Partition
from hypervisor.processor_registers import ProcessorRegister
from hypervisor.status import HvStatus
from hypervisor.wire import Wire
from tests.doubles.hypercaller import CHILD_INPUT, Machine

SPARSE, ALL = SetFormat.SPARSE_4K, SetFormat.ALL
INDEXES = (0, 1, 5, 63)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def child_of(machine: Machine) -> Partition:
    child = machine.child()
    for index in INDEXES[1:]:
        machine.must(CallCode.CREATE_VP, CreateVpInput(child.id, index))
    return child


def call(
    machine: Machine, child: Partition, code: int, request: Wire, banks: list[int], *, count: int = 0, qwords: int = -1
) -> tuple[HvStatus, int]:
    """A call of the child's with a variable header, as long as there are banks or as `qwords` says."""
    data = request.encode() + struct.pack(f"<{len(banks)}Q", *banks) + bytes(8 * count)
    child.memory.write(CHILD_INPUT, data)
    word = control_word(code, count=count, header_qwords=len(banks) if qwords < 0 else qwords)
    value = machine.hypervisor.hypercall(child.vps[0], word, CHILD_INPUT, 0)
    return result_status(value), result_completed(value)


def ipi(machine: Machine, child: Partition, request: Wire, banks: list[int], qwords: int = -1) -> HvStatus:
    return call(machine, child, CallCode.SEND_SYNTHETIC_CLUSTER_IPI_EX, request, banks, qwords=qwords)[0]


def pending(child: Partition) -> dict[int, set[int]]:
    return {index: set(vp.pending) for index, vp in child.vps.items() if vp.pending}


# --- interrupts


def test_a_mask_of_processors(machine: Machine) -> None:
    """Each processor named gets the vector, the caller too; bits of others mean nobody."""
    child = child_of(machine)
    request = wire.SendIpiInput(0x41, processor_mask=1 | 1 << 5 | 1 << 6 | 1 << 63)
    assert machine.call(CallCode.SEND_SYNTHETIC_CLUSTER_IPI, request, caller=child).status is HvStatus.SUCCESS
    assert pending(child) == {0: {0x41}, 5: {0x41}, 63: {0x41}}
    assert child.counters["cluster_ipis"] == 1


def test_a_kernel_calls_it_with_registers(machine: Machine) -> None:
    """Vector in RDX, mask in R8; what lies behind the vector is the trust level."""
    child = child_of(machine)
    request = wire.SendIpiInput(0x41, processor_mask=2)
    answer = machine.call(CallCode.SEND_SYNTHETIC_CLUSTER_IPI, request, fast=True, caller=child)
    assert answer.status is HvStatus.SUCCESS
    assert pending(child) == {1: {0x41}}


@pytest.mark.parametrize(("vector", "vtl"), [(0, 0), (15, 0), (256, 0), (0xFFFFFFFF, 0), (0x41, 1)])
def test_vectors_that_cannot_be_sent(machine: Machine, vector: int, vtl: int) -> None:
    """0x10 to 0xFF, at the one trust level that there is; nobody is interrupted by anything else."""
    child = child_of(machine)
    request = wire.SendIpiInput(vector, vtl, processor_mask=3)
    answer = machine.call(CallCode.SEND_SYNTHETIC_CLUSTER_IPI, request, fast=True, caller=child)
    assert answer.status is HvStatus.INVALID_PARAMETER
    assert not pending(child)
    assert ipi(machine, child, wire.SendIpiExInput(vector, vtl, ALL), []) is HvStatus.INVALID_PARAMETER


@pytest.mark.parametrize(
    ("request_", "banks", "reached"),
    [
        (wire.SendIpiExInput(0x50, 0, SPARSE, 1), [1 << 5 | 1], {0, 5}),
        (wire.SendIpiExInput(0x50, 0, SPARSE, 0), [], set()),
        (wire.SendIpiExInput(0x50, 0, SPARSE, 0b101), [2, 1], {1}),
        (wire.SendIpiExInput(0x50, 0, SPARSE, 0b10), [1 << 5], set()),
        (wire.SendIpiExInput(0x50, 0, SPARSE, 1 << 63), [(1 << 64) - 1], set()),
        (wire.SendIpiExInput(0x50, 0, ALL, 0), [], set(INDEXES)),
        (wire.SendIpiExInput(0x50, 0, ALL, 1), [0], set(INDEXES)),
    ],
)
def test_a_set_of_processors(
    machine: Machine, request_: wire.SendIpiExInput, banks: list[int], reached: set[int]
) -> None:
    """Banks of 64 in the order of their bits in the bank mask; the format ALL needs none."""
    child = child_of(machine)
    assert ipi(machine, child, request_, banks) is HvStatus.SUCCESS
    assert set(pending(child)) == reached


@pytest.mark.parametrize(
    ("set_format", "valid", "banks", "qwords"),
    [(SPARSE, 1, [], -1), (SPARSE, 0, [1], -1), (SPARSE, 3, [1], -1), (ALL, 1, [], -1), (SPARSE, 1, [1], 2)],
)
def test_the_header_is_as_long_as_the_bank_mask_says(
    machine: Machine, set_format: SetFormat, valid: int, banks: list[int], qwords: int
) -> None:
    """A variable header of another length is bad hypercall input."""
    child = child_of(machine)
    request = wire.SendIpiExInput(0x50, 0, set_format, valid)
    assert ipi(machine, child, request, banks, qwords) is HvStatus.INVALID_HYPERCALL_INPUT
    assert not pending(child)


def test_an_unknown_format(machine: Machine) -> None:
    child = child_of(machine)
    assert ipi(machine, child, wire.SendIpiExInput(0x50, 0, 2, 1), [1]) is HvStatus.INVALID_PARAMETER


def test_header_and_list_fit_one_page(machine: Machine) -> None:
    """The header counts toward the page: 4,096 bytes pass, eight more do not."""
    child = child_of(machine)
    request = wire.FlushExInput(0, 0, SPARSE, 1)
    code = CallCode.FLUSH_VIRTUAL_ADDRESS_LIST_EX
    most = (4096 - wire.FlushExInput.SIZE - 8) // 8
    assert call(machine, child, code, request, [1], count=most) == (HvStatus.SUCCESS, most)
    word = control_word(code, count=most + 1, header_qwords=1)
    status = result_status(machine.hypervisor.hypercall(child.vps[0], word, CHILD_INPUT, 0))
    assert status is HvStatus.INVALID_ALIGNMENT


@given(st.sets(st.integers(0, 4095), max_size=8))
def test_any_set_reaches_whom_it_names(indexes: set[int]) -> None:
    """Whatever the banks, those processors that exist and are named are interrupted, and no others."""
    machine = Machine()
    child = child_of(machine)
    banks: dict[int, int] = {}
    for index in indexes:
        banks[index // 64] = banks.get(index // 64, 0) | 1 << index % 64
    valid = sum(1 << bank for bank in banks)
    request = wire.SendIpiExInput(0x50, 0, SPARSE, valid)
    assert ipi(machine, child, request, [banks[bank] for bank in sorted(banks)]) is HvStatus.SUCCESS
    assert set(pending(child)) == indexes & set(INDEXES)
    machine.hypervisor.close()


# --- flushes


@pytest.mark.parametrize(
    ("flags", "space", "status"),
    [
        (0, 0x1000, HvStatus.SUCCESS),
        (0xF, 0, HvStatus.SUCCESS),
        (0x10, 0, HvStatus.INVALID_PARAMETER),
        (1 << 63, 0, HvStatus.INVALID_PARAMETER),
        (0, 1 << 52, HvStatus.INVALID_PARAMETER),
        (2, 1 << 52, HvStatus.SUCCESS),
    ],
)
def test_flushes_are_checked_and_done(machine: Machine, flags: int, space: int, status: HvStatus) -> None:
    """Reserved flags and an address space that is none are refused, in all four forms; all spaces name none."""
    child = child_of(machine)
    plain, wide = wire.FlushInput(space, flags, 3), wire.FlushExInput(space, flags, SPARSE, 1)
    done = 2 if status is HvStatus.SUCCESS else 0
    assert call(machine, child, CallCode.FLUSH_VIRTUAL_ADDRESS_SPACE, plain, []) == (status, 0)
    assert call(machine, child, CallCode.FLUSH_VIRTUAL_ADDRESS_LIST, plain, [], count=2) == (status, done)
    assert call(machine, child, CallCode.FLUSH_VIRTUAL_ADDRESS_SPACE_EX, wide, [1]) == (status, 0)
    assert call(machine, child, CallCode.FLUSH_VIRTUAL_ADDRESS_LIST_EX, wide, [1], count=2) == (status, done)
    assert child.counters["flushes"] == (4 if status is HvStatus.SUCCESS else 0)


def test_a_flush_with_a_bad_set(machine: Machine) -> None:
    child = child_of(machine)
    request = wire.FlushExInput(0, 0, SPARSE, 3)
    for code, count in ((CallCode.FLUSH_VIRTUAL_ADDRESS_SPACE_EX, 0), (CallCode.FLUSH_VIRTUAL_ADDRESS_LIST_EX, 1)):
        status, completed = call(machine, child, code, request, [1], count=count)
        assert (status, completed) == (HvStatus.INVALID_HYPERCALL_INPUT, 0)


def test_what_real_processors_cache_is_out_of_reach(machine: Machine) -> None:
    """A kernel that hears FEATURE_UNAVAILABLE flushes by interrupts; SUCCESS without a flush would corrupt it."""
    child = child_of(machine)
    child.state_elsewhere = True
    request = wire.FlushInput(0, 1, 0)
    answer = call(machine, child, CallCode.FLUSH_VIRTUAL_ADDRESS_SPACE, request, [])
    assert answer == (HvStatus.FEATURE_UNAVAILABLE, 0)


def test_switching_the_address_space(machine: Machine) -> None:
    """MOV to CR3, with the register's reserved bits refused."""
    child = child_of(machine)
    code = CallCode.SWITCH_VIRTUAL_ADDRESS_SPACE
    answer = machine.call(code, wire.SwitchAddressSpaceInput(0x5000), fast=True, caller=child)
    assert answer.status is HvStatus.SUCCESS
    assert child.vps[0].get_register(ProcessorRegister.CR3) == 0x5000
    answer = machine.call(code, wire.SwitchAddressSpaceInput(1 << 52), fast=True, caller=child)
    assert answer.status is HvStatus.INVALID_PARAMETER
