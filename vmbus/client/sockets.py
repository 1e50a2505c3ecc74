"""Hyper-V sockets of a guest: streams to services of the host, and listeners for what the host connects. Child side.

we connect         TL_CONNECT_REQUEST -> an offer with our endpoint, which we open; or TL_CONNECT_RESULT; below 4.1
                   a refusal is silence
the host connects  an offer that is for a listener: opened at once, and kept for `accept`. One for nobody, or past
                   a listener's backlog, is given back, which tells the host
the end            the end of our stream, then until the host has taken all and has ended its own, or 8 s; then the
                   channel is closed, its pages are taken back and its ID is given back
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import attrs
import trio

from hypervisor.pages import PAGE_SIZE
from hypervisor.wire import Guid, WireError
from vmbus.channel import Channel
from vmbus.client.state import OfferedDevice, VmbusError
from vmbus.pipe import BytePipe
from vmbus.protocol.hvsocket import LEAST_RING_BYTES, MOST_RING_BYTES, SocketParameters, service_of, service_words
from vmbus.protocol.versions import Ability, version_text
from vmbus.ring import ring_bytes

if TYPE_CHECKING:
    from vmbus.client.service import VmbusClient

RING_BYTES: Final = 16 * PAGE_SIZE
"""Of each of a socket's two rings, with its control page, where a program does not say. Hosts below 5.0 get 24 KiB."""
BACKLOG: Final = 32
"""Connections that wait for `accept`, where a program does not say."""
CONNECTS_WITHIN: Final = 5.0
"""Seconds for the host to answer a request."""
CLOSES_WITHIN: Final = 8.0
"""Seconds that a closed stream has for what was sent; what Linux gives it."""
LATE_BYTES: Final = 1 << 20
"""What the host had sent before it withdrew a channel is received up to this many bytes of its ring."""
_FIRST_PORT: Final = 0x1_0000
"""Our endpoints are ports from here on."""


class GuestSocket(BytePipe):
    """A stream to the host. `aclose` returns at once: what was sent is still delivered, as by a socket of a system.

    Where the host withdraws the channel before it has ended its stream, `trio.BrokenResourceError`.
    """

    def __init__(self, channel: Channel, service: Guid, closed: Callable[[GuestSocket], None]) -> None:
        """`closed` is called once, when the program has closed the stream."""
        super().__init__(channel)
        self.service = service
        self._on_closed = closed
        self._broken = False

    def _peer_closed(self) -> None:
        self._broken = True
        raise trio.BrokenResourceError("the other end was closed in the middle of its stream")

    def close(self) -> None:
        """`aclose` without its checkpoint."""
        if not self._shut:
            self._shut = True
            self.channel.stir()
            self._on_closed(self)

    async def aclose(self) -> None:
        """No more from this end: the host gets what was sent, and the end of the stream."""
        self.close()
        await trio.lowlevel.checkpoint()

    async def finish(self) -> None:
        """After the close: until the host has taken all and has ended its stream, or wants to send what nobody takes.

        Never raises over what the host does. As long as the host likes.
        """
        await self._rest()
        try:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._drop, scope)
                    if not self._eof_sent:
                        await self._send_end()
                    await self.channel.wait_taken()
                    if self._left:
                        scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, WireError):
            pass

    async def _drop(self, scope: trio.CancelScope) -> None:
        """Take what still comes. If it is more than an end, the stream need not end well: only what we sent counts."""
        while not self._ended:
            if self._left and self.channel.unsent <= ring_bytes(8):
                scope.cancel()
            data = self._take(LATE_BYTES)
            if data:
                self._left = memoryview(b"x")
            elif not self._ended:
                await self.channel.wait_parts()


