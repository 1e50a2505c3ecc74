"""A token bucket: so many bits a second, and so many at once after a rest. Pure, in integers. Root side.

Tokens are counted in bit-nanoseconds (a billionth of a bit), so that nothing is ever rounded: whatever is asked for and
whenever, the frames that pass in any window of X seconds have at most `rate * X + burst` bits.
"""

from __future__ import annotations

from typing import Final

SECOND: Final = 1_000_000_000
"""In nanoseconds."""


class Bucket:
    """Full at first. Bits, bits a second, nanoseconds."""

    __slots__ = ("_at", "_level", "burst", "rate")

    def __init__(self, rate: int, burst: int, now: int = 0) -> None:
        """With a `burst` of 0 it is a wire: one frame after the other, each for the time that it takes."""
        self.rate = rate
        self.burst = burst
        self._level = burst * SECOND
        self._at = now

    def _fill(self, now: int) -> None:
        if now > self._at:
            self._level = min(self.burst * SECOND, self._level + (now - self._at) * self.rate)
            self._at = now

    def ready_at(self, now: int, bits: int) -> int:
        """When a frame of that size may pass, if none does before: `now`, or later.

        One that is larger than the burst passes on a full bucket and is paid for afterwards.
        """
        self._fill(now)
        lacking = min(bits, self.burst) * SECOND - self._level
        return now if lacking <= 0 else now - (-lacking // self.rate)

    def take(self, now: int, bits: int) -> None:
        """It has passed."""
        self._fill(now)
        self._level -= bits * SECOND

    def change(self, now: int, rate: int, burst: int) -> None:
        """Other figures from now on. What is in it stays, as far as there is room."""
        self._fill(now)
        self.rate, self.burst = rate, burst
        self._level = min(self._level, burst * SECOND)
