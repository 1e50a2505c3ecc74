"""`partita trace`: lines, stories and tables of recordings, and what it says of files that are none."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hypervisor.trace import Layer, Trace, TraceEvent
from partitions.cli.main import main
from partitions.cli.trace_views import BusVersions, Lines
from partitions.decode.field import Field
from partitions.recording.recorder import Recorder
from partitions.trace.filters import parse_filter
from tests.partitions.copies import copied_example

COMMAND = [sys.executable, "-m", "partitions.cli.main", "trace"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Example 03 on the virtual clock, as a recording and as JSON lines."""
    folder = tmp_path_factory.mktemp("recorded")
    options = ["--clock", "virtual", "--pcap", str(folder / "disk.pcapng"), "--trace", str(folder / "disk.jsonl")]
    assert main(["run", str(copied_example("03-disk", folder)), "--no-lines", *options]) == 0
    return folder


def shown(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 0) -> list[str]:
    """What the command prints."""
    capsys.readouterr()
    assert main(["trace", *map(str, arguments)]) == status
    return capsys.readouterr().out.splitlines()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 2) -> str:
    """What it says on standard error."""
    capsys.readouterr()
    assert main(["trace", *map(str, arguments)]) == status
    return capsys.readouterr().err.strip()


def test_lines_of_both_forms_say_the_same(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recording and the JSON lines of the same run: the same events in the same order, by VM, layer and words."""
    pcapng = [json.loads(line) for line in shown(capsys, recorded / "disk.pcapng", "-o", "json")]
    lines = [json.loads(line) for line in shown(capsys, recorded / "disk.jsonl", "-o", "json")]
    assert pcapng.pop(0)["event"] == "recording_started"
    keys = ("time", "vm", "layer", "event", "level", "direction", "channel", "size")
    assert [[one.get(key) for key in keys] for one in pcapng] == [[one.get(key) for key in keys] for one in lines]
    assert len(lines) > 1000


def test_json_lines_come_out_as_they_went_in(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the byte: nothing is lost on the way through events."""
    assert shown(capsys, recorded / "disk.jsonl", "-o", "json") == (recorded / "disk.jsonl").read_text().splitlines()


def test_filter_limit_tail(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same filter language as a run's; --limit keeps the first, --tail the last."""
    file = recorded / "disk.pcapng"
    reads = shown(capsys, file, "--filter", "vm=reader,device=storage,text=SCSI READ(10)")
    assert len(reads) > 4
    assert all("scsi_command" in line and "reader" in line for line in reads)
    assert shown(capsys, file, "--filter", "vm=reader,text=SCSI READ(10)", "--limit", "2") == reads[:2]
    assert shown(capsys, file, "--filter", "vm=reader,text=SCSI READ(10)", "--tail", "3") == reads[-3:]
    assert shown(capsys, file, "--limit", "0") == []
    assert (
        shown(capsys, file, "--filter", "vm=reader,text=SCSI READ(10)", "--tail", "3", "--limit", "2") == reads[-3:-1]
    )


def test_bytes_below_the_lines(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """-x shows fields with their offsets and bytes, -xx the bytes by themselves too, JSON both as members."""
    file = recorded / "disk.pcapng"
    options = ("--filter", "layer=packet,direction=root", "--limit", "1")
    decoded = shown(capsys, file, *options, "-x")
    assert decoded[0].split()[4] == "packet_received"
    assert [line.split() for line in decoded if "transaction_id" in line][1][:9] == [
        "0008",
        "01",
        "00",
        "00",
        "00",
        "00",
        "00",
        "00",
        "00",
    ]
    both = shown(capsys, file, *options, "-xx")
    (first, *_) = [line for line in both if line not in decoded]
    assert first.split()[:9] == ["0000", "06", "00", "02", "00", "0a", "00", "01", "00"]
    (line,) = shown(capsys, file, *options, "-x", "-o", "json")
    document = json.loads(line)
    assert bytes.fromhex(document["data"])[:2] == b"\x06\0"
    assert document["decoded"]["children"][0]["name"] == "descriptor"


def test_the_story_of_a_read(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All hops, from a recording and from JSON lines alike; as a document too."""
    stories = [
        shown(capsys, recorded / name, "--story", "first:text=READ(10)") for name in ("disk.pcapng", "disk.jsonl")
    ]
    assert stories[0] == stories[1]
    (document,) = [
        json.loads("".join(shown(capsys, recorded / "disk.pcapng", "--story", "reader/1/0x6.2", "-o", "json")))
    ]
    assert [step["event"] for step in document["steps"]] == [
        *("hypercall", "signal_event", "interrupt", "packet_received", "scsi_command", "scsi_result", "packet_sent"),
        *("hypercall", "signal_event", "interrupt"),
    ]


def test_a_story_is_told_when_it_is_over(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What comes after the request is not read, so that damage there does no harm; the slowest needs all of it."""
    damaged = recorded / "damaged.jsonl"
    damaged.write_bytes((recorded / "disk.jsonl").read_bytes() + b"{}\n")
    assert shown(capsys, damaged, "--story", "reader/1/0x6.2")[0].startswith("reader/1/0x6.2  SCSI")
    assert "is no trace event" in refused(capsys, damaged, "--story", "slowest", status=1)


def test_bytes_mean_what_the_version_says() -> None:
    """The version is learned from messages that no filter lets through."""
    versions = BusVersions()
    answer = bytes.fromhex("0f000000 00000000 01000000 01000000")
    event = TraceEvent(0, Layer.CONTROL, "version_response", 2, direction=">child", words="supported=1", data=answer)
    assert detail(versions.decode(event, "web")).startswith("from 5.0 on")
    versions.learn(
        TraceEvent(0, Layer.CONTROL, "initiate_contact", 2, words="INITIATE_CONTACT version=5.3 vp=0"), "web"
    )
    versions.learn(event, "web")
    assert detail(versions.decode(event, "web")) == "post to connection 0x1"
    assert detail(versions.decode(event, "db")).startswith("from 5.0 on")
    view = Lines(io.StringIO(), json=False, wanted=parse_filter("direction=child"), bytes_shown=1)
    assert view.wanted() is None


def detail(field: Field) -> str:
    """What the last field of a VERSION_RESPONSE is said to be."""
    return next(child.words for child in field.children if child.name == "detail")


def test_requests(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row a request, and a row of percentiles a device; a filter chooses requests by any of their hops."""
    table = shown(capsys, recorded / "disk.pcapng", "--requests", "--sort", "name", "--limit", "2")
    assert [line.split()[0] for line in table[:4]] == ["request", "reader/1/0x1", "reader/1/0x1.2", "..."]
    assert table[-2].split()[:4] == ["reader", "storage", "21", "1057344"]
    text = "".join(shown(capsys, recorded / "disk.pcapng", "--requests", "-o", "json", "--filter", "text=WRITE(10)"))
    document = json.loads(text)
    assert document["requests"]
    assert all("WRITE(10)" in row["words"] for row in document["requests"])


def test_lives(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a VM and of a channel, each with its answers."""
    vm = shown(capsys, recorded / "disk.pcapng", "--story", "reader")
    assert "version    VMBus 6.0, the first that the guest asked for" in vm
    assert "end        its guest powered itself off; nobody had asked" in vm
    channel = shown(capsys, recorded / "disk.pcapng", "--story", "reader/1")
    assert channel[0] == "reader/1  storage"
    assert channel[-1] == "end      closed by the guest (CLOSE_CHANNEL)"


@pytest.mark.parametrize(
    ("arguments", "expected", "status"),
    [
        (["disk.pcapng", "--story", "raeder"], 'no VM "raeder" in this trace; did you mean "reader"?', 1),
        (["disk.pcapng", "--story", "slowst"], 'no VM "slowst" in this trace; did you mean "slowest"?', 1),
        (["disk.pcapng", "--story", "reader/7"], "reader has no channel 7 in this trace; it has 1", 1),
        (["disk.pcapng", "--story", "reader/1/0x77"], 'no request "reader/1/0x77"; the nearest are reader/1/0x', 1),
        (
            ["disk.pcapng", "--story", "reader/x"],
            "--story reader/x: takes a request (reader/1/0x4), slowest, first or",
            2,
        ),
        (
            ["disk.pcapng", "--story", "first:txt=x"],
            '--story first:txt=x: unknown filter key "txt"; did you mean "text"?',
            2,
        ),
        (["disk.pcapng", "--filter", "layr=packet"], '--filter: unknown filter key "layr"; did you mean "layer"?', 2),
        (["disk.pcapng", "--filter", "vm=raeder"], 'note: no VM "raeder" in this trace; did you mean "reader"?', 0),
        (
            ["disk.pcapng", "--filter", "event=vmstate"],
            'note: no event "vmstate" in this trace; did you mean "vm_state"?',
            0,
        ),
        (["disk.pcapng", "--filter", "event=vm_state,channel=9"], "disk.pcapng: nothing in it fits the filter", 0),
        (["disk.pcapng", "--filter", "channel=9", "--tail", "3"], "disk.pcapng: nothing in it fits the filter", 0),
        (["disk.pcapng", "--sequence", "--filter", "time=99.."], "disk.pcapng: nothing in it fits the filter", 0),
        (["disk.pcapng", "--requests", "--filter", "text=none"], "there is no such request in this trace", 1),
        (["dsk.pcapng"], 'No such file or directory; did you mean "', 2),
        (["topology.toml"], "no recording", 2),
        (["empty"], "it is empty", 2),
        (["half.jsonl", "--limit", "9999999"], "half.jsonl breaks off at byte", 0),
        (["half.pcapng"], "half.pcapng breaks off at byte", 0),
        (["broken.jsonl"], "broken.jsonl, line 3: is no trace event: ", 1),
        (["not.jsonl"], "not.jsonl, line 1: is no trace event: ", 2),
        (["."], "Is a directory", 2),
    ],
)
def test_bad_input(
    recorded: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str, status: int
) -> None:
    """The place, the reason, what to do; what can be read of a damaged file is shown before."""
    pcapng, lines = (recorded / "disk.pcapng").read_bytes(), (recorded / "disk.jsonl").read_bytes()
    (recorded / "topology.toml").write_text("[[vm]]")
    (recorded / "empty").touch()
    (recorded / "half.jsonl").write_bytes(lines[: len(lines) // 2])
    (recorded / "half.pcapng").write_bytes(pcapng[: len(pcapng) // 2 + 1])
    (recorded / "broken.jsonl").write_bytes(b"".join(lines.splitlines(True)[:2]) + b'{"time": 1}\n' + lines)
    (recorded / "not.jsonl").write_bytes(b'{"some": "json"}\n')
    said = refused(capsys, recorded / arguments[0], *arguments[1:], status=status)
    assert expected in said
    assert said.count("\n") == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "takes a FILE, or --host"),
        (["x", "--host", "y"], "takes a FILE or --host, not both"),
        (["x", "--limit", "-1"], "--limit must not be negative"),
        (["x", "--for", "1"], "--for takes seconds"),
        (["--host", "--follow"], "--follow goes with a FILE"),
        (["x", "-w", "y", "--tail", "3"], "-w records a running host"),
        (["x", "-x", "--requests"], "--hex goes with lines"),
        (["x", "--story", "first", "--filter", "vm=a"], "--story takes its filter itself"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    """What does not go together is refused before anything is read."""
    assert expected in refused(capsys, *arguments)


def test_the_environment_gives_way(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host or a filter for every command does not stand in the way of one that it does not go with."""
    file = recorded / "disk.pcapng"
    plain = {what: shown(capsys, file, *what.split()) for what in ("--story slowest", "--requests", "--limit 2")}
    for name, value in (("HOST", "web"), ("FOR", "3"), ("FILTER", "layer=packet"), ("HEX", "1"), ("TAIL", "2")):
        monkeypatch.setenv(f"PARTITA_TRACE_{name}", value)
    assert shown(capsys, file, "--story", "slowest", "--limit", "2")[0] == plain["--story slowest"][0]
    monkeypatch.delenv("PARTITA_TRACE_FILTER")
    assert shown(capsys, file, "--requests") == plain["--requests"]
    assert "takes a FILE or --host, not both" in refused(capsys, file, "--host", "other")
    monkeypatch.delenv("PARTITA_TRACE_HEX")
    monkeypatch.setenv("PARTITA_TRACE_FILTER", "event=vm_ended")
    assert [line.split()[1] for line in shown(capsys, file)] == ["reader", "writer"]


def test_standard_input(recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` is a pipe with either form."""
    for name in ("disk.pcapng", "disk.jsonl"):
        stream = io.TextIOWrapper(io.BytesIO((recorded / name).read_bytes()))
        monkeypatch.setattr(sys, "stdin", stream)
        assert shown(capsys, "-", "--requests", "--limit", "1")[1].split()[1] == "storage"


def test_a_reader_that_has_enough(recorded: Path) -> None:
    """`| head` ends the command without a word."""
    command = subprocess.Popen(
        [*COMMAND, str(recorded / "disk.jsonl")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    command.stdout.readline()
    command.stdout.close()
    assert command.wait(timeout=30) == 0
    assert command.stderr is not None
    assert command.stderr.read() == ""
    command.stderr.close()


def test_follow(recorded: Path, tmp_path: Path) -> None:
    """A file that grows is shown as it grows, block by block, until Ctrl-C, which is a good end."""
    data = (recorded / "disk.pcapng").read_bytes()
    growing = tmp_path / "growing.pcapng"
    growing.write_bytes(data[:20_000])
    with subprocess.Popen(
        [*COMMAND, str(growing), "--follow", "--tail", "1", "-o", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        first = json.loads(command.stdout.readline())
        with growing.open("ab") as file:
            file.write(data[20_000:])
        rest = [json.loads(command.stdout.readline()) for _ in range(200)]
        os.kill(command.pid, signal.SIGINT)
        said = command.communicate(timeout=30)[1]
    assert command.returncode == 0
    assert said == ""
    assert rest[0]["time"] >= first["time"]


def test_nothing_is_imported_for_it() -> None:
    """`partita --help` does not pay for what it does not use."""
    program = "import sys; from partitions.cli import trace; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"trio", "msgspec", "partitions.trace.requests", "partitions.trace.story", "structlog"} & set(modules)


def test_what_the_recorder_dropped_is_said(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In its place as a line, and at the end how much of it there was."""
    trace = Trace(lambda: 10)
    trace.names[2] = "web"
    pieces: list[bytes] = []
    recorder = Recorder(trace, started=0, limit=2_000)
    recorder.attach()
    for size in (100, 100_000, 100):
        trace.emit(Layer.STATE, "told", 2, words="x" * size)
        pieces.append(recorder.take())
    recorder.finish()
    pieces.append(recorder.take())
    (recorded / "dropped.pcapng").write_bytes(b"".join(pieces))
    assert main(["trace", str(recorded / "dropped.pcapng"), "-o", "json"]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["event"] for line in out.splitlines()] == [
        *("recording_started", "told", "recording_dropped", "told")
    ]
    assert err == "note: the recorder dropped 1 event: it could not write so fast\n"
