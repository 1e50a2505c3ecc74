"""Devices that this host does not serve: packets put together by hand from their layouts, and what is said of them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.hypercall.abi import CallCode, control_word
from hypervisor.hypercall.processor_layouts import FlushExInput
from hypervisor.trace import TO_CHILD, TO_ROOT, Layer
from partitions.decode.field import Field
from partitions.decode.hypercall import decode_hypercall
from partitions.decode.message import decode_channel_message
from partitions.decode.network import decode_rndis
from partitions.decode.packet import decode_ring_packet
from partitions.decode.summary import summary
from tests.partitions.decode.trees import check_tree
from vmbus.gpadl import GpadlRange, encode_gpadl
from vmbus.pipe import frame
from vmbus.protocol import messages as m
from vmbus.protocol.features import OfferFlag
from vmbus.protocol.hvsocket import user_defined
from vmbus.ring import Packet, PacketType, packet_bytes
from vsp_vsc.integration.file_copy import protocol as file_copy
from vsp_vsc.integration.protocol import Component, encode_message
from vsp_vsc.integration.vss import protocol as vss
from vsp_vsc.keyboard import protocol as keyboard
from vsp_vsc.memory import protocol as memory_layouts
from vsp_vsc.mouse import protocol as mouse
from vsp_vsc.network.rndis import PacketInfo, RndisHeader, RndisPacket, RndisPacketInfo, RndisType
from vsp_vsc.video import protocol as video


def decoded(payload: bytes, device: str, direction: str = TO_ROOT, *, pipe: bool = False) -> Field:
    """A packet with this payload; its line is the payload's, and its tree covers it."""
    made = frame(payload) if pipe else Packet(PacketType.INBAND, 0, 0, 0, payload)
    data = packet_bytes(made)
    field = decode_ring_packet(data, device, direction)
    check_tree(field, data)
    assert not field.faults
    inner = field.find("payload")
    assert inner is not None
    assert summary(Layer.DEVICE, data, device, direction) == inner.words
    return inner


def value(field: Field, path: str) -> object:
    found = field.find(path)
    assert found is not None, path
    return found.value


@pytest.mark.parametrize("with_break", [False, True])
def test_keystrokes(with_break: bool) -> None:
    """A key goes down and up."""
    flags = keyboard.KeyFlags.BREAK if with_break else keyboard.KeyFlags(0)
    event = keyboard.KeyboardHeader(3).encode() + keyboard.Keystroke(0x1E, 0, int(flags)).encode()
    field = decoded(event, "keyboard", TO_CHILD)
    assert field.words == f"EVENT make code 0x1e {'BREAK' if with_break else 'MAKE'}"
    assert value(field, "body.make_code") == 0x1E


def test_the_mouse() -> None:
    """What it is, in the terms of HID, and where it is."""
    info = mouse.MouseInfo(32, 0x045E, 0x0621, 2, bytes(22), bytes(9)).encode() + b"report descriptor"
    field = decoded(mouse.MouseHeader(2, len(info)).encode() + info, "mouse", TO_CHILD, pipe=True)
    assert field.words == "INITIAL_DEVICE_INFO"
    assert value(field, "body.vendor") == 0x045E
    assert value(field, "report_descriptor") == b"report descriptor"
    report = mouse.MouseReport(1, 300, 200, 0).encode()
    field = decoded(mouse.MouseHeader(4, len(report)).encode() + report, "mouse", TO_CHILD, pipe=True)
    assert (value(field, "body.x"), value(field, "body.buttons.left")) == (300, 1)


