"""Streams under any order of tasks: Trio's own checks, a byte queue as the model, no wake-up lost. Both sides."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.pages import PAGE_SIZE
from tests.doubles.campaign import examples
from vmbus.channel import Channel
from vmbus.pipe import BytePipe, frame

PATIENCE_SECONDS = 1000


class LinkedPipe(BytePipe):
    """A stream whose close the other end hears of, as over a bus."""

    peer: LinkedPipe

    async def aclose(self) -> None:
        self.peer.channel.close(by_peer=True, keep=1 << 20)
        await super().aclose()


def linked(
    data_pages: int, deliver: Callable[[Callable[[], None]], None] = lambda wake: wake(), *, shared: bool = False
) -> tuple[LinkedPipe, LinkedPipe]:
    """Both ends; `deliver` brings a signal to its end."""
    up, down = (memoryview(bytearray(PAGE_SIZE * (1 + data_pages))) for _ in range(2))
    ends: list[Channel] = []
    ends += [
        Channel(outgoing=up, incoming=down, signal=lambda: deliver(ends[1].wake), shared=shared),
        Channel(outgoing=down, incoming=up, signal=lambda: deliver(ends[0].wake), shared=shared),
    ]
    one, two = (LinkedPipe(channel) for channel in ends)
    one.peer, two.peer = two, one
    return one, two


def clog(pipe: BytePipe, size: int) -> None:
    """Packets of that much data, until no more have room."""
    packet = frame(bytes(size))
    while pipe.channel.try_send_batch([packet]):
        pass


async def test_trios_checks(autojump_clock: trio.testing.MockClock) -> None:
    """All that Trio asks of a stream that closes by halves, and of one that is clogged."""

    async def clear() -> tuple[LinkedPipe, LinkedPipe]:
        return linked(8)

    async def clogged() -> tuple[LinkedPipe, LinkedPipe]:
        one, two = linked(3)
        for size in (2048, 8):
            clog(one, size)
            clog(two, size)
        return one, two

    await trio.testing.check_half_closeable_stream(clear, clogged)


class Schedule:
    """Tasks that take their turns, and signals that take their time, as a seed will have it."""

    def __init__(self, seed: int) -> None:
        self.choice = random.Random(seed)

    async def pause(self) -> None:
        for _ in range(self.choice.choice([0, 0, 0, 1, 1, 2, 5])):
            await trio.lowlevel.checkpoint()
        if self.choice.random() < 0.05:
            await trio.sleep(self.choice.random())

    async def sends(self, stream: BytePipe, data: bytes, most: int) -> None:
        """All of it, in pieces of any size; now and then a try is given up before it has begun."""
        start = 0
        while start < len(data):
            await self.pause()
            if self.choice.random() < 0.2:
                with trio.move_on_after(self.choice.choice([0, 0.01])):
                    await stream.wait_send_all_might_not_block()
            size = self.choice.randrange(most) + 1
            await stream.send_all(data[start : start + size])
            start += size
        await self.pause()
        await stream.send_eof()

    async def receives(self, stream: BytePipe, most: int) -> bytes:
        """All of it, in pieces of any size; a try that is given up takes nothing."""
        got: list[bytes] = []
        while True:
            await self.pause()
            limit = self.choice.choice([None, 1 + self.choice.randrange(most)])
            piece: bytes | None = None
            with trio.move_on_after(self.choice.choice([0, 0.01, 60, 60])):
                piece = await stream.receive_some(limit)
            if piece is not None:
                assert limit is None or len(piece) <= limit
                if not piece:
                    return b"".join(got)
                got.append(piece)


async def exchange(seed: int, sizes: tuple[int, int], pages: int, late: bool, shared: bool) -> None:
    schedule = Schedule(seed)
    choice = schedule.choice
    datas = [choice.randbytes(size) for size in sizes]
    received: dict[int, bytes] = {}
    async with trio.open_nursery() as signals:

        def deliver(wake: Callable[[], None]) -> None:
            async def later() -> None:
                await schedule.pause()
                wake()

            if late:
                signals.start_soon(later)
            else:
                wake()

        pipes = linked(pages, deliver, shared=shared)
        most = choice.choice([40, 3000, 40_000])

        async def receive(number: int) -> None:
            received[1 - number] = await schedule.receives(pipes[number], most)

        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for number in (0, 1):
                    nursery.start_soon(schedule.sends, pipes[number], datas[number], most)
                    nursery.start_soon(receive, number)
            for pipe in pipes:  # what is taken is heard of too
                await pipe.channel.wait_taken()
    assert [received[0], received[1]] == datas


@given(
    seed=st.integers(0, 1 << 32),
    sizes=st.tuples(st.integers(0, 60_000), st.integers(0, 60_000)),
    pages=st.integers(1, 5),
    late=st.booleans(),
    shared=st.booleans(),
)
@settings(max_examples=examples(30), deadline=None)
def test_no_wake_up_is_lost(seed: int, sizes: tuple[int, int], pages: int, late: bool, shared: bool) -> None:
    """Both directions at once, tasks and signals in any order, calls given up: all arrives, and nobody sleeps on it."""
    trio.run(exchange, seed, sizes, pages, late, shared, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("waiter", ["receiver", "sender", "who waits for room", "who says the end"])
async def test_a_close_wakes(waiter: str, autojump_clock: trio.testing.MockClock) -> None:
    """Whoever waits at the end that is closed hears of it."""
    one, _ = linked(1)
    calls: dict[str, Callable[[], object]] = {
        "receiver": one.receive_some,
        "sender": lambda: one.send_all(bytes(10_000)),
        "who waits for room": one.wait_send_all_might_not_block,
        "who says the end": one.send_eof,
    }
    if waiter != "receiver":
        clog(one, 0)
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await calls[waiter]()  # type: ignore[misc]

            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            await one.aclose()
