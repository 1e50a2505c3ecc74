"""The client's protocol: what it posts, in which order, and what it makes of the host's answers. Child side."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.wire import Guid
from vmbus.client import state as s
from vmbus.client.state import ChannelPhase, ClientState, Output, Phase, Post, VmbusError
from vmbus.gpadl import page_range
from vmbus.protocol import IMPLEMENTED, Feature, Version
from vmbus.protocol import messages as m

FAILURE = 0x8000_FFFF
PAGES = [page_range(range(0x6008, 0x6010))]
FIRST = 0xE1E10


def posts(outputs: Sequence[Output]) -> list[tuple[int, str]]:
    return [(post.connection_id, post.payload.hex()) for post in outputs if isinstance(post, Post)]


def say(state: ClientState, message: m.Message) -> list[Output]:
    return state.receive(message.encode())


def connected(version: int = Version.V5_3, *, features: int = 0, connection: int = 4) -> ClientState:
    """A client on that version with channel 5 on offer."""
    state = ClientState([version], features=features)
    state.connect()
    if version >= Version.V6_0:
        say(state, m.VersionResponse2(supported=1, detail=connection, features=features))
    else:
        say(state, m.VersionResponse(supported=1, detail=connection))
    say(state, offer(5))
    return state


def offer(channel_id: int, connection_id: int = 0x10005) -> m.OfferChannel:
    return m.OfferChannel(
        interface=Guid(b"i" * 16), instance=Guid(b"o" * 16), channel_id=channel_id, connection_id=connection_id
    )


def created(gpadl_id: int = FIRST, status: int = 0, channel_id: int = 5) -> m.GpadlCreated:
    return m.GpadlCreated(channel_id=channel_id, gpadl_id=gpadl_id, status=status)


def opened(status: int = 0, channel_id: int = 5, open_id: int = 5) -> m.OpenChannelResult:
    return m.OpenChannelResult(channel_id=channel_id, open_id=open_id, status=status)


def begin_open(state: ClientState) -> list[Output]:
    return state.open(5, FIRST, downstream_page=4, user_data=b"", target_vp=0)


def open_channel(state: ClientState) -> None:
    state.create_gpadl(5, PAGES)
    say(state, created())
    begin_open(state)
    say(state, opened())
    assert state.channel_phase(5) is ChannelPhase.OPEN


# --------------------------------------------------------------------------------------------------------- connection


def test_versions_are_tried_highest_first() -> None:
    """From 6.0 down, each once, on connection 4 from 5.0 on and on 1 below; when all are refused the attempt ends."""
    state = ClientState()
    outputs = state.connect()
    tried = []
    while isinstance(outputs[0], Post):
        assert outputs[0].is_contact
        contact = m.InitiateContact.decode(outputs[0].payload)
        tried.append((contact.version, outputs[0].connection_id))
        outputs = say(state, m.VersionResponse(supported=0))
    assert tried == [(version, 4 if version >= Version.V5_0 else 1) for version in IMPLEMENTED]
    assert [version for version, _ in tried] == sorted(IMPLEMENTED, reverse=True)
    assert isinstance(outputs[0], s.ConnectionFailed)
    assert "6.0, 5.3" in outputs[0].reason
    assert state.phase is Phase.DISCONNECTED


def test_without_connection_4_versions_below_5_are_tried() -> None:
    """Where the hypervisor knows no connection 4, each 5.x and 6.x fails at once and 4.1 goes out on connection 1."""
    state = ClientState()
    outputs = state.connect()
    for _ in range(5):
        outputs = state.contact_impossible()
    assert posts(outputs)[0][0] == 1
    assert m.InitiateContactLegacy.decode(outputs[0].payload).version == Version.V4_1  # type: ignore[union-attr]


def test_contact_bytes() -> None:
    """INITIATE_CONTACT has 40 bytes, SINT 2 where 5.0 and later have it, an interrupt page of zero below."""
    assert posts(ClientState([Version.V5_3]).connect()) == [
        (4, "0e000000000000000300050000000000020000000000000000000000000000000000000000000000")
    ]
    assert posts(ClientState([Version.V4_1]).connect()) == [
        (1, "0e000000000000000100040000000000000000000000000000000000000000000000000000000000")
    ]


def test_connected_asks_for_offers_where_the_host_says() -> None:
    """The connection ID in the answer is used from 5.0 on (Linux recorded 0x77); below, messages go to 1."""
    state = ClientState([Version.V5_3])
    state.connect()
    outputs = state.receive(bytes.fromhex("0f000000000000000100000077000000"))
    assert outputs[0] == s.Connected(Version.V5_3, 0)
    assert posts(outputs) == [(0x77, "0300000000000000")]
    state = ClientState([Version.V4_0])
    state.connect()
    outputs = say(state, m.VersionResponse(supported=1, detail=Version.V4_0))
    assert posts(outputs) == [(1, "0300000000000000")]


def test_features_count_at_6_0_only() -> None:
    """Features and client ID are asked for at 6.0 only; what is granted without having been asked for is not had."""
    client = Guid("00112233-4455-6677-8899-aabbccddeeff")
    state = ClientState([Version.V6_0, Version.V5_3], features=Feature.PAUSE_RESUME, client_id=client)
    contact = m.InitiateContact2.decode(posts_payload(state.connect()))
    assert contact.features == Feature.PAUSE_RESUME | Feature.CLIENT_ID
    assert contact.client_id == client
    outputs = say(state, m.VersionResponse(supported=0))
    assert len(posts_payload(outputs)) == 40
    assert m.InitiateContact.decode(posts_payload(outputs)).features == 0
    state = ClientState([Version.V6_0], features=Feature.PAUSE_RESUME)
    state.connect()
    say(state, m.VersionResponse2(supported=1, detail=4, features=Feature.PAUSE_RESUME | Feature.GPA_PINNING))
    assert state.features == Feature.PAUSE_RESUME


def posts_payload(outputs: Sequence[Output]) -> bytes:
    assert isinstance(outputs[0], Post)
    return outputs[0].payload


def test_supported_but_failed() -> None:
    """A supported version with a connection state other than 0 is a failure, not a reason to try a lower one."""
    state = ClientState()
    state.connect()
    (outputs,) = say(state, m.VersionResponse(supported=1, connection_state=1))
    assert isinstance(outputs, s.ConnectionFailed)


# ------------------------------------------------------------------------------------------------------------- offers


def test_offers_and_the_end_of_them() -> None:
    """Offers come out as they came in; one whose ID is in use, or cannot be, is dropped."""
    state = connected()
    (event,) = say(state, offer(6, connection_id=0x2006))
    assert isinstance(event, s.Offered)
    assert (event.offer.channel_id, event.offer.connection_id) == (6, 0x2006)
    assert say(state, m.AllOffersDelivered()) == [s.OffersDelivered()]
    for wrong in (6, 0, 2048, 0xFFFF_FFFF):
        assert say(state, offer(wrong)) == []
    assert [known.channel_id for known in state.offers] == [5, 6]
    assert state.ignored.total() == 4


def test_rescind_of_a_closed_channel() -> None:
    """The ID is given back at once, and the same ID may be offered anew."""
    state = connected()
    outputs = say(state, m.RescindChannelOffer(channel_id=5))
    assert isinstance(outputs[0], s.Rescinded)
    assert posts(outputs) == [(4, "0d0000000000000005000000")]
    assert state.offers == []
    assert say(state, m.RescindChannelOffer(channel_id=5)) == []
    assert len(say(state, offer(5))) == 1


def test_rescind_of_an_open_channel() -> None:
    """CLOSE, then RELEASE; the GPADL goes without a teardown, as Linux does it."""
    state = connected()
    open_channel(state)
    outputs = say(state, m.RescindChannelOffer(channel_id=5))
    assert isinstance(outputs[0], s.Rescinded)
    assert outputs[0].gpadls == (FIRST,)
    assert [payload[:2] for _, payload in posts(outputs)] == ["07", "0d"]
    assert state.teardown_gpadl(FIRST) == [s.GpadlGone(FIRST)]
    assert state.close(5) == []


# ----------------------------------------------------------------------------------------------------- GPADLs and open


def test_gpadl_bytes_as_linux_sends_them() -> None:
    """An eight-page GPADL on channel 5 is byte for byte what Linux posted; IDs count from 0xE1E10."""
    state = connected(connection=0x77)
    gpadl_id, outputs = state.create_gpadl(5, PAGES)
    assert gpadl_id == FIRST
    assert posts(outputs) == [
        (
            0x77,
            "080000000000000005000000101e0e00480001000080000000000000086000000000000009600000000000000a6000000000"
            "00000b600000000000000c600000000000000d600000000000000e600000000000000f60000000000000",
        )
    ]
    assert state.create_gpadl(5, PAGES)[0] == FIRST + 1


def test_long_gpadl_needs_bodies() -> None:
    """100 pages take a header and three bodies, in order."""
    _, outputs = connected().create_gpadl(5, [page_range(range(100))])
    assert [payload[:2] for _, payload in posts(outputs)] == ["08", "09", "09", "09"]


def test_open_bytes_as_linux_sends_them() -> None:
    """OPEN_CHANNEL has 148 bytes, the open ID is the channel ID, user data is padded."""
    state = connected()
    state.create_gpadl(5, PAGES)
    say(state, created())
    ((_, payload),) = posts(begin_open(state))
    assert payload == "05000000000000000500000005000000101e0e000000000004000000" + "00" * 120


def test_open_with_signal_parameters() -> None:
    """Where they were negotiated OPEN_CHANNEL has 156 bytes and names the offer's connection and the usual flag."""
    state = connected(Version.V6_0, features=Feature.GUEST_SPECIFIED_SIGNAL_PARAMETERS)
    state.create_gpadl(5, PAGES)
    say(state, created())
    longer = m.OpenChannel2.decode(posts_payload(begin_open(state)))
    assert (longer.connection_id, longer.event_flag, longer.open_flags) == (0x10005, 5, 0)


