"""The root's ends of its ports and connections, for one child at a time. Root side.

A VMBus server sees `PortsOf(child)` and nothing else of the hypervisor: it names what the child posts or signals to,
and what in the child it wants to reach. Which port IDs, root processors and event flags that takes is decided here.

Event flags are scarce: a processor has 2,047 for VMBus's SINT, and 1,024 children with seven channels need 7,168. The
root therefore has several virtual processors and a (processor, flag) pair is given to each channel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from hypervisor.pages import PAGE_SHIFT
from hypervisor.status import HvError, HvStatus
from hypervisor.synic.ports import PortType

if TYPE_CHECKING:
    from partitions.root.winhv import WinHv

Paying = Callable[[int, Callable[[], None]], None]
"""Makes a call on a partition's account, and again with more pages deposited as long as its pool is too small."""

VMBUS_SINT: Final = 2
FLAGS_PER_SINT: Final = 2048
VMBUS_MESSAGE_TYPE: Final = 1
"""The SynIC message type of channel messages."""
MONITOR_CONNECTION: Final = 3
"""The child's connection behind its monitor page. No guest names it: setting bits in the page is using it."""
_MAX_ID: Final = 0xFF_FFFF
"""Port and connection IDs have 24 bits."""


class IdAllocator:
    """Hands out 24-bit IDs, going round: an ID comes back late, so a stale message meets nobody, not a new owner."""

    __slots__ = ("_next", "in_use")

    def __init__(self, first: int) -> None:
        self._next = first
        self.in_use: set[int] = set()

    def take(self) -> int:
        """A free ID. Raises `HvError` (NO_RESOURCES) when all 16 million are taken."""
        if len(self.in_use) >= _MAX_ID:
            raise HvError(HvStatus.NO_RESOURCES)
        while self._next in self.in_use:
            self._advance()
        taken = self._next
        self.in_use.add(taken)
        self._advance()
        return taken

    def give_back(self, taken: int) -> None:
        """The ID may be used again."""
        self.in_use.discard(taken)

    def _advance(self) -> None:
        self._next = self._next + 1 if self._next < _MAX_ID else 1


class FlagAllocator:
    """(root processor, event flag) pairs: one bit set a processor, flag 0 never used. Spreads over all processors."""

    __slots__ = ("_free", "_turn")

    def __init__(self, processors: int) -> None:
        self._free = [(1 << FLAGS_PER_SINT) - 2 for _ in range(processors)]
        self._turn = 0

    def take(self) -> tuple[int, int]:
        """A pair that nobody has. Raises `HvError` (NO_RESOURCES) when every flag of every processor is taken."""
        for _ in self._free:
            processor = self._turn
            self._turn = (self._turn + 1) % len(self._free)
            free = self._free[processor]
            if free:
                lowest = free & -free
                self._free[processor] = free ^ lowest
                return processor, lowest.bit_length() - 1
        raise HvError(HvStatus.NO_RESOURCES)

    def give_back(self, processor: int, flag: int) -> None:
        """The pair may be used again; a late signal is at worst one spurious wake of its next owner."""
        self._free[processor] |= 1 << flag

    @property
    def taken(self) -> int:
        """Pairs in use."""
        return sum(FLAGS_PER_SINT - 1 - free.bit_count() for free in self._free)


class _Closable:
    """Something that gives back what it took, once."""

    __slots__ = ("_release",)

    def __init__(self) -> None:
        self._release: Callable[[], None] | None = None
        """Set when everything is in place; None again once closed."""

    def close(self) -> None:
        """Disconnect and delete; closing twice, or after the partition is gone, does nothing."""
        release, self._release = self._release, None
        if release is not None:
            release()


class MessageOut(_Closable):
    """A connection of the root to a message port in the child."""

    __slots__ = ("_connection_id", "_winhv")

    def __init__(self, winhv: WinHv, connection_id: int) -> None:
        super().__init__()
        self._winhv = winhv
        self._connection_id = connection_id

    def post(self, payload: bytes) -> HvStatus:
        """HvPostMessage of type 1. INSUFFICIENT_BUFFERS: the child has 16 unread; try again later."""
        if self._release is None:
            return HvStatus.INVALID_CONNECTION_ID
        return self._winhv.post_message(self._connection_id, VMBUS_MESSAGE_TYPE, payload)


class EventOut(_Closable):
    """A connection of the root to an event port in the child."""

    __slots__ = ("_connection_id", "_winhv")

    def __init__(self, winhv: WinHv, connection_id: int) -> None:
        super().__init__()
        self._winhv = winhv
        self._connection_id = connection_id

    @property
    def connection_id(self) -> int:
        """The root's name for it."""
        return self._connection_id

    def signal(self) -> HvStatus:
        """HvSignalEvent, flag 0 of the port."""
        if self._release is None:
            return HvStatus.INVALID_CONNECTION_ID
        return self._winhv.signal_event(self._connection_id)


C = TypeVar("C", bound=_Closable)


