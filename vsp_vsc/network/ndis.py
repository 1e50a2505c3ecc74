"""NDIS objects: what RNDIS queries and settings carry about offloads, receive side scaling and the link. Both sides.

Layouts after Linux 6.12 drivers/net/hyperv/hyperv_net.h and openvmm netvsp rndisprot.rs; tests/spec/layouts/network.txt
holds them a second time. Each begins with a header of type, revision and size; what of it a peer knows is as long as
the revision says.
"""

from __future__ import annotations

import enum

from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import u8, u16, u32, u64

_LINUX = "Linux 6.12 drivers/net/hyperv/hyperv_net.h"
_OPENVMM = "openvmm netvsp rndisprot.rs"

OFFLOAD_SIZES = {1: 112, 2: 144, 3: 156}
"""Bytes of `Offload` by revision."""
OFFLOAD_PARAMETERS_SIZE = 20
"""The least that `OffloadParameters` has, in revision 1."""
RSS_KEY_SIZE = 40
RSS_TABLE_ENTRIES = 128
MAX_LSO_SIZE, MIN_LSO_SEGMENTS = 0xF53C, 2
ETHERNET_ENCAPSULATION = 2


class ObjectType(enum.IntEnum):
    """The first byte of an object."""

    DEFAULT = 0x80
    RSS_CAPABILITIES = 0x88
    RSS_PARAMETERS = 0x89
    OFFLOAD = 0xA7
    OFFLOAD_ENCAPSULATION = 0xA8


class ChecksumCapability(enum.IntFlag):
    """What of checksums an adapter does, for IPv4 or IPv6."""

    IP_OPTIONS = 0x1
    """Or extension headers."""
    TCP_OPTIONS = 0x4
    TCP = 0x10
    UDP = 0x40
    IPV4_HEADER = 0x100


class ChecksumSetting(enum.IntEnum):
    """A checksum in `OffloadParameters`."""

    NO_CHANGE = 0
    OFF = 1
    TRANSMIT = 2
    RECEIVE = 3
    BOTH = 4


class SwitchSetting(enum.IntEnum):
    """Segmentation in `OffloadParameters`."""

    NO_CHANGE = 0
    OFF = 1
    ON = 2


class RssFlag(enum.IntFlag):
    """Flags of `RssParameters`."""

    BASE_CPU_UNCHANGED = 0x1
    HASH_INFO_UNCHANGED = 0x2
    TABLE_UNCHANGED = 0x4
    KEY_UNCHANGED = 0x8
    DISABLE = 0x10


class HashInfo(enum.IntFlag):
    """By what a frame is hashed; the low byte is the function."""

    TOEPLITZ = 0x1
    IPV4 = 0x100
    TCP_IPV4 = 0x200
    IPV6 = 0x400
    TCP_IPV6 = 0x1000
    UDP_IPV4 = 0x4000
    UDP_IPV6 = 0x8000


HASH_FUNCTION_MASK = 0xFF


class RssCapability(enum.IntFlag):
    """What an adapter can hash by."""

    TOEPLITZ = 0x1
    TCP_IPV4 = 0x100
    TCP_IPV6 = 0x200


class ParameterType(enum.IntEnum):
    """What the value of a `ConfigParameter` is."""

    INTEGER = 0
    HEX_INTEGER = 1
    STRING = 2


@wire(size=4, spec=f"{_LINUX}, struct ndis_object_header")
class ObjectHeader(Wire):
    """In front of every object."""

    object_type: u8 = at(0, default=0)
    revision: u8 = at(1, default=0)
    size: u16 = at(2, default=0)


@wire(size=18, spec=f"{_LINUX}, struct ndis_recv_scale_cap")
class RssCapabilities(Wire):
    """By how many channels an adapter can receive."""

    object_type: u8 = at(0, default=ObjectType.RSS_CAPABILITIES)
    revision: u8 = at(1, default=2)
    size: u16 = at(2, default=18)
    capabilities: u32 = at(4, default=0)
    interrupt_messages: u32 = at(8, default=1)
    receive_queues: u32 = at(12, default=0)
    table_entries: u16 = at(16, default=RSS_TABLE_ENTRIES)


@wire(size=40, spec=f"{_LINUX}, struct ndis_recv_scale_param")
class RssParameters(Wire):
    """How frames are spread over the channels; key and table lie behind it, offsets count from its start."""

    object_type: u8 = at(0, default=ObjectType.RSS_PARAMETERS)
    revision: u8 = at(1, default=2)
    size: u16 = at(2, default=40)
    flags: u16 = at(4, default=0)
    base_cpu: u16 = at(6, default=0)
    hash_info: u32 = at(8, default=0)
    table_size: u16 = at(12, default=0)
    """Bytes, four an entry."""
    table_offset: u32 = at(16, default=0)
    key_size: u16 = at(20, default=0)
    key_offset: u32 = at(24, default=0)
    masks_offset: u32 = at(28, default=0)
    mask_count: u32 = at(32, default=0)
    mask_size: u32 = at(36, default=0)


