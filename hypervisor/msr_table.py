"""What reading and writing each synthetic MSR does, and the privilege it takes: one row a register. Hypervisor.

A register that is not in the table, not in the partition's privileges, or not to be read or written that way, raises
#GP. Reserved bits are kept as written unless the row says otherwise. Debugging registers are not offered, so they have
no row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from hypervisor.cpuid import GUEST_IDLE_AVAILABLE, UNHALTED_TIMER_AVAILABLE
from hypervisor.crash import CRASH_CAPABILITIES, report_crash
from hypervisor.machine import GeneralProtection, VpStopped
from hypervisor.msr import HYPERCALL_LOCKED, PAGE_ENABLE, RESET_PARTITION, SYNIC_VERSION, Msr
from hypervisor.overlay import OverlayPage
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE
from hypervisor.privileges import Privilege
from hypervisor.reference_time import tsc_page, tsc_scale
from hypervisor.statistics import Counters, StatsRegister, nothing, of_partition, of_vp
from hypervisor.synic.messages import LEAST_VECTOR, Sint
from hypervisor.synic.timer_registers import TIMER_COUNT
from hypervisor.trace import Layer

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.partition import Partition
    from hypervisor.vp import VirtualProcessor

Reader = Callable[["VirtualProcessor"], int]
Writer = Callable[["VirtualProcessor", int], None]


class Row(msgspec.Struct, frozen=True):
    """One synthetic MSR."""

    privilege: int
    """Bits that the partition needs."""
    read: Reader | None
    """None: reading it is #GP."""
    write: Writer | None
    """None: writing it is #GP."""
    feature: int = 0
    """The bit of CPUID 0x40000003 EDX that has to be shown, where the backend decides whether there is one."""


def read_msr(hypervisor: Hypervisor, vp: VirtualProcessor, msr: int) -> int:
    """RDMSR of a synthetic register by the software on `vp`. Raises `GeneralProtection`."""
    row = TABLE.get(msr)
    if row is None or row.read is None or _withheld(row, vp.partition):
        raise _refused(hypervisor, vp, "read_msr_refused", msr, "RDMSR")
    value = row.read(vp)
    trace = hypervisor.trace
    if trace.on:
        trace.emit(Layer.MSR, "read_msr", vp.partition.id, words=_name(msr), vp=vp.index, msr=msr, value=value)
    return value


def write_msr(hypervisor: Hypervisor, vp: VirtualProcessor, msr: int, value: int) -> None:
    """WRMSR of 64 bits by the software on `vp`. Raises `GeneralProtection`, and `VpStopped` where it does not go on."""
    row = TABLE.get(msr)
    # A model guest can say numbers that no register holds; kept, they would be met where nobody expects them.
    if row is None or row.write is None or _withheld(row, vp.partition) or value >> 64:
        raise _refused(hypervisor, vp, "write_msr_refused", msr, "WRMSR")
    trace = hypervisor.trace
    if trace.on:
        trace.emit(Layer.MSR, "write_msr", vp.partition.id, words=_name(msr), vp=vp.index, msr=msr, value=value)
    try:
        row.write(vp, value)
    except GeneralProtection:
        raise _refused(hypervisor, vp, "write_msr_refused", msr, f"WRMSR of {value:#x} to") from None


def _withheld(row: Row, partition: Partition) -> int:
    return row.privilege & ~partition.privileges or row.feature & ~partition.cpuid_features.features


def reset_partition_registers(partition: Partition) -> None:
    """What a reset does to the partition-wide registers; the virtual processors reset themselves."""
    registers = partition.registers
    for page in (registers.hypercall_page, registers.tsc_page):
        partition.overlays.remove(page)
    partition.guest_os_id = 0
    partition.hypercall_msr = 0
    partition.crash = None
    for register in registers.statistics.values():
        register.remove(partition)
    registers.statistics.clear()
    registers.reference_tsc = 0
    registers.tsc_invariant = 0
    registers.crash_parameters[:] = [0] * 5
    partition.reference_time.restart()


