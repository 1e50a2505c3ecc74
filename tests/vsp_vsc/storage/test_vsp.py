"""The storage VSP, packet by packet: answers, sizes, slow disks, a guest that does not read."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Trace
from tests.doubles.storage import INSTANCE, SlowBackend, StoragePair, serving
from tests.doubles.storage_guest import ask, command, control, handshake
from tests.spec.test_storage_packets import LINUX_READ, LINUX_READ_RANGE
from vmbus.channel import SENT
from vmbus.ring import Packet, PacketType
from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.protocol import MAX_AT_CHANNEL, NtStatus, SrbStatus, Version
from vsp_vsc.storage.scsi.cdb import Direction, inquiry_cdb, read_cdb, report_luns_cdb, write_cdb
from vsp_vsc.storage.scsi.sense import decode_sense
from vsp_vsc.storage.scsi.target import ScsiTarget
from vsp_vsc.storage.session import TURN_BYTES
from vsp_vsc.storage.vsp import StorageVsp

PATTERN = bytes(index * 11 & 0xFF for index in range(256)) * 4096


def disk(contents: int | bytes = PATTERN) -> ScsiTarget:
    return ScsiTarget(MemoryBackend(contents))


async def started(pair: StoragePair, version: int = Version.WIN10) -> None:
    for completion in await ask(pair.guest_end, *handshake(version)):
        assert completion.status == NtStatus.SUCCESS


def page(pair: StoragePair, gpn: int, size: int = 4096) -> bytes:
    return bytes(pair.platform.memory[gpn << 12 : (gpn << 12) + size])


async def test_the_drivers_own_read_is_served() -> None:
    """Bytes that Linux's storvsc sent, at the page it named."""
    async with serving({0: disk(4 << 20)}) as pair:
        await started(pair)
        body = bytearray(bytes.fromhex(LINUX_READ_RANGE + LINUX_READ))
        body[16:24] = (5).to_bytes(8, "little")  # its page is beyond our small guest
        (completion,) = await ask(pair.guest_end, Packet(PacketType.GPA_DIRECT, 1, 6, 24, bytes(body)))
        assert completion.transaction_id == 6
        assert (completion.srb.srb_status, completion.srb.data_transfer_length) == (SrbStatus.SUCCESS, 4096)


async def test_a_completion_byte_by_byte() -> None:
    """Operation 1, status 0, SRB length, status, CDB and sense lengths, bytes moved; else zero. 64 bytes."""
    async with serving({0: disk()}) as pair:
        await started(pair)
        (completion,) = await ask(pair.guest_end, command(read_cdb(8, 8), [9], 4096))
        expected = "010000000000000000000000" + "34000100000000001014000000100000" + "00" * 36
        assert completion.body.hex() == expected
        assert page(pair, 9) == PATTERN[4096:8192]


@pytest.mark.parametrize(("sent", "answered"), [(12, 16), (16, 16), (36, 40), (48, 48), (64, 64), (80, 64)])
async def test_a_completion_is_as_long_as_its_request_up_to_a_packet(sent: int, answered: int) -> None:
    """The ring rounds up to 8; Windows checks the size, Linux sends short packets while initializing."""
    async with serving() as pair:
        (completion,) = await ask(pair.guest_end, control(7, size=sent))
        assert len(completion.body) == answered


async def test_an_answer_longer_than_its_request_is_cut() -> None:
    """The limits of a short QUERY_PROPERTIES, the SRB of a guest that speaks 4.2."""
    async with serving({0: disk()}) as pair:
        begin, query, _, end = handshake(Version.WIN7)
        *_, properties = await ask(pair.guest_end, begin, query, control(10, size=16))
        assert len(properties.body) == 16
        _, absent = await ask(pair.guest_end, end, command(bytes(6), lun=9, version=Version.WIN7))
        assert (len(absent.body), absent.body[14]) == (48, SrbStatus.INVALID_LUN)


@pytest.mark.parametrize("version", Version)
async def test_srbs_in_every_version(version: Version) -> None:
    """36-byte SRBs before Windows 8, 52 bytes since."""
    async with serving({0: disk()}) as pair:
        await started(pair, version)
        request = command(read_cdb(0, 1), [3], 512, version=version)
        (completion,) = await ask(pair.guest_end, request)
        assert len(completion.body) == len(request.payload) == (48 if version < Version.WIN8 else 64)
        assert completion.body[12] == len(request.payload) - 12
        assert completion.body[14] == SrbStatus.SUCCESS
        assert page(pair, 3, 512) == PATTERN[:512]


