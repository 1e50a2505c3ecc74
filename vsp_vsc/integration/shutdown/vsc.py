"""The shutdown VSC: tells the guest's kernel that the host wants it to go down. Child side."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from vmbus.channel import Channel
from vmbus.client.platform import GuestPlatform
from vsp_vsc.integration.protocol import Component, Status, Version
from vsp_vsc.integration.responder import Reply, Responder, responding
from vsp_vsc.integration.shutdown.protocol import KNOWN_FLAGS, ShutdownFlags, ShutdownRequest, decode_text

OnRequest = Callable[[ShutdownFlags, str], bool]
"""Hears what the host wants and the text that came with it; says whether it will be done."""


class ShutdownDriver:
    """Passes requests on. Without somebody who hears them, they are refused."""

    def __init__(self) -> None:
        self.on_request: OnRequest | None = None

    def answer(self, untrusted: bytes, version: Version) -> Reply:
        """One request. Raises `WireError`."""
        request = ShutdownRequest.decode(untrusted)
        willing = (
            self.on_request is not None
            and not request.flags & ~KNOWN_FLAGS
            and self.on_request(ShutdownFlags(request.flags), decode_text(request.text))
        )
        return Reply(untrusted, Status.SUCCESS if willing else Status.FAIL)


@asynccontextmanager
async def open_shutdown(channel: Channel, platform: GuestPlatform) -> AsyncIterator[ShutdownDriver]:
    """Listen until the block ends."""
    driver = ShutdownDriver()
    async with responding(channel, Responder(Component.SHUTDOWN, driver.answer)):
        yield driver
