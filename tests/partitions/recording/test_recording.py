"""A recording gives back what was recorded, whatever becomes of the file."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Level, PacketBatch, TraceEvent
from partitions.recording import pcapng
from partitions.recording.copier import EventHider
from partitions.recording.reader import RecordingError, RecordingReader, Wanted
from partitions.recording.recorder import Recorder
from tests.doubles.recordings import (
    ITEMS,
    MESSAGES,
    Item,
    drain,
    expected,
    feed,
    message_event,
    new_trace,
    record,
)
from vmbus.ring import Packet


def read(data: bytes, wanted: Wanted | None = None) -> list[TraceEvent]:
    reader = RecordingReader(wanted)
    events = reader.feed(data)
    reader.finish()
    return events


def block_ends(data: bytes) -> list[int]:
    """Where blocks end."""
    ends, position = [], 0
    while position < len(data):
        position += struct.unpack_from("<I", data, position + 4)[0]
        ends.append(position)
    return ends


def batch(*bodies: bytes, time: int = 9, partition: int = 2, direction: str = TO_ROOT) -> PacketBatch:
    packets = [Packet(6, 1, number, 0, body) for number, body in enumerate(bodies)]
    return PacketBatch(time, partition, 1, direction, "storage", packets)


SOME: list[Item] = [
    message_event(1, 2, MESSAGES[0], TO_ROOT),
    message_event(2, 2, MESSAGES[2], TO_CHILD),
    TraceEvent(3, Layer.STATE, "vm_state", 2, Level.INFO, words="off -> running"),
    batch(b"one", b"two", bytes(64)),
    TraceEvent(10, Layer.HYPERCALL, "hypercall", 3, direction=TO_ROOT, words="HvSignalEvent", fields={"status": 0}),
    batch(b"three", time=11, partition=3, direction=TO_CHILD),
]


@given(ITEMS)
def test_what_was_recorded_is_read_back(items: list[Item]) -> None:
    """Every field of every event, words and bytes included; one after the other, in their order."""
    start, *events = read(record(items))

    assert events == expected(items)
    assert (start.event, start.fields["names"]) == ("recording_started", {"2": "web", "3": "db"})
    assert start.fields["channels"] == [[2, 1, "storage"], [2, 2, ""]]


def test_packets_of_one_batch_may_differ_in_anything() -> None:
    """What a run of equal ones shares is packed once: a difference in any one part ends the run."""
    one = Packet(6, 0, 1, 8, bytes(16))
    others = [(9, 0, 8, 16), (6, 1, 8, 16), (6, 0, 16, 16), (6, 0, 8, 24), (6, 0, 8, 23)]
    packets = [one]
    for kind, flags, offset, size in others:
        packets += [Packet(kind, flags, 2, offset, bytes(size)), one, one]
    item = PacketBatch(9, 2, 1, TO_ROOT, "storage", packets)
    assert read(record([item]))[1:] == expected([item])


@given(ITEMS, st.integers(1, 300))
def test_a_recording_may_come_in_any_pieces(items: list[Item], size: int) -> None:
    """A reader of a live stream gets each event as soon as its block is whole, and none twice."""
    recording = record(items)
    all_events, counter = read(recording), RecordingReader()
    begin, made = 0, {0: 0}
    for end in block_ends(recording):
        made[end] = made[begin] + len(counter.feed(recording[begin:end]))
        begin = end
    reader = RecordingReader()
    events: list[TraceEvent] = []
    for position in range(0, len(recording), size):
        events += reader.feed(recording[position : position + size])
        assert len(events) == made[max(end for end in made if end <= position + size)]
    reader.finish()
    assert events == all_events
    assert reader.truncated_at is None


@given(ITEMS, st.data())
def test_a_cut_file_gives_all_up_to_its_last_whole_block(items: list[Item], data: st.DataObject) -> None:
    """As a crash leaves it. The cut is told, and is no error."""
    recording = record(items)
    ends = block_ends(recording)
    cut = data.draw(st.integers(ends[0], len(recording)))
    reader = RecordingReader()
    events = reader.feed(recording[:cut])
    reader.finish()

    last = max(end for end in ends if end <= cut)
    whole = read(recording[:last])
    assert events == whole == read(recording)[: len(whole)]
    assert reader.truncated_at == (None if cut == last else last)


@given(ITEMS, st.data())
def test_hostile_bytes_give_events_or_a_recording_error(items: list[Item], data: st.DataObject) -> None:
    """Whatever stands in a file: nothing else is raised, and what came before the damage is not lost."""
    recording = bytearray(record(items))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(recording) - 1))
        recording[place] = data.draw(st.integers(0, 255))
    reader = RecordingReader(data.draw(st.sampled_from([None, Wanted(layers=frozenset({Layer.PACKET}))])))
    with contextlib.suppress(RecordingError):
        reader.feed(bytes(recording))
        reader.finish()


@given(st.binary(max_size=400))
def test_any_bytes_behind_a_section_header_are_survived(tail: bytes) -> None:
    start = pcapng.section("Partita", b"")
    for data in (tail, start + tail, start + pcapng.interface(147, "web", 0) + tail, start + pcapng.custom(tail)):
        reader = RecordingReader()
        with contextlib.suppress(RecordingError):
            reader.feed(data)
            reader.finish()


@given(
    ITEMS,
    st.builds(
        Wanted,
        layers=st.none() | st.frozensets(st.sampled_from(Layer), max_size=3),
        vms=st.none() | st.frozensets(st.sampled_from(["web", "db", "root", "#7"])),
        partitions=st.none() | st.frozensets(st.sampled_from([0, 1, 2, 3])),
        channels=st.none() | st.frozensets(st.integers(0, 3)),
        directions=st.none() | st.frozensets(st.sampled_from([TO_ROOT, TO_CHILD, ""])),
        since=st.none() | st.integers(0, 9),
        until=st.none() | st.integers(0, 9),
    ),
)
def test_wanted_gives_the_events_that_it_likes_and_no_others(items: list[Item], wanted: Wanted) -> None:
    """What is refused by the head of a block is what the whole event would have been refused for."""
    recording = record(items)
    assert read(recording, wanted) == [event for event in read(recording) if wanted.event(event)]


def test_each_question_of_wanted_is_asked_of_the_right_part() -> None:
    """At its very bounds, and of packets whose other parts would say the opposite."""
    recording = record(SOME)
    every = read(recording)
    questions = [
        *(Wanted(layers=frozenset({layer})) for layer in Layer),
        *(Wanted(vms=frozenset({vm})) for vm in ("web", "db", "root", "")),
        *(Wanted(partitions=frozenset({partition})) for partition in range(4)),
        *(Wanted(channels=frozenset({channel})) for channel in range(4)),
        *(Wanted(directions=frozenset({way})) for way in (TO_ROOT, TO_CHILD, "")),
        *(Wanted(since=time) for time in range(14)),
        *(Wanted(until=time) for time in range(14)),
    ]
    found = [read(recording, wanted) for wanted in questions]
    assert found == [[event for event in every if wanted.event(event)] for wanted in questions]
    assert sum(map(len, found)) > 100


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (4, 13, "a block of 13 bytes"),
        (4, 8, "a block of 8 bytes"),
        (4, 1 << 30, "a block of 1073741824 bytes"),
        (-4, 16, "a block's two lengths differ"),
        (8, 7, "a packet of no interface"),
        (20, 5000, "longer than its block"),
        (28, 0x0102_0202, "layout version 2"),
    ],
)
def test_each_kind_of_damage_has_its_words(offset: int, value: int, reason: str) -> None:
    recording = bytearray(record([batch(b"one")]))
    ends = block_ends(bytes(recording))
    start, stop = ends[3], ends[4]  # behind the section and three interfaces
    struct.pack_into("<I", recording, offset + (start if offset >= 0 else stop), value)
    reader = RecordingReader()
    assert [event.event for event in reader.feed(bytes(recording))] == ["recording_started"]
    with pytest.raises(RecordingError, match=f"byte {start}.*{reason}"):
        reader.finish()


def test_damage_is_told_after_all_that_comes_before_it() -> None:
    recording = record(SOME)
    ends = block_ends(recording)
    place = ends[-4]
    damaged = recording[:place] + b"\xff" * 8 + recording[place + 8 :]
    reader = RecordingReader(name="run.pcapng")
    assert reader.feed(damaged) == read(recording[:place])
    with pytest.raises(
        RecordingError, match=rf"run.pcapng, byte {place}: is damaged.*what comes before it can be read"
    ):
        reader.feed(b"")
    with pytest.raises(RecordingError):
        reader.finish()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"\xd4\xc3\xb2\xa1" + bytes(20), "old pcap format"),
        (b"\x1f\x8b" + bytes(20), "gunzip"),
        (b'{"time": 0.0, "vm": "web"}\n', "JSON lines"),
        (b"\x7fELF" + bytes(60), "--pcap"),
        (b"hi", "2 bytes are no recording"),
    ],
)
def test_another_kind_of_file_is_refused_by_what_it_is(data: bytes, words: str) -> None:
    with pytest.raises(RecordingError, match=words):
        read(data)


def test_a_capture_of_something_else_is_refused_with_its_place() -> None:
    """An Ethernet capture is pcapng too."""
    start = pcapng.section("dumpcap", b"") + pcapng.interface(1, "eth0", 0)
    reader = RecordingReader(name="lan.pcapng")
    with pytest.raises(RecordingError, match=rf"lan.pcapng, byte {len(start)}: .*not of link type 147"):
        reader.feed(start + pcapng.packet(0, 0, bytes(60), False))


def test_blocks_of_others_are_passed_over() -> None:
    """Name resolution blocks, comments, custom blocks of the same number that are not ours."""
    recording = record(SOME)
    end = block_ends(recording)[0]
    foreign = struct.pack("<III", 4, 16, 0) + struct.pack("<I", 16)
    theirs = struct.pack("<IIII", 0xBAD, 20, 32473, 7) + struct.pack("<I", 20)
    assert read(recording[:end] + foreign + theirs + recording[end:]) == read(recording)


def test_a_section_in_the_other_byte_order_is_read() -> None:
    """Tools on big-endian machines write their own; link headers stay as they are."""
    packet = (
        bytes([1, 2, 0, 1]) + struct.pack("<III", 2, 5, 0x50003) + struct.pack("<HHHHQ", 6, 2, 3, 1, 77) + b"eight..."
    )
    body = struct.pack(">IIIII", 0, 0, 1234, len(packet), len(packet)) + packet

    def block(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content) + 12) + content + struct.pack(">I", len(content) + 12)

    section = block(0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, 1, 0, -1))
    interface = block(
        1, struct.pack(">HHI", 147, 0, 0) + struct.pack(">HH3sx", 2, 3, b"web") + struct.pack(">HHB3x", 9, 1, 7)
    )
    (event,) = read(section + interface + block(6, body))
    assert (event.time, event.vm, event.channel, event.words) == (1234, "web", 5, "INBAND id=0x4d flags=1")
    assert (event.data[16:], event.fields["device"]) == (b"eight...", "storage")
    both = read(record(SOME) + section + interface + block(6, body))
    assert both[:-1] == read(record(SOME))
    assert both[-1].time == 1234 - 1_700_000_000 * 10_000_000, "times count from the first section's beginning"


def test_times_of_a_rewritten_file_are_still_the_hosts() -> None:
    """editcap, for one, adds the offset to each time and drops the option."""
    seconds = 1_700_000_000
    recording = record([batch(b"one", time=42)])
    ends = block_ends(recording)
    facts = recording[: ends[0]]
    packet = bytearray(recording[ends[3] : ends[4]])
    high, low = divmod(42 + seconds * 10_000_000, 1 << 32)
    struct.pack_into("<II", packet, 12, high, low)
    struct.pack_into("<I", packet, 8, 0)
    rewritten = facts + pcapng.interface(147, "web", 0) + bytes(packet)
    assert [event.time for event in read(rewritten)] == [5, 42]


def test_what_does_not_fit_is_counted_and_its_place_is_marked() -> None:
    """Nobody takes: the buffer stays within its bound, and a reader learns what is missing, and where."""
    recorder = Recorder(new_trace(), limit=4096)
    for number in range(100):
        recorder.packets(batch(bytes(64), bytes(64), time=number))
        recorder.event(TraceEvent(number, Layer.STATE, "vm_state", 2))
        assert recorder.waiting <= 4096
    first = drain(recorder)
    recorder.packets(batch(b"later", time=500))
    recorder.finish()
    rest = drain(recorder)
    reader = RecordingReader()
    events = reader.feed(first + rest)
    reader.finish()

    kept = [event for event in events if event.layer is Layer.PACKET]
    (gap,) = [event for event in events if event.event == "recording_dropped"]
    assert (reader.dropped.packets, reader.dropped.events) == (recorder.dropped.packets, recorder.dropped.events)
    assert recorder.dropped.packets == 201 - len(kept) > 100
    assert recorder.written.packets == len(kept)
    assert (gap.time, gap.level) == (99, Level.WARNING)
    assert "packets and" in gap.words
    last = [block for block in pcapng.BlockReader().feed(first + rest) if block.kind == pcapng.BlockType.STATISTICS][-2]
    counts = dict(pcapng.read_options(last.body, 12, "<"))
    assert int.from_bytes(counts[pcapng.Opt.RECEIVED], "little") == 201
    assert int.from_bytes(counts[pcapng.Opt.DROPPED], "little") == recorder.dropped.packets
    assert [event.time for event in events[events.index(gap) :]] == [99, 500]


def test_a_full_buffer_has_to_be_half_empty_before_it_takes_again() -> None:
    """Else a slow reader would get one event and one gap in turns."""
    recorder = Recorder(new_trace(), limit=8192)
    while not recorder.dropped:
        recorder.packets(batch(bytes(64)))
    dropped = recorder.dropped.packets
    recorder.take(1000)
    recorder.packets(batch(bytes(64)))
    assert recorder.dropped.packets == dropped + 1
    recorder.take(4096)
    recorder.packets(batch(bytes(64)))
    assert recorder.dropped.packets == dropped + 1


def test_who_falls_behind_is_told_before_anything_is_lost() -> None:
    """Once for each MiB of the upper half of the buffer, never below it, and no more when it is full."""
    recorder = Recorder(new_trace(), limit=8 << 20)
    called: list[int] = []
    recorder.behind = lambda: called.append(recorder.waiting)
    while not recorder.dropped:
        recorder.packets(batch(bytes(60_000)))
    assert len(called) == 4
    assert [waiting >> 20 for waiting in called] == [4, 5, 6, 7]
    recorder.packets(batch(bytes(60_000)))
    assert len(called) == 4
    recorder.take(7 << 20)
    recorder.packets(batch(bytes(60_000)))
    assert len(called) == 4


def test_a_reader_along_a_pipe_gets_the_same_events_where_wireshark_sees_none() -> None:
    """It shows custom blocks among the packets, but counts packets only, and would end a live capture too early."""
    recorder = Recorder(new_trace(), started=1_700_000_000, hidden=True)
    feed(recorder, SOME)
    recorder.finish()
    hidden, open_ = drain(recorder), record(SOME)
    kinds = {block.kind for block in pcapng.BlockReader().feed(hidden)}
    assert pcapng.BlockType.CUSTOM not in kinds
    assert pcapng.BlockType.HIDDEN in kinds
    assert read(hidden) == read(open_)
    hider, made = EventHider(), b""
    for position in range(0, len(open_), 33):
        made += hider.feed(open_[position : position + 33])
    assert made == hidden


def test_whoever_waits_is_called_once_for_all_that_is_there() -> None:
    calls: list[int] = []
    recorder = Recorder(new_trace(), ready=lambda: calls.append(1), ready_at=2000)
    feed(recorder, SOME)
    assert not calls
    while not calls:
        recorder.packets(batch(bytes(64)))
    for _ in range(50):
        recorder.packets(batch(bytes(64)))
    assert len(calls) == 1
    drain(recorder)
    for _ in range(50):
        recorder.packets(batch(bytes(64)))
    assert len(calls) == 2


def test_each_piece_taken_is_whole_blocks() -> None:
    """So a crash between two pieces costs none that was written."""
    recorder = Recorder(new_trace())
    feed(recorder, SOME * 20)
    pieces = list(iter(lambda: recorder.take(300), b""))
    assert len(pieces) > 10
    for piece in pieces:
        assert block_ends(piece)[-1] == len(piece)


def test_an_attached_recorder_takes_packets_in_batches() -> None:
    """No event is built for a packet that only a recorder wants."""
    trace = new_trace()
    recorder = Recorder(trace)
    recorder.attach()
    packets = [Packet(6, 0, 1, 0, b"eight...")]
    trace.emit_packets(2, 1, TO_ROOT, "storage", packets, lambda batch, packet: 1 // 0)  # type: ignore[arg-type,return-value]
    recorder.detach()
    assert not trace.on
    assert [event.data[16:] for event in read(drain(recorder))] == [b"", b"eight..."]


def test_what_no_format_knows_is_recorded_as_text() -> None:
    """Numbers past 64 bits, lone surrogates in a guest's words, objects."""
    fields = {"register": 1 << 100, "who": object, "list": [1 << 70, "\ud800"], "\ud800": 1}
    (_, event) = read(record([TraceEvent(1, Layer.STATE, "odd", 2, words="\udcff", fields=fields)]))
    assert event.words == "\\udcff"
    assert event.fields["register"] == str(1 << 100)
    assert event.fields["list"] == [str(1 << 70), "\\ud800"]
    assert event.fields["\\ud800"] == 1


def test_names_are_learned_on_the_way() -> None:
    trace = new_trace()
    recorder = Recorder(trace)
    trace.names[9] = "late"
    recorder.packets(batch(b"x", partition=9))
    trace.names[10] = "later"
    recorder.event(TraceEvent(1, Layer.STATE, "vm_state", 10))
    reader = RecordingReader()
    events = reader.feed(drain(recorder))
    assert [event.vm for event in events] == ["", "late", "later"]
    assert reader.names == {2: "web", 3: "db", 9: "late", 10: "later"}
    assert reader.started == 0


def test_a_host_of_a_thousand_vms_is_known_from_the_start() -> None:
    """More than an option holds."""
    trace = new_trace()
    trace.names.update({number: f"vm{number}" for number in range(10, 1034)})
    trace.devices.update({number: dict.fromkeys(range(1, 8), "storage") for number in range(10, 1034)})
    reader = RecordingReader()
    (start,) = reader.feed(drain(Recorder(trace)))
    assert len(start.fields["channels"]) == 7170
    assert len(reader.names) == 1026
