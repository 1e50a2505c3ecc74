"""`partita ps`, `stop` and the others against a real `partita run` in another process."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from partitions import metrics
from partitions.cli.events import words
from partitions.cli.main import main
from partitions.cli.output import plain, show
from partitions.control_protocol import OPERATIONS, Change, ErrorKind

COMMAND = [sys.executable, "-m", "partitions.cli.main"]
GUEST = """
async def main(guest):
    print("up")
    await guest.sleep(1000)
"""
Capture = pytest.CaptureFixture[str]


def read_until(stream: IO[str], pattern: str) -> str:
    """Lines up to the first that matches, which is the event that tests wait for; there is no other clock in them."""
    seen = ""
    for line in stream:
        seen += line
        if re.search(pattern, line):
            return seen
    raise AssertionError(f"ended without {pattern!r}: {seen}")


class Running:
    """A `partita run` of two guests."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.named = ("--host", str(process.pid))
        """For verbs in other processes, which also see what else this user runs."""

    def end(self) -> tuple[int, str]:
        """Its status and the rest of what it says."""
        output, _ = self.process.communicate(timeout=20)
        return self.process.returncode, output


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sockets of this test alone."""
    (tmp_path / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setattr("partitions.control_folder._SHARED", str(tmp_path))
    return tmp_path / "runtime"


@pytest.fixture
def start(tmp_path: Path, runtime: Path) -> Iterator[Callable[..., Running]]:
    started: list[subprocess.Popen[str]] = []

    def run(name: str = "farm", *options: str) -> Running:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "guest.py").write_text(GUEST)
        text = "".join(f'[[vm]]\nname = "{vm}"\nprogram = "guest.py"\nmemory = "4MiB"\n' for vm in ("web", "db"))
        (folder / "topology.toml").write_text(text)
        call = [*COMMAND, "run", str(folder), "--timeout", "100", *options]
        process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        assert process.stdout is not None
        read_until(process.stdout, "up")
        read_until(process.stdout, "up")
        return Running(process, folder)

    yield run
    for process in started:
        process.kill()
        process.communicate()


def answer(capsys: Capture, *words: str, status: int = 0) -> Any:
    assert main([*words]) == status, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(capsys: Capture, *words: str, status: int) -> str:
    assert main([*words]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_a_host_from_another_terminal(start: Callable[..., Running], runtime: Path, capsys: Capture) -> None:
    """Everything that a person does to a run, and the run's own end with status 0; its socket goes with it."""
    run = start("farm", "--stay")
    assert [(row["host"], row["vm"], row["state"]) for row in answer(capsys, "ps")] == [
        ("farm", "web", "running"),
        ("farm", "db", "running"),
    ]
    with following(run) as events:
        assert [row["state"] for row in answer(capsys, "pause", "--all")] == ["paused", "paused"]
        assert [row["state"] for row in answer(capsys, "resume", "web", "db")] == ["running", "running"]
        assert [row["exit"] for row in answer(capsys, "stop", "db", "web")] == ["powered off", "powered off"]
        assert [row["state"] for row in answer(capsys, "start", "web")] == ["running"]
        (row,) = answer(capsys, "reset", "web")
        assert (row["state"], row["by"]) == ("running", "")
        (disk,) = answer(capsys, "add-disk", "web", str(run.folder / "a.img"), "--size", "1MiB")
        assert (disk["lun"], disk["size"]) == (0, 1 << 20)
        assert answer(capsys, "remove-disk", "web", "0") == []
        assert answer(capsys, "stats", "web")[0]["hypercalls"] > 0
        by = f"control socket, uid {os.getuid()} pid {os.getpid()}"
        assert [row["by"] for row in answer(capsys, "down", "--force")] == [by, by]
        changes = [line.split(maxsplit=1)[1] for line in events.read().splitlines()]
    assert changes[0].endswith(f"running -> pausing (pause, asked by {by})")
    assert changes[-1] == "web  turning off -> off (ended): turned off"
    status, output = run.end()
    assert status == 0
    assert "note: taken down: VMs that were still on have been turned off" in output
    assert not list(runtime.glob("partita/*"))


@contextmanager
def following(run: Running) -> Iterator[IO[str]]:
    """What `partita events` prints in a process of its own, from the moment that it listens."""
    call = [*COMMAND, "events", "-o", "table", *run.named]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        read_until(process.stderr, "following farm")
        yield process.stdout
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.communicate()


def test_saved_and_started_again(start: Callable[..., Running], capsys: Capture) -> None:
    """What cannot be saved goes on, with status 1 and the reason; a host that is told to end says by whom."""
    run = start()
    assert "Python program cannot be saved" in refused(capsys, "save", "web", status=1)
    assert answer(capsys, "ps", "web")[0]["state"] == "running"
    answer(capsys, "stop", "--all", "--force")
    assert run.end()[0] == 0


