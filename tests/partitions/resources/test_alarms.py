"""Lines that operators know: which figures cross them, and where that is as somebody wanted it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from partitions.resources.alarms import PAGE, Grade, Marks
from partitions.resources.render import Look, rendered, rows
from partitions.resources.sample import Cpu, Disk, Memory, Network, Node, Sample
from partitions.resources.view import COLUMNS, LONG, View
from tests.partitions.resources.samples import HEADING, MS, WINDOW

US = 1000


def marked(heading: str, *above: Node, **parts: Any) -> Grade | None:
    """How a VM with these figures stands out in one column."""
    vm = Node(path="vm/a", kind="vm", depth=len(above), **parts)
    return Marks(Sample(time=1.0, window=WINDOW, nodes=[*above, vm]), [heading]).of(vm, heading)


def cpu(**figures: Any) -> Cpu:
    return Cpu(**({"vps": 1, "elapsed": WINDOW} | figures))


@pytest.mark.parametrize(
    ("figures", "grade"),
    [
        ({"ready": 10 * MS}, None),
        ({"ready": 10 * MS + 1}, Grade.WARNING),
        ({"ready": 20 * MS, "vps": 2}, None),
        ({"ready": 20 * MS + 1, "vps": 2}, Grade.WARNING),
        ({"ready": 90 * MS, "batch": True}, Grade.NOTE),
        ({"ready": 5 * MS, "capped": 80 * MS}, None),
        ({"ready": 80 * MS, "delivered": 19.5, "limit": 20.0}, Grade.NOTE),
        ({"ready": 80 * MS, "delivered": 15.0, "limit": 20.0}, Grade.WARNING),
    ],
)
def test_ready(figures: dict[str, Any], grade: Grade | None) -> None:
    """%RDY: 10 for each virtual processor, without what a limit is to blame for. Who has all that his limit allows
    waits for others meanwhile, and yet nobody takes anything from him; nor where the limit is his pool's.
    """
    assert marked("%RDY", cpu=cpu(**figures)) is grade


def test_ready_in_a_pool_at_its_limit() -> None:
    """It is the pool's limit that is the cause, and the host has none of its own."""
    waits = cpu(ready=80 * MS, delivered=10.0)
    full = Node(path="pool/p", kind="pool", cpu=cpu(delivered=50.0, limit=50.0))
    host = Node(path="host", kind="host", cpu=cpu(delivered=100.0, limit=100.0))
    assert marked("%RDY", host, full, cpu=waits) is Grade.NOTE
    assert (
        marked("WAIT/DISP", host, full, cpu=msgspec.structs.replace(waits, dispatches=1, waited=80 * MS)) is Grade.NOTE
    )
    assert marked("%RDY", host, cpu=waits) is Grade.WARNING


def test_limited() -> None:
    """%MLMTD: anything is worth a note and nothing an alarm, since somebody has set that limit."""
    assert marked("%MLMTD", cpu=cpu(capped=0)) is None
    assert marked("%MLMTD", cpu=cpu(capped=1)) is Grade.NOTE
    assert marked("%MLMTD", cpu=cpu(capped=90 * MS)) is Grade.NOTE


@pytest.mark.parametrize(
    ("us", "more", "grade"),
    [
        (7, {}, None),
        (60, {}, None),
        (61, {}, Grade.WARNING),
        (100, {}, Grade.WARNING),
        (101, {}, Grade.ALARM),
        (101, {"batch": True}, Grade.NOTE),
        (5000, {"ready": 10 * 7 * US, "capped": 50 * MS}, Grade.NOTE),
        (5000, {"ready": 0}, None),
    ],
)
def test_wait_per_dispatch(us: int, more: dict[str, Any], grade: Grade | None) -> None:
    """M12: 60 and 100 us; 7 to 10 are a quiet host. What a limit makes one wait for is a note."""
    figures = {"dispatches": 10, "waited": 10 * us * US, "ready": 10 * us * US} | more
    assert marked("WAIT/DISP", cpu=cpu(**figures)) is grade


@pytest.mark.parametrize(
    ("figures", "grade"),
    [
        ({"ballooned": 0}, None),
        ({"ballooned": 1 << 20, "cause": "host"}, Grade.WARNING),
        ({"ballooned": 1 << 20, "cause": "limit"}, Grade.NOTE),
        ({"ballooned": 1 << 20, "cause": "idle"}, Grade.NOTE),
        ({"ballooned": 1 << 20, "cause": "asked"}, Grade.NOTE),
    ],
)
def test_balloons(figures: dict[str, Any], grade: Grade | None) -> None:
    """MCTLSZ above 0: a warning where the host is short, a note where a person or a lender is behind it."""
    assert marked("MCTLSZ", memory=Memory(**figures)) is grade


