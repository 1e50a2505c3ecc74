"""Sequence diagrams: lanes, arrows where they belong, what repeats folded, and text of guests that stays text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Level, TraceEvent
from partitions.trace import sequence
from partitions.trace.sequence import Diagram, Fold, Item, Sequence, SequenceTooLong, Step, fold
from partitions.trace.sequence_mermaid import escape, mermaid
from partitions.trace.sequence_svg import svg
from tests.partitions.trace import pictures

STORAGE = "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f"
SVG = "{http://www.w3.org/2000/svg}"


def event(layer: Layer, name: str, direction: str = "", **more: Any) -> TraceEvent:
    known = {key: more.pop(key) for key in ("time", "partition", "channel", "size", "words", "level") if key in more}
    return TraceEvent(
        known.pop("time", 0), layer, name, known.pop("partition", 2), direction=direction, fields=more, **known
    )


def offer(channel: int = 1) -> TraceEvent:
    words = f"OFFER_CHANNEL channel={channel} interface={STORAGE} instance={STORAGE} sub=0"
    return event(Layer.CONTROL, "offer_channel", TO_CHILD, channel=channel, words=words)


def read(number: int) -> list[TraceEvent]:
    """One disk read as the tap tells it: a hypercall comes after what it brought about."""
    packet = {"channel": 1, "transaction_id": number}
    return [
        event(Layer.SYNIC, "signal_event", TO_ROOT, connection=0x2001, sint=2, flag=1),
        event(Layer.INTERRUPT, "interrupt", TO_ROOT, partition=1, vp=0, vector=0x32),
        event(Layer.HYPERCALL, "hypercall", words="HvSignalEvent connection_id=0x2001 -> SUCCESS", caller=2),
        event(Layer.PACKET, "packet_received", TO_ROOT, words=f"GPA_DIRECT id={number:#x}", **packet),
        event(Layer.DEVICE, "scsi_command", TO_ROOT, channel=1, words=f"SCSI READ(10) lba={8 * number} blocks=8"),
        event(Layer.DEVICE, "scsi_result", TO_CHILD, channel=1, words="good", transaction=number),
        event(Layer.PACKET, "packet_sent", TO_CHILD, words=f"COMPLETION id={number:#x}", **packet),
        event(Layer.SYNIC, "signal_event", TO_CHILD, connection=0x1002, sint=2, flag=1),
        event(Layer.INTERRUPT, "interrupt", TO_CHILD, vp=0, vector=0xF3),
        event(Layer.HYPERCALL, "hypercall", partition=1, words="HvSignalEvent connection_id=0x1002", caller=1),
    ]


def drawn(events: Iterable[TraceEvent], **options: Any) -> Diagram:
    made = Sequence()
    for happened in events:
        made.feed(happened, {1: "root", 2: "web", 3: "db"}.get(happened.partition, ""))
    return made.diagram(**options)


def told(items: list[Item]) -> list[str]:
    """`web > hypervisor: text` a step; frames as `3 times [` and `]`."""
    lines = []
    for item in items:
        if isinstance(item, Fold):
            lines += [f"{item.count} times [", *told(item.items), "]"]
        else:
            times = f" x{item.count}" if item.count > 1 else ""
            lines.append(f"{item.source.title} > {item.target.title}: {item.text}{times}")
    return lines


def test_a_read_goes_from_guest_to_device_and_back() -> None:
    """Lanes from left to right are guests, hypervisor, root, devices; a hypercall stands before what it did."""
    diagram = drawn([offer(), *read(4)])
    assert [lane.title for lane in diagram.lanes] == ["web", "hypervisor", "root", "storage VSP"]
    assert told(diagram.items) == [
        "root > web: OFFER_CHANNEL channel=1 storage sub=0",
        "web > hypervisor: HvSignalEvent connection_id=0x2001",
        "hypervisor > root: event flag 1, SINT2",
        "hypervisor > root: interrupt 0x32, VP 0",
        "web > storage VSP: GPA_DIRECT id=0x4",
        "storage VSP > storage VSP: SCSI READ(10) lba=32 blocks=8",
        "storage VSP > storage VSP: good",
        "storage VSP > web: COMPLETION id=0x4",
        "root > hypervisor: HvSignalEvent connection_id=0x1002",
        "hypervisor > web: event flag 1, SINT2",
        "hypervisor > web: interrupt 0xf3, VP 0",
    ]


def test_what_comes_again_and_again_is_one_frame_with_its_first_and_last() -> None:
    """Eight reads are one frame of ten arrows; a batch of requests is one arrow with a count."""
    diagram = drawn([offer(), *(happened for number in range(8) for happened in read(number))])
    lines = told(diagram.items)
    assert lines[1] == "8 times ["
    assert "storage VSP > storage VSP: SCSI READ(10) lba=0…56 blocks=8" in lines
    assert (diagram.rows, diagram.steps) == (12, 81)
    batch = [read(number)[3] for number in range(32)]
    assert told(drawn([offer(), *batch]).items)[1:] == ["web > storage VSP: GPA_DIRECT id=0x0…0x1f x32"]


def test_two_of_a_kind_are_not_folded() -> None:
    """A frame around two turns would cost as much as it saves."""
    diagram = drawn([*read(1), *read(2)])
    assert diagram.rows == diagram.steps == 20


def test_a_batch_of_commands_within_a_batch_of_reads_is_a_frame_in_a_frame() -> None:
    """The second look at what is folded finds patterns of patterns."""
    batch = [*(read(n)[3] for n in range(8)), *(step for n in range(8) for step in read(n)[4:6])]
    diagram = drawn([offer(), *(happened for _ in range(4) for happened in batch)])
    assert told(diagram.items)[1:] == [
        "4 times [",
        "web > storage VSP: GPA_DIRECT id=0x0…0x7 x8",
        "8 times [",
        "storage VSP > storage VSP: SCSI READ(10) lba=0…56 blocks=8",
        "storage VSP > storage VSP: good",
        "]",
        "]",
    ]


def test_console_output_is_read_as_text() -> None:
    """A guest prints letter by letter; nobody wants to see forty port accesses."""
    letters = [event(Layer.PORT, "port_out", TO_ROOT, port=0x3F8, value=ord(letter)) for letter in "hi there\n"]
    assert told(drawn(letters).items) == ['web > root: COM1 "hi there⏎" x9']


def test_a_mistake_is_a_note_at_whom_it_is_about() -> None:
    """Warnings have no direction; they stand over the guest's lane, and so do changes of state."""
    warning = event(Layer.CONTROL, "refused_open", level=Level.WARNING, words="channel 1: no such GPADL")
    state = event(Layer.STATE, "vmbus_channel", channel=1, words="closed -> opening")
    steps = [item for item in drawn([warning, state]).items if isinstance(item, Step)]
    assert [(step.style.value, step.target.title) for step in steps] == [("warning", "web"), ("note", "web")]
    assert steps[1].text == "vmbus channel 1: closed → opening"


