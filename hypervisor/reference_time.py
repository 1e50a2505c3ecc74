"""The partition's reference time: a counter of 100 ns, and the page to compute it from the TSC. Hypervisor.

It starts with the partition and stands still while every virtual processor is explicitly suspended (TLFS 2.0a, 15.4).
"""

from __future__ import annotations

import struct

from hypervisor.clock import TICKS_PER_SECOND, Clock

TSC_FREQUENCY = 1_000_000_000
"""Hz of the time stamp counter that model guests read."""
APIC_FREQUENCY = 1_000_000_000
"""Hz of the APIC timer's clock."""
_TSC_PAGE = struct.Struct("<IIQq")  # sequence, reserved, scale, offset
_U64 = (1 << 64) - 1


def tsc_from_clock(now: int) -> int:
    """The time stamp counter of model guests at `now` (100 ns units)."""
    return now * (TSC_FREQUENCY // TICKS_PER_SECOND)


def tsc_scale(frequency: int) -> int:
    """The page's scale: time = (tsc * scale >> 64) + offset. Rounded up, so that whole units stay whole."""
    return min(_U64, -(-(TICKS_PER_SECOND << 64) // frequency))


def tsc_page(sequence: int, scale: int, offset: int) -> bytes:
    """What the reference TSC page begins with; sequence 0 tells the guest to read the counter by MSR."""
    return _TSC_PAGE.pack(sequence, 0, scale, offset)


class ReferenceTime:
    """One partition's time."""

    __slots__ = ("_clock", "_last", "_offset", "_stopped_at")

    def __init__(self, clock: Clock, *, running: bool = False) -> None:
        self._clock = clock
        now = clock()
        self._offset = now
        self._last = -1
        self._stopped_at: int | None = None if running else now

    @property
    def running(self) -> bool:
        """Whether some virtual processor is not explicitly suspended."""
        return self._stopped_at is None

    def now(self) -> int:
        """100 ns units that the partition has run. Two calls may give the same."""
        stopped = self._stopped_at
        return (self._clock() if stopped is None else stopped) - self._offset

    def read(self, clock: int | None = None) -> int:
        """What a guest reads: strictly greater at each reading, from whichever processor (TLFS 2.0a, 15.4.1).

        `clock`: what the hypervisor's is for it.
        """
        now = self.now() if clock is None or self._stopped_at is not None else clock - self._offset
        last = self._last
        self._last = now = now if now > last else last + 1
        return now

    def moment(self, time: int) -> int:
        """When this time will come, or came, on the hypervisor's clock; while the counter runs."""
        return time + self._offset

    def set_running(self, running: bool) -> None:
        """Start or stop the counter. Harmless when repeated."""
        if running and self._stopped_at is not None:
            self._offset += self._clock() - self._stopped_at
            self._stopped_at = None
        elif not running and self._stopped_at is None:
            self._stopped_at = self._clock()

    @property
    def last_reading(self) -> int:
        """What a guest read last; -1 before the first time."""
        return self._last

    def go_on_from(self, now: int, last_reading: int) -> None:
        """Take over a saved partition's time."""
        self._offset = (self._clock() if self._stopped_at is None else self._stopped_at) - now
        self._last = last_reading

    def restart(self) -> None:
        """Back to zero, for a reset."""
        now = self._clock()
        self._offset = now
        self._last = -1
        if self._stopped_at is not None:
            self._stopped_at = now
