"""The page's server: for browsers on this machine and nobody else, whatever they send."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from hypervisor.trace import Layer, TraceEvent
from partitions.watch import server as server_module
from partitions.watch.hub import Hub
from partitions.watch.server import PortTaken, listen_on, open_server


class Site:
    """A server and where it is."""

    def __init__(self, hub: Hub, address: str) -> None:
        self.hub = hub
        self.address = address
        self.host, _, self.word = address.removeprefix("http://").rstrip("/").partition("/")
        self.port = int(self.host.rpartition(":")[2])

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def ask(self, head: str, body: bytes = b"", *, host: str | None = None, **headers: str) -> tuple[int, str]:
        """The status and all that came; the connection is closed by the server or by us."""
        lines = [head, f"Host: {host or self.host}", *(f"{name}: {value}" for name, value in headers.items())]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        async with await self.connect() as stream:
            await stream.send_all("\r\n".join([*lines, "Connection: close", "", ""]).encode() + body)
            came = b""
            while data := await stream.receive_some(65536):
                came += data
        return int(came.split(b" ", 2)[1]), came.decode()


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    hub = Hub({}, title="<host>", instance="1")
    async with open_server(hub, listen_on()) as address:
        yield Site(hub, address)


async def test_the_page() -> None:
    """It comes with the policy that lets it run its own script and nothing else, and is not kept by anybody."""
    async with site() as here:
        status, answer = await here.ask(f"GET /{here.word}/ HTTP/1.1")
        assert status == 200
        head, _, page = answer.partition("\r\n\r\n")
        assert "default-src 'none'" in head
        assert "frame-ancestors 'none'" in head
        assert "no-store" in head
        assert "<title>&lt;host&gt;" in page
        assert 'data-live="events"' in page


async def test_only_its_own_address_opens_it() -> None:
    """Another word, another host's name (DNS rebinding) and another site's page all get nothing."""
    async with site() as here:
        page = f"GET /{here.word}/ HTTP/1.1"
        assert (await here.ask("GET / HTTP/1.1"))[0] == 404
        assert (await here.ask(f"GET /{here.word[:-1]}x/ HTTP/1.1"))[0] == 404
        assert (await here.ask("GET /%FF\x7f/ HTTP/1.1"))[0] in (400, 404)
        assert (await here.ask(page, host="evil.example"))[0] == 403
        assert (await here.ask(page, host=f"evil.example:{here.port}"))[0] == 403
        assert (await here.ask(page, host=f"127.0.0.1:{here.port + 1}"))[0] == 403
        assert (await here.ask(page, Origin="http://evil.example"))[0] == 403
        assert (await here.ask(page, Origin="null"))[0] == 403
        assert (await here.ask(page, host=f"localhost:{here.port}"))[0] == 200
        assert (await here.ask(page, Origin=f"http://{here.host}"))[0] == 200
        assert not here.hub.seen.is_set()


async def test_it_is_on_the_loopback_address_only() -> None:
    """Nobody outside this machine can even connect."""
    with listen_on() as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


async def test_events_as_they_come() -> None:
    """A stream of server-sent events, which ends when the host does."""
    async with site() as here:
        async with trio.open_nursery() as nursery:

            async def host() -> None:
                await here.hub.seen.wait()
                here.hub.sink(TraceEvent(5, Layer.STATE, "vm_state", 2, words="off -> running", vm="web"))
                here.hub.end()

            nursery.start_soon(host)
            status, answer = await here.ask(f"GET /{here.word}/events HTTP/1.1")
        assert status == 200
        assert "text/event-stream" in answer
        assert [line for line in answer.split("\r\n" if "\r\n0" in answer else "\n") if "event: " in line]
        assert answer.index("event: hello") < answer.index("event: events") < answer.index("event: end")
        assert '"off -> running"' in answer


async def test_fields_of_bytes() -> None:
    """A page asks for the fields of what it shows; what is no question is refused."""
    async with site() as here:
        where = f"POST /{here.word}/decode HTTP/1.1"
        question = {"layer": "control", "data": "DgAAAAAAAAAAAAYAAAAAAA=="}
        status, answer = await here.ask(where, json.dumps(question).encode())
        assert status == 200
        assert "INITIATE_CONTACT" in answer
        assert (await here.ask(where, b"{}"))[0] == 400
        assert (await here.ask(where, b"x" * (server_module.MAX_BODY + 1)))[0] == 413
        assert (await here.ask(f"GET /{here.word}/decode HTTP/1.1"))[0] == 405
        assert (await here.ask(f"DELETE /{here.word}/ HTTP/1.1"))[0] == 405
        assert (await here.ask(f"GET /{here.word}/../secrets HTTP/1.1"))[0] == 404


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"\0" * 100_000,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
    ],
)
async def test_garbage_ends_its_own_connection(garbage: bytes) -> None:
    """No bytes of a stranger's are an exception here, and the next browser is served."""
    async with site() as here:
        stream = await here.connect()
        try:
            await stream.send_all(garbage)
            await stream.send_eof()
            while await stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            pass
        await trio.aclose_forcefully(stream)
        assert (await here.ask(f"GET /{here.word}/ HTTP/1.1"))[0] == 200