def test_open_and_close() -> None:
    """CLOSE is posted before the teardown; the pages are ours again when the host says so."""
    state = connected()
    open_channel(state)
    with pytest.raises(RuntimeError, match="open already"):
        begin_open(state)
    assert [payload[:2] for _, payload in posts(state.close(5))] == ["07", "0b"]
    assert state.channel_phase(5) is ChannelPhase.CLOSED
    assert say(state, m.GpadlTorndown(gpadl_id=FIRST)) == [s.GpadlGone(FIRST)]
    assert state.close(5) == []


def test_refused_gpadl() -> None:
    """A refused GPADL is gone at once: there is nothing to tear down."""
    state = connected()
    state.create_gpadl(5, PAGES)
    assert say(state, created(status=FAILURE)) == [s.GpadlAnswered(FIRST, FAILURE), s.GpadlGone(FIRST)]
    assert state.teardown_gpadl(FIRST) == [s.GpadlGone(FIRST)]


def test_refused_open() -> None:
    """After a refused open the ring GPADL is torn down and the channel may be opened again."""
    state = connected()
    state.create_gpadl(5, PAGES)
    say(state, created())
    begin_open(state)
    outputs = say(state, opened(status=FAILURE))
    assert outputs[0] == s.OpenAnswered(5, FAILURE)
    assert [payload[:2] for _, payload in posts(outputs)] == ["0b"]
    assert state.channel_phase(5) is ChannelPhase.CLOSED


