"""A disk's answers to SCSI commands."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles.scsi import BLOCKS, PATTERN, SIZE, Initiator, assert_sense, cdb, initiator
from tests.doubles.storage import SlowBackend
from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.scsi.cdb import Opcode, ScsiStatus, inquiry_cdb, read_capacity_16_cdb, read_cdb, write_cdb
from vsp_vsc.storage.scsi.sense import Reason, Sense, decode_sense
from vsp_vsc.storage.scsi.target import ScsiTarget, absent_inquiry, report_luns

# --- reading and writing


@pytest.mark.parametrize(
    "make",
    [
        lambda lba, n: cdb(0x28, 0, *lba.to_bytes(4, "big"), 0, *n.to_bytes(2, "big")),
        lambda lba, n: cdb(0x88, 0, *lba.to_bytes(8, "big"), *n.to_bytes(4, "big")),
    ],
)
def test_read_10_and_16(make) -> None:  # type: ignore[no-untyped-def]
    """Bytes of the blocks asked for, no more, whatever the buffer's shape."""
    disk = initiator()
    assert disk.good(make(3, 8), 4096) == PATTERN[1536 : 1536 + 4096]
    assert disk.good(make(3, 8), 8192) == PATTERN[1536 : 1536 + 4096]
    assert disk.good(make(BLOCKS - 1, 1), 512) == PATTERN[-512:]
    assert disk.good(make(BLOCKS, 0)) == b""


@pytest.mark.parametrize("opcode", [Opcode.WRITE_10, Opcode.WRITE_16])
def test_write_10_and_16(opcode: Opcode) -> None:
    """Bytes arrive where they belong and nowhere else."""
    disk = initiator()
    command = write_cdb(5, 2) if opcode is Opcode.WRITE_10 else struct.pack(">BBQIBB", opcode, 0, 5, 2, 0, 0)
    disk.good(command, data=b"x" * 1024)
    assert disk.good(read_cdb(4, 4), 2048) == PATTERN[2048:2560] + b"x" * 1024 + PATTERN[3584:4096]


@pytest.mark.parametrize(
    ("lba", "blocks"), [(BLOCKS, 1), (BLOCKS - 1, 2), (0xFFFFFFFF, 1), (1 << 63, 1), ((1 << 64) - 1, 8)]
)
def test_past_the_end(lba: int, blocks: int) -> None:
    """LBA OUT OF RANGE, for reads and writes, sums that overflow included; nothing moves."""
    disk = initiator()
    assert_sense(disk.sense(read_cdb(lba, blocks), blocks * 512), Reason.LBA_OUT_OF_RANGE)
    assert_sense(disk.sense(write_cdb(lba, blocks), data=b"x" * 512 * blocks), Reason.LBA_OUT_OF_RANGE)
    assert disk.good(read_cdb(BLOCKS - 1, 1), 512) == PATTERN[-512:]


def test_a_buffer_too_small_moves_nothing() -> None:
    """INVALID FIELD IN CDB that points at the transfer length."""
    disk = initiator()
    sense = disk.sense(read_cdb(0, 8), 4095)
    assert_sense(sense, Reason.INVALID_FIELD_IN_CDB)
    assert sense.field == 7
    assert disk.sense(struct.pack(">BBQIBB", 0x8A, 0, 0, 9, 0, 0), data=b"x" * 512).field == 10
    assert disk.good(read_cdb(0, 1), 512) == PATTERN[:512]


def test_protection_information_is_refused() -> None:
    """Our disks carry none: RDPROTECT and WRPROTECT must be zero."""
    disk = initiator()
    assert disk.sense(cdb(0x28, 0x20, 0, 0, 0, 0, 0, 0, 1), 512).field == 1
    assert_sense(disk.sense(cdb(0x2A, 0x80, 0, 0, 0, 0, 0, 0, 1), data=bytes(512)), Reason.INVALID_FIELD_IN_CDB)


def test_a_read_only_disk_is_write_protected() -> None:
    """WRITE PROTECTED, flushes do nothing and succeed."""
    disk = initiator(read_only=True)
    assert_sense(disk.sense(write_cdb(0, 1), data=bytes(512)), Reason.WRITE_PROTECTED)
    assert disk.good(cdb(0x35)) == b""
    assert disk.good(read_cdb(0, 1), 512) == PATTERN[:512]
    assert disk.unit.backend.statistics().flushes == 0


