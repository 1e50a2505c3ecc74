"""Hyper-V sockets at the host's end: real rings and channels, a guest made of method calls, the virtual clock."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from hypervisor.wire import Guid
from tests.doubles.socket_guest import REFUSED, SocketGuest, endpoint, socket_guest
from vmbus.pipe import BytePipe
from vmbus.protocol import messages as m
from vmbus.protocol.hvsocket import OFFER_FLAGS, SocketParameters, service_of
from vmbus.protocol.versions import Version
from vmbus.ring import Packet, PacketType
from vmbus.server.socket_stream import HostSocket
from vmbus.server.sockets import Reached, SocketListeners, SocketRefused

PORT = service_of(80)
OTHER = Guid("ee59b4bf-a573-48d0-9c51-bb0e72c2b139")


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([piece async for piece in stream])


async def hold(stream: HostSocket) -> None:
    """A listener that says nothing."""
    await trio.sleep_forever()


async def connected(guest: SocketGuest, nursery: trio.Nursery) -> tuple[HostSocket, BytePipe, int]:
    """The host connects, the guest opens: both ends, and the channel."""
    found: list[HostSocket] = []

    async def connect() -> None:
        found.append(await guest.server.connect(PORT))

    nursery.start_soon(connect)
    await trio.testing.wait_all_tasks_blocked()
    offer = guest.offers()[-1]
    assert await guest.open(offer.channel_id) == [
        m.OpenChannelResult(channel_id=offer.channel_id, open_id=offer.channel_id)
    ]
    return found[0], BytePipe(guest.channels[offer.channel_id]), offer.channel_id


# --- the guest connects


async def test_a_guest_connects_to_a_listener(autojump_clock: trio.testing.MockClock) -> None:
    """Offer with the service as interface and the endpoint as instance; the listener has the stream once it is open."""
    async with socket_guest() as guest:

        async def upper(stream: HostSocket) -> None:
            assert (stream.service, stream.endpoint) == (PORT, endpoint(5))
            await stream.send_all((await read_all(stream)).upper())

        guest.server.listen(PORT, upper)
        (offer,) = await guest.ask(5, PORT)
        assert isinstance(offer, m.OfferChannel)
        assert (offer.interface, offer.instance, offer.flags) == (PORT, endpoint(5), OFFER_FLAGS)
        assert SocketParameters.decode(offer.user_defined) == SocketParameters(is_for_guest_accept=0)
        assert await guest.open(1) == [m.OpenChannelResult(channel_id=1, open_id=1)]
        pipe = BytePipe(guest.channels[1])
        await pipe.send_all(b"hello")
        await pipe.send_eof()
        assert await read_all(pipe) == b"HELLO"
        await trio.testing.wait_all_tasks_blocked()
        assert guest.rescinded() == [1]
        await guest.let_go(1)
        guest.nothing_left()


@pytest.mark.parametrize("kind", [m.TlConnectRequest, m.TlConnectRequest2])
async def test_nobody_listens(kind: type[m.TlConnectRequest]) -> None:
    """Refused with both GUIDs from 4.1 on, in either length, and silently before."""
    async with socket_guest(boot=False) as guest:
        await guest.boot(Version.V5_2)
        request = kind(endpoint=endpoint(1), service=PORT)
        refused = m.TlConnectResult(endpoint=endpoint(1), service=PORT, status=REFUSED)
        assert await guest.say(request) == [refused]
        assert guest.trace.warnings[7, "socket_refused"] == 1
        await guest.boot(Version.V4_0)
        assert await guest.say(request) == []
        guest.nothing_left()


async def test_below_4_0_there_are_no_sockets() -> None:
    """The guest's request is no message there, and the host is told why its own cannot be made."""
    async with socket_guest(boot=False) as guest:
        guest.server.listen(PORT, BytePipe.aclose)
        await guest.boot(Version.V3_0)
        assert await guest.ask(1, PORT) == []
        assert guest.server.counters["malformed_message"] == 1
        with pytest.raises(SocketRefused, match=r"port 80: its bus has version 3\.0; sockets come with 4\.0"):
            await guest.server.connect(PORT)


