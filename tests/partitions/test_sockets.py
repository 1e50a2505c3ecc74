"""Sockets of whole VMs: the Python API and the control socket, with a model guest at the other end of a real bus."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from hypervisor.trace import TraceEvent
from partitions.backends import refuse_threads
from partitions.cli.viewer import mistakes
from partitions.host import Host, SocketRefused, StartFailed, Vm, open_host
from partitions.remote import RequestDenied, connect
from partitions.root.control_socket import open_control_socket
from partitions.topology import TopologyError, parse_topology
from tests.doubles.root import held
from tests.doubles.socket_programs import TABLE, listening_topology
from vmbus.server.socket_stream import HostSocket

GUID = "ee59b4bf-a573-48d0-9c51-bb0e72c2b139"


@asynccontextmanager
async def listening(folder: Path, more: str = "") -> AsyncIterator[tuple[Host, Vm]]:
    """A host whose VM listens."""
    with trio.fail_after(200):
        async with open_host(listening_topology(folder, more)) as host:
            vm = host["web"]
            await vm.start()
            yield host, vm
            await vm.turn_off()
            assert vm.exit is not None
            vm.exit.raise_worker_failure()


async def all_of(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(piece) async for piece in stream])


async def test_a_stream_to_a_port(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """There and back, with an end of its own for each direction; then nothing of it is left on either side."""
    async with listening(tmp_path) as (host, vm):
        data = bytes(range(256)) * 2000
        async with await vm.connect(7) as stream, trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            assert await all_of(stream) == data
        async with await vm.connect("00000007-facb-11e6-bd58-64006a7986d3") as stream:
            await stream.send_all(b"by its GUID")
            assert await stream.receive_some() == b"by its GUID"
        await trio.sleep(10)
        seen = await host.inspect("vm/web/sockets")
        assert (seen["live"], seen["made"], seen["refused"], seen["connections"]) == (0, 2, 0, {})
        assert (await host.inspect("vm/web/vmbus"))["channels"] == {}
        assert vm.statistics().packets > 20


async def test_five_hundred_connections_leave_nothing(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Twenty at a time: ports, connections, descriptors, tasks and guest pages are as before."""
    async with listening(tmp_path) as (host, vm):

        async def some(count: int) -> None:
            for number in range(count):
                async with await vm.connect(7) as stream:
                    await stream.send_all(b"%d" % number)
                    assert await stream.receive_some() == b"%d" % number

        async def left() -> tuple[object, ...]:
            await trio.sleep(20)
            limits = await host.inspect("vm/web/vmbus/limits")
            return held(host), limits, trio.lowlevel.current_statistics().tasks_living

        await some(5)
        before = await left()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(some, 25)
        assert await left() == before
        assert (await host.inspect("vm/web/sockets"))["made"] == 505


