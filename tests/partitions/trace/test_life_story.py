"""Lives answer what people ask: which version and why, who ended it, how a channel came and went."""

from __future__ import annotations

from typing import Any

import pytest

from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Level, TraceEvent
from partitions import determinism
from partitions.host import open_host
from partitions.logs import vm_name
from partitions.root.asking import asked_by
from partitions.trace import life_story
from partitions.trace.life_story import Life, LifeTeller, UnknownLife, lines
from tests.partitions.crossings import Crossings

NAMES = {2: "web", 3: "db"}


def live(crossings: Crossings, vm: str = "web", channel: int | None = None) -> Life:
    teller = LifeTeller(vm, channel)
    for event in crossings.events:
        teller.feed(event, vm_name(NAMES, event))
    return teller.finish()


def contact(crossings: Crossings, version: str, *, agreed: bool, why: str = "") -> None:
    words = f"INITIATE_CONTACT version={version} vp=0"
    crossings.control(2, "initiate_contact", words=words, direction=TO_ROOT)
    if why:
        crossings.control(2, "refused_contact", words=f"{words}: {why}", level=Level.WARNING)
    words = f"VERSION_RESPONSE supported={int(agreed)} state=0"
    crossings.control(2, "version_response", words=words, direction=TO_CHILD)


def state(crossings: Crossings, words: str, cause: str, **fields: Any) -> None:
    crossings.emit(Layer.STATE, "vm_state", 2, words=words, fields={"cause": cause, **fields})


def ended(crossings: Crossings, reason: str, **fields: Any) -> None:
    crossings.emit(Layer.STATE, "vm_ended", 2, words=reason, fields={"reason": reason, **fields})


@pytest.mark.parametrize(
    ("contacts", "expected"),
    [
        ([("5.3", True, "")], "VMBus 5.3, the first that the guest asked for"),
        (
            [("7.0", False, "above 6.0, the highest here"), ("6.0", True, "")],
            "VMBus 6.0, the next that the guest asked for: 7.0 was refused (above 6.0, the highest here)",
        ),
        ([("9.9", False, "")], "none: 9.9 was refused"),
        ([], "the trace has no contact: it begins later, or has no messages (layer control)"),
    ],
)
def test_which_version_and_why(contacts: list[tuple[str, bool, str]], expected: str) -> None:
    """Each contact is told with its answer, and the answer with its reason."""
    crossings = Crossings()
    state(crossings, "off -> starting", "start")
    for version, agreed, why in contacts:
        contact(crossings, version, agreed=agreed, why=why)
    life = live(crossings)
    assert life.answers["version"] == expected
    assert sum(moment.event == "version_response" for moment in life.moments) == len(contacts)


@pytest.mark.parametrize(
    ("cause", "by", "reason", "expected"),
    [
        ("", "", "powered off", "its guest powered itself off; nobody had asked"),
        ("shut_down", "ann", "powered off", "its guest powered off, as it was asked to: ann pressed its power button"),
        ("turn_off", "ann", "turned off", "turned off: ann cut its power"),
        ("turn_off", "", "turned off", "turned off: the program that opened the host cut its power"),
        ("", "the end of the host", "turned off", "turned off: the end of the host did it"),
        ("", "", "crashed", "crashed; nobody had asked"),
        ("shut_down", "ann", "crashed", "crashed, after ann pressed its power button"),
    ],
)
def test_who_stopped_it(cause: str, by: str, reason: str, expected: str) -> None:
    """The guest by itself, the guest because somebody asked, or somebody against its will."""
    crossings = Crossings()
    state(crossings, "off -> starting", "start")
    if cause:
        state(crossings, "running -> off", cause, **({"by": by} if by else {}))
    ended(crossings, reason, **({"by": by} if by else {}))
    assert live(crossings).answers["end"] == expected


