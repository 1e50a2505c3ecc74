"""Messages of integration components as trees of fields, and in the words of the live trace. Root side."""

from __future__ import annotations

import struct

from hypervisor.wire import Wire
from partitions.decode.field import Bits, Field, Hint, Hints, group, layout_field, number, raw, text
from partitions.decode.layouts import PipeHeader
from partitions.decode.utility import decode_file_copy, decode_vss
from partitions.decode.words import enum_words, flag_words, yes_no
from vmbus.pipe import PipePacketType
from vsp_vsc.integration.file_copy import protocol as file_copy
from vsp_vsc.integration.heartbeat import protocol as heartbeat
from vsp_vsc.integration.kvp import protocol as kvp
from vsp_vsc.integration.protocol import Component, Flags, Header, Negotiate, status_words
from vsp_vsc.integration.shutdown import protocol as shutdown
from vsp_vsc.integration.time_sync import protocol as time_sync
from vsp_vsc.integration.vss import protocol as vss

_PIPE: Hints = {"type": Hint(enum_words(PipePacketType))}
_COMPONENT = enum_words(Component, spaces=True)
_HEADER: Hints = {
    "component": Hint(_COMPONENT),
    "status": Hint(status_words),
    "flags": Hint(flag_words(Flags)),
}
_DESCRIBE = {
    Component.HEARTBEAT: heartbeat.describe,
    Component.KVP: kvp.describe,
    Component.SHUTDOWN: shutdown.describe,
    Component.TIME_SYNC: time_sync.describe,
    Component.VSS: vss.describe,
    Component.FILE_COPY: file_copy.describe,
}


def decode_pipe(data: bytes, at: int, end: int) -> tuple[Field, int]:
    """The header of a pipe packet, and where its data end: the ring does not say."""
    header = layout_field("pipe", PipeHeader, data, at, end, _PIPE)
    if header.fault:
        return header, end
    kind, length = struct.unpack_from("<II", data, at)
    if kind == PipePacketType.PARTIAL:
        skipped, length = length >> 16, length & 0xFFFF
        header.words = f"{skipped} of {length} bytes are taken already"
    if length > end - header.end:
        header.fault = f"{length} bytes of data are said to follow, {end - header.end} are there"
    return header, min(end, header.end + length)


def decode_integration(data: bytes, at: int, end: int, direction: str = "") -> Field:
    """The payload of a packet of an integration component, as `payload`."""
    pipe, stop = decode_pipe(data, at, end)
    parts = [pipe]
    words = integration_words(data[at:end], direction)
    fault = pipe.fault
    if pipe.end < stop:
        header = layout_field("header", Header, data, pipe.end, stop, _HEADER)
        parts.append(header)
        if header.fault:
            fault = fault or header.fault
        elif header.end < stop:
            component, size = struct.unpack_from("<4xH4xH", data, pipe.end)
            body_end = min(stop, header.end + size)
            if header.end + size > stop:
                fault = fault or f"a body of {size} bytes is said to follow, {stop - header.end} are there"
            if header.end < body_end:
                parts.append(_body(component, data, header.end, body_end))
            if body_end < stop:
                parts.append(raw("beyond", data, body_end, stop, "behind the message"))
    return group("payload", data, at, end, parts, words, fault)


def _body(component: int, data: bytes, at: int, end: int) -> Field:
    match component:
        case Component.NEGOTIATE:
            return _negotiate(data, at, end)
        case Component.HEARTBEAT:
            hints: Hints = {"application_state": Hint(enum_words(heartbeat.ApplicationState))}
            return _layout(heartbeat.Beat, data, at, end, hints, least=heartbeat.ANSWER_SIZE)
        case Component.SHUTDOWN:
            return _shutdown(data, at, end)
        case Component.TIME_SYNC:
            return _time(data, at, end)
        case Component.KVP:
            return _kvp(data, at, end)
        case Component.VSS:
            return decode_vss(data, at, end)
        case Component.FILE_COPY:
            return decode_file_copy(data, at, end)
        case _:
            return raw("body", data, at, end)


def _layout(layout: type[Wire], data: bytes, at: int, end: int, hints: Hints, least: int = 0) -> Field:
    inner = layout_field("body", layout, data, at, end, hints)
    fault = inner.fault if end - at < (least or layout.SIZE) else ""
    parts = inner.children
    if inner.end < end:
        parts = [*parts, raw("beyond", data, inner.end, end)]
    return group("body", data, at, end, parts, "", fault)


def _negotiate(data: bytes, at: int, end: int) -> Field:
    counts = layout_field("counts", Negotiate, data, at, end)
    parts = [counts]
    fault = counts.fault
    position = counts.end
    if not fault:
        framework, messages = struct.unpack_from("<HH", data, at)
        for kind, count in (("framework", framework), ("message", messages)):
            for index in range(count):
                if position + 4 > end:
                    fault = f"{framework + messages} versions are counted, and there is no room for them"
                    break
                major, minor = struct.unpack_from("<HH", data, position)
                pair = [number("major", data, position, 2), number("minor", data, position + 2, 2)]
                parts.append(group(f"{kind}[{index}]", data, position, position + 4, pair, f"{major}.{minor}"))
                position += 4
        if not framework and not messages:
            counts.words = "no version in common"
    if position < end:
        parts.append(raw("hints", data, position, end, "versions that are not counted mean nothing"))
    return group("body", data, at, end, parts, "", fault)


