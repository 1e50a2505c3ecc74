"""What a disk's commands go through while its I/O is controlled: on at once, or into the disk's queue. Root side.

Commands that move blocks leave in the order in which they came, and what has to come after them (a flush, a stop) stays
behind them; all others pass. A command that waits is under way as one at a backend is: it counts for the disk's queue
depth and for what its channel may have open, so it is the guest's own queues that fill. A reset or an abort ends it at
once, since nothing has touched its buffer yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from vsp_vsc.storage.qos.meter import Meter
from vsp_vsc.storage.qos.normalize import cost_of
from vsp_vsc.storage.scsi.answer import TASK_ABORTED, Done, ScsiResult, Tag, Views

if TYPE_CHECKING:
    from vsp_vsc.storage.qos.arbiter import DiskQos
    from vsp_vsc.storage.qos.mclock import Node
    from vsp_vsc.storage.scsi.nexus import Nexus


@attrs.define(eq=False)
class Command:
    """One that is counted, on its way through."""

    gate: DiskGate
    nexus: Nexus
    cdb: bytes
    views: Views
    length: int
    tag: Tag
    done: Done
    cost: int
    arrived: int
    """ns."""
    began: int = 0
    epoch: int = 0
    """Of the nexus, while it waits."""

    def go(self, now: int) -> None:
        """It has waited, and is carried out."""
        nexus, self.began = self.nexus, now
        nexus.under_way -= 1  # it is counted anew where it goes
        result = nexus.carry_out(self.cdb, self.views, self.length, self.tag, self.ended)
        if result is not None:
            self.ended(self.tag, result)

    def ended(self, tag: Tag, result: ScsiResult) -> None:
        """It has been carried out."""
        gate = self.gate
        gate.meter.ended(self.cost, result.transferred, self.arrived, self.began, gate.arbiter.now())
        self.done(tag, result)

    def end(self, result: ScsiResult) -> None:
        """It has waited for nothing."""
        nexus = self.nexus
        nexus.end(self.epoch, self.tag, self.done, result)


class DiskGate:
    """In front of one disk for one guest."""

    def __init__(self, arbiter: DiskQos, node: Node, meter: Meter) -> None:
        self.arbiter = arbiter
        self.node = node
        self.meter = meter

    def start(self, nexus: Nexus, cdb: bytes, views: Views, length: int, tag: Tag, done: Done) -> ScsiResult | None:
        """See `CommandGate`."""
        cost = cost_of(cdb, nexus.unit.block_size, length)
        if not cost and (cost is None or not self.node.queue):
            return nexus.carry_out(cdb, views, length, tag, done)
        now = self.arbiter.now()
        command = Command(self, nexus, cdb, views, length, tag, done, cost, now, now)
        if not self.arbiter.enter(self.node, cost, command, now):
            command.epoch = nexus.begin()
            return None
        result = nexus.carry_out(cdb, views, length, tag, command.ended)
        if result is not None:
            self.meter.ended(cost, result.transferred, now, now, now)
        return result

    def aborted(self, nexus: Nexus) -> None:
        """See `CommandGate`."""
        self._end(lambda one: one.nexus is nexus and nexus.aborted(one.epoch, one.tag), TASK_ABORTED)

    def end(self, wanted: Callable[[Tag], bool], result: ScsiResult) -> None:
        """See `controller.Gate`."""
        self._end(lambda one: wanted(one.tag), result)

    def _end(self, wanted: Callable[[Command], bool], result: ScsiResult) -> None:
        ended = [request for request in self.node.queue.values() if wanted(request.payload)]
        for request in ended:
            self.arbiter.core.withdraw(request)
        for request in ended:
            request.payload.end(result)
