"""Guests whose software does what no guest should: the host goes on, and so do the others."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from pathlib import Path

import pytest
import trio

from hypervisor.backend import task as task_backend
from hypervisor.blocks import MAX_STITCHED_PIECES, MemoryBlock
from hypervisor.machine import GeneralProtection, Machine
from hypervisor.memory import GuestMemory
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SIZE, Access
from partitions import ports
from partitions.host import ExitReason, Host, VmState
from partitions.root.worker import QUICK_RESETS
from partitions.topology_schema import DiskTable, Size
from tests.doubles.boundary_guest import boundary_guest, run
from tests.doubles.root import MIB, bare_host, say, topology, vm_table


async def beating(machine: Machine) -> None:
    """A sibling that says something every second."""
    while True:
        await machine.sleep_until(machine.read_msr(Msr.TIME_REF_COUNT) + 10_000_000)
        say(machine, "beat\n")


async def still_beats(host: Host) -> None:
    """The sibling runs and is served."""
    before = len(host["sibling"].console.lines())
    await trio.sleep(3.5)
    assert host["sibling"].state is VmState.RUNNING
    assert len(host["sibling"].console.lines()) >= before + 3


TABLES = (vm_table("evil"), vm_table("sibling"))


# --- power off


async def test_a_shield_does_not_outlive_the_power(autojump_clock: trio.abc.Clock) -> None:
    """A guest that waited inside `CancelScope(shield=True)` could not be turned off, nor could its host be closed.

    The nursery of its tasks waited for a task that no cancellation could reach. Power takes the shields with it.
    """

    async def evil(machine: Machine) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()

    async with bare_host({"evil": evil, "sibling": beating}, *TABLES) as host:
        await host.start_all()
        await trio.sleep(1)
        with trio.fail_after(60):
            await host["evil"].turn_off()
        assert host["evil"].exit is not None
        assert host["evil"].exit.reason is ExitReason.TURNED_OFF
        await still_beats(host)


async def test_shields_raised_while_power_goes(autojump_clock: trio.abc.Clock) -> None:
    """Unshielding once was not enough: a `finally` of the guest's could hide behind the next shield, in any task."""
    reached: list[str] = []

    async def hide(depth: int) -> None:
        try:
            with trio.CancelScope(shield=True):
                await trio.sleep_forever()
        finally:
            reached.append(f"depth {depth}")
            if depth:
                await hide(depth - 1)

    async def evil(machine: Machine) -> None:
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.shield = True
            for _ in range(3):
                nursery.start_soon(hide, 5)

    with trio.fail_after(60):
        async with bare_host({"evil": evil, "sibling": beating}, *TABLES) as host:
            await host.start_all()
            await trio.sleep(1)
            await host["evil"].reset()
            await trio.sleep(1)
            assert host["evil"].state is VmState.RUNNING
            await still_beats(host)
    assert reached.count("depth 0") == 2 * 3


async def test_a_guest_that_swallows_its_cancellation_is_named(autojump_clock: trio.abc.Clock) -> None:
    """No task can be ended against its will: the host waits for it, says whose it is, and serves the others."""
    stop = False

    async def evil(machine: Machine) -> None:
        while not stop:
            with contextlib.suppress(BaseException):
                await trio.sleep(1)

    async with bare_host({"evil": evil, "sibling": beating}, *TABLES) as host:
        await host.start_all()
        await trio.sleep(1)
        partition = host["evil"].partition_id
        assert partition is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host["evil"].turn_off)
            for _ in range(100_000):
                if host.trace.warnings[partition, "guest_outlives_power"]:
                    break
                autojump_clock.jump(task_backend.UNWIND_SECONDS / 100)  # type: ignore[attr-defined]
                await trio.lowlevel.checkpoint()
            assert host["evil"].state is VmState.TURNING_OFF
            stop = True
        assert host["evil"].state is VmState.OFF
        assert host.trace.warnings[partition, "guest_outlives_power"] == 1
        await still_beats(host)


async def test_a_guest_that_resets_itself_at_once(autojump_clock: trio.abc.Clock) -> None:
    """Each boot began with the next reset: the host did nothing else, and on the virtual clock no time ever passed."""

    async def evil(machine: Machine) -> None:
        machine.port_out(ports.RESET, 1, ports.RESET_NOW)
        await trio.sleep_forever()

    async with bare_host({"evil": evil, "sibling": beating}, *TABLES) as host:
        await host.start_all()
        await still_beats(host)
        worker = host["evil"]._managed.worker
        assert worker is not None
        assert QUICK_RESETS < worker.resets < QUICK_RESETS + 20
        await host["evil"].turn_off()
        assert host["evil"].exit is not None
        assert host["evil"].exit.reason is ExitReason.TURNED_OFF


