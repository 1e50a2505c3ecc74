"""Virtual processor registers by TLFS name, as HvGetVpRegisters and HvSetVpRegisters see them. Hypervisor."""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING

from hypervisor.backend.base import RegisterFile
from hypervisor.cpuid import (
    LEAF_FEATURES,
    LEAF_HARDWARE,
    LEAF_LIMITS,
    LEAF_RECOMMENDATIONS,
    LEAF_SYSTEM_IDENTITY,
    hypervisor_leaf,
)
from hypervisor.machine import GeneralProtection
from hypervisor.msr import Msr
from hypervisor.msr_table import TABLE
from hypervisor.processor_registers import ANSWERS, READ_ONLY, ProcessorRegister, legal_bits, unsound
from hypervisor.status import HvError, HvStatus
from hypervisor.synic.timer_registers import TIMER_COUNT

if TYPE_CHECKING:
    from hypervisor.vp import VirtualProcessor


class Register(enum.IntEnum):
    """HV_REGISTER_NAME, those that the hypervisor itself gives a meaning (TLFS 2.0a, 10.2; crash from the headers)."""

    EXPLICIT_SUSPEND = 0x00000000
    INTERCEPT_SUSPEND = 0x00000001
    HYPERVISOR_VERSION = 0x00000100
    PRIVILEGES_AND_FEATURES_INFO = 0x00000200
    FEATURES_INFO = 0x00000201
    IMPLEMENTATION_LIMITS_INFO = 0x00000202
    HARDWARE_FEATURES_INFO = 0x00000203
    CRASH_P0 = 0x00000210
    CRASH_CTL = 0x00000215
    VP_RUNTIME = 0x00090000
    HYPERCALL = 0x00090001
    GUEST_OS_ID = 0x00090002
    VP_INDEX = 0x00090003
    TIME_REF_COUNT = 0x00090004
    EOI = 0x00090010
    ICR = 0x00090011
    TPR = 0x00090012
    VP_ASSIST_PAGE = 0x00090013
    REFERENCE_TSC = 0x00090017
    STATS_PARTITION_RETAIL = 0x00090020
    STATS_VP_INTERNAL = 0x00090023
    SINT0 = 0x000A0000
    SCONTROL = 0x000A0010
    SVERSION = 0x000A0011
    SIEFP = 0x000A0012
    SIMP = 0x000A0013
    EOM = 0x000A0014
    STIMER0_CONFIG = 0x000B0000
    STIMER0_COUNT = 0x000B0001
    STIME_UNHALTED_TIMER_CONFIG = 0x000B0100
    STIME_UNHALTED_TIMER_COUNT = 0x000B0101


_BY_MSR: dict[int, int] = {
    **{Register.CRASH_P0 + n: Msr.CRASH_P0 + n for n in range(6)},
    **{Register.SINT0 + n: Msr.SINT0 + n for n in range(16)},
    **{Register.STATS_PARTITION_RETAIL + n: Msr.STATS_PARTITION_RETAIL_PAGE + n for n in range(4)},
    **{Register.STIMER0_CONFIG + n: Msr.STIMER0_CONFIG + n for n in range(2 * TIMER_COUNT)},
    **{
        Register[name]: Msr[name]
        for name in (
            *("VP_RUNTIME", "HYPERCALL", "GUEST_OS_ID", "VP_INDEX", "TIME_REF_COUNT"),
            *("EOI", "ICR", "TPR", "VP_ASSIST_PAGE", "REFERENCE_TSC"),
            *("SCONTROL", "SVERSION", "SIEFP", "SIMP", "EOM"),
            *("STIME_UNHALTED_TIMER_CONFIG", "STIME_UNHALTED_TIMER_COUNT"),
        )
    },
}
"""Registers that are synthetic MSRs under another name; the parent needs no privilege of the child's for them."""

