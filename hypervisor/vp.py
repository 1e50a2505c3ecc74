"""A virtual processor: its suspend state, synthetic registers, SynIC and pending interrupts. Hypervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.clock import seconds
from hypervisor.inspect import Branch, Hex, shown
from hypervisor.msr import PAGE_ENABLE
from hypervisor.msr_table import refresh_tsc_page
from hypervisor.overlay import OverlayPage
from hypervisor.partition import ROOT_ID
from hypervisor.processor_registers import register_name
from hypervisor.synic.synic import Synic
from hypervisor.trace import TO_CHILD, TO_ROOT, Layer
from hypervisor.unhalted_timer import UnhaltedTimer
from hypervisor.vp_registers import get_register, set_register
from hypervisor.vp_timers import VpTimers

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypervisor.backend.base import VpRunner
    from hypervisor.partition import Partition
    from hypervisor.statistics import StatsRegister


UNHALTED_EXPIRED = 56
"""In the assist page: a byte that the time-unhalted timer sets and the guest clears (HV_VP_ASSIST_PAGE)."""


class VirtualProcessor:
    """One processor of a partition. It is created explicitly suspended and runs when neither suspend bit is set.

    Its general registers belong to whatever executes it; here they are values for HvGet/SetVpRegisters.
    """

    __slots__ = (
        "_runner",
        "_timers",
        "assist_page",
        "born",
        "busy",
        "explicit_suspend",
        "icr",
        "index",
        "intercept_suspend",
        "measure",
        "partition",
        "pending",
        "registers",
        "runtime",
        "statistics",
        "synic",
        "tpr",
        "unhalted",
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
        """100 ns units that this processor has worked, but for what it is at now."""
        self.measure: Callable[[], int] | None = None
        """Says how long it has run since its backend began, where that knows it better."""
        self.busy: Callable[[], int] | None = None
        """Says how far it is with the work that it is at, in 100 ns units; None while it is at none."""
        self.born: int = partition.hypervisor.clock()
        """When it was made, on the hypervisor's clock."""
        self.unhalted: UnhaltedTimer = UnhaltedTimer()
        self.vp_assist: int = 0
        self.assist_page: OverlayPage = OverlayPage("VP assist page")
        self.tpr: int = 0
        self.icr: int = 0
        self.statistics: dict[int, StatsRegister] = {}
        """Behind the MSRs of its statistics pages, as in `PartitionRegisters`."""
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
        return self.explicit_suspend or self.intercept_suspend or self.partition.suspended

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

    def inspect(self) -> Branch:
        """As the hypervisor has it; registers that a backend keeps are not asked for, since that would stop it."""
        runner = self._runner
        seen: dict[str, object] = {
            "suspended": self.suspended,
            "explicit_suspend": self.explicit_suspend,
            "intercept_suspend": self.intercept_suspend,
            "run_time": seconds(self.run_time()),
            "cpu": lambda: self.partition.hypervisor.scheduler.inspect_vp(self),
            "pending_interrupts": " ".join(map(hex, sorted(self.pending))) or "none",
            "vp_assist": Hex(self.vp_assist),
            "tpr": Hex(self.tpr),
            "icr": Hex(self.icr),
            "synic": self.synic.inspect,
            "registers": lambda: Branch({register_name(name): Hex(self.registers[name]) for name in self.registers}),
            "runner": None if runner is None else lambda: shown(runner),
        }
        if self._timers is not None:
            seen["timers"] = self._timers.inspect
        return Branch(seen)

    # --- run time

    def run_time(self) -> int:
        """HV_X64_MSR_VP_RUNTIME: 100 ns units that this processor has worked until now."""
        if self.measure is not None:
            return self.runtime + self.measure()
        busy = self.busy
        if busy is None:
            return self.runtime
        done = busy()  # which may find that all of it is done, and have it counted
        return self.runtime + done

    def ran(self, duration: int) -> None:
        """It has worked so much longer."""
        self.busy = None
        self.runtime += duration
        if self.unhalted.ran(duration):
            if self.vp_assist & PAGE_ENABLE:
                self.assist_page.view[UNHALTED_EXPIRED] = 1
            self.raise_interrupt(self.unhalted.vector)

    # --- the assist page

    def assist_eoi(self, last: bool) -> None:
        """An interrupt was taken whose end need not be written to the EOI register, if it was the `last` one pending.

        The register also looks for messages that wait, so while there are any it has to be written. For those who
        deliver interrupts themselves: KVM's local APIC knows nothing of this page, so under KVM its bit is never set,
        and a Linux that looks at it (it does so only where it was recommended the APIC registers) ends every interrupt.
        """
        if self.vp_assist & PAGE_ENABLE:
            self.assist_page.words[0] = int(last and not self.synic.queued)

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
        self._time_follows()
        self._suspension_changed(was, "by its parent")

    def _time_follows(self) -> None:
        partition = self.partition
        running = not partition.suspended
        running = running and any(not vp.explicit_suspend for vp in (*partition.vps.values(), self))
        if running != partition.reference_time.running:
            partition.reference_time.set_running(running)
            if running:
                refresh_tsc_page(partition)  # the TSC went on while reference time stood

    def partition_suspended(self, suspended: bool) -> None:
        """Its whole partition has been suspended, or goes on; its own bits stay as they are."""
        was = self.explicit_suspend or self.intercept_suspend or not suspended
        self._time_follows()
        self._suspension_changed(was, "with its partition")

    def stop_on_intercept(self) -> None:
        """Suspend because the software needs the parent's help."""
        was = self.suspended
        self.intercept_suspend = True
        self._suspension_changed(was, "for an intercept")

    def clear_intercept_suspend(self) -> None:
        """The parent is done with the intercept."""
        was = self.suspended
        self.intercept_suspend = False
        self._suspension_changed(was, "after an intercept")

    def _suspension_changed(self, was: bool, why: str) -> None:
        if was == self.suspended:
            return
        trace = self.partition.hypervisor.trace
        if trace.on:
            event = "vp_resumed" if was else "vp_suspended"
            trace.emit(Layer.STATE, event, self.partition.id, words=why, vp=self.index)
        self.partition.hypervisor.scheduler.suspended(self, not was)
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
        self.busy = None
        self.unhalted = UnhaltedTimer()
        for register in self.statistics.values():
            register.remove(self.partition)
        self.statistics.clear()
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
