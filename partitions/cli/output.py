"""Rows on standard output as `-o` says: a table for people, JSON or CSV for programs. Root side.

Without `-o` a terminal gets the table and anything else JSON: what a program reads must not change with a column's
width, and a person who pipes into `less` can ask for the table.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from partitions.cli.common import print_json

if TYPE_CHECKING:
    import argparse

FORMATS: Final = ("table", "json", "csv")
Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]
"""A heading and what stands under it."""


def add_output_option(parser: argparse.ArgumentParser) -> None:
    """`-o`."""
    parser.add_argument(
        "-o", "--output", choices=FORMATS, help="how results are written: a table on a terminal, else json"
    )


def chosen(options: argparse.Namespace) -> str:
    """The format of this run."""
    return options.output or ("table" if sys.stdout.isatty() else "json")


def show(rows: Sequence[Row], columns: Sequence[Column], form: str) -> None:
    """All rows. JSON and CSV have every field, by stable names; the table has what fits a line."""
    match form:
        case "json":
            print_json(rows)
        case "csv":
            write_csv(rows)
        case _:
            for line in aligned(rows, columns):
                print(line)


def write_csv(rows: Sequence[Row], *, heading: bool = True) -> None:
    """Fields that are lists or tables are left to JSON; control characters in a guest's words are spelled out."""
    if not rows:
        return
    names = [name for name, value in rows[0].items() if not isinstance(value, list | dict)]
    writer = csv.writer(sys.stdout, lineterminator=os.linesep)
    if heading:
        writer.writerow(names)
    for row in rows:
        writer.writerow([_field(row.get(name)) for name in names])


def _field(value: Any) -> Any:
    from partitions.logs import printable

    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else printable(value) if isinstance(value, str) else value


def aligned(rows: Iterable[Row], columns: Sequence[Column]) -> list[str]:
    """Lines under headings; a column of numbers stands to the right, one that is empty all the way is left out."""
    from partitions.logs import printable

    cells = [[printable(make(row)) for _, make in columns] for row in rows]
    kept = [number for number in range(len(columns)) if not cells or any(line[number] for line in cells)]
    lines = [[columns[number][0] for number in kept], *([line[number] for number in kept] for line in cells)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(kept))]
    right = [all(line[place][:1].isdigit() for line in lines[1:] if line[place]) for place in range(len(kept))]
    return [
        "  ".join(
            f"{cell:>{width}}" if to_right and lines[1:] else f"{cell:<{width}}"
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    ]


def plain(name: str) -> Callable[[Row], str]:
    """A field as it is; nothing where there is none."""
    return lambda row: "" if row.get(name) in (None, "") else str(row[name])


def duration(name: str) -> Callable[[Row], str]:
    """Seconds, as a person says them."""

    def words(row: Row) -> str:
        value = float(row[name])
        if value < 60:
            return f"{value:.3f} s"
        minutes, left = divmod(int(value), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{left:02} h"

    return words


def size(name: str) -> Callable[[Row], str]:
    """Bytes, in three digits and a unit."""

    def words(row: Row) -> str:
        from partitions.cli.summary import short_size

        return short_size(row[name])

    return words
