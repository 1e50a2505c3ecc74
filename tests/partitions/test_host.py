from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import partitions
from hypervisor.clock import seconds
from hypervisor.machine import Machine
from hypervisor.msr import CRASH_MESSAGE, CRASH_NOTIFY, Msr
from hypervisor.partition import Partition
from hypervisor.trace import Layer, TraceEvent
from partitions import ports
from partitions.host import (
    ExitReason,
    Host,
    InvalidTransition,
    ReturnCode,
    StartFailed,
    UnknownVm,
    VmEvent,
    VmState,
    open_host,
)
from partitions.topology_schema import DeviceTable, DiskTable, Size
from tests.doubles.root import (
    MIB,
    bare_host,
    boot_synic,
    clean,
    idle,
    post,
    power_off,
    say,
    topology,
    vm_table,
)


@attrs.frozen
class Held:
    """What a host holds for its VMs; the same before and after a VM's life."""

    partitions: int
    root_bytes: int
    port_ids: int
    connection_ids: int
    flags: int
    root_ports: int
    root_connections: int
    handlers: int
    files: int


def held(host: Host) -> Held:
    hv, winhv = host.hypervisor, host.winhv
    # Blocks to deposit from are kept by the host for the next VM.
    deposits = [block for block in hv._root_blocks.values() if "deposits" in block.name]
    return Held(
        partitions=len(hv.partitions),
        root_bytes=hv.root_bytes - sum(block.size for block in deposits),
        port_ids=len(winhv.port_ids.in_use),
        connection_ids=len(winhv.connection_ids.in_use),
        flags=winhv.flags.taken,
        root_ports=len(hv.root.ports),
        root_connections=len(hv.root.connections),
        handlers=len(winhv.message_handlers) + len(winhv.hypervisor_handlers),
        files=len(os.listdir("/proc/self/fd")) - len(deposits),
    )


# --- how VMs end


async def test_power_off(autojump_clock: trio.abc.Clock) -> None:
    """The everyday life: start, print, power off with exit code 0."""
    async with bare_host(clean) as host:
        vm = host["web"]
        assert (vm.state, vm.exit) == (VmState.OFF, None)
        await vm.start()
        ended = await vm.wait()
        assert ended is vm.exit
        assert ended.ok
        assert (ended.reason, ended.exit_code, str(ended)) == (ExitReason.POWERED_OFF, 0, "powered off")
        assert (vm.console.text, ended.console_tail) == ("done\n", ("done",))
        assert vm.state is VmState.OFF


async def test_exit_code(autojump_clock: trio.abc.Clock) -> None:
    """A program that failed says so before it powers off."""

    async def guest(machine: Machine) -> None:
        power_off(machine, 3)

    async with bare_host(guest) as host:
        await host.start_all()
        exits = await host.wait_all()
        assert not exits["web"].ok
        assert str(exits["web"]) == "powered off, exit code 3"


async def test_crash_registers(autojump_clock: trio.abc.Clock) -> None:
    """The report is kept whole, and the VM goes off; what the guest does after it reaches nobody."""

    async def guest(machine: Machine) -> None:
        text = b"panic: no init\nCall trace"
        machine.memory[0x5000 : 0x5000 + len(text)] = text
        for number, value in enumerate((0xDEAD, 1, 2, 0x5000, len(text))):
            machine.write_msr(Msr.CRASH_P0 + number, value)
        machine.write_msr(Msr.CRASH_CTL, CRASH_NOTIFY | CRASH_MESSAGE)
        say(machine, "still here?")

    async with bare_host(guest) as host:
        await host["web"].start()
        ended = await host["web"].wait()
        assert (ended.reason, ended.ok, ended.detail) == (ExitReason.CRASHED, False, "panic: no init")
        assert ended.crash is not None
        assert ended.crash.parameters[0] == 0xDEAD
        assert host["web"].console.text == ""


async def test_an_exception_in_a_model_guest_is_a_triple_fault(autojump_clock: trio.abc.Clock) -> None:
    """It comes by the hypervisor's message as a real one would, and its traceback is there for people."""

    async def guest(machine: Machine) -> None:
        raise ZeroDivisionError("in the guest")

    async with bare_host(guest) as host:
        await host["web"].start()
        ended = await host["web"].wait()
        assert (ended.reason, ended.ok) == (ExitReason.TRIPLE_FAULT, False)
        assert "ZeroDivisionError: in the guest" in ended.traceback


