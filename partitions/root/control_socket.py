"""A host's control socket: who may connect, how much of it, and how it ends. Root side.

The socket is its owner's: the file's mode says so, its folder's too, and the kernel's word on each peer is asked
(SO_PEERCRED). A peer gets an answer to each line, one after the other, and can do the host no harm by what it sends, by
not reading or by going away: everything is bounded, a request that was begun is finished without it, and a mistake of
ours in answering is that request's answer. What requests do is in `control_requests`, which is imported when somebody
connects, so that a run that nobody talks to does not pay for it.

Tasks: one listens, one serves each connection, all of them in the nursery of `open_control_socket`. When its block
ends, requests under way and the last lines of streams have `CLOSING_SECONDS` to reach their peers.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from partitions import control_folder

if TYPE_CHECKING:
    from partitions.host import Host

MAX_CONNECTIONS: Final = 64
SEND_SECONDS: Final = 10.0
"""How long a peer may take to take its answer."""
CLOSING_SECONDS: Final = 1.0
_RECEIVE: Final = 64 * 1024
_BACKLOG: Final = 64


class Peer:
    """The process at the other end, as the kernel has it from the moment of its connect."""

    __slots__ = ("pid", "uid")  # nothing here is imported or generated that a run nobody talks to would wait for

    def __init__(self, pid: int, uid: int) -> None:
        self.pid = pid
        self.uid = uid

    def __str__(self) -> str:
        return f"control socket, uid {self.uid} pid {self.pid}"


def peer_of(connection: socket.socket | trio.socket.SocketType) -> Peer | None:
    """Who has connected; None where the system does not say."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, option, 12))
    return Peer(pid, uid)


class Link:
    """One connection. It raises nothing over a peer that has gone: sending says False, receiving gives nothing."""

    def __init__(self, stream: trio.SocketStream, control: ControlSocket, peer: Peer | None) -> None:
        self.stream = stream
        self.control = control
        self.peer = "control socket" if peer is None else str(peer)
        self.answered = 0
        """Lines of answers begun."""

    async def send(self, data: bytes) -> bool:
        """All of it, however long the peer takes; whether it is still there."""
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    async def answer(self, line: bytes) -> bool:
        """One line; a peer that does not take it in time counts as gone."""
        self.answered += 1
        with trio.move_on_after(SEND_SECONDS):
            return await self.send(line + b"\n")
        return False

    async def receive(self) -> bytes:
        """What has come, at least a byte; nothing when the peer has closed its end."""
        try:
            return await self.stream.receive_some(_RECEIVE)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""


class ControlSocket:
    """Where a host is asked; made by `open_control_socket`."""

    def __init__(self, host: Host, path: Path, name: str, owner: int) -> None:
        self.host = host
        self.path = path
        self.name = name
        """As people call the host."""
        self.connections = 0
        """Open ones, for those who look."""
        self.down = trio.Event()
        """Somebody wants the whole host to end; set before its VMs are asked."""
        self.closing = trio.Event()
        """The host ends: no new requests, and streams end after what they have."""
        self._owner = owner
        self._waits: set[trio.CancelScope] = set()

    @contextmanager
    def until_closing(self) -> Iterator[trio.CancelScope]:
        """Around a wait that the end of the host cuts short; `cancelled_caught` says that it did."""
        with trio.CancelScope() as scope:
            if self.closing.is_set():
                scope.cancel()
            self._waits.add(scope)
            try:
                yield scope
            finally:
                self._waits.discard(scope)

    def close(self) -> None:
        """The host ends."""
        self.closing.set()
        for scope in self._waits:
            scope.cancel()

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection, from the accept to its end."""
        from partitions.root import control_requests

        self.connections += 1
        try:
            peer = peer_of(stream.socket)
            link = Link(stream, self, peer)
            if peer is not None and peer.uid != self._owner:
                await link.answer(control_requests.refusal("refused", "this socket is its owner's alone"))
            elif self.connections > MAX_CONNECTIONS:
                words = f"there are {MAX_CONNECTIONS} connections already; close one"
                await link.answer(control_requests.refusal("busy", words))
            else:
                await control_requests.converse(link)
        finally:
            self.connections -= 1
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def open_control_socket(
    host: Host,
    path: str | os.PathLike[str] | None = None,
    *,
    topology: str = "",
    owner: int | None = None,
) -> AsyncIterator[ControlSocket]:
    """Answer for `host` on a Unix socket until the block ends.

    `path` is by default one of its own in the folder where `partitions.remote` looks; `topology` is what it is called
    there, by default the name of the topology's folder. Only `owner`, by default the user of this process, is served.
    Raises `OSError` where the socket cannot be made.
    """
    topology = topology or str(host.topology.folder)
    if path is None:
        listener, where = control_folder.bind_new(topology)
    else:
        where = Path(path)
        listener = control_folder.bind(where)
    inode = os.stat(where).st_ino
    control = ControlSocket(host, where, control_folder.name_of(topology), os.getuid() if owner is None else owner)
    try:
        async with trio.open_nursery() as nursery:
            listener.listen(_BACKLOG)
            listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
            accepting = trio.CancelScope()
            nursery.start_soon(_accept, control, listeners, nursery, accepting, name="control socket")
            try:
                yield control
            finally:
                accepting.cancel()
                control.close()
                nursery.cancel_scope.deadline = trio.current_time() + CLOSING_SECONDS
    except BaseExceptionGroup as group:
        # A nursery wraps what the caller's block raises; the caller wants it as it was.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise
    finally:
        listener.close()
        try:
            if os.stat(where).st_ino == inode:
                os.unlink(where)
        except OSError:
            pass  # somebody has tidied up


async def _accept(
    control: ControlSocket,
    listeners: list[trio.SocketListener],
    nursery: trio.Nursery,
    scope: trio.CancelScope,
) -> None:
    with scope:
        await trio.serve_listeners(control.serve, listeners, handler_nursery=nursery)
