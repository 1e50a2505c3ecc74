"""The host's end of a screen's channel, with no Trio in it: messages in, answers out. Root side.

    no version --VERSION_REQUEST 3.x--> ready --VERSION_REQUEST--> ready, from the beginning

A guest may agree on a version again, which 3.2 and later allow: its screen goes off until it says where it is.
`protocol.py` says which mistakes raise and which are only counted.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import assert_never

import attrs
import msgspec

from hypervisor.inspect import Branch, Hex
from hypervisor.wire import BadValue
from vsp_vsc.video.edid import edid
from vsp_vsc.video.framebuffer import Framebuffer, Pointer, PointerPicture, Rect
from vsp_vsc.video.protocol import (
    ACCEPTED,
    LAST_PART,
    MAJOR,
    MAX_POINTER,
    MAX_RESOLUTIONS,
    POINTER_PART_BYTES,
    STANDARD_MODES,
    Dirt,
    FeatureChange,
    PointerPosition,
    PointerShape,
    Rectangle,
    ResolutionRequest,
    SituationUpdate,
    VideoAck,
    VideoBiosInfo,
    VideoCapability,
    VideoType,
    VideoVersionRequest,
    VideoVersionResponse,
    VramLocation,
    decode_message,
    encode_message,
    encode_resolutions,
    unpack_version,
)
from vsp_vsc.video.vram import Situation, Vram, VramRefused


class State(enum.Enum):
    """Where a session is."""

    NO_VERSION = "no version"
    READY = "ready"


@attrs.define
class Counters:
    """Of one screen, all its channels together."""

    messages: int = 0
    refused: int = 0
    """Messages, and rectangles of them, that were passed over."""
    dirt: int = 0
    rectangles: int = 0


class SavedScreen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a session when its VM is saved, apart from the live one. The pixels are in the VM's memory."""

    version: tuple[int, int]
    address: int | None = None
    situation: tuple[int, int, int, int, int] | None = None
    """Width, height, depth, pitch, offset; None while the screen is off."""
    told: bool | None = None
    """What the guest was told of viewers."""


