"""What a parent's emulator calls for its child: interrupts, addresses, bytes of memory, starts, direct messages."""

from __future__ import annotations

import struct

import pytest

from hypervisor.hypercall import layouts
from hypervisor.hypercall import processor_layouts as wire
from hypervisor.hypercall.abi import PARTITION_ID_SELF, CallCode
from hypervisor.hypercall.addresses import AccessResult, TranslateResult
from hypervisor.hypercall.interrupts import InterruptType
from hypervisor.hypercall.starting import CONTEXT
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SIZE, Access
from hypervisor.partition import Partition
from hypervisor.privileges import Privilege
from hypervisor.processor_registers import ProcessorRegister
from hypervisor.status import HvStatus
from hypervisor.synic.messages import HEADER_SIZE, SLOT_SIZE, MessageHeader
from hypervisor.wire import Wire
from tests.doubles.hypercaller import Machine

SIM, SIEF, SINT = 8, 9, 3


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def child(machine: Machine) -> Partition:
    child = machine.child()
    machine.must(CallCode.CREATE_VP, layouts.CreateVpInput(child.id, 1))
    return child


@pytest.mark.parametrize(
    ("code", "request_"),
    [
        (CallCode.TRANSLATE_VIRTUAL_ADDRESS, lambda named: wire.TranslateInput(named, 0, 0, 0)),
        (CallCode.READ_GPA, lambda named: wire.ReadGpaInput(named, 0, 4, 0)),
        (CallCode.WRITE_GPA, lambda named: wire.WriteGpaInput(named, 0, 4, 0)),
        (CallCode.ASSERT_VIRTUAL_INTERRUPT, lambda named: wire.AssertInterruptInput(named, 0, 0, 0, 0x40)),
        (CallCode.ASSERT_VIRTUAL_INTERRUPT_2010, lambda named: wire.AssertInterruptInput(named, 0, 0, 0, 0x40)),
        (CallCode.CLEAR_VIRTUAL_INTERRUPT, lambda named: layouts.PartitionInput(named)),
        (CallCode.SIGNAL_EVENT_DIRECT, lambda named: wire.SignalEventDirectInput(named, 0, 0, SINT, 1)),
        (CallCode.POST_MESSAGE_DIRECT, lambda named: wire.PostMessageDirectInput(named, 0, 0, SINT)),
    ],
)
def test_they_are_a_parents(machine: Machine, child: Partition, code: CallCode, request_: object) -> None:
    """Neither a child nor a sibling nor the root on itself may make them."""
    assert callable(request_)
    for caller, named in ((child, child.id), (child, PARTITION_ID_SELF), (machine.child(), child.id)):
        assert machine.call(code, request_(named), caller=caller).status is HvStatus.ACCESS_DENIED
    assert machine.call(code, request_(1)).status is HvStatus.ACCESS_DENIED
    assert machine.call(code, request_(99)).status is HvStatus.INVALID_PARTITION_ID


# --- interrupts


def assert_(
    machine: Machine, child: Partition, kind: int, vector: int, *, to: int = 0, flags: int = 0, vtl: int = 0
) -> HvStatus:
    request = wire.AssertInterruptInput(child.id, kind, flags, to, vector, vtl)
    return machine.call(CallCode.ASSERT_VIRTUAL_INTERRUPT, request).status


