"""The host's end of a screen's channel: what it answers, what it passes over and what stops it."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.pages import PAGE_SHIFT
from hypervisor.wire import BadValue, ShortMessage, WireError
from tests.doubles.storage import PlainPlatform
from tests.doubles.video import WINDOW_BASE, WINDOW_LENGTH, PlainWindow
from vsp_vsc.video import protocol as p
from vsp_vsc.video.edid import edid
from vsp_vsc.video.framebuffer import MAX_RECTS, Framebuffer, Pointer, PointerPicture, Rect
from vsp_vsc.video.protocol import VideoType
from vsp_vsc.video.session import State, VideoSession, load
from vsp_vsc.video.vram import Vram

MEMORY = 4 << 20
MODE = 640, 480
AT = 1 << 20
"""Where these guests have their frame buffer."""


class Bench:
    """A session on plain memory."""

    def __init__(self, *, window: bool = False, memory: int = MEMORY) -> None:
        self.platform = PlainPlatform(memory)
        self.memory = self.platform.guest
        self.window = PlainWindow(self.memory) if window else None
        self.framebuffer = Framebuffer(*MODE)
        self.refused: list[str] = []
        self.session = VideoSession(self.framebuffer, Vram(self.memory, self.window), MODE, self.refused.append)

    def say(self, kind: VideoType, *body: p.Wire | bytes) -> tuple[VideoType, bytes] | None:
        answer = self.session.take(p.encode_message(kind, *body))
        return None if answer is None else p.decode_message(answer)

    def begin(self, version: tuple[int, int] = (3, 5), at: int | None = AT) -> Bench:
        self.say(VideoType.VERSION_REQUEST, p.VideoVersionRequest(p.pack_version(version)))
        if at is not None:
            assert self.say(VideoType.VRAM_LOCATION, p.VramLocation(9, 1, at)) is not None
        return self

    def show(
        self,
        width: int = 4,
        height: int = 3,
        *,
        depth: int = 32,
        pitch: int | None = None,
        offset: int = 0,
        active: int = 1,
        outputs: int = 1,
    ) -> bool:
        """Whether it was taken."""
        pitch = width * depth // 8 if pitch is None else pitch
        update = p.SituationUpdate(7, outputs, active, offset, depth, width, height, pitch)
        answer = self.say(VideoType.SITUATION_UPDATE, update)
        assert answer in (None, (VideoType.SITUATION_UPDATE_ACK, struct.pack("<Q", 7)))
        return answer is not None

    def dirty(self, *rectangles: tuple[int, int, int, int], count: int | None = None, output: int = 0) -> None:
        head = p.Dirt(output, len(rectangles) if count is None else count)
        assert self.say(VideoType.DIRT, head, *[p.Rectangle(*corners) for corners in rectangles]) is None


def test_the_way_of_linux() -> None:
    """Versions, modes, a place for the pixels, a size: hyperv_fb's order of messages, answered as on other hosts."""
    bench = Bench()
    version = p.pack_version((3, 5))
    assert version == 0x50003
    answer = bench.say(VideoType.VERSION_REQUEST, p.VideoVersionRequest(version))
    assert answer == (VideoType.VERSION_RESPONSE, struct.pack("<IBB", version, 2, 1))
    answer = bench.say(VideoType.RESOLUTION_REQUEST, p.ResolutionRequest(64))
    assert answer is not None
    modes, default = p.decode_resolutions(answer[1])
    assert (modes[0], default) == (MODE, 0)
    assert (1024, 768) in modes
    assert len(modes) == len(set(modes)) <= p.MAX_RESOLUTIONS
    assert all(width * height * 4 <= p.VRAM_BYTES for width, height in modes)
    answer = bench.say(VideoType.VRAM_LOCATION, p.VramLocation(AT, 1, AT))
    assert answer == (VideoType.VRAM_LOCATION_ACK, struct.pack("<Q", AT))
    assert bench.say(VideoType.POINTER_POSITION, p.PointerPosition(1, 0, 0, 0)) is None
    assert bench.say(VideoType.POINTER_SHAPE, p.PointerShape(0xFF, 1, 1, 1, 0, 0), b"\0\1\1\1") is None
    assert bench.show(*MODE)
    bench.dirty((0, 0, 64, 32))
    assert (bench.framebuffer.width, bench.framebuffer.height, bench.framebuffer.active) == (640, 480, True)
    assert bench.framebuffer.pointer == Pointer(visible=True, x=0, y=0)
    assert bench.framebuffer.pointer_picture == PointerPicture(1, 1, 0, 0, True, b"\0\1\1\1")
    assert bench.refused == []


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        *(((3, minor), True) for minor in (0, 2, 3, 4, 5, 99)),
        *((version, False) for version in ((2, 0), (4, 0), (0, 0), (0xFFFF, 0xFFFF))),
    ],
)
def test_any_3_x_is_accepted_and_echoed(version: tuple[int, int], accepted: bool) -> None:
    """A guest whose version is refused may ask for another; it may ask again after one that was accepted, too."""
    bench = Bench()
    for _ in range(2):
        answer = bench.say(VideoType.VERSION_REQUEST, p.VideoVersionRequest(p.pack_version(version)))
        assert answer is not None
        assert p.VideoVersionResponse.decode(answer[1]) == p.VideoVersionResponse(
            p.pack_version(version), 2 if accepted else 0, 1
        )
        assert bench.session.state is (State.READY if accepted else State.NO_VERSION)
    bench.begin()
    assert bench.show()
    bench.begin(at=None)
    assert not bench.framebuffer.active
    assert not bench.show()  # where the pixels are was part of the old agreement


