"""Changing a VM's disks, whether it is on or off: its settings, and the controller while there is one. Root side.

What is added or removed stays so until the VM is forgotten: it is in the settings that the VM has when it starts again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from partitions.root.devices import CONTROLLER
from partitions.root.disk_state import DiskError, DiskState
from partitions.root.hotplug import HotPlugError
from partitions.topology_check import Check
from partitions.topology_schema import DVD_BLOCK_SIZE, MAX_DISKS, DiskTable, DiskType, luns_of

if TYPE_CHECKING:
    from partitions.root.disks import VmDisks
    from partitions.root.host_resources import HostResources
    from partitions.root.hotplug import HotPlug
    from partitions.root.management import ManagedVm


class DiskDesk:
    """Where the disks of one VM are changed."""

    def __init__(self, managed: ManagedVm, folder: Path, resources: HostResources) -> None:
        self._managed = managed
        self._folder = folder
        self._resources = resources

    def states(self) -> dict[int, DiskState]:
        """By LUN: of the running VM, or as its settings say."""
        disks = self._running()
        if disks is not None:
            return disks.states()
        return {lun: _planned(lun, table, self._folder) for lun, table in sorted(self._tables().items())}

    def add(self, table: DiskTable) -> int:
        """A disk more; its LUN. Raises `DiskError`."""
        tables = self._tables()
        lun = self._free_lun(tables) if table.lun is None else table.lun
        table = msgspec.structs.replace(table, lun=lun)
        if lun not in range(MAX_DISKS):
            raise DiskError(f"lun: must be 0 to {MAX_DISKS - 1}, is {lun}")
        if lun in tables:
            raise DiskError(f"LUN {lun} is taken; leave it out, and a free one is used")
        if len(tables) == MAX_DISKS:
            raise DiskError(f"a controller has at most {MAX_DISKS} disks")
        self._check(table)
        disks, hotplug = self._running(), self._hotplug()
        before = self._numbered()
        self._reserve([*before, table])
        try:
            if disks is not None:
                disks.add(lun, table)
            elif hotplug is not None:
                hotplug.add(CONTROLLER, [table])
        except (DiskError, HotPlugError) as error:
            self._reserve(before)
            raise DiskError(str(error)) from error
        self._settle([*before, table])
        self._managed.highest_lun = max(lun, self._managed.highest_lun)
        return lun

    async def remove(self, lun: int) -> None:
        """A disk less; returns when nothing is under way on it. Raises `DiskError`."""
        disks, tables = self._running(), self._tables()
        if lun not in tables:
            there = ", ".join(map(str, sorted(tables))) or "none"
            raise DiskError(f"there is no disk at LUN {lun}; there are: {there}")
        left = [table for table in self._numbered() if table.lun != lun]
        self._settle(left)
        self._managed.highest_lun = max(*tables, self._managed.highest_lun)
        if disks is not None:
            await disks.remove(lun)
        self._reserve(self._numbered())

    def resize(self, lun: int, size: int | None) -> int:
        """See `VmDisks.resize`."""
        done = self._needed().resize(lun, size)
        self._update(lun, size=None)
        return done

    def insert(self, lun: int, path: Path) -> None:
        """See `VmDisks.insert`."""
        self._needed().insert(lun, path)
        self._update(lun, path=str(path))

    def eject(self, lun: int, *, force: bool) -> None:
        """See `VmDisks.eject`."""
        self._needed().eject(lun, force=force)
        self._update(lun, path="")

    # --- inside

    def _hotplug(self) -> HotPlug | None:
        worker = self._managed.worker
        if worker is None:
            return None
        if worker.hotplug is None:
            raise DiskError(f"VM {self._managed.name!r} is {self._managed.state.value}: wait until it runs or is off")
        return worker.hotplug

    def _running(self) -> VmDisks | None:
        """The controller's disks, while the VM is on and has one."""
        hotplug = self._hotplug()
        plugged = None if hotplug is None else hotplug.devices.get(CONTROLLER)
        return None if plugged is None or plugged.leaving else plugged.device.disks

    def _needed(self) -> VmDisks:
        disks = self._running()
        if disks is None:
            off = f"is {self._managed.state.value}: this is for one that runs"
            raise DiskError(f"VM {self._managed.name!r} {off if self._managed.worker is None else 'has no disks'}")
        return disks

    def _tables(self) -> dict[int, DiskTable]:
        tables = self._managed.settings.disk
        return dict(zip(luns_of(tables), tables, strict=True))

    def _numbered(self) -> list[DiskTable]:
        """The settings' disks with their LUNs written out: those that stay keep their places."""
        return [msgspec.structs.replace(table, lun=lun) for lun, table in self._tables().items()]

    def _reserve(self, tables: Sequence[DiskTable]) -> None:
        """Have what these disks reserve set aside, where anything is. Raises `DiskError`, nothing changed."""
        made = self._resources.made
        if made is None:
            return
        from hypervisor.scheduler.tree import ResourceError

        try:
            made.devices_changed(self._managed.name, msgspec.structs.replace(self._managed.settings, disk=list(tables)))
        except ResourceError as error:
            raise DiskError(str(error)) from error

    def _settle(self, tables: Sequence[DiskTable]) -> None:
        self._managed.settings = msgspec.structs.replace(self._managed.settings, disk=list(tables))

    def _update(self, lun: int, **changes: object) -> None:
        self._settle(
            [msgspec.structs.replace(table, **changes) if table.lun == lun else table for table in self._numbered()]
        )

    def _free_lun(self, taken: dict[int, DiskTable]) -> int:
        """One that no disk had so far, as long as there are some: a guest may still think of the old one there."""
        highest = max([-1, self._managed.highest_lun, *taken])
        if highest + 1 < MAX_DISKS:
            return highest + 1
        free = [lun for lun in range(MAX_DISKS) if lun not in taken]
        if not free:
            raise DiskError(f"a controller has at most {MAX_DISKS} disks")
        return free[0]

    def _check(self, table: DiskTable) -> None:
        """By the topology's own rules. Raises `DiskError` with their words."""
        check = Check({}, self._folder, programs=False)
        check.disk(table, ())
        for keys, reason in check.found.items():
            raise DiskError(f"{'.'.join(map(str, keys))}: {reason}")


def _planned(lun: int, table: DiskTable, folder: Path) -> DiskState:
    image = folder / table.path
    # Its size in the settings is that of an image which is still to be made.
    size = image.stat().st_size if image.is_file() else table.size or 0
    return DiskState(
        lun=lun,
        path=table.path,
        size=size,
        block_size=DVD_BLOCK_SIZE if table.type is DiskType.DVD else table.block_size,
        read_only=table.read_only or table.type is DiskType.DVD,
        type=table.type,
    )
