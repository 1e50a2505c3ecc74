"""Intercepts that a parent installs: what it is told, and what its answers do."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from hypervisor.backend.task import TaskBackend, TaskVp
from hypervisor.hypercall.abi import CallCode
from hypervisor.hypercall.processor_layouts import InstallInterceptInput
from hypervisor.intercept import (
    CpuidIntercept,
    ExceptionIntercept,
    InterceptAccess,
    InterceptMask,
    InterceptType,
    IoPortIntercept,
    MsrIntercept,
)
from hypervisor.machine import GeneralProtection, Intercepted, InvalidOpcode, Machine, ProcessorFault, VpStopped
from hypervisor.msr import Msr
from hypervisor.partition import PageCost
from hypervisor.privileges import Privilege
from hypervisor.processor_registers import PENDING, PendingType, ProcessorRegister, pending_exception
from hypervisor.status import HvStatus
from hypervisor.synic.messages import MessageType
from tests.doubles import hypercaller
from tests.doubles.parent import INTERCEPT_SUSPEND, Parent

READ_WRITE = InterceptMask.READ | InterceptMask.WRITE
EXECUTE = InterceptMask.EXECUTE
APIC_BASE = 0x1B
RAX, RBX, RCX, RDX = (ProcessorRegister[name] for name in ("RAX", "RBX", "RCX", "RDX"))
GP = pending_exception(13, 0)


@pytest.fixture
def parent() -> Parent:
    machine = hypercaller.Machine()
    child = machine.child()
    child.vps[0].set_explicit_suspend(False)
    return Parent(machine, child)


@pytest.mark.parametrize(
    ("kind", "access", "parameter", "status"),
    [
        (InterceptType.IO_PORT, READ_WRITE, 0x3F8, HvStatus.SUCCESS),
        (InterceptType.IO_PORT, READ_WRITE, 0xFFFF, HvStatus.SUCCESS),
        (InterceptType.IO_PORT, 0, 0x3F8, HvStatus.SUCCESS),
        (InterceptType.IO_PORT, InterceptMask.READ, 0x3F8, HvStatus.INVALID_PARAMETER),
        (InterceptType.IO_PORT, InterceptMask.WRITE, 0x3F8, HvStatus.INVALID_PARAMETER),
        (InterceptType.IO_PORT, READ_WRITE | EXECUTE, 0x3F8, HvStatus.INVALID_PARAMETER),
        (InterceptType.IO_PORT, READ_WRITE, 0x10000, HvStatus.INVALID_PARAMETER),
        (InterceptType.MSR, READ_WRITE, 0, HvStatus.SUCCESS),
        (InterceptType.MSR, READ_WRITE, APIC_BASE, HvStatus.INVALID_PARAMETER),
        (InterceptType.MSR, EXECUTE, 0, HvStatus.INVALID_PARAMETER),
        (InterceptType.CPUID, EXECUTE, 0xFFFFFFFF, HvStatus.SUCCESS),
        (InterceptType.CPUID, EXECUTE, 1 << 32, HvStatus.INVALID_PARAMETER),
        (InterceptType.CPUID, READ_WRITE, 1, HvStatus.INVALID_PARAMETER),
        (InterceptType.EXCEPTION, EXECUTE, 31, HvStatus.SUCCESS),
        (InterceptType.EXCEPTION, EXECUTE, 32, HvStatus.INVALID_PARAMETER),
        (4, EXECUTE, 0, HvStatus.INVALID_PARAMETER),
        (0xFFFFFFFF, 0, 0, HvStatus.INVALID_PARAMETER),
    ],
)
def test_what_can_be_installed(
    parent: Parent, kind: InterceptType, access: int, parameter: int, status: HvStatus
) -> None:
    """Ports and MSRs are read and written, leaves and exceptions executed; a mask of nothing removes."""
    assert parent.install(kind, access, parameter) is status


def test_nobody_else_may_install(parent: Parent) -> None:
    """A child has no say in its own intercepts, and the root has no parent."""
    own = InstallInterceptInput(parent.child.id, READ_WRITE, InterceptType.MSR)
    assert parent.machine.call(CallCode.INSTALL_INTERCEPT, own, caller=parent.child).status is HvStatus.ACCESS_DENIED
    root = InstallInterceptInput(1, READ_WRITE, InterceptType.MSR)
    assert parent.machine.call(CallCode.INSTALL_INTERCEPT, root).status is HvStatus.ACCESS_DENIED
    assert parent.child.interception is None


def test_only_cpuid_intercepts_are_paid_for(parent: Parent) -> None:
    """A leaf costs the child's pool a page, once; removing gives it back; a short pool refuses."""
    child = parent.child
    before = child.pool.in_use
    for _ in range(2):
        assert parent.install(InterceptType.CPUID, EXECUTE, 1) is HvStatus.SUCCESS
    assert parent.install(InterceptType.IO_PORT, READ_WRITE, 0x80) is HvStatus.SUCCESS
    assert parent.install(InterceptType.MSR, READ_WRITE) is HvStatus.SUCCESS
    assert child.pool.in_use == before + PageCost.CPUID_INTERCEPT
    held = child.pool.available
    child.charge(held)
    assert parent.install(InterceptType.CPUID, EXECUTE, 2) is HvStatus.INSUFFICIENT_MEMORY
    assert parent.install(InterceptType.IO_PORT, READ_WRITE, 0x81) is HvStatus.SUCCESS
    child.discharge(held)
    for _ in range(2):
        assert parent.install(InterceptType.CPUID, 0, 1) is HvStatus.SUCCESS
    assert child.pool.in_use == before


