"""Intercepts that a parent has installed with HvInstallIntercept, and what becomes of an access they hit. Hypervisor.

An access that is intercepted has not been made. The processor is suspended, its registers show what it was about to do,
and a message goes to the parent's SINT0. The parent looks, writes registers, and clears the suspension:

- it moved RIP past the instruction: the access is over, and what it gives is in RAX (CPUID: RAX, RBX, RCX, RDX; RDMSR:
  EDX:EAX);
- it wrote PENDING_INTERRUPTION: the software gets that exception, #GP mostly;
- it did neither: the access is made again, and hits the intercept again if that is still there.

A model guest's RIP says nothing else: it counts the bytes of instructions that a parent has stepped over.

How this stands to `Partition.intercepts`, the sink of the worker's own devices: the sink is the fast way, a function
call for each port access, as if the parent had installed intercepts for all ports and answered them in no time. An
intercept that is installed for a port comes before the sink; an access to any other port goes to the sink as ever.
While nothing is installed, all this costs one test of `Partition.interception`.

On KVM only accesses that come out of the kernel get here: ports and the synthetic MSRs. CPUID, the processor's own
MSRs and exceptions do not.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from hypervisor import cpuid as cpuid_leaves
from hypervisor import msr_table
from hypervisor.intercept import (
    CpuidIntercept,
    ExceptionIntercept,
    InterceptAccess,
    InterceptMask,
    InterceptType,
    IoPortIntercept,
    MsrIntercept,
)
from hypervisor.machine import GeneralProtection, Intercepted, InvalidOpcode, ProcessorFault, VpStopped
from hypervisor.partition import PageCost
from hypervisor.processor_registers import (
    EXCEPTION_VECTORS,
    GENERAL_PROTECTION_VECTOR,
    INVALID_OPCODE_VECTOR,
    PENDING,
    PendingType,
    ProcessorRegister,
)
from hypervisor.status import HvError, HvStatus
from hypervisor.synic import ports
from hypervisor.synic.messages import InterceptHeader, MessageType
from hypervisor.wire import Wire

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.partition import Partition
    from hypervisor.vp import VirtualProcessor

T = TypeVar("T")

_MOST_TRIES = 16
"""How often an access is made again within one trap: a parent that never answers must not hang the host."""
_BOTH = InterceptMask.READ | InterceptMask.WRITE
_LEGAL = {
    InterceptType.IO_PORT: _BOTH,
    InterceptType.MSR: _BOTH,
    InterceptType.CPUID: InterceptMask.EXECUTE,
    InterceptType.EXCEPTION: InterceptMask.EXECUTE,
}
"""The only access mask of each type besides none."""
_LIMIT = {
    InterceptType.IO_PORT: 0x10000,
    InterceptType.MSR: 1,
    InterceptType.CPUID: 1 << 32,
    InterceptType.EXCEPTION: EXCEPTION_VECTORS,
}
"""Parameters are below it; MSR intercepts have none, so theirs is 0."""
_TWO_BYTES = 2
"""RDMSR, WRMSR and CPUID; VMCALL has three, but nobody steps into it."""
_IN_OUT = {
    (1, False): b"\xec",
    (2, False): b"\x66\xed",
    (4, False): b"\xed",
    (1, True): b"\xee",
    (2, True): b"\x66\xef",
    (4, True): b"\xef",
}
"""IN and OUT by DX: (bytes, whether OUT) to machine code."""
_GENERAL = struct.Struct("<16Q")
_LOW = 0xFFFFFFFF


@attrs.define(eq=False)
class Interception:
    """The intercepts of one partition."""

    ports: set[int] = attrs.field(factory=set)
    msrs: bool = False
    leaves: set[int] = attrs.field(factory=set)
    """CPUID leaves; each costs the partition's pool a page."""
    vectors: set[int] = attrs.field(factory=set)

    def __bool__(self) -> bool:
        return bool(self.ports or self.msrs or self.leaves or self.vectors)


def install(partition: Partition, kind: int, access: int, parameter: int) -> None:
    """HvInstallIntercept. Raises INVALID_PARAMETER, and INSUFFICIENT_MEMORY for a CPUID leaf."""
    try:
        known = InterceptType(kind)
    except ValueError:
        raise HvError(HvStatus.INVALID_PARAMETER) from None
    if access not in (InterceptMask.NONE, _LEGAL[known]) or parameter >= _LIMIT[known]:
        raise HvError(HvStatus.INVALID_PARAMETER)
    there = partition.interception or Interception()
    match known:
        case InterceptType.MSR:
            there.msrs = bool(access)
        case InterceptType.IO_PORT:
            _put(there.ports, parameter, bool(access))
        case InterceptType.EXCEPTION:
            _put(there.vectors, parameter, bool(access))
        case InterceptType.CPUID:
            if access and parameter not in there.leaves:
                partition.charge(PageCost.CPUID_INTERCEPT)
            elif not access and parameter in there.leaves:
                partition.discharge(PageCost.CPUID_INTERCEPT)
            _put(there.leaves, parameter, bool(access))
    partition.interception = there if there else None


