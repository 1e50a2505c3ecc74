"""GPADLs, open, close, modify, rescind and release, message by message."""

from __future__ import annotations

import pytest

from tests.doubles.vmbus_guest import ScriptedGuest, scsi
from vmbus.gpadl import GpadlRange, encode_gpadl, page_range
from vmbus.protocol import messages as m
from vmbus.protocol.identifiers import INTERRUPTS_OFF
from vmbus.protocol.versions import Version
from vmbus.server import actions as act
from vmbus.server.channels import ChannelState
from vmbus.server.gpadls import MAX_GPADL_WORDS, MAX_GPADLS

FAILURE = 0x8000FFFF
GPADL = 0xE1E10


@pytest.fixture
def guest() -> ScriptedGuest:
    guest = ScriptedGuest()
    guest.connect(scsi())
    return guest


def state_of(guest: ScriptedGuest, channel_id: int = 1) -> ChannelState:
    return guest.state.channels[channel_id].state


# ------------------------------------------------------------------------------------------------------------- GPADLs


@pytest.mark.parametrize("pages", [1, 26, 27, 54, 55, 8190])
def test_a_gpadl_of_any_length_is_created(guest: ScriptedGuest, pages: int) -> None:
    """One answer, after the last body."""
    assert guest.gpadl(pages=pages, first=7) == [m.GpadlCreated(channel_id=1, gpadl_id=GPADL)]
    (mapped,) = guest.asked(act.MapGpadl)
    assert mapped == act.MapGpadl(1, GPADL, (page_range(range(7, 7 + pages)),))


def test_pages_that_are_not_the_guests_are_refused_and_the_id_is_free_again(guest: ScriptedGuest) -> None:
    guest.prompt = False
    guest.gpadl()
    assert guest.settle(guest.last(act.MapGpadl), ok=False) == [
        m.GpadlCreated(channel_id=1, gpadl_id=GPADL, status=FAILURE)
    ]
    guest.prompt = True
    assert guest.gpadl() == [m.GpadlCreated(channel_id=1, gpadl_id=GPADL)]


def header(words: list[int], *, ranges: int = 1, length: int | None = None, channel_id: int = 1) -> bytes:
    start = m.GpadlHeader(
        channel_id=channel_id,
        gpadl_id=GPADL,
        byte_length=8 * len(words) if length is None else length,
        range_count=ranges,
    )
    return start.encode() + b"".join(word.to_bytes(8, "little") for word in words)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(header([4096, 1], ranges=0), id="no range"),
        pytest.param(header([]), id="no words"),
        pytest.param(header([0, 1]), id="no bytes"),
        pytest.param(header([0x1000 << 32 | 4096, 1, 2]), id="offset past the first page"),
        pytest.param(header([0xFFF << 32 | 0xFFFFFFFF, 1]), id="32-bit overflow"),
        pytest.param(header([4097, 1]), id="too few page numbers"),
        pytest.param(header([1 << 32 | 4096, 1]), id="offset makes it one page more"),
        pytest.param(header([4096, 1], ranges=2), id="second range missing"),
        pytest.param(header([4096, 1], ranges=0xFFFF), id="many ranges"),
        pytest.param(header([4096, 1, 4096], ranges=2), id="second range without pages"),
        pytest.param(header([4096, 1], channel_id=9), id="unknown channel"),
    ],
)
def test_a_gpadl_without_sense_is_refused_with_an_answer(guest: ScriptedGuest, data: bytes) -> None:
    """The guest waits for GPADL_CREATED whatever it sent, so it always comes."""
    (answer,) = guest.say(data)
    assert isinstance(answer, m.GpadlCreated)
    assert (answer.gpadl_id, answer.status) == (GPADL, FAILURE)
    assert guest.faults == ["refused_gpadl"]
    assert len(guest.state.gpadls) == 0


