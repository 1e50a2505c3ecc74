"""Processors that threads execute: weights, caps and accounts hold for guests that nobody can ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from hypervisor.scheduler.kernel import CpuKernel, Reason, Vp
from hypervisor.scheduler.threads import FAST, IDLE, SLOW, ThreadVps

MS = 1_000_000
STEP = 50_000
HALF = 0x8000


class Thread:
    """A host's thread in a guest that alternates between work and a halt which a timer ends; and its gate."""

    def __init__(self, machine: Machine, pattern: Iterator[tuple[int, int]], lag: int) -> None:
        self.machine = machine
        self.pattern = pattern
        self.lag = lag
        """Nanoseconds that it needs to leave."""
        self.born = machine.now
        self.clock = 0
        self.open = True
        self.kicks = 0
        self.inside_until = 0
        self.left, self._halt = next(pattern)
        self.asleep_until = 0
        self.paused = False

    def may_run(self, allowed: bool) -> None:
        assert allowed is not self.open, "each is said once"
        self.open = allowed
        if not allowed:
            self.kicks += 1
            self.inside_until = self.machine.now + self.lag

    def cpu_time(self) -> int:
        return self.clock

    def halted(self) -> bool:
        return self.inside and self.asleep_until > self.machine.now

    @property
    def inside(self) -> bool:
        return not self.paused and (self.open or self.machine.now < self.inside_until)

    def step(self) -> None:
        if not self.inside or self.asleep_until > self.machine.now:
            return
        self.clock += STEP
        self.left -= STEP
        if self.left <= 0:
            self.asleep_until = self.machine.now + STEP + self._halt
            self.left, self._halt = next(self.pattern)


class Machine:
    """A host with processors enough for all threads at once, so that nothing but gates keeps any out."""

    def __init__(self, logical_processors: int = 1) -> None:
        self.kernel = CpuKernel(logical_processors)
        self.kernel.listener = self
        self.timely = True
        self.now: int = 0
        self.late = 0
        """Nanoseconds by which all that should be done at a time is late."""
        self.vps = ThreadVps(self.kernel, self.present)
        self.threads: dict[Vp, Thread] = {}

    def dispatched(self, vp: Vp, lp: int, slice_ns: int) -> None:
        self.vps.touched(vp)

    def descheduled(self, vp: Vp, lp: int, reason: Reason) -> None:
        self.vps.touched(vp)

    def finished(self, vp: Vp) -> None:
        raise AssertionError("nobody knows when such a processor's work ends")

    def present(self) -> int:
        self.vps.advance(self.now)
        return self.now

    def add(
        self,
        pattern: Iterator[tuple[int, int]],
        *,
        shares: int = 100,
        cap: int = 0x10000,
        free: bool = False,
        lag: int = 0,
        kind: type[Thread] = Thread,
    ) -> Vp:
        number = len(self.threads) + 1
        vp = self.kernel.add_vp(self.kernel.root, f"vp{number}", id=number, shares=shares, cap=cap)
        thread = self.threads[vp] = kind(self, pattern, lag)
        self.vps.attach(vp, thread, free=free)
        return vp

    def run(self, ns: int) -> None:
        """So long, in small steps."""
        end = self.now + ns
        while self.now < end:
            due = self.kernel.next_time()
            if due is not None and due + self.late <= self.now:
                self.present()
                self.vps.tell()
            if self.vps.next_look is not None and self.vps.next_look + self.late <= self.now:
                self.vps.look()
            for thread in self.threads.values():
                thread.step()
            self.now += STEP

    def ran(self, vps: Sequence[Vp]) -> list[int]:
        """What each has used of the host, in percent of the time."""
        return [round(100 * self.threads[vp].clock / self.now) for vp in vps]

    def check(self) -> None:
        """The kernel's account is what the clock says, and all of the time is in one of its four columns."""
        self.present()
        self.vps.settle()
        for vp, thread in self.threads.items():
            times = self.kernel.times(vp)
            assert times.run + self.vps.ran_beside(vp) == thread.clock
            assert times.run + times.ready + times.capped + times.halted == self.now - thread.born
            assert min(times.run, times.ready, times.capped, times.halted) >= 0


def burning() -> Iterator[tuple[int, int]]:
    while True:
        yield 1 << 60, 0


def bursts(work: int, halt: int) -> Iterator[tuple[int, int]]:
    while True:
        yield work, halt


