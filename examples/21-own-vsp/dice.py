"""A VSP of your own: a device that throws dice. The root's half; change SIDES and run again.

The guest sends a request, "how many", as four bytes. The answer completes it: four bytes of status, then a byte a die.
"""

import random
import struct

from hypervisor.wire import Guid
from vmbus.ring import Packet, PacketType
from vmbus.server.offers import Offer

SIDES = 6
MOST = 1000
OK, TOO_MANY, MALFORMED = range(3)
WORD = struct.Struct("<I")
GREETING = f"dice, {SIDES} sides".encode().ljust(16)


class Dice:
    """The bus tells the guest of `offer`, and calls `serve` each time the guest opens the channel."""

    offer = Offer(
        interface=Guid("d1ce0000-8a3f-4c52-9d0e-6f2b7c415e21"),
        instance=Guid("d1ce0001-8a3f-4c52-9d0e-6f2b7c415e21"),
        monitor_latency=1000,  # 100 us: uio_hv_generic of Linux 6.1 takes no device without a monitor ID
        name="dice",
    )

    def __init__(self):
        self.random = random.Random(7)

    async def serve(self, channel, opened):
        """Until the guest closes the channel, which cancels this."""
        await channel.send(Packet(PacketType.INBAND, 0, 0, 0, GREETING))
        while True:
            packets = await channel.receive_batch()
            await channel.send_batch([self.answer(packet) for packet in packets])

    def answer(self, packet):
        """A completion carries the number of the packet that it completes. A wrong request is answered, too."""
        return Packet(PacketType.COMPLETION, 0, packet.transaction_id, 0, self.throw(packet.payload))

    def throw(self, untrusted_request):
        """The request came from a guest: it may hold anything. Rings carry multiples of 8 bytes, so more may follow."""
        if len(untrusted_request) < WORD.size:
            return WORD.pack(MALFORMED)
        (untrusted_count,) = WORD.unpack_from(untrusted_request)
        if untrusted_count > MOST:
            return WORD.pack(TOO_MANY)
        return WORD.pack(OK) + bytes(self.random.randint(1, SIDES) for _ in range(untrusted_count))
