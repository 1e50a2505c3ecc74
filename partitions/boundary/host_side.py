"""What the speaker of a boundary session does as somebody in the host: verbs, frames, sockets. Root side.

None of it crosses the boundary: it is what makes the root say something that the guest then sees. A command only begins
it; what comes of it is told by events, before the answer where the root is at rest by then.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, assert_never

import trio

from partitions import control_protocol
from partitions.boundary import protocol
from partitions.boundary.protocol import Line
from partitions.host import Host, SocketRefused, Vm
from partitions.op_lines import Id

if TYPE_CHECKING:
    from vmbus.server.socket_stream import HostSocket
    from vmbus.server.sockets import Listening
    from vsp_vsc.network.switch.ports import Port

MAX_WAITING: Final = 1024
"""Sends of one socket that its guest has not taken."""
_STATION: Final = bytes.fromhex("00155dffff")
"""How the driver's addresses at switches begin; a byte with the switch's number follows."""


class CannotDo(ValueError):
    """What was asked for cannot be begun; `field` is the member that is wrong."""

    def __init__(self, field: str, words: str) -> None:
        super().__init__(words)
        self.field = field


class HostSide:
    """For one session. Its tasks are in `nursery`."""

    def __init__(self, host: Host, vm: Vm, write: Callable[[Line], None], nursery: trio.Nursery) -> None:
        self._host = host
        self._vm = vm
        self._write = write
        self._nursery = nursery
        self._stations: dict[str, Port] = {}
        self._listening: dict[int, Listening] = {}
        self._numbers = itertools.count(1)
        self._sockets: dict[int, trio.MemorySendChannel[bytes | None]] = {}
        for number, name in enumerate(host.switches):
            self._stations[name] = self._station(number, name)

    def begin(self, command: protocol.HostCommand) -> None:
        """Begin it. Raises `CannotDo`."""
        match command:
            case protocol.Ask(id=command_id, request=request):
                self._nursery.start_soon(self._ask, command_id, self._request(request))
            case protocol.SendFrame(switch=switch, data=data):
                if switch not in self._stations:
                    raise CannotDo(
                        "switch", f"Expected a switch of the topology: {', '.join(self._stations) or 'none'}"
                    )
                self._stations[switch].transmit([data])
            case protocol.Listen(port=port):
                try:
                    self._listening[port] = self._vm.listen(port, lambda stream: self._serve(port, stream))
                except ValueError as error:
                    raise CannotDo("port", str(error)) from None
            case protocol.Connect(port=port):
                self._nursery.start_soon(self._connect, port)
            case protocol.Send(socket=number, data=data):
                self._put(number, data)
            case protocol.End(socket=number):
                self._put(number, None)
            case protocol.HangUp(socket=number):
                self._find(number).close()
                del self._sockets[number]
            case _:
                assert_never(command)

    # --- verbs

    def _request(self, untrusted: dict[str, object]) -> control_protocol.VmRequest:
        try:
            line = protocol.encode({"vm": self._vm.name, **untrusted})
            request = control_protocol.decode(line)
        except control_protocol.BadLine as error:
            raise CannotDo("request", str(error)) from None
        streams = control_protocol.ConsoleOf | control_protocol.ConnectTo
        if not isinstance(request, control_protocol.VmRequest) or isinstance(request, streams):
            raise CannotDo("request", "Expected a request about a VM that has one answer")
        return request

    async def _ask(self, command_id: Id, request: control_protocol.VmRequest) -> None:
        from partitions.root.control_requests import Denied, change, find

        try:
            result = await change(find(self._host, request.vm), request)
        except Denied as denied:
            self._write(protocol.Asked(id=command_id, error=denied.kind, message=str(denied)))
        else:
            self._write(protocol.Asked(id=command_id, result=result))

    # --- frames

    def _station(self, number: int, name: str) -> Port:
        from vsp_vsc.network.switch.ports import Port
        from vsp_vsc.network.switch.settings import PortSettings

        port = Port(f"{name}:driver", _STATION + bytes([number & 0xFF]), PortSettings(spoofing=True))
        port.attach(_Station(name, self._write))
        self._host.switches[name].connect(port)
        return port

    # --- sockets

    async def _connect(self, port: int) -> None:
        try:
            stream = await self._vm.connect(port)
        except SocketRefused as error:
            self._write(protocol.SocketTold(socket=0, port=port, state="refused", message=str(error)))
            return
        async with stream:
            await self._serve(port, stream)

    async def _serve(self, port: int, stream: HostSocket) -> None:
        number = next(self._numbers)

        def tell(state: protocol.SocketState, data: bytes = b"") -> None:
            self._write(protocol.SocketTold(socket=number, port=port, state=state, data=data.hex()))

        self._sockets[number], waiting = trio.open_memory_channel[bytes | None](MAX_WAITING)
        tell("open")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send, stream, waiting, nursery.cancel_scope)
                try:
                    while data := await stream.receive_some():
                        tell("data", bytes(data))
                    tell("end")
                    await stream.gone.wait()
                except trio.BrokenResourceError:
                    pass
                nursery.cancel_scope.cancel()
        finally:
            self._sockets.pop(number, None)
            tell("closed")

    def _find(self, number: int) -> trio.MemorySendChannel[bytes | None]:
        if number not in self._sockets:
            raise CannotDo("socket", "Expected the number of a socket that is open")
        return self._sockets[number]

    def _put(self, number: int, data: bytes | None) -> None:
        try:
            self._find(number).send_nowait(data)
        except trio.WouldBlock:
            raise CannotDo("socket", f"{MAX_WAITING} sends wait for its guest already") from None


async def _send(stream: HostSocket, waiting: trio.MemoryReceiveChannel[bytes | None], scope: trio.CancelScope) -> None:
    """What the speaker sends, until it hangs up."""
    try:
        async for data in waiting:
            if data is None:
                await stream.send_eof()
            else:
                await stream.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return  # the guest has gone, or the speaker sends after its end: the receiver sees to the rest
    scope.cancel()


class _Station:
    """At a switch's port."""

    def __init__(self, switch: str, write: Callable[[Line], None]) -> None:
        self._switch = switch
        self._write = write

    def deliver(self, frames: Sequence[bytes]) -> int:
        """All are taken."""
        for frame in frames:
            self._write(protocol.FrameTold(switch=self._switch, data=frame.hex()))
        return len(frames)

    def link_changed(self, up: bool) -> None:
        """Of no consequence."""
