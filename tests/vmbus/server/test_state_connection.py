"""Contact, offers, unload and reconnect, message by message."""

from __future__ import annotations

import pytest

from hypervisor.wire import Guid
from tests.doubles.vmbus_guest import NETWORK, SCSI, ScriptedGuest, instance, scsi
from vmbus.protocol import messages as m
from vmbus.protocol.features import Feature, OfferFlag
from vmbus.protocol.versions import IMPLEMENTED, Version
from vmbus.server import actions as act
from vmbus.server.connection import Phase
from vmbus.server.offers import Offer


@pytest.mark.parametrize("version", IMPLEMENTED)
def test_every_implemented_version_is_accepted(version: Version) -> None:
    """Below 5.0 the answer repeats the version; from 5.0 on it names the connection ID to post to."""
    guest = ScriptedGuest()
    (answer,) = guest.contact(version)
    assert isinstance(answer, m.VersionResponse | m.VersionResponse2)
    assert (answer.supported, answer.connection_state) == (1, 0)
    assert answer.detail == (1 if version >= Version.V5_0 else version)
    assert guest.state.version == version


@pytest.mark.parametrize("version", [0, 0xC, 0xE, 0x10000, 0x20003, 0x50004, 0x60001, 0x70000, 0xFFFFFFFF])
def test_any_other_version_is_refused_in_16_bytes(version: int) -> None:
    """Only an exact match counts, and Linux drops an answer shorter than 16 bytes."""
    guest = ScriptedGuest()
    (answer,) = guest.contact(version)
    assert answer.encode() == bytes.fromhex("0f000000 00000000 00000000 00000000")
    assert guest.state.phase is Phase.DISCONNECTED
    assert guest.faults == ["refused_contact"]


def test_exact_bytes_of_the_answers() -> None:
    """4.1 and 6.0, as on the wire."""
    guest = ScriptedGuest()
    assert guest.contact(Version.V4_1)[0].encode().hex() == "0f000000000000000100000001000400"
    (answer,) = guest.contact(Version.V6_0)
    assert answer.encode().hex() == "0f00000000000000010000000100000000000000"


def test_the_cap_on_versions_sends_a_guest_down_the_list() -> None:
    """A host held at 4.1 refuses 5.3 to 5.0 and takes 4.1."""
    guest = ScriptedGuest(max_version=Version.V4_1)
    for version in (Version.V5_3, Version.V5_2, Version.V5_1, Version.V5_0):
        assert guest.contact(version) == [m.VersionResponse()]
    assert guest.contact(Version.V4_1) == [m.VersionResponse(supported=1, detail=Version.V4_1)]


def test_features_are_masked() -> None:
    """Granted is what was asked for and is supported; unknown bits vanish without an error."""
    guest = ScriptedGuest()
    (answer,) = guest.contact(Version.V6_0, features=0xFFFFFFF7)
    assert answer == m.VersionResponse2(supported=1, detail=1, features=0x27)
    assert guest.faults == []


def test_features_mean_nothing_below_6_0() -> None:
    guest = ScriptedGuest()
    (answer,) = guest.contact(Version.V5_3, features=0xFFFFFFFF)
    assert answer == m.VersionResponse(supported=1, detail=1)
    assert guest.state.features == 0


def test_a_client_id_that_is_announced_must_be_there() -> None:
    """A short message with feature 0x8 is malformed and gets no answer; the long one is taken."""
    guest = ScriptedGuest()
    assert guest.contact(Version.V6_0, features=Feature.CLIENT_ID) == []
    assert guest.faults == ["malformed_message"]
    long = m.initiate_contact(Version.V6_0, features=Feature.CLIENT_ID, client_id=Guid(bytes(range(16))))
    assert guest.say(long) == [m.VersionResponse2(supported=1, detail=1, features=Feature.CLIENT_ID)]


@pytest.mark.parametrize(("version", "vp"), [(Version.V2_4, 0), (Version.V3_0, 3), (Version.V5_3, 3)])
def test_the_target_vp_counts_from_3_0_on(version: Version, vp: int) -> None:
    guest = ScriptedGuest()
    guest.contact(version, target_vp=3)
    assert guest.last(act.SetMessageTarget) == act.SetMessageTarget(vp, 2)


