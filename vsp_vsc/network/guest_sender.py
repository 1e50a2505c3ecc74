"""Messages on their way to the host: on which channel, in which section or pages, and when. Child side.

A message goes into a section of the send buffer if it fits, which costs the host nothing to look at, and into pages of
its own else. Sections, pages and room in the ring come back with the host's completions; whoever finds none waits in
turn, so that frames stay in order.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import trio

from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE
from vmbus.client.platform import GuestPlatform
from vmbus.ring import COMPLETION_REQUESTED, Packet, PacketType
from vsp_vsc.dma import DmaBuffer, DmaPool
from vsp_vsc.network.guest_buffers import SendSections
from vsp_vsc.network.guest_channel import NetworkChannel
from vsp_vsc.network.guest_frames import header, pack_messages
from vsp_vsc.network.protocol import NO_SECTION, ChannelType, NvspType

MOST_IN_PAGES = 64
"""Messages in pages of their own that a channel has under way at most."""
_INBAND, _GPA_DIRECT = int(PacketType.INBAND), int(PacketType.GPA_DIRECT)
_RNDIS_PACKET, _DATA = int(NvspType.SEND_RNDIS_PACKET), int(ChannelType.DATA)
_FLOW = slice(26, 38)
"""Addresses and ports of an IPv4 packet without a tag."""


class FrameSender:
    """What an adapter's driver sends, on all its channels."""

    def __init__(self, platform: GuestPlatform, nvsp_size: int) -> None:
        """`nvsp_size` is the size of an NVSP message, for now."""
        self.channels: list[NetworkChannel] = []
        """The primary and the subchannels, in order."""
        self.sections: SendSections | None = None
        self.most_packets = 1
        """Data messages that one NVSP message may have."""
        self.most_bytes = PAGE_SIZE
        """Bytes that one NVSP message may have."""
        self.table: tuple[int, ...] = ()
        """Which channel a flow takes, by its hash; empty with one channel."""
        self.messages = 0
        self.waits = 0
        """How often a sender had to wait for the host."""
        self._pool = DmaPool(platform)
        self._form = _packet_form(nvsp_size)
        self._room = trio.lowlevel.ParkingLot()
        self._turn = trio.StrictFIFOLock()

    def set_nvsp_size(self, size: int) -> None:
        """A version is agreed on."""
        self._form = _packet_form(size)

    # --------------------------------------------------------------------------------------------------------- sending

    def try_send(self, message: bytes, frame: bytes) -> bool:
        """The usual case of `send`: there is a section for it, and room in the ring. False if not. `NetworkGone`."""
        sections = self.sections
        length = len(message)
        if sections is None or length > sections.size or not sections.free or self._turn.locked():
            return False
        section = sections.take()
        start = section * sections.size
        sections.view[start : start + length] = message
        body = self._form.pack(_RNDIS_PACKET, _DATA, section, length)
        packet = Packet(_INBAND, COMPLETION_REQUESTED, section + 1, 0, body)
        channel = self._channel_for(frame) if self.table else self.channels[0]
        if not channel.try_post(packet):
            sections.give_back(section)
            return False
        self.messages += 1
        return True

    async def send(self, message: bytes, frame: bytes) -> None:
        """One message, on the channel of its frame's flow. A checkpoint only where it waits. `NetworkGone`."""
        await self._send([message], self._channel_for(frame))

    async def send_frames(self, frames: Sequence[bytes]) -> None:
        """Frames in as few messages as the host takes. `NetworkGone`."""
        if not self.table:
            await self._send(self._group(frames), self.channels[0])
            return
        by_channel: dict[NetworkChannel, list[bytes]] = {}
        for frame in frames:
            by_channel.setdefault(self._channel_for(frame), []).append(frame)
        for channel, group in by_channel.items():
            await self._send(self._group(group), channel)

    async def send_control(self, message: bytes) -> None:
        """A control message, which is the primary channel's. `NetworkGone`, `MemoryError`."""
        channel = self.channels[0]
        await channel.post([self._in_pages(message, ChannelType.CONTROL, channel)])

    def answered(self) -> None:
        """The host has answered, or never will: those who wait look again."""
        if self._room:
            self._room.unpark_all()

    async def settled(self) -> None:
        """Until the host has answered all that it will."""
        while self._under_way and not self.channels[0].ended:
            await self._room.park()

    def close(self) -> None:
        """All channels are closed: the pages go back."""
        self._pool.close()

    # ---------------------------------------------------------------------------------------------------------- inside

    @property
    def _under_way(self) -> bool:
        sections = self.sections
        return any(channel.outstanding and not channel.ended for channel in self.channels) or (
            sections is not None and len(sections.free) < sections.count
        )

    def _channel_for(self, frame: bytes) -> NetworkChannel:
        """By the flow that a frame belongs to, so that each stays in order."""
        table = self.table
        if not table:
            return self.channels[0]
        number = table[zlib.crc32(frame[_FLOW]) % len(table)]
        return self.channels[number] if number < len(self.channels) else self.channels[0]

    def _group(self, frames: Sequence[bytes]) -> list[bytes]:
        room = min(self.sections.size if self.sections is not None else PAGE_SIZE, self.most_bytes)
        start, count = 0, len(frames)
        messages: list[bytes] = []
        while start < count:
            message, taken = pack_messages(frames, start, room, self.most_packets)
            if not taken:
                message, taken = header(len(frames[start])) + frames[start], 1
            messages.append(message)
            start += taken
        return messages

    async def _send(self, messages: Sequence[bytes], channel: NetworkChannel) -> None:
        done = 0
        if not self._turn.locked():
            done = await self._send_now(messages, channel)
        if done < len(messages):
            async with self._turn:
                while True:
                    done += await self._send_now(messages[done:], channel)
                    if done == len(messages):
                        break
                    self.waits += 1
                    await self._room.park()
        self.messages += done

    async def _send_now(self, messages: Sequence[bytes], channel: NetworkChannel) -> int:
        """Send as many as there are sections and pages for; how many. Waits for room in the ring only."""
        sections, pack = self.sections, self._form.pack
        size = sections.size if sections is not None else 0
        packets: list[Packet] = []
        for message in messages:
            length = len(message)
            if length <= size:
                assert sections is not None
                if not sections.free:
                    break
                section = sections.take()
                start = section * size
                sections.view[start : start + length] = message
                body = pack(_RNDIS_PACKET, _DATA, section, length)
                packets.append(Packet(_INBAND, COMPLETION_REQUESTED, section + 1, 0, body))
            elif channel.outstanding >= MOST_IN_PAGES:
                break
            else:
                try:
                    packets.append(self._in_pages(message, ChannelType.DATA, channel))
                except MemoryError:
                    if not packets and not self._under_way:
                        raise
                    break
        await channel.post(packets)
        return len(packets)

    def _in_pages(self, message: bytes, kind: ChannelType, channel: NetworkChannel) -> Packet:
        """A message as a packet with its pages. `MemoryError`."""
        length = len(message)
        buffer: DmaBuffer = self._pool.allocate(length)
        buffer.view[:length] = message
        pages = (length + PAGE_SIZE - 1) >> PAGE_SHIFT
        extended = struct.pack(f"<4I{pages}Q", 0, 1, length, 0, *buffer.gpns[:pages])
        body = extended + self._form.pack(_RNDIS_PACKET, kind, NO_SECTION, 0)
        packet = Packet(_GPA_DIRECT, COMPLETION_REQUESTED, channel.register(buffer), len(extended), body)
        buffer.free()  # with the completion
        return packet


def _packet_form(size: int) -> struct.Struct:
    return struct.Struct(f"<4I{size - 16}x")
