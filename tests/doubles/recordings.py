"""Events and packets of every kind for recordings, and a recorder that is fed without a host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from hypothesis import strategies as st

from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Level, PacketBatch, Trace, TraceEvent
from partitions.recording.link import CODES
from partitions.recording.recorder import Recorder
from vmbus.protocol import messages as m
from vmbus.protocol.table import describe, event_name
from vmbus.protocol.versions import Version
from vmbus.ring import Packet
from vmbus.server import slots

VMS = {2: "web", 3: "db"}
U32 = st.integers(0, 0xFFFFFFFF)
U64 = st.integers(0, (1 << 64) - 1)
TIMES = st.one_of(st.integers(0, 9), st.integers(0, (1 << 62) - 1))
CHANNELS = st.one_of(st.integers(0, 3), U32)
PARTITIONS = st.sampled_from([2, 3, 7])
DIRECTIONS = st.sampled_from([TO_ROOT, TO_CHILD])

MESSAGES: Sequence[m.Message] = (
    m.initiate_contact(Version.V5_3),
    m.RequestOffers(),
    m.VersionResponse(supported=1, detail=1),
    m.OpenChannel(channel_id=1, open_id=1, gpadl_id=0xE1E10, downstream_page=32),
    m.OpenChannelResult(channel_id=1, open_id=1),
    m.RelIdReleased(channel_id=0),
    m.Unload(),
)


def names_of(partition: int) -> str:
    return VMS.get(partition, f"#{partition}")


def message_event(time: int, partition: int, message: m.Message, direction: str) -> TraceEvent:
    """As the bus emits it."""
    data = message.encode()
    return TraceEvent(
        time,
        Layer.CONTROL,
        event_name(message),
        partition,
        direction=direction,
        channel=getattr(message, "channel_id", None),
        size=len(data),
        words=describe(message),
        vm=names_of(partition),
        data=data,
    )


def packet_event(batch: PacketBatch, packet: Packet) -> TraceEvent:
    """As the bus emits it, and the trace names its VM."""
    return msgspec.structs.replace(slots.packet_event(batch, packet), vm=names_of(batch.partition))


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    offset = 8 * draw(st.integers(0, 4))
    body = draw(st.binary(min_size=offset, max_size=offset + 100))
    kind = draw(st.sampled_from([6, 7, 9, 11, 0, 0xFFFF]))
    return Packet(kind, draw(st.sampled_from([0, 1, 0xFFFF])), draw(U64), offset, body)


BATCHES = st.builds(
    PacketBatch,
    TIMES,
    PARTITIONS,
    CHANNELS,
    DIRECTIONS,
    st.sampled_from(["", *CODES]),
    st.lists(packets(), min_size=1, max_size=6),
)
FIELDS = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: not name.startswith("\ud800")),
    st.one_of(
        st.integers(-(1 << 63), (1 << 64) - 1), st.text(max_size=8), st.booleans(), st.none(), st.binary(max_size=8)
    ),
    max_size=3,
)
OTHERS = st.builds(
    TraceEvent,
    TIMES,
    st.sampled_from([layer for layer in Layer if layer not in (Layer.CONTROL, Layer.PACKET)]),
    st.sampled_from(["hypercall", "vm_state", "interrupt", "scsi_command"]),
    st.sampled_from([0, 1, 2, 3, 7]),
    st.sampled_from(Level),
    st.sampled_from(["", TO_ROOT, TO_CHILD]),
    st.one_of(st.none(), CHANNELS),
    st.one_of(st.none(), U32),
    st.text(max_size=20),
    FIELDS,
)
MESSAGE_EVENTS = st.builds(message_event, TIMES, PARTITIONS, st.sampled_from(MESSAGES), DIRECTIONS)
REFUSED = st.builds(
    lambda time, partition, data, words, level: TraceEvent(
        time,
        Layer.CONTROL,
        "malformed_message",
        partition,
        level,
        TO_ROOT,
        size=len(data),
        words=words,
        fields={"count": 3},
        vm=names_of(partition),
        data=data,
    ),
    TIMES,
    PARTITIONS,
    st.binary(min_size=1, max_size=240),
    st.text(max_size=20),
    st.sampled_from([Level.DEBUG, Level.WARNING]),
)
ITEMS = st.lists(st.one_of(BATCHES, OTHERS, MESSAGE_EVENTS, REFUSED), max_size=12)
Item = PacketBatch | TraceEvent


def new_trace() -> Trace:
    trace = Trace(lambda: 5)
    trace.names.update(VMS)
    trace.versions.update(dict.fromkeys((2, 3, 7), int(Version.V5_3)))
    trace.devices[2] = {1: "storage", 2: ""}
    return trace


def feed(recorder: Recorder, items: Iterable[Item]) -> None:
    for item in items:
        if isinstance(item, PacketBatch):
            recorder.packets(item)
        else:
            recorder.event(item)


def drain(recorder: Recorder) -> bytes:
    return b"".join(iter(recorder.take, b""))


def record(items: Iterable[Item]) -> bytes:
    """A whole recording."""
    recorder = Recorder(new_trace(), started=1_700_000_000)
    feed(recorder, items)
    recorder.finish()
    return drain(recorder)


def expected(items: Iterable[Item]) -> list[TraceEvent]:
    """What a reader has to make of them, after the event that says what was known."""
    events: list[TraceEvent] = []
    for item in items:
        if isinstance(item, PacketBatch):
            events += [packet_event(item, packet) for packet in item.packets]
        else:
            vm = {0: "", 1: "root"}.get(item.partition, names_of(item.partition))
            events.append(msgspec.structs.replace(item, vm=vm))
    return events
