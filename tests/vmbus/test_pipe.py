"""Pipes: message framing, byte streams, ends and bad packets. Both sides."""

from __future__ import annotations

import struct

import pytest
import trio
import trio.testing

from hypervisor.pages import PAGE_SIZE
from hypervisor.wire import WireError
from vmbus.channel import Channel
from vmbus.pipe import LARGEST_MESSAGE, STREAM_CHUNK, BytePipe, MessagePipe, frame, unframe
from vmbus.ring import Packet, PacketType


def channels(data_pages: int = 8) -> tuple[Channel, Channel]:
    up = memoryview(bytearray(PAGE_SIZE * (1 + data_pages)))
    down = memoryview(bytearray(PAGE_SIZE * (1 + data_pages)))
    ends: list[Channel] = []
    ends.append(Channel(outgoing=up, incoming=down, signal=lambda: ends[1].wake(), shared=False))
    ends.append(Channel(outgoing=down, incoming=up, signal=lambda: ends[0].wake(), shared=False))
    return ends[0], ends[1]


def packet(kind: int, length: int, data: bytes) -> Packet:
    return Packet(PacketType.INBAND, 0, 0, 0, struct.pack("<II", kind, length) + data)


def test_frame_bytes() -> None:
    """Type 1, the length, the data; the ring's padding is not part of it."""
    assert frame(b"abc").body == struct.pack("<II", 1, 3) + b"abc"
    assert unframe(packet(1, 3, b"abc\0\0\0\0\0")) == b"abc"
    assert unframe(packet(1, 0, b"")) == b""


def test_partly_taken_packet() -> None:
    """Type 2 has the bytes already taken in the high half of its length."""
    assert unframe(packet(2, 1 << 16 | 3, b"abc\0\0\0\0\0")) == b"bc"


@pytest.mark.parametrize(
    "bad",
    [
        packet(1, 4, b"abc"),
        packet(1, 0xFFFF_FFFF, b"abc"),
        packet(0, 3, b"abc"),
        packet(3, 3, b"abc"),
        packet(2, 4 << 16 | 3, b"abc"),
        Packet(PacketType.INBAND, 0, 0, 0, b"seven.."),
        Packet(PacketType.INBAND, 0, 0, 0, b""),
    ],
)
def test_bad_packet(bad: Packet) -> None:
    """A packet that is no pipe packet is the peer's fault."""
    with pytest.raises(WireError):
        unframe(bad)


async def test_messages() -> None:
    """Messages keep their borders and exact lengths, also an empty one."""
    guest, host = (MessagePipe(channel) for channel in channels())
    messages = [b"a", b"", b"four", bytes(LARGEST_MESSAGE)]
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            for message in messages:
                await guest.send(message)

        nursery.start_soon(send)
        assert [await host.receive() for _ in messages] == messages
    with pytest.raises(ValueError, match="limit"):
        await guest.send(bytes(LARGEST_MESSAGE + 1))
    await guest.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await guest.receive()


async def test_stream_is_cut_into_chunks() -> None:
    """A stream goes in packets of 16 KiB at most, and of a third of a small ring."""
    up, down = channels(16)
    await BytePipe(up).send_all(bytes(STREAM_CHUNK + 1))
    assert [len(unframe(got)) for got in await down.receive_batch()] == [STREAM_CHUNK, 1]
    up, down = channels(5)
    await BytePipe(up).send_all(bytes(8000))
    assert [len(unframe(got)) for got in await down.receive_batch()] == [6792, 1208]


async def test_empty_packet_is_the_end() -> None:
    """`send_eof` sends an empty packet, once; the other direction lives on; sending nothing is no end."""
    up, down = channels()
    guest, host = BytePipe(up), BytePipe(down)
    await guest.send_all(b"")
    await guest.send_all(b"last")
    await guest.send_eof()
    await guest.send_eof()
    assert await host.receive_some(3) == b"las"
    assert await host.receive_some(3) == b"t"
    assert await host.receive_some() == b""
    assert await host.receive_some() == b""
    assert up.statistics().packets_out == 2
    with pytest.raises(trio.ClosedResourceError):
        await guest.send_all(b"more")
    await host.send_all(b"still")
    assert await guest.receive_some() == b"still"


async def test_peer_closes() -> None:
    """When the peer closes the channel, reading ends and writing is broken."""
    up, _ = channels()
    guest = BytePipe(up)
    up.close(by_peer=True)
    assert await guest.receive_some() == b""
    with pytest.raises(trio.BrokenResourceError):
        await guest.send_all(b"x")


async def test_arguments_and_conflicts() -> None:
    """As Trio asks of streams: any bytes-like data, a positive `max_bytes`, one reader at a time, closing twice."""
    up, down = channels()
    guest, host = BytePipe(up), BytePipe(down)
    await guest.wait_send_all_might_not_block()
    await guest.send_all(bytearray(b"1"))
    await guest.send_all(memoryview(b"2"))
    assert await host.receive_some(1) == b"1"
    assert await host.receive_some(None) == b"2"
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            await host.receive_some(wrong)
    with pytest.raises(TypeError):
        await host.receive_some(1.5)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.receive_some, 1)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await host.receive_some(1)
        nursery.cancel_scope.cancel()
    await guest.aclose()
    await guest.aclose()
    for call in (guest.wait_send_all_might_not_block, guest.receive_some, lambda: guest.send_all(b"")):
        with pytest.raises(trio.ClosedResourceError):
            await call()
