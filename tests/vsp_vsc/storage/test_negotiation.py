"""The storage controller's state machine: every state with every operation."""

from __future__ import annotations

import pytest

from hypervisor.wire import ShortMessage
from vsp_vsc.storage.negotiation import GUEST_OPERATIONS, Negotiation, State
from vsp_vsc.storage.protocol import (
    ChannelProperties,
    NtStatus,
    Operation,
    PacketHeader,
    ProtocolVersion,
    SubChannelCount,
    Version,
)

LEGAL: dict[State, dict[Operation, State]] = {
    State.BEGIN: {Operation.BEGIN_INITIALIZATION: State.QUERY_VERSION},
    State.QUERY_VERSION: {Operation.QUERY_PROTOCOL_VERSION: State.QUERY_PROPERTIES},
    State.QUERY_PROPERTIES: {Operation.QUERY_PROPERTIES: State.END},
    State.END: {
        Operation.FCHBA_DATA: State.END,
        Operation.CREATE_SUB_CHANNELS: State.END,
        Operation.END_INITIALIZATION: State.READY,
    },
    State.READY: {
        # SRBs and resets are the session's by now.
        Operation.CREATE_SUB_CHANNELS: State.READY,
    },
}


def packet(operation: int, body: bytes = b"") -> bytes:
    return (PacketHeader(operation).encode() + body).ljust(64, b"\0")


def body_for(operation: Operation) -> bytes:
    return ProtocolVersion(Version.WIN10).encode() if operation == Operation.QUERY_PROTOCOL_VERSION else b""


def in_state(state: State, *, most: int = 0, version: int = Version.WIN10) -> Negotiation:
    negotiation = Negotiation(most)
    for operation in (
        Operation.BEGIN_INITIALIZATION,
        Operation.QUERY_PROTOCOL_VERSION,
        Operation.QUERY_PROPERTIES,
        Operation.END_INITIALIZATION,
    ):
        if negotiation.state is state:
            break
        body = ProtocolVersion(version).encode() if operation == Operation.QUERY_PROTOCOL_VERSION else b""
        negotiation.control(operation, packet(operation, body))
    assert negotiation.state is state
    return negotiation


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("operation", sorted(GUEST_OPERATIONS))
def test_each_state_takes_its_operations_and_refuses_all_others(state: State, operation: Operation) -> None:
    """Out of order is INVALID_DEVICE_STATE, and the state is kept."""
    negotiation = in_state(state)
    status, _ = negotiation.control(operation, packet(operation, body_for(operation)))
    if operation in LEGAL[state]:
        assert status == NtStatus.SUCCESS
        assert negotiation.state is LEGAL[state][operation]
    else:
        assert status == NtStatus.INVALID_DEVICE_STATE
        assert negotiation.state is state


@pytest.mark.parametrize("version", Version)
def test_all_known_versions_are_spoken(version: Version) -> None:
    """6.2 down to 2.0; before Windows 8 an SRB is 36 bytes."""
    negotiation = in_state(State.QUERY_VERSION)
    body = ProtocolVersion(version).encode()
    assert negotiation.control(Operation.QUERY_PROTOCOL_VERSION, packet(9, body)) == (NtStatus.SUCCESS, body)
    assert negotiation.version == version
    assert negotiation.srb_size == (36 if version < Version.WIN8 else 52)


@pytest.mark.parametrize("version", [0, 0x0201, 0x0502, 0x0603, 0xFFFF])
def test_another_version_is_refused_and_the_guest_may_ask_again(version: int) -> None:
    """REVISION_MISMATCH, still waiting for a version."""
    negotiation = in_state(State.QUERY_VERSION)
    status, _ = negotiation.control(9, packet(9, ProtocolVersion(version).encode()))
    assert status == NtStatus.REVISION_MISMATCH
    assert negotiation.state is State.QUERY_VERSION
    status, _ = negotiation.control(9, packet(9, ProtocolVersion(Version.WIN8).encode()))
    assert status == NtStatus.SUCCESS


