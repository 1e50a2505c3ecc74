"""Controls in a good topology that do not do what people take them for. Root side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from hypervisor.scheduler.divvy import entitle
from hypervisor.scheduler.tree import Node
from partitions.topology_controls import DEFAULT_WEIGHT, CpuClass
from partitions.topology_figures import (
    KINDS,
    WORDS,
    capacities,
    cpu_figures,
    expandable,
    pool_figures,
    processor_words,
    vm_pool,
)
from partitions.topology_source import line_of
from partitions.topology_words import spell

if TYPE_CHECKING:
    from partitions.topology_figures import Kind
    from partitions.topology_schema import Topology
    from partitions.topology_source import KeyPath

    _Parts = tuple[KeyPath, Any, str]
    """Where a table of reserve, limit and weight is, the table, and the pool around it."""

MOST_ALIKE: Final = 3
"""Warnings of one kind; who has that many has understood."""


def control_warnings(topology: Topology, source: Callable[[], str] = str) -> list[str]:
    """What to tell people, each with its place, and with its line where `source` has the file's text."""
    raw = {
        "vm": [{"name": vm.name} for vm in topology.vm],
        "pool": [{"name": pool.name} for pool in topology.pool],
    }
    found: list[str] = []
    text: str | None = None
    for rule in (
        _more_processors_than_there_are,
        _limits_without_effect,
        _more_than_a_limit_at_first,
        _iops_of_nothing,
        _bandwidth_of_nothing,
        _light_and_heavy,
    ):
        told = list(rule(topology))
        for keys, reason in told[:MOST_ALIKE]:
            text = source() if text is None else text
            line = line_of(text, keys)
            found.append(f"{f'line {line}: ' if line else ''}{spell(raw, keys)}: {reason}")
        if len(told) > MOST_ALIKE:
            found.append(f"and {len(told) - MOST_ALIKE} more like the last one")
    return found


def _more_processors_than_there_are(topology: Topology) -> Iterator[tuple[KeyPath, str]]:
    """A reserve that the hypervisor resets."""
    there = topology.host.logical_processors
    for index, vm in enumerate(topology.vm):
        if vm.cpu is not None and vm.cpu.reserve and vm.processors > there:
            ones = "one" if there == 1 else "ones"
            reason = (
                f"counts as 0: its {vm.processors} virtual processors cannot all run at once on {there} logical {ones}"
            )
            yield ("vm", index, "cpu", "reserve"), reason


def _limits_without_effect(topology: Topology) -> Iterator[tuple[KeyPath, str]]:
    """A limit that is above one around it, or above all that there is: the lower one holds."""
    there = capacities(topology.host)
    for kind in KINDS:
        for index, pool in enumerate(topology.pool):
            own = pool_figures(kind, pool).limit
            around = _around(topology, kind, pool.parent)
            if own is not None and around is not None and own > around[1]:
                reason = f"has no effect: pool/{around[0]} around it may have {WORDS[kind](around[1])}"
                yield ("pool", index, kind, "limit"), reason
            elif own is not None and (all_of_it := there[kind]) is not None and own > all_of_it:
                yield ("pool", index, kind, "limit"), f"has no effect: the host has {WORDS[kind](all_of_it)}"
    for index, vm in enumerate(topology.vm):
        own = cpu_figures(vm, topology.host).limit
        around = _around(topology, "cpu", vm_pool("cpu", vm))
        if own is not None and around is not None and own > around[1]:
            reason = f"has no effect: its pool/{around[0]} may have {processor_words(around[1])}"
            yield ("vm", index, "cpu", "limit"), reason


def _more_than_a_limit_at_first(topology: Topology) -> Iterator[tuple[KeyPath, str]]:
    """Memory of a VM that its pool may not have: its balloon has to make up for it, though its host may have enough."""
    for index, vm in enumerate(topology.vm):
        around = None if vm.dynamic_memory is None else _around(topology, "memory", vm_pool("memory", vm))
        if around is not None and int(vm.memory) > around[1]:
            most = WORDS["memory"](around[1])
            reason = f"it starts with more than the {most} of pool/{around[0]}, until its guest gives the rest back"
            yield ("vm", index, "memory"), reason


def _around(topology: Topology, kind: Kind, pool: str) -> tuple[str, int] | None:
    """The pool with the lowest limit, from this one upwards."""
    pools = {one.name: one for one in topology.pool}
    lowest: tuple[str, int] | None = None
    while pool:
        limit = pool_figures(kind, pools[pool]).limit
        if limit is not None and (lowest is None or limit < lowest[1]):
            lowest = pool, limit
        pool = pools[pool].parent
    return lowest


