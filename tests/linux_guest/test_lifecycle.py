"""How a real kernel ends: each way in the right state, its last words kept, nothing left behind, no sibling harmed."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable
from pathlib import Path

import trio

from partitions.host import ExitReason, Vm, VmState
from partitions.root.worker import CONSOLE_TAIL_LINES
from tests.linux_guest import guest

KILLS = int(os.environ.get("PARTITA_KILLS", "10"))
BUS = ("hv_vmbus", "hv_storvsc", "sd_mod")
Evidence = Callable[[str, str], None]


async def printed(vm: Vm, words: str, times: int = 1) -> None:
    """Until the guest has said it so often."""
    with trio.fail_after(guest.DEFAULT_TIMEOUT):
        while vm.console.text.count(words) < times:  # noqa: ASYNC110
            await trio.sleep(0.05)


async def test_a_panic_is_a_crash_with_the_kernels_words(tmp_path: Path, evidence: Evidence) -> None:
    """hv_vmbus tells of a panic by the crash registers, with the end of the kernel's log."""
    # What a program prints leaves by interrupt, so it needs a moment that a panic does not give.
    panic = "all; echo words before the end; sleep 1; echo c > /proc/sysrq-trigger"
    plan = guest.Plan(steps={"panic": panic}, modules=BUS)
    async with guest.booted(plan, tmp_path) as (_, vm):
        with trio.fail_after(plan.timeout):
            record = await vm.wait()
    record.raise_worker_failure()
    assert record.reason is ExitReason.CRASHED
    assert record.crash is not None
    assert "Kernel panic - not syncing: sysrq triggered crash" in record.crash.text
    assert "Kernel panic" in record.detail
    assert "words before the end" in vm.console.text
    # How many lines the trace has depends on what earlier calls have left on the kernel's stack.
    lines = list(vm.console.lines())
    assert any("do_syscall_64" in line for line in lines), "the console has the whole trace"
    assert list(record.console_tail) == lines[-CONSOLE_TAIL_LINES:], "the end of the console is kept"
    assert any("entry_SYSCALL_64_after_hwframe" in line for line in record.console_tail), record.console_tail
    assert "Kernel Offset" in record.console_tail[-1], "nothing of the panic's last words is lost"
    evidence("panic", f"{record}\n" + "\n".join(record.crash.text.splitlines()[-3:]))


async def test_a_triple_fault_ends_the_machine(tmp_path: Path, evidence: Evidence) -> None:
    plan = guest.Plan(steps={}, modules=BUS, ending="reboot -f", command_line=guest.QUIET + " reboot=t")
    async with guest.booted(plan, tmp_path) as (_, vm):
        with trio.fail_after(plan.timeout):
            record = await vm.wait()
    record.raise_worker_failure()
    assert record.reason is ExitReason.TRIPLE_FAULT
    assert any(guest.OVER in line for line in record.console_tail)
    evidence("triple fault", str(record))


async def test_a_reboot_is_a_reset_and_a_second_life(tmp_path: Path, evidence: Evidence) -> None:
    """By ACPI's reset register with the bus loaded; then from outside; then the power is cut."""
    plan = guest.Plan(steps={"bus": "all; dmesg | grep 'Vmbus version'"}, modules=BUS, ending="reboot -f")
    async with guest.booted(plan, tmp_path) as (_, vm):
        await printed(vm, guest.OVER)
        await printed(vm, guest.UP, 2)
        assert vm.state is VmState.RUNNING
        await vm.reset()
        await printed(vm, guest.UP, 3)
        await vm.turn_off()
    assert vm.exit is not None
    vm.exit.raise_worker_failure()
    assert vm.exit.reason is ExitReason.TURNED_OFF
    assert vm.exit.resets >= 2
    evidence("reset", f"{vm.exit}, {vm.exit.resets} resets\n{vm.console.text.count('Vmbus version:5.3')} negotiations")