def test_a_wrong_sint_counts_on_the_multiclient_connection_only() -> None:
    """Refused toward the SINT that was named; on connection 1 the field is ignored."""
    contact = m.InitiateContact(version=Version.V5_0, target_vp=1, target_sint=5)
    guest = ScriptedGuest()
    assert guest.say(contact, multiclient=True) == []
    assert guest.last(act.SendReserved) == act.SendReserved(m.VersionResponse(), 1, 5)
    assert guest.say(contact) == [m.VersionResponse(supported=1, detail=1)]
    assert guest.last(act.SetMessageTarget) == act.SetMessageTarget(1, 2)


def test_another_vtl_counts_on_the_multiclient_connection_from_5_1_on() -> None:
    """Its server would answer, and there is none; on connection 1 the field is ignored."""
    guest = ScriptedGuest()
    assert guest.say(m.InitiateContact(version=Version.V5_1, target_vtl=2), multiclient=True) == []
    assert guest.faults == ["refused_contact"]
    assert guest.state.version is None
    welcome = [m.VersionResponse(supported=1, detail=1)]
    assert guest.say(m.InitiateContact(version=Version.V5_1, target_vtl=2)) == welcome
    assert guest.say(m.InitiateContact(version=Version.V5_0, target_vtl=2), multiclient=True) == welcome


@pytest.mark.parametrize(
    "contact",
    [
        m.InitiateContact(version=Version.V5_3, target_sint=5),
        m.InitiateContact(version=Version.V5_3, target_vtl=2),
        m.InitiateContact(version=Version.V6_0, features=Feature.CLIENT_ID),
    ],
)
def test_a_contact_that_is_not_for_this_server_leaves_the_connection_alone(contact: m.InitiateContact) -> None:
    """Another client's contact on the multiclient connection, and one that cannot be read, are not a new kernel's."""
    guest = ScriptedGuest()
    guest.connect(scsi(1))
    assert guest.say(contact, multiclient=True) == []
    assert guest.state.version == Version.V5_3
    assert 1 in guest.state.channels


def test_one_monitor_page_of_two_is_a_failed_connection() -> None:
    """The version is fine, the state is "unknown failure", and there is no connection; all else is as if it were."""
    guest = ScriptedGuest()
    (answer,) = guest.say(m.InitiateContact(version=Version.V5_3, parent_to_child_monitor_page=0x1000))
    assert answer == m.VersionResponse(supported=1, connection_state=2, detail=1)
    assert guest.state.version is None
    granted = Feature.PAUSE_RESUME
    asked = m.InitiateContact(version=Version.V6_0, features=granted, parent_to_child_monitor_page=0x1000)
    assert guest.say(asked) == [m.VersionResponse2(supported=1, connection_state=2, detail=1, features=granted)]
    asked_4_1 = m.InitiateContactLegacy(version=Version.V4_1, parent_to_child_monitor_page=0x1000)
    assert guest.say(asked_4_1) == [m.VersionResponse(supported=1, connection_state=2, detail=Version.V4_1)]


def test_offers_come_in_a_stable_order_with_the_lowest_ids() -> None:
    """By interface, the host's order, then instance, in whatever order they were made; then ALL_OFFERS_DELIVERED."""
    guest = ScriptedGuest()
    offers = [
        Offer(NETWORK, instance(1)),
        scsi(3),
        scsi(9, order=1),
        scsi(1),
        scsi(8, order=2),
    ]
    for offer in offers:
        assert guest.offer(offer)[1] == []
    guest.contact()
    *offered, end = guest.request_offers()
    assert end == m.AllOffersDelivered()
    seen = [(o.channel_id, o.interface, o.instance) for o in offered if isinstance(o, m.OfferChannel)]
    assert seen == [
        (1, SCSI, instance(9)),
        (2, SCSI, instance(8)),
        (3, SCSI, instance(1)),
        (4, SCSI, instance(3)),
        (5, NETWORK, instance(1)),
    ]


def test_an_offer_on_the_wire() -> None:
    """Dedicated interrupts always, no monitor, the channel's own connection ID."""
    guest = ScriptedGuest()
    guest.connect(Offer(SCSI, instance(7), flags=OfferFlag.NAMED_PIPE_MODE, user_defined=b"\x04" + bytes(119)))
    offer = guest.heard[-2].encode()
    assert len(offer) == 196
    assert offer[:8].hex() == "0100000000000000"
    assert offer[8:24] == bytes(SCSI)
    assert offer[56:61].hex() == "1000000004"
    assert offer[184:].hex() == "01000000ff00010001200000"


