"""Overlay pages: the hypervisor's pages that hide guest pages, realised by swapping contents. Hypervisor.

An overlay page hides the page beneath it and uncovers it, unchanged, when it is moved or disabled (TLFS 2.0a,
8.1.3). Swapping contents, and not mappings, leaves one flat mapping of guest memory for every reader. Where several
overlays lie on one page the latest is seen; the others keep their contents and come back when it leaves.
"""

from __future__ import annotations

import attrs

from hypervisor.inspect import Branch
from hypervisor.memory import GuestMemory
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE

_BLANK = bytes(PAGE_SIZE)
"""What most overlays hide, kept once for all of them."""


class OverlayPage:
    """A page of the hypervisor's. Its owner finds the live bytes in `view`, whether a guest sees them or not."""

    __slots__ = ("gpn", "name", "view", "words")

    def __init__(self, name: str) -> None:
        self.name = name
        self.gpn: int | None = None
        """Where its owner has put it; None while disabled."""
        self.view = memoryview(bytearray(PAGE_SIZE))
        """The live bytes; fetch it anew after every move."""
        self.words = self.view.cast("I")
        """The same as 32-bit words, for stores that a guest must see whole."""

    def _live_in(self, view: memoryview) -> None:
        view[:] = self.view
        self.view = view
        self.words = view.cast("I")


@attrs.define
class _Place:
    """One guest page with overlays on it, the last of them visible."""

    beneath: bytes | None = None
    """What the guest page held; None while nothing is mapped there and all its overlays are unreachable."""
    stack: list[OverlayPage] = attrs.field(factory=list)


class OverlayMap:
    """All overlay pages of one partition."""

    __slots__ = ("_memory", "_places")

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._places: dict[int, _Place] = {}
        memory.watcher = self

    def put(self, page: OverlayPage, gpn: int) -> None:
        """Show `page` at `gpn`, taking it from where it was. Where nothing is mapped it is legal, only unreachable."""
        if page.gpn == gpn:
            return
        self.remove(page)
        place = self._places.setdefault(gpn, _Place())
        self._lower(gpn, place)
        place.stack.append(page)
        page.gpn = gpn
        self._raise(gpn, place)

    def remove(self, page: OverlayPage) -> None:
        """Hide `page`, which keeps its contents; what it hid is seen again. Harmless when it is not shown."""
        if page.gpn is None:
            return
        gpn, page.gpn = page.gpn, None
        place = self._places[gpn]
        self._lower(gpn, place)
        place.stack.remove(page)
        if place.stack:
            self._raise(gpn, place)
        else:
            del self._places[gpn]

    def at(self, gpn: int) -> OverlayPage | None:
        """The overlay that a guest sees at `gpn`."""
        place = self._places.get(gpn)
        return place.stack[-1] if place and place.beneath is not None else None

    def places(self) -> list[tuple[int, bytes | None, tuple[OverlayPage, ...]]]:
        """(page number, what lies beneath or None where nothing is mapped, overlays from below) for each place."""
        return [(gpn, place.beneath, tuple(place.stack)) for gpn, place in self._places.items()]

    def inspect(self) -> Branch:
        """By guest address, what lies there, the one that is seen last."""
        return Branch(
            {
                hex(gpn << PAGE_SHIFT): ", ".join(page.name for page in pages)
                + ("" if mapped is not None else " (not mapped)")
                for gpn, mapped, pages in self.places()
            }
        )

    # --- the memory map changes under the overlays

    def about_to_change(self, gpn: int, count: int) -> None:
        """Uncover the pages of a range, so that their owner takes their own contents away."""
        for at, place in self._within(gpn, count):
            self._lower(at, place)

    def changed(self, gpn: int, count: int) -> None:
        """Cover the pages that are there now."""
        for at, place in self._within(gpn, count):
            self._raise(at, place)

    # --- inside

    def _within(self, gpn: int, count: int) -> list[tuple[int, _Place]]:
        return [(at, place) for at, place in self._places.items() if gpn <= at < gpn + count]

    def _lower(self, gpn: int, place: _Place) -> None:
        """Take the visible overlay off; the guest page has its own contents after that."""
        if place.beneath is None:
            return
        top = place.stack[-1]
        guest = top.view
        top._live_in(memoryview(bytearray(PAGE_SIZE)))
        guest[:] = place.beneath
        place.beneath = None

    def _raise(self, gpn: int, place: _Place) -> None:
        """Put the last overlay over the guest page, if there is one; the rights of the page beneath do not matter."""
        source = self._memory.source(gpn)
        if source is None:
            return
        block, block_page, _ = source
        start = block_page << PAGE_SHIFT
        guest = block.view[start : start + PAGE_SIZE]
        hidden = bytes(guest)
        place.beneath = _BLANK if hidden == _BLANK else hidden
        place.stack[-1]._live_in(guest)
