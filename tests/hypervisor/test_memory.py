"""Guest memory: a map of extents that never lets a guest reach past it, and never leaks what it maps."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.blocks import MemoryBlock
from hypervisor.memory import GpaFault, GuestMemory
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE, Access

PAGES = 16


def make(pages: int = PAGES, access: Access = Access.ALL) -> tuple[GuestMemory, MemoryBlock]:
    """Every page filled with its own number."""
    memory = GuestMemory()
    block = MemoryBlock.allocate(pages << PAGE_SHIFT, "test")
    for page in range(pages):
        block.view[page << PAGE_SHIFT : (page + 1) << PAGE_SHIFT] = bytes([page]) * PAGE_SIZE
    memory.map_block(0, block, 0, pages, access)
    return memory, block


def gpas(pages: int) -> int:
    return pages << PAGE_SHIFT


def mapped() -> int:
    """Mappings of ours in this process."""
    return Path("/proc/self/maps").read_text().count("memfd:")


def test_what_is_written_is_read_across_pages() -> None:
    memory, _ = make()
    memory.write(gpas(2) - 3, b"abcdef")
    assert memory.read(gpas(2) - 4, 8) == b"\x01abcdef\x02"
    assert memory.end == gpas(PAGES)


@pytest.mark.parametrize(
    ("gpa", "length"),
    [(gpas(PAGES), 1), (gpas(PAGES) - 1, 2), (1 << 63, 8), ((1 << 64) - 1, 1), (-1, 1), (0, gpas(PAGES) + 1)],
)
def test_a_range_that_leaves_memory_faults_whole(gpa: int, length: int) -> None:
    """No byte moves before the whole range is checked."""
    memory, block = make()
    before = bytes(block.view)
    with pytest.raises(GpaFault):
        memory.read(gpa, length)
    with pytest.raises(GpaFault):
        memory.view(gpa, length)
    if length <= gpas(PAGES):
        with pytest.raises(GpaFault):
            memory.write(gpa, b"\xff" * length)
    assert bytes(block.view) == before


def test_rights_are_checked_before_a_byte_moves() -> None:
    """A write over a writable and a read-only page changes neither."""
    memory, block = make()
    memory.map_block(5, block, 5, 1, Access.READ)
    with pytest.raises(GpaFault) as caught:
        memory.write(gpas(5) - 2, b"wxyz")
    assert caught.value.gpa == gpas(5)
    assert memory.read(gpas(5) - 2, 4) == b"\x04\x04\x05\x05"
    view = memory.view(gpas(5), 16, Access.READ)
    assert view.readonly
    with pytest.raises(GpaFault):
        memory.view(gpas(5), 16)


def test_a_new_mapping_supersedes_the_old_and_unmapping_splits() -> None:
    memory, block = make()
    other = MemoryBlock.allocate(gpas(2), "other")
    memory.map_block(3, other, 0, 2, Access.ALL)
    assert memory.read(gpas(3) - 1, 2) == b"\x02\x00"
    memory.unmap(8, 2)
    memory.unmap(8, 2)
    assert memory.source(8) is None
    assert memory.source(3) == (other, 0, Access.ALL)
    assert memory.source(10) == (block, 10, Access.ALL)
    with pytest.raises(GpaFault):
        memory.read(gpas(8) - 1, 2)
    memory.unmap(12, 100)
    assert memory.end == gpas(12)


def test_neighbours_that_fit_together_become_one_extent_again() -> None:
    """Mapping page by page, as rep hypercalls do, ends with one extent."""
    memory = GuestMemory()
    block = MemoryBlock.allocate(gpas(8), "test")
    for page in (3, 1, 0, 2, 7, 5, 6, 4):
        memory.map_block(page, block, page, 1, Access.ALL)
    assert [(gpn, start, count) for gpn, _, start, count, _ in memory.extents()] == [(0, 0, 8)]
    assert len(memory.flat_from_zero()) == gpas(8)


def test_a_list_of_pages_becomes_the_fewest_views() -> None:
    memory, _ = make()
    views = memory.page_views([1, 2, 3, 9, 4], 100, gpas(5) - 200, Access.READ_WRITE)
    assert [len(view) for view in views] == [gpas(3) - 100, PAGE_SIZE, PAGE_SIZE - 100]
    assert (
        b"".join(views) == bytes([1]) * 3996 + b"".join(bytes([n]) * PAGE_SIZE for n in (2, 3, 9)) + bytes([4]) * 3996
    )
    assert memory.page_views((4, 5), 0, 0, Access.READ) == []
    assert [bytes(view) for view in memory.page_views((4, 5, 6), gpas(1) + 4090, 8, Access.READ)] == [
        b"\x05\x05\x05\x05\x05\x05\x06\x06"
    ]


def test_a_list_that_only_looks_contiguous_is_not_taken_for_it() -> None:
    """First and last entry alone decide nothing: the guest wrote the list."""
    memory, _ = make()
    assert [view[0] for view in memory.page_views([4, 6, 5, 7], 0, gpas(4), Access.READ)] == [4, 6, 5, 7]
    assert [view[0] for view in memory.page_views([4, 5, 5, 7], 0, gpas(4), Access.READ)] == [4, 5, 7]


def test_a_page_of_the_list_that_is_not_there_faults() -> None:
    memory, _ = make()
    for pages in ([3, PAGES], [1 << 52], [-1], [PAGES - 1, PAGES, PAGES + 1]):
        with pytest.raises(GpaFault):
            memory.page_views(pages, 0, len(pages) << PAGE_SHIFT, Access.READ_WRITE)
        with pytest.raises(GpaFault):
            memory.flat(pages, Access.READ_WRITE)


@given(st.lists(st.integers(0, PAGES - 1), min_size=1, max_size=12))
def test_flat_is_one_writable_view_of_any_page_list(pages: list[int]) -> None:
    """In the list's order; the same bytes as at their guest addresses."""
    memory, _ = make()
    flat = memory.flat(pages, Access.READ_WRITE)
    assert [flat[n << PAGE_SHIFT] for n in range(len(pages))] == pages
    flat[-1] = 0xEE
    assert memory.read(((pages[-1] + 1) << PAGE_SHIFT) - 1, 1) == b"\xee"
    memory.write(pages[0] << PAGE_SHIFT, b"\xdd")
    assert flat[0] == 0xDD


