"""What a question measures: a small language for one number out of a run's final figures. Root side.

    vm/c cpu.run_percent                    a figure of a VM, a pool or the host over the whole run
    pool/prod cpu.run_seconds in 2..4       the same from second 2 to second 4 of the host's clock
    vm/a says "round trip {} ms"            what stands at {} in the last line of its console that fits
    vm/c cpu.run_percent / vm/a cpu.run_percent         a quotient of two of them, or with - a difference

The figures are the fields of a `Node` of `partitions.resources.sample`, over one window from the run's beginning to
its end. Everything here is pure; where figures come from is the caller's.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from partitions.resources.sample import Cpu, Disk, Memory, Network, Node

HOLE: Final = "{}"
_PARTS: Final[dict[str, type[Cpu | Memory | Disk | Network]]] = {
    "cpu": Cpu,
    "memory": Memory,
    "disk": Disk,
    "network": Network,
}
_OWN: Final = ("uptime", "exit_code", "state")
_NUMBER: Final = re.compile(r"[-+]?\d[\d_,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")
_AMOUNT: Final = re.compile(
    r"""\s*(?P<node>host|(?:vm|pool)/[A-Za-z0-9._-]+)\s+
    (?:says\s+"(?P<says>[^"]*)"|(?P<field>[a-z_]+(?:\.[a-z_]+)?)(?:\s+in\s+(?P<begin>\d+(?:\.\d+)?)\.\.(?P<end>\d+(?:\.\d+)?))?)\s*""",
    re.VERBOSE,
)


class MeasureError(ValueError):
    """A measure that is none, or one that the run has no figure for; the text is for people."""


class Amount(msgspec.Struct, frozen=True, kw_only=True):
    """One figure."""

    node: str
    """`host`, `vm/NAME` or `pool/NAME`."""
    field: str = ""
    """Such as `cpu.run_percent`."""
    says: str = ""
    """Or a line of its console, with `{}` in it."""
    span: tuple[float, float] | None = None
    """Seconds of the host's clock; the whole run by default."""


class Measure(msgspec.Struct, frozen=True):
    """One figure, or two and what is between them."""

    first: Amount
    operator: str = ""
    """`/`, `-`, or nothing."""
    second: Amount | None = None

    @property
    def amounts(self) -> list[Amount]:
        """One or two."""
        return [self.first] if self.second is None else [self.first, self.second]

    @property
    def marks(self) -> list[float]:
        """Seconds at which somebody has to look, since a figure begins or ends there."""
        return sorted({moment for amount in self.amounts if amount.span is not None for moment in amount.span})


@functools.cache
def fields() -> list[str]:
    """All that can be measured of a node."""
    found = list(_OWN)
    for part, kind in _PARTS.items():
        own = [name for name in kind.__struct_fields__ if name != "latency"]
        own += [name for name, value in vars(kind).items() if isinstance(value, property)]
        found += [f"{part}.{name}" for name in own]
    return found


def parse_measure(text: str) -> Measure:
    """Read it. Raises `MeasureError`."""
    first, place = _amount(text, 0)
    if place == len(text):
        return Measure(first)
    operator = text[place]
    if operator not in "/-":
        raise MeasureError(f'"{text[place:]}" is too much; between two figures stands / or -')
    second, place = _amount(text, place + 1)
    if place != len(text):
        raise MeasureError(f'"{text[place:]}" is too much')
    return Measure(first, operator, second)


def _amount(text: str, place: int) -> tuple[Amount, int]:
    match = _AMOUNT.match(text, place)
    if match is None:
        raise MeasureError(
            f'"{text[place:].strip()}" must be a node and a figure, as in: vm/web cpu.run_percent, '
            'pool/prod cpu.run_percent in 2..4, or vm/web says "took {} ms"'
        )
    node, field, says = match["node"], match["field"] or "", match["says"]
    if says is not None:
        if says.count(HOLE) != 1 or not says.replace(HOLE, "").strip():
            raise MeasureError(f'says "{says}": must have one {HOLE} where the answer stands, and words beside it')
        if not node.startswith("vm/"):
            raise MeasureError(f"{node} says nothing: only a VM has a console")
        return Amount(node=node, says=says), match.end()
    if field not in fields():
        near = difflib.get_close_matches(field, fields(), n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"known are {', '.join(fields())}"
        raise MeasureError(f'there is no figure "{field}"; {hint}')
    span = None
    if match["begin"] is not None:
        span = float(match["begin"]), float(match["end"])
        if span[0] >= span[1]:
            raise MeasureError(f"in {match['begin']}..{match['end']}: must end after it begins")
    return Amount(node=node, field=field, span=span), match.end()


def figure(node: Node, field: str) -> float | str:
    """One field of a node. Raises `MeasureError` where the run has no such figure."""
    part, _, name = field.rpartition(".")
    place = getattr(node, part) if part else node
    value = None if place is None else getattr(place, name)
    if value is None:
        raise MeasureError(f"{node.path} has no {field} in this run")
    return value if isinstance(value, str) else float(value)


def said(lines: Sequence[str], words: str) -> str:
    """What stands at the hole of the last line that fits. Raises `MeasureError`."""
    before, _, after = words.partition(HOLE)
    # With words behind it the answer ends at the first of them; without, a number is looked for first.
    fits = re.compile(f"{re.escape(before)}(.+?){re.escape(after)}" + ("" if after else "$"))
    for line in reversed(lines):
        if (match := fits.search(line)) is not None:
            return match[1].strip()
    raise MeasureError(f'it has not said "{words}"')


def number_in(text: str) -> float:
    """The first number of some words. Raises `MeasureError`."""
    match = _NUMBER.search(text)
    if match is None:
        raise MeasureError(f'"{text}" has no number in it')
    return float(match[0].replace("_", "").replace(",", ""))


def evaluate(measure: Measure, look: Callable[[Amount], float | str], *, numeric: bool = True) -> float | str:
    """The measured value; words where the question has choices. Raises `MeasureError`."""
    first = look(measure.first)
    if measure.second is None and not numeric:
        return first if isinstance(first, str) else f"{first:g}"
    value = _as_number(first)
    if measure.second is None:
        return value
    other = _as_number(look(measure.second))
    if measure.operator == "-":
        return value - other
    if not other:
        raise MeasureError(f"{_spelled(measure.second)} is 0, and nothing can be divided by it")
    return value / other


def _as_number(value: float | str) -> float:
    return number_in(value) if isinstance(value, str) else value


def _spelled(amount: Amount) -> str:
    return f"{amount.node} {amount.field}" if amount.field else f'{amount.node} says "{amount.says}"'