def test_a_body_that_completes_nonsense_is_answered_too(guest: ScriptedGuest) -> None:
    assert guest.say(header([0], length=16)) == []
    body = m.GpadlBody(gpadl_id=GPADL).encode() + bytes(8)
    assert guest.say(body) == [m.GpadlCreated(channel_id=1, gpadl_id=GPADL, status=FAILURE)]
    assert guest.say(body) == []
    assert guest.faults == ["refused_gpadl", "unexpected_message"]


def test_words_past_the_announced_length_are_ignored(guest: ScriptedGuest) -> None:
    """UEFI posts full-size messages; a length that is no multiple of eight is rounded down."""
    assert guest.say(header([4096, 5, 77, 78], length=23)) == [m.GpadlCreated(channel_id=1, gpadl_id=GPADL)]
    assert guest.last(act.MapGpadl) == act.MapGpadl(1, GPADL, (page_range([5]),))


def test_half_a_word_in_a_message_does_not_count(guest: ScriptedGuest) -> None:
    assert guest.say(header([8192, 5], length=24) + b"\x06\0\0\0") == []
    body = m.GpadlBody(gpadl_id=GPADL).encode() + (7).to_bytes(8, "little")
    assert guest.say(body) == [m.GpadlCreated(channel_id=1, gpadl_id=GPADL)]
    assert guest.last(act.MapGpadl) == act.MapGpadl(1, GPADL, (page_range([5, 7]),))


def test_several_ranges(guest: ScriptedGuest) -> None:
    ranges = [GpadlRange(100, 4000, (1, 2)), page_range([9, 8])]
    assert guest.gpadl_ranges(ranges) == [m.GpadlCreated(channel_id=1, gpadl_id=GPADL)]
    assert guest.last(act.MapGpadl) == act.MapGpadl(1, GPADL, tuple(ranges))


def test_an_id_in_use_is_refused_and_what_has_it_stays(guest: ScriptedGuest) -> None:
    guest.gpadl()
    assert guest.gpadl() == [m.GpadlCreated(channel_id=1, gpadl_id=GPADL, status=FAILURE)]
    assert guest.open()[0] == m.OpenChannelResult(channel_id=1, open_id=1)


def test_one_id_on_two_channels_is_legal_but_not_while_unfinished() -> None:
    """GPADL_BODY names no channel."""
    guest = ScriptedGuest()
    guest.connect(scsi(1), scsi(2))
    first, *bodies = encode_gpadl(1, GPADL, [page_range(range(30))])
    other, _ = encode_gpadl(2, GPADL, [page_range(range(30))])
    assert guest.say(first) == []
    assert guest.say(other) == [m.GpadlCreated(channel_id=2, gpadl_id=GPADL, status=FAILURE)]
    assert guest.say(bodies[0]) == [m.GpadlCreated(channel_id=1, gpadl_id=GPADL)]
    assert guest.gpadl(2) == [m.GpadlCreated(channel_id=2, gpadl_id=GPADL)]
    assert guest.teardown(2) == [m.GpadlTorndown(gpadl_id=GPADL)]
    assert guest.open(1)[0] == m.OpenChannelResult(channel_id=1, open_id=1)


def test_an_unfinished_gpadl_does_not_survive_its_channel(guest: ScriptedGuest) -> None:
    """Its ID is free after the release, and a late body meets nothing."""
    first, body = encode_gpadl(1, GPADL, [page_range(range(30))])
    guest.say(first)
    guest.release()
    assert len(guest.state.gpadls) == 0
    assert guest.say(body) == []


def test_teardown_waits_for_the_last_view(guest: ScriptedGuest) -> None:
    guest.gpadl_and_open()
    guest.prompt = False
    assert guest.teardown() == []
    assert guest.teardown() == []
    assert guest.settle(guest.last(act.ReleaseGpadl)) == [m.GpadlTorndown(gpadl_id=GPADL)]
    assert guest.teardown() == []
    assert guest.faults == ["unexpected_message"] * 2


