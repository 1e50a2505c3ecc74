"""Hypercalls on statistics: pages of counters, and run times of logical processors. Hypervisor."""

from __future__ import annotations

import enum
from functools import partial
from typing import TYPE_CHECKING

from hypervisor.hypercall.statistics_layouts import (
    ProcessorIdentity,
    RunTimeInput,
    RunTimeOutput,
    StatsPageInput,
    StatsPageOutput,
    VpIdentity,
)
from hypervisor.partition import ROOT_ID, Partition
from hypervisor.statistics import (
    Counters,
    Identity,
    hypervisor_counters,
    of_partition,
    of_vp,
    processor_counters,
    processor_run_time,
)
from hypervisor.status import HvError, HvStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vp import VirtualProcessor

SELF_AREA = 0
"""HV_STATS_AREA_SELF. Who asks for the parent's area or the internal one gets INVALID_PARAMETER, as from hypervisors
that have no such areas; Linux then does with this one."""


class StatsObject(enum.IntEnum):
    """HV_STATS_OBJECT_TYPE."""

    HYPERVISOR = 0x00000001
    LOGICAL_PROCESSOR = 0x00000002
    PARTITION = 0x00010001
    VP = 0x00010002


def map_stats_page(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: StatsPageInput) -> bytes:
    """A page in the root's GPA space, at a place of the hypervisor's choice. The root only: it has such places."""
    identity, counters = _object(hypervisor, vp, request)
    return StatsPageOutput(hypervisor.statistics.map(identity, counters)).encode()


def unmap_stats_page(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: StatsPageInput) -> None:
    """Once for each mapping, also of an object that has gone meanwhile. INVALID_PARAMETER where it is not mapped."""
    _require_root(vp)
    if not hypervisor.statistics.unmap(_identity(request)):
        raise HvError(HvStatus.INVALID_PARAMETER)


def get_logical_processor_run_time(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: RunTimeInput
) -> bytes:
    """The clock, and how much of it a logical processor was busy. Raises INVALID_LP_INDEX."""
    _require_root(vp)
    if request.lp_index >= hypervisor.logical_processors:
        raise HvError(HvStatus.INVALID_LP_INDEX)
    return RunTimeOutput(hypervisor.clock(), processor_run_time(hypervisor, request.lp_index), 0, 0).encode()


def _require_root(vp: VirtualProcessor) -> None:
    if vp.partition.id != ROOT_ID:
        raise HvError(HvStatus.ACCESS_DENIED)


def _identity(request: StatsPageInput) -> Identity:
    """Raises INVALID_PARAMETER for an unknown object, another area, or anything in a reserved byte."""
    named = VpIdentity.decode(request.identity)
    if named.area != SELF_AREA or named.flags or named.reserved:
        raise HvError(HvStatus.INVALID_PARAMETER)
    match request.object_type:
        case StatsObject.HYPERVISOR:
            number, index, reserved = 0, 0, named.partition_id or named.vp_index
        case StatsObject.LOGICAL_PROCESSOR:
            number, index = ProcessorIdentity.decode(request.identity).lp_index, 0
            reserved = named.partition_id >> 32 or named.vp_index
        case StatsObject.PARTITION:
            number, index, reserved = named.partition_id, 0, named.vp_index
        case StatsObject.VP:
            number, index, reserved = named.partition_id, named.vp_index, 0
        case _:
            raise HvError(HvStatus.INVALID_PARAMETER)
    if reserved:
        raise HvError(HvStatus.INVALID_PARAMETER)
    return request.object_type, number, index


def _object(
    hypervisor: Hypervisor, vp: VirtualProcessor, request: StatsPageInput
) -> tuple[Identity, Callable[[], Counters]]:
    _require_root(vp)
    identity = _identity(request)
    kind, number, index = identity
    if kind == StatsObject.HYPERVISOR:
        return identity, partial(hypervisor_counters, hypervisor)
    if kind == StatsObject.LOGICAL_PROCESSOR:
        if number >= hypervisor.logical_processors:
            raise HvError(HvStatus.INVALID_LP_INDEX)
        return identity, partial(processor_counters, hypervisor, number)
    partition = hypervisor.by_id(number)
    if kind == StatsObject.PARTITION:
        return identity, of_partition(partition)
    named = partition.vps.get(index)
    if named is None:
        raise HvError(HvStatus.INVALID_VP_INDEX)
    return identity, of_vp(named)
