"""The disks of one running VM: opened from its topology, added, removed and resized while it runs. Root side.

Each image is open, and locked, from when its disk comes until the disk has gone and nothing is under way on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import attrs

from hypervisor.trace import Trace
from hypervisor.wire import Guid
from partitions.root.disk_state import DeviceError, DiskError, DiskState
from partitions.topology_schema import DVD_BLOCK_SIZE, DiskTable, DiskType, luns_of
from vsp_vsc.storage.backends.base import BackendError, check_size
from vsp_vsc.storage.backends.raw_file import RawFileBackend, create_image
from vsp_vsc.storage.controller import Unit
from vsp_vsc.storage.scsi.dvd import DvdDrive
from vsp_vsc.storage.scsi.target import ScsiTarget
from vsp_vsc.storage.scsi.unit import LogicalUnit
from vsp_vsc.storage.vsp import StorageVsp


class Controlled(Protocol):
    """A disk whose I/O somebody controls."""

    def close(self) -> None:
        """The disk has gone."""


Control = Callable[[int, DiskTable, Unit], Controlled]
"""Takes a disk under control: its LUN, its settings, and where it is."""


@attrs.define(eq=False)
class _Disk:
    table: DiskTable
    target: LogicalUnit
    backend: RawFileBackend | None
    control: Controlled | None = None

    def let_go(self) -> None:
        """It is not controlled any more."""
        if self.control is not None:
            self.control.close()


class VmDisks:
    """The disks of one controller. A context manager: at its end all images are closed."""

    def __init__(self, folder: Path, *, inline: bool, control: Control | None = None) -> None:
        """`control` has the I/O of each disk controlled, from when it is there."""
        self._folder = folder
        self._inline = inline
        self._control = control
        self._disks: dict[int, _Disk] = {}
        self._controller: StorageVsp | None = None
        self._instance: Guid | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for disk in self._disks.values():
            disk.let_go()
            if disk.backend is not None:
                disk.backend.close()
        self._disks.clear()

    def make_controller(
        self,
        tables: Sequence[DiskTable],
        instance: Guid,
        trace: Trace,
        partition_id: int,
        name: str,
        *,
        max_sub_channels: int,
    ) -> StorageVsp:
        """The controller, with these disks to begin with. Raises `DeviceError`."""
        self._instance = instance
        for lun, table in zip(luns_of(tables), tables, strict=True):
            self._disks[lun] = self._open(lun, table)
        targets = {lun: disk.target for lun, disk in self._disks.items()}
        self._controller = StorageVsp(targets, instance, trace, partition_id, name, max_sub_channels=max_sub_channels)
        for lun, disk in self._disks.items():
            self._have_controlled(lun, disk)
        return self._controller

    @property
    def controller(self) -> StorageVsp:
        """What `make_controller` made."""
        assert self._controller is not None, "make_controller comes first"
        return self._controller

    def states(self) -> dict[int, DiskState]:
        """By LUN, as they are now."""
        return {lun: _state(lun, disk) for lun, disk in sorted(self._disks.items())}

    def add(self, lun: int, table: DiskTable) -> None:
        """A disk comes; the guest is told. Raises `DiskError`."""
        if lun in self._disks:
            raise DiskError(f"LUN {lun} is taken; leave it out, and a free one is used")
        try:
            disk = self._open(lun, table)
        except DeviceError as error:
            raise DiskError(str(error)) from error
        self._disks[lun] = disk
        self.controller.add_disk(lun, disk.target)
        self._have_controlled(lun, disk)

    async def remove(self, lun: int) -> None:
        """A disk goes; the guest is told. Returns when nothing is under way on it. Raises `DiskError`."""
        disk = self._find(lun)
        del self._disks[lun]
        try:
            await self.controller.remove_disk(lun)
        finally:
            disk.let_go()
            if disk.backend is not None:
                disk.backend.close()

    def resize(self, lun: int, size: int | None) -> int:
        """Give a disk's image another size, or look whether someone else has; its size then. Raises `DiskError`."""
        disk = self._find(lun)
        backend = disk.backend
        if backend is None or not isinstance(disk.target, ScsiTarget):
            raise DiskError(f"disk {lun} is a DVD drive: eject the disc and insert another")
        before = backend.size_bytes
        try:
            if size is None:
                backend.measure()
            elif disk.target.read_only:
                raise DiskError(f"disk {lun} is read-only: change the image's size yourself, then call without a size")
            elif size < backend.size_bytes:
                words = f"disk {lun} has {backend.size_bytes} bytes: with {size} the guest would lose its end"
                raise DiskError(f"{words}; remove it, shrink the image, and add it again")
            else:
                check_size(size, f"disk {lun}", disk.table.block_size)
                backend.resize(size)
        except (OSError, BackendError) as error:
            raise DiskError(f"{backend.path}: {error}") from error
        if backend.size_bytes != before:
            disk.target.resized()
            self.controller.disk_changed()
        return backend.size_bytes

    def insert(self, lun: int, path: Path) -> None:
        """Put a disc into an empty drive. Raises `DiskError`."""
        disk, drive = self._drive(lun)
        if disk.backend is not None:
            raise DiskError(f"drive {lun} has {disk.backend.path} in it: eject that first")
        try:
            disk.backend = open_image(DiskTable(path=str(path), type=DiskType.DVD), self._folder, inline=self._inline)
        except DeviceError as error:
            raise DiskError(str(error)) from error
        drive.insert(disk.backend)
        self.controller.disk_changed()

    def eject(self, lun: int, *, force: bool) -> None:
        """Take the disc out; unless by `force`, not while the guest holds it: then it is asked. Raises `DiskError`."""
        disk, drive = self._drive(lun)
        if disk.backend is None:
            raise DiskError(f"drive {lun} is empty")
        if drive.preventing and not force:
            drive.request_eject()
            raise DiskError(
                f"the guest holds the disc in drive {lun}; it has been asked for it: try again, or force it"
            )
        drive.eject()  # calls `_ejected`

    # --- inside

    def _have_controlled(self, lun: int, disk: _Disk) -> None:
        if self._control is not None:
            disk.control = self._control(lun, disk.table, self.controller.unit(lun))

    def _open(self, lun: int, table: DiskTable) -> _Disk:
        if table.type is DiskType.DVD:
            backend = open_image(table, self._folder, inline=self._inline) if table.path else None
            drive = DvdDrive(backend, identity=f"{self._instance} {lun}")
            disk = _Disk(table, drive, backend)
            drive.on_eject = lambda: self._ejected(disk)
            return disk
        backend = open_image(table, self._folder, inline=self._inline)
        return _Disk(table, ScsiTarget(backend, block_size=table.block_size), backend)

    def _ejected(self, disk: _Disk) -> None:
        """The disc is out, by the guest's wish or ours."""
        backend, disk.backend = disk.backend, None
        if backend is not None:
            backend.close()
        self.controller.disk_changed()

    def _find(self, lun: int) -> _Disk:
        disk = self._disks.get(lun)
        if disk is None:
            there = ", ".join(map(str, sorted(self._disks))) or "none"
            raise DiskError(f"there is no disk at LUN {lun}; there are: {there}")
        return disk

    def _drive(self, lun: int) -> tuple[_Disk, DvdDrive]:
        disk = self._find(lun)
        if not isinstance(disk.target, DvdDrive):
            raise DiskError(f"disk {lun} is no DVD drive: remove it, and add another")
        return disk, disk.target


def _state(lun: int, disk: _Disk) -> DiskState:
    backend, drive = disk.backend, isinstance(disk.target, DvdDrive)
    return DiskState(
        lun=lun,
        path="" if backend is None else str(backend.path),
        size=0 if backend is None else backend.size_bytes,
        block_size=DVD_BLOCK_SIZE if drive else disk.table.block_size,
        read_only=drive or disk.table.read_only,
        type=disk.table.type,
    )


def open_image(disk: DiskTable, folder: Path, *, inline: bool) -> RawFileBackend:
    """A disk's image, made first where the topology gives a size. Raises `DeviceError`."""
    path = folder / disk.path
    drive = disk.type is DiskType.DVD
    try:
        if disk.size is not None and not path.exists():
            with contextlib.suppress(FileExistsError):  # a sibling on the same folder was faster
                create_image(path, disk.size)
        backend = RawFileBackend.open(path, read_only=disk.read_only or drive, inline=inline)
        try:
            check_size(backend.size_bytes, str(path), DVD_BLOCK_SIZE if drive else disk.block_size)
        except BackendError:
            backend.close()
            raise
        return backend
    except BackendError as error:
        raise DeviceError(str(error)) from error
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror or error}") from error
