"""Our client against our server in every version, with and without a monitor ID: what each way of signaling takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing

from hypervisor.monitor_page import GROUP_SIZE, GROUPS, MonitorPage
from hypervisor.pages import PAGE_SIZE
from hypervisor.status import HvStatus
from hypervisor.trace import Trace
from tests.pairs.test_vmbus_pair import RING, Closable, Echo, Loop, ToGuest, ask, questions
from vmbus.client.service import VmbusClient, VmbusError, open_vmbus_client
from vmbus.protocol import IMPLEMENTED, Feature
from vmbus.protocol.versions import Ability, Version, abilities, version_text
from vmbus.server.service import VmbusServer, open_vmbus_server

LATENCY = 1000
every_version = pytest.mark.parametrize("version", IMPLEMENTED, ids=version_text)


@attrs.define(eq=False)
class Numbered(ToGuest):
    connection_id: int


class WatchedLoop(Loop):
    """With a hypervisor's look at monitor pages, and counts of what was signaled by what."""

    def __init__(self) -> None:
        super().__init__()
        self.to_host: Counter[int] = Counter()
        """Hypercalls, by connection."""
        self.flags: Counter[int] = Counter()
        """Event flags that were set, by number and by whatever way."""
        self.hypercalls_to_guest = 0
        self.triggers = 0
        self._connections: dict[int, Callable[[], HvStatus]] = {}
        self._watched: list[tuple[int, Callable[[int], object]]] = []

    def signal(self, connection_id: int) -> HvStatus:
        self.to_host[connection_id] += 1
        return super().signal(connection_id)

    def connect_events(self, vp: int, sint: int, flag: int) -> Numbered:
        plain = super().connect_events(vp, sint, flag)
        number = 0x1000 + len(self._connections)

        def deliver() -> HvStatus:
            self.flags[flag] += 1
            return plain.deliver()

        def hypercall() -> HvStatus:
            self.hypercalls_to_guest += 1
            return deliver()

        self._connections[number] = deliver
        return Numbered(lambda: None, hypercall, number)

    def watch_sent(self, page: int) -> Closable:
        return self._watch(page, lambda number: self._connections[number]())

    def watch_received(self, page: int) -> Closable:
        return self._watch(page, super().signal)

    def _watch(self, page: int, signal: Callable[[int], object]) -> Closable:
        entry = page, signal
        self._watched.append(entry)
        return Closable(lambda: self._watched.remove(entry))

    def look(self) -> None:
        for gpa, signal in list(self._watched):
            page = MonitorPage(self.memory.view(gpa, PAGE_SIZE))
            for group in range(GROUPS):
                pending = page.take_pending(group) if page.enabled_groups >> group & 1 else 0
                for bit in range(GROUP_SIZE):
                    if pending >> bit & 1:
                        self.triggers += 1
                        signal(page.parameter(GROUP_SIZE * group + bit).connection_id)

    async def run(self) -> None:
        while True:
            await trio.sleep(0.0001)
            self.look()


@asynccontextmanager
async def running(version: int, echo: Echo) -> AsyncIterator[tuple[WatchedLoop, VmbusServer, VmbusClient]]:
    loop = WatchedLoop()
    async with open_vmbus_server(loop, loop.memory, partition_id=2, trace=Trace(lambda: 0), shared=False) as server:
        server.offer(echo)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.run)
            features = Feature.GUEST_SPECIFIED_SIGNAL_PARAMETERS | Feature.PAUSE_RESUME
            async with open_vmbus_client(loop.platform, versions=[version], features=features) as client:
                await client.wait_offers_delivered()
                yield loop, server, client
            nursery.cancel_scope.cancel()
        assert server.version is None
        assert server.counters["faults"] == 0
    assert loop.event_handlers == {}
    assert loop._watched == []


