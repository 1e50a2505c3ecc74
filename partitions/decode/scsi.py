"""CDBs and sense data as trees of fields. Root side."""

from __future__ import annotations

from partitions.decode.field import Bits, Field, Hint, group, number, raw, tile
from partitions.decode.words import yes_no
from vsp_vsc.storage.scsi.cdb import CDB_LENGTH, Opcode, describe_cdb, name_of
from vsp_vsc.storage.scsi.sense import SenseKey, decode_sense

_OPCODE = Hint(name_of)
_CONTROL = Hint(bits=(Bits("naca", 2, 2),))
_READ_FLAGS = Hint(bits=(Bits("protect", 7, 5), Bits("dpo", 4, 4, yes_no), Bits("fua", 3, 3, yes_no)))
_EVPD = Hint(bits=(Bits("evpd", 0, 0, yes_no),))
_PAGE = Hint(lambda value: f"{value:02X}h")
_MODE_PAGE = Hint(bits=(Bits("control", 7, 6), Bits("page", 5, 0, lambda value: f"{value:02X}h")))
_ACTION = Hint(bits=(Bits("service_action", 4, 0),))
_ZERO_IS_256 = Hint(lambda value: "256" if value == 0 else "")

Part = tuple[str, int, int, Hint | None]
"""Name, offset, size, hint."""

_LBA_6 = Hint(bits=(Bits("reserved", 23, 21), Bits("lba", 20, 0)))
_RW_6: tuple[Part, ...] = (("lba", 1, 3, _LBA_6), ("blocks", 4, 1, _ZERO_IS_256))
_RW_10: tuple[Part, ...] = (
    ("flags", 1, 1, _READ_FLAGS),
    ("lba", 2, 4, None),
    ("group", 6, 1, None),
    ("blocks", 7, 2, None),
)
_RW_12: tuple[Part, ...] = (
    ("flags", 1, 1, _READ_FLAGS),
    ("lba", 2, 4, None),
    ("blocks", 6, 4, None),
    ("group", 10, 1, None),
)
_RW_16: tuple[Part, ...] = (
    ("flags", 1, 1, _READ_FLAGS),
    ("lba", 2, 8, None),
    ("blocks", 10, 4, None),
    ("group", 14, 1, None),
)
_RESERVE: tuple[Part, ...] = (("action", 1, 1, _ACTION), ("reservation", 2, 1, None), ("parameters", 5, 4, None))
_LAYOUTS: dict[int, tuple[Part, ...]] = {
    **dict.fromkeys((Opcode.READ_6, Opcode.WRITE_6), _RW_6),
    **dict.fromkeys(
        (
            Opcode.READ_10,
            Opcode.WRITE_10,
            Opcode.VERIFY_10,
            Opcode.SYNCHRONIZE_CACHE_10,
            Opcode.WRITE_SAME_10,
        ),
        _RW_10,
    ),
    **dict.fromkeys((Opcode.READ_12, Opcode.WRITE_12, Opcode.VERIFY_12), _RW_12),
    **dict.fromkeys(
        (
            Opcode.READ_16,
            Opcode.WRITE_16,
            Opcode.VERIFY_16,
            Opcode.SYNCHRONIZE_CACHE_16,
            Opcode.WRITE_SAME_16,
        ),
        _RW_16,
    ),
    Opcode.COMPARE_AND_WRITE: (("flags", 1, 1, _READ_FLAGS), ("lba", 2, 8, None), ("blocks", 13, 1, None)),
    Opcode.INQUIRY: (("flags", 1, 1, _EVPD), ("page", 2, 1, _PAGE), ("allocation_length", 3, 2, None)),
    Opcode.REQUEST_SENSE: (
        ("flags", 1, 1, Hint(bits=(Bits("desc", 0, 0, yes_no),))),
        ("allocation_length", 4, 1, None),
    ),
    Opcode.MODE_SENSE_6: (
        ("flags", 1, 1, Hint(bits=(Bits("dbd", 3, 3, yes_no),))),
        ("page_code", 2, 1, _MODE_PAGE),
        ("subpage", 3, 1, None),
        ("allocation_length", 4, 1, None),
    ),
    Opcode.MODE_SENSE_10: (
        ("flags", 1, 1, Hint(bits=(Bits("dbd", 3, 3, yes_no),))),
        ("page_code", 2, 1, _MODE_PAGE),
        ("subpage", 3, 1, None),
        ("allocation_length", 7, 2, None),
    ),
    Opcode.LOG_SENSE: (("page_code", 2, 1, _MODE_PAGE), ("subpage", 3, 1, None), ("allocation_length", 7, 2, None)),
    Opcode.START_STOP_UNIT: (
        ("flags", 4, 1, Hint(bits=(Bits("power_condition", 7, 4), Bits("load_eject", 1, 1), Bits("start", 0, 0)))),
    ),
    Opcode.PREVENT_ALLOW_MEDIUM_REMOVAL: (("prevent", 4, 1, Hint(yes_no)),),
    Opcode.UNMAP: (("flags", 1, 1, None), ("group", 6, 1, None), ("parameters", 7, 2, None)),
    Opcode.SERVICE_ACTION_IN_16: (("action", 1, 1, _ACTION), ("lba", 2, 8, None), ("allocation_length", 10, 4, None)),
    Opcode.MAINTENANCE_IN: (
        ("action", 1, 1, _ACTION),
        ("options", 2, 1, None),
        ("requested_opcode", 3, 1, _OPCODE),
        ("requested_action", 4, 2, None),
        ("allocation_length", 6, 4, None),
    ),
    Opcode.REPORT_LUNS: (("select_report", 2, 1, None), ("allocation_length", 6, 4, None)),
    Opcode.PERSISTENT_RESERVE_IN: (("action", 1, 1, _ACTION), ("allocation_length", 7, 2, None)),
    Opcode.PERSISTENT_RESERVE_OUT: _RESERVE,
    Opcode.READ_TOC: (
        ("flags", 1, 1, Hint(bits=(Bits("msf", 1, 1),))),
        ("format", 2, 1, None),
        ("track", 6, 1, None),
        ("allocation_length", 7, 2, None),
    ),
    Opcode.GET_CONFIGURATION: (("rt", 1, 1, None), ("starting_feature", 2, 2, None), ("allocation_length", 7, 2, None)),
    Opcode.GET_EVENT_STATUS_NOTIFICATION: (
        ("polled", 1, 1, None),
        ("class_request", 4, 1, None),
        ("allocation_length", 7, 2, None),
    ),
}
"""What lies between the operation code and the control byte (SPC-4, SBC-3, MMC-6)."""


