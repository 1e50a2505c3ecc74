"""The root's interrupts: at once, one after the other, never inside each other."""

from __future__ import annotations

from typing import Any

import trio
from trio.testing import MockClock

from hypervisor.backend.root import RootVp
from hypervisor.clock import ticks
from hypervisor.machine import Machine
from tests.doubles.bare_hypervisor import BareHypervisor


def make(clock: Any = None) -> tuple[BareHypervisor, RootVp]:
    host = BareHypervisor(clock)
    untyped: Any = host
    return host, RootVp(untyped, host.root.vps[0])


def test_the_handler_runs_within_the_call_that_raises() -> None:
    host, root = make()
    seen: list[int] = []
    root.set_interrupt_handler(seen.append)
    host.root.vps[0].raise_interrupt(0x31)
    assert seen == [0x31]


def test_a_vector_raised_while_the_handler_runs_comes_after_it_highest_first() -> None:
    host, root = make()
    vp = host.root.vps[0]
    log: list[str] = []

    def handler(vector: int) -> None:
        log.append(f"in {vector}")
        if vector == 1:
            for raised in (2, 9, 2):
                vp.raise_interrupt(raised)
        log.append(f"out {vector}")

    root.set_interrupt_handler(handler)
    vp.raise_interrupt(1)
    assert log == ["in 1", "out 1", "in 9", "out 9", "in 2", "out 2"]


def test_interrupts_before_there_is_a_handler_are_kept() -> None:
    host, root = make()
    seen: list[int] = []
    host.root.vps[0].raise_interrupt(0x20)
    root.set_interrupt_handler(seen.append)
    assert seen == [0x20]
    root.set_interrupt_handler(None)
    host.root.vps[0].raise_interrupt(0x21)
    assert seen == [0x20]


def test_a_handler_that_raises_does_not_block_the_next_interrupt() -> None:
    host, root = make()
    seen: list[int] = []

    def handler(vector: int) -> None:
        seen.append(vector)
        if vector == 1:
            raise RuntimeError("a bug of ours")

    root.set_interrupt_handler(handler)
    try:
        host.root.vps[0].raise_interrupt(1)
    except RuntimeError:
        pass
    host.root.vps[0].raise_interrupt(2)
    assert seen == [1, 2]


async def test_without_a_handler_the_root_may_halt_and_sleep(autojump_clock: MockClock) -> None:
    host, root = make(lambda: ticks(trio.current_time()))
    machine: Machine = root
    got: list[int] = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def sleeper() -> None:
            got.append(await machine.halt())

        await machine.sleep_until(ticks(2))
        assert trio.current_time() >= 2
        host.root.vps[0].raise_interrupt(0x44)
    assert got == [0x44]
    await machine.work(ticks(0.5))
    assert host.root.vps[0].runtime == ticks(0.5)
