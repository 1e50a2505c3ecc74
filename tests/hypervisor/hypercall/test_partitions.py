"""Hypercalls that make and end partitions."""

from __future__ import annotations

import pytest

from hypervisor.hypercall import layouts
from hypervisor.hypercall.abi import CallCode
from hypervisor.partition import PageCost, Partition, PartitionState
from hypervisor.privileges import CHILD_PRIVILEGES, Privilege
from hypervisor.properties import Property
from hypervisor.status import HvError, HvStatus
from hypervisor.synic.ports import PortType
from tests.doubles.hypercaller import POOL_PAGES, Answer, Machine

VALID_NODE_0 = layouts.PROXIMITY_VALID << 32
VALID_NODE_1 = layouts.PROXIMITY_VALID << 32 | 1


@pytest.fixture
def machine() -> Machine:
    return Machine()


def on(machine: Machine, code: CallCode, partition: Partition) -> HvStatus:
    """A fast call that names a partition and nothing else."""
    return machine.call(code, layouts.PartitionInput(partition.id), fast=True).status


def drain(machine: Machine, partition: Partition) -> None:
    machine.call(CallCode.WITHDRAW_MEMORY, layouts.WithdrawMemoryInput(partition.id), count=512)


# --- creation


def test_ids_count_up_and_are_never_used_again(machine: Machine) -> None:
    """0 means none, 1 is the root."""
    first = machine.create()
    assert first.id == 2
    assert on(machine, CallCode.DELETE_PARTITION, first) is HvStatus.SUCCESS
    assert first.state is PartitionState.DELETED
    for following in (3, 4, 5):
        child = machine.create()
        assert child.id == following
        on(machine, CallCode.DELETE_PARTITION, child)


def test_a_new_child(machine: Machine) -> None:
    child = machine.create()
    assert child.state is PartitionState.UNINITIALIZED
    assert child.privileges == CHILD_PRIVILEGES
    assert child.parent is machine.root
    assert (child.pool.available, child.pool.in_use) == (0, 0)


@pytest.mark.parametrize(
    ("flags", "proximity", "status"),
    [
        (0, 0, HvStatus.SUCCESS),
        (0, VALID_NODE_0, HvStatus.SUCCESS),
        (0, VALID_NODE_0 | 1 << 32, HvStatus.SUCCESS),
        (0, 5, HvStatus.SUCCESS),  # a node without the valid bit is no node
        (1, 0, HvStatus.INVALID_PARAMETER),
        (1 << 63, 0, HvStatus.INVALID_PARAMETER),
        (0, VALID_NODE_1, HvStatus.INVALID_PARAMETER),
        (0, 1 << 40, HvStatus.INVALID_PARAMETER),
    ],
)
def test_creation_parameters(machine: Machine, flags: int, proximity: int, status: HvStatus) -> None:
    answer = machine.call(CallCode.CREATE_PARTITION, layouts.CreatePartitionInput(flags, proximity))
    assert answer.status is status


def test_creation_is_paid_by_the_caller(machine: Machine) -> None:
    """Its pool may be short."""
    before = machine.root.pool.in_use
    machine.create()
    assert machine.root.pool.in_use == before + PageCost.PARTITION
    machine.root.charge(machine.root.pool.available)
    answer = machine.call(CallCode.CREATE_PARTITION, layouts.CreatePartitionInput())
    assert answer.status is HvStatus.INSUFFICIENT_MEMORY


def test_children_of_children_are_too_deep(machine: Machine) -> None:
    """Before a look at the parameters, and whatever the child's rights."""
    child = machine.child(Privilege.CREATE_PARTITIONS)
    answer = machine.call(CallCode.CREATE_PARTITION, layouts.CreatePartitionInput(1), caller=child)
    assert answer.status is HvStatus.PARTITION_TOO_DEEP


# --- states

