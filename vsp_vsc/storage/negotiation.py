"""How a controller and its guest come to terms: the part of the VSP that is a state machine. Root side.

Control operations in, a status and a body out. An operation out of its order is refused and changes nothing, so a guest
may send all of its initialization at once and look at the answers later.
"""

from __future__ import annotations

import enum
from typing import assert_never

from vsp_vsc.storage.protocol import (
    HEADER_SIZE,
    SRB_SIZE,
    VERSIONS,
    ChannelFlags,
    ChannelProperties,
    FcHbaData,
    NtStatus,
    Operation,
    ProtocolVersion,
    SubChannelCount,
    Version,
    srb_size,
)


class State(enum.Enum):
    """What the host waits for."""

    BEGIN = "begin"
    """BEGIN_INITIALIZATION."""
    QUERY_VERSION = "query version"
    """A version that both speak."""
    QUERY_PROPERTIES = "query properties"
    END = "end"
    """END_INITIALIZATION; FCHBA_DATA and CREATE_SUB_CHANNELS are legal before it."""
    READY = "ready"
    """SRBs and resets."""


Answer = tuple[NtStatus, bytes]
_REFUSED: Answer = (NtStatus.INVALID_DEVICE_STATE, b"")
_DONE: Answer = (NtStatus.SUCCESS, b"")

GUEST_OPERATIONS = frozenset(Operation) - {
    Operation.COMPLETE_IO,
    Operation.REMOVE_DEVICE,
    Operation.ENUMERATE_BUS,
}
"""What a guest may ever send. Anything else stops the channel."""


class Negotiation:
    """One opening of the channel, from BEGIN to READY."""

    def __init__(self, max_sub_channels: int = 0) -> None:
        """At most so many subchannels, if the agreed version knows them."""
        self.state = State.BEGIN
        self.version = 0
        """The agreed version, 0 until there is one."""
        self.sub_channels = 0
        """How many the guest wants to have, in all."""
        self.max_sub_channels = max_sub_channels
        """How many it may have; none once a version is agreed that does not know them."""
        self.is_primary = True
        """Not a subchannel's."""

    def for_sub_channel(self) -> Negotiation:
        """What holds on a subchannel once this one is READY: the same, with nothing left to negotiate."""
        assert self.state is State.READY
        made = Negotiation()
        made.state, made.version, made.is_primary = State.READY, self.version, False
        return made

    @property
    def version_words(self) -> str:
        """The agreed version for people, such as `6.2`; `none`."""
        return f"{self.version >> 8}.{self.version & 0xFF}" if self.version else "none"

    @property
    def srb_size(self) -> int:
        """Bytes of an SRB in the agreed version."""
        return srb_size(self.version) if self.version else SRB_SIZE

    def control(self, operation: int, untrusted: bytes) -> Answer:
        """Status and body of the answer to any operation of `GUEST_OPERATIONS`. `untrusted` is the whole packet.

        EXECUTE_SRB and resets come here only before READY. Raises `ShortMessage` where the body lacks what the
        operation needs.
        """
        match self.state:
            case State.BEGIN:
                if operation != Operation.BEGIN_INITIALIZATION:
                    return _REFUSED
                self.state = State.QUERY_VERSION
                return _DONE
            case State.QUERY_VERSION:
                return self._query_version(untrusted) if operation == Operation.QUERY_PROTOCOL_VERSION else _REFUSED
            case State.QUERY_PROPERTIES:
                if operation != Operation.QUERY_PROPERTIES:
                    return _REFUSED
                self.state = State.END
                most = self.max_sub_channels
                flags = ChannelFlags.MULTI_CHANNEL if self.version >= Version.WIN8 else 0
                return NtStatus.SUCCESS, ChannelProperties(max_channel_count=most, flags=flags).encode()
            case State.END:
                return self._before_the_end(operation, untrusted)
            case State.READY:
                return self._ready(operation, untrusted)
            case _:
                assert_never(self.state)

    def _query_version(self, untrusted: bytes) -> Answer:
        asked = ProtocolVersion.decode(untrusted, HEADER_SIZE)
        if asked.major_minor not in VERSIONS:
            return NtStatus.REVISION_MISMATCH, asked.encode()
        self.version = asked.major_minor
        if self.version < Version.WIN8:
            self.max_sub_channels = 0
        self.state = State.QUERY_PROPERTIES
        return NtStatus.SUCCESS, asked.encode()

    def _before_the_end(self, operation: int, untrusted: bytes) -> Answer:
        match operation:
            case Operation.FCHBA_DATA:
                return NtStatus.SUCCESS, FcHbaData().encode()
            case Operation.CREATE_SUB_CHANNELS if self.version >= Version.WIN8 and not self.sub_channels:
                return self._create_sub_channels(untrusted)
            case Operation.END_INITIALIZATION:
                self.state = State.READY
                return _DONE
            case _:
                return _REFUSED

    def _ready(self, operation: int, untrusted: bytes) -> Answer:
        match operation:
            case Operation.CREATE_SUB_CHANNELS if self.is_primary:
                return self._create_sub_channels(untrusted)
            case _:
                return _REFUSED

    def _create_sub_channels(self, untrusted: bytes) -> Answer:
        untrusted_count = SubChannelCount.decode(untrusted, HEADER_SIZE).count
        if untrusted_count > self.max_sub_channels:
            return NtStatus.INVALID_PARAMETER, b""
        self.sub_channels = max(self.sub_channels, untrusted_count)
        return _DONE
