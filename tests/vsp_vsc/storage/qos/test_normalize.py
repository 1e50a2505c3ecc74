"""What counts as how much."""

from __future__ import annotations

import pytest

from vsp_vsc.storage.qos.normalize import IN_ORDER, cost_of, normalized
from vsp_vsc.storage.scsi.cdb import (
    inquiry_cdb,
    read_cdb,
    report_luns_cdb,
    synchronize_cache_cdb,
    unmap_cdb,
    write_cdb,
)

KIB = 1 << 10


@pytest.mark.parametrize(("kibibytes", "count"), [(4, 1), (8, 1), (9, 2), (16, 2), (32, 4), (256, 32)])
def test_normalized_as_hyper_v_does(kibibytes: int, count: int) -> None:
    """E15: one for each 8 KiB that is begun."""
    assert normalized(kibibytes * KIB) == count
    assert cost_of(read_cdb(0, 2 * kibibytes), 512) == cost_of(write_cdb(0, 2 * kibibytes), 512) == count


@pytest.mark.parametrize(
    ("cdb", "block_size", "count"),
    [
        ("08 00 00 00 10 00", 512, 1),  # READ(6)
        ("0A 00 00 00 00 00", 512, 16),  # WRITE(6): 0 blocks are 256
        ("28 00 00 00 00 00 00 00 00 00", 512, None),  # READ(10) of nothing
        ("A8 00 00 00 00 00 00 00 00 09 00 00", 2048, 3),  # READ(12) of a disc
        ("88 00 0000000000000000 00000040 00 00", 4096, 32),
        ("2F 00 00 00 00 00 00 FF FF 00", 512, 4096),  # VERIFY(10): read, though not sent
        ("93 08 0000000000000000 00020000 00 00", 512, 8192),  # WRITE SAME(16) of 64 MiB
        ("89 00 0000000000000000 000000 10 00 00", 512, 2),  # COMPARE AND WRITE: both halves
    ],
)
def test_each_command_by_what_it_moves(cdb: str, block_size: int, count: int | None) -> None:
    """By the CDB's own count of blocks, wherever it stands."""
    assert cost_of(bytes.fromhex(cdb).ljust(16, b"\0"), block_size) == count


def test_what_is_going_to_be_refused_counts_little() -> None:
    """A count that no buffer stands behind, or of more than a disk does at a time, keeps nobody waiting."""
    huge = bytes.fromhex("88 00 0000000000000000 FFFFFFFF 00 00")
    assert cost_of(huge, 512, 512) == 1
    assert cost_of(huge, 512, 256 * KIB) == 32
    assert cost_of(huge, 512, 0) == 1
    for opcode in ("8F", "93"):  # VERIFY(16), WRITE SAME(16)
        assert cost_of(bytes.fromhex(opcode) + huge[1:], 512, 512) == 1
        most = bytes.fromhex(opcode) + (128 << 10).to_bytes(13, "big") + bytes(2)
        assert cost_of(most, 512, 512) == 8192


def test_what_is_not_counted() -> None:
    """Questions pass; a flush and a stop keep their place; an UNMAP moves nothing and is one."""
    for cdb in (inquiry_cdb(96), report_luns_cdb(4096), bytes(16)):
        assert cost_of(cdb.ljust(16, b"\0"), 512) is None
    assert cost_of(synchronize_cache_cdb(), 512) == IN_ORDER
    assert cost_of(bytes.fromhex("1B").ljust(16, b"\0"), 512) == IN_ORDER
    assert cost_of(unmap_cdb(24), 512) == 1
