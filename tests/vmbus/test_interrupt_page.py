"""The interrupt page of the oldest versions: which half is whose, and that no bit is lost or invented."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from hypervisor.pages import PAGE_SIZE
from vmbus.interrupt_page import HALF, InterruptPage

CHANNELS = st.lists(st.integers(0, 2047))


def both() -> tuple[memoryview, InterruptPage, InterruptPage]:
    view = memoryview(bytearray(PAGE_SIZE))
    return view, InterruptPage(view, host=True), InterruptPage(view, host=False)


def test_each_half_has_one_writer() -> None:
    """The host's bits are in the first 2,048 bytes, the guest's in the others; bit n is byte n / 8, from the lowest."""
    view, host, guest = both()
    host.set(1)
    host.set(2047)
    guest.set(40)
    expected = bytearray(PAGE_SIZE)
    expected[0] = 0x02
    expected[255] = 0x80
    expected[HALF + 5] = 0x01
    assert bytes(view) == bytes(expected)
    assert guest.take() == [1, 2047]
    assert host.take() == [40]
    assert bytes(view) == bytes(PAGE_SIZE)


@given(CHANNELS, CHANNELS)
def test_what_one_sets_the_other_takes_once(mine: list[int], yours: list[int]) -> None:
    """In order, without repeats, and neither way disturbs the other."""
    _, host, guest = both()
    for channel in mine:
        host.set(channel)
    for channel in yours:
        guest.set(channel)
    assert guest.take() == sorted(set(mine))
    assert host.take() == sorted(set(yours))
    assert guest.take() == host.take() == []


@given(st.integers(0, 1 << 32))
def test_any_page_is_a_list_of_channels(seed: int) -> None:
    """What a peer wrote comes to IDs below 2,048; bits beyond them are not looked at and not touched."""
    raw = Random(seed).randbytes(PAGE_SIZE)
    view = memoryview(bytearray(raw))
    found = InterruptPage(view, host=True).take()
    bits = int.from_bytes(raw[HALF : HALF + 256], "little")
    assert found == [channel for channel in range(2048) if bits >> channel & 1]
    assert bytes(view) == raw[:HALF] + bytes(256) + raw[HALF + 256 :]
