"""A request is followed by cause: every hop is its own, whatever else crosses meanwhile, and memory has a bound."""

from __future__ import annotations

import itertools
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, TraceEvent
from partitions import determinism
from partitions.host import open_host
from partitions.trace import requests
from partitions.trace.requests import Outcome, Request, RequestTracker, track
from tests.partitions.copies import copied_example
from tests.partitions.crossings import INBAND, Crossings
from vmbus.ring import PacketType

NAMES = {2: "reader", 3: "writer"}


def follow(crossings: Crossings) -> list[Request]:
    return list(track(crossings.events, NAMES))


def hops(request: Request) -> list[TraceEvent]:
    return [hop.event for hop in request.hops]


def read(crossings: Crossings, number: int = 4) -> list[TraceEvent]:
    """A request by itself, with all hops that there are; its events in the order of the hops."""
    return [
        *crossings.signal(2, 1),
        *crossings.packets(2, 1, [number]),
        crossings.device(2, 1, number, "SCSI READ(10) lba=7 blocks=1"),
        crossings.device(2, 1, number, "good", result=True),
        *crossings.answers(2, 1, [number]),
        *crossings.signal(2, 1, to_child=True),
    ]


def test_every_hop_of_a_read() -> None:
    """Hypercall, flag, interrupt, packet, command, result, packet, and the way back; times never go back."""
    crossings = Crossings()
    expected = read(crossings)
    (request,) = follow(crossings)
    assert hops(request) == expected
    assert [hop.place for hop in request.hops] == [
        *("guest", "hypervisor", "root"),
        *("root", "root", "root", "root"),
        *("root", "hypervisor", "guest"),
    ]
    times = [hop.time for hop in request.hops]
    assert times == sorted(times)
    assert (request.started, request.ended) == (times[0], times[-1])
    assert request.name == "reader/1/0x4"
    assert (request.words, request.result, request.size) == ("SCSI READ(10) lba=7 blocks=1", "good", 512)
    assert (request.device, request.outcome, request.number) == ("storage", Outcome.ANSWERED, 1)


def test_a_batch_shares_its_signals() -> None:
    """One signal for three packets and one for their answers: each of the three has both."""
    crossings = Crossings()
    told = crossings.signal(2, 1)
    asked = crossings.packets(2, 1, [1, 2, 3])
    answered = crossings.answers(2, 1, [3, 1, 2])
    back = crossings.signal(2, 1, to_child=True)
    found = follow(crossings)
    assert [request.transaction_id for request in found] == [3, 1, 2]
    for request in found:
        number = request.transaction_id
        assert hops(request) == [*told, asked[number - 1], answered[[3, 1, 2].index(number)], *back]


def test_nobody_signals_a_ring_that_is_looked_at() -> None:
    """A packet found while the ring was being drained, and an answer to a guest that polls, have no signal at all."""
    crossings = Crossings()
    crossings.signal(2, 1)
    crossings.packets(2, 1, [1])
    crossings.answers(2, 1, [1])
    crossings.noise(2, 0)
    asked = crossings.packets(2, 1, [2])
    answered = crossings.answers(2, 1, [2])
    first, second = follow(crossings)
    assert len(first.hops) == 5
    assert hops(second) == [*asked, *answered]
    assert second.duration == answered[0].time - asked[0].time


def test_a_signal_is_of_its_channel() -> None:
    """Two VMs with a channel 1 and a VM with two channels: nobody takes another's signal."""
    crossings = Crossings()
    signals = {key: crossings.signal(*key) for key in ((2, 1), (3, 1), (2, 5))}
    for key in ((2, 5), (2, 1), (3, 1)):
        crossings.packets(*key, [9])
        crossings.answers(*key, [9])
    for request in follow(crossings):
        assert hops(request)[:3] == signals[request.partition, request.channel]


