"""A network session as it is kept when its VM is saved: a plain record, apart from the live one. Root side.

Messages have been answered before; answers that the ring had no room for are kept, and which pieces the guest has.
Frames that waited for room are lost, as on any cable. A file may say anything: all of it is checked.
"""

from __future__ import annotations

import attrs
import msgspec

from hypervisor.wire import BadValue
from vmbus.ring import COMPLETION_REQUESTED, Packet, PacketType
from vsp_vsc.network.adapter import ALL_TASKS, AdapterState, Offloads, RndisState, Task
from vsp_vsc.network.control import check
from vsp_vsc.network.ndis import RSS_KEY_SIZE, RSS_TABLE_ENTRIES
from vsp_vsc.network.negotiation import State
from vsp_vsc.network.oids import MAX_MULTICAST
from vsp_vsc.network.port import ADDRESS_BYTES
from vsp_vsc.network.protocol import DEFAULT_MTU, LARGEST_MTU, MAX_CONTROL_BYTES, MAX_SUB_CHANNELS, VERSIONS
from vsp_vsc.network.spreading import Spreading

_MOST_PACKETS = 4096
_MOST_BODY = 4096
_KINDS = (int(PacketType.COMPLETION), int(PacketType.INBAND), int(PacketType.TRANSFER_PAGES))


class SavedAdapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all channels of an adapter share; kept with the primary one."""

    state: str
    revoked: bool
    version: int
    ndis: tuple[int, int] | None
    config_mtu: int
    capabilities: int
    receive: tuple[int, int] | None
    """GPADL and ID of the receive buffer."""
    send: int | None
    """GPADL of the send buffer."""
    elsewhere: list[int]
    """Pieces that the guest has by way of subchannels."""
    rndis: str
    filter: int
    address: bytes
    multicast: list[bytes]
    transmit: int
    receive_tasks: int
    lso_ipv4: bool
    lso_ipv6: bool
    offloads_changed: bool
    marks_good: bool
    several_packets: bool
    spreading: tuple[bytes, list[int], int] | None
    channels: int
    max_channels: int
    control: list[bytes]
    """Messages that wait for a piece for their answer."""
    link_told: bool


class SavedSession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One channel's."""

    adapter: SavedAdapter | None
    """None on a subchannel."""
    in_flight: list[tuple[int, list[int]]]
    outbox: list[tuple[int, int, int, int, bytes]]
    """Type, flags, transaction, data offset and body of packets to the guest."""


@attrs.frozen
class RestoredSession:
    """What a saved session comes to; buffers are lent again when it is served."""

    saved: SavedSession
    outbox: list[Packet]

    def apply(self, state: AdapterState) -> None:
        """Give a new adapter its settings."""
        saved = self.saved.adapter
        assert saved is not None, "asked for on a primary channel only"
        state.version, state.ndis = saved.version, saved.ndis
        state.config_mtu, state.capabilities = saved.config_mtu, saved.capabilities
        state.rndis, state.filter = RndisState(saved.rndis), saved.filter
        state.address = saved.address or state.port.mac
        state.multicast = tuple(saved.multicast)
        state.offloads = Offloads(Task(saved.transmit), Task(saved.receive_tasks), saved.lso_ipv4, saved.lso_ipv6)
        state.offloads_changed, state.marks_good = saved.offloads_changed, saved.marks_good
        state.several_packets, state.channels = saved.several_packets, saved.channels
        if saved.spreading is not None:
            key, table, info = saved.spreading
            state.spreading = Spreading(key, tuple(table), info)


