"""Waiting for no longer than so long by the guest's clock, which stands still while the VM is paused. Child side."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from vmbus.client.platform import GuestPlatform


async def within(platform: GuestPlatform, seconds: float, wait: Callable[[], Awaitable[object]]) -> None:
    """Wait for something, but not longer. Whether it came is the caller's to look."""
    async with trio.open_nursery() as nursery:

        async def cut_off() -> None:
            await platform.sleep(seconds)
            nursery.cancel_scope.cancel()

        nursery.start_soon(cut_off)
        await wait()
        nursery.cancel_scope.cancel()
