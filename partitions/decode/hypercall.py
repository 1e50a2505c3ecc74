"""Hypercalls as trees of fields: control word and input, and the result value. Root side."""

from __future__ import annotations

from hypervisor.hypercall.abi import FAST_BYTES, ControlWord
from hypervisor.hypercall.call import Call
from hypervisor.hypercall.dispatch import describe
from hypervisor.hypercall.layouts import PostMessageInput, RegisterAssociation, SignalEventInput
from hypervisor.hypercall.table import BY_CODE
from hypervisor.synic.messages import MessageType
from hypervisor.wire import Wire, WireError
from partitions.decode.field import Bits, Field, Hint, Hints, embed, group, layout_field, number, raw
from partitions.decode.message import decode_channel_message
from partitions.decode.words import enum_words, hv_status_words, yes_no
from vmbus.protocol.identifiers import MESSAGE_CONNECTION, MESSAGE_CONNECTION_MULTICLIENT, SINT, SYNIC_MESSAGE_TYPE

CONTROL_SIZE = 8
_CODE_MASK = 0xFFFF


def _call_words(code: int) -> str:
    call = BY_CODE.get(code)
    return call.name if call else "no call of this hypervisor's"


_CONTROL = Hint(
    bits=(
        Bits("reserved3", 63, 60),
        Bits("rep_start", 59, 48),
        Bits("reserved2", 47, 44),
        Bits("rep_count", 43, 32),
        Bits("nested", 31, 31, yes_no),
        Bits("reserved1", 30, 27),
        Bits("variable_header", 26, 17, lambda value: f"{value * 8} bytes"),
        Bits("fast", 16, 16, lambda value: "input in registers" if value else "input in memory"),
        Bits("call_code", 15, 0, _call_words),
    )
)
_RESULT = Hint(
    bits=(
        Bits("reserved2", 63, 44),
        Bits("rep_completed", 43, 32),
        Bits("reserved1", 31, 16),
        Bits("status", 15, 0, hv_status_words),
    )
)


def connection_words(connection: int) -> str:
    """What a connection ID means to a guest of VMBus."""
    if connection in (MESSAGE_CONNECTION, MESSAGE_CONNECTION_MULTICLIENT):
        return "channel messages"
    if connection >> 12 == SINT:
        return f"channel {connection & 0xFFF}, on this host"
    if connection >> 16 == 1:
        return f"channel {connection & 0xFFFF}, on Microsoft's hosts"
    return ""


_INPUTS: Hints = {"connection_id": Hint(connection_words)}
_ELEMENTS: dict[int, type[Wire]] = {32: RegisterAssociation}
_MESSAGE_TYPES = enum_words(MessageType)


def message_type_words(kind: int) -> str:
    """The type of a SynIC message."""
    return "VMBus channel message" if kind == SYNIC_MESSAGE_TYPE else _MESSAGE_TYPES(kind)


def decode_hypercall(data: bytes, version: int | None = None) -> Field:
    """A control word (RCX) and, behind it, the input: the block at the input address, or RDX and R8 of a fast call."""
    control = number("control", data, 0, CONTROL_SIZE, _CONTROL)
    if control.fault or not isinstance(control.value, int):
        return group("hypercall", data, 0, len(data), [control] if data else [], "", control.fault or "no bytes")
    word = ControlWord.decode(control.value)
    call = BY_CODE.get(control.value & _CODE_MASK)
    if word is None:
        control.fault = "a reserved bit is set"
    name = call.name if call else f"call {control.value & _CODE_MASK:#06x}"
    parts = [control]
    words, fault = name, control.fault
    if call is None:
        fault = fault or f"no call of this hypervisor's has the code {control.value & _CODE_MASK:#06x}"
    if len(data) > CONTROL_SIZE:
        if call is None or word is None:
            parts.append(raw("input", data, CONTROL_SIZE, len(data)))
        else:
            block = _input(call, word, data, version)
            parts.append(block)
            words, fault = f"{name}{block.words}", fault or block.fault
    if word is not None and call is not None:
        fault = fault or _contradiction(word, call)
    return group("hypercall", data, 0, len(data), parts, words, fault)


