"""Ring and channel against a Trio memory channel: 64-byte payloads in batches of 64, and one by one. Both sides.

The memory channel passes references and the ring copies bytes twice; the ring still wins, because a batch costs one
turn of the scheduler. `ring.*` writes and reads in one task, so it is compared with a memory channel in one task;
`channel.*` has a sending and a receiving task, and so has what it is compared with.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

from benchmarks.baselines import trio_channel_one_task, trio_channel_two_tasks
from benchmarks.measure import ROUNDS, compare, table
from hypervisor.pages import PAGE_SIZE
from vmbus.channel import Channel
from vmbus.ring import Packet, PacketType, RingReader, RingWriter

RING_BYTES = 128 * 1024
BATCH = 64
ROUND_PACKETS = 64 * 200


def packets(count: int, body: int = 64) -> list[Packet]:
    return [Packet(PacketType.INBAND, 0, index + 1, 0, bytes([index & 0xFF]) * body) for index in range(count)]


def new_region() -> memoryview:
    return memoryview(bytearray(PAGE_SIZE + RING_BYTES))


def ring_batch64(*, shared: bool = False) -> float:
    """Seconds a packet to write and to read it."""
    region = new_region()
    writer, reader = RingWriter(region, shared=shared), RingReader(region, shared=shared)
    batch = packets(BATCH)
    start = time.perf_counter()
    for _ in range(ROUND_PACKETS // BATCH):
        writer.write_batch(batch)
        writer.signal_needed()
        got = reader.read_batch(BATCH)
        reader.signal_needed()
        assert len(got) == BATCH
    return (time.perf_counter() - start) / ROUND_PACKETS


def ring_single() -> float:
    """Seconds to write and read a packet alone."""
    region = new_region()
    writer, reader = RingWriter(region, shared=False), RingReader(region, shared=False)
    batch = packets(1)
    count = ROUND_PACKETS // 8
    start = time.perf_counter()
    for _ in range(count):
        writer.write_batch(batch)
        writer.signal_needed()
        reader.read_batch(1)
        reader.signal_needed()
    return (time.perf_counter() - start) / count


def channel_pair(*, shared: bool = False) -> tuple[Channel, Channel]:
    up, down = new_region(), new_region()
    ends: list[Channel] = []
    guest = Channel(outgoing=up, incoming=down, signal=lambda: ends[1].wake(), shared=shared)
    host = Channel(outgoing=down, incoming=up, signal=lambda: ends[0].wake(), shared=shared)
    ends += [guest, host]
    return guest, host


def channel_batch64(*, shared: bool = False) -> float:
    """Seconds a packet from a task that sends batches to one that receives them."""

    async def main() -> float:
        guest, host = channel_pair(shared=shared)
        batch = packets(BATCH)

        async def produce() -> None:
            for _ in range(ROUND_PACKETS // BATCH):
                await guest.send_batch(batch)

        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            left = ROUND_PACKETS
            while left:
                left -= len(await host.receive_batch(BATCH))
        return (time.perf_counter() - start) / ROUND_PACKETS

    return trio.run(main)


def channel_single() -> float:
    """Seconds a packet from `send` to `receive` in another task."""
    count = ROUND_PACKETS // 4

    async def main() -> float:
        guest, host = channel_pair()
        packet = packets(1)[0]

        async def produce() -> None:
            for _ in range(count):
                await guest.send(packet)

        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            for _ in range(count):
                await host.receive()
        return (time.perf_counter() - start) / count

    return trio.run(main)


def channel_round_trip() -> float:
    """Seconds for one packet there and its answer back, both ends asleep in between."""
    count = 500

    async def main() -> float:
        guest, host = channel_pair()
        packet = packets(1)[0]

        async def answer() -> None:
            for _ in range(count):
                await host.send(await host.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            start = time.perf_counter()
            for _ in range(count):
                await guest.send(packet)
                await guest.receive()
            return (time.perf_counter() - start) / count

    return trio.run(main)


CASES: dict[str, Callable[[], float]] = {
    "trio_channel.one_task": trio_channel_one_task,
    "trio_channel.two_tasks": trio_channel_two_tasks,
    "ring.batch64": ring_batch64,
    "ring.batch64.shared": lambda: ring_batch64(shared=True),
    "ring.single": ring_single,
    "channel.batch64": channel_batch64,
    "channel.batch64.shared": lambda: channel_batch64(shared=True),
    "channel.single": channel_single,
    "channel.round_trip": channel_round_trip,
}


def measure(rounds: int = ROUNDS) -> dict[str, float]:
    """The ratios that have bars, by their stable keys: how many times faster than the memory channel."""
    names = ("trio_channel.one_task", "trio_channel.two_tasks", "ring.batch64", "channel.batch64")
    medians = compare({name: CASES[name] for name in names}, rounds)
    return {
        "ring.batch64.vs_trio_channel": medians["trio_channel.one_task"] / medians["ring.batch64"],
        "channel.batch64.vs_trio_channel": medians["trio_channel.two_tasks"] / medians["channel.batch64"],
    }


if __name__ == "__main__":
    print(table(compare(CASES), "trio_channel.two_tasks"))
