"""Whole sequences of NVSP and RNDIS through the boundary driver: packets of the guest's, and all that it gets.

Many are those that openvmm's adapter is tested with (netvsp/src/test.rs), told from the guest's end. The rules one by
one are in tests/vsp_vsc/network.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import attrs
import msgspec
import pytest

from partitions.topology_schema import NicTable, SwitchTable
from tests.doubles.boundary_guest import DATA, BoundaryGuest, Rings, at_rest, boundary_guest, run
from tests.doubles.root import topology, vm_table
from tests.doubles.switch import Plug, ethernet, mac
from vsp_vsc.network.switch.ports import Port

COMPLETION, INBAND, TRANSFER_PAGES, GPA_DIRECT = 0xB, 6, 7, 9
OWN, PEER = mac(1), mac(2)
RECEIVE, SEND = 0x80000, 0xA0000
BUFFER_PAGES = 26
PIECE = 256 + 1514 + 36
V1, V2, V4, V5, V6, V61 = 0x2, 0x30002, 0x40000, 0x50000, 0x60000, 0x60001
OK, FAIL = 1, 2


def nvsp(kind: int, *words: int, version: int = V61) -> bytes:
    """A message as long as its version has it: 1Ch bytes, 28h from 6.1 on."""
    return struct.pack(f"<I{len(words)}I", kind, *words).ljust(0x28 if version == V61 else 0x1C, b"\0")


def rounded(message: bytes) -> bytes:
    """As the ring has it."""
    return message.ljust(-(-len(message) // 8) * 8, b"\0")


@attrs.define
class Adapter:
    """A guest that speaks NVSP and RNDIS."""

    guest: BoundaryGuest
    rings: Rings
    peer: Plug
    offer: bytes
    version: int = V61
    transaction: int = 0x100

    async def heard(self) -> list[tuple[int, int, bytes]]:
        return await at_rest(self.guest, self.rings)()

    async def ask(self, message: bytes, *, kind: int = INBAND, extended: bytes = b"") -> bytes:
        """One packet that wants a completion; what is in that."""
        self.transaction += 1
        await self.rings.send(message, self.transaction, kind=kind, extended=extended)
        ((kind_of_answer, transaction, body),) = await self.heard()
        assert (kind_of_answer, transaction) == (COMPLETION, self.transaction)
        return body

    async def stopped(self, message: bytes) -> bool:
        """Whether a packet ends it: no answer to it, and none to what follows."""
        await self.rings.send(message, 0x66)
        silent = await self.heard() == []
        await self.rings.send(nvsp(1, V61, V61), 0x67)
        return silent and await self.heard() == []

    async def init(self, version: int = V61) -> None:
        self.version = version
        told = V1 if version == V1 else 0xFFFFFFFF
        answer = await self.ask(nvsp(1, version, version, version=V1))
        assert answer == rounded(struct.pack("<IIII", 2, told, 34, OK).ljust(0x1C, b"\0"))

    def message(self, kind: int, *words: int) -> bytes:
        return nvsp(kind, *words, version=self.version)

    async def config(self, mtu: int = 1514) -> None:
        assert await self.ask(self.message(125, mtu, 0, 0, 0)) == b""

    async def ndis(self, major: int = 6, minor: int = 30) -> None:
        assert await self.ask(self.message(100, major, minor)) == b""

    async def lend(self, gpadl: int, gpa: int) -> None:
        first = gpa >> 12
        (created,) = await self.guest.gpadl(1, gpadl, range(first, first + BUFFER_PAGES))
        assert created == struct.pack("<IIIII", 10, 0, 1, gpadl, 0)

    async def receive_buffer(self, piece: int = PIECE) -> None:
        await self.lend(0xA1, RECEIVE)
        count = (BUFFER_PAGES << 12) // piece
        answer = await self.ask(self.message(101, 0xA1, 0xCAFE))
        assert answer == rounded(self.message(102, OK, 1, 0, piece, count, piece * count))

    async def send_buffer(self) -> None:
        await self.lend(0xA2, SEND)
        assert await self.ask(self.message(104, 0xA2, 0)) == rounded(self.message(105, OK, 6144))

    async def initialize(self, version: int = V61, *, send_buffer: bool = True) -> None:
        await self.init(version)
        if version > V1:
            await self.config()
        await self.ndis()
        await self.receive_buffer()
        if send_buffer:
            await self.send_buffer()

    # RNDIS.

    async def say(self, message: bytes, *, control: bool = True, status: int = OK) -> list[bytes]:
        """A message in guest pages; the answers to it, as they lie in the receive buffer."""
        await self.guest.write(DATA, message)
        self.transaction += 1
        extended = struct.pack("<IIIIQ", 0, 1, len(message), 0, DATA >> 12)
        packet = self.message(107, int(control), 0xFFFFFFFF, 0)
        await self.rings.send(packet, self.transaction, kind=GPA_DIRECT, extended=extended)
        packets = await self.heard()
        mine = (COMPLETION, self.transaction, rounded(self.message(108, status)))
        assert mine in packets
        packets.remove(mine)
        return [await self.take(packet) for packet in packets]

    async def take(self, packet: tuple[int, int, bytes]) -> bytes:
        """An RNDIS message of the host's, given back."""
        kind, transaction, body = packet
        set_id, count, length, offset = struct.unpack_from("<HxxIII", body)
        assert (kind, set_id, count, offset) == (TRANSFER_PAGES, 0xCAFE, 1, transaction * PIECE)
        assert body[16:20] == struct.pack("<I", 107)
        assert body[24:32] == struct.pack("<II", 0xFFFFFFFF, 0)
        assert len(body[16:]) == len(rounded(self.message(107)))
        message = await self.guest.read(RECEIVE + offset, length)
        await self.rings.send(self.message(108, OK), transaction, kind=COMPLETION, flags=0)
        return message

    async def start(self) -> None:
        """INITIALIZE, and a filter for everything."""
        (answer,) = await self.say(struct.pack("<IIIIII", 2, 24, 7, 1, 0, 0x4000))
        said = (0x80000002, 52, 7, 0, 1, 0, 1, 0, 8, 0xEFFFFFFF, 3, 0, 0)
        assert answer == struct.pack("<13I", *said)
        (answer,) = await self.say(struct.pack("<IIIIIIII", 5, 32, 8, 0x1010E, 4, 20, 0, 0x2F))
        assert answer == struct.pack("<IIII", 0x80000005, 16, 8, 0)

    async def query(self, oid: int) -> tuple[int, bytes]:
        (answer,) = await self.say(struct.pack("<IIIIIII", 4, 28, 9, oid, 0, 20, 0))
        kind, length, request, status, size, offset = struct.unpack_from("<6I", answer)
        assert (kind, length, request, size, offset) == (0x80000004, len(answer), 9, len(answer) - 24, 16)
        return status, answer[24:]

    async def set(self, oid: int, value: bytes) -> int:
        head = struct.pack("<IIIIIII", 5, 28 + len(value), 10, oid, len(value), 20, 0)
        (answer,) = await self.say(head + value)
        kind, length, request, status = struct.unpack("<4I", answer)
        assert (kind, length, request) == (0x80000005, 16, 10)
        return int(status)


