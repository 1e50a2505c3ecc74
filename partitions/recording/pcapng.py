"""pcapng blocks to and from bytes: what a recording needs of the format and no more. Root side.

A file is a row of blocks: type u32, total length u32, body padded to 4, total length again. Written are section header,
interface descriptions, enhanced packets, interface statistics and custom blocks, all little-endian. Reading takes
either byte order, knows nothing of what a body means, and never trusts a length.

After draft-ietf-opsawg-pcapng. The enterprise number is the one of RFC 5612 for examples, as this project has none.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Final, NamedTuple

ENTERPRISE: Final = 32473
"""Whose custom blocks and options ours are."""
MAGIC: Final = b"PTE1"
"""How they begin; others may use the same number."""
LONGEST_BLOCK: Final = 2 << 20
"""Bytes; the longest ring packet has half a mebibyte, so a larger block is damage."""
LONGEST_PAYLOAD: Final = 0xFFFF - 12
"""Bytes that an option can carry for us; a block carries more."""
TICKS: Final = 7
"""if_tsresol: ten to the minus seventh, the host's own 100 ns."""


class BlockType(enum.IntEnum):
    """Blocks that this module writes."""

    SECTION = 0x0A0D0D0A
    """The same in either byte order."""
    INTERFACE = 1
    STATISTICS = 5
    PACKET = 6
    CUSTOM = 0x0BAD
    HIDDEN = 0x80000BAD
    """The same in the numbers of local use, which others pass over without a word."""


class Opt(enum.IntEnum):
    """Options. Some numbers mean different things in different blocks."""

    END = 0
    COMMENT = 1
    NAME = 2
    """Of an interface."""
    FLAGS = 2
    """Of a packet."""
    APPLICATION = 4
    """Of a section."""
    RECEIVED = 4
    """Of statistics."""
    DROPPED = 5
    RESOLUTION = 9
    OFFSET = 14
    CUSTOM = 2989
    """Bytes under an enterprise's number, in any block."""


INBOUND, OUTBOUND = 1, 2
"""A packet's direction flags, as the root sees it."""

_HEAD = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_OPTION = struct.Struct("<HH")
_SECTION_BODY = struct.Struct("<IHHq")
_BYTE_ORDER = 0x1A2B3C4D
_INTERFACE_BODY = struct.Struct("<HHI")
_STATISTICS_BODY = struct.Struct("<III")
_PACKET_BODY = struct.Struct("<IIIII")
_NUMBER64 = struct.Struct("<Q")


# ----------------------------------------------------------------------------------------------------------- writing


def option(code: int, value: bytes) -> bytes:
    """One option, padded to 4. Longer values than 65,535 bytes are cut."""
    value = value[:0xFFFF]
    return _OPTION.pack(code, len(value)) + value + bytes(-len(value) % 4)


def custom_option(payload: bytes) -> bytes:
    """An option of ours, of `LONGEST_PAYLOAD` bytes at most."""
    return option(Opt.CUSTOM, _LENGTH.pack(ENTERPRISE) + _sized(payload))


def _block(kind: int, body: bytes) -> bytes:
    total = len(body) + 12
    return _HEAD.pack(kind, total) + body + _LENGTH.pack(total)


def _options(*made: bytes) -> bytes:
    return b"".join(made) + option(Opt.END, b"")


def section(application: str, facts: bytes) -> bytes:
    """The first block. `facts` is a payload of ours, or empty."""
    body = _SECTION_BODY.pack(_BYTE_ORDER, 1, 0, -1)
    made = [option(Opt.APPLICATION, application.encode())] + ([custom_option(facts)] if facts else [])
    return _block(BlockType.SECTION, body + _options(*made))


def interface(link_type: int, name: str, offset: int) -> bytes:
    """An interface whose times are in 100 ns since `offset`, in Unix seconds. They are numbered in their order."""
    return _block(
        BlockType.INTERFACE,
        _INTERFACE_BODY.pack(link_type, 0, 0)
        + _options(
            option(Opt.NAME, name.encode("utf-8", "backslashreplace")),
            option(Opt.RESOLUTION, bytes([TICKS])),
            option(Opt.OFFSET, offset.to_bytes(8, "little", signed=True)),
        ),
    )


def packet(interface_id: int, time: int, data: bytes, outbound: bool, *more: bytes) -> bytes:
    """A packet that was captured whole; `more` are options."""
    high, low = time >> 32 & 0xFFFFFFFF, time & 0xFFFFFFFF
    flags = option(Opt.FLAGS, _LENGTH.pack(OUTBOUND if outbound else INBOUND))
    body = _PACKET_BODY.pack(interface_id, high, low, len(data), len(data)) + data + bytes(-len(data) % 4)
    return _block(BlockType.PACKET, body + _options(*more, flags))


class PacketForm(NamedTuple):
    """Packets of one size: `pack(head, number, rest, tail)` is the block of one."""

    pack: Callable[[bytes, int, bytes, bytes], bytes]
    total: int
    size: int
    tail: bytes

    def head(self, interface_id: int, time: int, start: bytes) -> bytes:
        """What all those have in common that came at one time and begin with `start`."""
        return (
            _PACKET_HEAD.pack(
                BlockType.PACKET,
                self.total,
                interface_id,
                time >> 32 & 0xFFFFFFFF,
                time & 0xFFFFFFFF,
                self.size,
                self.size,
            )
            + start
        )


_PACKET_HEAD = struct.Struct("<7I")


