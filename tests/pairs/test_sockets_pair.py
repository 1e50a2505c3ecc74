"""The host's sockets against the guest's, whole VMs: both directions, ends, refusals, backlog, resets. Both sides."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from partitions.host import SocketRefused, Vm, open_host
from partitions.topology import parse_topology

GUEST = """
import trio


async def main(guest):
    async def echo(stream):
        async for piece in stream:
            await stream.send_all(piece)

    def said(error):
        guest.print(type(error).__name__)

    async with trio.open_nursery() as nursery:
        listener = await guest.listen(7)
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        full = await guest.listen(9, backlog=1)
        try:
            await guest.listen(7)
        except OSError as error:
            said(error)
        try:
            await guest.connect(5)
        except OSError as error:
            said(error)
        async with await guest.connect(6) as stream:
            await stream.send_all(bytes(range(256)) * 300)
            await stream.send_eof()
            got = b"".join([piece async for piece in stream])
            guest.print(len(got), got == bytes(range(256)) * 300)
        guest.print("ready")
"""


@asynccontextmanager
async def pair(folder: Path, version: str) -> AsyncIterator[Vm]:
    """A VM whose guest listens on 7 and 9 and has connected to 6 of its host's."""
    (folder / "guest.py").write_text(GUEST)
    words = f'[[vm]]\nname = "web"\nprogram = "guest.py"\nmemory = "8MiB"\nargs = {{ vmbus = "{version}" }}\n'

    async def echo(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"".join([bytes(piece) async for piece in stream]))

    with trio.fail_after(200):
        async with open_host(parse_topology(words, folder)) as host:
            vm = host["web"]
            vm.listen(6, echo)
            await vm.start()
            yield vm
            await vm.turn_off()
            assert vm.exit is not None
            vm.exit.raise_worker_failure()


@pytest.mark.parametrize("version", ["4.0", "4.1", "5.0", "5.1", "5.2", "5.3", "6.0"])
async def test_both_directions(version: str, tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """Every version with sockets: streams both ways with half closes, refusals that are OSErrors, and nothing left."""
    async with pair(tmp_path, version) as vm:
        refusal = "TimeoutError" if version == "4.0" else "ConnectionRefusedError"
        while "ready" not in vm.console.text:  # noqa: ASYNC110 - it has no event; the clock is virtual
            await trio.sleep(0.1)
        assert vm.console.text.split("\n")[:4] == ["OSError", refusal, "76800 True", "ready"]
        async with await vm.connect(7) as stream, trio.open_nursery() as nursery:
            data = bytes(range(256)) * 1000

            async def send() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            nursery.start_soon(send)
            assert b"".join([bytes(piece) async for piece in stream]) == data
        async with await vm.connect(9):  # waits in the backlog, which has room for one
            with pytest.raises(SocketRefused, match="listens"):
                await vm.connect(9)
        with pytest.raises(SocketRefused, match="listens"):
            await vm.connect(8)
