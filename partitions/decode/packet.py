"""Ring packets as trees of fields: descriptor, ranges, and what the device's protocol says of the rest. Root side."""

from __future__ import annotations

import struct
from collections.abc import Callable

from partitions.decode.dynamic_memory import decode_dynamic_memory, dynamic_memory_words
from partitions.decode.field import Bits, Field, Hint, Hints, group, layout_field, raw
from partitions.decode.input import decode_keyboard, decode_mouse, keyboard_words, mouse_words
from partitions.decode.integration import decode_integration, decode_pipe, integration_words
from partitions.decode.layouts import ByteRange, PacketDescriptor, PacketTrailer, PipeHeader, RangeList, TransferPages
from partitions.decode.network import decode_network, network_words
from partitions.decode.ranges import page_ranges
from partitions.decode.storage import decode_storage, storage_words
from partitions.decode.video import decode_video, video_words
from partitions.decode.words import enum_words, yes_no
from vmbus.ring import PacketType, packet_words

_TYPE = enum_words(PacketType)
_DESCRIPTOR: Hints = {
    "type": Hint(_TYPE),
    "offset8": Hint(lambda value: f"the payload begins at byte {value * 8}"),
    "length8": Hint(lambda value: f"and ends at byte {value * 8}"),
    "flags": Hint(bits=(Bits("completion_requested", 0, 0, yes_no),)),
}
_descriptor = struct.Struct("<HHHHQ")


def decode_socket(data: bytes, at: int, end: int, direction: str = "") -> Field:
    """The payload of a packet of a Hyper-V socket: some bytes of the stream."""
    pipe, stop = decode_pipe(data, at, end)
    parts = [pipe, raw("data", data, pipe.end, stop)] if pipe.end < stop else [pipe]
    return group("payload", data, at, end, parts, socket_words(data[at:end]), pipe.fault)


def socket_words(payload: bytes, direction: str = "") -> str:
    """A packet of a Hyper-V socket in words: `12 bytes`, `the end of the stream`."""
    if len(payload) < PipeHeader.SIZE:
        return ""
    length = int.from_bytes(payload[4:8], "little")
    return f"{length} bytes" if length else "the end of the stream"


PayloadDecoder = Callable[[bytes, int, int, str], Field]
PayloadWords = Callable[[bytes, str], str]

INTEGRATION = ("heartbeat", "shutdown", "time-sync", "kvp", "vss", "file-copy")
_DECODERS: dict[str, PayloadDecoder] = {
    "storage": decode_storage,
    "ide": decode_storage,
    **dict.fromkeys(INTEGRATION, decode_integration),
    "network": decode_network,
    "keyboard": decode_keyboard,
    "mouse": decode_mouse,
    "video": decode_video,
    "dynamic-memory": decode_dynamic_memory,
    "hv-socket": decode_socket,
}
_WORDS: dict[str, PayloadWords] = {
    "storage": storage_words,
    "ide": storage_words,
    **dict.fromkeys(INTEGRATION, integration_words),
    "network": network_words,
    "keyboard": keyboard_words,
    "mouse": mouse_words,
    "video": video_words,
    "dynamic-memory": dynamic_memory_words,
    "hv-socket": socket_words,
}
DEVICES = tuple(_DECODERS)
"""Devices whose payload is put into words, by their short names."""


def payload_span(data: bytes) -> tuple[int, int]:
    """Where the payload of a packet begins and ends, kept within the bytes that there are."""
    if len(data) < PacketDescriptor.SIZE:
        return len(data), len(data)
    _, offset8, length8, _, _ = _descriptor.unpack_from(data)
    end = min(len(data), max(length8 * 8, PacketDescriptor.SIZE))
    return min(max(offset8 * 8, PacketDescriptor.SIZE), end), end


