"""What CPUID tells a partition: hypervisor leaves by a mask of features, a plain processor below. Both sides.

A child sees only its own privileges in leaf 0x40000003, so what it reads follows HvSetPartitionProperty at once.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec

from hypervisor.privileges import Privilege

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.partition import Partition
    from hypervisor.vp import VirtualProcessor

Registers = tuple[int, int, int, int]
"""EAX, EBX, ECX, EDX."""

LEAF_VERSION_INFO = 0x00000001
HYPERVISOR_PRESENT = 1 << 31
"""In ECX of leaf 1."""

LEAF_VENDOR = 0x40000000
LEAF_INTERFACE = 0x40000001
LEAF_SYSTEM_IDENTITY = 0x40000002
LEAF_FEATURES = 0x40000003
LEAF_RECOMMENDATIONS = 0x40000004
LEAF_LIMITS = 0x40000005
LEAF_HARDWARE = 0x40000006
LAST_LEAF = LEAF_HARDWARE

VENDOR = b"Microsoft Hv"
"""In EBX, ECX, EDX of leaf 0x40000000; Linux looks for it."""
INTERFACE = int.from_bytes(b"Hv#1", "little")

# EDX of leaf 0x40000003.
GUEST_IDLE_AVAILABLE = 1 << 5
FREQUENCY_MSRS_AVAILABLE = 1 << 8
CRASH_MSRS_AVAILABLE = 1 << 10
DIRECT_TIMERS_AVAILABLE = 1 << 19
UNHALTED_TIMER_AVAILABLE = 1 << 23

# EAX of leaf 0x40000004.
DEPRECATE_AUTO_EOI = 1 << 9

NEVER_SPIN_NOTIFY = 0xFFFFFFFF


class CpuidFeatures(msgspec.Struct, frozen=True):
    """What a backend lets its partitions see, beyond their privileges."""

    privileges: int = (1 << 64) - 1
    """Privilege bits that the backend can honour; the others are not shown."""
    features: int = (
        GUEST_IDLE_AVAILABLE
        | FREQUENCY_MSRS_AVAILABLE
        | CRASH_MSRS_AVAILABLE
        | DIRECT_TIMERS_AVAILABLE
        | UNHALTED_TIMER_AVAILABLE
    )
    """EDX of leaf 0x40000003; those that go with a privilege are shown to who has it."""
    recommendations: int = DEPRECATE_AUTO_EOI
    """EAX of leaf 0x40000004."""
    hardware: int = 0
    """EAX of leaf 0x40000006."""


DEFAULT_FEATURES = CpuidFeatures()
_TIMER_FEATURES = DIRECT_TIMERS_AVAILABLE | UNHALTED_TIMER_AVAILABLE


def features_of(partition: Partition) -> int:
    """EDX of leaf 0x40000003 as a partition sees it now."""
    features = partition.cpuid_features.features
    if not partition.privileges & Privilege.ACCESS_SYNTHETIC_TIMER_MSRS:
        features &= ~_TIMER_FEATURES
    if not partition.privileges & Privilege.ACCESS_GUEST_IDLE_MSR:
        features &= ~GUEST_IDLE_AVAILABLE
    return features


def cpuid(hypervisor: Hypervisor, vp: VirtualProcessor, leaf: int, subleaf: int = 0) -> Registers:
    """All leaves for software that has no processor of its own; unknown ones are zero."""
    if leaf == 0:
        return LEAF_VERSION_INFO, *struct.unpack("<III", b"PartitaModel")
    if leaf == LEAF_VERSION_INFO:
        return 0, vp.index << 24, HYPERVISOR_PRESENT, 0
    return hypervisor_leaf(hypervisor, vp.partition, leaf)


def hypervisor_leaf(hypervisor: Hypervisor, partition: Partition, leaf: int) -> Registers:
    """One of the leaves from 0x40000000, for any backend; zero for all others."""
    shown = partition.cpuid_features
    if leaf == LEAF_VENDOR:
        return LAST_LEAF, *struct.unpack("<III", VENDOR)
    if leaf == LEAF_INTERFACE:
        return INTERFACE, 0, 0, 0
    if leaf == LEAF_SYSTEM_IDENTITY:
        # Build, major and minor version, service pack, branch: our own, never a release of somebody else's.
        return 1, 0 << 16 | 1, 0, 0
    if leaf == LEAF_FEATURES:
        privileges = partition.privileges & shown.privileges
        return privileges & 0xFFFFFFFF, privileges >> 32 & 0xFFFFFFFF, 0, features_of(partition)
    if leaf == LEAF_RECOMMENDATIONS:
        return shown.recommendations, NEVER_SPIN_NOTIFY, 0, 0
    if leaf == LEAF_LIMITS:
        return hypervisor.max_vps, hypervisor.logical_processors, 0, 0
    if leaf == LEAF_HARDWARE:
        return shown.hardware, 0, 0, 0
    return 0, 0, 0, 0
