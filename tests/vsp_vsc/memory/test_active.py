"""The estimate of what a guest uses of its memory: draws, averages, and the case that its inventor measured."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsp_vsc.memory.active import SAMPLE, WHOLE, ActiveMemory, draw
from vsp_vsc.memory.protocol import Pages
from vsp_vsc.memory.ranges import PageSet

MIB = 256
"""Pages."""


def percent(estimate: ActiveMemory) -> float:
    """Of all memory."""
    assert estimate.part is not None
    return 100 * estimate.part / WHOLE


class Toucher:
    """A guest of so many MiB, of which it goes through the same ones again and again, in a period of each."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.memory = PageSet(Pages(0, size * MIB))
        self.estimate = ActiveMemory(Random(seed))
        self.estimate.next_period(self.memory)

    def period(self, used: int, background: int = 0) -> float:
        """MiB that it is taken to use at the end of a period; the background's are somewhere else."""
        self.estimate.touched(0, used * MIB)
        self.estimate.touched((self.size - background) * MIB, background * MIB)
        self.estimate.next_period(self.memory)
        return percent(self.estimate) * self.size / 100


@pytest.mark.parametrize("size", [256, 320, 1024])
@pytest.mark.parametrize("seed", range(4))
def test_m2_a_toucher_in_a_vm(seed: int, size: int) -> None:
    """M2 (Waldspurger 2002, fig. 6): 50 to 250 MB are touched on a background of 10 to 20. The estimate rises within
    two samples most of the way, falls more slowly, and is within 10 % of the memory in the end.
    """
    guest, chance = Toucher(size, seed), Random(f"background {seed}")
    error = size / 10
    for _ in range(3):
        last = guest.period(50, 15)
    for used in (100, 150, 200, 250):
        background = chance.randrange(10, 21)
        true = min(used + background, size)
        rises = [guest.period(used, background) for _ in range(8)]
        assert rises[1] >= last + 0.8 * (true - last) - error / 2
        assert abs(rises[-1] - true) <= error
        last = rises[-1]
    for used in (150, 50):
        true = used + 15
        falls = [guest.period(used, 15) for _ in range(9)]
        assert falls[1] > last - 0.7 * (last - true), "slower than it rose"
        assert abs(falls[-1] - true) <= error
        last = falls[-1]


def test_what_is_under_way_counts() -> None:
    """More is known before its period has ended; less is not."""
    guest = Toucher(256, 1)
    guest.period(64)
    assert abs(percent(guest.estimate) - 25) <= 2
    guest.estimate.touched(0, 192 * MIB)
    assert percent(guest.estimate) >= 25 + 0.7 * 50 - 2
    guest.period(192)
    before = percent(guest.estimate)
    guest.estimate.touched(0, MIB)
    assert percent(guest.estimate) == before


def test_nothing_is_known_before_a_period_has_ended() -> None:
    """And then it is what was seen: no average has begun at nothing."""
    guest = Toucher(100, 7)
    guest.estimate.touched(0, 50 * MIB)
    assert guest.estimate.part is None
    assert guest.estimate.pages(1000) is None
    guest.estimate.next_period(guest.memory)
    assert abs(percent(guest.estimate) - 50) <= 1
    assert guest.estimate.pages(1000) in range(490, 511)


RUNS = st.lists(st.tuples(st.integers(1, 500), st.integers(1, 3000)), max_size=5)


def memory_of(runs: list[tuple[int, int]]) -> PageSet:
    """Runs with gaps before them."""
    memory, at = PageSet(), 0
    for gap, count in runs:
        memory.add(Pages(at + gap, count))
        at += gap + count
    return memory


@given(RUNS, st.integers(0, 1 << 64))
def test_a_sample_is_of_the_memory(runs: list[tuple[int, int]], seed: int) -> None:
    """One page out of each hundredth, in order, none that is not there; what there is does not change the draws."""
    memory, chance = memory_of(runs), Random(seed)
    drawn = draw(memory, chance)
    assert len(drawn) == (SAMPLE if memory.total else 0)
    assert drawn == sorted(drawn)
    places = [page for run in memory for page in range(run.first, run.end)]
    for at, page in enumerate(drawn):
        place = places.index(page)
        assert at * memory.total // SAMPLE <= place <= ((at + 1) * memory.total - 1) // SAMPLE
    other = Random(seed)
    draw(PageSet(Pages(5, 77)), other)
    assert other.random() == chance.random()


def test_every_page_has_the_same_chance() -> None:
    """Of 1000 drawings out of 1000 pages each page is in about 100."""
    chance, seen = Random(3), [0] * 1000
    for _ in range(1000):
        for page in draw(PageSet(Pages(0, 1000)), chance):
            seen[page] += 1
    assert 60 < min(seen) <= max(seen) < 140


STEPS = st.lists(
    st.one_of(
        st.tuples(st.integers(-(1 << 65), 1 << 65), st.integers(-(1 << 65), 1 << 65)),
        st.tuples(st.integers(0, 3000), st.integers(0, 3000)),
        st.none(),
    ),
    max_size=30,
)


@given(RUNS, STEPS, st.integers(0, 9))
def test_a_part_is_a_part(runs: list[tuple[int, int]], steps: list[tuple[int, int] | None], seed: int) -> None:
    """From nothing to all, whatever a guest says; touching more never makes it less; the same again gives the same."""
    memory = memory_of(runs)
    one, two = ActiveMemory(Random(seed)), ActiveMemory(Random(seed))
    for step in steps:
        for estimate in (one, two):
            if step is None:
                estimate.next_period(memory)
            else:
                before = estimate.part
                estimate.touched(*step)
                assert before is None or (estimate.part or 0) >= before
        assert one.part == two.part
        assert one.part is None or 0 <= one.part <= WHOLE


@given(st.lists(st.integers(0, 256), min_size=1, max_size=12), st.integers(0, 99))
def test_it_stays_between_what_was_seen(touched: list[int], seed: int) -> None:
    """I7 of sorts: no more than the most that was ever seen, no less than the least, and all of it if it is always."""
    guest = Toucher(256, seed)
    for used in touched:
        guest.period(used)
    assert min(touched) - 3 <= percent(guest.estimate) * 2.56 <= max(touched) + 3


def test_i15_it_is_the_same_everywhere() -> None:
    """No hash of Python's is in it, which is another in each run, and no rounding of a processor's."""
    estimate, found = ActiveMemory(Random("active memory of web")), []
    for used in (0, 10, 200, 50):
        estimate.touched(0, used)
        estimate.next_period(PageSet(Pages(0, 300)))
        found.append((estimate.part, estimate._pages[:4]))
    assert found == [(None, [1, 5, 7, 11]), (31457, [0, 4, 7, 9]), (534773, [1, 4, 8, 11]), (259522, [2, 5, 8, 10])]
