"""What the hypervisor tells a parent when it has stopped a virtual processor of its child. Both sides."""

from __future__ import annotations

import enum
from typing import Annotated

from hypervisor.synic.messages import InterceptHeader
from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import bytes16, u8, u16, u32, u64

bytes128 = Annotated[bytes, "128s"]


class InterceptAccess(enum.IntEnum):
    """HV_INTERCEPT_ACCESS_TYPE, in the header of every intercept message."""

    READ = 0
    WRITE = 1
    EXECUTE = 2


class InterceptMask(enum.IntFlag):
    """HV_INTERCEPT_ACCESS_TYPE_MASK: which accesses HvInstallIntercept is about; none removes the intercept."""

    NONE = 0
    READ = 1 << 0
    WRITE = 1 << 1
    EXECUTE = 1 << 2


class InterceptType(enum.IntEnum):
    """HV_INTERCEPT_TYPE, those that are offered; the parameter is in brackets."""

    IO_PORT = 0
    """(Port) IN and OUT."""
    MSR = 1
    """RDMSR and WRMSR of every register that the hypervisor does not offer the partition, synthetic or not."""
    CPUID = 2
    """(Leaf)"""
    EXCEPTION = 3
    """(Vector)"""


@wire(size=88, spec="HV_X64_IO_PORT_INTERCEPT_MESSAGE behind its header, TLFS 2.0a 14.9; hvgdk.h")
class IoPortIntercept(Wire):
    """IN or OUT; the header says which."""

    port: u16 = at(0x00)
    access_info: u8 = at(0x02)
    """Bytes of the access in bits 2:0; bit 3 a string instruction, bit 4 with a repeat prefix."""
    instruction_byte_count: u8 = at(0x03, default=0)
    reserved: u32 = at(0x04, default=0)
    rax: u64 = at(0x08, default=0)
    instruction_bytes: bytes16 = at(0x10, default=bytes(16))
    ds_segment: bytes16 = at(0x20, default=bytes(16))
    es_segment: bytes16 = at(0x30, default=bytes(16))
    rcx: u64 = at(0x40, default=0)
    rsi: u64 = at(0x48, default=0)
    rdi: u64 = at(0x50, default=0)


@wire(size=24, spec="HV_X64_MSR_INTERCEPT_MESSAGE behind its header, TLFS 2.0a 14.9; hvgdk.h")
class MsrIntercept(Wire):
    """RDMSR or WRMSR; the header says which. What is written is in the low halves of RDX and RAX."""

    msr: u32 = at(0x00)
    reserved: u32 = at(0x04, default=0)
    rdx: u64 = at(0x08, default=0)
    rax: u64 = at(0x10, default=0)


@wire(size=64, spec="HV_X64_CPUID_INTERCEPT_MESSAGE behind its header, TLFS 2.0a 14.9; hvgdk.h")
class CpuidIntercept(Wire):
    """CPUID: what it was asked, and what it would have answered."""

    rax: u64 = at(0x00)
    rcx: u64 = at(0x08)
    rdx: u64 = at(0x10)
    rbx: u64 = at(0x18)
    default_rax: u64 = at(0x20)
    default_rcx: u64 = at(0x28)
    default_rdx: u64 = at(0x30)
    default_rbx: u64 = at(0x38)


@wire(size=200, spec="HV_X64_EXCEPTION_INTERCEPT_MESSAGE behind its header, TLFS 2.0a 14.9; hvgdk.h")
class ExceptionIntercept(Wire):
    """An exception before the software sees it. `general_registers` are RAX, RCX, RDX, RBX, RSP and so on to R15."""

    vector: u16 = at(0x00)
    exception_info: u8 = at(0x02, default=0)
    """Bit 0: the error code is one; bit 1: an INT instruction."""
    instruction_byte_count: u8 = at(0x03, default=0)
    error_code: u32 = at(0x04, default=0)
    parameter: u64 = at(0x08, default=0)
    reserved: u64 = at(0x10, default=0)
    instruction_bytes: bytes16 = at(0x18, default=bytes(16))
    ds_segment: bytes16 = at(0x28, default=bytes(16))
    ss_segment: bytes16 = at(0x38, default=bytes(16))
    general_registers: bytes128 = at(0x48, default=bytes(128))


@wire(size=8, spec="HV_X64_INVALID_VP_REGISTER_MESSAGE, TLFS 2.0a 14.9; hvgdk.h")
class InvalidRegister(Wire):
    """A processor cannot run with the registers that it was given. The message has no intercept header."""

    vp_index: u32 = at(0x00)
    reserved: u32 = at(0x04, default=0)


@wire(size=40, spec="HV_X64_MEMORY_INTERCEPT_MESSAGE behind its header, TLFS 2.0a 14.9; hvgdk.h")
class MemoryIntercept(Wire):
    """Which access to guest physical memory failed. Instruction bytes are absent: model guests have none."""

    cache_type: u32 = at(0x00, default=6)
    """Write back."""
    instruction_byte_count: u8 = at(0x04, default=0)
    access_info: u8 = at(0x05, default=0)
    """Bit 0: the virtual address below is valid."""
    gva: u64 = at(0x08, default=0)
    gpa: u64 = at(0x10, default=0)
    instruction_bytes: bytes16 = at(0x18, default=bytes(16))


def memory_intercept_payload(vp_index: int, access: InterceptAccess, gpa: int) -> bytes:
    """The 80 bytes of an unmapped-GPA or GPA-intercept message."""
    return InterceptHeader(vp_index, 0, access).encode() + MemoryIntercept(gpa=gpa).encode()
