"""The partition's reference time: from the TSC page where the hypervisor offers it, else from the MSR. Child side.

With the page, reading the time is arithmetic on a page in memory and no trap: `((tsc * scale) >> 64) + offset`, read
again if the sequence number moved meanwhile; sequence 0 says that the page is not to be used (TLFS 2.0a, 15.4).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from hypervisor.machine import Machine
from hypervisor.msr import PAGE_ENABLE, Msr
from hypervisor.pages import PAGE_SHIFT

_PAGE = struct.Struct("<IIQq")
"""Sequence, reserved, scale, offset."""
_RETRIES = 8


class ReferenceTime:
    """Reads the time in 100 ns units since the partition began."""

    __slots__ = ("_gpa", "_machine", "_memory", "now", "tsc_page")

    def __init__(self, machine: Machine, tsc_page: int | None) -> None:
        """`tsc_page` is the page number for the hypervisor's TSC page; None reads the MSR each time."""
        self._machine = machine
        self._memory = machine.memory
        self.tsc_page = tsc_page
        self._gpa = 0
        self.now: Callable[[], int] = self._from_msr
        if tsc_page is not None:
            self._gpa = tsc_page << PAGE_SHIFT
            machine.write_msr(Msr.REFERENCE_TSC, self._gpa | PAGE_ENABLE)
            self.now = self._from_page

    def disable(self) -> None:
        """Take the page back from the hypervisor; the time is read from the MSR from here on."""
        if self.tsc_page is not None:
            self._machine.write_msr(Msr.REFERENCE_TSC, 0)
            self.tsc_page = None
            self.now = self._from_msr

    def _from_msr(self) -> int:
        return self._machine.read_msr(Msr.TIME_REF_COUNT)

    def _from_page(self) -> int:
        for _ in range(_RETRIES):
            sequence, _, scale, offset = _PAGE.unpack_from(self._memory, self._gpa)
            if sequence == 0:
                break
            now = ((self._machine.read_tsc() * scale) >> 64) + offset
            if _PAGE.unpack_from(self._memory, self._gpa)[0] == sequence:
                return int(now)
        return self._from_msr()
