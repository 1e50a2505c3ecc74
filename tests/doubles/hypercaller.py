"""A small machine for hypercall tests: a root that calls by the book, and children made and granted in a line each."""

from __future__ import annotations

import struct

import attrs

from hypervisor.hypercall import layouts
from hypervisor.hypercall.abi import CallCode, control_word, result_completed, result_status
from hypervisor.hypervisor import Hypervisor
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SIZE, Access
from hypervisor.partition import Partition
from hypervisor.properties import Property
from hypervisor.status import HvStatus
from hypervisor.synic.ports import ConnectionInfo, PortInfo, PortType
from hypervisor.trace import Trace
from hypervisor.vp import VirtualProcessor
from hypervisor.wire import Wire

CHILD_PAGES = 16
CHILD_INPUT, CHILD_OUTPUT = 0x2000, 0x3000
POOL_PAGES = 64


@attrs.frozen
class Answer:
    """What a call gave."""

    status: HvStatus
    completed: int
    output: bytes
    """The whole output page."""


class Machine:
    """A hypervisor on a clock that stands still until told, with scratch pages for the root's calls."""

    def __init__(self, *, memory_bytes: int = 1 << 26, max_depth: int = 2, root_vps: int = 1) -> None:
        self.now = 0
        self.trace = Trace(lambda: self.now)
        self.hypervisor = Hypervisor(
            lambda: self.now, self.trace, memory_bytes=memory_bytes, root_vps=root_vps, max_depth=max_depth
        )
        self.root = self.hypervisor.root
        self.vp = self.root.vps[0]
        self.low, self.block = self.hypervisor.add_root_block(8 * PAGE_SIZE, "scratch")
        self.input, self.output = (self.low + 1) * PAGE_SIZE, (self.low + 2) * PAGE_SIZE
        enable_hypercalls(self.hypervisor, self.vp, self.low)

    def call(
        self,
        code: int,
        request: Wire | bytes = b"",
        *,
        count: int = 0,
        elements: bytes = b"",
        fast: bool = False,
        caller: Partition | None = None,
    ) -> Answer:
        """A call in memory, or in registers, by the root or by a child that `child` made."""
        data = (request.encode() if isinstance(request, Wire) else request) + elements
        by = self.root if caller is None else caller
        word = control_word(code, fast=fast, count=count)
        if fast:
            low, high = struct.unpack("<QQ", data.ljust(16, b"\0"))
            value = self.hypervisor.hypercall(by.vps[0], word, low, high)
            return Answer(result_status(value), result_completed(value), b"")
        at, out = (self.input, self.output) if caller is None else (CHILD_INPUT, CHILD_OUTPUT)
        by.memory.write(at, data)
        by.memory.write(out, bytes(PAGE_SIZE))
        value = self.hypervisor.hypercall(by.vps[0], word, at, out)
        return Answer(result_status(value), result_completed(value), by.memory.read(out, PAGE_SIZE))

    def must(self, code: int, request: Wire, *, count: int = 0, elements: bytes = b"") -> bytes:
        """A call of the root's that has to succeed; its output page."""
        answer = self.call(code, request, count=count, elements=elements)
        assert answer.status is HvStatus.SUCCESS, f"{code:#x}: {answer.status.name}"
        return answer.output

    # --- children

    def create(self) -> Partition:
        """A child in state Uninitialized, with nothing in its pool."""
        output = self.must(CallCode.CREATE_PARTITION, layouts.CreatePartitionInput())
        return self.hypervisor.by_id(layouts.PartitionOutput.decode(output).partition_id)

    def deposit(self, child: Partition, count: int = POOL_PAGES) -> int:
        """Give a pool pages from a block of their own; its first page."""
        first, _ = self.hypervisor.add_root_block(count * PAGE_SIZE, "pool")
        for start in range(0, count, 500):
            run = min(500, count - start)
            self.must(
                CallCode.DEPOSIT_MEMORY,
                layouts.DepositMemoryInput(child.id),
                count=run,
                elements=pages(first + start, run),
            )
        return first

    def active(self) -> Partition:
        """A child in state Active with a filled pool and nothing else."""
        child = self.create()
        self.deposit(child)
        self.must(CallCode.INITIALIZE_PARTITION, layouts.PartitionInput(child.id))
        return child

    def child(self, privileges: int = 0) -> Partition:
        """A child that can call: memory, one VP, hypercalls enabled, `privileges` on top of the default."""
        child = self.active()
        self.must(CallCode.CREATE_VP, layouts.CreateVpInput(child.id, 0))
        ram, _ = self.hypervisor.add_root_block(CHILD_PAGES * PAGE_SIZE, "ram")
        self.map(child, 0, ram, CHILD_PAGES)
        self.grant(child, child.privileges | privileges)
        enable_hypercalls(self.hypervisor, child.vps[0], 1)
        return child

    def map(self, child: Partition, gpn: int, source: int, count: int, access: Access = Access.ALL) -> None:
        """Pages of the root's into the child."""
        request = layouts.MapGpaPagesInput(child.id, gpn, int(access))
        self.must(CallCode.MAP_GPA_PAGES, request, count=count, elements=pages(source, count))

    def grant(self, child: Partition, privileges: int) -> None:
        """Set the whole mask."""
        request = layouts.SetPartitionPropertyInput(child.id, Property.PRIVILEGE_FLAGS, privileges)
        self.must(CallCode.SET_PARTITION_PROPERTY, request)

    # --- ports

    def listen(self, sint: int = 2) -> None:
        """Switch the root's SynIC on, with its pages behind the scratch pages."""
        for msr, value in (
            (Msr.SIMP, (self.low + 3) * PAGE_SIZE | 1),
            (Msr.SIEFP, (self.low + 4) * PAGE_SIZE | 1),
            (Msr.SINT0, 0x30),
            (Msr.SINT0 + sint, 0x30 + sint),
            (Msr.SCONTROL, 1),
        ):
            self.hypervisor.write_msr(self.vp, msr, value)

    def connect(self, child: Partition, kind: PortType, port_id: int, connection_id: int, *, flags: int = 1) -> None:
        """A port of the root's at (VP 0, SINT 2) and the child's connection to it."""
        count = flags if kind is PortType.EVENT else 0
        info = PortInfo(kind, 2, 0, 0, count).encode()
        self.must(CallCode.CREATE_PORT_2010, layouts.CreatePort2010Input(1, port_id, child.id, info))
        connection = ConnectionInfo(kind).encode()
        self.must(
            CallCode.CONNECT_PORT_2010, layouts.ConnectPort2010Input(child.id, connection_id, 1, port_id, connection)
        )


def pages(first: int, count: int) -> bytes:
    """A list of adjacent page numbers."""
    return struct.pack(f"<{count}Q", *range(first, first + count))


def enable_hypercalls(hypervisor: Hypervisor, vp: VirtualProcessor, gpn: int) -> None:
    """What an operating system does first."""
    hypervisor.write_msr(vp, Msr.GUEST_OS_ID, 1)
    hypervisor.write_msr(vp, Msr.HYPERCALL, gpn * PAGE_SIZE | 1)
