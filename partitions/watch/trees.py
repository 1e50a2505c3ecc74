"""Field trees as a page stores them: the shape apart from what is in it, since many packets share one. Root side.

    shape   [name, offset, size, [shape of each part]]
    tree    [number of the shape, [[value, words] of each field, parents first]]

where `[value]` has no words and `[]` neither.
"""

from __future__ import annotations

from typing import Any, Final

from partitions.decode.field import Field
from partitions.watch.rows import plain, text

MAX_FIELDS: Final = 2000
"""Fields of one tree; the rest of a hostile one is told by a last field."""
MAX_VALUE: Final = 24
"""Plain bytes of one field that are spelled out; all of them stand in the hexdump beside it."""

Shape = list[Any]
Tree = list[Any]


class Shapes:
    """All shapes of a page, each once."""

    def __init__(self) -> None:
        self.shapes: list[Shape] = []
        self._numbers: dict[tuple[object, ...], int] = {}

    def add(self, field: Field) -> Tree:
        """A tree by the number of its shape."""
        values: list[list[object]] = []
        key = _flatten(field, values)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.shapes)
            self.shapes.append(_shape(key))
        return [number, values]


def _flatten(field: Field, values: list[list[object]]) -> tuple[object, ...]:
    """The shape as something that can be looked up; puts what is in it into `values`."""
    if len(values) >= MAX_FIELDS:
        values.append([None, "the page leaves the rest away"])
        return "…", field.offset, field.size, ()
    words = text(f"{field.words} ({field.fault})" if field.words and field.fault else field.words or field.fault)
    value = _value(field.value)
    values.append([value, words] if words else [] if value is None else [value])
    parts: list[tuple[object, ...]] = []
    for child in field.children:
        parts.append(_flatten(child, values))
        if len(values) > MAX_FIELDS:
            break
    name = f"{field.name} {field.bits}" if field.bits else field.name
    return text(name), field.offset, field.size, tuple(parts)


def _value(value: object) -> object:
    if isinstance(value, bytes):
        return value[:MAX_VALUE].hex(" ") + (" …" if len(value) > MAX_VALUE else "")
    return plain(value)


def _shape(key: tuple[Any, ...]) -> Shape:
    name, offset, size, parts = key
    return [name, offset, size, [_shape(part) for part in parts]]
