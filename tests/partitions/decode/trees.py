"""What is true of every tree of fields over given bytes."""

from __future__ import annotations

from partitions.decode.field import Field


def check_tree(field: Field, data: bytes) -> None:
    """The tree covers the bytes, all of them, each once; parts of a number lie in its bytes and do not overlap."""
    assert (field.offset, field.size) == (0, len(data)), (field.offset, field.size, len(data))
    _check(field, data)


def _check(field: Field, data: bytes) -> None:
    assert field.name, field
    assert 0 <= field.offset <= field.end <= len(data)
    if isinstance(field.value, bytes):
        assert field.value == data[field.offset : field.end], field
    if not field.children:
        return
    if field.children[0].bits:
        _check_bits(field)
        return
    position = field.offset
    for child in field.children:
        assert not child.bits
        assert child.offset == position, f"{field.name}.{child.name} at {child.offset}, {position} expected"
        assert child.size or child.fault, f"{field.name}.{child.name} has no bytes"
        position = child.end
        _check(child, data)
    assert position == field.end, f"{field.name} ends at {field.end}, its parts at {position}"


def _check_bits(field: Field) -> None:
    assert isinstance(field.value, int)
    taken = 0
    for child in field.children:
        high, _, low = child.bits.partition(":")
        top, bottom = int(high), int(low or high)
        mask = (1 << top + 1) - (1 << bottom)
        assert (child.offset, child.size) == (field.offset, field.size)
        assert not taken & mask, f"{field.name}.{child.name} overlaps a neighbour"
        assert top < 8 * field.size
        assert child.value == (field.value & mask) >> bottom
        taken |= mask