class PortsOf:
    """`vmbus.server.ports.HostPorts` for one child, through real hypercalls. `close` takes back whatever is left."""

    def __init__(self, winhv: WinHv, partition_id: int, paying: Paying, first_page: int) -> None:
        self._winhv = winhv
        self._child = partition_id
        self._first_gpa = first_page << PAGE_SHIFT
        self._pay = paying
        self._child_port_ids = IdAllocator(first=0x10)
        self._open: dict[_Closable, None] = {}

    def receive_messages(self, connection_id: int, handler: Callable[[bytes], None]) -> _Closable:
        """What the child posts to `connection_id` comes to `handler`, in the root's interrupt."""
        hv, child = self._winhv, self._child
        port_id = hv.port_ids.take()
        with contextlib.ExitStack() as undo:
            undo.callback(hv.port_ids.give_back, port_id)
            self._pay(hv.root_id, lambda: hv.create_message_port(hv.root_id, port_id, child, vp=0, sint=VMBUS_SINT))
            undo.callback(hv.delete_port, hv.root_id, port_id)
            self._pay(child, lambda: hv.connect_port(child, connection_id, hv.root_id, port_id, PortType.MESSAGE))
            undo.callback(hv.disconnect_port, child, connection_id)
            hv.message_handlers[port_id] = handler
            undo.callback(hv.message_handlers.pop, port_id)
            return self._keep(_Closable(), undo)

    def receive_events(self, connection_id: int, handler: Callable[[], None]) -> _Closable:
        """`handler` is called, in the root's interrupt, when the child signals `connection_id`."""
        hv, child = self._winhv, self._child
        port_id = hv.port_ids.take()
        with contextlib.ExitStack() as undo:
            undo.callback(hv.port_ids.give_back, port_id)
            vp, flag = hv.flags.take()
            undo.callback(hv.flags.give_back, vp, flag)
            self._pay(
                hv.root_id,
                lambda: hv.create_event_port(hv.root_id, port_id, child, vp=vp, sint=VMBUS_SINT, flag=flag),
            )
            undo.callback(hv.delete_port, hv.root_id, port_id)
            self._pay(child, lambda: hv.connect_port(child, connection_id, hv.root_id, port_id, PortType.EVENT))
            undo.callback(hv.disconnect_port, child, connection_id)
            hv.event_handlers[vp][flag] = handler
            undo.callback(hv.forget_event_handler, vp, flag)
            return self._keep(_Closable(), undo)

    def connect_messages(self, vp: int, sint: int) -> MessageOut:
        """A way to post to SINT `sint` of the child's processor `vp`."""
        hv, child = self._winhv, self._child
        with contextlib.ExitStack() as undo:
            port_id = self._child_port_ids.take()
            undo.callback(self._child_port_ids.give_back, port_id)
            self._pay(child, lambda: hv.create_message_port(child, port_id, hv.root_id, vp=vp, sint=sint))
            undo.callback(hv.delete_port, child, port_id)
            connection_id = self._connect(undo, port_id, PortType.MESSAGE)
            return self._keep(MessageOut(hv, connection_id), undo)

    def connect_events(self, vp: int, sint: int, flag: int) -> EventOut:
        """A way to set event flag `flag` of SINT `sint` in the child's processor `vp`."""
        hv, child = self._winhv, self._child
        with contextlib.ExitStack() as undo:
            # The number says what the port is for, as on Hyper-V: people meet it in traces.
            port_id = 2 | sint << 4 | flag << 8
            if port_id in self._child_port_ids.in_use:
                port_id = self._child_port_ids.take()
            self._child_port_ids.in_use.add(port_id)
            undo.callback(self._child_port_ids.give_back, port_id)
            self._pay(child, lambda: hv.create_event_port(child, port_id, hv.root_id, vp=vp, sint=sint, flag=flag))
            undo.callback(hv.delete_port, child, port_id)
            connection_id = self._connect(undo, port_id, PortType.EVENT)
            return self._keep(EventOut(hv, connection_id), undo)

    def watch_sent(self, page: int) -> _Closable:
        """The hypervisor looks for triggers that the root sets in this page of the child's."""
        hv, child = self._winhv, self._child
        with contextlib.ExitStack() as undo:
            port_id = self._child_port_ids.take()
            undo.callback(self._child_port_ids.give_back, port_id)
            self._pay(child, lambda: hv.create_monitor_port(child, port_id, hv.root_id, page=page))
            undo.callback(hv.delete_port, child, port_id)
            self._connect(undo, port_id, PortType.MONITOR, self._first_gpa + page)
            return self._keep(_Closable(), undo)

    def watch_received(self, page: int) -> _Closable:
        """The hypervisor looks for triggers that the child sets in this page of its own."""
        hv, child = self._winhv, self._child
        with contextlib.ExitStack() as undo:
            port_id = hv.port_ids.take()
            undo.callback(hv.port_ids.give_back, port_id)
            ours = self._first_gpa + page
            self._pay(hv.root_id, lambda: hv.create_monitor_port(hv.root_id, port_id, child, page=ours))
            undo.callback(hv.delete_port, hv.root_id, port_id)
            self._pay(
                child,
                lambda: hv.connect_port(child, MONITOR_CONNECTION, hv.root_id, port_id, PortType.MONITOR, page=page),
            )
            undo.callback(hv.disconnect_port, child, MONITOR_CONNECTION)
            return self._keep(_Closable(), undo)

    @property
    def open_count(self) -> int:
        """Ports and connections that are still open."""
        return len(self._open)

    def close(self) -> None:
        """Close everything that its users have not closed."""
        for closable in list(self._open):
            closable.close()

    def _connect(self, undo: contextlib.ExitStack, port_id: int, kind: PortType, page: int = 0) -> int:
        hv = self._winhv
        connection_id = hv.connection_ids.take()
        undo.callback(hv.connection_ids.give_back, connection_id)
        self._pay(hv.root_id, lambda: hv.connect_port(hv.root_id, connection_id, self._child, port_id, kind, page=page))
        undo.callback(hv.disconnect_port, hv.root_id, connection_id)
        return connection_id

    def _keep(self, closable: C, undo: contextlib.ExitStack) -> C:
        """Everything worked: from here on it is `closable.close` that undoes it."""
        self._open[closable] = None
        undo.callback(self._open.pop, closable)
        closable._release = undo.pop_all().close
        return closable
