"""Unix sockets of a VM's Hyper-V sockets: `CONNECT`, one for a port, and the listeners of other programs. Root side.

    PATH            a client says "CONNECT 80" or "CONNECT GUID", hears "OK NUMBER", a line each; then bytes both ways
    a port's own    the same without the words, for clients that know of no handshake: curl --unix-socket
    PATH_80         another program listens here, and takes what the guest connects to port 80 of its host;
                    PATH_GUID for a service that is no port, or whose port nobody listens on by its number

The convention is Firecracker's, and openvmm's for GUIDs. A refused connection is closed without a word, as both do; the
reason is in the trace. The sockets are their owner's alone, and go with the run of their VM.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio

from hypervisor.inspect import Branch
from partitions import control_folder
from vmbus.protocol.hvsocket import parse_service, port_of, service_of, service_words

if TYPE_CHECKING:
    from hypervisor.wire import Guid
    from partitions.topology_schema import SocketsTable
    from vmbus.server.socket_stream import HostSocket
    from vmbus.server.sockets import HostSockets, Reach, Reached

LONGEST_REQUEST: Final = len("CONNECT 00000000-facb-11e6-bd58-64006a7986d3\n")
REQUEST_SECONDS: Final = 10.0
"""How long a client may take to say whom it wants."""
MAX_CLIENTS: Final = 1024
"""Clients of one VM's sockets at a time; each has a descriptor of the process."""
CHUNK: Final = 64 * 1024
_BACKLOG: Final = 128
_HANGUP_SECONDS: Final = 0.5
"""How often a client that has said all is asked whether it still listens: nothing tells of that."""
_FULL_SECONDS: Final = 0.01
"""Between attempts at a listener whose queue is full."""


class SocketsError(Exception):
    """A VM's Unix socket that cannot be made; the text says which and what to do."""


class BadRequest(ValueError):
    """A client's first line is none."""


def parse_request(untrusted_line: bytes) -> tuple[Guid, bool]:
    """The service that a `CONNECT` without its line end names, and whether by its port. Raises `BadRequest`."""
    word, space, rest = untrusted_line.removesuffix(b"\r").partition(b" ")
    if word.upper() != b"CONNECT" or not space:
        raise BadRequest("it does not begin with CONNECT")
    try:
        text = rest.decode("ascii")
        return parse_service(text), text.isdigit()
    except ValueError as error:
        raise BadRequest(str(error)) from None


def ok_response(endpoint: Guid, *, by_port: bool) -> bytes:
    """`OK` and the host's end of the connection: the number that it has for the guest, or all of its GUID."""
    return f"OK {int.from_bytes(endpoint[:4], 'little') if by_port else endpoint}\n".encode()


class Outside:
    """Where programs of the host listen for a VM's guest: Unix sockets beside the one of the VM."""

    def __init__(self, base: Path) -> None:
        self._base = str(base)

    def find(self, service: Guid) -> Reach | None:
        """How to reach whoever listens for this service, if there is a socket for it."""
        port = port_of(service)
        for name in (service,) if port is None else (port, service):
            path = f"{self._base}_{name}"
            try:
                if stat.S_ISSOCK(os.stat(path).st_mode):
                    return functools.partial(_reach, path)
            except OSError:
                continue
        return None


async def _reach(path: str) -> Reached:
    """Connect to a listening program. Raises `OSError`."""
    outside = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        outside.setblocking(False)
        while True:
            try:
                with control_folder.address(path) as address:
                    outside.connect(address)
                break
            except BlockingIOError:  # its queue is full, which passes; no readiness is told of that
                await trio.sleep(_FULL_SECONDS)
    except BaseException:
        outside.close()
        raise
    return _Program(trio.SocketStream(trio.socket.from_stdlib_socket(outside)))


@attrs.frozen
class _Program:
    """A program that has accepted."""

    _stream: trio.SocketStream

    async def serve(self, stream: HostSocket) -> None:
        """Bytes both ways."""
        await join(self._stream, stream)

    def close(self) -> None:
        """Hang up."""
        self._stream.socket.close()


async def join(outside: trio.SocketStream, inside: HostSocket, first: bytes = b"") -> None:
    """Bytes both ways until both ends have said all, or one is gone; each end of stream is passed on. Closes neither.

    `first` is what came from outside already.
    """

    said_all = 0

    def half() -> None:
        nonlocal said_all
        said_all += 1
        if said_all == 2:
            nursery.cancel_scope.cancel()

    async def inwards() -> None:
        data = first
        try:
            while data or (data := bytes(await outside.receive_some(CHUNK))):
                try:
                    await inside.send_all(data)
                except trio.BrokenResourceError:
                    return  # the guest takes no more; what it has said is still passed on
                data = b""
            await _quietly(inside.send_eof)
            half()
            while not _hung_up(outside.socket):  # noqa: ASYNC110 - what is polled for has no event
                await trio.sleep(_HANGUP_SECONDS)
        except trio.BrokenResourceError:
            pass
        nursery.cancel_scope.cancel()

    async def outwards() -> None:
        try:
            while data := await inside.receive_some(CHUNK):
                await outside.send_all(data)
            await outside.send_eof()
            half()
            await inside.gone.wait()
        except trio.BrokenResourceError:
            pass
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(inwards)
        nursery.start_soon(outwards)


