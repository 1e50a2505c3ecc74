"""X keysyms, as VNC clients send them, to keys of a US keyboard. Root side.

Source: X11's keysymdef.h, numbers only; RFC 6143, 7.5.4.
"""

from __future__ import annotations

from typing import Final

from vsp_vsc.keyboard.scan_codes import E0, KEYS, PAUSE, TYPED

_UNICODE: Final = 0x0100_0000
_NAMED: Final = {
    0xFF08: "backspace",
    0xFF09: "tab",
    0xFE20: "tab",  # ISO_Left_Tab: with shift
    0xFF0D: "enter",
    0xFF13: "pause",
    0xFF14: "scroll-lock",
    0xFF15: "sysrq",
    0xFF1B: "esc",
    0xFF50: "home",
    0xFF51: "left",
    0xFF52: "up",
    0xFF53: "right",
    0xFF54: "down",
    0xFF55: "page-up",
    0xFF56: "page-down",
    0xFF57: "end",
    0xFF61: "print",
    0xFF63: "insert",
    0xFF67: "menu",
    0xFF6B: "pause",
    0xFF7F: "num-lock",
    0xFF8D: "keypad-enter",
    0xFFAA: "keypad-*",
    0xFFAB: "keypad-plus",
    0xFFAD: "keypad-minus",
    0xFFAE: "keypad-.",
    0xFFAF: "keypad-/",
    # The keypad with num lock off
    0xFF95: "keypad-7",
    0xFF96: "keypad-4",
    0xFF97: "keypad-8",
    0xFF98: "keypad-6",
    0xFF99: "keypad-2",
    0xFF9A: "keypad-9",
    0xFF9B: "keypad-3",
    0xFF9C: "keypad-1",
    0xFF9D: "keypad-5",
    0xFF9E: "keypad-0",
    0xFF9F: "keypad-.",
    **{0xFFB0 + digit: f"keypad-{digit}" for digit in range(10)},
    **{0xFFBE + number: f"f{number + 1}" for number in range(12)},
    0xFFE1: "shift",
    0xFFE2: "right-shift",
    0xFFE3: "ctrl",
    0xFFE4: "right-ctrl",
    0xFFE5: "caps-lock",
    0xFFE7: "win",  # Meta
    0xFFE8: "right-win",
    0xFFE9: "alt",
    0xFFEA: "alt-gr",
    0xFFEB: "win",
    0xFFEC: "right-win",
    0xFE03: "alt-gr",  # ISO_Level3_Shift
    0xFF7E: "alt-gr",  # Mode_switch
    0xFFFF: "del",
}
_CODES: Final = {keysym: KEYS[name] for keysym, name in _NAMED.items()}
_XT_PAUSE: Final = 0xC6


def key_of(keysym: int) -> int | None:
    """The key that types no character; None where it is no such key."""
    return _CODES.get(keysym)


def character_of(keysym: int) -> str | None:
    """The character that a keysym stands for, if it does for one."""
    if 0x20 <= keysym <= 0x7E or 0xA0 <= keysym <= 0xFF:
        return chr(keysym)
    if _UNICODE + 0x100 <= keysym <= _UNICODE + 0x10FFFF:
        character = chr(keysym - _UNICODE)
        return None if "\ud800" <= character <= "\udfff" else character
    return None


def typed_with(character: str) -> tuple[int, bool] | None:
    """The key that types a character, and whether with shift; None where no key does."""
    return TYPED.get(character)


def xt_code(untrusted: int) -> int | None:
    """A scan code as QEMU's extended key event has it: 0xE0 in front is the high bit. None for none."""
    if untrusted == _XT_PAUSE:
        return PAUSE
    if 0 < untrusted < 0x80:
        return untrusted
    if 0x80 < untrusted < 0x100:
        return E0 | untrusted & 0x7F
    if untrusted & ~0x7F == E0 and untrusted & 0x7F:
        return untrusted
    return None
