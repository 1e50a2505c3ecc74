"""`partita run --predict` and `--samples`: what is asked, measured and written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hypervisor.scheduler.lateness import Lateness
from partitions.cli.main import main
from tests.partitions.cli.conftest import MakeTopology

Capture = pytest.CaptureFixture[str]
WORK = "await guest.work(1)\nawait guest.sleep(1)\nprint('took 12.5 ms')"
QUESTION = """
[question]
ask = "How much of a processor does a use?"
unit = "%"
measure = 'MEASURE'
tolerance = 2
because = "it works half of its time"
"""


def asking(folder: Path, measure: str = "vm/a cpu.run_percent", changed: dict[str, str] | None = None) -> Path:
    text = (folder / "topology.toml").read_text() + QUESTION.replace("MEASURE", measure)
    for before, after in (changed or {}).items():
        text = text.replace(before, after)
    (folder / "topology.toml").write_text(text)
    return folder


def document(capsys: Capture, *arguments: object) -> dict[str, Any]:
    assert main(["run", *map(str, arguments), "--json", "--clock", "virtual"]) == 0
    made: dict[str, Any] = json.loads(capsys.readouterr().out)
    return made


def test_a_question_is_asked_and_answered(topology: MakeTopology, capsys: Capture) -> None:
    """Before the run the question, at the end the answer and why; nobody has to predict."""
    assert main(["run", str(asking(topology(a=WORK))), "--clock", "virtual"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "question: How much of a processor does a use?"
    assert lines[-2:] == ["answer:   50 %", "because:  it works half of its time"]


def test_a_machine_that_was_too_busy(topology: MakeTopology, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last word is how late it was, where that is enough to spoil figures; a run without any has none."""

    worst = 0

    def woken(self: Lateness, late: int) -> None:
        self.worst, self.wakes = worst, 12

    monkeypatch.setattr(Lateness, "woken", woken)
    for late, told in ((19_999_999, False), (59_833_712, True)):
        worst = late
        assert main(["run", str(asking(topology(a=WORK))), "--clock", "virtual"]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        words = "late:     this machine woke somebody 60 ms late at worst, and 12 times by 1 ms or more: "
        assert last.startswith(words if told else "because:")
    found = document(capsys, asking(topology(a=WORK)))
    assert (found["lateness"], found["late_wakes"]) == (0.059833712, 12)
    assert main(["run", str(topology(a=WORK)), "--clock", "virtual"]) == 0
    assert "late:" not in capsys.readouterr().out


@pytest.mark.parametrize(("given", "fits"), [("49", True), ("50 %", True), ("47.9", False)])
def test_a_prediction_is_checked(topology: MakeTopology, capsys: Capture, given: str, fits: bool) -> None:
    """A wrong one is no failure of the run: the status is 0."""
    found = document(capsys, asking(topology(a=WORK)), "--predict", given)["question"]
    assert (found["measured"], found["fits"], found["prediction"]) == (50.0, fits, float(given.strip(" %")))


def test_an_answer_of_the_wrong_type(topology: MakeTopology, capsys: Capture) -> None:
    """Refused before anything starts."""
    folder = asking(topology(a=WORK))
    assert main(["run", str(folder), "--predict", "much"]) == 2
    assert capsys.readouterr() == (
        "",
        'error: --predict: "much" is no answer to "How much of a processor does a use?"; it is a number in %, as in: '
        '--predict "10 %"\n',
    )


def test_a_topology_without_a_question(topology: MakeTopology, capsys: Capture) -> None:
    """There is nothing to predict."""
    assert main(["run", str(topology(a=WORK)), "--predict", "1"]) == 2
    assert "this topology asks nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("measure", "measured"),
    [
        ("vm/a cpu.run_percent in 0.5..1.5", 50.0),
        ("vm/a cpu.run_percent in 0..1", 100.0),
        ("vm/a cpu.run_seconds", 1.0),
        ("host cpu.run_seconds", 2.0),
        ('vm/a says "took {} ms"', 12.5),
        ("vm/a cpu.run_seconds / vm/b cpu.run_seconds", 1.0),
    ],
)
def test_measures(topology: MakeTopology, capsys: Capture, measure: str, measured: float) -> None:
    """Of the whole run, of a span of it, of what a guest says, of two VMs; VMs that have ended count."""
    assert document(capsys, asking(topology(a=WORK, b=WORK), measure))["question"]["measured"] == measured