def test_a_view_over_two_blocks_is_stitched() -> None:
    """Contiguous for the guest is contiguous for us, wherever the pages are."""
    memory, _ = make()
    other = MemoryBlock.allocate(gpas(1), "other")
    memory.map_block(4, other, 0, 1, Access.ALL)
    view = memory.view(gpas(4) - 8, 24)
    view[:] = bytes(range(24))
    assert memory.read(gpas(4) - 8, 24) == bytes(range(24))
    assert bytes(other.view[:4]) == bytes(range(8, 12))


def test_flat_of_read_only_pages_cannot_be_written() -> None:
    memory, _ = make(access=Access.READ)
    assert memory.flat([3, 1], Access.READ).readonly
    with pytest.raises(GpaFault):
        memory.flat([3, 1], Access.READ_WRITE)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_mappings_and_descriptors_go_with_the_last_view() -> None:
    """A stitched mapping costs no descriptor and is gone when nobody looks at it; a block's too."""
    gc.collect()
    maps, descriptors = mapped(), len(os.listdir("/proc/self/fd"))
    memory, block = make()
    assert len(os.listdir("/proc/self/fd")) == descriptors + 1
    assert mapped() == maps + 1
    flat = memory.flat([1, 3, 5], Access.READ_WRITE)
    part = flat[10:20]
    assert len(os.listdir("/proc/self/fd")) == descriptors + 1
    assert mapped() == maps + 4

    del flat
    assert mapped() == maps + 4, "a slice keeps it"
    del part
    assert mapped() == maps + 1

    kept = memory.view(0, 1)
    block.close()
    block.close()
    memory.unmap(0, PAGES)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert kept[0] == 0, "a view outlives the block"
    assert mapped() == maps + 1
    del kept
    assert mapped() == maps


def test_clear_zeroes_every_writable_page_and_keeps_the_map() -> None:
    memory, _ = make()
    rom = MemoryBlock.allocate(gpas(1), "rom")
    rom.view[:4] = b"BIOS"
    memory.map_block(100, rom, 0, 1, Access.READ)
    view = memory.view(0, gpas(PAGES))
    memory.clear()
    assert not any(memory.read(0, gpas(PAGES)))
    assert memory.read(gpas(100), 4) == b"BIOS"
    assert not any(view), "views that were made before see the same memory"
    view[5] = 7
    assert memory.read(5, 1) == b"\x07"