def on_an_adapter(sequence: Callable[[Adapter], Awaitable[None]], folder: Path, *, processors: int = 1) -> None:
    """Run it with the adapter's channel open and nothing said yet."""

    async def session() -> None:
        nic = NicTable(switch="lan", mac=OWN.hex("-"))
        whole = topology(vm_table("vm", processors=processors, memory=2 << 20, nic=[nic]), folder=folder)
        whole = msgspec.structs.replace(whole, switch=[SwitchTable(name="lan")])
        async with boundary_guest(whole) as guest:
            port = Port("peer", PEER)
            guest.host.switches["lan"].connect(port)
            peer = Plug(port)
            await guest.boot()
            (offer,) = await guest.connect()
            assert offer[8:24].hex() == "635161f83edfc546913ff2d2f965ed0e"
            await sequence(Adapter(guest, await guest.open_channel(), peer, offer))

    run(session)


def frame_message(frame: bytes) -> bytes:
    """RNDIS_PACKET_MSG around a frame."""
    return struct.pack("<11I", 1, 44 + len(frame), 36, len(frame), 0, 0, 0, 0, 0, 0, 0) + frame


@pytest.mark.parametrize("version", [V1, V2, V4, V5, V6, V61])
def test_initialization_in_every_version(tmp_path: Path, version: int) -> None:
    """initialize_nic, send_initial_handshake: sizes of the version, INIT_COMPLETE always of the first; then RNDIS."""

    async def sequence(adapter: Adapter) -> None:
        await adapter.initialize(version)
        await adapter.start()

    on_an_adapter(sequence, tmp_path)


def test_versions_that_are_refused(tmp_path: Path) -> None:
    """Status 0, the deprecated version of nobody, and the guest asks for another."""

    async def sequence(adapter: Adapter) -> None:
        for version in (0, 1, 0x30001, 0x50001, 0x60002, 0x70000):
            answer = await adapter.ask(nvsp(1, version, version))
            assert answer == struct.pack("<IIII", 2, 0xFFFFFFFF, 34, 0).ljust(32, b"\0")
        await adapter.initialize()

    on_an_adapter(sequence, tmp_path)


