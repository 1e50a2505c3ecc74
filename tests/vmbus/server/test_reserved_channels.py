"""Reserved channels (4.0 and later): opened apart, answered apart, and there still when the connection is gone."""

from __future__ import annotations

import pytest

from tests.doubles.vmbus_guest import ScriptedGuest, scsi
from vmbus.protocol import messages as m
from vmbus.protocol.identifiers import INTERRUPTS_OFF
from vmbus.protocol.messages import Message
from vmbus.protocol.versions import Version
from vmbus.server import actions as act
from vmbus.server.channels import ChannelState
from vmbus.server.connection import Phase

FAILURE = 0x8000FFFF
GPADL = 0xE1E10


@pytest.fixture
def guest() -> ScriptedGuest:
    guest = ScriptedGuest()
    guest.connect(scsi(1), scsi(2), version=Version.V4_0)
    return guest


def reserve(guest: ScriptedGuest, channel_id: int = 1, vp: int = 1, sint: int = 5) -> None:
    """GPADL and open; nothing of it may come by the connection but GPADL_CREATED."""
    assert guest.gpadl(channel_id) == [m.GpadlCreated(channel_id=channel_id, gpadl_id=GPADL)]
    message = m.OpenReservedChannel(
        channel_id=channel_id, target_vp=vp, target_sint=sint, gpadl_id=GPADL, downstream_page=4
    )
    assert guest.say(message) == []


def close(guest: ScriptedGuest, channel_id: int = 1, vp: int = 2, sint: int = 7) -> list[Message]:
    return guest.say(m.CloseReservedChannel(channel_id=channel_id, target_vp=vp, target_sint=sint))


def state_of(guest: ScriptedGuest, channel_id: int = 1) -> ChannelState:
    return guest.state.channels[channel_id].state


def apart(guest: ScriptedGuest) -> list[act.Action]:
    return guest.asked(act.SendReserved)


def test_open_and_close_are_answered_where_each_message_says(guest: ScriptedGuest) -> None:
    """Not by the connection; interrupts are off, there is no user data, and the open ID is 0."""
    reserve(guest)
    opened = guest.last(act.OpenDevice)
    assert isinstance(opened, act.OpenDevice)
    assert (opened.target_vp, opened.user_data) == (INTERRUPTS_OFF, bytes(120))
    assert close(guest) == []
    assert apart(guest) == [
        act.SendReserved(m.OpenChannelResult(channel_id=1), 1, 5),
        act.SendReserved(m.CloseReservedResponse(channel_id=1), 2, 7),
    ]
    assert state_of(guest) is ChannelState.CLOSED
    assert guest.teardown() == [m.GpadlTorndown(gpadl_id=GPADL)]
    assert guest.faults == []


def test_a_failed_open_is_answered_there_too_and_reserves_nothing(guest: ScriptedGuest) -> None:
    assert guest.say(m.OpenReservedChannel(channel_id=1, target_vp=1, target_sint=5, gpadl_id=9)) == []
    assert apart(guest) == [act.SendReserved(m.OpenChannelResult(channel_id=1, status=FAILURE), 1, 5)]
    assert guest.gpadl_and_open()[-1] == m.OpenChannelResult(channel_id=1, open_id=1)
    assert guest.close() == []
    assert state_of(guest) is ChannelState.CLOSED


def test_what_is_not_for_a_reserved_channel(guest: ScriptedGuest) -> None:
    """Plain close, a second open, release, retargeting, new GPADLs and teardown of its own are mistakes."""
    reserve(guest)
    for message in (
        m.CloseChannel(channel_id=1),
        m.OpenChannel(channel_id=1, gpadl_id=GPADL, downstream_page=4),
        m.OpenReservedChannel(channel_id=1, gpadl_id=GPADL, downstream_page=4),
        m.RelIdReleased(channel_id=1),
        m.GpadlTeardown(channel_id=1, gpadl_id=GPADL),
    ):
        assert guest.say(message) == []
    assert guest.gpadl(gpadl_id=5) == [m.GpadlCreated(channel_id=1, gpadl_id=5, status=FAILURE)]
    assert guest.faults == ["unexpected_message"] * 5 + ["refused_gpadl"]
    assert state_of(guest) is ChannelState.OPEN


def test_reserved_close_is_for_reserved_channels_only(guest: ScriptedGuest) -> None:
    guest.gpadl_and_open()
    assert close(guest) == []
    assert close(guest, channel_id=2) == []
    assert close(guest, channel_id=9) == []
    assert guest.faults == ["unexpected_message"] * 3
    assert apart(guest) == []


def test_while_it_closes_it_cannot_be_opened_or_released(guest: ScriptedGuest) -> None:
    """That close has an answer, so there is something to wait for."""
    reserve(guest)
    guest.prompt = False
    close(guest)
    for message in (m.OpenChannel(channel_id=1, gpadl_id=GPADL, downstream_page=4), m.RelIdReleased(channel_id=1)):
        assert guest.say(message) == []
    assert guest.faults == ["unexpected_message"] * 2
    guest.settle(guest.last(act.CloseDevice))
    assert apart(guest)[-1] == act.SendReserved(m.CloseReservedResponse(channel_id=1), 2, 7)


