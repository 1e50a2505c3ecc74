"""The scheduler's time: when the kernel goes on, who is told that work is done, and when to look again. Hypervisor.

It has no task. What it waits for is one entry of the hypervisor's timer queue, and that is the next moment at which
some work ends, not the next slice; who has just begun the work that ends next wakes by itself. With nobody looking,
slices are made up when somebody asks or when work ends, each with its own time. So 64 processors that share 8 for an
hour cost their dispatches, and a wake-up now and then.

Real clocks wake late. Who is told late that its work is done, and goes on working at once, goes on from when it was
done, and its clock says so (`lateness`). So the schedule of guests that compute is the same on either clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import trio

from hypervisor.clock import NS_PER_TICK, seconds
from hypervisor.scheduler.lateness import Lateness
from hypervisor.scheduler.work import Notes, VpWork

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.scheduler.kernel import CpuKernel, Vp
    from hypervisor.scheduler.threads import ThreadVps

STRETCH = 500_000_000
"""Nanoseconds of slices that are made up at once, so that the thread is not kept for long."""
PATIENCE = 8
"""How often new work lets others go on from an earlier time."""


class _Turn(NamedTuple):
    """For the timer queue."""

    fire: Callable[[], None]


class Timekeeper:
    """One hypervisor's. Each input of the kernel comes after `present` and before `settle`."""

    def __init__(self, hypervisor: Hypervisor, make: Callable[[], CpuKernel]) -> None:
        self._hypervisor = hypervisor
        self._make = make
        self.kernel: CpuKernel | None = None
        """Made by the first work: who never works costs nothing."""
        self.notes = Notes()
        self.works: dict[Vp, VpWork] = {}
        """Whose the kernel's nodes are."""
        self.threads: ThreadVps[Vp] | None = None
        """As soon as a thread executes a processor."""
        self.lateness = Lateness()
        """Of whoever waits for a moment on this hypervisor."""
        self._turn = _Turn(self._others_had_a_turn)
        self._caught_up: trio.Event | None = None
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

    # --- inputs

    def running_kernel(self) -> CpuKernel:
        """The kernel, at whatever time it is."""
        kernel = self.kernel
        if kernel is None:
            kernel = self.kernel = self._make()
            kernel.listener = self.notes
            kernel.advance(self._hypervisor.clock() * NS_PER_TICK)
        return kernel

    def present(self) -> CpuKernel:
        """The kernel, at the time at which an input is to count. Never past an end of work that nobody was told of."""
        kernel = self.running_kernel()
        now = self._hypervisor.clock() * NS_PER_TICK
        if self.lateness.stands(kernel.now, now):
            return kernel
        while (to := self.lateness.goes_to(kernel.now, kernel.next_wake(), now)) < now:
            kernel.advance(to)
            if self.notes.done:
                return kernel
        (kernel if self.threads is None else self.threads).advance(now)
        return kernel

    def accounts(self) -> CpuKernel:
        """The kernel, with all that has happened in its accounts."""
        kernel = self.present()
        if self.threads is not None:
            self.threads.settle()
        self.settle()
        return kernel

    def settle(self, new: VpWork | None = None) -> None:
        """Behind each input: tell whose work is done, and set the alarm. `new` has just begun."""
        kernel, notes = self.running_kernel(), self.notes
        if self.threads is not None:
            self.threads.tell()
        told = 0
        while notes.done:
            work = self.works[notes.done.popleft()]
            if work.ticks:
                work.ran(work.ticks * NS_PER_TICK)
            work.told_at = kernel.now
            self.disown(work)
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
        self.arm(new)

    # --- work

    async def do(self, kernel: CpuKernel, work: VpWork, ticks: int) -> None:
        """Have a processor that has nothing to do work so many ticks, and wait. Cancelled, it has worked until then."""
        work.ticks = ticks
        work.vp.busy = lambda: self._progress(work)
        if self._told_alone is work:
            self._go_on()
        kernel.work(work.node, ticks * NS_PER_TICK)
        work.parked = trio.lowlevel.current_task()
        self.settle(work)
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
                self.disown(work)
                self._woken = work
                self.fire()
                self._woken = None
            if not work.ticks:
                return
            # Not yet: what else there is has changed meanwhile.
            scope, work.parked = None, trio.lowlevel.current_task()
            self.arm()
        await trio.lowlevel.wait_task_rescheduled(cancelled)

    def disown(self, work: VpWork) -> None:
        """Its task does not wake for the scheduler, or not any more."""
        if self._next is work:
            self._next = None
            if work.alarm is not None:
                work.alarm.deadline = math.inf

    def _give_up(self, work: VpWork) -> None:
        self.disown(work)
        now = self.present()
        if work.ticks:
            undone = now.stop(work.node)
            work.ran(work.ticks * NS_PER_TICK - undone)
            self.settle()

    def _progress(self, work: VpWork) -> int:
        """100 ns units of the work under way that are done."""
        kernel = self.present()
        self.settle()
        return (kernel.times(work.node).run - work.base) // NS_PER_TICK if work.ticks else 0

    async def in_time(self, work: VpWork) -> CpuKernel:
        """While others that were told late go on from an earlier time, new work has to wait: it is of a later one."""
        for _ in range(PATIENCE):
            kernel = self.present()
            now = kernel.now
            if self.notes.done:
                self.settle()
            if not self.lateness.turns:
                return kernel
            if work.told_at == now and work.vp.partition.clock_read * NS_PER_TICK <= now:
                return kernel  # it goes on from when it was told, and has not seen a later time
            if self._caught_up is None:
                self._caught_up = trio.Event()
            await self._caught_up.wait()
        # They are told late again and again, since their work is shorter than it takes to tell them: no more of that.
        kernel = self.running_kernel()
        now = self._hypervisor.clock() * NS_PER_TICK
        if now > kernel.now:
            (kernel if self.threads is None else self.threads).advance(now)
            self.settle()
        return kernel

    # --- waking

    def fire(self) -> None:
        """For the timer queue: work may be done."""
        if self.lateness.turns:
            return  # it is set again when time goes on
        self.wakes += 1
        kernel = self.running_kernel()
        self.lateness.woken((self._hypervisor.clock() - self._armed) * NS_PER_TICK)
        self.present()
        threads = self.threads
        if threads is not None and threads.next_look is not None and kernel.now >= threads.next_look:
            threads.look()
        self.settle()

    def arm(self, new: VpWork | None = None) -> None:
        """Be woken when there is something to tell: by the timer queue, or by who has just begun `new` and is next."""
        kernel = self.running_kernel()
        if self.lateness.turns:
            return
        wake = kernel.next_time() if self.notes.timely else kernel.next_wake()
        if wake is not None and wake > kernel.now + STRETCH:
            following = kernel.next_time()
            if following is not None and wake > following:
                wake = max(following, kernel.now + STRETCH)
        if self.threads is not None and self.threads.next_look is not None:
            look = self.threads.next_look
            wake = look if wake is None else min(wake, look)
        armed = None if wake is None else -(-wake // NS_PER_TICK)
        if self._next is not None:
            if armed == self._armed:
                return
            self.disown(self._next)
        if armed is not None:
            self._armed = armed
            if new is not None and new.ticks and wake == kernel.now + new.ticks * NS_PER_TICK:
                left = seconds(max(0, armed - self._hypervisor.clock()))
                self._next, new.alarm = new, trio.CancelScope(deadline=trio.current_time() + left)
                armed = None
        self._hypervisor.timers.set(self, armed)

    def _others_had_a_turn(self) -> None:
        if not self.lateness.turn_over():
            self._hypervisor.timers.next_turn(self._turn)
            return
        self._time_goes_on()
        self.arm()

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
