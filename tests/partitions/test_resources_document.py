"""docs/resources.md tells the truth: its tree is read, and divided as its table says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partitions.cli.set import POOL_KEYS, VM_KEYS
from partitions.root.host_resources import OnChange
from partitions.root.resource_edits import edit_pool, edit_vm
from partitions.root.resources import ResourceError, Resources
from partitions.topology import parse_topology
from partitions.topology_figures import Kind
from partitions.topology_schema import Topology, VmTable

DOCUMENT = (Path(__file__).parents[2] / "docs" / "resources.md").read_text()
LP = 65536


class AllOn:
    """A topology's VMs, all running."""

    def __init__(self, topology: Topology) -> None:
        self.vms = {vm.name: vm for vm in topology.vm}

    def tables(self) -> Mapping[str, VmTable]:
        return self.vms

    def settle(self, name: str, table: VmTable) -> None:
        self.vms[name] = table

    def running(self) -> Mapping[str, int]:
        return dict.fromkeys(self.vms, 0)


class NoScheduler:
    """Takes whatever it is told."""

    def set_group(self, *_: Any, **__: Any) -> None: ...


def resources_of(topology: Topology) -> Resources:
    listeners: dict[Kind, list[OnChange]] = {}
    scheduler: Any = NoScheduler()
    made = Resources(topology, AllOn(topology), scheduler, listeners)
    made.take_over()
    return made


def test_the_worked_tree(tmp_path: Path) -> None:
    """Section 2's tree through tables, trees and division: each line of the document's table, in percent."""
    (tmp_path / "busy.py").write_text("async def main(guest):\n    pass\n")
    resources = resources_of(parse_topology(DOCUMENT.split("```toml\n")[1].split("```")[0], tmp_path))
    resources.node("cpu", "vm/b1").demand = LP // 2
    rows = re.findall(r"^\| (?:as above|`partita set pool/B cpu.limit=100`) \| (.*) \|$", DOCUMENT, re.MULTILINE)
    for row in rows:
        entitled = resources.entitled("cpu")
        nodes = ("host", "pool/A", "vm/a1", "vm/a2", "pool/B", "vm/b1", "vm/b2")
        found = [entitled[resources.node("cpu", path)][0] for path in nodes]
        assert [units * 100 / LP for units in found] == [int(cell) for cell in row.split(" | ")]
        resources.set("pool/B", "cpu.limit", 100)
    assert len(rows) == 2


def test_what_is_offered_can_be_set(tmp_path: Path) -> None:
    """Each key that `partita set` completes is one of a VM's, or of a pool's, by its own name."""
    (tmp_path / "busy.py").write_text("async def main(guest):\n    pass\n")
    (tmp_path / "d.img").write_bytes(bytes(4096))
    dynamic = '[[vm]]\nname = "a"\nprogram = "busy.py"\n[vm.dynamic_memory]\n[[vm.disk]]\npath = "d.img"\n[[vm.nic]]\n'
    topology = parse_topology(f'{dynamic}[[pool]]\nname = "p"\n', tmp_path)
    for keys, edit in (
        (POOL_KEYS, lambda key, value: edit_pool(topology.pool[0], key, value)),
        (VM_KEYS, lambda key, value: edit_vm(topology.vm[0], key, value, on=True, resizable=True)),
    ):
        for key in keys:
            taken = 0
            for value in ("1", "4MiB", "host", "true", "batch"):
                try:
                    edit(key, value)
                    taken += 1
                except ResourceError:
                    continue
            assert taken, key


def test_every_key_is_named() -> None:
    """Whoever looks for a control finds it."""
    for key in (
        "reserve",
        "limit",
        "weight",
        "expandable",
        "processors",
        "period_ms",
        "class",
        "disk_iops",
        "bandwidth",
    ):
        assert f"`{key}" in DOCUMENT, key