def test_names_of_channels_are_known_from_before_the_window() -> None:
    """A filter may leave the offer out; the device's lane has its name all the same."""
    made = Sequence()
    made.feed(offer(), "web", wanted=False)
    made.feed(read(1)[3], "web")
    assert [lane.title for lane in made.diagram().lanes] == ["web", "storage VSP"]


def test_a_recording_that_began_late_knows_its_channels() -> None:
    """Its first block says which channels were there; it is no arrow itself."""
    fields = {"started": 0, "names": {"2": "web"}, "channels": [[2, 1, "storage"], [9, 1, "video"], "no channel"]}
    begun = TraceEvent(0, Layer.STATE, "recording_started", 0, fields=fields)
    assert [lane.title for lane in drawn([begun, read(1)[3]]).lanes] == ["web", "storage VSP"]
    assert drawn([begun]).steps == 0


def test_a_partition_is_called_as_its_vm_from_its_first_moment() -> None:
    """It exists before it has a name, and after; one VM has one lane all the same."""
    made = Sequence()
    for vm, words in (("#2", "uninitialized"), ("web", "active"), ("#2", "deleted")):
        made.feed(event(Layer.STATE, "partition_state", words=words), vm)
    assert [lane.title for lane in made.diagram().lanes] == ["web"]


def test_a_device_without_a_name_is_its_channel() -> None:
    """Two devices of somebody's own do not share a lane."""
    assert [lane.title for lane in drawn([read(1)[3]]).lanes] == ["web", "channel 1 VSP"]


def test_a_frame_begins_with_what_the_guest_does() -> None:
    """A pattern may be found in the middle of a turn; the frame begins where the next turn does."""
    events = [happened for number in range(6) for happened in read(number)][4:]
    lines = told(drawn([offer(), *events]).items)
    assert lines[lines.index("5 times [") + 1] == "web > hypervisor: HvSignalEvent connection_id=0x2001"


def test_two_guests_on_one_connection_number_keep_their_own_calls() -> None:
    """Connection IDs are each guest's own: the call is put before its own signal and not another guest's."""
    other = [
        TraceEvent(0, Layer.SYNIC, "signal_event", 3, direction=TO_ROOT, fields={"connection": 0x2001, "flag": 7}),
    ]
    lines = told(drawn([read(1)[0], *other, read(1)[2]]).items)
    assert lines == [
        "web > hypervisor: HvSignalEvent connection_id=0x2001",
        "hypervisor > root: event flag 1, SINT2",
        "hypervisor > root: event flag 7, SINTNone",
    ]