async def _quietly(send_eof: Callable[[], Awaitable[None]]) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await send_eof()


def _hung_up(connection: trio.socket.SocketType) -> bool:
    """Whether the peer has closed both ways: nobody is there for what we might still send."""
    poll = select.poll()
    poll.register(connection.fileno(), 0)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))


@attrs.define(eq=False)
class UnixSockets:
    """The Unix sockets of one run of a VM."""

    sockets: HostSockets
    paths: dict[str, Guid | None]
    """Where they are, and to which service; None for the one with words."""
    clients: int = 0

    def inspect(self) -> Branch:
        """Where they are, and how many use them."""
        paths = {path: "CONNECT" if one is None else service_words(one) for path, one in self.paths.items()}
        return Branch({"clients": self.clients, "most_clients": MAX_CLIENTS, "paths": Branch(dict(paths))})

    async def serve(self, service: Guid | None, outside: trio.SocketStream) -> None:
        """One client, from its accept to its end."""
        self.clients += 1
        try:
            if self.clients <= MAX_CLIENTS:
                await self._serve(service, outside)
        except (trio.BrokenResourceError, BadRequest):
            pass  # it went, or is no client of ours
        finally:
            self.clients -= 1
            await trio.aclose_forcefully(outside)

    async def _serve(self, service: Guid | None, outside: trio.SocketStream) -> None:
        greeting, first, by_port = service is None, b"", False
        if service is None:
            service, by_port, first = await _request(outside)
        try:
            inside = await self.sockets.connect(service)
        except ConnectionError:
            return  # told in the trace
        async with inside:
            if greeting:
                await outside.send_all(ok_response(inside.endpoint, by_port=by_port))
            await join(outside, inside, first)


async def _request(outside: trio.SocketStream) -> tuple[Guid, bool, bytes]:
    """What a client wants, and what it has said behind that already. Raises `BadRequest`."""
    held = b""
    with trio.move_on_after(REQUEST_SECONDS):
        while True:
            line, end, rest = held.partition(b"\n")
            if len(line) + 1 > LONGEST_REQUEST:
                raise BadRequest("its first line is too long")
            if end:
                return *parse_request(line), rest
            data = await outside.receive_some(CHUNK)
            if not data:
                raise BadRequest("it said nothing")
            held += data
    raise BadRequest("it took too long")


def socket_paths(table: SocketsTable, folder: Path) -> dict[Path, Guid | None]:
    """The sockets that a VM's table asks for, and the service of each; None for the one with `CONNECT`."""
    paths: dict[Path, Guid | None] = {folder / table.path: None} if table.path else {}
    return paths | {folder / path: service_of(port) for path, port in table.ports.items()}


@asynccontextmanager
async def open_unix_sockets(
    table: SocketsTable, folder: Path, sockets: HostSockets, nursery: trio.Nursery
) -> AsyncIterator[UnixSockets]:
    """Serve a VM's Unix sockets in `nursery` until the block ends. Raises `SocketsError`."""
    with contextlib.ExitStack() as stack:
        opened = UnixSockets(sockets, {})
        for path, service in socket_paths(table, folder).items():
            listener = _listen(path)
            stack.callback(_remove, path, os.stat(path).st_ino)
            stack.callback(listener.socket.close)
            opened.paths[str(path)] = service
            serve = functools.partial(opened.serve, service)
            start = functools.partial(trio.serve_listeners, serve, [listener], handler_nursery=nursery)
            nursery.start_soon(start, name=f"socket {path}")
        yield opened


def _listen(path: Path) -> trio.SocketListener:
    try:
        bound = control_folder.bind(path)
    except FileExistsError:
        taken = path.is_socket()
        words = "somebody listens there already" if taken else "it is there already and is no socket; remove it"
        words += "; name another path" if taken else ", or name another path"
        raise SocketsError(f"{path}: {words}") from None
    except OSError as error:
        raise SocketsError(f"{path}: {error.strerror or error}") from None
    bound.listen(_BACKLOG)
    return trio.SocketListener(trio.socket.from_stdlib_socket(bound))


def _remove(path: Path, inode: int) -> None:
    """Unless somebody else's is there by now."""
    with contextlib.suppress(OSError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)
