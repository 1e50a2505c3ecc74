"""Timelines: every request once, arrows that bind, tracks that nest, and a file that is right wherever it ends."""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Level, TraceEvent
from partitions.trace.requests import track
from partitions.trace.timeline import Timeline
from tests.doubles import trace_events_checker as checker
from tests.doubles.trace_events_checker import Record
from tests.partitions.trace import pictures
from tests.partitions.trace.test_sequence import TEXT, event, offer

NAMES = {1: "root", 2: "web", 3: "db"}


def written(events: list[TraceEvent], *, finished: bool = True) -> bytes:
    file = io.BytesIO()
    timeline = Timeline(file.write)
    for happened in events:
        timeline.feed(happened, NAMES.get(happened.partition, f"#{happened.partition}" if happened.partition else ""))
    if finished:
        timeline.finish()
    else:
        timeline.flush()
    return file.getvalue()


def read(number: int, time: int = 0) -> list[TraceEvent]:
    """One disk read, from the guest's signal to the interrupt that tells it, 10 us a step."""
    packet = {"channel": 1, "transaction_id": number, "device": "storage"}
    steps: list[tuple[Layer, str, str, dict[str, Any]]] = [
        (Layer.SYNIC, "signal_event", TO_ROOT, {"connection": 0x2001, "sint": 2, "flag": 1}),
        (Layer.INTERRUPT, "interrupt", TO_ROOT, {"partition": 1, "vp": 0, "vector": 0x32}),
        *[(Layer.HYPERCALL, "hypercall", "", signal(0x2001, 2))],
        (
            Layer.PACKET,
            "packet_received",
            TO_ROOT,
            {"type": 9, "flags": 1, "size": 64, "words": "GPA_DIRECT", **packet},
        ),
        (Layer.DEVICE, "scsi_command", TO_ROOT, {"channel": 1, "words": "SCSI READ(10) lba=0", "transaction": number}),
        (Layer.DEVICE, "scsi_result", TO_CHILD, {"channel": 1, "words": "good", "size": 4096, "transaction": number}),
        (Layer.PACKET, "packet_sent", TO_CHILD, {"type": 11, "flags": 0, "size": 64, "words": "COMPLETION", **packet}),
        (Layer.SYNIC, "signal_event", TO_CHILD, {"connection": 0x1002, "sint": 2, "flag": 1}),
        (Layer.INTERRUPT, "interrupt", TO_CHILD, {"vp": 0, "vector": 0xF3}),
        (Layer.HYPERCALL, "hypercall", "", {"partition": 1, **signal(0x1002, 1)}),
    ]
    return [event(*step[:3], time=time + 100 * n, **step[3]) for n, step in enumerate(steps)]


def signal(connection: int, caller: int) -> dict[str, Any]:
    words = f"HvSignalEvent connection_id={connection:#x} -> SUCCESS"
    return {"words": words, "call": "HvSignalEvent", "status": "SUCCESS", "caller": caller, "vp": 0}


def names_of(records: list[Record]) -> dict[int, str]:
    """`process: track` by tid."""
    processes = {r["pid"]: r["args"]["name"] for r in records if r.get("name") == "process_name"}
    return {r["tid"]: f"{processes[r['pid']]}: {r['args']['name']}" for r in records if r.get("name") == "thread_name"}


def test_a_read_has_its_slices_its_device_work_and_its_arrow() -> None:
    """The request from signal to interrupt, the device's work nested in it, an arrow through five tracks."""
    records = checker.read(written([offer(), *read(4, 1000)]))
    checker.check(records)
    names = names_of(records)
    opened = [(r["ts"], r["name"]) for r in records if r["ph"] == "b"]
    assert opened == [(100.0, "SCSI READ(10) lba=0"), (140.0, "storage")]
    ended = [(r["ts"], r["name"]) for r in records if r["ph"] == "e"]
    assert ended == [(150.0, "storage"), (180.0, "SCSI READ(10) lba=0")]
    assert [(r["ph"], r["ts"], names[r["tid"]]) for r in records if r["ph"] in "stf"] == [
        ("s", 120.0, "web: VP 0"),
        ("t", 130.0, "web: channel 1 storage"),
        ("t", 140.0, "root: storage VSP, web channel 1"),
        ("t", 160.0, "web: channel 1 storage"),
        ("f", 180.0, "web: VP 0"),
    ]
    calls = [(r["ts"], r["dur"], names[r["tid"]]) for r in records if r.get("name") == "HvSignalEvent"]
    assert calls == [(100.0, 20.0, "web: VP 0"), (170.0, 20.0, "root: VP 0")], "from when it took effect to its return"


