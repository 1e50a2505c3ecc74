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

from hypervisor.wire import BadValue, ShortMessage, WireError
from vmbus.channel import Channel, ChannelClosed
from vmbus.ring import Packet, PacketType, ring_bytes

_HEADER = struct.Struct("<II")
LARGEST_MESSAGE = 16384
"""Bytes of data in a message, where the ring has room for as much."""
STREAM_CHUNK = 16384
"""Bytes of data in a packet of a byte stream: what Linux takes at most; other peers cut at 2,048."""
RECEIVE_BYTES = 65536
"""What `receive_some` gives at a time, where its caller does not say."""


class PipePacketType(enum.IntEnum):
    """What a pipe packet is."""

    DATA = 1
    PARTIAL = 2
    """Data of which a reader has taken the first bytes: the length's high 16 bits say how many."""
    SETUP_GPA_DIRECT = 3
    TEARDOWN_GPA_DIRECT = 4


_END = _HEADER.pack(PipePacketType.DATA, 0)
_NOTHING = memoryview(b"")


def frame(data: bytes) -> Packet:
    """A data packet."""
    return Packet(PacketType.INBAND, 0, 0, 0, _HEADER.pack(PipePacketType.DATA, len(data)) + data)


def unframe(packet: Packet) -> bytes:
    """The data of a packet from the peer. Raises a `WireError`."""
    payload = packet.payload
    start, stop, _ = _extent(payload[: _HEADER.size], len(payload))
    return payload[start:stop]