def test_a_channel_from_its_offer_to_its_end() -> None:
    """Messages that name it, those of its GPADLs which do not, its states, the device's negotiation."""
    crossings = Crossings()
    interface = "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f"
    crossings.control(2, "offer_channel", 1, words=f"OFFER_CHANNEL channel=1 interface={interface}", direction=TO_CHILD)
    crossings.control(2, "gpadl_header", 1, words="GPADL_HEADER channel=1 gpadl=0xe1", direction=TO_ROOT)
    crossings.control(2, "gpadl_body", words="GPADL_BODY gpadl=0xe1", direction=TO_ROOT)
    crossings.control(2, "gpadl_header", 2, words="GPADL_HEADER channel=2 gpadl=0xe2", direction=TO_ROOT)
    crossings.control(2, "gpadl_body", words="GPADL_BODY gpadl=0xe2", direction=TO_ROOT)
    crossings.control(2, "open_channel", 1, words="OPEN_CHANNEL channel=1", direction=TO_ROOT)
    crossings.emit(Layer.STATE, "vmbus_channel", 2, channel=1, words="closed -> open")
    crossings.packets(2, 1, [1, 2])
    crossings.emit(Layer.DEVICE, "storage_control", 2, channel=1, words="BEGIN_INITIALIZATION")
    crossings.device(2, 1, 2, "SCSI READ(10)")
    crossings.answers(2, 1, [1, 2])
    crossings.control(2, "close_channel", 1, words="CLOSE_CHANNEL channel=1", direction=TO_ROOT)
    life = live(crossings, channel=1)
    assert [moment.words for moment in life.moments] == [
        f"host: OFFER_CHANNEL channel=1 interface={interface}",
        "guest: GPADL_HEADER channel=1 gpadl=0xe1",
        "guest: GPADL_BODY gpadl=0xe1",
        "guest: OPEN_CHANNEL channel=1",
        "state: closed -> open",
        "the first packet, from the guest",
        "storage VSP: BEGIN_INITIALIZATION",
        "guest: CLOSE_CHANNEL channel=1",
    ]
    assert life.device == "storage"
    assert life.answers["traffic"].startswith("2 packets in, 2 out")
    assert life.answers["end"] == "closed by the guest (CLOSE_CHANNEL)"


def test_a_channel_that_is_opened_again() -> None:
    """Its end is that of its last opening."""
    crossings = Crossings()
    for event in ("open_channel", "close_channel", "open_channel"):
        crossings.control(2, event, 1, direction=TO_ROOT)
    assert live(crossings, channel=1).answers["end"] == "it was not closed in this trace"


@pytest.mark.parametrize("again", ["start", "unload", "partition_reset"])
def test_a_second_life(again: str) -> None:
    """After a restart, a reset or an unload the answers are about the connection that came last."""
    crossings = Crossings()
    contact(crossings, "9.9", agreed=False)
    contact(crossings, "4.0", agreed=True)
    ended(crossings, "crashed")
    match again:
        case "start":
            state(crossings, "off -> starting", "start")
        case "unload":
            crossings.control(2, "unload", direction=TO_ROOT)
        case _:
            crossings.emit(Layer.STATE, "partition_reset", 2)
    contact(crossings, "5.3", agreed=True)
    life = live(crossings)
    assert life.answers["version"] == "VMBus 5.3, the first that the guest asked for"
    assert (life.answers["end"] == "it has not ended in this trace") is (again == "start")


def test_a_contact_that_fails() -> None:
    """A version that the host has, and a connection that it could not make."""
    crossings = Crossings()
    crossings.control(2, "initiate_contact", words="INITIATE_CONTACT version=5.3", direction=TO_ROOT)
    crossings.control(2, "version_response", words="VERSION_RESPONSE supported=1 state=2", direction=TO_CHILD)
    assert live(crossings).answers["version"] == "none: 5.3 was refused"


def test_names_that_there_are_not() -> None:
    """The nearest VM, and the channels that a VM has."""
    crossings = Crossings()
    state(crossings, "off -> starting", "start")
    crossings.packets(2, 4, [1])
    with pytest.raises(UnknownLife, match=r'no VM "wbe" in this trace; did you mean "web"\?'):
        live(crossings, "wbe")
    with pytest.raises(UnknownLife, match="web has no channel 1 in this trace; it has 4"):
        live(crossings, "web", 1)


def test_lives_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that asks for ever: the first moments are kept, the rest is counted."""
    monkeypatch.setattr(life_story, "MAX_MOMENTS", 20)
    crossings = Crossings()
    for _ in range(100):
        contact(crossings, "9.9", agreed=False)
    life = live(crossings)
    assert (len(life.moments), life.left_out) == (20, 180)
    assert "... and 180 moments more" in lines(life)


def test_a_real_end_says_who() -> None:
    """A VM that somebody stops says so in its life, as does one that ends by itself."""
    events: list[tuple[TraceEvent, str]] = []

    async def run() -> None:
        async with open_host("02-channel") as host:
            host.trace.add_sink(lambda event: events.append((event, vm_name(host.trace.names, event))))
            first, *others = host.values()
            await host.start_all()
            with asked_by("ann at the desk"):
                await first.turn_off()
            for vm in others:
                await vm.wait()

    determinism.run(run, clock="virtual")
    names = list(dict.fromkeys(vm for event, vm in events if event.event == "vm_ended"))
    ends = {}
    for name in names:
        teller = LifeTeller(name)
        for event, vm in events:
            teller.feed(event, vm)
        ends[name] = teller.finish().answers["end"]
    assert "turned off: ann at the desk cut its power" in ends.values()
