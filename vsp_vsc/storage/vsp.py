"""The storage VSP: a synthetic SCSI controller with disks. Root side.

The session does the work (`session.py`); here is what needs Trio. One task receives: it takes a batch, hands it to the
session, sends all completions with one signal. Commands that wait for the host's storage hold no task; their
completions are gathered and sent once per turn of Trio's loop.

Concurrency. Everything runs in the Trio thread. `_send` is synchronous, so completions never interleave; only when the
guest leaves no room in its ring does a second task wait for it, and then `_send` leaves all to that task. Commands that
are neither answered nor in the ring are bounded: past `MAX_AT_CHANNEL` nothing is received, and the guest's own ring
fills; a batch that was received before may go past it once.
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

from hypervisor.inspect import Branch, Gone, Many, data
from hypervisor.trace import Layer, Trace
from hypervisor.wire import BadValue, Guid, WireError
from vmbus.bell import Bell
from vmbus.channel import Channel
from vmbus.server.offers import Offer
from vsp_vsc.storage.controller import Controller, Unit, address
from vsp_vsc.storage.negotiation import Negotiation
from vsp_vsc.storage.protocol import MAX_AT_CHANNEL, MAX_SUB_CHANNELS, STORAGE_INTERFACE
from vsp_vsc.storage.saved import RestoredSession, decode_session, encode_session
from vsp_vsc.storage.scsi.answer import TASK_ABORTED
from vsp_vsc.storage.session import Counters, StorageSession

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmbus.ring import Packet
    from vmbus.server.opened import OpenedChannel
    from vsp_vsc.storage.scsi.answer import Tag
    from vsp_vsc.storage.scsi.unit import LogicalUnit

CLOSE_SECONDS = 5.0
"""How long a close waits for the host's storage. A job that takes longer keeps its pages alive until it ends."""
LEAVE_SECONDS = 10.0
"""How long a controller that leaves waits for its guest, at most."""
LOOK_SECONDS, SILENT_LOOKS = 0.1, 20
"""How a controller that leaves finds out that its guest is done: nothing new and nothing open, so many times.

Between its last look and its last flush of a disk Linux takes a fifth of a second even when it has nothing else to do.
"""


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
    turned_away: int
    """Commands that found too many others under way at their disk."""
    resets: int
    ended_by_reset: int
    """Commands that were under way then."""


