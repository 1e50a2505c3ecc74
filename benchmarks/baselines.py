"""What the ring and the channel are compared with: a Trio memory channel, awaited at both ends. Both sides."""

from __future__ import annotations

import time

import trio

OPERATIONS = 4000


def trio_channel_one_task() -> float:
    """Seconds for one `await send` and one `await receive`, in one task."""

    async def main() -> float:
        send, receive = trio.open_memory_channel[object](64)
        item = object()
        start = time.perf_counter()
        for _ in range(OPERATIONS):
            await send.send(item)
            await receive.receive()
        return (time.perf_counter() - start) / OPERATIONS

    return trio.run(main)


def trio_channel_two_tasks() -> float:
    """Seconds an item from a sending task to a receiving one, with a buffer of 64."""

    async def main() -> float:
        send, receive = trio.open_memory_channel[object](64)
        item = object()

        async def produce() -> None:
            for _ in range(OPERATIONS):
                await send.send(item)

        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            for _ in range(OPERATIONS):
                await receive.receive()
        return (time.perf_counter() - start) / OPERATIONS

    return trio.run(main)
