"""Traces that somebody made to do harm: what a person is shown of them, and how long it takes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Level, TraceEvent
from partitions.cli.main import main
from partitions.decode.ftrace import FtraceReader, is_ftrace
from partitions.recording import pcapng
from partitions.recording.event_codec import encode_event
from partitions.recording.json_lines import JsonLinesReader
from partitions.recording.link import LINK_TYPE, Kind, LinkHeader
from partitions.recording.reader import RecordingError

ESCAPES = "\x1b]0;mine\x07\x1b[31m\r\x9b2J"
"""Sets a terminal's title, its colour, and goes back over what was printed."""
PROMPT = 2.0
"""Seconds in which a small file is read, on a machine that has other things to do; milliseconds are usual."""


def packet(time: int, outbound: bool, transaction_id: int) -> bytes:
    """A request or its completion, as the first interface's."""
    kind, flags = (11, 0) if outbound else (6, 1)
    head = LinkHeader(1, Kind.PACKET, int(outbound), 1, 2, 1, 0).encode()
    ring = b"".join(number.to_bytes(2, "little") for number in (kind, 2, 4, flags)) + transaction_id.to_bytes(
        8, "little"
    )
    return pcapng.packet(0, time, head + ring + bytes(16), outbound)


def recording(*blocks: bytes, name: str = "web") -> bytes:
    """A file with one VM."""
    return b"".join((pcapng.section("somebody", b""), pcapng.interface(LINK_TYPE, name, 0), *blocks))


def custom(event: TraceEvent) -> bytes:
    """An event's block."""
    return pcapng.custom(encode_event(event))


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """All text in it is terminal control, names included."""
    said = {ESCAPES: ESCAPES, "device": ESCAPES, "call": ESCAPES, "transaction": 4}
    events = [
        TraceEvent(100 + number, layer, f"device_{ESCAPES}", 2, Level.INFO, way, 1, 8, ESCAPES, said, ESCAPES)
        for number, layer in enumerate(Layer)
        for way in (TO_ROOT, TO_CHILD)
    ]
    path = tmp_path / "hostile.pcapng"
    packets = [packet(50, False, 4), *map(custom, events), packet(200, True, 4)]
    path.write_bytes(recording(*packets, name=ESCAPES))
    return path


@pytest.mark.parametrize(
    "verb",
    [
        ["trace"],
        ["trace", "-xx"],
        ["trace", "--requests"],
        ["trace", "--story", "slowest"],
        ["trace", "--story", "first", "-x"],
        ["trace", "--story", ESCAPES],
        ["trace", "--story", f"{ESCAPES}/1"],
        ["trace", "--story", "web"],
        ["trace", "--filter", "vm=web"],
        ["trace", "--sequence"],
        ["trace", "--sequence", "--svg"],
        ["decode"],
    ],
    ids=lambda verb: ascii(" ".join(verb)),
)
def test_a_traces_names_cannot_drive_the_terminal(
    hostile: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    """Names of VMs, events, fields and devices in a file are somebody else's text as much as a guest's words are.

    They were printed as they stood, escape sequences and all: only the words had been thought of.
    """
    main([verb[0], str(hostile), *verb[1:]])
    printed = capsys.readouterr()
    assert not [c for c in printed.out + printed.err if not c.isprintable() and c != "\n"]


def test_a_long_name_does_not_make_a_small_file_large(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column as wide as the longest name, in front of each line, made 1.4 GB of a megabyte."""
    path = tmp_path / "long.pcapng"
    long = TraceEvent(1, Layer.STATE, "x", 2, vm="A" * 300_000)
    path.write_bytes(recording(custom(long), *[custom(TraceEvent(2, Layer.STATE, "x", 3, vm="web"))] * 100))
    assert main(["trace", str(path)]) == 0
    assert len(capsys.readouterr().out) < 20_000


def test_json_lines_nested_too_deep() -> None:
    """A line of brackets ended the command with a traceback: the decoder's RecursionError was nobody's."""
    line = b'{"time":1,"layer":"state","event":"x","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    with pytest.raises(RecordingError, match="line 1: is no trace event"):
        JsonLinesReader().feed(line)


LONG_LINES = {
    "blanks": " " * 200_000 + "x",
    "a word": "<idle>-0 [000] 1.0: vmbus_onoffer: " + "a" * 200_000,
    "brackets": "[" * 200_000,
    "processors": "[1] " * 50_000,
    "digits": "[1] " + "1" * 200_000,
    "pairs": "<idle>-0 [000] 1.0: vmbus_onoffer: " + "a=" * 100_000,
}


@pytest.mark.parametrize("line", LONG_LINES.values(), ids=LONG_LINES)
def test_a_long_line_of_ftrace_is_read_at_once(line: str) -> None:
    """Expressions that tried each place of a line with each other: 200 KB of blanks took most of a minute."""
    begun = time.perf_counter()
    is_ftrace(line)
    FtraceReader().feed(line)
    assert time.perf_counter() - begun < PROMPT


@pytest.mark.parametrize(
    "line",
    [
        f"<idle>-0 [{'9' * 5000}] 1.0: vmbus_setevent: relid 0x1",
        f"<idle>-0 [000] {'9' * 5000}.0: vmbus_setevent: relid 0x1",
        "<idle>-0 [000] 1.0: vmbus_request_offers: sending ret word",
        f"<idle>-0 [000] 1.0: vmbus_request_offers: sending ret {'9' * 5000}",
        f"# entries-in-buffer/entries-written: {'9' * 5000}/{'9' * 5000}",
        f"CPU:0 [LOST {'9' * 5000} EVENTS]",
    ],
    ids=["processor", "time", "word", "result", "buffer", "lost"],
)
def test_numbers_of_ftrace_that_are_none(line: str) -> None:
    """Python refuses to make a number of 5,000 digits, by an exception that ended `partita decode`."""
    FtraceReader().feed(line)