def decode_ring_packet(data: bytes, device: str = "", direction: str = "") -> Field:
    """Any bytes as a ring packet: descriptor and body, with the trailer of 8 bytes or without.

    `device` is a short name of `DEVICES`, empty where it is not known; `direction` is `>root` or `>child`.
    """
    descriptor = layout_field("descriptor", PacketDescriptor, data, 0, len(data), _DESCRIPTOR)
    if descriptor.fault:
        return group("packet", data, 0, len(data), [descriptor] if data else [], "", descriptor.fault)
    kind, offset8, length8, flags, transaction_id = _descriptor.unpack_from(data)
    parts, faults = [descriptor], []
    start, end = payload_span(data)
    if kind not in tuple(PacketType):
        faults.append(f"no packet has type {kind}")
    if flags & ~1:
        faults.append(f"flags {flags:#x}; only bit 0 means anything")
    if not 2 <= offset8 <= length8:
        faults.append(f"a payload from byte {offset8 * 8} to byte {length8 * 8}")
    if length8 * 8 > len(data):
        faults.append(f"{length8 * 8} bytes are said to be here, {len(data)} are")
    if descriptor.end < start:
        parts.append(_extended(kind, data, descriptor.end, start))
    elif kind in (PacketType.GPA_DIRECT, PacketType.TRANSFER_PAGES):
        faults.append(f"{_TYPE(kind)} has ranges in front of its payload, and there is no room for any")
    if start < end:
        decoder = _DECODERS.get(device)
        parts.append(decoder(data, start, end, direction) if decoder else raw("payload", data, start, end))
    if end < len(data):
        parts.append(_behind(data, end))
    words = packet_words(kind, transaction_id, flags)
    return group("packet", data, 0, len(data), parts, words, "; ".join(faults))


def _behind(data: bytes, at: int) -> Field:
    if len(data) - at == PacketTrailer.SIZE:
        hints: Hints = {"packet_start": Hint(lambda value: f"the packet begins {value:#x} bytes into the ring")}
        return layout_field("trailer", PacketTrailer, data, at, len(data), hints)
    return raw("beyond", data, at, len(data), "behind the packet")


def _extended(kind: int, data: bytes, at: int, end: int) -> Field:
    if kind == PacketType.GPA_DIRECT:
        head = layout_field("list", RangeList, data, at, end)
        count = int.from_bytes(data[at + 4 : at + 8], "little")
        ranges = [] if head.fault else page_ranges(data, head.end, end, min(count, end))
        fault = head.fault or ("" if count else "no range")
        words = f"{count} range{'s' * (count != 1)}"
        if len(ranges) == 1:
            words = ranges[0].words
        return group("extended", data, at, end, [*head.children, *ranges], words, fault)
    if kind == PacketType.TRANSFER_PAGES:
        head = layout_field("list", TransferPages, data, at, end)
        return _transfer_ranges(head, data, at, end)
    return raw("extended", data, at, end)


def _transfer_ranges(head: Field, data: bytes, at: int, end: int) -> Field:
    count = int.from_bytes(data[at + 4 : at + 8], "little") if not head.fault else 0
    parts, fault = list(head.children), head.fault
    position = head.end
    for index in range(count):
        if position + ByteRange.SIZE > end:
            fault = f"{count} ranges are said to be here, and there is room for {index}"
            break
        part = layout_field(f"range[{index}]", ByteRange, data, position, end)
        length, offset = struct.unpack_from("<II", data, position)
        part.words = f"{length} bytes at {offset:#x} of the transfer pages"
        parts.append(part)
        position = part.end
    return group("extended", data, at, end, parts, f"{count} range{'s' * (count != 1)}", fault)


def payload_words(data: bytes, device: str = "", direction: str = "") -> str:
    """What the device makes of a packet, in the live trace's words; empty where it has none."""
    words = _WORDS.get(device)
    if words is None:
        return ""
    start, end = payload_span(data)
    return words(data[start:end], direction)


def decode_payload(data: bytes, device: str = "", direction: str = "") -> Field:
    """The payload of a packet by itself."""
    decoder = _DECODERS.get(device)
    return decoder(data, 0, len(data), direction) if decoder else raw("payload", data, 0, len(data))
