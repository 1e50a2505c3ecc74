"""Hyper-V's synthetic timers as a program's own: four of virtual processor 0, each an interrupt of its own. Child side.

`guest.sleep` is a service of the host that real guests do not have. These are what they have instead: registers are
written, time passes, an interrupt comes. They are programmed in direct mode, so no message slot is in between.

    ticks = guest.timers[0]
    ticks.start(0.01, periodic=True)
    for _ in range(100):
        await ticks.wait()
    ticks.stop()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from hypervisor.clock import TICKS_PER_SECOND
from hypervisor.cpuid import DIRECT_TIMERS_AVAILABLE, LEAF_FEATURES
from hypervisor.machine import Machine
from hypervisor.msr import Msr
from hypervisor.privileges import Privilege
from hypervisor.synic.timer_registers import TIMER_COUNT, direct_timer
from partitions.child.interrupts import Interrupts

FIRST_VECTOR: Final = 0xE8
"""Timer n interrupts with vector E8h + n. Linux has EDh for its one."""
_MOST: Final = (1 << 64) - 1


class NoTimers(RuntimeError):
    """The host offers this VM no synthetic timers (`synthetic_timers = false` in its topology)."""


class Timer:
    """One synthetic timer."""

    __slots__ = ("_arrived", "_config", "_machine", "_now", "_vector", "expirations", "waiting")

    def __init__(self, machine: Machine, now: Callable[[], int], interrupts: Interrupts, index: int) -> None:
        self._machine = machine
        self._now = now
        self._config = Msr.STIMER0_CONFIG + 2 * index
        self._vector = FIRST_VECTOR + index
        self._arrived = trio.Event()
        self.expirations = 0
        """Interrupts that came since the boot."""
        self.waiting = 0
        """Interrupts that no `wait` has returned for."""
        interrupts.vectors[self._vector] = self._interrupted

    def start(self, seconds: float, *, periodic: bool = False, lazy: bool = False) -> None:
        """Expire once in so many seconds of the partition's time, or again and again; anew if it runs already.

        `lazy`: ticks that a pause of the VM swallowed are not made up for.
        """
        self.stop()
        duration = max(1, round(seconds * TICKS_PER_SECOND))
        count = duration if periodic else self._now() + duration
        if count > _MOST:
            raise ValueError(f"no timer waits for {seconds:g} seconds")
        config = direct_timer(self._vector, periodic=periodic, lazy=lazy, auto_enable=True)
        self._machine.write_msr(self._config, config)
        self._machine.write_msr(self._config + 1, count)

    def stop(self) -> None:
        """It expires no more, and what came and was not waited for is forgotten."""
        self._machine.write_msr(self._config, 0)
        self.waiting = 0

    async def wait(self) -> int:
        """Until it has expired since the last `wait` or `start`; how often it has."""
        while not self.waiting:
            self._arrived = trio.Event()
            await self._arrived.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        came, self.waiting = self.waiting, 0
        return came

    def _interrupted(self) -> None:
        self.expirations += 1
        self.waiting += 1
        self._arrived.set()


class Timers:
    """Makes a processor's timers when a program first asks for them, and stops them at its end."""

    __slots__ = ("_interrupts", "_machine", "_now", "_timers")

    def __init__(self, machine: Machine, now: Callable[[], int], interrupts: Interrupts) -> None:
        self._machine = machine
        self._now = now
        self._interrupts = interrupts
        self._timers: tuple[Timer, ...] = ()

    def all(self) -> tuple[Timer, ...]:
        """The four of them. Raises `NoTimers`."""
        if not self._timers:
            low, _, _, features = self._machine.cpuid(LEAF_FEATURES)
            if not low & Privilege.ACCESS_SYNTHETIC_TIMER_MSRS or not features & DIRECT_TIMERS_AVAILABLE:
                raise NoTimers("this VM has no synthetic timers (CPUID 0x40000003)")
            self._timers = tuple(
                Timer(self._machine, self._now, self._interrupts, index) for index in range(TIMER_COUNT)
            )
        return self._timers

    def stop(self) -> None:
        """No interrupts from them any more."""
        for timer in self._timers:
            timer.stop()