def test_properties_offer_no_subchannels() -> None:
    """256 KiB a transfer, one channel; the flag is the version's, and the count says that there are none."""
    _, body = in_state(State.QUERY_PROPERTIES).control(10, packet(10))
    assert ChannelProperties.decode(body) == ChannelProperties(max_channel_count=0, flags=1, max_transfer_bytes=0x40000)


@pytest.mark.parametrize("version", Version)
def test_properties_say_how_many_subchannels_there_may_be(version: Version) -> None:
    """With the flag for it, from version 5.1 on; before that, none."""
    _, body = in_state(State.QUERY_PROPERTIES, most=3, version=version).control(10, packet(10))
    properties = ChannelProperties.decode(body)
    known = version >= Version.WIN8
    assert (properties.max_channel_count, properties.flags) == ((3, 1) if known else (0, 0))


def test_subchannels_are_counted_in_all() -> None:
    """The most that was ever asked for; more than there may be is refused and changes nothing."""
    negotiation = in_state(State.READY, most=3)
    for count, status, wanted in [(2, 0, 2), (1, 0, 2), (0, 0, 2), (4, NtStatus.INVALID_PARAMETER, 2), (3, 0, 3)]:
        answer = negotiation.control(13, packet(13, SubChannelCount(count).encode()))
        assert answer == (status, b"")
        assert (negotiation.sub_channels, negotiation.state) == (wanted, State.READY)


def test_subchannels_are_asked_for_once_before_the_end() -> None:
    """A second time is out of order, and so is any at a version that has none."""
    negotiation = in_state(State.END, most=3)
    for count, status in [(4, NtStatus.INVALID_PARAMETER), (2, 0), (2, NtStatus.INVALID_DEVICE_STATE)]:
        assert negotiation.control(13, packet(13, SubChannelCount(count).encode())) == (status, b"")
        assert negotiation.state is State.END
    old = in_state(State.END, most=3, version=Version.WIN7)
    assert old.control(13, packet(13, SubChannelCount(0).encode())) == (NtStatus.INVALID_DEVICE_STATE, b"")


@pytest.mark.parametrize("version", [Version.WIN6, Version.WIN7])
def test_a_version_without_subchannels_refuses_them(version: Version) -> None:
    """2.0 and 4.2 have no such operation, whatever the controller could do."""
    negotiation = in_state(State.READY, most=3, version=version)
    assert negotiation.control(13, packet(13, SubChannelCount(1).encode()))[0] == NtStatus.INVALID_PARAMETER


@pytest.mark.parametrize("operation", sorted(GUEST_OPERATIONS))
def test_a_subchannel_negotiates_nothing(operation: Operation) -> None:
    """Its primary's initialization holds for it, and only the primary asks for more channels."""
    primary = in_state(State.READY, most=3, version=Version.WIN8)
    negotiation = primary.for_sub_channel()
    assert (negotiation.state, negotiation.version, negotiation.srb_size) == (State.READY, Version.WIN8, 52)
    status, _ = negotiation.control(operation, packet(operation, SubChannelCount(1).encode()))
    assert status == NtStatus.INVALID_DEVICE_STATE
    assert negotiation.state is State.READY
    assert primary.sub_channels == 0


@pytest.mark.parametrize("state", [State.END, State.READY])
@pytest.mark.parametrize("count", [1, 65535])
def test_subchannels_are_refused_cleanly(state: State, count: int) -> None:
    """INVALID_PARAMETER, and everything goes on."""
    negotiation = in_state(state)
    status, _ = negotiation.control(13, packet(13, SubChannelCount(count).encode()))
    assert status == NtStatus.INVALID_PARAMETER
    assert negotiation.state is state


def test_a_version_query_without_a_version_is_no_packet() -> None:
    """Too short for its operation: a `WireError`, which stops the channel."""
    with pytest.raises(ShortMessage):
        in_state(State.QUERY_VERSION).control(9, PacketHeader(9).encode())
