"""Key-value messages: the host gets, sets, deletes and enumerates items in a guest's pools. Both sides.

Every message about items has the size of the largest of them. Keys and values are UTF-16 with a NUL that counts into
their size. Whatever a guest stores there is data: text of a bounded length, shown and never obeyed.

Limits: keys 512 bytes, values 2,048. Layouts after Linux 6.12 include/uapi/linux/hyperv.h, struct hv_kvp_msg.
"""

from __future__ import annotations

import contextlib
import enum
from typing import Annotated

from hypervisor.wire import BadValue, ShortMessage, TooMany, Wire, WireError, at, wire
from hypervisor.wire.scalars import u8, u16, u32

KEY_BYTES = 512
VALUE_BYTES = 2048
MESSAGE_SIZE = 2580
"""Of each message about items: header, index, item (openvmm hyperv_ic_protocol, KvpMessage)."""
_key = Annotated[bytes, "512s"]
_value = Annotated[bytes, "2048s"]


class Operation(enum.IntEnum):
    """What the host wants. Those of adapters' addresses are in `ip_info`."""

    GET = 0
    SET = 1
    DELETE = 2
    ENUMERATE = 3
    GET_IP_INFO = 4
    SET_IP_INFO = 5


class Pool(enum.IntEnum):
    """Who writes an item."""

    EXTERNAL = 0
    """The host, for the guest to read."""
    GUEST = 1
    """Programs in the guest."""
    AUTO = 2
    """The guest's daemon: names and versions of its system."""
    AUTO_EXTERNAL = 3
    """The host by itself: its own name and the VM's."""
    AUTO_INTERNAL = 4


class ValueType(enum.IntEnum):
    """What a value's bytes are: Windows' registry types."""

    STRING = 1
    EXPAND_STRING = 2
    DWORD = 4
    QWORD = 11


_NUMBERS = {ValueType.DWORD: 4, ValueType.QWORD: 8}
Value = str | int


@wire(size=4, spec="Linux uapi hyperv.h, struct hv_kvp_hdr")
class KvpHeader(Wire):
    """In front of every message."""

    operation: u8 = at(0)
    pool: u8 = at(1)
    reserved: u16 = at(2, default=0)


@wire(size=12 + KEY_BYTES + VALUE_BYTES, spec="Linux uapi hyperv.h, struct hv_kvp_exchg_msg_value")
class KvpItem(Wire):
    """An item; the body of GET and SET."""

    value_type: u32 = at(0, default=0)
    key_size: u32 = at(4, default=0)
    value_size: u32 = at(8, default=0)
    key: _key = at(12, default=b"")
    value: _value = at(12 + KEY_BYTES, default=b"")


@wire(size=4, spec="Linux uapi hyperv.h, struct hv_kvp_msg_enumerate")
class KvpIndex(Wire):
    """In front of the item, the body of ENUMERATE."""

    index: u32 = at(0)


@wire(size=4 + KEY_BYTES, spec="Linux uapi hyperv.h, struct hv_kvp_msg_delete")
class KvpKey(Wire):
    """The body of DELETE."""

    key_size: u32 = at(0)
    key: _key = at(4)


def encode_request(operation: Operation, pool: int, body: bytes) -> bytes:
    """A whole message, or its answer."""
    return (KvpHeader(operation, pool).encode() + body).ljust(MESSAGE_SIZE, b"\0")


def encode_item(key: str, value: Value | None = None) -> bytes:
    """The body of GET (without a value) or SET. Raises `ValueError` for what is too long or has a NUL inside."""
    raw_key = encode_text(key, KEY_BYTES, "key")
    if value is None:
        return KvpItem(key_size=len(raw_key), key=raw_key).encode()
    kind, raw_value = encode_value(value)
    return KvpItem(kind, len(raw_key), len(raw_value), raw_key, raw_value).encode()


def encode_value(value: Value) -> tuple[ValueType, bytes]:
    """Type and bytes of a value. Raises `ValueError`."""
    if isinstance(value, str):
        return ValueType.STRING, encode_text(value, VALUE_BYTES, "value")
    if not 0 <= value < 1 << 64:
        raise ValueError(f"a number is 0 to 2**64 - 1, not {value}")
    kind = ValueType.DWORD if value < 1 << 32 else ValueType.QWORD
    return kind, value.to_bytes(_NUMBERS[kind], "little")


def encode_key(key: str) -> bytes:
    """The body of DELETE. Raises `ValueError`."""
    raw = encode_text(key, KEY_BYTES, "key")
    return KvpKey(len(raw), raw).encode()


def encode_text(text: str, limit: int, what: str) -> bytes:
    """UTF-16 with its NUL. Raises `ValueError`."""
    if "\0" in text or (what == "key" and not text):
        raise ValueError(f"a {what} is a text without NUL, and a key is not empty: {text!r}")
    raw = text.encode("utf-16-le") + b"\0\0"
    if len(raw) > limit:
        raise ValueError(f"a {what} of {len(raw)} bytes of UTF-16 with its NUL, {limit} are the limit")
    return raw


def decode_item(untrusted: bytes, offset: int = 0) -> tuple[str, Value]:
    """Key and value of an item. Raises `WireError`."""
    item = KvpItem.decode(untrusted, offset)
    return decode_text(item.key, item.key_size), decode_value(item.value_type, item.value, item.value_size)


def decode_text(untrusted: bytes, untrusted_size: int) -> str:
    """A text of so many bytes, up to its NUL; what is no UTF-16 is replaced. Raises `WireError`."""
    if untrusted_size > len(untrusted):
        raise TooMany(f"a text of {untrusted_size} bytes where {len(untrusted)} are the limit")
    if untrusted_size % 2:
        raise BadValue(f"UTF-16 text of {untrusted_size} bytes")
    return untrusted[:untrusted_size].decode("utf-16-le", "replace").split("\0", 1)[0]


def decode_value(untrusted_type: int, untrusted: bytes, untrusted_size: int) -> Value:
    """A value by its type. Raises `WireError`."""
    try:
        kind = ValueType(untrusted_type)
    except ValueError:
        raise BadValue(f"a value of type {untrusted_type}") from None
    needed = _NUMBERS.get(kind)
    if needed is None:
        return decode_text(untrusted, untrusted_size)
    if untrusted_size < needed:
        raise ShortMessage(f"{kind.name} value", needed, untrusted_size)
    return int.from_bytes(untrusted[:needed], "little")


def describe(body: bytes) -> str:
    """The host's message in words: `get "state" in pool guest`. Any bytes are fine."""
    if len(body) < KvpHeader.SIZE:
        return "kvp"
    header = KvpHeader.decode(body)
    operation, pool = (_name(kind, number) for kind, number in ((Operation, header.operation), (Pool, header.pool)))
    subject = ""
    with contextlib.suppress(WireError):
        match header.operation:
            case Operation.GET | Operation.SET:
                item = KvpItem.decode(body, KvpHeader.SIZE)
                subject = f' "{decode_text(item.key, item.key_size)}"'
            case Operation.DELETE:
                key = KvpKey.decode(body, KvpHeader.SIZE)
                subject = f' "{decode_text(key.key, key.key_size)}"'
            case Operation.ENUMERATE:
                subject = f" item {KvpIndex.decode(body, KvpHeader.SIZE).index}"
            case _:
                pass
    return f"{operation}{subject} in pool {pool}"


def _name(kind: type[enum.IntEnum], number: int) -> str:
    return kind(number).name.lower() if number in tuple(kind) else str(number)
