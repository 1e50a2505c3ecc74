"""A storage session as it is kept when its VM is saved: a plain record, apart from the live one. Root side.

What was under way has been answered before; completions that the ring had no room for are kept. The contents of disks
are on the disks, and what a unit remembers of its guest (unit attentions, reservations) ends with the host, as after a
reset of the bus.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import msgspec

from hypervisor.wire import BadValue
from vmbus.ring import Packet, PacketType
from vsp_vsc.storage.negotiation import Negotiation, State
from vsp_vsc.storage.protocol import MAX_SUB_CHANNELS, PACKET_SIZE, VERSIONS

_MOST_COMPLETIONS = 4096
_KINDS = (int(PacketType.COMPLETION), int(PacketType.INBAND))


class SavedSession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One channel's."""

    state: str
    version: int
    sub_channels: int
    max_sub_channels: int
    primary: bool
    outbox: list[tuple[int, int, int, bytes]]
    """Type, flags, transaction and body of packets to the guest."""


@attrs.frozen
class RestoredSession:
    """What a saved session comes to."""

    negotiation: Negotiation
    outbox: list[Packet]


def encode_session(negotiation: Negotiation, outbox: Sequence[Packet]) -> bytes:
    """The record's bytes."""
    return msgspec.msgpack.encode(
        SavedSession(
            state=negotiation.state.value,
            version=negotiation.version,
            sub_channels=negotiation.sub_channels,
            max_sub_channels=negotiation.max_sub_channels,
            primary=negotiation.is_primary,
            outbox=[(packet.type, packet.flags, packet.transaction_id, packet.body) for packet in outbox],
        )
    )


def decode_session(untrusted: bytes) -> RestoredSession:
    """Raises `BadValue` for anything that no session can be."""
    try:
        saved = msgspec.msgpack.decode(untrusted, type=SavedSession)
        state = State(saved.state)
    except ValueError as error:  # msgspec's errors are ValueErrors too
        raise BadValue(f"a saved storage session: {error}") from None
    agreed = state in (State.QUERY_PROPERTIES, State.END, State.READY)
    if agreed != (saved.version in VERSIONS) or (not agreed and saved.version):
        raise BadValue(f"a saved storage session of version {saved.version:#x}")
    if not 0 <= saved.sub_channels <= saved.max_sub_channels <= MAX_SUB_CHANNELS and saved.primary:
        raise BadValue(f"{saved.sub_channels} subchannels of {saved.max_sub_channels}")
    if not saved.primary and state is not State.READY:
        raise BadValue("a subchannel without a session")
    if len(saved.outbox) > _MOST_COMPLETIONS:
        raise BadValue(f"{len(saved.outbox)} completions")
    for kind, flags, transaction, body in saved.outbox:
        if kind not in _KINDS or flags or not 0 <= transaction < 1 << 64 or len(body) > 2 * PACKET_SIZE:
            raise BadValue("a completion that no session sends")
    negotiation = Negotiation(saved.max_sub_channels)
    negotiation.state, negotiation.version = state, saved.version
    negotiation.sub_channels, negotiation.is_primary = saved.sub_channels, saved.primary
    return RestoredSession(negotiation, [Packet(kind, flags, tid, 0, body) for kind, flags, tid, body in saved.outbox])
