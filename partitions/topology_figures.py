"""What a topology's tables come to in a tree: whole amounts of each resource, and back in words. Root side.

Processors are counted in 1/65536 of a logical processor, as Hyper-V does; memory in bytes, disks in normalized I/O
operations a second, networks in bits a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Final, Literal, TypeAlias

import attrs

from hypervisor.scheduler.settings import WHOLE
from partitions.topology_controls import DEFAULT_MEMORY_WEIGHT, DEFAULT_WEIGHT, PoolCpuTable, PoolTable, memory_range
from partitions.topology_schema import HostTable, VmTable, luns_of, numbers_of
from partitions.topology_units import parse_processors, rate_words, size_words

Kind: TypeAlias = Literal["cpu", "memory", "disk", "network"]
KINDS: Final[tuple[Kind, ...]] = ("cpu", "memory", "disk", "network")


@attrs.frozen
class Figures:
    """A node's."""

    reservation: int = 0
    limit: int | None = None
    shares: int = DEFAULT_WEIGHT
    demand: int | None = None
    dedicated: int = 0
    """What a pool has for itself, used or not."""

    @property
    def claim(self) -> int:
        """What the node takes of its parent's as long as nobody is in it."""
        return max(self.reservation, self.dedicated)


def processor_units(percent: float) -> int:
    """Percent of a logical processor in units, rounded down: no sum of them is more than the percents'."""
    return math.floor(Fraction(percent) * WHOLE / 100)


def cap_units(percent: float) -> int:
    """The same for a limit, which stops nobody for good."""
    return max(1, processor_units(percent))


def capacities(host: HostTable) -> dict[Kind, int | None]:
    """What the host has of each; None where nobody has said."""
    return {
        "cpu": host.logical_processors * WHOLE,
        "memory": host.memory,
        "disk": host.disk_iops or None,
        "network": host.bandwidth or None,
    }


def pool_figures(kind: Kind, pool: PoolTable) -> Figures:
    """A pool's of one resource."""
    match kind:
        case "cpu":
            return _pool_cpu(pool)
        case "memory":
            table: Any = pool.memory
        case "disk":
            table = pool.disk
        case "network":
            table = pool.network
    if table is None:
        return Figures(shares=DEFAULT_MEMORY_WEIGHT if kind == "memory" else DEFAULT_WEIGHT)
    return Figures(int(table.reserve), int(table.limit) or None, table.weight)


def _pool_cpu(pool: PoolTable) -> Figures:
    """Processors of its own are taken of the host's whole, and it has no others; of these it gets what its limit is."""
    cpu = pool.cpu or PoolCpuTable()
    limit = cap_units(cpu.limit) if cpu.limit else None
    if not pool.processors:
        return Figures(processor_units(cpu.reserve), limit, cpu.weight)
    own = len(parse_processors(pool.processors)) * WHOLE
    most = own if limit is None else min(own, limit)
    return Figures(most, most, cpu.weight, dedicated=own)


def expandable(kind: Kind, pool: PoolTable) -> bool:
    """A pool that says nothing of a resource is no bound to it."""
    return pool.expandable or getattr(pool, kind) is None


def cpu_figures(vm: VmTable, host: HostTable) -> Figures:
    """All of a VM's virtual processors together.

    Of one with more of them than the host has logical processors, nothing is reserved: they can never all run at once,
    and Hyper-V's hypervisor resets such a reserve, too.
    """
    most = vm.processors * WHOLE
    if vm.cpu is None:
        return Figures(shares=DEFAULT_WEIGHT * vm.processors, demand=most)
    limit = cap_units(vm.cpu.limit) * vm.processors if vm.cpu.limit < 100 else None
    kept = vm.processors <= host.logical_processors
    reserve = processor_units(vm.cpu.reserve) * vm.processors if kept else 0
    return Figures(reserve, limit, vm.cpu.weight * vm.processors, demand=most)


def memory_figures(vm: VmTable) -> Figures:
    """A VM's memory; it keeps its minimum, which for one without dynamic memory is all that it has."""
    least, most = memory_range(vm)
    weight = DEFAULT_MEMORY_WEIGHT if vm.dynamic_memory is None else vm.dynamic_memory.weight
    return Figures(least, most, weight)


def disk_figures(vm: VmTable) -> dict[str, Figures]:
    """Those of its disks, by their names in the tree."""
    found: dict[str, Figures] = {}
    for lun, disk in zip(luns_of(vm.disk), vm.disk, strict=True):
        iops = disk.iops
        found[f"disk/{lun}"] = Figures() if iops is None else Figures(iops.reserve, iops.limit or None, iops.weight)
    return found


def network_figures(vm: VmTable) -> dict[str, Figures]:
    """Those of its network adapters."""
    found: dict[str, Figures] = {}
    for number, nic in zip(numbers_of(vm.nic), vm.nic, strict=True):
        table: Any = getattr(nic, "bandwidth", None)
        found[f"nic/{number}"] = (
            Figures() if table is None else Figures(int(table.reserve), int(table.limit) or None, table.weight)
        )
    return found


def devices_figures(kind: Kind, vm: VmTable) -> dict[str, Figures]:
    """Of a resource that a VM's devices use, each by its name."""
    return disk_figures(vm) if kind == "disk" else network_figures(vm)


def vm_figures(kind: Kind, vm: VmTable, host: HostTable) -> Figures:
    """The VM's own node; that of a resource which its devices use has their weights together, and no more."""
    match kind:
        case "cpu":
            return cpu_figures(vm, host)
        case "memory":
            return memory_figures(vm)
        case _:
            weights = sum(one.shares for one in devices_figures(kind, vm).values())
            return Figures(shares=weights or DEFAULT_WEIGHT)


def leaves_of(kind: Kind, vm: VmTable, host: HostTable) -> dict[str, Figures]:
    """What reserves for a VM: itself, by an empty name, or its devices."""
    return devices_figures(kind, vm) if kind in ("disk", "network") else {"": vm_figures(kind, vm, host)}


def vm_pool(kind: Kind, vm: VmTable) -> str:
    """The pool that it is in for a resource; empty for the host."""
    return (vm.cpu.pool if kind == "cpu" and vm.cpu is not None else "") or vm.pool


def processor_words(units: int | Fraction) -> str:
    """Percent of a logical processor for people."""
    return f"{round(float(units * 100 / WHOLE), 1):g} %"


WORDS: Final[dict[Kind, Callable[[int], str]]] = {
    "cpu": processor_words,
    "memory": size_words,
    "disk": lambda iops: f"{iops} IOPS",
    "network": rate_words,
}
RESERVES: Final[dict[Kind, str]] = {
    "cpu": "cpu.reserve",
    "memory": "memory",
    "disk": "iops.reserve",
    "network": "bandwidth.reserve",
}
"""The keys by which a VM reserves."""