def test_requests_under_way_together_have_lanes_of_their_own() -> None:
    """Slices of one track may not overlap, so each request takes a lane that is free; all lanes have one name."""
    events = sorted((e for number in range(5) for e in read(number, 130 * number)), key=lambda e: e.time)
    records = checker.read(written([offer(), *events]))
    checker.check(records)
    assert len(list(checker.requests(records))) == 5
    titles = {r["name"] for r in records if r["ph"] == "n"}
    assert titles == {"channel 1 storage, requests"}


def test_counters_rise_and_fall() -> None:
    """Requests in flight go up with each question and down with each answer; bytes are told as a rate."""
    packets = [read(number)[3] for number in range(3)] + [read(number)[6] for number in range(3)]
    records = checker.read(written([offer(), *packets]))
    in_flight = [r["args"]["requests"] for r in records if r["name"] == "in flight, channel 1 storage"]
    assert in_flight == [1, 2, 3, 2, 1, 0]
    rates = [r["args"] for r in records if r["name"] == "bytes/s, channel 1 storage"]
    assert rates == [{"data": 0, "ring": 6 * 64 * 100}, {"data": 0, "ring": 0}]


def test_what_happens_in_one_tick_keeps_its_order() -> None:
    """On the virtual clock whole requests take no time: they are told 1 ns apart, so nothing is a tie."""
    events = [e for number in range(20) for e in read(number)]
    still = [TraceEvent(7, *[getattr(e, name) for name in TraceEvent.__struct_fields__[1:]]) for e in events]
    records = checker.read(written([offer(), *still]))
    checker.check(records)
    starts = [r["ts"] for r in records if r["ph"] == "X" and r["dur"] == 0]
    assert len(set(starts)) == len(starts)
    assert max(starts) < 0.7 + 0.001 * (len(still) + 2)


def test_a_request_without_an_answer_is_there_too() -> None:
    """It lasts to the end of the trace, or to the close of its channel, and says so."""
    asked = [offer(), read(1)[3]]
    closed = [*asked, event(Layer.CONTROL, "close_channel", TO_ROOT, time=900, channel=1, words="CLOSE_CHANNEL")]
    for events, outcome, waiting in ((asked, "not answered yet", 1), (closed, "channel closed", 0)):
        records = checker.read(written(events))
        checker.check(records)
        assert [r["args"]["outcome"] for r in checker.requests(records)] == [outcome]
        assert [r["args"]["requests"] for r in records if r["name"].startswith("in flight")][-1] == waiting


def test_a_killed_run_leaves_a_file_that_can_be_read() -> None:
    """Wherever it was cut, what is whole before the cut follows the rules."""
    whole = written([offer(), *(e for number in range(6) for e in read(number, 130 * number))], finished=False)
    cuts = random.Random(1)
    for _ in range(50):
        cut = whole[: cuts.randrange(400, len(whole))]
        checker.check(checker.read(cut), whole=False)


def test_a_stopped_processor_is_a_slice() -> None:
    """From the moment it was suspended to the moment it went on, beside its track; still open, to the end."""
    stopped = [
        event(Layer.STATE, name, time=time, words=words, vp=1)
        for time, name, words in (
            (10, "vp_suspended", "by its parent"),
            (50, "vp_resumed", ""),
            (70, "vp_suspended", ""),
        )
    ]
    records = checker.read(written(stopped))
    checker.check(records)
    assert [(r["ph"], r["ts"], r.get("name")) for r in records if r["ph"] in "BE"] == [
        ("B", 1.0, "suspended by its parent"),
        ("E", 5.0, None),
        ("B", 7.0, "suspended"),
        ("E", 7.001, None),
    ]
    assert "web: VP 1 stopped" in names_of(records).values()


