"""The table of commands: what is in it, and what is checked by it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles.scsi import BLOCKS, Initiator, assert_sense, cdb, initiator, words
from tests.doubles.storage import SlowBackend
from vsp_vsc.storage.scsi.cdb import CDB_LENGTH, DIRECTION, ReserveIn, ReserveOut, ScsiStatus
from vsp_vsc.storage.scsi.commands import Command
from vsp_vsc.storage.scsi.sense import Reason, decode_sense
from vsp_vsc.storage.scsi.target import ScsiTarget

ROWS = ScsiTarget.commands.rows
CHECKED = [row for row in ROWS if row.quick is None]
NAMES = """
TEST UNIT READY, REQUEST SENSE, READ(6), WRITE(6), INQUIRY, MODE SELECT(6), RESERVE(6), RELEASE(6), MODE SENSE(6),
START STOP UNIT, SEND DIAGNOSTIC, PREVENT ALLOW MEDIUM REMOVAL, READ CAPACITY(10), READ(10), WRITE(10), VERIFY(10),
SYNCHRONIZE CACHE(10), WRITE SAME(10), UNMAP, LOG SENSE, MODE SELECT(10), RESERVE(10), RELEASE(10), MODE SENSE(10),
PERSISTENT RESERVE IN READ KEYS, PERSISTENT RESERVE IN READ RESERVATION, PERSISTENT RESERVE IN REPORT CAPABILITIES,
PERSISTENT RESERVE IN READ FULL STATUS, PERSISTENT RESERVE OUT REGISTER, PERSISTENT RESERVE OUT RESERVE,
PERSISTENT RESERVE OUT RELEASE, PERSISTENT RESERVE OUT CLEAR, PERSISTENT RESERVE OUT PREEMPT,
PERSISTENT RESERVE OUT PREEMPT AND ABORT, PERSISTENT RESERVE OUT REGISTER AND IGNORE, READ(16), COMPARE AND WRITE,
WRITE(16), VERIFY(16), SYNCHRONIZE CACHE(16), WRITE SAME(16), READ CAPACITY(16), GET LBA STATUS, REPORT LUNS,
REPORT SUPPORTED OPERATION CODES, REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS, READ(12), WRITE(12), VERIFY(12)
"""


def plain(row: Command) -> bytearray:
    """A row's CDB with nothing in it."""
    command = bytearray(16)
    command[0] = row.opcode
    command[1] = row.action or 0
    return command


def test_what_there_is() -> None:
    """As the standards name it, and nothing else."""
    assert [row.name for row in ROWS] == [name.strip() for name in NAMES.replace("\n", " ").split(",")]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_fits_its_operation_code(row: Command) -> None:
    """A CDB has the length of its group; which way data goes is known to who carries it."""
    assert len(row.cdb) == CDB_LENGTH[row.opcode]
    assert DIRECTION[row.opcode] is not None
    assert ScsiTarget.commands.find(bytes(plain(row))) is row


@pytest.mark.parametrize("row", CHECKED, ids=lambda row: row.name)
def test_bits_that_mean_nothing_must_be_zero(row: Command) -> None:
    """INVALID FIELD IN CDB with a pointer to the leftmost; vendors' bits in the control byte are nobody's business."""
    disk = initiator()
    for index in range(1, len(row.cdb)):
        means = row.cdb[index] | (0x1F if index == 1 and row.action is not None else 0)
        if index == len(row.cdb) - 1:
            means = 0xFB
        for bit in range(8):
            if means >> bit & 1:
                continue
            command = plain(row)
            command[index] |= 1 << bit
            result = disk.result(bytes(command), 4096)
            sense = decode_sense(result.sense)
            assert_sense(sense, Reason.INVALID_FIELD_IN_CDB)
            assert sense.field == index
            assert result.sense[15] == 0xC8 | bit


@pytest.mark.parametrize("row", [row for row in ROWS if row.quick], ids=lambda row: row.name)
def test_reads_and_writes_check_what_would_change_their_meaning(row: Command) -> None:
    """Protection information and auto contingent allegiance."""
    last = len(row.cdb) - 1
    disk = initiator()
    for index, value in ((1, 0x20), (1, 0x80), (last, 0x04)):
        command = plain(row)
        command[index] |= value
        sense = disk.sense(bytes(command), 256 * 512)
        assert_sense(sense, Reason.INVALID_FIELD_IN_CDB)
        assert sense.field == index


