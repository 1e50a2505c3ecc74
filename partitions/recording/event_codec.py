"""A trace event as the bytes of a custom block, and back: MessagePack of its fields by name. Root side."""

from __future__ import annotations

from typing import Any

import msgspec

from hypervisor.trace import TraceEvent

STARTED = "recording_started"
"""Stands in the section header: what was known when the recording began."""
DROPPED = "recording_dropped"
"""In the place of what could not be written fast enough."""


def _simple(value: object) -> object:
    """What MessagePack has no form for: a number that is a little more than one stays one, the rest becomes text."""
    return int(value) if isinstance(value, int) else str(value)


def _safe(value: object) -> object:
    """The same for numbers past 64 bits and for text that is no Unicode, deep down too."""
    match value:
        case bool() | float() | None:
            return value
        case int():
            return int(value) if -(1 << 63) <= value < 1 << 64 else str(value)
        case dict():
            return {_safe(str(key)): _safe(entry) for key, entry in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_safe(entry) for entry in value]
        case bytes() if type(value) is bytes:
            return value
        case _:
            return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


_encode = msgspec.msgpack.Encoder(enc_hook=_simple).encode
_decode = msgspec.msgpack.Decoder(TraceEvent).decode


def encode_event(event: TraceEvent) -> bytes:
    """Any event; what cannot be said as it is, is said as text."""
    try:
        return _encode(event)
    except (UnicodeEncodeError, ValueError, OverflowError, TypeError, RecursionError):
        plain: dict[str, Any] = {name: getattr(event, name) for name in event.__struct_fields__}
        return _encode(_safe(plain))


def decode_event(payload: bytes) -> TraceEvent:
    """Raises `msgspec.DecodeError` for bytes that are no event of this format."""
    try:
        return _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None
