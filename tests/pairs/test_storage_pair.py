"""The real VSP against the real VSC, over a real channel in plain memory."""

from __future__ import annotations

import errno
import random
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from hypervisor.trace import Trace
from tests.doubles.storage import INSTANCE, PlainPlatform, SlowBackend, StoragePair, channel_pair, serving
from tests.doubles.storage_guest import control
from tests.pairs.test_vmbus_pair import RING, running
from vmbus.channel import SENT
from vmbus.ring import Packet, PacketType
from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.backends.raw_file import RawFileBackend, create_image
from vsp_vsc.storage.disk import WINDOW_BYTES
from vsp_vsc.storage.protocol import (
    HEADER_SIZE,
    VERSIONS,
    ChannelProperties,
    NtStatus,
    Operation,
    PacketHeader,
    SrbStatus,
    SubChannelCount,
    Version,
)
from vsp_vsc.storage.requests import MAX_OUTSTANDING
from vsp_vsc.storage.scsi.sense import SenseKey
from vsp_vsc.storage.scsi.target import ScsiTarget
from vsp_vsc.storage.vsc import ScsiError, Storage, StorageError, StorageGone, open_storage
from vsp_vsc.storage.vsp import StorageVsp

PATTERN = random.Random(3).randbytes(1 << 20)


def one(contents: int | bytes = PATTERN, *, read_only: bool = False) -> dict[int, ScsiTarget]:
    return {0: ScsiTarget(MemoryBackend(contents, read_only=read_only))}


# --- finding disks


async def test_a_guest_finds_its_disks() -> None:
    """All of them, by LUN, with their size, kind and protection."""
    disks = {9: ScsiTarget(MemoryBackend(4096, read_only=True)), **one()}
    async with serving(disks) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        assert [(disk.lun, disk.blocks, disk.block_size, disk.read_only) for disk in storage.disks] == [
            (0, 2048, 512, False),
            (9, 8, 512, True),
        ]
        disk = storage.disks[0]
        assert (disk.model, disk.size, disk.facts.revision) == ("PARTITA VIRTUAL DISK", 1 << 20, "1.0")
        assert repr(disk) == "<Disk 0: PARTITA VIRTUAL DISK, 2048 blocks of 512>"
        assert storage.version == Version.WIN10
        assert storage.max_transfer == 0x40000


async def test_a_controller_without_disks() -> None:
    """Is driven, and has none."""
    async with serving({}) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        assert storage.disks == []


async def test_255_disks() -> None:
    """As many as there can be."""
    disks = {lun: ScsiTarget(MemoryBackend(512 * (lun + 1), identity=str(lun))) for lun in range(255)}
    async with serving(disks) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        assert [(disk.lun, disk.blocks) for disk in storage.disks] == [(lun, lun + 1) for lun in range(255)]


async def test_starting_takes_three_round_trips() -> None:
    """One to agree, one for REPORT LUNS, one for all disks: a VM boots in milliseconds."""
    disks = {**one(), 1: ScsiTarget(MemoryBackend(512))}
    async with serving(disks) as pair, open_storage(pair.guest_end, pair.platform):
        assert pair.guest_end.statistics().packets_out == 4 + 1 + 2 * 3
        assert pair.vsp.statistics().batches == 3


@pytest.mark.parametrize("version", Version)
async def test_every_version_works(version: Version) -> None:
    """Alone, with its own SRB size."""
    async with serving(one()) as pair, open_storage(pair.guest_end, pair.platform, versions=[version]) as storage:
        assert storage.version == version
        disk = storage.disks[0]
        sent: list[Packet] = []
        pair.guest_end.on_packets = lambda direction, packets: sent.extend(packets) if direction == SENT else None
        await disk.write(0, PATTERN[512:1024])
        assert await disk.read(0) == PATTERN[512:1024]
        await disk.flush()
        assert {len(packet.payload) for packet in sent} == {48 if version < Version.WIN8 else 64}
        with pytest.raises(ScsiError, match="out of range"):
            await disk.read(5000)


async def test_an_older_version_is_agreed_on_where_the_newest_is_refused() -> None:
    """One more round trip for each that is not spoken."""
    versions = [0x0700, 0x0701, Version.WIN8]
    async with serving(one()) as pair, open_storage(pair.guest_end, pair.platform, versions=versions) as storage:  # type: ignore[arg-type]
        assert storage.version == Version.WIN8
        assert await storage.disks[0].read(0) == PATTERN[:512]


