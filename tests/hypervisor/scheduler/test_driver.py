"""The scheduler on the hypervisor's clock: what work costs, who gets what, and what changes while it is under way."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hypervisor.machine import VpStopped
from hypervisor.properties import Property
from hypervisor.scheduler.figures import counters
from hypervisor.scheduler.settings import WHOLE, PartitionSettings
from hypervisor.statistics import ProcessorCounter, VpCounter, processor_counters, vp_counters
from hypervisor.status import HvError, HvStatus
from hypervisor.unhalted_timer import ENABLED
from tests.hypervisor.scheduler.machine import HALF, MS, SECOND, Computers, busy, computing

NS = 100
"""Nanoseconds in a tick."""


# --- work


async def test_work_that_nobody_disputes_takes_its_time_and_one_wake(autojump_clock: MockClock) -> None:
    """As a sleep did before there was a scheduler: one deadline, and nothing before it."""
    machine = Computers(2)
    machine.partition("a")
    async with computing(machine):
        for number in range(1, 11):
            await machine.scheduler.run(machine.vp("a"), 3 * MS)
            assert machine.host.clock() == 3 * MS * number
        assert machine.scheduler.wakes == 10
        assert machine.vp("a").run_time() == 30 * MS
        assert machine.scheduler.lateness.worst == 0


def test_who_does_not_work_costs_nothing() -> None:
    """A host without work has no kernel, and a processor that never worked has no node, yet a life."""
    now = 5
    machine = Computers(2, lambda: now)
    machine.partition("a")
    machine.partition("b", cpu_weight=300)
    machine.scheduler.set_group(1, 0, "pool", cap=HALF)
    assert not machine.scheduler.worked
    assert len(machine.host.timers) == 0
    now = 25
    assert machine.times("a").halted == machine.times("a").life == 2000


async def test_run_time_is_right_in_the_middle_of_work(autojump_clock: MockClock) -> None:
    """Also of the third piece, and with a competitor: what it has run until now, and no more than that."""
    machine = Computers(1)
    machine.partition("a")
    machine.partition("b")
    vp = machine.vp("a")
    async with computing(machine) as nursery:
        for _ in range(2):
            await machine.scheduler.run(vp, 3 * MS)
        nursery.start_soon(machine.scheduler.run, vp, 100 * MS)
        await trio.sleep(0.005)
        assert vp.run_time() == 11 * MS
        nursery.start_soon(busy, machine, "b")
        await trio.sleep(0.1)
        assert vp.run_time() == machine.times("a").run // NS
        assert abs(vp.run_time() - 61 * MS) <= 10 * MS


async def test_e1_weights(autojump_clock: MockClock) -> None:
    """E1: three busy VPs of weights 100, 200 and 700 on one LP have 10, 20 and 70 %, to a quantum."""
    machine = Computers(1)
    for name, weight in (("a", 100), ("b", 200), ("c", 700)):
        machine.partition(name, cpu_weight=weight)
    async with computing(machine) as nursery:
        for name in "abc":
            nursery.start_soon(busy, machine, name)
        await trio.sleep(10)
        runs = {name: machine.times(name).run for name in "abc"}
        assert sum(runs.values()) == 10 * SECOND * NS
        for name, part in (("a", 10), ("b", 20), ("c", 70)):
            assert abs(runs[name] - part * SECOND // 10 * NS) <= 10_000_000
            assert machine.vp(name).run_time() == runs[name] // NS


async def test_e2_cap(autojump_clock: MockClock) -> None:
    """E2: with a cap of 0x8000 on an idle host 50 % exactly, the rest is stolen, and the LP idles for it."""
    machine = Computers(1)
    machine.partition("a", cpu_cap=HALF)
    async with computing(machine) as nursery:
        nursery.start_soon(busy, machine, "a")
        await trio.sleep(1)
        times = machine.times("a")
        assert (times.run, times.capped, times.ready, times.halted) == (5 * SECOND * 10, 5 * SECOND * 10, 0, 0)
        assert times.stolen == times.capped
        assert machine.scheduler.lp_times(0).idle == 5 * SECOND * 10


async def test_capped_work_takes_longer(autojump_clock: MockClock) -> None:
    """25 % with a period of 10 ms: 2.5 ms at once, and from then on 2.5 ms in each period."""
    machine = Computers(1)
    machine.partition("a", cpu_cap=WHOLE // 4)
    vp, clock = machine.vp("a"), machine.host.clock
    async with computing(machine):
        await machine.scheduler.run(vp, 2 * MS)
        assert clock() == 2 * MS
        await machine.scheduler.run(vp, 1 * MS)
        assert clock() == 10 * MS + MS // 2
        await machine.scheduler.run(vp, 4 * MS)
        assert clock() == 20 * MS + 2 * MS


async def test_batch_gets_what_is_left(autojump_clock: MockClock) -> None:
    """E34: demands of 60 and 30 % leave 10 % to a batch VP, and end when they would without it."""
    machine = Computers(1)
    for name in "abc":
        machine.partition(name)
    machine.scheduler.set_partition(machine.partitions["c"].id, batch=True, shares=10_000)
    ends: list[int] = []

    async def periodic(name: str, offset: int, work: int) -> None:
        for number in range(10):
            await trio.sleep((number * 100 + offset) / 1000 - machine.host.clock() / SECOND)
            await machine.scheduler.run(machine.vp(name), work * MS)
            ends.append(machine.host.clock() % (100 * MS))

    async with computing(machine) as nursery:
        nursery.start_soon(busy, machine, "c")
        nursery.start_soon(periodic, "a", 0, 60)
        nursery.start_soon(periodic, "b", 60, 30)
        await trio.sleep(1)
        assert machine.shares() == {"a": 60, "b": 30, "c": 10}
        assert set(ends) == {60 * MS, 90 * MS}


# --- one processor


async def test_work_of_one_processor_queues(autojump_clock: MockClock) -> None:
    """First come, first served; who gives up leaves the queue, and what it did was done."""
    machine = Computers(4)
    machine.partition("a")
    done: list[tuple[str, int]] = []

    async def work(name: str, patience: float = 99) -> None:
        with trio.move_on_after(patience) as scope:
            await machine.scheduler.run(machine.vp("a"), 10 * MS)
        done.append((name + " gave up" * scope.cancelled_caught, machine.host.clock() // MS))

    async with computing(machine) as nursery:
        for name, patience in (("first", 0.004), ("second", 0.002), ("third", 99), ("fourth", 99)):
            nursery.start_soon(work, name, patience)
            await wait_all_tasks_blocked()
        await trio.sleep(1)
    assert done == [("second gave up", 2), ("first gave up", 4), ("third", 14), ("fourth", 24)]
    assert machine.vp("a").run_time() == 24 * MS


async def test_a_suspended_processor_halts(autojump_clock: MockClock) -> None:
    """Its work waits, others have its share, and the time counts as halted."""
    machine = Computers(1)
    for name in "ab":
        machine.partition(name)
    async with computing(machine) as nursery:
        for name in "ab":
            nursery.start_soon(busy, machine, name)
        await trio.sleep(1)
        machine.vp("a").set_explicit_suspend(True)
        await trio.sleep(1)
        machine.vp("a").set_explicit_suspend(False)
        await trio.sleep(2)
        a, b = machine.times("a"), machine.times("b")
        assert a.halted == SECOND * NS
        assert a.life == b.life == 4 * SECOND * NS
        assert a.run + b.run == 4 * SECOND * NS
        assert abs(a.run - 3 * SECOND * NS // 2) <= 20_000_000


async def test_a_suspended_partition_halts(autojump_clock: MockClock) -> None:
    """Property 0x20000: all its processors at once, its time too, and their own suspend bits are left alone."""
    machine = Computers(4)
    a = machine.partition("a", 2)
    ended: list[int] = []

    async def work(index: int) -> None:
        await machine.scheduler.run(a.vps[index], 100 * MS)
        ended.append(machine.host.clock() // MS)

    async with computing(machine) as nursery:
        for index in range(2):
            nursery.start_soon(work, index)
        await trio.sleep(0.05)
        a.vps[1].set_explicit_suspend(True)
        a.set_property(Property.SUSPEND, 1)
        assert a.get_property(Property.SUSPEND) == 1
        at = a.reference_time.now()
        await trio.sleep(1)
        assert a.reference_time.now() == at
        a.set_property(Property.SUSPEND, 0)
        assert (a.vps[0].suspended, a.vps[1].suspended) == (False, True)
        await trio.sleep(1)
        assert ended == [1100]
        a.vps[1].set_explicit_suspend(False)
        await trio.sleep(1)
        assert ended == [1100, 2100]
        with pytest.raises(HvError, match="OUT_OF_RANGE"):
            a.set_property(Property.SUSPEND, 2)


async def test_the_unhalted_timer_counts_what_it_got(autojump_clock: MockClock) -> None:
    """A period of 10 ms of run time is 20 ms of the clock's for who is capped at a half."""
    machine = Computers(1)
    a = machine.partition("a", cpu_cap=HALF)
    vp = a.vps[0]
    vp.unhalted.write_count(10 * MS)
    vp.unhalted.write_config(ENABLED | 0x60)
    async with computing(machine) as nursery:
        nursery.start_soon(busy, machine, "a")
        await trio.sleep(0.099)
        assert a.counters["interrupts"] == 5


