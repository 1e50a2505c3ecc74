"""`partita trace FILE -w PART`: a part of a recording as a recording of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from partitions.cli.main import main
from partitions.recording.reader import read_recording
from tests.doubles.recordings import record
from tests.partitions.recording.test_recording import SOME

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run.pcapng"
    path.write_bytes(record(SOME))
    return path


def test_a_part_is_written_and_said(run: Path, capsys: Capture) -> None:
    part = run.with_name("part.pcapng")
    assert main(["trace", str(run), "--filter", "vm=web,layer=packet", "-w", str(part)]) == 0
    assert {(event.vm, event.event) for event in read_recording(part)} == {
        ("", "recording_started"),
        ("web", "packet_received"),
    }
    assert capsys.readouterr().err == f"note: 3 events in {part.stat().st_size} bytes recorded\n"


def test_a_recording_is_not_copied_onto_itself(run: Path, capsys: Capture) -> None:
    """It would be empty before it is read."""
    before = run.read_bytes()
    assert main(["trace", str(run), "-w", str(run)]) == 2
    assert run.read_bytes() == before
    assert "that is what is read" in capsys.readouterr().err


def test_what_is_no_recording_makes_no_file(run: Path, capsys: Capture) -> None:
    foreign, part = run.with_name("x"), run.with_name("part.pcapng")
    foreign.write_text("hello, hello, hello")
    assert main(["trace", str(foreign), "-w", str(part)]) == 2
    assert not part.exists()
    assert main(["trace", str(run.with_name("rum.pcapng")), "-w", str(part)]) == 2
    assert f'did you mean "{run}"' in capsys.readouterr().err


def test_a_cut_recording_gives_what_is_whole(run: Path, capsys: Capture) -> None:
    part = run.with_name("part.pcapng")
    run.write_bytes(run.read_bytes()[:-5])
    assert main(["trace", str(run), "-w", str(part)]) == 0
    assert len(list(read_recording(part))) == 1 + 2 + 1 + 3 + 1 + 1
    assert "breaks off at byte" in capsys.readouterr().err


def test_a_full_disk(run: Path, capsys: Capture) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    assert main(["trace", str(run), "-w", "/dev/full"]) == 1
    assert "No space left on device" in capsys.readouterr().err
