"""Unix sockets of a VM: real ones, in front of a real bus server and a guest made of method calls."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from hypervisor.wire import Guid
from partitions.control_folder import address
from partitions.root import sockets as module
from partitions.root.sockets import (
    BadRequest,
    Outside,
    SocketsError,
    UnixSockets,
    ok_response,
    open_unix_sockets,
    parse_request,
)
from partitions.topology_schema import SocketsTable
from tests.doubles.socket_guest import REFUSED, AcceptingGuest, SocketGuest, endpoint, socket_guest
from vmbus.pipe import BytePipe
from vmbus.protocol import messages as m
from vmbus.protocol.hvsocket import service_of
from vmbus.server.sockets import SocketListeners

OTHER = Guid("ee59b4bf-a573-48d0-9c51-bb0e72c2b139")
TABLE = SocketsTable(path="vm.vsock", ports={"upper.sock": 7, "nobody.sock": 8})


async def upper(pipe: BytePipe) -> None:
    """Answers all of it at the end of what it was told."""
    heard = b"".join([piece async for piece in pipe])
    await pipe.send_all(heard.upper())
    await pipe.send_eof()
    await trio.sleep_forever()


async def shout(pipe: BytePipe) -> None:
    """Answers at once, piece by piece."""
    async for piece in pipe:
        await pipe.send_all(piece.upper())
    await pipe.send_eof()


async def drink(pipe: BytePipe) -> None:
    """Takes it all, and never says anything, not even that it says nothing."""
    async for _ in pipe:
        pass
    await trio.sleep_forever()


async def bye(pipe: BytePipe) -> None:
    """Says one word."""
    await pipe.send_all(b"bye")
    await pipe.send_eof()


@attrs.define
class Place:
    folder: Path
    guest: SocketGuest
    unix: UnixSockets

    async def client(self, name: str = "vm.vsock") -> trio.SocketStream:
        with address(self.folder / name) as where:
            return await trio.open_unix_socket(where)


@asynccontextmanager
async def place(folder: Path, table: SocketsTable = TABLE) -> AsyncIterator[Place]:
    listeners = SocketListeners(Outside(folder / table.path).find)
    with trio.fail_after(20):
        async with socket_guest(listeners=listeners, settle=False) as guest, trio.open_nursery() as nursery:
            handlers = {service_of(7): upper, service_of(9): shout, service_of(10): drink, service_of(11): bye}
            handlers[OTHER] = upper
            accepting = AcceptingGuest(guest, handlers)
            await nursery.start(accepting.run)
            async with open_unix_sockets(table, folder, guest.server.sockets, nursery) as unix:
                yield Place(folder, guest, unix)
            nursery.cancel_scope.cancel()


def left_over(path: Path) -> None:
    """The socket of a program that has died."""
    with socket.socket(socket.AF_UNIX) as dead, address(path) as where:
        dead.bind(where)


async def until(what: Callable[[], bool]) -> None:
    """Nothing tells of what is waited for here but a look at it."""
    with trio.fail_after(5):
        while not what():  # noqa: ASYNC110
            await trio.sleep(0.001)


async def gone(there: Place) -> None:
    """Until the host has nothing left of any connection, nor the guest."""
    await until(lambda: not (there.guest.server.sockets.live or there.unix.clients or there.guest.channels))


@pytest.mark.parametrize(
    ("line", "service", "by_port"),
    [
        (b"CONNECT 1234", service_of(1234), True),
        (b"connect 1234", service_of(1234), True),
        (b"CoNnEcT 0", service_of(0), True),
        (b"CONNECT 80\r", service_of(80), True),
        (b"CONNECT 00000123-facb-11e6-bd58-64006a7986d3", service_of(0x123), False),
        (b"CONNECT EE59B4BF-A573-48D0-9C51-BB0E72C2B139", OTHER, False),
    ],
)
def test_requests(line: bytes, service: Guid, by_port: bool) -> None:
    """Either case of the word, a port in decimal or a GUID; openvmm's own examples are among them."""
    assert parse_request(line) == (service, by_port)


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"CONNECT", b"CONNECT ", b"CONNECT80", b"GET / HTTP/1.1", b"CONNECT 4294967296", b"CONNECT -1"),
        *(b"CONNECT 80 80", b"CONNECT 0x50", b" CONNECT 80", b"CONNECT \xff", b"CONNECT \xd9\xa8", b"CONNECT 80\n"),
    ],
)
def test_what_is_no_request(line: bytes) -> None:
    """Nothing that is nearly one is taken for one."""
    with pytest.raises(BadRequest):
        parse_request(line)


