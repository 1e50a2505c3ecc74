"""HvSavePartitionState and HvRestorePartitionState as a root partition calls them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from hypervisor.hypercall import layouts
from hypervisor.hypercall.abi import CallCode
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SIZE
from hypervisor.partition import Partition
from hypervisor.privileges import Privilege
from hypervisor.saved_state.live import capture
from hypervisor.saved_state.stream import StateResult, decode, encode
from hypervisor.status import HvStatus
from hypervisor.synic.messages import MessageHeader
from hypervisor.synic.ports import ConnectionInfo, PortInfo, PortType
from hypervisor.synic.timer_registers import TimerMessage
from tests.doubles.hypercaller import Machine, enable_hypercalls

START, SUMMARY = 1, 2
SIM, SIEF, TSC, ASSIST, HYPERCALL = 8, 9, 10, 9, 1
"""Pages; the assist page lies over the event flags."""
VECTOR = 0x50
TIMERS = Privilege.ACCESS_SYNTHETIC_TIMER_MSRS
STORED = Path(__file__).parent.parent / "saved_state" / "version-1.bin.gz"


@pytest.fixture
def machine() -> Machine:
    return Machine()


def new_child(machine: Machine, *indices: int) -> Partition:
    """A partition as a restore needs it: memory and processors, nothing else."""
    child = machine.active()
    child.cpuid_features = msgspec.structs.replace(child.cpuid_features, features=0x500)
    for index in indices or (0,):
        machine.must(CallCode.CREATE_VP, layouts.CreateVpInput(child.id, index))
    ram, _ = machine.hypervisor.add_root_block(16 * PAGE_SIZE, "ram")
    machine.map(child, 0, ram, 16)
    machine.grant(child, child.privileges | Privilege.ACCESS_PARTITION_REFERENCE_TSC | TIMERS)
    return child


def boot(machine: Machine, child: Partition) -> None:
    """Everything that a guest can set, set."""
    for gpn in range(16):
        child.memory.write(gpn * PAGE_SIZE, b"guest page %d" % gpn)
    vp = child.vps[0]
    enable_hypercalls(machine.hypervisor, vp, HYPERCALL)
    for msr, value in (
        (Msr.SIMP, SIM * PAGE_SIZE | 1),
        (Msr.SIEFP, SIEF * PAGE_SIZE | 1),
        (Msr.VP_ASSIST_PAGE, ASSIST * PAGE_SIZE | 1),
        (Msr.REFERENCE_TSC, TSC * PAGE_SIZE | 1),
        (Msr.SINT0 + 2, VECTOR),
        (Msr.SINT0 + 3, VECTOR + 1),
        (Msr.SCONTROL, 1),
        (Msr.TPR, 3),
        (Msr.CRASH_P0, 0xC0FFEE),
    ):
        machine.hypervisor.write_msr(vp, msr, value)
    for msr, value in ((Msr.STIMER0_CONFIG, 2 << 16 | 1 << 3), (Msr.STIMER0_COUNT, 500_000)):
        machine.hypervisor.write_msr(vp, msr, value)
    for msr, value in ((Msr.STIMER0_CONFIG + 2, 0x60 << 4 | 1 << 12 | 2), (Msr.STIMER0_COUNT + 2, 700_000)):
        machine.hypervisor.write_msr(vp, msr, value)
    machine.hypervisor.write_msr(vp, Msr.STIMER0_CONFIG + 2, 0x60 << 4 | 1 << 12 | 3)
    child.memory.write(ASSIST * PAGE_SIZE + 16, b"assist")
    vp.set_register(0x20000, 0x1234)
    suspend(machine, child, False)
    machine.now += 1_000_000
    listen(machine, child, 5)
    for text in (b"in the slot", b"waits", b"waits too"):
        post(machine, text)
    machine.hypervisor.timers.fire_due(machine.now, 10)
    suspend(machine, child, True)


def listen(machine: Machine, child: Partition, port_id: int) -> None:
    """A message port in the child at (VP 0, SINT 2), and the root's connection 77 to it."""
    info = PortInfo(PortType.MESSAGE, 2, 0).encode()
    machine.must(CallCode.CREATE_PORT_2010, layouts.CreatePort2010Input(child.id, port_id, 1, info))
    connection = ConnectionInfo(PortType.MESSAGE).encode()
    machine.must(CallCode.CONNECT_PORT_2010, layouts.ConnectPort2010Input(1, 77, child.id, port_id, connection))


