"""Reads a topology file and refuses a bad one before anything starts, with all that is wrong in it at once. Root side.

    topology = load_topology("examples/03-disk")        # a folder, a file, or the name of an example

Every table is converted key by key, so one mistake does not hide the next. Guest programs and VSPs are parsed, never
run.
"""

from __future__ import annotations

import os
import re
import tomllib
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hypervisor.pages import PAGE_SIZE
from partitions.examples import example_names, find_example
from partitions.topology_schema import (
    MAX_PROCESSORS,
    Backend,
    CpuTable,
    DeviceTable,
    DiskTable,
    HostTable,
    IopsTable,
    NicTable,
    PoolTable,
    Restart,
    Size,
    SwitchTable,
    Topology,
    TopologyFile,
    VmTable,
    decode_hook,
    schema,
    size_words,
)
from partitions.topology_source import KeyPath, check_program, check_vsp, line_of, nearest

__all__ = [
    "MAX_PROCESSORS",
    "Backend",
    "CpuTable",
    "DeviceTable",
    "DiskTable",
    "HostTable",
    "IopsTable",
    "NicTable",
    "PoolTable",
    "Problem",
    "Restart",
    "Size",
    "SwitchTable",
    "Topology",
    "TopologyError",
    "VmTable",
    "add_disk",
    "load_topology",
    "parse_topology",
    "schema",
    "size_words",
]

FILE_NAME = "topology.toml"
SECTOR = 512
MAX_DISKS = 64
"""Disks on one SCSI controller, as Hyper-V has it."""
LEAST_MEMORY = 1 << 20
"""A model guest's kernel needs its low pages, a heap for rings and a little more."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
T = TypeVar("T", bound=msgspec.Struct)


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong in a topology."""

    path: str
    """Where, such as `vm[1] "web".disk[0].path`; empty for the file as a whole."""
    reason: str
    line: int | None = None
    """Line in the file, counted from 1, where it could be found."""

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.path}: {self.reason}" if self.path else f"{where}{self.reason}"


class TopologyError(Exception):
    """A topology that cannot run: every problem that was found, in the order of the file."""

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source = source
        self.problems = list(problems)
        if len(self.problems) == 1:
            super().__init__(f"{source}: {self.problems[0]}")
        else:
            listed = "".join(f"\n  {problem}" for problem in self.problems)
            super().__init__(f"{source}: {len(self.problems)} problems{listed}")


def load_topology(target: str | os.PathLike[str], *, programs: bool = True) -> Topology:
    """Read a folder with a `topology.toml`, a file, or an example by name, number or part of its name.

    With `programs` off, a VM may do without a guest program: the boundary driver is its guest. Raises `TopologyError`.
    """
    path = Path(target)
    if path.is_dir():
        path = path / FILE_NAME
        if not path.is_file():
            raise TopologyError(str(target), [Problem("", f"this folder has no {FILE_NAME}")])
    elif not path.is_file():
        folder = find_example(str(target))
        if folder is None:
            known = example_names()
            near = nearest(str(target), known)
            hint = f'; did you mean "{near}"?' if near else f"; examples: {', '.join(known)}" if known else ""
            raise TopologyError(str(target), [Problem("", f"no such folder, file or example{hint}")])
        path = folder / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TopologyError(str(path), [Problem("", f"cannot be read: {_words(error)}")]) from None
    return parse_topology(text, path.parent.absolute(), source=str(path), programs=programs)


