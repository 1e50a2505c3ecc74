"""Holes in image files: what they read as, what they give back, what happens where there are none."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vsp_vsc.storage.backends import holes
from vsp_vsc.storage.backends.base import IoOperation, Job, discard, read, write
from vsp_vsc.storage.backends.raw_file import RawFileBackend

MIB = 1 << 20


def image_of(folder: Path, size: int = 4 * MIB) -> Path:
    path = folder / "disk.raw"
    path.write_bytes(b"x" * size)
    with path.open("rb+") as image:
        os.fsync(image.fileno())
    return path


def room(path: Path) -> int:
    return path.stat().st_blocks * 512


def refusing(number: int) -> Callable[[int, int, int, int], int]:
    """A fallocate that always fails."""

    def fallocate(_fd: int, _mode: int, _offset: int, _length: int) -> int:
        ctypes.set_errno(number)
        return -1

    return fallocate


@pytest.fixture(params=[False, True], ids=["worker", "inline"])
def inline(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def test_a_discard_gives_room_back(tmp_path: Path, inline: bool) -> None:
    """The image keeps its length, takes less room, and reads as zeros there and nowhere else."""
    path = image_of(tmp_path)
    backend = RawFileBackend.open(path, inline=inline)
    if not backend.discards:
        pytest.skip("the file system takes no holes")
    before = room(path)
    await discard(backend, (MIB, MIB), (3 * MIB, 512))
    assert await read(backend, 0, 4 * MIB) == b"x" * MIB + bytes(MIB) + b"x" * MIB + bytes(512) + b"x" * (MIB - 512)
    backend.close()
    assert path.stat().st_size == 4 * MIB
    assert before - room(path) >= MIB
    statistics = backend.statistics()
    assert (statistics.discards, statistics.bytes_discarded, statistics.errors) == (1, MIB + 512, 0)


async def test_jobs_keep_their_order(tmp_path: Path, inline: bool) -> None:
    """A write after a discard is not lost, one before it is."""
    backend = RawFileBackend.open(image_of(tmp_path), inline=inline)
    jobs = [
        Job(IoOperation.WRITE, lambda error: None, [memoryview(b"a" * 1024)], 0, 1024),
        Job(IoOperation.DISCARD, lambda error: None, ranges=[(0, 1024)]),
    ]
    for job in jobs:
        backend.submit(job)
    await write(backend, 512, b"b" * 512)
    assert await read(backend, 0, 1536) == bytes(512) + b"b" * 512 + b"x" * 512
    backend.close()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
async def test_zeros_are_written_where_a_hole_is_refused(
    tmp_path: Path, inline: bool, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a guest was promised to read does not depend on the host."""
    backend = RawFileBackend.open(image_of(tmp_path), inline=inline)
    monkeypatch.setattr(holes, "_fallocate", refusing(number))
    await discard(backend, (512, 2 * MIB + 512))
    assert await read(backend, 0, 4 * MIB) == b"x" * 512 + bytes(2 * MIB + 512) + b"x" * (2 * MIB - 1024)
    backend.close()


async def test_another_failure_is_the_guests_to_hear(
    tmp_path: Path, inline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, with the host's number, and nothing is written."""
    backend = RawFileBackend.open(image_of(tmp_path), inline=inline)
    monkeypatch.setattr(holes, "_fallocate", refusing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        await discard(backend, (0, 512))
    assert backend.statistics().errors == 1
    assert await read(backend, 0, 512) == b"x" * 512
    backend.close()


def test_an_interrupted_call_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EINTR is no answer."""
    numbers = [errno.EINTR, errno.EINTR, 0]

    def fallocate(_fd: int, _mode: int, _offset: int, _length: int) -> int:
        number = numbers.pop(0)
        ctypes.set_errno(number)
        return -1 if number else 0

    monkeypatch.setattr(holes, "_fallocate", fallocate)
    holes.punch(0, 0, 512)
    assert not numbers


@pytest.mark.parametrize("fallocate", [None, refusing(errno.EOPNOTSUPP)])
def test_a_disk_without_holes_says_so(tmp_path: Path, fallocate: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """By system or by file system; so does one that is read-only. Asking changes nothing."""
    path = image_of(tmp_path)
    before = path.read_bytes()
    reader = RawFileBackend.open(path, read_only=True)
    assert not reader.discards
    reader.close()
    monkeypatch.setattr(holes, "_fallocate", fallocate)
    backend = RawFileBackend.open(path)
    assert not backend.discards
    backend.close()
    assert path.read_bytes() == before
