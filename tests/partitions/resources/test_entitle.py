"""What was due in a window: the division of the tree, a demand at a time, and figures that add up."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from hypervisor.scheduler.divvy import entitle
from hypervisor.scheduler.tree import Node
from partitions.host import open_host
from partitions.resources.entitle import Entitled, LeafClaim, PoolClaim, entitled
from partitions.resources.sample import Sample
from partitions.resources.sampler import Sampler
from partitions.topology import parse_topology


def divided(capacity: int, pools: dict[str, PoolClaim], leaves: list[LeafClaim]) -> Entitled:
    return next(step for step in entitled(capacity, pools, leaves) if step is not None)


def leaf(owner: str, demand: int, *, pool: str = "", shares: int = 100, **more: int) -> LeafClaim:
    limit, reservation = more.get("limit"), more.get("reservation", 0)
    return LeafClaim(owner, pool, reservation, limit, shares, demand, batch=bool(more.get("batch")))


@settings(max_examples=60)
@given(
    st.integers(0, 1000),
    st.lists(
        st.tuples(
            st.sampled_from(["", "a", "b"]), st.integers(0, 5), st.sampled_from([1, 100, 700]), st.integers(0, 300)
        ),
        max_size=12,
    ),
)
def test_the_same_as_the_tree_itself(capacity: int, wanted: list[tuple[str, int, int, int]]) -> None:
    """Those that claim alike are divided as one, and those without demand not at all: the amounts are the same."""
    pools = {"a": PoolClaim("", 50, 400, 200), "b": PoolClaim("a", 0, None, 100)}
    root = Node.host(capacity)
    places = {"": root}
    for name, claim in pools.items():
        places[name] = places[claim.parent].add(
            f"pool/{name}", inner=True, reservation=claim.reservation, limit=claim.limit, shares=claim.shares
        )
    leaves, nodes = [], []
    for number, (pool, reservation, shares, demand) in enumerate(wanted):
        leaves.append(leaf(f"vm/{number}", demand, pool=pool, shares=shares, reservation=reservation, limit=200))
        nodes.append(
            places[pool].add(
                f"vm/{number}", reservation=reservation, limit=200, shares=shares, demand=demand, active=True
            )
        )
    due = entitle(root, capacity)
    found = divided(capacity, pools, leaves)
    assert [found.amounts[f"vm/{number}"] for number in range(len(wanted))] == [due[node] for node in nodes]
    assert found.amounts["pool/a"] == due[places["a"]]
    assert found.amounts["host"] == due[root]


def test_contention_is_where_it_is() -> None:
    """A pool at its limit is contended within; the host around it is not."""
    leaves = [leaf("vm/x", 80, pool="small"), leaf("vm/y", 80, pool="small"), leaf("vm/z", 100)]
    found = divided(400, {"small": PoolClaim("", 0, 100, 100)}, leaves)
    assert found.contended == {"host": False, "pool/small": True}
    assert found.amounts == {"host": 200, "pool/small": 100, "vm/x": 50, "vm/y": 50, "vm/z": 100}


def test_batch_gets_what_is_left() -> None:
    """By its own weights, and nothing where nothing is left."""
    leaves = [leaf("vm/n", 60), leaf("vm/b", 100, batch=1), leaf("vm/c", 100, shares=300, batch=1)]
    found = divided(100, {}, leaves)
    assert (found.amounts["vm/n"], found.amounts["vm/b"], found.amounts["vm/c"]) == (60, 10, 30)
    assert found.amounts["host"] == 100
    assert found.contended["host"]
    assert divided(60, {}, leaves).amounts["vm/b"] == Fraction(0)


def test_batch_counts_in_its_pools() -> None:
    """What is left over is no more than the pools around it may have, and theirs, too."""
    pools = {"outer": PoolClaim("", 0, 50, 100), "inner": PoolClaim("outer", 0, None, 100)}
    found = divided(100, pools, [leaf("vm/n", 20, pool="inner"), leaf("vm/b", 100, pool="inner", batch=1)])
    assert found.amounts == {"host": 50, "pool/outer": 50, "pool/inner": 50, "vm/n": 20, "vm/b": 30}


def test_a_pool_with_processors_of_its_own_shares_with_nobody() -> None:
    """Neither what it leaves idle nor what its limit keeps from it is due to others, and batch gets that of its own."""
    pools = {"own": PoolClaim("", 150, 150, 100, own=200), "kid": PoolClaim("own", 0, 120, 300)}
    others = [leaf("vm/b", 300, shares=300), leaf("vm/c", 300)]
    inside = [leaf("vm/a", 30, pool="own"), leaf("vm/k", 200, pool="kid")]
    found = divided(400, pools, [*others, *inside[:1]]).amounts
    assert found == {"host": 230, "pool/own": 30, "pool/kid": 0, "vm/a": 30, "vm/b": 150, "vm/c": 50}
    divisions = divided(400, pools, [*others, *inside])
    mine = {"pool/own": 150, "pool/kid": 120, "vm/k": 120, "vm/a": 30}
    assert divisions.amounts == mine | {"host": 350, "vm/b": 150, "vm/c": 50}
    assert divisions.contended == {"host": True, "pool/own": False, "pool/kid": True}
    batch = [leaf("vm/x", 100, pool="own", batch=1), leaf("vm/y", 100, pool="own", shares=300, batch=1)]
    found = divided(400, pools, [leaf("vm/b", 300), inside[0], *batch, leaf("vm/z", 300, batch=1)]).amounts
    assert [found[f"vm/{name}"] for name in "abxyz"] == [30, 200, 30, 90, 0]
    assert (found["host"], found["pool/own"]) == (350, 150)


TOPOLOGY = """
[host]
logical_processors = 1
[[pool]]
name = "prod"
cpu = { weight = 300, limit = 90 }
[[vm]]
name = "a"
program = "busy.py"
pool = "prod"
memory = "4MiB"
[[vm]]
name = "b"
program = "busy.py"
pool = "prod"
processors = 2
memory = "4MiB"
cpu = { weight = 200 }
[[vm]]
name = "c"
program = "busy.py"
memory = "4MiB"
cpu = { limit = 50, reserve = 10, period_ms = 100 }
"""


async def sampled(tmp_path: Path) -> list[Sample]:
    (tmp_path / "busy.py").write_text("async def main(guest):\n    await guest.work(0.3)\n")
    async with open_host(parse_topology(TOPOLOGY, tmp_path)) as host:
        with Sampler(host) as sampler:
            await host.start_all()
            await host.wait_all()
            return [sampler.sample(), sampler.between(sampler.first, sampler.read(), whole=True)]


async def test_figures_of_a_run_add_up(tmp_path: Path, autojump_clock: MockClock) -> None:
    """run + ready + capped + halted is the time that a VM was on, for each of its processors; pools are their VMs'
    sums, and the logical processor's time is all there. VMs that have ended count.
    """
    for sample in await sampled(tmp_path):
        assert [(node.path, node.depth) for node in sample.nodes] == [
            *(("host", 0), ("vm/c", 1), ("pool/prod", 1), ("vm/a", 2), ("vm/b", 2)),
        ]
        for node in sample.nodes:
            cpu = node.cpu
            if node.kind == "vm":
                assert cpu.run + cpu.ready + cpu.capped + cpu.halted == cpu.vps * cpu.elapsed
                assert cpu.run == 300_000_000
        host, c, prod, a, b = (node.cpu for node in sample.nodes)
        for name in ("run", "ready", "capped", "halted", "dispatches"):
            assert getattr(prod, name) == getattr(a, name) + getattr(b, name)
            assert getattr(host, name) == getattr(prod, name) + getattr(c, name)
        assert (c.limit, c.reserve, b.weight, prod.limit, prod.weight, b.vps) == (50.0, 10.0, 200, 90.0, 300, 2)
        (lp,) = sample.lps
        assert lp.run == host.run
        assert lp.run + lp.idle == sample.window
        assert sample.contended
        assert 0 < sample.contended_for <= sample.window


async def test_many_vms_are_sampled_in_turns(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Nobody waits for a sample of a hundred VMs: it stops often, and comes to the same."""
    vms = "".join(f'[[vm]]\nname = "v{number}"\nprogram = "busy.py"\nmemory = "4MiB"\n' for number in range(100))
    (tmp_path / "busy.py").write_text("async def main(guest):\n    await guest.work(0.3)\n")
    async with open_host(parse_topology(f"[host]\nlogical_processors = 2\n{vms}", tmp_path)) as host:
        with Sampler(host) as sampler:
            before = sampler.read()
            steps = list(sampler._between(before, before))
            assert len(steps) > 100 // 16
            assert [step for step in steps[:-1] if step is not None] == []
            assert await sampler.sample_in_turns() == sampler.between(before, sampler.read())


