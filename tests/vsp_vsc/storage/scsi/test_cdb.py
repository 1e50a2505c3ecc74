"""CDBs in words and sense data in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsp_vsc.storage.scsi.cdb import (
    CDB_LENGTH,
    Opcode,
    describe_cdb,
    inquiry_cdb,
    mode_sense_6_cdb,
    read_capacity_16_cdb,
    read_cdb,
    report_luns_cdb,
    synchronize_cache_cdb,
    write_cdb,
)
from vsp_vsc.storage.scsi.sense import Reason, Sense, decode_sense, descriptor_sense, fixed_sense


@pytest.mark.parametrize(
    ("cdb", "words"),
    [
        (read_cdb(0, 8), "SCSI READ(10) lba=0 blocks=8"),
        (read_cdb(1 << 32, 8), "SCSI READ(16) lba=4294967296 blocks=8"),
        (read_cdb(0, 0x10000), "SCSI READ(16) lba=0 blocks=65536"),
        (write_cdb(7, 1), "SCSI WRITE(10) lba=7 blocks=1"),
        (write_cdb(7, 1, fua=True), "SCSI WRITE(10) lba=7 blocks=1 fua"),
        (write_cdb(1 << 40, 1, fua=True), "SCSI WRITE(16) lba=1099511627776 blocks=1 fua"),
        (synchronize_cache_cdb(), "SCSI SYNCHRONIZE CACHE(10) lba=0 blocks=0"),
        (inquiry_cdb(36), "SCSI INQUIRY"),
        (inquiry_cdb(36, 0x83), "SCSI INQUIRY page=83h"),
        (report_luns_cdb(4096), "SCSI REPORT LUNS"),
        (read_capacity_16_cdb(32), "SCSI READ CAPACITY(16)"),
        (mode_sense_6_cdb(0x3F, 192), "SCSI MODE SENSE(6) page=3Fh"),
        (bytes(6), "SCSI TEST UNIT READY"),
        (b"\xff", "SCSI command FFh"),
        (b"\x28", "SCSI READ(10) lba=0 blocks=0"),
        (b"", "SCSI empty CDB"),
    ],
)
def test_a_cdb_in_words(cdb: bytes, words: str) -> None:
    """The words are stable: people's scripts read them."""
    assert describe_cdb(cdb) == words


@given(st.binary(max_size=20))
def test_any_bytes_can_be_described(cdb: bytes) -> None:
    """A guest chooses them, a trace prints them."""
    assert describe_cdb(cdb).startswith("SCSI ")


def test_the_length_of_a_cdb_follows_from_its_group() -> None:
    """SPC-4 4.2.5.1."""
    lengths = {code: CDB_LENGTH[code] for code in (Opcode.INQUIRY, Opcode.READ_10, Opcode.READ_16, Opcode.REPORT_LUNS)}
    assert list(lengths.values()) == [6, 10, 16, 12]


@pytest.mark.parametrize("reason", Reason)
def test_sense_data_survives_the_way_to_the_guest(reason: Reason) -> None:
    """What the target says, the initiator reads, in both formats."""
    key, asc, ascq, words = reason.value
    assert decode_sense(fixed_sense(reason)) == Sense(key, asc, ascq)
    assert decode_sense(descriptor_sense(reason)) == Sense(key, asc, ascq)
    assert words in decode_sense(fixed_sense(reason)).words


def test_fixed_sense_byte_by_byte() -> None:
    """SPC-4 4.5.3: valid bit and block, key, ten more bytes, codes, field pointer with its bits."""
    assert (
        fixed_sense(Reason.LBA_OUT_OF_RANGE, information=0x01020304).hex()
        == "f000050102030" + "40a00000000210000000000"
    )
    assert (
        fixed_sense(Reason.INVALID_FIELD_IN_CDB, field=1, bit=7).hex()
        == "70000500000000" + "0a000000002400" + "00cf0001"
    )
    assert fixed_sense(Reason.LBA_OUT_OF_RANGE, information=1 << 32).hex().startswith("7000")


def test_sense_in_words() -> None:
    """Key, meaning, numbers, place."""
    sense = decode_sense(fixed_sense(Reason.UNRECOVERED_READ_ERROR, information=9))
    assert sense.words == "MEDIUM ERROR, unrecovered read error (11h/00h) at block 9"
    assert decode_sense(fixed_sense(Reason.INVALID_FIELD_IN_CDB, field=2)).words.endswith("at CDB byte 2")
    assert decode_sense(b"\x70\x00\x0d").words.startswith("sense key Dh")


@pytest.mark.parametrize(("specific", "field"), [(0xC0, 4), (0x80, None), (0x40, None)])
def test_a_field_pointer_counts_where_it_is_valid_and_into_the_cdb(specific: int, field: int | None) -> None:
    """SPC-4, 4.5.2.4.2: SKSV says that there is a pointer, C/D that it is into the CDB and not into parameters."""
    data = bytes([0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x26, 0, 0, specific, 0, 4])
    assert decode_sense(data).field == field


@given(st.binary(max_size=40))
def test_any_sense_data_can_be_decoded(data: bytes) -> None:
    """Hosts send what they like."""
    assert decode_sense(data).words
