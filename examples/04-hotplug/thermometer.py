"""The root's half of a thermometer: it sends what it measures as long as it is plugged in."""

import struct

import trio

from hypervisor.wire import Guid
from vmbus.ring import Packet, PacketType
from vmbus.server.offers import Offer

INTERVAL = 0.25
FIRST, STEP = 20.0, 0.5
CELSIUS = struct.Struct("<d")


class Thermometer:
    """Being pulled out cancels `serve`, wherever it is; nothing in here knows of it."""

    offer = Offer(
        interface=Guid("7e3a0000-51c4-4e0b-9a2d-1f6f0c4b8a10"),
        instance=Guid("7e3a0001-51c4-4e0b-9a2d-1f6f0c4b8a10"),
        name="thermometer",
    )

    async def serve(self, channel, opened):
        """Until the guest closes the channel, or somebody pulls the plug."""
        celsius = FIRST
        while True:
            await channel.send(Packet(PacketType.INBAND, 0, 0, 0, CELSIUS.pack(celsius)))
            celsius += STEP
            await trio.sleep(INTERVAL)
