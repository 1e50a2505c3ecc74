"""Subchannels that a device offers while it is open: offered, served, withdrawn."""

from __future__ import annotations

import pytest
import trio

from hypervisor.memory import GuestMemory
from hypervisor.pages import PAGE_SIZE, Access
from hypervisor.wire import BadValue
from tests.doubles.looking import seen
from tests.doubles.vmbus_guest import scsi
from tests.vmbus.server.test_service import Bench, EchoDevice, bench, memory
from vmbus.channel import Channel
from vmbus.gpadl import encode_gpadl, page_range
from vmbus.protocol import messages as m
from vmbus.protocol.identifiers import MAX_CHANNELS
from vmbus.protocol.messages import Message
from vmbus.ring import Packet
from vmbus.server.channels import ChannelState

__all__ = ["memory"]


async def opened(bus: Bench, channel_id: int) -> Channel:
    """Open a channel with pages of its own; the guest's end."""
    first, gpadl_id = 0x10 * channel_id, 0x100 + channel_id
    for data in encode_gpadl(channel_id, gpadl_id, [page_range(range(first, first + 8))]):
        await bus.say(data)
    answer = await bus.say(
        m.OpenChannel(channel_id=channel_id, open_id=channel_id, gpadl_id=gpadl_id, target_vp=0, downstream_page=4)
    )
    assert answer == [m.OpenChannelResult(channel_id=channel_id, open_id=channel_id)]
    ring = bus.memory.flat(range(first, first + 8), Access.READ_WRITE)
    border = 4 * PAGE_SIZE
    signal = bus.ports.event_handlers[0x2000 + channel_id]
    return Channel(outgoing=ring[:border], incoming=ring[border:], signal=signal, shared=False)


def offers(messages: list[Message]) -> list[tuple[int, int]]:
    """Index and ID of each channel that was offered."""
    return [(said.subchannel_index, said.channel_id) for said in messages if isinstance(said, m.OfferChannel)]


def rescinds(messages: list[Message]) -> list[int]:
    return [said.channel_id for said in messages if isinstance(said, m.RescindChannelOffer)]


async def echoes(bus: Bench, channel: Channel, word: bytes) -> bool:
    await channel.send(Packet(6, 0, 1, 0, word))
    channel.wake()
    with trio.move_on_after(1):
        while True:
            await trio.testing.wait_all_tasks_blocked()
            if got := channel.try_receive_batch():
                return got[0].payload == word
    return False


async def more(bus: Bench, device: EchoDevice, count: int) -> list[Message]:
    """The device's primary asks for subchannels; what the guest hears."""
    before = len(bus.ports.posted)
    device.opened[0].offer_subchannels(count)
    await trio.testing.wait_all_tasks_blocked()
    return bus.heard(before)


async def test_subchannels_are_offered_and_served_by_the_same_device(memory: GuestMemory) -> None:
    """Hot, with the primary's GUIDs and their own index; each open is a task and a ring of its own."""
    device = EchoDevice(scsi(1))
    async with bench(memory, device) as bus:
        await bus.connect()
        primary = await opened(bus, 1)
        said = await more(bus, device, 2)
        assert offers(said) == [(1, 2), (2, 3)]
        for offer in said:
            assert isinstance(offer, m.OfferChannel)
            assert (offer.interface, offer.instance) == (device.offer.interface, device.offer.instance)
            assert offer.connection_id == 0x2000 + offer.channel_id
        subs = [await opened(bus, channel_id) for channel_id in (2, 3)]
        assert [o.subchannel_index for o in device.opened] == [0, 1, 2]
        for number, channel in enumerate([primary, *subs]):
            assert await echoes(bus, channel, bytes([number]) * 8)
        with pytest.raises(AssertionError, match="subchannel"):
            device.opened[1].offer_subchannels(1)


async def test_asking_again_adds_what_is_missing(memory: GuestMemory) -> None:
    """The number is that of all."""
    device = EchoDevice(scsi(1))
    async with bench(memory, device) as bus:
        await bus.connect()
        await opened(bus, 1)
        assert offers(await more(bus, device, 1)) == [(1, 2)]
        assert await more(bus, device, 1) == await more(bus, device, 0) == []
        assert offers(await more(bus, device, 3)) == [(2, 3), (3, 4)]