def test_it_outlives_unload_and_a_new_connection(guest: ScriptedGuest) -> None:
    """The device runs on and the pages stay in view; the next guest is not offered it, closes it, and tears down."""
    reserve(guest)
    assert guest.say(m.Unload()) == [m.UnloadComplete()]
    assert guest.state.phase is Phase.DISCONNECTED
    assert state_of(guest) is ChannelState.OPEN
    assert guest.asked(act.CloseDevice) == []
    guest.contact(Version.V5_3)
    offer, end = guest.request_offers()
    assert isinstance(offer, m.OfferChannel)
    assert (offer.channel_id, end) == (2, m.AllOffersDelivered())
    assert guest.gpadl(2)[0] == m.GpadlCreated(channel_id=2, gpadl_id=GPADL)  # the same number on another channel
    assert close(guest) == []
    assert apart(guest)[-1] == act.SendReserved(m.CloseReservedResponse(channel_id=1), 2, 7)
    assert guest.teardown() == [m.GpadlTorndown(gpadl_id=GPADL)]
    assert guest.gpadl_and_open()[-1] == m.OpenChannelResult(channel_id=1, open_id=1)


def test_it_outlives_a_contact_without_unload(guest: ScriptedGuest) -> None:
    """The crash kernel's way."""
    reserve(guest)
    assert guest.contact(Version.V5_3) == [m.VersionResponse(supported=1, detail=1)]
    assert state_of(guest) is ChannelState.OPEN


def test_closed_without_a_connection_it_is_answered_and_offered_to_the_next_guest(guest: ScriptedGuest) -> None:
    """The answer needs no connection; the GPADLs go in silence, as no guest is there."""
    reserve(guest)
    guest.say(m.Unload())
    assert close(guest) == []
    assert apart(guest)[-1] == act.SendReserved(m.CloseReservedResponse(channel_id=1), 2, 7)
    assert not guest.state.channels
    assert len(guest.state.gpadls) == 0
    guest.contact(Version.V5_3)
    assert [said.channel_id for said in guest.request_offers()[:-1] if isinstance(said, m.OfferChannel)] == [1, 2]


def test_closed_after_the_contact_it_is_among_the_offers(guest: ScriptedGuest) -> None:
    """With the ID that it has, and its GPADL can be torn down as usual."""
    reserve(guest, channel_id=2)
    guest.say(m.Unload())
    guest.contact(Version.V5_3)
    close(guest, channel_id=2)
    assert [said.channel_id for said in guest.request_offers()[:-1] if isinstance(said, m.OfferChannel)] == [1, 2]
    assert guest.teardown(2) == [m.GpadlTorndown(gpadl_id=GPADL)]


def test_unfinished_gpadls_do_not_outlive_the_guest(guest: ScriptedGuest) -> None:
    """The next one may begin with the same ID."""
    header = m.GpadlHeader(channel_id=1, gpadl_id=7, byte_length=32, range_count=1).encode() + bytes(8)
    assert guest.say(header) == []
    reserve(guest)
    guest.say(m.Unload())
    assert [record.gpadl_id for record in guest.state.gpadls] == [GPADL]


def test_a_reset_ends_it_connected_or_not(guest: ScriptedGuest) -> None:
    reserve(guest, 1)
    guest.perform(guest.state.reset())
    assert guest.state.phase is Phase.DISCONNECTED
    assert not guest.state.channels
    guest.contact(Version.V4_0)
    guest.request_offers()
    reserve(guest, 2)
    guest.say(m.Unload())
    guest.prompt = False
    guest.perform(guest.state.reset())
    assert guest.state.phase is Phase.DISCONNECTING
    guest.settle(guest.last(act.CloseDevice))
    guest.settle(guest.last(act.ReleaseGpadl))
    assert guest.state.phase is Phase.DISCONNECTED
    assert not guest.state.channels
    assert len(guest.state.gpadls) == 0


def test_rescind_with_a_connection_is_as_of_any_other() -> None:
    guest = ScriptedGuest()
    (handle,) = guest.connect(scsi(), version=Version.V4_0)
    reserve(guest)
    assert guest.rescind(handle) == [m.RescindChannelOffer(channel_id=1)]
    assert close(guest) == []
    assert guest.faults == []
    guest.teardown()
    assert guest.release() == []
    assert not guest.state.offers


def test_a_rescinded_one_outlives_nothing() -> None:
    """Its device has gone, so there is nothing to keep for the next guest."""
    guest = ScriptedGuest()
    (handle,) = guest.connect(scsi(), version=Version.V4_0)
    reserve(guest)
    guest.rescind(handle)
    assert guest.say(m.Unload()) == [m.UnloadComplete()]
    assert not guest.state.channels
    assert not guest.state.offers


def test_rescind_without_a_connection_says_nothing() -> None:
    """Nobody is there to be told, and nobody holds the ID."""
    guest = ScriptedGuest()
    (handle,) = guest.connect(scsi(), version=Version.V4_0)
    reserve(guest)
    guest.say(m.Unload())
    assert guest.rescind(handle) == []
    assert not guest.state.offers
    assert not guest.state.channels


def test_below_4_0_there_are_none() -> None:
    guest = ScriptedGuest()
    guest.connect(scsi(), version=Version.V3_0)
    assert guest.say(m.OpenReservedChannel(channel_id=1)) == []
    assert guest.faults == ["malformed_message"]


def test_a_pause_holds_back_no_answer_about_a_reserved_channel() -> None:
    """They have a target of their own (openvmm: not affected by the paused state)."""
    guest = ScriptedGuest()
    guest.connect(scsi(), version=Version.V6_0, features=0x20)
    guest.gpadl()
    guest.prompt = False
    guest.say(m.OpenReservedChannel(channel_id=1, gpadl_id=GPADL, downstream_page=4))
    guest.say(m.Pause())
    guest.settle(guest.last(act.OpenDevice))
    assert len(apart(guest)) == 1