def test_answers() -> None:
    """By port the number of the host's end, by GUID all of it: as the client asked."""
    assert ok_response(service_of(5000), by_port=True) == b"OK 5000\n"
    assert ok_response(OTHER, by_port=False) == b"OK ee59b4bf-a573-48d0-9c51-bb0e72c2b139\n"


@pytest.mark.parametrize("request_line", [b"CONNECT 7\n", b"connect 00000007-facb-11e6-bd58-64006a7986d3\n"])
async def test_connect_by_words(tmp_path: Path, request_line: bytes) -> None:
    """OK, and then a stream; what was said behind the line already is part of it, and each end is passed on."""
    async with place(tmp_path) as there:
        async with await there.client() as client:
            await client.send_all(request_line + b"hello, ")
            await client.send_all(b"world")
            await client.send_eof()
            heard = b"".join([piece async for piece in client])
        answer, _, rest = heard.partition(b"\n")
        assert answer.startswith(b"OK ")
        assert rest == b"HELLO, WORLD"
        await gone(there)
        (offer,) = there.guest.offers()
        number = int.from_bytes(offer.instance[:4], "little")
        assert answer.decode()[3:] == (str(number) if b" 7" in request_line else str(offer.instance))
        there.guest.nothing_left()


async def test_a_request_in_pieces(tmp_path: Path) -> None:
    """A byte at a time is a request too."""
    async with place(tmp_path) as there, await there.client() as client:
        for byte in b"CONNECT 7\nx":
            await client.send_all(bytes([byte]))
            await trio.lowlevel.checkpoint()
        await client.send_eof()
        assert b"".join([piece async for piece in client]).endswith(b"\nX")


async def test_a_ports_own_socket(tmp_path: Path) -> None:
    """Not a word is needed, and none is said."""
    async with place(tmp_path) as there, await there.client("upper.sock") as client:
        await client.send_all(b"hello")
        await client.send_eof()
        assert b"".join([piece async for piece in client]) == b"HELLO"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vm.vsock", b"CONNECT 8\n"),
        ("nobody.sock", b"hello"),
        ("vm.vsock", b"GET / HTTP/1.1\r\n\r\n"),
        ("vm.vsock", b"CONNECT " + b"0" * 64),
        ("vm.vsock", b"CONNECT 7"),
    ],
)
async def test_a_refused_client_hears_nothing(tmp_path: Path, name: str, said: bytes) -> None:
    """The end of the connection and no word, whether nobody listens there or it is no request."""
    async with place(tmp_path) as there:
        async with await there.client(name) as client:
            await client.send_all(said)
            await client.send_eof()
            try:
                assert await client.receive_some() == b""
            except trio.BrokenResourceError:
                pass  # the system says reset where we had not read all
        await gone(there)
        there.guest.nothing_left()


async def test_a_client_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is bounded, so that it cannot keep others out."""
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.05)
    async with place(tmp_path) as there, await there.client() as client:
        assert await client.receive_some() == b""


async def test_so_many_clients_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One past the limit is hung up on; one that goes makes room."""
    monkeypatch.setattr(module, "MAX_CLIENTS", 2)
    async with place(tmp_path) as there:
        first, second = await there.client("upper.sock"), await there.client("upper.sock")
        await until(lambda: there.unix.clients == 2)
        async with await there.client("upper.sock") as third:
            assert await third.receive_some() == b""
        await first.aclose()
        await until(lambda: there.unix.clients == 1)
        async with await there.client("upper.sock") as fourth:
            await fourth.send_all(b"in")
            await fourth.send_eof()
            assert await fourth.receive_some() == b"IN"
        await second.aclose()


