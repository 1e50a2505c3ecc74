"""The time synchronization VSP: sets the guest's clock, then keeps it right. Root side.

One "set your clock" when the guest has come up and after each pause; samples in between. They are questions with an
answer because Windows ignores others; the answer says nothing.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Final

import trio

from hypervisor.trace import Trace
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
        self.syncs = 0
        """How often the guest was told to set its clock, and answered."""
        self.samples = 0
        """Samples that it answered."""

    def sync_soon(self) -> None:
        """The VM's time stood still: have the guest set its clock again."""
        self._resumed.set()

    async def _duty(self) -> None:
        flags = SyncFlags.SYNC
        while True:
            self._resumed = trio.Event()
            try:
                message = self._message(flags)
                await self.ask(message, PERIOD, describe(message))
                if flags is SyncFlags.SYNC:
                    self.syncs += 1
                else:
                    self.samples += 1
                flags = SyncFlags.SAMPLE
            except NoAnswer:
                if not self.ready:
                    return
            await self._time.wait_for(self._resumed, PERIOD)
            if self._resumed.is_set():
                flags = SyncFlags.SYNC

    def _message(self, flags: SyncFlags) -> bytes:
        assert self._link is not None
        now, reference = file_time(self._wall_clock()), self._time.now()
        if self._link.session.version >= REFERENCE_VERSION:
            return TimeReference(now, reference, int(flags)).encode()
        return TimeMessage(now, flags=int(flags)).encode()
