from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from hypervisor.machine import Machine
from hypervisor.msr import Msr
from hypervisor.partition import Partition
from partitions import ports
from partitions.host import (
    ExitReason,
    InvalidTransition,
    ReturnCode,
    StartFailed,
    Vm,
    VmEvent,
    VmState,
    open_host,
)
from partitions.topology_schema import DiskTable
from tests.doubles.root import (
    bare_host,
    boot_synic,
    clean,
    held,
    idle,
    power_off,
    say,
    topology,
    vm_table,
)


async def test_pause_withholds_time_and_interrupts(autojump_clock: trio.abc.Clock) -> None:
    """A paused guest does not see the time that passes, and what was due comes after the resume."""
    seen: list[float] = []

    async def guest(machine: Machine) -> None:
        await machine.sleep_until(10_000_000)
        seen.append(trio.current_time())
        power_off(machine)

    async with bare_host(guest) as host:
        vm = host["web"]
        begun = trio.current_time()
        await vm.start()
        await trio.sleep(0.5)
        await vm.pause()
        assert vm.state is VmState.PAUSED
        await trio.sleep(100)
        assert seen == []
        await vm.resume()
        await vm.wait()
        assert seen[0] - begun == pytest.approx(101)
        assert vm.uptime == pytest.approx(101)


async def test_reset_by_the_host(autojump_clock: trio.abc.Clock) -> None:
    """The same partition, memory zero, registers as at power on, time from zero; the guest boots again."""
    boots: list[tuple[int, int, int, int]] = []

    async def guest(machine: Machine) -> None:
        os_id = machine.read_msr(Msr.GUEST_OS_ID)
        boots.append((machine.memory[0x8000], os_id, machine.read_msr(Msr.TIME_REF_COUNT), machine.vp_index))
        boot_synic(machine)
        machine.memory[0x8000] = 7
        say(machine, "up\n")
        await trio.sleep_forever()

    async with bare_host(guest) as host:
        vm = host["web"]
        await vm.start()
        await trio.sleep(1)
        partition = vm.partition_id
        await vm.reset()
        await trio.sleep(1)
        assert vm.partition_id == partition
        assert [boot[:2] for boot in boots] == [(0, 0), (0, 0)]
        assert all(boot[2] < 100_000 for boot in boots)
        await vm.pause()
        await vm.reset()  # from Paused, too: it runs afterwards
        assert vm.state is VmState.RUNNING
        await trio.sleep(1)
        assert vm.console.lines() == ["up", "up", "up"]
        await vm.turn_off()
        assert vm.exit is not None
        assert vm.exit.resets == 2


@pytest.mark.parametrize("way", ["port", "msr"])
async def test_reset_by_the_guest(way: str, autojump_clock: trio.abc.Clock) -> None:
    """By the chipset's port or the synthetic register; the instruction does not come back."""
    boots = 0

    async def guest(machine: Machine) -> None:
        nonlocal boots
        boots += 1
        if boots == 3:
            power_off(machine)
        elif way == "port":
            machine.port_out(ports.RESET, 1, ports.RESET_NOW)
        else:
            machine.write_msr(Msr.RESET, 1)
        say(machine, "after\n")

    async with bare_host(guest) as host:
        changes = host["web"].events()
        await host["web"].start()
        ended = await host["web"].wait()
        assert (ended.resets, ended.ok, boots) == (2, True, 3)
        assert host["web"].console.text == ""
        host.destroy("web")
        assert [change.event.value async for change in changes] == [
            *("start", "started"),
            *("guest_reset", "was_reset", "guest_reset", "was_reset", "ended", "destroy"),
        ]


async def test_a_reset_reaches_the_chipset(autojump_clock: trio.abc.Clock) -> None:
    """What the guest told before it reset itself is not told by the one that boots afterwards."""
    boots = 0

    async def guest(machine: Machine) -> None:
        nonlocal boots
        boots += 1
        if boots == 1:
            machine.port_out(ports.EXIT_CODE, 4, 9)
            machine.port_out(ports.RESET, 1, ports.RESET_NOW)
        machine.port_out(ports.POWER, 2, ports.POWER_OFF)

    async with bare_host(guest) as host:
        await host["web"].start()
        ended = await host["web"].wait()
        assert (ended.resets, ended.exit_code, ended.ok) == (1, None, True)


