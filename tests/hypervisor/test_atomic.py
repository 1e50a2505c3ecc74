"""Words of memory that two processors write: taken whole, and set without disturbing other bits."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor import atomic
from hypervisor.atomic import set_bits, take_word

WORD = st.integers(0, 0xFFFF_FFFF)


@given(WORD, WORD)
def test_set_and_take(first: int, second: int) -> None:
    """Bits are added; a take gives all of them and leaves zero; the neighbours stay."""
    view = memoryview(bytearray(b"\xaa" * 12))
    view[4:8] = first.to_bytes(4, "little")
    set_bits(view, 4, second)
    assert take_word(view, 4) == first | second
    assert take_word(view, 4) == 0
    assert bytes(view) == b"\xaa" * 4 + bytes(4) + b"\xaa" * 4


@pytest.mark.skipif(atomic._exchange is None, reason="libatomic is not here, and threads of this process share a lock")
def test_no_bit_is_lost_between_threads() -> None:
    """One thread sets bits outside the interpreter's lock, another takes them: each set is seen."""
    view = memoryview(bytearray(4))
    rounds, seen = 200, [0] * 32
    done = threading.Event()

    def writer() -> None:
        for number in range(rounds):
            bit = number % 32
            while view.cast("I")[0] >> bit & 1:
                pass
            set_bits(view, 0, 1 << bit)
        done.set()

    thread = threading.Thread(target=writer)
    thread.start()
    while not done.is_set() or view.cast("I")[0]:
        bits = take_word(view, 0)
        for bit in range(32):
            seen[bit] += bits >> bit & 1
    thread.join()
    assert sum(seen) == rounds
