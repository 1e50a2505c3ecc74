"""Decoders of a screen's, a keyboard's and a mouse's bytes, and of VNC clients'."""

from __future__ import annotations

import functools

import msgspec

from partitions.root.vnc import protocol as rfb
from partitions.root.vnc.connection import RfbConnection
from tests.doubles.storage import PlainPlatform
from tests.hostile.decoder_rows import NONE, Decoder, Rows, packet_of, stateless
from vsp_vsc.keyboard import protocol as keyboard
from vsp_vsc.keyboard.session import KeyboardSession, SavedKeyboard
from vsp_vsc.mouse import protocol as mouse
from vsp_vsc.mouse.session import MouseSession, SavedMouse
from vsp_vsc.video import protocol as video
from vsp_vsc.video import session as screen
from vsp_vsc.video.edid import edid
from vsp_vsc.video.framebuffer import Framebuffer
from vsp_vsc.video.protocol import VideoType
from vsp_vsc.video.vram import Vram

VRAM_AT = 0x1_0000
MODE = 640, 480


@functools.cache
def guest() -> PlainPlatform:
    """Two megabytes of memory."""
    return PlainPlatform(2 << 20)


def a_screen() -> tuple[screen.VideoSession, Framebuffer]:
    framebuffer = Framebuffer(*MODE)
    return screen.VideoSession(framebuffer, Vram(guest().guest, None), MODE, lambda _: None), framebuffer


def look_at(framebuffer: Framebuffer) -> None:
    """All of it can be read."""
    size = framebuffer.width * framebuffer.height * 4
    assert len(framebuffer.pixels(0, 0, framebuffer.width, framebuffer.height)) == size


def draw(data: bytes, number: int) -> object:
    """After any beginning; what a viewer sees is there."""
    session, framebuffer = a_screen()
    for message in DRAWING[: number % 4]:
        session.take(message)
    answer = session.take(data)
    if framebuffer.width * framebuffer.height < 1 << 20:
        look_at(framebuffer)
    return None if answer is None else video.decode_message(answer)


def go_on_drawing(data: bytes, number: int) -> object:
    """A record that is taken is one that a guest could have come to."""
    session, framebuffer = a_screen()
    session.restore(screen.load(data))
    if framebuffer.width * framebuffer.height < 1 << 20:
        look_at(framebuffer)
    saved = screen.load(session.save() or b"")
    assert saved.situation is None or min(saved.situation) >= 0
    return saved


def go_on_typing(data: bytes, number: int) -> object:
    return KeyboardSession.load(KeyboardSession.load(data).save())


def describe_mouse(data: bytes, number: int) -> object:
    """All of the report descriptor is there."""
    info, descriptor = mouse.decode_device_info(data)
    assert len(descriptor) == int.from_bytes(info.hid_descriptor[-2:], "little")
    return info


def go_on_pointing(data: bytes, number: int) -> object:
    return MouseSession.load(MouseSession.load(data).save())


def serve_viewer(data: bytes, number: int) -> object:
    """From its first byte on, in pieces; it gets what it asks for, and no more is held than a message."""
    connection = RfbConnection(8, 8, "desk", refuse="not now" if number % 8 == 7 else "")
    middle = number >> 8 & 0x3F
    events = [*connection.feed(data[:middle]), *connection.feed(data[middle:])]
    assert len(connection._held) <= 4096 + len(data)
    if connection.due:
        assert b"".join(connection.updates(lambda x, y, width, height: bytes(width * height * 4)))
    return events


def said(kind: VideoType, *body: video.Wire | bytes) -> bytes:
    return video.encode_message(kind, *body)


DRAWING = (
    said(VideoType.VERSION_REQUEST, video.VideoVersionRequest(video.pack_version((3, 5)))),
    said(VideoType.VRAM_LOCATION, video.VramLocation(1, 1, VRAM_AT)),
    said(VideoType.SITUATION_UPDATE, video.SituationUpdate(1, 1, 1, 0, 32, 16, 16, 64)),
    said(VideoType.RESOLUTION_REQUEST, video.ResolutionRequest(video.MAX_RESOLUTIONS)),
    said(VideoType.POINTER_POSITION, video.PointerPosition(1, 0, 3, 4)),
    said(VideoType.POINTER_SHAPE, video.PointerShape(video.LAST_PART, 1, 2, 2, 1, 1), bytes(16)),
    video.encode_dirt([video.Rectangle(0, 0, 4, 4)]),
    said(VideoType.BIOS_INFO_REQUEST),
    said(VideoType.CAPABILITY_REQUEST),
)
SCREENS = (
    msgspec.msgpack.encode(screen.SavedScreen((3, 5), VRAM_AT, (16, 16, 32, 64, 0), True)),
    msgspec.msgpack.encode(screen.SavedScreen((3, 2))),
    msgspec.msgpack.encode(screen.SavedScreen((3, 5), -VRAM_AT, (16, 16, 32, 64, 0), True)),
    msgspec.msgpack.encode(screen.SavedScreen((3, 5), VRAM_AT, (16, 16, 32, 64, -64), True)),
    msgspec.msgpack.encode(screen.SavedScreen((3, -1), (1 << 64) - 1, (-16, 16, 32, 1 << 60, -(1 << 62)))),
)
"""The last three cannot have been."""