def parse_topology(text: str, folder: Path, *, source: str = FILE_NAME, programs: bool = True) -> Topology:
    """Check the text of a topology whose relative paths start at `folder`. Raises `TopologyError`."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TopologyError(source, [Problem("", f"not TOML: {error}")]) from None
    except RecursionError:
        raise TopologyError(source, [Problem("", "not a topology: nested too deeply")]) from None
    check = _Check(raw, folder, programs)
    topology = check.topology()
    if check.found:
        problems = [Problem(_spell(raw, keys), reason, line_of(text, keys)) for keys, reason in check.found.items()]
        problems.sort(key=lambda problem: problem.line or 0)
        raise TopologyError(source, problems)
    return topology


def add_disk(topology: Topology, vm: str, path: str, *, read_only: bool = True) -> Topology:
    """A copy of a topology whose VM has one disk more; `path` starts at the working folder. Raises `TopologyError`."""
    source = f"--disk {vm}={path}"
    names = [table.name for table in topology.vm]
    if vm not in names:
        near = nearest(vm, names)
        hint = f'did you mean "{near}"?' if near else f"there are {', '.join(names)}"
        raise TopologyError(source, [Problem("", f'no VM is called "{vm}"; {hint}')])
    index = names.index(vm)
    disks = [*topology.vm[index].disk, DiskTable(path=os.path.abspath(path) if path else "", read_only=read_only)]
    tables = list(topology.vm)
    tables[index] = msgspec.structs.replace(tables[index], disk=disks)
    changed = msgspec.structs.replace(topology, vm=tables)
    raw = {"vm": [{"name": name} for name in names]}
    check = _Check(raw, topology.folder, True)
    check.disk(disks[-1], ("vm", index, "disk", len(disks) - 1))
    check.disk_count(disks, ("vm", index))
    check.images(changed)
    if check.found:
        raise TopologyError(source, [Problem(_spell(raw, keys), reason) for keys, reason in check.found.items()])
    return changed


class _Check:
    """One pass over a parsed file. The first problem at a path wins: what follows from it would only be noise."""

    def __init__(self, raw: dict[str, Any], folder: Path, programs: bool) -> None:
        self.raw = raw
        self.folder = folder
        self.programs = programs
        self.found: dict[KeyPath, str] = {}
        self.unreadable: set[KeyPath] = set()
        """Places that are no table at all; nothing beneath them is worth a word."""

    def problem(self, keys: KeyPath, reason: str) -> None:
        if not any(keys[:depth] in self.unreadable for depth in range(len(keys))):
            self.found.setdefault(keys, reason)

    def topology(self) -> Topology:
        file = self.table(TopologyFile, self.raw, ())
        if "vm" in self.raw and not file.vm:
            self.problem(("vm",), "no virtual machine: add a [[vm]] table")
        for kind, word in (("switch", "networks"), ("pool", "resource pools")):
            if getattr(file, kind):
                self.problem((kind, 0), f"{word} come later: remove [[{kind}]]")
        self.names("vm", [vm.name for vm in file.vm])
        for index, vm in enumerate(file.vm):
            self.vm(vm, ("vm", index))
        self.memory(file)
        self.images(file)
        return Topology(host=file.host, vm=file.vm, switch=file.switch, pool=file.pool, folder=self.folder)

    # Types

    def table(self, kind: type[T], raw: object, keys: KeyPath) -> T:
        """One table, key by key; what cannot be read is reported and takes its default, or stays empty."""
        values: dict[str, Any] = {}
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        if not isinstance(raw, dict):
            self.problem(keys, f"must be a table, is {_what(raw)}")
            self.unreadable.add(keys)
            raw = {}
        for key in raw:
            if key not in fields:
                near = nearest(key, fields)
                hint = f'did you mean "{near}"?' if near else f"known are {', '.join(fields)}"
                self.problem((*keys, key), f"unknown key; {hint}")
        for name, field in fields.items():
            place = (*keys, name)
            if name in raw:
                values[name] = self.value(field.type, raw[name], place)
                if values[name] is _BAD:
                    del values[name]
            elif field.required:
                self.problem(place, "no virtual machine: add a [[vm]] table" if name == "vm" else "is missing")
            if name not in values and field.required:
                values[name] = [] if name == "vm" else ""
        return kind(**values)

    def value(self, kind: Any, raw: object, keys: KeyPath) -> Any:
        bare = _bare(kind)
        if typing.get_origin(bare) is list and _is_table(_bare(typing.get_args(bare)[0])):
            if not isinstance(raw, list):
                self.problem(keys, f"must be a list of tables, written [[{_brackets(keys)}]], is {_what(raw)}")
                return _BAD
            item = _bare(typing.get_args(bare)[0])
            return [self.table(item, entry, (*keys, index)) for index, entry in enumerate(raw)]
        if _is_table(bare):
            return self.table(bare, raw, keys)
        try:
            return msgspec.convert(raw, kind, dec_hook=decode_hook)
        except msgspec.ValidationError as error:
            self.problem(keys, _reason(str(error), bare, raw))
            return _BAD

    # Meaning

    def names(self, table: str, names: list[str]) -> None:
        first: dict[str, int] = {}
        for index, name in enumerate(names):
            keys = (table, index, "name")
            if not _NAME.fullmatch(name):
                rule = 'must be 1 to 63 letters, digits, ".", "_" or "-", the first a letter or digit'
                self.problem(keys, f'{rule}; is "{name}"')
            elif name == "root":
                self.problem(keys, '"root" is the name of the root partition; choose another')
            elif name in first:
                self.problem(keys, f'"{name}" is the name of {table}[{first[name]}] too')
            first.setdefault(name, index)

    def vm(self, vm: VmTable, keys: KeyPath) -> None:
        if vm.backend is not Backend.TASK:
            self.problem((*keys, "backend"), f'"{vm.backend}" is not in this version; use "task"')
        elif vm.program:
            if (wrong := check_program(self.folder, vm.program)) is not None:
                self.problem((*keys, "program"), wrong)
        elif self.programs:
            self.problem(
                (*keys, "program"), "is missing: name the Python file with the guest's `async def main(guest)`"
            )
        if vm.memory % PAGE_SIZE:
            self.problem((*keys, "memory"), f"must be a multiple of {PAGE_SIZE} bytes, is {vm.memory}")
        elif vm.memory < LEAST_MEMORY:
            self.problem((*keys, "memory"), f"must be at least {size_words(LEAST_MEMORY)}, is {size_words(vm.memory)}")
        if vm.restart is not Restart.NEVER:
            self.problem((*keys, "restart"), f'"{vm.restart}" is not in this version; use "never"')
        if vm.cpu is not None:
            self.problem((*keys, "cpu"), "processor controls come later: remove cpu")
        if vm.nic:
            self.problem((*keys, "nic", 0), "networks come later: remove [[vm.nic]]")
        self.disk_count(vm.disk, keys)
        for index, disk in enumerate(vm.disk):
            self.disk(disk, (*keys, "disk", index))
        for index, device in enumerate(vm.device):
            if (wrong := check_vsp(self.folder, device.vsp)) is not None:
                self.problem((*keys, "device", index, "vsp"), wrong)

    def disk_count(self, disks: list[DiskTable], keys: KeyPath) -> None:
        if len(disks) > MAX_DISKS:
            self.problem((*keys, "disk"), f"must be at most {MAX_DISKS} disks, are {len(disks)}")

    def disk(self, disk: DiskTable, keys: KeyPath) -> None:
        if disk.iops is not None:
            self.problem((*keys, "iops"), "disk controls come later: remove iops")
        if disk.size is not None and (disk.size == 0 or disk.size % SECTOR):
            self.problem((*keys, "size"), f"must be a multiple of {SECTOR} bytes and not 0, is {disk.size}")
        if not disk.path:
            return self.problem((*keys, "path"), "is empty")
        try:
            return self.image(disk, self.folder / disk.path, keys)
        except (OSError, ValueError) as error:
            return self.problem((*keys, "path"), f"cannot be looked at: {_words(error)}")

    def image(self, disk: DiskTable, path: Path, keys: KeyPath) -> None:
        place = (*keys, "path")
        if not path.exists():
            if disk.size is None:
                near = nearest(path.name, _siblings(path))
                hint = f'; did you mean "{near}"?' if near else ""
                return self.problem(place, f'there is no file "{path}"{hint} (with a size, it is made)')
            if disk.read_only:
                return self.problem(place, f'there is no file "{path}", and a new read-only disk would stay empty')
            if not path.parent.is_dir():
                return self.problem(place, f'the folder "{path.parent}" is missing')
            return None
        if path.is_block_device():
            return None
        if not path.is_file():
            return self.problem(place, f'"{path}" is not a file')
        there = path.stat().st_size
        if disk.size is not None and there != disk.size:
            words = f"the file has {size_words(there)}, not {size_words(disk.size)}; remove the size or the file"
            return self.problem((*keys, "size"), words)
        if there == 0 or there % SECTOR:
            padded = max(1, -(-there // SECTOR)) * SECTOR
            words = f'"{path}" has {there} bytes, not a multiple of {SECTOR}; pad a copy: truncate -s {padded} COPY'
            return self.problem(place, words)
        return None

    def memory(self, file: TopologyFile) -> None:
        wanted = sum(vm.memory for vm in file.vm)
        if wanted > file.host.memory:
            has = size_words(file.host.memory)
            self.problem(("host", "memory"), f"the host has {has}, its VMs together want {size_words(wanted)}")

    def images(self, file: TopologyFile) -> None:
        """An image that is written belongs to one disk; the lock on it would refuse the second only at start."""
        users: dict[str, list[tuple[KeyPath, bool]]] = {}
        for vm_index, vm in enumerate(file.vm):
            for index, disk in enumerate(vm.disk):
                if disk.path:
                    image = os.path.realpath(self.folder / disk.path)
                    users.setdefault(image, []).append((("vm", vm_index, "disk", index), disk.read_only))
        for disks in users.values():
            first = disks[0][0]
            for keys, read_only in disks[1:]:
                if not (read_only and disks[0][1]):
                    words = f"{_spell(self.raw, first)} has this image too; that works only if both are read_only"
                    self.problem((*keys, "path"), words)


# Words

_BAD: Any = object()
_TYPES = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}


def _what(raw: object) -> str:
    match raw:
        case bool():
            return "true" if raw else "false"
        case str():
            return f'"{raw}"'
        case int() | float():
            return str(raw)
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return "a date or time"


def _reason(error: str, kind: Any, raw: object) -> str:
    """msgspec's reason in the words of a topology file."""
    reason = re.sub(r" - at `.*`$", "", error)
    if isinstance(kind, type) and issubclass(kind, Backend | Restart):
        known = [str(member) for member in kind]
        near = nearest(str(raw), known)
        hint = f'did you mean "{near}"?' if near else f"known are {', '.join(known)}"
        return f"must not be {_what(raw)}; {hint}"
    if match := re.fullmatch(r"Expected `int` (>=|<=) (-?\d+)", reason):
        return f"must be at {'least' if match[1] == '>=' else 'most'} {match[2]}, is {raw}"
    if match := re.fullmatch(r"Expected `([a-z]+)(?: \| null)?`, got `.*`", reason):
        return f"must be {_TYPES[match[1]]}, is {_what(raw)}"
    return reason


def _words(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _bare(kind: Any) -> Any:
    """A field's type without its description and without `| None`."""
    if typing.get_origin(kind) is typing.Annotated:
        return _bare(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return _bare(next(part for part in typing.get_args(kind) if part is not type(None)))
    return kind


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _brackets(keys: KeyPath) -> str:
    return ".".join(str(key) for key in keys if isinstance(key, str))


def _siblings(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    except OSError:
        return []


def _spell(raw: object, keys: KeyPath) -> str:
    """`vm[1] "web".disk[0].path`: the VM's name beside its number, because nobody counts tables."""
    words = ""
    for key in keys:
        if isinstance(key, int):
            raw = raw[key] if isinstance(raw, list) and key < len(raw) else None
            words += f"[{key}]"
            if isinstance(raw, dict) and isinstance(name := raw.get("name"), str):
                words += f' "{name}"'
        else:
            raw = raw.get(key) if isinstance(raw, dict) else None
            words += f".{key}" if words else key
    return words
