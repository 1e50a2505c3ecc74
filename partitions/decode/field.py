"""A tree of fields over bytes, and how a declared layout becomes one. Root side.

Children lie within their parent and cover it without a gap, in the order of their offsets; only a field with `bits` is
a part of the same bytes as its neighbours. So a tree accounts for each byte once, and whoever shows it can colour a
hexdump by it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from hypervisor.wire import Guid, Wire

Value: TypeAlias = int | str | bytes | None


class Field(msgspec.Struct, omit_defaults=True):
    """Some bytes, what they are called, and what they mean."""

    name: str
    """As the layout's declaration has it: stable."""
    offset: int
    """Bytes from the start of the unit."""
    size: int
    """Bytes that are there."""
    value: Value = None
    """A number, a text (a GUID, a string), plain bytes; None for a group and for what is cut off."""
    words: str = ""
    """For people: `EXECUTE_SRB`, `READ(10) lba=0 blocks=8`."""
    children: list[Field] = []
    bits: str = ""
    """`7:4` or `7` where it is only these bits of the bytes, counted from the least significant one of the number."""
    fault: str = ""
    """What is wrong here; empty where nothing is."""

    @property
    def end(self) -> int:
        """Where the bytes behind it begin."""
        return self.offset + self.size

    def walk(self) -> Iterator[Field]:
        """This field and all below, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def find(self, path: str) -> Field | None:
        """The field at `payload.srb.cdb`, names from here down; None where there is none."""
        found: Field | None = self
        for name in path.split("."):
            found = next((child for child in found.children if child.name == name), None) if found else None
        return found

    @property
    def faults(self) -> list[Field]:
        """All fields here and below with which something is wrong."""
        return [field for field in self.walk() if field.fault]


Words: TypeAlias = Callable[[Any], str]
"""A value in words; empty where the number says it all."""
Inside: TypeAlias = Callable[[bytes, int, int], list[Field]]
"""Makes the children of a field from (data, start, end)."""


class Hint(msgspec.Struct, frozen=True):
    """What a declaration does not say of a field."""

    words: Words | None = None
    bits: tuple[Bits, ...] = ()
    inside: Inside | None = None


class Bits(msgspec.Struct, frozen=True):
    """A part of a number."""

    name: str
    high: int
    low: int
    words: Words | None = None


Hints: TypeAlias = Mapping[str, Hint]


def number_bits(value: int, offset: int, size: int, parts: Sequence[Bits]) -> list[Field]:
    """The parts of a number, as children of its field."""
    fields = []
    for part in parts:
        of_it = value >> part.low & ((1 << part.high - part.low + 1) - 1)
        span = f"{part.high}" if part.high == part.low else f"{part.high}:{part.low}"
        fields.append(Field(part.name, offset, size, of_it, part.words(of_it) if part.words else "", bits=span))
    return fields


def number(name: str, data: bytes, at: int, size: int, hint: Hint | None = None, *, order: str = "little") -> Field:
    """A number of `size` bytes, which may be cut off."""
    there = min(size, len(data) - at)
    if there < size:
        return Field(name, at, there, fault=f"{size} bytes needed, {there} there")
    value = int.from_bytes(data[at : at + size], "big" if order == ">" else "little")
    field = Field(name, at, size, value)
    if hint is not None:
        _apply(field, hint, data)
    return field


def raw(name: str, data: bytes, at: int, end: int, words: str = "", *, fault: str = "") -> Field:
    """Plain bytes."""
    return Field(name, at, end - at, data[at:end], words, fault=fault)


def text(name: str, data: bytes, at: int, end: int, encoding: str = "utf-16-le") -> Field:
    """A text up to its NUL; what is no text is replaced."""
    return Field(name, at, end - at, data[at:end].decode(encoding, "replace").split("\0", 1)[0])


def group(name: str, data: bytes, at: int, end: int, parts: Sequence[Field], words: str = "", fault: str = "") -> Field:
    """A field made of others; bytes that none of them covers become padding."""
    return Field(name, at, end - at, None, words, tile(parts, data, at, end), fault=fault)


def embed(field: Field, at: int, name: str = "") -> Field:
    """A tree that was made of bytes by themselves, as a part of a unit in which those bytes begin at `at`."""
    for one in field.walk():
        one.offset += at
    field.name = name or field.name
    return field


def tile(parts: Sequence[Field], data: bytes, at: int, end: int) -> list[Field]:
    """The parts in order, with padding in the gaps between them."""
    if not parts:
        return []
    covered: list[Field] = []
    position = at
    for part in parts:
        if part.offset > position:
            covered.append(padding(data, position, part.offset))
        covered.append(part)
        position = max(position, part.end)
    if position < end:
        covered.append(padding(data, position, end))
    return covered


def padding(data: bytes, at: int, end: int) -> Field:
    """Bytes that mean nothing."""
    return raw("padding", data, at, end, "" if not any(data[at:end]) else "not zero")


def fields_of(layout: type[Wire], data: bytes, at: int, end: int, hints: Hints | None = None) -> list[Field]:
    """The fields of a declared layout as far as there are bytes before `end`; gaps are padding."""
    hints = hints or {}
    stop = min(end, at + layout.SIZE)
    order = ">" if layout.STRUCT.format.startswith(">") else "<"
    parts: list[Field] = []
    for declared in layout.FIELDS:
        start = at + declared.offset
        if start >= stop:
            break
        there = min(declared.size, stop - start)
        hint = hints.get(declared.name)
        if there < declared.size:
            fault = f"{declared.size} bytes needed, {there} there"
            parts.append(Field(declared.name, start, there, fault=fault))
            break
        piece = data[start : start + there]
        value: Value
        if declared.is_guid:
            value = str(Guid(piece))
        elif declared.code.endswith("s"):
            value = piece
        else:
            (value,) = struct.unpack(order + declared.code, piece)
        field = Field(declared.name, start, there, value)
        if hint is not None:
            _apply(field, hint, data)
        parts.append(field)
    return tile(parts, data, at, stop)


def layout_field(
    name: str, layout: type[Wire], data: bytes, at: int, end: int, hints: Hints | None = None, words: str = ""
) -> Field:
    """A declared layout as one field, as long as there are bytes for it; a fault where they are too few."""
    stop = min(end, at + layout.SIZE)
    fault = f"{layout.SIZE} bytes needed, {stop - at} there" if stop - at < layout.SIZE else ""
    return Field(name, at, stop - at, None, words, fields_of(layout, data, at, stop, hints), fault=fault)


def _apply(field: Field, hint: Hint, data: bytes) -> None:
    if hint.words is not None:
        field.words = hint.words(field.value)
    if hint.bits and isinstance(field.value, int):
        field.children = number_bits(field.value, field.offset, field.size, hint.bits)
    if hint.inside is not None:
        field.children = tile(hint.inside(data, field.offset, field.end), data, field.offset, field.end)
