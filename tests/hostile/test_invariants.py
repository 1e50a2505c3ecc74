"""The checker of isolation promises sees each of them broken."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hypervisor.partition import Partition
from hypervisor.privileges import Privilege
from hypervisor.synic.messages import MessageHeader
from partitions.host import Host
from partitions.topology_schema import Size
from tests.doubles.boundary_guest import boundary_guest, run
from tests.doubles.root import topology, vm_table
from tests.hostile.invariants import CANARY, SECRET, check, others, reset_clears, sibling, slots_are_clean

MEMORY = 2 << 20


def partition(host: Host, name: str) -> Partition:
    return host.hypervisor.partitions[host[name].partition_id or 0]


def privilege(host: Host) -> None:
    partition(host, "sibling").privileges ^= int(Privilege.ACCESS_STATS_MSR)


def foreign_write(host: Host) -> None:
    partition(host, "sibling").memory.write(CANARY, b"other")


def leaked_word(host: Host) -> None:
    partition(host, "evil").memory.write(0x9000, SECRET)


def foreign_connection(host: Host) -> None:
    next(iter(partition(host, "evil").connections.values())).port.sender_id = 1


def pool_page(host: Host) -> None:
    partition(host, "evil").memory.extents()[0][1].deposited += 1


def endless_queue(host: Host) -> None:
    worker = host["evil"]._managed.worker
    assert worker is not None
    assert worker.server is not None
    worker.server._inbox.extend([(False, b"")] * 2000)


def all_holds(host: Host, before: object) -> None:
    check(host)
    assert others(host) == before


BREACHES: list[Callable[[Host], None]] = [
    privilege,
    foreign_write,
    leaked_word,
    foreign_connection,
    pool_page,
    endless_queue,
]


@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: breach.__name__)
def test_a_broken_promise_is_seen(breach: Callable[[Host], None]) -> None:
    """Nothing is wrong before, and something is after."""

    async def session() -> None:
        machine = topology(vm_table("evil", memory=Size(MEMORY)), vm_table("sibling"))
        async with boundary_guest(machine, siblings={"sibling": partial(sibling, beat=1 << 40)}) as guest:
            await guest.boot()
            before = others(guest.host)
            check(guest.host)
            breach(guest.host)
            with pytest.raises(AssertionError):
                all_holds(guest.host, before)
            if breach is pool_page:
                partition(guest.host, "evil").memory.extents()[0][1].deposited -= 1

    run(session)


def test_what_a_reset_leaves_is_seen(tmp_path: Path) -> None:
    """I6 is a look at all of the memory."""

    async def session() -> None:
        async with boundary_guest(topology(vm_table("evil", memory=Size(MEMORY)), folder=tmp_path)) as guest:
            await guest.write(0x9000, b"left")
            await reset_clears(guest, MEMORY)

    run(session)


def test_bytes_behind_a_message_are_seen() -> None:
    """I15, of one slot."""
    slot = MessageHeader(1, 4).encode() + b"word"
    slots_are_clean(slot.ljust(256, b"\0"))
    with pytest.raises(AssertionError, match="I15"):
        slots_are_clean(slot.ljust(255, b"\0") + b"x")
