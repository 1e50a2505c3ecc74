"""Intercepts of one VM: what the root's software asks to see of its accesses, and its answers. Root side.

    vm.intercepts.on_port(0x80, lambda access: access.give(0xFF))
    vm.intercepts.on_msr(lambda access: access.refuse())

A handler is called in the root's interrupt while the processor stands still. It may answer there, or keep the access
and answer when it knows; until then the VM's software waits. The worker's own devices (COM1, the clock, power) do not
go this way: they are a sink that is called at each access (`hypervisor.interception` compares the two).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs

from hypervisor.intercept import (
    CpuidIntercept,
    ExceptionIntercept,
    InterceptAccess,
    InterceptMask,
    InterceptType,
    IoPortIntercept,
    MsrIntercept,
)
from hypervisor.processor_registers import GENERAL_PROTECTION_VECTOR, ProcessorRegister, pending_exception
from hypervisor.synic.messages import InterceptHeader, MessageType

if TYPE_CHECKING:
    from partitions.root.winhv import HypervisorMessage, WinHv

INTERCEPT_SUSPEND: Final = 0x0000_0001
"""HvRegisterInterceptSuspend."""
_READ_WRITE: Final = int(InterceptMask.READ | InterceptMask.WRITE)
_EXECUTE: Final = int(InterceptMask.EXECUTE)
_ACCESS: Final = {
    InterceptType.IO_PORT: _READ_WRITE,
    InterceptType.MSR: _READ_WRITE,
    InterceptType.CPUID: _EXECUTE,
    InterceptType.EXCEPTION: _EXECUTE,
}


@attrs.define(eq=False)
class Access:
    """One access that waits for its answer; it takes one, and only one."""

    _intercepts: Intercepts = attrs.field(repr=False)
    _header: InterceptHeader = attrs.field(repr=False)
    kind: InterceptType
    number: int
    """The port, the register, the leaf or the vector."""
    size: int = 0
    """Bytes of a port access."""
    value: int = 0
    """What OUT or WRMSR writes; the subleaf of CPUID."""
    default: tuple[int, int, int, int] = (0, 0, 0, 0)
    """EAX, EBX, ECX, EDX that CPUID would give."""
    answered: bool = False

    @property
    def vp_index(self) -> int:
        """The processor that stands still."""
        return self._header.vp_index

    @property
    def writes(self) -> bool:
        """OUT or WRMSR."""
        return self._header.access_type == InterceptAccess.WRITE

    def give(self, value: int = 0) -> None:
        """The access is over: what IN or RDMSR reads; nothing for OUT and WRMSR; RAX for an exception."""
        if self.kind is InterceptType.MSR and not self.writes:
            low, high = value & 0xFFFFFFFF, value >> 32
            self._step_over((ProcessorRegister.RAX, low), (ProcessorRegister.RDX, high))
        else:
            self._step_over((ProcessorRegister.RAX, value))

    def give_leaf(self, eax: int, ebx: int, ecx: int, edx: int) -> None:
        """The access is over: what CPUID answers."""
        self._step_over(
            (ProcessorRegister.RAX, eax),
            (ProcessorRegister.RBX, ebx),
            (ProcessorRegister.RCX, ecx),
            (ProcessorRegister.RDX, edx),
        )

    def refuse(self, vector: int = GENERAL_PROTECTION_VECTOR, error_code: int | None = 0) -> None:
        """The software gets an exception, #GP if nothing else is said."""
        self._resume((ProcessorRegister.PENDING_INTERRUPTION, pending_exception(vector, error_code)))

    def again(self) -> None:
        """The access is made once more; for a parent that has removed its intercept."""
        self._resume()

    def _step_over(self, *registers: tuple[int, int]) -> None:
        after = self._header.rip + self._header.instruction_length
        self._resume(*registers, (ProcessorRegister.RIP, after))

    def _resume(self, *registers: tuple[int, int]) -> None:
        if self.answered:
            raise RuntimeError(f"{self!r} has had its answer")
        self.answered = True
        self._intercepts.answer(self.vp_index, *registers, (INTERCEPT_SUSPEND, 0))


Handler = Callable[[Access], None]


class Intercepts:
    """Installs intercepts on one partition and hands its accesses out. Installing raises `HypercallFailed`."""

    def __init__(self, winhv: WinHv, partition_id: int) -> None:
        self._winhv = winhv
        self._partition_id = partition_id
        self._handlers: dict[tuple[InterceptType, int], Handler] = {}

    def on_port(self, port: int, handler: Handler | None) -> None:
        """IN and OUT of a port; None ends it."""
        self._install(InterceptType.IO_PORT, port, handler)

    def on_msr(self, handler: Handler | None) -> None:
        """RDMSR and WRMSR of every register that the hypervisor does not offer the VM."""
        self._install(InterceptType.MSR, 0, handler)

    def on_cpuid(self, leaf: int, handler: Handler | None) -> None:
        """CPUID of a leaf. Costs the partition's pool a page."""
        self._install(InterceptType.CPUID, leaf, handler)

    def on_exception(self, vector: int, handler: Handler | None) -> None:
        """An exception before the software sees it."""
        self._install(InterceptType.EXCEPTION, vector, handler)

    def _install(self, kind: InterceptType, number: int, handler: Handler | None) -> None:
        access = 0 if handler is None else _ACCESS[kind]
        self._winhv.install_intercept(self._partition_id, kind, access, number)
        if handler is None:
            self._handlers.pop((kind, number), None)
        else:
            self._handlers[kind, number] = handler

    def take(self, message: HypervisorMessage) -> bool:
        """An intercept message; False for any other, and for one that no handler is there for."""
        access = self._decode(message)
        if access is None:
            return False
        number = 0 if access.kind is InterceptType.MSR else access.number
        handler = self._handlers.get((access.kind, number))
        if handler is None:
            return False
        handler(access)
        return True

    def answer(self, vp_index: int, *registers: tuple[int, int]) -> None:
        """Registers, and the suspension cleared with the last."""
        self._winhv.set_vp_registers(self._partition_id, vp_index, registers)

    def _decode(self, message: HypervisorMessage) -> Access | None:
        size = InterceptHeader.SIZE
        head, body = message.payload[:size], message.payload[size:]
        match message.message_type:
            case MessageType.IO_PORT_INTERCEPT:
                port = IoPortIntercept.decode(body)
                length = port.access_info & 7
                kind, number = InterceptType.IO_PORT, port.port
                return self._access(head, kind, number, size=length, value=port.rax & (1 << 8 * length) - 1)
            case MessageType.MSR_INTERCEPT:
                msr = MsrIntercept.decode(body)
                value = (msr.rdx & 0xFFFFFFFF) << 32 | msr.rax & 0xFFFFFFFF
                return self._access(head, InterceptType.MSR, msr.msr, value=value)
            case MessageType.CPUID_INTERCEPT:
                leaf = CpuidIntercept.decode(body)
                default = (leaf.default_rax, leaf.default_rbx, leaf.default_rcx, leaf.default_rdx)
                return self._access(head, InterceptType.CPUID, leaf.rax, value=leaf.rcx, default=default)
            case MessageType.EXCEPTION_INTERCEPT:
                return self._access(head, InterceptType.EXCEPTION, ExceptionIntercept.decode(body).vector)
            case _:
                return None

    def _access(
        self,
        head: bytes,
        kind: InterceptType,
        number: int,
        *,
        size: int = 0,
        value: int = 0,
        default: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> Access:
        return Access(self, InterceptHeader.decode(head), kind, number, size, value, default)
