"""A guest that says of its screen what cannot be, through a whole host: passed over, or its channel is stopped.

Case 98 of the list of malformed inputs; tests/vsp_vsc/video/test_session.py has every single one without a host.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise

import pytest
import trio
import trio.testing

from hypervisor.pages import PAGE_SHIFT
from hypervisor.trace import Trace
from partitions.host import Host, VmState
from partitions.root.chipset import acpi
from partitions.topology_schema import Backend, ScreenTable, Size
from tests.doubles.boundary_guest import BoundaryGuest, Rings, boundary_guest, run
from tests.doubles.root import topology, vm_table
from tests.doubles.video import screen_pair
from tests.hostile.invariants import all_is_given_back, check, others, reset_clears, sibling, sibling_goes_on
from vmbus.pipe import frame
from vmbus.protocol.messages import OfferChannel
from vsp_vsc.video import protocol as p
from vsp_vsc.video.framebuffer import Framebuffer, Rect
from vsp_vsc.video.protocol import VideoType

MEMORY = 8 << 20
AT = 4 << 20
WINDOW = acpi.MMIO_BASE
BEAT = 60 * 10_000_000
"""A minute between two signs of life of the sibling."""


@asynccontextmanager
async def evil(backend: Backend = Backend.TASK) -> AsyncIterator[tuple[BoundaryGuest, Framebuffer]]:
    """A guest with a screen and nothing else, beside a sibling; and the screen."""
    kernel = {"backend": backend, "kernel": "none"} if backend is Backend.KVM else {}
    table = vm_table("evil", memory=Size(MEMORY), screen=ScreenTable(width=640, height=480), integration=[], **kernel)
    machine = topology(table, vm_table("sibling"))
    async with boundary_guest(machine, siblings={"sibling": partial(sibling, beat=BEAT)}) as guest:
        screen = guest.host["evil"].screen
        assert screen is not None
        yield guest, screen


async def video_channel(guest: BoundaryGuest) -> Rings:
    """The screen's channel, open, among those on offer."""
    offers = await guest.connect()
    (offer,) = [offer for offer in map(OfferChannel.decode, offers) if offer.interface == p.VIDEO_INTERFACE]
    assert (offer.instance, offer.mmio_megabytes) == (p.VIDEO_INSTANCE, p.VRAM_MEGABYTES)
    return await guest.open_channel(offer.channel_id)


async def say(rings: Rings, kind: VideoType, *body: p.Wire | bytes) -> list[VideoType]:
    """A message, and the kinds of what the host has said since."""
    message = p.encode_message(kind, *body)
    await rings.send(struct.pack("<II", 1, len(message)) + message, flags=0)
    return [VideoType(struct.unpack_from("<I", body, 8)[0]) for _, body in await rings.received()]


def mode(width: int, height: int, *, pitch: int | None = None, offset: int = 0, depth: int = 32) -> p.SituationUpdate:
    return p.SituationUpdate(1, 1, 1, offset, depth, width, height, width * 4 if pitch is None else pitch)


SOFT = [
    (VideoType.SITUATION_UPDATE, mode(0, 0)),
    (VideoType.SITUATION_UPDATE, mode(65535, 65535)),
    (VideoType.SITUATION_UPDATE, mode(64, 64, pitch=0xFFFFFFFF)),
    (VideoType.SITUATION_UPDATE, mode(64, 64, offset=0xFFFFFFFF)),
    (VideoType.SITUATION_UPDATE, mode(1600, 1200)),
    (VideoType.SITUATION_UPDATE, mode(64, 64, depth=24)),
    (VideoType.VRAM_LOCATION, p.VramLocation(1, 1, MEMORY)),
    (VideoType.VRAM_LOCATION, p.VramLocation(1, 1, (1 << 64) - 1)),
    (VideoType.DIRT, p.Dirt(0, 255)),
    (VideoType.DIRT, p.Dirt(0, 1).encode() + p.Rectangle(5, 5, 1, 1).encode()),
    (VideoType.DIRT, p.Dirt(0, 1).encode() + p.Rectangle(5000, 0, 5001, 1).encode()),
    (VideoType.POINTER_SHAPE, p.PointerShape(0xFF, 1, 0xFFFFFFFF, 0xFFFFFFFF, 0, 0)),
]


def refused(host: Host) -> int:
    trace: Trace = host.trace
    return sum(count for (_, event), count in trace.warnings.items() if event == "video_refused")


def test_98_what_cannot_be_is_passed_over() -> None:
    """Counted one by one; the picture stays, the sibling goes on, and everything is given back."""

    async def session() -> None:
        async with evil() as (guest, screen):
            before = others(guest.host)
            await guest.boot()
            rings = await video_channel(guest)
            assert await say(rings, VideoType.VERSION_REQUEST, p.VideoVersionRequest(0x50003)) == [2]
            assert await say(rings, VideoType.VRAM_LOCATION, p.VramLocation(1, 1, AT)) == [4]
            assert await say(rings, VideoType.SITUATION_UPDATE, mode(64, 64)) == [6]
            await guest.write(AT, b"\1\2\3\4")
            for number, (kind, body) in enumerate(SOFT, 1):
                assert await say(rings, kind, body) == []
                assert refused(guest.host) == number
                assert screen.pixels(0, 0, 1, 1) == b"\1\2\3\0"
            assert await say(rings, VideoType.SITUATION_UPDATE, mode(640, 480)) == [6]
            assert others(guest.host) == before
            check(guest.host)
            await sibling_goes_on(guest, BEAT)
            await reset_clears(guest, MEMORY)
            assert not screen.active
            await all_is_given_back(guest.host)

    run(session)


