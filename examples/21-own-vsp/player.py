"""The guest's half as a model guest: opens the dice's channel and plays."""

import struct

from vmbus.ring import COMPLETION_REQUESTED, Packet, PacketType

DICE = "d1ce0000-8a3f-4c52-9d0e-6f2b7c415e21"


async def throw(channel, number, count):
    """Throw so many dice; the status and what they show."""
    await channel.send(Packet(PacketType.INBAND, COMPLETION_REQUESTED, number, 0, struct.pack("<I", count)))
    answer = await channel.receive()
    assert answer.transaction_id == number
    (status,) = struct.unpack_from("<I", answer.payload)
    return status, list(answer.payload[4 : 4 + count])


async def main(guest):
    channel = await guest.open_channel(DICE)
    greeting = await channel.receive()
    print("the device says:", greeting.payload.decode().strip())
    status, dice = await throw(channel, 1, 4)
    print("four dice:", dice, "status", status)
    status, dice = await throw(channel, 2, 60)
    print("sixty dice:", ", ".join(f"{dice.count(side)} x {side}" for side in sorted(set(dice))))
    status, dice = await throw(channel, 3, 100_000)
    print("a hundred thousand dice: status", status)
