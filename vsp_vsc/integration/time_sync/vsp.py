"""The time synchronization VSP: sets the guest's clock, then keeps it right. Root side.

One "set your clock" when the guest has come up and after each pause; samples in between. They are questions with an
answer because Windows ignores others; the answer says nothing of the guest's clock, with one exception: up to version
3.0 it has a field for it, which Linux leaves as it came.

What the host can measure by itself is by how much the partition's reference time, which guests run their clocks by, has
gone another way than the host's date since the guest was told to set its clock: so much a guest that does not look at
samples is wrong. And how long a sample's way there and back took: so much later than sent it was read, at most.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Final

import msgspec
import trio

from hypervisor.inspect import Branch
from hypervisor.trace import Trace
from hypervisor.wire import WireError
from vsp_vsc.integration.component import IntegrationVsp, NoAnswer, PartitionTime
from vsp_vsc.integration.protocol import Component
from vsp_vsc.integration.time_sync.protocol import (
    REFERENCE_VERSION,
    SyncFlags,
    TimeMessage,
    TimeReference,
    describe,
    file_time,
)

PERIOD: Final = 5.0
"""Seconds of the partition's time between samples, and the time to answer one."""


class GuestTime(msgspec.Struct, frozen=True):
    """What the host knows of a guest's clock at a moment; times in 100 ns units."""

    syncs: int = 0
    """How often the guest was told to set its clock, and answered."""
    samples: int = 0
    """Samples that it answered."""
    drift: int | None = None
    """How far the partition's time has gone from the host's date since the last sync; positive: behind it."""
    round_trip: int | None = None
    """Of the last sample."""
    told: int | None = None
    """How far the guest says that its clock was off; only old versions have a field for it."""


class TimeSyncVsp(IntegrationVsp):
    """One VM's time synchronization."""

    component = Component.TIME_SYNC

    def __init__(
        self,
        wall_clock: Callable[[], datetime.datetime],
        time: PartitionTime,
        trace: Trace,
        partition_id: int,
        name: str = "",
    ) -> None:
        super().__init__(time, trace, partition_id, name)
        self._wall_clock = wall_clock
        self._resumed = trio.Event()
        self.time = GuestTime()
        """As of the last answer."""
        self._distance: int | None = None
        """The date less the reference time, as the guest was last told to set its clock by."""

    @property
    def syncs(self) -> int:
        """Of `time`."""
        return self.time.syncs

    @property
    def samples(self) -> int:
        """Of `time`."""
        return self.time.samples

    def inspect(self) -> Branch:
        """The contact, and the guest's clock; microseconds."""
        time = self.time
        seen: dict[str, object] = {"syncs": time.syncs, "samples": time.samples}
        for name, ticks in (("drift", time.drift), ("round_trip", time.round_trip), ("told", time.told)):
            seen[f"{name}_microseconds"] = None if ticks is None else ticks / 10
        return Branch({**super().inspect().children, **seen})

    def sync_soon(self) -> None:
        """The VM's time stood still: have the guest set its clock again."""
        self._resumed.set()

    async def _duty(self) -> None:
        flags = SyncFlags.SYNC
        self.time, self._distance = GuestTime(), None
        while True:
            self._resumed = trio.Event()
            try:
                await self._tell(flags)
                flags = SyncFlags.SAMPLE
            except NoAnswer:
                if not self.ready:
                    return
            await self._time.wait_for(self._resumed, PERIOD)
            if self._resumed.is_set():
                flags = SyncFlags.SYNC

    async def _tell(self, flags: SyncFlags) -> None:
        """One message and its answer. Raises `NoAnswer`."""
        date, reference = file_time(self._wall_clock()), self._time.now()
        if self.agreed >= REFERENCE_VERSION:
            message = TimeReference(date, reference, int(flags)).encode()
        else:
            message = TimeMessage(date, flags=int(flags)).encode()
        answer = await self.ask(message, PERIOD, describe(message))
        round_trip, before = self._time.now() - reference, self.time
        if flags is SyncFlags.SYNC:
            self._distance = date - reference
        self.time = GuestTime(
            before.syncs + (flags is SyncFlags.SYNC),
            before.samples + (flags is SyncFlags.SAMPLE),
            None if self._distance is None else date - reference - self._distance,
            round_trip,
            None if self.agreed >= REFERENCE_VERSION else _told(answer.body, date),
        )


def _told(untrusted: bytes, date: int) -> int | None:
    """What an answer of an old version says: the host's date less the guest's."""
    try:
        theirs = TimeMessage.decode(untrusted).child_time
    except WireError:
        return None
    return date - theirs if theirs else None
