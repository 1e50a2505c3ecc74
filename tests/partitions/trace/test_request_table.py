"""The table of requests: which rows, in which order, and percentiles of all."""

from __future__ import annotations

import pytest

from partitions.trace import request_table
from partitions.trace.filters import parse_filter
from partitions.trace.request_table import Order, RequestTable, Table, lines
from tests.partitions.crossings import Crossings

NAMES = {2: "web", 3: "db"}


def table(crossings: Crossings, order: Order = "duration", limit: int | None = None, chosen: str = "") -> Table:
    made = RequestTable(order, limit, parse_filter(chosen) if chosen else None, NAMES)
    for event in crossings.events:
        made.feed(event)
    return made.finish()


@pytest.fixture
def crossings() -> Crossings:
    """Web's requests 1 to 10, the n-th taking n microseconds; one of db; one that nobody answers."""
    made = Crossings()
    for number in range(1, 11):
        made.packets(2, 1, [number])
        made.now += 10 * (number - 1)
        made.answers(2, 1, [number])
    made.packets(3, 7, [5])
    made.now += 990
    made.answers(3, 7, [5])
    made.packets(2, 1, [99])
    return made


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("duration", ["db/7/0x5", "web/1/0xa", "web/1/0x9"]),
        ("time", ["web/1/0x1", "web/1/0x2", "web/1/0x3"]),
        ("name", ["db/7/0x5", "web/1/0x1", "web/1/0x2"]),
    ],
)
def test_orders(crossings: Crossings, order: Order, expected: list[str]) -> None:
    """The slowest, the earliest, or by name; the rest is counted."""
    made = table(crossings, order, 3)
    assert [row.name for row in made.requests] == expected
    assert made.left_out == 9
    assert len(table(crossings, order, 0).requests) == 12


def test_of_two_alike_the_first() -> None:
    """As the story of the slowest has it."""
    crossings = Crossings()
    for number in (1, 2, 3):
        crossings.packets(2, 1, [number])
        crossings.answers(2, 1, [number])
    assert [row.name for row in table(crossings, limit=2).requests] == ["web/1/0x1", "web/1/0x2"]


def test_percentiles(crossings: Crossings) -> None:
    """Of the answered requests of each VM's device, whatever is shown; the nearest rank."""
    made = table(crossings, limit=1)
    db, web = made.devices
    assert (web.requests, web.p50_us, web.p90_us, web.p99_us, web.longest_us) == (10, 5.0, 9.0, 10.0, 10.0)
    assert (db.requests, db.p50_us, db.bytes) == (1, 100.0, 64)
    assert made.unanswered == 1


def test_filtered(crossings: Crossings) -> None:
    """A request counts if any of its hops matches."""
    made = table(crossings, chosen="vm=db")
    assert [row.name for row in made.requests] == ["db/7/0x5"]
    assert [row.vm for row in made.devices] == ["db"]


def test_rows_are_bounded(crossings: Crossings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for all rows of a long trace gets as many as memory should hold, and the count of the others."""
    monkeypatch.setattr(request_table, "MAX_ROWS", 5)
    made = table(crossings, limit=0)
    assert (len(made.requests), made.left_out) == (5, 7)


def test_for_people(crossings: Crossings) -> None:
    """Columns stand below their heads."""
    shown = lines(table(crossings, limit=1))
    assert shown[0].split() == ["request", "device", "started", "took", "what"]
    assert shown[1].endswith("100.0 us  packet 0x5")
    assert shown[0].index("took") + 4 == shown[1].index("us") + 2
    assert "... and 11 more; --limit 0 shows all" in shown
    assert shown[-1] == "1 not answered"
