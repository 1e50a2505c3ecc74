"""Memory exhaustion as a status: each object has its price, one page too few is refused, and nothing is half made."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

from hypervisor.hypercall import layouts
from hypervisor.hypercall.abi import CallCode
from hypervisor.hypercall.processor_layouts import InstallInterceptInput
from hypervisor.hypervisor import ROOT_POOL_PAGES
from hypervisor.intercept import InterceptType
from hypervisor.partition import PageCost, Partition, PartitionState
from hypervisor.privileges import Privilege
from hypervisor.status import HvStatus
from hypervisor.synic.ports import ConnectionInfo, PortInfo, PortType
from hypervisor.wire import Wire
from tests.doubles.hypercaller import Machine, pages

MESSAGE, EVENT = PortType.MESSAGE, PortType.EVENT


def port(kind: PortType) -> bytes:
    return PortInfo(kind, 2, 0, 0, 1 if kind is EVENT else 0).encode()


@attrs.frozen
class Priced:
    """Something that a pool pays for: the call that makes it, and the one that unmakes it."""

    cost: int
    code: CallCode
    make: Callable[[int], Wire]
    """Given the partition's ID."""
    undo_code: CallCode | None = None
    undo: Callable[[int], Wire] | None = None
    elements: bytes = b""


PRICED = {
    "processor": Priced(
        PageCost.VP,
        *(CallCode.CREATE_VP, lambda child: layouts.CreateVpInput(child, 7)),
        *(CallCode.DELETE_VP, lambda child: layouts.VpInput(child, 7)),
    ),
    "message port": Priced(
        PageCost.MESSAGE_PORT,
        *(CallCode.CREATE_PORT_2010, lambda child: layouts.CreatePort2010Input(child, 9, 1, port(MESSAGE))),
        *(CallCode.DELETE_PORT, lambda child: layouts.DeletePortInput(child, 9)),
    ),
    "event port": Priced(
        PageCost.EVENT_PORT,
        *(CallCode.CREATE_PORT_2010, lambda child: layouts.CreatePort2010Input(child, 9, 1, port(EVENT))),
        *(CallCode.DELETE_PORT, lambda child: layouts.DeletePortInput(child, 9)),
    ),
    "connection": Priced(
        PageCost.CONNECTION,
        CallCode.CONNECT_PORT_2010,
        lambda child: layouts.ConnectPort2010Input(child, 5, 1, 9, ConnectionInfo(MESSAGE).encode()),
        *(CallCode.DISCONNECT_PORT, lambda child: layouts.DisconnectPortInput(child, 5)),
    ),
    "CPUID intercept": Priced(
        PageCost.CPUID_INTERCEPT,
        *(CallCode.INSTALL_INTERCEPT, lambda child: InstallInterceptInput(child, 4, InterceptType.CPUID, 1)),
        *(CallCode.INSTALL_INTERCEPT, lambda child: InstallInterceptInput(child, 0, InterceptType.CPUID, 1)),
    ),
    "region of memory": Priced(
        *(PageCost.GPA_REGION, CallCode.MAP_GPA_PAGES),
        lambda child: layouts.MapGpaPagesInput(child, 0x4000, 7),
        elements=pages(1, 1),
    ),
}


@pytest.mark.parametrize("what", PRICED)
def test_an_object_costs_what_the_table_says(what: str) -> None:
    """A page short it is refused and nothing is charged; with enough it is made; undone, its pages are free again.

    Page tables alone stay until the partition ends.
    """
    priced = PRICED[what]
    machine = Machine()
    child = machine.child()
    machine.must(CallCode.CREATE_PORT_2010, layouts.CreatePort2010Input(1, 9, child.id, port(MESSAGE)))
    count = len(priced.elements) // 8
    held = child.pool.available - priced.cost + 1
    child.charge(held)
    before = child.pool.in_use
    answer = machine.call(priced.code, priced.make(child.id), count=count, elements=priced.elements)
    assert (answer.status, answer.completed) == (HvStatus.INSUFFICIENT_MEMORY, 0)
    assert child.pool.in_use == before
    child.discharge(1)
    machine.must(priced.code, priced.make(child.id), count=count, elements=priced.elements)
    assert child.pool.in_use == before - 1 + priced.cost
    assert child.pool.available == 0
    if priced.undo_code is not None and priced.undo is not None:
        machine.must(priced.undo_code, priced.undo(child.id))
        assert child.pool.in_use == before - 1
    child.discharge(held - 1)
    machine.must(CallCode.FINALIZE_PARTITION, layouts.PartitionInput(child.id))
    assert child.pool.in_use == 0


def test_partitions_are_paid_for_by_their_parent() -> None:
    """HvCreatePartition draws from the caller's pool until the child is deleted, HvInitializePartition from its own."""
    machine = Machine()
    root = machine.root
    before = root.pool.in_use
    child = machine.create()
    assert root.pool.in_use == before + PageCost.PARTITION
    machine.deposit(child, PageCost.INITIALIZE - 1)
    request = layouts.PartitionInput(child.id)
    assert machine.call(CallCode.INITIALIZE_PARTITION, request).status is HvStatus.INSUFFICIENT_MEMORY
    assert child.state is PartitionState.UNINITIALIZED
    machine.deposit(child, 1)
    machine.must(CallCode.INITIALIZE_PARTITION, request)
    root.charge(ROOT_POOL_PAGES - root.pool.in_use - 1)
    answer = machine.call(CallCode.CREATE_PARTITION, layouts.CreatePartitionInput())
    assert answer.status is HvStatus.INSUFFICIENT_MEMORY
    assert list(root.children) == [child.id]


def test_a_child_that_is_a_parent() -> None:
    """One level deeper where the machine allows it: the child's pool pays, and the level below is too deep.

    A child without the privilege cannot even ask.
    """
    machine = Machine(max_depth=3)
    child = machine.child(Privilege.CREATE_PARTITIONS | Privilege.ACCESS_MEMORY_POOL)
    before = child.pool.in_use

    def create(by: Partition) -> HvStatus:
        return machine.call(CallCode.CREATE_PARTITION, layouts.CreatePartitionInput(), caller=by).status

    assert create(child) is HvStatus.SUCCESS
    assert child.pool.in_use == before + PageCost.PARTITION
    (grandchild,) = (machine.hypervisor.by_id(number) for number in child.children)
    assert grandchild.depth == 3
    child.charge(child.pool.available)
    assert create(child) is HvStatus.INSUFFICIENT_MEMORY
    too_deep = Machine(max_depth=2)
    parent = too_deep.child(Privilege.CREATE_PARTITIONS)
    answer = too_deep.call(CallCode.CREATE_PARTITION, layouts.CreatePartitionInput(), caller=parent)
    assert answer.status is HvStatus.PARTITION_TOO_DEEP
    answer = too_deep.call(CallCode.CREATE_PARTITION, layouts.CreatePartitionInput(), caller=too_deep.child())
    assert answer.status is HvStatus.ACCESS_DENIED
