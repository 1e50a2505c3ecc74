"""A VM's VNC server: connections on this machine's own address, each with a screen, a keyboard and a mouse. Root side.

It listens from the VM's first start until the VM is destroyed or its host ends; what a client sees while the VM is off
is black. Nobody is asked for a password, so nobody but this machine is listened to.

Concurrency: three tasks a client. One reads what it does, one follows what changes on the screen, and one sends: a
picture when the client has asked for one and something has changed, `PICTURES_A_SECOND` at most. A client that does
not read holds up its own sender and nothing else; what changes meanwhile waits as a few rectangles. At most
`MAX_CLIENTS` are served; as many more at a time are told so, the rest is closed without a word. One that breaks the
protocol is closed, counted, and traced as a warning.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs
import trio

from hypervisor.inspect import Branch, Many
from hypervisor.trace import Layer, Level, Trace
from partitions.root.vnc.connection import Began, Key, Pointer, RfbConnection
from partitions.root.vnc.hands import Hands
from partitions.root.vnc.protocol import RfbError
from vmbus.bell import Bell
from vsp_vsc.video.framebuffer import Rect

if TYPE_CHECKING:
    from vsp_vsc.keyboard.vsp import KeyboardVsp
    from vsp_vsc.mouse.vsp import MouseVsp
    from vsp_vsc.video.framebuffer import Framebuffer

ADDRESS: Final = "127.0.0.1"
MAX_CLIENTS: Final = 16
GREETING_SECONDS: Final = 10.0
"""A client that has not come in by then is closed."""
PARTING_SECONDS: Final = 1.0
"""For the words that a client is closed with."""
PICTURES_A_SECOND: Final = 30
READ_BYTES: Final = 4096
"""Read at a time: some hundred keys are dealt with before others run."""
_HOST: Final = 0
"""What a VM's client does is no partition's doing."""
_BLACK: Final = b"\0\0\0\0"


@attrs.frozen
class Console:
    """What a VM has for people now; None while it is off, or has none."""

    screen: Callable[[], Framebuffer | None]
    keyboard: Callable[[], KeyboardVsp | None]
    mouse: Callable[[], MouseVsp | None]
    changed: Callable[[], trio.Event]
    """Set when any of them may be another than when this was called."""


class VncServer:
    """One for a VM. `listen`, then `run` in a task of its own."""

    def __init__(self, name: str, size: tuple[int, int], console: Console, trace: Trace) -> None:
        """`name` is the VM's, and what viewers show; `size` what they see before it has been on."""
        self.name = name
        self.console = console
        self.port = 0
        """That it listens on; 0 before it does."""
        self.served = 0
        self.refused = 0
        """Clients that found too many others."""
        self.faults = 0
        """Clients that were closed for what they sent, or did not."""
        self.failures = 0
        """Clients that were closed for a mistake of ours."""
        self.scope = trio.CancelScope()
        """Around `run`."""
        self._size = size
        self._trace = trace
        self._listener: trio.SocketListener | None = None
        self._numbers = itertools.count(1)
        self._turning_away = 0
        """Clients too many that are being told so."""
        self._clients: dict[int, _Client] = {}

    @property
    def size(self) -> tuple[int, int]:
        """Of the screen, now or when the VM was on last."""
        screen = self.console.screen()
        if screen is not None:
            self._size = screen.width, screen.height
        return self._size

    @property
    def clients(self) -> int:
        """That are connected."""
        return len(self._clients)

    def listen(self, port: int) -> None:
        """From now on connections wait to be served; port 0 is any that is free. Raises `OSError`."""
        listening = socket.create_server((ADDRESS, port), backlog=MAX_CLIENTS)
        self.port = listening.getsockname()[1]
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))

    async def run(self) -> None:
        """Serve until `scope` is cancelled."""
        assert self._listener is not None, "`listen` comes first"
        try:
            with self.scope:
                await trio.serve_listeners(self._accepted, [self._listener])
        finally:
            self.port = 0

    def inspect(self) -> Branch:
        """Where it listens, and who is there."""
        return Branch(
            {
                "address": f"{ADDRESS}:{self.port}" if self.port else None,
                "served": self.served,
                "refused": self.refused,
                "faults": self.faults,
                "failures": self.failures,
                "clients": Many(self._clients, int),
            }
        )

    def pixels(self, x: int, y: int, width: int, height: int) -> bytes:
        """A part of the screen as it is now; black while there is none."""
        screen = self.console.screen()
        if screen is None:
            return _BLACK * (width * height)
        return screen.pixels(x, y, width, height)

    def leave_to(self, client: _Client) -> None:
        """That one wants to be the only one."""
        for other in self._clients.values():
            if other is not client:
                other.scope.cancel()

    async def _accepted(self, stream: trio.SocketStream) -> None:
        try:
            host, port = stream.socket.getpeername()[:2]
        except OSError:  # gone before it was looked at
            return
        await self.serve(stream, f"{host}:{port}")

    async def serve(self, stream: trio.abc.HalfCloseableStream, address: str) -> None:
        """One client, from its coming to its going."""
        full = len(self._clients) >= MAX_CLIENTS
        if full and self._turning_away >= MAX_CLIENTS:  # each of those costs a descriptor until it has read why
            self.refused += 1
            await trio.aclose_forcefully(stream)
            return
        refuse = f"{MAX_CLIENTS} clients are connected already" if full else ""
        client = _Client(self, stream, address, RfbConnection(*self.size, self.name, refuse=refuse))
        number = next(self._numbers)
        self.refused += full
        self._turning_away += full
        if not full:
            self.served += 1
            self._clients[number] = client
            self._tell("vnc_client_came", client.address)
        try:
            why = await client.run()
            if why and not full:
                self.faults += 1
                words = f"{self.name}: {client.address}: {why}"
                self._trace.warn(Layer.STATE, "vnc_client_closed", _HOST, words)
        except Exception as error:  # our own mistake: this client's end, and not the host's
            self.failures += 1
            self._tell("vnc_failed", f"{client.address}: {''.join(traceback.format_exception(error))}", Level.ERROR)
        finally:
            self._clients.pop(number, None)
            self._turning_away -= full
            client.hands.leave()
            if not full:
                self._tell("vnc_client_left", client.address)

    def _tell(self, event: str, words: str, level: Level = Level.INFO) -> None:
        if self._trace.on:
            self._trace.emit(*(Layer.STATE, event, _HOST), vm=self.name, level=level, words=f"VNC client {words}")