def test_flags_of_features_that_were_not_negotiated_are_cleared() -> None:
    guest = ScriptedGuest()
    guest.connect(scsi(1, flags=0x201F))
    offer = guest.heard[-2]
    assert isinstance(offer, m.OfferChannel)
    assert offer.flags == 0x2011


def test_offers_are_requested_once() -> None:
    guest = ScriptedGuest()
    guest.connect(scsi())
    assert guest.request_offers() == []
    assert guest.faults == ["unexpected_message"]


def test_a_later_offer_is_hot_and_one_before_the_request_waits() -> None:
    guest = ScriptedGuest()
    guest.contact()
    assert guest.offer(scsi(1))[1] == []
    guest.request_offers()
    (hot,) = guest.offer(scsi(2))[1]
    assert isinstance(hot, m.OfferChannel)
    assert hot.channel_id == 2


def test_without_a_connection_only_a_contact_is_heard() -> None:
    """Everything else is dropped and counted."""
    guest = ScriptedGuest()
    guest.offer(scsi())
    for message in (m.RequestOffers(), m.OpenChannel(channel_id=1), m.Unload(), m.CloseReservedChannel()):
        assert guest.say(message) == []
    assert guest.faults == ["malformed_message"] * 3 + ["unexpected_message"]


def test_unload_closes_releases_and_says_so_at_the_end() -> None:
    """UNLOAD_COMPLETE comes when the device has stopped and the last view is gone, not before."""
    guest = ScriptedGuest()
    guest.connect(scsi())
    guest.gpadl_and_open()
    guest.prompt = False
    assert guest.say(m.Unload()) == []
    assert guest.state.phase is Phase.DISCONNECTING
    assert guest.settle(guest.last(act.CloseDevice)) == []
    assert guest.settle(guest.last(act.ReleaseGpadl)) == [m.UnloadComplete()]
    assert guest.state.phase is Phase.DISCONNECTED
    assert len(guest.state.gpadls) == 0
    assert guest.last(act.DropChannel) == act.DropChannel(1)


def test_unload_and_reconnect_offer_the_same_ids_again() -> None:
    guest = ScriptedGuest()
    guest.connect(scsi(1), scsi(2))
    guest.gpadl_and_open(2)
    assert guest.say(m.Unload()) == [m.UnloadComplete()]
    guest.contact(Version.V4_0)
    again = guest.request_offers()
    assert [o.channel_id for o in again if isinstance(o, m.OfferChannel)] == [1, 2]
    assert guest.gpadl_and_open(2)[-1] == m.OpenChannelResult(channel_id=2, open_id=2)


def test_channel_ids_given_back_after_unload_are_no_fault() -> None:
    """Linux removes its devices after it has unloaded, and says so. Nothing comes of it, then or later."""
    guest = ScriptedGuest()
    guest.connect(scsi(1))
    assert guest.say(m.Unload()) == [m.UnloadComplete()]
    assert guest.say(m.RelIdReleased(channel_id=1)) == []
    assert guest.faults == []
    guest.contact()
    assert [o.channel_id for o in guest.request_offers() if isinstance(o, m.OfferChannel)] == [1]


def test_a_contact_while_connected_is_a_disconnect_without_unload_complete() -> None:
    """The answer to the new contact waits until all that the old one had is gone."""
    guest = ScriptedGuest()
    guest.connect(scsi())
    guest.gpadl_and_open()
    guest.prompt = False
    assert guest.contact(Version.V4_1) == []
    assert guest.settle(guest.last(act.ReleaseGpadl)) == []
    assert guest.settle(guest.last(act.CloseDevice)) == [m.VersionResponse(supported=1, detail=Version.V4_1)]
    assert guest.state.version == Version.V4_1
    assert not guest.state.offers_sent


def test_while_disconnecting_the_last_wish_counts() -> None:
    """A contact after UNLOAD replaces UNLOAD_COMPLETE; other messages are dropped."""
    guest = ScriptedGuest()
    guest.connect(scsi())
    guest.gpadl_and_open()
    guest.prompt = False
    guest.say(m.Unload())
    assert guest.open() == []
    assert guest.contact(Version.V4_1) == []
    guest.prompt = True
    guest.settle(guest.last(act.CloseDevice))
    assert guest.settle(guest.last(act.ReleaseGpadl)) == [m.VersionResponse(supported=1, detail=Version.V4_1)]
    assert guest.faults == ["unexpected_message"]


