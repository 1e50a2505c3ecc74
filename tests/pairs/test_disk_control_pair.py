"""Guest programs on disks with reserve, limit and weight, on the virtual clock: what they get is exact."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from tests.doubles.disk_control import arbiter, controlled
from tests.doubles.storage import StoragePair, serving
from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.disk import Disk
from vsp_vsc.storage.qos.arbiter import DiskQos, Flow
from vsp_vsc.storage.qos.policy import IopsPolicy
from vsp_vsc.storage.scsi.target import ScsiTarget
from vsp_vsc.storage.vsc import open_storage


class Reader:
    """A program that reads one block after another, and counts."""

    def __init__(self, disk: Disk, flow: Flow, pair: StoragePair) -> None:
        self.disk, self.flow, self.pair = disk, flow, pair
        self.done = 0

    async def run(self, depth: int = 8) -> None:
        """With so many reads under way."""
        async with trio.open_nursery() as nursery:
            for _ in range(depth):
                nursery.start_soon(self._read)

    async def _read(self) -> None:
        while True:
            await self.disk.read(0)
            self.done += 1


@asynccontextmanager
async def readers(
    qos: DiskQos, *policies: IopsPolicy, vms: list[str] | None = None, depth: int = 8
) -> AsyncIterator[list[Reader]]:
    """Machines with one disk each, and a reader on each."""
    async with AsyncExitStack() as stack:
        made = []
        for number, policy in enumerate(policies):
            disks = {0: ScsiTarget(MemoryBackend(1 << 16, identity=str(number)))}
            pair = await stack.enter_async_context(serving(disks))
            vm = vms[number] if vms is not None else f"vm/{number}"
            if not qos.has_group(vm):
                qos.set_group(vm, "", IopsPolicy(weight=policy.weight))  # a machine weighs what its disks do
            (flow,) = controlled(pair, qos, policy, vm=vm)
            storage = await stack.enter_async_context(open_storage(pair.guest_end, pair.platform))
            made.append(Reader(storage.disks[0], flow, pair))
        nursery = await stack.enter_async_context(trio.open_nursery())
        for reader in made:
            nursery.start_soon(reader.run, depth)
        yield made
        nursery.cancel_scope.cancel()


async def gained(readers: list[Reader], seconds: float) -> list[int]:
    before = [reader.done for reader in readers]
    await trio.sleep(seconds)
    return [reader.done - old for reader, old in zip(readers, before, strict=True)]


@pytest.mark.parametrize("depth", [1, 8])
async def test_a_limit_holds_for_a_program(depth: int, autojump_clock: trio.testing.MockClock) -> None:
    """200 a second, in every second, whether it sends one at a time or many."""
    async with arbiter() as qos, readers(qos, IopsPolicy(limit=200), depth=depth) as (reader,):
        await trio.sleep(0.0025)
        for _ in range(3):
            assert await gained([reader], 1) == [200]


async def test_a_limit_comes_and_goes(autojump_clock: trio.testing.MockClock) -> None:
    """M6: on a disk that is in use; it holds in every second from then on, and when it goes the disk is free."""
    async with arbiter(2000) as qos:
        policies = IopsPolicy(reserve=250), IopsPolicy(reserve=250, weight=200), IopsPolicy(weight=300)
        async with readers(qos, *policies) as machines:
            await trio.sleep(0.1)
            assert await gained(machines, 0.3) == pytest.approx([100, 200, 300], abs=2)
            machines[2].flow.set_policy(IopsPolicy(weight=300, limit=300))
            await trio.sleep(0.1)
            got = await gained(machines, 1)
            assert got == pytest.approx([567, 1133, 300], abs=2)
            assert got[2] <= 301
            machines[2].flow.set_policy(IopsPolicy(weight=300))
            await trio.sleep(0.1)
            assert await gained(machines, 0.3) == pytest.approx([100, 200, 300], abs=2)


async def test_the_ladder_for_programs(autojump_clock: trio.testing.MockClock) -> None:
    """E11 end to end, at three capacities that are set while all of it runs; half of a second's due, to a request."""
    async with arbiter(400) as qos:
        policies = (
            IopsPolicy(reserve=250),
            IopsPolicy(reserve=250, weight=200),
            IopsPolicy(weight=300, limit=1000),
        )
        async with readers(qos, *policies) as machines:
            for capacity, expected in (
                (400, [100, 100, 0]),
                (1000, [125, 150, 225]),
                (1800, [150, 300, 450]),
            ):
                qos.set_capacity(capacity)
                await trio.sleep(0.3)
                assert await gained(machines, 0.5) == pytest.approx(expected, abs=1), capacity


async def test_pools_hold_machines_together(autojump_clock: trio.testing.MockClock) -> None:
    """A pool's limit for two machines in it, 1:3; one outside is free of it. Then the pool's limit changes.

    Half of what is due in a second: each read is a task switch in the test, too.
    """
    async with arbiter() as qos:
        qos.set_group("pool/low", "", IopsPolicy(limit=400))
        qos.set_group("vm/a", "pool/low", IopsPolicy())
        qos.set_group("vm/b", "pool/low", IopsPolicy(weight=300))
        policies = IopsPolicy(), IopsPolicy(), IopsPolicy(limit=1000)
        async with readers(qos, *policies, vms=["vm/a", "vm/b", "vm/c"]) as machines:
            await trio.sleep(0.2)
            assert await gained(machines, 0.5) == pytest.approx([50, 150, 500], abs=1)
            qos.set_group("pool/low", "", IopsPolicy(limit=800))
            await trio.sleep(0.1)
            assert await gained(machines, 0.5) == pytest.approx([100, 300, 500], abs=1)
            figures = qos.figures()
            assert (figures["pool/low"].entitled, figures["vm/b"].entitled) == (800, 600)


async def test_a_reset_while_a_program_waits(autojump_clock: trio.testing.MockClock) -> None:
    """Its driver sends again what the reset has ended, and no read is lost."""
    async with arbiter() as qos, readers(qos, IopsPolicy(limit=100)) as (reader,):
        await trio.sleep(0.5)
        unit = reader.pair.vsp.unit(0)
        unit.target.reset()
        assert (await gained([reader], 1))[0] == pytest.approx(100, abs=2)
