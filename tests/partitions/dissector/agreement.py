"""What our own decoder finds in a unit, under the names of the dissector's fields.

The two are written apart from each other, and each has names of its own; `NAMES` is where they differ. `UNSHOWN` is
what only the decoder breaks down: the bytes are shown, as part of a larger field.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from partitions.decode.field import Field, Value
from partitions.decode.message import decode_channel_message
from partitions.decode.packet import decode_ring_packet
from partitions.recording.link import NAMES as DEVICE_NAMES
from tests.doubles.captures import MESSAGE, TO_ROOT, Unit
from tests.doubles.tshark import ALWAYS_WRONG, FAULTS, read_fields

PREFIXES = {
    "storage": "vmbus.storage.",
    "ide": "vmbus.storage.",
    "network": "vmbus.network.",
    "heartbeat": "vmbus.heartbeat.",
    "shutdown": "vmbus.shutdown.",
    "time-sync": "vmbus.timesync.",
    "kvp": "vmbus.kvp.",
    "vss": "vmbus.vss.",
    "file-copy": "vmbus.filecopy.",
    "keyboard": "vmbus.keyboard.",
    "mouse": "vmbus.mouse.",
    "video": "vmbus.video.",
    "dynamic-memory": "vmbus.memory.",
}
INTEGRATION = ("heartbeat", "shutdown", "time-sync", "kvp", "vss", "file-copy")

NAMES = {
    "message.message_type": "type",
    "message.range.byte_count": "vmbus.gpadl.range.byte_count",
    "message.range.byte_offset": "vmbus.gpadl.range.byte_offset",
    "message.range.page": "vmbus.gpadl.pfn",
    "message.pages.page": "vmbus.gpadl.pfn",
    "packet.extended.range.page": "vmbus.packet.pfn",
    "packet.extended.range.byte_count": "vmbus.packet.range.byte_count",
    "packet.extended.range.byte_offset": "vmbus.packet.range.byte_offset",
    "pipe.type": "vmbus.pipe.type",
    "pipe.length": "vmbus.pipe.length",
    "storage:srb.length": "srb_length",
    "storage:version.major_minor": "version",
    "storage:properties.flags": "channel_flags",
    "storage:properties.max_channel_count": "max_channels",
    "storage:properties.max_transfer_bytes": "max_transfer",
    "storage:properties.reserved": "properties_reserved",
    "storage:properties.reserved2": "properties_reserved3",
    "storage:sub_channels.count": "sub_channels",
    "storage:srb.cdb_or_sense.cdb.opcode": "opcode",
    "storage:srb.cdb_or_sense.cdb.lba": "lba",
    "storage:srb.cdb_or_sense.cdb.blocks": "blocks",
    "storage:srb.cdb_or_sense.sense.asc": "sense.asc",
    "storage:srb.cdb_or_sense.sense.ascq": "sense.ascq",
    "network:body.least_version": "version",
    "network:body.greatest_version": "max_version",
    "network:body.negotiated_version": "version",
    "network:body.major": "ndis_major",
    "network:body.minor": "ndis_minor",
    "network:body.section_count": "sections",
    "network:section.section_offset": "section.offset",
    "network:section.piece_size": "section.piece_size",
    "network:section.piece_count": "section.piece_count",
    "network:section.end_offset": "section.end",
    "network:body.allocated": "vf_allocated",
    "network:body.serial": "vf_serial",
    "network:body.active": "data_path",
    "network:body.reserved": "config_reserved",
    "network:table.entry": "table_entry",
    "keyboard:body.status": "accepted",
    "mouse:body.approved": "accepted",
    "mouse:body.version": "version",
    "video:body.max_outputs": "outputs",
    "video:body.user_context": "context",
    "video:body.address": "gpa",
    "video:body.vram_offset": "offset",
    "video:body.depth_bits": "depth",
    "video:body.pitch_bytes": "pitch",
    "video:body.pointer_position_needed": "position_needed",
    "video:body.pointer_shape_needed": "shape_needed",
    "video:body.greatest_count": "max_resolutions",
    "video:body.default_index": "default_resolution",
    "video:mode.width": "mode.width",
    "video:mode.height": "mode.height",
    "dynamic-memory:body.least_pages": "min_pages",
    "dynamic-memory:body.greatest_page": "max_page",
    "dynamic-memory:body.page_file_size": "page_file",
    "dynamic-memory:body.page_count": "pages",
    "shutdown:body.timeout_seconds": "timeout",
    "kvp:body.item.key.text": "key",
    "kvp:body.item.value.text": "value",
    "kvp:body.item.value.number": "value",
    "file-copy:body.file_copy.service_id0": "service0",
    "file-copy:body.file_copy.service_id1": "service1",
    "file-copy:body.start.file_name": "file",
    "file-copy:body.start.path_name": "path",
    "file-copy:body.start.copy_flags": "flags",
    "file-copy:body.write.file_offset": "offset",
    "header.component": "vmbus.ic.type",
    "header.message_major": "vmbus.ic.version_major",
    "header.message_minor": "vmbus.ic.version_minor",
    "body.counts.reserved": "vmbus.ic.negotiate_reserved",
    "body.framework.major": "vmbus.ic.framework.major",
    "body.framework.minor": "vmbus.ic.framework.minor",
    "body.message.major": "vmbus.ic.message.major",
    "body.message.minor": "vmbus.ic.message.minor",
}
UNSHOWN = re.compile(
    r"padding|(.*\.)?(unused|rest|beyond|hints|padding)"
    r"|storage:srb\.cdb_or_sense\.(cdb|sense)\..*"
    r"|kvp:body\.item\.(key|value)"  # empty ones, whose bytes are not given a name
    r"|file-copy:body\.data"
    r"|storage:answer"  # to a question that one packet alone does not tell
)
_NUMBER = re.compile(r"\[\d+\]")


def compare(capture: Path, units: Sequence[Unit], *, faulty: int = 0) -> int:
    """Each value that the decoder finds is in tshark's output, and no other of such a field; returns how many.

    Nothing is wrong with the packets, by either of the two, but with `faulty` of them.
    """
    wanted: list[dict[str, list[str | int]] | None] = []
    features: dict[int, int] = {}
    for unit in units:
        granted = _granted(unit)
        if granted is not None:
            features[unit.partition] = granted
        wanted.append(_expected(unit, features.get(unit.partition, 0)))
    assert wanted.count(None) == faulty
    kinds = {name: values[0] for each in wanted if each for name, values in each.items()}
    faults = [*ALWAYS_WRONG, *(f"vmbus.fault.{kind}" for kind in FAULTS)]
    known = ("vmbus.kind", "frame.cb_pen", "partita.event")
    every = read_fields(capture, [*known, *sorted(kinds), *faults], two_passes=False)
    assert all("partita.event" in row for row in every if "frame.cb_pen" in row), "an event without words"
    rows = [row for row in every if "vmbus.kind" in row]
    assert len(rows) == len(units)
    for row in rows:
        del row["vmbus.kind"]
    compared = 0
    for number, (row, values) in enumerate(zip(rows, wanted, strict=True), 1):
        if values is None:
            assert not row.keys().isdisjoint(faults), f"unit {number}"
        else:
            found = {name: [read_value(text, kinds.get(name, "")) for text in texts] for name, texts in row.items()}
            assert found == values, f"unit {number}"
            compared += sum(map(len, values.values()))
    return compared


def _granted(unit: Unit) -> int | None:
    """The features that a VERSION_RESPONSE grants."""
    if unit.kind != MESSAGE or unit.data[:4] != b"\x0f\0\0\0" or not unit.data[8]:
        return None
    return int.from_bytes(unit.data[16:20], "little")


def _expected(unit: Unit, features: int) -> dict[str, list[str | int]] | None:
    """Fields of the dissector with the decoder's values, in the order of the bytes; None for a unit with faults."""
    way = ">root" if unit.direction == TO_ROOT else ">child"
    device = DEVICE_NAMES.get(unit.device, "")
    if unit.kind == MESSAGE:
        tree = decode_channel_message(unit.data, way, unit.version or None, features)
    else:
        tree = decode_ring_packet(unit.data, device, way)
    if tree.faults:
        return None
    values: dict[str, list[str | int]] = {}
    for path, value in _leaves(tree, unit.data, "message" if unit.kind == MESSAGE else "packet"):
        name = _name(path, device)
        if name == "vmbus.kvp.value":
            value = str(value)  # one field for texts and numbers
        if name is not None:
            values.setdefault(name, []).append(plain(value))
    return values