def test_what_could_not_be_measured(topology: MakeTopology, capsys: Capture) -> None:
    """The run is none the worse for it, and says why."""
    found = document(capsys, asking(topology(a=WORK), 'vm/a says "lost {} frames"'))["question"]
    assert (found["measured"], found["problem"]) == (None, 'vm/a: it has not said "lost {} frames"')


def test_a_span_that_is_not_reached(topology: MakeTopology, capsys: Capture) -> None:
    """The run was too short for it."""
    found = document(capsys, asking(topology(a=WORK), "vm/a cpu.run in 1..9"))["question"]
    assert (found["measured"], found["problem"]) == (None, "the run was over before second 9")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"vm/a": "vm/b"}, 'question.measure: no VM is called "b"; there are a'),
        ({"vm/a": "pool/b"}, 'question.measure: no pool is called "b"; there are none'),
        ({"run_percent": "run_precent"}, 'did you mean "cpu.run_percent"?'),
        ({"tolerance = 2": "tolerance = -2"}, "question.tolerance: must be at least 0, is -2"),
        ({"tolerance = 2": 'choices = ["x", "y"]'}, "question.unit: is for a question with a number as answer"),
        ({"tolerance = 2": 'choices = ["x"]', 'unit = "%"': ""}, "question.choices: must be two at least"),
        (
            {"tolerance = 2": 'choices = ["x", 1]', 'unit = "%"': ""},
            "question.choices: must be a list with text in each place, has 1 in it",
        ),
        ({"tolerance = 2": "tollerance = 2"}, 'did you mean "tolerance"?'),
        ({"ask = ": "asks = "}, "question.ask: is missing"),
    ],
)
def test_a_bad_question(topology: MakeTopology, capsys: Capture, changed: dict[str, str], words: str) -> None:
    """Table and key are named, before anything starts."""
    folder = asking(topology(a=WORK), changed=changed)
    assert main(["validate", str(folder)]) == 2
    assert words in capsys.readouterr().err


def test_samples(topology: MakeTopology, tmp_path: Path) -> None:
    """A heading, then a line for each window; the same bytes each time, and with the last window cut short."""
    folder, files = topology(a=WORK, b="await guest.work(0.25)"), [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    for file in files:
        assert main(["run", str(folder), "--clock", "virtual", "--samples", str(file), "--window", "300"]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    heading, *samples = map(json.loads, files[0].read_text().splitlines())
    assert (heading["partita_samples"], heading["window"], heading["clock"]) == (1, 300_000_000, "virtual")
    assert [sample["time"] for sample in samples] == [0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.0]
    assert samples[-1]["window"] == 200_000_000
    run = {
        path: [node["cpu"].get("run", 0) for sample in samples for node in sample["nodes"] if node["path"] == path]
        for path in ("host", "vm/a", "vm/b")
    }
    assert run["vm/a"] == [300_000_000, 300_000_000, 300_000_000, 100_000_000, 0, 0, 0]
    assert run["vm/b"] == [250_000_000, 0, 0, 0, 0, 0, 0]
    assert run["host"] == [a + b for a, b in zip(run["vm/a"], run["vm/b"], strict=True)]


def test_samples_on_the_real_clock(topology: MakeTopology, tmp_path: Path) -> None:
    """Windows are not exact there, but nothing is lost between them."""
    folder, file = topology(a="await guest.work(0.12)"), tmp_path / "s.jsonl"
    assert main(["run", str(folder), "--samples", str(file), "--window", "50"]) == 0
    _, *samples = map(json.loads, file.read_text().splitlines())
    assert len(samples) >= 2
    assert 120_000_000 <= sum(sample["nodes"][1]["cpu"].get("run", 0) for sample in samples) < 130_000_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--window", "50"], "--window goes with --samples FILE"),
        (["--samples", "s", "--window", "0"], '"0" is no window; it takes milliseconds'),
        (["--samples", "s", "--window", "x"], '"x" is no window'),
        (["--samples", "no/such/folder/s"], "--samples no/such/folder/s: No such file or directory"),
        (["--samples", "s", "--record", "r", "--clock", "virtual"], "--samples does not go with --record"),
    ],
)
def test_bad_options(topology: MakeTopology, capsys: Capture, arguments: list[str], words: str) -> None:
    """Refused before anything starts."""
    assert main(["run", str(topology(a=WORK)), *arguments]) == 2
    assert words in capsys.readouterr().err
