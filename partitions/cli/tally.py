"""The figures at the end of a run, where somebody asked for control or processors turn out to be short. Root side.

Most runs have neither. Then nothing of `partitions.resources` is loaded, and this costs a look at one counter at the
end of each VM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from partitions.topology_controls import has_controls

if TYPE_CHECKING:
    from types import TracebackType

    from partitions.host import Host
    from partitions.resources.sample import Sample
    from partitions.resources.sampler import Sampler
    from partitions.root.worker import Worker
    from partitions.topology import Topology
    from partitions.topology_schema import VmTable


def controlled(topology: Topology) -> bool:
    """Whether it says anything of who gets what."""
    host = topology.host
    return bool(host.disk_iops or host.bandwidth) or has_controls(topology.vm, topology.pool)


class Tally:
    """Looks at each VM when it ends, and from the first one on that had to wait keeps what it has had."""

    def __init__(self, host: Host, sampler: Sampler | None) -> None:
        """`sampler` is one that is there for other reasons, and sees every end itself."""
        self._host = host
        self._own = sampler is None
        self._sampler = sampler

    def __enter__(self) -> Tally:
        if self._own:
            self._host.vmms.leaving.append(self._leaving)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._own:
            self._host.vmms.leaving.remove(self._leaving)

    def _leaving(self, worker: Worker, settings: VmTable) -> None:
        if self._sampler is None and (self._host.hypervisor.scheduler.contended_for or self._host_is_controlled()):
            from partitions.resources.sampler import Sampler

            self._sampler = Sampler(self._host, look=False)
        if self._sampler is not None:
            self._sampler.leaving(worker, settings)

    def _host_is_controlled(self) -> bool:
        """By its topology, or by somebody since."""
        return controlled(self._host.topology) or self._host.resource_control.made is not None

    def whole(self) -> Sample | None:
        """The run as one window, if it is worth a table."""
        sampler = self._sampler
        if sampler is None:
            return None
        run = sampler.between(sampler.first, sampler.read(), whole=True)
        return run if run.contended or self._host_is_controlled() else None
