"""Whether what a topology reserves is there: pools in their parents, VMs in their pools, all in the host. Root side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from hypervisor.scheduler.admission import Refused, admit
from hypervisor.scheduler.tree import Node
from partitions.topology_figures import (
    KINDS,
    WORDS,
    Kind,
    capacities,
    expandable,
    leaves_of,
    pool_figures,
    vm_pool,
)
from partitions.topology_schema import TopologyFile, VmTable, luns_of, numbers_of
from partitions.topology_source import KeyPath

if TYPE_CHECKING:
    from partitions.topology_check import Check

_HOST_KEYS: Final[dict[Kind, str]] = {
    "cpu": "logical_processors",
    "memory": "memory",
    "disk": "disk_iops",
    "network": "bandwidth",
}
_KEYS: Final[dict[Kind, set[str]]] = {
    "cpu": {"logical_processors", "cpu", "processors", "expandable"},
    "memory": {"memory", "dynamic_memory", "expandable"},
    "disk": {"disk_iops", "disk", "expandable"},
    "network": {"bandwidth", "nic", "network", "expandable"},
}
"""Parts of the paths that a resource's figures are at."""
_REMEDY: Final[dict[Kind, str]] = {
    "cpu": "a cpu.reserve",
    "memory": "a memory or minimum",
    "disk": "an iops.reserve",
    "network": "a bandwidth.reserve",
}


def check_sums(check: Check, file: TopologyFile) -> None:
    """Of a file whose pools are a tree. All VMs are taken to be on at once, as `partita run` starts them."""
    for kind in KINDS:
        if not any(_KEYS[kind] & {*map(str, keys)} for keys in (*check.guessed, *check.unreadable)):
            _check_one(check, file, kind)


def _check_one(check: Check, file: TopologyFile, kind: Kind) -> None:
    capacity = capacities(file.host)[kind]
    root = Node.host(capacity)
    pools, fits = _grow(check, file, kind, root)
    words = WORDS[kind]
    for index, vm in enumerate(file.vm):
        pool, together = pools[vm_pool(kind, vm)], 0
        for device, figures in leaves_of(kind, vm, file.host).items():
            together += figures.reservation
            answer = admit(pool, together)
            if isinstance(answer, Refused) and answer.steps[-1].name != root.name:
                keys = ("vm", index, *_key(kind, vm, device))
                reason = f"cannot be granted even to this VM alone: {answer.words(words)}"
                check.problem(keys, f"{reason}; lower it, or raise what that pool has")
    if capacity is None or not fits:
        return
    for vm in file.vm:
        pool = pools[vm_pool(kind, vm)]
        for device, figures in leaves_of(kind, vm, file.host).items():
            pool.add(f"vm/{vm.name}/{device}", reservation=figures.reservation, active=True)
    wanted = sum(_most(child) for child in root.children.values())
    if wanted > capacity:
        has = f"the host has {words(capacity)}, its VMs and pools together reserve {words(wanted)}"
        check.problem(("host", _HOST_KEYS[kind]), f"{has}: lower {_REMEDY[kind]}, or raise this")


def _grow(check: Check, file: TopologyFile, kind: Kind, root: Node) -> tuple[dict[str, Node], bool]:
    """The pools, parents first, and whether all fit; those that do not are told."""
    made: dict[str, Node] = {"": root}
    fits = True
    waiting = list(enumerate(file.pool))
    while waiting:
        ready = [(index, pool) for index, pool in waiting if pool.parent in made]
        waiting = [(index, pool) for index, pool in waiting if pool.parent not in made]
        for index, pool in ready:
            figures = pool_figures(kind, pool)
            answer = admit(made[pool.parent], figures.claim)
            if isinstance(answer, Refused):
                fits = False
                keys: KeyPath = ("pool", index, kind, "reserve")
                if kind == "cpu" and pool.processors:
                    keys = ("pool", index, "processors")
                reason = f"cannot be granted: {answer.words(WORDS[kind])}"
                check.problem(keys, f"{reason}; lower it, or raise what the last one has")
            made[pool.name] = made[pool.parent].add(
                f"pool/{pool.name}",
                inner=True,
                reservation=figures.reservation,
                # One below it has been told already, and counts for nothing here.
                limit=None if figures.limit is not None and figures.limit < figures.reservation else figures.limit,
                expandable=expandable(kind, pool),
                dedicated=figures.dedicated,
            )
    return made, fits


def _most(node: Node) -> int:
    """What it may come to take of its parent's: a pool that does not grow takes what it has, and starts fewer VMs."""
    if not node.inner:
        return node.reservation
    if node.dedicated:
        return node.dedicated
    inside = sum(_most(child) for child in node.children.values())
    most = max(node.reservation, inside) if node.expandable else node.reservation
    return most if node.limit is None else max(node.reservation, min(most, node.limit))


def _key(kind: Kind, vm: VmTable, device: str) -> Iterator[str | int]:
    """Where the reservation stands in the VM's table."""
    match kind:
        case "cpu":
            yield from ("cpu", "reserve")
        case "memory":
            yield from ("memory",) if vm.dynamic_memory is None else ("dynamic_memory", "minimum")
        case "disk":
            yield from ("disk", luns_of(vm.disk).index(int(device.rpartition("/")[2])), "iops", "reserve")
        case "network":
            place = numbers_of(vm.nic).index(int(device.rpartition("/")[2]))
            yield from ("nic", place, "bandwidth", "reserve")