class _Client:
    """One connection."""

    def __init__(
        self, server: VncServer, stream: trio.abc.HalfCloseableStream, address: str, connection: RfbConnection
    ) -> None:
        self.address = address
        self.hands = Hands(server.console.keyboard, server.console.mouse)
        self.scope = trio.CancelScope()
        self._server = server
        self._stream = stream
        self._connection = connection
        self._bell = Bell()
        self._fault = ""
        self._came_in = trio.Event()
        self._bytes = 0

    def inspect(self) -> Branch:
        """Who it is, what it wants, and what it has got."""
        connection = self._connection
        wanted = connection.format
        return Branch(
            {
                "address": self.address,
                "state": connection.state.value,
                "version": connection.version,
                "encoding": connection.encoding.name.lower(),
                "bits_a_pixel": wanted.bits,
                "size": f"{connection.width}x{connection.height}",
                "pictures": connection.pictures,
                "bytes": self._bytes,
                **self.hands.inspect().children,
            }
        )

    async def run(self) -> str:
        """Until it leaves, is closed, or the VM's server ends; what it did wrong, if anything."""
        async with self._stream:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send)
                    nursery.start_soon(self._hurry, nursery.cancel_scope)
                    self._bell.ring()
                    await self._receive(nursery)
                    nursery.cancel_scope.cancel()
                await self._part()
        return self._fault

    async def _hurry(self, scope: trio.CancelScope) -> None:
        """A client comes in, in time."""
        with trio.move_on_after(GREETING_SECONDS):
            await self._came_in.wait()
            return
        self._fault = f"did not come in within {GREETING_SECONDS:g} s"
        scope.cancel()

    async def _receive(self, nursery: trio.Nursery) -> None:
        """What the client does."""
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await self._stream.receive_some(READ_BYTES):
                try:
                    for event in self._connection.feed(bytes(data)):
                        if isinstance(event, Began):
                            self._came_in.set()
                            nursery.start_soon(self._follow)
                            if not event.shared:
                                self._server.leave_to(self)
                        else:
                            self._act(event)
                except RfbError as fault:
                    self._fault = str(fault)
                    return
                self._bell.ring()

    def _act(self, event: Key | Pointer) -> None:
        match event:
            case Key():
                self.hands.key(event)
            case Pointer():
                self.hands.point(event, self._connection.width, self._connection.height)

    async def _part(self) -> None:
        """Last words, to one that reads them."""
        with trio.move_on_after(PARTING_SECONDS), contextlib.suppress(trio.BrokenResourceError):
            if self._connection.output:
                await self._stream.send_all(bytes(self._connection.output))
            await self._stream.send_eof()

    async def _follow(self) -> None:
        """What changes on the screen; from one run of the VM to the next."""
        connection, console = self._connection, self._server.console
        while True:
            changed, screen = console.changed(), console.screen()
            if screen is not None:
                await self._watch(screen)
                continue
            connection.changed([Rect(0, 0, connection.width, connection.height)])
            self._bell.ring()
            await changed.wait()

    async def _watch(self, screen: Framebuffer) -> None:
        """As long as it is this VM's screen."""
        console = self._server.console
        with screen.watch() as damage:
            async with trio.open_nursery() as nursery:

                async def until_gone() -> None:
                    while console.screen() is screen:
                        await console.changed().wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(until_gone)
                while True:
                    await damage.wait()
                    resized, rects = damage.take()
                    if resized:
                        self._connection.resized(screen.width, screen.height)
                    self._connection.changed(rects)
                    self._bell.ring()

    async def _send(self) -> None:
        """Answers and pictures."""
        connection = self._connection
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                await self._bell.wait()
                await self._flush()
                while connection.due:
                    began = trio.current_time()
                    for piece in connection.updates(self._server.pixels):
                        await self._put(piece)
                    await self._flush()
                    await trio.sleep_until(began + 1 / PICTURES_A_SECOND)
        # Nobody reads: the receiver finds the end, or has found it.

    async def _flush(self) -> None:
        output = self._connection.output
        if output:
            data = bytes(output)
            output.clear()
            await self._put(data)

    async def _put(self, data: bytes) -> None:
        await self._stream.send_all(data)
        self._bytes += len(data)
