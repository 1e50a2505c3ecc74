"""The `kvm` backend: virtual processors are vCPUs of KVM and run whatever kernel they are given. Hypervisor.

KVM executes instructions, keeps the local APICs and the IO-APIC, and nothing else: CPUID, synthetic MSRs, hypercalls,
SynIC and ports are the hypervisor's own, reached by exits. KVM's Hyper-V emulation stays off (MSR filter, no leaves).

Steady I/O takes no exit to Python: the hypercall page tests for a fast HvSignalEvent and writes the connection ID to
`DOORBELL_PORT`, where KVM counts it on the eventfd bound to that number; interrupts go in by KVM_SIGNAL_MSI.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar, assert_never

import trio

from hypervisor.backend.kvm import ioctls
from hypervisor.backend.kvm.doorbells import DOORBELL_PORT, Doorbells
from hypervisor.backend.kvm.gating import VcpuGate
from hypervisor.backend.kvm.ioctls import Exit, KvmError
from hypervisor.backend.kvm.leaves import processor_leaves
from hypervisor.backend.kvm.machine import KvmMachine, check_kvm
from hypervisor.backend.kvm.posted import PostedWrites
from hypervisor.backend.kvm.registers import get_register, put_register
from hypervisor.backend.kvm.switching import quick_switching
from hypervisor.backend.kvm.vcpu import Vcpu
from hypervisor.cpuid import (
    CRASH_MSRS_AVAILABLE,
    DIRECT_TIMERS_AVAILABLE,
    FREQUENCY_MSRS_AVAILABLE,
    LAST_LEAF,
    LEAF_VENDOR,
    CpuidFeatures,
    hypervisor_leaf,
)
from hypervisor.inspect import Branch
from hypervisor.machine import Intercepted, InvalidOpcode, ProcessorFault, VpStopped
from hypervisor.partition import PartitionState
from hypervisor.trace import Layer

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.memory import GuestMemory
    from hypervisor.partition import Partition
    from hypervisor.vp import VirtualProcessor

HYPERCALL_PORT = 0xE0

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
_RETURN = 0x1B

SIGNAL_EVENT_FAST = 0x1005D
ALL_ONES = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF}
POSTED_WRITES_SECONDS = 0.05
"""How long a posted write may wait where no exit comes: what a guest printed last before it hung is seen so soon."""
FEATURES = CpuidFeatures(features=FREQUENCY_MSRS_AVAILABLE | CRASH_MSRS_AVAILABLE | DIRECT_TIMERS_AVAILABLE)
"""KVM halts processors and takes their interrupts itself, so nobody here could wake one or knows how long it ran."""
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


T = TypeVar("T")


def _answer_port(vcpu: Vcpu, at: int, size: int, value: int) -> None:
    vcpu.run[at : at + size] = (value & ALL_ONES[size]).to_bytes(size, "little")


def _nothing(value: object) -> None:
    """OUT and WRMSR give nothing."""


class KvmVp:
    """`RegisterFile` of one vCPU."""

    def __init__(self, machine: KvmMachine, vcpu: Vcpu) -> None:
        self._machine = machine
        self.vcpu = vcpu
        self.unfinished: Callable[[], None] | None = None
        """The rest of an exit that waits for the parent's answer to an intercept."""

    def inspect(self) -> Branch:
        """What its thread is at, and the exits that it made."""
        return self.vcpu.inspect()

    def interrupt(self, vector: int) -> None:
        """Raise an edge interrupt at the vCPU's local APIC."""
        self._machine.interrupt(self.vcpu.index, vector)

    def suspended(self, suspended: bool) -> None:
        """Keep the vCPU out of KVM_RUN, or let it in, after the parent's answer has been given to it."""
        rest, self.unfinished = self.unfinished, None
        if rest is not None and not suspended:
            try:
                rest()
            except VpStopped:
                return  # the parent let the access be made again, and it hit an intercept again
        self.vcpu.pause(suspended)

    def get_register(self, name: int) -> int | None:
        """What KVM has."""
        return get_register(self.vcpu, name)

    def set_register(self, name: int, value: int) -> bool:
        """Into KVM."""
        return put_register(self.vcpu, name, value)