async def test_a_processor_that_is_deleted_at_work(autojump_clock: MockClock) -> None:
    """Its share goes to others, its work never ends by itself, and nobody can give it more."""
    machine = Computers(1)
    for name in "ab":
        machine.partition(name)
    gone = machine.vp("a")
    async with computing(machine) as nursery:
        stopped: list[str] = []

        async def second() -> None:
            with pytest.raises(VpStopped):
                await machine.scheduler.run(gone, SECOND)
            stopped.append("queued")

        power = trio.CancelScope()

        async def first() -> None:
            with power:
                await busy(machine, "a")

        nursery.start_soon(first)
        nursery.start_soon(busy, machine, "b")
        await trio.sleep(0.1)
        nursery.start_soon(second)
        await trio.sleep(0.1)
        machine.scheduler.forget(gone)
        del gone.partition.vps[0]
        assert abs(gone.run_time() - 100 * MS) <= 10 * MS
        await trio.sleep(1)
        assert abs(machine.times("b").run // NS - 1100 * MS) <= 10 * MS
        power.cancel()
        await trio.sleep(0.1)
        assert stopped == ["queued"]
        with pytest.raises(VpStopped):
            await machine.scheduler.run(gone, SECOND)


# --- controls


@pytest.mark.parametrize(
    ("code", "value", "status"),
    [
        (Property.CPU_RESERVE, 0xC000, HvStatus.PROPERTY_VALUE_OUT_OF_RANGE),
        (Property.CPU_RESERVE, 0x10001, HvStatus.PROPERTY_VALUE_OUT_OF_RANGE),
        (Property.CPU_CAP, 0x10001, HvStatus.PROPERTY_VALUE_OUT_OF_RANGE),
        (Property.CPU_CAP, 0x3FFF, HvStatus.PROPERTY_VALUE_OUT_OF_RANGE),
        (Property.CPU_WEIGHT, 0, HvStatus.PROPERTY_VALUE_OUT_OF_RANGE),
        (Property.CPU_WEIGHT, 10_001, HvStatus.PROPERTY_VALUE_OUT_OF_RANGE),
        (Property.CPU_GROUP_ID, 5, HvStatus.INVALID_CPU_GROUP_ID),
        (Property.CPU_GROUP_ID, 1 << 63, HvStatus.INVALID_CPU_GROUP_ID),
    ],
)
def test_e3_what_is_refused(code: Property, value: int, status: HvStatus) -> None:
    """E3: a reserve above the cap, either way; figures out of range; a group that is not there. Nothing changes."""
    machine = Computers(4, lambda: 0)
    a = machine.partition("a", cpu_reserve=0x4000, cpu_cap=HALF)
    before = dict(a.properties)
    with pytest.raises(HvError) as caught:
        a.set_property(code, value)
    assert caught.value.status is status
    assert a.properties == before


def test_e3_no_more_is_reserved_than_there_is() -> None:
    """E3, E4: VMs of 4 VPs that reserve 20 % on 4 LPs: five fit, and not a sixth; nor a bit more for one of five."""
    machine = Computers(4, lambda: 0)
    fifth = WHOLE // 5
    for name in "abcde":
        machine.partition(name, 4, cpu_reserve=fifth)
    f = machine.partition("f", 4)
    for partition, reserve in ((f, fifth), (machine.partitions["a"], fifth + 4)):
        with pytest.raises(HvError) as caught:
            partition.set_property(Property.CPU_RESERVE, reserve)
        assert caught.value.status is HvStatus.PROPERTY_VALUE_OUT_OF_RANGE
        with pytest.raises(HvError):
            machine.scheduler.set_partition(partition.id, reserve=reserve, shares=7)
        assert partition.properties[Property.CPU_WEIGHT] == 100


def test_a_reserve_that_cannot_be_kept_is_none() -> None:
    """More VPs than LPs can never all run at once: as Hyper-V may, we reset their reserve.

    Whether it is asked for before the processors are there or afterwards, and it does not come back with one less.
    """
    machine = Computers(2, lambda: 0)
    a = machine.partition("a", 3, cpu_reserve=HALF)
    assert (a.get_property(Property.CPU_RESERVE), machine.scheduler.settings(a).reserve) == (0, 0)
    assert machine.host.trace.warnings[a.id, "cpu_reserve_void"] == 1
    b = machine.partition("b", 2, cpu_reserve=WHOLE)
    assert machine.scheduler.settings(b).reserve == WHOLE
    b.set_property(Property.CPU_RESERVE, HALF)
    b.pool.granted += 100
    machine.host.create_vp(b, 2)
    assert b.get_property(Property.CPU_RESERVE) == 0
    machine.host.delete_vp(b, 2)
    assert b.get_property(Property.CPU_RESERVE) == 0


def test_settings_and_properties_are_one() -> None:
    """What a parent sets by hypercall and what the host sets for a VM is the same."""
    machine = Computers(2, lambda: 0)
    a = machine.partition("a")
    machine.scheduler.set_group(3, 0, "pool")
    machine.scheduler.set_partition(a.id, 3, shares=200, cap=HALF, reserve=5, period=50_000_000, batch=True)
    assert machine.scheduler.settings(a) == PartitionSettings(3, 200, HALF, 5, 50_000_000, batch=True)
    assert a.get_property(Property.CPU_GROUP_ID) == 3
    assert a.get_property(Property.CPU_WEIGHT) == 200
    a.set_property(Property.CPU_CAP, WHOLE)
    assert machine.scheduler.settings(a).cap == WHOLE


@pytest.mark.parametrize("by_property", [False, True])
async def test_a_change_holds_within_a_window(autojump_clock: MockClock, by_property: bool) -> None:
    """A cap, a weight and a reserve that change under way: what they say is what comes in the window after next."""
    machine = Computers(1)
    a, b = machine.partition("a"), machine.partition("b")

    async def share_in_a_window() -> int:
        """Percent of a, in a window of 100 ms that begins one such window after the change."""
        await trio.sleep(0.1)
        before = machine.times("a").run
        await trio.sleep(0.1)
        return round((machine.times("a").run - before) / 1_000_000)

    def change(**now: int) -> None:
        if by_property:
            for key, value in now.items():
                a.set_property(Property[f"CPU_{key.upper()}"], value)
        else:
            named = {"weight": "shares"}
            machine.scheduler.set_partition(a.id, **{named.get(key, key): value for key, value in now.items()})  # type: ignore[arg-type]

    async with computing(machine) as nursery:
        for name in "ab":
            nursery.start_soon(busy, machine, name)
        assert abs(await share_in_a_window() - 50) <= 10
        change(weight=900)
        assert abs(await share_in_a_window() - 90) <= 10
        change(weight=900, cap=WHOLE // 5)
        assert abs(await share_in_a_window() - 20) <= 4
        change(weight=1, cap=WHOLE, reserve=3 * WHOLE // 10)
        assert 29 <= await share_in_a_window() <= 40
        b.vps[0].set_explicit_suspend(True)
        change(weight=1, reserve=0, cap=WHOLE // 10)
        assert await share_in_a_window() == 10


async def test_groups_bound_and_share(autojump_clock: MockClock) -> None:
    """A pool's cap holds for all in it; siblings share by weight; who moves has the new pool's; one below narrows."""
    machine = Computers(2)
    scheduler = machine.scheduler
    for name in "abcd":
        machine.partition(name)
    scheduler.set_group(1, 0, "outer", cap=WHOLE)
    scheduler.set_group(2, 1, "inner", shares=300)
    for name, group in (("a", 1), ("b", 2), ("c", 2)):
        scheduler.set_partition(machine.partitions[name].id, group)

    async def in_a_second() -> list[int]:
        before = [machine.times(name).run for name in "abcd"]
        await trio.sleep(1)
        return [round((machine.times(name).run - was) / 1e7) for name, was in zip("abcd", before, strict=True)]

    def near(seen: list[int], wanted: list[float]) -> bool:
        return all(abs(a - b) <= 3 for a, b in zip(seen, wanted, strict=True))

    async with computing(machine) as nursery:
        for name in "abcd":
            nursery.start_soon(busy, machine, name)
        assert near(await in_a_second(), [25, 37.5, 37.5, 100])
        scheduler.set_group(2, 1, "inner", shares=100)
        assert near(await in_a_second(), [50, 25, 25, 100])
        scheduler.set_group(2, 1, "inner", shares=100, cap=WHOLE // 5)
        assert near(await in_a_second(), [80, 10, 10, 100])
        scheduler.set_group(2, 0, "inner", shares=100, cap=WHOLE // 5)
        assert near(await in_a_second(), [90, 10, 10, 90])
        machine.partitions["b"].set_property(Property.CPU_GROUP_ID, 0)
        assert near(await in_a_second(), [60, 60, 20, 60])
        with pytest.raises(ValueError, match="not empty"):
            scheduler.remove_group(2)
        machine.partitions["c"].set_property(Property.CPU_GROUP_ID, 0)
        scheduler.remove_group(2)
        assert sum(await in_a_second()) == pytest.approx(200, abs=3)
        assert scheduler.group_times(1).run == pytest.approx(machine.times("a").run, abs=1)


def test_groups_that_cannot_be() -> None:
    """IDs out of range, parents that are not there, and circles."""
    scheduler = Computers(1, lambda: 0).scheduler
    scheduler.set_group(1)
    scheduler.set_group(2, 1)
    for bad in ((0, 0), (65536, 0), (3, 4), (1, 2), (1, 1)):
        with pytest.raises(ValueError, match="group"):
            scheduler.set_group(*bad)
    with pytest.raises(ValueError, match="not empty"):
        scheduler.remove_group(1)
    with pytest.raises(KeyError):
        scheduler.remove_group(9)


# --- time


async def test_i1_every_nanosecond_is_somewhere(autojump_clock: MockClock) -> None:
    """I1: run, ready, capped and halted sum up to the life of a VP at any moment, and to what the LPs ran."""
    machine = Computers(2)
    machine.partition("a", 2, cpu_cap=WHOLE // 3)
    machine.partition("b", cpu_weight=500)
    machine.partition("c")
    async with computing(machine) as nursery:
        await trio.sleep(0.0123)
        for name, index in (("a", 0), ("a", 1), ("b", 0), ("c", 0)):
            nursery.start_soon(busy, machine, name, index)
            await trio.sleep(0.0107)
        for _ in range(20):
            await trio.sleep(0.00313)
            everybody = [machine.times(*who) for who in (("a", 0), ("a", 1), ("b", 0), ("c", 0))]
            assert {times.life for times in everybody} == {machine.host.clock() * NS}
            lps = [machine.scheduler.lp_times(lp) for lp in range(2)]
            assert sum(times.run for times in everybody) == sum(lp.run for lp in lps)
            assert {lp.run + lp.idle for lp in lps} == {machine.host.clock() * NS}


async def test_nobody_wakes_for_slices(autojump_clock: MockClock) -> None:
    """64 busy VPs on 8 LPs for 20 s: 16,000 slices, and wakes only so that the thread is not kept for long."""
    machine = Computers(8)
    machine.partition("a", 64)
    async with computing(machine) as nursery:
        for index in range(64):
            nursery.start_soon(machine.scheduler.run, machine.vp("a", index), 20 * SECOND // 8)
        await trio.sleep(20.1)
        assert machine.host.clock() == pytest.approx(20.1 * SECOND, abs=1)
        assert sum(machine.times("a", index).run for index in range(64)) == 160 * SECOND * NS
        assert machine.scheduler.wakes <= 20 * 2 + 64


async def test_counters_are_what_was_dispatched(autojump_clock: MockClock) -> None:
    """Statistics pages: each LP has its own run time, a VP its dispatches (74) and its waiting (75, 100 ns)."""
    machine = Computers(2)
    scheduler = machine.scheduler
    scheduler.set_group(1, 0, "first", processors=(0,))
    for name, group in (("a", 1), ("b", 1), ("c", 0)):
        scheduler.set_partition(machine.partition(name).id, group)
    async with computing(machine) as nursery:
        nursery.start_soon(busy, machine, "a")
        nursery.start_soon(busy, machine, "b")
        nursery.start_soon(scheduler.run, machine.vp("c"), 300 * MS)
        await trio.sleep(1)
        first, second = (processor_counters(machine.host, lp)[ProcessorCounter.TOTAL_RUN_TIME] for lp in range(2))
        assert (first, second) == (SECOND, 300 * MS)
        a, c = (vp_counters(machine.vp(name)) for name in "ac")
        assert a[VpCounter.TOTAL_RUN_TIME] == pytest.approx(500 * MS, abs=10 * MS)
        assert a[VpCounter.LOGICAL_PROCESSOR_DISPATCHES] == pytest.approx(50, abs=1)
        assert a[VpCounter.WAITING_FOR_CPU_TIME] == pytest.approx(500 * MS, abs=20 * MS)
        assert (c[VpCounter.LOGICAL_PROCESSOR_DISPATCHES], c[VpCounter.WAITING_FOR_CPU_TIME]) == (1, 0)
        shown = scheduler.inspect_vp(machine.vp("a")).children
        assert shown["dispatches"] == a[VpCounter.LOGICAL_PROCESSOR_DISPATCHES]
        assert counters(machine.times("a"))["% Guest Run Time"] == pytest.approx(50, abs=1)
        assert counters(machine.times("a"))["CPU Wait Time Per Dispatch"] == pytest.approx(10_000_000, rel=0.05)
        assert counters(machine.times("c"))["%WAIT"] == 70


@pytest.mark.parametrize("ticks", [0, -1, -(2**63)])
async def test_no_work_keeps_nobody_from_running(autojump_clock: MockClock, ticks: int) -> None:
    """A program that works for no time at all, again and again, lets the host go on between."""
    machine = Computers(1)
    machine.partition("a")
    with trio.CancelScope() as scope:
        async with computing(machine) as nursery:
            nursery.start_soon(_cancel, scope)
            for _ in range(1000):
                await machine.scheduler.run(machine.vp("a"), ticks)
    assert scope.cancelled_caught
    assert machine.times("a").run == 0


async def _cancel(scope: trio.CancelScope) -> None:
    await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_nobody_goes_where_no_processor_is_left(autojump_clock: MockClock) -> None:
    """With all of them in groups the machine itself has none: refused as an unknown group, nothing changed."""
    machine = Computers(2)
    machine.scheduler.set_group(1, name="all", processors=(0, 1))
    machine.scheduler.set_group(2, 1, "inside")
    machine.partition("a", cpu_group_id=1)
    partition = machine.partitions["a"]
    async with computing(machine) as nursery:
        nursery.start_soon(busy, machine, "a")
        await trio.sleep(0.1)
        with pytest.raises(HvError) as refused:
            partition.set_property(Property.CPU_GROUP_ID, 0)
        assert refused.value.status is HvStatus.INVALID_CPU_GROUP_ID
        assert partition.properties[Property.CPU_GROUP_ID] == 1
        partition.set_property(Property.CPU_GROUP_ID, 2)
        await trio.sleep(0.1)
        assert machine.shares() == {"a": 100.0}