async def test_the_first_reason_counts(autojump_clock: trio.abc.Clock) -> None:
    """A VM that crashed and is turned off while its worker takes it down has crashed."""
    async with bare_host(idle) as host:
        await host["web"].start()
        worker = host["web"]._managed.worker
        assert worker is not None
        worker.end(ExitReason.CRASHED, "first")
        await host["web"].turn_off()
        assert str(host["web"].exit) == "crashed: first"


async def test_turn_off_does_not_ask(autojump_clock: trio.abc.Clock) -> None:
    """The guest gets no chance to tidy up."""
    tidied: list[str] = []

    async def guest(machine: Machine) -> None:
        try:
            await trio.sleep_forever()
        finally:
            say(machine, "bye\n")
            tidied.append("said bye")

    async with bare_host(guest) as host:
        vm = host["web"]
        await vm.start()
        await wait_all_tasks_blocked()
        await vm.turn_off()
        assert (vm.state, vm.exit is not None and vm.exit.reason) == (VmState.OFF, ExitReason.TURNED_OFF)
        assert vm.console.text == ""
        assert tidied == []
        with pytest.raises(InvalidTransition, match="cannot turn off while off"):
            await vm.turn_off()


async def test_shut_down_with_a_guest_that_knows_the_button(autojump_clock: trio.abc.Clock) -> None:
    """The button interrupts processor 0 and shows in the power port; the guest acknowledges and powers off."""

    async def guest(machine: Machine) -> None:
        assert await machine.halt() == ports.POWER_BUTTON_VECTOR
        assert machine.port_in(ports.POWER, 2) & ports.POWER_BUTTON
        machine.port_out(ports.POWER, 2, ports.POWER_BUTTON)
        assert not machine.port_in(ports.POWER, 2)
        power_off(machine)

    async with bare_host(guest) as host:
        await host["web"].start()
        ended = await host["web"].shut_down(grace=5)
        assert (ended.reason, trio.current_time()) == (
            ExitReason.POWERED_OFF,
            pytest.approx(host.hypervisor.clock() / 1e7),
        )


async def test_shut_down_with_a_guest_that_does_not(autojump_clock: trio.abc.Clock) -> None:
    """After the grace period its power is cut."""
    async with bare_host(idle, vm_table("a"), vm_table("b")) as host:
        await host.start_all()
        await host["b"].pause()
        begun = trio.current_time()
        await host.shut_down_all(grace=5)
        assert trio.current_time() - begun == pytest.approx(5)
        exits = await host.wait_all()
        assert {ended.reason for ended in exits.values()} == {ExitReason.TURNED_OFF}


async def test_shut_down_of_guests_that_end_at_that_moment(autojump_clock: trio.abc.Clock) -> None:
    """Whoever comes first, the guest or the request: both want it off. Once the request raised `InvalidTransition`."""
    for turns in [*range(16)] * 4:  # one of them is the moment, and there the scheduler throws a coin
        leave = trio.Event()

        async def guest(machine: Machine, leave: trio.Event = leave) -> None:
            await leave.wait()
            power_off(machine)

        async with bare_host(guest, vm_table("a"), vm_table("b")) as host:
            await host.start_all()
            leave.set()
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            await host.shut_down_all(grace=5)
            assert {ended.reason for ended in (await host.wait_all()).values()} == {ExitReason.POWERED_OFF}


async def test_who_waits_for_a_run_hears_of_its_end_however_soon_the_next_one_starts(
    autojump_clock: trio.abc.Clock,
) -> None:
    """Once a watcher that started the VM again at once made those who waited wait for the next end, or fail."""
    for _ in range(10):  # the scheduler throws a coin each time
        heard: list[int] = []
        boots = 0

        async def guest(machine: Machine) -> None:
            nonlocal boots
            boots += 1
            if boots == 1:
                await machine.sleep_until(10_000_000)
                power_off(machine, 1)
            await trio.sleep_forever()

        async with bare_host(guest) as host, trio.open_nursery() as nursery:
            vm = host["web"]

            async def restart(vm: Vm = vm) -> None:
                async for change in vm.events():
                    if change.after is VmState.OFF:
                        await vm.start()
                        return

            async def wait(vm: Vm = vm, heard: list[int] = heard) -> None:
                heard.append((await vm.wait()).exit_code or 0)

            async def shut_down(vm: Vm = vm, heard: list[int] = heard) -> None:
                heard.append((await vm.shut_down(grace=2)).exit_code or 0)

            await vm.start()
            for task in (wait, restart, shut_down, wait):
                nursery.start_soon(task)
            await trio.sleep(5)
            assert heard == [1, 1, 1]
            assert vm.state is VmState.RUNNING


