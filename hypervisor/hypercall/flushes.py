"""Hypercalls on what processors cache of page tables. Hypervisor.

Model guests have no page tables, so a flush is checked and then done. Where the processors translate addresses by
themselves (`Partition.state_elsewhere`), what they cache is out of the hypervisor's hands: FEATURE_UNAVAILABLE, upon
which a kernel flushes by interrupts of its own. None of these calls is recommended to anybody in CPUID.

No processor ever keeps others from flushing (TlbFlushInhibit): with nothing cached there is nothing to hold back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.hypercall.processor_layouts import FlushExInput, FlushInput, SwitchAddressSpaceInput
from hypervisor.hypercall.processor_set import in_set
from hypervisor.processor_registers import ProcessorRegister
from hypervisor.status import HvError, HvStatus

if TYPE_CHECKING:
    from hypervisor.hypercall.call import Reps
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.partition import Partition
    from hypervisor.vp import VirtualProcessor

_FLAGS = 0xF
"""All processors, all address spaces, non-global mappings only, extended range format."""
_ALL_SPACES = 1 << 1
_ADDRESS_BITS = 52


def switch_address_space(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: SwitchAddressSpaceInput
) -> None:
    """MOV to CR3."""
    if request.address_space >> _ADDRESS_BITS:
        raise HvError(HvStatus.INVALID_PARAMETER)
    _require_model(target)
    vp.registers[ProcessorRegister.CR3] = request.address_space


def flush(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: FlushInput) -> None:
    """Everything of one address space, or of all."""
    _flush(target, request.flags, request.address_space)


def flush_list(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: FlushInput, reps: Reps
) -> None:
    """The ranges of the list; any 8 bytes are a range."""
    _flush(target, request.flags, request.address_space)


def flush_ex(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: FlushExInput, header: bytes
) -> None:
    """As `flush`, with a processor set."""
    in_set(target, request.set_format, request.valid_banks, header)
    _flush(target, request.flags, request.address_space)


def flush_list_ex(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: FlushExInput, header: bytes, reps: Reps
) -> None:
    """As `flush_list`, with a processor set."""
    in_set(target, request.set_format, request.valid_banks, header)
    _flush(target, request.flags, request.address_space)


def _flush(partition: Partition, untrusted_flags: int, untrusted_space: int) -> None:
    if untrusted_flags & ~_FLAGS or (untrusted_space >> _ADDRESS_BITS and not untrusted_flags & _ALL_SPACES):
        raise HvError(HvStatus.INVALID_PARAMETER)
    _require_model(partition)
    partition.counters["flushes"] += 1


def _require_model(partition: Partition) -> None:
    if partition.state_elsewhere:
        raise HvError(HvStatus.FEATURE_UNAVAILABLE)
