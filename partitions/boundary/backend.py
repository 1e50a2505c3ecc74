"""The backend whose guest is somebody else: processors without software, driven from outside. Root side."""

from __future__ import annotations

from collections.abc import Callable

import trio

from hypervisor.hypervisor import Hypervisor
from hypervisor.machine import VpStopped
from hypervisor.partition import Partition
from hypervisor.vp import VirtualProcessor


class BoundaryVp:
    """`VpRunner`, and the traps of `Machine`. An interrupt is told at once; while suspended it is kept."""

    def __init__(self, hypervisor: Hypervisor, vp: VirtualProcessor, on_interrupt: Callable[[int, int], None]) -> None:
        self._hypervisor = hypervisor
        self._on_interrupt = on_interrupt
        self.vp = vp
        self.gone = False
        vp.runner = self

    def detach(self) -> None:
        """Power is off."""
        self.gone = True
        if self.vp.runner is self:
            self.vp.runner = None

    # VpRunner

    def interrupt(self, vector: int) -> None:
        """Tell it, or keep it until the processor may run."""
        if self.vp.suspended:
            self.vp.pending.add(vector)
        else:
            self._on_interrupt(self.vp.index, vector)

    def suspended(self, suspended: bool) -> None:
        """When the processor may run again, what was kept is told, the highest vector first."""
        if not suspended:
            for vector in sorted(self.vp.pending, reverse=True):
                self._on_interrupt(self.vp.index, vector)
            self.vp.pending.clear()

    # What the guest does

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX."""
        return self._hypervisor.cpuid(self._running(), leaf, subleaf)

    def read_msr(self, msr: int) -> int:
        """RDMSR; raises `GeneralProtection`."""
        return self._hypervisor.read_msr(self._running(), msr)

    def write_msr(self, msr: int, value: int) -> None:
        """WRMSR; raises `GeneralProtection`."""
        self._hypervisor.write_msr(self._running(), msr, value)

    def hypercall(self, control: int, input_gpa: int, output_gpa: int) -> int:
        """The call through the hypercall page; raises `InvalidOpcode`."""
        return self._hypervisor.hypercall(self._running(), control, input_gpa, output_gpa)

    def port_in(self, port: int, size: int) -> int:
        """IN."""
        return self._hypervisor.port_in(self._running(), port, size)

    def port_out(self, port: int, size: int, value: int) -> None:
        """OUT."""
        self._hypervisor.port_out(self._running(), port, size, value)

    def _running(self) -> VirtualProcessor:
        if self.gone or self.vp.suspended:
            raise VpStopped("this processor is stopped")
        return self.vp


class BoundaryBackend:
    """Executes nothing: it lends the processors to `machines` until power is cut."""

    cannot_save = ""
    """All that the guest's software is lies on the speaker's side."""

    def __init__(self, hypervisor: Hypervisor, on_interrupt: Callable[[int, int], None]) -> None:
        self._hypervisor = hypervisor
        self._on_interrupt = on_interrupt
        self.machines: dict[int, BoundaryVp] = {}
        """By processor index; empty while the VM is off."""
        self.partition: Partition | None = None
        self.failure: BaseException | None = None

    def set_line(self, line: int, high: bool) -> None:
        """Nothing: this guest has no interrupt controllers but its processors' own."""

    async def run(
        self,
        partition: Partition,
        *,
        restored: bool = False,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Until cancelled, which is power off or a reset."""

        def power_off(_: object) -> trio.lowlevel.Abort:
            for machine in machines.values():
                machine.detach()
            if self.machines is machines:
                self.machines, self.partition = {}, None
            return trio.lowlevel.Abort.SUCCEEDED

        machines = {
            index: BoundaryVp(self._hypervisor, vp, self._on_interrupt) for index, vp in sorted(partition.vps.items())
        }
        self.machines, self.partition = machines, partition
        task_status.started()
        await trio.lowlevel.wait_task_rescheduled(power_off)