async def test_a_client_that_vanishes(tmp_path: Path) -> None:
    """In the middle of anything: the guest sees the end, and the host has nothing left of it."""
    async with place(tmp_path) as there:
        for said in (b"", b"CONNECT", b"CONNECT 7\n", b"CONNECT 9\nhello"):
            async with await there.client() as client:
                if said:
                    await client.send_all(said)
                if said.endswith(b"hello"):
                    while not (await client.receive_some()).endswith(b"HELLO"):
                        pass
        await gone(there)
        there.guest.nothing_left()


async def test_a_client_that_hangs_up_after_its_half_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is noticed, though a half close looks the same to who only reads; one that listens is let alone."""
    monkeypatch.setattr(module, "_HANGUP_SECONDS", 0.005)
    async with place(tmp_path) as there:
        async with await there.client() as client:
            await client.send_all(b"CONNECT 10\n")
            assert (await client.receive_some()).startswith(b"OK ")
            await client.send_eof()
            await trio.sleep(0.03)
            assert there.unix.clients == 1
        await gone(there)
        there.guest.nothing_left()


async def test_a_guest_that_hangs_up(tmp_path: Path) -> None:
    """Its client is hung up on too, though it has not said all: what it says more nobody would take."""
    async with place(tmp_path) as there, await there.client() as client:
        await client.send_all(b"CONNECT 11\n")
        heard = b""
        while not heard.endswith(b"bye"):
            heard += await client.receive_some()
        assert await client.receive_some() == b""
        await there.guest.close(1)
        await gone(there)
        there.guest.nothing_left()


async def test_sockets_are_their_owners_and_go(tmp_path: Path) -> None:
    """Mode 0600 while the VM is on, and no file afterwards."""
    async with place(tmp_path) as there:
        for name in ("vm.vsock", "upper.sock", "nobody.sock"):
            mode = os.stat(tmp_path / name).st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
        paths = there.unix.inspect().children["paths"]
        assert paths.children[str(tmp_path / "upper.sock")] == "port 7"  # type: ignore[union-attr]
    assert os.listdir(tmp_path) == []


async def test_a_file_that_was_left_over_is_replaced(tmp_path: Path) -> None:
    """By a host that died; one that somebody put in ours' place meanwhile is left alone at the end."""
    left_over(tmp_path / "vm.vsock")
    async with place(tmp_path) as there:
        async with await there.client() as client:
            await client.send_all(b"CONNECT 7\n")
            await client.send_eof()
            assert (await client.receive_some()).startswith(b"OK ")
        (tmp_path / "upper.sock").unlink()
        (tmp_path / "upper.sock").write_text("mine")
    assert os.listdir(tmp_path) == ["upper.sock"]


@pytest.mark.parametrize("what", ["a listener", "a file"])
async def test_a_live_socket_is_not_taken_over(tmp_path: Path, what: str) -> None:
    """The error names the path and what to do, and nothing else of the VM's is left behind."""
    with socket.socket(socket.AF_UNIX) as other:
        if what == "a listener":
            with address(tmp_path / "upper.sock") as where:
                other.bind(where)
            other.listen()
        else:
            (tmp_path / "upper.sock").write_text("mine")
        with pytest.raises(ExceptionGroup) as caught:
            async with place(tmp_path):
                raise AssertionError("it was taken over")
        error: BaseException = caught.value
        while isinstance(error, BaseExceptionGroup):
            (error,) = error.exceptions
        assert isinstance(error, SocketsError)
        listens, file = "somebody listens there already; name", "it is there already and is no socket; remove it,"
        why = listens if what == "a listener" else file
        assert str(error).startswith(f"{tmp_path / 'upper.sock'}: {why}")
        assert os.listdir(tmp_path) == ["upper.sock"]


