"""Guest programs that listen on ports of their own, for tests of the host's side of sockets."""

from __future__ import annotations

from pathlib import Path

from partitions.topology import parse_topology
from partitions.topology_schema import Topology

LISTENER = '''
import trio


async def echo(stream):
    """Port 7: says all that it hears."""
    async for piece in stream:
        await stream.send_all(piece)
    await stream.send_eof()


async def drink(stream):
    """Port 9: says nothing."""
    async for piece in stream:
        pass


async def page(stream):
    """Port 80: a page for each request of HTTP/1.1, one a connection."""
    asked = b""
    while b"\\r\\n\\r\\n" not in asked:
        asked += await stream.receive_some() or b"\\r\\n\\r\\n"
    body = b"hello from a partition\\n"
    head = b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n" % len(body)
    await stream.send_all(head + body)
    await stream.send_eof()
    async for piece in stream:
        pass


PORTS = {7: echo, 9: drink, 80: page}


def guarded(guest, program):
    async def serve(stream):
        try:
            await program(stream)
        except trio.BrokenResourceError:
            guest.print("broken")

    return serve


async def main(guest):
    async with trio.open_nursery() as nursery:
        for port, program in PORTS.items():
            listener = await guest.listen(port)
            nursery.start_soon(trio.serve_listeners, guarded(guest, program), [listener])
        guest.print("listening")


async def resume(guest):
    await main(guest)
'''
TABLE = '[[vm]]\nname = "web"\nprogram = "listener.py"\nmemory = "8MiB"\n'


def listening_topology(folder: Path, more: str = "") -> Topology:
    """A VM `web` that listens on ports 7, 9 and 80; `more` is said behind its table."""
    (folder / "listener.py").write_text(LISTENER)
    (folder / "topology.toml").write_text(TABLE + more)
    return parse_topology(TABLE + more, folder)
