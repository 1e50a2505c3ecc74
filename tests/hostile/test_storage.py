"""A guest that sends a storage controller what it should not: refused, or its channel stopped; never more.

The numbers are those of the list of malformed inputs that the controller is held to (81 to 92).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hypervisor.trace import Trace
from hypervisor.wire import BadValue, Guid, WireError
from tests.doubles.campaign import examples
from tests.doubles.storage import PlainPlatform, SlowBackend, StoragePair, serving
from tests.doubles.storage_guest import Completion, ask, command, control, handshake
from vmbus.ring import Packet, PacketType
from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.controller import Controller
from vsp_vsc.storage.negotiation import Negotiation, State
from vsp_vsc.storage.protocol import (
    HEADER_SIZE,
    MAX_AT_CHANNEL,
    MAX_TRANSFER,
    NtStatus,
    Operation,
    PacketHeader,
    SrbStatus,
    SubChannelCount,
    Version,
)
from vsp_vsc.storage.saved import decode_session, encode_session
from vsp_vsc.storage.scsi import blocks
from vsp_vsc.storage.scsi.cdb import Direction, Opcode, read_cdb, write_cdb
from vsp_vsc.storage.scsi.target import ScsiTarget
from vsp_vsc.storage.session import Counters, StorageSession
from vsp_vsc.storage.vsp import StorageVsp

PATTERN = bytes(index * 13 & 0xFF for index in range(256)) * 4096
READ = read_cdb(0, 8)
WRITE = write_cdb(0, 8)
LAST_PAGE = (16 << 20) // 4096 - 1


def read(**changes: object) -> Packet:
    """A good read of 4 KiB, but for the changes."""
    arguments: dict[str, object] = {"pages": [3], "length": 4096, **changes}
    return command(arguments.pop("cdb", READ), **arguments)  # type: ignore[arg-type]


async def still_works(pair: StoragePair) -> None:
    """The channel goes on, the disk is as it was."""
    (completion,) = await ask(pair.guest_end, read(pages=[100]))
    assert completion.srb.srb_status == SrbStatus.SUCCESS
    assert bytes(pair.platform.memory[100 << 12 : 101 << 12]) == PATTERN[:4096]


def disks() -> dict[int, ScsiTarget]:
    return {0: ScsiTarget(MemoryBackend(PATTERN))}


# --- soft: a status in the completion


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(read(cdb_length=0), id="85 CDB length 0"),
        pytest.param(read(cdb_length=17), id="85 CDB length 17"),
        pytest.param(read(cdb_length=255), id="85 CDB length 255"),
        pytest.param(command(bytes(6), cdb_length=0), id="85 CDB length 0 without data"),
        pytest.param(command(bytes(6), cdb_length=17), id="85 CDB length 17 without data"),
        pytest.param(read(length=MAX_TRANSFER + 512, pages=list(range(200, 266))), id="85 more than a transfer may be"),
        pytest.param(read(data_in=Direction.OUT), id="86 read that says it writes"),
        pytest.param(command(WRITE, [3], 4096, Direction.IN), id="86 write that says it reads"),
        pytest.param(read(data_in=77), id="86 no direction at all"),
        pytest.param(command(bytes(6), [3], 512), id="86 data for a command without"),
        pytest.param(read(sense_length=21), id="89 sense length 21"),
        pytest.param(command(bytes(6), sense_length=255), id="89 sense length 255 without data"),
        pytest.param(read(sense_length=200), id="89 sense length 200"),
        pytest.param(read(pages=[LAST_PAGE + 1]), id="92 page past the end of memory"),
        pytest.param(read(pages=[(1 << 64) - 1]), id="92 page number of all ones"),
        pytest.param(read(pages=[1 << 52]), id="92 page number that overflows an address"),
        pytest.param(read(pages=[LAST_PAGE, LAST_PAGE + 1], length=4096, offset=2048), id="92 half of it past the end"),
    ],
)
async def test_an_srb_that_makes_no_sense_is_refused(packet: Packet) -> None:
    """INVALID_REQUEST, nothing moved, and the channel goes on."""
    async with serving(disks()) as pair:
        await ask(pair.guest_end, *handshake())
        await still_works(pair)
        before = bytes(pair.platform.memory)
        (completion,) = await ask(pair.guest_end, packet)
        assert (completion.status, completion.srb.srb_status) == (NtStatus.IO_DEVICE_ERROR, SrbStatus.INVALID_REQUEST)
        assert (completion.srb.data_transfer_length, completion.srb.scsi_status) == (0, 0)
        assert bytes(pair.platform.memory) == before
        assert pair.vsp.statistics().refused == 1
        assert pair.trace.warnings[7, "srb_refused"] == 1
        await still_works(pair)


async def test_an_srb_of_another_versions_length_is_refused() -> None:
    """The length field must be the agreed version's."""
    async with serving(disks()) as pair:
        await ask(pair.guest_end, *handshake())
        packet = read()
        at = packet.data_offset + HEADER_SIZE
        for length in (0, 36, 51, 53, 0xFFFF):
            body = packet.body[:at] + length.to_bytes(2, "little") + packet.body[at + 2 :]
            (completion,) = await ask(pair.guest_end, Packet(packet.type, 1, 1, packet.data_offset, body))
            assert completion.srb.srb_status == SrbStatus.INVALID_REQUEST
        await still_works(pair)


