"""One direction of a cable, frame by frame. Frames are told apart by their first four bytes."""

from __future__ import annotations

import itertools
import math
import random

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsp_vsc.network.shaping.link import Fate, Link
from vsp_vsc.network.shaping.settings import CERTAIN, LinkSettings, chance

MS = 1_000_000
SECOND = 1_000_000_000

Trace = list[tuple[int, int, bytes]]
"""Arrival, number, frame."""


class Counted(random.Random):
    """Counts what it is asked for."""

    drawn = 0

    def getrandbits(self, k: int, /) -> int:
        """One number."""
        self.drawn += 1
        return super().getrandbits(k)


def frame(number: int, size: int = 1500) -> bytes:
    """One that can be told apart."""
    return number.to_bytes(4, "big").ljust(size, b"x")


def run(settings: LinkSettings, sent: list[tuple[int, int]], seed: int = 1) -> tuple[Trace, list[Fate]]:
    """Send frames at these times and of these sizes; what arrives when, and what became of each."""
    link = Link(settings, random.Random(seed))
    fates, arrived = [], Trace()

    def arrive(until: int) -> None:
        while (when := link.next_time) is not None and when <= until:
            arrived.extend((when, int.from_bytes(one[:4], "big"), one) for one in link.arrivals(when))

    for number, (now, size) in enumerate(sent):
        arrive(now)
        fates.append(link.send(now, frame(number, size)))
    arrive(1 << 62)
    return arrived, fates


def steady(count: int, gap: int = MS, size: int = 1500) -> list[tuple[int, int]]:
    """One after the other."""
    return [(number * gap, size) for number in range(count)]


def test_nothing_set_is_a_perfect_cable() -> None:
    """Everything arrives when it was sent."""
    arrived, fates = run(LinkSettings(), steady(5))
    assert [when for when, _, _ in arrived] == [0, MS, 2 * MS, 3 * MS, 4 * MS]
    assert set(fates) == {Fate.ARRIVES}


def test_rate_and_delay() -> None:
    """depart = max(prev depart, now) + size/rate; arrive = depart + delay."""
    arrived, _ = run(LinkSettings(rate=8_000_000, delay=50 * MS), [(0, 1500), (0, 1500), (10 * MS, 500)])
    assert [when for when, _, _ in arrived] == [51_500_000, 53_000_000, 60_500_000]


