"""Processor controls on real kernels: guests that burn all they get measure their weights and caps, and can tell.

What each got is read twice: outside, off the thread that executes the virtual processor, and inside, where Linux reads
HV_X64_MSR_VP_RUNTIME (TLFS: 100 ns units that the virtual processor has run) beside its own clock.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

import partitions
from hypervisor.msr import Msr
from hypervisor.partition import Partition
from partitions.host import Host
from partitions.topology_controls import CpuTable
from partitions.topology_schema import Backend, HostTable, Size, Topology, VmTable
from tests.linux_guest import guest, parts

SECONDS = float(os.environ.get("PARTITA_BURN_SECONDS", "8"))
ROUNDS = 8
"""Of what a guest says; each takes it half a second and what it is kept waiting."""
WITHIN = 0.05
"""Of each figure."""
MEASURE = f"""
load msr
told() {{ dd if=/dev/cpu/0/msr bs=8 count=1 skip={Msr.VP_RUNTIME // 8} 2>/dev/null | od -An -t u8; }}
while :; do echo told $(told) $(cut -d ' ' -f 1 /proc/uptime) $(grep 'cpu ' /proc/stat); sleep 0.5; done
"""
BURN = "while :; do :; done &\n" + MEASURE
TOLD = re.compile(r"^told +(\d+) ([\d.]+) cpu +([\d ]+)(?=\n)", re.MULTILINE)
"""A whole line; the one that the guest is at ends anywhere."""
Evidence = Callable[[str, str], None]


@attrs.frozen
class Burnt:
    """What one guest got in the time that was looked at, in parts of that time."""

    outside: float
    inside: float
    """By its own register and its own clock."""
    steal: float
    """That it sees in /proc/stat."""
    idle: float
    """As above."""
    run: float
    ready: float
    capped: float
    halted: float
    """By the scheduler's counters."""

    def __str__(self) -> str:
        seen = f"{self.outside:.1%} outside, {self.inside:.1%} inside (idle {self.idle:.1%}, steal {self.steal:.1%})"
        return f"{seen}; run {self.run:.1%} ready {self.ready:.1%} capped {self.capped:.1%} halted {self.halted:.1%}"


@asynccontextmanager
async def burning(folder: Path, vms: Mapping[str, CpuTable | None], processors: int) -> AsyncIterator[Host]:
    """Guests with their controls on so many logical processors; all with controls burn when the block begins."""
    kernel = parts.kernel(parts.INNER)
    images = {
        steps: parts.initramfs(folder / f"init{number}.img", guest.script({"measure": steps}), kernel.modules(("msr",)))
        for number, steps in enumerate((BURN, MEASURE))
    }
    tables = [
        VmTable(
            name=name,
            backend=Backend.KVM,
            kernel=str(kernel.image),
            initrd=str(images[MEASURE if cpu is None else BURN]),
            cmdline=guest.QUIET,
            memory=Size(128 << 20),
            cpu=cpu,
        )
        for name, cpu in vms.items()
    ]
    topology = Topology(host=HostTable(logical_processors=processors), vm=tables, folder=folder)
    async with partitions.open_host(topology) as host:
        await host.start_all()
        with trio.fail_after(guest.DEFAULT_TIMEOUT):
            for vm in host.values():
                while len(TOLD.findall(vm.console.text)) < 2:  # noqa: ASYNC110
                    await trio.sleep(0.1)
        yield host


def partition_of(host: Host, name: str) -> Partition:
    (found,) = (partition for partition in host.hypervisor.partitions.values() if partition.label == name)
    return found


def accounts(host: Host, name: str) -> tuple[int, ...]:
    """Nanoseconds: outside, and the scheduler's four columns."""
    vp = partition_of(host, name).vps[0]
    times = host.hypervisor.scheduler.times(vp)
    return vp.run_time() * 100, times.run, times.ready, times.capped, times.halted


async def burnt(host: Host, seconds: float = SECONDS) -> dict[str, Burnt]:
    """What each guest gets from now on, in so many seconds and until each has said a few times what it has."""
    before = {name: (accounts(host, name), len(TOLD.findall(vm.console.text))) for name, vm in host.items()}
    began = host.hypervisor.clock()
    with trio.fail_after(seconds + guest.DEFAULT_TIMEOUT):
        await trio.sleep(seconds)
        for name, vm in host.items():
            while len(TOLD.findall(vm.console.text)) < before[name][1] + ROUNDS:  # noqa: ASYNC110
                await trio.sleep(0.1)
    wall = (host.hypervisor.clock() - began) * 100
    got = {}
    for name, vm in host.items():
        outside, *columns = (
            (now - then) / wall for now, then in zip(accounts(host, name), before[name][0], strict=True)
        )
        # Its own words are of whole rounds of its loop, from the first that began in this time on.
        words = TOLD.findall(vm.console.text)[before[name][1] :]
        (first, since, then_), (last, until, now_) = words[0], words[-1]
        passed = float(until) - float(since)
        ticks = [int(b) - int(a) for a, b in zip(then_.split(), now_.split(), strict=True)]
        inside = (int(last) - int(first)) / 1e7 / passed
        got[name] = Burnt(outside, inside, ticks[7] / sum(ticks), ticks[3] / sum(ticks), *columns)
    return got


def check(got: Burnt, share: float) -> None:
    """That much outside and inside; the guest's processor never was idle; and the four columns are the time."""
    assert got.outside == pytest.approx(share, rel=WITHIN), got
    assert got.run == pytest.approx(got.outside, abs=0.01), got
    assert got.inside == pytest.approx(share, rel=WITHIN, abs=0.5 / SECONDS), got
    assert got.run + got.ready + got.capped + got.halted == pytest.approx(1, abs=0.01), got


async def test_weights_on_one_processor(tmp_path: Path, evidence: Evidence) -> None:
    """1:3 is 25:75, and changes with the weights of guests that run."""
    vms = {"one": CpuTable(weight=100), "three": CpuTable(weight=300)}
    async with burning(tmp_path, vms, 1) as host:
        got = await burnt(host)
        evidence("cpu weights 1:3", "\n".join(f"{name}: {what}" for name, what in got.items()))
        total = got["one"].outside + got["three"].outside
        assert 0.8 < total < 1.02, "one processor's worth, and not much is lost in between"
        check(got["one"], 0.25 * total)
        check(got["three"], 0.75 * total)


async def test_a_cap_on_an_idle_host(tmp_path: Path, evidence: Evidence) -> None:
    """Half a processor, though there are four; Linux takes itself for busy all the time, and its register knows better.

    Its neighbour without a cap is idle most of the time, and never brought out of its guest.
    """
    async with burning(tmp_path, {"half": CpuTable(limit=50), "free": None}, 4) as host:
        got = await burnt(host)
        evidence("cpu cap 50 %", "\n".join(f"{name}: {what}" for name, what in got.items()))
        check(got["half"], 0.5)
        # What a busy host does not run of its slices is time in which it was ready.
        assert got["half"].capped + got["half"].ready == pytest.approx(0.5, abs=0.03), got["half"]
        assert got["half"].capped > got["half"].ready, got["half"]
        assert got["half"].idle < 0.1, "inside nothing is idle"
        assert got["half"].steal == 0
        assert got["free"].halted > 0.5, got["free"]
        kicks = await host.inspect(f"hypervisor/partitions/{partition_of(host, 'free').id}/vps/0/runner/kicks")
        assert kicks == 0


def test_two_processors_take_turns_on_one(tmp_path: Path, evidence: Evidence) -> None:
    """A kernel comes up though its processors never run at once, and finds nothing to complain about.

    Processors wait for each other when they start, and for answers to interrupts that they send each other; one that
    does not run answers late.
    """
    count = "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; echo counted"
    steps = {
        "processors": "nproc",
        "each": f"for cpu in 0 1; do taskset $((1 << cpu)) sh -c '{count}'; done",
        "both": f"for cpu in 0 1; do taskset $((1 << cpu)) sh -c '{count}' & done; wait",
        "complaints": "dmesg | grep -iE 'stall|stuck|lockup|not responding|unsynchronized' || true",
    }
    plan = guest.Plan(steps, modules=(), processors=2, cpu=CpuTable(weight=200), logical_processors=1)
    told = guest.boot(plan, tmp_path)
    assert told["processors"] == "2"
    assert told["each"].split() == told["both"].split() == ["counted"] * 2
    assert told["complaints"] == ""
    evidence("two processors on one", f"{told.boot_seconds:.1f} s to init")