# --- programs of the host that listen


async def serve_program(path: Path, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Says who it is, then what it heard in capitals."""

    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(path.name.encode() + b":")
        async for piece in stream:
            await stream.send_all(bytes(piece).upper())
        await stream.aclose()

    listening = trio.socket.socket(trio.socket.AF_UNIX)
    with address(path) as where:
        await listening.bind(where)
    listening.listen()
    task_status.started()
    await trio.serve_listeners(serve, [trio.SocketListener(listening)])


@pytest.mark.parametrize(
    ("service", "names", "found"),
    [
        (service_of(5000), ["_5000"], "_5000"),
        (service_of(5000), ["_00001388-facb-11e6-bd58-64006a7986d3"], "_00001388-facb-11e6-bd58-64006a7986d3"),
        (service_of(5000), ["_00001388-facb-11e6-bd58-64006a7986d3", "_5000"], "_5000"),
        (OTHER, [f"_{OTHER}"], f"_{OTHER}"),
    ],
    ids=["port", "guid of a port", "both", "guid"],
)
async def test_a_guest_reaches_a_program(tmp_path: Path, service: Guid, names: list[str], found: str) -> None:
    """By its port's number first, then by its GUID."""
    async with place(tmp_path) as there, trio.open_nursery() as nursery:
        for name in names:
            await nursery.start(serve_program, tmp_path / f"vm.vsock{name}")
        guest = there.guest
        await guest.say(m.TlConnectRequest(endpoint=endpoint(1), service=service))
        await guest.open(1)
        pipe = BytePipe(guest.channels[1])
        await pipe.send_all(b"hello")
        await pipe.send_eof()
        assert b"".join([piece async for piece in pipe]) == f"vm.vsock{found}:HELLO".encode()
        await gone(there)
        nursery.cancel_scope.cancel()


async def test_no_program_listens(tmp_path: Path) -> None:
    """No socket at all is a refusal; one that nobody listens on any more fails the open, and then the offer goes."""
    async with place(tmp_path) as there:
        guest = there.guest
        (tmp_path / "vm.vsock_5001").write_text("no socket")
        for port in (5000, 5001):
            request = m.TlConnectRequest(endpoint=endpoint(port), service=service_of(port))
            refused = m.TlConnectResult(endpoint=endpoint(port), service=service_of(port), status=REFUSED)
            assert await guest.say(request) == [refused]
        left_over(tmp_path / "vm.vsock_5000")
        await guest.say(m.TlConnectRequest(endpoint=endpoint(1), service=service_of(5000)))
        said = await guest.open(1)
        assert m.OpenChannelResult(channel_id=1, open_id=1, status=0x8000FFFF) in said


async def test_a_program_whose_queue_is_full(tmp_path: Path) -> None:
    """It is waited for: the system tells of a full queue and not of when it has room."""
    listening = socket.socket(socket.AF_UNIX)
    with address(tmp_path / "vm.vsock_5000") as where:
        listening.bind(where)
    listening.listen(0)
    waiting = []
    try:
        while True:
            one = socket.socket(socket.AF_UNIX)
            one.setblocking(False)
            waiting.append(one)
            with address(tmp_path / "vm.vsock_5000") as where:
                one.connect(where)
    except BlockingIOError:
        pass
    async with place(tmp_path) as there:
        guest = there.guest
        await guest.say(m.TlConnectRequest(endpoint=endpoint(1), service=service_of(5000)))
        assert await guest.open(1) == []
        taken = [listening.accept()[0] for _ in waiting[:-1]]
        await until(lambda: m.OpenChannelResult(channel_id=1, open_id=1) in guest.heard())
    for one in (*waiting, *taken, listening):
        one.close()
