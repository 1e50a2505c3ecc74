"""Hyper-V sockets and a guest that does with them what it likes: the host's users hear of ends, and nothing is left."""

from __future__ import annotations

import random
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles.campaign import examples
from tests.doubles.socket_guest import RING_PAGES, SocketGuest, endpoint, socket_guest
from vmbus.pipe import BytePipe, frame
from vmbus.protocol import messages as m
from vmbus.protocol.hvsocket import MAX_CONNECT_REQUESTS, MAX_SOCKETS, service_of
from vmbus.protocol.versions import Version
from vmbus.ring import Packet, PacketType, RingError
from vmbus.server.socket_stream import HostSocket
from vmbus.server.sockets import SocketRefused

PORT = service_of(80)
NONSENSE = (
    b"",
    b"\1\0\0\0\xff\xff\xff\xff",
    b"\1\0\0\0\5\0\0\0abc",
    b"\2\0\0\0\4\0\1\0abcd",
    b"\2\0\0\0\1\0\2\0abcd",
    b"\3\0\0\0\0\0\0\0",
    b"\xff" * 40,
)
Move = Callable[["Duel"], Awaitable[None]]


class Duel:
    """A host whose programs use sockets as programs do, and a guest that does not."""

    def __init__(self, guest: SocketGuest, choice: random.Random, nursery: trio.Nursery) -> None:
        self.guest = guest
        self.choice = choice
        self.nursery = nursery
        self.streams: list[HostSocket] = []
        self.numbers = count(1)

    # --- the host's programs: whatever the guest does, these errors are all that they may ever see

    async def talk(self, stream: HostSocket) -> None:
        """A listener that reads, answers, and closes in its own time."""
        try:
            while data := await stream.receive_some():
                await stream.send_all(data)
            await stream.send_eof()
        except (trio.BrokenResourceError, trio.BusyResourceError, trio.ClosedResourceError):
            pass

    async def connect(self) -> None:
        try:
            self.streams.append(await self.guest.server.connect(PORT))
        except SocketRefused:
            pass

    async def host_connects(self) -> None:
        self.nursery.start_soon(self.connect)
        await self.guest.rest()

    async def host_gives_up(self) -> None:
        with trio.move_on_after(0.01):
            await self.connect()

    async def host_uses(self) -> None:
        if self.streams:
            self.nursery.start_soon(self.use, self.choice.choice(self.streams), self.choice.randrange(4))
            await self.guest.rest()

    async def use(self, stream: HostSocket, how: int) -> None:
        try:
            match how:
                case 0:
                    await stream.send_all(bytes(self.choice.randrange(1, 60_000)))
                case 1:
                    await stream.receive_some()
                case 2:
                    await stream.send_eof()
                case _:
                    await stream.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            pass

    # --- the guest

    async def asks(self) -> None:
        await self.guest.ask(self.choice.choice([1, 2, next(self.numbers)]), self.choice.choice([PORT, service_of(9)]))

    async def floods(self) -> None:
        await self.guest.say(
            *(m.TlConnectRequest(endpoint=endpoint(next(self.numbers)), service=PORT) for _ in range(40))
        )

    def some_channel(self) -> int:
        return self.choice.choice([*self.guest.server.channels, 1, 2, 2047])

    async def opens(self) -> None:
        channel_id = self.some_channel()
        old = self.guest.channels.pop(channel_id, None)
        if old is not None:
            old.close()
        await self.guest.open(channel_id)

    async def closes(self) -> None:
        if self.guest.channels:
            await self.guest.close(self.choice.choice(list(self.guest.channels)))

    async def lets_go(self) -> None:
        await self.guest.let_go(self.some_channel())

    async def says_anything(self) -> None:
        if self.guest.channels:
            channel = self.guest.channels[self.choice.choice(list(self.guest.channels))]
            bodies = [frame(b"data").body, frame(b"").body, frame(bytes(3000)).body, self.choice.choice(NONSENSE)]
            kind = self.choice.choice([PacketType.INBAND] * 4 + [PacketType.COMPLETION])
            with suppress(trio.BrokenResourceError, RingError):  # of its own making: it opened a channel twice
                channel.try_send_batch([Packet(kind, 0, 0, 0, self.choice.choice(bodies))])
            await self.guest.rest()

    async def takes(self) -> None:
        for channel in list(self.guest.channels.values()):
            with suppress(trio.BrokenResourceError, RingError):
                channel.try_receive_batch()
        await self.guest.rest()

    async def scribbles(self) -> None:
        """Over the control words of its rings."""
        if self.guest.channels:
            channel_id = self.choice.choice(list(self.guest.channels))
            page = 0x10 + channel_id * 2 * RING_PAGES + self.choice.choice([0, RING_PAGES])
            word = self.choice.choice([0, 8, 0x1000, 0x3000, 7, 0xFFFF_FFFF, self.choice.getrandbits(32)])
            offset = self.choice.choice([0, 4, 8, 12])
            self.guest.memory.write(page * 4096 + offset, struct.pack("<I", word))
            self.guest.channels.pop(channel_id).close()
            handler = self.guest.ports.event_handlers.get(0x2000 | channel_id)
            if handler is not None:
                handler()
            await self.guest.rest()

    async def time_passes(self) -> None:
        await trio.sleep(self.choice.choice([0.1, 1, 3, 6]))

    async def leaves(self) -> None:
        self.guest.end()
        match self.choice.randrange(3):
            case 0:
                await self.guest.say(m.Unload())
            case 1:
                await self.guest.server.reset()
            case _:
                pass
        await self.guest.boot(self.choice.choice([Version.V5_3, Version.V5_3, Version.V4_0, Version.V3_0]))


