"""Pages that a guest gives to its connection: what is taken, who gets a monitor ID, and what the pages hold."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, NoReturn

import msgspec
import pytest
import trio
import trio.testing

from hypervisor.memory import GuestMemory, MemoryBlock
from hypervisor.monitor_page import TRIGGERS, MonitorPage, MonitorParameter
from hypervisor.pages import PAGE_SIZE, Access
from hypervisor.status import HvError, HvStatus
from hypervisor.trace import Trace
from tests.doubles.vmbus_guest import ScriptedGuest, scsi
from tests.doubles.vmbus_ports import FakePorts
from vmbus.channel import Channel
from vmbus.gpadl import encode_gpadl, page_range
from vmbus.protocol import messages as m
from vmbus.protocol.features import Feature
from vmbus.protocol.identifiers import INTERRUPTS_OFF
from vmbus.protocol.pages import ConnectionPages
from vmbus.protocol.versions import IMPLEMENTED, VERSIONS, Ability, Version, abilities
from vmbus.server import actions as act
from vmbus.server.connection import Phase
from vmbus.server.opened import OpenedChannel
from vmbus.server.pages import PagesInUse, usable
from vmbus.server.saved import CannotRestore
from vmbus.server.service import VmbusServer, open_vmbus_server

PAGES = ConnectionPages(0x1000, 0x2000, 0x3000)
LATENCY = 1000


def contacted(version: int = Version.V5_3, pages: ConnectionPages = PAGES, *, features: int = 0) -> ScriptedGuest:
    guest = ScriptedGuest()
    guest.say(m.initiate_contact(version, pages=pages, features=features))
    return guest


def offers(guest: ScriptedGuest) -> list[m.OfferChannel]:
    return [said for said in guest.request_offers() if isinstance(said, m.OfferChannel)]


def test_abilities_come_and_one_goes() -> None:
    """Every version can do what its predecessor could, but for the interrupt page, which ends with 2.4."""
    for before, after in pairwise(VERSIONS):
        lost = abilities(before.version) & ~abilities(after.version)
        assert lost == (Ability.INTERRUPT_PAGE if after.version == Version.V2_4 else Ability.NONE)
        assert after.adds not in abilities(before.version)
    assert abilities(None) == abilities(0x70000) == Ability.NONE


@pytest.mark.parametrize("version", IMPLEMENTED)
def test_pages_that_count(version: int) -> None:
    """Monitor pages in every version; the interrupt page below 2.4, where a contact can name one."""
    guest = contacted(version)
    assert guest.state.version == version
    interrupt = 0x1000 if version < Version.V2_4 else 0
    assert guest.last(act.UsePages) == act.UsePages(ConnectionPages(interrupt, 0x2000, 0x3000))


@pytest.mark.parametrize("version", IMPLEMENTED)
@pytest.mark.parametrize(
    "pages",
    [
        ConnectionPages(0, 0x2000, 0),
        ConnectionPages(0, 0, 0x2000),
        ConnectionPages(0, 0x2000, 0x2000),
        ConnectionPages(0, 0x2000, 0x3001),
        ConnectionPages(0, 0x2000, 0x9000),
    ],
    ids=["one", "the other", "one for both", "unaligned", "not there"],
)
def test_pages_that_cannot_be(version: int, pages: ConnectionPages) -> None:
    """A failed connection: from 2.4 on the version is supported and the state says so, below it is a refusal."""
    guest = ScriptedGuest()
    guest.state._usable = lambda pages: 0x9000 not in pages.addresses
    (answer,) = guest.say(m.initiate_contact(version, pages=pages))
    assert isinstance(answer, m.VersionResponse2 if version >= Version.V6_0 else m.VersionResponse)
    assert (answer.supported, answer.connection_state) == ((1, 2) if version >= Version.V2_4 else (0, 0))
    assert (guest.state.phase, guest.faults) == (Phase.DISCONNECTED, ["refused_contact"])
    assert guest.asked(act.UsePages) == []


def test_the_oldest_version_has_no_answer_to_unload() -> None:
    """0.13 has no UNLOAD_COMPLETE; the pages are the guest's again all the same."""
    for version, answers in ((Version.V0_13, []), (Version.V1_1, [m.UnloadComplete()])):
        guest = contacted(version)
        assert guest.say(m.Unload()) == answers
        assert guest.state.phase is Phase.DISCONNECTED
        assert guest.last(act.UsePages) == act.UsePages(ConnectionPages())


def test_monitor_ids_are_the_lowest_free_and_stay_with_the_id() -> None:
    """In the order of offers; only for those that ask; the ID comes back with the channel's."""
    guest = contacted()
    handles = [guest.offer(scsi(1))[0], *(guest.offer(scsi(n, monitor_latency=LATENCY))[0] for n in (2, 3))]
    said = offers(guest)
    assert [(offer.monitor_id, offer.monitor_allocated) for offer in said] == [(0xFF, 0), (0, 1), (1, 1)]
    assert said[1].encode()[188:192] == bytes((0, 1, 1, 0))
    guest.rescind(handles[1])
    guest.release(2)
    _, (again,) = guest.offer(scsi(4, monitor_latency=LATENCY))
    assert isinstance(again, m.OfferChannel)
    assert (again.channel_id, again.monitor_id) == (2, 0)


