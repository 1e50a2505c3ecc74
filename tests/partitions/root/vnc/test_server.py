"""A VM's VNC server on real sockets: several viewers, slow and hostile ones, and a screen that goes and comes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import pytest
import trio
import trio.testing

from hypervisor.inspect import Branch
from hypervisor.trace import Trace, TraceEvent
from partitions.root.vnc import server as vnc
from partitions.root.vnc.server import ADDRESS, MAX_CLIENTS, Console, VncServer
from tests.doubles import rfb
from tests.doubles.rfb import Viewer
from tests.partitions.root.vnc.test_connection import Screen
from vsp_vsc.video.framebuffer import Framebuffer, Rect

PATIENCE_SECONDS = 20


@attrs.define(eq=False)
class Served:
    """A server for a screen that is the test's."""

    server: VncServer
    screen: Framebuffer | None
    changed: trio.Event
    events: list[TraceEvent]
    told: trio.Event = attrs.field(factory=trio.Event)

    def tell(self, event: TraceEvent) -> None:
        """A sink."""
        self.events.append(event)
        self.told.set()
        self.told = trio.Event()

    async def until(self, true: Callable[[], bool]) -> None:
        """Until an event has made it so."""
        while not true():
            await self.told.wait()

    def put(self, screen: Framebuffer | None) -> None:
        """The VM has another screen, or none."""
        self.screen = screen
        self.changed.set()
        self.changed = trio.Event()

    def shown(self, name: str) -> object:
        return self.server.inspect().children[name]


@asynccontextmanager
async def serving(screen: Framebuffer | None) -> AsyncIterator[Served]:
    trace = Trace(lambda: 0)
    served: Served
    console = Console(lambda: served.screen, lambda: None, lambda: None, lambda: served.changed)
    served = Served(VncServer("desk", (150, 100), console, trace), screen, trio.Event(), [])
    trace.add_sink(lambda event: served.tell(event))
    served.server.listen(0)
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.server.run)
            yield served
            served.server.scope.cancel()
    assert served.server.port == 0
    assert served.server.failures == 0


@asynccontextmanager
async def viewing(served: Served, *, shared: bool = True) -> AsyncIterator[Connected]:
    viewer = Viewer(shared=shared)
    async with await trio.open_tcp_stream(ADDRESS, served.server.port) as stream:
        yield Connected(viewer, stream)


@attrs.frozen
class Connected:
    viewer: Viewer
    stream: trio.SocketStream

    async def turn(self) -> bool:
        """Say what there is to say, and hear something; whether the server is still there."""
        if said := self.viewer.sent():
            await self.stream.send_all(said)
        data = await self.stream.receive_some()
        self.viewer.feed(data)
        return bool(data)

    async def come_in(self) -> None:
        while not self.viewer.running:
            assert await self.turn()

    async def look(self, *, incremental: bool = True) -> None:
        """The next picture."""
        self.viewer.ask(incremental=incremental)
        before = self.viewer.updates
        while self.viewer.updates == before:
            assert await self.turn()

    async def end(self) -> None:
        """Until the server hangs up."""
        try:
            while await self.turn():
                pass
        except trio.BrokenResourceError:
            pass


async def test_a_viewer_sees_what_changes() -> None:
    """The whole picture first, then parts as they change."""
    screen = Screen()
    async with serving(screen.framebuffer) as served, viewing(served) as it:
        await it.come_in()
        it.viewer.set_encodings(rfb.ZRLE)
        await it.look(incremental=False)
        assert it.viewer.picture == screen.expected(it.viewer)
        screen.memory[:400] = bytes((1, 2, 3, 0)) * 100
        screen.framebuffer.changed([Rect(0, 0, 100, 1)])
        await it.look()
        assert it.viewer.picture == screen.expected(it.viewer)
        assert it.viewer.rects[-1] == (0, 0, 100, 1, rfb.ZRLE)
        clients = served.shown("clients")
        assert isinstance(clients, Branch)
        assert clients.names() == ["1"]


async def test_a_vm_that_goes_off_and_comes_back() -> None:
    """Its viewers stay: black while there is nothing, the new screen, perhaps of another size, when there is."""
    screen = Screen()
    async with serving(None) as served, viewing(served) as it:
        await it.come_in()
        it.viewer.set_encodings(rfb.RAW, rfb.DESKTOP_SIZE)
        await it.look(incremental=False)
        assert not any(it.viewer.picture)
        served.put(screen.framebuffer)
        while it.viewer.picture != screen.expected(it.viewer):
            await it.look()
        served.put(None)
        while any(it.viewer.picture):
            await it.look()
        other = Screen(64, 64, 7)
        served.put(other.framebuffer)
        while it.viewer.width != 64 or it.viewer.picture != other.expected(it.viewer):
            await it.look()
        assert screen.framebuffer.watched is False


