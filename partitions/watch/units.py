"""The bytes of an event as a tree of fields, whatever unit they are. Root side."""

from __future__ import annotations

from hypervisor.trace import Layer
from partitions.decode.field import Field
from partitions.decode.message import decode_channel_message
from partitions.decode.packet import decode_ring_packet

UNITS = (Layer.CONTROL, Layer.PACKET)
"""Layers whose events have bytes."""


def decoded(layer: Layer, data: bytes, device: str, direction: str, version: int | None) -> Field | None:
    """What these bytes are; None where the layer has none. Any bytes are fine."""
    match layer:
        case Layer.CONTROL:
            return decode_channel_message(data, direction, version)
        case Layer.PACKET:
            return decode_ring_packet(data, device, direction)
        case _:
            return None
