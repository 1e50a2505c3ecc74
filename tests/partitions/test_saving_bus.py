"""What a bus may be in the middle of when its VM is saved, and a file from the past."""

from __future__ import annotations

import struct
from pathlib import Path

from hypervisor.msr import Msr
from tests.doubles.boundary_guest import DATA, BoundaryGuest, Rings, boundary_guest, run
from tests.doubles.storage_guest import control
from tests.partitions.test_saving import (
    HEARTBEAT,
    KVP,
    STORAGE,
    TOPOLOGY,
    folder,
    read_sector,
    send,
    storage_channel,
    topology,
    transaction,
)
from vsp_vsc.storage.protocol import Operation

__all__ = ["folder"]


def test_a_gpadl_half_told(folder: Path) -> None:
    """Its header came before, its body comes after; a channel ID given back stays given back."""

    async def before() -> None:
        async with boundary_guest(topology(folder)) as guest:
            await guest.boot()
            await guest.connect()
            pages = range(0x40, 0x40 + 40)
            words = struct.pack("<41Q", 40 << 12, *pages)
            header = struct.pack("<IIIIHH", 8, 0, STORAGE, 0x77, len(words), 1)
            assert await guest.post(header + words[: 27 * 8]) == "SUCCESS"
            assert await guest.say(struct.pack("<III", 13, 0, HEARTBEAT)) == []
            await guest.host["web"].save("half.saved")

    async def after() -> None:
        async with boundary_guest(topology(folder), restore=folder / "half.saved") as guest:
            words = struct.pack("<14Q", *range(0x40 + 26, 0x40 + 40))
            answer = await guest.say(struct.pack("<IIII", 9, 0, 0, 0x77) + words)
            assert answer == [struct.pack("<IIIII", 10, 0, STORAGE, 0x77, 0)]
            assert list(channels(guest)) == [KVP, STORAGE]

    run(before)
    run(after)


def channels(guest: BoundaryGuest) -> dict[int, str]:
    server = guest.host.vmms.vms["web"].worker.server  # type: ignore[union-attr]
    assert server is not None
    return {number: channel.state.value for number, channel in server.channels.items()}


def test_a_device_that_went(folder: Path) -> None:
    """Withdrawn, and the guest has not let go: it still holds the ID afterwards, and its release frees it."""

    async def before() -> None:
        async with boundary_guest(topology(folder)) as guest:
            await storage_channel(guest)
            server = guest.host.vmms.vms["web"].worker.server  # type: ignore[union-attr]
            assert server is not None
            gone = next(one for one in server.offered if one.channel_id == KVP)
            server.rescind(gone)
            await guest.host["web"].save("gone.saved")

    async def after() -> None:
        text = TOPOLOGY.replace(', "kvp"', "")
        async with boundary_guest(topology(folder, text), restore=folder / "gone.saved") as guest:
            assert channels(guest) == {HEARTBEAT: "closed", KVP: "revoked", STORAGE: "open"}
            assert await guest.messages() == [struct.pack("<III", 2, 0, KVP)]
            assert await guest.say(struct.pack("<III", 13, 0, KVP)) == []
            assert list(channels(guest)) == [HEARTBEAT, STORAGE]

    run(before)
    run(after)


def test_subchannels(folder: Path) -> None:
    """Offered by the primary's session, opened by the guest: there again, served, and by their old IDs."""

    async def before() -> tuple[int, Rings]:
        async with boundary_guest(topology(folder)) as guest:
            _, rings = await storage_channel(guest)
            await send(rings, control(Operation.CREATE_SUB_CHANNELS, struct.pack("<H", 1)), 50)
            assert [transaction(packet) for packet in await rings.received()] == [50]
            (offer,) = await guest.messages()
            (sub,) = struct.unpack_from("<I", offer, 184)
            assert sub == 4
            first = 0x100
            await guest.write(first << 12, bytes(8 << 12))
            await guest.gpadl(sub, 0x99, range(first, first + 8))
            assert await guest.open(sub, 0x99) == [struct.pack("<IIIII", 6, 0, sub, sub, 0)]
            await guest.host["web"].save("sub.saved")
            return sub, Rings(guest, first << 12, 4 << 12, 4 << 12, 0x2000 | sub)

    async def after(sub: int, rings: Rings) -> None:
        async with boundary_guest(topology(folder), restore=folder / "sub.saved") as guest:
            assert channels(guest)[sub] == "open"
            rings = rings.go_on_as(guest)
            await send(rings, read_sector(7, DATA >> 12), 5)
            assert [transaction(packet) for packet in await rings.received()] == [5]
            assert await guest.read(DATA, 8) == b"sector 7"

    run(after, *run(before))


STORED = Path(__file__).parent.parent / "data" / "saved_vm_1.bin"


def test_todays_file_is_read_tomorrow(folder: Path) -> None:
    """A file stored when version 1 was made: the names in live code may change, what it says may not."""

    async def after() -> None:
        async with boundary_guest(topology(folder), restore=STORED) as guest:
            assert channels(guest) == {HEARTBEAT: "closed", KVP: "closed", STORAGE: "open"}
            assert await guest.read(DATA, 8) == b"sector 5"
            assert (await guest.do("rdmsr", msr=int(Msr.SINT2)))["value"] == 0xF3

    run(after)
