"""VMBus for drivers: connect, see what is offered, open channels, share pages. Child side.

Two tasks stand behind it: one takes the host's messages, which the interrupt handler only notes, and one posts ours in
order and tries again when the hypervisor has no room. What is right when is decided in `state.py`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, assert_never

import attrs
import trio

from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE
from hypervisor.status import HvStatus
from hypervisor.wire import Guid
from vmbus.bell import Bell
from vmbus.channel import Channel
from vmbus.client import state as s
from vmbus.client.pages import ClientPages
from vmbus.client.platform import GuestPlatform
from vmbus.client.state import ClientState, OfferedDevice, Output, Phase, VmbusError
from vmbus.gpadl import GpadlRange, page_range
from vmbus.protocol import IMPLEMENTED, Feature, version_text
from vmbus.protocol.identifiers import SHARED_EVENT_FLAG
from vmbus.protocol.versions import Ability

if TYPE_CHECKING:
    from vmbus.client.sockets import ClientSockets

__all__ = ["OfferedDevice", "VmbusClient", "VmbusError", "open_vmbus_client"]

POST_TRIES: Final = 100
"""How often one message is posted while the hypervisor has no room for it; what Linux does."""
_FIRST_DELAY: Final = 0.0001
_LONGEST_DELAY: Final = 0.1
_NO_ROOM: Final = (HvStatus.INSUFFICIENT_BUFFERS, HvStatus.INSUFFICIENT_MEMORY, HvStatus.INVALID_CONNECTION_ID)
_CONNECTION: Final = ("connection", 0)


@attrs.define
class _Answer:
    """What one or more tasks wait for."""

    come: trio.Event = attrs.field(factory=trio.Event)
    value: int | VmbusError = 0


@attrs.frozen(eq=False)
class _Open:
    channel: Channel
    channel_id: int
    ring_gpadl: int
    keep: int = 0
    """How many bytes of what the host had sent are received after it has taken the channel back."""


class VmbusClient:
    """One guest's connection to the bus. Made by `open_vmbus_client`."""

    def __init__(self, platform: GuestPlatform, state: ClientState, *, shared: bool) -> None:
        self.state = state
        self.on_rescind: Callable[[OfferedDevice], None] | None = None
        """Called when the host takes a device back, after its channel was closed. Synchronous."""
        self._platform = platform
        self._shared = shared
        self._inbox: deque[bytes] = deque()
        self._arrived = Bell()
        self._outbox: deque[s.Post] = deque()
        self._to_post = Bell()
        self._answers: dict[tuple[str, int], _Answer] = {}
        self._open: dict[int, _Open] = {}
        self._ring_pages: dict[int, tuple[int, int]] = {}
        self._offered, self._next_offer = trio.open_memory_channel[OfferedDevice](math.inf)
        self._delivered = trio.Event()
        self._pages: ClientPages | None = None
        self._drained = Bell()
        self._sockets: ClientSockets | None = None
        self._early_sockets: dict[int, OfferedDevice] = {}
        """Offered before any program has asked for sockets, and not withdrawn; by channel."""
        self._nursery: trio.Nursery | None = None

    # ------------------------------------------------------------------------------------------------- the connection

    @property
    def connected(self) -> bool:
        """Whether a version is agreed on and UNLOAD was not sent."""
        return self.state.phase is Phase.CONNECTED

    @property
    def version(self) -> str:
        """The version agreed on, such as `5.3`; empty without a connection. `state.version` has the number."""
        return "" if self.state.version is None else version_text(self.state.version)

    async def connect(self) -> None:
        """Agree on a version and ask for offers. Needed again after `unload` only. `VmbusError` if none is spoken."""
        self._delivered = trio.Event()
        if self._pages is None:
            self._pages = ClientPages(self._platform)
        self.state.pages = self._pages.pages
        await self._ask(_CONNECTION, self.state.connect())
        if Ability.INTERRUPT_PAGE in self.state.abilities:
            self._platform.set_event_handler(SHARED_EVENT_FLAG, self._look_at_page)

    async def unload(self) -> None:
        """Leave the bus: channels end here at once; returns when the host holds nothing of ours any more."""
        self._close_channels()
        answered = Ability.UNLOAD_COMPLETE in self.state.abilities
        self._drained.clear()
        await self._ask(_CONNECTION, self.state.unload())
        if not answered:
            await self._drained.wait()  # all that can be known is that UNLOAD was posted
        self._platform.set_event_handler(SHARED_EVENT_FLAG, None)
        if self._pages is not None and answered:
            self._pages.close()
            self._pages = None

    # -------------------------------------------------------------------------------------------------------- sockets

    @property
    def sockets(self) -> ClientSockets:
        """Hyper-V sockets of this guest."""
        if self._sockets is None:
            from vmbus.client.sockets import ClientSockets  # which a guest that has none does not load

            assert self._nursery is not None, "open_vmbus_client has begun"
            self._sockets = ClientSockets(self, self._nursery, self._platform.sleep, self._early_sockets)
        return self._sockets

    def request_socket(self, endpoint: Guid, service: Guid) -> None:
        """Ask for a stream to the host; `sockets` hears of the answer. `VmbusError`."""
        self._do(self.state.request_socket(endpoint, service))

    def release(self, offer: OfferedDevice) -> None:
        """Give a closed channel's ID back, unless the host has taken it back itself."""
        self._do(self.state.release(offer))

    # --------------------------------------------------------------------------------------------------------- offers

    @property
    def offers(self) -> list[OfferedDevice]:
        """What is on offer now."""
        return self.state.offers

    async def next_offer(self) -> OfferedDevice:
        """Each offer once, as they come; those that were rescinded meanwhile are left out."""
        while True:
            offer = await self._next_offer.receive()
            if any(offer is known for known in self.state.offers):
                return offer

    async def wait_offers_delivered(self) -> None:
        """Until the host has offered all that it had when we connected."""
        await self._delivered.wait()

    # ------------------------------------------------------------------------------------------------ channels, GPADLs

    async def open(
        self,
        offer: OfferedDevice,
        *,
        outgoing_bytes: int,
        incoming_bytes: int,
        user_data: bytes = b"",
        target_vp: int = 0,
        keep: int = 0,
    ) -> Channel:
        """Open a channel with rings of these sizes, whole pages with their control page.

        `user_data` has up to 120 bytes that mean something to the device; `target_vp` takes the interrupts; `keep` is
        how much is received after a rescind. Raises `VmbusError` where the host refuses, `MemoryError`, and
        `RuntimeError` where the channel is open.
        """
        for size in (outgoing_bytes, incoming_bytes):
            if size < 2 * PAGE_SIZE or size % PAGE_SIZE:
                raise ValueError(f"a ring takes whole pages, at least two, not {size} bytes")
        if len(user_data) > 120:
            raise ValueError(f"{len(user_data)} bytes of user data, 120 are the limit")
        channel_id = offer.channel_id
        if channel_id in self._open:
            raise RuntimeError(f"channel {channel_id} is open already")
        pages = (outgoing_bytes + incoming_bytes) >> PAGE_SHIFT
        gpn = self._platform.allocate_pages(pages)
        try:
            gpadl_id, outputs = self.state.create_gpadl(channel_id, [page_range(range(gpn, gpn + pages))])
        except BaseException:
            self._platform.free_pages(gpn, pages)
            raise
        self._ring_pages[gpadl_id] = gpn, pages
        await self._create(gpadl_id, outputs)
        try:
            outputs = self.state.open(
                channel_id,
                gpadl_id,
                downstream_page=outgoing_bytes >> PAGE_SHIFT,
                user_data=user_data,
                target_vp=target_vp,
            )
        except BaseException:
            self._do(self.state.teardown_gpadl(gpadl_id))
            raise
        assert self._pages is not None, "there are offers only after a connection"
        start = gpn << PAGE_SHIFT
        middle, end = start + outgoing_bytes, start + outgoing_bytes + incoming_bytes
        channel = Channel(
            outgoing=self._platform.memory[start:middle],
            incoming=self._platform.memory[middle:end],
            signal=self._pages.signal(offer, self.state.abilities),
            shared=self._shared,
        )
        # Before the host knows of the rings: its first signal may come before its answer.
        self._open[channel_id] = _Open(channel, channel_id, gpadl_id, keep)
        self._platform.set_event_handler(channel_id, channel.wake)
        try:
            status = await self._ask(("open", channel_id), outputs)
            if status:
                raise VmbusError(f"the host refused to open channel {channel_id}: status {status:#x}")
        except BaseException:
            self._forget(channel_id, by_peer=False)
            self._do(self.state.close(channel_id))
            raise
        return channel

    async def close(self, channel: Channel) -> None:
        """Close a channel; returns when its rings' pages are free. Does nothing where the channel is gone already."""
        known = next((known for known in self._open.values() if known.channel is channel), None)
        if known is None:
            channel.close()
            await trio.lowlevel.checkpoint()
            return
        self._forget(known.channel_id, by_peer=False)
        await self._ask(("gone", known.ring_gpadl), self.state.close(known.channel_id))

    async def modify(self, channel: Channel, target_vp: int) -> None:
        """Have another processor take the channel's interrupts. Returns when the host has said so, if it does (5.3).

        `VmbusError` where the version has no such message, or the host refuses.
        """
        known = next((known for known in self._open.values() if known.channel is channel), None)
        if known is None:
            raise trio.ClosedResourceError
        outputs = self.state.modify(known.channel_id, target_vp)
        if Ability.MODIFY_RESPONSE not in self.state.abilities:
            self._do(outputs)
            await trio.lowlevel.checkpoint()
            return
        status = await self._ask(("modify", known.channel_id), outputs)
        if status:
            raise VmbusError(f"the host does not move channel {known.channel_id}: status {status:#x}")

    async def create_gpadl(self, channel_id: int, gpns: Sequence[int], byte_count: int) -> int:
        """Show the host pages that a channel's packets will name by the ID that this returns. `VmbusError`."""
        part = GpadlRange(byte_count, 0, tuple(gpns))
        gpadl_id, outputs = self.state.create_gpadl(channel_id, [part])
        await self._create(gpadl_id, outputs)
        return gpadl_id

    async def teardown_gpadl(self, gpadl_id: int) -> None:
        """Take pages back: returns when the host does not look at them any more."""
        await self._ask(("gone", gpadl_id), self.state.teardown_gpadl(gpadl_id))

    async def _create(self, gpadl_id: int, outputs: Sequence[Output]) -> None:
        try:
            status = await self._ask(("gpadl", gpadl_id), outputs)
        except BaseException:
            self._do(self.state.teardown_gpadl(gpadl_id))
            raise
        if status:
            raise VmbusError(f"the host refused GPADL {gpadl_id:#x}: status {status:#x}")

    # ------------------------------------------------------------------------------------------------- behind the scene

    def note_message(self, payload: bytes) -> None:
        """The bus's interrupt: a message has come."""
        self._inbox.append(payload)
        self._arrived.ring()

    def _look_at_page(self) -> None:
        """Event flag 0 of the old versions: the interrupt page says which channels it is about."""
        if self._pages is not None:
            for channel_id in self._pages.take():
                known = self._open.get(channel_id)
                if known is not None:
                    known.channel.wake()

    def start(self, nursery: trio.Nursery) -> None:
        """Begin to take and to post messages."""
        self._nursery = nursery
        nursery.start_soon(self.receive_messages, name="vmbus messages in")
        nursery.start_soon(self.post_messages, name="vmbus messages out")

    async def finish_sockets(self) -> None:
        """Let what was sent on sockets arrive."""
        if self._sockets is not None:
            await self._sockets.finish()

    async def receive_messages(self) -> None:
        """Task: hand the host's messages to the protocol."""
        while True:
            while self._inbox:
                self._do(self.state.receive(self._inbox.popleft()))
            await self._arrived.wait()

    async def post_messages(self) -> None:
        """Task: post our messages, in order. `VmbusError` if the hypervisor does not take one in the end."""
        while True:
            while self._outbox:
                await self._post(self._outbox.popleft())
            self._drained.ring()
            await self._to_post.wait()

    async def _post(self, post: s.Post) -> None:
        delay = _FIRST_DELAY
        status = HvStatus.SUCCESS
        for _ in range(POST_TRIES):
            status = self._platform.post_message(post.connection_id, post.payload)
            if status == HvStatus.SUCCESS:
                return
            if status == HvStatus.INVALID_CONNECTION_ID and post.is_contact:
                self._do(self.state.contact_impossible())
                return
            if status not in _NO_ROOM:
                break
            await self._platform.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)
        raise VmbusError(f"the hypervisor does not take messages on connection {post.connection_id}: {status!r}")

    def _do(self, outputs: Sequence[Output]) -> None:
        """What the protocol said is to be done."""
        for output in outputs:
            match output:
                case s.Post():
                    self._outbox.append(output)
                    self._to_post.ring()
                case s.Connected():
                    self._answer(_CONNECTION, 0)
                case s.Unloaded():
                    self._answer(_CONNECTION, 0)
                    for key in list(self._answers):
                        self._answer(key, VmbusError("the bus was unloaded"))
                case s.ConnectionFailed():
                    self._answer(_CONNECTION, VmbusError(output.reason))
                case s.Offered():
                    self._offered.send_nowait(output.offer)
                case s.SocketOffered():
                    if self._sockets is None:
                        self._early_sockets[output.offer.channel_id] = output.offer
                    else:
                        self._sockets.offered(output.offer)
                case s.SocketRefused():
                    if self._sockets is not None:
                        self._sockets.refused(output.endpoint)
                case s.OffersDelivered():
                    self._delivered.set()
                case s.Rescinded():
                    self._rescinded(output)
                case s.GpadlAnswered():
                    self._answer(("gpadl", output.gpadl_id), output.status)
                case s.GpadlGone():
                    self._gpadl_gone(output.gpadl_id)
                case s.ModifyAnswered():
                    self._answer(("modify", output.channel_id), output.status)
                case s.OpenAnswered():
                    self._answer(("open", output.channel_id), output.status)
                case _:
                    assert_never(output)

    def _rescinded(self, event: s.Rescinded) -> None:
        channel_id = event.offer.channel_id
        gone = VmbusError(f"channel {channel_id} was rescinded by the host")
        self._forget(channel_id, by_peer=True)
        self._early_sockets.pop(channel_id, None)
        self._answer(("open", channel_id), gone)
        for gpadl_id in event.gpadls:
            self._answer(("gpadl", gpadl_id), gone)
            self._gpadl_gone(gpadl_id)
        if self.on_rescind is not None:
            self.on_rescind(event.offer)

    def _gpadl_gone(self, gpadl_id: int) -> None:
        pages = self._ring_pages.pop(gpadl_id, None)
        if pages is not None:
            self._platform.free_pages(*pages)
        self._answer(("gone", gpadl_id), 0)

    def _forget(self, channel_id: int, *, by_peer: bool) -> None:
        """End our end of a channel: no more interrupts, and the rings' memory is given up."""
        known = self._open.pop(channel_id, None)
        if known is not None:
            self._answer(("modify", channel_id), VmbusError(f"channel {channel_id} is closed"))
            self._platform.set_event_handler(channel_id, None)
            known.channel.close(by_peer=by_peer, keep=known.keep)

    def _close_channels(self) -> None:
        for channel_id in list(self._open):
            self._forget(channel_id, by_peer=False)

    async def _ask(self, key: tuple[str, int], outputs: Sequence[Output]) -> int:
        """Do these, and wait for their answer. Raises it where it is an error."""
        answer = self._answers.setdefault(key, _Answer())
        self._do(outputs)
        await answer.come.wait()
        if isinstance(answer.value, VmbusError):
            raise answer.value
        return answer.value

    def _answer(self, key: tuple[str, int], value: int | VmbusError) -> None:
        answer = self._answers.pop(key, None)
        if answer is not None:
            answer.value = value
            answer.come.set()

    def end(self) -> None:
        """The client is left: no interrupt reaches it, and channels that are still open end."""
        self._platform.set_message_handler(None)
        self._platform.set_event_handler(SHARED_EVENT_FLAG, None)
        self._close_channels()
        if self._sockets is not None:
            self._sockets.end()
        self._offered.close()
        self._next_offer.close()


@asynccontextmanager
async def open_vmbus_client(
    platform: GuestPlatform,
    *,
    versions: Sequence[int] = IMPLEMENTED,
    features: int = Feature.NONE,
    client_id: Guid | None = None,
    shared: bool = False,
) -> AsyncIterator[VmbusClient]:
    """A connected client. `versions` are tried in order; `features` and `client_id` are sent at 6.0.

    `shared` says that the host runs on another thread. At the end of the body the bus is unloaded, if that was not
    done; where the body is cancelled or fails, the client just stops, as if the guest were switched off. Raises
    `VmbusError`.
    """
    client = VmbusClient(platform, ClientState(versions, features=features, client_id=client_id), shared=shared)
    platform.set_message_handler(client.note_message)
    try:
        async with trio.open_nursery() as nursery:
            client.start(nursery)
            await client.connect()
            yield client
            if client.connected:
                await client.finish_sockets()
                await client.unload()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group.exceptions[0].__cause__  # our nursery is nobody else's business
        raise
    finally:
        client.end()
