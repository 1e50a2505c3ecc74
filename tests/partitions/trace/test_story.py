"""A story says where a request was, for how long, and what it waited for; the choice of one says what there is."""

from __future__ import annotations

import pytest

from hypervisor.trace import Layer
from partitions.trace.filters import FilterError, parse_filter
from partitions.trace.story import Choice, Story, Storyteller, UnknownRequest, lines, read_choice
from tests.partitions.crossings import Crossings

NAMES = {2: "reader", 3: "writer"}


def tell(crossings: Crossings, text: str) -> Story:
    choice = read_choice(text, parse_filter)
    assert choice is not None
    teller = Storyteller(choice, NAMES)
    for event in crossings.events:
        teller.feed(event)
    return teller.finish()


def batch(crossings: Crossings, numbers: list[int], *, idle: int = 0) -> None:
    """Requests that are answered one after the other; `idle` ticks at the disk for the first."""
    crossings.signal(2, 1)
    crossings.packets(2, 1, numbers)
    for number in numbers:
        crossings.device(2, 1, number, f"SCSI READ(10) lba={number}")
        crossings.now += idle if number == numbers[0] else 0
        crossings.device(2, 1, number, "good", result=True)
    crossings.answers(2, 1, numbers)
    crossings.signal(2, 1, to_child=True)


def test_down_through_the_layers_and_back() -> None:
    """Depths go from the guest to the device and back; each hop has its time, and together they are the whole."""
    crossings = Crossings()
    batch(crossings, [4], idle=70)
    story = tell(crossings, "reader/1/0x4")
    assert [step.depth for step in story.steps] == [0, 1, 2, 3, 4, 4, 3, 2, 1, 0]
    assert [step.who for step in story.steps[:5]] == ["reader", "hypervisor", "root", "VMBus", "storage VSP"]
    assert sum(step.took_us for step in story.steps) == pytest.approx(story.total_us)
    assert sum(step.share for step in story.steps) == pytest.approx(1)
    disk = story.steps[4]
    assert (disk.waited_for, disk.took_us, disk.at_us) == ("the disk", 8.0, 4.0)
    assert story.summary == f"Most of the time, 8.0 us ({disk.share:.0%}), went by waiting for the disk."
    assert (story.name, story.words, story.result) == ("reader/1/0x4", "SCSI READ(10) lba=4", "good")


def test_what_a_request_waits_for() -> None:
    """Its turn in a batch, the rest of the batch, another VM: what happened between two hops is said."""
    crossings = Crossings()
    crossings.signal(2, 1)
    crossings.packets(3, 1, [8, 9])
    crossings.noise(3, 1)
    crossings.signal(3, 1, to_child=True)
    crossings.packets(2, 1, [1, 2, 3])
    for number in (1, 2, 3):
        crossings.device(2, 1, number, "SCSI READ(10)")
        crossings.device(2, 1, number, "good", result=True)
    crossings.answers(2, 1, [1, 2, 3])
    crossings.signal(2, 1, to_child=True)
    steps = {step.event + str(step.depth): step for step in tell(crossings, "reader/1/2").steps}
    assert steps["interrupt2"].waited_for == "the root's task for this channel"
    assert steps["interrupt2"].meanwhile == ["2 requests of writer/1", "1 port event of writer"]
    assert steps["packet_received3"].words.endswith(", number 2 of 3 at once")
    assert steps["packet_received3"].waited_for == "its turn in the batch"
    assert steps["packet_received3"].meanwhile == ["1 other request of this channel (0x1)"]
    assert steps["scsi_result4"].waited_for == "the rest of its batch"
    assert steps["scsi_result4"].meanwhile == ["1 other request of this channel (0x3)"]


def test_what_a_request_of_the_host_waits_for() -> None:
    """It is the guest who has to answer."""
    crossings = Crossings()
    crossings.packets(2, 3, [7], to_child=True)
    crossings.signal(2, 3, to_child=True)
    crossings.now += 90
    crossings.signal(2, 3)
    crossings.packets(2, 3, [7], flags=0)
    story = tell(crossings, "reader/3/host:7")
    assert [step.waited_for for step in story.steps] == [
        *("", "", "", "the guest", "", "", "the root's task for this channel", "")
    ]
    assert story.steps[3].took_us == 11.0
    assert "waiting for the guest" in story.summary


def test_order_counts_where_time_stands_still() -> None:
    """On the virtual clock nothing takes time; what happened between two hops is the same."""
    crossings = Crossings()
    batch(crossings, [1, 2])
    moving = tell(crossings, "reader/1/2")
    for index, event in enumerate(crossings.events):
        crossings.events[index] = type(event)(
            0, event.layer, event.event, event.partition, event.level, event.direction, event.channel, event.size,
            event.words, event.fields,
        )  # fmt: skip
    still = tell(crossings, "reader/1/2")
    assert [(step.words, step.waited_for, step.meanwhile) for step in still.steps] == [
        (step.words, step.waited_for, step.meanwhile) for step in moving.steps
    ]
    assert still.total_us == 0
    assert "No time passed" in still.summary
    assert len(lines(still)) == len(lines(moving))


