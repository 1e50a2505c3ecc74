"""SynIC messages and pages as trees of fields. Root side."""

from __future__ import annotations

from hypervisor import intercept
from hypervisor.monitor_page import (
    GROUP_SIZE,
    GROUPS,
    TRIGGERS,
    MonitorParameter,
)
from hypervisor.synic.messages import (
    EVENT_FLAGS_SIZE,
    HEADER_SIZE,
    PAYLOAD_MAX,
    SINT_COUNT,
    SLOT_SIZE,
    InterceptHeader,
    MessageHeader,
    MessageType,
)
from hypervisor.synic.timer_registers import TimerMessage
from hypervisor.wire import Wire
from partitions.decode.field import Bits, Field, Hint, Hints, Words, embed, fields_of, group, layout_field, number, raw
from partitions.decode.hypercall import connection_words, message_type_words
from partitions.decode.layouts import ReferenceTscPage
from partitions.decode.message import decode_channel_message
from partitions.decode.words import enum_words, yes_no
from vmbus.protocol.identifiers import SYNIC_MESSAGE_TYPE

PAGE = 4096
_HEADER: Hints = {
    "message_type": Hint(message_type_words),
    "flags": Hint(bits=(Bits("message_pending", 0, 0, yes_no),)),
}
_TIMER: Hints = {
    name: Hint(lambda value: f"{value / 10_000_000:.7f} s") for name in ("expiration_time", "delivery_time")
}
_INTERCEPT: Hints = {"access_type": Hint(enum_words(intercept.InterceptAccess))}
_BODIES: dict[int, type[Wire]] = {
    MessageType.IO_PORT_INTERCEPT: intercept.IoPortIntercept,
    MessageType.MSR_INTERCEPT: intercept.MsrIntercept,
    MessageType.CPUID_INTERCEPT: intercept.CpuidIntercept,
    MessageType.EXCEPTION_INTERCEPT: intercept.ExceptionIntercept,
    MessageType.GPA_INTERCEPT: intercept.MemoryIntercept,
    MessageType.UNMAPPED_GPA: intercept.MemoryIntercept,
}


def decode_synic_message(data: bytes, version: int | None = None, direction: str = ">child") -> Field:
    """A message slot: its header of 16 bytes and the payload behind it (HV_MESSAGE)."""
    header = layout_field("header", MessageHeader, data, 0, len(data), _HEADER)
    if header.fault:
        return group("synic_message", data, 0, len(data), [header] if data else [], "", header.fault)
    kind, size = int.from_bytes(data[:4], "little"), data[4]
    if not kind:
        parts = [header, raw("unused", data, HEADER_SIZE, len(data))] if len(data) > HEADER_SIZE else [header]
        return group("synic_message", data, 0, len(data), parts, "empty")
    fault = f"a payload has {PAYLOAD_MAX} bytes at most, not {size}" if size > PAYLOAD_MAX else ""
    stop = min(len(data), HEADER_SIZE + size)
    if HEADER_SIZE + size > len(data):
        fault = fault or f"a payload of {size} bytes is said to be here, {len(data) - HEADER_SIZE} are"
    parts, words = [header], message_type_words(kind)
    if stop > HEADER_SIZE:
        payload = _payload(kind, data, HEADER_SIZE, stop, version, direction)
        parts.append(payload)
        words = payload.words or words
    if stop < len(data):
        parts.append(raw("unused", data, stop, len(data)))
    return group("synic_message", data, 0, len(data), parts, words, fault)


def _payload(kind: int, data: bytes, at: int, end: int, version: int | None, direction: str) -> Field:
    if kind == SYNIC_MESSAGE_TYPE:
        return embed(decode_channel_message(data[at:end], direction, version), at)
    if kind == MessageType.TIMER_EXPIRED:
        return _whole("payload", TimerMessage, data, at, end, _TIMER)
    if kind == MessageType.INVALID_VP_REGISTER_VALUE:
        return _whole("payload", intercept.InvalidRegister, data, at, end, {})
    if kind == MessageType.UNRECOVERABLE_EXCEPTION or kind in _BODIES:
        header = layout_field("intercept", InterceptHeader, data, at, end, _INTERCEPT)
        parts = [header]
        layout = _BODIES.get(kind)
        if layout is not None and header.end < end:
            parts.append(layout_field("body", layout, data, header.end, end))
        if parts[-1].end < end:
            parts.append(raw("beyond", data, parts[-1].end, end))
        return group("payload", data, at, end, parts, "", next((part.fault for part in parts if part.fault), ""))
    return raw("payload", data, at, end)


def _whole(name: str, layout: type[Wire], data: bytes, at: int, end: int, hints: Hints) -> Field:
    field = layout_field(name, layout, data, at, end, hints)
    if field.end == end:
        return field
    return group(name, data, at, end, [*field.children, raw("beyond", data, field.end, end)], field.words, field.fault)


def decode_message_page(data: bytes, version: int | None = None) -> Field:
    """The SIM page: a slot for each SINT."""
    slots: list[Field] = []
    for sint in range(SINT_COUNT):
        at = sint * SLOT_SIZE
        if at >= len(data):
            break
        slot = decode_synic_message(data[at : at + SLOT_SIZE], version)
        if not any(data[at : at + SLOT_SIZE]):
            slot = raw("slot", data[at : at + SLOT_SIZE], 0, len(data[at : at + SLOT_SIZE]), "empty")
        slots.append(embed(slot, at, f"sint[{sint}]"))
    full = [slot.name for slot in slots if slot.words != "empty"]
    words = f"messages in {', '.join(full)}" if full else "no messages"
    return _page("message_page", data, slots, words, SINT_COUNT * SLOT_SIZE)


