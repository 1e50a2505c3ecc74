"""Names a cooperative guest that keeps the thread to itself. Hypervisor.

The `task` backend cannot preempt. A guest's task that runs for more than a second without letting go stops every other
guest and the root, so the one thing to do is to say who it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from hypervisor.trace import Layer, Trace

LIMIT = 1.0
"""Seconds of one step of a guest's task."""


class Watchdog(trio.abc.Instrument):
    """Watches the steps of all tasks of one Trio run; costs one reading of the clock a step.

    It reads the clock that the run stands on without the detours of `Hypervisor.clock`: every step of every task pays.
    """

    def __init__(self) -> None:
        self._clock = trio.lowlevel.current_clock().current_time
        self._since = self._clock()
        self.guests: dict[trio.lowlevel.Task, tuple[Trace, int]] = {}
        """First task of each guest, whom to tell, and its partition ID."""

    def after_io_wait(self, timeout: float) -> None:
        """Trio has slept; the next step begins now."""
        self._since = self._clock()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Steps follow each other, so one reading ends this one and begins the next."""
        now = self._clock()
        spent = now - self._since
        self._since = now
        if spent > LIMIT:
            self._report(task, spent)

    def _report(self, task: trio.lowlevel.Task, spent: float) -> None:
        """Blame the guest that the task belongs to, if it is a guest's."""
        while task not in self.guests:
            nursery = task.parent_nursery
            if nursery is None:
                return
            task = nursery.parent_task
        words = f"the guest kept the thread for {spent:.1f} s"
        trace, partition_id = self.guests[task]
        trace.warn(Layer.STATE, "guest_hogs_thread", partition_id, words, seconds=spent)


_current: trio.lowlevel.RunVar[Watchdog | None] = trio.lowlevel.RunVar("partita_watchdog", None)


@contextmanager
def watching(trace: Trace, partition_id: int) -> Iterator[None]:
    """Watch the calling task and all below it. The first guest of a run brings the instrument, the last takes it."""
    watchdog = _current.get()
    if watchdog is None:
        watchdog = Watchdog()
        trio.lowlevel.add_instrument(watchdog)
        _current.set(watchdog)
    task = trio.lowlevel.current_task()
    watchdog.guests[task] = trace, partition_id
    try:
        yield
    finally:
        watchdog.after_task_step(task)  # the step that ends the guest counts too
        del watchdog.guests[task]
        if not watchdog.guests:
            trio.lowlevel.remove_instrument(watchdog)
            _current.set(None)