async def test_data_goes_into_scattered_pages_at_an_offset() -> None:
    """Pages in any order, the range beginning within the first."""
    async with serving({0: disk()}) as pair:
        await started(pair)
        (completion,) = await ask(pair.guest_end, command(read_cdb(0, 16), [20, 7, 11], 8192, offset=100))
        assert completion.srb.data_transfer_length == 8192
        got = page(pair, 20)[100:] + page(pair, 7) + page(pair, 11)[:100]
        assert got == PATTERN[:8192]
        assert page(pair, 11)[100:] == bytes(3996), "not a byte more"


async def test_writes_come_from_the_guests_pages() -> None:
    """And are answered with what was moved."""
    async with serving({0: disk(1 << 20)}) as pair:
        await started(pair)
        pair.platform.memory[30 << 12 : 31 << 12] = PATTERN[:4096]
        write = command(write_cdb(2, 8), [30], 4096, Direction.OUT, transaction_id=1)
        read = command(read_cdb(2, 8), [31], 4096, transaction_id=2)
        written, got = await ask(pair.guest_end, write, read)
        assert (written.srb.srb_status, written.srb.data_transfer_length) == (SrbStatus.SUCCESS, 4096)
        assert page(pair, 31) == PATTERN[:4096]
        assert got.transaction_id == 2


async def test_sense_data_comes_with_the_autosense_bit() -> None:
    """SRB status 86h for a command that cannot be, SCSI status 2, 18 bytes of sense where the CDB was, NT status of a
    failed device."""
    async with serving({0: disk()}) as pair:
        await started(pair)
        (completion,) = await ask(pair.guest_end, command(read_cdb(1 << 20, 1), [3], 512))
        assert completion.status == NtStatus.IO_DEVICE_ERROR
        assert (completion.srb.srb_status, completion.srb.scsi_status) == (0x86, 2)
        assert completion.srb.sense_length == 20
        assert "out of range" in decode_sense(completion.srb.cdb_or_sense).words


async def test_units_that_are_not_there() -> None:
    """INQUIRY says so in its data, REPORT LUNS answers anywhere, all else is INVALID_LUN."""
    async with serving({0: disk(), 5: disk()}) as pair:
        await started(pair)
        for place in ({"lun": 1}, {"target": 1}, {"path": 3}, {"lun": 254, "target": 255}):
            inquiry, read, ready, page_83 = await ask(
                pair.guest_end,
                command(inquiry_cdb(36), [3], 36, **place),
                command(read_cdb(0, 1), [4], 512, **place),
                command(bytes(6), **place),
                command(inquiry_cdb(36, 0x83), [3], 36, **place),
            )
            assert inquiry.srb.srb_status == SrbStatus.SUCCESS
            assert page(pair, 3, 1) == b"\x7f"
            for completion in (read, ready):
                assert (completion.status, completion.srb.srb_status) == (NtStatus.DEVICE_DOES_NOT_EXIST, 0x20)
            assert page_83.srb.srb_status == 0x86
        for place, luns in (({"lun": 77}, [0, 5]), ({"target": 1}, [])):
            (report,) = await ask(pair.guest_end, command(report_luns_cdb(64), [6], 64, **place))
            assert report.srb.data_transfer_length == 8 + 8 * len(luns)
            listed = page(pair, 6, report.srb.data_transfer_length)
            assert [listed[8 + 8 * index + 1] for index in range(len(luns))] == luns


async def test_report_luns_as_other_hosts_take_it() -> None:
    """No allocation length, in a CDB that is said to be shorter than it is: the buffer counts, and all 16 bytes."""
    async with serving({0: disk(), 5: disk()}) as pair:
        await started(pair)
        (report,) = await ask(pair.guest_end, command(bytes((0xA0,)).ljust(16, b"\0"), [6], 4096, cdb_length=10))
        assert (report.srb.srb_status, report.srb.data_transfer_length) == (SrbStatus.SUCCESS, 24)
        assert page(pair, 6, 24) == bytes((0, 0, 0, 16)) + bytes(12 + 1) + bytes((5,)) + bytes(6)


