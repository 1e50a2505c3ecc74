"""The layouts of all channel messages, 1 to 29. Both sides.

Each struct is the whole fixed part of one message, with the eight-byte header: the type at 0, four bytes of padding.
The variable tails of GPADL_HEADER and GPADL_BODY are the bytes that follow. `table.py` says which of these is legal
when. Field meanings are from openvmm (vmbus_core, protocol.rs) and Linux (include/linux/hyperv.h); offsets are checked
by tests/spec/layouts/vmbus.txt.

Every field has a default, since the type comes first; name the fields that you set. `WORDS` is how `describe` puts a
message into words, as a format string over the message `m`.
"""

from __future__ import annotations

import enum
from typing import ClassVar

from hypervisor.wire import Guid, Wire, at, wire
from hypervisor.wire.scalars import bytes120, guid, u8, u16, u32, u64
from vmbus.protocol.identifiers import NO_MONITOR
from vmbus.protocol.pages import ConnectionPages
from vmbus.protocol.versions import Version, version_text

_NO_PAGES = ConnectionPages()
_SPEC = "openvmm vmbus_core protocol.rs; Linux include/linux/hyperv.h"


class MessageType(enum.IntEnum):
    """The number in the first word of a channel message."""

    OFFER_CHANNEL = 1
    RESCIND_CHANNEL_OFFER = 2
    REQUEST_OFFERS = 3
    ALL_OFFERS_DELIVERED = 4
    OPEN_CHANNEL = 5
    OPEN_CHANNEL_RESULT = 6
    CLOSE_CHANNEL = 7
    GPADL_HEADER = 8
    GPADL_BODY = 9
    GPADL_CREATED = 10
    GPADL_TEARDOWN = 11
    GPADL_TORNDOWN = 12
    REL_ID_RELEASED = 13
    INITIATE_CONTACT = 14
    VERSION_RESPONSE = 15
    UNLOAD = 16
    UNLOAD_COMPLETE = 17
    OPEN_RESERVED_CHANNEL = 18
    CLOSE_RESERVED_CHANNEL = 19
    CLOSE_RESERVED_RESPONSE = 20
    TL_CONNECT_REQUEST = 21
    MODIFY_CHANNEL = 22
    TL_CONNECT_RESULT = 23
    MODIFY_CHANNEL_RESPONSE = 24
    MODIFY_CONNECTION = 25
    MODIFY_CONNECTION_RESPONSE = 26
    PAUSE = 27
    PAUSE_RESPONSE = 28
    RESUME = 29


class Message(Wire):
    """Base of all channel messages."""

    __slots__ = ()

    TYPE: ClassVar[MessageType]
    WORDS: ClassVar[str] = ""


@wire(size=196, spec=_SPEC)
class OfferChannel(Message):
    """A device is there; the guest may open it by `channel_id`."""

    TYPE: ClassVar = MessageType.OFFER_CHANNEL
    WORDS: ClassVar = "channel={m.channel_id} interface={m.interface} instance={m.instance} sub={m.subchannel_index}"

    message_type: u32 = at(0, default=MessageType.OFFER_CHANNEL)
    interface: guid = at(8, default=Guid())
    """What kind of device it is; a driver binds to it."""
    instance: guid = at(24, default=Guid())
    """Which one it is; the same after a reboot. A subchannel has its primary's."""
    flags: u16 = at(56, default=0)
    """`OfferFlag` bits."""
    mmio_megabytes: u16 = at(58, default=0)
    user_defined: bytes120 = at(60, default=bytes(120))
    subchannel_index: u16 = at(180, default=0)
    mmio_megabytes_optional: u16 = at(182, default=0)
    channel_id: u32 = at(184, default=0)
    """1 to 2047; Linux calls it the relid."""
    monitor_id: u8 = at(188, default=NO_MONITOR)
    monitor_allocated: u8 = at(189, default=0)
    is_dedicated: u16 = at(190, default=1)
    """1 from version 2.4 on: `connection_id` is this channel's own."""
    connection_id: u32 = at(192, default=0)
    """What the guest signals to wake the host."""


