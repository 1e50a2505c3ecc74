"""Monitored notifications: looking at the pages in which partitions set triggers instead of signaling. Hypervisor.

A page is looked at while a monitor connection names it, each enabled group about as often as the lowest latency that
it gives, never more often than `SHORTEST`. Where nothing has come for long it is looked at less often: the rate is the
hypervisor's to choose, and a silent channel must not keep the host busy. With no such connection there is nothing to
look at and no timer. Trio's timers tick in milliseconds on a real clock, which is what "about" comes to there.

What a trigger signals may fail in every way that HvSignalEvent can fail; nobody is told, it is counted. Both partitions
can write the page, so a trigger reaches ports of the connection's receiver only: else a guest that changes the
parameters in a page of the root's could signal, with the root's connections, whomever it likes.
"""

from __future__ import annotations

from typing import Final

from hypervisor.memory import GpaFault
from hypervisor.monitor_page import GROUP_SIZE, GROUPS, MonitorPage
from hypervisor.pages import PAGE_SIZE
from hypervisor.status import HvError
from hypervisor.synic import ports
from hypervisor.synic.ports import Connection, PortType

SHORTEST: Final = 500
"""50 us in 100 ns units: no guest makes the host look more often by writing a lower latency."""
LONGEST: Final = 100_000
"""10 ms: how often a group is looked at that is not enabled, gives no latency, or was long without a trigger."""
PATIENCE: Final = 8
"""A group in which nothing was set for a while is looked at after an eighth of that while."""


def watch(connection: Connection) -> None:
    """A connection was made; if it is a monitor's, look at its page from now on."""
    if connection.port.type is PortType.MONITOR:
        connection.watch = _Watch(connection)


def unwatch(connection: Connection) -> None:
    """The connection is about to go; triggers that are pending are lost."""
    if connection.watch is not None:
        connection.owner.hypervisor.timers.set(connection.watch, None)
        connection.watch = None


class _Watch:
    """One page: when each of its groups is due, and the look at it."""

    __slots__ = ("_connection", "_due", "_found", "_hypervisor")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._hypervisor = connection.owner.hypervisor
        self._due = [self._hypervisor.clock()] * GROUPS
        self._found = list(self._due)
        """When each group had a trigger set."""
        self._hypervisor.timers.set(self, self._due[0])

    def fire(self) -> None:
        """Look at every group that is due, and come back for the next."""
        connection, now = self._connection, self._hypervisor.clock()
        if not connection.port.alive:
            return
        following = now + LONGEST
        try:
            page = MonitorPage(connection.owner.memory.view(connection.monitor_address, PAGE_SIZE))
        except GpaFault:
            pass  # the page is gone for now
        else:
            following = self._look(page, now)
        if connection.watch is self:  # a signal may have brought its end
            self._hypervisor.timers.set(self, following)

    def _look(self, page: MonitorPage, now: int) -> int:
        """Returns when to look again. A group that is not enabled is looked at with the others, as far as that goes."""
        enabled = page.enabled_groups
        for group in range(GROUPS):
            if self._due[group] > now or not enabled >> group & 1:
                continue
            pending = page.take_pending(group)
            if pending:
                self._found[group] = now
            idle = min((now - self._found[group]) // PATIENCE, LONGEST)
            self._due[group] = now + max(SHORTEST, page.latency(group) or LONGEST, idle)
            while pending:
                lowest = pending & -pending
                pending ^= lowest
                self._signal(page, group * GROUP_SIZE + lowest.bit_length() - 1)
        return min((self._due[group] for group in range(GROUPS) if enabled >> group & 1), default=now + LONGEST)

    def _signal(self, page: MonitorPage, number: int) -> None:
        sender = self._connection.owner
        untrusted = page.parameter(number)
        target = sender.connections.get(untrusted.connection_id)
        if target is not None and target.port.owner is self._connection.port.owner:
            try:
                ports.signal_event(self._hypervisor, sender, untrusted.connection_id, untrusted.flag_number)
            except HvError:
                pass  # nobody waits for a status; it is counted below
            else:
                sender.counters["monitor_signals"] += 1
                return
        sender.counters["monitor_signals_dropped"] += 1