def test_tables(start: Callable[..., Running], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal aligned columns, else JSON; CSV has a heading and every field."""
    start()
    monkeypatch.setattr("partitions.cli.output.sys.stdout.isatty", lambda: True, raising=False)
    assert main(["ps", "-o", "table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"VM   STATE +UPTIME +MEMORY  VPS", lines[0])
    assert re.fullmatch(r"web  running +\d+\.\d{3} s  4\.0 MiB +1", lines[1])
    assert main(["stats", "-o", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["vm"] for row in rows] == ["web", "db"]
    assert int(rows[0]["hypercalls"]) > 0


def test_what_is_wrong_is_said(start: Callable[..., Running], capsys: Capture) -> None:
    """Usage and unknown names: 2. Not now, or not at all: 1. The good ones among several are done."""
    start()
    assert refused(capsys, "stop", status=2) == "error: name the VMs, or give --all\n"
    assert refused(capsys, "stop", "web", "--all", status=2) == "error: name the VMs or give --all, not both\n"
    assert refused(capsys, "stop", "wep", status=2) == 'error: no VM is called "wep"; did you mean "web"?\n'
    assert "error: resume is for a VM that is paused; web is running" in refused(capsys, "resume", "web", status=1)
    assert refused(capsys, "stop", "web", "--grace", "-1", status=2).startswith("error: --grace -1: must be")
    assert refused(capsys, "ps", "nobody", status=2).startswith('error: no host that runs has a VM "nobody"')
    assert refused(capsys, "ps", "wep", status=2) == 'error: no host that runs has a VM "wep"; did you mean "web"?\n'
    assert refused(capsys, "ps", "--host", "frm", status=2) == 'error: no host "frm" runs; did you mean "farm"?\n'
    assert refused(capsys, "ps", "--host", "/no/where", status=1).startswith("error: /no/where: No such file")
    assert main(["pause", "web", "wep"]) == 2
    captured = capsys.readouterr()
    assert [row["state"] for row in json.loads(captured.out)] == ["paused"]
    assert captured.err == 'error: no VM is called "wep"; did you mean "web"?\n'


def test_several_hosts(start: Callable[..., Running], capsys: Capture) -> None:
    """Lists have all of them; what changes something wants to know which one is meant."""
    start("farm")
    other = start("lab")
    assert {row["host"] for row in answer(capsys, "ps")} == {"farm", "lab"}
    words = refused(capsys, "pause", "web", status=2)
    assert re.fullmatch(r"error: several hosts run; choose one with --host: farm-\d+, lab-\d+\n", words)
    assert refused(capsys, "connect-nic", "nobody", "0", status=2).startswith("error: several hosts run")
    assert answer(capsys, "pause", "web", "--host", "lab")[0]["state"] == "paused"
    assert answer(capsys, "ps", "web", "--host", str(other.process.pid))[0]["state"] == "paused"
    assert [row["state"] for row in answer(capsys, "ps", "web")] == ["running", "paused"]


def test_no_host(runtime: Path, capsys: Capture) -> None:
    """An empty list is no error for a program; a person is told."""
    assert answer(capsys, "ps") == []
    assert main(["ps", "-o", "table"]) == 0
    assert "no host runs" in capsys.readouterr().err
    assert "no host runs" in refused(capsys, "stop", "web", status=2)


def test_a_killed_host(start: Callable[..., Running], runtime: Path, capsys: Capture) -> None:
    """Its socket is recognised as left over and removed by the next who looks."""
    run = start()
    run.process.kill()
    run.process.wait()
    assert list(runtime.glob("partita/*.sock"))
    assert answer(capsys, "ps") == []
    assert not list(runtime.glob("partita/*"))


def test_a_console_in_a_pipe(start: Callable[..., Running]) -> None:
    """What was printed, then what is typed there and printed here, until the VM is off."""
    run = start()
    call = [*COMMAND, "console", "web", *run.named]
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        read_until(it.stdout, "up")
        assert main(["stop", "--all", "--force"]) == 0
        it.communicate(timeout=20)
        assert it.returncode == 0
    assert run.end()[0] == 0


def test_a_console_on_a_terminal(start: Callable[..., Running], capsys: Capture) -> None:
    """Ctrl-] d leaves the VM to itself; Ctrl-] x turns it off."""
    run = start()
    for key, state in ((b"d", "running"), (b"x", "off")):
        ours, theirs = pty.openpty()
        call = [*COMMAND, "console", "web", *run.named]
        process = subprocess.Popen(call, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        read_terminal(ours, b"up")
        os.write(ours, b"\x1d")
        read_terminal(ours, b"d: leave")
        os.write(ours, key)
        read_terminal(ours, None)
        assert process.wait(timeout=20) == 0
        os.close(ours)
        assert answer(capsys, "ps", "web")[0]["state"] == state


def read_terminal(descriptor: int, until: bytes | None) -> None:
    seen = b""
    while until is None or until not in seen:
        try:
            data = os.read(descriptor, 4096)
        except OSError:  # the other end is closed
            data = b""
        if not data:
            assert until is None, seen
            return
        seen += data


def test_a_folder_that_is_no_folder(tmp_path: Path, runtime: Path, capsys: Capture) -> None:
    """The run goes on without a socket, and says so; a place that was asked for by name is refused before a start."""
    for folder in (runtime / "partita", tmp_path / f"partita-{os.getuid()}"):
        folder.write_text("")
    (tmp_path / "guest.py").write_text("async def main(guest):\n    print('up')\n")
    (tmp_path / "topology.toml").write_text('[[vm]]\nname = "web"\nprogram = "guest.py"\nmemory = "4MiB"\n')
    assert main(["run", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("web | up\n")
    assert captured.err == (
        "note: no control socket, so `partita ps` and others will not find this run: "
        f"{runtime}/partita is not a directory; remove it\n"
    )
    assert refused(capsys, "run", str(tmp_path), "--control", "/no/where/it.sock", status=2) == (
        "error: --control /no/where/it.sock: No such file or directory\n"
    )


def test_what_ends_a_run_is_named(tmp_path: Path, runtime: Path, capsys: Capture) -> None:
    """Who ended a VM is told where it was no other terminal, too: here the run's own timeout."""
    (tmp_path / "guest.py").write_text(GUEST)
    (tmp_path / "topology.toml").write_text('[[vm]]\nname = "web"\nprogram = "guest.py"\nmemory = "4MiB"\n')
    trace = tmp_path / "t.jsonl"
    assert main(["run", str(tmp_path), "--timeout", "1", "--clock", "virtual", "--trace", str(trace)]) == 124
    events = [json.loads(line) for line in trace.read_text().splitlines()]
    named = [(event["event"], event["by"]) for event in events if "by" in event]
    assert named == [("vm_state", "--timeout"), ("vm_ended", "--timeout")]


