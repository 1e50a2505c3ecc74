"""Automatic restart: when a VM starts again by itself, after how long, and when no more."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from hypervisor.clock import ticks
from hypervisor.machine import Machine
from hypervisor.msr import Msr
from hypervisor.trace import TraceEvent
from partitions import determinism, ports
from partitions.host import ExitReason, Host, InvalidTransition, ReturnCode, StartFailed, VmState
from partitions.lifecycle import VmEvent
from partitions.root.exits import ExitRecord
from partitions.root.restarts import FIRST_WAIT, LIMIT, LONGEST_WAIT, STABLE, Restarts, Wish
from partitions.topology_schema import DiskTable, Restart, VmTable
from tests.doubles.root import bare_host, clean, idle, power_off, vm_table

FAILED = {
    ExitReason.CRASHED,
    ExitReason.TRIPLE_FAULT,
    ExitReason.MEMORY_INTERCEPT,
    ExitReason.INTERCEPT,
    ExitReason.STOPPED,
    ExitReason.NOT_STARTED,
    ExitReason.WORKER_FAILED,
}


async def crash(machine: Machine) -> None:
    """Write the crash registers."""
    machine.write_msr(Msr.CRASH_P0, 0xBAD)
    machine.write_msr(Msr.CRASH_CTL, 1 << 63)
    await trio.sleep_forever()


def restarting(policy: Restart = Restart.ON_FAILURE) -> VmTable:
    return vm_table(restart=policy)


async def started_again(host: Host, count: int) -> list[float]:
    """The times of the next `count` starts, in seconds."""
    times = []
    with host["web"].events() as changes:
        async for change in changes:
            if change.event is VmEvent.RESTART:
                times.append(trio.current_time())
                if len(times) == count:
                    break
    return times


# --- the policy


def end(reason: ExitReason, exit_code: int | None = None, uptime: float = 0.0) -> ExitRecord:
    return ExitRecord("web", reason, exit_code, ended_at=ticks(uptime))


@pytest.mark.parametrize(("policy", "reason"), list(itertools.product(Restart, ExitReason)))
def test_each_end_and_each_policy(policy: Restart, reason: ExitReason) -> None:
    """On failure: whatever is not a clean power-off. Always: that too. Never; and what somebody ended: stay off."""
    again = reason in FAILED or reason is ExitReason.POWERED_OFF
    clean_end = reason is ExitReason.POWERED_OFF
    expected = {
        Restart.NEVER: False,
        Restart.ON_FAILURE: again and not clean_end,
        Restart.ALWAYS: again,
    }[policy]
    assert Restarts(policy).ended(end(reason), asked=False, told=False) is (Wish.AGAIN if expected else Wish.STAY_OFF)
    assert Restarts(policy).ended(end(reason), asked=True, told=False) is Wish.STAY_OFF
    assert Restarts(policy).ended(end(reason), asked=False, told=True) is Wish.STAY_OFF


def test_another_exit_code_is_a_failure() -> None:
    """A program that returned 1 has failed, though its kernel powered off in order."""
    restarts = Restarts(Restart.ON_FAILURE)
    assert restarts.ended(end(ExitReason.POWERED_OFF, 0), asked=False, told=False) is Wish.STAY_OFF
    assert restarts.ended(end(ExitReason.POWERED_OFF, 1), asked=False, told=False) is Wish.AGAIN


@given(st.lists(st.sampled_from([0.0, STABLE - 1, STABLE, 1e6]) | st.just("by hand"), max_size=60))
def test_a_row_doubles_its_waits_ends_with_a_long_run_and_has_a_limit(history: Sequence[float | str]) -> None:
    """Against a count by hand: 1, 2, 4 ... 60 seconds; a run of a minute or a start by hand begins a new row."""
    restarts = Restarts(Restart.ON_FAILURE)
    row = total = 0
    for step in history:
        if isinstance(step, str):
            restarts.by_hand()
            row = 0
            continue
        row = 0 if step >= STABLE else row
        wish = restarts.ended(end(ExitReason.CRASHED, uptime=step), asked=False, told=False)
        if row == LIMIT:
            assert wish is Wish.GIVE_UP
        else:
            row += 1
            total += 1
            assert wish is Wish.AGAIN
            assert restarts.wait == min(FIRST_WAIT * 2 ** (row - 1), LONGEST_WAIT)
        assert (restarts.in_a_row, restarts.total) == (row, total)


# --- on the virtual clock


async def test_a_guest_that_always_crashes_is_restarted_slower_and_slower_and_then_no_more(
    autojump_clock: trio.abc.Clock,
) -> None:
    """The whole row, to the second; the last exit says that the policy gave up, and people are told each time."""
    seen: list[TraceEvent] = []
    async with bare_host(crash, restarting(), sinks=[seen.append]) as host:
        vm = host["web"]
        begun = trio.current_time()
        times: list[float] = []
        async with trio.open_nursery() as nursery:

            async def note() -> None:
                times.extend(await started_again(host, LIMIT))

            nursery.start_soon(note)
            await wait_all_tasks_blocked()
            await vm.start()
            await host.wait_all()
        waits = [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
        assert [time - begun for time in times] == pytest.approx(list(itertools.accumulate(waits)))
        assert vm.state is VmState.OFF
        assert vm.restarts == LIMIT
        assert vm.exit is not None
        assert (vm.exit.reason, vm.exit.ok, vm.exit.gave_up_after) == (ExitReason.CRASHED, False, LIMIT)
        assert str(vm.exit).startswith("crashed: ")
        assert str(vm.exit).endswith("; stays off after 10 restarts in a row")
        assert [event.fields["wait"] for event in seen if event.event == "vm_restart"] == waits
        assert [event.fields["in_a_row"] for event in seen if event.event == "vm_restart"] == list(range(1, LIMIT + 1))
        last = [event for event in seen if event.event == "vm_ended"][-1]
        assert last.words == str(vm.exit)
        await vm.start()  # a person may always try
        assert vm.restarts == LIMIT
        await vm.wait()
        assert vm.state is VmState.WAITING
        assert vm.exit.gave_up_after == 0


async def test_a_run_that_lasted_ends_the_row(autojump_clock: trio.abc.Clock) -> None:
    """A guest that crashes once in a while is back after a second each time, for ever."""

    async def guest(machine: Machine) -> None:
        await machine.sleep_until(ticks(STABLE + 1))
        await crash(machine)

    async with bare_host(guest, restarting()) as host:
        await host["web"].start()
        times = await started_again(host, 3 * LIMIT)
        gaps = [after - before for before, after in itertools.pairwise(times)]
        assert gaps == pytest.approx([STABLE + 2] * (3 * LIMIT - 1))


@pytest.mark.parametrize("policy", list(Restart))
async def test_a_clean_power_off(policy: Restart, autojump_clock: trio.abc.Clock) -> None:
    """Only `always` undoes what the guest itself has decided; it gives up in the end, and that is no good end."""
    async with bare_host(clean, restarting(policy)) as host:
        vm = host["web"]
        await vm.start()
        record = await vm.wait()
        assert record.ok
        ended = (await host.wait_all())["web"]
        expected = (LIMIT, False) if policy is Restart.ALWAYS else (0, True)
        assert (vm.restarts, ended.ok) == expected


async def test_the_restarted_vm_is_a_new_run(autojump_clock: trio.abc.Clock) -> None:
    """Another partition, the same console; who waited for the run that crashed has its record."""
    boots = 0

    async def guest(machine: Machine) -> None:
        nonlocal boots
        boots += 1
        await (crash if boots == 1 else idle)(machine)

    async with bare_host(guest, restarting()) as host:
        vm = host["web"]
        changes = vm.events()
        await vm.start()
        first = vm.partition_id
        assert (await vm.wait()).reason is ExitReason.CRASHED
        assert (vm.state, vm.state.enabled_state, vm.partition_id) == (VmState.WAITING, 3, None)
        assert await vm.wait_state(VmState.RUNNING)
        assert vm.exit is None
        assert vm.partition_id != first
        await trio.sleep(1)
        assert vm.console.lines() == ["idle"]
        await vm.turn_off()
        host.destroy("web")
        assert [change.event.value async for change in changes] == [
            *("start", "started", "ended_for_now", "restart", "started", "turn_off", "ended", "destroy"),
        ]


async def test_a_wait_can_be_cancelled_or_cut_short(autojump_clock: trio.abc.Clock) -> None:
    """`turn_off` while it waits: it stays off. `start`: at once, and the old timer does nothing later."""
    boots = 0

    async def guest(machine: Machine) -> None:
        nonlocal boots
        boots += 1
        await (idle if boots == 3 else crash)(machine)

    async with bare_host(guest, restarting()) as host:
        vm = host["web"]
        await vm.start()
        await vm.wait()
        await vm.turn_off()
        assert vm.state is VmState.OFF
        await trio.sleep(100)
        assert (vm.state, boots) == (VmState.OFF, 1)

        await vm.start()
        await vm.wait()
        for refused in (vm.pause, vm.resume, vm.reset, vm.shut_down):
            with pytest.raises(InvalidTransition, match="while waiting"):
                await refused()
        with pytest.raises(InvalidTransition):
            host.destroy("web")
        assert await vm.request_state_change(2) is ReturnCode.COMPLETED
        assert vm.state is VmState.RUNNING
        await trio.sleep(100)
        assert (vm.state, boots) == (VmState.RUNNING, 3)


async def test_a_restart_in_the_next_moment_after_its_end_is_cancelled_as_well(autojump_clock: trio.abc.Clock) -> None:
    """Between the end and the first step of the wait's task, too."""
    async with bare_host(crash, restarting()) as host:
        vm = host["web"]
        with vm.events() as changes:
            await vm.start()
            async for change in changes:
                if change.event is VmEvent.ENDED_FOR_NOW:
                    break
        host.turn_all_off()
        assert vm.state is VmState.OFF
        await trio.sleep(100)
        assert vm.restarts == 1, "counted, and never made"
        assert vm.state is VmState.OFF


