"""A sample as lines of text, as wide as there is room: what `partita top` puts on a screen or a pipe. Root side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

import msgspec

from partitions.resources.alarms import SIGNS, Grade, Marks, shortened
from partitions.resources.help import GRADES, HELP_OF, KEYS, MEANINGS
from partitions.resources.sample import Heading, Node, Sample
from partitions.resources.view import (
    CPU_SUMMARY,
    SUMMARY,
    Column,
    View,
    columns_of,
    counters_of,
    headline,
    notes,
    state_words,
    summary_words,
)

INDENT: Final = "  "
LEAST_NAME: Final = 10
"""Characters that names keep in a narrow terminal."""
MOST_SIGN: Final = 2
"""Characters behind a value."""
LEAST_VALUE: Final = 12
"""Characters that a value has in the long form."""
_STRONG, _DIM, _PLAIN = "\033[1m", "\033[2m", "\033[0m"
_COLORS: Final = {Grade.NOTE: "\033[36m", Grade.WARNING: "\033[33m", Grade.ALARM: "\033[1;31m"}


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """How it is to be shown."""

    view: View = View.CPU
    width: int | None = None
    """Characters; None for a pipe, which takes all."""
    long: bool = False
    color: bool = False


def rendered(sample: Sample, heading: Heading, look: Look) -> list[str]:
    """Heading, rows, and what there is to say of them."""
    return [*above(sample, heading, look), *rows(sample, look), *below(sample, look)]


def above(sample: Sample, heading: Heading, look: Look) -> list[str]:
    """What stands still while rows scroll."""
    lines = [headline(sample, heading), *state_words(sample, heading, look.view)]
    return [piece for line in lines for piece in _wrapped(line, look.width)]


def below(sample: Sample, look: Look) -> list[str]:
    """Which lines are crossed, and what people misread: under the table, which does not jump when they come and go."""
    said = [*_marks(sample, look).words(), *((Grade.NOTE, note) for note in notes(sample, look.view))]
    return _told(said, look)


def _told(said: Sequence[tuple[Grade, str]], look: Look) -> list[str]:
    return [
        f"{_COLORS[grade]}{piece}{_PLAIN}" if look.color else piece
        for grade, line in said
        for piece in _wrapped(line, look.width)
    ]


def _marks(sample: Sample, look: Look) -> Marks:
    if look.long:
        return Marks(sample, [name for name, _ in counters_of(look.view, sample)])
    return Marks(sample, [column.heading for column in columns_of(look.view, sample)])


def rows(sample: Sample, look: Look) -> list[str]:
    """The tree: columns with their headings first, or all counters one below the other."""
    if look.long:
        return [_cut(line, look.width) for line in _long(sample, look)]
    return _table(sample.nodes, columns_of(look.view, sample), look, _marks(sample, look))


def help_lines(look: Look) -> list[str]:
    """What the columns of a view and its signs mean, and the keys."""
    parts = (MEANINGS[look.view], [(SIGNS[grade], words) for grade, words in GRADES.items()], KEYS)
    lines = [HELP_OF[look.view]]
    for part in parts:
        lines += ["", *(f"{name:<12}{words}" for name, words in part)]
    return [piece for line in lines for piece in _wrapped(line, look.width, min(12, (look.width or 80) // 4))]


def summary(sample: Sample, width: int | None = None) -> list[str]:
    """A whole run: who had how much, and whether shares had an effect."""
    nodes = [node for node in sample.nodes if node.kind != "vm" or node.cpu.elapsed]
    worked = any(node.cpu.run for node in nodes)
    columns = (*CPU_SUMMARY, *SUMMARY) if worked else SUMMARY
    look = Look(width=width)
    marks = Marks(sample, [column.heading for column in columns])
    return [
        *(piece for line in summary_words(sample) for piece in _wrapped(line, width)),
        *_table(nodes, columns, look, marks, ended=True),
        *_told(list(marks.words()), look),
    ]


def _label(node: Node, *, ended: bool = False) -> str:
    name = node.name if node.kind != "pool" else f"{node.name}/"
    if node.cpu_pool:
        name += f" (processors in {node.cpu_pool})"
    if not ended and node.kind == "vm" and not node.cpu.elapsed:
        name += f" ({node.state.replace('_', ' ')})"
    return f"{INDENT * node.depth}{name}"


def _long(sample: Sample, look: Look) -> list[str]:
    """Where there is no room, a counter's name is cut from the left, where all begin with what they count."""
    lines, marks, counters = [], _marks(sample, look), counters_of(look.view, sample)
    for node in sample.nodes:
        pairs = [(name, cell(node), marks.of(node, name)) for name, cell in counters]
        shown = [(name, value, grade) for name, value, grade in pairs if value is not None]
        lines.append(_label(node))
        indent, width = INDENT * (node.depth + 1), max((len(name) for name, _, _ in shown), default=0)
        if look.width is not None:
            width = max(1, min(width, look.width - len(indent) - 2 - LEAST_VALUE - MOST_SIGN))
        for name, value, grade in shown:
            known = name if len(name) <= width else f"…{name[1 - width :]}" if width > 1 else "…"
            lines.append(f"{indent}{known:<{width}}  {value:>{LEAST_VALUE}}{'' if grade is None else SIGNS[grade]}")
    return lines


