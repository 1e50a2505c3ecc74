"""The host's end of VMBus in a few lines, for a kernel on a `FakeMachine`: one version, some offers."""

from __future__ import annotations

import attrs

from hypervisor.status import HvStatus
from hypervisor.wire import Guid
from tests.doubles.machine import FakeMachine
from vmbus.protocol import Direction, Version, decode_message
from vmbus.protocol import messages as m
from vmbus.protocol.identifiers import event_connection_id

UNKNOWN = Guid("00000000-1111-2222-3333-444444444444")


@attrs.define(eq=False)
class ScriptedBus:
    """Install with `ScriptedBus(machine)`. What the guest says is kept in `heard`."""

    machine: FakeMachine
    version: int = Version.V5_3
    offers: list[Guid] = attrs.field(factory=list)
    heard: list[m.Message] = attrs.field(factory=list)
    silent: bool = False
    """Take messages and answer none."""
    busy: int = 0
    """So many posts are refused for want of buffers."""

    def __attrs_post_init__(self) -> None:
        self.machine.on_post = self.post

    def post(self, connection_id: int, payload: bytes) -> HvStatus:
        """What HvPostMessage does."""
        if self.busy:
            self.busy -= 1
            return HvStatus.INSUFFICIENT_BUFFERS
        if connection_id not in (1, 4):
            return HvStatus.INVALID_CONNECTION_ID
        message = decode_message(payload, sender=Direction.TO_ROOT, version=self.version)
        self.heard.append(message)
        if not self.silent:
            self.answer(message)
        return HvStatus.SUCCESS

    def answer(self, message: m.Message) -> None:
        """What a server would say."""
        match message:
            case m.InitiateContact() | m.InitiateContact2() | m.InitiateContactLegacy():
                supported = message.version == self.version
                self.say(m.VersionResponse(supported=supported, detail=4 if self.version >= Version.V5_0 else 0))
            case m.RequestOffers():
                for number, interface in enumerate(self.offers, 1):
                    self.offer(number, interface)
                self.say(m.AllOffersDelivered())
            case m.GpadlHeader():
                created = m.GpadlCreated(channel_id=message.channel_id, gpadl_id=message.gpadl_id)
                self.say(created)
            case m.OpenChannel():
                self.say(m.OpenChannelResult(channel_id=message.channel_id, open_id=message.open_id))
            case m.GpadlTeardown():
                self.say(m.GpadlTorndown(gpadl_id=message.gpadl_id))
            case m.Unload():
                self.say(m.UnloadComplete())
            case _:
                pass

    def offer(self, channel_id: int, interface: Guid) -> None:
        """Offer one device."""
        self.say(
            m.OfferChannel(
                interface=interface,
                instance=Guid(bytes([channel_id]) * 16),
                channel_id=channel_id,
                connection_id=event_connection_id(channel_id),
            )
        )

    def say(self, message: m.Message) -> None:
        """Send one message to the guest."""
        self.machine.deliver(message.encode())
