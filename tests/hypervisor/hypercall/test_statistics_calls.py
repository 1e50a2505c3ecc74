"""Pages of counters: mapped by the root, laid over a guest's page, brought up to date, and given back."""

from __future__ import annotations

import struct

import pytest

from hypervisor.hypercall import layouts
from hypervisor.hypercall import statistics_layouts as wire
from hypervisor.hypercall.abi import CallCode
from hypervisor.hypercall.statistics import StatsObject
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE
from hypervisor.partition import Partition
from hypervisor.privileges import Privilege
from hypervisor.statistics import REFRESH, HypervisorCounter, PartitionCounter, ProcessorCounter, VpCounter
from hypervisor.status import HvStatus
from hypervisor.vp_registers import Register
from tests.doubles.hypercaller import Machine

STATS = int(Privilege.ACCESS_STATS_MSR)


@pytest.fixture
def machine() -> Machine:
    return Machine(root_vps=2)


def identity(number: int = 0, index: int = 0, *, flags: int = 0, reserved: int = 0, area: int = 0) -> bytes:
    return wire.VpIdentity(number, index, flags, reserved, area).encode()


def request(kind: int, *args: int, **more: int) -> wire.StatsPageInput:
    return wire.StatsPageInput(kind, identity(*args, **more))


def map_page(machine: Machine, *args: int) -> int:
    output = machine.must(CallCode.MAP_STATS_PAGE, request(*args))
    return wire.StatsPageOutput.decode(output[:8]).map_location


def counters(partition: Partition, gpn: int) -> tuple[int, ...]:
    return struct.unpack("<512Q", partition.memory.read(gpn << PAGE_SHIFT, PAGE_SIZE))


def pass_time(machine: Machine, ticks: int) -> None:
    machine.now += ticks
    machine.hypervisor.timers.fire_due(machine.now, 100)


def test_every_kind_of_object(machine: Machine) -> None:
    """The machine, a logical processor, a partition and a virtual processor, by Linux's numbers of counters."""
    child = machine.child()
    machine.now = 50_000_000
    child.vps[0].ran(30_000_000)
    whole = counters(machine.root, map_page(machine, StatsObject.HYPERVISOR))
    assert whole[HypervisorCounter.PARTITIONS] == 2
    assert whole[HypervisorCounter.VIRTUAL_PROCESSORS] == 3
    assert whole[HypervisorCounter.LOGICAL_PROCESSORS] == 2
    processor = counters(machine.root, map_page(machine, StatsObject.LOGICAL_PROCESSOR, 1))
    assert processor[ProcessorCounter.GLOBAL_TIME] == 50_000_000
    assert processor[ProcessorCounter.TOTAL_RUN_TIME] == 15_000_000
    partition = counters(machine.root, map_page(machine, StatsObject.PARTITION, child.id))
    assert partition[PartitionCounter.PARTITION_ID] == child.id
    assert partition[PartitionCounter.GPA_PAGES] == 16
    assert partition[PartitionCounter.DEPOSITED_PAGES] == child.pool.deposited
    vp = counters(machine.root, map_page(machine, StatsObject.VP, child.id, 0))
    assert vp[VpCounter.TOTAL_RUN_TIME] == 30_000_000
    assert vp[VpCounter.VIRTUAL_INTERRUPTS] == 0


def test_numbers_follow(machine: Machine) -> None:
    """Every 0.1 s, as long as the page is mapped; then nothing is left in the queue."""
    child = machine.child()
    gpn = map_page(machine, StatsObject.VP, child.id, 0)
    child.vps[0].ran(5)
    child.vps[0].raise_interrupt(0x40)
    pass_time(machine, REFRESH - 1)
    assert counters(machine.root, gpn)[VpCounter.TOTAL_RUN_TIME] == 0
    pass_time(machine, 1)
    assert counters(machine.root, gpn)[VpCounter.TOTAL_RUN_TIME] == 5
    assert counters(machine.root, gpn)[VpCounter.VIRTUAL_INTERRUPTS] == 1
    machine.must(CallCode.UNMAP_STATS_PAGE, request(StatsObject.VP, child.id, 0))
    assert not machine.hypervisor.timers
    assert machine.root.memory.source(gpn) is None


