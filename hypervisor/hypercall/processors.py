"""Hypercalls on virtual processors and their registers. Hypervisor."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hypervisor.hypercall.abi import VP_INDEX_SELF
from hypervisor.hypercall.call import Reps
from hypervisor.hypercall.layouts import TARGET_VTL, USE_TARGET_VTL, CreateVpInput, RegisterAssociation, VpInput
from hypervisor.hypercall.partitions import check_proximity
from hypervisor.partition import Partition
from hypervisor.status import HvError, HvStatus

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vp import VirtualProcessor


def create_vp(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: CreateVpInput) -> None:
    """A processor that begins explicitly suspended."""
    if request.vp_index >= hypervisor.max_vps or request.vp_index in target.vps:
        raise HvError(HvStatus.INVALID_VP_INDEX)
    if request.flags:
        raise HvError(HvStatus.INVALID_PARAMETER)
    check_proximity(request.proximity)
    hypervisor.create_vp(target, request.vp_index)


def delete_vp(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: VpInput) -> None:
    """Its pages leave guest memory; what waited for it is dropped."""
    if request.vp_index not in target.vps:
        raise HvError(HvStatus.INVALID_VP_INDEX)
    hypervisor.delete_vp(target, request.vp_index)


def _named(vp: VirtualProcessor, target: Partition, request: VpInput) -> VirtualProcessor:
    # What was padding in 2010 names a trust level for callers that set the bit which says so. There is one level.
    if request.target_vtl & USE_TARGET_VTL and request.target_vtl & TARGET_VTL:
        raise HvError(HvStatus.INVALID_PARAMETER)
    untrusted_index = request.vp_index
    if untrusted_index == VP_INDEX_SELF and target is vp.partition:
        return vp
    named = target.vps.get(untrusted_index)
    if named is None:
        raise HvError(HvStatus.INVALID_VP_INDEX)
    return named


def get_vp_registers(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: VpInput, reps: Reps
) -> None:
    """Each element is a register's name; each output its value in 16 bytes."""
    named = _named(vp, target, request)
    for index, (name,) in enumerate(struct.iter_unpack("<I", reps.data)):
        try:
            reps.output += named.get_register(name).to_bytes(16, "little")
        except HvError as error:
            raise HvError(error.status, index) from None


def set_vp_registers(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: VpInput, reps: Reps
) -> None:
    """Each element is a name and a value. Elements before a refused one stay set."""
    named = _named(vp, target, request)
    for index, (name, value) in enumerate(RegisterAssociation.STRUCT.iter_unpack(reps.data)):
        try:
            named.set_register(name, int.from_bytes(value, "little"))
        except HvError as error:
            raise HvError(error.status, index) from None
