"""The real video VSP against the real VSC, over a real channel in plain memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from partitions.root.png import png_parts
from tests.doubles.pictures import read_png, rgb_of
from tests.doubles.storage import PlainPlatform, channel_pair
from tests.doubles.video import WINDOW_BASE, ScreenPair, screen_pair
from vmbus.pipe import frame, unframe
from vmbus.server.saved import CannotSave
from vsp_vsc.video import protocol as p
from vsp_vsc.video.framebuffer import Pointer, PointerPicture, Rect
from vsp_vsc.video.protocol import VideoType
from vsp_vsc.video.vsc import ModeRefused, Screen, open_video


def same_picture(pair: ScreenPair, screen: Screen) -> bool:
    """Whether the host sees what the guest has in its pages, pixel by pixel, also through a picture file."""
    framebuffer = pair.framebuffer
    pixels = framebuffer.pixels(0, 0, framebuffer.width, framebuffer.height)
    drawn = bytes(screen._memory[: screen.width * screen.height * 4])
    png = b"".join(png_parts(framebuffer.width, framebuffer.height, pixels))
    return (
        pixels == drawn
        and (framebuffer.width, framebuffer.height) == (screen.width, screen.height)
        and read_png(png) == (screen.width, screen.height, rgb_of(drawn))
    )


async def test_what_a_guest_draws_is_what_the_host_sees() -> None:
    """Rectangles, text, pictures and scrolling, with nobody told of any of it."""
    chance = random.Random(6)
    async with screen_pair(800, 600) as pair, open_video(pair.guest_end, pair.platform) as screen:
        assert (screen.version, screen.width, screen.height) == ((3, 5), 800, 600)
        assert screen.resolutions[0] == (800, 600)
        assert (1024, 768) in screen.resolutions
        for _ in range(60):
            x, y, width, height = (chance.randrange(-50, 800) for _ in range(4))
            match chance.randrange(4):
                case 0:
                    screen.fill(x, y, width, height, chance.randrange(1 << 24))
                case 1:
                    screen.text(x, y, "wörds " * 9, chance.randrange(1 << 24), chance.randrange(1 << 24))
                case 2:
                    screen.scroll(x, y, width, height, chance.randrange(40), chance.randrange(1 << 24))
                case _:
                    colours = [chance.randrange(1 << 24).to_bytes(4, "little") for _ in range(30 * 20)]
                    screen.blit(x, y, 30, 20, b"".join(colours))
        assert same_picture(pair, screen)
        assert pair.vsp.counters.dirt == 0
    assert pair.vsp.counters.refused == 0
    assert pair.stopped == []


async def test_16_bits_a_pixel() -> None:
    """A guest may keep half as much; the host shows it as it shows all."""
    async with screen_pair() as pair, open_video(pair.guest_end, pair.platform) as screen:
        await screen.set_mode(640, 480, depth=16)
        screen.fill(0, 0, 640, 480, 0xFF8000)
        assert pair.framebuffer.pixels(639, 479, 1, 1) == b"\x00\x82\xff\x00"
        screen.text(0, 0, "text", 0x0000FF, 0xFF0000)
        assert set(pair.framebuffer.pixels(0, 0, 32, 16)[0::4]) == {0, 255}


async def test_a_viewer_hears_what_changes() -> None:
    """All of it when it comes, then what was flushed; a guest without viewers says nothing."""
    async with screen_pair() as pair, open_video(pair.guest_end, pair.platform) as screen:
        screen.fill(0, 0, 10, 10, 1)
        await screen.flush()
        await trio.testing.wait_all_tasks_blocked()
        assert pair.vsp.counters.dirt == 0
        with pair.framebuffer.watch() as damage:
            await trio.testing.wait_all_tasks_blocked()
            assert screen.watched
            assert damage.take() == (True, [Rect(0, 0, 640, 480)])
            screen.fill(1, 2, 3, 4, 1)
            await trio.testing.wait_all_tasks_blocked()
            assert damage.take() == (False, [])
            screen.text(100, 100, "hello")
            await screen.flush()
            await damage.wait()
            assert damage.take() == (False, [Rect(1, 2, 3, 4), Rect(100, 100, 40, 16)])
            await screen.set_mode(800, 600)
            await damage.wait()
            assert damage.take() == (True, [Rect(0, 0, 800, 600)])
        await trio.testing.wait_all_tasks_blocked()
        assert not screen.watched
        before = pair.vsp.counters.messages
        screen.fill(0, 0, 10, 10, 1)
        await screen.flush()
        assert pair.vsp.counters.messages == before


async def test_a_viewer_that_was_there_first() -> None:
    """It waits for a guest that has not come yet, and is told of its size."""
    async with screen_pair(800, 600) as pair:
        with pair.framebuffer.watch() as damage:
            damage.take()
            async with open_video(pair.guest_end, pair.platform) as screen:
                await damage.wait()
                assert damage.take()[0]
                await trio.testing.wait_all_tasks_blocked()
                assert screen.watched
            pair.guest_end.close()
            pair.host_end.close(by_peer=True)
            await pair.ended.wait()
            assert damage.take() == (True, [Rect(0, 0, 800, 600)])
            assert not pair.framebuffer.active


async def test_modes_come_and_their_pages_go() -> None:
    """A larger one takes more pages and gives the old ones back; a smaller one is in the same; all go at the end."""
    async with screen_pair() as pair:
        free = pair.platform.free_count
        async with open_video(pair.guest_end, pair.platform) as screen:
            screen.fill(0, 0, 640, 480, 0xFFFFFF)
            for width, height in ((1024, 768), (640, 480), (1920, 1080)):
                await screen.set_mode(width, height)
                assert pair.framebuffer.pixels(0, 0, width, height) == bytes(width * height * 4)
                screen.text(width - 80, height - 16, "corner")
                assert same_picture(pair, screen)
            assert pair.platform.free_count == free - 1920 * 1080 * 4 // 4096
        assert pair.platform.free_count == free
        assert screen.width == 0
        screen.fill(0, 0, 9, 9, 1)  # a program that did not notice draws nowhere


async def test_modes_that_cannot_be(autojump_clock: trio.testing.MockClock) -> None:
    """The host is silent on what it does not take, and the screen is as it was; so where the guest has no pages."""
    async with screen_pair(memory=12 << 20) as pair, open_video(pair.guest_end, pair.platform) as screen:
        screen.fill(0, 0, 10, 10, 0x123456)
        free = pair.platform.free_count
        with pytest.raises(ModeRefused, match="not answered with SITUATION_UPDATE_ACK within 10 s"):
            await screen.set_mode(9000, 200)
        assert pair.vsp.counters.refused == 1
        with pytest.raises(ModeRefused, match="4000x3000: no 11719 adjacent pages"):
            await screen.set_mode(4000, 3000)
        assert pair.platform.free_count == free
        assert same_picture(pair, screen)
        await screen.set_mode(800, 600)
        assert same_picture(pair, screen)


async def test_a_pointer_of_the_guests() -> None:
    """Its place and picture are there for viewers that draw it; neither is among the pixels."""
    async with screen_pair() as pair, open_video(pair.guest_end, pair.platform) as screen:
        arrow = bytes(range(256)) * (96 * 96 * 4 // 256)
        await screen.set_pointer(96, 96, arrow, hot=(3, 4))
        await screen.move_pointer(-5, 700, visible=False)
        await trio.testing.wait_all_tasks_blocked()
        assert pair.framebuffer.pointer == Pointer(visible=False, x=-5, y=700)
        assert pair.framebuffer.pointer_picture == PointerPicture(96, 96, 3, 4, True, arrow)
        with pytest.raises(ValueError, match="97x1"):
            await screen.set_pointer(97, 1, bytes(97 * 4))


async def test_viewers_that_come_and_go_without_end() -> None:
    """A guest that does not read costs the host nothing: what it hears at last is how it is then."""
    async with screen_pair() as pair:
        for kind, body in (
            (VideoType.VERSION_REQUEST, p.VideoVersionRequest(0x50003)),
            (VideoType.VRAM_LOCATION, p.VramLocation(1, 1, 0x1000)),
            (VideoType.SITUATION_UPDATE, p.SituationUpdate(1, 1, 1, 0, 32, 4, 4, 16)),
        ):
            await pair.say(p.encode_message(kind, body))  # type: ignore[arg-type]
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(20_000):
            with pair.framebuffer.watch():
                pass
            await trio.lowlevel.checkpoint()
        with pair.framebuffer.watch():
            await trio.testing.wait_all_tasks_blocked()
            heard = []
            while batch := pair.heard():
                heard += batch
                await trio.testing.wait_all_tasks_blocked()
            assert heard[-1] == (VideoType.FEATURE_CHANGE, b"\1\1\1\1")


async def test_a_guest_that_asks_and_does_not_read() -> None:
    """The host stops taking its questions when the answers have no room, and goes on when they have."""
    async with screen_pair() as pair:
        await pair.say(p.encode_message(VideoType.VERSION_REQUEST, p.VideoVersionRequest(0x50003)))
        question = frame(p.encode_message(VideoType.RESOLUTION_REQUEST, p.ResolutionRequest(64)))
        asked = 0
        while sent := pair.guest_end.try_send_batch([question] * 64):
            asked += sent
            await trio.testing.wait_all_tasks_blocked()
        answered = 0
        while batch := pair.heard():
            answered += len(batch)
            await trio.testing.wait_all_tasks_blocked()
        assert answered == asked + 1
        assert pair.stopped == []


@pytest.mark.parametrize("message", [b"", b"\x63\0\0\0\0\0\0\0", bytes(64)], ids=len)
async def test_a_mistake_stops_the_channel_and_no_more(message: bytes) -> None:
    """It is traced with its words; the screen is off, and the next opening begins anew."""
    async with screen_pair() as pair, open_video(pair.guest_end, pair.platform):
        assert pair.framebuffer.active
        await pair.say(message)
        await pair.ended.wait()
        assert len(pair.stopped) == 1
        assert not pair.framebuffer.active
        assert [event.event for event in pair.events if event.event == "video_stopped"] == ["video_stopped"]


async def test_the_trace_tells_what_happens() -> None:
    """Versions, modes, and who looks, in words."""
    async with screen_pair() as pair, open_video(pair.guest_end, pair.platform):
        with pair.framebuffer.watch():
            await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
    said = [event.words for event in pair.events if event.event == "video_screen"]
    assert said == ["version 3.5, off", "version 3.5, 640x480", "somebody looks", "nobody looks any more"]


async def test_a_driver_that_is_stopped_while_it_draws(autojump_clock: trio.testing.MockClock) -> None:
    """The host closes the channel: the driver ends, its pages are free, and what is drawn later goes nowhere."""
    async with screen_pair() as pair:
        free = pair.platform.free_count
        with pytest.RaisesGroup(trio.EndOfChannel):
            async with open_video(pair.guest_end, pair.platform) as screen:
                pair.guest_end.close(by_peer=True)
                while True:
                    screen.fill(0, 0, 100, 100, 1)
                    await screen.flush()
                    await trio.sleep(0.01)
        assert pair.platform.free_count == free


async def test_saved_and_going_on() -> None:
    """The record of a session in RAM is enough for another VSP to show the same; one of the window's is refused."""
    async with screen_pair() as pair, open_video(pair.guest_end, pair.platform) as screen:
        screen.fill(5, 5, 9, 9, 0xFF00FF)
        record = pair.vsp.save(5)
        assert record is not None
        memory = bytes(pair.platform.memory)
    restored = pair.vsp.load(record)
    async with screen_pair(restored=restored) as other:
        other.platform.memory[:] = memory
        await trio.testing.wait_all_tasks_blocked()
        assert other.framebuffer.pixels(5, 5, 1, 1) == b"\xff\x00\xff\x00"
    async with screen_pair(window=True) as pair:
        await pair.say(p.encode_message(VideoType.VERSION_REQUEST, p.VideoVersionRequest(0x50003)))
        await pair.say(p.encode_message(VideoType.VRAM_LOCATION, p.VramLocation(1, 1, WINDOW_BASE)))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(CannotSave, match="not the VM's own"):
            pair.vsp.save(5)