def test_a_guest_cannot_have_more_than_so_many_gpadls(guest: ScriptedGuest) -> None:
    for number in range(MAX_GPADLS):
        assert guest.gpadl(gpadl_id=number, pages=1)[0].encode()[16:] == bytes(4)
    assert guest.gpadl(gpadl_id=MAX_GPADLS, pages=1)[0].encode()[16:] != bytes(4)
    guest.teardown(gpadl_id=0)
    assert guest.gpadl(gpadl_id=MAX_GPADLS, pages=1)[0].encode()[16:] == bytes(4)


def test_promised_words_count_against_the_limit(guest: ScriptedGuest) -> None:
    """A guest cannot reserve without end by headers alone."""
    number = 0
    while guest.state.gpadls.words + 8191 <= MAX_GPADL_WORDS:
        number += 1
        message = m.GpadlHeader(channel_id=1, gpadl_id=number, byte_length=0xFFFF, range_count=1)
        assert guest.say(message) == []
    refused = m.GpadlHeader(channel_id=1, gpadl_id=number + 1, byte_length=0xFFFF, range_count=1)
    assert guest.say(refused) == [m.GpadlCreated(channel_id=1, gpadl_id=number + 1, status=FAILURE)]


# ------------------------------------------------------------------------------------------------------ open and close


def test_open_hands_the_device_what_the_guest_said(guest: ScriptedGuest) -> None:
    guest.gpadl(pages=8, first=0x40)
    message = m.OpenChannel(
        channel_id=1, open_id=77, gpadl_id=GPADL, target_vp=3, downstream_page=5, user_data=b"\x01" + bytes(119)
    )
    assert guest.say(message) == [m.OpenChannelResult(channel_id=1, open_id=77)]
    assert guest.last(act.OpenDevice) == act.OpenDevice(
        1, 1, page_range(range(0x40, 0x48)), GPADL, 5, 3, b"\x01" + bytes(119), Version.V5_3, 0x2001, 1
    )
    assert state_of(guest) is ChannelState.OPEN


@pytest.mark.parametrize("downstream", [0, 1, 7, 8, 9, 0xFFFFFFFF])
def test_each_ring_has_a_control_page_and_a_data_page(guest: ScriptedGuest, downstream: int) -> None:
    guest.gpadl(pages=8)
    assert guest.open(downstream=downstream) == [m.OpenChannelResult(channel_id=1, open_id=1, status=FAILURE)]
    assert state_of(guest) is ChannelState.CLOSED
    assert guest.open(downstream=2)[0] == m.OpenChannelResult(channel_id=1, open_id=1)


@pytest.mark.parametrize(
    "ranges",
    [
        [GpadlRange(4 * 4096, 8, (1, 2, 3, 4, 5))],
        [GpadlRange(4 * 4096 - 8, 0, (1, 2, 3, 4))],
        [page_range([1, 2]), page_range([3, 4])],
    ],
)
def test_rings_are_one_range_of_whole_pages(guest: ScriptedGuest, ranges: list[GpadlRange]) -> None:
    guest.gpadl_ranges(ranges)
    assert guest.open(downstream=2) == [m.OpenChannelResult(channel_id=1, open_id=1, status=FAILURE)]


def test_open_without_its_gpadl_fails(guest: ScriptedGuest) -> None:
    assert guest.open() == [m.OpenChannelResult(channel_id=1, open_id=1, status=FAILURE)]
    assert guest.faults == ["refused_open"]


def test_a_device_that_cannot_open_leaves_the_channel_closed(guest: ScriptedGuest) -> None:
    guest.gpadl()
    guest.prompt = False
    guest.open()
    assert guest.settle(guest.last(act.OpenDevice), ok=False) == [
        m.OpenChannelResult(channel_id=1, open_id=1, status=FAILURE)
    ]
    assert state_of(guest) is ChannelState.CLOSED
    guest.prompt = True
    assert guest.open()[0] == m.OpenChannelResult(channel_id=1, open_id=1)