def decode_cdb(data: bytes, at: int = 0, end: int | None = None, *, name: str = "cdb") -> Field:
    """A CDB: as many bytes as are given, of which the command takes those that it has."""
    end = len(data) if end is None else end
    if at >= end:
        return Field(name, at, 0, words=describe_cdb(b""), fault="no bytes")
    opcode = data[at]
    length = CDB_LENGTH[opcode]
    there = min(length, end - at)
    fault = f"{length} bytes needed, {there} there" if there < length else ""
    parts: list[Field] = [number("opcode", data, at, 1, _OPCODE)]
    for part_name, offset, size, hint in _LAYOUTS.get(opcode, ()):
        if offset + size <= there:
            parts.append(number(part_name, data, at + offset, size, hint, order=">"))
    if length > 1 and there == length:
        last = parts[-1].end
        if opcode not in _LAYOUTS and last < at + length - 1:
            parts.append(raw("parameters", data, last, at + length - 1))
        parts.append(number("control", data, at + length - 1, 1, _CONTROL))
    elif parts[-1].end < at + there:
        parts.append(raw("rest", data, parts[-1].end, at + there))
    if at + there < end:
        kind = "unused" if length > 1 else "vendor_specific"
        parts.append(raw(kind, data, at + there, end))
    return Field(name, at, end - at, None, describe_cdb(data[at:end]), tile(parts, data, at, end), fault=fault)


