"""The pure end of a VNC connection: handshakes, formats, encodings, sizes, and clients that mean no good."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from partitions.root.vnc import connection
from partitions.root.vnc.connection import Began, Key, Pointer, RfbConnection, State
from partitions.root.vnc.protocol import MAX_CUT_TEXT, PixelFormat, RfbError
from partitions.root.vnc.regions import MAX_RECTS
from tests.doubles import rfb
from tests.doubles.rfb import Viewer, client_format
from vsp_vsc.video.framebuffer import Framebuffer, Rect, Surface
from vsp_vsc.video.pixels import to_rgb

WIDTH, HEIGHT = 150, 100
FORMATS = {
    "the server's": client_format(32, (255, 255, 255), (16, 8, 0)),
    "TigerVNC's": client_format(32, (255, 255, 255), (0, 8, 16)),
    "high bytes": client_format(32, (255, 255, 255), (24, 16, 8)),
    "big-endian": client_format(32, (255, 255, 255), (16, 8, 0), big=True),
    "big-endian, high bytes": client_format(32, (255, 255, 255), (24, 16, 8), big=True),
    "deep": client_format(32, (1023, 1023, 1023), (20, 10, 0)),
    "565": client_format(16, (31, 63, 31), (11, 5, 0)),
    "555 big-endian": client_format(16, (31, 31, 31), (10, 5, 0), big=True),
    "332": client_format(8, (7, 7, 3), (0, 3, 6)),
    "64 colours": client_format(8, (3, 3, 3), (4, 2, 0)),
    "a map": client_format(8, (0, 0, 0), (0, 0, 0), depth=8, true_colour=False),
}


class Screen:
    """A screen in memory, with a picture on it."""

    def __init__(self, width: int = WIDTH, height: int = HEIGHT, seed: int = 1) -> None:
        self.framebuffer = Framebuffer(width, height)
        self.show(width, height, seed)

    def show(self, width: int, height: int, seed: int) -> None:
        chance = random.Random(seed)
        self.memory = bytearray(chance.randbytes(width * height * 4))
        half = bytes((10, 20, 30, 0)) * width
        self.memory[: len(half) * (height // 2)] = half * (height // 2)  # the upper half of one colour
        self.framebuffer.show(Surface.of_memory(width, height, self.memory))

    def expected(self, viewer: Viewer, maxima: tuple[int, int, int] = (255, 255, 255)) -> bytes:
        """What that viewer sees if all is well, in as many colours as it has."""
        pixels = self.framebuffer.pixels(0, 0, viewer.width, viewer.height)
        if maxima == (255, 255, 255):
            return to_rgb(pixels)
        out = bytearray()
        for at in range(0, len(pixels), 4):
            blue, green, red = pixels[at : at + 3]
            for value, maximum in zip((red, green, blue), maxima, strict=True):
                out.append(round((value * maximum + 127) // 255 * 255 / maximum))
        return bytes(out)


def talk(viewer: Viewer, server: RfbConnection, screen: Framebuffer) -> list[object]:
    """Until neither has anything to say; what the server heard."""
    heard: list[object] = []
    while True:
        said = viewer.sent()
        heard += server.feed(said)
        answer = bytes(server.output)
        server.output.clear()
        if server.due:
            answer += b"".join(server.updates(screen.pixels))
        viewer.feed(answer)
        if not said and not answer:
            return heard


def running(version: str = "003.008") -> tuple[Viewer, RfbConnection, Screen]:
    screen = Screen()
    viewer, server = Viewer(version), RfbConnection(WIDTH, HEIGHT, "desk")
    assert talk(viewer, server, screen.framebuffer) == [Began(shared=True)]
    return viewer, server, screen


@pytest.mark.parametrize(
    ("version", "taken"),
    [("003.003", "3.3"), ("003.007", "3.7"), ("003.008", "3.8"), ("003.005", "3.3"), ("003.889", "3.8")],
)
def test_versions(version: str, taken: str) -> None:
    """Three published ones; an unknown one is the first, one of the future the last."""
    if version == "003.005":
        server = RfbConnection(WIDTH, HEIGHT, "desk")
        assert list(server.feed(b"RFB 003.005\n")) == []
        assert bytes(server.output[12:]) == b"\0\0\0\1"
    elif version == "003.889":
        server = RfbConnection(WIDTH, HEIGHT, "desk")
        assert list(server.feed(b"RFB 003.889\n\1")) == []
        assert bytes(server.output[12:]) == b"\1\1\0\0\0\0"
    else:
        viewer, server, _ = running(version)
        assert (viewer.width, viewer.height, viewer.name) == (WIDTH, HEIGHT, "desk")
    assert server.version == taken


@pytest.mark.parametrize("version", ["003.003", "003.007", "003.008"])
def test_who_may_not_come_in_is_told_why(version: str) -> None:
    """In the form of each version, and the connection is over."""
    viewer, server = Viewer(version), RfbConnection(WIDTH, HEIGHT, "desk", refuse="16 clients are connected already")
    with pytest.raises(RfbError, match="16 clients"):
        talk(viewer, server, Framebuffer(1, 1))
    viewer.feed(bytes(server.output))
    assert viewer.refusal == "16 clients are connected already"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("encoding", [rfb.RAW, rfb.ZRLE])
def test_pictures_are_the_screens(name: str, encoding: int) -> None:
    """Pixel by pixel, in every format that viewers ask for, as it is and compressed; and once more after a change."""
    viewer, server, screen = running()
    viewer.set_format(FORMATS[name])
    viewer.set_encodings(encoding)
    viewer.ask(incremental=False)
    talk(viewer, server, screen.framebuffer)
    red, green, blue = (int.from_bytes(FORMATS[name][at : at + 2], "big") for at in (4, 6, 8))
    if red:
        assert viewer.picture == screen.expected(viewer, (red, green, blue))
    else:  # a map of colours has a test of its own
        assert len(set(viewer.picture)) > 3
    screen.show(WIDTH, HEIGHT, 2)
    server.changed([Rect(0, 0, WIDTH, HEIGHT)])
    viewer.ask()
    talk(viewer, server, screen.framebuffer)
    if red:
        assert viewer.picture == screen.expected(viewer, (red, green, blue))
    assert {rect[4] for rect in viewer.rects} == {encoding}


def test_a_map_of_colours() -> None:
    """A client without true colour gets the 256 colours of eight reds, eight greens and four blues, and uses them."""
    viewer, server, screen = running()
    viewer.set_format(FORMATS["a map"])
    viewer.ask(incremental=False)
    talk(viewer, server, screen.framebuffer)
    for x, y in ((0, 0), (75, 80), (149, 99)):
        blue, green, red = screen.framebuffer.pixels(x, y, 1, 1)[:3]
        for seen, meant, step in zip(viewer.pixel(x, y), (red, green, blue), (37, 37, 86), strict=True):
            assert abs(seen - meant) <= step / 2 + 1


def test_a_map_of_colours_that_is_wanted_without_end() -> None:
    """A client that wants it again and again, and reads nothing, has one waiting: else it fills the host's memory."""
    _viewer, server, _screen = running()
    wish = b"\0\0\0\0" + PixelFormat(8, 8, False, False).encode()
    list(server.feed(wish))
    once = len(server.output)
    assert once
    for _ in range(50):
        list(server.feed(wish * 200))
    assert len(server.output) == once
    server.output.clear()
    list(server.feed(wish))
    assert server.output


