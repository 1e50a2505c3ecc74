"""What others have measured of memory under control, in shape: guests whose work costs more where they must swap."""

from __future__ import annotations

from fractions import Fraction

import trio

from partitions.child.guest import Guest
from tests.partitions.test_memory import MIB, dynamic, fixed, forever, open_guests, state

WORK = 210 * MIB
ROUNDS = 10
ROUND = 2.0
"""Seconds that a round of a guest's work takes where all of its memory is there."""


async def _work(guest: Guest, took: list[float]) -> None:
    """Go through `WORK` again and again; the seconds of all rounds."""
    await guest.memory.use(WORK)
    begin = guest.time()
    for _ in range(ROUNDS):
        await guest.cpu.run(ROUND)
        await guest.memory.touch()
    took.append(guest.time() - begin)


async def test_ballooned_is_as_good_as_booted_with_less(autojump_clock: trio.abc.Clock) -> None:
    """M1 (Waldspurger 2002, fig. 2): a VM of 256 MB whose balloon leaves it 128 to 224 works as one that was built with
    that: never better, and within 5 %; and the less it has, the longer it takes.
    """

    async def seconds(built: int, left: int) -> float:
        took: list[float] = []

        async def main(guest: Guest) -> None:
            await guest.sleep(2)
            await _work(guest, took)
            await forever(guest)

        async with open_guests((fixed("web", built), main)) as host:
            await host["web"].start()
            await trio.sleep(1)
            if built != left:
                assert (await host["web"].set_memory(left * MIB)).assigned == left * MIB
            await trio.sleep(300)
        return took[0]

    booted = [await seconds(left, left) for left in (128, 160, 192, 224)]
    ballooned = [await seconds(256, left) for left in (128, 160, 192, 224)]
    for less, small in zip(ballooned, booted, strict=True):
        assert small <= less <= 1.05 * small
    assert booted == sorted(booted, reverse=True)
    assert booted[0] > booted[-1]


async def test_a_tax_on_idle_memory_speeds_up_who_works(autojump_clock: trio.abc.Clock) -> None:
    """M3 (Waldspurger 2002, fig. 7): of two VMs of 256 MB on 358, one is idle and the other works; both wish for all
    that they may have, most of which is a buffer. With a tax of 0 each has half; with 75 % the idle one's memory goes
    to the other, whose work gets faster.
    """

    async def rounds(tax: Fraction) -> tuple[float, int, int]:
        took: list[float] = []

        async def main(guest: Guest) -> None:
            await guest.sleep(60)  # until its host has divided the memory
            await _work(guest, took)
            await forever(guest)

        async def idle(guest: Guest) -> None:
            await guest.memory.use(20 * MIB)
            await forever(guest)

        tables = (dynamic("idle", 32, 128, 256, buffer=200), idle), (dynamic("works", 32, 128, 256, buffer=200), main)
        async with open_guests(*tables, memory=358) as host:
            host.vid.desk.idle_tax = tax
            await host.start_all()
            await trio.sleep(300)
            return took[0], state(host["idle"]).assigned, state(host["works"]).assigned

    free, taxed = await rounds(Fraction(0)), await rounds(Fraction(3, 4))
    assert abs(free[1] - free[2]) <= 4 * MIB
    assert abs(free[1] - 179 * MIB) <= 4 * MIB
    assert taxed[0] < free[0]
    assert taxed[1] < free[1] - 32 * MIB
    assert taxed[2] > free[2] + 32 * MIB
