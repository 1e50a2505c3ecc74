"""Tiny guests on a real /dev/kvm: how each ends, what it said last, and that nothing of it is left."""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from hypervisor.backend.kvm import machine
from hypervisor.backend.kvm.backend import DOORBELL_PORT, KvmBackend, exit_latencies
from hypervisor.msr import CRASH_NOTIFY, PAGE_ENABLE, RESET_PARTITION, Msr
from hypervisor.status import HvStatus
from partitions import ports
from partitions.host import ExitReason, Host, VmState
from tests.doubles import kvm_guest as guest
from tests.doubles.kvm_guest import HALT, POWER_OFF, SPIN, host_of, say

pytestmark = guest.needs_kvm


@pytest.fixture(autouse=True)
def _any_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few instructions run on a KVM that only emulates, too."""
    monkeypatch.setenv(machine.ANYWAY, "1")


async def until(true: Callable[[], bool]) -> None:
    """A guest makes no event of its progress."""
    while not true():  # noqa: ASYNC110
        await trio.sleep(0.005)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (guest.out16(ports.POWER, ports.POWER_OFF), ExitReason.POWERED_OFF),
        (guest.TRIPLE_FAULT, ExitReason.TRIPLE_FAULT),
        (guest.write_msr(Msr.CRASH_P0, 0x77) + guest.write_msr(Msr.CRASH_CTL, CRASH_NOTIFY), ExitReason.CRASHED),
    ],
)
async def test_how_a_guest_ends_itself(code: bytes, reason: ExitReason) -> None:
    """Its last words are kept, though nothing made it stop for them."""
    with trio.fail_after(20):
        async with host_of([say("last words") + code + say("not said") + HALT]) as host:
            vm = host["tiny0"]
            await vm.start()
            record = await vm.wait()
    record.raise_worker_failure()
    assert record.reason is reason
    assert record.console_tail == ("last words",)
    if reason is ExitReason.CRASHED:
        assert record.crash is not None
        assert record.crash.parameters[0] == 0x77


@pytest.mark.parametrize(
    "reset",
    [
        guest.out8(ports.RESET, ports.RESET_NOW),
        guest.write_msr(Msr.RESET, RESET_PARTITION),
    ],
    ids=["port", "MSR"],
)
async def test_a_guest_resets_itself_and_never_goes_on(reset: bytes) -> None:
    """What follows the reset in the guest's code is not executed by the old life."""
    with trio.fail_after(20):
        async with host_of([say("new\n") + reset + say("old\n") + HALT]) as host:
            vm = host["tiny0"]
            await vm.start()
            await until(lambda: vm.console.text.count("new\n") >= 4)
            await vm.turn_off()
    assert vm.exit is not None
    vm.exit.raise_worker_failure()
    assert vm.exit.resets >= 3
    assert set(vm.console.text.splitlines()) == {"new"}


async def test_reset_from_outside() -> None:
    with trio.fail_after(20):
        async with host_of([say("up\n") + SPIN]) as host:
            vm = host["tiny0"]
            await vm.start()
            for times in (1, 2, 3):
                await until(lambda: vm.console.text.count("up\n") >= times)  # noqa: B023
                await vm.reset()
            await vm.turn_off()
    assert vm.exit is not None
    assert vm.exit.resets == 3


async def test_what_was_printed_is_seen_though_no_exit_follows() -> None:
    """A guest that hangs after its words is the one whose words matter."""
    with trio.fail_after(20):
        async with host_of([say("hung here") + SPIN]) as host:
            vm = host["tiny0"]
            await vm.start()
            await until(lambda: vm.console.text == "hung here")


async def test_its_first_processor_is_deleted_while_it_runs() -> None:
    """By the root, who may: it stands still, its host goes on, and it ends at a reset, since nothing can begin."""
    with trio.fail_after(20):
        async with host_of([say("up") + SPIN, say("up") + SPIN]) as host:
            for vm in host.values():
                await vm.start()
                console = vm.console
                await until(partial(lambda console: console.text == "up", console))
                hypervisor = host.hypervisor
                assert vm.partition_id is not None
                hypervisor.delete_vp(hypervisor.partitions[vm.partition_id], 0)
            await host["tiny0"].reset()
            assert (await host["tiny0"].wait()).reason is ExitReason.STOPPED
            await host["tiny1"].shut_down(0, insist=True)
    for vm in host.values():
        assert vm.exit is not None
        vm.exit.raise_worker_failure()


async def test_printing_takes_few_exits() -> None:
    made: list[KvmBackend] = []
    with trio.fail_after(20):
        async with host_of([guest.repeat(2000, say("x")) + SPIN], made) as host:
            vm = host["tiny0"]
            await vm.start()
            await until(lambda: len(vm.console.text) == 2000)
            exits = sum(vcpu.exits.total() for vcpu in made[0]._vcpus.values())
            # None but where the ring of 169 was full before it was looked at.
            assert exits <= 2000 / 169 + 1
            assert vm.console.text == "x" * 2000


