"""GPADLs: how a guest names its pages to the host, in one header message and as many bodies as needed. Both sides.

A GPADL (guest physical address descriptor list) is a sequence of 64-bit words: for each range one word with the byte
count (low half) and the offset into the first page (high half), then the page numbers. 27 words fit the header message
and 28 each body. Bodies name no channel and Linux numbers them all 0, so the order of arrival is all that joins them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec

from hypervisor.pages import PAGE_MASK, PAGE_SIZE, pages_for
from hypervisor.wire import BadValue, TooMany
from vmbus.protocol.messages import GpadlBody, GpadlHeader

HEADER_WORDS = 27
"""In GPADL_HEADER: (240 - 20) // 8; one range header and 26 page numbers."""

BODY_WORDS = 28
"""In GPADL_BODY: (240 - 16) // 8."""

MAX_WORDS = 0xFFFF // 8
"""`byte_length` has 16 bits: one range of at most 8,190 pages, 32 MB less 8 KiB."""


class GpadlRange(msgspec.Struct, frozen=True):
    """Bytes that lie in a list of guest pages."""

    byte_count: int
    byte_offset: int
    """Into the first page."""
    gpns: tuple[int, ...]
    """Guest page numbers, as many as the bytes touch; not checked against anybody's memory."""

    @property
    def whole_pages(self) -> bool:
        """Does it begin and end on page borders?"""
        return self.byte_offset == 0 and self.byte_count % PAGE_SIZE == 0


def page_range(gpns: Sequence[int]) -> GpadlRange:
    """Whole pages as one range."""
    return GpadlRange(len(gpns) * PAGE_SIZE, 0, tuple(gpns))


def encode_gpadl(channel_id: int, gpadl_id: int, ranges: Sequence[GpadlRange]) -> list[bytes]:
    """The messages that declare a GPADL, each as short as it can be. ValueError if the wire cannot say it."""
    words: list[int] = []
    for part in ranges:
        if len(part.gpns) != pages_for(part.byte_count, part.byte_offset):
            raise ValueError(f"{part.byte_count} bytes from {part.byte_offset} are not in {len(part.gpns)} pages")
        words.append(part.byte_offset << 32 | part.byte_count)
        words.extend(part.gpns)
    if len(words) > MAX_WORDS:
        raise ValueError(f"a GPADL of {len(words)} words, {MAX_WORDS} are the limit")
    first, rest = words[:HEADER_WORDS], words[HEADER_WORDS:]
    header = GpadlHeader(
        channel_id=channel_id, gpadl_id=gpadl_id, byte_length=8 * len(words), range_count=len(ranges)
    ).encode()
    body = GpadlBody(gpadl_id=gpadl_id).encode()
    encoded = [header + struct.pack(f"<{len(first)}Q", *first)]
    for start in range(0, len(rest), BODY_WORDS):
        piece = rest[start : start + BODY_WORDS]
        encoded.append(body + struct.pack(f"<{len(piece)}Q", *piece))
    return encoded


class GpadlAssembly:
    """What has arrived of a GPADL: begun by its header, fed with the tails of header and bodies."""

    __slots__ = ("_words", "expected_words", "range_count")

    def __init__(self, header: GpadlHeader) -> None:
        self.expected_words = header.byte_length // 8
        self.range_count = header.range_count
        self._words = bytearray()

    @property
    def complete(self) -> bool:
        """Are all words there?"""
        return len(self._words) >= 8 * self.expected_words

    @property
    def words(self) -> bytes:
        """What is there."""
        return bytes(self._words)

    def add(self, untrusted_tail: bytes) -> bool:
        """Take what one message carries: whole words, and no more than are missing. True when all are there."""
        missing = 8 * self.expected_words - len(self._words)
        self._words += untrusted_tail[: min(missing, len(untrusted_tail) & ~7)]
        return self.complete

    def ranges(self) -> tuple[GpadlRange, ...]:
        """The ranges, checked for sense but not against memory. Raises a `WireError`; trailing words are ignored."""
        assert self.complete
        return decode_ranges(bytes(self._words), self.range_count)


def decode_ranges(data: bytes, range_count: int) -> tuple[GpadlRange, ...]:
    """The ranges in a GPADL's words. Raises a `WireError`.

    Refused are: no range; a range of no bytes; an offset past the first page; an end past 32 bits; fewer page numbers
    than the bytes touch.
    """
    words = struct.unpack_from(f"<{len(data) // 8}Q", data)
    if range_count == 0:
        raise BadValue("GPADL without a range")
    if 2 * range_count > len(words):
        raise TooMany(f"GPADL: {range_count} ranges in {len(words)} words")
    ranges: list[GpadlRange] = []
    position = 0
    for _ in range(range_count):
        if position >= len(words):
            raise TooMany(f"GPADL: {range_count} ranges are not in {len(words)} words")
        byte_count, byte_offset = words[position] & 0xFFFF_FFFF, words[position] >> 32
        if byte_count == 0:
            raise BadValue("GPADL range of no bytes")
        if byte_offset > PAGE_MASK:
            raise BadValue(f"GPADL range begins {byte_offset:#x} bytes into its first page")
        if byte_offset + byte_count > 0xFFFF_FFFF:
            raise BadValue("GPADL range ends past 32 bits")
        pages = pages_for(byte_count, byte_offset)
        gpns = words[position + 1 : position + 1 + pages]
        if len(gpns) < pages:
            raise TooMany(f"GPADL range of {pages} pages, {len(gpns)} are named")
        ranges.append(GpadlRange(byte_count, byte_offset, gpns))
        position += 1 + pages
    return tuple(ranges)