def test_doorbells_and_shared_connections() -> None:
    """KVM's doorbell is no hypercall. Below 1.1 all channels share a connection, and each takes a signal once."""
    crossings = Crossings()
    rung = crossings.signal(2, 1, trapped=False)
    crossings.packets(2, 1, [1])
    crossings.answers(2, 1, [1])
    shared = crossings.signal(3, 0, shared=True)
    crossings.packets(3, 1, [1])
    crossings.packets(3, 2, [1])
    crossings.packets(3, 1, [2])
    crossings.answers(3, 1, [1, 2])
    back = crossings.signal(3, 1, to_child=True, shared=True)
    crossings.answers(3, 2, [1])
    first, second, third, fourth = follow(crossings)
    assert hops(first)[:2] == rung
    assert hops(second)[:3] == shared
    assert len(hops(third)) == 5, "no signal of its own, the way back with the one before"
    assert hops(second)[-3:] == hops(third)[-3:] == back
    assert hops(fourth)[:3] == shared, "the other channel's"


def test_a_monitor_page_signals_later() -> None:
    """Where the host's signals come by a monitor page, the interrupt that follows later is still the request's."""
    crossings = Crossings()
    for number in (1, 2, 3):
        crossings.packets(2, 1, [number])
        crossings.answers(2, 1, [number])
        crossings.noise(2, 0)
        if number < 3:
            crossings.signal(2, 1, to_child=True, trapped=False)
            crossings.noise(2, 0)
    first, second, third = follow(crossings)
    assert len(first.hops) == 2, "what nobody could know yet"
    assert [hop.event.event for hop in second.hops[-2:]] == ["signal_event", "interrupt"]
    assert len(third.hops) == 2, "the trace ends before anybody looks"


def test_what_happens_within_a_signal_and_is_not_of_it() -> None:
    """Another's interrupt, a second one, another hypercall that returns first, and what comes after its own return."""
    crossings = Crossings()
    flag, *_ = crossings.signal(2, 1, trapped=False, interrupt=False)
    crossings.noise(2, 3)
    raised, again = (
        crossings.emit(Layer.INTERRUPT, "interrupt", 1, direction=TO_ROOT, fields={"vp": 0, "vector": 0x32})
        for _ in range(2)
    )
    for call, connection in (("HvSignalEvent", 0x2002), ("HvPostMessage", 0x2001), ("HvSignalEvent", 0x2001)):
        words = f"{call} connection_id={connection:#x} -> SUCCESS"
        called = crossings.emit(Layer.HYPERCALL, "hypercall", 2, words=words, fields={"call": call, "caller": 2})
    quiet = crossings.signal(3, 1, interrupt=False)
    crossings.emit(Layer.INTERRUPT, "interrupt", 1, direction=TO_ROOT, fields={"vp": 0, "vector": 0x32})
    for partition in (2, 3):
        asked = crossings.packets(partition, 1, [1])
        crossings.answers(partition, 1, [1])
        if partition == 2:
            expected = [called, flag, raised, *asked]
    first, second = follow(crossings)
    assert hops(first)[:-1] == expected
    assert again not in hops(first)
    assert hops(second)[:2] == quiet
    assert len(second.hops) == 4


def test_a_signal_for_another_channel() -> None:
    """What the host signals after a batch may be for another channel of the same guest."""
    crossings = Crossings()
    crossings.packets(2, 1, [1])
    crossings.answers(2, 1, [1])
    crossings.signal(2, 5, to_child=True)
    (request,) = follow(crossings)
    assert len(request.hops) == 2


def test_ids_are_used_again() -> None:
    """The second use of an ID is another request, and its name says so; of two open at once the older is answered."""
    crossings = Crossings()
    read(crossings)
    read(crossings)
    crossings.packets(2, 1, [4, 4])
    crossings.answers(2, 1, [4])
    crossings.answers(2, 1, [4])
    assert [request.name.partition("0x")[2] for request in follow(crossings)] == ["4", "4.2", "4.3", "4.4"]


def test_a_vm_that_starts_again_goes_on_counting() -> None:
    """It is another partition then, and its requests have names of their own nevertheless."""
    crossings = Crossings()
    for partition in (2, 4):
        crossings.packets(partition, 1, [1])
        crossings.answers(partition, 1, [1])
    found = track(crossings.events, {2: "reader", 4: "reader"})
    assert [request.name for request in found] == ["reader/1/0x1", "reader/1/0x1.2"]


