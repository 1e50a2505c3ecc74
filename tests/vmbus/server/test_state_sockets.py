"""TL_CONNECT in the pure state machine: requests, answers, what stands in the way of a socket, and its end."""

from __future__ import annotations

import pytest

from hypervisor.wire import Guid
from tests.doubles.vmbus_guest import SCSI, ScriptedGuest, instance, scsi
from vmbus.protocol import messages as m
from vmbus.protocol.features import Feature
from vmbus.protocol.hvsocket import MAX_SOCKETS, OFFER_FLAGS, service_of, user_defined
from vmbus.protocol.versions import Version
from vmbus.server import actions as act
from vmbus.server.channels import ChannelState
from vmbus.server.offers import Offer

PORT = service_of(80)
REFUSED = m.TlConnectResult(endpoint=instance(9), service=PORT, status=0xC0000236)


def socket_offer(endpoint: Guid, *, accept: bool = False) -> Offer:
    return Offer(PORT, endpoint, flags=OFFER_FLAGS, user_defined=user_defined(is_for_guest_accept=accept))


def request(guest: ScriptedGuest) -> act.ConnectSocket:
    """The guest asks, and the service has not answered."""
    guest.prompt = False
    assert guest.say(m.TlConnectRequest(endpoint=instance(9), service=PORT)) == []
    guest.prompt = True
    asked = guest.last(act.ConnectSocket)
    assert isinstance(asked, act.ConnectSocket)
    return asked


@pytest.mark.parametrize("kind", [m.TlConnectRequest, m.TlConnectRequest2])
def test_a_request_is_an_action(kind: type[m.TlConnectRequest]) -> None:
    """In either length; a success is told by the offer alone."""
    guest = ScriptedGuest(prompt=False)
    guest.connect(version=Version.V5_2)
    assert guest.say(kind(endpoint=instance(9), service=PORT)) == []
    (asked,) = guest.asked(act.ConnectSocket)
    assert asked == act.ConnectSocket(1, instance(9), PORT)
    assert list(guest.state.connects) == [1]
    _, (offer,) = guest.offer(socket_offer(instance(9)))
    assert isinstance(offer, m.OfferChannel)
    assert (offer.interface, offer.instance, offer.flags, offer.channel_id) == (PORT, instance(9), 0x2011, 1)
    assert offer.user_defined[:10] == bytes.fromhex("00000000 00 00 01000000")
    assert guest.perform(guest.state.connect_answered(1, refused=False)) == []
    assert not guest.state.connects


@pytest.mark.parametrize(("version", "answer"), [(Version.V4_0, []), (Version.V4_1, [REFUSED])])
def test_a_refusal(version: Version, answer: list[m.TlConnectResult]) -> None:
    """Told with both GUIDs from 4.1 on, once."""
    guest = ScriptedGuest()
    guest.connect(version=version)
    asked = request(guest)
    assert guest.perform(guest.state.connect_answered(asked.number, refused=True)) == answer
    assert guest.perform(guest.state.connect_answered(asked.number, refused=True)) == []


def test_a_long_request_where_only_the_short_one_is_known() -> None:
    """Below 5.2 the silo behind it is not looked at."""
    guest = ScriptedGuest()
    guest.connect(version=Version.V5_1)
    long = m.TlConnectRequest2(endpoint=instance(9), service=PORT, silo=instance(1))
    assert guest.say(long) == [REFUSED]
    assert guest.faults == []


@pytest.mark.parametrize("length", [8, 24, 39])
def test_a_request_that_is_too_short(length: int) -> None:
    """Is no request."""
    guest = ScriptedGuest()
    guest.connect()
    assert guest.say(m.TlConnectRequest(endpoint=instance(9), service=PORT).encode()[:length]) == []
    assert guest.faults == ["malformed_message"]


def test_a_request_without_a_connection() -> None:
    """After UNLOAD, or before a contact, nobody is asked."""
    guest = ScriptedGuest()
    guest.say(m.TlConnectRequest(endpoint=instance(9), service=PORT))
    guest.connect()
    guest.say(m.Unload())
    guest.say(m.TlConnectRequest(endpoint=instance(9), service=PORT))
    assert guest.asked(act.ConnectSocket) == []
    assert len(guest.faults) == 2


def test_requests_end_with_their_guest() -> None:
    """What is answered later says nothing to the guest that came since."""
    guest = ScriptedGuest()
    guest.connect()
    asked = request(guest)
    guest.say(m.Unload())
    guest.connect()
    assert not guest.state.connects
    assert guest.perform(guest.state.connect_answered(asked.number, refused=True)) == []


def test_a_paused_guest_hears_of_it_later() -> None:
    """Offers and refusals are held, as everything is."""
    guest = ScriptedGuest()
    guest.connect(version=Version.V6_0, features=Feature.PAUSE_RESUME)
    asked = request(guest)
    guest.say(m.Pause())
    assert guest.perform(guest.state.connect_answered(asked.number, refused=True)) == []
    assert guest.say(m.Resume()) == [REFUSED]


