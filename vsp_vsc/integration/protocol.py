"""What all integration components share: framing, negotiation, versions, and which mistakes cost what. Both sides.

A component is one channel of messages (`vmbus.pipe`). A message is a header of 20 bytes and a body. The host asks, one
question at a time, and the guest answers with the same transaction ID; the guest says nothing unasked. The first
question offers versions of the framework and of the component's own messages; the guest picks one of each.

What a guest's mistake costs it:

    soft, the host goes on as if nothing had come
        an answer with the transaction ID or type of a question that nobody waits for any more: dropped and counted
    an end to this component until the guest closes its channel, without an error
        no version in common
    hard, the channel is served no more
        a message shorter than its header says, or not in a pipe packet
        a message that is no answer: the guest has nothing to ask
        an answer to the negotiation that picks what was not offered, or a length that its counts do not allow
        a body shorter than the answer to that question has to be
        a corrupt ring
    fatal for the VM
        nothing

Layouts after Linux 6.12 include/linux/hyperv.h; behaviour after openvmm hyperv_ic.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hypervisor.wire import BadValue, Cursor, Guid, ShortMessage, TooMany, Wire, at, wire
from hypervisor.wire.scalars import u8, u16, u32

HEADER_SIZE = 20
MAX_MESSAGE = 13312
"""Bytes of a message with its header."""
MAX_VERSIONS = 64
"""Of each kind, that a guest looks at in an offer."""
RING_BYTES = 16384
"""Each way, with the control page: what Linux opens its components with."""
MESSAGE_PIPE = 4
"""The pipe type that an offer's first word says."""


class Component(enum.IntEnum):
    """Message types: the negotiation, and one for each component."""

    NEGOTIATE = 0
    HEARTBEAT = 1
    KVP = 2
    SHUTDOWN = 3
    TIME_SYNC = 4
    VSS = 5
    REMOTE_DESKTOP = 6
    FILE_COPY = 7
    VM_SESSION = 8

    @property
    def words(self) -> str:
        """For people."""
        return self.name.lower().replace("_", " ")


class Flags(enum.IntFlag):
    """What a message is."""

    TRANSACTION = 1
    REQUEST = 2
    RESPONSE = 4


REQUEST = int(Flags.TRANSACTION | Flags.REQUEST)
RESPONSE = int(Flags.TRANSACTION | Flags.RESPONSE)


class Status(enum.IntEnum):
    """The answers that are known by name; a guest may give others."""

    SUCCESS = 0
    FAIL = 0x8000_4005
    NOT_FOUND = 0x8004_1002
    PATH_NOT_FOUND = 0x8007_0003
    NOT_SUPPORTED = 0x8007_0032
    ALREADY_EXISTS = 0x8007_0050
    INVALID_ARGUMENT = 0x8007_0057
    DISK_FULL = 0x8007_0070
    NO_MORE_ITEMS = 0x8007_0103
    CANCELLED = 0x8007_04C7


def status_words(status: int) -> str:
    """A status for people."""
    try:
        return Status(status).name.lower().replace("_", " ")
    except ValueError:
        return f"status {status:#010x}"


