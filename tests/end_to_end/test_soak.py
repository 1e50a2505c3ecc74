"""What a long life does not leave behind: sockets by the ten thousand, devices in and out a thousand times.

Minutes of work on the virtual clock; `make soak` runs them.
"""

from __future__ import annotations

import gc
import hashlib
import os
from pathlib import Path

import pytest
import trio

from hypervisor.wire import Guid
from partitions.host import Host, Vm, open_host
from partitions.topology_schema import DiskTable, Size
from tests.doubles.root import held
from tests.doubles.socket_programs import listening_topology
from vmbus.channel import Channel
from vmbus.server.offers import Offer
from vmbus.server.opened import OpenedChannel
from vmbus.server.socket_stream import HostSocket

pytestmark = pytest.mark.slow
AT_ONCE = 20
CONNECTIONS = int(os.environ.get("PARTITA_CONNECTIONS", "10000"))
ROUNDS = int(os.environ.get("PARTITA_ROUNDS", "1000"))
MOST_GROWTH = 4 << 20
"""Bytes that the process may have grown by: the allocator's own affair. A leak of a kilobyte a connection is more."""


def resident() -> int:
    """Memory of this process in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def tasks() -> int:
    """Trio's tasks, all of them."""
    return trio.lowlevel.current_statistics().tasks_living


async def left(host: Host) -> dict[str, object]:
    """Whatever a connection or a device could leave: on the bus, in the hypervisor, in the process."""
    await trio.sleep(30)
    gc.collect()
    bus = await host.inspect("vm/web/vmbus/limits")
    return {
        "held": held(host),
        "bus": {name: value for name, value in bus.items() if name != "sockets_refused"},
        "tasks": tasks(),
        "files": len(os.listdir("/proc/self/fd")),
        "trace": len(host.trace.devices.get(host["web"].partition_id or 0, {})),
    }


async def test_sockets(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Each says something and hears it again; a third is closed by the host, a third by half, a third just cut."""

    async def some(vm: Vm, numbers: range) -> None:
        for number in numbers:
            stream = await vm.connect(7)
            data = b"%d" % number
            await stream.send_all(data)
            assert await stream.receive_some() == data
            if number % 3 == 0:
                await stream.send_eof()
                assert await stream.receive_some() == b""
            if number % 3 == 1:
                await stream.send_all(bytes(100))
            await stream.aclose()

    async def all_of(vm: Vm, connections: int) -> None:
        share = connections // AT_ONCE
        async with trio.open_nursery() as nursery:
            for number in range(AT_ONCE):
                nursery.start_soon(some, vm, range(number * share, (number + 1) * share))

    async with open_host(listening_topology(tmp_path)) as host:
        vm = host["web"]
        await vm.start()
        await all_of(vm, CONNECTIONS // 10)
        before, size = await left(host), resident()
        await all_of(vm, CONNECTIONS)
        assert await left(host) == before
        assert resident() - size < MOST_GROWTH
        assert (await host.inspect("vm/web/sockets"))["made"] == CONNECTIONS // 10 + CONNECTIONS
        assert vm.console.lines() == ["listening"]


async def test_a_hundred_megabytes_each_way(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Through one stream, while the other direction is as full: the same bytes arrive."""
    pieces = [os.urandom(1 << 20) for _ in range(8)]
    sent, heard = hashlib.sha256(), hashlib.sha256()
    async with open_host(listening_topology(tmp_path)) as host:
        await host["web"].start()
        async with await host["web"].connect(7) as stream, trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                for number in range(100):
                    sent.update(pieces[number % 8])
                    await stream.send_all(pieces[number % 8])
                await stream.send_eof()

            total = 0
            async for piece in stream:
                heard.update(piece)
                total += len(piece)
        assert (total, heard.digest()) == (100 << 20, sent.digest())


class Echo:
    """A VSP that says what it hears."""

    def __init__(self, number: int) -> None:
        self.offer = Offer(
            Guid("c0ffee00-0000-4000-8000-000000000000"), Guid(f"{number:08x}-0000-4000-8000-000000000001")
        )

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        """Until the guest closes it."""
        async for packet in channel:
            await channel.send(packet)


async def test_devices(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """In and out again, disks with their controllers among them, while sockets come and go."""

    async def one(vm: Vm, number: int) -> None:
        name = f"device{number}"
        if number % 4:
            await vm.add_device(name, Echo(number))
        else:
            await vm.add_device(name, DiskTable(path=f"{number % 8}.img", size=Size(1 << 20)))
        await trio.sleep(number % 3)
        await vm.remove_device(name)

    async with open_host(listening_topology(tmp_path)) as host:
        vm = host["web"]
        await vm.start()
        for number in range(16):
            await one(vm, number)
        before, size = await left(host), resident()
        stream: HostSocket | None = None
        for number in range(ROUNDS):
            await one(vm, number)
            if number % 10 == 0:
                if stream is not None:
                    await stream.aclose()
                stream = await vm.connect(9)
        assert stream is not None
        await stream.aclose()
        assert await left(host) == before
        assert resident() - size < MOST_GROWTH
        assert vm.devices == ()
