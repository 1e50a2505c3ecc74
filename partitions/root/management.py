"""The VMMS: VM definitions, their states, and what people ask of them. Root side.

It starts a worker for each VM that runs, moves states by the table in `partitions.lifecycle`, and touches neither guest
memory nor rings. Each VM has one operation at a time, and the table sees to it: what is under way shows as a passing
state, from which nothing but turning off may start.

Concurrency: worker tasks live in the nursery of `open_vmms`. Requests come from any task; cancelling one that waits
leaves the VM in the state that the request led to, except `start`, whose cancellation ends the worker again.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import msgspec
import trio

from hypervisor.inspect import Branch, data
from hypervisor.trace import Layer, Level
from partitions.lifecycle import (
    InvalidTransition,
    RequestedState,
    ReturnCode,
    VmEvent,
    VmState,
    next_state,
    requested_event,
)
from partitions.root.asking import asked_by, asker
from partitions.root.console import Console
from partitions.root.exits import ExitReason, ExitRecord
from partitions.root.feed import Feed
from partitions.root.host_network import HostNetwork
from partitions.root.host_resources import HostResources
from partitions.root.integration import ShutdownFlags
from partitions.root.restarts import LIMIT, Restarts, Wish
from partitions.root.saving import CannotSave, SavedVm
from partitions.root.saving_file import read_file, write_file
from partitions.root.statistics import VmStatistics
from partitions.root.worker import HostServices, Leaving, Worker
from partitions.topology_schema import VmTable
from vmbus.server.sockets import SocketListeners

if TYPE_CHECKING:
    from partitions.root.disk_controls import DiskControls
    from partitions.root.vnc.server import VncServer

SHUT_DOWN_GRACE: Final = 10.0
"""Seconds that a guest has to power off after its power button was pressed."""


class StartFailed(Exception):
    """A VM that did not start; `exit` says why."""

    def __init__(self, exit: ExitRecord) -> None:  # noqa: A002  # the field's name everywhere else
        super().__init__(f"{exit.vm}: {exit}")
        self.exit = exit


class UnknownVm(KeyError):
    """No VM of that name is defined."""

    def __str__(self) -> str:
        return str(self.args[0])


class VmStateChange(msgspec.Struct, frozen=True, gc=False):
    """One move of one VM."""

    time: int
    """100 ns units on the host's clock."""
    vm: str
    before: VmState
    after: VmState
    event: VmEvent
    by: str = ""
    """Who asked for it; empty where nobody did, or the program that opened the host."""
    words: str = ""
    """How the run ended, where this is its end."""


@attrs.define(eq=False)
class Run:
    """One time that a VM was on. Who waits for its end holds on to it: the next run may start at that same moment."""

    record: ExitRecord | None = None
    """How it ended."""
    by_policy: bool = False
    """Nobody started it but its restart policy."""
    asked_to_end: bool = False
    """Somebody outside wanted the end, so the restart policy does not undo it."""
    asked_by: str = ""
    """Who: the last one who asked."""
    ended: trio.Event = attrs.field(factory=trio.Event, repr=False)

    def ask_to_end(self) -> None:
        """Somebody outside wants the end."""
        self.asked_to_end, self.asked_by = True, asker()

    async def wait(self) -> ExitRecord:
        """Until it has ended; how."""
        await self.ended.wait()
        assert self.record is not None, "it is written before the event is set"
        return self.record


