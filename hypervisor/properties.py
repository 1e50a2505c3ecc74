"""Partition properties: codes, defaults, ranges and who may change them. Hypervisor."""

from __future__ import annotations

import enum

import msgspec

from hypervisor.privileges import CHILD_PRIVILEGES

WHOLE_PROCESSOR = 0x10000
"""Reserve and cap are fractions of one logical processor per VP, in units of 1/65536 (TLFS 2.0a, 18)."""


class Property(enum.IntEnum):
    """HV_PARTITION_PROPERTY_CODE (TLFS 2.0a, 5.2.4; GUEST_OS_ID, SUSPEND and CPU_GROUP_ID from later headers)."""

    PRIVILEGE_FLAGS = 0x00010000
    SUSPEND = 0x00020000
    CPU_RESERVE = 0x00020001
    CPU_CAP = 0x00020002
    CPU_WEIGHT = 0x00020003
    CPU_GROUP_ID = 0x00020004
    EMULATED_TIMER_PERIOD = 0x00030000
    EMULATED_TIMER_CONTROL = 0x00030001
    PM_TIMER_ASSIST = 0x00030002
    DEBUG_CHANNEL_ID = 0x00040000
    VIRTUAL_TLB_PAGE_COUNT = 0x00050000
    PROCESSOR_VENDOR = 0x00060000
    PROCESSOR_FEATURES = 0x00060001
    PROCESSOR_XSAVE_FEATURES = 0x00060002
    PROCESSOR_CL_FLUSH_SIZE = 0x00060003
    GUEST_OS_ID = 0x00070000


class PropertyRule(msgspec.Struct, frozen=True):
    """What a property may hold. Ranges include both ends."""

    default: int = 0
    low: int = 0
    high: int = (1 << 64) - 1
    read_only: bool = False
    clamped: bool = False
    """Out of range is brought into range and accepted, not refused."""
    unique: bool = False
    """No two partitions may hold the same value, except 0, which means none."""


PROPERTY_RULES: dict[Property, PropertyRule] = {
    Property.PRIVILEGE_FLAGS: PropertyRule(CHILD_PRIVILEGES),
    # While it is 1 no processor of the partition is dispatched, whatever its own suspend bits say.
    Property.SUSPEND: PropertyRule(0, 0, 1),
    Property.CPU_RESERVE: PropertyRule(0, 0, WHOLE_PROCESSOR),
    Property.CPU_CAP: PropertyRule(WHOLE_PROCESSOR, 0, WHOLE_PROCESSOR),
    Property.CPU_WEIGHT: PropertyRule(100, 1, 10_000),
    # 0 is no group, which is the machine as a whole.
    Property.CPU_GROUP_ID: PropertyRule(),
    Property.EMULATED_TIMER_PERIOD: PropertyRule(),
    Property.EMULATED_TIMER_CONTROL: PropertyRule(),
    # Port number in bits 15:0, 24-bit width in bit 16, enabled in bit 17.
    Property.PM_TIMER_ASSIST: PropertyRule(0, 0, 0x3FFFF),
    Property.DEBUG_CHANNEL_ID: PropertyRule(unique=True),
    # The bounds are ours; the specification leaves them to the implementation.
    Property.VIRTUAL_TLB_PAGE_COUNT: PropertyRule(64, 16, 4096, clamped=True),
    Property.PROCESSOR_VENDOR: PropertyRule(1, read_only=True),
    Property.PROCESSOR_FEATURES: PropertyRule(0, read_only=True),
    Property.PROCESSOR_XSAVE_FEATURES: PropertyRule(0, read_only=True),
    # As the CLFLUSH line size of CPUID leaf 1: a power of two, here 2**6 bytes.
    Property.PROCESSOR_CL_FLUSH_SIZE: PropertyRule(6, read_only=True),
    Property.GUEST_OS_ID: PropertyRule(0, read_only=True),
}


CPU_CONTROLS = frozenset({Property.CPU_RESERVE, Property.CPU_CAP, Property.CPU_WEIGHT, Property.CPU_GROUP_ID})
"""What the scheduler goes by."""


def default_properties() -> dict[Property, int]:
    """The properties that a new partition keeps; those that mirror other state are not among them."""
    mirrored = (Property.PRIVILEGE_FLAGS, Property.GUEST_OS_ID)
    return {code: rule.default for code, rule in PROPERTY_RULES.items() if code not in mirrored}