@every_version
@pytest.mark.parametrize("monitored", [False, True], ids=["signals", "triggers"])
async def test_packets(version: Version, monitored: bool, autojump_clock: trio.testing.MockClock) -> None:
    """Many rings full of packets come through, each way signaled as the version and the offer say, and no other."""
    echo = Echo()
    if monitored:
        echo.offer = attrs.evolve(echo.offer, monitor_latency=LATENCY)
    async with running(version, echo) as (loop, _, client):
        (offer,) = client.offers
        assert offer.monitor_id == (0 if monitored else None)
        channel = await client.open(offer, outgoing_bytes=RING, incoming_bytes=RING)
        await ask(channel, questions(500))
        connection = 2 if version == Version.V0_13 else 0x2000 | offer.channel_id
        flag = 0 if version < Version.V2_4 else offer.channel_id
        assert set(loop.flags) == {flag}
        if monitored:
            assert loop.triggers > 0
            assert (loop.to_host.total(), loop.hypercalls_to_guest) == (0, 0)
        else:
            assert loop.triggers == 0
            assert set(loop.to_host) == {connection}
            assert loop.hypercalls_to_guest == loop.flags[flag]
        await client.close(channel)
        assert echo.ended == 1


@every_version
async def test_leaving_and_coming_back(version: Version, autojump_clock: trio.testing.MockClock) -> None:
    """UNLOAD, answered or not, and a second connection that finds all as it was."""
    echo = Echo()
    echo.offer = attrs.evolve(echo.offer, monitor_latency=LATENCY)
    async with running(version, echo) as (_, server, client):
        for _ in range(2):
            channel = await client.open(client.offers[0], outgoing_bytes=RING, incoming_bytes=RING)
            await ask(channel, questions(5))
            await client.unload()
            await trio.testing.wait_all_tasks_blocked()
            assert server.version is None
            await client.connect()
            await client.wait_offers_delivered()
            assert server.version == version
            assert [contact.supported for contact in client.state.contacts] == [True]


@every_version
async def test_unload_is_posted_before_the_guest_is_gone(
    version: Version, autojump_clock: trio.testing.MockClock
) -> None:
    """Where it has no answer too, and the hypervisor takes it only at the fourth try."""
    async with running(version, Echo()) as (loop, _, client):
        loop.busy = 3
        await client.unload()
        assert loop.busy == 0


@every_version
async def test_moving_interrupts(version: Version, autojump_clock: trio.testing.MockClock) -> None:
    """MODIFY_CHANNEL from 4.1 on, waited for from 5.3 on; a trigger's parameter follows."""
    echo = Echo()
    echo.offer = attrs.evolve(echo.offer, monitor_latency=LATENCY)
    async with running(version, echo) as (loop, server, client):
        channel = await client.open(client.offers[0], outgoing_bytes=RING, incoming_bytes=RING)
        if Ability.MODIFY_CHANNEL not in abilities(version):
            with pytest.raises(VmbusError, match="MODIFY_CHANNEL"):
                await client.modify(channel, 1)
            return
        before = set(loop._connections)
        await client.modify(channel, 1)
        await trio.testing.wait_all_tasks_blocked()
        (moved,) = set(loop._connections) - before
        page = MonitorPage(loop.memory.view(client.state.pages.to_child, PAGE_SIZE))
        assert page.parameter(0).connection_id == moved
        assert server.channels[1].target_vp == 1
        await ask(channel, questions(5))


async def test_versions_that_there_are_not(autojump_clock: trio.testing.MockClock) -> None:
    """Each refusal leads to the next; what was asked and answered is kept."""
    loop = WatchedLoop()
    async with (
        open_vmbus_server(
            loop, loop.memory, partition_id=2, trace=Trace(lambda: 0), shared=False, max_version=Version.V1_1
        ),
        open_vmbus_client(loop.platform, versions=[0x70000, Version.V2_4, Version.V1_1]) as client,
    ):
        contacts = client.state.contacts
        assert [(contact.version, contact.supported) for contact in contacts] == [
            (0x70000, False),
            (Version.V2_4, False),
            (Version.V1_1, True),
        ]
        assert {(contact.asked_bytes, contact.answer_bytes) for contact in contacts} == {(40, 16)}
