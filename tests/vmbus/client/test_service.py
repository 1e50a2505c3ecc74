"""The client's calls against a host that is a script: waiting, retrying, giving up, cleaning up. Child side."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE
from hypervisor.status import HvStatus
from tests.doubles.guest_platform import FIRST_RING, FakePlatform
from tests.doubles.scripted_bus import SCSI, MessageScript
from vmbus.channel import Channel, ChannelClosed
from vmbus.client.service import OfferedDevice, VmbusClient, VmbusError, open_vmbus_client
from vmbus.protocol import Version
from vmbus.protocol import messages as m
from vmbus.protocol.messages import MessageType
from vmbus.ring import Packet, PacketType, RingReader, RingWriter

RING = 4 * PAGE_SIZE
FAILURE = 0x8000_FFFF


def make(*, offers: int = 1, **script: object) -> tuple[FakePlatform, MessageScript]:
    platform = FakePlatform()
    host = MessageScript(deliver=platform.deliver, offers=[SCSI] * offers, message_connection=0x77, **script)  # type: ignore[arg-type]
    platform.post = host.post
    return platform, host


async def open_first(bus: VmbusClient) -> tuple[OfferedDevice, Channel]:
    offer = await bus.next_offer()
    return offer, await bus.open(offer, outgoing_bytes=RING, incoming_bytes=RING)


async def test_connect_offers_unload() -> None:
    """The life of a connection in messages; the handler is taken away at the end."""
    platform, host = make(offers=2)
    async with open_vmbus_client(platform) as bus:
        assert bus.version == "5.3"
        assert bus.state.version == Version.V5_3
        await bus.wait_offers_delivered()
        assert [offer.channel_id for offer in bus.offers] == [1, 2]
        assert [(await bus.next_offer()).channel_id for _ in range(2)] == [1, 2]
    assert host.types() == ["INITIATE_CONTACT", "INITIATE_CONTACT", "REQUEST_OFFERS", "UNLOAD"]
    assert host.connections == [4, 4, 0x77, 0x77]
    assert platform.message_handler is None


async def test_hypervisor_without_connection_4() -> None:
    """INVALID_CONNECTION_ID for the contact steps down at once, without a wait."""
    platform, host = make(version=Version.V4_1, no_multiclient=True)
    async with open_vmbus_client(platform) as bus:
        assert bus.version == "4.1"
    assert host.connections == [1, 1, 1]
    assert platform.slept == []


async def test_no_common_version() -> None:
    """Where the host speaks none of our versions, `open_vmbus_client` itself raises, and not a group."""
    platform, _ = make(version=Version.V2_4)
    with pytest.raises(VmbusError, match="none of the versions"):
        async with open_vmbus_client(platform, versions=[Version.V5_3, Version.V5_2]):
            raise AssertionError("not connected")


async def test_posts_are_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    """No buffers, no memory: the same message again after growing waits, and later ones do not overtake it."""
    platform, host = make()
    host.statuses = [HvStatus.INSUFFICIENT_BUFFERS, HvStatus.INSUFFICIENT_MEMORY, HvStatus.INSUFFICIENT_BUFFERS]
    async with open_vmbus_client(platform):
        pass
    assert host.types()[0] == "INITIATE_CONTACT"
    assert platform.slept == sorted(platform.slept)
    assert len(platform.slept) == 3


async def test_posts_are_not_tried_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    """A hypervisor that never has room, or refuses for good, ends the client."""
    platform, host = make()
    host.statuses = [HvStatus.INSUFFICIENT_BUFFERS] * 1000
    with pytest.raises(VmbusError, match="does not take messages"):
        async with open_vmbus_client(platform):
            pass
    assert len(host.statuses) == 900
    platform, host = make()
    host.statuses = [HvStatus.ACCESS_DENIED]
    with pytest.raises(VmbusError, match="ACCESS_DENIED"):
        async with open_vmbus_client(platform):
            pass


async def test_open_use_close() -> None:
    """Rings are zeroed pages, ours first; the host's signal wakes the channel, ours uses the offer's connection."""
    platform, host = make()
    async with open_vmbus_client(platform) as bus:
        offer = await bus.next_offer()
        channel = await bus.open(offer, outgoing_bytes=RING, incoming_bytes=2 * RING, user_data=b"hello", target_vp=3)
        opening = host.heard[-1]
        assert isinstance(opening, m.OpenChannel)
        assert (opening.downstream_page, opening.target_vp, opening.user_data[:6]) == (4, 3, b"hello\0")
        assert platform.rings == {FIRST_RING: 12}
        start = FIRST_RING << PAGE_SHIFT
        theirs_in = RingReader(platform.memory[start : start + RING], shared=False)
        theirs_out = RingWriter(platform.memory[start + RING : start + 3 * RING], shared=False)

        await channel.send(Packet(PacketType.INBAND, 1, 7, 0, b"question"))
        assert [packet.body for packet in theirs_in.read_batch()] == [b"question"]
        assert platform.signals == [0x2001]
        async with trio.open_nursery() as nursery:

            async def answered() -> None:
                assert (await channel.receive()).body == b"answer.."

            nursery.start_soon(answered)
            await trio.testing.wait_all_tasks_blocked()
            theirs_out.write_batch([Packet(PacketType.COMPLETION, 0, 7, 0, b"answer..")])
            platform.event_handlers[1]()
        await bus.close(channel)
        assert host.types()[-2:] == ["CLOSE_CHANNEL", "GPADL_TEARDOWN"]
        assert platform.rings == {}
        assert platform.event_handlers == {}
        with pytest.raises(trio.ClosedResourceError):
            await channel.receive()
        await bus.close(channel)
        again = await bus.open(offer, outgoing_bytes=RING, incoming_bytes=RING)
        with pytest.raises(RuntimeError, match="open already"):
            await bus.open(offer, outgoing_bytes=RING, incoming_bytes=RING)
        await bus.close(again)


async def test_host_signals_before_it_answers() -> None:
    """A channel takes the host's signals from before OPEN_CHANNEL on: the first may overtake OPEN_RESULT."""
    platform, host = make(quiet={MessageType.OPEN_CHANNEL})
    async with open_vmbus_client(platform) as bus:
        offer = await bus.next_offer()
        async with trio.open_nursery() as nursery:

            async def opens() -> None:
                channel = await bus.open(offer, outgoing_bytes=RING, incoming_bytes=RING)
                assert channel.statistics().wakes == 1

            nursery.start_soon(opens)
            await trio.testing.wait_all_tasks_blocked()
            platform.event_handlers[1]()
            host.say(m.OpenChannelResult(channel_id=1, open_id=1))