@pytest.mark.parametrize(
    ("kind", "vector", "to", "flags", "pending"),
    [
        (InterruptType.FIXED, 0x40, 1, 0, {1: 0x40}),
        (InterruptType.FIXED, 0x40, 1, 1, {1: 0x40}),
        (InterruptType.FIXED, 0x40, 0xFF, 0, {0: 0x40, 1: 0x40}),
        (InterruptType.FIXED, 0x40, 0b11, 2, {0: 0x40, 1: 0x40}),
        (InterruptType.FIXED, 0x40, 0b110, 2, {1: 0x40}),
        (InterruptType.LOWEST_PRIORITY, 0x41, 0b11, 2, {1: 0x41}),
        (InterruptType.NMI, 0, 1, 0, {1: 2}),
        (InterruptType.INIT, 0, 1, 0, {}),
        (InterruptType.SIPI, 0x10, 1, 0, {}),
        (InterruptType.EXTINT, 0x30, 1, 0, {0: 0x30}),
    ],
)
def test_asserted_interrupts(
    machine: Machine, child: Partition, kind: InterruptType, vector: int, to: int, flags: int, pending: dict[int, int]
) -> None:
    """By APIC ID or flat mask; the lowest priority is that of the smallest TPR; an ExtInt is the first processor's."""
    child.vps[0].tpr = 0x20
    assert assert_(machine, child, kind, vector, to=to, flags=flags) is HvStatus.SUCCESS
    assert {index: set(vp.pending) for index, vp in child.vps.items() if vp.pending} == {
        index: {vector} for index, vector in pending.items()
    }


@pytest.mark.parametrize(
    ("kind", "vector", "to", "flags", "vtl", "status"),
    [
        (InterruptType.FIXED, 0x100, 0, 0, 0, HvStatus.INVALID_PARAMETER),
        (InterruptType.FIXED, 15, 0, 0, 0, HvStatus.INVALID_PARAMETER),
        (InterruptType.NMI, 2, 0, 0, 0, HvStatus.INVALID_PARAMETER),
        (InterruptType.INIT, 1, 0, 0, 0, HvStatus.INVALID_PARAMETER),
        (InterruptType.SIPI, 0x100, 0, 0, 0, HvStatus.INVALID_PARAMETER),
        (InterruptType.EXTINT, 0x100, 0, 0, 0, HvStatus.INVALID_PARAMETER),
        (2, 0, 0, 0, 0, HvStatus.INVALID_PARAMETER),
        (8, 0x40, 0, 0, 0, HvStatus.INVALID_PARAMETER),
        (InterruptType.FIXED, 0x40, 0, 4, 0, HvStatus.INVALID_PARAMETER),
        (InterruptType.FIXED, 0x40, 0, 0, 1, HvStatus.INVALID_PARAMETER),
        (InterruptType.FIXED, 0x40, 2, 0, 0, HvStatus.INVALID_VP_INDEX),
        (InterruptType.FIXED, 0x40, 1 << 32, 0, 0, HvStatus.INVALID_VP_INDEX),
        (InterruptType.FIXED, 0x40, 0b100, 2, 0, HvStatus.INVALID_VP_INDEX),
    ],
)
def test_interrupts_that_are_none(
    machine: Machine,
    child: Partition,
    kind: InterruptType,
    vector: int,
    to: int,
    flags: int,
    vtl: int,
    status: HvStatus,
) -> None:
    assert assert_(machine, child, kind, vector, to=to, flags=flags, vtl=vtl) is status
    assert not any(vp.pending for vp in child.vps.values())


def test_the_code_of_2010_has_padding_behind_the_vector(machine: Machine, child: Partition) -> None:
    request = wire.AssertInterruptInput(child.id, 0, 0, 0, 0x40, 0xFF)
    assert machine.call(CallCode.ASSERT_VIRTUAL_INTERRUPT_2010, request).status is HvStatus.SUCCESS


def test_one_external_interrupt_at_a_time(machine: Machine, child: Partition) -> None:
    """One that waits is replaced; one that was taken has to be cleared, and only then can it be."""
    clear = layouts.PartitionInput(child.id)
    code = CallCode.CLEAR_VIRTUAL_INTERRUPT
    assert machine.call(code, clear, fast=True).status is HvStatus.NOT_ACKNOWLEDGED
    assert assert_(machine, child, InterruptType.EXTINT, 0x30) is HvStatus.SUCCESS
    assert assert_(machine, child, InterruptType.EXTINT, 0x31) is HvStatus.SUCCESS
    assert child.vps[0].pending == {0x31}
    assert machine.call(code, clear, fast=True).status is HvStatus.NOT_ACKNOWLEDGED
    child.vps[0].pending.clear()  # the guest takes it
    assert assert_(machine, child, InterruptType.EXTINT, 0x32) is HvStatus.ACKNOWLEDGED
    assert machine.call(code, clear, fast=True).status is HvStatus.SUCCESS
    assert assert_(machine, child, InterruptType.EXTINT, 0x32) is HvStatus.SUCCESS