def test_reset_says_nothing_and_keeps_the_offers() -> None:
    guest = ScriptedGuest()
    guest.connect(scsi())
    guest.gpadl_and_open()
    assert guest.perform(guest.state.reset()) == []
    assert guest.state.phase is Phase.DISCONNECTED
    assert guest.asked(act.DropMessageTarget)
    guest.contact()
    assert len(guest.request_offers()) == 2


def test_reset_while_a_device_is_still_opening() -> None:
    """The device's late answer is taken back at once, and the reset ends then."""
    guest = ScriptedGuest()
    guest.connect(scsi())
    guest.gpadl()
    guest.prompt = False
    guest.open()
    guest.perform(guest.state.reset())
    guest.settle(guest.last(act.ReleaseGpadl))
    assert guest.state.phase is Phase.DISCONNECTING
    assert guest.settle(guest.last(act.OpenDevice)) == []
    assert guest.settle(guest.last(act.CloseDevice)) == []
    assert guest.state.phase is Phase.DISCONNECTED


def test_pause_holds_back_and_resume_lets_go() -> None:
    """After PAUSE_RESPONSE nothing is sent until RESUME; of the guest nothing else is heard."""
    guest = ScriptedGuest()
    guest.connect(scsi(1), version=Version.V6_0, features=Feature.PAUSE_RESUME)
    assert guest.say(m.Pause()) == [m.PauseResponse()]
    assert guest.offer(scsi(2))[1] == []
    assert guest.gpadl() == []
    assert guest.faults == ["unexpected_message"]
    (offer,) = guest.say(m.Resume())
    assert isinstance(offer, m.OfferChannel)
    assert guest.say(m.Resume()) == []
    assert guest.faults == ["unexpected_message"] * 2


def test_unload_ends_a_pause() -> None:
    guest = ScriptedGuest()
    guest.connect(scsi(1), version=Version.V6_0, features=Feature.PAUSE_RESUME)
    guest.say(m.Pause())
    guest.offer(scsi(2))
    assert guest.say(m.Unload()) == [m.UnloadComplete()]
    assert isinstance(guest.contact()[0], m.VersionResponse)


def test_a_socket_connection_is_refused_from_4_1_on_and_dropped_before() -> None:
    guest = ScriptedGuest()
    request = m.TlConnectRequest(endpoint=instance(1), service=instance(2))
    guest.contact(Version.V4_0)
    assert guest.say(request) == []
    guest.contact(Version.V4_1)
    assert guest.say(request) == [
        m.TlConnectResult(endpoint=instance(1), service=instance(2), status=0xC0000236),
    ]
    assert guest.faults == []


@pytest.mark.parametrize("number", [1, 2, 4, 6, 10, 12, 15, 17, 20, 23, 24, 26, 28])
def test_the_hosts_own_messages_are_refused_from_a_guest(number: int) -> None:
    """A well-formed message that only hosts send is dropped and counted."""
    guest = ScriptedGuest()
    guest.connect(scsi())
    assert guest.say(number.to_bytes(4, "little") + bytes(236)) == []
    assert guest.faults == ["malformed_message"]


def test_there_are_2047_channels_and_no_more() -> None:
    guest = ScriptedGuest()
    for number in range(2047):
        guest.offer(scsi(number))
    with pytest.raises(ValueError, match="2047"):
        guest.offer(scsi(5000))
    guest.contact()
    offers = guest.request_offers()
    assert len(offers) == 2048
    assert {o.channel_id for o in offers if isinstance(o, m.OfferChannel)} == set(range(1, 2048))


def test_an_offer_waits_while_the_guest_holds_every_id() -> None:
    """The guest does not release rescinded channels: a new device waits until one is released."""
    guest = ScriptedGuest()
    handles = guest.connect(*(scsi(number) for number in range(2047)))
    guest.rescind(handles[41])
    assert guest.offer(scsi(5000))[1] == []
    (offer,) = guest.release(42)
    assert isinstance(offer, m.OfferChannel)
    assert (offer.channel_id, offer.instance) == (42, instance(5000))


def test_the_same_device_is_not_offered_twice() -> None:
    guest = ScriptedGuest()
    guest.offer(scsi())
    with pytest.raises(ValueError, match="already"):
        guest.offer(scsi())
