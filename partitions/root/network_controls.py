"""Bandwidth and cables of a host's ports, made when some table or somebody wants them: most hosts have none. Root side.

What an adapter is set to stands in its VM's table, and a pool's figures in `Resources`; here they are followed. A
switch's own figures are kept here, as long as the host runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import attrs
import msgspec

from hypervisor.inspect import Branch, Setting
from hypervisor.scheduler.tree import ResourceError
from partitions.root.resource_edits import Place, replaced
from partitions.topology_check import Check
from partitions.topology_controls import PoolTable
from partitions.topology_links import (
    BandwidthTable,
    BurstLossTable,
    LinkTable,
    bandwidth_of,
    link_of,
)
from partitions.topology_networks import check_controls, check_link, host_port_name
from partitions.topology_schema import NicTable, SwitchTable
from partitions.topology_units import Duration, duration_words
from partitions.topology_words import bare_type, description, is_table
from vsp_vsc.network.shaping.figures import PortFigures
from vsp_vsc.network.shaping.lane import Lane
from vsp_vsc.network.shaping.settings import Bandwidth
from vsp_vsc.network.shaping.shaper import Shaping
from vsp_vsc.network.switch.kinds import SwitchKind
from vsp_vsc.network.switch.ports import Port

if TYPE_CHECKING:
    from hypervisor.scheduler.tree import Node
    from partitions.root.host_network import HostNetwork

_POOL: Final = "pool/"
_ELSEWHERE: Final = "see docs/network-control.md"
Table = TypeVar("Table", NicTable, SwitchTable)


class NetworkControls:
    """Of one host. `Switches` tells of ports that come, go and move."""

    def __init__(self, network: HostNetwork) -> None:
        """With the pools that there are."""
        self._network = network
        self.switches: dict[str, SwitchTable] = {}
        """As they are set now, by name."""
        assert network.timers is not None, "a host has timers"
        self.shaping = Shaping(network.now, network.timers, network.chance)
        self.shaping.set_host(network.topology.host.bandwidth)
        resources = network.resources
        pools = network.topology.pool
        if resources is not None:
            if resources.made is not None:
                pools = list(resources.made.pools.values())
            resources.on_change("network", self._pool_changed)
        for pool in pools:
            self._set_pool(pool.name, pool.parent, pool)

    # --- ports

    def add(self, port: Port, vm: str, nic: NicTable | None) -> None:
        """A port that is there: of a VM's adapter, or the host's own."""
        if nic is None:
            switch = self.switches.get(port.name.partition(":")[0])
            self.shaping.add(port, None, link_of(None if switch is None else switch.link))
        else:
            self.shaping.add(port, bandwidth_of(nic.bandwidth), link_of(nic.link), self._pool_of(vm))

    def change(self, port: str, vm: str, nic: NicTable) -> None:
        """Its VM has other settings."""
        if port in self.shaping.lanes:
            self.shaping.change(port, bandwidth_of(nic.bandwidth), link_of(nic.link), self._pool_of(vm))

    def figures(self, port: str) -> PortFigures:
        """Of a port that is there."""
        return self.shaping.lanes[port].figures()

    def _pool_of(self, vm: str) -> str:
        network = self._network
        if network.resources is not None:
            table = network.resources.machines.tables().get(vm)
            if table is not None:
                return table.pool
        return next((table.pool for table in network.topology.vm if table.name == vm), "")

    # --- switches and pools

    def add_switch(self, table: SwitchTable) -> None:
        """One of the topology's."""
        self.switches[table.name] = table
        self.shaping.set_switch(table.name, table.bandwidth, table.default_weight)

    def set_switch(self, name: str, key: str, written: str) -> None:
        """Change `bandwidth`, `default_weight` or a key of `link` of a switch. Raises `ValueError`."""
        table = _edited(self.switches[name], f"switch/{name}", key, written)
        check = Check({}, Path(), programs=False)
        if table.link is not None:
            check_link(check, table.link, ("link",))
        _refuse(check)
        self.switches[name] = table
        self.shaping.set_switch(name, table.bandwidth, table.default_weight)
        uplink = host_port_name(table)
        if uplink in self.shaping.lanes:
            self.shaping.change(uplink, None, link_of(table.link), "")

    def _set_pool(self, name: str, parent: str, table: PoolTable) -> None:
        figures = table.network
        if figures is not None:
            self.shaping.set_pool(name, parent, Bandwidth(figures.reserve, figures.limit, figures.weight))
        else:
            self.shaping.set_pool(name, parent, Bandwidth())

    def _pool_changed(self, node: Node) -> None:
        if not node.name.startswith(_POOL):
            return
        name, parent = node.name.removeprefix(_POOL), node.parent
        if parent is None or node.name not in parent.children:
            self.shaping.remove_pool(name)
            return
        above = parent.name.removeprefix(_POOL) if parent.name.startswith(_POOL) else ""
        self.shaping.set_pool(name, above, Bandwidth(node.reservation, node.limit or 0, node.shares))


