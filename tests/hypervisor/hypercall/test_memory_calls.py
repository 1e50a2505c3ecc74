"""Hypercalls on memory pools and GPA spaces."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.hypercall import layouts
from hypervisor.hypercall.abi import CallCode, control_word, result_completed, result_status
from hypervisor.hypercall.memory import GPA_SPACE_PAGES, page_runs
from hypervisor.pages import PAGE_SIZE, Access
from hypervisor.partition import Partition
from hypervisor.privileges import Privilege
from hypervisor.status import HvError, HvStatus
from tests.doubles.hypercaller import POOL_PAGES, Answer, Machine, pages

Outcome = tuple[HvStatus, int]


@pytest.fixture
def machine() -> Machine:
    return Machine()


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def outcome(answer: Answer) -> Outcome:
    return answer.status, answer.completed


def deposit(machine: Machine, target: int, *gpns: int) -> Outcome:
    request = layouts.DepositMemoryInput(target)
    return outcome(machine.call(CallCode.DEPOSIT_MEMORY, request, count=len(gpns), elements=words(*gpns)))


def withdraw(machine: Machine, target: int, count: int) -> tuple[HvStatus, list[int]]:
    answer = machine.call(CallCode.WITHDRAW_MEMORY, layouts.WithdrawMemoryInput(target), count=count)
    return answer.status, list(struct.unpack_from(f"<{answer.completed}Q", answer.output))


def map_pages(machine: Machine, target: Partition, gpn: int, sources: bytes, flags: int = 7) -> Outcome:
    request = layouts.MapGpaPagesInput(target.id, gpn, flags)
    return outcome(machine.call(CallCode.MAP_GPA_PAGES, request, count=len(sources) // 8, elements=sources))


def spare(machine: Machine, count: int = 16) -> int:
    return machine.hypervisor.add_root_block(count * PAGE_SIZE, "spare")[0]


# --- runs


@given(st.lists(st.integers(0, 20) | st.integers(0, (1 << 64) - 1), min_size=1, max_size=40))
def test_runs_are_the_list(found: list[int]) -> None:
    """Joined again they give the list, and no two neighbours could be one."""
    runs = list(page_runs(tuple(found)))
    assert [page + index for _, page, count in runs for index in range(count)] == found
    assert [index for index, _, _ in runs] == [sum(run[2] for run in runs[:n]) for n in range(len(runs))]
    assert all(before[1] + before[2] != after[1] for before, after in itertools.pairwise(runs))


def test_ends_that_match_do_not_make_a_run() -> None:
    assert list(page_runs((1, 7, 3))) == [(0, 1, 1), (1, 7, 1), (2, 3, 1)]


# --- deposits


def test_deposited_pages_leave_the_givers_memory(machine: Machine) -> None:
    """Inaccessible until withdrawn, and the pool has them."""
    child = machine.create()
    first = spare(machine)
    assert deposit(machine, child.id, first + 1, first + 2, first + 5) == (HvStatus.SUCCESS, 3)
    assert child.pool.available == 3
    assert [machine.root.memory.source(first + n) is None for n in range(6)] == [False, True, True, False, False, True]


@pytest.mark.parametrize("vectored", [True, False])
def test_a_page_twice_in_one_list(machine: Machine, vectored: bool) -> None:
    """Refused at its second place; the elements before it are done."""
    child = machine.create()
    first = spare(machine)
    gpns = (first, first + 1, first + 2, first + 1, first + 3) if vectored else (first + 4, first, first + 4)
    expected = 3 if vectored else 2
    assert deposit(machine, child.id, *gpns) == (HvStatus.OPERATION_DENIED, expected)
    assert child.pool.deposited == expected


def test_what_cannot_be_deposited(machine: Machine) -> None:
    """Unmapped pages, pages without all rights, pages that another partition can reach."""
    child = machine.create()
    user = machine.active()
    first = spare(machine)
    machine.map(user, 0, first + 2, 1, Access.READ)
    assert map_pages(machine, machine.root, first + 4, words(first + 4), Access.READ_WRITE)[0] is HvStatus.SUCCESS
    for gpn in (first + 999, first + 2, first + 4, 1 << 40, (1 << 64) - 1):
        assert deposit(machine, child.id, gpn) == (HvStatus.OPERATION_DENIED, 0)
    assert deposit(machine, child.id, first + 1, first + 2, first + 3) == (HvStatus.OPERATION_DENIED, 1)
    assert deposit(machine, child.id, first + 3, first + 4) == (HvStatus.OPERATION_DENIED, 1)
    machine.must(CallCode.UNMAP_GPA_PAGES, layouts.UnmapGpaPagesInput(user.id, 0), count=1)
    assert deposit(machine, child.id, first + 2) == (HvStatus.SUCCESS, 1)


def test_a_page_under_an_overlay_is_in_use(machine: Machine) -> None:
    """The hypercall page of the root lies on its first scratch page."""
    child = machine.create()
    assert deposit(machine, child.id, machine.low) == (HvStatus.OBJECT_IN_USE, 0)


def test_deposit_needs_the_privilege_and_the_relationship(machine: Machine) -> None:
    child = machine.child(Privilege.ACCESS_MEMORY_POOL)
    request = layouts.DepositMemoryInput(child.id)
    answer = machine.call(CallCode.DEPOSIT_MEMORY, request, count=1, elements=words(5), caller=child)
    assert answer.status is HvStatus.ACCESS_DENIED


def test_the_root_has_a_pool_of_its_own(machine: Machine) -> None:
    first = spare(machine)
    before = machine.root.pool.available
    assert deposit(machine, 1, first, first + 1) == (HvStatus.SUCCESS, 2)
    assert machine.root.pool.available == before + 2
    assert withdraw(machine, 1, 3) == (HvStatus.NO_RESOURCES, [first, first + 1])


# --- withdrawal


def test_pages_come_back_where_they_were_and_zeroed(machine: Machine) -> None:
    child = machine.create()
    first = spare(machine)
    machine.root.memory.write(first * PAGE_SIZE, b"secret" * 1000)
    deposit(machine, child.id, first, first + 1)
    status, came = withdraw(machine, child.id, 2)
    assert (status, sorted(came)) == (HvStatus.SUCCESS, [first, first + 1])
    assert machine.root.memory.read(first * PAGE_SIZE, 2 * PAGE_SIZE) == bytes(2 * PAGE_SIZE)
    assert child.pool.deposited == 0


def test_withdrawing_more_than_is_free(machine: Machine) -> None:
    """What is free comes, then NO_RESOURCES with the number that came."""
    child = machine.active()
    free = child.pool.available
    status, came = withdraw(machine, child.id, POOL_PAGES)
    assert status is HvStatus.NO_RESOURCES
    assert len(set(came)) == free
    assert withdraw(machine, child.id, 1) == (HvStatus.NO_RESOURCES, [])


def test_balance(machine: Machine) -> None:
    child = machine.active()
    output = machine.must(CallCode.GET_MEMORY_BALANCE, layouts.GetMemoryBalanceInput(child.id))
    balance = layouts.MemoryBalanceOutput.decode(output)
    assert balance.available + balance.in_use == POOL_PAGES
    assert balance.in_use == child.pool.in_use > 0


@pytest.mark.parametrize("code", [CallCode.GET_MEMORY_BALANCE, CallCode.WITHDRAW_MEMORY])
def test_there_is_one_memory_node(machine: Machine, code: CallCode) -> None:
    child = machine.active()
    request = layouts.GetMemoryBalanceInput(child.id, layouts.PROXIMITY_VALID << 32 | 1)
    count = 1 if code is CallCode.WITHDRAW_MEMORY else 0
    assert machine.call(code, request, count=count).status is HvStatus.INVALID_PARAMETER


# --- mapping


def test_mapped_pages_are_the_roots_pages(machine: Machine) -> None:
    """In the order of the list, from the base on, contiguous or not."""
    child = machine.active()
    first = spare(machine)
    for n in range(6):
        machine.root.memory.write((first + n) * PAGE_SIZE, b"%d" % n)
    assert map_pages(machine, child, 10, words(first + 3, first + 4, first, first + 4)) == (HvStatus.SUCCESS, 4)
    assert [child.memory.read((10 + n) * PAGE_SIZE, 1) for n in range(4)] == [b"3", b"4", b"0", b"4"]
    child.memory.write(12 * PAGE_SIZE, b"!")
    assert machine.root.memory.read(first * PAGE_SIZE, 1) == b"!"


def test_adjacent_pages_become_one_extent(machine: Machine) -> None:
    child = machine.active()
    first = spare(machine, 1024)
    for start in (0, 509):
        assert map_pages(machine, child, start, pages(first + start, 509)) == (HvStatus.SUCCESS, 509)
    assert [(gpn, count) for gpn, _, _, count, _ in child.memory.extents()] == [(0, 1018)]


def test_a_start_index_counts_from_the_base(machine: Machine) -> None:
    """Element 2 of the list goes two pages past the base, whatever trip it is done in."""
    child = machine.active()
    first = spare(machine)
    machine.root.memory.write(machine.input, layouts.MapGpaPagesInput(child.id, 10, 7).encode() + pages(first, 4))
    word = control_word(CallCode.MAP_GPA_PAGES, count=4, start=2)
    value = machine.hypervisor.hypercall(machine.vp, word, machine.input)
    assert (result_status(value), result_completed(value)) == (HvStatus.SUCCESS, 4)
    assert [(gpn, count) for gpn, _, _, count, _ in child.memory.extents()] == [(12, 2)]


def test_a_run_over_two_blocks_of_the_root(machine: Machine) -> None:
    """Adjacent in the root's space, not in the host's memory."""
    child = machine.active()
    one, two = spare(machine, 4), spare(machine, 4)
    assert two == one + 4
    assert map_pages(machine, child, 0, pages(one, 8)) == (HvStatus.SUCCESS, 8)
    assert [count for _, _, _, count, _ in child.memory.extents()] == [4, 4]


def test_mapping_supersedes(machine: Machine) -> None:
    child = machine.active()
    first = spare(machine)
    map_pages(machine, child, 0, pages(first, 4))
    map_pages(machine, child, 1, pages(first + 8, 1), Access.READ)
    source = child.memory.source(1)
    assert source is not None
    assert (source[1], source[2]) == (8, Access.READ)


@pytest.mark.parametrize("flags", range(16))
def test_rights(machine: Machine, flags: int) -> None:
    """Nothing without read but nothing at all; both execute bits count as one, the second alone is none."""
    child = machine.active()
    legal = {0: 0, 1: 1, 3: 3, 5: 5, 7: 7, 0xD: 5, 0xF: 7}
    result = map_pages(machine, child, 0, pages(spare(machine), 1), flags)
    if flags in legal:
        assert result == (HvStatus.SUCCESS, 1)
        source = child.memory.source(0)
        assert source is not None
        assert source[2] == legal[flags]
    else:
        assert result == (HvStatus.INVALID_PARAMETER, 0)


@pytest.mark.parametrize("flags", [0x10, 0x8007, 0x10007, 0x80000007])
def test_unknown_map_flags(machine: Machine, flags: int) -> None:
    child = machine.active()
    assert map_pages(machine, child, 0, pages(spare(machine), 1), flags) == (HvStatus.INVALID_PARAMETER, 0)


def test_sources_are_mapped_and_not_deposited(machine: Machine) -> None:
    """Element by element: those before the bad one are mapped."""
    child = machine.active()
    first = spare(machine)
    deposit(machine, child.id, first + 3)
    assert map_pages(machine, child, 0, pages(first, 6)) == (HvStatus.OPERATION_DENIED, 3)
    assert [child.memory.source(n) is not None for n in range(5)] == [True, True, True, False, False]
    for gpn in (first + 100, 1 << 50, (1 << 64) - 1):
        assert map_pages(machine, child, 8, words(first, gpn)) == (HvStatus.OPERATION_DENIED, 1)


def test_source_rights_are_not_needed(machine: Machine) -> None:
    """The source must be mapped in the caller, with whatever rights (TLFS 2.0a, 8.4)."""
    child = machine.active()
    first = spare(machine)
    assert map_pages(machine, machine.root, first, pages(first, 1), Access.NONE)[0] is HvStatus.SUCCESS
    assert map_pages(machine, child, 0, pages(first, 1)) == (HvStatus.SUCCESS, 1)


def test_the_gpa_space_has_an_end(machine: Machine) -> None:
    child = machine.active()
    first = spare(machine)
    assert map_pages(machine, child, GPA_SPACE_PAGES - 2, pages(first, 4)) == (HvStatus.INVALID_PARAMETER, 2)
    assert map_pages(machine, child, GPA_SPACE_PAGES, pages(first, 1)) == (HvStatus.INVALID_PARAMETER, 0)
    assert map_pages(machine, child, (1 << 64) - 1, pages(first, 2)) == (HvStatus.INVALID_PARAMETER, 0)


def test_page_tables_run_out(machine: Machine) -> None:
    """The pages of regions that could be paid for are mapped."""
    child = machine.active()
    child.charge(child.pool.available - 1)
    first = spare(machine, 1024)
    assert map_pages(machine, child, 500, pages(first, 100)) == (HvStatus.INSUFFICIENT_MEMORY, 12)
    assert child.memory.end == 512 * PAGE_SIZE


def test_the_root_changes_rights_on_itself_and_nothing_else(machine: Machine) -> None:
    first = spare(machine)
    assert map_pages(machine, machine.root, first, pages(first + 1, 1)) == (HvStatus.INVALID_PARAMETER, 0)
    assert map_pages(machine, machine.root, first, pages(first, 2), Access.READ) == (HvStatus.SUCCESS, 2)
    source = machine.root.memory.source(first + 1)
    assert source is not None
    assert source[2] == Access.READ
    unmap = machine.call(CallCode.UNMAP_GPA_PAGES, layouts.UnmapGpaPagesInput(1, first), count=1)
    assert unmap.status is HvStatus.ACCESS_DENIED


def test_a_child_maps_nothing(machine: Machine) -> None:
    child = machine.child()
    request = layouts.MapGpaPagesInput(child.id, 0, 7)
    answer = machine.call(CallCode.MAP_GPA_PAGES, request, count=1, elements=words(0), caller=child)
    assert answer.status is HvStatus.ACCESS_DENIED


def test_sparse_mapping(machine: Machine) -> None:
    """Each element names its target; a bad one stops behind those before it."""
    child = machine.active()
    first = spare(machine)
    elements = words(7, first, 3, first + 1, 9, first + 999)
    request = layouts.MapSparseGpaPagesInput(child.id, 7)
    answer = machine.call(CallCode.MAP_SPARSE_GPA_PAGES, request, count=3, elements=elements)
    assert outcome(answer) == (HvStatus.OPERATION_DENIED, 2)
    assert [gpn for gpn, *_ in child.memory.extents()] == [3, 7]


# --- unmapping


def test_unmapping_what_is_not_mapped_succeeds(machine: Machine) -> None:
    """There is no list: the rep count is the number of pages, up to 4095 in several trips."""
    child = machine.active()
    first = spare(machine)
    map_pages(machine, child, 2, pages(first, 4))
    map_pages(machine, child, 4000, pages(first, 4))
    map_pages(machine, child, 4098, pages(first, 2))
    answer = machine.call(CallCode.UNMAP_GPA_PAGES, layouts.UnmapGpaPagesInput(child.id, 3), count=4095)
    assert outcome(answer) == (HvStatus.SUCCESS, 4095)
    assert [(gpn, count) for gpn, _, _, count, _ in child.memory.extents()] == [(2, 1), (4098, 2)]


def test_unmapping_past_the_end(machine: Machine) -> None:
    child = machine.active()
    request = layouts.UnmapGpaPagesInput(child.id, GPA_SPACE_PAGES - 1)
    assert outcome(machine.call(CallCode.UNMAP_GPA_PAGES, request, count=2)) == (HvStatus.INVALID_PARAMETER, 1)


# --- host memory


def test_blocks_of_the_host_are_given_back_when_nobody_holds_them(machine: Machine) -> None:
    """Neither mapped in a child nor in a pool."""
    hypervisor = machine.hypervisor
    child = machine.active()
    first = spare(machine)
    before = hypervisor.root_bytes
    map_pages(machine, child, 0, pages(first, 1))
    with pytest.raises(HvError, match="OBJECT_IN_USE"):
        hypervisor.remove_root_block(first)
    machine.must(CallCode.UNMAP_GPA_PAGES, layouts.UnmapGpaPagesInput(child.id, 0), count=1)
    deposit(machine, child.id, first)
    with pytest.raises(HvError, match="OBJECT_IN_USE"):
        hypervisor.remove_root_block(first)
    withdraw(machine, child.id, 1)
    hypervisor.remove_root_block(first)
    assert hypervisor.root_bytes == before - 16 * PAGE_SIZE
    assert machine.root.memory.source(first) is None
    assert spare(machine, 4) == first


def test_the_host_has_so_much_memory() -> None:
    machine = Machine(memory_bytes=16 * PAGE_SIZE)
    with pytest.raises(HvError, match="INSUFFICIENT_MEMORY"):
        machine.hypervisor.add_root_block(9 * PAGE_SIZE, "too much")
    machine.hypervisor.add_root_block(8 * PAGE_SIZE, "just enough")
