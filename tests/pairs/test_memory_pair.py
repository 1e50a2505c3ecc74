"""The real dynamic memory VSP against the real VSC and a guest's page heap, over a channel in plain memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import attrs
import pytest
import trio

from hypervisor.wire import BadValue
from tests.doubles.input import Served, serving
from tests.vsp_vsc.memory.test_guest import Platform
from vsp_vsc.input_device import NoDriver
from vsp_vsc.memory.guest import BalloonDriver, floor_pages
from vsp_vsc.memory.protocol import RING_BYTES, VERSION_2_0, Pages
from vsp_vsc.memory.ranges import PageSet
from vsp_vsc.memory.session import Asked, Report
from vsp_vsc.memory.vsc import open_memory
from vsp_vsc.memory.vsp import MemoryVsp

MIB = 256
"""Pages."""
RAM = 256 * MIB


@attrs.define(eq=False)
class Owner:
    """Notes what happens."""

    ram: PageSet = attrs.Factory(lambda: PageSet(Pages(0, RAM)))
    most_pages: int = 4 * RAM
    report: Report | None = None
    has: PageSet = attrs.Factory(PageSet)
    said: list[tuple[object, ...]] = attrs.Factory(list)
    beginnings: int = 0

    def began(self) -> None:
        self.beginnings += 1

    def reported(self, report: Report) -> None:
        self.report = report

    def restored(self, pages: int) -> None:
        self.said.append(("restored", pages))

    def given(self, runs: Sequence[Pages]) -> None:
        for run in runs:
            self.has.add(run)

    def balloon_done(self, asked: int, given: int) -> None:
        self.said.append(("balloon", asked, given))

    def unballoon_done(self, pages: int) -> None:
        self.said.append(("unballoon", pages))

    def hot_add_done(self, offered: Pages, taken: int, never_again: bool) -> None:
        self.said.append(("hot add", offered, taken, never_again))
        self.ram.add(offered)

    def session_ended(self, offered: Pages | None) -> None:
        self.said.append(("ended", offered))


@attrs.define(eq=False)
class Pair:
    """Both ends."""

    served: Served[MemoryVsp]
    owner: Owner
    platform: Platform
    driver: BalloonDriver

    async def answered(self) -> None:
        """Until nothing is under way."""
        while self.served.vsp.asked is not Asked.NOTHING:
            await self.served.vsp.changed()


class Kernel(Platform):
    """With a clock that all wait for."""

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    """A guest of 256 MiB, its driver ready."""
    owner, platform = Owner(), Kernel(256)
    make = partial(MemoryVsp, owner=owner)
    async with (
        serving(make, ring_bytes=RING_BYTES) as served,
        open_memory(served.guest_end, platform) as driver,  # type: ignore[arg-type]
    ):
        while not served.vsp.ready:
            await served.vsp.changed()
        yield Pair(served, owner, platform, driver)


async def test_out_and_back(autojump_clock: trio.abc.Clock) -> None:
    """64 MiB into the balloon and back, each page exactly once on either side; then memory that there was not."""
    async with pair() as both:
        vsp, heap = both.served.vsp, both.platform.heap
        assert both.driver.version == VERSION_2_0
        before = heap.available
        vsp.balloon(64 * MIB)
        await both.answered()
        assert both.driver.most_pages == 4 * RAM
        assert both.owner.said == [("balloon", 64 * MIB, 64 * MIB)]
        assert both.owner.beginnings == 1
        assert list(both.driver.ballooned) == list(vsp.ballooned) == list(both.owner.has)
        assert heap.available == before - 64 * MIB
        assert vsp.unballoon(10 * MIB) == 10 * MIB
        await both.answered()
        assert vsp.unballoon(RAM) == 54 * MIB
        await both.answered()
        assert both.owner.said[1:] == [("unballoon", 10 * MIB), ("unballoon", 54 * MIB)]
        assert (heap.available, both.driver.ballooned.total) == (before, 0)
        vsp.hot_add(Pages(RAM, 128 * MIB))
        await both.answered()
        assert both.owner.said[-1] == ("hot add", Pages(RAM, 128 * MIB), 128 * MIB, False)
        assert heap.total == 384 * MIB


async def test_pages_in_thousands_of_pieces(autojump_clock: trio.abc.Clock) -> None:
    """A guest whose memory is all in pieces fills message after message, through rings of 16 KiB, and has all back."""
    async with pair() as both:
        heap = both.platform.heap
        singles = list(range(0x100, RAM, 2))
        both.platform.pages._starts, both.platform.pages._counts = singles, [1] * len(singles)
        wanted = heap.available - floor_pages(RAM)
        assert wanted > 5000
        both.served.vsp.balloon(wanted + 512)
        await both.answered()
        assert both.owner.said == [("balloon", wanted + 512, wanted)]
        assert both.owner.has.total == wanted
        assert len(both.owner.has) == wanted
        while both.served.vsp.ballooned.total:
            both.served.vsp.unballoon(RAM)
            await both.answered()
        assert both.driver.ballooned.total == 0
        assert heap.available == wanted + floor_pages(RAM)


async def test_reports_come_each_second(autojump_clock: trio.abc.Clock) -> None:
    """What a program uses is in the next one; what was ballooned and the floor are in it, too."""
    async with pair() as both:
        await trio.sleep(1.5)
        idle = both.owner.report
        assert idle is not None
        await both.platform.heap.use(50 << 20)
        await trio.sleep(1)
        busy = both.owner.report
        assert busy is not None
        assert busy.committed == idle.committed + 50 * MIB
        assert busy.available == idle.available - 50 * MIB
        session = both.served.vsp.session
        assert session is not None
        assert session.reports == 2


async def test_the_end_of_a_driver(autojump_clock: trio.abc.Clock) -> None:
    """The balloon ends with the channel, on both sides; nothing can be asked any more."""
    async with pair() as both:
        both.served.vsp.balloon(8 * MIB)
        await both.answered()
        kept, driver, vsp = both.platform.heap, both.driver, both.served.vsp
        available = kept.available
    assert kept.available == available + 8 * MIB
    assert driver.ballooned.total == vsp.ballooned.total == 0
    assert both.owner.said[-1] == ("ended", None)
    with pytest.raises(NoDriver):
        vsp.balloon(1)


async def test_what_a_trace_says(autojump_clock: trio.abc.Clock) -> None:
    """Each question and each answer in words."""
    async with pair() as both:
        both.served.vsp.balloon(8 * MIB)
        await both.answered()
        both.served.vsp.balloon(RAM)
        await both.answered()
        both.served.vsp.unballoon(4 * MIB)
        await both.answered()
        both.served.vsp.hot_add(Pages(RAM, 512))
        await both.answered()
        given = both.owner.said[1][2]
        assert isinstance(given, int)
        told = [event.words for event in both.served.events if event.event.startswith("dynamic-memory")]
        assert told == [
            "dynamic-memory: version 2.0, balloon and hot add",
            "dynamic-memory: balloon: 8 MiB wanted",
            "dynamic-memory: balloon: 8 MiB given",
            "dynamic-memory: balloon: 256 MiB wanted",
            f"dynamic-memory: balloon: {given // MIB} MiB given of 256 MiB: it has no more to give",
            "dynamic-memory: balloon: 4 MiB go back",
            "dynamic-memory: balloon: it has 4 MiB again",
            "dynamic-memory: hot add: 512 pages from GPA 0x10000000",
            "dynamic-memory: hot add: 2 MiB of 2 MiB taken",
        ]


async def test_a_saved_balloon_is_of_the_guests_own_pages(autojump_clock: trio.abc.Clock) -> None:
    """One with others is refused whole: nobody gives away what the guest has not."""
    async with pair() as both:
        vsp = both.served.vsp
        vsp.balloon(8 * MIB)
        await both.answered()
        session = vsp.session
        assert session is not None
        assert list(vsp.load(session.save()).ballooned) == list(session.ballooned)
        kept, session.ballooned = session.ballooned, PageSet(*session.ballooned, Pages(RAM + 512, 1))
        with pytest.raises(BadValue, match="pages that the guest does not have"):
            vsp.load(session.save())
        session.ballooned = kept
