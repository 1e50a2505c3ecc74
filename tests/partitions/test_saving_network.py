"""A VM that is saved with its network adapter at work, and its guest that goes on in another host."""

from __future__ import annotations

import struct
from pathlib import Path

from partitions.topology import Topology, parse_topology
from tests.doubles.boundary_guest import BoundaryGuest, Rings, boundary_guest, run
from tests.doubles.network_vsp import data_message, frame, initialize_message, query_message, set_message
from vsp_vsc.network import protocol as nvsp
from vsp_vsc.network.protocol import NvspType
from vsp_vsc.network.rndis import Oid

TOPOLOGY = """
[[vm]]
name = "web"
memory = "2MiB"

[[vm.nic]]
switch = "lan"
spoofing = true

[[switch]]
name = "lan"
"""
RECEIVE, SEND = 0x140000, 0x160000
RECEIVE_GPADL, SEND_GPADL = 0xE1E11, 0xE1E12


def topology(folder: Path) -> Topology:
    return parse_topology(TOPOLOGY, folder, programs=False)


async def message(guest: BoundaryGuest, rings: Rings, data: bytes, number: int) -> None:
    """An RNDIS message by the send buffer, and its completion."""
    await guest.write(SEND, data)
    body = struct.pack("<IIII", NvspType.SEND_RNDIS_PACKET, 0, 0, len(data))
    await rings.send(body.ljust(40, b"\0"), number)


async def answered(guest: BoundaryGuest, rings: Rings, number: int) -> bytes:
    """A completion, then an answer, which is given back."""
    completion, told = await rings.received()
    assert struct.unpack_from("<H6xQ", completion[0])[1] == number
    assert struct.unpack_from("<II", completion[1]) == (108, 1)
    size, at = struct.unpack_from("<II", told[1], 8)
    (transaction,) = struct.unpack_from("<Q", told[0], 8)
    await rings.send(struct.pack("<II", 108, 1), transaction, kind=11, flags=0)
    return await guest.read(RECEIVE + at, size)


def test_an_adapter_goes_on_in_another_host(tmp_path: Path) -> None:
    """Its buffers are lent, an answer lies unread in the ring, a filter is set; nothing of it is lost."""
    file = tmp_path / "web.saved"

    async def before() -> tuple[int, Rings]:
        async with boundary_guest(topology(tmp_path)) as guest:
            await guest.boot()
            (offer,) = await guest.connect()
            (channel,) = struct.unpack_from("<I", offer, 184)
            rings = await guest.open_channel(channel)
            for gpadl, at in ((RECEIVE_GPADL, RECEIVE), (SEND_GPADL, SEND)):
                (created,) = await guest.gpadl(channel, gpadl, range(at >> 12, (at >> 12) + 26))
                assert created == struct.pack("<IIIII", 10, 0, channel, gpadl, 0)
            for number, (kind, body) in enumerate(
                [
                    (NvspType.INIT, nvsp.NvspInit(0x60001, 0x60001).encode()),
                    (NvspType.SEND_NDIS_CONFIG, nvsp.NdisConfig(1514, 0, 8).encode()),
                    (NvspType.SEND_NDIS_VERSION, nvsp.NdisVersion(6, 30).encode()),
                    (NvspType.SEND_RECEIVE_BUFFER, nvsp.SendBuffer(RECEIVE_GPADL, 0xCAFE).encode()),
                    (NvspType.SEND_SEND_BUFFER, nvsp.SendBuffer(SEND_GPADL, 0).encode()),
                ]
            ):
                await rings.send((struct.pack("<I", kind) + body).ljust(40, b"\0"), number)
            assert len(await rings.received()) == 5
            await message(guest, rings, initialize_message(), 10)
            await answered(guest, rings, 10)
            await message(guest, rings, set_message(1, Oid.GEN_CURRENT_PACKET_FILTER, b"\x0d\0\0\0"), 11)
            await answered(guest, rings, 11)
            await message(guest, rings, query_message(7, Oid.GEN_MAXIMUM_FRAME_SIZE), 12)
            assert await guest.host["web"].save(file) == file
            return channel, rings

    async def after(channel: int, rings: Rings) -> None:
        async with boundary_guest(topology(tmp_path), restore=file) as guest:
            rings = rings.go_on_as(guest)
            answer = await answered(guest, rings, 12)
            assert answer[24:] == struct.pack("<I", 1500)
            await message(guest, rings, query_message(8, Oid.GEN_CURRENT_PACKET_FILTER), 13)
            assert (await answered(guest, rings, 13))[24:] == b"\x0d\0\0\0"
            await message(guest, rings, data_message(frame(64)), 14)
            ((_, completion),) = await rings.received()
            assert struct.unpack_from("<II", completion) == (108, 1)
            sent = await guest.host.inspect("switch/lan/ports/web/0/sent/frames")
            assert sent == 1
            # The buffers are the guest's again when it wants them, and not before.
            assert await guest.say(struct.pack("<IIII", 11, 0, channel, SEND_GPADL)) == []
            await rings.send(struct.pack("<IH", NvspType.REVOKE_SEND_BUFFER, 0), flags=0)
            assert await guest.messages() == [struct.pack("<III", 12, 0, SEND_GPADL)]

    channel, rings = run(before)
    run(after, channel, rings)
