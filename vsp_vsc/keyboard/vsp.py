"""The keyboard VSP: people's keys as a guest's driver gets them. Root side.

Keys go down and up by scan code, by name in chords, or as text; nothing waits but `type_text`, for a guest that reads
slowly. `session.py` has what becomes of keys that a guest does not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import trio

from hypervisor.trace import Trace
from vmbus.server.offers import Offer
from vsp_vsc.input_device import InputRefused, InputVsp
from vsp_vsc.keyboard.protocol import KEYBOARD_INSTANCE, KEYBOARD_INTERFACE, Leds
from vsp_vsc.keyboard.scan_codes import LEFT_SHIFT, TYPED, chord_codes
from vsp_vsc.keyboard.session import KeyboardSession

TYPING_SECONDS: Final = 5.0
"""A guest that has read none of its keys for so long does not read them."""
_STROKES_A_CHARACTER: Final = 4
"""At most: shift, the key, and both up."""
MAX_TEXT: Final = 65536


class CannotType(InputRefused):
    """A character that no key types, for a guest that takes no characters."""


class KeyboardVsp(InputVsp[KeyboardSession]):
    """The keyboard of one VM. Every call raises `NoDriver` while its guest has none."""

    def __init__(
        self,
        trace: Trace,
        partition_id: int,
        name: str = "keyboard",
        *,
        takes_unicode: Callable[[], bool] = lambda: False,
    ) -> None:
        """`takes_unicode` says of the guest that runs whether its driver takes characters that no key has."""
        offer = Offer(KEYBOARD_INTERFACE, KEYBOARD_INSTANCE, name=name)
        super().__init__(offer, KeyboardSession, trace, partition_id)
        self._takes_unicode = takes_unicode
        self._typing = trio.Lock()
        self._strokes = 0
        self._refused = 0
        self._leds_told = Leds(0)

    @property
    def leds(self) -> Leds:
        """The lamps that the guest has lit."""
        return Leds(0) if self._session is None else self._session.leds

    @property
    def caps_lock(self) -> bool:
        """Whether letters come out large without shift, as far as the host can tell."""
        return self._session is not None and self._session.caps_lock

    @property
    def takes_unicode(self) -> bool:
        """Whether this guest takes characters that no key has."""
        return self._takes_unicode()

    @property
    def held(self) -> tuple[int, ...]:
        """Scan codes of the keys that are down."""
        return () if self._session is None else self._session.held

    @property
    def refused(self) -> int:
        """Keys that did not go down because the guest does not read, in this run of the VM."""
        return self._refused + (0 if self._session is None else self._session.refused)

    def press(self, *codes: int) -> None:
        """Keys go down, in this order, each a scan code of set 1 with its prefix in the high byte.

        Raises `InputRefused` for those that the guest has no room for; the ones before are down.
        """
        for code in codes:
            if not self.try_press(code):
                raise InputRefused(f"{self.offer}: the guest does not read its keys; key {code:#04x} and what follows")

    def try_press(self, code: int) -> bool:
        """One key goes down; False where the guest has no room for it."""
        pressed = self._ready_session().press(code)
        self._send_soon()
        return pressed

    def release(self, *codes: int) -> None:
        """Keys go up; those that are not down stay so. There is room for these always."""
        session = self._ready_session()
        for code in codes:
            session.release(code)
        self._send_soon()

    def release_all(self) -> None:
        """Every key goes up. Raises nothing."""
        if self._session is not None:
            self._session.release_all()
            self._send_soon()

    def tap(self, *codes: int) -> None:
        """Keys go down in this order and up in the opposite one."""
        self._ready_session()
        try:
            self.press(*codes)
        finally:
            self.release(*reversed(codes))

    def chord(self, name: str) -> None:
        """Keys by name, held down together: `ctrl-alt-del`. Raises `UnknownKey`, a `ValueError`."""
        self.tap(*chord_codes(name))

    def character(self, character: str) -> None:
        """A character that no key has, for a guest that takes such. Raises `CannotType`, `InputRefused`."""
        self.check_text(character)
        if not self._ready_session().unicode(character):
            raise InputRefused(f"{self.offer}: the guest does not read its keys; {character!r} is lost")
        self._send_soon()

    def check_text(self, text: str) -> None:
        """Raises `CannotType` with the first character that would not reach the guest."""
        if len(text) > MAX_TEXT:
            raise CannotType(f"a text of {len(text)} characters; {MAX_TEXT} are typed at once at most")
        if self.takes_unicode:
            return
        for place, character in enumerate(text, 1):
            if character not in TYPED:
                raise CannotType(
                    f"{self.offer}: no key types {character!r} (U+{ord(character):04X}, character {place}) on a US "
                    "keyboard, and this guest's driver takes keys alone, as Linux's does"
                )

    async def type_text(self, text: str, *, patience: float = TYPING_SECONDS) -> None:
        """Type it on a US keyboard, with `\\n` as Enter; one text at a time.

        Characters that no key has go as they are to guests that take them, and are `CannotType` for others, before
        anything is typed. Raises `InputRefused` when the guest has read nothing for `patience` seconds; the text says
        how far it came. Caps lock is undone by shift.
        """
        self._ready_session()
        self.check_text(text)
        async with self._typing:
            for place, character in enumerate(text):
                await self._wait_for_room(f"typed {place} of {len(text)} characters", patience)
                self._type(character)
            await trio.lowlevel.checkpoint()

    async def _wait_for_room(self, done: str, patience: float) -> None:
        while (session := self._ready_session()).room < _STROKES_A_CHARACTER:
            with trio.move_on_after(patience) as waiting:
                await self._room()
            if waiting.cancelled_caught and session is self._session and session.room < _STROKES_A_CHARACTER:
                raise InputRefused(f"{self.offer}: {done}: the guest does not read its keys")

    def _type(self, character: str) -> None:
        key = TYPED.get(character)
        if key is None:
            self.character(character)
            return
        code, shifted = key
        if character.isalpha() and self.caps_lock:
            shifted = not shifted
        codes: Sequence[int] = (LEFT_SHIFT, code) if shifted and LEFT_SHIFT not in self.held else (code,)
        self.tap(*codes)

    # --- for `InputVsp`

    def _shown(self) -> dict[str, object]:
        return {
            "leds": led_words(self.leds),
            "held": " ".join(f"{code:#04x}" for code in self.held) or "none",
            "strokes": self._strokes + (0 if self._session is None else self._session.strokes),
            "refused": self.refused,
        }

    def _negotiated(self) -> str:
        return "version 1.0"

    def _taken(self, session: KeyboardSession) -> None:
        if session.leds != self._leds_told:
            self._leds_told = session.leds
            if self._trace.on:
                self._emit("leds", f"lamps: {led_words(session.leds)}")

    def _ended(self, session: KeyboardSession) -> None:
        self._strokes += session.strokes
        self._refused += session.refused
        self._leds_told = Leds(0)


def led_words(leds: Leds) -> str:
    """Lamps for people."""
    return ", ".join(led.name.lower().replace("_", " ") for led in leds if led.name) or "none"