def test_a_guest_with_little_room_is_told_of_no_modes() -> None:
    """As other hosts do: a list of fewer than 64 is an empty one, and the driver has a size of its own."""
    bench = Bench().begin()
    for room, some in ((0, False), (63, False), (64, True), (255, True)):
        answer = bench.say(VideoType.RESOLUTION_REQUEST, p.ResolutionRequest(room))
        assert answer is not None
        assert bool(p.decode_resolutions(answer[1])[0]) is some


def test_what_windows_asks_besides() -> None:
    """A generation 2 machine, and no locking at the end of a session."""
    bench = Bench().begin()
    assert bench.say(VideoType.BIOS_INFO_REQUEST) == (VideoType.BIOS_INFO_RESPONSE, b"\1" + bytes(15))
    assert bench.say(VideoType.CAPABILITY_REQUEST) == (VideoType.CAPABILITY_RESPONSE, bytes(64))


def test_pixels_are_where_the_guest_says() -> None:
    """Address, offset and pitch all count, at both depths, and another place takes the mode along."""
    bench = Bench().begin()
    assert bench.show(2, 2, pitch=64, offset=16)
    bench.memory.write(AT + 16, b"\1\2\3\4\5\6\7\xff")
    bench.memory.write(AT + 16 + 64, b"\x0b\x0c\x0d\xff\x0e\x0f\x10\xff")
    assert bench.framebuffer.pixels(0, 0, 2, 2) == bytes.fromhex("01020300 05060700 0b0c0d00 0e0f1000")
    bench.memory.write(AT + 0x3000 + 16, b"\xaa\xbb\xcc\xdd")
    assert bench.say(VideoType.VRAM_LOCATION, p.VramLocation(1, 1, AT + 0x3000)) is not None
    assert bench.framebuffer.pixels(0, 0, 1, 1) == b"\xaa\xbb\xcc\0"
    assert bench.show(2, 1, depth=16)
    bench.memory.write(AT + 0x3000, b"\x1f\x00\x00\xf8")
    assert bench.framebuffer.pixels(0, 0, 2, 1) == bytes.fromhex("ff000000 0000ff00")
    assert bench.show(active=0)
    assert not bench.framebuffer.active
    assert (bench.framebuffer.width, bench.framebuffer.height) == (2, 1)


