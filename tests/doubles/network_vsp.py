"""A network adapter and its guest in plain memory: the real VSP, real channels, no hypervisor and no switch."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from hypervisor.inspect import Branch
from hypervisor.memory import GpaFault
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE
from hypervisor.trace import Trace, TraceEvent
from hypervisor.wire import Guid, WireError
from tests.doubles.storage import PATIENCE_SECONDS, PlainPlatform
from vmbus.channel import Channel
from vmbus.gpadl import GpadlRange, page_range
from vmbus.ring import COMPLETION_REQUESTED, Packet, PacketType
from vmbus.server.opened import ChannelGpadls, HoldCounts, OpenedChannel
from vsp_vsc.network import protocol as nvsp
from vsp_vsc.network import rndis
from vsp_vsc.network.port import Adapter
from vsp_vsc.network.protocol import NO_SECTION, NvspType, NvspVersion, SendRndisPacket
from vsp_vsc.network.vsp import NetworkVsp

INSTANCE = Guid("11111111-2222-3333-4444-555555555555")
MAC = bytes.fromhex("00155d000001")
OTHER_MAC = bytes.fromhex("00155d000002")
RING_BYTES = 128 * 1024
RECEIVE_GPADL, SEND_GPADL = 0xE1E11, 0xE1E12
RECEIVE_PAGES, SEND_PAGES = 64, 48
RECEIVE_ID = 0xCAFE
CHANNEL_ID = 5


class Rings:
    """A channel's memory, and who is at its ends now."""

    def __init__(self, size: int) -> None:
        self.to_host, self.to_guest = memoryview(bytearray(size)), memoryview(bytearray(size))
        self.host = self.new_host()
        self.guest = Channel(
            outgoing=self.to_host, incoming=self.to_guest, signal=lambda: self.host.wake(), shared=False
        )

    def new_host(self) -> Channel:
        """Another host's end; it goes on where the words in the rings say."""
        self.host = Channel(
            outgoing=self.to_guest, incoming=self.to_host, signal=lambda: self.guest.wake(), shared=False
        )
        return self.host


class FakePort:
    """A switch's port: keeps what is sent, and hands on what a test gives it."""

    def __init__(self, mac: bytes = MAC, mtu: int = 1500) -> None:
        self.name = "web/0"
        self.mac = mac
        self.mtu = mtu
        self.link_up = True
        self.adapter: Adapter | None = None
        self.sent: list[bytes] = []
        self.batches: list[int] = []

    def attach(self, adapter: Adapter) -> None:
        if self.adapter is not None:
            raise RuntimeError("there is one")
        self.adapter = adapter

    def detach(self) -> None:
        self.adapter = None

    def transmit(self, frames: Sequence[bytes]) -> None:
        self.sent += frames
        self.batches.append(len(frames))

    def deliver(self, *frames: bytes) -> int:
        """As a switch does."""
        return 0 if self.adapter is None else self.adapter.deliver(frames)

    def change_link(self, up: bool) -> None:
        self.link_up = up
        if self.adapter is not None:
            self.adapter.link_changed(up)

    def inspect(self) -> Branch:
        return Branch({"name": self.name})


def frame(size: int = 64, *, to: bytes = MAC, source: bytes = OTHER_MAC, kind: int = 0x88B5, fill: int = 0) -> bytes:
    """An Ethernet frame of `size` bytes."""
    head = to + source + struct.pack(">H", kind)
    return head + bytes((fill + index) & 0xFF for index in range(size - len(head)))


def data_message(
    data: bytes, information: bytes = b"", *, data_offset: int | None = None, length: int | None = None, **changes: int
) -> bytes:
    """A frame as a data message; what is given differs from what is right."""
    values = {
        "data_offset": 36 + len(information) if data_offset is None else data_offset,
        "data_length": len(data),
        "info_offset": 36 if information else 0,
        "info_length": len(information),
        **changes,
    }
    body = rndis.RndisPacket(**values).encode() + information + data
    return rndis.RndisHeader(rndis.RndisType.PACKET, 8 + len(body) if length is None else length).encode() + body


def info(kind: int, value: int) -> bytes:
    """A piece of per-packet information."""
    return struct.pack("<IIII", 16, kind, 12, value)


def control_message(kind: int, body: bytes) -> bytes:
    """An RNDIS message."""
    return rndis.RndisHeader(kind, 8 + len(body)).encode() + body


