"""Steps of a walk as lines for people, as JSON, or as Python values. Root side.

Text that a guest had a hand in is spelled out where it could drive a terminal, and whatever it is, it is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Any

from hypervisor.inspect import Claim, Fault, Hex, Histogram, Leaf, Setting
from partitions.inspect.walk import ALONE, Mark, Step
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


def plain(value: Leaf) -> Any:
    """A value as programs want it: a setting's value; a label or a histogram as they are."""
    return value.value if isinstance(value, Setting) else value


def tree_lines(steps: Iterable[Step]) -> Iterator[str]:
    """A line a step, indented by its level."""
    for level, name, what in steps:
        if what is Mark.CLOSE:
            continue
        start = "" if level == ALONE else "  " * level + _line(name)
        if isinstance(what, Mark):
            yield f"{start}{FOLDED}\n"
        else:
            yield f"{start}: {words(what)}\n" if start else f"{words(what)}\n"


def json_pieces(steps: Iterable[Step]) -> Iterator[str]:
    """One JSON document in pieces, without a line end in it.

    Numbers are numbers, a branch that was not opened is `"/"`, a guest's value is `{"guest": 1}` with a `fault` where
    it has one, a histogram has its unit and counts.
    """
    comma = "{"
    for level, name, what in steps:
        if what is Mark.CLOSE:
            yield "}" if comma != "{" else "{}"
            comma = ","
        elif what is Mark.OPEN:
            yield f"{comma}{_key(name)}"
            comma = "{"
        elif level == ALONE:
            yield json_value(what)
            return
        else:
            yield f"{comma}{_key(name)}{json_value(what)}"
            comma = ","
    yield "}" if comma != "{" else "{}"


def json_value(value: Leaf | Mark) -> str:
    """A value as JSON."""
    kind = type(value)
    if kind is int:
        return _digits(value)  # type: ignore[arg-type]
    if kind is str:
        return _quoted(value)  # type: ignore[arg-type]
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
    """Collects steps as dictionaries in dictionaries."""

    def __init__(self) -> None:
        self.result: Any = {}
        self._open: list[dict[str, Any]] = [self.result]

    def take(self, step: Step) -> None:
        """One more."""
        level, name, what = step
        if what is Mark.CLOSE:
            self._open.pop()
        elif what is Mark.OPEN:
            below: dict[str, Any] = {}
            self._open[-1][name] = below
            self._open.append(below)
        elif level == ALONE:
            self.result = FOLDED if isinstance(what, Mark) else plain(what)
        else:
            self._open[-1][name] = FOLDED if isinstance(what, Mark) else plain(what)


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
