"""One VNC client's hands on a VM: keysyms become keys that go down and up, the pointer becomes a mouse. Root side.

A client says which character it typed, and a guest wants to know which keys: where shift is not as the character needs
it, shift is pressed or let go around the key. What a client holds goes up when it leaves. Input for a guest without a
driver is dropped, and counted; a person sees at once that nothing happens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hypervisor.inspect import Branch
from partitions.root.vnc.connection import Key, Pointer
from partitions.root.vnc.keysyms import character_of, key_of, typed_with, xt_code
from vsp_vsc.input_device import InputRefused
from vsp_vsc.keyboard.scan_codes import LEFT_SHIFT, RIGHT_SHIFT
from vsp_vsc.mouse.protocol import Buttons

if TYPE_CHECKING:
    from vsp_vsc.keyboard.vsp import KeyboardVsp
    from vsp_vsc.mouse.vsp import MouseVsp

_SHIFTS: Final = (LEFT_SHIFT, RIGHT_SHIFT)
_BUTTONS: Final = ((0, Buttons.LEFT), (1, Buttons.MIDDLE), (2, Buttons.RIGHT), (7, Buttons.BACK))
_WHEEL: Final = ((3, 1), (4, -1))
"""Bits of RFB's button mask, and what they are; a turn of the wheel is a click of its bit."""


class Hands:
    """What one client holds. Nothing raises."""

    def __init__(
        self, find_keyboard: Callable[[], KeyboardVsp | None], find_mouse: Callable[[], MouseVsp | None]
    ) -> None:
        self._keyboard = find_keyboard
        self._mouse = find_mouse
        self._held: dict[int, None] = {}
        self._mask = 0
        self._last = 0, 0, 1, 1
        self.keys = 0
        self.moves = 0
        self.unknown = 0
        """Keysyms that are on no key."""
        self.dropped = 0
        """Input for a guest that takes none."""

    def inspect(self) -> Branch:
        """What came, and what became of it."""
        counts = {"keys": self.keys, "moves": self.moves, "unknown_keys": self.unknown, "dropped": self.dropped}
        return Branch({**counts, "held": len(self._held)})

    def key(self, event: Key) -> None:
        """A key went down or up."""
        self.keys += 1
        keyboard = self._keyboard()
        if keyboard is None or not keyboard.ready:
            self._held.clear()
            self.dropped += 1
            return
        try:
            self._key(keyboard, event)
        except InputRefused:
            self.dropped += 1

    def point(self, event: Pointer, width: int, height: int) -> None:
        """The pointer moved, or a button did; on a screen of that size."""
        self.moves += 1
        before, self._mask = self._mask, event.buttons
        self._last = event.x, event.y, width, height
        clicked = event.buttons & ~before
        turned = sum(steps for bit, steps in _WHEEL if clicked >> bit & 1)
        self._move(turned)

    def leave(self) -> None:
        """The client is gone: everything goes up that it holds."""
        keyboard = self._keyboard()
        if keyboard is not None and keyboard.ready and self._held:
            keyboard.release(*reversed(self._held))
        self._held.clear()
        if self._mask:
            self._mask = 0
            self._move(0)

    # --- inside

    def _move(self, turned: int) -> None:
        mouse = self._mouse()
        buttons = sum(button for bit, button in _BUTTONS if self._mask >> bit & 1)
        try:
            if mouse is None:
                raise InputRefused
            mouse.point(*self._last, buttons, turned)
        except InputRefused:
            self.dropped += 1

    def _key(self, keyboard: KeyboardVsp, event: Key) -> None:
        code = xt_code(event.xt_code) or key_of(event.keysym)
        if code is not None:
            self._press(keyboard, code, event.down)
            return
        character = character_of(event.keysym)
        typed = None if character is None else typed_with(character)
        if character is None:
            self.unknown += 1
        elif typed is not None:
            self._type(keyboard, *typed, character.isalpha(), event.down)
        elif not keyboard.takes_unicode:
            self.unknown += 1
        elif event.down:
            keyboard.character(character)

    def _press(self, keyboard: KeyboardVsp, code: int, down: bool) -> None:
        if not down:
            self._held.pop(code, None)
            keyboard.release(code)
        elif keyboard.try_press(code):
            self._held[code] = None
        else:
            self.dropped += 1

    def _type(self, keyboard: KeyboardVsp, code: int, shifted: bool, letter: bool, down: bool) -> None:
        """A key that types a character, with shift as it needs it."""
        if not down:
            self._press(keyboard, code, down=False)
            return
        if letter and keyboard.caps_lock:
            shifted = not shifted
        shifts = [one for one in keyboard.held if one in _SHIFTS]
        if shifted == bool(shifts):
            self._press(keyboard, code, down=True)
        elif shifted:
            keyboard.press(LEFT_SHIFT)
            self._press(keyboard, code, down=True)
            keyboard.release(LEFT_SHIFT)
        else:
            keyboard.release(*shifts)
            self._press(keyboard, code, down=True)
            keyboard.press(*shifts)
