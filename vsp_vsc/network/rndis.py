"""RNDIS, what NVSP carries: control messages about the adapter, and packets. Both sides.

Layouts after Linux 6.12 include/linux/rndis.h; tests/spec/layouts/network.txt holds them a second time.
"""

from __future__ import annotations

import enum

from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import u32

HEADER_SIZE = 8
"""Of every message; offsets in a body count from behind it."""
PACKET_HEADER_SIZE = 44
"""Of a data message, up to its per-packet information."""
MAX_PACKETS, ALIGNMENT_FACTOR, MAX_TRANSFER = 8, 3, 0xEFFF_FFFF
"""What the host says at INITIALIZE: frames of one message, their alignment as a power of two, bytes of a message."""
SEVERAL_PACKETS_PARAMETER = "PartitaSeveralPackets"
"""An integer that a driver may set by GEN_RNDIS_CONFIG_PARAMETER: with 1 there may be several data messages, one after
the other, in one piece of its receive buffer. Linux's driver would drop all but the first; other hosts ignore it.
"""

_RNDIS = "Linux 6.12 include/linux/rndis.h"


class RndisType(enum.IntEnum):
    """What an RNDIS message is."""

    PACKET = 1
    INITIALIZE = 2
    HALT = 3
    QUERY = 4
    SET = 5
    RESET = 6
    INDICATE_STATUS = 7
    KEEPALIVE = 8
    SET_EX = 9
    INITIALIZE_COMPLETE = 0x8000_0002
    QUERY_COMPLETE = 0x8000_0004
    SET_COMPLETE = 0x8000_0005
    RESET_COMPLETE = 0x8000_0006
    KEEPALIVE_COMPLETE = 0x8000_0008


class RndisStatus(enum.IntEnum):
    """How a request went, and what INDICATE_STATUS tells."""

    SUCCESS = 0
    PENDING = 0x103
    MEDIA_CONNECT = 0x4001_000B
    MEDIA_DISCONNECT = 0x4001_000C
    LINK_SPEED_CHANGE = 0x4001_0013
    NETWORK_CHANGE = 0x4001_0018
    TASK_OFFLOAD_CURRENT_CONFIG = 0x4002_0006
    BUFFER_OVERFLOW = 0x8000_0005
    FAILURE = 0xC000_0001
    RESOURCES = 0xC000_009A
    NOT_SUPPORTED = 0xC000_00BB
    BAD_VERSION = 0xC001_0004
    MULTICAST_FULL = 0xC001_0009
    INVALID_LENGTH = 0xC001_0014
    INVALID_DATA = 0xC001_0015
    BUFFER_TOO_SHORT = 0xC001_0016
    INVALID_OID = 0xC001_0017


