"""Where the figures are taken from: one reading of one VM out of the parts of a host. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from partitions.resources.sample import Cpu, Memory
from partitions.resources.totals import NOTHING, Totals

if TYPE_CHECKING:
    from partitions.root.worker import Worker
    from partitions.topology_schema import VmTable

NS_A_TICK: Final = 100


def read_vm(worker: Worker | None, settings: VmTable) -> Totals:
    """A VM as of now, since its start; nothing while it is off."""
    partition = None if worker is None else worker.partition
    if worker is None or partition is None:
        return NOTHING
    now = partition.hypervisor.clock()
    elapsed = (now - worker.started_at) * NS_A_TICK
    count = len(partition.vps)
    run = sum([vp.run_time() for vp in partition.vps.values()]) * NS_A_TICK
    cpu = Cpu(vps=count, elapsed=elapsed, run=run, halted=max(0, count * elapsed - run))
    return Totals(cpu=cpu, memory=Memory(assigned=int(settings.memory)))
