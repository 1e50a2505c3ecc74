"""Disk reads through VSC, channel, VSP and image, against reading the image oneself. Both sides.

The image is in the page cache. Random reads of 4 KiB keep 32 under way, sequential reads of 256 KiB keep 8. The guest
asks for a batch at a time, as a program with a queue would. It is compared with `trio.open_file`, seek and read, in as
many tasks, which is what an async program without us would write, and with `os.preadv` in a plain loop, which is the
least that reading costs in Python.

Here VSP and VSC share a process and plain memory. The readers take any `Disk`, so a guest program can run them too.
"""

from __future__ import annotations

import functools
import os
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from benchmarks.measure import ROUNDS, compare, table
from hypervisor.blocks import MemoryBlock
from hypervisor.memory import GuestMemory
from hypervisor.pages import PAGE_SHIFT, Access
from hypervisor.trace import Trace
from hypervisor.wire import Guid
from vmbus.channel import Channel
from vmbus.server.opened import ChannelGpadls, HoldCounts, OpenedChannel
from vsp_vsc.storage.backends.raw_file import RawFileBackend
from vsp_vsc.storage.scsi.target import ScsiTarget
from vsp_vsc.storage.vsc import Disk, open_storage
from vsp_vsc.storage.vsp import StorageVsp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

IMAGE_BYTES = 256 << 20
"""More than a processor caches, as disks are: a hot cache here means the page cache."""
RANDOM_BYTES, RANDOM_DEPTH, RANDOM_READS = 4096, 32, 32 * 100
SEQUENTIAL_BYTES, SEQUENTIAL_DEPTH, SEQUENTIAL_READS = 256 << 10, 8, 256
TRIO_READS = 32 * 32
"""`trio.open_file` is so slow that fewer reads do."""
GUEST_BYTES = 32 << 20
RING_BYTES = 128 << 10
_FIRST_PAGE = 256


