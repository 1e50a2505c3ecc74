"""Keys by name, scan codes of set 1, and what they type on a US keyboard. Both sides.

A scan code here is one number: the key's make code, and in its high byte the prefix that a real keyboard sends before
it, 0xE0 or 0xE1. Source: IBM's Personal System/2 keyboard reference, scan code set 1; USB HID to PS/2 scan code
translation table of Microsoft.
"""

from __future__ import annotations

import difflib
from typing import Final

E0: Final = 0xE000
E1: Final = 0xE100

_ROWS: Final = (
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1E, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (0x39, " ", " "),
)
"""The first code of each row, and what its keys type without shift and with it; codes of a row are consecutive."""

ENTER: Final = 0x1C
CAPS_LOCK: Final = 0x3A
LEFT_SHIFT: Final = 0x2A
RIGHT_SHIFT: Final = 0x36
BACKSPACE: Final = 0x0E
PAUSE: Final = E1 | 0x1D
"""The one key that sends two codes: this and the next."""
PAUSE_SECOND: Final = 0x45

KEYS: Final[dict[str, int]] = {
    "esc": 0x01,
    "backspace": BACKSPACE,
    "tab": 0x0F,
    "enter": ENTER,
    "ctrl": 0x1D,
    "shift": LEFT_SHIFT,
    "right-shift": RIGHT_SHIFT,
    "keypad-*": 0x37,
    "alt": 0x38,
    "space": 0x39,
    "caps-lock": CAPS_LOCK,
    **{f"f{number}": 0x3A + number for number in range(1, 11)},
    "num-lock": 0x45,
    "scroll-lock": 0x46,
    "keypad-7": 0x47,
    "keypad-8": 0x48,
    "keypad-9": 0x49,
    "keypad-minus": 0x4A,
    "keypad-4": 0x4B,
    "keypad-5": 0x4C,
    "keypad-6": 0x4D,
    "keypad-plus": 0x4E,
    "keypad-1": 0x4F,
    "keypad-2": 0x50,
    "keypad-3": 0x51,
    "keypad-0": 0x52,
    "keypad-.": 0x53,
    "sysrq": 0x54,
    "less": 0x56,
    "f11": 0x57,
    "f12": 0x58,
    "keypad-enter": E0 | 0x1C,
    "right-ctrl": E0 | 0x1D,
    "keypad-/": E0 | 0x35,
    "print": E0 | 0x37,
    "alt-gr": E0 | 0x38,
    "home": E0 | 0x47,
    "up": E0 | 0x48,
    "page-up": E0 | 0x49,
    "left": E0 | 0x4B,
    "right": E0 | 0x4D,
    "end": E0 | 0x4F,
    "down": E0 | 0x50,
    "page-down": E0 | 0x51,
    "insert": E0 | 0x52,
    "del": E0 | 0x53,
    "win": E0 | 0x5B,
    "right-win": E0 | 0x5C,
    "menu": E0 | 0x5D,
    "pause": PAUSE,
    "minus": 0x0C,
    "plus": 0x0D,
}
"""By name; a character that a key types without shift is a name too."""
_ALSO: Final = {
    "escape": "esc",
    "return": "enter",
    "control": "ctrl",
    "delete": "del",
    "ins": "insert",
    "pgup": "page-up",
    "pageup": "page-up",
    "pgdn": "page-down",
    "pagedown": "page-down",
    "super": "win",
    "meta": "win",
    "printscreen": "print",
    "altgr": "alt-gr",
    "right-alt": "alt-gr",
}

TYPED: Final[dict[str, tuple[int, bool]]] = {
    "\n": (ENTER, False),
    "\r": (ENTER, False),
    "\t": (0x0F, False),
    "\b": (BACKSPACE, False),
    "\x7f": (BACKSPACE, False),
    "\x1b": (0x01, False),
}
"""The key for each character that a US keyboard types, and whether shift is held for it."""
_PLAIN: Final[dict[int, str]] = {ENTER: "\n", 0x0F: "\t", BACKSPACE: "\b", 0x01: "\x1b", E0 | 0x1C: "\n"}
_SHIFTED: Final[dict[int, str]] = dict(_PLAIN)

for _first, _lower, _upper in _ROWS:
    for _place, (_one, _other) in enumerate(zip(_lower, _upper, strict=True)):
        _PLAIN[_first + _place], _SHIFTED[_first + _place] = _one, _other
        TYPED.setdefault(_one, (_first + _place, False))
        TYPED.setdefault(_other, (_first + _place, True))
# The keypad as it is with num lock off and nobody's shift: only what types the same in either case.
for _code, _one in ((0x37, "*"), (0x4A, "-"), (0x4E, "+"), (E0 | 0x35, "/")):
    _PLAIN[_code] = _SHIFTED[_code] = _one


class UnknownKey(ValueError):
    """A name that no key has; the text has the nearest."""


def key_code(name: str) -> int:
    """The scan code of a key by its name: `f2`, `enter`, `a`. Raises `UnknownKey`."""
    known = KEYS.get(_ALSO.get(name.lower(), name.lower()))
    if known is not None:
        return known
    if len(name) == 1:
        code, shifted = TYPED.get(name.lower(), (0, False))
        if code and not shifted:
            return code
        if code:
            raise UnknownKey(f'"{name}" is typed with shift; name the key: "shift-{_PLAIN[code]}"')
    near = difflib.get_close_matches(name.lower(), [*KEYS, *_ALSO], n=1)
    hint = f'did you mean "{near[0]}"?' if near else "there are characters, f1 to f12, enter, esc, tab, del, up, ctrl"
    raise UnknownKey(f'no key is called "{name}"; {hint}')


def chord_codes(chord: str) -> list[int]:
    """The keys that are held down together, in that order: `ctrl-alt-del`, `alt-f2`, `shift-a`. `UnknownKey`.

    Names with a dash in them are taken first: `ctrl-page-up`. The minus key is `minus`, or a dash at the end.
    """
    words, codes = chord.split("-"), []
    if chord == "-" or chord.endswith("--"):
        words[-2:] = ["minus"]
    while words:
        for count in range(min(len(words), 3), 1, -1):
            name = "-".join(words[:count]).lower()
            if name in KEYS or name in _ALSO:
                break
        else:
            count = 1
        codes.append(key_code("-".join(words[:count])))
        del words[:count]
    return codes


def typed_by(code: int, *, shift: bool, caps_lock: bool) -> str:
    """The character that a key types on a US keyboard; empty for one that types none."""
    plain = _PLAIN.get(code, "")
    if caps_lock and plain.isalpha():
        shift = not shift
    return _SHIFTED.get(code, "") if shift else plain
