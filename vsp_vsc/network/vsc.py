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
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from hypervisor.wire import WireError
from vmbus.channel import Channel
from vmbus.client.driver_bus import DriverBus
from vmbus.client.platform import GuestPlatform
from vmbus.client.service import VmbusError
from vsp_vsc.network import guest_parameters as parameters
from vsp_vsc.network import ndis
from vsp_vsc.network.guest_buffers import SendSections, SharedBuffer
from vsp_vsc.network.guest_channel import NetworkChannel, ReceiveCounters
from vsp_vsc.network.guest_control import NetworkError, NetworkGone, RndisControl
from vsp_vsc.network.guest_frames import Offload, header, header_with
from vsp_vsc.network.guest_queue import FrameQueue
from vsp_vsc.network.guest_sender import FrameSender
from vsp_vsc.network.protocol import (
    DEFAULT_MTU,
    LARGEST_MTU,
    MAX_SUB_CHANNELS,
    VERSIONS,
    Capability,
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
    version_words,
)
from vsp_vsc.network.rndis import SEVERAL_PACKETS_PARAMETER, Oid, PacketFilter, RndisStatus

__all__ = ["Network", "NetworkError", "NetworkGone", "NetworkSettings", "NetworkStatistics", "Offload", "open_network"]

RECEIVE_BUFFER_ID, SEND_BUFFER_ID = 0xCAFE, 0
"""Linux's."""
ETHERNET_HEADER, TAG_BYTES = 14, 4
LONGEST_SEGMENTED = 0xFFFF
"""Bytes of a frame that the host shall segment, at most."""
LEAVE_SECONDS = 1.0
"""How long the driver waits for answers to what it has sent, when it ends."""
USUAL_FILTER = PacketFilter.DIRECTED | PacketFilter.ALL_MULTICAST | PacketFilter.BROADCAST
"""What Linux asks for."""
_NDIS_OLD, _NDIS_NEW = NdisVersion(6, 1), NdisVersion(6, 30)
"""Up to NVSP 4, and from 5 on."""
_ALLOCATE = 1
_NUMBER = struct.Struct("<I")
_UNYIELDED = 64
"""Frames that `send` takes before it lets others run."""


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
    sub_channels: int = MAX_SUB_CHANNELS
    """At most; no more than there are other processors, and than the host has."""
    ring_bytes: int = 128 << 10
    """Of each ring of a subchannel, with its control page."""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> NetworkSettings:
        """By a guest's `args`: `network_mtu` and `network_channels`. `NetworkError` says what they can be."""
        mtu, channels = options.get("network_mtu", 1500), options.get("network_channels", MAX_SUB_CHANNELS + 1)
        if not isinstance(mtu, int) or not DEFAULT_MTU <= mtu + ETHERNET_HEADER <= LARGEST_MTU:
            least, most = DEFAULT_MTU - ETHERNET_HEADER, LARGEST_MTU - ETHERNET_HEADER
            raise NetworkError(f"network_mtu: {mtu!r} is no number from {least} to {most}")
        if not isinstance(channels, int) or channels < 1:
            raise NetworkError(f"network_channels: {channels!r} is no number from 1 on")
        return cls(mtu=mtu, sub_channels=channels - 1)


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
    """Of the host's, that contradict themselves: dropped."""
    refused: int = 0
    """Our messages that the host did not take."""
    unexpected: int = 0
    """Answers to nothing, and messages that we know nothing of."""


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
        self.offloads = ndis.Offload()
        """What the adapter does with frames on their way, for `Offload`."""
        self.version = 0
        """The protocol version agreed on, a `NvspVersion`."""
        self._platform, self._bus, self._settings, self._nursery = platform, bus, settings, nursery
        self._counters = ReceiveCounters()
        self._statistics = NetworkStatistics()
        self._message_size = message_size(max(settings.versions))
        self._sender = FrameSender(platform, self._message_size)
        self._control = RndisControl(self._sender.send_control, self._indicated)
        self._link_changed = trio.Event()
        self._queues = [FrameQueue()]
        self._own_queue = self._queues[0]
        self._asked_for_frames = False
        self._receive_buffer: SharedBuffer | None = None
        self._send_buffer: SharedBuffer | None = None
        self._host_table: tuple[int, ...] = ()
        """Which channel the host wants flows on; that may come before the subchannels are open."""
        self._initialized = False
        """RNDIS is, so that there is something to stop."""
        self._unyielded = 0
        self._primary = self._add_channel(channel)

    # ---------------------------------------------------------------------------------------------------- for programs

    async def send(self, frame: bytes, offload: Offload | None = None) -> None:
        """One frame in a message of its own. Waits where the host is behind. `ValueError`, `NetworkGone`.

        While the link is down frames are dropped and counted.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        length = len(frame)
        self._check(length, offload is not None and offload.segment > 0)
        if self._may_send(1):
            start = header(length) if offload is None else header_with(length, offload.encode())
            message = start + frame
            if not self._sender.try_send(message, frame):
                await self._sender.send(message, frame)
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
        lengths = list(map(len, frames))
        if lengths:
            self._check(min(lengths))
            self._check(max(lengths))
        if self._may_send(len(frames)):
            await self._sender.send_frames(frames)
            self._statistics.frames_sent += len(frames)
            self._statistics.bytes_sent += sum(lengths)
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
        if not self._primary.ended:
            await self._link_changed.wait()
        if self._primary.ended:
            raise trio.EndOfChannel
        return self.link_up

    async def set_filter(self, wanted: PacketFilter) -> None:
        """What the host shall give us, such as `PacketFilter.PROMISCUOUS`. `NetworkError`."""
        await self._control.set(Oid.GEN_CURRENT_PACKET_FILTER, _NUMBER.pack(wanted))

    async def query(self, oid: Oid) -> bytes:
        """Ask the adapter something. `NetworkError` where it does not know."""
        return await self._control.query(oid)

    @property
    def channels(self) -> int:
        """How many the driver uses: one and the subchannels."""
        return len(self._sender.channels)

    def statistics(self) -> NetworkStatistics:
        """Counters, as of now."""
        return attrs.evolve(
            self._statistics,
            messages_sent=self._sender.messages,
            waits=self._sender.waits,
            dropped=self._statistics.dropped + sum(queue.dropped for queue in self._queues),
            bad_messages=self._counters.bad_messages,
            refused=self._counters.refused,
            unexpected=self._counters.unexpected + self._control.unexpected,
        )

    # --------------------------------------------------------------------------------------- coming to terms, and back

    async def connect(self) -> None:
        """Agree on a version, share buffers, learn what the adapter is, and open it.

        `NetworkError`, `VmbusError`, `MemoryError`, `WireError`.
        """
        await self._agree()
        if self.version > NvspVersion.V1:
            await self._tell(
                NvspType.SEND_NDIS_CONFIG,
                NdisConfig(self._settings.mtu + ETHERNET_HEADER, 0, Capability.IEEE8021Q).encode(),
            )
        ndis_version = _NDIS_OLD if self.version <= NvspVersion.V4 else _NDIS_NEW
        await self._tell(NvspType.SEND_NDIS_VERSION, ndis_version.encode())
        await self._share_receive_buffer()
        if self._settings.send_buffer:
            await self._share_send_buffer()
        limits = await self._control.initialize()
        self._initialized = True
        self._sender.most_packets = max(1, limits.max_packets)
        self._sender.most_bytes = limits.max_transfer
        self.mtu = min(self.mtu, await self._number(Oid.GEN_MAXIMUM_FRAME_SIZE))
        self.mac = (await self._control.query(Oid.ETHERNET_PERMANENT_ADDRESS))[:6]
        with contextlib.suppress(NetworkError):  # what not every host has
            can = await self._control.query(Oid.TCP_OFFLOAD_HARDWARE_CAPABILITIES, parameters.OFFLOAD_QUESTION)
            self.offloads = parameters.decode_offload(can)
            await self._control.set(Oid.TCP_OFFLOAD_PARAMETERS, parameters.everything_on(self.offloads))
        with contextlib.suppress(NetworkError):
            several = parameters.named_integer(SEVERAL_PACKETS_PARAMETER, 1)
            await self._control.set(Oid.GEN_RNDIS_CONFIG_PARAMETER, several)
        self.link_up = not await self._number(Oid.GEN_MEDIA_CONNECT_STATUS)
        self.link_speed = 100 * await self._number(Oid.GEN_LINK_SPEED)
        if self._settings.sub_channels and self.version >= NvspVersion.V5:
            await self._open_sub_channels()
        await self.set_filter(USUAL_FILTER)

    async def leave(self) -> None:
        """Stop the adapter, take the buffers back, and close the channels. Nothing is under way afterwards.

        One that was cancelled may be called again, and does the rest.
        """
        if self._initialized and not self._primary.ended:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._cut_off, nursery.cancel_scope)
                    await self.set_filter(PacketFilter(0))
                    await self._sender.settled()
                    await self._control.halt()
                    nursery.cancel_scope.cancel()
            except* (NetworkError, WireError, MemoryError):
                pass  # it is on its way out
        if not self._primary.ended:
            with contextlib.suppress(NetworkError):
                if self._receive_buffer is not None:
                    await self._tell(NvspType.REVOKE_RECEIVE_BUFFER, RevokeBuffer(RECEIVE_BUFFER_ID).encode())
                if self._send_buffer is not None:
                    await self._tell(NvspType.REVOKE_SEND_BUFFER, RevokeBuffer(SEND_BUFFER_ID).encode())
        for channel in reversed(self._sender.channels[:]):
            await self._bus.close(channel.channel)
            channel.forget()
        if self._send_buffer is not None:
            await self._send_buffer.destroy()
            self._send_buffer = None
        if self._receive_buffer is not None:
            await self._receive_buffer.destroy()
            self._receive_buffer = None
        self._sender.close()

    async def _agree(self) -> None:
        for version in self._settings.versions:
            answer = await self._ask(NvspType.INIT, NvspInit(version, version).encode())
            if NvspInitComplete.decode(answer, _NUMBER.size).status == NvspStatus.SUCCESS:
                self.version = version
                self._message_size = message_size(version)
                self._sender.set_nvsp_size(self._message_size)
                return
        spoken = ", ".join(map(version_words, self._settings.versions))
        raise NetworkError(f"the network adapter speaks none of the versions {spoken}")

    async def _share_receive_buffer(self) -> None:
        shared = self._receive_buffer = await SharedBuffer.create(
            self._platform, self._bus, self._settings.receive_buffer
        )
        # Before the host hears of it: from then on it may use it.
        self._primary.receive_buffer, self._primary.receive_buffer_id = shared.view, RECEIVE_BUFFER_ID
        answer = await self._ask(NvspType.SEND_RECEIVE_BUFFER, SendBuffer(shared.gpadl_id, RECEIVE_BUFFER_ID).encode())
        complete = ReceiveBufferComplete.decode(answer, _NUMBER.size)
        if complete.status != NvspStatus.SUCCESS:
            raise NetworkError(f"the network adapter refuses the receive buffer: status {complete.status}")
        section = ReceiveSection.decode(answer, _NUMBER.size + ReceiveBufferComplete.SIZE)
        if complete.section_count != 1 or section.section_offset:
            raise NetworkError(f"the network adapter wants {complete.section_count} sections, of which we know one")

    async def _share_send_buffer(self) -> None:
        shared = self._send_buffer = await SharedBuffer.create(self._platform, self._bus, self._settings.send_buffer)
        answer = await self._ask(NvspType.SEND_SEND_BUFFER, SendBuffer(shared.gpadl_id, SEND_BUFFER_ID).encode())
        complete = SendBufferComplete.decode(answer, _NUMBER.size)
        if complete.status != NvspStatus.SUCCESS or not 0 < complete.section_size <= len(shared.view):
            raise NetworkError(
                f"the network adapter refuses the send buffer: status {complete.status},"
                f" sections of {complete.section_size} bytes"
            )
        self._sender.sections = self._primary.sections = SendSections(shared.view, complete.section_size)

    async def _open_sub_channels(self) -> None:
        """As many as are wanted and there are; without them one channel does."""
        try:
            answer = await self._control.query(Oid.GEN_RECEIVE_SCALE_CAPABILITIES, parameters.SCALING_QUESTION)
        except NetworkError:
            return
        queues = ndis.RssCapabilities.decode(answer).receive_queues
        wanted = min(self._settings.sub_channels, self._bus.processors - 1, queues - 1)
        if wanted <= 0:
            return
        answer = await self._ask(NvspType.SUBCHANNEL, SubchannelRequest(_ALLOCATE, wanted).encode())
        complete = SubchannelComplete.decode(answer, _NUMBER.size)
        if complete.status != NvspStatus.SUCCESS or not complete.count:
            return
        for _ in range(min(complete.count, wanted)):
            added = self._add_channel(await self._bus.open_sub_channel(ring_bytes=self._settings.ring_bytes))
            added.receive_buffer, added.receive_buffer_id = self._primary.receive_buffer, RECEIVE_BUFFER_ID
            added.sections = self._primary.sections
        self._sender.table = self._host_table or tuple(range(self.channels))
        await self._control.set(Oid.GEN_RECEIVE_SCALE_PARAMETERS, parameters.spread_over(self.channels))

    # ---------------------------------------------------------------------------------------------------------- inside

    async def _ask(self, kind: NvspType, body: bytes) -> bytes:
        return await self._primary.ask((_NUMBER.pack(kind) + body).ljust(self._message_size, b"\0"))

    async def _tell(self, kind: NvspType, body: bytes) -> None:
        await self._primary.tell((_NUMBER.pack(kind) + body).ljust(self._message_size, b"\0"))

    async def _number(self, oid: Oid) -> int:
        answer = await self._control.query(oid)
        if len(answer) < _NUMBER.size:
            raise NetworkError(f"the network adapter answers {oid.name} with {len(answer)} bytes")
        return int(_NUMBER.unpack_from(answer)[0])

    def _add_channel(self, channel: Channel) -> NetworkChannel:
        made = NetworkChannel(
            channel,
            counters=self._counters,
            on_frames=self._arrived,
            on_control=self._control.heard,
            on_message=self._heard,
            on_room=self._sender.answered,
        )
        self._sender.channels.append(made)
        self._nursery.start_soon(self._receive, made, name="network receives")
        return made

    async def _receive(self, channel: NetworkChannel) -> None:
        """Task: one channel's packets; with the primary's all ends."""
        try:
            await channel.receive(self._nursery)
        finally:
            if channel is self._primary:
                self._control.end(channel.ended)
                for queue in {*self._queues, self._own_queue}:
                    queue.end()
                self._link_changed.set()
            else:
                self._sender.table = ()

    def _arrived(self, frames: list[bytes]) -> None:
        self._statistics.frames_received += len(frames)
        self._statistics.bytes_received += sum(map(len, frames))
        for queue in self._queues:
            queue.put(frames)
        if any(queue.closed for queue in self._queues):
            self._statistics.dropped += sum(queue.dropped for queue in self._queues if queue.closed)
            self._queues = [queue for queue in self._queues if not queue.closed]

    def _want_frames(self) -> None:
        self._asked_for_frames = True
        if self._own_queue not in self._queues:
            self._queues.append(self._own_queue)

    def _heard(self, kind: int, untrusted: bytes) -> None:
        """An NVSP message of the host's own accord. Raises `WireError`."""
        if kind == NvspType.SEND_INDIRECTION_TABLE:
            table = IndirectionTable.decode(untrusted, _NUMBER.size)
            entries = untrusted[table.table_offset : table.table_offset + 4 * table.count]
            if table.count and len(entries) == 4 * table.count:
                self._host_table = struct.unpack(f"<{table.count}I", entries)
                if self._sender.table:
                    self._sender.table = self._host_table
        elif kind != NvspType.SEND_VF_ASSOCIATION:
            self._counters.unexpected += 1

    def _indicated(self, status: int) -> None:
        match status:
            case RndisStatus.MEDIA_CONNECT:
                self._link(True)
            case RndisStatus.MEDIA_DISCONNECT:
                self._link(False)
            case RndisStatus.NETWORK_CHANGE:  # another network at the same link
                self._link(self.link_up)
            case _:
                pass

    def _link(self, up: bool) -> None:
        self.link_up = up
        self._statistics.link_changes += 1
        self._link_changed.set()
        self._link_changed = trio.Event()

    def _check(self, length: int, segmented: bool = False) -> None:
        most = LONGEST_SEGMENTED if segmented else self.mtu + ETHERNET_HEADER + TAG_BYTES
        if not ETHERNET_HEADER <= length <= most:
            raise ValueError(f"a frame of {length} bytes: {ETHERNET_HEADER} to {most} go")

    def _may_send(self, count: int) -> bool:
        if self._primary.ended:
            raise NetworkGone(self._primary.ended)
        if not self.link_up:
            self._statistics.not_sent += count
        return self.link_up

    async def _cut_off(self, scope: trio.CancelScope) -> None:
        await self._platform.sleep(LEAVE_SECONDS)
        scope.cancel()


@asynccontextmanager
async def open_network(
    channel: Channel,
    platform: GuestPlatform,
    bus: DriverBus,
    settings: NetworkSettings | None = None,
) -> AsyncIterator[Network]:
    """Drive the adapter at the other end of an open channel; at the end the channel is closed.

    Without `settings` the guest's `args` say what to ask for.

    Raises `NetworkError` where the adapter cannot be driven, `VmbusError` and `MemoryError` where memory cannot be
    shared with it, `WireError` where it talks nonsense.
    """
    try:
        async with trio.open_nursery() as nursery:
            network = Network(channel, platform, bus, settings or NetworkSettings.of(bus.options), nursery)
            try:
                await network.connect()
                yield network
            finally:
                left = False
                try:
                    await network.leave()
                    left = True
                finally:
                    if not left:  # the driver was cancelled; where that is because the guest is off, so is this
                        bus.start_soon(network.leave)
                nursery.cancel_scope.cancel()
    except* (NetworkError, VmbusError, MemoryError, WireError) as group:
        raise group.exceptions[0] from None
