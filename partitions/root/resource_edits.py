"""A table with one control changed, from what a person wrote: the topology's own types and words. Root side."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from hypervisor.scheduler.tree import ResourceError
from partitions.topology_check import Check
from partitions.topology_controls import PoolTable
from partitions.topology_schema import VmTable, luns_of, numbers_of
from partitions.topology_source import nearest
from partitions.topology_words import bare_type, is_table

_VM_KEYS: Final = ("pool", "cpu", "memory", "dynamic_memory", "disk", "nic")
_POOL_KEYS: Final = ("parent", "expandable", "processors", "cpu", "memory", "disk", "network")
_DEVICE_KEYS: Final = {"disk": ("iops",), "nic": ("bandwidth", "link")}
_OTHER_NAMES: Final = {
    "memory.minimum": "dynamic_memory.minimum",
    "memory.reserve": "dynamic_memory.minimum",
    "memory.maximum": "dynamic_memory.maximum",
    "memory.limit": "dynamic_memory.maximum",
    "memory.buffer": "dynamic_memory.buffer",
    "memory.weight": "dynamic_memory.weight",
}


def edit_pool(table: PoolTable, key: str, value: object) -> PoolTable:
    """Raises `ResourceError`."""
    if value == "host" and key == "parent":
        value = ""
    done: PoolTable = replaced(table, key.split("."), value, Place(f"pool/{table.name}", key), _POOL_KEYS)
    return done


def edit_vm(vm: VmTable, key: str, value: object, *, on: bool, resizable: bool) -> VmTable:
    """`resizable`: somebody is there who changes the memory of a VM that is on. Raises `ResourceError`."""
    place = Place(f"vm/{vm.name}", key)
    if value == "host" and key in ("pool", "cpu.pool"):
        value = ""
    parts = _OTHER_NAMES.get(key, key).split(".")
    if parts[0] == "dynamic_memory" and vm.dynamic_memory is None and on:
        raise place.error("it has no dynamic memory: give it [vm.dynamic_memory], or set this while it is off")
    if parts[0] in _DEVICE_KEYS and len(parts) > 1:
        return _edit_device(vm, parts, value, place)
    if parts[0] in _DEVICE_KEYS:
        raise place.error(f"name one of them and its key, such as {parts[0]}.0.{_DEVICE_KEYS[parts[0]][0]}.limit")
    if parts == ["memory"] and on and not resizable:
        raise place.error("can be changed while it is off")
    done: VmTable = replaced(vm, parts, value, place, _VM_KEYS)
    return done


class Place:
    """Where something is changed, for errors."""

    def __init__(self, path: str, key: str) -> None:
        """`path` as of a node, such as "vm/web", and the key as it was given."""
        self.path, self.key = path, key

    def error(self, reason: str) -> ResourceError:
        """Why that cannot be there."""
        return ResourceError(self.path, self.key, reason)


def _edit_device(vm: VmTable, parts: list[str], value: object, place: Place) -> VmTable:
    """`disk.0.iops.limit`: the disk at LUN 0."""
    which, number, *rest = parts
    tables: list[Any] = list(getattr(vm, which))
    numbers = luns_of(vm.disk) if which == "disk" else numbers_of(vm.nic)
    own = "lun" if which == "disk" else "number"
    if number not in map(str, numbers):  # as it is written there: not every digit that there is makes a number
        there = ", ".join(map(str, sorted(numbers))) or "none"
        raise place.error(f"there is no {which} {number}; there are: {there}")
    if rest and rest[0] in ("reserve", "limit", "weight", "burst"):
        rest = [_DEVICE_KEYS[which][0], *rest]
    index = numbers.index(int(number))
    table = replaced(tables[index], rest or [""], value, place, _DEVICE_KEYS[which])
    tables = [msgspec.structs.replace(one, **{own: at}) for one, at in zip(tables, numbers, strict=True)]
    tables[index] = msgspec.structs.replace(table, **{own: int(number)})
    return msgspec.structs.replace(vm, **{which: tables})


def replaced(table: Any, parts: list[str], value: object, place: Place, known: tuple[str, ...] | None = None) -> Any:
    """A copy of a struct with the value of one key, which may be a table deeper. Raises `ResourceError`."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(type(table))}
    names = [name for name in fields if known is None or name in known]
    name, *rest = parts
    if name not in names:
        near = nearest(name, names)
        hint = f'did you mean "{near}"?' if near else f"there are {', '.join(names)}"
        if name in fields:
            raise place.error("cannot be changed while the host runs")
        raise place.error(f'"{name}" is no control; {hint}')
    field = fields[name]
    bare = bare_type(field.type)
    if is_table(bare):
        inner = getattr(table, field.name)
        inner = bare() if inner is None else inner
        if not rest:
            keys = ", ".join(f"{name}.{one.encode_name}" for one in msgspec.structs.fields(bare))
            raise place.error(f"is a table; there are {keys}")
        return msgspec.structs.replace(table, **{field.name: replaced(inner, rest, value, place)})
    if rest:
        raise place.error(f'"{name}" is a value and has no "{rest[0]}"')
    check = Check({}, Path(), programs=False)
    read = check.value(field.type, _read(value, bare), ())
    for reason in check.found.values():
        raise place.error(reason)
    return msgspec.structs.replace(table, **{field.name: read})


def _read(value: object, kind: Any) -> object:
    """Text of a command line as the number or the word that the key takes."""
    if not isinstance(value, str) or kind is str:
        return value
    if kind is bool:
        return {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(value, value)
    text = value.strip().removesuffix("%").strip() if kind is float else value.strip()
    for number in (int, float) if text.isascii() else ():
        try:
            return number(text.replace("_", ""))
        except ValueError:
            continue
    return text