@wire(size=12, spec=_SPEC)
class RescindChannelOffer(Message):
    """The device is gone; the guest answers with REL_ID_RELEASED when it holds the ID no longer."""

    TYPE: ClassVar = MessageType.RESCIND_CHANNEL_OFFER
    WORDS: ClassVar = "channel={m.channel_id}"

    message_type: u32 = at(0, default=MessageType.RESCIND_CHANNEL_OFFER)
    channel_id: u32 = at(8, default=0)


@wire(size=8, spec=_SPEC)
class RequestOffers(Message):
    """The guest wants all offers, once per connection."""

    TYPE: ClassVar = MessageType.REQUEST_OFFERS

    message_type: u32 = at(0, default=MessageType.REQUEST_OFFERS)


@wire(size=8, spec=_SPEC)
class AllOffersDelivered(Message):
    """The devices that were there at REQUEST_OFFERS have all been offered; later offers are hot."""

    TYPE: ClassVar = MessageType.ALL_OFFERS_DELIVERED

    message_type: u32 = at(0, default=MessageType.ALL_OFFERS_DELIVERED)


@wire(size=148, spec=_SPEC)
class OpenChannel(Message):
    """Start to use a channel whose rings are in a GPADL."""

    TYPE: ClassVar = MessageType.OPEN_CHANNEL
    WORDS: ClassVar = "channel={m.channel_id} gpadl={m.gpadl_id:#x} vp={m.target_vp} downstream={m.downstream_page}"

    message_type: u32 = at(0, default=MessageType.OPEN_CHANNEL)
    channel_id: u32 = at(8, default=0)
    open_id: u32 = at(12, default=0)
    """Comes back in the result."""
    gpadl_id: u32 = at(16, default=0)
    """Both rings, the guest's outgoing one first."""
    target_vp: u32 = at(20, default=0)
    """Takes the channel's interrupts; `INTERRUPTS_OFF` for none."""
    downstream_page: u32 = at(24, default=0)
    """The page of the GPADL at which the host's outgoing ring begins."""
    user_data: bytes120 = at(28, default=bytes(120))


@wire(size=156, spec=_SPEC)
class OpenChannel2(Message):
    """OPEN_CHANNEL where signal parameters or interrupt redirection were negotiated (6.0)."""

    TYPE: ClassVar = MessageType.OPEN_CHANNEL
    WORDS: ClassVar = (
        "channel={m.channel_id} gpadl={m.gpadl_id:#x} vp={m.target_vp} downstream={m.downstream_page} "
        "connection={m.connection_id:#x} flag={m.event_flag}"
    )

    message_type: u32 = at(0, default=MessageType.OPEN_CHANNEL)
    channel_id: u32 = at(8, default=0)
    open_id: u32 = at(12, default=0)
    gpadl_id: u32 = at(16, default=0)
    target_vp: u32 = at(20, default=0)
    downstream_page: u32 = at(24, default=0)
    user_data: bytes120 = at(28, default=bytes(120))
    connection_id: u32 = at(148, default=0)
    """What the guest will signal, in place of the offer's."""
    event_flag: u16 = at(152, default=0)
    """What the host is to set, in place of the channel ID."""
    open_flags: u16 = at(154, default=0)
    """Bit 0: redirect the interrupt. Other bits mean nothing."""


@wire(size=20, spec=_SPEC)
class OpenChannelResult(Message):
    """How OPEN_CHANNEL went."""

    TYPE: ClassVar = MessageType.OPEN_CHANNEL_RESULT
    WORDS: ClassVar = "channel={m.channel_id} open_id={m.open_id} status={m.status:#x}"

    message_type: u32 = at(0, default=MessageType.OPEN_CHANNEL_RESULT)
    channel_id: u32 = at(8, default=0)
    open_id: u32 = at(12, default=0)
    status: u32 = at(16, default=0)


@wire(size=12, spec=_SPEC)
class CloseChannel(Message):
    """The guest uses the channel no longer; nothing answers this."""

    TYPE: ClassVar = MessageType.CLOSE_CHANNEL
    WORDS: ClassVar = "channel={m.channel_id}"

    message_type: u32 = at(0, default=MessageType.CLOSE_CHANNEL)
    channel_id: u32 = at(8, default=0)