async def test_a_paused_guest_stands_still_and_goes_on_where_it_was() -> None:
    """Each round of the loop is an exit, so the count of exits is the guest's progress."""
    made: list[KvmBackend] = []
    with trio.fail_after(20):
        async with host_of([guest.repeat(1 << 30, guest.in8(0xE9))], made) as host:
            vm = host["tiny0"]
            await vm.start()
            vcpu = made[0]._vcpus[0]
            for _ in range(20):
                await until(lambda: vcpu.exits["IO"] >= 10)
                assert 0 < min(exit_latencies(host.hypervisor.partitions[vm_id(host)])) < 10**9
                await vm.pause()
                seen = -1
                while seen != vcpu.exits["IO"]:  # one that was on its way is answered yet
                    seen = vcpu.exits["IO"]
                    await trio.sleep(0.02)
                vcpu.exits.clear()
                await trio.sleep(0.01)
                assert vcpu.exits["IO"] == 0
                await vm.resume()
            assert vm.state is VmState.RUNNING


def vm_id(host: Host) -> int:
    return max(host.hypervisor.partitions)


async def test_registers_and_ports_answer() -> None:
    """RDMSR and IN bring what the hypervisor says; a register that does not exist is #GP, and so here the end."""
    code = guest.read_msr(Msr.VP_INDEX) + guest.say_al() + guest.read_msr(0x4000_0FFF) + say("never") + HALT
    with trio.fail_after(20):
        async with host_of([code]) as host:
            vm = host["tiny0"]
            await vm.start()
            record = await vm.wait()
    assert record.reason is ExitReason.TRIPLE_FAULT
    assert vm.console.text == "0"


@pytest.mark.parametrize(
    ("control", "connection", "letter"),
    [
        (0x1005D, 0x2FFF, chr(0x30 + HvStatus.INVALID_CONNECTION_ID)),
        (0x1005D, 1 << 32 | 0x2FFF, chr(0x30 + HvStatus.INVALID_CONNECTION_ID)),
        (0x0FFF, 0, chr(0x30 + HvStatus.INVALID_HYPERCALL_CODE)),
    ],
    ids=["doorbell", "with a flag number", "another call"],
)
async def test_hypercalls_through_the_page(control: int, connection: int, letter: str) -> None:
    """A signal that no eventfd takes is an exit, its status is given, and nothing but RAX changes."""
    code = (
        guest.write_msr(Msr.GUEST_OS_ID, 0x8100 << 48)
        + guest.write_msr(Msr.HYPERCALL, 0x3000 | PAGE_ENABLE)
        + guest.call(0x3000, rcx=control, rdx=connection, r8=0)
        + guest.say_al()
        + POWER_OFF
    )
    with trio.fail_after(20):
        async with host_of([code]) as host:
            vm = host["tiny0"]
            await vm.start()
            record = await vm.wait()
    assert record.reason is ExitReason.POWERED_OFF, record
    assert vm.console.text == letter


async def test_a_doorbell_outside_the_hypercall_page_is_the_guests_mistake() -> None:
    with trio.fail_after(20):
        async with host_of([guest.out32(DOORBELL_PORT, 0x2FFF) + say("never") + HALT]) as host:
            vm = host["tiny0"]
            await vm.start()
            record = await vm.wait()
    assert record.reason is ExitReason.TRIPLE_FAULT
    assert vm.console.text == ""


async def test_a_bug_of_ours_in_an_exit_ends_that_vm_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in Trio's callback would end the whole host."""
    made: list[KvmBackend] = []
    with trio.fail_after(20):
        async with host_of([SPIN, guest.in8(0xE9) + HALT], made) as host:
            await host["tiny0"].start()
            monkeypatch.setattr(KvmBackend, "_port", _broken)
            await host["tiny1"].start()
            record = await host["tiny1"].wait()
            assert host["tiny0"].state is VmState.RUNNING
    assert record.reason is ExitReason.WORKER_FAILED
    assert isinstance(record.failure, ZeroDivisionError)


def _broken(*_: object) -> None:
    raise ZeroDivisionError("a bug")


def leftovers() -> tuple[int, int, int]:
    """Descriptors, threads, and mappings of guests."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text()
    return (
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
        maps.count("memfd:") + maps.count("kvm"),
    )


async def test_guests_killed_at_random_moments_leave_nothing() -> None:
    """Sixty lives, each cut off somewhere: among exits, in a spin, in a halt, in a reset."""
    dice = random.Random(7)
    busy = guest.repeat(1_000_000, guest.in8(0xE9) + say("x"))
    codes = [busy + HALT, SPIN, HALT, say("r") + guest.out8(ports.RESET, ports.RESET_NOW) + HALT]
    interval = sys.getswitchinterval()
    with trio.fail_after(60):
        async with host_of(codes) as host:
            before = None
            for _ in range(15):
                for vm in host.values():
                    await vm.start()
                assert sys.getswitchinterval() < interval
                await trio.sleep(dice.random() * 0.02)
                host.turn_all_off()
                records = await host.wait_all()
                for record in records.values():
                    record.raise_worker_failure()
                    assert record.reason is ExitReason.TURNED_OFF
                before = before or leftovers()
            # Fewer, where a thread that Trio kept from another test has gone meanwhile.
            assert all(now <= then for now, then in zip(leftovers(), before, strict=True))
    assert sys.getswitchinterval() == interval