STATES = (PartitionState.UNINITIALIZED, PartitionState.ACTIVE, PartitionState.FINALIZING, PartitionState.FINALIZED)
LEGAL = {
    CallCode.INITIALIZE_PARTITION: STATES[:1],
    CallCode.FINALIZE_PARTITION: STATES[1:3],
    CallCode.GET_PARTITION_PROPERTY: STATES[1:2],
    CallCode.SET_PARTITION_PROPERTY: STATES[1:2],
    CallCode.GET_NEXT_CHILD_PARTITION: STATES,
    CallCode.DEPOSIT_MEMORY: STATES[:2],
    CallCode.WITHDRAW_MEMORY: STATES,
    CallCode.GET_MEMORY_BALANCE: STATES,
    CallCode.MAP_GPA_PAGES: STATES[1:2],
    CallCode.UNMAP_GPA_PAGES: STATES[1:2],
    CallCode.CREATE_VP: STATES[1:2],
    CallCode.GET_VP_REGISTERS: STATES[1:2],
    CallCode.CREATE_PORT_2010: STATES[1:2],
    CallCode.CONNECT_PORT_2010: STATES[1:2],
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("code", LEGAL)
def test_which_call_is_legal_in_which_state(machine: Machine, code: CallCode, state: PartitionState) -> None:
    """TLFS 2.0a, 5.2.5; what else such a call may answer is not asked here."""
    child = machine.active()
    child.state = state
    rep = code in (
        *(CallCode.DEPOSIT_MEMORY, CallCode.WITHDRAW_MEMORY, CallCode.MAP_GPA_PAGES),
        *(CallCode.UNMAP_GPA_PAGES, CallCode.GET_VP_REGISTERS),
    )
    request = child.id.to_bytes(8, "little") + bytes(120)
    status = machine.call(code, request, count=1 if rep else 0).status
    assert (status is not HvStatus.INVALID_PARTITION_STATE) == (state in LEGAL[code])


@pytest.mark.parametrize("state", STATES)
def test_deletion_is_legal_at_both_ends(machine: Machine, state: PartitionState) -> None:
    child = machine.create()
    child.state = state
    ends = (PartitionState.UNINITIALIZED, PartitionState.FINALIZED)
    expected = HvStatus.SUCCESS if state in ends else HvStatus.INVALID_PARTITION_STATE
    assert on(machine, CallCode.DELETE_PARTITION, child) is expected


# --- the whole life


def test_initialization_is_paid_from_the_childs_pool(machine: Machine) -> None:
    child = machine.create()
    machine.deposit(child, PageCost.INITIALIZE - 1)
    assert on(machine, CallCode.INITIALIZE_PARTITION, child) is HvStatus.INSUFFICIENT_MEMORY
    assert child.state is PartitionState.UNINITIALIZED
    machine.deposit(child, 1)
    assert on(machine, CallCode.INITIALIZE_PARTITION, child) is HvStatus.SUCCESS
    assert child.pool.available == 0


def test_destruction(machine: Machine) -> None:
    """Finalize frees everything, withdraw empties the pool, delete forgets; in this order only."""
    child = machine.child()
    machine.connect(child, PortType.MESSAGE, 0x10, 1)
    assert on(machine, CallCode.DELETE_PARTITION, child) is HvStatus.INVALID_PARTITION_STATE
    assert on(machine, CallCode.FINALIZE_PARTITION, child) is HvStatus.SUCCESS
    assert (child.vps, child.ports, child.connections, child.memory.end) == ({}, {}, {}, 0)
    assert (child.pool.available, child.pool.in_use) == (POOL_PAGES, 0)
    assert on(machine, CallCode.FINALIZE_PARTITION, child) is HvStatus.INVALID_PARTITION_STATE
    assert on(machine, CallCode.DELETE_PARTITION, child) is HvStatus.OPERATION_DENIED
    drain(machine, child)
    assert on(machine, CallCode.DELETE_PARTITION, child) is HvStatus.SUCCESS
    assert child.id not in machine.hypervisor.partitions
    with pytest.raises(HvError, match="INVALID_PARTITION_ID"):
        machine.hypervisor.by_id(child.id)


def test_a_message_to_a_finalized_partition_fails(machine: Machine) -> None:
    """The root's connection is still there; the port behind it is not."""
    child = machine.child()
    info = layouts.CreatePort2010Input(child.id, 5, 1, (1).to_bytes(8, "little") + b"\x02" + bytes(15))
    machine.must(CallCode.CREATE_PORT_2010, info)
    connection = layouts.ConnectPort2010Input(1, 9, child.id, 5, (1).to_bytes(16, "little"))
    machine.must(CallCode.CONNECT_PORT_2010, connection)
    on(machine, CallCode.FINALIZE_PARTITION, child)
    post = machine.call(CallCode.POST_MESSAGE, layouts.PostMessageInput(9, 1, 0, bytes(240)))
    assert post.status is HvStatus.INVALID_PORT_ID


def test_a_parent_of_children_cannot_be_finalized() -> None:
    machine = Machine(max_depth=3)
    child = machine.child(Privilege.CREATE_PARTITIONS)
    answer = machine.call(CallCode.CREATE_PARTITION, layouts.CreatePartitionInput(), caller=child)
    grandchild = layouts.PartitionInput(layouts.PartitionOutput.decode(answer.output).partition_id)
    assert on(machine, CallCode.FINALIZE_PARTITION, child) is HvStatus.OPERATION_DENIED
    assert child.state is PartitionState.ACTIVE
    deleted = machine.call(CallCode.DELETE_PARTITION, grandchild, fast=True, caller=child)
    assert deleted.status is HvStatus.SUCCESS
    assert on(machine, CallCode.FINALIZE_PARTITION, child) is HvStatus.SUCCESS


@pytest.mark.parametrize(
    "code", [CallCode.INITIALIZE_PARTITION, CallCode.FINALIZE_PARTITION, CallCode.DELETE_PARTITION]
)
def test_the_root_does_not_end_itself(machine: Machine, code: CallCode) -> None:
    assert on(machine, code, machine.root) is HvStatus.ACCESS_DENIED


# --- properties, IDs, enumeration


def test_properties_by_hypercall(machine: Machine) -> None:
    child = machine.active()
    weight = Property.CPU_WEIGHT
    machine.must(CallCode.SET_PARTITION_PROPERTY, layouts.SetPartitionPropertyInput(child.id, weight, 700))
    output = machine.must(CallCode.GET_PARTITION_PROPERTY, layouts.GetPartitionPropertyInput(child.id, weight))
    assert layouts.PropertyOutput.decode(output).value == 700


def test_granted_privileges_work_and_show_at_once(machine: Machine) -> None:
    child = machine.child()

    def ask() -> Answer:
        return machine.call(CallCode.GET_PARTITION_ID, caller=child)

    assert ask().status is HvStatus.ACCESS_DENIED
    machine.grant(child, child.privileges | Privilege.ACCESS_PARTITION_ID)
    assert layouts.PartitionOutput.decode(ask().output).partition_id == child.id
    assert machine.hypervisor.cpuid(child.vps[0], 0x40000003)[1] == Privilege.ACCESS_PARTITION_ID >> 32


def test_a_child_does_not_set_its_own_privileges(machine: Machine) -> None:
    child = machine.child()
    request = layouts.SetPartitionPropertyInput(child.id, Property.PRIVILEGE_FLAGS, (1 << 64) - 1)
    assert machine.call(CallCode.SET_PARTITION_PROPERTY, request, caller=child).status is HvStatus.ACCESS_DENIED


def walk(machine: Machine) -> list[int]:
    found: list[int] = []
    previous = 0
    while True:
        output = machine.must(CallCode.GET_NEXT_CHILD_PARTITION, layouts.GetNextChildPartitionInput(1, previous))
        previous = layouts.PartitionOutput.decode(output).partition_id
        if not previous:
            return found
        found.append(previous)


def test_children_are_enumerated_in_the_order_of_creation(machine: Machine) -> None:
    assert walk(machine) == []
    made = [machine.create() for _ in range(4)]
    assert walk(machine) == [child.id for child in made]
    on(machine, CallCode.DELETE_PARTITION, made[1])
    assert walk(machine) == [2, 4, 5]
    gone = machine.call(CallCode.GET_NEXT_CHILD_PARTITION, layouts.GetNextChildPartitionInput(1, 3))
    assert gone.status is HvStatus.INVALID_PARTITION_ID
