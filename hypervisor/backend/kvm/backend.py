"""The `kvm` backend: virtual processors are vCPUs of KVM and run whatever kernel they are given. Hypervisor.

KVM executes instructions, keeps the local APICs and the IO-APIC, and nothing else: CPUID, synthetic MSRs, hypercalls,
SynIC and ports are the hypervisor's own, reached by exits. KVM's Hyper-V emulation stays off (MSR filter, no leaves).

Steady I/O takes no exit to Python: the hypercall page tests for a fast HvSignalEvent and writes the connection ID to
`DOORBELL_PORT`, where KVM counts it on the eventfd bound to that number; interrupts go in by KVM_SIGNAL_MSI.
"""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, assert_never

import trio

from hypervisor.backend.kvm import ioctls
from hypervisor.backend.kvm.ioctls import Exit
from hypervisor.backend.kvm.machine import KvmMachine, open_kvm
from hypervisor.backend.kvm.vcpu import KICK_SIGNAL, Vcpu
from hypervisor.cpuid import HYPERVISOR_PRESENT, LAST_LEAF, LEAF_VENDOR, LEAF_VERSION_INFO, hypervisor_leaf
from hypervisor.machine import GeneralProtection, InvalidOpcode, VpStopped
from hypervisor.synic.ports import Connection, PortType
from hypervisor.trace import Layer

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.memory import GuestMemory
    from hypervisor.partition import Partition
    from hypervisor.vp import VirtualProcessor

HYPERCALL_PORT = 0xE0
DOORBELL_PORT = 0xE4

HYPERCALL_CODE = bytes.fromhex(
    "4881f95d000100"  # 00 cmp rcx, 0x1005d      a fast HvSignalEvent,
    "7513"  #           07 jne 1c
    "4889d0"  #         09 mov rax, rdx
    "48c1e820"  #       0c shr rax, 32           with flag number 0 and nothing reserved set:
    "750a"  #           10 jne 1c
    "89d0"  #           12 mov eax, edx
    "e7e4"  #           14 out 0xe4, eax         the connection ID rings its doorbell
    "31c0"  #           16 xor eax, eax          HV_STATUS_SUCCESS
    "909090"  #         18 nop
    "c3"  #             1b ret
    "e6e0"  #           1c out 0xe0, al          everything else is an exit
    "c3"  #             1e ret
)
"""What the guest calls. It changes RAX only, as the hypercall ABI allows."""
_AFTER_DOORBELL = 0x16
_RETURN = 0x1B

SIGNAL_EVENT_FAST = 0x1005D
ALL_ONES = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF}
APIC_ID_SHIFT = 24
LOCAL_APIC_FREQUENCY = 1_000_000_000
"""KVM counts its local APIC timers in nanoseconds."""


class GuestStart(Protocol):
    """Where virtual processor 0 begins: long mode, flat segments, paging on."""

    @property
    def entry(self) -> int:
        """RIP."""

    @property
    def zero_page(self) -> int:
        """RSI."""

    @property
    def stack(self) -> int:
        """RSP."""

    @property
    def page_table(self) -> int:
        """CR3."""

    @property
    def gdt(self) -> int:
        """Base of the descriptor table: code at selector 0x10, data at 0x18."""

    @property
    def gdt_limit(self) -> int:
        """Its last byte."""


class KvmVp:
    """`VpRunner` of one vCPU."""

    def __init__(self, machine: KvmMachine, vcpu: Vcpu) -> None:
        self._machine = machine
        self.vcpu = vcpu

    def interrupt(self, vector: int) -> None:
        """Raise an edge interrupt at the vCPU's local APIC."""
        self._machine.interrupt(self.vcpu.index, vector)

    def suspended(self, suspended: bool) -> None:
        """Keep the vCPU out of KVM_RUN, or let it in."""
        self.vcpu.pause(suspended)