@pytest.mark.parametrize("field", ["lun", "target", "path"])
@pytest.mark.parametrize("number", [1, 255])
async def test_87_a_place_where_no_disk_is(field: str, number: int) -> None:
    """INVALID_LUN; the port number is nobody's business."""
    async with serving(disks()) as pair:
        await ask(pair.guest_end, *handshake())
        (completion,) = await ask(pair.guest_end, read(**{field: number}))
        assert completion.srb.srb_status == SrbStatus.INVALID_LUN
        (completion,) = await ask(pair.guest_end, read(port=9))
        assert completion.srb.srb_status == SrbStatus.SUCCESS


@pytest.mark.parametrize("lba", [2048, 0xFFFFFFFF, (1 << 64) - 1])
@pytest.mark.parametrize("write", [False, True])
async def test_88_past_the_end_of_the_disk(lba: int, write: bool) -> None:
    """CHECK CONDITION, sums that overflow included; the disk is as it was."""
    async with serving(disks()) as pair:
        await ask(pair.guest_end, *handshake())
        cdb = write_cdb(lba, 8) if write else read_cdb(lba, 8)
        direction = Direction.OUT if write else Direction.IN
        (completion,) = await ask(pair.guest_end, command(cdb, [3], 4096, direction))
        assert (completion.srb.srb_status, completion.srb.scsi_status) == (0x86, 2)
        await still_works(pair)


@pytest.mark.parametrize("operation", [*Operation])
async def test_83_whatever_comes_before_its_time_is_refused(operation: Operation) -> None:
    """Even a whole SRB; the guest may begin properly afterwards. What only a host sends stops the channel."""
    async with serving(disks()) as pair:
        if operation in (Operation.COMPLETE_IO, Operation.REMOVE_DEVICE, Operation.ENUMERATE_BUS):
            await pair.guest_end.send(control(operation))
            await pair.ended.wait()
            assert "operation" in str(pair.stopped[0])
            return
        early = read() if operation == Operation.EXECUTE_SRB else control(operation)
        (completion,) = await ask(pair.guest_end, early)
        began = operation == Operation.BEGIN_INITIALIZATION
        assert completion.status == (NtStatus.SUCCESS if began else NtStatus.INVALID_DEVICE_STATE)
        await ask(pair.guest_end, *handshake()[began:])
        await still_works(pair)


async def test_83_beginning_twice() -> None:
    """Refused at any time after the first, state kept."""
    async with serving(disks()) as pair:
        for packet in handshake():
            await ask(pair.guest_end, packet)
            (again,) = await ask(pair.guest_end, control(Operation.BEGIN_INITIALIZATION))
            assert again.status == NtStatus.INVALID_DEVICE_STATE
        await still_works(pair)


async def test_84_and_90_numbers_out_of_the_world() -> None:
    """Version FFFFh: REVISION_MISMATCH. 65,535 subchannels: INVALID_PARAMETER."""
    async with serving(disks()) as pair:
        first, *rest = handshake()
        odd = control(Operation.QUERY_PROTOCOL_VERSION, b"\xff\xff\xff\xff")
        _, refused = await ask(pair.guest_end, first, odd)
        assert refused.status == NtStatus.REVISION_MISMATCH
        await ask(pair.guest_end, *rest)
        many = control(Operation.CREATE_SUB_CHANNELS, SubChannelCount(65535).encode())
        (refused,) = await ask(pair.guest_end, many)
        assert refused.status == NtStatus.INVALID_PARAMETER
        await still_works(pair)


