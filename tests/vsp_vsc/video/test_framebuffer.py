"""The screen as the host sees it: pixels of every format, what is outside, and damage that stays small."""

from __future__ import annotations

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from vsp_vsc.video.framebuffer import MAX_RECTS, Damage, Framebuffer, Rect, Surface

RECTS = st.builds(Rect, st.integers(-5, 40), st.integers(-5, 40), st.integers(1, 30), st.integers(1, 30))


def shown(depth: int = 32) -> tuple[Framebuffer, bytearray]:
    """A screen of 4 by 3 and its memory."""
    memory = bytearray(4 * 3 * depth // 8)
    framebuffer = Framebuffer(1024, 768)
    framebuffer.show(Surface.of_memory(4, 3, memory, depth=depth))
    return framebuffer, memory


def points(rect: Rect) -> set[tuple[int, int]]:
    """Its pixels."""
    return {(x, y) for x in range(rect.x, rect.right) for y in range(rect.y, rect.bottom)}


def test_a_screen_that_is_off_is_black_and_keeps_its_size() -> None:
    """Before a guest has said anything, and after it has gone, there is a picture all the same."""
    framebuffer = Framebuffer(1024, 768)
    assert not framebuffer.active
    assert framebuffer.pixels(0, 0, 2, 2) == bytes(16)
    framebuffer.show(Surface.of_memory(4, 3, bytearray(b"\xff" * 48)))
    assert (framebuffer.width, framebuffer.height, framebuffer.active) == (4, 3, True)
    framebuffer.show(None)
    assert (framebuffer.width, framebuffer.height, framebuffer.active) == (4, 3, False)
    assert framebuffer.pixels(0, 0, 4, 3) == bytes(48)


def test_pixels_are_read_afresh_and_the_fourth_byte_is_zero() -> None:
    """What a guest draws without a word about it is in the next picture; what it leaves in the X byte is not."""
    framebuffer, memory = shown()
    memory[:] = bytes(range(48))
    rows = framebuffer.pixels(1, 1, 2, 2)
    assert rows == bytes((20, 21, 22, 0, 24, 25, 26, 0, 36, 37, 38, 0, 40, 41, 42, 0))
    memory[20:24] = b"\xaa\xbb\xcc\xdd"
    assert framebuffer.pixels(1, 1, 1, 1) == b"\xaa\xbb\xcc\0"


def test_every_16_bit_colour_is_its_32_bit_one() -> None:
    """Full is full, none is none, and each channel's high bits are repeated below them."""
    memory = bytearray(2 * 65536)
    memoryview(memory).cast("H")[:] = memoryview(b"".join(n.to_bytes(2, "little") for n in range(65536))).cast("H")
    framebuffer = Framebuffer(1, 1)
    framebuffer.show(Surface.of_memory(256, 256, memory, depth=16))
    pixels = framebuffer.pixels(0, 0, 256, 256)
    for colour in range(65536):
        red, green, blue = colour >> 11, colour >> 5 & 63, colour & 31
        expected = bytes((blue << 3 | blue >> 2, green << 2 | green >> 4, red << 3 | red >> 2, 0))
        assert pixels[4 * colour : 4 * colour + 4] == expected


@given(rect=st.builds(Rect, *[st.integers(-6, 6)] * 2, *[st.integers(0, 12)] * 2), depth=st.sampled_from((16, 32)))
def test_what_is_asked_for_outside_is_black(rect: Rect, depth: int) -> None:
    """The answer has the size of the question, whatever the screen has become meanwhile."""
    framebuffer, memory = shown(depth)
    memory[:] = b"\xff" * len(memory)
    rows = framebuffer.pixels(*rect)
    assert len(rows) == 4 * rect.width * rect.height
    inside = points(Rect(0, 0, 4, 3))
    for row in range(rect.height):
        for column in range(rect.width):
            at = 4 * (row * rect.width + column)
            white = (rect.x + column, rect.y + row) in inside
            assert rows[at : at + 4] == (b"\xff\xff\xff\0" if white else bytes(4))


def test_memory_that_has_gone_is_black() -> None:
    """A guest that takes its frame buffer away leaves a black screen, and no exception."""
    framebuffer = Framebuffer(1, 1)
    framebuffer.show(Surface(4, 3, 16, 32, lambda offset, length: None))
    assert framebuffer.pixels(0, 0, 4, 3) == bytes(48)


def test_who_looks_hears_of_it_all() -> None:
    """Each viewer has damage of its own, which begins with the whole screen; the device is told of first and last."""
    framebuffer, _ = shown()
    told: list[bool] = []
    framebuffer.on_watched = told.append
    framebuffer.changed([Rect(0, 0, 1, 1)])
    with framebuffer.watch() as one:
        assert one.take() == (True, [Rect(0, 0, 4, 3)])
        with framebuffer.watch() as two:
            framebuffer.changed([Rect(3, 2, 9, 9), Rect(-1, 0, 2, 1), Rect(4, 0, 5, 5)])
            assert one.take() == (False, [Rect(3, 2, 1, 1), Rect(0, 0, 1, 1)])
            assert one.take() == (False, [])
            framebuffer.show(Surface.of_memory(2, 2, bytearray(16)))
            assert one.take() == two.take() == (True, [Rect(0, 0, 2, 2)])
        assert told == [True]
    assert told == [True, False]


@given(rects=st.lists(RECTS, max_size=60))
def test_damage_is_bounded_and_forgets_nothing(rects: list[Rect]) -> None:
    """However many rectangles a guest names, few are kept, and they cover all that it named."""
    damage = Damage()
    for rect in rects:
        damage.add(rect)
        assert len(damage._rects) <= MAX_RECTS
    resized, kept = damage.take()
    assert not resized
    assert set().union(*map(points, rects)) <= set().union(*map(points, kept))
    around = [min(r.x for r in rects), max(r.right for r in rects)] if rects else [0, 0]
    assert all(around[0] <= rect.x and rect.right <= around[1] for rect in kept)


async def test_a_viewer_sleeps_until_something_changes() -> None:
    """`wait` returns for damage that came before it, and not for damage that was taken."""
    damage = Damage()
    damage.add(Rect(0, 0, 1, 1))
    await damage.wait()
    damage.take()
    woken = trio.Event()

    async def look() -> None:
        await damage.wait()
        woken.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await trio.testing.wait_all_tasks_blocked()
        assert not woken.is_set()
        damage.resize(2, 2)
        await woken.wait()
