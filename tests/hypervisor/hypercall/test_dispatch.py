"""What the dispatcher promises for every call: the order of checks, one reading, output on success, continuation."""

from __future__ import annotations

import struct

import pytest

from hypervisor.hypercall import dispatch, layouts
from hypervisor.hypercall.abi import FAST, NESTED, PARTITION_ID_SELF, CallCode, ControlWord, control_word, result_value
from hypervisor.hypercall.table import BY_CODE, CALLS
from hypervisor.machine import GeneralProtection, InvalidOpcode, VpStopped
from hypervisor.memory import GuestMemory
from hypervisor.pages import PAGE_SIZE, Access
from hypervisor.partition import Partition
from hypervisor.privileges import Privilege
from hypervisor.status import HvStatus
from hypervisor.synic.messages import MessageHeader, MessageType
from tests.doubles.hypercaller import CHILD_INPUT, CHILD_OUTPUT, CHILD_PAGES, Machine

REGISTERS = layouts.VpInput(PARTITION_ID_SELF, 0).encode()
SUSPEND_NAME = bytes(4)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def raw(machine: Machine, control: int, input_gpa: int = 0, output_gpa: int = 0) -> HvStatus:
    """The status of a call by the root, whatever its words."""
    return HvStatus(machine.hypervisor.hypercall(machine.vp, control, input_gpa, output_gpa) & 0xFFFF)


# --- when hypercalls are legal


def test_no_hypercall_before_the_page_is_enabled(machine: Machine) -> None:
    """Without an enabled hypercall page the instruction is undefined."""
    machine.hypervisor.write_msr(machine.vp, 0x40000000, 0)
    for code in (FAST | 8, 0x5C, 0x48):
        with pytest.raises(InvalidOpcode):
            machine.hypervisor.hypercall(machine.vp, code)


def test_software_of_a_finalized_partition_is_stopped(machine: Machine) -> None:
    child = machine.child()
    vp = child.vps[0]
    machine.must(CallCode.FINALIZE_PARTITION, layouts.PartitionInput(child.id))
    with pytest.raises(VpStopped):
        machine.hypervisor.hypercall(vp, FAST | 8)
    with pytest.raises(VpStopped):
        machine.hypervisor.write_msr(vp, 0x40000000, 1)
    with pytest.raises(VpStopped):
        machine.hypervisor.port_in(vp, 0x3F8, 1)


# --- the control word


@pytest.mark.parametrize(
    ("control", "status"),
    [
        pytest.param(0xFFFF, HvStatus.INVALID_HYPERCALL_CODE, id="unknown code"),
        pytest.param(0x003F, HvStatus.INVALID_HYPERCALL_CODE, id="reserved code"),
        pytest.param(0x0000, HvStatus.INVALID_HYPERCALL_CODE, id="code 0"),
        pytest.param(0x0046 | 1 << 32, HvStatus.INVALID_HYPERCALL_INPUT, id="rep count on a simple call"),
        pytest.param(0x0050, HvStatus.INVALID_HYPERCALL_INPUT, id="no rep count on a rep call"),
        pytest.param(0x0050 | 2 << 32 | 2 << 48, HvStatus.INVALID_HYPERCALL_INPUT, id="start is count"),
        pytest.param(0x0050 | 2 << 32 | 3 << 48, HvStatus.INVALID_HYPERCALL_INPUT, id="start past count"),
        pytest.param(0x0046 | 1 << 48, HvStatus.INVALID_HYPERCALL_INPUT, id="start on a simple call"),
        pytest.param(0x0046 | 1 << 17, HvStatus.INVALID_HYPERCALL_INPUT, id="variable header"),
        pytest.param(0x0046 | NESTED, HvStatus.INVALID_HYPERCALL_INPUT, id="nested"),
        pytest.param(0xFFFF | 1 << 63, HvStatus.INVALID_HYPERCALL_INPUT, id="reserved bit before unknown code"),
        *[
            pytest.param(0x0046 | 1 << bit, HvStatus.INVALID_HYPERCALL_INPUT, id=f"reserved bit {bit}")
            for bit in (27, 28, 29, 30, 44, 45, 46, 47, 60, 61, 62, 63)
        ],
        pytest.param(0x005C | FAST, HvStatus.INVALID_HYPERCALL_INPUT, id="fast, input of 256 bytes"),
        pytest.param(0x0045 | FAST, HvStatus.INVALID_HYPERCALL_INPUT, id="fast, input of 24 bytes"),
        pytest.param(0x0046 | FAST, HvStatus.INVALID_HYPERCALL_INPUT, id="fast, but there is output"),
        pytest.param(0x0050 | FAST | 1 << 32, HvStatus.INVALID_HYPERCALL_INPUT, id="fast rep"),
    ],
)
def test_control_word_is_checked_first(machine: Machine, control: int, status: HvStatus) -> None:
    """Even with addresses that would fail every later check."""
    assert raw(machine, control, 0x1, 0x1) is status


