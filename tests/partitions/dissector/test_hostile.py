"""Whatever bytes a capture holds, the dissector has no error of its own."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hypervisor.trace import Layer, Level, TraceEvent
from partitions.recording.event_codec import encode_event
from tests.doubles.bus_traffic import bus_traffic
from tests.doubles.captures import Unit, event_block, link_header, raw_capture, write_capture
from tests.doubles.tshark import faults_of, needs_tshark, read_fields, run_tshark

pytestmark = needs_tshark

UNITS = st.builds(
    Unit,
    kind=st.sampled_from((1, 1, 2, 2, 3)),
    direction=st.sampled_from((0, 1, 0, 1, 9)),
    data=st.binary(max_size=80),
    device=st.integers(0, 15),
    channel=st.integers(0, 3),
    partition=st.integers(1, 2),
    version=st.sampled_from((0, 0xD, 0x50003, 0x60000, 0xFFFFFFFF)),
    ticks=st.none(),
    interface=st.just(0),
)


def lua_errors(capture: Path) -> list[str]:
    """Errors of the dissector, with frame numbers. Whatever tshark complains of is an error already."""
    rows = read_fields(capture, ["frame.number", "_ws.lua.error", "_ws.expert.message"])
    return [f"{row['frame.number'][0]}: {row['_ws.expert.message']}" for row in rows if "_ws.lua.error" in row]


@settings(
    max_examples=2,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(units=st.lists(UNITS, min_size=40, max_size=60))
def test_any_bytes(tmp_path: Path, units: list[Unit]) -> None:
    """Plain noise behind a link header."""
    assert not lua_errors(write_capture(tmp_path / "a.pcapng", units))


def test_spoiled_traffic(tmp_path: Path) -> None:
    """Good traffic in which bytes are changed, cut off, added, and given to another device."""
    chance = random.Random(1)
    frames = []
    for number, unit in enumerate(bus_traffic(2_500, 1)):
        data = bytearray(unit.data)
        kind = chance.random()
        if kind < 0.3:
            for _ in range(chance.randint(1, 3)):
                data[chance.randrange(len(data))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.getrandbits(8)))
        elif kind < 0.5:
            del data[chance.randrange(len(data)) :]
        elif kind < 0.6:
            data += chance.randbytes(chance.randint(1, 100))
        elif kind < 0.7:
            unit = unit._replace(device=chance.randrange(16), direction=chance.randrange(2))
        elif kind < 0.8:
            start = chance.randrange(len(data))
            data[start : start + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\xff\xff\xff\x7f", bytes(4)))
        frames.append((0, number, link_header(unit) + bytes(data)))
    capture = tmp_path / "a.pcapng"
    capture.write_bytes(raw_capture(frames))
    found = faults_of(capture)
    assert len(found) > 500
    assert not [line for line in found if "Lua Error" in line]


EVENT = TraceEvent(
    time=12_345_678_901,
    layer=Layer.HYPERCALL,
    event="hypercall",
    partition=3,
    level=Level.WARNING,
    direction=">root",
    channel=5,
    size=70_000,
    words="HvPostMessage",
    fields={
        "status": -5,
        "list": [1, [2, 3]],
        "more": {"a": None, "b": True},
        "data": b"ab",
        "much": 1 << 63,
        "pi": 3.5,
    },
    vm="wéb",
)


def test_events_have_words(tmp_path: Path) -> None:
    """What a trace event holds is shown by name, whatever kind of value it is."""
    capture = tmp_path / "a.pcapng"
    capture.write_bytes(raw_capture([]) + event_block(encode_event(EVENT)))
    names = ["time", "layer", "event", "partition", "level", "direction", "channel", "size", "words", "field", "vm"]
    [row] = read_fields(capture, [*(f"partita.{name}" for name in names), "_ws.col.Info"])
    assert [value[0] for name, value in row.items() if name != "partita.field"] == [
        "1234.567890100",
        "hypercall",
        "hypercall",
        "3",
        "warning",
        ">root",
        "5",
        "70000",
        "HvPostMessage",
        "wéb",
        "1234.5678901 channel 5 hypercall: HvPostMessage",
    ]
    shown = ["status=-5", "list=1 2 3", "more=a=none b=true", "data=6162", "much=9223372036854775808", "pi=3.5"]
    assert row["partita.field"] == shown


def test_an_events_text_cannot_drive_the_terminal(tmp_path: Path) -> None:
    """tshark writes columns and labels as they are: what a guest had said as it crashed set the terminal's title."""
    said = "\x1b]0;mine\x07\x1b[31m\r\x7f\x9b2J"
    event = TraceEvent(1, Layer.STATE, f"vm_{said}", 3, words=said, vm=said, fields={said: [said]})
    capture = tmp_path / "a.pcapng"
    capture.write_bytes(raw_capture([]) + event_block(encode_event(event)))
    for shown in (run_tshark(capture), run_tshark(capture, "-V")):
        assert "x1b]0;mine" in shown
        assert not [c for c in shown if not c.isprintable() and c not in "\n\t"]


def test_spoiled_events(tmp_path: Path) -> None:
    """Events with changed, missing and nested bytes: shown as bytes where they are none."""
    chance = random.Random(3)
    good = encode_event(EVENT)
    blocks = [event_block(b""), event_block(b"\x81" * 200), event_block(b"\xdf\xff\xff\xff\xff\xa1a\x01")]
    for _ in range(1_000):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.choice((0xC0, 0xCF, 0xD3, 0xCB, 0xFF, chance.getrandbits(8)))
        blocks.append(event_block(bytes(data[: chance.randint(1, 2 * len(data))])))
    capture = tmp_path / "a.pcapng"
    capture.write_bytes(raw_capture([]) + b"".join(blocks))
    assert not lua_errors(capture)
