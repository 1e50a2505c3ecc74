"""Whole sequences of the bus's control plane through the boundary driver: what a guest says, and all that it hears.

Many are those that openvmm's server is tested with (vmbus_server, channels/tests.rs and tests.rs), told from the
guest's end. The rules one by one are in tests/vmbus/server.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import pytest
import trio

from hypervisor.msr import Msr
from hypervisor.wire import Guid
from partitions.host import Vm
from partitions.topology_schema import DiskTable, Size
from tests.doubles.boundary_guest import RINGS, BoundaryGuest, boundary_guest, run
from tests.doubles.root import MIB, topology, vm_table
from vmbus.channel import Channel
from vmbus.gpadl import encode_gpadl, page_range
from vmbus.protocol import messages as m
from vmbus.protocol.features import Feature
from vmbus.protocol.messages import Message
from vmbus.protocol.pages import ConnectionPages
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


# ----------------------------------------------------------------------------------------------- return without UNLOAD


def test_a_kernel_that_takes_over_without_unload(tmp_path: Path) -> None:
    """As after kexec of a crashed kernel: the disk is open and busy. One answer, to the contact; the same offers; and
    neither a byte in the old rings nor a flag in the event page, whatever the old kernel had under way."""

    async def sequence(bus: Bus) -> None:
        guest = bus.guest
        before = await bus.connect()
        rings = await guest.open_channel()
        await rings.send(BEGIN_INITIALIZATION, 0x77)
        assert len(await rings.received()) == 1
        await rings.send(BEGIN_INITIALIZATION, 0x78)  # answered, and the answer never read
        await guest.flags()
        assert await bus.contact() == [m.VersionResponse(supported=1, detail=1)]
        await guest.write(RINGS, b"\xaa" * (8 << 12))  # the old rings are the new kernel's memory now
        assert await guest.signal(0x2001) in ("SUCCESS", "INVALID_CONNECTION_ID")
        *offers, _ = await bus.say(m.RequestOffers())
        assert bus.offered(offers) == before
        await guest.do("advance", ticks=100_000_000)
        assert await guest.read(RINGS, 8 << 12) == b"\xaa" * (8 << 12)
        assert await guest.flags() == set()
        rings = await guest.open_channel()  # the same GPADL number again
        await rings.send(BEGIN_INITIALIZATION, 0x79)
        ((head, _),) = await rings.received()
        assert head[8:16] == (0x79).to_bytes(8, "little")
        assert faults(bus) == 0

    on_a_bus(sequence, tmp_path, disk=True)


def test_a_contact_in_the_middle_of_everything(tmp_path: Path) -> None:
    """Half a GPADL, a closed channel with its GPADL, a rescinded one and an open one: all are forgotten at once."""

    async def sequence(bus: Bus) -> None:
        devices = [device(value) for value in (1, 2, 3, 4)]
        await bus.add(*devices)
        assert [row[0] for row in await bus.connect()] == [1, 2, 3, 4]
        await bus.say(encode_gpadl(1, 5, [page_range(range(40))])[0])
        await bus.gpadl(2, 6)
        await bus.gpadl_and_open(3, 7)
        await bus.gpadl_and_open(4, 8)
        assert await bus.remove(devices[3]) == [m.RescindChannelOffer(channel_id=4)]
        assert await bus.contact(Version.V6_0) == [m.VersionResponse2(supported=1, detail=1)]
        assert devices[2].serving == 0
        *offers, _ = await bus.say(m.RequestOffers())
        assert [row[0] for row in bus.offered(offers)] == [1, 2, 3]
        for channel_id, gpadl_id in ((1, 5), (2, 6), (3, 7)):
            await bus.gpadl_and_open(channel_id, gpadl_id)
        assert faults(bus) == 0

    on_a_bus(sequence, tmp_path)


# -------------------------------------------------------------------------------------------------------- offers, order


def test_devices_can_come_at_each_stage(tmp_path: Path) -> None:
    """Before the contact, after it, and after the offers (test_hot_add); a reset closes all."""

    async def sequence(bus: Bus) -> None:
        devices = [device(value) for value in (1, 2, 3)]
        assert await bus.add(devices[0]) == []
        await bus.contact()
        assert await bus.add(devices[1]) == []
        *offers, _ = await bus.say(m.RequestOffers())
        assert [row[0] for row in bus.offered(offers)] == [1, 2]
        assert bus.offered(await bus.add(devices[2])) == [(3, number(3), 0)]
        for channel_id in (1, 2, 3):
            await bus.gpadl_and_open(channel_id, channel_id)
        assert [each.serving for each in devices] == [1, 1, 1]
        await bus.guest.do("reset")
        assert [each.serving for each in devices] == [0, 0, 0]

    on_a_bus(sequence, tmp_path)


def test_ids_follow_interface_order_and_instance(tmp_path: Path) -> None:
    """test_channel_id_order: (3,3) (5,8 order 1) (5,6 order 2) (5,1) (5,5) (10,10) (17,17); and again after each reset,
    UNLOAD and hot plug of the same devices, in whatever order they came."""
    devices = [
        *(device(3), device(10), device(5), device(17)),
        *(device(5, instance=6, order=2), device(5, instance=8, order=1), device(5, instance=1)),
    ]
    wanted = [(index, number(value), 0) for index, value in enumerate((3, 8, 6, 1, 5, 10, 17), 1)]

    async def sequence(bus: Bus) -> None:
        await bus.add(*devices)
        assert await bus.connect() == wanted
        await bus.guest.do("reset")
        await bus.guest.boot()
        assert await bus.connect() == wanted
        rescinded = await bus.remove(devices[0], devices[5])
        assert rescinded == [m.RescindChannelOffer(channel_id=1), m.RescindChannelOffer(channel_id=2)]
        await bus.say(m.RelIdReleased(channel_id=1), m.RelIdReleased(channel_id=2))
        assert bus.offered(await bus.add(devices[5], devices[0])) == [(1, number(8), 0), (2, number(3), 0)]
        assert await bus.say(m.Unload()) == [m.UnloadComplete()]
        assert await bus.connect() == wanted

    on_a_bus(sequence, tmp_path)


def test_a_second_request_for_offers_gets_none(tmp_path: Path) -> None:
    async def sequence(bus: Bus) -> None:
        await bus.add(device(1))
        await bus.connect()
        assert await bus.say(m.RequestOffers()) == []
        assert faults(bus) == 1

    on_a_bus(sequence, tmp_path)


# --------------------------------------------------------------------------------------------------- rescind, reoffer


def test_subchannels_are_rescinded_before_their_primary(tmp_path: Path) -> None:
    """test_revoke_subchannels_before_primary."""

    async def sequence(bus: Bus) -> None:
        several = device(1, subchannels=3)
        await bus.add(several)
        await bus.connect()
        await bus.gpadl()
        opened, *offers = await bus.open()
        assert opened == m.OpenChannelResult(channel_id=1, open_id=1)
        assert [(row[0], row[2]) for row in bus.offered(offers)] == [(2, 1), (3, 2), (4, 3)]
        await bus.gpadl_and_open(3, 11)
        *subs, last = await bus.remove(several)
        assert {said.channel_id for said in subs if isinstance(said, m.RescindChannelOffer)} == {2, 3, 4}
        assert last == m.RescindChannelOffer(channel_id=1)
        assert several.serving == 0

    on_a_bus(sequence, tmp_path)


def test_gpadls_of_a_rescinded_channel_are_answered(tmp_path: Path) -> None:
    """test_gpadl_on_revoked_channel: made and torn down as if nothing were, until the guest releases the channel."""

    async def sequence(bus: Bus) -> None:
        gone = device(1)
        await bus.add(gone)
        await bus.connect()
        assert await bus.remove(gone) == [m.RescindChannelOffer(channel_id=1)]
        assert await bus.gpadl() == [m.GpadlCreated(channel_id=1, gpadl_id=GPADL)]
        assert await bus.say(m.GpadlTeardown(channel_id=1, gpadl_id=GPADL)) == [m.GpadlTorndown(gpadl_id=GPADL)]
        assert await bus.open() == []
        assert await bus.say(m.RelIdReleased(channel_id=1)) == []
        assert faults(bus) == 0
        assert await bus.gpadl() == [m.GpadlCreated(channel_id=1, gpadl_id=GPADL, status=FAILURE)]

    on_a_bus(sequence, tmp_path)


def test_rescind_in_the_middle_of_a_gpadl(tmp_path: Path) -> None:
    """Its end still comes, and is answered; the channel cannot be opened by it."""

    async def sequence(bus: Bus) -> None:
        gone = device(1)
        await bus.add(gone)
        await bus.connect()
        header, *bodies = encode_gpadl(1, GPADL, [page_range(range(60))])
        assert await bus.say(header) == []
        assert await bus.remove(gone) == [m.RescindChannelOffer(channel_id=1)]
        assert await bus.say(*bodies) == [m.GpadlCreated(channel_id=1, gpadl_id=GPADL)]
        assert await bus.say(m.RelIdReleased(channel_id=1)) == []
        assert faults(bus) == 0

    on_a_bus(sequence, tmp_path)


@pytest.mark.parametrize("tidy", [False, True])
def test_rescind_of_an_open_channel(tmp_path: Path, tidy: bool) -> None:
    """Its device has stopped when RESCIND comes. CLOSE may cross it; pages come back by teardown or by the release."""

    async def sequence(bus: Bus) -> None:
        gone = device(1)
        await bus.add(gone)
        await bus.connect()
        await bus.gpadl_and_open()
        assert await bus.remove(gone) == [m.RescindChannelOffer(channel_id=1)]
        assert gone.serving == 0
        if tidy:
            assert await bus.say(m.CloseChannel(channel_id=1)) == []
            assert await bus.say(m.GpadlTeardown(channel_id=1, gpadl_id=GPADL)) == [m.GpadlTorndown(gpadl_id=GPADL)]
        assert await bus.say(m.RelIdReleased(channel_id=1)) == []
        assert faults(bus) == 0
        assert bus.offered(await bus.add(gone)) == [(1, number(1), 0)]
        await bus.gpadl_and_open()

    on_a_bus(sequence, tmp_path)


def test_a_device_that_is_back_before_the_release(tmp_path: Path) -> None:
    """Nothing is said until the guest lets go; then the same instance is offered anew. A second rescind meanwhile needs
    no second message, and what comes after the release finds the device new."""

    async def sequence(bus: Bus) -> None:
        plugged = device(1)
        await bus.add(plugged)
        await bus.connect()
        await bus.gpadl_and_open()
        assert await bus.remove(plugged) == [m.RescindChannelOffer(channel_id=1)]
        assert await bus.add(plugged) == []
        assert await bus.open() == []
        assert await bus.remove(plugged) == []
        assert await bus.add(plugged) == []
        assert bus.offered(await bus.say(m.RelIdReleased(channel_id=1))) == [(1, number(1), 0)]
        await bus.gpadl_and_open()
        assert (plugged.serving, faults(bus)) == (1, 0)

    on_a_bus(sequence, tmp_path)


# ---------------------------------------------------------------------------------------------- channels, connections


@pytest.mark.parametrize("version", [Version.V5_2, Version.V5_3, Version.V6_0])
def test_the_life_of_a_channel(tmp_path: Path, version: int) -> None:
    """test_channel_lifetime: open, retarget with an answer from 5.3 on, rescind, release."""

    async def sequence(bus: Bus) -> None:
        one = device(1)
        await bus.add(one)
        assert await bus.connect(version) == [(1, number(1), 0)]
        await bus.gpadl_and_open()
        answer = [m.ModifyChannelResponse(channel_id=1)] if version >= Version.V5_3 else []
        assert await bus.say(m.ModifyChannel(channel_id=1, target_vp=1)) == answer
        refusal = [m.ModifyChannelResponse(channel_id=1, status=FAILURE)] if version >= Version.V5_3 else []
        assert await bus.say(m.ModifyChannel(channel_id=1, target_vp=0xFFFFFFFF)) == refusal
        assert await bus.say(m.ModifyChannel(channel_id=1, target_vp=2)) == refusal  # no such processor
        assert await bus.remove(one) == [m.RescindChannelOffer(channel_id=1)]
        assert await bus.say(m.RelIdReleased(channel_id=1)) == []

    on_a_bus(sequence, tmp_path)


def test_signals_go_by_the_numbers_of_the_guests_choice(tmp_path: Path) -> None:
    """test_channel_lifetime_copper_guest_signal, with real signals: connection 0x2002 and flag 2 for channel 1, though
    a second device has them by default."""

    async def sequence(bus: Bus) -> None:
        guest = bus.guest
        await bus.add(device(0xFFFFFFFF))
        (disk, other) = await bus.connect(Version.V6_0, Feature.GUEST_SPECIFIED_SIGNAL_PARAMETERS)
        assert (disk[0], other[0]) == (1, 2)
        await guest.write(RINGS, bytes(8 << 12))
        await bus.gpadl(1)
        opening = m.OpenChannel2(
            channel_id=1, open_id=1, gpadl_id=GPADL, downstream_page=4, connection_id=0x2002, event_flag=2
        )
        assert await bus.say(opening) == [m.OpenChannelResult(channel_id=1, open_id=1)]
        assert await guest.signal(0x2002) == "SUCCESS"
        assert await guest.signal(0x2001) == "INVALID_CONNECTION_ID"
        descriptor = struct.pack("<HHHHQ", 6, 2, 10, 1, 0x77)
        await guest.write(RINGS + 4096, descriptor + BEGIN_INITIALIZATION + bytes(8))
        await guest.write(RINGS, struct.pack("<I", 88))
        assert await guest.signal(0x2002) == "SUCCESS"
        assert await guest.flags() == {2}

    on_a_bus(sequence, tmp_path, disk=True)


def test_features_of_6_0(tmp_path: Path) -> None:
    """test_version_negotiation_feature_flags: unknown bits vanish, known ones are granted, one at a time."""

    async def sequence(bus: Bus) -> None:
        for asked, granted in ((0, 0), (1, 1), (1 | 0xF0000000, 1), (2, 2), (0x20, 0x20), (0x10, 0), (0x80, 0)):
            assert await bus.contact(Version.V6_0, asked) == [
                m.VersionResponse2(supported=1, detail=1, features=granted)
            ]
            assert await bus.say(m.Unload()) == [m.UnloadComplete()]
        contact = m.initiate_contact(Version.V6_0, client_id=number(0xE6E6E6E6), features=8)
        assert await bus.say(contact, connection=4) == [m.VersionResponse2(supported=1, detail=1, features=8)]

    on_a_bus(sequence, tmp_path)


def test_another_sint_is_told_so_on_that_sint(tmp_path: Path) -> None:
    """test_version_negotiation_multiclient_sint: by connection 4 only; the classic port ignores the field."""

    async def sequence(bus: Bus) -> None:
        guest = bus.guest
        await guest.wrmsr(Msr.SINT2 + 1, 0xF4)
        contact = m.InitiateContact(version=Version.V5_0, target_sint=3)
        assert await bus.say(contact, connection=4) == []
        slot = await guest.read(guest.message_page + 3 * 256, 32)
        assert slot[16:32] == m.VersionResponse().encode()
        assert await bus.say(contact) == [m.VersionResponse(supported=1, detail=1)]

    on_a_bus(sequence, tmp_path)


def test_another_trust_level_is_not_spoken_for(tmp_path: Path) -> None:
    """test_version_negotiation_multiclient_vtl: silence by connection 4; the classic port ignores the field."""

    async def sequence(bus: Bus) -> None:
        contact = m.InitiateContact(version=Version.V5_1, target_vtl=2)
        assert await bus.say(contact, connection=4) == []
        assert await bus.say(m.RequestOffers()) == []
        assert await bus.say(contact) == [m.VersionResponse(supported=1, detail=1)]
        assert await bus.say(m.RequestOffers()) == [m.AllOffersDelivered()]

    on_a_bus(sequence, tmp_path)


def test_another_clients_contact_leaves_an_open_channel_alone(tmp_path: Path) -> None:
    """A contact by connection 4 for another SINT is refused there; what this guest has goes on, UNLOAD included."""

    async def sequence(bus: Bus) -> None:
        guest = bus.guest
        await guest.wrmsr(Msr.SINT2 + 1, 0xF4)
        await bus.connect()
        rings = await guest.open_channel()
        for target in ({"target_sint": 3}, {"target_vtl": 1}):
            assert await bus.say(m.InitiateContact(version=Version.V5_3, **target), connection=4) == []
        assert (await guest.read(guest.message_page + 3 * 256, 32))[16:] == m.VersionResponse().encode()
        await rings.send(BEGIN_INITIALIZATION)
        assert len(await rings.received()) == 1
        assert await bus.say(m.Unload()) == [m.UnloadComplete()]

    on_a_bus(sequence, tmp_path, disk=True)


@pytest.mark.parametrize(
    ("version", "response"),
    [
        (Version.V1_1, m.VersionResponse()),
        (Version.V2_4, m.VersionResponse(supported=1, connection_state=2, detail=Version.V2_4)),
        (Version.V5_3, m.VersionResponse(supported=1, connection_state=2, detail=1)),
        (Version.V6_0, m.VersionResponse2(supported=1, connection_state=2, detail=1, features=0x20)),
    ],
)
def test_a_connection_that_fails(tmp_path: Path, version: int, response: Message) -> None:
    """One monitor page of two. The answer is that of a connection, but for its state, and there is none after it."""

    async def sequence(bus: Bus) -> None:
        bus.version = version
        contact = m.initiate_contact(version, features=0x20, pages=ConnectionPages(to_child=0x6000))
        assert await bus.say(contact, connection=4 if version >= Version.V5_0 else 1) == [response]
        assert await bus.say(m.RequestOffers()) == []
        assert await bus.connect(version) == []

    on_a_bus(sequence, tmp_path)


@pytest.mark.parametrize("version", [0, 0x50004, 0x60001, 0xFFFFFFFF])
def test_versions_that_are_none(tmp_path: Path, version: int) -> None:
    """test_version_negotiation_not_supported: told so, and nothing has changed."""

    async def sequence(bus: Bus) -> None:
        assert await bus.contact(version) == [m.VersionResponse()]
        assert await bus.connect() == []

    on_a_bus(sequence, tmp_path)


def test_unload_with_open_channels(tmp_path: Path) -> None:
    """test_disconnect_open_channels: one answer, when both have stopped; then nothing but a contact is heard."""

    async def sequence(bus: Bus) -> None:
        devices = [device(1), device(2), device(3)]
        await bus.add(*devices)
        await bus.connect(Version.V4_0)
        await bus.gpadl_and_open(1, 1)
        await bus.gpadl_and_open(2, 2)
        assert await bus.say(m.Unload()) == [m.UnloadComplete()]
        assert [each.serving for each in devices] == [0, 0, 0]
        assert await bus.say(m.RequestOffers()) == []
        assert len(await bus.connect(Version.V4_0)) == 3

    on_a_bus(sequence, tmp_path)


def test_reserved_channels_to_the_end(tmp_path: Path) -> None:
    """test_reserved_channels: answers on the SINT of VP 1 that each message names, over UNLOAD and a new connection."""

    async def sequence(bus: Bus) -> None:
        guest = bus.guest
        page = 0x8000
        assert (await guest.do("wrmsr", vp=1, msr=int(Msr.SIMP), value=page | 1)).status == "ok"
        assert (await guest.do("wrmsr", vp=1, msr=int(Msr.SINT0 + 5), value=0xF5)).status == "ok"
        assert (await guest.do("wrmsr", vp=1, msr=int(Msr.SCONTROL), value=1)).status == "ok"

        async def apart() -> bytes:
            raw = await guest.read(page + 5 * 256, 256)
            await guest.write(page + 5 * 256, bytes(4))
            return raw[16 : 16 + raw[4]] if raw[:4] != bytes(4) else b""

        kept = device(1)
        await bus.add(kept, device(2))
        await bus.connect(Version.V4_0)
        await bus.gpadl()
        opening = m.OpenReservedChannel(channel_id=1, target_vp=1, target_sint=5, gpadl_id=GPADL, downstream_page=4)
        assert await bus.say(opening) == []
        assert await apart() == m.OpenChannelResult(channel_id=1).encode()
        assert await bus.say(m.CloseChannel(channel_id=1)) == []
        assert await bus.say(m.Unload()) == [m.UnloadComplete()]
        assert kept.serving == 1
        assert await bus.connect(Version.V6_0) == [(2, number(2), 0)]
        assert await bus.gpadl(2) == [m.GpadlCreated(channel_id=2, gpadl_id=GPADL)]
        assert await bus.say(m.CloseReservedChannel(channel_id=1, target_vp=1, target_sint=5)) == []
        assert await apart() == m.CloseReservedResponse(channel_id=1).encode()
        assert kept.serving == 0
        assert await bus.say(m.GpadlTeardown(channel_id=1, gpadl_id=GPADL)) == [m.GpadlTorndown(gpadl_id=GPADL)]
        await bus.gpadl_and_open(1, 77)

    on_a_bus(sequence, tmp_path)


def test_pause_and_resume(tmp_path: Path) -> None:
    """Nothing after PAUSE_RESPONSE; all that was held, in order, after RESUME."""

    async def sequence(bus: Bus) -> None:
        first = device(1)
        await bus.add(first)
        await bus.connect(Version.V6_0, Feature.PAUSE_RESUME)
        assert await bus.say(m.Pause()) == [m.PauseResponse()]
        assert await bus.add(device(2)) == []
        assert await bus.remove(first) == []
        offer, rescind = await bus.say(m.Resume())
        assert bus.offered([offer]) == [(2, number(2), 0)]
        assert rescind == m.RescindChannelOffer(channel_id=1)

    on_a_bus(sequence, tmp_path)


@pytest.mark.parametrize(("version", "silo"), [(0x40000, False), (0x40001, False), (0x50002, True), (0x50002, False)])
def test_a_socket_that_nobody_listens_on(tmp_path: Path, version: int, silo: bool) -> None:
    """test_hvsock: refused with both GUIDs from 4.1 on, in either length; before that there is no such answer."""

    async def sequence(bus: Bus) -> None:
        await bus.contact(version)
        kind = m.TlConnectRequest2 if silo else m.TlConnectRequest
        answer = await bus.say(kind(endpoint=number(7), service=number(8)))
        refused = m.TlConnectResult(endpoint=number(7), service=number(8), status=0xC0000236)
        assert answer == ([refused] if version >= 0x40001 else [])

    on_a_bus(sequence, tmp_path)


def test_gpadl_failures_and_the_same_number_again(tmp_path: Path) -> None:
    """test_gpadl_create_failure: an unknown channel, an offset past the page, and the same in two pieces."""

    async def sequence(bus: Bus) -> None:
        await bus.add(device(1))
        await bus.connect()
        good, bad = struct.pack("<QQ", 1, 0), struct.pack("<QQ", 1 | 0x1000 << 32, 0)

        def header(channel_id: int, size: int, ranges: int) -> bytes:
            return m.GpadlHeader(channel_id=channel_id, gpadl_id=1, byte_length=size, range_count=ranges).encode()

        assert await bus.say(header(100, 16, 1) + good) == [m.GpadlCreated(channel_id=100, gpadl_id=1, status=FAILURE)]
        failed = [m.GpadlCreated(channel_id=1, gpadl_id=1, status=FAILURE)]
        assert await bus.say(header(1, 16, 1) + bad) == failed
        assert await bus.say(header(1, 32, 2) + bad) == []
        assert await bus.say(m.GpadlBody(gpadl_id=1).encode() + good) == failed
        assert await bus.say(header(1, 16, 1) + good) == [m.GpadlCreated(channel_id=1, gpadl_id=1)]

    on_a_bus(sequence, tmp_path)


def test_a_gpadl_in_progress_at_a_reset(tmp_path: Path) -> None:
    """test_gpadl_in_progress_reset: its number is free for the next kernel, who sends it in two pieces."""

    async def sequence(bus: Bus) -> None:
        await bus.add(device(1))
        await bus.connect()
        piece = struct.pack("<QQ", 1, 0)
        header = m.GpadlHeader(channel_id=1, gpadl_id=1, byte_length=32, range_count=2).encode()
        assert await bus.say(header + piece) == []
        await bus.guest.do("reset")
        await bus.guest.boot()
        await bus.connect()
        assert await bus.say(header + piece) == []
        body = m.GpadlBody(gpadl_id=1).encode() + piece
        assert await bus.say(body) == [m.GpadlCreated(channel_id=1, gpadl_id=1)]

    on_a_bus(sequence, tmp_path)