KEYS = (
    keyboard.encode_message(keyboard.KeyboardType.PROTOCOL_REQUEST, keyboard.KeyboardRequest(keyboard.VERSION_1_0)),
    keyboard.encode_message(keyboard.KeyboardType.LED_INDICATORS, keyboard.LedIndicators(7)),
)
KEYBOARDS = (
    msgspec.msgpack.encode(SavedKeyboard(True, 4, True, (0x1E, 0xE01D, 0xE11D))),
    msgspec.msgpack.encode(SavedKeyboard(False, -1, False, (0, 0xFFFF))),
    msgspec.msgpack.encode(SavedKeyboard(True, 1 << 60, False, (-1, 1 << 40))),
)
MICE = tuple(
    msgspec.msgpack.encode(SavedMouse(state, x, y, buttons))
    for state, x, y, buttons in (
        ("ready", 7, 32767, 3),
        ("waiting for an acknowledgement", 0, 0, 0),
        ("ready", -1, 1 << 40, 1 << 60),
        ("asleep", 0, 0, 0),
    )
)

HELLO = b"RFB 003.008\n\1\1"
VIEWING = (
    b"\0\0\0\0" + rfb.SERVER_FORMAT.encode(),
    b"\0\0\0\0" + rfb.BGR233.encode(),
    rfb.SET_ENCODINGS.pack(5).replace(b"\0", b"\2", 1)
    + b"".join(int(one).to_bytes(4, "big", signed=True) for one in (16, 0, -223, -258, -308)),
    b"\3\0" + bytes(4) + b"\0\x08\0\x08",
    b"\4\1\0\0\0\0\0\x41",
    b"\5\1\0\3\0\4",
    b"\6\0\0\0\0\0\0\4text",
    b"\xfb\0\0\x08\0\x08\1\0" + bytes(16),
    b"\xff\0\0\1\0\0\0\x41\0\0\0\x1e",
)

DECODERS = {
    "partitions.root.vnc.connection.RfbConnection.feed": Decoder(
        serve_viewer,
        (
            b"RFB 003.003\n\1" + VIEWING[3],
            b"RFB 003.007\n\1\0" + VIEWING[4],
            *(HELLO + message + VIEWING[3] for message in VIEWING),
        ),
        rfb.RfbError,
    ),
    "partitions.root.vnc.protocol.PixelFormat.decode": Decoder(
        stateless(rfb.PixelFormat.decode), (rfb.SERVER_FORMAT.encode(), rfb.BGR233.encode()), rfb.RfbError
    ),
    "vsp_vsc.keyboard.protocol.decode_message": Decoder(
        lambda data, number: keyboard.decode_message(packet_of(data, number)), tuple(key.body for key in KEYS)
    ),
    "vsp_vsc.keyboard.session.KeyboardSession.load": Decoder(go_on_typing, KEYBOARDS),
    "vsp_vsc.mouse.protocol.decode_device_info": Decoder(
        describe_mouse, (mouse.encode_device_info()[mouse.MouseHeader.SIZE :],)
    ),
    "vsp_vsc.mouse.protocol.decode_message": Decoder(
        stateless(mouse.decode_message),
        (
            mouse.encode_message(mouse.MouseType.PROTOCOL_REQUEST, mouse.MouseRequest(mouse.VERSION_2_0).encode()),
            mouse.encode_device_info(),
        ),
    ),
    "vsp_vsc.mouse.session.MouseSession.load": Decoder(go_on_pointing, MICE),
    "vsp_vsc.video.protocol.decode_message": Decoder(stateless(video.decode_message), DRAWING),
    "vsp_vsc.video.protocol.decode_resolutions": Decoder(
        stateless(video.decode_resolutions),
        (video.encode_resolutions(edid(*MODE), video.STANDARD_MODES, 3)[video.VideoHeader.SIZE :],),
    ),
    "vsp_vsc.video.protocol.unpack_version": Decoder(
        lambda data, number: video.unpack_version(int.from_bytes(data[:4], "little")),
        (video.pack_version((3, 5)).to_bytes(4, "little"),),
        NONE,
    ),
    "vsp_vsc.video.session.VideoSession.take": Decoder(draw, DRAWING),
    "vsp_vsc.video.session.load": Decoder(go_on_drawing, SCREENS),
}

ELSEWHERE = {
    "vsp_vsc.input_device.InputSession.load": "says what a keyboard's and a mouse's own is like",
    "vsp_vsc.input_device.InputVsp.load": "hands on to a keyboard's or a mouse's own",
    "vsp_vsc.video.session.VideoSession._dirt": "of `take`",
    "vsp_vsc.video.session.VideoSession._shape": "of `take`",
    "vsp_vsc.video.vsp.VideoVsp._take": "`VideoSession.take`, and a word for the trace",
    "vsp_vsc.video.vsp.VideoVsp.load": "`load` of the session",
}

ROWS = Rows(DECODERS, ELSEWHERE, {"vsp_vsc.video.vram": "vsp_vsc/video/test_session.py"})
