from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import partitions
import partitions.host as host_module
from hypervisor.clock import seconds
from hypervisor.machine import Machine
from hypervisor.msr import CRASH_NOTIFY, Msr
from hypervisor.trace import Layer, TraceEvent
from partitions import host as host_api
from partitions.host import (
    ExitReason,
    UnknownVm,
    VmEvent,
    VmState,
    open_host,
)
from partitions.logs import vm_name
from partitions.surroundings import raise_descriptor_limit
from partitions.topology import TopologyError, parse_topology
from partitions.topology_schema import DiskTable, Size, SocketsTable
from tests.doubles.root import (
    MIB,
    bare_host,
    boot_synic,
    clean,
    held,
    idle,
    post,
    power_off,
    topology,
    vm_table,
)


@pytest.mark.parametrize("processors", [1, 64])
async def test_the_least_memory_boots(tmp_path: Path, autojump_clock: trio.abc.Clock, processors: int) -> None:
    """What a topology lets pass is enough for a model guest's kernel, and a page less would not be."""
    (tmp_path / "idle.py").write_text("async def main(guest):\n    assert guest.memory.free == 0\n")
    least = 1056 + 8 * processors
    text = f'[[vm]]\nname = "a"\nprogram = "idle.py"\nmemory = "{least}KiB"\nprocessors = {processors}\n'
    async with open_host(parse_topology(text, tmp_path)) as host:
        await host.start_all()
        (record,) = (await host.wait_all()).values()
    assert (record.reason, record.exit_code) == (ExitReason.POWERED_OFF, 0)
    with pytest.raises(TopologyError, match=f"must be at least {least} KiB"):
        parse_topology(text.replace(str(least), str(least - 4)), tmp_path)


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
        assert ends == 13


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
    """Every change of state has its VM's name, the first one too, before there is a partition to be named by.

    Once it was nameless, and `--trace-filter vm=web,layer=state` began with "running".
    """
    told: list[tuple[str, TraceEvent]] = []
    async with bare_host(clean) as host:
        host.trace.add_sink(lambda event: told.append((vm_name(host.trace.names, event), event)))
        await host["web"].start()
        await host["web"].wait()
        names = dict(host.trace.names)
    events = [event for _, event in told]
    states = [event.words for event in events if event.layer is Layer.STATE and event.event == "vm_state"]
    assert states == ["off -> starting", "starting -> running", "running -> off"]
    assert {name for name, event in told if event.layer is Layer.STATE and event.words != "uninitialized"} == {"web"}
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
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        raise_descriptor_limit(topology(vm_table(sockets=SocketsTable(path="x", ports={"y": 1}))))
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 256 + 2 + 1024 + 2
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
    assert set(host_module.__all__) <= set(partitions.__all__), "docs/python.md: everything is in partitions"
    assert all(getattr(partitions, name) is not None for name in partitions.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = partitions.nothing


def test_the_documented_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the module shows can be copied; once it asked for a VM that its topology does not have."""
    shutil.copytree(Path(partitions.__file__).parents[1] / "examples" / "03-disk", tmp_path / "03-disk")
    monkeypatch.chdir(tmp_path)
    shown = [line[4:] for line in (host_api.__doc__ or "").splitlines() if line.startswith("    ") or not line]
    exec("\n".join(shown), {})
    assert capsys.readouterr().out.startswith("powered off\ndisk 0: PARTITA VIRTUAL DISK")
