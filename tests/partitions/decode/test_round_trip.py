"""What our encoders write, our decoders name: every field of every message, packet and hypercall input."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.hypercall.call import Call
from hypervisor.hypercall.table import CALLS
from hypervisor.wire import Guid, Wire
from partitions.decode.field import Field
from partitions.decode.hypercall import decode_hypercall
from partitions.decode.message import decode_channel_message
from partitions.decode.packet import decode_ring_packet
from partitions.decode.scsi import decode_cdb, decode_sense_data
from tests.partitions.decode.trees import check_tree
from vmbus.gpadl import encode_gpadl, page_range
from vmbus.pipe import frame
from vmbus.protocol.messages import Message, MessageType
from vmbus.protocol.table import MESSAGES, Form, Row, describe
from vmbus.protocol.versions import Version
from vmbus.ring import Packet, PacketType, packet_bytes
from vsp_vsc.integration import protocol as ic
from vsp_vsc.integration.kvp import protocol as kvp
from vsp_vsc.storage import protocol as storage
from vsp_vsc.storage.scsi import cdb as scsi
from vsp_vsc.storage.scsi.sense import Reason, decode_sense, descriptor_sense, fixed_sense


def filled(layout: type[Wire], number: int) -> Wire:
    """A value whose fields all differ."""
    values: dict[str, object] = {}
    for index, field in enumerate(layout.FIELDS, number):
        if field.name == "message_type" and issubclass(layout, Message):
            continue  # it is what the layout says
        if field.is_guid:
            values[field.name] = Guid(bytes((index + place) & 0xFF for place in range(16)))
        elif field.code.endswith("s"):
            values[field.name] = bytes((index * 3 + place) & 0xFF for place in range(field.size))
        else:
            values[field.name] = (0x0102_0304_0506_0708 + index * 0x1111) & ((1 << 8 * field.size) - 1)
    return layout(**values)


def agree(value: Wire, field: Field) -> None:
    """Every declared field of a value stands in the tree, by its name and at its place."""
    named = {child.name: child for child in field.children}
    for declared in value.FIELDS:
        child = named[declared.name]
        assert (child.offset - field.offset, child.size) == (declared.offset, declared.size)
        wanted = getattr(value, declared.name)
        if isinstance(wanted, Guid):
            assert child.value == str(wanted)
        elif child.children and not child.children[0].bits:
            assert isinstance(wanted, bytes)  # a block of bytes that was taken apart
        else:
            assert child.value == wanted, declared.name


@pytest.mark.parametrize("row", MESSAGES, ids=lambda row: row.layout.__name__)
@pytest.mark.parametrize("number", [0, 41])
def test_every_message(row: Row, number: int) -> None:
    """Each way of saying each message comes back with all its fields, at the version and with the feature it needs."""
    message = filled(row.layout, number)
    if row.form in (Form.BY_REQUEST, Form.BY_REQUEST_AND_SIZE) or row.layout.__name__ == "InitiateContactLegacy":
        version = Version.V4_1 if row.layout.__name__ == "InitiateContactLegacy" else Version.V6_0
        message = row.layout(**{**{f.name: getattr(message, f.name) for f in row.layout.FIELDS}, "version": version})
    data = message.encode()
    if row.layout.TYPE in (MessageType.GPADL_HEADER, MessageType.GPADL_BODY):
        data += struct.pack("<QQQ", 4096, 5, 6)
    field = decode_channel_message(data, row.direction, max(row.least, Version.V0_13), int(row.feature))
    check_tree(field, data)
    assert field.name == row.number.name
    assert field.words == describe(row.layout.decode(data))
    agree(message, field)
    if row.layout.TYPE is not MessageType.GPADL_HEADER:
        assert not field.faults


def test_every_type_is_there() -> None:
    """No message type is left out of the test above."""
    assert {row.number for row in MESSAGES} == set(MessageType)


@pytest.mark.parametrize("row", MESSAGES, ids=lambda row: row.layout.__name__)
def test_every_message_by_the_table_of_the_specification(row: Row) -> None:
    """Bytes laid out by tests/spec/layouts/vmbus.txt, which does not know our declarations, come back."""
    table = Path(__file__).parents[2] / "spec" / "layouts" / "vmbus.txt"
    data, wanted = bytearray(256), {}
    size = 0
    for line in table.read_text().splitlines():
        words = line.split()
        if len(words) < 4 or words[0] != row.layout.__name__:
            continue
        name, offset, length = words[1], int(words[2]), int(words[3])
        if name == "*":
            size = length
            continue
        wanted[name] = (offset, length)
        data[offset : offset + length] = bytes((offset * 7 + place + 1) & 0xFF for place in range(length))
    data[0:4] = struct.pack("<I", row.number)
    data[4:8] = bytes(4)
    if row.number is MessageType.INITIATE_CONTACT:
        legacy = row.layout.__name__ == "InitiateContactLegacy"
        data[8:12] = struct.pack("<I", Version.V4_1 if legacy else Version.V6_0)
    made = bytes(data[:size])
    field = decode_channel_message(made, row.direction, max(row.least, Version.V0_13), int(row.feature))
    check_tree(field, made)
    named = {child.name: child for child in field.children}
    assert wanted.keys() <= named.keys()
    for name, (offset, length) in wanted.items():
        child = named[name]
        assert (child.offset, child.size) == (offset, length)
        if isinstance(child.value, int):
            assert child.value == int.from_bytes(made[offset : offset + length], "little")


@given(st.integers(1, 120), st.integers(0, 1 << 40), st.integers(0, 0xFFFF_FFFF))
def test_gpadls(pages: int, first: int, gpadl: int) -> None:
    """However many messages a GPADL takes, all its pages are in their trees."""
    parts = encode_gpadl(3, gpadl, [page_range(range(first, first + pages))])
    trees = [decode_channel_message(part) for part in parts]
    found = [one.value for tree in trees for one in tree.walk() if one.name.startswith("page[")]
    assert found == list(range(first, first + pages))
    assert not [fault for tree in trees for fault in tree.faults]


CDBS = st.one_of(
    st.builds(scsi.read_cdb, st.integers(0, 1 << 40), st.integers(0, 1 << 20)),
    st.builds(scsi.write_cdb, st.integers(0, 1 << 40), st.integers(0, 1 << 20), fua=st.booleans()),
    st.builds(scsi.unmap_cdb, st.integers(0, 0xFFFF)),
    st.builds(scsi.inquiry_cdb, st.integers(0, 0xFFFF), st.none() | st.integers(0, 255)),
    st.builds(scsi.report_luns_cdb, st.integers(0, 1 << 20)),
    st.builds(scsi.read_capacity_16_cdb, st.integers(0, 255)),
    st.builds(scsi.mode_sense_6_cdb, st.integers(0, 63), st.integers(0, 255)),
    st.just(scsi.synchronize_cache_cdb()),
)


@given(CDBS)
def test_commands(cdb: bytes) -> None:
    """What our initiator builds has no fault, and its numbers are in the line and in the tree."""
    field = decode_cdb(cdb)
    check_tree(field, cdb)
    assert not field.faults
    assert field.words == scsi.describe_cdb(cdb)
    named = {child.name: child.value for child in field.children}
    for name in ("lba", "blocks"):
        if f" {name}=" in field.words:
            assert f" {name}={named[name]}" in field.words


@given(CDBS, st.integers(0, 255), st.booleans(), st.integers(0, 1 << 60))
def test_commands_in_packets(cdb: bytes, lun: int, old: bool, transaction: int) -> None:
    """An SRB of either size, in a packet with its pages; its line is the command's."""
    if old:
        srb = storage.SrbWin7(lun=lun, cdb_or_sense=cdb, data_transfer_length=4096).encode()
    else:
        srb = storage.Srb(lun=lun, cdb_or_sense=cdb, data_transfer_length=4096).encode()
    header = storage.GpaDirectHeader(0, 1, 4096, 0).encode() + struct.pack("<Q", 77)
    body = header + storage.PacketHeader(storage.Operation.EXECUTE_SRB, 1).encode() + srb
    data = packet_bytes(Packet(PacketType.GPA_DIRECT, 1, transaction, len(header), body))
    field = decode_ring_packet(data, "storage", ">root")
    check_tree(field, data)
    assert not field.faults
    for path, wanted in (
        ("descriptor.transaction_id", transaction),
        ("extended.range[0].page[0]", 77),
        ("payload.srb.lun", lun),
        ("payload.srb.data_transfer_length", 4096),
    ):
        found = field.find(path)
        assert found is not None, path
        assert found.value == wanted
    srb_field = field.find("payload.srb")
    assert srb_field is not None
    assert srb_field.size == (storage.SRB_SIZE_WIN7 if old else storage.SRB_SIZE)
    payload = field.find("payload")
    assert payload is not None
    assert payload.words == scsi.describe_cdb(cdb)


