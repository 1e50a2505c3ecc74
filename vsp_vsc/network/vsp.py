"""The network VSP: an adapter of a guest's at a port of a switch. Root side.

The sessions do the work (`session.py`); here is what needs Trio. One task a channel receives: it takes a batch, hands
it to the session, sends all answers with one signal. Frames for the guest come from the switch by `deliver`, in the
middle of whoever sends them, and are in the guest's ring when it returns; no task stands between.

Concurrency. Everything runs in the Trio thread. `send` is synchronous, so packets never interleave; only when the guest
leaves no room in its ring does a second task wait for it, and then all is left to that task: frames wait in the
session's queue, which has an end, and nothing more is received until the guest has taken its answers.

Subchannels share the primary's buffers and settings, and are withdrawn with it by the bus.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import trio

from hypervisor.inspect import Branch, Gone, Node, data
from hypervisor.memory import GpaFault
from hypervisor.trace import Layer, Trace
from hypervisor.wire import BadValue, Guid, WireError
from vmbus.bell import Bell
from vmbus.channel import Channel
from vmbus.server.offers import Offer
from vsp_vsc.network.adapter import AdapterState, Counters
from vsp_vsc.network.negotiation import Negotiation
from vsp_vsc.network.protocol import MAX_SUB_CHANNELS, NETWORK_INTERFACE, version_words
from vsp_vsc.network.saved import RestoredSession, decode_session
from vsp_vsc.network.session import MAX_UNSENT, NetworkSession

if TYPE_CHECKING:
    from vmbus.ring import Packet
    from vmbus.server.opened import OpenedChannel
    from vsp_vsc.network.port import SwitchPort

LINK_SECONDS = 5.0
"""Between pulling out a cable that was only touched and plugging it in again: Linux takes no notice of less."""


@attrs.frozen
class NetworkStatistics:
    """What an adapter has done since it was made."""

    state: str
    """Of the primary channel, `closed` if it is not open."""
    channels: int
    """That are served."""
    version: int
    """Agreed version of NVSP, 0 if none is."""
    stopped: int
    """Channels that stopped over a guest's mistake."""
    sent_frames: int
    """By the guest."""
    sent_bytes: int
    received_frames: int
    received_bytes: int
    dropped: int
    """For the guest, for want of room at it."""
    filtered: int
    refused: int
    """Messages of the guest's with a mistake that cost it no more than that."""