# --- slow disks, a slow guest


async def test_slow_commands_hold_up_nobody() -> None:
    """What can be answered is answered; late completions come together, with one signal."""
    slow = SlowBackend(PATTERN)
    async with serving({0: ScsiTarget(slow), 1: disk()}) as pair:
        await started(pair)
        requests = [command(read_cdb(index, 1), [10 + index], 512, transaction_id=index + 1) for index in range(8)]
        await pair.guest_end.send_batch([*requests, command(read_cdb(0, 1), [3], 512, lun=1, transaction_id=99)])
        (fast,) = await pair.guest_end.receive_batch()
        assert fast.transaction_id == 99
        assert pair.vsp.statistics().in_flight == 8
        signals = pair.host_end.statistics().signals_sent
        assert slow.finish() == 8
        late = await pair.guest_end.receive_batch()
        assert [packet.transaction_id for packet in late] == list(range(1, 9))
        assert pair.host_end.statistics().signals_sent == signals + 1
        assert page(pair, 17, 512) == PATTERN[7 * 512 : 8 * 512]
        assert (pair.vsp.statistics().in_flight, pair.vsp.statistics().waited) == (0, 8)


async def test_commands_under_way_are_bounded() -> None:
    """Past the bound the guest's own ring fills, and nothing is lost."""
    slow = SlowBackend(1 << 20)
    count = MAX_AT_CHANNEL + 200
    async with serving({0: ScsiTarget(slow)}) as pair:
        await started(pair)
        requests = [command(read_cdb(0, 1), [3], 512, transaction_id=index) for index in range(count)]
        await pair.guest_end.send_batch(requests)
        await trio.testing.wait_all_tasks_blocked()
        assert MAX_AT_CHANNEL <= len(slow.jobs) < MAX_AT_CHANNEL + 64
        got: list[int] = []
        while len(got) < count:
            slow.finish(100)
            got += [packet.transaction_id for packet in await pair.guest_end.receive_batch(100)]
        assert sorted(got) == list(range(count))


async def test_room_for_one_command_more_is_used() -> None:
    """Where one of as many as there may be ends, the next is taken: once the host looked before the answer had gone.

    It then waited for another end. Whether it did hung on which task Trio ran first, so this is tried several times.
    """
    slow = SlowBackend(1 << 20)
    requests = [command(read_cdb(0, 1), [3], 512, transaction_id=index) for index in range(MAX_AT_CHANNEL)]
    async with serving({0: ScsiTarget(slow)}) as pair:
        await started(pair)
        await pair.guest_end.send_batch(requests)
        await trio.testing.wait_all_tasks_blocked()
        for index in range(20):
            await pair.guest_end.send(requests[index])
            await trio.testing.wait_all_tasks_blocked()
            assert len(slow.jobs) == MAX_AT_CHANNEL
            slow.finish(1)
            await trio.testing.wait_all_tasks_blocked()
            assert len(slow.jobs) == MAX_AT_CHANNEL
            await pair.guest_end.receive_batch()
        slow.finish()


async def test_a_guest_that_reads_no_completions_stops_only_itself() -> None:
    """Completions wait in bounded number, then the VSP takes no more; when the guest reads, all goes on."""
    async with serving({0: disk()}, ring_bytes=8192) as pair:
        await started(pair)
        count = 1000
        requests = [command(bytes(6), transaction_id=index + 1) for index in range(count)]
        sent = 0
        while True:
            now = pair.guest_end.try_send_batch(requests[sent:])
            sent += now
            await trio.testing.wait_all_tasks_blocked()
            if not now:
                break
        assert sent < MAX_AT_CHANNEL + 64 + 2 * (4096 // 88)
        got: list[int] = []

        async def send_rest() -> None:
            await pair.guest_end.send_batch(requests[sent:])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_rest)
            while len(got) < count:
                got += [packet.transaction_id for packet in await pair.guest_end.receive_batch()]
        assert sorted(got) == list(range(1, count + 1))