# --- case 98: what cannot be


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0, "height": 0},
        {"width": 0},
        {"height": 0},
        {"width": 65535, "height": 65535},
        {"width": 0xFFFFFFFF, "height": 0xFFFFFFFF, "pitch": 0xFFFFFFFF},
        {"width": 8193, "height": 1},
        {"width": 1, "height": 8193},
        {"width": 4, "pitch": 15},
        {"pitch": 0},
        {"pitch": 0xFFFFFFFF},
        {"offset": 0xFFFFFFFF},
        {"offset": p.VRAM_BYTES - 47},
        {"depth": 0},
        {"depth": 24},
        {"depth": 8},
        {"depth": 255},
        {"outputs": 0},
        {"outputs": 2},
        {"width": 1024, "height": 1024},  # more than this guest has behind its frame buffer's address
    ],
    ids=str,
)
def test_98_a_mode_that_cannot_be_is_passed_over(wrong: dict[str, int]) -> None:
    """No acknowledgement, one refusal counted, and what was shown before stays."""
    bench = Bench().begin()
    assert bench.show(2, 2)
    assert not bench.show(**wrong)
    assert len(bench.refused) == bench.session.counters.refused == 1
    assert (bench.framebuffer.width, bench.framebuffer.height, bench.framebuffer.active) == (2, 2, True)
    assert bench.show(4, 4)


@pytest.mark.parametrize("gpa", [MEMORY, MEMORY + 0x1000, 1 << 40, (1 << 64) - 1, WINDOW_BASE], ids=hex)
def test_98_a_frame_buffer_outside_memory_is_passed_over(gpa: int) -> None:
    """The old one stays, and its pixels are read on."""
    bench = Bench().begin()
    assert bench.show(2, 2)
    assert bench.say(VideoType.VRAM_LOCATION, p.VramLocation(1, 1, gpa)) is None
    assert bench.say(VideoType.VRAM_LOCATION, p.VramLocation(1, 0, AT)) is None
    assert bench.session.counters.refused == 2
    bench.memory.write(AT, b"\1\2\3\4")
    assert bench.framebuffer.pixels(0, 0, 1, 1) == b"\1\2\3\0"


def test_98_memory_that_ends_behind_the_address() -> None:
    """An address in the last page is one, and a mode that reaches past the end is none, to the byte."""
    bench = Bench().begin(at=MEMORY - 64)
    assert bench.show(4, 4)
    assert not bench.show(4, 4, offset=1)
    assert not bench.show(5, 4)