@given(
    st.sampled_from(list(Reason)),
    st.none() | st.integers(0, 0xFFFF_FFFF),
    st.none() | st.integers(0, 15),
    st.booleans(),
)
def test_sense(reason: Reason, information: int | None, place: int | None, fixed: bool) -> None:
    """Sense data of both formats, with their words and numbers."""
    make = fixed_sense if fixed else descriptor_sense
    data = make(reason, information=information, field=place)
    field = decode_sense_data(data)
    check_tree(field, data)
    assert not field.faults
    assert field.words == decode_sense(data).words
    named = {child.name: child for child in field.children}
    assert named["asc"].value == reason.value[1]
    assert named["ascq"].value == reason.value[2]
    key = named["key"].find("sense_key")
    assert key is not None
    assert key.value == reason.key


def kvp_message(operation: kvp.Operation, body: bytes) -> bytes:
    return kvp.encode_request(operation, kvp.Pool.GUEST, body)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40), st.integers(0, 1 << 63))
def test_key_value_pairs(key: str, number: int) -> None:
    """Keys and values of both kinds come back as text and number."""
    body = kvp_message(kvp.Operation.SET, kvp.encode_item(key, number))
    data = packet_bytes(frame(ic.encode_message(ic.Component.KVP, body)))
    field = decode_ring_packet(data, "kvp", ">child")
    check_tree(field, data)
    assert not field.faults
    text, value = field.find("payload.body.item.key.text"), field.find("payload.body.item.value.number")
    assert text is not None
    assert value is not None
    assert (text.value, value.value) == (key, number)
    assert field.find("payload.body.kvp.operation").words == "SET"  # type: ignore[union-attr]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=5),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=5),
)
def test_negotiations(framework: list[tuple[int, int]], messages: list[tuple[int, int]]) -> None:
    """All versions on offer stand in the tree."""
    body = ic.encode_negotiate([ic.Version(*one) for one in framework], [ic.Version(*one) for one in messages])
    data = packet_bytes(frame(ic.encode_message(ic.Component.NEGOTIATE, body)))
    field = decode_ring_packet(data, "shutdown", ">child")
    check_tree(field, data)
    assert not field.faults
    inner = field.find("payload.body")
    assert inner is not None
    told = [child.words for child in inner.children if "[" in child.name]
    assert told == [f"{major}.{minor}" for major, minor in (*framework, *messages)]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
@pytest.mark.parametrize("number", [0, 41])
def test_every_hypercall(call: Call, number: int) -> None:
    """The input of every call of the table, list elements included, stands in the tree."""
    request = filled(call.request, number) if call.request.SIZE else None
    count = 3 if call.rep else 0
    control = int(call.code) | count << 32
    data = struct.pack("<Q", control) + (request.encode() if request else b"") + bytes(call.element_in * count)
    field = decode_hypercall(data)
    check_tree(field, data)
    assert call.name in field.words
    if request is not None:
        inner = field.find("input.request")
        assert inner is not None
        agree(request, inner)
    if call.element_in:
        elements = field.find("input")
        assert elements is not None
        assert sum(child.name.startswith("element[") for child in elements.children) == count
    if call.name != "HvPostMessage":
        assert not field.faults
