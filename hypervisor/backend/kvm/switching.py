"""The interpreter's switch interval while virtual processors of KVM run. Hypervisor.

An exit needs the interpreter lock three times: the vCPU's thread, the Trio thread, the vCPU's thread again. Where a
third thread computes in Python, each may wait a whole interval. Latency of one IN every few milliseconds beside such a
thread, as the guest's TSC counts it; 83 interleaved rounds, 3,240 exits a row; CPython 3.11, a KVM that emulates, two
cores with a load of six, which is most of every p99:

    interval    p50       p90         p99
    5 ms        440 us    15,300 us   42,600 us
    1 ms        580 us     7,400 us   17,400 us
    0.5 ms      300 us     6,400 us   21,900 us
    0.2 ms      310 us     5,600 us   15,600 us
    0.1 ms      330 us     5,600 us   15,300 us
    0.05 ms     230 us     4,800 us   15,900 us

Below 0.2 ms nothing is gained that stands out from the noise. Two threads that compute together got no less done at
0.05 ms than at 5 ms. With nothing else in the interpreter, p50 is 45 us and p99 2,100 to 3,500 us at every interval
(320 to 390 exits a row). Beside a Trio task that computes for 1 ms between checkpoints, p50 is 1.1 to 1.3 ms at every
interval: what an exit waits for there is the Trio thread's turn.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH_INTERVAL = 0.0002
"""Seconds."""


class _Interval:
    """What to go back to, and how many want the short one."""

    users = 0
    before = 0.0


@contextmanager
def quick_switching() -> Iterator[None]:
    """A short switch interval, until the last block ends; then what it was before the first."""
    if _Interval.users == 0:
        _Interval.before = sys.getswitchinterval()
        sys.setswitchinterval(min(SWITCH_INTERVAL, _Interval.before))
    _Interval.users += 1
    try:
        yield
    finally:
        _Interval.users -= 1
        if _Interval.users == 0:
            sys.setswitchinterval(_Interval.before)
