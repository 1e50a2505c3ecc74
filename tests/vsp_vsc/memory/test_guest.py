"""The guest's end of dynamic memory: Linux's floor, its units, its answers."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.wire import WireError
from partitions.child.memory import Memory
from partitions.child.pages import PageAllocator
from tests.vsp_vsc.memory.test_session import packet, ranges
from vmbus.ring import Packet
from vsp_vsc.memory.guest import BalloonDriver, Refused, floor_pages
from vsp_vsc.memory.protocol import MAX_RANGES, Pages

MIB = 256
"""Pages."""


class Platform:
    """A kernel's memory that nobody touches, and time that is told."""

    def __init__(self, mebibytes: int) -> None:
        self.memory = memoryview(bytearray(0))
        self.slept = 0.0
        self.touches: list[tuple[int, int]] = []
        self.pages = PageAllocator(self.memory)
        self.pages.limit = mebibytes * MIB
        self.pages._starts, self.pages._counts = [0x100], [mebibytes * MIB - 0x100]
        self.heap = Memory(self.pages, self)

    def touched(self, gpn: int, count: int) -> None:
        self.touches.append((gpn, count))

    async def sleep(self, seconds: float) -> None:
        self.slept += seconds


def driver(mebibytes: int) -> BalloonDriver:
    """With a heap of its own."""
    return BalloonDriver(Platform(mebibytes).heap)


def answers(packets: list[Packet]) -> list[tuple[int, bool, list[tuple[int, int]]]]:
    """Balloon responses: type, whether there are more, ranges."""
    found = []
    for one in packets:
        kind, size, _, _, counts = struct.unpack_from("<HHIII", one.payload)
        words = struct.unpack(f"<{counts >> 1}Q", one.payload[16:])
        assert size == 16 + 8 * (counts >> 1)
        found.append((kind, bool(counts & 1), [(word & (1 << 40) - 1, word >> 40) for word in words]))
    return found


@pytest.mark.parametrize(
    ("ram", "floor"),
    [(16, 16), (32, 24), (128, 72), (512, 168), (2048, 360), (8192, 744), (32768, 1512)],
)
def test_floor(ram: int, floor: int) -> None:
    """E28: what Linux keeps available, exactly, in MiB of RAM and of floor; ballooning stops there."""
    assert floor_pages(ram * MIB) == floor * MIB
    memory = driver(ram)
    available = memory._heap.available
    memory.take(packet(6, struct.pack("<II", 0xFFFF_FFFF, 0)))
    assert memory.ballooned.total == max(0, available - floor * MIB)
    assert memory._heap.available == min(available, floor * MIB)


def test_balloon_in_large_units_and_then_in_pages() -> None:
    """2 MiB at multiples of 2 MiB as long as there are some, then single pages; messages of at most a page."""
    heap = Platform(1024).heap
    for first in range(0x100, 1024 * MIB, 512):  # one page of every 2 MiB is in use, but of the last 8 MiB
        if first < 1016 * MIB:
            heap._pages._starts[-1:] = [heap._pages._starts[-1], first + 100]
            whole = heap._pages._counts.pop()
            used = first + 100 - heap._pages._starts[-2] - 1
            heap._pages._counts += [used, whole - used - 1]
    memory = BalloonDriver(heap)
    got = answers(memory.take(packet(6, struct.pack("<II", 4 * 512 + 700, 0))))
    assert [(kind, more) for kind, more, _ in got] == [(7, True), (7, False)]
    runs = [run for _, _, named in got for run in named]
    assert [count for _, count in runs] == [512] * 4 + [1] * 700
    assert all(first % 512 == 0 for first, count in runs if count == 512)
    assert len(got[0][2]) == MAX_RANGES


def test_a_guest_at_its_floor_gives_nothing() -> None:
    """One response without ranges."""
    assert answers(driver(16).take(packet(6, struct.pack("<II", 512, 0)))) == [(7, False, [])]


def test_pages_come_back() -> None:
    """One answer to all messages; a page that is not in the balloon is the host's mistake."""
    memory = driver(64)
    ((_, _, given),) = answers(memory.take(packet(6, struct.pack("<II", 1024, 0))))
    assert len(given) == 2
    assert memory.take(packet(8, struct.pack("<II", 1, 1) + ranges(given[0]))) == []
    (answer,) = memory.take(packet(8, struct.pack("<II", 0, 1) + ranges(given[1])))
    assert struct.unpack_from("<HH", answer.payload) == (9, 8)
    assert memory.ballooned.total == 0
    with pytest.raises(WireError):
        memory.take(packet(8, struct.pack("<II", 0, 1) + ranges(given[1])))


