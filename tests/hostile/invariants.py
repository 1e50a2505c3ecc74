"""The isolation promises I1 to I15 as checks that any hostile test can make, beside a sibling VM at work.

How each is checked, or where:

    I1   a guest's memory is its own block and no other; the sibling's page is as it wrote it
    I2   neither a sibling's words nor the root's are anywhere in the guest's memory
    I3   partitions, processors, privileges and properties are those that there were
    I4   each of the guest's connections leads to a port that the root made for this guest
    I5   no page that a guest sees belongs to a pool
    I6   after a reset all of the guest's memory is zero
    I7   not here: there is no scheduler yet that could promise processor time (resource control brings it)
    I8   queues, GPADLs, channels, ports and the pool are within their limits, nothing of ours has failed, the sibling
         goes on
    I9   what the guest did told nobody but the root: the sibling has no message that it did not ask for
    I10  not here: all workers are one process, which the sandbox of the `process` backend changes
    I11  not an event but a property of what is done with text: tests/vsp_vsc/integration/test_vsp.py,
         `test_guest_text_is_data`
    I12  the same as I1 and I3 for everybody else, whether the guest runs, was reset or has ended
    I13  not here: tests/partitions/test_saving.py and tests/hypervisor/saved_state/ damage and forge saved VMs
    I14  cannot be seen from outside afterwards: tests/hostile/test_ring.py and test_monitor_pages.py change memory
         between two looks
    I15  message slots are zero behind their messages; and I2
"""

from __future__ import annotations

import struct

from hypervisor.machine import Machine
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SIZE
from hypervisor.partition import ROOT_ID, Partition
from hypervisor.processor_registers import ProcessorRegister
from hypervisor.synic.messages import SINT_COUNT, SLOT_SIZE
from partitions.host import ExitReason, Host, VmState
from partitions.inspect import host_tree
from tests.doubles import root
from tests.doubles.boundary_guest import SINT, BoundaryGuest
from tests.doubles.looking import faults, seen
from tests.doubles.root import boot_synic, held, say
from vmbus.server.gpadls import MAX_GPADL_WORDS, MAX_GPADLS
from vmbus.server.limits import INBOX_MESSAGES

EVIL, SIBLING = "evil", "sibling"
CANARY = 0x40000
SECRET = b"a sibling's word"
BEAT = 10_000
"""100 ns units between two signs of life of the sibling."""
CONTACT = struct.pack("<IIIIQQQ", 14, 0, 0x50003, 0, 2, 0, 0)


