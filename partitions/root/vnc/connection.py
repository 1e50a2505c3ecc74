"""One VNC client's connection, with no Trio in it: bytes in, what the client does and bytes out. Root side.

    version -> security -> init -> running

`feed` takes what came and returns keys and pointers; what there is to answer is in `output`. Pictures go by `updates`,
one at a time, when `due` says that the client has asked for one and something that it asked for has changed. What
changes meanwhile waits as a few rectangles, so a client that reads slowly gets fewer pictures and costs no more.

A client that breaks the protocol is `RfbError`, once; the caller closes it. Lengths are checked before anything is
kept: the largest message that is held whole has 4 KiB, and text from a client's clipboard is counted off and dropped.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Final, assert_never

import attrs

from partitions.root.vnc import protocol as rfb
from partitions.root.vnc.pixels import compact, convert, tiles
from partitions.root.vnc.protocol import ClientMessage, Encoding, PixelFormat, RfbError
from partitions.root.vnc.regions import Region, common
from vsp_vsc.video.framebuffer import Rect

BAND_PIXELS: Final = 64 * 1024
"""Of a picture that are made at a time; others run in between: after five milliseconds, ten where all is noise."""
_COMPRESSION: Final = 1
"""Of zlib: what a screen saves comes at the first level, and the host has better to do."""
_OFFERED: Final = (Encoding.ZRLE, Encoding.RAW)
_DENIED: Final = 1
_BY_THE_HOST, _BY_THIS_CLIENT = 0, 1
Read = Callable[[int, int, int, int], bytes]
"""Pixels of a part of the screen, as `Framebuffer.pixels`."""


class State(enum.Enum):
    """Where a connection is."""

    VERSION = "version"
    SECURITY = "security"
    INIT = "init"
    RUNNING = "running"


@attrs.frozen
class Began:
    """The client is in."""

    shared: bool
    """Else it wants to be the only one."""


@attrs.frozen
class Key:
    """A key went down or up."""

    keysym: int
    down: bool
    xt_code: int = 0
    """The key itself, where the client says it: as QEMU's extended key event has it."""


@attrs.frozen
class Pointer:
    """Where the pointer is, in pixels of the client's screen, and the buttons that are down."""

    buttons: int
    x: int
    y: int


Event = Began | Key | Pointer


