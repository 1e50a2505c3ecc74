"""`partita watch` and `partita run --watch`: a page from a recording, and live ones."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import partitions
from partitions import determinism
from partitions.cli.main import main
from partitions.recording.recorder import Recorder
from partitions.watch.rows import COLUMNS
from tests.partitions.cli.conftest import MakeTopology
from tests.partitions.watch.test_feed import document

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def recording(topology: MakeTopology, tmp_path: Path) -> Path:
    """A short run of one VM."""
    folder = topology(web="print('hello')\nawait guest.sleep(0.5)")

    async def run() -> bytes:
        async with partitions.open_host(folder) as host:
            recorder = Recorder(host.trace)
            recorder.attach()
            await host.start_all()
            await host.wait_all()
            recorder.finish()
            return recorder.take(1 << 30)

    target = tmp_path / "run.pcapng"
    target.write_bytes(determinism.run(run, clock="virtual", seed=1))
    return target


def test_a_page_beside_the_person(
    recording: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without -O the page has the recording's name, in the folder where one is; what was made is told."""
    monkeypatch.chdir(tmp_path)
    assert main(["watch", str(recording)]) == 0
    made = document((tmp_path / "run.html").read_bytes())
    told = capsys.readouterr().out
    assert told.startswith(f"run.html: {len(made['rows']):,} events, ")
    assert made["notes"] == []
    assert any(row[4] == "vm_state" for row in made["rows"])


