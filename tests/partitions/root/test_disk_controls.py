"""Disks of a host's VMs under control: from the topology, live, in pools, through saves, resets and hot plugging."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from hypervisor.scheduler.tree import ResourceError
from partitions.host import DiskError, Host, open_host
from partitions.inspect.answers import InspectError
from partitions.resources.sampler import Sampler
from partitions.root.disk_controls import DiskControls
from partitions.topology import parse_topology
from partitions.topology_schema import DiskTable, IopsTable, Size

PROGRAM = """
async def main(guest):
    disk = await guest.disk(0)
    while True:
        await disk.read_many([(0, 1)] * guest.args.get("depth", 8))

async def resume(guest):
    await main(guest)
"""
IDLE = "async def main(guest):\n    await guest.sleep(1000)\n"
DEEP = "args = { depth = 128 }"
DISK = "vm/{}/devices/storage/disks/{}"


def vm(name: str, iops: str = "", rest: str = "", program: str = "reader.py") -> str:
    controls = f"iops = {{ {iops} }}" if iops else ""
    return f"""
[[vm]]
name = "{name}"
program = "{program}"
memory = "2MiB"
{rest}
[[vm.disk]]
path = "{name}.img"
size = "64KiB"
{controls}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "reader.py").write_text(PROGRAM)
    (tmp_path / "idle.py").write_text(IDLE)
    return tmp_path


@asynccontextmanager
async def running(folder: Path, text: str) -> AsyncIterator[Host]:
    async with open_host(parse_topology(text, folder)) as host:
        await host.start_all()
        await trio.sleep(0.2003)
        yield host


def controls(host: Host) -> DiskControls:
    found = host.resource_control.disks
    assert found is not None
    return found


async def requests(host: Host, names: str) -> list[int]:
    return [(await host.inspect(DISK.format(name, 0)))["iops"]["requests"] for name in names]


async def gained(host: Host, names: str, seconds: float) -> list[int]:
    before = await requests(host, names)
    await trio.sleep(seconds)
    return [after - old for after, old in zip(await requests(host, names), before, strict=True)]


