"""Inputs and outputs of the hypercalls on processors: interrupts, flushes, addresses, intercepts. Both sides.

As in `layouts`. A later version's byte for a virtual trust level lies where 2010 has padding; there is one level, 0.
"""

from __future__ import annotations

from typing import Annotated

from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import bytes16, u8, u16, u32, u64

bytes224 = Annotated[bytes, "224s"]
bytes256 = Annotated[bytes, "256s"]

# --- sent interrupts


@wire(size=16, spec="HvCallSendSyntheticClusterIpi input")
class SendIpiInput(Wire):
    """Bytes 5 to 7 are padding. Bit n of the mask is processor n."""

    vector: u32 = at(0x00)
    target_vtl: u8 = at(0x04, default=0)
    processor_mask: u64 = at(0x08, default=0)


@wire(size=24, spec="HvCallSendSyntheticClusterIpiEx input; the banks of the processor set are the variable header")
class SendIpiExInput(Wire):
    """`set_format` and `valid_banks` begin HV_VP_SET."""

    vector: u32 = at(0x00)
    target_vtl: u8 = at(0x04, default=0)
    set_format: u64 = at(0x08, default=0)
    valid_banks: u64 = at(0x10, default=0)


@wire(size=32, spec="HvCallAssertVirtualInterrupt input, both call codes")
class AssertInterruptInput(Wire):
    """`flags`: 1 level triggered, 2 logical destination. The code of 2010 has padding behind the vector."""

    partition_id: u64 = at(0x00)
    interrupt_type: u32 = at(0x08)
    flags: u32 = at(0x0C, default=0)
    destination: u64 = at(0x10, default=0)
    vector: u32 = at(0x18, default=0)
    target_vtl: u8 = at(0x1C, default=0)


# --- flushes


@wire(size=8, spec="HvCallSwitchVirtualAddressSpace input")
class SwitchAddressSpaceInput(Wire):
    """The new CR3."""

    address_space: u64 = at(0x00)


@wire(size=24, spec="HvCallFlushVirtualAddressSpace input; HvCallFlushVirtualAddressList input header")
class FlushInput(Wire):
    """Bit n of the mask is processor n."""

    address_space: u64 = at(0x00)
    flags: u64 = at(0x08)
    processor_mask: u64 = at(0x10)


@wire(
    size=32, spec="HvCallFlushVirtualAddressSpaceEx, HvCallFlushVirtualAddressListEx input; banks follow, then a list"
)
class FlushExInput(Wire):
    """As above, with a processor set for the mask."""

    address_space: u64 = at(0x00)
    flags: u64 = at(0x08)
    set_format: u64 = at(0x10)
    valid_banks: u64 = at(0x18)


# --- addresses


@wire(size=32, spec="HvCallTranslateVirtualAddress input")
class TranslateInput(Wire):
    """Bytes 12 to 15 are padding."""

    partition_id: u64 = at(0x00)
    vp_index: u32 = at(0x08)
    control_flags: u64 = at(0x10)
    gva_page: u64 = at(0x18)


@wire(size=16, spec="HvCallTranslateVirtualAddress output")
class TranslateOutput(Wire):
    """`flags`: cache type in bits 7:0, overlay page in bit 8."""

    result_code: u32 = at(0x00)
    flags: u32 = at(0x04)
    gpa_page: u64 = at(0x08)


@wire(size=32, spec="HvCallReadGpa input")
class ReadGpaInput(Wire):
    """Control flags: the cache type in bits 7:0."""

    partition_id: u64 = at(0x00)
    vp_index: u32 = at(0x08)
    byte_count: u32 = at(0x0C)
    gpa: u64 = at(0x10)
    control_flags: u64 = at(0x18, default=6)


@wire(size=24, spec="HvCallReadGpa output")
class ReadGpaOutput(Wire):
    """Bytes past the count are zero."""

    result_code: u32 = at(0x00)
    reserved: u32 = at(0x04, default=0)
    data: bytes16 = at(0x08, default=bytes(16))


@wire(size=48, spec="HvCallWriteGpa input")
class WriteGpaInput(Wire):
    """As ReadGpaInput, and what to write."""

    partition_id: u64 = at(0x00)
    vp_index: u32 = at(0x08)
    byte_count: u32 = at(0x0C)
    gpa: u64 = at(0x10)
    control_flags: u64 = at(0x18, default=6)
    data: bytes16 = at(0x20, default=bytes(16))


@wire(size=8, spec="HvCallWriteGpa output")
class WriteGpaOutput(Wire):
    """What became of it."""

    result_code: u32 = at(0x00)
    reserved: u32 = at(0x04, default=0)


# --- intercepts, starting processors


@wire(size=24, spec="HvCallInstallIntercept input")
class InstallInterceptInput(Wire):
    """Access mask: 1 read, 2 write, 4 execute; 0 removes the intercept."""

    partition_id: u64 = at(0x00)
    access: u32 = at(0x08)
    intercept_type: u32 = at(0x0C)
    parameter: u64 = at(0x10, default=0)


@wire(size=240, spec="HvCallStartVirtualProcessor input")
class StartVpInput(Wire):
    """The context is HV_INITIAL_VP_CONTEXT. Bytes 13 to 15 are reserved and zero."""

    partition_id: u64 = at(0x00)
    vp_index: u32 = at(0x08)
    target_vtl: u8 = at(0x0C, default=0)
    reserved_0: u8 = at(0x0D, default=0)
    reserved_1: u16 = at(0x0E, default=0)
    context: bytes224 = at(0x10, default=bytes(224))


@wire(size=16, spec="HvCallGetVpIndexFromApicId input; a list of APIC IDs, 4 bytes each, follows")
class VpFromApicInput(Wire):
    """Bytes 9 to 15 are padding."""

    partition_id: u64 = at(0x00)
    target_vtl: u8 = at(0x08, default=0)


# --- messages and events without ports


@wire(size=16, spec="HvCallSignalEventDirect input")
class SignalEventDirectInput(Wire):
    """A flag of a processor's own, named by its SINT."""

    partition_id: u64 = at(0x00)
    vp_index: u32 = at(0x08)
    target_vtl: u8 = at(0x0C, default=0)
    sint: u8 = at(0x0D, default=0)
    flag_number: u16 = at(0x0E, default=0)


@wire(size=8, spec="HvCallSignalEventDirect output")
class SignalEventDirectOutput(Wire):
    """1 where the flag was clear before."""

    newly_signaled: u8 = at(0x00)


@wire(size=280, spec="HvCallPostMessageDirect input, as hypervisors have it; the printed layout differs")
class PostMessageDirectInput(Wire):
    """A whole message slot. Bytes 13 to 15, 17 to 19 and 276 to 279 are padding."""

    partition_id: u64 = at(0x00)
    vp_index: u32 = at(0x08)
    target_vtl: u8 = at(0x0C, default=0)
    sint: u8 = at(0x10, default=0)
    message: bytes256 = at(0x14, default=bytes(256))