def test_a_guest_cannot_drive_the_terminal(capsys: Capture) -> None:
    """What it said as it crashed is in lines and tables with its control characters spelled out."""
    change = Change(time=1.0, vm="web", before="running", after="off", cause="ended", words="crashed: \x1b[2Jboo")
    assert words(change) == "   1.000000  web  running -> off (ended): crashed: \\x1b[2Jboo"
    show([{"vm": "web", "detail": "\x1b[2Jboo"}], [("DETAIL", plain("detail"))], "table")
    show([{"vm": "web", "detail": "\x1b[2Jboo"}], [], "csv")
    assert capsys.readouterr().out == "DETAIL\n\\x1b[2Jboo\nvm,detail\nweb,\\x1b[2Jboo\n"


@pytest.mark.parametrize(
    ("options", "there"),
    [
        (["--clock", "virtual"], False),
        (["--clock", "virtual", "--control", "auto"], True),
        (["--no-control"], False),
        ([], True),
    ],
)
def test_which_runs_have_one(tmp_path: Path, runtime: Path, capsys: Capture, options: list[str], there: bool) -> None:
    """On the virtual clock only if asked for, since what comes from outside is not repeatable."""
    (tmp_path / "guest.py").write_text(
        "import os\n\n\nasync def main(guest):\n"
        f"    print('sockets', len(os.listdir('{runtime}/partita')) if os.path.exists('{runtime}/partita') else 0)\n"
    )
    (tmp_path / "topology.toml").write_text('[[vm]]\nname = "web"\nprogram = "guest.py"\nmemory = "4MiB"\n')
    assert main(["run", str(tmp_path), *options]) == 0
    assert f"web | sockets {int(there)}\n" in capsys.readouterr().out
    assert not list(runtime.glob("partita/*"))


def test_the_page_has_every_operation_verb_and_error() -> None:
    """docs/control.md is the reference of the socket: what can be said there is written there."""
    page = (Path(__file__).parents[3] / "docs" / "control.md").read_text()
    table = page.partition("| `op` |")[2]
    for operation in OPERATIONS:
        assert f"`{operation}`" in table, operation
    for kind in typing.get_args(ErrorKind):
        assert f"`{kind}`" in table, kind
    for family in (*metrics._FIGURES, *metrics._COUNTERS):
        assert f"`{family.name}{'_total' if family.counter else ''}`" in page, family.name