def test_nothing_is_sent_that_has_not_changed() -> None:
    """A picture comes when it was asked for and something has changed there; one request, one picture."""
    viewer, server, screen = running()
    viewer.ask(incremental=False)
    talk(viewer, server, screen.framebuffer)
    assert viewer.updates == 1
    viewer.ask()
    talk(viewer, server, screen.framebuffer)
    assert viewer.updates == 1
    server.changed([Rect(140, 90, 50, 50), Rect(0, 0, 1, 1)])
    talk(viewer, server, screen.framebuffer)
    assert viewer.updates == 2
    assert sorted(viewer.rects[-2:]) == [(0, 0, 1, 1, rfb.RAW), (140, 90, 10, 10, rfb.RAW)]
    server.changed([Rect(5, 5, 5, 5)])
    talk(viewer, server, screen.framebuffer)
    assert viewer.updates == 2, "nobody has asked"


def test_a_part_is_sent_where_a_part_was_asked_for() -> None:
    """What lies outside waits for who asks for it, and does not keep the server busy."""
    viewer, server, screen = running()
    viewer.ask(incremental=False)
    talk(viewer, server, screen.framebuffer)
    server.changed([Rect(10, 10, 50, 50)])
    viewer.ask(area=(0, 0, 20, 20))
    talk(viewer, server, screen.framebuffer)
    assert viewer.rects[-1] == (10, 10, 10, 10, rfb.RAW)
    viewer.ask(area=(0, 0, 20, 20))
    talk(viewer, server, screen.framebuffer)
    assert viewer.updates == 2
    viewer.ask()
    screen.show(WIDTH, HEIGHT, 9)
    talk(viewer, server, screen.framebuffer)
    assert sum(w * h for _, _, w, h, _ in viewer.rects[-2:]) == 50 * 50 - 100


