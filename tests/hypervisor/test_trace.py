"""The tap: free while nobody listens, and never a flood."""

from __future__ import annotations

from hypervisor.trace import Layer, Level, Trace, TraceEvent


def make() -> tuple[Trace, list[TraceEvent]]:
    trace = Trace(lambda: 42)
    return trace, []


def test_events_reach_every_sink_until_it_is_removed() -> None:
    trace, seen = make()
    assert not trace.on

    remove = trace.add_sink(seen.append)
    assert trace.on
    trace.emit(Layer.CONTROL, "offer_channel", 2, channel=1, size=196, words="offer", relid=1)
    remove()
    assert not trace.on
    trace.emit(Layer.CONTROL, "offer_channel", 2)

    assert [(event.time, event.event, event.channel, event.fields) for event in seen] == [
        (42, "offer_channel", 1, {"relid": 1})
    ]


def test_a_guests_mistakes_are_all_counted_but_shown_at_powers_of_two() -> None:
    trace, seen = make()
    trace.add_sink(seen.append)
    for _ in range(1000):
        trace.warn(Layer.CONTROL, "protocol_fault", 2, "unknown message")

    assert trace.warnings[2, "protocol_fault"] == 1000
    assert [event.fields["count"] for event in seen] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert all(event.level is Level.WARNING for event in seen)


def test_mistakes_are_counted_while_nobody_listens() -> None:
    trace, _ = make()
    trace.warn(Layer.PACKET, "corrupt_ring", 3, "in index past the end")

    assert trace.warnings == {(3, "corrupt_ring"): 1}
