"""A processor's own registers by name: which names there are, what may be written, and who keeps them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.backend.base import RegisterFile
from hypervisor.backend.kvm import ioctls
from hypervisor.backend.kvm.backend import KvmVp
from hypervisor.backend.kvm.registers import get_register, put_register
from hypervisor.hypercall import layouts
from hypervisor.hypercall.abi import CallCode
from hypervisor.intercept import InterceptType
from hypervisor.processor_registers import ProcessorRegister, legal_bits
from hypervisor.status import HvError, HvStatus
from hypervisor.vp_registers import Register
from tests.doubles.hypercaller import Machine
from tests.doubles.parent import Parent

Name = ProcessorRegister


@pytest.mark.parametrize("name", [0x10001, 0x10004, 0x20012, 0x3001A, 0x40006, 0x50006, 0x60008, 0x70002, 0x8000F])
def test_names_that_are_none(name: int) -> None:
    """The gaps between the families, and within that of the MSRs."""
    vp = Machine().child().vps[0]
    for access in (lambda: vp.get_register(name), lambda: vp.set_register(name, 0)):
        with pytest.raises(HvError, match="INVALID_PARAMETER"):
            access()


@pytest.mark.parametrize(
    ("name", "value", "legal"),
    [
        (Name.CR8, 0xF, True),
        (Name.CR8, 0x10, False),
        (Name.RAX, (1 << 64) - 1, True),
        (Name.RAX, 1 << 64, False),
        (Name.CS, (1 << 128) - 1, True),
        (Name.TSC, 0, False),
        (Name.INITIAL_APIC_ID, 0, False),
        (Register.HYPERVISOR_VERSION, 0, False),
        (Register.PRIVILEGES_AND_FEATURES_INFO, 0, False),
    ],
)
def test_what_may_be_written(name: int, value: int, legal: bool) -> None:
    """Not what is for reading, and not bits that the register has not got."""
    vp = Machine().child().vps[0]
    if legal:
        vp.set_register(name, value)
        assert vp.get_register(name) == value
    else:
        with pytest.raises(HvError, match="INVALID_PARAMETER"):
            vp.set_register(name, value)


def test_registers_that_are_read_from_elsewhere() -> None:
    """The clock, the APIC ID, and CPUID leaves as 128 bits with EAX lowest."""
    machine = Machine()
    child = machine.child()
    machine.must(CallCode.CREATE_VP, layouts.CreateVpInput(child.id, 5))
    machine.now = 12_345
    vp = child.vps[5]
    assert vp.get_register(Name.TSC) == machine.hypervisor.read_tsc() > 0
    assert vp.get_register(Name.INITIAL_APIC_ID) == 5
    for name, leaf in ((0x100, 2), (0x200, 3), (0x201, 4), (0x202, 5), (0x203, 6)):
        expected = machine.hypervisor.cpuid(vp, 0x40000000 + leaf)
        assert struct.unpack("<4I", vp.get_register(name).to_bytes(16, "little")) == expected


@pytest.mark.parametrize(
    ("vtl", "status"),
    [(0, HvStatus.SUCCESS), (0x10, HvStatus.SUCCESS), (0x11, HvStatus.INVALID_PARAMETER), (0x01, HvStatus.SUCCESS)],
)
def test_the_trust_level_of_the_modern_layout(vtl: int, status: HvStatus) -> None:
    """Level 0 is the only one; without the bit that says it is meant, the byte is padding as in 2010."""
    machine = Machine()
    request = layouts.VpInput(machine.child().id, 0, vtl)
    for code, elements in (
        (CallCode.GET_VP_REGISTERS, struct.pack("<I", Name.RAX)),
        (CallCode.SET_VP_REGISTERS, layouts.RegisterAssociation(Name.RAX, bytes(16)).encode()),
    ):
        assert machine.call(code, request, count=1, elements=elements).status is status


# --- processors with registers of their own


class FakeVcpu:
    """What is asked of a vCPU, with both structures of KVM as bytes."""

    def __init__(self) -> None:
        self.general = list(range(100, 118))
        self.special = bytearray(ioctls.SREGS_SIZE)
        self.kicks = 0
        self.paused = True

    def registers(self) -> list[int]:
        return list(self.general)

    def set_registers(self, registers: list[int]) -> None:
        self.general = registers

    def special_registers(self) -> bytearray:
        return bytearray(self.special)

    def set_special_registers(self, special: bytearray) -> None:
        self.special = special

    @contextmanager
    def outside(self) -> Iterator[None]:
        self.kicks += 1
        yield

    def pause(self, paused: bool) -> None:
        self.paused = paused


def vcpu_() -> Any:
    return FakeVcpu()


REST = ("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags")
GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *REST)
KVM_ORDER = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *REST)


def test_general_registers_in_kvms_order() -> None:
    """KVM's structure and the names count them in another order."""
    vcpu = vcpu_()
    for position, name in enumerate(GENERAL):
        assert get_register(vcpu, Name.RAX + position) == 100 + KVM_ORDER.index(name)
        assert put_register(vcpu, Name.RAX + position, position)
    assert vcpu.general == [GENERAL.index(name) for name in KVM_ORDER]


