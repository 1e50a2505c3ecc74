"""A remembered ring: how an interrupt handler wakes one waiting task. Both sides."""

from __future__ import annotations

import trio


class Bell:
    """Rung by synchronous code in the Trio thread, waited for by one task at a time.

    A ring that nobody waits for is kept, once: Trio runs tasks in no particular order, so "the task surely sleeps by
    now" is never true. Costs half of what a new `trio.Event` for each wait would.
    """

    __slots__ = ("_rung", "_waiter")

    def __init__(self) -> None:
        self._rung = False
        self._waiter: trio.lowlevel.Task | None = None

    @property
    def awaited(self) -> bool:
        """Whether a task sleeps here now."""
        return self._waiter is not None

    def ring(self) -> None:
        """Wake the task that waits, or let the next wait return at once."""
        waiter = self._waiter
        if waiter is None:
            self._rung = True
        else:
            self._waiter = None
            trio.lowlevel.reschedule(waiter)

    def clear(self) -> None:
        """Forget a ring: the caller is about to look for what it announced."""
        self._rung = False

    async def wait(self) -> None:
        """Until the bell has rung since the last wait or clear. A checkpoint always. `trio.BusyResourceError`."""
        if self._waiter is not None:
            raise trio.BusyResourceError("another task waits for this bell")
        if self._rung:
            await trio.lowlevel.checkpoint()
            self._rung = False
            return
        self._waiter = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._waiter = None
        return trio.lowlevel.Abort.SUCCEEDED
