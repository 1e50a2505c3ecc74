"""Statistics pages: counters of the machine, its partitions and processors, 512 words of 64 bits each. Hypervisor.

A page is mapped by the root (HvMapStatsPage) or laid over a page of its own by a guest (the STATS MSRs). While one is
mapped its numbers are brought up to date every 0.1 s by the hypervisor's timer queue; nothing counts for its sake.
Numbers of counters: Linux include/hyperv (hv_stats_*_counters, x86-64). Those that the model has no figure for are 0.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from hypervisor.clock import NS_PER_TICK
from hypervisor.msr import PAGE_ENABLE
from hypervisor.overlay import OverlayPage
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE
from hypervisor.partition import PartitionState

if TYPE_CHECKING:
    from hypervisor.blocks import MemoryBlock
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.partition import Partition
    from hypervisor.vp import VirtualProcessor

REFRESH = 1_000_000
"""100 ns units between two looks: 0.1 s."""

Counters = dict[int, int]
"""Values by their index in the page."""


class HypervisorCounter(enum.IntEnum):
    """HV_HYPERVISOR_COUNTER."""

    LOGICAL_PROCESSORS = 1
    PARTITIONS = 2
    TOTAL_PAGES = 3
    VIRTUAL_PROCESSORS = 4


class ProcessorCounter(enum.IntEnum):
    """HV_CPU_COUNTER, of a logical processor."""

    GLOBAL_TIME = 1
    TOTAL_RUN_TIME = 2


class PartitionCounter(enum.IntEnum):
    """HV_PROCESS_COUNTER."""

    VIRTUAL_PROCESSORS = 1
    DEPOSITED_PAGES = 5
    GPA_PAGES = 6
    SKIPPED_TIMER_TICKS = 25
    PARTITION_ID = 26


class VpCounter(enum.IntEnum):
    """HV_THREAD_COUNTER. Times are in 100 ns. Traps are counted by partition, so those of one with one VP are given."""

    TOTAL_RUN_TIME = 1
    NORMALIZED_RUN_TIME = 4
    HYPERCALLS = 7
    IO_INSTRUCTIONS = 13
    VIRTUAL_INTERRUPTS = 59
    LONG_SPIN_WAIT_HYPERCALLS = 64
    LOGICAL_PROCESSOR_DISPATCHES = 74
    WAITING_FOR_CPU_TIME = 75


_BY_PARTITION = {
    VpCounter.HYPERCALLS: "hypercalls",
    VpCounter.IO_INSTRUCTIONS: "port_intercepts",
    VpCounter.VIRTUAL_INTERRUPTS: "interrupts",
    VpCounter.LONG_SPIN_WAIT_HYPERCALLS: "long_spin_waits",
}


def hypervisor_counters(hypervisor: Hypervisor) -> Counters:
    """The machine's."""
    partitions = hypervisor.partitions.values()
    return {
        HypervisorCounter.LOGICAL_PROCESSORS: hypervisor.logical_processors,
        HypervisorCounter.PARTITIONS: len(partitions),
        HypervisorCounter.TOTAL_PAGES: hypervisor.memory_bytes >> PAGE_SHIFT,
        HypervisorCounter.VIRTUAL_PROCESSORS: sum(len(partition.vps) for partition in partitions),
    }


