"""Guest physical memory: a partition's GPA space as sorted extents over host blocks. Hypervisor."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from hypervisor.blocks import MemoryBlock, runs, stitch
from hypervisor.inspect import Branch, Hex, by_hex
from hypervisor.pages import PAGE_MASK, PAGE_SHIFT, Access, pages_for
from hypervisor.wire import Buffer

_RIGHTS = int(Access.ALL)


class GpaFault(Exception):
    """A guest physical address that is not mapped, or not with that right."""

    def __init__(self, gpa: int, access: Access) -> None:
        super().__init__(f"{access.name} of GPA {gpa:#x}")
        self.gpa = gpa
        self.access = access


class MapWatcher(Protocol):
    """Told around every change of the map; overlay pages get out of the way and come back."""

    def about_to_change(self, gpn: int, count: int) -> None:
        """The pages' present contents are still in place."""

    def changed(self, gpn: int, count: int) -> None:
        """The new map is in place."""


@attrs.define
class _Extent:
    """A run of guest pages that is contiguous in one block and has one set of rights."""

    gpn: int
    count: int
    block: MemoryBlock
    block_page: int
    rights: int
    view: memoryview

    @property
    def end(self) -> int:
        return self.gpn + self.count

    def inspect(self) -> Branch:
        """Where it lies."""
        block_gpa = Hex(self.block_page << PAGE_SHIFT)
        rights = Access(self.rights).name or "none"
        return Branch({"pages": self.count, "block": self.block.name, "block_offset": block_gpa, "rights": rights})