def test_when_the_last_is_removed_nothing_is_asked_any_more(parent: Parent) -> None:
    """So an ordinary guest pays one test and no more."""
    parent.install(InterceptType.MSR, READ_WRITE)
    parent.install(InterceptType.EXCEPTION, EXECUTE, 13)
    assert parent.child.interception is not None
    parent.install(InterceptType.MSR, 0)
    parent.install(InterceptType.EXCEPTION, 0, 13)
    assert parent.child.interception is None


def test_finalizing_takes_them_along(parent: Parent) -> None:
    """Their pages go back to the pool."""
    child = parent.child
    parent.install(InterceptType.CPUID, EXECUTE, 1)
    parent.machine.must(CallCode.FINALIZE_PARTITION, hypercaller.layouts.PartitionInput(child.id))
    assert child.interception is None
    assert child.pool.in_use == 0


# --- a parent that answers in its interrupt


def test_a_register_of_the_parents(parent: Parent) -> None:
    """RDMSR: the message names the register, EDX:EAX is the answer, and RIP is past the instruction."""
    vp, hypervisor = parent.child.vps[0], parent.machine.hypervisor
    parent.install(InterceptType.MSR, READ_WRITE)
    parent.script = lambda: parent.answer((RAX, 0xFFFF_FFFF_0000_0900), (RDX, 0x12))
    assert hypervisor.read_msr(vp, APIC_BASE) == 0x12_0000_0900
    kind, header, body = parent.messages[-1]
    assert kind == MessageType.MSR_INTERCEPT
    assert (header.vp_index, header.access_type, header.instruction_length) == (0, InterceptAccess.READ, 2)
    assert MsrIntercept.decode(body).msr == APIC_BASE
    assert vp.get_register(ProcessorRegister.RIP) == header.rip + 2
    assert vp.get_register(RCX) == APIC_BASE


def test_what_is_written_is_in_the_message(parent: Parent) -> None:
    """WRMSR: in the low halves of RDX and RAX."""
    parent.install(InterceptType.MSR, READ_WRITE)
    parent.script = parent.answer
    parent.machine.hypervisor.write_msr(parent.child.vps[0], APIC_BASE, 0x1122334455667788)
    _, header, body = parent.messages[-1]
    message = MsrIntercept.decode(body)
    assert header.access_type == InterceptAccess.WRITE
    assert (message.rdx, message.rax) == (0x11223344, 0x55667788)


