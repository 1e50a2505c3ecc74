"""The messages of synthetic video, what a frame buffer may be, and what a mistake costs. Both sides.

    guest  VERSION_REQUEST                                     host  VERSION_RESPONSE
    guest  RESOLUTION_REQUEST (from 3.5)                       host  RESOLUTION_RESPONSE
    guest  VRAM_LOCATION: its frame buffer lies there          host  VRAM_LOCATION_ACK
    guest  SITUATION_UPDATE: size, depth, pitch                host  SITUATION_UPDATE_ACK
    guest  POINTER_POSITION, POINTER_SHAPE, DIRT               host  FEATURE_CHANGE: what it wants to be told

Messages travel in pipe packets. Facts: Linux 6.12 drivers/video/fbdev/hyperv_fb.c and drivers/gpu/drm/hyperv; openvmm
vm/devices/uidevices/src/video; tests/spec/layouts/video.txt holds the layouts a second time.

Mistakes that stop the channel, because what follows them cannot be read: a message shorter than its layout, of an
unknown type, one that only hosts send, or any other before a version is agreed on. Those that cost only the message,
and are counted: a frame buffer where the guest has no memory, a mode that does not fit, a pointer that is none, and
rectangles that are inverted, off the screen or not there. A location or mode that is refused gets no acknowledgement,
and what was shown before stays.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Annotated, Final

from hypervisor.wire import BadValue, Guid, ShortMessage, Wire, at, wire
from hypervisor.wire.scalars import i32, u8, u16, u32, u64

_SPEC = "Linux 6.12 drivers/video/fbdev/hyperv_fb.c"
_OPENVMM = "openvmm vm/devices/uidevices/src/video/protocol.rs"
bytes12 = Annotated[bytes, "12s"]
bytes60 = Annotated[bytes, "60s"]
bytes128 = Annotated[bytes, "128s"]

VIDEO_INTERFACE: Final = Guid("da0a7802-e377-4aac-8e77-0558eb1073f8")
VIDEO_INSTANCE: Final = Guid("5620e0c7-8062-4dce-aeb7-520c7ef76171")
"""Hyper-V gives every VM's screen the same."""
MESSAGE_PIPE: Final = 4
"""In an offer: packets are messages of a pipe."""
RING_BYTES: Final = 256 * 1024
"""What Linux opens each ring with."""
VRAM_MEGABYTES: Final = 8
"""In the offer: the most that a frame buffer may take, and what Linux asks its bus for."""
VRAM_BYTES: Final = VRAM_MEGABYTES << 20
MAJOR: Final = 3
VERSIONS: Final = tuple((MAJOR, minor) for minor in (5, 4, 3, 2, 0))
"""(major, minor) that drivers ask for, the highest first."""
RESOLUTIONS_SINCE: Final = (3, 5)
ACCEPTED: Final = 2
""""With version exchange", as hosts of today say it; any other than 0 means yes."""
MAX_RESOLUTIONS: Final = 64
"""A guest that has room for fewer is told of none, as other hosts do."""
LEAST_WIDTH, LEAST_HEIGHT = 640, 480
DEPTHS: Final = (16, 32)
"""Bits a pixel: RGB565 and XRGB8888."""
STANDARD_MODES: Final = (
    *((640, 480), (800, 600), (1024, 768), (1152, 864), (1280, 720), (1280, 800), (1280, 1024)),
    *((1366, 768), (1440, 900), (1600, 900), (1600, 1200), (1680, 1050), (1920, 1080)),
)
"""Sizes that drivers may choose besides the VM's own; all of them fit at 32 bits."""
MAX_POINTER: Final = 96
"""Pixels across and down."""
POINTER_PART_BYTES: Final = 8192
LAST_PART: Final = 0xFF
"""The part number of a pointer shape's last, or only, part."""
MAX_RECTANGLES: Final = 255


def pack_version(version: tuple[int, int]) -> int:
    """The minor version is in the high half, the other way round than elsewhere."""
    return version[1] << 16 | version[0]


def unpack_version(packed: int) -> tuple[int, int]:
    """(major, minor)."""
    return packed & 0xFFFF, packed >> 16


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


@wire(size=16, spec=f"{_OPENVMM}, BiosInfoResponseMessage")
class VideoBiosInfo(Wire):
    """Which kind of VM it is."""

    stop_device_supported: u32 = at(0, default=0)
    reserved: bytes12 = at(4, default=bytes(12))


@wire(size=64, spec=f"{_OPENVMM}, CapabilityResponseMessage")
class VideoCapability(Wire):
    """What else the host can do."""

    lock_on_disconnect: u32 = at(0, default=0)
    reserved: bytes60 = at(4, default=bytes(60))


def encode_message(kind: VideoType, *body: Wire | bytes) -> bytes:
    """A message of these parts, without the pipe's header."""
    data = b"".join(part if isinstance(part, bytes) else part.encode() for part in body)
    return VideoHeader(kind, VideoHeader.SIZE + len(data)).encode() + data


def decode_message(untrusted: bytes) -> tuple[VideoType, bytes]:
    """A message's type, and its body up to the packet's end. Raises `WireError`.

    The length in the header is not looked at: Linux counts the header in it, and others do not.
    """
    header = VideoHeader.decode(untrusted)
    try:
        kind = VideoType(header.message_type)
    except ValueError:
        raise BadValue(f"a video message of type {header.message_type}") from None
    return kind, untrusted[VideoHeader.SIZE :]


def encode_resolutions(edid: bytes, modes: Sequence[tuple[int, int]], default: int = 0) -> bytes:
    """The list of modes as a message."""
    response = ResolutionResponse(edid, len(modes), default, 0)
    return encode_message(
        VideoType.RESOLUTION_RESPONSE, response, *[Resolution(width, height) for width, height in modes]
    )


def decode_resolutions(untrusted_body: bytes) -> tuple[list[tuple[int, int]], int]:
    """The modes, and which of them the host means. Raises `WireError`."""
    response = ResolutionResponse.decode(untrusted_body)
    needed = ResolutionResponse.SIZE + response.count * Resolution.SIZE
    if len(untrusted_body) < needed:
        raise ShortMessage("list of resolutions", needed, len(untrusted_body))
    modes = []
    for start in range(ResolutionResponse.SIZE, needed, Resolution.SIZE):
        mode = Resolution.decode(untrusted_body[start:])
        modes.append((mode.width, mode.height))
    if modes and response.default_index >= len(modes):
        raise BadValue(f"mode {response.default_index} of {len(modes)} is the default")
    return modes, response.default_index


def encode_dirt(rectangles: Sequence[Rectangle]) -> bytes:
    """What has changed, as a message; at most 255."""
    return encode_message(VideoType.DIRT, Dirt(0, len(rectangles)), *rectangles)