SEGMENT = st.builds(
    lambda base, limit, selector, bits: base | limit << 64 | selector << 96 | (bits & 0xF0FF) << 112,
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
)


@given(st.lists(SEGMENT, min_size=8, max_size=8), st.lists(st.integers(0, (1 << 64) - 1), min_size=6, max_size=6))
def test_special_registers_come_back_as_written(segments: list[int], control: list[int]) -> None:
    """Each of them, whatever the others are; the reserved attribute bits are lost."""
    vcpu = vcpu_()
    values = dict(zip(range(Name.ES, Name.TR + 1), segments, strict=True))
    names = (Name.CR0, Name.CR2, Name.CR3, Name.CR4, Name.CR8, Name.EFER)
    values |= dict(zip(names, control, strict=True))
    values |= {Name.IDTR: 0xFFF << 48 | 0x1234 << 64, Name.GDTR: 0x27 << 48 | 0x5678 << 64}
    for name, value in values.items():
        assert put_register(vcpu, name, value)
    assert {name: get_register(vcpu, name) for name in values} == values


def test_where_kvm_has_a_segment() -> None:
    """CS is the first of KVM's, and a long-mode code segment's bits are where the processor's manual has them."""
    vcpu = vcpu_()
    put_register(vcpu, Name.CS, 0xA09B << 112 | 0x10 << 96 | 0xFFFFFFFF << 64)
    fields = ioctls.SEGMENT.unpack_from(vcpu.special)
    base, limit, selector, kind, present, dpl, big, system, long, granular, available, unusable, _ = fields
    assert (base, limit, selector, kind) == (0, 0xFFFFFFFF, 0x10, 0xB)
    assert (present, dpl, big, system, long, granular, available, unusable) == (1, 0, 0, 1, 1, 1, 0, 0)


def test_registers_that_stay_with_the_hypervisor() -> None:
    vcpu = vcpu_()
    assert get_register(vcpu, 0x30000) is None
    assert not put_register(vcpu, Name.PAT, 6)
    assert vcpu.kicks == 0


def test_a_hypercall_reaches_the_vcpu() -> None:
    """Registers of a processor on KVM are KVM's, those that it does not give the hypervisor's copy."""
    machine = Machine()
    vp = machine.child().vps[0]
    vcpu = vcpu_()
    runner: Any = KvmVp(vcpu, vcpu)
    assert isinstance(runner, RegisterFile)
    vp.runner = runner
    vp.set_register(Name.RCX, 77)
    assert vcpu.general[ioctls.RCX] == 77
    assert vp.get_register(Name.RIP) == 100 + 16
    vp.set_register(Name.PAT, 6)
    assert vp.get_register(Name.PAT) == 6


def test_what_answers_an_intercept_does_not_go_into_kvm() -> None:
    """KVM steps over the instruction and takes the value by itself when the vCPU runs again."""
    machine = Machine()
    child = machine.child()
    child.vps[0].set_explicit_suspend(False)
    parent = Parent(machine, child)
    vcpu = vcpu_()
    runner: Any = KvmVp(vcpu, vcpu)
    child.vps[0].runner = runner
    before = list(vcpu.general)
    parent.install(InterceptType.MSR, 3)
    parent.script = lambda: parent.answer((Name.RAX, 5), (Name.RDX, 1), (Name.RSI, 9))
    assert machine.hypervisor.read_msr(child.vps[0], 0x1B) == 1 << 32 | 5
    before[ioctls.RSI] = 9
    assert vcpu.general == before
    assert parent.messages[-1][1].rip == 100 + 16


def test_a_late_answer_is_given_before_the_vcpu_runs() -> None:
    """And not at all where the access hits an intercept again."""
    vcpu = vcpu_()
    runner = KvmVp(vcpu, vcpu)
    runner.suspended(True)
    said: list[bool] = []
    runner.unfinished = lambda: said.append(vcpu.paused)
    runner.suspended(False)
    assert said == [True]
    assert not vcpu.paused
    runner.unfinished = lambda: said.append(vcpu.paused)
    runner.suspended(True)
    assert vcpu.paused
    runner.suspended(False)
    assert said == [True]


@given(st.integers(0, 0xFFFFF))
def test_every_name_has_bits_or_is_none(name: int) -> None:
    """No name is half known: what can be read can be said how wide it is."""
    assert legal_bits(name).bit_length() in (0, 4, 64, 128)