@wire(size=20, spec=_SPEC)
class GpadlHeader(Message):
    """Begin to name guest pages to the host; 64-bit words follow, at most 27 in this message."""

    TYPE: ClassVar = MessageType.GPADL_HEADER
    WORDS: ClassVar = "channel={m.channel_id} gpadl={m.gpadl_id:#x} bytes={m.byte_length} ranges={m.range_count}"

    message_type: u32 = at(0, default=MessageType.GPADL_HEADER)
    channel_id: u32 = at(8, default=0)
    gpadl_id: u32 = at(12, default=0)
    byte_length: u16 = at(16, default=0)
    """Of all range words, in this message and the bodies."""
    range_count: u16 = at(18, default=0)


@wire(size=16, spec=_SPEC)
class GpadlBody(Message):
    """More words of a GPADL, at most 28; it names no channel."""

    TYPE: ClassVar = MessageType.GPADL_BODY
    WORDS: ClassVar = "gpadl={m.gpadl_id:#x}"

    message_type: u32 = at(0, default=MessageType.GPADL_BODY)
    message_number: u32 = at(8, default=0)
    """Linux leaves it 0 in every body; order of arrival counts."""
    gpadl_id: u32 = at(12, default=0)


@wire(size=20, spec=_SPEC)
class GpadlCreated(Message):
    """The whole GPADL was taken, or refused; after a refusal the ID is free again."""

    TYPE: ClassVar = MessageType.GPADL_CREATED
    WORDS: ClassVar = "channel={m.channel_id} gpadl={m.gpadl_id:#x} status={m.status:#x}"

    message_type: u32 = at(0, default=MessageType.GPADL_CREATED)
    channel_id: u32 = at(8, default=0)
    gpadl_id: u32 = at(12, default=0)
    status: u32 = at(16, default=0)


@wire(size=16, spec=_SPEC)
class GpadlTeardown(Message):
    """The guest wants its pages back."""

    TYPE: ClassVar = MessageType.GPADL_TEARDOWN
    WORDS: ClassVar = "channel={m.channel_id} gpadl={m.gpadl_id:#x}"

    message_type: u32 = at(0, default=MessageType.GPADL_TEARDOWN)
    channel_id: u32 = at(8, default=0)
    gpadl_id: u32 = at(12, default=0)


@wire(size=12, spec=_SPEC)
class GpadlTorndown(Message):
    """The host looks at the pages no longer."""

    TYPE: ClassVar = MessageType.GPADL_TORNDOWN
    WORDS: ClassVar = "gpadl={m.gpadl_id:#x}"

    message_type: u32 = at(0, default=MessageType.GPADL_TORNDOWN)
    gpadl_id: u32 = at(8, default=0)


@wire(size=12, spec=_SPEC)
class RelIdReleased(Message):
    """The guest holds the channel ID no longer."""

    TYPE: ClassVar = MessageType.REL_ID_RELEASED
    WORDS: ClassVar = "channel={m.channel_id}"

    message_type: u32 = at(0, default=MessageType.REL_ID_RELEASED)
    channel_id: u32 = at(8, default=0)


@wire(size=40, spec=_SPEC)
class InitiateContactLegacy(Message):
    """Ask for a connection at a version below 5.0; from 2.4 on the interrupt page is ignored."""

    TYPE: ClassVar = MessageType.INITIATE_CONTACT
    WORDS: ClassVar = "version={m.version_text} vp={m.target_vp}"

    message_type: u32 = at(0, default=MessageType.INITIATE_CONTACT)
    version: u32 = at(8, default=0)
    target_vp: u32 = at(12, default=0)
    """Takes channel messages; honoured from 3.0 on, VP 0 below."""
    interrupt_page: u64 = at(16, default=0)
    """A GPA."""
    parent_to_child_monitor_page: u64 = at(24, default=0)
    """A GPA, or 0; both monitor pages or neither."""
    child_to_parent_monitor_page: u64 = at(32, default=0)

    @property
    def version_text(self) -> str:
        """The version asked for, as `4.1`."""
        return version_text(self.version)


