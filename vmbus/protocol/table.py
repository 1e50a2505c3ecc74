"""Which channel message is legal when: one table, and what follows from it. Both sides.

`decode_message`, `describe` and the table in the documentation are all read off `MESSAGES`.
"""

from __future__ import annotations

import enum
import struct

import msgspec

from hypervisor.trace import TO_CHILD, TO_ROOT
from hypervisor.wire import BadValue, ShortMessage
from vmbus.protocol import messages as m
from vmbus.protocol.features import SIGNAL_PARAMETERS, Feature
from vmbus.protocol.messages import Message, MessageType
from vmbus.protocol.versions import Version, version_text

_ANY = 0
"""Legal without a connection too."""


class Direction(enum.StrEnum):
    """Which way a message travels; the values are those of trace events."""

    TO_ROOT = TO_ROOT
    """From guest to host."""
    TO_CHILD = TO_CHILD
    """From host to guest."""


class Form(enum.Enum):
    """What tells rows with the same number apart, beyond version and feature."""

    ONLY = ""
    BY_SIZE = "if long enough"
    BY_REQUEST = "if asking for 5.0 or later"
    BY_REQUEST_AND_SIZE = "if asking for 5.0 or later and long enough"


class Row(msgspec.Struct, frozen=True):
    """One way to say one message."""

    layout: type[Message]
    direction: Direction
    least: int
    """The least version; 0 if legal without a connection."""
    feature: Feature = Feature.NONE
    """Any one of these must have been negotiated."""
    form: Form = Form.ONLY

    @property
    def number(self) -> MessageType:
        """The message's type."""
        return self.layout.TYPE

    def legal(self, version: int | None, features: int) -> bool:
        """May this row be used on such a connection?"""
        if self.least == _ANY:
            return True
        return version is not None and version >= self.least and (not self.feature or bool(features & self.feature))

    def fits(self, data: bytes) -> bool:
        """Do the bytes choose this row among those with the same number?"""
        match self.form:
            case Form.ONLY:
                return True
            case Form.BY_SIZE:
                return len(data) >= self.layout.SIZE
            case Form.BY_REQUEST:
                return _asks_for(data) >= Version.V5_0
            case Form.BY_REQUEST_AND_SIZE:
                return len(data) >= self.layout.SIZE and _asks_for(data) >= Version.V5_0


_IN, _OUT = Direction.TO_ROOT, Direction.TO_CHILD
_V1 = Version.V0_13

MESSAGES: tuple[Row, ...] = (
    Row(m.OfferChannel, _OUT, _V1),
    Row(m.RescindChannelOffer, _OUT, _V1),
    Row(m.RequestOffers, _IN, _V1),
    Row(m.AllOffersDelivered, _OUT, _V1),
    Row(m.OpenChannel2, _IN, Version.V6_0, SIGNAL_PARAMETERS),
    Row(m.OpenChannel, _IN, _V1),
    Row(m.OpenChannelResult, _OUT, _V1),
    Row(m.CloseChannel, _IN, _V1),
    Row(m.GpadlHeader, _IN, _V1),
    Row(m.GpadlBody, _IN, _V1),
    Row(m.GpadlCreated, _OUT, _V1),
    Row(m.GpadlTeardown, _IN, _V1),
    Row(m.GpadlTorndown, _OUT, _V1),
    Row(m.RelIdReleased, _IN, _V1),
    Row(m.InitiateContact2, _IN, _ANY, form=Form.BY_REQUEST_AND_SIZE),
    Row(m.InitiateContact, _IN, _ANY, form=Form.BY_REQUEST),
    Row(m.InitiateContactLegacy, _IN, _ANY),
    Row(m.VersionResponse3, _OUT, _ANY, form=Form.BY_SIZE),
    Row(m.VersionResponse2, _OUT, _ANY, form=Form.BY_SIZE),
    Row(m.VersionResponse, _OUT, _ANY),
    Row(m.Unload, _IN, _V1),
    Row(m.UnloadComplete, _OUT, Version.V1_1),
    Row(m.OpenReservedChannel, _IN, Version.V4_0),
    Row(m.CloseReservedChannel, _IN, _ANY),
    Row(m.CloseReservedResponse, _OUT, Version.V4_0),
    Row(m.TlConnectRequest2, _IN, Version.V5_2, form=Form.BY_SIZE),
    Row(m.TlConnectRequest, _IN, Version.V4_0),
    Row(m.ModifyChannel, _IN, Version.V4_1),
    Row(m.TlConnectResult, _OUT, Version.V4_1),
    Row(m.ModifyChannelResponse, _OUT, Version.V5_3),
    Row(m.ModifyConnection, _IN, Version.V6_0, Feature.MODIFY_CONNECTION),
    Row(m.ModifyConnectionResponse, _OUT, Version.V6_0, Feature.MODIFY_CONNECTION),
    Row(m.Pause, _IN, Version.V6_0, Feature.PAUSE_RESUME),
    Row(m.PauseResponse, _OUT, Version.V6_0, Feature.PAUSE_RESUME),
    Row(m.Resume, _IN, Version.V6_0, Feature.PAUSE_RESUME),
)
"""Rows with the same number stand longest first; the first that is legal and fits is meant."""

