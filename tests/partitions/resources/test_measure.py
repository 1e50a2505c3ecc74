"""The language of measures: what it reads, what it refuses and with which words, what comes out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.resources.measure import (
    Amount,
    Measure,
    MeasureError,
    evaluate,
    fields,
    figure,
    number_in,
    parse_measure,
    said,
)
from partitions.resources.sample import Cpu, Disk, Network, Node

NOT_KNOWN = (
    *("uptime", "exit_code", "demand", "entitled", "reserve", "limit", "weight", "contended", "worth", "swapped"),
    *("active", "target", "ballooned", "added", "pressure", "minimum", "maximum", "free", "capacity", "state"),
)
NODE = Node(
    path="vm/a",
    kind="vm",
    uptime=10.0,
    cpu=Cpu(vps=2, elapsed=10_000_000_000, run=5_000_000_000, ready=2_000_000_000, waited=2_000_000_000, dispatches=4),
    disk=Disk(normalized=30, elapsed=10_000_000_000),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vm/a cpu.run_percent", Measure(Amount(node="vm/a", field="cpu.run_percent"))),
        (" host  cpu.run_seconds ", Measure(Amount(node="host", field="cpu.run_seconds"))),
        ("pool/p.1 cpu.run in 2..4.5", Measure(Amount(node="pool/p.1", field="cpu.run", span=(2.0, 4.5)))),
        ('vm/a-b says "took {} ms"', Measure(Amount(node="vm/a-b", says="took {} ms"))),
        (
            "vm/a uptime / vm/b uptime",
            Measure(Amount(node="vm/a", field="uptime"), "/", Amount(node="vm/b", field="uptime")),
        ),
        (
            'vm/a says "a {}" - vm/b says "b {}"',
            Measure(Amount(node="vm/a", says="a {}"), "-", Amount(node="vm/b", says="b {}")),
        ),
    ],
)
def test_what_can_be_written(text: str, expected: Measure) -> None:
    """A node and a figure, a span, a line of a console, a quotient, a difference."""
    assert parse_measure(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cpu.run_percent", "must be a node and a figure"),
        ("vm/a", "must be a node and a figure"),
        ("vm/a cpu.run_prcent", 'there is no figure "cpu.run_prcent"; did you mean "cpu.run_percent"?'),
        ("vm/a zzz", "known are"),
        ("vm/a cpu.run in 4..2", "must end after it begins"),
        ("vm/a cpu.run * 2", '"* 2" is too much'),
        ("vm/a cpu.run / vm/b cpu.run / vm/c cpu.run", "is too much"),
        ("vm/a cpu.run /", "must be a node and a figure"),
        ('vm/a says "nothing to fill"', "must have one {}"),
        ('vm/a says "{}"', "words beside it"),
        ('host says "took {} ms"', "only a VM has a console"),
        ("", "must be a node and a figure"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    """The error says what is wrong, and where there is a near name, that."""
    with pytest.raises(MeasureError) as caught:
        parse_measure(text)
    assert words in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but `MeasureError` comes out of words that are no measure."""
    try:
        parse_measure(text)
    except MeasureError:
        pass


@pytest.mark.parametrize("field", fields())
def test_every_figure_is_one(field: str) -> None:
    """Each name that can be written is there on a node that has all parts, but for what does not apply to it."""
    node = Node(path="vm/a", kind="vm", disk=Disk(), network=Network())
    try:
        assert isinstance(figure(node, field), float | str)
    except MeasureError:
        assert field.rpartition(".")[2] in NOT_KNOWN


def test_figures() -> None:
    """Percent are of one logical processor; what a node has not is no zero."""
    assert figure(NODE, "cpu.run_percent") == 50.0
    assert figure(NODE, "cpu.steal_percent") == 20.0
    assert figure(NODE, "cpu.wait_per_dispatch_us") == 500_000.0
    assert figure(NODE, "disk.iops") == 3.0
    assert figure(NODE, "uptime") == 10.0
    with pytest.raises(MeasureError, match=r"vm/a has no network\.sent in this run"):
        figure(NODE, "network.sent")
    with pytest.raises(MeasureError, match=r"has no cpu\.entitled"):
        figure(NODE, "cpu.entitled")


def test_the_last_line_that_fits_counts() -> None:
    """Words after the hole end the answer; without them it goes to the end of the line."""
    lines = ["took 3 ms", "took 4 ms today", "name: big one", "done"]
    assert said(lines, "took {} ms") == "4"
    assert said(lines, "name: {}") == "big one"
    with pytest.raises(MeasureError, match="has not said"):
        said(lines, "lost {}")


def test_numbers_in_words() -> None:
    """The first one, with separators."""
    assert number_in("about 1,234.5 ms") == 1234.5
    assert number_in("-2e3") == -2000.0
    with pytest.raises(MeasureError, match="no number"):
        number_in("fast")


def test_two_figures() -> None:
    """A quotient, a difference; 0 is no divisor, and words are no number."""
    values: dict[str, float | str] = {"cpu.run": 6.0, "cpu.ready": 2.0, "cpu.capped": 0.0, "state": "off"}

    def look(amount: Amount) -> float | str:
        return values[amount.field]

    assert evaluate(parse_measure("vm/a cpu.run / vm/a cpu.ready"), look) == 3.0
    assert evaluate(parse_measure("vm/a cpu.run - vm/a cpu.ready"), look) == 4.0
    assert evaluate(parse_measure("vm/a state"), look, numeric=False) == "off"
    with pytest.raises(MeasureError, match="nothing can be divided"):
        evaluate(parse_measure("vm/a cpu.run / vm/a cpu.capped"), look)
    with pytest.raises(MeasureError, match="no number in it"):
        evaluate(parse_measure("vm/a state"), look)


def test_marks() -> None:
    """Whoever runs it looks at the ends of each span, once."""
    assert parse_measure("vm/a cpu.run in 2..4 / vm/b cpu.run in 0..4").marks == [0.0, 2.0, 4.0]
    assert parse_measure("vm/a cpu.run").marks == []