def test_memory_is_added_or_refused() -> None:
    """Taken as a whole; without hot add, none and never; what it has already, none for now."""
    memory = driver(64)
    request = packet(10, ranges((64 * MIB, 512)))
    assert struct.unpack_from("<HHIII", memory.take(request)[0].payload)[3:] == (512, 1)
    assert memory._heap.total == 66 * MIB
    assert struct.unpack_from("<HHIII", memory.take(request)[0].payload)[3:] == (0, 0)
    memory._heap.hot_add = False
    assert struct.unpack_from("<HHIII", memory.take(request)[0].payload)[3:] == (0, 1)


def test_committed_counts_balloon_and_floor() -> None:
    """What a guest reports as committed does not fall when it gives pages away."""
    memory = driver(256)

    def report() -> tuple[int, int]:
        available, committed = struct.unpack_from("<QQ", memory.report().payload, 8)
        return available, committed

    available, committed = report()
    assert committed == 0x100 + floor_pages(256 * MIB)
    memory.take(packet(6, struct.pack("<II", 2048, 0)))
    assert report() == (available - 2048, committed + 2048)


def test_versions_from_the_newest() -> None:
    """2.0, 1.0, 0.3, the last with the flag that says so; then the driver gives up."""
    memory = driver(64)
    asked = [memory.begin()]
    asked += memory.take(packet(2, bytes(8)))
    asked += memory.take(packet(2, bytes(8)))
    with pytest.raises(Refused):
        memory.take(packet(2, bytes(8)))
    assert [struct.unpack_from("<II", one.payload, 8) for one in asked] == [(0x20000, 0), (0x10000, 0), (3, 1)]


async def test_programs_use_memory() -> None:
    """Cache goes first, then pages are swapped, which takes time; what is touched comes in where there is room."""
    platform = Platform(65)
    memory = platform.heap
    memory.cache(16 << 20)
    assert (memory.free, memory.cached) == (48 << 20, 16 << 20)
    assert await memory.use(60 << 20) == 0
    assert (memory.free, memory.cached, memory.active) == (0, 4 << 20, 60 << 20)
    assert await memory.use(8 << 20) == pytest.approx(0.1024)
    assert (memory.used, memory.swapped, memory.cached) == (68 << 20, 4 << 20, 0)
    assert await memory.touch() == pytest.approx(2 * 0.1024)
    memory.online(Pages(65 * MIB, 512))
    assert await memory.touch() == pytest.approx(0.0512 + 2 * 0.0512)
    assert memory.swapped == 2 << 20
    memory.release(6 << 20)
    assert (memory.used, memory.swapped) == (62 << 20, 0)
    memory.release()
    assert (memory.used, memory.size) == (0, 67 << 20)
    assert memory.available == 66 * MIB
    with pytest.raises(MemoryError, match="swap"):
        await memory.use(200 << 20)
    assert memory.used == 0


async def test_the_kernel_has_room_where_programs_have_all() -> None:
    """Adjacent pages of a program's are swapped out for it, as long as there is swap; the account stays right."""
    platform = Platform(65)
    memory, pages = platform.heap, platform.pages
    await memory.use(70 << 20)
    assert (memory.available, memory.swapped) == (0, 6 << 20)
    first = pages.allocate(20)
    assert (memory.available, memory.swapped, memory.used) == (0, (6 << 20) + 20 * 4096, 70 << 20)
    pages.free(first, 20)
    assert memory.available == 20
    memory.swap_size = memory.swapped
    with pytest.raises(MemoryError):
        pages.allocate(21)
    memory.swap_size = 1 << 40
    with pytest.raises(MemoryError):
        pages.allocate(66 * MIB)
    assert memory.used == 70 << 20


async def test_what_programs_touch_is_told() -> None:
    """As runs of pages: what they take, of what they have as much as they go through, and no page that they lack."""
    platform = Platform(65)
    memory = platform.heap
    await memory.use(20 << 20)
    (first,) = platform.touches
    assert first == (45 * MIB, 20 * MIB)
    await memory.touch(4 << 20)
    assert platform.touches[1:] == [(45 * MIB, 4 * MIB)]
    await memory.use(80 << 20)  # of which much is swapped out at once
    platform.touches.clear()
    await memory.touch()
    assert sum(count for _, count in platform.touches) << 12 == memory.used - memory.swapped
    assert await memory.touch(0) == 0
    memory.release()
    platform.touches.clear()
    await memory.touch()
    assert platform.touches == []


