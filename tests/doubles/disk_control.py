"""Control of disk I/O without a host: on a clock that a test puts where it likes, or on Trio's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import trio

from hypervisor.clock import TICKS_PER_SECOND
from hypervisor.timer_driver import drive_timers
from hypervisor.timer_queue import TimerQueue
from partitions.surroundings import trio_clock
from tests.doubles.storage import StoragePair
from vsp_vsc.storage.qos.arbiter import DiskQos, Flow
from vsp_vsc.storage.qos.policy import IopsPolicy


class HandClock:
    """Time, in 100 ns units, and what waits for it."""

    def __init__(self) -> None:
        self.now = 0
        self.timers = TimerQueue()

    def __call__(self) -> int:
        return self.now

    def wait(self, seconds: float) -> None:
        """Let time pass, with every timer at its moment."""
        end = self.now + round(seconds * TICKS_PER_SECOND)
        while (deadline := self.timers.deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.timers.fire_due(self.now, 1)
        self.now = end


def controlled(pair: StoragePair, qos: DiskQos, *policies: IopsPolicy, vm: str = "vm/web") -> list[Flow]:
    """A pair's disks as those of a VM, by LUN from 0 on."""
    if not qos.has_group(vm):
        qos.set_group(vm, "", IopsPolicy())
    return [qos.add_disk(vm, f"disk/{lun}", policy, pair.vsp.unit(lun)) for lun, policy in enumerate(policies)]


@asynccontextmanager
async def arbiter(capacity: int = 0) -> AsyncIterator[DiskQos]:
    """On Trio's clock, with its timers running."""
    hypervisor: Any = SimpleNamespace(clock=trio_clock(), timers=TimerQueue())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drive_timers, hypervisor)
        yield DiskQos(hypervisor.clock, hypervisor.timers, capacity=capacity)
        nursery.cancel_scope.cancel()