def test_memory() -> None:
    """Pressure of more than 100 is a guest that swaps; the host's states are its own to tell."""
    assert marked("PRESSURE", memory=Memory(pressure=100.0)) is None
    assert marked("PRESSURE", memory=Memory(pressure=101.0)) is Grade.WARNING
    for state, grade in (("high", None), ("soft", Grade.WARNING), ("hard", Grade.ALARM), ("low", Grade.ALARM)):
        host = Node(path="host", kind="host", memory=Memory(state=state))
        assert Marks(Sample(time=1.0, window=WINDOW, nodes=[host]), ["ASSIGNED"]).of(host, "ASSIGNED") is grade


def disk(latency: float, held: float, **more: Any) -> Disk:
    """100 requests of so many milliseconds, in a tenth of a second."""
    took, waited = round(100 * latency * MS), round(100 * held * MS)
    return Disk(requests=100, normalized=100, elapsed=WINDOW, busy=took, waited=waited, **more)


HOST = Node(path="host", kind="host", disk=Disk(elapsed=WINDOW, normalized=100, limit=1000))
POOL = Node(path="pool/p", kind="pool", depth=1, disk=Disk(elapsed=WINDOW, normalized=100, limit=1000))


@pytest.mark.parametrize(
    ("figures", "above", "slow", "held_back"),
    [
        (disk(25, 2), [HOST], None, None),
        (disk(25.1, 2.1), [HOST], Grade.WARNING, Grade.WARNING),
        (disk(25.1, 20, limit=1000), [HOST], Grade.NOTE, Grade.NOTE),
        (disk(25.1, 20), [HOST, POOL], Grade.NOTE, Grade.NOTE),
        (disk(25.1, 20, limit=2000), [HOST], Grade.WARNING, Grade.WARNING),
        (disk(60, 20, limit=1000), [HOST], Grade.WARNING, Grade.NOTE),
    ],
)
def test_latency(figures: Disk, above: list[Node], slow: Grade | None, held_back: Grade | None) -> None:
    """GAVG 25 ms and KAVG 2 ms; at a limit, his own or his pool's, one waits for that; slow storage is none."""
    assert marked("LAT/MS", *above, disk=figures) is slow
    assert marked("HELD/MS", *above, disk=figures) is held_back


def test_frames() -> None:
    """What is dropped, somebody's limit, queue or link has dropped."""
    assert marked("DROPPED", network=Network(dropped=1)) is Grade.NOTE
    assert marked("DROPPED", network=Network()) is None
    assert marked("DROPPED") is None


def test_words() -> None:
    """One line for each line that is crossed, what matters most first, with names and, once, the page."""
    names = [f"v{number}" for number in range(6)]
    waiting = cpu(ready=50 * MS, waited=50 * MS, dispatches=1)
    nodes = [Node(path=f"vm/{name}", kind="vm", cpu=waiting) for name in names]
    nodes.append(Node(path="vm/quick", kind="vm", cpu=cpu(ready=9 * MS, waited=9 * MS, dispatches=1)))
    nodes.append(Node(path="vm/capped", kind="vm", cpu=cpu(capped=9 * MS, waited=9 * MS, dispatches=1)))
    sample = Sample(time=1.0, window=WINDOW, nodes=nodes)
    assert [line for _, line in Marks(sample, [column.heading for column in COLUMNS[View.CPU]]).words()] == [
        "!! WAIT/DISP above 100 us: quick: each turn on a processor is waited for so long",
        "! %RDY above 10 for each processor: v0, v1, v2 and 3 more: others have the processors",
        "* %MLMTD above 0: capped: a limit that somebody has set holds them back, their own or their pool's "
        "(docs/top-and-plot.md#lines)",
    ]
    assert list(Marks(sample, ["LAT/MS"]).words()) == []


def test_an_idle_host() -> None:
    """M12: what it shows is what a switch costs, and nothing stands out."""
    node = Node(path="vm/a", kind="vm", depth=1, cpu=cpu(run=9 * MS, dispatches=9, waited=9 * 7 * US, ready=9 * 7 * US))
    host = msgspec.structs.replace(node, path="host", kind="host", depth=0)
    shown = rendered(Sample(time=1.0, window=WINDOW, nodes=[host, node]), HEADING, Look())
    assert [line.split()[-2:] for line in shown[-2:]] == [["7.0", "us"], ["7.0", "us"]]
    long = rows(Sample(time=1.0, window=WINDOW, nodes=[node]), Look(long=True))
    assert any(line.endswith("CPU Wait Time Per Dispatch      7,000 ns") for line in long)


def test_the_names_of_the_lines() -> None:
    """Each column and counter that has a line is one that is shown; the page that explains them is there."""
    from partitions.resources.alarms import LINES

    shown = {column.heading for view in COLUMNS.values() for column in view}
    shown |= {name.rpartition("\\")[2] for view in LONG.values() for name, _ in view}
    assert {heading for line in LINES for heading in line.headings} <= shown
    page, _, anchor = PAGE.partition("#")
    text = (Path(__file__).parents[3] / page).read_text()
    anchors = [
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)", text, re.M)
    ]
    assert anchor in anchors
