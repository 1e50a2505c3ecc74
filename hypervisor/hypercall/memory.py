"""Hypercalls on memory pools and on GPA spaces. Hypervisor.

Lists of pages are worked on as runs: pages are adjacent nearly always, and one extent costs what one page does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hypervisor.blocks import MemoryBlock
from hypervisor.hypercall.call import Reps
from hypervisor.hypercall.layouts import (
    DepositMemoryInput,
    GetMemoryBalanceInput,
    MapGpaPagesInput,
    MapSparseGpaPagesInput,
    MemoryBalanceOutput,
    UnmapGpaPagesInput,
    WithdrawMemoryInput,
)
from hypervisor.hypercall.partitions import check_proximity
from hypervisor.pages import PAGE_SHIFT, Access
from hypervisor.partition import DepositedRun, Partition
from hypervisor.status import HvError, HvStatus

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vp import VirtualProcessor

GPA_SPACE_PAGES = 1 << (48 - PAGE_SHIFT)
"""Pages that a partition's GPA space can have at most."""

_LEGAL_RIGHTS = {
    Access.NONE,
    Access.READ,
    Access.READ_WRITE,
    Access.READ | Access.EXECUTE,
    Access.ALL,
}
_USER_EXECUTE = 0x8
_RIGHTS_MASK = 0xF


