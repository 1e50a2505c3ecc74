"""MODE SELECT: what can be changed, what then happens, and lists that make no sense."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles.scsi import BLOCKS, PATTERN, Initiator, assert_sense, cdb, initiator
from tests.doubles.storage import SlowBackend
from vsp_vsc.storage.scsi.cdb import ScsiStatus, read_cdb, write_cdb
from vsp_vsc.storage.scsi.modes import PAGES
from vsp_vsc.storage.scsi.sense import Reason, decode_sense
from vsp_vsc.storage.scsi.target import ScsiTarget

CACHING, CONTROL = PAGES[0x08], PAGES[0x0A]
DESCRIPTOR = BLOCKS.to_bytes(4, "big") + (512).to_bytes(4, "big")
LONG = BLOCKS.to_bytes(8, "big") + bytes(4) + (512).to_bytes(4, "big")


def changed(page: bytes, offset: int, value: int) -> bytes:
    return page[:offset] + bytes((value,)) + page[offset + 1 :]


NO_CACHE = changed(CACHING.defaults, 2, 0)
DESCRIPTORS = changed(CONTROL.defaults, 2, 4)
PROTECTED = changed(CONTROL.defaults, 4, 8)


def select_6(pages: bytes, descriptor: bytes = b"") -> tuple[bytes, int, bytes]:
    data = bytes((0, 0, 0, len(descriptor))) + descriptor + pages
    return cdb(0x15, 0x10, 0, 0, len(data)), 0, data


def select_10(pages: bytes, descriptor: bytes = b"") -> tuple[bytes, int, bytes]:
    data = bytes((0, 0, 0, 0, len(descriptor) == 16, 0, 0, len(descriptor))) + descriptor + pages
    return cdb(0x55, 0x10, 0, 0, 0, 0, 0, 0, len(data)), 0, data


def sense(disk: Initiator, control: int, page: int) -> bytes:
    return disk.good(cdb(0x1A, 8, control << 6 | page, 0, 255), 255)[4:]


@pytest.mark.parametrize("select", [select_6, select_10])
def test_a_write_cache_that_is_off(select) -> None:  # type: ignore[no-untyped-def]
    """Makes every write durable, of whatever kind; defaults and what can be changed stay as they are."""
    slow = SlowBackend(PATTERN)
    disk = Initiator(ScsiTarget(slow))
    disk.good(*select(NO_CACHE))
    assert [sense(disk, control, 8) for control in (0, 1, 2)] == [NO_CACHE, CACHING.changeable, CACHING.defaults]
    disk.run(write_cdb(0, 1), data=bytes(512))
    disk.run(cdb(0x93, 0, *bytes(11), 1), data=bytes(512))
    slow.finish()
    disk.good(*select(CACHING.defaults))
    disk.run(write_cdb(0, 1), data=bytes(512))
    slow.finish()
    assert slow.log == ["write durable", "write durable", "write"]


def test_software_write_protection() -> None:
    """Has its own words, shows in the header, and is no change to what the disk is."""
    disk = initiator()
    disk.good(*select_6(PROTECTED))
    for command in (
        write_cdb(0, 1),
        cdb(0x93, 0, *bytes(11), 1),
        cdb(0x89, *bytes(12), 1),
        cdb(0x42, *bytes(6), 0, 24),
    ):
        assert_sense(disk.sense(command, data=bytes(1024)), Reason.SOFTWARE_WRITE_PROTECTED)
    assert disk.good(cdb(0x1A, 8, 8, 0, 4), 4)[2] == 0x90
    disk.good(read_cdb(0, 1), 512)
    disk.good(*select_6(CONTROL.defaults))
    disk.good(write_cdb(0, 1), data=bytes(512))


def test_the_format_of_sense_data() -> None:
    """Descriptors, with the block in 64 bits or the field, in the 20 bytes that VMBus has room for."""
    disk = initiator()
    disk.good(*select_6(DESCRIPTORS))
    past = disk.result(read_cdb(1 << 40, 1), 512).sense
    assert past == bytes.fromhex("72052100 0000000C 000A8000") + (1 << 40).to_bytes(8, "big")
    assert decode_sense(past).information == 1 << 40
    wrong = disk.result(cdb(0x12, 2), 36).sense
    assert wrong == bytes.fromhex("72052400 00000008 02060000 C9000100")
    assert decode_sense(wrong).field == 1
    assert disk.good(cdb(0x03, 0, 0, 0, 18), 18)[0] == 0x70, "REQUEST SENSE says by itself"


def test_others_are_told() -> None:
    """Of a change only, and who made it is not."""
    disk = initiator()
    other = Initiator(disk.unit, "other")
    disk.good(*select_6(CACHING.defaults + CONTROL.defaults))
    assert other.nexus.attentions == ()
    disk.good(*select_6(NO_CACHE + DESCRIPTORS))
    assert disk.nexus.attentions == ()
    assert_sense(other.sense(cdb(0)), Reason.MODE_PARAMETERS_CHANGED)


@pytest.mark.parametrize("count", [BLOCKS.to_bytes(4, "big"), bytes(4), b"\xff" * 4])
def test_block_descriptors(count: bytes) -> None:
    """Must ask for the blocks that there are, or leave the number open; long ones in MODE SELECT(10)."""
    disk = initiator()
    disk.good(*select_6(NO_CACHE, count + DESCRIPTOR[4:]))
    disk.good(*select_10(NO_CACHE, count + DESCRIPTOR[4:]))
    disk.good(*select_10(NO_CACHE, LONG))
    assert disk.good(cdb(0x5A, 0x10, 8, 0, 0, 0, 0, 1, 0), 256)[4:24] == bytes((1, 0, 0, 16)) + LONG
    for descriptor in (count + (4096).to_bytes(4, "big"), b"\0\0\0\1" + DESCRIPTOR[4:], DESCRIPTOR[:7]):
        result = disk.result(*select_6(NO_CACHE, descriptor))
        assert_sense(decode_sense(result.sense), Reason.INVALID_FIELD_IN_PARAMETER_LIST)
        assert result.sense[15:18] == bytes((0x80, 0, 4))


@pytest.mark.parametrize(
    ("pages", "field"),
    [
        (changed(CACHING.defaults, 3, 1), 7),
        (changed(CACHING.defaults, 2, 5), 6),
        (changed(CACHING.defaults, 0, 0x88), 4),
        (changed(CACHING.defaults, 1, 0x13), 5),
        (bytes((0x01, 0x0A)) + bytes(10), 4),
        (NO_CACHE + changed(CONTROL.defaults, 3, 0), 27),
    ],
    ids=["fixed byte", "fixed bit", "PS", "length", "no such page", "the second page"],
)
def test_pages_that_cannot_be(pages: bytes, field: int) -> None:
    """INVALID FIELD IN PARAMETER LIST with a pointer; nothing of the list is done."""
    disk = initiator()
    result = disk.result(*select_6(pages))
    assert_sense(decode_sense(result.sense), Reason.INVALID_FIELD_IN_PARAMETER_LIST)
    assert int.from_bytes(result.sense[16:18], "big") == field
    assert not result.sense[15] & 0x40, "of the list, not of the CDB"
    assert sense(disk, 0, 8) == CACHING.defaults


def test_lists_that_are_too_short() -> None:
    """PARAMETER LIST LENGTH ERROR; no list at all is fine."""
    disk = initiator()
    for data in (bytes(3), bytes((0, 0, 0, 8)), bytes(4) + b"\x08", bytes(4) + NO_CACHE[:-1]):
        assert_sense(disk.sense(cdb(0x15, 0x10, 0, 0, len(data)), data=data), Reason.PARAMETER_LIST_LENGTH_ERROR)
    assert_sense(disk.sense(cdb(0x55, 0x10, *bytes(6), 7), data=bytes(7)), Reason.PARAMETER_LIST_LENGTH_ERROR)
    assert disk.good(cdb(0x15, 0x10)) == b""
    assert disk.sense(cdb(0x15, 0x10, 0, 0, 24), data=bytes(23)).field == 4


def test_flags() -> None:
    """Nothing is saved; a list in no standard's format is not understood; the medium has no type."""
    disk = initiator()
    assert disk.sense(cdb(0x15, 0x11, 0, 0, 24), data=bytes(4) + NO_CACHE).field == 1
    assert disk.sense(cdb(0x15, 0x00, 0, 0, 24), data=bytes(4) + NO_CACHE).field == 1
    result = disk.result(cdb(0x15, 0x10, 0, 0, 24), data=bytes((0, 1, 0, 0)) + NO_CACHE)
    assert_sense(decode_sense(result.sense), Reason.INVALID_FIELD_IN_PARAMETER_LIST)


@given(st.booleans(), st.binary(max_size=64))
def test_no_list_does_harm(ten: bool, data: bytes) -> None:
    """Any bytes are taken or refused; what cannot be changed never is."""
    disk = initiator()
    command = cdb(0x55, 0x10, *bytes(6), len(data)) if ten else cdb(0x15, 0x10, 0, 0, len(data))
    result = disk.result(command, data=data)
    assert result.status in (ScsiStatus.GOOD, ScsiStatus.CHECK_CONDITION)
    for page in PAGES.values():
        current = sense(disk, 0, page.code)
        fixed = bytes(byte & ~mask for byte, mask in zip(current, page.changeable, strict=True))[2:]
        assert fixed == bytes(byte & ~mask for byte, mask in zip(page.defaults, page.changeable, strict=True))[2:]