class NetworkVsp:
    """A network adapter as `vmbus.server` takes it, and what sits at its port of the switch."""

    def __init__(
        self,
        port: SwitchPort,
        instance: Guid,
        trace: Trace,
        partition_id: int,
        name: str = "network",
        *,
        max_sub_channels: int = 0,
    ) -> None:
        """A guest has use for one subchannel less than it has processors; at most `MAX_SUB_CHANNELS`."""
        if not 0 <= max_sub_channels <= MAX_SUB_CHANNELS:
            raise ValueError(f"an adapter has 0 to {MAX_SUB_CHANNELS} subchannels, not {max_sub_channels}")
        self.port = port
        self.offer = Offer(NETWORK_INTERFACE, instance, name=name)
        self._trace = trace
        self._partition_id = partition_id
        self._name = name
        self._max_channels = max_sub_channels + 1
        self._counters = Counters()
        self._stopped = 0
        self._state: AdapterState | None = None
        self._connections: dict[int, _Connection] = {}
        """By subchannel, the primary channel as 0."""

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        """Answer the guest until the channel closes. Raises `WireError` where the guest's mistake ends it."""
        index = opened.subchannel_index
        if index:
            state = self._state
            if state is None or index >= state.channels or index in self._connections:
                return  # the primary has ended, and the bus is about to end us
            negotiation = None
        else:
            state = AdapterState(self.port, self._name, self._max_channels, self._counters)
            negotiation = Negotiation(state, opened.memory, opened.gpadls)
        session = NetworkSession(
            state,
            opened.memory,
            trace=self._trace,
            partition_id=self._partition_id,
            channel_id=opened.channel_id,
            negotiation=negotiation,
            offer_sub_channels=None if index else opened.offer_subchannels,
        )
        connection = _Connection(channel, opened.channel_id, session)
        if not index:
            self.port.attach(self)
            self._state = state
            connection.link_told = self.port.link_up
        self._connections[index] = connection
        try:
            if isinstance(opened.restored, RestoredSession):
                connection.restore(opened.restored)
            elif index and len(self._connections) == state.channels and 0 in self._connections:
                self._connections[0].session.send_table(state.channels)
                self._connections[0].send()
            await connection.run()
        except (WireError, GpaFault) as fault:
            self._stopped += 1
            self._trace.warn(Layer.DEVICE, "network_stopped", self._partition_id, str(fault), channel=opened.channel_id)
            raise
        finally:
            del self._connections[index]
            session.end()
            if not index:
                self._state = None
                self.port.detach()
                state.release()

    # --- saved and restored

    def save(self, channel_id: int) -> bytes | None:
        """The session on a channel, or None while something that the guest asked for is not done. It stands still."""
        connection = next((one for one in self._connections.values() if one.channel_id == channel_id), None)
        if connection is None or connection.taking:
            return None
        others = [one for one in self._connections.values() if one is not connection]
        elsewhere = [piece for other in others for piece in other.session.pieces]
        return connection.session.save(elsewhere, connection.unsent, link_told=connection.link_told)

    def load(self, untrusted: bytes) -> RestoredSession:
        """What `serve` goes on with. Raises `WireError`."""
        restored = decode_session(untrusted)
        adapter = restored.saved.adapter
        if adapter is not None and adapter.max_channels > self._max_channels:
            raise BadValue(f"a saved network adapter of {adapter.max_channels} channels")
        return restored

    # --- at the port

    def deliver(self, frames: Sequence[bytes]) -> int:
        """Frames for the guest, from the switch; how many it took. Never blocks."""
        state = self._state
        primary = self._connections.get(0)
        if state is None or primary is None:
            return 0
        spreading = state.spreading
        if spreading is None or len(self._connections) == 1:
            return primary.put(frames)
        shares: dict[int, list[bytes]] = {}
        for frame in frames:
            shares.setdefault(spreading.channel_of(frame), []).append(frame)
        taken = 0
        for index, share in shares.items():
            taken += self._connections.get(index, primary).put(share)
        return taken

    def link_changed(self, up: bool) -> None:
        """The cable was plugged in or pulled out."""
        primary = self._connections.get(0)
        if primary is not None:
            primary.link_changed(up)

    # --- for people

    def inspect(self) -> Branch:
        """Counters, the port, and the adapter as its guest has set it."""
        shown: dict[str, object] = {
            "traffic": self._traffic,
            "counters": lambda: data(attrs.asdict(self._counters)),
            "port": self.port.inspect,
        }
        state = self._state
        if state is not None:
            shown["adapter"] = state.inspect
        return Branch(shown)

    def inspect_channel(self, channel_id: int) -> Branch:
        """The session on it."""
        for connection in self._connections.values():
            if connection.channel_id == channel_id:
                return connection.session.inspect()
        raise Gone

    def _traffic(self) -> Node:
        statistics = self.statistics()
        words = version_words(statistics.version) if statistics.version else "none"
        return data(attrs.asdict(statistics) | {"version": words})

    def statistics(self) -> NetworkStatistics:
        """Counters, as of now."""
        primary = self._connections.get(0)
        negotiation = None if primary is None else primary.session.negotiation
        counters = self._counters
        return NetworkStatistics(
            state="closed" if negotiation is None else negotiation.state.value,
            channels=len(self._connections),
            version=0 if self._state is None else self._state.version,
            stopped=self._stopped,
            sent_frames=counters.sent_frames,
            sent_bytes=counters.sent_bytes,
            received_frames=counters.received_frames,
            received_bytes=counters.received_bytes,
            dropped=counters.dropped,
            filtered=counters.filtered,
            refused=counters.refused,
        )