def test_video() -> None:
    """Versions with the minor one in front, rectangles and modes as lists."""
    request = video.VideoVersionRequest(5 << 16 | 3).encode()
    field = decoded(video.VideoHeader(1, 12).encode() + request, "video", pipe=True)
    assert field.words == "VERSION_REQUEST 3.5"
    dirt = video.Dirt(0, 2).encode() + video.Rectangle(0, 0, 64, 32).encode()
    dirt += video.Rectangle(-1, 5, 7, 9).encode()
    field = decoded(video.VideoHeader(10, 8 + len(dirt)).encode() + dirt, "video", pipe=True)
    told = [child.words for child in field.children if child.name.startswith("rectangle")]
    assert told == ["0,0 to 64,32", "-1,5 to 7,9"]
    modes = video.ResolutionResponse(bytes(128), 2, 1, 0).encode()
    modes += video.Resolution(1024, 768).encode() + video.Resolution(1280, 1024).encode()
    field = decoded(video.VideoHeader(14, 8 + len(modes)).encode() + modes, "video", TO_CHILD, pipe=True)
    assert [child.words for child in field.children if child.name.startswith("mode")] == ["1024x768", "1280x1024"]


def test_the_balloon() -> None:
    """Requests in pages, answers in ranges of them, whose count shares a word with a flag."""
    request = memory_layouts.MemoryHeader(6, 16, 7).encode() + memory_layouts.BalloonRequest(1024).encode()
    field = decoded(request, "dynamic-memory", TO_CHILD)
    assert field.words == "BALLOON_REQUEST 1024 pages"
    ranges = struct.pack("<QQQ", 512 << 40 | 0x100, 512 << 40 | 0x4000, 9)
    answer = memory_layouts.MemoryHeader(7, 40, 7).encode()
    answer += memory_layouts.BalloonResponse(0, 2 << 1 | 1).encode() + ranges
    field = decoded(answer, "dynamic-memory")
    assert value(field, "body.counts.range_count") == 2
    told = [child.words for child in field.children if child.name.startswith("range")]
    assert told == ["512 pages from GPA 0x100000", "512 pages from GPA 0x4000000"]
    assert field.children[-1].name == "rest"
    assert field.words == "BALLOON_RESPONSE 1024 pages in 2 ranges, more follow"
    unballoon = memory_layouts.MemoryHeader(8, 24, 7).encode() + struct.pack("<IIQ", 0, 1, 512 << 40 | 0x100)
    assert decoded(unballoon, "dynamic-memory", TO_CHILD).words == "UNBALLOON_REQUEST 512 pages in 1 ranges"
    added = memory_layouts.MemoryHeader(10, 16, 7).encode() + struct.pack("<Q", 32768 << 40 | 0x10000)
    assert decoded(added, "dynamic-memory", TO_CHILD).words == "MEM_HOT_ADD_REQUEST 32768 pages from GPA 0x10000000"
    taken = memory_layouts.MemoryHeader(11, 16, 7).encode() + struct.pack("<II", 32768, 1)
    assert decoded(taken, "dynamic-memory").words == "MEM_HOT_ADD_RESPONSE 32768 pages, result 1"
    status = memory_layouts.MemoryHeader(5, 48, 7).encode() + struct.pack("<QQQQII", 900, 3000, 0, 0, 0, 0)
    assert decoded(status, "dynamic-memory").words == "STATUS_REPORT 3000 pages committed, 900 available"
    assert decoded(
        memory_layouts.MemoryHeader(1, 16, 1).encode() + struct.pack("<II", 0x20000, 0), "dynamic-memory"
    ).words == ("VERSION_REQUEST 2.0")