async def test_one_operation_at_a_time(autojump_clock: trio.abc.Clock) -> None:
    """While the power button's grace runs nothing but turning off may start, and that ends it."""
    async with bare_host(idle) as host, trio.open_nursery() as nursery:
        vm = host["web"]
        await vm.start()
        nursery.start_soon(vm.shut_down, 1000)
        await wait_all_tasks_blocked()
        assert vm.state is VmState.SHUTTING_DOWN
        for operation in (vm.start, vm.pause, vm.resume, vm.reset, vm.shut_down):
            with pytest.raises(InvalidTransition):
                await operation()
        await vm.turn_off()
        assert vm.state is VmState.OFF
    assert trio.current_time() < 100 + 1000


async def test_who_follows_a_vm_that_is_destroyed_comes_to_the_end(autojump_clock: trio.abc.Clock) -> None:
    """Its console and its changes end with its definition, not with the host."""
    async with bare_host(clean) as host:
        lines, changes = host["web"].console.follow(), host["web"].events()
        host.destroy("web")
        with trio.fail_after(1):
            assert [line async for line in lines] == []
            assert [change.event async for change in changes] == [VmEvent.DESTROY]


async def test_refused_requests_change_nothing(autojump_clock: trio.abc.Clock) -> None:
    """A VM that is off cannot be paused, resumed, reset; one that runs cannot be started or destroyed."""
    async with bare_host(idle) as host:
        vm = host["web"]
        for operation in (vm.pause, vm.resume, vm.reset, vm.shut_down):
            with pytest.raises(InvalidTransition, match="while off"):
                await operation()
        await vm.start()
        for operation in (vm.start, vm.resume):
            with pytest.raises(InvalidTransition, match="while running"):
                await operation()
        with pytest.raises(InvalidTransition):
            host.destroy("web")
        assert vm.state is VmState.RUNNING


async def test_request_state_change(autojump_clock: trio.abc.Clock) -> None:
    """Hyper-V's numbers in, Hyper-V's codes out."""
    async with bare_host(idle) as host:
        vm = host["web"]
        asked = [9, 2, 2, 9, 9, 2, 11, 6, 10, 12345, 0, 32776, 3, 3]
        answers = [await vm.request_state_change(number) for number in asked]
        bad, ok = ReturnCode.INVALID_STATE, ReturnCode.COMPLETED
        unsupported, nonsense = ReturnCode.NOT_SUPPORTED, ReturnCode.INVALID_PARAMETER
        assert answers == [
            *(bad, ok, bad, ok, bad, ok, ok),
            *(ReturnCode.FAILED, unsupported, nonsense, nonsense, nonsense, ok, bad),
        ]


async def test_request_state_change_that_fails(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A start that fails is FAILED, not an exception."""
    async with bare_host(idle, vm_table(disk=[DiskTable(path="none")]), folder=tmp_path) as host:
        assert await host["web"].request_state_change(2) is ReturnCode.FAILED


class SlowBackend:
    """Takes ten seconds before its processors are ready."""

    async def run(self, partition: Partition, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await trio.sleep(10)
        task_status.started()
        await trio.sleep_forever()

    def set_line(self, line: int, high: bool) -> None:
        """It has no interrupt lines."""


async def test_turning_off_while_starting(autojump_clock: trio.abc.Clock) -> None:
    """A start that is interrupted fails and says by what."""
    async with open_host(topology(vm_table()), backends=lambda hypervisor, vm: SlowBackend()) as host:
        vm = host["web"]
        before = held(host)

        async def interrupt() -> None:
            await trio.sleep(5)
            assert vm.state is VmState.STARTING
            await vm.turn_off()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupt)
            with pytest.raises(StartFailed, match="web: turned off"):
                await vm.start()
        assert vm.state is VmState.OFF
        assert held(host) == before
        await vm.start()
        assert host.hypervisor.clock() == 150_000_000


async def test_cancelling_a_start(autojump_clock: trio.abc.Clock) -> None:
    """Whoever cancels the start gets no VM, and nothing is left of it."""
    async with open_host(topology(vm_table()), backends=lambda hypervisor, vm: SlowBackend()) as host:
        before = held(host)
        with trio.move_on_after(5) as scope:
            await host["web"].start()
        assert scope.cancelled_caught
        await host["web"].wait_state(VmState.OFF)
        assert held(host) == before