@pytest.mark.parametrize(
    ("kind", "body"),
    [(VideoType.SITUATION_UPDATE, b""), (VideoType.FEATURE_CHANGE, bytes(4)), (VideoType.DIRT, b"\0")],
)
def test_98_what_cannot_be_read_stops_the_channel(kind: VideoType, body: bytes) -> None:
    """The screen is off until the guest closes and opens again; the VM goes on."""

    async def session() -> None:
        async with evil() as (guest, screen):
            await guest.boot()
            rings = await video_channel(guest)
            await say(rings, VideoType.VERSION_REQUEST, p.VideoVersionRequest(0x50003))
            await say(rings, VideoType.VRAM_LOCATION, p.VramLocation(1, 1, AT))
            await say(rings, VideoType.SITUATION_UPDATE, mode(64, 64))
            assert screen.active
            assert await say(rings, kind, body) == []
            assert not screen.active
            assert await say(rings, VideoType.VERSION_REQUEST, p.VideoVersionRequest(0x50003)) == []
            assert guest.host["evil"].state is VmState.RUNNING
            check(guest.host)
            await reset_clears(guest, MEMORY)
            await guest.boot()
            rings = await video_channel(guest)
            assert await say(rings, VideoType.VERSION_REQUEST, p.VideoVersionRequest(0x50003)) == [2]
            await all_is_given_back(guest.host)

    run(session)


async def test_98_a_ring_full_of_rectangles_holds_nobody_up() -> None:
    """Others run between two messages; and of 255 rectangles each of many viewers gets the one around them all."""
    async with screen_pair() as pair, trio.open_nursery() as nursery:
        await pair.say(p.encode_message(VideoType.VERSION_REQUEST, p.VideoVersionRequest(0x50003)))
        await pair.say(p.encode_message(VideoType.VRAM_LOCATION, p.VramLocation(1, 1, 0x100000)))
        await pair.say(p.encode_message(VideoType.SITUATION_UPDATE, mode(640, 480)))
        await trio.testing.wait_all_tasks_blocked()
        seen = [0]

        async def somebody_else() -> None:
            while True:
                seen.append(pair.vsp.counters.dirt)
                await trio.lowlevel.checkpoint()

        nursery.start_soon(somebody_else)
        with pair.framebuffer.watch() as damage, pair.framebuffer.watch():
            damage.take()
            places = [p.Rectangle(2 * i, i, 2 * i + 3, i + 2) for i in range(255)]
            sent = pair.guest_end.try_send_batch([frame(p.encode_dirt(places))] * 16)
            assert sent > 2
            while pair.vsp.counters.dirt < sent:
                await trio.lowlevel.checkpoint()
            seen.append(pair.vsp.counters.dirt)
            assert max(later - before for before, later in pairwise(seen)) <= 2
            assert damage.take() == (False, [Rect(0, 0, 511, 256)])
        nursery.cancel_scope.cancel()


def test_98_memory_in_the_window_comes_moves_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that moves its frame buffer about gets one of 8 MiB, whatever it asks, and its reset gives it back."""
    monkeypatch.setattr("partitions.host.refuse_threads", lambda topology: None)  # what runs here is no KVM

    async def session() -> None:
        async with evil(Backend.KVM) as (guest, screen):
            host = guest.host
            held = host.hypervisor.root_bytes
            memory = host.hypervisor.by_id(host["evil"].partition_id or 0).memory
            await guest.boot()
            rings = await video_channel(guest)
            await say(rings, VideoType.VERSION_REQUEST, p.VideoVersionRequest(0x50003))
            assert memory.source(WINDOW >> PAGE_SHIFT) is None
            for gpa in (WINDOW, WINDOW, WINDOW + (1 << 20), WINDOW + acpi.MMIO_LENGTH - p.VRAM_BYTES, WINDOW + 0x1000):
                assert await say(rings, VideoType.VRAM_LOCATION, p.VramLocation(gpa, 1, gpa)) == [4]
                assert host.hypervisor.root_bytes <= held + p.VRAM_BYTES + (4 << 20)  # and what is deposited for it
                assert [run[2:4] for run in memory.sources(gpa >> PAGE_SHIFT, p.VRAM_BYTES >> PAGE_SHIFT)] == [
                    (0, 2048)
                ]
            for gpa in (WINDOW + 1, WINDOW + acpi.MMIO_LENGTH - p.VRAM_BYTES + 0x1000, WINDOW - 0x1000, 0xFEE0_0000):
                assert await say(rings, VideoType.VRAM_LOCATION, p.VramLocation(gpa, 1, gpa)) == []
            assert refused(host) == 4
            assert await say(rings, VideoType.SITUATION_UPDATE, mode(1920, 1080)) == [6]
            memory.write(WINDOW + 0x1000, b"\x10\x20\x30\x40")
            assert screen.pixels(0, 0, 1, 1) == b"\x10\x20\x30\0"
            await reset_clears(guest, MEMORY)
            assert memory.source((WINDOW + 0x1000) >> PAGE_SHIFT) is None
            assert screen.pixels(0, 0, 1, 1) == bytes(4)
            assert host.hypervisor.root_bytes < held + p.VRAM_BYTES
            await all_is_given_back(host)

    run(session)
