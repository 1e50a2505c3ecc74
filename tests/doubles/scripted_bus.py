"""The host's end of VMBus as a script of messages, for guests that are under test. Knows one version, some offers."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from hypervisor.status import HvStatus
from hypervisor.wire import Guid
from tests.doubles.machine import FakeMachine
from vmbus.protocol import Direction, Version, decode_message
from vmbus.protocol import messages as m
from vmbus.protocol.identifiers import ChannelStatus, event_connection_id

UNKNOWN = Guid("00000000-1111-2222-3333-444444444444")
SCSI = Guid("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f")


@attrs.define(eq=False, kw_only=True)
class MessageScript:
    """Answers each message as a good host would, unless told otherwise."""

    deliver: Callable[[bytes], None]
    """How a message reaches the guest."""
    version: int = Version.V5_3
    offers: list[Guid] = attrs.field(factory=list)
    """The interface of each device on offer; channels count from 1."""
    message_connection: int = 4
    """What VERSION_RESPONSE names for later messages."""
    quiet: set[m.MessageType] = attrs.field(factory=set)
    """Types that are taken and not answered."""
    open_status: int = ChannelStatus.SUCCESS
    gpadl_status: int = ChannelStatus.SUCCESS
    statuses: list[HvStatus] = attrs.field(factory=list)
    """What the next posts return before any is taken."""
    no_multiclient: bool = False
    """As a hypervisor without connection 4."""
    heard: list[m.Message] = attrs.field(factory=list)
    connections: list[int] = attrs.field(factory=list)
    """By which each message came."""

    def post(self, connection_id: int, payload: bytes) -> HvStatus:
        """What HvPostMessage does."""
        if self.statuses:
            return self.statuses.pop(0)
        known = {1, self.message_connection} if self.no_multiclient else {1, 4, self.message_connection}
        if connection_id not in known:
            return HvStatus.INVALID_CONNECTION_ID
        message = decode_message(payload, sender=Direction.TO_ROOT, version=self.version)
        self.heard.append(message)
        self.connections.append(connection_id)
        if message.TYPE not in self.quiet:
            self.answer(message)
        return HvStatus.SUCCESS

    def answer(self, message: m.Message) -> None:
        """What a server would say."""
        match message:
            case m.InitiateContact() | m.InitiateContact2() | m.InitiateContactLegacy():
                supported = message.version == self.version
                detail = self.message_connection if message.version >= Version.V5_0 else message.version
                self.say(m.VersionResponse(supported=supported, detail=detail if supported else 0))
            case m.RequestOffers():
                for number, interface in enumerate(self.offers, 1):
                    self.offer(number, interface)
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

    def offer(self, channel_id: int, interface: Guid = SCSI) -> None:
        """Offer one device."""
        self.say(
            m.OfferChannel(
                interface=interface,
                instance=Guid(bytes([channel_id]) * 16),
                channel_id=channel_id,
                connection_id=event_connection_id(channel_id),
            )
        )

    def rescind(self, channel_id: int) -> None:
        """Take one back."""
        self.say(m.RescindChannelOffer(channel_id=channel_id))

    def say(self, message: m.Message) -> None:
        """Send one message to the guest."""
        self.deliver(message.encode())

    def types(self) -> list[str]:
        """What was heard, by name."""
        return [message.TYPE.name for message in self.heard]


@attrs.define(eq=False)
class ScriptedBus(MessageScript):
    """The script behind a machine's hypercalls, for a whole kernel."""

    machine: FakeMachine
    deliver: Callable[[bytes], None] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.deliver = self.machine.deliver
        self.machine.on_post = self.post
