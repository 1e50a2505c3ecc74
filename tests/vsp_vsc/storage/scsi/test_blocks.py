"""Commands that move, compare or change blocks, against what a plain array of bytes would hold."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles.scsi import BLOCKS, PATTERN, SIZE, Initiator, assert_sense, cdb, initiator, words
from tests.doubles.storage import SlowBackend
from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.scsi.cdb import ScsiStatus, describe_cdb, read_cdb, unmap_cdb, unmap_parameters, write_cdb
from vsp_vsc.storage.scsi.sense import Reason, decode_sense
from vsp_vsc.storage.scsi.target import ScsiTarget


def contents(disk: Initiator) -> bytes:
    backend = disk.unit.backend
    assert isinstance(backend, MemoryBackend)
    return bytes(backend.data)


def transfer(opcode: int, lba: int, count: int, flags: int = 0) -> bytes:
    """A CDB for blocks, of the size that the operation code says."""
    match opcode >> 5:
        case 0:
            return bytes((opcode, *lba.to_bytes(3, "big"), count & 0xFF)).ljust(16, b"\0")
        case 4:
            return struct.pack(">BBQIBB", opcode, flags, lba, count, 0, 0)
        case 5:
            return struct.pack(">BBIIBB", opcode, flags, lba, count, 0, 0).ljust(16, b"\0")
        case _:
            return struct.pack(">BBIBHB", opcode, flags, lba, 0, count, 0).ljust(16, b"\0")


READS, WRITES, VERIFIES = (0x08, 0x28, 0xA8, 0x88), (0x0A, 0x2A, 0xAA, 0x8A), (0x2F, 0xAF, 0x8F)
COUNT_FIELD = {0: 4, 1: 7, 5: 6, 4: 10}


@pytest.mark.parametrize("opcode", READS)
def test_reads_of_all_sizes(opcode: int) -> None:
    """The same blocks; a buffer that is too small gets none."""
    disk = initiator()
    assert disk.good(transfer(opcode, 77, 3), 1536) == PATTERN[77 * 512 : 80 * 512]
    assert disk.sense(transfer(opcode, 77, 3), 1535).field == COUNT_FIELD[opcode >> 5]
    assert_sense(disk.sense(transfer(opcode, BLOCKS - 1, 2), 1024), Reason.LBA_OUT_OF_RANGE)


@pytest.mark.parametrize("opcode", WRITES)
def test_writes_of_all_sizes(opcode: int) -> None:
    """The same blocks, and no others."""
    disk = initiator()
    disk.good(transfer(opcode, 77, 3), data=b"w" * 1536)
    assert contents(disk) == PATTERN[: 77 * 512] + b"w" * 1536 + PATTERN[80 * 512 :]
    assert disk.sense(transfer(opcode, 77, 3), data=b"x" * 1535).field == COUNT_FIELD[opcode >> 5]
    assert_sense(disk.sense(transfer(opcode, BLOCKS - 1, 2), data=bytes(1024)), Reason.LBA_OUT_OF_RANGE)


def test_no_blocks_mean_256_to_the_small_ones() -> None:
    """READ(6) and WRITE(6) cannot ask for none; the others can."""
    disk = initiator()
    assert disk.good(transfer(0x08, 1, 0), 256 * 512) == PATTERN[512 : 257 * 512]
    assert disk.good(transfer(0x0A, 1, 0), data=b"z" * 256 * 512) == b"z" * 256 * 512
    for opcode in (*READS[1:], *WRITES[1:]):
        assert disk.good(transfer(opcode, BLOCKS, 0)) == b""
        assert_sense(disk.sense(transfer(opcode, BLOCKS + 1, 0)), Reason.LBA_OUT_OF_RANGE)


def test_the_address_of_a_small_one_has_21_bits() -> None:
    """The three bits above were the LUN once, and must be zero."""
    assert_sense(initiator().sense(bytes((0x08, 0x1F, 0xFF, 0xFF, 1)) + bytes(11), 512), Reason.LBA_OUT_OF_RANGE)
    assert initiator().sense(bytes((0x08, 0x20, 0, 0, 1)) + bytes(11), 512).field == 1


# --- VERIFY


@pytest.mark.parametrize("opcode", VERIFIES)
def test_verify(opcode: int) -> None:
    """Without BYTCHK it reads; with 1 it compares block for block; with 3 all with one; 2 there is not."""
    disk = initiator()
    assert disk.good(transfer(opcode, 0, BLOCKS)) == b""
    assert len(disk.good(transfer(opcode, 3, 4, 2), data=PATTERN[1536:3584])) == 2048
    assert len(disk.good(transfer(opcode, 3, 4, 6), data=PATTERN[:512])) == 512
    assert disk.sense(transfer(opcode, 3, 4, 4), data=PATTERN[:2048]).field == 1
    assert disk.sense(transfer(opcode, 3, 4, 2), data=bytes(2047)).field == COUNT_FIELD[opcode >> 5]
    assert disk.sense(transfer(opcode, 0, 1, 0x20)).field == 1
    assert_sense(disk.sense(transfer(opcode, BLOCKS - 1, 2)), Reason.LBA_OUT_OF_RANGE)
    assert disk.good(transfer(opcode, 3, 0, 2)) == b""


@pytest.mark.parametrize("position", [0, 1, 511, 512, 2047])
def test_verify_says_where_it_differs(position: int) -> None:
    """MISCOMPARE with the offset in the data as information."""
    disk = initiator()
    data = bytearray(PATTERN[:2048])
    data[position] ^= 0x80
    sense = disk.sense(transfer(0x2F, 0, 4, 2), data=bytes(data))
    assert_sense(sense, Reason.MISCOMPARE)
    assert sense.information == position
    one = disk.sense(transfer(0x2F, 0, 4, 6), data=bytes(data[position // 512 * 512 :][:512]))
    assert one.information == position % 512


def test_verify_goes_in_pieces() -> None:
    """A large range is read a megabyte at a time, and the pieces are compared where they belong."""
    size = 5 << 19
    disk = initiator(contents=bytes(range(256)) * (size // 256))
    data = bytearray(contents(disk))
    data[-1] ^= 1
    sense = disk.sense(transfer(0x8F, 0, size // 512, 2), data=bytes(data))
    assert sense.information == size - 1
    assert disk.unit.backend.statistics().bytes_read == size


def test_verify_of_more_than_64_mib() -> None:
    """Is refused as WRITE SAME is: else one command would read for hours, or wait for days under a limit."""
    disk = Initiator(ScsiTarget(MemoryBackend(65 << 20)))
    assert disk.good(transfer(0x8F, 0, 128 << 10)) == b""
    assert disk.sense(transfer(0x8F, 0, (128 << 10) + 1)).field == COUNT_FIELD[0x8F >> 5]


def test_verify_of_what_cannot_be_read() -> None:
    """Is what VERIFY is for."""
    slow = SlowBackend(PATTERN)
    slow.error = errno.EIO
    disk = Initiator(ScsiTarget(slow))
    assert disk.run(transfer(0x2F, 9, 1))[0] is None
    slow.finish()
    sense = decode_sense(disk.late[0].sense)
    assert_sense(sense, Reason.UNRECOVERED_READ_ERROR)
    assert sense.information == 9


# --- WRITE SAME


@pytest.mark.parametrize("opcode", [0x41, 0x93])
def test_write_same(opcode: int) -> None:
    """One block, many times; of the data one block moves."""
    disk = initiator()
    assert disk.good(transfer(opcode, 5, 100), data=b"same" * 128) == b"same" * 128
    assert contents(disk) == PATTERN[:2560] + b"same" * 12800 + PATTERN[105 * 512 :]
    assert disk.unit.backend.statistics().discards == 0


@pytest.mark.parametrize("opcode", [0x41, 0x93])
def test_write_same_unmaps_zeros(opcode: int) -> None:
    """With UNMAP, if the block is zeros; another block is written, since that is what must be read."""
    disk = initiator()
    disk.good(transfer(opcode, 8, 8, 8), data=bytes(512))
    assert disk.unit.backend.statistics().bytes_discarded == 4096
    disk.good(transfer(opcode, 16, 8, 8), data=b"n" * 512)
    assert disk.unit.backend.statistics().bytes_discarded == 4096
    assert contents(disk) == PATTERN[:4096] + bytes(4096) + b"n" * 4096 + PATTERN[12288:]


def test_write_same_without_data() -> None:
    """NDOB of WRITE SAME(16): zeros, and no buffer; WRITE SAME(10) has no such bit."""
    disk = initiator()
    assert disk.good(transfer(0x93, 8, 8, 1)) == b""
    assert disk.good(transfer(0x93, 24, 8, 9)) == b""
    assert contents(disk) == PATTERN[:4096] + bytes(4096) + PATTERN[8192:12288] + bytes(4096) + PATTERN[16384:]
    assert disk.sense(transfer(0x41, 8, 8, 1)).field == 1


def test_write_same_refusals() -> None:
    """No blocks (WSNZ), too many, anchored, protected, no data, past the end, read-only; UNMAP on a thick disk."""
    disk = initiator()
    assert disk.sense(transfer(0x41, 0, 0), data=bytes(512)).field == 7
    assert disk.sense(transfer(0x93, 0, 0), data=bytes(512)).field == 10
    assert disk.sense(transfer(0x93, 0, 1, 0x10), data=bytes(512)).field == 1
    assert disk.sense(transfer(0x93, 0, 1, 0x20), data=bytes(512)).field == 1
    assert disk.sense(transfer(0x93, 0, 1), data=bytes(511)).field == 10
    assert_sense(disk.sense(transfer(0x93, BLOCKS, 1), data=bytes(512)), Reason.LBA_OUT_OF_RANGE)
    assert_sense(initiator(read_only=True).sense(transfer(0x93, 0, 1), data=bytes(512)), Reason.WRITE_PROTECTED)
    disk.unit.blocks = 1 << 30
    assert disk.sense(transfer(0x93, 0, disk.unit.max_write_same + 1), data=bytes(512)).field == 10
    disk.unit.thin = False
    assert disk.sense(transfer(0x93, 0, 1, 8), data=bytes(512)).field == 1


# --- COMPARE AND WRITE


def compare(lba: int, count: int, flags: int = 0) -> bytes:
    return bytes((0x89, flags)) + lba.to_bytes(8, "big") + bytes(3) + bytes((count, 0, 0))


def test_compare_and_write() -> None:
    """Written if all of it is as expected; else MISCOMPARE with the offset, and nothing is."""
    disk = initiator()
    old, new = PATTERN[2560:3584], b"new!" * 256
    assert len(disk.good(compare(5, 2), data=old + new)) == 2048
    assert contents(disk) == PATTERN[:2560] + new + PATTERN[3584:]
    sense = disk.sense(compare(5, 2), data=new[:1000] + old[1000:] + old)
    assert_sense(sense, Reason.MISCOMPARE)
    assert sense.information == 1000
    assert contents(disk) == PATTERN[:2560] + new + PATTERN[3584:]
    assert disk.good(compare(5, 0)) == b""


def test_compare_and_write_refusals() -> None:
    """Too many blocks, too little data, past the end, protection, read-only."""
    disk = initiator()
    assert disk.sense(compare(0, 129), data=bytes(2048)).field == 13
    assert disk.sense(compare(0, 2), data=bytes(2047)).field == 13
    assert disk.sense(compare(0, 1, 0x20), data=bytes(1024)).field == 1
    assert_sense(disk.sense(compare(BLOCKS, 1), data=bytes(1024)), Reason.LBA_OUT_OF_RANGE)
    assert_sense(initiator(read_only=True).sense(compare(0, 1), data=bytes(1024)), Reason.WRITE_PROTECTED)


@pytest.mark.parametrize(
    "writing",
    [
        (write_cdb(5, 1), b"other" * 103),
        (transfer(0x93, 5, 1), b"o" * 512),
        (unmap_cdb(24), unmap_parameters([(5, 1)])),
        (compare(5, 1), PATTERN[2560:3072] + b"2" * 512),
    ],
    ids=["write", "write same", "unmap", "compare and write"],
)
def test_nothing_is_written_between_compare_and_write(writing: tuple[bytes, bytes]) -> None:
    """Another initiator's write that comes while it is under way is done after it; reads need not wait."""
    slow = SlowBackend(PATTERN, cached=True)
    disk = Initiator(ScsiTarget(slow))
    other = Initiator(disk.unit, "other")
    assert disk.run(compare(5, 1), data=PATTERN[2560:3072] + b"1" * 512)[0] is None
    assert other.run(writing[0], data=writing[1])[0] is None
    assert other.good(read_cdb(5, 1), 512) == PATTERN[2560:3072]
    assert slow.finish() == 1
    assert slow.log == ["read"]
    assert slow.finish() == 1
    assert slow.log == ["read", "write"]
    assert bytes(slow.data[2560:3072]) == b"1" * 512
    assert disk.late[0].status == ScsiStatus.GOOD
    while slow.finish():
        pass
    (late,) = other.late
    if writing[0][0] == 0x89:
        assert_sense(decode_sense(late.sense), Reason.MISCOMPARE)
        assert bytes(slow.data[2560:3072]) == b"1" * 512
    else:
        assert late.status == ScsiStatus.GOOD
        assert bytes(slow.data[2560:3072]) != b"1" * 512
    assert disk.unit.under_way == 0