def encode_session(
    state: AdapterState,
    negotiation: tuple[str, bool] | None,
    *,
    in_flight: dict[int, list[int]],
    elsewhere: list[int],
    outbox: list[Packet],
    control: list[bytes],
    link_told: bool,
) -> bytes:
    """The record's bytes. `negotiation`: state, and whether a buffer was revoked; none on a subchannel."""
    adapter = None
    if negotiation is not None:
        spreading, receive, send = state.spreading, state.receive, state.send
        adapter = SavedAdapter(
            state=negotiation[0],
            revoked=negotiation[1],
            version=state.version,
            ndis=state.ndis,
            config_mtu=state.config_mtu,
            capabilities=state.capabilities,
            receive=None if receive is None else (receive.buffer.gpadl_id, receive.buffer_id),
            send=None if send is None else send.gpadl_id,
            elsewhere=elsewhere,
            rndis=state.rndis.value,
            filter=state.filter,
            address=b"" if state.address == state.port.mac else state.address,
            multicast=list(state.multicast),
            transmit=int(state.offloads.transmit),
            receive_tasks=int(state.offloads.receive),
            lso_ipv4=state.offloads.lso_ipv4,
            lso_ipv6=state.offloads.lso_ipv6,
            offloads_changed=state.offloads_changed,
            marks_good=state.marks_good,
            several_packets=state.several_packets,
            spreading=None if spreading is None else (spreading.key, list(spreading.table), spreading.info),
            channels=state.channels,
            max_channels=state.max_channels,
            control=control,
            link_told=link_told,
        )
    packets = [(one.type, one.flags, one.transaction_id, one.data_offset, one.body) for one in outbox]
    return msgspec.msgpack.encode(SavedSession(adapter, list(in_flight.items()), packets))


def decode_session(untrusted: bytes) -> RestoredSession:
    """Raises `BadValue` for anything that no session can be."""
    try:
        saved = msgspec.msgpack.decode(untrusted, type=SavedSession)
        if saved.adapter is not None:
            _check_adapter(saved.adapter)
    except BadValue:
        raise
    except ValueError as error:  # msgspec's errors are ValueErrors too
        raise BadValue(f"a saved network session: {error}") from None
    if len(saved.outbox) > _MOST_PACKETS:
        raise BadValue(f"{len(saved.outbox)} packets of a network adapter wait")
    for kind, flags, transaction, offset, body in saved.outbox:
        if (
            kind not in _KINDS
            or flags not in (0, COMPLETION_REQUESTED)
            or not 0 <= transaction < 1 << 64
            or len(body) > _MOST_BODY
            or not 0 <= offset <= len(body)
            or offset & 7
        ):
            raise BadValue("a packet that no network adapter sends")
    return RestoredSession(saved, [Packet(*packet) for packet in saved.outbox])


def _check_adapter(saved: SavedAdapter) -> None:
    """Raises `BadValue`, `ValueError`."""
    state, rndis = State(saved.state), RndisState(saved.rndis)
    agreed = state is not State.VERSION
    good = (
        agreed == (saved.version in VERSIONS)
        and (agreed or not saved.version)
        and (not saved.config_mtu or DEFAULT_MTU <= saved.config_mtu <= LARGEST_MTU)
        and 1 <= saved.channels <= saved.max_channels <= MAX_SUB_CHANNELS + 1
        and 0 <= saved.filter < 1 << 32
        and 0 <= saved.capabilities < 1 << 64
        and not (saved.transmit | saved.receive_tasks) & ~int(ALL_TASKS)
        and len(saved.address) in (0, ADDRESS_BYTES)
        and len(saved.multicast) <= MAX_MULTICAST
        and all(len(address) == ADDRESS_BYTES for address in saved.multicast)
        and sum(map(len, saved.control)) <= MAX_CONTROL_BYTES
        and (rndis is RndisState.INITIALIZING or agreed)
        and (state is not State.READY or saved.ndis is not None)
    )
    if saved.ndis is not None:
        good = good and all(0 <= number < 1 << 32 for number in saved.ndis)
    if saved.receive is not None:
        good = good and 0 <= saved.receive[0] < 1 << 32 and 0 <= saved.receive[1] < 1 << 16
    if saved.spreading is not None:
        key, table, _ = saved.spreading
        good = good and len(key) == RSS_KEY_SIZE and len(table) == RSS_TABLE_ENTRIES
        good = good and all(0 <= channel < saved.max_channels for channel in table)
    if not good:
        raise BadValue("a saved network adapter that cannot be")
    for message in saved.control:
        if not check(message):
            raise BadValue("a control message that is not answered waits")
