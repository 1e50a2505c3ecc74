"""A keyboard or a mouse and its guest in plain memory: the real VSP, real channels, no hypervisor between them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import attrs
import trio

from hypervisor.memory import GuestMemory
from hypervisor.trace import Trace, TraceEvent
from hypervisor.wire import WireError
from tests.doubles.storage import channel_pair, opened_channel
from vmbus.channel import Channel
from vmbus.ring import Packet, PacketType

RING_BYTES = 8192
CHANNEL_ID = 5
PATIENCE_SECONDS = 1000
V = TypeVar("V")


@attrs.define(eq=False)
class Served(Generic[V]):
    """A VSP that serves one end of a channel; the other end is the test's."""

    vsp: V
    host_end: Channel
    guest_end: Channel
    scope: trio.CancelScope
    events: list[TraceEvent]
    stopped: list[WireError] = attrs.field(factory=list)
    ended: trio.Event = attrs.field(factory=trio.Event)

    @property
    def platform(self) -> Any:
        """Drivers of these devices need none."""
        return None

    async def say(self, payload: bytes) -> None:
        """An in-band packet of the guest's."""
        await self.guest_end.send(Packet(PacketType.INBAND, 0, 0, 0, payload))

    async def hear(self) -> bytes:
        """The host's next payload, padded as the ring has it."""
        return (await self.guest_end.receive()).payload

    def heard(self) -> list[bytes]:
        """What has come and was not looked at."""
        return [packet.payload for packet in self.guest_end.try_receive_batch(1 << 16)]


@asynccontextmanager
async def serving(
    make: Callable[[Trace, int], V], *, ring_bytes: int = RING_BYTES, restored: bytes | None = None
) -> AsyncIterator[Served[V]]:
    """Run a device's VSP as the bus would, until the body ends."""
    events: list[TraceEvent] = []
    trace = Trace(lambda: 0)
    trace.add_sink(events.append)
    vsp: Any = make(trace, 7)
    served = _served(vsp, ring_bytes, events)
    opened = opened_channel(GuestMemory(), CHANNEL_ID)
    if restored is not None:
        opened.restored = vsp.load(restored)

    async def serve() -> None:
        try:
            with served.scope:
                await vsp.serve(served.host_end, opened)
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


def _served(vsp: Any, ring_bytes: int, events: list[TraceEvent]) -> Served[Any]:
    """A new channel for it."""
    host_end, guest_end = channel_pair(ring_bytes)
    return Served(vsp, host_end, guest_end, trio.CancelScope(), events)
