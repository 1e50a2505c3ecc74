"""A storage controller and its guest in plain memory: the real VSP, real channels, no hypervisor between them."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from hypervisor.blocks import MemoryBlock
from hypervisor.clock import Clock
from hypervisor.memory import GuestMemory
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE, Access
from hypervisor.status import HvStatus
from hypervisor.trace import Trace, TraceEvent
from hypervisor.wire import Guid, WireError
from vmbus.channel import Channel
from vmbus.server.opened import ChannelGpadls, HoldCounts, OpenedChannel
from vsp_vsc.storage.backends.base import BackendStatistics, IoOperation, Job
from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.scsi.target import ScsiTarget
from vsp_vsc.storage.vsp import StorageVsp

INSTANCE = Guid("11111111-2222-3333-4444-555555555555")
MEMORY_BYTES = 16 << 20
RING_BYTES = 128 * 1024
PATIENCE_SECONDS = 20


class PlainPlatform:
    """A guest's kernel, as far as a driver needs it: memory and a page allocator that checks."""

    def __init__(self, size: int = MEMORY_BYTES) -> None:
        self.block = MemoryBlock.allocate(size, "test guest")
        self.guest = GuestMemory()
        self.guest.map_block(0, self.block, 0, size >> PAGE_SHIFT, Access.ALL)
        self.memory = self.block.view
        self._free = list(range(1, size >> PAGE_SHIFT))

    def allocate_pages(self, count: int) -> int:
        for index in range(len(self._free) - count + 1):
            if self._free[index + count - 1] - self._free[index] == count - 1:
                gpn = self._free[index]
                del self._free[index : index + count]
                return gpn
        raise MemoryError(f"no {count} adjacent pages")

    def free_pages(self, gpn: int, count: int) -> None:
        pages = range(gpn, gpn + count)
        assert not set(pages) & set(self._free), "freed twice"
        self._free = sorted([*self._free, *pages])

    @property
    def free_count(self) -> int:
        return len(self._free)

    def post_message(self, connection_id: int, payload: bytes) -> HvStatus:
        raise NotImplementedError

    def signal_event(self, connection_id: int) -> HvStatus:
        raise NotImplementedError

    def reference_time(self) -> int:
        return 0

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    def set_message_handler(self, handler: object) -> None:
        raise NotImplementedError

    def set_event_handler(self, channel_id: int, handler: object) -> None:
        raise NotImplementedError


def channel_pair(ring_bytes: int = RING_BYTES) -> tuple[Channel, Channel]:
    """Host's end and guest's end of one channel."""
    to_host, to_guest = memoryview(bytearray(ring_bytes)), memoryview(bytearray(ring_bytes))
    ends: list[Channel] = []
    ends.append(Channel(outgoing=to_guest, incoming=to_host, signal=lambda: ends[1].wake(), shared=False))
    ends.append(Channel(outgoing=to_host, incoming=to_guest, signal=lambda: ends[0].wake(), shared=False))
    return ends[0], ends[1]


def opened_channel(
    memory: GuestMemory, channel_id: int = 5, index: int = 0, more: Callable[[int], None] | None = None
) -> OpenedChannel:
    """What the bus would hand to a device."""
    gpadls = ChannelGpadls(channel_id, lambda _channel, _gpadl: None, HoldCounts(lambda _channel, _gpadl: None))
    return OpenedChannel(
        channel_id=channel_id,
        target_vp=0,
        user_data=bytes(120),
        version=0x50003,
        memory=memory,
        gpadls=gpadls,
        subchannel_index=index,
        more=more,
    )


