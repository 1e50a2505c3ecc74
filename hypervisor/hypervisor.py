"""The hypervisor: the partition table, the host's memory, and every trap that software can take. Hypervisor.

It is synchronous and runs in one thread. A trap is a method that returns, or raises what the processor would raise in
the software that trapped.
"""

from __future__ import annotations

from collections.abc import Iterator

from hypervisor import cpuid, interception, msr_table
from hypervisor.blocks import MemoryBlock
from hypervisor.clock import Clock
from hypervisor.event_log import ENABLE_PARTITION, EventLog, LogEvent
from hypervisor.hypercall import dispatch
from hypervisor.hypercall.ports import disconnect
from hypervisor.inspect import Branch, Many
from hypervisor.intercept import InterceptAccess, InvalidRegister, memory_intercept_payload
from hypervisor.machine import GeneralProtection, VpStopped
from hypervisor.memory import GpaFault, GuestMemory
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE, Access
from hypervisor.partition import ROOT_ID, PageCost, Partition, PartitionOperation, PartitionState
from hypervisor.privileges import ROOT_PRIVILEGES
from hypervisor.properties import WHOLE_PROCESSOR, Property
from hypervisor.reference_time import tsc_from_clock
from hypervisor.scheduler.driver import CpuScheduler
from hypervisor.statistics import StatsMap
from hypervisor.status import HvError, HvStatus
from hypervisor.synic import ports
from hypervisor.synic.messages import InterceptHeader, MessageType
from hypervisor.timer_queue import TimerQueue
from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Level, Trace
from hypervisor.vp import VirtualProcessor

ROOT_POOL_PAGES = 65_536
"""What the root's pool has from the start, as if set aside at boot: enough for the ports of 1,024 children."""
_NOTHING_THERE = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF}
"""What reading a port without a device gives, by size; the sizes that IN and OUT know."""


