"""What the VSPs of all integration components share: an offer, a session a channel, timed questions. Root side.

A question's time runs on the partition's clock, which stands still while the VM is paused: a guest that cannot run is
not mute.

Concurrency: `serve` receives, in the bus's task. Questions come from any task and take turns; closing the channel ends
those that wait. A component's own work (`_duty`) runs beside `serve` and ends with it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final, assert_never

import msgspec
import trio

from hypervisor.clock import seconds, ticks
from hypervisor.inspect import Branch
from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Trace
from hypervisor.wire import Guid, WireError
from vmbus.channel import Channel
from vmbus.pipe import frame, unframe
from vmbus.protocol.features import OfferFlag
from vmbus.server.offers import Offer
from vsp_vsc.integration.protocol import INTERFACES, MESSAGE_PIPE, NO_VERSION, Component, Version, status_words
from vsp_vsc.integration.session import Answer, Session, State

if TYPE_CHECKING:
    from vmbus.server.opened import OpenedChannel

NEGOTIATION_SECONDS: Final = 30.0
"""A guest that has not answered the offer of versions by then shows as mute; its answer is welcome still."""
_SHORTEST_WAIT: Final = 0.05
"""While a VM is paused its clock is looked at so often, in seconds."""
_INSTANCES: Final = {
    Component.HEARTBEAT: Guid("fd149e91-82e0-4a7d-afa6-2a4166cbd7c0"),
    Component.SHUTDOWN: Guid("b6650ff7-33bc-4840-8048-e0676786f393"),
    Component.TIME_SYNC: Guid("2dd1ce17-079e-403c-b352-a1921ee207ee"),
    Component.KVP: Guid("242ff919-07db-4180-9c2e-b86cb68c8c55"),
    Component.VSS: Guid("2450ee40-33bf-4fbd-892e-9fb06e9214cf"),
    Component.FILE_COPY: Guid("eb765408-105f-49b6-b4aa-c123b64d17d4"),
}
"""Hyper-V gives every VM's components the same instances."""


class Contact(enum.Enum):
    """How a component stands with its guest."""

    NONE = "no contact"
    """The guest has not opened the channel."""
    NEGOTIATING = "negotiating"
    READY = "ready"
    MUTE = "no answer"
    """The last question was not answered in time."""
    REFUSED = "no common version"
    STOPPED = "stopped"
    """The guest made a mistake and has not closed the channel since."""


class NoAnswer(Exception):
    """A question that was not answered; the text says why."""


class Unavailable(NoAnswer):
    """It was not even asked: the guest has no driver for this component, or they have not agreed yet."""


class PartitionTime(msgspec.Struct, frozen=True):
    """A partition's own time, which stands still while it is paused."""

    now: Callable[[], int]
    """100 ns units."""

    async def sleep(self, duration: float) -> None:
        """So many seconds of it."""
        await self.wait_for(trio.Event(), duration)

    async def wait_for(self, event: trio.Event, limit: float) -> None:
        """Until the event, but no longer than `limit` seconds of it. A checkpoint always."""
        deadline = self.now() + ticks(limit)
        while True:
            left = seconds(deadline - self.now())
            with trio.move_on_after(max(left, _SHORTEST_WAIT) if left > 0 else 0):
                await event.wait()
            if event.is_set() or self.now() >= deadline:
                return


