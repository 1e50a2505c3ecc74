"""Hypercalls that interrupt processors: a guest's own, and those of a parent's child. Hypervisor."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import TYPE_CHECKING

from hypervisor.hypercall.layouts import PartitionInput
from hypervisor.hypercall.processor_layouts import AssertInterruptInput, SendIpiExInput, SendIpiInput
from hypervisor.hypercall.processor_set import in_mask, in_set
from hypervisor.status import HvError, HvStatus
from hypervisor.synic.messages import LEAST_VECTOR

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.partition import Partition
    from hypervisor.vp import VirtualProcessor

NMI_VECTOR = 2
_GREATEST_VECTOR = 0xFF
_BROADCAST = 0xFF
_LEVEL_TRIGGERED, _LOGICAL = 1 << 0, 1 << 1


class InterruptType(enum.IntEnum):
    """HV_INTERRUPT_TYPE, those that HvAssertVirtualInterrupt takes."""

    FIXED = 0
    LOWEST_PRIORITY = 1
    NMI = 4
    INIT = 5
    SIPI = 6
    EXTINT = 7
    """From the legacy interrupt controller, for the first processor. One at a time a partition."""


# --- between the processors of a partition


def _send(partition: Partition, targets: Iterable[VirtualProcessor], vector: int, vtl: int) -> None:
    if not LEAST_VECTOR <= vector <= _GREATEST_VECTOR or vtl:
        raise HvError(HvStatus.INVALID_PARAMETER)
    partition.counters["cluster_ipis"] += 1
    for target in targets:
        target.raise_interrupt(vector)


def send_ipi(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: SendIpiInput) -> None:
    """A fixed interrupt to processors of the caller's own partition. Bits of processors that are not there are fine."""
    _send(target, in_mask(target, request.processor_mask), request.vector, request.target_vtl)


def send_ipi_ex(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: SendIpiExInput, header: bytes
) -> None:
    """As above, to a processor set."""
    targets = in_set(target, request.set_format, request.valid_banks, header)
    _send(target, targets, request.vector, request.target_vtl)


# --- from a parent to its child


def assert_interrupt(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: AssertInterruptInput
) -> None:
    """Interrupt a child's processors, as its interrupt controller would.

    Edge and level are one here: an interrupt is pending until it is taken. INIT and SIPI find processors that run
    already, so nothing is left to do for them. An ExtInt replaces one that still waits; after one that was taken,
    HvClearVirtualInterrupt has to come first (ACKNOWLEDGED).
    """
    if request.target_vtl:
        raise HvError(HvStatus.INVALID_PARAMETER)
    assert_interrupt_2010(hypervisor, vp, target, request)


def assert_interrupt_2010(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: AssertInterruptInput
) -> None:
    """As above, for callers that know of no trust levels; they may have anything where those are named."""
    if request.flags & ~(_LEVEL_TRIGGERED | _LOGICAL):
        raise HvError(HvStatus.INVALID_PARAMETER)
    vector = request.vector
    match request.interrupt_type:
        case InterruptType.FIXED | InterruptType.LOWEST_PRIORITY:
            valid = LEAST_VECTOR <= vector <= _GREATEST_VECTOR
        case InterruptType.NMI | InterruptType.INIT:
            valid = vector == 0
        case InterruptType.SIPI | InterruptType.EXTINT:
            valid = vector <= _GREATEST_VECTOR
        case _:
            valid = False
    if not valid:
        raise HvError(HvStatus.INVALID_PARAMETER)
    if request.interrupt_type == InterruptType.EXTINT:
        _assert_external(target, vector)
        return
    found = _destination(target, request.destination, bool(request.flags & _LOGICAL))
    if not found:
        raise HvError(HvStatus.INVALID_VP_INDEX)
    target.counters["interrupts_asserted"] += 1
    match request.interrupt_type:
        case InterruptType.FIXED:
            for each in found:
                each.raise_interrupt(vector)
        case InterruptType.LOWEST_PRIORITY:
            min(found, key=lambda each: each.tpr).raise_interrupt(vector)
        case InterruptType.NMI:
            if target.state_elsewhere:
                # A backend with interrupt controllers of its own takes vectors, and an NMI has none.
                raise HvError(HvStatus.FEATURE_UNAVAILABLE)
            for each in found:
                each.raise_interrupt(NMI_VECTOR)
        case _:  # INIT and SIPI
            pass


def _destination(partition: Partition, address: int, logical: bool) -> list[VirtualProcessor]:
    """Physical: an APIC ID, which is the processor's index, or FFh for all. Logical: flat, bit n for processor n."""
    if logical:
        return in_mask(partition, address)
    if address == _BROADCAST:
        return list(partition.vps.values())
    vp = partition.vps.get(address)
    return [] if vp is None else [vp]


def _assert_external(partition: Partition, vector: int) -> None:
    first = partition.vps.get(0)
    if first is None:
        raise HvError(HvStatus.INVALID_VP_INDEX)
    waiting = partition.external_interrupt
    if waiting is not None:
        if waiting not in first.pending:
            raise HvError(HvStatus.ACKNOWLEDGED)
        first.pending.discard(waiting)
    partition.external_interrupt = vector
    partition.counters["interrupts_asserted"] += 1
    first.raise_interrupt(vector)


def clear_interrupt(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: PartitionInput) -> None:
    """Be done with an ExtInt that the child has taken; NOT_ACKNOWLEDGED where there is none, or it still waits."""
    vector = target.external_interrupt
    first = target.vps.get(0)
    if vector is None or (first is not None and vector in first.pending):
        raise HvError(HvStatus.NOT_ACKNOWLEDGED)
    target.external_interrupt = None