def _leaves(field: Field, data: bytes, path: str) -> Iterator[tuple[str, Value]]:
    if path in ("message.user_defined", "packet.payload.srb.cdb_or_sense.cdb"):
        # The dissector has all 16 bytes of a CDB.
        yield path, data[field.offset : field.end if path.startswith("message") else field.offset + 16]
    bits = {part.name: part.value for part in field.children if part.bits}
    if "sense_key" in bits or "lba" in bits:
        yield path, bits.get("sense_key", bits.get("lba"))
    elif field.children and not field.children[0].bits:
        for child in field.children:
            # A balloon's `pages` is a number; a page range, 64 bits of both, is called so there too.
            plain_number = child.name == "pages" and child.size == 8 and path.startswith("packet")
            name = "page_range" if plain_number else _NUMBER.sub("", child.name)
            yield from _leaves(child, data, f"{path}.{name}")
    elif path != "message.user_defined":
        yield path, field.value


def _name(path: str, device: str) -> str | None:
    """The dissector's name of what the decoder found; None for what it does not break down so far."""
    if path.startswith("message."):
        if path == "message.user_defined":
            return "vmbus.message.user_defined"
        if UNSHOWN.fullmatch(path.removeprefix("message.")) or path.startswith("message.user_defined."):
            return None
        return _under("vmbus.message.", NAMES.get(path) or path.removeprefix("message."))
    if path.startswith(("packet.descriptor.", "packet.extended.")):
        return _under("vmbus.packet.", NAMES.get(path) or path.split(".", 2)[2])
    inner = path.removeprefix("packet.payload.")
    kind = "storage" if device == "ide" else device
    if device not in PREFIXES:
        return None  # nobody knows what a device of somebody's own says
    prefix = PREFIXES[device]
    if inner == "srb.cdb_or_sense.cdb":
        return "vmbus.storage.cdb"
    if inner == "srb.cdb_or_sense.sense.key":
        return "vmbus.storage.sense.key"
    own = NAMES.get(f"{kind}:{inner}")
    if own is not None:
        return _under(prefix, own)
    if UNSHOWN.fullmatch(f"{kind}:{inner}") or UNSHOWN.fullmatch(inner):
        return None
    if device in INTEGRATION and inner.startswith(("header.", "body.counts.", "body.framework.", "body.message.")):
        return _under("vmbus.ic.", NAMES.get(inner) or inner.rpartition(".")[2])
    leaf = inner.rpartition(".")[2]
    return _under(prefix, NAMES.get(inner) or ("type" if leaf == "message_type" else leaf))


def _under(prefix: str, name: str) -> str:
    return name if name.startswith("vmbus.") else prefix + name


def plain(value: Value) -> str | int:
    """A value as it is compared: numbers as such, bytes as hexadecimal text."""
    if isinstance(value, bytes):
        return value.hex()
    assert value is not None
    return value


def read_value(text: str, like: str | int) -> str | int:
    """What tshark printed, as what it is compared with."""
    return int(text, 0) if isinstance(like, int) else text