@pytest.mark.parametrize("policy", [Restart.ON_FAILURE, Restart.ALWAYS])
@pytest.mark.parametrize("way", ["turn_off", "shut_down", "crash in shut_down", "host"])
async def test_what_somebody_ends_stays_off(way: str, policy: Restart, autojump_clock: trio.abc.Clock) -> None:
    """However the guest answers."""

    async def guest(machine: Machine) -> None:
        machine.write_msr(Msr.EOM, 0)
        while not machine.port_in(ports.POWER, 2) & ports.POWER_BUTTON:
            await machine.sleep_until(machine.read_msr(Msr.TIME_REF_COUNT) + ticks(0.1))
        if way == "shut_down":
            power_off(machine)
        await crash(machine)

    async with bare_host(guest, restarting(policy)) as host:
        vm = host["web"]
        await vm.start()
        await trio.sleep(1)
        match way:
            case "turn_off":
                await vm.turn_off()
            case "host":
                host.turn_all_off()
                await host.wait_all()
            case _:
                await vm.shut_down()
        assert vm.state is VmState.OFF
        await trio.sleep(200)
        assert (vm.state, vm.restarts) == (VmState.OFF, 0)


async def test_turning_off_a_vm_that_is_just_ending(autojump_clock: trio.abc.Clock) -> None:
    """The first reason counts, so its exit says that it crashed; that somebody wants it off counts as well."""

    async def guest(machine: Machine) -> None:
        machine.write_msr(Msr.CRASH_P0, 0xBAD)
        try:
            machine.write_msr(Msr.CRASH_CTL, 1 << 63)
        finally:
            host.turn_all_off()  # before the worker has taken a step

    async with bare_host(guest, restarting()) as host:
        vm = host["web"]
        await vm.start()
        ended = (await host.wait_all())["web"]
        assert ended.reason is ExitReason.CRASHED
        await trio.sleep(100)
        assert (vm.state, vm.restarts) == (VmState.OFF, 0)


