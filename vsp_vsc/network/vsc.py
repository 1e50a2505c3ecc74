"""The network VSC: a guest's driver for a synthetic network adapter. Child side.

    async with open_network(channel, platform, bus) as network:
        await network.send(frame)
        frame = await network.receive()

Read `connect` first: it is the order in which adapter and driver come to terms, and `leave` is the way back. A frame is
an Ethernet frame from the destination address on, without its check sequence; with its 802.1Q tag in place, if it has
one. `send` puts one frame into one message. `send_batch` puts as many into one as the host takes, which costs half.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE
from hypervisor.wire import WireError
from vmbus.channel import Channel
from vmbus.client.driver_bus import DriverBus
from vmbus.client.platform import GuestPlatform
from vmbus.client.service import VmbusError
from vmbus.ring import COMPLETION_REQUESTED, Packet, PacketType
from vsp_vsc.dma import DmaBuffer, DmaPool
from vsp_vsc.network.guest_buffers import SendSections, SharedBuffer
from vsp_vsc.network.guest_channel import NetworkChannel, ReceiveCounters
from vsp_vsc.network.guest_control import NetworkError, NetworkGone, RndisControl
from vsp_vsc.network.guest_frames import Offload, header, header_with, pack_messages
from vsp_vsc.network.guest_queue import FrameQueue
from vsp_vsc.network.ndis import (
    RSS_KEY_SIZE,
    RSS_TABLE_ENTRIES,
    ChecksumCapability,
    ChecksumSetting,
    ConfigParameter,
    HashInfo,
    ObjectHeader,
    ObjectType,
    OffloadParameters,
    ParameterType,
    RssCapabilities,
    RssParameters,
    SwitchSetting,
)
from vsp_vsc.network.ndis import Offload as OffloadCapabilities
from vsp_vsc.network.protocol import (
    NO_SECTION,
    VERSIONS,
    Capability,
    ChannelType,
    IndirectionTable,
    NdisConfig,
    NdisVersion,
    NvspInit,
    NvspInitComplete,
    NvspStatus,
    NvspType,
    NvspVersion,
    ReceiveBufferComplete,
    ReceiveSection,
    RevokeBuffer,
    SendBuffer,
    SendBufferComplete,
    SubchannelComplete,
    SubchannelRequest,
    message_size,
)
from vsp_vsc.network.rndis import SEVERAL_PACKETS_PARAMETER, Oid, PacketFilter, RndisStatus

RECEIVE_BUFFER_ID, SEND_BUFFER_ID = 0xCAFE, 0
"""Linux's."""
ETHERNET_HEADER, TAG_BYTES = 14, 4
LEAVE_SECONDS = 1.0
"""How long the driver waits for answers to what it has sent, when it ends."""
USUAL_FILTER = PacketFilter.DIRECTED | PacketFilter.ALL_MULTICAST | PacketFilter.BROADCAST
"""What Linux asks for."""
_TYPE = struct.Struct("<I")
_UNYIELDED = 64
"""Frames that `send` takes before it lets others run."""
_MOST_IN_PAGES = 64
"""Messages in pages of their own that are under way at most."""


@attrs.frozen
class NetworkSettings:
    """What a driver asks for."""

    versions: Sequence[NvspVersion] = VERSIONS
    """To be tried in this order."""
    mtu: int = 1500
    """The host may have less."""
    receive_buffer: int = 1 << 20
    """Bytes; what comes while it is full is lost."""
    send_buffer: int = 512 << 10
    """Bytes; 0 for none."""
    sub_channels: int = 0
    """At most; no more than there are other processors."""
    ring_bytes: int = 128 << 10
    """Of each ring of a subchannel, with its control page."""


@attrs.define
class NetworkStatistics:
    """Counts since the driver began."""

    frames_sent: int = 0
    bytes_sent: int = 0
    messages_sent: int = 0
    """NVSP messages with frames; `send_batch` puts several into one."""
    frames_received: int = 0
    bytes_received: int = 0
    not_sent: int = 0
    """Frames that were to be sent while the link was down."""
    dropped: int = 0
    """Frames that nobody read in time."""
    waits: int = 0
    """How often a sender had to wait for the host."""
    link_changes: int = 0
    bad_messages: int = 0
    refused: int = 0
    unexpected: int = 0