def test_a_refused_call_is_counted_and_warned_of(machine: Machine) -> None:
    before = machine.root.counters["hypercalls"]
    raw(machine, 0xFFFF)
    assert machine.root.counters["hypercalls"] == before + 1
    assert machine.trace.warnings[1, "hypercall_refused"] == 1


@pytest.mark.parametrize("words", [dispatch.FAST_WORDS, dispatch.SLOW_WORDS], ids=["fast", "slow"])
def test_the_short_way_is_for_words_that_pass_every_check(words: dict[int, object]) -> None:
    """What it skips could only have said yes."""
    assert words
    for value, call in words.items():
        word = ControlWord.decode(value)
        assert BY_CODE[value & 0xFFFF] is call
        assert dispatch._check_word(word, BY_CODE[value & 0xFFFF]) is HvStatus.SUCCESS


# --- privilege, then addresses


@pytest.mark.parametrize("call", [call for call in CALLS if call.privilege], ids=lambda call: call.name)
def test_a_missing_privilege_is_told_before_addresses(machine: Machine, call: object) -> None:
    """A child that lacks the right learns that, and nothing of its addresses or of partitions."""
    assert isinstance(call, type(CALLS[0]))
    child = machine.child()
    control = control_word(call.code, count=1 if call.rep else 0)
    assert machine.hypervisor.hypercall(child.vps[0], control, 0x7, 0x7) & 0xFFFF == HvStatus.ACCESS_DENIED
    if call.fast:
        assert machine.hypervisor.hypercall(child.vps[0], control | FAST, 1, 0) & 0xFFFF == HvStatus.ACCESS_DENIED


@pytest.mark.parametrize(
    ("gpa", "status"),
    [
        (CHILD_INPUT + 4, HvStatus.INVALID_ALIGNMENT),
        (CHILD_INPUT + 1, HvStatus.INVALID_ALIGNMENT),
        (CHILD_INPUT + PAGE_SIZE - 256 + 8, HvStatus.INVALID_ALIGNMENT),
        (CHILD_INPUT + PAGE_SIZE - 256, HvStatus.INVALID_CONNECTION_ID),
        (CHILD_PAGES * PAGE_SIZE, HvStatus.INVALID_ALIGNMENT),
        ((1 << 64) - 256, HvStatus.INVALID_ALIGNMENT),
        (CHILD_PAGES * PAGE_SIZE - 256, HvStatus.INVALID_CONNECTION_ID),
    ],
)
def test_input_lies_aligned_in_one_page_of_the_gpa_space(machine: Machine, gpa: int, status: HvStatus) -> None:
    """A post has 256 bytes of input: the last place in a page, and in memory, is legal, eight bytes further is not."""
    child = machine.child(Privilege.POST_MESSAGES)
    assert machine.hypervisor.hypercall(child.vps[0], 0x5C, gpa) & 0xFFFF == status


@pytest.mark.parametrize("gpa", [CHILD_OUTPUT + 4, CHILD_OUTPUT + PAGE_SIZE - 4, CHILD_PAGES * PAGE_SIZE])
def test_output_lies_aligned_in_one_page_of_the_gpa_space(machine: Machine, gpa: int) -> None:
    child = machine.child(Privilege.ACCESS_PARTITION_ID)
    assert machine.hypervisor.hypercall(child.vps[0], 0x46, 0, gpa) & 0xFFFF == HvStatus.INVALID_ALIGNMENT


def test_an_output_list_does_not_cross_a_page(machine: Machine) -> None:
    """Sixteen bytes of output fit sixteen bytes before the end of a page, not eight."""
    child = machine.child()
    child.memory.write(CHILD_INPUT, REGISTERS + SUSPEND_NAME)
    control = control_word(0x50, count=1)
    end = CHILD_OUTPUT + PAGE_SIZE
    assert machine.hypervisor.hypercall(child.vps[0], control, CHILD_INPUT, end - 16) & 0xFFFF == 0
    assert machine.hypervisor.hypercall(child.vps[0], control, CHILD_INPUT, end - 8) == HvStatus.INVALID_ALIGNMENT


