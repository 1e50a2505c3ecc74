"""A real clock wakes late: the schedule is what it is on the virtual one, and how late is counted (I15)."""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hypervisor.backend.task import TaskVp
from hypervisor.reference_time import tsc_from_clock
from hypervisor.scheduler.replay import replay
from hypervisor.scheduler.settings import WHOLE
from tests.hypervisor.scheduler.machine import MS, Computers, computing, trio_ticks

NS_PER_MS = 1_000_000


@attrs.define(eq=False)
class CoarseClock:
    """Trio's clock as a host that is busy sees it: only now and then, and later than it was set for."""

    step: int
    """Ticks: whatever happens is told at a multiple of it."""
    now: Callable[[], int] = attrs.field(factory=trio_ticks)

    def __call__(self) -> int:
        return -(-self.now() // self.step) * self.step


async def computed(machine: Computers, seed: int) -> dict[str, list[tuple[int, int, int]]]:
    """Guests that compute in pieces, without a pause. At the end of each: when, what had run, the guest's clock."""
    ends: dict[str, list[tuple[int, int, int]]] = {}
    machine.scheduler.keep_log = True
    machine.scheduler.set_group(1, 0, "pool", cap=WHOLE)
    for number, name in enumerate("abcde"):
        partition = machine.partition(name)
        machine.scheduler.set_partition(
            partition.id, number % 2, shares=100 * (number + 1), cap=WHOLE // 2 if name == "a" else WHOLE
        )

    async def guest(name: str) -> None:
        rng = random.Random(f"{seed} {name}")
        for _ in range(12):
            await machine.scheduler.run(machine.vp(name), rng.randrange(1, 6 * MS))
            vp = machine.vp(name)
            ends.setdefault(name, []).append((machine.host.clock(), vp.run_time(), machine.host.clock_of(vp)))

    async with computing(machine) as nursery:
        for name in "abcde":
            nursery.start_soon(guest, name)
            await wait_all_tasks_blocked()
        await trio.sleep(2)
    assert {name: len(told) for name, told in ends.items()} == dict.fromkeys("abcde", 12)
    return ends


@pytest.mark.parametrize("seed", range(6))
async def test_i15_being_told_late_changes_no_schedule(autojump_clock: MockClock, seed: int) -> None:
    """Told up to 5 ms late each time, guests that go on computing have the same inputs at the same times.

    So the two logs are equal, and so is the schedule that either gives: each ends what it does when it would have, and
    by the guest's own clock it was never late.
    """
    punctual = Computers(2)
    ends = await computed(punctual, seed)
    late = Computers(2, CoarseClock(random.Random(seed).randrange(2 * MS, 5 * MS)))
    late_ends = await computed(late, seed)
    assert late.scheduler.log == punctual.scheduler.log
    assert punctual.scheduler.lateness.worst == 0
    assert NS_PER_MS <= late.scheduler.lateness.worst <= 5 * NS_PER_MS
    for name in "abcde":
        assert [end[1:] for end in late_ends[name]] == [end[1:] for end in ends[name]]
        assert all(
            a[0] == a[2] and 0 <= b[0] - a[0] < 25 * MS for a, b in zip(ends[name], late_ends[name], strict=True)
        )
    again = replay(late.scheduler.log)
    assert again.log == late.scheduler.log


async def test_a_guests_clock_never_goes_back(autojump_clock: MockClock) -> None:
    """Told late, its clock says when its work was done; but not if it has seen, or slept to, a later time already.

    One who slept begins its next work at the time that it saw.
    """
    clock = CoarseClock(3 * MS)
    machine = Computers(2, clock)
    machine.scheduler.keep_log = True
    machine.partition("a", vps=2)
    host, first, second = machine.host, machine.vp("a"), machine.vp("a", 1)
    seen: list[int] = []

    async def works() -> None:
        await machine.scheduler.run(first, 1 * MS)
        assert (clock(), host.clock_of(first)) == (3 * MS, 1 * MS)
        assert host.clock_of(second) == 3 * MS
        assert host.clock_of(first) == 3 * MS, "of one guest, whichever processor it reads"
        await machine.scheduler.run(first, 1 * MS)
        seen.append(host.clock_of(first))

    async with computing(machine) as nursery:
        nursery.start_soon(works)
        await trio.sleep(1)
    works_at = [moment // NS_PER_MS for moment, name, _ in machine.scheduler.log if name == "work"]
    assert (works_at, seen) == ([0, 3], [4 * MS])


async def test_who_looks_tells_nobody_off(autojump_clock: MockClock) -> None:
    """Somebody reads accounts in the same turn in which a guest is woken late, before it or after: it was not late."""
    seen: set[int] = set()
    for _ in range(12):  # Trio draws who is first
        machine = Computers(1, CoarseClock(3 * MS))
        machine.partition("a")

        async def look(machine: Computers = machine) -> None:
            await trio.sleep(0.001)
            assert machine.times("a").run <= NS_PER_MS

        async with computing(machine) as nursery:
            nursery.start_soon(look)
            await machine.scheduler.run(machine.vp("a"), 1 * MS)
            seen.add(machine.host.clock_of(machine.vp("a")))
    assert seen == {1 * MS}


async def test_who_slept_goes_on_from_now(autojump_clock: MockClock) -> None:
    """A sleep that was over before its guest was told of its work ends at once, and late: that is counted."""
    clock = CoarseClock(10 * MS)
    machine = Computers(1, clock)
    partition = machine.partition("a")
    vp = machine.vp("a")
    guest = TaskVp(machine.host, vp)
    seen: list[int] = []

    async def works() -> None:
        await guest.work(1 * MS)
        assert tsc_from_clock(1 * MS) == guest.read_tsc()
        await guest.sleep_until(partition.reference_time.now() - 7 * MS)
        seen.append(guest.read_tsc())
        await guest.sleep_until(partition.reference_time.now() + 15 * MS)
        seen.append(guest.read_tsc())

    async with computing(machine) as nursery:
        nursery.start_soon(works)
        await trio.sleep(1)
    assert seen == [tsc_from_clock(10 * MS), tsc_from_clock(30 * MS)]
    assert machine.scheduler.lateness.worst == 9 * NS_PER_MS


async def test_new_work_is_of_now(autojump_clock: MockClock) -> None:
    """Only who goes on does so from earlier: work that begins while others were told late has not begun before."""
    clock = CoarseClock(3 * MS)
    machine = Computers(2, clock)
    machine.scheduler.keep_log = True
    for name in "ab":
        machine.partition(name)
    told = trio.Event()
    took: list[int] = []

    async def first() -> None:
        await machine.scheduler.run(machine.vp("a"), 4 * MS)
        told.set()
        await machine.scheduler.run(machine.vp("a"), 4 * MS)
        assert clock() == 9 * MS, "8 ms of work, told at the next tick of a clock that ticks each 3"

    async def second() -> None:
        await told.wait()
        began = clock()
        await machine.scheduler.run(machine.vp("b"), 1 * MS)
        took.append(clock() - began)

    async with computing(machine) as nursery:
        nursery.start_soon(first)
        nursery.start_soon(second)
        await trio.sleep(1)
    assert took
    assert took[0] >= 1 * MS
    assert [(moment // NS_PER_MS) for moment, name, _ in machine.scheduler.log if name == "work"] == [0, 4, 6]


async def test_a_host_that_is_too_slow_keeps_nobody_out(autojump_clock: MockClock) -> None:
    """Work of 10 us, each time told 20 us late: whoever goes on so for ever does not keep new work from beginning."""
    now = trio_ticks()
    looks = 0

    def slow() -> int:
        nonlocal looks
        looks += 1
        return now() + 200 * looks

    machine = Computers(2, slow)
    for name in "ab":
        machine.partition(name)
    done: list[int] = []
    begun = trio.Event()

    async def short() -> None:
        for number in range(2000):
            await machine.scheduler.run(machine.vp("a"), 100)
            done.append(number)
            begun.set()

    async with computing(machine) as nursery:
        nursery.start_soon(short)
        await begun.wait()
        for _ in range(5):
            await machine.scheduler.run(machine.vp("b"), 100)
        assert len(done) < 500
