"""The live picture beside a run, or of a host that runs elsewhere: who listens, and when it ends. Root side."""

from __future__ import annotations

import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from partitions.cli.common import FAILED, OK, Refusal
from partitions.watch.hub import Hub

if TYPE_CHECKING:
    from partitions.host import Host
    from partitions.trace.filters import Filter

LAST_WORDS: Final = 5.0
"""Seconds that browsers get to take what is left when the host has ended."""
EXTRA: Final = "the live picture needs the package h11; install it with: pip install 'partita[watch]'"
"""What to say where it is not there. Pages of recordings do without."""


def claim(port: int) -> socket.socket:
    """A socket for the page, before anything starts. Raises `Refusal`."""
    try:
        from partitions.watch.server import PortTaken, listen_on
    except ModuleNotFoundError as error:
        if error.name != "h11":
            raise
        raise Refusal(EXTRA) from None
    try:
        return listen_on(port)
    except PortTaken as taken:
        raise Refusal(f"the live picture cannot be shown on {taken}", FAILED) from None


@asynccontextmanager
async def shown(hub: Hub, listening: socket.socket, say: Callable[[str], object]) -> AsyncIterator[None]:
    """Serve the hub's page, say where it is, and give browsers a little time at the end."""
    from partitions.watch.server import open_server

    async with open_server(hub, listening) as address:
        say(f"watch: {address}")
        yield
        hub.end()
        with trio.move_on_after(LAST_WORDS):
            await hub.wait_told()


@asynccontextmanager
async def watched(
    host: Host, title: str, listening: socket.socket, say: Callable[[str], object]
) -> AsyncIterator[trio.Event]:
    """A picture of a host of ours. What is given is set when the first browser looks at it."""
    hub = Hub(host.trace.names, title=title, instance=secrets.token_hex(8))
    for vm in host.values():
        hub.know(vm.name, vm.state.value)
    remove = host.trace.add_sink(hub.sink)
    try:
        async with shown(hub, listening, say):
            yield hub.seen
    finally:
        remove()


def watch_host(name: str | None, port: int, wanted: Filter | None) -> int:
    """A picture of a host that runs, until it ends or Ctrl-C."""
    from partitions.remote import RemoteError

    with claim(port) as listening:
        try:
            trio.run(_watch_host, name, listening, wanted)
        except RemoteError as error:
            raise Refusal(str(error), FAILED) from None
    return OK


async def _watch_host(name: str | None, listening: socket.socket, wanted: Filter | None) -> None:
    from partitions.recording.reader import RecordingError, RecordingReader
    from partitions.remote import connect

    def say(text: str) -> None:
        print(text, flush=True)

    async with connect(name) as remote:
        greeting = await remote.hello()
        async with remote.stream("trace", filter=None if wanted is None else wanted.text) as stream:
            reader = RecordingReader(name=greeting.name)
            hub = Hub(reader.names, title=greeting.name, instance=secrets.token_hex(8), share=1)
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async with shown(hub, listening, say), trio.open_nursery() as nursery:
                    stop = nursery.cancel_scope.cancel

                    async def until_the_end() -> None:
                        try:
                            while data := await stream.receive():
                                for event in reader.feed(data):
                                    hub.sink(event)
                            say("the host has ended")
                        except RecordingError as error:
                            say(f"error: {error}")
                        stop()

                    nursery.start_soon(until_the_end)
                    async for _ in signals:
                        stop()
                        break
