"""What a disk's requests came to: how many, how large, and how long they took where. Root side.

Latency in esxtop's words: KAVG is what a request was held back for, DAVG what the disk took for it, GAVG what the guest
saw, which is their sum.
"""

from __future__ import annotations

from typing import Final

import attrs

from hypervisor.inspect import Log2Counts

WINDOW: Final = 100_000_000
"""ns of a window of `rate`, the accounting window of resource control."""
_WINDOWS: Final = 10


@attrs.define
class Meter:
    """Counts completions. Times in ns."""

    requests: int = 0
    """That have ended."""
    normalized: int = 0
    """The same in normalized I/Os."""
    bytes: int = 0
    held: int = 0
    """Time that they waited in the gate, all together."""
    taken: int = 0
    """Time from arrival to completion, all together."""
    latency: Log2Counts = attrs.field(factory=Log2Counts)
    """From arrival to completion, in microseconds."""
    _counts: list[int] = attrs.field(factory=lambda: [0] * (_WINDOWS + 1))
    _window: int = 0

    def ended(self, cost: int, size: int, arrived: int, began: int, now: int) -> None:
        """A request that was counted has ended."""
        self.requests += 1
        self.normalized += cost
        self.bytes += size
        self.held += began - arrived
        self.taken += now - arrived
        self.latency.add((now - arrived) // 1000)
        self._move_on(now)
        self._counts[self._window % (_WINDOWS + 1)] += cost

    def rate(self, now: int) -> int:
        """Normalized I/Os of the last second, up to the end of the last whole window."""
        self._move_on(now)
        return sum(self._counts) - self._counts[self._window % (_WINDOWS + 1)]

    def averages(self) -> tuple[float, float, float]:
        """DAVG, KAVG and GAVG in ms, since the disk came."""
        if not self.requests:
            return 0.0, 0.0, 0.0
        scale = 1e6 * self.requests
        return (self.taken - self.held) / scale, self.held / scale, self.taken / scale

    def _move_on(self, now: int) -> None:
        window = now // WINDOW
        for passed in range(max(self._window + 1, window - _WINDOWS), window + 1):
            self._counts[passed % (_WINDOWS + 1)] = 0
        self._window = max(self._window, window)