# --- the driver against other hosts

Answer = Callable[[VideoType, bytes], list[bytes]]


async def drive(answer: Answer, platform: PlainPlatform) -> Screen:
    """Open the driver on a host that answers so; as it was when it had come up."""
    host_end, guest_end = channel_pair(p.RING_BYTES)

    async def host() -> None:
        while True:
            kind, body = p.decode_message(unframe(await host_end.receive()))
            for message in answer(kind, body):
                await host_end.send(frame(message))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(host)
        async with open_video(guest_end, platform) as screen:
            pass
        nursery.cancel_scope.cancel()
    return screen


def old_host(newest: tuple[int, int], asked: list[tuple[int, int]]) -> Answer:
    """Speaks 3.0 up to a version, and says more than it was asked."""

    def answer(kind: VideoType, body: bytes) -> list[bytes]:
        match kind:
            case VideoType.VERSION_REQUEST:
                packed = p.VideoVersionRequest.decode(body).version
                asked.append(p.unpack_version(packed))
                response = p.VideoVersionResponse(packed, int(p.unpack_version(packed) <= newest), 1)
                return [p.encode_message(VideoType.VERSION_RESPONSE, response)]
            case VideoType.RESOLUTION_REQUEST:
                return [p.encode_resolutions(bytes(128), [(640, 480), (800, 600)], 1)]
            case VideoType.VRAM_LOCATION:
                return [
                    p.encode_message(VideoType.FEATURE_CHANGE, p.FeatureChange(1, 1, 1, 1)),
                    p.encode_message(VideoType.SITUATION_UPDATE_ACK, p.VideoAck(0)),
                    p.encode_message(VideoType.VRAM_LOCATION_ACK, p.VideoAck(p.VramLocation.decode(body).user_context)),
                ]
            case VideoType.SITUATION_UPDATE:
                context = p.SituationUpdate.decode(body).user_context
                return [p.encode_message(VideoType.SITUATION_UPDATE_ACK, p.VideoAck(context))] * 3
            case _:
                return []

    return answer


