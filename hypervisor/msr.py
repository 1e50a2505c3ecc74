"""Numbers and bits of the synthetic model-specific registers. Both sides."""

from __future__ import annotations

import enum


class Msr(enum.IntEnum):
    """Synthetic MSRs (TLFS 2.0a appendix F; frequencies, crash and invariant TSC from the current TLFS and headers)."""

    GUEST_OS_ID = 0x40000000
    HYPERCALL = 0x40000001
    VP_INDEX = 0x40000002
    RESET = 0x40000003
    VP_RUNTIME = 0x40000010
    TIME_REF_COUNT = 0x40000020
    REFERENCE_TSC = 0x40000021
    TSC_FREQUENCY = 0x40000022
    APIC_FREQUENCY = 0x40000023
    EOI = 0x40000070
    ICR = 0x40000071
    TPR = 0x40000072
    VP_ASSIST_PAGE = 0x40000073
    SCONTROL = 0x40000080
    SVERSION = 0x40000081
    SIEFP = 0x40000082
    SIMP = 0x40000083
    EOM = 0x40000084
    SINT0 = 0x40000090
    SINT1 = 0x40000091
    SINT2 = 0x40000092
    SINT3 = 0x40000093
    SINT4 = 0x40000094
    SINT5 = 0x40000095
    SINT6 = 0x40000096
    SINT7 = 0x40000097
    SINT8 = 0x40000098
    SINT9 = 0x40000099
    SINT10 = 0x4000009A
    SINT11 = 0x4000009B
    SINT12 = 0x4000009C
    SINT13 = 0x4000009D
    SINT14 = 0x4000009E
    SINT15 = 0x4000009F
    CRASH_P0 = 0x40000100
    CRASH_P1 = 0x40000101
    CRASH_P2 = 0x40000102
    CRASH_P3 = 0x40000103
    CRASH_P4 = 0x40000104
    CRASH_CTL = 0x40000105
    TSC_INVARIANT_CONTROL = 0x40000118


PAGE_ENABLE = 1 << 0
"""Bit 0 of every MSR that places a page; bits 63:12 are the guest page number."""
HYPERCALL_LOCKED = 1 << 1
"""Of HYPERCALL: once set, writes are refused until reset."""
RESET_PARTITION = 1 << 0
"""Of RESET."""

SYNIC_VERSION = 1

CRASH_NOTIFY = 1 << 63
"""Of CRASH_CTL: the parameters are set, report the crash."""
CRASH_MESSAGE = 1 << 62
"""Of CRASH_CTL: P3 is the GPA of a text, P4 its length in bytes."""
CRASH_NO_DUMP = 1 << 61
CRASH_PRE_OS_SHIFT = 58
CRASH_PRE_OS_MASK = 7
"""Of CRASH_CTL, bits 60:58: the crash came before the operating system."""
CRASH_MESSAGE_MAX = 4096
"""Bytes of text at most."""
