"""The two buffers that an adapter shares with the host: one that it fills, one in sections that we fill. Child side."""

from __future__ import annotations

import attrs

from hypervisor.pages import PAGE_SHIFT, pages_for
from vmbus.client.driver_bus import DriverBus
from vmbus.client.platform import GuestPlatform

MAX_SECTIONS = 0xFFFF
"""What is beyond is not used: a section's number is part of a transaction ID."""


@attrs.define(eq=False)
class SharedBuffer:
    """Guest pages that the host knows by a GPADL."""

    platform: GuestPlatform
    bus: DriverBus
    gpn: int
    pages: int
    gpadl_id: int
    view: memoryview
    """All of it; the host may write there at any time."""

    @classmethod
    async def create(cls, platform: GuestPlatform, bus: DriverBus, size: int) -> SharedBuffer:
        """At least `size` bytes, in whole pages. `MemoryError`, `VmbusError`."""
        pages = pages_for(size)
        gpn = platform.allocate_pages(pages)
        try:
            gpadl_id = await bus.create_gpadl(range(gpn, gpn + pages), pages << PAGE_SHIFT)
        except BaseException:
            platform.free_pages(gpn, pages)
            raise
        view = platform.memory[gpn << PAGE_SHIFT : (gpn + pages) << PAGE_SHIFT]
        return cls(platform, bus, gpn, pages, gpadl_id, view)

    async def destroy(self) -> None:
        """Take it back from the host, which has let go of it when this returns."""
        await self.bus.teardown_gpadl(self.gpadl_id)
        self.view.release()
        self.platform.free_pages(self.gpn, self.pages)


class SendSections:
    """The send buffer's sections: one message each, from when we fill it until the host has answered."""

    __slots__ = ("_taken", "count", "free", "size", "view")

    def __init__(self, view: memoryview, size: int) -> None:
        """Sections of `size` bytes, which the host has chosen."""
        self.view = view
        self.size = size
        self.count = min(len(view) // size, MAX_SECTIONS)
        self.free = list(range(self.count - 1, -1, -1))
        """Numbers of sections that nobody uses. Whoever takes one says so by `taken`."""
        self._taken = bytearray(self.count)

    def take(self) -> int:
        """A section; `IndexError` if all are in use."""
        section = self.free.pop()
        self._taken[section] = 1
        return section

    def give_back(self, section: int) -> bool:
        """The host has answered; false if it had nothing to answer."""
        if not self._taken[section]:
            return False
        self._taken[section] = 0
        self.free.append(section)
        return True
