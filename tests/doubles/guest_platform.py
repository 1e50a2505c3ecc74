"""`GuestPlatform` without a machine, and a host that is a script of messages."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from hypervisor.clock import ticks
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE
from hypervisor.status import HvStatus
from hypervisor.wire import Guid
from vmbus.protocol import Direction, Version, decode_message
from vmbus.protocol import messages as m
from vmbus.protocol.identifiers import ChannelStatus, event_connection_id

INTERFACE = Guid("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f")
FIRST_PAGE = 16


@attrs.define(eq=False)
class FakePlatform:
    """Pages that are counted, hypercalls that are functions, time that is Trio's."""

    memory: memoryview = attrs.field(factory=lambda: memoryview(bytearray(256 * PAGE_SIZE)))
    post: Callable[[int, bytes], HvStatus] = lambda connection_id, payload: HvStatus.SUCCESS
    signal: Callable[[int], HvStatus] = lambda connection_id: HvStatus.SUCCESS
    message_handler: Callable[[bytes], None] | None = None
    event_handlers: dict[int, Callable[[], None]] = attrs.field(factory=dict)
    allocated: dict[int, int] = attrs.field(factory=dict)
    """Pages that are not free, as first page and count."""
    slept: list[float] = attrs.field(factory=list)
    _next_page: int = FIRST_PAGE

    def allocate_pages(self, count: int) -> int:
        gpn = self._next_page
        if (gpn + count) * PAGE_SIZE > len(self.memory):
            raise MemoryError(count)
        self._next_page += count
        self.allocated[gpn] = count
        assert not any(self.memory[gpn << PAGE_SHIFT : (gpn + count) << PAGE_SHIFT])
        return gpn

    def free_pages(self, gpn: int, count: int) -> None:
        assert self.allocated.pop(gpn) == count

    def post_message(self, connection_id: int, payload: bytes) -> HvStatus:
        return self.post(connection_id, payload)

    def signal_event(self, connection_id: int) -> HvStatus:
        return self.signal(connection_id)

    def reference_time(self) -> int:
        return ticks(trio.current_time())

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await trio.sleep(seconds)

    def set_message_handler(self, handler: Callable[[bytes], None] | None) -> None:
        self.message_handler = handler

    def set_event_handler(self, channel_id: int, handler: Callable[[], None] | None) -> None:
        if handler is None:
            self.event_handlers.pop(channel_id, None)
        else:
            self.event_handlers[channel_id] = handler


@attrs.define(eq=False)
class MessageScript:
    """A host that answers each message as a good one would, unless told otherwise; `quiet` types are not answered."""

    platform: FakePlatform
    version: int = Version.V5_3
    offers: int = 1
    message_connection: int = 0x77
    """What VERSION_RESPONSE names for later messages."""
    quiet: set[m.MessageType] = attrs.field(factory=set)
    open_status: int = ChannelStatus.SUCCESS
    gpadl_status: int = ChannelStatus.SUCCESS
    statuses: list[HvStatus] = attrs.field(factory=list)
    """What the next posts return before any is taken."""
    no_multiclient: bool = False
    """As a hypervisor without connection 4."""
    heard: list[m.Message] = attrs.field(factory=list)
    connections: list[int] = attrs.field(factory=list)
    signals: list[int] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.platform.post = self.post
        self.platform.signal = self.signal

    def signal(self, connection_id: int) -> HvStatus:
        self.signals.append(connection_id)
        return HvStatus.SUCCESS

    def post(self, connection_id: int, payload: bytes) -> HvStatus:
        if self.statuses:
            return self.statuses.pop(0)
        if self.no_multiclient and connection_id == 4:
            return HvStatus.INVALID_CONNECTION_ID
        message = decode_message(payload, sender=Direction.TO_ROOT, version=self.version)
        self.heard.append(message)
        self.connections.append(connection_id)
        if message.TYPE not in self.quiet:
            self.answer(message)
        return HvStatus.SUCCESS

    def answer(self, message: m.Message) -> None:
        match message:
            case m.InitiateContact() | m.InitiateContact2() | m.InitiateContactLegacy():
                supported = message.version == self.version
                detail = self.message_connection if message.version >= Version.V5_0 else message.version
                self.say(m.VersionResponse(supported=supported, detail=detail if supported else 0))
            case m.RequestOffers():
                for number in range(1, self.offers + 1):
                    self.offer(number)
                self.say(m.AllOffersDelivered())
            case m.GpadlHeader():
                self.say(
                    m.GpadlCreated(channel_id=message.channel_id, gpadl_id=message.gpadl_id, status=self.gpadl_status)
                )
            case m.OpenChannel():
                self.say(
                    m.OpenChannelResult(channel_id=message.channel_id, open_id=message.open_id, status=self.open_status)
                )
            case m.GpadlTeardown():
                self.say(m.GpadlTorndown(gpadl_id=message.gpadl_id))
            case m.Unload():
                self.say(m.UnloadComplete())
            case _:
                pass

    def offer(self, channel_id: int) -> None:
        self.say(
            m.OfferChannel(
                interface=INTERFACE,
                instance=Guid(bytes([channel_id]) * 16),
                channel_id=channel_id,
                connection_id=event_connection_id(channel_id),
            )
        )

    def rescind(self, channel_id: int) -> None:
        self.say(m.RescindChannelOffer(channel_id=channel_id))

    def say(self, message: m.Message) -> None:
        if self.platform.message_handler is not None:
            self.platform.message_handler(message.encode())

    def types(self) -> list[str]:
        """What was heard, by name."""
        return [message.TYPE.name for message in self.heard]
