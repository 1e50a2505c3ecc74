"""The root's half: a VSP that sends back what it gets, in capitals."""

from hypervisor.wire import Guid
from vmbus.ring import Packet, PacketType
from vmbus.server.offers import Offer

ECHO = Guid("6d3ec1f0-5c04-4d4f-9b7c-e6f1d1a0ec40")


class Echo:
    """One echo device; the bus calls `serve` each time the guest opens its channel, and cancels it at close."""

    offer = Offer(interface=ECHO, instance=Guid("6d3ec1f0-5c04-4d4f-9b7c-e6f1d1a0ec41"), name="echo")

    async def serve(self, channel, opened):
        """Answer batch by batch, as they come."""
        while True:
            packets = await channel.receive_batch()
            await channel.send_batch([self.answer(packet) for packet in packets])

    def answer(self, packet):
        """A completion carries the number of the packet that it completes."""
        return Packet(PacketType.COMPLETION, 0, packet.transaction_id, 0, packet.payload.upper())
