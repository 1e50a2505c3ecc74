"""`partita run --pcap`: a run as a recording, and what happens when that cannot be written."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hypervisor.trace import Trace, TraceEvent
from partitions.cli.main import main
from partitions.logs import json_sink
from partitions.recording.reader import Recording, RecordingReader, read_recording
from tests.partitions.cli.conftest import MakeTopology

COMMAND = [sys.executable, "-m", "partitions.cli.main"]
CHATTY = "for number in range(300):\n    print(number)\n    await guest.sleep(0.001)"


def recorded(path: Path) -> list[TraceEvent]:
    return list(read_recording(path))


def test_a_virtual_run_is_recorded_the_same_each_time(topology: MakeTopology, tmp_path: Path) -> None:
    """To the last byte; and what is read back says what the lines of the same run say."""
    folder = topology(web="print('hello')", db="await guest.sleep(5)")
    for name in ("one", "two"):
        options = [
            "--clock",
            "virtual",
            "--seed",
            "3",
            "--pcap",
            str(tmp_path / name),
            "--trace",
            str(tmp_path / "lines"),
        ]
        assert main(["run", str(folder), *options]) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()

    start, *events = recorded(tmp_path / "one")
    assert (start.event, start.fields["started"]) == ("recording_started", 0)
    out = io.BytesIO()
    sink = json_sink(out, Trace(lambda: 0))
    for event in events:
        sink(event)
    assert out.getvalue() == (tmp_path / "lines").read_bytes()


def test_a_recording_on_standard_output_is_nothing_but_a_recording(topology: MakeTopology) -> None:
    """`-w - | tshark -i -`: console and results go to standard error."""
    folder = topology(web="print('hello')")
    done = subprocess.run([*COMMAND, "run", str(folder), "-w", "-"], capture_output=True, timeout=60, check=True)
    reader = RecordingReader()
    events = reader.feed(done.stdout)
    reader.finish()
    assert reader.truncated_at is None
    assert "vm_ended" in [event.event for event in events]
    assert b"web | hello" in done.stderr
    assert b"powered off" in done.stderr


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_reads_along(topology: MakeTopology) -> None:
    """`partita run ... -w - | tshark -i -`."""
    call = f"{' '.join(COMMAND)} run {topology(web='pass')} -w - | tshark -i - -T fields -e frame.len"
    done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, timeout=60, check=True)
    lengths = [int(line) for line in done.stdout.splitlines()]
    assert {16 + 40, 16 + 8} <= set(lengths), "INITIATE_CONTACT and REQUEST_OFFERS"
    assert "Traceback" not in done.stderr


def test_a_filter_holds_for_a_recording(topology: MakeTopology, tmp_path: Path) -> None:
    folder, path = topology(web="pass", db="pass"), tmp_path / "run.pcapng"
    assert main(["run", str(folder), "--pcap", str(path), "--trace-filter", "vm=web,layer=control"]) == 0
    _, *events = recorded(path)
    assert {(event.vm, event.layer.value) for event in events} == {("web", "control")}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("clock", ["real", "virtual"])
def test_a_full_disk_under_a_recording(topology: MakeTopology, clock: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Said at once and at the end, with what is missing; the guests never hear of it, and the run has failed."""
    folder = topology(web="print('hello')")
    assert main(["run", str(folder), "--clock", clock, "--pcap", "/dev/full"]) == 1
    out, error = capfd.readouterr()
    assert "hello" in out
    assert "powered off (0)" in out
    assert error.count("No space left on device; the recording ends here") == 1
    assert re.search(r"note: --pcap /dev/full: at least .*events are not in it", error)
    assert "error: --pcap /dev/full: No space left on device" in error


def test_a_reader_of_a_recording_that_leaves_does_not_end_the_run(topology: MakeTopology) -> None:
    """Unlike that of lines: `tshark -c 10` has seen enough, the guests have not."""
    folder = topology(web=CHATTY)
    call = f"{' '.join(COMMAND)} run {folder} -w - | head -c 100 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "0\n"
    assert "web | 299" in done.stderr
    assert done.stderr.count("its reader has gone") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-w", "-", "--json"], "does not go with --json"),
        (["-w", "-", "--console", "web"], "does not go with --console"),
        (["--pcap", "/nowhere/run.pcapng"], "--pcap /nowhere/run.pcapng: No such file or directory"),
    ],
)
def test_a_recording_that_cannot_be_is_refused_before_anything_starts(
    topology: MakeTopology, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(topology(web="print('hello')")), *options]) == 2
    out, error = capsys.readouterr()
    assert words in error
    assert "hello" not in out


def test_a_run_that_is_killed_leaves_a_recording(topology: MakeTopology, tmp_path: Path) -> None:
    """Up to its last whole block, and to the last tenth of a second or so."""
    folder, path = topology(web="while True:\n    print('on')\n    await guest.sleep(0.001)"), tmp_path / "run.pcapng"
    with subprocess.Popen([*COMMAND, "run", str(folder), "--pcap", str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(300):
            process.stdout.readline()
        process.kill()
    recording = Recording(path)
    printed = sum(event.event == "port_out" for event in recording)
    assert printed > 300
    assert recording.reader.truncated_at is None or recording.reader.truncated_at > path.stat().st_size - 65536
