"""Frames from guest to guest through the switch, against a Unix datagram socket pair driven by Trio. Both sides.

Both have a sending and a receiving task in one process. The guests' path is the whole of it but the hypervisor: driver,
ring, VSP, switch, VSP, ring, driver, with completions for both messages. `frames*` puts one frame into each message, as
a program does that sends what it has at once; `multi*` hands over batches, which travel in multi-packet messages.

The socket pair is what an async program would take for the same purpose without us: it keeps frame boundaries and, like
the rings, lets a sender run ahead.
"""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from benchmarks.measure import ROUNDS, compare, table
from hypervisor.blocks import MemoryBlock
from hypervisor.memory import GuestMemory
from hypervisor.pages import PAGE_SHIFT, Access
from hypervisor.trace import Trace
from hypervisor.wire import Guid
from vmbus.channel import Channel
from vmbus.gpadl import GpadlRange
from vmbus.server.opened import ChannelGpadls, HoldCounts, OpenedChannel
from vsp_vsc.network.switch.kinds import SwitchKind
from vsp_vsc.network.switch.ports import Port
from vsp_vsc.network.switch.switch import VirtualSwitch
from vsp_vsc.network.vsc import Network, open_network
from vsp_vsc.network.vsp import NetworkVsp

SMALL, LARGE = 64, 1500
"""Bytes of a frame."""
FRAMES = 64 * 80
BATCH = 64
GUEST_BYTES = 8 << 20
RING_BYTES = 128 << 10
_FIRST_PAGE = 256


def mac(number: int) -> bytes:
    return bytes.fromhex("00155d") + number.to_bytes(3, "big")


def frame(size: int) -> bytes:
    """From guest 1 to guest 2."""
    return (mac(2) + mac(1) + b"\x88\xb5").ljust(size, b"x")


# --- what we are compared with


def unix_dgram(size: int) -> float:
    """Seconds a datagram from one task to another."""

    async def main() -> float:
        one, two = (trio.socket.from_stdlib_socket(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
        data = frame(size)

        async def send() -> None:
            for _ in range(FRAMES):
                await one.send(data)

        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for _ in range(FRAMES):
                assert len(await two.recv(2048)) == size
        seconds = time.perf_counter() - start
        one.close()
        two.close()
        return seconds / FRAMES

    return trio.run(main)


# --- us


class _Guest:
    """As much of a guest's kernel and of its bus as the driver needs."""

    processors = 1
    options: dict[str, object] = {}

    def __init__(self, nursery: trio.Nursery) -> None:
        self.block = MemoryBlock.allocate(GUEST_BYTES, "benchmark guest")
        self.memory = self.block.view
        self.guest = GuestMemory()
        self.guest.map_block(0, self.block, 0, GUEST_BYTES >> PAGE_SHIFT, Access.ALL)
        self.gpadls: dict[int, tuple[GpadlRange, ...]] = {}
        self._next = _FIRST_PAGE
        self._nursery = nursery

    def open(self, vsp: NetworkVsp) -> Channel:
        """The guest's end of a channel whose other end the VSP serves."""
        to_host, to_guest = memoryview(bytearray(RING_BYTES)), memoryview(bytearray(RING_BYTES))
        ends: list[Channel] = []
        ends.append(Channel(outgoing=to_guest, incoming=to_host, signal=lambda: ends[1].wake(), shared=False))
        ends.append(Channel(outgoing=to_host, incoming=to_guest, signal=lambda: ends[0].wake(), shared=False))
        opened = OpenedChannel(
            channel_id=1,
            target_vp=0,
            user_data=bytes(120),
            version=0x50003,
            memory=self.guest,
            gpadls=ChannelGpadls(1, lambda _channel, gpadl: self.gpadls.get(gpadl), HoldCounts(lambda *_: None)),
        )
        self._nursery.start_soon(vsp.serve, ends[0], opened)
        return ends[1]

    def allocate_pages(self, count: int) -> int:
        gpn, self._next = self._next, self._next + count
        if self._next > GUEST_BYTES >> PAGE_SHIFT:
            raise MemoryError(f"no {count} guest pages")
        return gpn

    def free_pages(self, gpn: int, count: int) -> None:
        pass

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def create_gpadl(self, gpns: Sequence[int], byte_count: int) -> int:
        await trio.lowlevel.checkpoint()
        self.gpadls[len(self.gpadls) + 1] = (GpadlRange(byte_count, 0, tuple(gpns)),)
        return len(self.gpadls)

    async def teardown_gpadl(self, gpadl_id: int) -> None:
        await trio.lowlevel.checkpoint()

    async def close(self, channel: Channel) -> None:
        channel.close()
        await trio.lowlevel.checkpoint()

    def start_soon(self, function: Callable[[], Awaitable[object]]) -> None:
        self._nursery.start_soon(function)


@asynccontextmanager
async def two_guests() -> AsyncIterator[tuple[Network, Network]]:
    """On a private switch."""
    switch = VirtualSwitch("lan", SwitchKind.PRIVATE, lambda: 0)
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        networks = []
        for number in (1, 2):
            port = Port(f"vm{number}/0", mac(number))
            switch.connect(port)
            vsp = NetworkVsp(port, Guid(f"{number:08x}-2222-3333-4444-555555555555"), Trace(lambda: 0), number, "nic")
            guest = _Guest(nursery)
            driver = open_network(guest.open(vsp), guest, guest)  # type: ignore[arg-type]
            networks.append(await stack.enter_async_context(driver))
        yield networks[0], networks[1]
        nursery.cancel_scope.cancel()


Sender = Callable[[Network, bytes], Awaitable[None]]


async def one_by_one(network: Network, data: bytes) -> None:
    """A frame a message."""
    for _ in range(FRAMES):
        await network.send(data)


async def in_batches(network: Network, data: bytes) -> None:
    """Frames in multi-packet messages."""
    batch = [data] * BATCH
    for _ in range(FRAMES // BATCH):
        await network.send_batch(batch)


def through_the_switch(sender: Sender, size: int) -> float:
    """Seconds a frame from one guest's task to the other's."""

    async def main() -> float:
        async with two_guests() as (one, two):
            data = frame(size)
            start = time.perf_counter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender, one, data)
                left = FRAMES
                while left:
                    got = await two.receive_batch()
                    left -= len(got)
                    assert len(got[0]) == size
            return (time.perf_counter() - start) / FRAMES

    return trio.run(main)


CASES: dict[str, Callable[[], float]] = {
    f"{name}{size}": functools.partial(case, size)
    for size in (SMALL, LARGE)
    for name, case in (
        ("unix_dgram", unix_dgram),
        ("frames", functools.partial(through_the_switch, one_by_one)),
        ("multi", functools.partial(through_the_switch, in_batches)),
    )
}


def measure(rounds: int = ROUNDS) -> dict[str, float]:
    """How many times faster than the socket pair, by stable keys."""
    medians = compare(CASES, rounds)
    print(table(medians, "unix_dgram64"))
    return {
        f"network.{name}{size}.vs_unix_dgram": medians[f"unix_dgram{size}"] / medians[f"{name}{size}"]
        for name in ("frames", "multi")
        for size in (SMALL, LARGE)
    }


if __name__ == "__main__":
    for key, value in measure().items():
        print(f"{key} {value:.3f}")
