"""The calling convention: control words and result values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hypervisor.hypercall.abi import (
    FAST,
    CallCode,
    ControlWord,
    control_word,
    result_completed,
    result_status,
    result_value,
)
from hypervisor.status import HvStatus

U64 = st.integers(0, (1 << 64) - 1)
RESERVED = sum(1 << bit for bit in (*range(27, 31), *range(44, 48), *range(60, 64)))


@given(U64)
def test_every_value_is_a_word_or_has_a_reserved_bit(value: int) -> None:
    """Decoding never raises; it refuses exactly the reserved bits, and loses nothing of what it takes."""
    word = ControlWord.decode(value)
    assert (word is None) == bool(value & RESERVED)
    if word is not None:
        assert word.encode() == value
        assert 0 <= word.code <= 0xFFFF
        assert 0 <= word.start <= 0xFFF
        assert 0 <= word.count <= 0xFFF
        assert 0 <= word.header_qwords <= 0x3FF


@given(st.integers(0, 0xFFFF), st.booleans(), st.integers(0, 0xFFF), st.integers(0, 0xFFF))
def test_control_word_is_what_decode_takes_apart(code: int, fast: bool, count: int, start: int) -> None:
    value = control_word(code, fast=fast, count=count, start=start)
    assert ControlWord.decode(value) == ControlWord(code, fast, 0, False, count, start)


def test_what_linux_sends() -> None:
    """Recorded from its drivers: a slow post is 0x5C, a fast signal 0x1005D."""
    assert control_word(CallCode.POST_MESSAGE) == 0x5C
    assert CallCode.SIGNAL_EVENT | FAST == 0x1005D


def test_result_value() -> None:
    """Status in bits 15:0, completed reps in bits 43:32."""
    value = result_value(HvStatus.NO_RESOURCES, 0x123)
    assert value == 0x0000_0123_0000_001D
    assert result_status(value) is HvStatus.NO_RESOURCES
    assert result_completed(value) == 0x123