def test_the_parent_refuses(parent: Parent) -> None:
    """Its PENDING_INTERRUPTION is the exception that the software gets, once."""
    vp, hypervisor = parent.child.vps[0], parent.machine.hypervisor
    parent.install(InterceptType.MSR, READ_WRITE)
    parent.script = lambda: parent.resume((ProcessorRegister.PENDING_INTERRUPTION, GP))
    for _ in range(2):
        with pytest.raises(GeneralProtection):
            hypervisor.read_msr(vp, APIC_BASE)
    parent.script = lambda: parent.answer((RAX, 5), (RDX, 0))
    assert hypervisor.read_msr(vp, APIC_BASE) == 5


@pytest.mark.parametrize(("vector", "fault"), [(6, InvalidOpcode), (14, ProcessorFault)])
def test_any_exception_can_be_the_answer(parent: Parent, vector: int, fault: type[ProcessorFault]) -> None:
    parent.install(InterceptType.MSR, READ_WRITE)
    parent.script = lambda: parent.resume((ProcessorRegister.PENDING_INTERRUPTION, pending_exception(vector)))
    with pytest.raises(fault):
        parent.machine.hypervisor.read_msr(parent.child.vps[0], APIC_BASE)


def test_an_interrupt_beside_the_answer(parent: Parent) -> None:
    """A pending interruption that is an interrupt is one, and the access is over all the same."""
    vp = parent.child.vps[0]
    parent.install(InterceptType.MSR, READ_WRITE)
    interrupt = PENDING | PendingType.INTERRUPT << 1 | 0x40 << 16
    parent.script = lambda: parent.answer((RAX, 5), (RDX, 0), (ProcessorRegister.PENDING_INTERRUPTION, interrupt))
    assert parent.machine.hypervisor.read_msr(vp, APIC_BASE) == 5
    assert vp.pending == {0x40}


def test_without_an_intercept_it_is_gp(parent: Parent) -> None:
    """A register that nobody has, or that the partition may not see."""
    vp, hypervisor = parent.child.vps[0], parent.machine.hypervisor
    for msr in (APIC_BASE, Msr.REFERENCE_TSC):
        with pytest.raises(GeneralProtection):
            hypervisor.read_msr(vp, msr)
    assert not parent.messages


def test_a_missing_privilege_asks_the_parent(parent: Parent) -> None:
    """With an MSR intercept, a synthetic register without its privilege is the parent's to answer, not #GP."""
    vp, hypervisor = parent.child.vps[0], parent.machine.hypervisor
    parent.install(InterceptType.MSR, READ_WRITE)
    parent.script = lambda: parent.answer((RAX, 1), (RDX, 0))
    assert hypervisor.read_msr(vp, Msr.REFERENCE_TSC) == 1
    hypervisor.write_msr(vp, Msr.REFERENCE_TSC, 1)
    assert len(parent.messages) == 2
    assert vp.partition.registers.reference_tsc == 0
    parent.machine.grant(parent.child, parent.child.privileges | Privilege.ACCESS_PARTITION_REFERENCE_TSC)
    assert hypervisor.read_msr(vp, Msr.REFERENCE_TSC) == 0
    assert len(parent.messages) == 2


def test_what_the_hypervisor_offers_stays_its_own(parent: Parent) -> None:
    """Writing a register that is for reading is #GP, intercept or not; a number too big for a register too."""
    vp, hypervisor = parent.child.vps[0], parent.machine.hypervisor
    parent.install(InterceptType.MSR, READ_WRITE)
    assert hypervisor.read_msr(vp, Msr.VP_INDEX) == 0
    for msr, value in ((Msr.VP_INDEX, 1), (APIC_BASE, 1 << 64)):
        with pytest.raises(GeneralProtection):
            hypervisor.write_msr(vp, msr, value)
    assert not parent.messages


def test_cpuid(parent: Parent) -> None:
    """The message has question and default answer; the parent's registers are what the software sees."""
    vp, hypervisor = parent.child.vps[0], parent.machine.hypervisor
    default = hypervisor.cpuid(vp, 0x40000003, 7)
    parent.install(InterceptType.CPUID, EXECUTE, 0x40000003)
    parent.script = lambda: parent.answer((RAX, 1), (RBX, 2), (RCX, 3), (RDX, 0x1_0000_0004))
    assert hypervisor.cpuid(vp, 0x40000003, 7) == (1, 2, 3, 4)
    kind, header, body = parent.messages[-1]
    message = CpuidIntercept.decode(body)
    assert (kind, header.access_type) == (MessageType.CPUID_INTERCEPT, InterceptAccess.EXECUTE)
    assert (message.rax, message.rcx) == (0x40000003, 7)
    assert (message.default_rax, message.default_rbx, message.default_rcx, message.default_rdx) == default
    assert hypervisor.cpuid(vp, 0x40000001)[0] == 0x31237648, "other leaves are as ever"