MOVES: tuple[Move, ...] = (
    *(Duel.host_connects, Duel.host_gives_up, Duel.host_uses, Duel.host_uses, Duel.asks, Duel.asks, Duel.floods),
    *(Duel.opens, Duel.opens, Duel.opens, Duel.closes, Duel.lets_go, Duel.says_anything, Duel.says_anything),
    *(Duel.takes, Duel.scribbles, Duel.time_passes, Duel.leaves),
)


async def fight(seed: int, moves: list[int]) -> None:
    async with trio.open_nursery() as nursery:
        async with socket_guest() as guest:
            duel = Duel(guest, random.Random(seed), nursery)
            guest.server.listen(PORT, duel.talk)
            for move in moves:
                await MOVES[move](duel)
                sockets = guest.server.sockets
                assert len(sockets.live) <= MAX_SOCKETS
                assert len(guest.server._state.connects) <= MAX_CONNECT_REQUESTS
                assert guest.server.use().messages_unsent == 0
            guest.end()
            await guest.say(m.Unload())
            for stream in duel.streams:
                await stream.aclose()
            await trio.sleep(20)
            await trio.testing.wait_all_tasks_blocked()
            guest.nothing_left()
            await guest.boot()
            assert (await guest.ask(1, PORT))[0] == guest.offers()[-1], "the next guest is served"
        nursery.cancel_scope.cancel()


@given(seed=st.integers(0, 1 << 32), moves=st.lists(st.integers(0, len(MOVES) - 1), max_size=40))
@settings(max_examples=examples(40), deadline=None)
def test_a_duel(seed: int, moves: list[int]) -> None:
    """Any order of moves: the host's programs see ends and broken streams, limits hold, and nothing is left at last."""
    trio.run(fight, seed, moves, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_flood_of_endpoints(autojump_clock: trio.testing.MockClock) -> None:
    """Past the limit each is refused; the host keeps no more than the limit, for five seconds."""
    async with socket_guest() as guest:

        async def hold(stream: HostSocket) -> None:
            await trio.sleep_forever()

        guest.server.listen(PORT, hold)
        for first in range(0, MAX_SOCKETS + 200, 100):
            numbers = range(first, first + 100)
            await guest.say(*(m.TlConnectRequest(endpoint=endpoint(number), service=PORT) for number in numbers))
        assert len(guest.server.sockets.live) == MAX_SOCKETS == len(guest.offers())
        refused = [one for one in guest.heard() if isinstance(one, m.TlConnectResult)]
        assert len(refused) == 1300 - MAX_SOCKETS
        await trio.sleep(5.1)
        assert guest.server.sockets.live == {}
        assert len(guest.rescinded()) == MAX_SOCKETS
        await guest.say(*(m.RelIdReleased(channel_id=channel_id) for channel_id in guest.rescinded()))
        guest.nothing_left()


@pytest.mark.parametrize("body", [frame(b"").body, frame(b"x").body, b"\1\0\0\0\xff\xff\0\0"])
async def test_a_flood_of_packets(body: bytes, autojump_clock: trio.testing.MockClock) -> None:
    """Empty ones, tiny ones, wrong ones: nobody in the host need read them, and others run."""
    async with socket_guest() as guest, trio.open_nursery() as nursery:
        streams: list[HostSocket] = []

        async def connect() -> None:
            streams.append(await guest.server.connect(PORT))

        nursery.start_soon(connect)
        await trio.testing.wait_all_tasks_blocked()
        await guest.open(1)
        channel = guest.channels[1]
        while channel.try_send_batch([Packet(PacketType.INBAND, 0, 0, 0, body)] * 64):
            await trio.lowlevel.checkpoint()
        assert guest.server.sockets.live[1].inspect().children["bytes_from_guest"] == 0
        await streams[0].aclose()
        await trio.sleep(6)
        assert guest.rescinded() == [1]
        await guest.let_go(1)
        guest.nothing_left()


async def test_a_rescind_races_everything(autojump_clock: trio.testing.MockClock) -> None:
    """The host withdraws while the guest opens, closes, tears down and lets go: each crosses the rescind once."""
    crossing: list[list[m.Message]] = [
        [],
        [m.CloseChannel(channel_id=1)],
        [m.GpadlTeardown(channel_id=1, gpadl_id=0xE0001)],
        [m.CloseChannel(channel_id=1), m.GpadlTeardown(channel_id=1, gpadl_id=0xE0001)],
        [m.OpenChannel(channel_id=1, open_id=7, gpadl_id=0xE0001, downstream_page=4)],
        [m.RelIdReleased(channel_id=1)],
        [m.ModifyChannel(channel_id=1, target_vp=1)],
        [m.TlConnectRequest(endpoint=endpoint(1), service=PORT)],
    ]
    for messages in crossing:
        async with socket_guest() as guest:
            guest.server.listen(PORT, BytePipe.send_eof)
            await guest.ask(1, PORT)
            await guest.open(1)
            guest.channels[1].try_receive_batch()
            for message in messages:
                guest.ports.message_handlers[1](message.encode())
            guest.server.sockets.end_all("a test's whim")
            await trio.testing.wait_all_tasks_blocked()
            guest.end()
            await guest.say(m.GpadlTeardown(channel_id=1, gpadl_id=0xE0001), m.RelIdReleased(channel_id=1))
            await trio.sleep(10)
            await guest.say(m.Unload())
            guest.nothing_left()