@attrs.define(eq=False)
class StoragePair:
    """A VSP that serves one end of a channel; the other end is the test's."""

    vsp: StorageVsp
    platform: PlainPlatform
    host_end: Channel
    guest_end: Channel
    scope: trio.CancelScope
    events: list[TraceEvent]
    trace: Trace
    stopped: list[WireError] = attrs.field(factory=list)
    """The mistake that made the VSP stop, if one did."""
    ended: trio.Event = attrs.field(factory=trio.Event)
    sub_channels: list[int] = attrs.field(factory=list)
    """How many subchannels the VSP has asked the bus for, each time."""
    no_room: bool = False
    """Whether the bus refuses to offer more."""
    nursery: trio.Nursery | None = None

    def open_sub_channel(self, index: int) -> Channel:
        """As a guest does after its offer; returns the guest's end."""
        host_end, guest_end = channel_pair()
        assert self.nursery is not None
        self.nursery.start_soon(self._serve, host_end, opened_channel(self.platform.guest, 5 + index, index))
        return guest_end

    def offer_sub_channels(self, count: int) -> None:
        """What the bus would do."""
        if self.no_room:
            raise ValueError("2047 channels are the limit")
        self.sub_channels.append(count)

    async def _serve(self, host_end: Channel, opened: OpenedChannel) -> None:
        try:
            await self.vsp.serve(host_end, opened)
        except WireError as fault:
            self.stopped.append(fault)


@asynccontextmanager
async def serving(
    disks: Mapping[int, ScsiTarget] | None = None,
    *,
    ring_bytes: int = RING_BYTES,
    listen: bool = False,
    max_sub_channels: int = 0,
    clock: Clock = lambda: 0,
) -> AsyncIterator[StoragePair]:
    """Run a VSP as the bus would, until the body ends."""
    if disks is None:
        disks = {0: ScsiTarget(MemoryBackend(1 << 20))}
    events: list[TraceEvent] = []
    trace = Trace(clock)
    if listen:
        trace.add_sink(events.append)
    platform = PlainPlatform()
    host_end, guest_end = channel_pair(ring_bytes)
    vsp = StorageVsp(disks, INSTANCE, trace, 7, max_sub_channels=max_sub_channels)
    pair = StoragePair(vsp, platform, host_end, guest_end, trio.CancelScope(), events, trace)

    async def serve() -> None:
        try:
            with pair.scope:
                await vsp.serve(host_end, opened_channel(platform.guest, more=pair.offer_sub_channels))
        except WireError as fault:
            pair.stopped.append(fault)
        finally:
            pair.ended.set()

    # Whoever waits for what never comes fails, and does not hang.
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            pair.nursery = nursery
            nursery.start_soon(serve)
            yield pair
            nursery.cancel_scope.cancel()


class SlowBackend(MemoryBackend):
    """A disk whose slow I/O ends when the test says so, and fails when it says so."""

    def __init__(self, contents: int | bytes, *, cached: bool = False, read_only: bool = False) -> None:
        super().__init__(contents, read_only=read_only, identity="slow")
        self.cached = cached
        self.jobs: list[Job] = []
        self.log: list[str] = []
        self.error: int | None = None
        """What every operation fails with from now on."""

    def try_read(self, views: Sequence[memoryview], offset: int, length: int) -> bool:
        if not self.cached:
            return False
        if self.error is not None:
            raise OSError(self.error, "scripted")
        return super().try_read(views, offset, length)

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def finish(self, count: int | None = None) -> int:
        """Carry out jobs in order; returns how many."""
        jobs, self.jobs = self.jobs[:count], [] if count is None else self.jobs[count:]
        for job in jobs:
            self.log.append(job.operation.value + (" durable" if job.durable else ""))
            if self.error is not None:
                job.done(OSError(self.error, "scripted"))
                continue
            if job.operation is IoOperation.READ:
                super().try_read(job.views, job.offset, job.length)
                job.done(None)
            else:
                super().submit(job)
        return len(jobs)

    def statistics(self) -> BackendStatistics:
        return super().statistics()


EIO = errno.EIO
__all__ = [
    "EIO",
    "INSTANCE",
    "PAGE_SIZE",
    "PlainPlatform",
    "SlowBackend",
    "StoragePair",
    "channel_pair",
    "opened_channel",
    "serving",
]