@pytest.mark.parametrize("late", [0, 2 * MS])
def test_weights(late: int) -> None:
    """1:3 is 25:75, also where the host wakes late and threads are slow to leave."""
    machine = Machine()
    machine.late = late
    vps = [machine.add(burning(), shares=shares, lag=MS // 5) for shares in (100, 300)]
    machine.run(2000 * MS)
    machine.check()
    one, three = (machine.threads[vp].clock for vp in vps)
    assert three / one == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("late", [0, 3 * MS])
@pytest.mark.parametrize("percent", [10, 50, 90])
def test_a_cap(percent: int, late: int) -> None:
    """On an idle host too; what a thread runs on after its budget's end comes off the next."""
    machine = Machine(4)
    machine.late = late
    vp = machine.add(burning(), cap=0x10000 * percent // 100, lag=MS // 5)
    machine.run(2000 * MS)
    machine.check()
    assert machine.threads[vp].clock / machine.now == pytest.approx(percent / 100, abs=0.02)
    times = machine.kernel.times(vp)
    assert times.halted < machine.now // 100, "what a late host costs it is time in which it is ready"
    if not late:
        assert times.capped == pytest.approx(machine.now * (100 - percent) / 100, rel=0.1)


@pytest.mark.parametrize(("work", "halt"), [(MS * 19 // 20, MS // 20), (19 * MS // 2, MS // 2), (7 * MS, 5 * MS)])
def test_who_halts_before_the_end_of_its_slice_gains_nothing(work: int, halt: int) -> None:
    """The hole of schedulers that charge by samples: yield at 9.5 ms of 10, and never be seen running."""
    machine = Machine()
    cheat, honest = machine.add(bursts(work, halt)), machine.add(burning())
    machine.run(2000 * MS)
    machine.check()
    assert machine.threads[cheat].clock <= 0.52 * machine.now
    assert machine.threads[honest].clock >= 0.46 * machine.now
    both = machine.threads[cheat].clock + machine.threads[honest].clock
    assert both <= 1.1 * machine.now, "what runs without an LP is soon found, where there is none left over"


class Liar(Thread):
    """It is asleep whenever somebody looks, and works at all other times."""

    def halted(self) -> bool:
        return self.inside


def test_who_is_never_seen_at_work_waits_for_its_turn_all_the_same() -> None:
    """It was charged for what it ran, so its turn comes as late as that of one who is seen."""
    machine = Machine()
    liar, honest = machine.add(burning(), kind=Liar), machine.add(burning(), shares=300)
    machine.run(3000 * MS)
    machine.check()
    assert machine.threads[liar].clock <= 0.35 * machine.now
    assert machine.threads[honest].clock >= 0.65 * machine.now


def test_a_halted_processor_does_not_keep_its_lp() -> None:
    """The other gets nearly all that is left, though nobody says when the first halts."""
    machine = Machine()
    light, heavy = machine.add(bursts(2 * MS, 18 * MS)), machine.add(burning())
    machine.run(2000 * MS)
    machine.check()
    assert machine.threads[light].clock >= 0.08 * machine.now, "its wake-ups are not lost"
    assert machine.threads[heavy].clock >= 0.85 * machine.now
    assert machine.kernel.times(heavy).ready < 0.15 * machine.now


def test_nobody_is_disturbed_without_contention() -> None:
    """As many processors that work as LPs, and others that sleep: no gate is ever shut, and looks are few."""
    machine = Machine(2)
    machine.add(burning())
    machine.add(bursts(MS, 100 * MS))
    for _ in range(3):
        machine.add(bursts(STEP, 1000 * MS))
    machine.run(50 * MS)
    kicks, looks = [thread.kicks for thread in machine.threads.values()], machine.vps.looks
    machine.run(900 * MS)
    machine.check()
    assert [thread.kicks for thread in machine.threads.values()] == kicks
    assert machine.vps.looks - looks <= 900 * MS // SLOW + 5


def test_idle_guests_are_hardly_looked_at() -> None:
    machine = Machine(1)
    for _ in range(3):
        machine.add(bursts(STEP, 500 * MS))
    machine.run(2000 * MS)
    machine.check()
    assert machine.vps.looks <= 2 * 2000 * MS // IDLE + 20


def test_the_free_are_never_looked_at() -> None:
    """What they run is known all the same, and not held against them when they are free no longer."""
    machine = Machine(1)
    old = machine.add(burning(), free=True)
    machine.run(1000 * MS)
    machine.check()
    assert machine.vps.looks == 0
    assert machine.vps.next_look is None
    assert machine.vps.ran_beside(old) == machine.threads[old].clock == 1000 * MS
    new = machine.add(burning())
    machine.present()
    machine.vps.control(old, free=False)
    machine.run(400 * MS)
    machine.check()
    assert machine.threads[old].clock - 1000 * MS == pytest.approx(200 * MS, rel=0.1)
    machine.vps.detach(new)
    machine.threads[new].pattern = bursts(0, 1 << 60)
    machine.threads[new].paused = True
    machine.vps.control(old, free=True)
    assert machine.threads[old].open
    before = machine.vps.looks
    machine.run(100 * MS)
    machine.check()
    assert machine.vps.looks <= before + 1
    assert machine.vps.next_look is None
    assert machine.threads[old].clock == pytest.approx(1300 * MS, rel=0.02)


def test_contention_is_found_soon_and_its_end_too() -> None:
    """A slice after the second has woken both have their half; a slice after it halts the first has all."""
    machine = Machine(1)
    first = machine.add(burning())
    second = machine.add(iter([(STEP, 300 * MS), (100 * MS, 1 << 60), (1, 1)]))
    machine.run(300 * MS)
    assert machine.threads[first].kicks <= 1
    machine.run(100 * MS)
    machine.check()
    assert machine.threads[second].clock == pytest.approx(50 * MS, abs=SLOW)
    machine.run(200 * MS)
    kicks = machine.threads[first].kicks
    before = machine.threads[first].clock
    machine.run(200 * MS)
    machine.check()
    assert machine.threads[first].clock - before == 200 * MS
    assert machine.threads[first].kicks == kicks


def test_a_deleted_processor_is_told_nothing_more() -> None:
    """Though its thread may still be there, and at whatever moment of its slice."""
    for moment in range(0, 25 * MS, 3 * MS):
        machine = Machine(1)
        gone, still = machine.add(burning()), machine.add(burning())
        machine.run(20 * MS + moment)
        machine.kernel.stop(gone)
        machine.vps.forget(gone)
        machine.kernel.remove(gone)
        machine.vps.tell()
        thread = machine.threads.pop(gone)
        said = thread.open, thread.kicks
        before = machine.threads[still].clock
        machine.run(50 * MS)
        machine.check()
        assert (thread.open, thread.kicks) == said
        assert machine.threads[still].clock - before == 50 * MS


def test_a_suspended_processor_needs_no_lp() -> None:
    machine = Machine(1)
    vps = [machine.add(burning()) for _ in range(2)]
    machine.run(100 * MS)
    for suspended in (True, False):
        for vp in vps:
            machine.threads[vp].paused = suspended and vp is vps[0]
            machine.vps.suspend(vp, suspended and vp is vps[0])
        before = [machine.threads[vp].clock for vp in vps]
        machine.run(200 * MS)
        machine.check()
        gained = [machine.threads[vp].clock - then for vp, then in zip(vps, before, strict=True)]
        assert gained == (
            pytest.approx([0, 200 * MS], abs=2 * FAST) if suspended else pytest.approx([1e8, 1e8], rel=0.15)
        )
    halted = machine.kernel.times(vps[0]).halted
    assert halted == pytest.approx(200 * MS, rel=0.1)


def test_a_thread_that_the_host_does_not_run_costs_few_dispatches() -> None:
    """A regression: what it did not run was refunded and made a short slice, which was refunded, thousands a second.

    Afterwards it catches up with a tenth of a second, and with no more.
    """
    machine = Machine(1)
    vp = machine.add(burning(), cap=HALF)
    machine.run(103 * MS)
    machine.threads[vp].paused = True  # unknown to the scheduler: the host has other things to do
    machine.run(400 * MS)
    machine.check()
    assert machine.kernel.times(vp).dispatches < 500
    machine.threads[vp].paused = False
    machine.run(400 * MS)
    machine.check()
    assert machine.threads[vp].clock == pytest.approx(251 * MS + 50 * MS, abs=12 * MS)


class Sleeper(Liar):
    """As a liar, after a second of sleep."""

    def step(self) -> None:
        if self.machine.now >= 1000 * MS:
            super().step()


def test_who_slept_for_long_has_earned_nothing_by_it() -> None:
    """What it runs without an LP counts from the present of the others, and not from when it fell asleep."""
    machine = Machine()
    sleeper, honest = machine.add(burning(), kind=Sleeper), machine.add(burning(), shares=300)
    machine.run(1000 * MS)
    assert machine.threads[honest].clock >= 980 * MS
    machine.run(1000 * MS)
    machine.check()
    assert machine.threads[sleeper].clock <= 350 * MS


def test_a_credit_is_for_those_who_work_on() -> None:
    """What the host owes to a cap's budget is forgotten when nobody wants it for a period."""
    machine = Machine()
    vp = machine.add(iter([(1, 0), (100 * MS, 500 * MS), (1 << 60, 0), (1, 1)]), cap=HALF)
    thread = machine.threads[vp]
    machine.run(20 * MS)
    thread.paused = True
    machine.run(200 * MS)
    thread.paused = False
    thread.left = STEP
    machine.run(300 * MS)
    before = thread.clock
    machine.run(400 * MS)
    machine.check()
    assert thread.clock - before <= 112 * MS, "it woke after half of that time, and has half a processor"


class Sluggish(Thread):
    """It needs a while to get in."""

    def may_run(self, allowed: bool) -> None:
        super().may_run(allowed)
        self.asleep_until = max(self.asleep_until, self.machine.now + MS // 5)

    def halted(self) -> bool:
        return False


def test_a_thread_that_is_slow_to_get_in_has_no_slices_of_what_it_lost() -> None:
    """It would not get in within these either."""
    machine = Machine(1)
    vp = machine.add(burning(), cap=HALF, kind=Sluggish)
    machine.run(1000 * MS)
    machine.check()
    assert machine.kernel.times(vp).dispatches < 300
    assert machine.threads[vp].clock >= 0.44 * machine.now


class Starved(Thread):
    """The host runs it three tenths of the time that it could."""

    tenths = 3

    def step(self) -> None:
        if self.machine.now // (MS // 5) % 10 < self.tenths:
            super().step()


class Delayed(Starved):
    """The host runs it most of the time that it could."""

    tenths = 8


@pytest.mark.parametrize("late", [0, MS // 2, 2 * MS])
def test_a_cap_is_reached_on_a_host_that_has_other_things_to_do(late: int) -> None:
    """A regression: what it could not run in one period was lost for the next, and that was a tenth of it."""
    machine = Machine(2)
    machine.late = late
    vp = machine.add(burning(), cap=HALF, kind=Delayed, lag=MS // 5)
    machine.run(2000 * MS)
    machine.check()
    assert machine.threads[vp].clock / machine.now == pytest.approx(0.5, abs=0.02)


def test_a_host_that_runs_one_more_than_the_other_gets_its_turns_back() -> None:
    """Shares are of what is really run: who is short of it gets longer and more turns, as long as that is possible."""
    machine = Machine()
    one, three = machine.add(burning(), shares=100), machine.add(burning(), shares=300, kind=Starved)
    machine.run(4000 * MS)
    machine.check()
    assert machine.threads[three].clock / machine.threads[one].clock == pytest.approx(3, rel=0.1)


def test_who_halts_as_its_slice_ends_stays_where_it_is() -> None:
    """Its gate is not shut, so its timer wakes it as any other's; its LP goes to who waits."""
    machine = Machine()
    machine.late = MS // 2
    first, second = machine.add(bursts(10 * MS, 50 * MS)), machine.add(burning())
    machine.run(2000 * MS)
    machine.check()
    assert machine.threads[first].kicks <= 45, "one for each time that it wakes, and none for halting"
    assert machine.threads[second].clock >= 0.75 * machine.now


def test_no_column_ever_falls() -> None:
    """A person who looks twice sees none of the four shrink, but for what the host was late."""
    machine = Machine(1)
    machine.late = MS
    patterns = [bursts(3 * MS, 9 * MS), bursts(MS // 2, 4 * MS), burning(), bursts(11 * MS, 3 * MS)]
    vps = [
        machine.add(pattern, cap=cap, shares=shares, lag=MS // 10)
        for pattern, cap, shares in zip(patterns, (HALF, 0x10000, HALF, 0x4000), (100, 300, 100, 200), strict=True)
    ]
    before: dict[Vp, tuple[int, ...]] = dict.fromkeys(vps, (0, 0, 0, 0))
    for _ in range(300):
        machine.run(3 * MS)
        machine.check()
        for vp in vps:
            now = machine.kernel.times(vp)[:4]
            assert all(b >= a - 2 * machine.late for a, b in zip(before[vp], now, strict=True)), (before[vp], now)
            assert now[0] >= before[vp][0]
            before[vp] = now


def test_work_that_nobody_gave_leave_to_counts_against_the_share() -> None:
    """A guest that wakes often and halts soon runs mostly without an LP: it has as much as its share, and no more."""
    machine = Machine(1)
    vps = [machine.add(bursts(600_000, 300_000), shares=100), machine.add(burning(), shares=300)]
    machine.run(3000 * MS)
    machine.check()
    assert machine.threads[vps[0]].clock <= 0.31 * machine.now
    assert machine.threads[vps[1]].clock >= 0.69 * machine.now


def test_a_model_guest_that_waits_has_others_looked_at() -> None:
    """Its work ends at the share that it has, whether those beside it are threads or not."""
    machine = Machine(1)
    machine.add(bursts(2 * MS, 8 * MS))
    task = machine.kernel.add_vp(machine.kernel.root, "task", id=99)
    machine.run(200 * MS)
    machine.present()
    machine.kernel.work(task, None)
    machine.vps.tell()
    machine.run(1000 * MS)
    machine.check()
    assert machine.kernel.times(task).run > 700 * MS
