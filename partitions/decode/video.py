"""Packets of the synthetic video device as trees of fields. Root side."""

from __future__ import annotations

import struct

from hypervisor.wire import Wire
from partitions.decode.field import Field, Hint, Hints, group, layout_field, raw
from partitions.decode.integration import decode_pipe
from partitions.decode.words import enum_words, yes_no
from vsp_vsc.video import protocol as v
from vsp_vsc.video.protocol import VideoType

_TYPE = enum_words(VideoType)


def _version_words(value: int) -> str:
    """Such as "3.5"."""
    return ".".join(map(str, v.unpack_version(value)))


_HINTS: Hints = {
    "message_type": Hint(_TYPE),
    "version": Hint(_version_words),
    "accepted": Hint(yes_no),
    "specified": Hint(yes_no),
    "active": Hint(yes_no),
    "visible": Hint(yes_no),
    "address": Hint(lambda value: f"GPA {value:#x}"),
    "part": Hint(lambda value: "the last" if value == 0xFF else ""),
}
_BODIES: dict[int, type[Wire]] = {
    VideoType.VERSION_REQUEST: v.VideoVersionRequest,
    VideoType.VERSION_RESPONSE: v.VideoVersionResponse,
    VideoType.VRAM_LOCATION: v.VramLocation,
    VideoType.VRAM_LOCATION_ACK: v.VideoAck,
    VideoType.SITUATION_UPDATE: v.SituationUpdate,
    VideoType.SITUATION_UPDATE_ACK: v.VideoAck,
    VideoType.POINTER_POSITION: v.PointerPosition,
    VideoType.POINTER_SHAPE: v.PointerShape,
    VideoType.FEATURE_CHANGE: v.FeatureChange,
    VideoType.DIRT: v.Dirt,
    VideoType.RESOLUTION_REQUEST: v.ResolutionRequest,
    VideoType.RESOLUTION_RESPONSE: v.ResolutionResponse,
    VideoType.BIOS_INFO_RESPONSE: v.VideoBiosInfo,
    VideoType.CAPABILITY_RESPONSE: v.VideoCapability,
}


def decode_video(data: bytes, at: int, end: int, direction: str = "") -> Field:
    """The payload of a packet on a video device's channel, as `payload`."""
    pipe, stop = decode_pipe(data, at, end)
    parts, fault = [pipe], pipe.fault
    if pipe.end < stop:
        header = layout_field("header", v.VideoHeader, data, pipe.end, stop, _HINTS)
        parts.append(header)
        fault = fault or header.fault
        if not header.fault and header.end < stop:
            kind = int.from_bytes(data[pipe.end : pipe.end + 4], "little")
            layout = _BODIES.get(kind)
            if layout is not None:
                body = layout_field("body", layout, data, header.end, stop, _HINTS)
                fault = fault or body.fault
                parts.append(body)
                if not body.fault:
                    parts += _list(layout, data, body.end, stop)
            elif kind not in tuple(VideoType):
                fault = fault or f"no video message has type {kind}"
            if parts[-1].end < stop:
                parts.append(raw("rest", data, parts[-1].end, stop))
    return group("payload", data, at, end, parts, video_words(data[at:end]), fault)


def _list(layout: type[Wire], data: bytes, at: int, end: int) -> list[Field]:
    """Rectangles or modes."""
    if layout is v.Dirt:
        return _elements("rectangle", v.Rectangle, data[at - 1], data, at, end)
    if layout is v.ResolutionResponse:
        return _elements("mode", v.Resolution, data[at - 3], data, at, end)
    return []


def _elements(name: str, layout: type[Wire], count: int, data: bytes, at: int, end: int) -> list[Field]:
    fields = []
    for index in range(min(count, (end - at) // layout.SIZE)):
        values = [str(value) for value in layout.STRUCT.unpack_from(data, at)]
        corners = [",".join(values[:2]), ",".join(values[2:])] if layout is v.Rectangle else values
        words = (" to " if layout is v.Rectangle else "x").join(corners)
        fields.append(layout_field(f"{name}[{index}]", layout, data, at, end, words=words))
        at += layout.SIZE
    return fields


def video_words(payload: bytes, direction: str = "") -> str:
    """A video message in words: `VERSION_REQUEST 3.5`."""
    if len(payload) < 12:
        return ""
    kind = int.from_bytes(payload[8:12], "little")
    if kind not in tuple(VideoType):
        return f"video message {kind}"
    words = _TYPE(kind)
    if kind == VideoType.VERSION_REQUEST and len(payload) >= 20:
        words += f" {_version_words(struct.unpack_from('<I', payload, 16)[0])}"
    return words
