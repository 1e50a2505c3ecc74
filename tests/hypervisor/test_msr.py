"""Synthetic MSRs and CPUID: what is there, who may touch it, and what a wrong touch does."""

from __future__ import annotations

import struct

import pytest

from hypervisor.cpuid import CpuidFeatures
from hypervisor.machine import GeneralProtection, VpStopped
from hypervisor.msr import Msr
from hypervisor.msr_table import TABLE, reset_partition_registers
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE
from hypervisor.privileges import CHILD_PRIVILEGES, Privilege
from hypervisor.vp import VirtualProcessor
from tests.doubles.bare_hypervisor import BareHypervisor, RecordingRunner


@pytest.fixture
def host() -> BareHypervisor:
    return BareHypervisor(vps=3)


@pytest.fixture
def vp(host: BareHypervisor) -> VirtualProcessor:
    return host.child.vps[0]


READ_ONLY = (*(Msr.VP_INDEX, Msr.VP_RUNTIME, Msr.TIME_REF_COUNT, Msr.TSC_FREQUENCY, Msr.APIC_FREQUENCY, Msr.SVERSION),)
ABSENT = (0x3FFFFFFF, 0x40000004, 0x400000C1, 0x400000F1, 0x40000106, 0x40001090)


@pytest.mark.parametrize("msr", READ_ONLY)
def test_a_read_only_register_faults_when_written(host: BareHypervisor, vp: VirtualProcessor, msr: int) -> None:
    host.read_msr(vp, msr)
    with pytest.raises(GeneralProtection):
        host.write_msr(vp, msr, 0)


@pytest.mark.parametrize("msr", ABSENT)
def test_a_register_that_is_not_offered_faults(host: BareHypervisor, vp: VirtualProcessor, msr: int) -> None:
    """Even with every privilege, as the debugging registers show."""
    host.child.privileges = -1
    with pytest.raises(GeneralProtection):
        host.read_msr(vp, msr)
    with pytest.raises(GeneralProtection):
        host.write_msr(vp, msr, 1)
    assert host.trace.warnings[host.child.id, "write_msr_refused"] == 1


@pytest.mark.parametrize("msr", sorted(TABLE))
def test_without_its_privilege_a_register_faults(host: BareHypervisor, vp: VirtualProcessor, msr: int) -> None:
    """Crash registers and the VP assist page have none: a feature bit announces them, and Linux just writes it."""
    host.child.privileges = 0
    row = TABLE[msr]
    if not row.privilege:
        assert msr == Msr.VP_ASSIST_PAGE or Msr.CRASH_P0 <= msr <= Msr.CRASH_CTL
        return
    for privileges, refused in ((0, True), (-1 & ~row.privilege, True), (row.privilege, False)):
        host.child.privileges = privileges
        if row.read is None:
            continue
        if refused:
            with pytest.raises(GeneralProtection):
                host.read_msr(vp, msr)
        else:
            host.read_msr(vp, msr)


def test_reset_values(host: BareHypervisor) -> None:
    vp = host.child.vps[2]
    expected = {Msr.VP_INDEX: 2, Msr.SVERSION: 1, Msr.TSC_FREQUENCY: 10**9, Msr.APIC_FREQUENCY: 10**9}
    expected |= {Msr.SINT0 + n: 0x10000 for n in range(16)}
    host.child.privileges = -1
    for msr, row in TABLE.items():
        if row.read is not None and msr not in (Msr.CRASH_CTL, Msr.TIME_REF_COUNT):
            assert host.read_msr(vp, msr) == expected.get(msr, 0), Msr(msr).name


def test_the_hypercall_page_needs_a_guest_os_id(host: BareHypervisor, vp: VirtualProcessor) -> None:
    """Without one the enable bit stays clear, and that is no fault."""
    host.write_msr(vp, Msr.HYPERCALL, 5 << PAGE_SHIFT | 1)
    assert host.read_msr(vp, Msr.HYPERCALL) == 5 << PAGE_SHIFT
    host.child.registers.hypercall_code = bytes.fromhex("e6e0c3")
    host.write_msr(vp, Msr.GUEST_OS_ID, 0x8100_0006_0C75_0000)
    host.write_msr(vp, Msr.HYPERCALL, 5 << PAGE_SHIFT | 1)
    assert host.read_msr(vp, Msr.HYPERCALL) == 5 << PAGE_SHIFT | 1
    assert host.child.memory.read(5 << PAGE_SHIFT, 4) == bytes.fromhex("e6e0c300")
    host.write_msr(vp, Msr.HYPERCALL, 6 << PAGE_SHIFT | 1)
    assert host.child.memory.read(5 << PAGE_SHIFT, 8192) == bytes(4096) + bytes.fromhex("e6e0c3") + bytes(4093)
    host.write_msr(vp, Msr.GUEST_OS_ID, 0)
    assert host.read_msr(vp, Msr.HYPERCALL) == 6 << PAGE_SHIFT, "an ID of zero disables the page"
    assert host.child.memory.read(6 << PAGE_SHIFT, PAGE_SIZE) == bytes(PAGE_SIZE)