def post(machine: Machine, payload: bytes) -> None:
    machine.must(CallCode.POST_MESSAGE, layouts.PostMessageInput(77, 1, len(payload), payload.ljust(240, b"\0")))


def suspend(machine: Machine, child: Partition, on: bool, index: int = 0) -> None:
    element = layouts.RegisterAssociation(0, int(on).to_bytes(16, "little")).encode()
    machine.must(CallCode.SET_VP_REGISTERS, layouts.VpInput(child.id, index), count=1, elements=element)


def save_call(machine: Machine, child: Partition, flags: int) -> tuple[HvStatus, layouts.SavePartitionStateOutput]:
    answer = machine.call(CallCode.SAVE_PARTITION_STATE, layouts.SavePartitionStateInput(child.id, flags))
    return answer.status, layouts.SavePartitionStateOutput.decode(answer.output)


def save(machine: Machine, child: Partition, more: int = 0) -> bytes:
    """START, then 4,080 bytes at a time until Complete."""
    stream, flags = b"", START | more
    while True:
        status, output = save_call(machine, child, flags)
        assert status is HvStatus.SUCCESS
        stream += output.data[: output.count]
        if output.state == StateResult.COMPLETE:
            return stream
        assert output.state == StateResult.INCOMPLETE
        assert output.count == 4080
        flags = more


def restore_call(machine: Machine, child: Partition, flags: int, data: bytes, count: int | None = None) -> object:
    """(state, consumed), or the status that is not SUCCESS."""
    size = len(data) if count is None else count
    request = layouts.RestorePartitionStateInput(child.id, flags, size, data.ljust(4080, b"\0"))
    answer = machine.call(CallCode.RESTORE_PARTITION_STATE, request)
    if answer.status is not HvStatus.SUCCESS:
        return answer.status
    output = layouts.RestorePartitionStateOutput.decode(answer.output)
    return StateResult(output.state), output.consumed


def restore(machine: Machine, child: Partition, stream: bytes, more: int = 0, step: int = 4080) -> StateResult:
    """The whole stream; the last answer's state."""
    flags = START | more
    state: object = None
    for at in range(0, len(stream), step):
        answer = restore_call(machine, child, flags, stream[at : at + step])
        assert isinstance(answer, tuple)
        state = answer[0]
        if state is not StateResult.INCOMPLETE:
            break
        flags = more
    assert isinstance(state, StateResult)
    return state


def copy_memory(source: Partition, target: Partition) -> None:
    """What the parent does with the pages, which are no part of the hypervisor's state."""
    target.memory.write(0, source.memory.read(0, 16 * PAGE_SIZE))


# --- there and back


def test_a_restored_partition_is_the_saved_one(machine: Machine) -> None:
    """Registers, SynIC, queued messages, overlay pages and what lies beneath them; state for state the same."""
    first, second = new_child(machine), new_child(machine)
    boot(machine, first)
    stream = save(machine, first)
    copy_memory(first, second)
    listen_elsewhere(machine, first, second)
    assert restore(machine, second, stream) is StateResult.COMPLETE
    # The clock page is written anew at each restore, under the next number.
    again = capture(second)
    sequence = again.partition.tsc_sequence  # type: ignore[union-attr]
    assert sequence == decode(stream).partition.tsc_sequence + 1  # type: ignore[union-attr]
    second.registers.tsc_sequence -= 1
    assert encode(capture(second)) == stream


def listen_elsewhere(machine: Machine, first: Partition, second: Partition) -> None:
    """The saved partition goes; its port is made again, under its old number, in the new one."""
    machine.must(CallCode.DISCONNECT_PORT, layouts.DisconnectPortInput(1, 77))
    listen(machine, second, 5)


def test_what_lay_under_overlays_comes_back(machine: Machine) -> None:
    """Each overlay taken away uncovers the saved partition's page, also where two lay on one."""
    first, second = new_child(machine), new_child(machine)
    boot(machine, first)
    stream = save(machine, first)
    copy_memory(first, second)
    assert restore(machine, second, stream) is StateResult.COMPLETE
    vp = second.vps[0]
    assert second.memory.read(ASSIST * PAGE_SIZE + 16, 6) == b"assist"
    machine.hypervisor.write_msr(vp, Msr.VP_ASSIST_PAGE, 0)
    assert second.memory.read(SIEF * PAGE_SIZE, 6) == bytes(6)
    for msr in (Msr.SIEFP, Msr.SIMP, Msr.REFERENCE_TSC, Msr.HYPERCALL):
        machine.hypervisor.write_msr(vp, msr, 0)
    for gpn in (SIM, SIEF, TSC, HYPERCALL):
        words = b"guest page %d" % gpn
        assert second.memory.read(gpn * PAGE_SIZE, len(words)) == words


