"""A message or packet in one line, in the words of the live trace. Root side."""

from __future__ import annotations

import struct

from hypervisor.trace import Layer
from partitions.decode.message import message_words, row_of
from partitions.decode.packet import payload_words
from vmbus.ring import packet_words

_descriptor = struct.Struct("<HHHHQ")


def summary(layer: Layer, data: bytes, device: str = "", direction: str = "", version: int | None = None) -> str:
    """What `words` of a trace event of this layer says of these bytes; any bytes are fine.

    CONTROL: a channel message. PACKET: a ring packet, by its descriptor. DEVICE: the same packet, as the device it is
    for puts it. Empty for the other layers, whose events have no bytes.
    """
    match layer:
        case Layer.CONTROL:
            row = row_of(data, version)
            if row is not None:
                return message_words(data, row)
            number = int.from_bytes(data[:4], "little")
            return (
                f"no channel message has type {number}" if len(data) >= 4 else f"{len(data)} bytes, no channel message"
            )
        case Layer.PACKET:
            if len(data) < _descriptor.size:
                return f"{len(data)} bytes, no ring packet"
            kind, _, _, flags, transaction_id = _descriptor.unpack_from(data)
            return packet_words(kind, transaction_id, flags)
        case Layer.DEVICE:
            return payload_words(data, device, direction)
        case _:
            return ""


def event_of_message(data: bytes, version: int | None = None) -> str:
    """The name of a trace event about this message: `open_channel`."""
    row = row_of(data, version)
    return "message" if row is None else row.number.name.lower()