def test_what_stands_in_the_way_of_a_socket() -> None:
    """Each has its words: the version, another device's instance, a live endpoint, the limit, no channel left."""
    guest = ScriptedGuest()
    assert guest.state.socket_refusal(instance(9)) == ""
    guest.connect(scsi(1), version=Version.V3_0)
    assert "version 3.0" in guest.state.socket_refusal(instance(9))
    guest.connect(version=Version.V5_3)
    assert guest.state.socket_refusal(instance(1)) == f"its endpoint {instance(1)} is that of scsi1"
    handle, _ = guest.offer(socket_offer(instance(9)))
    assert f"its endpoint {instance(9)} is that of" in guest.state.socket_refusal(instance(9))
    guest.rescind(handle)
    assert guest.state.socket_refusal(instance(9)) == "", "the one before is withdrawn, though the guest has its ID"
    for number in range(MAX_SOCKETS - 1):
        guest.offer(socket_offer(instance(0x1000 + number)))
    assert guest.state.sockets == MAX_SOCKETS
    assert guest.state.socket_refusal(instance(9)) == "1024 sockets are the limit of a guest"
    guest.say(m.RelIdReleased(channel_id=2))
    assert guest.state.socket_refusal(instance(9)) == ""
    for number in range(2047 - len(guest.state.channels)):
        guest.offer(scsi(0x2000 + number))
    assert guest.state.socket_refusal(instance(9)) == "its guest has all 2047 channels in use"


def test_an_endpoint_again_before_the_last_is_released() -> None:
    """The guest still holds the ID of the withdrawn one: the new offer comes with its release, under the same ID."""
    guest = ScriptedGuest()
    guest.connect()
    handle, _ = guest.offer(socket_offer(instance(9)))
    assert guest.rescind(handle) == [m.RescindChannelOffer(channel_id=1)]
    asked = request(guest)
    assert guest.offer(socket_offer(instance(9)))[1] == []
    assert guest.perform(guest.state.connect_answered(asked.number, refused=False)) == []
    (offer,) = guest.say(m.RelIdReleased(channel_id=1))
    assert isinstance(offer, m.OfferChannel)
    assert (offer.channel_id, offer.instance) == (1, instance(9))


@pytest.mark.parametrize("way", ["unload", "contact", "reset", "released by hand"])
def test_sockets_do_not_outlive_their_guest(way: str) -> None:
    """Devices are offered to the next guest; sockets, open or not, are gone with the one they belonged to."""
    guest = ScriptedGuest()
    guest.connect(scsi(1))
    guest.offer(socket_offer(instance(8)))
    guest.gpadl(2, 0x77)
    guest.say(m.OpenChannel(channel_id=2, gpadl_id=0x77, downstream_page=4))
    guest.offer(socket_offer(instance(9), accept=True))
    assert guest.state.channels[2].state is ChannelState.OPEN
    match way:
        case "unload":
            guest.say(m.Unload())
        case "contact":
            guest.contact()
        case "reset":
            guest.perform(guest.state.reset())
        case _:
            guest.say(m.CloseChannel(channel_id=2))
            guest.say(m.GpadlTeardown(channel_id=2, gpadl_id=0x77))
            for channel_id in (2, 3):
                guest.say(m.RelIdReleased(channel_id=channel_id))
            guest.say(m.Unload())
    assert guest.state.sockets == 0
    assert [str(channel.offer) for channel in guest.state.offers.values()] == ["scsi1"]
    if way != "contact":
        guest.contact()
    first, last = guest.request_offers()
    assert isinstance(first, m.OfferChannel)
    assert first.interface == SCSI
    assert last == m.AllOffersDelivered()


def test_an_open_that_nobody_waits_for_is_hurried() -> None:
    """A device that is still being prepared hears of a rescind and of a guest that leaves; its answer is due anyway."""
    guest = ScriptedGuest()
    guest.connect()
    handle, _ = guest.offer(socket_offer(instance(9)))
    guest.gpadl(1, 0x77)
    guest.prompt = False
    guest.say(m.OpenChannel(channel_id=1, gpadl_id=0x77, downstream_page=4))
    opening = guest.last(act.OpenDevice)
    assert guest.rescind(handle) == [m.RescindChannelOffer(channel_id=1)]
    assert guest.asked(act.StopOpening) == [act.StopOpening(1)]
    assert guest.settle(opening, ok=False) == []
    assert guest.state.channels[1].state is ChannelState.REVOKED
    guest.prompt = True
    guest.say(m.GpadlTeardown(channel_id=1, gpadl_id=0x77))
    guest.say(m.RelIdReleased(channel_id=1))
    assert not guest.state.channels