@wire(size=40, spec=_SPEC)
class InitiateContact(Message):
    """Ask for a connection at 5.0 or later; the field of the interrupt page says where messages shall go."""

    TYPE: ClassVar = MessageType.INITIATE_CONTACT
    WORDS: ClassVar = "version={m.version_text} vp={m.target_vp} sint={m.target_sint} features={m.features:#x}"

    message_type: u32 = at(0, default=MessageType.INITIATE_CONTACT)
    version: u32 = at(8, default=0)
    target_vp: u32 = at(12, default=0)
    target_sint: u8 = at(16, default=2)
    target_vtl: u8 = at(17, default=0)
    features: u32 = at(20, default=0)
    """`Feature` bits asked for; meaningful at 6.0."""
    parent_to_child_monitor_page: u64 = at(24, default=0)
    child_to_parent_monitor_page: u64 = at(32, default=0)

    @property
    def version_text(self) -> str:
        """The version asked for, as `5.3`."""
        return version_text(self.version)


@wire(size=56, spec=_SPEC)
class InitiateContact2(Message):
    """INITIATE_CONTACT of at least 56 bytes; the client ID counts if its feature is asked for."""

    TYPE: ClassVar = MessageType.INITIATE_CONTACT
    WORDS: ClassVar = (
        "version={m.version_text} vp={m.target_vp} sint={m.target_sint} features={m.features:#x} client={m.client_id}"
    )

    message_type: u32 = at(0, default=MessageType.INITIATE_CONTACT)
    version: u32 = at(8, default=0)
    target_vp: u32 = at(12, default=0)
    target_sint: u8 = at(16, default=2)
    target_vtl: u8 = at(17, default=0)
    features: u32 = at(20, default=0)
    parent_to_child_monitor_page: u64 = at(24, default=0)
    child_to_parent_monitor_page: u64 = at(32, default=0)
    client_id: guid = at(40, default=Guid())

    @property
    def version_text(self) -> str:
        """The version asked for, as `6.0`."""
        return version_text(self.version)


@wire(size=16, spec=_SPEC)
class VersionResponse(Message):
    """Whether the version asked for is spoken here; never shorter than 16 bytes, or Linux drops it."""

    TYPE: ClassVar = MessageType.VERSION_RESPONSE
    WORDS: ClassVar = "supported={m.supported} state={m.connection_state} detail={m.detail:#x}"

    message_type: u32 = at(0, default=MessageType.VERSION_RESPONSE)
    supported: u8 = at(8, default=0)
    connection_state: u8 = at(9, default=0)
    """A `ConnectionState`; Linux does not look at it."""
    detail: u32 = at(12, default=0)
    """At 5.0 and later the connection ID that the guest shall post to from now on, below that the version."""


@wire(size=20, spec=_SPEC)
class VersionResponse2(Message):
    """A contact at 6.0 went well."""

    TYPE: ClassVar = MessageType.VERSION_RESPONSE
    WORDS: ClassVar = "supported={m.supported} state={m.connection_state} detail={m.detail:#x} features={m.features:#x}"

    message_type: u32 = at(0, default=MessageType.VERSION_RESPONSE)
    supported: u8 = at(8, default=0)
    connection_state: u8 = at(9, default=0)
    detail: u32 = at(12, default=0)
    features: u32 = at(16, default=0)
    """`Feature` bits that were asked for and are granted."""


@wire(size=40, spec=_SPEC)
class VersionResponse3(Message):
    """As before, with monitor pages that the host allocated."""

    TYPE: ClassVar = MessageType.VERSION_RESPONSE
    WORDS: ClassVar = (
        "supported={m.supported} state={m.connection_state} detail={m.detail:#x} features={m.features:#x} "
        "monitors={m.parent_to_child_monitor_page:#x},{m.child_to_parent_monitor_page:#x}"
    )

    message_type: u32 = at(0, default=MessageType.VERSION_RESPONSE)
    supported: u8 = at(8, default=0)
    connection_state: u8 = at(9, default=0)
    detail: u32 = at(12, default=0)
    features: u32 = at(16, default=0)
    parent_to_child_monitor_page: u64 = at(24, default=0)
    child_to_parent_monitor_page: u64 = at(32, default=0)


