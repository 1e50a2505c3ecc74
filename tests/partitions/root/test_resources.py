"""Resource control of a host: what is set aside for whom, what is refused, and what changes while all of it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from hypervisor.backend.task import TaskBackend
from hypervisor.hypervisor import Hypervisor
from hypervisor.scheduler.tree import Node, ResourceError
from partitions.host import Host, StartFailed, open_host
from partitions.topology import parse_topology
from partitions.topology_controls import PoolCpuTable, PoolTable
from partitions.topology_figures import KINDS
from partitions.topology_schema import CpuTable, DiskTable, IopsTable, Size, Topology, VmTable
from tests.doubles.root import idle

LP = 65536
POOLS = """
[host]
logical_processors = 4
memory = "1GiB"
disk_iops = 1000
[[pool]]
name = "mom"
expandable = false
cpu = { reserve = 300, limit = 350 }
disk = { reserve = 500, weight = 200 }
[[pool]]
name = "kid"
parent = "mom"
cpu = { reserve = 100 }
[[pool]]
name = "other"
"""


def vm(name: str, rest: str = "") -> str:
    return f'[[vm]]\nname = "{name}"\nprogram = "idle"\nmemory = "2MiB"\n{rest}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "idle.py").write_text("async def main(guest):\n    pass\n")
    return tmp_path


def read(folder: Path, text: str) -> Topology:
    return parse_topology(text.replace('"idle"', '"idle.py"'), folder)


@asynccontextmanager
async def opened(folder: Path, text: str) -> AsyncIterator[Host]:
    def backend(hypervisor: Hypervisor, table: VmTable) -> TaskBackend:
        return TaskBackend(hypervisor, lambda machines: idle(machines[0]))

    async with open_host(read(folder, text), backends=backend) as host:
        yield host


def used(host: Host) -> dict[str, dict[str, tuple[object, ...]]]:
    """All figures of all trees."""
    return {kind: {node.path: _figures(node) for node in host.resources.roots[kind].walk()} for kind in KINDS}


def _figures(node: Node) -> tuple[object, ...]:
    return node.reservation, node.limit, node.shares, node.expandable, node.active, node.used


async def test_nothing_is_made_where_nothing_is_asked_for(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """A host without any control has no trees; made later, they know who runs, with its memory."""
    async with opened(folder, vm("a") + vm("b")) as host:
        await host["a"].start()
        assert host.resource_control.made is None
        root = host.resources.roots["memory"]
        assert root.used == 2 << 20
        await host["a"].turn_off()
        assert root.used == 0


async def test_a_vm_that_is_defined_later(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """Its table is not checked when it is defined, but counts from its start, also on a host without any control."""
    async with opened(folder, vm("a")) as host:
        await host["a"].start()
        plain = host.topology.vm[0]
        host.define(msgspec.structs.replace(plain, name="b", cpu=CpuTable(limit=50)))
        await host["b"].start()
        assert host.resources.node("cpu", "vm/b").limit == LP // 2
        assert host.resources.roots["memory"].used == 4 << 20
        host.define(msgspec.structs.replace(plain, name="c", pool="none"))
        with pytest.raises(StartFailed, match=r'vm/c.pool: no \[\[pool\]\] is called "none"'):
            await host["c"].start()
        host.destroy("c")
        assert "c" not in host.resources.vms


async def test_the_sixth_vm_does_not_start(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """E4: VMs of four processors with a reserve of 20 % on four: five start, the sixth does not, and says why."""
    four = "processors = 4\ncpu = { reserve = 20 }"
    text = "[host]\nlogical_processors = 4\n" + "".join(vm(f"v{number}", four) for number in range(5))
    async with opened(folder, text) as host:
        await host.start_all()
        sixth = msgspec.structs.replace(host.topology.vm[0], name="v5")
        host.define(sixth)
        assert host.resources.node("cpu", "vm/v5").reservation == 4 * (LP * 20 // 100)
        before = used(host)
        with pytest.raises(StartFailed) as refused:
            await host["v5"].start()
        assert "cpu.reserve cannot be granted: host 0 % of 400 % free -> needs 80 %" in str(refused.value)
        assert host["v5"].partition_id is None
        assert used(host) == before
        await host["v0"].turn_off()
        await host["v5"].start()


async def test_a_refusal_names_the_way(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """E20: what the pool has not, its parent is asked for; the words have both, and nothing is kept of the attempt."""
    machines = [vm("m", 'pool = "mom"\nprocessors = 2\ncpu = { reserve = 75 }')]
    machines += [vm(name, 'pool = "kid"\ncpu = { reserve = 100 }') for name in ("k1", "k2")]
    async with opened(folder, POOLS + "".join(machines)) as host:
        await host["m"].start()
        await host["k1"].start()
        before = used(host)
        with pytest.raises(
            StartFailed, match=r"pool/kid 0 % of 100 % free -> pool/mom 50 % of 300 % free -> needs 100"
        ):
            await host["k2"].start()
        assert used(host) == before
        await host["m"].turn_off()
        await host["k2"].start()
        assert host.resources.roots["cpu"].used == 3 * LP


async def test_all_or_nothing(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """I11: a VM whose disk cannot be guaranteed has no processors set aside either; its end gives all of it back."""
    async with opened(folder, POOLS + vm("a", 'cpu = { reserve = 50 }\npool = "mom"')) as host:
        disk = DiskTable(path="d.img", size=Size(1 << 20), iops=IopsTable(reserve=400))
        host["a"]._managed.settings = msgspec.structs.replace(host.topology.vm[0], disk=[disk])
        host.resources.devices_changed("a", host["a"].settings)
        await host["a"].start()
        pool = host.resources.node("disk", "pool/mom")
        assert (pool.used, host.resources.node("cpu", "pool/mom").used) == (400, LP + LP // 2)
        await host["a"].turn_off()
        assert pool.used == 0
        host.resources.set("vm/a", "disk.0.iops.reserve", 501)
        before = used(host)
        with pytest.raises(StartFailed, match=r"disk 0 iops.reserve cannot be granted: pool/mom 500 IOPS of 500 IOPS"):
            await host["a"].start()
        assert used(host) == before
        assert (pool.used, host.resources.node("cpu", "pool/mom").used) == (0, LP), "the other pool in it has 100 %"


async def test_changes_are_the_topologys(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """A live change obeys the rules of the file; it is refused with key and reason, and then nothing has changed."""
    async with opened(folder, POOLS + vm("a", 'pool = "kid"\ncpu = { reserve = 50 }') + vm("b")) as host:
        await host.start_all()
        resources = host.resources
        before = used(host)
        for path, key, value, words in [
            ("vm/a", "cpu.limit", 40, "cpu.reserve: must not be above its limit of 40 %, is 50 %"),
            ("vm/a", "cpu.limits", 40, 'cpu.limits: "limits" is no control; did you mean "limit"?'),
            ("vm/a", "cpu", 40, "cpu: is a table; there are cpu.reserve, cpu.limit, cpu.weight"),
            ("vm/a", "cpu.weight", 0, "cpu.weight: must be at least 1, is 0"),
            ("vm/a", "cpu.limit", "much", 'cpu.limit: must be a number, is "much"'),
            ("vm/a", "cpu.limit", float("nan"), "cpu.limit: must be more than 0"),
            ("vm/a", "pool", "mum", 'pool: no [[pool]] is called "mum"; did you mean "mom"?'),
            ("vm/a", "name", "c", "name: cannot be changed while the host runs"),
            ("vm/a", "memory.minimum", "2MiB", "memory.minimum: it has no dynamic memory"),
            ("vm/a", "memory", 0, "memory: must be at least 1064 KiB for 1 processor, is 0 bytes"),
            ("vm/a", "memory", 4097, "memory: must be a multiple of 4096 bytes, is 4097"),
            ("vm/a", "disk.0.iops.limit", 5, "disk.0.iops.limit: there is no disk 0; there are: none"),
            ("vm/a", "disk.².iops.limit", 5, "there is no disk ²; there are: none"),
            ("vm/a", f"disk.{'9' * 5000}.limit", 5, "9; there are: none"),
            ("vm/z", "cpu.limit", 40, 'no VM is called "z"; there are: a, b'),
            ("pool/kids", "cpu.limit", 40, 'no pool is called "kids"; did you mean "kid"?'),
            ("pool/mom", "parent", "kid", "parent: pools must not contain themselves: mom in kid in mom"),
            ("pool/mom", "cpu.limit", 299, "cpu.reserve: must not be above its limit of 299 %, is 300 %"),
            ("pool/mom", "cpu.reserve", 99, "cpu.reserve: cannot be granted: pool/mom 0 % of 99 % free -> needs 100 %"),
            ("pool/kid", "cpu.reserve", 350, "pool/mom 300 % of 300 % free -> needs 350 %"),
            ("pool/other", "processors", "4", "processors: the host has the logical processors 0 to 3, and no 4"),
            ("pool/other", "cpu.reserve", 101, "cpu.reserve: cannot be granted: host 100 % of 400 % free -> needs 101"),
            ("pool/other", "disk.limit", -1, "disk.limit: must be at least 0, is -1"),
        ]:
            with pytest.raises(ResourceError) as refused:
                resources.set(path, key, value)
            assert words in str(refused.value), (path, key, value)
            assert used(host) == before
        with pytest.raises(ResourceError):
            resources.change("vm/a", {"cpu.weight": 7, "cpu.reserve": 101})
        assert used(host) == before
        assert resources.vms["a"].cpu is not None
        assert resources.vms["a"].cpu.weight == 100


async def test_a_move_is_whole_or_none(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """I11: where a pool has processors for a VM and no memory, the VM stays where it is for all resources."""
    narrow = '[[pool]]\nname = "narrow"\nmemory = { limit = "1MiB" }\n'
    disk = 'cpu = { reserve = 50 }\n[[vm.disk]]\npath = "d.img"\nsize = "1MiB"\niops = { reserve = 100 }'
    async with opened(folder, POOLS + narrow + vm("a", disk)) as host:
        await host["a"].start()
        before = used(host)
        with pytest.raises(ResourceError, match="cannot be granted: pool/narrow 1 MiB of its limit of 1 MiB free"):
            host.resources.change("vm/a", {"pool": "narrow", "cpu.weight": 300})
        assert used(host) == before
        with pytest.raises(ResourceError, match=r"iops.reserve: cannot be granted: host 500 IOPS of 1000 IOPS free"):
            host.resources.change("vm/a", {"cpu.reserve": 60, "disk.0.iops.reserve": 501})
        assert used(host) == before
        host.resources.set("vm/a/disk/0", "limit", 300)
        assert host.resources.node("disk", "vm/a/disk/0").limit == 300
        with pytest.raises(ResourceError, match=r"memory.reserve: cannot be granted"):
            host.resources.change("pool/other", {"cpu.reserve": 50, "memory.reserve": "1023MiB"})
        assert host.resources.node("cpu", "pool/other").reservation == 0


async def test_changes_are_told_and_last(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """Who enforces a resource hears of the node; the next start of the VM has the new figures."""
    heard: list[tuple[str, str]] = []
    async with opened(folder, POOLS + vm("a", "cpu = { weight = 200 }")) as host:
        for kind in KINDS:
            host.resources.on_change(kind, lambda node, kind=kind: heard.append((kind, node.path)))  # type: ignore[misc]
        await host["a"].start()
        heard.clear()
        host.resources.set("vm/a", "cpu.limit", "50%")
        assert heard == [("cpu", "vm/a")]
        heard.clear()
        host.resources.change("a", {"pool": "kid", "cpu.weight": 300})
        assert set(heard) == {(kind, "pool/mom/pool/kid/vm/a") for kind in KINDS}
        await host["a"].turn_off()
        table = host["a"].settings
        assert table.cpu is not None
        assert (table.pool, table.cpu.limit, table.cpu.weight) == ("kid", 50.0, 300)
        await host["a"].start()
        node = host.resources.node("cpu", "vm/a")
        assert (node.path, node.limit, node.shares) == ("pool/mom/pool/kid/vm/a", LP // 2, 300)
        heard.clear()
        host.resources.set("pool/kid", "cpu.limit", 150)
        assert heard == [("cpu", "pool/mom/pool/kid")]


async def test_pools_come_and_go(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """A pool is added, filled and moved while VMs run; it is removed only when nothing is in it any more."""
    from partitions.topology_controls import PoolCpuTable, PoolTable

    async with opened(folder, POOLS + vm("a", 'pool = "kid"\ncpu = { reserve = 80 }')) as host:
        resources = host.resources
        await host["a"].start()
        with pytest.raises(ResourceError, match=r"pool/new.cpu.reserve: cannot be granted: host 100 % of 400 % free"):
            resources.add_pool(PoolTable(name="new", cpu=PoolCpuTable(reserve=150)))
        resources.add_pool(PoolTable(name="new", cpu=PoolCpuTable(reserve=100)))
        with pytest.raises(ResourceError, match="there is a pool of that name already"):
            resources.add_pool(PoolTable(name="new"))
        with pytest.raises(ResourceError, match="pool/kid: still has vm/a in it: move them first"):
            resources.remove_pool("kid")
        with pytest.raises(ResourceError, match="pool/mom: still has pool/kid in it"):
            resources.remove_pool("mom")
        resources.set("vm/a", "pool", "new")
        assert resources.node("cpu", "pool/kid").used == 0
        assert resources.node("cpu", "pool/new").used == LP * 80 // 100
        resources.set("pool/kid", "cpu.reserve", 250)
        with pytest.raises(ResourceError, match="cannot be granted: pool/mom 50 % of 300 % free -> needs 100 %"):
            resources.move_pool("new", "mom")
        resources.set("pool/mom", "cpu.limit", 400)
        resources.set("pool/mom", "expandable", "true")
        resources.move_pool("new", "mom")
        assert resources.node("cpu", "vm/a").path == "pool/mom/pool/new/vm/a"
        resources.remove_pool("kid")
        assert sorted(resources.pools) == ["mom", "new", "other"]
        resources.set("pool/new", "parent", "host")
        resources.remove_pool("mom")
        await host["a"].turn_off()
        resources.set("vm/a", "pool", "host")
        resources.remove_pool("new")
        assert resources.roots["cpu"].used == 0


async def test_a_pool_with_processors_of_its_own(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """They are taken of the host's, all of them; what can be reserved in it is what its limit leaves."""
    text = "[host]\nlogical_processors = 4\n" + '[[pool]]\nname = "own"\nprocessors = "0-1"\ncpu = { limit = 50 }\n'
    text += vm("in", 'pool = "own"\ncpu = { reserve = 40 }') + vm("out", "processors = 2\ncpu = { reserve = 100 }")
    async with opened(folder, text) as host:
        await host.start_all()
        resources = host.resources
        root, own = resources.roots["cpu"], resources.node("cpu", "pool/own")
        assert (root.used, own.reservation, own.limit, own.claim) == (4 * LP, LP // 2, LP // 2, 2 * LP)
        before = used(host)
        for path, key, value, words in (
            ("vm/in", "cpu.reserve", 60, "own 50 % of its limit of 50 % free -> needs 60 %"),
            ("pool/own", "cpu.limit", 30, "own 0 % of its limit of 30 % free -> needs 40 %"),
            ("pool/own", "processors", "0-2", "own.processors: cannot be granted: host 200 % of 400 % free"),
        ):
            with pytest.raises(ResourceError, match=words):
                resources.set(path, key, value)
            assert used(host) == before
            assert own.dedicated == 2 * LP
        with pytest.raises(ResourceError, match=r"pool/more.processors: cannot be granted"):
            resources.add_pool(PoolTable(name="more", processors="2"))
        with pytest.raises(ResourceError, match=r"memory.reserve: cannot be granted"):
            resources.change("pool/own", {"processors": "1", "memory.reserve": "900TiB"})
        assert (used(host), own.dedicated) == (before, 2 * LP), "and what was granted first is taken back"
        resources.set("pool/own", "cpu.limit", 0)
        assert (own.reservation, own.claim, root.used) == (2 * LP, 2 * LP, 4 * LP)
        resources.set("pool/own", "processors", "1")
        assert (own.reservation, own.claim, root.used) == (LP, LP, 3 * LP)
        with pytest.raises(ResourceError, match=r"host 100 % of 400 % free -> needs 200 %"):
            resources.add_pool(PoolTable(name="more", processors="2-3", cpu=PoolCpuTable(limit=1)))
        resources.set("pool/own", "processors", "")
        assert (own.reservation, own.claim, own.dedicated) == (0, LP * 40 // 100, 0)
        resources.add_pool(PoolTable(name="more", processors="2"))
        assert root.used == 3 * LP + LP * 40 // 100
        host.turn_all_off()
        await host.wait_all()
        assert root.used == LP


async def test_the_processor_scheduler_is_told(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """Groups and partitions have the figures of pools and VMs, before the guest's first step and after each change."""
    rest = 'pool = "kid"\nprocessors = 2\n'
    rest += "cpu = { reserve = 25, limit = 50, weight = 200, period_ms = 20 }"
    async with opened(folder, POOLS + vm("a", rest)) as host:
        scheduler: Any = host.hypervisor.scheduler
        names = {group.name: number for number, group in scheduler.groups.items()}
        mother, child = scheduler.groups[names["mom"]], scheduler.groups[names["kid"]]
        assert (mother.parent, mother.cap, mother.reserve) == (0, 350 * LP // 100, 3 * LP)
        assert (child.parent, child.cap, child.reserve) == (names["mom"], None, LP)
        await host["a"].start()
        settings = scheduler.settings(host.hypervisor.by_id(host["a"].partition_id or 0))
        assert (settings.group, settings.shares, settings.cap) == (names["kid"], 200, LP // 2)
        assert (settings.reserve, settings.period, settings.batch) == (LP // 4, 20_000_000, False)
        host.resources.change("vm/a", {"cpu.limit": 75, "cpu.pool": "other"})
        settings = scheduler.settings(host.hypervisor.by_id(host["a"].partition_id or 0))
        assert (settings.group, settings.cap) == (names["other"], LP * 3 // 4)
        host.resources.change("vm/a", {"cpu.reserve": 0, "cpu.class": "batch"})
        assert scheduler.settings(host.hypervisor.by_id(host["a"].partition_id or 0)).batch
        assert host.resources.node("cpu", "vm/a").batch
        host.resources.set("pool/other", "cpu.limit", 120)
        assert scheduler.groups[names["other"]].cap == LP * 120 // 100
        host.resources.set("vm/a", "cpu.pool", "")
        host.resources.remove_pool("other")
        assert names["other"] not in scheduler.groups