# --- addresses and bytes


def translate(machine: Machine, child: Partition, page: int, flags: int) -> wire.TranslateOutput:
    output = machine.must(CallCode.TRANSLATE_VIRTUAL_ADDRESS, wire.TranslateInput(child.id, 0, flags, page))
    return wire.TranslateOutput.decode(output[: wire.TranslateOutput.SIZE])


@pytest.mark.parametrize(
    ("page", "flags", "result"),
    [
        (5, 7, TranslateResult.SUCCESS),
        (6, 1, TranslateResult.SUCCESS),
        (6, 2, TranslateResult.GPA_NO_WRITE_ACCESS),
        (7, 1, TranslateResult.GPA_NO_READ_ACCESS),
        (7, 0, TranslateResult.SUCCESS),
        (0x500, 0, TranslateResult.GPA_UNMAPPED),
        (1, 1, TranslateResult.SUCCESS),
        (1, 2, TranslateResult.GPA_ILLEGAL_OVERLAY_ACCESS),
    ],
)
def test_translation_without_page_tables(
    machine: Machine, child: Partition, page: int, flags: int, result: TranslateResult
) -> None:
    """Paging is off in a model guest: the page is itself, with the rights that it has. Page 1 is the hypercall page."""
    ram, _ = machine.hypervisor.add_root_block(2 * PAGE_SIZE, "odd rights")
    machine.map(child, 6, ram, 1, Access.READ)
    machine.map(child, 7, ram + 1, 1, Access.NONE)
    output = translate(machine, child, page, flags)
    assert output.result_code == result
    assert output.gpa_page == page
    assert bool(output.flags & 0x100) is (page == 1)


@pytest.mark.parametrize(
    ("vp", "flags", "page", "status"),
    [
        (2, 0, 0, HvStatus.INVALID_VP_INDEX),
        (0, 0x40, 0, HvStatus.INVALID_PARAMETER),
        (0, 1 << 56, 0, HvStatus.INVALID_PARAMETER),
        (0, 0, 1 << 52, HvStatus.INVALID_PARAMETER),
    ],
)
def test_translations_that_make_no_sense(
    machine: Machine, child: Partition, vp: int, flags: int, page: int, status: HvStatus
) -> None:
    request = wire.TranslateInput(child.id, vp, flags, page)
    assert machine.call(CallCode.TRANSLATE_VIRTUAL_ADDRESS, request).status is status


def test_page_tables_are_nobodys(machine: Machine, child: Partition) -> None:
    """With paging on, or registers elsewhere, the hypervisor cannot tell."""
    request = wire.TranslateInput(child.id, 0, 0, 0)
    child.vps[0].set_register(ProcessorRegister.CR0, 1 << 31 | 1)
    assert machine.call(CallCode.TRANSLATE_VIRTUAL_ADDRESS, request).status is HvStatus.INVALID_VP_STATE
    child.vps[0].set_register(ProcessorRegister.CR0, 1)
    assert machine.call(CallCode.TRANSLATE_VIRTUAL_ADDRESS, request).status is HvStatus.SUCCESS
    child.state_elsewhere = True
    assert machine.call(CallCode.TRANSLATE_VIRTUAL_ADDRESS, request).status is HvStatus.INVALID_VP_STATE


def read(machine: Machine, child: Partition, gpa: int, count: int) -> wire.ReadGpaOutput:
    output = machine.must(CallCode.READ_GPA, wire.ReadGpaInput(child.id, 0, count, gpa))
    return wire.ReadGpaOutput.decode(output[: wire.ReadGpaOutput.SIZE])


