"""Drawing into a frame buffer: rectangles, pixels, text, and what has changed since it was told. Child side.

Colours are 0xRRGGBB. What would be outside is not drawn.
"""

from __future__ import annotations

import functools

from vsp_vsc.video import font
from vsp_vsc.video.protocol import MAX_RECTANGLES, Rectangle

BLACK, WHITE = 0x000000, 0xFFFFFF


class Canvas:
    """A picture in memory, rows from the top without gaps."""

    def __init__(self, memory: memoryview, width: int, height: int, depth: int = 32) -> None:
        self.attach(memory, width, height, depth)

    def attach(self, memory: memoryview, width: int, height: int, depth: int = 32) -> None:
        """Draw there from now on: `memory` holds all of it; `depth` is 32 (XRGB8888) or 16 (RGB565)."""
        self.width = width
        self.height = height
        self.depth = depth
        self._memory = memory
        self._size = depth // 8
        self._pitch = width * depth // 8
        self._changed: list[Rectangle] = []

    def fill(self, x: int, y: int, width: int, height: int, colour: int) -> None:
        """A rectangle of one colour."""
        left, top, right, bottom = self._inside(x, y, width, height)
        row = encode_colour(colour, self.depth) * (right - left)
        if not row:
            return
        if len(row) == self._pitch:
            self._memory[top * self._pitch : bottom * self._pitch] = row * (bottom - top)
        else:
            start = top * self._pitch + left * self._size
            for at in range(start, start + (bottom - top) * self._pitch, self._pitch):
                self._memory[at : at + len(row)] = row
        self._note(left, top, right, bottom)

    def blit(self, x: int, y: int, width: int, height: int, pixels: bytes | bytearray | memoryview) -> None:
        """A picture, rows without gaps in the canvas's own format: B, G, R, 0 for each pixel at 32 bits."""
        data = memoryview(pixels).cast("B")
        if len(data) != width * height * self._size:
            raise ValueError(f"{width}x{height} pixels are {width * height * self._size} bytes, not {len(data)}")
        left, top, right, bottom = self._inside(x, y, width, height)
        length = (right - left) * self._size
        if not length:
            return
        source = ((top - y) * width + left - x) * self._size
        for at in range(top * self._pitch + left * self._size, bottom * self._pitch, self._pitch):
            self._memory[at : at + length] = data[source : source + length]
            source += width * self._size
        self._note(left, top, right, bottom)

    def read(self, x: int, y: int, width: int, height: int) -> bytes:
        """What is there, in the form that `blit` takes; zeros outside."""
        left, top, right, bottom = self._inside(x, y, width, height)
        pixels = bytearray(width * height * self._size)
        length = (right - left) * self._size
        at = ((top - y) * width + left - x) * self._size
        for start in range(top * self._pitch + left * self._size, bottom * self._pitch, self._pitch):
            pixels[at : at + length] = self._memory[start : start + length]
            at += width * self._size
        return bytes(pixels)

    def text(self, x: int, y: int, text: str, colour: int = WHITE, background: int = BLACK) -> None:
        """A line of text, 8 by 16 pixels a letter; letters that are not wholly inside are left out."""
        if not 0 <= y <= self.height - font.HEIGHT:
            return
        first = max(0, -(x // font.WIDTH))
        letters = text[first : max(first, (self.width - x) // font.WIDTH)]
        if not letters:
            return
        x += first * font.WIDTH
        patterns = _patterns(colour, background, self.depth)
        glyphs = [font.glyph(letter) for letter in letters]
        at = y * self._pitch + x * self._size
        for row in zip(*glyphs, strict=True):
            line = b"".join([patterns[bits] for bits in row])
            self._memory[at : at + len(line)] = line
            at += self._pitch
        self._note(x, y, x + len(letters) * font.WIDTH, y + font.HEIGHT)

    def scroll(self, x: int, y: int, width: int, height: int, up: int, colour: int = BLACK) -> None:
        """Move what is in a rectangle up by so many rows; what comes in from below is of one colour."""
        left, top, right, bottom = self._inside(x, y, width, height)
        if right <= left or up <= 0:
            return
        up = min(up, bottom - top)
        length, moved = (right - left) * self._size, up * self._pitch
        start = top * self._pitch + left * self._size
        if length == self._pitch:
            end = bottom * self._pitch
            self._memory[start : end - moved] = bytes(self._memory[start + moved : end])
        else:
            for at in range(start, start + (bottom - top - up) * self._pitch, self._pitch):
                self._memory[at : at + length] = self._memory[at + moved : at + moved + length]
        self.fill(left, bottom - up, right - left, up, colour)
        self._note(left, top, right, bottom)

    def take_changes(self) -> list[Rectangle]:
        """What was drawn since the last call, one around it all where there is too much to name."""
        taken, self._changed = self._changed, []
        return taken

    def touch(self) -> None:
        """Take all of it for changed."""
        self._changed = []
        self._note(0, 0, self.width, self.height)

    def close(self) -> None:
        """The memory is somebody else's from now on: nothing is drawn any more."""
        self.attach(memoryview(b""), 0, 0)

    def _inside(self, x: int, y: int, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of what of it is here; nothing where right is left."""
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, self.width), min(y + height, self.height)
        return (left, top, right, bottom) if left < right and top < bottom else (0, 0, 0, 0)

    def _note(self, left: int, top: int, right: int, bottom: int) -> None:
        if right <= left or bottom <= top:
            return
        for known in self._changed:
            if known.left <= left and known.top <= top and known.right >= right and known.bottom >= bottom:
                return
        self._changed.append(Rectangle(left, top, right, bottom))
        if len(self._changed) > MAX_RECTANGLES:
            self._changed = [
                Rectangle(
                    min(rect.left for rect in self._changed),
                    min(rect.top for rect in self._changed),
                    max(rect.right for rect in self._changed),
                    max(rect.bottom for rect in self._changed),
                )
            ]


def encode_colour(colour: int, depth: int) -> bytes:
    """A pixel of 0xRRGGBB."""
    if depth == 32:
        return colour.to_bytes(4, "little")
    red, green, blue = colour >> 16 & 0xFF, colour >> 8 & 0xFF, colour & 0xFF
    return (red >> 3 << 11 | green >> 2 << 5 | blue >> 3).to_bytes(2, "little")


@functools.lru_cache(maxsize=32)
def _patterns(colour: int, background: int, depth: int) -> list[bytes]:
    """The eight pixels of each pattern of bits in a glyph's row."""
    ink, paper = encode_colour(colour, depth), encode_colour(background, depth)
    return [b"".join(ink if bits & 0x80 >> bit else paper for bit in range(8)) for bits in range(256)]
