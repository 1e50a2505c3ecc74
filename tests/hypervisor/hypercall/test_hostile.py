"""A hostile guest: any control word, registers and bytes. It gets a status or a fault, and harms nobody else."""

from __future__ import annotations

import struct

from hypothesis import example, given, settings
from hypothesis import strategies as st

from hypervisor.hypercall.abi import FAST, control_word
from hypervisor.hypercall.table import CALLS
from hypervisor.machine import ProcessorFault
from hypervisor.pages import PAGE_SIZE
from hypervisor.privileges import Privilege
from hypervisor.status import HvStatus
from hypervisor.synic.ports import PortType
from tests.doubles.hypercaller import CHILD_INPUT, CHILD_OUTPUT, CHILD_PAGES, Machine

U64 = st.integers(0, (1 << 64) - 1)
CODES = st.sampled_from([int(call.code) for call in CALLS])
WORDS = (
    U64
    | CODES
    | CODES.map(lambda code: code | FAST)
    | st.builds(control_word, CODES, count=st.integers(1, 520), start=st.integers(0, 3))
)
WHERE = st.sampled_from([CHILD_INPUT, CHILD_OUTPUT, 0x1000, CHILD_PAGES * PAGE_SIZE, CHILD_INPUT + 0xF00, 0x5000]) | U64
"""The hypercall page, the end of memory, a page without rights to write, and anything else."""
ID = st.sampled_from([0, 1, 2, 3, 4, 0x10, 0x2001, 0xFFFFFFFF, (1 << 64) - 1, 1 << 32 | 1]) | U64
BYTES = st.lists(ID, min_size=1, max_size=12).map(lambda values: struct.pack(f"<{len(values)}Q", *values))
RIGHTS = (
    *(Privilege.POST_MESSAGES, Privilege.SIGNAL_EVENTS, Privilege.CREATE_PORT, Privilege.CONNECT_PORT),
    *(Privilege.CREATE_PARTITIONS, Privilege.ACCESS_MEMORY_POOL, Privilege.ACCESS_PARTITION_ID),
)
CALL = st.tuples(WORDS, WHERE, WHERE, BYTES)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([0, sum(RIGHTS[:2]), sum(RIGHTS)]), st.lists(CALL, min_size=1, max_size=8))
@example(sum(RIGHTS), [(control_word(0x4B, count=1), CHILD_INPUT, 0, struct.pack("<4Q", 2, (1 << 64) - 1, 7, 0))])
@example(sum(RIGHTS), [(control_word(0x48, count=2), CHILD_INPUT, 0, struct.pack("<3Q", 2, 5, (1 << 64) - 1))])
def test_a_guest_harms_only_itself(rights: int, calls: list[tuple[int, int, int, bytes]]) -> None:
    """Every answer is a known status, every exception a processor's; the sibling and the root stay as they were."""
    machine = Machine()
    machine.listen()
    child, sibling = machine.child(rights), machine.child()
    machine.connect(child, PortType.EVENT, 0x10, 0x2001)
    machine.connect(child, PortType.MESSAGE, 0x11, 1)
    sibling.memory.write(0x4000, b"mine" * 1024)
    before = everything_about_others(machine, child.id)
    vp = child.vps[0]
    for control, low, high, data in calls:
        child.memory.write(CHILD_INPUT, data)
        try:
            value = machine.hypervisor.hypercall(vp, control, low, high)
        except ProcessorFault:
            vp.clear_intercept_suspend()
            continue
        HvStatus(value & 0xFFFF)
        assert value >> 44 == 0
        assert value >> 16 & 0xFFFF == 0
    assert everything_about_others(machine, child.id) == before
    machine.hypervisor.close()


def everything_about_others(machine: Machine, child_id: int) -> object:
    """The state of root and siblings, but for the flags and messages that a child may send to its ports."""
    others = [p for p in machine.hypervisor.partitions.values() if p.id != child_id and p.parent_id != child_id]
    return [
        (
            partition.id,
            partition.state,
            partition.privileges,
            partition.properties,
            set(partition.vps),
            set(partition.ports),
            set(partition.connections),
            list(partition.children),
            [(gpn, page, count, rights) for gpn, _, page, count, rights in partition.memory.extents()],
            partition.pool.in_use,
            partition.pool.deposited,
            b"" if partition is machine.root else partition.memory.read(0x4000, PAGE_SIZE),
        )
        for partition in others
    ]