def create(count: int) -> Packet:
    """CREATE_SUB_CHANNELS."""
    return control(Operation.CREATE_SUB_CHANNELS, SubChannelCount(count).encode())


async def test_90_subchannels_too_many_too_often_and_too_early() -> None:
    """Before properties: out of order. More than the limit: refused. Twice before the end: out of order; after it as
    often as the guest likes. The bus is asked for no more than the limit, ever."""
    async with serving(disks(), max_sub_channels=3) as pair:
        begin, version, properties, end = handshake()
        for packet in (begin, version, properties):
            (early,) = await ask(pair.guest_end, create(1))
            assert early.status == NtStatus.INVALID_DEVICE_STATE
            await ask(pair.guest_end, packet)
        answers = await ask(pair.guest_end, *(create(count) for count in (65535, 4, 3, 3, 1)))
        refused, done, misplaced = NtStatus.INVALID_PARAMETER, NtStatus.SUCCESS, NtStatus.INVALID_DEVICE_STATE
        assert [answer.status for answer in answers] == [refused, refused, done, misplaced, misplaced]
        await ask(pair.guest_end, end)
        answers = await ask(pair.guest_end, create(65535), create(0), create(3), create(3))
        assert [answer.status for answer in answers] == [refused, done, done, done]
        assert set(pair.sub_channels) == {3}
        await still_works(pair)


async def test_90_no_operation_of_the_primarys_works_on_a_subchannel() -> None:
    """Refused there; the primary and the subchannel go on."""
    async with serving(disks(), max_sub_channels=2) as pair:
        await ask(pair.guest_end, *handshake(), create(2))
        sub = pair.open_sub_channel(1)
        for operation in (7, 8, 9, 10, 12, 13):
            (answer,) = await ask(sub, control(operation, SubChannelCount(2).encode()))
            assert answer.status == NtStatus.INVALID_DEVICE_STATE
        assert pair.sub_channels == [2]
        (answer,) = await ask(sub, read())
        assert answer.srb.srb_status == 1
        await still_works(pair)


async def test_a_mistake_on_a_subchannel_costs_that_subchannel() -> None:
    """The others go on."""
    async with serving(disks(), max_sub_channels=2) as pair:
        await ask(pair.guest_end, *handshake(), create(2))
        bad, good = pair.open_sub_channel(1), pair.open_sub_channel(2)
        await bad.send(control(99))
        await trio.testing.wait_all_tasks_blocked()
        assert [str(fault) for fault in pair.stopped] == ["storage operation 99"]
        assert pair.vsp.statistics().channels == 2
        assert (await ask(good, read()))[0].srb.srb_status == 1
        await still_works(pair)


async def test_a_guest_that_may_have_no_more_channels_is_told() -> None:
    """INSUFFICIENT_RESOURCES, and everything goes on."""
    async with serving(disks(), max_sub_channels=2) as pair:
        await ask(pair.guest_end, *handshake())
        pair.no_room = True
        (answer,) = await ask(pair.guest_end, create(2))
        assert answer.status == NtStatus.INSUFFICIENT_RESOURCES
        await still_works(pair)


async def test_91_resets_while_much_is_under_way() -> None:
    """All succeed, all commands end, each transaction is answered once."""
    slow = SlowBackend(PATTERN)
    async with serving({0: ScsiTarget(slow)}) as pair:
        await ask(pair.guest_end, *handshake())
        packets = [read(transaction_id=index) for index in range(50)]
        packets[25:25] = [control(operation, transaction_id=100 + operation) for operation in (4, 5, 6)]
        await pair.guest_end.send_batch(packets)
        (told,) = [Completion(packet) for packet in await pair.guest_end.receive_batch()]
        assert (told.transaction_id, told.srb.srb_status) == (25, 0x84), "the first command after a reset hears of it"
        slow.finish()
        got = [Completion(packet) for packet in await pair.guest_end.receive_batch()]
        assert [completion.transaction_id for completion in got] == [*range(25), 104, 105, 106, *range(26, 50)]
        assert {completion.srb.srb_status for completion in got[:25]} == {SrbStatus.BUS_RESET}
        assert {completion.srb.srb_status for completion in got[28:]} == {SrbStatus.SUCCESS}


