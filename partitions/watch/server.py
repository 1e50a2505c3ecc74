"""The picture of a host that runs, over HTTP, for browsers on this machine. Root side.

It listens on the loopback address only. The address of a page has a random word in it, so no other user and no page of
somebody else's can guess it, and requests that come under another host's name, as DNS rebinding makes them, are
refused. What a browser does or leaves undone ends its own connection and nothing else.
"""

from __future__ import annotations

import errno
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import attrs
import h11
import trio

from partitions.watch.hub import Hub
from partitions.watch.page import live_page, policy

LOOPBACK: Final = "127.0.0.1"
MAX_BODY: Final = 64 << 10
"""Bytes of a request: a packet in base64, with room."""
MAX_CONNECTIONS: Final = 64
REQUEST_SECONDS: Final = 20.0
"""How long a browser may take with a request and with its answer, and keep an idle connection."""
SIGN_OF_LIFE: Final = 15.0
"""Seconds without events after which a line without meaning is sent: a browser that has gone is noticed by it."""
_RECEIVE: Final = 16 << 10


class PortTaken(Exception):
    """Nobody can listen there; the text says why."""


@attrs.frozen
class Answer:
    """A whole answer."""

    status: int
    body: bytes = b""
    kind: str = "text/plain; charset=utf-8"
    close: bool = False


def listen_on(port: int = 0) -> socket.socket:
    """A socket for `open_server`; `port` 0 takes one that is free. Raises `PortTaken`."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((LOOPBACK, port))
        made.listen(MAX_CONNECTIONS)
    except OSError as error:
        made.close()
        reason = "something else listens there" if error.errno == errno.EADDRINUSE else error.strerror
        raise PortTaken(f"port {port}: {reason}; another one, or 0 for any that is free, will do") from None
    return made


@asynccontextmanager
async def open_server(hub: Hub, listening: socket.socket) -> AsyncIterator[str]:
    """Serve the hub's events on this socket, which it closes; gives the address to open in a browser.

    Closing it closes all connections. The hub's own task is started and ended here too.
    """
    listening.setblocking(False)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    number = listening.getsockname()[1]
    word = secrets.token_urlsafe(16)
    site = _Site(hub, word, number)
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(hub.run)
        nursery.start_soon(trio.serve_listeners, site.serve, [listener])
        try:
            yield f"http://{LOOPBACK}:{number}/{word}/"
        finally:
            nursery.cancel_scope.cancel()


class _Site:
    """The three things that there are: the page, its events, and the fields of bytes."""

    def __init__(self, hub: Hub, word: str, port: int) -> None:
        self._hub = hub
        self._word = word.encode()
        self._names = {name.encode() for name in (f"{LOOPBACK}:{port}", f"localhost:{port}")}
        self._connections = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection. Never raises over what the other end does."""
        if self._connections >= MAX_CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        self._connections += 1
        try:
            async with stream:
                await self._converse(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.LocalProtocolError):
            pass
        finally:
            self._connections -= 1

    async def _converse(self, stream: trio.SocketStream) -> None:
        wire = h11.Connection(h11.SERVER)
        while True:
            try:
                with trio.move_on_after(REQUEST_SECONDS) as patience:
                    request, body = await _request(stream, wire)
                if patience.cancelled_caught or request is None:
                    return
                answer = self._answer(request, body)
            except h11.RemoteProtocolError as error:
                answer = Answer(error.error_status_hint, close=True)
            if answer is None:
                await self._stream(stream, wire)
                return
            with trio.move_on_after(REQUEST_SECONDS) as patience:
                await _send(stream, wire, answer)
            if patience.cancelled_caught or wire.our_state is not h11.DONE or wire.their_state is not h11.DONE:
                return
            wire.start_next_cycle()

    def _answer(self, request: h11.Request, body: bytes | None) -> Answer | None:
        """What to say to a request; None for the stream of events."""
        headers = dict(request.headers)
        host = headers.get(b"host", b"")
        origin = headers.get(b"origin")
        if host not in self._names or (origin is not None and origin != b"http://" + host):
            return Answer(403, b"this is for browsers on this machine, under its own name\n", close=True)
        if body is None:
            return Answer(413, close=True)
        _, word, name = [*request.target.split(b"/", 2), b"", b""][:3]
        if not secrets.compare_digest(word, self._word):
            return Answer(404, b"there is nothing here; the whole address was printed when the run began\n")
        match request.method, name:
            case b"GET", b"":
                return Answer(200, live_page(self._hub.title, "events"), "text/html; charset=utf-8")
            case b"GET", b"events":
                return None
            case b"POST", b"decode":
                found = self._hub.decode(body)
                return Answer(400) if found is None else Answer(200, found, "application/json")
            case _, b"" | b"events" | b"decode":
                return Answer(405)
            case _:
                return Answer(404)

    async def _stream(self, stream: trio.SocketStream, wire: h11.Connection) -> None:
        """Events as long as there are any and the browser takes them."""
        headers = [("content-type", "text/event-stream"), ("connection", "close"), *_common()]
        with self._hub.listen() as queue:
            await _put(stream, wire, h11.Response(status_code=200, headers=headers))
            while True:
                data = b": still here\n\n"
                with trio.move_on_after(SIGN_OF_LIFE):
                    data = await queue.next()
                if not data:
                    break
                await _put(stream, wire, h11.Data(data=data))
        await _put(stream, wire, h11.EndOfMessage())


async def _request(stream: trio.SocketStream, wire: h11.Connection) -> tuple[h11.Request | None, bytes | None]:
    """The next request and its body, None for one that is too long; no request where the connection ends."""
    request: h11.Request | None = None
    body = b""
    long = False
    while True:
        event = wire.next_event()
        match event:
            case h11.NEED_DATA:
                if wire.they_are_waiting_for_100_continue:
                    await _put(stream, wire, h11.InformationalResponse(status_code=100, headers=[]))
                wire.receive_data(await stream.receive_some(_RECEIVE))
            case h11.Request():
                request = event
            case h11.Data():
                long = long or len(body) + len(event.data) > MAX_BODY
                if long:
                    return request, None
                body += bytes(event.data)
                await trio.lowlevel.checkpoint()  # thousands of chunks of a byte come in one piece
            case h11.EndOfMessage():
                return request, body
            case _:
                return None, b""


async def _send(stream: trio.SocketStream, wire: h11.Connection, answer: Answer) -> None:
    headers = [("content-type", answer.kind), ("content-length", str(len(answer.body))), *_common()]
    if answer.close:
        headers.append(("connection", "close"))
    await _put(stream, wire, h11.Response(status_code=answer.status, headers=headers))
    await _put(stream, wire, h11.Data(data=answer.body))
    await _put(stream, wire, h11.EndOfMessage())


async def _put(stream: trio.SocketStream, wire: h11.Connection, event: h11.Event) -> None:
    data = wire.send(event)
    if data:
        await stream.send_all(data)


def _common() -> list[tuple[str, str]]:
    """Headers of every answer."""
    return [
        ("cache-control", "no-store"),
        ("content-security-policy", f"{policy(live=True)}; frame-ancestors 'none'"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
        ("cross-origin-resource-policy", "same-origin"),
    ]