def test_queued_messages_arrive_after_a_restore(machine: Machine) -> None:
    """The one in the slot, then those that waited, in order; each gives its buffer back to the port made anew."""
    first, second = new_child(machine), new_child(machine)
    boot(machine, first)
    stream = save(machine, first)
    copy_memory(first, second)
    listen_elsewhere(machine, first, second)
    assert restore(machine, second, stream) is StateResult.COMPLETE
    port = second.ports[5]
    assert port.buffers == 16 - 2
    slot = SIM * PAGE_SIZE + 2 * 256
    suspend(machine, second, False)
    taken = []
    for _ in range(4):
        header = MessageHeader.decode(second.memory.read(slot, 16))
        taken.append(second.memory.read(slot + 16, header.payload_size))
        second.memory.write(slot, bytes(4))
        machine.hypervisor.write_msr(second.vps[0], Msr.EOM, 0)
    assert taken[:3] == [b"in the slot", b"waits", b"waits too"]
    expired = TimerMessage.decode(taken[3])
    assert (expired.timer_index, expired.expiration_time, expired.delivery_time) == (0, 500_000, 1_000_000)
    assert not second.vps[0].timers.state.timers[0].waits
    assert port.buffers == 16
    post(machine, b"and on it goes")
    header = MessageHeader.decode(second.memory.read(slot, 16))
    assert second.memory.read(slot + 16, header.payload_size) == b"and on it goes"


def test_a_message_of_a_port_that_is_gone(machine: Machine) -> None:
    """It arrives all the same; there is no buffer to give back."""
    first, second = new_child(machine), new_child(machine)
    boot(machine, first)
    stream = save(machine, first)
    copy_memory(first, second)
    assert restore(machine, second, stream) is StateResult.COMPLETE
    second.memory.write(SIM * PAGE_SIZE + 2 * 256, bytes(4))
    machine.hypervisor.write_msr(second.vps[0], Msr.EOM, 0)
    assert second.memory.read(SIM * PAGE_SIZE + 2 * 256 + 16, 5) == b"waits"


def test_reference_time_goes_on_where_it_stood(machine: Machine) -> None:
    """However long the state lay on a disk, and on whatever clock; readings go on rising."""
    first, second = new_child(machine), new_child(machine)
    boot(machine, first)
    read = machine.hypervisor.read_msr
    for _ in range(5):
        last = read(first.vps[0], Msr.TIME_REF_COUNT)
    stood = first.reference_time.now()
    stream = save(machine, first)
    machine.now += 10**12
    assert restore(machine, second, stream) is StateResult.COMPLETE
    assert second.reference_time.now() == stood == 1_000_000
    assert read(second.vps[0], Msr.TIME_REF_COUNT) == last + 1
    machine.now += 500
    suspend(machine, second, False)
    machine.now += 70
    assert second.reference_time.now() == stood + 70


def test_timers_go_on(machine: Machine) -> None:
    """A periodic timer keeps its period and its place in it; it signals again in the partition that was restored."""
    first, second = new_child(machine), new_child(machine)
    boot(machine, first)
    assert first.vps[0].pending >= {0x60}
    stream = save(machine, first)
    machine.now += 10**9
    copy_memory(first, second)
    assert restore(machine, second, stream) is StateResult.COMPLETE
    vp = second.vps[0]
    vp.pending.clear()
    suspend(machine, second, False)
    machine.now += 399_999
    machine.hypervisor.timers.fire_due(machine.now, 10)
    assert not vp.pending
    machine.now += 1
    machine.hypervisor.timers.fire_due(machine.now, 10)
    assert vp.pending == {0x60}


def test_the_clock_page_gets_a_new_sequence(machine: Machine) -> None:
    """A guest that reads time by the page sees that scale and offset are others."""
    first, second = new_child(machine), new_child(machine)
    boot(machine, first)
    before = int.from_bytes(first.memory.read(TSC * PAGE_SIZE, 4), "little")
    stream = save(machine, first)
    copy_memory(first, second)
    assert restore(machine, second, stream) is StateResult.COMPLETE
    assert int.from_bytes(second.memory.read(TSC * PAGE_SIZE, 4), "little") == before + 1


