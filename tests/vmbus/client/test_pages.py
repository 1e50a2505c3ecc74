"""The client and its pages: what its contact says, offers with a monitor ID, MODIFY_CHANNEL, UNLOAD at 0.13."""

from __future__ import annotations

import pytest

from tests.doubles.guest_platform import FIRST_PAGE, FakePlatform
from tests.vmbus.client.test_state import connected, offer, open_channel, posts, say
from vmbus.client import state as s
from vmbus.client.pages import ClientPages
from vmbus.client.state import ClientState, OfferedDevice, Phase, VmbusError
from vmbus.protocol import IMPLEMENTED, Version
from vmbus.protocol import messages as m
from vmbus.protocol.pages import ConnectionPages
from vmbus.protocol.versions import Ability, abilities

PAGES = ConnectionPages(0x10000, 0x11000, 0x12000)


def test_contact_bytes_with_pages() -> None:
    """As Linux sends them: the interrupt page in every contact below 5.0, the monitor pages in all."""
    for version, connection, words in (
        (Version.V5_3, 4, "0e00000000000000 0300050000000000 0200000000000000 0010010000000000 0020010000000000"),
        (Version.V4_1, 1, "0e00000000000000 0100040000000000 0000010000000000 0010010000000000 0020010000000000"),
        (Version.V0_13, 1, "0e00000000000000 0d00000000000000 0000010000000000 0010010000000000 0020010000000000"),
    ):
        state = ClientState([version])
        state.pages = PAGES
        assert posts(state.connect()) == [(connection, words.replace(" ", ""))]


@pytest.mark.parametrize("version", IMPLEMENTED)
def test_what_an_offer_says_of_signals(version: Version) -> None:
    """0.13 has one connection for all, whatever the offer has in those fields; the monitor ID counts everywhere."""
    state = connected(version)
    state.pages = PAGES
    said = m.OfferChannel(channel_id=9, connection_id=0x2009, monitor_id=39, monitor_allocated=1)
    (made,) = say(state, said)
    assert isinstance(made, s.Offered)
    known = made.offer
    dedicated = version >= Version.V1_1
    assert (known.dedicated, known.connection_id) == (dedicated, 0x2009 if dedicated else 2)
    assert known.monitor_id == 39


def test_a_monitor_id_that_cannot_be() -> None:
    """Not allocated, past 127, or without pages to set it in: signals it is."""
    for pages, monitor_id, allocated in ((PAGES, 3, 0), (PAGES, 128, 1), (ConnectionPages(), 3, 1)):
        state = connected()
        state.pages = pages
        (made,) = say(state, m.OfferChannel(channel_id=9, monitor_id=monitor_id, monitor_allocated=allocated))
        assert isinstance(made, s.Offered)
        assert made.offer.monitor_id is None


def _offered(**more: object) -> OfferedDevice:
    kind = offer(7)
    return OfferedDevice(7, kind.interface, kind.instance, 0, bytes(120), 0, 0, 0x2007, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [Version.V0_13, Version.V1_1, Version.V2_4])
@pytest.mark.parametrize("dedicated", [True, False])
@pytest.mark.parametrize("monitor_id", [None, 39])
def test_how_the_host_is_woken(version: Version, dedicated: bool, monitor_id: int | None) -> None:
    """A trigger in place of a hypercall (ID 39: byte 16 is 80h); a bit of the second half where nothing else tells."""
    platform = FakePlatform()
    pages = ClientPages(platform)
    start = FIRST_PAGE << 12
    assert pages.pages == ConnectionPages(start, start + 0x1000, start + 0x2000)
    pages.signal(_offered(dedicated=dedicated, monitor_id=monitor_id), abilities(version))()
    expected = bytearray(3 << 12)
    if monitor_id is not None:
        expected[0x2000 + 16] = 0x80
    if Ability.INTERRUPT_PAGE in abilities(version) and not dedicated:
        expected[0x800] = 0x80
    assert bytes(platform.memory[start : start + len(expected)]) == bytes(expected)
    assert platform.signals == ([0x2007] if monitor_id is None else [])
    pages.close()
    assert platform.allocated == {}


def test_the_oldest_version_leaves_without_an_answer() -> None:
    """Once UNLOAD is posted the connection is over; from 1.1 on it is with the host's answer."""
    state = connected(Version.V0_13)
    outputs = state.unload()
    assert posts(outputs) == [(1, "1000000000000000")]
    assert outputs[-1] == s.Unloaded()
    assert state.phase is Phase.DISCONNECTED
    state = connected(Version.V1_1)
    assert s.Unloaded() not in state.unload()
    assert say(state, m.UnloadComplete())[-1] == s.Unloaded()


@pytest.mark.parametrize("version", IMPLEMENTED)
def test_modify_channel(version: Version) -> None:
    """From 4.1 on; one answer is taken for each question, from 5.3 on, and none is before that."""
    state = connected(version)
    open_channel(state)
    if version < Version.V4_1:
        with pytest.raises(VmbusError):
            state.modify(5, 1)
        return
    (post,) = posts(state.modify(5, 1))
    assert post[1] == "16000000000000000500000001000000"
    answer = m.ModifyChannelResponse(channel_id=5, status=0)
    if version < Version.V5_3:
        assert say(state, answer) == []
    else:
        assert say(state, answer) == [s.ModifyAnswered(5, 0)]
        assert say(state, answer) == []
        with pytest.raises(VmbusError):
            state.modify(6, 0)
