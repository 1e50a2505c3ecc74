"""Where the figures are taken from: readings of VMs and processors out of the parts of a host. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partitions.resources.sample import Cpu, Disk, Lp, Memory, Network
from partitions.resources.totals import NOTHING, Totals, Vp, merged
from partitions.topology_networks import port_name
from partitions.topology_schema import luns_of, numbers_of

if TYPE_CHECKING:
    from hypervisor.partition import Partition
    from partitions.host import Host
    from partitions.root.worker import Worker
    from partitions.topology_schema import VmTable


class Source:
    """One host, at the moment at which it is asked."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.scheduler = host.hypervisor.scheduler

    def lps(self) -> list[Lp]:
        """Each logical processor since the host was opened; none where nobody has worked yet."""
        if not self.scheduler.worked:
            return []
        times = [self.scheduler.lp_times(number) for number in range(self._host.hypervisor.logical_processors)]
        return [Lp(run=lp.run, idle=lp.idle, batch=lp.batch) for lp in times]

    def of(self, name: str) -> Totals:
        """A VM by name, since its start; nothing while it is off."""
        managed = self._host.vmms.vms[name]
        return self.vm(managed.worker, managed.settings)

    def vm(self, worker: Worker | None, settings: VmTable) -> Totals:
        """A VM as of now, since its start; nothing while it is off."""
        partition = None if worker is None else worker.partition
        if worker is None or partition is None:
            return NOTHING
        cpu, vps = self._cpu(partition)
        return Totals(
            vps=vps,
            cpu=cpu,
            memory=self._memory(worker, settings),
            disk=self._disk(settings),
            network=self._network(settings),
        )

    def _cpu(self, partition: Partition) -> tuple[Cpu, tuple[Vp, ...]]:
        scheduler = self.scheduler
        each = [(scheduler.times(vp), scheduler.wants(vp)) for vp in partition.vps.values()]
        times = [one for one, _ in each]
        cpu = Cpu(
            vps=len(times),
            elapsed=max([one.life for one in times], default=0),
            run=sum([one.run for one in times]),
            ready=sum([one.ready for one in times]),
            capped=sum([one.capped for one in times]),
            halted=sum([one.halted for one in times]),
            dispatches=sum([one.dispatches for one in times]),
            waited=sum([one.waited for one in times]),
            longest_wait=max([one.longest_wait for one in times], default=0),
        )
        return cpu, tuple([Vp(one.run, one.stolen, wants) for one, wants in each])

    def _memory(self, worker: Worker, settings: VmTable) -> Memory:
        dynamic = worker.memory
        if dynamic is None:
            return Memory(assigned=int(settings.memory))
        state = dynamic.state()
        return Memory(
            assigned=state.assigned,
            demand=state.demand,
            active=state.active,
            target=state.target,
            ballooned=state.ballooned,
            added=state.added,
            swapped=state.swapped,
            cause=state.cause,
            pressure=None if state.pressure is None else float(state.pressure),
            minimum=state.minimum,
            maximum=state.maximum,
            weight=state.weight,
        )

    def _disk(self, settings: VmTable) -> Disk | None:
        """All disks of a VM together."""
        if not settings.disk:
            return None
        names = [f"disk/{lun}" for lun in luns_of(settings.disk)]
        meters = self._host.vmms.disk_controls.meters(settings.name, names)
        if not meters:
            return None
        counts = [meter.latency.histogram("us").counts for meter in meters]
        return Disk(
            requests=sum([meter.requests for meter in meters]),
            normalized=sum([meter.normalized for meter in meters]),
            bytes=sum([meter.bytes for meter in meters]),
            waited=sum([meter.held for meter in meters]),
            busy=sum([meter.taken for meter in meters]),
            latency=merged([[(1 << place, count) for place, count in enumerate(one)] for one in counts]),
        )

    def _network(self, settings: VmTable) -> Network | None:
        """All adapters of a VM together."""
        made = self._host.network.made
        if made is None or not settings.nic:
            return None
        names = [port_name(settings.name, number) for number in numbers_of(settings.nic)]
        known = [(name, port) for name in names if (port := made.figures_of(name)) is not None]
        if not known:
            return None
        figures, ports = [one for _, one in known], [made.ports[name] for name, _ in known]
        return Network(
            sent_bits=sum([port.sent_bits for port in figures]),
            received_bits=sum([port.received_bits for port in figures]),
            sent=sum([port.sent_frames for port in ports]),
            received=sum([port.received_frames for port in ports]),
            dropped=sum([port.dropped for port in figures]),
        )