async def test_a_sample_that_is_given_up_loses_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Whoever looks after it has its window, too: a run that ended while a sample was made had lost that time."""
    vms = "".join(f'[[vm]]\nname = "v{number}"\nprogram = "busy.py"\nmemory = "4MiB"\n' for number in range(20))
    (tmp_path / "busy.py").write_text("async def main(guest):\n    await guest.work(1000)\n")

    async def give_up(scope: trio.CancelScope, turns: int) -> None:
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    given_up = 0
    async with open_host(parse_topology(f"[host]\nlogical_processors = 2\n{vms}", tmp_path)) as host:
        with Sampler(host) as sampler:
            await host.start_all()
            for turns in range(10):
                since = sampler.last.time
                await trio.sleep(0.1)
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(give_up, scope, turns)
                        since += (await sampler.sample_in_turns()).window
                given_up += scope.cancelled_caught
                await trio.sleep(0.1)
                assert since + sampler.sample().window == sampler.now()
        host.turn_all_off()
    assert 3 < given_up < 10


async def test_what_is_due_depends_on_what_is_wanted(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Who still has work at the window's end wanted what he waited for; who was done in it wanted what he got."""
    (tmp_path / "long.py").write_text("async def main(guest):\n    await guest.work(1)\n")
    (tmp_path / "short.py").write_text("async def main(guest):\n    await guest.work(0.02)\n    await guest.sleep(1)\n")
    vms = "".join(
        f'[[vm]]\nname = "{name}"\nprogram = "{program}.py"\nmemory = "4MiB"\ncpu = {{ weight = {weight} }}\n'
        for name, program, weight in (("light", "long", 100), ("heavy", "long", 300), ("short", "short", 100))
    )
    async with open_host(parse_topology(f"[host]\nlogical_processors = 1\n{vms}", tmp_path)) as host:
        with Sampler(host) as sampler:
            await host.start_all()
            await trio.sleep(0.2)
            sample = sampler.sample()
            found = {node.name: (node.cpu.demand, node.cpu.entitled) for node in sample.nodes}
        host.turn_all_off()
    assert found["short"] == (10.0, 10.0)
    assert found["light"] == (100.0, 22.5)
    assert found["heavy"] == (100.0, 67.5)
    assert found["host"] == (210.0, 100.0)


