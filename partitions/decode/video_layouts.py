"""Layouts of the synthetic video device. Root side.

Facts: Linux 6.12 drivers/video/fbdev/hyperv_fb.c; tests/spec/layouts/video.txt holds them a second time.
"""

from __future__ import annotations

import enum
from typing import Annotated

from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import i32, u8, u16, u32, u64

_SPEC = "Linux 6.12 drivers/video/fbdev/hyperv_fb.c"
bytes128 = Annotated[bytes, "128s"]


class VideoType(enum.IntEnum):
    """What a video message is."""

    ERROR = 0
    VERSION_REQUEST = 1
    VERSION_RESPONSE = 2
    VRAM_LOCATION = 3
    VRAM_LOCATION_ACK = 4
    SITUATION_UPDATE = 5
    SITUATION_UPDATE_ACK = 6
    POINTER_POSITION = 7
    POINTER_SHAPE = 8
    FEATURE_CHANGE = 9
    DIRT = 10
    BIOS_INFO_REQUEST = 11
    BIOS_INFO_RESPONSE = 12
    RESOLUTION_REQUEST = 13
    RESOLUTION_RESPONSE = 14
    CAPABILITY_REQUEST = 15
    CAPABILITY_RESPONSE = 16


@wire(size=8, spec=f"{_SPEC}, struct synthvid_msg_hdr")
class VideoHeader(Wire):
    """In front of every message, behind the pipe's header."""

    message_type: u32 = at(0, default=0)
    size: u32 = at(4, default=0)
    """Bytes of the message with this header."""


@wire(size=4, spec=f"{_SPEC}, struct synthvid_version_req")
class VideoVersionRequest(Wire):
    """The guest asks for a version."""

    version: u32 = at(0, default=0)


@wire(size=6, spec=f"{_SPEC}, struct synthvid_version_resp")
class VideoVersionResponse(Wire):
    """The host's answer."""

    version: u32 = at(0, default=0)
    accepted: u8 = at(4, default=0)
    max_outputs: u8 = at(5, default=0)


@wire(size=17, spec=f"{_SPEC}, struct synthvid_vram_location")
class VramLocation(Wire):
    """Where the guest has its frame buffer."""

    user_context: u64 = at(0, default=0)
    specified: u8 = at(8, default=0)
    address: u64 = at(9, default=0)


@wire(size=8, spec=f"{_SPEC}, struct synthvid_vram_location_ack, struct synthvid_situation_update_ack")
class VideoAck(Wire):
    """The host has taken it."""

    user_context: u64 = at(0, default=0)


@wire(size=27, spec=f"{_SPEC}, struct synthvid_situation_update, struct video_output_situation")
class SituationUpdate(Wire):
    """The mode of the one output that there is."""

    user_context: u64 = at(0, default=0)
    output_count: u8 = at(8, default=0)
    active: u8 = at(9, default=0)
    vram_offset: u32 = at(10, default=0)
    depth_bits: u8 = at(14, default=0)
    width: u32 = at(15, default=0)
    height: u32 = at(19, default=0)
    pitch_bytes: u32 = at(23, default=0)


@wire(size=10, spec=f"{_SPEC}, struct synthvid_pointer_position")
class PointerPosition(Wire):
    """Where the pointer is."""

    visible: u8 = at(0, default=0)
    output: u8 = at(1, default=0)
    x: i32 = at(2, default=0)
    y: i32 = at(6, default=0)


@wire(size=18, spec=f"{_SPEC}, struct synthvid_pointer_shape before its data")
class PointerShape(Wire):
    """A part of the pointer's picture; the bytes follow."""

    part: u8 = at(0, default=0)
    argb: u8 = at(1, default=0)
    width: u32 = at(2, default=0)
    height: u32 = at(6, default=0)
    hot_x: u32 = at(10, default=0)
    hot_y: u32 = at(14, default=0)


@wire(size=4, spec=f"{_SPEC}, struct synthvid_feature_change")
class FeatureChange(Wire):
    """What the host wants to be told."""

    dirt_needed: u8 = at(0, default=0)
    pointer_position_needed: u8 = at(1, default=0)
    pointer_shape_needed: u8 = at(2, default=0)
    situation_needed: u8 = at(3, default=0)


@wire(size=2, spec=f"{_SPEC}, struct synthvid_dirt before its rectangles")
class Dirt(Wire):
    """What has changed on the screen."""

    output: u8 = at(0, default=0)
    count: u8 = at(1, default=0)


@wire(size=16, spec=f"{_SPEC}, struct rect")
class Rectangle(Wire):
    """A part of the screen."""

    left: i32 = at(0, default=0)
    top: i32 = at(4, default=0)
    right: i32 = at(8, default=0)
    bottom: i32 = at(12, default=0)


@wire(size=1, spec=f"{_SPEC}, struct synthvid_supported_resolution_req")
class ResolutionRequest(Wire):
    """The guest asks what modes there are."""

    greatest_count: u8 = at(0, default=0)


@wire(size=131, spec=f"{_SPEC}, struct synthvid_supported_resolution_resp before its list")
class ResolutionResponse(Wire):
    """The modes follow."""

    edid: bytes128 = at(0, default=bytes(128))
    count: u8 = at(128, default=0)
    default_index: u8 = at(129, default=0)
    standard: u8 = at(130, default=0)


@wire(size=4, spec=f"{_SPEC}, struct hvd_screen_info")
class Resolution(Wire):
    """A mode."""

    width: u16 = at(0, default=0)
    height: u16 = at(2, default=0)