def page_runs(pages: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """A page list as (index of the first, page, count) of its longest ascending runs."""
    count = len(pages)
    if pages[-1] - pages[0] == count - 1 and tuple(range(pages[0], pages[0] + count)) == pages:
        yield 0, pages[0], count  # two comparisons in C say what 500 in Python would
        return
    start, following = 0, pages[0]
    for index, page in enumerate(pages):
        if page != following:
            yield start, pages[start], index - start
            start, following = index, page
        following += 1
    yield start, pages[start], count - start


def _pages(reps: Reps) -> tuple[int, ...]:
    return struct.unpack(f"<{reps.count}Q", reps.data)


# --- pools


def deposit_memory(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: DepositMemoryInput, reps: Reps
) -> None:
    """Pages of the caller's go into the target's pool and out of every GPA space."""
    giver = vp.partition
    done = 0
    for _, first, count in page_runs(_pages(reps)):
        taken = 0
        for gpn, block, block_page, pages, rights in giver.memory.sources(first, count):
            free = _unshared(hypervisor, giver, gpn, block, block_page, pages) if rights == Access.ALL else 0
            if free:
                giver.memory.unmap(gpn, free)
                target.pool.deposit(DepositedRun(gpn, free, block, block_page))
                taken += free
            if free < pages:
                break
        done += taken
        if taken < count:
            overlaid = giver.overlays.at(first + taken) is not None
            raise HvError(HvStatus.OBJECT_IN_USE if overlaid else HvStatus.OPERATION_DENIED, done)


def _unshared(
    hypervisor: Hypervisor, giver: Partition, gpn: int, block: MemoryBlock, block_page: int, count: int
) -> int:
    """How many pages at the front of a run are the giver's alone and under no overlay."""
    # The root's pages are each at one place only, and the blocks that it deposits from are nobody else's.
    single = giver is hypervisor.root and giver.memory.alone(block)
    for partition in () if single else hypervisor.partitions.values():
        for at, other_block, other_page, pages, _ in partition.memory.extents():
            if other_block is not block or (partition is giver and at <= gpn < at + pages):
                continue
            overlap = max(block_page, other_page)
            if overlap < min(block_page + count, other_page + pages):
                count = min(count, overlap - block_page)
    return next((index for index in range(count) if giver.overlays.at(gpn + index)), count)


def withdraw_memory(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: WithdrawMemoryInput, reps: Reps
) -> None:
    """Free pages of the pool come back where they were, zeroed."""
    check_proximity(request.proximity)
    done = 0
    while done < reps.count:
        run = target.pool.withdraw(reps.count - done)
        if run is None:
            raise HvError(HvStatus.NO_RESOURCES, done)
        run.block.zero(run.block_page, run.count)
        vp.partition.memory.map_block(run.gpn, run.block, run.block_page, run.count, Access.ALL)
        reps.output += struct.pack(f"<{run.count}Q", *range(run.gpn, run.gpn + run.count))
        done += run.count


def get_memory_balance(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: GetMemoryBalanceInput
) -> bytes:
    """How the pool stands."""
    check_proximity(request.proximity)
    return MemoryBalanceOutput(target.pool.available, target.pool.in_use).encode()


# --- GPA spaces


def _rights(untrusted_flags: int) -> Access:
    """Rights from map flags; both execute bits of the current TLFS count as one. Raises INVALID_PARAMETER."""
    bits = untrusted_flags & _RIGHTS_MASK
    if bits & _USER_EXECUTE and not bits & Access.EXECUTE:
        raise HvError(HvStatus.INVALID_PARAMETER)
    rights = Access(bits & ~_USER_EXECUTE)
    if untrusted_flags & ~_RIGHTS_MASK or rights not in _LEGAL_RIGHTS:
        raise HvError(HvStatus.INVALID_PARAMETER)
    return rights


def _map_run(caller: Partition, target: Partition, gpn: int, source: int, count: int, rights: Access) -> None:
    """Map a run of the caller's pages into the target. HvError.completed counts pages of this run."""
    if gpn + count > GPA_SPACE_PAGES:
        _refuse(HvStatus.INVALID_PARAMETER, caller, target, gpn, source, max(0, GPA_SPACE_PAGES - gpn), rights)
    if target is caller and source != gpn:
        raise HvError(HvStatus.INVALID_PARAMETER)  # the root is mapped one to one; only rights change
    found = caller.memory.sources(source, count)
    mapped = sum(segment[3] for segment in found)
    paid = mapped if target is caller else target.charge_mapping(gpn, mapped)
    done = 0
    for _, block, block_page, pages, _ in found:
        pages = min(pages, paid - done)
        target.memory.map_block(gpn + done, block, block_page, pages, rights)
        done += pages
    if paid < mapped:
        raise HvError(HvStatus.INSUFFICIENT_MEMORY, done)
    if mapped < count:
        raise HvError(HvStatus.OPERATION_DENIED, done)


def _refuse(
    status: HvStatus, caller: Partition, target: Partition, gpn: int, source: int, count: int, rights: Access
) -> None:
    """Do the `count` pages before the bad one, then fail."""
    if count:
        _map_run(caller, target, gpn, source, count, rights)
    raise HvError(status, count)


def map_gpa_pages(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: MapGpaPagesInput, reps: Reps
) -> None:
    """Pages of the caller's appear in the target from `gpa_base` on, in the order of the list."""
    rights = _rights(request.flags)
    base = request.gpa_base + reps.start
    for index, source, count in page_runs(_pages(reps)):
        try:
            _map_run(vp.partition, target, base + index, source, count, rights)
        except HvError as error:
            raise HvError(error.status, index + error.completed) from None


def map_sparse_gpa_pages(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: MapSparseGpaPagesInput, reps: Reps
) -> None:
    """As HvMapGpaPages, each element naming its target page as well."""
    rights = _rights(request.flags)
    for index, (gpn, source) in enumerate(struct.iter_unpack("<QQ", reps.data)):
        try:
            _map_run(vp.partition, target, gpn, source, 1, rights)
        except HvError as error:
            raise HvError(error.status, index) from None


def unmap_gpa_pages(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: UnmapGpaPagesInput, reps: Reps
) -> None:
    """Take pages out of the target; one that is not there is no error."""
    gpn = request.gpa_base + reps.start
    count = min(reps.count, max(0, GPA_SPACE_PAGES - gpn))
    target.memory.unmap(gpn, count)
    if count < reps.count:
        raise HvError(HvStatus.INVALID_PARAMETER, count)