async def test_a_guest_that_never_opens(autojump_clock: trio.testing.MockClock) -> None:
    """Five seconds after its request the offer is withdrawn; then it can ask again, with the same endpoint."""
    async with socket_guest() as guest:
        guest.server.listen(PORT, hold)
        began = trio.current_time()
        await guest.ask(1, PORT)
        with trio.move_on_after(4.9):
            await trio.sleep_forever()
        assert guest.rescinded() == []
        await trio.sleep(0.2)
        assert guest.rescinded() == [1]
        assert trio.current_time() - began == pytest.approx(5.1)
        assert guest.server.sockets.live == {}
        await guest.ask(1, PORT)  # it holds the ID still, and gets it anew when it lets go
        assert len(guest.offers()) == 1
        await guest.let_go(1)
        assert [offer.channel_id for offer in guest.offers()] == [1, 1]
        assert await guest.open(1) == [m.OpenChannelResult(channel_id=1, open_id=1)]


async def test_an_endpoint_twice(autojump_clock: trio.testing.MockClock) -> None:
    """A second request with the endpoint of a live connection is refused and does not touch the first."""
    async with socket_guest() as guest:
        for service in (PORT, OTHER):
            guest.server.listen(service, hold)
        await guest.ask(1, PORT)
        for service in (PORT, OTHER):
            refused = m.TlConnectResult(endpoint=endpoint(1), service=service, status=REFUSED)
            assert await guest.ask(1, service) == [refused]
        assert await guest.open(1) == [m.OpenChannelResult(channel_id=1, open_id=1)]
        assert await guest.ask(1, PORT) == [m.TlConnectResult(endpoint=endpoint(1), service=PORT, status=REFUSED)]
        assert len(guest.server.sockets.live) == 1


async def test_a_listener_is_reached_before_the_guest_is_told(autojump_clock: trio.testing.MockClock) -> None:
    """OPEN_RESULT waits for it. One that cannot be reached fails the open, and then the offer goes."""
    answer: trio.Event | OSError = trio.Event()
    closed: list[str] = []

    class Program:
        async def serve(self, stream: HostSocket) -> None:
            await stream.send_all(b"here")

        def close(self) -> None:
            closed.append("program")

    async def reach() -> Reached:
        if isinstance(answer, OSError):
            raise answer
        await answer.wait()
        return Program()

    async with socket_guest(listeners=SocketListeners(lambda service: reach if service == PORT else None)) as guest:
        await guest.ask(1, PORT)
        assert await guest.open(1) == []
        answer.set()
        await trio.testing.wait_all_tasks_blocked()
        assert guest.heard()[-1] == m.OpenChannelResult(channel_id=1, open_id=1)
        assert await read_all(BytePipe(guest.channels[1])) == b"here"
        await trio.testing.wait_all_tasks_blocked()
        await guest.let_go(1)
        assert closed == ["program"]
        answer = ConnectionRefusedError(111, "Connection refused")
        await guest.ask(2, PORT)
        assert await guest.open(1) == [
            m.OpenChannelResult(channel_id=1, open_id=1, status=0x8000FFFF),
            m.RescindChannelOffer(channel_id=1),
        ]
        await guest.let_go(1)
        answer = trio.Event()  # never set
        await guest.ask(3, PORT)
        assert await guest.open(1) == []
        await trio.sleep(5)
        await trio.testing.wait_all_tasks_blocked()
        assert guest.heard()[-2:] == [
            m.OpenChannelResult(channel_id=1, open_id=1, status=0x8000FFFF),
            m.RescindChannelOffer(channel_id=1),
        ]
        await guest.let_go(1)
        guest.nothing_left()


async def test_a_guest_that_gives_up_while_the_listener_is_reached(autojump_clock: trio.testing.MockClock) -> None:
    """UNLOAD, a reset and a new contact do not wait for it."""

    async def reach() -> Reached:
        await trio.sleep_forever()
        raise AssertionError

    async with socket_guest(listeners=SocketListeners(lambda service: reach)) as guest:
        began = trio.current_time()
        for number in range(3):
            await guest.ask(number, PORT)
            assert await guest.open(1) == []
            guest.end()
            match number:
                case 0:
                    assert await guest.say(m.Unload()) == [m.UnloadComplete()]
                case 1:
                    await guest.server.reset()
                case _:
                    pass
            await guest.boot()
            guest.nothing_left()
        assert trio.current_time() == began


