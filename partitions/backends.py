"""What executes the processors of each VM, by the word in its topology. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from partitions.topology_schema import Backend as BackendKind
from partitions.topology_schema import Topology, VmTable
from vsp_vsc.network.switch.kinds import SwitchKind

if TYPE_CHECKING:
    from hypervisor.backend.base import Backend
    from hypervisor.hypervisor import Hypervisor


@attrs.frozen
class TopologyBackends:
    """A worker's `BackendFactory` for the VMs of a topology."""

    topology: Topology

    def __call__(self, hypervisor: Hypervisor, vm: VmTable) -> Backend:
        """Raises `OSError`, `SyntaxError`, `ValueError` for what the VM is to run, `NotImplementedError`."""
        match vm.backend:
            case BackendKind.TASK:
                from hypervisor.backend.task import TaskBackend
                from partitions.compose import guest_entry

                return TaskBackend(hypervisor, *guest_entry(vm, self.topology))
            case BackendKind.KVM:
                from hypervisor.backend.kvm.backend import KvmBackend
                from partitions.ports import COM1_TRANSMIT
                from partitions.root.chipset.cmos import INDEX
                from partitions.root.chipset.linux_boot import LinuxImage

                folder = self.topology.folder
                image = LinuxImage.open(
                    folder / vm.kernel,
                    initrd=folder / vm.initrd if vm.initrd else None,
                    command_line=vm.cmdline,
                    memory_bytes=vm.memory,
                    processors=vm.processors,
                )
                # A byte that the guest prints need not stop it: its driver asks for the line's status soon enough. Nor
                # need the number of a clock register, which it reads right after.
                return KvmBackend(hypervisor, image.load, posted_ports=(COM1_TRANSMIT, INDEX))
            case BackendKind.PROCESS:
                raise NotImplementedError("the process backend is not in this version")


def refuse_threads(topology: Topology) -> None:
    """Raise `ValueError` for a VM that needs real time: its backend has threads, or others reach it by Unix sockets."""
    for vm in topology.vm:
        if vm.backend is not BackendKind.TASK:
            raise ValueError(f'VM "{vm.name}": the {vm.backend.value} backend cannot run on the virtual clock')
        if vm.sockets is not None:
            raise ValueError(f'VM "{vm.name}": [vm.sockets] cannot be had on the virtual clock, which waits for nobody')
    for switch in topology.switch:
        if switch.kind is not SwitchKind.PRIVATE:
            raise ValueError(
                f'switch "{switch.name}": of kind "{switch.kind.value}" it cannot be on the virtual clock, which waits '
                "for nobody; make it private"
            )
