"""A guest that makes legal and illegal moves in any order, against a network adapter's session and a model of it.

The model says of each packet whether it is answered, refused, or stops the channel; which frames the switch has seen,
and which the guest, in what order. After each move every piece of the receive buffer is in one place.
"""

from __future__ import annotations

import struct
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hypervisor.trace import Trace
from hypervisor.wire import WireError
from tests.doubles.campaign import examples
from tests.doubles.network_vsp import (
    MAC,
    OTHER_MAC,
    FakePort,
    control_message,
    data_message,
    frame,
    info,
    initialize_message,
    query_message,
    set_message,
)
from tests.doubles.storage import PlainPlatform
from vmbus.gpadl import page_range
from vmbus.ring import Packet, PacketType
from vmbus.server.opened import ChannelGpadls, HoldCounts
from vsp_vsc.network import protocol as nvsp
from vsp_vsc.network.adapter import AdapterState, Counters
from vsp_vsc.network.negotiation import Negotiation
from vsp_vsc.network.protocol import CONTROL_PIECES, NO_SECTION, SECTION_SIZE, VERSIONS, NvspType, NvspVersion
from vsp_vsc.network.rndis import Oid, RndisType
from vsp_vsc.network.session import MAX_UNSENT, QUEUE_FRAMES, NetworkSession

RECEIVE, SEND, UNKNOWN = 11, 12, 13
RECEIVE_GPN, RECEIVE_PAGES = 16, 16
SEND_GPN, SEND_PAGES = 64, 12
PAGES_GPN = 100
BAD_MESSAGES = (
    data_message(frame(64), data_offset=100),
    data_message(frame(64)[:13]),
    data_message(frame(64), length=3),
    data_message(frame(64), info(0, 5 | 80 << 16)),
    data_message(frame(64)) + b"rest",
    data_message(frame(64)) + data_message(frame(64), oob_count=1),
    data_message(frame(1600)),
    b"\1\0",
    struct.pack("<II", 77, 8),
    struct.pack("<II", RndisType.QUERY, 8),
)