async def test_sixteen_requests_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """While as many are not answered, no message of the guest's is read; then all are."""
    async with socket_guest() as guest:
        released = trio.Event()
        original = type(guest.server.sockets)._from_guest

        async def slow(self: object, *request: object) -> None:
            await released.wait()
            await original(self, *request)  # type: ignore[arg-type]

        monkeypatch.setattr(type(guest.server.sockets), "_from_guest", slow)
        requests = [m.TlConnectRequest(endpoint=endpoint(number), service=PORT) for number in range(40)]
        gpadl = m.GpadlHeader(channel_id=9, gpadl_id=1, byte_length=16, range_count=1).encode() + bytes(16)
        assert await guest.say(*requests, gpadl) == []
        assert len(guest.server._state.connects) == 16
        assert guest.server.use().messages_waiting == 25
        released.set()
        await trio.testing.wait_all_tasks_blocked()
        answers = guest.heard()[2:]
        refused = [
            m.TlConnectResult(endpoint=endpoint(number), service=PORT, status=REFUSED).encode() for number in range(40)
        ]
        answers.remove(m.GpadlCreated(channel_id=9, gpadl_id=1, status=0x8000FFFF))
        assert sorted(answer.encode() for answer in answers) == sorted(refused)


async def test_a_request_of_a_guest_that_has_left() -> None:
    """No answer to it reaches the next guest, and no offer."""
    async with socket_guest() as guest:
        guest.server.listen(PORT, BytePipe.aclose)
        request = m.TlConnectRequest(endpoint=endpoint(1), service=PORT)
        said = await guest.say(request, m.Unload(), m.initiate_contact(Version.V5_3), m.RequestOffers())
        assert [type(one) for one in said] == [m.UnloadComplete, m.VersionResponse, m.AllOffersDelivered]
        guest.nothing_left()


async def test_the_limit_of_sockets(monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock) -> None:
    """Past it both directions are refused with words, and one that ends makes room."""
    monkeypatch.setattr("vmbus.server.sockets.MAX_SOCKETS", 3)
    monkeypatch.setattr("vmbus.server.state.MAX_SOCKETS", 3)
    async with socket_guest() as guest:
        guest.server.listen(PORT, hold)
        for number in range(3):
            await guest.ask(number, PORT)
        assert await guest.ask(9, PORT) == [m.TlConnectResult(endpoint=endpoint(9), service=PORT, status=REFUSED)]
        with pytest.raises(SocketRefused, match="port 80: 3 sockets are the limit of a guest"):
            await guest.server.connect(PORT)
        await trio.sleep(5.1)
        assert sorted(guest.rescinded()) == [1, 2, 3]
        # What it has not let go of counts, since it has the IDs.
        assert await guest.ask(9, PORT) == [m.TlConnectResult(endpoint=endpoint(9), service=PORT, status=REFUSED)]
        await guest.let_go(2)
        (offer,) = await guest.ask(9, PORT)
        assert isinstance(offer, m.OfferChannel)


