"""Limit, reservation and shares of a host's VMs and pools: who may start, and what changes while they run. Root side.

There is a tree for each of processors, memory, disks and network, with the same pools in each. The tables of the
topology say what they are; nodes of the trees follow them. Whoever enforces something (the processor scheduler, the
memory desk, disks, ports of switches) hears of changes by `on_change`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import attrs

from hypervisor.inspect import Branch
from hypervisor.scheduler import admission
from hypervisor.scheduler.admission import Refused
from hypervisor.scheduler.divvy import Division, entitlements
from hypervisor.scheduler.tree import Node, ResourceError
from partitions.root.exits import CannotStart
from partitions.root.host_resources import Machines, OnChange
from partitions.root.resource_edits import edit_pool, edit_vm
from partitions.root.resource_steps import Steps, lacking
from partitions.topology_controls import CpuClass, CpuTable, PoolCpuTable, PoolTable
from partitions.topology_figures import (
    KINDS,
    RESERVES,
    Kind,
    cap_units,
    capacities,
    devices_figures,
    expandable,
    pool_figures,
    processor_units,
    vm_figures,
    vm_pool,
)
from partitions.topology_resources import new_problems
from partitions.topology_schema import Topology, TopologyFile, VmTable
from partitions.topology_source import nearest
from partitions.topology_units import parse_processors

if TYPE_CHECKING:
    from hypervisor.scheduler.driver import CpuScheduler

__all__ = ["CannotReserve", "ResourceError", "Resources"]

NS_PER_MS: Final = 1_000_000
HOST: Final = "host"
"""What stands for no pool, where a word is wanted."""


class CannotReserve(CannotStart):
    """A VM whose reservation cannot be granted; the words name who was asked, and what he has."""


@attrs.define(eq=False)
class _Pool:
    """One pool, in every tree."""

    table: PoolTable
    group: int
    """What the processor scheduler calls it."""
    nodes: dict[Kind, Node]


class Resources:
    """One host's. Made by `HostResources`; everything runs in the Trio thread."""

    def __init__(
        self,
        topology: Topology,
        machines: Machines,
        scheduler: CpuScheduler,
        listeners: dict[Kind, list[OnChange]],
    ) -> None:
        self.host = topology.host
        self._folder = topology.folder
        self._machines = machines
        self._scheduler = scheduler
        self._listeners = listeners
        self._declared: Sequence[PoolTable] = topology.pool
        self.roots: dict[Kind, Node] = {kind: Node.host(has) for kind, has in capacities(topology.host).items()}
        """The trees."""
        self.capacity: dict[Kind, int | None] = capacities(topology.host)
        self._pools: dict[str, _Pool] = {}
        self._vms: dict[str, dict[Kind, Node]] = {}
        self._partitions: dict[str, int] = {}
        """Of the VMs that have one."""
        self._groups = 0

    def take_over(self) -> None:
        """The topology's pools, and the VMs that are defined, with what those that run have reserved already."""
        self._file_is_good(pools=self._declared, vms=self.vms, all_is_new=True)
        waiting = list(self._declared)
        while waiting:
            ready = [pool for pool in waiting if not pool.parent or pool.parent in self._pools]
            waiting = [pool for pool in waiting if pool.parent and pool.parent not in self._pools]
            for pool in ready:
                self._add_pool(pool)
        for name in self.vms:
            self._nodes(name)
        for name, partition in self._machines.running().items():
            self.start_vm(name)
            if partition:
                self.partition_opened(name, partition)

    # --- looking

    @property
    def pools(self) -> dict[str, PoolTable]:
        """By name, as they are now."""
        return {name: pool.table for name, pool in self._pools.items()}

    @property
    def vms(self) -> Mapping[str, VmTable]:
        """The settings of all VMs by name."""
        return self._machines.tables()

    def vms_of(self, pool: str) -> list[str]:
        """Those that are in a pool for any resource; not those in pools inside it."""
        return [name for name, vm in self.vms.items() if pool in {vm_pool(kind, vm) for kind in KINDS}]

    def node(self, kind: Kind, path: str) -> Node:
        """What "host", "pool/prod", "vm/web" or "vm/web/disk/0" is in a tree. Raises `ResourceError`."""
        if path == HOST:
            return self.roots[kind]
        sort, name, device = self._parse(path)
        node = self._pools[name].nodes[kind] if sort == "pool" else self._nodes(name)[kind]
        if device and device not in node.children:
            there = ", ".join(node.children) or "none"
            raise ResourceError(path, "", f"{sort}/{name} has no {device}; there are: {there}")
        return node.children[device] if device else node

    def owner(self, path: str) -> str:
        """The pool or VM of a path: "vm/web" for "web", and for "pool/prod/vm/web/disk/0". Raises `ResourceError`."""
        sort, name, _ = self._parse(path)
        return f"{sort}/{name}"

    def entitled(self, kind: Kind) -> dict[Node, tuple[Fraction, Division | None]]:
        """What each is entitled to now, if all that are on wanted everything but for what `Node.demand` says.

        Empty for a resource of which nobody has said how much there is.
        """
        capacity = self.capacity[kind]
        return {} if capacity is None else entitlements(self.roots[kind], capacity, held=kind == "memory")

    def inspect(self) -> Branch:
        """The branch `resources`."""
        from partitions.root.resource_view import inspect

        return inspect(self)

    def on_change(self, kind: Kind, callback: OnChange) -> Callable[[], None]:
        """As `HostResources.on_change`."""
        heard = self._listeners.setdefault(kind, [])
        heard.append(callback)
        return lambda: heard.remove(callback)

    # --- VMs come and go

    def start_vm(self, name: str) -> None:
        """Set aside what it has reserved, all of it or nothing. Raises `CannotReserve`."""
        vm, granted = self.vms[name], list[Node]()
        try:
            self._file_is_good(vms={name: vm}, all_is_new=True)  # nobody has looked at one that was defined by hand
            self._nodes(name)
        except ResourceError as error:
            raise CannotReserve(str(error)) from None
        for kind in KINDS:
            for leaf in self._leaves(kind, name):
                if leaf.active:
                    continue
                answer = admission.commit(leaf)
                if isinstance(answer, Refused):
                    for one in reversed(granted):
                        admission.release(one)
                    raise CannotReserve(_shortage(kind, vm, leaf, answer))
                granted.append(leaf)
        for kind in KINDS:
            for leaf in self._leaves(kind, name):
                self._tell(kind, leaf)

    def stop_vm(self, name: str) -> None:
        """Give back exactly what `start_vm` has set aside."""
        self._partitions.pop(name, None)
        if name not in self._vms:
            return
        for kind, node in self._vms[name].items():
            for leaf in node.children.values() if node.inner else (node,):
                if leaf.active:
                    admission.release(leaf)
                    self._tell(kind, leaf)

    def partition_opened(self, name: str, partition_id: int) -> None:
        """It has a partition; its processors are controlled from their first moment."""
        self._partitions[name] = partition_id
        self._schedule_vm(name)

    def forget_vm(self, name: str) -> None:
        """It is not defined any more."""
        for node in self._vms.pop(name, {}).values():
            for child in list(node.children.values()):
                child.remove()
            node.remove()

    def devices_changed(self, name: str, table: VmTable) -> None:
        """Its disks or adapters are others from now on; what those reserve is granted, or nothing has changed.

        The settings are the caller's to keep. Raises `ResourceError`.
        """
        nodes = self._nodes(name)
        with Steps() as steps:
            self._devices(steps, nodes, table)

    # --- pools come and go

    def add_pool(self, table: PoolTable) -> None:
        """One more. Raises `ResourceError`."""
        if table.name in self._pools:
            raise ResourceError(f"pool/{table.name}", "name", "there is a pool of that name already")
        self._file_is_good(pools=[*self.pools.values(), table])
        self._add_pool(table)

    def _add_pool(self, table: PoolTable) -> None:
        parents = self._pools[table.parent].nodes if table.parent else self.roots
        for kind in KINDS:
            figures = pool_figures(kind, table)
            answer = admission.admit(parents[kind], figures.claim)
            if isinstance(answer, Refused):
                key = "processors" if figures.dedicated else f"{kind}.reserve"
                raise ResourceError(f"pool/{table.name}", key, lacking(kind, answer))
        self._groups += 1
        nodes = {
            kind: parents[kind].add(
                f"pool/{table.name}",
                inner=True,
                reservation=(figures := pool_figures(kind, table)).reservation,
                limit=figures.limit,
                shares=figures.shares,
                expandable=expandable(kind, table),
                dedicated=figures.dedicated,
            )
            for kind in KINDS
        }
        self._pools[table.name] = _Pool(table, self._groups, nodes)
        self._schedule_pool(table.name)
        for kind, node in nodes.items():
            self._tell(kind, node)

    def remove_pool(self, name: str) -> None:
        """One less. Raises `ResourceError` while VMs or pools are in it, naming them."""
        pool = self._pools[self._parse(f"pool/{name}")[1]]
        inside = [f"vm/{vm}" for vm in self.vms_of(name)]
        inside += [f"pool/{other}" for other, one in self._pools.items() if one.table.parent == name]
        strangers = [partition.id for partition in self._scheduler.members(pool.group)]
        if strangers and not inside:  # by their property, which a parent may have set past us
            has = ", ".join(map(str, strangers))
            raise ResourceError(f"pool/{name}", "", f"is the CPU group of partition {has}: give it another CpuGroupId")
        if inside:
            # A pool in it is moved by another verb than a VM.
            how = (
                f"partita set {inside[0][3:]} pool=OTHER"
                if self.vms_of(name)
                else f"partita pool move {inside[0][5:]} OTHER"
            )
            remedy = f"move them first, such as by: {how}"
            raise ResourceError(f"pool/{name}", "", f"still has {', '.join(inside)} in it: {remedy}")
        del self._pools[name]
        for kind, node in pool.nodes.items():
            node.remove()
            self._tell(kind, node)
        self._scheduler.remove_group(pool.group)

    def move_pool(self, name: str, parent: str) -> None:
        """Into another pool, or "" for the host. Raises `ResourceError`."""
        self.change(f"pool/{name}", {"parent": parent})

    # --- changes

    def set(self, path: str, key: str, value: object) -> None:
        """Change one control of a VM or a pool, from this moment on: `set("vm/web", "cpu.limit", 50)`.

        Raises `ResourceError`, and then nothing has changed.
        """
        self.change(path, {key: value})

    def change(self, path: str, values: Mapping[str, object]) -> None:
        """Several at once: all of them or none. Raises `ResourceError`."""
        sort, name, device = self._parse(path)
        if sort == "pool":
            self._change_pool(name, values)
        else:
            prefix = f"{device.replace('/', '.')}." if device else ""
            self._change_vm(name, {f"{prefix}{key}": value for key, value in values.items()})

    def _change_pool(self, name: str, values: Mapping[str, object]) -> None:
        pool = self._pools[name]
        table = pool.table
        for key, value in values.items():
            table = edit_pool(table, key, value)
        tables = {**self.pools, name: table}
        self._file_is_good(pools=list(tables.values()))
        parents = self._pools[table.parent].nodes if table.parent else self.roots
        with Steps() as steps:
            for kind in KINDS:
                figures, grows = pool_figures(kind, table), expandable(kind, table)
                key = "processors" if figures.dedicated and "processors" in values else f"{kind}.reserve"
                steps.rearrange(kind, key, pool.nodes[kind], figures, parents[kind], grows=grows)
        before, pool.table = pool.table, table
        if before.cpu != table.cpu or before.parent != table.parent or before.processors != table.processors:
            self._schedule_pool(name)
        for kind, node in steps.changed:
            self._tell(kind, node)

    def _change_vm(self, name: str, values: Mapping[str, object]) -> None:
        vm = self.vms[name]
        nodes = self._nodes(name)
        on = nodes["cpu"].active
        table = vm
        for key, value in values.items():
            table = edit_vm(table, key, value, on=on, resizable=bool(self._listeners.get("memory")))
        self._file_is_good(vms={**self.vms, name: table})
        with Steps() as steps:
            for kind in KINDS:
                pool = vm_pool(kind, table)
                parent = self._pools[pool].nodes[kind] if pool else self.roots[kind]
                steps.rearrange(kind, RESERVES[kind], nodes[kind], vm_figures(kind, table, self.host), parent)
            self._devices(steps, nodes, table)
        changed = steps.changed
        if vm.dynamic_memory != table.dynamic_memory and ("memory", nodes["memory"]) not in changed:
            changed.append(("memory", nodes["memory"]))  # its buffer, which the tree does not know
        self._machines.settle(name, table)
        nodes["cpu"].batch = _is_batch(table)
        if vm.cpu != table.cpu or vm.pool != table.pool:
            self._schedule_vm(name)
        for kind, node in changed:
            self._tell(kind, node)

    # --- inside

    def _parse(self, path: str) -> tuple[str, str, str]:
        """Pool or VM, its name, and the device. Raises `ResourceError` for what there is not."""
        parts = path.split("/")
        while len(parts) > 2 and parts[0] == "pool" and parts[2] in ("pool", "vm"):
            parts = parts[2:]  # the way through the tree
        if len(parts) == 1 or parts[0] not in ("pool", "vm"):
            parts = ["vm" if parts[0] in self.vms or parts[0] not in self._pools else "pool", *parts]
        sort, name, device = parts[0], parts[1], "/".join(parts[2:])
        known: Mapping[str, object] = self._pools if sort == "pool" else self.vms
        if name not in known:
            near = nearest(name, known)
            there = ", ".join(known) or "none"
            hint = f'did you mean "{near}"?' if near else f"there are: {there}"
            raise ResourceError(path, "", f'no {"pool" if sort == "pool" else "VM"} is called "{name}"; {hint}')
        return sort, name, device

    def _file_is_good(
        self,
        *,
        pools: Sequence[PoolTable] | None = None,
        vms: Mapping[str, VmTable] | None = None,
        all_is_new: bool = False,
    ) -> None:
        """By the topology's own rules, as far as a change has broken them. Raises `ResourceError`."""
        after = TopologyFile(
            host=self.host,
            vm=list((self.vms if vms is None else vms).values()),
            pool=list(self.pools.values() if pools is None else pools),
        )
        before = None
        if not all_is_new:
            before = TopologyFile(host=self.host, vm=list(self.vms.values()), pool=list(self.pools.values()))
        for keys, reason in new_problems(before, after, self._folder):
            table = after.pool if keys[0] == "pool" else after.vm
            assert isinstance(keys[1], int), "a table's place"
            path = f"{keys[0]}/{table[keys[1]].name}"
            raise ResourceError(path, ".".join(map(str, keys[2:])), reason)

    def _nodes(self, name: str) -> dict[Kind, Node]:
        """A VM's, made where it is new. Raises `ResourceError` for a pool that there is not."""
        nodes = self._vms.get(name)
        if nodes is not None:
            return nodes
        vm = self.vms[name]
        parents: dict[Kind, Node] = {}
        for kind in KINDS:
            pool = vm_pool(kind, vm)
            if pool and pool not in self._pools:
                raise ResourceError(f"vm/{name}", "pool", f'no pool is called "{pool}"')
            parents[kind] = self._pools[pool].nodes[kind] if pool else self.roots[kind]
        nodes = {}
        for kind in KINDS:
            figures, inner = vm_figures(kind, vm, self.host), kind in ("disk", "network")
            nodes[kind] = parents[kind].add(
                f"vm/{name}",
                inner=inner,
                reservation=figures.reservation,
                limit=figures.limit,
                shares=figures.shares,
                demand=figures.demand,
            )
        self._devices(Steps(), nodes, vm)
        nodes["cpu"].batch = _is_batch(vm)
        self._vms[name] = nodes
        return nodes

    def _leaves(self, kind: Kind, name: str) -> list[Node]:
        """What reserves for a VM: itself, or its devices."""
        node = self._nodes(name)[kind]
        return list(node.children.values()) if node.inner else [node]

    def _devices(self, steps: Steps, nodes: Mapping[Kind, Node], vm: VmTable) -> None:
        """Have the trees follow a VM's disks and adapters. Raises `ResourceError`."""
        for kind, node in nodes.items():
            if node.inner:
                shares = vm_figures(kind, vm, self.host).shares
                steps.devices(kind, node, devices_figures(kind, vm), shares, on=nodes["cpu"].active)

    def _tell(self, kind: Kind, node: Node) -> None:
        for heard in list(self._listeners.get(kind, ())):
            heard(node)

    # --- the processor scheduler

    def _schedule_pool(self, name: str) -> None:
        pool = self._pools[name]
        table = pool.table
        cpu = table.cpu or PoolCpuTable()
        self._scheduler.set_group(
            pool.group,
            self._pools[table.parent].group if table.parent else 0,
            name=name,
            shares=cpu.weight,
            cap=cap_units(cpu.limit) if cpu.limit else None,
            reserve=processor_units(cpu.reserve),
            period=cpu.period_ms * NS_PER_MS,
            processors=tuple(sorted(parse_processors(table.processors))) if table.processors else None,
        )

    def _schedule_vm(self, name: str) -> None:
        partition = self._partitions.get(name)
        if partition is None:
            return
        vm = self.vms[name]
        cpu = vm.cpu or CpuTable()
        pool = vm_pool("cpu", vm)
        self._scheduler.set_partition(
            partition,
            self._pools[pool].group if pool else 0,
            shares=cpu.weight,
            cap=cap_units(cpu.limit),
            reserve=processor_units(cpu.reserve) if vm.processors <= self.host.logical_processors else 0,
            period=cpu.period_ms * NS_PER_MS,
            batch=_is_batch(vm),
        )


def _is_batch(vm: VmTable) -> bool:
    return vm.cpu is not None and vm.cpu.class_ is CpuClass.BATCH


def _shortage(kind: Kind, vm: VmTable, leaf: Node, refused: Refused) -> str:
    """The words of a VM that is not started."""
    device = leaf.name.replace("/", " ") + " " if leaf.name.startswith(("disk", "nic")) else ""
    key = RESERVES[kind]
    if kind == "memory" and vm.dynamic_memory is not None:
        key = "dynamic_memory.minimum"
    remedy = "lower that, free some, or raise what the last one has"
    return f"{device}{key} {lacking(kind, refused)}; {remedy}"