def test_without_a_send_buffer(tmp_path: Path) -> None:
    """initialize_rndis_no_sendbuffer: the first RNDIS packet ends the initialization."""

    async def sequence(adapter: Adapter) -> None:
        await adapter.initialize(send_buffer=False)
        await adapter.start()

    on_an_adapter(sequence, tmp_path)


def test_without_a_receive_buffer(tmp_path: Path) -> None:
    """initialize_rndis_no_sendbuffer_no_recvbuffer: an RNDIS packet is the end of it."""

    async def sequence(adapter: Adapter) -> None:
        await adapter.init()
        await adapter.config()
        await adapter.ndis()
        assert await adapter.stopped(adapter.message(107, 1, 0xFFFFFFFF, 0))

    on_an_adapter(sequence, tmp_path)


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ([], (100, 6, 30)),
        ([], (107, 1, 0xFFFFFFFF, 0)),
        (["init"], (1, V61, V61)),
        (["init"], (101, 0xA1, 0xCAFE)),
        (["init", "config"], (125, 1514, 0, 0, 0)),
        (["init", "ndis"], (100, 6, 30)),
        (["init", "config", "receive_buffer"], (101, 0xA1, 0xCAFE)),
        (["init", "config", "send_buffer"], (104, 0xA2, 0)),
        (["init"], (133, 1, 1)),
        (["init"], (131, 0, 0, 0)),
        (["initialize"], (1, V61, V61)),
        (["initialize"], (99,)),
    ],
)
def test_messages_out_of_order(tmp_path: Path, before: list[str], message: tuple[int, ...]) -> None:
    """Before INIT, twice, a receive buffer before the MTU, subchannels before the buffers: the end."""

    async def sequence(adapter: Adapter) -> None:
        for step in before:
            await getattr(adapter, step)()
        assert await adapter.stopped(adapter.message(*message))

    on_an_adapter(sequence, tmp_path)


@pytest.mark.parametrize(("mtu", "taken"), [(1513, 1514), (1514, 1514), (4014, 4014), (9216, 9216), (9217, 1514)])
def test_the_size_of_pieces_follows_the_mtu(tmp_path: Path, mtu: int, taken: int) -> None:
    """256 before and 36 behind; what is out of bounds means the default."""

    async def sequence(adapter: Adapter) -> None:
        await adapter.init()
        await adapter.config(mtu)
        if taken > 5000:
            await adapter.lend(0xA1, RECEIVE)  # no room for more than the pieces that control messages need
            assert await adapter.ask(adapter.message(101, 0xA1, 0xCAFE)) == adapter.message(102, FAIL)
        else:
            await adapter.receive_buffer(256 + taken + 36)

    on_an_adapter(sequence, tmp_path)


def test_a_buffer_that_is_none(tmp_path: Path) -> None:
    """One guest's mistake is a status: the same message with the right GPADL is taken afterwards."""

    async def sequence(adapter: Adapter) -> None:
        await adapter.init()
        await adapter.config()
        assert await adapter.ask(adapter.message(101, 0xBAD, 0xCAFE)) == adapter.message(102, FAIL)
        assert await adapter.ask(adapter.message(104, 0xBAD, 0)) == adapter.message(105, FAIL)
        await adapter.receive_buffer()
        await adapter.send_buffer()
        await adapter.ndis()
        await adapter.start()

    on_an_adapter(sequence, tmp_path)


def test_queries(tmp_path: Path) -> None:
    """oid_query_mac_options and those that drivers begin with; an unknown object is NOT_SUPPORTED, with an offset."""

    async def sequence(adapter: Adapter) -> None:
        await adapter.initialize()
        await adapter.start()
        for oid, value in (
            (0x01010102, OWN),
            (0x01010101, OWN),
            (0x00010106, struct.pack("<I", 1500)),
            (0x00010111, struct.pack("<I", 1514)),
            (0x00010114, struct.pack("<I", 0)),
            (0x00010102, bytes(4)),
            (0x00010107, struct.pack("<I", 100_000_000)),
            (0x00010115, struct.pack("<I", 0xFFFFFFFF)),
            (0x00010113, struct.pack("<I", 0x24D)),
            (0x0001010E, struct.pack("<I", 0x2F)),
        ):
            assert await adapter.query(oid) == (0, value), hex(oid)
        assert await adapter.query(0x0BADF00D) == (0xC00000BB, b"")
        assert await adapter.set(0x0BADF00D, b"1234") == 0xC00000BB

    on_an_adapter(sequence, tmp_path)


