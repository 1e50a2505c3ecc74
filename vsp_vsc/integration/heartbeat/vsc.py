"""The heartbeat VSC: answers each number with the next. Child side."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from vmbus.channel import Channel
from vmbus.client.platform import GuestPlatform
from vsp_vsc.integration.heartbeat.protocol import SEQUENCE_MASK, ApplicationState, Beat
from vsp_vsc.integration.protocol import Component, Version
from vsp_vsc.integration.responder import Reply, Responder, responding


class HeartbeatDriver:
    """The guest's heart."""

    def __init__(self) -> None:
        self.beats = 0
        """Answered so far."""
        self.application = ApplicationState.UNKNOWN
        """Told to the host with each beat; a guest program may set it."""

    def answer(self, untrusted: bytes, version: Version) -> Reply:
        """One beat. Raises `WireError`."""
        beat = Beat.decode(untrusted)
        self.beats += 1
        return Reply(Beat(beat.sequence + 1 & SEQUENCE_MASK, int(self.application)).encode())


@asynccontextmanager
async def open_heartbeat(channel: Channel, platform: GuestPlatform) -> AsyncIterator[HeartbeatDriver]:
    """Beat until the block ends."""
    driver = HeartbeatDriver()
    async with responding(channel, Responder(Component.HEARTBEAT, driver.answer)):
        yield driver
