"""Hyper-V sockets of one guest, at the host's end: who listens, what is connected, how it ends. Root side.

    guest connects    request -> a listener? -> offer -> the guest opens (5 s) -> the listener is reached -> OPEN_RESULT
    host connects     offer -> the guest opens (2 s) -> OPEN_RESULT
    the end           the host's end closes: its end of stream -> the guest has taken all -> rescind
                      or the guest closes the channel, leaves the bus, is rescinded: what it has sent is still received

Each connection has a task of its own, in the nursery of the bus, which ends when nothing of it is left. The channel's
device task does no more than to hold the channel; whoever uses the stream may take longer than the guest.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import trio

from hypervisor.inspect import Branch, Many
from hypervisor.trace import Layer, Trace
from hypervisor.wire import Guid
from vmbus.channel import ChannelStatistics
from vmbus.protocol.hvsocket import (
    GUEST_ACCEPTS_WITHIN,
    GUEST_OPENS_WITHIN,
    MAX_CONNECT_REQUESTS,
    MAX_SOCKETS,
    OFFER_FLAGS,
    service_words,
    user_defined,
)
from vmbus.server.connection import Phase
from vmbus.server.offers import Device, Offer
from vmbus.server.socket_stream import LATE_BYTES, HostSocket, SocketState

if TYPE_CHECKING:
    from vmbus.channel import Channel
    from vmbus.server.opened import OpenedChannel
    from vmbus.server.slots import OfferedChannel
    from vmbus.server.state import ServerState

HOST_CONNECTS_WITHIN: Final = 5.0
"""Seconds that a listener has to be reached; the guest waits for its OPEN_RESULT meanwhile."""

MAX_LATE: Final = 64 * LATE_BYTES
"""The host's memory for what was sent on all connections of a guest that it has closed, and nobody has received yet."""
_PACKET_BYTES: Final = 128
"""What a packet takes up beside its bytes. A guest may send each byte in one of its own."""

Accept = Callable[[HostSocket], Awaitable[None]]
"""Serves one connection, in a task of its own; the stream is closed when it returns."""


class Reached(Protocol):
    """Somebody in the host who is ready for one connection."""

    async def serve(self, stream: HostSocket) -> None:
        """Until it is done with the stream, which is closed then."""

    def close(self) -> None:
        """It is over, whether or not it came to a connection."""


Reach = Callable[[], Awaitable[Reached]]
"""Reaches whoever is behind a listener. Raises `OSError` where nobody is."""


class SocketRefused(ConnectionError):
    """There is no connection, and the text says why."""


def random_endpoint() -> Guid:
    """An endpoint that nobody has."""
    return Guid(uuid.uuid4().bytes_le)


def seeded_endpoints(new_random: Callable[[], random.Random]) -> Callable[[], Guid]:
    """What makes endpoints of the numbers of a generator, which is made when the first is wanted."""
    made: list[random.Random] = []

    def endpoint() -> Guid:
        if not made:
            made.append(new_random())
        return Guid(uuid.UUID(int=made[0].getrandbits(128), version=4).bytes_le)

    return endpoint


class SocketListeners:
    """Who in the host takes connections of one VM's guests; asked for each request, and outlives a guest's bus."""

    def __init__(self, elsewhere: Callable[[Guid], Reach | None] = lambda service: None) -> None:
        """`elsewhere` finds listeners that are not in this process."""
        self._accepts: dict[Guid, Accept] = {}
        self._elsewhere = elsewhere

    def listen(self, service: Guid, accept: Accept) -> Listening:
        """Take connections to a service until the result is closed. ValueError for one that somebody listens on."""
        if service in self._accepts:
            raise ValueError(f"somebody listens on {service_words(service)} already")
        self._accepts[service] = accept
        return Listening(self, service)

    def forget(self, service: Guid) -> None:
        """Nobody listens any more."""
        self._accepts.pop(service, None)

    def find(self, service: Guid) -> Reach | None:
        """How to reach the listener of a service; None if there is none."""
        accept = self._accepts.get(service)
        return self._elsewhere(service) if accept is None else _Here(accept).reach

    @property
    def services(self) -> list[Guid]:
        """Those that are listened on in this process."""
        return list(self._accepts)