@pytest.mark.parametrize("blocks", [256, 257])
def test_a_long_write_same_is_not_mixed_with_other_writes(blocks: int) -> None:
    """Of several steps of 128 KiB, that is; one that is a single step needs no protection, and nobody waits for it."""
    slow = SlowBackend(bytes(4 << 20))
    disk = Initiator(ScsiTarget(slow))
    disk.run(transfer(0x93, 0, blocks), data=b"s" * 512)
    disk.run(write_cdb(0, 1), data=b"w" * 512)
    assert len(slow.jobs) == (2 if blocks == 256 else 1)
    while slow.finish():
        pass
    assert bytes(slow.data[: blocks * 512]) == b"w" * 512 + b"s" * 512 * (blocks - 1)


def test_a_write_that_waits_can_be_aborted() -> None:
    """It ends with TASK ABORTED when its turn comes, and has written nothing."""
    slow = SlowBackend(PATTERN)
    disk = Initiator(ScsiTarget(slow))
    other = Initiator(disk.unit, "other")
    assert disk.run(compare(5, 1), data=PATTERN[2560:3072] + b"1" * 512)[0] is None
    assert other.run(write_cdb(9, 1), data=b"9" * 512)[0] is None
    other.nexus.abort_all()
    slow.finish()
    slow.finish()
    assert [late.status for late in other.late] == [ScsiStatus.TASK_ABORTED]
    assert bytes(slow.data) == PATTERN[:2560] + b"1" * 512 + PATTERN[3072:]
    assert not slow.jobs