def _shutdown(data: bytes, at: int, end: int) -> Field:
    hints: Hints = {
        "reason": Hint(bits=(Bits("planned", 31, 31, yes_no), Bits("code", 30, 0))),
        "timeout_seconds": Hint(lambda value: f"{value} s"),
        "flags": Hint(flag_words(shutdown.ShutdownFlags)),
    }
    body = _layout(shutdown.ShutdownRequest, data, at, end, hints, least=12)
    for place in body.children:
        if place.name == "text":
            shown = text("text", data, place.offset, place.end)
            place.value, place.words, place.fault = shown.value, "", ""
    return body


def _time(data: bytes, at: int, end: int) -> Field:
    hints: Hints = {
        "parent_time": Hint(_date_words),
        "reference_time": Hint(_seconds_words),
        "flags": Hint(flag_words(time_sync.SyncFlags)),
        "stratum": Hint(),
    }
    old = end - at == time_sync.TimeMessage.SIZE
    return _layout(time_sync.TimeMessage if old else time_sync.TimeReference, data, at, end, hints, least=22)


def _date_words(ticks: int) -> str:
    try:
        return time_sync.moment_of(ticks).strftime("%Y-%m-%d %H:%M:%S.%f UTC")
    except (OverflowError, ValueError):
        return "no date"


def _seconds_words(ticks: int) -> str:
    return f"{ticks / 10_000_000:.7f} s"


def _kvp(data: bytes, at: int, end: int) -> Field:
    hints: Hints = {"operation": Hint(enum_words(kvp.Operation)), "pool": Hint(enum_words(kvp.Pool))}
    header = layout_field("kvp", kvp.KvpHeader, data, at, end, hints)
    parts, fault = [header], header.fault
    position = header.end
    if not fault and position < end:
        operation = data[at]
        if operation == kvp.Operation.ENUMERATE:
            parts.append(layout_field("index", kvp.KvpIndex, data, position, end))
            position = parts[-1].end
        if operation in (kvp.Operation.GET, kvp.Operation.SET, kvp.Operation.ENUMERATE):
            parts.append(_kvp_item(data, position, end))
        elif operation == kvp.Operation.DELETE:
            parts.append(_kvp_item(data, position, end, layout=kvp.KvpKey))
        else:
            parts.append(raw("addresses", data, position, end))
        if parts[-1].size == 0:
            parts.pop()
            fault = "no item behind the header"
        position = parts[-1].end
        if position < end:
            parts.append(raw("unused", data, position, end, "" if not any(data[position:end]) else "not zero"))
    return group("body", data, at, end, parts, "", fault)


def _kvp_item(data: bytes, at: int, end: int, layout: type[Wire] = kvp.KvpItem) -> Field:
    hints: Hints = {"value_type": Hint(enum_words(kvp.ValueType))}
    item = layout_field("item", layout, data, at, end, hints)
    named = {part.name: part for part in item.children}
    kind, value_size = (named[name].value if name in named else None for name in ("value_type", "value_size"))
    for name in ("key", "value"):
        place, size = named.get(name), named[f"{name}_size"].value if f"{name}_size" in named else None
        if place is None or place.fault or not isinstance(size, int):
            continue
        if size > place.size:
            place.fault = f"{size} bytes are said to be in {place.size}"
        used = place.offset + min(size, place.size)
        numbers = {int(kvp.ValueType.DWORD): 4, int(kvp.ValueType.QWORD): 8}
        parts: list[Field] = []
        if name == "value" and isinstance(kind, int) and kind in numbers and isinstance(value_size, int):
            if value_size >= numbers[kind]:
                parts.append(number("number", data, place.offset, numbers[kind]))
        elif used > place.offset:
            parts.append(text("text", data, place.offset, used))
        if parts:
            place.words = str(parts[0].value) if isinstance(parts[0].value, int) else repr(parts[0].value)
            if parts[0].end < place.end:
                parts.append(raw("unused", data, parts[0].end, place.end))
        place.value, place.children = None if parts else place.value, parts
    key = named.get("key")
    item.words = " = ".join(part.words for part in (key, named.get("value")) if part is not None and part.words)
    return item


def integration_words(payload: bytes, direction: str = "") -> str:
    """What the live trace prints of such a message: the host's question in words, the guest's status."""
    if len(payload) < PipeHeader.SIZE + Header.SIZE:
        return ""
    header = Header.decode(payload, PipeHeader.SIZE)
    start = PipeHeader.SIZE + Header.SIZE
    body = payload[start : start + header.size]
    response = header.flags & Flags.RESPONSE
    if header.component == Component.NEGOTIATE:
        return f"negotiate {_versions(body)}"
    if response:
        return status_words(header.status)
    for component, describe in _DESCRIBE.items():
        if component == header.component:
            return describe(body)
    return _COMPONENT(header.component).lower()


def _versions(body: bytes) -> str:
    if len(body) < Negotiate.SIZE:
        return "nothing"
    framework, messages = struct.unpack_from("<HH", body)
    pairs = [f"{major}.{minor}" for major, minor in struct.iter_unpack("<HH", body[8 : 8 + (len(body) - 8) // 4 * 4])]
    if not framework and not messages:
        return "no version in common"
    chosen = pairs[framework : framework + messages]
    return f"framework {' '.join(pairs[:framework]) or 'none'}, messages {' '.join(chosen) or 'none'}"