@attrs.frozen
class _Here:
    """A listener in this process."""

    _accept: Accept

    async def reach(self) -> Reached:
        """At once."""
        await trio.lowlevel.checkpoint()
        return self

    async def serve(self, stream: HostSocket) -> None:
        """Its part."""
        await self._accept(stream)

    def close(self) -> None:
        """The stream is closed by whoever has made it."""


@attrs.frozen
class Listening:
    """A service that is listened on, until it is closed. A context manager too."""

    _listeners: SocketListeners
    service: Guid

    def close(self) -> None:
        """Take no more connections; those that there are go on."""
        self._listeners.forget(self.service)

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@attrs.define(eq=False)
class SocketConnection:
    """One connection, from its offer to its end. A device of the bus."""

    number: int
    offer: Offer
    since: int
    """When it was asked for, 100 ns units on the host's clock."""
    trace: Trace = attrs.field(repr=False)
    partition_id: int
    late_room: Callable[[], int] = attrs.field(repr=False)
    """Bytes that may still be kept of what guests sent before they closed."""
    reach: Reach | None = None
    """Reaches its listener; None where the host connects."""
    reached: Reached | None = None
    state: SocketState = SocketState.OFFERED
    stream: HostSocket | None = None
    why: str = ""
    """Why it ended, or was never made."""
    channel_id: int | None = None
    withdrawn: bool = False
    """Its offer is not on the bus any more, though somebody in the host may still be busy with it."""
    opening: trio.Event = attrs.field(factory=trio.Event, repr=False)
    """The guest has asked to open it, or it has ended before."""
    decided: trio.Event = attrs.field(factory=trio.Event, repr=False)
    """It is open, or never will be."""
    ended: trio.Event = attrs.field(factory=trio.Event, repr=False)
    _late: int = 0

    async def prepare(self, opened: OpenedChannel) -> bool:
        """The guest opens the channel: reach the host's end. A second time, or too late, it cannot."""
        if self.opening.is_set():
            return False
        self.opening.set()
        if self.reach is None:
            return True
        self.state = SocketState.REACHING
        try:
            with trio.fail_after(HOST_CONNECTS_WITHIN):
                self.reached = await self.reach()
        except trio.TooSlowError:
            self.end(f"its listener could not be reached within {HOST_CONNECTS_WITHIN:g} s")
        except OSError as error:
            self.end(f"its listener cannot be reached: {error.strerror or error}")
        finally:
            if self.reached is None:
                self.end("its guest gave it up")
        return self.reached is not None and not self.ended.is_set()

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        """Hold the channel until one of the ends is done with it."""
        if self.ended.is_set():
            return
        self.channel_id = opened.channel_id
        offer = self.offer
        self.stream = HostSocket(channel, service=offer.interface, endpoint=offer.instance, broken=self._broken)
        self.state = SocketState.OPEN
        self.decided.set()
        try:
            await self.stream.closing.wait()
            self.state = SocketState.CLOSING
            await self.stream.finish()
            self.end("the host closed it")
        finally:
            self.guest_is_gone()
            self.end("its guest closed it")

    def guest_is_gone(self) -> None:
        """The channel ends, and what the guest has sent is kept for its receiver, if there is room for it."""
        stream = self.stream
        if stream is None:
            return
        channel = stream.channel
        if not channel.closed and self.late_room() <= 0:
            self._broken(f"{MAX_LATE >> 20} MiB of closed sockets wait to be received already; the rest of it is lost")
            channel.close(by_peer=True)
        before = channel.statistics()
        stream.guest_is_gone()
        after = channel.statistics()
        self._late += after.bytes_in - before.bytes_in + (after.packets_in - before.packets_in) * _PACKET_BYTES

    @property
    def late(self) -> int:
        """Bytes of the host's memory for what the guest had sent before it closed and nobody has received yet."""
        return self._late if self._late and self.stream is not None and self.stream.channel.ahead else 0

    def end(self, why: str) -> None:
        """It is over, if it was not before: the first reason counts."""
        if not self.ended.is_set():
            self.why = self.why or why
            self.state = SocketState.ENDED
            for event in (self.opening, self.decided, self.ended):
                event.set()

    def _broken(self, words: str) -> None:
        """The guest put something into its ring that is no stream."""
        self.why = self.why or f"its guest broke it: {words}"
        words = f"{self.offer}: {words}"
        self.trace.warn(Layer.DEVICE, "socket_broken", self.partition_id, words, channel=self.channel_id)

    def inspect(self) -> Branch:
        """Who, how far, how much and since when."""
        stream = self.stream
        return Branch(
            {
                "service": service_words(self.offer.interface),
                "endpoint": str(self.offer.instance),
                "from": "host" if self.reach is None else "guest",
                "state": self.state.value,
                "channel": self.channel_id,
                "age": (self.trace.clock() - self.since) / 10_000_000,
                "bytes_to_guest": 0 if stream is None else stream.bytes_sent,
                "bytes_from_guest": 0 if stream is None else stream.bytes_received,
                "why": self.why,
            }
        )

    def inspect_channel(self, channel_id: int) -> Branch:
        """The same from its channel."""
        return self.inspect()