def test_open_is_an_error_where_it_is_open_or_opening(guest: ScriptedGuest) -> None:
    """Logged, not answered."""
    guest.gpadl()
    guest.prompt = False
    guest.open()
    assert guest.open() == []
    guest.settle(guest.last(act.OpenDevice))
    assert guest.open() == []
    assert guest.faults == ["unexpected_message"] * 2


def test_close_has_no_answer_and_the_channel_opens_again(guest: ScriptedGuest) -> None:
    guest.gpadl_and_open()
    assert guest.close() == []
    assert guest.open() == [m.OpenChannelResult(channel_id=1, open_id=1)]
    assert guest.faults == []


def test_close_is_an_error_where_nothing_is_open(guest: ScriptedGuest) -> None:
    guest.close()
    guest.gpadl()
    guest.prompt = False
    guest.open()
    guest.close()
    guest.settle(guest.last(act.OpenDevice))
    guest.close()
    guest.close()
    assert guest.faults == ["unexpected_message"] * 3
    assert len(guest.asked(act.CloseDevice)) == 1


def test_open_while_the_device_is_still_closing_waits_for_it(guest: ScriptedGuest) -> None:
    """There is no message that tells a guest when a close is done, so this is legal."""
    guest.gpadl_and_open()
    guest.prompt = False
    guest.close()
    assert guest.open() == []
    assert state_of(guest) is ChannelState.CLOSING_REOPEN
    assert guest.open() == []
    assert guest.close() == []
    assert guest.release() == []
    assert guest.faults == ["unexpected_message"] * 3
    assert guest.settle(guest.last(act.CloseDevice)) == []
    assert guest.settle(guest.last(act.OpenDevice)) == [m.OpenChannelResult(channel_id=1, open_id=1)]


# -------------------------------------------------------------------------------------------------------------- modify


def test_modify_moves_the_interrupts_and_is_answered_from_5_3_on(guest: ScriptedGuest) -> None:
    guest.gpadl_and_open()
    assert guest.modify(vp=2) == [m.ModifyChannelResponse(channel_id=1)]
    assert guest.last(act.RetargetChannel) == act.RetargetChannel(1, 2)
    assert guest.state.channels[1].target_vp == 2


def test_modify_that_cannot_be_done_is_answered_with_failure(guest: ScriptedGuest) -> None:
    failure = m.ModifyChannelResponse(channel_id=1, status=FAILURE)
    assert guest.modify() == [failure]
    guest.gpadl_and_open()
    assert guest.modify(vp=INTERRUPTS_OFF) == [failure]
    assert guest.modify(9) == [m.ModifyChannelResponse(channel_id=9, status=FAILURE)]
    guest.prompt = False
    guest.modify(vp=99)
    assert guest.settle(guest.last(act.RetargetChannel), ok=False) == [failure]
    assert guest.state.channels[1].target_vp == 0


def test_a_channel_without_interrupts_cannot_be_given_them(guest: ScriptedGuest) -> None:
    guest.gpadl()
    guest.open(vp=INTERRUPTS_OFF)
    assert guest.modify() == [m.ModifyChannelResponse(channel_id=1, status=FAILURE)]


def test_modify_is_not_answered_before_5_3() -> None:
    guest = ScriptedGuest()
    guest.connect(scsi(), version=Version.V5_2)
    guest.gpadl_and_open()
    assert guest.modify(vp=2) == []
    assert guest.modify(9) == []
    assert guest.state.channels[1].target_vp == 2


def test_modify_while_one_is_under_way() -> None:
    """From 5.3 on the second is dropped; before, the last one is done next."""
    for version, targets in ((Version.V5_3, [1]), (Version.V5_2, [1, 3])):
        guest = ScriptedGuest()
        guest.connect(scsi(), version=version)
        guest.gpadl_and_open()
        guest.prompt = False
        for vp in (1, 2, 3):
            guest.modify(vp=vp)
        guest.prompt = True
        guest.settle(guest.last(act.RetargetChannel))
        assert [a.target_vp for a in guest.asked(act.RetargetChannel) if isinstance(a, act.RetargetChannel)] == targets


