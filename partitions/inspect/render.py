"""A walk as lines for people, as JSON, or as Python values. Root side.

Text that a guest had a hand in is spelled out where it could drive a terminal, and whatever it is, it is shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Any

from hypervisor.inspect import Claim, Fault, Hex, Histogram, Leaf, Setting
from partitions.inspect.walk import ALONE, Mark, Run, Shown
from partitions.logs import printable

FOLDED = "/"
"""In the place of a branch that was not opened."""


def words(value: Leaf) -> str:
    """A value for people, on one line."""
    match value:
        case bool():
            return "true" if value else "false"
        case None:
            return "none"
        case Hex():
            return hex(value)
        case int():
            return _digits(value)
        case float():
            return f"{value:g}"
        case str():
            return _line(value)
        case Claim():
            return f"{words(value.value)} (guest{': ' if value.fault else ''}{_line(value.fault, '')})"
        case Histogram():
            return _line(_histogram(value))
        case Setting():
            return f"{words(value.value)}  ({_line(value.help, '')})"
        case Fault():
            return f"! {_line(value.words, '')}"


def plain(value: Shown) -> Any:
    """A value as programs want it: a setting's value; a label or a histogram as they are."""
    if isinstance(value, Setting):
        return value.value
    return FOLDED if isinstance(value, Mark) else value


def tree_lines(runs: Iterable[Run]) -> Iterator[str]:
    """A line for each value and each branch, indented by its level, many at a time."""
    for level, values, name, mark in runs:
        if level == ALONE:
            yield f"{_after_name(values[0][1], '')}\n"
            continue
        start = "  " * level
        lines = [f"{start}{_line(each)}{_after_name(value)}\n" for each, value in values]
        if mark is Mark.OPEN:
            lines.append(f"{start}{_line(name)}{FOLDED}\n")
        yield "".join(lines)


def _after_name(value: Shown, colon: str = ": ") -> str:
    return FOLDED if isinstance(value, Mark) else colon + words(value)


def json_pieces(runs: Iterable[Run]) -> Iterator[str]:
    """One JSON document in pieces, without a line end in it.

    Numbers are numbers, a branch that was not opened is `"/"`, a guest's value is `{"guest": 1}` with a `fault` where
    it has one, a histogram has its unit and counts.
    """
    comma = "{"
    for level, values, name, mark in runs:
        if level == ALONE:
            yield json_value(values[0][1])
            return
        try:
            members = [_key(each) + _OFTEN.get(type(value), json_value)(value) for each, value in values]
        except ValueError:  # Python refuses to write thousands of digits
            members = [_key(each) + json_value(value) for each, value in values]
        if mark is Mark.OPEN:
            members.append(_key(name))
        text = comma + ",".join(members) if members else ""
        comma = "," if members else comma
        if mark is Mark.CLOSE:
            text += "}" if comma == "," else "{}"
            comma = ","
        elif mark is Mark.OPEN:
            comma = "{"
        yield text
    yield "}" if comma == "," else "{}"


def json_value(value: Shown) -> str:
    """A value as JSON."""
    match value:
        case Mark():
            return _quoted(FOLDED)
        case bool():
            return "true" if value else "false"
        case None:
            return "null"
        case int():
            return _digits(value)
        case float():
            return repr(value) if math.isfinite(value) else _quoted(repr(value))
        case str():
            return _quoted(value)
        case Claim():
            fault = f',"fault":{_quoted(value.fault)}' if value.fault else ""
            return f'{{"guest":{json_value(value.value)}{fault}}}'
        case Histogram():
            return f'{{"unit":{_quoted(value.unit)},"counts":[{",".join(map(str, value.counts))}]}}'
        case Setting():
            return json_value(value.value)
        case Fault():
            return f'{{"error":{_quoted(value.words)}}}'


class Values:
    """Collects a walk as dictionaries in dictionaries."""

    def __init__(self) -> None:
        self.result: Any = {}
        self._open: list[dict[str, Any]] = [self.result]

    def take(self, run: Run) -> None:
        """One more."""
        level, values, name, mark = run
        if level == ALONE:
            self.result = plain(values[0][1])
            return
        here = self._open[-1]
        for each, value in values:
            here[each] = plain(value)
        if mark is Mark.CLOSE:
            self._open.pop()
        elif mark is Mark.OPEN:
            below: dict[str, Any] = {}
            here[name] = below
            self._open.append(below)


def _line(text: str, empty: str = '""') -> str:
    return printable(text) if text else empty


def _digits(value: int) -> str:
    try:
        return int.__repr__(value)
    except ValueError:  # Python refuses to write thousands of digits
        return _quoted(hex(value))


def _quoted(text: str) -> str:
    if text.isascii():
        return encode_basestring_ascii(text)
    return encode_basestring_ascii(text.encode("utf-8", "backslashreplace").decode())


_OFTEN: dict[type, Callable[[Any], str]] = {int: int.__repr__, Hex: int.__repr__, str: _quoted}
"""What `json_value` comes to for most values."""


@lru_cache(maxsize=4096)
def _key(name: str) -> str:
    return _quoted(name) + ":"


def _histogram(value: Histogram) -> str:
    """`3 in all; below 2 us: 1, below 8 us: 2`."""
    ranges = [
        f"{'0' if not number else f'below {1 << number}'} {value.unit}: {count}"
        for number, count in enumerate(value.counts)
        if count
    ]
    return "; ".join([f"{value.total} in all", *([", ".join(ranges)] if ranges else [])])
