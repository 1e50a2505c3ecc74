"""Rows of pixels, from a guest's format into the host's, a whole picture at a time. Both sides.

The host's format is XRGB8888, little-endian: four bytes a pixel, B, G, R, 0. No loop here runs once a pixel: an
interpreter takes a tenth of a second for a screen of them; slices, byte tables and long integers take milliseconds.
"""

from __future__ import annotations

from typing import Final

BYTES_A_PIXEL: Final = 4
"""Of what a host sees."""

# RGB565 has RRRRRGGG in a pixel's high byte and GGGBBBBB in its low one. A channel's high bits are repeated below them,
# so that full stays full.
_RED: Final = bytes((high >> 3) << 3 | high >> 5 for high in range(256))
_BLUE: Final = bytes((low & 31) << 3 | (low & 31) >> 2 for low in range(256))
_GREEN_FROM_HIGH: Final = bytes((high & 7) << 5 | (high & 7) >> 1 for high in range(256))
_GREEN_FROM_LOW: Final = bytes((low >> 5) << 2 for low in range(256))


def from_rgb565(data: bytes) -> bytes:
    """XRGB8888 of 16-bit pixels."""
    low, high = data[0::2], data[1::2]
    green = int.from_bytes(high.translate(_GREEN_FROM_HIGH), "little") | int.from_bytes(
        low.translate(_GREEN_FROM_LOW), "little"
    )
    pixels = bytearray(2 * len(data))
    pixels[0::4] = low.translate(_BLUE)
    pixels[1::4] = green.to_bytes(len(low), "little")
    pixels[2::4] = high.translate(_RED)
    return bytes(pixels)


def from_xrgb8888(data: bytes) -> bytes:
    """The same with every fourth byte 0; what a guest leaves there means nothing."""
    pixels = bytearray(data)
    pixels[3::4] = bytes(len(data) // 4)
    return bytes(pixels)


def to_rgb(pixels: bytes) -> bytes:
    """Three bytes a pixel, R, G, B: what picture files want."""
    rgb = bytearray(len(pixels) // 4 * 3)
    rgb[0::3], rgb[1::3], rgb[2::3] = pixels[2::4], pixels[1::4], pixels[0::4]
    return bytes(rgb)


def crop(data: bytes, pitch: int, start: int, length: int, rows: int) -> bytes:
    """`length` bytes from `start` of each of so many rows, the rows `pitch` bytes apart; the last may end early."""
    if length == pitch and not start:
        return data[: length * rows]
    return b"".join([data[at : at + length] for at in range(start, start + pitch * rows, pitch)])
