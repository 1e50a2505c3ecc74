"""The other end of a host's control socket: find running hosts, ask them, follow their streams. Root side.

    async with connect() as host:                       # the only one that runs; or connect("03-disk"), connect(path)
        rows = await host.ask("ps")
        await host.ask("stop", vm="reader")
        async with host.stream("events") as events:
            async for line in events.lines():
                ...

Runs on Trio, in another process than the host or in the same. Errors: `NoHost` where none or more than one can be
meant, `RequestDenied` with the host's words, `HostGone` where it ends before it has answered.
"""

from __future__ import annotations

import difflib
import os
import select
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import msgspec
import trio

from partitions import control_folder
from partitions.control_protocol import Greeting, Lines, LineTooLong

GREETING_SECONDS: Final = 5.0
"""How long a host may take to say who it is: it answers between two steps of its guests."""
MAX_ANSWER: Final = 256 << 20
"""Bytes of an answer: the whole tree of a thousand VMs is less."""
_RECEIVE: Final = 64 * 1024


class RemoteError(Exception):
    """What is wrong, for people."""


class NoHost(RemoteError):
    """There is no such host, or there are several."""


class HostGone(RemoteError):
    """The host has ended, or does not answer."""


class RequestDenied(RemoteError):
    """The host's answer is no. `kind` is one of `control_protocol.ErrorKind`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@attrs.frozen
class Found:
    """A socket in the folders, and what its host said of itself."""

    path: Path
    greeting: Greeting | None
    """None for a host that does not answer in time."""

    @property
    def label(self) -> str:
        """How this one can be told from others of the same name: the socket's name."""
        return self.path.name.removesuffix(control_folder.SUFFIX)

    def may_have(self, vms: Collection[str]) -> bool:
        """Whether all of these VMs can be its own; a host that does not answer may have any."""
        return self.greeting is None or set(vms) <= set(self.greeting.vms)

    @property
    def name(self) -> str:
        """As people call it."""
        return self.label if self.greeting is None else self.greeting.name


class _Answered(msgspec.Struct):
    """What matters of an answer, whoever gave it."""

    ok: bool
    result: Any = None
    error: str = "internal"
    message: str = ""


