"""What virtual processors want and people set, while others run. Hypervisor."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.scheduler.kernel import CpuKernel, Reason, State
from tests.hypervisor.scheduler.kernels import MS, QUANTUM, SECOND, WHOLE, busy, check, listen, ran

WINDOW = 100 * MS


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"shares": 300}, 75),
        ({"cap": WHOLE // 5}, 20),
        ({"cap": WHOLE // 5, "period": WINDOW}, 20),
        ({"reserve": WHOLE * 7 // 10}, 70),
        ({"batch": True}, 0),
    ],
)
def test_a_change_counts_within_a_window(change: dict[str, Any], first: int) -> None:
    """Each control of a processor that runs is in force in the next 100 ms, and undone likewise."""
    kernel = CpuKernel(1)
    vp, _ = busy(kernel, 100, 100)
    kernel.advance(SECOND + 3 * MS)
    (before,) = ran(kernel, [vp])
    kernel.change(vp, **change)
    kernel.advance(kernel.now + WINDOW)
    (now,) = ran(kernel, [vp])
    assert abs(now - before - first) <= 10
    kernel.change(vp, shares=100, cap=WHOLE, reserve=0, period=10 * MS, batch=False)
    kernel.advance(kernel.now + WINDOW)
    assert abs(ran(kernel, [vp])[0] - now - 50) <= 10
    check(kernel)


def test_new_shares_do_not_wait_for_old_debts() -> None:
    """A processor of weight 1 has to wait for 10,000 slices of the other; of weight 10,000 it does not any more."""
    kernel = CpuKernel(1)
    light, _ = busy(kernel, 1, 10_000)
    kernel.advance(SECOND)
    kernel.change(light, shares=10_000)
    kernel.advance(2 * SECOND)
    assert abs(ran(kernel, [light])[0] - 500) <= 20


def test_what_a_reserve_gave_is_not_held_against_shares() -> None:
    """A reserve of 30 % among ten for an hour, then two are left: 50 % each at once, and not 30 for half an hour."""
    kernel = CpuKernel(1)
    vp, second, *others = busy(kernel, *[100] * 10)
    kernel.change(vp, reserve=WHOLE * 3 // 10)
    kernel.advance(600 * SECOND)
    assert abs(ran(kernel, [vp])[0] - 180_000) <= 20
    for other in others:
        kernel.stop(other)
    before = ran(kernel, [vp, second])
    kernel.advance(601 * SECOND)
    for old, new in zip(before, ran(kernel, [vp, second]), strict=True):
        assert abs(new - old - 500) <= 30


def test_a_group_is_changed_and_moved_with_all_in_it() -> None:
    """Shares and caps of a group, and the group that it is in."""
    kernel = CpuKernel(2)
    outer = kernel.add_group(kernel.root, "outer", id=1)
    inner = kernel.add_group(kernel.root, "inner", id=2)
    busy(kernel, 100, 100, parent=outer)
    vps = busy(kernel, 100, 100, parent=inner, prefix="i")
    kernel.advance(SECOND)
    assert ran(kernel, [inner]) == [1000]
    kernel.move(inner, outer)
    kernel.change(outer, cap=WHOLE)
    kernel.advance(2 * SECOND)
    assert abs(ran(kernel, [inner])[0] - 1000 - 333) <= 20, "one of three siblings on one LP's worth"
    kernel.change(inner, shares=400)
    kernel.move(vps[0], kernel.root)
    kernel.advance(3 * SECOND)
    assert abs(ran(kernel, [vps[0]])[0] - 500 - 167 - 1000) <= 30
    check(kernel)


def test_sets_of_processors() -> None:
    """E7: a group's LPs are its own; the others have the rest; and both change while all run."""
    kernel = CpuKernel(4)
    group = kernel.add_group(kernel.root, "group", id=1, processors=[0, 1, 2])
    other = kernel.add_group(kernel.root, "other", id=2)
    mine, rest = busy(kernel, *[100] * 4, parent=group), busy(kernel, 100, 300, parent=other, prefix="o")
    ear = listen(kernel)
    kernel.advance(SECOND)
    assert ran(kernel, [group, *rest]) == [3000, 250, 750]
    kernel.change(group, processors=[3])
    kernel.advance(2 * SECOND)
    assert ran(kernel, [group, *rest]) == [4000, 1250, 1750]
    kernel.change(group, processors=None)
    assert {it.lp for it in ear.stretches if it.name in [vp.name for vp in mine] and it.begin >= SECOND} == {3}
    kernel.advance(3 * SECOND)
    assert abs(ran(kernel, [group])[0] - 4000 - 2000) <= 20, "two groups of equal shares on four LPs"
    kernel.change(group, processors=[0])
    kernel.remove(group)
    kernel.advance(4 * SECOND)
    assert abs(ran(kernel, [other])[0] - 3000 - 2000 - 2000) <= 20
    check(kernel)


