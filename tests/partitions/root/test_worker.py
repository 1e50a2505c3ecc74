from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from hypervisor.machine import Machine
from hypervisor.msr import CRASH_MESSAGE, CRASH_NOTIFY, Msr
from partitions.host import (
    ExitReason,
    StartFailed,
    VmState,
)
from partitions.topology_schema import DeviceTable, DiskTable, Size
from tests.doubles.root import (
    MIB,
    bare_host,
    boot_synic,
    clean,
    held,
    idle,
    power_off,
    say,
    vm_table,
)


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


async def test_its_only_processor_is_deleted(autojump_clock: trio.abc.Clock) -> None:
    """By the root, who may: the VM can be paused as ever, and after a reset nothing can begin."""
    async with bare_host(idle) as host:
        vm = host["web"]
        await vm.start()
        partition = host.hypervisor.partitions[vm.partition_id or 0]
        host.hypervisor.delete_vp(partition, 0)
        await vm.pause()
        await vm.resume()
        await vm.reset()
        assert str(await vm.wait()) == "stopped: its virtual processor 0 was deleted, and no other begins"


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
    [
        ("Broken", r"vsp\.py:Broken, line \d+: LookupError: no"),
        ("NoDevice", "a VSP has an `offer`"),
        ("Missing", "AttributeError"),
    ],
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
