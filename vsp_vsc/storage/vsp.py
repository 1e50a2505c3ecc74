"""The storage VSP: a synthetic SCSI controller with disks. Root side.

The session does the work (`session.py`); here is what needs Trio. One task receives: it takes a batch, hands it to the
session, sends all completions with one signal. Commands that wait for the host's storage hold no task; their
completions are gathered and sent once per turn of Trio's loop.

Concurrency. Everything runs in the Trio thread. `_send` is synchronous, so completions never interleave; only when the
guest leaves no room in its ring does a second task wait for it, and then `_send` leaves all to that task. Commands that
are neither answered nor in the ring are bounded: past the bound nothing is received, and the guest's own ring fills.
Closing waits, for a bounded time, until backends have let go of the guest's pages: what the guest does with them next
must not be overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs
import trio

from hypervisor.trace import Layer, Trace
from hypervisor.wire import Guid, WireError
from vmbus.bell import Bell
from vmbus.channel import Channel
from vmbus.server.offers import Offer
from vsp_vsc.storage.protocol import STORAGE_INTERFACE
from vsp_vsc.storage.session import Counters, StorageSession, address
from vsp_vsc.storage.target import ScsiTarget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmbus.ring import Packet
    from vmbus.server.opened import OpenedChannel

MAX_IN_FLIGHT = 256
"""Commands of one channel that are under way or whose completions wait for room; a batch may go past it once."""
CLOSE_SECONDS = 5.0
"""How long a close waits for the host's storage. A job that takes longer keeps its pages alive until it ends."""
MAX_LUNS = 255


@attrs.frozen
class StorageStatistics:
    """What a controller has done since it was made."""

    state: str
    """Of the channel that is open, `closed` if none is."""
    version: int
    """Agreed protocol version, 0 if none is."""
    requests: int
    refused: int
    """Requests with a mistake that cost the guest no more than that request; SCSI's own refusals are the targets'."""
    stopped: int
    """Channels that stopped over a guest's mistake."""
    batches: int
    waited: int
    """Commands that were not answered at once."""
    in_flight: int
    """Commands at a backend now."""


class StorageVsp:
    """A SCSI controller as `vmbus.server` takes it. Disks are given by LUN, 0 to 254, on path 0, target 0."""

    def __init__(
        self,
        disks: Mapping[int, ScsiTarget],
        instance: Guid,
        trace: Trace,
        partition_id: int,
        name: str = "storage",
    ) -> None:
        if not all(0 <= lun < MAX_LUNS for lun in disks):
            raise ValueError(f"LUNs are 0 to {MAX_LUNS - 1}, not {sorted(disks)}")
        self.disks = dict(disks)
        self.offer = Offer(STORAGE_INTERFACE, instance, name=name)
        self._by_address = {address(lun): target for lun, target in disks.items()}
        self._trace = trace
        self._partition_id = partition_id
        self._counters = Counters()
        self._stopped = 0
        self._connection: _Connection | None = None

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        """Answer the guest until the channel closes. Raises `WireError` where the guest's mistake ends it."""
        connection = _Connection(channel)
        connection.session = StorageSession(
            self._by_address,
            opened.memory,
            trace=self._trace,
            partition_id=self._partition_id,
            channel_id=opened.channel_id,
            counters=self._counters,
            on_late=connection.send_soon,
        )
        self._connection = connection
        try:
            await connection.run()
        except WireError as fault:
            self._stopped += 1
            self._trace.warn(Layer.DEVICE, "storage_stopped", self._partition_id, str(fault), channel=opened.channel_id)
            raise
        finally:
            await connection.settle()
            if self._connection is connection:
                self._connection = None

    def statistics(self) -> StorageStatistics:
        """Counters, as of now."""
        session = self._connection.session if self._connection is not None else None
        return StorageStatistics(
            state=session.negotiation.state.value if session is not None else "closed",
            version=session.negotiation.version if session is not None else 0,
            requests=self._counters.requests,
            refused=self._counters.refused,
            stopped=self._stopped,
            batches=self._counters.batches,
            waited=self._counters.waited,
            in_flight=session.in_flight if session is not None else 0,
        )


class _Connection:
    """One session on one channel."""

    session: StorageSession

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._token = trio.lowlevel.current_trio_token()
        self._progress = Bell()
        self._nursery: trio.Nursery | None = None
        self._waiting_for_room = False
        self._fault: WireError | None = None

    async def run(self) -> None:
        """Until the channel closes or the guest goes wrong (`WireError`)."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await self._receive()
            except WireError as fault:
                self._fault = self._fault or fault
            except (trio.EndOfChannel, trio.ClosedResourceError, trio.BrokenResourceError):
                pass  # the bus has closed it
            finally:
                self._nursery = None
            nursery.cancel_scope.cancel()
        if self._fault is not None:
            raise self._fault

    async def settle(self) -> None:
        """Wait until no backend holds a view of the guest's memory."""
        session = self.session
        if session.in_flight:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_SECONDS):
                while session.in_flight:
                    await self._progress.wait()

    def send_soon(self) -> None:
        """A backend has finished: send once this turn's others have too."""
        self._progress.ring()
        if self._nursery is not None:
            self._token.run_sync_soon(self._send, idempotent=True)

    async def _receive(self) -> None:
        channel, session = self._channel, self.session
        while True:
            packets: Sequence[Packet] = await channel.receive_batch()
            while packets:
                try:
                    packets = session.take(packets)
                finally:
                    self._send()
                if packets:
                    await trio.lowlevel.checkpoint()
            while session.in_flight + len(session.outbox) >= MAX_IN_FLIGHT:
                await self._progress.wait()

    def _send(self) -> None:
        """Put the completions into the ring; what has no room is left to a task that waits for it."""
        outbox = self.session.outbox
        if not outbox or self._waiting_for_room or self._nursery is None:
            return
        try:
            sent = self._channel.try_send_batch(outbox)
        except WireError as fault:
            self._fault = fault
            self._nursery.cancel_scope.cancel()
            return
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            return  # the receiver hears of it too
        del outbox[:sent]
        if outbox:
            self._waiting_for_room = True
            self._nursery.start_soon(self._send_rest, name="storage completions wait for room")

    async def _send_rest(self) -> None:
        session = self.session
        try:
            while session.outbox:
                batch = session.outbox[:]
                await self._channel.send_batch(batch)
                del session.outbox[: len(batch)]
                self._progress.ring()
        except WireError as fault:
            self._fault = self._fault or fault
            if self._nursery is not None:
                self._nursery.cancel_scope.cancel()
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass
        finally:
            self._waiting_for_room = False