def test_pending_interrupts_and_intercepts_are_kept(machine: Machine) -> None:
    """An interrupt that nobody has taken, and a processor that waits for its parent."""
    first, second = new_child(machine, 0, 2), new_child(machine, 0, 2)
    first.vps[2].raise_interrupt(0x77)
    first.vps[0].stop_on_intercept()
    assert restore(machine, second, save(machine, first)) is StateResult.COMPLETE
    assert second.vps[2].pending == {0x77}
    assert second.vps[0].intercept_suspend
    assert not second.vps[2].intercept_suspend


def test_what_was_there_before_is_gone(machine: Machine) -> None:
    """A partition that ran already takes over the saved state and keeps nothing of its own."""
    first, second = new_child(machine), new_child(machine)
    stream = save(machine, first)
    boot(machine, second)
    assert restore(machine, second, stream) is StateResult.COMPLETE
    assert capture(second) == decode(stream)
    assert second.memory.read(SIM * PAGE_SIZE, 12) == b"guest page 8"


@pytest.mark.parametrize("step", [1, 47, 48, 49, 4080])
def test_chunks_of_any_size(machine: Machine, step: int) -> None:
    """The parent may cut the stream as it likes; borders of records mean nothing."""
    first, second = new_child(machine), new_child(machine)
    stream = save(machine, first)
    assert restore(machine, second, stream, step=step) is StateResult.COMPLETE


def test_bytes_behind_the_stream_are_not_consumed(machine: Machine) -> None:
    first, second = new_child(machine), new_child(machine)
    stream = save(machine, first)
    assert restore_call(machine, second, START, stream + b"more") == (StateResult.COMPLETE, len(stream))


# --- order and counts


def test_calls_in_a_wrong_order(machine: Machine) -> None:
    """Nothing goes on that was not begun, is over, or was begun in the other way."""
    child = new_child(machine)
    boot(machine, child)
    wrong = HvStatus.INVALID_SAVE_RESTORE_STATE
    assert save_call(machine, child, 0)[0] is wrong
    assert restore_call(machine, child, 0, b"x") is wrong
    stream = save(machine, child)
    assert len(stream) > 4080
    assert save_call(machine, child, 0)[0] is wrong
    assert save_call(machine, child, START)[0] is HvStatus.SUCCESS
    assert save_call(machine, child, SUMMARY)[0] is wrong
    assert restore_call(machine, child, 0, stream[:10]) is wrong
    assert restore_call(machine, child, START, stream[:10]) == (StateResult.INCOMPLETE, 10)
    assert save_call(machine, child, 0)[0] is wrong
    assert restore_call(machine, child, SUMMARY, stream[10:20]) is wrong
    assert restore_call(machine, child, 0, stream[10:20]) == (StateResult.INCOMPLETE, 10)
    # START begins anew, whatever was under way.
    assert restore(machine, child, stream) is StateResult.COMPLETE
    assert restore_call(machine, child, 0, b"") is wrong


@pytest.mark.parametrize("flags", [4, 0x80000000, 7])
def test_unknown_flags(machine: Machine, flags: int) -> None:
    child = new_child(machine)
    assert save_call(machine, child, flags)[0] is HvStatus.INVALID_PARAMETER
    assert restore_call(machine, child, flags, b"") is HvStatus.INVALID_PARAMETER


def test_a_count_that_no_page_holds(machine: Machine) -> None:
    """4,080 bytes are the most."""
    child = new_child(machine)
    assert restore_call(machine, child, START, b"", 4081) is HvStatus.INVALID_PARAMETER
    assert restore_call(machine, child, START, b"", 0xFFFFFFFF) is HvStatus.INVALID_PARAMETER
    assert restore_call(machine, child, START, b"", 0) == (StateResult.INCOMPLETE, 0)


def test_processors_have_to_stand_still(machine: Machine) -> None:
    """Saving and restoring take every processor suspended; a summary does not."""
    child = new_child(machine, 0, 1)
    suspend(machine, child, False, 1)
    assert save_call(machine, child, START)[0] is HvStatus.OPERATION_DENIED
    assert restore_call(machine, child, START, b"") is HvStatus.OPERATION_DENIED
    assert restore(machine, child, save(machine, child, SUMMARY), SUMMARY) is StateResult.RESTORABLE


