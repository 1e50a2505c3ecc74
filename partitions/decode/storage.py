"""Storage packets as trees of fields, and in the words of the live trace. Root side."""

from __future__ import annotations

from partitions.decode.field import Bits, Field, Hint, Hints, group, layout_field, raw
from partitions.decode.scsi import decode_cdb, decode_sense_data
from partitions.decode.words import enum_words, flag_words, short_version_words, yes_no
from vsp_vsc.storage import protocol as s
from vsp_vsc.storage.protocol import Operation, SrbStatus
from vsp_vsc.storage.scsi.cdb import CDB_LENGTH, Direction, ScsiStatus, describe_cdb
from vsp_vsc.storage.scsi.sense import result_words

_OPERATION = enum_words(Operation)
_NT_STATUS = enum_words(s.NtStatus)
_SRB_STATUS = enum_words(SrbStatus)
_HEADER: Hints = {
    "operation": Hint(_OPERATION),
    "flags": Hint(bits=(Bits("completion_wanted", 0, 0, yes_no),)),
    "status": Hint(_NT_STATUS),
}
_SRB: Hints = {
    "srb_status": Hint(
        bits=(
            Bits("autosense_valid", 7, 7, yes_no),
            Bits("queue_frozen", 6, 6, yes_no),
            Bits("status", 5, 0, lambda value: _SRB_STATUS(value) if value else "pending"),
        )
    ),
    "scsi_status": Hint(enum_words(ScsiStatus, spaces=True)),
    "data_in": Hint(enum_words(Direction)),
    "queue_tag": Hint(lambda value: "none" if value == s.NO_QUEUE_TAG else ""),
    "queue_action": Hint(lambda value: "simple" if value == s.SIMPLE_TAG else ""),
    "srb_flags": Hint(flag_words(s.SrbFlags)),
    "timeout": Hint(lambda value: f"{value} s"),
    "data_transfer_length": Hint(lambda value: f"{value} bytes"),
}
_PROPERTIES: Hints = {"flags": Hint(flag_words(s.ChannelFlags))}
_WITH_SRB = (Operation.EXECUTE_SRB, Operation.RESET_LUN)


def decode_storage(data: bytes, at: int, end: int, direction: str = "") -> Field:
    """The payload of a packet on a storage channel, as `payload`."""
    header = layout_field("header", s.PacketHeader, data, at, end, _HEADER)
    words = storage_words(data[at:end], direction)
    if header.fault:
        return group("payload", data, at, end, [header], words, header.fault)
    operation = int.from_bytes(data[at : at + 4], "little")
    start = at + s.HEADER_SIZE
    parts, fault = [header], ""
    if operation not in tuple(Operation):
        fault = f"no storage packet has the operation {operation}"
    if start < end:
        parts.extend(_body(operation, data, start, end))
    elif operation in _WITH_SRB:
        fault = "no SRB behind the header"
    return group("payload", data, at, end, parts, words, fault)


def _body(operation: int, data: bytes, at: int, end: int) -> list[Field]:
    blank = not any(data[at:end])
    match operation:
        case Operation.EXECUTE_SRB:
            return _srb(data, at, end, sense=False)
        case Operation.RESET_LUN if not blank:
            return _srb(data, at, end, sense=False)
        case Operation.COMPLETE_IO if not blank:
            return _completion(data, at, end)
        case Operation.QUERY_PROTOCOL_VERSION:
            hints: Hints = {"major_minor": Hint(short_version_words)}
            return _with_rest(layout_field("version", s.ProtocolVersion, data, at, end, hints), data, end)
        case Operation.CREATE_SUB_CHANNELS:
            return _with_rest(layout_field("sub_channels", s.SubChannelCount, data, at, end), data, end)
        case Operation.QUERY_PROPERTIES if not blank:
            return _with_rest(layout_field("properties", s.ChannelProperties, data, at, end, _PROPERTIES), data, end)
        case Operation.FCHBA_DATA if not blank:
            return _with_rest(layout_field("fibre_channel", s.FcHbaData, data, at, end), data, end)
        case _:
            return [raw("unused", data, at, end, "" if blank else "not zero")]