@pytest.mark.parametrize(("size", "code"), [(1, b"\xec"), (2, b"\x66\xed"), (4, b"\xed")])
def test_a_port_is_read(parent: Parent, size: int, code: bytes) -> None:
    """IN by DX: size, machine code and length are the instruction's; only so many bytes of RAX are the answer."""
    parent.install(InterceptType.IO_PORT, READ_WRITE, 0x1234)
    parent.script = lambda: parent.answer((RAX, 0x8877665544332211))
    value = parent.machine.hypervisor.port_in(parent.child.vps[0], 0x1234, size)
    assert value == 0x44332211 & (1 << 8 * size) - 1
    kind, header, body = parent.messages[-1]
    message = IoPortIntercept.decode(body)
    assert (kind, header.access_type, header.instruction_length) == (
        *(MessageType.IO_PORT_INTERCEPT, InterceptAccess.READ),
        len(code),
    )
    assert (message.port, message.access_info & 7) == (0x1234, size)
    assert message.instruction_bytes[: message.instruction_byte_count] == code


class Sink:
    """The worker's own devices."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, int]] = []

    def port_read(self, vp_index: int, port: int, size: int) -> int:
        return 0x5A

    def port_write(self, vp_index: int, port: int, size: int, value: int) -> None:
        self.writes.append((port, value))


def test_an_intercept_comes_before_the_workers_devices(parent: Parent) -> None:
    """Ports without one go to the sink as ever, and so does this one when the intercept is gone."""
    vp, hypervisor = parent.child.vps[0], parent.machine.hypervisor
    sink = parent.child.intercepts = Sink()
    parent.install(InterceptType.IO_PORT, READ_WRITE, 0x3F8)
    parent.script = parent.answer
    hypervisor.port_out(vp, 0x3F8, 1, 0x141)
    hypervisor.port_out(vp, 0x3F9, 1, 2)
    assert hypervisor.port_in(vp, 0x3F9, 1) == 0x5A
    assert sink.writes == [(0x3F9, 2)]
    _, header, body = parent.messages[-1]
    assert header.access_type == InterceptAccess.WRITE
    assert IoPortIntercept.decode(body).rax == 0x41
    parent.install(InterceptType.IO_PORT, 0, 0x3F8)
    hypervisor.port_out(vp, 0x3F8, 1, 3)
    assert sink.writes == [(0x3F9, 2), (0x3F8, 3)]


def test_resumed_where_it_stopped_the_access_is_made_again(parent: Parent) -> None:
    """A parent that removes its intercept and resumes leaves the access to the hypervisor."""
    parent.child.intercepts = Sink()
    parent.install(InterceptType.IO_PORT, READ_WRITE, 0x3F8)

    def let_it() -> None:
        parent.install(InterceptType.IO_PORT, 0, 0x3F8)
        parent.resume()

    parent.script = let_it
    assert parent.machine.hypervisor.port_in(parent.child.vps[0], 0x3F8, 1) == 0x5A
    assert len(parent.messages) == 1


def test_a_parent_that_never_answers_does_not_hang_the_host(parent: Parent) -> None:
    """It resumes and resumes without doing anything; after some tries the processor is given up, as by a triple fault.

    The last message says so.
    """
    parent.install(InterceptType.MSR, READ_WRITE)
    parent.script = parent.resume
    with pytest.raises(VpStopped):
        parent.machine.hypervisor.read_msr(parent.child.vps[0], APIC_BASE)
    assert parent.messages[-1][0] == MessageType.UNRECOVERABLE_EXCEPTION
    assert len(parent.messages) < 50


def test_exceptions(parent: Parent) -> None:
    """#GP and #UD can be seen before the software sees them: passed on, or stepped over."""
    vp, hypervisor = parent.child.vps[0], parent.machine.hypervisor
    parent.install(InterceptType.EXCEPTION, EXECUTE, 13)
    parent.script = lambda: parent.resume((ProcessorRegister.PENDING_INTERRUPTION, GP))
    with pytest.raises(GeneralProtection):
        hypervisor.write_msr(vp, Msr.VP_INDEX, 1)
    kind, _, body = parent.messages[-1]
    assert (kind, ExceptionIntercept.decode(body).vector) == (MessageType.EXCEPTION_INTERCEPT, 13)
    parent.script = parent.answer
    hypervisor.write_msr(vp, Msr.VP_INDEX, 1)
    hypervisor.write_msr(vp, Msr.GUEST_OS_ID, 0)
    with pytest.raises(InvalidOpcode):
        hypervisor.hypercall(vp, 0x5D, 0, 0)
    parent.install(InterceptType.EXCEPTION, EXECUTE, 6)
    parent.script = lambda: parent.answer((RAX, 0x12))
    assert hypervisor.hypercall(vp, 0x5D, 0, 0) == 0x12
    assert ExceptionIntercept.decode(parent.messages[-1][2]).vector == 6