def test_there_are_128_monitors() -> None:
    """Whoever comes after that is offered without one."""
    guest = contacted()
    for number in range(TRIGGERS + 2):
        guest.offer(scsi(number, monitor_latency=LATENCY))
    ids = [offer.monitor_id for offer in offers(guest)]
    assert ids == [*range(TRIGGERS), 0xFF, 0xFF]


def test_without_monitor_pages_nobody_has_a_monitor() -> None:
    guest = contacted(pages=ConnectionPages())
    guest.offer(scsi(1, monitor_latency=LATENCY))
    assert [offer.monitor_allocated for offer in offers(guest)] == [0]


def test_the_next_connection_may_have_none() -> None:
    """A guest that comes back without monitor pages is offered the same devices without monitors."""
    guest = contacted()
    guest.offer(scsi(1, monitor_latency=LATENCY))
    assert [offer.monitor_allocated for offer in offers(guest)] == [1]
    guest.say(m.Unload())
    guest.contact()
    assert [(offer.monitor_id, offer.monitor_allocated) for offer in offers(guest)] == [(0xFF, 0)]


@pytest.mark.parametrize(("vp", "monitor"), [(0, 0), (INTERRUPTS_OFF, None)])
def test_who_wants_no_interrupts_gets_no_notifications(vp: int, monitor: int | None) -> None:
    guest = contacted()
    guest.offer(scsi(1, monitor_latency=LATENCY))
    guest.request_offers()
    guest.gpadl()
    guest.open(vp=vp)
    opened: Any = guest.last(act.OpenDevice)
    assert opened.monitor_id == monitor


def test_other_monitor_pages_while_nobody_uses_them() -> None:
    """MODIFY_CONNECTION: refused while an open channel has a monitor, and for pages that cannot be."""
    guest = contacted(Version.V6_0, features=Feature.MODIFY_CONNECTION)
    guest.offer(scsi(1, monitor_latency=LATENCY))
    guest.request_offers()
    guest.gpadl_and_open()

    def modify(to_child: int, to_root: int) -> int:
        (answer,) = guest.say(
            m.ModifyConnection(parent_to_child_monitor_page=to_child, child_to_parent_monitor_page=to_root)
        )
        assert isinstance(answer, m.ModifyConnectionResponse)
        return answer.connection_state

    assert modify(0x5000, 0x6000) == 2
    guest.close()
    assert modify(0x5000, 0) == 2
    assert modify(0x5000, 0x5000) == 2
    assert guest.state.pages == ConnectionPages(0, 0x2000, 0x3000)
    assert modify(0x5000, 0x6000) == 0
    assert guest.last(act.UsePages) == act.UsePages(ConnectionPages(0, 0x5000, 0x6000))
    assert modify(0, 0) == 0
    assert guest.state.pages == ConnectionPages()


# ------------------------------------------------------------------------------------------------------------ in use


class Used:
    """Pages of a guest with eight pages of memory, in use through ports that only note."""

    def __init__(self, pages: ConnectionPages = PAGES) -> None:
        self.block = MemoryBlock.allocate(8 * PAGE_SIZE, "guest")
        self.memory = GuestMemory()
        self.memory.map_block(0, self.block, 0, 8, Access.ALL)
        self.ports = FakePorts()
        self.signaled: list[list[int]] = []
        self.pages = PagesInUse(self.ports, self.memory, pages, self.signaled.append)

    def page(self, address: int) -> MonitorPage:
        return MonitorPage(self.memory.view(address, PAGE_SIZE))

    @property
    def watched(self) -> list[tuple[str, int]]:
        return [(way, page) for way, page, watch in self.ports.watched if not watch.closed]


def test_pages_have_to_be_the_guests() -> None:
    used = Used()
    assert usable(used.memory, PAGES)
    assert not usable(used.memory, ConnectionPages(0, 0x2000, 0x8000))
    used.memory.map_block(3, used.block, 3, 1, Access.READ)
    assert not usable(used.memory, PAGES)


def test_a_bit_then_the_shared_flag() -> None:
    """Below 2.4 the guest is woken by flag 0, whatever the channel; its own bits come by connection 2."""
    used = Used(ConnectionPages(0x1000))
    events = used.pages.connect_events(1, 9, 9, None)
    events.signal()
    assert [(event.vp, event.flag, event.signals) for event in used.ports.events] == [(1, 0, 1)]
    assert used.memory.read(0x1000, 4) == bytes((0, 2, 0, 0))
    used.memory.write(0x1800, bytes((0b110,)))
    used.ports.event_handlers[2]()
    assert used.signaled == [[1, 2]]
    used.pages.close()
    assert used.ports.event_handlers == {}