async def test_no_common_version_is_an_error() -> None:
    """That says what was tried; it is one exception and no group."""
    async with serving(one()) as pair:
        with pytest.raises(StorageError, match=r"none of the versions 7\.0"):
            async with open_storage(pair.guest_end, pair.platform, versions=[0x0700]):  # type: ignore[list-item]
                pass


# --- reading and writing


async def test_what_is_written_is_read() -> None:
    """In all forms, of all sizes: single blocks, several commands, unaligned lengths."""
    async with serving(one(8 << 20)) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        disk = storage.disks[0]
        contents = bytearray(8 << 20)
        choose = random.Random(4)
        for count in (1, 3, 8, 511, 512, 513, 1024, 2000):
            lba = choose.randrange(disk.blocks - count)
            data = choose.randbytes(count * 512)
            await disk.write(lba, data, fua=count == 3)
            contents[lba * 512 : (lba + count) * 512] = data
        assert await disk.read(0, disk.blocks) == contents
        ranges = [(choose.randrange(disk.blocks - 700), choose.randrange(700)) for _ in range(50)]
        expected = [bytes(contents[lba * 512 : (lba + count) * 512]) for lba, count in ranges]
        assert await disk.read_many(ranges) == expected
        assert await disk.read_many([]) == []
        assert await disk.read(0, 0) == b""


