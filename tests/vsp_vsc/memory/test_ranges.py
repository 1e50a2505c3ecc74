"""Sets of pages as runs."""

from __future__ import annotations

import struct
from contextlib import suppress
from itertools import pairwise
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsp_vsc.memory import ranges
from vsp_vsc.memory.protocol import Pages
from vsp_vsc.memory.ranges import PageSet

RUNS = st.lists(st.tuples(st.booleans(), st.integers(0, 24), st.integers(1, 8)), max_size=30)


@given(RUNS)
def test_runs_are_a_set_of_pages(steps: list[tuple[bool, int, int]]) -> None:
    """What is added is in, what is removed is out; pages that are in twice, or not in, are refused and change nothing.

    Runs never touch, so a long one that was made of pieces is one again.
    """
    with patch.object(ranges, "_MOST", 3):  # so that there are several pieces
        _try_as_a_set(steps)


def _try_as_a_set(steps: list[tuple[bool, int, int]]) -> None:
    runs, pages = PageSet(), set[int]()
    for adds, first, count in steps:
        run, wanted = Pages(first, count), set(range(first, first + count))
        assert runs.meets(run) == bool(pages & wanted)
        assert runs.covers(run) == (wanted <= pages)
        with suppress(ValueError):
            if adds:
                runs.add(run)
                assert not pages & wanted
                pages |= wanted
            else:
                runs.remove(run)
                assert wanted <= pages
                pages -= wanted
        listed = list(runs)
        assert [page for run in listed for page in range(run.first, run.end)] == sorted(pages)
        assert all(one.end < other.first for one, other in pairwise(listed))
        assert runs.total == len(pages)
        assert len(runs) == len(listed)
        assert list(runs.runs_from(first)) == [run for run in listed if run.first >= first]


def test_a_guest_of_single_pages_does_not_make_each_change_dearer() -> None:
    """Each second page in the balloon: a change moves the runs of one piece, however many runs there are."""
    runs = PageSet()
    for page in range(0, 20_000, 2):
        runs.add(Pages(page, 1))
    for page in range(0, 20_000, 4):
        runs.remove(Pages(page, 1))
    for page in range(1, 20_000, 16):
        runs.add(Pages(page, 1))
    assert max(len(starts) for starts, _ in runs._pieces) <= 1024
    assert (len(runs), runs.total) == (5000, 6250)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 6))
def test_taking_is_from_below_in_bounded_runs(count: int, longest: int, most: int) -> None:
    """No more than asked for, no run too long, not too many of them; what is taken is out."""
    runs = PageSet(Pages(10, 20), Pages(40, 5))
    taken = runs.take(count, longest=longest, most=most)
    assert len(taken) <= most
    assert all(run.count <= longest for run in taken)
    assert sum(run.count for run in taken) + runs.total == 25
    assert sum(run.count for run in taken) <= count
    assert taken[0].first == 10


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=40))
def test_what_is_kept_comes_back(runs: list[tuple[int, int]]) -> None:
    """The same runs, and a set that goes on as the one before; of pages that there are."""
    pages, at = PageSet(), 0
    for gap, count in runs:
        pages.add(Pages(at + gap, count))
        at += gap + count
    again = PageSet.unpacked(pages.packed(), at)
    assert (list(again), len(again), again.total) == (list(pages), len(pages), pages.total)
    for run in list(pages):
        again.remove(run)
    assert not again.total
    if at:
        with pytest.raises(ValueError, match="cannot be"):
            PageSet.unpacked(pages.packed(), at - 1)


@pytest.mark.parametrize("numbers", [(1,), (2, 1), (1, 1), (1, 2, 2, 3), (1, 3, 2, 4)])
def test_what_cannot_have_been_kept(numbers: tuple[int, ...]) -> None:
    """Half a run, none, one that goes backwards, two that touch, two that meet."""
    with pytest.raises(ValueError, match="cannot be"):
        PageSet.unpacked(struct.pack(f"<{len(numbers)}Q", *numbers), 100)
    with pytest.raises(ValueError, match="multiple"):
        PageSet.unpacked(bytes(17), 100)


def test_many_runs_are_kept_in_no_time() -> None:
    """They lie in pieces, as they did; one that is in another set is found by its pieces."""
    pages = PageSet.unpacked(struct.pack("<20000Q", *range(20_000)), 20_000)
    assert (len(pages), pages.total) == (10_000, 10_000)
    assert max(len(starts) for starts, _ in pages._pieces) == 1024
    assert pages.within(PageSet(Pages(0, 20_000)))
    assert not pages.within(PageSet(Pages(0, 19_998)))
    assert pages.within(PageSet(*pages))
    assert PageSet().within(PageSet())
