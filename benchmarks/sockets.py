"""A socket between a guest program and its host against a Trio stream over a Unix socket. Both sides.

Both move 16 KiB at a time, from a task that writes to one that reads, in one process. The guest's stream has rings of
256 KiB each way and goes through its bus: hypercalls, event flags, the checks of either side.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from benchmarks.measure import ROUNDS, compare, table

PIECE = 16 * 1024
PIECES = 2000
PORT = 7
GUEST = """
import trio


async def main(guest):
    async def drink(stream):
        async for piece in stream:
            pass

    listener = await guest.listen(7, ring_bytes=260 * 1024)
    await trio.serve_listeners(drink, [listener])
"""
SENDING_GUEST = """
import trio


async def main(guest):
    async def pour(stream):
        data = bytes(16384)
        while True:
            await stream.send_all(data)

    listener = await guest.listen(7, ring_bytes=260 * 1024)
    try:
        await trio.serve_listeners(pour, [listener])
    except* trio.BrokenResourceError:
        pass
"""


async def _receive(stream: trio.abc.ReceiveStream) -> float:
    """Seconds a piece, from the first on."""
    await stream.receive_some(PIECE)
    left = PIECES * PIECE
    start = time.perf_counter()
    while left > 0:
        left -= len(await stream.receive_some(PIECE))
    return (time.perf_counter() - start) / PIECES


async def _send(stream: trio.abc.SendStream) -> float:
    """Seconds a piece."""
    data = bytes(PIECE)
    start = time.perf_counter()
    for _ in range(PIECES):
        await stream.send_all(data)
    return (time.perf_counter() - start) / PIECES


def trio_unix() -> float:
    """The same over a pair of Unix sockets."""

    async def main() -> float:
        ours, theirs = (trio.SocketStream(end) for end in trio.socket.socketpair())
        async with trio.open_nursery() as nursery:

            async def drink() -> None:
                while await theirs.receive_some(PIECE):
                    pass

            nursery.start_soon(drink)
            seconds = await _send(ours)
            nursery.cancel_scope.cancel()
        return seconds

    return trio.run(main)


def _with_guest(program: str, measure: Callable[[trio.abc.Stream], Awaitable[float]]) -> float:
    from partitions.host import open_host
    from partitions.topology import parse_topology

    async def main(folder: Path) -> float:
        (folder / "guest.py").write_text(program)
        words = '[[vm]]\nname = "web"\nprogram = "guest.py"\nmemory = "8MiB"\n'
        async with open_host(parse_topology(words, folder)) as host:
            vm = host["web"]
            await vm.start()
            async with await vm.connect(PORT) as stream:
                seconds = await measure(stream)
            await vm.turn_off()
        return seconds

    with tempfile.TemporaryDirectory() as folder:
        return trio.run(main, Path(folder))


CASES: dict[str, Callable[[], float]] = {
    "trio_unix": trio_unix,
    "to_guest": lambda: _with_guest(GUEST, _send),
    "from_guest": lambda: _with_guest(SENDING_GUEST, _receive),
}


def measure(rounds: int = ROUNDS) -> dict[str, float]:
    """The figure with a bar, the slower of both directions: bytes a second against the Unix socket's."""
    medians = compare(CASES, rounds)
    slower = max(medians["to_guest"], medians["from_guest"])
    return {"socket.stream16k.vs_trio_unix": medians["trio_unix"] / slower}


if __name__ == "__main__":
    print(table(compare(CASES), "trio_unix"))