async def test_many_writes_at_once() -> None:
    """Each piece of each where it belongs."""
    async with serving(one(8 << 20)) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        disk = storage.disks[0]
        data = [random.Random(index).randbytes(512 * (1 + index * 97 % 900)) for index in range(8)]
        await disk.write_many([(index * 1000, piece) for index, piece in enumerate(data)])
        for index, piece in enumerate(data):
            assert await disk.read(index * 1000, len(piece) // 512) == piece


async def test_a_batch_is_one_signal_and_one_wakeup() -> None:
    """However many requests: that is what makes them cheap."""
    async with serving(one()) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        before = pair.guest_end.statistics(), pair.host_end.statistics()
        await storage.disks[0].read_many([(index * 8, 8) for index in range(32)])
        after = pair.guest_end.statistics(), pair.host_end.statistics()
        assert [new.signals_sent - old.signals_sent for new, old in zip(after, before, strict=True)] == [1, 1]
        assert [new.packets_out - old.packets_out for new, old in zip(after, before, strict=True)] == [32, 32]


async def test_a_thin_disk_takes_back_what_a_guest_discards(tmp_path: Path) -> None:
    """Reads zeros there; the image has the room again. More than one UNMAP takes goes in several."""
    path = tmp_path / "disk.raw"
    path.write_bytes(PATTERN)
    backend = RawFileBackend.open(path)
    disks = {0: ScsiTarget(backend), 1: ScsiTarget(MemoryBackend(512, read_only=True))}
    async with serving(disks) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        disk, thick = storage.disks
        if not disk.facts.thin:
            pytest.skip("the file system takes no holes")
        await disk.discard(256, 1024)
        await disk.discard(0, 0)
        await disk.flush()
        expected = PATTERN[: 256 * 512] + bytes(1024 * 512) + PATTERN[1280 * 512 :]
        assert await disk.read(0, disk.blocks) == expected
        assert path.stat().st_blocks * 512 <= (1 << 20) - 1024 * 512 + 65536
        disk._most_discarded = 100
        await disk.discard(0, disk.blocks)
        assert not any(await disk.read(0, disk.blocks))
        assert backend.statistics().discards == 1 + -(-disk.blocks // 100)
        with pytest.raises(ScsiError, match="out of range"):
            await disk.discard(disk.blocks, 1)
        with pytest.raises(ValueError, match="-1 blocks"):
            await disk.discard(0, -1)
        assert not thick.facts.thin
        with pytest.raises(ScsiError, match="write protected"):
            await thick.discard(0, 1)
    backend.close()


async def test_buffers_without_a_copy() -> None:
    """The host fills the guest's pages; parts of a buffer, several buffers, large ones."""
    async with serving(one()) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        disk = storage.disks[0]
        with disk.buffer(8192) as first, disk.buffer(8192) as second, disk.buffer(600 << 10) as large:
            await disk.read_into_many([(0, first), (16, second)])
            assert bytes(first.view) + bytes(second.view) == PATTERN[:16384]
            await disk.read_into(1, first, count=2, offset=1536)
            assert bytes(first.view) == PATTERN[:1536] + PATTERN[512:1536] + PATTERN[2560:8192]
            await disk.read_into(3, large)
            assert bytes(large.view) == PATTERN[1536 : 1536 + large.size]
            second.view[:] = b"s" * 8192
            await disk.write_from(100, second, count=1, offset=4096, fua=True)
            assert await disk.read(99, 3) == PATTERN[99 * 512 : 100 * 512] + b"s" * 512 + PATTERN[101 * 512 : 102 * 512]
            await disk.write_from_many([(0, first), (16, second)])
            assert await disk.read(0, 32) == bytes(first.view) + bytes(second.view)
            with pytest.raises(ValueError, match="not within a buffer of 8192"):
                await disk.read_into(0, first, count=17)


async def test_blocks_beyond_32_bits() -> None:
    """READ(16) and WRITE(16) take over."""
    backend = SlowBackend(1 << 20)
    target = ScsiTarget(backend)
    target.blocks = 1 << 34
    offsets: list[int] = []
    backend.submit = lambda job: (offsets.append(job.offset), job.done(None))  # type: ignore[method-assign, assignment]
    async with serving({0: target}) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        disk = storage.disks[0]
        assert disk.blocks == 1 << 34
        await disk.write((1 << 33) + 5, bytes(512))
        await disk.read(0xFFFFFFFF, 1)
        await disk.read(0xFFFFFFFE, 1)
        assert offsets == [((1 << 33) + 5) * 512, 0xFFFFFFFF * 512, 0xFFFFFFFE * 512]


async def test_requests_of_the_same_size_keep_their_flags() -> None:
    """Forms are reused; what makes a write durable is part of the form."""
    slow = SlowBackend(PATTERN)
    async with serving({0: ScsiTarget(slow)}) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        disk = storage.disks[0]
        async with trio.open_nursery() as nursery:
            for fua in (False, True, False):
                nursery.start_soon(partial(disk.write, 0, bytes(512), fua=fua))
                await trio.testing.wait_all_tasks_blocked()
            slow.finish()
        assert slow.log == ["write", "write durable", "write"]


async def test_arguments_that_cannot_be() -> None:
    """Are told to the caller, not to the host."""
    async with serving(one()) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        disk = storage.disks[0]
        with pytest.raises(ValueError, match="100 bytes are not whole blocks of 512"):
            await disk.write(0, bytes(100))
        with disk.buffer(512) as buffer:
            for lba in (-1, 1 << 64):
                message = f"1 blocks at block {lba}"
                with pytest.raises(ValueError, match=message):
                    await disk.read(lba)
                with pytest.raises(ValueError, match=message):
                    await disk.write(lba, bytes(512))
                with pytest.raises(ValueError, match=message):
                    await disk.read_into(lba, buffer, count=1)
                with pytest.raises(ValueError, match=message):
                    await disk.write_from(lba, buffer, count=1)
            with pytest.raises(ValueError, match="-1 blocks at block 0"):
                await disk.read_into(0, buffer, count=-1)
        with pytest.raises(ScsiError, match="out of range"):
            await disk.read((1 << 64) - 1)


# --- failures


async def test_a_refusal_in_words() -> None:
    """Disk, command and reason; the sense data for programs. It is an OSError to those who know no SCSI."""
    async with serving(one(read_only=True)) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        disk = storage.disks[0]
        with pytest.raises(
            OSError, match=r"disk 0: SCSI WRITE\(10\) lba=3 blocks=1: DATA PROTECT, write protected"
        ) as caught:
            await disk.write(3, bytes(512))
        assert isinstance(caught.value, ScsiError)
        assert caught.value.sense is not None
        assert caught.value.sense.key == SenseKey.DATA_PROTECT
        assert (caught.value.srb_status, caught.value.scsi_status, caught.value.lun) == (SrbStatus.ERROR, 2, 0)
        with pytest.raises(ScsiError, match=r"READ\(10\) lba=2048 blocks=1: ILLEGAL REQUEST.*at block 2048"):
            await disk.read_many([(0, 1), (2048, 1), (1, 1)])
        assert await disk.read(0) == PATTERN[:512]


async def test_a_hosts_medium_error_reaches_the_guest() -> None:
    """As a MEDIUM ERROR of that command."""
    slow = SlowBackend(PATTERN, cached=True)
    async with serving({0: ScsiTarget(slow)}) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        slow.error = errno.EIO
        with pytest.raises(ScsiError, match="MEDIUM ERROR, unrecovered read error"):
            await storage.disks[0].read(0)
        slow.error = None
        assert await storage.disks[0].read(0) == PATTERN[:512]


async def test_the_host_closes_the_channel() -> None:
    """Whoever waits hears of it, and so does whoever asks later."""
    slow = SlowBackend(PATTERN)
    async with serving({0: ScsiTarget(slow)}) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        outcomes: list[str] = []

        async def read() -> None:
            with pytest.raises(StorageGone, match="closed the channel"):
                await storage.disks[0].read(0)
            outcomes.append("gone")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            pair.guest_end.close(by_peer=True)
        assert outcomes == ["gone", "gone"]
        with pytest.raises(StorageGone):
            await storage.disks[0].flush()
        pair.host_end.close()
        slow.finish()


async def scripted_host(answers: list[bytes | Packet], *, until: str) -> str:
    """Drive a VSC against a host that answers each packet with the next of these; returns what it raises."""
    host, guest = channel_pair()
    platform = PlainPlatform()
    raised: list[str] = []

    async def drive() -> None:
        try:
            async with open_storage(guest, platform):
                raised.append("nothing")
        except StorageError as error:
            raised.append(str(error))
        host.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drive)
        script = iter(answers)
        try:
            while True:
                for request in await host.receive_batch():
                    answer = next(script, None)
                    if isinstance(answer, bytes):
                        answer = Packet(PacketType.COMPLETION, 0, request.transaction_id, 0, answer)
                    if answer is not None:
                        await host.send(answer)
        except (trio.ClosedResourceError, trio.EndOfChannel):
            pass
    assert until in raised[0]
    return raised[0]


async def test_a_host_that_refuses_to_begin() -> None:
    """Which step failed and how."""
    refused = PacketHeader(Operation.COMPLETE_IO, 0, NtStatus.UNSUCCESSFUL).encode().ljust(64, b"\0")
    good = PacketHeader(Operation.COMPLETE_IO).encode().ljust(64, b"\0")
    await scripted_host([refused] * 4, until="BEGIN_INITIALIZATION with status 0xc0000001")
    await scripted_host([good, refused, good, good], until="QUERY_PROTOCOL_VERSION with status")
    await scripted_host([good, good, good, refused], until="END_INITIALIZATION with status")
    await scripted_host([good] * 4, until="moves 0 bytes at most")


async def test_a_host_that_answers_nonsense() -> None:
    """A completion too short to be one ends the driver, not the guest."""
    good = PacketHeader(Operation.COMPLETE_IO).encode().ljust(64, b"\0")
    limits = good[:24] + (0x40000).to_bytes(4, "little") + good[28:]
    await scripted_host([good, good, limits, good, bytes(8)], until="corrupt")


async def test_what_nobody_asked_for_is_counted_and_dropped() -> None:
    """Completions of unknown transactions; and the news that disks came or went."""
    async with serving(one()) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        body = PacketHeader(Operation.COMPLETE_IO).encode().ljust(64, b"\0")
        for transaction_id in (0, 5, 1 << 60):
            await pair.host_end.send(Packet(PacketType.COMPLETION, 0, transaction_id, 0, body))
        news = PacketHeader(Operation.ENUMERATE_BUS).encode()
        await pair.host_end.send(Packet(PacketType.INBAND, 0, 0, 0, news))
        assert await storage.disks[0].read(0) == PATTERN[:512]
        assert (storage.transactions.unexpected, storage.transactions.bus_changes) == (3, 1)


# --- bounds, cancellation


async def test_more_requests_than_transactions() -> None:
    """They wait in the guest; several tasks share."""
    async with serving(one()) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        disk = storage.disks[0]
        ranges = [(index % 2048, 1) for index in range(MAX_OUTSTANDING * 3 + 5)]

        async def read() -> None:
            got = await disk.read_many(ranges)
            assert got == [PATTERN[lba * 512 : (lba + 1) * 512] for lba, _ in ranges]

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(read)


async def test_rings_too_small_for_what_is_asked() -> None:
    """Everyone waits for room, nobody for ever."""
    async with serving(one(), ring_bytes=8192) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        disk = storage.disks[0]

        async def read(seed: int) -> None:
            choose = random.Random(seed)
            ranges = [(choose.randrange(1900), choose.randrange(1, 140)) for _ in range(60)]
            got = await disk.read_many(ranges)
            assert got == [PATTERN[lba * 512 : (lba + count) * 512] for lba, count in ranges]

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for seed in range(5):
                    nursery.start_soon(read, seed)


async def test_a_cancelled_reads_pages_serve_nothing_else_until_the_host_has_answered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The host may still write to them."""
    slow = SlowBackend(PATTERN)
    async with serving({0: ScsiTarget(slow)}) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        disk = storage.disks[0]
        with trio.move_on_after(1):
            await disk.read_many([(0, 8), (8, 8)])
        assert len(slow.jobs) == 2
        taken = [disk.buffer(8192) for _ in range(8)]
        addresses = {gpn for buffer in taken for gpn in buffer.gpns}
        slow.finish()
        await trio.testing.wait_all_tasks_blocked()
        for buffer in taken:
            assert bytes(buffer.view) == bytes(8192), "the late data went elsewhere"
        again = disk.buffer(8192)
        assert not set(again.gpns) & addresses
        assert bytes(again.view) == PATTERN[:8192], "now that it is answered, the buffer is used again"


async def test_a_buffer_of_a_cancelled_read_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    """Before it is used for the next: else late data would land in it."""
    slow = SlowBackend(PATTERN)
    async with serving({0: ScsiTarget(slow)}) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        disk = storage.disks[0]
        buffer = disk.buffer(4096)
        with trio.move_on_after(1):
            await disk.read_into(0, buffer)
        assert (buffer.in_flight, buffer.abandoned) == (1, True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.read_into, 16, buffer)
            await trio.testing.wait_all_tasks_blocked()
            assert len(slow.jobs) == 1
            slow.finish()
            await trio.testing.wait_all_tasks_blocked()
            assert len(slow.jobs) == 1
            slow.finish()
        assert bytes(buffer.view) == PATTERN[8192 : 8192 + 4096]


async def test_cancelled_while_the_ring_is_full_nothing_is_lost(autojump_clock: trio.testing.MockClock) -> None:
    """Transaction IDs of what was never sent come back, those of what was sent with their completions."""
    slow = SlowBackend(PATTERN)
    async with (
        serving({0: ScsiTarget(slow)}, ring_bytes=8192) as pair,
        open_storage(pair.guest_end, pair.platform) as storage,
    ):
        disk = storage.disks[0]
        for _ in range(3):
            with trio.move_on_after(1):
                await disk.read_many([(index, 1) for index in range(MAX_OUTSTANDING)])
            await trio.testing.wait_all_tasks_blocked()
            while slow.finish():
                await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await disk.read_many([(index, 1) for index in range(MAX_OUTSTANDING)])
        assert len(storage.transactions._free) > MAX_OUTSTANDING // 2, "what had no room is not under way"
        await trio.testing.wait_all_tasks_blocked()
        slow.finish()
        slow.cached = True
        assert await disk.read_many([(index, 1) for index in range(MAX_OUTSTANDING)])
        assert storage.transactions.unexpected == 0
        assert sorted(storage.transactions._free) == list(range(1, MAX_OUTSTANDING + 1))


async def test_all_pages_come_back_in_the_end() -> None:
    """When the driver ends the guest has its memory again."""
    async with serving(one()) as pair:
        before = pair.platform.free_count
        async with open_storage(pair.guest_end, pair.platform) as storage:
            await storage.disks[0].read_many([(0, 8), (1, 300), (7, 2000)])
            await storage.disks[0].write(0, bytes(1 << 19))
            assert pair.platform.free_count < before
        assert pair.platform.free_count == before


async def test_reads_larger_than_a_window() -> None:
    """Go in turns, so that a guest of 16 MiB can read them."""
    size = 3 * WINDOW_BYTES + 512
    async with serving(one(size)) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        assert await storage.disks[0].read(0, size // 512) == bytes(size)


async def test_the_bodys_own_exception_comes_out_as_it_is() -> None:
    """No group around it: callers catch what the body raised."""
    async with serving(one()) as pair:
        with pytest.raises(KeyError, match="mine"):
            async with open_storage(pair.guest_end, pair.platform):
                raise KeyError("mine")


# --- on real files


@pytest.mark.parametrize("inline", [False, True], ids=["worker", "inline"])
async def test_on_an_image(tmp_path: Path, inline: bool) -> None:
    """Guest to file and back; the flush is done when it says so."""
    path = tmp_path / "disk.raw"
    create_image(path, 4 << 20)
    backend = RawFileBackend.open(path, inline=inline)
    try:
        async with serving({0: ScsiTarget(backend)}) as pair, open_storage(pair.guest_end, pair.platform) as storage:
            disk = storage.disks[0]
            await disk.write_many([(index * 64, PATTERN[index << 15 : (index + 1) << 15]) for index in range(32)])
            await disk.flush()
            await disk.write(8000, b"F" * 512, fua=True)
            assert await disk.read(0, 2048) == PATTERN
            check_file(pair, path)
    finally:
        backend.close()
    assert backend.statistics().flushes == 2


def check_file(pair: StoragePair, path: Path) -> None:
    contents = path.read_bytes()
    assert contents[: 1 << 20] == PATTERN
    assert contents[8000 * 512 : 8001 * 512] == b"F" * 512
    assert pair.vsp.statistics().refused == 0


# --- subchannels, over the real bus


async def test_subchannels_from_the_question_to_the_disk() -> None:
    """Asked for on the primary, offered hot, opened like any channel, each with a driver of its own on the same disk;
    closing the primary withdraws them, and the next opening may have them again."""
    disk = MemoryBackend(1 << 20)
    vsp = StorageVsp({0: ScsiTarget(disk)}, INSTANCE, Trace(lambda: 0), 2, max_sub_channels=2)
    async with running(vsp) as (loop, server, client):
        (offer,) = client.offers
        for _ in range(2):
            channel = await client.open(offer, outgoing_bytes=RING, incoming_bytes=RING)
            async with open_storage(channel, loop.platform) as storage:
                create = control(Operation.CREATE_SUB_CHANNELS, SubChannelCount(2).encode()).payload
                batch = await storage.transactions.run([(create, 0, None)], raw=True)
                assert batch.answers is not None
                assert PacketHeader.decode(batch.answers[0]).status == NtStatus.SUCCESS
                await trio.testing.wait_all_tasks_blocked()
                more = [one for one in client.offers if one.subchannel_index]
                assert [(one.subchannel_index, one.instance) for one in more] == [(1, INSTANCE), (2, INSTANCE)]
                async with trio.open_nursery() as nursery:
                    drivers = [storage]
                    for one in more:
                        sub = await client.open(one, outgoing_bytes=RING, incoming_bytes=RING)
                        driver = Storage(sub, loop.platform, VERSIONS)
                        nursery.start_soon(driver.transactions.receive)
                        await driver.rescan()
                        drivers.append(driver)
                    assert vsp.statistics().channels == 3
                    for index, driver in enumerate(drivers):
                        nursery.start_soon(driver.disks[0].write, index * 64, bytes([index + 1]) * 64 * 512)
                    await trio.testing.wait_all_tasks_blocked()
                    for index, driver in enumerate(drivers):
                        expected = bytes([(index + 1) % 3 + 1]) * 64 * 512
                        assert await driver.disks[0].read((index + 1) % 3 * 64, 64) == expected
                    nursery.cancel_scope.cancel()
                for driver in drivers[1:]:
                    driver.pool.close()
            await client.close(channel)
            await trio.testing.wait_all_tasks_blocked()
            assert [one.subchannel_index for one in client.offers] == [0]
            assert (vsp.statistics().channels, len(server.channels)) == (0, 1)


async def test_a_guest_with_one_channel_is_not_offered_more() -> None:
    """Its properties say how many it might have; without a question there are none."""
    vsp = StorageVsp(one(), INSTANCE, Trace(lambda: 0), 2, max_sub_channels=3)
    async with running(vsp) as (loop, server, client):
        channel = await client.open(client.offers[0], outgoing_bytes=RING, incoming_bytes=RING)
        answers: list[Packet] = []
        channel.on_packets = lambda _direction, packets: answers.extend(packets)
        async with open_storage(channel, loop.platform) as storage:
            assert await storage.disks[0].read(0) == PATTERN[:512]
        properties = [p.payload for p in answers if p.type == PacketType.COMPLETION][2]
        assert ChannelProperties.decode(properties, HEADER_SIZE).max_channel_count == 3
        assert len(server.channels) == 1
