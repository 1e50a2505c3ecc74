"""The root of the tree: the host, its hypervisor, its VMs, and who watches. Root side."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from hypervisor.clock import seconds
from hypervisor.inspect import Branch, Many
from partitions.surroundings import is_virtual

if TYPE_CHECKING:
    from partitions.host import Host


def host_tree(host: Host) -> Branch:
    """Everything, made as far as somebody walks."""
    made = host.network.made
    return Branch(
        {
            "host": lambda: _host(host),
            "hypervisor": host.hypervisor.inspect,
            "vm": Many(host.vmms.vms, str),
            **({} if made is None else {"switch": made.inspect}),
            **({} if host.resource_control.made is None else {"resources": host.resource_control.made.inspect}),
            "trace": host.trace.inspect,
        }
    )


def _host(host: Host) -> Branch:
    hypervisor = host.hypervisor
    return Branch(
        {
            "clock": "virtual" if is_virtual(None) else "real",
            "time": seconds(hypervisor.clock()),
            "seed": host.seed,
            "pid": os.getpid(),
            "folder": str(host.topology.folder),
            "vms": len(host),
            "memory": lambda: Branch(
                {
                    "for_vms": host.vid.vm_memory,
                    "used_by_vms": host.vid.vm_memory_used,
                    "for_all": hypervisor.memory_bytes,
                    "used": hypervisor.root_bytes,
                    "free_deposit_pages": host.vid.pool.free_pages,
                    **({"balancer": host.vid.desk.inspect} if host.vid.balances else {}),
                }
            ),
            "descriptors": _descriptors,
            "loop": lambda: _loop(host),
        }
    )


def _descriptors() -> Branch:
    """Open ones of this process, and how many it may have."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Branch({"open": _open_descriptors(), "most": None if soft == resource.RLIM_INFINITY else soft})


def _open_descriptors() -> int | None:
    """Linux says it in one word since 6.2; a list of a thousand takes a millisecond."""
    try:
        return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd")) - 1  # without the one that looks
    except OSError:
        return None


def _loop(host: Host) -> Branch:
    """Trio's loop, on which everything runs."""
    statistics = trio.lowlevel.current_statistics()
    hogged = sum(count for (_, event), count in host.trace.warnings.items() if event == "guest_hogs_thread")
    return Branch(
        {
            "tasks": statistics.tasks_living,
            "runnable": statistics.tasks_runnable,
            "calls_waiting": statistics.run_sync_soon_queue_size,
            "stalls_by_guests": hogged,
        }
    )