@pytest.mark.parametrize(
    ("processors", "why"),
    [([], "at least one"), ([4], "0 to 3"), ([1, 2], "processor 1 is of one"), ([2, 3], "would be left")],
)
def test_sets_that_cannot_be(processors: list[int], why: str) -> None:
    """Empty, outside of the machine, not disjoint, or leaving nothing to who is in no set: refused, nothing done."""
    kernel = CpuKernel(4)
    kernel.add_group(kernel.root, "one", id=1, processors=[0, 1])
    (vp,) = busy(kernel, 100)
    with pytest.raises(ValueError, match=why):
        kernel.add_group(kernel.root, "two", id=2, processors=processors)
    two = kernel.add_group(kernel.root, "two", id=2)
    with pytest.raises(ValueError, match=why):
        kernel.change(two, processors=processors, shares=7)
    assert two.shares == 100
    kernel.advance(SECOND)
    assert ran(kernel, [vp]) == [1000]


def test_what_cannot_be() -> None:
    """Two siblings of one ID, no shares, a group inside of itself, the machine's own controls, time that goes back."""
    kernel = CpuKernel(1)
    group = kernel.add_group(kernel.root, "group", id=1)
    inner = kernel.add_group(group, "inner", id=1)
    vp = kernel.add_vp(kernel.root, "vp", id=0)
    kernel.work(vp, None)
    kernel.add_vp(kernel.root, "same number, another kind", id=1)
    kernel.add_group(kernel.root, "another number", id=2)
    for wrong in (
        lambda: kernel.add_group(kernel.root, "twin", id=1),
        lambda: kernel.add_vp(kernel.root, "none", id=9, shares=0),
        lambda: kernel.change(vp, cap=-1),
        lambda: kernel.change(group, period=0),
        lambda: kernel.change(group, batch=True),
        lambda: kernel.change(kernel.root, cap=5),
        lambda: kernel.move(group, inner),
        lambda: kernel.remove(kernel.root),
        lambda: kernel.work(vp, -1),
        lambda: kernel.add_group(group, "deep", id=5, processors=[0]),
    ):
        with pytest.raises(ValueError, match=r".+"):
            wrong()
    kernel.advance(5)
    with pytest.raises(ValueError, match="back"):
        kernel.advance(4)
    kernel.remove(vp)
    with pytest.raises(ValueError, match="removed"):
        kernel.work(vp, 1)
    assert kernel.times(vp).run == 5


def test_stop_says_what_is_undone_and_suspend_keeps_it() -> None:
    """Suspended time is halted time; stop gives the rest of the work back."""
    kernel = CpuKernel(1)
    ear = listen(kernel)
    vp = kernel.add_vp(kernel.root, "vp", id=1)
    kernel.work(vp, 5 * MS)
    kernel.work(vp, 10 * MS)
    kernel.advance(4 * MS)
    kernel.suspend(vp)
    kernel.advance(7 * MS)
    kernel.work(vp, MS)
    kernel.resume(vp)
    kernel.advance(9 * MS)
    assert kernel.stop(vp) == 10 * MS
    kernel.advance(10 * MS)
    assert kernel.times(vp)[:4] == (6 * MS, 0, 0, 4 * MS)
    assert [it.reason for it in ear.stretches] == [Reason.SUSPENDED, Reason.BLOCKED]
    kernel.work(vp, None)
    assert kernel.stop(vp) == 0
    assert not ear.finished_at


