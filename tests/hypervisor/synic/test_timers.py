"""Synthetic timers as a pure machine: every register rule, and when a timer expires."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.synic.timer_registers import CONFIG_BITS, TimerConfig, direct_timer, message_timer
from hypervisor.synic.timers import CATCH_UP, LEAST_GAP, BadTimer, SyntheticTimers

ENABLE, PERIODIC, LAZY, AUTO = TimerConfig.ENABLE, TimerConfig.PERIODIC, TimerConfig.LAZY, TimerConfig.AUTO_ENABLE
VECTOR = 0x40
ONE_SHOT = direct_timer(VECTOR, auto_enable=True)
TICKING = direct_timer(VECTOR, periodic=True, auto_enable=True)
MS = 10_000


def started(config: int, count: int, now: int = 0) -> SyntheticTimers:
    """Timer 0, by configuration and then count, as Linux does not and everybody may."""
    timers = SyntheticTimers()
    timers.timers[0].write_config(config, now)
    timers.timers[0].write_count(count, now)
    return timers


def dues(timers: SyntheticTimers, now: int) -> list[int]:
    return [expired.due for expired in timers.expire(now)]


def test_a_one_shot_expires_once_and_not_before_its_time() -> None:
    """Its count is the reference time of expiration; then its enable bit clears and its count stays."""
    timers = started(ONE_SHOT, 5000)
    assert timers.deadline() == 5000
    assert dues(timers, 4999) == []
    (expired,) = timers.expire(5100)
    assert (expired.index, expired.due, expired.vector) == (0, 5000, VECTOR)
    assert not timers.timers[0].config & ENABLE
    assert timers.timers[0].count == 5000
    assert timers.deadline() is None
    assert dues(timers, 1 << 40) == []


def test_a_one_shot_in_the_past_expires_at_once() -> None:
    assert dues(started(ONE_SHOT, 1, now=9000), 9000) == [1]


def test_a_count_of_all_ones_is_a_time_that_does_not_come() -> None:
    """One-shot and periodic: counts may be as large as they are, and nothing wraps into the past."""
    for config in (ONE_SHOT, TICKING):
        timers = started(config, (1 << 64) - 1, now=77)
        assert dues(timers, 1 << 63) == []


def test_the_first_period_begins_when_the_timer_is_enabled() -> None:
    timers = SyntheticTimers()
    timers.timers[2].write_count(30_000, 0)
    timers.timers[2].write_config(direct_timer(VECTOR, periodic=True) | ENABLE, 1_000_000)
    assert timers.deadline() == 1_030_000
    assert [(one.index, one.due) for one in timers.expire(1_030_005)] == [(2, 1_030_000)]
    assert timers.deadline() == 1_060_000
    assert timers.timers[2].config & ENABLE, "periodic timers stay enabled"


def test_a_count_of_zero_disables_whatever_auto_enable_says() -> None:
    timers = started(TICKING, 30_000)
    timers.timers[0].write_count(0, 10)
    assert not timers.timers[0].config & ENABLE
    assert timers.deadline() is None


def test_enabling_without_a_count_leaves_the_timer_disabled() -> None:
    timers = SyntheticTimers()
    timers.timers[0].write_config(direct_timer(VECTOR) | ENABLE, 500)
    assert timers.timers[0].config == direct_timer(VECTOR)
    assert timers.deadline() is None


def test_a_count_enables_only_with_auto_enable() -> None:
    timers = started(direct_timer(VECTOR), 5000)
    assert timers.deadline() is None
    timers.timers[0].write_config(direct_timer(VECTOR) | ENABLE, 0)
    assert timers.deadline() == 5000


@pytest.mark.parametrize("flags", [0, PERIODIC, AUTO])
def test_sint_zero_disables_at_once_unless_direct(flags: int) -> None:
    """SINT0 is the hypervisor's; a timer that would send messages there reads as disabled."""
    timers = started(message_timer(2) | flags, 5000)
    timers.timers[0].write_config(flags | ENABLE, 0)
    assert timers.timers[0].config == flags
    timers.timers[0].write_count(6000, 0)
    assert timers.timers[0].config == flags
    assert timers.deadline() is None
    timers.timers[0].write_config(direct_timer(VECTOR) | ENABLE, 0)
    assert timers.deadline() == 6000


@pytest.mark.parametrize(
    "value", [1 << 13, 1 << 15, 1 << 20, 1 << 63, TimerConfig.DIRECT, direct_timer(15), direct_timer(15) | ENABLE]
)
def test_reserved_bits_and_vectors_of_the_processor_are_refused(value: int) -> None:
    timers = started(TICKING, 30_000)
    with pytest.raises(BadTimer):
        timers.timers[0].write_config(value, 0)
    assert timers.timers[0].config == TICKING | ENABLE
    assert timers.deadline() == 30_000


