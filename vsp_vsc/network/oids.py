"""What an adapter answers to RNDIS QUERY and SET, object by object. Pure. Root side.

Answers to a guest's mistakes: NOT_SUPPORTED for an object that we do not have or a setting that we cannot do,
INVALID_LENGTH for a value shorter than its kind, INVALID_DATA for one that makes no sense. Nothing is changed then.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import attrs

from hypervisor.wire import ShortMessage
from vsp_vsc.network import ndis
from vsp_vsc.network.adapter import LINK_SPEED, AdapterState, Offloads, Task
from vsp_vsc.network.port import ADDRESS_BYTES, ETHERNET_HEADER_BYTES
from vsp_vsc.network.rndis import SEVERAL_PACKETS_PARAMETER, Oid, PacketFilter, RndisStatus
from vsp_vsc.network.spreading import Spreading

MAX_MULTICAST = 64
_MAX_PARAMETER = 255
_BUFFER_SPACE = 256 * 1024
_VENDOR_ID = 0x0000_155D
"""The first bytes of the addresses, as Microsoft's switch says."""
_VENDOR = b"Partita"
_DRIVER_VERSION = 0x0100
_NO_LIMIT = 0xFFFF_FFFF
_MAC_OPTIONS = 0x01 | 0x04 | 0x08 | 0x40 | 0x200
"""Copies lookahead data, never pends transfers, no loopback, 802.1p priority, 802.1Q VLAN."""
_FRIENDLY_NAME_BYTES = 512