def test_monitors_are_watched_while_one_is_in_use() -> None:
    """Both pages, from the first open to the last close; groups are enabled as they have a monitor in use."""
    used = Used()
    assert used.watched == []
    used.pages.use_monitor(0, LATENCY, 0x2001)
    used.pages.use_monitor(40, 2 * LATENCY, 0x2002)
    assert used.watched == [("sent", 0x2000), ("received", 0x3000)]
    events = used.pages.connect_events(0, 2, 2, 40)
    sent, received = used.page(0x2000), used.page(0x3000)
    assert (sent.enabled_groups, received.enabled_groups) == (0b11, 0b11)
    assert received.parameter(40) == MonitorParameter(0x2002)
    assert sent.parameter(40) == MonitorParameter(used.ports.events[0].connection_id)
    assert (sent.latency(1), received.latency(1)) == (2 * LATENCY, 2 * LATENCY)
    events.signal()
    assert (sent.pending(1), used.ports.events[0].signals) == (1 << 8, 0)
    sent.take_pending(1)
    used.pages.release_monitor(40)
    assert (sent.enabled_groups, len(used.watched)) == (0b01, 2)
    used.pages.release_monitor(0)
    used.pages.release_monitor(0)
    assert used.watched == []
    assert used.memory.read(0x2000, 2 * PAGE_SIZE) == bytes(2 * PAGE_SIZE)


def test_a_watch_that_cannot_be_had() -> None:
    """Both or neither, and no monitor is in use then."""
    used = Used()
    refuse = used.ports.watch_received
    used.ports.watch_received = _refuse  # type: ignore[method-assign]
    with pytest.raises(HvError):
        used.pages.use_monitor(0, LATENCY, 0x2001)
    assert used.watched == []
    used.ports.watch_received = refuse  # type: ignore[method-assign]
    used.pages.use_monitor(0, LATENCY, 0x2001)
    assert len(used.watched) == 2
    assert used.page(0x3000).enabled_groups == 1


def _refuse(page: int) -> NoReturn:
    raise HvError(HvStatus.INVALID_CONNECTION_ID)


def test_closing_ends_every_watch() -> None:
    used = Used()
    used.pages.use_monitor(3, LATENCY, 0x2001)
    used.pages.close()
    assert used.watched == []
    assert used.memory.read(0x2000, 2 * PAGE_SIZE) == bytes(2 * PAGE_SIZE)


# ------------------------------------------------------------------------------------------------- saved and restored


class Idle:
    """A device with a monitor ID that does nothing, and nothing of which has to be kept."""

    def __init__(self, number: int) -> None:
        self.offer = scsi(number, monitor_latency=LATENCY)

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        await trio.sleep_forever()

    def save(self, channel_id: int) -> bytes:
        return b""

    def load(self, data: bytes) -> None:
        pass


@asynccontextmanager
async def serving(memory: GuestMemory, *numbers: int) -> AsyncIterator[tuple[FakePorts, VmbusServer]]:
    ports = FakePorts()
    async with open_vmbus_server(ports, memory, partition_id=7, trace=Trace(lambda: 0), shared=False) as server:
        for number in numbers:
            server.offer(Idle(number))
        yield ports, server


async def say(ports: FakePorts, *messages: m.Message | bytes) -> None:
    for message in messages:
        ports.message_handlers[1](message if isinstance(message, bytes) else message.encode())
        await trio.testing.wait_all_tasks_blocked()


async def test_a_restored_channel_keeps_its_monitor() -> None:
    """The guest goes on with the ID that it was told, though a new bus would give the lowest; both pages say so."""
    block = MemoryBlock.allocate(64 * PAGE_SIZE, "guest")
    memory = GuestMemory()
    memory.map_block(0, block, 0, 64, Access.ALL)
    async with serving(memory, 5) as (ports, server):
        await say(ports, m.initiate_contact(Version.V4_1, pages=PAGES), m.RequestOffers())
        server.offer(Idle(3))
        await say(ports, *encode_gpadl(2, 0x10, [page_range(range(16, 24))]))
        await say(ports, m.OpenChannel(channel_id=2, open_id=2, gpadl_id=0x10, downstream_page=4))
        assert [channel.monitor_id for channel in server.channels.values()] == [0, 1]
        saved = server.save()
    memory.write(PAGES.to_child, bytes(2 * PAGE_SIZE))
    async with serving(memory, 3, 5) as (ports, server):
        server.restore(saved)
        await trio.testing.wait_all_tasks_blocked()
        by_id = sorted(server.channels.items())
        assert [(number, channel.monitor_id) for number, channel in by_id] == [(1, 0), (2, 1)]
        page = MonitorPage(memory.view(PAGES.to_root, PAGE_SIZE))
        assert page.parameter(1) == MonitorParameter(0x2002)
        assert page.parameter(0) == MonitorParameter(0)
    twice = msgspec.structs.replace(
        saved, channels=[msgspec.structs.replace(channel, monitor_id=1) for channel in saved.channels]
    )
    async with serving(memory, 3, 5) as (_, server):
        with pytest.raises(CannotRestore):
            server.restore(twice)