@pytest.mark.parametrize("command", [cdb(0x35), cdb(0x91), cdb(0x35, 2), cdb(0x35, 0, 0, 0, 0, 1, 0, 0, 8)])
def test_synchronize_cache_flushes(command: bytes) -> None:
    """All of the disk, whatever the range and with IMMED too."""
    disk = initiator()
    disk.good(command)
    assert disk.unit.backend.statistics().flushes == 1


def test_synchronize_cache_past_the_end() -> None:
    """The range is checked though it is not used."""
    disk = initiator()
    assert_sense(disk.sense(cdb(0x35, 0, 0xFF, 0, 0, 0, 0, 0, 1)), Reason.LBA_OUT_OF_RANGE)
    assert disk.unit.backend.statistics().flushes == 0


def test_fua_reaches_the_backend() -> None:
    """Force unit access makes the write durable before its answer; a plain write is not."""
    backend = SlowBackend(SIZE)
    disk = Initiator(ScsiTarget(backend))
    assert disk.run(write_cdb(0, 1), data=bytes(512))[0] is None
    assert disk.run(write_cdb(0, 1, fua=True), data=bytes(512))[0] is None
    assert disk.run(cdb(0x35))[0] is None
    backend.finish()
    assert backend.log == ["write", "write durable", "flush"]
    assert [result.transferred for result in disk.late] == [512, 512, 0]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    ("command", "error", "reason", "block"),
    [
        (read_cdb(9, 1), errno.EIO, Reason.UNRECOVERED_READ_ERROR, 9),
        (write_cdb(9, 1), errno.EIO, Reason.WRITE_ERROR, 9),
        (cdb(0x35), errno.EIO, Reason.WRITE_ERROR, None),
        (write_cdb(9, 1), errno.ENOSPC, Reason.SPACE_ALLOCATION_FAILED, None),
        (write_cdb(9, 1), errno.EROFS, Reason.WRITE_PROTECTED, None),
        (read_cdb(9, 1), errno.ENODEV, Reason.INTERNAL_TARGET_FAILURE, None),
        (write_cdb(9, 1), errno.ENODEV, Reason.INTERNAL_TARGET_FAILURE, None),
    ],
)
def test_a_hosts_error_is_sense_data(
    cached: bool, command: bytes, error: int, reason: Reason, block: int | None
) -> None:
    """MEDIUM ERROR 11h for reads and 0Ch for writes and flushes, never an exception."""
    backend = SlowBackend(SIZE, cached=cached)
    backend.error = error
    disk = Initiator(ScsiTarget(backend))
    result, _ = disk.run(command, 512)
    if result is None:
        backend.finish()
        (result,) = disk.late
    sense = decode_sense(result.sense)
    assert_sense(sense, reason)
    assert sense.information == block
    assert disk.unit.statistics().host_errors == 1


# --- questions


def test_standard_inquiry() -> None:
    """A non-removable direct access disk, SPC-3, with names."""
    data = initiator().good(inquiry_cdb(255), 255)
    assert len(data) == 36
    assert (data[0], data[1], data[2], data[3], data[4]) == (0, 0, 5, 2, 31)
    assert (data[8:16], data[16:32], data[32:36]) == (b"PARTITA ", b"VIRTUAL DISK    ", b"1.0 ")
    assert initiator().good(inquiry_cdb(5), 255) == data[:5]
    assert initiator().good(inquiry_cdb(255), 7) == data[:7]


def test_vital_product_data() -> None:
    """Supported pages, serial number and names; a page that is not there is refused."""
    disk = initiator()
    assert disk.good(inquiry_cdb(255, 0x00), 255) == bytes((0, 0, 0, 6, 0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2))
    serial = disk.good(inquiry_cdb(255, 0x80), 255)
    assert serial[:4] == bytes((0, 0x80, 0, 16))
    assert serial[4:].decode() == disk.unit.serial
    names = disk.good(inquiry_cdb(255, 0x83), 255)
    assert names[:4] == bytes((0, 0x83, 0, len(names) - 4))
    assert names[4:8] == bytes((2, 1, 0, 24))
    assert names[8:32] == b"PARTITA " + disk.unit.serial.encode()
    assert names[32:36] == bytes((1, 3, 0, 8))
    assert names[36] >> 4 == 3, "NAA, locally assigned"
    assert disk.sense(inquiry_cdb(255, 0xB3), 255).field == 2