# ----------------------------------------------------------------------------------------------- rescind and release


def test_rescind_and_release_free_the_id() -> None:
    guest = ScriptedGuest()
    first, _ = guest.connect(scsi(1), scsi(2))
    assert guest.rescind(first) == [m.RescindChannelOffer(channel_id=1)]
    assert guest.offer(scsi(3))[1][0].encode()[184:188] == (3).to_bytes(4, "little")
    assert guest.release() == []
    assert guest.offer(scsi(4))[1][0].encode()[184:188] == (1).to_bytes(4, "little")


def test_what_linux_does_with_a_rescinded_open_channel(guest: ScriptedGuest) -> None:
    """CLOSE_CHANNEL, no teardown, REL_ID_RELEASED: no answer to any, no fault, and everything is free."""
    guest.gpadl_and_open()
    assert guest.rescind(1) == [m.RescindChannelOffer(channel_id=1)]
    assert guest.close() == []
    assert guest.release() == []
    assert guest.faults == []
    assert not guest.state.channels
    assert len(guest.state.gpadls) == 0
    assert not guest.state.offers


def test_the_device_stops_at_the_rescind_and_the_id_waits_for_it(guest: ScriptedGuest) -> None:
    guest.gpadl_and_open()
    guest.prompt = False
    guest.rescind(1)
    assert guest.release() == []
    assert state_of(guest) is ChannelState.CLOSING_CLIENT_RELEASE
    guest.settle(guest.last(act.ReleaseGpadl))
    assert guest.asked(act.DropChannel) == []
    guest.settle(guest.last(act.CloseDevice))
    assert guest.asked(act.DropChannel) == [act.DropChannel(1)]
    assert not guest.state.channels


def test_gpadls_on_a_rescinded_channel_are_answered_by_the_bus_itself(guest: ScriptedGuest) -> None:
    """The guest's driver may be in the middle of its work: it must not wait for ever, and no page is looked at."""
    guest.gpadl(gpadl_id=1)
    guest.rescind(1)
    guest.actions.clear()
    assert guest.gpadl(gpadl_id=2) == [m.GpadlCreated(channel_id=1, gpadl_id=2)]
    assert guest.asked(act.MapGpadl) == []
    assert guest.state.gpadl_ranges(1, 1) is not None
    assert guest.state.gpadl_ranges(1, 2) is None, "a device that is still stopping cannot reach pages nobody checked"
    assert guest.open(gpadl_id=2) == []
    assert guest.teardown(gpadl_id=2) == [m.GpadlTorndown(gpadl_id=2)]
    assert guest.teardown(gpadl_id=1) == [m.GpadlTorndown(gpadl_id=1)]
    assert guest.faults == []


def test_what_is_pending_is_answered_before_the_rescind(guest: ScriptedGuest) -> None:
    """First GPADL_CREATED with failure, then GPADL_TORNDOWN, then RESCIND."""
    guest.gpadl(gpadl_id=1)
    guest.prompt = False
    guest.gpadl(gpadl_id=2)
    guest.teardown(gpadl_id=1)
    assert guest.rescind(1) == [m.GpadlCreated(channel_id=1, gpadl_id=2, status=FAILURE)]
    assert guest.settle(guest.last(act.ReleaseGpadl)) == [
        m.GpadlTorndown(gpadl_id=1),
        m.RescindChannelOffer(channel_id=1),
    ]
    assert guest.settle(guest.last(act.MapGpadl)) == []
    assert guest.settle(guest.last(act.ReleaseGpadl)) == []
    assert len(guest.state.gpadls) == 0


