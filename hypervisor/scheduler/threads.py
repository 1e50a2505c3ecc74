"""Virtual processors that threads of the host execute: whether they have work, and what they are charged. Hypervisor.

A model guest says when it has work and when it has none. A thread in a guest of its own (KVM's) says nothing: HLT stays
in the host's kernel, and so does the timer or the interrupt that ends it. So such a processor is looked at.

    free       it has an LP for sure (fewer processors than LPs, no cap): its gate is not touched, nobody looks
    running    it holds an LP and is in the guest
    waiting    it has work and no LP, or no budget: its gate is shut
    halted     it is in the guest without an LP, since only there its timer or an interrupt can wake it

What is charged is never a sample. The thread's own clock is read, and the kernel's account of what the processor ran is
made equal to it: at the end of a slice, at each look, before anybody reads the account. Being late therefore costs
nobody anything in the long run, a guest that halts just before it is looked at included: looks only decide how soon an
LP goes to somebody else.

- A slice ends: its gate is shut, unless the guest halts at that moment, in which case it stays in. The thread needs a
  while to leave. What it runs meanwhile is in its clock at the next reading, and is charged then.
- It halts: found at the next look, which gives its LP away. What it did not run of the time until then is refunded.
- It wakes late, that is without an LP: found at the next look, which charges what it ran and has it wait for an LP like
  everybody else. Where one is free it gets it at once and is not disturbed.
- It halts just after it was found busy and before its gate is shut: it waits with its halt undone. It gets an LP in its
  turn, halts there again, or does not since its interrupt has come, and is found out.
- The thread is in an exit, or waits for the interpreter: it counts as busy, which it is.

How often is looked: not at all while all are free; each `FAST` while somebody waits for an LP and looks find something,
half as often after each that does not, down to one a `SLOW`, which is as long as a slice; each `SLOW` while nobody
waits; down to one an `IDLE` while no clock moves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import attrs

from hypervisor.scheduler.settings import Gate

FAST = 1_000_000
SLOW = 10_000_000
IDLE = 50_000_000
"""Nanoseconds between looks."""
MOVED = 50
"""A clock that moved by less than one part in so many of the time between two looks belongs to an idle guest."""


Vp = TypeVar("Vp")
AnyVp = TypeVar("AnyVp", contravariant=True)


class Account(Protocol):
    """What the kernel has of a processor."""

    @property
    def run(self) -> int:
        """Nanoseconds that it ran."""


class Kernel(Protocol[AnyVp]):
    """What is asked of the scheduler's kernel."""

    @property
    def now(self) -> int:
        """Its time."""

    def work(self, vp: AnyVp, ns: int | None) -> None:
        """It has work until `stop`."""

    def stop(self, vp: AnyVp) -> int:
        """It has none any more."""

    def suspend(self, vp: AnyVp) -> None:
        """It may not run."""

    def resume(self, vp: AnyVp) -> None:
        """It may again."""

    def charge(self, vp: AnyVp, ns: int) -> None:
        """It ran so much more than the kernel has had it do; or so much less, if negative."""

    def times(self, vp: AnyVp) -> Account:
        """Its account until now."""

    def running(self, vp: AnyVp) -> bool:
        """Whether it holds an LP."""


@attrs.define(eq=False)
class ThreadVp(Generic[Vp]):
    """One such processor."""

    vp: Vp
    gate: Gate
    mark: int
    """Of its clock: while it is free, how far it is in `beside`; else, what of it is not in the kernel's account."""
    seen: int
    """Its clock at the last look."""
    free: bool = True
    """Its gate is left alone and the kernel told nothing: it counts as halted there."""
    works: bool = False
    """The kernel has been told that it has work."""
    suspended: bool = False
    shut: bool = False
    """Its gate."""


