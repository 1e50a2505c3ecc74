"""The storage VSP: a synthetic SCSI controller with disks. Root side.

The session does the work (`session.py`); here is what needs Trio. One task receives: it takes a batch, hands it to the
session, sends all completions with one signal. Commands that wait for the host's storage hold no task; their
completions are gathered and sent once per turn of Trio's loop.

Concurrency. Everything runs in the Trio thread. `_send` is synchronous, so completions never interleave; only when the
guest leaves no room in its ring does a second task wait for it, and then `_send` leaves all to that task. Commands that
are neither answered nor in the ring are bounded: past the bound nothing is received, and the guest's own ring fills.
Subchannels are served like the primary channel, each by a task, session and ring of its own and within the same bounds,
from when the primary is initialized. The bus withdraws them with the primary.

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
from vsp_vsc.storage.negotiation import Negotiation
from vsp_vsc.storage.protocol import MAX_SUB_CHANNELS, STORAGE_INTERFACE
from vsp_vsc.storage.scsi.target import ScsiTarget
from vsp_vsc.storage.session import Counters, StorageSession, address

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
    """Of the primary channel, `closed` if it is not open."""
    channels: int
    """That are served: the primary and its subchannels."""
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
        *,
        max_sub_channels: int = 0,
    ) -> None:
        """A guest has use for one subchannel less than it has processors; at most `MAX_SUB_CHANNELS`."""
        if not all(0 <= lun < MAX_LUNS for lun in disks):
            raise ValueError(f"LUNs are 0 to {MAX_LUNS - 1}, not {sorted(disks)}")
        if not 0 <= max_sub_channels <= MAX_SUB_CHANNELS:
            raise ValueError(f"a controller has 0 to {MAX_SUB_CHANNELS} subchannels, not {max_sub_channels}")
        self.disks = dict(disks)
        self.offer = Offer(STORAGE_INTERFACE, instance, name=name)
        self._by_address = {address(lun): target for lun, target in disks.items()}
        self._trace = trace
        self._partition_id = partition_id
        self._counters = Counters()
        self._stopped = 0
        self._max_sub_channels = max_sub_channels
        self._primary: _Connection | None = None
        self._connections: list[_Connection] = []

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        """Answer the guest until the channel closes. Raises `WireError` where the guest's mistake ends it."""
        if opened.subchannel_index:
            primary = self._primary
            if primary is None:
                return  # it has ended, and the bus is about to end us
            await primary.ready.wait()
            negotiation = primary.session.negotiation.for_sub_channel()
        else:
            negotiation = Negotiation(self._max_sub_channels)
        connection = _Connection(channel)
        connection.session = StorageSession(
            self._by_address,
            opened.memory,
            trace=self._trace,
            partition_id=self._partition_id,
            channel_id=opened.channel_id,
            counters=self._counters,
            on_late=connection.send_soon,
            negotiation=negotiation,
            on_ready=connection.ready.set,
            offer_sub_channels=opened.offer_subchannels,
        )
        if not opened.subchannel_index:
            self._primary = connection
        self._connections.append(connection)
        try:
            await connection.run()
        except WireError as fault:
            self._stopped += 1
            self._trace.warn(Layer.DEVICE, "storage_stopped", self._partition_id, str(fault), channel=opened.channel_id)
            raise
        finally:
            if self._primary is connection:
                self._primary = None
            await connection.settle()
            self._connections.remove(connection)

    def statistics(self) -> StorageStatistics:
        """Counters, as of now."""
        negotiation = self._primary.session.negotiation if self._primary is not None else None
        return StorageStatistics(
            state=negotiation.state.value if negotiation is not None else "closed",
            channels=len(self._connections),
            version=negotiation.version if negotiation is not None else 0,
            requests=self._counters.requests,
            refused=self._counters.refused,
            stopped=self._stopped,
            batches=self._counters.batches,
            waited=self._counters.waited,
            in_flight=sum(connection.session.in_flight for connection in self._connections),
        )


class _Connection:
    """One session on one channel."""

    session: StorageSession

    def __init__(self, channel: Channel) -> None:
        self.ready = trio.Event()
        """Initialization has ended; subchannels wait for it."""
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
