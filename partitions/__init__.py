"""The software that runs in each kind of partition, and the way in for people. Both sides.

The host's Python API (`partitions.host`) is here too: `partitions.open_host`, `partitions.Host`, `partitions.Vm`. It is
loaded when first asked for, because a guest's software imports this package as well and needs none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from partitions.host import (
        CannotSave,
        Console,
        ConsoleLine,
        Contact,
        DiskError,
        DiskState,
        ExitReason,
        ExitRecord,
        Heartbeat,
        Host,
        HotPlugError,
        InvalidTransition,
        Kvp,
        NicError,
        NicState,
        NoAnswer,
        NoScreen,
        Pool,
        ReturnCode,
        SocketRefused,
        StartFailed,
        SwitchError,
        UnknownVm,
        Vm,
        VmEvent,
        VmState,
        VmStateChange,
        VmStatistics,
        open_host,
    )
    from partitions.inspect import InspectError
    from partitions.root.memory_state import CannotResize
    from partitions.root.resources import ResourceError
    from partitions.topology import Topology, TopologyError, VmTable, load_topology
    from partitions.topology_schema import CpuTable, DeviceTable, DiskTable, NicTable, PoolTable

_HOMES = {
    **dict.fromkeys(("Topology", "TopologyError", "VmTable", "load_topology"), "topology"),
    **dict.fromkeys(("CpuTable", "DeviceTable", "DiskTable", "NicTable", "PoolTable"), "topology_schema"),
    "InspectError": "inspect",
    "CannotResize": "root.memory_state",
    "ResourceError": "root.resources",
}
"""Where names come from that are not `partitions.host`'s."""

__all__ = [
    "CannotResize",
    "CannotSave",
    "Console",
    "ConsoleLine",
    "Contact",
    "CpuTable",
    "DeviceTable",
    "DiskError",
    "DiskState",
    "DiskTable",
    "ExitReason",
    "ExitRecord",
    "Heartbeat",
    "Host",
    "HotPlugError",
    "InspectError",
    "InvalidTransition",
    "Kvp",
    "NicError",
    "NicState",
    "NicTable",
    "NoAnswer",
    "NoScreen",
    "Pool",
    "PoolTable",
    "ResourceError",
    "ReturnCode",
    "SocketRefused",
    "StartFailed",
    "SwitchError",
    "Topology",
    "TopologyError",
    "UnknownVm",
    "Vm",
    "VmEvent",
    "VmState",
    "VmStateChange",
    "VmStatistics",
    "VmTable",
    "load_topology",
    "open_host",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"partitions.{_HOMES.get(name, 'host')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