def _extent(begin: bytes, available: int) -> tuple[int, int, bool]:
    """Where data begins and ends in a payload that begins so, and whether it says that the stream ends."""
    if len(begin) < _HEADER.size:
        raise ShortMessage("pipe packet", _HEADER.size, len(begin))
    kind, length = _HEADER.unpack(begin)
    skipped = 0
    if kind == PipePacketType.PARTIAL:
        length, skipped = length & 0xFFFF, length >> 16
    elif kind != PipePacketType.DATA:
        raise BadValue(f"a pipe packet of type {kind}, where only data may be")
    if length > available - _HEADER.size:
        raise ShortMessage("pipe data", _HEADER.size + length, available)
    if skipped > length:
        raise BadValue(f"{skipped} of {length} bytes of pipe data are said to be taken")
    return _HEADER.size + skipped, _HEADER.size + length, not length


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
    """A stream of bytes on a channel; an empty packet is the end of what its sender has to say.

    One task may send and one receive at a time. Data is copied once from a sender's buffer into the ring, and once out
    of it. What a peer sends after the end of its stream stays in the ring, and is nobody's.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._left = memoryview(b"")
        """Taken out of the ring, and not received yet."""
        self._ended = False
        self._eof_sent = False
        self._shut = False
        """Closed at this end, though the channel may live on for what was sent."""
        self._sending = False
        self._receiving = False
        self._most = 0
        """How many bytes the receiver has still room for."""
        self._first = True
        self.bytes_sent = 0
        """Of data, in calls that have ended; so is `bytes_received`."""
        self.bytes_received = 0
        third = channel.outgoing_bytes // 3 - ring_bytes(_HEADER.size)
        self._cut = max(1, min(STREAM_CHUNK, third & ~7))
        """Bytes in a packet: no more than lets a small ring hold three."""

    # -------------------------------------------------------------------------------------------------------- sending

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send it, in packets of up to 16,384 bytes, and wait for room where there is none."""
        await self._begin_sending()
        channel, cut = self.channel, self._cut
        self._sending = True
        try:
            slept = False
            with memoryview(data) as given, given.cast("B") as view:
                length = len(view)
                for start in range(0, length, cut):
                    size = min(cut, length - start)
                    word = _HEADER.pack(PipePacketType.DATA, size)
                    piece = view if size == length else view[start : start + size]
                    while not channel.try_send_parts(word, piece):
                        slept = True
                        await self._wait_room(size)
            if not slept:
                await trio.lowlevel.cancel_shielded_checkpoint()
            self.bytes_sent += length
        except WireError as error:
            raise self._fault(error) from None
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """Until there is room for a packet as large as `send_all` makes them."""
        await self._begin_sending()
        self._sending = True
        try:
            await self._wait_room(self._cut)
        except WireError as error:
            raise self._fault(error) from None
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        """Say that no more comes. A second time it does nothing."""
        if self._eof_sent and not self._shut:
            await trio.lowlevel.checkpoint()
            return
        await self._begin_sending()
        try:
            await self._send_end()
        except WireError as error:
            raise self._fault(error) from None

    async def _send_end(self) -> None:
        self._eof_sent = self._sending = True
        try:
            slept = False
            while not self.channel.try_send_parts(_END, _NOTHING):
                slept = True
                await self.channel.wait_room(_HEADER.size)
            if not slept:
                await trio.lowlevel.cancel_shielded_checkpoint()
        finally:
            self._sending = False

    async def _begin_sending(self) -> None:
        """Raise what there is to raise; always a checkpoint then."""
        if self._sending and not self._shut:
            raise trio.BusyResourceError("another task sends on this stream")
        if self._shut or self._eof_sent or self.channel.closed:
            await trio.lowlevel.checkpoint()
            self._check()
            if self._eof_sent:
                raise trio.ClosedResourceError("the end of this stream was sent already")
            self.channel.check_open()
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _wait_room(self, size: int) -> None:
        await self.channel.wait_room(_HEADER.size + size)
        self._check()
        self.channel.check_open()

    async def _rest(self) -> None:
        """After the close: until the tasks that it has woken are out of our calls."""
        while self._sending or self._receiving:
            await trio.lowlevel.checkpoint()

    def _check(self) -> None:
        if self._shut:
            raise trio.ClosedResourceError

    def _fault(self, error: WireError) -> Exception:
        """What a caller is told where the peer's ring or its packets are no stream."""
        return error

    # ------------------------------------------------------------------------------------------------------ receiving

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Some bytes, at least one; empty at the end, also where the peer just closed. Raises a `WireError`."""
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            if not self._shut:
                raise trio.BusyResourceError("another task receives on this stream")
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError
        self._receiving = True
        try:
            # The peer's turn comes before our look: what it sends meanwhile costs it no signal.
            await trio.lowlevel.checkpoint()
            most = RECEIVE_BYTES if max_bytes is None else max_bytes
            looked = False
            while True:
                self._check()
                if self._left or self._ended:
                    break
                data = self._take(most)
                if len(data) > most:
                    self._left = memoryview(data)
                elif data:
                    self.bytes_received += len(data)
                    return data
                elif looked and not self._ended:
                    await self.channel.wait_parts()
                elif not looked:
                    looked = True  # Trio turns tasks in any order: a sender's turn may come yet, and costs no signal
                    await trio.lowlevel.checkpoint()
            data, self._left = bytes(self._left[:most]), self._left[most:]
            self.bytes_received += len(data)
            return data
        except WireError as error:
            raise self._fault(error) from None
        finally:
            self._receiving = False

    def _take(self, most: int) -> bytes:
        """What is there, in whole packets of `most` bytes together, or one that has more."""
        self._most, self._first = most, True
        try:
            parts = self.channel.try_receive_parts(self._part_of)
        except ChannelClosed:
            self._peer_closed()
            return b""
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _peer_closed(self) -> None:
        """The peer has closed the channel, and has not said that its stream ends."""
        self._ended = True

    def _part_of(self, begin: bytes, length: int) -> tuple[int, int] | None:
        if self._ended:
            return None
        start, stop, is_end = _extent(begin, length)
        size = stop - start
        if self._first:
            self._first = False
            self._ended = is_end
        elif is_end or size > self._most:
            return None  # the end is taken when it is the first thing read
        self._most -= size
        return start, stop

    async def aclose(self) -> None:
        """Close the channel at this end; does not send the end of the stream."""
        self._shut = True
        await self.channel.aclose()