def test_the_host_asks_too() -> None:
    """A packet of the host's that wants an answer, answered as integration components are: in band."""
    crossings = Crossings()
    said = crossings.emit(Layer.DEVICE, "integration_message", 2, direction=TO_CHILD, channel=3, words="shut down")
    asked = crossings.packets(2, 3, [7], to_child=True)
    told = crossings.signal(2, 3, to_child=True)
    back = crossings.signal(2, 3)
    answered = crossings.packets(2, 3, [7], flags=0)
    (request,) = follow(crossings)
    assert request.by_host
    assert request.name == "reader/3/host:0x7"
    assert request.words == "shut down"
    assert hops(request) == [said, *asked, *told, *back, *answered]


def test_frames_that_go_both_ways_at_once() -> None:
    """What an adapter tells of frames from its guest is not about those that its host has sent, nor the other way."""
    crossings = Crossings()

    def frames(words: str, way: str) -> TraceEvent:
        return crossings.emit(Layer.DEVICE, "network_frames", 2, direction=way, channel=1, size=64, words=words)

    def network(event: TraceEvent) -> None:
        event.fields["device"] = "network"

    for_guest = frames("3 frames", TO_CHILD)
    (sent,) = crossings.packets(2, 1, [0x10], to_child=True, kind=PacketType.TRANSFER_PAGES)
    network(sent)
    frames("1 frame", TO_ROOT)
    (taken,) = crossings.answers(2, 1, [0x10], to_child=False)
    network(taken)
    (asked,) = crossings.packets(2, 1, [0x1])
    network(asked)
    frames("2 frames", TO_CHILD)
    crossings.answers(2, 1, [0x1])
    by_host, by_guest = follow(crossings)
    assert by_host.words == "3 frames"
    assert hops(by_host) == [for_guest, sent, taken]
    assert by_guest.words == "packet 0x1"
    assert [event.layer for event in hops(by_guest)] == [Layer.PACKET] * 2


@pytest.mark.parametrize("device", ["heartbeat", "storage"])
def test_integration_components_ask_without_saying_so(device: str) -> None:
    """Their packets have no flag and all the same ID; what the host says on such a channel is a question, in order."""
    crossings = Crossings()
    for event in (*crossings.packets(2, 3, [0, 0], to_child=True, flags=0), *crossings.packets(2, 3, [0, 0], flags=0)):
        event.fields["device"] = device
    found = follow(crossings)
    assert [request.name for request in found] == ["reader/3/host:0x0", "reader/3/host:0x0.2"][
        : 2 * (device != "storage")
    ]
    assert [request.outcome for request in found] == [Outcome.ANSWERED] * len(found)


def test_words_of_a_device_that_says_nothing() -> None:
    """They are read from the packet's bytes, where those are there."""
    crossings = Crossings()
    (asked,) = crossings.packets(2, 3, [0], to_child=True, flags=0, data=heartbeat(beat=4))
    asked.fields["device"] = "heartbeat"
    crossings.packets(2, 3, [0], flags=0)
    (request,) = follow(crossings)
    assert request.words == "beat 4"


def heartbeat(beat: int) -> bytes:
    """A heartbeat as it lies in the ring: descriptor, pipe header, integration header, body."""
    head = "060002000b000000 0000000000000000 010000003c000000 0300000001000300 0000280000000000 01030000"
    return bytes.fromhex(head) + struct.pack("<Q", beat).ljust(44, b"\0")


def test_what_is_not_an_answer() -> None:
    """What the host says by itself under an ID that is open at the guest's, as ENUMERATE_BUS is, answers nothing."""
    crossings = Crossings()
    crossings.packets(2, 1, [0])
    crossings.packets(2, 1, [0], to_child=True, kind=INBAND, flags=0)
    crossings.answers(2, 1, [5])
    (request,) = follow(crossings)
    assert request.outcome is Outcome.OPEN


