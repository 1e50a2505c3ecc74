"""A virtual processor: its suspend state, synthetic registers, SynIC and pending interrupts. Hypervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.msr_table import refresh_tsc_page
from hypervisor.overlay import OverlayPage
from hypervisor.partition import ROOT_ID
from hypervisor.synic.synic import Synic
from hypervisor.trace import TO_CHILD, TO_ROOT, Layer
from hypervisor.vp_registers import get_register, set_register
from hypervisor.vp_timers import VpTimers

if TYPE_CHECKING:
    from hypervisor.backend.base import VpRunner
    from hypervisor.partition import Partition


class VirtualProcessor:
    """One processor of a partition. It is created explicitly suspended and runs when neither suspend bit is set.

    Its general registers belong to whatever executes it; here they are values for HvGet/SetVpRegisters.
    """

    __slots__ = (
        "_runner",
        "_timers",
        "assist_page",
        "explicit_suspend",
        "icr",
        "index",
        "intercept_suspend",
        "partition",
        "pending",
        "registers",
        "runtime",
        "synic",
        "tpr",
        "vp_assist",
    )

    def __init__(self, partition: Partition, index: int) -> None:
        self.partition: Partition = partition
        self.index: int = index
        self.synic: Synic = Synic(partition.overlays, self.raise_interrupt)
        self.registers: dict[int, int] = {}
        """Registers of the processor proper, by TLFS name, as far as somebody has set them."""
        self.explicit_suspend: bool = True
        self.intercept_suspend: bool = False
        self.pending: set[int] = set()
        """Interrupts raised and not taken; kept here where the backend has no interrupt controller of its own."""
        self.runtime: int = 0
        """100 ns units that this processor has worked."""
        self.vp_assist: int = 0
        self.assist_page: OverlayPage = OverlayPage("VP assist page")
        self.tpr: int = 0
        self.icr: int = 0
        self._runner: VpRunner | None = None
        self._timers: VpTimers | None = None

    def __repr__(self) -> str:
        return f"<VP {self.index} of partition {self.partition.id}>"

    @property
    def runner(self) -> VpRunner | None:
        """What executes this processor; None while nothing does."""
        return self._runner

    @runner.setter
    def runner(self, runner: VpRunner | None) -> None:
        self._runner = runner
        if runner is not None:
            waiting = sorted(self.pending)
            self.pending.clear()
            for vector in waiting:
                runner.interrupt(vector)

    @property
    def suspended(self) -> bool:
        """Whether it may not execute."""
        return self.explicit_suspend or self.intercept_suspend

    @property
    def timers(self) -> VpTimers:
        """Its synthetic timers, made when they are first asked for."""
        if self._timers is None:
            self._timers = VpTimers(self)
        return self._timers

    @property
    def has_timers(self) -> bool:
        """Whether a timer register was ever written."""
        return self._timers is not None

    # --- interrupts

    def raise_interrupt(self, vector: int) -> None:
        """Make an edge interrupt pending and let the runner know. Never blocks."""
        partition = self.partition
        partition.counters["interrupts"] += 1
        trace = partition.hypervisor.trace
        if trace.on:
            direction = TO_ROOT if partition.id == ROOT_ID else TO_CHILD
            trace.emit(Layer.INTERRUPT, "interrupt", partition.id, direction=direction, vp=self.index, vector=vector)
        runner = self._runner
        if runner is None:
            self.pending.add(vector)
        else:
            runner.interrupt(vector)

    # --- suspension

    def set_explicit_suspend(self, suspend: bool) -> None:
        """Suspend or resume on the parent's word. The reference counter stops while all processors are so suspended."""
        if suspend == self.explicit_suspend:
            return
        was = self.suspended
        self.explicit_suspend = suspend
        partition = self.partition
        running = any(not vp.explicit_suspend for vp in (*partition.vps.values(), self))
        if running != partition.reference_time.running:
            partition.reference_time.set_running(running)
            refresh_tsc_page(partition)  # the TSC went on while reference time stood
        self._suspension_changed(was)

    def stop_on_intercept(self) -> None:
        """Suspend because the software needs the parent's help."""
        was = self.suspended
        self.intercept_suspend = True
        self._suspension_changed(was)

    def clear_intercept_suspend(self) -> None:
        """The parent is done with the intercept."""
        was = self.suspended
        self.intercept_suspend = False
        self._suspension_changed(was)

    def _suspension_changed(self, was: bool) -> None:
        if was == self.suspended:
            return
        if self._runner is not None:
            self._runner.suspended(not was)
        if self._timers is not None:
            self._timers.settle()

    # --- life

    def reset(self) -> None:
        """As at creation, but for the explicit suspend bit, which is the parent's."""
        if self._timers is not None:
            self._timers.reset()
        self.synic.reset()
        self.partition.overlays.remove(self.assist_page)
        self.assist_page.view[:] = bytes(len(self.assist_page.view))
        self.vp_assist = self.tpr = self.icr = 0
        self.runtime = 0
        self.registers.clear()
        self.pending.clear()
        self.clear_intercept_suspend()

    def delete(self) -> None:
        """Take its pages out of guest memory and free the buffers of what waited for it."""
        self.reset()
        self._runner = None

    # --- registers by name

    def get_register(self, name: int) -> int:
        """HvGetVpRegisters: 128 bits. Raises INVALID_PARAMETER for a name that is none."""
        return get_register(self, name)

    def set_register(self, name: int, value: int) -> None:
        """HvSetVpRegisters. Raises INVALID_PARAMETER for an unknown name, a read-only register or a reserved bit."""
        set_register(self, name, value)
