"""The Python API: open a host on a topology, start its VMs, watch them, wait for them. Root side.

    import partitions, trio

    async def main():
        async with partitions.open_host("03-disk") as host:     # a folder, a file, an example's name
            vm = host["writer"]
            await vm.start()
            print(await vm.wait())          # powered off
            print(vm.console.text)

    trio.run(main)

The names here are stable; the command line and the tests stand on them. Everything runs in the Trio thread.

Errors: `TopologyError` before anything starts, `StartFailed` for a VM that the host cannot run, `InvalidTransition` for
a request that does not go with the VM's state. What a guest does is never an exception here: it is in `vm.exit`.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import trio

from hypervisor.clock import seconds
from hypervisor.hypervisor import Hypervisor
from hypervisor.timer_driver import timers_running
from hypervisor.trace import Sink, Trace
from partitions.backends import TopologyBackends, refuse_threads
from partitions.lifecycle import InvalidTransition, ReturnCode, VmEvent, VmState
from partitions.root.console import Console, ConsoleLine
from partitions.root.disk_state import DiskError, DiskState
from partitions.root.exits import ExitReason, ExitRecord
from partitions.root.feed import Subscription
from partitions.root.host_network import HostNetwork
from partitions.root.host_resources import HostResources
from partitions.root.hotplug import HotPlugError
from partitions.root.integration import Contact, Heartbeat, Kvp, NoAnswer, Pool
from partitions.root.management import (
    SHUT_DOWN_GRACE,
    ManagedVm,
    StartFailed,
    UnknownVm,
    Vmms,
    VmStateChange,
    open_vmms,
)
from partitions.root.nic_state import NicError, NicState, SwitchError
from partitions.root.saving import CannotSave
from partitions.root.statistics import VmStatistics
from partitions.root.vid import Vid
from partitions.root.winhv import WinHv
from partitions.root.worker import BackendFactory, HostServices
from partitions.surroundings import is_virtual, raise_descriptor_limit, trio_clock, wall_clock
from partitions.topology_controls import has_controls
from partitions.topology_schema import Topology, VmTable
from partitions.vm import NoScreen, Vm
from vmbus.server.sockets import SocketRefused

if TYPE_CHECKING:
    from partitions.determinism import ClockKind
    from partitions.recording.file import FileRecording, FileWriter
    from partitions.root.resources import Resources
    from vsp_vsc.network.switch.switch import VirtualSwitch

__all__ = [
    "CannotSave",
    "Console",
    "ConsoleLine",
    "Contact",
    "DiskError",
    "DiskState",
    "ExitReason",
    "ExitRecord",
    "Heartbeat",
    "Host",
    "HotPlugError",
    "InvalidTransition",
    "Kvp",
    "NicError",
    "NicState",
    "NoAnswer",
    "NoScreen",
    "Pool",
    "ReturnCode",
    "SocketRefused",
    "StartFailed",
    "SwitchError",
    "UnknownVm",
    "Vm",
    "VmEvent",
    "VmState",
    "VmStateChange",
    "VmStatistics",
    "open_host",
]

ROOT_PROCESSORS: Final = 4
"""Root virtual processors: 4 x 2,047 event flags are enough for 1,024 children with seven channels each."""
ROOT_MEMORY: Final = 256 << 20
"""What the host's own structures may take beside the VMs' memory, in bytes; used as needed."""
SCREEN_MEMORY: Final = 8 << 20
"""The same, for each VM with a screen: a kernel has its pixels in memory of the host's."""
MAX_PROCESSORS: Final = 64


