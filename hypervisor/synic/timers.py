"""The four synthetic timers of a virtual processor: registers in, expirations and the next deadline out. Hypervisor.

Pure: whoever calls says what time it is (the partition's reference time, 100 ns) and does what is returned. Source:
current TLFS, Synthetic Timers; TLFS 2.0a, 15. What it leaves open is decided here:

- Enabling a timer whose count is 0 leaves it disabled: a count of 0 is a stopped timer, however it comes about.
- A reserved bit, or a vector below 16 in direct mode, is refused.
- A timer has one message buffer. While that waits for its slot the timer expires no further; what was due meanwhile is
  late, and is treated as after a suspension.
- Late periodic timers: up to `CATCH_UP` missed ticks are made up for by half periods, more are skipped. A lazy timer
  gives one tick for all that was missed, and none if the next is due within an eighth of its period.
- One timer signals at most once in `LEAST_GAP`, so a period of 100 ns costs the host no more than one of 1 ms.

Saved state is the fields of `Timer`, all integers: `config` and `count` as the guest reads them, `due` and `not_before`
in reference time, which a restored partition goes on with, and `waits`, whether the message buffer is in use. The
message itself is in the queue of its SINT, its sender this `Timer`.
"""

from __future__ import annotations

import attrs
import msgspec

from hypervisor.synic.messages import LEAST_VECTOR
from hypervisor.synic.timer_registers import CONFIG_BITS, SINT_SHIFT, TIMER_COUNT, VECTOR_SHIFT, TimerConfig

LEAST_GAP = 10_000
"""100 ns units between two signals of a periodic timer: 1 ms. The figure is ours."""
CATCH_UP = 8
"""Missed ticks that are made up for. The figure is ours."""

_ENABLE, _PERIODIC, _LAZY = int(TimerConfig.ENABLE), int(TimerConfig.PERIODIC), int(TimerConfig.LAZY)
_AUTO_ENABLE, _DIRECT = int(TimerConfig.AUTO_ENABLE), int(TimerConfig.DIRECT)
_SINT_MASK = 0xF << SINT_SHIFT


class BadTimer(ValueError):
    """No timer register takes this value."""


@attrs.define(eq=False)
class Timer:
    """One timer."""

    config: int = 0
    count: int = 0
    """Expiration time, or period; 0 is a stopped timer."""
    due: int | None = None
    """When it expires next; None while it is disabled."""
    not_before: int = 0
    """The earliest time of the next signal, where that is later than `due`."""
    waits: bool = False
    """The message of an expiration waits for its slot."""

    @property
    def deadline(self) -> int | None:
        """When it has to be looked at next; None if only the guest can bring that about."""
        if self.due is None or self.waits:
            return None
        return max(self.due, self.not_before)

    @property
    def vector(self) -> int | None:
        """The interrupt that it raises; None where it sends messages."""
        return self.config >> VECTOR_SHIFT & 0xFF if self.config & _DIRECT else None

    @property
    def sint(self) -> int:
        """Where its messages go."""
        return self.config >> SINT_SHIFT & 0xF

    def _run(self, now: int) -> None:
        """Start over after a register was written, or stand still."""
        self.due, self.not_before = None, 0
        if self.config & _ENABLE:
            if not self.count or not self.config & (_DIRECT | _SINT_MASK):
                self.config &= ~_ENABLE
            else:
                self.due = now + self.count if self.config & _PERIODIC else self.count

    def write_config(self, value: int, now: int) -> None:
        """Raises `BadTimer`, and then nothing has changed. Rewriting an enabled timer starts its period anew."""
        if value & ~CONFIG_BITS:
            raise BadTimer("reserved bits")
        if value & _DIRECT and value >> VECTOR_SHIFT & 0xFF < LEAST_VECTOR:
            raise BadTimer("bad vector")
        self.config = value
        self._run(now)

    def write_count(self, value: int, now: int) -> None:
        """0 disables; anything else enables a timer with AutoEnable, and restarts one that is enabled."""
        self.count = value
        if value and self.config & _AUTO_ENABLE:
            self.config |= _ENABLE
        self._run(now)

    def _expire(self, now: int) -> tuple[int | None, int]:
        """When the expiration was due, or None where it is skipped; and how many ticks are skipped."""
        due = self.due
        assert due is not None
        if not self.config & _PERIODIC:
            self.config &= ~_ENABLE
            self.due = None
            return due, 0
        period = self.count
        following = due + period
        missed = (now - following) // period + 1 if following <= now else 0
        self.not_before = now + LEAST_GAP if period < LEAST_GAP else 0
        if self.config & _LAZY and missed + (now > due) and following + missed * period - now < period // 8:
            self.due = following + missed * period
            return None, missed + 1
        if not missed:
            self.due = following
            return due, 0
        if self.config & _LAZY or missed > CATCH_UP or period < 2 * LEAST_GAP:
            self.due = following + missed * period
            return due, missed
        self.due, self.not_before = following, now + period // 2
        return due, 0


class Expiration(msgspec.Struct, frozen=True):
    """What a timer has to tell."""

    index: int
    due: int
    vector: int | None
    """The interrupt to raise; None where a message goes to `sint`."""
    sint: int


@attrs.define(eq=False)
class SyntheticTimers:
    """All timers of one processor. A processor that may not run is not asked to expire them."""

    timers: tuple[Timer, ...] = attrs.field(factory=lambda: tuple(Timer() for _ in range(TIMER_COUNT)))
    skipped: int = 0
    """Ticks that were never signaled."""

    def expire(self, now: int) -> list[Expiration]:
        """What is to be signaled now. A message's buffer is in use from here until `waits` is cleared."""
        expired = []
        for index, timer in enumerate(self.timers):
            deadline = timer.deadline
            if deadline is None or deadline > now:
                continue
            vector, sint = timer.vector, timer.sint
            due, skipped = timer._expire(now)
            self.skipped += skipped
            if due is not None:
                timer.waits = vector is None
                expired.append(Expiration(index, due, vector, sint))
        return expired

    def deadline(self) -> int | None:
        """The reference time at which `expire` has something to do; None while no timer runs."""
        return min((at for timer in self.timers if (at := timer.deadline) is not None), default=None)

    def reset(self) -> None:
        """As at creation."""
        for timer in self.timers:
            timer.config = timer.count = timer.not_before = 0
            timer.due = None
            timer.waits = False