async def test_shutting_all_down_cancels_waits_as_well(autojump_clock: trio.abc.Clock) -> None:
    """Ctrl-C on a run whose VM waits ends the run at once."""
    async with bare_host(crash, restarting()) as host:
        await host["web"].start()
        await host["web"].wait()
        asked = trio.current_time()
        await host.shut_down_all()
        await host.wait_all()
        assert trio.current_time() == asked
        assert host["web"].state is VmState.OFF


async def test_a_host_that_ends_waits_for_no_restart(autojump_clock: trio.abc.Clock) -> None:
    """Its block ends at once, with every VM off."""
    async with bare_host(crash, restarting()) as host:
        await host["web"].start()
        await host["web"].wait()
        left = trio.current_time()
    assert host["web"].state is VmState.OFF
    assert trio.current_time() == left


async def test_a_start_that_somebody_asked_for_is_not_repeated(autojump_clock: trio.abc.Clock) -> None:
    """Who asks is told that it failed."""
    broken = vm_table(restart=Restart.ALWAYS, disk=[DiskTable(path="/nonexistent/image.raw")])
    async with bare_host(clean, broken) as host:
        with pytest.raises(StartFailed):
            await host["web"].start()
        await trio.sleep(100)
        assert (host["web"].state, host["web"].restarts) == (VmState.OFF, 0)


