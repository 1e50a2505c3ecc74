"""The task that waits for timers: on time on the virtual clock, asleep while there is nothing to wait for."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from hypervisor.clock import TICKS_PER_SECOND
from hypervisor.hypervisor import Hypervisor
from hypervisor.timer_driver import BATCH, timers_running
from hypervisor.trace import Trace


class Alarm:
    """Notes when it fires, and sets itself anew `again` times."""

    def __init__(self, hypervisor: Hypervisor, period: int = 0, again: int = 0) -> None:
        self.hypervisor, self.period, self.again = hypervisor, period, again
        self.fired: list[int] = []

    def fire(self) -> None:
        self.fired.append(self.hypervisor.clock())
        if self.again:
            self.again -= 1
            self.hypervisor.timers.set(self, self.hypervisor.clock() + self.period)


@pytest.fixture
async def hypervisor() -> Hypervisor:
    def clock() -> int:
        return round(trio.current_time() * TICKS_PER_SECOND)

    return Hypervisor(clock, Trace(lambda: 0), memory_bytes=0)


async def test_each_fires_at_its_moment(hypervisor: Hypervisor, autojump_clock: trio.testing.MockClock) -> None:
    """Set before and after the driver sleeps, earlier and later than what it sleeps for; never early."""
    early, late, moved = (Alarm(hypervisor) for _ in range(3))
    start = hypervisor.clock()
    hypervisor.timers.set(late, start + 333_333_333)
    async with timers_running(hypervisor):
        await trio.testing.wait_all_tasks_blocked()
        hypervisor.timers.set(early, start + 7)
        hypervisor.timers.set(moved, start + 3)
        hypervisor.timers.set(moved, start + 40_000_001)
        await trio.sleep(60)
    assert (early.fired, moved.fired, late.fired) == ([start + 7], [start + 40_000_001], [start + 333_333_333])


async def test_a_turn_of_all_others(hypervisor: Hypervisor, autojump_clock: trio.testing.MockClock) -> None:
    """It takes no time, others run once in each turn, first or last, and timers that are due do not wait for it."""
    seen: list[str] = []

    class Turn:
        def fire(self) -> None:
            seen.append("turn")
            if seen.count("turn") < 4:
                hypervisor.timers.next_turn(self)

    async def other() -> None:
        while seen.count("turn") < 4:
            seen.append("other")
            await trio.lowlevel.checkpoint()

    alarm = Alarm(hypervisor)
    start = hypervisor.clock()
    async with timers_running(hypervisor), trio.open_nursery() as nursery:
        await trio.testing.wait_all_tasks_blocked()
        hypervisor.timers.next_turn(Turn())
        hypervisor.timers.set(alarm, start)
        nursery.start_soon(other)
        await trio.sleep(1)
    between = "".join(word[0] for word in seen).strip("o").split("t")[1:-1]
    assert len(between) == 3
    assert 2 <= len("".join(between)) <= 4
    assert alarm.fired == [start]
    assert hypervisor.timers.deadline() is None


async def test_a_turn_that_is_taken_back(hypervisor: Hypervisor, autojump_clock: trio.testing.MockClock) -> None:
    """Nobody fires; another's turn stays."""
    alarms = [Alarm(hypervisor), Alarm(hypervisor)]
    async with timers_running(hypervisor):
        for alarm in alarms:
            hypervisor.timers.next_turn(alarm)
        hypervisor.timers.no_turn(alarms[0])
        await trio.sleep(1)
        hypervisor.timers.next_turn(alarms[0])
        hypervisor.timers.no_turn(alarms[0])
        assert hypervisor.timers.deadline() is None
        await trio.sleep(1)
    assert [len(alarm.fired) for alarm in alarms] == [0, 1]


async def test_a_timer_that_is_always_due_does_not_keep_others_out(
    hypervisor: Hypervisor, autojump_clock: trio.testing.MockClock
) -> None:
    alarm = Alarm(hypervisor, 0, 20 * BATCH)
    turns = 0
    async with timers_running(hypervisor):
        hypervisor.timers.set(alarm, 0)
        while len(alarm.fired) <= 20 * BATCH:
            await trio.lowlevel.checkpoint()
            turns += 1
    assert turns >= 20


async def test_with_nothing_armed_there_is_no_deadline(
    hypervisor: Hypervisor, autojump_clock: trio.testing.MockClock
) -> None:
    """Nothing wakes up because a host could have timers; a stopped timer costs at most its own moment."""
    async with timers_running(hypervisor):
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")
        alarm = Alarm(hypervisor)
        hypervisor.timers.set(alarm, 5 * TICKS_PER_SECOND)
        hypervisor.timers.set(alarm, None)
        await trio.sleep(10)
        assert alarm.fired == []
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")


async def test_what_the_block_raises_comes_out_as_it_was(hypervisor: Hypervisor) -> None:
    with pytest.raises(KeyError):
        async with timers_running(hypervisor):
            raise KeyError
    assert hypervisor.timers.on_earlier is None
