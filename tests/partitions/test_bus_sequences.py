"""Whole sequences of the bus's control plane through the boundary driver: offers, rescinds, and kernels that take over.

Many are those that openvmm's server is tested with (vmbus_server, channels/tests.rs and tests.rs), told from the
guest's end. The rules one by one are in tests/vmbus/server.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doubles.boundary_guest import RINGS
from tests.doubles.bus import BEGIN_INITIALIZATION, FAILURE, GPADL, Bus, device, faults, number, on_a_bus
from vmbus.gpadl import encode_gpadl, page_range
from vmbus.protocol import messages as m
from vmbus.protocol.versions import Version

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
