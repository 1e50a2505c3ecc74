"""The processor scheduler on the hypervisor's clock: whose work is done when, and who is told. Hypervisor.

It has no task. What it waits for is one entry of the hypervisor's timer queue, and that is the next moment at which
some work ends, not the next slice; who has just begun the work that ends next wakes by itself. With nobody looking,
slices are made up when somebody asks or when work ends, each with its own time. So 64 processors that share 8 for an
hour cost their dispatches, and a wake-up now and then.

Real clocks wake late. Who is told late that its work is done, and goes on working at once, goes on from when it was
done, and its clock says so (`lateness`). So the schedule of guests that compute is the same on either clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import trio

from hypervisor.clock import NS_PER_TICK, seconds
from hypervisor.inspect import Branch
from hypervisor.machine import VpStopped
from hypervisor.properties import Property
from hypervisor.scheduler.lateness import Lateness
from hypervisor.scheduler.settings import (
    DEFAULT_PERIOD,
    DEFAULT_SHARES,
    LAST_GROUP,
    ROOT_GROUP,
    UNCONTROLLED,
    WHOLE,
    CpuTimes,
    Gate,
    GroupSettings,
    PartitionSettings,
)
from hypervisor.scheduler.work import Notes, VpWork
from hypervisor.trace import Layer

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.partition import Partition
    from hypervisor.scheduler.kernel import CpuKernel, Entry, Group, LpTimes, Vp
    from hypervisor.scheduler.threads import ThreadVps
    from hypervisor.vp import VirtualProcessor

STRETCH = 500_000_000
"""Nanoseconds of slices that are made up at once, so that the thread is not kept for long."""
PATIENCE = 8
"""How often new work lets others go on from an earlier time."""


class _Turn(NamedTuple):
    """For the timer queue."""

    fire: Callable[[], None]


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
        self.groups: dict[int, GroupSettings] = {}
        self._kernel: CpuKernel | None = None
        """Made by the first work, and nodes by the first work in them: who never works costs nothing."""
        self._notes = Notes()
        self._group_nodes: dict[int, Group] = {}
        self._extras: dict[int, tuple[int, bool]] = {}
        """Period and class of the partitions that differ in them from others, by partition ID."""
        self._works: dict[VirtualProcessor, VpWork] = {}
        self._by_node: dict[Vp, VpWork] = {}
        self._threads: ThreadVps[Vp] | None = None
        self._gated: dict[VirtualProcessor, None] = {}
        """Processors that threads execute."""
        self.lateness = Lateness()
        """Of whoever waits for a moment on this hypervisor."""
        self._turn = _Turn(self._others_had_a_turn)
        self._caught_up: trio.Event | None = None
        hypervisor.trace.on_scheduler = self._trace_wanted
        self._armed = 0
        """When it wants to be woken, in ticks."""
        self._next: VpWork | None = None
        """Whose task wakes by itself then, since its work is what is done next: nobody has to wake it."""
        self._woken: VpWork | None = None
        """Whose task has, and looks whether its work is done."""
        self._told_alone: VpWork | None = None
        """For whom alone time stands."""
        self.wakes = 0
        """How often the timer queue has woken it."""

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
        if not ROOT_GROUP < group_id <= LAST_GROUP:
            raise ValueError(f"group {group_id}: IDs go from 1 to {LAST_GROUP}")
        above = parent_id
        while above != ROOT_GROUP:
            if above == group_id or above not in self.groups:
                raise ValueError(f"group {group_id} cannot be in group {parent_id}")
            above = self.groups[above].parent
        before = self.groups.get(group_id)
        self.groups[group_id] = now = GroupSettings(name, parent_id, shares, cap, reserve, period, processors)
        node = self._group_nodes.get(group_id)
        if node is not None and before is not None and before != now:
            kernel = self._present()
            if before.parent != parent_id:
                kernel.move(node, self._group_node(parent_id))
            kernel.change(node, shares=shares, cap=cap, reserve=reserve, period=period, processors=processors)
            self._settle()
        self._review_threads()

    def remove_group(self, group_id: int) -> None:
        """Take away a group. Raises `ValueError` while something is in it, `KeyError` where there is none."""
        if self.members(group_id) or any(group.parent == group_id for group in self.groups.values()):
            raise ValueError(f"group {group_id} is not empty")
        del self.groups[group_id]
        node = self._group_nodes.pop(group_id, None)
        if node is not None:
            self._present().remove(node)
            self._settle()
        self._review_threads()

    def members(self, group_id: int) -> list[Partition]:
        """Partitions that are in a group by their property; not those in groups inside it."""
        partitions = self._hypervisor.partitions.values()
        return [partition for partition in partitions if partition.properties[Property.CPU_GROUP_ID] == group_id]

    def has_processors(self, group_id: int) -> bool:
        """Whether there is a logical processor for who is in a group, or in the machine (0): others may have all."""
        while group_id != ROOT_GROUP:
            group = self.groups[group_id]
            if group.processors is not None:
                return True
            group_id = group.parent
        taken = {lp for group in self.groups.values() for lp in group.processors or ()}
        return len(taken) < self._hypervisor.logical_processors

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
        wanted = {
            Property.CPU_GROUP_ID: group_id,
            Property.CPU_CAP: cap,
            Property.CPU_RESERVE: reserve,
            Property.CPU_WEIGHT: shares,
        }
        partition.check_cpu(wanted)
        partition.properties.update(wanted)
        if period == DEFAULT_PERIOD and not batch:
            self._extras.pop(partition_id, None)
        else:
            self._extras[partition_id] = period, batch
        self.partition_changed(partition)

    def settings(self, partition: Partition) -> PartitionSettings:
        """What holds for a partition now."""
        told = partition.properties
        period, batch = self._extras.get(partition.id, (DEFAULT_PERIOD, False))
        return PartitionSettings(
            *(told[Property.CPU_GROUP_ID], told[Property.CPU_WEIGHT], told[Property.CPU_CAP]),
            *(told[Property.CPU_RESERVE], period, batch),
        )

    def prepare(self) -> None:
        """Load what the first work needs, before anybody's time counts: somebody has asked for control."""
        import hypervisor.scheduler.kernel  # noqa: F401

    def partition_changed(self, partition: Partition) -> None:
        """Its properties have changed, or how many processors it has."""
        lps = self._hypervisor.logical_processors
        if partition.properties[Property.CPU_RESERVE] and len(partition.vps) > lps:
            # They can never all run at once, so Hyper-V gives no such guarantee either.
            partition.properties[Property.CPU_RESERVE] = 0
            words = f"{len(partition.vps)} virtual processors on {lps} logical ones: their reserve is set to zero"
            self._hypervisor.trace.warn(Layer.STATE, "cpu_reserve_void", partition.id, words)
        works = [work for vp in partition.vps.values() if (work := self._works.get(vp)) is not None]
        if works:
            kernel, now = self._present(), self.settings(partition)
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
            self._settle()
        self._review_threads()

    def partition_gone(self, partition: Partition) -> None:
        """It has been deleted."""
        self._extras.pop(partition.id, None)

    def forget(self, vp: VirtualProcessor) -> None:
        """The processor has been deleted; a thread may still execute it, and is told nothing any more."""
        work = self._works.pop(vp, None)
        self._gated.pop(vp, None)
        if work is not None:
            self._disown(work)
            self._present()
            self._settle()
            kernel = self._running_kernel()
            undone = kernel.stop(work.node)
            if work.ticks:
                self._ran(work, work.ticks * NS_PER_TICK - undone)
            if self._threads is not None:
                self._threads.forget(work.node)
            kernel.remove(work.node)
            del self._by_node[work.node]
            self._settle()

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
                kernel = await self._in_time(work)
                if self._works.get(vp) is not work:
                    raise VpStopped("this processor is no more")
                until_tick = vp.unhalted.left
                piece = ticks if until_tick is None else min(ticks, until_tick)
                await self._do(kernel, work, piece)
                ticks -= piece
        finally:
            work.owner = work.waiting.popleft() if work.waiting else None
            if work.owner is not None:
                trio.lowlevel.reschedule(work.owner)

    async def _do(self, kernel: CpuKernel, work: VpWork, ticks: int) -> None:
        work.ticks = ticks
        work.vp.busy = lambda: self._progress(work)
        if self._told_alone is work:
            self._go_on()
        kernel.work(work.node, ticks * NS_PER_TICK)
        work.parked = trio.lowlevel.current_task()
        self._settle(work)
        scope = work.alarm

        def cancelled(_: object) -> trio.lowlevel.Abort:
            work.parked = None  # whatever happens now, the task goes on because it is cancelled
            if scope is None or trio.current_time() < scope.deadline:
                self._give_up(work)
            return trio.lowlevel.Abort.SUCCEEDED

        if scope is not None:
            try:
                with scope:
                    await trio.lowlevel.wait_task_rescheduled(cancelled)
            except trio.Cancelled:
                self._give_up(work)
                raise
            finally:
                work.alarm = None
            if work.ticks:
                self._disown(work)
                self._woken = work
                self.fire()
                self._woken = None
            if not work.ticks:
                return
            # Not yet: what else there is has changed meanwhile.
            scope, work.parked = None, trio.lowlevel.current_task()
            self._arm()
        await trio.lowlevel.wait_task_rescheduled(cancelled)

    def _disown(self, work: VpWork) -> None:
        """Its task does not wake for the scheduler, or not any more."""
        if self._next is work:
            self._next = None
            if work.alarm is not None:
                work.alarm.deadline = math.inf

    def _give_up(self, work: VpWork) -> None:
        self._disown(work)
        now = self._present()
        if work.ticks:
            undone = now.stop(work.node)
            self._ran(work, work.ticks * NS_PER_TICK - undone)
            self._settle()

    def _progress(self, work: VpWork) -> int:
        """100 ns units of the work under way that are done."""
        kernel = self._present()
        self._settle()
        return (kernel.times(work.node).run - work.base) // NS_PER_TICK if work.ticks else 0

    def _ran(self, work: VpWork, ns: int) -> None:
        work.ticks = 0
        work.base += ns
        whole, work.residue = divmod(ns + work.residue, NS_PER_TICK)
        work.vp.ran(whole)

    def _work_of(self, vp: VirtualProcessor) -> VpWork:
        work = self._works.get(vp)
        if work is not None:
            return work
        partition = vp.partition
        if partition.vps.get(vp.index) is not vp:
            raise VpStopped("this processor is no more")
        kernel, settings = self._present(), self.settings(partition)
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
        work = self._works[vp] = self._by_node[node] = VpWork(vp, node, kernel.now - vp.born * NS_PER_TICK)
        self._review_threads()
        return work

    def _group_node(self, group_id: int) -> Group:
        kernel = self._running_kernel()
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
        kernel = self._present()
        if self._threads is not None and work.vp in self._gated:
            self._threads.suspend(work.node, suspended)
        elif suspended:
            kernel.suspend(work.node)
        else:
            kernel.resume(work.node)
        self._settle()

    # --- processors that threads execute

    def attach_runner(self, vp: VirtualProcessor, gate: Gate) -> None:
        """A thread executes `vp` from now on. While nothing is controlled the gate is not touched, and nobody looks."""
        from hypervisor.scheduler.threads import ThreadVps

        self._gated[vp] = None
        work = self._work_of(vp)
        if self._threads is None:
            self._threads = self._notes.threads = ThreadVps(self._running_kernel(), lambda: self._present().now)
        self._threads.attach(work.node, gate, free=self._free(vp), suspended=vp.suspended)
        self._review_threads()

    def detach_runner(self, vp: VirtualProcessor) -> None:
        """The thread is about to end; its gate is not called again."""
        work = self._works.get(vp)
        if vp in self._gated and work is not None and self._threads is not None:
            del self._gated[vp]
            self._threads.detach(work.node)
            self._review_threads()

    def _review_threads(self) -> None:
        """Controls have changed, or who shares: which of them may run without being asked."""
        if self._threads is None:
            return
        for vp in self._gated:
            self._threads.control(self._works[vp].node, free=self._free(vp))
        self._decide_timely()
        self._settle()

    def _decide_timely(self) -> None:
        """Whether each slice is wanted at its time, and not when somebody asks."""
        self._notes.timely = self._notes.trace is not None or any(not self._free(vp) for vp in self._gated)

    def _trace_wanted(self, wanted: bool) -> None:
        if wanted == (self._notes.trace is not None):
            return
        if self._kernel is not None:
            self._present()  # what was before is told to nobody
            self._settle()
        self._notes.trace = None
        if wanted:
            from hypervisor.scheduler.events import SchedulerTrace

            trace = self._hypervisor.trace
            self._notes.trace = SchedulerTrace(trace, self._by_node, lambda: self._running_kernel().now)
        self._decide_timely()
        if self._kernel is not None:
            self._arm()

    def _free(self, vp: VirtualProcessor) -> bool:
        """Whether a thread's processor has a logical one for sure, or nobody has asked for anything else."""
        settings = self.settings(vp.partition)
        if settings.cap < WHOLE or settings.batch:
            return False
        above = settings.group
        while above != ROOT_GROUP:
            group = self.groups[above]
            if group.cap is not None or group.processors is not None:
                return False
            above = group.parent
        controlled = bool(self.groups) or any(
            self.settings(work.vp.partition) != UNCONTROLLED for work in self._works.values()
        )
        return not controlled or len(self._works) <= self._hypervisor.logical_processors

    # --- figures

    @property
    def log(self) -> Sequence[Entry]:
        """The kernel's inputs with their times, for `hypervisor.scheduler.replay`; empty if they were not kept."""
        return [] if self._kernel is None else self._kernel.log or []

    def times(self, vp: VirtualProcessor) -> CpuTimes:
        """How a processor has spent its life until now; what it is at included."""
        life = self._hypervisor.clock() - vp.born
        work = self._works.get(vp)
        if work is None:
            return CpuTimes(halted=life * NS_PER_TICK)
        kernel = self._accounts()
        seen = kernel.times(work.node)
        beside = 0 if self._threads is None else self._threads.ran_beside(work.node)
        return CpuTimes(
            *(seen.run + beside, seen.ready, seen.capped, seen.halted + work.halted_before - beside),
            *(seen.dispatches, seen.wait_total, seen.wait_longest),
        )

    @property
    def worked(self) -> bool:
        """Whether anybody has; before that there is nothing to account for."""
        return self._kernel is not None

    def moment(self, vp: VirtualProcessor, now: int) -> int:
        """What the clock, which says `now`, is for who was told late that its work is done, and goes on from then."""
        work, kernel = self._works.get(vp), self._kernel
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
        if self._kernel is None or (group_id != ROOT_GROUP and group_id not in self._group_nodes):
            return CpuTimes()
        kernel = self._accounts()
        return CpuTimes(*kernel.times(self._group_node(group_id)))

    def lp_times(self, lp: int) -> LpTimes:
        """A logical processor's account. Processors that threads execute unasked are on none."""
        return self._accounts().lp_times(lp)

    def run_beside(self, vp: VirtualProcessor) -> int:
        """100 ns units that a processor has run without having been dispatched."""
        work = self._works.get(vp)
        dispatched = 0 if work is None else self._accounts().times(work.node).run // NS_PER_TICK
        return max(0, vp.run_time() - dispatched)

    @property
    def contended(self) -> bool:
        """Whether somebody with work and budget waits for a logical processor: only then do shares mean anything."""
        return self._kernel is not None and self._accounts().contended

    @property
    def contended_for(self) -> int:
        """Nanoseconds in which that was so."""
        return 0 if self._kernel is None else self._accounts().contended_for()

    def inspect(self) -> Branch:
        """What it goes by, and how it keeps up."""
        from hypervisor.scheduler.figures import overview

        return overview(self, len(self._works))

    def inspect_vp(self, vp: VirtualProcessor) -> Branch:
        """How a processor has spent its time."""
        from hypervisor.scheduler.figures import branch

        return branch(self.times(vp))

    def _accounts(self) -> CpuKernel:
        """The kernel, with all that has happened in its accounts."""
        kernel = self._present()
        if self._threads is not None:
            self._threads.settle()
        self._settle()
        return kernel

    # --- time

    def _running_kernel(self) -> CpuKernel:
        kernel = self._kernel
        if kernel is None:
            from hypervisor.scheduler.kernel import CpuKernel  # which a host without work does not load

            kernel = self._kernel = CpuKernel(
                self._hypervisor.logical_processors,
                quantum=self.quantum,
                switch_cost=self.switch_cost,
                log=self.keep_log,
            )
            kernel.listener = self._notes
            kernel.advance(self._hypervisor.clock() * NS_PER_TICK)
        return kernel

    def _present(self) -> CpuKernel:
        """The kernel, at the time at which an input is to count. Never past an end of work that nobody was told of."""
        kernel = self._running_kernel()
        now = self._hypervisor.clock() * NS_PER_TICK
        if self.lateness.stands(kernel.now, now):
            return kernel
        while (to := self.lateness.goes_to(kernel.now, kernel.next_wake(), now)) < now:
            kernel.advance(to)
            if self._notes.done:
                return kernel
        (kernel if self._threads is None else self._threads).advance(now)
        return kernel

    def fire(self) -> None:
        """For the timer queue: work may be done."""
        if self.lateness.turns:
            return  # it is set again when time goes on
        self.wakes += 1
        kernel = self._running_kernel()
        self.lateness.woken((self._hypervisor.clock() - self._armed) * NS_PER_TICK)
        self._present()
        threads = self._threads
        if threads is not None and threads.next_look is not None and kernel.now >= threads.next_look:
            threads.look()
        self._settle()

    def _settle(self, new: VpWork | None = None) -> None:
        """Behind each input: tell whose work is done, and set the alarm. `new` has just begun."""
        kernel, notes = self._running_kernel(), self._notes
        if self._threads is not None:
            self._threads.tell()
        told = 0
        while notes.done:
            work = self._by_node[notes.done.popleft()]
            if work.ticks:
                self._ran(work, work.ticks * NS_PER_TICK)
            work.told_at = kernel.now
            self._disown(work)
            if work.parked is not None:
                trio.lowlevel.reschedule(work.parked)
                work.parked = None
                told += 1
            elif work.alarm is not None or work is self._woken:  # its task wakes by itself, or has
                told += 1
        if told and self._hypervisor.clock() * NS_PER_TICK > kernel.now:
            began = self.lateness.stand()
            self._told_alone = self._woken if began and told == 1 else None
            if began:
                self._hypervisor.timers.next_turn(self._turn)
        self._arm(new)

    def _others_had_a_turn(self) -> None:
        if not self.lateness.turn_over():
            self._hypervisor.timers.next_turn(self._turn)
            return
        self._time_goes_on()
        self._arm()

    def _go_on(self) -> None:
        """Nobody else was told, and who was is back with more to do already: time need not stand for it."""
        if self.lateness.turns:
            self.lateness.turns = 0
            self._hypervisor.timers.no_turn(self._turn)
            self._time_goes_on()

    def _time_goes_on(self) -> None:
        self._told_alone = None
        if self._caught_up is not None:
            self._caught_up.set()
            self._caught_up = None

    def _arm(self, new: VpWork | None = None) -> None:
        """Be woken when there is something to tell: by the timer queue, or by who has just begun `new` and is next."""
        kernel = self._running_kernel()
        if self.lateness.turns:
            return
        wake = kernel.next_time() if self._notes.timely else kernel.next_wake()
        if wake is not None and wake > kernel.now + STRETCH:
            following = kernel.next_time()
            if following is not None and wake > following:
                wake = max(following, kernel.now + STRETCH)
        if self._threads is not None and self._threads.next_look is not None:
            look = self._threads.next_look
            wake = look if wake is None else min(wake, look)
        armed = None if wake is None else -(-wake // NS_PER_TICK)
        if self._next is not None:
            if armed == self._armed:
                return
            self._disown(self._next)
        if armed is not None:
            self._armed = armed
            if new is not None and new.ticks and wake == kernel.now + new.ticks * NS_PER_TICK:
                left = seconds(max(0, armed - self._hypervisor.clock()))
                self._next, new.alarm = new, trio.CancelScope(deadline=trio.current_time() + left)
                armed = None
        self._hypervisor.timers.set(self, armed)

    async def _in_time(self, work: VpWork) -> CpuKernel:
        """While others that were told late go on from an earlier time, new work has to wait: it is of a later one."""
        for _ in range(PATIENCE):
            kernel = self._present()
            now = kernel.now
            if self._notes.done:
                self._settle()
            if not self.lateness.turns:
                return kernel
            if work.told_at == now and work.vp.partition.clock_read * NS_PER_TICK <= now:
                return kernel  # it goes on from when it was told, and has not seen a later time
            if self._caught_up is None:
                self._caught_up = trio.Event()
            await self._caught_up.wait()
        # They are told late again and again, since their work is shorter than it takes to tell them: no more of that.
        kernel = self._running_kernel()
        now = self._hypervisor.clock() * NS_PER_TICK
        if now > kernel.now:
            (kernel if self._threads is None else self._threads).advance(now)
            self._settle()
        return kernel