@lru_cache(maxsize=1024)
def packet_form(start: int, rest: int, outbound: bool) -> PacketForm:
    """For packets of `start` bytes, a number of eight and `rest` bytes, each a multiple of 4, without further options.

    The same blocks as `packet` makes, for a tenth of the time; a shorter rest is padded by zeros.
    """
    size = start + 8 + rest
    model = packet(0, 0, bytes(size), outbound)
    tail = model[_PACKET_HEAD.size + size :]
    layout = struct.Struct(f"<{_PACKET_HEAD.size + start}sQ{rest}s{len(tail)}s")
    return PacketForm(layout.pack, len(model), size, tail)


def statistics(interface_id: int, time: int, received: int, dropped: int) -> bytes:
    """How many packets an interface had, and how many of them are not in the file, both from the beginning."""
    return _block(
        BlockType.STATISTICS,
        _STATISTICS_BODY.pack(interface_id, time >> 32 & 0xFFFFFFFF, time & 0xFFFFFFFF)
        + _options(
            option(Opt.RECEIVED, _NUMBER64.pack(received)),
            option(Opt.DROPPED, _NUMBER64.pack(dropped)),
        ),
    )


def custom(payload: bytes, kind: BlockType = BlockType.CUSTOM) -> bytes:
    """A block of ours, which other readers pass over or show as bytes."""
    size = len(payload)
    layout = _custom_layout(size)
    return layout.pack(kind, layout.size, ENTERPRISE, MAGIC, size, payload, layout.size)


@lru_cache(maxsize=1024)
def _custom_layout(size: int) -> struct.Struct:
    return struct.Struct(f"<III4sI{size}s{-size % 4}xI")


def _sized(payload: bytes) -> bytes:
    """With its length, since a block does not say where its padding begins."""
    return MAGIC + _LENGTH.pack(len(payload)) + payload


# ----------------------------------------------------------------------------------------------------------- reading


class Damage(ValueError):
    """No block can be here. `offset` is in bytes from the start of the file."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset = offset
        self.reason = reason


class Block(NamedTuple):
    """One whole block."""

    kind: int
    order: str
    """`<` or `>`: the byte order of its section."""
    offset: int
    """Of its first byte in the file."""
    body: bytes


class BlockReader:
    """Bytes in, whole blocks out. What is cut off waits for the rest."""

    def __init__(self) -> None:
        self._kept = b""
        self.offset = 0
        """Where the first block is that has not been given out."""
        self.order = "<"
        self._head = _HEAD
        self._length = _LENGTH

    @property
    def waiting(self) -> int:
        """Bytes of a block that is not whole yet."""
        return len(self._kept)

    def spans(self, data: bytes) -> tuple[bytes, list[tuple[int, int, int, int]], Damage | None]:
        """The blocks that are whole now, as a buffer and (type, offset in the file, start and end of the body in it).

        For those who look at many and want few. The byte order is that of the section that the blocks are in: a new
        section ends the row, and the rest comes with the next call. Damage comes after all blocks before it.
        """
        buffer = self._kept + data if self._kept else data
        found: list[tuple[int, int, int, int]] = []
        damage = None
        position, end, base = 0, len(buffer), self.offset
        head, length = self._head.unpack_from, self._length.unpack_from
        try:
            while position + 12 <= end:
                kind, total = head(buffer, position)
                if kind == BlockType.SECTION:
                    if found and position:
                        break
                    self._begin_section(buffer, position, base + position)
                    head, length = self._head.unpack_from, self._length.unpack_from
                    kind, total = head(buffer, position)
                if total < 12 or total & 3 or total > LONGEST_BLOCK:
                    raise Damage(base + position, f"a block of {total} bytes")
                stop = position + total
                if stop > end:
                    break
                if length(buffer, stop - 4)[0] != total:
                    raise Damage(base + position, "a block's two lengths differ")
                found.append((kind, base + position, position + 8, stop - 4))
                position = stop
        except Damage as error:
            damage = error
        self._kept = buffer[position:]
        self.offset = base + position
        return buffer, found, damage

    def feed(self, data: bytes) -> Iterator[Block]:
        """The blocks that are whole now. Raises `Damage` after the last good one."""
        while True:
            buffer, found, damage = self.spans(data)
            for kind, offset, start, stop in found:
                yield Block(kind, self.order, offset, buffer[start:stop])
            if damage is not None:
                raise damage
            if not found:
                return
            data = b""

    def _begin_section(self, buffer: bytes, position: int, offset: int) -> None:
        """Learn the byte order, which stands behind the length."""
        mark = buffer[position + 8 : position + 12]
        if mark == _BYTE_ORDER.to_bytes(4, "little"):
            self.order = "<"
        elif mark == _BYTE_ORDER.to_bytes(4, "big"):
            self.order = ">"
        else:
            raise Damage(offset, "a section header without a byte order")
        self._head = struct.Struct(self.order + "II")
        self._length = struct.Struct(self.order + "I")


def read_options(body: bytes, start: int, order: str) -> Iterable[tuple[int, bytes]]:
    """Codes and values from `start` to the end of a body; a value that is cut off ends them."""
    position = start
    while position + 4 <= len(body):
        code, length = struct.unpack_from(order + "HH", body, position)
        position += 4
        if code == Opt.END or position + length > len(body):
            return
        yield code, body[position : position + length]
        position += length + 3 & ~3


def own_payload(value: bytes, order: str) -> bytes | None:
    """What `custom` and `custom_option` were given; None if these bytes are somebody else's, or cut."""
    if len(value) < 12 or value[4:8] != MAGIC or struct.unpack_from(order + "I", value)[0] != ENTERPRISE:
        return None
    (length,) = _LENGTH.unpack_from(value, 8)
    return value[12 : 12 + length] if length <= len(value) - 12 else None