async def test_several_viewers_and_one_that_wants_to_be_alone() -> None:
    """All see the same; one that does not share ends the others."""
    screen = Screen()
    async with serving(screen.framebuffer) as served, viewing(served) as one, viewing(served) as other:
        for it in (one, other):
            await it.come_in()
            await it.look(incremental=False)
            assert it.viewer.picture == screen.expected(it.viewer)
        async with viewing(served, shared=False) as alone:
            await alone.come_in()
            await one.end()
            await other.end()
            await alone.look(incremental=False)
        await until_alone(served)
        assert not screen.framebuffer.watched
        assert served.shown("faults") == 0


async def until_alone(served: Served) -> None:
    await served.until(lambda: not served.server.clients)


async def test_there_is_a_limit() -> None:
    """Viewers past it are told so; when one leaves there is room."""
    async with serving(Screen().framebuffer) as served, trio.open_nursery() as nursery:
        leave = trio.Event()

        async def stay(task_status: trio.TaskStatus[None]) -> None:
            async with viewing(served) as it:
                await it.come_in()
                task_status.started()
                await leave.wait()

        for _ in range(MAX_CLIENTS):
            await nursery.start(stay)
        async with viewing(served) as late:
            await late.end()
            assert late.viewer.refusal == "16 clients are connected already"
        leave.set()
        await until_alone(served)
        async with viewing(served) as it:
            await it.come_in()
        assert (served.shown("served"), served.shown("refused"), served.shown("faults")) == (MAX_CLIENTS + 1, 1, 0)


async def test_a_crowd_of_clients_that_say_nothing() -> None:
    """Each would cost the host a descriptor and three tasks until its time to come in is over: 32 may, no more."""
    async with serving(Screen().framebuffer) as served, AsyncExitStack() as stack:
        crowd = [
            await stack.enter_async_context(await trio.open_tcp_stream(ADDRESS, served.server.port))
            for _ in range(2 * MAX_CLIENTS + 20)
        ]
        closed = 0

        async def listen(stream: trio.SocketStream) -> None:
            nonlocal closed
            with contextlib.suppress(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass
            closed += 1
            if closed == 20:
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for stream in crowd:
                nursery.start_soon(listen, stream)
        assert (closed, served.shown("refused")) == (20, MAX_CLIENTS + 20)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"RFB 003.008\n\x02", b"RFB 003.008\n\1\1\x99"])
async def test_a_client_that_breaks_the_protocol(said: bytes) -> None:
    """It is closed, counted and warned of; the others notice nothing."""
    screen = Screen()
    async with serving(screen.framebuffer) as served, viewing(served) as it:
        await it.come_in()
        async with await trio.open_tcp_stream(ADDRESS, served.server.port) as bad:
            await bad.send_all(said)
            while await bad.receive_some():
                pass
        await it.look(incremental=False)
        assert it.viewer.picture == screen.expected(it.viewer)
        await served.until(lambda: served.shown("faults") == 1)
        assert any(event.event == "vnc_client_closed" for event in served.events)


async def test_a_client_that_does_not_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a time for it."""
    monkeypatch.setattr(vnc, "GREETING_SECONDS", 0.05)
    async with serving(None) as served:
        async with await trio.open_tcp_stream(ADDRESS, served.server.port) as stream:
            while await stream.receive_some():
                pass
        await until_alone(served)
        assert served.shown("faults") == 1


async def test_a_viewer_that_does_not_read_holds_up_nobody() -> None:
    """Its pictures stay with it; the other's come, and the host keeps a few rectangles."""
    screen = Screen(640, 480)
    async with serving(screen.framebuffer) as served, viewing(served) as slow, viewing(served) as it:
        await slow.come_in()
        slow.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(50):
            slow.viewer.ask(incremental=False)
        await slow.stream.send_all(slow.viewer.sent())
        await it.come_in()
        for number in range(5):
            screen.memory[0] = number
            screen.framebuffer.changed([Rect(0, 0, 640, 480)])
            await it.look()
            assert it.viewer.picture == screen.expected(it.viewer)
        assert served.server.clients == 2


async def test_clients_that_vanish() -> None:
    """At any moment of a connection; nothing of them stays."""
    screen = Screen()
    async with serving(screen.framebuffer) as served:
        for steps in range(6):
            async with viewing(served) as it:
                for step in range(steps):
                    if step == 4:
                        it.viewer.ask(incremental=False)
                    await it.turn()
                    if it.viewer.running and step < 4:
                        break
                it.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # by a reset
        await until_alone(served)
        assert not screen.framebuffer.watched


def test_a_port_that_is_taken() -> None:
    """Is refused by the system, in its words."""
    with socket.create_server((ADDRESS, 0)) as taken:
        console = Console(lambda: None, lambda: None, lambda: None, trio.Event)
        with pytest.raises(OSError, match="in use"):
            VncServer("desk", (1, 1), console, Trace(lambda: 0)).listen(taken.getsockname()[1])
