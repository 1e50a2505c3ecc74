"""An integration component and its guest in plain memory: the real VSP, real channels, no hypervisor between them."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from hypervisor.clock import TICKS_PER_SECOND
from hypervisor.memory import GuestMemory
from hypervisor.trace import Trace, TraceEvent
from hypervisor.wire import WireError
from tests.doubles.storage import channel_pair, opened_channel
from vmbus.channel import Channel
from vmbus.pipe import frame, unframe
from vsp_vsc.integration.component import IntegrationVsp, PartitionTime
from vsp_vsc.integration.protocol import RING_BYTES, Message, decode_message

NOW = datetime.datetime(2026, 11, 23, 12, 0, tzinfo=datetime.UTC)
PATIENCE_SECONDS = 1000


class GuestClock:
    """A partition's time by Trio's clock, with a switch."""

    def __init__(self) -> None:
        self._began = trio.current_time()
        self._stopped: int | None = None
        self._lost = 0

    def __call__(self) -> int:
        return self._real() - self._lost if self._stopped is None else self._stopped

    def pause(self) -> None:
        self._stopped = self()

    def resume(self) -> None:
        assert self._stopped is not None
        self._lost = self._real() - self._stopped
        self._stopped = None

    def _real(self) -> int:
        return round((trio.current_time() - self._began) * TICKS_PER_SECOND)


@attrs.define(eq=False)
class Served:
    """A VSP that serves one end of a channel; the other end is the test's."""

    vsp: Any
    clock: GuestClock
    host_end: Channel
    guest_end: Channel
    scope: trio.CancelScope
    events: list[TraceEvent]
    stopped: list[WireError] = attrs.field(factory=list)
    ended: trio.Event = attrs.field(factory=trio.Event)

    async def hear(self) -> Message:
        """The host's next message."""
        return decode_message(unframe(await self.guest_end.receive()))

    async def say(self, message: bytes) -> None:
        """A message of the guest's."""
        await self.guest_end.send(frame(message))

    def reference_time(self) -> int:
        """What drivers need of a platform."""
        return self.clock()


@asynccontextmanager
async def serving(
    make: Callable[[PartitionTime, Trace, int], IntegrationVsp], *, ring_bytes: int = RING_BYTES
) -> AsyncIterator[Served]:
    """Run a component's VSP as the bus would, until the body ends."""
    events: list[TraceEvent] = []
    trace = Trace(lambda: 0)
    trace.add_sink(events.append)
    clock = GuestClock()
    host_end, guest_end = channel_pair(ring_bytes)
    vsp = make(PartitionTime(clock), trace, 7)
    served = Served(vsp, clock, host_end, guest_end, trio.CancelScope(), events)

    async def serve() -> None:
        try:
            with served.scope:
                await vsp.serve(host_end, opened_channel(GuestMemory()))
        except WireError as fault:
            served.stopped.append(fault)
        finally:
            served.ended.set()

    # Whoever waits for what never comes fails, and does not hang.
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield served
            nursery.cancel_scope.cancel()
