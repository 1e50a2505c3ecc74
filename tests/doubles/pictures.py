"""Pictures as somebody else reads them."""

from __future__ import annotations

import io

from PIL import Image


def read_png(data: bytes) -> tuple[int, int, bytes]:
    """Width, height, and three bytes a pixel: R, G, B."""
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        image.load()
        return image.width, image.height, image.tobytes()


def rgb_of(pixels: bytes) -> bytes:
    """The same of what a screen's `pixels` gives."""
    rgb = bytearray(len(pixels) // 4 * 3)
    rgb[0::3], rgb[1::3], rgb[2::3] = pixels[2::4], pixels[1::4], pixels[0::4]
    return bytes(rgb)
