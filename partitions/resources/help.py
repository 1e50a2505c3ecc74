"""The page of help of `partita top`: what columns, signs and keys mean, in a line each. Root side."""

from __future__ import annotations

from typing import Final

from partitions.resources.alarms import Grade
from partitions.resources.view import View

HELP_OF: Final = {
    View.CPU: "Processors, in percent of one logical processor: two virtual ones may have 200.",
    View.MEMORY: "Memory, in MiB.",
    View.DISK: "Disks, in normalized I/O operations a second: one for each 8 KiB that is begun.",
    View.NETWORK: "Network, in Mbit a second.",
}
_WEIGHT: Final = ("WEIGHT", "its part of what is short, beside its siblings")
_RESERVE: Final = ("RESERVE", "guaranteed, and lent out while it does not want it")
_LIMIT: Final = ("LIMIT", "never more, however idle the host is")
_ENTITLED: Final = ("ENTITLED", "its due now, by reservations, limits and weights")
MEANINGS: Final[dict[View, tuple[tuple[str, str], ...]]] = {
    View.CPU: (
        ("VPS", "virtual processors"),
        _WEIGHT,
        _RESERVE,
        _LIMIT,
        ("DEMAND", "what it would have used, had nothing been in its way"),
        _ENTITLED,
        ("%RUN", "what it got"),
        ("%HOST", "the same, in percent of the whole host"),
        ("%RDY", "it had work and no processor"),
        ("%MLMTD", "what of %RDY a limit is to blame for; the rest was others' turn"),
        ("%WAIT", "it had nothing to do"),
        ("WAIT/DISP", "how long it waited for each turn on a processor"),
    ),
    View.MEMORY: (
        _WEIGHT,
        ("MIN, MAX", "between these its host moves it"),
        ("ASSIGNED", "what it has"),
        ("DEMAND", "what its guest says that it needs"),
        ("TARGET", "where its host takes it"),
        ("ACTV", "what its guest uses, by a sample of its pages"),
        ("MCTLSZ", "what its balloon holds: taken from it"),
        ("ADDED", "what it got above what it was built with"),
        ("PRESSURE", "100 x demand / assigned"),
    ),
    View.DISK: (
        _WEIGHT,
        _RESERVE,
        _LIMIT,
        _ENTITLED,
        ("IOPS", "what it got"),
        ("REQ/S", "requests as they came"),
        ("MB/S", "megabytes a second"),
        ("LAT/MS", "of a request from its arrival to its end, on average"),
        ("HELD/MS", "what of that it was held back, by a limit or for others"),
    ),
    View.NETWORK: (
        _WEIGHT,
        _RESERVE,
        _LIMIT,
        _ENTITLED,
        ("MBTX/S", "what it sent"),
        ("MBRX/S", "what came to it"),
        ("TX, RX", "frames"),
        ("DROPPED", "frames that a limit, a full queue or the link's loss took"),
    ),
}
"""Columns that have nothing to show are not there."""
GRADES: Final = {
    Grade.NOTE: "as somebody wanted it: a limit at work, say",
    Grade.WARNING: "it gets less than it wants, because others have it",
    Grade.ALARM: "the same, and worse",
}
KEYS: Final = (
    ("c m d n", "processors, memory, disks, network; s: who uses most first"),
    ("l", "all counters, by the names that Hyper-V and esxtop have"),
    ("arrows", "rows, and windows of a file; space: hold still; q: quit"),
)