def test_addresses_of_absent_blocks_are_ignored(machine: Machine) -> None:
    """GetPartitionId has no input, a post no output."""
    child = machine.child(Privilege.ACCESS_PARTITION_ID | Privilege.POST_MESSAGES)
    vp = child.vps[0]
    assert machine.hypervisor.hypercall(vp, 0x46, 0x3, CHILD_OUTPUT) == 0
    assert machine.hypervisor.hypercall(vp, 0x5C, CHILD_INPUT, 0x3) & 0xFFFF == HvStatus.INVALID_CONNECTION_ID


@pytest.mark.parametrize(("distance", "legal"), [(0, False), (8, False), (-8, False), (24, True), (-16, True)])
def test_input_and_output_do_not_overlap(machine: Machine, distance: int, legal: bool) -> None:
    """Input of one register name is 20 bytes, output 16."""
    child = machine.child()
    child.memory.write(CHILD_INPUT + 64, REGISTERS + SUSPEND_NAME)
    value = machine.hypervisor.hypercall(
        child.vps[0], control_word(0x50, count=1), CHILD_INPUT + 64, CHILD_INPUT + 64 + distance
    )
    assert value == (result_value(HvStatus.SUCCESS, 1) if legal else HvStatus.INVALID_ALIGNMENT)


def test_output_may_begin_where_input_ends(machine: Machine) -> None:
    """Two names make 24 bytes of input."""
    child = machine.child()
    child.memory.write(CHILD_INPUT, REGISTERS + 2 * SUSPEND_NAME)
    value = machine.hypervisor.hypercall(child.vps[0], control_word(0x50, count=2), CHILD_INPUT, CHILD_INPUT + 24)
    assert value == result_value(HvStatus.SUCCESS, 2)


# --- memory that is not there


def intercept_of(machine: Machine) -> tuple[MessageHeader, bytes]:
    """What the root found in its slot for intercepts."""
    slot = bytes(machine.vp.synic.message_page.view[:256])
    header = MessageHeader.decode(slot)
    return header, slot[16 : 16 + header.payload_size]


