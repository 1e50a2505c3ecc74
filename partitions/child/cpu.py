"""A virtual processor as its guest sees it: work to give it, and how much of its time it did not get. Child side.

A guest is never told that it was held back. But it can find out: what its processor has run is in a register
(HV_X64_MSR_VP_RUNTIME), what has gone by meanwhile on its reference counter, and what is missing while it had work was
stolen, be it by others or by a cap; why, it cannot tell. (A guest of ESX cannot tell at all, since what it takes for
time is stretched.) Looking costs a trap only when `times` is asked for.
"""

from __future__ import annotations

from typing import NamedTuple

from hypervisor.clock import TICKS_PER_SECOND
from hypervisor.machine import GeneralProtection, Machine
from hypervisor.msr import Msr
from partitions.child.winhv import Platform


class CpuTimes(NamedTuple):
    """Seconds of one virtual processor since its guest first asked for it. The first three sum up to `wall`."""

    run: float
    """It worked."""
    stolen: float
    """It had work, and no processor of the host."""
    halted: float
    """It had no work."""
    wall: float
    """What went by. It stands still while the VM is paused."""


class Cpu:
    """One virtual processor. `guest.cpu` is number 0, `guest.cpus` are all; `guest.work` is `run` too."""

    __slots__ = ("_began", "_machine", "_ran", "_since", "_time", "_working", "_works")

    def __init__(self, machine: Machine, platform: Platform) -> None:
        self._machine = machine
        self._time = platform.reference_time
        self._began = self._since = platform.reference_time()
        try:
            self._ran = machine.read_msr(Msr.VP_RUNTIME)
        except GeneralProtection:
            self._ran = 0  # who has no right to it can work all the same, and not ask
        self._works = 0
        """Tasks that have work for it now."""
        self._working = 0
        """100 ns units in which there was some, but for what is under way."""

    @property
    def index(self) -> int:
        """Its number."""
        return self._machine.vp_index

    async def run(self, seconds: float) -> None:
        """Keep it busy for so many seconds of its own time, as a computation would; by the clock it may take longer."""
        if not self._works:
            self._since = self._time()
        self._works += 1
        try:
            await self._machine.work(round(seconds * TICKS_PER_SECOND))
        finally:
            self._works -= 1
            if not self._works:
                self._working += self._time() - self._since

    def times(self) -> CpuTimes:
        """How its time was spent until now. `GeneralProtection` where the host does not let it look."""
        now = self._time()
        wall = now - self._began
        working = self._working + (now - self._since if self._works else 0)
        ran = self._machine.read_msr(Msr.VP_RUNTIME) - self._ran
        # A real clock wakes late, so that work may seem to have taken less than it did.
        stolen = max(0, working - ran)
        return CpuTimes(*(ticks / TICKS_PER_SECOND for ticks in (ran, stolen, max(0, wall - ran - stolen), wall)))

    @property
    def steal(self) -> float:
        """Seconds that it had work for and did not get: `times().stolen`."""
        return self.times().stolen
