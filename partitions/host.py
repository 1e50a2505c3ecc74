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

import datetime
import os
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import attrs
import trio

from hypervisor.clock import TICKS_PER_SECOND, seconds
from hypervisor.hypervisor import Hypervisor
from hypervisor.timer_driver import timers_running
from hypervisor.trace import Sink, Trace
from partitions.lifecycle import InvalidTransition, ReturnCode, VmEvent, VmState
from partitions.root.console import Console, ConsoleLine
from partitions.root.disk_desk import DiskDesk
from partitions.root.disk_state import DiskError, DiskState
from partitions.root.exits import ExitReason, ExitRecord
from partitions.root.feed import Subscription
from partitions.root.hotplug import HotPlug, HotPlugError, Pluggable
from partitions.root.integration import Contact, Heartbeat, Integration, Kvp, NoAnswer, Pool
from partitions.root.management import (
    SHUT_DOWN_GRACE,
    ManagedVm,
    StartFailed,
    UnknownVm,
    Vmms,
    VmStateChange,
    open_vmms,
)
from partitions.root.saving import CannotSave, SavedVm
from partitions.root.statistics import VmStatistics
from partitions.root.vid import Vid
from partitions.root.winhv import WinHv
from partitions.root.worker import BackendFactory, HostServices
from partitions.topology_schema import Backend as BackendKind
from partitions.topology_schema import DiskTable, DiskType, Size, Topology, VmTable

if TYPE_CHECKING:
    from hypervisor.backend.base import Backend
    from partitions.determinism import ClockKind

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
    "NoAnswer",
    "Pool",
    "ReturnCode",
    "StartFailed",
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
MAX_PROCESSORS: Final = 64
DESCRIPTORS_BESIDE: Final = 256
"""Descriptors that the process has besides those of VMs: its own files, traces, deposits."""


