"""Which decoder bytes are for: by name, or by looking at them. Root side."""

from __future__ import annotations

import difflib
import struct
from collections.abc import Callable

import msgspec

from hypervisor.pages import PAGE_SIZE
from hypervisor.trace import TO_CHILD
from partitions.decode.field import Field, embed, group, layout_field
from partitions.decode.hypercall import decode_hypercall, decode_result
from partitions.decode.message import HEADER as MESSAGE_HEADER
from partitions.decode.message import decode_channel_message, row_of
from partitions.decode.network import decode_rndis
from partitions.decode.packet import decode_payload, decode_ring_packet, payload_span
from partitions.decode.registers import decode_msr
from partitions.decode.ring import decode_ring
from partitions.decode.scsi import decode_cdb, decode_sense_data
from partitions.decode.synic import (
    decode_event_page,
    decode_message_page,
    decode_monitor_page,
    decode_synic_message,
    decode_tsc_page,
)
from partitions.recording.link import DIRECTIONS, LINK_VERSION, NAMES, Kind, LinkHeader
from vmbus.protocol.messages import MessageType
from vmbus.ring import PacketType
from vsp_vsc.integration.protocol import HEADER_SIZE as INTEGRATION_HEADER
from vsp_vsc.integration.protocol import Component
from vsp_vsc.network.protocol import NvspType
from vsp_vsc.network.rndis import RndisType
from vsp_vsc.storage.protocol import HEADER_SIZE, SRB_SIZE, SRB_SIZE_WIN7, Operation
from vsp_vsc.storage.scsi.cdb import CDB_LENGTH, Opcode


class Context(msgspec.Struct, frozen=True):
    """What is known beside the bytes."""

    device: str = ""
    """A short name, such as `storage`; empty where it is not known."""
    direction: str = ""
    """`>root`, `>child`, or empty."""
    version: int | None = None
    """Of VMBus."""
    features: int | None = None
    """Of VMBus 6.0."""


class Decoder(msgspec.Struct, frozen=True):
    """One thing that bytes can be."""

    name: str
    words: str
    decode: Callable[[bytes, Context], Field]


def _link(data: bytes, context: Context) -> Field:
    """What a recording has of a packet: a link header, and the bytes behind it."""
    header = layout_field("link", LinkHeader, data, 0, len(data))
    if header.fault:
        return group("recorded", data, 0, len(data), [header] if data else [], "", header.fault)
    link = LinkHeader.decode(data)
    direction = DIRECTIONS[link.direction] if link.direction < len(DIRECTIONS) else ""
    inner = Context(NAMES.get(link.device, ""), direction, link.bus_version or None)
    named = {part.name: part for part in header.children}
    named["device"].words = inner.device
    named["direction"].words = direction
    if link.bus_version:
        named["bus_version"].words = f"{link.bus_version >> 16}.{link.bus_version & 0xFFFF}"
    fault = "" if link.version == LINK_VERSION else f"link version {link.version}; {LINK_VERSION} is known"
    parts = [header]
    words = ""
    if len(data) > LinkHeader.SIZE:
        body = data[LinkHeader.SIZE :]
        kind = "message" if link.kind == Kind.MESSAGE else "packet"
        named["kind"].words = kind
        field = embed(KINDS[kind].decode(body, inner), LinkHeader.SIZE)
        parts.append(field)
        words = field.words
    return group("recorded", data, 0, len(data), parts, words, fault)


