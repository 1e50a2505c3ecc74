"""The guest's page allocator."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.pages import PAGE_SIZE
from partitions.child.pages import FIRST_PAGE, PageAllocator


def memory(pages: int = 64) -> memoryview:
    return memoryview(bytearray((FIRST_PAGE + pages) * PAGE_SIZE))


def test_nothing_below_one_mebibyte_is_handed_out() -> None:
    """Firmware's low megabyte is left alone."""
    assert PageAllocator(memory()).allocate(1) == FIRST_PAGE == (1 << 20) // PAGE_SIZE


def test_too_little_memory_is_no_memory() -> None:
    """A guest of less than 1 MiB has no page at all, and says so in words."""
    pages = PageAllocator(memoryview(bytearray(4 * PAGE_SIZE)))
    with pytest.raises(MemoryError, match="0 of 0 are free"):
        pages.allocate(1)


def test_runs_are_first_fit_and_coalesce() -> None:
    """Neighbours that are free become one run again, in whichever order they come back."""
    pages = PageAllocator(memory(8))
    a, b, c = pages.allocate(2), pages.allocate(2), pages.allocate(2)
    pages.free(a, 2)
    pages.free(c, 2)
    assert pages.allocate(1) == a
    pages.free(a, 1)
    pages.free(b, 2)
    assert pages.allocate(8) == FIRST_PAGE


def test_used_pages_come_back_zeroed_and_fresh_ones_are_not_touched() -> None:
    """Fresh guest memory is zero, so only what was used before costs a clear."""
    raw = memory(4)
    pages = PageAllocator(raw)
    first = pages.allocate(2)
    raw[first * PAGE_SIZE : (first + 4) * PAGE_SIZE] = b"\xaa" * 4 * PAGE_SIZE
    pages.free(first, 2)
    again = pages.allocate(4)
    assert bytes(raw[again * PAGE_SIZE : (again + 2) * PAGE_SIZE]) == bytes(2 * PAGE_SIZE)
    assert raw[(again + 2) * PAGE_SIZE] == 0xAA, "a fresh page was cleared for nothing"


@pytest.mark.parametrize(("gpn", "count"), [(0, 1), (FIRST_PAGE, 0), (FIRST_PAGE - 1, 2), (FIRST_PAGE + 63, 2)])
def test_pages_that_are_not_ours_cannot_be_freed(gpn: int, count: int) -> None:
    """Low memory and what lies past the end never belonged to the allocator."""
    with pytest.raises(ValueError, match="not this allocator's"):
        PageAllocator(memory()).free(gpn, count)


def test_double_free_is_found_wherever_it_overlaps() -> None:
    """A page that is free already is a driver's bug, not a free page more."""
    pages = PageAllocator(memory(8))
    first = pages.allocate(8)
    pages.free(first + 2, 2)
    for start, count in ((first + 2, 2), (first + 1, 2), (first + 3, 2), (first, 8)):
        with pytest.raises(ValueError, match="freed twice"):
            pages.free(start, count)
    assert pages.free_pages == 2


def test_nothing_is_not_an_allocation() -> None:
    """Zero pages have no first page."""
    with pytest.raises(ValueError, match="0 pages"):
        PageAllocator(memory()).allocate(0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=60))
def test_pages_are_never_lost_nor_handed_out_twice(steps: list[tuple[bool, int]]) -> None:
    """Against a plain set of pages: whatever the order, the books balance."""
    pages = PageAllocator(memory(32))
    held: list[tuple[int, int]] = []
    for is_allocation, number in steps:
        if is_allocation:
            try:
                run = pages.allocate(number)
            except MemoryError:
                continue
            mine = set(range(run, run + number))
            assert all(mine.isdisjoint(range(start, start + count)) for start, count in held)
            assert mine <= set(range(FIRST_PAGE, FIRST_PAGE + 32))
            held.append((run, number))
        elif held:
            pages.free(*held.pop(number % len(held)))
        assert pages.free_pages == 32 - sum(count for _, count in held)
    for run, number in held:
        pages.free(run, number)
    assert pages.allocate(32) == FIRST_PAGE


def test_pages_that_the_kernel_does_not_write() -> None:
    """From the top, in what runs there are, at multiples where that is asked for; they do not count as written."""
    pages = PageAllocator(memory(700))
    start, end = FIRST_PAGE, FIRST_PAGE + 700
    assert pages.take_top(10) == (end - 10, 10)
    aligned = pages.take_aligned(64)
    assert aligned == (end - 10) // 64 * 64 - 64
    top = pages.take_top(1000)
    assert top == (aligned + 64, end - 10 - aligned - 64)
    assert pages.take_top(1000) == (start, aligned - start)
    assert pages.take_top(1) is None
    assert pages.take_aligned(64) is None
    assert pages.used_before == start
    pages.free(aligned, 64)
    assert pages.take_aligned(64) == aligned
    grown: list[int] = []
    pages.on_growth = grown.append
    pages.note_written(aligned + 64)
    pages.note_written(aligned)
    assert grown == [aligned + 64]
    assert pages.used_before == aligned + 64
