"""The filter language: what matches, what is refused and how, and what a reader of recordings may leave out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Level, TraceEvent
from partitions.trace.filters import FilterError, parse_filter

EVENTS = {
    "control": TraceEvent(0, Layer.CONTROL, "open_channel", 2, Level.DEBUG, TO_ROOT, 5, 120, "OPENCHANNEL relid=5"),
    "packet": TraceEvent(0, Layer.PACKET, "packet_sent", 2, Level.DEBUG, TO_CHILD, 6, 64, "SCSI status 0"),
    "db": TraceEvent(0, Layer.PACKET, "packet_received", 3, Level.INFO, TO_ROOT, 5, 64, "SCSI READ(10) lba=0"),
    "warning": TraceEvent(0, Layer.HYPERCALL, "bad", 3, Level.WARNING),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vm=web", {"control", "packet"}),
        ("vm=web,layer=packet", {"packet"}),
        ("layer=packet|control", {"control", "packet", "db"}),
        ("event=packet_*", {"packet", "db"}),
        ("event=packet_sent", {"packet"}),
        ("channel=5", {"control", "db"}),
        ("channel = 5 | 6 , vm = web", {"control", "packet"}),
        ("direction=root", {"control", "db"}),
        ("direction=>child", {"packet"}),
        ("level=info", {"db", "warning"}),
        ("level=warning", {"warning"}),
        ("text=SCSI|relid=5", {"control", "packet", "db"}),
        ("text=READ(10)", {"db"}),
        ("vm=root", set()),
        ("text=SCSI,text=READ", {"db"}),
        ("text=READ,text=SCSI", {"db"}),
        ("layer=packet,layer=control", set()),
        ("layer=packet,layer=packet|state,event=*sent,event=packet*", {"packet"}),
        ('text="lba=0"', {"db"}),
        ('text="SCSI, or, | not"', set()),
        ("level=info,level=debug", {"db", "warning"}),
    ],
)
def test_filter(text: str, expected: set[str]) -> None:
    """All keys must match, each with one of its values."""
    predicate = parse_filter(text, vms=["web", "db"])
    names = {2: "web", 3: "db"}
    assert {name for name, event in EVENTS.items() if predicate(event, names[event.partition])} == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the filter is empty; an example: vm=web,layer=packet|control"),
        ("packet", '"packet" is not key=value; an example: vm=web,layer=packet|control'),
        ("layer=", '"layer=" is not key=value; an example: vm=web,layer=packet|control'),
        ("layr=packet", 'unknown filter key "layr"; did you mean "layer"?'),
        (
            "zz=1",
            'unknown filter key "zz"; known are vm, layer, event, channel, device, direction, level, time, text',
        ),
        ("layer=pakcet", 'unknown layer "pakcet"; did you mean "packet"?'),
        (
            "layer=q",
            'unknown layer "q"; known are hypercall, msr, synic, interrupt, port, control, packet, device, state, '
            "scheduler",
        ),
        ("vm=wbe", 'unknown VM "wbe"; did you mean "web"?'),
        ("channel=x", 'channel must be a number, not "x"'),
        ("direction=up", 'unknown direction "up"; known are root, >root, child, >child'),
        ("device=storag", 'unknown device "storag"; did you mean "storage"?'),
        ("time=x", 'time must be seconds, such as 1.2..1.5, 1.2.. or ..1.5, not "x"'),
        ("time=..", 'time must be seconds, such as 1.2..1.5, 1.2.. or ..1.5, not ".."'),
        ("time=1..nan", 'time must be seconds, such as 1.2..1.5, 1.2.. or ..1.5, not "1..nan"'),
        ("time=1e999", 'time must be seconds, such as 1.2..1.5, 1.2.. or ..1.5, not "1e999"'),
        ("time=2..1", "time=2..1 ends before it begins"),
        ("level=warn", 'unknown level "warn"; did you mean "warning"?'),
    ],
)
def test_filter_refusals(text: str, expected: str) -> None:
    """A filter that would silently match nothing is refused, with what was probably meant."""
    with pytest.raises(FilterError) as caught:
        parse_filter(text, vms=["web"])
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("time=1.2..1.5", [12_000_000, 12_000_001, 12_999_999, 13_000_000, 15_000_000]),
        ("time=1.2000001..1.5", [12_000_001, 12_999_999, 13_000_000, 15_000_000]),
        ("time=1.5..", [15_000_000, 15_000_001, 90_000_000]),
        ("time=..1.2", [0, 12_000_000]),
        ("time=1.2", [12_000_000, 12_000_001, 12_999_999]),
        ("time=1", [12_000_000, 12_000_001, 12_999_999, 13_000_000, 15_000_000, 15_000_001]),
        ("time=1.3000000", [13_000_000]),
        ("time=..0|9", [0, 90_000_000]),
        ("time=1.2..1.5,time=1.5..", [15_000_000]),
        ("time=1...5", []),
    ],
)
def test_time(text: str, expected: list[int]) -> None:
    """Stretches of seconds, both ends included; a moment alone stands for all that are printed so."""
    if not expected:
        with pytest.raises(FilterError):
            parse_filter(text)
        return
    moments = [0, 12_000_000, 12_000_001, 12_999_999, 13_000_000, 15_000_000, 15_000_001, 90_000_000]
    predicate = parse_filter(text)
    found = [moment for moment in moments if predicate(TraceEvent(moment, Layer.STATE, "x", 2), "web")]
    assert found == expected


def test_device() -> None:
    """By the short name of what is at the channel's end: of packets, and of all that an offer has named."""
    interface = "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f"
    events = [
        TraceEvent(0, Layer.CONTROL, "offer_channel", 2, channel=1, words=f"OFFER_CHANNEL interface={interface} sub=0"),
        TraceEvent(1, Layer.CONTROL, "open_channel", 2, channel=1),
        TraceEvent(2, Layer.CONTROL, "open_channel", 2, channel=2),
        TraceEvent(3, Layer.PACKET, "packet_sent", 2, channel=2, fields={"device": "time-sync"}),
        TraceEvent(4, Layer.DEVICE, "integration_message", 2, channel=2),
        TraceEvent(5, Layer.STATE, "vm_state", 2),
    ]
    storage, clock, own = map(parse_filter, ("device=Storage", "device=time sync|kvp", "device=dice"))
    assert [event.time for event in events if storage(event, "web")] == [0, 1]
    assert [event.time for event in events if clock(event, "web")] == [3, 4]
    assert not [event for event in events if own(event, "web")]