def test_a_partition_that_ran_between_two_chunks(machine: Machine) -> None:
    """What was taken is not its state any longer."""
    child = new_child(machine)
    boot(machine, child)
    assert save_call(machine, child, START)[0] is HvStatus.SUCCESS
    suspend(machine, child, False)
    assert save_call(machine, child, 0)[0] is HvStatus.OPERATION_DENIED
    machine.now += 1
    suspend(machine, child, True)
    assert save_call(machine, child, 0)[0] is HvStatus.INVALID_SAVE_RESTORE_STATE


def test_a_backend_with_state_of_its_own(machine: Machine) -> None:
    """KVM has the registers; half a state is none."""
    child = new_child(machine)
    child.state_elsewhere = True
    assert save_call(machine, child, START)[0] is HvStatus.OPERATION_DENIED
    assert restore_call(machine, child, START, b"") is HvStatus.OPERATION_DENIED


# --- what does not fit


def other_count(machine: Machine) -> Partition:
    return new_child(machine, 0, 1)


def other_index(machine: Machine) -> Partition:
    return new_child(machine, 3)


def other_clock(machine: Machine) -> Partition:
    child = new_child(machine)
    child.registers.tsc_frequency += 1
    return child


def fewer_features(machine: Machine) -> Partition:
    child = new_child(machine)
    child.cpuid_features = msgspec.structs.replace(child.cpuid_features, features=0)
    return child


@pytest.mark.parametrize(
    ("make", "result"),
    [
        (new_child, StateResult.RESTORABLE),
        (other_count, StateResult.PROCESSOR_COUNT_MISMATCH),
        (other_index, StateResult.PROCESSOR_INDEX_MISMATCH),
        (other_clock, StateResult.INCOMPATIBLE_PROCESSOR),
        (fewer_features, StateResult.PROCESSOR_FEATURES_MISMATCH),
    ],
)
def test_a_summary_says_whether_it_would_fit(
    machine: Machine, make: Callable[[Machine], Partition], result: StateResult
) -> None:
    """The same answer as the whole state gets, and nothing is changed by either."""
    first = new_child(machine)
    boot(machine, first)
    second = make(machine)
    before = capture(second)
    assert restore(machine, second, save(machine, first, SUMMARY), SUMMARY) is result
    assert restore(machine, second, save(machine, first), SUMMARY) is result
    assert capture(second) == before
    if result is not StateResult.RESTORABLE:
        assert restore(machine, second, save(machine, first)) is result
        assert capture(second) == before


def test_a_summary_is_no_state(machine: Machine) -> None:
    first = new_child(machine)
    boot(machine, first)
    summary = save(machine, first, SUMMARY)
    assert restore(machine, first, summary) is StateResult.CORRUPT_DATA
    assert first.guest_os_id == 1


def test_damaged_streams_change_nothing(machine: Machine) -> None:
    """Every 97th bit turned: corrupt data, and the partition as it was."""
    first, second = new_child(machine), new_child(machine)
    boot(machine, first)
    stream = save(machine, first)
    before = capture(second)
    for at in range(0, 8 * len(stream), 9973):
        damaged = bytearray(stream)
        damaged[at >> 3] ^= 1 << (at & 7)
        result = restore(machine, second, bytes(damaged))
        assert result in (StateResult.CORRUPT_DATA, StateResult.INCOMPLETE)
        assert capture(second) == before
    # A length in the header is believed only with its checksum, so nothing waits for bytes that never come.
    assert restore(machine, second, stream) is StateResult.COMPLETE


def test_a_page_beneath_that_is_not_there(machine: Machine) -> None:
    """A smaller partition, or somebody's invention: refused before anything is written."""
    first = new_child(machine)
    boot(machine, first)
    stream = save(machine, first)
    second = machine.active()
    machine.must(CallCode.CREATE_VP, layouts.CreateVpInput(second.id, 0))
    assert restore(machine, second, stream) is StateResult.CORRUPT_DATA
    assert not second.guest_os_id


def test_todays_stream_is_read_tomorrow(machine: Machine) -> None:
    """A stream stored when version 1 was made: whatever is renamed in live code, its bytes mean the same."""
    stored = gzip.decompress(STORED.read_bytes())
    first, second = new_child(machine), new_child(machine)
    boot(machine, first)
    assert save(machine, first) == stored
    copy_memory(first, second)
    assert restore(machine, second, stored) is StateResult.COMPLETE
    assert second.vps[0].get_register(0x20000) == 0x1234
    assert second.registers.crash_parameters[0] == 0xC0FFEE
    assert second.vps[0].tpr == 3
