"""What a host takes from the process that it runs in: its clocks, and descriptors enough. Root side."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal

import trio

from hypervisor.clock import TICKS_PER_SECOND
from vmbus.protocol.hvsocket import MAX_SOCKETS

if TYPE_CHECKING:
    from partitions.determinism import ClockKind
    from partitions.topology_schema import Topology

DESCRIPTORS_BESIDE: Final = 256
"""Descriptors that the process has besides those of VMs: its own files, traces, deposits."""


def trio_clock() -> Callable[[], int]:
    """Trio's clock in 100 ns units from now on: real or virtual, whichever this run has."""
    now = trio.current_time
    start = now()

    def clock() -> int:
        return round((now() - start) * TICKS_PER_SECOND)

    return clock


def wall_clock(now: Callable[[], int], virtual: bool) -> Callable[[], datetime.datetime]:
    """The date now, read once and carried on by the host's clock; a virtual run always begins on the same day."""
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) if virtual else datetime.datetime.now(datetime.UTC)
    began = now()
    return lambda: start + datetime.timedelta(microseconds=(now() - began) // 10)


def raise_descriptor_limit(topology: Topology) -> None:
    """A descriptor for each VM's memory, each image and each connection that may come by a Unix socket.

    The usual soft limit of 1,024 is for programs with select().
    """
    import resource

    wanted = DESCRIPTORS_BESIDE + sum(2 + len(vm.disk) for vm in topology.vm)
    wanted += sum(MAX_SOCKETS + 1 + len(vm.sockets.ports) for vm in topology.vm if vm.sockets is not None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def is_virtual(wanted: ClockKind | None) -> bool:
    """Whether Trio runs on a mock clock. Raises `ValueError` if that is not the clock that was wanted."""
    # Whoever runs on a mock clock has imported its module; importing it here would cost 9 MiB (it brings pytest along).
    testing = sys.modules.get("trio.testing")
    mocked = testing is not None and isinstance(trio.lowlevel.current_clock(), testing.MockClock)
    actual: Literal["real", "virtual"] = "virtual" if mocked else "real"
    if wanted is not None and wanted != actual:
        raise ValueError(f"a host on the {wanted} clock cannot run on Trio's {actual} clock; use determinism.run")
    return actual == "virtual"