def test_a_page_is_mapped_as_often_as_it_was_asked_for(machine: Machine) -> None:
    before = machine.hypervisor.root_bytes
    gpn = map_page(machine, StatsObject.HYPERVISOR)
    assert map_page(machine, StatsObject.HYPERVISOR) == gpn
    machine.must(CallCode.UNMAP_STATS_PAGE, request(StatsObject.HYPERVISOR))
    assert machine.root.memory.source(gpn) is not None
    machine.must(CallCode.UNMAP_STATS_PAGE, request(StatsObject.HYPERVISOR))
    again = machine.call(CallCode.UNMAP_STATS_PAGE, request(StatsObject.HYPERVISOR))
    assert again.status is HvStatus.INVALID_PARAMETER
    assert machine.hypervisor.root_bytes == before


def test_the_page_of_what_has_gone_keeps_its_last_numbers(machine: Machine) -> None:
    """Until it is unmapped, by the name that leads nowhere else any more."""
    child = machine.child()
    gpn = map_page(machine, StatsObject.PARTITION, child.id)
    vp = map_page(machine, StatsObject.VP, child.id, 0)
    machine.must(CallCode.DELETE_VP, layouts.VpInput(child.id, 0))
    pass_time(machine, REFRESH)
    assert counters(machine.root, gpn)[PartitionCounter.VIRTUAL_PROCESSORS] == 0
    assert counters(machine.root, vp)[VpCounter.TOTAL_RUN_TIME] == 0
    machine.must(CallCode.UNMAP_STATS_PAGE, request(StatsObject.VP, child.id, 0))
    machine.must(CallCode.UNMAP_STATS_PAGE, request(StatsObject.PARTITION, child.id))
    assert not len(machine.hypervisor.statistics)


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (request(3), HvStatus.INVALID_PARAMETER),
        (request(StatsObject.HYPERVISOR, area=1), HvStatus.INVALID_PARAMETER),
        (request(StatsObject.HYPERVISOR, area=2), HvStatus.INVALID_PARAMETER),
        (request(StatsObject.HYPERVISOR, 1), HvStatus.INVALID_PARAMETER),
        (request(StatsObject.LOGICAL_PROCESSOR, 1 << 32), HvStatus.INVALID_PARAMETER),
        (request(StatsObject.LOGICAL_PROCESSOR, 2), HvStatus.INVALID_LP_INDEX),
        (request(StatsObject.PARTITION, 1, 1), HvStatus.INVALID_PARAMETER),
        (request(StatsObject.PARTITION, 77), HvStatus.INVALID_PARTITION_ID),
        (request(StatsObject.VP, 1, 9), HvStatus.INVALID_VP_INDEX),
        (request(StatsObject.VP, 1, 0, flags=1), HvStatus.INVALID_PARAMETER),
        (request(StatsObject.VP, 1, 0, reserved=1), HvStatus.INVALID_PARAMETER),
    ],
)
def test_what_cannot_be_mapped(machine: Machine, asked: wire.StatsPageInput, status: HvStatus) -> None:
    """The parent's area and the internal one are refused as Linux expects it of hypervisors without them."""
    assert machine.call(CallCode.MAP_STATS_PAGE, asked).status is status
    assert not machine.hypervisor.timers


def test_memory_runs_out_as_a_status() -> None:
    machine = Machine(memory_bytes=8 * PAGE_SIZE)
    answer = machine.call(CallCode.MAP_STATS_PAGE, request(StatsObject.HYPERVISOR))
    assert answer.status is HvStatus.INSUFFICIENT_MEMORY
    assert not len(machine.hypervisor.statistics)


def test_a_child_maps_no_pages(machine: Machine) -> None:
    """With the privilege or without: it has the registers."""
    for privileges in (0, int(Privilege.ACCESS_STATS)):
        child = machine.child(privileges)
        for code in (CallCode.MAP_STATS_PAGE, CallCode.UNMAP_STATS_PAGE):
            answer = machine.call(code, request(StatsObject.PARTITION, child.id), caller=child)
            assert answer.status is HvStatus.ACCESS_DENIED