@pytest.mark.parametrize("size", [0, PAGE_SIZE, RING + 1, RING - 8])
async def test_ring_sizes(size: int) -> None:
    """A ring is a control page and at least one page of data."""
    platform, _ = make()
    async with open_vmbus_client(platform) as bus:
        offer = await bus.next_offer()
        with pytest.raises(ValueError, match="whole pages"):
            await bus.open(offer, outgoing_bytes=size, incoming_bytes=RING)
        with pytest.raises(ValueError, match="120"):
            await bus.open(offer, outgoing_bytes=RING, incoming_bytes=RING, user_data=bytes(121))
    assert platform.rings == {}


async def test_refusals() -> None:
    """A refused GPADL or open is a `VmbusError` and leaves no page behind; the channel may be tried again."""
    platform, host = make(gpadl_status=FAILURE)
    async with open_vmbus_client(platform) as bus:
        offer = await bus.next_offer()
        with pytest.raises(VmbusError, match="GPADL 0xe1e10: status 0x8000ffff"):
            await bus.open(offer, outgoing_bytes=RING, incoming_bytes=RING)
        assert platform.rings == {}
        host.gpadl_status, host.open_status = 0, FAILURE
        with pytest.raises(VmbusError, match="to open channel 1"):
            await bus.open(offer, outgoing_bytes=RING, incoming_bytes=RING)
        await trio.testing.wait_all_tasks_blocked()
        assert platform.rings == {}
        assert platform.event_handlers == {}
        host.open_status = 0
        await bus.close(await bus.open(offer, outgoing_bytes=RING, incoming_bytes=RING))
        with pytest.raises(MemoryError):
            await bus.open(offer, outgoing_bytes=PAGE_SIZE * 1000, incoming_bytes=RING)


@pytest.mark.parametrize("stuck", [MessageType.GPADL_HEADER, MessageType.OPEN_CHANNEL])
async def test_open_given_up(stuck: MessageType) -> None:
    """An open that is cancelled keeps its pages until the host has answered and let go, and then gives them back."""
    platform, host = make(quiet={stuck})
    async with open_vmbus_client(platform) as bus:
        offer = await bus.next_offer()
        async with trio.open_nursery() as nursery:

            async def opens() -> None:
                await bus.open(offer, outgoing_bytes=RING, incoming_bytes=RING)

            nursery.start_soon(opens)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert host.types()[-1] == stuck.name
        assert len(platform.rings) == 1
        assert platform.event_handlers == {}
        host.quiet.clear()
        host.answer(host.heard[-1])
        await trio.testing.wait_all_tasks_blocked()
        assert platform.rings == {}
        await bus.close(await bus.open(offer, outgoing_bytes=RING, incoming_bytes=RING))