class _Connection:
    """One session on one channel."""

    def __init__(self, channel: Channel, channel_id: int, session: NetworkSession) -> None:
        self.channel_id = channel_id
        self.session = session
        self.link_told = True
        """What the guest believes of its cable."""
        self._link = True
        self._link_news = Bell()
        self._channel = channel
        self._room = Bell()
        self._nursery: trio.Nursery | None = None
        self._sent_before = 0
        """Packets sent before the batch that waits for room."""
        self.taking = False
        """Packets are off the ring that the session has not seen."""
        self._fault: WireError | None = None

    @property
    def unsent(self) -> list[Packet]:
        """Packets that are not in the ring."""
        sent = self._channel.statistics().packets_out - self._sent_before if self.session.blocked else 0
        return self.session.outbox[sent:]

    def restore(self, restored: RestoredSession) -> None:
        """Go on where a saved session was. Raises `WireError`, `GpaFault`."""
        self.session.restore(restored)
        if restored.saved.adapter is not None:
            told = restored.saved.adapter.link_told
            if told != self.link_told:
                self.link_changed(self.link_told)  # another cable than it was
            self.link_told = told

    async def run(self) -> None:
        """Until the channel closes or the guest goes wrong (`WireError`)."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            if self.session.is_primary:
                nursery.start_soon(self._tell_link, name="link of a network adapter")
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

    def put(self, frames: Sequence[bytes]) -> int:
        """Frames for the guest; how many it took."""
        taken = self.session.put(frames)
        if self.session.outbox:
            self.send()
        return taken

    def link_changed(self, up: bool) -> None:
        """To be told soon; what changes twice before that was touched only."""
        self._link = up
        self._link_news.ring()

    async def _receive(self) -> None:
        channel, session = self._channel, self.session
        session.proceed()
        self.send()  # a restored session has something that its guest has not heard
        while True:
            packets: Sequence[Packet] = await channel.receive_batch()
            while packets:
                try:
                    packets = session.take(packets)
                finally:
                    self.send()
                self.taking = bool(packets)
                if packets:
                    await trio.lowlevel.checkpoint()
            while session.unanswered >= MAX_UNSENT:
                await self._room.wait()

    def send(self) -> None:
        """Put what the session has to say into the ring; what has no room is left to a task that waits for it."""
        session = self.session
        outbox = session.outbox
        while outbox and not session.blocked and self._nursery is not None:
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
                session.blocked = True
                self._sent_before = self._channel.statistics().packets_out
                self._nursery.start_soon(self._send_rest, name="network answers wait for room")
            elif session.waits:
                session.proceed()

    async def _send_rest(self) -> None:
        session = self.session
        outbox = session.outbox
        try:
            while outbox:
                batch = outbox[:]
                self._sent_before = self._channel.statistics().packets_out
                await self._channel.send_batch(batch)
                del outbox[: len(batch)]
                if not outbox:
                    session.blocked = False
                    session.proceed()
                    session.blocked = bool(outbox)
                self._room.ring()
        except WireError as fault:
            self._fault = self._fault or fault
            if self._nursery is not None:
                self._nursery.cancel_scope.cancel()
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass

    async def _tell_link(self) -> None:
        """Task: whatever happens to the cable, the guest hears of it, and ends up with what is."""
        news = self._link_news
        while True:
            await news.wait()
            news.clear()
            while self._link == self.link_told:
                # It went and came back, or the other way round. Both are told, with time to notice in between.
                self._say_link(not self._link)
                with trio.move_on_after(LINK_SECONDS):
                    await news.wait()
                    news.clear()
                    continue
                break
            self._say_link(self._link)

    def _say_link(self, up: bool) -> None:
        self.link_told = up
        self.session.tell_link(up)
        self.send()
