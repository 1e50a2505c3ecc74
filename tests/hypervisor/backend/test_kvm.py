"""The KVM backend, as far as it can be judged without KVM: numbers, machine code, leaves, rings, doorbells, errors."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from hypervisor.backend.kvm import ioctls, leaves, machine, switching
from hypervisor.backend.kvm.backend import HYPERCALL_CODE, HYPERCALL_PORT, KvmBackend
from hypervisor.backend.kvm.doorbells import DOORBELL_PORT, Doorbells
from hypervisor.backend.kvm.ioctls import KvmError, Request
from hypervisor.backend.kvm.posted import ENTRIES, ENTRY, PostedWrites
from hypervisor.partition import PartitionState
from hypervisor.synic.ports import Connection, Port, PortType
from hypervisor.trace import Trace


@pytest.mark.parametrize(
    ("request_", "layout"),
    [
        (Request.SET_USER_MEMORY_REGION, ioctls.MEMORY_REGION.size),
        (Request.IRQ_LINE, ioctls.IRQ_LEVEL.size),
        (Request.REGISTER_COALESCED_MMIO, ioctls.COALESCED_ZONE.size),
        (Request.IOEVENTFD, ioctls.IOEVENTFD.size),
        (Request.ENABLE_CAP, ioctls.ENABLE_CAP.size),
        (Request.SIGNAL_MSI, ioctls.MSI.size),
        (Request.GET_REGS, ioctls.REGISTERS.size),
        (Request.SET_REGS, ioctls.REGISTERS.size),
        (Request.GET_SREGS, ioctls.SREGS_SIZE),
        (Request.SET_SREGS, ioctls.SREGS_SIZE),
    ],
)
def test_an_ioctls_number_has_the_size_of_its_structure(request_: Request, layout: int) -> None:
    """Bits 29:16 of the number; the kernel would refuse another, or read past the end."""
    assert request_ >> 16 & 0x3FFF == layout


def test_an_interrupt_for_a_local_apic_that_is_off_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """KVM_SIGNAL_MSI then fails with -1, which reads as EPERM; with a timer running, that would end the host."""

    def refuse(fd: int, request: int, message: bytes) -> int:
        assert request == Request.SIGNAL_MSI
        raise PermissionError(errno.EPERM, "nobody takes it")

    monkeypatch.setattr("fcntl.ioctl", refuse)
    vm = object.__new__(machine.KvmMachine)
    vm.fd, vm._interrupts = 3, {}
    vm.interrupt(1, 0xED)


def test_layouts_whose_size_is_in_no_number() -> None:
    assert ioctls.CPUID_ENTRY.size == 40
    assert ioctls.SEGMENT.size == 24
    assert ENTRY.size == 24
    assert ENTRIES == 170
    assert ioctls.IO_EXIT.size == 16
    assert ioctls.SREGS_CR0 == 8 * 24 + 2 * 16


# --- the hypercall page


def call_page(rcx: int, rdx: int) -> tuple[list[tuple[int, int, int]], int | None]:
    """Execute the page: (port, size, value) of each OUT, and RAX at the RET, None where a trap gives it."""
    code, at, rax, zero, outs = HYPERCALL_CODE, 0, None, False, []
    known = {
        b"\x48\x81\xf9": 7,
        b"\x75": 2,
        b"\x48\x89\xd0": 3,
        b"\x48\xc1\xe8": 4,
        b"\x89\xd0": 2,
        b"\xe7": 2,
        b"\xe6": 2,
        b"\x31\xc0": 2,
        b"\x90": 1,
        b"\xc3": 1,
    }
    for _ in range(32):
        opcode = next(bytes_ for bytes_ in known if code.startswith(bytes_, at))
        length = known[opcode]
        operand = code[at + len(opcode) : at + length]
        at += length
        match opcode:
            case b"\x48\x81\xf9":
                zero = rcx == int.from_bytes(operand, "little")
            case b"\x75":
                at += 0 if zero else int.from_bytes(operand, "little", signed=True)
            case b"\x48\x89\xd0":
                rax = rdx
            case b"\x48\xc1\xe8":
                assert rax is not None
                rax >>= operand[0]
                zero = rax == 0
            case b"\x89\xd0":
                rax = rdx & 0xFFFFFFFF
            case b"\xe7":
                assert rax is not None
                outs.append((operand[0], 4, rax & 0xFFFFFFFF))
            case b"\xe6":
                outs.append((operand[0], 1, 0))
                rax = None
            case b"\x31\xc0":
                rax = 0
            case b"\xc3":
                return outs, rax
            case _:
                pass
    raise AssertionError("the page does not return")


@pytest.mark.parametrize("connection", [0x2001, 0xFFFFFF, 0xFFFFFFFF])
def test_a_plain_signal_rings_its_doorbell_and_succeeds(connection: int) -> None:
    assert call_page(0x1005D, connection) == ([(DOORBELL_PORT, 4, connection)], 0)


@pytest.mark.parametrize(
    ("rcx", "rdx"),
    [(0x5C, 0x1000), (0x5D, 0x2001), (0x1_0001_005D, 0x2001), (0x1005D, 1 << 32 | 0x2001), (0x1005D, 1 << 48 | 1)],
    ids=["post", "slow signal", "rep count", "flag number", "reserved bits"],
)
def test_every_other_call_is_an_exit(rcx: int, rdx: int) -> None:
    assert call_page(rcx, rdx) == ([(HYPERCALL_PORT, 1, 0)], None)


# --- CPUID

AMD = [
    (0, 0, 0, 0x10, 0, 0, 0),
    (1, 0, 0, 0xA20F10, 0x07_10_08_00, 0x200000, 1 << 28),
    (0x0B, 0, 1, 1, 2, 0x100, 7),
    (0x0B, 1, 1, 4, 16, 0x201, 7),
    (0x8000_0001, 0, 0, 0, 0, 1 << 22 | 1 << 1, 0),
    (0x8000_0008, 0, 0, 0x3030, 0, 0x400F, 0),
    (0x8000_001D, 0, 1, 0x0000_4121, 0, 0, 0),
    (0x8000_001D, 3, 1, 0x0003_C163, 0, 0, 0),
    (0x8000_001D, 4, 1, 0, 0, 0, 0),
    (0x8000_001E, 0, 0, 7, 0x103, 0x200, 0),
    (0x8000_0026, 0, 1, 1, 2, 0x100, 7),
]
INTEL = [
    (0, 0, 0, 0x1F, 0, 0, 0),
    (1, 0, 0, 0x806F8, 0x07_10_08_00, 0, 1 << 28),
    (4, 0, 1, 0x1C00_4121, 0, 0, 0),
    (4, 3, 1, 0x1C03_C163, 0, 0, 0),
    (4, 4, 1, 0, 0, 0, 0),
    (0x1F, 0, 1, 1, 2, 0x100, 7),
]


def leaf(entries: list[leaves.Entry], function: int, index: int = 0) -> tuple[int, ...]:
    (found,) = [entry for entry in entries if entry[:2] == (function, index)]
    return found[3:]


@pytest.mark.parametrize("supported", [AMD, INTEL], ids=["AMD", "Intel"])
@pytest.mark.parametrize(("processors", "shift"), [(1, 0), (2, 1), (3, 2), (4, 2), (64, 6)])
def test_every_leaf_tells_the_same_topology(supported: list[leaves.Entry], processors: int, shift: int) -> None:
    """One package, one thread a core, APIC ID = VP index: Linux warns of leaves that contradict each other."""
    for index in range(processors):
        told = leaves.processor_leaves(supported, index, processors)
        _, ebx, ecx, edx = leaf(told, 1)
        assert (ebx >> 24, ebx >> 16 & 0xFF, ebx & 0xFFFF) == (index, processors, 0x0800)
        assert ecx >> 31 == 1
        assert bool(edx & 1 << 28) == (processors > 1)
        for topology in (0x0B, 0x1F):
            if topology <= supported[0][3]:
                assert leaf(told, topology, 0) == (0, 1, 0x100, index)
                assert leaf(told, topology, 1) == (shift, processors, 0x201, index)
                assert leaf(told, topology, 2) == (0, 0, 2, index)
        assert len({entry[:2] for entry in told}) == len(told)
        if supported is AMD:
            assert leaf(told, 0x8000_0008)[2] == shift << 12 | processors - 1
            assert leaf(told, 0x8000_001E)[:3] == (index, index, 0)
            assert leaf(told, 0x8000_001D, 0)[0] == 0x121
            assert leaf(told, 0x8000_001D, 3)[0] >> 14 == processors - 1
            assert not [entry for entry in told if entry[0] == 0x8000_0026]
        else:
            assert leaf(told, 4, 0)[0] >> 14 & 0xFFF == 0
            assert leaf(told, 4, 3)[0] >> 14 & 0xFFF == processors - 1
            assert leaf(told, 4, 3)[0] >> 26 == (1 << shift) - 1
            assert leaf(told, 4, 4)[0] == 0


# --- posted writes


def ring() -> tuple[PostedWrites, mmap.mmap]:
    page = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    return PostedWrites(page, mmap.PAGESIZE), page


def post(page: mmap.mmap, port: int, value: int) -> None:
    """What KVM does."""
    first, last = struct.unpack_from("<II", page, mmap.PAGESIZE)
    assert (last + 1) % ENTRIES != first, "full"
    ENTRY.pack_into(page, mmap.PAGESIZE + 8 + last * ENTRY.size, port, 1, 1, 0xAB00 | value)
    struct.pack_into("<I", page, mmap.PAGESIZE + 4, (last + 1) % ENTRIES)


def test_posted_writes_come_out_in_order_round_and_round() -> None:
    writes, page = ring()
    told, taken = 0, []
    for burst in (0, 1, 169, 5, 169, 169, 80):
        for _ in range(burst):
            post(page, 0x3F8, told & 0xFF)
            told += 1
        taken += list(writes.take())
    assert taken == [(0x3F8, 1, number & 0xFF) for number in range(told)]


def test_a_write_that_comes_while_the_ring_is_read_is_taken_too() -> None:
    writes, page = ring()
    post(page, 1, 1)
    got = writes.take()
    assert next(got) == (1, 1, 1)
    post(page, 2, 2)
    assert list(got) == [(2, 1, 2)]
    assert struct.unpack_from("<II", page, mmap.PAGESIZE) == (2, 2)


class Told:
    """A hypervisor that notes who wrote what, and who signaled."""

    def __init__(self) -> None:
        self.heard: list[tuple[object, int]] = []
        self.trace = Trace(lambda: 0)

    def port_out(self, vp: object, port: int, size: int, value: int) -> None:
        self.heard.append((vp, value))

    def hypercall(self, vp: object, control: int, first: int, second: int) -> int:
        self.heard.append((vp, first))
        return 0


def test_who_wrote_is_who_is_left() -> None:
    """KVM does not say which processor wrote or rang: it counts as number 0's, and as the next one's once that is gone.

    With none left there is nobody to have said anything, and no exception: the root deletes processors as it likes.
    """
    writes, page = ring()
    told = Told()
    backend = object.__new__(KvmBackend)
    partition: Any = SimpleNamespace(vps={0: "first", 1: "second", 3: "third"}, state=PartitionState.ACTIVE, id=2)
    backend._posted, backend._partition = writes, partition
    backend._hypervisor = cast(Any, told)
    for _ in range(4):
        post(page, 1, 1)
        backend._drain()
        backend._rang(7)
        if partition.vps:
            del partition.vps[min(partition.vps)]
    assert told.heard == [(name, value) for name in ("first", "second", "third") for value in (1, 7)]


# --- doorbells


class Bells:
    """KVM's side of doorbells."""

    def __init__(self, room: int = 1000) -> None:
        self.bound: dict[int, int] = {}
        self.room = room

    def doorbell(self, port: int, value: int, event_fd: int, *, attach: bool) -> None:
        assert port == DOORBELL_PORT
        if attach:
            if value in self.bound:
                raise OSError(errno.EEXIST, "exists")
            if len(self.bound) == self.room:
                raise OSError(errno.ENOSPC, "no room")
            self.bound[value] = event_fd
        else:
            assert self.bound.pop(value) == event_fd

    def ring(self, value: int) -> None:
        os.eventfd_write(self.bound[value], 1)


