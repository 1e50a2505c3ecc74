"""Overlay pages hide guest pages and give them back unchanged."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hypervisor.blocks import MemoryBlock
from hypervisor.memory import GuestMemory
from hypervisor.overlay import OverlayMap, OverlayPage
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE, Access

PAGES = 4


def make() -> tuple[GuestMemory, OverlayMap]:
    memory = GuestMemory()
    block = MemoryBlock.allocate(PAGES << PAGE_SHIFT, "test")
    memory.map_block(0, block, 0, PAGES, Access.ALL)
    for page in range(PAGES):
        memory.write(page << PAGE_SHIFT, bytes([0x10 + page]) * PAGE_SIZE)
    return memory, OverlayMap(memory)


def overlay(fill: int) -> OverlayPage:
    page = OverlayPage(f"page {fill}")
    page.view[:] = bytes([fill]) * PAGE_SIZE
    return page


def test_an_overlay_hides_moves_and_uncovers() -> None:
    memory, overlays = make()
    page = overlay(1)
    overlays.put(page, 2)
    assert memory.read(2 << PAGE_SHIFT, 1) == b"\x01"
    memory.write((2 << PAGE_SHIFT) + 5, b"\x99")
    assert page.view[5] == 0x99, "the owner sees the guest's stores"
    page.words[0] = 0xAABBCCDD
    assert memory.read(2 << PAGE_SHIFT, 4) == bytes.fromhex("ddccbbaa")
    overlays.put(page, 3)
    assert memory.read(2 << PAGE_SHIFT, PAGE_SIZE) == b"\x12" * PAGE_SIZE
    assert memory.read((3 << PAGE_SHIFT) + 5, 1) == b"\x99", "contents move with the page"
    overlays.remove(page)
    overlays.remove(page)
    assert memory.read(3 << PAGE_SHIFT, PAGE_SIZE) == b"\x13" * PAGE_SIZE
    assert page.view[5] == 0x99


def test_of_several_overlays_on_a_page_one_is_seen_and_all_come_back() -> None:
    memory, overlays = make()
    first, second, third = overlay(1), overlay(2), overlay(3)
    for page in (first, second, third):
        overlays.put(page, 1)
    assert overlays.at(1) is third
    overlays.remove(second)
    assert memory.read(1 << PAGE_SHIFT, 1) == b"\x03"
    first.view[0] = 9
    overlays.remove(third)
    assert memory.read(1 << PAGE_SHIFT, 2) == b"\x09\x01"
    overlays.remove(first)
    assert memory.read(1 << PAGE_SHIFT, PAGE_SIZE) == b"\x11" * PAGE_SIZE


def test_an_overlay_where_nothing_is_mapped_is_out_of_reach_until_something_is() -> None:
    memory, overlays = make()
    page = overlay(7)
    overlays.put(page, 100)
    assert overlays.at(100) is None
    page.view[3] = 8
    block = MemoryBlock.allocate(PAGE_SIZE, "late")
    memory.map_block(100, block, 0, 1, Access.READ)
    assert memory.read(100 << PAGE_SHIFT, 4) == b"\x07\x07\x07\x08"
    memory.unmap(100, 1)
    assert page.view[3] == 8
    assert not any(block.view), "the page leaves with its own contents"


class Overlays(RuleBasedStateMachine):
    """Any sequence of moves leaves every guest page and every overlay with its own bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.overlays = make()
        self.block = MemoryBlock.allocate(PAGES << PAGE_SHIFT, "other")
        self.pages = [overlay(n) for n in range(1, 4)]
        self.where: dict[int, list[int]] = {}
        self.mapped = set(range(PAGES))

    @rule(index=st.integers(0, 2), gpn=st.integers(0, PAGES))
    def put(self, index: int, gpn: int) -> None:
        if index not in self.where.get(gpn, []):
            self.remove(index)
            self.where.setdefault(gpn, []).append(index)
        self.overlays.put(self.pages[index], gpn)

    @rule(index=st.integers(0, 2))
    def remove(self, index: int) -> None:
        for stack in self.where.values():
            if index in stack:
                stack.remove(index)
        self.overlays.remove(self.pages[index])

    @rule(gpn=st.integers(0, PAGES - 1))
    def unmap(self, gpn: int) -> None:
        self.memory.unmap(gpn, 1)
        self.mapped.discard(gpn)

    @rule(gpn=st.integers(0, PAGES - 1))
    def remap(self, gpn: int) -> None:
        if gpn not in self.mapped:
            self.block.view[gpn << PAGE_SHIFT : (gpn + 1) << PAGE_SHIFT] = bytes([0x10 + gpn]) * PAGE_SIZE
        else:
            return
        self.memory.map_block(gpn, self.block, gpn, 1, Access.ALL)
        self.mapped.add(gpn)

    @invariant()
    def everybody_has_their_bytes(self) -> None:
        for index, page in enumerate(self.pages):
            assert bytes(page.view) == bytes([index + 1]) * PAGE_SIZE
        for gpn in self.mapped:
            stack = self.where.get(gpn)
            expected = stack[-1] + 1 if stack else 0x10 + gpn
            assert self.memory.read(gpn << PAGE_SHIFT, PAGE_SIZE) == bytes([expected]) * PAGE_SIZE


Overlays.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestOverlays = Overlays.TestCase