async def test_rescind_ends_a_channel() -> None:
    """A rescinded channel ends for whoever waits on it; pages are free, the ID is given back, drivers are told."""
    platform, host = make(offers=2)
    gone: list[int] = []
    async with open_vmbus_client(platform) as bus:
        bus.on_rescind = lambda offer: gone.append(offer.channel_id)
        _, channel = await open_first(bus)
        async with trio.open_nursery() as nursery:

            async def waits() -> None:
                with pytest.raises(ChannelClosed):
                    await channel.receive_batch()

            nursery.start_soon(waits)
            await trio.testing.wait_all_tasks_blocked()
            host.rescind(1)
        await trio.testing.wait_all_tasks_blocked()
        assert gone == [1]
        assert platform.rings == {}
        assert platform.event_handlers == {}
        assert host.types()[-2:] == ["CLOSE_CHANNEL", "REL_ID_RELEASED"]
        host.rescind(2)
        host.offer(1)
        await trio.testing.wait_all_tasks_blocked()
        assert (await bus.next_offer()).channel_id == 1


@pytest.mark.parametrize("stuck", [MessageType.GPADL_HEADER, MessageType.OPEN_CHANNEL, MessageType.GPADL_TEARDOWN])
async def test_rescind_answers_whoever_waits(stuck: MessageType) -> None:
    """An open that waits when its device goes is refused; a close that waits is done."""
    platform, host = make(quiet={stuck})
    async with open_vmbus_client(platform) as bus:
        async with trio.open_nursery() as nursery:

            async def opens() -> None:
                if stuck is MessageType.GPADL_TEARDOWN:
                    _, channel = await open_first(bus)
                    await bus.close(channel)
                else:
                    with pytest.raises(VmbusError, match="rescinded"):
                        await open_first(bus)

            nursery.start_soon(opens)
            await trio.testing.wait_all_tasks_blocked()
            host.rescind(1)
        assert platform.rings == {}


async def test_unload_ends_everything_and_connect_begins_anew() -> None:
    """UNLOAD closes channels at our end without CLOSE, frees their pages when answered, and fails whoever waits."""
    platform, host = make(quiet={MessageType.OPEN_CHANNEL}, offers=2)
    async with open_vmbus_client(platform) as bus:
        first = await bus.next_offer()
        async with trio.open_nursery() as nursery:

            async def opens() -> None:
                with pytest.raises(VmbusError, match="unloaded"):
                    await bus.open(first, outgoing_bytes=RING, incoming_bytes=RING)

            nursery.start_soon(opens)
            await trio.testing.wait_all_tasks_blocked()
            await bus.unload()
        assert not bus.connected
        assert bus.version == ""
        assert platform.rings == {}
        host.quiet.clear()
        await bus.connect()
        await bus.wait_offers_delivered()
        assert bus.connected
        _, channel = await open_first(bus)
        await bus.close(channel)
    assert host.types().count("UNLOAD") == 2


async def test_gpadls_of_drivers() -> None:
    """A driver's own GPADL is made and taken back; its pages are the driver's."""
    platform, host = make()
    async with open_vmbus_client(platform) as bus:
        await bus.wait_offers_delivered()
        gpadl_id = await bus.create_gpadl(1, range(100, 164), 64 * PAGE_SIZE)
        assert gpadl_id == 0xE1E10
        assert host.types()[-3:] == ["GPADL_HEADER", "GPADL_BODY", "GPADL_BODY"]
        await bus.teardown_gpadl(gpadl_id)
        await bus.teardown_gpadl(gpadl_id)
        assert host.types()[-1] == "GPADL_TEARDOWN"


async def test_cancelled_client_just_stops() -> None:
    """A guest that is switched off posts nothing more; its channels end."""
    platform, host = make()
    with trio.CancelScope() as scope:
        async with open_vmbus_client(platform) as bus:
            _, channel = await open_first(bus)
            scope.cancel()
            await trio.sleep_forever()
    assert host.types()[-1] == "OPEN_CHANNEL"
    assert channel.closed
    assert platform.event_handlers == {}


async def test_body_errors_come_out_alone() -> None:
    """An error of the body is not wrapped into a group by the client's own nursery."""
    platform, _ = make()
    with pytest.raises(KeyError):
        async with open_vmbus_client(platform):
            raise KeyError("mine")
