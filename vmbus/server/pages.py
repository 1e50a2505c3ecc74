"""A connection's pages at work: the bits of old versions' interrupt page, and monitored notifications. Root side.

A channel's way to wake the guest is an `EventConnection`; what stands here wraps one. With an interrupt page it sets
the channel's bit first, with a monitor ID it sets a trigger in place of the signal. The hypervisor is asked to watch
the monitor pages while a channel is open that has a monitor ID, and not before.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from hypervisor.memory import GpaFault, GuestMemory
from hypervisor.monitor_page import GROUP_SIZE, MonitorPage, MonitorParameter
from hypervisor.pages import PAGE_SIZE
from hypervisor.status import HvError, HvStatus
from vmbus.interrupt_page import InterruptPage
from vmbus.protocol.identifiers import SHARED_EVENT_CONNECTION, SHARED_EVENT_FLAG, SINT
from vmbus.protocol.pages import ConnectionPages
from vmbus.server.ports import EventConnection, HostPorts, ReceivePort


def usable(memory: GuestMemory, untrusted: ConnectionPages) -> bool:
    """Whether the guest has these pages, to read and to write."""
    try:
        for address in untrusted.addresses:
            memory.view(address, PAGE_SIZE)
    except GpaFault:
        return False
    return True


@attrs.frozen(eq=False)
class _Flagged:
    """Below 2.4: a bit of the interrupt page says which channel the shared flag is about."""

    events: EventConnection
    page: InterruptPage
    channel_id: int

    @property
    def connection_id(self) -> int:
        return self.events.connection_id

    def signal(self) -> HvStatus:
        self.page.set(self.channel_id)
        return self.events.signal()

    def close(self) -> None:
        self.events.close()


@attrs.frozen(eq=False)
class _Triggered:
    """A trigger in the guest's monitor page, in place of a hypercall."""

    events: EventConnection
    page: MonitorPage
    monitor_id: int

    @property
    def connection_id(self) -> int:
        return self.events.connection_id

    def signal(self) -> HvStatus:
        self.page.trigger(self.monitor_id)
        return HvStatus.SUCCESS

    def close(self) -> None:
        self.events.close()


class PagesInUse:
    """The pages of one connection. Made when it is, `close`d when it ends or gets others."""

    def __init__(
        self, ports: HostPorts, memory: GuestMemory, pages: ConnectionPages, signaled: Callable[[list[int]], None]
    ) -> None:
        """`signaled(channel_ids)` is called in the root's interrupt with the bits that the guest has set. HvError."""
        self._ports = ports
        self._pages = pages
        self._signaled = signaled
        self._interrupts: InterruptPage | None = None
        self._shared: ReceivePort | None = None
        self._sent: MonitorPage | None = None
        self._received: MonitorPage | None = None
        self._watches: list[ReceivePort] = []
        self._monitors: dict[int, int] = {}
        """Latencies by the ID of monitors in use."""
        if pages.interrupt:
            self._interrupts = InterruptPage(memory.view(pages.interrupt, PAGE_SIZE), host=True)
            self._shared = ports.receive_events(SHARED_EVENT_CONNECTION, self._look)
        if pages.monitored:
            self._sent = MonitorPage(memory.view(pages.to_child, PAGE_SIZE))
            self._received = MonitorPage(memory.view(pages.to_root, PAGE_SIZE))

    def _look(self) -> None:
        assert self._interrupts is not None
        self._signaled(self._interrupts.take())

    def connect_events(self, vp: int, channel_id: int, flag: int, monitor_id: int | None) -> EventConnection:
        """A way to wake the guest for this channel. HvError for a processor that there is not."""
        shared = self._interrupts is not None
        events = self._ports.connect_events(vp, SINT, SHARED_EVENT_FLAG if shared else flag)
        if monitor_id is not None and self._sent is not None and monitor_id in self._monitors:
            self._sent.set_up(monitor_id, self._monitors[monitor_id], MonitorParameter(events.connection_id))
            events = _Triggered(events, self._sent, monitor_id)
        if self._interrupts is not None:
            events = _Flagged(events, self._interrupts, channel_id)
        return events

    def use_monitor(self, monitor_id: int, latency: int, connection_id: int) -> None:
        """Have the guest's trigger signal this connection of its. Nothing without monitor pages. HvError."""
        if self._sent is None or self._received is None:
            return
        if not self._watches:
            self._watches.append(self._ports.watch_sent(self._pages.to_child))
            try:
                self._watches.append(self._ports.watch_received(self._pages.to_root))
            except HvError:
                self._end_watches()
                raise
        self._monitors[monitor_id] = latency
        self._received.set_up(monitor_id, latency, MonitorParameter(connection_id))
        self._enable()

    def release_monitor(self, monitor_id: int) -> None:
        """The channel is closed: its triggers mean nothing. Harmless for one that is not in use."""
        if self._monitors.pop(monitor_id, None) is None:
            return
        assert self._sent is not None
        assert self._received is not None
        self._sent.take_down(monitor_id)
        self._received.take_down(monitor_id)
        self._enable()
        if not self._monitors:
            self._end_watches()

    def _enable(self) -> None:
        """Let the hypervisor look at groups with a monitor in use, and at no others."""
        groups = 0
        for monitor_id in self._monitors:
            groups |= 1 << monitor_id // GROUP_SIZE
        for page in (self._sent, self._received):
            if page is not None:
                page.enable_groups(groups)

    def _end_watches(self) -> None:
        while self._watches:
            self._watches.pop().close()

    def close(self) -> None:
        """The guest has them for itself again."""
        for monitor_id in list(self._monitors):
            self.release_monitor(monitor_id)
        if self._shared is not None:
            self._shared.close()
