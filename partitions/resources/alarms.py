"""Lines that operators know: which figures of a sample cross them, and what that means. Root side.

The lines are those that people use with esxtop and Hyper-V's performance monitor. A limit that holds somebody back is
no alarm: somebody has set it. It is told as a note, since a person who looks may not know of it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import attrs

from partitions.resources.sample import Node, Sample

READY: Final = 10.0
"""%RDY without %MLMTD, for each virtual processor."""
WAIT_US: Final = 60.0
"""CPU Wait Time Per Dispatch."""
WAIT_ALARM_US: Final = 100.0
LATENCY_MS: Final = 25.0
"""GAVG: of a request, from its arrival to its end."""
HELD_MS: Final = 2.0
"""KAVG: what of it the host took."""
PRESSURE: Final = 100.0
AT_LIMIT: Final = 0.95
"""Who has so much of his limit is at it: requests come in whole ones."""
MOST_NAMES: Final = 3
MOST_LETTERS: Final = 30
"""Of a name in words."""
LEAST_BOTH: Final = 10
"""Characters with which a name that is cut keeps its end."""
PAGE: Final = "docs/top-and-plot.md#lines"


class Grade(enum.IntEnum):
    """How much it matters."""

    NOTE = 1
    """As somebody wanted it."""
    WARNING = 2
    ALARM = 3


SIGNS: Final = {Grade.NOTE: "*", Grade.WARNING: "!", Grade.ALARM: "!!"}


@attrs.frozen(eq=False)
class Line:
    """One figure, and from where on it says something."""

    headings: tuple[str, ...]
    """Columns of the table and counters of the long form that show it."""
    grade: Callable[[Node, Sequence[Node]], Grade | None]
    """Of a node, and of the pools around it from the host on."""
    words: dict[Grade, tuple[str, str]]
    """Which line it is, and what it means."""
    unless: tuple[str, ...] = ()
    """Columns: who is told of for one of them is not told of for this as well."""
    named: Callable[[Node], str] = attrs.field(default=lambda node: node.name)
    """How a node is called in these words."""


def _ready(node: Node, around: Sequence[Node]) -> Grade | None:
    cpu = node.cpu
    if cpu.ready_percent <= READY * max(1, cpu.vps):
        return None
    return Grade.NOTE if cpu.batch or _has_its_limit(node, around) else Grade.WARNING


def _has_its_limit(node: Node, around: Sequence[Node]) -> bool:
    """Of processors: more weight would give it nothing, whoever it waits for meanwhile."""
    parts = [one.cpu for one in (node, *around) if one.kind != "host"]
    return any(cpu.limit is not None and cpu.delivered >= AT_LIMIT * cpu.limit for cpu in parts)


def _capped(node: Node, around: Sequence[Node]) -> Grade | None:
    return Grade.NOTE if node.cpu.capped else None


def _wait(node: Node, around: Sequence[Node]) -> Grade | None:
    cpu = node.cpu
    if cpu.wait_per_dispatch_us <= WAIT_US or not (cpu.ready or cpu.capped):
        return None  # a wait that ended as the window began is the one's before
    for_others = min(cpu.waited, cpu.ready) / 1000 / cpu.dispatches
    if cpu.batch or for_others <= WAIT_US or _has_its_limit(node, around):
        return Grade.NOTE
    return Grade.ALARM if for_others > WAIT_ALARM_US else Grade.WARNING


def _balloon(node: Node, around: Sequence[Node]) -> Grade | None:
    if not node.memory.ballooned:
        return None
    return Grade.WARNING if node.memory.cause == "host" else Grade.NOTE


def _pressure(node: Node, around: Sequence[Node]) -> Grade | None:
    return Grade.WARNING if (node.memory.pressure or 0) > PRESSURE else None


def _short(node: Node, around: Sequence[Node]) -> Grade | None:
    """Of the host."""
    return {"soft": Grade.WARNING, "hard": Grade.ALARM, "low": Grade.ALARM}.get(node.memory.state or "")


def _latency(node: Node, around: Sequence[Node]) -> Grade | None:
    if node.disk is None or node.disk.latency_ms <= LATENCY_MS:
        return None
    own_work = node.disk.latency_ms - node.disk.waited_ms
    return Grade.NOTE if own_work <= LATENCY_MS and _at_limit(node, around) else Grade.WARNING


def _held(node: Node, around: Sequence[Node]) -> Grade | None:
    if node.disk is None or node.disk.waited_ms <= HELD_MS:
        return None
    return Grade.NOTE if _at_limit(node, around) else Grade.WARNING


def _at_limit(node: Node, around: Sequence[Node]) -> bool:
    """Its own or a pool's; the host's is what there is."""
    disks = [one.disk for one in (node, *around) if one.disk is not None and one.kind != "host"]
    return any(disk.limit and disk.iops >= AT_LIMIT * disk.limit for disk in disks)


def _dropped(node: Node, around: Sequence[Node]) -> Grade | None:
    return Grade.NOTE if node.network is not None and node.network.dropped else None


_OTHERS: Final = "others have the processors"
_ENOUGH: Final = "of the batch class, they get what others leave; or they have all that a limit allows"
_LIMIT: Final = "a limit that somebody has set holds them back, their own or their pool's"
_TURN: Final = "each turn on a processor is waited for so long"
LINES: Final = (
    Line(
        ("%RDY",),
        _ready,
        {
            Grade.WARNING: (f"%RDY above {READY:g} for each processor", _OTHERS),
            Grade.NOTE: (f"%RDY above {READY:g} for each processor", _ENOUGH),
        },
    ),
    Line(("%MLMTD",), _capped, {Grade.NOTE: ("%MLMTD above 0", _LIMIT)}),
    Line(
        ("WAIT/DISP", "CPU Wait Time Per Dispatch"),
        _wait,
        {
            Grade.ALARM: (f"WAIT/DISP above {WAIT_ALARM_US:g} us", _TURN),
            Grade.WARNING: (f"WAIT/DISP above {WAIT_US:g} us", _TURN),
            Grade.NOTE: (f"WAIT/DISP above {WAIT_US:g} us", "a limit that somebody has set, or the batch class"),
        },
        unless=("%RDY", "%MLMTD"),
    ),
    Line(
        ("MCTLSZ",),
        _balloon,
        {
            Grade.WARNING: ("MCTLSZ above 0", "the host is short of memory and took it from them"),
            Grade.NOTE: ("MCTLSZ above 0", "lent while idle, taken by a pool's limit, or asked for by a person"),
        },
        named=lambda node: f"{node.name} ({node.memory.cause})" if node.memory.cause else node.name,
    ),
    Line(
        ("PRESSURE", "Current Pressure"),
        _pressure,
        {Grade.WARNING: (f"PRESSURE above {PRESSURE:g}", "they need more memory than they have, and swap")},
    ),
    Line(
        ("LAT/MS", "GAVG"),
        _latency,
        {
            Grade.WARNING: (f"LAT/MS (GAVG) above {LATENCY_MS:g}", "their requests are slow"),
            Grade.NOTE: (f"LAT/MS (GAVG) above {LATENCY_MS:g}", _LIMIT),
        },
    ),
    Line(
        ("HELD/MS", "KAVG"),
        _held,
        {
            Grade.WARNING: (f"HELD/MS (KAVG) above {HELD_MS:g}", "others have the storage"),
            Grade.NOTE: (f"HELD/MS (KAVG) above {HELD_MS:g}", _LIMIT),
        },
        unless=("LAT/MS", "GAVG"),
    ),
    Line(
        ("DROPPED", "Dropped Packets"),
        _dropped,
        {Grade.NOTE: ("DROPPED above 0", "frames that a limit, a full queue or the link's loss took")},
    ),
)
"""Of VMs."""
SHORT: Final = Line(
    ("ASSIGNED",),
    _short,
    {
        Grade.ALARM: ("free memory below 2 %", "VMs give back all that they do not need, at once"),
        Grade.WARNING: ("free memory below 4 %", "VMs give back what they do not need"),
    },
)
"""Of the host."""


class Marks:
    """What of a sample stands out."""

    def __init__(self, sample: Sample, headings: Sequence[str]) -> None:
        """As far as it is shown by one of these columns or counters."""
        self.grades: dict[tuple[str, str], Grade] = {}
        """By path and column."""
        self._told: dict[tuple[Grade, Line], list[str]] = {}
        shown = [(line, known) for line in (SHORT, *LINES) if (known := [one for one in headings if _is(one, line)])]
        around: list[Node] = []
        for node in sample.nodes:
            del around[node.depth :]
            if node.kind != "vm":
                around.append(node)
            for line, known in shown:
                if (node.kind == "host") if line is SHORT else (node.kind == "vm"):
                    self._look(line, known, node, around)

    def _look(self, line: Line, known: Sequence[str], node: Node, around: Sequence[Node]) -> None:
        grade = line.grade(node, around)
        if grade is None:
            return
        for heading in known:
            self.grades[node.path, heading] = grade
        if not any((node.path, other) in self.grades for other in line.unless):
            self._told.setdefault((grade, line), []).append(line.named(node))

    def of(self, node: Node, heading: str) -> Grade | None:
        """How much one figure matters."""
        return self.grades.get((node.path, heading))

    def words(self) -> Iterator[tuple[Grade, str]]:
        """A line for each that is crossed, what matters most first; the last one says where it is explained."""
        told = sorted(self._told.items(), key=lambda one: -one[0][0])
        for number, ((grade, line), names) in enumerate(told, 1):
            which, meaning = line.words[grade]
            who = "" if line is SHORT else f": {_names(names)}"
            where = f" ({PAGE})" if number == len(told) else ""
            yield grade, f"{SIGNS[grade]} {which}{who}: {meaning}{where}"


def _is(heading: str, line: Line) -> bool:
    return heading.rpartition("\\")[2] in line.headings


def shortened(name: str, most: int) -> str:
    """So many characters at most: names of one kind often differ at their ends."""
    if len(name) <= most:
        return name
    tail = max(0, most - 1) // 3 if most >= LEAST_BOTH else 0
    return f"{name[: most - 1 - tail]}…{name[len(name) - tail :]}"


def _names(names: Sequence[str]) -> str:
    names = [shortened(name, MOST_LETTERS) for name in names]
    if len(names) <= MOST_NAMES + 1:
        return ", ".join(names)
    return f"{', '.join(names[:MOST_NAMES])} and {len(names) - MOST_NAMES} more"