def write(machine: Machine, child: Partition, gpa: int, data: bytes) -> AccessResult:
    request = wire.WriteGpaInput(child.id, 0, len(data), gpa, data=data.ljust(16, b"\xee"))
    output = machine.must(CallCode.WRITE_GPA, request)
    return AccessResult(wire.WriteGpaOutput.decode(output[: wire.WriteGpaOutput.SIZE]).result_code)


def test_bytes_of_memory(machine: Machine, child: Partition) -> None:
    """Up to 16, to the end of the page and not past it; only the bytes that were asked for."""
    end = 6 * PAGE_SIZE
    child.memory.write(end - 16, bytes(range(16)))
    assert read(machine, child, end - 16, 16).data == bytes(range(16))
    assert read(machine, child, end - 4, 3).data == bytes([12, 13, 14]) + bytes(13)
    assert read(machine, child, end - 4, 0).data == bytes(16)
    assert write(machine, child, end - 4, b"abc") is AccessResult.SUCCESS
    assert child.memory.read(end - 5, 5) == b"\x0babc\x0f"
    assert write(machine, child, end - 4, b"") is AccessResult.SUCCESS
    assert child.memory.read(end - 4, 1) == b"a"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (wire.ReadGpaInput(2, 9, 4, 0), HvStatus.INVALID_VP_INDEX),
        (wire.ReadGpaInput(2, 0, 17, 0), HvStatus.INVALID_PARAMETER),
        (wire.ReadGpaInput(2, 0, 0xFFFFFFFF, 0), HvStatus.INVALID_PARAMETER),
        (wire.ReadGpaInput(2, 0, 5, PAGE_SIZE - 4), HvStatus.INVALID_PARAMETER),
        (wire.ReadGpaInput(2, 0, 4, 0, 2), HvStatus.INVALID_PARAMETER),
        (wire.ReadGpaInput(2, 0, 4, 0, 0x106), HvStatus.INVALID_PARAMETER),
        (wire.WriteGpaInput(2, 9, 4, 0), HvStatus.INVALID_VP_INDEX),
        (wire.WriteGpaInput(2, 0, 17, 0), HvStatus.INVALID_PARAMETER),
        (wire.WriteGpaInput(2, 0, 4, PAGE_SIZE - 3), HvStatus.INVALID_PARAMETER),
    ],
)
def test_accesses_that_make_no_sense(machine: Machine, child: Partition, request_: Wire, status: HvStatus) -> None:
    code = CallCode.READ_GPA if isinstance(request_, wire.ReadGpaInput) else CallCode.WRITE_GPA
    assert machine.call(code, request_).status is status


def test_rights_and_holes_are_results(machine: Machine, child: Partition) -> None:
    """The call succeeds and says what the access would have met; an address past everything is unmapped."""
    ram, _ = machine.hypervisor.add_root_block(2 * PAGE_SIZE, "odd rights")
    machine.map(child, 6, ram, 1, Access.READ)
    machine.map(child, 7, ram + 1, 1, Access.NONE)
    for gpa in (0x500000, (1 << 64) - 16):
        assert read(machine, child, gpa, 4).result_code == AccessResult.UNMAPPED
        assert write(machine, child, gpa, b"x") is AccessResult.UNMAPPED
    assert read(machine, child, 7 * PAGE_SIZE, 4).result_code == AccessResult.READ_INTERCEPT
    assert write(machine, child, 6 * PAGE_SIZE, b"x") is AccessResult.WRITE_INTERCEPT


def test_overlays_are_what_is_seen(machine: Machine, child: Partition) -> None:
    """A message page hides what is beneath, for the emulator too; the hypercall page may be read and not written."""
    child.memory.write(SIM * PAGE_SIZE, b"beneath")
    machine.hypervisor.write_msr(child.vps[0], Msr.SIMP, SIM * PAGE_SIZE | 1)
    assert read(machine, child, SIM * PAGE_SIZE, 7).data == bytes(16)
    assert write(machine, child, SIM * PAGE_SIZE, b"over") is AccessResult.SUCCESS
    machine.hypervisor.write_msr(child.vps[0], Msr.SIMP, 0)
    assert read(machine, child, SIM * PAGE_SIZE, 7).data[:7] == b"beneath"
    assert read(machine, child, PAGE_SIZE, 4).data[:4] == bytes.fromhex("0f01c1c3")
    assert write(machine, child, PAGE_SIZE, b"x") is AccessResult.ILLEGAL_OVERLAY_ACCESS


