"""A disk in memory: for tests, and for guests that need no more. Root side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from vsp_vsc.storage.backends.base import BackendStatistics, IoOperation, Job, check_size

_PAGE = 4096


class MemoryBackend:
    """A bytearray as a disk; everything is done at once."""

    def __init__(self, contents: int | bytes, *, read_only: bool = False, identity: str = "memory") -> None:
        """`contents` is a size in bytes for an empty disk, or the bytes themselves."""
        self._data = bytearray(contents)
        check_size(len(self._data), f"the memory disk {identity!r}")
        self._view = memoryview(self._data)
        self.read_only = read_only
        self.identity = identity
        self.discards = not read_only
        self._reads = self._writes = self._flushes = self._bytes_read = self._bytes_written = 0
        self._discards = self._bytes_discarded = 0

    @property
    def size_bytes(self) -> int:
        """Capacity."""
        return len(self._data)

    @property
    def data(self) -> memoryview:
        """The disk's bytes as they are."""
        return self._view

    def try_read(self, views: Sequence[memoryview], offset: int, length: int) -> bool:
        """Fill the views; always at once."""
        for view in views:
            size = len(view)
            view[:] = self._view[offset : offset + size]
            offset += size
        self._reads += 1
        self._bytes_read += length
        return True

    def submit(self, job: Job) -> None:
        """Do it and call back before returning."""
        match job.operation:
            case IoOperation.READ:
                self.try_read(job.views, job.offset, job.length)
            case IoOperation.WRITE:
                offset = job.offset
                for view in job.views:
                    self._view[offset : offset + len(view)] = view
                    offset += len(view)
                self._writes += 1
                self._bytes_written += job.length
                self._flushes += job.durable
            case IoOperation.FLUSH:
                self._flushes += 1
            case IoOperation.DISCARD:
                for offset, length in job.ranges:
                    self._view[offset : offset + length] = bytes(length)
                    self._bytes_discarded += length
                self._discards += 1
            case IoOperation.EXTENTS:
                job.extents = self._extents(job.offset, job.offset + job.length, job.most_extents)
            case _:
                assert_never(job.operation)
        job.done(None)

    def resize(self, size: int) -> None:
        """Another size; what is new reads as zeros. `ImageSizeError`."""
        check_size(size, f"the memory disk {self.identity!r}")
        self._data = bytearray(self._data[:size].ljust(size, b"\0"))
        self._view = memoryview(self._data)

    def measure(self) -> bool:
        """Nobody else changes it."""
        return False

    def _extents(self, offset: int, end: int, most: int) -> list[tuple[int, int, bool]]:
        """As if pages of zeros took no room."""
        found: list[tuple[int, int, bool]] = []
        while offset < end:
            size = min(_PAGE - offset % _PAGE, end - offset)
            taken = any(self._view[offset : offset + size])
            if found and found[-1][2] is taken:
                found[-1] = found[-1][0], found[-1][1] + size, taken
            elif len(found) == most:
                break
            else:
                found.append((offset, size, taken))
            offset += size
        return found

    def statistics(self) -> BackendStatistics:
        """Counters, as of now."""
        return BackendStatistics(
            reads_inline=self._reads,
            reads_waited=0,
            writes=self._writes,
            flushes=self._flushes,
            bytes_read=self._bytes_read,
            bytes_written=self._bytes_written,
            errors=0,
            discards=self._discards,
            bytes_discarded=self._bytes_discarded,
            batches=0,
        )

    def close(self) -> None:
        """Nothing to let go of."""