async def test_a_browser_that_goes_in_the_middle() -> None:
    """Its queue goes with it, at the latest with the next sign of life."""
    async with site() as here:
        stream = await here.connect()
        await stream.send_all(f"GET /{here.word}/events HTTP/1.1\r\nHost: {here.host}\r\n\r\n".encode())
        assert await stream.receive_some(1)
        assert len(here.hub._queues) == 1
        await trio.aclose_forcefully(stream)
        while here.hub._queues:
            here.hub.sink(TraceEvent(5, Layer.STATE, "vm_state", 2, words="off -> running", vm="web"))
            await trio.sleep(0.001)


async def test_who_says_nothing_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a request is closed; more than there may be are closed at once."""
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.05)
    async with site() as here:
        async with await here.connect() as stream:
            await stream.send_all(b"GET / HT")
            assert await stream.receive_some(100) == b""
        monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 0)
        async with await here.connect() as stream:
            try:
                assert await stream.receive_some(100) == b""
            except trio.BrokenResourceError:
                pass


async def test_who_takes_no_answers_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty-four strangers that asked and never read held all connections for good: nobody saw the page any more."""
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 1)
    async with site() as here:
        request = f"GET /none HTTP/1.1\r\nHost: {here.host}\r\n\r\n".encode()
        async with await here.connect() as stream:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            dropped = False
            with trio.move_on_after(10):
                try:
                    while True:
                        await stream.send_all(request * 1000)
                except trio.BrokenResourceError:
                    dropped = True
            assert dropped
        assert (await here.ask(f"GET /{here.word}/ HTTP/1.1"))[0] == 200


async def test_a_body_in_chunks_of_a_byte_holds_up_nobody() -> None:
    """Thousands of them come in one piece, and were taken in one turn, before it was known who asks."""
    async with site() as here, await here.connect() as stream, trio.open_nursery() as nursery:
        rounds = 0

        async def others() -> None:
            nonlocal rounds
            while True:
                await trio.lowlevel.checkpoint()
                rounds += 1

        head = f"POST /none HTTP/1.1\r\nHost: {here.host}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        await stream.send_all(head + b"1\r\na\r\n" * 2000 + b"0\r\n\r\n")
        nursery.start_soon(others)
        assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 404")
        assert rounds > 1000
        nursery.cancel_scope.cancel()


async def test_one_connection_many_requests() -> None:
    """A browser asks for fields again and again on the same connection."""
    async with site() as here, await here.connect() as stream:
        for _ in range(3):
            await stream.send_all(f"GET /{here.word}/none HTTP/1.1\r\nHost: {here.host}\r\n\r\n".encode())
            came = b""
            while b"\r\n\r\n" not in came:
                came += await stream.receive_some(65536)
            assert came.startswith(b"HTTP/1.1 404")


def test_a_port_that_is_taken() -> None:
    """Said before anything starts, with what would help."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"port {port}: something else listens there; another one, or 0"):
            listen_on(port)
