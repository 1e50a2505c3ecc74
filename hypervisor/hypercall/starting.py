"""Hypercalls that find and start processors. Hypervisor."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hypervisor.hypercall.processor_layouts import StartVpInput, VpFromApicInput
from hypervisor.processor_registers import ProcessorRegister, unsound
from hypervisor.status import HvError, HvStatus

if TYPE_CHECKING:
    from hypervisor.hypercall.call import Reps
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.partition import Partition
    from hypervisor.vp import VirtualProcessor

_Name = ProcessorRegister
CONTEXT: tuple[tuple[ProcessorRegister, int], ...] = (
    *((name, 8) for name in (_Name.RIP, _Name.RSP, _Name.RFLAGS)),
    *((name, 16) for name in (_Name.CS, _Name.DS, _Name.ES, _Name.FS, _Name.GS, _Name.SS, _Name.TR, _Name.LDTR)),
    *((name, 16) for name in (_Name.IDTR, _Name.GDTR)),
    *((name, 8) for name in (_Name.EFER, _Name.CR0, _Name.CR3, _Name.CR4, _Name.PAT)),
)
"""HV_INITIAL_VP_CONTEXT: registers in their order, and their bytes."""


def start_vp(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: StartVpInput) -> None:
    """Give a processor its first registers and let it run; it is for a parent, and for processors that do not run yet.

    All processors of a guest here run from its first instruction on, and none is in the state that waits for this
    call. A guest cannot undo its parent's suspension, so of its own processors it hears INVALID_VP_STATE.
    """
    named = target.vps.get(request.vp_index)
    if named is None:
        raise HvError(HvStatus.INVALID_VP_INDEX)
    if request.target_vtl or request.reserved_0 or request.reserved_1:
        raise HvError(HvStatus.INVALID_PARAMETER)
    if target is vp.partition or not named.explicit_suspend or target.state_elsewhere:
        raise HvError(HvStatus.INVALID_VP_STATE)
    registers, at = {}, 0
    for name, size in CONTEXT:
        registers[int(name)] = int.from_bytes(request.context[at : at + size], "little")
        at += size
    if unsound(registers):
        raise HvError(HvStatus.INVALID_REGISTER_VALUE)
    named.registers.update(registers)
    named.set_explicit_suspend(False)


def vp_from_apic(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: VpFromApicInput, reps: Reps
) -> None:
    """Processors by the IDs of their local APICs, which are their indexes. Raises INVALID_PARAMETER for one unknown."""
    if request.target_vtl:
        raise HvError(HvStatus.INVALID_PARAMETER)
    for position, (apic_id,) in enumerate(struct.iter_unpack("<I", reps.data)):
        if apic_id not in target.vps:
            raise HvError(HvStatus.INVALID_PARAMETER, position)
        reps.output += struct.pack("<I", apic_id)