class ThreadVps(Generic[Vp]):
    """All that threads execute on one hypervisor, and what the kernel is to know of them.

    `present` brings the kernel to the present and gives that moment. Whoever gives the kernel an input, or advances it,
    calls `tell` afterwards, and `touched` for each processor that the kernel has given or taken an LP meanwhile.
    """

    def __init__(self, kernel: Kernel[Vp], present: Callable[[], int]) -> None:
        self._kernel = kernel
        self._present = present
        self._all: dict[Vp, ThreadVp[Vp]] = {}
        self._beside: dict[Vp, int] = {}
        """What each ran while it was free."""
        self._touched: dict[Vp, None] = {}
        self._pause = FAST
        self.next_look: int | None = None
        """When `look` wants to be called, in the kernel's time; None while nobody is to be looked at."""
        self.looks = 0

    def __len__(self) -> int:
        return len(self._all)

    # --- who there is

    def attach(self, vp: Vp, gate: Gate, *, free: bool) -> None:
        """A thread begins to execute `vp`, or is about to: as long as it has not begun it is halted."""
        clock = gate.cpu_time()
        self._all[vp] = ThreadVp(vp, gate, clock, clock)
        self._beside.setdefault(vp, 0)
        self.control(vp, free=free)

    def detach(self, vp: Vp) -> None:
        """Its thread is about to end: its clock is read once more."""
        self.control(vp, free=True)
        thread = self._all.pop(vp, None)
        if thread is not None:
            self._beside[vp] += thread.gate.cpu_time() - thread.mark

    def forget(self, vp: Vp) -> None:
        """The processor is deleted."""
        self._beside.pop(vp, None)

    def control(self, vp: Vp, *, free: bool) -> None:
        """Whether it may always run has changed, perhaps."""
        thread = self._all.get(vp)
        if thread is None or thread.free is free:
            return
        self._present()
        if free:
            self._set_works(thread, False)
            self._account(thread)
            thread.mark = thread.gate.cpu_time()
        else:
            # What it ran while it was free was nobody's loss, and is not held against it now.
            clock = thread.seen = thread.gate.cpu_time()
            self._beside[vp] += clock - thread.mark
            thread.mark = clock - self._kernel.times(vp).run
            self._set_works(thread, not thread.gate.halted())
            self._look_soon()
        thread.free = free
        self._touched[vp] = None
        self.tell()

    def suspend(self, vp: Vp, suspended: bool) -> None:
        """Its parent stops it or lets it go on; the thread is kept out by whoever executes it."""
        thread = self._all.get(vp)
        if thread is None:
            return
        thread.suspended = suspended
        self._present()
        if suspended:
            self._kernel.suspend(vp)
        else:
            self._kernel.resume(vp)
            self._look_soon()
        if not thread.free:
            self._account(thread)
        self.tell()

    # --- what the kernel says

    def touched(self, vp: Vp) -> None:
        """The kernel has given or taken an LP. It only notes that, since the kernel is in the middle of something."""
        if vp in self._all:
            self._touched[vp] = None

    def tell(self) -> None:
        """Open and shut the gates of all that were touched."""
        while self._touched:
            vp, _ = self._touched.popitem()
            thread = self._all.get(vp)
            if thread is None:
                continue
            if thread.free or not thread.works or self._kernel.running(vp):
                self._shut(thread, False)
            elif thread.suspended:
                self._shut(thread, True)
            elif not thread.shut and thread.gate.halted():
                self._set_works(thread, False)
                self._account(thread)
            else:
                self._account(thread)
                self._shut(thread, True)

    def _shut(self, thread: ThreadVp[Vp], shut: bool) -> None:
        if thread.shut is not shut:
            thread.shut = shut
            thread.gate.may_run(not shut)

    # --- accounts

    def ran_beside(self, vp: Vp) -> int:
        """Nanoseconds that it ran while it was free; the kernel's account has the rest, and has these as halted."""
        thread = self._all.get(vp)
        apart = self._beside.get(vp, 0)
        return apart + thread.gate.cpu_time() - thread.mark if thread is not None and thread.free else apart

    def settle(self) -> None:
        """Before accounts are read: the kernel's is what the clocks say. The kernel is in the present."""
        for thread in self._all.values():
            if not thread.free:
                self._account(thread)
        self.tell()

    def _account(self, thread: ThreadVp[Vp]) -> int:
        """Make the kernel's account equal to the thread's clock, which is returned."""
        clock = thread.gate.cpu_time()
        difference = clock - thread.mark - self._kernel.times(thread.vp).run
        if difference:
            self._kernel.charge(thread.vp, difference)
        return clock

    def _set_works(self, thread: ThreadVp[Vp], works: bool) -> None:
        if thread.works is works:
            return
        thread.works = works
        if works:
            self._kernel.work(thread.vp, None)
        else:
            self._kernel.stop(thread.vp)
        self._touched[thread.vp] = None

    # --- looks

    def _look_soon(self) -> None:
        """Somebody waits, or may."""
        self._pause = FAST
        soon = self._kernel.now + FAST
        self.next_look = soon if self.next_look is None else min(self.next_look, soon)

    def look(self) -> None:
        """Find out who has work; to be called at `next_look`, and at any other time."""
        now = self._present()
        self.looks += 1
        found = moved = waiting = False
        some = False
        for thread in list(self._all.values()):
            if thread.free or thread.suspended:
                continue
            some = True
            if thread.shut:
                waiting = True
                continue
            halted = thread.gate.halted()
            if halted is thread.works:
                found = True
                # A processor that begins to work is charged after that, so that its tag counts from here.
                self._set_works(thread, not halted)
            clock = self._account(thread)
            moved |= (clock - thread.seen) * MOVED > self._pause
            thread.seen = clock
        self.next_look = None
        self.tell()
        if some:
            if waiting:
                self._pause = FAST if found else min(2 * self._pause, SLOW)
            else:
                self._pause = SLOW if moved or found else min(2 * self._pause, IDLE)
            self.next_look = now + self._pause
