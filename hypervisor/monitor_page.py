"""The monitored notification page: 128 triggers that a partition sets and the hypervisor looks at. Both sides.

One page serves one direction between two partitions and is seen by both. The sender sets a trigger's pending bit; the
hypervisor looks at the enabled groups about as often as the lowest latency in each, clears what it finds, and signals
the event that the trigger's parameter names, as if the sender had called HvSignalEvent. (HV_MONITOR_PAGE, hvgdk.h.)

    0     trigger state: bits 0 to 3 enable the groups         576   latency[4][32], 16 bits each, in 100 ns
    8     trigger group[4]: pending, armed, 32 bits each       1088  parameter[4][32]: connection ID, flag number
    64    next check time[4][32], the hypervisor's own         2112  reserved
"""

from __future__ import annotations

import struct
from typing import Final

from hypervisor.atomic import set_bits, take_word
from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import u16, u32

GROUPS: Final = 4
GROUP_SIZE: Final = 32
TRIGGERS: Final = GROUPS * GROUP_SIZE

_GROUP_ENABLE: Final = 0xF
_TRIGGER_GROUP: Final = 8
_LATENCY: Final = 576
_PARAMETER: Final = 1088
MAX_LATENCY: Final = 0xFFFF
"""6.5 ms."""


@wire(size=8, spec="HV_MONITOR_PARAMETER, hvgdk.h; Linux hv_monitor_parameter")
class MonitorParameter(Wire):
    """What a trigger signals: a connection of the sender's, and a flag of the port behind it."""

    connection_id: u32 = at(0x00)
    flag_number: u16 = at(0x04, default=0)
    reserved: u16 = at(0x06, default=0)


_NO_PARAMETER: Final = bytes(MonitorParameter.SIZE)
_GROUP_LATENCY: Final = struct.Struct(f"<{GROUP_SIZE}H")


class MonitorPage:
    """One page through a view of its 4,096 bytes. Both partitions write it: what is read may be anything."""

    __slots__ = ("view",)

    def __init__(self, view: memoryview) -> None:
        self.view = view

    def trigger(self, number: int) -> None:
        """The sender's part: set a pending bit."""
        group, bit = divmod(number, GROUP_SIZE)
        set_bits(self.view, _TRIGGER_GROUP + 8 * group, 1 << bit)

    def take_pending(self, group: int) -> int:
        """The hypervisor's part: the pending bits of a group, cleared."""
        return take_word(self.view, _TRIGGER_GROUP + 8 * group)

    def pending(self, group: int) -> int:
        """The same bits, to look at."""
        return int.from_bytes(self.view[_TRIGGER_GROUP + 8 * group : _TRIGGER_GROUP + 8 * group + 4], "little")

    @property
    def enabled_groups(self) -> int:
        """A bit for each group that is looked at."""
        return self.view[0] & _GROUP_ENABLE

    def enable_groups(self, mask: int) -> None:
        """Say which groups are looked at."""
        self.view[0:4].cast("I")[0] = mask & _GROUP_ENABLE

    def latency(self, group: int) -> int:
        """The lowest latency in a group, in 100 ns; 0 where none is given."""
        start = _LATENCY + 2 * GROUP_SIZE * group
        return min(filter(None, _GROUP_LATENCY.unpack_from(self.view, start)), default=0)

    def parameter(self, number: int) -> MonitorParameter:
        """What a trigger signals; connection 0 is nobody's."""
        start = _PARAMETER + MonitorParameter.SIZE * number
        return MonitorParameter.decode(bytes(self.view[start : start + MonitorParameter.SIZE]))

    def set_up(self, number: int, latency: int, parameter: MonitorParameter) -> None:
        """Give a trigger its meaning."""
        start = _PARAMETER + MonitorParameter.SIZE * number
        self.view[start : start + MonitorParameter.SIZE] = parameter.encode()
        self._set_latency(number, latency)

    def take_down(self, number: int) -> None:
        """The trigger means nothing from here on."""
        self._set_latency(number, 0)
        start = _PARAMETER + MonitorParameter.SIZE * number
        self.view[start : start + MonitorParameter.SIZE] = _NO_PARAMETER

    def _set_latency(self, number: int, latency: int) -> None:
        start = _LATENCY + 2 * number
        self.view[start : start + 2] = min(latency, MAX_LATENCY).to_bytes(2, "little")
