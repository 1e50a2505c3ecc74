"""A guest that lies about the pages it gives, or does not answer, through a whole host.

Case 107 of the table; tests/vsp_vsc/memory has every single mistake without a host.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from hypervisor.msr import Msr
from partitions.host import Host, VmState
from partitions.root.memory_state import CannotResize
from partitions.topology_controls import DynamicMemoryTable
from partitions.topology_schema import Size
from tests.doubles.boundary_guest import BoundaryGuest, Rings, boundary_guest, run
from tests.doubles.root import topology, vm_table
from tests.hostile.invariants import all_is_given_back, check, others, reset_clears, sibling, sibling_goes_on
from tests.vsp_vsc.memory.test_session import balloon_response, packet, ranges
from vmbus.protocol.messages import OfferChannel
from vsp_vsc.memory.protocol import MEMORY_INSTANCE, MEMORY_INTERFACE

MIB = 1 << 20
SIBLING = 2 * MIB
MEMORY = 8 * MIB
PAGES = MEMORY >> 12
BEAT = 60 * 10_000_000
"""A minute between two signs of life of the sibling."""
VERSION = packet(1, struct.pack("<II", 0x20000, 0)).payload
CAPABILITIES = packet(3, struct.pack("<QQQ", 0x3, 0, 2**64 - 1)).payload


@asynccontextmanager
async def evil() -> AsyncIterator[BoundaryGuest]:
    """A guest with dynamic memory and nothing else, beside a sibling."""
    bounds = DynamicMemoryTable(minimum=Size(2 * MIB), maximum=Size(16 * MIB))
    table = vm_table("evil", memory=Size(MEMORY), dynamic_memory=bounds, integration=[])
    machine = topology(table, vm_table("sibling", memory=Size(SIBLING)))
    async with boundary_guest(machine, siblings={"sibling": partial(sibling, beat=BEAT)}) as guest:
        before, used = others(guest.host), guest.host.vid.vm_memory_used
        await guest.boot()
        yield guest
        assert others(guest.host) == before
        await sibling_goes_on(guest, BEAT)
        await reset_clears(guest, MEMORY)
        check(guest.host)
        assert guest.host.vid.vm_memory_used == used
        assert guest.host.hypervisor.discarded_bytes == 0
        await all_is_given_back(guest.host)


async def ready(guest: BoundaryGuest) -> Rings:
    """The channel, open, both sides agreed."""
    offers = [OfferChannel.decode(offer) for offer in await guest.connect()]
    (offer,) = [offer for offer in offers if offer.interface == MEMORY_INTERFACE]
    assert offer.instance == MEMORY_INSTANCE
    rings = await guest.open_channel(offer.channel_id)
    assert [kind for kind, _ in await say(rings, VERSION)] == [2]
    assert [kind for kind, _ in await say(rings, CAPABILITIES)] == [4, 12]
    return rings


async def say(rings: Rings, payload: bytes) -> list[tuple[int, bytes]]:
    """A packet, and what the host has said since: types and what follows."""
    await rings.send(payload, flags=0)
    return await heard(rings)


async def heard(rings: Rings) -> list[tuple[int, bytes]]:
    """What the host has said."""
    return [(int.from_bytes(body[:2], "little"), body[8:]) for _, body in await rings.received()]


class Wish:
    """Somebody who wants the guest's memory to be of another size."""

    def __init__(self) -> None:
        self.why: str | None = None

    async def want(self, host: Host, size: str, patience: float) -> None:
        try:
            await host["evil"].set_memory(size, patience=patience)
        except CannotResize as error:
            self.why = str(error)


LIES = {
    "pages that are not its own": balloon_response((PAGES, 512)),
    "pages half its own": balloon_response((PAGES - 1, 2)),
    "more than was asked for": balloon_response((0, 2048)),
    "ranges that overlap": balloon_response((512, 256), (767, 256)),
    "more ranges than there are bytes": packet(7, struct.pack("<II", 0, 0xFFFF_FFFE) + ranges((512, 1))),
}


@pytest.mark.parametrize("what", LIES)
def test_107_lies_about_pages(what: str) -> None:
    """The channel is served no more, whoever asked is told, and no memory but the guest's own was touched."""

    async def session() -> None:
        async with evil() as guest:
            rings = await ready(guest)
            wish = Wish()
            await guest.write(4 * MIB, b"mine")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wish.want, guest.host, "4MiB", 30.0)
                await trio.testing.wait_all_tasks_blocked()
                assert await heard(rings) == [(6, struct.pack("<II", 1024, 0))]
                assert await say(rings, LIES[what].payload) == []
            assert wish.why is not None
            assert "stopped after a mistake" in wish.why
            assert guest.host["evil"].state is VmState.RUNNING
            state = guest.host["evil"].memory
            assert state is not None
            assert (state.assigned, state.ballooned) == (MEMORY, 0)
            assert await guest.read(4 * MIB, 4) == b"mine"

    run(session)


