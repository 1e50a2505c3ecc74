"""`GuestPlatform` without a machine."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from hypervisor.clock import ticks
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE
from hypervisor.status import HvStatus

FIRST_PAGE = 16
FIRST_RING = FIRST_PAGE + 3
"""A client's first pages are its connection's: an interrupt page and two monitor pages."""


@attrs.define(eq=False)
class FakePlatform:
    """Pages that are counted, hypercalls that are functions, time that is Trio's."""

    memory: memoryview = attrs.field(factory=lambda: memoryview(bytearray(256 * PAGE_SIZE)))
    post: Callable[[int, bytes], HvStatus] = lambda connection_id, payload: HvStatus.SUCCESS
    signal: Callable[[int], HvStatus] = lambda connection_id: HvStatus.SUCCESS
    message_handler: Callable[[bytes], None] | None = None
    event_handlers: dict[int, Callable[[], None]] = attrs.field(factory=dict)
    allocated: dict[int, int] = attrs.field(factory=dict)
    """Pages that are not free, as first page and count."""
    slept: list[float] = attrs.field(factory=list)
    signals: list[int] = attrs.field(factory=list)
    """Connections that were signaled."""
    _next_page: int = FIRST_PAGE

    @property
    def rings(self) -> dict[int, int]:
        """What is allocated besides the connection's pages."""
        return {gpn: count for gpn, count in self.allocated.items() if gpn != FIRST_PAGE}

    def allocate_pages(self, count: int) -> int:
        gpn = self._next_page
        if (gpn + count) * PAGE_SIZE > len(self.memory):
            raise MemoryError(count)
        self._next_page += count
        self.allocated[gpn] = count
        assert not any(self.memory[gpn << PAGE_SHIFT : (gpn + count) << PAGE_SHIFT])
        return gpn

    def free_pages(self, gpn: int, count: int) -> None:
        assert self.allocated.pop(gpn) == count

    def post_message(self, connection_id: int, payload: bytes) -> HvStatus:
        return self.post(connection_id, payload)

    def signal_event(self, connection_id: int) -> HvStatus:
        self.signals.append(connection_id)
        return self.signal(connection_id)

    def reference_time(self) -> int:
        return ticks(trio.current_time())

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await trio.sleep(seconds)

    def deliver(self, payload: bytes) -> None:
        """A message from the host; nobody may be listening."""
        if self.message_handler is not None:
            self.message_handler(payload)

    def set_message_handler(self, handler: Callable[[bytes], None] | None) -> None:
        self.message_handler = handler

    def set_event_handler(self, channel_id: int, handler: Callable[[], None] | None) -> None:
        if handler is None:
            self.event_handlers.pop(channel_id, None)
        else:
            self.event_handlers[channel_id] = handler
