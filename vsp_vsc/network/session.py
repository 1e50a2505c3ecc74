"""One channel of a network adapter: ring packets in, frames to the switch, frames and answers out. Pure. Root side.

`take` goes through a batch: frames leave for the switch together, completions gather in `outbox`. `put` is the way
back: what has no piece of the receive buffer, or comes while the ring has no room, waits in a queue with an end.

Trust: a packet is a private copy. An RNDIS message is copied out of the guest's pages once and looked at after that;
`protocol.py` says which mistakes are soft and which raise here.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import islice

from hypervisor.inspect import Branch
from hypervisor.memory import GpaFault, GuestMemory
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE, Access
from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Trace
from hypervisor.wire import BadValue, ShortMessage, WireError
from vmbus.ring import COMPLETION_REQUESTED, Packet, PacketType
from vsp_vsc.network import control
from vsp_vsc.network.adapter import AdapterState, RndisState
from vsp_vsc.network.from_guest import FrameReader
from vsp_vsc.network.negotiation import Negotiation, State
from vsp_vsc.network.port import FRAME_OVERHEAD
from vsp_vsc.network.protocol import (
    MAX_CONTROL_BYTES,
    MAX_MESSAGE,
    NO_SECTION,
    SECTION_SIZE,
    SEND_TABLE_ENTRIES,
    IndirectionTable,
    NvspStatus,
    NvspType,
    NvspVersion,
    OidQueryExComplete,
    SubchannelComplete,
    SubchannelOperation,
    SubchannelRequest,
    message_size,
)
from vsp_vsc.network.rndis import PACKET_HEADER_SIZE, RndisStatus, RndisType
from vsp_vsc.network.saved import RestoredSession, encode_session
from vsp_vsc.network.to_guest import FrameWriter

QUEUE_FRAMES = 2048
"""Frames of one channel that wait for room at their guest; past it they are dropped."""
MAX_UNSENT = 256
"""Packets in the outbox with which nothing is added to it that can wait."""
TURN_COST = 1 << 20
"""How much of a batch is gone through before others get their turn: bytes, and `_FRAME_COST` a frame."""
_FRAME_COST = 512
_COMPLETION, _INBAND, _GPA_DIRECT = int(PacketType.COMPLETION), int(PacketType.INBAND), int(PacketType.GPA_DIRECT)
_RNDIS = int(NvspType.SEND_RNDIS_PACKET)
_DONE = int(NvspType.SEND_RNDIS_PACKET_COMPLETE)
_PACKET = struct.pack("<I", RndisType.PACKET)
_NO_VIEW = memoryview(b"")
_send = struct.Struct("<IIII").unpack_from
_SEND_SIZE = 16
_u32 = struct.Struct("<I").unpack_from
_range_header = struct.Struct("<II").unpack_from
_RANGES_AT = 8
_NAMES = {int(kind): kind.name for kind in NvspType}


@lru_cache
def _completion(version: int, status: int) -> bytes:
    return struct.pack("<II", _DONE, status).ljust(message_size(version), b"\0")


class NetworkSession:
    """State and work of one open channel. Raises `WireError` from `take` where the channel must stop."""

    def __init__(
        self,
        adapter: AdapterState,
        memory: GuestMemory,
        *,
        trace: Trace,
        partition_id: int,
        channel_id: int,
        negotiation: Negotiation | None,
        offer_sub_channels: Callable[[int], object] | None = None,
        on_ready: Callable[[], object] | None = None,
    ) -> None:
        """A subchannel has no negotiation of its own; the primary's is over. `on_ready` hears of the end of it."""
        self.outbox: list[Packet] = []
        self.blocked = False
        """The ring has no room; what is added to the outbox waits behind what is there."""
        self.negotiation = negotiation
        self._adapter = adapter
        self._memory = memory
        self._trace = trace
        self._partition_id = partition_id
        self._channel_id = channel_id
        self._offer_sub_channels = offer_sub_channels
        self._on_ready = on_ready
        self._ready = negotiation is None
        self._reader = FrameReader(adapter.port.mtu + FRAME_OVERHEAD, adapter.counters)
        self._writer = FrameWriter(adapter, self.outbox)
        self._queue: deque[bytes] = deque()
        self._control: deque[bytes] = deque()
        self._control_bytes = 0
        self._link_to_tell: bool | None = None
        self._table_to_send = 0

    @property
    def is_primary(self) -> bool:
        """Subchannels carry data only."""
        return self.negotiation is not None

    @property
    def unanswered(self) -> int:
        """Answers that are not in the ring."""
        return len(self.outbox)

    @property
    def waits(self) -> bool:
        """Whether there is more to say once the outbox is empty."""
        return bool(self._queue or self._control)

    # --- guest to switch

    def take(self, packets: Sequence[Packet]) -> Sequence[Packet]:
        """Work through a batch; returns what is left of it once `TURN_COST` is spent."""
        frames: list[bytes] = []
        cost = messages = 0
        adapter, append, known = self._adapter, self.outbox.append, self._reader.known
        flat, limit, good = self._lent
        try:
            for position, packet in enumerate(packets, 1):
                kind = packet.type
                if kind == _INBAND:
                    # The usual case, without a call: a frame of a kind that is known, in the send buffer.
                    body = packet.body
                    if len(body) >= _SEND_SIZE and not packet.data_offset:
                        message, _, section, size = _send(body)
                        start = section * SECTION_SIZE
                        if message == _RNDIS and start + size <= limit and size <= SECTION_SIZE:
                            data = bytes(flat[start : start + size])
                            found = known.get(data[:PACKET_HEADER_SIZE])
                            if found is not None and found[2] == size:
                                frames.append(data[found[0] : found[1]])
                                cost += size + _FRAME_COST
                                messages += 1
                            else:
                                cost += self._rndis(packet, data, 0, 0, frames)
                                if cost >= TURN_COST:
                                    return packets[position:]
                                continue
                            if packet.flags & COMPLETION_REQUESTED:
                                append(Packet(_COMPLETION, 0, packet.transaction_id, 0, good))
                            continue
                elif kind == _COMPLETION:
                    self._completed(packet)
                    continue
                elif kind != _GPA_DIRECT:
                    raise BadValue(f"a packet of type {kind} from a network driver")
                cost += self._other(packet, frames)
                flat, limit, good = self._lent
                if cost >= TURN_COST:
                    return packets[position:]
        finally:
            adapter.counters.sent_messages += messages
            if frames:
                self._transmit(frames)
            self.proceed()
        return ()

    @property
    def _lent(self) -> tuple[memoryview, int, bytes]:
        """The send buffer where it is contiguous, else none, its size, and a good completion."""
        send = self._adapter.send
        good = _completion(self._adapter.version, NvspStatus.SUCCESS)
        if not self._ready or send is None or send.flat is None:
            return _NO_VIEW, -1, good
        return send.flat, send.size, good

    def _transmit(self, frames: list[bytes]) -> None:
        adapter = self._adapter
        counters = adapter.counters
        counters.sent_frames += len(frames)
        size = sum(map(len, frames))
        counters.sent_bytes += size
        if self._trace.on:
            self._emit_frames(frames, size, TO_ROOT)
        adapter.port.transmit(frames)

    def _rndis(self, packet: Packet, data: bytes | None, section: int, size: int, frames: list[bytes]) -> int:
        """An NVSP message that carries RNDIS, `data` if it has been fetched. Returns what it cost."""
        before = len(frames)
        status = NvspStatus.SUCCESS
        borders: Sequence[int] = ()
        cost = 0
        try:
            if data is None:
                if packet.type == _GPA_DIRECT:
                    data, borders = self._gather(packet, section, size)
                else:
                    data = self._section(section, size)
            cost = len(data)
            if data[:4] == _PACKET:
                self._reader.read(data, frames, borders)
            else:
                self._control_message(data)
        except (WireError, GpaFault) as fault:
            status = NvspStatus.FAIL
            self._refuse(str(fault), packet.transaction_id)
        self._adapter.counters.sent_messages += 1
        if packet.flags & COMPLETION_REQUESTED:
            body = _completion(self._adapter.version, status)
            self.outbox.append(Packet(_COMPLETION, 0, packet.transaction_id, 0, body))
        return cost + _FRAME_COST * (len(frames) - before + 1)

    def _section(self, section: int, size: int) -> bytes:
        """A message, or the beginning of one, in the send buffer. Raises `BadValue`."""
        send = self._adapter.send
        start = section * SECTION_SIZE
        if section == NO_SECTION or send is None or size > SECTION_SIZE or start + size > send.size:
            raise BadValue(f"an RNDIS message of {size} bytes in section {section:#x}")
        flat = send.flat
        return bytes(flat[start : start + size]) if flat is not None else send.read(start, size)

    def _gather(self, packet: Packet, section: int, size: int) -> tuple[bytes, list[int]]:
        """A message in the pages that the packet names, and where in it ranges end. Raises `WireError`, `GpaFault`."""
        parts: list[bytes | memoryview] = []
        total = 0
        ends: list[int] = []
        if section != NO_SECTION:
            parts.append(self._section(section, size))
            total = size
            ends.append(total)
        body, end = packet.body, packet.data_offset
        count = _range_header(body)[1]
        position = _RANGES_AT
        if not count:
            raise BadValue("a GPA-direct packet without ranges")
        for _ in range(count):
            if end - position < 8:
                raise ShortMessage("GPA ranges", position + 8, end)
            byte_count, byte_offset = _range_header(body, position)
            position += 8
            pages = (byte_offset + byte_count + PAGE_SIZE - 1) >> PAGE_SHIFT
            if byte_offset >= PAGE_SIZE or not byte_count or end - position < 8 * pages:
                raise BadValue(f"a GPA range of {byte_count} bytes at {byte_offset} in {(end - position) >> 3} pages")
            total += byte_count
            if total > MAX_MESSAGE:
                raise BadValue(f"an RNDIS message of more than {MAX_MESSAGE} bytes")
            if pages == 1:
                gpn = _gpn(body, position)[0]
                parts.append(self._memory.view((gpn << PAGE_SHIFT) + byte_offset, byte_count, Access.READ))
            else:
                gpns = struct.unpack_from(f"<{pages}Q", body, position)
                parts += self._memory.page_views(gpns, byte_offset, byte_count, Access.READ)
            position += 8 * pages
            ends.append(total)
        return b"".join(parts), ends[:-1]

    def _control_message(self, data: bytes) -> None:
        """Keep a control message for when there is room for its answer. Raises `WireError`."""
        if len(data) < 8:
            raise ShortMessage("RNDIS message", 8, len(data))
        if not self.is_primary:
            raise BadValue(f"RNDIS control message {_u32(data)[0]:#x} on a subchannel")
        if not control.check(data):
            if control.is_mistake(data):
                self._refuse(f"RNDIS message {_u32(data)[0]:#x}, which only a host sends", 0)
            else:
                self._adapter.reset()
                self._adapter.rndis = RndisState.HALTED
                self._say("HALT", TO_ROOT)
            return
        if self._control_bytes + len(data) > MAX_CONTROL_BYTES:
            raise BadValue(f"control messages of {self._control_bytes} bytes wait already")
        self._control.append(data)
        self._control_bytes += len(data)

    # --- everything else

    def _completed(self, packet: Packet) -> None:
        """The guest gives pieces of its receive buffer back."""
        counters = self._adapter.counters
        payload = packet.payload
        kind = _u32(payload)[0] if len(payload) >= 4 else 0
        if kind != _DONE or not self._writer.completed(packet.transaction_id):
            if not self._ready:
                raise BadValue("a completion before anything was sent")
            counters.bad_completions += 1
            words = f"NVSP message {kind} for transaction {packet.transaction_id:#x}, which is not open"
            self._trace.warn(
                Layer.DEVICE, "network_bad_completion", self._partition_id, words, channel=self._channel_id
            )
        elif len(payload) >= 8 and _u32(payload, 4)[0] != NvspStatus.SUCCESS:
            counters.unwell_completions += 1

    def _other(self, packet: Packet, frames: list[bytes]) -> int:
        """Anything but the usual. Returns what it cost."""
        untrusted = packet.payload
        if len(untrusted) < 4:
            raise ShortMessage("NVSP message", 4, len(untrusted))
        kind = _u32(untrusted)[0]
        negotiation = self.negotiation
        if kind == _RNDIS:
            if len(untrusted) < _SEND_SIZE:
                raise ShortMessage("NVSP SEND_RNDIS_PACKET", _SEND_SIZE, len(untrusted))
            if not self._ready:
                assert negotiation is not None, "a subchannel is ready from the start"
                negotiation.begin()
                self._became_ready()
            _, _, section, size = _send(untrusted)
            return self._rndis(packet, None, section, size, frames)
        body = None
        words = ""
        if self._ready and kind == NvspType.OID_QUERY_EX and self._adapter.version >= NvspVersion.V5:
            body = self._message(
                NvspType.OID_QUERY_EX_COMPLETE, OidQueryExComplete(RndisStatus.NOT_SUPPORTED, 0).encode()
            )
        elif negotiation is None:
            raise BadValue(f"NVSP message {kind} on a subchannel")
        elif self._ready and kind == NvspType.SUBCHANNEL and self._adapter.version >= NvspVersion.V5:
            body, words = self._sub_channels(SubchannelRequest.decode(untrusted, 4))
        elif self._ready and kind == NvspType.SWITCH_DATA_PATH and self._adapter.version >= NvspVersion.V4:
            body = b""  # there is the synthetic path only
        else:
            body, words = negotiation.control(kind, untrusted)
            if kind == NvspType.REVOKE_RECEIVE_BUFFER and self._adapter.receive is None:
                self._writer.forget()
            if not self._ready and negotiation.state is State.READY:
                self._became_ready()
        if words.startswith("refused"):
            self._refuse(f"{_NAMES[kind]} {words}", packet.transaction_id)
        elif self._trace.on:
            self._say(f"{_NAMES[kind]} {words}".rstrip(), TO_ROOT)
        if packet.flags & COMPLETION_REQUESTED and body is not None:
            self.outbox.append(Packet(_COMPLETION, 0, packet.transaction_id, 0, body))
        return 0

    def _became_ready(self) -> None:
        self._ready = True
        if self._on_ready is not None:
            self._on_ready()

    def _sub_channels(self, request: SubchannelRequest) -> tuple[bytes, str]:
        adapter, count = self._adapter, request.count
        words = f"{count}"
        granted = request.operation == SubchannelOperation.ALLOCATE and count < adapter.max_channels
        if granted and count and self._offer_sub_channels is not None:
            try:
                self._offer_sub_channels(count)
            except ValueError as error:
                granted, words = False, f"refused: {error}"
            else:
                adapter.channels = max(adapter.channels, count + 1)
        elif not granted:
            words = f"refused: {count} of {adapter.max_channels - 1} subchannels by operation {request.operation}"
        status = NvspStatus.SUCCESS if granted else NvspStatus.FAIL
        return self._message(NvspType.SUBCHANNEL, SubchannelComplete(status, count if granted else 0).encode()), words

    def _message(self, kind: NvspType, body: bytes) -> bytes:
        return (struct.pack("<I", kind) + body).ljust(message_size(self._adapter.version), b"\0")

    # --- switch to guest, and what the host has to say

    def put(self, frames: Sequence[bytes]) -> int:
        """Frames for the guest; how many it took, or dropped for reasons of its own."""
        if not self._ready:
            return 0
        wanted = self._writer.wanted(frames)
        if not wanted:
            return len(frames)
        if self._queue or self.blocked or len(self.outbox) >= MAX_UNSENT:
            sent = 0
        else:
            sent = self._writer.write(wanted)
        if self._trace.on:
            self._emit_frames(wanted, sum(map(len, wanted)), TO_CHILD)
        left = len(wanted) - sent
        if left:
            room = max(0, QUEUE_FRAMES - len(self._queue))
            self._queue.extend(islice(wanted, sent, sent + room))
            if left > room:
                self._adapter.counters.dropped += left - room
                return len(frames) - (left - room)
        return len(frames)

    def tell_link(self, up: bool) -> None:
        """The cable was plugged in or pulled out."""
        if self._adapter.rndis is RndisState.OPERATIONAL:  # before, the guest has still to ask
            self._link_to_tell = up
            self.proceed()

    def send_table(self, channels: int) -> None:
        """The guest has opened all channels that it was granted: tell it which to send by."""
        if self._adapter.version >= NvspVersion.V5:
            self._table_to_send = channels
            self.proceed()

    def proceed(self) -> None:
        """Do what waited for pieces or room."""
        adapter = self._adapter
        if self.blocked or not self._ready:
            return
        if self.negotiation is not None and (self._control or adapter.offloads_changed or self._says_unasked):
            self._tell()
        queue = self._queue
        while queue and adapter.receive is not None and adapter.receive.free and len(self.outbox) < MAX_UNSENT:
            batch = list(islice(queue, 64))
            sent = self._writer.write(batch)
            if not sent:
                break
            for _ in range(sent):
                queue.popleft()

    @property
    def _says_unasked(self) -> bool:
        return self._link_to_tell is not None or self._table_to_send > 0

    def _tell(self) -> None:
        adapter, writer = self._adapter, self._writer
        while self._control and adapter.receive is not None and adapter.receive.free_control:
            if len(self.outbox) >= MAX_UNSENT:
                return
            message = self._control.popleft()
            self._control_bytes -= len(message)
            reply, words = control.answer(adapter, message)
            adapter.counters.control += 1
            if self._trace.on:
                self._say(words, TO_ROOT)
            writer.control(reply)
        if self._control:
            return
        operational = adapter.rndis is RndisState.OPERATIONAL
        if adapter.offloads_changed and operational:
            about = adapter.offloads.encode()
            if not writer.control(control.indicate(RndisStatus.TASK_OFFLOAD_CURRENT_CONFIG, about)):
                return
            adapter.offloads_changed = False
        if self._link_to_tell is not None and operational:
            up = self._link_to_tell
            status = RndisStatus.MEDIA_CONNECT if up else RndisStatus.MEDIA_DISCONNECT
            if not writer.control(control.indicate(status)):
                return
            self._link_to_tell = None
            if self._trace.on:
                self._say(status.name, TO_CHILD)
        if self._table_to_send:
            channels, self._table_to_send = self._table_to_send, 0
            table = [index % channels for index in range(SEND_TABLE_ENTRIES)]
            head = IndirectionTable(SEND_TABLE_ENTRIES, 4 + IndirectionTable.SIZE).encode()
            body = struct.pack("<I", NvspType.SEND_INDIRECTION_TABLE) + head
            self.outbox.append(Packet(_INBAND, 0, 0, 0, body + struct.pack(f"<{SEND_TABLE_ENTRIES}I", *table)))
            if self._trace.on:
                self._say(f"SEND_INDIRECTION_TABLE {channels} channels", TO_CHILD)

    # --- saved and restored

    def save(self, elsewhere: list[int], unsent: list[Packet], *, link_told: bool) -> bytes:
        """The session as a record. `elsewhere`: pieces that the guest has by way of other channels."""
        negotiation = self.negotiation
        return encode_session(
            self._adapter,
            None if negotiation is None else (negotiation.state.value, negotiation.revoked),
            in_flight=self._writer.in_flight,
            elsewhere=elsewhere,
            outbox=unsent,
            control=list(self._control),
            link_told=link_told,
        )

    def restore(self, restored: RestoredSession) -> None:
        """Go on where a saved one was. Raises `WireError`, `GpaFault`."""
        saved = restored.saved.adapter
        receive = self._adapter.receive
        if (saved is None) != (self.negotiation is None):
            raise BadValue("a saved network session of another kind of channel")
        if saved is not None:
            assert self.negotiation is not None
            restored.apply(self._adapter)
            state = State(saved.state)
            self.negotiation.restore(state, revoked=saved.revoked, receive=saved.receive, send=saved.send)
            self._ready = state is State.READY
            self._control.extend(saved.control)
            self._control_bytes = sum(map(len, saved.control))
            receive = self._adapter.receive
            if receive is not None:
                receive.take_away(saved.elsewhere)
        elif receive is not None:  # the primary has kept them for us
            for _, pieces in restored.saved.in_flight:
                receive.give_back(pieces)
        self._writer.restore(restored.saved.in_flight)
        self.outbox += restored.outbox

    @property
    def pieces(self) -> list[int]:
        """Those that the guest has by way of this channel."""
        return [piece for pieces in self._writer.in_flight.values() for piece in pieces]

    def end(self) -> None:
        """The channel has closed."""
        self._writer.forget()
        self._queue.clear()
        self._control.clear()

    def inspect(self) -> Branch:
        """What it has under way."""
        negotiation = self.negotiation
        return Branch(
            {
                "state": "data" if negotiation is None else negotiation.state.value,
                "primary": self.is_primary,
                "at_guest": len(self._writer.in_flight),
                "queued_frames": len(self._queue),
                "queued_control": len(self._control),
                "unsent": len(self.outbox),
                "blocked": self.blocked,
            }
        )

    # --- trace

    def _refuse(self, reason: str, transaction_id: int) -> None:
        self._adapter.counters.refused += 1
        self._trace.warn(
            Layer.DEVICE,
            "network_refused",
            self._partition_id,
            reason,
            channel=self._channel_id,
            transaction=transaction_id,
        )

    def _emit_frames(self, frames: Sequence[bytes], size: int, direction: str) -> None:
        self._trace.emit(
            Layer.DEVICE,
            "network_frames",
            self._partition_id,
            direction=direction,
            channel=self._channel_id,
            size=size,
            words=f"{len(frames)} frame{'s' if len(frames) > 1 else ''}",
        )

    def _say(self, words: str, direction: str) -> None:
        if self._trace.on:
            self._trace.emit(
                Layer.DEVICE,
                "network_control",
                self._partition_id,
                direction=direction,
                channel=self._channel_id,
                words=words,
            )


_gpn = struct.Struct("<Q").unpack_from