def test_snapshots_and_file_copy() -> None:
    """What is asked in words; names as text, pieces of files as bytes."""
    body = vss.VssHeader(vss.VssOperation.HOT_BACKUP).encode() + vss.VssFlags(5).encode()
    field = decoded(encode_message(Component.VSS, body), "vss", TO_CHILD, pipe=True)
    assert field.words == "hot backup"
    assert value(field, "body.feature.flags") == 5
    start = file_copy.StartFileCopy("a.txt".encode("utf-16-le"), "/tmp/".encode("utf-16-le"), 3, 99).encode()
    body = file_copy.FileCopyHeader(file_copy.FileCopyOperation.START_FILE_COPY).encode() + start
    field = decoded(encode_message(Component.FILE_COPY, body), "file-copy", TO_CHILD, pipe=True)
    assert value(field, "body.start.file_name") == "a.txt"
    assert value(field, "body.start.file_size") == 99
    assert field.words == "start of '/tmp/a.txt', 99 bytes"
    body = file_copy.FileCopyHeader(file_copy.FileCopyOperation.WRITE_TO_FILE).encode()
    body += file_copy.WriteToFile(0, 4096, 5).encode() + b"hello"
    field = decoded(encode_message(Component.FILE_COPY, body), "file-copy", TO_CHILD, pipe=True)
    assert value(field, "body.data") == b"hello"
    assert field.words == "write 5 bytes at 4096"
    freeze = encode_message(Component.VSS, vss.encode_vss(vss.VssOperation.FREEZE))
    field = decoded(freeze, "vss", TO_CHILD, pipe=True)
    assert (field.words, value(field, "body.freeze.lun_count")) == ("freeze", 0)


def test_sockets() -> None:
    """Some bytes of a stream, and its end."""
    assert decoded(b"hello", "hv-socket", pipe=True).words == "5 bytes"
    assert decoded(b"", "hv-socket", pipe=True).words == "the end of the stream"
    offer = m.OfferChannel(
        interface=m.Guid("00001389-facb-11e6-bd58-64006a7986d3"),
        flags=OfferFlag.TLNPI_PROVIDER | OfferFlag.NAMED_PIPE_MODE,
        user_defined=user_defined(is_for_guest_accept=True),
        channel_id=9,
    ).encode()
    field = decode_channel_message(offer, TO_CHILD)
    check_tree(field, offer)
    assert field.find("interface").words == "hv-socket, vsock port 5001"  # type: ignore[union-attr]
    assert field.find("user_defined.pipe_type").words == "bytes"  # type: ignore[union-attr]
    assert field.find("user_defined.is_for_guest_accept").words == "the host connects"  # type: ignore[union-attr]


def test_a_frame_in_rndis() -> None:
    """Per-packet information in front of the frame, found by offsets."""
    info = RndisPacketInfo(16, PacketInfo.IEEE_8021Q, 12).encode() + struct.pack("<I", 7)
    frame_bytes = bytes(range(60))
    packet = RndisPacket(36 + 16, 60, info_offset=36, info_length=16).encode()
    data = RndisHeader(RndisType.PACKET, 8 + 36 + 16 + 60).encode() + packet + info + frame_bytes
    field = decode_rndis(data)
    check_tree(field, data)
    assert not field.faults
    assert value(field, "frame") == frame_bytes
    assert field.find("info.piece[0]").words == "IEEE_8021Q"  # type: ignore[union-attr]
    assert value(field, "info.piece[0].value") == b"\7\0\0\0"


def test_ranges_that_begin_within_a_page() -> None:
    """A byte more than a page that begins in its middle is in two pages."""
    (data,) = encode_gpadl(1, 2, [GpadlRange(4096, 0x800, (5, 6))])
    field = decode_channel_message(data, TO_ROOT)
    check_tree(field, data)
    assert not field.faults
    assert field.find("range[0]").words == "4096 bytes in 2 pages from 0x800 on"  # type: ignore[union-attr]
    assert (value(field, "range[0].page[0]"), value(field, "range[0].page[1]")) == (5, 6)


@given(st.integers(0, 3))
def test_variable_headers(words: int) -> None:
    """A hypercall's own header between its input and its list."""
    control = control_word(CallCode.FLUSH_VIRTUAL_ADDRESS_LIST_EX, count=2, header_qwords=words)
    data = struct.pack("<Q", control) + bytes(FlushExInput.SIZE) + bytes(8 * words) + struct.pack("<QQ", 0x1000, 0x2000)
    field = decode_hypercall(data)
    check_tree(field, data)
    header = field.find("input.variable_header")
    assert (header.size if header else 0) == 8 * words
    assert (value(field, "input.element[0]"), value(field, "input.element[1]")) == (0x1000, 0x2000)