class Host(Mapping[str, Vm]):
    """A machine with its hypervisor, root partition and VMs: a mapping of names to `Vm`. Made by `open_host`."""

    def __init__(
        self,
        topology: Topology,
        hypervisor: Hypervisor,
        winhv: WinHv,
        vid: Vid,
        vmms: Vmms,
        seed: int | None,
        network: HostNetwork,
        resource_control: HostResources,
    ) -> None:
        self.topology = topology
        self.hypervisor = hypervisor
        """The machine underneath, for those who look closer."""
        self.winhv = winhv
        self.vid = vid
        self.vmms = vmms
        self.network = network
        self.resource_control = resource_control
        """Where `resources` are, if there is any control."""
        self.seed = seed
        self.started = 0
        """Unix time in seconds when the host's clock began; 0 on the virtual clock."""
        self._vms: dict[str, tuple[ManagedVm, Vm]] = {}

    def __getitem__(self, name: str) -> Vm:
        """The VM of that name. Raises `UnknownVm`, which is a `KeyError`."""
        managed = self.vmms.find(name)
        known = self._vms.get(name)
        if known is not None and known[0] is managed:
            return known[1]
        vm = Vm(self.vmms, managed, self.hypervisor.clock)
        self._vms[name] = managed, vm
        return vm

    def __iter__(self) -> Iterator[str]:
        return iter(self.vmms.vms)

    def __len__(self) -> int:
        return len(self.vmms.vms)

    @property
    def trace(self) -> Trace:
        """The tap on everything: `host.trace.add_sink(print)`."""
        return self.hypervisor.trace

    @property
    def switches(self) -> Mapping[str, VirtualSwitch]:
        """The topology's switches by name, each with its ports and what it has learned. For looking at."""
        made = self.network.made
        return {} if made is None else MappingProxyType(made.switches)

    @property
    def resources(self) -> Resources:
        """Limit, reservation and shares of VMs and pools: `host.resources.set("vm/web", "cpu.limit", 50)`."""
        return self.resource_control()

    @contextmanager
    def record(self, path: str | os.PathLike[str]) -> Iterator[FileRecording]:
        """Record all that happens while the block runs, as pcapng, to a new file. Raises `OSError`.

        What could not be written fast enough is counted in `dropped`; a disk that is full ends the recording and not
        the host, and is `error`.
        """
        from partitions.recording.file import record_to

        recording = record_to(path, self.trace, started=self.started, inline=is_virtual(None))
        try:
            yield recording
        finally:
            recording.close()

    @contextmanager
    def capture(self, path: str | os.PathLike[str], *ports: str) -> Iterator[FileWriter]:
        """Ethernet at ports of switches, as pcapng to a new file while the block runs: `host.capture(path, "web/0")`.

        A port is a VM and the number of its adapter, on or off; `lan:host` and `lan:uplink` are the host's own. Raises
        `NicError` for one that there is not, `OSError`. What could not be written fast enough is in `dropped`.
        """
        from partitions.root.captures import captured

        with captured(self, path, ports) as writer:
            yield writer

    def random(self, purpose: str) -> random.Random:
        """Random numbers that a seed makes repeatable; each purpose has its own."""
        return _random_of(self.seed)(purpose)

    def define(self, settings: VmTable) -> Vm:
        """Add a VM while the host runs. Raises `ValueError` for a name that is taken."""
        return self[self.vmms.define(settings).name]

    def destroy(self, name: str) -> None:
        """Forget a VM that is off. Raises `InvalidTransition`, `UnknownVm`."""
        self.vmms.destroy(name)
        self._vms.pop(name, None)

    def events(self, *, capacity: int = 1024) -> Subscription[VmStateChange]:
        """Changes of state of every VM from now on, `capacity` of them kept for a slow reader; ends with the host."""
        return self.vmms.feed.subscribe(capacity)

    async def inspect(self, path: str = "", *, depth: int | None = None) -> Any:
        """What lives in this host, by path: `await host.inspect("vm/web/vmbus/channels/1/ring/outgoing")`.

        The value that is there, or the branch as dictionaries, `depth` levels of it; docs/inspect.md has the paths.
        Others run meanwhile. Raises `InspectError` for a path that is none, with the nearest.
        """
        from partitions.inspect import host_tree, look

        return await look(host_tree(self), path, depth=depth)

    def update(self, path: str, value: str) -> str:
        """Change one of the values that can be set; how it reads then. Raises `InspectError`."""
        from partitions.inspect import host_tree, update

        return update(host_tree(self), path, value)

    async def start_all(self) -> None:
        """Start every VM that is off, in the topology's order. Raises the first `StartFailed`, the others running."""
        failures: list[StartFailed] = []
        for vm in list(self.values()):
            if vm.state is VmState.OFF:
                try:
                    await vm.start()
                except StartFailed as failure:
                    failures.append(failure)
        if failures:
            raise failures[0]

    async def wait_all(self) -> dict[str, ExitRecord]:
        """Until every VM is off; how each ended, without those that were never started."""
        while on := [vm for vm in self.vmms.vms.values() if vm.state not in (VmState.OFF, VmState.SAVED)]:
            await self.vmms.wait_off(on[0])
        await trio.lowlevel.checkpoint()
        return {name: vm.exit for name, vm in self.items() if vm.exit is not None}

    async def shut_down_all(self, grace: float = SHUT_DOWN_GRACE) -> None:
        """Ask every guest at once to power off, and cut the power of those that are still on after `grace` seconds.

        VMs that are paused are resumed for it; those in the middle of something, as starting, are turned off.
        """
        async with trio.open_nursery() as nursery:
            for vm in self.values():
                nursery.start_soon(_let_down, vm, grace)

    def turn_all_off(self) -> None:
        """Cut the power of every VM; `wait_all` waits for it."""
        self.vmms.turn_all_off()