async def test_a_guest_with_much_to_read_lets_others_run() -> None:
    """After `TURN_BYTES` the VSP sends what it has and yields; what it left for later is counted once."""
    async with serving({0: disk(4 << 20)}) as pair:
        await started(pair)
        before = pair.vsp.statistics().requests
        size = 256 << 10
        count = TURN_BYTES // size + 3
        pages = list(range(64, 128))
        requests = [command(read_cdb(0, 512), pages, size, transaction_id=index) for index in range(count)]
        turns: list[int] = []
        pair.host_end.on_packets = lambda way, packets: turns.append(len(packets)) if way == SENT else None
        await pair.guest_end.send_batch(requests)
        await trio.testing.wait_all_tasks_blocked()
        assert turns == [TURN_BYTES // size, 3]
        assert pair.vsp.statistics().requests - before == count


async def test_a_close_waits_until_backends_have_let_go_of_the_guests_pages() -> None:
    """What the guest does with them next must not be overwritten."""
    slow = SlowBackend(1 << 20)
    async with serving({0: ScsiTarget(slow)}) as pair:
        await started(pair)
        await pair.guest_end.send_batch([command(read_cdb(0, 1), [3], 512)])
        await trio.testing.wait_all_tasks_blocked()
        pair.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not pair.ended.is_set()
        slow.finish()
        await pair.ended.wait()
        assert pair.vsp.statistics().state == "closed"


async def test_a_close_does_not_wait_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    """A disk that never answers keeps its pages, not the VM."""
    slow = SlowBackend(1 << 20)
    async with serving({0: ScsiTarget(slow)}) as pair:
        await started(pair)
        await pair.guest_end.send_batch([command(read_cdb(0, 1), [3], 512)])
        await trio.testing.wait_all_tasks_blocked()
        pair.scope.cancel()
        with trio.fail_after(6):
            await pair.ended.wait()
        slow.finish()


async def test_the_channel_may_be_opened_again() -> None:
    """As after a kexec: the state begins anew, the counters go on."""
    vsp: StorageVsp
    async with serving({0: disk()}) as pair:
        await started(pair)
        vsp = pair.vsp
        assert (vsp.statistics().state, vsp.statistics().version) == ("ready", Version.WIN10)
        pair.host_end.close(by_peer=True)
        await pair.ended.wait()
        assert pair.stopped == []
    assert vsp.statistics().requests == 4
    assert vsp.statistics().state == "closed"


# --- watching


async def test_what_is_asked_and_answered_can_be_watched() -> None:
    """Stable events with words for people."""
    async with serving({0: disk()}, listen=True) as pair:
        await started(pair)
        await ask(
            pair.guest_end,
            command(read_cdb(0, 8), [3], 4096),
            command(read_cdb(8, 8), [4], 4096),
            command(read_cdb(1 << 20, 8), [3], 4096),
            command(bytes(6), lun=3),
        )
        assert {(event.layer, event.partition, event.channel) for event in pair.events} == {(Layer.DEVICE, 7, 5)}
        assert [(event.event, event.direction, event.words) for event in pair.events] == [
            ("storage_control", TO_ROOT, "BEGIN_INITIALIZATION"),
            ("storage_control", TO_ROOT, "QUERY_PROTOCOL_VERSION 6.2"),
            ("storage_control", TO_ROOT, "QUERY_PROPERTIES"),
            ("storage_control", TO_ROOT, "END_INITIALIZATION"),
            ("scsi_command", TO_ROOT, "SCSI READ(10) lba=0 blocks=8"),
            ("scsi_result", TO_CHILD, "good"),
            ("scsi_command", TO_ROOT, "SCSI READ(10) lba=8 blocks=8"),
            ("scsi_result", TO_CHILD, "good"),
            ("scsi_command", TO_ROOT, "SCSI READ(10) lba=1048576 blocks=8"),
            (
                "scsi_result",
                TO_CHILD,
                "ILLEGAL REQUEST, logical block address out of range (21h/00h) at block 1048576",
            ),
            ("scsi_command", TO_ROOT, "SCSI TEST UNIT READY"),
            ("srb_ended", TO_CHILD, "INVALID LUN"),
        ]


def test_luns_are_bounded() -> None:
    """An SRB names a unit in one byte, and Linux looks at 255 of them."""
    with pytest.raises(ValueError, match="LUNs are 0 to 254"):
        StorageVsp({255: disk()}, INSTANCE, Trace(lambda: 0), 1)
