"""Monitored notification pages: who is signaled, when, and what a hostile page comes to."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from hypervisor import atomic, monitor
from hypervisor.blocks import MemoryBlock
from hypervisor.clock import ticks
from hypervisor.hypercall.ports import disconnect
from hypervisor.monitor import LONGEST, SHORTEST
from hypervisor.monitor_page import TRIGGERS, MonitorPage, MonitorParameter
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE, Access
from hypervisor.status import HvError, HvStatus
from hypervisor.synic import ports
from hypervisor.synic.ports import ConnectionInfo, PortInfo, PortType
from hypervisor.timer_driver import timers_running
from tests.doubles.bare_hypervisor import BareHypervisor

PAGE = 0x40 << PAGE_SHIFT
"""Where both partitions see one page."""
EVENT = ConnectionInfo(PortType.EVENT)
MONITOR = ConnectionInfo(PortType.MONITOR, PAGE)
LATENCY = 1000


class Host(BareHypervisor):
    """A child that may signal flags 1 and 2 of the root by connections 0x2001 and 0x2002, and a page that both see."""

    def __init__(self, clock: Any = None) -> None:
        super().__init__(clock)
        block = MemoryBlock.allocate(PAGE_SIZE, "shared")
        for partition in (self.root, self.child):
            partition.memory.map_block(PAGE >> PAGE_SHIFT, block, 0, 1, Access.ALL)
        self.start_synic(self.root)
        self.page = MonitorPage(self.child.memory.view(PAGE, PAGE_SIZE))
        for flag in (1, 2):
            ports.create_port(self.root, flag, self.child, PortInfo(PortType.EVENT, 2, 0, flag, 1))
            ports.connect_port(self.child, 0x2000 | flag, self.root, flag, EVENT)

    def connect(self) -> None:
        ports.create_port(self.root, 9, self.child, PortInfo(PortType.MONITOR, PAGE, 0))
        monitor.watch(ports.connect_port(self.child, 3, self.root, 9, MONITOR))

    def disconnect(self) -> None:
        disconnect(self.child, 3)

    def look(self) -> None:
        while self.timers.fire_due(self.clock(), 64):
            pass

    def signals(self) -> tuple[int, int]:
        return self.root.ports[1].post_count, self.root.ports[2].post_count


@pytest.fixture
def host() -> Host:
    return Host()


def test_the_page_has_hyper_vs_layout() -> None:
    """Offsets of HV_MONITOR_PAGE: groups at 8, latencies at 576, parameters at 1088, a trigger in group n / 32."""
    view = memoryview(bytearray(PAGE_SIZE))
    page = MonitorPage(view)
    page.set_up(39, 0x1234, MonitorParameter(0x2005, 7))
    page.enable_groups(0xFF)
    page.trigger(39)
    expected = bytearray(PAGE_SIZE)
    expected[0] = 0x0F
    expected[16] = 0x80
    expected[576 + 78 : 576 + 80] = b"\x34\x12"
    expected[1088 + 312 : 1088 + 320] = bytes.fromhex("0520000007000000")
    assert bytes(view) == bytes(expected)
    assert (page.latency(1), page.latency(0), page.pending(1)) == (0x1234, 0, 0x80)
    page.take_down(39)
    page.enable_groups(0)
    assert page.take_pending(1) == 0x80
    assert bytes(view) == bytes(PAGE_SIZE)


@given(st.lists(st.tuples(st.integers(0, TRIGGERS - 1), st.integers(1, 0xFFFF)), max_size=8))
def test_what_is_set_up_is_what_is_found(triggers: list[tuple[int, int]]) -> None:
    """Triggers do not touch one another; a group's latency is its lowest."""
    page = MonitorPage(memoryview(bytearray(PAGE_SIZE)))
    kept = dict(triggers)
    for number, latency in kept.items():
        page.set_up(number, latency, MonitorParameter(number + 1, number))
        page.trigger(number)
    for number in kept:
        assert page.parameter(number) == MonitorParameter(number + 1, number)
    for group in range(4):
        mine = {number: latency for number, latency in kept.items() if number // 32 == group}
        assert page.latency(group) == min(mine.values(), default=0)
        assert page.take_pending(group) == sum(1 << number % 32 for number in mine)


def test_without_atomics_a_word_that_was_set_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit that is set between the look and the clearing would be lost, so every trigger is taken as set."""
    monkeypatch.setattr(atomic, "_exchange", None)
    monkeypatch.setattr(atomic, "_fetch_or", None)
    page = MonitorPage(memoryview(bytearray(PAGE_SIZE)))
    assert page.take_pending(0) == 0
    page.trigger(3)
    assert page.pending(0) == 8
    assert page.take_pending(0) == atomic.ALL_BITS
    assert page.pending(0) == 0


def test_a_trigger_is_a_signal_of_the_senders(host: Host) -> None:
    """The implied HvSignalEvent sets the root's flag; only the trigger that was set counts, and once."""
    host.page.set_up(0, LATENCY, MonitorParameter(0x2001))
    host.page.set_up(1, LATENCY, MonitorParameter(0x2002))
    host.page.enable_groups(1)
    host.connect()
    host.page.trigger(1)
    host.look()
    assert host.signals() == (0, 1)
    host.time += LATENCY
    host.look()
    assert host.signals() == (0, 1)
    assert host.child.counters["monitor_signals"] == 1


def test_a_group_is_looked_at_at_its_lowest_latency(host: Host) -> None:
    """Each group has its own rate; a rate beyond `SHORTEST` is not to be had, however low the page says."""
    host.page.set_up(0, LATENCY, MonitorParameter(0x2001))
    host.page.set_up(1, 5 * LATENCY, MonitorParameter(0x2001))
    host.page.set_up(32, 1, MonitorParameter(0x2002))
    host.page.enable_groups(0b11)
    host.connect()
    assert host.timers.deadline() == host.time
    host.look()
    assert host.timers.deadline() == host.time + SHORTEST
    host.page.trigger(0)
    host.time += LATENCY - 1
    host.look()
    assert host.signals() == (0, 0)
    host.time += 1
    host.look()
    assert host.signals() == (1, 0)


def test_a_silent_group_is_looked_at_less_often(host: Host) -> None:
    """After an eighth of the time without a trigger, `LONGEST` at most; one trigger, and the latency holds again."""
    host.page.set_up(0, LATENCY, MonitorParameter(0x2001))
    host.page.enable_groups(1)
    host.connect()
    watch: Any = host.child.connections[3].watch
    began, looks = host.time, 0
    while host.time < began + 10 * 10_000_000:
        host.look()
        assert watch._due[0] - host.time == min(LONGEST, max(LATENCY, (host.time - began) // 8))
        host.time, looks = watch._due[0], looks + 1
    assert looks < 1100
    host.page.trigger(0)
    host.look()
    assert host.signals() == (1, 0)
    assert watch._due[0] == host.time + LATENCY


def test_a_group_that_is_not_enabled_keeps_its_bits(host: Host) -> None:
    """They count as soon as it is: that is how notifications are held back during a save."""
    host.page.set_up(0, LATENCY, MonitorParameter(0x2001))
    host.connect()
    host.page.trigger(0)
    host.look()
    assert (host.signals(), host.page.pending(0)) == ((0, 0), 1)
    host.page.enable_groups(1)
    host.time += LONGEST
    host.look()
    assert (host.signals(), host.page.pending(0)) == ((1, 0), 0)


@pytest.mark.parametrize(
    "parameter",
    [
        MonitorParameter(0),
        MonitorParameter(0x2003),
        MonitorParameter(3),
        MonitorParameter(0x2001, 1),
        MonitorParameter(0xFFFFFFFF, 0xFFFF, 0xFFFF),
    ],
    ids=["none", "unknown", "the monitor itself", "flag past the port's", "ones"],
)
def test_errors_of_the_implied_signal_are_dropped(host: Host, parameter: MonitorParameter) -> None:
    """Whatever HvSignalEvent would answer, nobody hears it; the bit is gone and the next trigger counts."""
    host.page.set_up(5, LATENCY, parameter)
    host.page.set_up(6, LATENCY, MonitorParameter(0x2001))
    host.page.enable_groups(1)
    host.connect()
    host.page.trigger(5)
    host.page.trigger(6)
    host.look()
    assert host.signals() == (1, 0)
    assert host.child.counters["monitor_signals_dropped"] == 1
    assert host.page.pending(0) == 0


def test_a_page_of_ones_costs_128_attempts(host: Host) -> None:
    """Every bit of the page set: each trigger once, at `LONGEST` a group at most, and nothing is signaled."""
    host.connect()
    host.page.view[:] = b"\xff" * PAGE_SIZE
    host.look()
    assert host.child.counters["monitor_signals_dropped"] == TRIGGERS
    assert host.timers.deadline() == host.time + 0xFFFF


def test_a_page_reaches_ports_of_its_receiver_only(host: Host) -> None:
    """A child can write the parameters of the page in which the root triggers; the root's other connections stay out.

    Else a guest could signal its neighbours in the root's name.
    """
    neighbour: Any = host._partition(7, 1, host.child.privileges, 16, 1)
    host.start_synic(neighbour)
    host.start_synic(host.child)
    for owner, number in ((neighbour, 0x50), (host.child, 0x51)):
        ports.create_port(owner, 1, host.root, PortInfo(PortType.EVENT, 2, 0, 1, 1))
        ports.connect_port(host.root, number, owner, 1, EVENT)
    ports.create_port(host.child, 9, host.root, PortInfo(PortType.MONITOR, PAGE, 0))
    monitor.watch(ports.connect_port(host.root, 9, host.child, 9, MONITOR))
    host.page.set_up(0, LATENCY, MonitorParameter(0x50))
    host.page.set_up(1, LATENCY, MonitorParameter(0x51))
    host.page.enable_groups(1)
    host.page.trigger(0)
    host.page.trigger(1)
    host.look()
    assert neighbour.ports[1].post_count == 0
    assert host.child.ports[1].post_count == 1


def test_a_page_that_goes_away_and_comes_back(host: Host) -> None:
    """While nothing is mapped there the page is left alone; the connection stays good."""
    host.connect()
    source = host.child.memory.source(PAGE >> PAGE_SHIFT)
    assert source is not None
    host.page.set_up(0, LATENCY, MonitorParameter(0x2001))
    host.page.enable_groups(1)
    host.page.trigger(0)
    host.child.memory.unmap(PAGE >> PAGE_SHIFT, 1)
    host.look()
    assert host.signals() == (0, 0)
    host.child.memory.map_block(PAGE >> PAGE_SHIFT, source[0], source[1], 1, Access.ALL)
    host.time += LONGEST
    host.look()
    assert host.signals() == (1, 0)


def test_what_connecting_refuses(host: Host) -> None:
    """The page of both ends is one page, whole and mapped; errors in the order of all connections."""
    ports.create_port(host.root, 9, host.child, PortInfo(PortType.MONITOR, PAGE, 0))
    for address, status in (
        (PAGE + 8, HvStatus.INVALID_ALIGNMENT),
        (0x1000, HvStatus.INVALID_PARAMETER),
        (0x7FFF_F000, HvStatus.INVALID_PARAMETER),
        ((1 << 64) - PAGE_SIZE, HvStatus.INVALID_PARAMETER),
    ):
        with pytest.raises(HvError) as caught:
            ports.connect_port(host.child, 3, host.root, 9, ConnectionInfo(PortType.MONITOR, address))
        assert caught.value.status is status
    assert len(host.timers) == 0
    for flags in (PortInfo(PortType.MONITOR, PAGE, 0, 1), PortInfo(PortType.MONITOR, PAGE, 0, 0, 1)):
        with pytest.raises(HvError) as caught:
            ports.create_port(host.root, 10, host.child, flags)
        assert caught.value.status is HvStatus.INVALID_PARAMETER


def test_a_monitor_connection_is_for_nothing_else(host: Host) -> None:
    """It takes neither messages nor signals, and with its end the page is left alone."""
    host.connect()
    for call in (lambda: host.signal(host.child, 3), lambda: host.post(host.child, 3, b"")):
        with pytest.raises(HvError) as caught:
            call()
        assert caught.value.status is HvStatus.INVALID_PORT_ID
    assert len(host.timers) == 1
    host.disconnect()
    assert len(host.timers) == 0
    ports.delete_port(host.root, 9)
    assert host.timers.deadline() is None


def test_a_deleted_port_ends_the_notifications(host: Host) -> None:
    """Its connection leads nowhere, as every other does then."""
    host.page.set_up(0, LATENCY, MonitorParameter(0x2001))
    host.page.enable_groups(1)
    host.connect()
    ports.delete_port(host.root, 9)
    host.page.trigger(0)
    host.look()
    assert host.signals() == (0, 0)


async def test_the_watch_sleeps_until_there_is_a_page(autojump_clock: MockClock) -> None:
    """No connection, no timer: a task that only waits lets virtual time jump past it; then latencies are kept."""
    host = Host(lambda: ticks(trio.current_time()))
    hypervisor: Any = host
    async with timers_running(hypervisor):
        began = trio.current_time()
        await trio.sleep(3600)
        assert trio.current_time() - began == pytest.approx(3600)
        host.page.set_up(0, LATENCY, MonitorParameter(0x2001))
        host.page.enable_groups(1)
        host.connect()
        await trio.sleep(0.01)
        host.page.trigger(0)
        await trio.sleep(0.001_3)  # an eighth of what was waited before
        assert host.signals() == (1, 0)
        host.disconnect()
        await trio.sleep(0.001)
        host.page.trigger(0)
        await trio.sleep(3600)
    assert host.signals() == (1, 0)
