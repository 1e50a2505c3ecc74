"""Guests as tasks: interrupts are remembered, suspension holds them, power is cut at once, failures name themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hypervisor.backend.task import GuestEntry, TaskBackend
from hypervisor.clock import ticks
from hypervisor.machine import Machine, VpStopped
from hypervisor.msr import Msr
from hypervisor.timer_driver import timers_running
from tests.doubles.bare_hypervisor import BareHypervisor


class Running:
    """A guest that runs, and the scope that is its power switch."""

    def __init__(self, entry: GuestEntry, *, vps: int = 1, resumed: bool = True) -> None:
        self.host = BareHypervisor(lambda: ticks(trio.current_time()), vps=vps)
        untyped: Any = self.host
        self.backend = TaskBackend(untyped, entry)
        self.vp = self.host.child.vps[0]
        self.power = trio.CancelScope()
        self.ended = False
        if resumed:
            self.resume()

    def resume(self) -> None:
        for vp in self.host.child.vps.values():
            vp.set_explicit_suspend(False)

    def pause(self) -> None:
        for vp in self.host.child.vps.values():
            vp.set_explicit_suspend(True)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.power:
            await self.backend.run(self.host.child, task_status=task_status)
        self.ended = True


@asynccontextmanager
async def running(entry: GuestEntry, *, vps: int = 1, resumed: bool = True) -> AsyncIterator[Running]:
    guest = Running(entry, vps=vps, resumed=resumed)
    untyped: Any = guest.host
    async with timers_running(untyped), trio.open_nursery() as nursery:
        await nursery.start(guest.run)
        yield guest
        guest.power.cancel()


class Interrupts:
    """A guest that takes every interrupt of processor 0."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    async def __call__(self, machines: Sequence[Machine]) -> None:
        while True:
            self.seen.append(await machines[0].halt())


# --- interrupts


async def test_an_interrupt_never_runs_guest_code_in_its_callers_stack() -> None:
    entry = Interrupts()
    async with running(entry) as guest:
        await wait_all_tasks_blocked()
        guest.vp.raise_interrupt(0x40)
        assert entry.seen == []
        await wait_all_tasks_blocked()
        assert entry.seen == [0x40]


async def test_interrupts_are_remembered_merged_and_taken_highest_first() -> None:
    """Whether the task is parked, running or not there yet."""
    entry = Interrupts()
    async with running(entry, resumed=False) as guest:
        for vector in (0x20, 0xF3, 0x20, 0x80):
            guest.vp.raise_interrupt(vector)
        guest.resume()
        await wait_all_tasks_blocked()
        assert entry.seen == [0xF3, 0x80, 0x20]
        guest.vp.raise_interrupt(0x20)
        guest.vp.raise_interrupt(0x90)
        await wait_all_tasks_blocked()
        assert entry.seen[3:] == [0x90, 0x20]


async def test_an_interrupt_before_the_task_parks_is_not_lost() -> None:
    """A signal between looking for work and halting is the classic lost wake-up."""
    seen: list[int] = []

    async def entry(machines: Sequence[Machine]) -> None:
        guest.vp.raise_interrupt(0x55)
        seen.append(await machines[0].halt())

    guest = Running(entry)
    await guest.run()
    assert seen == [0x55]