def test_which_request() -> None:
    """By name, the slowest, the first, the last, and each of those with a filter."""
    crossings = Crossings()
    batch(crossings, [1], idle=50)
    batch(crossings, [1], idle=90)
    batch(crossings, [2], idle=10)
    batch(crossings, [6], idle=90)
    crossings.packets(2, 1, [7])
    crossings.noise(2, 0)
    crossings.now += 500
    crossings.device(2, 1, 7, "SCSI READ(10)")
    names = {
        text: tell(crossings, text).name
        for text in ("slowest", "first", "last", "slowest:text=lba=2", "first:time=0..1")
    }
    assert names == {
        "slowest": "reader/1/0x1.2",
        "first": "reader/1/0x1",
        "last": "reader/1/0x7",
        "slowest:text=lba=2": "reader/1/0x2",
        "first:time=0..1": "reader/1/0x1",
    }
    assert tell(crossings, "reader/1/0x1.2").started_s > tell(crossings, "reader/1/1").started_s
    assert tell(crossings, "last").outcome == "not answered yet"


def test_when_nothing_more_can_change_a_story() -> None:
    """A request by name is told when it is over; the slowest only at the end."""
    crossings = Crossings()
    batch(crossings, [1])
    crossings.noise(2, 0)
    done: dict[str, list[bool]] = {}
    for text in ("reader/1/1", "slowest"):
        choice = read_choice(text, parse_filter)
        assert choice is not None
        teller = Storyteller(choice, NAMES)
        done[text] = []
        for event in crossings.events:
            teller.feed(event)
            done[text].append(teller.done)
    assert done["reader/1/1"] == [*[False] * 9, True, True], "with the return of the host's hypercall"
    assert not any(done["slowest"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("reader/1/0x4", Choice("reader/1/0x4", name="reader/1/0x4")),
        ("reader/1/16.3", Choice("reader/1/16.3", name="reader/1/0x10.3")),
        ("reader/01/host:0x4.1", Choice("reader/01/host:0x4.1", name="reader/1/host:0x4")),
        ("reader/1", None),
        ("reader", None),
        ("", None),
    ],
)
def test_names(text: str, expected: Choice | None) -> None:
    """Numbers may be decimal; a name without a transaction ID is a channel's or a VM's."""
    assert read_choice(text, parse_filter) == expected


def test_a_choice_with_a_wrong_filter() -> None:
    """What the filter language refuses is refused here as well."""
    with pytest.raises(FilterError, match="did you mean"):
        read_choice("first:txt=READ", parse_filter)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("reader/1/0x9", 'no request "reader/1/0x9"; the nearest are reader/1/0x2, reader/1/0x1'),
        ("raeder/1/0x1", 'no request "raeder/1/0x1"; the nearest are reader/1/0x1, reader/1/0x2'),
        ("slowest:text=WRITE", 'no request "slowest:text=WRITE": none of the 2 requests fits; --requests lists them'),
    ],
)
def test_a_request_that_there_is_not(text: str, expected: str) -> None:
    """Those that there are, the nearest first."""
    crossings = Crossings()
    batch(crossings, [1, 2])
    with pytest.raises(UnknownRequest) as caught:
        tell(crossings, text)
    assert str(caught.value) == expected


def test_a_trace_without_requests() -> None:
    """Which layers a story needs is said."""
    crossings = Crossings()
    crossings.emit(Layer.STATE, "vm_state", 2)
    with pytest.raises(UnknownRequest, match="layer packet"):
        tell(crossings, "slowest")


def test_lines_for_people() -> None:
    """Times in columns, an indent a layer, and what a guest wrote cannot drive the terminal."""
    crossings = Crossings()
    crossings.signal(2, 1)
    crossings.packets(2, 1, [1])
    crossings.device(2, 1, 1, "SCSI \033[2J")
    crossings.answers(2, 1, [1])
    shown = lines(tell(crossings, "first"))
    assert "\033" not in "".join(shown)
    assert shown[0] == "reader/1/0x1  SCSI \\x1b[2J"
    assert shown[1] == "storage, 512 B, 5.0 us from 0.000001 s on"
    assert shown[4:8] == [
        "    0.0 us      0.0 us    0%  reader: calls HvSignalEvent, connection 0x2001",
        "    0.0 us      1.0 us   20%    hypervisor: sets event flag 77 of the root, SINT 2",
        "    1.0 us      2.0 us   40%      root: VP 0 is interrupted, vector 0x32",
        "                                    waits for the root's task for this channel",
    ]
    assert "\033[1m" in lines(tell(crossings, "first"), colour=True)[0]
