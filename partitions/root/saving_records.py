"""What a saved VM is: plain records, apart from the live machine. Root side.

A change here is a new `saving_file.VERSION`; a stored file in the tests guards it.
"""

from __future__ import annotations

import attrs
import msgspec

from vmbus.server.saved import SavedBus


class DeviceFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device that the VM had."""

    interface: str
    instance: str
    disks: list[tuple[int, int]] = []
    """LUN and bytes of each disk; images are not in the file."""


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What has to be the same where the VM goes on."""

    vm: str
    memory: int
    """Bytes."""
    processors: int
    privileges: int
    devices: list[DeviceFacts]


class SavedCom1(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The serial port."""

    divisor: int
    interrupts: int
    line_control: int
    modem_control: int
    scratch: int
    fifos: bool
    transmitter_interrupt: bool
    received: bytes
    """Typed, and not read by the guest."""


class SavedChipset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Boot devices and the console."""

    com1: SavedCom1
    cmos_index: int
    power_button: bool
    exit_code: int | None
    console: bytes
    """The last of what was printed."""


@attrs.frozen
class MemoryRun:
    """Adjacent guest pages with something in them."""

    gpn: int
    data: bytes = attrs.field(repr=False)


@attrs.frozen
class SavedVm:
    """All of it. Pages of memory that no run holds are zero."""

    facts: Facts
    partition: bytes = attrs.field(repr=False)
    """The hypervisor's stream."""
    bus: SavedBus = attrs.field(repr=False)
    chipset: SavedChipset = attrs.field(repr=False)
    memory: tuple[MemoryRun, ...] = attrs.field(repr=False)


def difference(saved: Facts, here: Facts) -> str:
    """What is not the same, for people; empty if nothing is."""
    for name, was, now in (
        ("name", saved.vm, here.vm),
        ("memory in bytes", saved.memory, here.memory),
        ("processors", saved.processors, here.processors),
    ):
        if was != now:
            return f"its {name}: {was} in the file, {now} here"
    lacking = saved.privileges & ~here.privileges
    if lacking:  # more than it had do no harm
        return f"it had rights that it has not here: {lacking:#x}"
    then = {(device.interface, device.instance): device for device in saved.devices}
    now_there = {(device.interface, device.instance): device for device in here.devices}
    for key in then.keys() ^ now_there.keys():
        where = "in the file only" if key in then else "here only"
        return f"a device {key[0]}/{key[1]} is {where}"
    for key, device in then.items():
        if device.disks != now_there[key].disks:
            return f"its disks (LUN, bytes): {device.disks} in the file, {now_there[key].disks} here"
    return ""
