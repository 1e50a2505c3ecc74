"""Rings as they lie in memory: the control page, and the packets that nobody has read yet. Root side."""

from __future__ import annotations

from hypervisor.pages import PAGE_SIZE
from partitions.decode.field import Bits, Field, Hint, Hints, embed, group, layout_field, raw
from partitions.decode.layouts import PacketDescriptor, PacketTrailer, RingControl
from partitions.decode.packet import decode_ring_packet, payload_words
from partitions.decode.words import yes_no
from vmbus.ring import PacketType, packet_words

_CONTROL: Hints = {
    "interrupt_mask": Hint(lambda value: "the reader wants no signal" if value else "the reader wants a signal"),
    "pending_send_size": Hint(lambda value: f"the writer waits for {value} free bytes" if value else "nobody waits"),
    "feature_bits": Hint(bits=(Bits("pending_send_size_supported", 0, 0, yes_no),)),
}


def decode_ring(data: bytes, device: str = "", direction: str = "") -> Field:
    """A ring from its control page on; of the data pages as many as are there."""
    control = layout_field("control", RingControl, data, 0, len(data), _CONTROL)
    if control.fault:
        return group("ring", data, 0, len(data), [control] if data else [], "", control.fault)
    written, read, mask, pending = (int.from_bytes(data[at : at + 4], "little") for at in (0, 4, 8, 12))
    size = len(data) - PAGE_SIZE
    words, faults = _state(written, read, mask, pending, size)
    for part in control.children:
        if part.name in ("reserved1", "reserved2") and isinstance(part.value, bytes) and any(part.value):
            part.words = "not zero"
    parts = [control]
    if size > 0:
        if faults:
            parts.append(raw("data", data, PAGE_SIZE, len(data)))
        else:
            parts.append(_data(data, written, read, size, device, direction))
    return group("ring", data, 0, len(data), parts, words, "; ".join(faults))


def _state(written: int, read: int, mask: int, pending: int, size: int) -> tuple[str, list[str]]:
    faults = [
        f"the {name} index {index:#x} is no multiple of 8"
        for name, index in (("write", written), ("read", read))
        if index & 7
    ]
    words = f"written to {written:#x}, read to {read:#x}"
    if size > 0:
        faults += [
            f"the {name} index {index:#x} is outside of the ring's {size:#x} bytes"
            for name, index in (("write", written), ("read", read))
            if index >= size
        ]
        if size % PAGE_SIZE:
            faults.append(f"{size} bytes of data are no whole pages")
        if not faults:
            unread = (written - read) % size
            words = f"{unread} of {size} bytes unread, {(read - written - 8) % size} free, {words}"
    elif written == read:
        words += ", empty"
    words += ", signals masked" if mask else ""
    words += f", writer waits for {pending} bytes" if pending else ""
    return words, faults


def _data(data: bytes, written: int, read: int, size: int, device: str, direction: str) -> Field:
    start = PAGE_SIZE
    parts: list[Field] = []
    if written >= read:
        spans = [(0, read, False), (read, written, True), (written, size, False)]
    else:
        spans = [(0, written, True), (written, read, False), (read, size, True)]
    carried = b""
    if written < read:
        # The packet that goes round the end is told where it begins; its last bytes lie at the front.
        tail, carried = _packets(data, start + read, start + size, data[start : start + written], device, direction)
    for first, last, live in spans:
        if first == last:
            continue
        if not live:
            parts.append(raw("free", data, start + first, start + last, "read already, or never written"))
        elif written < read and first == 0:
            rest = min(len(carried), last)
            if rest:
                parts.append(raw("packet_rest", data, start, start + rest, "of the packet at the ring's end"))
            if rest < last:
                parts += _packets(data, start + rest, start + last, b"", device, direction)[0]
        elif written < read:
            parts += tail
        else:
            parts += _packets(data, start + first, start + last, b"", device, direction)[0]
    count = sum(part.name.startswith("packet[") for part in parts)
    return group("data", data, start, start + size, parts, f"{count} packet{'s' * (count != 1)} unread")


def _packets(data: bytes, at: int, end: int, beyond: bytes, device: str, direction: str) -> tuple[list[Field], bytes]:
    """Packets one behind the other; with what of `beyond`, the ring's front, belongs to the last."""
    parts: list[Field] = []
    while at < end:
        whole = data[at:end] + beyond
        name = f"packet[{(at - PAGE_SIZE):#x}]"
        length8 = int.from_bytes(whole[4:6], "little")
        total = length8 * 8 + PacketTrailer.SIZE
        kind = int.from_bytes(whole[:2], "little")
        if len(whole) < PacketDescriptor.SIZE or length8 < 2 or total > len(whole) or kind not in tuple(PacketType):
            parts.append(raw("data", data, at, end, fault="no packet begins here"))
            return parts, b""
        if at + total <= end:
            packet = decode_ring_packet(data[at : at + total], device, direction)
            packet.words = _words(data[at : at + total], packet.words, device, direction)
            parts.append(embed(packet, at, name))
            at += total
        else:
            words = _words(whole[:total], packet_words(kind, *_identity(whole)), device, direction)
            parts.append(raw(name, data, at, end, f"{words}; goes on at the ring's front"))
            return parts, beyond[: at + total - end]
    return parts, b""


def _identity(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[8:16], "little"), int.from_bytes(data[6:8], "little")


def _words(packet: bytes, words: str, device: str, direction: str) -> str:
    meant = payload_words(packet, device, direction)
    return f"{words}: {meant}" if meant else words