@pytest.mark.parametrize(
    ("ram", "floor"),
    [(32, 24), (128, 72), (512, 168), (2048, 360), (8192, 744), (32768, 1512)],
)
async def test_a_guest_that_uses_all_swaps_down_to_the_floor(ram: int, floor: int) -> None:
    """E28 for a guest with swap: the balloon stops where free pages and those that programs could do without are as
    many as the floor; what is swapped out is what programs have no memory for, to the page. Without swap: nothing.
    """
    heap = Platform(ram).heap
    memory = BalloonDriver(heap)
    await heap.use((ram - 1) << 20)
    for swap, given_up in ((0, 0), (1 << 40, (ram - 1 - floor) * MIB)):
        heap.swap_size = swap
        memory.take(packet(6, struct.pack("<II", 0xFFFF_FFFF, 0)))
        assert memory.ballooned.total == heap.swapped_pages == given_up
        assert memory.busy() == pytest.approx(given_up * 0.000_1)
        assert memory.busy() == 0
    assert (heap.available, heap.used) == (0, (ram - 1) << 20)
    assert struct.unpack_from("<Q", memory.report().payload, 24) == (given_up,)


async def test_free_pages_go_before_used_ones_and_idle_ones_before_active_ones() -> None:
    """Chosen by the guest's seed, in the balloon's units as far as there are some; what is touched last stays."""

    async def ballooned(seed: int, mebibytes: int, active: int = 80) -> tuple[Memory, list[Pages]]:
        heap = Platform(300).heap
        heap.swap_seed = seed
        await heap.use(259 << 20)
        await heap.touch(active << 20)
        memory = BalloonDriver(heap)
        memory.take(packet(6, struct.pack("<II", mebibytes * MIB, 0)))
        assert memory.ballooned.total == mebibytes * MIB
        return heap, list(memory.ballooned)

    heap, _ = await ballooned(0, 40)
    assert heap.swapped == 0
    heap, runs = await ballooned(0, 41)
    assert (heap.swapped, heap.used, heap.available) == (1 << 20, 259 << 20, 0)
    heap, runs = await ballooned(0, 140)
    assert heap.swapped == 100 << 20
    active = [run for run in heap._resident if run.first < (41 + 80) * MIB]
    assert active[0].first == 41 * MIB
    assert active[0].count >= 80 * MIB
    assert len(runs) <= 55
    assert runs == (await ballooned(0, 140))[1] != (await ballooned(1, 140))[1]
    heap, _ = await ballooned(0, 180, active=200)
    assert (heap.swapped, heap.active) == (140 << 20, 119 << 20)
    assert not heap._resident.meets(Pages(241 * MIB, 59 * MIB))


@given(
    st.lists(st.tuples(st.sampled_from(["use", "release", "in", "out", "add"]), st.integers(1, 3000)), max_size=20),
    st.sampled_from([0, 1 << 20, 1 << 40]),
)
def test_pages_are_somewhere_and_once(steps: list[tuple[str, int]], swap: int) -> None:
    """I12: kernel, programs, balloon and free pages are all that there are; the balloon never goes below the floor.

    Nor does it have programs use more or less, or swap where there is no room for it, or while there are free pages.
    """
    memory = driver(48)
    heap = memory._heap
    assert isinstance(heap, Memory)
    heap.swap_size = swap
    for what, pages in steps:
        match what:
            case "use":
                for run in heap._take_pages(min(pages, heap.available)):
                    heap._resident.add(run)
            case "release":
                heap.release(pages << 12)
            case "in":
                before, could, used, out = heap.available, heap.swappable, heap.used, heap.swapped
                memory.take(packet(6, struct.pack("<II", pages, 0)))
                assert heap.available + heap.swappable >= min(before + could, floor_pages(heap.total))
                assert heap.used == used
                assert out == heap.swapped or (heap.available == 0 and heap.swapped <= swap)
            case "out":
                runs = memory.ballooned.take(pages, longest=1 << 20, most=100)
                for run in runs:
                    memory.ballooned.add(run)
                body = struct.pack("<II", 0, len(runs)) + ranges(*((run.first, run.count) for run in runs))
                memory.take(packet(8, body))
            case "add":
                memory.take(packet(10, ranges((heap.total, 256))))
        kernel = 0x100
        assert kernel + heap._resident.total + memory.ballooned.total + heap.available == heap.total
        assert heap.ballooned == memory.ballooned.total << 12
