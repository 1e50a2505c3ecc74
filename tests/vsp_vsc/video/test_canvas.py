"""Drawing into a frame buffer: what is drawn, what is cut off, what is told, and letters that can be read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsp_vsc.video import font
from vsp_vsc.video.canvas import Canvas, encode_colour
from vsp_vsc.video.protocol import MAX_RECTANGLES
from vsp_vsc.video.terminal import Terminal

WIDTH, HEIGHT = 40, 32
SIDES = st.integers(-50, 50)


def canvas(width: int = WIDTH, height: int = HEIGHT, depth: int = 32) -> tuple[Canvas, bytearray]:
    """One and its memory, with a margin that nobody may touch."""
    memory = bytearray(width * height * depth // 8 + 64)
    memory[-64:] = b"\xee" * 64
    return Canvas(memoryview(memory)[:-64], width, height, depth), memory


def colour_at(memory: bytearray, x: int, y: int, width: int = WIDTH) -> int:
    at = 4 * (y * width + x)
    return int.from_bytes(memory[at : at + 4], "little")


@given(x=SIDES, y=SIDES, width=SIDES, height=SIDES, depth=st.sampled_from((16, 32)))
def test_what_is_filled_and_told(x: int, y: int, width: int, height: int, depth: int) -> None:
    """Exactly the pixels that are inside, and a rectangle around exactly them."""
    drawn, memory = canvas(depth=depth)
    drawn.fill(x, y, width, height, 0xFFFFFF)
    size = depth // 8
    inside = {
        (column, row)
        for row in range(max(y, 0), min(y + height, HEIGHT))
        for column in range(max(x, 0), min(x + width, WIDTH))
    }
    white = encode_colour(0xFFFFFF, depth)
    found = {
        (at // size % WIDTH, at // size // WIDTH)
        for at in range(0, WIDTH * HEIGHT * size, size)
        if memory[at : at + size] == white
    }
    assert found == inside
    assert memory[-64:] == b"\xee" * 64
    told = [
        (column, row)
        for r in drawn.take_changes()
        for row in range(r.top, r.bottom)
        for column in range(r.left, r.right)
    ]
    assert sorted(told) == sorted(inside)


@given(x=SIDES, y=SIDES, width=st.integers(1, 30), height=st.integers(1, 30))
def test_a_picture_is_cut_off_at_the_edges(x: int, y: int, width: int, height: int) -> None:
    """Each of its pixels is where it belongs, or nowhere."""
    drawn, memory = canvas()
    colours = [0x010000 + number for number in range(width * height)]
    drawn.blit(x, y, width, height, b"".join(colour.to_bytes(4, "little") for colour in colours))
    for number, colour in enumerate(colours):
        column, row = x + number % width, y + number // width
        if 0 <= column < WIDTH and 0 <= row < HEIGHT:
            assert colour_at(memory, column, row) == colour
    assert memory[-64:] == b"\xee" * 64
    assert sum(memory[at : at + 4] != bytes(4) for at in range(0, 4 * WIDTH * HEIGHT, 4)) <= len(colours)


@given(x=SIDES, y=SIDES, width=st.integers(0, 30), height=st.integers(0, 30), depth=st.sampled_from((16, 32)))
def test_what_is_read_can_be_put_back(x: int, y: int, width: int, height: int, depth: int) -> None:
    """Under a pointer, say; what is outside reads as zeros."""
    drawn, memory = canvas(depth=depth)
    memory[:-64] = bytes(number % 251 + 1 for number in range(len(memory) - 64))
    before = bytes(memory)
    pixels = drawn.read(x, y, width, height)
    drawn.fill(x, y, width, height, 0)
    assert drawn.read(x, y, width, height) == bytes(len(pixels))
    drawn.blit(x, y, width, height, pixels)
    assert memory == before


def test_a_picture_of_another_size_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="2x2 pixels are 16 bytes, not 15"):
        canvas()[0].blit(0, 0, 2, 2, bytes(15))


@pytest.mark.parametrize(
    ("colour", "depth", "data"),
    [
        (0x123456, 32, b"\x56\x34\x12\0"),
        (0xFF0000, 16, b"\x00\xf8"),
        (0x00FF00, 16, b"\xe0\x07"),
        (0x0000FF, 16, b"\x1f\0"),
    ],
)
def test_colours(colour: int, depth: int, data: bytes) -> None:
    """Red is high, blue is low."""
    assert encode_colour(colour, depth) == data


def picture(memory: bytearray, x: int, y: int, columns: int = 8, rows: int = 16) -> list[str]:
    """A part of it in letters."""
    return [
        "".join("#" if colour_at(memory, x + column, y + row) else "." for column in range(columns))
        for row in range(rows)
    ]


def test_a_letter_is_that_letter() -> None:
    """An A and an umlaut as people know them, with room above and below."""
    drawn, memory = canvas()
    drawn.text(8, 16, "AÄ", 0xFFFFFF)
    letter = picture(memory, 8, 16)
    assert letter == [
        "........", "........", "........", "...##...", "..#..#..", ".#....#.", ".#....#.", ".#....#.",
        ".######.", ".#....#.", ".#....#.", ".#....#.", "........", "........", "........", "........",
    ]  # fmt: skip
    assert picture(memory, 16, 16) != letter
    (told,) = drawn.take_changes()
    assert (told.left, told.top, told.right, told.bottom) == (8, 16, 24, 32)


def test_letters_that_do_not_fit_are_left_out() -> None:
    """Whole letters only: on the left, on the right, above and below."""
    drawn, memory = canvas()
    drawn.text(-9, 0, "##AB", 0xFFFFFF)  # begins in the middle of the second
    assert picture(memory, 7, 0) == picture_of("A")
    assert picture(memory, 0, 0, 7) == ["......."] * 16
    before = bytes(memory)
    drawn.text(0, 17, "A")
    drawn.text(0, -1, "A")
    drawn.text(33, 0, "A")
    drawn.text(-99, 0, "A")
    drawn.text(0, 0, "")
    assert memory == before


def picture_of(letter: str) -> list[str]:
    return [f"{row:08b}".replace("0", ".").replace("1", "#") for row in font.glyph(letter)]


def test_every_letter_has_a_picture_of_its_own() -> None:
    """ASCII, Latin-1 and those for frames; what the font has not is a question mark."""
    letters = [chr(code) for code in (*range(0x20, 0x7F), *range(0xA1, 0x100))] + list(font._DRAWN)
    glyphs = [font.glyph(letter) for letter in letters]
    assert all(len(glyph) == 16 for glyph in glyphs)
    assert font.glyph(" ") == font.glyph("\xa0") == bytes(16)
    # These look the same in it: a hyphen and a soft one.
    assert len(set(glyphs)) >= len(letters) - 4
    assert font.glyph("漢") == font.glyph("\n") == font.glyph("\x7f") == font.glyph("?")
    line = font.glyph("│")
    assert set(line) == {line[0]}, "lines meet above and below"


def test_scrolling_moves_rows_up() -> None:
    """Of a part, or of all; what comes in is of one colour, and a long way is all of it."""
    for left, width in ((0, WIDTH), (4, 8)):
        drawn, memory = canvas()
        for row in range(HEIGHT):
            drawn.fill(0, row, WIDTH, 1, row + 1)
        drawn.scroll(left, 2, width, 20, 5, 0xAA)
        column = [colour_at(memory, left, row) for row in range(HEIGHT)]
        assert column == [1, 2, *range(8, 23), *[0xAA] * 5, *range(23, 33)]
        outside = [colour_at(memory, 39, row) for row in range(HEIGHT)]
        assert (outside == column) is (width == WIDTH)
        drawn.scroll(left, 0, width, HEIGHT, 999, 0xBB)
        assert {colour_at(memory, left, row) for row in range(HEIGHT)} == {0xBB}
        drawn.scroll(left, 0, width, HEIGHT, 0)
        assert memory[-64:] == b"\xee" * 64


def test_what_was_drawn_is_told_once_and_in_few_words() -> None:
    """What is inside what is told already is not told again, and what is too much becomes one."""
    drawn, _ = canvas(800, 4)
    drawn.fill(0, 0, 10, 4, 1)
    drawn.fill(2, 2, 3, 1, 1)
    assert len(drawn.take_changes()) == 1
    assert drawn.take_changes() == []
    for number in range(MAX_RECTANGLES + 1):
        drawn.fill(3 * number, number % 4, 2, 1, 1)
    (whole,) = drawn.take_changes()
    assert (whole.left, whole.top, whole.right, whole.bottom) == (0, 0, 3 * MAX_RECTANGLES + 2, 4)
    drawn.close()
    drawn.fill(0, 0, 10, 10, 1)
    drawn.text(0, 0, "gone")
    drawn.scroll(0, 0, 10, 10, 1)
    drawn.blit(0, 0, 1, 1, bytes(4))
    assert drawn.take_changes() == []


# --- the terminal


def lines(memory: bytearray, columns: int, rows: int, width: int) -> list[str]:
    """What can be read on it: every cell against every letter."""
    known = {font.glyph(chr(code)): chr(code) for code in range(0x20, 0x7F)}
    text = []
    for row in range(rows):
        cells = []
        for column in range(columns):
            cell = bytes(
                sum(0x80 >> x for x in range(8) if colour_at(memory, 8 * column + x, 16 * row + y, width) and y < 14)
                for y in range(16)
            )  # the last two rows may be the cursor's
            cells.append(known.get(cell, "~"))
        text.append("".join(cells).rstrip())
    return text


def test_a_terminal_writes_wraps_and_scrolls() -> None:
    """As one expects of a screen of text."""
    drawn, memory = canvas(80, 48)
    terminal = Terminal(drawn)
    assert (terminal.columns, terminal.rows) == (10, 3)
    terminal.print("one", 2)
    terminal.write("a\tb")
    assert lines(memory, 10, 3, 80) == ["one 2", "a       b", ""]
    terminal.write("\rX\b\bY\n0123456789")
    assert lines(memory, 10, 3, 80) == ["one 2", "Y       b", "0123456789"]
    terminal.write("+")
    assert lines(memory, 10, 3, 80) == ["Y       b", "0123456789", "+"]
    terminal.print("\n\nend", end="")
    assert lines(memory, 10, 3, 80) == ["+", "", "end"]
    terminal.write("\x07\x1b\0")
    assert lines(memory, 10, 3, 80)[2] == "end"
    assert (terminal.row, terminal.column) == (2, 3)
    terminal.clear()
    assert lines(memory, 10, 3, 80) == ["", "", ""]


@given(st.lists(st.text(st.sampled_from("ab\n\t\r\b é漢\x00"), max_size=30), max_size=6))
def test_a_terminal_stays_in_its_place(texts: list[str]) -> None:
    """Whatever is written, the cursor is on it, and nothing beside it changes."""
    drawn, memory = canvas(80, 80)
    drawn.fill(0, 0, 80, 80, 0x123456)
    terminal = Terminal(drawn, 8, 16, 7, 3)
    for text in texts:
        terminal.write(text)
        assert 0 <= terminal.row < 3
        assert 0 <= terminal.column <= 7
    for y in range(80):
        for x in range(80):
            inside = 8 <= x < 64 and 16 <= y < 64
            assert inside or colour_at(memory, x, y, 80) == 0x123456
