"""A host's switches, made when somebody wants them: most hosts have none, and load nothing. Root side."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from hypervisor.trace import Trace
from partitions.topology_schema import Topology

if TYPE_CHECKING:
    from hypervisor.timer_queue import TimerQueue
    from partitions.root.host_resources import HostResources
    from partitions.root.network_controls import NetworkControls
    from partitions.root.switches import Switches


def _any_chance(_purpose: str) -> random.Random:
    return random.Random()


@attrs.define(eq=False)
class HostNetwork:
    """Where a host and its workers find the switches."""

    topology: Topology
    now: Callable[[], int]
    """100 ns units."""
    trace: Trace
    timers: TimerQueue | None = None
    """For frames that wait."""
    chance: Callable[[str], random.Random] = _any_chance
    """Random numbers for a purpose."""
    resources: HostResources | None = None
    """Where reservations, limits and weights are changed, and those of pools are."""
    made: Switches | None = None
    """Once somebody has asked."""

    def switches(self) -> Switches:
        """All of them, without uplinks as long as nobody has opened those."""
        if self.made is None:
            from partitions.root.switches import Switches

            self.made = Switches(self.topology.folder.name, self.now, self.trace, self)
            self.made.reserve(self.topology.vm)
        return self.made

    def controlled(self) -> bool:
        """Whether the topology says anything of bandwidth or bad cables."""
        topology = self.topology
        return bool(
            topology.host.bandwidth
            or any(switch.bandwidth or switch.link is not None for switch in topology.switch)
            or any(nic.bandwidth is not None or nic.link is not None for vm in topology.vm for nic in vm.nic)
            or any(pool.network is not None for pool in topology.pool)
        )

    def controls(self) -> NetworkControls:
        """Bandwidth and cables, in the way from now on."""
        from partitions.root.network_controls import NetworkControls

        return NetworkControls(self)
