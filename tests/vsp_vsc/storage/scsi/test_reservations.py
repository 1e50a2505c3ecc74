"""Reservations: the standards' table of what they keep out, in full; each service action; sequences of them."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.doubles.scsi import PATTERN, Initiator, assert_sense, cdb, words
from tests.doubles.storage import SlowBackend
from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.scsi.answer import Conflict, Refused
from vsp_vsc.storage.scsi.cdb import ReserveOut, ScsiStatus, read_cdb, write_cdb
from vsp_vsc.storage.scsi.commands import Command
from vsp_vsc.storage.scsi.reservations import MAX_REGISTRATIONS, Kind, Reservations
from vsp_vsc.storage.scsi.sense import Reason
from vsp_vsc.storage.scsi.target import ScsiTarget

KEY, OTHER, THIRD = 0x1111, 0x2222, 0x3333
# SPC-4 table 63 and SBC-3 table 13, by hand, and SPC-2 tables 11 and B.1 in the first column. The columns: another
# initiator has the unit by RESERVE; has WRITE EXCLUSIVE, EXCLUSIVE ACCESS; we are registered and the type is for
# registrants or all; we are not, and the type is of WRITE EXCLUSIVE, of EXCLUSIVE ACCESS. A allowed, C conflict.
TABLE = """
00 TEST UNIT READY                             C A A A A A
03 REQUEST SENSE                               A A A A A A
08 READ(6)                                     C A C A A C
0A WRITE(6)                                    C C C A C C
12 INQUIRY                                     A A A A A A
15 MODE SELECT(6)                              C C C A C C
1A MODE SENSE(6)                               C A C A A C
1B00000000 STOP                                C C C A C C
1B00000001 START                               A A A A A A
1B00000010 ACTIVE                              C C C A C C
1D04 SEND DIAGNOSTIC                           C C C A C C
1E00000000 ALLOW                               A A A A A A
1E00000001 PREVENT                             C C C A C C
25 READ CAPACITY(10)                           A A A A A A
28 READ(10)                                    C A C A A C
2A WRITE(10)                                   C C C A C C
2F VERIFY(10)                                  C A C A A C
35 SYNCHRONIZE CACHE(10)                       C C C A C C
41 WRITE SAME(10)                              C C C A C C
42 UNMAP                                       C C C A C C
4D LOG SENSE                                   A A A A A A
55 MODE SELECT(10)                             C C C A C C
5A MODE SENSE(10)                              C A C A A C
5E00 READ KEYS                                 C A A A A A
5E01 READ RESERVATION                          C A A A A A
5E02 REPORT CAPABILITIES                       C A A A A A
5E03 READ FULL STATUS                          C A A A A A
88 READ(16)                                    C A C A A C
89 COMPARE AND WRITE                           C C C A C C
8A WRITE(16)                                   C C C A C C
8F VERIFY(16)                                  C A C A A C
91 SYNCHRONIZE CACHE(16)                       C C C A C C
93 WRITE SAME(16)                              C C C A C C
9E10 READ CAPACITY(16)                         A A A A A A
9E12 GET LBA STATUS                            C A C A A C
A0 REPORT LUNS                                 A A A A A A
A30C REPORT SUPPORTED OPERATION CODES          C A C A A C
A30D REPORT SUPPORTED TASK MANAGEMENT          C A C A A C
A8 READ(12)                                    C A C A A C
AA WRITE(12)                                   C C C A C C
AF VERIFY(12)                                  C A C A A C
"""
LINES = [line.split() for line in TABLE.strip().splitlines()]
BY_KEY = {0x5F, 0x16, 0x17, 0x56, 0x57}
"""PERSISTENT RESERVE OUT, RESERVE and RELEASE, which tests further down are about."""


def out(action: int, key: int = 0, new: int = 0, kind: int = 0, flags: int = 0) -> tuple[bytes, int, bytes]:
    """PERSISTENT RESERVE OUT, with its parameter list, as arguments of `Initiator.run`."""
    command = cdb(0x5F, action, kind, 0, 0, 0, 0, 0, 24)
    return command, 0, key.to_bytes(8, "big") + new.to_bytes(8, "big") + bytes((0, 0, 0, 0, flags, 0, 0, 0))


def register(one: Initiator, key: int) -> None:
    one.good(*out(ReserveOut.REGISTER_AND_IGNORE, 0, key))


def three() -> tuple[Initiator, Initiator, Initiator]:
    unit = ScsiTarget(MemoryBackend(PATTERN))
    return Initiator(unit, "one"), Initiator(unit, "two"), Initiator(unit, "three")


def conflict(one: Initiator, command: bytes) -> bool:
    """Whether a command is in conflict; before that it need not make sense."""
    return one.conflicts(command, 512)


# --- the table


def test_every_command_has_a_line() -> None:
    """But for those that look at keys themselves."""
    found = [ScsiTarget.commands.find(words(line[0])) for line in LINES]
    assert {row for row in ScsiTarget.commands.rows if row.opcode not in BY_KEY} == set(found)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("registered", [False, True], ids=["stranger", "registrant"])
def test_what_a_persistent_reservation_keeps_out(kind: Kind, registered: bool) -> None:
    """Exactly what the standards say, for each command, type, and standing; the holder may do all."""
    for line in LINES:
        print(*line[1:-6])  # shown where it fails
        keeps_out(line, kind, registered)


def keeps_out(line: list[str], kind: Kind, registered: bool) -> None:
    one, two, _ = three()
    register(one, KEY)
    if registered:
        register(two, OTHER)
    one.good(*out(ReserveOut.RESERVE, KEY, kind=kind))
    if kind in (Kind.WRITE_EXCLUSIVE, Kind.EXCLUSIVE_ACCESS):
        column = 1 if kind is Kind.WRITE_EXCLUSIVE else 2
    elif registered:
        column = 3
    else:
        column = 4 if kind in (Kind.WRITE_EXCLUSIVE_REGISTRANTS, Kind.WRITE_EXCLUSIVE_ALL) else 5
    command = words(line[0])
    assert conflict(two, command) is (line[-6:][column] == "C")
    assert not conflict(one, command)
    assert two.unit.statistics().conflicts == (line[-6:][column] == "C")


@pytest.mark.parametrize("reserve", [0x16, 0x56])
def test_what_an_old_reservation_keeps_out(reserve: int) -> None:
    """RESERVE: everybody else, from nearly all."""
    for line in LINES:
        one, two, _ = three()
        one.good(cdb(reserve))
        command = words(line[0])
        assert conflict(two, command) is (line[-6] == "C"), line
        assert not conflict(one, command), line


def test_registrations_alone_keep_nobody_out() -> None:
    """Nor does nothing at all."""
    for line in LINES:
        one, two, _ = three()
        assert not conflict(two, words(line[0])), line
        register(one, KEY)
        assert not conflict(two, words(line[0])), line


@pytest.mark.parametrize("kind", [None, *Kind])
@pytest.mark.parametrize("action", ReserveOut)
def test_persistent_reserve_out_of_a_stranger(kind: Kind | None, action: ReserveOut) -> None:
    """SPC-4 table 65: who is not registered may register, and nothing else."""
    one, two, _ = three()
    register(one, KEY)
    if kind is not None:
        one.good(*out(ReserveOut.RESERVE, KEY, kind=kind))
    registers = action in (ReserveOut.REGISTER, ReserveOut.REGISTER_AND_IGNORE)
    assert (
        two.conflicts(*out(action, 0, KEY, kind=0 if registers or action is ReserveOut.CLEAR else 5)) is not registers
    )


# --- service actions


def test_registering() -> None:
    """With the key that one has, 0 for none; 0 ends it; each success counts as a generation."""
    one, _, _ = three()
    held = one.unit.reservations
    assert one.conflicts(*out(0, 5, KEY))
    one.good(*out(0, 0, 0))
    assert held.generation == 0
    one.good(*out(0, 0, KEY))
    assert one.conflicts(*out(0, 0, OTHER))
    one.good(*out(0, KEY, OTHER))
    assert held.keys == {"one": OTHER}
    one.good(*out(6, 999, KEY))
    one.good(*out(0, KEY, 0))
    one.good(*out(6, 999, 0, kind=0x1F))
    assert held.keys == {}
    assert held.generation == 4


def test_parameters_that_are_refused() -> None:
    """Another length, keys for others or for other ports, and keeping all that through a power loss."""
    one, _, _ = three()
    for flag, bit in ((0x08, 3), (0x04, 2), (0x01, 0)):
        command, _, data = out(0, 0, KEY, flags=flag)
        result = one.result(command, 0, data)
        assert result.sense[12:14] == b"\x26\x00"
        assert result.sense[15:18] == bytes((0x88 | bit, 0, 20))
    assert_sense(one.sense(cdb(0x5F, 0, 0, 0, 0, 0, 0, 0, 23), data=bytes(24)), Reason.PARAMETER_LIST_LENGTH_ERROR)
    assert one.sense(cdb(0x5F, 0, 0, 0, 0, 0, 0, 0, 24), data=bytes(23)).field == 5
    register(one, KEY)
    for kind in (0x00, 0x02, 0x04, 0x09, 0x0F, 0x11, 0x25):
        assert one.sense(*out(1, KEY, kind=kind)).field == 2
    assert one.unit.reservations.kind is None


def test_reserving() -> None:
    """Once more the same is fine; another type or another initiator is a conflict; a wrong key always."""
    one, two, _ = three()
    register(one, KEY)
    register(two, OTHER)
    assert one.conflicts(*out(1, OTHER, kind=1))
    one.good(*out(1, KEY, kind=1))
    one.good(*out(1, KEY, kind=1))
    assert one.conflicts(*out(1, KEY, kind=3))
    assert two.conflicts(*out(1, OTHER, kind=1))
    assert one.good(cdb(0x5E, 1, 0, 0, 0, 0, 0, 1, 0), 256) == bytes((0, 0, 0, 2, 0, 0, 0, 16)) + KEY.to_bytes(
        8, "big"
    ) + bytes((0, 0, 0, 0, 0, 1, 0, 0))


@pytest.mark.parametrize("kind", [Kind.WRITE_EXCLUSIVE_ALL, Kind.EXCLUSIVE_ACCESS_ALL])
def test_a_reservation_of_all_registrants(kind: Kind) -> None:
    """Is held by each of them, told with key 0, and ends with the last."""
    one, two, three_ = three()
    register(one, KEY)
    register(two, OTHER)
    one.good(*out(1, KEY, kind=kind))
    two.good(*out(1, OTHER, kind=kind))
    assert one.good(cdb(0x5E, 1, 0, 0, 0, 0, 0, 1, 0), 256)[8:16] == bytes(8)
    one.good(*out(0, KEY, 0))
    assert three_.conflicts(write_cdb(0, 1), data=bytes(512))
    two.good(*out(0, OTHER, 0))
    assert not three_.conflicts(write_cdb(0, 1), data=bytes(512))
    assert one.unit.reservations.kind is None


@pytest.mark.parametrize("kind", Kind)
def test_releasing(kind: Kind) -> None:
    """By the holder, with its type; registrants of a reservation that was for them are told. By others: nothing."""
    one, two, _ = three()
    register(one, KEY)
    register(two, OTHER)
    one.good(*out(2, KEY, kind=kind))
    one.good(*out(1, KEY, kind=kind))
    wrong = next(other for other in Kind if other is not kind)
    for unlike in (wrong, 0x0F, 0x10 | kind):
        assert_sense(one.sense(*out(2, KEY, kind=unlike)), Reason.INVALID_RELEASE)
    if not kind.held_by_all:
        two.good(*out(2, OTHER, kind=kind))
        assert one.unit.reservations.kind is kind
    one.good(*out(2, KEY, kind=kind))
    assert one.unit.reservations.kind is None
    assert two.nexus.attentions == ((Reason.RESERVATIONS_RELEASED,) if kind.for_registrants else ())
    assert one.nexus.attentions == ()


@pytest.mark.parametrize("kind", Kind)
def test_a_holder_that_unregisters(kind: Kind) -> None:
    """Releases by that what it held alone; registrants are told if it was for them."""
    one, two, _ = three()
    register(one, KEY)
    register(two, OTHER)
    one.good(*out(1, KEY, kind=kind))
    one.good(*out(0, KEY, 0))
    assert one.unit.reservations.kind is (kind if kind.held_by_all else None)
    told = kind.for_registrants and not kind.held_by_all
    assert two.nexus.attentions == ((Reason.RESERVATIONS_RELEASED,) if told else ())


def test_clearing() -> None:
    """Nothing is left, and who had a key is told."""
    one, two, stranger = three()
    register(one, KEY)
    register(two, OTHER)
    two.good(*out(1, OTHER, kind=3))
    one.good(*out(3, KEY))
    held = one.unit.reservations
    assert (held.kind, held.keys, held.generation) == (None, {}, 3)
    assert two.nexus.attentions == (Reason.RESERVATIONS_PREEMPTED,)
    assert one.nexus.attentions == stranger.nexus.attentions == ()


def test_preempting_the_holder() -> None:
    """Takes the reservation over, with another type if wanted; the old holder's key is gone and it is told so."""
    one, two, third = three()
    for each, key in ((one, KEY), (two, OTHER), (third, THIRD)):
        register(each, key)
    one.good(*out(1, KEY, kind=5))
    two.good(*out(4, OTHER, KEY, kind=3))
    held = one.unit.reservations
    assert held.kind is Kind.EXCLUSIVE_ACCESS
    assert held.keys == {"two": OTHER, "three": THIRD}
    assert held.holds("two")
    assert one.nexus.attentions == (Reason.REGISTRATIONS_PREEMPTED,)
    assert third.nexus.attentions == (Reason.RESERVATIONS_RELEASED,), "the type has changed"
    assert two.nexus.attentions == ()


