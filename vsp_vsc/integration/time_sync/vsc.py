"""The time synchronization VSC: what the date is, by the host. Child side.

A model guest has no clock of its own but the partition's, so there is nothing to set: it keeps the distance between the
two, and adds it when somebody asks for the date.
"""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from hypervisor.wire import BadValue
from vmbus.channel import Channel
from vmbus.client.platform import GuestPlatform
from vsp_vsc.integration.protocol import Component, Version
from vsp_vsc.integration.responder import Reply, Responder, responding
from vsp_vsc.integration.time_sync.protocol import (
    REFERENCE_VERSION,
    SyncFlags,
    TimeMessage,
    TimeReference,
    moment_of,
)


class TimeSyncDriver:
    """The guest's idea of the date."""

    def __init__(self, platform: GuestPlatform) -> None:
        self._platform = platform
        self._distance: int | None = None
        """The date less the reference time, in 100 ns units."""
        self.drift = 0
        """By how much the last sample differed from our date, in 100 ns units."""
        self.syncs = 0
        self.samples = 0
        self.on_told: Callable[[], None] | None = None
        """Called after each message."""

    def now(self) -> datetime.datetime | None:
        """The date; None while the host has told none, or one that no calendar has."""
        if self._distance is None:
            return None
        try:
            return moment_of(self._platform.reference_time() + self._distance)
        except OverflowError:
            return None  # a sound date at a reference time that cannot be, or the last year is over

    def answer(self, untrusted: bytes, version: Version) -> Reply:
        """One message. Raises `WireError`."""
        if version >= REFERENCE_VERSION:
            told = TimeReference.decode(untrusted)
            parent, reference, flags = told.parent_time, told.reference_time, told.flags
        else:
            message = TimeMessage.decode(untrusted)
            parent, reference, flags = message.parent_time, self._platform.reference_time(), message.flags
        try:
            moment_of(parent)
        except OverflowError:
            raise BadValue(f"a date of {parent} units of 100 ns") from None
        distance, before = parent - reference, self._distance
        if before is not None:
            self.drift = distance - before
        if flags & SyncFlags.SYNC:
            self._distance = distance
            self.syncs += 1
        elif flags & SyncFlags.SAMPLE:
            self.samples += 1
        if self.on_told is not None:
            self.on_told()
        if version >= REFERENCE_VERSION:
            return Reply(untrusted)
        ours = 0 if before is None else max(0, before + reference)  # our clock as it was when the question came
        return Reply(TimeMessage(parent, ours, message.round_trip, flags).encode())


@asynccontextmanager
async def open_time_sync(channel: Channel, platform: GuestPlatform) -> AsyncIterator[TimeSyncDriver]:
    """Listen until the block ends."""
    driver = TimeSyncDriver(platform)
    async with responding(channel, Responder(Component.TIME_SYNC, driver.answer)):
        yield driver