_LEAVES: dict[int, int] = {
    Register.HYPERVISOR_VERSION: LEAF_SYSTEM_IDENTITY,
    Register.PRIVILEGES_AND_FEATURES_INFO: LEAF_FEATURES,
    Register.FEATURES_INFO: LEAF_RECOMMENDATIONS,
    Register.IMPLEMENTATION_LIMITS_INFO: LEAF_LIMITS,
    Register.HARDWARE_FEATURES_INFO: LEAF_HARDWARE,
}
"""Registers of 128 bits that are CPUID leaves under another name: EAX lowest, EDX highest. They are for reading."""


def get_register(vp: VirtualProcessor, name: int) -> int:
    """The value, zero-extended to 128 bits. Raises INVALID_PARAMETER for a name that is none."""
    match name:
        case Register.EXPLICIT_SUSPEND:
            return int(vp.explicit_suspend)
        case Register.INTERCEPT_SUSPEND:
            return int(vp.intercept_suspend)
        case _:
            pass
    row = TABLE.get(_BY_MSR.get(name, 0))
    if row is not None:
        if row.read is None:
            raise HvError(HvStatus.INVALID_PARAMETER)
        return row.read(vp)
    leaf = _LEAVES.get(name)
    if leaf is not None:
        partition = vp.partition
        return int.from_bytes(struct.pack("<4I", *hypervisor_leaf(partition.hypervisor, partition, leaf)), "little")
    match name:
        case ProcessorRegister.TSC:
            return (vp.partition.registers.read_tsc or vp.partition.hypervisor.read_tsc)()
        case ProcessorRegister.INITIAL_APIC_ID:
            return vp.index
        case _:
            if not legal_bits(name):
                raise HvError(HvStatus.INVALID_PARAMETER)
    file = _file(vp, name)
    value = None if file is None else file.get_register(name)
    if value is not None:
        return value
    return vp.registers.get(name, 0)


def set_register(vp: VirtualProcessor, name: int, value: int) -> None:
    """Raises INVALID_PARAMETER: unknown name, read-only register, reserved bit, or setting what one may only clear."""
    match name:
        case Register.EXPLICIT_SUSPEND:
            if value > 1:
                raise HvError(HvStatus.INVALID_PARAMETER)
            if value or _may_run(vp, vp.intercept_suspend):
                vp.set_explicit_suspend(bool(value))
            return
        case Register.INTERCEPT_SUSPEND:
            if value & ~int(vp.intercept_suspend):
                raise HvError(HvStatus.INVALID_PARAMETER)
            if not value and _may_run(vp, vp.explicit_suspend):
                vp.clear_intercept_suspend()
            return
        case _:
            pass
    row = TABLE.get(_BY_MSR.get(name, 0))
    if row is not None:
        if row.write is None or value >> 64:
            raise HvError(HvStatus.INVALID_PARAMETER)
        try:
            row.write(vp, value)
        except GeneralProtection:
            raise HvError(HvStatus.INVALID_PARAMETER) from None
        return
    if name in READ_ONLY or not legal_bits(name) or value & ~legal_bits(name):
        raise HvError(HvStatus.INVALID_PARAMETER)
    file = _file(vp, name)
    if file is None or not file.set_register(name, value):
        vp.registers[name] = value


def _file(vp: VirtualProcessor, name: int) -> RegisterFile | None:
    """Who keeps a register, if not the hypervisor. What an intercept is answered by stays with the hypervisor."""
    runner = vp.runner
    if not isinstance(runner, RegisterFile):
        return None
    answering = vp.intercept_suspend and vp.partition.interception is not None
    return None if answering and name in ANSWERS else runner


def _may_run(vp: VirtualProcessor, still_suspended: bool) -> bool:
    """Before the last suspension is cleared: contents that only make no sense together come to light here.

    The processor is then suspended on an intercept instead, and its parent gets a message.
    """
    words = "" if still_suspended else unsound(vp.registers)
    if words:
        vp.stop_on_intercept()
        vp.set_explicit_suspend(False)
        vp.partition.hypervisor.invalid_register(vp, words)
    return not words
