"""A guest's screen as the host sees it: size, pixels, and what has changed since somebody looked. Root side.

    with framebuffer.watch() as damage:
        while True:
            await damage.wait()
            resized, rects = damage.take()
            for rect in rects:
                show(rect, framebuffer.pixels(*rect))

Nothing is kept of a picture: `pixels` reads the guest's memory each time, through a surface that was checked when the
guest named it and that checks again whether the memory is still there. What changed is what the guest says; a guest
that says nothing has a screen that a viewer does not refresh, and a screenshot shows it all the same.

Concurrency: everything on the Trio thread; one task waits for each `Damage`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Final, NamedTuple

import attrs

from hypervisor.inspect import Branch
from vmbus.bell import Bell
from vsp_vsc.video.pixels import BYTES_A_PIXEL, crop, from_rgb565, from_xrgb8888

MAX_RECTS: Final = 16
"""That wait for one viewer. A guest can name 255 in a message: past so many one around them all serves better."""


class Rect(NamedTuple):
    """A part of the screen, in pixels from its top left corner."""

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The first column that is not in it."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """The first row that is not in it."""
        return self.y + self.height

    def covers(self, other: Rect) -> bool:
        """Whether all of the other is in this one."""
        return self.x <= other.x and self.y <= other.y and self.right >= other.right and self.bottom >= other.bottom

    def around(self, other: Rect) -> Rect:
        """The smallest that covers both."""
        x, y = min(self.x, other.x), min(self.y, other.y)
        return Rect(x, y, max(self.right, other.right) - x, max(self.bottom, other.bottom) - y)


class Pointer(NamedTuple):
    """Where a guest has its mouse pointer, if it leaves the drawing of it to its host."""

    visible: bool
    x: int
    y: int


class PointerPicture(NamedTuple):
    """What that pointer looks like."""

    width: int
    height: int
    hot_x: int
    hot_y: int
    """The pixel that points."""
    argb: bool
    """Four bytes a pixel, B, G, R, A; else two masks of one bit a pixel, AND and XOR, rows of whole bytes."""
    data: bytes


class Damage:
    """What has changed since one viewer took it last."""

    def __init__(self) -> None:
        self._resized = False
        self._rects: list[Rect] = []
        self._bell = Bell()

    def take(self) -> tuple[bool, list[Rect]]:
        """Whether the screen has another size, or is on where it was off, and the parts to read again; from now on
        it is new."""
        taken = self._resized, self._rects
        self._resized, self._rects = False, []
        self._bell.clear()
        return taken

    async def wait(self) -> None:
        """Until there is something to take. A checkpoint always."""
        while True:
            await self._bell.wait()
            if self._resized or self._rects:
                return

    def add(self, rect: Rect) -> None:
        """A part has changed."""
        self._bell.ring()
        if any(known.covers(rect) for known in self._rects):
            return
        self._rects = [known for known in self._rects if not rect.covers(known)]
        self._rects.append(rect)
        if len(self._rects) > MAX_RECTS:
            self._rects = [reduce(Rect.around, self._rects)]

    def resize(self, width: int, height: int) -> None:
        """The screen is another one; all of it is new."""
        self._resized = True
        self._rects = [Rect(0, 0, width, height)]
        self._bell.ring()


@attrs.frozen
class Surface:
    """Where the pixels of a screen are."""

    width: int
    height: int
    pitch: int
    """Bytes from a row to the next."""
    depth: int
    """Bits a pixel: 16 (RGB565) or 32 (XRGB8888)."""
    read: Callable[[int, int], bytes | None]
    """Bytes from an offset to the first pixel on, so many; None where the guest has no memory there any more. It is
    only asked for what is within `pitch * (height - 1) + width * depth / 8` bytes."""

    def pixels(self, rect: Rect) -> bytes | None:
        """A part of it that is wholly inside, as XRGB8888."""
        size = self.depth // 8
        start, length = rect.x * size, rect.width * size
        data = self.read(rect.y * self.pitch + start, (rect.height - 1) * self.pitch + length)
        if data is None:
            return None
        rows = crop(data, self.pitch, 0, length, rect.height)
        return from_rgb565(rows) if self.depth == 16 else from_xrgb8888(rows)

    @classmethod
    def of_memory(cls, width: int, height: int, memory: bytearray | memoryview, *, depth: int = 32) -> Surface:
        """A screen in memory of the host's, its rows without gaps."""

        def read(offset: int, length: int) -> bytes:
            return bytes(memory[offset : offset + length])

        return cls(width, height, width * depth // 8, depth, read)


class Framebuffer:
    """A screen. Made with the VM; the guest's driver says what it shows."""

    def __init__(self, width: int, height: int) -> None:
        """The size that it has until a guest chooses one."""
        self.width = width
        self.height = height
        self.on_watched: Callable[[bool], None] = _nobody
        """Told when the first viewer comes and when the last has gone."""
        self.pointer: Pointer | None = None
        self.pointer_picture: PointerPicture | None = None
        """What the guest has said of its pointer. It is not among the pixels."""
        self._surface: Surface | None = None
        self._watchers: list[Damage] = []

    @property
    def active(self) -> bool:
        """Whether a guest shows something."""
        return self._surface is not None

    @property
    def watched(self) -> bool:
        """Whether anybody wants to know what changes."""
        return bool(self._watchers)

    def pixels(self, x: int, y: int, width: int, height: int) -> bytes:
        """A part of the screen as it is now: rows of XRGB8888 without gaps; black outside and where nothing is shown.

        The size may be another one than when the caller looked last: the answer has the size that was asked for.
        """
        if width <= 0 or height <= 0:
            return b""
        surface = self._surface
        inside = None if surface is None else _common(Rect(x, y, width, height), surface.width, surface.height)
        if surface is None or inside is None:
            return bytes(width * height * BYTES_A_PIXEL)
        rows = surface.pixels(inside)
        if rows is None:
            return bytes(width * height * BYTES_A_PIXEL)
        if inside == (x, y, width, height):
            return rows
        whole = bytearray(width * height * BYTES_A_PIXEL)
        length = inside.width * BYTES_A_PIXEL
        at = ((inside.y - y) * width + inside.x - x) * BYTES_A_PIXEL
        for row in range(inside.height):
            whole[at : at + length] = rows[row * length : (row + 1) * length]
            at += width * BYTES_A_PIXEL
        return bytes(whole)

    @contextlib.contextmanager
    def watch(self) -> Iterator[Damage]:
        """What changes from now on; at first the whole screen is new."""
        damage = Damage()
        damage.resize(self.width, self.height)
        self._watchers.append(damage)
        if len(self._watchers) == 1:
            self.on_watched(True)
        try:
            yield damage
        finally:
            self._watchers.remove(damage)
            if not self._watchers:
                self.on_watched(False)

    def inspect(self) -> Branch:
        """Its size, and how many look at it."""
        surface = self._surface
        return Branch(
            {
                "active": self.active,
                "width": self.width,
                "height": self.height,
                "depth": surface.depth if surface is not None else None,
                "pitch": surface.pitch if surface is not None else None,
                "pointer": None if self.pointer is None else f"{self.pointer.x}, {self.pointer.y}",
                "viewers": len(self._watchers),
            }
        )

    # --- what the device says

    def show(self, surface: Surface | None) -> None:
        """The screen has another mode; None: it is off, with the size that it had."""
        self._surface = surface
        if surface is not None:
            self.width, self.height = surface.width, surface.height
        for watcher in self._watchers:
            watcher.resize(self.width, self.height)

    def changed(self, rects: Iterable[Rect]) -> None:
        """Parts have changed. What is outside the screen is cut off."""
        if not self._watchers:
            return
        inside = [part for rect in rects if (part := _common(rect, self.width, self.height)) is not None]
        if len(inside) > MAX_RECTS:  # no viewer keeps more of them, and there may be many viewers
            inside = [reduce(Rect.around, inside)]
        for watcher in self._watchers:
            for rect in inside:
                watcher.add(rect)


def _common(rect: Rect, width: int, height: int) -> Rect | None:
    """What of it is on a screen of that size."""
    x, y = max(rect.x, 0), max(rect.y, 0)
    right, bottom = min(rect.right, width), min(rect.bottom, height)
    return Rect(x, y, right - x, bottom - y) if x < right and y < bottom else None


def _nobody(watched: bool) -> None:
    """Nobody needs to be told."""
