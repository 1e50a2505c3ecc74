"""A screen's pixels as a PNG file. Root side.

Source: PNG specification (ISO/IEC 15948), clauses 5 and 11: signature, IHDR, IDAT, IEND; 8 bits a channel, RGB. Rows
are not filtered: screens are made of runs, which the compressor finds as they are.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final

from vsp_vsc.video.pixels import BYTES_A_PIXEL, to_rgb

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_ROWS_AT_ONCE: Final = 64
_EFFORT: Final = 6
_RGB: Final = 2


def png_parts(width: int, height: int, pixels: bytes) -> Iterator[bytes]:
    """The file in parts, each some milliseconds of work, so that others may have their turn in between.

    `pixels` are rows of XRGB8888 without gaps.
    """
    yield SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, _RGB, 0, 0, 0))
    compressor = zlib.compressobj(_EFFORT)
    pitch = width * BYTES_A_PIXEL
    for top in range(0, height, _ROWS_AT_ONCE):
        rgb = to_rgb(pixels[top * pitch : (top + _ROWS_AT_ONCE) * pitch])
        rows = [b"\0" + rgb[at : at + width * 3] for at in range(0, len(rgb), width * 3)]  # 0: no filter
        part = compressor.compress(b"".join(rows))
        yield _chunk(b"IDAT", part) if part else b""
    yield _chunk(b"IDAT", compressor.flush()) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
