"""Virtual processors that threads of the host execute: whether they have work, and what they are charged. Hypervisor.

A model guest says when it has work and when it has none. A thread in a guest of its own (KVM's) says nothing: HLT stays
in the host's kernel, and so does the timer or the interrupt that ends it. So such a processor is looked at.

    free       it has an LP for sure (no cap, an LP for everybody), or nothing is controlled: its gate is not touched
    running    it holds an LP and is in the guest
    waiting    it has work and no LP, or no budget: its gate is shut
    halted     it is in the guest without an LP, since only there its timer or an interrupt can wake it

What is charged is never a sample. The thread's own clock is read, and the kernel's account of what the processor ran is
made equal to it: at the end of a slice, at each look, before anybody reads the account. Being late therefore costs
nobody anything in the long run, a guest that halts just before it is looked at included: looks only decide how soon an
LP goes to somebody else.

- A slice ends: its gate is shut, unless the guest halts at that moment, in which case it stays in. The thread needs a
  while to leave. What it runs meanwhile is in its clock at the next reading, and is charged then.
- The host runs somebody else meanwhile: refunded, before it is decided who runs next. So shares are of what is really
  run, and a cap's budget has it in the next periods.
- It halts: found at the next look, which gives its LP away. What it did not run of the time until then is refunded.
- It wakes late, that is without an LP: found at the next look, which charges what it ran and has it wait for an LP like
  everybody else. Where one is free it gets it at once and is not disturbed.
- It wakes and halts again between two looks: charged as well. One that has run `OWED` in that way is taken for busy, so
  that it waits for its turn; else a guest of many short bursts would never wait for anybody.
- It halts just after it was found busy and before its gate is shut: it waits with its halt undone. It gets an LP in its
  turn, halts there again, or does not since its interrupt has come, and is found out.
- The thread is in an exit, or waits for the interpreter: it counts as busy, which it is.

How often is looked: not at all while all are free. While an LP is left over: each `SLOW`, down to one an `IDLE` while
no clock moves. While none is left over: each `FAST` as long as some halt and wake; where all just burn, half as often
after each look, down to one a `SLOW`, which is as long as a slice.
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
LIVELY = 20_000_000
"""Nanoseconds for which a guest that has halted may be expected back."""
OWED = 5_000_000
"""Nanoseconds: who ran so long without an LP waits for one although it has halted."""
MOVED = 20
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

    def advance(self, to: int) -> None:
        """All that happens until then."""

    def next_time(self) -> int | None:
        """When something happens by itself."""

    @property
    def crowded(self) -> bool:
        """Whether there may be no LP for who begins to work now."""

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

    def settle(self) -> None:
        """Decide now who runs, and not when time goes on."""

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
    lively: int = 0
    """When a look found last that it had run."""
    free: bool = True
    """Its gate is left alone and the kernel told nothing: it counts as halted there."""
    works: bool = False
    """The kernel has been told that it has work."""
    suspended: bool = False
    shut: bool = False
    """Its gate."""
    holds: bool = False
    """It has an LP."""
    burns: bool = False
    """It lost its LP last although it had work, and not because it halted."""
    owes: int = 0
    """Nanoseconds that it ran without one since it had one last."""


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
        self._looked = 0
        self.next_look: int | None = None
        """When `look` wants to be called, in the kernel's time; None while nobody is to be looked at."""
        self.looks = 0

    def __len__(self) -> int:
        return len(self._all)

    # --- who there is

    def attach(self, vp: Vp, gate: Gate, *, free: bool, suspended: bool = False) -> None:
        """A thread begins to execute `vp`, or is about to: as long as it has not begun it is halted.

        One that is `suspended` is so in the kernel already.
        """
        clock = gate.cpu_time()
        self._all[vp] = ThreadVp(vp, gate, clock, clock, suspended=suspended)
        self._beside.setdefault(vp, 0)
        self.control(vp, free=free)

    def detach(self, vp: Vp) -> None:
        """Its thread is about to end: its clock is read once more."""
        self.control(vp, free=True)
        thread = self._all.pop(vp, None)
        self._touched.pop(vp, None)
        if thread is not None:
            self._beside[vp] += thread.gate.cpu_time() - thread.mark

    def forget(self, vp: Vp) -> None:
        """The processor is deleted, whether its thread has ended or not."""
        self._all.pop(vp, None)
        self._touched.pop(vp, None)
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
        if not thread.free:
            self._account(thread)
            self._look_soon()
        self.tell()

    # --- what the kernel says

    def touched(self, vp: Vp) -> None:
        """The kernel has given or taken an LP. It only notes that, since the kernel is in the middle of something."""
        if vp in self._all:
            self._touched[vp] = None

    def tell(self) -> None:
        """Open and shut the gates of all that were touched."""
        self._kernel.settle()
        while self._touched:
            for vp in list(self._touched):
                self._tell(self._all[vp])
            self._kernel.settle()

    def _tell(self, thread: ThreadVp[Vp]) -> None:
        del self._touched[thread.vp]
        held, thread.holds = thread.holds, self._kernel.running(thread.vp)
        if thread.free or not thread.works or thread.holds:
            self._shut(thread, False)
            if thread.holds:
                thread.owes = 0
                if not thread.burns and self._kernel.crowded:
                    self._look_soon()
        elif held and not thread.suspended and thread.gate.halted():
            self._halts(thread)
            self._account(thread)
        else:
            thread.burns |= held
            self._account(thread)
            self._shut(thread, True)

    def _halts(self, thread: ThreadVp[Vp]) -> None:
        thread.burns = False
        self._set_works(thread, False)

    def _shut(self, thread: ThreadVp[Vp], shut: bool) -> None:
        if thread.shut is not shut:
            thread.shut = shut
            thread.gate.may_run(not shut)

    # --- accounts

    def advance(self, to: int) -> None:
        """Advance the kernel; before it decides who runs next, it hears what those that ran have really had.

        Else a thread that the host has kept from running would hear of its arrears only when somebody else has the LP.
        """
        kernel = self._kernel
        running = {thread.vp: thread for thread in self._all.values() if thread.holds and not thread.free}
        if running or self._touched:
            kernel.settle()
            while (moment := kernel.next_time()) is not None and kernel.now < moment <= to:
                for vp in self._touched:
                    if kernel.running(vp) and not self._all[vp].free:
                        running[vp] = self._all[vp]
                kernel.advance(moment)
                for vp in [vp for vp in running if not kernel.running(vp)]:
                    self._account(running.pop(vp))
                if moment == to:
                    return
                kernel.settle()
        kernel.advance(to)

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
            if not thread.works:
                thread.owes += max(0, difference)
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
        self._look_by(self._kernel.now + FAST)

    def _look_by(self, moment: int) -> None:
        self.next_look = moment if self.next_look is None else min(self.next_look, moment)

    def look(self) -> None:
        """Find out who has work; to be called at `next_look`, and at any other time."""
        now = self._present()
        self.looks += 1
        passed, self._looked = now - self._looked, now
        found = False
        controlled = [thread for thread in self._all.values() if not thread.free and not thread.suspended]
        for thread in controlled:
            if thread.shut:
                continue
            halted = thread.gate.halted()
            found |= halted is thread.works
            # What it ran without having been dispatched is taken from the time in which it counted as halted; what it
            # did not run since it halted becomes such time.
            if halted:
                self._halts(thread)
            clock = self._account(thread)
            if not halted or thread.owes >= OWED:
                self._set_works(thread, True)
            if (clock - thread.seen) * MOVED > passed:
                thread.lively = now
            thread.seen = clock
        self.next_look = None
        self.tell()
        lively = [thread for thread in controlled if now - thread.lively < LIVELY]
        if self._kernel.crowded:
            fast = found or not all(thread.works for thread in lively)
            self._pause = FAST if fast else min(2 * self._pause, SLOW)
        else:
            self._pause = SLOW if lively else min(2 * self._pause, IDLE)
        if controlled:
            self._look_by(now + self._pause)
