"""What netvsp and netvsc say to each other on their channel: NVSP, its messages, versions and limits. Both sides.

Order: INIT, one version at a time until the host takes one; from 3.2 on SEND_NDIS_CONFIG; SEND_NDIS_VERSION,
SEND_RECEIVE_BUFFER, and SEND_SEND_BUFFER, which a guest may leave out: then its first RNDIS packet ends the
initialization. INIT_COMPLETE has the size of version 2 always; what follows has the size of the version agreed on. A
completion is sent where the guest's packet wants one: SEND_NDIS_CONFIG and SEND_NDIS_VERSION have an empty one.

Frames from the guest lie in a section of its send buffer, in pages that the packet names, or begin in the one and go on
in the others: one RNDIS message, or several data messages one after the other. Frames for the guest lie in pieces of
its receive buffer (sub-allocations), a packet of many pieces; the first piece's number is the transaction, and its
completion gives all of them back. The first `CONTROL_PIECES` are for answers to control messages, so that these have
room when frames have none.

SUBCHANNEL, from version 5 on, has the host offer further channels. When the guest has opened them all the host sends
the table of which to send by. They carry data messages and completions, nothing else.

What a guest's mistake costs it:

    soft: that message is refused or ignored, and the channel goes on
        a version that we do not speak: INIT_COMPLETE with status NONE, and the guest may ask for another
        a receive or send buffer that is no GPADL of this channel, not one range of whole pages, not the guest's memory
        or too small: status FAIL, and the guest may name another
        an RNDIS message that is in no section and not in the guest's memory, longer than `MAX_MESSAGE`, cut short, of
        an unknown kind, or whose headers cross from one range into the next: completion status FAIL; of a message of
        several frames none is sent
        a frame shorter than an Ethernet header or longer than the port's MTU, a checksum or segmentation that points
        outside of its frame, more than 2,048 frames or segments in a message: the same
        more than `MAX_CONTROL_BYTES` of control messages that wait, or one on a subchannel: the same
        INDICATE_STATUS and SET_EX, which only a host may send: completion status SUCCESS, nothing else
        a control message that asks for what cannot be: a status in its RNDIS answer (`oids.py`)
        SUBCHANNEL for more than there are: status FAIL
        REVOKE of a buffer that is not there, a completion of nothing or of an unknown type: ignored and counted
    hard: the channel is served no more, nothing is answered and the guest has to close it
        anything before INIT, an unknown message, one of a later version, or that only a host may send
        a message too short for its type
        INIT, SEND_NDIS_CONFIG, SEND_NDIS_VERSION or a buffer a second time
        SEND_RECEIVE_BUFFER before SEND_NDIS_CONFIG from version 3.2 on
        an RNDIS packet before there is a receive buffer and the NDIS versions
        on a subchannel, anything but RNDIS packets, OID_QUERY_EX and completions
        a corrupt ring
    fatal for the VM
        nothing

Layouts after Linux 6.12 drivers/net/hyperv/hyperv_net.h; behaviour after openvmm netvsp. tests/spec/layouts/network.txt
holds the layouts a second time.
"""

from __future__ import annotations

import enum

from hypervisor.wire import Guid, Wire, at, wire
from hypervisor.wire.scalars import u16, u32, u64

NETWORK_INTERFACE = Guid("f8615163-df3e-46c5-913f-f2d2f965ed0e")
"""The interface a network adapter is offered under."""

RECEIVE_HEADROOM, RECEIVE_FOOTER = 256, 36
"""A piece of the receive buffer has room for RNDIS headers, a frame, and what some drivers of Windows spoil."""
SECTION_SIZE = 6144
"""Bytes of a section of the send buffer."""
NO_SECTION = 0xFFFF_FFFF
"""In the place of a section's number: the message is not in the send buffer."""
MAX_MDL_CHAIN = 34
CONTROL_PIECES = 16
MAX_CONTROL_BYTES = 100 * 1024
MAX_MESSAGE = 256 * 1024
"""Bytes of an RNDIS message from the guest."""
MAX_SUB_CHANNELS = 63
"""Beside the primary channel."""
DEFAULT_MTU, LARGEST_MTU = 1514, 9216
"""What SEND_NDIS_CONFIG may say, the Ethernet header included; anything else means the default."""
SEND_TABLE_ENTRIES = 16

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


VERSIONS = (NvspVersion.V6_1, NvspVersion.V6, NvspVersion.V5, NvspVersion.V4, NvspVersion.V2, NvspVersion.V1)
"""What both of our sides speak, best first."""
NO_VERSION = 0xFFFF_FFFF
"""What INIT_COMPLETE says in the place of a version, except of version 1."""


def version_words(version: int) -> str:
    """A version as it is spoken of: `6.1`."""
    return f"{version >> 16}.{version & 0xFFFF}"


def message_size(version: int) -> int:
    """Bytes of an NVSP message in this version; a ring pads them to a multiple of 8."""
    return 0x28 if version >= NvspVersion.V6_1 else 0x1C


def piece_size(mtu: int) -> int:
    """Bytes of a sub-allocation for this MTU of SEND_NDIS_CONFIG."""
    return RECEIVE_HEADROOM + mtu + RECEIVE_FOOTER


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


class SubchannelOperation(enum.IntEnum):
    """What a SUBCHANNEL request asks for."""

    NONE = 0
    ALLOCATE = 1


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


@wire(size=8, spec="openvmm netvsp protocol.rs, Message5OidQueryExComplete")
class OidQueryExComplete(Wire):
    """The answer to OID_QUERY_EX."""

    status: u32 = at(0, default=0)
    byte_count: u32 = at(4, default=0)