@pytest.mark.parametrize("opcode", sorted(ScsiTarget.commands.with_actions))
def test_unknown_service_actions(opcode: int) -> None:
    """Are fields that are wrong, not commands that are not there."""
    disk = initiator()
    known = {row.action for row in ROWS if row.opcode == opcode}
    for action in set(range(32)) - known:
        sense = disk.sense(cdb(opcode, action))
        assert_sense(sense, Reason.INVALID_FIELD_IN_CDB)
        assert sense.field == 1


# --- REPORT SUPPORTED OPERATION CODES


def test_all_operation_codes() -> None:
    """A descriptor for each row: operation code, service action, length; with timeouts if wanted."""
    disk = initiator()
    data = disk.good(words("A30C00000000 00010000 0000"), 65536)
    size = int.from_bytes(data[:4], "big")
    assert size == len(data) - 4 == 8 * len(ROWS)
    listed = [data[at : at + 8] for at in range(4, len(data), 8)]
    assert [(entry[0], entry[3], entry[7]) for entry in listed] == [
        (row.opcode, row.action or 0, len(row.cdb)) for row in ROWS
    ]
    assert {entry[5] & 1 for entry in listed if entry[0] in (0x5E, 0x5F, 0x9E, 0xA3)} == {1}
    timed = disk.good(words("A30C80000000 00010000 0000"), 65536)
    assert int.from_bytes(timed[:4], "big") == len(timed) - 4 == 20 * len(ROWS)


def test_one_operation_code() -> None:
    """Its CDB with the bits that mean something, by the option that fits it; or that there is none."""
    disk = initiator()

    def ask(options: int, opcode: int, action: int = 0) -> bytes:
        return disk.good(cdb(0xA3, 0x0C, options, opcode, 0, action, 0, 0, 1, 0), 256)

    read = bytes.fromhex("0003000A 28F8FFFFFFFF00FFFF00")
    assert ask(1, 0x28) == ask(3, 0x28) == read
    assert ask(2, 0x9E, 0x10)[4:6] == ask(3, 0x9E, 0x10)[4:6] == b"\x9e\x10"
    assert ask(3, 0x28, 1) == ask(1, 0x04) == ask(2, 0x9E, 0x11) == bytes((0, 1, 0, 0))
    assert ask(0x81, 0x28) == bytes((0, 0x83)) + read[2:] + bytes((0, 0x0A)) + bytes(10)
    assert disk.sense(cdb(0xA3, 0x0C, 1, 0x9E, 0, 0, 0, 0, 1, 0), 256).field == 2
    assert disk.sense(cdb(0xA3, 0x0C, 2, 0x28, 0, 0, 0, 0, 1, 0), 256).field == 2
    assert disk.sense(cdb(0xA3, 0x0C, 4, 0x28, 0, 0, 0, 0, 1, 0), 256).field == 2


def test_a_thick_disk_does_not_list_unmap() -> None:
    """It has no such command."""
    backend = SlowBackend(4096)
    backend.discards = False
    disk = Initiator(ScsiTarget(backend))
    data = disk.good(words("A30C00000000 00010000 0000"), 65536)
    assert 0x42 not in {data[at] for at in range(4, len(data), 8)}
    assert disk.good(cdb(0xA3, 0x0C, 1, 0x42, 0, 0, 0, 0, 1, 0), 256)[1] == 1


def test_task_management_functions() -> None:
    """ABORT TASK, ABORT TASK SET, LOGICAL UNIT RESET, I_T NEXUS RESET; extended, no timeouts."""
    disk = initiator()
    assert disk.good(words("A30D00000000 00000010 0000"), 16) == bytes((0xC8, 1, 0, 0))
    assert disk.good(words("A30D80000000 00000010 0000"), 16) == bytes((0xC8, 1, 0, 12)) + bytes(12)


# --- LOG SENSE, SEND DIAGNOSTIC, PREVENT ALLOW MEDIUM REMOVAL