def remove_all(partition: Partition) -> None:
    """The partition goes."""
    if partition.interception is not None:
        partition.discharge(len(partition.interception.leaves) * PageCost.CPUID_INTERCEPT)
        partition.interception = None


def _put(numbers: set[int], number: int, there: bool) -> None:
    if there:
        numbers.add(number)
    else:
        numbers.discard(number)


# --- accesses by software whose partition has intercepts; each is the way of `Hypervisor` with the question first


def read_msr(hypervisor: Hypervisor, vp: VirtualProcessor, msr: int, tries: int = 0) -> int:
    """RDMSR."""
    there = vp.partition.interception
    if there is not None and there.msrs and not _offered(vp, msr):
        registers = vp.registers
        registers[ProcessorRegister.RCX] = msr
        body = MsrIntercept(msr, rdx=_register(vp, ProcessorRegister.RDX), rax=_register(vp, ProcessorRegister.RAX))
        again = partial(read_msr, hypervisor, vp, msr)
        return _stop(hypervisor, vp, MessageType.MSR_INTERCEPT, InterceptAccess.READ, body, again, _edx_eax, tries)
    try:
        return msr_table.read_msr(hypervisor, vp, msr)
    except GeneralProtection as fault:
        return _fault(hypervisor, vp, fault, partial(read_msr, hypervisor, vp, msr), _edx_eax, tries)


def write_msr(hypervisor: Hypervisor, vp: VirtualProcessor, msr: int, value: int, tries: int = 0) -> None:
    """WRMSR."""
    there = vp.partition.interception
    again = partial(write_msr, hypervisor, vp, msr, value)
    # A model guest can say numbers that no register holds; they are #GP as ever.
    if there is not None and there.msrs and not value >> 64 and not _offered(vp, msr):
        registers = vp.registers
        registers[ProcessorRegister.RCX] = msr
        low, high = value & _LOW, value >> 32
        registers[ProcessorRegister.RAX], registers[ProcessorRegister.RDX] = low, high
        body = MsrIntercept(msr, rdx=high, rax=low)
        _stop(hypervisor, vp, MessageType.MSR_INTERCEPT, InterceptAccess.WRITE, body, again, _nothing, tries)
        return
    try:
        msr_table.write_msr(hypervisor, vp, msr, value)
    except GeneralProtection as fault:
        _fault(hypervisor, vp, fault, again, _nothing, tries)


def cpuid(
    hypervisor: Hypervisor, vp: VirtualProcessor, leaf: int, subleaf: int, tries: int = 0
) -> cpuid_leaves.Registers:
    """CPUID."""
    default = cpuid_leaves.cpuid(hypervisor, vp, leaf, subleaf)
    there = vp.partition.interception
    if there is None or leaf not in there.leaves:
        return default
    registers = vp.registers
    registers[ProcessorRegister.RAX], registers[ProcessorRegister.RCX] = leaf, subleaf
    body = CpuidIntercept(
        *(leaf, subleaf, _register(vp, ProcessorRegister.RDX), _register(vp, ProcessorRegister.RBX)),
        *(default[0], default[2], default[3], default[1]),
    )
    again = partial(cpuid, hypervisor, vp, leaf, subleaf)
    return _stop(hypervisor, vp, MessageType.CPUID_INTERCEPT, InterceptAccess.EXECUTE, body, again, _four, tries)


def port_in(hypervisor: Hypervisor, vp: VirtualProcessor, port: int, size: int, tries: int = 0) -> int:
    """IN of a port that is intercepted, or that was when the access was first made."""
    if not _intercepts_port(vp, port):
        return hypervisor.port_in(vp, port, size)
    code = _IN_OUT[size, False]
    body = _port(vp, port, size, code, _register(vp, ProcessorRegister.RAX))
    again = partial(port_in, hypervisor, vp, port, size)
    result = partial(_al_ax_eax, size=size)
    kind = MessageType.IO_PORT_INTERCEPT
    return _stop(hypervisor, vp, kind, InterceptAccess.READ, body, again, result, tries, length=len(code))


def port_out(hypervisor: Hypervisor, vp: VirtualProcessor, port: int, size: int, value: int, tries: int = 0) -> None:
    """OUT, as `port_in`."""
    if not _intercepts_port(vp, port):
        hypervisor.port_out(vp, port, size, value)
        return
    code = _IN_OUT[size, True]
    body = _port(vp, port, size, code, value)
    again = partial(port_out, hypervisor, vp, port, size, value)
    kind = MessageType.IO_PORT_INTERCEPT
    _stop(hypervisor, vp, kind, InterceptAccess.WRITE, body, again, _nothing, tries, length=len(code))


def invalid_opcode(hypervisor: Hypervisor, vp: VirtualProcessor, fault: InvalidOpcode, again: Callable[[], int]) -> int:
    """A hypercall where none is legal; raises the fault unless the parent wanted to see it."""
    return _fault(hypervisor, vp, fault, lambda tries=0: again(), _rax, 0)