def test_too_much_is_refused_with_a_word_on_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads a thousand arrows, and Mermaid draws no more than 50,000 characters."""
    different = [event(Layer.MSR, "write_msr", words="ABCDEFGHIJ"[n % 10] * (n % 11 + 1)) for n in range(400)]
    with pytest.raises(SequenceTooLong, match=r"left after folding, and 300 can be read: choose fewer by --filter"):
        drawn(different)
    assert drawn(different, most_rows=1000).rows > 300
    wide = [event(Layer.MSR, "write_msr", words="ABCDEFGHIJ"[n % 10] * (n % 37 + 40)) for n in range(900)]
    with pytest.raises(SequenceTooLong, match="Mermaid draws 50,000"):
        mermaid(drawn(wide, most_rows=1000))
    monkeypatch.setattr(sequence, "MOST_STEPS", 100)
    with pytest.raises(SequenceTooLong, match="more than 100 events"):
        drawn(different)


def test_nothing_is_a_picture_too() -> None:
    """A filter that matches nothing gives a picture that says so, not a failure."""
    diagram = drawn([])
    assert "nothing was said here" in svg(diagram)
    assert mermaid(diagram) == "sequenceDiagram\n"


# --- whatever guests say

TEXT = st.text(max_size=30) | st.sampled_from(
    ["end", "a; b", "#35;", "<b>x</b>", "%%{init}", "$$x$$", "wrap: x", "]]>", "&amp;", "\x1b[31m", "\ud800", "\u202e"]
)
EVENTS = st.lists(
    st.builds(
        event,
        layer=st.sampled_from(Layer),
        name=st.sampled_from(["hypercall", "signal_event", "packet_received", "port_out", "scsi_command", "vm_state"]),
        direction=st.sampled_from(["", TO_ROOT, TO_CHILD]),
        time=st.integers(0, 1000),
        partition=st.sampled_from([0, 1, 2, 3]),
        channel=st.none() | st.integers(0, 3),
        words=TEXT,
        level=st.sampled_from(Level),
    ),
    max_size=40,
)
SAFE = rf"(?:[A-Za-z0-9 ,.:()=/*+…→⏎{sequence.TIMES}_-]|#\d+;)*"
MERMAID_LINE = re.compile(
    rf"sequenceDiagram|    participant L\d+ as {SAFE}| +L\d+-?->>L\d+: {SAFE}| +Note over L\d+(,L\d+)?: {SAFE}"
    r"| +loop \d+ times| +end"
)


@given(EVENTS)
def test_whatever_guests_say_the_text_is_well_formed(events: list[TraceEvent]) -> None:
    """Mermaid lines hold only what has one meaning; SVG is well-formed XML without script or address."""
    made = Sequence()
    for happened in events:
        made.feed(happened, happened.words)  # as if VMs were called that
    diagram = made.diagram(most_rows=100)
    for line in mermaid(diagram).splitlines():
        assert MERMAID_LINE.fullmatch(line), line
        message = line.partition(": ")[2]
        assert not re.search(r"\bend\b", message, re.IGNORECASE)
    picture = ElementTree.fromstring(svg(diagram).encode())
    assert {element.tag.removeprefix(SVG) for element in picture.iter()} <= {
        *("svg", "title", "desc", "style", "rect", "line", "g", "text", "path")
    }
    arrows = [group for group in picture.iter(f"{SVG}g") if group.get("class", "").split()[0] in ("arrow", "note")]
    assert len(arrows) == sum(1 for item in sequence.walk(diagram.items) if isinstance(item, Step))


def test_words_that_mermaid_takes_for_its_own_are_coded() -> None:
    """Each of these was seen to change or break a diagram that Mermaid drew."""
    spoken = {
        "end": "#101;nd",
        "a; b": "a#59; b",
        "#35;": "#35;35#59;",
        "wrap: x": "wrap#58; x",
        "%% x": "#37;#37; x",
        "<br/>": "#60;br/#62;",
    }
    assert {text: escape(text) for text in spoken} == spoken


@given(st.text())
def test_an_escape_can_be_undone(text: str) -> None:
    """Each code stands for one character; printable text comes back as it was."""
    if text.isprintable() and text.strip() == text and text:
        assert re.sub(r"#(\d+);", lambda found: chr(int(found[1])), escape(text)) == text


def unfolded(items: list[Item]) -> Iterator[tuple[Any, ...]]:
    for item in items:
        for _ in range(item.count):
            if isinstance(item, Fold):
                yield from unfolded(item.items)
            else:
                yield item.shape


@given(st.lists(st.tuples(st.text("abcX", min_size=1, max_size=4), st.integers(1, 6)), max_size=12))
def test_folding_loses_nothing(patterns: list[tuple[str, int]]) -> None:
    """Unfolded again, it is the same steps in the same order, wherever in a pattern a guest begins (X)."""
    root, web = sequence.ROOT, sequence.Lane(sequence.Place.GUEST, "web")
    shapes = "".join(pattern * times for pattern, times in patterns)
    steps: list[Item] = [
        Step(
            *(0, web if shape == "X" else root, root, Layer.PACKET, sequence.Style.CALL, shape, (shape,)),
            said=shape,
            last=shape,
        )
        for shape in shapes
    ]
    assert list(unfolded(fold(fold(steps)))) == [(shape,) for shape in shapes]


def test_the_picture_in_the_documentation_is_real() -> None:
    """docs/sequence.svg is what the disk example gives today; `python -m tests.partitions.trace.pictures` draws it."""
    assert (pictures.DOCS / "sequence.svg").read_text() == pictures.sequence_picture()


def test_the_text_in_the_documentation_is_real() -> None:
    """So is the Mermaid text in docs/sequence.md."""
    page = Path(pictures.DOCS / "sequence.md").read_text()
    assert f"```mermaid\n{pictures.sequence_text()}```" in page
