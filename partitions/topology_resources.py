"""The rules of resource control that need several keys: pools as a tree, and what is reserved in it. Root side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from partitions.topology_controls import CpuClass, IopsTable, PoolTable, memory_range
from partitions.topology_figures import WORDS, Kind
from partitions.topology_schema import TopologyFile, VmTable
from partitions.topology_source import KeyPath, nearest
from partitions.topology_units import parse_processors, processors_words, size_words

if TYPE_CHECKING:
    from partitions.topology_check import Check

MOST_LEVELS: Final = 32
"""Of pools inside pools."""
_PLACES: Final = ("name", "parent", "pool", "processors", "lun", "number")
"""Keys by which nodes have their places in trees."""
BALLOON_UNIT: Final = 2 << 20
"""Bytes in which a host asks for memory."""
MOST_DYNAMIC: Final = 1 << 40 + 12
"""Bytes of pages whose numbers the protocol of dynamic memory can carry."""


def check_resources(check: Check, file: TopologyFile, *, sums: bool = True) -> None:
    """All controls of a topology. Without `sums` those rules are left out that a running host decides by who is on."""
    pools = _pool_tree(check, file)
    for index, pool in enumerate(file.pool):
        _pool(check, pool, ("pool", index))
    for index, vm in enumerate(file.vm):
        _vm(check, vm, ("vm", index), pools)
    _processor_sets(check, file)
    if sums and not any(_of_the_tree(keys) for keys in check.found):
        from partitions.topology_sums import check_sums

        check_sums(check, file)


def _of_the_tree(keys: KeyPath) -> bool:
    """Whether it is wrong who is in whom, so that sums cannot be made; figures are another matter."""
    return keys[0] in ("pool", "vm") and (len(keys) < 3 or keys[-1] in _PLACES)


def new_problems(before: TopologyFile | None, after: TopologyFile, folder: Path) -> Iterator[tuple[KeyPath, str]]:
    """What a change of tables breaks that was not broken before."""
    from partitions.topology_check import Check

    known = Check({}, folder, programs=False)
    if before is not None:
        check_resources(known, before, sums=False)
    check = Check({}, folder, programs=False)
    check.names("pool", [pool.name for pool in after.pool])
    check_resources(check, after, sums=False)
    for keys, reason in check.found.items():
        if known.found.get(keys) != reason:
            yield keys, reason


def percent(value: float | Fraction) -> str:
    """A share of logical processors for people."""
    return f"{float(value):.10g} %"


def _pool_tree(check: Check, file: TopologyFile) -> dict[str, int]:
    """The place of each pool by name; parents are there, and nobody is in itself."""
    places: dict[str, int] = {}
    for index, pool in enumerate(file.pool):
        places.setdefault(pool.name, index)
    for index, pool in enumerate(file.pool):
        keys: KeyPath = ("pool", index, "parent")
        if not pool.parent:
            continue
        if pool.parent not in places:
            check.problem(keys, unknown_pool(pool.parent, places, "leave it out for the host"))
            continue
        way, up = [pool.name], pool.parent
        while up and up not in way and up in places and len(way) <= MOST_LEVELS:
            way.append(up)
            up = file.pool[places[up]].parent
        if len(way) > MOST_LEVELS:
            check.problem(keys, f"is pool in pool for more than {MOST_LEVELS} levels: give it one nearer to the host")
            break  # those below it are so too
        if up == pool.name:
            circle = " in ".join([*way, up])
            check.problem(keys, f"pools must not contain themselves: {circle}; give one of them another parent")
    return places


def unknown_pool(name: str, known: dict[str, int], remedy: str) -> str:
    """Why that is no pool."""
    near = nearest(name, known)
    if near:
        return f'no [[pool]] is called "{name}"; did you mean "{near}"?'
    there = f"there are {', '.join(known)}" if known else "there is none"
    return f'no [[pool]] is called "{name}"; {there}: add it, or {remedy}'


def _pool(check: Check, pool: PoolTable, keys: KeyPath) -> None:
    """Nothing is reserved above a limit."""
    for name, words in TABLE_WORDS.items():
        table = getattr(pool, name)
        if table is not None:
            _reserve_and_limit(check, table.reserve, table.limit, words, (*keys, name))


TABLE_WORDS: Final[dict[Kind, Callable[[Any], str]]] = {**WORDS, "cpu": percent}
"""For what stands in tables, where processors are in percent."""


def _reserve_and_limit(check: Check, reserve: int, limit: int, words: Callable[[int], str], keys: KeyPath) -> None:
    if limit and reserve > limit:
        reason = f"must not be above its limit of {words(limit)}, is {words(reserve)}"
        check.problem((*keys, "reserve"), f"{reason}: lower it, or raise the limit")


def _vm(check: Check, vm: VmTable, keys: KeyPath, pools: dict[str, int]) -> None:
    """The controls of one VM and its disks."""
    check.vm_memory(vm, keys)
    if vm.pool and vm.pool not in pools:
        check.problem((*keys, "pool"), unknown_pool(vm.pool, pools, "leave it out for the host"))
    if vm.cpu is not None:
        if vm.cpu.pool and vm.cpu.pool not in pools:
            check.problem((*keys, "cpu", "pool"), unknown_pool(vm.cpu.pool, pools, "leave it out for the VM's `pool`"))
        if vm.cpu.reserve > vm.cpu.limit:
            reason = f"must not be above its limit of {percent(vm.cpu.limit)}, is {percent(vm.cpu.reserve)}"
            check.problem((*keys, "cpu", "reserve"), f"{reason}: lower it, or raise the limit")
        if vm.cpu.reserve and vm.cpu.class_ is CpuClass.BATCH:
            reason = 'nothing is guaranteed to a VM of class = "batch", which gets what others leave'
            check.problem((*keys, "cpu", "reserve"), f"{reason}: remove it, or the class")
    if vm.dynamic_memory is not None:
        _dynamic_memory(check, vm, (*keys, "dynamic_memory"))
    for index, disk in enumerate(vm.disk):
        if disk.iops is not None:
            check_iops(check, disk.iops, (*keys, "disk", index, "iops"))
    if any(nic.bandwidth is not None or nic.link is not None for nic in vm.nic):
        from partitions.topology_networks import check_controls

        for index, nic in enumerate(vm.nic):
            check_controls(check, nic, (*keys, "nic", index))


def check_iops(check: Check, iops: IopsTable, keys: KeyPath) -> None:
    """The rules of one disk's table."""
    _reserve_and_limit(check, iops.reserve, iops.limit, WORDS["disk"], keys)


