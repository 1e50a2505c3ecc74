"""Packets of keyboard and mouse as trees of fields. Root side."""

from __future__ import annotations

from hypervisor.wire import Wire
from partitions.decode.field import Bits, Field, Hint, Hints, group, layout_field, raw
from partitions.decode.integration import decode_pipe
from partitions.decode.layouts import PipeHeader
from partitions.decode.words import enum_words, flag_words, long_version_words, yes_no
from vsp_vsc.keyboard import protocol as k
from vsp_vsc.keyboard.protocol import KeyboardType
from vsp_vsc.mouse import protocol as m
from vsp_vsc.mouse.protocol import MouseType

_KEYBOARD_TYPE, _MOUSE_TYPE = enum_words(KeyboardType), enum_words(MouseType)
_KEYBOARD: Hints = {
    "message_type": Hint(_KEYBOARD_TYPE),
    "version": Hint(long_version_words),
    "status": Hint(bits=(Bits("accepted", 0, 0, yes_no),)),
    "flags": Hint(flag_words(k.KeyFlags)),
    "leds": Hint(bits=(Bits("caps_lock", 2, 2), Bits("num_lock", 1, 1), Bits("scroll_lock", 0, 0))),
}
_KEYBOARD_BODIES: dict[int, type[Wire]] = {
    KeyboardType.PROTOCOL_REQUEST: k.KeyboardRequest,
    KeyboardType.PROTOCOL_RESPONSE: k.KeyboardResponse,
    KeyboardType.EVENT: k.Keystroke,
    KeyboardType.LED_INDICATORS: k.LedIndicators,
}
_MOUSE: Hints = {
    "message_type": Hint(_MOUSE_TYPE),
    "version": Hint(long_version_words),
    "approved": Hint(yes_no),
    "buttons": Hint(
        bits=(Bits("forward", 4, 4), Bits("back", 3, 3), Bits("middle", 2, 2), Bits("right", 1, 1), Bits("left", 0, 0))
    ),
}
_MOUSE_BODIES: dict[int, type[Wire]] = {
    MouseType.PROTOCOL_REQUEST: m.MouseRequest,
    MouseType.PROTOCOL_RESPONSE: m.MouseResponse,
    MouseType.INITIAL_DEVICE_INFO: m.MouseInfo,
    MouseType.INPUT_REPORT: m.MouseReport,
}


def decode_keyboard(data: bytes, at: int, end: int, direction: str = "") -> Field:
    """The payload of a packet on a keyboard's channel, as `payload`."""
    header = layout_field("header", k.KeyboardHeader, data, at, end, _KEYBOARD)
    parts, fault = [header], header.fault
    if not fault:
        kind = int.from_bytes(data[at : at + 4], "little")
        layout = _KEYBOARD_BODIES.get(kind)
        if layout is None:
            fault = f"no keyboard message has type {kind}"
        else:
            body = layout_field("body", layout, data, header.end, end, _KEYBOARD)
            fault = body.fault
            parts.append(body)
        if parts[-1].end < end:
            parts.append(raw("unused" if layout else "body", data, parts[-1].end, end))
    return group("payload", data, at, end, parts, keyboard_words(data[at:end]), fault)


def keyboard_words(payload: bytes, direction: str = "") -> str:
    """A keyboard message in words: `EVENT make code 0x1e BREAK`."""
    if len(payload) < 4:
        return ""
    kind = int.from_bytes(payload[:4], "little")
    if kind not in tuple(KeyboardType):
        return f"keyboard message {kind}"
    words = _KEYBOARD_TYPE(kind)
    value = int.from_bytes(payload[4:8], "little")
    if kind == KeyboardType.PROTOCOL_REQUEST:
        words += f" {long_version_words(value)}"
    elif kind == KeyboardType.PROTOCOL_RESPONSE:
        words += " accepted" if value & 1 else " refused"
    elif kind == KeyboardType.EVENT and len(payload) >= 12:
        flags = flag_words(k.KeyFlags)(int.from_bytes(payload[8:12], "little"))
        words += f" make code {value & 0xFFFF:#x} {flags or 'MAKE'}"
    return words


def decode_mouse(data: bytes, at: int, end: int, direction: str = "") -> Field:
    """The payload of a packet on a mouse's channel, as `payload`."""
    pipe, stop = decode_pipe(data, at, end)
    parts, fault = [pipe], pipe.fault
    if pipe.end < stop:
        header = layout_field("header", m.MouseHeader, data, pipe.end, stop, _MOUSE)
        parts.append(header)
        fault = fault or header.fault
        if not header.fault and header.end < stop:
            kind = int.from_bytes(data[pipe.end : pipe.end + 4], "little")
            layout = _MOUSE_BODIES.get(kind)
            if layout is not None:
                body = layout_field("body", layout, data, header.end, stop, _MOUSE)
                fault = fault or body.fault
                parts.append(body)
            elif kind not in tuple(MouseType):
                fault = fault or f"no mouse message has type {kind}"
            if parts[-1].end < stop:
                name = "report_descriptor" if layout is m.MouseInfo else "rest"
                parts.append(raw(name, data, parts[-1].end, stop))
    return group("payload", data, at, end, parts, mouse_words(data[at:end]), fault)


def mouse_words(payload: bytes, direction: str = "") -> str:
    """A mouse message in words: `INPUT_REPORT`."""
    if len(payload) < PipeHeader.SIZE + 4:
        return ""
    kind = int.from_bytes(payload[8:12], "little")
    return _MOUSE_TYPE(kind) if kind in tuple(MouseType) else f"mouse message {kind}"
