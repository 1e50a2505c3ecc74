"""RFB: numbers, layouts and limits. Root side.

Source: RFC 6143, and the community's RFB protocol text (rfbproto.rst) for what came later: ExtendedDesktopSize,
LastRect and QEMU's extended key event. Everything is big-endian.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

import attrs

VERSION_LENGTH: Final = 12
SERVER_VERSION: Final = b"RFB 003.008\n"
MAX_ENCODINGS: Final = 1024
MAX_CUT_TEXT: Final = 1 << 20
"""Bytes of text that a client may want to hand over; they are passed over."""
MAX_SCREENS: Final = 255
NO_SECURITY: Final = 1
WHOLE: Final = 0xFFFF
"""As a count of rectangles: until LAST_RECT."""

U16: Final = struct.Struct(">H")
U32: Final = struct.Struct(">I")
RECT: Final = struct.Struct(">HHHHi")
"""x, y, width, height, encoding."""
UPDATE_REQUEST: Final = struct.Struct(">xBHHHH")
KEY_EVENT: Final = struct.Struct(">xBxxI")
POINTER_EVENT: Final = struct.Struct(">xBHH")
CUT_TEXT: Final = struct.Struct(">x3xi")
SET_ENCODINGS: Final = struct.Struct(">xxH")
SET_DESKTOP_SIZE: Final = struct.Struct(">xxHHBx")
SCREEN_LENGTH: Final = 16
QEMU_KEY: Final = struct.Struct(">xxHII")
PIXEL_FORMAT: Final = struct.Struct(">BBBBHHHBBB3x")
SERVER_INIT: Final = struct.Struct(">HH16sI")


class ClientMessage(enum.IntEnum):
    """What a client says."""

    SET_PIXEL_FORMAT = 0
    SET_ENCODINGS = 2
    UPDATE_REQUEST = 3
    KEY_EVENT = 4
    POINTER_EVENT = 5
    CUT_TEXT = 6
    SET_DESKTOP_SIZE = 251
    QEMU = 255


class Encoding(enum.IntEnum):
    """How rectangles are sent, and what else a client says it understands."""

    RAW = 0
    ZRLE = 16
    DESKTOP_SIZE = -223
    LAST_RECT = -224
    QEMU_EXTENDED_KEY = -258
    EXTENDED_DESKTOP_SIZE = -308


class RfbError(Exception):
    """What a client has done, and is closed for."""


@attrs.frozen
class PixelFormat:
    """What a client wants pixels to look like."""

    bits: int = 32
    """A pixel: 8, 16 or 32."""
    depth: int = 24
    big_endian: bool = False
    true_colour: bool = True
    maxima: tuple[int, int, int] = (255, 255, 255)
    """Of red, green and blue."""
    shifts: tuple[int, int, int] = (16, 8, 0)

    @property
    def size(self) -> int:
        """Bytes a pixel."""
        return self.bits // 8

    def encode(self) -> bytes:
        """As it is in messages."""
        return PIXEL_FORMAT.pack(self.bits, self.depth, self.big_endian, self.true_colour, *self.maxima, *self.shifts)

    @classmethod
    def decode(cls, untrusted: bytes) -> PixelFormat:
        """A client's wish. Raises `RfbError` for what cannot be."""
        if len(untrusted) != PIXEL_FORMAT.size:
            raise RfbError(f"a pixel format of {len(untrusted)} bytes")
        bits, depth, big, true_colour, *rest = PIXEL_FORMAT.unpack(untrusted)
        if bits not in (8, 16, 32) or not 1 <= depth <= bits:
            raise RfbError(f"pixels of {bits} bits with {depth} of colour")
        if not true_colour:
            if bits != BGR233.bits:
                raise RfbError(f"a map of colours for pixels of {bits} bits")
            return BGR233  # as a map of its 256 colours, which is sent
        red, green, blue, *shifts = rest
        for maximum, shift in zip((red, green, blue), shifts, strict=True):
            if maximum & (maximum + 1) or maximum << shift >> bits:
                raise RfbError(f"a colour from 0 to {maximum} at bit {shift} of {bits}")
        return cls(bits, depth, bool(big), True, (red, green, blue), (shifts[0], shifts[1], shifts[2]))


SERVER_FORMAT: Final = PixelFormat()
"""What a client gets that does not ask: 32 bits, little-endian, blue first, as the host has them."""
BGR233: Final = PixelFormat(8, 8, False, False, (7, 7, 3), (0, 3, 6))