def test_a_restart_that_does_not_start_is_tried_again() -> None:
    """The program was taken away meanwhile: each attempt counts, and the row ends as any other."""
    attempts = 0

    async def main() -> ExitRecord:
        nonlocal attempts
        async with bare_host(crash, restarting()) as host:
            services = host.vmms._host
            make = services.make_backend

            def once(*arguments: object) -> object:
                nonlocal attempts
                attempts += 1
                if attempts > 1:
                    raise OSError("the program is gone")
                return make(*arguments)  # type: ignore[arg-type]

            host.vmms._host = attrs.evolve(services, make_backend=once)  # type: ignore[arg-type]
            await host["web"].start()
            return (await host.wait_all())["web"]

    record = determinism.run(main, clock="virtual")
    assert attempts == 1 + LIMIT
    assert str(record) == "not started: the program is gone; stays off after 10 restarts in a row"


async def test_a_guest_that_resets_itself_is_not_restarted(autojump_clock: trio.abc.Clock) -> None:
    """A reset is no end: the same run and partition, no wait, no count."""
    boots = 0

    async def guest(machine: Machine) -> None:
        nonlocal boots
        boots += 1
        if boots < 4:
            machine.port_out(ports.RESET, 1, ports.RESET_NOW)
        power_off(machine)

    async with bare_host(guest, restarting()) as host:
        vm = host["web"]
        await vm.start()
        ended = (await host.wait_all())["web"]
        assert (ended.ok, ended.resets, vm.restarts, boots) == (True, 3, 0, 4)


def test_the_same_seed_gives_the_same_restarts() -> None:
    """Two VMs that crash and restart: every event at the same time and in the same order."""

    async def main() -> list[tuple[int, str, str]]:
        seen: list[tuple[int, str, str]] = []
        tables = [vm_table(name, restart=Restart.ON_FAILURE) for name in ("web", "db")]
        async with bare_host(crash, *tables) as host:
            changes = host.events()
            await host.start_all()
            await host.wait_all()
        async for change in changes:
            seen.append((change.time, change.vm, change.event.value))
        return seen

    first, second = (determinism.run(main, clock="virtual", seed=7) for _ in range(2))
    assert first == second
    assert len(first) > 4 * LIMIT
