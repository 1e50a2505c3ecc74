"""Where a guest has its frame buffer, checked, and what the host may read of it. Root side.

A guest names an address. In its own RAM the host only reads it; in the window that its firmware leaves for devices
nothing is, and the host puts memory there. Every mode is checked against the memory that is there when it is chosen,
and every read once more by the guest's own map: what the guest has given away meanwhile is black, and nobody's.
"""

from __future__ import annotations

from typing import Protocol

import attrs

from hypervisor.memory import GpaFault, GuestMemory
from hypervisor.pages import PAGE_MASK, PAGE_SHIFT, Access, pages_for
from vsp_vsc.video.framebuffer import Surface
from vsp_vsc.video.protocol import DEPTHS, VRAM_BYTES

MAX_SIDE = 8192
"""Pixels of a mode's width or height; viewers count them in 16 bits."""


class VramRefused(Exception):
    """A place or a mode that a guest named and that cannot be; the text says why."""


class VramWindow(Protocol):
    """The addresses outside a guest's RAM at which it may have its frame buffer."""

    def contains(self, gpa: int, length: int) -> bool:
        """Whether all of it is in the window."""

    def map(self, gpa: int) -> None:
        """Have `VRAM_BYTES` of memory there, which begin as zeros and move along if they were elsewhere before.

        `MemoryError` where the host has none left.
        """

    def unmap(self) -> None:
        """Take the memory away. Harmless when repeated."""


@attrs.frozen
class Situation:
    """A mode that a guest has chosen, as far as its own fields go."""

    width: int
    height: int
    depth: int
    pitch: int
    offset: int

    @classmethod
    def check(cls, *, width: int, height: int, depth: int, pitch: int, offset: int) -> Situation:
        """Raises `VramRefused`. What comes back ends within `VRAM_BYTES`."""
        words = f"a mode of {width}x{height} pixels of {depth} bits, {pitch} bytes a row from {offset:#x} on"
        if depth not in DEPTHS:
            raise VramRefused(f"{words}: the depths are {' and '.join(map(str, DEPTHS))}")
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            raise VramRefused(f"{words}: sides have 1 to {MAX_SIDE} pixels")
        if pitch < width * depth // 8:
            raise VramRefused(f"{words}: a row has {width * depth // 8}")
        made = cls(width, height, depth, pitch, offset)
        if not 0 <= offset <= VRAM_BYTES - made.length:
            raise VramRefused(f"{words}: a frame buffer has {VRAM_BYTES}")
        return made

    @property
    def length(self) -> int:
        """Bytes from the first pixel's to the last pixel's."""
        return self.pitch * (self.height - 1) + self.width * self.depth // 8


class Vram:
    """One guest's frame buffer, while its channel is open."""

    def __init__(self, memory: GuestMemory, window: VramWindow | None) -> None:
        self._memory = memory
        self._window = window
        self.address: int | None = None
        """Where the guest has it."""
        self.in_window = False
        """Whether its memory is the host's."""

    def locate(self, untrusted_gpa: int) -> None:
        """The guest has it there from now on. Raises `VramRefused`, and all is as before then."""
        if self._window is not None and self._window.contains(untrusted_gpa, 1):
            # What is mapped there is ours, and no RAM of the guest's.
            if untrusted_gpa & PAGE_MASK or not self._window.contains(untrusted_gpa, VRAM_BYTES):
                raise VramRefused(f"a frame buffer at {untrusted_gpa:#x}: no page begins there, or it would not fit")
            try:
                self._window.map(untrusted_gpa)
            except MemoryError as error:
                raise VramRefused(f"a frame buffer at {untrusted_gpa:#x}: {error}") from None
            self.in_window = True
        else:
            if not self._readable(untrusted_gpa, 1):
                raise VramRefused(f"a frame buffer at {untrusted_gpa:#x}, where the guest has no memory")
            if self._window is not None:
                self._window.unmap()
            self.in_window = False
        self.address = untrusted_gpa

    def surface(self, situation: Situation) -> Surface:
        """The mode's pixels. Raises `VramRefused`."""
        if self.address is None:
            raise VramRefused("a mode before the guest has said where its frame buffer is")
        start = self.address + situation.offset
        if not self._readable(start, situation.length):
            raise VramRefused(f"a mode of {situation.length} bytes at {start:#x}, where the guest has less memory")
        memory = self._memory

        def read(at: int, length: int) -> bytes | None:
            try:
                return memory.read(start + at, length)
            except GpaFault:
                return None

        return Surface(situation.width, situation.height, situation.pitch, situation.depth, read)

    def release(self) -> None:
        """The channel is closed."""
        self.address = None
        self.in_window = False
        if self._window is not None:
            self._window.unmap()

    def _readable(self, gpa: int, length: int) -> bool:
        first, count = gpa >> PAGE_SHIFT, pages_for(length, gpa & PAGE_MASK)
        runs = self._memory.sources(first, count)
        return sum(pages for *_, pages, _ in runs) == count and all(Access.READ in rights for *_, rights in runs)
