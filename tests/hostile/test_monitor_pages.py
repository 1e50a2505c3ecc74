"""Monitor and interrupt pages in the hands of a hostile guest: whatever it writes there, the host and others go on."""

from __future__ import annotations

import random
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hypervisor.monitor import LONGEST
from hypervisor.monitor_page import TRIGGERS
from partitions.topology_schema import DeviceTable, Size
from tests.doubles.boundary_guest import SIGNAL, BoundaryGuest, Rings, boundary_guest, run
from tests.doubles.root import topology, vm_table

TO_CHILD, TO_ROOT, INTERRUPTS = 0x6000, 0x7000, 0x8000
LATENCY = 1000
DEVICE = f"""
from hypervisor.wire import Guid
from vmbus.ring import Packet, PacketType
from vmbus.server.offers import Offer

class Echo:
    offer = Offer(interface=Guid(b"m" * 16), instance=Guid(b"o" * 16), monitor_latency={LATENCY})
    async def serve(self, channel, opened):
        while True:
            for packet in await channel.receive_batch():
                await channel.send(Packet(PacketType.COMPLETION, 0, packet.transaction_id, 0, packet.payload))
"""
PARAMETER = 1088


@asynccontextmanager
async def connected(folder: Path, version: int = 0x50003) -> AsyncIterator[tuple[BoundaryGuest, bytes]]:
    """A guest that has given its pages, and the offer of a monitored device."""
    (folder / "echo.py").write_text(DEVICE)
    table = vm_table("evil", memory=Size(2 << 20), device=[DeviceTable(vsp="echo.py:Echo")])
    async with boundary_guest(topology(table, folder=folder)) as guest:
        await guest.boot()
        yield guest, await again(guest, version)


async def again(guest: BoundaryGuest, version: int) -> bytes:
    pages = (2 if version >= 0x50000 else INTERRUPTS, TO_CHILD, TO_ROOT)
    (response,) = await guest.say(struct.pack("<IIIIQQQ", 14, 0, version, 0, *pages), 4 if version >= 0x50000 else 1)
    assert response[:10] == struct.pack("<IIBB", 15, 0, 1, 0)
    offer, _ = await guest.say(struct.pack("<II", 3, 0))
    return offer


async def send_unsignaled(rings: Rings, guest: BoundaryGuest, number: int) -> None:
    """A packet in the ring, and nobody told."""
    raw = struct.pack("<HHHHQ8sQ", 6, 2, 3, 1, number, b"question", rings._written << 32)
    await guest.write(rings.out_page + 4096 + rings._written, raw)
    rings._written += len(raw)
    await guest.write(rings.out_page, struct.pack("<I", rings._written))