def test_log_pages() -> None:
    """Which there are, and start-stop cycles."""
    disk = initiator()
    assert disk.good(cdb(0x4D, 0, 0x40, 0, 0, 0, 0, 1, 0), 256) == bytes((0, 0, 0, 2, 0x00, 0x0E))
    disk.good(cdb(0x1B, 0, 0, 0, 0))
    disk.good(cdb(0x1B, 0, 0, 0, 1))
    disk.good(cdb(0x1B, 0, 0, 0, 1))
    assert disk.good(cdb(0x4D, 0, 0x4E, 0, 0, 0, 0, 1, 0), 256) == bytes((0x0E, 0, 0, 8, 0, 4, 3, 4, 0, 0, 0, 1))
    for command, field in (
        (cdb(0x4D, 1), 1),
        (cdb(0x4D, 0, 0x0D), 2),
        (cdb(0x4D, 0, 0, 1), 3),
        (cdb(0x4D, 0, 0, 0, 0, 0, 1), 5),
    ):
        assert disk.sense(command, 256).field == field


def test_self_test() -> None:
    """The default one passes; others, and pages, there are none."""
    disk = initiator()
    disk.good(cdb(0x1D, 4))
    assert disk.sense(cdb(0x1D, 0x24)).field == 1
    assert disk.sense(cdb(0x1D, 0x10, 0, 0, 8), data=bytes(8)).field == 3


def test_who_wants_the_medium_to_stay() -> None:
    """Is noted, until it does not, or is gone."""
    disk = initiator()
    other = Initiator(disk.unit, "other")
    disk.good(cdb(0x1E, 0, 0, 0, 1))
    other.good(cdb(0x1E, 0, 0, 0, 1))
    assert disk.unit.preventing == {disk.nexus, other.nexus}
    disk.good(cdb(0x1E))
    other.nexus.close()
    assert not disk.unit.preventing
    assert disk.sense(cdb(0x1E, 0, 0, 0, 2)).field == 4


def test_a_unit_by_itself_reports_its_lun() -> None:
    """For front ends that have just one."""
    disk = initiator()
    assert disk.good(words("A0000000 0000 00000100 0000"), 256) == bytes((0, 0, 0, 8)) + bytes(12)
    assert disk.good(words("A0000100 0000 00000100 0000"), 256) == bytes(8)
    assert disk.sense(words("A0000300 0000 00000100 0000"), 256).field == 2


# --- anything at all

OPCODES = st.one_of(st.sampled_from([row.opcode for row in ROWS]), st.integers(0, 255))
COMMANDS = st.builds(lambda opcode, rest: bytes((opcode,)) + rest, OPCODES, st.binary(min_size=15, max_size=15))
SPARSE = st.builds(
    lambda row, changes: bytes(_changed(row, changes)),
    st.sampled_from(ROWS),
    st.lists(st.tuples(st.integers(1, 15), st.integers(0, 255)), max_size=4),
)


def _changed(row: Command, changes: list[tuple[int, int]]) -> bytearray:
    command = plain(row)
    for index, value in changes:
        command[index] ^= value & (row.cdb[index] if index < len(row.cdb) else 0xFF)
    return command


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(COMMANDS | SPARSE, st.booleans(), st.binary(max_size=2048)), max_size=12))
def test_no_sequence_of_commands_does_harm(commands: list[tuple[bytes, bool, bytes]]) -> None:
    """Two initiators, any CDBs, any data: each command ends once, with a status, valid sense data, and no more moved
    than the buffer holds; and nothing is under way afterwards."""
    disk = initiator(contents=bytes(BLOCKS * 512))
    other = Initiator(disk.unit, "other")
    for command, first, data in commands:
        result, _ = (disk if first else other).run(command, data=data)
        assert result is not None
        assert result.status in (ScsiStatus.GOOD, ScsiStatus.CHECK_CONDITION, ScsiStatus.RESERVATION_CONFLICT)
        assert result.transferred <= max(len(data), 0)
        assert bool(result.sense) == (result.status == ScsiStatus.CHECK_CONDITION)
        if result.sense:
            sense = decode_sense(result.sense)
            assert sense.key
            assert (
                len(result.sense) == 18
                if result.sense[0] & 0x7F == 0x70
                else len(result.sense) == 8 + result.sense[7] <= 20
            )
            assert "additional sense (" not in sense.words
    assert disk.unit.under_way == 0
    assert not disk.unit.busy_alone


def test_names_of_reservation_actions() -> None:
    """As people read them in a trace."""
    assert {row.action for row in ROWS if row.opcode == 0x5E} == set(ReserveIn)
    assert {row.action for row in ROWS if row.opcode == 0x5F} == set(ReserveOut)
