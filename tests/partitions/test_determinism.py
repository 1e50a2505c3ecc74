"""A seeded run is the same run again."""

from __future__ import annotations

import random

import msgspec
import pytest
import trio
import trio._core._run

from hypervisor.clock import ticks
from hypervisor.trace import Layer, Trace
from partitions import determinism


async def _interleaved() -> bytes:
    """Six tasks that sleep and yield, traced: what a run with several guests looks like from the scheduler's side."""
    lines: list[bytes] = []
    trace = Trace(lambda: ticks(trio.current_time()))
    trace.add_sink(lambda event: lines.append(msgspec.json.encode(event)))

    async def guest(number: int) -> None:
        for step in range(20):
            trace.emit(Layer.STATE, "step", number, channel=step)
            if step % 3 == 0:
                await trio.sleep(0.25)
            else:
                await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(guest, number)
    return b"\n".join(lines)


def test_same_seed_same_bytes() -> None:
    """On the virtual clock two runs with one seed give the same trace, byte for byte, times included."""
    first = determinism.run(_interleaved, clock="virtual", seed=7)
    assert determinism.run(_interleaved, clock="virtual", seed=7) == first


def test_other_seed_other_order() -> None:
    """The seed decides the order of tasks, so that other orders can be looked for."""
    orders = {determinism.run(_interleaved, clock="virtual", seed=seed) for seed in range(5)}
    assert len(orders) == 5


def test_virtual_clock_jumps_and_is_seeded_without_asking() -> None:
    """The virtual clock starts at zero, waits for nobody, and a run without a seed is a run with seed 0."""

    async def long() -> float:
        await trio.sleep(3600)
        return trio.current_time()

    assert determinism.run(long, clock="virtual") == 3600
    assert determinism.run(_interleaved, clock="virtual") == determinism.run(_interleaved, clock="virtual", seed=0)


def test_seed_orders_tasks_on_the_real_clock_too() -> None:
    """On the real clock the order of tasks that are ready together follows the seed."""

    async def order() -> list[int]:
        seen: list[int] = []

        async def note(number: int) -> None:
            seen.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(note, number)
        return seen

    assert determinism.run(order, seed=3) == determinism.run(order, seed=3)
    assert determinism.run(order, seed=3) != determinism.run(order, seed=4)


def test_trio_is_put_back() -> None:
    """A run leaves no trace in Trio's module: other code in this process keeps its own random order."""
    hook = trio._core._run
    before = hook._ALLOW_DETERMINISTIC_SCHEDULING, hook._r.getstate()
    with pytest.raises(ZeroDivisionError):
        determinism.run(_fails, clock="virtual", seed=1)
    assert (hook._ALLOW_DETERMINISTIC_SCHEDULING, hook._r.getstate()) == before


async def _fails() -> None:
    raise ZeroDivisionError


def test_missing_hook_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Trio without the hook is refused with the remedy, never run in an order that only seems repeatable."""
    monkeypatch.delattr(trio._core._run, "_r")
    with pytest.raises(determinism.NotRepeatable, match=r"constraints\.txt") as caught:
        determinism.run(_interleaved, clock="virtual")
    assert trio.__version__ in str(caught.value)


def test_unread_hook_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that is still there but that the run loop no longer reads is refused as well."""
    monkeypatch.setattr(trio._core._run, "unrolled_run", _fails)
    with pytest.raises(determinism.NotRepeatable):
        determinism.check_hook()


def test_host_random_streams_are_apart() -> None:
    """Each purpose has its own stream, the same for one seed; without a seed it is random."""
    assert determinism.host_random(1, "a").random() == determinism.host_random(1, "a").random()
    assert determinism.host_random(1, "a").random() != determinism.host_random(1, "b").random()
    assert isinstance(determinism.host_random(None, "a"), random.Random)
