"""What our driver says, against the bytes that Linux 6.12's netvsc was recorded to say in the same place."""

from __future__ import annotations

import struct

from tests.doubles.network_guests import adapters
from vmbus.channel import SENT
from vmbus.ring import Packet, PacketType
from vsp_vsc.network.vsc import open_network

NVSP = [
    "010000000100060001000600",  # INIT 6.1
    "7d000000ea05000000000000",  # SEND_NDIS_CONFIG: MTU 1514; what follows is what a driver can do
    "64000000060000001e000000",  # SEND_NDIS_VERSION 6.30
]
RNDIS = {
    "initialize": "020000001800000001000000010000000000000000400000",
    "frame size": "040000001c0000000200000006010100000000001400000000000000",
    "address": "040000001c0000000300000001010101000000001400000000000000",
    "offloads": "04000000b8000000040000000d0201fc9c0000001400000000000000a7039c00" + "00" * 152,
    "link": "040000001c0000000600000014010100000000001400000000000000",
    "speed": "040000001c0000000700000007010100000000001400000000000000",
    "scaling": "040000002e0000000800000003020100120000001400000000000000880212000000000000000000000000000000",
    "filter": "0500000020000000090000000e0101000400000014000000000000000d000000",
}
"""The third word is the request's number, which depends on what was asked before."""


def without_number(message: bytes) -> bytes:
    return message[:8] + message[12:]


async def test_the_driver_speaks_as_linux_does() -> None:
    """NVSP and RNDIS, byte for byte, in Linux's order; the receive buffer has Linux's number."""
    nvsp: list[bytes] = []
    rndis: list[bytes] = []
    async with adapters(processors=2, max_sub_channels=1) as wire:
        guest = wire.guests[0]
        channel = guest.open()

        def look(way: str, packets: list[Packet]) -> None:
            for packet in packets if way == SENT else ():
                if packet.type == PacketType.INBAND:
                    nvsp.append(packet.body)
                elif packet.type == PacketType.GPA_DIRECT:
                    count, length, offset, gpn = struct.unpack_from("<4xIIIQ", packet.body)
                    assert (count, offset) == (1, 0)
                    rndis.append(bytes(guest.platform.memory[gpn << 12 : (gpn << 12) + length]))
                    assert packet.payload == struct.pack("<IIII", 107, 1, 0xFFFF_FFFF, 0).ljust(40, b"\0")

        channel.on_packets = look  # type: ignore[assignment]
        async with open_network(channel, guest.platform, guest):  # type: ignore[arg-type]
            pass
    assert [message[:12].hex() for message in nvsp[:3]] == NVSP
    assert all(len(message) == 40 for message in nvsp)
    assert nvsp[3][:4] + nvsp[3][8:12] == bytes.fromhex("65000000" + "feca0000")
    assert nvsp[4][:4] + nvsp[4][8:12] == bytes.fromhex("68000000" + "00000000")
    said = list(map(without_number, rndis))
    places = [said.index(without_number(bytes.fromhex(message))) for message in RNDIS.values()]
    assert places == sorted(places)
    assert rndis[0].hex() == RNDIS["initialize"]
