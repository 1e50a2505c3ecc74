"""What a unit keeps for each initiator and what for all: unit attentions, aborts, resets, being stopped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles.scsi import BLOCKS, PATTERN, Initiator, assert_sense, cdb, initiator, words
from tests.doubles.storage import SlowBackend
from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.scsi.cdb import ScsiStatus, inquiry_cdb, read_cdb, write_cdb
from vsp_vsc.storage.scsi.sense import Reason, SenseKey, decode_sense
from vsp_vsc.storage.scsi.target import ScsiTarget

ATTENTIONS = [reason for reason in Reason if reason.key is SenseKey.UNIT_ATTENTION]
RESETS = {Reason.POWER_ON_OR_RESET, Reason.BUS_RESET, Reason.DEVICE_RESET, Reason.NEXUS_LOSS}
UNIT_READY = cdb(0x00)
EXEMPT = (inquiry_cdb(36), words("A0000000 0000 00000100 0000"), cdb(0x03, 0, 0, 0, 18))


def two() -> tuple[Initiator, Initiator]:
    unit = ScsiTarget(MemoryBackend(PATTERN))
    return Initiator(unit, "one"), Initiator(unit, "two")


# --- unit attentions


def test_each_initiator_is_told_once() -> None:
    """The command that is told it is not carried out; the next one is."""
    one, other = two()
    one.unit.attend(Reason.CAPACITY_CHANGED)
    for each in (one, other):
        assert_sense(each.sense(write_cdb(0, 1), data=b"x" * 512), Reason.CAPACITY_CHANGED)
        assert each.good(read_cdb(0, 1), 512) == PATTERN[:512]


def test_no_quick_read_passes_an_attention_by() -> None:
    """Nor a reservation, nor a unit that was stopped."""
    one, other = two()
    view = memoryview(bytearray(512))
    assert one.nexus.read_now(0, 1, [view])
    one.nexus.attend(Reason.CAPACITY_CHANGED)
    assert not one.nexus.read_now(0, 1, [view])
    one.sense(UNIT_READY)
    assert one.nexus.read_now(0, 1, [view])
    assert not one.nexus.read_now(BLOCKS, 1, [view])
    other.good(cdb(0x16))
    assert not one.nexus.read_now(0, 1, [view])
    other.good(cdb(0x17))
    other.good(cdb(0x1B))
    assert not one.nexus.read_now(0, 1, [view])


@pytest.mark.parametrize("command", EXEMPT)
@pytest.mark.parametrize("reason", ATTENTIONS)
def test_some_commands_are_carried_out_nevertheless(command: bytes, reason: Reason) -> None:
    """INQUIRY, REPORT LUNS and REQUEST SENSE (SPC-4 5.14); the first two tell nothing and so change nothing."""
    one, _ = two()
    one.nexus.attend(reason)
    one.good(command, 256)
    told = command[0] == 0x03 or (command[0] == 0xA0 and reason is Reason.REPORTED_LUNS_DATA_HAS_CHANGED)
    assert one.nexus.attentions == (() if told else (reason,))


@pytest.mark.parametrize("descriptor", [False, True])
def test_request_sense_tells_an_attention(descriptor: bool) -> None:
    """As data, with status GOOD, in the format asked for; then it is told."""
    one, _ = two()
    one.nexus.attend(Reason.MODE_PARAMETERS_CHANGED)
    for reason in (Reason.MODE_PARAMETERS_CHANGED, Reason.NO_SENSE):
        data = one.good(cdb(0x03, descriptor, 0, 0, 252), 252)
        assert data[0] == (0x72 if descriptor else 0x70)
        assert_sense(decode_sense(data), reason)


def test_unknown_commands_tell_too() -> None:
    """They are not exempt."""
    one, _ = two()
    one.nexus.attend(Reason.CAPACITY_CHANGED)
    assert_sense(one.sense(cdb(0xFF)), Reason.CAPACITY_CHANGED)
    assert_sense(one.sense(cdb(0xFF)), Reason.INVALID_OPCODE)


@given(st.lists(st.sampled_from(ATTENTIONS), max_size=12))
def test_the_order_of_attentions(reasons: list[Reason]) -> None:
    """In the order in which they came, each once; a reset makes what was before it worthless."""
    one, _ = two()
    for reason in reasons:
        one.nexus.attend(reason)
    last = max((index for index, reason in enumerate(reasons) if reason in RESETS), default=0)
    expected = list(dict.fromkeys(reasons[last:]))
    assert list(one.nexus.attentions) == expected
    for reason in expected:
        assert_sense(one.sense(UNIT_READY), reason)
    one.good(UNIT_READY)
    assert not one.nexus.hindered


def test_resets_are_told_before_a_conflict_and_other_news_after_it() -> None:
    """SAM-5 5.3.3; a command that ends with a conflict has told nothing."""
    one, other = two()
    other.good(cdb(0x16))
    one.nexus.attend(Reason.DEVICE_RESET)
    one.nexus.attend(Reason.CAPACITY_CHANGED)
    assert_sense(one.sense(read_cdb(0, 1), 512), Reason.DEVICE_RESET)
    assert one.conflicts(read_cdb(0, 1), 512)
    other.good(cdb(0x17))
    assert_sense(one.sense(read_cdb(0, 1), 512), Reason.CAPACITY_CHANGED)


def test_a_new_nexus_may_be_told_something() -> None:
    """By transports that have no other way to say that all begins anew; there is one nexus for an initiator."""
    unit = ScsiTarget(MemoryBackend(512))
    nexus = unit.connect("a", attention=Reason.POWER_ON_OR_RESET)
    assert nexus.hindered
    with pytest.raises(ValueError, match="connected already"):
        unit.connect("a")
    nexus.close()
    nexus.close()
    assert not unit.connect("a").hindered


def test_another_size() -> None:
    """Counts at once, and everyone is told."""
    one, other = two()
    backend = one.unit.backend
    assert isinstance(backend, MemoryBackend)
    backend.resize(2 * len(PATTERN))
    one.unit.resized()
    for each in (one, other):
        assert_sense(each.sense(UNIT_READY), Reason.CAPACITY_CHANGED)
        assert each.good(cdb(0x25), 8)[:4] == (2 * BLOCKS - 1).to_bytes(4, "big")
        assert each.good(read_cdb(2 * BLOCKS - 1, 1), 512) == bytes(512)


# --- task management


def under_way(count: int) -> tuple[SlowBackend, Initiator, Initiator]:
    """Two initiators with so many reads at the backend each, with tags."""
    slow = SlowBackend(PATTERN)
    unit = ScsiTarget(slow)
    one, other = Initiator(unit, "one"), Initiator(unit, "two")
    for number in range(count):
        for each in (one, other):
            assert each.run(read_cdb(number, 1), 512, tag=TAGS[number])[0] is None
    return slow, one, other


TAGS = [["tag", number] for number in range(8)]
"""Known by identity: what front ends use need not be hashable, nor unlike others of its kind."""
GOOD, ABORTED = ScsiStatus.GOOD, ScsiStatus.TASK_ABORTED


def test_abort_one() -> None:
    """It ends as aborted when the backend lets go of its buffer, no sooner; the others end well."""
    slow, one, other = under_way(3)
    one.nexus.abort(TAGS[1])
    assert not one.late
    slow.finish()
    assert [late.status for late in one.late] == [GOOD, ABORTED, GOOD]
    assert [late.status for late in other.late] == [GOOD] * 3
    one.late.clear()
    assert one.run(read_cdb(0, 1), 512, tag=TAGS[1])[0] is None
    slow.finish()
    assert one.late[-1].status == GOOD, "a tag may be used again"
    one.nexus.abort(TAGS[0])
    one.late.clear()
    assert one.run(read_cdb(0, 1), 512, tag=TAGS[0])[0] is None
    slow.finish()
    assert one.late[-1].status == GOOD, "what was not under way was not aborted"


def test_abort_all_of_one_initiator() -> None:
    """ABORT TASK SET; what comes after it is not meant."""
    slow, one, other = under_way(2)
    one.nexus.abort_all()
    one.run(read_cdb(0, 1), 512)
    assert (one.nexus.under_way, one.unit.under_way) == (3, 5)
    slow.finish()
    assert [late.status for late in one.late] == [ABORTED, ABORTED, GOOD]
    assert [late.status for late in other.late] == [GOOD, GOOD]
    assert one.unit.under_way == 0


def test_a_reset() -> None:
    """Ends what all have under way, restores settings, and is told to everyone instead of older news."""
    slow, one, other = under_way(1)
    one.good(cdb(0x15, 0x10, 0, 0, 24), data=bytes(4) + bytes((8, 18)) + bytes(18))
    one.good(cdb(0x1E, 0, 0, 0, 1))
    one.good(cdb(0x1B, 0, 0, 0, 4))
    assert one.unit.write_through
    one.unit.reset(Reason.BUS_RESET)
    slow.finish()
    assert [each.late[0].status for each in (one, other)] == [ABORTED, ABORTED]
    assert one.nexus.attentions == other.nexus.attentions == (Reason.BUS_RESET,)
    assert not one.unit.write_through
    assert not one.unit.stopped
    assert not one.unit.preventing
    one.sense(UNIT_READY)
    one.good(UNIT_READY)


def test_several_steps_end_early_when_aborted() -> None:
    """A VERIFY of much reads no more than the piece that is under way."""
    slow = SlowBackend(bytes(4 << 20))
    one = Initiator(ScsiTarget(slow))
    assert one.run(words("8F00 0000000000000000 00002000"))[0] is None
    slow.finish()
    one.nexus.abort_all()
    slow.finish()
    assert not slow.jobs
    assert [late.status for late in one.late] == [ABORTED]
    assert slow.log == ["read", "read"]


def test_an_initiator_that_is_gone() -> None:
    """What it has under way still ends, as aborted, for its front end to drop."""
    slow, one, other = under_way(1)
    one.nexus.close()
    slow.finish()
    assert one.late[0].status == ABORTED
    assert other.late[0].status == GOOD
    assert list(one.unit.nexuses) == ["two"]


def test_who_comes_when_nobody_is_there() -> None:
    """A guest that restarts finds the disk as after power on: started, and with the settings of the first day."""
    one, other = two()
    one.good(cdb(0x15, 0x10, 0, 0, 24), data=bytes(4) + bytes((8, 18)) + bytes(18))
    one.good(cdb(0x5F, 6, *bytes(6), 24), data=bytes(15) + b"\x05" + bytes(8))
    one.good(cdb(0x1B, 0, 0, 0, 4))
    one.nexus.close()
    again = Initiator(one.unit, "one")
    assert_sense(again.sense(UNIT_READY), Reason.STOPPED)
    again.nexus.close()
    other.nexus.close()
    last = Initiator(one.unit, "one")
    last.good(UNIT_READY)
    assert not one.unit.write_through
    assert one.unit.reservations.keys == {"one": 5}


# --- start and stop


def test_stopping() -> None:
    """Flushes; then the medium is out of reach for everyone, and what tells of the unit is not, until it starts."""
    one, other = two()
    one.good(cdb(0x1B, 0, 0, 0, 0))
    assert one.unit.backend.statistics().flushes == 1
    for command in (UNIT_READY, read_cdb(0, 1), cdb(0x2F), cdb(0x35), cdb(0x9E, 0x12)):
        assert_sense(other.sense(command, 512), Reason.STOPPED)
    for command in (inquiry_cdb(36), cdb(0x25), cdb(0x1A, 0, 8, 0, 64), cdb(0x5E)):
        other.good(command, 64)
    assert_sense(decode_sense(other.good(cdb(0x03, 0, 0, 0, 18), 18)), Reason.STOPPED)
    other.good(cdb(0x1B, 0, 0, 0, 1))
    one.good(read_cdb(0, 1), 512)
    one.good(cdb(0x1B, 1, 0, 0, 4))
    assert one.unit.backend.statistics().flushes == 1, "NO_FLUSH"


@pytest.mark.parametrize("flags", [0x02, 0x03, 0x10, 0x30, 0xB1])
def test_there_is_nothing_to_eject_and_no_power_to_save(flags: int) -> None:
    """LOEJ and power conditions are refused."""
    disk = initiator()
    assert disk.sense(cdb(0x1B, 0, 0, 0, flags)).field == 4
    assert not disk.unit.stopped


def test_a_read_only_disk_stops_without_a_flush() -> None:
    """There is nothing to flush."""
    disk = initiator(read_only=True)
    disk.good(cdb(0x1B))
    assert disk.unit.backend.statistics().flushes == 0
    assert disk.unit.stopped
