"""What a page needs of a trace event: one JSON row, whatever a guest has put into it. Root side.

A row is a list, in the order of `COLUMNS`. Columns at the end that mean nothing for an event are left away.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Final

from hypervisor.trace import TO_CHILD, TO_ROOT, TraceEvent
from partitions.logs import printable

COLUMNS: Final = (
    "seq",
    "time",
    "vm",
    "layer",
    "event",
    "level",
    "direction",
    "channel",
    "size",
    "words",
    "fields",
    "data",
    "more",
    "changes",
)
"""`seq` counts from 0 without gaps but for what was dropped; `time` is in 100 ns; `data` is base64, and `more` how many
bytes it lacks; `changes` are what the event does to the picture (`partitions.watch.scene`)."""

MAX_EXACT: Final = 1 << 53
"""The first integer that JavaScript does not tell from its neighbour."""
MAX_WORDS: Final = 2000
"""Characters of one text: a guest may have a hand in it, and nobody reads more in a line."""
MAX_DATA: Final = 4096
"""Bytes of one message or packet."""

DIRECTIONS: Final = (TO_ROOT, TO_CHILD)

Row = list[Any]
Change = Sequence[Any]


def row_of(seq: int, event: TraceEvent, vm: str, changes: Sequence[Change] = ()) -> Row:
    """One event, which is about the VM of this name, as a page reads it."""
    data = event.data
    row: Row = [
        seq,
        event.time,
        text(vm),
        event.layer.value,
        text(event.event),
        int(event.level),
        event.direction if event.direction in DIRECTIONS else "",
        plain(event.channel),
        plain(event.size),
        text(event.words),
        {text(key): plain(value) for key, value in event.fields.items()} or None,
        base64.b64encode(data[:MAX_DATA]).decode() if data else None,
        len(data) - MAX_DATA if len(data) > MAX_DATA else None,
        list(changes) or None,
    ]
    while row[-1] is None or row[-1] == "":
        row.pop()
    return row


def text(value: str) -> str:
    """Text for a page: no control characters, none that turn the line around, no half characters, not without end."""
    return printable(value if len(value) <= MAX_WORDS else value[:MAX_WORDS] + "…")


def plain(value: object) -> object:
    """What JSON has and JavaScript keeps exactly; all else as text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -MAX_EXACT < value < MAX_EXACT else f"{value:#x}"
    if isinstance(value, float):
        return value if -MAX_EXACT < value < MAX_EXACT else str(value)
    if type(value) in (bytes, bytearray, memoryview):  # a Guid is bytes too, and has better words
        return text(bytes(value).hex())  # type: ignore[call-overload]
    return text(str(value))