class VideoSession:
    """One opening of a screen's channel."""

    def __init__(
        self,
        framebuffer: Framebuffer,
        vram: Vram,
        mode: tuple[int, int],
        refused: Callable[[str], None],
        counters: Counters | None = None,
    ) -> None:
        """`mode` is the VM's own; `refused` hears of each mistake that costs only a message."""
        self.state = State.NO_VERSION
        self.version = (0, 0)
        self.counters = counters if counters is not None else Counters()
        self._framebuffer = framebuffer
        self._vram = vram
        self._mode = mode
        self._refused = refused
        self._situation: Situation | None = None
        self._told: bool | None = None
        """Whether the guest knows that somebody looks; None: it was told nothing."""
        self._picture = b""
        self._part = 0
        """The pointer's picture so far, and the part that comes next."""

    # --- the guest's messages

    def take(self, untrusted: bytes) -> bytes | None:
        """The answer to a message, if it has one. Raises `WireError`."""
        kind, body = decode_message(untrusted)
        self.counters.messages += 1
        if self.state is State.NO_VERSION and kind is not VideoType.VERSION_REQUEST:
            raise BadValue(f"{kind.name} before a version was agreed on")
        try:
            return self._answer(kind, body)
        except VramRefused as refusal:
            self._refuse(str(refusal))
            return None

    def _answer(self, kind: VideoType, body: bytes) -> bytes | None:
        match kind:
            case VideoType.VERSION_REQUEST:
                return self._negotiate(VideoVersionRequest.decode(body).version)
            case VideoType.RESOLUTION_REQUEST:
                room = ResolutionRequest.decode(body).greatest_count
                return encode_resolutions(edid(*self._mode), self.modes if room >= MAX_RESOLUTIONS else ())
            case VideoType.VRAM_LOCATION:
                return self._locate(VramLocation.decode(body))
            case VideoType.SITUATION_UPDATE:
                return self._situate(SituationUpdate.decode(body))
            case VideoType.POINTER_POSITION:
                position = PointerPosition.decode(body)
                self._framebuffer.pointer = Pointer(bool(position.visible), position.x, position.y)
            case VideoType.POINTER_SHAPE:
                self._shape(PointerShape.decode(body), body[PointerShape.SIZE :])
            case VideoType.DIRT:
                self._dirt(Dirt.decode(body), body[Dirt.SIZE :])
            case VideoType.BIOS_INFO_REQUEST:
                return encode_message(VideoType.BIOS_INFO_RESPONSE, VideoBiosInfo(stop_device_supported=1))
            case VideoType.CAPABILITY_REQUEST:
                return encode_message(VideoType.CAPABILITY_RESPONSE, VideoCapability())
            case (
                VideoType.ERROR
                | VideoType.VERSION_RESPONSE
                | VideoType.VRAM_LOCATION_ACK
                | VideoType.SITUATION_UPDATE_ACK
                | VideoType.FEATURE_CHANGE
                | VideoType.BIOS_INFO_RESPONSE
                | VideoType.RESOLUTION_RESPONSE
                | VideoType.CAPABILITY_RESPONSE
            ):
                raise BadValue(f"{kind.name} from the guest, which only hosts send")
            case _:
                assert_never(kind)
        return None

    @property
    def modes(self) -> Sequence[tuple[int, int]]:
        """The VM's own first: it is the default."""
        return self._mode, *(mode for mode in STANDARD_MODES if mode != self._mode)

    def _negotiate(self, untrusted_version: int) -> bytes:
        version = unpack_version(untrusted_version)
        accepted = version[0] == MAJOR
        self.close()
        self.state, self.version = (State.READY, version) if accepted else (State.NO_VERSION, (0, 0))
        response = VideoVersionResponse(untrusted_version, ACCEPTED if accepted else 0, 1)
        return encode_message(VideoType.VERSION_RESPONSE, response)

    def _locate(self, untrusted: VramLocation) -> bytes:
        if not untrusted.specified:
            raise VramRefused("a frame buffer in a place that the host shall choose; this one has none to give")
        self._vram.locate(untrusted.address)
        if self._situation is not None:
            self._show(self._situation)
        return encode_message(VideoType.VRAM_LOCATION_ACK, VideoAck(untrusted.user_context))

    def _situate(self, untrusted: SituationUpdate) -> bytes:
        if untrusted.output_count != 1:
            raise VramRefused(f"a mode of {untrusted.output_count} screens, there is one")
        if untrusted.active:
            situation = Situation.check(
                width=untrusted.width,
                height=untrusted.height,
                depth=untrusted.depth_bits,
                pitch=untrusted.pitch_bytes,
                offset=untrusted.vram_offset,
            )
            surface = self._vram.surface(situation)
            if situation == self._situation:
                # hyperv_fb says it again whenever a viewer comes; the others need no new window for that.
                self._framebuffer.changed([Rect(0, 0, situation.width, situation.height)])
            else:
                self._framebuffer.show(surface)
                self._situation = situation
        else:
            self._situation = None
            self._framebuffer.show(None)
        if self._told is None:
            self._told = False  # nothing is wanted of a guest until it hears otherwise
        return encode_message(VideoType.SITUATION_UPDATE_ACK, VideoAck(untrusted.user_context))

    def _show(self, situation: Situation) -> None:
        """The same mode at another place; off where it cannot be."""
        try:
            self._framebuffer.show(self._vram.surface(situation))
        except VramRefused as refusal:
            self._situation = None
            self._framebuffer.show(None)
            self._refuse(str(refusal))

    def _shape(self, untrusted: PointerShape, untrusted_data: bytes) -> None:
        width, height, argb = untrusted.width, untrusted.height, bool(untrusted.argb)
        first = untrusted.part == 0 or (untrusted.part == LAST_PART and not self._picture)
        expected, self._part = 0 if first else self._part, 0
        held, self._picture = b"" if first else self._picture, b""
        if not (0 < width <= MAX_POINTER and 0 < height <= MAX_POINTER):
            raise VramRefused(f"a pointer of {width}x{height} pixels; sides have 1 to {MAX_POINTER}")
        if untrusted.hot_x >= width or untrusted.hot_y >= height:
            raise VramRefused(f"a pointer that points with ({untrusted.hot_x}, {untrusted.hot_y}), off its picture")
        if untrusted.part not in (expected, LAST_PART):
            raise VramRefused(f"part {untrusted.part} of a pointer, where {expected} comes")
        picture = held + untrusted_data
        whole = width * height * 4 if argb else (width + 7) // 8 * height * 2
        if len(untrusted_data) > POINTER_PART_BYTES or len(picture) > whole:
            raise VramRefused(f"a pointer of {len(picture)} bytes, {whole} are its picture")
        if untrusted.part != LAST_PART:
            self._picture, self._part = picture, expected + 1
        elif len(picture) == whole:
            self._framebuffer.pointer_picture = PointerPicture(
                width, height, untrusted.hot_x, untrusted.hot_y, argb, picture
            )
        else:
            raise VramRefused(f"a pointer of {len(picture)} bytes, {whole} are its picture")

    def _dirt(self, untrusted: Dirt, untrusted_rectangles: bytes) -> None:
        needed = untrusted.count * Rectangle.SIZE
        if len(untrusted_rectangles) < needed:
            raise VramRefused(f"{untrusted.count} rectangles, in {len(untrusted_rectangles)} bytes")
        if untrusted.output:
            raise VramRefused(f"rectangles on screen {untrusted.output}, there is one")
        self.counters.dirt += 1
        if self._situation is None:
            return  # a driver may say so before its screen is on
        width, height = self._situation.width, self._situation.height
        changed = []
        for left, top, right, bottom in Rectangle.STRUCT.iter_unpack(untrusted_rectangles[:needed]):
            if left < right and top < bottom and right > 0 and bottom > 0 and left < width and top < height:
                changed.append(Rect(left, top, right - left, bottom - top))
            else:
                self._refuse(f"a rectangle from ({left}, {top}) to ({right}, {bottom}) on {width}x{height} pixels")
        self.counters.rectangles += len(changed)
        self._framebuffer.changed(changed)

    def _refuse(self, words: str) -> None:
        self.counters.refused += 1
        self._refused(words)

    # --- viewers

    def feature_change(self) -> bytes | None:
        """What the guest has to hear since viewers have come or gone; None where it knows."""
        watched = self._framebuffer.watched
        if self._told is None or self._told == watched:
            return None
        self._told = watched
        return encode_message(VideoType.FEATURE_CHANGE, FeatureChange(watched, watched, watched, 1))

    # --- the end, and what is kept

    def close(self) -> None:
        """The guest's screen is off, and its memory its own."""
        self.state = State.NO_VERSION
        self._situation, self._told = None, None
        self._picture, self._part = b"", 0
        self._vram.release()
        self._framebuffer.show(None)
        self._framebuffer.pointer = self._framebuffer.pointer_picture = None

    def save(self) -> bytes | None:
        """The session as a record; None before it has begun. A pointer is not kept: a guest that is told of viewers
        says it again."""
        if self.state is State.NO_VERSION:
            return None
        situation = None if self._situation is None else attrs.astuple(self._situation)
        return msgspec.msgpack.encode(SavedScreen(self.version, self._vram.address, situation, self._told))

    def restore(self, saved: SavedScreen) -> None:
        """Go on from a record. Raises `BadValue` where it cannot have been."""
        if saved.version[0] != MAJOR or not 0 <= saved.version[1] <= 0xFFFF:
            raise BadValue(f"a saved screen of version {saved.version}")
        try:
            if saved.address is not None:
                self._vram.locate(saved.address)
            if saved.situation is not None:
                width, height, depth, pitch, offset = saved.situation
                situation = Situation.check(width=width, height=height, depth=depth, pitch=pitch, offset=offset)
                self._framebuffer.show(self._vram.surface(situation))
                self._situation = situation
        except VramRefused as refusal:
            raise BadValue(f"a saved screen with {refusal}") from None
        self.state, self.version, self._told = State.READY, saved.version, saved.told

    def inspect(self) -> Branch:
        """How it stands with its guest."""
        situation = self._situation
        return Branch(
            {
                "state": self.state.value,
                "version": ".".join(map(str, self.version)) if self.state is State.READY else None,
                "address": None if self._vram.address is None else Hex(self._vram.address),
                "memory": None if self._vram.address is None else "the host's" if self._vram.in_window else "its own",
                "mode": None if situation is None else Branch(attrs.asdict(situation)),
                "dirt_wanted": self._told,
            }
        )


def load(untrusted: bytes) -> SavedScreen:
    """A record of `VideoSession.save`, its shape checked. Raises `BadValue`."""
    try:
        return msgspec.msgpack.decode(untrusted, type=SavedScreen)
    except ValueError as error:  # msgspec's errors are ValueErrors too
        raise BadValue(f"a saved screen: {error}") from None