def test_vital_product_data_of_a_thin_disk() -> None:
    """What lets an initiator unmap: 256 MiB and 255 descriptors at once, in granules of 4 KiB; zeros are read there."""
    disk = initiator()
    limits = disk.good(inquiry_cdb(255, 0xB0), 255)
    assert limits[:4] == bytes((0, 0xB0, 0, 60))
    assert limits[4:20] == bytes((1, 128, 0, 8)) + bytes(12)
    assert limits[20:36] == struct.pack(">IIII", 0x80000, 255, 8, 1 << 31)
    assert limits[36:] == (0x20000).to_bytes(8, "big") + bytes(20)
    assert disk.good(inquiry_cdb(255, 0xB1), 255) == bytes((0, 0xB1, 0, 60, 0, 1)) + bytes(58)
    assert disk.good(inquiry_cdb(255, 0xB2), 255) == bytes((0, 0xB2, 0, 4, 0, 0xE4, 2, 0))


def test_vital_product_data_of_a_thick_disk() -> None:
    """No unmapping, by any page; one that is not made of whole 4 KiB has granules of a block."""
    disk = initiator(read_only=True, contents=bytes(512))
    assert disk.good(inquiry_cdb(255, 0x00), 255) == bytes((0, 0, 0, 5, 0x00, 0x80, 0x83, 0xB0, 0xB1))
    assert disk.good(inquiry_cdb(255, 0xB0), 255) == (
        bytes((0, 0xB0, 0, 60, 1, 128, 0, 1)) + bytes(28) + (0x20000).to_bytes(8, "big") + bytes(20)
    )
    assert disk.sense(inquiry_cdb(255, 0xB2), 255).field == 2
    assert disk.good(read_capacity_16_cdb(32), 32)[14] == 0


def test_names_are_the_same_for_the_same_disk_and_differ_otherwise() -> None:
    """Across restarts; of two disks in one guest, too."""

    def names(identity: str) -> bytes:
        target = ScsiTarget(MemoryBackend(512, identity=identity))
        return Initiator(target).good(inquiry_cdb(255, 0x83), 255)

    assert names("a") == names("a")
    assert names("a") != names("b")
    own = ScsiTarget(MemoryBackend(512, identity="a"), identity="b")
    assert Initiator(own).good(inquiry_cdb(255, 0x83), 255) == names("b")


def test_inquiry_fields_that_must_be_zero() -> None:
    """A page without EVPD, and bits that were retired."""
    disk = initiator()
    assert disk.sense(cdb(0x12, 0, 0x80, 0, 36), 36).field == 2
    assert disk.sense(cdb(0x12, 2, 0, 0, 36), 36).field == 1


def test_read_capacity() -> None:
    """Last block and block size; physical blocks of 4 KiB where the disk is made of them."""
    disk = initiator()
    assert disk.good(cdb(0x25), 8) == (BLOCKS - 1).to_bytes(4, "big") + (512).to_bytes(4, "big")
    data = disk.good(read_capacity_16_cdb(32), 32)
    assert data[:12] == (BLOCKS - 1).to_bytes(8, "big") + (512).to_bytes(4, "big")
    assert data[12:] == bytes((0, 3, 0xC0, 0)) + bytes(16)
    assert initiator(contents=bytes(512)).good(read_capacity_16_cdb(32), 32)[13] == 0
    assert disk.good(read_capacity_16_cdb(12), 32) == data[:12]
    assert disk.sense(cdb(0x9E, 0x11), 32).field == 1
    assert disk.sense(cdb(0x25, 0, 0, 0, 0, 1), 8).field == 2


def test_a_large_disk_says_so_in_read_capacity_10() -> None:
    """All ones mean: ask with READ CAPACITY(16)."""
    disk = initiator()
    disk.unit.blocks = 1 << 33
    assert disk.good(cdb(0x25), 8)[:4] == b"\xff" * 4
    assert disk.good(read_capacity_16_cdb(32), 32)[:8] == ((1 << 33) - 1).to_bytes(8, "big")


CACHING = bytes((0x08, 0x12, 0x04)) + bytes(17)
CONTROL = bytes((0x0A, 0x0A, 0, 0x10, 0, 0x40)) + bytes(6)


@pytest.mark.parametrize(("page", "caching"), [(0x08, CACHING), (0x0A, CONTROL), (0x3F, CACHING + CONTROL)])
def test_mode_sense(page: int, caching: bytes) -> None:
    """The caching page, its write cache on, and the control page; both forms, with a block descriptor or not."""
    size = len(caching)
    descriptor = BLOCKS.to_bytes(4, "big") + (512).to_bytes(4, "big")
    disk = initiator()
    assert disk.good(cdb(0x1A, 8, page, 0, 255), 255) == bytes((size + 3, 0, 0x10, 0)) + caching
    assert disk.good(cdb(0x1A, 0, page, 0, 255), 255) == bytes((size + 11, 0, 0x10, 8)) + descriptor + caching
    assert disk.good(cdb(0x5A, 8, page, 0, 0, 0, 0, 1, 0), 255) == bytes((0, size + 6, 0, 0x10, 0, 0, 0, 0)) + caching
    assert disk.good(cdb(0x5A, 0, page, 0, 0, 0, 0, 1, 0), 255)[8:16] == descriptor
    assert initiator(read_only=True).good(cdb(0x1A, 8, page, 0, 4), 4)[2] == 0x90