class GuestMemory:
    """A partition's GPA space: extents in order of address, normally one.

    Addresses and lengths may be a guest's; anything not wholly mapped with the wanted rights raises `GpaFault` before a
    byte moves. Lengths are never negative.
    """

    __slots__ = (
        *("_extents", "_fast", "_fast_gpa", "_fast_size", "_fast_view", "_shown", "_starts"),
        *("end", "on_change", "watcher"),
    )

    def __init__(self) -> None:
        self._extents: list[_Extent] = []
        self._starts: list[int] = []
        self.end = 0
        """First GPA past the highest mapped page."""
        self.watcher: MapWatcher | None = None
        self.on_change: Callable[[], None] | None = None
        """Told after each change of the map, by whoever shows it to processors of its own."""
        self._shown: dict[MemoryBlock, int] = {}
        """Extents by block."""
        # The largest extent with all rights, for the common access: no search, no test of rights.
        self._fast: _Extent | None = None
        self._fast_gpa = 0
        self._fast_size = 0
        self._fast_view = memoryview(b"")

    # --- the map

    def map_block(self, gpn: int, block: MemoryBlock, block_page: int, count: int, access: Access) -> None:
        """Put `count` pages of `block` at `gpn`; supersedes what was there."""
        if count <= 0:
            return
        assert block.size >= (block_page + count) << PAGE_SHIFT, "the caller names pages that the block has"
        if self.watcher is not None:
            self.watcher.about_to_change(gpn, count)
        start = block_page << PAGE_SHIFT
        view = block.view[start : start + (count << PAGE_SHIFT)]
        self._replace(gpn, count, [_Extent(gpn, count, block, block_page, int(access), view)])
        self._changed(gpn, count)

    def unmap(self, gpn: int, count: int) -> None:
        """Take pages away; pages that are not mapped are no error."""
        if count <= 0:
            return
        if self.watcher is not None:
            self.watcher.about_to_change(gpn, count)
        self._replace(gpn, count, [])
        self._changed(gpn, count)

    def source(self, gpn: int) -> tuple[MemoryBlock, int, Access] | None:
        """Where a guest page lives: block, page of the block, rights; None where nothing is mapped."""
        extent = self._find(gpn)
        if extent is None:
            return None
        return extent.block, extent.block_page + gpn - extent.gpn, Access(extent.rights)

    def sources(self, gpn: int, count: int) -> list[tuple[int, MemoryBlock, int, int, Access]]:
        """What is behind a run of pages, up to the first that is not mapped: page, block, block page, pages, rights."""
        found = []
        end = gpn + count
        while gpn < end and (extent := self._find(gpn)) is not None:
            here = min(end, extent.end) - gpn
            found.append((gpn, extent.block, extent.block_page + gpn - extent.gpn, here, Access(extent.rights)))
            gpn += here
        return found

    def extents(self) -> list[tuple[int, MemoryBlock, int, int, Access]]:
        """Every extent as (gpn, block, block page, pages, rights), by address."""
        return [(e.gpn, e.block, e.block_page, e.count, Access(e.rights)) for e in self._extents]

    def inspect(self) -> Branch:
        """Sizes, and the extents by address."""
        return Branch(
            {
                "bytes": sum(extent.count for extent in self._extents) << PAGE_SHIFT,
                "end": Hex(self.end),
                "extents": lambda: by_hex({extent.gpn << PAGE_SHIFT: extent for extent in self._extents}),
            }
        )

    def alone(self, block: MemoryBlock) -> bool:
        """Whether no other GPA space shows anything of `block`."""
        return self._shown.get(block, 0) == block.shown

    def mappings(self) -> list[tuple[int, memoryview]]:
        """Every extent as (GPA, writable view), by address: what a backend shows its processors; see `on_change`."""
        return [(e.gpn << PAGE_SHIFT, e.view) for e in self._extents]

    def flat_from_zero(self) -> memoryview:
        """The extent that holds GPA 0, writable; empty where there is none."""
        extent = self._find(0)
        return memoryview(bytearray()) if extent is None else extent.view

    def discard(self, gpn: int, count: int) -> None:
        """Give the memory behind pages back to the host: they stay mapped, and read as zero until they are written.

        Pages that are not mapped are passed over.
        """
        end = gpn + count
        while gpn < end:
            extent = self._find(gpn)
            if extent is None:
                gpn = next((start for start in self._starts if start > gpn), end)
                continue
            here = min(end, extent.end) - gpn
            extent.block.zero(extent.block_page + gpn - extent.gpn, here)
            gpn += here

    def clear(self) -> None:
        """Zero every page that the guest can write, for a reset; the others are its ROM."""
        for extent in self._extents:
            if extent.rights & Access.WRITE:
                extent.block.zero(extent.block_page, extent.count)

    # --- access

    def read(self, gpa: int, length: int) -> bytes:
        """A private copy; the whole range is checked before a byte moves."""
        start = gpa - self._fast_gpa
        if start >= 0 and start + length <= self._fast_size:
            return bytes(self._fast_view[start : start + length])
        return b"".join(self._pieces(gpa, length, Access.READ))

    def write(self, gpa: int, data: Buffer) -> None:
        """Store bytes; the whole range is checked before a byte moves."""
        length = len(data)
        start = gpa - self._fast_gpa
        if start >= 0 and start + length <= self._fast_size:
            self._fast_view[start : start + length] = data
            return
        taken = 0
        for piece in self._pieces(gpa, length, Access.WRITE):
            piece[:] = data[taken : taken + len(piece)]
            taken += len(piece)

    def view(self, gpa: int, length: int, access: Access = Access.READ_WRITE) -> memoryview:
        """One contiguous view; read-only if `access` has no WRITE and the pages have none either.

        A range that is not contiguous in host memory is stitched together, which costs a system call a piece.
        """
        start = gpa - self._fast_gpa
        if start >= 0 and start + length <= self._fast_size:
            return self._fast_view[start : start + length]
        pieces = self._pieces(gpa, length, access)
        if len(pieces) == 1:
            return pieces[0]
        if not pieces:
            return memoryview(bytearray())
        first = gpa >> PAGE_SHIFT
        offset = gpa & PAGE_MASK
        whole = self.flat(range(first, first + pages_for(length, offset)), access)
        return whole[offset : offset + length]

    def page_views(self, gpns: Sequence[int], offset: int, length: int, access: Access) -> list[memoryview]:
        """A byte range over a page list, as the fewest contiguous views; the range lies within the list.

        `offset` counts from the start of the first page. Adjacent pages become one view.
        """
        count = len(gpns)
        if offset < 0 or length < 0 or offset + length > count << PAGE_SHIFT:
            raise ValueError(f"{offset} + {length} bytes are not within {count} pages")
        if not length:
            return []
        first = gpns[0]
        start = (first << PAGE_SHIFT) - self._fast_gpa
        # A guest's list can look contiguous at both ends and not be; only the whole comparison counts.
        if (
            start >= 0
            and start + (count << PAGE_SHIFT) <= self._fast_size
            and (count == 1 or (gpns[-1] - first == count - 1 and list(range(first, first + count)) == list(gpns)))
        ):
            start += offset
            return [self._fast_view[start : start + length]]
        skip = offset >> PAGE_SHIFT
        offset &= PAGE_MASK
        views: list[memoryview] = []
        for run, pages in runs(gpns[skip : skip + pages_for(length, offset)]):
            part = min((pages << PAGE_SHIFT) - offset, length)
            start = (run << PAGE_SHIFT) + offset - self._fast_gpa
            if start >= 0 and start + part <= self._fast_size:
                views.append(self._fast_view[start : start + part])
            else:
                views += self._pieces((run << PAGE_SHIFT) + offset, part, access)
            length -= part
            offset = 0
        return views

    def flat(self, gpns: Sequence[int], access: Access) -> memoryview:
        """One contiguous view of any page list, in its order, pages repeated if it repeats them.

        A slice where the pages are contiguous, else a new mapping of them that goes with its last view. Raises
        `GpaFault`, and MemoryError when the host refuses another mapping.
        """
        views = self.page_views(gpns, 0, len(gpns) << PAGE_SHIFT, access)
        if len(views) == 1:
            return views[0]
        if not views:
            return memoryview(bytearray())
        parts: list[tuple[int, int, int]] = []
        for run, pages in runs(gpns):
            gpn, last = run, run + pages
            while gpn < last:
                extent = self._find(gpn)
                assert extent is not None, "page_views has checked every page"
                here = min(last, extent.end) - gpn
                parts += extent.block.pieces(extent.block_page + gpn - extent.gpn, here)
                gpn += here
        whole = memoryview(stitch(len(gpns) << PAGE_SHIFT, parts))
        return whole.toreadonly() if any(view.readonly for view in views) else whole

    # --- inside

    def _changed(self, gpn: int, count: int) -> None:
        if self.watcher is not None:
            self.watcher.changed(gpn, count)
        if self.on_change is not None:
            self.on_change()

    def _find(self, gpn: int) -> _Extent | None:
        index = bisect_right(self._starts, gpn) - 1
        if index < 0:
            return None
        extent = self._extents[index]
        return extent if gpn < extent.end else None

    def _pieces(self, gpa: int, length: int, access: Access) -> list[memoryview]:
        """The range as one view for each extent that it touches, every right checked first."""
        needed = int(access)
        views: list[memoryview] = []
        while length > 0:
            extent = self._find(gpa >> PAGE_SHIFT) if gpa >= 0 else None
            if extent is None or needed & ~extent.rights:
                raise GpaFault(gpa, access)
            start = gpa - (extent.gpn << PAGE_SHIFT)
            piece = extent.view[start : start + length]
            if not extent.rights & Access.WRITE:
                piece = piece.toreadonly()
            views.append(piece)
            gpa += len(piece)
            length -= len(piece)
        return views

    def _replace(self, gpn: int, count: int, new: list[_Extent]) -> None:
        """Put `new` in the place of a range. Only its neighbours are looked at: the root has an extent for each VM."""
        end = gpn + count
        low = bisect_left(self._starts, gpn)
        if low and self._extents[low - 1].end >= gpn:
            low -= 1
        high = bisect_right(self._starts, end)
        old = self._extents[low:high]
        before = [_part(extent, extent.gpn, gpn) for extent in old if extent.gpn < gpn]
        after = [_part(extent, end, extent.end) for extent in old if extent.end > end]
        fresh = _joined([*before, *new, *after])
        self._extents[low:high] = fresh
        self._starts[low:high] = [extent.gpn for extent in fresh]
        self.end = self._extents[-1].end << PAGE_SHIFT if self._extents else 0
        for extent in old:
            self._count(extent.block, -1)
        for extent in fresh:
            self._count(extent.block, 1)
        if self._fast is None or any(extent is self._fast for extent in old):
            self._choose_fast(self._extents)
        else:
            self._choose_fast([self._fast, *fresh])

    def _count(self, block: MemoryBlock, more: int) -> None:
        block.shown += more
        here = self._shown.get(block, 0) + more
        if here:
            self._shown[block] = here
        else:
            del self._shown[block]

    def _choose_fast(self, extents: Sequence[_Extent]) -> None:
        fast = max((e for e in extents if e.rights == _RIGHTS), key=lambda extent: extent.count, default=None)
        self._fast = fast
        self._fast_gpa = fast.gpn << PAGE_SHIFT if fast else 0
        self._fast_size = fast.count << PAGE_SHIFT if fast else 0
        self._fast_view = fast.view if fast else memoryview(b"")


def _joined(extents: Sequence[_Extent]) -> list[_Extent]:
    """The same, where those that are contiguous in guest and block are one."""
    joined: list[_Extent] = []
    for extent in extents:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.end == extent.gpn
            and last.block is extent.block
            and last.block_page + last.count == extent.block_page
            and last.rights == extent.rights
        ):
            start, count = last.block_page << PAGE_SHIFT, last.count + extent.count
            view = last.block.view[start : start + (count << PAGE_SHIFT)]
            joined[-1] = _Extent(last.gpn, count, last.block, last.block_page, last.rights, view)
        else:
            joined.append(extent)
    return joined


def _part(extent: _Extent, gpn: int, end: int) -> _Extent:
    """What of an extent lies from `gpn` to `end`."""
    if gpn == extent.gpn and end == extent.end:
        return extent
    skipped = gpn - extent.gpn
    view = extent.view[skipped << PAGE_SHIFT : (end - extent.gpn) << PAGE_SHIFT]
    return _Extent(gpn, end - gpn, extent.block, extent.block_page + skipped, extent.rights, view)
