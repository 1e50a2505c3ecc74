"""Bytes of Linux's own drivers: decoded, written the same by our guest side, and answered well by our host.

The file in data/ says where its bytes come from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hypervisor.wire import Guid
from tests.doubles.vmbus_guest import ScriptedGuest, instance
from vmbus.gpadl import GpadlAssembly, encode_gpadl, page_range
from vmbus.protocol import messages as m
from vmbus.protocol.messages import Message
from vmbus.protocol.table import Direction, decode_message
from vmbus.protocol.versions import Version
from vmbus.server import actions as act
from vmbus.server.connection import Phase
from vmbus.server.offers import Offer

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "linux_6_12_messages.json").read_text())
TRACES = ("boot", "storvsc", "netvsc", "keyboard")

NAMES = {
    "CHANNELMSG_INITIATE_CONTACT": m.InitiateContact,
    "CHANNELMSG_VERSION_RESPONSE": m.VersionResponse,
    "CHANNELMSG_REQUESTOFFERS": m.RequestOffers,
    "CHANNELMSG_OFFERCHANNEL": m.OfferChannel,
    "CHANNELMSG_ALLOFFERS_DELIVERED": m.AllOffersDelivered,
    "CHANNELMSG_GPADL_HEADER": m.GpadlHeader,
    "CHANNELMSG_GPADL_BODY": m.GpadlBody,
    "CHANNELMSG_GPADL_CREATED": m.GpadlCreated,
    "CHANNELMSG_OPENCHANNEL": m.OpenChannel,
    "CHANNELMSG_OPENCHANNEL_RESULT": m.OpenChannelResult,
}

LEAST_BYTES = {
    m.OfferChannel: 196,
    m.RescindChannelOffer: 12,
    m.OpenChannelResult: 20,
    m.GpadlCreated: 20,
    m.GpadlTorndown: 12,
    m.VersionResponse: 16,
    m.ModifyChannelResponse: 16,
    m.AllOffersDelivered: 8,
    m.UnloadComplete: 8,
}
"""What Linux insists on; it drops what is shorter."""


def accepted_by_linux(message: Message) -> bool:
    """Would vmbus_on_msg_dpc take it?"""
    return message.TYPE < 25 and len(message.encode()) >= LEAST_BYTES[type(message)]


def entries() -> list[dict[str, str]]:
    return [entry for trace in TRACES for entry in VECTORS[trace]]


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry["name"])
def test_each_message_is_what_linux_calls_it_and_survives(entry: dict[str, str]) -> None:
    """Decoded and encoded again, the fixed part is the same, byte for byte."""
    data = bytes.fromhex(entry["hex"])
    way = Direction(entry["way"])
    version = None if "CONTACT" in entry["name"] or "VERSION" in entry["name"] else Version.V5_3
    message = decode_message(data, sender=way, version=version)
    assert type(message) is NAMES[entry["name"]]
    assert message.encode() == data[: message.SIZE]
    assert len(data) == message.SIZE or isinstance(message, m.GpadlHeader | m.GpadlBody)


@pytest.mark.parametrize("case", VECTORS["gpadls"], ids=lambda case: f"{case['pages']} pages")
def test_gpadls_are_written_as_linux_writes_them(case: dict[str, Any]) -> None:
    """The same split into header and bodies, the same lengths, no numbers in the bodies."""
    gpns = range(case["first_pfn"], case["first_pfn"] + case["pages"])
    ours = encode_gpadl(5, case["gpadl"], [page_range(gpns)])
    assert [message.hex() for message in ours] == case["posts"]


@pytest.mark.parametrize("trace", ["boot", "storvsc", "keyboard"])
def test_gpadls_of_drivers_are_assembled(trace: str) -> None:
    """Each that has all its bodies in the record is one range of whole pages."""
    assembly: GpadlAssembly | None = None
    for entry in VECTORS[trace]:
        data = bytes.fromhex(entry["hex"])
        if entry["name"].endswith("GPADL_HEADER"):
            assembly = GpadlAssembly(m.GpadlHeader.decode(data))
            assembly.add(data[m.GpadlHeader.SIZE :])
        elif entry["name"].endswith("GPADL_BODY"):
            assert assembly is not None
            assembly.add(data[m.GpadlBody.SIZE :])
        elif entry["name"].endswith("GPADL_CREATED"):
            assert assembly is not None
            (part,) = assembly.ranges()
            assert part.whole_pages


@pytest.mark.parametrize("case", sorted(VECTORS["negotiate"]))
def test_linux_steps_down_to_what_the_host_speaks(case: str) -> None:
    """A host capped at that version refuses each contact before it, in words that Linux takes, and accepts the last."""
    major, minor = case.split(".")
    wanted = int(major) << 16 | int(minor)
    guest = ScriptedGuest(max_version=wanted)
    *contacts, request = VECTORS["negotiate"][case]
    for post in contacts:
        (answer,) = guest.say(bytes.fromhex(post["hex"]), multiclient=post["connection_id"] == 4)
        assert accepted_by_linux(answer)
        assert isinstance(answer, m.VersionResponse)
        assert answer.supported == (post is contacts[-1])
    assert guest.state.version == wanted
    assert guest.say(bytes.fromhex(request["hex"])) == [m.AllOffersDelivered()]


def offers_in(trace: str) -> list[Offer]:
    """The devices that the recorded host offered, in its order."""
    decoded = [m.OfferChannel.decode(bytes.fromhex(e["hex"])) for e in VECTORS[trace] if "OFFERCHANNEL" in e["name"]]
    return [Offer(o.interface, o.instance, order=place) for place, o in enumerate(decoded)]


def host_with_channel(channel_id: int) -> ScriptedGuest:
    """A connected guest whose last channel has this ID."""
    guest = ScriptedGuest()
    guest.connect(*(Offer(Guid(), instance(number)) for number in range(channel_id)))
    return guest


@pytest.mark.parametrize(("trace", "first", "last"), [("boot", 5, 7), ("storvsc", 8, 8), ("keyboard", 9, 9)])
def test_replay_of_a_driver_opening_its_device(trace: str, first: int, last: int) -> None:
    """Each of Linux's messages brings exactly the answers that made the drivers go on, in the same order."""
    guest = host_with_channel(last)
    guest.heard.clear()
    expected = []
    started = False
    for entry in VECTORS[trace]:
        started = started or entry["name"] == "CHANNELMSG_GPADL_HEADER"
        if not started:
            continue
        data = bytes.fromhex(entry["hex"])
        if entry["way"] == ">root":
            guest.say(data)
        else:
            expected.append(data)
    assert [message.encode() for message in guest.heard] == expected
    assert guest.faults == []
    assert sorted(a.channel_id for a in guest.asked(act.OpenDevice) if isinstance(a, act.OpenDevice)) == list(
        range(first, last + 1)
    )