@pytest.mark.parametrize("encoding", [rfb.DESKTOP_SIZE, rfb.EXTENDED_SIZE])
def test_screens_that_change_their_size(encoding: int) -> None:
    """A viewer that understands gets the new size and then a whole picture of it."""
    viewer, server, screen = running()
    viewer.set_encodings(rfb.ZRLE, encoding)
    viewer.ask(incremental=False)
    talk(viewer, server, screen.framebuffer)
    for width, height in ((64, 200), (300, 30), (WIDTH, HEIGHT)):
        screen.show(width, height, width)
        server.resized(width, height)
        viewer.ask()
        talk(viewer, server, screen.framebuffer)
        assert (viewer.width, viewer.height) == (width, height)
        viewer.ask()
        talk(viewer, server, screen.framebuffer)
        assert viewer.picture == screen.expected(viewer)


def test_a_viewer_that_knows_one_size_keeps_it() -> None:
    """It sees what has room, and black beside a screen that is smaller."""
    viewer, server, screen = running()
    screen.show(64, 200, 3)
    server.resized(64, 200)
    viewer.ask()
    talk(viewer, server, screen.framebuffer)
    assert (viewer.width, viewer.height) == (WIDTH, HEIGHT)
    assert viewer.picture == screen.expected(viewer)
    assert viewer.pixel(64, 0) == (0, 0, 0)


def test_a_wish_for_another_size_is_denied() -> None:
    """The guest decides; the answer says so, and the size that it is."""
    viewer, server, screen = running()
    viewer.set_encodings(rfb.RAW, rfb.EXTENDED_SIZE)
    viewer.ask(incremental=False)
    talk(viewer, server, screen.framebuffer)
    viewer.say(bytes((251, 0)) + b"\x02\x00\x01\x00" + b"\1\0" + bytes(16))
    viewer.ask()
    talk(viewer, server, screen.framebuffer)
    assert viewer.rects[-1] == (1, 1, WIDTH, HEIGHT, rfb.EXTENDED_SIZE)
    assert (viewer.width, viewer.height) == (WIDTH, HEIGHT)


def test_the_rest_of_an_old_picture_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A viewer that takes a picture without a count is not sent what is of no use any more."""
    monkeypatch.setattr(connection, "BAND_PIXELS", 64 * WIDTH)
    viewer, server, screen = running()
    viewer.set_encodings(rfb.RAW, rfb.LAST_RECT, rfb.DESKTOP_SIZE)
    talk(viewer, server, screen.framebuffer)
    viewer.ask(incremental=False)
    list(server.feed(viewer.sent()))
    pieces = server.updates(screen.framebuffer.pixels)
    viewer.feed(next(pieces) + next(pieces))
    screen.show(64, 64, 5)
    server.resized(64, 64)
    viewer.feed(b"".join(pieces))
    assert [rect[1:] for rect in viewer.rects] == [(0, WIDTH, 64, rfb.RAW), (0, 0, 0, rfb.LAST_RECT)]
    viewer.ask()
    talk(viewer, server, screen.framebuffer)
    viewer.ask()
    talk(viewer, server, screen.framebuffer)
    assert viewer.picture == screen.expected(viewer)


def test_a_client_that_changes_its_mind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that is on its way goes on as it began; the next is in the new format."""
    monkeypatch.setattr(connection, "BAND_PIXELS", 64 * WIDTH)
    viewer, server, screen = running()
    viewer.ask(incremental=False)
    list(server.feed(viewer.sent()))
    pieces = server.updates(screen.framebuffer.pixels)
    first = next(pieces) + next(pieces)
    assert list(server.feed(b"\0\0\0\0" + FORMATS["565"] + b"\2\0\0\1\0\0\0\x10")) == []
    viewer.feed(first + b"".join(pieces))
    assert viewer.picture == screen.expected(viewer)
    viewer.set_format(FORMATS["565"])
    viewer.ask()
    talk(viewer, server, screen.framebuffer)
    assert viewer.picture == screen.expected(viewer, (31, 63, 31))
    assert viewer.rects[-1][4] == rfb.ZRLE