class Vm:
    """One virtual machine of a host, on or off."""

    __slots__ = ("_clock", "_managed", "_vmms")

    def __init__(self, vmms: Vmms, managed: ManagedVm, clock: Callable[[], int]) -> None:
        self._vmms = vmms
        self._managed = managed
        self._clock = clock

    def __repr__(self) -> str:
        return f"<Vm {self.name!r} {self.state.value}>"

    # --- what it is and how it is

    @property
    def name(self) -> str:
        """As in the topology."""
        return self._managed.name

    @property
    def settings(self) -> VmTable:
        """Its table in the topology."""
        return self._managed.settings

    @property
    def state(self) -> VmState:
        """What it is doing now."""
        return self._managed.state

    @property
    def exit(self) -> ExitRecord | None:
        """How the last run ended; None before the first end and while it runs again."""
        return self._managed.exit

    @property
    def restarts(self) -> int:
        """How often its restart policy has started it, since it was defined."""
        return self._managed.restarts.total

    @property
    def uptime(self) -> float:
        """Seconds since the start, or of the last run; resets and pauses count."""
        managed = self._managed
        if managed.worker is not None:
            return seconds(self._clock() - managed.worker.started_at)
        return 0.0 if managed.exit is None else managed.exit.uptime

    @property
    def console(self) -> Console:
        """What it printed: `.text`, `.lines()`, and `async for line in vm.console.follow()`."""
        return self._managed.console

    @property
    def partition_id(self) -> int | None:
        """The hypervisor's name for it while it is on; another one after each start."""
        worker = self._managed.worker
        return None if worker is None or worker.partition is None else worker.partition.id

    def try_messages_again(self) -> bool:
        """If channel messages wait for room, post them now, not when it is time to. Says whether any waited."""
        worker = self._managed.worker
        return worker is not None and worker.server is not None and worker.server.try_again()

    def statistics(self) -> VmStatistics:
        """Counters of this run so far, or of the last one."""
        return self._managed.statistics

    @property
    def heartbeat(self) -> Heartbeat:
        """Whether its kernel answers: `.state` is no contact, ok or lost contact."""
        integration = self._integration()
        component = None if integration is None else integration.heartbeat
        return Heartbeat() if component is None else component.heartbeat

    @property
    def kvp(self) -> Kvp:
        """Its key-value pairs: `await vm.kvp.items()`."""
        return Kvp(self._integration)

    @property
    def integration(self) -> dict[str, Contact]:
        """How each integration component that it is offered stands with its guest; empty while it is off."""
        integration = self._integration()
        return {} if integration is None else integration.contacts

    def _integration(self) -> Integration | None:
        worker = self._managed.worker
        return None if worker is None else worker.integration

    @property
    def devices(self) -> tuple[str, ...]:
        """The names of its devices on the bus, as `remove_device` takes them; none while it is off.

        "storage" is the controller of its topology's disks; the others have the name that they were added by, or what
        the topology calls them.
        """
        worker = self._managed.worker
        return () if worker is None or worker.hotplug is None else tuple(worker.hotplug.devices)

    def events(self, *, capacity: int = 256) -> Subscription[VmStateChange]:
        """Changes of its state from now on: `async for change in vm.events()`; ends when the VM is destroyed.

        A reader that falls `capacity` changes behind loses the oldest, and finds in `.dropped` how many.
        """
        return self._managed.feed.subscribe(capacity)

    # --- what to do with it

    async def start(self) -> None:
        """Turn it on; returns when its guest runs. Raises `StartFailed`, `InvalidTransition`."""
        await self._vmms.start(self.name)

    async def pause(self) -> None:
        """Stop its processors and its time. Raises `InvalidTransition`."""
        await self._vmms.pause(self.name)

    async def resume(self) -> None:
        """Let it go on after a pause. Raises `InvalidTransition`."""
        await self._vmms.resume(self.name)

    async def reset(self) -> None:
        """Boot it again without asking its guest. Raises `InvalidTransition`."""
        await self._vmms.reset(self.name)

    async def save(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write its state to a file and end it; the next start, here or in another host, goes on from there.

        `path` is beside the topology, and the VM's name with `.saved` by default; the file that was written comes back.
        Disks are not in it. Raises `CannotSave`, and then it goes on, and `InvalidTransition`.
        """
        return await self._vmms.save(self.name, None if path is None else Path(path))

    async def restore(self, path: str | os.PathLike[str]) -> None:
        """Start it from a file of `save`. Raises `StartFailed`, `InvalidTransition`."""
        await self._vmms.restore(self.name, Path(path))

    async def checkpoint(self) -> SavedVm:
        """Its state at this moment, kept in memory; it goes on. Disks are not in it. Raises `CannotSave`."""
        return await self._vmms.checkpoint(self.name)

    async def revert(self, checkpoint: SavedVm) -> None:
        """Go back to a checkpoint of it, from whatever it does now. Raises `StartFailed`, `InvalidTransition`."""
        await self._vmms.revert(self.name, checkpoint)

    async def turn_off(self) -> None:
        """Cut its power. Raises `InvalidTransition` if it is off."""
        await self._vmms.turn_off(self.name)

    async def shut_down(self, grace: float = SHUT_DOWN_GRACE) -> ExitRecord:
        """Ask its guest to power off, and cut its power after `grace` seconds. Raises `InvalidTransition`.

        The shutdown component asks where the guest drives it, the power button where it does not.
        """
        return await self._vmms.shut_down(self.name, grace)

    async def restart(self, grace: float = SHUT_DOWN_GRACE) -> bool:
        """Ask its guest to boot again; whether it did within `grace` seconds. Raises `InvalidTransition`.

        Only the shutdown component can ask for that; a guest without a driver for it is left alone.
        """
        return await self._vmms.restart(self.name, grace)

    async def add_device(self, name: str, device: Pluggable) -> None:
        """Plug a device in while it is on, until it is off; its guest is told at once.

        `device` is a `DiskTable` or several for a SCSI controller of their own, a `DeviceTable`, or a VSP: an object
        with an `offer` and an async `serve`. Raises `HotPlugError`.
        """
        self._hotplug.add(name, device)
        await trio.lowlevel.checkpoint()

    async def remove_device(self, name: str) -> None:
        """Pull a device out, whatever its guest is doing with it. Raises `HotPlugError`.

        Returns when it serves nobody any more and the host has closed its files. The guest may take its time to notice;
        that a controller's disks are gone it is told first, which takes two seconds, and ten at most.
        """
        await self._hotplug.remove(name)

    @property
    def _hotplug(self) -> HotPlug:
        worker = self._managed.worker
        if worker is None or worker.hotplug is None:
            raise HotPlugError(f"VM {self.name!r} is {self.state.value}")
        return worker.hotplug

    # --- its disks, on or off

    @property
    def disks(self) -> Mapping[int, DiskState]:
        """Its disks and DVD drives by LUN: as they are while it is on, else as its settings have them."""
        return self._desk.states()

    async def add_disk(
        self,
        path: str | os.PathLike[str],
        *,
        size: int | str | None = None,
        read_only: bool = False,
        block_size: int = 512,
        type: Literal["disk", "dvd"] = "disk",  # noqa: A002 - the key's name in a topology
        lun: int | None = None,
    ) -> int:
        """Give it another disk, now or for its next start; its LUN, by default one that no disk had before.

        The arguments are the keys of `[[vm.disk]]`. A guest that runs is told, and looks. Raises `DiskError`.
        """
        table = DiskTable(
            path=os.fspath(path),
            type=DiskType(type),
            lun=lun,
            size=None if size is None else Size.parse(size),
            read_only=read_only,
            block_size=block_size,
        )
        await trio.lowlevel.checkpoint()
        return self._desk.add(table)

    async def remove_disk(self, lun: int) -> None:
        """Take a disk away, whatever its guest is doing with it. Raises `DiskError`.

        Returns when what was under way on it has ended, well or badly, and its image is closed.
        """
        await self._desk.remove(lun)
        await trio.lowlevel.checkpoint()

    async def resize_disk(self, lun: int, size: int | str | None = None) -> int:
        """Make a disk larger while it runs, or, without a size, look whether its image has become so; the size then.

        Its guest is told. Raises `DiskError`, also for a size that is smaller.
        """
        await trio.lowlevel.checkpoint()
        return self._desk.resize(lun, None if size is None else Size.parse(size))

    async def insert_disc(self, lun: int, path: str | os.PathLike[str]) -> None:
        """Put an ISO image into a DVD drive that is empty. Raises `DiskError`."""
        await trio.lowlevel.checkpoint()
        self._desk.insert(lun, Path(path))

    async def eject_disc(self, lun: int, *, force: bool = False) -> None:
        """Take the disc out of a DVD drive. Raises `DiskError`.

        A guest that has it mounted holds it: then it is asked for it, and `DiskError` raised. `force` does not ask.
        """
        await trio.lowlevel.checkpoint()
        self._desk.eject(lun, force=force)

    @property
    def _desk(self) -> DiskDesk:
        return DiskDesk(self._managed, self._vmms.folder)

    async def request_state_change(self, requested_state: int) -> ReturnCode:
        """The same by Hyper-V's numbers: 2 start or resume, 3 turn off, 4 shut down, 6 save, 9 pause, 11 reset.

        Refusals come back as codes: `INVALID_STATE`, `NOT_SUPPORTED` (10: reboot), `INVALID_PARAMETER`,
        `FAILED`. Returns when what was asked for is done.
        """
        return await self._vmms.request_state_change(self.name, requested_state)

    async def wait(self) -> ExitRecord:
        """Until the run under way has ended; how it, or the last one, ended. `RuntimeError` before the first start.

        Its restart policy may start another: `wait_state(VmState.OFF)` waits until it stays off.
        """
        run = self._managed.run
        if run is None:
            raise RuntimeError(f"VM {self.name!r} was never started")
        return await run.wait()

    async def wait_state(self, *states: VmState) -> VmState:
        """Until it is in one of these states, which is returned. One that passes at once is missed; see `events`."""
        managed = self._managed
        while managed.state not in states:
            await managed.changed.wait()
        await trio.lowlevel.checkpoint()
        return managed.state


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
    ) -> None:
        self.topology = topology
        self.hypervisor = hypervisor
        """The machine underneath, for those who look closer."""
        self.winhv = winhv
        self.vid = vid
        self.vmms = vmms
        self.seed = seed
        self._vms: dict[str, Vm] = {}

    def __getitem__(self, name: str) -> Vm:
        """The VM of that name. Raises `UnknownVm`, which is a `KeyError`."""
        managed = self.vmms.find(name)
        vm = self._vms.get(name)
        if vm is None or vm._managed is not managed:
            vm = self._vms[name] = Vm(self.vmms, managed, self.hypervisor.clock)
        return vm

    def __iter__(self) -> Iterator[str]:
        return iter(self.vmms.vms)

    def __len__(self) -> int:
        return len(self.vmms.vms)

    @property
    def trace(self) -> Trace:
        """The tap on everything: `host.trace.add_sink(print)`."""
        return self.hypervisor.trace

    def random(self, purpose: str) -> random.Random:
        """Random numbers that a seed makes repeatable; each purpose has its own."""
        from partitions.determinism import host_random

        return host_random(self.seed, purpose)

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
        for vm in list(self.values()):
            await self.vmms.wait_off(vm._managed)
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

    Raises `TopologyError`, and `ValueError` where clock and backend do not go together.
    """
    if not isinstance(topology, Topology):
        from partitions.topology import load_topology

        topology = load_topology(topology)
    virtual = _is_virtual(clock)
    if virtual:
        _refuse_threads(topology)
    now = _trio_clock()
    hypervisor = Hypervisor(
        now,
        Trace(now),
        memory_bytes=topology.host.memory + ROOT_MEMORY,
        root_vps=ROOT_PROCESSORS,
        max_vps=MAX_PROCESSORS,
        logical_processors=topology.host.logical_processors,
    )
    for sink in sinks:
        hypervisor.trace.add_sink(sink)
    _raise_descriptor_limit(topology)
    try:
        async with AsyncExitStack() as stack:
            stack.callback(hypervisor.close)
            await stack.enter_async_context(timers_running(hypervisor))
            winhv = WinHv(hypervisor)
            stack.callback(winhv.close)
            vid = Vid(hypervisor, winhv, vm_memory=topology.host.memory)
            stack.callback(vid.close)
            services = HostServices(
                hypervisor=hypervisor,
                winhv=winhv,
                vid=vid,
                make_backend=backends or _Backends(topology),
                folder=topology.folder,
                wall_clock=_wall_clock(now, virtual),
                inline_io=virtual,
            )
            vmms = await stack.enter_async_context(open_vmms(services))
            for table in topology.vm:
                vmms.define(table)
            yield Host(topology, hypervisor, winhv, vid, vmms, topology.host.seed if seed is None else seed)
    except BaseExceptionGroup as group:
        # A nursery wraps what the caller's block raises; the caller wants it as it was.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


@attrs.frozen
class _Backends:
    """The backends of this version, by the topology's word."""

    topology: Topology

    def __call__(self, hypervisor: Hypervisor, vm: VmTable) -> Backend:
        match vm.backend:
            case BackendKind.TASK:
                from hypervisor.backend.task import TaskBackend
                from partitions.compose import guest_entry

                return TaskBackend(hypervisor, *guest_entry(vm, self.topology))
            case BackendKind.KVM:
                from hypervisor.backend.kvm.backend import KvmBackend
                from partitions.ports import COM1_TRANSMIT
                from partitions.root.chipset.linux_boot import LinuxImage

                folder = self.topology.folder
                image = LinuxImage.open(
                    folder / vm.kernel,
                    initrd=folder / vm.initrd if vm.initrd else None,
                    command_line=vm.cmdline,
                    memory_bytes=vm.memory,
                    processors=vm.processors,
                )
                # A byte that the guest prints need not stop it: its driver asks for the line's status soon enough.
                return KvmBackend(hypervisor, image.load, posted_ports=(COM1_TRANSMIT,))
            case BackendKind.PROCESS:
                raise NotImplementedError("the process backend is not in this version")


def _trio_clock() -> Callable[[], int]:
    """Trio's clock in 100 ns units from now on: real or virtual, whichever this run has."""
    now = trio.current_time
    start = now()

    def clock() -> int:
        return round((now() - start) * TICKS_PER_SECOND)

    return clock


def _wall_clock(now: Callable[[], int], virtual: bool) -> Callable[[], datetime.datetime]:
    """The date now, read once and carried on by the host's clock; a virtual run always begins on the same day."""
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) if virtual else datetime.datetime.now(datetime.UTC)
    began = now()
    return lambda: start + datetime.timedelta(microseconds=(now() - began) // 10)


def _raise_descriptor_limit(topology: Topology) -> None:
    """A descriptor for each VM's memory and each image; the usual soft limit of 1,024 is for programs with select()."""
    import resource

    wanted = DESCRIPTORS_BESIDE + sum(2 + len(vm.disk) for vm in topology.vm)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def _is_virtual(wanted: ClockKind | None) -> bool:
    # Whoever runs on a mock clock has imported its module; importing it here would cost 9 MiB (it brings pytest along).
    testing = sys.modules.get("trio.testing")
    mocked = testing is not None and isinstance(trio.lowlevel.current_clock(), testing.MockClock)
    actual: Literal["real", "virtual"] = "virtual" if mocked else "real"
    if wanted is not None and wanted != actual:
        raise ValueError(f"a host on the {wanted} clock cannot run on Trio's {actual} clock; use determinism.run")
    return actual == "virtual"


def _refuse_threads(topology: Topology) -> None:
    for vm in topology.vm:
        if vm.backend is not BackendKind.TASK:
            raise ValueError(f"VM {vm.name!r}: the {vm.backend.value} backend cannot run on the virtual clock")