def test_errors_for_programs() -> None:
    """What a person is told stands beside what a program needs: the word, the nearest, and what there is."""
    with pytest.raises(FilterError) as caught:
        parse_filter("vm=web,layer=pakcet")
    assert caught.value.document() == {
        "error": 'unknown layer "pakcet"; did you mean "packet"?',
        "part": "pakcet",
        "nearest": "packet",
        "known": [layer.value for layer in Layer],
    }


def test_what_a_reader_may_leave_out() -> None:
    """A reader of recordings hears what heads of events decide; by device it has to see what names channels."""
    wanted = parse_filter("vm=web|db,layer=packet,channel=5,direction=root,time=1..2|4..5,text=READ").wanted()
    assert (wanted.vms, wanted.layers) == (frozenset({"web", "db"}), frozenset({Layer.PACKET}))
    assert (wanted.channels, wanted.directions) == (frozenset({5}), frozenset({TO_ROOT}))
    assert (wanted.since, wanted.until) == (10_000_000, 50_000_000)
    wanted = parse_filter("device=storage,layer=device,time=..2").wanted()
    assert (wanted.layers, wanted.vms, wanted.until) == (None, None, 20_000_000)


@given(st.text(alphabet='vmlayertxdick=,|".*015 ', max_size=30))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    """No text makes anything but a filter or a `FilterError`."""
    try:
        predicate = parse_filter(text, vms=["web"])
    except FilterError:
        return
    predicate(EVENTS["packet"], "web")
