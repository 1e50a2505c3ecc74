"""A person's terminal as the serial port of one VM: raw bytes both ways, and a key that gets out again. Root side.

`Ctrl-]` is the escape key, as in telnet. After it `q` presses the power buttons, `x` cuts the power, `d` leaves a VM
of another process to itself, `]` or `Ctrl-]` sends the key itself, and anything else goes back to the guest's console;
`Ctrl-C` and all others are the guest's. Where standard input is no terminal there is no escape key: bytes are copied as
they are, as they are on the way out.

Nothing waits on the Trio thread for a slow terminal. Output that nobody takes is kept up to what the console keeps;
what is lost beyond that is counted and shown. Typed bytes wait for a guest that does not read yet: from a pipe without
bound on time, from a person up to `TYPED_AHEAD` bytes.
"""

from __future__ import annotations

import enum
import os
import termios
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

import trio

ESCAPE: Final = 0x1D
"""Ctrl-]."""
TYPED_AHEAD: Final = 65536
RETRY_SECONDS: Final = 0.02
"""How often a full serial port is tried again: 4 KiB each time is more than a person types or pastes."""
READ_BYTES: Final = 4096
MENU: Final = "\n[Ctrl-]] q: shut down   x: turn off   ]: send Ctrl-]   any other key: back\n"
DETACH_MENU: Final = MENU.replace("q:", "d: leave   q:")


class Reader(Protocol):
    """Output as it comes."""

    dropped: int

    async def receive(self) -> bytes:
        """At least a byte; nothing at the end."""


class SerialPort(Protocol):
    """What a terminal is joined to: the console of a VM, here or on another host's socket."""

    def listen(self) -> AbstractContextManager[Reader]:
        """What is printed from now on."""

    def send(self, data: bytes) -> int:
        """Type; how many bytes there was room for."""


class Wish(enum.Enum):
    """What a person asks for behind the escape key."""

    MENU = "show the keys"
    SHUT_DOWN = "shut down"
    TURN_OFF = "turn off"
    DETACH = "leave it to itself"
    """Only where the VM goes on without its terminal."""


class EscapeKey:
    """Finds the escape key among typed bytes; a pure state machine."""

    def __init__(self, *, detach: bool = False) -> None:
        self.escaped = False
        self._detach = detach

    def feed(self, typed: bytes) -> list[bytes | Wish]:
        """What is for the guest and what is for us, in order."""
        found: list[bytes | Wish] = []
        plain = bytearray()
        for byte in typed:
            if not self.escaped:
                if byte == ESCAPE:
                    self.escaped = True
                    found += [bytes(plain), Wish.MENU] if plain else [Wish.MENU]
                    plain.clear()
                else:
                    plain.append(byte)
                continue
            self.escaped = False
            match byte:
                case 0x71 | 0x51:
                    found.append(Wish.SHUT_DOWN)
                case 0x78 | 0x58:
                    found.append(Wish.TURN_OFF)
                case 0x64 | 0x44 if self._detach:
                    found.append(Wish.DETACH)
                case 0x5D | 0x1D:
                    plain.append(ESCAPE)
                case _:
                    pass
        if plain:
            found.append(bytes(plain))
        return found


class RawMode:
    """Keys as they are pressed, unechoed, none of them a signal; the terminal as it was on every way out."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._before: list[Any] | None = None

    def enter(self) -> None:
        """Change it. Output keeps its treatment of line ends: model guests end lines with LF alone."""
        self._before = termios.tcgetattr(self._descriptor)
        raw = termios.tcgetattr(self._descriptor)
        raw[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR
        ) & ~(termios.ICRNL | termios.IXON)
        raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, raw)

    def leave(self) -> None:
        """As it was; once, and without complaint if the terminal has gone."""
        before, self._before = self._before, None
        if before is not None:
            try:
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, before)
            except termios.error:
                pass


class Terminal:
    """Two descriptors joined to the console of one VM."""

    def __init__(self, vm: str, source: int = 0, target: int = 1, *, detach: bool = False) -> None:
        self.vm = vm
        self._source = source
        self._target = target
        self.typing = os.isatty(source)
        self._raw = RawMode(source)
        self._escape = EscapeKey(detach=detach) if self.typing else None
        self._menu = DETACH_MENU if detach else MENU
        self._waiting = bytearray()
        self._room = trio.Event()
        self._more = trio.Event()
        self.lost_output = 0
        """Bytes that came faster than the terminal took them."""
        self.lost_input = 0
        """Bytes typed for a guest that did not read."""

    def open(self) -> None:
        """Raw mode, if it is a terminal."""
        if self.typing:
            self._raw.enter()

    def close(self) -> None:
        """The terminal as it was; any number of times."""
        self._raw.leave()

    async def show(self, console: SerialPort, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Copy what the VM prints, until its console is closed. Raises `OSError` when the terminal has gone."""
        with console.listen() as reader:
            task_status.started()
            try:
                while data := await reader.receive():
                    await self.write(data)
            finally:
                self.lost_output = reader.dropped

    async def write(self, data: bytes) -> None:
        """All of it, in a thread: a terminal that is stopped or slow holds up nothing else."""
        left = memoryview(data)
        while left:
            left = left[await trio.to_thread.run_sync(os.write, self._target, left, abandon_on_cancel=True) :]

    async def take(self, console: SerialPort, wish: Callable[[Wish], None]) -> None:
        """Copy what is typed, until the end of the input or cancellation."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_on, console)
            while typed := await self._read():
                for part in [typed] if self._escape is None else self._escape.feed(typed):
                    if isinstance(part, bytes):
                        await self._keep(part)
                    elif part is Wish.MENU:
                        await self.write(self._menu.encode())
                    else:
                        wish(part)
            while self._waiting:
                self._room = trio.Event()
                await self._room.wait()
            nursery.cancel_scope.cancel()

    async def _read(self) -> bytes:
        try:
            await trio.lowlevel.wait_readable(self._source)
        except PermissionError:
            await trio.lowlevel.checkpoint()  # a plain file: always ready, and epoll says so in this way
        try:
            return os.read(self._source, READ_BYTES)
        except OSError:
            return b""  # the terminal has gone

    async def _keep(self, part: bytes) -> None:
        if self.typing:
            # The escape key must be seen behind any amount of typing, so a person's bytes never hold up the reader.
            room = TYPED_AHEAD - len(self._waiting)
            self.lost_input += max(0, len(part) - room)
            part = part[:room]
        else:
            while len(self._waiting) >= TYPED_AHEAD:
                self._room = trio.Event()
                await self._room.wait()
        self._waiting += part
        self._more.set()

    async def _pass_on(self, console: SerialPort) -> None:
        while True:
            if not self._waiting:
                self._more = trio.Event()
                await self._more.wait()
            taken = console.send(bytes(self._waiting[:READ_BYTES]))
            del self._waiting[:taken]
            self._room.set()
            if not taken:
                await trio.sleep(RETRY_SECONDS)
            else:
                await trio.lowlevel.checkpoint()
