"""Packets of dynamic memory as trees of fields. Root side."""

from __future__ import annotations

from hypervisor.wire import Wire
from partitions.decode.field import Bits, Field, Hint, Hints, group, layout_field, raw
from partitions.decode.words import enum_words, long_version_words, yes_no
from vsp_vsc.memory import protocol as d
from vsp_vsc.memory.protocol import MemoryType

_TYPE = enum_words(MemoryType)
_RANGE = Hint(bits=(Bits("count", 63, 40), Bits("first_page", 39, 0, lambda value: f"GPA {value << 12:#x}")))
_HINTS: Hints = {
    "message_type": Hint(_TYPE),
    "version": Hint(lambda value: "0.3" if value == 3 else long_version_words(value)),
    "last_attempt": Hint(bits=(Bits("last_attempt", 0, 0, yes_no),)),
    "accepted": Hint(bits=(Bits("accepted", 0, 0, yes_no),)),
    "capabilities": Hint(
        bits=(Bits("hot_add_alignment", 5, 2), Bits("hot_add", 1, 1, yes_no), Bits("balloon", 0, 0, yes_no))
    ),
    "counts": Hint(bits=(Bits("range_count", 31, 1), Bits("more_pages", 0, 0, yes_no))),
    "more": Hint(bits=(Bits("more_pages", 0, 0, yes_no),)),
    "pages": Hint(lambda value: f"{value} pages"),
}
_BODIES: dict[int, type[Wire]] = {
    MemoryType.VERSION_REQUEST: d.MemoryVersionRequest,
    MemoryType.VERSION_RESPONSE: d.MemoryAccepted,
    MemoryType.CAPABILITIES_REPORT: d.MemoryCapabilities,
    MemoryType.CAPABILITIES_RESPONSE: d.MemoryAccepted,
    MemoryType.STATUS_REPORT: d.MemoryStatus,
    MemoryType.BALLOON_REQUEST: d.BalloonRequest,
    MemoryType.BALLOON_RESPONSE: d.BalloonResponse,
    MemoryType.UNBALLOON_REQUEST: d.UnballoonRequest,
    MemoryType.MEM_HOT_ADD_REQUEST: d.PageRange,
    MemoryType.MEM_HOT_ADD_RESPONSE: d.HotAddResponse,
    MemoryType.INFO_MESSAGE: d.InfoMessage,
}


def decode_dynamic_memory(data: bytes, at: int, end: int, direction: str = "") -> Field:
    """The payload of a packet on a dynamic memory channel, as `payload`."""
    header = layout_field("header", d.MemoryHeader, data, at, end, _HINTS)
    parts, fault = [header], header.fault
    if not fault:
        kind, size = int.from_bytes(data[at : at + 2], "little"), int.from_bytes(data[at + 2 : at + 4], "little")
        stop = max(header.end, min(end, at + size))
        if at + size > end:
            fault = f"{size} bytes are said to be here, {end - at} are"
        layout = _BODIES.get(kind)
        if layout is not None and header.end < stop:
            hints: Hints = {"pages": _RANGE} if layout is d.PageRange else _HINTS
            body = layout_field("body", layout, data, header.end, stop, hints)
            fault = fault or body.fault
            parts.append(body)
            if not body.fault:
                parts += _behind(layout, data, body.end, stop)
        elif kind not in tuple(MemoryType):
            fault = f"no dynamic memory message has type {kind}"
        if parts[-1].end < end:
            parts.append(raw("rest", data, parts[-1].end, end))
    return group("payload", data, at, end, parts, dynamic_memory_words(data[at:end]), fault)


def _behind(layout: type[Wire], data: bytes, at: int, end: int) -> list[Field]:
    if layout is d.InfoMessage:
        return [layout_field("info", d.InfoHeader, data, at, end)] if at < end else []
    if layout not in (d.BalloonResponse, d.UnballoonRequest):
        return []
    count = int.from_bytes(data[at - 4 : at], "little")
    if layout is d.BalloonResponse:
        count >>= 1
    ranges = []
    for index in range(min(count, (end - at) // 8)):
        field = layout_field(f"range[{index}]", d.PageRange, data, at, end, {"pages": _RANGE})
        pages = int.from_bytes(data[at : at + 8], "little")
        field.words = f"{pages >> 40} pages from GPA {(pages & (1 << 40) - 1) << 12:#x}"
        ranges.append(field)
        at += 8
    return ranges


def dynamic_memory_words(payload: bytes, direction: str = "") -> str:
    """A dynamic memory message in words: `BALLOON_REQUEST 1024 pages`."""
    if len(payload) < 8:
        return ""
    kind = int.from_bytes(payload[:2], "little")
    if kind not in tuple(MemoryType):
        return f"dynamic memory message {kind}"
    words = _TYPE(kind)
    value = int.from_bytes(payload[8:12], "little")
    if kind == MemoryType.VERSION_REQUEST:
        words += " 0.3" if value == 3 else f" {long_version_words(value)}"
    elif kind == MemoryType.BALLOON_REQUEST:
        words += f" {value} pages"
    elif len(payload) >= 16:
        words += _more_words(kind, payload)
    return words


def _more_words(kind: int, payload: bytes) -> str:
    """Of messages whose words need sixteen bytes."""
    first, second = int.from_bytes(payload[8:12], "little"), int.from_bytes(payload[12:16], "little")
    match kind:
        case MemoryType.BALLOON_RESPONSE:
            return _ranges_words(payload, second >> 1, bool(second & 1))
        case MemoryType.UNBALLOON_REQUEST:
            return _ranges_words(payload, second, bool(first & 1))
        case MemoryType.MEM_HOT_ADD_REQUEST:
            pages = int.from_bytes(payload[8:16], "little")
            return f" {pages >> 40} pages from GPA {(pages & (1 << 40) - 1) << 12:#x}"
        case MemoryType.MEM_HOT_ADD_RESPONSE:
            return f" {first} pages, result {second}"
        case MemoryType.STATUS_REPORT if len(payload) >= 24:
            committed = int.from_bytes(payload[16:24], "little")
            return f" {committed} pages committed, {int.from_bytes(payload[8:16], 'little')} available"
        case _:
            return ""


def _ranges_words(payload: bytes, count: int, more: bool) -> str:
    count = min(count, len(payload) - 16 >> 3)
    words = [int.from_bytes(payload[at : at + 8], "little") for at in range(16, 16 + 8 * count, 8)]
    return f" {sum(word >> 40 for word in words)} pages in {count} ranges{', more follow' if more else ''}"