_ALL = (
    Decoder("message", "a channel message", lambda d, c: decode_channel_message(d, c.direction, c.version, c.features)),
    Decoder("packet", "a ring packet", lambda d, c: decode_ring_packet(d, c.device, c.direction)),
    Decoder("payload", "the payload of a device's packet", lambda d, c: decode_payload(d, c.device, c.direction)),
    Decoder("ring", "a ring", lambda d, c: decode_ring(d, c.device, c.direction)),
    Decoder("recorded", "a packet of a recording, as Wireshark copies it", _link),
    Decoder("cdb", "a SCSI command", lambda d, c: decode_cdb(d)),
    Decoder("sense", "SCSI sense data", lambda d, c: decode_sense_data(d)),
    Decoder("rndis", "an RNDIS message", lambda d, c: decode_rndis(d)),
    Decoder("hypercall", "a hypercall's control word and input", lambda d, c: decode_hypercall(d, c.version)),
    Decoder("result", "a hypercall's result value", lambda d, c: decode_result(d)),
    Decoder("msr", "a synthetic MSR's number and value", lambda d, c: decode_msr(d)),
    Decoder("synic", "a SynIC message slot", lambda d, c: decode_synic_message(d, c.version, c.direction or TO_CHILD)),
    Decoder("message-page", "a SynIC message page (SIMP)", lambda d, c: decode_message_page(d, c.version)),
    Decoder("event-page", "a SynIC event flags page (SIEFP)", lambda d, c: decode_event_page(d)),
    Decoder("monitor-page", "a monitored notification page", lambda d, c: decode_monitor_page(d)),
    Decoder("tsc-page", "the reference TSC page", lambda d, c: decode_tsc_page(d)),
)
KINDS: dict[str, Decoder] = {kind.name: kind for kind in _ALL}
"""By the names that `--as` takes."""


class Guess(msgspec.Struct, frozen=True):
    """What bytes were taken for, and why."""

    kind: str
    device: str = ""
    why: str = ""


def guess(data: bytes) -> Guess | None:
    """What bytes look like; None where nothing fits."""
    for look in _LOOKS:
        found = look(data)
        if found is not None:
            return found
    return None


def _u32(data: bytes, at: int = 0) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _looks_recorded(data: bytes) -> Guess | None:
    if len(data) < LinkHeader.SIZE + 8 or data[0] != LINK_VERSION or data[1] not in tuple(Kind) or data[2] > 1:
        return None
    inner = data[LinkHeader.SIZE :]
    fits = _looks_message(inner) if data[1] == Kind.MESSAGE else _looks_packet(inner)
    return Guess("recorded", why="it begins with a recording's link header") if fits else None


def _looks_message(data: bytes) -> Guess | None:
    row = row_of(data)
    if row is None or not row.layout.SIZE <= len(data) <= 256 or any(data[4:MESSAGE_HEADER]):
        return None
    return Guess("message", why=f"type {row.number.value} is {row.number.name}, its {row.layout.SIZE} bytes are there")


def _looks_packet(data: bytes) -> Guess | None:
    if len(data) < 16:
        return None
    kind, offset8, length8, flags = struct.unpack_from("<HHHH", data)
    if (
        kind not in tuple(PacketType)
        or not 2 <= offset8 <= length8
        or flags > 1
        or len(data) - length8 * 8 not in (0, 8)
    ):
        return None
    start, end = payload_span(data)
    device = guess_device(data[start:end], kind)
    return Guess("packet", device, f"its descriptor says type {PacketType(kind).name}, {length8 * 8} bytes")


def guess_device(payload: bytes, kind: int = 0) -> str:
    """Whose payload it might be, by the devices that can be told; empty where none fits."""
    first, second = _u32(payload), _u32(payload, 4)
    component = int.from_bytes(payload[12:14], "little")
    if (
        first == 1
        and second >= INTEGRATION_HEADER
        and len(payload) >= 8 + INTEGRATION_HEADER
        and second <= len(payload) - 8
    ):
        flags, size = payload[25], int.from_bytes(payload[18:20], "little")
        if (
            component in tuple(Component)
            and 0 < flags < 8
            and INTEGRATION_HEADER + size <= second
            and not payload[26] | payload[27]
        ):
            return _COMPONENTS.get(component, "")
    if (
        first in tuple(Operation)
        and second <= 1
        and len(payload) in (HEADER_SIZE + SRB_SIZE, HEADER_SIZE + SRB_SIZE_WIN7)
        and (first != Operation.EXECUTE_SRB or _u32(payload, 12) & 0xFFFF in (SRB_SIZE, SRB_SIZE_WIN7))
    ):
        return "storage"
    if (first in tuple(NvspType) and first >= NvspType.SEND_NDIS_VERSION and len(payload) <= 40) or (
        first in (NvspType.INIT, NvspType.INIT_COMPLETE) and len(payload) in (32, 40)
    ):
        return "network"
    return ""


