"""Bare guests and hosts of them: programs on a `Machine` without a kernel, for tests of the root's half."""

from __future__ import annotations

import gc
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import attrs
import trio

from hypervisor.backend.base import Backend
from hypervisor.backend.task import TaskBackend
from hypervisor.hypercall.abi import control_word
from hypervisor.hypervisor import Hypervisor
from hypervisor.machine import Machine
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SIZE
from partitions import ports
from partitions.host import Host, open_host
from partitions.topology_schema import HostTable, Size, Topology, VmTable

BareGuest = Callable[[Machine], Awaitable[object]]
"""Software of processor 0; the others are left halted."""

MIB = 1 << 20


def vm_table(name: str = "web", **settings: Any) -> VmTable:
    """A small VM."""
    settings.setdefault("memory", Size(MIB))
    return VmTable(name=name, **settings)


def topology(*vms: VmTable, memory: int = 1 << 30, folder: Path | None = None) -> Topology:
    """A topology that no file has."""
    return Topology(host=HostTable(memory=Size(memory)), vm=list(vms), folder=folder or Path("."))


def bare_host(
    guests: Mapping[str, BareGuest] | BareGuest,
    *vms: VmTable,
    folder: Path | None = None,
    memory: int = 1 << 30,
    **options: Any,
) -> AbstractAsyncContextManager[Host]:
    """A host whose VMs run the given guests: one for all, or one by each VM's name."""

    def backend(hypervisor: Hypervisor, vm: VmTable) -> Backend:
        guest = guests[vm.name] if isinstance(guests, Mapping) else guests

        async def entry(machines: Sequence[Machine]) -> None:
            await guest(machines[0])

        return TaskBackend(hypervisor, entry)

    return open_host(topology(*(vms or (vm_table(),)), memory=memory, folder=folder), backends=backend, **options)


# What bare guests do.


def say(machine: Machine, text: str) -> None:
    """Print on COM1."""
    for byte in text.encode():
        machine.port_out(ports.COM1_TRANSMIT, 1, byte)


def power_off(machine: Machine, exit_code: int = 0) -> None:
    """Tell the exit code and switch off."""
    machine.port_out(ports.EXIT_CODE, 4, exit_code)
    machine.port_out(ports.POWER, 2, ports.POWER_OFF)


async def idle(machine: Machine) -> None:
    """Say so, and halt for good."""
    say(machine, "idle\n")
    await trio.sleep_forever()


async def clean(machine: Machine) -> None:
    """Say something, and switch off."""
    say(machine, "done\n")
    power_off(machine)


INPUT_PAGE, MESSAGE_PAGE, FLAGS_PAGE = 2, 3, 4


def boot_synic(machine: Machine, vector: int = 0xF3) -> None:
    """Hypercall page at 1, SIM and SIEF pages, SINT2 at `vector`."""
    machine.write_msr(Msr.GUEST_OS_ID, 1 << 63 | 0x8100 << 48)
    machine.write_msr(Msr.HYPERCALL, PAGE_SIZE | 1)
    machine.write_msr(Msr.SIMP, MESSAGE_PAGE * PAGE_SIZE | 1)
    machine.write_msr(Msr.SIEFP, FLAGS_PAGE * PAGE_SIZE | 1)
    machine.write_msr(Msr.SINT2, vector | 1 << 17)
    machine.write_msr(Msr.SCONTROL, 1)


def post(machine: Machine, connection_id: int, payload: bytes, message_type: int = 1) -> int:
    """HvPostMessage; the status."""
    header = b"".join(word.to_bytes(4, "little") for word in (connection_id, 0, message_type, len(payload)))
    at = INPUT_PAGE * PAGE_SIZE
    machine.memory[at : at + 16 + len(payload)] = header + payload
    return machine.hypercall(control_word(0x5C), at) & 0xFFFF


def signal(machine: Machine, connection_id: int) -> int:
    """HvSignalEvent; the status."""
    return machine.hypercall(control_word(0x5D, fast=True), connection_id) & 0xFFFF


# What is held.


@attrs.frozen
class Held:
    """What a host holds for its VMs; the same before and after a VM's life."""

    partitions: int
    root_bytes: int
    port_ids: int
    connection_ids: int
    flags: int
    root_ports: int
    root_connections: int
    handlers: int
    files: int


def held(host: Host) -> Held:
    gc.collect()  # what an earlier test has left open is none of this host's
    hv, winhv = host.hypervisor, host.winhv
    # Blocks to deposit from are kept by the host for the next VM.
    deposits = [block for block in hv._root_blocks.values() if "deposits" in block.name]
    return Held(
        partitions=len(hv.partitions),
        root_bytes=hv.root_bytes - sum(block.size for block in deposits),
        port_ids=len(winhv.port_ids.in_use),
        connection_ids=len(winhv.connection_ids.in_use),
        flags=winhv.flags.taken,
        root_ports=len(hv.root.ports),
        root_connections=len(hv.root.connections),
        handlers=len(winhv.message_handlers) + len(winhv.hypervisor_handlers),
        files=len(os.listdir("/proc/self/fd")) - len(deposits),
    )
