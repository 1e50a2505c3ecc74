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
from hypervisor.trace import TO_CHILD, TO_ROOT, Trace
from hypervisor.wire import BadValue, ShortMessage, WireError
from vmbus.ring import COMPLETION_REQUESTED, Packet, PacketType
from vsp_vsc.network.adapter import AdapterState
from vsp_vsc.network.from_guest import FrameReader
from vsp_vsc.network.messages import in_pages, in_section
from vsp_vsc.network.negotiation import Negotiation, State
from vsp_vsc.network.port import FRAME_OVERHEAD
from vsp_vsc.network.protocol import (
    SECTION_SIZE,
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
from vsp_vsc.network.speech import HostSpeech
from vsp_vsc.network.to_guest import FrameWriter
from vsp_vsc.network.told import Told

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
    ) -> None:
        """A subchannel has no negotiation of its own; the primary's is over."""
        self.outbox: list[Packet] = []
        self.blocked = False
        """The ring has no room; what is added to the outbox waits behind what is there."""
        self.negotiation = negotiation
        self._adapter = adapter
        self._memory = memory
        self._trace = trace
        self._told = Told(trace, partition_id, channel_id)
        self._offer_sub_channels = offer_sub_channels
        self._ready = negotiation is None
        self._reader = FrameReader(adapter.port.mtu + FRAME_OVERHEAD, adapter.counters)
        self._writer = FrameWriter(adapter, self.outbox)
        self._queue: deque[bytes] = deque()
        self._control = None if negotiation is None else HostSpeech(adapter, self._writer, self.outbox, self._told)

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
        return bool(self._queue) or (self._control is not None and self._control.waits)

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
            self._told.frames(frames, size, TO_ROOT)
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
                    data, borders = in_pages(self._adapter.send, self._memory, packet, section, size)
                else:
                    data = in_section(self._adapter.send, section, size)
            cost = len(data)
            if data[:4] == _PACKET:
                self._reader.read(data, frames, borders)
            else:
                self._take_control(data)
        except (WireError, GpaFault) as fault:
            status = NvspStatus.FAIL
            self._refuse(str(fault), packet.transaction_id)
        self._adapter.counters.sent_messages += 1
        if packet.flags & COMPLETION_REQUESTED:
            body = _completion(self._adapter.version, status)
            self.outbox.append(Packet(_COMPLETION, 0, packet.transaction_id, 0, body))
        return cost + _FRAME_COST * (len(frames) - before + 1)

    def _take_control(self, data: bytes) -> None:
        """A control message. Raises `WireError`."""
        if self._control is None:
            raise BadValue("an RNDIS control message on a subchannel")
        mistake = self._control.add(data)
        if mistake:
            self._refuse(mistake, 0)

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
            self._told.bad_completion(kind, packet.transaction_id)
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
                self._ready = True
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
                self._ready = True
        if words.startswith("refused"):
            self._refuse(f"{_NAMES[kind]} {words}", packet.transaction_id)
        else:
            self._told.say(f"{_NAMES[kind]} {words}".rstrip(), TO_ROOT)
        if packet.flags & COMPLETION_REQUESTED and body is not None:
            self.outbox.append(Packet(_COMPLETION, 0, packet.transaction_id, 0, body))
        return TURN_COST  # a buffer may lie in tens of thousands of pages

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
            self._told.frames(wanted, sum(map(len, wanted)), TO_CHILD)
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
        if self._control is not None:
            self._control.tell_link(up)
            self.proceed()

    def send_table(self, channels: int) -> None:
        """The guest has opened all channels that it was granted: tell it which to send by."""
        if self._control is not None:
            self._control.send_table(channels)
            self.proceed()

    def proceed(self) -> None:
        """Do what waited for pieces or room."""
        adapter = self._adapter
        if self.blocked or not self._ready:
            return
        if self._control is not None and self._control.waits:
            self._control.speak(MAX_UNSENT)
        queue = self._queue
        while queue and adapter.receive is not None and adapter.receive.free and len(self.outbox) < MAX_UNSENT:
            batch = list(islice(queue, 64))
            sent = self._writer.write(batch)
            if not sent:
                break
            for _ in range(sent):
                queue.popleft()

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
            control=[] if self._control is None else self._control.kept,
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
            assert self._control is not None, "a primary channel has both"
            for message in saved.control:
                self._control.add(message)
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

    def inspect(self) -> Branch:
        """What it has under way."""
        negotiation = self.negotiation
        return Branch(
            {
                "state": "data" if negotiation is None else negotiation.state.value,
                "primary": self.is_primary,
                "at_guest": len(self._writer.in_flight),
                "queued_frames": len(self._queue),
                "queued_control": 0 if self._control is None else len(self._control.kept),
                "unsent": len(self.outbox),
                "blocked": self.blocked,
            }
        )

    def _refuse(self, reason: str, transaction_id: int) -> None:
        self._adapter.counters.refused += 1
        self._told.refuse(reason, transaction_id)
