"""`partita console`: this terminal as the serial port of a VM of a running host. Root side."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from partitions.cli.common import OK, Verbs
from partitions.cli.hosts import add_host_option, with_host

if TYPE_CHECKING:
    import argparse

    import trio

    from partitions.cli.terminal import Terminal, Wish
    from partitions.remote import Remote, Stream

LINES: Final = 20
AHEAD: Final = 65536
"""Bytes typed that the host has not taken."""


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "console",
        help="this terminal becomes the serial port of a VM",
        description="Join this terminal to the serial port of a VM of a running host, until the VM is off. Ctrl-] "
        "opens a menu of keys, d in it leaves the VM to itself; all other keys are the guest's.",
        allow_abbrev=False,
    )
    parser.add_argument("vm", metavar="VM", help="name of a VM")
    add_host_option(parser)
    parser.add_argument(
        "--tail", type=int, default=LINES, metavar="N", help=f"how much of what was printed before to show ({LINES})"
    )
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Until the VM is off, or a person leaves."""
    with_host(options, lambda host: attach(host, options.vm, max(0, min(options.tail, 1000))))
    return OK


class RemotePort:
    """The other end of a stream as `Terminal` takes it; what is typed waits here for `pump`."""

    def __init__(self, stream: Stream) -> None:
        import trio

        self.dropped = 0
        self._stream = stream
        self._typed = bytearray()
        self._bell = trio.Event()

    @contextlib.contextmanager
    def listen(self) -> Iterator[RemotePort]:
        """It has been listening since it was made."""
        yield self

    async def receive(self) -> bytes:
        """Output, at least a byte; nothing when the VM is off or the host has gone."""
        return await self._stream.receive()

    def send(self, data: bytes) -> int:
        """Type."""
        taken = data[: AHEAD - len(self._typed)]
        self._typed += taken
        self._bell.set()
        return len(taken)

    async def pump(self) -> None:
        """Send what is typed, until cancelled or nobody takes it."""
        import trio

        from partitions.remote import HostGone

        while True:
            while self._typed:
                data = bytes(self._typed)
                try:
                    await self._stream.send(data)
                except HostGone:
                    return
                del self._typed[: len(data)]
            self._bell = trio.Event()
            await self._bell.wait()


async def attach(host: Remote, vm: str, lines: int) -> None:
    """Bytes both ways."""
    import trio

    from partitions.cli.terminal import Terminal

    terminal = Terminal(vm, detach=True)
    async with host.stream("console", vm=vm, tail=lines) as stream:
        port = RemotePort(stream)
        if terminal.typing:
            print(f"console of {vm}: Ctrl-] opens a menu of keys, everything else is the guest's", file=sys.stderr)
        terminal.open()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(port.pump)
                nursery.start_soon(_take, terminal, port, host, nursery)
                # A terminal that has gone is the end, too.
                with contextlib.suppress(OSError):
                    await terminal.show(port)
                nursery.cancel_scope.cancel()
        finally:
            terminal.close()


async def _take(terminal: Terminal, port: RemotePort, host: Remote, nursery: trio.Nursery) -> None:
    def wish(what: Wish) -> None:
        from partitions.cli.terminal import Wish

        if what is Wish.DETACH:
            nursery.cancel_scope.cancel()
        else:
            nursery.start_soon(_stop, terminal, host, what is Wish.TURN_OFF)

    await terminal.take(port, wish)


async def _stop(terminal: Terminal, host: Remote, force: bool) -> None:
    """By a connection of its own; a refusal is told on the terminal."""
    from partitions.logs import printable
    from partitions.remote import RemoteError, connect

    try:
        async with connect(host.path) as other:
            await other.ask("stop", vm=terminal.vm, force=force)
    except RemoteError as error:
        await terminal.write(f"\r\n[{printable(str(error))}]\r\n".encode())
