"""What the hypervisor tells a parent when it has stopped a virtual processor of its child. Both sides."""

from __future__ import annotations

import enum

from hypervisor.synic.messages import InterceptHeader
from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import bytes16, u8, u32, u64


class InterceptAccess(enum.IntEnum):
    """HV_INTERCEPT_ACCESS_TYPE, in the header of every intercept message."""

    READ = 0
    WRITE = 1
    EXECUTE = 2


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
