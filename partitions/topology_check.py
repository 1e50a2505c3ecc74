"""The pass over a parsed topology that turns tables into structs and finds everything that is wrong. Root side."""

from __future__ import annotations

import os
import re
import typing
from pathlib import Path
from typing import Any, TypeVar, assert_never

import msgspec

from hypervisor.pages import PAGE_SIZE
from partitions.topology_controls import has_controls, memory_range
from partitions.topology_schema import (
    BLOCK_SIZES,
    DVD_BLOCK_SIZE,
    MAX_DISKS,
    Backend,
    DiskTable,
    DiskType,
    ScreenTable,
    Topology,
    TopologyFile,
    VmTable,
    decode_hook,
    size_words,
)
from partitions.topology_source import KeyPath, check_program, check_vsp, nearest
from partitions.topology_words import (
    bare_type,
    brackets,
    copy_hint,
    error_words,
    is_table,
    meant,
    reason_words,
    siblings,
    spell,
    what,
)

KERNEL_SCRIPT = "get-kernel"
"""A file of this name beside a topology fetches what no topology can carry with it."""
BYTES_A_PIXEL = 4
VIDEO_MEMORY = 8 << 20
"""What Hyper-V gives a screen."""
LEAST_WITH_SCREEN = 1 << 20
"""The rings of screen, keyboard and mouse, besides the pixels."""
LEAST_MEMORY = 1 << 20
"""Below it a model guest's kernel uses nothing."""
BOOT_PAGES, BOOT_PAGES_A_PROCESSOR = 8, 2
"""What such a kernel takes above that until its program begins, for hypercalls, clock, bus and SynICs."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
T = TypeVar("T", bound=msgspec.Struct)
_BAD: Any = object()
"""In place of a value that could not be read."""


class Check:
    """One pass over a parsed file. The first problem at a path wins: what follows from it would only be noise."""

    def __init__(self, raw: dict[str, Any], folder: Path, programs: bool) -> None:
        self.raw = raw
        self.folder = folder
        self.programs = programs
        self.found: dict[KeyPath, str] = {}
        self.unreadable: set[KeyPath] = set()
        """Places that are no table at all; nothing beneath them is worth a word."""
        self.guessed: set[KeyPath] = set()
        """Keys whose values cannot be read, so that their defaults stand in for them."""

    def problem(self, keys: KeyPath, reason: str) -> None:
        """Note what is wrong at a place, unless that is known already."""
        if not any(keys[:depth] in self.unreadable for depth in range(len(keys))):
            self.found.setdefault(keys, reason)

    def topology(self) -> Topology:
        """Everything; the result is good only if nothing was found."""
        file = self.table(TopologyFile, self.raw, ())
        if "vm" in self.raw and not file.vm:
            self.problem(("vm",), "no virtual machine: add a [[vm]] table")
        self.names("vm", [vm.name for vm in file.vm])
        for index, vm in enumerate(file.vm):
            self.vm(vm, ("vm", index))
        if has_controls(file.vm, file.pool):
            from partitions.topology_resources import check_resources

            self.names("pool", [pool.name for pool in file.pool])
            check_resources(self, file)
        if file.host.switch_us and any(vm.backend is Backend.KVM for vm in file.vm):
            reason = "is for model guests; with KVM a switch takes the time that it takes: remove it"
            self.problem(("host", "switch_us"), reason)
        self.memory(file)
        self.images(file)
        self.vnc_ports(file)
        if any(vm.sockets is not None for vm in file.vm):
            from partitions.topology_sockets import check_sockets

            check_sockets(self, file)
        if file.switch or any(vm.nic for vm in file.vm):
            from partitions.topology_networks import check_networks

            self.names("switch", [switch.name for switch in file.switch])
            check_networks(self, file)
        if file.question is not None:
            from partitions.topology_question import check_question

            check_question(self, file, file.question)
        return Topology(
            host=file.host, vm=file.vm, switch=file.switch, pool=file.pool, question=file.question, folder=self.folder
        )

    # Types

    def table(self, kind: type[T], raw: object, keys: KeyPath) -> T:
        """One table, key by key; what cannot be read is reported and takes its default, or stays empty."""
        values: dict[str, Any] = {}
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        if not isinstance(raw, dict):
            self.problem(keys, f"must be a table, is {what(raw)}")
            self.unreadable.add(keys)
            raw = {}
        for key in raw:
            if key not in fields:
                near = meant(key, fields) or nearest(key, fields)
                hint = f'did you mean "{near}"?' if near else f"known are {', '.join(fields)}"
                self.problem((*keys, key), f"unknown key; {hint}")
        for name, field in fields.items():
            place = (*keys, name)
            if name in raw:
                values[field.name] = self.value(field.type, raw[name], place)
                if values[field.name] is _BAD:
                    del values[field.name]
            elif field.required:
                self.problem(place, "no virtual machine: add a [[vm]] table" if name == "vm" else "is missing")
            if field.name not in values and field.required:
                values[field.name] = [] if name == "vm" else ""
        return kind(**values)

    def value(self, kind: Any, raw: object, keys: KeyPath) -> Any:
        """One key's value: a list of tables, a table, or what msgspec converts."""
        bare = bare_type(kind)
        if typing.get_origin(bare) is list and is_table(bare_type(typing.get_args(bare)[0])):
            if not isinstance(raw, list):
                self.problem(keys, f"must be a list of tables, written [[{brackets(keys)}]], is {what(raw)}")
                return _BAD
            item = bare_type(typing.get_args(bare)[0])
            return [self.table(item, entry, (*keys, index)) for index, entry in enumerate(raw)]
        if is_table(bare):
            return self.table(bare, raw, keys)
        if typing.get_origin(bare) is dict and isinstance(raw, dict) and typing.get_args(bare)[1] is not Any:
            item = typing.get_args(bare)[1]
            named = {key: self.value(item, entry, (*keys, key)) for key, entry in raw.items()}
            return _BAD if any(one is _BAD for one in named.values()) else named
        try:
            return msgspec.convert(raw, kind, dec_hook=decode_hook)
        except msgspec.ValidationError as error:
            self.problem(keys, reason_words(str(error), bare, raw))
            self.guessed.add(keys)
            return _BAD

    # Meaning

    def names(self, table: str, names: list[str]) -> None:
        """Names that people can type, each once."""
        first: dict[str, int] = {}
        for index, name in enumerate(names):
            keys = (table, index, "name")
            if not _NAME.fullmatch(name):
                rule = 'must be 1 to 63 letters, digits, ".", "_" or "-", the first a letter or digit'
                self.problem(keys, f'{rule}; is "{name}"')
            elif name == "root":
                self.problem(keys, '"root" is the name of the root partition; choose another')
            elif name == "host" and table == "pool":
                self.problem(keys, '"host" is what is around all pools; choose another')
            elif name in first:
                self.problem(keys, f'"{name}" is the name of {table}[{first[name]}] too')
            first.setdefault(name, index)

    def vm(self, vm: VmTable, keys: KeyPath) -> None:
        """The rules of one VM."""
        match vm.backend:
            case Backend.TASK:
                self.task_vm(vm, keys)
            case Backend.KVM:
                self.kvm_vm(vm, keys)
            case Backend.PROCESS:
                self.problem((*keys, "backend"), f'"{vm.backend}" is not in this version; use "task" or "kvm"')
            case _:
                assert_never(vm.backend)
        self.vm_memory(vm, keys)
        self.disk_count(vm.disk, keys)
        for index, disk in enumerate(vm.disk):
            self.disk(disk, (*keys, "disk", index))
        for index, device in enumerate(vm.device):
            if (wrong := check_vsp(self.folder, device.vsp)) is not None:
                self.problem((*keys, "device", index, "vsp"), wrong)
            if device.leaves is not None and device.leaves <= device.arrives:
                self.problem(
                    (*keys, "device", index, "leaves"), f"must be after its arrival at {device.arrives:g} seconds"
                )

    def task_vm(self, vm: VmTable, keys: KeyPath) -> None:
        """A VM whose guest is a program."""
        for key in ("kernel", "initrd"):
            if getattr(vm, key):
                self.problem((*keys, key), f'is for backend = "kvm"; remove {key} or change the backend')
        if vm.program:
            if (wrong := check_program(self.folder, vm.program)) is not None:
                self.problem((*keys, "program"), wrong)
        elif self.programs:
            self.problem(
                (*keys, "program"), "is missing: name the Python file with the guest's `async def main(guest)`"
            )

    def kvm_vm(self, vm: VmTable, keys: KeyPath) -> None:
        """A VM whose guest is a kernel."""
        if vm.program:
            self.problem((*keys, "program"), 'is for backend = "task"; a VM of KVM has a kernel')
        if not vm.kernel:
            self.problem((*keys, "kernel"), "is missing: name the vmlinuz file of a kernel package")
        for key in ("kernel", "initrd"):
            path = self.folder / getattr(vm, key)
            if getattr(vm, key) and not path.is_file():
                self.problem((*keys, key), f'there is no file "{os.path.normpath(path)}"{self.kernel_hint(path)}')

    def kernel_hint(self, path: Path) -> str:
        """What helps where a kernel is missing: a script beside the topology that gets one, or the right name."""
        script = path.parent / KERNEL_SCRIPT
        if script.is_file():
            return f"; get it with: {os.path.relpath(script)}"
        near = nearest(path.name, siblings(path))
        return f'; did you mean "{near}"?' if near else ""

    def screen(self, vm: VmTable, screen: ScreenTable, keys: KeyPath) -> None:
        """Its pixels have room where they are kept: in the guest's own memory, but with a kernel in the host's."""
        wanted = screen.width * screen.height * BYTES_A_PIXEL
        if wanted > VIDEO_MEMORY:
            size = f"{screen.width}x{screen.height} pixels take {wanted} bytes"
            self.problem((*keys, "height"), f"{size}, and a screen has {size_words(VIDEO_MEMORY)}: make it smaller")
        elif vm.backend is Backend.TASK and vm.memory < LEAST_MEMORY + LEAST_WITH_SCREEN + wanted:
            least = -(-(LEAST_MEMORY + LEAST_WITH_SCREEN + wanted) >> 20) << 20
            words = f"must be at least {size_words(least)} for a guest with a screen of this size"
            self.problem((*keys[:-1], "memory"), f"{words}, is {size_words(vm.memory)}")

    def vm_memory(self, vm: VmTable, keys: KeyPath) -> None:
        """Whole pages, and enough of them for what is in it."""
        if vm.memory % PAGE_SIZE:
            self.problem((*keys, "memory"), f"must be a multiple of {PAGE_SIZE} bytes, is {vm.memory}")
        elif vm.memory < (least := _least_memory(vm)):
            words = f"must be at least {size_words(least)}"
            if least > LEAST_MEMORY:
                words += f" for {vm.processors} processor{'s' * (vm.processors > 1)}"
            self.problem((*keys, "memory"), f"{words}, is {size_words(vm.memory)}")
        if vm.screen is not None:
            self.screen(vm, vm.screen, (*keys, "screen"))

    def disk_count(self, disks: list[DiskTable], keys: KeyPath) -> None:
        """One controller's worth, each at a place of its own."""
        first: dict[int, int] = {}
        for index, disk in enumerate(disks):
            if disk.lun is None:
                continue
            if disk.lun in first:
                self.problem((*keys, "disk", index, "lun"), f"{disk.lun} is the LUN of disk[{first[disk.lun]}] too")
            first.setdefault(disk.lun, index)
        if len(disks) > MAX_DISKS:
            self.problem((*keys, "disk"), f"must be at most {MAX_DISKS} disks, are {len(disks)}")

    def disk(self, disk: DiskTable, keys: KeyPath) -> None:
        """The rules of one disk."""
        if disk.iops is not None:
            from partitions.topology_resources import check_iops

            check_iops(self, disk.iops, (*keys, "iops"))
        if disk.type is DiskType.DVD:
            if disk.size is not None:
                return self.problem((*keys, "size"), 'is for disks; a drive of type = "dvd" has a disc, or none')
            if disk.block_size != BLOCK_SIZES[0]:
                return self.problem((*keys, "block_size"), f"is for disks; a DVD has blocks of {DVD_BLOCK_SIZE} bytes")
        elif disk.block_size not in BLOCK_SIZES:
            known = " or ".join(map(str, BLOCK_SIZES))
            return self.problem((*keys, "block_size"), f"must be {known}, is {disk.block_size}")
        sector = block_size_of(disk)
        if disk.size is not None and (disk.size == 0 or disk.size % sector):
            self.problem((*keys, "size"), f"must be a multiple of {sector} bytes and not 0, is {disk.size}")
        if not disk.path:
            if disk.type is DiskType.DVD:
                return None  # a drive without a disc
            return self.problem((*keys, "path"), "is empty")
        try:
            return self.image(disk, self.folder / disk.path, keys)
        except (OSError, ValueError) as error:
            return self.problem((*keys, "path"), f"cannot be looked at: {error_words(error)}")

    def image(self, disk: DiskTable, path: Path, keys: KeyPath) -> None:
        """The file behind it: there or to be made, of a size that a disk can have."""
        place, sector = (*keys, "path"), block_size_of(disk)
        never_written = disk.read_only or disk.type is DiskType.DVD
        if not path.exists():
            if disk.size is None:
                near = nearest(path.name, siblings(path))
                hint = f'; did you mean "{near}"?' if near else ""
                made = " (with a size, it is made)" if disk.type is DiskType.DISK else ""
                return self.problem(place, f'there is no file "{path}"{hint}{made}')
            if disk.read_only:
                return self.problem(place, f'there is no file "{path}", and a new read-only disk would stay empty')
            if not path.parent.is_dir():
                return self.problem(place, f'the folder "{path.parent}" is missing')
            if not os.access(path.parent, os.W_OK):
                words = f'cannot be made: the folder "{path.parent}" is read-only; {copy_hint(self.folder)}'
                return self.problem(place, words)
            return None
        if not never_written and path.is_file() and not os.access(path, os.W_OK):
            words = f'"{path}" cannot be written; set read_only = true, or {copy_hint(self.folder)}'
            return self.problem(place, words)
        if path.is_block_device():
            return None
        if not path.is_file():
            return self.problem(place, f'"{path}" is not a file')
        there = path.stat().st_size
        if disk.size is not None and there != disk.size:
            words = f"the file has {size_words(there)}, not {size_words(disk.size)}; remove the size or the file"
            return self.problem((*keys, "size"), words)
        if there == 0 or there % sector:
            padded = max(1, -(-there // sector)) * sector
            words = f'"{path}" has {there} bytes, not a multiple of {sector}; pad a copy: truncate -s {padded} COPY'
            return self.problem(place, words)
        return None

    def memory(self, file: TopologyFile) -> None:
        """All VMs fit into the host at once; of one whose memory is dynamic, only its minimum has to."""
        wanted = sum(min(memory_range(vm)[0], vm.memory) for vm in file.vm)
        if wanted > file.host.memory:
            has = size_words(file.host.memory)
            self.problem(("host", "memory"), f"the host has {has}, its VMs together want {size_words(wanted)}")

    def vnc_ports(self, file: TopologyFile) -> None:
        """A port belongs to one VM."""
        users: dict[int, int] = {}
        for index, vm in enumerate(file.vm):
            if vm.screen is not None and vm.screen.vnc:
                first = users.setdefault(vm.screen.vnc, index)
                if first != index:
                    words = f'{vm.screen.vnc} is the port of vm[{first}] "{file.vm[first].name}" too; 0 takes any'
                    self.problem(("vm", index, "screen", "vnc"), words)

    def images(self, file: TopologyFile) -> None:
        """An image that is written belongs to one disk; the lock on it would refuse the second only at start."""
        users: dict[str, list[tuple[KeyPath, bool]]] = {}
        for vm_index, vm in enumerate(file.vm):
            for index, disk in enumerate(vm.disk):
                if disk.path:
                    image = os.path.realpath(self.folder / disk.path)
                    never_written = disk.read_only or disk.type is DiskType.DVD
                    users.setdefault(image, []).append((("vm", vm_index, "disk", index), never_written))
        for disks in users.values():
            first = disks[0][0]
            for keys, read_only in disks[1:]:
                if not (read_only and disks[0][1]):
                    words = f"{spell(self.raw, first)} has this image too; that works only if both are read_only"
                    self.problem((*keys, "path"), words)


def block_size_of(disk: DiskTable) -> int:
    """Bytes in a block of this disk or disc."""
    return DVD_BLOCK_SIZE if disk.type is DiskType.DVD else disk.block_size


def _least_memory(vm: VmTable) -> int:
    """What its kernel needs to boot; devices need more, for their rings."""
    if vm.backend is Backend.KVM:
        return LEAST_MEMORY
    return LEAST_MEMORY + (BOOT_PAGES + BOOT_PAGES_A_PROCESSOR * vm.processors) * PAGE_SIZE
