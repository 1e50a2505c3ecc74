"""Many VMs on one host: what idle ones cost, and what happens where the system's limits end."""

from __future__ import annotations

import os
import resource
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from partitions import host as host_module
from partitions.host import ExitReason, Host, StartFailed, VmState, open_host
from partitions.topology_schema import IntegrationName, Size, VmTable
from tests.doubles.root import MIB, bare_host, idle, topology, vm_table

MANY = 100
MINUTE = 60.0


class Wakeups(trio.abc.Instrument):
    """How often the run loop went to sleep, and which tasks ran."""

    def __init__(self) -> None:
        self.sleeps = 0
        self.steps: Counter[str] = Counter()

    def before_io_wait(self, timeout: float) -> None:
        self.sleeps += timeout > 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps[task.name] += 1


def idle_vms(count: int, **settings: Any) -> list[VmTable]:
    return [VmTable(name=f"vm{number}", program="idle", memory=Size(2 * MIB), **settings) for number in range(count)]


async def a_minute(host: Host) -> tuple[Wakeups, dict[str, Counter[str]]]:
    """What runs, and what the hypervisor counts for each VM, in a minute that begins when all have booted."""
    await host.start_all()
    await wait_all_tasks_blocked()
    before = {vm.label: Counter(vm.counters) for vm in host.hypervisor.partitions.values()}
    wakeups = Wakeups()
    trio.lowlevel.add_instrument(wakeups)
    await trio.sleep(MINUTE)
    trio.lowlevel.remove_instrument(wakeups)
    return wakeups, {vm.label: vm.counters - before[vm.label] for vm in host.hypervisor.partitions.values()}


async def test_idle_vms_take_no_time_at_all(autojump_clock: trio.abc.Clock) -> None:
    """In a minute of a hundred idle VMs nothing runs but the test: no poll, no timer, no hypercall, no interrupt."""
    async with open_host(topology(*idle_vms(MANY))) as host:
        wakeups, counted = await a_minute(host)
        assert all(vm.state is VmState.RUNNING for vm in host.values())
        assert sum(wakeups.steps.values()) == 1, wakeups.steps
        assert wakeups.sleeps <= 1
        assert not any(counted.values())


async def test_integration_components_have_a_bounded_beat(autojump_clock: trio.abc.Clock) -> None:
    """Who asks for components pays for them: 30 beats and 12 clock samples a minute, some steps each, no more."""
    async with open_host(topology(*idle_vms(4, integration=list(IntegrationName)))) as host:
        wakeups, counted = await a_minute(host)
        assert sum(wakeups.steps.values()) <= 4 * (30 + 12 + 2) * 8
        for vm in host.values():
            assert vm.heartbeat.beats in range(29, 33)
            assert counted[vm.name]["interrupts"] <= 2 * (30 + 12 + 2)


async def test_a_vm_takes_few_mappings_and_descriptors(autojump_clock: trio.abc.Clock) -> None:
    """A process has some 65,000 mappings: 1,024 VMs must leave most of them to the rings of their channels."""

    def taken() -> tuple[int, int]:
        return len(Path("/proc/self/maps").read_text().splitlines()), len(os.listdir("/proc/self/fd"))

    async with bare_host(idle, *(vm_table(f"vm{number}") for number in range(MANY))) as host:
        maps, descriptors = taken()
        await host.start_all()
        more_maps, more_descriptors = taken()
        assert more_maps - maps <= 3 * MANY
        assert more_descriptors - descriptors <= MANY * 1.1  # what is deposited for some thirty of them is one block


async def test_no_descriptor_left_is_said_in_so_many_words(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the hard limit is too low, VMs up to it run; the next does not start, and its exit names the limit."""
    monkeypatch.setattr(host_module, "raise_descriptor_limit", lambda topology: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with bare_host(idle, *(vm_table(f"vm{number}") for number in range(8))) as host:
        await host["vm0"].start()
        used = set(map(int, os.listdir("/proc/self/fd")))
        fourth_free = [number for number in range(1000) if number not in used][3]
        resource.setrlimit(resource.RLIMIT_NOFILE, (fourth_free + 1, hard))
        try:
            with pytest.raises(StartFailed, match="Too many open files"):
                await host.start_all()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        states = [vm.state for vm in host.values()]
        assert states == sorted(states, key=lambda state: state is VmState.OFF), "the first ones run"
        assert VmState.OFF in states
        assert states.count(VmState.RUNNING) > 1
        last = host["vm7"].exit
        assert last is not None
        assert last.reason is ExitReason.NOT_STARTED
        await host["vm7"].start()  # with room again