def test_98_a_frame_buffer_has_8_mib() -> None:
    """However much memory the guest has behind it: more is nobody's screen, to the byte."""
    bench = Bench(memory=12 << 20).begin(at=0x1000)
    assert bench.show(4, 3, offset=p.VRAM_BYTES - 48)
    assert not bench.show(4, 3, offset=p.VRAM_BYTES - 47)
    assert not bench.show(4, 3, pitch=p.VRAM_BYTES // 2)
    assert bench.show(1920, 1080)
    assert not bench.show(1920, 1093)


def test_98_memory_that_goes_meanwhile() -> None:
    """What the guest has given away is black and nobody else's, from the next look on."""
    bench = Bench().begin()
    assert bench.show(1024, 3)
    bench.memory.write(AT, b"\xff" * 1024 * 12)
    bench.memory.unmap((AT >> PAGE_SHIFT) + 1, 1)
    assert bench.framebuffer.pixels(0, 0, 4, 1) == b"\xff\xff\xff\0" * 4
    assert bench.framebuffer.pixels(0, 1, 4, 1) == bytes(16)
    assert bench.framebuffer.pixels(0, 0, 1024, 3) == bytes(1024 * 12)
    assert not bench.show(1024, 2)


def test_98_rectangles_that_are_none() -> None:
    """Inverted, empty or off the screen: each is counted; those beside them count all the same, cut to the screen."""
    bench = Bench().begin()
    assert bench.show(8, 8)
    with bench.framebuffer.watch() as damage:
        damage.take()
        least, most = -(1 << 31), (1 << 31) - 1
        bad = [
            (5, 0, 3, 4),
            (0, 5, 4, 3),
            (2, 2, 2, 3),
            (8, 0, 9, 1),
            (0, 8, 1, 9),
            (-4, 0, 0, 4),
            (most, most, least, least),
        ]
        bench.dirty(*bad, (1, 1, 2, 2), (6, 6, 99, 99))
        assert bench.session.counters.refused == len(bad)
        assert damage.take() == (False, [Rect(1, 1, 1, 1), Rect(6, 6, 2, 2)])
        bench.dirty((least, least, most, most))
        assert damage.take() == (False, [Rect(0, 0, 8, 8)])


def test_98_255_rectangles() -> None:
    """As many as a message can name are taken; a count that its bytes do not bear out is refused as a whole."""
    bench = Bench().begin()
    assert bench.show(256, 2)
    with bench.framebuffer.watch() as damage:
        damage.take()
        bench.dirty(*[(x, 0, x + 1, 1) for x in range(255)])
        assert bench.session.counters.rectangles == 255
        _, rects = damage.take()
        assert len(rects) <= MAX_RECTS
        assert {x for rect in rects for x in range(rect.x, rect.right)} == set(range(255))
        bench.dirty((0, 0, 1, 1), count=255)
        bench.dirty(count=1)
        bench.dirty((0, 0, 1, 1), output=1)
        assert bench.session.counters.refused == 3
        bench.dirty()
        assert damage.take() == (False, [])


@pytest.mark.parametrize(
    ("part", "width", "height", "hot", "size"),
    [
        (0xFF, 0, 1, (0, 0), 0),
        (0xFF, 1, 0, (0, 0), 0),
        (0xFF, 97, 1, (0, 0), 97 * 4),
        (0xFF, 0xFFFFFFFF, 0xFFFFFFFF, (0, 0), 4),
        (0xFF, 2, 2, (2, 0), 16),
        (0xFF, 2, 2, (0, 0xFFFFFFFF), 16),
        (0xFF, 2, 2, (0, 0), 15),
        (0xFF, 2, 2, (0, 0), 17),
        (1, 96, 96, (0, 0), 8192),
        (0, 96, 96, (0, 0), 8193),
    ],
)
def test_98_a_pointer_that_is_none(part: int, width: int, height: int, hot: tuple[int, int], size: int) -> None:
    """Too large, pointing past itself, with bytes that are not its picture's, or out of order."""
    bench = Bench().begin()
    bench.say(VideoType.POINTER_SHAPE, p.PointerShape(part, 1, width, height, *hot), bytes(size))
    assert bench.framebuffer.pointer_picture is None
    assert bench.session.counters.refused == 1


def test_a_pointer_in_parts() -> None:
    """The largest comes in five; one that begins anew forgets the old one, and a gap forgets both."""
    bench = Bench().begin()
    picture = bytes(range(256)) * (96 * 96 * 4 // 256)
    parts = [picture[at : at + 8192] for at in range(0, len(picture), 8192)]

    def send(number: int, data: bytes) -> None:
        bench.say(VideoType.POINTER_SHAPE, p.PointerShape(number, 1, 96, 96, 3, 4), data)

    send(0, parts[0])
    for number, data in zip((0, 1, 2, 3, 0xFF), parts, strict=True):
        send(number, data)
    assert bench.framebuffer.pointer_picture == PointerPicture(96, 96, 3, 4, True, picture)
    assert bench.refused == []
    send(0, parts[0])
    send(2, parts[2])
    send(0xFF, parts[4])
    assert len(bench.refused) == 2
    mono = (96 + 7) // 8 * 96 * 2
    bench.say(VideoType.POINTER_SHAPE, p.PointerShape(0xFF, 0, 96, 96, 0, 0), bytes(mono))
    assert bench.framebuffer.pointer_picture == PointerPicture(96, 96, 0, 0, False, bytes(mono))


@pytest.mark.parametrize("kind", [kind for kind in VideoType if kind is not VideoType.VERSION_REQUEST])
def test_nothing_comes_before_the_version(kind: VideoType) -> None:
    """A guest that does not begin at the beginning is no driver of this device."""
    with pytest.raises(BadValue, match="before a version"):
        Bench().say(kind, bytes(200))


@pytest.mark.parametrize(
    "kind",
    [
        *(VideoType.ERROR, VideoType.VERSION_RESPONSE, VideoType.VRAM_LOCATION_ACK, VideoType.SITUATION_UPDATE_ACK),
        *(VideoType.FEATURE_CHANGE, VideoType.BIOS_INFO_RESPONSE),
        *(VideoType.RESOLUTION_RESPONSE, VideoType.CAPABILITY_RESPONSE),
    ],
)
def test_what_only_hosts_say_stops_the_channel(kind: VideoType) -> None:
    with pytest.raises(BadValue, match="only hosts"):
        Bench().begin().say(kind, bytes(200))


def test_what_cannot_be_read_stops_the_channel() -> None:
    """An unknown type, and messages that end before their layout does."""
    bench = Bench().begin()
    with pytest.raises(BadValue):
        bench.session.take(struct.pack("<II", 17, 8))
    for layout, kind in (
        (p.VideoVersionRequest, VideoType.VERSION_REQUEST),
        (p.VramLocation, VideoType.VRAM_LOCATION),
        (p.SituationUpdate, VideoType.SITUATION_UPDATE),
        (p.PointerPosition, VideoType.POINTER_POSITION),
        (p.PointerShape, VideoType.POINTER_SHAPE),
        (p.Dirt, VideoType.DIRT),
        (p.ResolutionRequest, VideoType.RESOLUTION_REQUEST),
    ):
        with pytest.raises(ShortMessage):
            bench.say(kind, bytes(layout.SIZE - 1))
    with pytest.raises(ShortMessage):
        bench.session.take(bytes(7))


# --- the window


def test_memory_comes_to_the_window_and_goes_with_the_channel() -> None:
    """The host puts it where the guest asks, moves it along, and takes it back; RAM is never covered."""
    bench = Bench(window=True).begin(at=WINDOW_BASE)
    window = bench.window
    assert window is not None
    assert bench.show(*MODE)
    bench.memory.write(WINDOW_BASE, b"\1\2\3\4")
    assert bench.framebuffer.pixels(0, 0, 1, 1) == b"\1\2\3\0"
    assert bench.say(VideoType.VRAM_LOCATION, p.VramLocation(1, 1, WINDOW_BASE)) is not None
    assert window.moves == 1
    last = WINDOW_BASE + WINDOW_LENGTH - p.VRAM_BYTES
    assert bench.say(VideoType.VRAM_LOCATION, p.VramLocation(1, 1, last)) is not None
    assert bench.framebuffer.pixels(0, 0, 1, 1) == b"\1\2\3\0"
    assert bench.memory.source(WINDOW_BASE >> PAGE_SHIFT) is None
    for outside in (last + 1, last + 0x1000, WINDOW_BASE - 0x1000, WINDOW_BASE + 1):
        assert bench.say(VideoType.VRAM_LOCATION, p.VramLocation(1, 1, outside)) is None
    assert len(bench.refused) == 4
    assert bench.say(VideoType.VRAM_LOCATION, p.VramLocation(1, 1, AT)) is not None
    assert (window.block, window.at) == (None, None)
    assert bench.say(VideoType.VRAM_LOCATION, p.VramLocation(1, 1, last)) is not None
    bench.session.close()
    assert (window.block, window.at) == (None, None)
    assert bench.memory.source(last >> PAGE_SHIFT) is None


def test_a_host_without_memory_for_it() -> None:
    """That is no fault of the guest's, and costs it the message and no more."""
    bench = Bench(window=True).begin(at=None)
    assert bench.window is not None
    bench.window.full = True
    assert bench.say(VideoType.VRAM_LOCATION, p.VramLocation(1, 1, WINDOW_BASE)) is None
    assert "none left" in bench.refused[0]
    bench.window.full = False
    assert bench.say(VideoType.VRAM_LOCATION, p.VramLocation(1, 1, WINDOW_BASE)) is not None


# --- viewers


def test_a_guest_hears_of_viewers_once_it_shows_something() -> None:
    """Not before, not twice, and what counts is how it is when it is told."""
    bench = Bench().begin()
    with bench.framebuffer.watch():
        assert bench.session.feature_change() is None
        assert bench.show()
        change = bench.session.feature_change()
        assert change is not None
        assert p.decode_message(change) == (VideoType.FEATURE_CHANGE, b"\1\1\1\1")
        assert bench.session.feature_change() is None
        with bench.framebuffer.watch():
            assert bench.session.feature_change() is None
    with bench.framebuffer.watch():
        assert bench.session.feature_change() is None
    change = bench.session.feature_change()
    assert change is not None
    assert p.decode_message(change)[1] == b"\0\0\0\1"


def test_the_same_mode_again_is_no_other_screen() -> None:
    """Linux's hyperv_fb repeats it for each viewer that comes: all is new then, and nobody resizes a window."""
    bench = Bench().begin()
    assert bench.show(8, 8)
    with bench.framebuffer.watch() as damage:
        damage.take()
        assert bench.show(8, 8)
        assert damage.take() == (False, [Rect(0, 0, 8, 8)])
        assert bench.say(VideoType.VRAM_LOCATION, p.VramLocation(1, 1, AT + 0x1000)) is not None
        assert bench.show(8, 8)
        bench.memory.write(AT + 0x1000, b"\1\2\3\4")
        assert bench.framebuffer.pixels(0, 0, 1, 1) == b"\1\2\3\0"
        assert damage.take()[0]
        assert bench.show(8, 8, active=0)
        assert bench.show(8, 8)
        assert bench.framebuffer.active
        assert damage.take()[0]


# --- saved


def test_a_session_goes_on_where_it_was_saved() -> None:
    """The record has no pixels: they are in the guest's memory."""
    bench = Bench().begin()
    assert bench.session.save() is not None
    assert bench.show(4, 3, depth=16, pitch=10, offset=2)
    bench.memory.write(AT + 2, b"\xff\xff")
    record = bench.session.save()
    assert record is not None
    other = Bench()
    other.memory.write(AT + 2, b"\xff\xff")
    other.session.restore(load(record))
    assert (other.framebuffer.width, other.framebuffer.height, other.framebuffer.active) == (4, 3, True)
    assert other.framebuffer.pixels(0, 0, 1, 1) == b"\xff\xff\xff\0"
    assert other.session.save() == record
    assert Bench().session.save() is None


@given(cut=st.integers(0, 40), flip=st.integers(0, 400))
def test_a_damaged_record_is_refused(cut: int, flip: int) -> None:
    """Whatever a file holds, the session is as a guest could have made it, or there is none."""
    bench = Bench(memory=2 << 20).begin()
    assert bench.show()
    record = bytearray(bench.session.save() or b"")
    if cut < len(record):
        del record[len(record) - cut :]
    if record:
        record[flip // 8 % len(record)] ^= 1 << flip % 8
    other = Bench(memory=2 << 20)
    try:
        other.session.restore(load(bytes(record)))
    except BadValue:
        return
    other.framebuffer.pixels(0, 0, other.framebuffer.width, other.framebuffer.height)
    if other.framebuffer.active:
        assert other.session.save() is not None


# --- all of it at random

WORDS = st.integers(0, 0xFFFFFFFF) | st.integers(0, 5000)
BYTES = st.integers(0, 255) | st.sampled_from([0, 1, 16, 32, 0xFF])
PLACES = st.sampled_from([0, AT, AT + 8, WINDOW_BASE, WINDOW_BASE + 0x1000, WINDOW_BASE + WINDOW_LENGTH, 1 << 63])
CORNERS = st.integers(-(1 << 31), (1 << 31) - 1) | st.integers(-10, 5000)


def told(kind: VideoType, make: Callable[..., p.Wire], *fields: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    """Messages of a kind, with these fields."""
    return st.builds(lambda *values: p.encode_message(kind, make(*values)), *fields)


def fair(width: int, height: int, depth: int) -> p.SituationUpdate:
    """A mode that a driver would choose."""
    return p.SituationUpdate(1, 1, 1, 0, depth, width, height, width * depth // 8)


MESSAGES = st.one_of(
    told(VideoType.VERSION_REQUEST, p.VideoVersionRequest, st.sampled_from([0x50003, 3, 4])),
    told(VideoType.VRAM_LOCATION, p.VramLocation, st.just(1), BYTES, PLACES),
    told(VideoType.SITUATION_UPDATE, p.SituationUpdate, st.just(1), st.just(1), *(BYTES, WORDS, BYTES, *[WORDS] * 3)),
    told(VideoType.SITUATION_UPDATE, fair, *[st.integers(1, 300)] * 2, st.sampled_from([16, 32])),
    told(VideoType.POINTER_POSITION, p.PointerPosition, BYTES, BYTES, CORNERS, CORNERS),
    st.builds(
        lambda count, corners: p.encode_message(VideoType.DIRT, p.Dirt(0, count), *[p.Rectangle(*c) for c in corners]),
        *(BYTES, st.lists(st.tuples(CORNERS, CORNERS, CORNERS, CORNERS), max_size=8)),
    ),
    st.builds(
        lambda fields, data: p.encode_message(VideoType.POINTER_SHAPE, p.PointerShape(*fields), data),
        *(st.tuples(BYTES, BYTES, WORDS, WORDS, WORDS, WORDS), st.binary(max_size=40)),
    ),
    st.builds(lambda kind, body: struct.pack("<II", kind, 0) + body, st.integers(0, 20), st.binary(max_size=40)),
)


@settings(deadline=None)
@given(messages=st.lists(MESSAGES, max_size=25), window=st.booleans(), looks=st.booleans())
def test_no_guest_makes_the_host_look_elsewhere(messages: list[bytes], window: bool, looks: bool) -> None:
    """Whatever a guest says, in whatever order: answers or a `WireError`, and a picture that can be read."""
    bench = Bench(window=window, memory=2 << 20)
    screen = bench.framebuffer
    with screen.watch() as damage:
        for message in messages:
            try:
                answer = bench.session.take(message)
            except WireError:
                bench.session.close()
                assert not screen.active
                continue
            if answer is not None:
                p.decode_message(answer)
            bench.session.feature_change()
            if looks:
                resized, rects = damage.take()
                assert resized or all(
                    0 <= r.x < r.right <= screen.width and 0 <= r.y < r.bottom <= screen.height for r in rects
                )
                for rect in rects[:2]:
                    assert len(screen.pixels(*rect)) == rect.width * rect.height * 4
    bench.session.close()
    if bench.window is not None:
        assert bench.window.block is None
    assert len(bench.refused) == bench.session.counters.refused


# --- the monitor


@pytest.mark.parametrize("mode", [(640, 480), (1024, 768), (1366, 768), (1920, 1080)])
def test_the_monitor_says_its_size(mode: tuple[int, int]) -> None:
    """128 bytes with the standard's header and sum, and the mode where drivers look for it."""
    block = edid(*mode)
    assert len(block) == 128
    assert sum(block) % 256 == 0
    assert block[:8] == bytes.fromhex("00ffffffffffff00")
    timing = block[54:72]
    assert (timing[2] | timing[4] >> 4 << 8, timing[5] | timing[7] >> 4 << 8) == mode
    refresh = int.from_bytes(timing[:2], "little") * 10_000
    whole = (mode[0] + timing[3]) * (mode[1] + timing[6])
    assert 59 < refresh / whole <= 60


@pytest.mark.skipif(shutil.which("edid-decode") is None, reason="no edid-decode (Debian: edid-decode)")
def test_the_monitor_is_one_to_others(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The tool that driver makers use finds nothing wrong with it."""
    file = tmp_path_factory.mktemp("edid") / "edid.bin"
    file.write_bytes(edid(1024, 768))
    done = subprocess.run(["edid-decode", "--check", file], capture_output=True, text=True, check=False)
    assert "EDID conformity: PASS" in done.stdout, done.stdout
    assert "1024x768" in done.stdout
