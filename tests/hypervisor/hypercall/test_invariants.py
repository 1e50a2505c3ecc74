"""Random lives of partitions: whatever the calls and their answers, the books balance and no page is in two places."""

from __future__ import annotations

import struct

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hypervisor.blocks import MemoryBlock
from hypervisor.hypercall import layouts
from hypervisor.hypercall.abi import CallCode
from hypervisor.hypervisor import ROOT_POOL_PAGES
from hypervisor.pages import PAGE_SIZE
from hypervisor.partition import PageCost, Partition, PartitionState
from hypervisor.status import HvStatus
from hypervisor.synic.ports import ConnectionInfo, PortInfo, PortType
from tests.doubles.hypercaller import Machine

SPARE = 40
IDS = st.sampled_from([2, 3, 2, 3, 4, 1, 5, 0, 99])
"""Mostly the two children that every life begins with."""
PAGES = st.lists(st.integers(0, SPARE + 2), min_size=1, max_size=12)
RUN = st.builds(lambda first, count: list(range(first, first + count)), st.integers(0, SPARE), st.integers(1, 20))
SMALL = st.integers(0, 3)


class Lives(RuleBasedStateMachine):
    """Calls by the root with IDs and pages that may or may not make sense."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine()
        self.hypervisor = self.machine.hypervisor
        self.spare, self.block = self.hypervisor.add_root_block(SPARE * PAGE_SIZE, "spare")
        self.seen = [self.machine.active().id, self.machine.active().id]

    def teardown(self) -> None:
        self.hypervisor.close()

    def call(self, code: CallCode, request: bytes, *, count: int = 0, elements: bytes = b"") -> HvStatus:
        return self.machine.call(code, request, count=count, elements=elements).status

    def on_pages(self, code: CallCode, request: bytes, gpns: list[int]) -> None:
        elements = struct.pack(f"<{len(gpns)}Q", *(self.spare + gpn for gpn in gpns))
        self.call(code, request, count=len(gpns), elements=elements)

    @rule()
    def create(self) -> None:
        answer = self.machine.call(CallCode.CREATE_PARTITION, layouts.CreatePartitionInput())
        if answer.status is HvStatus.SUCCESS:
            made = layouts.PartitionOutput.decode(answer.output).partition_id
            assert made > max(self.seen), "an ID was used again"
            self.seen.append(made)

    @rule(
        code=st.sampled_from([CallCode.INITIALIZE_PARTITION, CallCode.FINALIZE_PARTITION, CallCode.DELETE_PARTITION]),
        named=IDS,
    )
    def live_on(self, code: CallCode, named: int) -> None:
        self.call(code, layouts.PartitionInput(named).encode())

    @rule(named=IDS, gpns=PAGES | RUN)
    def deposit(self, named: int, gpns: list[int]) -> None:
        self.on_pages(CallCode.DEPOSIT_MEMORY, layouts.DepositMemoryInput(named).encode(), gpns)

    @rule(named=IDS, count=st.integers(1, 30))
    def withdraw(self, named: int, count: int) -> None:
        self.call(CallCode.WITHDRAW_MEMORY, layouts.WithdrawMemoryInput(named).encode(), count=count)

    @rule(named=IDS, gpns=PAGES | RUN, base=st.sampled_from([0, 1, 510, 1000]), flags=st.sampled_from([7, 3, 1, 0, 2]))
    def map_pages(self, named: int, gpns: list[int], base: int, flags: int) -> None:
        self.on_pages(CallCode.MAP_GPA_PAGES, layouts.MapGpaPagesInput(named, base, flags).encode(), gpns)

    @rule(named=IDS, base=st.sampled_from([0, 5, 500]), count=st.integers(1, 600))
    def unmap(self, named: int, base: int, count: int) -> None:
        self.call(CallCode.UNMAP_GPA_PAGES, layouts.UnmapGpaPagesInput(named, base).encode(), count=count)

    @rule(named=IDS, index=SMALL)
    def create_vp(self, named: int, index: int) -> None:
        self.call(CallCode.CREATE_VP, layouts.CreateVpInput(named, index).encode())

    @rule(named=IDS.filter(lambda named: named != 1), index=SMALL)
    def delete_vp(self, named: int, index: int) -> None:
        self.call(CallCode.DELETE_VP, layouts.VpInput(named, index).encode())

    @rule(owner=IDS, port=SMALL, sender=IDS, kind=st.sampled_from(PortType), vp=SMALL)
    def create_port(self, owner: int, port: int, sender: int, kind: PortType, vp: int) -> None:
        info = PortInfo(kind, 2, vp, 0, 1 if kind is PortType.EVENT else 0).encode()
        self.call(CallCode.CREATE_PORT_2010, layouts.CreatePort2010Input(owner, port, sender, info).encode())

    @rule(owner=IDS, port=SMALL)
    def delete_port(self, owner: int, port: int) -> None:
        self.call(CallCode.DELETE_PORT, layouts.DeletePortInput(owner, port).encode())

    @rule(owner=IDS, connection=SMALL, port_owner=IDS, port=SMALL, kind=st.sampled_from(PortType))
    def connect(self, owner: int, connection: int, port_owner: int, port: int, kind: PortType) -> None:
        info = ConnectionInfo(kind).encode()
        request = layouts.ConnectPort2010Input(owner, connection, port_owner, port, info).encode()
        self.call(CallCode.CONNECT_PORT_2010, request)

    @rule(owner=IDS, connection=SMALL)
    def disconnect(self, owner: int, connection: int) -> None:
        self.call(CallCode.DISCONNECT_PORT, layouts.DisconnectPortInput(owner, connection).encode())

    # --- what always holds

    @invariant()
    def pools_balance(self) -> None:
        """What is in use is what the objects cost, and nothing was spent that was not there."""
        for partition in self.hypervisor.partitions.values():
            assert partition.pool.in_use == charges(partition)
            assert partition.pool.available >= 0
            assert partition.pool.deposited == sum(run.count for run in partition.pool.deposits)

    @invariant()
    def no_page_is_both_deposited_and_mapped(self) -> None:
        """Nor deposited twice."""
        pooled = [
            page
            for partition in self.hypervisor.partitions.values()
            for run in partition.pool.deposits
            for page in pages_of(run.block, run.block_page, run.count)
        ]
        mapped = {
            page
            for partition in self.hypervisor.partitions.values()
            for _, block, first, count, _ in partition.memory.extents()
            for page in pages_of(block, first, count)
        }
        assert len(pooled) == len(set(pooled))
        assert not mapped & set(pooled)

    @invariant()
    def children_reach_only_the_roots_pages(self) -> None:
        for partition in self.hypervisor.partitions.values():
            for _, block, _, _, _ in partition.memory.extents():
                assert block in (self.block, self.machine.block, *self.hypervisor._root_blocks.values())

    @invariant()
    def the_table_and_the_tree_agree(self) -> None:
        known = self.hypervisor.partitions
        assert set(known) == {1, *self.hypervisor.root.children}
        assert all(partition.state is not PartitionState.DELETED for partition in known.values())


def pages_of(block: MemoryBlock, first: int, count: int) -> list[tuple[int, int]]:
    return [(id(block), first + n) for n in range(count)]


def charges(partition: Partition) -> int:
    """What a partition's pool pays for, counted from what there is."""
    made = partition.state in (PartitionState.ACTIVE, PartitionState.FINALIZING)
    return (
        (PageCost.INITIALIZE if made else 0)
        + len(partition.mapped_regions) * PageCost.GPA_REGION
        + len(partition.vps) * PageCost.VP
        + len(partition.ports) * PageCost.MESSAGE_PORT
        + len(partition.connections) * PageCost.CONNECTION
        + len(partition.children) * PageCost.PARTITION
    )


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_the_roots_pool_is_large_enough_for_a_house_full() -> None:
    """1,024 children, each with two message ports and seven channels in the root and as many connections out of it."""
    a_child = PageCost.PARTITION + 9 * PageCost.MESSAGE_PORT + 9 * PageCost.CONNECTION
    assert 1024 * a_child < ROOT_POOL_PAGES
