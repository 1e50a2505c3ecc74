"""Raw images: what reaches the file, what waits, what is locked."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from vsp_vsc.storage.backends import raw_file, worker
from vsp_vsc.storage.backends.base import ImageInUse, ImageSizeError, IoOperation, Job, flush, read, run, write
from vsp_vsc.storage.backends.raw_file import RawFileBackend, create_image

SIZE = 64 * 1024
PATTERN = bytes(range(256)) * (SIZE // 256)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(PATTERN)
    return path


@pytest.fixture(params=[False, True], ids=["worker", "inline"])
def backend(image: Path, request: pytest.FixtureRequest) -> Iterator[RawFileBackend]:
    opened = RawFileBackend.open(image, inline=request.param)
    yield opened
    opened.close()


def contents(image: Path) -> bytes:
    return image.read_bytes()


def views(*sizes: int) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


async def test_reads_and_writes_reach_the_file(backend: RawFileBackend, image: Path) -> None:
    """With a worker and inline alike."""
    assert await read(backend, 512, 1024) == PATTERN[512:1536]
    await write(backend, 4096, b"w" * 512)
    assert contents(image) == PATTERN[:4096] + b"w" * 512 + PATTERN[4608:]
    assert await read(backend, 4096, 512) == b"w" * 512
    assert (backend.size_bytes, backend.read_only) == (SIZE, False)


async def test_a_read_fills_scattered_views_at_once(backend: RawFileBackend) -> None:
    """What is in the page cache needs no thread: neither with RWF_NOWAIT nor on file systems in memory."""
    pieces = views(100, 412, 512)
    assert backend.try_read(pieces, 512, 1024)
    assert b"".join(pieces) == PATTERN[512:1536]
    assert backend.statistics().reads_inline == 1
    assert backend.statistics().bytes_read == 1024


async def test_flushes_and_durable_writes_reach_fdatasync(
    backend: RawFileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush once, a durable write after its bytes, a plain write not at all."""
    synced: list[bytes] = []

    def fdatasync(fd: int) -> None:
        synced.append(os.pread(fd, 4, 0))

    monkeypatch.setattr(raw_file, "_flush", fdatasync)
    await write(backend, 0, b"AAAA" * 128)
    assert synced == []
    await flush(backend)
    assert synced == [b"AAAA"]
    await write(backend, 0, b"BBBB" * 128, durable=True)
    assert synced == [b"AAAA", b"BBBB"]
    assert backend.statistics().flushes == 2