class IntegrationVsp:
    """One component of one VM, as `vmbus.server` takes it."""

    component: ClassVar[Component]

    def __init__(self, time: PartitionTime, trace: Trace, partition_id: int, name: str = "") -> None:
        self.offer = Offer(
            INTERFACES[self.component],
            _INSTANCES[self.component],
            flags=int(OfferFlag.ENUMERATE_DEVICE_INTERFACE | OfferFlag.NAMED_PIPE_MODE),
            user_defined=struct.pack("<I116x", MESSAGE_PIPE),
            name=name or self.words,
        )
        self._time = time
        self._trace = trace
        self._partition_id = partition_id
        self._link: Link | None = None
        self._stopped = False

    @property
    def words(self) -> str:
        """The component's name for people."""
        return self.component.words

    @property
    def contact(self) -> Contact:
        """How it stands with the guest now."""
        link = self._link
        if link is None:
            return Contact.STOPPED if self._stopped else Contact.NONE
        match link.session.state:
            case State.NEGOTIATING:
                waited = seconds(self._time.now() - link.opened_at)
                return Contact.MUTE if waited >= NEGOTIATION_SECONDS else Contact.NEGOTIATING
            case State.REFUSED:
                return Contact.REFUSED
            case State.READY:
                return Contact.MUTE if link.mute else Contact.READY
            case _:
                assert_never(link.session.state)

    @property
    def ready(self) -> bool:
        """Whether a question can be asked."""
        return self._link is not None and self._link.session.state is State.READY

    @property
    def version(self) -> str:
        """The agreed version of the component's messages, such as "3.2"; empty while there is none."""
        return str(self._link.session.version) if self.ready and self._link is not None else ""

    @property
    def agreed(self) -> Version:
        """The same as numbers; 0.0 while there is none."""
        return self._link.session.version if self.ready and self._link is not None else NO_VERSION

    @property
    def stale(self) -> int:
        """Answers on this channel that came too late and were dropped."""
        return 0 if self._link is None else self._link.session.stale

    def inspect(self) -> Branch:
        """How it stands with the guest."""
        return Branch({"contact": self.contact.value, "version": self.version or None, "late_answers": self.stale})

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        """Offer versions, then take answers until the channel closes. Raises `WireError` where the guest errs."""
        restored = opened.restored if isinstance(opened.restored, Session) else None
        link = Link(channel, opened.channel_id, restored or Session(self.component), self._time)
        self._link, self._stopped = link, False
        try:
            async with trio.open_nursery() as nursery:
                link.scope = nursery.cancel_scope
                nursery.start_soon(self._work, link, name=f"{self.words} component")
                try:
                    if restored is None:
                        await link.negotiate()
                    elif restored.state is State.READY:
                        link.ready.set()
                    while True:
                        self._take(link, unframe(await channel.receive()))
                except WireError as fault:
                    link.fault = link.fault or fault
                except (trio.EndOfChannel, trio.ClosedResourceError, trio.BrokenResourceError):
                    pass  # the bus has closed it
                nursery.cancel_scope.cancel()
            if link.fault is not None:
                self._stopped = True
                self._trace.warn(
                    Layer.DEVICE,
                    "integration_stopped",
                    self._partition_id,
                    f"{self.words}: {link.fault}",
                    channel=opened.channel_id,
                )
                raise link.fault
        finally:
            link.close()
            if self._link is link:
                self._link = None
                self._lost()

    def save(self, channel_id: int) -> bytes | None:
        """The session, or None while the guest's answers are on their way. The guest stands still."""
        link = self._link
        return None if link is None or link.behind else link.session.save()

    def load(self, untrusted: bytes) -> Session:
        """What `serve` goes on with. Raises `WireError`."""
        return Session.load(self.component, untrusted)

    async def ask(self, body: bytes, limit: float, words: str) -> Answer:
        """The guest's answer to one question, within `limit` seconds of its time. `NoAnswer`, `Unavailable`."""
        link = self._link
        if link is None or not self.ready:
            raise Unavailable(f"{self.words}: {self.contact.value}")
        if self._trace.on:
            self._emit(link, TO_CHILD, words)
        answer = await link.ask(body, limit, self.words)
        if self._trace.on:
            self._emit(link, TO_ROOT, status_words(answer.status))
        return answer

    def stop(self, fault: WireError) -> None:
        """An answer was not what it has to be: the channel is served no more."""
        if self._link is not None:
            self._link.fail(fault)

    # --- what components add

    async def _duty(self) -> None:
        """What it does by itself while it is ready; `NoAnswer` ends it quietly."""

    def _lost(self) -> None:
        """The channel is gone."""

    # --- inside

    async def _work(self, link: Link) -> None:
        await link.ready.wait()
        try:
            await self._duty()
        except NoAnswer:
            pass  # the channel is gone, and this task with it; or the guest is mute, which `contact` shows
        except WireError as fault:
            link.fail(fault)

    def _take(self, link: Link, untrusted: bytes) -> None:
        before = link.session.state
        link.take(untrusted)
        state = link.session.state
        if state is not before and self._trace.on:
            words = f"{self.words}: {state.value}"
            if state is State.READY:
                words += f", version {link.session.version}"
            self._emit(link, TO_ROOT, words, "integration_negotiated")

    def _emit(self, link: Link, direction: str, words: str, event: str = "integration_message") -> None:
        self._trace.emit(
            *(Layer.DEVICE, event, self._partition_id),
            direction=direction,
            channel=link.channel_id,
            words=words,
            component=self.words,
        )


class Link:
    """A session on a channel, and those who wait for an answer."""

    def __init__(self, channel: Channel, channel_id: int, session: Session, time: PartitionTime) -> None:
        self.session = session
        self.channel_id = channel_id
        self.opened_at = time.now()
        self.ready = trio.Event()
        self.mute = False
        self.fault: WireError | None = None
        self.scope: trio.CancelScope | None = None
        self._channel = channel
        self._time = time
        self._turn = trio.Lock()
        self._answered = trio.Event()
        self._answer: Answer | None = None
        self._closed = False

    @property
    def behind(self) -> bool:
        """Whether packets have left the ring and were not looked at."""
        return bool(self._channel.ahead)

    async def negotiate(self) -> None:
        """Send the first message."""
        await self._channel.send(frame(self.session.negotiate()))

    def take(self, untrusted: bytes) -> None:
        """A message from the guest. Raises `WireError`."""
        answer = self.session.take(untrusted)
        if answer is not None:
            self._answer = answer
            self._answered.set()
        elif self.session.state is State.READY and not self.ready.is_set():
            self.ready.set()

    async def ask(self, body: bytes, limit: float, words: str) -> Answer:
        """Wait for our turn, ask, and wait for the answer."""
        async with self._turn:
            self._check_open(words)
            self._answer, self._answered = None, trio.Event()
            packet = frame(self.session.ask(body))
            try:
                with trio.move_on_after(limit) as sending:
                    await self._channel.send(packet)
                if not sending.cancelled_caught:
                    await self._time.wait_for(self._answered, limit)
            except WireError as fault:
                self.fail(fault)
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                self._closed = True
            finally:
                self.session.give_up()
            self._check_open(words)
            answer = self._last_answer()
            self.mute = answer is None
            if answer is None:
                raise NoAnswer(f"{words}: no answer within {limit:g} s")
            return answer

    def _check_open(self, words: str) -> None:
        if self._closed:
            raise NoAnswer(f"{words}: the channel was closed")

    def _last_answer(self) -> Answer | None:
        return self._answer

    def close(self) -> None:
        """The channel is gone: nobody need wait any more."""
        self._closed = True
        self._answered.set()

    def fail(self, fault: WireError) -> None:
        """The guest's mistake: `serve` ends with it."""
        self.fault = self.fault or fault
        self._closed = True
        if self.scope is not None:
            self.scope.cancel()