# --- settings by key


@attrs.frozen
class Change:
    """Sets one key; equal to another that does the same."""

    do: Callable[[str, str, str], None]
    where: str
    """A port or a switch."""
    key: str = ""

    def at(self, key: str) -> Change:
        """For that key, with a table's name before it."""
        return attrs.evolve(self, key=key)

    def __call__(self, written: str) -> None:
        """Raises `ValueError`."""
        self.do(self.where, self.key, written)


def _edited(table: Table, path: str, key: str, written: str) -> Table:
    """A copy with another value for one key, which may be a table deeper. Raises `ValueError`."""
    try:
        done: Table = replaced(table, key.split("."), written, Place(path, key))
    except ResourceError as error:
        raise ValueError(error.reason) from None
    return done


def edited_nic(nic: NicTable, port: str, key: str, written: str) -> NicTable:
    """An adapter with another value for `bandwidth.limit` or the like. Raises `ValueError`."""
    table = _edited(nic, port, key, written)
    check = Check({}, Path(), programs=False)
    check_controls(check, table, ())
    _refuse(check)
    return table


def _refuse(check: Check) -> None:
    for keys, reason in check.found.items():
        place = ".".join(map(str, keys))
        raise ValueError(f"{place}: {reason}" if place else reason)


def settings_of(name: str, table: BandwidthTable | LinkTable | BurstLossTable, change: Change) -> Branch:
    """Every key of a table as a setting; `change` takes the key and what was written."""
    shown: dict[str, object] = {}
    for field in msgspec.structs.fields(type(table)):
        key, value = f"{name}.{field.encode_name}", getattr(table, field.name)
        bare = bare_type(field.type)
        if is_table(bare):
            shown[field.encode_name] = settings_of(key, bare() if value is None else value, change)
            continue
        if isinstance(value, Duration):
            value = duration_words(value)
        elif isinstance(value, float):
            value = f"{value:g}"
        elif isinstance(value, int):
            value = int(value)
        elif value is not None:
            value = str(value)
        shown[field.encode_name] = Setting(value, change.at(key), description(field.type) or _ELSEWHERE)
    return Branch(shown)


def switch_controls(table: SwitchTable, change: Change) -> Branch:
    """What a switch can be set to."""
    shown: dict[str, object] = {
        "bandwidth": Setting(int(table.bandwidth), change.at("bandwidth"), 'such as "8Mbit"; 0 is any'),
        "default_weight": Setting(table.default_weight, change.at("default_weight"), "1 to 10000"),
    }
    if table.kind is not SwitchKind.PRIVATE:
        shown["cable"] = settings_of("link", table.link or LinkTable(), change)
    return Branch(shown)


def port_controls(nic: NicTable, lane: Lane | None, change: Change) -> Mapping[str, Branch]:
    """What the port of an adapter can be set to, and what has happened there."""
    shown = {
        "bandwidth": settings_of("bandwidth", nic.bandwidth or BandwidthTable(), change),
        "cable": settings_of("link", nic.link or LinkTable(), change),
    }
    return shown if lane is None else {**shown, "shaped": Branch(lane.counters())}