async def test_what_was_wanted_by_who_is_gone_is_not_guessed(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Over a whole run: a VM that was turned off wanted more than it got, and what was due to others hangs on it, too.
    Where nobody had to wait, and for those that are still on, all is known.
    """
    (tmp_path / "long.py").write_text("async def main(guest):\n    await guest.work(100)\n")
    vms = "".join(
        f'[[vm]]\nname = "{name}"\nprogram = "long.py"\nmemory = "4MiB"\ncpu = {{ weight = {weight} }}\n'
        for name, weight in (("light", 100), ("heavy", 300))
    )

    def figures(sampler: Sampler) -> list[tuple[float | None, float | None]]:
        run = sampler.between(sampler.first, sampler.read(), whole=True)
        return [(node.cpu.demand, node.cpu.entitled) for node in run.nodes]

    for lps, expected in (
        (1, [(200.0, 100.0), (100.0, 25.0), (100.0, 75.0)]),
        (2, [(200.0, 200.0), *[(100.0,) * 2] * 2]),
    ):
        async with open_host(parse_topology(f"[host]\nlogical_processors = {lps}\n{vms}", tmp_path)) as host:
            with Sampler(host) as sampler:
                await host.start_all()
                await trio.sleep(1)
                assert figures(sampler) == expected
                host.turn_all_off()
                await host.wait_all()
                assert figures(sampler) == ([(None, None)] * 3 if lps == 1 else expected)


async def test_the_limit_of_several_devices(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The sum of theirs; one of them without a limit can have whatever there is, and so can the VM."""
    (tmp_path / "idle.py").write_text("async def main(guest):\n    await guest.sleep(10)\n")
    text = '[[switch]]\nname = "lan"\n'
    for name, second in (("both", 200), ("one", 0)):
        text += f'[[vm]]\nname = "{name}"\nprogram = "idle.py"\nmemory = "16MiB"\n'
        for number, limit in enumerate((100, second)):
            text += f'[[vm.disk]]\npath = "{name}{number}.img"\nsize = "1MiB"\n'
            text += f"iops = {{ limit = {limit}, reserve = 7 }}\n"
            text += f'[[vm.nic]]\nswitch = "lan"\nbandwidth = {{ limit = {limit * 1000} }}\n'
    async with open_host(parse_topology(text, tmp_path)) as host:
        with Sampler(host) as sampler:
            await host.start_all()
            await trio.sleep(1)
            both, one = map(sampler.sample().node, ("vm/both", "vm/one"))
        host.turn_all_off()
    for node in (both, one):
        assert node is not None
        assert node.disk is not None
        assert node.network is not None
        assert node.disk.reserve == 14
        limits = (300, 300_000) if node is both else (None, None)
        assert (node.disk.limit, node.network.limit) == limits


def filled(capacity: float, wants: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Weights and most of each, by halving what a weight is worth."""
    low, high = 0.0, capacity
    for _ in range(60):
        worth = (low + high) / 2
        if sum(min(worth * weight, most) for weight, most in wants.values()) > capacity:
            high = worth
        else:
            low = worth
    return {name: min(low * weight, most) for name, (weight, most) in wants.items()}


async def test_e7_cpu_groups_with_affinity(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A group of 4 processors at 50 % of them: its two busy VMs get, and are due, 25 % of the four each. What a group
    cannot use or does not want is due to nobody else.
    """
    (tmp_path / "busy.py").write_text(
        "async def main(guest):\n    for cpu in guest.cpus:\n        guest.start_soon(cpu.run, 1000)\n"
        "    await guest.sleep(1000)\n"
    )
    text = """[host]
    logical_processors = 7
    [[pool]]
    name = "half"
    processors = "0-3"
    cpu = { limit = 200 }
    [[pool]]
    name = "idle"
    processors = "4"
    """
    vms = [("a", 4, "half", 100, 100), ("b", 4, "half", 100, 100), ("i", 1, "idle", 100, 30)]
    vms += [("o", 2, "", 100, 100), ("p", 2, "", 300, 60)]
    for name, count, pool, weight, limit in vms:
        text += (
            f'[[vm]]\nname = "{name}"\nprogram = "busy.py"\nmemory = "4MiB"\nprocessors = {count}\npool = "{pool}"\n'
        )
        text += f"cpu = {{ weight = {weight}, limit = {limit} }}\n"
    expected: dict[str, float] = {}
    for pool, size in (("half", 200), ("idle", 100), ("", 200)):
        inside = [vm for vm in vms if vm[2] == pool]
        expected |= filled(size, {name: (weight * count, limit * count) for name, count, _, weight, limit in inside})
    assert (expected["a"], expected["i"]) == pytest.approx((100, 30))
    expected |= {"half": 200, "idle": 30, "host": sum(expected.values())}
    async with open_host(parse_topology(text, tmp_path)) as host:
        with Sampler(host) as sampler:
            await host.start_all()
            await trio.sleep(0.5)
            sampler.sample()
            await trio.sleep(1)
            nodes = sampler.sample().nodes
            # As the trees of admission have it, where those that are on count with all that they could use.
            live = host.resources.entitled("cpu")
        host.turn_all_off()
    assert {node.name: node.cpu.entitled for node in nodes} == pytest.approx(expected, abs=0.01)
    assert {node.name: node.cpu.delivered for node in nodes} == pytest.approx(expected, abs=1)
    for node, (amount, _) in live.items():
        assert amount / 65536 * 100 == pytest.approx(expected[node.name.rpartition("/")[2]], abs=0.01)


async def test_a_vm_that_leaves_is_counted_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Also by who looks while it goes."""
    (tmp_path / "busy.py").write_text("async def main(guest):\n    await guest.work(0.3)\n")
    text = '[[vm]]\nname = "a"\nprogram = "busy.py"\nmemory = "4MiB"\n'
    async with open_host(parse_topology(text, tmp_path)) as host:
        with Sampler(host) as sampler:
            seen: list[int] = []
            host.vmms.leaving.append(lambda *_: seen.append(sampler.read().vms["a"].cpu.run))
            for _ in range(2):
                await host.start_all()
                await host.wait_all()
            assert seen == [300_000_000, 600_000_000]
            assert sampler.read().vms["a"].cpu.run == 600_000_000
