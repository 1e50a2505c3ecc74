"""What netvsp and netvsc say to each other on their channel: NVSP, its messages, versions and limits. Both sides.

Layouts after Linux 6.12 drivers/net/hyperv/hyperv_net.h; tests/spec/layouts/network.txt holds them a second time.
"""

from __future__ import annotations

import enum

from hypervisor.wire import Guid, Wire, at, wire
from hypervisor.wire.scalars import u16, u32, u64

NETWORK_INTERFACE = Guid("f8615163-df3e-46c5-913f-f2d2f965ed0e")
"""The interface a network adapter is offered under."""

_NVSP = "Linux 6.12 drivers/net/hyperv/hyperv_net.h"


class NvspType(enum.IntEnum):
    """What an NVSP message is."""

    INIT = 1
    INIT_COMPLETE = 2
    SEND_NDIS_VERSION = 100
    SEND_RECEIVE_BUFFER = 101
    SEND_RECEIVE_BUFFER_COMPLETE = 102
    REVOKE_RECEIVE_BUFFER = 103
    SEND_SEND_BUFFER = 104
    SEND_SEND_BUFFER_COMPLETE = 105
    REVOKE_SEND_BUFFER = 106
    SEND_RNDIS_PACKET = 107
    SEND_RNDIS_PACKET_COMPLETE = 108
    SEND_NDIS_CONFIG = 125
    SEND_VF_ASSOCIATION = 128
    SWITCH_DATA_PATH = 129
    UPLINK_CONNECT_STATE = 130
    OID_QUERY_EX = 131
    OID_QUERY_EX_COMPLETE = 132
    SUBCHANNEL = 133
    SEND_INDIRECTION_TABLE = 134
    PD_API = 135
    PD_POST_BATCH = 136


class NvspStatus(enum.IntEnum):
    """The status of a completion."""

    NONE = 0
    SUCCESS = 1
    FAIL = 2
    PROTOCOL_TOO_NEW = 3
    PROTOCOL_TOO_OLD = 4
    INVALID_RNDIS_PACKET = 5
    BUSY = 6
    PROTOCOL_UNSUPPORTED = 7


class NvspVersion(enum.IntEnum):
    """Versions of NVSP."""

    V1 = 0x00002
    V2 = 0x30002
    V4 = 0x40000
    V5 = 0x50000
    V6 = 0x60000
    V6_1 = 0x60001


class Capability(enum.IntFlag):
    """What a guest can do (SEND_NDIS_CONFIG)."""

    VMQ = 0x1
    CHIMNEY = 0x2
    SRIOV = 0x4
    IEEE8021Q = 0x8
    CORRELATION_ID = 0x10
    TEAMING = 0x20
    VIRTUAL_SUBNET_ID = 0x40
    RSC = 0x80


class DataPath(enum.IntEnum):
    """By which way packets go."""

    SYNTHETIC = 0
    VF = 1


class ChannelType(enum.IntEnum):
    """What kind of RNDIS message a packet carries."""

    DATA = 0
    CONTROL = 1


@wire(size=4, spec=f"{_NVSP}, struct nvsp_message_header")
class NvspHeader(Wire):
    """In front of every message."""

    message_type: u32 = at(0, default=0)


@wire(size=8, spec=f"{_NVSP}, struct nvsp_message_init")
class NvspInit(Wire):
    """The guest asks for a version."""

    least_version: u32 = at(0, default=0)
    greatest_version: u32 = at(4, default=0)


@wire(size=12, spec=f"{_NVSP}, struct nvsp_message_init_complete")
class NvspInitComplete(Wire):
    """The host's answer."""

    negotiated_version: u32 = at(0, default=0)
    max_mdl_chain: u32 = at(4, default=0)
    status: u32 = at(8, default=0)


@wire(size=8, spec=f"{_NVSP}, struct nvsp_1_message_send_ndis_version")
class NdisVersion(Wire):
    """The guest's NDIS version."""

    major: u32 = at(0, default=0)
    minor: u32 = at(4, default=0)


@wire(size=6, spec=f"{_NVSP}, struct nvsp_1_message_send_receive_buffer, nvsp_1_message_send_send_buffer")
class SendBuffer(Wire):
    """A buffer that the guest has named as a GPADL."""

    gpadl_id: u32 = at(0, default=0)
    buffer_id: u16 = at(4, default=0)


@wire(size=2, spec=f"{_NVSP}, struct nvsp_1_message_revoke_receive_buffer, nvsp_1_message_revoke_send_buffer")
class RevokeBuffer(Wire):
    """The guest wants it back."""

    buffer_id: u16 = at(0, default=0)


@wire(size=8, spec=f"{_NVSP}, struct nvsp_1_message_send_receive_buffer_complete")
class ReceiveBufferComplete(Wire):
    """How the host divides the receive buffer; sections follow."""

    status: u32 = at(0, default=0)
    section_count: u32 = at(4, default=0)


@wire(size=16, spec=f"{_NVSP}, struct nvsp_1_receive_buffer_section")
class ReceiveSection(Wire):
    """A part of the receive buffer in pieces of one size."""

    section_offset: u32 = at(0, default=0)
    piece_size: u32 = at(4, default=0)
    piece_count: u32 = at(8, default=0)
    end_offset: u32 = at(12, default=0)


@wire(size=8, spec=f"{_NVSP}, struct nvsp_1_message_send_send_buffer_complete")
class SendBufferComplete(Wire):
    """How the guest shall divide its send buffer."""

    status: u32 = at(0, default=0)
    section_size: u32 = at(4, default=0)


@wire(size=12, spec=f"{_NVSP}, struct nvsp_1_message_send_rndis_packet")
class SendRndisPacket(Wire):
    """An RNDIS message lies in the ranges of this packet, or in a section of the send buffer."""

    channel_type: u32 = at(0, default=0)
    section_index: u32 = at(4, default=0)
    section_size: u32 = at(8, default=0)


@wire(size=4, spec=f"{_NVSP}, struct nvsp_1_message_send_rndis_packet_complete")
class RndisPacketComplete(Wire):
    """It was taken."""

    status: u32 = at(0, default=0)


@wire(size=16, spec=f"{_NVSP}, struct nvsp_2_send_ndis_config")
class NdisConfig(Wire):
    """What the guest can do."""

    mtu: u32 = at(0, default=0)
    reserved: u32 = at(4, default=0)
    capabilities: u64 = at(8, default=0)


@wire(size=8, spec=f"{_NVSP}, struct nvsp_4_send_vf_association")
class VfAssociation(Wire):
    """A virtual function stands beside this device."""

    allocated: u32 = at(0, default=0)
    serial: u32 = at(4, default=0)


@wire(size=4, spec=f"{_NVSP}, struct nvsp_4_sw_datapath")
class SwitchDataPath(Wire):
    """By which way packets shall go."""

    active: u32 = at(0, default=0)


@wire(size=8, spec=f"{_NVSP}, struct nvsp_5_subchannel_request")
class SubchannelRequest(Wire):
    """The guest wants more channels."""

    operation: u32 = at(0, default=0)
    count: u32 = at(4, default=0)


@wire(size=8, spec=f"{_NVSP}, struct nvsp_5_subchannel_complete")
class SubchannelComplete(Wire):
    """How many it gets."""

    status: u32 = at(0, default=0)
    count: u32 = at(4, default=0)


@wire(size=8, spec=f"{_NVSP}, struct nvsp_5_send_indirect_table")
class IndirectionTable(Wire):
    """Which channel each hash goes to; the table lies `table_offset` bytes into the message."""

    count: u32 = at(0, default=0)
    table_offset: u32 = at(4, default=0)
