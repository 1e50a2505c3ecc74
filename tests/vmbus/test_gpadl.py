"""GPADLs: encoding, assembly, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.pages import PAGE_SIZE, pages_for
from hypervisor.wire import WireError
from vmbus.gpadl import MAX_WORDS, GpadlAssembly, GpadlRange, decode_ranges, encode_gpadl, page_range
from vmbus.protocol.messages import GpadlBody, GpadlHeader

GPNS = st.integers(0, 2**64 - 1)


@st.composite
def ranges(draw: st.DrawFn) -> GpadlRange:
    offset = draw(st.integers(0, PAGE_SIZE - 1))
    count = draw(st.integers(1, 100 * PAGE_SIZE))
    pages = pages_for(count, offset)
    return GpadlRange(count, offset, tuple(draw(st.lists(GPNS, min_size=pages, max_size=pages))))


def assemble(messages: list[bytes]) -> tuple[GpadlRange, ...]:
    """What a host makes of the messages."""
    assembly = GpadlAssembly(GpadlHeader.decode(messages[0]))
    done = assembly.add(messages[0][GpadlHeader.SIZE :])
    for body in messages[1:]:
        assert not done, "no body is sent in vain"
        done = assembly.add(body[GpadlBody.SIZE :])
    assert done
    return assembly.ranges()


@given(st.lists(ranges(), min_size=1, max_size=4))
def test_what_a_guest_encodes_a_host_assembles(wanted: list[GpadlRange]) -> None:
    messages = encode_gpadl(5, 0xE1E10, wanted)
    assert assemble(messages) == tuple(wanted)
    assert all(len(message) <= 240 for message in messages)


@pytest.mark.parametrize(("pages", "sizes"), [(1, [36]), (26, [236]), (27, [236, 24]), (100, [236, 240, 240, 160])])
def test_messages_are_full_and_the_last_is_as_short_as_can_be(pages: int, sizes: list[int]) -> None:
    assert [len(message) for message in encode_gpadl(1, 2, [page_range(range(pages))])] == sizes


def test_the_wire_can_say_8190_pages_and_no_more() -> None:
    """The length of all words is 16 bits."""
    assert len(assemble(encode_gpadl(1, 2, [page_range(range(8190))]))[0].gpns) == MAX_WORDS - 1
    with pytest.raises(ValueError, match="limit"):
        encode_gpadl(1, 2, [page_range(range(8191))])


def test_a_range_must_have_its_pages() -> None:
    """A caller's mistake, found before it is on the wire."""
    with pytest.raises(ValueError, match="not in"):
        encode_gpadl(1, 2, [GpadlRange(4097, 0, (1,))])


@given(st.binary(max_size=256), st.integers(0, 0xFFFF))
def test_any_words_decode_or_raise_a_wire_error(data: bytes, count: int) -> None:
    try:
        decoded = decode_ranges(data, count)
    except WireError:
        return
    assert len(decoded) == count > 0
    for part in decoded:
        assert len(part.gpns) == pages_for(part.byte_count, part.byte_offset) > 0


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.lists(st.binary(max_size=224), max_size=40))
def test_an_assembly_never_holds_more_than_was_announced(length: int, count: int, tails: list[bytes]) -> None:
    assembly = GpadlAssembly(GpadlHeader(byte_length=length, range_count=count))
    for tail in tails:
        assembly.add(tail)
        assert len(assembly._words) <= length
        assert assembly.complete == (len(assembly._words) == length // 8 * 8)
