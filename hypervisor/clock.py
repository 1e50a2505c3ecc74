"""The one source of time: integer 100 ns units. Both sides.

Nothing else reads a clock. The host hands in a function, so the same code runs on real time and on Trio's virtual
clock.
"""

from __future__ import annotations

from collections.abc import Callable

TICKS_PER_SECOND = 10_000_000
"""The hypervisor's unit of time is 100 ns (TLFS 2.0a, 15.1)."""
NS_PER_TICK = 100
"""For those who decide in nanoseconds: who runs, who sends and whose request is next."""

Clock = Callable[[], int]
"""Returns 100 ns units since an arbitrary start; never goes backwards."""


def seconds(ticks: int) -> float:
    """100 ns units as seconds, for people and for Trio."""
    return ticks / TICKS_PER_SECOND


def ticks(duration: float) -> int:
    """Seconds as 100 ns units."""
    return round(duration * TICKS_PER_SECOND)
