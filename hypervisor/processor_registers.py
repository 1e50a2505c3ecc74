"""A processor's own registers by name, their bits, and contents that no processor can run with. Both sides."""

from __future__ import annotations

import enum
from collections.abc import Mapping


class ProcessorRegister(enum.IntEnum):
    """HV_REGISTER_NAME of the processor proper (TLFS 2.0a, 10.2)."""

    PENDING_INTERRUPTION = 0x00010002
    INTERRUPT_STATE = 0x00010003
    RAX = 0x00020000
    RCX = 0x00020001
    RDX = 0x00020002
    RBX = 0x00020003
    RSP = 0x00020004
    RBP = 0x00020005
    RSI = 0x00020006
    RDI = 0x00020007
    R15 = 0x0002000F
    RIP = 0x00020010
    RFLAGS = 0x00020011
    CR0 = 0x00040000
    CR2 = 0x00040001
    CR3 = 0x00040002
    CR4 = 0x00040003
    CR8 = 0x00040004
    ES = 0x00060000
    CS = 0x00060001
    SS = 0x00060002
    DS = 0x00060003
    FS = 0x00060004
    GS = 0x00060005
    LDTR = 0x00060006
    TR = 0x00060007
    IDTR = 0x00070000
    GDTR = 0x00070001
    TSC = 0x00080000
    EFER = 0x00080001
    PAT = 0x00080004
    INITIAL_APIC_ID = 0x0008000C


def register_name(number: int) -> str:
    """Its name in lower case; its number where it has none here."""
    try:
        return ProcessorRegister(number).name.lower()
    except ValueError:
        return hex(number)


_LEGAL: tuple[tuple[range, int], ...] = (
    (range(0x00010002, 0x00010004), (1 << 64) - 1),  # pending interruption, interrupt state
    (range(0x00020000, 0x00020012), (1 << 64) - 1),  # RAX to R15, RIP, RFLAGS
    (range(0x00030000, 0x0003001A), (1 << 128) - 1),  # XMM0 to XMM15, the x87 stack, both control words
    (range(0x00040000, 0x00040004), (1 << 64) - 1),  # CR0, CR2, CR3, CR4
    (range(0x00040004, 0x00040005), 0xF),  # CR8
    (range(0x00040005, 0x00040006), (1 << 64) - 1),  # XFEM
    (range(0x00050000, 0x00050006), (1 << 64) - 1),  # DR0 to DR3, DR6, DR7
    (range(0x00060000, 0x00060008), (1 << 128) - 1),  # ES, CS, SS, DS, FS, GS, LDTR, TR
    (range(0x00070000, 0x00070002), (1 << 128) - 1),  # IDTR, GDTR
    (range(0x00080000, 0x0008000F), (1 << 64) - 1),  # TSC, EFER and so on to the initial APIC ID, MTRR capabilities
    (range(0x00080010, 0x00080018), (1 << 64) - 1),  # bases of variable MTRRs
    (range(0x00080040, 0x00080048), (1 << 64) - 1),  # their masks
    (range(0x00080070, 0x0008007B), (1 << 64) - 1),  # fixed MTRRs
    (range(0x0008007B, 0x00080080), (1 << 64) - 1),  # TSC_AUX and its later neighbours
)
"""Every name of the processor proper, and the bits that a value may have. What only makes no sense in context may be
written; `unsound` finds it when the processor is to run."""

READ_ONLY = frozenset({ProcessorRegister.TSC, ProcessorRegister.INITIAL_APIC_ID})
"""A processor's clock here is the hypervisor's, and its APIC ID its index."""

ANSWERS = frozenset(
    {
        *(ProcessorRegister.RAX, ProcessorRegister.RBX, ProcessorRegister.RCX, ProcessorRegister.RDX),
        *(ProcessorRegister.RIP, ProcessorRegister.PENDING_INTERRUPTION),
    }
)
"""What a parent answers an intercept by."""


def legal_bits(name: int) -> int:
    """The bits that a value of this register may have; 0 for a name that is none."""
    return next((bits for names, bits in _LEGAL if name in names), 0)


CR0_PROTECTED, CR0_NOT_WRITE_THROUGH, CR0_CACHE_DISABLE, CR0_PAGING = 1 << 0, 1 << 29, 1 << 30, 1 << 31
CR4_PAE = 1 << 5
EFER_LONG_MODE, EFER_LONG_MODE_ACTIVE = 1 << 8, 1 << 10
RFLAGS_ALWAYS_ONE = 1 << 1
_RFLAGS_KNOWN = 0x3F7FD7
"""All but bits 3, 5, 15, and 22 and up, which are zero."""

PENDING = 1 << 0
"""Of PENDING_INTERRUPTION; the type is in bits 3:1, the vector in 31:16, the error code in 63:32."""
DELIVER_ERROR_CODE = 1 << 4
_PENDING_RESERVED = 0xFC00
"""Bits 15:10; instruction length and nested event came later and are accepted."""
GENERAL_PROTECTION_VECTOR, INVALID_OPCODE_VECTOR, NMI_VECTOR = 13, 6, 2
EXCEPTION_VECTORS = 32
LEAST_INTERRUPT = 16


class PendingType(enum.IntEnum):
    """HV_X64_PENDING_INTERRUPTION_TYPE."""

    INTERRUPT = 0
    NMI = 2
    EXCEPTION = 3


def pending_exception(vector: int, error_code: int | None = None) -> int:
    """PENDING_INTERRUPTION for an exception: how a parent answers an intercept with #GP."""
    value = PENDING | PendingType.EXCEPTION << 1 | vector << 16
    return value if error_code is None else value | DELIVER_ERROR_CODE | error_code << 32


def unsound(registers: Mapping[int, int]) -> str:
    """Why no processor can run with these contents, in words; empty where it can.

    Each of them may be written alone: only together, and only on resuming, do they make no sense. A register that
    nobody has written is not looked at.
    """
    pending = registers.get(ProcessorRegister.PENDING_INTERRUPTION, 0)
    if pending & PENDING:
        kind, vector = pending >> 1 & 7, pending >> 16 & 0xFFFF
        match kind:
            case PendingType.INTERRUPT:
                sound = LEAST_INTERRUPT <= vector <= 0xFF
            case PendingType.NMI:
                sound = vector == NMI_VECTOR
            case PendingType.EXCEPTION:
                sound = vector < EXCEPTION_VECTORS
            case _:
                sound = False
        if not sound or pending & _PENDING_RESERVED:
            return "pending interruption"
    flags = registers.get(ProcessorRegister.RFLAGS, RFLAGS_ALWAYS_ONE)
    if not flags & RFLAGS_ALWAYS_ONE or flags & ~_RFLAGS_KNOWN:
        return "RFLAGS"
    cr0 = registers.get(ProcessorRegister.CR0, 0)
    if cr0 >> 32 or (cr0 & CR0_PAGING and not cr0 & CR0_PROTECTED):
        return "CR0"
    if cr0 & CR0_NOT_WRITE_THROUGH and not cr0 & CR0_CACHE_DISABLE:
        return "CR0"
    efer = registers.get(ProcessorRegister.EFER, 0)
    if efer & EFER_LONG_MODE and cr0 & CR0_PAGING and not registers.get(ProcessorRegister.CR4, 0) & CR4_PAE:
        return "CR4"
    if efer & EFER_LONG_MODE_ACTIVE and not (efer & EFER_LONG_MODE and cr0 & CR0_PAGING):
        return "EFER"
    return ""
