"""A tree of fields as text for people, and as plain data for programs. Root side."""

from __future__ import annotations

from typing import Any

from partitions.decode.field import Field, Value
from partitions.logs import printable

_BYTES_SHOWN = 8
_VALUE_WIDTH = 26
_DIM, _BOLD, _RED, _RESET = "\033[2m", "\033[1m", "\033[31m", "\033[0m"


def render(field: Field, data: bytes, *, colour: bool = False, dump: bool = True) -> list[str]:
    """Lines: offset, bytes, name, value, words; children are indented. The bytes of what has parts stand at the parts.

    Without `dump` the column of bytes is left out.
    """
    width = max(len(f"{'  ' * depth}{one.name}") for depth, one in _flat(field, 0))
    lines: list[str] = []
    for depth, one in _flat(field, 0):
        name = f"{'  ' * depth}{one.name}"
        here = ""
        if not one.children or one.children[0].bits:
            here = (
                _bytes(data[one.offset : one.end])
                if not one.bits
                else f"bit {one.bits}"
                if ":" not in one.bits
                else f"bits {one.bits}"
            )
        parts = [f"{one.offset:04x}", *([f"{here:<{3 * _BYTES_SHOWN + 1}}"] if dump else []), f"{name:<{width}}"]
        head = "  ".join(parts)
        value = printable(value_text(one))
        words = printable(one.words)
        said = "  ".join(filter(None, (f"{value:<{_VALUE_WIDTH}}" if words and value else value, words)))
        fault = f"  {_RED if colour else ''}! {printable(one.fault)}{_RESET if colour else ''}" if one.fault else ""
        line = f"{head}  {said}".rstrip() + fault
        if colour and one.children and not one.children[0].bits:
            line = f"{_BOLD}{line}{_RESET}" if not one.fault else line
        elif colour and one.name in ("padding", "unused", "reserved"):
            line = f"{_DIM}{line}{_RESET}"
        lines.append(line.rstrip())
    return lines


def _flat(field: Field, depth: int) -> list[tuple[int, Field]]:
    flat = [(depth, field)]
    for child in field.children:
        flat += _flat(child, depth + 1)
    return flat


def _bytes(data: bytes) -> str:
    """The bytes of a field, or its first ones."""
    shown = data[:_BYTES_SHOWN].hex(" ")
    return shown if len(data) <= _BYTES_SHOWN else f"{shown} .."


def value_text(field: Field) -> str:
    """A value for people: numbers in both systems unless they are small, bytes by their count, all zero or not."""
    value = field.value
    if isinstance(value, int):
        return str(value) if -10 < value < 10 else f"{value:#x} ({value})"
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        count = f"{len(value)} byte{'s' * (len(value) != 1)}"
        return count if any(value) else f"{count}, zero"
    return ""


def plain(field: Field) -> dict[str, Any]:
    """The tree as JSON can say it; bytes as hex digits. Keys that would be empty are left out."""
    made: dict[str, Any] = {"name": field.name, "offset": field.offset, "size": field.size}
    if field.value is not None:
        made["value"] = _plain_value(field.value)
    for key, said in (("words", field.words), ("bits", field.bits), ("fault", field.fault)):
        if said:
            made[key] = said
    if field.children:
        made["children"] = [plain(child) for child in field.children]
    return made


def _plain_value(value: Value) -> Any:
    return value.hex() if isinstance(value, bytes) else value
