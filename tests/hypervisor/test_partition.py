"""Records of partitions: states, properties, and the accounts of memory pools."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.blocks import MemoryBlock
from hypervisor.pages import PAGE_SIZE
from hypervisor.partition import (
    TRANSITIONS,
    DepositedRun,
    MemoryPool,
    PageCost,
    PartitionOperation,
    PartitionState,
    pool_pages,
)
from hypervisor.privileges import CHILD_PRIVILEGES, ROOT_PRIVILEGES, Privilege, privilege_names
from hypervisor.properties import PROPERTY_RULES, Property
from hypervisor.status import HvError, HvStatus
from tests.doubles.hypercaller import Machine


@pytest.fixture
def machine() -> Machine:
    return Machine()


# --- states


@pytest.mark.parametrize("move", list(itertools.product(PartitionState, PartitionOperation)), ids=str)
def test_every_move_is_in_the_table_or_refused(
    machine: Machine, move: tuple[PartitionState, PartitionOperation]
) -> None:
    """A refused move leaves the state as it was."""
    state, operation = move
    partition = machine.create()
    partition.state = state
    if move in TRANSITIONS:
        partition.advance(operation)
        assert partition.state is TRANSITIONS[move]
    else:
        with pytest.raises(HvError, match="INVALID_PARTITION_STATE"):
            partition.advance(operation)
        assert partition.state is state


def test_finalizing_is_irreversible() -> None:
    """From Finalizing on, no chain of moves leads back to Active."""
    reachable = {PartitionState.FINALIZING}
    for _ in PartitionState:
        reachable |= {after for (before, _), after in TRANSITIONS.items() if before in reachable}
    assert reachable == {PartitionState.FINALIZING, PartitionState.FINALIZED, PartitionState.DELETED}


# --- privileges


def test_numbers_of_privileges() -> None:
    """A child by default can neither post nor signal; the root can do everything that has a name."""
    assert CHILD_PRIVILEGES == 0x5FF
    assert Privilege.POST_MESSAGES == 1 << 36
    assert Privilege.SIGNAL_EVENTS == 1 << 37
    assert all(ROOT_PRIVILEGES & bit for bit in Privilege if bit)
    assert privilege_names(Privilege.POST_MESSAGES | Privilege.ACCESS_VP_INDEX) == "ACCESS_VP_INDEX, POST_MESSAGES"


@pytest.mark.parametrize("mask", [1 << 12, 1 << 63, int(Privilege.CPU_MANAGEMENT)])
def test_reserved_and_root_only_privileges_cannot_be_granted(machine: Machine, mask: int) -> None:
    child = machine.create()
    with pytest.raises(HvError, match="PROPERTY_VALUE_OUT_OF_RANGE"):
        child.set_property(Property.PRIVILEGE_FLAGS, mask)
    assert child.privileges == CHILD_PRIVILEGES


def test_the_roots_privileges_are_fixed(machine: Machine) -> None:
    with pytest.raises(HvError, match="PROPERTY_VALUE_OUT_OF_RANGE"):
        machine.root.set_property(Property.PRIVILEGE_FLAGS, CHILD_PRIVILEGES)


def test_nobody_gives_away_what_it_has_not_got() -> None:
    machine = Machine(max_depth=3)
    child = machine.child(Privilege.CREATE_PARTITIONS)
    machine.deposit(child)
    grandchild = machine.hypervisor.create_partition(child)
    with pytest.raises(HvError, match="PROPERTY_VALUE_OUT_OF_RANGE"):
        grandchild.set_property(Property.PRIVILEGE_FLAGS, int(Privilege.POST_MESSAGES))
    grandchild.set_property(Property.PRIVILEGE_FLAGS, int(Privilege.CREATE_PARTITIONS))


# --- properties


@pytest.mark.parametrize(
    ("code", "value"),
    [
        (Property.CPU_RESERVE, 0),
        (Property.CPU_CAP, 0x10000),
        (Property.CPU_WEIGHT, 100),
        (Property.EMULATED_TIMER_PERIOD, 0),
        (Property.PM_TIMER_ASSIST, 0),
        (Property.DEBUG_CHANNEL_ID, 0),
        (Property.PRIVILEGE_FLAGS, CHILD_PRIVILEGES),
        (Property.GUEST_OS_ID, 0),
    ],
)
def test_defaults(machine: Machine, code: Property, value: int) -> None:
    """TLFS 2.0a, 5.2.4."""
    assert machine.create().get_property(code) == value


def test_every_property_can_be_read(machine: Machine) -> None:
    for code in Property:
        assert machine.root.get_property(code) >= 0
        assert code in PROPERTY_RULES


@pytest.mark.parametrize("code", [0, 0x10002, 0x20005, 0xFFFFFFFF])
def test_unknown_properties(machine: Machine, code: int) -> None:
    with pytest.raises(HvError, match="UNKNOWN_PROPERTY"):
        machine.root.get_property(code)
    with pytest.raises(HvError, match="UNKNOWN_PROPERTY"):
        machine.create().set_property(code, 0)


@pytest.mark.parametrize(
    ("code", "value", "status"),
    [
        (Property.CPU_WEIGHT, 0, HvStatus.PROPERTY_VALUE_OUT_OF_RANGE),
        (Property.CPU_WEIGHT, 1, None),
        (Property.CPU_WEIGHT, 10_000, None),
        (Property.CPU_WEIGHT, 10_001, HvStatus.PROPERTY_VALUE_OUT_OF_RANGE),
        (Property.CPU_CAP, 0x10001, HvStatus.PROPERTY_VALUE_OUT_OF_RANGE),
        (Property.CPU_RESERVE, 0x10000, None),
        (Property.CPU_RESERVE, 0x10001, HvStatus.PROPERTY_VALUE_OUT_OF_RANGE),
        (Property.PM_TIMER_ASSIST, 0x3FFFF, None),
        (Property.PM_TIMER_ASSIST, 0x40000, HvStatus.PROPERTY_VALUE_OUT_OF_RANGE),
        (Property.PROCESSOR_VENDOR, 0, HvStatus.INVALID_PARAMETER),
        (Property.GUEST_OS_ID, 0, HvStatus.INVALID_PARAMETER),
    ],
)
def test_ranges(machine: Machine, code: Property, value: int, status: HvStatus | None) -> None:
    """Both ends of each range, and one past them; a refused value changes nothing."""
    child = machine.create()
    before = child.get_property(code)
    if status is None:
        child.set_property(code, value)
        assert child.get_property(code) == value
    else:
        with pytest.raises(HvError) as refused:
            child.set_property(code, value)
        assert refused.value.status is status
        assert child.get_property(code) == before


def test_reserve_stays_below_cap(machine: Machine) -> None:
    child = machine.create()
    child.set_property(Property.CPU_RESERVE, 0x4000)
    child.set_property(Property.CPU_CAP, 0x4000)
    for code, value in ((Property.CPU_CAP, 0x3FFF), (Property.CPU_RESERVE, 0x4001)):
        with pytest.raises(HvError, match="PROPERTY_VALUE_OUT_OF_RANGE"):
            child.set_property(code, value)


def test_reserves_of_all_are_at_most_the_machine(machine: Machine) -> None:
    """One logical processor: two partitions of one VP each may reserve halves, not more."""
    one, two = machine.child(), machine.child()
    one.set_property(Property.CPU_RESERVE, 0x8000)
    two.set_property(Property.CPU_RESERVE, 0x8000)
    with pytest.raises(HvError, match="PROPERTY_VALUE_OUT_OF_RANGE"):
        two.set_property(Property.CPU_RESERVE, 0x8001)
    with pytest.raises(HvError, match="OPERATION_DENIED"):
        machine.hypervisor.create_vp(one, 1)


@pytest.mark.parametrize(("value", "kept"), [(0, 16), (16, 16), (100, 100), (4096, 4096), (1 << 40, 4096)])
def test_virtual_tlb_pages_are_clamped_and_not_refused(machine: Machine, value: int, kept: int) -> None:
    child = machine.create()
    child.set_property(Property.VIRTUAL_TLB_PAGE_COUNT, value)
    assert child.get_property(Property.VIRTUAL_TLB_PAGE_COUNT) == kept


def test_debug_channels_are_unique(machine: Machine) -> None:
    """0 is no channel; setting the same value again is no conflict with oneself."""
    one, two = machine.create(), machine.create()
    one.set_property(Property.DEBUG_CHANNEL_ID, 7)
    one.set_property(Property.DEBUG_CHANNEL_ID, 7)
    with pytest.raises(HvError, match="OBJECT_IN_USE"):
        two.set_property(Property.DEBUG_CHANNEL_ID, 7)
    one.set_property(Property.DEBUG_CHANNEL_ID, 0)
    two.set_property(Property.DEBUG_CHANNEL_ID, 0)
    two.set_property(Property.DEBUG_CHANNEL_ID, 7)


# --- pools


def test_a_charge_that_cannot_be_paid_changes_nothing(machine: Machine) -> None:
    child = machine.create()
    machine.deposit(child, 10)
    child.charge(10)
    with pytest.raises(HvError, match="INSUFFICIENT_MEMORY"):
        child.charge(1)
    assert (child.pool.available, child.pool.in_use) == (0, 10)
    child.discharge(4)
    assert (child.pool.available, child.pool.in_use) == (4, 6)


def test_page_tables_are_paid_once_for_each_region(machine: Machine) -> None:
    """And a pool that runs dry says how far it got."""
    child = machine.create()
    machine.deposit(child, 3)
    assert child.charge_mapping(0, 512) == 512
    assert child.pool.in_use == 1
    assert child.charge_mapping(100, 413) == 413
    assert child.pool.in_use == 2
    assert child.charge_mapping(1000, 512 * 3) == 512 * 3 - 1000
    assert child.pool.in_use == 3
    assert child.mapped_regions == {0, 1, 2}


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.lists(st.integers(1, 60), max_size=12))
def test_withdrawn_pages_are_those_that_were_deposited(runs: list[int], wishes: list[int]) -> None:
    """No page comes twice, none is made up, and the account agrees."""
    block = MemoryBlock.allocate(PAGE_SIZE, "stand-in")
    pool = MemoryPool()
    inside = set()
    for index, count in enumerate(runs):
        pool.deposit(DepositedRun(index * 100, count, block, index * 1000))
        inside |= set(range(index * 100, index * 100 + count))
    for wish in wishes:
        run = pool.withdraw(wish)
        if run is None:
            assert not inside
            break
        assert run.count <= wish
        assert run.block_page - run.gpn // 100 * 1000 == run.gpn % 100
        came = set(range(run.gpn, run.gpn + run.count))
        assert came <= inside
        inside -= came
    assert pool.deposited == len(inside)
    block.close()


def test_pages_in_use_stay(machine: Machine) -> None:
    child = machine.create()
    machine.deposit(child, 10)
    child.charge(7)
    assert child.pool.withdrawable == 3
    run = child.pool.withdraw(100)
    assert run is not None
    assert run.count == 3
    assert child.pool.withdraw(1) is None


def test_the_estimate_is_enough(machine: Machine) -> None:
    """A pool filled by `pool_pages` pays for everything that was announced."""
    needed = pool_pages(memory_pages=1024, vps=2, ports=3, connections=4)
    child = machine.create()
    machine.deposit(child, needed)
    child.charge(PageCost.INITIALIZE + 2 * PageCost.VP + 3 * PageCost.MESSAGE_PORT + 4 * PageCost.CONNECTION)
    assert child.charge_mapping(0, 1024) == 1024
