"""Packets of the network device, and the RNDIS messages that they point at, as trees of fields. Root side."""

from __future__ import annotations

import struct

from hypervisor.wire import Wire
from partitions.decode.field import Field, Hint, Hints, group, layout_field, number, raw
from partitions.decode.words import enum_words, flag_words, long_version_words, yes_no
from vsp_vsc.network import protocol as n
from vsp_vsc.network import rndis as r
from vsp_vsc.network.protocol import NvspType
from vsp_vsc.network.rndis import RndisType

_NVSP_TYPE = enum_words(NvspType)
_NVSP_STATUS = enum_words(n.NvspStatus)
_NVSP_VERSIONS = enum_words(n.NvspVersion)
_RNDIS_TYPE = enum_words(RndisType)
_RNDIS_STATUS = enum_words(r.RndisStatus)
_OID = enum_words(r.Oid)


def _nvsp_version(value: int) -> str:
    name = _NVSP_VERSIONS(value)
    return name.replace("V", "").replace("_", ".") if name != "unknown" else long_version_words(value)


_NVSP: Hints = {
    "message_type": Hint(_NVSP_TYPE),
    "status": Hint(_NVSP_STATUS),
    "least_version": Hint(_nvsp_version),
    "greatest_version": Hint(_nvsp_version),
    "negotiated_version": Hint(lambda value: "no longer told" if value == 0xFFFF_FFFF else _nvsp_version(value)),
    "channel_type": Hint(enum_words(n.ChannelType)),
    "section_index": Hint(lambda value: "none: the data lie in the ranges" if value == 0xFFFF_FFFF else ""),
    "capabilities": Hint(flag_words(n.Capability)),
    "allocated": Hint(yes_no),
    "active": Hint(enum_words(n.DataPath)),
    "operation": Hint(lambda value: {0: "none", 1: "allocate"}.get(value, "unknown")),
}
_NVSP_BODIES: dict[int, type[Wire]] = {
    NvspType.INIT: n.NvspInit,
    NvspType.INIT_COMPLETE: n.NvspInitComplete,
    NvspType.SEND_NDIS_VERSION: n.NdisVersion,
    NvspType.SEND_RECEIVE_BUFFER: n.SendBuffer,
    NvspType.SEND_RECEIVE_BUFFER_COMPLETE: n.ReceiveBufferComplete,
    NvspType.REVOKE_RECEIVE_BUFFER: n.RevokeBuffer,
    NvspType.SEND_SEND_BUFFER: n.SendBuffer,
    NvspType.SEND_SEND_BUFFER_COMPLETE: n.SendBufferComplete,
    NvspType.REVOKE_SEND_BUFFER: n.RevokeBuffer,
    NvspType.SEND_RNDIS_PACKET: n.SendRndisPacket,
    NvspType.SEND_RNDIS_PACKET_COMPLETE: n.RndisPacketComplete,
    NvspType.SEND_NDIS_CONFIG: n.NdisConfig,
    NvspType.SEND_VF_ASSOCIATION: n.VfAssociation,
    NvspType.SWITCH_DATA_PATH: n.SwitchDataPath,
    NvspType.SUBCHANNEL: n.SubchannelRequest,
    NvspType.SEND_INDIRECTION_TABLE: n.IndirectionTable,
}


def decode_network(data: bytes, at: int, end: int, direction: str = "") -> Field:
    """The payload of a packet on a network channel, as `payload`."""
    header = layout_field("header", n.NvspHeader, data, at, end, _NVSP)
    if header.fault:
        return group("payload", data, at, end, [header], "", header.fault)
    kind = int.from_bytes(data[at : at + 4], "little")
    parts, fault = [header], ""
    layout = _NVSP_BODIES.get(kind)
    if kind == NvspType.SUBCHANNEL and direction == ">child":
        layout = n.SubchannelComplete
    if layout is not None:
        body = layout_field("body", layout, data, header.end, end, _NVSP)
        fault = body.fault
        parts.append(body)
        if layout is n.ReceiveBufferComplete and not fault:
            parts += _sections(data, body.end, end)
        elif layout is n.IndirectionTable and not fault:
            parts += _table(data, at, body.end, end)
    elif kind not in tuple(NvspType):
        fault = f"no NVSP message has type {kind}"
    if parts[-1].end < end:
        rest = data[parts[-1].end : end]
        parts.append(raw("unused" if layout else "body", data, parts[-1].end, end, "not zero" if any(rest) else ""))
    return group("payload", data, at, end, parts, network_words(data[at:end]), fault)