# --- starting


def context(**registers: int) -> bytes:
    values = {"RFLAGS": 2, **registers}
    return b"".join(values.get(name.name, 0).to_bytes(size, "little") for name, size in CONTEXT)


def start(machine: Machine, child: Partition, index: int, data: bytes, vtl: int = 0) -> HvStatus:
    return machine.call(CallCode.START_VIRTUAL_PROCESSOR, wire.StartVpInput(child.id, index, vtl, context=data)).status


def test_a_processor_starts_with_its_context(machine: Machine, child: Partition) -> None:
    """Registers in the order of the context, and it runs; one that runs cannot be started."""
    data = context(RIP=0x1000, RSP=0x2000, CS=0x9B << 112 | 0x10 << 96, GDTR=0x27, PAT=6, CR0=0x11)
    assert start(machine, child, 1, data) is HvStatus.SUCCESS
    vp = child.vps[1]
    assert not vp.suspended
    names = (ProcessorRegister.RIP, ProcessorRegister.RSP, ProcessorRegister.PAT, ProcessorRegister.CR0)
    assert [vp.get_register(name) for name in names] == [0x1000, 0x2000, 6, 0x11]
    assert vp.get_register(ProcessorRegister.CS) == 0x9B << 112 | 0x10 << 96
    assert vp.get_register(ProcessorRegister.GDTR) == 0x27
    assert start(machine, child, 1, data) is HvStatus.INVALID_VP_STATE


@pytest.mark.parametrize(
    ("index", "data", "vtl", "status"),
    [
        (2, context(), 0, HvStatus.INVALID_VP_INDEX),
        (1, context(), 1, HvStatus.INVALID_PARAMETER),
        (1, context(RFLAGS=0), 0, HvStatus.INVALID_REGISTER_VALUE),
        (1, context(CR0=1 << 31), 0, HvStatus.INVALID_REGISTER_VALUE),
    ],
)
def test_starts_that_fail(
    machine: Machine, child: Partition, index: int, data: bytes, vtl: int, status: HvStatus
) -> None:
    assert start(machine, child, index, data, vtl) is status
    assert child.vps[1].suspended
    assert not child.vps[1].registers


def test_a_guest_does_not_undo_its_parents_suspension(machine: Machine, child: Partition) -> None:
    """With the privilege it hears that the processor waits for no start; without, that it may not."""
    request = wire.StartVpInput(child.id, 1, context=context())
    assert machine.call(CallCode.START_VIRTUAL_PROCESSOR, request, caller=child).status is HvStatus.ACCESS_DENIED
    machine.grant(child, child.privileges | Privilege.START_VIRTUAL_PROCESSOR)
    assert machine.call(CallCode.START_VIRTUAL_PROCESSOR, request, caller=child).status is HvStatus.INVALID_VP_STATE
    assert child.vps[1].suspended


def test_processors_by_apic_id(machine: Machine, child: Partition) -> None:
    """The ID is the index; one that nobody has ends the list there."""
    for ids, status, found in (([1, 0], HvStatus.SUCCESS, [1, 0]), ([1, 7, 0], HvStatus.INVALID_PARAMETER, [1])):
        answer = machine.call(
            CallCode.GET_VP_INDEX_FROM_APIC_ID,
            wire.VpFromApicInput(PARTITION_ID_SELF),
            count=len(ids),
            elements=struct.pack(f"<{len(ids)}I", *ids),
            caller=child,
        )
        assert (answer.status, answer.completed) == (status, len(found))
        assert list(struct.unpack_from(f"<{len(found)}I", answer.output)) == found


