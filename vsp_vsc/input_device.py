"""What the VSPs of keyboard and mouse share: a session a channel, a task that sends. Root side.

Concurrency: `serve` receives, in the bus's task. What people type comes from any task on the Trio thread and goes
straight into the ring; where the guest leaves no room, a task beside `serve` waits for some. A guest that sends faster
than it reads answers is not read either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, Protocol, Self, TypeVar

import trio

from hypervisor.inspect import Branch, Gone
from hypervisor.trace import TO_ROOT, Layer, Trace
from hypervisor.wire import WireError
from vmbus.bell import Bell
from vmbus.channel import Channel
from vmbus.ring import Packet
from vmbus.server.offers import Offer

if TYPE_CHECKING:
    from vmbus.server.opened import OpenedChannel

MAX_UNSENT: Final = 1024
"""Packets that wait for room before nothing more is received."""


class InputSession(Protocol):
    """A pure core: packets in, packets out."""

    outbox: list[Packet]
    blocked: bool
    """The first of the outbox is on its way, and stays as it is."""

    @property
    def ready(self) -> bool:
        """Whether input goes to the guest."""

    def take(self, untrusted: Packet) -> None:
        """A packet from the guest. Raises `WireError`."""

    def save(self) -> bytes:
        """The session as a record."""

    @classmethod
    def load(cls, untrusted: bytes) -> Self:
        """The session of such a record. Raises `WireError`."""


S = TypeVar("S", bound=InputSession)


class InputRefused(Exception):
    """Input that does not reach the guest; the text says which device, and why."""


class NoDriver(InputRefused):
    """The guest has no driver for the device, or not yet."""


class InputVsp(Generic[S]):
    """A keyboard or a mouse of one VM, as `vmbus.server` takes it."""

    def __init__(self, offer: Offer, kind: type[S], trace: Trace, partition_id: int) -> None:
        self.offer = offer
        self._kind = kind
        self._trace = trace
        self._partition_id = partition_id
        self._session: S | None = None
        self._channel: Channel | None = None
        self._channel_id = 0
        self._queued = Bell()
        self._sent = trio.Event()
        self._stopped = False

    # --- for people

    @property
    def ready(self) -> bool:
        """Whether the guest has a driver that takes input now."""
        return self._session is not None and self._session.ready

    @property
    def state(self) -> str:
        """How it stands with the guest."""
        if self._session is None:
            return "stopped after a mistake of the guest's" if self._stopped else "no driver"
        return "ready" if self._session.ready else "negotiating"

    def _ready_session(self) -> S:
        """The session that takes input. Raises `NoDriver`."""
        session = self._session
        if session is None or not session.ready:
            raise NoDriver(f"{self.offer}: the guest takes no input: {self.state}")
        return session

    def _send_soon(self) -> None:
        """Something is in the outbox: what has room goes at once, the rest is left to the task that waits for room."""
        session, channel = self._session, self._channel
        if session is None or channel is None or session.blocked:
            return
        try:
            del session.outbox[: channel.try_send_batch(session.outbox)]
        except (WireError, trio.ClosedResourceError, trio.BrokenResourceError):
            pass  # the task finds the same
        if session.outbox:
            self._queued.ring()

    async def _room(self) -> None:
        """Until the guest has read something, or its channel is gone."""
        await self._sent.wait()

    # --- for the bus

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        """Negotiate, then send input until the channel closes. Raises `WireError` where the guest errs."""
        restored = opened.restored
        session = restored if isinstance(restored, self._kind) else self._kind()
        self._session, self._stopped = session, False
        self._channel, self._channel_id = channel, opened.channel_id
        self._queued = Bell()  # the one before may still have its sender
        faults: list[WireError] = []
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, session, channel, self._queued, faults, nursery.cancel_scope)
                self._send_soon()  # a restored session may have something to say
                try:
                    while True:
                        self._take(session, await channel.receive())
                        await trio.lowlevel.checkpoint()  # a packet of 510 runs of pages costs milliseconds
                        while len(session.outbox) >= MAX_UNSENT:
                            await self._room()
                except WireError as fault:
                    faults.append(fault)
                except (trio.EndOfChannel, trio.ClosedResourceError, trio.BrokenResourceError):
                    pass  # the bus has closed it
                nursery.cancel_scope.cancel()
        finally:
            if self._session is session:
                self._session = self._channel = None
            self._wake()
            self._ended(session)
        if faults:
            self._stopped = True
            self._trace.warn(
                *(Layer.DEVICE, f"{self.offer}_stopped", self._partition_id, f"{self.offer}: {faults[0]}"),
                channel=opened.channel_id,
            )
            raise faults[0]

    def save(self, channel_id: int) -> bytes | None:
        """The session, or None while the guest's messages are on their way. The guest stands still."""
        session, channel = self._session, self._channel
        if session is None or channel is None or channel.ahead or (session.outbox and not session.ready):
            return None
        return session.save()

    def load(self, untrusted: bytes) -> S:
        """What `serve` goes on with. Raises `WireError`."""
        return self._kind.load(untrusted)

    def inspect(self) -> Branch:
        """How it stands with the guest, and what went through."""
        waiting = 0 if self._session is None else len(self._session.outbox)
        return Branch({"state": self.state, "waiting": waiting, **self._shown()})

    def inspect_channel(self, channel_id: int) -> Branch:
        """The session on the open channel. Raises `Gone` where it serves none there."""
        if self._session is None or channel_id != self._channel_id:
            raise Gone
        return self.inspect()

    # --- what devices add

    def _shown(self) -> dict[str, object]:
        """Of its own."""
        return {}

    def _negotiated(self) -> str:
        """What was agreed on, in words."""
        return "ready"

    def _taken(self, session: S) -> None:
        """A message of the guest's was dealt with."""

    def _ended(self, session: S) -> None:
        """Its channel is served no more."""

    # --- inside

    def _take(self, session: S, untrusted: Packet) -> None:
        before = session.ready
        session.take(untrusted)
        self._send_soon()
        if session.ready and not before and self._trace.on:
            self._emit("negotiated", self._negotiated())
        self._taken(session)

    def _emit(self, event: str, words: str) -> None:
        self._trace.emit(
            *(Layer.DEVICE, f"{self.offer}_{event}", self._partition_id),
            direction=TO_ROOT,
            channel=self._channel_id,
            words=f"{self.offer}: {words}",
        )

    async def _send(
        self, session: S, channel: Channel, queued: Bell, faults: list[WireError], scope: trio.CancelScope
    ) -> None:
        """Task: what had no room, as fast as the guest makes some."""
        outbox = session.outbox
        try:
            while True:
                await queued.wait()
                while outbox:
                    sent = channel.try_send_batch(outbox)
                    if not sent:
                        session.blocked = True
                        try:
                            await channel.send(outbox[0])
                        finally:
                            session.blocked = False
                        sent = 1
                    del outbox[:sent]
                    self._wake()
        except WireError as fault:
            faults.append(fault)
            scope.cancel()
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass  # the receiver hears of it too

    def _wake(self) -> None:
        self._sent.set()
        self._sent = trio.Event()
