"""One of an adapter's channels in its driver: what goes out, what is under way, and what comes. Child side.

A transaction ID says what its completion frees: 1 and up are sections of the send buffer, in order; then come those of
messages in pages of their own and of requests that somebody waits for.

Concurrency. Everything runs in the guest's Trio thread. Sending is synchronous as long as the ring has room; where it
has none, one task after the other waits for it under a lock. The task that receives never waits for room, so that two
full rings cannot stop both ends: what it has to say then is left to a task of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import attrs
import trio

from hypervisor.wire import BadValue, WireError
from vmbus.channel import Channel
from vmbus.ring import COMPLETION_REQUESTED, Packet, PacketType
from vsp_vsc.dma import DmaBuffer
from vsp_vsc.network.guest_buffers import SendSections
from vsp_vsc.network.guest_control import NetworkGone
from vsp_vsc.network.guest_frames import take_messages
from vsp_vsc.network.protocol import NvspStatus, NvspType, RndisPacketComplete

FIRST_ID = 0x10000
"""Of transactions that are no sections."""
_COMPLETION, _TRANSFER_PAGES, _INBAND = (
    int(PacketType.COMPLETION),
    int(PacketType.TRANSFER_PAGES),
    int(PacketType.INBAND),
)
_RNDIS_PACKET = int(NvspType.SEND_RNDIS_PACKET)
_TAKEN = struct.pack("<I", NvspType.SEND_RNDIS_PACKET_COMPLETE) + RndisPacketComplete(NvspStatus.SUCCESS).encode()
_transfer = struct.Struct("<HBBI").unpack_from
_range = struct.Struct("<II")
_message_type = struct.Struct("<I").unpack_from


@attrs.define
class ReceiveCounters:
    """What went wrong with what came and what was answered."""

    bad_messages: int = 0
    """Ranges outside the receive buffer, RNDIS messages that contradict themselves: dropped."""
    refused: int = 0
    """Our messages that the host did not take."""
    unexpected: int = 0
    """Completions of nothing, and NVSP messages that we know nothing of."""


@attrs.define(eq=False)
class _Request:
    """An NVSP message that somebody waits for the completion of."""

    answered: trio.Event = attrs.field(factory=trio.Event)
    answer: bytes = b""


class NetworkChannel:
    """The primary channel, or a subchannel."""

    def __init__(
        self,
        channel: Channel,
        *,
        counters: ReceiveCounters,
        on_frames: Callable[[list[bytes]], None],
        on_control: Callable[[bytes], None],
        on_message: Callable[[int, bytes], None],
        on_room: Callable[[], None],
    ) -> None:
        """`on_message` hears NVSP messages of the host's, by type; `on_room` that messages were answered."""
        self.channel = channel
        self.sections: SendSections | None = None
        self.receive_buffer: memoryview | None = None
        self.receive_buffer_id = 0
        self.ended = ""
        """Why nothing goes and comes any more."""
        self._counters = counters
        self._on_frames = on_frames
        self._on_control = on_control
        self._on_message = on_message
        self._on_room = on_room
        self._sending = trio.Lock()
        self._pending: dict[int, DmaBuffer | _Request] = {}
        self._next = FIRST_ID
        self._unsent: list[Packet] = []
        """Completions that had no room."""

    @property
    def outstanding(self) -> int:
        """Messages in pages of their own and requests that the host has not answered; sections are counted apart."""
        return len(self._pending)

    # --------------------------------------------------------------------------------------------------------- sending

    async def ask(self, body: bytes, *, packet_type: PacketType = PacketType.INBAND) -> bytes:
        """Send an NVSP message, and wait for its completion. `NetworkGone`."""
        request = _Request()
        transaction_id = self.register(request)
        await self.post([Packet(packet_type, COMPLETION_REQUESTED, transaction_id, 0, body)])
        await request.answered.wait()
        if self.ended:
            raise NetworkGone(self.ended)
        return request.answer

    async def tell(self, body: bytes) -> None:
        """Send an NVSP message that has no answer. `NetworkGone`."""
        await self.post([Packet(PacketType.INBAND, 0, 0, 0, body)])

    def register(self, holder: DmaBuffer | _Request) -> int:
        """A transaction ID for what the completion shall free."""
        self._next += 1
        self._pending[self._next] = holder
        if isinstance(holder, DmaBuffer):
            holder.in_flight += 1
        return self._next

    def try_post(self, packet: Packet) -> bool:
        """Send one if there is room now; nothing is freed if there is not."""
        if self.ended or self._sending.locked():
            return False
        try:
            return self.channel.try_send_batch((packet,)) > 0
        except (trio.BrokenResourceError, trio.ClosedResourceError, WireError):
            return False  # `post` says what is wrong

    async def post(self, packets: Sequence[Packet]) -> None:
        """Send all of them; a checkpoint only where there is no room. `NetworkGone`.

        What is not sent in the end, because the call is cancelled or the channel has gone, is freed.
        """
        done = 0
        try:
            if self.ended:
                raise NetworkGone(self.ended)
            if not self._sending.locked():
                done = self.channel.try_send_batch(packets)
            while done < len(packets):
                async with self._sending:
                    await self.channel.send(packets[done])
                    done += 1
                    done += self.channel.try_send_batch(packets[done:])
        except (trio.BrokenResourceError, trio.ClosedResourceError, WireError) as error:
            self.end(str(error) or "the network adapter's channel is closed")
            raise NetworkGone(self.ended) from None
        finally:
            for packet in packets[done:]:
                self._free(packet.transaction_id, None)

    # ------------------------------------------------------------------------------------------------------- receiving

    async def receive(self, nursery: trio.Nursery) -> None:
        """Task: until the channel ends. Tasks that it needs for a moment run in `nursery`."""
        try:
            while True:
                answers = self._take(await self.channel.receive_batch())
                if answers:
                    sent = 0 if self._unsent else self.channel.try_send_batch(answers)
                    if sent < len(answers):
                        if not self._unsent:
                            nursery.start_soon(self._send_unsent, name="network completions wait for room")
                        self._unsent += answers[sent:]
        except (trio.EndOfChannel, trio.BrokenResourceError):
            self.end("the host has closed the network adapter's channel")
        except trio.ClosedResourceError:
            self.end("the network driver has closed its channel")
        except (WireError, struct.error) as error:
            self.end(f"the network adapter's channel is corrupt: {error}")
        finally:
            self.end("the network driver has ended")

    def _take(self, packets: Sequence[Packet]) -> list[Packet]:
        """Look at what came; the completions to send for it."""
        frames: list[bytes] = []
        answers: list[Packet] = []
        freed = False
        for packet in packets:
            kind = packet.type
            if kind == _COMPLETION:
                self._free(packet.transaction_id, packet.body)
                freed = True
            elif kind == _TRANSFER_PAGES:
                self._take_transfer(packet, frames)
                answers.append(Packet(_COMPLETION, 0, packet.transaction_id, 0, _TAKEN))
            elif kind == _INBAND and len(packet.body) >= 4:
                self._on_message(_message_type(packet.body)[0], packet.body)
                if packet.flags & COMPLETION_REQUESTED:
                    answers.append(Packet(_COMPLETION, 0, packet.transaction_id, 0, b""))
            else:
                raise BadValue(f"packet of type {kind} with {len(packet.body)} bytes")
        if frames:
            self._on_frames(frames)
        if freed:
            self._on_room()
        return answers

    def _take_transfer(self, packet: Packet, frames: list[bytes]) -> None:
        body, buffer = packet.body, self.receive_buffer
        number, _, _, count = _transfer(body)
        if buffer is None or number != self.receive_buffer_id or 8 + 8 * count > packet.data_offset:
            raise BadValue(f"{count} transfer ranges of buffer {number:#x}")
        if len(body) < packet.data_offset + 4 or _message_type(body, packet.data_offset)[0] != _RNDIS_PACKET:
            raise BadValue("transfer pages without an RNDIS message")
        size = len(buffer)
        for length, offset in _range.iter_unpack(body[8 : 8 + 8 * count]):
            if offset + length > size:
                self._counters.bad_messages += 1
                continue
            try:
                control = take_messages(buffer, offset, length, frames)
                if control is not None:
                    self._on_control(control)
            except WireError:
                self._counters.bad_messages += 1

    def _free(self, transaction_id: int, answer: bytes | None) -> None:
        """Free what a transaction held: the host has answered, or it was never sent."""
        sections = self.sections
        if sections is not None and 0 < transaction_id <= sections.count:
            if not sections.give_back(transaction_id - 1):
                self._counters.unexpected += 1
            elif answer is not None and answer[:8] != _TAKEN:
                self._counters.refused += 1
            return
        holder = self._pending.pop(transaction_id, None)
        match holder:
            case DmaBuffer():
                holder.release()
                if answer is not None and answer[:8] != _TAKEN:
                    self._counters.refused += 1
            case _Request():
                holder.answer = answer or b""
                holder.answered.set()
            case None:
                self._counters.unexpected += answer is not None

    async def _send_unsent(self) -> None:
        try:
            while self._unsent:
                async with self._sending:
                    await self.channel.send(self._unsent[0])
                    del self._unsent[0]
                    del self._unsent[: self.channel.try_send_batch(self._unsent)]
        except (trio.BrokenResourceError, trio.ClosedResourceError, WireError):
            pass  # the receiver hears of it too

    def forget(self) -> None:
        """The channel is closed and the host has let go of it: free what it never answered."""
        self.receive_buffer = self.sections = None
        for transaction_id in list(self._pending):
            self._free(transaction_id, None)

    def end(self, reason: str) -> None:
        """Nothing will be answered any more: wake everyone. Pages that the host may still look at stay taken."""
        if self.ended:
            return
        self.ended = reason
        for holder in self._pending.values():
            if isinstance(holder, _Request):
                holder.answered.set()
        self._on_room()
