"""`partita watch`: a page from a recording."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

import partitions
from partitions import determinism
from partitions.cli.main import main
from partitions.recording.recorder import Recorder
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


def test_a_recording_that_breaks_off(recording: Path, tmp_path: Path) -> None:
    """What is whole is shown, and where it ends is told on the page."""
    recording.write_bytes(recording.read_bytes()[:-101])
    page = tmp_path / "cut.html"
    assert main(["watch", str(recording), "-O", str(page)]) == 0
    assert document(page.read_bytes())["notes"][0].startswith("the recording breaks off at byte ")


def test_what_is_refused(recording: Path, tmp_path: Path, capsys: Capture) -> None:
    """Each refusal names the place and what would help."""
    foreign = tmp_path / "foreign.json"
    foreign.write_text("{}")
    for arguments, words in (
        ([str(foreign)], "it looks like JSON lines"),
        ([str(tmp_path / "none.pcapng")], "none.pcapng: No such file or directory"),
        ([str(recording), "--limit", "0"], "--limit takes a number of events, 1 or more"),
        ([str(recording), "--filter", "layer=packets"], 'did you mean "packet"?'),
        ([str(recording), "-O", str(tmp_path / "no" / "page.html")], "No such file or directory"),
    ):
        assert main(["watch", *arguments]) in (1, 2)
        assert words in capsys.readouterr().err
