"""What the bus needs from the hypervisor, for one child partition. Root side.

The root's hypercall shim implements these; tests bring doubles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from hypervisor.status import HvStatus


class MessageConnection(Protocol):
    """Posts channel messages to one SINT of one of the child's virtual processors."""

    def post(self, payload: bytes) -> HvStatus:
        """Queue one message of SynIC type 1. INSUFFICIENT_BUFFERS means: try again later."""

    def close(self) -> None:
        """Give up connection and port."""


class EventConnection(Protocol):
    """Sets one event flag of one of the child's virtual processors."""

    def signal(self) -> HvStatus:
        """Set the flag and raise the interrupt if it was clear."""

    @property
    def connection_id(self) -> int:
        """The root's name for it, which a monitor page's parameters hold."""

    def close(self) -> None:
        """Give up connection and port."""


class ReceivePort(Protocol):
    """Takes what the child posts or signals on one connection ID."""

    def close(self) -> None:
        """No handler is called after this."""


class HostPorts(Protocol):
    """Bound to one child. Handlers run in the root's interrupt: they note and wake, and do nothing else.

    Each call raises `HvError` where the hypervisor refuses, for a VP that does not exist, say.
    """

    def receive_messages(self, connection_id: int, handler: Callable[[bytes], None]) -> ReceivePort:
        """Have `handler` called with each payload that the child posts to `connection_id`."""

    def receive_events(self, connection_id: int, handler: Callable[[], None]) -> ReceivePort:
        """Have `handler` called when the child signals `connection_id`; several signals may be one call."""

    def connect_messages(self, vp: int, sint: int) -> MessageConnection:
        """A way to post to that SINT of that VP."""

    def connect_events(self, vp: int, sint: int, flag: int) -> EventConnection:
        """A way to set that event flag on that SINT of that VP."""

    def watch_sent(self, page: int) -> ReceivePort:
        """Have the hypervisor look for triggers that the root sets in the page at this GPA of the child's."""

    def watch_received(self, page: int) -> ReceivePort:
        """Have the hypervisor look for triggers that the child sets there. One page at a time."""