class Network:
    """An adapter that is driven. Made by `open_network`."""

    def __init__(
        self,
        channel: Channel,
        platform: GuestPlatform,
        bus: DriverBus,
        settings: NetworkSettings,
        nursery: trio.Nursery,
    ) -> None:
        self.mac = bytes(6)
        """The adapter's permanent address."""
        self.mtu = settings.mtu
        """Bytes behind the Ethernet header, at most."""
        self.link_up = False
        self.link_speed = 0
        """Bits a second, as the host says."""
        self.offloads = OffloadCapabilities()
        """What the adapter does with frames on their way, for `Offload`."""
        self.version = 0
        """The protocol version agreed on, a `NvspVersion`."""
        self._platform, self._bus, self._settings, self._nursery = platform, bus, settings, nursery
        self._counters = ReceiveCounters()
        self._statistics = NetworkStatistics()
        self._link_changed = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._turn = trio.StrictFIFOLock()
        self._pool = DmaPool(platform)
        self._control = RndisControl(self._send_control, self._indicated)
        self._queues = [FrameQueue()]
        self._own_queue = self._queues[0]
        self._asked_for_frames = False
        self._message_size = message_size(settings.versions[0])
        self._most_packets = 1
        self._most_bytes = PAGE_SIZE
        self._sections: SendSections | None = None
        self._receive_buffer: SharedBuffer | None = None
        self._send_buffer: SharedBuffer | None = None
        self._packet_form = _packet_form(self._message_size)
        self._unyielded = 0
        self._table: tuple[int, ...] = ()
        """Which channel a flow takes, by its hash; empty with one channel."""
        self._host_table: tuple[int, ...] = ()
        """The host's wish, which may come before the subchannels are open."""
        self._channels = [self._new_channel(channel)]
        self._primary = self._channels[0]

    # ---------------------------------------------------------------------------------------------------- for programs

    async def send(self, frame: bytes, offload: Offload | None = None) -> None:
        """One frame in a message of its own. Waits where the host is behind. `ValueError`, `NetworkGone`.

        While the link is down frames are dropped and counted.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        length = len(frame)
        info = b"" if offload is None else offload.encode()
        self._check(length, offload)
        if not self._may_send(1):
            return
        start = header(length) if not info else header_with(length, info)
        await self._send_messages([start + frame], self._channel_for(frame))
        self._statistics.frames_sent += 1
        self._statistics.bytes_sent += length
        self._unyielded += 1
        if self._unyielded >= _UNYIELDED:
            self._unyielded = 0
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def send_batch(self, frames: Sequence[bytes]) -> None:
        """Frames in as few messages as the host takes. Waits where the host is behind. `ValueError`, `NetworkGone`.

        A cancelled call has sent the first of them. While the link is down frames are dropped and counted.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._may_send(len(frames)):
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        for frame in frames:
            self._check(len(frame), None)
        if self._table:
            by_channel: dict[NetworkChannel, list[bytes]] = {}
            for frame in frames:
                by_channel.setdefault(self._channel_for(frame), []).append(frame)
            for channel, group in by_channel.items():
                await self._send_group(group, channel)
        else:
            await self._send_group(frames, self._primary)
        self._statistics.frames_sent += len(frames)
        self._statistics.bytes_sent += sum(map(len, frames))
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def receive_batch(self, limit: int = 256) -> list[bytes]:
        """Frames that came, at least one. `trio.EndOfChannel` when the adapter is gone. One task at a time."""
        self._want_frames()
        return await self._own_queue.receive_batch(limit)

    async def receive(self) -> bytes:
        """The next frame. `trio.EndOfChannel` when the adapter is gone. One task at a time."""
        self._want_frames()
        return await self._own_queue.receive()

    def frames(self) -> FrameQueue:
        """Each frame that comes from now on, for somebody else: an IP stack, a sniffer. Close it in the end.

        Frames are kept for `receive` no more, unless it was called before or is called again.
        """
        if not self._asked_for_frames and self._own_queue in self._queues:
            self._queues.remove(self._own_queue)
        queue = FrameQueue()
        if self._primary.ended:
            queue.end()
        self._queues.append(queue)
        return queue

    async def wait_link(self, up: bool = True) -> None:
        """Until the link is up, or down. `trio.EndOfChannel` when the adapter is gone."""
        await trio.lowlevel.checkpoint()
        while self.link_up != up:
            await self.link_change()

    async def link_change(self) -> bool:
        """Whether the link is up, after its next change. `trio.EndOfChannel` when the adapter is gone."""
        if self._primary.ended:
            raise trio.EndOfChannel
        await self._link_changed.wait()
        if self._primary.ended:
            raise trio.EndOfChannel
        return self.link_up

    async def set_filter(self, wanted: PacketFilter) -> None:
        """What the host shall give us, such as `PacketFilter.PROMISCUOUS`. `NetworkError`."""
        await self._control.set(Oid.GEN_CURRENT_PACKET_FILTER, _TYPE.pack(wanted))

    async def query(self, oid: Oid) -> bytes:
        """Ask the adapter something. `NetworkError` where it does not know."""
        return await self._control.query(oid)

    @property
    def channels(self) -> int:
        """How many the driver uses: one and the subchannels."""
        return len(self._channels)

    def statistics(self) -> NetworkStatistics:
        """Counters, as of now."""
        return attrs.evolve(
            self._statistics,
            dropped=self._statistics.dropped + sum(queue.dropped for queue in self._queues),
            bad_messages=self._counters.bad_messages,
            refused=self._counters.refused,
            unexpected=self._counters.unexpected + self._control.unexpected,
        )

    # --------------------------------------------------------------------------------------- coming to terms, and back

    async def connect(self) -> None:
        """Agree on a version, share buffers, learn what the adapter is, and open it. `NetworkError`, `VmbusError`."""
        await self._agree()
        if self.version > NvspVersion.V1:
            config = NdisConfig(self._settings.mtu + ETHERNET_HEADER, 0, Capability.IEEE8021Q)
            await self._primary.tell(self._message(NvspType.SEND_NDIS_CONFIG, config.encode()))
        ndis = NdisVersion(6, 1 if self.version <= NvspVersion.V4 else 30)
        await self._primary.tell(self._message(NvspType.SEND_NDIS_VERSION, ndis.encode()))
        await self._share_receive_buffer()
        if self._settings.send_buffer:
            await self._share_send_buffer()
        limits = await self._control.initialize()
        self._most_packets = max(1, limits.max_packets)
        self._most_bytes = limits.max_transfer
        (most,) = _TYPE.unpack_from(await self._control.query(Oid.GEN_MAXIMUM_FRAME_SIZE))
        self.mtu = min(self.mtu, most)
        self.mac = (await self._control.query(Oid.ETHERNET_PERMANENT_ADDRESS))[:6]
        (disconnected,) = _TYPE.unpack_from(await self._control.query(Oid.GEN_MEDIA_CONNECT_STATUS))
        with contextlib.suppress(NetworkError):
            self.link_speed = _TYPE.unpack_from(await self._control.query(Oid.GEN_LINK_SPEED))[0] * 100
        self.link_up = not disconnected
        with contextlib.suppress(NetworkError):
            await self._set_offloads()
        with contextlib.suppress(NetworkError):
            await self._control.set(Oid.GEN_RNDIS_CONFIG_PARAMETER, _parameter(SEVERAL_PACKETS_PARAMETER, 1))
        if self._settings.sub_channels and self.version >= NvspVersion.V5:
            await self._open_sub_channels()
        await self.set_filter(USUAL_FILTER)

    async def leave(self) -> None:
        """Stop the adapter, take the buffers back, and close the channels. Nothing is under way afterwards."""
        if not self._primary.ended:
            with contextlib.suppress(NetworkError, WireError, trio.TooSlowError):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._cut_off, nursery.cancel_scope)
                    await self.set_filter(PacketFilter(0))
                    while self._under_way and not self._primary.ended:
                        await self._room.park()
                    await self._control.halt()
                    nursery.cancel_scope.cancel()
            with contextlib.suppress(NetworkError):
                if self._receive_buffer is not None:
                    revoke = RevokeBuffer(RECEIVE_BUFFER_ID).encode()
                    await self._primary.tell(self._message(NvspType.REVOKE_RECEIVE_BUFFER, revoke))
                if self._send_buffer is not None:
                    revoke = RevokeBuffer(SEND_BUFFER_ID).encode()
                    await self._primary.tell(self._message(NvspType.REVOKE_SEND_BUFFER, revoke))
        for channel in reversed(self._channels):
            await self._bus.close(channel.channel)
            channel.forget()
        for buffer in (self._send_buffer, self._receive_buffer):
            if buffer is not None:
                await buffer.destroy()
        self._pool.close()

    async def _agree(self) -> None:
        for version in self._settings.versions:
            init = self._message(NvspType.INIT, NvspInit(version, version).encode())
            complete = NvspInitComplete.decode(await self._primary.ask(init), _TYPE.size)
            if complete.status == NvspStatus.SUCCESS:
                self.version = version
                self._message_size = message_size(version)
                self._packet_form = _packet_form(self._message_size)
                return
        spoken = ", ".join(NvspVersion(version).name for version in self._settings.versions)
        raise NetworkError(f"the network adapter speaks none of the versions {spoken}")

    async def _share_receive_buffer(self) -> None:
        self._receive_buffer = await SharedBuffer.create(self._platform, self._bus, self._settings.receive_buffer)
        # Before the host hears of it: from then on it may use it.
        self._primary.receive_buffer, self._primary.receive_buffer_id = self._receive_buffer.view, RECEIVE_BUFFER_ID
        message = SendBuffer(self._receive_buffer.gpadl_id, RECEIVE_BUFFER_ID).encode()
        answer = await self._primary.ask(self._message(NvspType.SEND_RECEIVE_BUFFER, message))
        complete = ReceiveBufferComplete.decode(answer, _TYPE.size)
        if complete.status != NvspStatus.SUCCESS:
            raise NetworkError(f"the network adapter refuses the receive buffer: status {complete.status}")
        section = ReceiveSection.decode(answer, _TYPE.size + ReceiveBufferComplete.SIZE)
        if complete.section_count != 1 or section.section_offset:
            raise NetworkError(f"the network adapter wants {complete.section_count} sections, of which we know one")

    async def _share_send_buffer(self) -> None:
        self._send_buffer = await SharedBuffer.create(self._platform, self._bus, self._settings.send_buffer)
        message = SendBuffer(self._send_buffer.gpadl_id, SEND_BUFFER_ID).encode()
        answer = await self._primary.ask(self._message(NvspType.SEND_SEND_BUFFER, message))
        complete = SendBufferComplete.decode(answer, _TYPE.size)
        if complete.status != NvspStatus.SUCCESS or not 0 < complete.section_size <= len(self._send_buffer.view):
            raise NetworkError(
                f"the network adapter refuses the send buffer: status {complete.status},"
                f" sections of {complete.section_size} bytes"
            )
        self._sections = SendSections(self._send_buffer.view, complete.section_size)
        self._primary.sections = self._sections

    async def _set_offloads(self) -> None:
        """Learn what the adapter can, and turn it on."""
        asked = ObjectHeader(ObjectType.OFFLOAD, 3, OffloadCapabilities.SIZE).encode()
        answer = await self._control.query(
            Oid.TCP_OFFLOAD_HARDWARE_CAPABILITIES, asked.ljust(OffloadCapabilities.SIZE, b"\0")
        )
        self.offloads = can = OffloadCapabilities.decode(answer.ljust(OffloadCapabilities.SIZE, b"\0"))

        def checksum(of: int, what: ChecksumCapability) -> int:
            return ChecksumSetting.TRANSMIT if of & what else ChecksumSetting.OFF

        parameters = OffloadParameters(
            ipv4_header=checksum(can.ipv4_transmit, ChecksumCapability.IPV4_HEADER),
            tcp_ipv4=checksum(can.ipv4_transmit, ChecksumCapability.TCP),
            udp_ipv4=checksum(can.ipv4_transmit, ChecksumCapability.UDP),
            tcp_ipv6=checksum(can.ipv6_transmit, ChecksumCapability.TCP),
            udp_ipv6=checksum(can.ipv6_transmit, ChecksumCapability.UDP),
            lso_v2_ipv4=SwitchSetting.ON if can.lso_ipv4_max_size else SwitchSetting.OFF,
            lso_v2_ipv6=SwitchSetting.ON if can.lso_ipv6_max_size else SwitchSetting.OFF,
        )
        await self._control.set(Oid.TCP_OFFLOAD_PARAMETERS, parameters.encode())

    async def _open_sub_channels(self) -> None:
        asked = (
            ObjectHeader(ObjectType.RSS_CAPABILITIES, 2, RssCapabilities.SIZE)
            .encode()
            .ljust(RssCapabilities.SIZE, b"\0")
        )
        try:
            can = RssCapabilities.decode(await self._control.query(Oid.GEN_RECEIVE_SCALE_CAPABILITIES, asked))
        except NetworkError:
            return  # one channel will do
        wanted = min(self._settings.sub_channels, self._bus.processors - 1, can.receive_queues - 1)
        if wanted <= 0:
            return
        request = SubchannelRequest(1, wanted).encode()
        answer = await self._primary.ask(self._message(NvspType.SUBCHANNEL, request))
        complete = SubchannelComplete.decode(answer, _TYPE.size)
        if complete.status != NvspStatus.SUCCESS:
            return
        for _ in range(min(complete.count, wanted)):
            channel = await self._bus.open_sub_channel(ring_bytes=self._settings.ring_bytes)
            added = self._new_channel(channel)
            added.receive_buffer, added.receive_buffer_id = self._primary.receive_buffer, RECEIVE_BUFFER_ID
            added.sections = self._sections
            self._channels.append(added)
        if len(self._channels) > 1:
            self._table = self._host_table or tuple(range(len(self._channels)))
            await self._control.set(Oid.GEN_RECEIVE_SCALE_PARAMETERS, _spread(len(self._channels)))

    # ---------------------------------------------------------------------------------------------------------- inside

    def _message(self, kind: NvspType, body: bytes) -> bytes:
        return (_TYPE.pack(kind) + body).ljust(self._message_size, b"\0")

    def _new_channel(self, channel: Channel) -> NetworkChannel:
        made = NetworkChannel(
            channel,
            counters=self._counters,
            on_frames=self._arrived,
            on_control=self._control.heard,
            on_message=self._heard,
            on_room=self._answered,
        )
        self._nursery.start_soon(self._receive, made, name="network receives")
        return made

    async def _receive(self, channel: NetworkChannel) -> None:
        """Task: one channel's packets; with the primary's all ends."""
        try:
            await channel.receive(self._nursery)
        finally:
            if channel is self._primary:
                self._control.end(channel.ended)
                for queue in self._queues:
                    queue.end()
                self._own_queue.end()
                self._link_changed.set()
            elif channel in self._channels:
                self._channels.remove(channel)
                self._table = ()

    def _arrived(self, frames: list[bytes]) -> None:
        self._statistics.frames_received += len(frames)
        self._statistics.bytes_received += sum(map(len, frames))
        closed = False
        for queue in self._queues:
            if queue.closed:
                closed = True
            else:
                queue.put(frames)
        if closed:
            self._statistics.dropped += sum(queue.dropped for queue in self._queues if queue.closed)
            self._queues = [queue for queue in self._queues if not queue.closed]

    def _want_frames(self) -> None:
        self._asked_for_frames = True
        if self._own_queue not in self._queues:
            self._queues.append(self._own_queue)

    def _answered(self) -> None:
        if self._room:
            self._room.unpark_all()

    def _heard(self, kind: int, untrusted: bytes) -> None:
        """An NVSP message of the host's own accord. Raises `WireError`."""
        if kind == NvspType.SEND_INDIRECTION_TABLE:
            table = IndirectionTable.decode(untrusted, _TYPE.size)
            entries = untrusted[table.table_offset : table.table_offset + 4 * table.count]
            if len(entries) == 4 * table.count and table.count:
                self._host_table = struct.unpack(f"<{table.count}I", entries)
                if self._table:
                    self._table = self._host_table
        elif kind != NvspType.SEND_VF_ASSOCIATION:
            self._counters.unexpected += 1

    def _indicated(self, status: int) -> None:
        match status:
            case RndisStatus.MEDIA_CONNECT:
                self._link(True)
            case RndisStatus.MEDIA_DISCONNECT:
                self._link(False)
            case RndisStatus.NETWORK_CHANGE:  # another network at the same link: down and up at once
                self._link(False)
                self._link(True)
            case _:
                pass

    def _link(self, up: bool) -> None:
        self.link_up = up
        self._statistics.link_changes += 1
        self._link_changed.set()
        self._link_changed = trio.Event()

    # --------------------------------------------------------------------------------------------------------- sending

    def _check(self, length: int, offload: Offload | None) -> None:
        most = self.mtu + ETHERNET_HEADER + TAG_BYTES if offload is None or not offload.segment else 0xFFFF
        if not ETHERNET_HEADER <= length <= most:
            raise ValueError(f"a frame of {length} bytes: {ETHERNET_HEADER} to {most} go")

    def _may_send(self, count: int) -> bool:
        if self._primary.ended:
            raise NetworkGone(self._primary.ended)
        if not self.link_up:
            self._statistics.not_sent += count
        return self.link_up

    def _channel_for(self, frame: bytes) -> NetworkChannel:
        """By the flow that a frame belongs to, so that each stays in order."""
        table = self._table
        if not table:
            return self._primary
        number = table[zlib.crc32(frame[26:38]) % len(table)]  # addresses and ports of IPv4 without a tag
        return self._channels[number] if number < len(self._channels) else self._primary

    async def _send_group(self, frames: Sequence[bytes], channel: NetworkChannel) -> None:
        """Frames for one channel in messages of several."""
        room = self._sections.size if self._sections is not None else PAGE_SIZE
        room = min(room, self._most_bytes)
        start, count = 0, len(frames)
        messages: list[bytes] = []
        while start < count:
            message, taken = pack_messages(frames, start, room, self._most_packets)
            if not taken:
                message, taken = header(len(frames[start])) + frames[start], 1
            messages.append(message)
            start += taken
        await self._send_messages(messages, channel)

    async def _send_messages(self, messages: Sequence[bytes], channel: NetworkChannel) -> None:
        """RNDIS messages, in order, each in a section where it fits, in pages of its own else."""
        turn = self._turn
        if turn.locked():
            async with turn:
                await self._send_in_turn(messages, channel)
        else:
            done = await self._send_now(messages, channel)
            if done < len(messages):
                async with turn:
                    await self._send_in_turn(messages[done:], channel)
        self._statistics.messages_sent += len(messages)

    async def _send_in_turn(self, messages: Sequence[bytes], channel: NetworkChannel) -> None:
        while True:
            done = await self._send_now(messages, channel)
            if done == len(messages):
                return
            messages = messages[done:]
            self._statistics.waits += 1
            await self._room.park()

    async def _send_now(self, messages: Sequence[bytes], channel: NetworkChannel) -> int:
        """Send as many as there are sections and pages for; how many. Waits for room in the ring only."""
        sections, form = self._sections, self._packet_form
        size = sections.size if sections is not None else 0
        packets: list[Packet] = []
        try:
            for message in messages:
                length = len(message)
                if length <= size:
                    assert sections is not None
                    if not sections.free:
                        break
                    section = sections.take()
                    start = section * size
                    sections.view[start : start + length] = message
                    body = form.pack(NvspType.SEND_RNDIS_PACKET, ChannelType.DATA, section, length)
                    packets.append(Packet(PacketType.INBAND, COMPLETION_REQUESTED, section + 1, 0, body))
                elif channel.outstanding >= _MOST_IN_PAGES:
                    break
                else:
                    packets.append(self._in_pages(message, ChannelType.DATA, channel))
        except MemoryError:
            if not packets and not self._under_way:
                raise
        await channel.post(packets)
        return len(packets)

    @property
    def _under_way(self) -> bool:
        """Whether the host has something of ours to answer."""
        sections = self._sections
        return any(channel.outstanding for channel in self._channels) or (
            sections is not None and len(sections.free) < sections.count
        )

    def _in_pages(self, message: bytes, kind: ChannelType, channel: NetworkChannel) -> Packet:
        """A message as a packet with its pages. `MemoryError`."""
        length = len(message)
        buffer: DmaBuffer = self._pool.allocate(length)
        buffer.view[:length] = message
        pages = (length + PAGE_SIZE - 1) >> PAGE_SHIFT
        extended = struct.pack(f"<4I{pages}Q", 0, 1, length, 0, *buffer.gpns[:pages])
        body = extended + self._packet_form.pack(NvspType.SEND_RNDIS_PACKET, kind, NO_SECTION, 0)
        packet = Packet(PacketType.GPA_DIRECT, COMPLETION_REQUESTED, channel.register(buffer), len(extended), body)
        buffer.free()  # with the completion
        return packet

    async def _send_control(self, message: bytes) -> None:
        await self._primary.post([self._in_pages(message, ChannelType.CONTROL, self._primary)])

    async def _cut_off(self, scope: trio.CancelScope) -> None:
        await self._platform.sleep(LEAVE_SECONDS)
        scope.cancel()


