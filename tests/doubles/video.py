"""A screen and its guest in plain memory: the real VSP, real channels, no hypervisor between them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from hypervisor.blocks import MemoryBlock
from hypervisor.memory import GuestMemory
from hypervisor.pages import PAGE_SHIFT, Access
from hypervisor.trace import Trace, TraceEvent
from hypervisor.wire import WireError
from tests.doubles.storage import PlainPlatform, channel_pair, opened_channel
from vmbus.channel import Channel
from vmbus.pipe import frame, unframe
from vsp_vsc.video.framebuffer import Framebuffer
from vsp_vsc.video.protocol import RING_BYTES, VRAM_BYTES, VideoType, decode_message
from vsp_vsc.video.vsp import VideoVsp

WINDOW_BASE, WINDOW_LENGTH = 0xF800_0000, 0x0400_0000
PATIENCE_SECONDS = 1000


class PlainWindow:
    """Video memory in a guest's map where no RAM is, without a root partition to pay for it."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self.block: MemoryBlock | None = None
        self.at: int | None = None
        self.full = False
        self.moves = 0

    def contains(self, gpa: int, length: int) -> bool:
        return gpa >= WINDOW_BASE and gpa + length <= WINDOW_BASE + WINDOW_LENGTH

    def map(self, gpa: int) -> None:
        if self.full:
            raise MemoryError("the host has none left")
        if self.at == gpa:
            return
        block = self.block or MemoryBlock.allocate(VRAM_BYTES, "video")
        self._take_away()
        self.block, self.at = block, gpa
        self.moves += 1
        self._memory.map_block(gpa >> PAGE_SHIFT, block, 0, VRAM_BYTES >> PAGE_SHIFT, Access.READ_WRITE)

    def unmap(self) -> None:
        self._take_away()
        if self.block is not None:
            self.block.close()
            self.block = None

    def _take_away(self) -> None:
        if self.at is not None:
            self._memory.unmap(self.at >> PAGE_SHIFT, VRAM_BYTES >> PAGE_SHIFT)
            self.at = None


@attrs.define(eq=False)
class ScreenPair:
    """A VSP that serves one end of a channel; the other end is the test's."""

    vsp: VideoVsp
    platform: PlainPlatform
    window: PlainWindow | None
    host_end: Channel
    guest_end: Channel
    scope: trio.CancelScope
    events: list[TraceEvent]
    stopped: list[WireError] = attrs.field(factory=list)
    ended: trio.Event = attrs.field(factory=trio.Event)

    @property
    def framebuffer(self) -> Framebuffer:
        return self.vsp.framebuffer

    async def say(self, message: bytes) -> None:
        """A message of the guest's."""
        await self.guest_end.send(frame(message))

    async def hear(self) -> tuple[VideoType, bytes]:
        """The host's next message."""
        return decode_message(unframe(await self.guest_end.receive()))

    def heard(self) -> list[tuple[VideoType, bytes]]:
        """What the host has said and nobody has read."""
        return [decode_message(unframe(packet)) for packet in self.guest_end.try_receive_batch()]


@asynccontextmanager
async def screen_pair(
    width: int = 640, height: int = 480, *, window: bool = False, memory: int = 16 << 20, restored: object = None
) -> AsyncIterator[ScreenPair]:
    """Run a VSP as the bus would, until the body ends."""
    events: list[TraceEvent] = []
    trace = Trace(lambda: 0)
    trace.add_sink(events.append)
    platform = PlainPlatform(memory)
    plain = PlainWindow(platform.guest) if window else None
    host_end, guest_end = channel_pair(RING_BYTES)
    vsp = VideoVsp(width, height, trace, 7, window=plain)
    pair = ScreenPair(vsp, platform, plain, host_end, guest_end, trio.CancelScope(), events)

    async def serve() -> None:
        opened = opened_channel(platform.guest)
        opened.restored = restored
        try:
            with pair.scope:
                await vsp.serve(host_end, opened)
        except WireError as fault:
            pair.stopped.append(fault)
        finally:
            pair.ended.set()

    # Whoever waits for what never comes fails, and does not hang.
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield pair
            nursery.cancel_scope.cancel()