def make_image(path: Path) -> None:
    """An image without holes."""
    piece = random.Random(1).randbytes(1 << 20)
    with path.open("wb") as image:
        for _ in range(IMAGE_BYTES // len(piece)):
            image.write(piece)
        image.flush()
        os.fsync(image.fileno())


def warm(path: Path) -> None:
    """Bring the image into the page cache, from where busy machines drop it: before each case, outside its time."""
    buffer = bytearray(1 << 20)
    with path.open("rb", buffering=0) as image:
        while image.readinto(buffer):
            pass


_choose = random.Random(2)


def random_offsets(count: int) -> tuple[int, ...]:
    """Offsets in bytes, others at each call: who comes later in a round must not find them in a processor's cache."""
    return tuple(_choose.randrange(IMAGE_BYTES // RANDOM_BYTES) * RANDOM_BYTES for _ in range(count))


def sequential_start() -> int:
    """Where a run of sequential reads begins, in bytes; another place at each call, for the same reason."""
    return _choose.randrange(IMAGE_BYTES // SEQUENTIAL_BYTES) * SEQUENTIAL_BYTES


# --- what we are compared with


def preadv_random(path: Path) -> float:
    """Seconds for one `os.preadv` of 4 KiB."""
    warm(path)
    fd = os.open(path, os.O_RDONLY)
    buffers = [memoryview(bytearray(RANDOM_BYTES))]
    offsets = random_offsets(RANDOM_READS)
    start = time.perf_counter()
    for offset in offsets:
        os.preadv(fd, buffers, offset)
    seconds = time.perf_counter() - start
    os.close(fd)
    return seconds / RANDOM_READS


def preadv_sequential(path: Path) -> float:
    """Seconds for one `os.preadv` of 256 KiB, into as many buffers in turn as the guest has."""
    warm(path)
    fd = os.open(path, os.O_RDONLY)
    first = sequential_start()
    buffers = [[memoryview(bytearray(SEQUENTIAL_BYTES))] for _ in range(SEQUENTIAL_DEPTH)]
    start = time.perf_counter()
    for index in range(SEQUENTIAL_READS):
        os.preadv(fd, buffers[index % SEQUENTIAL_DEPTH], (first + index * SEQUENTIAL_BYTES) % IMAGE_BYTES)
    seconds = time.perf_counter() - start
    os.close(fd)
    return seconds / SEQUENTIAL_READS


def trio_open_file_random(path: Path) -> float:
    """Seconds for one seek and read of 4 KiB, 32 tasks with a file each."""

    async def reader(image: Any, offsets: tuple[int, ...]) -> None:
        for offset in offsets:
            await image.seek(offset)
            await image.read(RANDOM_BYTES)

    async def main() -> float:
        warm(path)
        offsets = random_offsets(TRIO_READS)
        images = [await trio.open_file(path, "rb") for _ in range(RANDOM_DEPTH)]
        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for index, image in enumerate(images):
                nursery.start_soon(reader, image, offsets[index::RANDOM_DEPTH])
        seconds = time.perf_counter() - start
        for image in images:
            await image.aclose()
        return seconds / TRIO_READS

    return trio.run(main)


# --- us

Reader = Callable[[Disk], Awaitable[float]]


async def random_batches(disk: Disk) -> float:
    """Seconds for one read of 4 KiB as bytes, 32 in a batch."""
    blocks = RANDOM_BYTES // disk.block_size
    offsets = [(offset // disk.block_size, blocks) for offset in random_offsets(RANDOM_READS)]
    start = time.perf_counter()
    for first in range(0, RANDOM_READS, RANDOM_DEPTH):
        await disk.read_many(offsets[first : first + RANDOM_DEPTH])
    return (time.perf_counter() - start) / RANDOM_READS


async def random_buffers(disk: Disk) -> float:
    """The same without the copy from DMA buffers to bytes."""
    buffers = [disk.buffer(RANDOM_BYTES) for _ in range(RANDOM_DEPTH)]
    offsets = [offset // disk.block_size for offset in random_offsets(RANDOM_READS)]
    start = time.perf_counter()
    for first in range(0, RANDOM_READS, RANDOM_DEPTH):
        await disk.read_into_many(zip(offsets[first : first + RANDOM_DEPTH], buffers, strict=True))
    seconds = time.perf_counter() - start
    for buffer in buffers:
        buffer.free()
    return seconds / RANDOM_READS


async def random_tasks(disk: Disk) -> float:
    """The same by 32 tasks that read one at a time."""
    blocks = RANDOM_BYTES // disk.block_size
    offsets = random_offsets(RANDOM_READS)

    async def reader(own: tuple[int, ...]) -> None:
        for offset in own:
            await disk.read(offset // disk.block_size, blocks)

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for index in range(RANDOM_DEPTH):
            nursery.start_soon(reader, offsets[index::RANDOM_DEPTH])
    return (time.perf_counter() - start) / RANDOM_READS


async def sequential_buffers(disk: Disk) -> float:
    """Seconds for one read of 256 KiB into a DMA buffer, 8 in a batch."""
    buffers = [disk.buffer(SEQUENTIAL_BYTES) for _ in range(SEQUENTIAL_DEPTH)]
    step = SEQUENTIAL_BYTES // disk.block_size
    begin = sequential_start() // disk.block_size
    start = time.perf_counter()
    for first in range(0, SEQUENTIAL_READS, SEQUENTIAL_DEPTH):
        await disk.read_into_many(
            ((begin + (first + index) * step) % disk.blocks, buffer) for index, buffer in enumerate(buffers)
        )
    seconds = time.perf_counter() - start
    for buffer in buffers:
        buffer.free()
    return seconds / SEQUENTIAL_READS


class _Platform:
    """As much of a guest's kernel as the driver needs."""

    def __init__(self) -> None:
        self.block = MemoryBlock.allocate(GUEST_BYTES, "benchmark guest")
        self.memory = self.block.view
        self._next = _FIRST_PAGE

    def allocate_pages(self, count: int) -> int:
        gpn, self._next = self._next, self._next + count
        if self._next > GUEST_BYTES >> PAGE_SHIFT:
            raise MemoryError(f"no {count} guest pages")
        return gpn

    def free_pages(self, gpn: int, count: int) -> None:
        pass


@asynccontextmanager
async def disk_in_process(path: Path, *, inline: bool = False) -> AsyncIterator[Disk]:
    """The image as a guest's disk: VSP and VSC on a channel in this process."""
    platform = _Platform()
    guest = GuestMemory()
    guest.map_block(0, platform.block, 0, GUEST_BYTES >> PAGE_SHIFT, Access.ALL)
    to_host, to_guest = memoryview(bytearray(RING_BYTES)), memoryview(bytearray(RING_BYTES))
    ends: list[Channel] = []
    ends.append(Channel(outgoing=to_guest, incoming=to_host, signal=lambda: ends[1].wake(), shared=False))
    ends.append(Channel(outgoing=to_host, incoming=to_guest, signal=lambda: ends[0].wake(), shared=False))
    gpadls = ChannelGpadls(1, lambda _channel, _gpadl: None, HoldCounts(lambda _channel, _gpadl: None))
    opened = OpenedChannel(
        channel_id=1, target_vp=0, user_data=bytes(120), version=0x50003, memory=guest, gpadls=gpadls
    )
    backend = RawFileBackend.open(path, read_only=True, inline=inline)
    vsp = StorageVsp({0: ScsiTarget(backend)}, Guid("11111111-2222-3333-4444-555555555555"), Trace(lambda: 0), 2)
    async with AsyncExitStack() as stack:
        stack.callback(backend.close)
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(vsp.serve, ends[0], opened)
        storage = await stack.enter_async_context(open_storage(ends[1], platform))  # type: ignore[arg-type]
        yield storage.disks[0]
        nursery.cancel_scope.cancel()


def in_process(reader: Reader, path: Path) -> float:
    """Seconds an operation of `reader`, which runs on a disk of its own."""

    async def main() -> float:
        warm(path)
        async with disk_in_process(path) as disk:
            return await reader(disk)

    return trio.run(main)


def random_cases(path: Path) -> dict[str, Callable[[], float]]:
    """4 KiB random reads, 32 under way."""
    return {
        "trio_open_file": functools.partial(trio_open_file_random, path),
        "preadv": functools.partial(preadv_random, path),
        "partita": functools.partial(in_process, random_batches, path),
        "partita_buffers": functools.partial(in_process, random_buffers, path),
        "partita_tasks": functools.partial(in_process, random_tasks, path),
    }


def sequential_cases(path: Path) -> dict[str, Callable[[], float]]:
    """256 KiB sequential reads, 8 under way."""
    return {
        "preadv": functools.partial(preadv_sequential, path),
        "partita": functools.partial(in_process, sequential_buffers, path),
    }


def ratios(rounds: int = ROUNDS, folder: Path | None = None) -> dict[str, float]:
    """How many times faster than what it is compared with each case is, by stable keys; prints the medians."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "image.raw"
        make_image(path)
        small = compare(random_cases(path), rounds)
        print(table(small, "preadv"))
        large = compare(sequential_cases(path), rounds)
        print(table(large, "preadv"))
    return {
        "storage.randread4k_qd32.vs_trio_open_file": small["trio_open_file"] / small["partita"],
        "storage.randread4k_qd32.vs_preadv": small["preadv"] / small["partita"],
        "storage.seqread256k_qd8.vs_preadv": large["preadv"] / large["partita"],
    }


if __name__ == "__main__":
    for key, value in ratios().items():
        print(f"{key} {value:.3f}")