def test_given_up_while_creating() -> None:
    """A GPADL that nobody wants any more is torn down when the host has created it, not before."""
    state = connected()
    state.create_gpadl(5, PAGES)
    assert state.teardown_gpadl(FIRST) == []
    assert state.teardown_gpadl(FIRST) == []
    assert [payload[:2] for _, payload in posts(say(state, created()))] == ["0b"]
    assert say(state, m.GpadlTorndown(gpadl_id=FIRST)) == [s.GpadlGone(FIRST)]


def test_given_up_while_opening() -> None:
    """A channel that nobody wants any more is closed when the host has opened it; CLOSE sooner would be an error."""
    state = connected()
    state.create_gpadl(5, PAGES)
    say(state, created())
    begin_open(state)
    assert state.close(5) == []
    with pytest.raises(RuntimeError, match="abandoned"):
        begin_open(state)
    assert [payload[:2] for _, payload in posts(say(state, opened()))] == ["07", "0b"]


def test_wishes_for_what_is_not_there() -> None:
    """A channel that is not on offer is the host's doing, so it is a `VmbusError`."""
    state = connected()
    with pytest.raises(VmbusError):
        state.create_gpadl(9, PAGES)
    with pytest.raises(VmbusError):
        state.open(9, FIRST, downstream_page=4, user_data=b"", target_vp=0)


