"""JSON lines read back: the same events, in pieces of any size; what is no event is named by its line."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.trace import TO_ROOT, Layer, Level, Trace, TraceEvent
from partitions.logs import json_sink
from partitions.recording.json_lines import JsonLinesReader
from partitions.recording.reader import RecordingError
from partitions.trace.source import TraceReader


def written() -> tuple[list[TraceEvent], bytes]:
    """Some events, and their lines."""
    now = iter(range(1, 1000))
    trace, out, events = Trace(lambda: next(now)), io.BytesIO(), list[TraceEvent]()
    trace.names.update({2: "web", 3: "db"})
    trace.add_sink(json_sink(out, trace))
    trace.add_sink(events.append)
    trace.emit(Layer.HYPERCALL, "hypercall", 2, words="HvDepositMemory partition_id=0x2 -> SUCCESS", caller=1)
    trace.emit(Layer.HYPERCALL, "hypercall", 3, words="HvSignalEvent connection_id=0x2001", caller=3)
    trace.emit(Layer.PACKET, "packet_received", 2, direction=TO_ROOT, channel=1, size=64, transaction_id=4, time=7)
    trace.emit(Layer.STATE, "vm_state", 3, level=Level.INFO, words="a -> b", cause="start")
    trace.emit(Layer.STATE, "odd", 9)
    trace.emit(Layer.INTERRUPT, "interrupt", 1, vp=0)
    trace.emit(Layer.STATE, "vm_state", 0, vm="later")
    return events, out.getvalue()


@given(st.lists(st.integers(1, 60)))
def test_the_same_events_in_pieces_of_any_size(sizes: list[int]) -> None:
    """Times to the tick, fields, levels; partitions as far as the lines say them."""
    events, data = written()
    reader, found = JsonLinesReader(), []
    for size in sizes:
        found += reader.feed(data[:size])
        data = data[size:]
    found += reader.feed(data)
    reader.finish()
    for was, read in zip(events, found, strict=True):
        assert (read.time, read.layer, read.event, read.level) == (was.time, was.layer, was.event, was.level)
        assert (read.direction, read.channel, read.size, read.words) == (
            was.direction,
            was.channel,
            was.size,
            was.words,
        )
        assert read.fields == was.fields
        assert read.partition == was.partition or was.vm == "later"
    assert [event.vm for event in found] == ["web", "db", "web", "db", "#9", "root", "later"]


def test_times_are_exact() -> None:
    """Seconds with seven digits come back as the ticks that they were."""
    ticks = range(0, 1 << 50, (1 << 50) // 2003)
    lines = b"".join(b'{"time":%b,"layer":"state","event":"x"}\n' % repr(tick / 10_000_000).encode() for tick in ticks)
    assert [event.time for event in JsonLinesReader().feed(lines)] == list(ticks)


def test_a_line_that_is_no_event() -> None:
    """What came before it is given; the call after says where and why."""
    _, data = written()
    reader = JsonLinesReader(name="x.jsonl")
    assert len(reader.feed(data + b"[1]\n" + data)) == 7
    with pytest.raises(RecordingError, match=r"x\.jsonl, line 8: is no trace event"):
        reader.feed(b"")
    with pytest.raises(RecordingError):
        reader.finish()


def test_half_a_line_at_the_end() -> None:
    """As after a crash: told, not an error."""
    _, data = written()
    reader = JsonLinesReader()
    assert len(reader.feed(data[:-5])) == 6
    reader.finish()
    assert reader.truncated_at == data[:-1].rindex(b"\n") + 1


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """Bytes of any kind, in either form, are events or a `RecordingError`."""
    reader = TraceReader()
    try:
        for event in reader.feed(data):
            assert isinstance(event, TraceEvent)
        reader.finish()
    except RecordingError:
        pass


@given(
    st.dictionaries(
        st.sampled_from(["time", "vm", "layer", "event", "level", "direction", "channel", "size", "words", "caller"]),
        st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=4), st.just("packet"), st.just("debug")),
    )
)
def test_any_object(said: dict[str, object]) -> None:
    """So are lines of any JSON."""
    try:
        TraceReader().feed(json.dumps({"time": 1, "event": "x", "layer": "state"} | said).encode() + b"\n")
    except RecordingError:
        pass
