"""What people and scripts read of a run: stable names, aligned lines, and a filter that refuses the unknown."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from hypervisor.trace import TO_ROOT, Layer, Level, PacketBatch, Trace, TraceEvent
from hypervisor.wire import Guid
from partitions import logs
from partitions.decode.packet import DEVICES
from partitions.trace.filters import parse_filter
from vmbus.pipe import frame
from vmbus.ring import Packet, PacketType
from vmbus.server.slots import packet_event


def make_trace() -> Trace:
    trace = Trace(lambda: 12_345_678)
    trace.names[2] = "web"
    return trace


def emit_all(trace: Trace) -> None:
    trace.emit(Layer.CONTROL, "open_channel", 2, direction=TO_ROOT, channel=5, size=120, words="OPENCHANNEL relid=5")
    trace.emit(Layer.PACKET, "packet_received", 2, direction=TO_ROOT, channel=5, size=64, words="SCSI READ(10)", lun=0)
    trace.emit(Layer.STATE, "vm_state", 2, level=Level.INFO, words="Starting -> Running")
    trace.warn(Layer.HYPERCALL, "bad_alignment", 3, "input GPA 0x1001")


def json_lines(trace: Trace, **options: Any) -> list[dict[str, Any]]:
    out = io.BytesIO()
    trace.add_sink(logs.json_sink(out, trace, **options))
    emit_all(trace)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_json_names_are_stable() -> None:
    """Scripts read these names: time in seconds, the VM by name, and only the keys that mean something."""
    lines = json_lines(make_trace())
    assert lines[1] == {
        "time": 1.2345678,
        "vm": "web",
        "layer": "packet",
        "event": "packet_received",
        "level": "debug",
        "direction": ">root",
        "channel": 5,
        "size": 64,
        "words": "SCSI READ(10)",
        "lun": 0,
    }
    assert list(lines[0]) == list(logs.JSON_KEYS), "the keys keep their order"
    assert lines[2] == {
        "time": 1.2345678,
        "vm": "web",
        "layer": "state",
        "event": "vm_state",
        "level": "info",
        "words": "Starting -> Running",
    }
    assert (lines[3]["vm"], lines[3]["level"], lines[3]["count"]) == ("#3", "warning", 1)


def test_json_survives_any_value() -> None:
    """GUIDs become text, bytes hex; lone surrogates, huge integers and fields with our names lose no event."""
    trace = make_trace()
    out = io.BytesIO()
    trace.add_sink(logs.json_sink(out, trace))
    trace.emit(Layer.DEVICE, "x", 1, words="a\udc00b", guid=Guid(), raw=b"\x01\xff", big=1 << 70, time=3)
    line = json.loads(out.getvalue())
    assert line["vm"] == "root"
    assert line["words"] == "a\\udc00b"
    assert (line["guid"], line["raw"], line["big"]) == (str(Guid()), "01ff", str(1 << 70))
    assert (line["time"], line["time_"]) == (1.2345678, 3)


def test_json_flush() -> None:
    """A trace file costs no system call an event; lines for a waiting program are flushed."""

    class Counting(io.BytesIO):
        flushes = 0

        def flush(self) -> None:
            self.flushes += 1

    for flush in (False, True):
        out = Counting()
        trace = make_trace()
        trace.add_sink(logs.json_sink(out, trace, flush=flush))
        emit_all(trace)
        assert out.flushes == (4 if flush else 0)


def test_human_lines_are_aligned() -> None:
    """Time, VM, layer, direction and event stand in columns; what follows is words."""
    out = io.StringIO()
    trace = make_trace()
    trace.add_sink(logs.human_sink(out, trace))
    emit_all(trace)
    assert out.getvalue().splitlines() == [
        "   1.234568  web   control    >root   open_channel            ch 5  120 B  OPENCHANNEL relid=5",
        "   1.234568  web   packet     >root   packet_received         ch 5  64 B  SCSI READ(10)  lun=0",
        "   1.234568  web   state              vm_state                Starting -> Running",
        "   1.234568  #3    hypercall          bad_alignment           warning: input GPA 0x1001  count=1",
    ]


def test_fields_for_people_and_for_scripts() -> None:
    """Registers and ports are hexadecimal for people, numbers for scripts; to people nothing is said twice."""
    trace, text, data = make_trace(), io.StringIO(), io.BytesIO()
    trace.add_sink(logs.human_sink(text, trace))
    trace.add_sink(logs.json_sink(data, trace))
    trace.emit(Layer.MSR, "write_msr", 2, words="GUEST_OS_ID", vp=0, msr=0x40000000, register="GUEST_OS_ID")
    assert text.getvalue().endswith("write_msr               GUEST_OS_ID  vp=0  msr=0x40000000\n")
    line = json.loads(data.getvalue())
    assert (line["vp"], line["msr"], line["register"]) == (0, 0x40000000, "GUEST_OS_ID")


def test_packets_in_the_words_of_their_device() -> None:
    """Behind a packet's descriptor people read what its device makes of it, at a bounded length; scripts do not."""
    trace, text, data = make_trace(), io.StringIO(), io.BytesIO()
    sinks = logs.human_sink(text, trace), logs.json_sink(data, trace)
    payloads = [
        ("hv-socket", frame(b"hello").body),
        ("hv-socket", frame(b"").body),
        ("keyboard", (1).to_bytes(4, "little") + (0x10000).to_bytes(4, "little")),
        ("", bytes(8)),
        *((device, bytes([value]) * 8000) for device in DEVICES for value in (0, 1, 0xFF)),
    ]
    for device, payload in payloads:
        batch = PacketBatch(0, 2, 5, TO_ROOT, device, ())
        event = packet_event(batch, Packet(PacketType.INBAND, 0, 9, 0, payload))
        for sink in sinks:
            sink(event)
    lines = text.getvalue().splitlines()
    assert "INBAND id=0x9 flags=0: 5 bytes  " in lines[0]
    assert "flags=0: the end of the stream" in lines[1]
    assert "flags=0: PROTOCOL_REQUEST 1.0" in lines[2]
    assert "flags=0  transaction_id=9" in lines[3]
    assert max(map(len, lines)) < 320
    assert all(json.loads(line)["words"] == "INBAND id=0x9 flags=0" for line in data.getvalue().splitlines())