def test_keys_and_pointers() -> None:
    """As they come, also by the key's own code once that was offered; text from the clipboard is passed over."""
    viewer, server, screen = running()
    viewer.set_encodings(rfb.RAW, rfb.QEMU_KEY)
    viewer.ask()
    talk(viewer, server, screen.framebuffer)
    assert viewer.took_keys
    viewer.key(0x61, down=True)
    viewer.say(b"\6\0\0\0" + (5).to_bytes(4, "big") + b"\4\1\0\0\0")  # it looks like a key
    viewer.say(b"\6\0\0\0" + (-3 & 0xFFFFFFFF).to_bytes(4, "big") + b"\4\1\0")
    viewer.xt_key(0x61, 0x1E, down=False)
    viewer.point(5, 10, 20)
    assert talk(viewer, server, screen.framebuffer) == [Key(0x61, True), Key(0x61, False, 0x1E), Pointer(5, 10, 20)]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"\1", "message type 1"),
        (b"\xfe", "message type 254"),
        (b"\xff\1", "QEMU message 1"),
        (b"\2\0\xff\xff", "65535 encodings"),
        (b"\6\0\0\0" + (MAX_CUT_TEXT + 1).to_bytes(4, "big"), "1048577 bytes of text"),
        (b"\6\0\0\0\x80\0\0\0", "2147483648 bytes of text"),
        (b"\0\0\0\0" + client_format(16, (0, 0, 0), (0, 0, 0), depth=8, true_colour=False), "a map of colours for"),
        (b"\0\0\0\0" + client_format(24, (255, 255, 255), (0, 8, 16)), "pixels of 24 bits"),
        (b"\0\0\0\0" + client_format(16, (255, 255, 255), (0, 8, 16)), "pixels of 16 bits with 24"),
        (b"\0\0\0\0" + client_format(32, (255, 255, 255), (0, 8, 30)), "from 0 to 255 at bit 30 of 32"),
        (b"\0\0\0\0" + client_format(32, (255, 200, 255), (0, 8, 16)), "from 0 to 200"),
        (b"\0\0\0\0" + client_format(32, (255, 255, 255), (0, 8, 255)), "at bit 255"),
    ],
)
def test_what_a_client_must_not_say(said: bytes, words: str) -> None:
    """It is named, and the connection is over."""
    _, server, _ = running()
    with pytest.raises(RfbError, match=words):
        list(server.feed(said))


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n", b"RFB 003.008\r", b"RFB 003x008\n", bytes(12)])
def test_what_is_no_vnc_client(said: bytes) -> None:
    """Its first twelve bytes say so."""
    server = RfbConnection(WIDTH, HEIGHT, "desk")
    with pytest.raises(RfbError, match="which is no version"):
        list(server.feed(said))


def test_a_security_that_was_not_offered() -> None:
    """A client of 3.8 is told why."""
    server = RfbConnection(WIDTH, HEIGHT, "desk")
    with pytest.raises(RfbError, match="security type 2"):
        list(server.feed(b"RFB 003.008\n\2"))
    assert bytes(server.output).endswith(b"that was not offered")