def decode_event_page(data: bytes) -> Field:
    """The SIEF page: 2,048 event flags for each SINT; VMBus has a channel's ID as its flag on SINT 2."""
    sints: list[Field] = []
    for sint in range(SINT_COUNT):
        at = sint * EVENT_FLAGS_SIZE
        stop = min(len(data), at + EVENT_FLAGS_SIZE)
        if at >= stop:
            break
        sints.append(raw(f"sint[{sint}]", data, at, stop, _flags(data[at:stop])))
    full = [f"{field.name}: {field.words}" for field in sints if field.words]
    return _page("event_page", data, sints, "; ".join(full) or "no flag is set", SINT_COUNT * EVENT_FLAGS_SIZE)


def _flags(data: bytes) -> str:
    value = int.from_bytes(data, "little")
    flags = [str(bit) for bit in range(value.bit_length()) if value >> bit & 1]
    more = f" and {len(flags) - 16} more" if len(flags) > 16 else ""
    return f"flags {', '.join(flags[:16])}{more}" if flags else ""


def decode_monitor_page(data: bytes) -> Field:
    """A monitored notification page: groups, triggers, latencies, and what each trigger signals (HV_MONITOR_PAGE)."""
    if len(data) < PAGE:
        return _page("monitor_page", data, [], "", PAGE)
    parts = [number("trigger_state", data, 0, 4, Hint(bits=(Bits("reserved", 31, 4), Bits("group_enable", 3, 0))))]
    parts.append(raw("reserved1", data, 4, 8))
    enabled = data[0] & 0xF
    words = f"groups {', '.join(str(index) for index in range(GROUPS) if enabled >> index & 1) or 'none'} enabled"
    for index in range(GROUPS):
        at = 8 + 8 * index
        halves = [number("pending", data, at, 4, Hint(_trigger_words(index))), number("armed", data, at + 4, 4)]
        parts.append(group(f"group[{index}]", data, at, at + 8, halves, halves[0].words))
        if halves[0].words:
            words += f", {halves[0].words} pending"
    parts.append(raw("reserved2", data, 40, 64))
    parts.append(raw("next_check_time", data, 64, 576))
    for index in range(GROUPS):
        at = 576 + 2 * GROUP_SIZE * index
        given = [
            f"{index * GROUP_SIZE + bit}: {int.from_bytes(data[at + 2 * bit : at + 2 * bit + 2], 'little') / 10:g} us"
            for bit in range(GROUP_SIZE)
            if any(data[at + 2 * bit : at + 2 * bit + 2])
        ]
        parts.append(raw(f"latency[{index}]", data, at, at + 2 * GROUP_SIZE, ", ".join(given)))
    parts.append(raw("reserved3", data, 832, 1088))
    for trigger in range(TRIGGERS):
        at = 1088 + MonitorParameter.SIZE * trigger
        hints: Hints = {"connection_id": Hint(connection_words)}
        if any(data[at : at + MonitorParameter.SIZE]):
            parts.append(layout_field(f"parameter[{trigger}]", MonitorParameter, data, at, len(data), hints))
        else:
            parts.append(raw(f"parameter[{trigger}]", data, at, at + MonitorParameter.SIZE, "nobody's"))
    parts.append(raw("reserved4", data, 2112, PAGE))
    return _page("monitor_page", data, parts, words, PAGE)


def _trigger_words(index: int) -> Words:
    def words(value: int) -> str:
        bits = [str(index * GROUP_SIZE + bit) for bit in range(GROUP_SIZE) if value >> bit & 1]
        return f"trigger {', '.join(bits)}" if bits else ""

    return words


def decode_tsc_page(data: bytes) -> Field:
    """The reference TSC page."""
    sequence = Hint(lambda value: "the counter is to be read by MSR" if not value else "valid")
    parts = fields_of(ReferenceTscPage, data, 0, len(data), {"sequence": sequence})
    fault = f"{ReferenceTscPage.SIZE} bytes needed, {len(data)} there" if len(data) < ReferenceTscPage.SIZE else ""
    end = parts[-1].end if parts else 0
    if end < len(data):
        parts.append(raw("unused", data, end, len(data)))
    words = ""
    if not fault:
        scale, offset = int.from_bytes(data[8:16], "little"), int.from_bytes(data[16:24], "little", signed=True)
        hertz = (10_000_000 << 64) / scale if scale else 0
        words = f"a TSC of {hertz / 1e6:.3f} MHz, offset {offset / 10_000_000:.7f} s" if scale else "no scale"
    return group("tsc_page", data, 0, len(data), parts, words, fault)


def _page(name: str, data: bytes, parts: list[Field], words: str, size: int) -> Field:
    """A page of which only a part may be there."""
    if len(data) < size:
        kept = [part for part in parts if part.end <= len(data) and part.size > 0]
        end = kept[-1].end if kept else 0
        if end < len(data):
            kept.append(raw("cut_off", data, end, len(data)))
        return group(name, data, 0, len(data), kept, words, f"a page has {size} bytes, {len(data)} are here")
    if len(data) > size:
        parts = [*parts, raw("beyond", data, size, len(data))]
    return group(name, data, 0, len(data), parts, words)
