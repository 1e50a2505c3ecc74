"""Hypercalls that make, change and end partitions. Hypervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.hypercall.call import Unfinished
from hypervisor.hypercall.layouts import (
    PROXIMITY_PREFERRED,
    PROXIMITY_VALID,
    CreatePartitionInput,
    GetNextChildPartitionInput,
    GetPartitionPropertyInput,
    NoInput,
    PartitionInput,
    PartitionOutput,
    PropertyOutput,
    SetPartitionPropertyInput,
)
from hypervisor.partition import PageCost, Partition, PartitionOperation, PartitionState
from hypervisor.status import HvError, HvStatus

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vp import VirtualProcessor

FREED_A_TRIP = 64
"""Objects that one trip of HvFinalizePartition frees."""


def check_proximity(untrusted_info: int) -> None:
    """There is one memory node, 0. Raises INVALID_PARAMETER for another, and for reserved flags."""
    domain, flags = untrusted_info & 0xFFFFFFFF, untrusted_info >> 32
    if flags & ~(PROXIMITY_VALID | PROXIMITY_PREFERRED) or (flags & PROXIMITY_VALID and domain):
        raise HvError(HvStatus.INVALID_PARAMETER)


def create_partition(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: CreatePartitionInput
) -> bytes:
    """A new child of the caller, which pays for the record."""
    if target.depth >= hypervisor.max_depth:
        raise HvError(HvStatus.PARTITION_TOO_DEEP)
    if request.flags:
        raise HvError(HvStatus.INVALID_PARAMETER)
    check_proximity(request.proximity)
    return PartitionOutput(hypervisor.create_partition(target).id).encode()


def initialize_partition(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: PartitionInput
) -> None:
    """From here on the partition can own things."""
    target.charge(PageCost.INITIALIZE)
    target.advance(PartitionOperation.INITIALIZE)
    hypervisor.partition_changed(target)


def finalize_partition(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: PartitionInput
) -> None:
    """Free all that the partition owns, a piece a trip; there is no way back after the first."""
    if target.children:
        raise HvError(HvStatus.OPERATION_DENIED)
    if target.state is PartitionState.ACTIVE:
        target.advance(PartitionOperation.BEGIN_FINALIZE)
        hypervisor.partition_changed(target)
    if target.teardown is None:
        target.teardown = hypervisor.teardown(target)
    for _ in range(FREED_A_TRIP):
        if next(target.teardown, None) is None:
            target.teardown = None
            target.advance(PartitionOperation.END_FINALIZE)
            hypervisor.partition_changed(target)
            return
    raise Unfinished


def delete_partition(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: PartitionInput) -> None:
    """The ID is gone for good. Pages still in the pool would be lost, so they must have been withdrawn."""
    if target.pool.deposited:
        raise HvError(HvStatus.OPERATION_DENIED)
    hypervisor.delete_partition(target)


def get_partition_property(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: GetPartitionPropertyInput
) -> bytes:
    """One property's value."""
    return PropertyOutput(target.get_property(request.code)).encode()


def set_partition_property(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: SetPartitionPropertyInput
) -> None:
    """Change one property."""
    target.set_property(request.code, request.value)


def get_partition_id(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: NoInput) -> bytes:
    """The caller's own ID."""
    return PartitionOutput(target.id).encode()


def get_next_child_partition(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: GetNextChildPartitionInput
) -> bytes:
    """Children in the order of creation; 0 starts and ends the walk."""
    children = list(target.children)
    if request.previous_id == 0:
        position = 0
    elif request.previous_id in target.children:
        position = children.index(request.previous_id) + 1
    else:
        raise HvError(HvStatus.INVALID_PARTITION_ID)
    return PartitionOutput(children[position] if position < len(children) else 0).encode()
