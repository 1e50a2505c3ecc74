"""Whose turn it is: the order of Trio's tasks in which one guest always comes last. Root side.

To have a guest's part taken by a record of it, everybody else has to run exactly as before. So in each batch of Trio's
scheduler the guest's tasks run after all others, and the others are shuffled among themselves: neither how many tasks
the guest has nor what they do makes a difference to them, but for what crosses the boundary. A moment in a run then has
a name: the time on the virtual clock, and which batch at that time.
"""

from __future__ import annotations

import random
from collections.abc import MutableSequence
from typing import Any

import trio

from hypervisor.clock import TICKS_PER_SECOND


class Turns(random.Random):
    """In the place of Trio's generator (`partitions.determinism`): orders each batch, and counts them."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._firsts: set[trio.lowlevel.Task] = set()
        self._known: dict[trio.lowlevel.Task, bool] = {}
        self.seconds = -1.0
        """When the batch that runs now began, on Trio's clock."""
        self.turn = 0
        """Which batch within the same 100 ns it is: timers that are set for one time may differ by a rounding."""

    @property
    def now(self) -> tuple[int, int]:
        """The time in 100 ns, and the turn: what orders two moments."""
        return round(self.seconds * TICKS_PER_SECOND), self.turn

    def first_of_the_last(self, task: trio.lowlevel.Task) -> None:
        """This task and all below it come last from now on."""
        self._known.clear()
        self._firsts.add(task)

    def last(self, task: trio.lowlevel.Task) -> None:
        """This one too, which has not run yet and has nothing below it."""
        self._known[task] = True

    def is_last(self, task: trio.lowlevel.Task) -> bool:
        """Whether a task is one of those."""
        known = self._known.get(task)
        if known is None:
            above = None if task.parent_nursery is None else task.parent_nursery.parent_task
            known = task in self._firsts or (above is not None and self.is_last(above))
            self._known[task] = known
        return known

    def forget(self, task: trio.lowlevel.Task) -> bool:
        """It has ended; whether it was one that others are below."""
        self._known.pop(task, None)
        if task not in self._firsts:
            return False
        self._firsts.discard(task)
        return True

    def shuffle(self, batch: MutableSequence[Any]) -> None:
        """Called by Trio for each batch, sorted by age; the last of the list runs first."""
        if not batch:
            return
        now = trio.current_time()
        same = round(now * TICKS_PER_SECOND) == round(self.seconds * TICKS_PER_SECOND)
        self.turn = self.turn + 1 if same else 0
        self.seconds = now
        last = [task for task in batch if self.is_last(task)]
        others = [task for task in batch if not self.is_last(task)]
        super().shuffle(others)
        batch[:] = [*last, *others]