async def test_a_flush_covers_all_writes_submitted_before_it(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order is kept through the worker, and what came before a flush is answered before it."""
    order: list[str] = []
    at_flush: list[bytes] = []

    def fdatasync(fd: int) -> None:
        at_flush.append(os.pread(fd, 3 * 512, 0))

    monkeypatch.setattr(raw_file, "_flush", fdatasync)
    backend = RawFileBackend.open(image)
    finished = trio.Event()

    def note(what: str) -> Callable[[OSError | None], None]:
        def done(error: OSError | None) -> None:
            assert error is None
            order.append(what)
            if what == "flush":
                finished.set()

        return done

    for index in range(3):
        data = [memoryview(bytes([index]) * 512)]
        backend.submit(Job(IoOperation.WRITE, note(f"write {index}"), data, index * 512, 512))
    backend.submit(Job(IoOperation.FLUSH, note("flush")))
    await finished.wait()
    backend.close()
    assert at_flush == [bytes(512) + b"\1" * 512 + b"\2" * 512]
    assert order == ["write 0", "write 1", "write 2", "flush"]


async def test_a_write_does_not_wait_for_a_flush_behind_it(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may take long over a flush; what is done before it is answered before it."""
    held, working, write_answered = threading.Event(), threading.Event(), threading.Event()
    in_time: list[bool] = []

    def fdatasync(fd: int) -> None:
        if not working.is_set():
            working.set()
            held.wait(10)
        else:
            in_time.append(write_answered.wait(10))

    monkeypatch.setattr(raw_file, "_flush", fdatasync)
    backend = RawFileBackend.open(image)
    flushed = trio.Event()
    backend.submit(Job(IoOperation.FLUSH, lambda error: None))
    working.wait(10)
    backend.submit(Job(IoOperation.WRITE, lambda error: write_answered.set(), [memoryview(bytes(512))], 0, 512))
    backend.submit(Job(IoOperation.FLUSH, lambda error: flushed.set()))
    held.set()
    await flushed.wait()
    assert in_time == [True]
    backend.close()


async def test_one_hop_carries_many_jobs(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What gathers while the worker works is one batch."""
    held, working = threading.Event(), threading.Event()

    def fdatasync(fd: int) -> None:
        working.set()
        held.wait(10)

    monkeypatch.setattr(raw_file, "_flush", fdatasync)
    backend = RawFileBackend.open(image)
    finished: list[int] = []
    all_done = trio.Event()

    def done(error: OSError | None) -> None:
        finished.append(1)
        if len(finished) == 31:
            all_done.set()

    backend.submit(Job(IoOperation.FLUSH, done))
    working.wait(10)
    for index in range(30):
        backend.submit(Job(IoOperation.WRITE, done, [memoryview(bytes(512))], index * 512, 512))
    held.set()
    await all_done.wait()
    assert backend.statistics().batches == 2
    assert backend.statistics().writes == 30
    backend.close()


async def test_a_read_that_would_wait_goes_to_the_worker(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EAGAIN and a part of the data both mean: not now."""
    backend = RawFileBackend.open(image)
    real = os.preadv

    def nothing_cached(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if threading.current_thread() is threading.main_thread():
            raise BlockingIOError(errno.EAGAIN, "not in memory")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", nothing_cached)
    assert not backend.try_read(views(512), 0, 512)
    assert await read(backend, 0, 512) == PATTERN[:512]
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset, flags=0: 100)
    assert not backend.try_read(views(512), 0, 512)
    monkeypatch.setattr(os, "preadv", real)
    assert (backend.statistics().reads_inline, backend.statistics().reads_waited) == (0, 1)
    backend.close()


async def test_the_host_may_move_a_part_at_a_time(backend: RawFileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short reads and writes go on where they stopped, across views."""
    real_read, real_write = os.preadv, os.pwritev

    def short(views: list[memoryview]) -> list[memoryview]:
        return [views[0][:300]]

    monkeypatch.setattr(os, "preadv", lambda fd, views, offset, flags=0: real_read(fd, short(views), offset))
    monkeypatch.setattr(os, "pwritev", lambda fd, views, offset: real_write(fd, short(views), offset))
    pieces = views(700, 324)
    await run(backend, IoOperation.READ, views=pieces, offset=512, length=1024)
    assert b"".join(pieces) == PATTERN[512:1536]
    await run(backend, IoOperation.WRITE, views=[memoryview(b"x" * 700), memoryview(b"y" * 324)], offset=0, length=1024)
    monkeypatch.undo()
    assert await read(backend, 0, 1536) == b"x" * 700 + b"y" * 324 + PATTERN[1024:1536]


async def test_an_image_that_shrank_is_an_io_error(backend: RawFileBackend, image: Path) -> None:
    """The guest hears of it; nothing spins."""
    os.truncate(image, 1024)
    assert not backend.try_read(views(512), 4096, 512)
    with pytest.raises(OSError, match="image ends") as caught:
        await run(backend, IoOperation.READ, views=views(512), offset=4096, length=512)
    assert caught.value.errno == errno.EIO
    assert backend.statistics().errors == 1


async def test_host_errors_are_handed_back(backend: RawFileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the worker too, each to its own job."""

    def broken(fd: int, views: object, offset: int) -> int:
        raise OSError(errno.EIO, "medium")

    monkeypatch.setattr(os, "pwritev", broken)
    with pytest.raises(OSError, match="medium"):
        await write(backend, 0, bytes(512))
    assert await read(backend, 0, 512) == PATTERN[:512]


# --- locks, sizes


@pytest.mark.parametrize(
    ("first", "second", "fine"), [(False, False, False), (False, True, False), (True, False, False), (True, True, True)]
)
def test_one_writer_or_many_readers(image: Path, first: bool, second: bool, fine: bool) -> None:
    """Also within one process; the message names the image and what to do."""
    holder = RawFileBackend.open(image, read_only=first)
    if fine:
        RawFileBackend.open(image, read_only=second).close()
    else:
        with pytest.raises(ImageInUse, match=r"disk\.raw is in use by another disk of this host: .*copy"):
            RawFileBackend.open(image, read_only=second)
    holder.close()
    RawFileBackend.open(image).close()


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="the system does not tell who holds a lock")
def test_the_message_names_the_other_process(image: Path) -> None:
    """So that people know whom to stop."""
    script = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_SH); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ImageInUse, match=f"in use by process {other.pid}: stop whoever has it open"):
            RawFileBackend.open(image)
        other.communicate(b"\n")