class Oid(enum.IntEnum):
    """What a QUERY or SET is about, as far as guests on Hyper-V ask."""

    GEN_SUPPORTED_LIST = 0x0001_0101
    GEN_HARDWARE_STATUS = 0x0001_0102
    GEN_MEDIA_SUPPORTED = 0x0001_0103
    GEN_MEDIA_IN_USE = 0x0001_0104
    GEN_MAXIMUM_LOOKAHEAD = 0x0001_0105
    GEN_MAXIMUM_FRAME_SIZE = 0x0001_0106
    GEN_LINK_SPEED = 0x0001_0107
    GEN_TRANSMIT_BUFFER_SPACE = 0x0001_0108
    GEN_RECEIVE_BUFFER_SPACE = 0x0001_0109
    GEN_TRANSMIT_BLOCK_SIZE = 0x0001_010A
    GEN_RECEIVE_BLOCK_SIZE = 0x0001_010B
    GEN_VENDOR_ID = 0x0001_010C
    GEN_VENDOR_DESCRIPTION = 0x0001_010D
    GEN_CURRENT_PACKET_FILTER = 0x0001_010E
    GEN_CURRENT_LOOKAHEAD = 0x0001_010F
    GEN_DRIVER_VERSION = 0x0001_0110
    GEN_MAXIMUM_TOTAL_SIZE = 0x0001_0111
    GEN_PROTOCOL_OPTIONS = 0x0001_0112
    GEN_MAC_OPTIONS = 0x0001_0113
    GEN_MEDIA_CONNECT_STATUS = 0x0001_0114
    GEN_MAXIMUM_SEND_PACKETS = 0x0001_0115
    GEN_VENDOR_DRIVER_VERSION = 0x0001_0116
    GEN_NETWORK_LAYER_ADDRESSES = 0x0001_0118
    GEN_RECEIVE_SCALE_CAPABILITIES = 0x0001_0203
    GEN_RECEIVE_SCALE_PARAMETERS = 0x0001_0204
    GEN_MAX_LINK_SPEED = 0x0001_0206
    GEN_LINK_STATE = 0x0001_0207
    GEN_LINK_PARAMETERS = 0x0001_0208
    GEN_RNDIS_CONFIG_PARAMETER = 0x0001_021B
    GEN_XMIT_OK = 0x0002_0101
    GEN_RCV_OK = 0x0002_0102
    GEN_XMIT_ERROR = 0x0002_0103
    GEN_RCV_ERROR = 0x0002_0104
    GEN_RCV_NO_BUFFER = 0x0002_0105
    GEN_TRANSMIT_QUEUE_LENGTH = 0x0002_020E
    GEN_FRIENDLY_NAME = 0x0002_0216
    GEN_BYTES_RCV = 0x0002_0219
    GEN_BYTES_XMIT = 0x0002_021A
    GEN_RCV_DISCARDS = 0x0002_021B
    GEN_XMIT_DISCARDS = 0x0002_021C
    ETHERNET_PERMANENT_ADDRESS = 0x0101_0101
    ETHERNET_CURRENT_ADDRESS = 0x0101_0102
    ETHERNET_MULTICAST_LIST = 0x0101_0103
    ETHERNET_MAXIMUM_LIST_SIZE = 0x0101_0104
    OFFLOAD_ENCAPSULATION = 0x0101_010A
    ETHERNET_RCV_ERROR_ALIGNMENT = 0x0102_0101
    ETHERNET_XMIT_ONE_COLLISION = 0x0102_0102
    ETHERNET_XMIT_MORE_COLLISIONS = 0x0102_0103
    TCP_OFFLOAD_CURRENT_CONFIG = 0xFC01_020B
    TCP_OFFLOAD_PARAMETERS = 0xFC01_020C
    TCP_OFFLOAD_HARDWARE_CAPABILITIES = 0xFC01_020D


class PacketFilter(enum.IntFlag):
    """What a guest wants to receive."""

    DIRECTED = 0x1
    MULTICAST = 0x2
    ALL_MULTICAST = 0x4
    BROADCAST = 0x8
    PROMISCUOUS = 0x20


class TransmitChecksum(enum.IntFlag):
    """TCPIP_CHECKSUM of a guest's frame: what the host shall fill in. Bits 16 to 25: where the TCP or UDP header is."""

    IPV4 = 0x1
    IPV6 = 0x2
    TCP = 0x4
    UDP = 0x8
    IPV4_HEADER = 0x10


class ReceiveChecksum(enum.IntFlag):
    """TCPIP_CHECKSUM of a frame for a guest: what need not be checked again."""

    TCP_FAILED = 0x1
    UDP_FAILED = 0x2
    IPV4_HEADER_FAILED = 0x4
    TCP_GOOD = 0x8
    UDP_GOOD = 0x10
    IPV4_HEADER_GOOD = 0x20


LSO_MSS_MASK, LSO_OFFSET_SHIFT, LSO_OFFSET_MASK, LSO_IPV6 = 0xF_FFFF, 20, 0x3FF, 1 << 31
"""TCP_LARGE_SEND: bytes of payload a segment, where the TCP header is, whether it is IPv6."""


class PacketInfo(enum.IntEnum):
    """What a piece of per-packet information is."""

    TCPIP_CHECKSUM = 0
    IPSEC = 1
    TCP_LARGE_SEND = 2
    CLASSIFICATION_HANDLE = 3
    SCATTER_GATHER_LIST = 5
    IEEE_8021Q = 6
    ORIGINAL_PACKET = 7
    HASH_VALUE = 8
    ORIGINAL_NET_BUFFER_LIST = 9
    CACHED_NET_BUFFER_LIST = 10
    SHORT_PACKET_PADDING = 11