def test_a_charge_is_paid_and_sums_up() -> None:
    """Time that was run without a dispatch is run, less what it was counted as; it counts for shares and caps."""
    kernel = CpuKernel(1)
    late, other = busy(kernel, 100, 100)
    for period in range(1, 101):
        kernel.advance(period * 10 * MS)
        kernel.charge(late, MS)
    times = kernel.times(late)
    assert sum(times[:4]) == SECOND
    assert abs(times.run - kernel.times(other).run) <= QUANTUM, "its 100 ms too many are 50 for each"
    assert abs(times.run - 550 * MS) <= QUANTUM
    kernel.change(late, cap=WHOLE // 4)
    kernel.stop(other)
    before = kernel.times(late).run
    for period in range(1, 101):
        kernel.advance(SECOND + period * 10 * MS)
        kernel.charge(late, MS)
    assert abs(kernel.times(late).run - before - 250 * MS) <= 2 * QUANTUM, "a debt is carried over"
    kernel.charge(late, -kernel.times(late).run - 5)
    assert kernel.times(late).run == 0
    assert sum(kernel.times(late)[:4]) == 2 * SECOND


def test_work_that_comes_when_the_old_is_done_goes_on() -> None:
    """A guest that works in pieces of 1 ms without a pause has as much as one that works in one go."""
    kernel = CpuKernel(1)
    ear = listen(kernel)
    pieces = kernel.add_vp(kernel.root, "pieces", id=9)
    (whole,) = busy(kernel, 100)
    kernel.work(pieces, MS)
    while kernel.now < SECOND:
        wake = kernel.next_wake()
        assert wake is not None
        kernel.advance(min(wake, SECOND))
        if len(ear.finished_at.get("pieces", [])) and pieces.state is State.HALTED:
            kernel.work(pieces, MS)
    assert abs(kernel.times(pieces).run - kernel.times(whole).run) <= QUANTUM


@settings(max_examples=40)
@given(st.integers(0, 1 << 32))
def test_nothing_is_done_before_the_next_wake(seed: int) -> None:
    """`next_wake` is never too late, whatever comes in between, and in the end it is the moment itself."""
    draw = random.Random(seed)
    kernel = CpuKernel(draw.choice((1, 2)))
    ear = listen(kernel)
    group = kernel.add_group(kernel.root, "g", id=1, cap=draw.choice((None, WHOLE // 2)))
    vps = [
        kernel.add_vp(
            draw.choice((group, kernel.root)),
            f"v{number}",
            id=number,
            cap=draw.choice((WHOLE, WHOLE // 3)),
            batch=draw.random() < 0.2,
        )
        for number in range(5)
    ]
    wakes = 0
    for _ in range(60):
        vp = draw.choice(vps)
        match draw.choice("wwwsurc"):
            case "w":
                kernel.work(vp, draw.choice((1, MS, 12 * MS, 70 * MS)))
            case "s":
                kernel.stop(vp)
            case "u":
                kernel.suspend(vp)
            case "r":
                kernel.resume(vp)
            case _:
                kernel.change(vp, cap=draw.choice((WHOLE, WHOLE // 2, 100)))
        target = kernel.now + draw.randrange(15 * MS)
        while (wake := kernel.next_wake()) is not None and wake <= target:
            done = len(ear.events)
            if wake > kernel.now + 1:
                kernel.advance(wake - 1)
            assert not [it for it in ear.events[done:] if it[1] == "finished"]
            kernel.advance(wake)
            wakes += 1
        done = len(ear.events)
        kernel.advance(target)
        assert not [it for it in ear.events[done:] if it[1] == "finished"]
    assert wakes < 1000


def test_alone_there_are_no_events() -> None:
    """Processors with an LP each and no cap cause none: an hour is one step, and wakes are ends of work."""
    kernel = CpuKernel(4)
    busy(kernel, 100, 200, 300)
    last = kernel.add_vp(kernel.root, "last", id=9)
    kernel.work(last, 3600 * SECOND)
    kernel.advance(1)
    assert kernel.next_time() == kernel.next_wake() == 3600 * SECOND
    kernel.advance(1800 * SECOND)
    assert kernel.dispatches == 4
    late = busy(kernel, 300)
    kernel.advance(1801 * SECOND)
    assert ran(kernel, late)[0] > 500, "who has been alone has saved nothing up, and owes nothing"
    check(kernel)


def test_a_batch_processor_leaves_at_once() -> None:
    """It is preempted in the moment in which a normal one is ready, and goes on behind it."""
    kernel = CpuKernel(1)
    ear = listen(kernel)
    batch = kernel.add_vp(kernel.root, "batch", id=1, batch=True)
    vp = kernel.add_vp(kernel.root, "vp", id=2)
    kernel.work(batch, None)
    kernel.advance(3 * MS + 17)
    kernel.work(vp, MS)
    kernel.advance(10 * MS)
    assert ear.finished_at["vp"] == [4 * MS + 17]
    assert [it.reason for it in ear.stretches] == [Reason.PREEMPTED, Reason.BLOCKED, None]
    assert kernel.lp_times(0).batch == 9 * MS


def test_what_was_granted_and_not_used_is_paid_back() -> None:
    """Who gives its slice up after 1 ms of 10 and goes on at once has paid for 1: by shares, and of its budget."""
    kernel = CpuKernel(1)
    short, (whole,) = kernel.add_vp(kernel.root, "short", id=9), busy(kernel, 100)
    for step in range(400):
        kernel.stop(short)
        kernel.work(short, None)
        kernel.advance((step + 1) * MS)
    assert abs(kernel.times(short).run - kernel.times(whole).run) <= QUANTUM
    kernel = CpuKernel(1)
    (vp,) = busy(kernel, 100, cap=WHOLE // 2)
    for begin in (0, 4):
        kernel.advance(begin * MS)
        kernel.resume(vp)
        kernel.advance((begin + 2) * MS)
        kernel.suspend(vp)
    kernel.advance(7 * MS)
    kernel.resume(vp)
    kernel.advance(10 * MS)
    assert kernel.times(vp)[:4] == (5 * MS, 0, 2 * MS, 3 * MS)


def test_a_debt_and_what_was_used_stay() -> None:
    """Charged with four periods' budgets, it waits for four; and a new cap does not give a used budget again."""
    kernel = CpuKernel(1)
    (vp,) = busy(kernel, 100, cap=WHOLE // 4)
    kernel.advance(10 * MS)
    kernel.charge(vp, 10 * MS)
    kernel.advance(100 * MS)
    assert ran(kernel, [vp]) == [25]
    kernel.advance(106 * MS)
    kernel.change(vp, cap=WHOLE // 2)
    kernel.advance(110 * MS)
    assert ran(kernel, [vp]) == [30], "5 in that period, 2.5 of them before"


def test_a_groups_budget_ends_slices_of_all_in_it() -> None:
    """The reason is the cap, whose budget it ever was; and who waits for a group's budget counts as capped."""
    kernel = CpuKernel(2)
    group = kernel.add_group(kernel.root, "g", id=1, cap=WHOLE // 2)
    vps = busy(kernel, 100, 100, parent=group)
    ear = listen(kernel)
    kernel.advance(SECOND)
    assert {it.reason for it in ear.stretches[:-1]} == {Reason.CAPPED}
    assert all(kernel.times(vp).ready == 0 for vp in vps)
    assert kernel.times(group)[:3] == (500 * MS, 0, 1500 * MS)


def test_heaps_stay_small_where_many_are_served_out_of_turn() -> None:
    """A group whose processors are served for their reserves is entered anew each time; the old entries go."""
    kernel = CpuKernel(1)
    group = kernel.add_group(kernel.root, "g", id=1, shares=1)
    for vp in busy(kernel, 1, 1, 1, parent=group):
        kernel.change(vp, reserve=WHOLE // 10)
    busy(kernel, 10_000, prefix="heavy")
    kernel.advance(10 * SECOND)
    check(kernel)
    assert len(kernel.root.normal.heap) <= 40