class RfbConnection:
    """The server's end."""

    def __init__(self, width: int, height: int, name: str, *, refuse: str = "") -> None:
        """A screen of that size; `refuse` says why the client may not come in."""
        self.width = width
        self.height = height
        """As the client knows it."""
        self.state = State.VERSION
        self.version = ""
        self.format = rfb.SERVER_FORMAT
        self.encoding = Encoding.RAW
        self.output = bytearray(rfb.SERVER_VERSION)
        """To be sent before the next picture; the caller empties it."""
        self.pictures = 0
        self._name = name.encode()
        self._refuse = refuse
        self._held = bytearray()
        self._skip = 0
        self._understood: frozenset[int] = frozenset()
        self._size = (width, height)
        """The screen's own."""
        self._changed = Region()
        self._wanted: Rect | None = None
        self._size_due = False
        self._keys_due = False
        self._asked_size = False
        self._zlib = zlib.compressobj(_COMPRESSION)

    # --- in

    def feed(self, untrusted: bytes) -> Iterator[Event]:
        """What the client does, as it is read. Raises `RfbError`."""
        self._held += untrusted
        while True:
            if self._skip:
                passed = min(self._skip, len(self._held))
                del self._held[:passed]
                self._skip -= passed
            length = self._next_length() if not self._skip else 0
            if not length or len(self._held) < length:
                return
            message = bytes(self._held[:length])
            del self._held[:length]
            event = self._take(message)
            if event is not None:
                yield event

    def _next_length(self) -> int:
        """Bytes of the message that begins; as much as has to come before that is known. 0: nothing has come."""
        match self.state:
            case State.VERSION:
                return rfb.VERSION_LENGTH
            case State.SECURITY | State.INIT:
                return 1
            case State.RUNNING:
                return self._message_length() if self._held else 0
            case _:
                assert_never(self.state)

    def _message_length(self) -> int:
        held = self._held
        match held[0]:
            case ClientMessage.SET_PIXEL_FORMAT:
                return 4 + rfb.PIXEL_FORMAT.size
            case ClientMessage.SET_ENCODINGS:
                length = rfb.SET_ENCODINGS.size
                if len(held) < length:
                    return length
                (count,) = rfb.SET_ENCODINGS.unpack_from(held)
                if count > rfb.MAX_ENCODINGS:
                    raise RfbError(f"{count} encodings")
                return length + 4 * int(count)
            case ClientMessage.UPDATE_REQUEST:
                return rfb.UPDATE_REQUEST.size
            case ClientMessage.KEY_EVENT:
                return rfb.KEY_EVENT.size
            case ClientMessage.POINTER_EVENT:
                return rfb.POINTER_EVENT.size
            case ClientMessage.CUT_TEXT:
                return rfb.CUT_TEXT.size
            case ClientMessage.SET_DESKTOP_SIZE:
                length = rfb.SET_DESKTOP_SIZE.size
                return length if len(held) < length else length + rfb.SCREEN_LENGTH * held[length - 2]
            case ClientMessage.QEMU:
                if len(held) > 1 and held[1]:
                    raise RfbError(f"QEMU message {held[1]}, which was not offered")
                return rfb.QEMU_KEY.size
            case kind:
                raise RfbError(f"message type {kind}")

    def _take(self, message: bytes) -> Event | None:
        match self.state:
            case State.VERSION:
                self._take_version(message)
            case State.SECURITY:
                self._take_security(message[0])
            case State.INIT:
                return self._begin(shared=bool(message[0]))
            case State.RUNNING:
                return self._take_message(message)
            case _:
                assert_never(self.state)
        return None

    def _take_version(self, message: bytes) -> None:
        number = message[4:11]
        if message[:4] + message[7:8] + message[11:] != b"RFB .\n" or not (number[:3] + number[4:]).isdigit():
            raise RfbError(f"{message!r}, which is no version")
        # 3.5 was never published and others are unknown: as 3.3 (RFC 6143, 7.1.1). Those of the future take 3.8.
        self.version = {b"003.007": "3.7", b"003.008": "3.8"}.get(number, "3.8" if number > b"003.008" else "3.3")
        reason = self._refuse.encode()
        if self.version == "3.3":
            self.output += rfb.U32.pack(0 if reason else rfb.NO_SECURITY)
        else:
            self.output += b"\0" if reason else bytes((1, rfb.NO_SECURITY))
        if reason:
            self.output += rfb.U32.pack(len(reason)) + reason
            raise RfbError(self._refuse)
        self.state = State.INIT if self.version == "3.3" else State.SECURITY

    def _take_security(self, kind: int) -> None:
        if kind != rfb.NO_SECURITY:
            if self.version == "3.8":
                reason = b"that was not offered"
                self.output += rfb.U32.pack(1) + rfb.U32.pack(len(reason)) + reason
            raise RfbError(f"security type {kind}, which was not offered")
        if self.version == "3.8":
            self.output += rfb.U32.pack(0)
        self.state = State.INIT

    def _begin(self, *, shared: bool) -> Began:
        self.width, self.height = self._size
        self.output += rfb.SERVER_INIT.pack(self.width, self.height, rfb.SERVER_FORMAT.encode(), len(self._name))
        self.output += self._name
        self.state = State.RUNNING
        self._changed.add([self._screen])
        return Began(shared)

    def _take_message(self, message: bytes) -> Event | None:
        match ClientMessage(message[0]):
            case ClientMessage.SET_PIXEL_FORMAT:
                self.format = PixelFormat.decode(message[4:])
                if not self.format.true_colour:
                    self._tell_colours()
                self._changed.add([self._screen])
            case ClientMessage.SET_ENCODINGS:
                self._take_encodings(message)
            case ClientMessage.UPDATE_REQUEST:
                self._take_request(*rfb.UPDATE_REQUEST.unpack(message))
            case ClientMessage.KEY_EVENT:
                down, keysym = rfb.KEY_EVENT.unpack(message)
                return Key(keysym, bool(down))
            case ClientMessage.POINTER_EVENT:
                return Pointer(*rfb.POINTER_EVENT.unpack(message))
            case ClientMessage.CUT_TEXT:
                (length,) = rfb.CUT_TEXT.unpack(message)
                if abs(length) > rfb.MAX_CUT_TEXT:
                    raise RfbError(f"{abs(length)} bytes of text")
                self._skip = abs(length)  # below 0 in the clipboard's extended form
            case ClientMessage.SET_DESKTOP_SIZE:
                self._asked_size = True
            case ClientMessage.QEMU:
                down, keysym, xt_code = rfb.QEMU_KEY.unpack(message)
                return Key(keysym, bool(down), xt_code)
            case _:
                raise AssertionError("its length is not known")
        return None

    def _tell_colours(self) -> None:
        """The map is always the same: one in front of the next picture does, however often a client wants it."""
        if not self.output.endswith(_colour_map()):
            self.output += _colour_map()

    def _take_encodings(self, message: bytes) -> None:
        before = self._understood
        untrusted = [int.from_bytes(message[at : at + 4], "big", signed=True) for at in range(4, len(message), 4)]
        self._understood = frozenset(untrusted)
        self.encoding = next((Encoding(one) for one in untrusted if one in _OFFERED), Encoding.RAW)
        new = self._understood - before
        self._keys_due |= Encoding.QEMU_EXTENDED_KEY in new
        # A client that has just learned of it is told the size, and with that that it may ask for another.
        self._size_due |= Encoding.EXTENDED_DESKTOP_SIZE in new or self._size != (self.width, self.height)

    def _take_request(self, incremental: int, x: int, y: int, width: int, height: int) -> None:
        area = Rect(x, y, width, height)
        self._wanted = area if self._wanted is None else self._wanted.around(area)
        if not incremental:
            self.changed([area])

    # --- out

    @property
    def _screen(self) -> Rect:
        return Rect(0, 0, self.width, self.height)

    @property
    def _resizes(self) -> bool:
        """Whether the client's screen can get another size."""
        return not self._understood.isdisjoint((Encoding.DESKTOP_SIZE, Encoding.EXTENDED_DESKTOP_SIZE))

    def changed(self, rects: Iterable[Rect]) -> None:
        """Parts of the screen are to be read again."""
        self._changed.add(inside for rect in rects if (inside := common(rect, self._screen)) is not None)

    def resized(self, width: int, height: int) -> None:
        """The screen has another size. A client that knows no other than its first sees what has room there."""
        if (width, height) != self._size:
            self._size = (width, height)
            self._size_due = True
        self._changed.add([self._screen])

    @property
    def due(self) -> bool:
        """Whether the client is to get a picture now."""
        if self._wanted is None:
            return False
        return (
            self._keys_due
            or self._asked_size
            or (self._size_due and self._resizes)
            or (self._changed.meets(self._wanted))
        )

    def updates(self, read: Read) -> Iterator[bytes]:
        """The picture that is due, in pieces. Between two of them the screen may change, and even its size."""
        assert self._wanted is not None, "`due` has said so"
        wanted, self._wanted = self._wanted, None
        notes = list(self._notes())
        bands = [
            Rect(rect.x, top, rect.width, min(rows, rect.bottom - top))
            for rect in self._changed.take(wanted)
            for rows in (max(1, BAND_PIXELS // rect.width),)
            for top in range(rect.y, rect.bottom, rows)
        ]
        open_ended = Encoding.LAST_RECT in self._understood
        count = len(notes) + len(bands)
        yield b"\0\0" + rfb.U16.pack(rfb.WHOLE if open_ended else count) + b"".join(notes)
        size, form, encoding = self._size, self.format, self.encoding  # a client may change its mind meanwhile
        for band in bands:
            if open_ended and self._size != size:
                self._changed.add([self._screen])  # the rest of an old picture helps nobody
                break
            yield self._rect(band, form, encoding, read)
        if open_ended:
            yield rfb.RECT.pack(0, 0, 0, 0, Encoding.LAST_RECT)
        self.pictures += 1

    def _notes(self) -> Iterator[bytes]:
        """Rectangles that are none: the size, and that keys may come by their codes."""
        if self._keys_due:
            self._keys_due = False
            yield rfb.RECT.pack(0, 0, 0, 0, Encoding.QEMU_EXTENDED_KEY)
        extended = Encoding.EXTENDED_DESKTOP_SIZE in self._understood
        if self._asked_size:
            self._asked_size = False
            if extended:
                yield self._extended_size(_BY_THIS_CLIENT, _DENIED)
        if self._size_due and self._resizes:
            self._size_due = False
            self.width, self.height = self._size
            self._changed = Region()
            self._changed.add([self._screen])
            if extended:
                yield self._extended_size(_BY_THE_HOST, 0)
            else:
                yield rfb.RECT.pack(0, 0, self.width, self.height, Encoding.DESKTOP_SIZE)

    def _extended_size(self, reason: int, status: int) -> bytes:
        """One screen, which is all of it."""
        head = rfb.RECT.pack(reason, status, self.width, self.height, Encoding.EXTENDED_DESKTOP_SIZE)
        screen = b"\0\0\0\1" + b"\0\0\0\0" + rfb.U16.pack(self.width) + rfb.U16.pack(self.height) + b"\0\0\0\0"
        return head + b"\1\0\0\0" + screen

    def _rect(self, rect: Rect, form: PixelFormat, encoding: Encoding, read: Read) -> bytes:
        pixels = convert(read(*rect), form)
        if encoding is not Encoding.ZRLE:
            return rfb.RECT.pack(*rect, Encoding.RAW) + pixels
        data = tiles(*compact(pixels, form), rect.width, rect.height)
        packed = self._zlib.compress(data) + self._zlib.flush(zlib.Z_SYNC_FLUSH)
        return rfb.RECT.pack(*rect, Encoding.ZRLE) + rfb.U32.pack(len(packed)) + packed


@cache
def _colour_map() -> bytes:
    """For clients without true colour: the 256 colours of `BGR233`."""
    (red, green, blue), shifts = rfb.BGR233.maxima, rfb.BGR233.shifts
    entries = b"".join(
        rfb.U16.pack((value >> shift & maximum) * 65535 // maximum)
        for value in range(256)
        for maximum, shift in zip((red, green, blue), shifts, strict=True)
    )
    return b"\1\0" + rfb.U16.pack(0) + rfb.U16.pack(256) + entries