def test_a_refused_image_is_not_kept_open(image: Path) -> None:
    """No descriptor leaks from a failed open."""
    before = set(os.listdir("/dev/fd"))
    with open(image) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ImageInUse):
            RawFileBackend.open(image)
    image.write_bytes(b"short")
    with pytest.raises(ImageSizeError):
        RawFileBackend.open(image)
    assert set(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("size", [0, 1, 511, 513])
def test_a_disk_has_whole_blocks(tmp_path: Path, size: int) -> None:
    """The message says what the size is, what it should be and how to mend it."""
    path = tmp_path / "odd.raw"
    path.write_bytes(bytes(size))
    with pytest.raises(ImageSizeError, match=rf"odd\.raw has {size} bytes; a disk has a multiple of 512.*truncate -s"):
        RawFileBackend.open(path)


def test_a_missing_image_is_the_systems_error(tmp_path: Path) -> None:
    """With the path in it."""
    with pytest.raises(FileNotFoundError, match=r"missing\.raw"):
        RawFileBackend.open(tmp_path / "missing.raw")


def test_create_image_makes_a_sparse_file(tmp_path: Path) -> None:
    """Never over a file that is there."""
    path = tmp_path / "new.raw"
    create_image(path, 1 << 20)
    assert path.stat().st_size == 1 << 20
    assert path.stat().st_blocks < 64
    with pytest.raises(FileExistsError):
        create_image(path, 1 << 20)
    with pytest.raises(ImageSizeError):
        create_image(tmp_path / "odd.raw", 100)


def test_identity_is_the_image_however_it_is_named(image: Path, tmp_path: Path) -> None:
    """So that a guest sees the same disk again."""
    link = tmp_path / "link.raw"
    link.symlink_to(image)
    with_link = RawFileBackend.open(link, read_only=True)
    without = RawFileBackend.open(image, read_only=True)
    assert with_link.identity == without.identity
    with_link.close()
    without.close()


# --- how to read


def probe(monkeypatch: pytest.MonkeyPatch, image: Path, *, file_system: str, refuse: bool) -> tuple[int, bool]:
    def preadv(fd: int, buffers: object, offset: int, flags: int = 0) -> int:
        if refuse:
            raise OSError(errno.EOPNOTSUPP, "no such flag here")
        return 512

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(raw_file, "_file_system", lambda fd: file_system)
    with open(image, "rb") as opened:
        return raw_file._how_to_read(opened.fileno())


def test_the_flag_is_used_where_the_file_takes_it(monkeypatch: pytest.MonkeyPatch, image: Path) -> None:
    """RWF_NOWAIT on ext4, xfs and others."""
    assert probe(monkeypatch, image, file_system="ext4", refuse=False) == (raw_file._NOWAIT, True)


def test_files_in_memory_are_read_plainly(monkeypatch: pytest.MonkeyPatch, image: Path) -> None:
    """tmpfs refuses the flag, and never waits."""
    assert probe(monkeypatch, image, file_system="tmpfs", refuse=True) == (0, True)


def test_other_files_without_the_flag_are_read_by_the_worker(monkeypatch: pytest.MonkeyPatch, image: Path) -> None:
    """A network file system, say: a plain read might wait for seconds."""
    assert probe(monkeypatch, image, file_system="nfs4", refuse=True) == (0, False)


def test_a_system_without_the_flag_reads_plainly(monkeypatch: pytest.MonkeyPatch, image: Path) -> None:
    """macOS."""
    monkeypatch.setattr(raw_file, "_NOWAIT", 0)
    assert probe(monkeypatch, image, file_system="apfs", refuse=True) == (0, True)


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="Linux only")
def test_the_file_system_of_a_file_is_known(image: Path) -> None:
    """By its device number in the mount table."""
    with open("/dev/null", "rb") as null:
        assert raw_file._file_system(null.fileno()) in {"devtmpfs", "tmpfs", "devfs"}


async def test_no_thread_starts_for_a_disk_that_is_only_read(image: Path) -> None:
    """Most disks of most guests need none."""
    before = threading.active_count()
    backend = RawFileBackend.open(image)
    assert await read(backend, 0, 512) == PATTERN[:512]
    assert threading.active_count() == before
    backend.close()
    backend.close()


async def test_a_close_does_not_wait_for_a_slow_disk(monkeypatch: pytest.MonkeyPatch, image: Path) -> None:
    """A guest wrote much, asked for a flush and switched off: the host stood still until the disk was done.

    The image stays locked until then, so nobody else gets at it half written.
    """
    monkeypatch.setattr(worker, "CLOSE_SECONDS", 0.01)
    go_on = threading.Event()
    monkeypatch.setattr(raw_file, "_flush", lambda fd: go_on.wait(10))
    backend = RawFileBackend.open(image)
    done = trio.Event()
    backend.submit(Job(IoOperation.FLUSH, lambda error: done.set()))
    assert backend._worker is not None
    thread = backend._worker._thread
    assert thread is not None
    backend.close()
    assert thread.is_alive()
    with pytest.raises(ImageInUse):
        RawFileBackend.open(image)
    go_on.set()
    with trio.fail_after(10):
        await done.wait()
        await trio.to_thread.run_sync(thread.join)
    RawFileBackend.open(image).close()


# --- another size


async def test_an_image_grows(tmp_path: Path) -> None:
    """By us, with zeros where nothing was, or by someone else, whom we have to look for; whole blocks count."""
    path = tmp_path / "disk.raw"
    path.write_bytes(b"d" * 1024)
    backend = RawFileBackend.open(path)
    backend.resize(2048)
    assert (backend.size_bytes, path.stat().st_size) == (2048, 2048)
    assert await read(backend, 0, 2048) == b"d" * 1024 + bytes(1024)
    assert not backend.measure()
    with path.open("ab") as image:
        image.write(b"e" * 700)
    assert backend.measure()
    assert backend.size_bytes == 2560
    assert await read(backend, 2048, 512) == b"e" * 512
    with pytest.raises(ImageSizeError, match="1000 bytes"):
        backend.resize(1000)
    os.truncate(path, 0)
    assert not backend.measure(), "a disk has a block at least"
    backend.close()
