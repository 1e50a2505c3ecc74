"""Lateness as numbers: what is counted, when time stands, and where it goes on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hypervisor.clock import NS_PER_TICK
from hypervisor.scheduler.lateness import LAG, LATE, TURNS, Lateness, whole_tick

TIMES = st.integers(0, 10 * LAG)


def test_the_worst_is_kept_and_what_is_late_is_counted() -> None:
    """Who wakes early, or in time, is none of it."""
    lateness = Lateness()
    for late in (-5, 0, LATE - 1):
        lateness.woken(late)
    assert (lateness.worst, lateness.wakes) == (LATE - 1, 0)
    for late in (3 * LATE, LATE):
        lateness.woken(late)
    assert (lateness.worst, lateness.wakes) == (3 * LATE, 2)


def test_time_stands_for_some_turns() -> None:
    """As long again whenever somebody else is told late; and not for somebody who is too far behind."""
    lateness = Lateness()
    assert lateness.stands(5, 5)
    assert not lateness.stands(5, 6)
    assert lateness.stand()
    assert not lateness.turn_over()
    assert not lateness.stand(), "it does already"
    assert [lateness.turn_over() for _ in range(TURNS)] == [False] * (TURNS - 1) + [True]
    lateness.stand()
    assert lateness.stands(5, 5 + LAG)
    assert not lateness.stands(5, 6 + LAG)


@given(TIMES, st.none() | TIMES, TIMES, st.booleans())
def test_time_goes_to_the_next_end_or_to_now(at: int, wake: int | None, later: int, standing: bool) -> None:
    """Always on, never past the clock, never past an end of work by less than the lag; what is let go is counted."""
    now = at + later + 1
    lateness = Lateness(turns=TURNS * standing)
    to = lateness.goes_to(at, wake, now)
    assert at < to <= now
    if wake is None or wake >= now:
        assert to == now
    else:
        end = max(whole_tick(wake), at + NS_PER_TICK)
        assert to == (min(end, now) if now <= end + LAG else now)
    overdue = wake is not None and now > max(whole_tick(wake), at + NS_PER_TICK) + LAG
    assert (lateness.let_go > 0) is (overdue or (standing and later + 1 > LAG))