async def test_resets_far_apart_are_at_once(autojump_clock: trio.abc.Clock) -> None:
    """A guest that works between its resets never waits."""

    async def evil(machine: Machine) -> None:
        await machine.sleep_until(11_000_000)
        machine.port_out(ports.RESET, 1, ports.RESET_NOW)
        await trio.sleep_forever()

    async with bare_host(evil) as host:
        await host["web"].start()
        await trio.sleep(1.1 * 40 + 0.5)
        worker = host["web"]._managed.worker
        assert worker is not None
        assert worker.resets == 40


# --- exceptions


@pytest.mark.parametrize("raised", [asyncio.CancelledError, pytest.fail.Exception, SystemExit, BaseException])
async def test_whatever_a_guest_raises_is_its_own_end(
    autojump_clock: trio.abc.Clock, raised: type[BaseException]
) -> None:
    """A guest's exception that is no `Exception` went past the worker and took the whole host with it.

    asyncio's CancelledError is one, and so is what `pytest.fail` raises in a guest program under test.
    """

    async def evil(machine: Machine) -> None:
        await machine.sleep_until(10_000_000)
        raise raised("mine")

    async with bare_host({"evil": evil, "sibling": beating}, *TABLES) as host:
        await host.start_all()
        record = await host["evil"].wait()
        assert record.reason is ExitReason.TRIPLE_FAULT
        assert isinstance(record.failure, raised)
        await still_beats(host)


async def test_a_cancellation_that_a_guest_kept(autojump_clock: trio.abc.Clock) -> None:
    """Raised again outside of its scope, a Cancelled looked like the host's own and went up through everybody."""

    async def evil(machine: Machine) -> None:
        kept: list[BaseException] = []
        with trio.move_on_after(1):
            try:
                await trio.sleep_forever()
            except trio.Cancelled as cancelled:
                kept.append(cancelled)
        raise kept[0]

    async with bare_host({"evil": evil, "sibling": beating}, *TABLES) as host:
        await host.start_all()
        record = await host["evil"].wait()
        assert record.reason is ExitReason.TRIPLE_FAULT
        await still_beats(host)


# --- numbers


@pytest.mark.parametrize("value", [1 << 64, -1, -(1 << 70)])
async def test_a_register_has_64_bits(autojump_clock: trio.abc.Clock, value: int) -> None:
    """A model guest's number is Python's: one that no register holds was kept, and broke whoever read it later.

    The guest OS ID came back to the root as a partition property that cannot be packed into eight bytes.
    """
    refused: list[int] = []

    async def evil(machine: Machine) -> None:
        for msr in Msr:
            try:
                machine.write_msr(msr, value)
            except GeneralProtection:
                refused.append(msr)
        await trio.sleep_forever()

    async with bare_host({"evil": evil, "sibling": beating}, *TABLES) as host:
        await host.start_all()
        partition = host["evil"].partition_id
        assert partition is not None
        await trio.sleep(1)
        assert refused == list(Msr)
        assert host.winhv.get_partition_property(partition, 0x70000) == 0
        await still_beats(host)


# --- what guests together may use up


def test_scattered_rings_of_many_guests_leave_the_host_its_mappings() -> None:
    """Each guest's rings may lie in 4,096 pieces, and a process has some 65,000 mappings: sixteen guests had them all.

    The kernel then refuses the interpreter's own memory. Now pieces are counted for the whole host, and come back.
    """
    block = MemoryBlock.allocate(4096 * PAGE_SIZE, "scattered")
    memory = GuestMemory()
    memory.map_block(0, block, 0, 4096, Access.ALL)
    backwards = range(4095, -1, -1)
    rings = [memory.flat(backwards, Access.READ_WRITE) for _ in range(MAX_STITCHED_PIECES // 4096)]
    with pytest.raises(MemoryError, match="limit of a host"):
        memory.flat(backwards, Access.READ_WRITE)
    assert len(memory.flat(range(4096), Access.READ_WRITE)) == 4096 * PAGE_SIZE, "one piece needs no mapping"
    rings.pop()
    rings.append(memory.flat(backwards, Access.READ_WRITE))
    rings.clear()
    block.close()


def test_opening_and_closing_for_ever(tmp_path: Path) -> None:
    """Each opening of a channel left its statistics behind for good: a guest could fill the host's memory with them."""

    async def session() -> None:
        async with boundary_guest(
            topology(vm_table(disk=[DiskTable(path="d.img", size=Size(MIB))]), folder=tmp_path)
        ) as guest:
            await guest.boot()
            await guest.connect()
            serving = "vm/web/devices/storage/serving"
            for _ in range(20):
                rings = await guest.open_channel()
                await rings.send(struct.pack("<I", 7).ljust(64, b"\0"))
                assert await guest.host.inspect(serving) == 1
                assert await guest.say(struct.pack("<III", 7, 0, 1)) == []
                assert await guest.say(struct.pack("<IIII", 11, 0, 1, 0xE1E10)) == [struct.pack("<III", 12, 0, 0xE1E10)]
                assert await guest.host.inspect(serving) == 0
            statistics = guest.host["web"].statistics()
            assert (statistics.packets_in, statistics.packets_out, statistics.signals_out) == (20, 20, 20)

    run(session)
