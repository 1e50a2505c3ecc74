"""What a network driver asks of its adapter and sets there, as the bytes of OIDs. Child side."""

from __future__ import annotations

import struct
from typing import Final

from vsp_vsc.network.ndis import (
    RSS_KEY_SIZE,
    RSS_TABLE_ENTRIES,
    ChecksumCapability,
    ChecksumSetting,
    ConfigParameter,
    HashInfo,
    ObjectHeader,
    ObjectType,
    Offload,
    OffloadParameters,
    ParameterType,
    RssCapabilities,
    RssParameters,
    SwitchSetting,
)

OFFLOAD_QUESTION: Final = ObjectHeader(ObjectType.OFFLOAD, 3, Offload.SIZE).encode().ljust(Offload.SIZE, b"\0")
"""As Linux asks: an object of the revision that it knows, empty."""
_HASHED = HashInfo.IPV4 | HashInfo.TCP_IPV4 | HashInfo.UDP_IPV4 | HashInfo.IPV6 | HashInfo.TCP_IPV6
SCALING_QUESTION: Final = (
    ObjectHeader(ObjectType.RSS_CAPABILITIES, 2, RssCapabilities.SIZE).encode().ljust(RssCapabilities.SIZE, b"\0")
)


def decode_offload(answer: bytes) -> Offload:
    """What the adapter does with frames on their way; older revisions are shorter."""
    return Offload.decode(answer.ljust(Offload.SIZE, b"\0"))


def everything_on(can: Offload) -> bytes:
    """All that the adapter can do for frames that go out."""

    def checksum(of: int, what: ChecksumCapability) -> int:
        return ChecksumSetting.TRANSMIT if of & what else ChecksumSetting.OFF

    return OffloadParameters(
        ipv4_header=checksum(can.ipv4_transmit, ChecksumCapability.IPV4_HEADER),
        tcp_ipv4=checksum(can.ipv4_transmit, ChecksumCapability.TCP),
        udp_ipv4=checksum(can.ipv4_transmit, ChecksumCapability.UDP),
        tcp_ipv6=checksum(can.ipv6_transmit, ChecksumCapability.TCP),
        udp_ipv6=checksum(can.ipv6_transmit, ChecksumCapability.UDP),
        lso_v2_ipv4=SwitchSetting.ON if can.lso_ipv4_max_size else SwitchSetting.OFF,
        lso_v2_ipv6=SwitchSetting.ON if can.lso_ipv6_max_size else SwitchSetting.OFF,
    ).encode()


def named_integer(name: str, value: int) -> bytes:
    """A setting of the adapter's by name."""
    text = name.encode("utf-16-le")
    head = ConfigParameter(
        name_offset=ConfigParameter.SIZE,
        name_length=len(text),
        parameter_type=ParameterType.INTEGER,
        value_offset=ConfigParameter.SIZE + len(text),
        value_length=4,
    )
    return head.encode() + text + struct.pack("<I", value)


def spread_over(channels: int) -> bytes:
    """Receive side scaling: flows go round the channels."""
    table = struct.pack(f"<{RSS_TABLE_ENTRIES}I", *(index % channels for index in range(RSS_TABLE_ENTRIES)))
    head = RssParameters(
        hash_info=HashInfo.TOEPLITZ | _HASHED,
        table_size=len(table),
        table_offset=RssParameters.SIZE,
        key_size=RSS_KEY_SIZE,
        key_offset=RssParameters.SIZE + len(table),
    )
    # Any key spreads; this one is the same for every guest, so that runs repeat.
    return head.encode() + table + bytes((73 * index + 41) & 0xFF for index in range(RSS_KEY_SIZE))
