"""A guest made of method calls that speaks Hyper-V sockets to a real `VmbusServer`, one channel at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import attrs
import trio
import trio.testing

from hypervisor.blocks import MemoryBlock
from hypervisor.memory import GuestMemory
from hypervisor.pages import PAGE_SIZE, Access
from hypervisor.trace import Trace
from hypervisor.wire import Guid
from tests.doubles.vmbus_ports import FakePorts
from vmbus.channel import Channel
from vmbus.gpadl import encode_gpadl, page_range
from vmbus.pipe import BytePipe
from vmbus.protocol import messages as m
from vmbus.protocol.hvsocket import is_socket
from vmbus.protocol.identifiers import event_connection_id
from vmbus.protocol.messages import Message
from vmbus.protocol.table import Direction, decode_message
from vmbus.protocol.versions import Version
from vmbus.server.service import VmbusServer, open_vmbus_server
from vmbus.server.sockets import SocketListeners

PAGES = 17000
RING_PAGES = 4
"""Of each ring, with its control page."""
REFUSED = 0xC0000236


def endpoint(number: int) -> Guid:
    """Endpoints that cannot be taken for one another."""
    return Guid(f"{number:08x}-0000-4000-8000-000000000000")


@contextmanager
def guest_memory(pages: int = PAGES) -> Iterator[GuestMemory]:
    """Memory of a guest, sparse."""
    block = MemoryBlock.allocate(pages * PAGE_SIZE, "guest")
    memory = GuestMemory()
    memory.map_block(0, block, 0, pages, Access.READ_WRITE)
    yield memory
    memory.unmap(0, pages)
    block.close()


@attrs.define
class SocketGuest:
    """Says things to the host; the host's answers have been given when a call returns."""

    server: VmbusServer
    ports: FakePorts
    memory: GuestMemory
    trace: Trace
    channels: dict[int, Channel] = attrs.field(factory=dict)
    """Our ends of those that are open."""
    settle: bool = True
    """Wait until everybody is blocked after each message; off where real files and clocks take part."""

    async def say(self, *messages: Message | bytes) -> list[Message]:
        """Post, let everybody run, and return what came back."""
        before = len(self.ports.posted)
        for message in messages:
            self.ports.message_handlers[1](message if isinstance(message, bytes) else message.encode())
        await self.rest()
        return self.heard(before)

    async def rest(self) -> None:
        """Until nobody has anything to do."""
        if self.settle:
            await trio.testing.wait_all_tasks_blocked()
        else:
            for _ in range(20):
                await trio.lowlevel.checkpoint()

    def heard(self, since: int = 0) -> list[Message]:
        """What was posted to us."""
        return [
            decode_message(data, sender=Direction.TO_CHILD, version=Version.V6_0, features=0xFF)
            for data in self.ports.posted[since:]
        ]

    async def boot(self, version: int = Version.V5_3) -> None:
        """Onto the bus."""
        await self.say(m.initiate_contact(version), m.RequestOffers())

    def offers(self) -> list[m.OfferChannel]:
        """Sockets that were offered, in order."""
        return [one for one in self.heard() if isinstance(one, m.OfferChannel) and is_socket(one.flags)]

    def rescinded(self) -> list[int]:
        """Channels that were withdrawn, in order."""
        return [one.channel_id for one in self.heard() if isinstance(one, m.RescindChannelOffer)]

    async def ask(self, number: int, service: Guid) -> list[Message]:
        """Ask for a connection to a service of the host's."""
        return await self.say(m.TlConnectRequest(endpoint=endpoint(number), service=service))

    async def open(self, channel_id: int, *, ring_pages: int = RING_PAGES) -> list[Message]:
        """Give it rings and open it; the host's answers to the open, which may come later."""
        first = 0x10 + channel_id * 2 * RING_PAGES
        gpns = range(first, first + 2 * ring_pages)
        for data in encode_gpadl(channel_id, 0xE0000 + channel_id, [page_range(gpns)]):
            await self.say(data)
        ring = self.memory.flat(gpns, Access.READ_WRITE)
        ring[:] = bytes(len(ring))
        border = ring_pages * PAGE_SIZE

        def signal() -> None:
            handler = self.ports.event_handlers.get(event_connection_id(channel_id))
            if handler is not None:
                handler()

        self.channels[channel_id] = Channel(outgoing=ring[:border], incoming=ring[border:], signal=signal, shared=False)
        return await self.say(
            m.OpenChannel(
                channel_id=channel_id, open_id=channel_id, gpadl_id=0xE0000 + channel_id, downstream_page=ring_pages
            )
        )

    def woken(self, flag: int) -> None:
        """The host signals a channel."""
        channel = self.channels.get(flag)
        if channel is not None:
            channel.wake()

    async def close(self, channel_id: int) -> list[Message]:
        """Close it, and let go of all of it."""
        self.channels.pop(channel_id).close()
        return await self.say(m.CloseChannel(channel_id=channel_id), *self._letting_go(channel_id))

    async def let_go(self, channel_id: int) -> list[Message]:
        """After a rescind: give all of it back."""
        channel = self.channels.pop(channel_id, None)
        if channel is not None:
            channel.close()
            return await self.say(*self._letting_go(channel_id))
        return await self.say(m.RelIdReleased(channel_id=channel_id))

    def _letting_go(self, channel_id: int) -> list[Message]:
        return [
            m.GpadlTeardown(channel_id=channel_id, gpadl_id=0xE0000 + channel_id),
            m.RelIdReleased(channel_id=channel_id),
        ]

    def end(self) -> None:
        """Our ends go."""
        while self.channels:
            self.channels.popitem()[1].close()

    def nothing_left(self) -> None:
        """Assert that no connection has left anything on the host."""
        server = self.server
        assert server.sockets.live == {}
        assert server.channels == {}
        assert server.offered == []
        assert server._offered == {}
        use = server.use()
        assert (use.channels, use.gpadls, use.gpadl_words, use.scattered_pages) == (0, 0, 0, 0)
        assert self.ports.open == [one for one in self.ports.messages if not one.closed]
        assert len(self.ports.event_handlers) == 0