def test_guests_cannot_drive_the_terminal() -> None:
    """Control characters that reach words through a guest are spelled out."""
    out = io.StringIO()
    trace = make_trace()
    trace.add_sink(logs.human_sink(out, trace, colour=False))
    trace.emit(Layer.STATE, "crash", 2, words="\033[2Jgone\r\n", note="\007")
    assert "\\x1b[2Jgone\\x0d\\x0a" in out.getvalue()
    assert "note=\\x07" in out.getvalue()
    assert out.getvalue().count("\n") == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "expected"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
    ],
)
def test_colours(stream: io.StringIO, environment: dict[str, str], expected: bool) -> None:
    """Colours only on a terminal, and never against NO_COLOR."""
    assert logs.wants_colour(stream, environment) is expected


def test_coloured_lines_say_the_same() -> None:
    """Colours add nothing but escape sequences; a warning is strong, each VM has its own tint."""
    out = io.StringIO()
    trace = make_trace()
    trace.add_sink(logs.human_sink(out, trace, colour=True))
    emit_all(trace)
    assert "\033[36mweb \033[0m" in out.getvalue()
    assert "\033[33mhypercall" in out.getvalue()


def test_filtered_sink() -> None:
    """The filter stands before the sink, so what it drops is never rendered."""
    trace = make_trace()
    seen: list[TraceEvent] = []
    trace.add_sink(logs.filtered(seen.append, trace, parse_filter("vm=web,level=info")))
    emit_all(trace)
    assert [event.event for event in seen] == ["vm_state"]


def test_nothing_is_attached_unless_asked() -> None:
    """Importing the sinks turns nothing on: a silent run pays one attribute test a trace point."""
    assert make_trace().on is False
