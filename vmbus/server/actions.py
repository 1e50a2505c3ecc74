"""What the state machine asks its service to do: small values, carried out in order. Root side."""

from __future__ import annotations

import msgspec

from hypervisor.wire import Guid
from vmbus.gpadl import GpadlRange
from vmbus.protocol.messages import Message
from vmbus.protocol.pages import ConnectionPages


class SendMessage(msgspec.Struct, frozen=True):
    """Post a channel message to the guest, after all that are still queued."""

    message: Message


class SendReserved(msgspec.Struct, frozen=True):
    """Post an answer about a reserved channel to a target of its own, now or never: it is not queued."""

    message: Message
    vp: int
    sint: int


class SetMessageTarget(msgspec.Struct, frozen=True):
    """From here on messages go to this SINT of this VP."""

    vp: int
    sint: int
    or_first: bool = False
    """To VP 0 if there is no such VP: where a version is not spoken here, its idea of a VP may be another too."""


class DropMessageTarget(msgspec.Struct, frozen=True):
    """The guest is gone: forget the messages that it has not taken."""


class UsePages(msgspec.Struct, frozen=True):
    """From here on these are the connection's pages; the guest has the ones before for itself again."""

    pages: ConnectionPages


class CreateChannel(msgspec.Struct, frozen=True):
    """The channel's offer is about to be sent: the guest may signal it from now on."""

    channel_id: int
    handle: int
    """Of the offer, as `ServerState.offer` returned it."""


class DropChannel(msgspec.Struct, frozen=True):
    """The channel's ID is free again."""

    channel_id: int


class OpenDevice(msgspec.Struct, frozen=True):
    """Attach the rings and start the device; answer with `ServerState.channel_opened`."""

    channel_id: int
    handle: int
    ring: GpadlRange
    """Whole pages, the guest's outgoing ring first."""
    gpadl_id: int
    downstream_page: int
    """Where the host's outgoing ring begins; each part has at least two pages."""
    target_vp: int
    user_data: bytes
    version: int
    connection_id: int
    """What the guest signals for this channel."""
    event_flag: int
    """What the host sets in the guest for it."""
    monitor_id: int | None = None
    """What each sets in a monitor page instead, where the offer named one and interrupts are on."""


class StopOpening(msgspec.Struct, frozen=True):
    """Nobody waits any more for the answer to this channel's `OpenDevice`: hurry; the answer is due all the same."""

    channel_id: int


class RetargetChannel(msgspec.Struct, frozen=True):
    """Move an open channel's interrupts to another VP; answer with `ServerState.channel_modified`."""

    channel_id: int
    target_vp: int


class CloseDevice(msgspec.Struct, frozen=True):
    """Stop the device and drop its views; answer with `ServerState.channel_closed`."""

    channel_id: int


class MapGpadl(msgspec.Struct, frozen=True):
    """Check the pages against the guest's memory; answer with `ServerState.gpadl_mapped`."""

    channel_id: int
    gpadl_id: int
    ranges: tuple[GpadlRange, ...]


class ReleaseGpadl(msgspec.Struct, frozen=True):
    """When the last view of these pages is gone, answer with `ServerState.gpadl_released`."""

    channel_id: int
    gpadl_id: int


class ConnectSocket(msgspec.Struct, frozen=True):
    """The guest wants a stream to a service: offer a channel for it, or do not; `ServerState.connect_answered`."""

    number: int
    """Of the request."""
    endpoint: Guid
    service: Guid


class StateChanged(msgspec.Struct, frozen=True):
    """For the trace: the connection (`channel_id` None) or a channel went from one state to another."""

    channel_id: int | None
    before: str
    after: str


class ProtocolFault(msgspec.Struct, frozen=True):
    """The guest did what it may not; the message was dropped or refused. Count it and warn."""

    event: str
    """A fixed set: malformed_message, unexpected_message, refused_gpadl, gpadl_limit, refused_open, refused_contact."""
    words: str


Action = (
    SendMessage
    | SendReserved
    | SetMessageTarget
    | DropMessageTarget
    | UsePages
    | CreateChannel
    | DropChannel
    | OpenDevice
    | StopOpening
    | RetargetChannel
    | CloseDevice
    | MapGpadl
    | ReleaseGpadl
    | ConnectSocket
    | StateChanged
    | ProtocolFault
)