@wire(size=8, spec=f"{_RNDIS}, struct rndis_message")
class RndisHeader(Wire):
    """In front of every RNDIS message."""

    message_type: u32 = at(0, default=0)
    message_length: u32 = at(4, default=0)


@wire(size=36, spec=f"{_RNDIS}, struct rndis_packet")
class RndisPacket(Wire):
    """Data; offsets count from the start of this structure."""

    data_offset: u32 = at(0, default=0)
    data_length: u32 = at(4, default=0)
    oob_offset: u32 = at(8, default=0)
    oob_length: u32 = at(12, default=0)
    oob_count: u32 = at(16, default=0)
    info_offset: u32 = at(20, default=0)
    info_length: u32 = at(24, default=0)
    vc_handle: u32 = at(28, default=0)
    reserved: u32 = at(32, default=0)


@wire(size=12, spec=f"{_RNDIS}, struct rndis_per_packet_info")
class RndisPacketInfo(Wire):
    """In front of each piece of per-packet information."""

    size: u32 = at(0, default=0)
    kind: u32 = at(4, default=0)
    data_offset: u32 = at(8, default=0)


@wire(size=16, spec=f"{_RNDIS}, struct rndis_initialize_request")
class RndisInitialize(Wire):
    """The guest begins."""

    request_id: u32 = at(0, default=0)
    major: u32 = at(4, default=0)
    minor: u32 = at(8, default=0)
    max_transfer: u32 = at(12, default=0)


@wire(size=44, spec=f"{_RNDIS}, struct rndis_initialize_complete")
class RndisInitializeComplete(Wire):
    """The host's limits."""

    request_id: u32 = at(0, default=0)
    status: u32 = at(4, default=0)
    major: u32 = at(8, default=0)
    minor: u32 = at(12, default=0)
    device_flags: u32 = at(16, default=0)
    medium: u32 = at(20, default=0)
    max_packets: u32 = at(24, default=0)
    max_transfer: u32 = at(28, default=0)
    alignment_factor: u32 = at(32, default=0)
    family_list_offset: u32 = at(36, default=0)
    family_list_size: u32 = at(40, default=0)


@wire(size=4, spec=f"{_RNDIS}, struct rndis_halt_request, struct rndis_keepalive_request")
class RndisRequest(Wire):
    """HALT and KEEPALIVE."""

    request_id: u32 = at(0, default=0)


@wire(size=20, spec=f"{_RNDIS}, struct rndis_query_request, struct rndis_set_request")
class RndisQuery(Wire):
    """QUERY and SET; `info_offset` counts from the start of this structure."""

    request_id: u32 = at(0, default=0)
    oid: u32 = at(4, default=0)
    info_length: u32 = at(8, default=0)
    info_offset: u32 = at(12, default=0)
    vc_handle: u32 = at(16, default=0)


@wire(size=16, spec=f"{_RNDIS}, struct rndis_query_complete")
class RndisQueryComplete(Wire):
    """The answer to QUERY; `info_offset` counts from the start of this structure."""

    request_id: u32 = at(0, default=0)
    status: u32 = at(4, default=0)
    info_length: u32 = at(8, default=0)
    info_offset: u32 = at(12, default=0)


@wire(size=8, spec=f"{_RNDIS}, struct rndis_set_complete, struct rndis_keepalive_complete")
class RndisComplete(Wire):
    """The answer to SET and KEEPALIVE."""

    request_id: u32 = at(0, default=0)
    status: u32 = at(4, default=0)


@wire(size=4, spec=f"{_RNDIS}, struct rndis_reset_request")
class RndisReset(Wire):
    """Begin anew."""

    reserved: u32 = at(0, default=0)


@wire(size=8, spec=f"{_RNDIS}, struct rndis_reset_complete")
class RndisResetComplete(Wire):
    """Done."""

    status: u32 = at(0, default=0)
    addressing_reset: u32 = at(4, default=0)


@wire(size=12, spec=f"{_RNDIS}, struct rndis_indicate_status")
class RndisIndicateStatus(Wire):
    """The host tells something unasked."""

    status: u32 = at(0, default=0)
    buffer_length: u32 = at(4, default=0)
    buffer_offset: u32 = at(8, default=0)
