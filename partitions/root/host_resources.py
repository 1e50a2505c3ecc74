"""A host's resource control, made when somebody wants it: most hosts have none, and load nothing. Root side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs

from partitions.topology_controls import vm_has_controls
from partitions.topology_schema import Topology, VmTable

if TYPE_CHECKING:
    from hypervisor.scheduler.driver import CpuScheduler
    from hypervisor.scheduler.tree import Node
    from partitions.root.disk_controls import DiskControls
    from partitions.root.management import Vmms
    from partitions.root.resources import Resources
    from partitions.topology_figures import Kind

OnChange: TypeAlias = "Callable[[Node], None]"
"""Hears of a node whose figures or whose place in the tree have changed, when they have."""


class Machines(Protocol):
    """The VMs as resource control sees them."""

    def tables(self) -> Mapping[str, VmTable]:
        """The settings of each that is defined."""

    def settle(self, name: str, table: VmTable) -> None:
        """Other settings, from now on."""

    def running(self) -> Mapping[str, int]:
        """The partitions of those that are on, by name; 0 for one that has none yet."""


class _Settings(Mapping[str, VmTable]):
    """As they are whenever somebody looks."""

    def __init__(self, vmms: Vmms) -> None:
        self._vms = vmms.vms

    def __getitem__(self, name: str) -> VmTable:
        return self._vms[name].settings

    def __iter__(self) -> Iterator[str]:
        return iter(self._vms)

    def __len__(self) -> int:
        return len(self._vms)


class VmmsMachines:
    """The VMs of a VMMS, as soon as there is one."""

    def __init__(self) -> None:
        self.vmms: Vmms | None = None

    def tables(self) -> Mapping[str, VmTable]:
        """As `Machines`."""
        return {} if self.vmms is None else _Settings(self.vmms)

    def settle(self, name: str, table: VmTable) -> None:
        """As `Machines`."""
        assert self.vmms is not None, "it has the VM"
        self.vmms.vms[name].settings = table
        if self.vmms.network.made is not None:
            self.vmms.network.made.settled(table)

    def running(self) -> Mapping[str, int]:
        """As `Machines`."""
        vms = {} if self.vmms is None else self.vmms.vms
        workers = {name: vm.worker for name, vm in vms.items() if vm.worker is not None}
        return {name: 0 if one.partition is None else one.partition.id for name, one in workers.items()}


@attrs.define(eq=False)
class HostResources:
    """Where a host and its workers find resource control."""

    topology: Topology
    scheduler: CpuScheduler
    machines: VmmsMachines = attrs.Factory(VmmsMachines)
    made: Resources | None = None
    """Once somebody has asked, or the topology has."""
    listeners: dict[Kind, list[OnChange]] = attrs.Factory(dict)
    disks: DiskControls | None = None
    """Who has how much of the disks' I/O, with its figures; there as soon as VMs can run."""

    def __call__(self) -> Resources:
        """Resource control, made at the first call with all that is defined and running by then."""
        if self.made is None:
            from partitions.root.resources import Resources

            self.scheduler.prepare()
            self.made = Resources(self.topology, self.machines, self.scheduler, self.listeners)
            self.made.take_over()
        return self.made

    def on_change(self, kind: Kind, callback: OnChange) -> Callable[[], None]:
        """Have changes of one resource told, from the first one on; the result ends that."""
        heard = self.listeners.setdefault(kind, [])
        heard.append(callback)
        return lambda: heard.remove(callback)

    @contextmanager
    def reserved(self, name: str) -> Iterator[None]:
        """What a VM has reserved is set aside for it while the block runs. Raises `CannotStart`, nothing set aside."""
        if self.made is not None:
            self.made.start_vm(name)
        try:
            yield
        finally:
            if self.made is not None:  # perhaps made since
                self.made.stop_vm(name)

    def defining(self, settings: VmTable) -> None:
        """A VM is about to be defined on a host that is open: what its table asks for is looked at from its start."""
        if self.made is None and self.machines.vmms is not None and vm_has_controls(settings):
            self()

    def forgotten(self, name: str) -> None:
        """A VM is not defined any more."""
        if self.made is not None:
            self.made.forget_vm(name)

    def opened(self, name: str, partition_id: int) -> None:
        """It has a partition, in which nothing has run yet."""
        if self.made is not None:
            self.made.partition_opened(name, partition_id)