def test_107_pages_in_the_balloon_again() -> None:
    """What was given cannot be given again; when the channel stops, the guest has all that it gave, empty."""

    async def session() -> None:
        async with evil() as guest:
            rings = await ready(guest)
            await guest.write(4 * MIB, b"mine")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Wish().want, guest.host, "4MiB", 30.0)
                await trio.testing.wait_all_tasks_blocked()
                await heard(rings)
                assert await say(rings, balloon_response((1024, 512), more=True).payload) == []
                assert guest.host["evil"].memory.ballooned == 2 * MIB  # type: ignore[union-attr]
                assert await say(rings, balloon_response((1535, 1)).payload) == []
            assert guest.host["evil"].memory.ballooned == 0  # type: ignore[union-attr]
            assert await guest.read(4 * MIB, 4) == bytes(4)

    run(session)


def test_107_a_guest_that_does_not_answer() -> None:
    """Whoever asked gives up; the VM goes on, is asked for nothing else, and a late answer counts."""

    async def session() -> None:
        async with evil() as guest:
            rings = await ready(guest)
            wish = Wish()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wish.want, guest.host, "4MiB", 0.0)
                await trio.testing.wait_all_tasks_blocked()
            assert wish.why is not None
            assert wish.why.endswith("its guest does not answer")
            assert await heard(rings) == [(6, struct.pack("<II", 1024, 0))]
            guest.host.vid.desk.balance()
            assert await heard(rings) == []
            assert await say(rings, balloon_response((1024, 512)).payload) == []
            assert guest.host["evil"].memory.ballooned == 2 * MIB  # type: ignore[union-attr]

    run(session)


def test_107_a_status_that_cannot_be() -> None:
    """Demand without end moves no more memory than the VM's maximum, and is no mistake."""

    async def session() -> None:
        async with evil() as guest:
            rings = await ready(guest)
            assert await say(rings, packet(5, struct.pack("<QQQQII", *[2**64 - 1] * 4, 2**32 - 1, 7)).payload) == []
            told = guest.host["evil"].memory
            assert told is not None
            assert told.swapped == 1 << 52
            guest.host.vid.desk.balance()
            assert await heard(rings) == [(10, ranges((PAGES, PAGES)))]
            assert await say(rings, packet(11, struct.pack("<II", 2**32 - 1, 1)).payload) == []
            assert guest.host["evil"].state is VmState.RUNNING
            assert await guest.host.inspect("vm/evil/devices/dynamic-memory/state") == (
                "stopped after a mistake of the guest's"
            )
            assert guest.host.vid.vm_memory_used <= SIBLING + 16 * MIB

    run(session)


@pytest.mark.parametrize(("taken", "result"), [(0, 0), (0, 1), (512, 1)])
def test_107_memory_that_it_does_not_take(taken: int, result: int) -> None:
    """What a guest does not take of added memory is the host's again at once."""

    async def session() -> None:
        async with evil() as guest:
            rings = await ready(guest)
            used = guest.host.vid.vm_memory_used
            async with trio.open_nursery() as nursery:
                wish = Wish()
                nursery.start_soon(wish.want, guest.host, "16MiB", 30.0)
                await trio.testing.wait_all_tasks_blocked()
                assert await heard(rings) == [(10, ranges((PAGES, PAGES)))]
                assert await say(rings, packet(11, struct.pack("<II", taken, result)).payload) == []
            assert wish.why is not None
            assert "its guest took" in wish.why
            assert guest.host.vid.vm_memory_used == used + (taken << 12)
            assert guest.host["evil"].memory.added == taken << 12  # type: ignore[union-attr]

    run(session)


def test_107_pages_that_the_bus_itself_uses() -> None:
    """Rings, message page and hypercall page in the balloon: what the guest hears is its own affair."""

    async def session() -> None:
        async with evil() as guest:
            rings = await ready(guest)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Wish().want, guest.host, "2MiB", 5.0)
                await trio.testing.wait_all_tasks_blocked()
                assert await heard(rings) == [(6, struct.pack("<II", 1536, 0))]
                await rings.send(balloon_response((0, 1536)).payload, flags=0)
                await trio.testing.wait_all_tasks_blocked()
                state = guest.host["evil"].memory
                assert state is not None
                assert (state.removed_memory, state.ballooned) == (6 * MIB, 0), "its ring was in it, and is no ring now"
                assert state.driver == "stopped after a mistake of the guest's"
                for msr in (Msr.SIMP, Msr.SIEFP, Msr.HYPERCALL):
                    assert await guest.wrmsr(msr, 0) == "ok"
                nursery.cancel_scope.cancel()
            guest.host.vid.desk.balance()
            assert guest.host["evil"].state is VmState.RUNNING

    run(session)