async def test_two_commands_may_name_the_same_page_and_the_same_transaction() -> None:
    """That is the guest's affair: both are answered."""
    async with serving(disks()) as pair:
        await ask(pair.guest_end, *handshake())
        first, second = await ask(pair.guest_end, read(), read())
        assert first.body == second.body
        (repeated,) = await ask(pair.guest_end, read(cdb=read_cdb(0, 16), pages=[3, 3], length=8192))
        assert repeated.srb.data_transfer_length == 8192


# --- hard: the channel stops


def changed(packet: Packet, *, type: int | None = None, flags: int | None = None, cut: int = 0) -> Packet:  # noqa: A002
    body = packet.body[: len(packet.body) - cut]
    return Packet(
        packet.type if type is None else type,
        packet.flags if flags is None else flags,
        packet.transaction_id,
        packet.data_offset,
        body,
    )


def bare(ranges: bytes) -> Packet:
    """A good SRB behind other ranges."""
    packet = read()
    return Packet(PacketType.GPA_DIRECT, 1, 1, len(ranges), ranges + packet.payload)


HARD = [
    pytest.param(changed(read(), flags=0), "completion", id="81 wants no completion"),
    pytest.param(changed(control(7), flags=0), "completion", id="81 control wants no completion"),
    pytest.param(changed(read(), type=PacketType.COMPLETION), "type 11", id="81 a completion from a guest"),
    pytest.param(changed(read(), type=PacketType.TRANSFER_PAGES), "type 7", id="81 transfer pages"),
    pytest.param(control(0), "operation 0", id="82 operation 0"),
    pytest.param(control(14), "operation 14", id="82 operation 14"),
    pytest.param(control(0xFFFFFFFF), "operation 4294967295", id="82 operation of all ones"),
    pytest.param(control(Operation.COMPLETE_IO), "operation 1", id="82 complete I/O"),
    pytest.param(control(7, size=8), "12 bytes needed", id="shorter than a header"),
    pytest.param(Packet(PacketType.INBAND, 1, 1, 0, b""), "12 bytes needed", id="empty"),
    pytest.param(changed(command(bytes(6)), cut=8), "64 bytes needed", id="shorter than an SRB"),
    pytest.param(changed(read(), cut=8), "64 bytes needed", id="shorter than an SRB, with data"),
    pytest.param(changed(read(), cut=60), "12 bytes needed", id="shorter than a header, with data"),
    pytest.param(read(ranges=0), "0 GPA ranges", id="59 no range"),
    pytest.param(read(ranges=2), "2 GPA ranges", id="59 two ranges"),
    pytest.param(read(ranges=0xFFFFFFFF), "4294967295 GPA ranges", id="59 4 billion ranges"),
    pytest.param(read(byte_count=4095), "transfer of 4096", id="85 fewer bytes than the transfer"),
    pytest.param(read(byte_count=0), "0 bytes", id="59 an empty range"),
    pytest.param(read(length=0, byte_count=0), "0 bytes", id="59 an empty range for no data"),
    pytest.param(read(byte_count=4097), "in 1 pages", id="59 more bytes than its pages"),
    pytest.param(read(byte_count=0xFFFFFFFF), "in 1 pages", id="59 4 GiB in a page"),
    pytest.param(read(offset=1), "in 1 pages", id="59 an offset that goes past the pages"),
    pytest.param(read(offset=4096, pages=[3, 4]), "at 4096", id="59 an offset past the first page"),
    pytest.param(read(offset=0xFFFFFFFF, pages=[3, 4]), "at 4294967295", id="59 an offset of 4 GiB"),
    pytest.param(bare(bytes(8)), "without pages", id="59 no range at all"),
    pytest.param(bare(bytes(16)), "without pages", id="59 a range header without pages"),
    pytest.param(command(READ, length=4096), "without a GPA range", id="85 a transfer without a range"),
]


@pytest.mark.parametrize(("packet", "words"), HARD)
async def test_a_packet_that_cannot_be_answered_stops_the_channel(packet: Packet, words: str) -> None:
    """What came before it is answered, it is not, and nothing after it is; one warning says why."""
    async with serving(disks()) as pair:
        await ask(pair.guest_end, *handshake())
        await pair.guest_end.send_batch([read(transaction_id=1), packet, read(transaction_id=3)])
        await pair.ended.wait()
        (fault,) = pair.stopped
        assert words in str(fault)
        answered = pair.guest_end.try_receive_batch()
        assert [completion.transaction_id for completion in answered] == [1]
        assert pair.vsp.statistics().stopped == 1
        assert pair.trace.warnings[7, "storage_stopped"] == 1


