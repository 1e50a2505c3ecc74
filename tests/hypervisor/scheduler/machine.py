"""A machine with logical processors and partitions that work, for tests of the scheduler's driver."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from hypervisor.clock import TICKS_PER_SECOND
from hypervisor.hypervisor import Hypervisor
from hypervisor.partition import PageCost, Partition, PartitionOperation
from hypervisor.properties import Property
from hypervisor.scheduler.settings import CpuTimes
from hypervisor.timer_driver import timers_running
from hypervisor.trace import Trace
from hypervisor.vp import VirtualProcessor

SECOND = TICKS_PER_SECOND
MS = TICKS_PER_SECOND // 1000
HALF = 0x8000


def trio_ticks() -> Callable[[], int]:
    """Trio's clock from now on."""
    start = trio.current_time()
    return lambda: round((trio.current_time() - start) * TICKS_PER_SECOND)


class Computers:
    """The machine. Partitions get the names `a`, `b` and so on."""

    def __init__(self, lps: int, clock: Callable[[], int] | None = None) -> None:
        clock = clock or trio_ticks()
        self.host = Hypervisor(clock, Trace(clock), memory_bytes=1 << 30, logical_processors=lps)
        self.scheduler = self.host.scheduler
        self.partitions: dict[str, Partition] = {}

    def partition(self, name: str, vps: int = 1, **properties: int) -> Partition:
        """One more, whose processors may run; with properties by their names in lower case."""
        partition = self.host.create_partition(self.host.root)
        partition.pool.granted = 10_000
        partition.charge(PageCost.INITIALIZE)
        partition.advance(PartitionOperation.INITIALIZE)
        partition.label = name
        for index in range(vps):
            self.host.create_vp(partition, index)
        for key, value in properties.items():
            partition.set_property(Property[key.upper()], value)
        for vp in partition.vps.values():
            vp.set_explicit_suspend(False)
        self.partitions[name] = partition
        return partition

    def vp(self, name: str, index: int = 0) -> VirtualProcessor:
        return self.partitions[name].vps[index]

    def times(self, name: str, index: int = 0) -> CpuTimes:
        return self.scheduler.times(self.vp(name, index))

    def shares(self) -> dict[str, float]:
        """What each partition's first processor has had, in percent of its life."""
        return {name: round(100 * (t := self.times(name)).run / t.life, 2) for name in self.partitions}


@asynccontextmanager
async def computing(machine: Computers) -> AsyncIterator[trio.Nursery]:
    """Timers fire, and what is started in the nursery ends with the block."""
    async with timers_running(machine.host), trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


async def busy(machine: Computers, name: str, index: int = 0) -> None:
    """Works for ever."""
    await machine.scheduler.run(machine.vp(name, index), 10**6 * SECOND)
