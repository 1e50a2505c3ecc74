"""A guest that speaks to its bus in messages, across the boundary driver, and devices that say nothing."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import trio

from hypervisor.wire import Guid
from partitions.host import Vm
from partitions.topology_schema import DiskTable, Size
from tests.doubles.boundary_guest import RINGS, BoundaryGuest, boundary_guest, run
from tests.doubles.root import MIB, topology, vm_table
from vmbus.channel import Channel
from vmbus.gpadl import encode_gpadl, page_range
from vmbus.protocol import messages as m
from vmbus.protocol.messages import Message
from vmbus.protocol.table import Direction, decode_message
from vmbus.protocol.versions import Version
from vmbus.server.offers import Offer
from vmbus.server.opened import OpenedChannel

FAILURE = 0x8000FFFF
GPADL = 10
BEGIN_INITIALIZATION = struct.pack("<I", 7) + bytes(60)


def number(value: int) -> Guid:
    """GUIDs that sort by number."""
    return Guid(f"{value:08x}-0000-0000-0000-000000000000")


@attrs.define
class Silent:
    """A device that says nothing, and offers subchannels if asked to."""

    offer: Offer
    subchannels: int = 0
    serving: int = 0

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        self.serving += 1
        try:
            if self.subchannels and not opened.subchannel_index:
                opened.offer_subchannels(self.subchannels)
            await trio.sleep_forever()
        finally:
            self.serving -= 1


def device(value: int, *, order: int | None = None, instance: int | None = None, subchannels: int = 0) -> Silent:
    offer = Offer(number(value), number(value if instance is None else instance), order=order, name=f"device {value}")
    return Silent(offer, subchannels)


@attrs.define
class Bus:
    """A guest that speaks in messages."""

    guest: BoundaryGuest
    vm: Vm
    version: int = Version.V6_0
    features: int = 0

    async def heard(self) -> list[Message]:
        """What has come since."""
        return [
            decode_message(data, sender=Direction.TO_CHILD, version=self.version, features=self.features)
            for data in await self.guest.messages()
        ]

    async def say(self, *messages: Message | bytes, connection: int = 1) -> list[Message]:
        for message in messages:
            data = message if isinstance(message, bytes) else message.encode()
            assert await self.guest.post(data, connection) == "SUCCESS"
        return await self.heard()

    async def contact(self, version: int = Version.V5_3, features: int = 0) -> list[Message]:
        self.version, self.features = version, features
        connection = 4 if version >= Version.V5_0 else 1
        return await self.say(m.initiate_contact(version, features=features), connection=connection)

    async def connect(self, version: int = Version.V5_3, features: int = 0) -> list[tuple[int, Guid, int]]:
        """Contact and offers: (channel ID, instance, subchannel) of each, in order."""
        (answer,) = await self.contact(version, features)
        assert isinstance(answer, m.VersionResponse | m.VersionResponse2)
        assert (answer.supported, answer.connection_state) == (1, 0)
        *offers, end = await self.say(m.RequestOffers())
        assert end == m.AllOffersDelivered()
        return self.offered(offers)

    @staticmethod
    def offered(messages: list[Message]) -> list[tuple[int, Guid, int]]:
        offers = [message for message in messages if isinstance(message, m.OfferChannel)]
        assert len(offers) == len(messages)
        for offer in offers:
            assert offer.connection_id == 0x2000 | offer.channel_id
            assert (offer.monitor_id, offer.is_dedicated) == (0xFF, 1)
        return [(offer.channel_id, offer.instance, offer.subchannel_index) for offer in offers]

    async def gpadl(self, channel_id: int = 1, gpadl_id: int = GPADL, first: int = RINGS >> 12) -> list[Message]:
        return await self.say(*encode_gpadl(channel_id, gpadl_id, [page_range(range(first, first + 8))]))

    async def open(self, channel_id: int = 1, gpadl_id: int = GPADL) -> list[Message]:
        return await self.say(m.OpenChannel(channel_id=channel_id, open_id=1, gpadl_id=gpadl_id, downstream_page=4))

    async def gpadl_and_open(self, channel_id: int = 1, gpadl_id: int = GPADL) -> None:
        assert await self.gpadl(channel_id, gpadl_id) == [m.GpadlCreated(channel_id=channel_id, gpadl_id=gpadl_id)]
        assert await self.open(channel_id, gpadl_id) == [m.OpenChannelResult(channel_id=channel_id, open_id=1)]

    async def add(self, *devices: Silent) -> list[Message]:
        for each in devices:
            await self.vm.add_device(str(each.offer.instance), each)
        await self.guest.do("settle")
        return await self.heard()

    async def remove(self, *devices: Silent) -> list[Message]:
        for each in devices:
            await self.vm.remove_device(str(each.offer.instance))
        await self.guest.do("settle")
        return await self.heard()


Sequence = Callable[[Bus], Awaitable[None]]


def on_a_bus(sequence: Sequence, folder: Path, *, disk: bool = False) -> None:
    """Run it on a VM with two processors and nothing else on its bus."""
    disks = [DiskTable(path="d.img", size=Size(MIB))] if disk else []

    async def session() -> None:
        async with boundary_guest(topology(vm_table("vm", processors=2, disk=disks), folder=folder)) as guest:
            await guest.boot()
            await sequence(Bus(guest, guest.host["vm"]))

    run(session)


def faults(bus: Bus) -> int:
    return bus.vm.statistics().faults
