"""The guest's end of a connection's pages, and how a channel's writer wakes the host through them. Child side."""

from __future__ import annotations

import functools
from collections.abc import Callable

from hypervisor.monitor_page import MonitorPage
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE
from vmbus.client.platform import GuestPlatform
from vmbus.client.state import OfferedDevice
from vmbus.interrupt_page import InterruptPage
from vmbus.protocol.pages import ConnectionPages
from vmbus.protocol.versions import Ability

_COUNT = 3


class ClientPages:
    """An interrupt page and two monitor pages, as Linux gives them to every host. `MemoryError`."""

    def __init__(self, platform: GuestPlatform) -> None:
        self._platform = platform
        self._first = first = platform.allocate_pages(_COUNT)
        interrupt, to_child, to_root = ((first + number) << PAGE_SHIFT for number in range(_COUNT))
        self.pages = ConnectionPages(interrupt, to_child, to_root)
        self._interrupts = InterruptPage(platform.memory[interrupt : interrupt + PAGE_SIZE], host=False)
        self._triggers = MonitorPage(platform.memory[to_root : to_root + PAGE_SIZE])

    def take(self) -> list[int]:
        """The channels for which the host has set a bit."""
        return self._interrupts.take()

    def signal(self, offer: OfferedDevice, can: Ability) -> Callable[[], object]:
        """How to wake the host for this channel.

        A trigger where the offer has one; else its own connection; below 1.1 the one that all share, and a bit.
        """
        if offer.monitor_id is not None:
            wake: Callable[[], object] = functools.partial(self._triggers.trigger, offer.monitor_id)
        else:
            wake = functools.partial(self._platform.signal_event, offer.connection_id)
        if Ability.INTERRUPT_PAGE not in can or offer.dedicated:
            return wake

        def flag_and_wake() -> None:
            self._interrupts.set(offer.channel_id)
            wake()

        return flag_and_wake

    def close(self) -> None:
        """The host looks at them no longer."""
        self._platform.free_pages(self._first, _COUNT)
