"""The one task that waits for the hypervisor's timers, on whichever clock Trio has. Hypervisor.

It sleeps below a cancel scope whose deadline is the earliest of the queue, so a timer that is set, moved or stopped
wakes nobody: only the scope's deadline changes. With nothing armed it sleeps without one, and costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from hypervisor.clock import seconds

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor

BATCH = 64
"""Timers that fire before others get a turn."""


@asynccontextmanager
async def timers_running(hypervisor: Hypervisor) -> AsyncIterator[None]:
    """Timers of every partition fire while this block runs. What the block raises comes out as it was."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drive_timers, hypervisor, name="timers")
            yield
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


async def drive_timers(hypervisor: Hypervisor) -> None:
    """Fire what is due, for ever."""
    queue, clock = hypervisor.timers, hypervisor.clock
    scope = trio.CancelScope()

    def alarm() -> float:
        deadline = queue.deadline()
        return math.inf if deadline is None else trio.current_time() + seconds(max(0, deadline - clock()))

    def earlier() -> None:
        scope.deadline = alarm()

    queue.on_earlier = earlier
    try:
        while True:
            scope = trio.CancelScope(deadline=alarm())
            with scope:
                await trio.sleep_forever()
            while queue.fire_due(clock(), BATCH):
                await trio.lowlevel.checkpoint()
    finally:
        queue.on_earlier = None
