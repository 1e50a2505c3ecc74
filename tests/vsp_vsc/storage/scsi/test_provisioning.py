"""GET LBA STATUS: which blocks take room, from what the image's file system says."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles.scsi import BLOCKS, Initiator, assert_sense, initiator
from tests.doubles.storage import SlowBackend
from vsp_vsc.storage.backends.holes import can_punch
from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.backends.raw_file import RawFileBackend
from vsp_vsc.storage.scsi.cdb import unmap_cdb, unmap_parameters, write_cdb
from vsp_vsc.storage.scsi.sense import Reason, decode_sense
from vsp_vsc.storage.scsi.target import ScsiTarget

MAPPED, DEALLOCATED = 0, 1


def status_cdb(lba: int, allocation: int) -> bytes:
    return bytes((0x9E, 0x12)) + lba.to_bytes(8, "big") + allocation.to_bytes(4, "big") + bytes(2)


def status(disk: Initiator, lba: int = 0, allocation: int = 4096) -> list[tuple[int, int, int]]:
    """First block, number of blocks and provisioning status of each descriptor."""
    data = disk.good(status_cdb(lba, allocation), allocation)
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert data[4:8] == bytes(4)
    found = []
    for at in range(8, len(data), 16):
        assert data[at + 13 : at + 16] == bytes(3)
        found.append(
            (int.from_bytes(data[at : at + 8], "big"), int.from_bytes(data[at + 8 : at + 12], "big"), data[at + 12])
        )
    return found


def test_mapped_and_not() -> None:
    """From the block that was asked for, without gaps, to the end of the disk."""
    disk = initiator()
    assert status(disk) == [(0, BLOCKS, MAPPED)]
    parameters = unmap_parameters([(16, 8), (64, 64)])
    disk.good(unmap_cdb(len(parameters)), data=parameters)
    whole = [(0, 16, 0), (16, 8, 1), (24, 40, 0), (64, 64, 1), (128, BLOCKS - 128, 0)]
    assert status(disk) == whole
    assert status(disk, 20) == [(20, 4, 1), *whole[2:]]
    assert status(disk, BLOCKS - 1) == [(BLOCKS - 1, 1, 0)]


@pytest.mark.parametrize("allocation", [0, 7, 8, 23, 24, 40, 56])
def test_as_much_as_there_is_room_for(allocation: int) -> None:
    """At least one descriptor is meant, whatever of it fits."""
    disk = initiator(contents=bytes(BLOCKS * 512))
    disk.good(write_cdb(8, 8), data=b"x" * 4096)
    data = disk.good(status_cdb(0, allocation), 4096)
    assert len(data) == allocation
    if allocation >= 8:
        assert int.from_bytes(data[:4], "big") == 4 + 16 * max(1, (allocation - 8) // 16)


def test_past_the_end() -> None:
    """LBA OUT OF RANGE, with the block."""
    sense = initiator().sense(status_cdb(BLOCKS, 64), 64)
    assert_sense(sense, Reason.LBA_OUT_OF_RANGE)
    assert sense.information == BLOCKS


def test_a_hosts_error() -> None:
    """A read error is one; whatever else the file system says is a failure of ours."""
    for code, reason in ((errno.EIO, Reason.UNRECOVERED_READ_ERROR), (errno.ENOMEM, Reason.INTERNAL_TARGET_FAILURE)):
        slow = SlowBackend(4096)
        slow.error = code
        disk = Initiator(ScsiTarget(slow))
        assert disk.run(status_cdb(0, 64), 64)[0] is None
        slow.finish()
        assert_sense(decode_sense(disk.late[0].sense), reason)


@pytest.fixture
def image(tmp_path: Path) -> Iterator[RawFileBackend]:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"\xff" * (1 << 20))
    with path.open("r+b") as file:
        if not can_punch(file.fileno(), 1 << 20):
            pytest.skip("this file system makes no holes")
    backend = RawFileBackend.open(path, inline=True)
    yield backend
    backend.close()


@pytest.mark.parametrize("size", [512, 4096])
def test_holes_of_a_real_file(image: RawFileBackend, size: int) -> None:
    """What was unmapped is a hole, and the file system's word is what the initiator gets."""
    disk = Initiator(ScsiTarget(image, block_size=size))
    per_page, blocks = 4096 // size, (1 << 20) // size
    parameters = unmap_parameters([(8 * per_page, 16 * per_page)])
    disk.good(unmap_cdb(len(parameters)), data=parameters)
    assert status(disk) == [
        (0, 8 * per_page, MAPPED),
        (8 * per_page, 16 * per_page, DEALLOCATED),
        (24 * per_page, blocks - 24 * per_page, MAPPED),
    ]
    assert status(disk, 9 * per_page, 24) == [(9 * per_page, 15 * per_page, DEALLOCATED)]


def test_a_block_that_has_any_room_is_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the host's granules are smaller: what is called deallocated must be zeros."""
    monkeypatch.setattr("vsp_vsc.storage.backends.memory._PAGE", 512)
    contents = bytearray(8 * 4096)
    for sector in (0, 23, 40):  # the first of block 0, the last of block 2, the first of block 5
        contents[sector * 512] = 1
    disk = initiator(contents=bytes(contents), block_size=4096)
    assert status(disk) == [(0, 1, 0), (1, 1, 1), (2, 1, 0), (3, 2, 1), (5, 1, 0), (6, 2, 1)]
    assert status(disk, 2, 24) == [(2, 1, 0)], "of which the first granule is a hole"


def test_a_file_that_is_all_hole(tmp_path: Path) -> None:
    """As a new image is; the end of the file is the end."""
    path = tmp_path / "new.raw"
    path.touch()
    with path.open("r+b") as file:
        file.truncate(1 << 20)
        if not can_punch(file.fileno(), 1 << 20):
            pytest.skip("this file system makes no holes")
    backend = RawFileBackend.open(path, inline=True)
    assert status(Initiator(ScsiTarget(backend))) == [(0, BLOCKS, DEALLOCATED)]
    backend.close()


@given(st.lists(st.integers(0, 31), max_size=20), st.integers(0, 255), st.integers(1, 8))
def test_the_answer_is_true_and_without_gaps(pages: list[int], lba: int, most: int) -> None:
    """Descriptors follow each other and differ from their neighbours; a deallocated block is zeros."""
    backend = MemoryBackend(32 * 4096)
    disk = Initiator(ScsiTarget(backend))
    for page in pages:
        disk.good(write_cdb(page * 8, 8), data=b"d" * 4096)
    position = lba
    previous = None
    for first, count, provisioning in status(disk, lba, 8 + 16 * most):
        assert first == position
        assert count > 0
        assert provisioning != previous
        assert {block // 8 in pages for block in range(first, first + count)} == {provisioning == MAPPED}
        position, previous = first + count, provisioning
    assert position <= 256