class SocketListener(trio.abc.Listener[GuestSocket]):
    """Hands out streams that the host connects to one service."""

    def __init__(self, sockets: ClientSockets, service: Guid, backlog: int, ring_bytes: int) -> None:
        self._sockets = sockets
        self.service = service
        self.ring_bytes = ring_bytes
        self._send, self._receive = trio.open_memory_channel[GuestSocket](backlog)
        self.waiting = 0
        """Connections being opened, or not accepted yet."""
        self.backlog = backlog
        self.closed = False

    def take(self, stream: GuestSocket) -> None:
        """A connection has been opened."""
        self._send.send_nowait(stream)

    async def accept(self) -> GuestSocket:
        """The next connection. `trio.ClosedResourceError` after `aclose`, also where the bus has ended."""
        try:
            stream = await self._receive.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None
        self.waiting -= 1
        return stream

    def close(self) -> None:
        """`aclose` without its checkpoint."""
        if not self.closed:
            self.closed = True
            self._sockets.forget(self)
            while self._receive.statistics().current_buffer_used:
                self._receive.receive_nowait().close()
            self._send.close()
            self._receive.close()

    async def aclose(self) -> None:
        """Take no more connections; those that nobody has accepted are closed."""
        self.close()
        await trio.lowlevel.checkpoint()


@attrs.define(eq=False)
class _Request:
    """One TL_CONNECT_REQUEST."""

    service: Guid
    answered: trio.Event = attrs.field(factory=trio.Event)
    offer: OfferedDevice | None = None
    refused: bool = False


