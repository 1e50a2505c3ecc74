"""A part of a recording is a recording: of the events that were wanted, and of what is missing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hypervisor.trace import Layer
from partitions.recording.copier import RecordingCopier
from partitions.recording.recorder import Recorder
from partitions.trace.filters import parse_filter
from tests.doubles.recordings import ITEMS, Item, drain, new_trace, record
from tests.partitions.recording.test_recording import SOME, batch, read

FILTERS = ("layer=packet", "vm=web", "direction=root,layer=control|packet", "level=warning", "channel=1")


@given(ITEMS, st.sampled_from(FILTERS), st.booleans(), st.integers(1, 300))
def test_a_part_has_what_the_filter_lets_through(items: list[Item], text: str, hint: bool, size: int) -> None:
    """With the reader's short way or without, in pieces of any size; each block as it was."""
    recording, chosen = record(items), parse_filter(text)
    copier = RecordingCopier(lambda event: chosen(event, event.vm), chosen.wanted() if hint else None)
    part = b""
    for position in range(0, len(recording), size):
        copier.feed(recording[position : position + size])
        part += copier.take()
    copier.finish()
    start, *events = read(part)
    assert start.event == "recording_started"
    assert events == [event for event in read(recording)[1:] if chosen(event, event.vm)]
    assert copier.kept == len(events)


def test_all_of_it_is_the_same_bytes() -> None:
    recording = record(SOME)
    copier = RecordingCopier(lambda event: True)
    copier.feed(recording)
    assert copier.take() == recording


def test_what_is_missing_is_missing_in_the_part_too() -> None:
    recorder = Recorder(new_trace(), limit=2000)
    for number in range(50):
        recorder.packets(batch(bytes(64), time=number))
    first = drain(recorder)
    recorder.finish()
    chosen = parse_filter("layer=hypercall")
    copier = RecordingCopier(lambda event: chosen(event, event.vm), chosen.wanted())
    copier.feed(first + drain(recorder))
    events = read(copier.take())
    assert [event.event for event in events] == ["recording_started", "recording_dropped"]
    assert Layer.PACKET not in {event.layer for event in events}