def exit_latencies(partition: Partition) -> list[int]:
    """Nanoseconds that its last exits took, all processors together; empty where it is not on KVM or has ended.

    What is counted begins when the vCPU's thread has the interpreter, and ends with the next KVM_RUN.
    """
    runners = [vp.runner for vp in partition.vps.values()]
    return [latency for runner in runners if isinstance(runner, KvmVp) for latency in list(runner.vcpu.latencies)]


class KvmBackend:
    """Runs one partition on KVM. `load` lays the kernel into guest memory and says where it starts."""

    cannot_save = "KVM keeps its processors and interrupt controllers, and reading them out of it is not built"

    def __init__(
        self,
        hypervisor: Hypervisor,
        load: Callable[[GuestMemory], GuestStart],
        *,
        posted_ports: Sequence[int] = (),
    ) -> None:
        """Raises `KvmError` on a machine whose KVM is missing or lacks something.

        `posted_ports` take bytes whose effect may wait for the guest's next exit, or a twentieth of a second.
        """
        check_kvm()
        self.failure: BaseException | None = None
        """Why KVM could not go on with the guest, where it could not."""
        self._hypervisor = hypervisor
        self._load = load
        self._posted_ports = posted_ports
        self._partition: Partition
        self._machine: KvmMachine | None = None
        self._vcpus: dict[int, Vcpu] = {}
        self._at_hand: Vcpu | None = None
        """The vCPU whose exit is being dealt with."""
        self._posted: PostedWrites | None = None
        self._fault: BaseException | None = None
        self._faulted = trio.Event()

    def inspect(self) -> Branch:
        """How far it keeps a guest's software away from everything else: by hardware."""
        doorbells = self._partition.doorbells if self._machine is not None else None
        return Branch(
            {
                "kind": "kvm",
                "contained": True,
                "preempts": True,
                "cannot_save": self.cannot_save,
                "threads": len(self._vcpus),
                "doorbells": len(doorbells) if isinstance(doorbells, Doorbells) else 0,
            }
        )

    async def run(self, partition: Partition, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Execute until cancelled. An exception of ours that an exit met is raised here."""
        self._partition = partition
        self.failure = None
        self._fault, self._faulted = None, trio.Event()
        # The address that a guest reads its clock from is computed for KVM's TSC, so the page of code comes first.
        partition.registers.hypercall_code = HYPERCALL_CODE
        partition.cpuid_features = FEATURES
        self._machine = machine = KvmMachine()
        doorbells: Doorbells | None = None
        try:
            machine.show(partition.memory.mappings())
            partition.memory.on_change = self._memory_changed
            start = self._load(partition.memory)
            for vp in partition.vps.values():
                self._vcpus[vp.index] = Vcpu(machine.fd, vp.index, machine.run_size, self._on_exit)
            first = self._vcpus[0]
            if [port for port in self._posted_ports if machine.post_writes(port)]:
                self._posted = PostedWrites(first.run, machine.posted_offset)
            partition.registers.apic_frequency = LOCAL_APIC_FREQUENCY
            partition.registers.tsc_frequency = first.tsc_khz() * 1000
            partition.registers.read_tsc = self._read_tsc
            for vp in partition.vps.values():
                self._vcpus[vp.index].set_cpuid(self._cpuid(machine, vp))
            first.set_start(start)
            doorbells = Doorbells(machine, self._rang, self._hypervisor.trace, partition.id)
            for connection in partition.connections.values():
                doorbells.attach(connection)
            partition.doorbells = doorbells
            partition.state_elsewhere = True
            with quick_switching():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(doorbells.run, name="doorbells")
                    nursery.start_soon(self._take_posted_writes, name="posted writes")
                    for vp in partition.vps.values():
                        vcpu = self._vcpus[vp.index]
                        vcpu.pause(vp.suspended)
                        vp.runner = KvmVp(machine, vcpu)
                        vp.measure = vcpu.run_time
                        self._hypervisor.scheduler.attach_runner(vp, VcpuGate(vcpu))
                        vcpu.start()
                    task_status.started()
                    await self._faulted.wait()
                    nursery.cancel_scope.cancel()
        finally:
            await self._take_down(partition, machine, doorbells)
        if self._fault is not None:
            raise self._fault

    async def _take_down(self, partition: Partition, machine: KvmMachine, doorbells: Doorbells | None) -> None:
        """First nobody reaches the vCPUs any more, then they end, then what they said last is taken."""
        partition.memory.on_change = None
        partition.doorbells = None
        partition.state_elsewhere = False
        partition.registers.read_tsc = None
        for vp in partition.vps.values():
            self._hypervisor.scheduler.detach_runner(vp)
            vp.runner = None
            vp.runtime = vp.run_time()
            vp.measure = None
        for vcpu in self._vcpus.values():
            vcpu.ask_to_stop()
        for vcpu in self._vcpus.values():
            with trio.CancelScope(shield=True):
                await vcpu.ended_or_never_started()
        try:
            self._drain()
        finally:
            self._posted = None
            for vcpu in self._vcpus.values():
                vcpu.close()
            self._vcpus.clear()
            self._machine = None
            if doorbells is not None:
                doorbells.close()
            machine.close()

    def set_line(self, line: int, high: bool) -> None:
        """Drive an input of the interrupt controllers that KVM keeps."""
        if self._machine is not None:
            self._machine.set_line(line, high)

    def _memory_changed(self) -> None:
        """The parent has changed the guest's map: KVM's processors see the new one from here on."""
        if self._machine is not None:
            self._machine.show(self._partition.memory.mappings())

    def _read_tsc(self) -> int:
        """The guest's TSC: KVM keeps all processors' alike, and that of one outside KVM_RUN costs no wait."""
        return (self._at_hand or self._vcpus[0]).read_tsc()

    def _rang(self, connection_id: int) -> None:
        """The guest has signaled a connection by its doorbell; it does not wait for a status."""
        vp = self._some_vp()
        if vp is None:
            return
        try:
            self._hypervisor.hypercall(vp, SIGNAL_EVENT_FAST, connection_id, 0)
        except (InvalidOpcode, VpStopped):
            words = f"doorbell {connection_id:#x} where no hypercall is legal"
            self._hypervisor.trace.warn(Layer.SYNIC, "doorbell_ignored", self._partition.id, words)

    # --- posted writes

    async def _take_posted_writes(self) -> None:
        while self._posted is not None:
            await trio.sleep(POSTED_WRITES_SECONDS)
            self._drain()

    def _drain(self) -> None:
        vp = self._some_vp()
        if self._posted is not None and vp is not None:
            for port, size, value in self._posted.take():
                if self._partition.state is PartitionState.ACTIVE:
                    self._hypervisor.port_out(vp, port, size, value)

    def _some_vp(self) -> VirtualProcessor | None:
        """Whose it counts as where KVM does not say: number 0, or the next one left by a parent that deletes some."""
        vps = self._partition.vps
        return vps.get(0) or (vps[min(vps)] if vps else None)

    # --- exits

    def _on_exit(self, vcpu: Vcpu) -> None:
        """Answer one exit; on the Trio thread, while the vCPU's thread waits. Raises nothing: Trio would die of it."""
        vp = self._partition.vps.get(vcpu.index)
        if vcpu.stopping or vp is None or vp.runner is None:
            return  # the partition is going, and the thread has been told
        self._at_hand = vcpu
        try:
            self._drain()
            self._dispatch(vcpu, vp)
        except VpStopped:
            vcpu.pause(True)
        except Exception as error:
            # A bug of ours, in a device perhaps: `run` raises it, and the processor stays where it is.
            self._fault = self._fault or error
            self._faulted.set()
            return
        finally:
            self._at_hand = None
        vcpu.answer()

    def _dispatch(self, vcpu: Vcpu, vp: VirtualProcessor) -> None:
        if vcpu.error:
            self._cannot_go_on(vp, f"KVM_RUN: {os.strerror(vcpu.error)}")
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
                self._cannot_go_on(vp, f"KVM cannot go on at {vcpu.registers()[ioctls.RIP]:#x}: {vcpu.failure()}")
            case Exit.SYSTEM_EVENT | Exit.HLT | Exit.INTR | Exit.IRQ_WINDOW_OPEN | Exit.UNKNOWN:
                self._hypervisor.trace.warn(Layer.STATE, "unexpected_exit", vp.partition.id, reason.name)
            case _:
                assert_never(reason)

    def _cannot_go_on(self, vp: VirtualProcessor, reason: str) -> None:
        self.failure = KvmError(reason)
        self._stop(vp, reason)

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
                value = int.from_bytes(vcpu.run[at : at + size], "little")
                self._access(vp, partial(self._hypervisor.port_out, vp, port, size, value), _nothing)
        else:
            for at in range(offset, offset + size * count, size):
                take = partial(_answer_port, vcpu, at, size)
                self._access(vp, partial(self._hypervisor.port_in, vp, port, size), take)

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
        try:
            registers[ioctls.RAX] = self._hypervisor.hypercall(vp, SIGNAL_EVENT_FAST, registers[ioctls.RDX], 0)
        except InvalidOpcode:
            self._stop(vp, "a doorbell where no hypercall is legal")
        page = registers[ioctls.RIP] & ~0xFFF
        registers[ioctls.RIP] = page | _RETURN
        vcpu.set_registers(registers)

    def _read_msr(self, vcpu: Vcpu, vp: VirtualProcessor) -> None:
        _, _, index, _ = ioctls.MSR_EXIT.unpack_from(vcpu.run, ioctls.RUN_EXIT)
        self._msr(vcpu, vp, partial(self._hypervisor.read_msr, vp, index), vcpu.answer_msr)

    def _write_msr(self, vcpu: Vcpu, vp: VirtualProcessor) -> None:
        _, _, index, value = ioctls.MSR_EXIT.unpack_from(vcpu.run, ioctls.RUN_EXIT)
        self._msr(vcpu, vp, partial(self._hypervisor.write_msr, vp, index, value), _nothing)

    def _msr(self, vcpu: Vcpu, vp: VirtualProcessor, access: Callable[[], T], take: Callable[[T], None]) -> None:
        try:
            self._access(vp, access, take)
        except VpStopped:
            raise
        except ProcessorFault:
            vcpu.refuse_msr()  # KVM raises #GP here, whatever a parent has answered an intercept with

    def _access(self, vp: VirtualProcessor, access: Callable[[], T], take: Callable[[T], None]) -> None:
        """Make an access and give its value to KVM. One that waits for the parent is made to its end on resuming.

        Of a string instruction only the element that was intercepted is: the parent has seen no other.
        """
        try:
            take(access())
        except Intercepted as stopped:
            runner = vp.runner
            assert isinstance(runner, KvmVp)
            runner.unfinished = partial(self._finish, runner.vcpu, vp, stopped.finish, take)
            raise

    def _finish(self, vcpu: Vcpu, vp: VirtualProcessor, access: Callable[[], T], take: Callable[[T], None]) -> None:
        if vcpu.exit_reason() is Exit.IO:
            try:
                self._access(vp, access, take)
            except VpStopped:
                raise
            except ProcessorFault:
                pass  # KVM raises nothing for a port: what the parent refuses has no effect, and an IN no new value
        else:
            self._msr(vcpu, vp, access, take)

    # --- CPUID

    def _cpuid(self, machine: KvmMachine, vp: VirtualProcessor) -> bytes:
        """KVM's leaves, made this partition's, and the hypervisor's."""
        entries = processor_leaves(machine.supported_cpuid(), vp.index, len(vp.partition.vps))
        for leaf in range(LEAF_VENDOR, LAST_LEAF + 1):
            entries.append((leaf, 0, 0, *hypervisor_leaf(self._hypervisor, vp.partition, leaf)))
        head = struct.pack("<II", len(entries), 0)
        return head + b"".join(ioctls.CPUID_ENTRY.pack(*entry) for entry in entries)
