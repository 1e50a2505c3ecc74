"""Whatever is asked of resource control, in any order: what is granted is there, a refusal changes nothing (I11)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock

from hypervisor.properties import Property
from hypervisor.scheduler.admission import reservation_used
from partitions.host import Host, StartFailed, VmState, open_host
from partitions.root.resources import ResourceError
from partitions.topology_controls import PoolCpuTable, PoolMemoryTable, PoolTable
from partitions.topology_figures import cap_units, processor_units
from partitions.topology_units import Size

IDLE = "async def main(guest):\n    await guest.sleep(1e6)\n"
VMS = 6
STEPS = 50


def everything(host: Host) -> Any:
    """All that a refusal must leave as it is."""
    resources = host.resources
    nodes = [
        (kind, node.path, node.reservation, node.limit, node.shares, node.used, node.expandable, node.active)
        for kind, root in resources.roots.items()
        for node in root.walk()
    ]
    return sorted(map(repr, nodes)), dict(resources.pools), dict(resources.vms), dict(host.hypervisor.scheduler.groups)


def check(host: Host) -> None:
    """No level has granted more than it has, and the processor scheduler has the same pools with the same figures."""
    resources, scheduler = host.resources, host.hypervisor.scheduler
    for kind, root in resources.roots.items():
        for node in root.walk():
            assert node.used == reservation_used(node)
            assert node.expandable or node.used <= node.reservation
            assert node.limit is None or not node.inner or node.used <= node.limit
        assert root.used <= (resources.capacity[kind] or root.used)
    groups = {group.name: number for number, group in scheduler.groups.items()}
    assert set(groups) == set(resources.pools)
    for name, table in resources.pools.items():
        group, cpu = scheduler.groups[groups[name]], table.cpu or PoolCpuTable()
        assert group.parent == (groups[table.parent] if table.parent else 0)
        assert (group.shares, group.reserve) == (cpu.weight, processor_units(cpu.reserve))
        assert group.cap == (cap_units(cpu.limit) if cpu.limit else None)
    for name, vm in host.items():
        if vm.partition_id is not None:
            in_group = host.winhv.get_partition_property(vm.partition_id, Property.CPU_GROUP_ID)
            assert in_group == (groups[resources.vms[name].pool] if resources.vms[name].pool else 0)


async def step(host: Host, rng: random.Random, number: int) -> None:
    """Something or other. Raises `ResourceError` and `StartFailed`."""
    resources = host.resources
    pools = [*resources.pools, ""]
    pool, other, vm = rng.choice(pools), rng.choice(pools), f"v{rng.randrange(VMS)}"
    percent = rng.choice([0, 10, 25, 50, 100, 400])
    match rng.choice(["pool", "pool", "vm", "vm", "add", "remove", "move", "move vm", "power", "power"]):
        case "pool" if pool:
            key = rng.choice(["reserve", "limit", "weight"])
            resources.set(f"pool/{pool}", f"cpu.{key}", max(percent, key == "weight"))
        case "vm":
            resources.set(f"vm/{vm}", rng.choice(["cpu.reserve", "cpu.limit"]), percent)
        case "add":
            cpu = PoolCpuTable(reserve=percent % 100, limit=rng.choice([0, 0, 100]))
            memory = PoolMemoryTable(limit=Size(rng.choice([0, 2 << 20])))
            table = PoolTable(name=f"p{number}", parent=pool, expandable=rng.random() < 0.5, cpu=cpu, memory=memory)
            resources.add_pool(table)
        case "remove" if pool:
            resources.remove_pool(pool)
        case "move" if pool:
            resources.change(f"pool/{pool}", {"parent": other, "expandable": rng.random() < 0.5})
        case "move vm":
            resources.change(f"vm/{vm}", {"pool": pool, "cpu.reserve": percent})
        case "power" if host[vm].state is VmState.OFF:
            await host[vm].start()
        case "power":
            await host[vm].turn_off()


@pytest.mark.parametrize("seed", range(3))
async def test_i11_what_is_granted_is_there(tmp_path: Path, autojump_clock: MockClock, seed: int) -> None:
    """And when all VMs are off, nothing is reserved by any."""
    rng = random.Random(seed)
    (tmp_path / "idle.py").write_text(IDLE)
    table = '[[vm]]\nname = "v{}"\nprogram = "idle.py"\nmemory = "2MiB"\nprocessors = {}\n'
    vms = "".join(table.format(number, rng.choice([1, 1, 2])) for number in range(VMS))
    (tmp_path / "topology.toml").write_text(f"[host]\nlogical_processors = {rng.choice([1, 2, 4])}\n{vms}")
    refused = 0
    async with open_host(tmp_path) as host:
        await host.start_all()
        check(host)
        for number in range(STEPS):
            before = everything(host)
            try:
                await step(host, rng, number)
            except (ResourceError, StartFailed):
                refused += 1
                assert everything(host) == before
            check(host)
        host.turn_all_off()
        await host.wait_all()
        for root in host.resources.roots.values():
            assert not any(node.used for node in root.walk() if not node.inner)
    assert 0 < refused < STEPS // 2