def test_what_a_guest_says_is_not_always_an_answer() -> None:
    """In band answers in band only; and whoever wants an answer asks, whatever number the packet has."""
    crossings = Crossings()
    crossings.packets(2, 1, [7], to_child=True, kind=int(PacketType.TRANSFER_PAGES))
    crossings.packets(2, 1, [7], kind=INBAND, flags=0)
    crossings.packets(2, 2, [7], to_child=True, kind=INBAND)
    crossings.packets(2, 2, [7], kind=INBAND, flags=1)
    assert {(request.name, request.outcome) for request in follow(crossings)} == {
        ("reader/1/host:0x7", Outcome.OPEN),
        ("reader/2/host:0x7", Outcome.OPEN),
        ("reader/2/0x7", Outcome.OPEN),
    }


def test_what_a_device_says_of_a_request() -> None:
    """The first that it says is what was asked. Who names no request means the only one, and none of two."""
    crossings = Crossings()
    (asked,) = crossings.packets(2, 1, [1])
    asked.fields["device"] = "dice"
    crossings.device(2, 1, 1, "SCSI READ(10)")
    crossings.device(2, 1, 1, "a second look")
    alone = crossings.emit(Layer.DEVICE, "note", 2, direction=TO_ROOT, channel=1)
    crossings.packets(2, 1, [2])
    for fields in ({}, {"transaction": [1]}, {"transaction": 9}):
        crossings.emit(Layer.DEVICE, "note", 2, direction=TO_ROOT, channel=1, fields=fields)
    first, second = follow(crossings)
    assert first.words == "SCSI READ(10)"
    assert hops(first)[-1] is alone
    assert len(second.hops) == 1


def test_what_a_disk_says_by_itself_is_no_result() -> None:
    """ENUMERATE_BUS while a read is under way."""
    crossings = Crossings()
    crossings.packets(2, 1, [1])
    crossings.emit(Layer.DEVICE, "storage_control", 2, direction=TO_CHILD, channel=1, words="ENUMERATE_BUS")
    crossings.answers(2, 1, [1])
    (request,) = follow(crossings)
    assert (request.result, len(request.hops)) == ("", 2)


def test_a_monitored_channel_that_closes() -> None:
    """What was answered and not yet signaled is answered; the rest is not."""
    crossings = Crossings()
    crossings.answers(2, 1, [9])
    crossings.noise(2, 0)
    crossings.packets(2, 1, [1, 2])
    crossings.signal(2, 1, to_child=True, trapped=False)
    crossings.answers(2, 1, [1])
    crossings.control(2, "close_channel", 1)
    assert [request.outcome for request in follow(crossings)] == [Outcome.ANSWERED, Outcome.CLOSED]


@pytest.mark.parametrize(
    ("layer", "event", "fields"),
    [
        (Layer.CONTROL, "close_channel", {}),
        (Layer.CONTROL, "unload", {}),
        (Layer.STATE, "partition_reset", {}),
        (Layer.STATE, "partition_state", {"state": "deleted"}),
        (Layer.STATE, "vm_ended", {}),
    ],
)
def test_a_closed_channel_answers_nothing(layer: Layer, event: str, fields: dict[str, object]) -> None:
    """Unanswered requests end with their channel, and a later use of the channel knows nothing of them."""
    crossings = Crossings()
    crossings.packets(2, 1, [1, 2])
    crossings.answers(2, 1, [2])
    crossings.packets(3, 1, [1])
    crossings.emit(layer, event, 2, channel=1, fields=fields)
    crossings.answers(2, 1, [1])
    found = {request.name: request.outcome for request in follow(crossings)}
    assert found == {
        "reader/1/0x2": Outcome.ANSWERED,
        "reader/1/0x1": Outcome.CLOSED,
        "writer/1/0x1": Outcome.OPEN,
    }