async def test_a_stopped_channel_can_be_closed_and_opened_again() -> None:
    """The guest's mistake costs it the channel, not the controller."""
    async with serving(disks()) as pair:
        await pair.guest_end.send(control(99))
        await pair.ended.wait()
        vsp = pair.vsp
    async with serving({0: await vsp.remove_disk(0)}) as again:
        await ask(again.guest_end, *handshake())
        await still_works(again)


async def test_a_channel_that_stops_waits_for_what_is_under_way() -> None:
    """Backends hold views of the guest's pages until then."""
    slow = SlowBackend(PATTERN)
    async with serving({0: ScsiTarget(slow)}) as pair:
        await ask(pair.guest_end, *handshake())
        await pair.guest_end.send_batch([read(), control(99)])
        await trio.testing.wait_all_tasks_blocked()
        assert not pair.ended.is_set()
        slow.finish()
        await pair.ended.wait()
        assert len(pair.stopped) == 1


async def test_a_corrupt_ring_stops_the_channel() -> None:
    """An index past its end."""
    async with serving(disks()) as pair:
        await ask(pair.guest_end, *handshake())
        pair.host_end._reader._control[0] = 1 << 30
        pair.host_end.wake()
        await pair.ended.wait()
        assert "index" in str(pair.stopped[0])


async def test_a_corrupt_completion_ring_stops_the_channel() -> None:
    """The guest owns the other ring's read index."""
    async with serving(disks()) as pair:
        await ask(pair.guest_end, *handshake())
        pair.host_end._writer._control[1] = 3
        await pair.guest_end.send(read())
        await pair.ended.wait()
        assert "index" in str(pair.stopped[0])


# --- anything


class Bench:
    """A session without a channel, for many packets in little time."""

    def __init__(self) -> None:
        self.platform = PlainPlatform(1 << 20)
        self.backend = MemoryBackend(64 << 10)
        self.session = StorageSession(
            Controller({0: ScsiTarget(self.backend)}, "guest"),
            self.platform.guest,
            trace=Trace(lambda: 0),
            partition_id=2,
            channel_id=1,
            counters=Counters(),
            on_late=lambda: None,
        )

    def take(self, packets: Sequence[Packet]) -> bool:
        """Whether the channel survived; checks what must always hold."""
        before = len(self.session.outbox)
        try:
            left: Sequence[Packet] = packets
            while left:
                left = self.session.take(left)
        except WireError:
            return False
        assert len(self.session.outbox) - before == len(packets), "each packet is answered once"
        assert [packet.transaction_id for packet in self.session.outbox[before:]] == [p.transaction_id for p in packets]
        for packet in self.session.outbox[before:]:
            assert packet.type == PacketType.COMPLETION
            assert PacketHeader.decode(packet.body).operation == Operation.COMPLETE_IO
        return True


words64 = st.integers(0, (1 << 64) - 1)
near_memory = st.one_of(st.integers(0, 300), words64)


def numbers(high: int) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(0, 20), st.integers(0, high))


@st.composite
def structured(draw: st.DrawFn) -> Packet:
    """Packets that get past the first checks more often than not."""
    if draw(st.booleans()):
        return control(draw(st.one_of(st.integers(0, 15), numbers(0xFFFFFFFF))), draw(st.binary(max_size=52)))
    opcode = draw(st.one_of(st.sampled_from([int(code) for code in Opcode]), st.integers(0, 255)))
    cdb = bytes([opcode]) + draw(st.one_of(st.just(bytes(15)), st.binary(min_size=15, max_size=15)))
    pages = draw(st.lists(near_memory, max_size=4))
    changes = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "offset": numbers(8192),
                "byte_count": numbers(0xFFFFFFFF),
                "ranges": numbers(0xFFFFFFFF),
                "cdb_length": st.integers(0, 255),
                "sense_length": st.integers(0, 255),
                "lun": st.integers(0, 255),
                "target": st.integers(0, 255),
                "data_in": st.integers(0, 255),
            },
        )
    )
    length = draw(st.one_of(st.just(0), st.sampled_from([512, 4096, 8192]), numbers(0xFFFFFFFF)))
    return command(cdb, pages, length, draw(st.sampled_from([0, 1, 2])), **changes)


