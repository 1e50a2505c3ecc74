"""Controls that change under working guests: what they get is other within a window of 100 ms."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from hypervisor.properties import Property
from partitions.host import Host, open_host
from partitions.root.resources import ResourceError
from partitions.topology import parse_topology
from partitions.topology_controls import PoolTable

BUSY = "async def main(guest):\n    await guest.cpu.run(1000)\n"
WINDOW = 0.1


def vm(name: str, rest: str = "") -> str:
    return f'[[vm]]\nname = "{name}"\nprogram = "busy.py"\nmemory = "2MiB"\n{rest}\n'


@asynccontextmanager
async def working(folder: Path, text: str) -> AsyncIterator[Host]:
    (folder / "busy.py").write_text(BUSY)
    text = "[host]\nlogical_processors = 1\nquantum_ms = 1\n" + text
    async with open_host(parse_topology(text, folder)) as host:
        await host.start_all()
        yield host


async def percent(host: Host) -> dict[str, int]:
    """What each got in the next window."""
    before = {name: one.run_time for name, one in host.items()}
    await trio.sleep(WINDOW)
    return {name: round((one.run_time - before[name]) / WINDOW / 1e5) for name, one in host.items()}


async def test_a_limit_comes_and_goes(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Given to a host without any control, it holds in the next window; raised, it is gone in the next."""
    async with working(tmp_path, vm("a")) as host:
        assert await percent(host) == {"a": 100}
        host.resources.set("vm/a", "cpu.limit", 30)
        assert await percent(host) == {"a": 30}
        host.resources.set("vm/a", "cpu.limit", 100)
        assert await percent(host) == {"a": 100}


async def test_weights_and_pools_change(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A weight, a pool's limit, a move into another pool and out of it, each from the next window on."""
    pool = '[[pool]]\nname = "p"\n'
    async with working(tmp_path, pool + vm("a") + vm("b") + vm("c", 'pool = "p"')) as host:
        resources = host.resources
        assert await percent(host) == {name: pytest.approx(33, abs=2) for name in "abc"}
        resources.set("vm/a", "cpu.weight", 300)
        assert await percent(host) == {
            "a": pytest.approx(60, abs=2),
            "b": pytest.approx(20, abs=2),
            "c": pytest.approx(20, abs=2),
        }
        resources.set("vm/b", "pool", "p")
        assert await percent(host) == {
            "a": pytest.approx(75, abs=2),
            "b": pytest.approx(12, abs=2),
            "c": pytest.approx(12, abs=2),
        }
        resources.set("pool/p", "cpu.limit", 10)
        assert await percent(host) == {
            "a": pytest.approx(90, abs=2),
            "b": pytest.approx(5, abs=2),
            "c": pytest.approx(5, abs=2),
        }
        resources.change("pool/p", {"cpu.limit": 0, "cpu.weight": 900})
        assert await percent(host) == {
            "a": pytest.approx(25, abs=2),
            "b": pytest.approx(38, abs=2),
            "c": pytest.approx(38, abs=2),
        }


async def test_a_reservation_holds_at_once(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """E5b: however heavy the other is; and one that cannot be granted changes nothing."""
    async with working(tmp_path, vm("a") + vm("b", "cpu = { weight = 10000 }")) as host:
        assert (await percent(host))["a"] <= 2
        host.resources.set("vm/a", "cpu.reserve", 40)
        assert await percent(host) == {"a": pytest.approx(40, abs=2), "b": pytest.approx(60, abs=2)}
        with pytest.raises(ResourceError, match="host 60 % of 100 % free -> needs 70 %"):
            host.resources.set("vm/b", "cpu.reserve", 70)
        assert await percent(host) == {"a": pytest.approx(40, abs=2), "b": pytest.approx(60, abs=2)}


async def test_a_pool_is_not_taken_from_under_a_partition(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """That a parent has put there by its property, while its VM is elsewhere: nothing is half done."""
    async with working(tmp_path, vm("a") + vm("b")) as host:
        host.resources.add_pool(PoolTable(name="prod"))
        partition, code = host["a"].partition_id or 0, Property.CPU_GROUP_ID
        host.winhv.set_partition_property(partition, code, 1)
        with pytest.raises(ResourceError, match=f"pool/prod: is the CPU group of partition {partition}: give it"):
            host.resources.remove_pool("prod")
        host.resources.set("pool/prod", "cpu.weight", 300)
        host.winhv.set_partition_property(partition, code, 0)
        host.resources.remove_pool("prod")
        assert not host.resources.pools


async def test_more_processors_than_there_are(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A reserve that Hyper-V resets counts as none, and is no reason for the hypervisor to refuse the VM."""
    async with working(
        tmp_path, vm("a", "processors = 4\ncpu = { reserve = 90 }") + vm("b", "cpu = { reserve = 90 }")
    ) as host:
        assert host.resources.node("cpu", "vm/a").used == 0
        assert (await percent(host))["b"] >= 88