async def test_listeners_that_take_their_time_count(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """A guest that connects and closes, over and over, cannot pile them up in the host."""
    monkeypatch.setattr("vmbus.server.sockets.MAX_SOCKETS", 3)
    async with socket_guest() as guest:
        guest.server.listen(PORT, hold)
        for number in range(3):
            await guest.ask(number, PORT)
            await guest.open(1)
            await guest.close(1)
        assert guest.server.channels == {}
        assert await guest.ask(9, PORT) == [m.TlConnectResult(endpoint=endpoint(9), service=PORT, status=REFUSED)]


# --- the host connects


async def test_the_host_connects(autojump_clock: trio.testing.MockClock) -> None:
    """An offer with an endpoint of the host's making, for the guest to accept; bytes both ways, an end of each."""
    async with socket_guest() as guest, trio.open_nursery() as nursery:
        stream, pipe, channel_id = await connected(guest, nursery)
        (offer,) = guest.offers()
        assert (offer.interface, offer.instance, offer.flags) == (PORT, stream.endpoint, OFFER_FLAGS)
        assert SocketParameters.decode(offer.user_defined).is_for_guest_accept == 1
        await stream.send_all(b"question")
        await stream.send_eof()
        assert await read_all(pipe) == b"question"
        await pipe.send_all(b"answer")
        await pipe.send_eof()
        assert await read_all(stream) == b"answer"
        assert guest.rescinded() == []
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert guest.rescinded() == [channel_id]
        await guest.let_go(channel_id)
        guest.nothing_left()


async def test_nothing_in_the_guest_listens(autojump_clock: trio.testing.MockClock) -> None:
    """A guest that does not open has two seconds; one that lets go of the channel has said no at once."""
    async with socket_guest() as guest:
        began = trio.current_time()
        with pytest.raises(SocketRefused, match="port 80: nothing in its guest took it within 2 s"):
            await guest.server.connect(PORT)
        assert trio.current_time() - began == pytest.approx(2)
        await trio.testing.wait_all_tasks_blocked()
        assert guest.rescinded() == [1]
        await guest.let_go(1)

        async def refuse() -> None:
            await trio.testing.wait_all_tasks_blocked()
            await guest.let_go(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse)
            with pytest.raises(SocketRefused, match="port 80: nothing in its guest listens there"):
                await guest.server.connect(PORT)
        assert trio.current_time() - began == pytest.approx(2)
        guest.nothing_left()


async def test_a_guest_that_is_not_on_its_bus(autojump_clock: trio.testing.MockClock) -> None:
    """It may come within the two seconds; if it does not, the error says so."""
    async with socket_guest(boot=False) as guest, trio.open_nursery() as nursery:
        with pytest.raises(SocketRefused, match="port 80: its guest was not on its bus within 2 s"):
            await guest.server.connect(PORT)
        nursery.start_soon(guest.boot)
        stream, _, _ = await connected(guest, nursery)
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_whoever_waits_for_a_connection_may_go(autojump_clock: trio.testing.MockClock) -> None:
    """A cancelled connect leaves nothing behind, whether or not the guest has opened by then."""
    async with socket_guest() as guest:
        with trio.move_on_after(1):
            await guest.server.connect(PORT)
        await trio.testing.wait_all_tasks_blocked()
        assert guest.rescinded() == [1]
        assert await guest.open(1) == []  # it had not heard
        await guest.let_go(1)
        guest.nothing_left()


# --- how it ends


async def test_what_was_sent_before_the_close_arrives(autojump_clock: trio.testing.MockClock) -> None:
    """The guest gets all of it, and the end, before the offer goes; `aclose` does not wait for that."""
    async with socket_guest() as guest, trio.open_nursery() as nursery:
        stream, pipe, channel_id = await connected(guest, nursery)
        data = bytes(range(256)) * 32
        for start in range(0, len(data), 2048):
            await stream.send_all(data[start : start + 2048])
        await stream.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"more")
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()
        await trio.sleep(4)
        (first,) = guest.channels[channel_id].try_receive_batch(1)
        for _ in range(3):
            await trio.sleep(4)
            assert guest.rescinded() == [], "a guest that takes some is patient"
            (more,) = guest.channels[channel_id].try_receive_batch(1)
            first = Packet(6, 0, 0, 0, first.body + more.body[8:])
        assert first.body[8:] == data
        assert await read_all(pipe) == b""
        await trio.testing.wait_all_tasks_blocked()
        assert guest.rescinded() == [channel_id]


@pytest.mark.parametrize("full", [False, True])
async def test_a_guest_that_takes_nothing(autojump_clock: trio.testing.MockClock, full: bool) -> None:
    """Five seconds after it has taken the last the host lets go, even where not even the end had room."""
    async with socket_guest() as guest, trio.open_nursery() as nursery:
        stream, _, channel_id = await connected(guest, nursery)
        with trio.move_on_after(1):
            await stream.send_all(bytes(1 << 20 if full else 1000))
        began = trio.current_time()
        await stream.aclose()
        await trio.sleep(4.9)
        assert guest.rescinded() == []
        await trio.sleep(0.2)
        assert guest.rescinded() == [channel_id]
        assert trio.current_time() - began == pytest.approx(5.1)


async def test_what_a_guest_sent_before_it_closed_arrives(autojump_clock: trio.testing.MockClock) -> None:
    """Its channel is gone at once, and what was in the ring is received all the same, then the end."""
    async with socket_guest() as guest, trio.open_nursery() as nursery:
        stream, pipe, channel_id = await connected(guest, nursery)
        data = bytes(range(256)) * 32
        await pipe.send_all(data)
        await guest.close(channel_id)
        guest.nothing_left()
        assert await read_all(stream) == data
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"too late")
        await stream.aclose()