def test_one_buffer_a_processor(parent: Parent) -> None:
    """A parent that resumes before it has read loses the older message; a second processor has its own."""
    child, hypervisor = parent.child, parent.machine.hypervisor
    parent.machine.must(CallCode.CREATE_VP, hypercaller.layouts.CreateVpInput(child.id, 1))
    parent.install(InterceptType.MSR, READ_WRITE)
    hypervisor.root_processors[0].set_interrupt_handler(None)
    for msr, index in ((0x10, 0), (0x20, 0), (0x30, 0), (0x40, 1)):
        with pytest.raises(Intercepted):
            hypervisor.read_msr(child.vps[index], msr)
        child.vps[index].clear_intercept_suspend()
    hypervisor.root_processors[0].set_interrupt_handler(parent.take)
    assert [MsrIntercept.decode(body).msr for _, _, body in parent.messages] == [0x10, 0x30, 0x40]


# --- a parent that answers when it likes


def run_guest(parent: Parent, entry: object) -> TaskBackend:
    return TaskBackend(parent.machine.hypervisor, entry)  # type: ignore[arg-type]


async def test_software_waits_for_the_answer(parent: Parent, autojump_clock: MockClock) -> None:
    """In `execute` the processor stands still until its parent has answered, an hour later if need be."""
    seen: list[object] = []

    async def guest(machines: list[Machine]) -> None:
        machine = machines[0]
        seen.append(await machine.execute(lambda: machine.read_msr(APIC_BASE)))
        with pytest.raises(GeneralProtection):
            await machine.execute(lambda: machine.read_msr(APIC_BASE))
        seen.append(await machine.execute(lambda: machine.port_in(0x80, 1)))
        await machine.execute(lambda: machine.port_out(0x80, 1, 7))
        seen.append(await machine.execute(lambda: machine.cpuid(1)))
        seen.append(machine.read_msr(Msr.VP_INDEX))

    child = parent.child
    parent.install(InterceptType.MSR, READ_WRITE)
    parent.install(InterceptType.IO_PORT, READ_WRITE, 0x80)
    parent.install(InterceptType.CPUID, EXECUTE, 1)
    answers = [
        lambda: parent.answer((RAX, 9), (RDX, 0)),
        lambda: parent.resume((ProcessorRegister.PENDING_INTERRUPTION, GP)),
        lambda: parent.answer((RAX, 3)),
        parent.answer,
        lambda: parent.answer((RAX, 1), (RBX, 2), (RCX, 3), (RDX, 4)),
    ]
    async with trio.open_nursery() as nursery:
        await nursery.start(run_guest(parent, guest).run, child)
        for number, answer in enumerate(answers):
            await trio.sleep(3600)
            assert len(parent.messages) == number + 1
            assert child.vps[0].intercept_suspend
            answer()
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert seen == [9, 3, (1, 2, 3, 4), 0]


