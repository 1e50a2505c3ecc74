"""The host's pixels in a client's format, a whole picture at a time. Root side.

No loop runs once a pixel. Each byte of a client's pixel has bits of up to three colours; a byte table makes each
colour's share of it, and long integers join the shares.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from partitions.root.vnc.protocol import SERVER_FORMAT, PixelFormat

TILE: Final = 64
"""Pixels along the side of a ZRLE tile."""
_RAW, _SOLID = b"\0", b"\1"
_AT: Final = (2, 1, 0)
"""Where red, green and blue are in a pixel of the host's."""


def convert(pixels: bytes, wanted: PixelFormat) -> bytes:
    """XRGB8888 pixels in another format."""
    if wanted == SERVER_FORMAT:
        return pixels
    made = bytearray(len(pixels) // 4 * wanted.size)
    for place, shares in enumerate(_tables(wanted)):
        joined: int | None = None
        for colour, table in shares:
            share = int.from_bytes(pixels[colour::4].translate(table), "little")
            joined = share if joined is None else joined | share
        if joined is not None:
            made[place :: wanted.size] = joined.to_bytes(len(pixels) // 4, "little")
    return bytes(made)


def compact(pixels: bytes, wanted: PixelFormat) -> tuple[bytes, int]:
    """A client's pixels as ZRLE has them, and the bytes of each: three of four where one says nothing."""
    unused = _unused_byte(wanted)
    if unused is None:
        return pixels, wanted.size
    made = bytearray(len(pixels) // 4 * 3)
    for place, source in enumerate(one for one in range(4) if one != unused):
        made[place::3] = pixels[source::4]
    return bytes(made), 3


def tiles(pixels: bytes, size: int, width: int, height: int) -> bytes:
    """A rectangle as ZRLE's tiles, before compression: of one colour, or as they are, which compresses as well."""
    parts: list[bytes] = []
    row = width * size
    for top in range(0, height, TILE):
        rows = range(top * row, min(top + TILE, height) * row, row)
        for left in range(0, row, TILE * size):
            right = min(left + TILE * size, row)
            tile = b"".join([pixels[at + left : at + right] for at in rows])
            first = tile[:size]
            parts += (_SOLID, first) if tile == first * (len(tile) // size) else (_RAW, tile)
    return b"".join(parts)


@lru_cache(maxsize=64)
def _tables(wanted: PixelFormat) -> tuple[tuple[tuple[int, bytes], ...], ...]:
    """For each byte of a pixel, which colours have a share in it, and the table that makes it."""
    places = []
    for place in range(wanted.size):
        bit = 8 * (wanted.size - 1 - place if wanted.big_endian else place)
        shares = []
        for at, maximum, shift in zip(_AT, wanted.maxima, wanted.shifts, strict=True):
            table = bytes(((value * maximum + 127) // 255 << shift) >> bit & 0xFF for value in range(256))
            if any(table):
                shares.append((at, table))
        places.append(tuple(shares))
    return tuple(places)


@lru_cache(maxsize=64)
def _unused_byte(wanted: PixelFormat) -> int | None:
    """Which byte of a pixel ZRLE leaves out: the highest or the lowest, where no colour is in it."""
    if wanted.bits != 32 or wanted.depth > 24 or not wanted.true_colour:
        return None
    used = 0
    for maximum, shift in zip(wanted.maxima, wanted.shifts, strict=True):
        used |= maximum << shift
    if not used >> 24:
        return 0 if wanted.big_endian else 3
    if not used & 0xFF:
        return 3 if wanted.big_endian else 0
    return None