def processor_run_time(hypervisor: Hypervisor, lp: int) -> int:
    """Run time of a logical processor: what was dispatched on it, and its share of what nobody dispatches.

    That is the root's own work and that of threads which the scheduler need not hold back; they are bound to none.
    """
    scheduler = hypervisor.scheduler
    beside = sum(
        scheduler.run_beside(vp) for partition in hypervisor.partitions.values() for vp in partition.vps.values()
    )
    dispatched = scheduler.lp_times(lp).run // NS_PER_TICK
    return min(dispatched + beside // hypervisor.logical_processors, hypervisor.clock())


def processor_counters(hypervisor: Hypervisor, lp: int) -> Counters:
    """One logical processor's."""
    return {
        ProcessorCounter.GLOBAL_TIME: hypervisor.clock(),
        ProcessorCounter.TOTAL_RUN_TIME: processor_run_time(hypervisor, lp),
    }


def partition_counters(partition: Partition) -> Counters:
    """One partition's."""
    return {
        PartitionCounter.VIRTUAL_PROCESSORS: len(partition.vps),
        PartitionCounter.DEPOSITED_PAGES: partition.pool.deposited,
        PartitionCounter.GPA_PAGES: sum(count for _, _, _, count, _ in partition.memory.extents()),
        PartitionCounter.SKIPPED_TIMER_TICKS: partition.counters["timer_ticks_skipped"],
        PartitionCounter.PARTITION_ID: partition.id,
    }


def vp_counters(vp: VirtualProcessor) -> Counters:
    """One virtual processor's."""
    run_time, times = vp.run_time(), vp.partition.hypervisor.scheduler.times(vp)
    counters: Counters = {
        VpCounter.TOTAL_RUN_TIME: run_time,
        VpCounter.NORMALIZED_RUN_TIME: run_time,
        VpCounter.LOGICAL_PROCESSOR_DISPATCHES: times.dispatches,
        VpCounter.WAITING_FOR_CPU_TIME: times.waited // NS_PER_TICK,
    }
    if len(vp.partition.vps) == 1:
        counters |= {index: vp.partition.counters[name] for index, name in _BY_PARTITION.items()}
    return counters


# --- pages that somebody sees


@attrs.define(eq=False)
class StatsPage:
    """One page and what stands in it, brought up to date until `stop`."""

    hypervisor: Hypervisor
    view: Callable[[], memoryview]
    """Its live bytes."""
    counters: Callable[[], Counters]

    def fire(self) -> None:
        """Write the numbers as they are now, each in one store."""
        words = self.view()[:PAGE_SIZE].cast("Q")
        for index, value in self.counters().items():
            words[index] = value
        self.hypervisor.timers.set(self, self.hypervisor.clock() + REFRESH)

    def stop(self) -> None:
        """Leave the numbers as they are."""
        self.hypervisor.timers.set(self, None)


@attrs.define(eq=False)
class StatsRegister:
    """One of the STATS MSRs of a partition or a processor."""

    value: int = 0
    overlay: OverlayPage = attrs.field(factory=lambda: OverlayPage("statistics page"))
    page: StatsPage | None = None

    def write(self, partition: Partition, value: int, counters: Callable[[], Counters]) -> None:
        """Lay the page over the guest's, or take it away."""
        self.value = value
        if value & PAGE_ENABLE:
            partition.overlays.put(self.overlay, value >> PAGE_SHIFT)
            if self.page is None:
                self.page = StatsPage(partition.hypervisor, lambda: self.overlay.view, counters)
            self.page.fire()
        else:
            self.remove(partition)

    def remove(self, partition: Partition) -> None:
        """The guest's own page is seen again."""
        partition.overlays.remove(self.overlay)
        if self.page is not None:
            self.page.stop()


Identity = tuple[int, int, int]
"""Object type, partition ID or logical processor, VP index; zeros where an object has none."""


@attrs.define(eq=False)
class MappedStats:
    """A page of the root's that HvMapStatsPage made."""

    gpn: int
    block: MemoryBlock
    page: StatsPage
    count: int = 1
    """How often it was mapped."""


class StatsMap:
    """The pages that the root has mapped."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor
        self._mapped: dict[Identity, MappedStats] = {}

    def __len__(self) -> int:
        return len(self._mapped)

    def map(self, identity: Identity, counters: Callable[[], Counters]) -> int:
        """The page's number in the root's GPA space; the same for an object that is mapped already.

        Raises INSUFFICIENT_MEMORY.
        """
        mapped = self._mapped.get(identity)
        if mapped is not None:
            mapped.count += 1
            return mapped.gpn
        gpn, block = self._hypervisor.add_root_block(PAGE_SIZE, "statistics")
        page = StatsPage(self._hypervisor, lambda: block.view, counters)
        self._mapped[identity] = MappedStats(gpn, block, page)
        page.fire()
        return gpn

    def unmap(self, identity: Identity) -> bool:
        """Once for each `map`. Returns whether it was mapped."""
        mapped = self._mapped.get(identity)
        if mapped is None:
            return False
        mapped.count -= 1
        if not mapped.count:
            del self._mapped[identity]
            mapped.page.stop()
            self._hypervisor.remove_root_block(mapped.gpn)
        return True


def of_partition(partition: Partition) -> Callable[[], Counters]:
    """Its counters as long as there is one; then the last ones stay."""
    return lambda: {} if partition.state is PartitionState.DELETED else partition_counters(partition)


def of_vp(vp: VirtualProcessor) -> Callable[[], Counters]:
    """Its counters as long as it is one of its partition's; then the last ones stay."""
    return lambda: vp_counters(vp) if vp.partition.vps.get(vp.index) is vp else {}


def nothing() -> Counters:
    """The hypervisor's internal counters are not published, here as there."""
    return {}