async def test_one_task_halts_a_processor() -> None:
    async def entry(machines: Sequence[Machine]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(machines[0].halt)
            nursery.start_soon(machines[0].halt)

    async with running(entry) as guest:
        await wait_all_tasks_blocked()
        assert guest.host.exceptions[0][0] is guest.vp
        assert "two tasks halt one processor" in guest.host.exceptions[0][1]


async def test_processors_halt_apart() -> None:
    seen: list[tuple[int, int]] = []

    async def processor(machine: Machine) -> None:
        while True:
            seen.append((machine.vp_index, await machine.halt()))

    async def entry(machines: Sequence[Machine]) -> None:
        async with trio.open_nursery() as nursery:
            for machine in machines:
                nursery.start_soon(processor, machine)

    async with running(entry, vps=3) as guest:
        await wait_all_tasks_blocked()
        guest.host.child.vps[2].raise_interrupt(0x22)
        await wait_all_tasks_blocked()
        guest.host.child.vps[1].raise_interrupt(0x11)
        await wait_all_tasks_blocked()
        assert seen == [(2, 0x22), (1, 0x11)]


async def test_a_halt_can_be_cancelled_by_the_guest_and_done_again(autojump_clock: MockClock) -> None:
    seen: list[int] = []

    async def entry(machines: Sequence[Machine]) -> None:
        with trio.move_on_after(1):
            await machines[0].halt()
        guest.vp.raise_interrupt(0x33)
        seen.append(await machines[0].halt())

    guest = Running(entry)
    await guest.run()
    assert seen == [0x33]


# --- suspension


async def test_a_suspended_processor_gets_no_interrupt_until_it_runs_again(autojump_clock: MockClock) -> None:
    entry = Interrupts()
    async with running(entry) as guest:
        await wait_all_tasks_blocked()
        guest.pause()
        guest.vp.raise_interrupt(0x40)
        await trio.sleep(5)
        assert entry.seen == []
        guest.resume()
        await wait_all_tasks_blocked()
        assert entry.seen == [0x40]


async def test_an_interrupt_that_is_overtaken_by_a_pause_waits(autojump_clock: MockClock) -> None:
    """The task was scheduled already; it goes back to sleep and takes the vector later."""
    entry = Interrupts()
    async with running(entry) as guest:
        await wait_all_tasks_blocked()
        guest.vp.raise_interrupt(0x40)
        guest.pause()
        await trio.sleep(1)
        assert entry.seen == []
        guest.resume()
        await wait_all_tasks_blocked()
        assert entry.seen == [0x40]


async def test_a_guest_does_not_start_before_its_processor_may_run(autojump_clock: MockClock) -> None:
    started: list[float] = []

    async def entry(machines: Sequence[Machine]) -> None:
        started.append(trio.current_time())

    async with running(entry, resumed=False) as guest:
        await trio.sleep(3)
        assert not started
        guest.resume()
        await wait_all_tasks_blocked()
        assert started == [3]


async def test_sleep_counts_the_partitions_time_only(autojump_clock: MockClock) -> None:
    """Ten seconds of sleep with four of pause take fourteen; the guest cannot tell."""
    woke: list[float] = []

    async def entry(machines: Sequence[Machine]) -> None:
        begin = machines[0].read_msr(Msr.TIME_REF_COUNT)
        await machines[0].sleep_until(begin + ticks(10))
        assert machines[0].read_msr(Msr.TIME_REF_COUNT) >= begin + ticks(10)
        woke.append(trio.current_time())

    async with running(entry) as guest:
        await trio.sleep(3)
        guest.pause()
        await trio.sleep(4)
        guest.resume()
        await trio.sleep(20)
        assert woke == [pytest.approx(14, abs=1e-5)]


async def test_a_sleeper_does_not_wake_while_paused(autojump_clock: MockClock) -> None:
    woke: list[float] = []

    async def entry(machines: Sequence[Machine]) -> None:
        await machines[0].sleep_until(ticks(1))
        woke.append(trio.current_time())

    async with running(entry, vps=2) as guest:
        await trio.sleep(0.5)
        guest.host.child.vps[0].set_explicit_suspend(True)
        await trio.sleep(9.5)
        assert not woke, "its processor is suspended though time runs on another"
        guest.resume()
        await wait_all_tasks_blocked()
        assert woke == [10]


async def test_work_of_one_processor_is_done_one_after_the_other(autojump_clock: MockClock) -> None:
    """Two seconds each on one processor take four; a pause takes nothing off; runtime is what was worked."""
    done: list[tuple[str, float]] = []

    async def worker(machine: Machine, name: str, seconds: float) -> None:
        await machine.work(ticks(seconds))
        done.append((name, round(trio.current_time(), 4)))

    async def entry(machines: Sequence[Machine]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker, machines[0], "a", 2)
            nursery.start_soon(worker, machines[0], "b", 2)
            nursery.start_soon(worker, machines[1], "other", 3)

    async with running(entry, vps=2) as guest:
        await trio.sleep(1)
        guest.pause()
        await trio.sleep(10)
        guest.resume()
        await trio.sleep(30)
        assert sorted(when for _, when in done) == [12, 13, 14]
        assert ("other", 13) in done
        assert guest.vp.runtime == pytest.approx(ticks(4), abs=10)
        assert guest.host.child.vps[1].runtime == pytest.approx(ticks(3), abs=10)


async def test_pages_that_are_touched_are_told_to_whoever_asks(autojump_clock: MockClock) -> None:
    """They are counted, too: a guest that never says so is known for it."""
    told: list[tuple[int, int]] = []

    async def entry(machines: Sequence[Machine]) -> None:
        machines[0].touched(5, 6)
        await machines[0].work(ticks(1))
        machines[0].touched(-1, 1 << 80)
        await trio.sleep_forever()

    async with running(entry) as guest:
        partition = guest.vp.partition
        await trio.sleep(0.5)
        assert partition.counters["touches"] == 1
        partition.on_touch = lambda gpn, count: told.append((gpn, count))
        await trio.sleep(1)
        assert told == [(-1, 1 << 80)]
        assert partition.counters["touches"] == 2


async def test_traps_of_a_processor_that_an_intercept_stopped_raise(autojump_clock: MockClock) -> None:
    """Not an unrecoverable exception: the parent knows already. The guest stands still and does not end."""
    tried: list[str] = []

    async def entry(machines: Sequence[Machine]) -> None:
        guest.vp.stop_on_intercept()
        machine = machines[0]
        for trap in (
            *(lambda: machine.hypercall(0), lambda: machine.read_msr(Msr.VP_INDEX), lambda: machine.cpuid(0)),
            *(lambda: machine.write_msr(Msr.EOM, 0), lambda: machine.port_in(1, 1), lambda: machine.port_out(1, 1, 0)),
            lambda: machine.touched(1, 1),
        ):
            with pytest.raises(VpStopped):
                trap()
            tried.append("trap")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            machine.hypercall(0)

    guest = Running(entry)
    async with trio.open_nursery() as nursery:
        await nursery.start(guest.run)
        await trio.sleep(60)
        assert len(tried) == 7
        assert not guest.ended
        assert guest.host.exceptions == []
        assert guest.backend.failure is None
        guest.power.cancel()


# --- the end


async def test_run_ends_with_the_guests_software(autojump_clock: MockClock) -> None:
    async def entry(machines: Sequence[Machine]) -> None:
        await machines[0].sleep_until(ticks(1))

    guest = Running(entry)
    await guest.run()
    assert guest.backend.failure is None
    assert guest.vp.runner is None


@pytest.mark.parametrize("failure", [ValueError("guest bug"), SystemExit(3)])
async def test_what_a_guest_raises_stays_in_its_partition(failure: BaseException) -> None:
    """It becomes a message to the parent and is kept; the root goes on."""

    async def entry(machines: Sequence[Machine]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise failure

    guest = Running(entry)
    await guest.run()
    assert guest.host.exceptions[0][0] is guest.vp
    assert type(failure).__name__ in guest.host.exceptions[0][1]
    assert isinstance(guest.backend.failure, BaseExceptionGroup)
    assert guest.backend.failure.exceptions == (failure,)


async def test_cancelling_cuts_the_power_of_every_task(autojump_clock: MockClock) -> None:
    """A guest's clean-up code reaches nobody, and what it raises is of no interest."""
    reached: list[str] = []

    async def helper(machine: Machine, what: str) -> None:
        try:
            match what:
                case "halt":
                    await machine.halt()
                case "sleep":
                    await machine.sleep_until(ticks(1e6))
                case _:
                    await machine.work(ticks(1e6))
        finally:
            with pytest.raises(VpStopped):
                machine.hypercall(0x5C)
            reached.append(what)
            if what == "work":
                raise ValueError("while the power is cut")

    async def entry(machines: Sequence[Machine]) -> None:
        async with trio.open_nursery() as nursery:
            for what in ("halt", "sleep", "work"):
                nursery.start_soon(helper, machines[0], what)

    async with running(entry) as guest:
        await trio.sleep(1)
        guest.power.cancel()
        assert guest.vp.runner is None, "at once, not when the tasks get to run"
        await wait_all_tasks_blocked()
        assert guest.ended
        assert sorted(reached) == ["halt", "sleep", "work"]
        assert guest.host.calls == []
        assert guest.host.exceptions == []
        guest.vp.raise_interrupt(0x40)
        assert guest.vp.pending == {0x40}


async def test_a_guest_that_refuses_to_die_has_no_machine_any_more() -> None:
    async def entry(machines: Sequence[Machine]) -> None:
        try:
            await machines[0].halt()
        except trio.Cancelled:
            pass
        raise ValueError("swallowed its cancellation")

    async with running(entry) as guest:
        await wait_all_tasks_blocked()
        guest.power.cancel()
        await wait_all_tasks_blocked()
        assert guest.ended
        assert guest.host.exceptions == []
        assert guest.backend.failure is None


async def test_a_partition_can_run_again_after_a_reset() -> None:
    entry = Interrupts()
    guest = Running(entry)
    for vector in (0x21, 0x22):
        guest.power = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            await nursery.start(guest.run)
            guest.vp.raise_interrupt(vector)
            await wait_all_tasks_blocked()
            guest.power.cancel()
        guest.vp.reset()
    assert entry.seen == [0x21, 0x22]


# --- the watchdog


@pytest.mark.parametrize("last_step", [False, True])
async def test_a_guest_that_keeps_the_thread_is_named(autojump_clock: MockClock, last_step: bool) -> None:
    """Of two guests the guilty one, also for a task deep inside it, also in its last step."""

    async def hog() -> None:
        autojump_clock.jump(1.5)
        if not last_step:
            await trio.lowlevel.checkpoint()

    async def guilty(machines: Sequence[Machine]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hog)
        if last_step:
            await hog()

    async with running(Interrupts()) as innocent, running(guilty) as guest:
        await wait_all_tasks_blocked()
        assert guest.ended
        warnings = guest.host.trace.warnings
        assert warnings[guest.host.child.id, "guest_hogs_thread"] == (2 if last_step else 1)
        assert not innocent.host.trace.warnings


async def test_sleeping_is_not_hogging(autojump_clock: MockClock) -> None:
    async def entry(machines: Sequence[Machine]) -> None:
        await machines[0].sleep_until(ticks(100))
        await machines[0].work(ticks(100))

    async with running(entry) as guest:
        await trio.sleep(201)
        assert guest.ended
        assert not guest.host.trace.warnings