class Hypervisor:
    """One machine's hypervisor. Its root partition exists from the start, with processors that run."""

    def __init__(
        self,
        clock: Clock,
        trace: Trace,
        *,
        memory_bytes: int,
        root_vps: int = 1,
        max_vps: int = 64,
        logical_processors: int | None = None,
        max_depth: int = 2,
    ) -> None:
        """`memory_bytes` bounds what `add_root_block` hands out; `max_depth` 2 is the root and its children."""
        from hypervisor.backend.root import RootVp  # a runner needs this module; this one line needs the runner

        self.clock = clock
        self.trace = trace
        self.memory_bytes = memory_bytes
        self.max_vps = max_vps
        self.max_depth = max_depth
        self.logical_processors = root_vps if logical_processors is None else logical_processors
        self.timers = TimerQueue()
        """What waits for a moment of the clock; `hypervisor.timer_driver` fires it."""
        self.scheduler = CpuScheduler(self)
        self.statistics = StatsMap(self)
        self.event_log = EventLog(self)
        self.parked_processors = 0
        """Mask of the logical processors that the root wants no work on."""
        self.system_properties: dict[tuple[int, int], int] = {}
        """What the root has set, by property and the value's own key."""
        self.partitions: dict[int, Partition] = {}
        """By ID. IDs are never used again, so a stale one finds nothing."""
        self._next_id = ROOT_ID
        self._root_blocks: dict[int, MemoryBlock] = {}
        """By first page in the root's GPA space."""
        self._no_gap_below = 0
        """Root pages up to here are all in blocks, so that the thousandth VM needs no search among all."""
        self.root_bytes = 0
        """Host memory that the root has."""
        self.discarded_bytes = 0
        """Of it, what guests have given back: the system has these pages, until the guests get them again."""
        self.root = self._add_partition(0, 1)
        self.root.label = "root"
        self.root.privileges = ROOT_PRIVILEGES
        self.root.pool.granted = ROOT_POOL_PAGES
        self.root.charge(PageCost.INITIALIZE)
        self.root.advance(PartitionOperation.INITIALIZE)
        for index in range(root_vps):
            self.create_vp(self.root, index).set_explicit_suspend(False)
        self.root_processors = [RootVp(self, vp) for vp in self.root.vps.values()]
        """The root's processors as its software sees them."""

    def inspect(self) -> Branch:
        """The machine, and its partitions by ID."""
        return Branch(
            {
                "logical_processors": self.logical_processors,
                "memory_bytes": self.memory_bytes,
                "root_bytes": self.root_bytes,
                "discarded_bytes": self.discarded_bytes,
                "max_vps": self.max_vps,
                "timers_waiting": len(self.timers),
                "scheduler": self.scheduler.inspect,
                "statistics_pages": len(self.statistics),
                "partitions": Many(self.partitions, int),
            }
        )

    def by_id(self, partition_id: int) -> Partition:
        """Raises INVALID_PARTITION_ID."""
        partition = self.partitions.get(partition_id)
        if partition is None:
            raise HvError(HvStatus.INVALID_PARTITION_ID)
        return partition

    def close(self) -> None:
        """Give the host's memory up; it goes with the last view of it."""
        for block in self._root_blocks.values():
            block.close()
        self._root_blocks.clear()
        self.root_bytes = 0

    # --- traps

    # The dispatcher's functions are the methods: a call in between would cost a tenth of a signaled event.
    hypercall = dispatch.hypercall
    hypercall_step = dispatch.step

    def read_msr(self, vp: VirtualProcessor, msr: int) -> int:
        """RDMSR of a synthetic register. Raises GeneralProtection, VpStopped."""
        _require_running(vp)
        if vp.partition.interception is not None:
            return interception.read_msr(self, vp, msr)
        return msr_table.read_msr(self, vp, msr)

    def write_msr(self, vp: VirtualProcessor, msr: int, value: int) -> None:
        """WRMSR of a synthetic register. Raises GeneralProtection, VpStopped."""
        _require_running(vp)
        if vp.partition.interception is not None:
            interception.write_msr(self, vp, msr, value)
            return
        msr_table.write_msr(self, vp, msr, value)

    def cpuid(self, vp: VirtualProcessor, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX. Raises VpStopped where the parent answers in its time."""
        if vp.partition.interception is not None:
            return interception.cpuid(self, vp, leaf, subleaf)
        return cpuid.cpuid(self, vp, leaf, subleaf)

    def read_tsc(self) -> int:
        """The time stamp counter of model guests."""
        return tsc_from_clock(self.clock())

    def clock_of(self, vp: VirtualProcessor) -> int:
        """What the clock is for a processor's software: when its work was done, where a real clock told it later."""
        now, partition = self.clock(), vp.partition
        if self.scheduler.lateness.turns:
            now = max(self.scheduler.moment(vp, now), partition.clock_read)
        partition.clock_read = now
        return now

    def port_in(self, vp: VirtualProcessor, port: int, size: int) -> int:
        """IN. Raises GeneralProtection for what the instruction cannot say, VpStopped."""
        partition = self._port_access(vp, port, size)
        if partition.interception is not None and port in partition.interception.ports:
            return interception.port_in(self, vp, port, size)
        sink = partition.intercepts
        value = _NOTHING_THERE[size] if sink is None else sink.port_read(vp.index, port, size) & _NOTHING_THERE[size]
        if self.trace.on:
            self.trace.emit(
                *(Layer.PORT, "port_in", partition.id),
                direction=TO_CHILD,
                size=size,
                vp=vp.index,
                port=port,
                value=value,
            )
        return value

    def port_out(self, vp: VirtualProcessor, port: int, size: int, value: int) -> None:
        """OUT of the low `size` bytes. Raises GeneralProtection for what the instruction cannot say, VpStopped."""
        partition = self._port_access(vp, port, size)
        value &= _NOTHING_THERE[size]
        if partition.interception is not None and port in partition.interception.ports:
            interception.port_out(self, vp, port, size, value)
            return
        if self.trace.on:
            self.trace.emit(
                *(Layer.PORT, "port_out", partition.id),
                direction=TO_ROOT,
                size=size,
                vp=vp.index,
                port=port,
                value=value,
            )
        if partition.intercepts is not None:
            partition.intercepts.port_write(vp.index, port, size, value)

    def _port_access(self, vp: VirtualProcessor, port: int, size: int) -> Partition:
        _require_running(vp)
        if size not in _NOTHING_THERE or not 0 <= port <= 0xFFFF:
            raise GeneralProtection(f"port {port:#x}, {size} bytes")
        vp.partition.counters["port_intercepts"] += 1
        return vp.partition

    # --- what stops a virtual processor

    def memory_intercept(self, vp: VirtualProcessor, fault: GpaFault) -> None:
        """Suspend a child's VP and tell its parent which address failed. The root has no parent: GeneralProtection."""
        if vp.partition is self.root:
            raise GeneralProtection(str(fault)) from fault
        mapped = vp.partition.memory.source(fault.gpa >> PAGE_SHIFT) is not None
        kind = MessageType.GPA_INTERCEPT if mapped else MessageType.UNMAPPED_GPA
        access = InterceptAccess.WRITE if fault.access & Access.WRITE else InterceptAccess.READ
        self._stop(vp, kind, memory_intercept_payload(vp.index, access, fault.gpa))

    def unrecoverable_exception(self, vp: VirtualProcessor, reason: str) -> None:
        """The software on `vp` cannot go on, as after a triple fault: suspend it and tell its parent."""
        partition = vp.partition
        partition.counters["unrecoverable_exceptions"] += 1
        if self.trace.on:
            words = reason.rstrip().rsplit("\n", 1)[-1]
            self.trace.emit(
                *(Layer.STATE, "unrecoverable_exception", partition.id),
                level=Level.ERROR,
                direction=TO_ROOT,
                words=words,
                vp=vp.index,
                reason=reason,
            )
        self._stop(vp, MessageType.UNRECOVERABLE_EXCEPTION, InterceptHeader(vp.index).encode())

    def invalid_register(self, vp: VirtualProcessor, words: str) -> None:
        """`vp` was to run with registers that no processor can run with: it stays suspended, and its parent is told."""
        self.trace.warn(Layer.STATE, "invalid_vp_register", vp.partition.id, words, vp=vp.index)
        self._stop(vp, MessageType.INVALID_VP_REGISTER_VALUE, InvalidRegister(vp.index).encode())

    def _stop(self, vp: VirtualProcessor, kind: MessageType, payload: bytes) -> None:
        # Suspended first: the message's interrupt runs the root's handler at once, and that may resume the VP.
        vp.stop_on_intercept()
        ports.post_intercept(self, vp, kind, payload)

    # --- the host's memory

    def add_root_block(self, size: int, name: str, *, huge_pages: bool = False) -> tuple[int, MemoryBlock]:
        """Host memory becomes root memory, at the page returned. Raises INSUFFICIENT_MEMORY past `memory_bytes`.

        The same where the system refuses, whose error is then the cause.
        """
        if self.root_bytes - self.discarded_bytes + size > self.memory_bytes:
            raise HvError(HvStatus.INSUFFICIENT_MEMORY)
        try:
            block = MemoryBlock.allocate(size, name, huge_pages=huge_pages)
        except (OSError, MemoryError) as error:
            raise HvError(HvStatus.INSUFFICIENT_MEMORY) from error
        pages = size >> PAGE_SHIFT
        gpn = self._no_gap_below
        for start in sorted(start for start in self._root_blocks if start >= gpn):
            if gpn + pages <= start:
                break
            if gpn == start == self._no_gap_below:
                self._no_gap_below = start + (self._root_blocks[start].size >> PAGE_SHIFT)
            gpn = start + (self._root_blocks[start].size >> PAGE_SHIFT)
        self._root_blocks[gpn] = block
        self.root_bytes += size
        self.root.memory.map_block(gpn, block, 0, pages, Access.ALL)
        return gpn, block

    def remove_root_block(self, gpn: int) -> None:
        """Give a block back to the host. Raises OBJECT_IN_USE while a child maps it or a pool holds pages of it."""
        block = self._root_blocks[gpn]
        if block.deposited or not self.root.memory.alone(block):
            raise HvError(HvStatus.OBJECT_IN_USE)
        del self._root_blocks[gpn]
        self.root_bytes -= block.size
        self._no_gap_below = min(self._no_gap_below, gpn)
        self.root.memory.unmap(gpn, block.size // PAGE_SIZE)
        block.close()

    # --- the life of partitions, for the hypercall handlers

    def create_partition(self, parent: Partition) -> Partition:
        """A child that its parent has paid for. Raises INSUFFICIENT_MEMORY."""
        parent.charge(PageCost.PARTITION)
        child = self._add_partition(parent.id, parent.depth + 1)
        parent.children[child.id] = None
        self.event_log.log(LogEvent.PARTITION_CREATED, ENABLE_PARTITION, child.id.to_bytes(8, "little"))
        self.partition_changed(child)
        return child

    def _add_partition(self, parent_id: int, depth: int) -> Partition:
        partition = Partition(self, self._next_id, parent_id, GuestMemory(), depth=depth)
        self._next_id += 1
        self.partitions[partition.id] = partition
        return partition

    def delete_partition(self, partition: Partition) -> None:
        """The record is gone; whoever still holds it sees state DELETED."""
        partition.advance(PartitionOperation.DELETE)
        self.scheduler.partition_gone(partition)
        del self.partitions[partition.id]
        parent = self.partitions[partition.parent_id]
        del parent.children[partition.id]
        parent.discharge(PageCost.PARTITION)
        self.event_log.log(LogEvent.PARTITION_DELETED, ENABLE_PARTITION, partition.id.to_bytes(8, "little"))
        self.partition_changed(partition)

    def teardown(self, partition: Partition) -> Iterator[object]:
        """Free all that a partition owns, one object a step, so that finalizing can pause between trips."""
        partition.hypercall_msr = 0  # from here on its software is stopped at its next trap
        for vp in partition.vps.values():
            vp.set_explicit_suspend(True)
        for connection_id in list(partition.connections):
            disconnect(partition, connection_id)
            yield connection_id
        for port_id in list(partition.ports):
            ports.delete_port(partition, port_id)
            yield port_id
        for index in list(partition.vps):
            self.delete_vp(partition, index)
            yield partition
        interception.remove_all(partition)
        partition.debug_port = None
        msr_table.reset_partition_registers(partition)
        partition.memory.unmap(0, partition.memory.end >> PAGE_SHIFT)
        partition.discharge(len(partition.mapped_regions) * PageCost.GPA_REGION + PageCost.INITIALIZE)
        partition.mapped_regions.clear()
        partition.intercepts = partition.on_crash = partition.on_reset = None

    def create_vp(self, partition: Partition, index: int) -> VirtualProcessor:
        """A virtual processor, explicitly suspended. Raises OPERATION_DENIED (reserves), INSUFFICIENT_MEMORY."""
        reserve = partition.properties[Property.CPU_RESERVE]
        # Who reserves nothing need not be counted against all others.
        if reserve and self.reserved_processors() + reserve > self.logical_processors * WHOLE_PROCESSOR:
            raise HvError(HvStatus.OPERATION_DENIED)
        partition.charge(PageCost.VP)
        vp = partition.vps[index] = VirtualProcessor(partition, index)
        self.scheduler.partition_changed(partition)
        return vp

    def delete_vp(self, partition: Partition, index: int) -> None:
        """Stop it for good and free what it holds."""
        vp = partition.vps[index]
        vp.set_explicit_suspend(True)
        vp.delete()
        self.scheduler.forget(vp)
        del partition.vps[index]
        partition.discharge(PageCost.VP)

    def reserved_processors(self, without: Partition | None = None) -> int:
        """The sum of all reserves, in 1/65536 of a logical processor."""
        return sum(
            partition.properties[Property.CPU_RESERVE] * len(partition.vps)
            for partition in self.partitions.values()
            if partition is not without
        )

    def reset_partition(self, partition: Partition) -> None:
        """As after power on: memory mapped as it was and zero, registers, SynICs and overlay pages as at creation."""
        for vp in partition.vps.values():
            vp.reset()
        msr_table.reset_partition_registers(partition)
        partition.memory.clear()
        partition.counters["resets"] += 1
        if self.trace.on:
            self.trace.emit(Layer.STATE, "partition_reset", partition.id, level=Level.INFO)

    def partition_changed(self, partition: Partition) -> None:
        """Tell whoever listens of a partition's new state."""
        if self.trace.on:
            state = partition.state.value
            self.trace.emit(Layer.STATE, "partition_state", partition.id, level=Level.INFO, words=state, state=state)


def _require_running(vp: VirtualProcessor) -> None:
    if vp.partition.state is not PartitionState.ACTIVE:
        raise VpStopped(f"{vp!r} has no partition to run in")