def test_run_times_of_logical_processors(machine: Machine) -> None:
    """Linux asks for one to learn whether there is such a processor."""
    child = machine.child()
    machine.now = 1000
    child.vps[0].ran(600)
    output = machine.must(CallCode.GET_LOGICAL_PROCESSOR_RUN_TIME, wire.RunTimeInput(1))
    assert wire.RunTimeOutput.decode(output[:32]) == wire.RunTimeOutput(1000, 300, 0, 0)
    answer = machine.call(CallCode.GET_LOGICAL_PROCESSOR_RUN_TIME, wire.RunTimeInput(2))
    assert answer.status is HvStatus.INVALID_LP_INDEX
    denied = machine.call(CallCode.GET_LOGICAL_PROCESSOR_RUN_TIME, wire.RunTimeInput(0), caller=child)
    assert denied.status is HvStatus.ACCESS_DENIED


# --- the registers


@pytest.mark.parametrize("msr", [Msr.STATS_PARTITION_RETAIL_PAGE, Msr.STATS_VP_RETAIL_PAGE])
def test_a_guests_own_page(machine: Machine, msr: int) -> None:
    """An overlay like the others: it hides the guest's page, follows the counters, and gives the page back."""
    child = machine.child(STATS)
    child.memory.write(5 << PAGE_SHIFT, b"guest")
    vp = child.vps[0]
    machine.hypervisor.write_msr(vp, msr, 5 << PAGE_SHIFT | 1)
    assert machine.hypervisor.read_msr(vp, msr) == 5 << PAGE_SHIFT | 1
    seen = counters(child, 5)
    if msr == Msr.STATS_PARTITION_RETAIL_PAGE:
        assert seen[PartitionCounter.PARTITION_ID] == child.id
    else:
        vp.ran(70)
        pass_time(machine, REFRESH)
        assert counters(child, 5)[VpCounter.TOTAL_RUN_TIME] == 70
    machine.hypervisor.write_msr(vp, msr, 6 << PAGE_SHIFT | 1)
    assert child.memory.read(5 << PAGE_SHIFT, 5) == b"guest"
    machine.hypervisor.write_msr(vp, msr, 0)
    assert not machine.hypervisor.timers


def test_internal_pages_are_empty(machine: Machine) -> None:
    """Their counters are published nowhere."""
    child = machine.child(STATS)
    machine.hypervisor.write_msr(child.vps[0], Msr.STATS_VP_INTERNAL_PAGE, 5 << PAGE_SHIFT | 1)
    machine.hypervisor.write_msr(child.vps[0], Msr.STATS_PARTITION_INTERNAL_PAGE, 6 << PAGE_SHIFT | 1)
    assert not any(counters(child, 5) + counters(child, 6))


def test_reset_takes_the_pages_away(machine: Machine) -> None:
    child = machine.child(STATS)
    vp = child.vps[0]
    machine.hypervisor.write_msr(vp, Msr.STATS_PARTITION_RETAIL_PAGE, 5 << PAGE_SHIFT | 1)
    machine.hypervisor.write_msr(vp, Msr.STATS_VP_RETAIL_PAGE, 6 << PAGE_SHIFT | 1)
    machine.hypervisor.reset_partition(child)
    assert not machine.hypervisor.timers
    assert machine.hypervisor.read_msr(vp, Msr.STATS_VP_RETAIL_PAGE) == 0
    assert child.memory.read(5 << PAGE_SHIFT, 2 * PAGE_SIZE) == bytes(2 * PAGE_SIZE)


def test_by_register_name(machine: Machine) -> None:
    """Names 90020h to 90023h, for a parent that needs none of the child's privileges."""
    child = machine.child()
    vp = child.vps[0]
    names = range(Register.STATS_PARTITION_RETAIL, Register.STATS_VP_INTERNAL + 1)
    for gpn, name in enumerate(names, 5):
        vp.set_register(name, gpn << PAGE_SHIFT | 1)
        assert vp.get_register(name) == gpn << PAGE_SHIFT | 1
    assert counters(child, 5)[PartitionCounter.PARTITION_ID] == child.id
    assert not any(counters(child, 6))
