"""Channel messages as trees of fields. Root side."""

from __future__ import annotations

from hypervisor.wire import WireError
from partitions.decode.field import Bits, Field, Hint, Hints, fields_of, group, number, raw
from partitions.decode.ranges import page_list, page_ranges
from partitions.decode.words import (
    channel_status_words,
    enum_words,
    flag_words,
    interface_words,
    vmbus_version_words,
    yes_no,
)
from vmbus.protocol import messages as m
from vmbus.protocol.features import Feature, OfferFlag
from vmbus.protocol.hvsocket import SocketParameters, is_socket
from vmbus.protocol.identifiers import INTERRUPTS_OFF, NO_MONITOR, ConnectionState
from vmbus.protocol.messages import MessageType
from vmbus.protocol.table import MESSAGES, Form, Row, describe
from vmbus.protocol.versions import Version, version_text

HEADER = 8
"""Bytes in front of each message: the type and padding."""

_TYPE = Hint(enum_words(MessageType))
_FEATURES = Hint(flag_words(Feature))
_GPA = Hint(lambda value: f"GPA {value:#x}" if value else "none")
_STATUS = Hint(channel_status_words)
_VP = Hint(lambda value: "interrupts off" if value == INTERRUPTS_OFF else "")
_STATE = Hint(enum_words(ConnectionState))
_PIPE_TYPES = {0: "bytes", 4: "messages"}

_SOCKET: Hints = {
    "pipe_type": Hint(lambda value: _PIPE_TYPES.get(value, "unknown")),
    "is_for_guest_accept": Hint(lambda value: "the host connects" if value else "the guest connects"),
    "is_for_guest_container": Hint(yes_no),
}

_COMMON: Hints = {
    "message_type": _TYPE,
    "version": Hint(vmbus_version_words),
    "target_vp": _VP,
    "features": _FEATURES,
    "interrupt_page": _GPA,
    "parent_to_child_monitor_page": _GPA,
    "child_to_parent_monitor_page": _GPA,
    "status": _STATUS,
    "connection_state": _STATE,
    "supported": Hint(yes_no),
    "interface": Hint(interface_words),
    "service": Hint(interface_words),
    "downstream_page": Hint(lambda value: f"the host's ring begins {value << 12:#x} bytes into the GPADL"),
}
_OFFER: Hints = {
    **_COMMON,
    "flags": Hint(flag_words(OfferFlag)),
    "monitor_id": Hint(lambda value: "none" if value == NO_MONITOR else f"group {value >> 5}, bit {value & 31}"),
    "monitor_allocated": Hint(yes_no),
    "is_dedicated": Hint(lambda value: "the connection is this channel's own" if value else "all channels share one"),
}
_OPEN: Hints = {**_COMMON, "open_flags": Hint(bits=(Bits("redirect_interrupt", 0, 0, yes_no),))}
_HINTS: dict[type[m.Message], Hints] = {m.OfferChannel: _OFFER, m.OpenChannel2: _OPEN}
_ROWS: dict[int, list[Row]] = {}
for _row in MESSAGES:
    _ROWS.setdefault(_row.number, []).append(_row)
_TAILS = (m.GpadlHeader, m.GpadlBody)
_ASKED_FORMS = (Form.BY_REQUEST, Form.BY_REQUEST_AND_SIZE)


def row_of(data: bytes, version: int | None = None, features: int | None = None) -> Row | None:
    """The way of saying this message that is meant, None for a type that there is not.

    Where the version or the features are not known the length decides. Unlike `decode_message` it does not refuse what
    is not legal, since somebody wants to see it; `complaint` says what is not.
    """
    if len(data) < 4:
        return None
    rows = _ROWS.get(int.from_bytes(data[:4], "little"))
    if not rows:
        return None
    chosen = [row for row in rows if row.fits(data)] or rows
    for row in chosen[:-1]:
        if row.feature and not _may_be(row, data, version, features):
            continue
        if row.form in (Form.ONLY, Form.BY_SIZE) and version and version < row.least:
            continue
        return row
    return chosen[-1]


def _may_be(row: Row, data: bytes, version: int | None, features: int | None) -> bool:
    """Whether a row that hangs on a feature is meant; without word of the features its length has to be right."""
    if version is None or features is None:
        exact = len(data) == row.layout.SIZE
        return exact if version is None else version >= row.least and len(data) >= row.layout.SIZE
    return row.legal(version, features)