def _iops_of_nothing(topology: Topology) -> Iterator[tuple[KeyPath, str]]:
    """Parts of a storage whose speed nobody has said."""
    if topology.host.disk_iops:
        return
    tables: list[_Parts] = [
        (("vm", index, "disk", place, "iops"), disk.iops, vm.pool)
        for index, vm in enumerate(topology.vm)
        for place, disk in enumerate(vm.disk)
    ]
    tables += [(("pool", index, "disk"), pool.disk, pool.parent) for index, pool in enumerate(topology.pool)]
    for keys in _of_nothing(topology, "disk", tables):
        yield keys, "means nothing as long as [host] disk_iops does not say what the storage can do"


def _bandwidth_of_nothing(topology: Topology) -> Iterator[tuple[KeyPath, str]]:
    """The same of networks: a switch or the host has to say how much there is."""
    if topology.host.bandwidth:
        return
    known = {switch.name for switch in topology.switch if switch.bandwidth}
    tables: list[_Parts] = [
        (("vm", index, "nic", place, "bandwidth"), nic.bandwidth, vm.pool)
        for index, vm in enumerate(topology.vm)
        for place, nic in enumerate(vm.nic)
        if nic.switch not in known
    ]
    if not known:
        tables += [(("pool", index, "network"), pool.network, pool.parent) for index, pool in enumerate(topology.pool)]
    for keys in _of_nothing(topology, "network", tables):
        yield keys, "means nothing as long as neither its [[switch]] nor [host] has a bandwidth"


def _of_nothing(topology: Topology, kind: Kind, tables: Iterable[_Parts]) -> Iterator[KeyPath]:
    """Reserves and weights in no pool with a limit, which would be short of what is divided."""
    for keys, table, pool in tables:
        if (
            table is not None
            and (table.reserve or table.weight != DEFAULT_WEIGHT)
            and not _around(topology, kind, pool)
        ):
            yield (*keys, "reserve" if table.reserve else "weight")


def _light_and_heavy(topology: Topology) -> Iterator[tuple[KeyPath, str]]:
    """Who has more weight and gets less: weights count between siblings only."""
    capacity = capacities(topology.host)["cpu"]
    assert capacity is not None, "a host has processors"
    root = Node.host(capacity)
    pools = {"": root}
    waiting = list(topology.pool)
    while waiting:
        for pool in [pool for pool in waiting if pool.parent in pools]:
            figures = pool_figures("cpu", pool)
            pools[pool.name] = pools[pool.parent].add(
                f"pool/{pool.name}",
                inner=True,
                reservation=figures.reservation,
                limit=figures.limit,
                shares=figures.shares,
                expandable=expandable("cpu", pool),
                dedicated=figures.dedicated,
            )
        waiting = [pool for pool in waiting if pool.name not in pools]
    nodes: list[Node] = []
    for vm in topology.vm:
        figures = cpu_figures(vm, topology.host)
        nodes.append(
            pools[vm_pool("cpu", vm)].add(
                f"vm/{vm.name}",
                reservation=figures.reservation,
                limit=figures.limit,
                shares=figures.shares,
                demand=figures.demand,
                active=True,
            )
        )
    best: tuple[Fraction, str, int] | None = None
    level: tuple[Fraction, str, int] | None = None
    weights = [DEFAULT_WEIGHT if vm.cpu is None else vm.cpu.weight for vm in topology.vm]
    normal = [index for index, vm in enumerate(topology.vm) if vm.cpu is None or vm.cpu.class_ is CpuClass.NORMAL]
    for index, node in enumerate(nodes):
        node.batch = index not in normal
    entitled = entitle(root, capacity)
    for index in sorted(normal, key=lambda index: weights[index]):
        vm, weight = topology.vm[index], weights[index]
        each = entitled[nodes[index]] / vm.processors
        if level is not None and level[2] < weight:
            best, level = max(best or level, level), None
        at_limit = nodes[index].limit is not None and entitled[nodes[index]] == nodes[index].limit
        if best is not None and each < best[0] and not at_limit:
            reason = f"is {weight}, and where all want everything it gets {processor_words(each)} for each processor"
            other = f"{best[1]} has {best[2]} and gets {processor_words(best[0])}"
            yield ("vm", index, "cpu", "weight"), f"{reason}; {other}: weights count within a pool only"
        level = max(level or (each, vm.name, weight), (each, vm.name, weight))