def test_preempting_oneself_changes_the_type() -> None:
    """Without losing the registration."""
    one, two, _ = three()
    register(one, KEY)
    register(two, KEY)
    one.good(*out(1, KEY, kind=1))
    one.good(*out(4, KEY, KEY, kind=3))
    assert one.unit.reservations.keys == {"one": KEY}
    assert one.unit.reservations.kind is Kind.EXCLUSIVE_ACCESS
    assert two.nexus.attentions == (Reason.REGISTRATIONS_PREEMPTED,)


def test_preempting_others() -> None:
    """Takes registrations only; a key that nobody has is a conflict, key 0 makes no sense."""
    one, two, third = three()
    for each, key in ((one, KEY), (two, OTHER), (third, THIRD)):
        register(each, key)
    one.good(*out(1, KEY, kind=5))
    third.good(*out(4, THIRD, OTHER, kind=1))
    assert one.unit.reservations.keys == {"one": KEY, "three": THIRD}
    assert one.unit.reservations.kind is Kind.WRITE_EXCLUSIVE_REGISTRANTS
    assert two.nexus.attentions == (Reason.REGISTRATIONS_PREEMPTED,)
    assert third.conflicts(*out(4, THIRD, 0x9999, kind=1))
    assert_sense(third.sense(*out(4, THIRD, 0, kind=1)), Reason.INVALID_FIELD_IN_PARAMETER_LIST)
    assert third.sense(*out(4, THIRD, KEY, kind=2)).field == 2