def complaint(
    row: Row, data: bytes, direction: str = "", version: int | None = None, features: int | None = None
) -> str:
    """Why the peer would not take this message; empty where it would, or where nobody can tell."""
    if direction and row.direction != direction:
        return f"{row.number.name} never travels {direction}"
    if len(data) < row.layout.SIZE:
        return f"{row.layout.SIZE} bytes needed, {len(data)} there"
    if version and row.least and version < row.least:
        return (
            f"{row.number.name} is not legal at version {version_text(version)}: it came with {version_text(row.least)}"
        )
    if version and features is not None and not row.legal(version, features):
        return f"{row.number.name} is not legal without the feature {row.feature.name or row.feature!r}"
    return ""


def message_words(data: bytes, row: Row) -> str:
    """What the live trace prints of such a message."""
    try:
        return describe(row.layout.decode(data))
    except WireError:
        return row.number.name


def decode_channel_message(
    data: bytes, direction: str = "", version: int | None = None, features: int | None = None
) -> Field:
    """Any bytes as a channel message, header included. `direction` is `>root` or `>child`, empty where unknown.

    `version` is the one that was negotiated, None where there is none or nobody knows; so are the `features` of 6.0.
    """
    row = row_of(data, version, features)
    if row is None:
        return _unknown(data)
    layout = row.layout
    hints = dict(_HINTS.get(layout, _COMMON))
    if layout.TYPE is MessageType.VERSION_RESPONSE:
        hints["detail"] = _detail_hint(version if layout is m.VersionResponse else Version.V6_0)
    end = min(len(data), layout.SIZE)
    parts = fields_of(layout, data, 0, end, hints)
    if layout is m.OfferChannel:
        _pipe(parts, data)
    words = message_words(data, row)
    if layout in _TAILS and end < len(data):
        parts += _tail(layout, data, end)
    elif end < len(data):
        parts.append(raw("beyond", data, end, len(data), "behind the message; some guests always send 240 bytes"))
    fault = complaint(row, data, direction, version, features)
    return group(row.number.name, data, 0, len(data), parts, words, fault)


def _unknown(data: bytes) -> Field:
    if len(data) < HEADER:
        fault = f"a channel message has a header of {HEADER} bytes, {len(data)} are there"
        return group(
            "message", data, 0, len(data), [number("message_type", data, 0, 4, _TYPE)] if data else [], "", fault
        )
    type_number = int.from_bytes(data[:4], "little")
    kind = number("message_type", data, 0, 4, _TYPE)
    parts = [kind, raw("body", data, HEADER, len(data))] if len(data) > HEADER else [kind]
    words = f"message type {type_number}"
    return group("message", data, 0, len(data), parts, words, f"no channel message has type {type_number}")


def _tail(layout: type[m.Message], data: bytes, at: int) -> list[Field]:
    if layout is m.GpadlBody:
        return [page_list(data, at, len(data))]
    header = m.GpadlHeader.decode(data)
    end = min(len(data), at + header.byte_length)
    fields = page_ranges(data, at, end, header.range_count, whole=header.byte_length <= len(data) - at)
    if end < len(data):
        fields.append(raw("beyond", data, end, len(data), "behind the words of the GPADL"))
    return fields


def _detail_hint(version: int | None) -> Hint:
    if version and version < Version.V5_0:
        return Hint(vmbus_version_words)
    if version:
        return Hint(lambda value: f"post to connection {value:#x}")
    return Hint(lambda value: f"from 5.0 on post to connection {value:#x}, below it the version")


def _pipe(parts: list[Field], data: bytes) -> None:
    """The user-defined bytes of an offer whose channel is a pipe."""
    named = {part.name: part for part in parts}
    flags, user = named.get("flags"), named.get("user_defined")
    if flags is None or user is None or user.fault or not isinstance(flags.value, int):
        return
    if is_socket(flags.value):
        known = fields_of(SocketParameters, data, user.offset, user.offset + SocketParameters.SIZE, _SOCKET)
        user.value, user.children = None, [*known, raw("rest", data, user.offset + SocketParameters.SIZE, user.end)]
    elif flags.value & OfferFlag.NAMED_PIPE_MODE:
        kind = number("pipe_type", data, user.offset, 4, Hint(lambda value: _PIPE_TYPES.get(value, "unknown")))
        user.value, user.children = None, [kind, raw("rest", data, kind.end, user.end)]
