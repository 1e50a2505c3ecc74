"""Doorbells: HvSignalEvent without an exit, one eventfd a connection, one task for all of a partition's. Hypervisor.

The guest's hypercall page writes a connection ID to `DOORBELL_PORT`; KVM counts it on the eventfd bound to that number
and the guest goes on. All eventfds lie in one epoll, edge-triggered, so nobody has to read them: ringing is a signal
once more. That epoll's descriptor is what the task waits for.

Binding and unbinding are done on the spot, by the one who makes or breaks the connection, so a number that is used
again at once never meets its former self, and no call comes after the VM is closed.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Protocol

import attrs
import trio

from hypervisor.synic.ports import Connection, PortType
from hypervisor.trace import Layer, Trace

DOORBELL_PORT = 0xE4


class Binder(Protocol):
    """What KVM does for a doorbell."""

    def doorbell(self, port: int, value: int, event_fd: int, *, attach: bool) -> None:
        """Count 4-byte OUTs of `value` to `port` on an eventfd, or no longer. Raises OSError."""


@attrs.define(eq=False)
class Doorbells:
    """`partition.Doorbells` of a partition that runs on KVM. `signal` gets the ID of each connection that rang."""

    machine: Binder
    signal: Callable[[int], None]
    trace: Trace
    partition_id: int
    _epoll: select.epoll = attrs.field(factory=lambda: select.epoll(flags=select.EPOLL_CLOEXEC), init=False)
    _event_fds: dict[int, int] = attrs.field(factory=dict, init=False)
    """By connection ID."""
    _connections: dict[int, int] = attrs.field(factory=dict, init=False)
    """By eventfd."""

    def __len__(self) -> int:
        return len(self._event_fds)

    def attach(self, connection: Connection) -> None:
        """A connection has been made. Where KVM takes no more doorbells, its signals are exits, and work as well."""
        if connection.port.type is not PortType.EVENT or connection.id in self._event_fds:
            return
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            self.machine.doorbell(DOORBELL_PORT, connection.id, fd, attach=True)
        except OSError as error:
            os.close(fd)
            words = f"connection {connection.id:#x} has no doorbell: {error.strerror}"
            self.trace.warn(Layer.SYNIC, "doorbell_refused", self.partition_id, words)
            return
        self._event_fds[connection.id] = fd
        self._connections[fd] = connection.id
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)

    def detach(self, connection: Connection) -> None:
        """The connection is gone; signals to it take the slow way and are refused there."""
        self._forget(connection.id)

    def _forget(self, connection_id: int) -> None:
        fd = self._event_fds.pop(connection_id, None)
        if fd is None:
            return
        del self._connections[fd]
        try:
            self.machine.doorbell(DOORBELL_PORT, connection_id, fd, attach=False)
        finally:
            self._epoll.unregister(fd)
            os.close(fd)

    async def run(self) -> None:
        """Pass on what rings, until cancelled. Several rings may be one signal, as several settings of a flag are."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for fd, _ in self._epoll.poll(0):
                # What was just signaled may have made its owner detach another that rang with it.
                connection_id = self._connections.get(fd)
                if connection_id is not None:
                    self.signal(connection_id)

    def close(self) -> None:
        """Unbind everything; before the VM is closed, after `run` has ended."""
        for connection_id in list(self._event_fds):
            self._forget(connection_id)
        self._epoll.close()