class StorageVsp:
    """A SCSI controller as `vmbus.server` takes it. Disks are given by LUN, 0 to 254, on path 0, target 0."""

    def __init__(
        self,
        disks: Mapping[int, LogicalUnit],
        instance: Guid,
        trace: Trace,
        partition_id: int,
        name: str = "storage",
        *,
        max_sub_channels: int = 0,
    ) -> None:
        """A guest has use for one subchannel less than it has processors; at most `MAX_SUB_CHANNELS`."""
        if not 0 <= max_sub_channels <= MAX_SUB_CHANNELS:
            raise ValueError(f"a controller has 0 to {MAX_SUB_CHANNELS} subchannels, not {max_sub_channels}")
        self._controller = Controller(disks, str(instance))
        self.offer = Offer(STORAGE_INTERFACE, instance, name=name)
        self._trace = trace
        self._partition_id = partition_id
        self._counters = Counters()
        self._stopped = 0
        self._max_sub_channels = max_sub_channels
        self._primary: _Connection | None = None
        self._connections: list[_Connection] = []

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        """Answer the guest until the channel closes. Raises `WireError` where the guest's mistake ends it."""
        restored = opened.restored if isinstance(opened.restored, RestoredSession) else None
        if restored is not None:
            negotiation = restored.negotiation
            if negotiation.is_primary == bool(opened.subchannel_index):  # only a file can say so
                raise BadValue("a saved storage session of another kind of channel")
        elif opened.subchannel_index:
            primary = self._primary
            if primary is None:
                return  # it has ended, and the bus is about to end us
            await primary.ready.wait()
            negotiation = primary.session.negotiation.for_sub_channel()
        else:
            negotiation = Negotiation(self._max_sub_channels)
        connection = _Connection(channel, opened.channel_id)
        connection.session = StorageSession(
            self._controller,
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
        if restored is not None:
            connection.session.outbox += restored.outbox
        if not opened.subchannel_index:
            self._primary = connection
        self._connections.append(connection)
        self._controller.sessions.append(connection.session)
        try:
            await connection.run()
        except WireError as fault:
            self._stopped += 1
            self._trace.warn(Layer.DEVICE, "storage_stopped", self._partition_id, str(fault), channel=opened.channel_id)
            raise
        finally:
            was_primary = self._primary is connection
            if was_primary:
                self._primary = None
            connection.session.abandon_waiting()
            await connection.settle()
            if was_primary:
                self._controller.disconnected()
            self._connections.remove(connection)
            self._controller.sessions.remove(connection.session)

    # --- saved and restored

    def save(self, channel_id: int) -> bytes | None:
        """The session on a channel, or None while a command is under way. Its guest stands still."""
        connection = next((one for one in self._connections if one.channel_id == channel_id), None)
        if connection is None:
            return None
        if connection.at_work:
            connection.session.turn_away_waiting()  # a disk's limit may not let them go for minutes
            return None
        return encode_session(connection.session.negotiation, connection.unsent)

    def load(self, untrusted: bytes) -> RestoredSession:
        """What `serve` goes on with. Raises `WireError`."""
        restored = decode_session(untrusted)
        if restored.negotiation.max_sub_channels > self._max_sub_channels:
            raise BadValue(f"a saved storage session with {restored.negotiation.max_sub_channels} subchannels")
        return restored

    # --- disks that come and go

    def unit(self, lun: int) -> Unit:
        """A disk at its address, for who puts a gate before it. KeyError if there is none."""
        return self._controller.units[address(lun)]

    @property
    def disks(self) -> dict[int, LogicalUnit]:
        """By LUN, as they are now."""
        return self._controller.disks

    def add_disk(self, lun: int, target: LogicalUnit) -> None:
        """A disk comes; the guest is told. ValueError for a LUN that is taken or cannot be."""
        self._controller.add(lun, target)

    async def remove_disk(self, lun: int) -> LogicalUnit:
        """A disk goes at once; the guest is told. KeyError if there is none.

        Returns when what it had under way has ended, in `CLOSE_SECONDS` at the latest.
        """
        unit = self._controller.remove(lun)
        if unit.gate is not None:
            unit.gate.end(_any, TASK_ABORTED)
        if unit.nexus.under_way:
            idle = trio.Event()
            unit.on_idle = idle.set
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_SECONDS):
                await idle.wait()
        unit.nexus.close()
        return unit.target

    async def leave(self) -> None:
        """The controller is about to be taken off the bus: its disks go, and the guest has time to let go of them.

        A rescind comes at once at the guest's end: Linux reads no answer after it and drops what it would have sent,
        and whoever waits for either waits for ever. So all that the guest asks for has its answer before, which from
        now on is that there is no such disk; a guest that hears that its disks have changed looks, and drops them.

        Returns when the guest has had nothing to say for `SILENT_LOOKS`, or after `LEAVE_SECONDS`.
        """
        units = self._controller.remove_all()
        for unit in units:
            if unit.gate is not None:
                unit.gate.end(_any, TASK_ABORTED)
        try:
            with trio.move_on_after(LEAVE_SECONDS):
                await self._silence()
        finally:
            for unit in units:
                unit.nexus.close()

    async def _silence(self) -> None:
        silent = 0
        while self._connections and silent < SILENT_LOOKS:
            before = self._counters.requests
            await trio.sleep(LOOK_SECONDS)
            busy = self._counters.requests != before or any(connection.busy for connection in self._connections)
            silent = 0 if busy else silent + 1

    def disk_changed(self) -> None:
        """A disk has another size or medium, and has told so itself: have the guest look."""
        self._controller.announce()

    def inspect(self) -> Branch:
        """Counters, and the disks by LUN."""
        return Branch(
            {
                "counters": lambda: data(attrs.asdict(self.statistics())),
                "disks": Many({unit.lun: unit for unit in self._controller.units.values()}, int),
            }
        )

    def inspect_channel(self, channel_id: int) -> Branch:
        """The session on it."""
        for connection in self._connections:
            if connection.channel_id == channel_id:
                return connection.session.inspect()
        raise Gone

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
            turned_away=self._counters.turned_away,
            resets=self._controller.resets,
            ended_by_reset=self._counters.reset,
        )


def _any(_tag: Tag) -> bool:
    return True


class _Connection:
    """One session on one channel."""

    session: StorageSession

    def __init__(self, channel: Channel, channel_id: int) -> None:
        self.channel_id = channel_id
        self.ready = trio.Event()
        """Initialization has ended; subchannels wait for it."""
        self._channel = channel
        self._token = trio.lowlevel.current_trio_token()
        self._progress = Bell()
        self._nursery: trio.Nursery | None = None
        self._waiting_for_room = False
        self._sent_before = 0
        """Packets sent before the batch that waits for room."""
        self._taking = False
        """Packets are off the ring that the session has not seen."""
        self._fault: WireError | None = None

    @property
    def at_work(self) -> bool:
        """Whether something that the guest asked for has no answer yet."""
        session = self.session
        return self._taking or session.unanswered > len(session.outbox)

    @property
    def busy(self) -> bool:
        """Whether something is unanswered, or an answer unread."""
        try:
            return self._taking or self.session.unanswered > 0 or self._channel.unread
        except WireError:
            return False  # the guest has spoiled its ring: nothing more will come of it

    @property
    def unsent(self) -> list[Packet]:
        """Answers that are not in the ring."""
        sent = self._channel.statistics().packets_out - self._sent_before if self._waiting_for_room else 0
        return self.session.outbox[sent:]

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
        self._send()  # a restored session has answers that its guest has not heard
        while True:
            packets: Sequence[Packet] = await channel.receive_batch()
            while packets:
                try:
                    packets = session.take(packets)
                finally:
                    self._send()
                self._taking = bool(packets)
                if packets:
                    await trio.lowlevel.checkpoint()
            while session.unanswered >= MAX_AT_CHANNEL:
                await self._progress.wait()
                self._send()  # `send_soon` rings before the answers go, and they count

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
            self._sent_before = self._channel.statistics().packets_out
            self._nursery.start_soon(self._send_rest, name="storage completions wait for room")

    async def _send_rest(self) -> None:
        session = self.session
        try:
            while session.outbox:
                batch = session.outbox[:]
                self._sent_before = self._channel.statistics().packets_out
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
