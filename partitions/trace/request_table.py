"""Requests as a table, and the percentiles of their times by device. Root side.

Pure: feed it every event; it keeps the rows that will be shown and one number for each request.
"""

from __future__ import annotations

import heapq
import itertools
from array import array
from collections.abc import Mapping
from typing import Final, Literal

import attrs
import msgspec

from hypervisor.clock import seconds
from hypervisor.trace import TraceEvent
from partitions.logs import printable, short_name
from partitions.trace.requests import Outcome, Request, RequestTracker
from partitions.trace.story import Likes

Order = Literal["duration", "time", "name"]
SHOWN: Final = 40
"""Rows by default."""
MAX_ROWS: Final = 500_000
"""Rows at most, whatever is asked for."""
_PERCENTILES: Final = (50, 90, 99)
_US: Final = 10


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One request, by stable names."""

    name: str
    vm: str
    channel: int
    transaction_id: int
    device: str
    words: str
    result: str
    outcome: str
    size: int
    started_s: float
    duration_us: float
    hops: int


class DeviceRow(msgspec.Struct, frozen=True, kw_only=True):
    """The answered requests of one device of one VM. Times in microseconds."""

    vm: str
    device: str
    requests: int
    bytes: int
    p50_us: float
    p90_us: float
    p99_us: float
    longest_us: float


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, by stable names."""

    requests: list[Row]
    left_out: int
    """Requests that fit and have no row."""
    unanswered: int
    forgotten: int
    """Requests that were too many to be followed at once."""
    devices: list[DeviceRow]


@attrs.define(eq=False)
class _Times:
    durations: array[int] = attrs.field(factory=lambda: array("Q"))
    bytes: int = 0


class RequestTable:
    """Takes every event, in order; `finish` gives the table."""

    def __init__(
        self,
        order: Order = "duration",
        limit: int | None = None,
        likes: Likes | None = None,
        names: Mapping[int, str] | None = None,
    ) -> None:
        """`limit` rows, `SHOWN` where it is None and all where it is 0: the slowest, the first, or the first by name.

        `likes` is asked about each hop of a request; one that it likes is enough.
        """
        self._tracker = RequestTracker(names)
        self._order = order
        self._limit = SHOWN if limit is None else limit or MAX_ROWS
        self._likes = likes
        self._rows: list[tuple[_Key, Request]] = []
        self._count = 0
        self._unanswered = 0
        self._turn = itertools.count()
        self._times: dict[tuple[str, str], _Times] = {}

    def feed(self, event: TraceEvent) -> None:
        """One more thing happened."""
        for request in self._tracker.feed(event):
            self._add(request)

    def finish(self) -> Table:
        """There is no more."""
        for request in [*self._tracker.finish(), *self._tracker.open]:
            self._add(request)
        rows = [_row(request) for _, request in sorted(self._rows, key=lambda item: item[0], reverse=True)]
        return Table(
            requests=rows,
            left_out=self._count - len(rows),
            unanswered=self._unanswered,
            forgotten=sum(self._tracker.forgotten.values()),
            devices=[_device_row(*key, times) for key, times in sorted(self._times.items())],
        )

    def _add(self, request: Request) -> None:
        if self._likes is not None and not any(self._likes(hop.event, request.vm) for hop in request.hops):
            return
        self._count += 1
        if request.outcome is Outcome.ANSWERED:
            times = self._times.setdefault((request.vm, request.device), _Times())
            times.durations.append(max(request.duration, 0))
            times.bytes += request.size
        else:
            self._unanswered += 1
        key = _Key(self._rank(request), -next(self._turn))
        if len(self._rows) < self._limit:
            heapq.heappush(self._rows, (key, request))
        elif key > self._rows[0][0]:
            heapq.heapreplace(self._rows, (key, request))

    def _rank(self, request: Request) -> tuple[object, ...]:
        """Larger is nearer to the top."""
        match self._order:
            case "duration":
                return (request.duration,)
            case "time":
                return (-request.started,)
            case "name":
                return (_Backwards((request.vm, request.channel, request.transaction_id, request.number)),)


@attrs.define(order=True)
class _Key:
    rank: tuple[object, ...]
    turn: int
    """Of two alike the earlier."""


@attrs.define(eq=True, order=False)
class _Backwards:
    """What sorts the other way round."""

    value: tuple[str, int, int, int]

    def __lt__(self, other: _Backwards) -> bool:
        return self.value > other.value


def _row(request: Request) -> Row:
    return Row(
        name=request.name,
        vm=request.vm,
        channel=request.channel,
        transaction_id=request.transaction_id,
        device=request.device,
        words=printable(request.words),
        result=printable(request.result),
        outcome=request.outcome.value,
        size=request.size,
        started_s=seconds(request.started),
        duration_us=request.duration / _US,
        hops=len(request.hops),
    )


def _device_row(vm: str, device: str, times: _Times) -> DeviceRow:
    durations = sorted(times.durations)
    p50, p90, p99 = (durations[-(-len(durations) * share // 100) - 1] / _US for share in _PERCENTILES)
    return DeviceRow(
        vm=vm,
        device=device,
        requests=len(durations),
        bytes=times.bytes,
        p50_us=p50,
        p90_us=p90,
        p99_us=p99,
        longest_us=durations[-1] / _US,
    )


def lines(table: Table) -> list[str]:
    """For people."""
    shown = _columns(
        ("request", "device", "started", "took", "what"),
        "<<>><",
        [
            (
                printable(row.name),
                short_name(row.device) or "-",
                f"{row.started_s:.6f} s",
                f"{row.duration_us:.1f} us",
                _what(row),
            )
            for row in table.requests
        ],
    )
    if table.left_out:
        shown.append(f"... and {table.left_out} more; --limit 0 shows all")
    shown.append("")
    shown += _columns(
        ("VM", "device", "answered", "bytes", "p50 us", "p90 us", "p99 us", "longest us"),
        "<<>>>>>>",
        [
            (
                short_name(row.vm),
                short_name(row.device) or "-",
                str(row.requests),
                str(row.bytes),
                *(f"{value:.1f}" for value in (row.p50_us, row.p90_us, row.p99_us, row.longest_us)),
            )
            for row in table.devices
        ],
    )
    if table.unanswered:
        shown.append(f"{table.unanswered} not answered")
    if table.forgotten:
        shown.append(f"{table.forgotten} were too many at once and are not followed")
    return shown


def _what(row: Row) -> str:
    outcome = "" if row.outcome == Outcome.ANSWERED.value else f" ({row.outcome})"
    return f"{row.words}{f' -> {row.result}' if row.result else ''}{outcome}"


def _columns(head: tuple[str, ...], sides: str, rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