@asynccontextmanager
async def socket_guest(
    *, listeners: SocketListeners | None = None, boot: bool = True, settle: bool = True
) -> AsyncIterator[SocketGuest]:
    """A server with such a guest, until the block ends; then nothing may be left."""
    ports, trace = FakePorts(), Trace(lambda: int(trio.current_time() * 10_000_000))
    with guest_memory() as memory:
        async with open_vmbus_server(
            ports, memory, partition_id=7, trace=trace, shared=False, listeners=listeners
        ) as server:
            guest = SocketGuest(server, ports, memory, trace, settle=settle)
            ports.on_signal = guest.woken
            if boot:
                await guest.boot()
            try:
                yield guest
            finally:
                guest.end()
        assert ports.open == []
        assert not ports.message_handlers
        assert not ports.event_handlers


class _Posted(list[bytes]):
    """Messages to the guest, with a bell."""

    def __init__(self) -> None:
        super().__init__()
        self.more = trio.Event()

    def append(self, message: bytes) -> None:
        super().append(message)
        self.more.set()
        self.more = trio.Event()


class AcceptingGuest:
    """Opens what the host connects to some services, on its own, and lets go of the rest; a task runs it."""

    def __init__(self, guest: SocketGuest, handlers: dict[Guid, Callable[[BytePipe], Awaitable[None]]]) -> None:
        self.guest = guest
        self.handlers = handlers
        self._posted = _Posted()
        self._posted.extend(guest.ports.posted)
        guest.ports.posted = self._posted
        self._place = len(self._posted)
        self.failures: list[str] = []

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                more = self._posted.more
                if self._place == len(self._posted):
                    await more.wait()
                for message in self.guest.heard(self._place):
                    self._place += 1
                    await self._hear(message, nursery)

    async def _hear(self, message: Message, nursery: trio.Nursery) -> None:
        match message:
            case m.OfferChannel() if is_socket(message.flags) and message.user_defined[4]:
                if message.interface in self.handlers:
                    await self.guest.open(message.channel_id)
                    self._serve(message, nursery)
                else:
                    await self.guest.say(m.RelIdReleased(channel_id=message.channel_id))
            case m.RescindChannelOffer(channel_id=channel_id):
                channel = self.guest.channels.get(channel_id)
                if channel is not None:
                    channel.close(by_peer=True, keep=1 << 20)
                    await self.guest.say(*self.guest._letting_go(channel_id))
                    self.guest.channels.pop(channel_id, None)

    def _serve(self, offer: m.OfferChannel, nursery: trio.Nursery) -> None:
        pipe = BytePipe(self.guest.channels[offer.channel_id])

        async def serve() -> None:
            try:
                await self.handlers[offer.interface](pipe)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self.failures.append(repr(error))

        nursery.start_soon(serve)
