"""The tap: free while nobody listens, and never a flood."""

from __future__ import annotations

from hypervisor.trace import TO_ROOT, Layer, Level, PacketBatch, Trace, TraceEvent


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


def event_of(batch: PacketBatch, packet: int) -> TraceEvent:
    return TraceEvent(batch.time, Layer.PACKET, "packet_received", batch.partition, channel=batch.channel, size=packet)


def test_packets_come_one_by_one_or_in_batches_and_never_twice() -> None:
    """Whoever takes batches gets every other event as all do; nobody builds an event that no sink wants."""
    trace, seen = make()
    batches: list[PacketBatch] = []
    others: list[TraceEvent] = []
    stop = trace.add_sink(others.append, packets=batches.append)
    trace.emit_packets(2, 5, TO_ROOT, "storage", [8, 16], lambda batch, packet: 1 // 0)  # type: ignore[arg-type,return-value]
    trace.emit(Layer.STATE, "vm_state", 2)
    assert batches == [PacketBatch(42, 2, 5, TO_ROOT, "storage", [8, 16])]
    assert [event.event for event in others] == ["vm_state"]

    trace.add_sink(seen.append)
    trace.emit_packets(2, 5, TO_ROOT, "storage", [24, 32], event_of)
    assert [(event.time, event.channel, event.size) for event in seen] == [(42, 5, 24), (42, 5, 32)]
    assert len(batches) == 2

    stop()
    assert trace.on
    trace.emit_packets(2, 5, TO_ROOT, "storage", [40], event_of)
    assert (len(batches), len(seen), len(others)) == (2, 3, 1)


def test_a_mistake_with_its_bytes_is_an_event_each_time() -> None:
    """What crossed is never left out; but only each power of two is a warning."""
    trace, seen = make()
    trace.add_sink(seen.append)
    for number in range(5):
        trace.warn(Layer.CONTROL, "malformed_message", 2, "no type", data=bytes([number]))

    assert [event.data for event in seen] == [b"\0", b"\1", b"\2", b"\3", b"\4"]
    assert [event.level is Level.WARNING for event in seen] == [True, True, False, True, False]


def test_a_sink_may_stop_itself_while_it_is_called() -> None:
    """As a recording does whose disk is full: the others still get the event."""
    trace, seen = make()

    def once(event: TraceEvent) -> None:
        seen.append(event)
        stop()

    stop = trace.add_sink(once)
    trace.add_sink(seen.append)
    trace.emit(Layer.STATE, "first", 2)
    trace.emit(Layer.STATE, "second", 2)
    assert [event.event for event in seen] == ["first", "first", "second"]


def test_the_schedulers_events_go_to_those_that_ask() -> None:
    """By the call or by an attribute, which may change; the scheduler hears when the first asks and the last leaves."""

    class Wanting:
        def __init__(self, wants: bool) -> None:
            self.wants_scheduler = wants
            self.seen: list[TraceEvent] = []

        def __call__(self, event: TraceEvent) -> None:
            self.seen.append(event)

    trace = Trace(lambda: 0)
    told: list[bool] = []
    trace.on_scheduler = told.append
    plain: list[TraceEvent] = []
    asked: list[TraceEvent] = []
    wanting, undecided = Wanting(True), Wanting(False)
    event = TraceEvent(5, Layer.SCHEDULER, "dispatch", 2)
    removes = [trace.add_sink(plain.append)]
    trace.emit_scheduler(event)
    removes.append(trace.add_sink(asked.append, scheduler=True))
    removes += [trace.add_sink(wanting), trace.add_sink(undecided)]
    trace.emit_scheduler(event)
    undecided.wants_scheduler = True
    trace.review_sinks()
    trace.emit_scheduler(event)
    assert [len(seen) for seen in (plain, asked, wanting.seen, undecided.seen)] == [0, 2, 2, 1]
    assert told == [True]
    for remove in removes:
        remove()
    trace.emit_scheduler(event)
    assert told == [True, False]
    assert len(asked) == 2
