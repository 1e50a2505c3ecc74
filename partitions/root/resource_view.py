"""Resource control to look at: what pools and VMs have, as rows and as a tree with leaves to set. Root side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from hypervisor.inspect import Branch, Setting
from hypervisor.scheduler.divvy import State
from hypervisor.scheduler.settings import WHOLE
from hypervisor.scheduler.tree import Node, ResourceError
from partitions.topology_controls import CpuTable, IopsTable, PoolTable
from partitions.topology_figures import KINDS, WORDS, Kind
from partitions.topology_links import BandwidthTable
from partitions.topology_schema import VmTable, luns_of, numbers_of
from partitions.topology_words import bare_type, description

if TYPE_CHECKING:
    from partitions.root.resources import Resources


class Row(msgspec.Struct, kw_only=True):
    """A pool or a VM, or the host, in one line: figures in the words of its tables."""

    node: str
    """"host", "pool/prod", "vm/web"."""
    parent: str
    on: bool
    inside: list[str]
    """What is right in it."""
    controls: dict[str, Any]
    """Its tables' keys and values, such as `cpu.limit`."""
    reserved: dict[str, float | None]
    """Of each resource, what those in it that are on have reserved: percent of one logical processor, bytes, ..."""
    free: dict[str, float | None]
    """What could be reserved in it without asking its parent; None where there is no bound."""


def row_of(resources: Resources, path: str) -> Row:
    """Raises `ResourceError`."""
    nodes = {kind: resources.node(kind, path) for kind in KINDS}
    first = nodes["memory"]
    parent = "" if first.parent is None else "host" if first.parent.parent is None else first.parent.name
    return Row(
        node=first.name,
        parent=parent,
        on=any(node.active and not node.inner for node in nodes.values()) or not first.name.startswith("vm/"),
        inside=list(first.children) if first.inner else [],
        controls=controls_of(resources, first.name),
        reserved={kind: _figure(kind, node.used) for kind, node in nodes.items()},
        free={kind: _figure(kind, _free(node)) for kind, node in nodes.items() if node.inner},
    )


def _free(node: Node) -> int | None:
    return None if node.parent is None and node.expandable else max(0, node.reservation - node.used)


def _figure(kind: Kind, units: int | None) -> float | None:
    """As the tables' keys have it."""
    return units if units is None or kind != "cpu" else round(100 * units / WHOLE, 3)


def pool_rows(resources: Resources) -> list[Row]:
    """The host, and all pools as the tree has them."""
    return [row_of(resources, node.name) for node in resources.roots["cpu"].walk() if node.inner]


def controls_of(resources: Resources, path: str) -> dict[str, Any]:
    """Keys and values as `Resources.set` takes them."""
    sort, _, name = path.partition("/")
    if sort == "pool":
        return _flat(_pool_keys(resources.pools[name]))
    return _flat(_vm_keys(resources.vms[name])) if sort == "vm" else {}


def _flat(tables: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, msgspec.Struct):
            for field in msgspec.structs.fields(value):
                inner = getattr(value, field.name)
                if not isinstance(inner, msgspec.Struct | list):
                    found[f"{key}.{field.encode_name}"] = _plain(inner)
        else:
            found[key] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _pool_keys(pool: PoolTable) -> dict[str, Any]:
    """Tables that the pool has not got with their defaults."""
    tables: dict[str, Any] = {}
    for field in msgspec.structs.fields(pool):
        if field.name != "name":
            value = getattr(pool, field.name)
            tables[field.encode_name] = bare_type(field.type)() if value is None else value
    return tables


def _vm_keys(vm: VmTable) -> dict[str, Any]:
    tables: dict[str, Any] = {"pool": vm.pool, "cpu": vm.cpu or CpuTable(), "memory": vm.memory}
    if vm.dynamic_memory is not None:
        tables["dynamic_memory"] = vm.dynamic_memory
    for lun, disk in zip(luns_of(vm.disk), vm.disk, strict=True):
        tables[f"disk.{lun}.iops"] = disk.iops or IopsTable()
    for number, nic in zip(numbers_of(vm.nic), vm.nic, strict=True):
        tables[f"nic.{number}.bandwidth"] = nic.bandwidth or BandwidthTable()
    return tables


# --- the tree by paths


def inspect(resources: Resources) -> Branch:
    """The branch `resources`."""
    return Branch(
        {
            "host": lambda: Branch({kind: partial(_amounts, resources, kind, "host") for kind in KINDS}),
            "pool": lambda: Branch({name: partial(_node, resources, f"pool/{name}") for name in resources.pools}),
            "vm": lambda: Branch({name: partial(_node, resources, f"vm/{name}") for name in resources.vms}),
        }
    )


def _node(resources: Resources, path: str) -> Branch:
    sort, _, name = path.partition("/")
    keys = controls_of(resources, path)
    table: Any = resources.pools[name] if sort == "pool" else resources.vms[name]
    branches: dict[str, dict[str, Any]] = {}
    plain: dict[str, Any] = {"path": resources.node("memory", path).path}
    for key, value in keys.items():
        kind, _, inner = key.partition(".")
        shown = f"{value:g}" if isinstance(value, float) else value
        setting = Setting(shown, partial(_set, resources, path, key), _help(table, key))
        if inner:
            branches.setdefault(kind, {})[inner] = setting
        elif key != "memory":
            plain[key] = setting
    children: dict[str, Any] = dict(plain)
    for kind in KINDS:
        amounts = partial(_amounts, resources, kind, path)
        own = branches.pop(kind, {})
        children[kind] = partial(_joined, own, amounts)
    for kind, settings in branches.items():
        children[kind] = Branch(settings)
    return Branch(children)


def _joined(settings: Mapping[str, Any], amounts: Callable[[], Branch]) -> Branch:
    return Branch({**settings, **amounts().children})


def _amounts(resources: Resources, kind: Kind, path: str) -> Branch:
    """What a node of one tree has: reserved in it, free, entitled, and whether weights matter in it."""
    node, words = resources.node(kind, path), WORDS[kind]
    entitled = resources.entitled(kind).get(node)
    found: dict[str, Any] = {"reserved_in_it" if node.inner else "reserved": words(node.used)}
    if node.inner and (free := _free(node)) is not None:
        found["free"] = words(free)
    if node.limit is not None:
        found["at_most"] = words(node.limit)
    if entitled is not None:
        amount, division = entitled
        found["entitled"] = words(round(amount))
        if division is not None and node.children:
            found["contended"] = division.state is not State.UNCONTENDED
    return Branch(found)


def _set(resources: Resources, path: str, key: str, text: str) -> None:
    try:
        resources.set(path, key, text)
    except ResourceError as error:
        raise ValueError(error.reason) from None


def _help(table: Any, key: str) -> str:
    """The words of the topology's own schema."""
    first, _, rest = key.partition(".")
    for field in msgspec.structs.fields(type(table)):
        if field.encode_name == first:
            inner = bare_type(field.type)
            if first in ("disk", "nic"):
                last = rest.rpartition(".")[2]
                inner = IopsTable if first == "disk" else BandwidthTable
                return next(description(one.type) for one in msgspec.structs.fields(inner) if one.encode_name == last)
            if rest:
                return next(description(one.type) for one in msgspec.structs.fields(inner) if one.encode_name == rest)
            return description(field.type)
    return ""