def test_control_messages_without_an_object(tmp_path: Path) -> None:
    """KEEPALIVE is answered, HALT is not; INDICATE_STATUS and SET_EX from a guest cost nothing; then it goes on."""

    async def sequence(adapter: Adapter) -> None:
        await adapter.initialize()
        await adapter.start()
        (answer,) = await adapter.say(struct.pack("<III", 8, 12, 0x55))
        assert answer == struct.pack("<IIII", 0x80000008, 16, 0x55, 0)
        assert await adapter.say(struct.pack("<IIIII", 7, 20, 0, 0, 0)) == []
        assert await adapter.say(struct.pack("<IIIIIII", 9, 28, 1, 0, 0, 0, 0)) == []
        assert await adapter.say(struct.pack("<II", 0x7F, 8), status=FAIL) == []
        assert await adapter.say(struct.pack("<III", 3, 12, 9)) == []
        await adapter.start()

    on_an_adapter(sequence, tmp_path)


def test_frames_both_ways(tmp_path: Path) -> None:
    """rndis_send_single_packet_message, rndis_send_multiple_packet_message, rndis_rx_packet_no_vlan."""

    async def sequence(adapter: Adapter) -> None:
        await adapter.initialize()
        await adapter.start()
        frames = [ethernet(PEER, OWN, bytes([number]) * 60) for number in range(4)]
        assert await adapter.say(frame_message(frames[0]), control=False) == []
        assert await adapter.say(b"".join(map(frame_message, frames[1:])), control=False) == []
        assert adapter.peer.got == frames
        message = frame_message(frames[3])
        await adapter.guest.write(SEND + 6144, message)
        answer = await adapter.ask(adapter.message(107, 0, 1, len(message)))
        assert (answer, adapter.peer.got[4:]) == (adapter.message(108, OK), frames[3:])
        answered = ethernet(OWN, PEER, b"for the guest" * 5)
        adapter.peer.port.transmit([answered])
        (packet,) = await adapter.heard()
        message = await adapter.take(packet)
        assert struct.unpack_from("<II", message) == (1, len(message))
        offset, length = struct.unpack_from("<II", message, 8)
        assert message[8 + offset : 8 + offset + length] == answered

    on_an_adapter(sequence, tmp_path)


def test_packets_that_are_wrong(tmp_path: Path) -> None:
    """rndis_handle_packet_errors: each is completed with FAILURE, nothing of it is sent, and the next is taken."""

    async def sequence(adapter: Adapter) -> None:
        await adapter.initialize()
        await adapter.start()
        good = frame_message(ethernet(PEER, OWN, bytes(60)))

        def with_word(index: int, value: int) -> bytes:
            return good[: 4 * index] + struct.pack("<I", value) + good[4 * index + 4 :]

        bad = [with_word(1, 43), with_word(1, 4096), with_word(2, 4096), with_word(3, 4096), with_word(3, 13)]
        bad += [
            with_word(4, 4),
            with_word(5, 4),
            with_word(6, 1),
            with_word(8, 4096),
            good[:20],
            good + with_word(0, 2),
        ]
        for message in bad:
            assert await adapter.say(message, control=False, status=FAIL) == []
        for section, size in ((999, 100), (0, 6145), (17, 6144)):
            answer = await adapter.ask(adapter.message(107, 0, section, size))
            assert answer == adapter.message(108, FAIL)
        assert adapter.peer.got == []
        assert await adapter.say(good, control=False) == []
        assert len(adapter.peer.got) == 1

    on_an_adapter(sequence, tmp_path)


def test_subchannels(tmp_path: Path) -> None:
    """subchannel_request_equal_to_max_queues_rejected: below the limit they are offered, and a table follows."""

    async def sequence(adapter: Adapter) -> None:
        guest = adapter.guest
        await adapter.initialize()
        await adapter.start()
        for operation, count in ((1, 2), (1, 64), (1, 0xFFFFFFFF), (0, 1), (2, 1)):
            assert await adapter.ask(adapter.message(133, operation, count)) == adapter.message(133, FAIL, 0)
        assert await adapter.ask(adapter.message(133, 1, 0)) == adapter.message(133, OK, 0)
        assert await guest.messages() == []
        assert await adapter.ask(adapter.message(133, 1, 1)) == adapter.message(133, OK, 1)
        (offer,) = await guest.messages()
        channel, index = struct.unpack_from("<I", offer, 184)[0], struct.unpack_from("<H", offer, 180)[0]
        assert (offer[8:40], index) == (adapter.offer[8:40], 1)
        await guest.write(0xC0000, bytes(8 << 12))
        await guest.gpadl(channel, 0xE2, range(0xC0, 0xC8))
        assert (await guest.open(channel, 0xE2)) == [struct.pack("<IIIII", 6, 0, channel, channel, 0)]
        table = struct.pack("<III16I", 134, 16, 12, *[0, 1] * 8)
        assert await adapter.heard() == [(INBAND, 0, rounded(table))]

    on_an_adapter(sequence, tmp_path, processors=2)