def _dynamic_memory(check: Check, vm: VmTable, keys: KeyPath) -> None:
    """minimum <= memory <= maximum, in the units that a balloon has."""
    assert vm.dynamic_memory is not None
    least, most = memory_range(vm)
    if least > vm.memory:
        reason = f"must not be above `memory`, which is what it starts with: {size_words(vm.memory)}"
        check.problem((*keys, "minimum"), f"{reason}; is {size_words(least)}")
    if most < vm.memory:
        reason = f"must not be below `memory`, which is what it starts with: {size_words(vm.memory)}"
        check.problem((*keys, "maximum"), f"{reason}; is {size_words(most)}")
    for name in ("minimum", "maximum"):
        size = getattr(vm.dynamic_memory, name)
        if size is not None and (size == 0 or size % BALLOON_UNIT):
            unit = size_words(BALLOON_UNIT)
            check.problem((*keys, name), f"must be a multiple of {unit} and not 0, is {size_words(size)}")
    if most > MOST_DYNAMIC:
        key = "maximum" if vm.dynamic_memory.maximum is not None else None
        reason = f"must not be above {size_words(MOST_DYNAMIC)}, as page numbers of dynamic memory have 40 bits"
        check.problem((*keys, key) if key else (*keys[:-1], "memory"), f"{reason}; is {size_words(most)}")


def _processor_sets(check: Check, file: TopologyFile) -> None:
    """Sets of logical processors: of pools right under the host, there, and each processor in one."""
    owners: dict[int, int] = {}
    for index, pool in enumerate(file.pool):
        if not pool.processors:
            continue
        keys: KeyPath = ("pool", index, "processors")
        if pool.parent:
            check.problem(keys, "is for pools without parent; those inside use their parent's: remove it")
            continue
        try:
            wanted = parse_processors(pool.processors)
        except ValueError as error:
            check.problem(keys, str(error))
            continue
        beyond = [number for number in wanted if number >= file.host.logical_processors]
        if beyond:
            last = file.host.logical_processors - 1
            check.problem(keys, f"the host has the logical processors 0 to {last}, and no {min(beyond)}")
        shared: dict[int, set[int]] = {}
        for number in wanted:
            if owners.setdefault(number, index) != index:
                shared.setdefault(owners[number], set()).add(number)
        for other, numbers in sorted(shared.items()):
            which = processors_words(frozenset(numbers))
            check.problem(keys, f'pool[{other}] "{file.pool[other].name}" has {which} too; a processor is in one set')
        if pool.cpu is not None and pool.cpu.reserve > 100 * len(wanted):
            reason = f"must not be above what its `processors` are, {percent(100 * len(wanted))}"
            check.problem(("pool", index, "cpu", "reserve"), f"{reason}, is {percent(pool.cpu.reserve)}")
    if len(owners) == file.host.logical_processors:
        _nobody_is_left_out(check, file, sorted(set(owners.values())))


def _nobody_is_left_out(check: Check, file: TopologyFile, owners: list[int]) -> None:
    """Where all processors are in sets, every VM is in a pool that has one."""
    tops = {pool.name: pool for pool in file.pool}
    for index, vm in enumerate(file.vm):
        name = (vm.cpu.pool if vm.cpu is not None else "") or vm.pool
        way: list[str] = []
        while name in tops and name not in way:
            way.append(name)
            name = tops[name].parent
        if not way or not tops[way[-1]].processors:
            there = ", ".join(file.pool[owner].name for owner in owners)
            reason = f"all logical processors are those of pools ({there}), and none is left for this VM"
            check.problem(("vm", index, "pool"), f"{reason}: put it into one of them, or leave a processor out")
