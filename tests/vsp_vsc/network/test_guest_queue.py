"""The queue between the driver and who reads frames."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from vsp_vsc.network.guest_queue import KEPT_FRAMES, FrameQueue


async def test_frames_in_order_and_in_batches() -> None:
    """One by one and many at a time, the rest at the next call."""
    queue = FrameQueue()
    queue.put([b"%d" % number for number in range(10)])
    assert await queue.receive() == b"0"
    assert await queue.receive_batch(3) == [b"1", b"2", b"3"]
    assert len(await queue.receive_batch()) == 6
    assert len(queue) == 0


async def test_a_reader_waits() -> None:
    """Until a frame comes; a cancelled one has taken none."""
    queue = FrameQueue()
    with trio.move_on_after(0):
        await queue.receive()
    got = []

    async def read() -> None:
        got.append(await queue.receive_batch())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        queue.put([b"a"])
    assert got == [[b"a"]]


async def test_nobody_reads() -> None:
    """So many are kept, the newest are dropped and counted."""
    queue = FrameQueue()
    for number in range(KEPT_FRAMES + 10):
        queue.put([b"%d" % number])
    queue.put([b"x"] * 5)
    assert (len(queue), queue.dropped) == (KEPT_FRAMES, 15)
    assert await queue.receive() == b"0"


async def test_the_end() -> None:
    """What has come is read first; a closed queue forgets it."""
    queue = FrameQueue()
    queue.put([b"last"])
    queue.end()
    assert await queue.receive() == b"last"
    with pytest.raises(trio.EndOfChannel):
        await queue.receive()
    closed = FrameQueue()
    closed.put([b"last"])
    closed.close()
    with pytest.raises(trio.ClosedResourceError):
        await closed.receive_batch()
    assert closed.closed
