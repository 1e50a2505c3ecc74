"""The keyboard and the mouse of one running VM. Root side.

A VM has those that its topology names, and both if it has a screen. A VM without any loads none of this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.trace import Trace
from partitions.topology_schema import InputName, VmTable

if TYPE_CHECKING:
    from hypervisor.partition import Partition
    from vmbus.server.offers import Device
    from vsp_vsc.keyboard.vsp import KeyboardVsp
    from vsp_vsc.mouse.vsp import MouseVsp

_OPEN_SOURCE = 1 << 63
_MICROSOFT = 1
_MODEL_GUEST = 0xD041
"""What our own kernel calls itself, in the high bits of its OS ID."""


class Input:
    """What a VM has of them in one run; what it has not is None."""

    def __init__(self, settings: VmTable, partition: Partition, trace: Trace) -> None:
        wanted = inputs_of(settings)
        self.keyboard: KeyboardVsp | None = None
        self.mouse: MouseVsp | None = None
        if InputName.KEYBOARD in wanted:
            from vsp_vsc.keyboard.vsp import KeyboardVsp

            self.keyboard = KeyboardVsp(trace, partition.id, takes_unicode=lambda: takes_unicode(partition.guest_os_id))
        if InputName.MOUSE in wanted:
            from vsp_vsc.mouse.vsp import MouseVsp

            self.mouse = MouseVsp(trace, partition.id)

    @property
    def devices(self) -> tuple[Device, ...]:
        """For the bus."""
        return tuple(device for device in (self.keyboard, self.mouse) if device is not None)


def inputs_of(settings: VmTable) -> frozenset[InputName]:
    """What a VM gets."""
    if getattr(settings, "screen", None) is not None:
        return frozenset(InputName)
    return frozenset(settings.input)


def takes_unicode(guest_os_id: int) -> bool:
    """Whether a guest's keyboard driver takes characters that no key has, by what its kernel says of itself.

    Windows' does, and a model guest's. Linux' (6.12, hyperv-keyboard.c) passes every event's make code on to its AT
    keyboard driver as a scan code, whatever the flag says: a character would come out as some key. Of others we do not
    know, and take them to be as Linux. Source of the ID's layout: TLFS 6.0b, 2.6.
    """
    if guest_os_id & _OPEN_SOURCE:
        return guest_os_id >> 48 == _MODEL_GUEST
    return guest_os_id >> 48 == _MICROSOFT
