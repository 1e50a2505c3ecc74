"""Values in words: enumerations, flags, addresses, dates. Root side."""

from __future__ import annotations

import enum

from hypervisor.status import HvStatus
from hypervisor.wire import Guid
from partitions.decode.field import Hint, Words
from partitions.recording.link import SOCKET, device_name
from vmbus.protocol.hvsocket import port_of
from vmbus.protocol.identifiers import ChannelStatus
from vmbus.protocol.versions import IMPLEMENTED, version_text
from vsp_vsc.storage.protocol import NtStatus


def enum_words(*kinds: type[enum.IntEnum], spaces: bool = False) -> Words:
    """The member's name in the first of the enumerations that has it."""
    names: dict[int, str] = {}
    for kind in reversed(kinds):
        names |= {int(member): member.name for member in kind}

    def words(value: int) -> str:
        name = names.get(value, "unknown")
        return name.replace("_", " ") if spaces else name

    return words


def flag_words(kind: type[enum.IntFlag]) -> Words:
    """Names of the bits that are set, and what is left as a number."""
    members = [(int(member), member.name) for member in kind if member]

    def words(value: int) -> str:
        names = [name or "" for bit, name in members if value & bit]
        rest = value
        for bit, _ in members:
            rest &= ~bit
        return " | ".join([*names, *([f"{rest:#x} unknown"] if rest else [])])

    return words


def yes_no(value: int) -> str:
    """A byte that says whether."""
    return "yes" if value else "no"


def page(value: int) -> str:
    """A guest page number as an address."""
    return f"GPA {value << 12:#x}"


def hint(words: Words) -> Hint:
    """A hint that is nothing but words."""
    return Hint(words)


_OTHER_INTERFACES: dict[str, str] = {
    # Linux 6.12 include/linux/hyperv.h
    "2f9bcc4a-0069-4af3-b76b-6fd0be528cda": "fibre-channel",
    "8c2eaf3d-32a7-4b09-ab99-bd1f1c86b501": "network-direct",
    "44c4f61d-4444-4400-9d52-802e27ede19f": "pci",
    "f8e65716-3cb3-4a06-9a60-1889c5cccab5": "automatic-activation",
    "3375baf4-9e15-4b30-b765-67acb10d607b": "automatic-activation",
    "276aacf4-ac15-426c-98dd-7521ad3f01fe": "remote-desktop",
    "c376c1c3-d276-48d2-90a9-c04748072c60": "initial-configuration",
}
"""Devices that recordings have no code for, and that people meet in offers all the same."""


def interface_words(value: str) -> str:
    """The device behind an interface's GUID, and the port of a Hyper-V socket; empty where it is nobody's known."""
    name = device_name(Guid(value))
    if name == SOCKET.name:
        return f"{name}, vsock port {port_of(Guid(value))}"
    return name or _OTHER_INTERFACES.get(value, "")


def vmbus_version_words(value: int) -> str:
    """`5.3`, and whether there is one."""
    return version_text(value) if value in IMPLEMENTED else f"{version_text(value)}, not a known version"


def short_version_words(value: int) -> str:
    """A device's version in 16 bits, major first."""
    return f"{value >> 8}.{value & 0xFF}"


def long_version_words(value: int) -> str:
    """A device's version in 32 bits, major first."""
    return f"{value >> 16}.{value & 0xFFFF}"


channel_status_words = enum_words(ChannelStatus, NtStatus)
"""Hosts say an NTSTATUS where they have a reason."""
hv_status_words = enum_words(HvStatus)