async def trigger(guest: BoundaryGuest, number: int = 0) -> None:
    """Set a bit, and let the hypervisor look."""
    await guest.write(TO_ROOT + 8 + 8 * (number // 32), struct.pack("<I", 1 << number % 32))
    await guest.do("advance", ticks=2 * LONGEST)


def counters(guest: BoundaryGuest) -> tuple[int, int]:
    vm = guest.host["evil"]
    child = guest.host.hypervisor.partitions[vm.partition_id or 0]
    return child.counters["monitor_signals"], child.counters["monitor_signals_dropped"]


def test_a_trigger_is_all_that_it_takes(tmp_path: Path) -> None:
    """Offer, page contents and both triggers, byte by byte: no hypercall on the way there, none of the host's back."""

    async def session() -> None:
        async with connected(tmp_path) as (guest, offer):
            assert offer[188:192] == bytes((0, 1, 1, 0))
            assert await guest.read(TO_ROOT, 4096) == bytes(4096)
            rings = await guest.open_channel()
            for page in (TO_ROOT, TO_CHILD):
                assert await guest.read(page, 4) == struct.pack("<I", 1)
                assert await guest.read(page + 576, 2) == struct.pack("<H", LATENCY)
            assert await guest.read(TO_ROOT + PARAMETER, 8) == struct.pack("<IHH", 0x2001, 0, 0)
            (connection,) = struct.unpack("<I", await guest.read(TO_CHILD + PARAMETER, 4))
            assert connection in guest.host.hypervisor.root.connections
            await guest.write(rings.in_page + 8, bytes(4))
            await send_unsignaled(rings, guest, 1)
            assert await rings.received() == []
            await trigger(guest)
            assert len(await rings.received()) == 1
            assert await guest.flags() == {1}
            assert await guest.read(TO_ROOT + 8, 32) == bytes(32)
            assert await guest.read(TO_CHILD + 8, 32) == bytes(32)
            assert counters(guest) == (1, 0)
            assert await guest.say(struct.pack("<III", 7, 0, 1)) == []
            for page in (TO_ROOT, TO_CHILD):
                assert await guest.read(page, 4096) == bytes(4096)
            assert guest.host.hypervisor.timers.deadline() is None

    run(session)


def test_bits_that_nobody_has(tmp_path: Path) -> None:
    """Triggers of channels that there are not: each costs a look, and the channel that is there works."""

    async def session() -> None:
        async with connected(tmp_path) as (guest, _):
            rings = await guest.open_channel()
            await guest.write(TO_ROOT, struct.pack("<I", 0xF))
            for number in range(1, TRIGGERS):
                await trigger(guest, number)
            assert counters(guest) == (0, TRIGGERS - 1)
            await send_unsignaled(rings, guest, 1)
            await trigger(guest)
            assert len(await rings.received()) == 1

    run(session)


def test_bits_of_a_channel_that_is_not_open(tmp_path: Path) -> None:
    """Before the open and after the close nobody looks; what was set before counts once the channel is open."""

    async def session() -> None:
        async with connected(tmp_path) as (guest, _):
            await trigger(guest)
            assert counters(guest) == (0, 0)
            await guest.open_channel()
            await guest.do("advance", ticks=4 * LATENCY)
            assert counters(guest) == (1, 0)
            await guest.say(struct.pack("<III", 7, 0, 1))
            await trigger(guest)
            assert counters(guest) == (1, 0)

    run(session)


@pytest.mark.parametrize("seed", range(4))
def test_pages_that_change_while_they_are_looked_at(tmp_path: Path, seed: int) -> None:
    """Random words all over both pages, again and again: the host signals nobody else, and a plain signal still works.

    All ones and all zeros are among them. After a new contact everything is as at first.
    """
    chance = random.Random(seed)

    async def session() -> None:
        async with connected(tmp_path) as (guest, offer):
            rings = await guest.open_channel()
            for _ in range(10):
                for page in (TO_ROOT, TO_CHILD):
                    await guest.write(page, chance.choice([bytes(4096), b"\xff" * 4096, chance.randbytes(4096)]))
                await guest.do("advance", ticks=chance.randrange(1, 200_000))
            await send_unsignaled(rings, guest, 1)
            assert (await guest.do("hypercall", control=SIGNAL, input=0x2001)).status == "SUCCESS"
            assert len(await rings.received()) == 1
            assert await again(guest, 0x50003) == offer
            rings = await guest.open_channel()
            await send_unsignaled(rings, guest, 2)
            await trigger(guest)
            assert len(await rings.received()) == 1

    run(session)


def test_parameters_that_name_others(tmp_path: Path) -> None:
    """A guest writes other connections of the root into the page that the root triggers: they are not signaled."""

    async def session() -> None:
        async with connected(tmp_path) as (guest, _):
            await guest.open_channel()
            root = guest.host.hypervisor.root
            for connection in [*root.connections][:64]:
                await guest.write(TO_CHILD + PARAMETER, struct.pack("<I", connection))
                await guest.write(TO_CHILD + 8, struct.pack("<I", 1))
                await guest.do("advance", ticks=2 * LONGEST)
            child = guest.host.hypervisor.partitions[guest.host["evil"].partition_id or 0]
            signaled = [port for port in child.ports.values() if port.post_count]
            assert root.counters["monitor_signals"] <= len(child.ports)
            assert {port.owner.id for port in signaled} == {child.id}

    run(session)


def test_bits_of_the_interrupt_page(tmp_path: Path) -> None:
    """0.13: bits of no channel are counted, those of closed ones do nothing, and the open channel's is heard."""

    async def session() -> None:
        async with connected(tmp_path, 0xD) as (guest, _):
            half = INTERRUPTS + 2048
            await guest.write(half, b"\xff" * 2048)
            assert await guest.signal(2) == "SUCCESS"
            assert await guest.read(half, 256) == bytes(256)
            assert guest.host.trace.warnings[guest.host["evil"].partition_id or 0, "stray_bits"] == 1
            rings = await guest.open_channel()
            await guest.write(rings.in_page + 8, bytes(4))
            await send_unsignaled(rings, guest, 1)
            await guest.write(half, struct.pack("<I", 0b10))
            await guest.signal(2)
            await trigger(guest, 5)
            assert len(await rings.received()) == 1
            assert await guest.read(INTERRUPTS, 8) == struct.pack("<Q", 0b10)
            assert await guest.flags() == {0}

    run(session)