@pytest.mark.parametrize("taken", [0, 512, PAGES])
def test_107_added_memory_with_pages_of_the_bus_in_it(taken: int) -> None:
    """Overlay pages and a ring in memory that is offered, and then perhaps not taken: it goes, and they with it."""

    async def session() -> None:
        async with evil() as guest:
            rings = await ready(guest)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Wish().want, guest.host, "16MiB", 5.0)
                await trio.testing.wait_all_tasks_blocked()
                assert await heard(rings) == [(10, ranges((PAGES, PAGES)))]
                for at, msr in enumerate((Msr.SIMP, Msr.SIEFP, Msr.HYPERCALL)):
                    assert await guest.wrmsr(msr, PAGES + 1000 + at << 12 | 1) == "ok"
                await guest.gpadl(1, 0x77, range(PAGES + 1010, PAGES + 1020))
                await rings.send(packet(11, struct.pack("<II", taken, 0)).payload, flags=0)
                await trio.testing.wait_all_tasks_blocked()
                for msr in (Msr.SIMP, Msr.SIEFP, Msr.HYPERCALL):
                    assert await guest.wrmsr(msr, 0) == "ok"
                nursery.cancel_scope.cancel()
            assert guest.host["evil"].memory.added == taken << 12  # type: ignore[union-attr]

    run(session)


def test_107_single_pages_and_what_is_written_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A balloon of many runs is emptied again after a minute, so many of them a second."""
    monkeypatch.setattr("partitions.root.vm_memory.SWEPT_AT_ONCE", 2)

    async def session() -> None:
        async with evil() as guest:
            rings = await ready(guest)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Wish().want, guest.host, "6MiB", 5.0)
                await trio.testing.wait_all_tasks_blocked()
                await heard(rings)
                pages = [1001, 1003, 1005, 1007, 1009]
                assert await say(rings, balloon_response(*[(page, 1) for page in pages], more=True).payload) == []
                nursery.cancel_scope.cancel()
            for page in pages:
                await guest.write(page << 12, b"mine")
            now = guest.host.hypervisor.clock()
            device = guest.host.vmms.vms["evil"].worker.movable_memory()  # type: ignore[union-attr]
            device.sweep(now)
            assert [await guest.read(page << 12, 4) for page in pages] == [b"mine"] * 5
            for second, empty in enumerate((2, 4, 5, 5)):
                device.sweep(now + (60 + second) * 10_000_000)
                found = [await guest.read(page << 12, 4) for page in pages]
                assert found == [bytes(4)] * empty + [b"mine"] * (5 - empty)

    run(session)


def test_107_a_balloon_of_very_many_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """I8: what the host keeps of a balloon is bounded: nothing more is asked for, and whoever wants it is told."""
    monkeypatch.setattr("partitions.root.vm_memory.MOST_RUNS", 3)

    async def session() -> None:
        async with evil() as guest:
            rings = await ready(guest)
            wish = Wish()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wish.want, guest.host, "4MiB", 30.0)
                await trio.testing.wait_all_tasks_blocked()
                assert await heard(rings) == [(6, struct.pack("<II", 1024, 0))]
                pages = [1001, 1003, 1005, 1007]
                assert await say(rings, balloon_response(*[(page, 1) for page in pages]).payload) == []
            assert wish.why is not None
            assert "has no more to give" in wish.why
            await guest.do("advance", ticks=60 * 10_000_000)
            guest.host.vid.desk.balance()
            assert await heard(rings) == []

    run(session)


def test_107_a_balloon_that_was_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that goes on has its balloon, and the host its account of that; what the guest writes there is emptied in
    pieces, from the first second on, so that very many runs hold nobody up.
    """
    monkeypatch.setattr("partitions.root.vm_memory.SWEPT_AT_ONCE", 2)

    async def session() -> None:
        async with evil() as guest:
            rings = await ready(guest)
            vm = guest.host["evil"]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Wish().want, guest.host, "6MiB", 5.0)
                await trio.testing.wait_all_tasks_blocked()
                await heard(rings)
                pages = [1001, 1003, 1005, 1007, 1009]
                assert await say(rings, balloon_response(*[(page, 1) for page in pages]).payload) == []
                nursery.cancel_scope.cancel()
            used = guest.host.vid.vm_memory_used
            kept = await vm.checkpoint()
            await vm.revert(kept)
            await trio.testing.wait_all_tasks_blocked()
            memory = vm.memory
            assert memory is not None
            assert (memory.ballooned, memory.removed_memory, memory.driver) == (5 << 12, 5 << 12, "ready")
            assert guest.host.vid.vm_memory_used == used
            for page in pages:
                await guest.write(page << 12, b"mine")
            worker = guest.host.vmms.vms["evil"].worker
            assert worker is not None
            device = worker.movable_memory()
            for empty in (2, 4, 5, 5):
                device.sweep(guest.host.hypervisor.clock())
                found = [await guest.read(page << 12, 4) for page in pages]
                assert found == [bytes(4)] * empty + [b"mine"] * (5 - empty)

    run(session)