class Remote:
    """A connection to one host. One request at a time; open another one for more."""

    def __init__(self, stream: trio.SocketStream, path: Path) -> None:
        self._stream = stream
        self._lines = Lines(MAX_ANSWER)
        self._lock = trio.Lock()
        self.path = path

    async def ask(self, op: str, **members: Any) -> Any:
        """The result of a request, as plain lists, dictionaries, numbers and text; members that are None are left out.

        Raises `RequestDenied`, `HostGone`.
        """
        request = {"op": op, **{name: value for name, value in members.items() if value is not None}}
        async with self._lock:
            await self._send(msgspec.json.encode(request) + b"\n")
            line = await self._line()
        try:
            answer = msgspec.json.decode(line, type=_Answered)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise self.no_host() from None
        if not answer.ok:
            raise RequestDenied(answer.error, answer.message)
        return answer.result

    async def hello(self) -> Greeting:
        """Who it is."""
        try:
            return msgspec.convert(await self.ask("hello"), Greeting)
        except msgspec.ValidationError:
            raise self.no_host() from None

    def no_host(self) -> HostGone:
        """For bytes that no host of this version sends."""
        return HostGone(f"{self.path}: what answers there is no host of Partita, or of another version")

    @asynccontextmanager
    async def stream(self, op: str, **members: Any) -> AsyncIterator[Stream]:
        """Make a stream of this connection, which is of no other use afterwards. Raises as `ask` does."""
        await self.ask(op, **members)
        yield Stream(self._stream, self._lines.take())

    async def _send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # what it said before it went, such as that it is busy, is still there to be read

    async def _line(self) -> bytes:
        while True:
            try:
                line = self._lines.next()
            except LineTooLong:
                raise HostGone(f"{self.path}: an answer of more than {MAX_ANSWER} bytes; this is no host") from None
            if line is not None:
                return line
            try:
                data = await self._stream.receive_some(_RECEIVE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                raise HostGone(f"{self.path.name}: the host has ended before it answered")
            self._lines.feed(data)


class Stream:
    """What comes after the answer: bytes, or lines of them."""

    def __init__(self, stream: trio.SocketStream, first: bytes) -> None:
        self._stream = stream
        self._first = first

    async def receive(self) -> bytes:
        """What has come, at least a byte; nothing at the end."""
        first, self._first = self._first, b""
        if first:
            await trio.lowlevel.checkpoint()
            return first
        try:
            return await self._stream.receive_some(_RECEIVE)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    async def send(self, data: bytes) -> None:
        """All of it. Raises `HostGone`."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise HostGone("the host has ended") from None

    async def end(self) -> None:
        """No more is sent; what comes is still received. Raises `HostGone`."""
        try:
            await self._stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise HostGone("the host has ended") from None

    @property
    def hung_up(self) -> bool:
        """Whether the host has closed the connection both ways."""
        poll = select.poll()
        poll.register(self._stream.socket.fileno(), 0)
        return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))

    def lines(self) -> AsyncIterator[bytes]:
        """Line by line, until the end."""
        return _LinesOf(self)


class _LinesOf:
    """Not a generator, which would have to be closed by whoever stops in the middle."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._lines = Lines(MAX_ANSWER)

    def __aiter__(self) -> _LinesOf:
        return self

    async def __anext__(self) -> bytes:
        try:
            while (line := self._lines.next()) is None:
                data = await self._stream.receive()
                if not data:
                    raise StopAsyncIteration
                self._lines.feed(data)
        except LineTooLong:
            raise HostGone(f"a line of more than {MAX_ANSWER} bytes; this is no host") from None
        return line


async def running_hosts(environment: Mapping[str, str] = os.environ) -> list[Found]:
    """Every host of this user that answers or listens; sockets of those that have ended are removed."""
    found: list[Found] = []

    async def look(path: Path) -> None:
        try:
            async with _open(path) as remote:
                greeting: Greeting | None = None
                with trio.move_on_after(GREETING_SECONDS):
                    greeting = await remote.hello()
            found.append(Found(path, greeting))
        except RemoteError:
            pass

    async with trio.open_nursery() as nursery:
        for path in control_folder.sockets(environment):
            nursery.start_soon(look, path)
    return sorted(found, key=lambda one: one.label)


@asynccontextmanager
async def connect(
    where: str | os.PathLike[str] | None = None,
    *,
    vms: Collection[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> AsyncIterator[Remote]:
    """A host by its socket's path, by its name or process number as `running_hosts` has them, or the only one.

    Where several run and `where` is None, it is the only one that has all of `vms`.

    Raises `NoHost` with a list of those that there are, and `HostGone`.
    """
    if where is not None and (os.sep in os.fspath(where) or Path(where).is_socket()):  # noqa: ASYNC240  # once
        path = Path(where)
    else:
        path = choose(await running_hosts(environment), None if where is None else os.fspath(where), vms).path
    async with _open(path) as remote:
        yield remote


def choose(found: Sequence[Found], wanted: str | None, vms: Collection[str] = ()) -> Found:
    """The one that is meant: by name, else by the VMs that it has, if that leaves no doubt. Raises `NoHost`."""
    if not found:
        raise NoHost("no host runs that could be asked; start one with: partita run TOPOLOGY")
    if wanted is None:
        meant = [one for one in found if not vms or one.may_have(vms)] or list(found)
    else:
        meant = [one for one in found if wanted == one.label]
        meant = meant or [one for one in found if wanted in (one.name, str(control_folder.pid_of(one.path)))]
    there = ", ".join(one.label for one in found)
    if not meant:
        names = [name for one in found for name in (one.label, one.name)]
        near = difflib.get_close_matches(wanted or "", names, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"there are {there}"
        raise NoHost(f'no host "{wanted}" runs; {hint}')
    if len(meant) > 1:
        raise NoHost(f"several hosts run; choose one with --host: {', '.join(one.label for one in meant)}")
    return meant[0]


@asynccontextmanager
async def _open(path: Path) -> AsyncIterator[Remote]:
    """A connection. Raises `HostGone`; a socket that was left over in our own folder is removed."""
    try:
        with control_folder.address(path) as address:
            stream = await trio.open_unix_socket(address)
    except ConnectionRefusedError:
        if path.parent in control_folder.folders() and path.name.endswith(control_folder.SUFFIX):
            control_folder.remove(path)
        raise HostGone(f"{path}: its host has ended") from None
    except OSError as error:
        raise HostGone(f"{path}: {error.strerror or error}") from None
    try:
        yield Remote(stream, path)
    finally:
        await trio.aclose_forcefully(stream)