@pytest.mark.parametrize("gpn", [64, 1 << 40, (1 << 52) - 1])
def test_a_hypercall_page_past_the_end_of_memory_faults(host: BareHypervisor, vp: VirtualProcessor, gpn: int) -> None:
    host.write_msr(vp, Msr.GUEST_OS_ID, 1)
    with pytest.raises(GeneralProtection):
        host.write_msr(vp, Msr.HYPERCALL, gpn << PAGE_SHIFT | 1)
    assert host.read_msr(vp, Msr.HYPERCALL) == 0


def test_a_locked_hypercall_register_keeps_its_value_until_reset(host: BareHypervisor, vp: VirtualProcessor) -> None:
    host.write_msr(vp, Msr.GUEST_OS_ID, 1)
    host.write_msr(vp, Msr.HYPERCALL, 5 << PAGE_SHIFT | 3)
    with pytest.raises(GeneralProtection):
        host.write_msr(vp, Msr.HYPERCALL, 0)
    assert host.read_msr(vp, Msr.HYPERCALL) == 5 << PAGE_SHIFT | 3
    reset_partition_registers(host.child)
    host.write_msr(vp, Msr.HYPERCALL, 0)


@pytest.mark.parametrize("msr", [Msr.SIMP, Msr.SIEFP, Msr.VP_ASSIST_PAGE, Msr.REFERENCE_TSC])
def test_other_pages_past_the_end_are_accepted(host: BareHypervisor, vp: VirtualProcessor, msr: int) -> None:
    host.write_msr(vp, msr, (1 << 52) - 1 << PAGE_SHIFT | 1)
    assert host.read_msr(vp, msr) == (1 << 52) - 1 << PAGE_SHIFT | 1


def test_the_assist_page_covers_the_guests_and_gives_it_back(host: BareHypervisor, vp: VirtualProcessor) -> None:
    host.child.memory.write(7 << PAGE_SHIFT, b"guest")
    host.write_msr(vp, Msr.VP_ASSIST_PAGE, 7 << PAGE_SHIFT | 1)
    assert host.child.memory.read(7 << PAGE_SHIFT, 5) == bytes(5)
    host.write_msr(vp, Msr.VP_ASSIST_PAGE, 0)
    assert host.child.memory.read(7 << PAGE_SHIFT, 5) == b"guest"


def test_apic_registers(host: BareHypervisor, vp: VirtualProcessor) -> None:
    with pytest.raises(GeneralProtection):
        host.read_msr(vp, Msr.EOI)
    with pytest.raises(GeneralProtection):
        host.write_msr(vp, Msr.EOI, 1 << 32)
    host.write_msr(vp, Msr.EOI, 0)
    with pytest.raises(GeneralProtection):
        host.write_msr(vp, Msr.TPR, 0x100)
    host.write_msr(vp, Msr.TPR, 0x20)
    assert host.read_msr(vp, Msr.TPR) == 0x20
    with pytest.raises(GeneralProtection):
        host.write_msr(vp, Msr.ICR, 0x0F)


@pytest.mark.parametrize(
    ("command", "reached"),
    [
        (1 << 56 | 0x41, {1}),
        (9 << 56 | 0x41, set()),
        (1 << 18 | 0x41, {0}),
        (2 << 18 | 0x41, {0, 1, 2}),
        (3 << 18 | 0x41, {1, 2}),
        (1 << 56 | 4 << 8 | 0x41, set()),
    ],
)
def test_an_interprocessor_interrupt_reaches_its_own_partition_only(
    host: BareHypervisor, vp: VirtualProcessor, command: int, reached: set[int]
) -> None:
    runners = {index: RecordingRunner() for index in host.child.vps}
    for index, processor in host.child.vps.items():
        processor.runner = runners[index]
    host.write_msr(vp, Msr.ICR, command)
    assert {index for index, runner in runners.items() if runner.vectors == [0x41]} == reached
    assert not host.root.vps[0].pending


