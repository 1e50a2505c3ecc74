"""The 64-bit mask of what a partition may ask of the hypervisor. Both sides.

A guest reads its own mask from CPUID leaf 0x40000003: EAX has bits 31..0, EBX bits 63..32.
"""

from __future__ import annotations

import enum
from functools import lru_cache


class Privilege(enum.IntFlag):
    """HV_PARTITION_PRIVILEGE_MASK (TLFS 2.0a, 5.2.3; the bits that came later from the current TLFS)."""

    NONE = 0

    # Synthetic MSRs.
    ACCESS_VP_RUNTIME_MSR = 1 << 0
    ACCESS_PARTITION_REFERENCE_COUNTER = 1 << 1
    ACCESS_SYNIC_MSRS = 1 << 2
    ACCESS_SYNTHETIC_TIMER_MSRS = 1 << 3
    ACCESS_APIC_MSRS = 1 << 4
    ACCESS_HYPERCALL_MSRS = 1 << 5
    ACCESS_VP_INDEX = 1 << 6
    ACCESS_RESET_MSR = 1 << 7
    ACCESS_STATS_MSR = 1 << 8
    ACCESS_PARTITION_REFERENCE_TSC = 1 << 9
    ACCESS_GUEST_IDLE_MSR = 1 << 10
    ACCESS_FREQUENCY_MSRS = 1 << 11
    ACCESS_REENLIGHTENMENT_CONTROLS = 1 << 13
    ACCESS_TSC_INVARIANT = 1 << 15
    """From Linux's headers; the specification leaves the bit reserved."""

    # Hypercalls.
    CREATE_PARTITIONS = 1 << 32
    ACCESS_PARTITION_ID = 1 << 33
    ACCESS_MEMORY_POOL = 1 << 34
    ADJUST_MESSAGE_BUFFERS = 1 << 35
    POST_MESSAGES = 1 << 36
    SIGNAL_EVENTS = 1 << 37
    CREATE_PORT = 1 << 38
    CONNECT_PORT = 1 << 39
    ACCESS_STATS = 1 << 40
    DEBUGGING = 1 << 43
    CPU_MANAGEMENT = 1 << 44
    CONFIGURE_PROFILER = 1 << 45
    ACCESS_VSM = 1 << 48
    ACCESS_VP_REGISTERS = 1 << 49
    ENABLE_EXTENDED_HYPERCALLS = 1 << 52
    START_VIRTUAL_PROCESSOR = 1 << 53


ROOT_PRIVILEGES = sum(int(bit) for bit in Privilege)
"""The root has every bit that is defined. Masks are plain integers: testing an `IntFlag` costs twenty times more."""

CHILD_PRIVILEGES = int(
    Privilege.ACCESS_VP_RUNTIME_MSR
    | Privilege.ACCESS_PARTITION_REFERENCE_COUNTER
    | Privilege.ACCESS_SYNIC_MSRS
    | Privilege.ACCESS_SYNTHETIC_TIMER_MSRS
    | Privilege.ACCESS_APIC_MSRS
    | Privilege.ACCESS_HYPERCALL_MSRS
    | Privilege.ACCESS_VP_INDEX
    | Privilege.ACCESS_RESET_MSR
    | Privilege.ACCESS_STATS_MSR
    | Privilege.ACCESS_GUEST_IDLE_MSR
)
"""What a new child has (TLFS 2.0a, 5.2.3). It can neither post nor signal until its parent sets those bits."""


@lru_cache(maxsize=64)
def privilege_names(mask: int) -> str:
    """The names of a mask's bits for people, such as `POST_MESSAGES, SIGNAL_EVENTS`."""
    return ", ".join(bit.name for bit in Privilege if mask & bit and bit.name) or "none"
