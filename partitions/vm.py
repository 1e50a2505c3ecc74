"""One virtual machine of a host, as `partitions.host` gives it to people: how it is, and what to do with it. Root side.

Everything runs in the Trio thread. The errors are those that `partitions.host` names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import trio

from hypervisor.clock import seconds
from partitions.lifecycle import ReturnCode, VmState
from partitions.root.console import Console
from partitions.root.disk_desk import DiskDesk
from partitions.root.disk_state import DiskError, DiskState
from partitions.root.exits import ExitRecord
from partitions.root.feed import Subscription
from partitions.root.hotplug import HotPlug, HotPlugError, Pluggable
from partitions.root.integration import (
    HOLD_SECONDS,
    Contact,
    FreezeState,
    GuestTime,
    Heartbeat,
    Integration,
    Kvp,
    frozen,
    need,
)
from partitions.root.management import SHUT_DOWN_GRACE, ManagedVm, Vmms, VmStateChange
from partitions.root.nic_desk import NicDesk
from partitions.root.nic_state import NicState
from partitions.root.saving import SavedVm
from partitions.root.statistics import VmStatistics
from partitions.topology_schema import DiskTable, DiskType, IopsTable, Size, VmTable
from vmbus.protocol.hvsocket import parse_service, service_words
from vmbus.server.socket_stream import HostSocket
from vmbus.server.sockets import Accept, Listening, SocketRefused

if TYPE_CHECKING:
    from partitions.root.memory_state import MemoryState
    from vsp_vsc.keyboard.vsp import KeyboardVsp
    from vsp_vsc.mouse.vsp import MouseVsp
    from vsp_vsc.video.framebuffer import Framebuffer


class NoScreen(Exception):
    """There is nothing to look at; the text says why, and what to do."""


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

    @property
    def run_time(self) -> int:
        """100 ns units that its virtual processors have worked since the start, all together; 0 while it is off."""
        worker = self._managed.worker
        if worker is None or worker.partition is None:
            return 0
        return sum(vp.run_time() for vp in worker.partition.vps.values())

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
    def clock(self) -> GuestTime:
        """What the host knows of its guest's clock: how often it was set, and by how much it has gone wrong."""
        integration = self._integration()
        component = None if integration is None else integration.time_sync
        return GuestTime() if component is None else component.time

    @property
    def shutdown_outcome(self) -> str:
        """What its guest's driver said to the last request to power off, restart or hibernate; empty before one."""
        integration = self._integration()
        component = None if integration is None else integration.shutdown
        return "" if component is None else component.outcome

    @property
    def integration(self) -> dict[str, Contact]:
        """How each integration component that it is offered stands with its guest; empty while it is off."""
        integration = self._integration()
        return {} if integration is None else integration.contacts

    @property
    def keyboard(self) -> KeyboardVsp | None:
        """Its keyboard in this run: `vm.keyboard.chord("ctrl-alt-del")`; None while it is off, or if it has none."""
        worker = self._managed.worker
        return None if worker is None or worker.input is None else worker.input.keyboard

    @property
    def vnc_port(self) -> int | None:
        """Where its VNC server listens on 127.0.0.1, from its first start on; None if it has none."""
        server = self._managed.vnc
        return None if server is None else server.port or None

    @property
    def mouse(self) -> MouseVsp | None:
        """Its mouse in this run; None while it is off, or if it has none."""
        worker = self._managed.worker
        return None if worker is None or worker.input is None else worker.input.mouse

    @property
    def screen(self) -> Framebuffer | None:
        """What its guest shows in this run; None while it is off, or if it has no `[vm.screen]`."""
        worker = self._managed.worker
        return None if worker is None or worker.screen is None else worker.screen.framebuffer

    async def screenshot(self) -> bytes:
        """What its guest shows now, read afresh, as a PNG file. Raises `NoScreen`."""
        if self.settings.screen is None:
            raise NoScreen(f'VM "{self.name}" has no screen: give it a [vm.screen] table in its topology')
        screen = self.screen
        if screen is None:
            raise NoScreen(f'VM "{self.name}" is {self.state.value}: start it, and its guest can show something')
        from partitions.root.screen import take_png

        return await take_png(screen)

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

    async def connect(self, port: int | str) -> HostSocket:
        """A stream to a port that its guest listens on, or to a service by its GUID; a `trio.abc.HalfCloseableStream`.

        Raises `SocketRefused`, a `ConnectionError`, where nothing there takes it; `ValueError` for no port.
        """
        service = parse_service(str(port))
        worker = self._managed.worker
        if worker is None or worker.server is None:
            await trio.lowlevel.checkpoint()
            raise SocketRefused(f"{self.name}: {service_words(service)}: it is {self.state.value}")
        try:
            return await worker.server.connect(service)
        except SocketRefused as error:
            raise SocketRefused(f"{self.name}: {error}") from None

    def listen(self, port: int | str, handler: Accept) -> Listening:
        """Take what its guests connect to a port of their host, now and after each start; `.close()` ends it.

        `handler(stream)` runs in a task of its own for each connection; the stream is closed when it returns. What it
        raises, but for the guest having gone, is the end of the VM. ValueError for a port that is taken, or none.
        """
        return self._managed.listeners.listen(parse_service(str(port)), handler)

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

    async def shut_down(self, grace: float = SHUT_DOWN_GRACE, *, reason: str = "", insist: bool = False) -> ExitRecord:
        """Ask its guest to power off, and cut its power after `grace` seconds. Raises `InvalidTransition`.

        The shutdown component asks where the guest drives it, the power button where it does not. The guest's people
        are told the `reason`; with `insist`, its programs may not object.
        """
        return await self._vmms.shut_down(self.name, grace, reason=reason, insist=insist)

    async def restart(self, grace: float = SHUT_DOWN_GRACE, *, reason: str = "", insist: bool = False) -> bool:
        """Ask its guest to boot again; whether it did within `grace` seconds. Raises `InvalidTransition`.

        Only the shutdown component can ask for that; a guest without a driver for it is left alone. If it did not,
        `shutdown_outcome` has what it answered.
        """
        return await self._vmms.restart(self.name, grace, reason=reason, insist=insist)

    async def hibernate(self, grace: float = SHUT_DOWN_GRACE, *, reason: str = "") -> bool:
        """Ask its guest to write its memory to its own disk and power off; whether it did within `grace` seconds.

        Otherwise as `restart`. What `save` does needs no guest's help, and is the host's own file.
        """
        return await self._vmms.hibernate(self.name, grace, reason=reason)

    # --- its memory

    @property
    def memory(self) -> MemoryState | None:
        """How its memory is, in bytes: assigned, demand, target, ballooned, added. None while it is off.

        A VM without `[vm.dynamic_memory]` has what its settings say until `set_memory` changes that.
        """
        worker = self._managed.worker
        if worker is None or worker.partition is None:
            return None
        from partitions.root.memory_state import fixed_memory

        return fixed_memory(self.settings) if worker.memory is None else worker.memory.state()

    async def set_memory(
        self,
        size: int | str | None = None,
        *,
        minimum: int | str | None = None,
        maximum: int | str | None = None,
        buffer: int | None = None,
        weight: int | None = None,
        patience: float = 60.0,
    ) -> MemoryState:
        """Give it `size` bytes while it runs, or other bounds where its memory is dynamic; how it is then.

        More than it has is added, less is taken by its balloon; its guest needs a driver for that, and may refuse.
        `patience` is the time in seconds that one answer of the guest's may take. A dynamic VM stays at `size` until
        this is called without one. Raises `CannotResize`; what was had by then stays.
        """
        from partitions.root.memory_resize import change_memory

        worker = self._managed.worker
        if worker is None:
            raise HotPlugError(f"VM {self.name!r} is {self.state.value}")
        return await change_memory(
            worker.movable_memory(),
            size=_bytes(size),
            minimum=_bytes(minimum),
            maximum=_bytes(maximum),
            buffer=buffer,
            weight=weight,
            patience=patience,
        )

    # --- its files

    async def copy_file(
        self, source: str | os.PathLike[str], path: str, *, overwrite: bool = False, create_path: bool = False
    ) -> int:
        """Copy a file of the host's into its guest, which must drive the file-copy component; how many bytes it has.

        A `path` that ends in a slash is a folder, for the file's own name. Raises `NoAnswer` with the guest's reason,
        `OSError` for the source, `ValueError` for a path that cannot be.
        """
        from partitions.root.file_source import copy_into

        component = need(self._integration(), lambda it: it.file_copy, "file-copy")
        return await copy_into(component, source, path, overwrite=overwrite, create_path=create_path)

    def frozen(self, hold: float = HOLD_SECONDS) -> AbstractAsyncContextManager[None]:
        """Hold its file systems still, as they would be on a disk that can be copied, until the block ends.

            async with vm.frozen():
                shutil.copy("data.img", "backup.img")

        After `hold` seconds of the guest's time it thaws in any case, and the end of the block raises `NoAnswer`. Other
        things that raise it: a guest without a driver, one that refuses, one that is reset meanwhile.
        """
        return frozen(need(self._integration(), lambda it: it.vss, "vss"), hold)

    async def freeze(self, hold: float = HOLD_SECONDS) -> None:
        """The beginning of `frozen`, for those whose block has no end in sight; `thaw` is the end."""
        await need(self._integration(), lambda it: it.vss, "vss").freeze(hold)

    async def thaw(self) -> None:
        """Let its file systems go on. Raises `NoAnswer` where they are not frozen, or the guest does not say so."""
        await need(self._integration(), lambda it: it.vss, "vss").thaw()

    @property
    def freeze_state(self) -> FreezeState:
        """How its file systems are, as far as the host knows."""
        integration = self._integration()
        component = None if integration is None else integration.vss
        return FreezeState.THAWED if component is None else component.state

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
        iops: Mapping[str, int] | None = None,
    ) -> int:
        """Give it another disk, now or for its next start; its LUN, by default one that no disk had before.

        The arguments are the keys of `[[vm.disk]]`, and `iops` is a table with reserve, limit and weight. A guest that
        runs is told, and looks. Raises `DiskError`.
        """
        if type not in tuple(DiskType):
            raise DiskError(f"type: must be {' or '.join(DiskType)}, is {type!r}")
        table = DiskTable(
            path=os.fspath(path),
            type=DiskType(type),
            lun=lun,
            size=_bytes(size),
            read_only=read_only,
            block_size=block_size,
            iops=None if iops is None else _iops(iops),
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
        return self._desk.resize(lun, _bytes(size))

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
        return DiskDesk(self._managed, self._vmms.folder, self._vmms.resources)

    # --- its network adapters, on or off

    @property
    def nics(self) -> Mapping[int, NicState]:
        """Its network adapters by number: address, switch, link."""
        return self._nic_desk.states()

    async def add_nic(self, switch: str | None = None, **keys: Any) -> int:
        """Give it another network adapter, now or for its next start; its number, by default one that none had before.

        The keywords are the keys of `[[vm.nic]]`; without a switch its link is down. A guest that runs is told, and
        looks. Raises `NicError`.
        """
        await trio.lowlevel.checkpoint()
        return self._nic_desk.add({**keys, "switch": switch or ""})

    async def remove_nic(self, number: int) -> None:
        """Take an adapter away, whatever its guest is doing with it. Raises `NicError`."""
        await self._nic_desk.remove(number)
        await trio.lowlevel.checkpoint()

    async def connect_nic(self, number: int, switch: str | None) -> None:
        """Plug its cable into a switch, or pull it out for None; its guest sees the link. Raises `NicError`."""
        await trio.lowlevel.checkpoint()
        self._nic_desk.plug(number, switch or "")

    @property
    def _nic_desk(self) -> NicDesk:
        return NicDesk(self._managed, self._vmms.network)

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


def _iops(table: Mapping[str, int]) -> IopsTable:
    try:
        return msgspec.convert(dict(table), IopsTable)
    except msgspec.ValidationError as error:
        raise DiskError(f"iops: {error}") from None


def _bytes(size: int | str | None) -> Size | None:
    try:
        return None if size is None else Size.parse(size)
    except ValueError as error:
        raise DiskError(f"size: {error}") from None
