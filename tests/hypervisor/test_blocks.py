"""Blocks of huge pages: memory with one address, of which pages move to where they can have two."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor import blocks
from hypervisor.blocks import HUGE_PAGE, MemoryBlock
from hypervisor.memory import GuestMemory
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE, Access

PAGES = 12


def make(pages: int = PAGES) -> tuple[GuestMemory, MemoryBlock]:
    memory = GuestMemory()
    block = MemoryBlock.allocate(pages << PAGE_SHIFT, "test", huge_pages=True)
    memory.map_block(0, block, 0, pages, Access.ALL)
    return memory, block


@pytest.fixture(autouse=True)
def pieces_come_back() -> Iterator[None]:
    """Whatever a test does, no piece stays counted when its blocks are gone."""
    gc.collect()
    before = blocks._stitched_pieces
    yield
    gc.collect()
    assert blocks._stitched_pieces == before


def test_huge_pages_lie_where_the_host_can_have_them() -> None:
    """Its address is a multiple of 2 MiB, and it costs no descriptor."""
    before = len(os.listdir("/proc/self/fd"))
    block = MemoryBlock.allocate(PAGES << PAGE_SHIFT, "test", huge_pages=True)
    assert ctypes.addressof(ctypes.c_char.from_buffer(block.view)) % HUGE_PAGE == 0
    assert len(block.view) == PAGES << PAGE_SHIFT
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_page_that_moves_keeps_its_bytes_and_its_place() -> None:
    """What was written is in the flat view; what either side writes from then on the other sees."""
    memory, block = make()
    early = memory.view(5 << PAGE_SHIFT, PAGE_SIZE)
    early[:4] = b"ring"
    flat = memory.flat([5, 2], Access.READ_WRITE)
    assert bytes(flat[:4]) == b"ring"
    flat[1] = 0xEE
    assert early[1] == 0xEE
    memory.write(2 << PAGE_SHIFT, b"later")
    assert bytes(flat[PAGE_SIZE : PAGE_SIZE + 5]) == b"later"
    again = memory.flat([2, 5], Access.READ_WRITE)
    again[PAGE_SIZE] = 0x11
    assert flat[0] == early[0] == block.view[5 << PAGE_SHIFT] == 0x11


def test_its_descriptor_goes_with_the_block() -> None:
    before = len(os.listdir("/proc/self/fd"))
    memory, block = make()
    flat = memory.flat([3, 1], Access.READ_WRITE)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    block.close()
    block.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert flat[0] == 0, "a view outlives the block"


def test_a_reset_zeroes_what_has_moved_and_what_has_not() -> None:
    memory, _ = make()
    flat = memory.flat([3, 1], Access.READ_WRITE)
    memory.write(0, b"\xff" * (PAGES << PAGE_SHIFT))
    assert flat[0] == 0xFF
    memory.clear()
    assert not any(memory.read(0, PAGES << PAGE_SHIFT))
    assert not any(flat)


def test_pages_that_move_count_against_the_hosts_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest chooses how scattered its rings are; it must not use up what the whole process lives on."""
    memory, _ = make()
    monkeypatch.setattr(blocks, "MAX_STITCHED_PIECES", blocks._stitched_pieces + 4)
    with pytest.raises(MemoryError, match="limit"):
        memory.flat([9, 7, 5, 3, 1], Access.READ_WRITE)
    memory.write(9 << PAGE_SHIFT, b"goes on")
    assert memory.read(9 << PAGE_SHIFT, 7) == b"goes on"


Move = st.tuples(st.just("flat"), st.lists(st.integers(0, PAGES - 1), min_size=1, max_size=4))
Write = st.tuples(st.just("write"), st.tuples(st.integers(0, (PAGES << PAGE_SHIFT) - 8), st.binary(max_size=8)))
Clear = st.tuples(st.just("clear"), st.none())


@given(st.lists(st.one_of(Move, Write, Clear), max_size=20))
def test_it_is_memory_like_any_other(steps: list[tuple[str, object]]) -> None:
    """Any order of writes, stitched views and resets leaves the bytes that plain memory would hold, everywhere."""
    memory, _ = make()
    model = bytearray(PAGES << PAGE_SHIFT)
    views: list[tuple[list[int], memoryview]] = []
    for kind, what in steps:
        if kind == "flat":
            assert isinstance(what, list)
            views.append((what, memory.flat(what, Access.READ_WRITE)))
        elif kind == "write":
            assert isinstance(what, tuple)
            at, data = what
            memory.write(at, data)
            model[at : at + len(data)] = data
        else:
            memory.clear()
            model = bytearray(PAGES << PAGE_SHIFT)
        assert memory.read(0, len(model)) == model
        for pages, view in views:
            assert bytes(view) == b"".join(model[page << PAGE_SHIFT : (page + 1) << PAGE_SHIFT] for page in pages)