def _with_rest(field: Field, data: bytes, end: int) -> list[Field]:
    return [field, raw("unused", data, field.end, end)] if field.end < end else [field]


def _completion(data: bytes, at: int, end: int) -> list[Field]:
    """What answers what is not in the bytes; an SRB begins with its length, which nothing else does."""
    if end - at >= 2 and int.from_bytes(data[at : at + 2], "little") in (s.SRB_SIZE, s.SRB_SIZE_WIN7):
        return _srb(data, at, end, sense=True)
    kind = "properties or version, by what was asked"
    if end - at >= s.ChannelProperties.SIZE and any(data[at + 12 : at + 16]):
        return _with_rest(layout_field("properties", s.ChannelProperties, data, at, end, _PROPERTIES), data, end)
    return [raw("answer", data, at, end, kind)]


def _srb(data: bytes, at: int, end: int, *, sense: bool) -> list[Field]:
    layout: type[s.Srb | s.SrbWin7] = s.Srb if end - at >= s.SRB_SIZE else s.SrbWin7
    field = layout_field("srb", layout, data, at, end, _SRB)
    named = {part.name: part for part in field.children}
    place = named.get("cdb_or_sense")
    if place is not None and not place.fault:
        place.value = None
        status = data[at + 2]
        if sense and status & s.SRB_AUTOSENSE_VALID:
            length = min(data[at + 9] or s.SENSE_SIZE, s.SENSE_SIZE)
            place.children = [decode_sense_data(data, place.offset, place.offset + length)]
        elif sense:
            place.children = [raw("unused", data, place.offset, place.end)]
        else:
            length = data[at + 8]
            known = length if 0 < length <= s.CDB_SIZE else s.CDB_SIZE
            cdb = decode_cdb(data, place.offset, place.offset + known)
            if not 0 < length <= s.CDB_SIZE:
                cdb.fault = f"a CDB of {length} bytes; 1 to {s.CDB_SIZE} can be"
            elif CDB_LENGTH[data[place.offset]] > known:
                cdb.fault = f"{CDB_LENGTH[data[place.offset]]} bytes needed, {known} there"
            place.children = [cdb]
        if place.children[-1].end < place.end:
            place.children.append(raw("unused", data, place.children[-1].end, place.end))
        place.words = place.children[0].words
    said = int.from_bytes(data[at : at + 2], "little")
    if not field.fault and said != layout.SIZE:
        field.fault = (
            f"says that it has {said} bytes; an SRB has {s.SRB_SIZE_WIN7} before version 5.1 and {s.SRB_SIZE} since"
        )
    return _with_rest(field, data, end)


def storage_words(payload: bytes, direction: str = "") -> str:
    """What the live trace prints of a storage packet: of a command, of its result, of anything else."""
    if len(payload) < s.HEADER_SIZE:
        return ""
    operation = int.from_bytes(payload[:4], "little")
    status = int.from_bytes(payload[8:12], "little")
    if operation == Operation.EXECUTE_SRB and len(payload) >= s.HEADER_SIZE + s.SRB_SIZE_WIN7:
        return describe_cdb(payload[28:44])
    if operation == Operation.COMPLETE_IO:
        return _result(payload, status)
    name = _OPERATION(operation) if operation in tuple(Operation) else f"storage operation {operation}"
    if operation == Operation.QUERY_PROTOCOL_VERSION and len(payload) >= 14:
        name += f" {short_version_words(int.from_bytes(payload[12:14], 'little'))}"
    return name


def _result(payload: bytes, status: int) -> str:
    body = payload[s.HEADER_SIZE :]
    if len(body) >= s.SRB_SIZE_WIN7 and int.from_bytes(body[:2], "little") in (s.SRB_SIZE, s.SRB_SIZE_WIN7):
        srb_status, scsi_status = body[2] & s.SRB_STATUS_MASK, body[3]
        sense = body[16:36] if body[2] & s.SRB_AUTOSENSE_VALID else b""
        if srb_status == SrbStatus.SUCCESS or sense or scsi_status:
            return result_words(scsi_status, sense)
        return _SRB_STATUS(srb_status).replace("_", " ")
    return "COMPLETE_IO" if not status else f"COMPLETE_IO: {_NT_STATUS(status)}"
