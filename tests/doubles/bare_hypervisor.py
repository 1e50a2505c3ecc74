"""A hypervisor without hypercalls: a root and a child with memory and processors, for tests of single parts."""

from __future__ import annotations

from typing import Any

from hypervisor import msr_table
from hypervisor.blocks import MemoryBlock
from hypervisor.cpuid import cpuid
from hypervisor.memory import GuestMemory
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SHIFT, Access
from hypervisor.partition import ROOT_ID, Partition, PartitionState
from hypervisor.privileges import CHILD_PRIVILEGES, ROOT_PRIVILEGES, Privilege
from hypervisor.reference_time import tsc_from_clock
from hypervisor.scheduler.driver import CpuScheduler
from hypervisor.synic import ports
from hypervisor.timer_queue import TimerQueue
from hypervisor.trace import Trace
from hypervisor.vp import VirtualProcessor

CHILD_ID = 2
CHILD_RIGHTS = CHILD_PRIVILEGES | int(Privilege.ACCESS_PARTITION_REFERENCE_TSC | Privilege.ACCESS_FREQUENCY_MSRS)


class RecordingRunner:
    """Notes what a virtual processor is told."""

    def __init__(self) -> None:
        self.vectors: list[int] = []
        self.suspensions: list[bool] = []

    def interrupt(self, vector: int) -> None:
        self.vectors.append(vector)

    def suspended(self, suspended: bool) -> None:
        self.suspensions.append(suspended)


class BareHypervisor:
    """What the parts under test ask of a `Hypervisor`, and two partitions. Time moves by `time` or by another clock."""

    def __init__(self, clock: Any = None, *, pages: int = 64, vps: int = 1) -> None:
        self.time = 1000
        self.clock = clock or (lambda: self.time)
        self.trace = Trace(self.clock)
        self.timers = TimerQueue()
        host: Any = self
        self.scheduler = CpuScheduler(host)
        self.max_vps = 64
        self.logical_processors = 4
        self.partitions: dict[int, Partition] = {}
        self.exceptions: list[tuple[VirtualProcessor, str]] = []
        self.calls: list[tuple[int, int]] = []
        self.root = self._partition(ROOT_ID, 0, ROOT_PRIVILEGES, pages, 1)
        self.child = self._partition(CHILD_ID, ROOT_ID, CHILD_RIGHTS, pages, vps)
        for vp in self.root.vps.values():
            vp.set_explicit_suspend(False)

    def _partition(self, partition_id: int, parent: int, privileges: int, pages: int, vps: int) -> Partition:
        memory = GuestMemory()
        block = MemoryBlock.allocate(pages << PAGE_SHIFT, f"partition {partition_id}")
        memory.map_block(0, block, 0, pages, Access.ALL)
        host: Any = self
        partition = Partition(host, partition_id, parent, memory)
        partition.privileges = privileges
        partition.state = PartitionState.ACTIVE
        partition.pool.granted = 10_000
        self.partitions[partition_id] = partition
        for index in range(vps):
            partition.vps[index] = VirtualProcessor(partition, index)
        return partition

    def read_msr(self, vp: VirtualProcessor, msr: int) -> int:
        host: Any = self
        return msr_table.read_msr(host, vp, msr)

    def write_msr(self, vp: VirtualProcessor, msr: int, value: int) -> None:
        host: Any = self
        msr_table.write_msr(host, vp, msr, value)

    def cpuid(self, vp: VirtualProcessor, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        host: Any = self
        return cpuid(host, vp, leaf, subleaf)

    def clock_of(self, vp: VirtualProcessor) -> int:
        return int(self.clock())

    def read_tsc(self) -> int:
        return tsc_from_clock(self.clock())

    def hypercall(self, vp: VirtualProcessor, control: int, input_gpa: int, output_gpa: int) -> int:
        self.calls.append((vp.partition.id, control))
        return 0

    def port_in(self, vp: VirtualProcessor, port: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def port_out(self, vp: VirtualProcessor, port: int, size: int, value: int) -> None:
        self.calls.append((vp.partition.id, port))

    def unrecoverable_exception(self, vp: VirtualProcessor, reason: str) -> None:
        self.exceptions.append((vp, reason))

    def post(self, sender: Partition, connection_id: int, payload: bytes, message_type: int = 1) -> None:
        host: Any = self
        ports.post_message(host, sender, connection_id, message_type, payload)

    def signal(self, sender: Partition, connection_id: int, flag: int = 0) -> None:
        host: Any = self
        ports.signal_event(host, sender, connection_id, flag)

    def start_synic(
        self, partition: Partition, *, vp: int = 0, vector: int = 0xF3, sint: int = 2, page: int = 8
    ) -> None:
        """The registers in the order in which Linux writes them: SIM page at `page`, SIEF page behind it."""
        processor = partition.vps[vp]
        self.write_msr(processor, Msr.SIMP, page << PAGE_SHIFT | 1)
        self.write_msr(processor, Msr.SIEFP, page + 1 << PAGE_SHIFT | 1)
        self.write_msr(processor, Msr.SINT0 + sint, vector)
        self.write_msr(processor, Msr.SCONTROL, 1)

    def message_port(
        self, owner: Partition, sender: Partition, number: int, *, sint: int = 2, vp: int = 0
    ) -> ports.Port:
        """A message port and its connection, both with this number."""
        port = ports.create_port(owner, number, sender, ports.PortInfo(ports.PortType.MESSAGE, sint, vp))
        ports.connect_port(sender, number, owner, number, ports.ConnectionInfo(ports.PortType.MESSAGE))
        return port

    def event_port(
        self,
        owner: Partition,
        sender: Partition,
        number: int,
        *,
        base: int = 0,
        count: int = 1,
        sint: int = 2,
        vp: int = 0,
    ) -> ports.Port:
        """An event port and its connection, both with this number."""
        info = ports.PortInfo(ports.PortType.EVENT, sint, vp, base, count)
        port = ports.create_port(owner, number, sender, info)
        ports.connect_port(sender, number, owner, number, ports.ConnectionInfo(ports.PortType.EVENT))
        return port
