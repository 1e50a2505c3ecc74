"""`HostPorts` without a hypervisor: posts and signals are lists, the guest's side is method calls."""

from __future__ import annotations

from collections.abc import Callable

from hypervisor.status import HvError, HvStatus


class _Closable:
    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class FakeMessages(_Closable):
    """A message connection; `room` is how many messages the guest's port takes before it is full."""

    def __init__(self, ports: FakePorts, vp: int, sint: int) -> None:
        super().__init__()
        self.ports, self.vp, self.sint = ports, vp, sint

    def post(self, payload: bytes) -> HvStatus:
        assert not self.closed
        if self.ports.room == 0:
            self.ports.full += 1
            return HvStatus.INSUFFICIENT_BUFFERS
        self.ports.room -= 1
        self.ports.posted.append(payload)
        return HvStatus.SUCCESS


class FakeEvents(_Closable):
    """An event connection; counts signals."""

    def __init__(self, ports: FakePorts, vp: int, sint: int, flag: int) -> None:
        super().__init__()
        self.ports, self.vp, self.sint, self.flag = ports, vp, sint, flag
        self.connection_id = 0x1000 + len(ports.events)
        self.signals = 0

    def signal(self) -> HvStatus:
        assert not self.closed
        self.signals += 1
        self.ports.on_signal(self.flag)
        return HvStatus.SUCCESS


class _Port(_Closable):
    def __init__(self, table: dict[int, object], connection_id: int) -> None:
        super().__init__()
        self.table, self.connection_id = table, connection_id

    def close(self) -> None:
        super().close()
        self.table.pop(self.connection_id, None)


class FakePorts:
    """The hypervisor as a VMBus server sees it, for a child with `vps` processors."""

    def __init__(self, vps: int = 2) -> None:
        self.vps = vps
        self.room = 1 << 30
        self.full = 0
        self.posted: list[bytes] = []
        self.message_handlers: dict[int, Callable[[bytes], None]] = {}
        self.event_handlers: dict[int, Callable[[], None]] = {}
        self.messages: list[FakeMessages] = []
        self.events: list[FakeEvents] = []
        self.watched: list[tuple[str, int, _Closable]] = []
        """Monitor pages; a test looks for their triggers itself."""
        self.on_signal: Callable[[int], None] = lambda flag: None
        """The guest's interrupt handler for event flags."""

    def receive_messages(self, connection_id: int, handler: Callable[[bytes], None]) -> _Port:
        assert connection_id not in self.message_handlers
        self.message_handlers[connection_id] = handler
        return _Port(self.message_handlers, connection_id)  # type: ignore[arg-type]

    def receive_events(self, connection_id: int, handler: Callable[[], None]) -> _Port:
        if connection_id in self.event_handlers or connection_id in self.message_handlers:
            raise HvError(HvStatus.INVALID_CONNECTION_ID)
        self.event_handlers[connection_id] = handler
        return _Port(self.event_handlers, connection_id)  # type: ignore[arg-type]

    def connect_messages(self, vp: int, sint: int) -> FakeMessages:
        self._check(vp, sint)
        self.messages.append(FakeMessages(self, vp, sint))
        return self.messages[-1]

    def connect_events(self, vp: int, sint: int, flag: int) -> FakeEvents:
        self._check(vp, sint, flag)
        self.events.append(FakeEvents(self, vp, sint, flag))
        return self.events[-1]

    def watch_sent(self, page: int) -> _Closable:
        self.watched.append(("sent", page, _Closable()))
        return self.watched[-1][2]

    def watch_received(self, page: int) -> _Closable:
        self.watched.append(("received", page, _Closable()))
        return self.watched[-1][2]

    def _check(self, vp: int, sint: int, flag: int = 0) -> None:
        if vp >= self.vps:
            raise HvError(HvStatus.INVALID_VP_INDEX)
        if sint > 15 or flag > 2047:
            raise HvError(HvStatus.INVALID_PARAMETER)

    @property
    def open(self) -> list[_Closable]:
        """Everything that was not closed; ports by their tables."""
        return [thing for thing in (*self.messages, *self.events) if not thing.closed]
