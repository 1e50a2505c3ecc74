"""Reads a topology file and refuses a bad one before anything starts, with all that is wrong in it at once. Root side.

    topology = load_topology("examples/03-disk")        # a folder, a file, or the name of an example

Every table is converted key by key, so one mistake does not hide the next. Guest programs and VSPs are parsed, never
run.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from partitions.examples import example_names, find_example, near_example
from partitions.topology_check import Check
from partitions.topology_schema import (
    MAX_PROCESSORS,
    AclTable,
    Backend,
    CpuTable,
    DeviceTable,
    DiskTable,
    HostTable,
    IopsTable,
    NicTable,
    PoolTable,
    Restart,
    ScreenTable,
    Size,
    SwitchTable,
    Topology,
    VmTable,
    schema,
    size_words,
)
from partitions.topology_source import line_of, nearest
from partitions.topology_words import error_words, spell

__all__ = [
    "MAX_PROCESSORS",
    "AclTable",
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
    "ScreenTable",
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
    path = find_topology(target)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TopologyError(str(path), [Problem("", f"cannot be read: {error_words(error)}")]) from None
    return parse_topology(text, path.parent.absolute(), source=str(path), programs=programs)


def find_topology(target: str | os.PathLike[str]) -> Path:
    """The file that is meant. Raises `TopologyError`."""
    path = Path(target)
    if path.is_dir():
        path = path / FILE_NAME
        if not path.is_file():
            raise TopologyError(str(target), [Problem("", f"this folder has no {FILE_NAME}")])
    elif not path.is_file():
        folder = find_example(str(target))
        if folder is None:
            known = example_names()
            near = near_example(str(target))
            hint = f'; did you mean "{near}"?' if near else f"; examples: {', '.join(known)}" if known else ""
            raise TopologyError(str(target), [Problem("", f"no such folder, file or example{hint}")])
        path = folder / FILE_NAME
    if path.suffix == ".py":
        words = f'is a Python program; write a topology that names it: [[vm]], name = "guest", program = "{path.name}"'
        raise TopologyError(str(target), [Problem("", words)])
    return path


def parse_topology(text: str, folder: Path, *, source: str = FILE_NAME, programs: bool = True) -> Topology:
    """Check the text of a topology whose relative paths start at `folder`. Raises `TopologyError`."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TopologyError(source, [Problem("", f"not TOML: {error}")]) from None
    except RecursionError:
        raise TopologyError(source, [Problem("", "not a topology: nested too deeply")]) from None
    check = Check(raw, folder, programs)
    topology = check.topology()
    if check.found:
        problems = [Problem(spell(raw, keys), reason, line_of(text, keys)) for keys, reason in check.found.items()]
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
    check = Check(raw, topology.folder, True)
    check.disk(disks[-1], ("vm", index, "disk", len(disks) - 1))
    check.disk_count(disks, ("vm", index))
    check.images(changed)
    if check.found:
        raise TopologyError(source, [Problem(spell(raw, keys), reason) for keys, reason in check.found.items()])
    return changed