@wire(size=8, spec=_SPEC)
class Unload(Message):
    """The guest leaves: its driver ends, or another kernel is about to start."""

    TYPE: ClassVar = MessageType.UNLOAD

    message_type: u32 = at(0, default=MessageType.UNLOAD)


@wire(size=8, spec=_SPEC)
class UnloadComplete(Message):
    """The host holds nothing of the guest's any longer."""

    TYPE: ClassVar = MessageType.UNLOAD_COMPLETE

    message_type: u32 = at(0, default=MessageType.UNLOAD_COMPLETE)


@wire(size=28, spec=_SPEC)
class OpenReservedChannel(Message):
    """Open a channel that survives UNLOAD, such as a crash dump's."""

    TYPE: ClassVar = MessageType.OPEN_RESERVED_CHANNEL
    WORDS: ClassVar = "channel={m.channel_id} gpadl={m.gpadl_id:#x} vp={m.target_vp} sint={m.target_sint}"

    message_type: u32 = at(0, default=MessageType.OPEN_RESERVED_CHANNEL)
    channel_id: u32 = at(8, default=0)
    target_vp: u32 = at(12, default=0)
    """Where this channel's messages go."""
    target_sint: u32 = at(16, default=0)
    gpadl_id: u32 = at(20, default=0)
    downstream_page: u32 = at(24, default=0)


@wire(size=20, spec=_SPEC)
class CloseReservedChannel(Message):
    """Close a reserved channel; legal without a connection."""

    TYPE: ClassVar = MessageType.CLOSE_RESERVED_CHANNEL
    WORDS: ClassVar = "channel={m.channel_id} vp={m.target_vp} sint={m.target_sint}"

    message_type: u32 = at(0, default=MessageType.CLOSE_RESERVED_CHANNEL)
    channel_id: u32 = at(8, default=0)
    target_vp: u32 = at(12, default=0)
    """Where the answer goes."""
    target_sint: u32 = at(16, default=0)


@wire(size=12, spec=_SPEC)
class CloseReservedResponse(Message):
    """The reserved channel is closed."""

    TYPE: ClassVar = MessageType.CLOSE_RESERVED_RESPONSE
    WORDS: ClassVar = "channel={m.channel_id}"

    message_type: u32 = at(0, default=MessageType.CLOSE_RESERVED_RESPONSE)
    channel_id: u32 = at(8, default=0)


@wire(size=40, spec=_SPEC)
class TlConnectRequest(Message):
    """Connect a Hyper-V socket to a service of the host."""

    TYPE: ClassVar = MessageType.TL_CONNECT_REQUEST
    WORDS: ClassVar = "endpoint={m.endpoint} service={m.service}"

    message_type: u32 = at(0, default=MessageType.TL_CONNECT_REQUEST)
    endpoint: guid = at(8, default=Guid())
    service: guid = at(24, default=Guid())


@wire(size=56, spec=_SPEC)
class TlConnectRequest2(Message):
    """The same with the silo (container) that it comes from (5.2)."""

    TYPE: ClassVar = MessageType.TL_CONNECT_REQUEST
    WORDS: ClassVar = "endpoint={m.endpoint} service={m.service} silo={m.silo}"

    message_type: u32 = at(0, default=MessageType.TL_CONNECT_REQUEST)
    endpoint: guid = at(8, default=Guid())
    service: guid = at(24, default=Guid())
    silo: guid = at(40, default=Guid())


@wire(size=16, spec=_SPEC)
class ModifyChannel(Message):
    """Move an open channel's interrupts to another VP."""

    TYPE: ClassVar = MessageType.MODIFY_CHANNEL
    WORDS: ClassVar = "channel={m.channel_id} vp={m.target_vp}"

    message_type: u32 = at(0, default=MessageType.MODIFY_CHANNEL)
    channel_id: u32 = at(8, default=0)
    target_vp: u32 = at(12, default=0)