@st.composite
def shapeless(draw: st.DrawFn) -> Packet:
    """Any packet that a ring lets through."""
    kind = draw(st.sampled_from([int(kind) for kind in PacketType]))
    body = draw(st.binary(max_size=160).map(lambda data: data[: len(data) & ~7]))
    least = 8 if kind in (PacketType.GPA_DIRECT, PacketType.TRANSFER_PAGES) else 0
    offset = draw(st.integers(0, len(body) // 8).map(lambda words: words * 8))
    if offset < least:
        body, offset = bytes(least) + body, least
    return Packet(kind, draw(st.sampled_from([0, 1, 1, 1])), draw(words64), offset, body)


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(st.one_of(structured(), shapeless()), max_size=8), st.sampled_from([None, *Version]))
@example([read(pages=[255]), read(pages=[256])], Version.WIN10)
def test_no_packets_do_harm(packets: list[Packet], version: Version | None) -> None:
    """Answered once each or stopped: no other exception, no other end, no thing left under way."""
    bench = Bench()
    if version is not None:
        assert bench.take(handshake(version))
    bench.take(packets)
    assert bench.session.in_flight == 0


class NoForms(dict[object, object]):
    """Remembers nothing, so that each packet is looked at in full."""

    def __setitem__(self, key: object, value: object) -> None:
        pass


@st.composite
def nearly_a_read(draw: st.DrawFn) -> Packet:
    """A read of one page, right or with one byte of its packet changed."""
    lba = draw(st.one_of(st.integers(0, 140), st.integers(0, 0xFFFFFFFF)))
    page = draw(st.one_of(st.integers(0, 300), words64))
    packet = read(cdb=read_cdb(lba, draw(st.sampled_from([8, 8, 1, 0, 9]))), pages=[page])
    body = bytearray(packet.body)
    if draw(st.booleans()):
        body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    return Packet(packet.type, 1, draw(words64), packet.data_offset, bytes(body))


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(nearly_a_read(), min_size=1, max_size=12))
@example([read(cdb=read_cdb(2, 1)), read(cdb=read_cdb(4, 1))])
def test_the_quick_way_of_a_read_leads_to_the_same_place(packets: list[Packet]) -> None:
    """What was checked once for reads alike is no less checked: same answers, same memory, same end."""
    quick, slow = Bench(), Bench()
    slow.session._forms = NoForms()  # type: ignore[assignment]
    for bench in (quick, slow):
        bench.backend.data[:] = PATTERN[: 64 << 10]
        assert bench.take([*handshake(), read(pages=[9])])
    assert quick.session._forms
    assert quick.take(packets) == slow.take(packets)
    assert quick.session.outbox == slow.session.outbox
    assert quick.platform.memory == slow.platform.memory


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(structured(), min_size=1, max_size=6))
def test_a_disk_that_nobody_wrote_to_is_as_it_was(packets: list[Packet]) -> None:
    """No other command than WRITE changes it."""
    bench = Bench()
    bench.take(handshake())
    harmless = [p for p in packets if not {0x2A, 0x8A} & set(p.payload[28:29])]
    bench.take(harmless)
    assert not any(bench.backend.data)


def test_a_channel_full_of_verifies_and_write_sames() -> None:
    """Each has a buffer of the host's own while it is under way: all of a channel's stay below 32 MiB together."""
    assert MAX_AT_CHANNEL * blocks._PIECE <= 32 << 20


@pytest.mark.parametrize("subchannel", [0, 1])
async def test_a_saved_session_of_another_kind_of_channel(subchannel: int) -> None:
    """A file's primary session on a subchannel, or the other way round, would ask the bus for what is not there."""
    vsp = StorageVsp({0: ScsiTarget(MemoryBackend(1 << 20))}, Guid(bytes(16)), Trace(lambda: 0), 2)
    negotiation = Negotiation()
    negotiation.state, negotiation.version, negotiation.is_primary = State.READY, 0x602, bool(subchannel)
    restored = decode_session(encode_session(negotiation, []))
    opened: Any = SimpleNamespace(restored=restored, subchannel_index=subchannel)
    channel: Any = None
    with pytest.raises(BadValue, match="another kind"):
        await vsp.serve(channel, opened)
