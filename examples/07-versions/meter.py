"""The root's half: counts what it gets, and is signalled by monitor page where the guest has one."""

from hypervisor.wire import Guid
from vmbus.ring import Packet, PacketType
from vmbus.server.offers import Offer


class Meter:
    """A completion a packet, with the number of packets so far."""

    offer = Offer(
        interface=Guid("a5ad1e00-70c3-4f5b-8a6e-0d4a6d3c0700"),
        instance=Guid("a5ad1e00-70c3-4f5b-8a6e-0d4a6d3c0701"),
        name="meter",
    )

    async def serve(self, channel, opened):
        """Until the guest closes the channel."""
        count = 0
        while True:
            for packet in await channel.receive_batch():
                count += 1
                answer = count.to_bytes(8, "little")
                await channel.send(Packet(PacketType.COMPLETION, 0, packet.transaction_id, 0, answer))


class QuickMeter(Meter):
    """The same, with a monitor ID: nobody traps to signal, and everything comes up to 100 us later."""

    offer = Offer(
        interface=Guid("a5ad1e00-70c3-4f5b-8a6e-0d4a6d3c0710"),
        instance=Guid("a5ad1e00-70c3-4f5b-8a6e-0d4a6d3c0711"),
        monitor_latency=1000,
        name="monitored meter",
    )
