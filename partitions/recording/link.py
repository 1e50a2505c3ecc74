"""What stands in front of the bytes of each recorded packet, and the numbers that devices have there. Root side.

A recording is a capture of link type USER0 (147). Each packet of it begins with a `LinkHeader`; behind that comes

    kind 1   a channel message, its header of eight bytes included, as it was posted
    kind 2   a ring packet: descriptor (16 bytes) and body as they lay in the ring, without the trailer of eight bytes

Everything is little-endian, as on the bus.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from hypervisor.trace import TO_CHILD, TO_ROOT
from hypervisor.wire import Guid, Wire, at, wire
from hypervisor.wire.scalars import u8, u32
from vmbus.protocol.hvsocket import port_of

LINK_TYPE: Final = 147
"""LINKTYPE_USER0."""
LINK_VERSION: Final = 1


class Kind(enum.IntEnum):
    """What the bytes behind the header are."""

    MESSAGE = 1
    """A channel message."""
    PACKET = 2
    """A ring packet."""


DIRECTIONS: Final = (TO_ROOT, TO_CHILD)
"""By the header's number."""


@wire(size=16, spec="docs/recording.md")
class LinkHeader(Wire):
    """In front of the bytes of each packet in a recording."""

    version: u8 = at(0x00)
    kind: u8 = at(0x01)
    direction: u8 = at(0x02)
    """0 to the root, 1 to the child."""
    device: u8 = at(0x03)
    """A code of `DEVICES`: whose channel it is."""
    partition: u32 = at(0x04)
    """The child's partition ID."""
    channel: u32 = at(0x08)
    """Channel ID; 0 where a message is about none."""
    bus_version: u32 = at(0x0C)
    """The VMBus version that has been negotiated; 0 as long as none has."""


class DeviceCode(msgspec.Struct, frozen=True):
    """A device that Hyper-V offers, or this host: its number in a `LinkHeader`, its name, its interface."""

    code: int
    name: str
    """Short, as filters and traces have it."""
    interface: Guid | None
    """None where an interface stands for a service, as with sockets."""


UNKNOWN: Final = 0
OWN: Final = 255
"""Somebody's own device, or one that has no code."""
SOCKET: Final = DeviceCode(14, "hv-socket", None)
DEVICES: Final = (
    DeviceCode(1, "storage", Guid("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f")),
    DeviceCode(2, "network", Guid("f8615163-df3e-46c5-913f-f2d2f965ed0e")),
    DeviceCode(3, "heartbeat", Guid("57164f39-9115-4e78-ab55-382f3bd5422d")),
    DeviceCode(4, "shutdown", Guid("0e0b6031-5213-4934-818b-38d90ced39db")),
    DeviceCode(5, "time-sync", Guid("9527e630-d0ae-497b-adce-e80ab0175caf")),
    DeviceCode(6, "kvp", Guid("a9a0f4e7-5a45-4d96-b827-8a841e8c03e6")),
    DeviceCode(7, "vss", Guid("35fa2e29-ea23-4236-96ae-3a6ebacba440")),
    DeviceCode(8, "file-copy", Guid("34d14be3-dee4-41c8-9ae7-6b174977c192")),
    DeviceCode(9, "keyboard", Guid("f912ad6d-2b17-48ea-bd65-f927a61c7684")),
    DeviceCode(10, "mouse", Guid("cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a")),
    DeviceCode(11, "dynamic-memory", Guid("525074dc-8985-46e2-8057-a307dc18a502")),
    DeviceCode(12, "video", Guid("da0a7802-e377-4aac-8e77-0558eb1073f8")),
    DeviceCode(13, "ide", Guid("32412632-86cb-44a2-9b5c-50d1417354f5")),
    SOCKET,
)
"""Hyper-V's well-known devices. Interfaces after Linux 6.12 include/linux/hyperv.h."""

CODES: Final = {device.name: device.code for device in DEVICES}
NAMES: Final = {device.code: device.name for device in DEVICES}
_BY_INTERFACE: Final = {device.interface: device.name for device in DEVICES if device.interface is not None}


def device_name(interface: Guid) -> str:
    """The short name of what is offered under an interface; empty where it has none."""
    name = _BY_INTERFACE.get(interface)
    if name is not None:
        return name
    return SOCKET.name if port_of(interface) is not None else ""


def device_code(name: str | None) -> int:
    """The number of a device's short name. None, for no device at all, is 0."""
    return UNKNOWN if name is None else CODES.get(name, OWN)