# --- direct messages and events


def with_synic(machine: Machine, child: Partition) -> Partition:
    for msr, value in (
        *((Msr.SIMP, SIM * PAGE_SIZE | 1), (Msr.SIEFP, SIEF * PAGE_SIZE | 1)),
        *((Msr.SINT0 + SINT, 0x53), (Msr.SCONTROL, 1)),
    ):
        machine.hypervisor.write_msr(child.vps[0], msr, value)
    return child


def test_a_flag_by_its_number(machine: Machine, child: Partition) -> None:
    """It says whether the flag was clear, and interrupts only then."""
    with_synic(machine, child)
    for newly in (1, 0):
        output = machine.must(CallCode.SIGNAL_EVENT_DIRECT, wire.SignalEventDirectInput(child.id, 0, 0, SINT, 2047))
        assert output[0] == newly
    assert child.memory.read(SIEF * PAGE_SIZE + SINT * 256 + 255, 1) == b"\x80"
    assert child.counters["interrupts"] == 1


@pytest.mark.parametrize(
    ("vp", "vtl", "sint", "flag", "status"),
    [
        (2, 0, SINT, 0, HvStatus.INVALID_VP_INDEX),
        (0, 1, SINT, 0, HvStatus.INVALID_PARAMETER),
        (0, 0, 16, 0, HvStatus.INVALID_PARAMETER),
        (0, 0, SINT, 2048, HvStatus.INVALID_PARAMETER),
        (0, 0, 4, 0, HvStatus.INVALID_SYNIC_STATE),
        (1, 0, SINT, 0, HvStatus.INVALID_SYNIC_STATE),
    ],
)
def test_flags_that_are_none(
    machine: Machine, child: Partition, vp: int, vtl: int, sint: int, flag: int, status: HvStatus
) -> None:
    with_synic(machine, child)
    request = wire.SignalEventDirectInput(child.id, vp, vtl, sint, flag)
    assert machine.call(CallCode.SIGNAL_EVENT_DIRECT, request).status is status


def post(machine: Machine, child: Partition, message: bytes, *, vp: int = 0, sint: int = SINT) -> HvStatus:
    request = wire.PostMessageDirectInput(child.id, vp, 0, sint, message.ljust(SLOT_SIZE, b"\0"))
    return machine.call(CallCode.POST_MESSAGE_DIRECT, request).status


def test_a_message_goes_into_its_slot(machine: Machine, child: Partition) -> None:
    """Header and payload as they are; while the slot is full there is no room for another."""
    with_synic(machine, child)
    message = MessageHeader(0x80000040, 5, origination_id=77).encode() + b"hello"
    assert post(machine, child, message) is HvStatus.SUCCESS
    slot = child.memory.read(SIM * PAGE_SIZE + SINT * SLOT_SIZE, SLOT_SIZE)
    header = MessageHeader.decode(slot[:HEADER_SIZE])
    assert (header.message_type, header.payload_size, header.flags, header.origination_id) == (0x80000040, 5, 0, 77)
    assert slot[HEADER_SIZE:].rstrip(b"\0") == b"hello"
    assert post(machine, child, message) is HvStatus.OBJECT_IN_USE
    child.memory.write(SIM * PAGE_SIZE + SINT * SLOT_SIZE, bytes(4))
    assert post(machine, child, message) is HvStatus.SUCCESS


def test_messages_that_are_none(machine: Machine, child: Partition) -> None:
    with_synic(machine, child)
    good = MessageHeader(1, 1).encode()
    assert post(machine, child, MessageHeader(0, 1).encode()) is HvStatus.INVALID_PARAMETER
    assert post(machine, child, MessageHeader(1, 241).encode()) is HvStatus.INVALID_PARAMETER
    assert post(machine, child, good, sint=16) is HvStatus.INVALID_PARAMETER
    assert post(machine, child, good, vp=2) is HvStatus.INVALID_VP_INDEX
    assert post(machine, child, good, vp=1) is HvStatus.INVALID_SYNIC_STATE