def test_a_restarted_vm_is_the_same_process() -> None:
    """A VM is what people call it, not its partition's number; before it has a name, nothing is lost either."""
    file = io.BytesIO()
    timeline = Timeline(file.write)
    for partition in (2, 5):
        timeline.feed(
            event(Layer.STATE, "partition_state", partition=partition, words="uninitialized"), f"#{partition}"
        )
        timeline.feed(TraceEvent(0, Layer.STATE, "vm_state", partition, words="off -> starting", vm="web"), "web")
        timeline.feed(event(Layer.MSR, "write_msr", partition=partition, words="SIMP", vp=0, value=1), "web")
    timeline.finish()
    records = checker.read(file.getvalue())
    checker.check(records)
    assert sorted(set(names_of(records).values())) == ["hypervisor: state", "web: VP 0", "web: state"]


@pytest.mark.parametrize("example", ["01", "02", "03", "04"])
def test_examples_give_timelines_that_follow_the_rules(example: str) -> None:
    """Every request of the run has exactly one slice, and an arrow wherever it has more than one point."""
    events = pictures.events_of(example)
    file = io.BytesIO()
    timeline = Timeline(file.write)
    for happened, vm in events:
        timeline.feed(happened, vm)
    timeline.finish()
    records = json.loads(file.getvalue())  # as strict readers do: with its end
    checker.check(records)
    expected = Counter(request.name for request in track(named(happened, vm) for happened, vm in events))
    assert Counter(r["args"]["request"] for r in checker.requests(records)) == expected
    assert max(expected.values(), default=1) == 1


def named(happened: TraceEvent, vm: str) -> TraceEvent:
    return msgspec.structs.replace(happened, vm=vm)


def test_the_picture_in_the_documentation_is_real() -> None:
    """docs/timeline.svg shows records of a real file; `python -m tests.partitions.trace.pictures` draws it again."""
    assert (pictures.DOCS / "timeline.svg").read_text() == pictures.timeline_picture()


# --- whatever guests do

HOSTILE = st.builds(
    event,
    layer=st.sampled_from(Layer),
    name=st.sampled_from(
        [
            *("hypercall", "signal_event", "packet_received", "packet_sent", "interrupt", "scsi_command"),
            *(
                "scsi_result",
                "vm_state",
                "vp_suspended",
                "vp_resumed",
                "close_channel",
                "port_out",
                "read_msr",
                "unload",
                "post_message",
            ),
        ]
    ),
    direction=st.sampled_from(["", TO_ROOT, TO_CHILD]),
    time=st.integers(0, 40),
    partition=st.sampled_from([0, 1, 2, 3, 9]),
    channel=st.none() | st.integers(0, 2),
    size=st.none() | st.integers(0, 1 << 70),
    words=TEXT
    | st.sampled_from(
        ["off -> running", "HvSignalEvent connection_id=0x2001", "connection_id=0xzz", "connection_id=0x1002"]
    ),
    level=st.sampled_from(Level),
    transaction_id=st.integers(0, 3),
    transaction=st.none() | st.integers(0, 3),
    type=st.sampled_from([6, 9, 11]),
    flags=st.sampled_from([0, 1]),
    connection=st.sampled_from([0x2001, 0x1002, None]),
    flag=st.integers(0, 2),
    caller=st.integers(1, 3) | TEXT,
    call=st.sampled_from(["HvSignalEvent", "HvPostMessage"]),
    device=TEXT,
    vector=st.integers(0, 300) | TEXT,
    port=st.just(0x3F8) | TEXT,
    value=st.integers(0, 1 << 64) | TEXT,
    reason=TEXT,
)


@given(st.lists(st.one_of(HOSTILE, st.integers(0, 3).map(lambda n: read(n)[n])) | HOSTILE, max_size=60), st.booleans())
def test_whatever_guests_do_the_file_follows_the_rules(events: list[TraceEvent], finished: bool) -> None:
    """Any events in any order, with any text in them: well-formed JSON, nested slices, arrows that bind."""
    records = checker.read(written(events, finished=finished))
    checker.check(records, whole=finished)
    if finished:
        told = Counter(r["args"]["request"] for r in checker.requests(records))
        assert max(told.values(), default=1) == 1
        json.dumps(records)