def refresh_tsc_page(partition: Partition) -> None:
    """Write the reference TSC page anew: on its enabling, and whenever reference time and TSC went apart."""
    registers = partition.registers
    if not registers.reference_tsc & PAGE_ENABLE:
        return
    scale = tsc_scale(registers.tsc_frequency)
    read_tsc = registers.read_tsc or partition.hypervisor.read_tsc
    offset = partition.reference_time.now() - (read_tsc() * scale >> 64)
    registers.tsc_sequence = registers.tsc_sequence % 0xFFFFFFFE + 1
    page = registers.tsc_page
    content = tsc_page(registers.tsc_sequence, scale, offset)
    page.words[0] = 0  # invalid while the rest changes
    page.view[4 : len(content)] = content[4:]
    page.words[0] = registers.tsc_sequence


def _refused(hypervisor: Hypervisor, vp: VirtualProcessor, event: str, msr: int, what: str) -> GeneralProtection:
    words = f"{what} {_name(msr)}"
    hypervisor.trace.warn(Layer.MSR, event, vp.partition.id, words, vp=vp.index, msr=msr)
    return GeneralProtection(words)


def _name(msr: int) -> str:
    try:
        return Msr(msr).name
    except ValueError:
        return f"MSR {msr:#x}"


# --- handlers


def _write_guest_os_id(vp: VirtualProcessor, value: int) -> None:
    partition = vp.partition
    partition.guest_os_id = value
    if not value:
        # An operating system that leaves takes its hypercall page with it.
        partition.hypercall_msr &= ~PAGE_ENABLE
        partition.overlays.remove(partition.registers.hypercall_page)


def _write_hypercall(vp: VirtualProcessor, value: int) -> None:
    partition = vp.partition
    if partition.hypercall_msr & HYPERCALL_LOCKED:
        raise GeneralProtection("the hypercall MSR is locked")
    page = partition.registers.hypercall_page
    gpn = value >> PAGE_SHIFT
    if value & PAGE_ENABLE and gpn << PAGE_SHIFT >= partition.memory.end:
        raise GeneralProtection("hypercall page beyond the GPA space")
    if not partition.guest_os_id:
        value &= ~PAGE_ENABLE
    partition.hypercall_msr = value
    if value & PAGE_ENABLE:
        page.view[:] = partition.registers.hypercall_code.ljust(PAGE_SIZE, b"\0")
        partition.overlays.put(page, gpn)
    else:
        partition.overlays.remove(page)


def _write_reset(vp: VirtualProcessor, value: int) -> None:
    if not value & RESET_PARTITION:
        return
    reset = vp.partition.on_reset
    if reset is not None:
        reset()
        # The processor that asked does not see another instruction of the old system.
        raise VpStopped("the partition is being reset")


def _write_reference_tsc(vp: VirtualProcessor, value: int) -> None:
    partition = vp.partition
    registers = partition.registers
    registers.reference_tsc = value
    _place(vp, registers.tsc_page, value)
    refresh_tsc_page(partition)


def _write_tsc_invariant(vp: VirtualProcessor, value: int) -> None:
    if value & ~1:
        raise GeneralProtection("reserved bits")
    vp.partition.registers.tsc_invariant = value


def _write_eoi(vp: VirtualProcessor, value: int) -> None:
    if value >> 32:
        raise GeneralProtection("reserved bits")
    vp.synic.deliver_waiting()


def _write_icr(vp: VirtualProcessor, value: int) -> None:
    """Interprocessor interrupt, ICR high and low in one; other kinds than fixed and lowest priority do nothing."""
    vector = value & 0xFF
    if vector < LEAST_VECTOR:
        raise GeneralProtection("bad vector")
    vp.icr = value
    if value >> 8 & 7 > 1:
        return
    vps = vp.partition.vps
    match value >> 18 & 3:
        case 0:
            target = vps.get(value >> 56)
            targets = [target] if target is not None else []
        case 1:
            targets = [vp]
        case 2:
            targets = list(vps.values())
        case _:
            targets = [other for other in vps.values() if other is not vp]
    for target in targets:
        target.raise_interrupt(vector)


def _write_tpr(vp: VirtualProcessor, value: int) -> None:
    if value >> 8:
        raise GeneralProtection("reserved bits")
    vp.tpr = value