def _intercepts_port(vp: VirtualProcessor, port: int) -> bool:
    there = vp.partition.interception
    return there is not None and port in there.ports


def _offered(vp: VirtualProcessor, msr: int) -> bool:
    """Whether the hypervisor has the register for this partition; if so, what it says of an access holds."""
    row = msr_table.TABLE.get(msr)
    return row is not None and not row.privilege & ~vp.partition.privileges


def _port(vp: VirtualProcessor, port: int, size: int, code: bytes, rax: int) -> IoPortIntercept:
    vp.registers[ProcessorRegister.RAX], vp.registers[ProcessorRegister.RDX] = rax, port
    return IoPortIntercept(
        port,
        access_info=size,
        instruction_byte_count=len(code),
        rax=rax,
        instruction_bytes=code.ljust(16, b"\0"),
        rcx=_register(vp, ProcessorRegister.RCX),
    )


# --- stopping and going on


def _fault(
    hypervisor: Hypervisor,
    vp: VirtualProcessor,
    fault: GeneralProtection | InvalidOpcode,
    again: Callable[..., T],
    result: Callable[[VirtualProcessor], Any],
    tries: int,
) -> T:
    """An exception on its way to the software: the parent sees it first, if it has asked to."""
    is_protection = isinstance(fault, GeneralProtection)
    vector = GENERAL_PROTECTION_VECTOR if is_protection else INVALID_OPCODE_VECTOR
    there = vp.partition.interception
    if there is None or vector not in there.vectors:
        raise fault
    general = (_register(vp, name) for name in range(ProcessorRegister.RAX, ProcessorRegister.R15 + 1))
    body = ExceptionIntercept(vector, exception_info=int(is_protection), general_registers=_GENERAL.pack(*general))
    kind = MessageType.EXCEPTION_INTERCEPT
    return _stop(hypervisor, vp, kind, InterceptAccess.EXECUTE, body, again, result, tries)


def _stop(
    hypervisor: Hypervisor,
    vp: VirtualProcessor,
    kind: MessageType,
    access: InterceptAccess,
    body: Wire,
    again: Callable[..., T],
    result: Callable[[VirtualProcessor], Any],
    tries: int,
    *,
    length: int = _TWO_BYTES,
) -> T:
    """Suspend the processor and tell the parent; go on at once where it answered in its interrupt."""
    if tries >= _MOST_TRIES:
        hypervisor.unrecoverable_exception(vp, f"{kind.name}: the parent resumes without an answer")
        raise VpStopped("the parent does not answer an intercept")
    rip = vp.registers[ProcessorRegister.RIP] = vp.get_register(ProcessorRegister.RIP)
    flags = vp.get_register(ProcessorRegister.RFLAGS)
    header = InterceptHeader(vp.index, length, access, rip=rip, rflags=flags)
    vp.partition.counters["intercepts"] += 1
    # Suspended first: the message's interrupt runs the root's handler at once, and that may resume the VP.
    vp.stop_on_intercept()
    ports.post_intercept(hypervisor, vp, kind, header.encode() + body.encode())

    def finish() -> T:
        _take_pending(vp)
        if _register(vp, ProcessorRegister.RIP) == rip:
            return again(tries=tries + 1)
        answer: T = result(vp)
        return answer

    if vp.intercept_suspend:
        raise Intercepted(kind.name, finish)
    return finish()


def _take_pending(vp: VirtualProcessor) -> None:
    """What the parent has put in the way of the next instruction. Raises the exception, if it is one."""
    pending = vp.registers.pop(ProcessorRegister.PENDING_INTERRUPTION, 0)
    if not pending & PENDING:
        return
    vector = pending >> 16 & 0xFFFF
    if pending >> 1 & 7 != PendingType.EXCEPTION:
        vp.raise_interrupt(vector)
        return
    match vector:
        case 13:
            raise GeneralProtection("the parent's answer to an intercept")
        case 6:
            raise InvalidOpcode("the parent's answer to an intercept")
        case _:
            raise ProcessorFault(f"exception {vector}, the parent's answer to an intercept")


def _register(vp: VirtualProcessor, name: int) -> int:
    return vp.registers.get(name, 0)


def _rax(vp: VirtualProcessor) -> int:
    return _register(vp, ProcessorRegister.RAX)


def _al_ax_eax(vp: VirtualProcessor, size: int) -> int:
    return _rax(vp) & (1 << 8 * size) - 1


def _edx_eax(vp: VirtualProcessor) -> int:
    return (_register(vp, ProcessorRegister.RDX) & _LOW) << 32 | _rax(vp) & _LOW


def _four(vp: VirtualProcessor) -> tuple[int, int, int, int]:
    names = (ProcessorRegister.RAX, ProcessorRegister.RBX, ProcessorRegister.RCX, ProcessorRegister.RDX)
    eax, ebx, ecx, edx = (_register(vp, name) & _LOW for name in names)
    return eax, ebx, ecx, edx


def _nothing(vp: VirtualProcessor) -> None:
    """WRMSR and OUT give nothing."""