@pytest.mark.parametrize("size", [0, -4096, 4095, 4097])
def test_a_block_is_whole_pages(size: int) -> None:
    with pytest.raises(ValueError, match="pages"):
        MemoryBlock.allocate(size, "odd")


def test_without_memfd_an_unlinked_file_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same stitched views, on systems that have no memfd."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    memory, _ = make()
    flat = memory.flat([2, 9], Access.READ_WRITE)
    assert (flat[0], flat[PAGE_SIZE]) == (2, 9)


def test_a_block_that_nobody_closed_gives_its_descriptor_back() -> None:
    """Regression: blocks dropped by failures half-way kept their descriptors until a long run had none left."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        MemoryBlock.allocate(PAGE_SIZE, "dropped")
    gc.collect()

    assert len(os.listdir("/proc/self/fd")) == before


class MapModel:
    """What a map should be: for each page its block, block page and rights."""

    def __init__(self) -> None:
        self.pages: dict[int, tuple[MemoryBlock, int, Access]] = {}

    def extents(self) -> list[tuple[int, MemoryBlock, int, int, Access]]:
        """The fewest runs that say the same."""
        runs: list[tuple[int, MemoryBlock, int, int, Access]] = []
        for gpn, (block, page, rights) in sorted(self.pages.items()):
            if runs:
                first, last, start, count, same = runs[-1]
                if (first + count, last, start + count, same) == (gpn, block, page, rights):
                    runs[-1] = first, last, start, count + 1, same
                    continue
            runs.append((gpn, block, page, 1, rights))
        return runs


MAP_STEPS = st.lists(
    st.tuples(
        st.integers(0, 40),  # page
        st.integers(1, 12),  # pages
        st.sampled_from([None, 0, 1]),  # unmap, or the block to map
        st.integers(0, 4),  # page of the block
        st.sampled_from([Access.ALL, Access.ALL, Access.READ]),
    ),
    max_size=30,
)


@given(MAP_STEPS)
def test_the_map_is_the_fewest_extents_and_blocks_know_how_many_lie_in_them(
    steps: list[tuple[int, int, int | None, int, Access]],
) -> None:
    """Whatever is mapped over whatever: a later mapping wins, and who takes a block back knows whether it is shown."""
    memory, other, model = GuestMemory(), GuestMemory(), MapModel()
    blocks = [MemoryBlock.allocate(PAGES << PAGE_SHIFT, f"block {number}") for number in range(2)]
    other.map_block(0, blocks[1], 0, 1, Access.ALL)
    for gpn, count, chosen, page, rights in steps:
        if chosen is None:
            memory.unmap(gpn, count)
            for at in range(gpn, gpn + count):
                model.pages.pop(at, None)
        else:
            memory.map_block(gpn, blocks[chosen], page, count, rights)
            for at in range(count):
                model.pages[gpn + at] = blocks[chosen], page + at, rights
        expected = model.extents()
        assert memory.extents() == expected
        assert memory.end == (max(model.pages, default=-1) + 1) << PAGE_SHIFT
        assert [block.shown for block in blocks] == [
            sum(extent[1] is block for extent in expected) + (block is blocks[1]) for block in blocks
        ]
        assert memory.alone(blocks[0])
        assert not memory.alone(blocks[1])
        for at in model.pages:  # by the fast way where there is one, by the search elsewhere
            block, start, _ = model.pages[at]
            block.view[start << PAGE_SHIFT] = at + 1
            assert memory.read(at << PAGE_SHIFT, 1) == bytes([at + 1])
    memory.unmap(0, 64)
    other.unmap(0, 64)
    assert not any(block.shown for block in blocks)
    for block in blocks:
        block.close()


def test_discarded_pages_are_the_systems_again_and_stay_mapped() -> None:
    """They read as zero, their neighbours are as they were, and what is not mapped is passed over."""
    memory, block = make()
    memory.unmap(6, 2)
    assert block.fd is not None
    before = os.fstat(block.fd).st_blocks
    memory.discard(4, 6)
    assert os.fstat(block.fd).st_blocks == before - 4 * PAGE_SIZE // 512
    assert memory.read(gpas(4), gpas(2)) == memory.read(gpas(8), gpas(2)) == bytes(gpas(2))
    assert memory.read(gpas(3), 1) == b"\x03"
    assert memory.read(gpas(10), 1) == b"\x0a"
    with pytest.raises(GpaFault):
        memory.read(gpas(6), 1)
    memory.discard(100, 5)