_COMPONENTS: dict[int, str] = {
    Component.NEGOTIATE: "heartbeat",
    Component.HEARTBEAT: "heartbeat",
    Component.KVP: "kvp",
    Component.SHUTDOWN: "shutdown",
    Component.TIME_SYNC: "time-sync",
    Component.VSS: "vss",
    Component.FILE_COPY: "file-copy",
}


def _looks_synic(data: bytes) -> Guess | None:
    if not 16 < len(data) <= 256 or data[4] > 240 or data[5] > 1 or data[6] or data[7]:
        return None
    kind, size = _u32(data), data[4]
    if kind == 1 and size >= MESSAGE_HEADER and 16 + size <= len(data) and _u32(data, 16) in tuple(MessageType):
        return Guess("synic", why=f"its header says a VMBus message of {size} bytes")
    if kind >> 31 and size > 0 and 16 + size <= len(data):
        return Guess("synic", why=f"its header says the hypervisor's message {kind:#x} of {size} bytes")
    return None


def _looks_page(data: bytes) -> Guess | None:
    if len(data) < PAGE_SIZE or len(data) % PAGE_SIZE:
        return None
    indices = struct.unpack_from("<IIII", data)
    blank = not any(data[16:64]) and not any(data[68:PAGE_SIZE])
    size = len(data) - PAGE_SIZE
    fits = blank and not (indices[0] | indices[1]) & 7 and indices[2] <= 1 and _u32(data, 64) <= 1 and any(data[:68])
    if fits and (not size or max(indices[:2]) < size):
        return Guess("ring", why="its first page has nothing but a ring's indices, mask and feature bits")
    if size:
        return None
    slots = [data[at : at + 256] for at in range(0, PAGE_SIZE, 256)]
    full = [slot for slot in slots if any(slot)]
    if full and all(_looks_synic(slot) for slot in full):
        return Guess("message-page", why=f"{len(full)} of its 16 slots hold SynIC messages, the others are empty")
    if 0 < _u32(data) <= 0xF and not any(data[2112:]) and not any(data[40:64]):
        return Guess("monitor-page", why="its first word enables trigger groups, and what is reserved is zero")
    return None


def _looks_hypercall(data: bytes) -> Guess | None:
    if len(data) < 8 or len(data) > PAGE_SIZE + 8:
        return None
    field = decode_hypercall(data[:8])
    if field.fault or field.words.startswith("call ") or _u32(data) & 0xFFFF < 0x40:
        return None
    return Guess("hypercall", why=f"the control word is {field.words}'s")


def _looks_rndis(data: bytes) -> Guess | None:
    if len(data) >= 12 and _u32(data) in tuple(RndisType) and _u32(data, 4) == len(data):
        return Guess("rndis", why=f"type {RndisType(_u32(data)).name}, and the length is right")
    return None


def _looks_payload(data: bytes) -> Guess | None:
    device = guess_device(data)
    return Guess("payload", device, f"it looks like what {device} sends") if device else None


def _looks_sense(data: bytes) -> Guess | None:
    if not data or data[0] & 0x7F not in (0x70, 0x71, 0x72, 0x73) or not 8 <= len(data) <= 252:
        return None
    fixed = data[0] & 0x7F < 0x72
    if fixed and (len(data) < 14 or data[7] > len(data)):
        return None
    return Guess("sense", why=f"{data[0]:#04x} begins sense data")


def _looks_command(data: bytes) -> Guess | None:
    if len(data) not in (6, 10, 12, 16) or data[0] not in tuple(Opcode):
        return None
    length = CDB_LENGTH[data[0]]
    if length > len(data) or any(data[length:]):
        return None
    return Guess("cdb", why=f"{Opcode(data[0]).name} has {length} bytes")


_LOOKS = (
    _looks_page,
    _looks_recorded,
    _looks_packet,
    _looks_message,
    _looks_synic,
    _looks_rndis,
    _looks_payload,
    _looks_sense,
    _looks_command,
    _looks_hypercall,
)
"""The most telling first."""


def nearest(word: str, known: list[str]) -> str:
    """What to say of a name that there is not."""
    near = difflib.get_close_matches(word, known, n=1)
    return f'did you mean "{near[0]}"?' if near else f"there are {', '.join(known)}"
