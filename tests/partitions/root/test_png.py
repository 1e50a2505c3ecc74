"""Pictures that other programs can read, pixel for pixel."""

from __future__ import annotations

import random

import pytest

from partitions.root.png import png_parts
from tests.doubles.pictures import read_png


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (640, 480), (65, 129)])
def test_a_picture_comes_back_as_it_was(size: tuple[int, int]) -> None:
    """Pillow decodes it; red is red, and the byte that means nothing is gone."""
    width, height = size
    pixels = random.Random(width).randbytes(width * height * 4)
    rgb = b"".join(bytes((pixels[at + 2], pixels[at + 1], pixels[at])) for at in range(0, len(pixels), 4))
    assert read_png(b"".join(png_parts(width, height, pixels))) == (width, height, rgb)


def test_the_work_is_done_in_pieces() -> None:
    """Nobody waits for a large picture as a whole, and one of a single colour is small."""
    parts = list(png_parts(1024, 768, bytes(1024 * 768 * 4)))
    assert len(parts) >= 768 // 64
    assert sum(map(len, parts)) < 10_000