@attrs.define(eq=False)
class ManagedVm:
    """What the VMMS keeps of one VM, on or off."""

    settings: VmTable
    console: Console
    listeners: SocketListeners
    """Who takes what its guests connect to."""
    state: VmState = VmState.OFF
    worker: Worker | None = None
    saved: Callable[[], SavedVm] | None = None
    """What the next start goes on from."""
    run: Run | None = None
    """Under way, or the last one."""
    restarts: Restarts = attrs.field(init=False, repr=False)
    restart_timer: trio.CancelScope | None = attrs.field(default=None, repr=False)
    """Around the wait for the next restart."""
    statistics_at_end: VmStatistics = attrs.field(factory=VmStatistics)
    partition_id: int = 0
    """Of the last start; 0 before the first."""
    changed: trio.Event = attrs.field(factory=trio.Event, repr=False)
    """Set, and replaced, at each change of state."""
    feed: Feed[VmStateChange] = attrs.field(factory=Feed, repr=False)
    highest_nic: int = -1
    """As `highest_lun`, of adapters' numbers."""
    highest_lun: int = -1
    """That a disk had which was added or removed while the host ran."""
    vnc: VncServer | None = None
    """Its VNC server, from its first start on."""

    @restarts.default
    def _restarts(self) -> Restarts:
        return Restarts(self.settings.restart)

    def inspect(self) -> Branch:
        """All of it, the running VM's bus and devices too."""
        worker, record = self.worker, self.exit
        seen: dict[str, object] = {
            "state": self.state.value,
            "partition": None if worker is None or worker.partition is None else worker.partition.id,
            "uptime": None if worker is None else worker.uptime,
            "saved": self.saved is not None,
            "exit": None if record is None else record.inspect,
            "restarts": self.restarts.inspect,
            "console": self.console.inspect,
            "settings": lambda: data(self.settings),
            "statistics": self._statistics,
        }
        if self.vnc is not None:
            seen["vnc"] = self.vnc.inspect
        return Branch(seen if worker is None else seen | worker.inspect())

    def _statistics(self) -> Branch:
        """Without what it has of the bus, which the bus shows."""
        counts = msgspec.structs.asdict(self.statistics)
        del counts["bus"]
        return Branch(counts)

    @property
    def name(self) -> str:
        """The definition's."""
        return self.settings.name

    @property
    def exit(self) -> ExitRecord | None:
        """How the last run ended; None before the first, and while one is under way."""
        return None if self.run is None else self.run.record

    @property
    def statistics(self) -> VmStatistics:
        """Of the run under way, or the last one."""
        return self.worker.statistics() if self.worker is not None else self.statistics_at_end


