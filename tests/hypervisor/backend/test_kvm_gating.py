"""Tiny guests on a real /dev/kvm under the scheduler: who holds a processor is in its guest, and who does not is not.

How well shares and caps hold is tested where time is simulated, and with kernels that have a machine to themselves.
"""

from __future__ import annotations

import pytest
import trio

from hypervisor.backend.kvm import machine
from hypervisor.backend.kvm.backend import KvmBackend
from hypervisor.backend.kvm.vcpu import Vcpu
from hypervisor.scheduler.settings import CpuTimes
from partitions.host import ExitReason, Host
from partitions.topology_controls import CpuTable
from tests.doubles import kvm_guest as guest
from tests.doubles.kvm_guest import HALT, SPIN, host_of

pytestmark = guest.needs_kvm
ONE, THREE = CpuTable(weight=100), CpuTable(weight=300)


@pytest.fixture(autouse=True)
def _any_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few instructions run on a KVM that only emulates, too."""
    monkeypatch.setenv(machine.ANYWAY, "1")


def vcpus(made: list[KvmBackend]) -> list[Vcpu]:
    return [backend._vcpus[0] for backend in made]


def times(host: Host) -> list[CpuTimes]:
    guests = [partition for partition in host.hypervisor.partitions.values() if partition is not host.hypervisor.root]
    return [host.hypervisor.scheduler.times(partition.vps[0]) for partition in guests]


async def ran(made: list[KvmBackend], seconds: float) -> list[float]:
    """Seconds that each has run in so many seconds."""
    before = [vcpu.cpu_time() for vcpu in vcpus(made)]
    await trio.sleep(seconds)
    return [(vcpu.cpu_time() - then) / 1e9 for vcpu, then in zip(vcpus(made), before, strict=True)]


async def test_shares_of_one_processor() -> None:
    """The gates take turns, both guests get on, and the accounts are what the threads' clocks say."""
    made: list[KvmBackend] = []
    with trio.fail_after(20):
        async with host_of([SPIN, SPIN], made, cpus=[ONE, THREE], logical_processors=1) as host:
            await host.start_all()
            await trio.sleep(0.05)
            one, three = await ran(made, 0.4)
            assert 1.5 * one < three < 6 * one, "as rough as a busy machine makes it"
            for vcpu, account in zip(vcpus(made), times(host), strict=True):
                assert vcpu.kicks >= 2
                assert account.run == pytest.approx(vcpu.cpu_time(), abs=10_000_000)
                assert account.ready > 0
                assert account.capped == 0
            assert not all(vcpu.held for vcpu in vcpus(made))
            assert any(vcpu.held for vcpu in vcpus(made))


async def test_a_cap_opens_and_shuts_the_gate_alone() -> None:
    """There are processors enough; a guest without a cap beside it is never touched."""
    made: list[KvmBackend] = []
    with trio.fail_after(20):
        async with host_of([SPIN, SPIN], made, cpus=[CpuTable(limit=20), None]) as host:
            await host.start_all()
            await trio.sleep(0.05)
            capped, _ = await ran(made, 0.3)
            assert 0 < capped < 0.3 * 0.3, "a fifth, and what a late host adds until it has paid for it"
            assert [bool(vcpu.kicks) for vcpu in vcpus(made)] == [True, False]
            assert times(host)[0].capped > 0


async def test_nobody_is_looked_at_without_controls() -> None:
    """More guests than processors and no word of who gets what: the host's own kernel shares them out, as ever."""
    made: list[KvmBackend] = []
    with trio.fail_after(20):
        async with host_of([SPIN, SPIN, HALT], made, logical_processors=1) as host:
            await host.start_all()
            await trio.sleep(0.1)
            assert [vcpu.kicks for vcpu in vcpus(made)] == [0, 0, 0]
            assert host.hypervisor.scheduler.wakes == 0
            spin, _, halt = times(host)
            assert spin.run == pytest.approx(vcpus(made)[0].cpu_time(), abs=10_000_000)
            assert halt.halted > 9 * halt.run


async def test_a_guest_that_is_held_is_paused_reset_and_turned_off_as_any_other() -> None:
    """Whatever the gates are at when the root wants something; and a paused guest leaves its processor to the other."""
    made: list[KvmBackend] = []
    with trio.fail_after(30):
        async with host_of([SPIN, SPIN], made, cpus=[ONE, ONE], logical_processors=1) as host:
            await host.start_all()
            for _ in range(6):
                for name, other in (("tiny0", 1), ("tiny1", 0)):
                    await trio.sleep(0.007)
                    for vcpu in vcpus(made):
                        assert vcpu.read_tsc() > 0
                    await host[name].pause()
                    await trio.sleep(0.015)
                    got = await ran(made, 0.01)
                    assert got[1 - other] < 0.002, "it stands still"
                    assert not vcpus(made)[other].held, "the other has the processor to itself"
                    await host[name].resume()
            await host["tiny0"].reset()
            await trio.sleep(0.05)
            assert all(seconds > 0 for seconds in await ran(made, 0.1))
            host.turn_all_off()
            records = await host.wait_all()
    assert {record.reason for record in records.values()} == {ExitReason.TURNED_OFF}
    for record in records.values():
        record.raise_worker_failure()


async def test_controls_come_and_go_with_guests_that_run() -> None:
    """A cap that is set holds at once; where the last control is taken back, nobody is held any more."""
    made: list[KvmBackend] = []
    with trio.fail_after(60):
        async with host_of([SPIN], made) as host:
            await host.start_all()
            (partition,) = (it for it in host.hypervisor.partitions.values() if it is not host.hypervisor.root)
            await trio.sleep(0.05)
            scheduler = host.hypervisor.scheduler
            before = times(host)[0].run
            scheduler.set_partition(partition.id, cap=0x1000)
            (got,) = await ran(made, 0.2)
            assert got < 0.05
            assert times(host)[0].run - before == pytest.approx(got * 1e9, abs=20_000_000)
            scheduler.set_partition(partition.id)
            assert not vcpus(made)[0].held
            free = 0.0
            while free < 0.02:  # which may take long on a busy machine
                free += sum(await ran(made, 0.005))
            assert not vcpus(made)[0].held
            born = partition.vps[0].born
            earliest = host.hypervisor.clock() - born
            account = times(host)[0]
            latest = host.hypervisor.clock() - born
            assert earliest * 100 <= account.life <= latest * 100
