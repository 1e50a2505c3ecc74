"""A disk in a raw image file or on a block device. Root side.

Reads go straight from the page cache into guest memory with `preadv` and RWF_NOWAIT, which costs about 1.2 µs for 4 KiB
and says EAGAIN where the data is not in memory; those reads, and all writes and flushes, go to one worker thread.

Whether a file takes RWF_NOWAIT is asked once, when it is opened. File systems that keep files in memory (tmpfs) refuse
it and never wait, so there a plain read does; on others that refuse it every read goes to the worker. Where the system
has no such flag at all (macOS) reads are plain and may wait for the disk.

A discard punches holes into the file: the host's disk has the room again, the ranges read as zeros. Whether the
file system can do that is asked once too, past the end of the file where there is nothing to lose. Should it refuse a
single range later, zeros are written there: what a guest was promised to read does not depend on the host.

With `inline` everything is done at once, on the caller's thread: a virtual clock jumps while a thread works.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self, assert_never

from vsp_vsc.storage.backends.base import BLOCK_SIZE, BackendStatistics, ImageInUse, IoOperation, Job, check_size
from vsp_vsc.storage.backends.holes import can_punch, clear, extents
from vsp_vsc.storage.backends.worker import BatchWorker

_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)
_IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}
_flush: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


def create_image(path: Path, size: int) -> None:
    """Make a sparse image of `size` bytes. Raises FileExistsError and OSError, `ImageSizeError` for the size."""
    check_size(size, str(path))
    with path.open("xb") as image:
        image.truncate(size)


class RawFileBackend:
    """An image whose bytes are the disk's bytes. Make it with `open`."""

    def __init__(self, fd: int, path: Path, size: int, *, read_only: bool, inline: bool) -> None:
        self._fd = fd
        self._closed = False
        self.path = path
        self.size_bytes = size
        self.read_only = read_only
        self.identity = os.path.realpath(path)
        self._flags, self._may_try = (0, True) if inline else _how_to_read(fd)
        self._worker = None if inline else BatchWorker(f"disk {path.name}", self._perform)
        self.discards = not read_only and can_punch(fd, size)
        self._reads_inline = self._reads_waited = self._writes = self._flushes = 0
        self._bytes_read = self._bytes_written = self._errors = 0
        self._discards = self._bytes_discarded = 0

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, read_only: bool = False, inline: bool = False) -> Self:
        """Open and lock an image: exclusively, or shared with other readers if `read_only`.

        Raises OSError where the file cannot be opened, `ImageInUse` where someone else has it, `ImageSizeError`. The
        lock is `flock`'s: it binds programs that ask, and it goes with the descriptor however the process ends.
        """
        place = Path(path)
        fd = os.open(place, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        try:
            _lock(fd, place, read_only=read_only)
            size = os.lseek(fd, 0, os.SEEK_END)  # of block devices too, unlike fstat
            check_size(size, str(place))
            return cls(fd, place, size, read_only=read_only, inline=inline)
        except BaseException:
            os.close(fd)
            raise

    def try_read(self, views: Sequence[memoryview], offset: int, length: int) -> bool:
        """Fill the views from memory; False if the disk would have to be waited for. Raises OSError."""
        if not self._may_try:
            return False
        try:
            if os.preadv(self._fd, views, offset, self._flags) != length:
                return False  # the rest is not in memory, or the image has shrunk: the worker finds out
        except BlockingIOError:
            return False
        except OSError:
            self._errors += 1
            raise
        self._reads_inline += 1
        self._bytes_read += length
        return True

    def submit(self, job: Job) -> None:
        """Hand the job to the worker, or do it at once if inline."""
        if self._worker is not None:
            self._worker.submit(job)
            return
        try:
            self._perform(job)
        except OSError as error:
            job.error = error
        job.done(job.error)

    def resize(self, size: int) -> None:
        """Give the image another size; what is new reads as zeros. Raises OSError, `ImageSizeError`."""
        check_size(size, str(self.path))
        os.ftruncate(self._fd, size)
        self.measure()

    def measure(self) -> bool:
        """Look how large the image is by now, in whole blocks; whether that is another size than before. OSError.

        Who makes a disk smaller than it was leaves the guest with addresses that end in errors.
        """
        size = os.lseek(self._fd, 0, os.SEEK_END) // BLOCK_SIZE * BLOCK_SIZE
        if size == self.size_bytes or not size:
            return False
        self.size_bytes = size
        return True

    def statistics(self) -> BackendStatistics:
        """Counters, as of now."""
        return BackendStatistics(
            reads_inline=self._reads_inline,
            reads_waited=self._reads_waited,
            writes=self._writes,
            flushes=self._flushes,
            bytes_read=self._bytes_read,
            bytes_written=self._bytes_written,
            errors=self._errors,
            discards=self._discards,
            bytes_discarded=self._bytes_discarded,
            batches=self._worker.batches if self._worker is not None else 0,
        )

    def close(self) -> None:
        """Finish what was submitted, unlock and close the image.

        Does not wait for a disk that takes long over it: the image stays locked until that is done.
        """
        if self._closed:
            return
        self._closed = True
        if self._worker is not None:
            self._worker.close(self._let_go)
        else:
            self._let_go()

    def _let_go(self) -> None:
        os.close(self._fd)
        self._fd = -1

    def _perform(self, job: Job) -> None:
        """One job, in the worker's thread or the caller's. Raises OSError."""
        try:
            match job.operation:
                case IoOperation.READ:
                    _whole(os.preadv, self._fd, job)
                    self._reads_waited += 1
                    self._bytes_read += job.length
                case IoOperation.WRITE:
                    _whole(os.pwritev, self._fd, job)
                    self._writes += 1
                    self._bytes_written += job.length
                    if job.durable:
                        self._sync()
                case IoOperation.FLUSH:
                    self._sync()
                case IoOperation.DISCARD:
                    for offset, length in job.ranges:
                        clear(self._fd, offset, length)
                        self._bytes_discarded += length
                    self._discards += 1
                case IoOperation.EXTENTS:
                    job.extents = extents(self._fd, job.offset, job.offset + job.length, job.most_extents)
                case _:
                    assert_never(job.operation)
        except OSError:
            self._errors += 1
            raise

    def _sync(self) -> None:
        _flush(self._fd)
        self._flushes += 1


def _whole(move: Callable[[int, Sequence[memoryview], int], int], fd: int, job: Job) -> None:
    """Read or write all of a job's range: the host may do a part at a time. OSError, also where the image has ended."""
    views, offset = job.views, job.offset
    end = offset + job.length
    while offset < end:
        moved = move(fd, views, offset)
        if moved <= 0:
            raise OSError(errno.EIO, f"the image ends at byte {offset}, the disk does not")
        offset += moved
        if offset < end:
            views = _rest(views, moved)


def _rest(views: Sequence[memoryview], done: int) -> list[memoryview]:
    """What is left of the views after the first `done` bytes."""
    left: list[memoryview] = []
    for view in views:
        if done < len(view):
            left.append(view[done:])
        done = max(0, done - len(view))
    return left


def _how_to_read(fd: int) -> tuple[int, bool]:
    """The flags for a read that cannot wait, and whether there is such a read at all."""
    if not _NOWAIT:
        return 0, True
    try:
        os.preadv(fd, [bytearray(BLOCK_SIZE)], 0, _NOWAIT)
    except BlockingIOError:
        return _NOWAIT, True
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            return 0, _file_system(fd) in _IN_MEMORY
        return _NOWAIT, True  # the first block is bad; that is for the guest to hear when it reads it
    return _NOWAIT, True


def _file_system(fd: int) -> str:
    """The type of the file system that a file is on, empty where unknown."""
    device = os.fstat(fd).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            fields = line.split()
            if fields[2] == number:
                return fields[fields.index("-") + 1]
    return ""


def _lock(fd: int, path: Path, *, read_only: bool) -> None:
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        if read_only:
            remedy = "stop whoever writes to it, or give this disk a copy"
        else:
            remedy = "stop whoever has it open, give this disk a copy, or open it read-only everywhere"
        raise ImageInUse(f"{path} is in use{_holders(fd)}: {remedy}") from None


def _holders(fd: int) -> str:
    """Which processes have the file locked, in words; empty where the system does not tell."""
    status = os.fstat(fd)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    pids: set[int] = set()
    with contextlib.suppress(OSError), open("/proc/locks", encoding="ascii", errors="replace") as locks:
        for line in locks:
            fields = line.split()
            if place in fields and "->" not in fields:
                pids |= {int(fields[fields.index(place) - 1])}
    others = sorted(pids - {os.getpid()})
    if others:
        return f" by process {', '.join(map(str, others))}"
    return " by another disk of this host" if os.getpid() in pids else ""
