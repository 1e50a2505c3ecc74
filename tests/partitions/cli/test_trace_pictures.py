"""`partita trace --sequence` and `--timeline`: pictures of a recording, in a file or a pipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from partitions.cli.main import main
from tests.doubles import trace_events_checker
from tests.partitions.copies import copied_example

Capture = Any


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The disk example on the virtual clock."""
    folder = tmp_path_factory.mktemp("recorded")
    example, file = str(copied_example("03-disk", folder)), folder / "disk.pcapng"
    assert main(["run", example, "--clock", "virtual", "--seed", "1", "--pcap", str(file)]) == 0
    return str(file)


@pytest.fixture(autouse=True)
def quiet(recording: str, capsys: Capture) -> None:
    """The run's own output is nobody's."""
    capsys.readouterr()


def test_sequence_of_a_recording(recording: str, capsys: Capture, tmp_path: Path) -> None:
    """Mermaid on standard output, the same in a file; devices have names though offers are not shown."""
    call = ["trace", recording, "--sequence", "--filter", "vm=writer,layer=device"]
    assert main(call) == 0
    text = capsys.readouterr().out
    assert text.startswith("sequenceDiagram\n    participant L0 as storage VSP\n")
    assert main([*call, "--mermaid", "-O", str(tmp_path / "x.mmd")]) == 0
    assert (tmp_path / "x.mmd").read_text() == text
    assert main([*call, "--svg", "-O", str(tmp_path / "x.svg")]) == 0
    assert ElementTree.parse(tmp_path / "x.svg").getroot().tag.endswith("svg")
    assert capsys.readouterr() == ("", "")


def test_a_recording_draws_what_the_run_did(tmp_path: Path) -> None:
    """Nothing is lost on the way through a file: of one run, the timeline drawn later is that drawn live."""
    recorded, live, later = (tmp_path / name for name in ("disk.pcapng", "live.json", "later.json"))
    example = str(copied_example("03-disk", tmp_path))
    assert main(["run", example, "--clock", "virtual", "--pcap", str(recorded), "--timeline", str(live)]) == 0
    assert main(["trace", str(recorded), "--timeline", str(later)]) == 0
    assert later.read_text() == live.read_text()


def test_timeline_of_a_recording(recording: str, tmp_path: Path) -> None:
    """Every request of the run is there, and the file follows the rules."""
    file = tmp_path / "t.json"
    assert main(["trace", recording, "--timeline", str(file)]) == 0
    records = trace_events_checker.read(file.read_bytes())
    trace_events_checker.check(records)
    assert len(list(trace_events_checker.requests(records))) == 97


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--sequence"], "left after folding, and 300 can be read: choose fewer by --filter"),
        (["--svg"], "error: --svg says how --sequence is drawn\n"),
        (["-O", "x"], "error: -O says how --sequence is drawn\n"),
        (["--sequence", "-x"], "error: --hex goes with lines"),
        (["--timeline", "/no/such/x"], "error: --timeline /no/such/x: No such file or directory\n"),
        (["--timeline", "x", "-o", "json"], "error: -o json does not go with --timeline\n"),
    ],
)
def test_refusals(recording: str, capsys: Capture, options: list[str], expected: str) -> None:
    """What cannot be done is said with the remedy."""
    assert main(["trace", recording, *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert expected in captured.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("options", [["--timeline", "/dev/full"], ["--sequence", "-O", "/dev/full"]])
def test_a_full_disk(recording: str, capsys: Capture, options: list[str]) -> None:
    """One line says so."""
    assert main(["trace", recording, "--filter", "vm=reader", *options]) == 1
    name = options[-2]
    assert capsys.readouterr().err == f"error: {name} /dev/full: No space left on device\n"