async def test_refusals_name_the_vm(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Nothing listens there, it is off, that is no port: a `ConnectionError` or a `ValueError` with words."""
    async with listening(tmp_path) as (_, vm):
        with pytest.raises(SocketRefused, match="web: port 8: nothing in its guest"):
            await vm.connect(8)
        with pytest.raises(ConnectionError, match=f"web: {GUID}: nothing in its guest"):
            await vm.connect(GUID)
        for wrong in (-1, 1 << 32, "eighty"):
            with pytest.raises(ValueError, match=r"neither a port|no port"):
                await vm.connect(wrong)
        await vm.turn_off()
        with pytest.raises(SocketRefused, match="web: port 7: it is off"):
            await vm.connect(7)
        await vm.start()


@pytest.mark.parametrize("way", ["turn_off", "reset", "guest ends"])
async def test_the_end_of_a_vm_is_the_end_of_its_streams(
    tmp_path: Path, way: str, autojump_clock: trio.abc.Clock
) -> None:
    """Whoever reads gets the end, and a VM that runs again listens again."""
    async with listening(tmp_path) as (host, vm):
        stream = await vm.connect(9)
        before = held(host)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def read() -> None:
                assert await stream.receive_some() == b""

            await trio.sleep(1)
            match way:
                case "reset":
                    await vm.reset()
                case "turn_off":
                    await vm.turn_off()
                    await vm.start()
                case _:
                    await vm.shut_down()
                    await vm.start()
        await stream.aclose()
        async with await vm.connect(9) as stream:
            await trio.sleep(1)
            assert held(host) == before


async def test_who_listens_stays(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A listener of the host's outlives its VM's runs; a port has one at a time."""

    async def nobody(stream: HostSocket) -> None:
        raise AssertionError

    async with listening(tmp_path) as (host, vm):
        listener = vm.listen(5000, nobody)
        with pytest.raises(ValueError, match="somebody listens on port 5000 already"):
            vm.listen("5000", nobody)
        await vm.turn_off()
        await vm.start()
        assert (await host.inspect("vm/web/sockets"))["listeners"] == {"port 5000": True}
        listener.close()
        assert (await host.inspect("vm/web/sockets"))["listeners"] == {}


async def test_sockets_are_cut_when_a_vm_is_saved(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Their other ends cannot be kept. The VM goes on without them, here and from its file."""
    async with listening(tmp_path) as (_, vm):
        for _ in range(3):
            stream = await vm.connect(7)
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            checkpoint = await vm.checkpoint()
            assert await stream.receive_some() == b""
            await stream.aclose()
            async with await vm.connect(7) as again:
                await again.send_all(b"again")
                assert await again.receive_some() == b"again"
            await vm.revert(checkpoint)
            await trio.sleep(1)
        async with await vm.connect(7):
            await vm.save()
        await vm.start()
        await trio.sleep(1)
        async with await vm.connect(7) as stream:
            await stream.send_all(b"restored")
            assert await stream.receive_some() == b"restored"


async def test_traces_call_them_sockets(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Packets of a socket have its kind as their device, so that recordings are decoded; refusals have words."""
    events: list[TraceEvent] = []
    async with listening(tmp_path) as (host, vm):
        host.trace.add_sink(events.append)
        async with await vm.connect(7) as stream:
            await stream.send_all(b"hello")
            await stream.receive_some()
        with pytest.raises(SocketRefused):
            await vm.connect(8)
    packets = [event for event in events if event.event in ("packet_sent", "packet_received")]
    assert {event.fields["device"] for event in packets} == {"hv-socket"}
    (refused,) = [event for event in events if event.event == "socket_refused"]
    assert refused.words == "port 8: nothing in its guest listens there"
    assert mistakes(host) == 0, "who asks at a port where nobody listens has made none"


# --- the control socket


async def test_connect_by_the_control_socket(tmp_path: Path) -> None:
    """Bytes both ways behind the answer, those that came with the request too, and a half close each way."""
    async with (
        listening(tmp_path) as (host, _),
        open_control_socket(host, tmp_path / "it.sock", topology="farm") as control,
    ):
        async with connect(control.path) as remote, remote.stream("connect", vm="web", port=7) as stream:
            await stream.send(b"hello, ")
            await stream.send(b"world")
            await stream.end()
            heard = b""
            while piece := await stream.receive():
                heard += piece
            assert heard == b"hello, world"
            while not stream.hung_up:  # noqa: ASYNC110
                await trio.sleep(0.001)
        async with await trio.open_unix_socket(str(control.path)) as raw:
            await raw.send_all(b'{"op":"connect","vm":"web","port":"7"}\nat once')
            await raw.send_eof()
            assert await all_of(raw) == b'{"id":null,"ok":true,"result":null}\nat once'


async def test_refusals_by_the_control_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its kind, and the connection goes on."""
    monkeypatch.setattr("vmbus.server.sockets.GUEST_ACCEPTS_WITHIN", 0.01)
    async with (
        listening(tmp_path) as (host, vm),
        open_control_socket(host, tmp_path / "it.sock", topology="farm") as control,
        connect(control.path) as remote,
    ):
        for port, kind, words in [
            (8, "refused", "web: port 8: nothing in its guest took it within 0.01 s"),
            (1 << 32, "bad_line", "port: 4294967296 is no port: 0 to 4294967295 are"),
            ("x", "bad_line", "port: 'x' is neither a port nor the GUID of a service"),
        ]:
            with pytest.raises(RequestDenied) as caught:
                await remote.ask("connect", vm="web", port=port)
            assert (caught.value.kind, str(caught.value)) == (kind, words)
        await vm.turn_off()
        with pytest.raises(RequestDenied, match="web: port 7: it is off"):
            await remote.ask("connect", vm="web", port=7)
        await vm.start()


async def test_the_end_of_the_host_ends_the_stream(tmp_path: Path) -> None:
    """A peer that waits for more gets the end."""
    async with (
        trio.open_nursery() as nursery,
        listening(tmp_path) as (host, _),
        open_control_socket(host, tmp_path / "it.sock", topology="farm") as control,
    ):
        connected = trio.Event()

        @nursery.start_soon
        async def read() -> None:
            async with connect(control.path) as remote, remote.stream("connect", vm="web", port=9) as stream:
                connected.set()
                assert await stream.receive() == b""

        await connected.wait()


# --- topologies


async def test_a_path_that_cannot_be_had(tmp_path: Path) -> None:
    """The VM does not start, and says which path and what to do; once it is free, it starts."""
    more = '[vm.sockets]\npath = "web.vsock"\n'
    async with open_host(listening_topology(tmp_path, more)) as host:
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(tmp_path / "web.vsock"))
            other.listen()
            with pytest.raises(StartFailed, match=r"sockets: .*web\.vsock: somebody listens there already.*another"):
                await host["web"].start()
        await host["web"].start()
        seen = await host.inspect("vm/web/sockets/unix")
        assert seen == {"clients": 0, "most_clients": 1024, "paths": {str(tmp_path / "web.vsock"): "CONNECT"}}
        await host["web"].turn_off()
    assert not (tmp_path / "web.vsock").exists()


def test_not_on_the_virtual_clock(tmp_path: Path) -> None:
    """It waits for nobody outside: refused by name, before anything starts."""
    topology = listening_topology(tmp_path, '[vm.sockets.ports]\n"http.sock" = 80\n')
    with pytest.raises(ValueError, match=r'VM "web": \[vm\.sockets\] cannot be had on the virtual clock'):
        refuse_threads(topology)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("[vm.sockets]\n", 'vm[0] "web".sockets: has neither a path nor ports: name one, or remove [vm.sockets]'),
        ('[vm.sockets]\npaht = "x"\n', 'sockets.paht: unknown key; did you mean "path"?'),
        ("[vm.sockets]\npath = 3\n", "sockets.path: must be text, is 3"),
        ("[vm.sockets]\nports = 3\n", "sockets.ports: must be a table, is 3"),
        ('[vm.sockets.ports]\n"x.sock" = "80"\n', 'sockets.ports.x.sock: must be a whole number, is "80"'),
        ("[vm.sockets.ports]\nx = 4294967296\n", "sockets.ports.x: must be at most 4294967295, is 4294967296"),
        ('[vm.sockets]\npath = "no/where.sock"\n', "sockets.path: the folder"),
        ('[vm.sockets]\npath = "listener.py"\n', "is there and no socket; remove it, or name another path"),
        (f'[vm.sockets]\npath = "{"x" * 108}"\n', "a Unix socket's path has at most 107 bytes"),
        (
            '[vm.sockets]\npath = "x.sock"\n[vm.sockets.ports]\n"./x.sock" = 80\n',
            'vm[0] "web".sockets.path is this path too',
        ),
    ],
)
def test_topologies_that_are_wrong(tmp_path: Path, more: str, words: str) -> None:
    """Each mistake has its place and a remedy, before anything starts."""
    listening_topology(tmp_path)
    with pytest.raises(TopologyError) as caught:
        parse_topology(TABLE + more, tmp_path)
    (problem,) = caught.value.problems
    assert words in str(problem)