def connection(number: int, kind: PortType = PortType.EVENT) -> Connection:
    nobody: Any = None
    return Connection(nobody, number, Port(nobody, number, 2, kind, 2, 0, 1, 1))


def doorbells(bells: Bells, signal: Any) -> tuple[Doorbells, Trace]:
    trace = Trace(lambda: 0)
    return Doorbells(bells, signal, trace, 2), trace


async def test_what_rings_is_signaled_and_rings_again() -> None:
    """Nobody reads the eventfds: each ring has to wake the task by itself."""
    bells, rang = Bells(), []
    bound, _ = doorbells(bells, rang.append)
    for number in (1, 2, 3):
        bound.attach(connection(number))
    bound.attach(connection(4, PortType.MESSAGE))
    assert sorted(bells.bound) == [1, 2, 3]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bound.run)
        for _ in range(5):
            rang.clear()
            bells.ring(1)
            bells.ring(3)
            bells.ring(3)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert sorted(rang) == [1, 3]
        nursery.cancel_scope.cancel()
    bound.close()
    assert not bells.bound


async def test_a_number_is_used_again_at_once() -> None:
    """As in a device that is withdrawn and offered again: the old binding is gone before the new one comes."""
    bells, rang = Bells(), []
    bound, trace = doorbells(bells, rang.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bound.run)
        bound.attach(connection(7))
        bells.ring(7)
        bound.detach(connection(7))
        bound.attach(connection(7))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert rang == [], "what rang for the old one is not for the new one"
        bells.ring(7)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    assert rang == [7]
    assert not trace.warnings
    bound.close()


async def test_a_signal_that_detaches_another_that_rang_with_it() -> None:
    bells = Bells()
    rang: list[int] = []

    def signal(number: int) -> None:
        rang.append(number)
        bound.detach(connection(3 - number))

    bound, _ = doorbells(bells, signal)
    bound.attach(connection(1))
    bound.attach(connection(2))
    bells.ring(1)
    bells.ring(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bound.run)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    assert len(rang) == 1
    bound.close()


def test_without_room_signals_stay_exits() -> None:
    """KVM takes a thousand devices on its bus; the guest must not pay with its life for one more channel."""
    before = len(os.listdir("/proc/self/fd"))
    bound, trace = doorbells(Bells(room=2), print)
    for number in range(4):
        bound.attach(connection(number))
    assert len(bound) == 2
    assert trace.warnings[2, "doorbell_refused"] == 2
    bound.detach(connection(3))
    bound.close()
    assert len(os.listdir("/proc/self/fd")) == before


# --- errors that say what to do


def test_no_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "DEVICE", str(tmp_path / "kvm"))
    with pytest.raises(KvmError, match=r"there is no .*kvm: load kvm-intel or kvm-amd, or turn on virtualization"):
        machine.check_kvm()


def test_no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(KvmError, match="no permission for /dev/kvm: join the group kvm"):
        machine.check_kvm()