def test_rss_parameters(tmp_path: Path) -> None:
    """set_rss_parameter and its refusals: no table, one of seven bytes, a queue too many, a short key."""

    async def sequence(adapter: Adapter) -> None:
        await adapter.initialize()
        await adapter.start()

        def parameters(table: Sequence[int], *, table_size: int | None = None, key: int = 40, flags: int = 0) -> bytes:
            size = 4 * len(table) if table_size is None else table_size
            head = struct.pack("<BBHHHIHHIHHI", 0x89, 2, 40, flags, 0, 0x101, size, 0, 40, key, 0, 40 + 4 * len(table))
            return head.ljust(40, b"\0") + struct.pack(f"<{len(table)}I", *table) + bytes(range(key))

        invalid = 0xC0010015
        assert await adapter.set(0x00010204, parameters([0, 1] * 8)) == 0
        assert await adapter.set(0x00010204, parameters([0, 1], table_size=0)) == invalid
        assert await adapter.set(0x00010204, parameters([0, 1], table_size=7)) == invalid
        assert await adapter.set(0x00010204, parameters([0, 2])) == invalid
        assert await adapter.set(0x00010204, parameters([0, 1], key=39)) == invalid
        assert await adapter.set(0x00010204, parameters([0], flags=0x10)) == 0

    on_an_adapter(sequence, tmp_path, processors=2)


def test_the_link(tmp_path: Path) -> None:
    """link_status_update: MEDIA_DISCONNECT and MEDIA_CONNECT in their turn, twelve bytes without a buffer."""

    async def sequence(adapter: Adapter) -> None:
        await adapter.initialize()
        await adapter.start()
        vm = adapter.guest.host["vm"]
        for switch, status, state in ((None, 0x4001000C, 1), ("lan", 0x4001000B, 0)):
            await vm.connect_nic(0, switch)
            (packet,) = await adapter.heard()
            assert await adapter.take(packet) == struct.pack("<IIIII", 7, 20, status, 0, 0)
            assert await adapter.query(0x00010114) == (0, struct.pack("<I", state))

    on_an_adapter(sequence, tmp_path)


def test_offloads_are_told(tmp_path: Path) -> None:
    """OID_TCP_OFFLOAD_PARAMETERS: the answer, then what holds now as a status of its own."""

    async def sequence(adapter: Adapter) -> None:
        await adapter.initialize()
        await adapter.start()
        value = struct.pack("<BBH", 0x80, 1, 20) + bytes([4, 4, 4, 4, 4, 1, 1, 2, 2]) + bytes(7)
        head = struct.pack("<IIIIIII", 5, 28 + len(value), 10, 0xFC01020C, len(value), 20, 0)
        answer, told = await adapter.say(head + value)
        assert answer == struct.pack("<IIII", 0x80000005, 16, 10, 0)
        status, now = await adapter.query(0xFC01020B)
        assert status == 0
        assert told == struct.pack("<IIIII", 7, 20 + len(now), 0x40020006, len(now), 12) + now

    on_an_adapter(sequence, tmp_path)


def test_what_every_version_answers_to_the_rest(tmp_path: Path) -> None:
    """OID_QUERY_EX has no objects, the data path switches to nowhere, buffers go and come back."""

    async def sequence(adapter: Adapter) -> None:
        await adapter.initialize()
        await adapter.start()
        assert await adapter.ask(adapter.message(131, 20, 1, 0x10101)) == adapter.message(132, 0xC00000BB, 0)
        assert await adapter.ask(adapter.message(129, 0)) == b""
        assert await adapter.ask(adapter.message(129, 1)) == b""
        assert await adapter.ask(adapter.message(106, 0)) == b""
        assert await adapter.ask(adapter.message(103, 0xCAFE)) == b""
        frame = frame_message(ethernet(PEER, OWN, bytes(60)))
        assert await adapter.say(frame, control=False) == []
        assert await adapter.guest.say(struct.pack("<IIII", 11, 0, 1, 0xA1)) == [struct.pack("<III", 12, 0, 0xA1)]

    on_an_adapter(sequence, tmp_path)