sending = st.lists(st.tuples(st.integers(0, 3 * MS), st.integers(64, 9000)), min_size=1, max_size=60)
chances = st.sampled_from([0, 0, CERTAIN // 10, CERTAIN // 2])
cables = st.builds(
    LinkSettings,
    rate=st.sampled_from([0, 1_000_000, 10**9]),
    delay=st.integers(0, 100 * MS),
    jitter=st.integers(0, 50 * MS),
    loss=chances,
    to_bad=chances,
    to_good=st.just(CERTAIN // 3),
    duplicate=chances,
    reorder=chances,
    gap=st.integers(1, 5),
    corrupt=chances,
    limit=st.sampled_from([3, 1000]),
)


def at_times(sent: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Gaps as times."""
    now, times = 0, []
    for gap, size in sent:
        now += gap
        times.append((now, size))
    return times


@given(settings=cables, sent=sending, seed=st.integers(0, 1000))
def test_i14_order_is_kept_and_nothing_is_early(settings: LinkSettings, sent: list[tuple[int, int]], seed: int) -> None:
    """I14: order kept unless there is reorder; latency >= delay + size/rate, but for those that overtake."""
    settings = attrs.evolve(settings, reorder=0)
    times = at_times(sent)
    arrived, fates = run(attrs.evolve(settings, corrupt=0), times, seed)
    numbers = [number for _, number, _ in arrived]
    assert numbers == sorted(numbers)
    for when, number, _ in arrived:
        now, size = times[number]
        assert (when - now - settings.delay) * settings.rate >= 8 * size * SECOND * bool(settings.rate)
        assert when >= now + settings.delay
    assert set(numbers) == {number for number, fate in enumerate(fates) if fate is Fate.ARRIVES}


@given(settings=cables, sent=sending, seed=st.integers(0, 1000))
def test_i14_the_same_seed_gives_the_same_trace(settings: LinkSettings, sent: list[tuple[int, int]], seed: int) -> None:
    """I14: to the last bit."""
    assert run(settings, at_times(sent), seed) == run(settings, at_times(sent), seed)


@given(settings=cables, sent=sending)
def test_i14_three_numbers_a_frame(settings: LinkSettings, sent: list[tuple[int, int]]) -> None:
    """I14: exactly three, whatever is switched on and whatever becomes of it."""
    numbers = Counted(1)
    link = Link(settings, numbers)
    for now, size in at_times(sent):
        link.send(now, bytes(size))
    assert numbers.drawn == 3 * len(sent)


@pytest.mark.parametrize(
    "off", ["loss", "jitter", "duplicate", "corrupt", "delay", "rate", "reorder", "to_bad"], ids=str
)
def test_i14_what_is_switched_off_leaves_the_others_draws(off: str) -> None:
    """I14: loss, jitter, duplicates and broken bits fall on the same frames, in the same measure."""
    full = LinkSettings(
        delay=5 * MS,
        jitter=3 * MS,
        loss=chance(20),
        duplicate=chance(20),
        corrupt=chance(20),
        reorder=chance(20),
        rate=10**9,
        to_good=chance(50),
    )
    less = attrs.evolve(full, **{off: CERTAIN // 9 if off == "to_bad" else 0})
    sent = steady(300, 20 * MS)

    def effects(settings: LinkSettings) -> dict[str, dict[int, object]]:
        arrived, fates = run(settings, sent)
        found: dict[str, dict[int, object]] = {"lost": dict(enumerate(fates)), "late": {}, "twice": {}, "broken": {}}
        times = [number for _, number, _ in arrived]
        for when, number, one in arrived:
            found["twice"][number] = times.count(number)
            found["broken"][number] = one
            found["late"][number] = when - sent[number][0]
        return found

    one, other = effects(full), effects(less)
    spoiled = {
        "loss": {"lost"},
        "to_bad": {"lost"},
        "jitter": {"late"},
        "delay": {"late"},
        "rate": {"late"},
        "reorder": {"late"},
        "duplicate": {"twice"},
        "corrupt": {"broken"},
    }[off]
    for effect in one.keys() - spoiled:
        both = one[effect].keys() & other[effect].keys()
        assert len(both) > 150
        assert all(one[effect][number] == other[effect][number] for number in both), effect


@pytest.mark.parametrize("percent", [0.5, 5, 50])
def test_i14_loss_is_within_three_sigma(percent: float) -> None:
    """I14: of 20,000 frames."""
    count, share = 20_000, percent / 100
    _, fates = run(LinkSettings(loss=chance(percent)), steady(count, size=64))
    lost = fates.count(Fate.LOST)
    assert abs(lost - count * share) <= 3 * math.sqrt(count * share * (1 - share))


def test_loss_in_bursts() -> None:
    """Gilbert and Elliott: p/(p+r) of all frames, in bursts of 1/r frames each."""
    count = 40_000
    settings = LinkSettings(to_bad=chance(1), to_good=chance(20))
    _, fates = run(settings, steady(count, size=64))
    lost = fates.count(Fate.LOST)
    bursts = sum(1 for one, two in itertools.pairwise(fates) if one is not Fate.LOST and two is Fate.LOST)
    assert lost / count == pytest.approx(1 / 21, rel=0.12)
    assert lost / bursts == pytest.approx(5, rel=0.12)


@pytest.mark.parametrize("percent", [0, 100])
def test_never_and_always(percent: int) -> None:
    """Nothing in between."""
    _, fates = run(LinkSettings(loss=chance(percent)), steady(1000))
    assert set(fates) == {Fate.LOST if percent else Fate.ARRIVES}


def test_jitter_is_spread_over_all_of_its_range() -> None:
    """From `delay` up to `delay + jitter`, both included in the limit, when frames do not meet."""
    arrived, _ = run(LinkSettings(delay=10 * MS, jitter=4 * MS), steady(2000, 20 * MS))
    late = [when - number * 20 * MS for when, number, _ in arrived]
    assert 10 * MS <= min(late) < 10 * MS + MS // 10
    assert 14 * MS - MS // 10 < max(late) <= 14 * MS
    assert sum(late) / len(late) == pytest.approx(12 * MS, rel=0.01)


def test_a_gap_overtakes() -> None:
    """tc-netem's gap: each fifth frame goes without delay, the others with it."""
    arrived, _ = run(LinkSettings(delay=10 * MS, reorder=CERTAIN, gap=5), steady(20))
    at_once = sorted(number for when, number, _ in arrived if when == number * MS)
    assert at_once == [4, 9, 14, 19]


def test_a_broken_frame_has_one_bit_other() -> None:
    """And the same length."""
    arrived, _ = run(LinkSettings(corrupt=CERTAIN), steady(50))
    for (_, _, got), number in zip(arrived, range(50), strict=True):
        wrong = int.from_bytes(got, "big") ^ int.from_bytes(frame(number), "big")
        assert wrong.bit_count() == 1
        assert len(got) == 1500


def test_a_full_cable_drops_what_comes_on_top() -> None:
    """Drop tail, counted; there is room again once something has arrived."""
    link = Link(LinkSettings(delay=10 * MS, limit=3), random.Random(1))
    assert [link.send(0, b"x") for _ in range(5)] == [Fate.ARRIVES] * 3 + [Fate.FULL] * 2
    assert link.full == 2
    assert len(link.arrivals(10 * MS)) == 3
    assert link.send(10 * MS, b"x") is Fate.ARRIVES


def test_a_change_holds_for_what_comes_after() -> None:
    """And a shorter cable lets nobody overtake those on the long one."""
    link = Link(LinkSettings(delay=50 * MS), random.Random(1))
    link.send(0, b"slow")
    link.settings = LinkSettings()
    link.send(MS, b"fast")
    assert link.arrivals(49 * MS) == []
    assert link.arrivals(50 * MS) == [b"slow", b"fast"]


def test_a_cable_that_is_pulled_out_loses_what_is_on_it() -> None:
    """And is as new afterwards."""
    link = Link(LinkSettings(delay=50 * MS, rate=1_000_000), random.Random(1))
    for _ in range(3):
        link.send(0, bytes(1500))
    assert link.cut() == 3
    assert link.next_time is None
    link.send(MS, bytes(125))
    assert link.next_time == 52 * MS