@wire(size=44, spec=_SPEC)
class TlConnectResult(Message):
    """A Hyper-V socket's connection failed; success is told by an offer."""

    TYPE: ClassVar = MessageType.TL_CONNECT_RESULT
    WORDS: ClassVar = "endpoint={m.endpoint} service={m.service} status={m.status:#x}"

    message_type: u32 = at(0, default=MessageType.TL_CONNECT_RESULT)
    endpoint: guid = at(8, default=Guid())
    service: guid = at(24, default=Guid())
    status: u32 = at(40, default=0)


@wire(size=16, spec=_SPEC)
class ModifyChannelResponse(Message):
    """How MODIFY_CHANNEL went (5.3)."""

    TYPE: ClassVar = MessageType.MODIFY_CHANNEL_RESPONSE
    WORDS: ClassVar = "channel={m.channel_id} status={m.status:#x}"

    message_type: u32 = at(0, default=MessageType.MODIFY_CHANNEL_RESPONSE)
    channel_id: u32 = at(8, default=0)
    status: u32 = at(12, default=0)


@wire(size=24, spec=_SPEC)
class ModifyConnection(Message):
    """Set or change the monitor pages of a connection."""

    TYPE: ClassVar = MessageType.MODIFY_CONNECTION
    WORDS: ClassVar = "monitors={m.parent_to_child_monitor_page:#x},{m.child_to_parent_monitor_page:#x}"

    message_type: u32 = at(0, default=MessageType.MODIFY_CONNECTION)
    parent_to_child_monitor_page: u64 = at(8, default=0)
    child_to_parent_monitor_page: u64 = at(16, default=0)


@wire(size=9, spec=_SPEC)
class ModifyConnectionResponse(Message):
    """How MODIFY_CONNECTION went."""

    TYPE: ClassVar = MessageType.MODIFY_CONNECTION_RESPONSE
    WORDS: ClassVar = "state={m.connection_state}"

    message_type: u32 = at(0, default=MessageType.MODIFY_CONNECTION_RESPONSE)
    connection_state: u8 = at(8, default=0)


@wire(size=8, spec=_SPEC)
class Pause(Message):
    """Send nothing after PAUSE_RESPONSE until RESUME."""

    TYPE: ClassVar = MessageType.PAUSE

    message_type: u32 = at(0, default=MessageType.PAUSE)


@wire(size=8, spec=_SPEC)
class PauseResponse(Message):
    """The last message before RESUME."""

    TYPE: ClassVar = MessageType.PAUSE_RESPONSE

    message_type: u32 = at(0, default=MessageType.PAUSE_RESPONSE)


@wire(size=8, spec=_SPEC)
class Resume(Message):
    """Send what was kept back."""

    TYPE: ClassVar = MessageType.RESUME

    message_type: u32 = at(0, default=MessageType.RESUME)


def initiate_contact(
    version: int,
    *,
    target_vp: int = 0,
    features: int = 0,
    client_id: Guid | None = None,
    pages: ConnectionPages = _NO_PAGES,
) -> InitiateContactLegacy | InitiateContact | InitiateContact2:
    """The form that a guest sends for `version`; below 5.0 it has the interrupt page, though 2.4 ignores it."""
    if version < Version.V5_0:
        return InitiateContactLegacy(
            version=version,
            target_vp=target_vp,
            interrupt_page=pages.interrupt,
            parent_to_child_monitor_page=pages.to_child,
            child_to_parent_monitor_page=pages.to_root,
        )
    if client_id is None:
        return InitiateContact(
            version=version,
            target_vp=target_vp,
            features=features,
            parent_to_child_monitor_page=pages.to_child,
            child_to_parent_monitor_page=pages.to_root,
        )
    return InitiateContact2(
        version=version,
        target_vp=target_vp,
        features=features,
        parent_to_child_monitor_page=pages.to_child,
        child_to_parent_monitor_page=pages.to_root,
        client_id=client_id,
    )