def query_message(number: int, oid: int, value: bytes = b"") -> bytes:
    return control_message(rndis.RndisType.QUERY, rndis.RndisQuery(number, oid, len(value), 20, 0).encode() + value)


def set_message(number: int, oid: int, value: bytes, **changes: int) -> bytes:
    request = {"request_id": number, "oid": oid, "info_length": len(value), "info_offset": 20, **changes}
    return control_message(rndis.RndisType.SET, rndis.RndisQuery(**request).encode() + value)


def initialize_message(number: int = 1) -> bytes:
    return control_message(rndis.RndisType.INITIALIZE, rndis.RndisInitialize(number, 1, 0, 0x4000).encode())


@attrs.define(eq=False)
class NetworkPair:
    """A VSP that serves one end of a channel; the other end is the test's, which speaks bytes."""

    vsp: NetworkVsp
    port: FakePort
    platform: PlainPlatform
    host_end: Channel
    guest_end: Channel
    scope: trio.CancelScope
    events: list[TraceEvent]
    trace: Trace
    counts: HoldCounts
    version: int = NvspVersion.V6_1
    gpadls: dict[int, tuple[GpadlRange, ...]] = attrs.field(factory=dict)
    stopped: list[WireError | GpaFault] = attrs.field(factory=list)
    """The mistake that made the VSP stop, if one did."""
    ended: trio.Event = attrs.field(factory=trio.Event)
    sub_channels: list[int] = attrs.field(factory=list)
    """How many subchannels the VSP has asked the bus for, each time."""
    no_room: bool = False
    nursery: trio.Nursery | None = None
    number: int = 0
    receive_at: int = 0
    send_at: int = 0
    pieces: bytes = b""
    """Pieces of the receive buffer as the host said."""
    released: list[int] = attrs.field(factory=list)
    host_ends: dict[int, Channel] = attrs.field(factory=dict)
    """Of subchannels."""
    rings: dict[int, Rings] = attrs.field(factory=dict)

    # --- packets

    async def say(self, body: bytes, *, wanted: bool = True, number: int | None = None) -> int:
        """An NVSP message in the ring; returns its transaction."""
        self.number += 1
        number = self.number if number is None else number
        await self.guest_end.send(Packet(PacketType.INBAND, int(wanted), number, 0, body))
        return number

    async def hear(self) -> Packet:
        """The next packet of the host's, whatever it is."""
        with trio.fail_after(5):
            return await self.guest_end.receive()

    async def ask(self, kind: int, body: bytes, *, pad: bool = True) -> bytes:
        """An NVSP message, and its completion's payload."""
        message = struct.pack("<I", kind) + body
        number = await self.say(message.ljust(nvsp.message_size(self.version), b"\0") if pad else message)
        packet = await self.hear()
        assert (packet.type, packet.transaction_id) == (PacketType.COMPLETION, number), packet
        return packet.payload

    def nothing(self) -> bool:
        """Whether the host has said nothing more."""
        return not self.guest_end.try_receive_batch()

    # --- the usual beginning

    def lend(self, gpadl_id: int, pages: int, *, backwards: bool = False) -> int:
        """A GPADL of so many pages; returns the address of the first."""
        gpn = self.platform.allocate_pages(pages)
        gpns = list(range(gpn, gpn + pages))
        self.gpadls[gpadl_id] = (page_range(gpns[::-1] if backwards else gpns),)
        return gpn << PAGE_SHIFT

    async def negotiate(self, version: int = NvspVersion.V6_1, *, mtu: int = 1514, capabilities: int = 0) -> None:
        """Up to the NDIS versions."""
        self.version = version
        answer = await self.ask(NvspType.INIT, nvsp.NvspInit(version, version).encode())
        assert nvsp.NvspInitComplete.decode(answer, 4).status == nvsp.NvspStatus.SUCCESS
        if version >= NvspVersion.V2:
            body = nvsp.NdisConfig(mtu, 0, capabilities).encode()
            assert await self.ask(NvspType.SEND_NDIS_CONFIG, body) == b""
        assert await self.ask(NvspType.SEND_NDIS_VERSION, nvsp.NdisVersion(6, 30).encode()) == b""

    async def lend_buffers(self, receive_pages: int = RECEIVE_PAGES, send_pages: int = SEND_PAGES) -> None:
        """The receive buffer, and a send buffer unless it has no pages."""
        self.receive_at = self.lend(RECEIVE_GPADL, receive_pages)
        body = nvsp.SendBuffer(RECEIVE_GPADL, RECEIVE_ID).encode()
        self.pieces = await self.ask(NvspType.SEND_RECEIVE_BUFFER, body)
        assert self.pieces[:12] == struct.pack("<III", 102, 1, 1)
        if send_pages:
            self.send_at = self.lend(SEND_GPADL, send_pages)
            answer = await self.ask(NvspType.SEND_SEND_BUFFER, nvsp.SendBuffer(SEND_GPADL, 0).encode())
            assert answer[:12] == struct.pack("<III", 105, 1, 6144)

    async def start(
        self, version: int = NvspVersion.V6_1, *, capabilities: int = 0, filter_bits: int = 0xD, mtu: int = 1514
    ) -> None:
        """A driver's whole beginning."""
        await self.negotiate(version, capabilities=capabilities, mtu=mtu)
        await self.lend_buffers()
        await self.control(initialize_message())
        if filter_bits:
            oid = rndis.Oid.GEN_CURRENT_PACKET_FILTER
            answer = await self.control(set_message(2, oid, struct.pack("<I", filter_bits)))
            assert rndis.RndisComplete.decode(answer, 8).status == 0

    # --- RNDIS

    async def send_message(self, message: bytes, *, section: int = 0, channel_type: int = 0) -> int:
        """An RNDIS message in a section of the send buffer; returns the transaction."""
        at = self.send_at + section * nvsp.SECTION_SIZE
        self.platform.memory[at : at + len(message)] = message
        body = struct.pack("<I", 107) + SendRndisPacket(channel_type, section, len(message)).encode()
        return await self.say(body.ljust(nvsp.message_size(self.version), b"\0"))

    async def send_pages(
        self, ranges: Sequence[tuple[int, int, Sequence[int]]], *, section: int = NO_SECTION, size: int = 0
    ) -> int:
        """An RNDIS message in pages: byte count, offset and page numbers of each range."""
        extended = struct.pack("<II", 0, len(ranges))
        for count, offset, gpns in ranges:
            extended += struct.pack(f"<II{len(gpns)}Q", count, offset, *gpns)
        body = struct.pack("<I", 107) + SendRndisPacket(0, section, size).encode()
        payload = body.ljust(nvsp.message_size(self.version), b"\0")
        self.number += 1
        await self.guest_end.send(
            Packet(PacketType.GPA_DIRECT, COMPLETION_REQUESTED, self.number, len(extended), extended + payload)
        )
        return self.number

    async def completion(self, number: int) -> int:
        """The status that the message with this transaction ended with."""
        packet = await self.hear()
        assert (packet.type, packet.transaction_id) == (PacketType.COMPLETION, number), packet
        kind, status = struct.unpack_from("<II", packet.payload)
        assert kind == NvspType.SEND_RNDIS_PACKET_COMPLETE
        return int(status)

    async def transmit(self, message: bytes) -> int:
        """Send a message by the send buffer; the status of its completion."""
        return await self.completion(await self.send_message(message))

    async def received(self, *, acknowledge: bool = True) -> list[bytes]:
        """What the next transfer-page packet tells of: the contents of its pieces."""
        packet = await self.hear()
        assert packet.type == PacketType.TRANSFER_PAGES, packet
        assert packet.flags == COMPLETION_REQUESTED
        pieces = self.contents(packet)
        if acknowledge:
            await self.acknowledge(packet.transaction_id)
        return pieces

    def contents(self, packet: Packet) -> list[bytes]:
        """The pieces of a transfer-page packet."""
        set_id, _, _, count = struct.unpack_from("<HBBI", packet.body)
        assert set_id == RECEIVE_ID
        assert struct.unpack_from("<IIII", packet.payload)[::2] == (107, NO_SECTION)
        ranges = [struct.unpack_from("<II", packet.body, 8 + 8 * index) for index in range(count)]
        memory = self.platform.memory
        return [bytes(memory[self.receive_at + at : self.receive_at + at + size]) for size, at in ranges]

    async def acknowledge(self, number: int, *, status: int = 1, kind: int = 108) -> None:
        """The guest has done with what it was sent by that transaction."""
        body = struct.pack("<II", kind, status)
        await self.guest_end.send(Packet(PacketType.COMPLETION, 0, number, 0, body))

    async def control(self, message: bytes, *, status: int = 1) -> bytes:
        """A control message, and what it is answered."""
        assert await self.transmit(message) == status
        (answer,) = await self.received()
        return answer

    async def query(self, oid: int, value: bytes = b"") -> tuple[int, bytes]:
        """An object's status and value."""
        answer = await self.control(query_message(77, oid, value))
        complete = rndis.RndisQueryComplete.decode(answer, 8)
        assert complete.request_id == 77
        at = 8 + complete.info_offset
        assert at + complete.info_length == len(answer)
        return complete.status, answer[at:]

    async def set(self, oid: int, value: bytes, **changes: int) -> int:
        """The status of a setting."""
        complete = rndis.RndisComplete.decode(await self.control(set_message(78, oid, value, **changes)), 8)
        assert complete.request_id == 78
        return complete.status

    # --- the bus

    def offer_sub_channels(self, count: int) -> None:
        if self.no_room:
            raise ValueError("2047 channels are the limit")
        self.sub_channels.append(count)

    def opened(self, index: int = 0) -> OpenedChannel:
        """What the bus would hand to a device."""
        channel_id = CHANNEL_ID + index
        gpadls = ChannelGpadls(channel_id, lambda _, gpadl: self.gpadls.get(gpadl) if index == 0 else None, self.counts)
        return OpenedChannel(
            channel_id=channel_id,
            target_vp=0,
            user_data=bytes(120),
            version=0x50003,
            memory=self.platform.guest,
            gpadls=gpadls,
            subchannel_index=index,
            more=self.offer_sub_channels if index == 0 else None,
        )

    def open_sub_channel(self, index: int, ring_bytes: int = RING_BYTES) -> Channel:
        """As a guest does after its offer; returns the guest's end."""
        rings = self.rings[index] = Rings(ring_bytes)
        self.host_ends[index] = rings.host
        assert self.nursery is not None
        self.nursery.start_soon(self._serve, rings.host, index)
        return rings.guest

    async def _serve(self, host_end: Channel, index: int, restored: object = None) -> None:
        opened = self.opened(index)
        opened.restored = restored
        try:
            await self.vsp.serve(host_end, opened)
        except (WireError, GpaFault) as fault:
            self.stopped.append(fault)
        finally:
            opened.gpadls.release_all()

    async def save_and_restore(self, *, max_sub_channels: int = 0) -> list[bytes]:
        """Another host with another VSP takes the guest over; the records that it had of it."""
        records = []
        for index in sorted(self.rings):
            record = self.vsp.save(CHANNEL_ID + index)
            assert record is not None
            records.append(record)
        for rings in self.rings.values():
            rings.host.close(by_peer=True)
        await wait_all_tasks_blocked()
        self.vsp = NetworkVsp(self.port, INSTANCE, self.trace, 7, max_sub_channels=max_sub_channels)
        assert self.nursery is not None
        for index, record in zip(sorted(self.rings), records, strict=True):
            host_end = self.rings[index].new_host()
            self.nursery.start_soon(self._serve, host_end, index, self.vsp.load(record))
            await wait_all_tasks_blocked()
        return records