def test_an_error_in_the_middle_lets_the_others_on() -> None:
    """The host's disk fails: one command ends with sense data, and the next is carried out."""
    slow = SlowBackend(PATTERN)
    disk = Initiator(ScsiTarget(slow))
    disk.run(compare(5, 1), data=PATTERN[2560:3072] + b"1" * 512)
    disk.run(write_cdb(9, 1), data=b"9" * 512)
    slow.error = errno.EIO
    slow.finish(1)
    slow.error = None
    slow.finish()
    assert_sense(decode_sense(disk.late[0].sense), Reason.UNRECOVERED_READ_ERROR)
    assert disk.late[1].status == ScsiStatus.GOOD
    assert not disk.unit.busy_alone


# --- 4 KiB blocks


def test_blocks_of_4_kib() -> None:
    """Addresses, counts, capacities and limits are all in them."""
    disk = initiator(block_size=4096)
    assert disk.good(transfer(0x28, 3, 2), 8192) == PATTERN[12288:20480]
    disk.good(transfer(0x2A, 3, 1), data=b"4" * 4096)
    assert contents(disk)[12288:16384] == b"4" * 4096
    assert disk.good(cdb(0x25), 8) == (SIZE // 4096 - 1).to_bytes(4, "big") + (4096).to_bytes(4, "big")
    assert disk.good(cdb(0x9E, 0x10, *bytes(11), 32), 32)[8:14] == bytes((0, 0, 16, 0, 0, 0))
    assert_sense(disk.sense(transfer(0x28, SIZE // 4096, 1), 4096), Reason.LBA_OUT_OF_RANGE)
    assert disk.sense(transfer(0x28, 0, 1), 512).field == 7
    disk.good(transfer(0x93, 5, 2), data=b"s" * 4096)
    assert contents(disk)[20480:28672] == b"s" * 8192
    limits = disk.good(cdb(0x12, 1, 0xB0, 0, 255), 255)
    assert limits[5] == 16
    assert disk.sense(compare(0, 17), data=bytes(34 * 4096)).field == 13
    assert struct.unpack(">HIIII", limits[6:8] + limits[20:36]) == (1, 0x10000, 255, 1, 1 << 31)
    assert disk.good(cdb(0x1A, 0, 8, 0, 255), 255)[4:12] == (SIZE // 4096).to_bytes(4, "big") + bytes((0, 0, 16, 0))


@pytest.mark.parametrize("size", [1024, 2048, 0, 513])
def test_other_sizes_of_blocks(size: int) -> None:
    """There are none; nor is a disk made of pieces of blocks."""
    with pytest.raises(ValueError, match="blocks of"):
        ScsiTarget(MemoryBackend(8192), block_size=size)
    with pytest.raises(ValueError, match="blocks of"):
        ScsiTarget(MemoryBackend(4096 + 512), block_size=4096)


# --- all together


LBAS, COUNTS = st.integers(0, 66), st.integers(0, 12)
OPERATIONS = st.tuples(
    st.sampled_from(["read", "write", "same", "same unmap", "zeros", "unmap", "compare"]),
    LBAS,
    COUNTS,
    st.integers(0, 3),
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([512, 4096]), st.lists(OPERATIONS, max_size=30))
def test_a_disk_holds_what_an_array_of_bytes_would(size: int, operations: list[tuple[str, int, int, int]]) -> None:
    """Whatever the order of reads, writes, unmaps and the rest; what is refused has changed nothing."""
    blocks = 64
    disk = initiator(contents=bytes(blocks * size), block_size=size)
    model = bytearray(blocks * size)
    for kind, lba, count, fill in operations:
        first, end, fits = lba * size, (lba + count) * size, lba + count <= blocks
        block = bytes((fill,)) * size
        match kind:
            case "read":
                result, data = disk.run(read_cdb(lba, count), count * size)
                if fits:
                    assert data == model[first:end]
            case "write":
                result, _ = disk.run(write_cdb(lba, count), data=block * count)
            case "same" | "same unmap":
                fits = fits and count > 0
                result, _ = disk.run(transfer(0x93, lba, count, 8 if "unmap" in kind else 0), data=block)
            case "zeros":
                fits, block = fits and count > 0, bytes(size)
                result, _ = disk.run(transfer(0x93, lba, count, 1))
            case "unmap":
                block = bytes(size)
                parameters = unmap_parameters([(lba, count)])
                result, _ = disk.run(unmap_cdb(len(parameters)), data=parameters)
            case _:
                expected = bytes((fill // 2,)) * (size * count)
                result, _ = disk.run(compare(lba, count), data=expected + block * count)
                fits = fits and model[first:end] == expected
        assert result is not None
        assert (result.status == ScsiStatus.GOOD) is fits, (kind, lba, count)
        if fits and kind != "read":
            model[first:end] = block * count
        assert contents(disk) == model


def test_in_words() -> None:
    """For traces."""
    assert describe_cdb(transfer(0x08, 7, 0)) == "SCSI READ(6) lba=7 blocks=256"
    assert describe_cdb(transfer(0xAA, 7, 2, 8)) == "SCSI WRITE(12) lba=7 blocks=2 fua"
    assert describe_cdb(compare(9, 3)) == "SCSI COMPARE AND WRITE lba=9 blocks=3"
    assert describe_cdb(words("93 08 0000000000000005 00000008")) == "SCSI WRITE SAME(16) lba=5 blocks=8"
    assert describe_cdb(words("5F 05")) == "SCSI PERSISTENT RESERVE OUT PREEMPT AND ABORT"
    assert describe_cdb(words("5F 1F")) == "SCSI PERSISTENT RESERVE OUT action=1Fh"
    assert describe_cdb(words("9E 12")) == "SCSI GET LBA STATUS"
