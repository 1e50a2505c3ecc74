"""What a port's bandwidth and its cable may be set to, as integers. Root side."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

import attrs

from vsp_vsc.network.port import DEFAULT_MTU
from vsp_vsc.network.switch.kinds import DEFAULT_QUEUE, LinkDirection

CERTAIN: Final = 1 << 32
"""A chance of 100 percent; others are parts of it."""
DEFAULT_WEIGHT: Final = 100
LEAST_BURST: Final = 10 * DEFAULT_MTU
"""Bytes: ten full frames."""
BURST_PARTS: Final = 100
"""A second's worth has so many default bursts: each is 10 ms long."""


def default_burst(limit: int) -> int:
    """Bytes that may be sent at once under a limit, in bits a second, where nobody says: 10 ms, or ten full frames."""
    return max(LEAST_BURST, limit // 8 // BURST_PARTS)


@attrs.frozen
class Bandwidth:
    """What a port may send: Hyper-V's names in brackets."""

    reserve: int = 0
    """Bits a second that it gets whenever it has so much to send (MinimumBandwidthAbsolute)."""
    limit: int = 0
    """Bits a second, never more; 0 is no limit (MaximumBandwidth)."""
    weight: int = DEFAULT_WEIGHT
    """Its share of what is left, beside those that contend (MinimumBandwidthWeight)."""
    burst: int = 0
    """Bytes at once after a rest; 0 is `default_burst`."""
    queue: int = DEFAULT_QUEUE
    """Frames that wait for their turn; what comes on top is dropped."""

    @property
    def burst_bits(self) -> int:
        """What the bucket holds."""
        return 8 * (self.burst or default_burst(self.limit))


@attrs.frozen
class LinkSettings:
    """What a cable does to frames, with tc-netem's names. Bits a second, nanoseconds, parts of `CERTAIN`."""

    rate: int = 0
    """How fast it is; 0 is at once."""
    delay: int = 0
    jitter: int = 0
    """Up to so much more than `delay`, each time another; whoever comes after waits, unless there is `reorder`."""
    loss: int = 0
    """Of the good state, where there are two (Gilbert and Elliott's 1-k)."""
    to_bad: int = 0
    """The good state ends with a frame (p); 0 for one state only."""
    to_good: int = 0
    """The bad state ends with a frame (r)."""
    bad_loss: int = CERTAIN
    """Of the bad state (1-h)."""
    duplicate: int = 0
    reorder: int = 0
    """It goes without delay, and so overtakes."""
    gap: int = 1
    """Only each such frame may be reordered."""
    corrupt: int = 0
    """A bit is turned over."""
    limit: int = DEFAULT_QUEUE
    """Frames that are on their way; what comes on top is dropped."""
    direction: LinkDirection = LinkDirection.BOTH
    seed: int | None = None
    """Of its chances; by default they come of the host's."""


def chance(percent: float) -> int:
    """Percent as parts of `CERTAIN`, of the number as it was written."""
    return int(Fraction(str(percent)) * CERTAIN / 100)
