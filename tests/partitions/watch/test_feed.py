"""What a page is told: the picture's changes, requests by their events, and a window of a long recording."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.trace import Layer, Level, TraceEvent
from partitions.trace.filters import parse_filter
from partitions.watch.export import Exporter
from partitions.watch.feed import Feed
from partitions.watch.rows import COLUMNS
from partitions.watch.scene import RESET, Scene
from tests.partitions.watch.conftest import Run

STORAGE = "interface=ba6163d9-04a1-4d29-b605-72e2ffb1dc7f"


def state(words: str, event: str = "vm_state", **more: Any) -> TraceEvent:
    return TraceEvent(0, Layer.STATE, event, 2, words=words, vm="web", **more)


def offer(channel: int, words: str = STORAGE) -> TraceEvent:
    return TraceEvent(0, Layer.CONTROL, "offer_channel", 2, channel=channel, words=words, vm="web")


def packet(channel: int, device: str = "network") -> TraceEvent:
    return TraceEvent(0, Layer.PACKET, "packet_sent", 2, channel=channel, fields={"device": device}, vm="web")


def test_a_vms_life() -> None:
    """States as they come; a crash stays to be seen until the VM starts again; what is off has no channels."""
    scene = Scene()
    told = [
        scene.feed(event, "web")
        for event in (
            state("off -> starting"),
            state("starting -> running"),
            offer(1),
            state("closed -> opening", "vmbus_channel", channel=1),
            state("opening -> open", "vmbus_channel", channel=1),
            packet(1, "storage"),
            state("words of its own", "guest_crash", level=Level.ERROR),
            state("running -> off"),
            state("crashed: words", "vm_ended", level=Level.ERROR),
            state("off -> starting"),
        )
    ]
    assert told == [
        [("vm", "web", "starting")],
        [("vm", "web", "running")],
        [("channel", "web", 1, "storage", "offered")],
        [("channel", "web", 1, "storage", "opening")],
        [("channel", "web", 1, "storage", "open")],
        [],
        [("vm", "web", "crashed")],
        [],
        [],
        [("vm", "web", "starting")],
    ]
    assert scene.snapshot() == [RESET, ("vm", "web", "starting")]


def test_a_recording_that_began_late() -> None:
    """What its head says was there, and what packets betray: both are in the picture."""
    scene = Scene()
    head = TraceEvent(
        *(5, Layer.STATE, "recording_started", 0),
        fields={"names": {"2": "web", "3": "db"}, "versions": {"2": 0x60000}, "channels": [[2, 1, "storage"], [9, 9]]},
    )
    assert scene.feed(head, "") == [
        ("vm", "web", "running"),
        ("vm", "db", "running"),
        ("channel", "web", 1, "storage", "open"),
    ]
    assert scene.feed(packet(4), "db") == [("channel", "db", 4, "network", "open")]
    assert scene.feed(packet(4), "mail") == [("vm", "mail", "running"), ("channel", "mail", 4, "network", "open")]
    feed = Feed({})
    feed.add(head)
    assert feed.versions == {"web": 0x60000}


VM_WORDS = ("off -> starting", "starting -> running", "running -> paused", "running -> off", STORAGE, "x")
BUS_WORDS = (
    "closed -> opening",
    "opening -> open",
    "open -> closing",
    "closing -> closed",
    "closed -> client released",
)
words = st.sampled_from((*VM_WORDS, *BUS_WORDS))
stories = st.lists(
    st.one_of(
        st.builds(state, words),
        st.builds(lambda words, number: state(words, "vmbus_channel", channel=number), words, st.integers(1, 3)),
        st.builds(lambda words: state(words, "guest_crash"), words),
        st.builds(offer, st.integers(1, 3)),
        st.builds(packet, st.integers(1, 3)),
    ),
    max_size=40,
)


@given(stories, st.integers(0, 40))
def test_changes_are_all_that_a_page_needs(story: list[TraceEvent], cut: int) -> None:
    """Who gets a snapshot and the changes after it has the picture of one who saw it all."""
    scene, copy = Scene(), Scene()
    for number, event in enumerate(story):
        if number == cut:
            copy.apply(scene.snapshot())
        changes = scene.feed(event, "web")
        copy.apply(changes)
    if cut < len(story):
        assert sorted(map(str, copy.snapshot())) == sorted(map(str, scene.snapshot()))


def document(page: bytes) -> dict[str, Any]:
    """What is packed into a page."""
    found = re.search(rb'data-live="">([^<]*)<', page)
    assert found
    read: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(found[1])))
    return read


def exported(events: Sequence[TraceEvent], names: dict[int, str], **options: Any) -> dict[str, Any]:
    exporter = Exporter(names, **options)
    exporter.take(events)
    return document(exporter.finish("x").page)


def test_requests_name_their_events(disk_run: Run) -> None:
    """Each hop is the number of a row, in order; four reads are four requests with ten hops each."""
    events, names = disk_run
    made = exported(events, names)
    rows = [dict(zip(COLUMNS, row, strict=False)) for row in made["rows"]]
    assert [row["seq"] for row in rows] == list(range(len(events)))
    reads = [request for request in made["requests"] if "READ(10)" in request["words"]]
    assert [request["words"] for request in reads] == [f"SCSI READ(10) lba={n} blocks=1" for n in range(4)]
    for request in reads:
        places = [place for place, _ in request["hops"]]
        assert places == sorted(places)
        assert len(places) == 10
        layers = [rows[place]["layer"] for place in request["crossings"]]
        assert layers == ["packet", "packet"]
        assert request["outcome"] == "answered"
    trees = {int(seq) for seq in made["trees"]}
    assert trees == {row["seq"] for row in rows if row.get("data")}


def test_a_window(disk_run: Run) -> None:
    """The first of them or the last; how many are left out is told, and the picture starts as it was by then."""
    events, names = disk_run
    whole = exported(events, names)
    first = exported(events, names, limit=100)
    assert [row[:5] for row in first["rows"]] == [row[:5] for row in whole["rows"][:100]]
    assert first["notes"] == [f"the first 100 of {len(events):,} events"]
    assert first["before"] == [["reset"]]
    last = exported(events, names, limit=100, last=True)
    assert [row[1:5] for row in last["rows"]] == [row[1:5] for row in whole["rows"][-100:]]
    assert last["notes"] == [f"the last 100 of {len(events):,} events"]
    scene = Scene()
    for row in whole["rows"][:-100]:
        scene.apply(tuple(map(tuple, dict(zip(COLUMNS, row, strict=False)).get("changes") or ())))
    assert last["before"] == json.loads(json.dumps(scene.snapshot()))
    lowest = last["rows"][0][0]
    assert all(request["hops"][-1][0] >= lowest for request in last["requests"])


def test_what_a_filter_leaves_out_still_has_its_effects(disk_run: Run) -> None:
    """Packets alone are drawn in a picture that has its VMs and channels, and are still parts of requests."""
    events, names = disk_run
    made = exported(events, names, wanted=parse_filter("layer=packet,vm=reader"))
    rows = [dict(zip(COLUMNS, row, strict=False)) for row in made["rows"]]
    assert {row["layer"] for row in rows} == {"packet"}
    scene = Scene()
    for row in rows:
        scene.apply(tuple(map(tuple, row.get("changes") or ())))
    assert ("vm", "reader", "running") in scene.snapshot()
    assert any(request["words"].startswith("SCSI READ(10)") for request in made["requests"])
    assert all(len(request["hops"]) <= 2 for request in made["requests"])


said = st.sampled_from(["vm_state", "vmbus_channel", "offer_channel", "initiate_contact", "version_response"])
recorded = st.sampled_from(["recording_started", "recording_dropped", "signal_event", "packet_sent", "packet_received"])
strange = st.builds(
    TraceEvent,
    time=st.integers(0, 1 << 60),
    layer=st.sampled_from(Layer),
    event=st.one_of(said, recorded, st.text(max_size=5)),
    partition=st.integers(0, 3),
    direction=st.sampled_from([">root", ">child", "", "?"]),
    channel=st.none() | st.integers(0, 3),
    words=st.one_of(words, st.text(max_size=8), st.just("interface=nothing")),
    fields=st.dictionaries(
        st.sampled_from(["names", "channels", "versions", "packets", "device", "transaction_id", "type", "flags"]),
        st.one_of(
            st.integers(0, 9),
            st.text(max_size=3),
            st.dictionaries(st.sampled_from(["1", "2"]), st.text(max_size=3) | st.integers(), max_size=2),
            st.lists(st.lists(st.integers(0, 3) | st.text(max_size=2), max_size=4), max_size=3),
        ),
        max_size=4,
    ),
    vm=st.sampled_from(["", "web", "__proto__"]),
    data=st.binary(max_size=20),
)


@given(st.lists(strange, max_size=30))
def test_nothing_that_happens_stops_the_telling(story: list[TraceEvent]) -> None:
    """A live picture is told by the host itself: no event may be an exception there, however strange."""
    feed = Feed({})
    told = [feed.add(event) for event in story]
    msgspec.json.encode([*told, feed.finish(), feed.scene.snapshot()])


def test_what_a_recording_lacks_is_told() -> None:
    """The recorder's own count of what it dropped is the page's."""
    gap = TraceEvent(0, Layer.STATE, "recording_dropped", 0, Level.WARNING, fields={"packets": 40, "events": 2})
    assert exported([gap, packet(1), gap], {})["dropped"] == 84