class Vmms:
    """One for the host, made by `open_vmms`."""

    def __init__(self, host: HostServices, nursery: trio.Nursery) -> None:
        self._host = host
        self._nursery = nursery
        self.vms: dict[str, ManagedVm] = {}
        """By name, in the order of definition."""
        self.feed: Feed[VmStateChange] = Feed()
        """State changes of every VM."""

    @property
    def folder(self) -> Path:
        """Where relative paths of images start."""
        return self._host.folder

    @property
    def resources(self) -> HostResources:
        """Who has how much of the host, where anybody is told."""
        return self._host.resources

    @property
    def disk_controls(self) -> DiskControls:
        """Who has how much of the host's I/O."""
        return self._host.disk_controls

    @property
    def leaving(self) -> list[Leaving]:
        """Who hears of each VM's end before anything of it goes; for adding to."""
        return self._host.leaving

    @property
    def network(self) -> HostNetwork:
        """The host's switches."""
        return self._host.network

    # --- definitions

    def define(self, settings: VmTable) -> ManagedVm:
        """Add a VM, off. Raises `ValueError` for a name that is taken."""
        if settings.name in self.vms:
            raise ValueError(f"a VM {settings.name!r} is defined already")
        self._host.resources.defining(settings)
        vm = ManagedVm(settings, Console(self._host.hypervisor.clock), _listeners(settings, self.folder))
        self.vms[settings.name] = vm
        return vm

    def destroy(self, name: str) -> None:
        """Forget a VM that is off. Raises `InvalidTransition`."""
        vm = self.find(name)
        self._move(vm, VmEvent.DESTROY)
        del self.vms[name]
        if self.network.made is not None:
            self.network.made.forget_vm(name)
        self._host.resources.forgotten(name)
        if vm.vnc is not None:
            vm.vnc.scope.cancel()
        vm.console.close()
        vm.feed.close()

    def find(self, name: str) -> ManagedVm:
        """Raises `UnknownVm`."""
        try:
            return self.vms[name]
        except KeyError:
            known = ", ".join(self.vms) or "none"
            raise UnknownVm(f"no VM is called {name!r}; there are: {known}") from None

    # --- saved state

    async def save(self, name: str, path: Path | None = None) -> Path:
        """Running or Paused to Saved, by way of a file; a VM that cannot be saved goes on. The file.

        Raises `CannotSave` (also where the file cannot be written), `InvalidTransition`.
        """
        vm = self.find(name)
        path = self.folder / (f"{name}.saved" if path is None else path)
        async with self._capturing(vm) as saved:
            try:
                if self._host.inline_io:
                    write_file(path, saved)
                else:
                    await trio.to_thread.run_sync(write_file, path, saved)
            except OSError as error:
                raise CannotSave(f"{path}: {error.strerror or error}") from error
            self._still_saving(vm)
            vm.saved = functools.partial(read_file, path)
            assert vm.run is not None, "it has a worker"
            vm.run.ask_to_end()
            _worker(vm).end(ExitReason.SAVED, str(path))
        await self._while(vm, VmState.SAVING)
        return path

    async def checkpoint(self, name: str) -> SavedVm:
        """The state of a running or paused VM, in memory; it goes on. Disks are not in it. As `save` raises."""
        vm = self.find(name)
        async with self._capturing(vm) as saved:
            return saved

    async def restore(self, name: str, source: Path | SavedVm) -> None:
        """Off or Saved to Running, from a file or a checkpoint. Raises as `start` does."""
        vm = self.find(name)
        if isinstance(source, SavedVm):
            await self._start_from(vm, lambda: source)
        else:
            await self._start_from(vm, functools.partial(read_file, self.folder / source))

    async def revert(self, name: str, saved: SavedVm) -> None:
        """Back to a checkpoint: what it has done since is gone, but for its disks. Raises as `start` does.

        What is no checkpoint of this VM (`TypeError`, `ValueError`) is no reason to cut its power.
        """
        vm = self.find(name)
        if not isinstance(saved, SavedVm):
            raise TypeError(f"revert takes what checkpoint returned, not {saved!r}; restore takes a file")
        if saved.facts.vm != name:
            raise ValueError(f"this checkpoint is of VM {saved.facts.vm!r}, not of {name!r}")
        if vm.state.active:
            await self.turn_off(name)
        await self.restore(name, saved)

    @asynccontextmanager
    async def _capturing(self, vm: ManagedVm) -> AsyncIterator[SavedVm]:
        """In state Saving with the state in hand; it goes on as before, unless its worker was told to end."""
        before = vm.state
        self._move(vm, VmEvent.SAVE)
        worker = _worker(vm)
        try:
            saved = await worker.capture()
            self._still_saving(vm)
            yield saved
        finally:
            if vm.state is VmState.SAVING and not worker.ending:
                if before is VmState.RUNNING:
                    worker.resume()
                self._move(vm, VmEvent.WAS_RESUMED if before is VmState.RUNNING else VmEvent.WAS_PAUSED)

    def _still_saving(self, vm: ManagedVm) -> None:
        if vm.state is not VmState.SAVING:
            raise CannotSave("it was turned off meanwhile")

    async def _start_from(self, vm: ManagedVm, saved: Callable[[], SavedVm]) -> None:
        self._move(vm, VmEvent.START)
        vm.restarts.by_hand()
        vm.saved = saved
        this = Run()
        if not await self._start(vm, this):
            raise StartFailed(await this.wait())

    # --- requests

    async def start(self, name: str) -> None:
        """Off, or waiting for a restart, to Running. Raises `InvalidTransition`, and `StartFailed` with the reason."""
        vm = self.find(name)
        self._move(vm, VmEvent.START)
        vm.restarts.by_hand()
        this = Run()
        if not await self._start(vm, this):
            raise StartFailed(await this.wait())

    async def _start(self, vm: ManagedVm, this: Run) -> bool:
        """A worker for a VM that is Starting; whether its guest ran."""
        vm.run = this
        saved, vm.saved = vm.saved, None
        vm.worker = Worker(self._host, vm.settings, vm.console, vm.listeners, saved)
        vm.worker.prepare = functools.partial(self._open_vnc, vm)
        ran: bool = await self._nursery.start(self._run, vm, this, vm.worker, name=f"worker {vm.name}")
        return ran

    def _open_vnc(self, vm: ManagedVm) -> None:
        """Have its VNC server, if it is to have one and has none yet. Raises `CannotStart`.

        On the virtual clock there is none: time would jump while a person looks.
        """
        screen = vm.settings.screen
        if screen is None or screen.vnc is None or vm.vnc is not None or self._host.inline_io:
            return
        from partitions.root.vnc.opening import open_vnc

        vm.vnc = open_vnc(vm, screen, screen.vnc, self._host.hypervisor.trace)
        self._nursery.start_soon(vm.vnc.run, name=f"VNC server of {vm.name}")

    async def pause(self, name: str) -> None:
        """Running to Paused: every processor suspended, and with them the partition's time. `InvalidTransition`."""
        vm = self.find(name)
        self._move(vm, VmEvent.PAUSE)
        _worker(vm).pause()
        self._move(vm, VmEvent.WAS_PAUSED)
        await trio.lowlevel.checkpoint()

    async def resume(self, name: str) -> None:
        """Paused to Running. `InvalidTransition`."""
        vm = self.find(name)
        self._move(vm, VmEvent.RESUME)
        _worker(vm).resume()
        self._move(vm, VmEvent.WAS_RESUMED)
        await trio.lowlevel.checkpoint()

    async def reset(self, name: str) -> None:
        """Boot the guest again in the same partition; returns when it runs, or has ended. `InvalidTransition`."""
        vm = self.find(name)
        self._move(vm, VmEvent.RESET)
        _worker(vm).reset()
        await self._while(vm, VmState.RESETTING)

    async def turn_off(self, name: str) -> None:
        """Off, at once and without asking the guest, from every state but Off. `InvalidTransition`."""
        vm = self.find(name)
        self._turn_off(vm)
        await self._while(vm, VmState.TURNING_OFF)

    async def shut_down(
        self, name: str, grace: float = SHUT_DOWN_GRACE, *, reason: str = "", insist: bool = False
    ) -> ExitRecord:
        """Ask the guest to power off; turn the VM off if it is still on after `grace` seconds. `InvalidTransition`.

        The shutdown component asks where the guest has a driver for it; where it has none, refuses or keeps silent, the
        power button does. A model guest's kernel cancels its program; a guest that knows neither is turned off, and the
        record's detail has what it had answered.
        """
        vm = self.find(name)
        self._move(vm, VmEvent.SHUT_DOWN)
        this, worker = vm.run, _worker(vm)
        assert this is not None, "it has a worker"
        this.ask_to_end()
        with trio.move_on_after(grace):
            flags = ShutdownFlags.FORCE if insist else ShutdownFlags.NONE
            asked = worker.integration is not None and await worker.integration.request_shutdown(flags, reason)
            if not asked and vm.state is VmState.SHUTTING_DOWN:
                worker.press_power_button()
            await this.ended.wait()
        if not this.ended.is_set() and vm.state is not VmState.TURNING_OFF:
            self._turn_off(vm, _unheard(worker, grace))
            await self._while(vm, VmState.TURNING_OFF)
        return await this.wait()

    async def restart(
        self, name: str, grace: float = SHUT_DOWN_GRACE, *, reason: str = "", insist: bool = False
    ) -> bool:
        """Ask the guest to boot again; whether it did within `grace` seconds. The VM goes on either way.

        Raises `InvalidTransition` unless it is running.
        """
        vm = self.find(name)
        if vm.state is not VmState.RUNNING:
            raise InvalidTransition(vm.state, VmEvent.RESET)
        worker = _worker(vm)
        before = worker.resets
        if worker.integration is None:
            return False
        flags = ShutdownFlags.RESTART | (ShutdownFlags.FORCE if insist else ShutdownFlags.NONE)
        with trio.move_on_after(grace):
            if not await worker.integration.request_shutdown(flags, reason):
                return False
            while vm.worker is worker and worker.resets == before:
                await vm.changed.wait()
            await self._while(vm, VmState.RESETTING)
        return worker.resets > before

    async def hibernate(self, name: str, grace: float = SHUT_DOWN_GRACE, *, reason: str = "") -> bool:
        """Ask the guest to write its memory to its own disk and power off; whether it did within `grace` seconds.

        The VM goes on otherwise. Raises `InvalidTransition` unless it is running.
        """
        vm = self.find(name)
        if vm.state is not VmState.RUNNING:
            raise InvalidTransition(vm.state, VmEvent.SHUT_DOWN)
        this, worker = vm.run, _worker(vm)
        assert this is not None, "it has a worker"
        with trio.move_on_after(grace):
            if worker.integration is None or not await worker.integration.request_shutdown(
                ShutdownFlags.HIBERNATE, reason
            ):
                return False
            this.ask_to_end()
            await this.ended.wait()
        return this.ended.is_set()

    async def request_state_change(self, name: str, requested_state: int) -> ReturnCode:
        """RequestStateChange of Msvm_ComputerSystem. It waits for the end of what Hyper-V would answer "job" to.

        COMPLETED, INVALID_STATE where the table has no such move, NOT_SUPPORTED for what is not built (reboot),
        INVALID_PARAMETER for numbers that are no request, FAILED for a start or a save that failed.
        """
        vm = self.find(name)
        try:
            requested = RequestedState(requested_state)
        except ValueError:
            return ReturnCode.INVALID_PARAMETER
        event = requested_event(vm.state, requested)
        if event is None:
            return ReturnCode.NOT_SUPPORTED
        try:
            match event:
                case VmEvent.START:
                    await self.start(name)
                case VmEvent.PAUSE:
                    await self.pause(name)
                case VmEvent.RESUME:
                    await self.resume(name)
                case VmEvent.RESET:
                    await self.reset(name)
                case VmEvent.TURN_OFF:
                    await self.turn_off(name)
                case VmEvent.SHUT_DOWN:
                    await self.shut_down(name)
                case VmEvent.SAVE:
                    await self.save(name)
                case _:
                    raise AssertionError(f"{event} is no request")
        except InvalidTransition:
            return ReturnCode.INVALID_STATE
        except (StartFailed, CannotSave):
            return ReturnCode.FAILED
        return ReturnCode.COMPLETED

    def turn_all_off(self) -> None:
        """Ask every worker to end; they do so in their own time."""
        for vm in self.vms.values():
            if vm.state not in (VmState.OFF, VmState.SAVED, VmState.TURNING_OFF):
                self._turn_off(vm)

    def _turn_off(self, vm: ManagedVm, detail: str = "") -> None:
        self._move(vm, VmEvent.TURN_OFF)
        vm.saved = None
        if vm.worker is not None:
            assert vm.run is not None, "it has a worker"
            vm.run.ask_to_end()
            vm.worker.end(ExitReason.TURNED_OFF, detail)

    async def wait_off(self, vm: ManagedVm) -> None:
        """Until the VM is off, or saved; at once if it is."""
        while vm.state not in (VmState.OFF, VmState.SAVED):
            await vm.changed.wait()
        await trio.lowlevel.checkpoint()

    # --- workers

    async def _run(self, vm: ManagedVm, this: Run, worker: Worker, *, task_status: trio.TaskStatus[bool]) -> None:
        """A worker's task: from Starting to Off, whatever happens in between. It has started with "it ran" or not."""

        def report(event: VmEvent) -> None:
            if event is VmEvent.STARTED:
                task_status.started(True)
            # A worker that is being turned off may still finish what it was at; nobody wants to know any more.
            if vm.state is not VmState.TURNING_OFF:
                self._move(vm, event)

        record: ExitRecord | None = None
        try:
            record = await worker.run(report)
        finally:
            vm.statistics_at_end = worker.statistics()
            this.record = worker.record() if record is None else record  # None: the whole host is being cancelled
            vm.worker = None
            told = not worker.ran and not this.by_policy
            wish = vm.restarts.ended(this.record, asked=this.asked_to_end or record is None, told=told)
            if this.asked_to_end:
                this.record = attrs.evolve(this.record, by=this.asked_by)
            if wish is Wish.GIVE_UP:
                this.record = attrs.evolve(this.record, gave_up_after=vm.restarts.in_a_row)
            if this.record.reason is ExitReason.SAVED and vm.state is VmState.SAVING:
                self._move(vm, VmEvent.WAS_SAVED)
            else:
                vm.saved = None
                self._move(vm, VmEvent.ENDED_FOR_NOW if wish is Wish.AGAIN else VmEvent.ENDED)
            self._tell_end(vm, this.record)
            if wish is Wish.AGAIN:
                self._tell_restart(vm)
                vm.restart_timer = trio.CancelScope()
                self._nursery.start_soon(self._restart_later, vm, vm.restart_timer, name=f"restart of {vm.name}")
            this.ended.set()
        if not worker.ran:
            task_status.started(False)

    async def _restart_later(self, vm: ManagedVm, timer: trio.CancelScope) -> None:
        """The wait before a restart, which leaving the state Waiting cuts short."""
        with timer:
            await trio.sleep(vm.restarts.wait)
        if not timer.cancel_called:
            self._move(vm, VmEvent.RESTART)
            await self._start(vm, Run(by_policy=True))

    def _tell_restart(self, vm: ManagedVm) -> None:
        trace, restarts = self._host.hypervisor.trace, vm.restarts
        if trace.on:
            trace.emit(
                *(Layer.STATE, "vm_restart", vm.partition_id),
                vm=vm.name,
                level=Level.WARNING,
                words=f"in {restarts.wait:g} s, {restarts.in_a_row} of {LIMIT} in a row",
                wait=restarts.wait,
                in_a_row=restarts.in_a_row,
            )

    def _tell_end(self, vm: ManagedVm, record: ExitRecord) -> None:
        trace = self._host.hypervisor.trace
        if trace.on:
            level = Level.INFO if record.ok else Level.ERROR
            trace.emit(
                *(Layer.STATE, "vm_ended", vm.partition_id),
                vm=vm.name,
                level=level,
                words=f"{record}{f', asked by {record.by}' if record.by else ''}",
                reason=record.reason.value,
                exit_code=record.exit_code,
                uptime=record.uptime,
                **_by(record.by),
            )

    def _move(self, vm: ManagedVm, event: VmEvent) -> None:
        """The one place where a VM's state changes. Raises `InvalidTransition`."""
        before = vm.state
        vm.state = next_state(before, event)
        by = asker() if event.requested else ""
        if before is VmState.WAITING and vm.restart_timer is not None:
            vm.restart_timer.cancel()
            vm.restart_timer = None
        host = self._host.hypervisor
        if vm.worker is not None and vm.worker.partition is not None:
            vm.partition_id = vm.worker.partition.id
        if host.trace.on:
            host.trace.emit(
                *(Layer.STATE, "vm_state", vm.partition_id),
                vm=vm.name,  # which has no partition before its first start
                level=Level.INFO,
                words=f"{before.value} -> {vm.state.value}{f', asked by {by}' if by else ''}",
                cause=event.value,
                **_by(by),
            )
        ended = str(vm.exit) if vm.worker is None and vm.exit is not None and before.active else ""
        change = VmStateChange(host.clock(), vm.name, before, vm.state, event, by, ended)
        vm.feed.put(change)
        self.feed.put(change)
        vm.changed.set()
        vm.changed = trio.Event()

    async def _while(self, vm: ManagedVm, state: VmState) -> None:
        while vm.state is state:
            await vm.changed.wait()
        await trio.lowlevel.checkpoint()