def _parameter(name: str, value: int) -> bytes:
    """A setting of the adapter's by name."""
    text = name.encode("utf-16-le")
    head = ConfigParameter(
        name_offset=ConfigParameter.SIZE,
        name_length=len(text),
        parameter_type=ParameterType.INTEGER,
        value_offset=ConfigParameter.SIZE + len(text),
        value_length=4,
    )
    return head.encode() + text + _TYPE.pack(value)


def _spread(channels: int) -> bytes:
    """Receive side scaling: flows go round the channels."""
    table = struct.pack(f"<{RSS_TABLE_ENTRIES}I", *(index % channels for index in range(RSS_TABLE_ENTRIES)))
    head = RssParameters(
        hash_info=HashInfo.TOEPLITZ | HashInfo.IPV4 | HashInfo.TCP_IPV4 | HashInfo.UDP_IPV4,
        table_size=len(table),
        table_offset=RssParameters.SIZE,
        key_size=RSS_KEY_SIZE,
        key_offset=RssParameters.SIZE + len(table),
    )
    # Any key spreads; this one is the same for every guest, so that runs repeat.
    return head.encode() + table + bytes((73 * index + 41) & 0xFF for index in range(RSS_KEY_SIZE))


def _packet_form(size: int) -> struct.Struct:
    return struct.Struct(f"<4I{size - 16}x")


@asynccontextmanager
async def open_network(
    channel: Channel,
    platform: GuestPlatform,
    bus: DriverBus,
    settings: NetworkSettings | None = None,
) -> AsyncIterator[Network]:
    """Drive the adapter at the other end of an open channel; at the end the channel is closed.

    Raises `NetworkError` where the adapter cannot be driven, `VmbusError` and `MemoryError` where it cannot be shared
    memory with.
    """
    try:
        async with trio.open_nursery() as nursery:
            network = Network(channel, platform, bus, settings or NetworkSettings(), nursery)
            try:
                await network.connect()
                yield network
            except trio.Cancelled:
                bus.start_soon(network.leave)  # which nobody waits for; it is nothing where the guest is switched off
                raise
            except BaseException:
                await network.leave()
                raise
            await network.leave()
            nursery.cancel_scope.cancel()
    except* (NetworkError, VmbusError, MemoryError) as group:
        raise group.exceptions[0] from None
