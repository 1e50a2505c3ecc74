"""Hypercalls of the root on the machine as a whole. Hypervisor."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from hypervisor.hypercall.system_layouts import (
    ParkInput,
    PartitionEventInput,
    PerformanceCounter,
    SetSystemPropertyInput,
    SleepState,
)
from hypervisor.partition import ROOT_ID, Partition
from hypervisor.status import HvError, HvStatus

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vp import VirtualProcessor

FIRST_SLEEP_STATE, LAST_SLEEP_STATE, LOCK_SLEEP_STATES = 1, 5, 6
"""S1 to S5; after LOCK no more of them are taken."""


class SystemProperty(enum.IntEnum):
    """HV_SYSTEM_PROPERTY, those that can be set."""

    PERFORMANCE_COUNTER = 1
    SLEEP_STATE = 3


class PartitionEvent(enum.IntEnum):
    """HV_PARTITION_EVENT, those that the root tells of."""

    ROOT_CRASHDUMP = 2
    ALL_LOGICAL_PROCESSORS_STARTED = 4


class CrashdumpAction(enum.IntEnum):
    """HV_CRASHDUMP_ACTION."""

    NONE = 0
    SUSPEND_ALL_VPS = 1
    PREPARE_FOR_STATE_SAVE = 2
    STATE_SAVED = 3
    ENTRY = 4


def _require_root(vp: VirtualProcessor) -> None:
    if vp.partition.id != ROOT_ID:
        raise HvError(HvStatus.ACCESS_DENIED)


def park_logical_processors(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: ParkInput
) -> None:
    """Which logical processors get no work if others can do it. The first always gets some."""
    _require_root(vp)
    everybody = (1 << hypervisor.logical_processors) - 1
    if request.processor_mask & (~everybody | 1):
        raise HvError(HvStatus.INVALID_PARAMETER)
    hypervisor.parked_processors = request.processor_mask


def set_system_property(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: SetSystemPropertyInput
) -> None:
    """Keep a property for whoever asks; there is no performance counter and no firmware that it could set.

    Raises UNKNOWN_PROPERTY, INVALID_PARAMETER, and OPERATION_DENIED for a sleep state after the lock.
    """
    _require_root(vp)
    kept = hypervisor.system_properties
    match request.property_id:
        case SystemProperty.PERFORMANCE_COUNTER:
            counter = PerformanceCounter.decode(request.value)
            if counter.reserved_0 or counter.reserved_1:
                raise HvError(HvStatus.INVALID_PARAMETER)
            kept[SystemProperty.PERFORMANCE_COUNTER, counter.event] = request.period
        case SystemProperty.SLEEP_STATE:
            sleep = SleepState.decode(request.value)
            if not FIRST_SLEEP_STATE <= sleep.state <= LOCK_SLEEP_STATES:
                raise HvError(HvStatus.INVALID_PARAMETER)
            if (SystemProperty.SLEEP_STATE, LOCK_SLEEP_STATES) in kept:
                raise HvError(HvStatus.OPERATION_DENIED)
            kept[SystemProperty.SLEEP_STATE, sleep.state] = sleep.pm1a | sleep.pm1b << 8
        case _:
            raise HvError(HvStatus.UNKNOWN_PROPERTY)


def notify_partition_event(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: PartitionEventInput
) -> None:
    """What the root tells of itself. A root that writes its crash dump wants every child to stand still first."""
    _require_root(vp)
    match request.event:
        case PartitionEvent.ALL_LOGICAL_PROCESSORS_STARTED:
            pass
        case PartitionEvent.ROOT_CRASHDUMP:
            if request.argument > CrashdumpAction.ENTRY:
                raise HvError(HvStatus.INVALID_PARAMETER)
            if request.argument == CrashdumpAction.SUSPEND_ALL_VPS:
                for partition in hypervisor.partitions.values():
                    for each in partition.vps.values() if partition is not hypervisor.root else ():
                        each.set_explicit_suspend(True)
        case _:
            raise HvError(HvStatus.INVALID_PARAMETER)
    target.counters["partition_events"] += 1
