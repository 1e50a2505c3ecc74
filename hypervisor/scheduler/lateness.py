"""How late a real clock wakes those that wait, and for how long the scheduler's time stands because of it. Hypervisor.

Who is told late that its work is done, and goes on working at once, goes on from when it was done. So the scheduler's
time stands there until those that were told have had their turn: then what they do next is an input of that time, and
the schedule is what it would be if nobody were ever late. A host that is too far behind lets that go.
"""

from __future__ import annotations

from typing import Final

import attrs

from hypervisor.clock import NS_PER_TICK

LATE: Final = 1_000_000
"""Nanoseconds from which on being woken late is counted."""
LAG: Final = 100_000_000
"""Nanoseconds that the scheduler's time may be behind the clock for the sake of those that were told late."""
TURNS: Final = 3
"""Turns of Trio's loop in which who was told late goes on."""


@attrs.define
class Lateness:
    """One hypervisor's. All times are nanoseconds."""

    worst: int = 0
    """By which somebody was woken too late."""
    wakes: int = 0
    """Times that somebody was woken `LATE` too late, or more."""
    let_go: int = 0
    """Time that was too far behind to be made up: what guests were given in it is not what it should have been."""
    turns: int = 0
    """For which the scheduler's time still stands."""

    def woken(self, late: int) -> None:
        """Somebody who waited for a moment was woken so much after it."""
        if late >= LATE:
            self.wakes += 1
        self.worst = max(self.worst, late)

    def stand(self) -> bool:
        """Somebody was told late: time stands for its sake. Returns whether it did not before."""
        began = not self.turns
        self.turns = TURNS
        return began

    def turn_over(self) -> bool:
        """All have had a turn. Returns whether time goes on."""
        self.turns -= 1
        return not self.turns

    def stands(self, at: int, now: int) -> bool:
        """Whether the scheduler's time stays `at`, where the clock says `now`."""
        return now <= at or (self.turns > 0 and now - at <= LAG)

    def goes_to(self, at: int, wake: int | None, now: int) -> int:
        """To where the scheduler's time goes on from `at`, if work is done at `wake` and the clock says `now`.

        Not past an end of work that nobody was told of, unless it was too long ago.
        """
        if self.turns and now - at > LAG:
            self.let_go += now - at
        if wake is None or wake >= now:
            return now
        end = max(whole_tick(wake), at + NS_PER_TICK)
        if now > end + LAG:
            self.let_go += now - end
            return now
        return min(end, now)


def whole_tick(ns: int) -> int:
    """The first tick of the clock that is not before it."""
    return -(-ns // NS_PER_TICK) * NS_PER_TICK