class Version(NamedTuple):
    """A version of the framework or of a component's messages."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


FRAMEWORK_VERSIONS = (Version(1, 0), Version(3, 0))
"""In the order in which the host offers them."""
VERSIONS: dict[Component, tuple[Version, ...]] = {
    Component.HEARTBEAT: (Version(1, 0), Version(3, 0)),
    Component.SHUTDOWN: (Version(1, 0), Version(3, 0), Version(3, 1), Version(3, 2)),
    Component.TIME_SYNC: (Version(1, 0), Version(3, 0), Version(4, 0)),
    Component.KVP: (Version(3, 0), Version(4, 0), Version(5, 0)),
    Component.VSS: (Version(4, 0), Version(5, 0), Version(6, 0), Version(7, 0)),
    Component.FILE_COPY: (Version(1, 0), Version(1, 1)),
}
"""What our sides speak, in the order in which the host offers it."""

INTERFACES: dict[Component, Guid] = {
    Component.HEARTBEAT: Guid("57164f39-9115-4e78-ab55-382f3bd5422d"),
    Component.SHUTDOWN: Guid("0e0b6031-5213-4934-818b-38d90ced39db"),
    Component.TIME_SYNC: Guid("9527e630-d0ae-497b-adce-e80ab0175caf"),
    Component.KVP: Guid("a9a0f4e7-5a45-4d96-b827-8a841e8c03e6"),
    Component.VSS: Guid("35fa2e29-ea23-4236-96ae-3a6ebacba440"),
    Component.FILE_COPY: Guid("34d14be3-dee4-41c8-9ae7-6b174977c192"),
}
"""The interfaces that components are offered under."""


@wire(size=HEADER_SIZE, spec="Linux hyperv.h, struct icmsg_hdr")
class Header(Wire):
    """In front of every message."""

    framework_major: u16 = at(0)
    framework_minor: u16 = at(2)
    component: u16 = at(4)
    message_major: u16 = at(6)
    message_minor: u16 = at(8)
    size: u16 = at(10)
    """Of the body."""
    status: u32 = at(12, default=0)
    transaction_id: u8 = at(16, default=0)
    flags: u8 = at(17, default=REQUEST)
    reserved: u16 = at(18, default=0)


@wire(size=8, spec="Linux hyperv.h, struct icmsg_negotiate")
class Negotiate(Wire):
    """Counts of versions; the versions follow, the framework's first."""

    framework_count: u16 = at(0)
    message_count: u16 = at(2)
    reserved: u32 = at(4, default=0)


_VERSION = struct.Struct("<HH")
NO_VERSION = Version(0, 0)


class Message(NamedTuple):
    """A message in two parts."""

    header: Header
    body: bytes


def encode_message(
    component: int,
    body: bytes,
    *,
    framework: Version = NO_VERSION,
    version: Version = NO_VERSION,
    transaction_id: int = 0,
    flags: int = REQUEST,
    status: int = 0,
) -> bytes:
    """One message, to be sent through a message pipe."""
    return Header(*framework, component, *version, len(body), status, transaction_id, flags).encode() + body


def decode_message(untrusted: bytes) -> Message:
    """Header and body; what comes behind the body is padding. Raises `WireError`."""
    if len(untrusted) > MAX_MESSAGE:
        raise TooMany(f"an integration message of {len(untrusted)} bytes, {MAX_MESSAGE} are the limit")
    header = Header.decode(untrusted)
    end = HEADER_SIZE + header.size
    if end > len(untrusted):
        raise ShortMessage("integration message", end, len(untrusted))
    return Message(header, untrusted[HEADER_SIZE:end])


def encode_negotiate(framework: Sequence[Version], messages: Sequence[Version]) -> bytes:
    """The body of the host's offer, or of the guest's choice: one version each, or none."""
    versions = b"".join(_VERSION.pack(*version) for version in (*framework, *messages))
    return Negotiate(len(framework), len(messages)).encode() + versions


def decode_offer(untrusted: bytes) -> tuple[tuple[Version, ...], tuple[Version, ...]]:
    """What the host offers: framework versions and message versions. Raises `WireError`."""
    counts = Negotiate.decode(untrusted)
    if max(counts.framework_count, counts.message_count) > MAX_VERSIONS:
        raise TooMany(f"{counts.framework_count} and {counts.message_count} versions on offer")
    cursor = Cursor(untrusted, Negotiate.SIZE, what="versions on offer")
    framework = tuple(Version(cursor.u16(), cursor.u16()) for _ in range(counts.framework_count))
    messages = tuple(Version(cursor.u16(), cursor.u16()) for _ in range(counts.message_count))
    return framework, messages


def decode_choice(
    untrusted: bytes, framework: Iterable[Version], messages: Iterable[Version]
) -> tuple[Version, Version] | None:
    """What the guest chose of what was offered; None if it found nothing. Raises `WireError`.

    A guest that agrees counts one of each. Linux counts none where it found none, and leaves hints in the versions'
    place that say nothing.
    """
    counts = Negotiate.decode(untrusted)
    if (counts.framework_count, counts.message_count) != (1, 1):
        return None
    cursor = Cursor(untrusted, Negotiate.SIZE, what="chosen versions")
    chosen = Version(cursor.u16(), cursor.u16()), Version(cursor.u16(), cursor.u16())
    if chosen[0] not in framework or chosen[1] not in messages:
        raise BadValue(f"the guest chose framework {chosen[0]} and messages {chosen[1]}, which were not on offer")
    return chosen