_RESPONSE = {
    0x70: "fixed, current",
    0x71: "fixed, deferred",
    0x72: "descriptors, current",
    0x73: "descriptors, deferred",
}
_KEY_NAMES = {int(key): key.name.replace("_", " ") for key in SenseKey}


def _key_words(value: int) -> str:
    return _KEY_NAMES.get(value, f"sense key {value:X}h")


_RESPONSE_CODE = Hint(
    bits=(Bits("valid", 7, 7, yes_no), Bits("response_code", 6, 0, lambda value: _RESPONSE.get(value, "unknown")))
)
_KEY = Hint(
    bits=(
        Bits("filemark", 7, 7),
        Bits("end_of_medium", 6, 6),
        Bits("incorrect_length", 5, 5),
        Bits("sense_key", 3, 0, _key_words),
    )
)
_FIXED: tuple[Part, ...] = (
    ("response", 0, 1, _RESPONSE_CODE),
    ("segment", 1, 1, None),
    ("key", 2, 1, _KEY),
    ("information", 3, 4, None),
    ("additional_length", 7, 1, None),
    ("command_specific", 8, 4, None),
    ("asc", 12, 1, None),
    ("ascq", 13, 1, None),
    ("field_replaceable_unit", 14, 1, None),
    (
        "key_specific",
        15,
        1,
        Hint(
            bits=(Bits("valid", 7, 7, yes_no), Bits("in_cdb", 6, 6, yes_no), Bits("bit_valid", 3, 3), Bits("bit", 2, 0))
        ),
    ),
    ("field_pointer", 16, 2, None),
)
_DESCRIPTORS: tuple[Part, ...] = (
    ("response", 0, 1, _RESPONSE_CODE),
    ("key", 1, 1, Hint(bits=(Bits("sense_key", 3, 0, _key_words),))),
    ("asc", 2, 1, None),
    ("ascq", 3, 1, None),
    ("additional_length", 7, 1, None),
)
_DESCRIPTOR_NAMES = {0: "information", 1: "command specific", 2: "sense key specific", 3: "field replaceable unit"}


def decode_sense_data(data: bytes, at: int = 0, end: int | None = None, *, name: str = "sense") -> Field:
    """Sense data in either format."""
    end = len(data) if end is None else end
    if at >= end:
        return Field(name, at, 0, fault="no bytes")
    code = data[at] & 0x7F
    if code not in _RESPONSE:
        return group(name, data, at, end, [raw("data", data, at, end)], "", f"no sense data begin with {data[at]:#04x}")
    layout = _DESCRIPTORS if code & 0x7E == 0x72 else _FIXED
    parts: list[Field] = []
    fault = ""
    for part_name, offset, size, hint in layout:
        if at + offset + size > end:
            fault = f"{layout[-1][1] + layout[-1][2]} bytes needed, {end - at} there"
            break
        parts.append(number(part_name, data, at + offset, size, hint, order=">"))
    if layout is _DESCRIPTORS and not fault:
        parts.extend(_descriptors(data, at + 8, min(end, at + 8 + data[at + 7]), end))
    elif not fault and parts[-1].end < end:
        parts.append(raw("additional", data, parts[-1].end, end))
    return group(name, data, at, end, parts, decode_sense(data[at:end]).words, fault)


def _descriptors(data: bytes, at: int, stop: int, end: int) -> list[Field]:
    fields = []
    while at + 2 <= stop:
        size = min(data[at + 1] + 2, stop - at)
        parts = [number("type", data, at, 1), number("length", data, at + 1, 1)]
        if size > 2:
            parts.append(raw("body", data, at + 2, at + size))
        cut = f"{data[at + 1] + 2} bytes needed, {size} there" if size < data[at + 1] + 2 else ""
        fields.append(group("descriptor", data, at, at + size, parts, _DESCRIPTOR_NAMES.get(data[at], ""), cut))
        at += size
    if at < end:
        fields.append(raw("additional", data, at, end))
    return fields
