"""OPEN_CHANNEL2 (6.0): connection ID and event flag of the guest's choice; and where reserved channels' answers go."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio.testing

from hypervisor.memory import GuestMemory
from tests.doubles.vmbus_guest import scsi
from tests.vmbus.server.test_service import GPADL, Bench, EchoDevice, bench, memory
from vmbus.gpadl import encode_gpadl, page_range
from vmbus.protocol import messages as m
from vmbus.protocol.features import Feature
from vmbus.protocol.messages import Message
from vmbus.protocol.versions import Version
from vmbus.server.limits import MAX_RESERVED_TARGETS
from vmbus.server.saved import CannotSave

__all__ = ["memory"]
FAILURE = 0x8000FFFF
CHOICE = Feature.GUEST_SPECIFIED_SIGNAL_PARAMETERS


@pytest.fixture
async def bus(memory: GuestMemory) -> AsyncIterator[Bench]:
    async with bench(memory) as made:
        yield made


async def connect(bus: Bench, features: int = CHOICE, offers: int = 1) -> None:
    for number in range(1, offers + 1):
        bus.server.offer(EchoDevice(scsi(number)))
    await bus.say(m.initiate_contact(Version.V6_0, features=features), connection=4)
    await bus.say(m.RequestOffers())
    await bus.gpadl()


async def open_channel(bus: Bench, connection_id: int, flag: int, *, flags: int = 0) -> list[Message]:
    message = m.OpenChannel2(
        channel_id=1,
        open_id=1,
        gpadl_id=GPADL,
        downstream_page=4,
        connection_id=connection_id,
        event_flag=flag,
        open_flags=flags,
    )
    return await bus.say(message)


async def test_the_guest_chooses_connection_and_flag(bus: Bench) -> None:
    """It signals the one, the host sets the other; retargeting keeps the flag."""
    await connect(bus)
    assert await open_channel(bus, 0x2777, 99) == [m.OpenChannelResult(channel_id=1, open_id=1)]
    assert 0x2777 in bus.ports.event_handlers
    assert 0x2001 not in bus.ports.event_handlers
    assert [(event.vp, event.flag) for event in bus.ports.events] == [(0, 99)]
    await bus.say(m.ModifyChannel(channel_id=1, target_vp=1))
    assert [(event.vp, event.flag, event.closed) for event in bus.ports.events] == [(0, 99, True), (1, 99, False)]


async def test_redirection_alone_lets_it_choose_nothing(bus: Bench) -> None:
    """The long form has the fields at either feature; only one of them makes them count. Unknown flags are ignored."""
    await connect(bus, Feature.CHANNEL_INTERRUPT_REDIRECTION)
    assert await open_channel(bus, 0x2777, 99, flags=0xABD) == [m.OpenChannelResult(channel_id=1, open_id=1)]
    assert 0x2001 in bus.ports.event_handlers
    assert [event.flag for event in bus.ports.events] == [1]


@pytest.mark.parametrize(("connection_id", "flag"), [(1, 99), (4, 99), (0x2777, 2048), (0x2777, 0xFFFF)])
async def test_what_is_taken_or_is_none_refuses_the_open(bus: Bench, connection_id: int, flag: int) -> None:
    """The bus's own connections, and flags past the page. The channel opens all the same with others."""
    await connect(bus)
    assert await open_channel(bus, connection_id, flag) == [
        m.OpenChannelResult(channel_id=1, open_id=1, status=FAILURE)
    ]
    assert await open_channel(bus, 0x2001, 1) == [m.OpenChannelResult(channel_id=1, open_id=1)]
    assert 0x2001 in bus.ports.event_handlers


async def test_a_closed_channels_own_id_can_be_chosen_an_open_ones_cannot(bus: Bench) -> None:
    """IDs belong to who opens first; the other channel's open is refused then, and works after the close."""
    await connect(bus, offers=2)
    assert await open_channel(bus, 0x2002, 2) == [m.OpenChannelResult(channel_id=1, open_id=1)]
    other = m.OpenChannel2(
        channel_id=2, gpadl_id=GPADL, downstream_page=4, target_vp=1, connection_id=0x2002, event_flag=2
    )
    for data in encode_gpadl(2, GPADL, [page_range(range(0x20, 0x28))]):
        await bus.say(data)
    assert await bus.say(other) == [m.OpenChannelResult(channel_id=2, status=FAILURE)]
    await bus.say(m.CloseChannel(channel_id=1))
    assert await bus.say(other) == [m.OpenChannelResult(channel_id=2)]


async def test_answers_about_reserved_channels_have_targets_of_their_own(bus: Bench) -> None:
    """Posted there at once, though the queue of the connection is stuck; with no room there they are lost."""
    await connect(bus, 0)
    bus.server.offer(EchoDevice(scsi(2)))
    reserve = m.OpenReservedChannel(channel_id=1, target_vp=1, target_sint=5, gpadl_id=GPADL, downstream_page=4)
    await bus.say(reserve)
    assert [(out.vp, out.sint) for out in bus.ports.messages] == [(0, 2), (1, 5)]
    bus.ports.room = 0
    await bus.say(m.CloseReservedChannel(channel_id=1, target_vp=0, target_sint=6))
    assert bus.server.counters["messages_lost"] == 1
    assert bus.server.channels[1].reserved is None


@pytest.mark.parametrize(("vp", "sint"), [(2, 5), (0, 16), (0, 0xFFFFFFFF), (0xFFFFFFFF, 0)])
async def test_a_target_that_is_none_loses_the_answer_and_nothing_else(bus: Bench, vp: int, sint: int) -> None:
    await connect(bus, 0)
    message = m.OpenReservedChannel(channel_id=1, target_vp=vp, target_sint=sint, gpadl_id=GPADL, downstream_page=4)
    assert await bus.say(message) == []
    assert bus.server.counters["messages_lost"] == 1
    assert bus.warned("message_lost") == 1


async def test_targets_of_reserved_channels_are_bounded(bus: Bench) -> None:
    """The oldest connection makes room; a reset gives up all of them."""
    await connect(bus, 0)
    for sint in range(16):
        for vp in range(2):
            await bus.say(
                m.OpenReservedChannel(channel_id=1, target_vp=vp, target_sint=sint, gpadl_id=GPADL, downstream_page=4)
            )
            await bus.say(m.CloseReservedChannel(channel_id=1, target_vp=vp, target_sint=sint))
            await trio.testing.wait_all_tasks_blocked()
    assert len([out for out in bus.ports.messages if not out.closed]) == 1 + MAX_RESERVED_TARGETS
    await bus.server.reset()
    assert bus.ports.open == []


async def test_a_reserved_channel_keeps_a_bus_from_being_saved(bus: Bench) -> None:
    """A restored guest would have an ordinary channel in its place."""
    await connect(bus, 0)
    await bus.say(m.OpenReservedChannel(channel_id=1, target_vp=1, target_sint=5, gpadl_id=GPADL, downstream_page=4))
    with pytest.raises(CannotSave, match="reserved"):
        bus.server.save()
