"""Options from the environment: one scheme for every flag, and errors that name the variable."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from partitions.cli import environment
from partitions.cli.common import Refusal
from partitions.cli.main import VERBS, main, parsers
from tests.partitions.cli.conftest import MakeTopology

Capture = pytest.CaptureFixture[str]


def applied(verb: str, given: list[str], variables: dict[str, str]) -> argparse.Namespace:
    parser, verbs = parsers(verb)
    environment.apply(verbs.choices[verb], verb, given, variables)
    return parser.parse_args([verb, *given])


@pytest.mark.parametrize(
    ("given", "variables", "timeout"),
    [
        ([], {"PARTITA_TIMEOUT": "3"}, 3.0),
        ([], {"PARTITA_TIMEOUT": "3", "PARTITA_RUN_TIMEOUT": "4"}, 4.0),
        (["--timeout", "5"], {"PARTITA_TIMEOUT": "3", "PARTITA_RUN_TIMEOUT": "4"}, 5.0),
        (["--timeout=5"], {"PARTITA_RUN_TIMEOUT": "4"}, 5.0),
        ([], {"PARTITA_TIMEOUT": ""}, None),
        ([], {"PARTITA_TIMEOUT": "3", "PARTITA_RUN_TIMEOUT": ""}, 3.0),
        ([], {"PARTITA_EXPLAIN_TIMEOUT": "3"}, None),
    ],
)
def test_who_wins(given: list[str], variables: dict[str, str], timeout: float | None) -> None:
    """The command line, then the verb's own variable, then the general one; an empty one is not set."""
    assert applied("run", ["01", *given], variables).timeout == timeout


@pytest.mark.parametrize(
    ("verb", "given", "variables", "expected"),
    [
        ("run", ["01"], {"PARTITA_DISK": "web=a.img db='b c.img:rw'"}, {"disk": ["web=a.img", "db=b c.img:rw"]}),
        ("run", ["01", "--disk", "x=y"], {"PARTITA_DISK": "web=a.img"}, {"disk": ["x=y"]}),
        ("run", ["01"], {"PARTITA_JSON": "yes", "PARTITA_LINES": "off"}, {"json": True, "console": False}),
        ("run", ["01", "--lines"], {"PARTITA_LINES": "0"}, {"console": True}),
        ("run", ["01"], {"PARTITA_JSON": "0"}, {"json": False}),
        ("run", ["01"], {"PARTITA_VERBOSE": "2"}, {"verbose": 2}),
        ("run", ["01", "-v"], {"PARTITA_VERBOSE": "2"}, {"verbose": 1}),
        ("run", ["01"], {"PARTITA_NO_CONTROL": "1", "PARTITA_METRICS": "0"}, {"no_control": True, "metrics": 0}),
        ("explain", ["01"], {"PARTITA_TIMEOUT": "7"}, {"timeout": 7.0}),
        ("examples", [], {"PARTITA_COPY": "01 there"}, {"copy": ["01", "there"]}),
        ("stop", ["web"], {"PARTITA_HOST": "farm", "PARTITA_STOP_FORCE": "true"}, {"host": "farm", "force": True}),
        ("ps", [], {"PARTITA_OUTPUT": "csv"}, {"output": "csv"}),
    ],
)
def test_every_kind_of_option(verb: str, given: list[str], variables: dict[str, str], expected: dict[str, Any]) -> None:
    """Values, switches with their opposites, counts, lists, several words; a list on the command line replaces."""
    options = vars(applied(verb, given, variables))
    assert {name: options[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("verb", "variables", "words"),
    [
        ("run", {"PARTITA_RUN_TIMEOUT": "soon"}, "PARTITA_RUN_TIMEOUT=soon: must be a number"),
        ("run", {"PARTITA_CLOCK": "virtal"}, "PARTITA_CLOCK=virtal: must be one of real, virtual"),
        ("run", {"PARTITA_JSON": "maybe"}, "PARTITA_JSON=maybe: must be 1 or 0, or true, yes, on, false, no, off"),
        ("run", {"PARTITA_VERBOSE": "very"}, "PARTITA_VERBOSE=very: must be a number"),
        ("run", {"PARTITA_DISK": "'web=a"}, "PARTITA_DISK='web=a: no closing quotation"),
        ("run", {"PARTITA_METRICS": "http"}, 'PARTITA_METRICS=http: "http" is no port'),
        ("examples", {"PARTITA_COPY": "01"}, "PARTITA_COPY=01: must be 2 words"),
    ],
)
def test_a_bad_value_names_its_variable(verb: str, variables: dict[str, str], words: str) -> None:
    """Or nobody would find where it comes from."""
    with pytest.raises(Refusal) as caught:
        applied(verb, ["01"] if verb == "run" else [], variables)
    assert str(caught.value).startswith(words)
    assert caught.value.status == 2


def test_a_value_for_other_verbs_does_no_harm() -> None:
    """csv is set for good by somebody who likes spreadsheets: verbs that know it take it, others go on as ever.

    A variable of the verb's own, or a value that no verb takes, is still refused.
    """
    assert applied("ps", [], {"PARTITA_OUTPUT": "csv"}).output == "csv"
    assert applied("trace", [], {"PARTITA_OUTPUT": "csv"}).output != "csv"
    for variables in ({"PARTITA_TRACE_OUTPUT": "csv"}, {"PARTITA_OUTPUT": "papyrus"}):
        with pytest.raises(Refusal):
            applied("trace", [], variables)


def test_a_slip_is_noticed(capsys: Capture) -> None:
    """A name that is nearly one of ours is told; somebody else's, or another verb's, is none of our business."""
    variables = {"PARTITA_TIMEUOT": "1", "PARTITA_KVM_ANYWAY": "1", "PARTITA_STOP_GRACE": "1", "PARTITAX": "1"}
    applied("run", ["01"], variables)
    assert capsys.readouterr().err == "note: PARTITA_TIMEUOT is no option of run; did you mean PARTITA_TIMEOUT?\n"
    applied("reset", ["web"], {"PARTITA_RESUME_HOST": "farm"})
    assert capsys.readouterr().err == ""


def test_a_run_by_the_environment(
    topology: MakeTopology, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The command itself looks, without anything on its line."""
    folder = topology(web="print('hello')")
    for name, value in {"CLOCK": "virtual", "JSON": "1", "SEED": "9", "TRACE": str(tmp_path / "t.jsonl")}.items():
        monkeypatch.setenv(f"PARTITA_{name}", value)
    assert main(["run", str(folder)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["clock"], document["seed"]) == ("virtual", 9)
    assert (tmp_path / "t.jsonl").stat().st_size


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_as_wide_as_the_terminal(verb: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for examples and lists, which are indented; and every verb says more of itself than its options."""
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    shown = capsys.readouterr().out
    prose = [line for line in shown.splitlines() if not line.startswith((" ", "usage:", "KIND:", "NAME:"))]
    assert [line for line in prose if len(line) > 60] == []
    assert parsers(verb)[1].choices[verb].description


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_has_a_variable_and_help_shows_it(verb: str, capsys: Capture) -> None:
    """All options of all verbs but those that only print something and leave."""
    parser = parsers(verb)[1].choices[verb]
    options = [action for action in parser._actions if action.option_strings and action.dest != "help"]
    names = [environment.variables(verb, action)[-1] for action in options]
    assert all(name.startswith("PARTITA_") for name in names)
    assert len(set(names)) == len(names)
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    shown = capsys.readouterr().out
    assert [name for name in names if f"[{name}]" not in shown.replace("\n", " ")] == []
