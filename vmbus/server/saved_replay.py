"""From records to a live bus: what the guest did is done again in front of a new server. Root side.

Contact, offers, GPADLs, opens: each passes the checks that the guest's own message passed, since a file may say
anything. What the server answers goes nowhere, for the guest has heard it; what it had not heard is queued at the end.
Channel IDs are planned, because a guest that lives on has them in its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec.structs

from hypervisor.monitor_page import TRIGGERS
from hypervisor.wire import WireError
from vmbus.gpadl import BODY_WORDS, HEADER_WORDS
from vmbus.protocol import messages as m
from vmbus.protocol.table import Direction, decode_message
from vmbus.server.channels import ChannelState
from vmbus.server.offers import Offer, OfferKey
from vmbus.server.saved import CannotRestore, SavedBus, SavedChannel, SavedGpadl

if TYPE_CHECKING:
    from vmbus.channel import Channel
    from vmbus.protocol.messages import Message
    from vmbus.server.actions import Action
    from vmbus.server.opened import OpenedChannel
    from vmbus.server.saved_capture import LiveBus
    from vmbus.server.service import VmbusServer
    from vmbus.server.slots import OfferedChannel
    from vmbus.server.state import ServerState

_MOST_QUEUED = 4096
"""Messages in any of a file's queues."""


class _Withdrawn:
    """Stands for a device that went before the guest was saved."""

    def __init__(self, offer: Offer) -> None:
        self.offer = offer

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        """Nobody opens it."""


def replay(server: VmbusServer, bus: LiveBus, perform: Callable[[Sequence[Action]], None], saved: SavedBus) -> None:
    """Bring a new server, with all its devices offered and no guest yet, to the saved state. Raises `CannotRestore`.

    `bus` is what the server consists of; `perform` carries out what follows from a message.
    """
    if any(len(queue) > _MOST_QUEUED for queue in (saved.held, saved.outbox, saved.inbox)):
        raise CannotRestore("more messages wait than a bus keeps")
    try:
        with server.replaying():
            _Replay(server, bus, perform, saved).run()
    except (WireError, ValueError, KeyError) as error:
        raise CannotRestore(f"{type(error).__name__}: {error}") from error
    server.queue_saved(_messages(bus.state, saved.outbox), saved.inbox)


