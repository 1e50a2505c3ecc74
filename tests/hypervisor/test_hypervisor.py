"""The hypervisor as a whole: the root, traps other than hypercalls, what stops a VP, and reset."""

from __future__ import annotations

import attrs
import pytest

from hypervisor.hypervisor import ROOT_POOL_PAGES, Hypervisor
from hypervisor.machine import GeneralProtection
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SIZE
from hypervisor.partition import PageCost, PartitionState
from hypervisor.privileges import ROOT_PRIVILEGES
from hypervisor.status import HvError
from hypervisor.synic.messages import InterceptHeader, MessageHeader, MessageType
from hypervisor.synic.ports import PortType
from hypervisor.trace import Trace
from tests.doubles.hypercaller import CHILD_PAGES, Machine


@pytest.fixture
def machine() -> Machine:
    return Machine()


# --- the root


def test_the_root_exists_and_runs() -> None:
    """Partition 1, active, with all privileges and running processors."""
    hypervisor = Hypervisor(lambda: 0, Trace(lambda: 0), memory_bytes=1 << 20, root_vps=3)
    root = hypervisor.root
    assert (root.id, root.parent_id, root.parent, root.depth) == (1, 0, None, 1)
    assert root.state is PartitionState.ACTIVE
    assert root.privileges == ROOT_PRIVILEGES
    assert hypervisor.by_id(1) is root
    assert [vp.suspended for vp in root.vps.values()] == [False] * 3
    assert [processor.vp_index for processor in hypervisor.root_processors] == [0, 1, 2]
    assert root.pool.available == ROOT_POOL_PAGES - PageCost.INITIALIZE - 3 * PageCost.VP
    assert root.reference_time.running


def test_unknown_partition(machine: Machine) -> None:
    with pytest.raises(HvError, match="INVALID_PARTITION_ID"):
        machine.hypervisor.by_id(99)


def test_blocks_are_placed_first_fit_and_apart(machine: Machine) -> None:
    hypervisor = machine.hypervisor
    one, _ = hypervisor.add_root_block(4 * PAGE_SIZE, "one")
    two, _ = hypervisor.add_root_block(4 * PAGE_SIZE, "two")
    hypervisor.add_root_block(PAGE_SIZE, "three")
    assert two == one + 4
    hypervisor.remove_root_block(one)
    assert hypervisor.add_root_block(5 * PAGE_SIZE, "too large for the gap")[0] == two + 5
    assert hypervisor.add_root_block(3 * PAGE_SIZE, "fits")[0] == one


@pytest.mark.parametrize("size", [0, -PAGE_SIZE, 100])
def test_blocks_are_whole_pages(machine: Machine, size: int) -> None:
    with pytest.raises(ValueError, match="pages"):
        machine.hypervisor.add_root_block(size, "odd")


def test_closing_leaves_views_alive() -> None:
    """Memory goes with its last view, not before."""
    machine = Machine()
    view = machine.block.view[:8]
    machine.hypervisor.close()
    machine.hypervisor.close()
    view[:] = b"survived"
    assert bytes(view) == b"survived"


# --- ports


@attrs.define
class Sink:
    """The parent's side of port intercepts."""

    writes: list[tuple[int, int, int, int]] = attrs.field(factory=list)
    answer: int = 0x1234_5678_9A

    def port_read(self, vp_index: int, port: int, size: int) -> int:
        return self.answer

    def port_write(self, vp_index: int, port: int, size: int, value: int) -> None:
        self.writes.append((vp_index, port, size, value))


@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF)])
def test_ports_without_a_device(machine: Machine, size: int, ones: int) -> None:
    """Reading gives ones, writing is lost."""
    vp = machine.child().vps[0]
    assert machine.hypervisor.port_in(vp, 0x3F8, size) == ones
    machine.hypervisor.port_out(vp, 0x3F8, size, 7)


@pytest.mark.parametrize(("size", "seen"), [(1, 0x9A), (2, 0x789A), (4, 0x3456789A)])
def test_port_intercepts_reach_the_parent(machine: Machine, size: int, seen: int) -> None:
    """Values are cut to the access's size in both directions."""
    child = machine.child()
    child.intercepts = sink = Sink()
    assert machine.hypervisor.port_in(child.vps[0], 0x70, size) == seen
    machine.hypervisor.port_out(child.vps[0], 0x70, size, sink.answer)
    assert sink.writes == [(0, 0x70, size, seen)]
    assert child.counters["port_intercepts"] == 2


@pytest.mark.parametrize(("port", "size"), [(0x70, 3), (0x70, 0), (0x70, 8), (0x10000, 1), (-1, 1)])
def test_accesses_that_no_instruction_makes(machine: Machine, port: int, size: int) -> None:
    child = machine.child()
    child.intercepts = sink = Sink()
    with pytest.raises(GeneralProtection):
        machine.hypervisor.port_in(child.vps[0], port, size)
    with pytest.raises(GeneralProtection):
        machine.hypervisor.port_out(child.vps[0], port, size, 0)
    assert sink.writes == []