@asynccontextmanager
async def serving(
    *,
    ring_bytes: int = RING_BYTES,
    listen: bool = False,
    max_sub_channels: int = 0,
    port: FakePort | None = None,
    clock: Callable[[], int] = lambda: 0,
) -> AsyncIterator[NetworkPair]:
    """Run a VSP as the bus would, until the body ends."""
    events: list[TraceEvent] = []
    trace = Trace(clock)
    if listen:
        trace.add_sink(events.append)
    port = port or FakePort()
    vsp = NetworkVsp(port, INSTANCE, trace, 7, max_sub_channels=max_sub_channels)
    rings = {0: Rings(ring_bytes)}
    host_end, guest_end = rings[0].host, rings[0].guest
    released: list[int] = []
    counts = HoldCounts(lambda _, gpadl: released.append(gpadl))
    pair = NetworkPair(
        vsp,
        port,
        PlainPlatform(),
        host_end,
        guest_end,
        trio.CancelScope(),
        events,
        trace,
        counts,
        released=released,
        rings=rings,
    )

    async def serve() -> None:
        try:
            with pair.scope:
                await vsp.serve(host_end, pair.opened())
        except (WireError, GpaFault) as fault:
            pair.stopped.append(fault)
        finally:
            pair.ended.set()

    # Whoever waits for what never comes fails, and does not hang.
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            pair.nursery = nursery
            nursery.start_soon(serve)
            yield pair
            nursery.cancel_scope.cancel()


__all__ = ["MAC", "OTHER_MAC", "PAGE_SIZE", "FakePort", "NetworkPair", "frame", "serving"]
