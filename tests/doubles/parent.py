"""A parent that answers its child's intercepts by the script it is given: in its interrupt, or whenever it is told."""

from __future__ import annotations

from collections.abc import Callable

from hypervisor.hypercall import layouts
from hypervisor.hypercall.abi import CallCode
from hypervisor.hypercall.processor_layouts import InstallInterceptInput
from hypervisor.intercept import InterceptType
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SIZE
from hypervisor.partition import Partition
from hypervisor.processor_registers import ProcessorRegister
from hypervisor.status import HvStatus
from hypervisor.synic.messages import HEADER_SIZE, SLOT_SIZE, InterceptHeader, MessageHeader, MessageType
from tests.doubles.hypercaller import Machine

INTERCEPT_SUSPEND = 1


class Parent:
    """Reads SINT0 of the root's first processor. `script` runs at each message; without one the child waits."""

    def __init__(self, machine: Machine, child: Partition) -> None:
        self.machine = machine
        self.child = child
        self.messages: list[tuple[int, InterceptHeader, bytes]] = []
        """Type, header, what is behind it."""
        self.script: Callable[[], None] | None = None
        machine.listen()
        machine.hypervisor.root_processors[0].set_interrupt_handler(self.take)

    def take(self, vector: int) -> None:
        """The root's interrupt routine."""
        slot = (self.machine.low + 3) * PAGE_SIZE
        memory = self.machine.root.memory
        data = memory.read(slot, SLOT_SIZE)
        header = MessageHeader.decode(data[:HEADER_SIZE])
        assert header.message_type
        assert header.origination_id == self.child.id
        memory.write(slot, bytes(SLOT_SIZE))
        self.machine.hypervisor.write_msr(self.machine.vp, Msr.EOM, 0)
        payload = data[HEADER_SIZE : HEADER_SIZE + header.payload_size]
        if header.message_type == MessageType.INVALID_VP_REGISTER_VALUE:
            self.messages.append((header.message_type, InterceptHeader(0), payload))
            return
        self.messages.append((header.message_type, InterceptHeader.decode(payload[:40]), payload[40:]))
        if self.script is not None:
            self.script()

    def install(self, kind: InterceptType, access: int, parameter: int = 0) -> HvStatus:
        """HvInstallIntercept on the child."""
        request = InstallInterceptInput(self.child.id, access, kind, parameter)
        return self.machine.call(CallCode.INSTALL_INTERCEPT, request).status

    def set(self, *pairs: tuple[int, int], vp: int = 0) -> HvStatus:
        """HvSetVpRegisters."""
        elements = b"".join(
            layouts.RegisterAssociation(name, value.to_bytes(16, "little")).encode() for name, value in pairs
        )
        request = layouts.VpInput(self.child.id, vp)
        return self.machine.call(CallCode.SET_VP_REGISTERS, request, count=len(pairs), elements=elements).status

    def answer(self, *pairs: tuple[int, int]) -> None:
        """Step over the instruction with these registers set, and resume."""
        header = self.messages[-1][1]
        after = header.rip + header.instruction_length
        status = self.set(*pairs, (ProcessorRegister.RIP, after), (INTERCEPT_SUSPEND, 0), vp=header.vp_index)
        assert status is HvStatus.SUCCESS

    def resume(self, *pairs: tuple[int, int]) -> None:
        """Resume where it stopped."""
        assert self.set(*pairs, (INTERCEPT_SUSPEND, 0)) is HvStatus.SUCCESS