class KvmBackend:
    """Runs one partition on KVM. `load` lays the kernel into guest memory and says where it starts."""

    def __init__(self, hypervisor: Hypervisor, load: Callable[[GuestMemory], GuestStart]) -> None:
        """Raises `KvmError` on a machine whose KVM is missing or lacks something."""
        os.close(open_kvm())
        self._hypervisor = hypervisor
        self._load = load
        self._partition: Partition
        self._machine: KvmMachine | None = None
        self._vcpus: dict[int, Vcpu] = {}
        self._doorbells: dict[int, trio.CancelScope] = {}
        self._nursery: trio.Nursery

    async def run(self, partition: Partition, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Execute until cancelled."""
        self._partition = partition
        # The address that a guest reads its clock from is computed for KVM's TSC, so the page of code comes first.
        partition.registers.hypercall_code = HYPERCALL_CODE
        signal.signal(KICK_SIGNAL, _ignore)
        self._machine = machine = KvmMachine()
        try:
            for gpa, view in partition.memory.mappings():
                machine.map(gpa, view)
            start = self._load(partition.memory)
            for vp in partition.vps.values():
                self._vcpus[vp.index] = Vcpu(machine.fd, vp.index, machine.run_size, self._on_exit)
            first = self._vcpus[0]
            partition.registers.apic_frequency = LOCAL_APIC_FREQUENCY
            partition.registers.tsc_frequency = first.tsc_khz() * 1000
            partition.registers.read_tsc = first.read_tsc
            for vp in partition.vps.values():
                self._vcpus[vp.index].set_cpuid(self._cpuid(machine, vp))
            first.set_start(start)
            async with trio.open_nursery() as self._nursery:
                self._attach_all()
                for vp in partition.vps.values():
                    vcpu = self._vcpus[vp.index]
                    vcpu.pause(vp.suspended)
                    vp.runner = KvmVp(machine, vcpu)
                    vcpu.start()
                task_status.started()
                await trio.sleep_forever()
        finally:
            partition.doorbells = None
            partition.registers.read_tsc = None
            for vp in partition.vps.values():
                vp.runner = None
            for vcpu in self._vcpus.values():
                await vcpu.stop()
            self._vcpus.clear()
            self._machine = None
            machine.close()

    def set_line(self, line: int, high: bool) -> None:
        """Drive an input of the interrupt controllers that KVM keeps."""
        if self._machine is not None:
            self._machine.set_line(line, high)

    # --- doorbells: HvSignalEvent without an exit

    def _attach_all(self) -> None:
        self._partition.doorbells = self
        for connection in self._partition.connections.values():
            self.attach(connection)

    def attach(self, connection: Connection) -> None:
        """A connection has been made: bind its number to an eventfd, and watch that."""
        if connection.port.type is PortType.EVENT:
            scope = self._doorbells[connection.id] = trio.CancelScope()
            self._nursery.start_soon(self._watch, connection.id, scope, name=f"doorbell {connection.id:#x}")

    def detach(self, connection: Connection) -> None:
        """The connection is gone; signals to it take the slow way and are refused there."""
        scope = self._doorbells.pop(connection.id, None)
        if scope is not None:
            scope.cancel()

    async def _watch(self, connection_id: int, scope: trio.CancelScope) -> None:
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        vp, machine = self._partition.vps[0], self._machine
        assert machine is not None, "doorbells are attached while the backend runs"
        try:
            with scope:
                machine.doorbell(DOORBELL_PORT, connection_id, fd, attach=True)
                try:
                    while True:
                        await trio.lowlevel.wait_readable(fd)
                        os.eventfd_read(fd)
                        # Several rings are one signal, as several settings of one flag would be.
                        self._hypervisor.hypercall(vp, SIGNAL_EVENT_FAST, connection_id, 0)
                finally:
                    machine.doorbell(DOORBELL_PORT, connection_id, fd, attach=False)
        finally:
            os.close(fd)

    # --- exits

    def _on_exit(self, vcpu: Vcpu) -> None:
        """Answer one exit; on the Trio thread, while the vCPU's thread waits."""
        vp = self._partition.vps.get(vcpu.index)
        if vp is None or vp.runner is None:
            vcpu.answer()  # the partition is going: the thread finds that it is to stop
            return
        try:
            self._dispatch(vcpu, vp)
        except VpStopped:
            vcpu.pause(True)
        vcpu.answer()

    def _dispatch(self, vcpu: Vcpu, vp: VirtualProcessor) -> None:
        if vcpu.error:
            self._stop(vp, f"KVM_RUN: {os.strerror(vcpu.error)}")
            return
        reason = vcpu.exit_reason()
        vcpu.exits[reason.name] += 1
        match reason:
            case Exit.IO:
                self._port(vcpu, vp)
            case Exit.X86_RDMSR:
                self._read_msr(vcpu, vp)
            case Exit.X86_WRMSR:
                self._write_msr(vcpu, vp)
            case Exit.MMIO:
                vcpu.answer_mmio()  # no device there: reads as ones, writes are lost
            case Exit.SHUTDOWN:
                self._stop(vp, "triple fault")
            case Exit.FAIL_ENTRY | Exit.INTERNAL_ERROR:
                self._stop(vp, f"KVM cannot go on at {vcpu.registers()[ioctls.RIP]:#x}: {vcpu.failure()}")
            case Exit.SYSTEM_EVENT | Exit.HLT | Exit.INTR | Exit.IRQ_WINDOW_OPEN | Exit.UNKNOWN:
                self._hypervisor.trace.warn(Layer.STATE, "unexpected_exit", vp.partition.id, reason.name)
            case _:
                assert_never(reason)

    def _stop(self, vp: VirtualProcessor, reason: str) -> None:
        self._hypervisor.unrecoverable_exception(vp, reason)
        raise VpStopped(reason)

    def _port(self, vcpu: Vcpu, vp: VirtualProcessor) -> None:
        direction, size, port, count, offset = ioctls.IO_EXIT.unpack_from(vcpu.run, ioctls.RUN_EXIT)
        if direction == ioctls.IO_OUT and port == HYPERCALL_PORT:
            self._hypercall(vcpu, vp)
        elif direction == ioctls.IO_OUT and port == DOORBELL_PORT and size == 4:
            self._unbound_doorbell(vcpu, vp)
        elif direction == ioctls.IO_OUT:
            for at in range(offset, offset + size * count, size):
                self._hypervisor.port_out(vp, port, size, int.from_bytes(vcpu.run[at : at + size], "little"))
        else:
            for at in range(offset, offset + size * count, size):
                value = self._hypervisor.port_in(vp, port, size) & ALL_ONES[size]
                vcpu.run[at : at + size] = value.to_bytes(size, "little")

    def _hypercall(self, vcpu: Vcpu, vp: VirtualProcessor) -> None:
        registers = vcpu.registers()
        control, first, second = registers[ioctls.RCX], registers[ioctls.RDX], registers[ioctls.R8]
        try:
            registers[ioctls.RAX] = self._hypervisor.hypercall(vp, control, first, second)
        except InvalidOpcode:
            self._stop(vp, "a hypercall where none is legal")
        vcpu.set_registers(registers)

    def _unbound_doorbell(self, vcpu: Vcpu, vp: VirtualProcessor) -> None:
        """A signal to a connection that no eventfd is bound to: give the status, and skip what would clear it."""
        registers = vcpu.registers()
        registers[ioctls.RAX] = self._hypervisor.hypercall(vp, SIGNAL_EVENT_FAST, registers[ioctls.RDX], 0)
        page = registers[ioctls.RIP] & ~0xFFF
        registers[ioctls.RIP] = page | _RETURN
        vcpu.set_registers(registers)

    def _read_msr(self, vcpu: Vcpu, vp: VirtualProcessor) -> None:
        _, _, index, _ = ioctls.MSR_EXIT.unpack_from(vcpu.run, ioctls.RUN_EXIT)
        try:
            vcpu.answer_msr(self._hypervisor.read_msr(vp, index))
        except GeneralProtection:
            vcpu.refuse_msr()

    def _write_msr(self, vcpu: Vcpu, vp: VirtualProcessor) -> None:
        _, _, index, value = ioctls.MSR_EXIT.unpack_from(vcpu.run, ioctls.RUN_EXIT)
        try:
            self._hypervisor.write_msr(vp, index, value)
        except GeneralProtection:
            vcpu.refuse_msr()

    # --- CPUID

    def _cpuid(self, machine: KvmMachine, vp: VirtualProcessor) -> bytes:
        """KVM's leaves with the hypervisor bit and the processor's own ID, and our leaves in place of KVM's."""
        entries: list[tuple[int, ...]] = []
        for leaf, subleaf, flags, eax, ebx, ecx, edx in machine.supported_cpuid():
            if leaf == LEAF_VERSION_INFO:
                ebx = ebx & 0x00FFFFFF | vp.index << APIC_ID_SHIFT
                ecx |= HYPERVISOR_PRESENT
            elif leaf in (0x0B, 0x1F):
                edx = vp.index
            entries.append((leaf, subleaf, flags, eax, ebx, ecx, edx))
        for leaf in range(LEAF_VENDOR, LAST_LEAF + 1):
            entries.append((leaf, 0, 0, *hypervisor_leaf(self._hypervisor, vp.partition, leaf)))
        head = struct.pack("<II", len(entries), 0)
        return head + b"".join(ioctls.CPUID_ENTRY.pack(*entry) for entry in entries)


def _ignore(signum: int, frame: object) -> None:
    """KVM_RUN's EINTR is all that the signal is for."""