class _Replay:
    def __init__(
        self, server: VmbusServer, bus: LiveBus, perform: Callable[[Sequence[Action]], None], saved: SavedBus
    ) -> None:
        self._server = server
        self._state = bus.state
        self._slots = bus.slots
        self._perform = perform
        self._saved = saved
        self._withdrawn: list[OfferedChannel] = []

    def run(self) -> None:
        saved, state = self._saved, self._state
        if saved.contact is None:
            return
        self._plan_ids()
        for channel in saved.channels:
            if channel.withdrawn:
                self._withdrawn.append(self._server.offer(_Withdrawn(channel.offer)))
        self._say(saved.contact, multiclient=saved.multiclient)
        if saved.offers_sent:
            self._say(m.RequestOffers().encode())
        self._give_monitors()
        for channel in sorted(saved.channels, key=lambda channel: (channel.subchannel_index, channel.channel_id)):
            self._channel(channel)
        for gone in self._withdrawn:
            self._server.rescind(gone)
        for interface, instance in saved.released:
            self._release(interface, instance)
        if saved.paused:
            self._say(m.Pause().encode())
            state.held[:] = _messages(state, saved.held)
        self._compare()

    def _say(self, untrusted: bytes, *, multiclient: bool = False) -> None:
        self._perform(self._state.handle(untrusted, multiclient=multiclient))

    def _plan_ids(self) -> None:
        plan: dict[OfferKey, int] = {}
        for channel in self._saved.channels:
            plan[channel.offer.key] = channel.channel_id
        if len(plan) != len(self._saved.channels) or len(set(plan.values())) != len(plan):
            raise CannotRestore("two channels are one")
        self._state.plan_ids(plan)

    def _give_monitors(self) -> None:
        """The guest has these IDs in its memory; a new bus would have given the lowest."""
        given = [channel.monitor_id for channel in self._saved.channels if channel.monitor_id is not None]
        if len(set(given)) < len(given) or not all(0 <= number < TRIGGERS for number in given):
            raise CannotRestore("two channels have one monitor, or one has none that there is")
        for channel in self._saved.channels:
            live = self._state.channels.get(channel.channel_id)
            if live is not None:
                live.monitor_id = channel.monitor_id

    def _channel(self, saved: SavedChannel) -> None:
        live = self._state.channels.get(saved.channel_id)
        if live is None or live.offer.key != saved.offer.key:
            raise CannotRestore(f"channel {saved.channel_id}: this VM has no such device")
        gpadls = [gpadl for gpadl in self._saved.gpadls if gpadl.channel_id == saved.channel_id]
        for gpadl in gpadls:
            self._gpadl(gpadl)
        if saved.open_message is not None:
            self._open(saved)
        for gpadl in gpadls:
            if gpadl.tearing_down:
                self._say(m.GpadlTeardown(channel_id=gpadl.channel_id, gpadl_id=gpadl.gpadl_id).encode())

    def _gpadl(self, saved: SavedGpadl) -> None:
        words = saved.words
        header = m.GpadlHeader(
            channel_id=saved.channel_id,
            gpadl_id=saved.gpadl_id,
            byte_length=saved.byte_length,
            range_count=saved.range_count,
        )
        self._say(header.encode() + words[: 8 * HEADER_WORDS])
        for start in range(8 * HEADER_WORDS, len(words), 8 * BODY_WORDS):
            self._say(m.GpadlBody(gpadl_id=saved.gpadl_id).encode() + words[start : start + 8 * BODY_WORDS])

    def _open(self, saved: SavedChannel) -> None:
        assert saved.open_message is not None
        request = self._decode(saved.open_message, Direction.TO_ROOT)
        if not isinstance(request, m.OpenChannel | m.OpenChannel2) or request.channel_id != saved.channel_id:
            raise CannotRestore(f"channel {saved.channel_id}: its open message is another one")
        moved: Any = msgspec.structs.replace(request, target_vp=saved.target_vp)  # type: ignore[type-var]
        with self._slots.restoring(saved.channel_id, saved.device):
            self._say(moved.encode())
        live = self._state.channels[saved.channel_id]
        if live.state is not ChannelState.OPEN:
            raise CannotRestore(f"channel {saved.channel_id} cannot be opened again")
        if not saved.subchannel_index:
            key = saved.offer.key[:2]
            more = [one for one in self._saved.channels if one.offer.key[:2] == key and one.subchannel_index]
            self._slots.offer_subchannels(saved.channel_id, len(more))

    def _release(self, interface: bytes, instance: bytes) -> None:
        for channel in list(self._state.channels.values()):
            if channel.offer.key == (interface, instance, 0):
                self._say(m.RelIdReleased(channel_id=channel.channel_id).encode())
                return
        raise CannotRestore("a device that the guest gave back is not there")

    def _compare(self) -> None:
        """The server's state is what was saved: else something of it was refused on the way."""
        state, saved = self._state, self._saved
        expected = {channel.channel_id: _state_of(channel) for channel in saved.channels}
        got = {channel_id: channel.state for channel_id, channel in state.channels.items()}
        for channel_id in expected.keys() | got.keys():
            was, now = expected.get(channel_id), got.get(channel_id)
            if was is not now:
                words = ("none" if which is None else which.value for which in (was, now))
                raise CannotRestore("channel {}: {} was saved, {} came of it".format(channel_id, *words))
        gpadls = {(gpadl.channel_id, gpadl.gpadl_id) for gpadl in saved.gpadls}
        live = {(record.channel_id, record.gpadl_id) for record in state.gpadls}
        # One that was being torn down may have been let go of at once.
        going = {(gpadl.channel_id, gpadl.gpadl_id) for gpadl in saved.gpadls if gpadl.tearing_down}
        if not gpadls - going <= live <= gpadls or len(gpadls) != len(saved.gpadls):
            raise CannotRestore("not all of the guest's GPADLs are what they were")

    def _decode(self, data: bytes, sender: Direction) -> Message:
        return decode_message(data, sender=sender, version=self._state.version, features=self._state.features)


def _state_of(channel: SavedChannel) -> ChannelState:
    if channel.withdrawn:
        return ChannelState.REVOKED
    return ChannelState.CLOSED if channel.open_message is None else ChannelState.OPEN


def _messages(state: ServerState, data: list[bytes]) -> list[Message]:
    """Messages to the guest; they may be anything that such a host says. Raises `CannotRestore`."""
    try:
        return [
            decode_message(one, sender=Direction.TO_CHILD, version=state.version, features=state.features)
            for one in data
        ]
    except WireError as error:
        raise CannotRestore(f"a queued message: {error}") from error