def test_reset_asks_the_parent_and_stops_the_processor(host: BareHypervisor, vp: VirtualProcessor) -> None:
    asked: list[bool] = []
    host.write_msr(vp, Msr.RESET, 1)
    host.child.on_reset = lambda: asked.append(True)
    host.write_msr(vp, Msr.RESET, 2)
    assert not asked
    with pytest.raises(VpStopped):
        host.write_msr(vp, Msr.RESET, 1)
    assert asked == [True]


def test_partition_registers_reset(host: BareHypervisor, vp: VirtualProcessor) -> None:
    host.write_msr(vp, Msr.GUEST_OS_ID, 7)
    host.write_msr(vp, Msr.HYPERCALL, 5 << PAGE_SHIFT | 1)
    host.write_msr(vp, Msr.REFERENCE_TSC, 6 << PAGE_SHIFT | 1)
    host.write_msr(vp, Msr.CRASH_P2, 9)
    reset_partition_registers(host.child)
    for msr in (Msr.GUEST_OS_ID, Msr.HYPERCALL, Msr.REFERENCE_TSC, Msr.CRASH_P2):
        assert host.read_msr(vp, msr) == 0
    assert host.child.memory.read(5 << PAGE_SHIFT, 8192) == bytes(8192)


# --- CPUID


def test_linux_finds_its_hypervisor(host: BareHypervisor, vp: VirtualProcessor) -> None:
    """Hypervisor bit, vendor, leaves, hypercall and VP index registers; no AutoEOI; frequencies; crash registers."""
    assert host.cpuid(vp, 1)[2] >> 31 == 1
    last, *vendor = host.cpuid(vp, 0x40000000)
    assert 0x40000005 <= last <= 0x4000FFFF
    assert struct.pack("<III", *vendor) == b"Microsoft Hv"
    assert host.cpuid(vp, 0x40000001)[0] == 0x31237648
    low, high, _, features = host.cpuid(vp, 0x40000003)
    assert low & 0x60 == 0x60
    assert features & (1 << 8) == 1 << 8
    assert features & (1 << 10) == 1 << 10
    assert not high & int(Privilege.CPU_MANAGEMENT) >> 32, "else Linux takes itself for the root"
    assert host.cpuid(vp, 0x40000004)[0] & (1 << 9)
    assert host.cpuid(vp, 0x40000005)[0] == host.max_vps
    assert host.cpuid(vp, last + 1) == (0, 0, 0, 0)


def test_a_partition_sees_its_own_privileges_as_they_are_now(host: BareHypervisor, vp: VirtualProcessor) -> None:
    host.child.privileges = int(Privilege.POST_MESSAGES) | 1
    assert host.cpuid(vp, 0x40000003)[:2] == (1, 1 << 4)
    assert host.cpuid(host.root.vps[0], 0x40000003)[1] & int(Privilege.CPU_MANAGEMENT) >> 32


def test_a_backend_hides_what_it_cannot_do(host: BareHypervisor, vp: VirtualProcessor) -> None:
    host.child.privileges = CHILD_PRIVILEGES
    host.child.cpuid_features = CpuidFeatures(privileges=~int(Privilege.ACCESS_SYNTHETIC_TIMER_MSRS), features=0)
    low, _, _, features = host.cpuid(vp, 0x40000003)
    assert low == CHILD_PRIVILEGES & ~8 & 0xFFFFFFFF
    assert features == 0


def test_features_of_timers_and_idle_go_with_their_privileges(host: BareHypervisor, vp: VirtualProcessor) -> None:
    """Bits 19 and 23 (direct mode, time-unhalted timer) and 5 (guest idle) are shown to who may use them."""
    timers, idle = int(Privilege.ACCESS_SYNTHETIC_TIMER_MSRS), int(Privilege.ACCESS_GUEST_IDLE_MSR)
    for privileges, bits in ((0, 0), (timers, 1 << 19 | 1 << 23), (idle, 1 << 5)):
        host.child.privileges = privileges
        assert host.cpuid(vp, 0x40000003)[3] & (1 << 19 | 1 << 23 | 1 << 5) == bits


def test_a_register_whose_feature_is_hidden_faults(host: BareHypervisor, vp: VirtualProcessor) -> None:
    """As for KVM guests, which have synthetic timers and no processor of ours that could idle or count run time."""
    host.child.privileges = -1
    host.child.cpuid_features = CpuidFeatures(features=1 << 19)
    host.write_msr(vp, Msr.STIMER0_COUNT, 5)
    for msr in (Msr.GUEST_IDLE, Msr.STIME_UNHALTED_TIMER_CONFIG, Msr.STIME_UNHALTED_TIMER_COUNT):
        with pytest.raises(GeneralProtection):
            host.read_msr(vp, msr)
