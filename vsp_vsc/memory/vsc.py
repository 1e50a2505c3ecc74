"""The dynamic memory VSC: gives pages to the host and takes them back, and reports how many it needs. Child side."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol

import trio

from vmbus.channel import Channel
from vmbus.client.platform import GuestPlatform
from vsp_vsc.memory.guest import BalloonDriver, PageHeap

REPORT_SECONDS: Final = 1.0
"""Of the partition's time between reports."""
_FIRST_REPORT: Final = 0.8
"""Not together with what programs do at whole seconds, nor with what hosts do between."""


class MemoryPlatform(GuestPlatform, Protocol):
    """A kernel with a heap of pages."""

    @property
    def heap(self) -> PageHeap:
        """The kernel's pages."""


@asynccontextmanager
async def open_memory(channel: Channel, platform: MemoryPlatform) -> AsyncIterator[BalloonDriver]:
    """Agree on a version, then do what the host asks until the block ends. Raises `WireError`, `trio.EndOfChannel`."""
    driver = BalloonDriver(platform.heap)

    async def answer() -> None:
        with contextlib.suppress(trio.ClosedResourceError):  # closed at our own end: the driver is being stopped
            while True:
                for packet in await channel.receive_batch():
                    answers = driver.take(packet)
                    if busy := driver.busy():
                        await platform.sleep(busy)
                    await channel.send_batch(answers)

    async def report() -> None:
        with contextlib.suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            await platform.sleep(_FIRST_REPORT)
            while True:
                await channel.send(driver.report())
                await platform.sleep(REPORT_SECONDS)

    try:
        await channel.send(driver.begin())
        while not driver.ready:
            await channel.send_batch(driver.take(await channel.receive()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, name="dynamic memory driver")
            nursery.start_soon(report, name="dynamic memory reports")
            yield driver
            nursery.cancel_scope.cancel()
    finally:
        driver.let_go()
