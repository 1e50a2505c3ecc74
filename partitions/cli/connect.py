"""`partita connect`: standard input and output as a stream to a port of a VM of a running host. Root side."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from partitions.cli.common import OK, Refusal, Verbs
from partitions.cli.hosts import add_host_option, with_host

if TYPE_CHECKING:
    import argparse

    from partitions.remote import Remote, Stream

CHUNK: Final = 65536
_LOOK_SECONDS: Final = 0.25
"""How often a stream that says no more is asked whether it still listens."""


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "connect",
        help="standard input and output become a stream to a port of a VM",
        description="Join standard input and output to a port that the guest of a VM listens on (a Hyper-V socket), "
        "until both ends have said all, as in: ssh -o ProxyCommand='partita connect web 22' web.",
        allow_abbrev=False,
    )
    parser.add_argument("vm", metavar="VM", help="name of a VM")
    parser.add_argument("port", metavar="PORT", help="a port's number, or the GUID of a service")
    add_host_option(parser)
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Until the stream is over."""
    from vmbus.protocol.hvsocket import parse_service

    try:
        parse_service(options.port)
    except ValueError as error:
        raise Refusal(f"PORT: {error}") from None
    with_host(options, lambda host: attach(host, options.vm, options.port))
    return OK


async def attach(host: Remote, vm: str, port: str) -> None:
    """Bytes both ways."""
    async with host.stream("connect", vm=vm, port=port) as stream:
        await carry(stream)


async def carry(stream: Stream, source: int = 0, target: int = 1) -> None:
    """Join two descriptors to a stream. Its end is passed on; a person at a terminal is done then."""
    import trio

    sent = trio.Event()

    async def send() -> None:
        from partitions.remote import HostGone

        try:
            while data := await _read(source):
                await stream.send(data)
            await stream.end()
        except HostGone:
            pass  # the other way may still have something to say
        sent.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while data := await stream.receive():
            if not await _write(target, data):
                nursery.cancel_scope.cancel()  # nobody reads it
        if not os.isatty(source):
            _close(target)  # whoever reads it is to see the end, and may have something to say to that
            while not (sent.is_set() or stream.hung_up):
                with trio.move_on_after(_LOOK_SECONDS):
                    await sent.wait()
        nursery.cancel_scope.cancel()


async def _read(source: int) -> bytes:
    import trio

    try:
        await trio.lowlevel.wait_readable(source)
    except OSError:
        await trio.lowlevel.checkpoint()  # a plain file: always ready, and epoll says so in this way
    try:
        return os.read(source, CHUNK)
    except OSError:
        return b""  # closed, or its terminal has gone


async def _write(target: int, data: bytes) -> bool:
    """All of it, in a thread, since it may be slow; whether there is somebody to take it."""
    import trio

    left = memoryview(data)
    try:
        while left:
            left = left[await trio.to_thread.run_sync(os.write, target, left, abandon_on_cancel=True) :]
    except OSError:
        return False
    return True


def _close(target: int) -> None:
    """Nothing more is written; the descriptor stays one that can be written to."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, target)
    os.close(nowhere)
