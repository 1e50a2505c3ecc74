"""A look at everything in a host: how long it takes, and for how long it keeps others from running. Both sides."""

from __future__ import annotations

import statistics
import time
from typing import Final

import trio

import partitions
from partitions.inspect import host_tree, write_out

LOOKS: Final = 5


async def look_at(host: partitions.Host) -> dict[str, float]:
    """Medians over some looks at full depth, as JSON as the control socket sends it.

    The stall is what another task that is always ready waits at most. It is measured in processor time of the thread:
    what the machine's other users take is not the walk's.
    """
    took: list[float] = []
    stalls: list[float] = []
    for _ in range(LOOKS):
        longest = 0.0
        size = 0

        async def send(text: str) -> None:
            nonlocal size
            size += len(text)

        async def wait_in_between() -> None:
            nonlocal longest
            last = time.thread_time()
            while True:
                await trio.lowlevel.checkpoint()
                now = time.thread_time()
                longest = max(longest, now - last)
                last = now

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_in_between)
            await trio.lowlevel.checkpoint()
            begin = time.perf_counter()
            await write_out(host_tree(host), "", depth=None, form="json", send=send)
            took.append(time.perf_counter() - begin)
            nursery.cancel_scope.cancel()
        stalls.append(longest)
    return {"ms": statistics.median(took) * 1e3, "longest_stall_ms": statistics.median(stalls) * 1e3}