def _sections(data: bytes, at: int, end: int) -> list[Field]:
    count = int.from_bytes(data[at - 4 : at], "little")
    sections = []
    for index in range(min(count, (end - at) // n.ReceiveSection.SIZE)):
        section = layout_field(f"section[{index}]", n.ReceiveSection, data, at, end)
        _, size, pieces, _ = struct.unpack_from("<IIII", data, at)
        section.words = f"{pieces} pieces of {size} bytes"
        sections.append(section)
        at = section.end
    return sections


def _table(data: bytes, start: int, at: int, end: int) -> list[Field]:
    count, offset = struct.unpack_from("<II", data, at - 8)
    first = max(at, min(start + offset, end))
    entries = [number(f"entry[{i}]", data, first + 4 * i, 4) for i in range(min(count, (end - first) // 4))]
    gap = [raw("unused", data, at, first)] if at < first else []
    return [*gap, *([group("table", data, first, entries[-1].end, entries)] if entries else [])]


def network_words(payload: bytes, direction: str = "") -> str:
    """An NVSP message in words: `SEND_RNDIS_PACKET CONTROL`, `INIT 6.1`."""
    if len(payload) < 4:
        return ""
    kind = int.from_bytes(payload[:4], "little")
    if kind not in tuple(NvspType):
        return f"NVSP message {kind}"
    words = _NVSP_TYPE(kind)
    value = int.from_bytes(payload[4:8], "little")
    match kind:
        case NvspType.INIT:
            words += f" {_nvsp_version(value)}"
        case NvspType.INIT_COMPLETE if len(payload) >= 16:
            words += f" {_NVSP_STATUS(int.from_bytes(payload[12:16], 'little'))}"
        case NvspType.SEND_RNDIS_PACKET:
            words += f" {enum_words(n.ChannelType)(value)}"
        case (
            NvspType.SEND_RNDIS_PACKET_COMPLETE
            | NvspType.SEND_RECEIVE_BUFFER_COMPLETE
            | NvspType.SEND_SEND_BUFFER_COMPLETE
        ):
            words += f" {_NVSP_STATUS(value)}"
        case NvspType.SEND_RECEIVE_BUFFER | NvspType.SEND_SEND_BUFFER:
            words += f" gpadl={value:#x}"
        case NvspType.SEND_NDIS_CONFIG:
            words += f" mtu={value}"
        case _:
            pass
    return words


_RNDIS: Hints = {
    "message_type": Hint(_RNDIS_TYPE),
    "status": Hint(_RNDIS_STATUS),
    "oid": Hint(_OID),
    "kind": Hint(enum_words(r.PacketInfo)),
}
_RNDIS_BODIES: dict[int, type[Wire]] = {
    RndisType.PACKET: r.RndisPacket,
    RndisType.INITIALIZE: r.RndisInitialize,
    RndisType.INITIALIZE_COMPLETE: r.RndisInitializeComplete,
    RndisType.HALT: r.RndisRequest,
    RndisType.KEEPALIVE: r.RndisRequest,
    RndisType.QUERY: r.RndisQuery,
    RndisType.QUERY_COMPLETE: r.RndisQueryComplete,
    RndisType.SET: r.RndisQuery,
    RndisType.SET_COMPLETE: r.RndisComplete,
    RndisType.KEEPALIVE_COMPLETE: r.RndisComplete,
    RndisType.RESET: r.RndisReset,
    RndisType.RESET_COMPLETE: r.RndisResetComplete,
    RndisType.INDICATE_STATUS: r.RndisIndicateStatus,
}


def decode_rndis(data: bytes, at: int = 0, end: int | None = None, *, name: str = "rndis") -> Field:
    """An RNDIS message, which lies in guest memory and not in the ring."""
    end = len(data) if end is None else end
    header = layout_field("header", r.RndisHeader, data, at, end, _RNDIS)
    if header.fault:
        return group(name, data, at, end, [header] if end > at else [], "", header.fault)
    kind, length = struct.unpack_from("<II", data, at)
    parts, faults = [header], []
    if length > end - at:
        faults.append(f"{length} bytes are said to be here, {end - at} are")
    stop = max(header.end, min(end, at + length))
    layout = _RNDIS_BODIES.get(kind)
    words = _RNDIS_TYPE(kind) if layout else f"RNDIS message {kind:#x}"
    if layout is None:
        faults.append(f"no RNDIS message has type {kind:#x}")
        if header.end < stop:
            parts.append(raw("body", data, header.end, stop))
    else:
        body = layout_field("body", layout, data, header.end, stop, _RNDIS)
        parts.append(body)
        if body.fault:
            faults.append(body.fault)
        else:
            parts += _behind(kind, data, header.end, body.end, stop, faults)
        if layout is r.RndisQuery and body.size >= 8:
            words += f" {_OID(int.from_bytes(data[header.end + 4 : header.end + 8], 'little'))}"
    if parts[-1].end < end:
        parts.append(raw("beyond", data, parts[-1].end, end, "behind the message"))
    return group(name, data, at, end, parts, words, "; ".join(faults))


def _behind(kind: int, data: bytes, start: int, at: int, end: int, faults: list[str]) -> list[Field]:
    """What offsets in the body point at; they count from `start`, where the body begins."""
    spans: list[tuple[str, int, int]] = []
    if kind == RndisType.PACKET:
        data_offset, data_length, _, _, _, info_offset, info_length, _, _ = struct.unpack_from("<9I", data, start)
        spans = [("info", info_offset, info_length), ("frame", data_offset, data_length)]
    elif kind in (RndisType.QUERY, RndisType.SET, RndisType.QUERY_COMPLETE):
        length, offset = struct.unpack_from("<II", data, start + 8)
        spans = [("information", offset, length)]
    elif kind == RndisType.INDICATE_STATUS:
        length, offset = struct.unpack_from("<II", data, start + 4)
        spans = [("status_buffer", offset, length)]
    fields: list[Field] = []
    position = at
    for name, offset, length in sorted(spans, key=lambda span: span[1]):
        first = start + offset
        if not length:
            continue
        if first < position or first + length > end:
            faults.append(f"{name}: {length} bytes at {offset} are not in the message")
            continue
        if position < first:
            fields.append(raw("gap", data, position, first))
        fields.append(_information(kind, name, data, start, first, first + length))
        position = first + length
    if position < end:
        fields.append(raw("rest", data, position, end))
    return fields


def _information(kind: int, name: str, data: bytes, start: int, at: int, end: int) -> Field:
    if name == "info":
        return _packet_information(data, at, end)
    field = raw(name, data, at, end)
    if (
        kind == RndisType.SET
        and int.from_bytes(data[start + 4 : start + 8], "little") == r.Oid.GEN_CURRENT_PACKET_FILTER
    ):
        field = number(name, data, at, min(4, end - at), Hint(flag_words(r.PacketFilter)))
        field = field if field.end == end else raw(name, data, at, end)
    return field


def _packet_information(data: bytes, at: int, end: int) -> Field:
    parts: list[Field] = []
    position, fault = at, ""
    while position + r.RndisPacketInfo.SIZE <= end:
        size = int.from_bytes(data[position : position + 4], "little")
        stop = position + size
        if size < r.RndisPacketInfo.SIZE or stop > end:
            fault = f"a piece of {size} bytes where {end - position} are"
            break
        head = layout_field("head", r.RndisPacketInfo, data, position, stop, _RNDIS)
        pieces = list(head.children)
        if head.end < stop:
            pieces.append(raw("value", data, head.end, stop))
        words = head.children[1].words
        parts.append(group(f"piece[{len(parts)}]", data, position, stop, pieces, words))
        position = stop
    if position < end:
        parts.append(raw("rest", data, position, end))
    return group("info", data, at, end, parts, "", fault)


def rndis_words(data: bytes) -> str:
    """An RNDIS message in words: `QUERY GEN_LINK_SPEED`."""
    return decode_rndis(data).words