def _table(
    nodes: Sequence[Node], made_of: Sequence[Column], look: Look, marks: Marks, *, ended: bool = False
) -> list[str]:
    labels = [_label(node, ended=ended) for node in nodes]
    columns = list(made_of)
    cells = {column.heading: [column.cell(node) for node in nodes] for column in columns}
    # A control that nobody has is no column of lines.
    nothing = ("", "-", "0", "0.0 us", "0.0", "0.000") if ended else ("", "-", "0", "0.0 us")
    columns = [column for column in columns if any(cell not in nothing for cell in cells[column.heading])]
    for column in columns:
        cells[column.heading] = _signed(cells[column.heading], [marks.of(node, column.heading) for node in nodes])
    widths = {column.heading: max(map(len, [column.heading, *cells[column.heading]])) for column in columns}
    name = max(map(len, ["NODE", *labels]))
    if look.width is not None:
        columns = _fitting(columns, widths, min(name, LEAST_NAME), look.width)
        taken = sum(2 + widths[column.heading] for column in columns)
        name = max(1, min(name, look.width - taken))
    lines = [_line("NODE", name, [(column.heading, widths[column.heading]) for column in columns])]
    for index, (node, label) in enumerate(zip(nodes, labels, strict=True)):
        line = _line(label, name, [(cells[column.heading][index], widths[column.heading]) for column in columns])
        lines.append(_colored(line, node, name, columns, widths, marks) if look.color else line)
    if look.color:
        lines[0] = f"{_STRONG}{lines[0]}{_PLAIN}"
    return lines


def _signed(cells: list[str], grades: Sequence[Grade | None]) -> list[str]:
    """Signs behind figures; digits still stand below each other."""
    signs = ["" if grade is None else SIGNS[grade] for grade in grades]
    wide = max(map(len, signs))
    return [f"{cell}{sign:<{wide}}" for cell, sign in zip(cells, signs, strict=True)] if wide else cells


def _line(label: str, width: int, cells: Sequence[tuple[str, int]]) -> str:
    return "".join([f"{shortened(label, width):<{width}}", *(f"  {cell:>{size}}" for cell, size in cells)]).rstrip()


def _fitting(columns: list[Column], widths: dict[str, int], name: int, width: int) -> list[Column]:
    """Without those that are worth least, until the rest has room beside the name."""
    kept = list(columns)
    while kept and name + sum(2 + widths[column.heading] for column in kept) > width:
        kept.remove(min(kept, key=lambda column: column.worth))
    return kept


def _colored(line: str, node: Node, name: int, columns: Sequence[Column], widths: dict[str, int], marks: Marks) -> str:
    """What is marked stands out, what is off steps back. Colour says nothing that the signs do not."""
    if node.kind == "vm" and not node.cpu.elapsed:
        return f"{_DIM}{line}{_PLAIN}"
    place, pieces, last = name, [], 0
    for column in columns:
        begin, end = place + 2, place + 2 + widths[column.heading]
        if (grade := marks.of(node, column.heading)) is not None:
            pieces += [line[last:begin], _COLORS[grade], line[begin:end], _PLAIN]
            last = end
        place = end
    return "".join([*pieces, line[last:]])


def _wrapped(line: str, width: int | None, indent: int = len(INDENT)) -> list[str]:
    """What is said above the table is worth a second line where the first has no room for it."""
    if width is None or len(line) <= width:
        return [line]
    return textwrap.wrap(line, max(10, width), subsequent_indent=" " * indent)


def _cut(line: str, width: int | None) -> str:
    return line if width is None or len(line) <= width else f"{line[: max(0, width - 1)]}…"
