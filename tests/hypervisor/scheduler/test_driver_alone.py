"""Whose work ends next wakes by itself, without the timers' task: whatever happens meanwhile, nobody is forgotten."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.hypervisor.scheduler.machine import HALF, MS, Computers, computing


async def test_nobody_else_is_woken(autojump_clock: MockClock) -> None:
    """Neither a timer is set nor anything to be done by others; the end is exact."""
    machine = Computers(2)
    machine.partition("a")
    async with computing(machine) as nursery:
        nursery.start_soon(machine.scheduler.run, machine.vp("a"), 7 * MS)
        await wait_all_tasks_blocked()
        assert len(machine.host.timers) == 0
        await trio.sleep(1)
        assert machine.vp("a").run_time() == 7 * MS
        assert machine.scheduler.wakes == 1


@pytest.mark.parametrize("meanwhile", ["cancel", "suspend", "delete", "slower", "shared", "sooner", "none"])
@pytest.mark.parametrize("at", [3, 4, 5])
async def test_whatever_happens_meanwhile(autojump_clock: MockClock, meanwhile: str, at: int) -> None:
    """Before its end, just then, and after it: another whose work ends at the same time, or never did wait, is told."""
    machine = Computers(2)
    for name in "abc":
        machine.partition(name)
    ends: dict[str, int] = {}
    scope = trio.CancelScope()

    async def work(name: str, ms: int) -> None:
        await machine.scheduler.run(machine.vp(name), ms * MS)
        ends[name] = machine.host.clock() // MS

    async def first() -> None:
        with scope:
            await work("a", 4)

    async with computing(machine) as nursery:
        nursery.start_soon(first)
        await wait_all_tasks_blocked()
        nursery.start_soon(work, "b", 4)
        await trio.sleep(at / 1000)
        match meanwhile:
            case "cancel":
                scope.cancel()
            case "suspend":
                machine.vp("a").set_explicit_suspend(True)
            case "delete":
                machine.host.delete_vp(machine.partitions["a"], 0)
            case "slower":
                machine.scheduler.set_partition(machine.partitions["a"].id, cap=HALF)
            case "shared":
                nursery.start_soon(work, "c", 20)
            case "sooner":
                machine.scheduler.set_partition(machine.partitions["b"].id, cap=HALF)
        await trio.sleep(1)
    assert ends.get("a") == (4 if at > 3 or meanwhile in ("none", "sooner", "slower", "shared") else None) or at == 4
    assert ends["b"] == (4 if meanwhile != "sooner" else ends["b"])
    assert machine.vp("b").run_time() == 4 * MS
    if meanwhile == "shared":
        assert ends["c"] == at + 20 + (at == 3) * 1


@pytest.mark.parametrize("seed", range(8))
async def test_all_are_told(autojump_clock: MockClock, seed: int) -> None:
    """Work of whole milliseconds on some processors, with breaks, so that many ends meet: all comes to its end."""
    rng = random.Random(seed)
    machine = Computers(rng.randrange(1, 4))
    names = "abcde"[: rng.randrange(1, 6)]
    for name in names:
        machine.partition(name)
    given = dict.fromkeys(names, 0)

    async def guest(name: str) -> None:
        own = random.Random(f"{seed} {name}")
        for _ in range(20):
            ticks = own.randrange(4) * MS
            with trio.move_on_after(own.choice([0.002, 0.005, 1])):
                await machine.scheduler.run(machine.vp(name), ticks)
                given[name] += 1
            await trio.sleep(own.randrange(3) / 1000)

    with trio.fail_after(10):
        async with computing(machine), trio.open_nursery() as guests:
            for name in names:
                guests.start_soon(guest, name)
    assert all(given.values())
    for name in names:
        life = machine.times(name)
        assert life.run + life.ready + life.capped + life.halted == machine.host.clock() * 100