@pytest.mark.parametrize(
    ("newest", "tries", "mode"),
    [((3, 5), 1, (800, 600)), ((3, 2), 4, (1024, 768)), ((3, 0), 5, (1024, 768))],
)
async def test_versions_from_the_highest_to_the_lowest(
    newest: tuple[int, int], tries: int, mode: tuple[int, int]
) -> None:
    """The first that the host takes; below 3.5 it has no list, and the driver a size of its own."""
    asked: list[tuple[int, int]] = []
    screen = await drive(old_host(newest, asked), PlainPlatform())
    assert asked == list(p.VERSIONS[:tries])
    assert screen.version == newest
    assert screen.resolutions == ([(800, 600), (640, 480)] if newest == (3, 5) else [])
    assert screen.watched


async def test_hosts_that_this_driver_cannot_use(autojump_clock: trio.testing.MockClock) -> None:
    """No version in common, no answer, or one that is not its own: an error with its reason, and no page is lost."""
    platform = PlainPlatform()
    free = platform.free_count
    fair = old_host((3, 5), [])

    def wrong(kind: VideoType, body: bytes) -> list[bytes]:
        acks = VideoType.VRAM_LOCATION, VideoType.SITUATION_UPDATE
        return [p.encode_message(VideoType(kind + 1), p.VideoAck(99))] if kind in acks else fair(kind, body)

    cases: list[tuple[Answer, str]] = [
        (old_host((2, 0), []), "no version of synthetic video"),
        (lambda kind, body: [], "not answered with VERSION_RESPONSE within 10 s"),
        (lambda kind, body: [struct_of(99)], "type 99"),
        (wrong, "confirms another"),
    ]
    for answer, words in cases:
        with pytest.raises(BaseExceptionGroup) as caught:
            await drive(answer, platform)
        assert words in str(_only(caught.value))
        assert platform.free_count == free


def struct_of(kind: int) -> bytes:
    return kind.to_bytes(4, "little") + bytes(4)


def _only(error: Any) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, BaseException)
    return error
