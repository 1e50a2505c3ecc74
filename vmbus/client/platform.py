"""What the bus and its drivers need from the guest's kernel. Child side.

The kernel implements it; tests bring doubles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from hypervisor.status import HvStatus


class GuestPlatform(Protocol):
    """Memory, hypercalls, time and interrupts of one guest."""

    memory: memoryview
    """Guest physical memory from GPA 0, format `B`, writable."""

    def allocate_pages(self, count: int) -> int:
        """The first page number of `count` adjacent zeroed pages; `MemoryError`."""

    def free_pages(self, gpn: int, count: int) -> None:
        """Give pages back that nobody looks at any more."""

    def post_message(self, connection_id: int, payload: bytes) -> HvStatus:
        """HvPostMessage with VMBus's message type. INSUFFICIENT_BUFFERS means: try again later."""

    def signal_event(self, connection_id: int) -> HvStatus:
        """HvSignalEvent."""

    def reference_time(self) -> int:
        """The partition's time in 100 ns units."""

    async def sleep(self, seconds: float) -> None:
        """Not before so much of the partition's time has gone by."""

    def set_message_handler(self, handler: Callable[[bytes], None] | None) -> None:
        """Who takes the payloads of VMBus's SINT; called in the interrupt, so it only notes and wakes."""

    def set_event_handler(self, channel_id: int, handler: Callable[[], None] | None) -> None:
        """Who is called when the host signals a channel; likewise."""