def _write_vp_assist(vp: VirtualProcessor, value: int) -> None:
    vp.vp_assist = value
    vp.assist_page.words[0] = 0  # no interrupt that was taken before is told of on a page that comes after it
    _place(vp, vp.assist_page, value)


def _write_sint(index: int) -> Writer:
    def write(vp: VirtualProcessor, value: int) -> None:
        if value & Sint.VECTOR < LEAST_VECTOR and not value & Sint.MASKED:
            raise GeneralProtection("bad vector")
        vp.synic.sints[index] = value

    return write


def _read_sint(index: int) -> Reader:
    return lambda vp: vp.synic.sints[index]


def _read_timer(index: int, field: str) -> Reader:
    return lambda vp: getattr(vp.timers.state.timers[index], field) if vp.has_timers else 0


def _write_timer_config(index: int) -> Writer:
    return lambda vp, value: vp.timers.write_config(index, value)


def _write_timer_count(index: int) -> Writer:
    return lambda vp, value: vp.timers.write_count(index, value)


def _read_stats(msr: int, per_vp: bool) -> Reader:
    def read(vp: VirtualProcessor) -> int:
        kept = vp.statistics if per_vp else vp.partition.registers.statistics
        return kept[msr].value if msr in kept else 0

    return read


def _write_stats(msr: int, per_vp: bool, counters: Callable[[VirtualProcessor], Callable[[], Counters]]) -> Writer:
    def write(vp: VirtualProcessor, value: int) -> None:
        kept = vp.statistics if per_vp else vp.partition.registers.statistics
        register = kept.get(msr)
        if register is None:
            register = kept[msr] = StatsRegister()
        register.write(vp.partition, value, counters(vp))

    return write


def _stats(msr: int, per_vp: bool, counters: Callable[[VirtualProcessor], Callable[[], Counters]]) -> Row:
    return Row(int(Privilege.ACCESS_STATS_MSR), _read_stats(msr, per_vp), _write_stats(msr, per_vp, counters))


def _write_crash_parameter(index: int) -> Writer:
    def write(vp: VirtualProcessor, value: int) -> None:
        vp.partition.registers.crash_parameters[index] = value

    return write


def _read_crash_parameter(index: int) -> Reader:
    return lambda vp: vp.partition.registers.crash_parameters[index]


def _place(vp: VirtualProcessor, page: OverlayPage, value: int) -> None:
    overlays = vp.partition.overlays
    if value & PAGE_ENABLE:
        overlays.put(page, value >> PAGE_SHIFT)
    else:
        overlays.remove(page)


# --- the table

_SYNIC = int(Privilege.ACCESS_SYNIC_MSRS)
_APIC = int(Privilege.ACCESS_APIC_MSRS)
_HYPERCALL = int(Privilege.ACCESS_HYPERCALL_MSRS)
_TIMERS = int(Privilege.ACCESS_SYNTHETIC_TIMER_MSRS)
_FREQUENCY = int(Privilege.ACCESS_FREQUENCY_MSRS)
ACCESS_TSC_INVARIANT = 1 << 15
"""Privilege for TSC_INVARIANT_CONTROL, from Linux's headers; the specification leaves the bit reserved."""