async def test_a_limit_in_the_topology(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """Holds from the VM's first request on; neither a reset nor another start forgets it."""
    async with running(folder, vm("a", "limit = 200")) as host:
        assert await gained(host, "a", 1) == [200]
        await host["a"].reset()
        await trio.sleep(0.2003)
        assert await gained(host, "a", 0.5) == [100]
        await host["a"].turn_off()
        await host["a"].start()
        await trio.sleep(0.2003)
        assert await gained(host, "a", 0.5) == [100]


async def test_without_control_nothing_is_made(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """Neither an arbiter nor a gate; the leaves are there, and setting one makes all that."""
    async with running(folder, vm("a", program="idle.py") + vm("b", program="idle.py")) as host:
        disk = DISK.format("a", 0)
        assert controls(host).qos is None
        seen = await host.inspect(disk)
        assert [seen[f"iops_{key}"] for key in ("limit", "reserve", "weight")] == [0, 0, 100]
        assert "iops" not in seen
        assert host.update(f"{disk}/iops_limit", "300") == "300"
        assert (await host.inspect(disk))["iops"]["status"] == "Ok"
        assert "iops" not in await host.inspect(DISK.format("b", 0))
        settings = host.vmms.find("a").settings.disk[0].iops
        assert settings is not None
        assert settings.limit == 300, "it is there at the next start, too"


async def test_a_leaf_that_is_set_holds_at_once(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """M6, by hand: `partita inspect -u 300 .../iops_limit` while the guest reads."""
    async with running(folder, vm("a", "limit = 1000")) as host:
        leaf = DISK.format("a", 0) + "/iops_limit"
        host.update(leaf, "300")
        assert await gained(host, "a", 1) == [300]
        assert host.resources.node("disk", "vm/a/disk/0").limit == 300
        for wrong in ("-1", "1.5", "many", ""):
            with pytest.raises(InspectError, match="a limit is a whole number from 0 to"):
                host.update(leaf, wrong)
        host.update(DISK.format("a", 0) + "/iops_reserve", "200")
        with pytest.raises(InspectError, match="must not be above its limit of 100"):
            host.update(leaf, "100")
        with pytest.raises(InspectError, match="a weight is a whole number from 1 to 10000"):
            host.update(DISK.format("a", 0) + "/iops_weight", "0")
        assert await gained(host, "a", 0.5) == [150], "what was refused has changed nothing"


async def test_resources_change_a_disk(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """The same by the tree: `partita set a disk.0.iops.limit=100`."""
    async with running(folder, vm("a", "limit = 1000")) as host:
        host.resources.set("vm/a", "disk.0.iops.limit", 100)
        assert await gained(host, "a", 1) == [100]
        assert await host.inspect(DISK.format("a", 0) + "/iops_limit") == 100


async def test_shares_of_the_hosts_storage(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """With a capacity, 1:3 by weight; what each is entitled to is in the figures."""
    text = "[host]\ndisk_iops = 800\n" + vm("a", rest=DEEP) + vm("b", "weight = 300", DEEP)
    async with running(folder, text) as host:
        assert await gained(host, "ab", 1) == pytest.approx([200, 600], abs=4)
        figures = controls(host).figures()
        assert (figures["vm/a"].entitled, figures["vm/b"].entitled) == (200, 600)
        assert figures["host"].limit == 800


async def test_a_sample_has_what_was_due_in_its_window(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """And whether anybody went short, in a window at whose end nobody wants anything any more."""
    text = "[host]\ndisk_iops = 800\n" + vm("a", rest=DEEP) + vm("b", "weight = 300", DEEP)
    async with open_host(parse_topology(text, folder)) as host:
        sampler = Sampler(host)
        with sampler:
            await host.start_all()
            await trio.sleep(2)
            await host["a"].turn_off()
            await host["b"].turn_off()
            sample = sampler.sample()
            await trio.sleep(2)
            after = sampler.sample()
        disks = [node.disk for path in ("vm/a", "vm/b", "host") if (node := sample.node(path)) is not None]
        assert [disk and disk.entitled for disk in disks] == pytest.approx([200, 600, 800], rel=0.06)
        assert disks[2] is not None
        assert disks[2].contended
        host_after = after.node("host")
        assert host_after is not None
        assert host_after.disk is None or not host_after.disk.contended


async def test_a_capacity_alone_is_shared(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """Who says only what the storage can do has it divided evenly; one that comes later gets its part."""
    text = "[host]\ndisk_iops = 600\n" + vm("a", rest=DEEP) + vm("b", rest=DEEP) + vm("c", rest=DEEP)
    async with open_host(parse_topology(text, folder)) as host:
        await host["a"].start()
        await host["b"].start()
        await trio.sleep(0.2003)
        assert await gained(host, "ab", 0.5) == pytest.approx([150, 150], abs=3)
        await host["c"].start()
        await trio.sleep(0.3)
        assert await gained(host, "abc", 0.5) == pytest.approx([100, 100, 100], abs=3)
        await host["a"].turn_off()
        await trio.sleep(0.3)
        assert await gained(host, "bc", 0.5) == pytest.approx([150, 150], abs=3)


async def test_a_pool_and_a_move(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """A pool's limit for both of its VMs; changed live, and left by a VM that is moved out of it."""
    text = '[[pool]]\nname = "low"\ndisk = { limit = 200 }\n'
    text += vm("a", rest='pool = "low"') + vm("b", rest='pool = "low"') + vm("c", "limit = 300")
    async with running(folder, text) as host:
        assert await gained(host, "abc", 1) == pytest.approx([100, 100, 300], abs=2)
        host.resources.set("pool/low", "disk.limit", 400)
        await trio.sleep(0.1)
        assert await gained(host, "abc", 1) == pytest.approx([200, 200, 300], abs=2)
        host.resources.set("vm/b", "disk.0.iops.limit", 500)
        host.resources.set("vm/b", "pool", "")
        await trio.sleep(0.1)
        assert await gained(host, "abc", 1) == pytest.approx([400, 500, 300], abs=2)
        with pytest.raises(ResourceError):
            host.resources.set("pool/low", "disk.limit", -1)


async def test_a_vm_that_is_saved_while_its_requests_wait(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """Its driver sends them again after the restore, and the limit holds there."""
    async with running(folder, vm("a", "limit = 5")) as host:
        assert (await host.inspect(DISK.format("a", 0)))["iops"]["waiting"] > 4
        before = trio.current_time()
        await host["a"].save(folder / "a.saved")
        assert trio.current_time() - before < 1
        await host["a"].start()
        await trio.sleep(1.05)
        assert await gained(host, "a", 2) == [10]


async def test_disks_that_come_and_go(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """One that is added while the VM runs is limited as its table says; one that is removed waits for nothing."""
    async with running(folder, vm("a", "limit = 1")) as host:
        lun = await host["a"].add_disk("more.img", size="64KiB", iops={"limit": 7})
        leaf = DISK.format("a", lun) + "/iops_limit"
        assert await host.inspect(leaf) == 7
        host.resources.set("vm/a", f"disk.{lun}.iops.limit", 9)
        assert await host.inspect(leaf) == 9
        with pytest.raises(DiskError, match=r"iops\.reserve: must not be above its limit of 1 IOPS"):
            await host["a"].add_disk("wrong.img", size="64KiB", iops={"limit": 1, "reserve": 2})
        assert not (folder / "wrong.img").exists()
        await host["a"].remove_disk(lun)
        with pytest.raises(ResourceError, match="there is no disk"):
            host.resources.set("vm/a", f"disk.{lun}.iops.limit", 9)
        before = trio.current_time()
        await host["a"].remove_disk(0)
        assert trio.current_time() - before < 0.5
        qos = controls(host).qos
        assert qos is not None
        assert qos.core.root.waiting == 0


async def test_a_controller_that_is_plugged_in(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """Its disks come with controls of their own, and their leaves can be set, though the settings do not have them."""
    async with running(folder, vm("a", program="idle.py")) as host:
        table = DiskTable(path="more.img", size=Size(64 << 10), iops=IopsTable(limit=7))
        await host["a"].add_device("extra", table)
        leaf = "vm/a/devices/extra/disks/0/iops_limit"
        assert await host.inspect(leaf) == 7
        assert host.update(leaf, "9") == "9"
        assert await host.inspect(leaf) == 9
        await host["a"].remove_device("extra")
        assert host.update(DISK.format("a", 0) + "/iops_limit", "3") == "3"
