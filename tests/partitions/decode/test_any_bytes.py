"""Decoders and what a stranger may feed them: anything."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from hypervisor.msr import Msr
from hypervisor.synic.messages import MessageType as SynicType
from hypervisor.trace import TO_CHILD, TO_ROOT, Layer
from partitions.decode import packet as packets
from partitions.decode.kinds import KINDS, Context, guess
from partitions.decode.message import decode_channel_message
from partitions.decode.network import decode_rndis
from partitions.decode.packet import DEVICES, decode_ring_packet
from partitions.decode.scsi import decode_cdb, decode_sense_data
from partitions.decode.summary import summary
from tests.partitions.decode.trees import check_tree
from vmbus.protocol.messages import MessageType
from vmbus.protocol.versions import VERSIONS
from vmbus.ring import Packet, PacketType, RingWriter
from vsp_vsc.integration.protocol import Component
from vsp_vsc.network.protocol import NvspType
from vsp_vsc.network.rndis import RndisType
from vsp_vsc.storage.protocol import Operation
from vsp_vsc.storage.scsi.cdb import Opcode

DIRECTIONS = st.sampled_from(["", TO_ROOT, TO_CHILD])
VERSION = st.none() | st.sampled_from([row.version for row in VERSIONS])
FEATURES = st.none() | st.integers(0, 255)
NUMBERS = st.sampled_from([*MessageType, 0, 30])
WORD = st.integers(0, 3) | st.integers(0, 80) | st.integers(0, 0xFFFF_FFFF)


def words(least: int, most: int) -> st.SearchStrategy[bytes]:
    """Bytes made of small numbers more often than of large ones, since counts and lengths are small."""
    return st.lists(WORD, min_size=least, max_size=most).map(lambda values: struct.pack(f"<{len(values)}I", *values))


BYTES = st.binary(max_size=300) | words(0, 70)


@given(st.tuples(NUMBERS, BYTES), DIRECTIONS, VERSION, FEATURES)
def test_messages(message: tuple[int, bytes], direction: str, version: int | None, features: int | None) -> None:
    """Any bytes behind any message type are a tree that covers them, and a line."""
    kind, rest = message
    data = struct.pack("<I4x", kind) + rest
    check_tree(decode_channel_message(data, direction, version, features), data)
    assert summary(Layer.CONTROL, data, "", direction, version)


@given(st.binary(max_size=12), DIRECTIONS)
def test_scraps(data: bytes, direction: str) -> None:
    """What is too short to be anything is a tree too, with a fault."""
    for device in ("", *DEVICES):
        field = decode_ring_packet(data, device, direction)
        check_tree(field, data)
        assert field.fault
    check_tree(decode_channel_message(data, direction), data)
    for layer in Layer:
        assert isinstance(summary(layer, data, "storage", direction), str)


@st.composite
def any_packet(draw: st.DrawFn) -> bytes:
    """A descriptor that is nearly right, and anything behind it."""
    extended, payload = draw(words(0, 12)), draw(draw(st.sampled_from([payloads(), BYTES])))
    kind = draw(st.sampled_from([*PacketType, 0, 8]))
    offset8 = 2 + len(extended) // 8 + draw(st.sampled_from([0, 0, 0, 1, 9]))
    length8 = 2 + (len(extended) + len(payload)) // 8 + draw(st.sampled_from([0, 0, 0, -1, 40]))
    head = struct.pack(
        "<HHHHQ", kind, offset8, max(0, length8), draw(st.sampled_from([0, 1, 2])), draw(st.integers(0, 99))
    )
    return head + extended + payload


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """Payloads that begin like those of some device."""
    rest = draw(BYTES)
    first = draw(st.sampled_from([*Operation, *NvspType, 0, 1, 2, 3, 4]))
    head = struct.pack("<I", first)
    if draw(st.booleans()):
        component, size = draw(st.sampled_from(list(Component))), draw(st.sampled_from([len(rest), 8, 1000]))
        head = struct.pack("<II", 1, 20 + len(rest)) + struct.pack(
            "<HHHHHHIBBH", 1, 0, component, 1, 0, size, 0, 0, draw(st.integers(0, 7)), 0
        )
    return head + rest


@given(any_packet(), st.sampled_from(["", *DEVICES]), DIRECTIONS)
def test_packets(data: bytes, device: str, direction: str) -> None:
    """Any bytes behind any descriptor are a tree that covers them, for every device."""
    check_tree(decode_ring_packet(data, device, direction), data)
    for layer in (Layer.PACKET, Layer.DEVICE):
        assert isinstance(summary(layer, data, device, direction), str)


@given(payloads(), DIRECTIONS)
def test_payloads_of_every_device(payload: bytes, direction: str) -> None:
    """A payload that is meant for one device is bytes like any other to the rest."""
    data = struct.pack("<HHHHQ", PacketType.INBAND, 2, 2 + (len(payload) + 7) // 8, 0, 1) + payload
    for device in packets.DEVICES:
        check_tree(decode_ring_packet(data, device, direction), data)
        summary(Layer.DEVICE, data, device, direction)


@given(st.sampled_from(list(Opcode)) | st.integers(0, 255), st.binary(max_size=40))
def test_commands(opcode: int, rest: bytes) -> None:
    """Every operation code, with too few bytes and with too many."""
    data = bytes((opcode,)) + rest
    check_tree(decode_cdb(data), data)


@given(st.sampled_from([0x70, 0xF0, 0x71, 0x72, 0x73, 0x00]), st.binary(max_size=40))
def test_sense(code: int, rest: bytes) -> None:
    """Both formats, and neither."""
    data = bytes((code,)) + rest
    check_tree(decode_sense_data(data), data)


@given(st.sampled_from([*RndisType, 9]), BYTES)
def test_rndis(kind: int, rest: bytes) -> None:
    """RNDIS points at itself with offsets that may be anything."""
    data = struct.pack("<II", kind, 8 + len(rest)) + rest
    check_tree(decode_rndis(data), data)


CONTROLS = st.sampled_from([0x1005D, 0x5C, 0x1_0000_0050, 0x3_0000_0051, 0x2_0000_004B, 0x8, 0x40, 0x7, 1 << 63])


@given(st.sampled_from(list(KINDS)), st.tuples(st.integers(0, 0xFFFF_FFFF) | CONTROLS, BYTES), st.sampled_from(DEVICES))
def test_every_kind(kind: str, what: tuple[int, bytes], device: str) -> None:
    """Whatever `--as` names takes any bytes."""
    first, rest = what
    for data in (rest, struct.pack("<Q", first) + rest):
        check_tree(KINDS[kind].decode(data, Context(device)), data)


@given(CONTROLS, BYTES)
def test_hypercalls(control: int, rest: bytes) -> None:
    """Any input behind any control word."""
    data = struct.pack("<Q", control) + rest
    check_tree(KINDS["hypercall"].decode(data, Context()), data)


@given(st.sampled_from([*SynicType, 1, 2]), st.integers(0, 255), BYTES)
def test_synic(kind: int, size: int, rest: bytes) -> None:
    """Any payload behind any message header, and pages full of such slots."""
    data = struct.pack("<IBBHQ", kind, size, 0, 0, 1) + rest
    check_tree(KINDS["synic"].decode(data, Context()), data)
    page = (data[:256].ljust(256, b"\0") * 16)[: 4096 - size]
    for name in ("message-page", "event-page", "monitor-page"):
        check_tree(KINDS[name].decode(page, Context()), page)


@given(st.sampled_from(list(Msr)) | st.integers(0, 0xFFFF_FFFF), st.integers(0, (1 << 64) - 1))
def test_registers(register: int, value: int) -> None:
    """Any value in any register; the bits add up to it."""
    data = struct.pack("<IQ", register, value)
    check_tree(KINDS["msr"].decode(data, Context()), data)


@given(st.integers(0, 1100), st.integers(0, 1100), st.lists(st.integers(0, 200), max_size=12), st.sampled_from(DEVICES))
def test_rings(written: int, read: int, sizes: list[int], device: str) -> None:
    """Any indices over any data: full, empty, round the end, and out of the ring."""
    region = bytearray(2 * 4096)
    writer = RingWriter(memoryview(region), shared=False)
    for size in sizes:
        writer.write_batch([Packet(PacketType.INBAND, 1, size, 0, bytes(size))])
    del writer
    data = bytes(region)
    check_tree(KINDS["ring"].decode(data, Context(device)), data)
    data = struct.pack("<II", written * 4, read * 4) + data[8:]
    check_tree(KINDS["ring"].decode(data, Context(device)), data)


@given(BYTES | any_packet() | payloads())
def test_guesses(data: bytes) -> None:
    """Looking at bytes never fails, and what they are taken for can be decoded."""
    found = guess(data)
    if found is not None:
        check_tree(KINDS[found.kind].decode(data, Context(found.device)), data)