async def sibling(machine: Machine, beat: int = BEAT) -> None:
    """Boots, and every `beat` makes a connection and hears the answer, and nothing else (I9)."""
    boot_synic(machine)
    memory = machine.memory
    memory[CANARY : CANARY + PAGE_SIZE] = SECRET * (PAGE_SIZE // len(SECRET))
    page = root.MESSAGE_PAGE * PAGE_SIZE
    slot = page + SINT * SLOT_SIZE
    while True:
        assert root.post(machine, 4, CONTACT) == 0
        await machine.halt()
        assert memory[slot + 16 : slot + 25] == struct.pack("<IIB", 15, 0, 1)
        memory[slot : slot + 4] = bytes(4)
        assert not any(any(memory[page + n * SLOT_SIZE :][:4]) for n in range(SINT_COUNT)), "I9"
        say(machine, "beat\n")
        await machine.sleep_until(machine.read_msr(Msr.TIME_REF_COUNT) + beat)


def others(host: Host) -> object:
    """I1, I3, I12: root and sibling, but for what a guest's traffic may change in them. Equal before and after."""
    evil = host[EVIL].partition_id
    return [
        (
            partition.id,
            partition.state,
            partition.privileges,
            dict(partition.properties),
            len(partition.vps),
            (list(partition.memory.extents()), partition.memory.read(CANARY, PAGE_SIZE))
            if partition.id != ROOT_ID
            else (),
            [vp.suspended for vp in partition.vps.values()],
        )
        for partition in host.hypervisor.partitions.values()
        if partition.id != evil
    ]


def check(host: Host, *, bounded_queues: bool = True) -> None:
    """I2 to I5, I8 and I15 of the guest as it is now. `bounded_queues` is for guests that have taken their messages."""
    vm = host[EVIL]
    if vm.exit is not None:
        assert vm.exit.reason is not ExitReason.WORKER_FAILED, vm.exit.traceback
        assert vm.exit.reason is not ExitReason.NOT_STARTED
    if vm.partition_id is None:
        return
    bus = vm.statistics().bus
    assert bus.messages_waiting <= INBOX_MESSAGES
    assert not bounded_queues or bus.messages_unsent <= 64
    assert bus.gpadls <= MAX_GPADLS
    assert bus.gpadl_words <= MAX_GPADL_WORDS
    offered = 2 if vm.settings.screen is None else 3
    assert bus.channels <= offered, "a controller and, of two processors, one subchannel; or screen, keyboard, mouse"
    for path in (f"vm/{EVIL}", f"hypervisor/partitions/{vm.partition_id}"):
        assert not faults(seen(host_tree(host), path)), "whatever a guest does, a look inside says how it is"
    _check_partition(host, host.hypervisor.partitions[vm.partition_id], offered)


def _check_partition(host: Host, partition: Partition, offered: int) -> None:
    memory = partition.memory
    ((gpn, block, _, _, _),) = memory.extents()
    assert gpn == 0
    assert block.deposited == 0, "I5"
    for other in host.hypervisor.partitions.values():
        if other.id not in (ROOT_ID, partition.id):
            assert all(theirs is not block for _, theirs, _, _, _ in other.memory.extents()), "I1"
    content = memory.read(0, memory.end)
    assert SECRET not in content, "I2"
    for connection in partition.connections.values():
        assert connection.port.owner.id == ROOT_ID, "I4"
        assert connection.port.sender_id == partition.id, "I4"
    assert 0 <= partition.pool.in_use <= 120
    assert len(partition.ports) <= 3
    assert len(partition.connections) <= 2 + offered
    for vp in partition.vps.values():
        assert vp.synic.queued <= 16 * len(partition.ports) + 4, "buffers of ports, and one a timer"
        assert set(vp.registers) <= {ProcessorRegister.CR3}, "what the call to switch address spaces writes"


def slots_are_clean(page: bytes) -> None:
    """I15: behind each message its slot is zero."""
    for start in range(0, len(page), SLOT_SIZE):
        slot = page[start : start + SLOT_SIZE]
        kind, size = struct.unpack_from("<IB", slot)
        if kind:
            assert not any(slot[16 + size :]), "I15"


async def sibling_goes_on(guest: BoundaryGuest, beat: int = BEAT) -> None:
    """I8: five beats in the time of ten."""
    host = guest.host
    beats = host[SIBLING].console.total_bytes
    for _ in range(5):
        await guest.do("advance", ticks=2 * beat)
    assert host[SIBLING].state is VmState.RUNNING, host[SIBLING].exit and host[SIBLING].exit.traceback
    assert host[SIBLING].console.total_bytes >= beats + 5 * 5


async def reset_clears(guest: BoundaryGuest, memory: int) -> None:
    """I6."""
    await guest.do("reset")
    partition_id = guest.host[EVIL].partition_id
    assert partition_id is not None
    is_clear = guest.host.hypervisor.partitions[partition_id].memory.read(0, memory) == bytes(memory)
    assert is_clear, "I6"


async def all_is_given_back(host: Host) -> None:
    """I8, I12: with both VMs off the root holds what it held before there were any."""
    for name in (EVIL, SIBLING):
        if host[name].state is not VmState.OFF:
            await host[name].turn_off()
    left = held(host)
    assert (left.partitions, left.root_ports, left.root_connections, left.handlers, left.flags) == (1, 0, 0, 0, 0)
