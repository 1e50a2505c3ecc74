"""A VNC client of bytes: what a server sends becomes a picture, by a decoder of the tests' own."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Generator

RAW, ZRLE, DESKTOP_SIZE, LAST_RECT, QEMU_KEY, EXTENDED_SIZE = 0, 16, -223, -224, -258, -308
WHOLE = 0xFFFF
Reader = Generator[int, bytes, None]


def client_format(
    bits: int,
    maxima: tuple[int, int, int],
    shifts: tuple[int, int, int],
    *,
    depth: int | None = None,
    big: bool = False,
    true_colour: bool = True,
) -> bytes:
    """A pixel format as it is in messages."""
    if depth is None:
        depth = sum(one.bit_length() for one in maxima)
    return struct.pack(">BBBBHHHBBB3x", bits, depth, big, true_colour, *maxima, *shifts)


class Viewer:
    """What one viewer knows. `feed` it; `picture` is RGB, three bytes a pixel."""

    def __init__(self, version: str = "003.008", *, shared: bool = True) -> None:
        self.to_send = bytearray()
        self.width = self.height = 0
        self.name = ""
        self.picture = bytearray()
        self.updates = 0
        self.rects: list[tuple[int, int, int, int, int]] = []
        """Of all updates: x, y, width, height, encoding."""
        self.refusal = ""
        self.running = False
        self.took_keys = False
        self._version = version
        self._shared = shared
        self._format = (32, False, (255, 255, 255), (16, 8, 0), 24)
        self._map: list[tuple[int, int, int]] = []
        self._zlib = zlib.decompressobj()
        self._held = bytearray()
        self._reader = self._read()
        self._wants = next(self._reader)

    # --- what a person does

    def say(self, message: bytes) -> None:
        self.to_send += message

    def set_format(self, wanted: bytes) -> None:
        """From now on: a viewer changes it while no picture is outstanding."""
        self.say(b"\0\0\0\0" + wanted)
        bits, depth, big, true_colour, red, green, blue, *shifts = struct.unpack(">BBBBHHHBBB3x", wanted)
        self._format = (bits, bool(big), (red, green, blue), (shifts[0], shifts[1], shifts[2]), depth)
        if not true_colour:
            self._format = (8, False, (0, 0, 0), (0, 0, 0), 8)

    def set_encodings(self, *encodings: int) -> None:
        self.say(struct.pack(f">BxH{len(encodings)}i", 2, len(encodings), *encodings))

    def ask(self, *, incremental: bool = True, area: tuple[int, int, int, int] | None = None) -> None:
        x, y, width, height = area or (0, 0, self.width, self.height)
        self.say(struct.pack(">BBHHHH", 3, incremental, x, y, width, height))

    def key(self, keysym: int, *, down: bool) -> None:
        self.say(struct.pack(">BBxxI", 4, down, keysym))

    def xt_key(self, keysym: int, code: int, *, down: bool) -> None:
        self.say(struct.pack(">BBHII", 255, 0, down, keysym, code))

    def point(self, buttons: int, x: int, y: int) -> None:
        self.say(struct.pack(">BBHH", 5, buttons, x, y))

    def sent(self) -> bytes:
        """What there is for the server."""
        data = bytes(self.to_send)
        self.to_send.clear()
        return data

    # --- what the server says

    def feed(self, data: bytes) -> None:
        self._held += data
        while len(self._held) >= self._wants:
            piece = bytes(self._held[: self._wants])
            del self._held[: self._wants]
            self._wants = self._reader.send(piece)

    @property
    def idle(self) -> bool:
        """Whether every message has come whole."""
        return not self._held

    def pixel(self, x: int, y: int) -> tuple[int, int, int]:
        at = (y * self.width + x) * 3
        red, green, blue = self.picture[at : at + 3]
        return red, green, blue

    def _read(self) -> Reader:
        assert (yield 12) == b"RFB 003.008\n"
        self.say(f"RFB {self._version}\n".encode())
        if self._version == "003.003":
            (kind,) = struct.unpack(">I", (yield 4))
            if kind == 0:
                yield from self._reason()
            assert kind == 1
        else:
            (count,) = yield 1
            if count == 0:
                yield from self._reason()
            assert (yield count) == b"\1"
            self.say(b"\1")
            if self._version == "003.008":
                assert (yield 4) == bytes(4)
        self.say(bytes([self._shared]))
        self.width, self.height, _, length = struct.unpack(">HH16sI", (yield 24))
        self.name = (yield length).decode()
        self.picture = bytearray(3 * self.width * self.height)
        self.running = True
        while True:
            (kind,) = yield 1
            if kind == 0:
                yield from self._update()
            elif kind == 1:
                first, count = struct.unpack(">xHH", (yield 5))
                entries = struct.unpack(f">{3 * count}H", (yield 6 * count))
                assert first == 0
                self._map = [
                    (red >> 8, green >> 8, blue >> 8)
                    for red, green, blue in zip(entries[::3], entries[1::3], entries[2::3], strict=True)
                ]
            else:
                raise AssertionError(f"message {kind} from a server")

    def _reason(self) -> Reader:
        (length,) = struct.unpack(">I", (yield 4))
        self.refusal = (yield length).decode()
        while True:
            yield 1

    def _update(self) -> Reader:
        (count,) = struct.unpack(">xH", (yield 3))
        seen = 0
        while count == WHOLE or seen < count:
            seen += 1
            x, y, width, height, encoding = struct.unpack(">HHHHi", (yield 12))
            self.rects.append((x, y, width, height, encoding))
            if encoding == LAST_RECT:
                break
            if encoding == RAW:
                size = self._format[0] // 8
                self._draw(x, y, width, height, (yield size * width * height), size)
            elif encoding == ZRLE:
                (length,) = struct.unpack(">I", (yield 4))
                self._tiles(x, y, width, height, self._zlib.decompress((yield length)))
            elif encoding == DESKTOP_SIZE:
                self._resize(width, height)
            elif encoding == EXTENDED_SIZE:
                (screens,) = struct.unpack(">B3x", (yield 4))
                assert screens == 1
                assert struct.unpack(">HHHH", (yield 16)[4:12]) == (0, 0, width, height)
                if y == 0:
                    self._resize(width, height)
            elif encoding == QEMU_KEY:
                self.took_keys = True
            else:
                raise AssertionError(f"encoding {encoding}")
        self.updates += 1

    def _resize(self, width: int, height: int) -> None:
        if (width, height) != (self.width, self.height):
            self.width, self.height = width, height
            self.picture = bytearray(3 * width * height)

    def _tiles(self, left: int, top: int, width: int, height: int, data: bytes) -> None:
        """Kinds 0 and 1: as they are, and of one colour."""
        size, at = self._compact_size(), 0
        for y in range(top, top + height, 64):
            for x in range(left, left + width, 64):
                across, down = min(64, left + width - x), min(64, top + height - y)
                kind = data[at]
                at += 1
                if kind == 0:
                    pixels = data[at : at + across * down * size]
                    at += len(pixels)
                else:
                    assert kind == 1
                    pixels = data[at : at + size] * (across * down)
                    at += size
                self._draw(x, y, across, down, pixels, size)
        assert at == len(data)

    def _compact_size(self) -> int:
        bits, _, maxima, shifts, depth = self._format
        used = 0
        for maximum, shift in zip(maxima, shifts, strict=True):
            used |= maximum << shift
        return 3 if bits == 32 and depth <= 24 and (not used >> 24 or not used & 0xFF) else bits // 8

    def _draw(self, x: int, y: int, width: int, height: int, pixels: bytes, size: int) -> None:
        assert len(pixels) == width * height * size
        assert x + width <= self.width
        assert y + height <= self.height
        bits, big, maxima, shifts, _ = self._format
        known: dict[bytes, bytes] = {}
        out = bytearray()
        usual = not big and maxima == (255, 255, 255) and shifts == (16, 8, 0)
        if usual:  # blue, green, red: a loop for each pixel is for the other formats
            out = bytearray(3 * width * height)
            for place in range(3):
                out[place::3] = pixels[2 - place :: size]
        for at in () if usual else range(0, len(pixels), size):
            raw = pixels[at : at + size]
            colour = known.get(raw)
            if colour is None:
                value = int.from_bytes(raw, "big" if big else "little")
                if size * 8 < bits and any(
                    maximum << shift >> 24 for maximum, shift in zip(maxima, shifts, strict=True)
                ):
                    value <<= 8
                if self._map:
                    colour = bytes(self._map[value])
                else:
                    colour = bytes(
                        round((value >> shift & maximum) * 255 / maximum)
                        for maximum, shift in zip(maxima, shifts, strict=True)
                    )
                known[raw] = colour
            out += colour
        for row in range(height):
            start = ((y + row) * self.width + x) * 3
            self.picture[start : start + 3 * width] = out[row * width * 3 : (row + 1) * width * 3]