def test_preempting_all_registrants() -> None:
    """With key 0, of a reservation that they all hold: they are gone, and it is ours."""
    one, two, third = three()
    for each, key in ((one, KEY), (two, OTHER), (third, THIRD)):
        register(each, key)
    one.good(*out(1, KEY, kind=7))
    two.good(*out(4, OTHER, THIRD, kind=1))
    assert one.unit.reservations.kind is Kind.WRITE_EXCLUSIVE_ALL
    two.good(*out(4, OTHER, 0, kind=1))
    assert one.unit.reservations.keys == {"two": OTHER}
    assert one.unit.reservations.kind is Kind.WRITE_EXCLUSIVE
    assert one.nexus.attentions == third.nexus.attentions == (Reason.REGISTRATIONS_PREEMPTED,)


def test_preempt_and_abort() -> None:
    """What the preempted have under way ends with TASK ABORTED; nobody else's does. PREEMPT aborts nothing."""
    for action, status in ((4, ScsiStatus.GOOD), (5, ScsiStatus.TASK_ABORTED)):
        slow = SlowBackend(PATTERN)
        unit = ScsiTarget(slow)
        one, two, third = Initiator(unit, "one"), Initiator(unit, "two"), Initiator(unit, "three")
        register(one, KEY)
        register(two, OTHER)
        for each in (one, two, third):
            assert each.run(read_cdb(0, 1), 512)[0] is None
        two.good(*out(action, OTHER, KEY, kind=1))
        slow.finish()
        assert [each.late[0].status for each in (one, two, third)] == [status, ScsiStatus.GOOD, ScsiStatus.GOOD]