class HostSockets:
    """All sockets of one guest's bus. Belongs to a `VmbusServer`."""

    def __init__(
        self,
        state: ServerState,
        *,
        trace: Trace,
        partition_id: int,
        counters: Counter[str],
        listeners: SocketListeners,
        offer: Callable[[Device], OfferedChannel],
        withdraw: Callable[[OfferedChannel], None],
        answer: Callable[[int, bool], None],
        new_endpoint: Callable[[], Guid],
    ) -> None:
        """`answer(number, refused)` answers a request of the guest's; `new_endpoint` makes endpoints for the host."""
        self._state = state
        self._trace = trace
        self._partition_id = partition_id
        self._counters = counters
        self._offer = offer
        self._withdraw = withdraw
        self._answer = answer
        self._new_endpoint = new_endpoint
        self._nursery: trio.Nursery | None = None
        self._number = 0
        self.listeners = listeners
        self.live: dict[int, SocketConnection] = {}
        """Those of which anything is left, by number."""
        self._ended = ChannelStatistics()
        """The sum of those of which nothing is."""

    def start(self, nursery: trio.Nursery) -> None:
        """Connections have their tasks in this nursery."""
        self._nursery = nursery

    @property
    def busy(self) -> bool:
        """So many of the guest's requests are not answered that no message of its is to be read."""
        return len(self._state.connects) >= MAX_CONNECT_REQUESTS

    async def connect(self, service: Guid) -> HostSocket:
        """A stream to a service that the guest listens on. Raises `SocketRefused`."""
        endpoint = self._new_endpoint()
        refusal = self._refusal(endpoint)
        if not refusal and self._nursery is None:
            refusal = "its bus does not run"
        if refusal:
            self._refused(service, refusal)
            await trio.lowlevel.checkpoint()
            raise SocketRefused(f"{service_words(service)}: {refusal}")
        connection = self._make(service, endpoint, None)
        self._begin(connection, self._offer(connection), GUEST_ACCEPTS_WITHIN)
        try:
            await connection.decided.wait()
        except trio.Cancelled:
            connection.end("nobody waits for it any more")
            if connection.stream is not None:
                connection.stream.close()
            raise
        if connection.stream is None:
            raise SocketRefused(f"{service_words(service)}: {connection.why}")
        return connection.stream

    def connect_from_guest(self, number: int, endpoint: Guid, service: Guid) -> None:
        """A request of the guest's; answered from a task of its own, since a listener may take a look around."""
        assert self._nursery is not None, "messages are taken only after start"
        self._nursery.start_soon(self._from_guest, number, endpoint, service, name=f"socket request {number}")

    async def _from_guest(self, number: int, endpoint: Guid, service: Guid) -> None:
        if number not in self._state.connects:
            return  # its guest has left
        reach = self.listeners.find(service)
        refusal = self._refusal(endpoint) if reach is not None else "nobody in the host listens there"
        if reach is None or refusal:
            self._refused(service, refusal)
            self._answer(number, True)
            return
        connection = self._make(service, endpoint, reach)
        offered = self._offer(connection)
        self._answer(number, False)
        self._begin(connection, offered, GUEST_OPENS_WITHIN)

    def released(self, device: Device) -> None:
        """The guest let go of a channel. One that it was to open it does not want."""
        if isinstance(device, SocketConnection) and not device.opening.is_set():
            device.end("nothing in its guest listens there" if device.reach is None else "its guest gave it up")

    def end_all(self, why: str) -> None:
        """Cut every connection."""
        for connection in list(self.live.values()):
            connection.end(why)

    def channel_statistics(self) -> ChannelStatistics:
        """What went through all of them so far."""
        streams = [one.stream for one in self.live.values() if one.stream is not None]
        return sum((stream.channel.statistics() for stream in streams), self._ended)

    def unrest(self) -> str:
        """Which connection there is that no record can describe; empty if there is none."""
        if self._state.connects:
            return "a socket of its guest's is being connected"
        return next((f"{one.offer} is open" for one in self.live.values() if not one.withdrawn), "")

    def inspect(self, unix: Callable[[], Branch] | None = None) -> Branch:
        """Live connections, listeners and how often what happened; `unix` shows how others reach them from outside."""
        seen: dict[str, object] = {
            "live": len(self.live),
            "most": MAX_SOCKETS,
            "requests": len(self._state.connects),
            "made": self._counters["sockets_made"],
            "refused": self._counters["sockets_refused"],
            "listeners": lambda: Branch({service_words(one): True for one in self.listeners.services}),
            "connections": Many(self.live, int, show=SocketConnection.inspect),
        }
        return Branch(seen if unix is None else seen | {"unix": unix})

    def _refusal(self, endpoint: Guid) -> str:
        if len(self.live) >= MAX_SOCKETS:
            return f"{MAX_SOCKETS} sockets are the limit of a guest"
        return self._state.socket_refusal(endpoint)

    def _refused(self, service: Guid, why: str) -> None:
        self._counters["sockets_refused"] += 1
        self._trace.warn(Layer.CONTROL, "socket_refused", self._partition_id, f"{service_words(service)}: {why}")

    def _make(self, service: Guid, endpoint: Guid, reach: Reach | None) -> SocketConnection:
        self._number += 1
        offer = Offer(
            service,
            endpoint,
            flags=OFFER_FLAGS,
            user_defined=user_defined(is_for_guest_accept=reach is None),
            name=f"socket {self._number} to {service_words(service)}",
        )
        began = self._trace.clock()
        return SocketConnection(self._number, offer, began, self._trace, self._partition_id, self._late_room, reach)

    def _late_room(self) -> int:
        return MAX_LATE - sum(connection.late for connection in self.live.values())

    def _begin(self, connection: SocketConnection, offered: OfferedChannel, seconds: float) -> None:
        self.live[connection.number] = connection
        assert self._nursery is not None
        self._nursery.start_soon(self._live, connection, offered, seconds, name=str(connection.offer))

    async def _live(self, connection: SocketConnection, offered: OfferedChannel, seconds: float) -> None:
        """A connection's own task."""
        try:
            with trio.move_on_after(seconds):
                await connection.opening.wait()
            if not connection.opening.is_set():
                connection.end(self._never_opened(connection, seconds))
            await connection.decided.wait()
            stream = connection.stream
            if stream is None:
                self._refused(connection.offer.interface, connection.why)
                return
            self._counters["sockets_made"] += 1
            async with trio.open_nursery() as nursery:
                if connection.reached is not None:
                    nursery.start_soon(_serve, connection.reached, stream)
                await connection.ended.wait()
                self._withdraw(offered)  # though a listener that has more to do than to listen may go on
                connection.withdrawn = True
        finally:
            connection.end("its VM is off")
            self._withdraw(offered)
            connection.withdrawn = True
            connection.guest_is_gone()
            if connection.stream is not None:
                self._ended += connection.stream.channel.statistics()
            if connection.reached is not None:
                connection.reached.close()
            del self.live[connection.number]

    def _never_opened(self, connection: SocketConnection, seconds: float) -> str:
        if connection.reach is not None:
            return f"its guest did not open it within {seconds:g} s"
        if self._state.phase is not Phase.CONNECTED or not self._state.offers_sent:
            return f"its guest was not on its bus within {seconds:g} s"
        return f"nothing in its guest took it within {seconds:g} s"


async def _serve(reached: Reached, stream: HostSocket) -> None:
    """A listener's part. That the guest has gone is no mistake of its."""
    try:
        async with stream:
            await reached.serve(stream)
    except* trio.BrokenResourceError:
        pass
