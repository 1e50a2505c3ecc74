"""The table of who had how much, at the end of a run: where somebody asked for control, or had to wait."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from partitions.cli.main import main
from tests.partitions.cli.conftest import MakeTopology

Capture = pytest.CaptureFixture[str]
WORK = "await guest.work(1)"


def run(capsys: Capture, folder: object, *more: str) -> list[str]:
    assert main(["run", str(folder), "--clock", "virtual", "--no-lines", *more]) == 0
    return capsys.readouterr().out.splitlines()


def on_one_processor(topology: MakeTopology, extra: str = "", **programs: str) -> object:
    folder = topology(extra, **programs)
    text = (folder / "topology.toml").read_text()
    (folder / "topology.toml").write_text(f"[host]\nlogical_processors = 1\n{text}")
    return folder


def test_a_run_without_control_or_contention(topology: MakeTopology, capsys: Capture) -> None:
    """Has no such table, and loads nothing for it."""
    lines = run(capsys, topology(a=WORK, b=WORK))
    assert len(lines) == 3
    assert json.loads("\n".join(run(capsys, topology(a=WORK), "--json")))["resources"] is None


def test_contention_makes_a_table(topology: MakeTopology, capsys: Capture) -> None:
    """Nobody has asked, but two have shared a processor; what the first had who ended is in it, too."""
    lines = run(capsys, on_one_processor(topology, a=WORK, b="await guest.work(2)"))
    assert lines[4:] == [
        "resources: somebody waited for a processor for 1.990 s (66 % of the time); in the rest shares had no effect",
        "NODE  WEIGHT  RUN/S   %RUN   %RDY  WAIT/DISP  LONGEST/MS",
        "host       -  3.000  100.0  66.3    9.9 ms          10.0",
        "  a      100  1.000   50.3  49.7!   9.9 ms!!        10.0",
        "  b      100  2.000   66.7  33.3!  10.0 ms!!        10.0",
        "! %RDY above 10 for each processor: a, b: others have the processors (docs/top-and-plot.md#lines)",
    ]


def test_a_pool_at_its_limit_is_divided_by_shares(tmp_path: Path, capsys: Capture) -> None:
    """Though processors are free: it is not said that shares had no effect."""
    pool = '[[pool]]\nname = "p"\ncpu = { limit = 50 }\n'
    vms = [f'[[vm]]\nname = "{name}"\nprogram = "work.py"\nmemory = "4MiB"\npool = "p"\n' for name in "ab"]
    (tmp_path / "topology.toml").write_text("".join([pool, *vms]))
    (tmp_path / "work.py").write_text("async def main(guest):\n    await guest.work(0.1)\n")
    told = next(line for line in run(capsys, tmp_path) if line.startswith("resources: "))
    assert told.endswith("so shares of processors had an effect within pools at their limit only")


def test_control_makes_a_table(topology: MakeTopology, capsys: Capture) -> None:
    """Without contention it says that shares had no effect."""
    lines = run(capsys, topology("cpu = { limit = 50 }", a=WORK))
    assert lines[3:] == [
        "resources: only limits held anybody back, so shares of processors had no effect",
        "NODE  LIMIT  WEIGHT  RUN/S  %RUN  %RDY  %MLMTD  WAIT/DISP  LONGEST/MS",
        "host      -       -  1.000  50.1  49.9   49.9     5.0 ms          5.0",
        "  a    50.0     100  1.000  50.1  49.9   49.9*    5.0 ms*         5.0",
        "* %MLMTD above 0: a: a limit that somebody has set holds them back, their own or their pool's "
        "(docs/top-and-plot.md#lines)",
    ]


def test_the_same_as_json(topology: MakeTopology, capsys: Capture) -> None:
    """One sample from the run's beginning to its end."""
    found = json.loads("\n".join(run(capsys, topology("cpu = { limit = 50 }", a=WORK), "--json")))["resources"]
    assert found["window"] == round(found["time"] * 1e9)
    assert found["nodes"][1]["path"] == "vm/a"
    assert found["nodes"][1]["cpu"]["run"] == 1_000_000_000
