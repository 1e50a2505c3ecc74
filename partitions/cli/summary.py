"""What `partita run` shows: console lines, a block redrawn on a terminal, and the table at the end. Root side.

Plain ANSI: the block is erased before anything else is written and drawn again a few times a second.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

import msgspec

from partitions.cli.outlets import Outlets
from partitions.logs import printable

if TYPE_CHECKING:
    from partitions.host import Host, Vm

LIVE_ROWS = 12
"""VMs shown while running; the rest are counted."""
_ERASE_BELOW = "\033[J"


class VmRow(msgspec.Struct, frozen=True):
    """One VM in the table and in `--json`, by stable names."""

    vm: str
    state: str
    """off, running, ..."""
    exit: str | None
    """Why it ended: powered off, crashed, ...; none for a VM that was never started or is on."""
    exit_code: int | None
    ok: bool
    """Whether it ended well, or has not ended."""
    detail: str
    uptime: float
    """Seconds on the host's clock."""
    messages: int
    """Channel messages, both ways."""
    packets: int
    """Ring packets, both ways."""
    bytes: int
    """Bytes through the rings, both ways."""
    hypercalls: int
    interrupts: int
    faults: int
    """The guest's mistakes on the bus."""
    resets: int
    restarts: int
    """By its restart policy."""
    by: str
    """Who asked for the end; empty where nobody did."""
    console: list[str]
    """The last lines."""


def row_of(vm: Vm) -> VmRow:
    """A VM's row as of now."""
    statistics, record = vm.statistics(), vm.exit
    return VmRow(
        vm=vm.name,
        state=vm.state.value,
        exit=None if record is None else record.reason.value,
        exit_code=None if record is None else record.exit_code,
        ok=record is None or record.ok,
        detail="" if record is None else record.detail,
        uptime=round(vm.uptime, 7),
        messages=statistics.messages,
        packets=statistics.packets,
        bytes=statistics.bytes,
        hypercalls=statistics.hypercalls,
        interrupts=statistics.interrupts,
        faults=statistics.faults,
        resets=0 if record is None else record.resets,
        restarts=vm.restarts,
        by="" if record is None else record.by,
        console=vm.console.lines()[-20:],
    )


def table(rows: Iterable[VmRow]) -> list[str]:
    """The rows as aligned lines under headings."""
    cells = [("VM", "STATE", "EXIT", "UPTIME", "MESSAGES", "PACKETS", "BYTES")]
    for row in rows:
        ending = "" if row.exit is None else row.exit
        if row.exit_code is not None:
            ending = f"{ending} ({row.exit_code})"
        cells.append(
            (
                row.vm,
                row.state,
                ending,
                f"{row.uptime:.3f} s",
                str(row.messages),
                str(row.packets),
                short_size(row.bytes),
            )
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(
            f"{cell:>{width}}" if column > 2 else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def short_size(size: int) -> str:
    """Bytes in at most three digits and a unit, for tables."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1000:
            break
        value, unit = value / 1024, larger
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


class Screen:
    """Lines for a person, and below them, on a terminal that can, a block that is always the last thing on it.

    It is a text stream too, so that trace lines on the same terminal go around the block.
    """

    def __init__(self, stream: TextIO, *, live: bool, outlets: Outlets | None = None) -> None:
        self.stream = stream
        self.live = live
        self._outlets = outlets or Outlets()
        self._works = True
        self._block = 0

    def write(self, text: str) -> int:
        """As a stream. Once the stream has failed, and that is told, nothing more is written."""
        if self._block:
            text, self._block = f"\033[{self._block}F{_ERASE_BELOW}{text}", 0
        self._put(text)
        return len(text)

    def _put(self, text: str) -> None:
        self._works = self._works and self._outlets.attempt("standard output", lambda: self.stream.write(text))

    def flush(self) -> None:
        """As a stream."""
        self._works = self._works and self._outlets.attempt("standard output", self.stream.flush)

    def isatty(self) -> bool:
        """As a stream."""
        return self.stream.isatty()

    def line(self, text: str) -> None:
        """One line above the block."""
        self.write(text + "\n")
        self.flush()

    @property
    def width(self) -> int | None:
        """Characters, where it is a terminal."""
        return shutil.get_terminal_size().columns if self.stream.isatty() else None

    def draw(self, lines: Sequence[str]) -> None:
        """Put the block there, in place of the one before."""
        if not self.live:
            return
        size = shutil.get_terminal_size()
        # What scrolls off the top cannot be erased, so a block that is too high for the terminal is cut.
        shown = [line[: size.columns - 1] for line in lines[: max(1, size.lines - 1)]]
        self.write("".join(f"{line}\n" for line in shown))
        self.flush()
        self._block = len(shown)

    def clear(self) -> None:
        """Take the block away."""
        if self._block:
            self.write("")
        self.flush()


def can_redraw(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a block can be redrawn there: a terminal that is not dumb."""
    return stream.isatty() and environment.get("TERM") != "dumb"


def live_block(host: Host) -> list[str]:
    """The table of VMs that are on, or were."""
    vms = list(host.values())
    lines = table(row_of(vm) for vm in vms[:LIVE_ROWS])
    if len(vms) > LIVE_ROWS:
        running = sum(vm.state.active for vm in vms)
        lines.append(f"... and {len(vms) - LIVE_ROWS} more; {running} of {len(vms)} are on")
    return lines


def console_line(vm: str, text: str, width: int) -> str:
    """A guest's line with its VM in front; the guest cannot drive the terminal."""
    return f"{vm:>{width}} | {printable(text.rstrip())}"