def test_mode_sense_refusals() -> None:
    """No saved values, no other pages, no subpages."""
    disk = initiator()
    assert_sense(disk.sense(cdb(0x1A, 8, 0xC8, 0, 255), 255), Reason.SAVING_NOT_SUPPORTED)
    assert disk.sense(cdb(0x1A, 8, 0x01, 0, 255), 255).field == 2
    assert disk.sense(cdb(0x5A, 8, 0x3F, 1, 0, 0, 0, 1), 255).field == 3
    disk.good(cdb(0x1A, 8, 0x3F, 0xFF, 255), 255)


def test_request_sense_has_nothing_to_say() -> None:
    """Sense data came with each failure; both formats."""
    disk = initiator()
    disk.sense(cdb(0xFF))
    assert decode_sense(disk.good(cdb(0x03, 0, 0, 0, 18), 18)) == Sense(0, 0, 0)
    assert disk.good(cdb(0x03, 1, 0, 0, 252), 252) == bytes((0x72, 0, 0, 0, 0, 0, 0, 0))


def test_unit_ready() -> None:
    """Always."""
    assert initiator().good(cdb(0x00)) == b""


KNOWN = {row.opcode for row in ScsiTarget.commands.rows}


def test_all_else_is_no_command() -> None:
    """INVALID COMMAND OPERATION CODE that points at byte 0; each is asked of a target that was asked nothing before."""
    for opcode in sorted(set(range(256)) - KNOWN):
        print(f"{opcode:#x}")  # shown where it fails
        sense = initiator().sense(cdb(opcode))
        assert_sense(sense, Reason.INVALID_OPCODE)
        assert sense.field == 0


@given(st.binary(min_size=16, max_size=16), st.integers(0, 8192))
def test_no_cdb_does_harm(command: bytes, length: int) -> None:
    """Any 16 bytes get a status, and move no more than the buffer holds."""
    result, _ = initiator().run(command, length)
    assert result is not None
    assert result.status in (ScsiStatus.GOOD, ScsiStatus.CHECK_CONDITION)
    assert result.transferred <= length
    assert (len(result.sense) == 18) == (result.status == ScsiStatus.CHECK_CONDITION)


# --- units


def luns_of(command: bytes, length: int, luns: list[int]) -> bytes:
    buffer = bytearray(length)
    result = report_luns(luns, command, [memoryview(buffer)], length)
    assert result.status == ScsiStatus.GOOD
    return bytes(buffer[: result.transferred])


def test_report_luns() -> None:
    """Eight bytes a unit, sorted, behind a length that tells how many there would be."""
    command = cdb(0xA0, 0, 0, 0, 0, 0, 0, 0, 16, 0)
    whole = (16).to_bytes(4, "big") + bytes(4) + bytes((0, 1)) + bytes(6) + bytes((0, 7)) + bytes(6)
    assert luns_of(command, 4096, [7, 1]) == whole
    assert luns_of(command, 16, [7, 1]) == whole[:16]
    assert luns_of(command, 7, [7, 1]) == b"", "not even the header fits"
    assert luns_of(command, 4096, []) == bytes(8)
    assert luns_of(cdb(0xA0, 0, 1, 0, 0, 0, 0, 0, 16, 0), 4096, [7, 1]) == bytes(8), "no well-known units"
    refused = report_luns([0], cdb(0xA0, 0, 3, 0, 0, 0, 0, 0, 16, 0), [], 0)
    assert decode_sense(refused.sense).field == 2


def test_inquiry_of_a_unit_that_is_not_there() -> None:
    """Device type 7Fh, a vendor on LUN 0 only, no product data pages."""
    for lun, vendor in ((0, b"PARTITA "), (1, bytes(8))):
        buffer = bytearray(36)
        result = absent_inquiry(lun, inquiry_cdb(36), [memoryview(buffer)], 36)
        assert (result.status, result.transferred) == (0, 36)
        assert (buffer[0], bytes(buffer[8:16])) == (0x7F, vendor)
    refused = absent_inquiry(1, inquiry_cdb(36, 0x83), [], 0)
    assert_sense(decode_sense(refused.sense), Reason.LUN_NOT_SUPPORTED)