def _listeners(settings: VmTable, folder: Path) -> SocketListeners:
    """Those of the host's program, and then other programs, if the VM has a Unix socket that they listen beside."""
    if settings.sockets is None or not settings.sockets.path:
        return SocketListeners()
    from partitions.root.sockets import Outside

    return SocketListeners(Outside(folder / settings.sockets.path).find)


def _by(who: str) -> dict[str, Any]:
    """The field of an event that says who asked, where somebody did."""
    return {"by": who} if who else {}


def _unheard(worker: Worker, grace: float) -> str:
    """Why the power was cut of a guest that was asked first."""
    shutdown = None if worker.integration is None else worker.integration.shutdown
    answer = "" if shutdown is None else shutdown.outcome
    said = f" ({answer})" if answer else ""
    return f"it was still on {grace:g} s after it had been asked to power off{said}"


def _worker(vm: ManagedVm) -> Worker:
    assert vm.worker is not None, "the table lets nothing but Off be without a worker"
    return vm.worker


@asynccontextmanager
async def open_vmms(host: HostServices) -> AsyncIterator[Vmms]:
    """The VMMS, until the block ends; then every VM that is on is turned off, and its worker has ended."""
    async with trio.open_nursery() as nursery:
        vmms = Vmms(host, nursery)
        try:
            yield vmms
        finally:
            with asked_by("the end of the host"):
                vmms.turn_all_off()
            for vm in vmms.vms.values():
                if vm.vnc is not None:
                    vm.vnc.scope.cancel()
    for vm in vmms.vms.values():
        vm.console.close()
        vm.feed.close()
    vmms.feed.close()
