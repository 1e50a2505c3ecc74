"""What a host says of itself and of the VM to the VM's own guest, as Hyper-V does: items of KVP pool 3. Root side.

Names are Hyper-V's; a Windows guest finds them in its registry under Virtual Machine\\Guest\\Parameters. On the virtual
clock, where a run is the same on every machine, the machine's own name and version stay out of it.
"""

from __future__ import annotations

import hashlib
import re

from hypervisor.wire import Guid
from vsp_vsc.integration.kvp.protocol import Value

_ARCHITECTURES = {"x86_64": 9, "amd64": 9, "aarch64": 12, "arm64": 12}
"""PROCESSOR_ARCHITECTURE_* of Windows."""


def vm_id(name: str) -> Guid:
    """A VM's GUID: the same for the same name."""
    return Guid(hashlib.sha256(f"partita VM {name}".encode()).digest()[:16])


def host_items(vm: str, *, virtual: bool, dynamic_memory: bool = False) -> dict[str, Value]:
    """The items by name."""
    host, release, machine = "host", "0.0", ""
    if not virtual:
        import platform

        host, release, machine = platform.node() or host, platform.release(), platform.machine().lower()
    major, minor = ([int(number) for number in re.findall(r"\d+", release)] + [0, 0])[:2]
    return {
        "HostName": host[:255],
        "HostingSystemEditionId": 0,
        "HostingSystemNestedLevel": 0,
        "HostingSystemOsMajor": major,
        "HostingSystemOsMinor": minor,
        "HostingSystemProcessorArchitecture": _ARCHITECTURES.get(machine, 9),
        "HostingSystemSpMajor": 0,
        "HostingSystemSpMinor": 0,
        "PhysicalHostName": host[:255],
        "PhysicalHostNameFullyQualified": host[:255],
        "VirtualMachineDynamicMemoryBalancingEnabled": int(dynamic_memory),
        "VirtualMachineId": str(vm_id(vm)).upper(),
        "VirtualMachineName": vm,
    }