class Refused(Exception):
    """What was asked for cannot be; says why with an RNDIS status."""

    def __init__(self, status: RndisStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def _u32(value: int) -> bytes:
    return struct.pack("<I", value & 0xFFFF_FFFF)


def _u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def _friendly_name(state: AdapterState) -> bytes:
    text = state.name.encode("utf-16-le")[: _FRIENDLY_NAME_BYTES - 2]
    return text.ljust(_FRIENDLY_NAME_BYTES, b"\0")


def _link_state(state: AdapterState) -> bytes:
    connected = 1 if state.port.link_up else 2
    return ndis.LinkState(connect_state=connected, transmit_speed=LINK_SPEED, receive_speed=LINK_SPEED).encode()


def _rss_capabilities(state: AdapterState) -> bytes:
    can = ndis.RssCapability.TOEPLITZ | ndis.RssCapability.TCP_IPV4 | ndis.RssCapability.TCP_IPV6
    return ndis.RssCapabilities(capabilities=can, receive_queues=state.max_channels).encode()


def _total_size(state: AdapterState) -> bytes:
    return _u32(state.mtu + ETHERNET_HEADER_BYTES)


_Answer = Callable[[AdapterState], bytes]
_ALWAYS: dict[Oid, _Answer | None] = {
    Oid.GEN_SUPPORTED_LIST: lambda state: b"".join(_u32(oid) for oid in supported(state)),
    Oid.GEN_HARDWARE_STATUS: lambda _: _u32(0),
    Oid.GEN_MEDIA_SUPPORTED: lambda _: _u32(0),
    Oid.GEN_MEDIA_IN_USE: lambda _: _u32(0),
    Oid.GEN_MAXIMUM_LOOKAHEAD: lambda state: _u32(state.mtu),
    Oid.GEN_CURRENT_LOOKAHEAD: lambda state: _u32(state.mtu),
    Oid.GEN_MAXIMUM_FRAME_SIZE: lambda state: _u32(state.mtu),
    Oid.GEN_MAXIMUM_TOTAL_SIZE: _total_size,
    Oid.GEN_TRANSMIT_BLOCK_SIZE: _total_size,
    Oid.GEN_RECEIVE_BLOCK_SIZE: _total_size,
    Oid.GEN_LINK_SPEED: lambda _: _u32(LINK_SPEED // 100),
    Oid.GEN_TRANSMIT_BUFFER_SPACE: lambda _: _u32(_BUFFER_SPACE),
    Oid.GEN_RECEIVE_BUFFER_SPACE: lambda _: _u32(_BUFFER_SPACE),
    Oid.GEN_VENDOR_ID: lambda _: _u32(_VENDOR_ID),
    Oid.GEN_VENDOR_DESCRIPTION: lambda _: _VENDOR,
    Oid.GEN_VENDOR_DRIVER_VERSION: lambda _: struct.pack("<H", _DRIVER_VERSION),
    Oid.GEN_DRIVER_VERSION: lambda _: struct.pack("<H", _DRIVER_VERSION),
    Oid.GEN_CURRENT_PACKET_FILTER: lambda state: _u32(state.filter),
    Oid.GEN_PROTOCOL_OPTIONS: lambda _: _u32(0),
    Oid.GEN_MAC_OPTIONS: lambda _: _u32(_MAC_OPTIONS),
    Oid.GEN_MEDIA_CONNECT_STATUS: lambda state: _u32(0 if state.port.link_up else 1),
    Oid.GEN_MAXIMUM_SEND_PACKETS: lambda _: _u32(_NO_LIMIT),
    Oid.GEN_NETWORK_LAYER_ADDRESSES: None,
    Oid.GEN_FRIENDLY_NAME: _friendly_name,
    Oid.GEN_XMIT_OK: lambda state: _u32(state.counters.sent_frames),
    Oid.GEN_RCV_OK: lambda state: _u32(state.counters.received_frames),
    Oid.GEN_XMIT_ERROR: lambda state: _u32(state.counters.refused),
    Oid.GEN_RCV_ERROR: lambda state: _u32(state.counters.too_long),
    Oid.GEN_RCV_NO_BUFFER: lambda state: _u32(state.counters.dropped),
    Oid.GEN_TRANSMIT_QUEUE_LENGTH: lambda _: _u32(0),
    Oid.ETHERNET_PERMANENT_ADDRESS: lambda state: state.port.mac,
    Oid.ETHERNET_CURRENT_ADDRESS: lambda state: state.address,
    Oid.ETHERNET_MULTICAST_LIST: lambda state: b"".join(state.multicast),
    Oid.ETHERNET_MAXIMUM_LIST_SIZE: lambda _: _u32(MAX_MULTICAST),
    Oid.ETHERNET_RCV_ERROR_ALIGNMENT: lambda _: _u32(0),
    Oid.ETHERNET_XMIT_ONE_COLLISION: lambda _: _u32(0),
    Oid.ETHERNET_XMIT_MORE_COLLISIONS: lambda _: _u32(0),
    Oid.GEN_RNDIS_CONFIG_PARAMETER: None,
}
"""With NDIS 5 already; None for what can only be set."""
_NDIS6: dict[Oid, _Answer | None] = {
    Oid.GEN_LINK_PARAMETERS: None,
    Oid.GEN_LINK_STATE: _link_state,
    Oid.GEN_MAX_LINK_SPEED: lambda _: _u64(LINK_SPEED) * 2,
    Oid.GEN_BYTES_RCV: lambda state: _u64(state.counters.received_bytes),
    Oid.GEN_BYTES_XMIT: lambda state: _u64(state.counters.sent_bytes),
    Oid.GEN_RCV_DISCARDS: lambda state: _u64(state.counters.dropped),
    Oid.GEN_XMIT_DISCARDS: lambda state: _u64(state.counters.refused),
    Oid.TCP_OFFLOAD_PARAMETERS: None,
    Oid.OFFLOAD_ENCAPSULATION: lambda _: ndis.OffloadEncapsulation().encode(),
    Oid.TCP_OFFLOAD_HARDWARE_CAPABILITIES: lambda _: Offloads().encode(),
    Oid.TCP_OFFLOAD_CURRENT_CONFIG: lambda state: state.offloads.encode(),
}
_NDIS6_30: dict[Oid, _Answer | None] = {
    Oid.GEN_RECEIVE_SCALE_CAPABILITIES: _rss_capabilities,
    Oid.GEN_RECEIVE_SCALE_PARAMETERS: None,
}
_ANSWERS = {**_ALWAYS, **_NDIS6, **_NDIS6_30}


def supported(state: AdapterState) -> list[Oid]:
    """The objects of the guest's version of NDIS. Raises `Refused`."""
    major, minor = state.ndis or (0, 0)
    if major not in (5, 6):
        raise Refused(RndisStatus.BAD_VERSION, f"NDIS {major}.{minor}")
    known = [*_ALWAYS]
    if major == 6:
        known += _NDIS6
        if minor >= 30:
            known += _NDIS6_30
    return known


def query(state: AdapterState, untrusted_oid: int) -> bytes:
    """What an object says. Raises `Refused`."""
    answer = _ANSWERS.get(untrusted_oid)  # type: ignore[call-overload]
    if answer is None:
        raise Refused(RndisStatus.NOT_SUPPORTED, f"query of OID {untrusted_oid:#010x}")
    return bytes(answer(state))


def set_oid(state: AdapterState, untrusted_oid: int, untrusted: bytes) -> None:
    """Give an object a value. Raises `Refused`, and then nothing has changed."""
    setter = _SETTERS.get(untrusted_oid)
    if setter is None:
        raise Refused(RndisStatus.NOT_SUPPORTED, f"set of OID {untrusted_oid:#010x}")
    try:
        setter(state, untrusted)
    except ShortMessage as error:
        raise Refused(RndisStatus.INVALID_LENGTH, str(error)) from None


def _invalid(reason: str) -> Refused:
    return Refused(RndisStatus.INVALID_DATA, reason)


def _filter(state: AdapterState, untrusted: bytes) -> None:
    if len(untrusted) < 4:
        raise ShortMessage("packet filter", 4, len(untrusted))
    state.filter = int.from_bytes(untrusted[:4], "little")


def _multicast(state: AdapterState, untrusted: bytes) -> None:
    if len(untrusted) % ADDRESS_BYTES:
        raise Refused(RndisStatus.INVALID_LENGTH, f"a multicast list of {len(untrusted)} bytes")
    addresses = tuple(untrusted[at : at + ADDRESS_BYTES] for at in range(0, len(untrusted), ADDRESS_BYTES))
    if len(addresses) > MAX_MULTICAST:
        raise Refused(RndisStatus.MULTICAST_FULL, f"{len(addresses)} multicast addresses")
    if not all(address[0] & 1 for address in addresses):
        raise _invalid("a multicast list with an address of one station")
    state.multicast = addresses


def _ignored(state: AdapterState, untrusted: bytes) -> None:
    """Taken, and of no consequence."""


def _object(untrusted: bytes, kind: ndis.ObjectType, size: int) -> None:
    """Check an object's header. Raises `Refused`, `ShortMessage`."""
    header = ndis.ObjectHeader.decode(untrusted)
    if header.object_type != kind or header.revision < 1 or header.size < size or header.size > len(untrusted):
        raise _invalid(f"an object {header.object_type:#x} of revision {header.revision} and {header.size} bytes")


def _offload_parameters(state: AdapterState, untrusted: bytes) -> None:
    _object(untrusted, ndis.ObjectType.DEFAULT, ndis.OFFLOAD_PARAMETERS_SIZE)
    wanted = ndis.OffloadParameters.decode(untrusted)
    if wanted.lso_v1 == ndis.SwitchSetting.ON:
        raise Refused(RndisStatus.NOT_SUPPORTED, "segmentation of version 1")
    offloads = attrs.evolve(state.offloads)
    asked = False
    for task, setting in (
        (Task.IPV4_HEADER, wanted.ipv4_header),
        (Task.TCP_IPV4, wanted.tcp_ipv4),
        (Task.UDP_IPV4, wanted.udp_ipv4),
        (Task.TCP_IPV6, wanted.tcp_ipv6),
        (Task.UDP_IPV6, wanted.udp_ipv6),
    ):
        if ndis.ChecksumSetting.OFF <= setting <= ndis.ChecksumSetting.BOTH:
            bits = setting - ndis.ChecksumSetting.OFF  # 1 to transmit, 2 to receive
            offloads.set(task, transmit=bool(bits & 1), receive=bool(bits & 2))
            asked = True
    if wanted.lso_v2_ipv4 in (ndis.SwitchSetting.OFF, ndis.SwitchSetting.ON):
        offloads.lso_ipv4 = wanted.lso_v2_ipv4 == ndis.SwitchSetting.ON
    if wanted.lso_v2_ipv6 in (ndis.SwitchSetting.OFF, ndis.SwitchSetting.ON):
        offloads.lso_ipv6 = wanted.lso_v2_ipv6 == ndis.SwitchSetting.ON
    state.offloads = offloads
    state.offloads_changed = True
    state.marks_good = bool(offloads.receive) and (asked or state.marks_good)


def _encapsulation(state: AdapterState, untrusted: bytes) -> None:
    _object(untrusted, ndis.ObjectType.OFFLOAD_ENCAPSULATION, ndis.OffloadEncapsulation.SIZE)
    wanted = ndis.OffloadEncapsulation.decode(untrusted)
    plain = ndis.ETHERNET_ENCAPSULATION, ETHERNET_HEADER_BYTES
    if wanted.ipv4_enabled == 1 and (wanted.ipv4_type, wanted.ipv4_header_size) != plain:
        raise Refused(RndisStatus.NOT_SUPPORTED, "offloads behind another header than Ethernet's")
    if wanted.ipv6_enabled == 1 and (wanted.ipv6_type, wanted.ipv6_header_size) != plain:
        raise Refused(RndisStatus.NOT_SUPPORTED, "offloads behind another header than Ethernet's")


def _rss(state: AdapterState, untrusted: bytes) -> None:
    # The object's header is not looked at: hosts of Microsoft do not, and guests are careless with it.
    wanted = ndis.RssParameters.decode(untrusted[: ndis.RssParameters.SIZE].ljust(ndis.RssParameters.SIZE, b"\0"))
    if wanted.flags & ndis.RssFlag.DISABLE or not wanted.hash_info & ndis.HASH_FUNCTION_MASK:
        state.spreading = None
        return
    if wanted.key_size != ndis.RSS_KEY_SIZE:
        raise _invalid(f"a hash key of {wanted.key_size} bytes")
    if wanted.table_size == 0 or wanted.table_size % 4:
        raise _invalid(f"an indirection table of {wanted.table_size} bytes")
    key = untrusted[wanted.key_offset : wanted.key_offset + ndis.RSS_KEY_SIZE]
    count = min(wanted.table_size // 4, ndis.RSS_TABLE_ENTRIES)
    if len(key) < ndis.RSS_KEY_SIZE or wanted.table_offset + 4 * count > len(untrusted):
        raise Refused(RndisStatus.INVALID_LENGTH, f"a key or table that is not within {len(untrusted)} bytes")
    entries = struct.unpack_from(f"<{count}I", untrusted, wanted.table_offset)
    if max(entries) >= state.max_channels:
        raise _invalid(f"an indirection table that names channel {max(entries)} of {state.max_channels}")
    table = tuple(entries[index % count] for index in range(ndis.RSS_TABLE_ENTRIES))
    state.spreading = Spreading(key, table, wanted.hash_info)


_TASKS = {
    "*IPChecksumOffloadIPv4": Task.IPV4_HEADER,
    "*TCPChecksumOffloadIPv4": Task.TCP_IPV4,
    "*UDPChecksumOffloadIPv4": Task.UDP_IPV4,
    "*TCPChecksumOffloadIPv6": Task.TCP_IPV6,
    "*UDPChecksumOffloadIPv6": Task.UDP_IPV6,
}


def _parameter(state: AdapterState, untrusted: bytes) -> None:
    """A setting by name. One that we do not know is taken and of no consequence."""
    wanted = ndis.ConfigParameter.decode(untrusted)
    if wanted.name_length > _MAX_PARAMETER or wanted.value_length > _MAX_PARAMETER:
        raise _invalid(f"a parameter with {wanted.name_length} bytes of name, {wanted.value_length} of value")
    for offset, length in ((wanted.name_offset, wanted.name_length), (wanted.value_offset, wanted.value_length)):
        if offset + length > len(untrusted):
            raise ShortMessage("parameter", offset + length, len(untrusted))
    value = untrusted[wanted.value_offset : wanted.value_offset + wanted.value_length]
    name = _text(untrusted[wanted.name_offset : wanted.name_offset + wanted.name_length])
    if wanted.parameter_type == ndis.ParameterType.STRING:
        _text_parameter(state, name, _text(value))
    elif wanted.parameter_type == ndis.ParameterType.INTEGER:
        if len(value) < 4:
            raise ShortMessage("parameter's value", 4, len(value))
        if name == SEVERAL_PACKETS_PARAMETER:
            state.several_packets = value[:4] == b"\1\0\0\0"


def _text_parameter(state: AdapterState, name: str, value: str) -> None:
    if name == "NetworkAddress":
        try:
            address = bytes.fromhex(value.replace("-", ""))
        except ValueError:
            address = b""
        if len(address) != ADDRESS_BYTES or address[0] & 1:
            raise _invalid("a network address that is none of a station")
        state.address = address
        return
    number = ord(value[0]) - ord("0") if value and value[0] in "0123456789" else None
    if number is None:
        raise _invalid("a parameter's value that does not begin with a digit")
    if name in _TASKS:
        state.offloads.set(_TASKS[name], transmit=bool(number & 1), receive=bool(number & 2))
    elif name == "*LsoV2IPv4":
        state.offloads.lso_ipv4 = number != 0
    elif name == "*LsoV2IPv6":
        state.offloads.lso_ipv6 = number != 0


def _text(untrusted: bytes) -> str:
    try:
        return untrusted[: len(untrusted) & ~1].decode("utf-16-le").rstrip("\0")
    except UnicodeDecodeError:
        raise _invalid("text that is no UTF-16") from None


_SETTERS: dict[int, Callable[[AdapterState, bytes], None]] = {
    Oid.GEN_CURRENT_PACKET_FILTER: _filter,
    Oid.GEN_CURRENT_LOOKAHEAD: _ignored,
    Oid.GEN_PROTOCOL_OPTIONS: _ignored,
    Oid.GEN_NETWORK_LAYER_ADDRESSES: _ignored,
    Oid.GEN_LINK_PARAMETERS: _ignored,
    Oid.GEN_RECEIVE_SCALE_PARAMETERS: _rss,
    Oid.GEN_RNDIS_CONFIG_PARAMETER: _parameter,
    Oid.ETHERNET_MULTICAST_LIST: _multicast,
    Oid.OFFLOAD_ENCAPSULATION: _encapsulation,
    Oid.TCP_OFFLOAD_PARAMETERS: _offload_parameters,
}
__all__ = ["MAX_MULTICAST", "PacketFilter", "Refused", "query", "set_oid", "supported"]
