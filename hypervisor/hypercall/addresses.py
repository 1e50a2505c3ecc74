"""Hypercalls for a parent that emulates its child's instructions: addresses, and a few bytes of memory. Hypervisor.

A model guest's processors never turn paging on, so what they call a virtual address is a physical one: that is the
translation. Where a parent has set CR0 to paging all the same, or the backend's processors have registers of their own
(`Partition.state_elsewhere`), the hypervisor cannot walk their tables: INVALID_VP_STATE.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from hypervisor.hypercall.processor_layouts import (
    ReadGpaInput,
    ReadGpaOutput,
    TranslateInput,
    TranslateOutput,
    WriteGpaInput,
    WriteGpaOutput,
)
from hypervisor.pages import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Access
from hypervisor.processor_registers import CR0_PAGING, ProcessorRegister
from hypervisor.status import HvError, HvStatus

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.partition import Partition
    from hypervisor.vp import VirtualProcessor

WRITE_BACK = 6
_CACHE_TYPES = frozenset({0, 1, 4, 5, WRITE_BACK})
"""Uncached, write combining, write through, write protected, write back."""
_GREATEST_ACCESS = 16
_CANONICAL_PAGE_BITS = 52
_OVERLAY = 1 << 8

_VALIDATE_READ, _VALIDATE_WRITE, _VALIDATE_EXECUTE = 1 << 0, 1 << 1, 1 << 2
_TRANSLATE_FLAGS = 0x3F
"""The three above, privilege exempt, set page table bits, hold flushes back; the last three change nothing here."""


class TranslateResult(enum.IntEnum):
    """HV_TRANSLATE_GVA_RESULT_CODE, those that can come without page tables."""

    SUCCESS = 0
    GPA_UNMAPPED = 4
    GPA_NO_READ_ACCESS = 5
    GPA_NO_WRITE_ACCESS = 6
    GPA_ILLEGAL_OVERLAY_ACCESS = 7


class AccessResult(enum.IntEnum):
    """HV_ACCESS_GPA_RESULT_CODE."""

    SUCCESS = 0
    UNMAPPED = 1
    READ_INTERCEPT = 2
    WRITE_INTERCEPT = 3
    ILLEGAL_OVERLAY_ACCESS = 4


def translate(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: TranslateInput) -> bytes:
    """What page is behind a virtual one, and whether it may be used so."""
    named = target.vps.get(request.vp_index)
    if named is None:
        raise HvError(HvStatus.INVALID_VP_INDEX)
    if request.control_flags & ~_TRANSLATE_FLAGS or request.gva_page >> _CANONICAL_PAGE_BITS:
        raise HvError(HvStatus.INVALID_PARAMETER)
    if target.state_elsewhere or named.registers.get(ProcessorRegister.CR0, 0) & CR0_PAGING:
        raise HvError(HvStatus.INVALID_VP_STATE)
    gpn = request.gva_page
    result, flags = _look(target, gpn, request.control_flags)
    return TranslateOutput(result, flags, gpn).encode()


def _look(partition: Partition, gpn: int, wanted: int) -> tuple[TranslateResult, int]:
    source = partition.memory.source(gpn)
    if source is None:
        return TranslateResult.GPA_UNMAPPED, 0
    rights = source[2]
    flags = WRITE_BACK
    if partition.overlays.at(gpn) is not None:
        # An overlay page has rights of its own.
        flags |= _OVERLAY
        if wanted & _VALIDATE_WRITE and _is_hypercall_page(partition, gpn):
            return TranslateResult.GPA_ILLEGAL_OVERLAY_ACCESS, flags
        return TranslateResult.SUCCESS, flags
    if wanted & (_VALIDATE_READ | _VALIDATE_EXECUTE) and not rights & Access.READ:
        return TranslateResult.GPA_NO_READ_ACCESS, flags
    if wanted & _VALIDATE_WRITE and not rights & Access.WRITE:
        return TranslateResult.GPA_NO_WRITE_ACCESS, flags
    return TranslateResult.SUCCESS, flags


def _is_hypercall_page(partition: Partition, gpn: int) -> bool:
    return bool(partition.hypercall_msr & 1) and partition.hypercall_msr >> PAGE_SHIFT == gpn


def _check(target: Partition, request: ReadGpaInput | WriteGpaInput) -> None:
    if request.vp_index not in target.vps:
        raise HvError(HvStatus.INVALID_VP_INDEX)
    count = request.byte_count
    if count > _GREATEST_ACCESS or (request.gpa & PAGE_MASK) + count > PAGE_SIZE:
        raise HvError(HvStatus.INVALID_PARAMETER)
    if request.control_flags not in _CACHE_TYPES:
        raise HvError(HvStatus.INVALID_PARAMETER)


def read_gpa(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: ReadGpaInput) -> bytes:
    """Up to 16 bytes of one page, as the processor would read them: what an overlay page hides is not seen."""
    _check(target, request)
    gpn = request.gpa >> PAGE_SHIFT
    source = target.memory.source(gpn)
    if source is None:
        return ReadGpaOutput(AccessResult.UNMAPPED).encode()
    if not source[2] & Access.READ:
        return ReadGpaOutput(AccessResult.READ_INTERCEPT).encode()
    data = target.memory.read(request.gpa, request.byte_count) if request.byte_count else b""
    return ReadGpaOutput(AccessResult.SUCCESS, data=data.ljust(16, b"\0")).encode()


def write_gpa(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: WriteGpaInput) -> bytes:
    """As `read_gpa`, the other way. The hypercall page is for reading and executing."""
    _check(target, request)
    gpn = request.gpa >> PAGE_SHIFT
    source = target.memory.source(gpn)
    if source is None:
        return WriteGpaOutput(AccessResult.UNMAPPED).encode()
    if _is_hypercall_page(target, gpn):
        return WriteGpaOutput(AccessResult.ILLEGAL_OVERLAY_ACCESS).encode()
    if not source[2] & Access.WRITE:
        return WriteGpaOutput(AccessResult.WRITE_INTERCEPT).encode()
    if request.byte_count:
        target.memory.write(request.gpa, request.data[: request.byte_count])
    return WriteGpaOutput(AccessResult.SUCCESS).encode()