def test_listing() -> None:
    """Keys in the order of registration; full status with names; what of it fits."""
    one, two, _ = three()
    register(one, KEY)
    register(two, OTHER)
    two.good(*out(1, OTHER, kind=6))
    keys = KEY.to_bytes(8, "big") + OTHER.to_bytes(8, "big")
    assert one.good(cdb(0x5E, 0, 0, 0, 0, 0, 0, 1, 0), 256) == bytes((0, 0, 0, 2, 0, 0, 0, 16)) + keys
    assert one.good(cdb(0x5E, 0, 0, 0, 0, 0, 0, 0, 8), 256) == bytes((0, 0, 0, 2, 0, 0, 0, 16))
    status = one.good(cdb(0x5E, 3, 0, 0, 0, 0, 0, 1, 0), 256)
    assert status[:8] == bytes((0, 0, 0, 2, 0, 0, 0, 96))
    for at, each, flags, kind in ((8, one, 0, 0), (56, two, 1, 6)):
        entry = status[at : at + 48]
        assert entry[:8] == each.unit.reservations.keys[each.nexus.initiator].to_bytes(8, "big")
        assert entry[12:14] == bytes((flags, kind))
        assert entry[18:24] == bytes((0, 1, 0, 0, 0, 24))
        assert entry[24:] == each.nexus.transport_id
    assert one.good(cdb(0x5E, 2, 0, 0, 0, 0, 0, 0, 8), 8) == bytes((0, 8, 0x10, 0x80, 0xEA, 1, 0, 0))