async def test_closing_the_primary_withdraws_its_subchannels(memory: GuestMemory) -> None:
    """Open ones too, which ends their tasks. Opened again the primary has none until it asks."""
    device = EchoDevice(scsi(1))
    async with bench(memory, device) as bus:
        await bus.connect()
        await opened(bus, 1)
        await more(bus, device, 2)
        await opened(bus, 2)
        said = await bus.say(m.CloseChannel(channel_id=1))
        assert sorted(rescinds(said)) == [2, 3]
        assert device.stopped == 2
        for channel_id in (2, 3):
            await bus.say(m.RelIdReleased(channel_id=channel_id))
        await bus.say(m.GpadlTeardown(channel_id=1, gpadl_id=0x101))
        device.opened.clear()
        await opened(bus, 1)
        assert list(bus.server.channels) == [1]
        assert offers(await more(bus, device, 1)) == [(1, 2)]


async def test_a_guest_that_has_not_let_go_is_offered_the_channel_again_when_it_has(memory: GuestMemory) -> None:
    """However often it opens and closes the primary, IDs do not pile up."""
    device = EchoDevice(scsi(1))
    async with bench(memory, device) as bus:
        await bus.connect()
        for _ in range(3):
            device.opened.clear()
            await opened(bus, 1)
            await more(bus, device, 2)
            await bus.say(m.CloseChannel(channel_id=1))
            await bus.say(m.GpadlTeardown(channel_id=1, gpadl_id=0x101))
        assert sorted(bus.server.channels) == [1, 2, 3]
        device.opened.clear()
        await opened(bus, 1)
        assert await more(bus, device, 2) == []
        assert offers(await bus.say(m.RelIdReleased(channel_id=3))) == [(2, 3)]
        assert offers(await bus.say(m.RelIdReleased(channel_id=2))) == [(1, 2)]


async def test_a_primary_that_stops_over_a_fault_takes_its_subchannels_along(memory: GuestMemory) -> None:
    """They would belong to no session."""
    device = EchoDevice(scsi(1))
    async with bench(memory, device) as bus:
        await bus.connect()
        primary = await opened(bus, 1)
        await more(bus, device, 1)
        device.fault = BadValue("no")
        before = len(bus.ports.posted)
        await primary.send(Packet(6, 0, 1, 0, bytes(8)))
        await trio.testing.wait_all_tasks_blocked()
        assert rescinds(bus.heard(before)) == [2]


async def test_the_hosts_rescind_takes_subchannels_first(memory: GuestMemory) -> None:
    """And once: the end of the primary's task finds nothing left to withdraw."""
    device = EchoDevice(scsi(1))
    async with bench(memory, device) as bus:
        await bus.connect()
        await opened(bus, 1)
        await more(bus, device, 2)
        await opened(bus, 3)
        before = len(bus.ports.posted)
        (primary,) = [o for o in bus.server.offered if not o.offer.subchannel_index]
        bus.server.rescind(primary)
        await trio.testing.wait_all_tasks_blocked()
        assert rescinds(bus.heard(before)) == [2, 3, 1]
        for channel_id in (1, 2, 3):
            await bus.say(m.RelIdReleased(channel_id=channel_id))
        assert seen(bus.server.inspect(), "offers") == 0


@pytest.mark.parametrize("how", ["reset", "unload", "contact"])
async def test_another_life_of_the_guest_knows_no_subchannels(memory: GuestMemory, how: str) -> None:
    """After a reset, an unload or a new kernel's contact only the primary is offered."""
    device = EchoDevice(scsi(1))
    async with bench(memory, device) as bus:
        await bus.connect()
        await opened(bus, 1)
        await more(bus, device, 2)
        await opened(bus, 2)
        if how == "reset":
            await bus.server.reset()
        elif how == "unload":
            await bus.say(m.Unload())
        if how != "contact":
            assert [o.offer.subchannel_index for o in bus.server.offered] == [0]
            assert seen(bus.server.inspect(), "offers") == 1
        await bus.say(m.initiate_contact(0x50003))
        assert offers(await bus.say(m.RequestOffers())) == [(0, 1)]
        assert device.stopped == 2


async def test_as_many_channels_as_a_guest_may_have(memory: GuestMemory) -> None:
    """More is an error for the device, which may tell its guest."""
    device = EchoDevice(scsi(1))
    async with bench(memory, device) as bus:
        await bus.connect()
        await opened(bus, 1)
        with pytest.raises(ValueError, match="2047 channels"):
            device.opened[0].offer_subchannels(MAX_CHANNELS)
        assert len(bus.server.channels) == MAX_CHANNELS
        assert {channel.state for channel in bus.server.channels.values()} == {ChannelState.OPEN, ChannelState.CLOSED}
