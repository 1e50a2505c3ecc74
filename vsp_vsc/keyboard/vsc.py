"""The keyboard VSC: what a guest program reads. Child side.

    keyboard = await guest.keyboard()
    name = await keyboard.read_line(echo=guest.console.print)
    async for event in keyboard:
        print(event.code, event.pressed, event.text)

Nothing is read ahead: keys that the program does not read stay in the ring, and then with the host.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import trio

from hypervisor.wire import BadValue
from vmbus.channel import Channel
from vmbus.client.platform import GuestPlatform
from vsp_vsc.input_reader import received
from vsp_vsc.keyboard.protocol import (
    VERSION_1_0,
    KeyboardRequest,
    KeyboardResponse,
    KeyboardType,
    KeyFlags,
    Keystroke,
    LedIndicators,
    Leds,
    decode_message,
    encode_message,
)
from vsp_vsc.keyboard.scan_codes import CAPS_LOCK, E0, E1, LEFT_SHIFT, RIGHT_SHIFT, typed_by


class KeyEvent(msgspec.Struct, frozen=True):
    """A key went down, repeats, or went up; or a character came that no key has."""

    code: int
    """Scan code of set 1, its prefix 0xE0 or 0xE1 in the high byte; 0 for a character."""
    pressed: bool
    text: str = ""
    """What it types on a US keyboard, with shift and caps lock as they are; empty for other keys, and on the way up."""


class Keyboard:
    """The keyboard of this guest, for one task at a time."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._shifts: set[int] = set()
        self._half = ""
        """The first of two UTF-16 units."""
        self.leds = Leds(0)
        """The lamps; caps lock is the keyboard's own doing."""

    async def receive(self) -> KeyEvent:
        """The next event. Raises `trio.EndOfChannel` when the keyboard is taken away, `WireError` for nonsense."""
        while True:
            kind, body = decode_message(await received(self._channel))
            if kind != KeyboardType.EVENT:
                raise BadValue(f"keyboard message {kind} from the host, where only keys may be")
            event = self._event(Keystroke.decode(body))
            if event.code == CAPS_LOCK and event.pressed:
                await self.set_leds(self.leds ^ Leds.CAPS_LOCK)
            return event

    def __aiter__(self) -> Keyboard:
        """Every event from now on."""
        return self

    async def __anext__(self) -> KeyEvent:
        """The next; the end when the keyboard is gone."""
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    async def read_text(self) -> str:
        """The next character that is typed."""
        while not (text := (await self.receive()).text):
            pass
        return text

    async def read_line(self, echo: Callable[[str], object] | None = None) -> str:
        """What is typed up to Enter, with backspace understood. `echo` is shown each change, as a terminal would be."""
        line = ""
        while True:
            text = await self.read_text()
            if text == "\n":
                shown = text
            elif text == "\b":
                shown, line = ("\b \b" if line else ""), line[:-1]
            elif text.isprintable() or text == "\t":
                shown, line = text, line + text
            else:
                shown = ""
            if echo is not None and shown:
                echo(shown)
            if text == "\n":
                return line

    async def set_leds(self, leds: Leds) -> None:
        """Light these lamps and no others."""
        self.leds = leds
        await self._channel.send(encode_message(KeyboardType.LED_INDICATORS, LedIndicators(int(leds))))

    def _event(self, stroke: Keystroke) -> KeyEvent:
        pressed = not stroke.flags & KeyFlags.BREAK
        if stroke.flags & KeyFlags.UNICODE:
            return KeyEvent(0, pressed, self._character(stroke.make_code) if pressed else "")
        prefix = E0 if stroke.flags & KeyFlags.E0 else E1 if stroke.flags & KeyFlags.E1 else 0
        code = prefix | stroke.make_code
        if code in (LEFT_SHIFT, RIGHT_SHIFT):
            (self._shifts.add if pressed else self._shifts.discard)(code)
        shift, caps_lock = bool(self._shifts), Leds.CAPS_LOCK in self.leds
        return KeyEvent(code, pressed, typed_by(code, shift=shift, caps_lock=caps_lock) if pressed else "")

    def _character(self, unit: int) -> str:
        """A UTF-16 unit, and the one before where it needs two; units that belong to nothing are no characters."""
        first, self._half = self._half, ""
        if 0xD800 <= unit < 0xDC00:
            self._half = chr(unit)
            return ""
        pair = (first + chr(unit)).encode("utf-16-le", "surrogatepass")
        return pair.decode("utf-16-le", "ignore")


@asynccontextmanager
async def open_keyboard(channel: Channel, platform: GuestPlatform) -> AsyncIterator[Keyboard]:
    """Agree on version 1.0. Raises `WireError`, `trio.EndOfChannel`."""
    await channel.send(encode_message(KeyboardType.PROTOCOL_REQUEST, KeyboardRequest(VERSION_1_0)))
    kind, body = decode_message(await channel.receive())
    if kind != KeyboardType.PROTOCOL_RESPONSE:
        raise BadValue(f"keyboard message {kind} from the host, where its answer was due")
    if not KeyboardResponse.decode(body).status & 1:
        raise BadValue("the host refuses version 1.0 of the keyboard")
    yield Keyboard(channel)