def test_a_rescind_while_opening_takes_the_open_back(guest: ScriptedGuest) -> None:
    guest.gpadl()
    guest.prompt = False
    guest.open()
    assert guest.rescind(1) == [m.RescindChannelOffer(channel_id=1)]
    assert guest.settle(guest.last(act.OpenDevice)) == []
    assert guest.settle(guest.last(act.CloseDevice)) == []
    assert state_of(guest) is ChannelState.REVOKED


def test_a_rescind_of_what_the_guest_does_not_know_is_silent() -> None:
    guest = ScriptedGuest()
    handle, _ = guest.offer(scsi())
    assert guest.rescind(handle) == []
    with pytest.raises(KeyError):
        guest.rescind(handle)


def test_subchannels_go_before_their_primary(guest: ScriptedGuest) -> None:
    guest.offer(scsi(1, subchannel_index=1))
    guest.offer(scsi(2))
    guest.offer(scsi(1, subchannel_index=2))
    assert guest.rescind(1) == [
        m.RescindChannelOffer(channel_id=2),
        m.RescindChannelOffer(channel_id=4),
        m.RescindChannelOffer(channel_id=1),
    ]


def test_a_device_that_comes_back_keeps_its_id(guest: ScriptedGuest) -> None:
    """Offered again before the release: the guest hears of it with the release, under the same ID."""
    guest.offer(scsi(2))
    guest.rescind(1)
    assert guest.offer(scsi(1)) == (3, [])
    assert state_of(guest) is ChannelState.REOFFERED
    guest.rescind(2)
    guest.release(2)
    (offer,) = guest.release(1)
    assert isinstance(offer, m.OfferChannel)
    assert offer.channel_id == 1
    assert guest.gpadl_and_open()[-1] == m.OpenChannelResult(channel_id=1, open_id=1)
    opened = guest.last(act.OpenDevice)
    assert isinstance(opened, act.OpenDevice)
    assert opened.handle == 3


def test_a_device_that_comes_back_waits_for_its_past_life(guest: ScriptedGuest) -> None:
    guest.gpadl_and_open()
    guest.prompt = False
    guest.rescind(1)
    guest.offer(scsi(1))
    assert guest.release() == []
    guest.settle(guest.last(act.ReleaseGpadl))
    (offer,) = guest.settle(guest.last(act.CloseDevice))
    assert isinstance(offer, m.OfferChannel)
    assert offer.channel_id == 1


def test_a_device_that_came_back_and_left_again(guest: ScriptedGuest) -> None:
    """The guest was told already; the release ends it."""
    guest.rescind(1)
    handle, _ = guest.offer(scsi(1))
    assert guest.rescind(handle) == []
    assert guest.release() == []
    assert not guest.state.offers


def test_a_release_of_an_offered_channel_ends_it_until_the_next_connection(guest: ScriptedGuest) -> None:
    assert guest.release() == []
    assert guest.open() == []
    assert guest.release() == []
    assert guest.faults == ["unexpected_message"] * 2
    guest.contact()
    assert len(guest.request_offers()) == 2


def test_release_is_an_error_while_open(guest: ScriptedGuest) -> None:
    guest.gpadl_and_open()
    assert guest.release() == []
    assert state_of(guest) is ChannelState.OPEN
    assert guest.faults == ["unexpected_message"]


def test_release_while_closing_frees_the_id_when_the_device_has_stopped(guest: ScriptedGuest) -> None:
    guest.gpadl_and_open()
    guest.teardown()
    guest.prompt = False
    guest.close()
    guest.release()
    assert state_of(guest) is ChannelState.CLOSING_CLIENT_RELEASE
    guest.settle(guest.last(act.CloseDevice))
    assert not guest.state.channels


def test_pages_of_a_released_channel_come_back_in_silence(guest: ScriptedGuest) -> None:
    guest.gpadl()
    guest.prompt = False
    assert guest.release() == []
    assert guest.settle(guest.last(act.ReleaseGpadl)) == []
    assert not guest.state.channels