def _random_of(seed: int | None) -> Callable[[str], random.Random]:
    def of(purpose: str) -> random.Random:
        from partitions.determinism import host_random

        return host_random(seed, purpose)

    return of


async def _let_down(vm: Vm, grace: float) -> None:
    """Shut one of many VMs down. It may end by itself at any moment, and all the better."""
    try:
        if vm.state is VmState.PAUSED:
            await vm.resume()
        await vm.shut_down(grace)
    except InvalidTransition:
        if vm.state not in (VmState.OFF, VmState.SAVED, VmState.TURNING_OFF, VmState.SHUTTING_DOWN):
            await vm.turn_off()


@asynccontextmanager
async def open_host(
    topology: Topology | str | os.PathLike[str],
    *,
    clock: ClockKind | None = None,
    seed: int | None = None,
    sinks: Iterable[Sink] = (),
    backends: BackendFactory | None = None,
) -> AsyncIterator[Host]:
    """A host for a topology: a path, the name of an example, or a `Topology`. VMs are defined and off.

    When the block ends, VMs that are still on are turned off. Keywords:

    - `clock`: "virtual" needs Trio's `MockClock` (`partitions.determinism.run` brings it) and the `task` backend; by
      default it is what Trio runs on.
    - `seed`: for the host's random numbers; the topology's by default.
    - `sinks`: functions that get every trace event.
    - `backends`: makes what executes each VM's processors, for those who bring guests of their own.

    Raises `TopologyError`, `SwitchError` for a switch that this machine cannot have, and `ValueError` where clock and
    backend do not go together.
    """
    if not isinstance(topology, Topology):
        from partitions.topology import load_topology

        topology = load_topology(topology)
    virtual = is_virtual(clock)
    if virtual:
        refuse_threads(topology)
    now = trio_clock()
    hypervisor = Hypervisor(
        now,
        Trace(now),
        memory_bytes=topology.host.memory + ROOT_MEMORY + sum(SCREEN_MEMORY for vm in topology.vm if vm.screen),
        root_vps=ROOT_PROCESSORS,
        max_vps=MAX_PROCESSORS,
        logical_processors=topology.host.logical_processors,
    )
    hypervisor.scheduler.quantum = topology.host.quantum_ms * 1_000_000
    hypervisor.scheduler.switch_cost = topology.host.switch_us * 1_000
    for sink in sinks:
        hypervisor.trace.add_sink(sink)
    raise_descriptor_limit(topology)
    try:
        async with AsyncExitStack() as stack:
            stack.callback(hypervisor.close)
            await stack.enter_async_context(timers_running(hypervisor))
            winhv = WinHv(hypervisor)
            stack.callback(winhv.close)
            vid = Vid(hypervisor, winhv, vm_memory=topology.host.memory)
            stack.callback(vid.close)
            chosen = topology.host.seed if seed is None else seed
            chance = _random_of(0 if virtual and chosen is None else chosen)
            vid.resources = control = HostResources(topology, hypervisor.scheduler)
            control.on_change("memory", vid.memory_changed)
            vid.chance = chance
            network = HostNetwork(topology, now, hypervisor.trace, hypervisor.timers, chance, control)
            if topology.switch:
                from partitions.root.switches import open_uplinks

                switches = network.switches()
                await stack.enter_async_context(open_uplinks(switches, topology.switch, topology.folder))
            services = HostServices(
                hypervisor=hypervisor,
                winhv=winhv,
                vid=vid,
                make_backend=backends or TopologyBackends(topology),
                folder=topology.folder,
                wall_clock=wall_clock(now, virtual),
                inline_io=virtual,
                network=network,
                resources=control,
                new_random=_random_of(topology.host.seed if seed is None else seed),
            )
            vmms = await stack.enter_async_context(open_vmms(services))
            for table in topology.vm:
                vmms.define(table)
            control.machines.vmms = vmms
            if has_controls(topology.vm, topology.pool):
                control()
            seed = topology.host.seed if seed is None else seed
            host = Host(topology, hypervisor, winhv, vid, vmms, seed, network, control)
            if not virtual:
                host.started = round(services.wall_clock().timestamp() - seconds(now()))
            yield host
    except BaseExceptionGroup as group:
        # A nursery wraps what the caller's block raises; the caller wants it as it was.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise
