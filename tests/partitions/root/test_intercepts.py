"""The root's software answers accesses of a VM through the real hypervisor, at once or later."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
import trio
from trio.testing import MockClock

from hypervisor.backend.task import TaskBackend, TaskVp
from hypervisor.hypervisor import Hypervisor
from hypervisor.intercept import InterceptType
from hypervisor.machine import GeneralProtection, Intercepted, InvalidOpcode, Machine
from hypervisor.msr import Msr
from hypervisor.partition import PageCost
from hypervisor.processor_registers import INVALID_OPCODE_VECTOR
from hypervisor.status import HvStatus
from hypervisor.trace import Trace
from partitions.root.intercepts import Access
from partitions.root.vid import Vid, VmPartition
from partitions.root.winhv import HypercallFailed, HypervisorMessage, WinHv
from tests.doubles.root import MIB

APIC_BASE = 0x1B


@attrs.define
class Root:
    """The root's software, one VM that runs, and what reached nobody's handler."""

    winhv: WinHv
    vm: VmPartition
    guest: TaskVp
    others: list[HypervisorMessage]


@pytest.fixture
def root() -> Iterator[Root]:
    hypervisor = Hypervisor(lambda: 0, Trace(lambda: 0), memory_bytes=64 * MIB, root_vps=2)
    winhv = WinHv(hypervisor)
    vid = Vid(hypervisor, winhv, vm_memory=32 * MIB)
    with vid.open_partition(name="web", memory=MIB, processors=1) as vm:
        others: list[HypervisorMessage] = []
        winhv.hypervisor_handlers[vm.id] = others.append
        guest = TaskVp(hypervisor, vm.partition.vps[0])
        vm.resume()
        yield Root(winhv, vm, guest, others)
        guest.detach()
    assert not winhv.intercepts, "whoever answered went with the partition"


def test_answers_in_the_interrupt(root: Root) -> None:
    """Every kind, by its own value; the software sees nothing but the value."""
    seen: list[tuple[InterceptType, int, bool, int, int]] = []

    def port(access: Access) -> None:
        seen.append((access.kind, access.number, access.writes, access.size, access.value))
        access.give(0x1234)

    def msr(access: Access) -> None:
        seen.append((access.kind, access.number, access.writes, access.size, access.value))
        access.give(0x1122334455667788)

    intercepts, guest = root.vm.intercepts, root.guest
    intercepts.on_port(0x80, port)
    intercepts.on_msr(msr)
    assert guest.port_in(0x80, 1) == 0x34
    guest.port_out(0x80, 2, 0xABCD)
    assert guest.read_msr(APIC_BASE) == 0x1122334455667788
    guest.write_msr(APIC_BASE, 0xFEE00900_00000001)
    assert [what[1:] for what in seen] == [
        (0x80, False, 1, seen[0][4]),
        (0x80, True, 2, 0xABCD),
        (APIC_BASE, False, 0, seen[2][4]),
        (APIC_BASE, True, 0, 0xFEE00900_00000001),
    ]
    assert root.vm.partition.counters["intercepts"] == 4
    assert not root.others


def test_a_leaf_and_an_exception(root: Root) -> None:
    """CPUID with what it would have answered; #GP taken away from the software that earned it."""
    guest = root.guest
    default = guest.cpuid(0x40000003, 1)
    asked: list[Access] = []

    def leaf(access: Access) -> None:
        asked.append(access)
        access.give_leaf(1, *access.default[1:])

    root.vm.intercepts.on_cpuid(0x40000003, leaf)
    assert guest.cpuid(0x40000003, 1) == (1, *default[1:])
    assert (asked[0].number, asked[0].value, asked[0].default) == (0x40000003, 1, default)
    root.vm.intercepts.on_exception(13, lambda access: access.give())
    guest.write_msr(Msr.VP_INDEX, 3)
    root.vm.intercepts.on_exception(13, None)
    with pytest.raises(GeneralProtection):
        guest.write_msr(Msr.VP_INDEX, 3)


def test_refusals(root: Root) -> None:
    """#GP, or another exception by name."""
    root.vm.intercepts.on_msr(lambda access: access.refuse())
    with pytest.raises(GeneralProtection):
        root.guest.read_msr(APIC_BASE)
    root.vm.intercepts.on_msr(lambda access: access.refuse(INVALID_OPCODE_VECTOR, None))
    with pytest.raises(InvalidOpcode):
        root.guest.read_msr(APIC_BASE)


def test_a_handler_that_gives_way(root: Root) -> None:
    """It removes itself and lets the access be made again; what follows goes the ordinary way."""

    def once(access: Access) -> None:
        root.vm.intercepts.on_port(0x80, None)
        access.again()

    root.vm.intercepts.on_port(0x80, once)
    assert root.guest.port_in(0x80, 1) == 0xFF
    assert root.guest.port_in(0x80, 1) == 0xFF
    assert root.vm.partition.counters["intercepts"] == 1
    assert root.vm.partition.interception is None


def test_one_answer_an_access(root: Root) -> None:
    """A second one would resume a processor that has gone on."""
    kept: list[Access] = []

    def twice(access: Access) -> None:
        access.give(1)
        kept.append(access)

    root.vm.intercepts.on_port(0x80, twice)
    root.guest.port_in(0x80, 1)
    with pytest.raises(RuntimeError):
        kept[0].give(2)


def test_what_nobody_handles_is_the_workers(root: Root) -> None:
    """An intercept that was installed past these handlers, and other messages of the hypervisor."""
    assert root.vm.intercepts is root.vm.intercepts
    root.winhv.install_intercept(root.vm.id, InterceptType.IO_PORT, 3, 0x70)
    with pytest.raises(Intercepted):
        root.guest.port_in(0x70, 1)
    root.vm.partition.vps[0].clear_intercept_suspend()
    root.vm.partition.hypervisor.unrecoverable_exception(root.vm.partition.vps[0], "it fell over")
    assert [message.message_type for message in root.others] == [0x80010000, 0x80000021]


def test_what_cannot_be_installed(root: Root) -> None:
    """The hypervisor's refusal comes out, and no handler is left behind."""
    with pytest.raises(HypercallFailed) as caught:
        root.vm.intercepts.on_exception(32, lambda access: access.give())
    assert caught.value.status is HvStatus.INVALID_PARAMETER
    partition = root.vm.partition
    partition.charge(partition.pool.available - PageCost.CPUID_INTERCEPT)
    root.vm.intercepts.on_cpuid(1, lambda access: access.again())
    with pytest.raises(HypercallFailed) as caught:
        root.vm.intercepts.on_cpuid(2, lambda access: access.again())
    assert caught.value.status is HvStatus.INSUFFICIENT_MEMORY
    partition.discharge(partition.pool.in_use - PageCost.INITIALIZE - PageCost.VP - 1 - len(partition.mapped_regions))


async def test_an_answer_an_hour_later(root: Root, autojump_clock: MockClock) -> None:
    """The handler keeps the access; the software waits in `execute` and then has its value."""
    kept: list[Access] = []
    read: list[int] = []
    root.guest.detach()
    root.vm.intercepts.on_port(0x80, kept.append)

    async def software(machines: list[Machine]) -> None:
        machine = machines[0]
        read.append(await machine.execute(lambda: machine.port_in(0x80, 4)))

    backend = TaskBackend(root.vm.partition.hypervisor, software)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.run, root.vm.partition)
        await trio.sleep(3600)
        assert not read
        kept[0].give(0xCAFE)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert read == [0xCAFE]
