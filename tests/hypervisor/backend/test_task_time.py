"""A model processor's time: run time that is right at any moment, idle without taking, the end of interrupts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hypervisor.clock import ticks
from hypervisor.machine import GeneralProtection, Machine
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SHIFT
from hypervisor.privileges import Privilege
from hypervisor.unhalted_timer import ENABLED
from hypervisor.vp import UNHALTED_EXPIRED
from tests.doubles.bare_hypervisor import BareHypervisor
from tests.hypervisor.backend.test_task import running

ASSIST = 12
MS = 10_000


# --- run time


async def test_run_time_counts_work_under_way(autojump_clock: MockClock) -> None:
    """A program that measures itself sees what it has used until now, on its own processor only."""
    seen: list[int] = []

    async def entry(machines: Sequence[Machine]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(machines[0].work, ticks(4))
            for _ in range(3):
                await machines[0].sleep_until(machines[0].read_msr(Msr.TIME_REF_COUNT) + ticks(1))
                seen.append(machines[0].read_msr(Msr.VP_RUNTIME))
            seen.append(machines[1].read_msr(Msr.VP_RUNTIME))

    async with running(entry, vps=2) as guest:
        await trio.sleep(1.5)
        guest.pause()
        await trio.sleep(10)
        guest.resume()
        await trio.sleep(30)
        assert seen == [pytest.approx(ticks(n), abs=20) for n in (1, 2, 3, 0)]
        assert guest.vp.run_time() == pytest.approx(ticks(4), abs=20)


async def test_cancelled_work_was_done_until_then(autojump_clock: MockClock) -> None:
    async def entry(machines: Sequence[Machine]) -> None:
        with trio.move_on_after(2):
            await machines[0].work(ticks(60))
        await trio.sleep_forever()

    async with running(entry) as guest:
        await trio.sleep(5)
        assert guest.vp.run_time() == pytest.approx(ticks(2), abs=10)


# --- guest idle


async def test_idle_ends_with_an_interrupt_and_does_not_take_it(autojump_clock: MockClock) -> None:
    """As with interrupts disabled: the processor wakes, and the interrupt stays pending."""
    woken: list[float] = []

    async def entry(machines: Sequence[Machine]) -> None:
        await machines[0].idle()
        woken.append(trio.current_time())
        await machines[0].idle()
        woken.append(trio.current_time())
        assert await machines[0].halt() == 0x40

    async with running(entry) as guest:
        start = trio.current_time()
        await trio.sleep(3)
        assert woken == []
        guest.vp.raise_interrupt(0x40)
        await wait_all_tasks_blocked()
        assert woken == [start + 3, start + 3]
        assert guest.ended


async def test_idle_beside_the_task_that_takes_interrupts(autojump_clock: MockClock) -> None:
    """A kernel's interrupt task takes the interrupt; who idles wakes all the same."""
    woken: list[bool] = []

    async def entry(machines: Sequence[Machine]) -> None:
        async with trio.open_nursery() as nursery:

            async def interrupts() -> None:
                while True:
                    await machines[0].halt()

            nursery.start_soon(interrupts)
            await machines[0].idle()
            woken.append(True)

    async with running(entry) as guest:
        await wait_all_tasks_blocked()
        guest.pause()
        guest.vp.raise_interrupt(0x40)
        await wait_all_tasks_blocked()
        assert woken == [], "a suspended processor does not come back"
        guest.resume()
        await wait_all_tasks_blocked()
        assert woken == [True]


async def test_idle_takes_its_privilege(autojump_clock: MockClock) -> None:
    refused: list[bool] = []

    async def entry(machines: Sequence[Machine]) -> None:
        with pytest.raises(GeneralProtection):
            await machines[0].idle()
        refused.append(True)

    async with running(entry, resumed=False) as guest:
        guest.host.child.privileges &= ~int(Privilege.ACCESS_GUEST_IDLE_MSR)
        guest.resume()
        await wait_all_tasks_blocked()
        assert refused == [True]


# --- the end of an interrupt


async def test_the_last_interrupt_needs_no_end(autojump_clock: MockClock) -> None:
    """Bit 0 of the assist page is set for an interrupt with no other pending, and cleared when one comes."""
    bits: list[int] = []

    async def entry(machines: Sequence[Machine]) -> None:
        machine = machines[0]
        machine.write_msr(Msr.VP_ASSIST_PAGE, ASSIST << PAGE_SHIFT | 1)
        page = machine.memory[ASSIST << PAGE_SHIFT :][:4]
        while True:
            await machine.halt()
            bits.append(page[0])

    async with running(entry) as guest:
        await wait_all_tasks_blocked()
        guest.vp.raise_interrupt(0x40)
        guest.vp.raise_interrupt(0x50)
        await wait_all_tasks_blocked()
        assert bits == [0, 1]
        assert guest.vp.assist_page.words[0] == 1
        guest.vp.raise_interrupt(0x40)
        assert guest.vp.assist_page.words[0] == 0


