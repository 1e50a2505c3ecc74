"""Gates of threads on a whole hypervisor, on the virtual clock: properties and groups move them, exactly and soon."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from hypervisor.scheduler.settings import WHOLE
from tests.hypervisor.scheduler.machine import HALF, Computers, busy, computing


class Burner:
    """The gate of a thread whose guest burns whenever it may; a host that does at once what it is told."""

    def __init__(self, machine: Computers, name: str) -> None:
        self._clock = machine.host.clock
        self._vp = machine.vp(name)
        self._ran = 0
        self._since: int | None = self._clock()
        self.told = 0
        machine.scheduler.attach_runner(self._vp, self)

    def may_run(self, allowed: bool) -> None:
        assert allowed is not self.open
        self.told += 1
        self._ran = self.cpu_time() // 100
        self._since = self._clock() if allowed else None

    def cpu_time(self) -> int:
        return (self._ran + (0 if self._since is None else self._clock() - self._since)) * 100

    def halted(self) -> bool:
        return False

    @property
    def open(self) -> bool:
        return self._since is not None


def machine_of(lps: int, **weights: int) -> tuple[Computers, dict[str, Burner]]:
    machine = Computers(lps)
    for name, weight in weights.items():
        machine.partition(name, cpu_weight=weight)
    return machine, {name: Burner(machine, name) for name in weights}


def ran(burners: dict[str, Burner]) -> dict[str, int]:
    """Milliseconds."""
    return {name: round(burner.cpu_time() / 1e6) for name, burner in burners.items()}


async def test_weights_of_threads_are_exact(autojump_clock: MockClock) -> None:
    """1:3 on one processor; the accounts are the threads' clocks, and all four columns are the time."""
    machine, burners = machine_of(1, a=100, b=300)
    async with computing(machine):
        await trio.sleep(4)
        assert ran(burners) == {"a": pytest.approx(1000, abs=20), "b": pytest.approx(3000, abs=20)}
        for name, burner in burners.items():
            times = machine.times(name)
            assert times.run == burner.cpu_time()
            assert times.run + times.ready == times.life == 4 * 10**9


async def test_a_weight_takes_effect_within_an_accounting_window(autojump_clock: MockClock) -> None:
    """As HvCallSetPartitionProperty sets it, while they run."""
    machine, burners = machine_of(1, a=100, b=300)
    async with computing(machine):
        await trio.sleep(1)
        machine.partitions["a"].set_property(0x0002_0003, 900)
        await trio.sleep(0.1)
        before = ran(burners)
        await trio.sleep(1)
        gained = {name: now - before[name] for name, now in ran(burners).items()}
        assert gained == {"a": pytest.approx(750, abs=20), "b": pytest.approx(250, abs=20)}


async def test_a_cap_comes_and_goes(autojump_clock: MockClock) -> None:
    """Also that of a group; and who is free of all is let in for good, and woken for no more."""
    machine, burners = machine_of(4, a=100, b=100)
    scheduler = machine.scheduler
    a, b = (machine.partitions[name].id for name in "ab")
    async with computing(machine):
        await trio.sleep(0.5)
        assert [burner.told for burner in burners.values()] == [0, 0]
        assert scheduler.wakes == 0
        scheduler.set_partition(a, cap=WHOLE // 4)
        await trio.sleep(1)
        assert ran(burners) == {"a": pytest.approx(750, abs=5), "b": 1500}
        scheduler.set_group(1, cap=HALF)
        scheduler.set_partition(a, 1)
        scheduler.set_partition(b, 1)
        await trio.sleep(1)
        assert ran(burners) == {"a": pytest.approx(1000, abs=12), "b": pytest.approx(1750, abs=12)}
        scheduler.set_partition(a)
        scheduler.set_partition(b)
        before, wakes = ran(burners), scheduler.wakes
        assert all(burner.open for burner in burners.values())
        await trio.sleep(1)
        assert {name: now - before[name] for name, now in ran(burners).items()} == {"a": 1000, "b": 1000}
        assert scheduler.wakes <= wakes + 1
        assert machine.times("a").run == burners["a"].cpu_time()


async def test_threads_and_model_guests_share_alike(autojump_clock: MockClock) -> None:
    machine, burners = machine_of(1, a=300)
    machine.partition("model", cpu_weight=100)
    async with computing(machine) as nursery:
        nursery.start_soon(busy, machine, "model")
        await trio.sleep(4)
        assert ran(burners) == {"a": pytest.approx(3000, abs=30)}
        assert machine.shares()["model"] == pytest.approx(25, abs=1)


async def test_suspended_and_ended(autojump_clock: MockClock) -> None:
    """A suspended processor's time is halted, and its LP the other's; one whose thread has ended keeps its account."""
    machine, burners = machine_of(1, a=100, b=300)
    async with computing(machine):
        await trio.sleep(1)
        machine.vp("b").set_explicit_suspend(True)
        burners["b"]._ran, burners["b"]._since = (
            burners["b"].cpu_time() // 100,
            None,
        )  # its thread is kept out by others
        before = ran(burners)
        await trio.sleep(1)
        assert ran(burners)["a"] - before["a"] == pytest.approx(1000, abs=12)
        assert machine.times("b").halted == pytest.approx(10**9, abs=10**7)
        had = burners["b"].cpu_time()
        machine.scheduler.detach_runner(machine.vp("b"))
        await trio.sleep(1)
        times = machine.times("b")
        assert times.run == had
        assert times.run + times.ready + times.halted == times.life
