"""The synthetic time-unhalted timer: an interrupt for each period that its processor has run. Hypervisor.

It counts run time and not reference time, so it has no deadline: whoever executes the processor asks how far it is and
says what was run. The `task` backend does, since its processors run in `work` and are halted otherwise; KVM keeps
halting to itself, and so does not offer it. Source: current TLFS, Synthetic Time-Unhalted Timer Registers.

Saved state is the three fields.
"""

from __future__ import annotations

import attrs

from hypervisor.machine import GeneralProtection
from hypervisor.synic.messages import LEAST_VECTOR
from hypervisor.synic.timers import LEAST_GAP

ENABLED = 1 << 8
_VECTOR = 0xFF
_NMI = 2


@attrs.define(eq=False)
class UnhaltedTimer:
    """One processor's."""

    config: int = 0
    count: int = 0
    """The period in 100 ns units; the timer stands still while it is 0."""
    elapsed: int = 0
    """Run time since the last interrupt."""

    @property
    def vector(self) -> int:
        """What is raised; 2 is an NMI."""
        return self.config & _VECTOR

    def write_config(self, value: int) -> None:
        """Raises `GeneralProtection`: reserved bits, or enabled with a vector that is neither 2 nor 16 and above."""
        if value & ~(ENABLED | _VECTOR):
            raise GeneralProtection("reserved bits")
        if value & ENABLED and value & _VECTOR < LEAST_VECTOR and value & _VECTOR != _NMI:
            raise GeneralProtection("bad vector")
        self.config = value
        self.elapsed = 0

    def write_count(self, value: int) -> None:
        """The new period begins now."""
        self.count = value
        self.elapsed = 0

    @property
    def left(self) -> int | None:
        """Run time until the next interrupt, at least `LEAST_GAP` so that it costs little; None where none comes."""
        if not self.config & ENABLED or not self.count:
            return None
        return max(self.count - self.elapsed, LEAST_GAP)

    def ran(self, duration: int) -> bool:
        """So much more was run. Returns whether to interrupt, once however many periods have passed."""
        if not self.config & ENABLED or not self.count:
            return False
        self.elapsed += duration
        if self.elapsed < self.count:
            return False
        self.elapsed %= self.count
        return True
