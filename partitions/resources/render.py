"""A sample as lines of text, as wide as there is room: what `partita top` puts on a screen or a pipe. Root side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

import msgspec

from partitions.resources.sample import Heading, Node, Sample
from partitions.resources.view import (
    COLUMNS,
    CPU_SUMMARY,
    LONG,
    SUMMARY,
    Column,
    View,
    headline,
    notes,
    state_words,
    summary_words,
)

INDENT: Final = "  "
LEAST_NAME: Final = 10
"""Characters that names keep in a narrow terminal."""
MOST_NAME: Final = 40
LEAST_VALUE: Final = 12
"""Characters that a value has in the long form."""
_ALARM, _STRONG, _DIM, _PLAIN = "\033[33m", "\033[1m", "\033[2m", "\033[0m"


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """How it is to be shown."""

    view: View = View.CPU
    width: int | None = None
    """Characters; None for a pipe, which takes all."""
    long: bool = False
    color: bool = False


def rendered(sample: Sample, heading: Heading, look: Look) -> list[str]:
    """Heading and rows."""
    return [*above(sample, heading, look), *rows(sample, look)]


def above(sample: Sample, heading: Heading, look: Look) -> list[str]:
    """What stands still while rows scroll."""
    lines = [headline(sample, heading), *state_words(sample, heading, look.view), *notes(sample, look.view)]
    return [piece for line in lines for piece in _wrapped(line, look.width)]


def rows(sample: Sample, look: Look) -> list[str]:
    """The tree: columns with their headings first, or all counters one below the other."""
    if look.long:
        return [_cut(line, look.width) for line in _long(sample, look)]
    return _table(sample.nodes, COLUMNS[look.view], look)


def summary(sample: Sample, width: int | None = None) -> list[str]:
    """A whole run: who had how much, and whether shares had an effect."""
    nodes = [node for node in sample.nodes if node.kind != "vm" or node.cpu.elapsed]
    worked = any(node.cpu.run for node in nodes)
    columns = (*CPU_SUMMARY, *SUMMARY) if worked else SUMMARY
    return [*_wrapped(summary_words(sample), width), *_table(nodes, columns, Look(width=width), ended=True)]


def _label(node: Node, *, ended: bool = False) -> str:
    name = node.name if node.kind != "pool" else f"{node.name}/"
    if node.cpu_pool:
        name += f" (processors in {node.cpu_pool})"
    if not ended and node.kind == "vm" and not node.cpu.elapsed:
        name += f" ({node.state.replace('_', ' ')})"
    return f"{INDENT * node.depth}{name}"


def _long(sample: Sample, look: Look) -> list[str]:
    """Where there is no room, a counter's name is cut from the left, where all begin with what they count."""
    lines = []
    for node in sample.nodes:
        pairs = [(name, cell(node)) for name, cell in LONG[look.view]]
        shown = [(name, value) for name, value in pairs if value is not None]
        lines.append(_label(node))
        indent, width = INDENT * (node.depth + 1), max((len(name) for name, _ in shown), default=0)
        if look.width is not None:
            width = max(1, min(width, look.width - len(indent) - 2 - LEAST_VALUE))
        for name, value in shown:
            known = name if len(name) <= width else f"…{name[1 - width :]}" if width > 1 else "…"
            lines.append(f"{indent}{known:<{width}}  {value:>{LEAST_VALUE}}")
    return lines


def _table(nodes: Sequence[Node], made_of: Sequence[Column], look: Look, *, ended: bool = False) -> list[str]:
    labels = [_label(node, ended=ended) for node in nodes]
    columns = list(made_of)
    cells = {column.heading: [column.cell(node) for node in nodes] for column in columns}
    # A control that nobody has is no column of lines.
    nothing = ("", "-", "0", "0.0", "0.000") if ended else ("", "-", "0")
    columns = [column for column in columns if any(cell not in nothing for cell in cells[column.heading])]
    widths = {column.heading: max(map(len, [column.heading, *cells[column.heading]])) for column in columns}
    name = min(MOST_NAME, max(map(len, ["NODE", *labels])))
    if look.width is not None:
        columns = _fitting(columns, widths, min(name, LEAST_NAME), look.width)
        taken = sum(2 + widths[column.heading] for column in columns)
        name = max(1, min(name, look.width - taken))
    lines = [_line("NODE", name, [(column.heading, widths[column.heading]) for column in columns])]
    for index, (node, label) in enumerate(zip(nodes, labels, strict=True)):
        line = _line(label, name, [(cells[column.heading][index], widths[column.heading]) for column in columns])
        lines.append(_colored(line, node, name, columns, widths) if look.color else line)
    if look.color:
        lines[0] = f"{_STRONG}{lines[0]}{_PLAIN}"
    return lines


def _line(label: str, width: int, cells: Sequence[tuple[str, int]]) -> str:
    shown = label if len(label) <= width else f"{label[: width - 1]}…"
    return "".join([f"{shown:<{width}}", *(f"  {cell:>{size}}" for cell, size in cells)]).rstrip()


def _fitting(columns: list[Column], widths: dict[str, int], name: int, width: int) -> list[Column]:
    """Without those that are worth least, until the rest has room beside the name."""
    kept = list(columns)
    while kept and name + sum(2 + widths[column.heading] for column in kept) > width:
        kept.remove(min(kept, key=lambda column: column.worth))
    return kept


def _colored(line: str, node: Node, name: int, columns: Sequence[Column], widths: dict[str, int]) -> str:
    """Alarms stand out, what is off steps back. Colour says nothing that the figures do not."""
    if node.kind == "vm" and not node.cpu.elapsed:
        return f"{_DIM}{line}{_PLAIN}"
    place, pieces, last = name, [], 0
    for column in columns:
        begin, end = place + 2, place + 2 + widths[column.heading]
        if column.alarm is not None and column.alarm(node):
            pieces += [line[last:begin], _ALARM, line[begin:end], _PLAIN]
            last = end
        place = end
    return "".join([*pieces, line[last:]])


def _wrapped(line: str, width: int | None) -> list[str]:
    """What is said above the table is worth a second line where the first has no room for it."""
    return (
        [line] if width is None or len(line) <= width else textwrap.wrap(line, max(10, width), subsequent_indent=INDENT)
    )


def _cut(line: str, width: int | None) -> str:
    return line if width is None or len(line) <= width else f"{line[: max(0, width - 1)]}…"