_BY_NUMBER: dict[int, list[Row]] = {}
for _row in MESSAGES:
    _BY_NUMBER.setdefault(_row.number, []).append(_row)

_HEADER = struct.Struct("<I4x")
_CONTACT_VERSION = struct.Struct("<8xI")


def decode_message(data: bytes, *, sender: Direction, version: int | None, features: int = 0) -> Message:
    """The message in a peer's bytes. `sender` is the way they came; `version` is None while there is no connection.

    More bytes than the layout has are accepted, since UEFI always sends the full 240; the tail of a GPADL message is
    what follows its fixed part. Raises a `WireError` for an unknown type, a wrong direction, too few bytes, and a
    message that is not legal at this version with these features.
    """
    if len(data) < _HEADER.size:
        raise ShortMessage("channel message", _HEADER.size, len(data))
    (number,) = _HEADER.unpack_from(data)
    rows = _BY_NUMBER.get(number)
    if rows is None:
        raise BadValue(f"no channel message has type {number}")
    for row in rows:
        if row.direction is not sender:
            raise BadValue(f"{row.number.name} never travels {sender}")
        if row.legal(version, features) and row.fits(data):
            return row.layout.decode(data)
    state = "without a connection" if version is None else f"at version {version_text(version)}, features {features:#x}"
    raise BadValue(f"{rows[0].number.name} is not legal {state}")


def describe(message: Message) -> str:
    """The message in words: `OPEN_CHANNEL channel=1 gpadl=0xe1e10 vp=0 downstream=32`."""
    return f"{message.TYPE.name} {message.WORDS.format(m=message)}".rstrip()


def event_name(message: Message) -> str:
    """The message's name in trace events: `open_channel`."""
    return message.TYPE.name.lower()


def message_table() -> str:
    """The table as Markdown, for the documentation."""
    lines = [
        "| # | Message | Way | Least version | Feature | Bytes | Form |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in MESSAGES:
        way = "guest to host" if row.direction is Direction.TO_ROOT else "host to guest"
        least = "any, and unconnected" if row.least == _ANY else version_text(row.least)
        feature = " or ".join(flag.name.lower() for flag in Feature if flag & row.feature and flag.name) or "-"
        tail = "+" if row.layout in (m.GpadlHeader, m.GpadlBody) else ""
        lines.append(
            f"| {int(row.number)} | {row.number.name} ({row.layout.__name__}) | {way} | {least} | {feature} "
            f"| {row.layout.SIZE}{tail} | {row.form.value or '-'} |"
        )
    return "\n".join(lines) + "\n"


def _asks_for(data: bytes) -> int:
    """The version in an INITIATE_CONTACT; 0 where it is too short to say."""
    return int(_CONTACT_VERSION.unpack_from(data)[0]) if len(data) >= _CONTACT_VERSION.size else 0
