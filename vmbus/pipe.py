"""Pipe framing on a channel: whole messages, or a stream of bytes. Both sides.

A pipe packet is an in-band packet whose payload begins with {type u32, length u32}; the length says where the data
ends, which the ring itself does not. Integration components speak in messages, Hyper-V sockets in bytes. Facts:
openvmm, vmbus_async pipe.rs; Linux hyperv.h, struct vmpipe_proto_header.
"""

from __future__ import annotations

import enum
import operator
import struct

import trio

from hypervisor.wire import BadValue, ShortMessage
from vmbus.channel import Channel
from vmbus.ring import Packet, PacketType

_HEADER = struct.Struct("<II")
LARGEST_MESSAGE = 16384
"""Bytes of data in a message, where the ring has room for as much."""
STREAM_CHUNK = 2048
"""Bytes of data in a packet of a byte stream."""


class PipePacketType(enum.IntEnum):
    """What a pipe packet is."""

    DATA = 1
    PARTIAL = 2
    """Data of which a reader has taken the first bytes: the length's high 16 bits say how many."""
    SETUP_GPA_DIRECT = 3
    TEARDOWN_GPA_DIRECT = 4


def frame(data: bytes) -> Packet:
    """A data packet."""
    return Packet(PacketType.INBAND, 0, 0, 0, _HEADER.pack(PipePacketType.DATA, len(data)) + data)


def unframe(packet: Packet) -> bytes:
    """The data of a packet from the peer. Raises a `WireError`."""
    payload = packet.payload
    if len(payload) < _HEADER.size:
        raise ShortMessage("pipe packet", _HEADER.size, len(payload))
    kind, length = _HEADER.unpack_from(payload)
    skipped = 0
    if kind == PipePacketType.PARTIAL:
        length, skipped = length & 0xFFFF, length >> 16
    elif kind != PipePacketType.DATA:
        raise BadValue(f"a pipe packet of type {kind}, where only data may be")
    if length > len(payload) - _HEADER.size:
        raise ShortMessage("pipe data", _HEADER.size + length, len(payload))
    if skipped > length:
        raise BadValue(f"{skipped} of {length} bytes of pipe data are said to be taken")
    return payload[_HEADER.size + skipped : _HEADER.size + length]


class MessagePipe(trio.abc.Channel[bytes]):
    """Messages on a channel. What `Channel` says about tasks, closing and errors is true here too."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    async def send(self, value: bytes) -> None:
        """Send one message of up to 16,384 bytes; `ValueError` for a longer one."""
        if len(value) > LARGEST_MESSAGE:
            raise ValueError(f"a pipe message of {len(value)} bytes, {LARGEST_MESSAGE} are the limit")
        await self.channel.send(frame(value))

    async def receive(self) -> bytes:
        """The next message. Raises a `WireError` for a packet that is none."""
        return unframe(await self.channel.receive())

    async def aclose(self) -> None:
        """Close the channel at this end."""
        await self.channel.aclose()


class BytePipe(trio.abc.HalfCloseableStream):
    """A stream of bytes on a channel; an empty packet is the end of what its sender has to say."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._left = b""
        self._ended = False
        self._eof_sent = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send it in packets of up to 2,048 bytes."""
        if self._eof_sent:
            raise trio.ClosedResourceError("the end of this stream was sent already")
        view = memoryview(data).cast("B")
        packets = [frame(bytes(view[at : at + STREAM_CHUNK])) for at in range(0, len(view), STREAM_CHUNK)]
        await self.channel.send_batch(packets)

    async def wait_send_all_might_not_block(self) -> None:
        """As far as a channel can tell, that is now."""
        if self.channel.closed:
            raise trio.ClosedResourceError
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """Say that no more comes."""
        if not self._eof_sent:
            self._eof_sent = True
            await self.channel.send(frame(b""))
        else:
            await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Some bytes, at least one; empty at the end, also where the peer just closed. Raises a `WireError`."""
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._left or self._ended:
            await trio.lowlevel.checkpoint()
        else:
            try:
                self._left = unframe(await self.channel.receive())
            except trio.EndOfChannel:
                pass
            self._ended = not self._left
        if max_bytes is None:
            data, self._left = self._left, b""
        else:
            data, self._left = self._left[:max_bytes], self._left[max_bytes:]
        return data

    async def aclose(self) -> None:
        """Close the channel at this end; does not send the end of the stream."""
        await self.channel.aclose()