TABLE: dict[int, Row] = {
    Msr.GUEST_OS_ID: Row(_HYPERCALL, lambda vp: vp.partition.guest_os_id, _write_guest_os_id),
    Msr.HYPERCALL: Row(_HYPERCALL, lambda vp: vp.partition.hypercall_msr, _write_hypercall),
    Msr.VP_INDEX: Row(int(Privilege.ACCESS_VP_INDEX), lambda vp: vp.index, None),
    Msr.RESET: Row(int(Privilege.ACCESS_RESET_MSR), lambda vp: 0, _write_reset),
    Msr.VP_RUNTIME: Row(int(Privilege.ACCESS_VP_RUNTIME_MSR), lambda vp: vp.run_time(), None),
    Msr.TIME_REF_COUNT: Row(
        int(Privilege.ACCESS_PARTITION_REFERENCE_COUNTER),
        lambda vp: vp.partition.reference_time.read(vp.partition.hypervisor.clock_of(vp)),
        None,
    ),
    Msr.REFERENCE_TSC: Row(
        int(Privilege.ACCESS_PARTITION_REFERENCE_TSC),
        lambda vp: vp.partition.registers.reference_tsc,
        _write_reference_tsc,
    ),
    Msr.TSC_FREQUENCY: Row(_FREQUENCY, lambda vp: vp.partition.registers.tsc_frequency, None),
    Msr.APIC_FREQUENCY: Row(_FREQUENCY, lambda vp: vp.partition.registers.apic_frequency, None),
    Msr.EOI: Row(_APIC, None, _write_eoi),
    Msr.ICR: Row(_APIC, lambda vp: vp.icr, _write_icr),
    Msr.TPR: Row(_APIC, lambda vp: vp.tpr, _write_tpr),
    # The assist page came with the APIC MSRs, but Linux writes it with or without their privilege.
    Msr.VP_ASSIST_PAGE: Row(0, lambda vp: vp.vp_assist, _write_vp_assist),
    Msr.SCONTROL: Row(_SYNIC, lambda vp: vp.synic.scontrol, lambda vp, value: vp.synic.write_scontrol(value)),
    Msr.SVERSION: Row(_SYNIC, lambda vp: SYNIC_VERSION, None),
    Msr.SIEFP: Row(_SYNIC, lambda vp: vp.synic.siefp, lambda vp, value: vp.synic.write_siefp(value)),
    Msr.SIMP: Row(_SYNIC, lambda vp: vp.synic.simp, lambda vp, value: vp.synic.write_simp(value)),
    Msr.EOM: Row(_SYNIC, lambda vp: 0, lambda vp, value: vp.synic.deliver_waiting()),
    **{Msr.SINT0 + n: Row(_SYNIC, _read_sint(n), _write_sint(n)) for n in range(16)},
    **{
        Msr.STIMER0_CONFIG + 2 * n: Row(_TIMERS, _read_timer(n, "config"), _write_timer_config(n))
        for n in range(TIMER_COUNT)
    },
    **{
        Msr.STIMER0_COUNT + 2 * n: Row(_TIMERS, _read_timer(n, "count"), _write_timer_count(n))
        for n in range(TIMER_COUNT)
    },
    Msr.STIME_UNHALTED_TIMER_CONFIG: Row(
        _TIMERS,
        lambda vp: vp.unhalted.config,
        lambda vp, value: vp.unhalted.write_config(value),
        UNHALTED_TIMER_AVAILABLE,
    ),
    Msr.STIME_UNHALTED_TIMER_COUNT: Row(
        _TIMERS,
        lambda vp: vp.unhalted.count,
        lambda vp, value: vp.unhalted.write_count(value),
        UNHALTED_TIMER_AVAILABLE,
    ),
    Msr.STATS_PARTITION_RETAIL_PAGE: _stats(
        Msr.STATS_PARTITION_RETAIL_PAGE, False, lambda vp: of_partition(vp.partition)
    ),
    Msr.STATS_PARTITION_INTERNAL_PAGE: _stats(Msr.STATS_PARTITION_INTERNAL_PAGE, False, lambda vp: nothing),
    Msr.STATS_VP_RETAIL_PAGE: _stats(Msr.STATS_VP_RETAIL_PAGE, True, of_vp),
    Msr.STATS_VP_INTERNAL_PAGE: _stats(Msr.STATS_VP_INTERNAL_PAGE, True, lambda vp: nothing),
    # Reading it is what counts, and the backend's to make of it what it can; see `Machine.idle`.
    Msr.GUEST_IDLE: Row(int(Privilege.ACCESS_GUEST_IDLE_MSR), lambda vp: 0, None, GUEST_IDLE_AVAILABLE),
    # Crash registers are announced by a feature bit and not by a privilege.
    **{Msr.CRASH_P0 + n: Row(0, _read_crash_parameter(n), _write_crash_parameter(n)) for n in range(5)},
    Msr.CRASH_CTL: Row(0, lambda vp: CRASH_CAPABILITIES, report_crash),
    Msr.TSC_INVARIANT_CONTROL: Row(
        ACCESS_TSC_INVARIANT, lambda vp: vp.partition.registers.tsc_invariant, _write_tsc_invariant
    ),
}
"""Every synthetic MSR that the hypervisor offers."""