def test_a_message_timer_waits_for_its_buffer() -> None:
    """It has one; what is due while that is in use comes when it is free, and is late by then."""
    timers = started(message_timer(4, periodic=True, auto_enable=True), 10 * MS)
    (expired,) = timers.expire(10 * MS)
    assert (expired.vector, expired.sint, expired.due) == (None, 4, 10 * MS)
    assert timers.deadline() is None
    assert timers.expire(25 * MS) == []
    timers.timers[0].waits = False
    assert timers.deadline() == 20 * MS
    assert dues(timers, 25 * MS) == [20 * MS]


def test_a_rearmed_one_shot_waits_for_its_buffer_too() -> None:
    timers = started(message_timer(4, auto_enable=True), 100)
    assert dues(timers, 100) == [100]
    timers.timers[0].write_count(200, 150)
    assert dues(timers, 300) == []
    timers.timers[0].waits = False
    assert dues(timers, 300) == [200]


def test_missed_ticks_are_made_up_for_by_half_periods() -> None:
    """Each keeps the time at which it was due; in the end the old rhythm goes on."""
    timers = started(TICKING, 10 * MS)
    now, seen = 45 * MS, []
    while len(seen) < 9:
        seen += [(now, due) for due in dues(timers, now)]
        deadline = timers.deadline()
        assert deadline is not None
        now = deadline
        assert not timers.expire(now - 1)
    assert [at // MS for at, _ in seen] == [45, 50, 55, 60, 65, 70, 75, 80, 90]
    assert [due // MS for _, due in seen] == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert timers.skipped == 0


def test_too_many_missed_ticks_are_skipped() -> None:
    period = 10 * MS
    timers = started(TICKING, period)
    late = period * (CATCH_UP + 2) + 3
    assert dues(timers, late) == [period]
    assert timers.skipped == CATCH_UP + 1
    assert timers.deadline() == period * (CATCH_UP + 3)


def test_a_lazy_timer_gives_one_tick_for_all_it_missed() -> None:
    timers = started(TICKING | LAZY, 10 * MS)
    assert dues(timers, 45 * MS) == [10 * MS]
    assert timers.deadline() == 50 * MS
    assert timers.skipped == 3


def test_a_lazy_timer_skips_all_of_it_when_the_next_is_near() -> None:
    timers = started(TICKING | LAZY, 8 * MS)
    assert dues(timers, 31 * MS + 1) == []
    assert timers.deadline() == 32 * MS
    assert timers.skipped == 3
    assert dues(timers, 32 * MS) == [32 * MS]


def test_a_storm_is_one_signal_in_each_least_gap() -> None:
    """A period of 100 ns, looked at as often as it asks for."""
    timers = started(TICKING, 1)
    now, signals = 0, 0
    while now < 1_000 * MS:
        signals += len(timers.expire(now))
        deadline = timers.deadline()
        assert deadline is not None
        assert deadline > now
        now = deadline
    assert signals <= 1_000 * MS // LEAST_GAP + 1


def test_reset() -> None:
    timers = started(TICKING, 10 * MS)
    timers.reset()
    assert timers.deadline() is None
    assert (timers.timers[0].config, timers.timers[0].count) == (0, 0)


writes = st.tuples(
    st.sampled_from(["config", "count", "time", "taken"]),
    st.integers(0, 3),
    st.one_of(
        st.integers(0, CONFIG_BITS),
        st.integers(0, (1 << 64) - 1),
        st.builds(direct_timer, st.integers(16, 255), periodic=st.booleans(), lazy=st.booleans()).map(lambda c: c | 1),
        st.integers(0, 100 * MS),
    ),
)


@given(st.lists(writes, max_size=60))
def test_any_guest_at_any_time(moves: list[tuple[str, int, int]]) -> None:
    """Never early; each looks once and moves on; what is disabled is silent; a buffer in use is not used again."""
    timers = SyntheticTimers()
    now = 0
    for what, index, value in moves:
        timer = timers.timers[index]
        match what:
            case "config":
                try:
                    timer.write_config(value, now)
                except BadTimer:
                    continue
            case "count":
                timer.write_count(value, now)
            case "taken":
                timer.waits = False
            case _:
                now += value % (1 << 20)
        waiting = [one.waits for one in timers.timers]
        for expired in timers.expire(now):
            assert expired.due <= now
            assert not waiting[expired.index]
            assert timers.timers[expired.index].waits == (expired.vector is None)
        again = timers.deadline()
        assert again is None or again > now
        for one in timers.timers:
            assert (one.due is not None) == bool(one.config & ENABLE)
            assert not one.config & ENABLE or one.count
