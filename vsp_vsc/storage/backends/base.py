"""What a disk's bytes rest on: the interface of every backend. Root side.

Data moves between the backend and views of guest memory, never through a buffer of ours. There are two ways in:
`try_read` does a read at once where that cannot wait, which is nearly always; `submit` takes everything else and calls
back, in the Trio thread, when it is done. An inline backend calls back before `submit` returns.

Concurrency: all methods are called in the Trio thread. Jobs are carried out in the order of their submission, so a
flush covers every write submitted before it, those not yet answered included. A guest may change the memory behind a
view at any time; nothing is ever decided by reading it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs
import trio

from hypervisor.inspect import Branch, counters

BLOCK_SIZE = 512
"""Bytes in a logical block; every backend's size is a multiple."""


class BackendError(Exception):
    """An image that cannot serve as a disk. The message names the path and what to do about it."""


class ImageInUse(BackendError):
    """Someone else has the image open in a way that does not go with ours."""


class ImageSizeError(BackendError):
    """The image's length is not a whole number of blocks, or is zero."""


class IoOperation(enum.Enum):
    """What a job does."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"
    DISCARD = "discard"
    """Give the room of some ranges back; they read as zeros from then on."""
    EXTENTS = "extents"
    """Tell which parts of a range take room on the host."""


@attrs.define(eq=False)
class Job:
    """One I/O that may take its time."""

    operation: IoOperation
    done: Callable[[OSError | None], None]
    """Called once, in the Trio thread, with the host's error if there was one."""
    views: Sequence[memoryview] = ()
    offset: int = 0
    """Bytes from the start of the disk."""
    length: int = 0
    """Bytes; the views together have as many."""
    durable: bool = False
    """A write that must be on the medium before `done` (force unit access)."""
    ranges: Sequence[tuple[int, int]] = ()
    """Of a discard: (offset, length) pairs in bytes, whole blocks, in any order; they may overlap."""
    most_extents: int = 0
    """Of a question for extents: how many are wanted at most, from the start of the range on."""
    extents: list[tuple[int, int, bool]] = attrs.field(factory=list)
    """Its answer: offset, length and whether it takes room; without gaps, at least one. None need be a whole block."""
    error: OSError | None = None


@attrs.frozen
class BackendStatistics:
    """What a backend has done since it was opened."""

    reads_inline: int
    """Reads that were done at once."""
    reads_waited: int
    """Reads that were not in memory and went to the worker."""
    writes: int
    flushes: int
    """Flushes that reached the host, those of durable writes included."""
    bytes_read: int
    bytes_written: int
    errors: int
    discards: int
    bytes_discarded: int
    batches: int
    """Batches of jobs that a worker took; jobs over batches tells how well it batches."""


class DiskBackend(Protocol):
    """A disk's bytes."""

    @property
    def size_bytes(self) -> int:
        """Capacity, a multiple of 512."""

    @property
    def read_only(self) -> bool:
        """Whether writes would fail."""

    @property
    def discards(self) -> bool:
        """Whether a discard gives room back, rather than cost the writing of zeros; false if `read_only`."""

    @property
    def identity(self) -> str:
        """The same for the same disk in every run, another for another: a path, or a name."""

    def try_read(self, views: Sequence[memoryview], offset: int, length: int) -> bool:
        """Fill the views now; False if that would wait: then `submit`. The range is on the disk. OSError."""

    def submit(self, job: Job) -> None:
        """Do it and call `job.done`. Never raises for what the host's storage does."""

    def measure(self) -> bool:
        """Look how large the disk is by now; whether that is another size than before. Raises OSError."""

    def statistics(self) -> BackendStatistics:
        """Counters, as of now."""

    def close(self) -> None:
        """Finish what was submitted, let go of the image. Blocks while a job is under way; harmless when repeated."""


def inspect_backend(backend: DiskBackend) -> Branch:
    """What it rests on, and what it has done."""
    return Branch(
        {
            "kind": type(backend).__name__,
            "identity": backend.identity,
            "size": backend.size_bytes,
            "read_only": backend.read_only,
            "discards": backend.discards,
            "counters": lambda: counters(attrs.asdict(backend.statistics())),
        }
    )


async def run(backend: DiskBackend, operation: IoOperation, **job: object) -> None:
    """Submit a job and wait for it; for front ends that have a task per request, and for tests. Raises OSError.

    Cancelling does not stop the job, so the wait is shielded: the views are in use until it ends.
    """
    finished = trio.Event()
    failures: list[OSError] = []

    def done(error: OSError | None) -> None:
        if error is not None:
            failures.append(error)
        finished.set()

    backend.submit(Job(operation, done, **job))  # type: ignore[arg-type]
    with trio.CancelScope(shield=True):
        await finished.wait()
    await trio.lowlevel.checkpoint_if_cancelled()
    if failures:
        raise failures[0]


async def read(backend: DiskBackend, offset: int, length: int) -> bytes:
    """Read bytes. Raises OSError."""
    data = bytearray(length)
    views = [memoryview(data)]
    if not backend.try_read(views, offset, length):
        await run(backend, IoOperation.READ, views=views, offset=offset, length=length)
    else:
        await trio.lowlevel.checkpoint()
    return bytes(data)


async def write(backend: DiskBackend, offset: int, data: bytes, *, durable: bool = False) -> None:
    """Write bytes. Raises OSError."""
    views = [memoryview(data)]
    await run(backend, IoOperation.WRITE, views=views, offset=offset, length=len(data), durable=durable)


async def discard(backend: DiskBackend, *ranges: tuple[int, int]) -> None:
    """Have ranges, as (offset, length), read as zeros. Raises OSError."""
    await run(backend, IoOperation.DISCARD, ranges=ranges)


async def flush(backend: DiskBackend) -> None:
    """Bring every write submitted so far to the medium. Raises OSError."""
    await run(backend, IoOperation.FLUSH)


def check_size(size: int, what: str, block_size: int = BLOCK_SIZE) -> None:
    """Raises `ImageSizeError` unless a disk with such blocks can have this size; `what` names the image."""
    if size <= 0 or size % block_size:
        remedy = f"truncate -s %{block_size} rounds it up" if size else "give it a size first, such as truncate -s 64M"
        raise ImageSizeError(f"{what} has {size} bytes; a disk has a multiple of {block_size}, at least one. {remedy}")
