"""What a monitor says of itself: an EDID block for a screen that has one size of its own. Root side.

Source: VESA Enhanced EDID Standard, release A, revision 2 (EDID 1.4). Blanking follows VESA's reduced-blanking formula
closely enough for drivers, none of which has a cable to feed.
"""

from __future__ import annotations

import struct

NAME = b"Partita"
_HEADER = bytes.fromhex("00ffffffffffff00")
_SRGB = bytes.fromhex("ee91a3544c99260f5054")
"""Chromaticities of sRGB."""
_REFRESH = 60


def edid(width: int, height: int) -> bytes:
    """128 bytes; `width` and `height` are the preferred mode's pixels, up to 4095."""
    block = _HEADER + struct.pack(">H", _letters("PTA")) + struct.pack("<HIBB", 1, 0, 0xFF, 2026 - 1990)
    block += bytes((1, 4))
    block += bytes((0xA5, 0, 0, 120, 0x06))  # digital, 8 bits a channel; no size; gamma 2.2; sRGB, the mode is native
    block += _SRGB + bytes(3) + b"\x01\x01" * 8
    block += _timing(width, height) + _text(0xFC, NAME) + _text(0xFE, b"a virtual one") + b"\0\0\0\x10" + bytes(14)
    block += b"\0"
    return block + bytes((-sum(block) & 0xFF,))


def _letters(maker: str) -> int:
    """Three capitals in five bits each."""
    a, b, c = (ord(letter) - ord("A") + 1 for letter in maker)
    return a << 10 | b << 5 | c


def _timing(width: int, height: int) -> bytes:
    """A detailed timing descriptor."""
    h_blank, h_front, h_sync = 160, 48, 32
    v_front, v_sync = 3, 6
    v_blank = max(v_front + v_sync + 6, round(height * 0.0286))
    clock = (width + h_blank) * (height + v_blank) * _REFRESH // 10_000
    return struct.pack(
        "<H12B4x",
        min(clock, 0xFFFF),
        width & 0xFF,
        h_blank,
        width >> 8 << 4,
        height & 0xFF,
        v_blank,
        height >> 8 << 4,
        h_front,
        h_sync,
        v_front << 4 | v_sync,
        0,
        0,
        0,
    )[:17] + bytes((0x1A,))


def _text(tag: int, text: bytes) -> bytes:
    """A descriptor of up to 13 characters."""
    return b"\0\0\0" + bytes((tag, 0)) + (text[:13] + b"\n" * (len(text) < 13)).ljust(13, b" ")