def test_replay_of_a_boot() -> None:
    """Contact, offers and opens of three devices: every answer is one that Linux takes, in the recorded order."""
    guest = ScriptedGuest()
    for offer in offers_in("boot"):
        guest.offer(offer)
    answers = [
        type(answer)
        for entry in VECTORS["boot"][:3:2]
        for answer in guest.say(bytes.fromhex(entry["hex"]), multiclient="CONTACT" in entry["name"])
    ]
    assert answers == [m.VersionResponse, m.OfferChannel, m.OfferChannel, m.OfferChannel, m.AllOffersDelivered]
    assert all(accepted_by_linux(message) for message in guest.heard)


def test_replay_of_close_teardown_rescind_and_unload() -> None:
    """The messages that Linux sends after an open; their bytes follow from its layouts and are shown here whole."""
    guest = host_with_channel(5)
    for post in VECTORS["gpadls"][2]["posts"]:
        guest.say(bytes.fromhex(post))
    guest.heard.clear()
    opened = bytes.fromhex("05000000000000000500000005000000161e0e000000000008000000") + bytes(120)
    assert guest.say(opened) == [m.OpenChannelResult(channel_id=5, open_id=5)]
    assert guest.say(bytes.fromhex("070000000000000005000000")) == []
    (teardown,) = VECTORS["gpadl_teardown"]
    (torndown,) = guest.say(bytes.fromhex(teardown))
    assert torndown.encode().hex() == "0c00000000000000161e0e00"
    (rescind,) = guest.rescind(5)
    assert rescind.encode().hex() == "020000000000000005000000"
    assert guest.say(bytes.fromhex("0d0000000000000005000000")) == []
    (complete,) = guest.say(bytes.fromhex("1000000000000000"))
    assert complete.encode().hex() == "1100000000000000"
    assert guest.state.phase is Phase.DISCONNECTED
    assert all(accepted_by_linux(message) for message in guest.heard)
    assert guest.faults == []


def test_no_answer_is_shorter_than_linux_wants() -> None:
    for layout, least in LEAST_BYTES.items():
        assert least <= layout.SIZE
