"""The interpreter's switch interval while virtual processors of KVM run. Hypervisor."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH_INTERVAL = 0.0005
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