def test_through_pipes(
    recording: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """- reads standard input, -O - writes standard output."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(recording.read_bytes())))
    assert main(["watch", "-", "-O", "-"]) == 0
    assert document(capfdbinary.readouterr().out)["rows"]


def test_a_part_of_it(recording: Path, tmp_path: Path, capsys: Capture) -> None:
    """A filter and a limit choose, and the page and the command both say so."""
    page = tmp_path / "part.html"
    assert main(["watch", str(recording), "-O", str(page), "--filter", "layer=state", "--limit", "2", "--last"]) == 0
    made = document(page.read_bytes())
    assert [row[3] for row in made["rows"]] == ["state", "state"]
    assert "only layer=state" in made["notes"]
    assert made["notes"][1].startswith("the last 2 of ")
    assert "more are not in it" in capsys.readouterr().out
    assert main(["watch", str(recording), "-O", str(page), "--filter", "vm=nobody"]) == 0
    assert capsys.readouterr().err.startswith('note: no VM "nobody" in this trace; there are ')


def test_a_recording_that_breaks_off(recording: Path, tmp_path: Path) -> None:
    """What is whole is shown, and where it ends is told on the page."""
    recording.write_bytes(recording.read_bytes()[:-101])
    page = tmp_path / "cut.html"
    assert main(["watch", str(recording), "-O", str(page)]) == 0
    assert document(page.read_bytes())["notes"][0].startswith("the recording breaks off at byte ")


def test_a_damaged_recording(recording: Path, tmp_path: Path, capsys: Capture) -> None:
    """What comes before the damage is drawn; the page, standard error and the exit status say that it is not all."""
    whole = recording.read_bytes()
    recording.write_bytes(whole + bytes(64))
    page = tmp_path / "damaged.html"
    assert main(["watch", str(recording), "-O", str(page)]) == 1
    told = capsys.readouterr()
    assert f"run.pcapng, byte {len(whole)}: " in told.err
    assert "damaged.html: " in told.out
    made = document(page.read_bytes())
    assert made["rows"]
    assert made["notes"] == [told.err.removeprefix("error: ").strip()]


def test_json_lines(topology: MakeTopology, tmp_path: Path, capsys: Capture) -> None:
    """What `--trace` writes is drawn too; it has no bytes."""
    lines, page = tmp_path / "run.jsonl", tmp_path / "page.html"
    run = ["run", str(topology(web="print('hello')")), "--clock", "virtual", "--trace", str(lines), "--no-control"]
    assert main(run) == 0
    assert main(["watch", str(lines), "-O", str(page)]) == 0
    made = document(page.read_bytes())
    assert ["web", "running"] in [change[1:] for row in made["rows"] if len(row) == len(COLUMNS) for change in row[-1]]
    assert made["trees"] == {}


def test_what_is_refused(recording: Path, tmp_path: Path, capsys: Capture) -> None:
    """Each refusal names the place and what would help."""
    foreign = tmp_path / "foreign.zip"
    foreign.write_bytes(b"PK\3\4" + bytes(40))
    for arguments, words in (
        ([str(foreign)], "foreign.zip: no recording"),
        ([str(tmp_path / "none.pcapng")], "none.pcapng: No such file or directory"),
        ([str(recording.with_name("rnu.pcapng"))], f'did you mean "{recording}"?'),
        ([str(recording), "--limit", "0"], "--limit takes a number of events, 1 or more"),
        ([str(recording), "--filter", "layer=packets"], 'did you mean "packet"?'),
        ([str(recording), "-O", str(tmp_path / "no" / "page.html")], "No such file or directory"),
    ):
        assert main(["watch", *arguments]) in (1, 2)
        assert words in capsys.readouterr().err


# --- live


COMMAND = [sys.executable, "-m", "partitions.cli.main"]
READER = "disk = await guest.disk(0)\nwhile True:\n    await disk.read(0)\n    await guest.sleep(0.01)"
DISK = '[[vm.disk]]\npath = "a.img"\nsize = "1MiB"'


@contextmanager
def started(*arguments: str, told_on: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command that shows a live picture, and where: it says so on this stream."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        stream = getattr(process, told_on)
        for line in stream:
            if line.startswith("watch: "):
                yield process, line.removeprefix("watch: ").strip()
                break
        else:
            pytest.fail(f"no address was told: {process.communicate()}")
    finally:
        process.kill()
        process.communicate()


def stream_of(address: str) -> Iterator[bytes]:
    """What a browser is sent, until the host has ended."""
    with urllib.request.urlopen(f"{address}events", timeout=20) as answer:
        yield from answer


def test_a_run_begins_when_somebody_looks(topology: MakeTopology) -> None:
    """The first page gets everything from the first event on, and the run ends as any other."""
    folder = topology(web="print('hello')")
    with started("run", str(folder), "--watch", told_on="stderr") as (process, address):
        with urllib.request.urlopen(address, timeout=20) as page:
            assert b"partita watch" in page.read()
        time.sleep(0.3)  # a guest of its own will would be through by then
        said = b"".join(stream_of(address))
        rows = [row for line in said.splitlines() if b'"rows"' in line for row in json.loads(line[6:])["rows"]]
        assert rows[0][1] > 3_000_000
        assert b'"off -> starting"' in said
        assert b'"running -> off"' in said
        assert said.rstrip().endswith(b"event: end\ndata: {}")
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "web | hello" in out


def test_nobody_looks(topology: MakeTopology) -> None:
    """Ctrl-C ends a run that waits for its first page."""
    with started("run", str(topology(web="pass")), "--watch", "0", told_on="stderr") as (process, _):
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 130


def test_a_host_that_runs(topology: MakeTopology, tmp_path: Path) -> None:
    """`partita watch` joins in the middle: what there is, then what comes; its own end is not the host's."""
    socket_path = str(tmp_path / "host.sock")
    run = ["run", str(topology(extra=DISK, web=READER)), "--control", socket_path, "--no-lines"]
    with subprocess.Popen([*COMMAND, *run], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as host:
        try:
            deadline = time.monotonic() + 20
            while not Path(socket_path).exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            with started("watch", "--host", socket_path, told_on="stdout") as (process, address):
                heard = b""
                for line in stream_of(address):
                    heard += line
                    if b"SCSI READ(10) lba=0" in heard and b'"requests"' in heard:
                        break
                assert b"recording_started" in heard
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=20)
                assert process.returncode == 0
            assert host.poll() is None
            with started("watch", "--host", socket_path, told_on="stdout") as (process, _):
                host.terminate()
                out, _ = process.communicate(timeout=20)
                assert "the host has ended" in out
                assert process.returncode == 0
        finally:
            host.kill()


def test_what_is_refused_live(topology: MakeTopology, tmp_path: Path, capsys: Capture) -> None:
    """Before anything starts, with what would help."""
    folder = str(topology(web="pass"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, status, words in (
            (["run", folder, "--watch", port], 1, f"port {port}: something else listens there"),
            (["run", folder, "--watch", "--clock", "virtual"], 2, "record it with --pcap FILE"),
            (["watch", "--host", str(tmp_path / "no.sock")], 1, "no.sock: No such file or directory"),
            (["watch", "-O", "page.html"], 2, "-O goes with a RECORDING"),
            (["watch", "--last"], 2, "--last goes with a RECORDING"),
        ):
            assert main(arguments) == status
            assert words in capsys.readouterr().err
    assert main(["run", "--watch", folder]) == 2
    assert "is no port" in capsys.readouterr().err


def test_without_its_library(topology: MakeTopology, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The live picture says what to install; pages of recordings need nothing."""
    monkeypatch.setitem(sys.modules, "h11", None)
    monkeypatch.delitem(sys.modules, "partitions.watch.server", raising=False)
    assert main(["run", str(topology(web="pass")), "--watch"]) == 2
    assert "pip install 'partita[watch]'" in capsys.readouterr().err