# ------------------------------------------------------------------------------------------------- unload and reconnect


def test_unload_and_reconnect() -> None:
    """After UNLOAD only the host's answer counts; then nothing is left and a new connection may be made."""
    state = connected()
    open_channel(state)
    assert posts(state.unload()) == [(4, "1000000000000000")]
    assert say(state, offer(7)) == []
    assert say(state, m.UnloadComplete()) == [s.GpadlGone(FIRST), s.Unloaded()]
    assert state.phase is Phase.DISCONNECTED
    assert state.offers == []
    assert isinstance(state.connect()[0], Post)
    say(state, m.VersionResponse(supported=1, detail=4))
    assert state.phase is Phase.CONNECTED


# ------------------------------------------------------------------------------------------------------------ nonsense


@pytest.mark.parametrize(
    "message",
    [
        m.VersionResponse(supported=1),
        m.UnloadComplete(),
        created(gpadl_id=FIRST + 9),
        created(channel_id=6),
        opened(channel_id=6),
        opened(open_id=6),
        m.GpadlTorndown(gpadl_id=FIRST),
        m.RescindChannelOffer(channel_id=9),
        m.ModifyChannelResponse(channel_id=5),
    ],
    ids=lambda message: type(message).__name__,
)
def test_answers_to_nothing(message: m.Message) -> None:
    """An answer that nothing asked for, or that does not match what was asked, changes nothing and is counted."""
    state = connected()
    state.create_gpadl(5, PAGES)
    assert say(state, message) == []
    assert state.ignored.total() == 1
    assert say(state, created()) == [s.GpadlAnswered(FIRST, 0)]


@pytest.mark.parametrize(
    "payload", [b"", b"\x01", bytes(8), b"\x63" + bytes(7), m.RequestOffers().encode(), b"\x06" + bytes(11)]
)
def test_malformed(payload: bytes) -> None:
    """Short, unknown and misdirected messages are dropped, as Linux does."""
    state = connected()
    assert state.receive(payload) == []
    assert state.ignored.total() == 1
    assert state.receive(b"") == []


def test_disconnected_hears_nothing() -> None:
    """Without a connection nothing the host says counts."""
    state = ClientState()
    assert say(state, offer(5)) == []
    assert state.ignored.total() == 1


messages = st.one_of(
    st.binary(max_size=240),
    st.builds(
        lambda kind, rest: bytes([kind, 0, 0, 0, 0, 0, 0, 0]) + rest, st.integers(0, 32), st.binary(max_size=232)
    ),
    st.builds(
        lambda kind, channel, second, status: (
            kind.to_bytes(8, "little")
            + channel.to_bytes(4, "little")
            + second.to_bytes(4, "little")
            + status.to_bytes(4, "little")
        ),
        st.sampled_from([2, 6, 10, 12, 15, 17]),
        st.sampled_from([5, 6, FIRST]),
        st.sampled_from([5, FIRST, FIRST + 1]),
        st.sampled_from([0, FAILURE]),
    ),
)
wishes = st.sampled_from(["gpadl", "teardown", "open", "close"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(messages, wishes), max_size=30))
def test_any_messages_between_any_wishes(steps: list[bytes | str]) -> None:
    """Whatever the host says and a driver wants, only `VmbusError` and `RuntimeError` of the wishes come out."""
    state = connected()
    for step in steps:
        try:
            match step:
                case bytes():
                    state.receive(step)
                case "gpadl":
                    state.create_gpadl(5, PAGES)
                case "teardown":
                    state.teardown_gpadl(FIRST)
                case "open":
                    begin_open(state)
                case _:
                    state.close(5)
        except (VmbusError, RuntimeError):
            assert isinstance(step, str)
