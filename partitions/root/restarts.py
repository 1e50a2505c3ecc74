"""Automatic restart: whether a VM that has ended starts again, and after how long. Root side.

What Hyper-V's AutomaticRecoveryAction does for a worker that ended (2 leave off, 3 restart), with what service managers
have learned about it: each restart of a row waits twice as long as the one before, up to a longest wait; a run that
lasted is the end of the row; and after so many restarts in a row the VM stays off, for a person to look at.

No clock and no Trio: an end goes in, seconds come out. A clean stop that somebody asked for is never undone.
"""

from __future__ import annotations

import enum
from typing import Final, assert_never

import attrs

from hypervisor.inspect import Branch
from partitions.root.exits import ExitReason, ExitRecord
from partitions.topology_schema import Restart

FIRST_WAIT: Final = 1.0
"""Seconds before the first restart of a row."""
LONGEST_WAIT: Final = 60.0
STABLE: Final = 60.0
"""Seconds of a run after which its end is no longer part of the row before it."""
LIMIT: Final = 10
"""Restarts in a row."""


class Wish(enum.Enum):
    """What the policy makes of one end."""

    STAY_OFF = "stay off"
    AGAIN = "again"
    GIVE_UP = "give up"
    """It would start again, but has done so too often in a row."""


@attrs.define(eq=False)
class Restarts:
    """The restarts of one VM."""

    policy: Restart
    in_a_row: int = 0
    """Restarts since somebody started it, or since its last run that lasted."""
    total: int = 0
    """Restarts since it was defined."""

    @property
    def wait(self) -> float:
        """Seconds to wait before the restart that `ended` has asked for."""
        return min(FIRST_WAIT * 2.0 ** (self.in_a_row - 1), LONGEST_WAIT)

    def inspect(self) -> Branch:
        """The policy, and how often it has acted."""
        return Branch({"policy": self.policy.value, "total": self.total, "in_a_row": self.in_a_row, "most": LIMIT})

    def by_hand(self) -> None:
        """Somebody starts it: what was before does not count any more."""
        self.in_a_row = 0

    def ended(self, record: ExitRecord, *, asked: bool, told: bool) -> Wish:
        """What to do after an end; counts the restart if that is the answer.

        `asked`: somebody had asked for this end. `told`: who started it hears that it did not start, and decides.
        """
        if asked or told or not self._wanted(record):
            return Wish.STAY_OFF
        if record.uptime >= STABLE:
            self.in_a_row = 0
        if self.in_a_row >= LIMIT:
            return Wish.GIVE_UP
        self.in_a_row += 1
        self.total += 1
        return Wish.AGAIN

    def _wanted(self, record: ExitRecord) -> bool:
        if record.reason in (ExitReason.TURNED_OFF, ExitReason.SAVED):
            return False
        match self.policy:
            case Restart.NEVER:
                return False
            case Restart.ON_FAILURE:
                return not record.ok
            case Restart.ALWAYS:
                return True
            case _:
                assert_never(self.policy)
