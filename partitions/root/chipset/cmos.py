"""The CMOS clock at ports 0x70 and 0x71: the date at boot, and never an update in progress. Root side.

Linux reads the date here and polls the update flag for it: without a clock a boot spends 80,000 exits on that.
Source: MC146818A data sheet; registers are binary coded decimal, 24 hours.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Final

INDEX: Final = 0x70
DATA: Final = 0x71

_STATUS_A, _STATUS_B, _STATUS_C, _STATUS_D, _CENTURY = 0x0A, 0x0B, 0x0C, 0x0D, 0x32
_STATUS: Final = {_STATUS_A: 0x26, _STATUS_B: 0x02, _STATUS_C: 0x00, _STATUS_D: 0x80}
"""Divider and rate as a PC's firmware leaves them, no update in progress; 24 hours; no interrupt; battery good."""
_NMI_MASK: Final = 0x80


class CmosClock:
    """Reads the wall clock whenever it is asked; writes to the clock are accepted and forgotten."""

    ports = range(INDEX, DATA + 1)
    width = 1

    def __init__(self, now: Callable[[], datetime.datetime]) -> None:
        self._now = now
        self.index = 0

    def write(self, port: int, size: int, value: int) -> None:
        """OUT: select a register; its data cannot be set."""
        if port == INDEX:
            self.index = value & ~_NMI_MASK

    def read(self, port: int, size: int) -> int:
        """IN: the selected register; the index port is write-only on a PC."""
        if port == INDEX:
            return 0xFF
        status = _STATUS.get(self.index)
        if status is not None:
            return status
        now = self._now()
        fields = {
            0x00: now.second,
            0x02: now.minute,
            0x04: now.hour,
            0x06: now.isoweekday() % 7 + 1,
            0x07: now.day,
            0x08: now.month,
            0x09: now.year % 100,
            _CENTURY: now.year // 100,
        }
        value = fields.get(self.index, 0)
        return value // 10 << 4 | value % 10

    def reset(self) -> None:
        """Power-on value."""
        self.index = 0
