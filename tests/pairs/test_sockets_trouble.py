"""Streams of whole VMs in trouble: reset, pause, rescind, save, and listeners that close while busy. Both sides."""

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
        try:
            async for piece in stream:
                await stream.send_all(piece)
        except trio.BrokenResourceError:
            guest.print("broken")

    async def brief():
        listener = await guest.listen(9)
        async with trio.open_nursery() as nursery:
            async def accept():
                while True:
                    try:
                        stream = await listener.accept()
                    except trio.ClosedResourceError:
                        guest.print("closed")
                        return
                    async with stream:
                        if await stream.receive_some() == b"close":
                            await listener.aclose()

            nursery.start_soon(accept)
        async with await guest.listen(9):
            guest.print("listens again")
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, [await guest.listen(7)])
        nursery.start_soon(brief)


async def resume(guest):
    await main(guest)
"""


@asynccontextmanager
async def machine(folder: Path) -> AsyncIterator[Vm]:
    """A VM whose guest echoes on 7; on 9 it listens until somebody says `close`, and then anew."""
    (folder / "guest.py").write_text(GUEST)
    words = '[[vm]]\nname = "web"\nprogram = "guest.py"\nmemory = "8MiB"\n'
    with trio.fail_after(500):
        async with open_host(parse_topology(words, folder)) as host:
            vm = host["web"]
            await vm.start()
            yield vm
            await vm.turn_off()
            assert vm.exit is not None
            vm.exit.raise_worker_failure()


async def flood(stream: trio.abc.Stream, ended: list[str]) -> None:
    """Send and receive at once until the stream is over."""

    async def send() -> None:
        try:
            while True:
                await stream.send_all(bytes(40_000))
        except trio.ClosedResourceError:
            ended.append("sender closed")
        except trio.BrokenResourceError:
            ended.append("sender broken")

    async def receive() -> None:
        try:
            while await stream.receive_some(1000):  # noqa: ASYNC110 - it is slow, and waits for nothing
                await trio.sleep(0.0001)
            ended.append("receiver at the end")
        except trio.ClosedResourceError:
            ended.append("receiver closed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(receive)


async def echoes(vm: Vm) -> None:
    """A new stream works."""
    async with await vm.connect(7) as stream:
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"


@pytest.mark.parametrize("way", ["reset", "turn_off", "save", "checkpoint", "rescind", "close"])
async def test_ended_while_busy(way: str, tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """In the midst of full rings both ways: host tasks hear of the end, and the next stream works."""
    async with machine(tmp_path) as vm:
        stream = await vm.connect(7)
        ended: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood, stream, ended)
            await trio.sleep(0.01)
            assert ended == []
            match way:
                case "reset":
                    await vm.reset()
                case "turn_off":
                    await vm.turn_off()
                    await vm.start()
                case "save":
                    await vm.save()
                    await vm.start()
                case "checkpoint":
                    await vm.checkpoint()
                case "rescind":
                    worker = vm._managed.worker
                    assert worker is not None
                    assert worker.server is not None
                    worker.server.sockets.end_all("a test's whim")
                case _:
                    await stream.aclose()
        if way == "close":
            assert sorted(ended) == ["receiver closed", "sender closed"]
        else:
            assert sorted(ended) == ["receiver at the end", "sender broken"]
        await stream.aclose()
        await trio.sleep(1)
        await echoes(vm)


async def test_a_pause_keeps_a_stream(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """A paused guest answers nothing, and goes on where it was."""
    async with machine(tmp_path) as vm, await vm.connect(7) as stream:
        await trio.sleep(1)  # the guest is asleep: a model guest that is not stops where it next is
        await vm.pause()
        data = bytes(range(256)) * 20
        await stream.send_all(data)
        with trio.move_on_after(100) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught
        await vm.resume()
        got = b""
        while len(got) < len(data):
            got += await stream.receive_some()
        assert got == data


async def test_a_listener_closes_while_a_task_accepts(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """The task that accepts hears of it, who comes meanwhile is refused, and the port can be had again."""
    async with machine(tmp_path) as vm:
        async with await vm.connect(9) as stream:
            await stream.send_all(b"close")
            assert await stream.receive_some() == b""
        while "listens again" not in vm.console.text:  # noqa: ASYNC110 - it has no event; the clock is virtual
            await trio.sleep(0.1)
        assert vm.console.text.split("\n")[:2] == ["closed", "listens again"]
        async with await vm.connect(9):
            pass
        with pytest.raises(SocketRefused, match="listens"):
            await vm.connect(8)