class ClientSockets:
    """The sockets of one connection to the bus. Belongs to a `VmbusClient`."""

    def __init__(
        self,
        client: VmbusClient,
        nursery: trio.Nursery,
        sleep: Callable[[float], Awaitable[None]],
        early: dict[int, OfferedDevice],
    ) -> None:
        """`early` is what the host has offered before; it stays for listeners until the host withdraws it."""
        self._client = client
        self._early = early
        self._nursery = nursery
        self._sleep = sleep
        self._listeners: dict[Guid, SocketListener] = {}
        self._requests: dict[Guid, _Request] = {}
        self._next_port = _FIRST_PORT
        self.open: set[GuestSocket] = set()
        """Those whose channels are there."""
        self._none_left = trio.Event()

    # ------------------------------------------------------------------------------------------------- for programs

    def listen(self, service: Guid, *, backlog: int = BACKLOG, ring_bytes: int = RING_BYTES) -> SocketListener:
        """Take connections to a service. OSError where somebody does already, and where the host has no sockets."""
        self._check()
        _check_sizes(ring_bytes)
        if backlog < 1:
            raise ValueError(f"a backlog of {backlog}: at least one connection has to wait")
        if service in self._listeners:
            raise OSError(errno.EADDRINUSE, f"somebody listens on {service_words(service)} already")
        listener = self._listeners[service] = SocketListener(self, service, backlog, ring_bytes)
        for offer in [offer for offer in self._early.values() if offer.interface == service]:
            del self._early[offer.channel_id]
            self.offered(offer)
        return listener

    async def connect(self, service: Guid, *, ring_bytes: int = RING_BYTES) -> GuestSocket:
        """A stream to a service of the host. ConnectionRefusedError, TimeoutError, or another OSError says why not."""
        self._check()
        _check_sizes(ring_bytes)
        endpoint = service_of(self._next_port)
        self._next_port += 1
        request = self._requests[endpoint] = _Request(service)
        try:
            self._client.request_socket(endpoint, service)
            await self._within(CONNECTS_WITHIN, request.answered.wait)
        except BaseException:
            if request.offer is not None:
                self._client.release(request.offer)
            raise
        finally:
            del self._requests[endpoint]
        if request.refused:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody in the host takes {service_words(service)}")
        if request.offer is None:
            raise TimeoutError(errno.ETIMEDOUT, f"the host did not answer for {service_words(service)}")
        try:
            return await self._open(request.offer, ring_bytes)
        except VmbusError as error:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"{service_words(service)}: {error}") from None
        except MemoryError:
            raise OSError(errno.ENOBUFS, f"{os.strerror(errno.ENOBUFS)} for a socket's rings") from None

    async def finish(self) -> None:
        """Close what programs have left open, and wait until all of it has ended."""
        for listener in list(self._listeners.values()):
            listener.close()
        for stream in list(self.open):
            stream.close()
        while self.open:
            self._none_left = trio.Event()
            await self._none_left.wait()

    # --------------------------------------------------------------------------------------------------- for the bus

    def offered(self, offer: OfferedDevice) -> None:
        """The host offers a socket: it goes to whoever waits for it, or back."""
        untrusted = SocketParameters.decode(offer.user_defined[: SocketParameters.SIZE])
        if not untrusted.is_for_guest_accept:
            request = self._requests.get(offer.instance)
            if request is not None and request.service == offer.interface and not request.answered.is_set():
                request.offer = offer
                request.answered.set()
                return
        else:
            listener = self._listeners.get(offer.interface)
            if listener is not None and listener.waiting < listener.backlog:
                listener.waiting += 1
                self._nursery.start_soon(self._accept, listener, offer, name=f"socket on {offer.channel_id}")
                return
        self._client.release(offer)

    def refused(self, endpoint: Guid) -> None:
        """The host has nobody for this request."""
        request = self._requests.get(endpoint)
        if request is not None and not request.answered.is_set():
            request.refused = True
            request.answered.set()

    def forget(self, listener: SocketListener) -> None:
        """It has been closed."""
        self._listeners.pop(listener.service, None)

    def end(self) -> None:
        """The bus has ended, and every channel with it."""
        for listener in list(self._listeners.values()):
            listener.close()
        self.open.clear()
        self._none_left.set()

    # -------------------------------------------------------------------------------------------------------- inside

    def _check(self) -> None:
        state = self._client.state
        if state.version is None:
            raise OSError(errno.ENETDOWN, "the bus is not connected")
        if Ability.SOCKETS not in state.abilities:
            words = f"version {version_text(state.version)} of the bus has no sockets: from 4.0 on it has"
            raise OSError(errno.EAFNOSUPPORT, words)

    async def _accept(self, listener: SocketListener, offer: OfferedDevice) -> None:
        try:
            stream = await self._open(offer, listener.ring_bytes)
        except (VmbusError, MemoryError):
            listener.waiting -= 1  # the host has changed its mind, or there is no room for it
            return
        if listener.closed:
            stream.close()
        else:
            listener.take(stream)

    async def _open(self, offer: OfferedDevice, ring_bytes: int) -> GuestSocket:
        if Ability.CONTACT_TARGET not in self._client.state.abilities:
            ring_bytes = LEAST_RING_BYTES
        try:
            channel = await self._client.open(
                offer, outgoing_bytes=ring_bytes, incoming_bytes=ring_bytes, keep=LATE_BYTES
            )
        except BaseException:
            self._client.release(offer)
            raise
        stream = GuestSocket(channel, offer.interface, lambda stream: self._closed(stream, offer))
        self.open.add(stream)
        return stream

    def _closed(self, stream: GuestSocket, offer: OfferedDevice) -> None:
        self._nursery.start_soon(self._end, stream, offer, name=f"socket on {offer.channel_id} ends")

    async def _end(self, stream: GuestSocket, offer: OfferedDevice) -> None:
        try:
            await self._within(CLOSES_WITHIN, stream.finish)
            try:
                await self._client.close(stream.channel)
            except VmbusError:
                pass  # the bus was left meanwhile
            self._client.release(offer)
        finally:
            self.open.discard(stream)
            if not self.open:
                self._none_left.set()

    async def _within(self, seconds: float, wait: Callable[[], Awaitable[None]]) -> None:
        """Wait, and not longer than so much of the partition's time."""

        async def give_up() -> None:
            await self._sleep(seconds)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up)
            await wait()
            nursery.cancel_scope.cancel()


def _check_sizes(ring_bytes: int) -> None:
    if ring_bytes % PAGE_SIZE or not LEAST_RING_BYTES <= ring_bytes <= MOST_RING_BYTES + PAGE_SIZE:
        least, most = LEAST_RING_BYTES, MOST_RING_BYTES + PAGE_SIZE
        raise ValueError(f"a socket's ring takes whole pages, from {least} to {most} bytes, not {ring_bytes}")