async def test_a_close_wakes_the_host(autojump_clock: trio.testing.MockClock) -> None:
    """A receiver gets the end, a sender that waits for room is told."""
    async with socket_guest() as guest, trio.open_nursery() as nursery:
        stream, _, channel_id = await connected(guest, nursery)
        ends: list[str] = []

        async def receive() -> None:
            assert await stream.receive_some() == b""
            ends.append("receiver")

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(bytes(1 << 20))
            ends.append("sender")

        nursery.start_soon(receive)
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        await guest.close(channel_id)
        assert sorted(ends) == ["receiver", "sender"]
        guest.nothing_left()


async def test_a_listener_may_take_longer_than_the_guest(autojump_clock: trio.testing.MockClock) -> None:
    """It is not cancelled when the guest goes, only when the bus ends; it counts as live until it is done."""
    async with socket_guest() as guest:
        got: list[bytes] = []

        async def slow(stream: HostSocket) -> None:
            data = await read_all(stream)
            await trio.sleep(60)
            got.append(data)

        guest.server.listen(PORT, slow)
        await guest.ask(1, PORT)
        await guest.open(1)
        await BytePipe(guest.channels[1]).send_all(b"the order")
        await guest.close(1)
        assert guest.server.channels == {}
        assert len(guest.server.sockets.live) == 1
        await trio.sleep(61)
        assert got == [b"the order"]
        guest.nothing_left()


@pytest.mark.parametrize("way", ["unload", "contact", "reset"])
async def test_a_guest_that_leaves_takes_its_sockets_along(way: str, autojump_clock: trio.testing.MockClock) -> None:
    """Open ones, those that it was to open and those that the host is making; the next guest sees none of them."""
    async with socket_guest() as guest, trio.open_nursery() as nursery:
        guest.server.listen(PORT, hold)
        stream, _, _ = await connected(guest, nursery)
        await guest.ask(1, PORT)
        refused: list[str] = []

        async def connect() -> None:
            with pytest.raises(SocketRefused) as caught:
                await guest.server.connect(PORT)
            refused.append(str(caught.value))

        nursery.start_soon(connect)
        await trio.testing.wait_all_tasks_blocked()
        assert len(guest.offers()) == 3
        began = trio.current_time()
        guest.end()
        match way:
            case "unload":
                assert await guest.say(m.Unload()) == [m.UnloadComplete()]
                assert refused == ["port 80: its guest left the bus"]
            case "contact":
                await guest.say(m.initiate_contact(Version.V5_3))
                assert refused == ["port 80: its guest left the bus"]
            case _:
                await guest.server.reset()
                await trio.testing.wait_all_tasks_blocked()
                assert refused == ["port 80: its guest was reset"]
        assert await stream.receive_some() == b""
        await stream.aclose()
        await guest.boot()
        assert len(guest.offers()) == 3, "no old one is offered to the next guest"
        guest.nothing_left()
        assert trio.current_time() == began
        nursery.cancel_scope.cancel()


async def test_the_end_of_the_bus_ends_everything(autojump_clock: trio.testing.MockClock) -> None:
    """Streams that others hold end; connects that wait are refused."""
    async with trio.open_nursery() as nursery:
        async with socket_guest() as guest:
            stream, pipe, _ = await connected(guest, nursery)
            await pipe.send_all(b"last words")
            refused: list[str] = []

            async def connect() -> None:
                with pytest.raises(SocketRefused, match="port 80: its VM is off") as caught:
                    await guest.server.connect(PORT)
                refused.append(str(caught.value))

            nursery.start_soon(connect)
            await trio.testing.wait_all_tasks_blocked()
        assert await read_all(stream) == b"last words"
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"hello?")
        await trio.testing.wait_all_tasks_blocked()
        assert refused


