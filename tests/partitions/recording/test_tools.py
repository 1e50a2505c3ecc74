"""What others' tools say of our files: each block is well formed, and the files are whole."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Level, Trace, TraceEvent
from partitions.recording.copier import EventHider
from partitions.recording.reader import RecordingReader, read_recording
from partitions.recording.recorder import Recorder
from tests.doubles.recordings import MESSAGES, drain, feed, message_event, new_trace
from tests.partitions.recording.test_recording import SOME, batch

STARTED = 1_700_000_000


def tool(name: str, *arguments: object) -> str:
    """What a program says; anything on standard error but its greeting is a complaint."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed: apt install tshark")
    done = subprocess.run([name, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    complaints = [line for line in done.stderr.splitlines() if "could be dangerous" not in line]
    assert (done.returncode, complaints) == (0, [])
    return done.stdout


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packets, messages, a refused one, other events, and a gap."""
    recorder = Recorder(new_trace(), started=STARTED, limit=20_000)
    feed(recorder, SOME)
    data = b"\x63\0\0\0not a message"
    recorder.event(
        TraceEvent(
            *(12, Layer.CONTROL, "malformed_message", 2, Level.WARNING, TO_ROOT),
            size=len(data),
            words="no channel message has type 99",
            fields={"count": 1},
            data=data,
        )
    )
    pieces = [drain(recorder)]
    for number in range(400):
        recorder.packets(batch(bytes(64), time=20 + number))
    pieces.append(drain(recorder))
    feed(recorder, [message_event(1000, 2, MESSAGES[2], TO_CHILD)])
    recorder.finish()
    pieces.append(drain(recorder))
    path = tmp_path_factory.mktemp("capture") / "run.pcapng"
    path.write_bytes(b"".join(pieces))
    assert recorder.dropped.packets > 100
    return path


def test_tshark_reads_every_packet_as_it_was_recorded(capture: Path) -> None:
    """Time, interface, direction, comment and bytes; custom blocks are shown as what they are."""
    fields = ("frame.time_epoch", "frame.interface_name", "frame.packet_flags_direction", "frame.comment", "data.data")
    shown = tool(
        "tshark", "-r", capture, "-T", "fields", *(x for name in fields for x in ("-e", name)), "-Y", "!frame.cb_pen"
    )
    rows = [line.split("\t") for line in shown.splitlines()]
    ours = [event for event in read_recording(capture) if event.data]
    assert len(rows) == len(ours) > 100
    for (time, interface, direction, comment, data), event in zip(rows, ours, strict=True):
        assert round((float(time) - STARTED) * 1e7) == pytest.approx(event.time, abs=20), "a float has 16 digits"
        assert interface == event.vm
        assert int(direction, 16) == (2 if event.direction == TO_CHILD else 1)
        assert bytes.fromhex(data)[16:] == event.data
        assert struct.unpack_from("<BBBBII", bytes.fromhex(data))[4:] == (event.partition, event.channel or 0)
        assert comment == (
            "malformed_message: no channel message has type 99" if event.event == "malformed_message" else ""
        )


def test_capinfos_finds_the_file_whole(capture: Path) -> None:
    said = tool("capinfos", capture)
    packets = sum(1 for event in read_recording(capture) if event.data)
    assert re.search(rf"Number of packets: +{packets}\n", said)
    assert re.search(r"File encapsulation: +USER 0", said)
    assert re.search(r"Capture application: +Partita", said)
    assert re.findall(r"Name = (\w+)", said) == ["root", "web", "db"]
    assert set(re.findall(r"Time resolution = (\w+)", said)) == {"0x07"}


def test_a_copy_by_editcap_is_still_a_recording(capture: Path, tmp_path: Path) -> None:
    """It counts time from 1970 and drops the interface's offset; events, words and times stay."""
    copy = tmp_path / "copy.pcapng"
    tool("editcap", capture, copy)
    kept = [event for event in read_recording(copy) if event.layer is not Layer.STATE]
    assert kept == [event for event in read_recording(capture) if event.layer is not Layer.STATE]


def test_a_part_by_editcap_is_a_recording_of_that_part(capture: Path, tmp_path: Path) -> None:
    copy = tmp_path / "part.pcapng"
    tool("editcap", "-r", capture, copy, "1-3")
    reader = RecordingReader()
    events = reader.feed(copy.read_bytes())
    reader.finish()
    assert [event.event for event in events][-2:] == ["version_response", "vm_state"]


def test_a_live_capture_has_every_packet(capture: Path) -> None:
    """`-w - | tshark -i -`: dumpcap tells tshark how many packets there are, and it reads so many blocks."""
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed: apt install tshark")
    hidden = EventHider().feed(capture.read_bytes())
    command = ["tshark", "-i", "-", "-T", "fields", "-e", "frame.len"]
    done = subprocess.run(command, input=hidden, capture_output=True, timeout=60, check=True)
    assert len(done.stdout.splitlines()) == sum(1 for event in read_recording(capture) if event.data)


def test_a_run_whose_vms_were_not_known_yet_can_be_copied(tmp_path: Path) -> None:
    """editcap looks for an interface right behind the section header, and gives up where there is none."""
    trace = Trace(lambda: 0)
    recorder = Recorder(trace)
    trace.names[2] = "web"
    feed(recorder, SOME[2:])
    recorder.finish()
    path, copy = tmp_path / "run.pcapng", tmp_path / "copy.pcapng"
    path.write_bytes(drain(recorder))
    tool("editcap", path, copy)
    assert [event.vm for event in read_recording(copy) if event.layer is Layer.PACKET] == ["web"] * 3 + ["#3"]