@pytest.mark.parametrize(
    ("hole", "rights", "kind", "access"),
    [
        ("input", None, MessageType.UNMAPPED_GPA, 0),
        ("input", Access.NONE, MessageType.GPA_INTERCEPT, 0),
        ("output", None, MessageType.UNMAPPED_GPA, 1),
        ("output", Access.READ, MessageType.GPA_INTERCEPT, 1),
        ("output", Access.READ | Access.EXECUTE, MessageType.GPA_INTERCEPT, 1),
    ],
)
def test_parameters_in_missing_memory_stop_the_vp(
    machine: Machine, hole: str, rights: Access | None, kind: MessageType, access: int
) -> None:
    """The parent is told which address failed and how; the call has not happened."""
    machine.listen()
    child = machine.child()
    vp = child.vps[0]
    vp.set_explicit_suspend(False)
    gpa = CHILD_INPUT if hole == "input" else CHILD_OUTPUT
    child.memory.write(CHILD_INPUT, REGISTERS + SUSPEND_NAME)
    source = child.memory.source(gpa // PAGE_SIZE)
    assert source is not None
    child.memory.unmap(gpa // PAGE_SIZE, 1)
    if rights is not None:
        child.memory.map_block(gpa // PAGE_SIZE, source[0], source[1], 1, rights)
    with pytest.raises(VpStopped):
        machine.hypervisor.hypercall(vp, control_word(0x50, count=1), CHILD_INPUT, CHILD_OUTPUT)
    assert vp.intercept_suspend
    header, payload = intercept_of(machine)
    assert (header.message_type, header.origination_id, header.payload_size) == (kind, child.id, 80)
    assert struct.unpack_from("<IBB", payload) == (0, 0, access)
    assert struct.unpack_from("<Q", payload, 40 + 16) == (gpa,)


def test_output_on_the_hypercall_page_stops_the_vp(machine: Machine) -> None:
    """That page may be read and executed, whatever lies beneath."""
    child = machine.child(Privilege.ACCESS_PARTITION_ID)
    with pytest.raises(VpStopped):
        machine.hypervisor.hypercall(child.vps[0], 0x46, 0, 1 * PAGE_SIZE + 64)


def test_the_root_has_no_parent_to_ask(machine: Machine) -> None:
    """Its own mistake faults in its own software."""
    machine.hypervisor.add_root_block(PAGE_SIZE, "above")
    machine.root.memory.unmap(machine.low + 2, 1)
    with pytest.raises(GeneralProtection):
        machine.hypervisor.hypercall(machine.vp, 0x46, 0, machine.output)


# --- partitions that a caller may name


def test_who_may_be_no_parent_learns_nothing_of_partitions(machine: Machine) -> None:
    """Root, sibling, unknown and invalid IDs look the same to a child that may name itself."""
    child, sibling = machine.child(), machine.child()
    for named in (1, sibling.id, 999, 0):
        request = layouts.VpInput(named, 0)
        answer = machine.call(0x50, request, count=1, elements=SUSPEND_NAME, caller=child)
        assert answer.status is HvStatus.ACCESS_DENIED
    for named in (child.id, PARTITION_ID_SELF):
        answer = machine.call(0x50, layouts.VpInput(named, 0), count=1, elements=SUSPEND_NAME, caller=child)
        assert (answer.status, answer.completed) == (HvStatus.SUCCESS, 1)


def test_a_parent_gets_invalid_partition_id(machine: Machine) -> None:
    """ID 0, an ID never given and an ID of the past are all unknown."""
    gone = machine.create()
    machine.must(CallCode.DELETE_PARTITION, layouts.PartitionInput(gone.id))
    for named in (0, 999, gone.id):
        answer = machine.call(CallCode.INITIALIZE_PARTITION, layouts.PartitionInput(named), fast=True)
        assert answer.status is HvStatus.INVALID_PARTITION_ID


def test_relationship_before_state() -> None:
    """A grandchild is not the root's child, whatever state it is in."""
    machine = Machine(max_depth=3)
    child = machine.child(Privilege.CREATE_PARTITIONS)
    answer = machine.call(CallCode.CREATE_PARTITION, layouts.CreatePartitionInput(), caller=child)
    assert answer.status is HvStatus.SUCCESS
    grandchild = layouts.PartitionOutput.decode(answer.output).partition_id
    answer = machine.call(CallCode.CREATE_VP, layouts.CreateVpInput(grandchild, 0))
    assert answer.status is HvStatus.ACCESS_DENIED


def test_state_before_objects_and_values(machine: Machine) -> None:
    """An uninitialized partition refuses even a nonsensical VP and flags."""
    child = machine.create()
    answer = machine.call(CallCode.CREATE_VP, layouts.CreateVpInput(child.id, 0xFFFFFFFE, 0, 1))
    assert answer.status is HvStatus.INVALID_PARTITION_STATE


# --- one reading, output on success


class CountingMemory(GuestMemory):
    """Counts how often input is read."""

    reads = 0

    def read(self, gpa: int, length: int) -> bytes:
        self.reads += 1
        return super().read(gpa, length)


def test_input_is_read_once(machine: Machine) -> None:
    """A second look could see what was never checked."""
    child = machine.child(Privilege.POST_MESSAGES)
    counting = CountingMemory()
    for gpn, block, page, count, rights in child.memory.extents():
        counting.map_block(gpn, block, page, count, rights)
    child.memory = counting
    machine.hypervisor.hypercall(child.vps[0], 0x5C, CHILD_INPUT)
    machine.hypervisor.hypercall(child.vps[0], control_word(0x50, count=1), CHILD_INPUT, CHILD_OUTPUT)
    assert counting.reads == 2


def test_a_refused_simple_call_writes_nothing(machine: Machine) -> None:
    machine.root.memory.write(machine.output, b"\xa5" * 64)
    machine.root.memory.write(machine.input, layouts.GetPartitionPropertyInput(1, 0xBAD).encode())
    assert raw(machine, CallCode.GET_PARTITION_PROPERTY, machine.input, machine.output) is HvStatus.UNKNOWN_PROPERTY
    assert machine.root.memory.read(machine.output, 64) == b"\xa5" * 64


def test_a_failing_rep_call_writes_the_completed_elements(machine: Machine) -> None:
    """And says how many there are; what lies behind them stays as it was."""
    child = machine.child()
    child.vps[0].set_register(0x00020000, 0x1234)
    names = struct.pack("<4I", 0x00020000, 0x00000000, 0x0FFFFFFF, 0x00020000)
    child.memory.write(CHILD_INPUT, REGISTERS + names)
    child.memory.write(CHILD_OUTPUT, b"\xa5" * 64)
    value = machine.hypervisor.hypercall(child.vps[0], control_word(0x50, count=4), CHILD_INPUT, CHILD_OUTPUT)
    assert value == result_value(HvStatus.INVALID_PARAMETER, 2)
    output = child.memory.read(CHILD_OUTPUT, 64)
    assert output == (0x1234).to_bytes(16, "little") + (1).to_bytes(16, "little") + b"\xa5" * 32


# --- continuation


def test_a_long_rep_call_comes_back_between_trips(machine: Machine) -> None:
    """Each trip does so many elements and hands RCX back with the new start index; the result counts all."""
    child = machine.child()
    count = 50
    child.memory.write(CHILD_INPUT, REGISTERS + bytes(4 * count))
    control = control_word(0x50, count=count)
    trips = []
    finished = False
    while not finished:
        finished, value = machine.hypervisor.hypercall_step(child.vps[0], control, CHILD_INPUT, CHILD_OUTPUT)
        if not finished:
            word = ControlWord.decode(value)
            assert word is not None
            assert (word.code, word.count) == (0x50, count)
            trips.append(word.start)
            control = value
    assert trips == [16, 32, 48]
    assert value == result_value(HvStatus.SUCCESS, count)
    assert child.memory.read(CHILD_OUTPUT, 16 * count) == (1).to_bytes(16, "little") * count


def test_a_call_that_starts_in_the_middle_leaves_what_came_before(machine: Machine) -> None:
    """Start index 3 of 5: elements 3 and 4 are done, completed is 5."""
    child = machine.child()
    child.memory.write(CHILD_INPUT, REGISTERS + bytes(20))
    child.memory.write(CHILD_OUTPUT, b"\xa5" * 80)
    control = control_word(0x50, count=5, start=3)
    value = machine.hypervisor.hypercall(child.vps[0], control, CHILD_INPUT, CHILD_OUTPUT)
    assert value == result_value(HvStatus.SUCCESS, 5)
    assert child.memory.read(CHILD_OUTPUT, 48) == b"\xa5" * 48


def test_a_failure_in_a_later_trip_counts_the_earlier_ones(machine: Machine) -> None:
    child = machine.child()
    names = [0] * 40
    names[20] = 0x0FFFFFFF
    child.memory.write(CHILD_INPUT, REGISTERS + struct.pack("<40I", *names))
    value = machine.hypervisor.hypercall(child.vps[0], control_word(0x50, count=40), CHILD_INPUT, CHILD_OUTPUT)
    assert value == result_value(HvStatus.INVALID_PARAMETER, 20)


def full_partition(machine: Machine) -> Partition:
    """With more in it than one trip of finalizing frees."""
    child = machine.active()
    machine.must(CallCode.CREATE_VP, layouts.CreateVpInput(child.id, 0))
    machine.deposit(child, 128)
    for port in range(70):
        info = struct.pack("<I4xIIHH4x", 2, 2, 0, 0, 1)
        machine.must(CallCode.CREATE_PORT_2010, layouts.CreatePort2010Input(child.id, port, 1, info))
    return child


def test_a_whole_call_makes_all_the_trips(machine: Machine) -> None:
    """What a synchronous trap gives is the end, in registers as in memory."""
    for fast in (True, False):
        child = full_partition(machine)
        answer = machine.call(CallCode.FINALIZE_PARTITION, layouts.PartitionInput(child.id), fast=fast)
        assert answer.status is HvStatus.SUCCESS
        assert child.state.value == "finalized"


def test_finalizing_a_full_partition_takes_several_trips(machine: Machine) -> None:
    """In between it is Finalizing, and the same control word goes on."""
    child = full_partition(machine)
    control = CallCode.FINALIZE_PARTITION | FAST
    assert machine.hypervisor.hypercall_step(machine.vp, control, child.id) == (False, control)
    assert child.state.value == "finalizing"
    answer = machine.call(CallCode.CREATE_VP, layouts.CreateVpInput(child.id, 5))
    assert answer.status is HvStatus.INVALID_PARTITION_STATE
    assert machine.hypervisor.hypercall(machine.vp, control, child.id) == 0
    assert child.state.value == "finalized"
    assert child.pool.in_use == 0


# --- traces


def test_calls_are_told_with_name_status_and_words(machine: Machine) -> None:
    """A call about a child is told under the child's ID, with the caller beside it."""
    child = machine.create()
    events: list[tuple[str, int, str, dict[str, object]]] = []
    machine.trace.add_sink(lambda e: events.append((e.event, e.partition, e.words, e.fields)))
    machine.call(CallCode.INITIALIZE_PARTITION, layouts.PartitionInput(child.id), fast=True)
    machine.call(CallCode.GET_PARTITION_ID)
    told = [event for event in events if event[0] == "hypercall"]
    assert told == [
        (
            "hypercall",
            child.id,
            f"HvInitializePartition partition_id={child.id:#x} -> INSUFFICIENT_MEMORY",
            {"call": "HvInitializePartition", "status": "INSUFFICIENT_MEMORY", "caller": 1, "vp": 0},
        ),
        (
            "hypercall",
            1,
            "HvGetPartitionId -> SUCCESS",
            {"call": "HvGetPartitionId", "status": "SUCCESS", "caller": 1, "vp": 0},
        ),
    ]