async def test_a_memory_intercept_turns_off(autojump_clock: trio.abc.Clock) -> None:
    """A hypercall whose input page is not there stops the processor; the root has no help to give."""

    async def guest(machine: Machine) -> None:
        boot_synic(machine)
        await machine.sleep_until(10_000_000)
        machine.hypercall(0x5C, 0x80 * 4096)
        say(machine, "not reached")

    async with bare_host(guest) as host:
        await host["web"].start()
        await wait_all_tasks_blocked()
        partition = host["web"].partition_id
        assert partition is not None
        host.winhv.unmap_gpa_pages(partition, 0x80, 1)
        ended = await host["web"].wait()
        assert (ended.reason, ended.detail) == (ExitReason.MEMORY_INTERCEPT, "unmapped gpa")
        assert host["web"].console.text == ""


async def test_software_that_just_ends(autojump_clock: trio.abc.Clock) -> None:
    """A guest that returns without powering off has not done well."""

    async def guest(machine: Machine) -> None:
        say(machine, "no more")

    async with bare_host(guest) as host:
        await host["web"].start()
        ended = await host["web"].wait()
        assert (ended.reason, ended.ok) == (ExitReason.STOPPED, False)
        assert ended.console_tail == ("no more",)


async def test_a_disk_in_use(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Two VMs with one image: the second does not start, says why, and can once the first is off."""
    disk = DiskTable(path="d.img", size=Size(MIB))
    first, second = vm_table("first", disk=[disk]), vm_table("second", disk=[disk])
    async with bare_host(idle, first, second, folder=tmp_path) as host:
        await host["first"].start()
        before = held(host)
        with pytest.raises(StartFailed, match=r"second: not started: .*d\.img is in use") as failed:
            await host["second"].start()
        assert failed.value.exit.reason is ExitReason.NOT_STARTED
        assert host["second"].state is VmState.OFF
        assert held(host) == before
        await host["first"].turn_off()
        await host["second"].start()
        assert host["second"].state is VmState.RUNNING


@pytest.mark.parametrize("disk", [DiskTable(path="none.img"), DiskTable(path=".", read_only=True)])
async def test_an_image_that_cannot_be_opened(disk: DiskTable, tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A missing image, a folder: words for people, no traceback of ours as the reason."""
    async with bare_host(idle, vm_table(disk=[disk]), folder=tmp_path) as host:
        with pytest.raises(StartFailed, match="not started"):
            await host["web"].start()


async def test_no_memory_left(autojump_clock: trio.abc.Clock) -> None:
    """The host's memory is what the topology says; start_all starts those that fit."""
    vms = [vm_table(name, memory=Size(3 * MIB)) for name in ("a", "b", "c")]
    async with bare_host(idle, *vms, memory=7 * MIB) as host:
        with pytest.raises(StartFailed, match="c: not started: 3 MiB of memory wanted, 1 MiB are left"):
            await host.start_all()
        assert [vm.state.value for vm in host.values()] == ["running", "running", "off"]


# --- our own failures


ECHO = """
from hypervisor.wire import Guid
from vmbus.server.offers import Offer

class Echo:
    offer = Offer(Guid("11111111-2222-3333-4444-555555555555"), Guid("99999999-2222-3333-4444-555555555555"))
    async def serve(self, channel, opened):
        raise RuntimeError("a bug of ours")

class Broken:
    def __init__(self):
        raise LookupError("no")

class NoDevice:
    pass
"""


async def test_a_worker_failure_stays_in_its_vm(autojump_clock: trio.abc.Clock) -> None:
    """An exception of ours turns off that VM, with its traceback; its sibling does not notice, and the host goes on."""

    async def fails(machine: Machine) -> None:
        say(machine, "about to fail\n")
        await machine.sleep_until(machine.read_msr(Msr.TIME_REF_COUNT) + 10_000_000)

    async with bare_host({"bad": fails, "good": idle}, vm_table("bad"), vm_table("good")) as host:
        await host.start_all()
        await wait_all_tasks_blocked()
        before = host["good"].statistics()
        worker = host["bad"]._managed.worker
        assert worker is not None
        server = worker.server
        assert server is not None
        server._state.handle = None  # type: ignore[method-assign, assignment]  # a bug of ours
        server._arrived(b"xx", multiclient=False)
        ended = await host["bad"].wait()
        assert (ended.reason, ended.ok) == (ExitReason.WORKER_FAILED, False)
        assert "TypeError" in ended.detail
        assert "TypeError" in ended.traceback
        with pytest.raises(TypeError):
            ended.raise_worker_failure()
        assert (host["good"].state, host["good"].statistics()) == (VmState.RUNNING, before)
        await host["bad"].start()
        assert host["bad"].state is VmState.RUNNING


@pytest.mark.parametrize(
    ("name", "reason"),
    [("Broken", "LookupError: no"), ("NoDevice", "a VSP has an `offer`"), ("Missing", "AttributeError")],
)
async def test_a_vsp_that_does_not_load(name: str, reason: str, tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Other people's code may raise whatever it likes: this VM does not start."""
    (tmp_path / "vsp.py").write_text(ECHO)
    table = vm_table(device=[DeviceTable(vsp=f"vsp.py:{name}")])
    async with bare_host(idle, table, folder=tmp_path) as host:
        with pytest.raises(StartFailed, match=reason):
            await host["web"].start()


async def test_a_vsp_from_a_file_is_offered(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Each VM has an instance of its own."""
    (tmp_path / "vsp.py").write_text(ECHO)
    tables = [vm_table(name, device=[DeviceTable(vsp="vsp.py:Echo")]) for name in ("a", "b")]
    async with bare_host(idle, *tables, folder=tmp_path) as host:
        await host.start_all()
        assert [vm.state.value for vm in host.values()] == ["running", "running"]


# --- operations


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
            *(unsupported, unsupported, nonsense, nonsense, nonsense, ok, bad),
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


# --- the host


async def test_nothing_is_left_behind(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Partitions, blocks, ports, flags, handlers, descriptors: all as before, whichever way VMs end."""
    ends = 0

    async def guest(machine: Machine) -> None:
        nonlocal ends
        ends += 1
        boot_synic(machine)
        post(machine, 1, b"not a channel message")
        match ends % 4:
            case 0:
                power_off(machine)
            case 1:
                raise ValueError
            case 2:
                machine.write_msr(Msr.CRASH_CTL, CRASH_NOTIFY)
            case _:
                pass

    table = vm_table(processors=3, disk=[DiskTable(path="d.img", size=Size(MIB))])
    async with bare_host(guest, table, folder=tmp_path) as host:
        await host["web"].start()
        await host["web"].wait()
        before, free = held(host), host.vid.pool.free_pages
        for _ in range(12):
            await host["web"].start()
            await host["web"].wait()
        assert (held(host), host.vid.pool.free_pages) == (before, free)
        assert host["web"]._managed.starts == 13


async def test_leaving_turns_everything_off(autojump_clock: trio.abc.Clock) -> None:
    """A host that is closed has no running VM, and leaves no memory and no descriptor."""
    files = len(os.listdir("/proc/self/fd"))
    async with bare_host(idle, vm_table("a"), vm_table("b")) as host:
        await host.start_all()
        a = host["a"]
    assert a.state is VmState.OFF
    assert a.exit is not None
    assert a.exit.reason is ExitReason.TURNED_OFF
    assert list(host.hypervisor.partitions) == [1]
    assert len(os.listdir("/proc/self/fd")) == files


async def test_cancelling_a_host(autojump_clock: trio.abc.Clock) -> None:
    """Cancellation from outside takes everything down, too."""
    files = len(os.listdir("/proc/self/fd"))
    with trio.move_on_after(1) as scope:
        async with bare_host(idle) as host:
            await host["web"].start()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert host["web"].exit is not None
    assert len(os.listdir("/proc/self/fd")) == files


async def test_an_exception_comes_out_as_it_went_in(autojump_clock: trio.abc.Clock) -> None:
    """What the caller's block raises is not wrapped in a group of our nursery's."""

    async def body() -> None:
        async with bare_host(idle) as host:
            await host["web"].start()
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await body()


async def test_a_host_is_a_mapping(autojump_clock: trio.abc.Clock) -> None:
    """Of names to VMs, in the topology's order, with the same object each time."""
    async with bare_host(idle, vm_table("b"), vm_table("a")) as host:
        assert list(host) == ["b", "a"]
        assert len(host) == 2
        assert host["a"] is host["a"]
        assert "c" not in host
        with pytest.raises(UnknownVm, match="no VM is called 'c'; there are: b, a"):
            host["c"]
        added = host.define(vm_table("c"))
        assert host["c"] is added
        with pytest.raises(ValueError, match="defined already"):
            host.define(vm_table("c"))
        host.destroy("c")
        assert list(host) == ["b", "a"]
        with pytest.raises(RuntimeError, match="never started"):
            await host["a"].wait()


async def test_events_of_all(autojump_clock: trio.abc.Clock) -> None:
    """The host's stream has every VM's changes, with times, and ends with the host."""
    async with bare_host(clean, vm_table("a"), vm_table("b")) as host:
        changes = host.events()
        await host.start_all()
        await host.wait_all()
    seen = [(change.vm, change.event) async for change in changes]
    for name in ("a", "b"):
        assert [event for vm, event in seen if vm == name] == [VmEvent.START, VmEvent.STARTED, VmEvent.ENDED]


async def test_statistics_outlive_the_vm(autojump_clock: trio.abc.Clock) -> None:
    """What a VM did can be asked after it has ended."""

    async def guest(machine: Machine) -> None:
        boot_synic(machine)
        post(machine, 1, b"nonsense")
        await machine.sleep_until(20_000_000)
        power_off(machine)

    async with bare_host(guest) as host:
        vm = host["web"]
        await vm.start()
        await wait_all_tasks_blocked()
        running = vm.statistics()
        assert (running.messages, running.hypercalls, running.faults) == (1, 1, 1)
        assert vm.uptime == 0
        await vm.wait()
        ended = vm.statistics()
        assert (ended.messages, ended.port_accesses) == (1, 2)
        assert vm.uptime == pytest.approx(2)


async def test_states_are_traced_with_the_vms_name(autojump_clock: trio.abc.Clock) -> None:
    """Sinks hear of state changes and of the end, and can turn a partition ID into a name."""
    events: list[TraceEvent] = []
    async with bare_host(clean, sinks=[events.append]) as host:
        await host["web"].start()
        await host["web"].wait()
        names = dict(host.trace.names)
    states = [event.words for event in events if event.layer is Layer.STATE and event.event == "vm_state"]
    assert states == ["web: off -> starting", "web: starting -> running", "web: running -> off"]
    finish = next(event for event in events if event.event == "vm_ended")
    assert (names[finish.partition], finish.words, finish.fields["exit_code"]) == ("web", "powered off", 0)
    assert {event.partition for event in events if event.layer is Layer.PORT} == {finish.partition}


async def test_the_clock_must_fit() -> None:
    """A host on the virtual clock needs Trio on one."""
    with pytest.raises(ValueError, match="virtual clock cannot run on Trio's real clock"):
        async with open_host(topology(vm_table()), clock="virtual"):
            pass


async def test_the_hosts_random_numbers_follow_the_seed(autojump_clock: trio.abc.Clock) -> None:
    """The same seed and purpose give the same numbers, in every host."""
    drawn = []
    for seed in (1, 1, 2):
        async with bare_host(idle, seed=seed) as host:
            drawn.append(host.random("switch").random())
    assert drawn[0] == drawn[1] != drawn[2]


async def test_the_descriptor_limit_grows_with_the_topology(autojump_clock: trio.abc.Clock) -> None:
    """A topology of many VMs does not fail at the shell's limit, which is never lowered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    try:
        async with bare_host(idle):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
        async with bare_host(idle, *(vm_table(f"vm{number}") for number in range(100))):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 456
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_uptime_counts_on(autojump_clock: trio.abc.Clock) -> None:
    """Off is zero before the first start."""
    async with bare_host(idle) as host:
        assert host["web"].uptime == 0
        await host["web"].start()
        await trio.sleep(3)
        assert host["web"].uptime == pytest.approx(3)
        assert seconds(host.hypervisor.clock()) == pytest.approx(3)


def test_importing_the_package_is_cheap() -> None:
    """A guest's software imports `partitions` too: it must not pull the host in."""
    code = "import sys, partitions; print('trio' in sys.modules, 'partitions.host' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    assert set(partitions.__all__) <= set(dir(partitions))
    assert partitions.open_host is open_host
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = partitions.nothing
