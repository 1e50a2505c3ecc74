"""A disk in memory."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.doubles.storage import SlowBackend
from vsp_vsc.storage.backends.base import ImageSizeError, IoOperation, Job, flush, read, run, write
from vsp_vsc.storage.backends.memory import MemoryBackend


async def test_it_keeps_bytes() -> None:
    """And counts."""
    disk = MemoryBackend(4096)
    await write(disk, 512, b"m" * 512, durable=True)
    await flush(disk)
    assert await read(disk, 0, 1536) == bytes(512) + b"m" * 512 + bytes(512)
    assert bytes(disk.data[512:516]) == b"mmmm"
    stats = disk.statistics()
    assert (stats.reads_inline, stats.writes, stats.flushes) == (1, 1, 2)
    assert (stats.bytes_read, stats.bytes_written) == (1536, 512)
    disk.close()


async def test_a_read_job_works_too() -> None:
    """For front ends that do not try first."""
    disk = MemoryBackend(b"z" * 512)
    buffer = bytearray(512)
    await run(disk, IoOperation.READ, views=[memoryview(buffer)], offset=0, length=512)
    assert buffer == b"z" * 512


def test_sizes_are_whole_blocks() -> None:
    """As with images."""
    with pytest.raises(ImageSizeError, match="'memory' has 100 bytes"):
        MemoryBackend(100)


async def test_waiting_for_a_job_is_not_cut_short() -> None:
    """Its views are in use until it ends: a cancelled waiter stays until then."""
    disk = SlowBackend(4096)
    ended = trio.Event()

    async def reader(scope: trio.CancelScope) -> None:
        with scope:
            await run(disk, IoOperation.READ, views=[memoryview(bytearray(512))], offset=0, length=512)
        ended.set()

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader, scope)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not ended.is_set()
        disk.finish()
    assert scope.cancelled_caught


async def test_jobs_are_done_before_submit_returns() -> None:
    """It is inline by nature."""
    done: list[OSError | None] = []
    MemoryBackend(512).submit(Job(IoOperation.FLUSH, done.append))
    assert done == [None]
