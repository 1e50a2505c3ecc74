"""The VNC server of a VM: from its first start, over resets, ends and new starts, to the end of its host."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import partitions
from partitions.figures import figures_of
from partitions.host import ExitReason, Host, StartFailed, Vm, VmState
from partitions.root.vnc.server import ADDRESS
from partitions.topology_schema import HostTable, ScreenTable, Topology, VmTable
from tests.doubles import rfb
from tests.doubles.rfb import Viewer

PATIENCE_SECONDS = 20
BLUE = 0x2040FF
GUEST = f"""
async def main(guest):
    screen, keyboard = await guest.screen(), await guest.keyboard()
    await screen.set_mode(640, 480)
    screen.fill(0, 0, 640, 480, {BLUE})
    await screen.flush()
    print("up")
    while (line := await keyboard.read_line()) != "off":
        print("line", line)
        if line == "reset":
            await guest.reset()
"""


@asynccontextmanager
async def desk(folder: Path, vnc: int | None = 0) -> AsyncIterator[tuple[Host, Vm]]:
    """A host with one VM that has a screen; off."""
    (folder / "guest.py").write_text(GUEST)
    table = VmTable(name="desk", program="guest.py", screen=ScreenTable(width=800, height=600, vnc=vnc))
    with trio.fail_after(PATIENCE_SECONDS):
        async with partitions.open_host(Topology(host=HostTable(), vm=[table], folder=folder)) as host:
            yield host, host["desk"]


class Watcher:
    """A viewer that understands screens of any size."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.viewer = Viewer()
        self._stream = stream

    async def turn(self) -> None:
        if said := self.viewer.sent():
            await self._stream.send_all(said)
        data = await self._stream.receive_some()
        assert data, "the server has hung up"
        self.viewer.feed(data)

    async def come_in(self) -> None:
        while not self.viewer.running:
            await self.turn()
        self.viewer.set_encodings(rfb.ZRLE, rfb.EXTENDED_SIZE, rfb.LAST_RECT)

    async def until(self, size: tuple[int, int], colour: int) -> None:
        """Until the whole screen is of that size and colour."""
        wanted = colour.to_bytes(3, "big") * (size[0] * size[1])
        while (self.viewer.width, self.viewer.height) != size or self.viewer.picture != wanted:
            self.viewer.ask()
            before = self.viewer.updates
            while self.viewer.updates == before:
                await self.turn()

    async def type_line(self, text: str) -> None:
        for keysym in (*map(ord, text), 0xFF0D):
            self.viewer.key(keysym, down=True)
            self.viewer.key(keysym, down=False)
        await self._stream.send_all(self.viewer.sent())


async def is_up(vm: Vm, times: int) -> None:
    """Until its guest has drawn and reads its keys, so many times in all."""
    with vm.console.listen() as reader:
        while vm.console.lines().count("up") < times:
            await reader.receive()


async def test_a_viewer_stays_while_its_vm_comes_and_goes(tmp_path: Path) -> None:
    """The size of the topology and black while nothing is shown; what the guest shows; keys reach each new guest."""
    async with desk(tmp_path) as (host, vm):
        assert vm.vnc_port is None
        await vm.start()
        port = vm.vnc_port
        assert port
        assert await host.inspect("vm/desk/vnc/address") == figures_of(vm).vnc == f"{ADDRESS}:{port}"
        async with await trio.open_tcp_stream(ADDRESS, port) as stream:
            it = Watcher(stream)
            await it.come_in()
            await it.until((640, 480), BLUE)
            await it.type_line("reset")
            await is_up(vm, 2)
            await it.until((640, 480), BLUE)
            await it.type_line("off")
            assert (await vm.wait()).reason is ExitReason.POWERED_OFF
            await it.until((640, 480), 0)
            assert vm.vnc_port == port
            await vm.start()
            await is_up(vm, 3)
            await it.until((640, 480), BLUE)
            await vm.pause()
            await vm.resume()
            assert await host.inspect("vm/desk/vnc/clients/1/encoding") == "zrle"
            await it.type_line("off")
            await vm.wait()
            assert await host.inspect("vm/desk/vnc/failures") == 0


async def test_a_port_that_is_taken_is_said_at_the_start(tmp_path: Path) -> None:
    """The VM does not start, and the reason names the key, the place and the remedy; once it is free it does."""
    with socket.create_server((ADDRESS, 0)) as taken:
        port = taken.getsockname()[1]
        async with desk(tmp_path, port) as (_, vm):
            with pytest.raises(StartFailed) as caught:
                await vm.start()
            assert f"screen.vnc: {ADDRESS}:{port}: Address already in use; use another port" in str(caught.value)
            assert vm.state is VmState.OFF
            taken.close()
            await vm.start()
            assert vm.vnc_port == port
            await vm.turn_off()


async def test_without_a_port_there_is_no_server(tmp_path: Path) -> None:
    """A screen alone listens nowhere."""
    async with desk(tmp_path, None) as (host, vm):
        await vm.start()
        assert vm.vnc_port is None
        assert "vnc" not in await host.inspect("vm/desk", depth=1)
        await vm.turn_off()


async def test_a_vm_that_is_destroyed_takes_its_server_along(tmp_path: Path) -> None:
    """And its viewers; the port is free for another."""
    async with desk(tmp_path) as (host, vm):
        await vm.start()
        port = vm.vnc_port
        assert port
        async with await trio.open_tcp_stream(ADDRESS, port) as stream:
            it = Watcher(stream)
            await it.come_in()
            await vm.turn_off()
            host.destroy("desk")
            with contextlib.suppress(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass
        with socket.create_server((ADDRESS, port)):
            pass
