"""A host's switches, made when somebody wants them: most hosts have none, and load nothing. Root side."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from hypervisor.trace import Trace
from partitions.topology_schema import Topology

if TYPE_CHECKING:
    from partitions.root.switches import Switches


@attrs.define(eq=False)
class HostNetwork:
    """Where a host and its workers find the switches."""

    topology: Topology
    now: Callable[[], int]
    """100 ns units."""
    trace: Trace
    made: Switches | None = None
    """Once somebody has asked."""

    def switches(self) -> Switches:
        """All of them, without uplinks as long as nobody has opened those."""
        if self.made is None:
            from partitions.root.switches import Switches

            self.made = Switches(self.topology.folder.name, self.now, self.trace)
            self.made.reserve(self.topology.vm)
        return self.made