def test_port_accesses_are_told(machine: Machine) -> None:
    child = machine.child()
    events: list[tuple[str, int | None, object]] = []
    machine.trace.add_sink(lambda event: events.append((event.event, event.size, event.fields["value"])))
    machine.hypervisor.port_out(child.vps[0], 0x3F8, 1, 65)
    machine.hypervisor.port_in(child.vps[0], 0x3FD, 1)
    assert events == [("port_out", 1, 65), ("port_in", 1, 0xFF)]


# --- registers and time


def test_tsc_follows_the_clock(machine: Machine) -> None:
    machine.now = 5
    first = machine.hypervisor.read_tsc()
    machine.now = 10
    assert machine.hypervisor.read_tsc() == 2 * first > 0


def test_msrs_by_the_hypervisors_door(machine: Machine) -> None:
    child = machine.child()
    assert machine.hypervisor.read_msr(child.vps[0], Msr.VP_INDEX) == 0
    with pytest.raises(GeneralProtection):
        machine.hypervisor.write_msr(child.vps[0], Msr.VP_INDEX, 1)


# --- what stops a VP


def test_an_unrecoverable_exception_stops_the_vp_and_tells_the_parent(machine: Machine) -> None:
    machine.listen()
    child = machine.child()
    vp = child.vps[0]
    vp.set_explicit_suspend(False)
    events: list[tuple[str, str]] = []
    machine.trace.add_sink(lambda event: events.append((event.event, event.words)))
    machine.hypervisor.unrecoverable_exception(vp, "Traceback\nValueError: no\n")
    assert vp.intercept_suspend
    slot = bytes(machine.vp.synic.message_page.view[:256])
    header = MessageHeader.decode(slot)
    assert header.message_type == MessageType.UNRECOVERABLE_EXCEPTION
    assert header.origination_id == child.id
    assert InterceptHeader.decode(slot, 16).vp_index == 0
    assert ("unrecoverable_exception", "ValueError: no") in events


def test_the_vp_is_suspended_before_the_parent_hears(machine: Machine) -> None:
    """The parent's interrupt may resume it at once, and that must last."""
    machine.listen()
    vp = machine.child().vps[0]
    vp.set_explicit_suspend(False)
    machine.hypervisor.root_processors[0].set_interrupt_handler(lambda _: vp.clear_intercept_suspend())
    machine.hypervisor.unrecoverable_exception(vp, "resumed by the parent")
    assert not vp.suspended


# --- reset


def test_reset_is_a_new_power_on(machine: Machine) -> None:
    """RAM is mapped as before and zero; registers, SynIC and overlays as at creation; the ports stay."""
    child = machine.child()
    machine.connect(child, PortType.MESSAGE, 0x11, 1)
    vp = child.vps[0]
    for gpn in range(CHILD_PAGES):
        if gpn != 1:  # the hypercall page
            child.memory.write(gpn * PAGE_SIZE, b"\xa5" * PAGE_SIZE)
    for msr, value in ((Msr.SIMP, 4 << 12 | 1), (Msr.SIEFP, 5 << 12 | 1), (Msr.SCONTROL, 1), (Msr.SINT2, 0x30)):
        machine.hypervisor.write_msr(vp, msr, value)
    vp.stop_on_intercept()
    before = child.memory.extents()
    machine.hypervisor.reset_partition(child)
    assert child.memory.extents() == before
    assert child.memory.read(0, CHILD_PAGES * PAGE_SIZE) == bytes(CHILD_PAGES * PAGE_SIZE)
    assert (child.guest_os_id, child.hypercall_msr) == (0, 0)
    assert [machine.hypervisor.read_msr(vp, msr) for msr in (Msr.SIMP, Msr.SIEFP, Msr.SCONTROL)] == [0, 0, 0]
    assert not vp.intercept_suspend
    assert child.connections[1].port.connection is child.connections[1]
    assert child.state is PartitionState.ACTIVE


def test_states_are_told(machine: Machine) -> None:
    """Creation, initialization, finalizing and deletion each leave a line."""
    events: list[tuple[int, str]] = []
    machine.trace.add_sink(
        lambda event: events.append((event.partition, event.words)) if event.event == "partition_state" else None
    )
    child = machine.active()
    machine.call(0x42, child.id.to_bytes(8, "little"))
    machine.call(0x49, child.id.to_bytes(8, "little") + bytes(8), count=100)
    machine.call(0x43, child.id.to_bytes(8, "little"))
    assert events == [(child.id, word) for word in ("uninitialized", "active", "finalizing", "finalized", "deleted")]


def test_a_finalized_childs_processors_are_stopped(machine: Machine) -> None:
    """Whoever executes one is told to let go."""
    child = machine.child()
    told: list[bool] = []

    class Runner:
        def interrupt(self, vector: int) -> None: ...

        def suspended(self, suspended: bool) -> None:
            told.append(suspended)

    child.vps[0].set_explicit_suspend(False)
    child.vps[0].runner = Runner()
    machine.call(0x42, child.id.to_bytes(8, "little"))
    assert told == [True]
    assert child.vps == {}