def test_room_for_registrations() -> None:
    """Is bounded; who has a key may still change it."""
    held = Reservations()
    for number in range(MAX_REGISTRATIONS):
        held.register(str(number), b"", 0, 1, ignore=False)
    with pytest.raises(Refused):
        held.register("one more", b"", 0, 1, ignore=False)
    held.register("0", b"", 1, 2, ignore=False)


# --- what lasts


def test_registrations_outlive_nexus_and_reset() -> None:
    """Not so what RESERVE began."""
    one, two, _ = three()
    register(one, KEY)
    one.good(*out(1, KEY, kind=3))
    one.unit.reset()
    one.nexus.close()
    assert two.result(read_cdb(0, 1), 512).sense[2:3] == b"\x06", "the reset is told first"
    assert two.conflicts(read_cdb(0, 1), 512)
    again = Initiator(one.unit, "one")
    again.good(read_cdb(0, 1), 512)
    again.good(*out(3, KEY))
    two.nexus.next_attention()
    for end in (again.unit.reset, again.nexus.close):
        again.good(cdb(0x16))
        assert two.conflicts(read_cdb(0, 1), 512)
        end()
        while two.nexus.next_attention() or again.nexus.next_attention():
            pass
        two.good(read_cdb(0, 1), 512)


def test_reserve_and_release() -> None:
    """By the same initiator as often as it likes; RELEASE by another does nothing; both sizes are one."""
    one, two, _ = three()
    one.good(cdb(0x16))
    one.good(cdb(0x56))
    assert two.conflicts(cdb(0x16))
    two.good(cdb(0x17))
    assert two.conflicts(cdb(0x56))
    assert two.conflicts(*out(0, 0, OTHER)), "no persistent reservations meanwhile"
    one.good(cdb(0x57))
    two.good(cdb(0x56))


def test_reserve_where_there_are_registrations() -> None:
    """CRH: nothing for who is registered, a conflict for others."""
    one, two, third = three()
    register(one, KEY)
    register(two, OTHER)
    one.good(cdb(0x16))
    one.good(cdb(0x17))
    assert one.unit.reservations.reserved_by is None
    assert third.conflicts(cdb(0x16))
    assert third.conflicts(cdb(0x17))
    one.good(*out(1, KEY, kind=1))
    one.good(cdb(0x16))
    assert two.conflicts(cdb(0x16))


# --- any sequence

NAMES, KEYS, KINDS = ("a", "b", "c", "d"), (0, 1, 2, 3), st.sampled_from([None, *Kind])


