"""Memory that comes to a running guest of KVM, moves and goes: its processor sees what its parent has mapped."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
import trio

from hypervisor.backend.kvm import machine
from hypervisor.blocks import MemoryBlock
from hypervisor.memory import GuestMemory
from hypervisor.pages import PAGE_SHIFT, Access
from partitions.host import ExitReason
from tests.doubles import kvm_guest as guest
from tests.doubles.kvm_guest import POWER_OFF, host_of, say

GPA = 0xF800_0000
SIZE = 4 << PAGE_SHIFT
ONES = 0xFFFF_FFFF


@pytest.fixture(autouse=True)
def _any_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few instructions run on a KVM that only emulates, too."""
    monkeypatch.setenv(machine.ANYWAY, "1")


def wait_for(value: int) -> bytes:
    """Look at GPA until it holds `value`."""
    return b"\x48\xbb" + struct.pack("<Q", GPA) + b"\x8b\x03" + b"\x3d" + struct.pack("<I", value) + b"\x75\xf7"


def store(value: int) -> bytes:
    """Into the word behind it."""
    return b"\xc7\x43\x04" + struct.pack("<I", value)


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - a guest makes no event of its progress
        await trio.sleep(0.005)


@guest.needs_kvm
async def test_memory_comes_moves_and_goes_while_a_guest_runs() -> None:
    """Nothing there reads as ones; mapped, both sides see what the other writes; unmapped, it reads as ones again."""
    code = wait_for(ONES) + say("1") + wait_for(42) + store(43) + say("2") + wait_for(44) + say("3")
    code += wait_for(ONES) + say("4") + POWER_OFF
    first, second = (MemoryBlock.allocate(SIZE, "test", huge_pages=huge) for huge in (False, True))
    with trio.fail_after(20):
        async with host_of([code]) as host:
            vm = host["tiny0"]
            await vm.start()
            partition = host.hypervisor.by_id(vm.partition_id or 0)
            memory: GuestMemory = partition.memory
            await until(lambda: vm.console.text == "1")
            memory.map_block(GPA >> PAGE_SHIFT, first, 0, 2, Access.READ_WRITE)
            memory.write(GPA, struct.pack("<I", 42))
            await until(lambda: vm.console.text == "12")
            assert memory.read(GPA, 8) == struct.pack("<II", 42, 43)
            second.view[:4] = struct.pack("<I", 44)
            memory.map_block(GPA >> PAGE_SHIFT, second, 0, 4, Access.READ_WRITE)
            await until(lambda: vm.console.text == "123")
            memory.unmap((GPA >> PAGE_SHIFT) - 8, 64)
            record = await vm.wait()
    record.raise_worker_failure()
    assert record.reason is ExitReason.POWERED_OFF
    assert vm.console.text == "1234"
    assert memory.on_change is None
    first.close()
    second.close()


@guest.needs_kvm
def test_only_what_changes_is_changed() -> None:
    """Slots of memory that stays keep their numbers, and those of memory that goes are free again."""
    blocks = [MemoryBlock.allocate(SIZE, "test") for _ in range(3)]
    kvm = machine.KvmMachine()
    set_slots: list[tuple[int, int, int]] = []
    set_slot = kvm._set_slot

    def noting(slot: int, place: machine._Place, length: int) -> None:
        set_slots.append((slot, place.gpa, length))
        set_slot(slot, place, length)

    kvm._set_slot = noting  # type: ignore[method-assign]
    try:
        kvm.show([(0, blocks[0].view), (GPA, blocks[1].view)])
        assert set_slots == [(0, 0, SIZE), (1, GPA, SIZE)]
        kvm.show([(0, blocks[0].view), (GPA + SIZE, blocks[2].view)])
        assert set_slots[2:] == [(1, GPA, 0), (1, GPA + SIZE, SIZE)]
        kvm.show([(GPA + SIZE, blocks[2].view)])
        assert set_slots[4:] == [(0, 0, 0)]
        kvm.show([(GPA + SIZE, blocks[2].view)])
        assert len(set_slots) == 5
    finally:
        kvm.close()
        for block in blocks:
            block.close()
