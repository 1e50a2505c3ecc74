"""A channel: two rings and a way to signal, as a Trio channel of packets. Both sides.

Batches are the core; `send` and `receive` are the convenience on top. Whoever owns the channel's interrupt calls
`wake()`, and whoever owns the bus calls `close()`; both are synchronous and may come from inside our own `signal`.

A batch costs one look at the ring, one signal at most and one turn of Trio's scheduler. `send` and `receive` notice a
cancellation at each call, but let others run once in 64 packets only.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import trio

from hypervisor.inspect import Branch, Gone, counters
from hypervisor.wire import WireError
from vmbus.bell import Bell
from vmbus.ring import BATCH_PACKETS, Packet, PacketType, PartOf, RingError, RingReader, RingWriter, ring_bytes

RECEIVED = "received"
SENT = "sent"
PacketTap = Callable[[str, Sequence[Packet]], None]
"""Is shown each batch, with `RECEIVED` or `SENT`, as this end sees it."""


class Switch(Protocol):
    """Says whether anybody looks at what a tap is shown; a trace does."""

    @property
    def on(self) -> bool:
        """Whether anybody does."""


class ChannelClosed(trio.EndOfChannel, trio.BrokenResourceError):
    """The bus or the peer has closed the channel. To a receiver it is the end, to a sender a broken channel."""


class ChannelStatistics(msgspec.Struct, frozen=True):
    """Counts since the channel was opened."""

    packets_in: int = 0
    packets_out: int = 0
    bytes_in: int = 0
    """In the ring, descriptors, padding and trailers included; so is `bytes_out`."""
    bytes_out: int = 0
    signals_sent: int = 0
    wakes: int = 0
    """Interrupts that arrived."""
    spurious_wakes: int = 0
    """Those after which a receiver found nothing."""
    ring_full_waits: int = 0
    """How often a sender had to wait for room."""

    def __add__(self, other: ChannelStatistics) -> ChannelStatistics:
        """The counts of two channels together."""
        return ChannelStatistics(*map(operator.add, msgspec.structs.astuple(self), msgspec.structs.astuple(other)))


class Channel(trio.abc.Channel[Packet]):
    """One open channel, as one of its ends sees it.

    One task may receive and one may send at a time; a second one gets `trio.BusyResourceError`. After a local `close`
    everything raises `trio.ClosedResourceError`, after the peer's `ChannelClosed`, which is a `trio.EndOfChannel` and a
    `trio.BrokenResourceError`. A peer that writes nonsense into the rings causes `RingError`, then and ever after; the
    channel stays open until somebody closes it.
    """

    def __init__(
        self,
        *,
        outgoing: memoryview,
        incoming: memoryview,
        signal: Callable[[], object],
        shared: bool,
        on_packets: PacketTap | None = None,
        tap_switch: Switch | None = None,
    ) -> None:
        """`outgoing` and `incoming` are rings as `vmbus.ring` says; `shared` if the peer runs on another thread.

        While `tap_switch` is off nothing is copied for `on_packets` alone.
        """
        self._writer = RingWriter(outgoing, shared=shared)
        self._reader = RingReader(incoming, shared=shared)
        self._signal = signal
        self.on_packets = on_packets
        self._tap_switch = tap_switch
        self._arrived = Bell()
        self._room = Bell()
        self._ahead: deque[Packet] = deque()
        self._unyielded = 0
        self._receiving = False
        self._sending = False
        self._closed: type[trio.ClosedResourceError] | type[ChannelClosed] | None = None
        self._packets_in = 0
        self._packets_out = 0
        self._signals_sent = 0
        self._wakes = 0
        self._spurious_wakes = 0
        self._ring_full_waits = 0
        # The peer need not signal what we are going to look for anyway. Only a receiver about to sleep wants it.
        self._reader.mask()

    # ------------------------------------------------------------------------------------------------ interrupts, end

    def wake(self) -> None:
        """The channel's interrupt: packets may have come, or room."""
        self._wakes += 1
        self.stir()

    def stir(self) -> None:
        """Make whoever waits look again."""
        self._arrived.ring()
        if self._room.awaited:
            self._room.ring()

    def close(self, *, by_peer: bool = False, keep: int = 0) -> None:
        """End the channel at this end: waiting tasks wake and raise, and the rings' memory is given up.

        Where the peer closed it, `keep` is how many bytes of its ring are still received, and then the end.
        """
        if self._closed is not None:
            if not by_peer:
                self._closed = trio.ClosedResourceError
                self._ahead.clear()
            return
        if by_peer and keep:
            self._keep(keep)
        else:
            self._ahead.clear()
        self._closed = ChannelClosed if by_peer else trio.ClosedResourceError
        self._reader.release()
        self._writer.release()
        self._arrived.ring()
        self._room.ring()

    def _keep(self, most: int) -> None:
        """Take the last packets out of the ring; what is wrong with it nobody asks any more."""
        start = self._reader.bytes_read
        try:
            while self._reader.bytes_read - start < most and (packets := self._reader.read_batch()):
                self._packets_in += len(packets)
                self._ahead.extend(packets)
                if self.on_packets is not None:
                    self.on_packets(RECEIVED, packets)
        except RingError:
            pass

    async def aclose(self) -> None:
        """`close()`, and a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    @property
    def closed(self) -> bool:
        """Whether either side has closed it."""
        return self._closed is not None

    def check_open(self) -> None:
        """Raise what a call on a closed channel raises."""
        if self._closed is not None:
            raise self._closed

    @property
    def outgoing_bytes(self) -> int:
        """Of the data pages of the ring that this end writes."""
        return self._writer.size

    @property
    def ahead(self) -> int:
        """Packets that have left the ring and that `receive` has not given out."""
        return len(self._ahead)

    @property
    def unsent(self) -> int:
        """Bytes of the outgoing ring that the peer has not taken. Raises `RingError`."""
        return 0 if self._closed is not None else self._writer.size - 8 - self._writer.free_bytes

    @property
    def unread(self) -> bool:
        """Whether the peer has yet to take packets that were sent, as far as it says so."""
        return self._closed is None and not self._writer.empty

    def inspect(self) -> Branch:
        """Both rings, while they are there, and what went through."""
        seen: dict[str, object] = {
            "closed": self.closed,
            "receiving": self._receiving,
            "sending": self._sending,
            "received_ahead": len(self._ahead),
            "statistics": lambda: counters(msgspec.structs.asdict(self.statistics())),
        }
        if not self.closed:
            seen |= {"outgoing": lambda: self._ring(self._writer), "incoming": lambda: self._ring(self._reader)}
        return Branch(seen)

    def _ring(self, ring: RingReader | RingWriter) -> Branch:
        if self.closed:
            raise Gone
        return ring.inspect()

    def statistics(self) -> ChannelStatistics:
        """What went through so far; works after the end too."""
        return ChannelStatistics(
            packets_in=self._packets_in,
            packets_out=self._packets_out,
            bytes_in=self._reader.bytes_read,
            bytes_out=self._writer.bytes_written,
            signals_sent=self._signals_sent,
            wakes=self._wakes,
            spurious_wakes=self._spurious_wakes,
            ring_full_waits=self._ring_full_waits,
        )

    # ------------------------------------------------------------------------------------------------------ receiving

    def try_receive_batch(self, limit: int = BATCH_PACKETS) -> list[Packet]:
        """Up to `limit` packets that are there now, perhaps none. Does not ask the peer for a signal: it only looks."""
        if self._ahead:
            return [self._ahead.popleft() for _ in range(min(limit, len(self._ahead)))]
        if self._closed is not None:
            raise self._closed
        packets = self._reader.read_batch(limit)
        if packets:
            self._packets_in += len(packets)
            if self.on_packets is not None:
                self.on_packets(RECEIVED, packets)
            if self._reader.signal_needed():
                self._send_signal()
        return packets

    def try_receive_parts(self, part_of: PartOf) -> list[bytes]:
        """Those parts that are wanted of packets that are there now, as `RingReader.read_parts` takes them out."""
        if self._ahead:
            return self._parts_ahead(part_of)
        if self._closed is not None:
            raise self._closed
        tap = self._tap()
        packets: list[Packet] | None = None if tap is None else []
        parts = self._reader.read_parts(part_of, packets)
        if parts:
            self._packets_in += len(parts)
            if tap is not None and packets is not None:
                tap(RECEIVED, packets)
            if self._reader.signal_needed():
                self._send_signal()
        return parts

    def _tap(self) -> PacketTap | None:
        """Who is to be shown packets that are made for the showing."""
        switch = self._tap_switch
        return self.on_packets if switch is None or switch.on else None

    def _parts_ahead(self, part_of: PartOf) -> list[bytes]:
        """The same of packets that have left the ring."""
        parts: list[bytes] = []
        try:
            while self._ahead:
                payload = self._ahead[0].payload
                part = part_of(payload[:8], len(payload))
                if part is None:
                    break
                self._ahead.popleft()
                parts.append(payload[slice(*part)])
        except WireError:
            if not parts:
                raise
        return parts

    async def receive_batch(self, limit: int = BATCH_PACKETS) -> list[Packet]:
        """Up to `limit` packets, at least one. A cancelled call has taken none."""
        if self._receiving:
            raise trio.BusyResourceError("another task receives on this channel")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._receiving = True
        try:
            packets = self.try_receive_batch(limit)
            if packets:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return packets
            return await self._wait_for_packets(limit)
        finally:
            self._receiving = False

    async def receive(self) -> Packet:
        """The next packet."""
        if not self._ahead:
            packets = await self.receive_batch()
            if self._closed is trio.ClosedResourceError:  # while others ran
                raise self._closed
            self._ahead.extendleft(reversed(packets))
        else:
            if self._receiving:
                raise trio.BusyResourceError("another task receives on this channel")
            await trio.lowlevel.checkpoint_if_cancelled()
        return self._ahead.popleft()

    async def _wait_for_packets(self, limit: int) -> list[Packet]:
        while True:
            waited = await self._wait_arrived()
            packets = self.try_receive_batch(limit)
            if packets:
                if not waited:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return packets
            if waited:
                self._spurious_wakes += 1
            else:
                # A peer that shows packets and takes them back must not keep others from running.
                await trio.lowlevel.checkpoint()
                if self._closed is not None:
                    raise self._closed

    async def _wait_arrived(self) -> bool:
        """Until the peer signals; false, and no checkpoint, where it need not, since there is something already."""
        arrived = self._arrived
        # Old rings are forgotten before the last look, so a ring that is kept came after it.
        arrived.clear()
        try:
            if self._reader.unmask():
                return False
            await arrived.wait()
            return True
        finally:
            if self._closed is None:
                self._reader.mask()

    async def wait_parts(self) -> None:
        """Until there may be something to receive, or the channel has closed. A checkpoint always."""
        if self._closed is not None or not await self._wait_arrived():
            await trio.lowlevel.checkpoint()

    # -------------------------------------------------------------------------------------------------------- sending

    def try_send_batch(self, packets: Sequence[Packet]) -> int:
        """Send as many packets as there is room for now, in order, and return how many."""
        if self._closed is not None:
            raise self._closed
        sent = self._writer.write_batch(packets)
        if sent:
            self._packets_out += sent
            if self.on_packets is not None:
                self.on_packets(SENT, packets if sent == len(packets) else packets[:sent])
            if self._writer.signal_needed():
                self._send_signal()
        return sent

    def try_send_parts(self, word: bytes, data: memoryview) -> bool:
        """Send one packet of two pieces, as `RingWriter.write_parts` has them; false if there is no room now."""
        if self._closed is not None:
            raise self._closed
        if not self._writer.write_parts(word, data):
            return False
        self._packets_out += 1
        tap = self._tap()
        if tap is not None:
            tap(SENT, (Packet(PacketType.INBAND, 0, 0, 0, word + bytes(data)),))
        if self._writer.signal_needed():
            self._send_signal()
        return True

    async def send_batch(self, packets: Sequence[Packet]) -> None:
        """Send all, and wait for room where there is none. A cancelled call has sent the first of them, each whole."""
        if self._sending:
            raise trio.BusyResourceError("another task sends on this channel")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._sending = True
        try:
            sent = self.try_send_batch(packets)
            if sent == len(packets):
                await trio.lowlevel.cancel_shielded_checkpoint()
            else:
                await self._send_rest(packets[sent:])
        finally:
            self._sending = False

    async def send(self, packet: Packet) -> None:
        """Send one packet, and wait for room where there is none."""
        if self._sending:
            raise trio.BusyResourceError("another task sends on this channel")
        await trio.lowlevel.checkpoint_if_cancelled()
        one = (packet,)
        if not self.try_send_batch(one):
            await self.send_batch(one)
            return
        self._unyielded += 1
        if self._unyielded >= BATCH_PACKETS:
            self._unyielded = 0
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _send_rest(self, packets: Sequence[Packet]) -> None:
        """Send what had no room yet. Waits at least once, or yields."""
        while True:
            await self.wait_room(len(packets[0].body))
            sent = self.try_send_batch(packets)
            if sent == len(packets):
                return
            packets = packets[sent:]

    async def wait_taken(self) -> None:
        """Until the peer has taken all that was sent. It counts as sending: one task at a time."""
        if self._sending:
            raise trio.BusyResourceError("another task sends on this channel")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._sending = True
        try:
            while self._closed is None:
                self._room.clear()
                if self._writer.wait_for(self._writer.size - 8):  # all of it, but for the bytes that are kept free
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    return
                try:
                    await self._room.wait()
                finally:
                    if self._closed is None:
                        self._writer.stop_waiting()
            raise self._closed
        finally:
            self._sending = False

    async def wait_room(self, body: int) -> None:
        """Until there may be room for a packet with `body` bytes, or the channel has closed. A checkpoint always."""
        if self._closed is None:
            self._room.clear()
            if not self._writer.wait_for(ring_bytes(body)):
                self._ring_full_waits += 1
                try:
                    await self._room.wait()
                finally:
                    if self._closed is None:
                        self._writer.stop_waiting()
                return
        await trio.lowlevel.checkpoint()

    def _send_signal(self) -> None:
        self._signals_sent += 1
        self._signal()