async def test_a_pause_is_no_time_for_the_guest(tmp_path: Path, evidence: Evidence) -> None:
    """A kernel that was paused goes on, and its clock has stood still with it."""
    steps = {"clock": "cat /proc/uptime; sleep 1; cat /proc/uptime; dmesg -r | grep '^<[0-3]>' | grep -i stall || true"}
    plan = guest.Plan(steps=steps, modules=BUS)
    async with guest.booted(plan, tmp_path) as (_, vm):
        await printed(vm, guest.BEGIN + "clock")
        for _ in range(5):
            await vm.pause()
            await trio.sleep(0.2)  # what it had printed by then is taken
            text = vm.console.text
            await trio.sleep(1)
            assert vm.console.text == text
            await vm.resume()
            await trio.sleep(0.02)
        with trio.fail_after(plan.timeout):
            record = await vm.wait()
    assert record.reason is ExitReason.POWERED_OFF
    lines = vm.console.lines()
    at = lines.index(guest.BEGIN + "clock")
    evidence("pause", "uptime on both sides of five pauses of a second:\n" + "\n".join(lines[at + 1 : at + 3]))


def descriptors() -> list[str]:
    """What each open descriptor is, without the numbers of pipes and sockets."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{entry}").split(":[")[0])
        except FileNotFoundError:
            pass  # that of the listing itself
    return sorted(found)


def leftovers() -> tuple[list[str], int, int, int]:
    """Descriptors, threads, mappings of guests, Trio tasks."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text()
    root = trio.lowlevel.current_root_task()
    assert root is not None
    tasks, found = [root], 0
    while tasks:
        task = tasks.pop()
        found += 1
        for nursery in task.child_nurseries:
            tasks.extend(nursery.child_tasks)
    # Trio keeps a thread of its own pool for ten seconds.
    names = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir()]
    threads = sum(not name.startswith("Trio") for name in names)
    return descriptors(), threads, maps.count("memfd:") + maps.count("kvm"), found


async def test_kernels_killed_at_random_moments_leave_nothing(tmp_path: Path, evidence: Evidence) -> None:
    """From the first instructions to a busy disk; a sibling that runs all the while is none the worse."""
    dice = random.Random(3)
    image = tmp_path / "disk.raw"
    image.write_bytes(dice.randbytes(1 << 20))
    read = "all; sleep 1; echo bus is up; await 20 test -b /dev/sda; while true; do"
    read += " dd if=/dev/sda of=/dev/null bs=64k iflag=direct; done"
    disk = guest.DiskTable(path=str(image))
    plan = guest.Plan(steps={"read": read + " 2>/dev/null"}, modules=BUS, disks=[disk])
    whole = guest.topology(plan, tmp_path)
    (linux,) = whole.vm
    sibling = guest.VmTable(name="sibling", backend=linux.backend, kernel=linux.kernel, initrd=linux.initrd)
    sibling.cmdline, sibling.memory = linux.cmdline, linux.memory
    whole.vm.append(sibling)
    async with guest.partitions.open_host(whole) as host:
        vm, other = host["linux"], host["sibling"]
        await other.start()
        await printed(other, "bus is up")  # from here on it makes no more doorbells of its own
        before = leftovers()
        for number in range(KILLS + 1):
            await vm.start()
            await trio.sleep(0.1 if number == 0 else dice.random() * 6)
            await vm.turn_off()
            assert vm.exit is not None
            vm.exit.raise_worker_failure()
            if number == 0:
                before = leftovers()
            after = leftovers()
            assert after[0] == before[0]
            assert after[2:] == before[2:]
            assert after[1] <= before[1], "a disk's thread goes when it has had nothing to do for a while"
        assert other.state is VmState.RUNNING
    evidence(
        "kills", f"{KILLS} kernels killed within 6 s of their start; descriptors, threads, mappings, tasks: {before}"
    )