class Sequences(RuleBasedStateMachine):
    """Service actions in any order, against what SPC-4 says of their effects, told in another way than by the code."""

    def __init__(self) -> None:
        super().__init__()
        self.held = Reservations()

    def state(self) -> tuple[object, ...]:
        held = self.held
        return dict(held.keys), held.kind, [held.holds(name) for name in NAMES], held.generation

    def holders(self) -> set[str]:
        return {name for name in NAMES if self.held.holds(name)}

    @rule(who=st.sampled_from(NAMES), key=st.sampled_from(KEYS), new=st.sampled_from(KEYS), ignore=st.booleans())
    def register(self, who: str, key: int, new: int, ignore: bool) -> None:
        before, generation, holders, kind = dict(self.held.keys), self.held.generation, self.holders(), self.held.kind
        allowed = ignore or before.get(who, 0) == key
        try:
            outcome = self.held.register(who, b"", key, new, ignore=ignore)
        except Conflict:
            assert not allowed
            assert self.held.keys == before
            return
        assert allowed
        expected = {name: has for name, has in before.items() if name != who} | ({who: new} if new else {})
        assert self.held.keys == expected
        assert self.held.generation == generation + (who in before or bool(new))
        if holders == {who} and not new:
            assert self.held.kind is None
            assert kind is not None
            registrants_only = kind.name.endswith(("REGISTRANTS", "ALL"))
            assert set(outcome.told) == (set(expected) if registrants_only else set())
        else:
            assert self.held.kind is kind
            assert not outcome.told

    @rule(who=st.sampled_from(NAMES), key=st.sampled_from(KEYS), kind=st.sampled_from(list(Kind)))
    def reserve(self, who: str, key: int, kind: Kind) -> None:
        before, holders = self.state(), self.holders()
        fine = key and self.held.keys.get(who) == key and (not holders or (who in holders and self.held.kind is kind))
        try:
            self.held.reserve(who, key, kind)
        except Conflict:
            assert not fine
            assert self.state() == before
            return
        assert fine
        assert self.held.kind is kind
        assert self.holders() == (set(self.held.keys) if kind.name.endswith("ALL") else {who})

    @rule(who=st.sampled_from(NAMES), key=st.sampled_from(KEYS), kind=KINDS)
    def release(self, who: str, key: int, kind: Kind | None) -> None:
        before, holders, held_kind = self.state(), self.holders(), self.held.kind
        try:
            self.held.release(who, key, kind)
        except Conflict:
            assert not key or self.held.keys.get(who) != key
        except Refused:
            assert who in holders
            assert kind is not held_kind
        else:
            if who in holders:
                assert self.held.kind is None
                return
        assert self.state() == before

    @precondition(lambda self: self.held.keys)
    @rule(who=st.sampled_from(NAMES), key=st.sampled_from(KEYS))
    def clear(self, who: str, key: int) -> None:
        before, registered = self.state(), set(self.held.keys)
        try:
            outcome = self.held.clear(who, key)
        except Conflict:
            assert self.state() == before
            return
        assert outcome.told == dict.fromkeys(registered - {who}, Reason.RESERVATIONS_PREEMPTED)
        assert not self.held.keys
        assert self.held.kind is None

    @rule(who=st.sampled_from(NAMES), key=st.sampled_from(KEYS), victim=st.sampled_from(KEYS), kind=KINDS)
    def preempt(self, who: str, key: int, victim: int, kind: Kind | None) -> None:
        before, registered, holders = self.state(), dict(self.held.keys), self.holders()
        all_hold = self.held.kind is not None and self.held.kind.name.endswith("ALL")
        theirs = (all_hold and not victim) or (not all_hold and any(registered[name] == victim for name in holders))
        try:
            outcome = self.held.preempt(who, key, victim, kind)
        except (Conflict, Refused):
            assert self.state() == before
            return
        assert registered[who] == key
        gone = {name for name, has in registered.items() if has == victim or (theirs and not victim)}
        if theirs:
            gone -= {who}
            assert self.held.kind is kind
            assert who in self.holders()
        elif holders - gone:
            assert self.holders() == holders - gone
        assert set(self.held.keys) == set(registered) - gone
        assert outcome.preempted == gone - {who}
        assert all(outcome.told[name] is Reason.REGISTRATIONS_PREEMPTED for name in gone - {who})

    @invariant()
    def holders_are_registered(self) -> None:
        """And have a key that is not 0; there is a holder exactly if there is a reservation."""
        assert self.holders() <= set(self.held.keys)
        assert bool(self.holders()) == (self.held.kind is not None)
        assert 0 not in self.held.keys.values()
        assert set(self.held.transport_ids) == set(self.held.keys)


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_rows_are_found_by_their_first_bytes() -> None:
    """The table above is about the rows it names."""
    for line in LINES:
        row = ScsiTarget.commands.find(words(line[0]))
        assert isinstance(row, Command)
        name = " ".join(line[1:-6])
        assert name in row.name or row.opcode in (0x1B, 0x1E, 0x5E, 0xA3)