@wire(size=156, spec=f"{_LINUX}, struct ndis_offload")
class Offload(Wire):
    """What an adapter does for its driver; what it never does (IPsec, LSO v1, RSC, tunnels) is left out, and zero."""

    object_type: u8 = at(0, default=ObjectType.OFFLOAD)
    revision: u8 = at(1, default=3)
    size: u16 = at(2, default=156)
    ipv4_transmit_encapsulation: u32 = at(4, default=ETHERNET_ENCAPSULATION)
    ipv4_transmit: u32 = at(8, default=0)
    ipv4_receive_encapsulation: u32 = at(12, default=ETHERNET_ENCAPSULATION)
    ipv4_receive: u32 = at(16, default=0)
    ipv6_transmit_encapsulation: u32 = at(20, default=ETHERNET_ENCAPSULATION)
    ipv6_transmit: u32 = at(24, default=0)
    ipv6_receive_encapsulation: u32 = at(28, default=ETHERNET_ENCAPSULATION)
    ipv6_receive: u32 = at(32, default=0)
    lso_ipv4_encapsulation: u32 = at(80, default=0)
    lso_ipv4_max_size: u32 = at(84, default=0)
    lso_ipv4_min_segments: u32 = at(88, default=0)
    lso_ipv6_encapsulation: u32 = at(92, default=0)
    lso_ipv6_max_size: u32 = at(96, default=0)
    lso_ipv6_min_segments: u32 = at(100, default=0)
    lso_ipv6_options: u32 = at(104, default=0)
    flags: u32 = at(108, default=0)
    rsc: u16 = at(144, default=0)


@wire(size=20, spec=f"{_LINUX}, struct ndis_offload_params, revision 1")
class OffloadParameters(Wire):
    """What of it the driver wants: `ChecksumSetting`s and `SwitchSetting`s."""

    object_type: u8 = at(0, default=ObjectType.DEFAULT)
    revision: u8 = at(1, default=1)
    size: u16 = at(2, default=20)
    ipv4_header: u8 = at(4, default=0)
    tcp_ipv4: u8 = at(5, default=0)
    udp_ipv4: u8 = at(6, default=0)
    tcp_ipv6: u8 = at(7, default=0)
    udp_ipv6: u8 = at(8, default=0)
    lso_v1: u8 = at(9, default=0)
    ipsec_v1: u8 = at(10, default=0)
    lso_v2_ipv4: u8 = at(11, default=0)
    lso_v2_ipv6: u8 = at(12, default=0)
    connection_ipv4: u8 = at(13, default=0)
    connection_ipv6: u8 = at(14, default=0)
    flags: u32 = at(16, default=0)


@wire(size=28, spec=f"{_OPENVMM}, NdisOffloadEncapsulation")
class OffloadEncapsulation(Wire):
    """What stands in front of the IP header where offloads are to work."""

    object_type: u8 = at(0, default=ObjectType.OFFLOAD_ENCAPSULATION)
    revision: u8 = at(1, default=1)
    size: u16 = at(2, default=28)
    ipv4_enabled: u32 = at(4, default=1)
    ipv4_type: u32 = at(8, default=ETHERNET_ENCAPSULATION)
    ipv4_header_size: u32 = at(12, default=14)
    ipv6_enabled: u32 = at(16, default=1)
    ipv6_type: u32 = at(20, default=ETHERNET_ENCAPSULATION)
    ipv6_header_size: u32 = at(24, default=14)


@wire(size=40, spec=f"{_OPENVMM}, LinkState")
class LinkState(Wire):
    """The cable."""

    object_type: u8 = at(0, default=ObjectType.DEFAULT)
    revision: u8 = at(1, default=1)
    size: u16 = at(2, default=40)
    connect_state: u32 = at(4, default=0)
    """1 connected, 2 disconnected."""
    duplex_state: u32 = at(8, default=0)
    transmit_speed: u64 = at(16, default=0)
    """Bits a second."""
    receive_speed: u64 = at(24, default=0)
    pause_functions: u32 = at(32, default=0)
    auto_negotiation: u32 = at(36, default=0)


@wire(size=20, spec=f"{_LINUX}, struct rndis_config_parameter_info")
class ConfigParameter(Wire):
    """A setting by name; name and value in UTF-16 or as a 32-bit number, offsets count from the start of this."""

    name_offset: u32 = at(0, default=0)
    name_length: u32 = at(4, default=0)
    parameter_type: u32 = at(8, default=0)
    value_offset: u32 = at(12, default=0)
    value_length: u32 = at(16, default=0)