async def test_a_channel_is_opened_once(autojump_clock: trio.testing.MockClock) -> None:
    """A guest that closes its end and opens it again gets no second stream out of one connection."""
    async with socket_guest() as guest, trio.open_nursery() as nursery:
        stream, _, channel_id = await connected(guest, nursery)
        guest.channels.pop(channel_id).close()
        again = m.OpenChannel(channel_id=channel_id, open_id=9, gpadl_id=0xE0000 + channel_id, downstream_page=4)
        assert m.OpenChannelResult(channel_id=channel_id, open_id=9, status=0) not in await guest.say(
            m.CloseChannel(channel_id=channel_id), again
        )
        assert await stream.receive_some() == b""
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert guest.rescinded() == [channel_id]
        assert guest.server.sockets.live == {}


# --- what goes over it


async def test_bytes_after_the_end_of_the_stream_are_nobodys(autojump_clock: trio.testing.MockClock) -> None:
    """The host has heard the end; what comes behind it does no harm and is not received."""
    async with socket_guest() as guest, trio.open_nursery() as nursery:
        stream, pipe, channel_id = await connected(guest, nursery)
        await pipe.send_all(b"all")
        await pipe.send_eof()
        await guest.channels[channel_id].send(Packet(PacketType.INBAND, 0, 0, 0, b"\1\0\0\0\4\0\0\0more"))
        assert await read_all(stream) == b"all"
        assert await stream.receive_some() == b""
        await stream.send_all(b"yes")
        assert await pipe.receive_some() == b"yes"
        await stream.aclose()


@pytest.mark.parametrize(
    "body",
    [b"", b"\1\0\0\0\xff\0\0\0hello", b"\2\0\0\0\5\0\6\0hello", b"\3\0\0\0\5\0\0\0hello", bytes(16)],
)
async def test_nonsense_in_the_stream(body: bytes, autojump_clock: trio.testing.MockClock) -> None:
    """Whoever receives is told that it is broken, never by an error of the wire; the trace has what it was."""
    async with socket_guest() as guest, trio.open_nursery() as nursery:
        stream, _, channel_id = await connected(guest, nursery)
        await guest.channels[channel_id].send(Packet(PacketType.INBAND, 0, 0, 0, body))
        with pytest.raises(trio.BrokenResourceError, match="the guest's end of this stream"):
            await stream.receive_some()
        assert guest.trace.warnings[7, "socket_broken"] == 1
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert guest.rescinded() == [channel_id]


async def test_a_nonsensical_ring(autojump_clock: trio.testing.MockClock) -> None:
    """Indices that cannot be end this connection and no other."""
    async with socket_guest() as guest, trio.open_nursery() as nursery:
        first, _, first_id = await connected(guest, nursery)
        second, pipe, _ = await connected(guest, nursery)
        gpn = 0x10 + first_id * 8
        guest.memory.write(gpn * 4096, b"\xff\xff\xff\xff")
        guest.ports.event_handlers[0x2000 | first_id]()
        with pytest.raises(trio.BrokenResourceError):
            await first.receive_some()
        await first.aclose()
        await pipe.send_all(b"fine")
        assert await second.receive_some() == b"fine"
        await second.aclose()


async def test_inspect_shows_connections(autojump_clock: trio.testing.MockClock) -> None:
    """Service, state, bytes both ways and age of each; what was made and refused."""
    async with socket_guest() as guest, trio.open_nursery() as nursery:
        stream, pipe, channel_id = await connected(guest, nursery)
        await stream.send_all(b"12345")
        await pipe.send_all(b"123")
        await stream.receive_some()
        await trio.sleep(3)
        seen = guest.server.sockets.live[1].inspect().children
        assert {key: seen[key] for key in ("service", "from", "state", "channel")} == {
            "service": "port 80",
            "from": "host",
            "state": "open",
            "channel": channel_id,
        }
        assert (seen["bytes_to_guest"], seen["bytes_from_guest"]) == (5, 3)
        assert seen["age"] == pytest.approx(3)
        whole = guest.server.sockets.inspect().children
        assert (whole["live"], whole["made"], whole["refused"]) == (1, 1, 0)
        await stream.aclose()


def test_one_listener_a_service() -> None:
    """A second one is a mistake of the host's; after a close the service is free."""
    listeners = SocketListeners()
    with listeners.listen(PORT, BytePipe.aclose):
        with pytest.raises(ValueError, match="somebody listens on port 80 already"):
            listeners.listen(PORT, BytePipe.aclose)
        assert listeners.find(PORT) is not None
    assert listeners.find(PORT) is None
    listeners.listen(PORT, BytePipe.aclose).close()
