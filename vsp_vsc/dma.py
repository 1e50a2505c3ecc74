"""Guest pages that the host reads and writes while the guest waits. Child side.

A page that the host may still touch must never serve anything else, even if whoever asked for the I/O was cancelled and
has gone: so a buffer counts the requests that name it, and goes back to the pool with the last of them.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

import trio

from hypervisor.pages import PAGE_SHIFT, pages_for
from vmbus.client.platform import GuestPlatform

KEPT_PAGES = 256
"""Pages that a pool keeps for the next request, at most (1 MiB); what is beyond goes back to the kernel."""
_ROUNDED_PAGES = 64


class DmaBuffer:
    """Adjacent guest pages as one buffer. Made by a `DmaPool`; give it back with `free`, or use `with`."""

    __slots__ = ("_freed", "_idle", "_pool", "abandoned", "gpn", "gpns", "in_flight", "pages", "size", "view")

    def __init__(self, pool: DmaPool, gpn: int, pages: int, memory: memoryview) -> None:
        self._pool = pool
        self._idle: trio.Event | None = None
        self._freed = False
        self.gpn = gpn
        """The first page's number."""
        self.pages = pages
        self.size = pages << PAGE_SHIFT
        """Bytes; whole pages."""
        self.gpns = tuple(range(gpn, gpn + pages))
        self.view = memory[gpn << PAGE_SHIFT : (gpn + pages) << PAGE_SHIFT]
        """The buffer's bytes. They change while a read is under way."""
        self.in_flight = 0
        """Requests that the host has and that name this buffer."""
        self.abandoned = False
        """Whether nobody waits for some of these requests any more: their task was cancelled."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.free()

    def free(self) -> None:
        """Give the buffer back: now, or when the host has answered the last request that names it."""
        if not self._freed:
            self._freed = True
            if not self.in_flight:
                self._pool.take_back(self)

    def release(self) -> None:
        """The host has answered a request that named this buffer."""
        self.in_flight -= 1
        if not self.in_flight and (self._freed or self.abandoned):
            self.abandoned = False
            if self._idle is not None:
                self._idle.set()
                self._idle = None
            if self._freed:
                self._pool.take_back(self)

    async def idle(self) -> None:
        """Wait for requests whose tasks were cancelled."""
        while self.abandoned:
            if self._idle is None:
                self._idle = trio.Event()
            await self._idle.wait()

    def reuse(self) -> Self:
        """For the pool: hand it out again."""
        self._freed = False
        return self


class DmaPool:
    """Buffers by size, kept for reuse: requests come in few sizes and often."""

    def __init__(self, platform: GuestPlatform) -> None:
        self._platform = platform
        self._kept: dict[int, list[DmaBuffer]] = {}
        self._kept_pages = 0
        self._closed = False

    def allocate(self, size: int) -> DmaBuffer:
        """A buffer of at least `size` bytes with whatever bytes were there before. `MemoryError`."""
        pages = pages_for(size) or 1
        if pages <= _ROUNDED_PAGES:
            pages = 1 << (pages - 1).bit_length()  # few sizes, so that a buffer kept is one that fits
        kept = self._kept.get(pages)
        if kept:
            self._kept_pages -= pages
            return kept.pop().reuse()
        try:
            gpn = self._platform.allocate_pages(pages)
        except MemoryError:
            if not self._kept_pages:
                raise
            self._empty()  # what we keep in other sizes may be all that is missing
            gpn = self._platform.allocate_pages(pages)
        return DmaBuffer(self, gpn, pages, self._platform.memory)

    def take_back(self, buffer: DmaBuffer) -> None:
        """For buffers only: keep it, or let its pages go."""
        if self._closed or self._kept_pages + buffer.pages > KEPT_PAGES:
            self._platform.free_pages(buffer.gpn, buffer.pages)
            return
        self._kept.setdefault(buffer.pages, []).append(buffer)
        self._kept_pages += buffer.pages

    def close(self) -> None:
        """Let all idle pages go. Pages that the host may still write to stay allocated until it has answered."""
        self._closed = True
        self._empty()

    def _empty(self) -> None:
        for kept in self._kept.values():
            for buffer in kept:
                self._platform.free_pages(buffer.gpn, buffer.pages)
        self._kept.clear()
        self._kept_pages = 0