def test_memory_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that asks for ever: the oldest are forgotten and counted, per channel and in all; bytes have a bound."""
    monkeypatch.setattr(requests, "MAX_OPEN", 10)
    monkeypatch.setattr(requests, "MAX_OPEN_IN_ALL", 25)
    monkeypatch.setattr(requests, "MAX_HELD_BYTES", 1000)
    monkeypatch.setattr(requests, "MAX_NUMBERED", 40)
    tracker, crossings = RequestTracker(NAMES), Crossings()
    over = 0
    for number in range(500):
        crossings.packets(2 + number % 3, 1, [number], data=b"x" * 300)
    for event in crossings.events:
        over += len(tracker.feed(event))
        kept = tracker.open
        assert len(kept) <= 25
        assert sum(len(hop.event.data) for request in kept for hop in request.hops) <= 1000
    assert sum(tracker.forgotten.values()) + len(tracker.open) == 500
    assert over + len(tracker.open) == sum(tracker.forgotten.values()) + len(tracker.open)
    crossings.events.clear()
    crossings.answers(2, 1, [497 + number for number in range(3)])
    answered = [request for event in crossings.events for request in tracker.feed(event)] + tracker.finish()
    assert [request.outcome for request in answered] == [Outcome.ANSWERED]


def test_one_channel_has_a_bound_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest of this channel go, and only those."""
    monkeypatch.setattr(requests, "MAX_OPEN", 3)
    crossings = Crossings()
    crossings.packets(3, 1, [1])
    crossings.packets(2, 1, list(range(5)))
    found = {request.name: request.outcome for request in follow(crossings)}
    assert [name for name, outcome in found.items() if outcome is Outcome.FORGOTTEN] == ["reader/1/0x0", "reader/1/0x1"]
    assert found["writer/1/0x1"] is Outcome.OPEN


