"""The processor scheduler of a hypervisor: what is asked of it, and the kernel's nodes that stand for whom. Hypervisor.

Settings are `controls`, and `timekeeper` drives the kernel on the hypervisor's clock. Here is what connects them: who
works has a node in the kernel, whose figures follow the settings of its partition and of the groups around it.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from hypervisor.clock import NS_PER_TICK
from hypervisor.inspect import Branch
from hypervisor.machine import VpStopped
from hypervisor.scheduler.controls import Controls
from hypervisor.scheduler.settings import (
    DEFAULT_PERIOD,
    DEFAULT_SHARES,
    ROOT_GROUP,
    WHOLE,
    CpuTimes,
    Gate,
    GroupSettings,
    PartitionSettings,
)
from hypervisor.scheduler.timekeeper import Timekeeper
from hypervisor.scheduler.work import VpWork

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.partition import Partition
    from hypervisor.scheduler.kernel import CpuKernel, Entry, Group, LpTimes
    from hypervisor.vp import VirtualProcessor


class CpuScheduler:
    """One hypervisor's. Groups and partitions may change at any time, with those that run in them."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor
        self.quantum = 10_000_000
        """Nanoseconds of a slice; set before the first work."""
        self.switch_cost = 0
        """Nanoseconds that a logical processor loses between two virtual ones; set before the first work."""
        self.keep_log = False
        """Whether the kernel keeps its inputs in `log`; set before the first work."""
        self._controls = Controls(hypervisor)
        self.groups = self._controls.groups
        """By ID, as `set_group` has made them."""
        self._time = Timekeeper(hypervisor, self._make_kernel)
        self.lateness = self._time.lateness
        """Of whoever waits for a moment on this hypervisor."""
        self._group_nodes: dict[int, Group] = {}
        """Of those with somebody who has worked: who never works costs nothing."""
        self._works: dict[VirtualProcessor, VpWork] = {}
        self._gated: dict[VirtualProcessor, None] = {}
        """Processors that threads execute."""
        hypervisor.trace.on_scheduler = self._trace_wanted

    def _make_kernel(self) -> CpuKernel:
        from hypervisor.scheduler.kernel import CpuKernel  # which a host without work does not load

        return CpuKernel(
            self._hypervisor.logical_processors,
            quantum=self.quantum,
            switch_cost=self.switch_cost,
            log=self.keep_log,
        )

    # --- who shares what

    def set_group(
        self,
        group_id: int,
        parent_id: int = ROOT_GROUP,
        name: str = "",
        shares: int = DEFAULT_SHARES,
        cap: int | None = None,
        reserve: int = 0,
        period: int = DEFAULT_PERIOD,
        processors: tuple[int, ...] | None = None,
    ) -> None:
        """Make a group, or change or move one; `group_id` counts from 1, `parent_id` 0 is the machine.

        Raises `ValueError` for an unknown parent, one that is below the group, and an ID out of range.
        """
        now = GroupSettings(name, parent_id, shares, cap, reserve, period, processors)
        before = self._controls.set_group(group_id, now)
        node = self._group_nodes.get(group_id)
        if node is not None and before is not None and before != now:
            kernel = self._time.present()
            if before.parent != parent_id:
                kernel.move(node, self._group_node(parent_id))
            kernel.change(node, shares=shares, cap=cap, reserve=reserve, period=period, processors=processors)
            self._time.settle()
        self._review_threads()

    def remove_group(self, group_id: int) -> None:
        """Take away a group. Raises `ValueError` while something is in it, `KeyError` where there is none."""
        self._controls.remove_group(group_id)
        node = self._group_nodes.pop(group_id, None)
        if node is not None:
            self._time.present().remove(node)
            self._time.settle()
        self._review_threads()

    def members(self, group_id: int) -> list[Partition]:
        """Partitions that are in a group by their property; not those in groups inside it."""
        return self._controls.members(group_id)

    def has_processors(self, group_id: int) -> bool:
        """Whether there is a logical processor for who is in a group, or in the machine (0): others may have all."""
        return self._controls.has_processors(group_id)

    def set_partition(
        self,
        partition_id: int,
        group_id: int = ROOT_GROUP,
        *,
        shares: int = DEFAULT_SHARES,
        cap: int = WHOLE,
        reserve: int = 0,
        period: int = DEFAULT_PERIOD,
        batch: bool = False,
    ) -> None:
        """All of a partition's settings at once, before it runs or while it does; its properties say the same after.

        Each of its processors is a sibling of what else is in the group, as Hyper-V has it: weights, caps and
        reserves are per virtual processor. Raises `HvError` as HvSetPartitionProperty would, with nothing changed.
        """
        partition = self._hypervisor.by_id(partition_id)
        self._controls.set_partition(partition, PartitionSettings(group_id, shares, cap, reserve, period, batch))
        self.partition_changed(partition)

    def settings(self, partition: Partition) -> PartitionSettings:
        """What holds for a partition now."""
        return self._controls.of(partition)

    def prepare(self) -> None:
        """Load what the first work needs, before anybody's time counts: somebody has asked for control."""
        importlib.import_module("hypervisor.scheduler.kernel")

    def partition_changed(self, partition: Partition) -> None:
        """Its properties have changed, or how many processors it has."""
        self._controls.void_reserve(partition)
        works = [work for vp in partition.vps.values() if (work := self._works.get(vp)) is not None]
        if works:
            kernel, now = self._time.present(), self.settings(partition)
            parent = self._group_node(now.group)
            for work in works:
                if work.node.group is not parent:
                    kernel.move(work.node, parent)
                kernel.change(
                    work.node,
                    shares=now.shares,
                    cap=now.cap,
                    reserve=now.reserve,
                    period=now.period,
                    batch=now.batch,
                )
            self._time.settle()
        self._review_threads()

    def partition_gone(self, partition: Partition) -> None:
        """It has been deleted."""
        self._controls.forget(partition)

    def forget(self, vp: VirtualProcessor) -> None:
        """The processor has been deleted; a thread may still execute it, and is told nothing any more."""
        work = self._works.pop(vp, None)
        self._gated.pop(vp, None)
        if work is not None:
            self._time.disown(work)
            self._time.present()
            self._time.settle()
            kernel = self._time.running_kernel()
            undone = kernel.stop(work.node)
            if work.ticks:
                work.ran(work.ticks * NS_PER_TICK - undone)
            if self._time.threads is not None:
                self._time.threads.forget(work.node)
            kernel.remove(work.node)
            del self._time.works[work.node]
            self._time.settle()

    # --- work

    async def run(self, vp: VirtualProcessor, ticks: int) -> None:
        """Have a processor do so much work (100 ns units); returns when it is done, after what it was given before.

        Work that is cancelled was done until then. Raises `VpStopped` where the processor is no more.
        """
        if ticks <= 0:  # a program that does nothing again and again lets others go on all the same
            await trio.lowlevel.checkpoint()
            return
        await trio.lowlevel.checkpoint_if_cancelled()
        work = self._work_of(vp)
        task = trio.lowlevel.current_task()
        if work.owner is not None:
            work.waiting.append(task)

            def give_up(_: object) -> trio.lowlevel.Abort:
                work.waiting.remove(task)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(give_up)
        work.owner = task
        try:
            while ticks > 0:
                kernel = await self._time.in_time(work)
                if self._works.get(vp) is not work:
                    raise VpStopped("this processor is no more")
                until_tick = vp.unhalted.left
                piece = ticks if until_tick is None else min(ticks, until_tick)
                await self._time.do(kernel, work, piece)
                ticks -= piece
        finally:
            work.owner = work.waiting.popleft() if work.waiting else None
            if work.owner is not None:
                trio.lowlevel.reschedule(work.owner)

    def _work_of(self, vp: VirtualProcessor) -> VpWork:
        work = self._works.get(vp)
        if work is not None:
            return work
        partition = vp.partition
        if partition.vps.get(vp.index) is not vp:
            raise VpStopped("this processor is no more")
        kernel, settings = self._time.present(), self.settings(partition)
        node = kernel.add_vp(
            self._group_node(settings.group),
            f"{partition.label or partition.id}/{vp.index}",
            id=(partition.id << 16) + vp.index,
            shares=settings.shares,
            cap=settings.cap,
            reserve=settings.reserve,
            period=settings.period,
            batch=settings.batch,
        )
        if vp.suspended:
            kernel.suspend(node)
        work = self._works[vp] = self._time.works[node] = VpWork(vp, node, kernel.now - vp.born * NS_PER_TICK)
        self._review_threads()
        return work

    def _group_node(self, group_id: int) -> Group:
        kernel = self._time.running_kernel()
        if group_id == ROOT_GROUP:
            return kernel.root
        node = self._group_nodes.get(group_id)
        if node is None:
            group = self.groups[group_id]
            node = self._group_nodes[group_id] = kernel.add_group(
                self._group_node(group.parent),
                group.name or str(group_id),
                id=group_id,
                shares=group.shares,
                cap=group.cap,
                reserve=group.reserve,
                period=group.period,
                processors=group.processors,
            )
        return node

    def suspended(self, vp: VirtualProcessor, suspended: bool) -> None:
        """The processor may not execute any more, or may again. Work under way waits, and the wait counts as halted."""
        work = self._works.get(vp)
        if work is None:
            return
        kernel = self._time.present()
        if self._time.threads is not None and work.vp in self._gated:
            self._time.threads.suspend(work.node, suspended)
        elif suspended:
            kernel.suspend(work.node)
        else:
            kernel.resume(work.node)
        self._time.settle()

    # --- processors that threads execute

    def attach_runner(self, vp: VirtualProcessor, gate: Gate) -> None:
        """A thread executes `vp` from now on. While nothing is controlled the gate is not touched, and nobody looks."""
        from hypervisor.scheduler.threads import ThreadVps

        self._gated[vp] = None
        work = self._work_of(vp)
        threads = self._time.threads
        if threads is None:
            threads = ThreadVps(self._time.running_kernel(), lambda: self._time.present().now)
            self._time.threads = self._time.notes.threads = threads
        threads.attach(work.node, gate, free=self._free(vp), suspended=vp.suspended)
        self._review_threads()

    def detach_runner(self, vp: VirtualProcessor) -> None:
        """The thread is about to end; its gate is not called again."""
        work = self._works.get(vp)
        if vp in self._gated and work is not None and self._time.threads is not None:
            del self._gated[vp]
            self._time.threads.detach(work.node)
            self._review_threads()

    def _review_threads(self) -> None:
        """Controls have changed, or who shares: which of them may run without being asked."""
        if self._time.threads is None:
            return
        for vp in self._gated:
            self._time.threads.control(self._works[vp].node, free=self._free(vp))
        self._decide_timely()
        self._time.settle()

    def _decide_timely(self) -> None:
        """Whether each slice is wanted at its time, and not when somebody asks."""
        notes = self._time.notes
        notes.timely = notes.trace is not None or any(not self._free(vp) for vp in self._gated)

    def _trace_wanted(self, wanted: bool) -> None:
        notes = self._time.notes
        if wanted == (notes.trace is not None):
            return
        if self._time.kernel is not None:
            self._time.present()  # what was before is told to nobody
            self._time.settle()
        notes.trace = None
        if wanted:
            from hypervisor.scheduler.events import SchedulerTrace

            trace = self._hypervisor.trace
            notes.trace = SchedulerTrace(trace, self._time.works, lambda: self._time.running_kernel().now)
        self._decide_timely()
        if self._time.kernel is not None:
            self._time.arm()

    def _free(self, vp: VirtualProcessor) -> bool:
        """Whether a thread's processor has a logical one for sure, or nobody has asked for anything else."""
        return self._controls.frees(vp.partition, [work.vp.partition for work in self._works.values()])

    # --- figures

    @property
    def log(self) -> Sequence[Entry]:
        """The kernel's inputs with their times, for `hypervisor.scheduler.replay`; empty if they were not kept."""
        return [] if self._time.kernel is None else self._time.kernel.log or []

    def times(self, vp: VirtualProcessor) -> CpuTimes:
        """How a processor has spent its life until now; what it is at included."""
        life = self._hypervisor.clock() - vp.born
        work = self._works.get(vp)
        if work is None:
            return CpuTimes(halted=life * NS_PER_TICK)
        kernel = self._time.accounts()
        seen = kernel.times(work.node)
        beside = 0 if self._time.threads is None else self._time.threads.ran_beside(work.node)
        return CpuTimes(
            *(seen.run + beside, seen.ready, seen.capped, seen.halted + work.halted_before - beside),
            *(seen.dispatches, seen.wait_total, seen.wait_longest),
        )

    @property
    def wakes(self) -> int:
        """How often the timer queue has woken it."""
        return self._time.wakes

    @property
    def worked(self) -> bool:
        """Whether anybody has; before that there is nothing to account for."""
        return self._time.kernel is not None

    def moment(self, vp: VirtualProcessor, now: int) -> int:
        """What the clock, which says `now`, is for who was told late that its work is done, and goes on from then."""
        work, kernel = self._works.get(vp), self._time.kernel
        if work is None or kernel is None or work.told_at != kernel.now:
            return now
        return min(now, kernel.now // NS_PER_TICK)

    def wants(self, vp: VirtualProcessor) -> bool:
        """Whether a processor has work that is not done."""
        from hypervisor.scheduler.nodes import State

        work = self._works.get(vp)
        return work is not None and work.node.state is not State.HALTED

    def group_times(self, group_id: int) -> CpuTimes:
        """The sum of what is in a group, or in the machine (0), as far as it has ever worked."""
        if self._time.kernel is None or (group_id != ROOT_GROUP and group_id not in self._group_nodes):
            return CpuTimes()
        kernel = self._time.accounts()
        return CpuTimes(*kernel.times(self._group_node(group_id)))

    def lp_times(self, lp: int) -> LpTimes:
        """A logical processor's account. Processors that threads execute unasked are on none."""
        return self._time.accounts().lp_times(lp)

    def run_beside(self, vp: VirtualProcessor) -> int:
        """100 ns units that a processor has run without having been dispatched."""
        work = self._works.get(vp)
        dispatched = 0 if work is None else self._time.accounts().times(work.node).run // NS_PER_TICK
        return max(0, vp.run_time() - dispatched)

    @property
    def contended(self) -> bool:
        """Whether somebody with work and budget waits for a logical processor: only then do shares mean anything."""
        return self._time.kernel is not None and self._time.accounts().contended

    @property
    def contended_for(self) -> int:
        """Nanoseconds in which that was so."""
        return 0 if self._time.kernel is None else self._time.accounts().contended_for()

    def inspect(self) -> Branch:
        """What it goes by, and how it keeps up."""
        from hypervisor.scheduler.figures import overview

        return overview(self, len(self._works))

    def inspect_vp(self, vp: VirtualProcessor) -> Branch:
        """How a processor has spent its time."""
        from hypervisor.scheduler.figures import branch

        return branch(self.times(vp))
