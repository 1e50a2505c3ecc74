"""From a live bus to its records. Root side."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import attrs

from vmbus.server.channels import ChannelState, ServerChannel
from vmbus.server.connection import Phase
from vmbus.server.gpadls import GpadlState, ServerGpadl
from vmbus.server.saved import CannotSave, SavedBus, SavedChannel, SavedGpadl

if TYPE_CHECKING:
    from vmbus.gpadl import GpadlRange
    from vmbus.protocol.messages import Message
    from vmbus.server.slots import ChannelSlots
    from vmbus.server.state import ServerState

_SETTLED = (ChannelState.CLIENT_RELEASED, ChannelState.CLOSED, ChannelState.OPEN, ChannelState.REVOKED)


@attrs.frozen
class LiveBus:
    """The parts of a server that have something to keep."""

    state: ServerState
    slots: ChannelSlots
    inbox: Collection[tuple[bool, bytes]]
    """The guest's messages that wait, and whether each came by the multiclient port."""
    outbox: Collection[tuple[Message, bytes]]
    """Messages that the guest's port had no room for."""


def unrest(bus: LiveBus) -> str:
    """What the host is still busy with, for people; empty when the bus can be captured. The guest stands still."""
    state = bus.state
    if state.phase is Phase.DISCONNECTING:
        return "the guest is leaving the bus"
    if bus.inbox and not bus.outbox:
        return "messages of the guest's wait"
    for channel in state.offers.values():
        if channel.state not in (*_SETTLED, ChannelState.REOFFERED) or channel.modifying:
            return f"{channel.offer} is {channel.state.value}"
    for record in state.gpadls:
        if record.silent or record.state in (GpadlState.OFFERED, GpadlState.OFFERED_TEARING_DOWN):
            return f"GPADL {record.gpadl_id:#x} is {record.state.value}"
    return bus.slots.unrest()


def capture(bus: LiveBus) -> SavedBus:
    """The records, once `unrest` is empty. Raises `CannotSave` for what they cannot describe."""
    state = bus.state
    busy = unrest(bus)
    if busy:
        raise CannotSave(busy)
    for channel in state.channels.values():
        if channel.reserved is not None:
            raise CannotSave(f"{channel.offer} is open as a reserved channel")
    if state.agreed is None:
        return SavedBus()
    contact, multiclient = state.agreed
    return SavedBus(
        contact=contact.encode(),
        multiclient=multiclient,
        offers_sent=state.offers_sent,
        paused=state.paused,
        channels=[_channel(bus.slots, channel) for _, channel in sorted(state.channels.items())],
        released=[
            (bytes(channel.offer.interface), bytes(channel.offer.instance))
            for channel in state.offers.values()
            if state.offers_sent and not channel.channel_id and not channel.offer_due
        ],
        gpadls=[_gpadl(record) for record in state.gpadls],
        held=[message.encode() for message in state.held],
        outbox=[data for _, data in bus.outbox],
        inbox=list(bus.inbox),
    )


def _channel(slots: ChannelSlots, channel: ServerChannel) -> SavedChannel:
    offer = channel.offer
    if channel.state is ChannelState.REOFFERED:
        raise CannotSave(f"{offer} went and came back, and the guest has not let go of it")
    opened = channel.state is ChannelState.OPEN
    assert channel.request is not None or not opened
    return SavedChannel(
        channel_id=channel.channel_id,
        interface=bytes(offer.interface),
        instance=bytes(offer.instance),
        subchannel_index=offer.subchannel_index,
        open_message=channel.request.encode() if opened and channel.request is not None else None,
        target_vp=channel.target_vp if opened else 0,
        device=slots.save(channel.channel_id) if opened else None,
        monitor_id=channel.monitor_id,
        withdrawn=channel.state is ChannelState.REVOKED,
    )


def _gpadl(record: ServerGpadl) -> SavedGpadl:
    if record.assembly is not None:
        words, length = record.assembly.words, 8 * record.assembly.expected_words
        count = record.assembly.range_count
    else:
        words = struct.pack(f"<{_count(record.ranges)}Q", *_words(record.ranges))
        length, count = len(words), len(record.ranges)
    return SavedGpadl(record.channel_id, record.gpadl_id, count, length, words, record.state is GpadlState.TEARING_DOWN)


def _count(ranges: Sequence[GpadlRange]) -> int:
    return sum(1 + len(part.gpns) for part in ranges)


def _words(ranges: Sequence[GpadlRange]) -> Iterator[int]:
    for part in ranges:
        yield part.byte_offset << 32 | part.byte_count
        yield from part.gpns