async def test_waiting_messages_need_the_end(autojump_clock: MockClock) -> None:
    """The EOI register looks for them, so it is not to be left out."""
    bits: list[int] = []

    async def entry(machines: Sequence[Machine]) -> None:
        machine = machines[0]
        machine.write_msr(Msr.VP_ASSIST_PAGE, ASSIST << PAGE_SHIFT | 1)
        while True:
            await machine.halt()
            bits.append(machine.memory[ASSIST << PAGE_SHIFT])

    async with running(entry) as guest:
        await wait_all_tasks_blocked()
        guest.host.start_synic(guest.host.child)
        guest.host.message_port(guest.host.child, guest.host.root, 7)
        for _ in range(2):
            guest.host.post(guest.host.root, 7, b"x")
        await wait_all_tasks_blocked()
        assert bits == [0]


def test_without_somebody_who_delivers_interrupts_the_bit_stays_clear() -> None:
    """Under KVM the local APIC delivers, and a Linux that found the bit would leave an interrupt without its end."""
    host = BareHypervisor()
    vp = host.child.vps[0]
    host.write_msr(vp, Msr.VP_ASSIST_PAGE, ASSIST << PAGE_SHIFT | 1)
    host.start_synic(host.child)
    host.message_port(host.child, host.root, 7)
    host.post(host.root, 7, b"x")
    vp.raise_interrupt(0x40)
    assert host.child.memory.read(ASSIST << PAGE_SHIFT, 4) == bytes(4)


# --- the timer of run time


async def test_the_unhalted_timer_counts_run_time_only(autojump_clock: MockClock) -> None:
    """An interrupt and a byte of the assist page for each period of work; sleeping does not count."""
    seen: list[tuple[int, float]] = []

    async def entry(machines: Sequence[Machine]) -> None:
        machine = machines[0]
        machine.write_msr(Msr.VP_ASSIST_PAGE, ASSIST << PAGE_SHIFT | 1)
        machine.write_msr(Msr.STIME_UNHALTED_TIMER_COUNT, ticks(1))
        machine.write_msr(Msr.STIME_UNHALTED_TIMER_CONFIG, ENABLED | 0x60)
        async with trio.open_nursery() as nursery:

            async def interrupts() -> None:
                while True:
                    vector = await machine.halt()
                    seen.append((vector, round(trio.current_time() - start, 3)))
                    assert machine.memory[(ASSIST << PAGE_SHIFT) + UNHALTED_EXPIRED] == 1

            nursery.start_soon(interrupts)
            await machine.work(ticks(1.5))
            await machine.sleep_until(machine.read_msr(Msr.TIME_REF_COUNT) + ticks(10))
            await machine.work(ticks(1.5))

    start = trio.current_time()
    async with running(entry) as guest:
        await trio.sleep(30)
        assert seen == [(0x60, 1.0), (0x60, 12.0), (0x60, 13.0)]
        assert guest.vp.run_time() == pytest.approx(ticks(3), abs=20)


@pytest.mark.parametrize("value", [ENABLED, ENABLED | 3, ENABLED | 15, 1 << 9, 1 << 63])
def test_what_the_unhalted_timer_refuses(value: int) -> None:
    """Its vector is 2, an NMI, or 16 and above; bits 63:9 are reserved."""
    host = BareHypervisor()
    vp = host.child.vps[0]
    with pytest.raises(GeneralProtection):
        host.write_msr(vp, Msr.STIME_UNHALTED_TIMER_CONFIG, value)
    for good in (0, ENABLED | 2, ENABLED | 16, 15):
        host.write_msr(vp, Msr.STIME_UNHALTED_TIMER_CONFIG, good)


def test_an_unhalted_storm_is_one_interrupt_in_a_millisecond() -> None:
    host = BareHypervisor()
    vp = host.child.vps[0]
    host.write_msr(vp, Msr.STIME_UNHALTED_TIMER_COUNT, 1)
    assert vp.unhalted.left is None
    host.write_msr(vp, Msr.STIME_UNHALTED_TIMER_CONFIG, ENABLED | 0x60)
    assert vp.unhalted.left == MS
    vp.ran(vp.unhalted.left)
    assert host.child.counters["interrupts"] == 1