def test_what_is_over_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of requests that are over count no more, and a use of an ID that is long ago is forgotten."""
    monkeypatch.setattr(requests, "MAX_HELD_BYTES", 1000)
    monkeypatch.setattr(requests, "MAX_NUMBERED", 3)
    crossings = Crossings()
    for number in [*range(20), 19, 0]:
        crossings.packets(2, 1, [number], data=b"x" * 300)
        crossings.answers(2, 1, [number])
    found = follow(crossings)
    assert all(hops(request)[0].data for request in found)
    assert [request.name for request in found[-3:]] == ["reader/1/0x13", "reader/1/0x13.2", "reader/1/0x0"]


def test_a_device_that_never_stops_talking() -> None:
    """One request has a bounded number of hops, and says how many are left out."""
    crossings = Crossings()
    crossings.packets(2, 1, [1])
    for _ in range(1000):
        crossings.device(2, 1, 1, "again")
    (request,) = follow(crossings)
    assert len(request.hops) == requests.MAX_HOPS
    assert len(request.hops) + request.hops_left_out == 1001


JUNK = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2), st.booleans())


@given(
    st.lists(
        st.builds(
            TraceEvent,
            time=st.integers(0, 1000),
            layer=st.sampled_from(Layer),
            event=st.sampled_from(
                [
                    "packet_received",
                    "packet_sent",
                    "signal_event",
                    "interrupt",
                    "hypercall",
                    "scsi_result",
                    "close_channel",
                ]
            ),
            partition=st.integers(0, 3),
            direction=st.sampled_from([TO_ROOT, TO_CHILD, ""]),
            channel=st.one_of(st.none(), st.integers(0, 2)),
            words=st.sampled_from(["", "connection_id=0x2001", "connection_id=zz"]),
            fields=st.dictionaries(
                st.sampled_from(["transaction_id", "transaction", "type", "flags", "flag", "connection", "caller"]),
                st.one_of(st.integers(0, 11), JUNK),
            ),
        ),
        max_size=40,
    )
)
def test_no_event_is_too_strange(events: list[TraceEvent]) -> None:
    """Events from a file may say anything: the tracker raises nothing, and each request comes out once."""
    found = list(track(events, NAMES))
    assert len({id(request) for request in found}) == len(found)
    assert all(request.hops for request in found)


@settings(max_examples=60)
@given(seed=st.integers(0, 1 << 32))
def test_whatever_else_crosses(seed: int) -> None:
    """Generated traffic of two VMs on three channels each, in batches, polled or signaled, answered in any order.

    The generator knows each request's hops as it makes them; the tracker has to find just those.
    """
    crossings = Crossings()
    expected = generate(random.Random(seed), crossings)
    found = follow(crossings)
    assert {request.name: hops(request) for request in found} == expected


def generate(choose: random.Random, crossings: Crossings) -> dict[str, list[TraceEvent]]:
    expected: dict[str, list[TraceEvent]] = {}
    waiting: dict[tuple[int, int], list[tuple[str, int]]] = {}
    uses: dict[tuple[int, int, int], int] = {}
    for _ in range(choose.randrange(1, 40)):
        key = partition, channel = choose.randrange(2, 4), choose.randrange(1, 4)
        open_here = waiting.setdefault(key, [])
        match choose.randrange(4):
            case 0 | 1:
                free = [number for number in range(1, 9) if number not in {number for _, number in open_here}]
                if not free:
                    continue
                told = crossings.signal(*key, trapped=choose.random() < 0.7) if choose.random() < 0.7 else []
                for kind in range(choose.randrange(3)):
                    crossings.noise(choose.randrange(2, 4), kind)
                crossings.noise(partition, 0)
                numbers = choose.sample(free, min(len(free), choose.randrange(1, 5)))
                for number, event in zip(numbers, crossings.packets(*key, numbers), strict=True):
                    use = uses[(*key, number)] = uses.get((*key, number), 0) + 1
                    name = f"{NAMES[partition]}/{channel}/{number:#x}" + (f".{use}" if use > 1 else "")
                    expected[name] = [*told, event]
                    open_here.append((name, number))
                crossings.noise(partition, 1)
            case 2 if open_here:
                name, number = choose.choice(open_here)
                for words, result in (("SCSI WRITE(10)", False), ("good", True)):
                    expected[name].append(crossings.device(*key, number, words, result=result))
            case 3 if open_here:
                batch = choose.sample(open_here, choose.randrange(1, len(open_here) + 1))
                sent = crossings.answers(*key, [number for _, number in batch])
                signaled = choose.random() < 0.6
                back = crossings.signal(*key, to_child=True, interrupt=choose.random() < 0.8) if signaled else []
                for (name, _), event in zip(batch, sent, strict=True):
                    expected[name] += [event, *back]
                waiting[key] = [one for one in open_here if one not in batch]
                if not signaled:
                    crossings.noise(partition, 1)
            case _:
                crossings.noise(partition, choose.randrange(4))
    return expected


@pytest.mark.parametrize("example", ["02-channel", "03-disk", "07-versions", "21-own-vsp"])
def test_real_runs(example: str, tmp_path: Path) -> None:
    """Each packet of a real run that wants a completion is a request, is answered, and came because of a signal."""
    events: list[TraceEvent] = []
    found: list[Request] = []

    async def run() -> None:
        async with open_host(copied_example(example, tmp_path)) as host:
            tracker = RequestTracker(host.trace.names)
            host.trace.add_sink(events.append)
            host.trace.add_sink(lambda event: found.extend(tracker.feed(event)))
            await host.start_all()
            await host.wait_all()
            found.extend(tracker.finish())
            assert not tracker.open
            assert not tracker.forgotten

    determinism.run(run, clock="virtual")
    wanted = [event for event in events if event.event == "packet_received" and event.fields["flags"] & 1]
    assert len(found) == len(wanted) > 0
    assert {id(event) for request in found for event in hops(request)} >= {id(event) for event in wanted}
    for request in found:
        assert request.outcome is Outcome.ANSWERED
        times = [hop.time for hop in request.hops]
        assert times == sorted(times)
        kinds = [hop.event.event for hop in request.hops]
        assert kinds.index("packet_received") < kinds.index("packet_sent")
    for _, same in itertools.groupby(found, key=lambda request: request.name):
        assert len(list(same)) == 1
    if example == "03-disk":
        assert {request.device for request in found} == {"storage"}
        assert not [request for request in found if not request.words.startswith(("SCSI ", "QUERY_", "BEGIN_", "END_"))]
