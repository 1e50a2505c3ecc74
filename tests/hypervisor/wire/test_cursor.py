"""The checked reader of variable tails."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.wire import Cursor, ShortMessage, TooMany, WireError


def test_steps_read_in_order() -> None:
    cursor = Cursor(bytes(range(1, 32)))

    assert cursor.u16() == 0x0201
    assert cursor.u32() == 0x06050403
    assert cursor.u64() == 0x0E0D0C0B0A090807
    assert cursor.u64s(1, limit=1) == (0x161514131211100F,)
    assert cursor.take(2) == b"\x17\x18"
    assert cursor.remaining == 7
    assert cursor.rest() == bytes(range(25, 32))
    assert cursor.remaining == 0


def test_a_step_past_the_end_is_a_wire_error_and_moves_nothing() -> None:
    cursor = Cursor(bytes(6), 4)

    with pytest.raises(ShortMessage):
        cursor.u32()
    assert cursor.position == 4
    assert cursor.u16() == 0


def test_a_count_is_compared_with_its_limit_before_the_bytes() -> None:
    with pytest.raises(TooMany, match="1000000000 words, 512 are the limit"):
        Cursor(b"").u64s(1_000_000_000, limit=512)


@given(st.binary(max_size=64), st.lists(st.sampled_from(["u16", "u32", "u64", "words", "take"]), max_size=12))
def test_no_walk_leaves_the_snapshot(data: bytes, steps: list[str]) -> None:
    cursor = Cursor(data)
    for step in steps:
        try:
            match step:
                case "words":
                    cursor.u64s(3, limit=8)
                case "take":
                    cursor.take(5)
                case _:
                    getattr(cursor, step)()
        except WireError:
            pass
        assert 0 <= cursor.position <= len(data)