async def test_an_access_by_itself_cannot_wait(parent: Parent, autojump_clock: MockClock) -> None:
    """Software that does not ask for the wait stops for good; nothing else happens to it."""
    parent.install(InterceptType.MSR, READ_WRITE)

    async def guest(machines: list[Machine]) -> None:
        machines[0].read_msr(APIC_BASE)

    backend = run_guest(parent, guest)
    with trio.move_on_after(10):
        await backend.run(parent.child)
    assert backend.failure is None
    assert [kind for kind, _, _ in parent.messages] == [MessageType.MSR_INTERCEPT]


async def test_power_off_while_waiting(parent: Parent, autojump_clock: MockClock) -> None:
    """A guest whose parent never answers ends with its power."""
    parent.install(InterceptType.MSR, READ_WRITE)

    async def guest(machines: list[Machine]) -> None:
        machine = machines[0]
        await machine.execute(lambda: machine.read_msr(APIC_BASE))

    with trio.fail_after(100), trio.move_on_after(10):
        await run_guest(parent, guest).run(parent.child)
    assert isinstance(parent.child.vps[0].runner, TaskVp | None)


# --- registers that make no sense together


@pytest.mark.parametrize(
    ("registers", "sound"),
    [
        (((ProcessorRegister.RFLAGS, 2),), True),
        (((ProcessorRegister.RFLAGS, 0),), False),
        (((ProcessorRegister.RFLAGS, 0x8002),), False),
        (((ProcessorRegister.CR0, 1 << 31),), False),
        (((ProcessorRegister.CR0, 1 << 31 | 1),), True),
        (((ProcessorRegister.CR0, 1 << 29),), False),
        (((ProcessorRegister.CR0, 1 << 32),), False),
        (((ProcessorRegister.EFER, 1 << 10),), False),
        (((ProcessorRegister.EFER, 1 << 8),), True),
        (((ProcessorRegister.EFER, 1 << 8 | 1 << 10), (ProcessorRegister.CR0, 1 << 31 | 1)), False),
        (
            (
                (ProcessorRegister.EFER, 1 << 8 | 1 << 10),
                (ProcessorRegister.CR0, 1 << 31 | 1),
                (ProcessorRegister.CR4, 1 << 5),
            ),
            True,
        ),
        (((ProcessorRegister.PENDING_INTERRUPTION, pending_exception(32)),), False),
        (((ProcessorRegister.PENDING_INTERRUPTION, PENDING | 1 << 1 | 0x40 << 16),), False),
        (((ProcessorRegister.PENDING_INTERRUPTION, PENDING | PendingType.NMI << 1 | 3 << 16),), False),
        (((ProcessorRegister.PENDING_INTERRUPTION, PENDING | PendingType.INTERRUPT << 1 | 15 << 16),), False),
        (((ProcessorRegister.PENDING_INTERRUPTION, PENDING | PendingType.INTERRUPT << 1 | 16 << 16),), True),
    ],
)
def test_values_that_are_bad_in_context(parent: Parent, registers: tuple[tuple[int, int], ...], sound: bool) -> None:
    """Setting them succeeds; resuming does too, but the processor stays where it is and its parent hears of it."""
    vp = parent.child.vps[0]
    vp.set_explicit_suspend(True)
    assert parent.set(*registers) is HvStatus.SUCCESS
    assert not parent.messages
    assert parent.set((0, 0)) is HvStatus.SUCCESS
    assert vp.suspended is not sound
    assert not vp.explicit_suspend
    assert [kind for kind, _, _ in parent.messages] == ([] if sound else [MessageType.INVALID_VP_REGISTER_VALUE])


def test_a_bad_value_can_be_put_right(parent: Parent) -> None:
    """It comes to light when the last suspension is cleared, whichever that is; then the parent may try again."""
    vp = parent.child.vps[0]
    vp.set_explicit_suspend(True)
    vp.stop_on_intercept()
    parent.set((ProcessorRegister.RFLAGS, 0), (0, 0))
    assert not parent.messages
    parent.set((INTERCEPT_SUSPEND, 0))
    assert len(parent.messages) == 1
    assert vp.intercept_suspend
    parent.set((ProcessorRegister.RFLAGS, 2), (INTERCEPT_SUSPEND, 0))
    assert not vp.suspended
    assert len(parent.messages) == 1