def test_a_device_that_is_no_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DEVICE", "/dev/null")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KvmError, match="/dev/null does not answer as KVM does"):
        machine.check_kvm()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("capability", machine.NEEDED)
def test_a_missing_capability_is_named(monkeypatch: pytest.MonkeyPatch, capability: ioctls.Capability) -> None:
    def answer(fd: int, request: int, argument: object = None) -> int:
        if request == Request.GET_API_VERSION:
            return machine.API_VERSION
        return int(argument != capability)

    monkeypatch.setattr(machine, "DEVICE", "/dev/null")
    monkeypatch.setattr(ioctls, "ioctl", answer)
    with pytest.raises(KvmError, match=f"lacks KVM_CAP_{capability.name} "):
        machine.check_kvm()


@pytest.mark.parametrize(
    ("flags", "anyway", "refused"),
    [("fpu svm", "", False), ("fpu vmx", "", False), ("fpu hypervisor", "", True), ("fpu hypervisor", "1", False)],
)
def test_a_kvm_that_only_emulates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, anyway: str, refused: bool
) -> None:
    monkeypatch.setattr(ioctls, "ioctl", lambda _, request, __=None: 12 if request == Request.GET_API_VERSION else 1)
    monkeypatch.setattr(machine, "DEVICE", "/dev/null")
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\nbugs : svm\n")
    monkeypatch.setenv(machine.ANYWAY, anyway)
    if refused:
        with pytest.raises(KvmError, match="neither vmx nor svm: this KVM only emulates"):
            machine.check_kvm()
    else:
        machine.check_kvm()


# --- the switch interval


def test_the_switch_interval_comes_back_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.005]
    monkeypatch.setattr(switching.sys, "getswitchinterval", lambda: now[0])
    monkeypatch.setattr(switching.sys, "setswitchinterval", lambda value: now.__setitem__(0, value))
    with switching.quick_switching():
        with switching.quick_switching():
            assert now == [switching.SWITCH_INTERVAL]
        assert now == [switching.SWITCH_INTERVAL]
    assert now == [0.005]
    now[0] = 0.00001
    with switching.quick_switching():
        assert now == [0.00001], "a shorter one is left"