def _contradiction(word: ControlWord, call: Call) -> str:
    """Why a hypervisor would refuse the control word, as INVALID_HYPERCALL_INPUT."""
    if call.rep and not word.count:
        return f"{call.name} takes a list, and the rep count is 0"
    if not call.rep and (word.count or word.start):
        return f"{call.name} takes no list, and the rep count is {word.count}, from {word.start} on"
    if word.start and word.start >= word.count:
        return f"the list has {word.count} elements, and the call starts at {word.start}"
    if word.fast and not call.fast:
        return f"{call.name} cannot be called with its input in registers"
    return ""


def _input(call: Call, word: ControlWord, data: bytes, version: int | None) -> Field:
    at, end = CONTROL_SIZE, len(data)
    parts: list[Field] = []
    words = ""
    if call.request.SIZE:
        body = layout_field("request", call.request, data, at, end, _INPUTS)
        parts.append(body)
        try:
            words = describe(call.request.decode(data, at))
        except WireError:
            return group("input", data, at, end, parts, words, body.fault)
        if call.request is PostMessageInput:
            words += _message(body, data, version)
        elif call.request is SignalEventInput:
            words += f" ({connection_words(int.from_bytes(data[at : at + 4], 'little')) or 'somebody'})"
        at = body.end
    if word.header_qwords and at < end:
        parts.append(raw("variable_header", data, at, min(end, at + 8 * word.header_qwords)))
        at = parts[-1].end
    fault = ""
    if call.element_in:
        for index in range(word.count):
            if at + call.element_in > end:
                if at < end or index == 0:
                    fault = f"a list of {word.count} elements of {call.element_in} bytes is said to be here"
                break
            parts.append(_element(index, call.element_in, data, at))
            at = parts[-1].end
    if at < end:
        register = word.fast and end - CONTROL_SIZE <= FAST_BYTES
        parts.append(raw("unused" if register else "beyond", data, at, end))
    return group("input", data, CONTROL_SIZE, end, parts, words, fault)


def _element(index: int, size: int, data: bytes, at: int) -> Field:
    layout = _ELEMENTS.get(size)
    name = f"element[{index}]"
    if layout is not None:
        return layout_field(name, layout, data, at, at + size)
    return number(name, data, at, size) if size <= 8 else raw(name, data, at, at + size)


def _message(body: Field, data: bytes, version: int | None) -> str:
    """Put the message that is posted into its payload; what it is."""
    kind, size, payload = (
        next(part for part in body.children if part.name == name)
        for name in ("message_type", "payload_size", "payload")
    )
    if not isinstance(kind.value, int) or not isinstance(size.value, int):
        return ""
    kind.words = message_type_words(kind.value)
    stop = min(payload.end, payload.offset + size.value)
    if size.value > payload.size:
        size.fault = f"a payload has {payload.size} bytes at most"
    if kind.value != SYNIC_MESSAGE_TYPE or stop == payload.offset:
        return ""
    message = decode_channel_message(data[payload.offset : stop], ">root", version)
    payload.value, payload.children = None, [embed(message, payload.offset)]
    if stop < payload.end:
        payload.children.append(raw("unused", data, stop, payload.end))
    payload.words = message.words
    return f" ({message.words})"


def decode_result(data: bytes) -> Field:
    """What a hypercall returns in RAX."""
    field = number("result", data, 0, 8, _RESULT)
    if field.fault:
        return group("result", data, 0, len(data), [field] if data else [], "", field.fault)
    status, completed = int.from_bytes(data[:2], "little"), int.from_bytes(data[4:6], "little") & 0xFFF
    field.words = hv_status_words(status) + (f", {completed} elements done" if completed else "")
    if len(data) == 8:
        return field
    return group("result", data, 0, len(data), [field, raw("beyond", data, 8, len(data))], field.words)
