"""UNMAP: parameter lists, right and wrong, and what becomes of the blocks."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles.scsi import BLOCKS, PATTERN, Initiator, assert_sense, cdb, initiator
from tests.doubles.storage import SlowBackend
from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.scsi.cdb import ScsiStatus, describe_cdb, read_cdb, unmap_cdb, unmap_parameters
from vsp_vsc.storage.scsi.provisioning import MAX_UNMAP_BYTES, MAX_UNMAP_DESCRIPTORS
from vsp_vsc.storage.scsi.sense import Reason, decode_sense
from vsp_vsc.storage.scsi.target import ScsiTarget

MAX_UNMAP_BLOCKS = MAX_UNMAP_BYTES // 512


def without(*ranges: tuple[int, int]) -> bytes:
    """The pattern with holes, given in blocks."""
    data = bytearray(PATTERN)
    for lba, count in ranges:
        data[lba * 512 : (lba + count) * 512] = bytes(count * 512)
    return bytes(data)


def unmap(disk: Initiator, *ranges: tuple[int, int]) -> None:
    parameters = unmap_parameters(ranges)
    disk.good(unmap_cdb(len(parameters)), data=parameters)


def contents(disk: Initiator) -> bytes:
    return disk.good(read_cdb(0, BLOCKS), BLOCKS * 512)


def test_the_bytes_of_the_command_that_linux_sends() -> None:
    """One descriptor, 24 bytes of parameters, all of them moved."""
    command = bytes.fromhex("42000000000000001800")
    parameters = bytes.fromhex("0016001000000000 0000000000000008 00000010 00000000")
    assert unmap_cdb(24)[:10] == command
    assert unmap_parameters([(8, 16)]) == parameters
    disk = initiator()
    result, _ = disk.run(command + bytes(6), data=parameters)
    assert result is not None
    assert (result.status, result.sense, result.transferred) == (ScsiStatus.GOOD, b"", 24)
    assert contents(disk) == without((8, 16))
    assert describe_cdb(command) == "SCSI UNMAP parameters=24"


def test_several_ranges_at_once() -> None:
    """In any order, overlapping, of a single block, of none; one job for the backend."""
    disk = initiator()
    ranges = (100, 50), (0, 1), (120, 50), (7, 0), (BLOCKS, 0), (BLOCKS - 1, 1)
    unmap(disk, *ranges)
    assert contents(disk) == without(*ranges)
    statistics = disk.unit.backend.statistics()
    assert (statistics.discards, statistics.bytes_discarded) == (1, 102 * 512)


@pytest.mark.parametrize("ranges", [(), ((5, 0),), ((0, 0), (BLOCKS, 0))])
def test_nothing_to_unmap(ranges: tuple[tuple[int, int], ...]) -> None:
    """Is done at once and is no error; neither is a parameter list of no length."""
    disk = initiator()
    unmap(disk, *ranges)
    assert disk.good(unmap_cdb(0)) == b""
    assert disk.unit.backend.statistics().discards == 0
    assert contents(disk) == PATTERN


@pytest.mark.parametrize(
    "ranges",
    [((BLOCKS, 1),), ((BLOCKS - 1, 2),), (((1 << 64) - 1, 1),), (((1 << 64) - 1, 0xFFFFFFFF),), ((0, 8), (BLOCKS, 1))],
)
def test_past_the_end(ranges: tuple[tuple[int, int], ...]) -> None:
    """LBA OUT OF RANGE; the ranges before the bad one are kept too."""
    disk = initiator()
    parameters = unmap_parameters(ranges)
    assert_sense(disk.sense(unmap_cdb(len(parameters)), data=parameters), Reason.LBA_OUT_OF_RANGE)
    assert contents(disk) == PATTERN


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        pytest.param(bytes(7), Reason.PARAMETER_LIST_LENGTH_ERROR, id="shorter than a header"),
        pytest.param(struct.pack(">HH4x", 22, 16), Reason.PARAMETER_LIST_LENGTH_ERROR, id="descriptors missing"),
        pytest.param(
            struct.pack(">HH4xQI4x", 22, 17, 0, 8), Reason.PARAMETER_LIST_LENGTH_ERROR, id="a byte too many described"
        ),
        pytest.param(struct.pack(">HH4x", 0, 0xFFFF), Reason.PARAMETER_LIST_LENGTH_ERROR, id="64 KiB described"),
        pytest.param(
            unmap_parameters([(0, 1)] * (MAX_UNMAP_DESCRIPTORS + 1)),
            Reason.INVALID_FIELD_IN_PARAMETER_LIST,
            id="too many descriptors",
        ),
    ],
)
def test_parameter_lists_that_cannot_be(parameters: bytes, reason: Reason) -> None:
    """Refused as a whole."""
    disk = initiator()
    assert_sense(disk.sense(unmap_cdb(len(parameters)), data=parameters), reason)
    assert contents(disk) == PATTERN


def test_an_incomplete_descriptor_at_the_end_is_not_looked_at() -> None:
    """SBC-3; nor is what follows the descriptors, nor the first length, which says nothing new."""
    disk = initiator()
    parameters = struct.pack(">HH4xQI4xQI", 999, 16 + 12, 3, 4, 50, 60)
    disk.good(unmap_cdb(len(parameters)), data=parameters)
    assert contents(disk) == without((3, 4))


def test_more_blocks_than_the_limit() -> None:
    """Together they count, each alone is fine."""
    disk = initiator()
    disk.unit.blocks = 2 * MAX_UNMAP_BLOCKS  # the backend is never asked
    parameters = unmap_parameters([(0, MAX_UNMAP_BLOCKS), (MAX_UNMAP_BLOCKS, 1)])
    sense = disk.sense(unmap_cdb(len(parameters)), data=parameters)
    assert_sense(sense, Reason.INVALID_FIELD_IN_PARAMETER_LIST)
    assert disk.unit.backend.statistics().discards == 0


def test_as_many_as_the_limits_say() -> None:
    """255 descriptors in one go."""
    disk = initiator()
    ranges = [(index * 4, 2) for index in range(MAX_UNMAP_DESCRIPTORS)]
    unmap(disk, *ranges)
    assert contents(disk) == without(*ranges)


def test_a_buffer_shorter_than_the_parameter_list() -> None:
    """INVALID FIELD IN CDB that points at the length."""
    disk = initiator()
    sense = disk.sense(unmap_cdb(40), data=unmap_parameters([(0, 8)]))
    assert_sense(sense, Reason.INVALID_FIELD_IN_CDB)
    assert sense.field == 7


def test_blocks_cannot_be_anchored() -> None:
    """The provisioning page says so."""
    disk = initiator()
    sense = disk.sense(cdb(0x42, 1, 0, 0, 0, 0, 0, 0, 24), data=unmap_parameters([(0, 8)]))
    assert_sense(sense, Reason.INVALID_FIELD_IN_CDB)
    assert sense.field == 1


def test_a_read_only_disk_is_write_protected() -> None:
    """As for any other change."""
    disk = initiator(read_only=True)
    assert_sense(disk.sense(unmap_cdb(24), data=unmap_parameters([(0, 8)])), Reason.WRITE_PROTECTED)
    assert contents(disk) == PATTERN


def test_a_thick_disk_knows_no_such_command() -> None:
    """A backend that would have to write zeros is not worth asking."""
    backend = MemoryBackend(PATTERN)
    backend.discards = False
    disk = Initiator(ScsiTarget(backend))
    assert_sense(disk.sense(unmap_cdb(24), data=unmap_parameters([(0, 8)])), Reason.INVALID_OPCODE)


def test_a_hosts_error_is_sense_data() -> None:
    """Late, as from any backend that takes its time."""
    slow = SlowBackend(PATTERN)
    slow.error = errno.ENOSPC
    disk = Initiator(ScsiTarget(slow))
    result, _ = disk.run(unmap_cdb(24), data=unmap_parameters([(0, 8)]))
    assert result is None
    slow.finish()
    assert slow.log == ["discard"]
    assert_sense(decode_sense(disk.late[0].sense), Reason.SPACE_ALLOCATION_FAILED)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, BLOCKS + 4), st.integers(0, 40)), max_size=12))
def test_blocks_are_cleared_exactly_or_not_at_all(ranges: list[tuple[int, int]]) -> None:
    """All of the ranges if they are on the disk, nothing if one is not."""
    disk = initiator()
    parameters = unmap_parameters(ranges)
    result, _ = disk.run(unmap_cdb(len(parameters)), data=parameters)
    assert result is not None
    fits = all(lba + count <= BLOCKS for lba, count in ranges)
    assert (result.status == ScsiStatus.GOOD) is fits
    assert contents(disk) == (without(*ranges) if fits else PATTERN)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 0xFFFF), st.integers(0, 255))
def test_no_parameter_list_does_harm(parameters: bytes, size: int, flags: int) -> None:
    """Any bytes, any lengths: one result, good or with sense data, and no exception."""
    disk = initiator()
    result, _ = disk.run(cdb(0x42, flags, 0, 0, 0, 0, 0, *size.to_bytes(2, "big")), data=parameters)
    assert result is not None
    assert (result.status == ScsiStatus.CHECK_CONDITION) is bool(result.sense)
