"""What the scheduler's timekeeper keeps: the work of each processor, and what the kernel says meanwhile. Hypervisor."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import attrs
import trio

from hypervisor.clock import NS_PER_TICK

if TYPE_CHECKING:
    from hypervisor.scheduler.events import SchedulerTrace
    from hypervisor.scheduler.kernel import Reason, Vp
    from hypervisor.scheduler.threads import ThreadVps
    from hypervisor.vp import VirtualProcessor


@attrs.define(eq=False)
class VpWork:
    """One virtual processor that has worked before: its node, and what it is at."""

    vp: VirtualProcessor
    node: Vp
    halted_before: int
    """Nanoseconds of its life before its first work."""
    owner: trio.lowlevel.Task | None = None
    """Whose work it does; others of its software wait their turn."""
    waiting: deque[trio.lowlevel.Task] = attrs.field(factory=deque)
    parked: trio.lowlevel.Task | None = None
    """The owner, until its work is done."""
    alarm: trio.CancelScope | None = None
    """The owner's own, where it wakes by itself when its work is done."""
    ticks: int = 0
    """Of the work under way; 0 while there is none."""
    base: int = 0
    """What the node had run before it."""
    residue: int = 0
    """Nanoseconds that it has run and that are no whole tick yet."""
    told_at: int = -1
    """The scheduler's time when work of it was done last."""

    def ran(self, ns: int) -> None:
        """The work under way has ended, and so much of it was done."""
        self.ticks = 0
        self.base += ns
        whole, self.residue = divmod(ns + self.residue, NS_PER_TICK)
        self.vp.ran(whole)


class Notes:
    """What the kernel says within a call; taken up when the call has returned."""

    __slots__ = ("done", "threads", "timely", "trace")

    def __init__(self) -> None:
        self.done: deque[Vp] = deque()
        self.timely = False
        """Whether somebody wants each slice at its time."""
        self.trace: SchedulerTrace | None = None
        self.threads: ThreadVps[Vp] | None = None

    def dispatched(self, vp: Vp, lp: int, slice_ns: int) -> None:
        """`vp` has got a logical processor."""
        if self.threads is not None:
            self.threads.touched(vp)
        if self.trace is not None:
            self.trace.dispatched(vp, lp, slice_ns)

    def descheduled(self, vp: Vp, lp: int, reason: Reason) -> None:
        """It has lost it."""
        if self.threads is not None:
            self.threads.touched(vp)
        if self.trace is not None:
            self.trace.descheduled(vp, lp, reason)

    def finished(self, vp: Vp) -> None:
        """Its work is done."""
        self.done.append(vp)