@given(st.lists(st.binary(max_size=300), max_size=10))
def test_any_bytes(pieces: list[bytes]) -> None:
    """Whatever comes once a client is in: keys, pointers, or one error; and no more is held than a message."""
    _, server, screen = running()
    try:
        for piece in pieces:
            for event in server.feed(piece):
                assert isinstance(event, Key | Pointer)
            if server.due:
                for _ in server.updates(screen.framebuffer.pixels):
                    pass
    except RfbError:
        pass
    assert len(server._held) <= 4096 + 300
    assert len(server._changed.rects) <= MAX_RECTS


@given(st.data())
def test_messages_in_any_pieces(data: st.DataObject) -> None:
    """How a stream is cut makes no difference."""
    viewer = Viewer()
    viewer.width, viewer.height = WIDTH, HEIGHT
    viewer.set_encodings(rfb.ZRLE, rfb.EXTENDED_SIZE, rfb.QEMU_KEY)
    viewer.key(0x41, down=True)
    viewer.say(b"\6\0\0\0" + (4).to_bytes(4, "big") + b"text")
    viewer.xt_key(0x41, 30, down=False)
    viewer.point(1, 2, 3)
    said = b"RFB 003.008\n\1\1" + viewer.sent()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=20)))
    server = RfbConnection(WIDTH, HEIGHT, "desk")
    heard: list[object] = []
    for start, end in zip([0, *cuts], [*cuts, len(said)], strict=True):
        heard += server.feed(said[start:end])
    assert heard == [Began(True), Key(0x41, True), Key(0x41, False, 30), Pointer(1, 2, 3)]
    assert server.state is State.RUNNING


class ViewerMachine(RuleBasedStateMachine):
    """A viewer that does as it likes while a screen changes: whenever it has all it asked for, it sees the screen."""

    def __init__(self) -> None:
        super().__init__()
        self.viewer, self.server, self.screen = running()
        self.seed = 10
        self.outstanding = False

    @rule(encodings=st.lists(st.sampled_from([0, 16, -223, -224, -258, -308, 5, 7]), max_size=8))
    def encodings(self, encodings: list[int]) -> None:
        self.viewer.set_encodings(*encodings)
        self.exchange()

    @rule(name=st.sampled_from(["the server's", "TigerVNC's", "high bytes"]))
    def format(self, name: str) -> None:
        if self.outstanding:
            return
        self.viewer.set_format(FORMATS[name])
        self.exchange()

    @rule(incremental=st.booleans())
    def ask(self, incremental: bool) -> None:
        self.viewer.ask(incremental=incremental)
        self.exchange()

    @rule(area=st.tuples(*[st.integers(0, 200)] * 4), incremental=st.booleans())
    def ask_for_a_part(self, area: tuple[int, int, int, int], incremental: bool) -> None:
        self.viewer.ask(area=area, incremental=incremental)
        self.exchange()

    @rule(rects=st.lists(st.tuples(*[st.integers(0, 160)] * 4), max_size=40))
    def change(self, rects: list[tuple[int, int, int, int]]) -> None:
        width, height = self.screen.framebuffer.width, self.screen.framebuffer.height
        for x, y, across, down in rects:
            self.seed += 1
            for row in range(y, min(y + down, height)):
                start, end = (row * width + min(x, width)) * 4, (row * width + min(x + across, width)) * 4
                self.screen.memory[start:end] = bytes((self.seed & 255, row, x, 0)) * ((end - start) // 4)
        self.server.changed([Rect(*rect) for rect in rects])
        self.exchange()

    @rule(width=st.integers(1, 200), height=st.integers(1, 200))
    def resize(self, width: int, height: int) -> None:
        self.seed += 1
        self.screen.show(width, height, self.seed)
        self.server.resized(width, height)
        self.exchange()

    def exchange(self) -> None:
        talk(self.viewer, self.server, self.screen.framebuffer)
        self.outstanding = self.server._wanted is not None

    @precondition(lambda self: not self.outstanding or not self.server.due)
    @rule()
    def look(self) -> None:
        for _ in range(3):
            self.viewer.ask()
            self.exchange()
        assert self.viewer.picture == self.screen.expected(self.viewer)

    @invariant()
    def is_bounded(self) -> None:
        assert len(self.server._changed.rects) <= MAX_RECTS
        assert self.viewer.idle


TestViewerMachine = ViewerMachine.TestCase
TestViewerMachine.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