class NetworkMachine(RuleBasedStateMachine):
    """One opening of an adapter's channel."""

    @initialize(prepared=st.booleans(), version=st.sampled_from([*VERSIONS]))
    def opened(self, prepared: bool, version: NvspVersion) -> None:
        """Nothing said, or all that a driver says in the beginning."""
        self.platform = PlainPlatform(1 << 20)
        self.port = FakePort()
        self.counts = HoldCounts(lambda *_: None)
        gpadls = {
            RECEIVE: (page_range(range(RECEIVE_GPN, RECEIVE_GPN + RECEIVE_PAGES)),),
            SEND: (page_range(range(SEND_GPN, SEND_GPN + SEND_PAGES)),),
        }
        self.state = AdapterState(self.port, "nic", 3, Counters())
        self.granted: list[int] = []
        known = ChannelGpadls(5, lambda _, gpadl: gpadls.get(gpadl), self.counts)
        self.session = NetworkSession(
            self.state,
            self.platform.guest,
            trace=Trace(lambda: 0),
            partition_id=7,
            channel_id=5,
            negotiation=Negotiation(self.state, self.platform.guest, known),
            offer_sub_channels=self.granted.append,
        )
        self.version = 0
        self.config = self.ndis = self.receive = self.send = self.ready = self.revoked = self.dead = False
        self.filter = 0
        self.seen: list[bytes] = []
        """Frames that the switch must have."""
        self.owed: list[bytes] = []
        """Frames that the guest must have, and has not."""
        self.answers: Counter[int] = Counter()
        """Completions that the guest waits for, by transaction."""
        self.replies = 0
        """Control messages whose answers it waits for."""
        self.ring: list[Packet] = []
        """What the guest has heard and not given back."""
        self.number = 1000
        if prepared:
            self.init(version)
            if version >= NvspVersion.V2:
                self.ndis_config(True)
            self.ndis_version(True)
            self.receive_buffer(RECEIVE)
            self.send_buffer(SEND)
            self.ask(False, initialize_message())
            self.choose_filter(False, 0xD)

    @precondition(lambda self: self.dead)
    @rule(prepared=st.booleans(), version=st.sampled_from([*VERSIONS]))
    def open_again(self, prepared: bool, version: NvspVersion) -> None:
        """After the channel has stopped."""
        self.session.end()
        self.state.release()
        assert not self.counts.count(5, RECEIVE)
        assert not self.counts.count(5, SEND)
        self.opened(prepared, version)

    def take(self, packet: Packet, *, stops: bool = False) -> None:
        """Hand the session a packet; the model says whether it goes on."""
        try:
            left = self.session.take([packet])
        except WireError:
            assert stops
            self.dead = True
        else:
            assert not stops, "that should have stopped the channel"
            assert not left
        self.hear()

    def hear(self) -> None:
        """The guest reads its ring, unless it has no room."""
        if self.session.blocked:
            return
        outbox = self.session.outbox
        for packet in outbox[:]:
            if packet.type == PacketType.COMPLETION:
                self.answers[packet.transaction_id] -= 1
                assert self.answers[packet.transaction_id] >= 0, "answered twice, or unasked"
            else:
                assert packet.type == PacketType.TRANSFER_PAGES
                self.ring.append(packet)
                self.arrived(packet)
        outbox.clear()
        self.session.proceed()
        if outbox:
            self.hear()

    def arrived(self, packet: Packet) -> None:
        set_id, _, _, count = struct.unpack_from("<HBBI", packet.body)
        assert set_id == 7
        kind = struct.unpack_from("<I", packet.payload, 4)[0]
        for index in range(count):
            size, at = struct.unpack_from("<II", packet.body, 8 + 8 * index)
            start = RECEIVE_GPN * 4096 + at
            message = bytes(self.platform.memory[start : start + size])
            assert struct.unpack_from("<I", message, 4)[0] == size
            if kind:
                assert message[:4] != b"\1\0\0\0"
                self.replies -= 1
            else:
                assert message == data_message(self.owed.pop(0))

    def packet(self, kind: int, body: bytes, *, wanted: bool = True) -> Packet:
        self.number += 1
        if wanted:
            self.answers[self.number] += 1
        message = (struct.pack("<I", kind) + body).ljust(32, b"\0")
        return Packet(PacketType.INBAND, int(wanted), self.number, 0, message)

    def say(self, kind: int, body: bytes, *, stops: bool, wanted: bool = True) -> None:
        self.take(self.packet(kind, body, wanted=wanted), stops=stops)
        if not self.dead:
            self.ready = self.ready or (self.complete and self.receive and self.send)

    @property
    def complete(self) -> bool:
        return self.ndis and (self.config or 0 < self.version < NvspVersion.V2)

    # --- the beginning

    @precondition(lambda self: not self.dead)
    @rule(version=st.sampled_from([*VERSIONS, 3, 0]))
    def init(self, version: int) -> None:
        stops = bool(self.version)
        if not stops and version in tuple(VERSIONS):
            self.version = version
        self.say(NvspType.INIT, nvsp.NvspInit(version, version).encode(), stops=stops)

    @precondition(lambda self: not self.dead)
    @rule(wanted=st.booleans())
    def ndis_config(self, wanted: bool) -> None:
        stops = self.version < NvspVersion.V2 or self.config
        self.config = True
        self.say(NvspType.SEND_NDIS_CONFIG, nvsp.NdisConfig(1514, 0, 0).encode(), stops=stops, wanted=wanted)

    @precondition(lambda self: not self.dead)
    @rule(wanted=st.booleans())
    def ndis_version(self, wanted: bool) -> None:
        stops = not self.version or self.ndis
        self.ndis = True
        self.say(NvspType.SEND_NDIS_VERSION, nvsp.NdisVersion(6, 30).encode(), stops=stops, wanted=wanted)

    @precondition(lambda self: not self.dead)
    @rule(gpadl=st.sampled_from([RECEIVE, RECEIVE, UNKNOWN]))
    def receive_buffer(self, gpadl: int) -> None:
        stops = not self.version or self.receive or (self.version >= NvspVersion.V2 and not self.config)
        if not stops:
            self.receive = gpadl == RECEIVE
        self.say(NvspType.SEND_RECEIVE_BUFFER, nvsp.SendBuffer(gpadl, 7).encode(), stops=stops)

    @precondition(lambda self: not self.dead)
    @rule(gpadl=st.sampled_from([SEND, SEND, UNKNOWN]))
    def send_buffer(self, gpadl: int) -> None:
        stops = not self.version or self.send or (self.ready and not self.revoked)
        if not stops:
            self.send = gpadl == SEND
        self.say(NvspType.SEND_SEND_BUFFER, nvsp.SendBuffer(gpadl, 0).encode(), stops=stops)

    @precondition(lambda self: not self.dead)
    @rule(
        which=st.sampled_from([NvspType.REVOKE_RECEIVE_BUFFER, NvspType.REVOKE_SEND_BUFFER]), number=st.integers(6, 8)
    )
    def revoke(self, which: NvspType, number: int) -> None:
        stops = not self.version
        if not stops:
            if which == NvspType.REVOKE_SEND_BUFFER and self.send:
                self.send, self.revoked = False, True
            elif which == NvspType.REVOKE_RECEIVE_BUFFER and self.receive and number == 7:
                self.receive, self.revoked = False, True
                self.ring.clear()
        self.say(which, struct.pack("<H", number), stops=stops, wanted=False)

    @precondition(lambda self: not self.dead)
    @rule(kind=st.sampled_from([0, 2, 102, 105, 108, 134, 135, 999]))
    def what_no_guest_says(self, kind: int) -> None:
        self.say(kind, bytes(12), stops=True)

    @precondition(lambda self: not self.dead)
    @rule(count=st.integers(0, 4))
    def sub_channels(self, count: int) -> None:
        stops = not self.ready or self.version < NvspVersion.V5
        before = len(self.granted)
        self.say(NvspType.SUBCHANNEL, nvsp.SubchannelRequest(1, count).encode(), stops=stops)
        if not self.dead:
            assert len(self.granted) - before == (0 < count < 3)

    # --- messages

    def rndis(self, message: bytes, *, by_pages: bool, good: bool, frames: list[bytes]) -> None:
        """Send an RNDIS message by the send buffer or by pages."""
        stops = not self.ready and not (self.complete and self.receive)
        arrives = by_pages or self.send
        if by_pages:
            at = PAGES_GPN * 4096
            self.platform.memory[at : at + len(message)] = message
            extended = struct.pack("<IIIIQ", 0, 1, len(message), 0, PAGES_GPN)
            body = extended + struct.pack("<IIII", 107, 0, NO_SECTION, 0)
            self.number += 1
            self.answers[self.number] += 1
            packet = Packet(PacketType.GPA_DIRECT, 1, self.number, len(extended), body)
        else:
            at = SEND_GPN * 4096 + SECTION_SIZE
            self.platform.memory[at : at + len(message)] = message
            packet = self.packet(107, struct.pack("<III", 0, 1, len(message)))
        refused = self.state.counters.refused
        if not stops:
            self.ready = True
            if good and arrives:
                self.seen += frames
                self.replies += not frames
        self.take(packet, stops=stops)
        if not self.dead:
            assert self.state.counters.refused - refused == (not good or not arrives)

    @precondition(lambda self: not self.dead)
    @rule(by_pages=st.booleans(), sizes=st.lists(st.sampled_from([14, 60, 64, 64, 1514, 1522]), min_size=1, max_size=4))
    def send_frames(self, by_pages: bool, sizes: list[int]) -> None:
        frames = [frame(size, to=OTHER_MAC, source=MAC, fill=self.number + size) for size in sizes]
        message = b"".join(map(data_message, frames))
        if len(message) <= 4096:
            self.rndis(message, by_pages=by_pages, good=True, frames=frames)

    @precondition(lambda self: not self.dead)
    @rule(by_pages=st.booleans(), message=st.sampled_from(BAD_MESSAGES))
    def send_nonsense(self, by_pages: bool, message: bytes) -> None:
        self.rndis(message, by_pages=by_pages, good=False, frames=[])

    @precondition(lambda self: not self.dead)
    @rule(
        by_pages=st.booleans(),
        message=st.sampled_from(
            [
                initialize_message(),
                query_message(1, Oid.GEN_SUPPORTED_LIST),
                query_message(1, 0xBAD),
                set_message(1, 0xBAD, b""),
                set_message(1, Oid.GEN_CURRENT_PACKET_FILTER, b"\x0d"),
                control_message(RndisType.KEEPALIVE, bytes(4)),
            ]
        ),
    )
    def ask(self, by_pages: bool, message: bytes) -> None:
        self.rndis(message, by_pages=by_pages, good=True, frames=[])

    @precondition(lambda self: not self.dead and not self.replies)
    @rule(by_pages=st.booleans(), chosen=st.sampled_from([0, 0xD, 0x20]))
    def choose_filter(self, by_pages: bool, chosen: int) -> None:
        """Only when nothing else waits, so that the model knows when it holds."""
        message = set_message(1, Oid.GEN_CURRENT_PACKET_FILTER, struct.pack("<I", chosen))
        before = self.replies
        self.rndis(message, by_pages=by_pages, good=True, frames=[])
        if not self.dead:
            self.filter = self.state.filter
            if self.replies == before and (by_pages or self.send) and not self.session.blocked:
                assert self.filter == chosen

    # --- the other way

    @precondition(lambda self: not self.dead)
    @rule(count=st.sampled_from([1, 2, 30, 70]), mine=st.booleans())
    def deliver(self, count: int, mine: bool) -> None:
        self.filter = self.state.filter
        frames = [frame(60, to=MAC if mine else OTHER_MAC, fill=self.number + index) for index in range(count)]
        wanted = self.ready and self.receive and (self.filter == 0x20 or (self.filter == 0xD and mine))
        room = QUEUE_FRAMES + RECEIVE_PAGES * 4096 // 1806
        if wanted and len(self.owed) + count <= room // 2:
            self.owed += frames
            assert self.session.put(frames) == count
        elif not wanted:
            assert self.session.put(frames) == (count if self.ready else 0)
        self.hear()

    @precondition(lambda self: not self.dead and self.ring)
    @rule(which=st.integers(0, 100), status=st.sampled_from([1, 1, 2, 6]))
    def acknowledge(self, which: int, status: int) -> None:
        packet = self.ring.pop(which % len(self.ring))
        done = Packet(PacketType.COMPLETION, 0, packet.transaction_id, 0, struct.pack("<II", 108, status))
        self.take(done)

    @precondition(lambda self: not self.dead and self.ready)
    @rule(number=st.sampled_from([999, 1 << 40, (1 << 64) - 1]))
    def acknowledge_nothing(self, number: int) -> None:
        before = self.state.counters.bad_completions
        self.take(Packet(PacketType.COMPLETION, 0, number, 0, struct.pack("<II", 108, 1)))
        assert self.state.counters.bad_completions == before + 1

    @precondition(lambda self: not self.dead)
    @rule()
    def fill_and_empty_the_ring(self) -> None:
        """No room, and room again."""
        self.session.blocked = not self.session.blocked
        if not self.session.blocked:
            self.session.proceed()
            self.hear()

    # --- always

    @invariant()
    def all_is_in_its_place(self) -> None:
        if not hasattr(self, "session"):
            return
        assert self.port.sent == self.seen
        assert bool(self.counts.count(5, RECEIVE)) == self.receive or self.dead
        assert bool(self.counts.count(5, SEND)) == self.send or self.dead
        receive = self.state.receive
        if receive is not None:
            at_guest = [piece for pieces in self.session._writer.in_flight.values() for piece in pieces]
            assert sorted([*receive.free, *receive.free_control, *at_guest]) == list(range(receive.count))
            assert all(piece < CONTROL_PIECES for piece in receive.free_control)
        if not self.dead and not self.session.blocked:
            assert not +self.answers, "somebody waits for an answer"
            assert not self.session.outbox
            if receive is not None and receive.free_control and self.ready:
                assert not self.replies
            if receive is not None and receive.free:
                assert not self.owed
        assert len(self.session.outbox) < 2 * MAX_UNSENT


TestNetworkMachine = NetworkMachine.TestCase
TestNetworkMachine.settings = settings(max_examples=examples(60), stateful_step_count=60, deadline=None)
