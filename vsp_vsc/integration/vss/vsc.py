"""The volume snapshot VSC: tells a guest's programs to hold still while the host copies its disks. Child side.

The kernel itself keeps nothing back: a write has reached the disk when it returns. What a program has in its own memory
it writes out in `on_freeze`, and then writes no more until `on_thaw`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from vmbus.channel import Channel
from vmbus.client.platform import GuestPlatform
from vsp_vsc.integration.protocol import Component, Status, Version
from vsp_vsc.integration.responder import Reply, Responder, responding
from vsp_vsc.integration.vss.protocol import NO_AUTO_RECOVERY, VssFlags, VssHeader, VssOperation

OnFreeze = Callable[[], Awaitable[bool | None]]
"""Writes out what there is; False refuses."""
OnThaw = Callable[[], Awaitable[None]]


class VssDriver:
    """What the host wants of this guest's disks."""

    def __init__(self) -> None:
        self.on_freeze: OnFreeze | None = None
        self.on_thaw: OnThaw | None = None
        self.frozen = False
        self.freezes = 0

    async def answer(self, untrusted: bytes, version: Version) -> Reply:
        """One question. Raises `WireError`."""
        match VssHeader.decode(untrusted).operation:
            case VssOperation.HOT_BACKUP:
                VssFlags.decode(untrusted, VssHeader.SIZE)
                ready = VssHeader(VssOperation.HOT_BACKUP).encode() + VssFlags(NO_AUTO_RECOVERY).encode()
                return Reply(ready)
            case VssOperation.FREEZE:
                if self.frozen or (self.on_freeze is not None and await self.on_freeze() is False):
                    return Reply(untrusted, Status.FAIL)
                self.frozen = True
                self.freezes += 1
            case VssOperation.THAW:
                # Asked of one that is not frozen, after a freeze that nobody waited for: that is no mistake.
                if self.frozen and self.on_thaw is not None:
                    await self.on_thaw()
                self.frozen = False
            case VssOperation.GET_DM_INFO:
                pass  # no disk that the host cannot copy
            case _:
                return Reply(untrusted, Status.NOT_SUPPORTED)
        return Reply(untrusted)


@asynccontextmanager
async def open_vss(channel: Channel, platform: GuestPlatform) -> AsyncIterator[VssDriver]:
    """Answer until the block ends."""
    driver = VssDriver()
    async with responding(channel, Responder(Component.VSS, driver.answer)):
        yield driver
