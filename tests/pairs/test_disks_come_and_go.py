"""Disks that come, go and grow under the real VSC; versions, one by one; full host disks; drives and their discs."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.doubles.storage import SlowBackend, StoragePair, serving
from tests.doubles.storage_guest import Completion, ask, command, handshake
from vmbus.channel import SENT
from vmbus.ring import Packet, PacketType
from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.backends.raw_file import RawFileBackend, create_image
from vsp_vsc.storage.protocol import MAX_AT_DISK, Operation, PacketHeader, SrbStatus, Version
from vsp_vsc.storage.scsi.cdb import ScsiStatus, read_cdb, report_luns_cdb
from vsp_vsc.storage.scsi.dvd import DvdDrive
from vsp_vsc.storage.scsi.sense import Reason
from vsp_vsc.storage.scsi.target import ScsiTarget
from vsp_vsc.storage.vsc import ChangeKind, DiskGone, DiskKind, ScsiError, Storage, open_storage

MIB = 1 << 20
NO_ENUMERATE_BUS = Version.WIN6


def memory(size: int = MIB, **settings: object) -> ScsiTarget:
    return ScsiTarget(MemoryBackend(size), **settings)  # type: ignore[arg-type]


def listen(storage: Storage) -> list[str]:
    """The changes that the driver tells, as they come."""
    told: list[str] = []
    storage.on_change = lambda change: told.append(f"{change.kind} {change.disk.lun}")
    return told


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


# --- coming and going


async def test_a_disk_that_comes_can_be_used_at_once() -> None:
    """The guest hears, looks, and has it in its place; the disks that it has stay the same objects."""
    async with serving({0: memory(), 9: memory()}) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        told, before = listen(storage), list(storage.disks)
        pair.vsp.add_disk(5, memory(2 * MIB))
        await settle()
        assert told == ["added 5"]
        assert [disk.lun for disk in storage.disks] == [0, 5, 9]
        assert [storage.disks[0], storage.disks[2]] == before
        await storage.disks[1].write(0, b"n" * 512)
        assert await storage.disks[1].read(0) == b"n" * 512
        assert storage.transactions.bus_changes == 1
        with pytest.raises(ValueError, match="LUN 5 is taken"):
            pair.vsp.add_disk(5, memory())
        with pytest.raises(ValueError, match="LUNs are 0 to 254"):
            pair.vsp.add_disk(255, memory())


async def test_a_disk_that_goes_is_gone() -> None:
    """The guest hears of it; whoever still asks gets `DiskGone`, the other disks go on."""
    async with serving({0: memory(), 1: memory()}) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        told, gone = listen(storage), storage.disks[1]
        await gone.read(0)
        await pair.vsp.remove_disk(1)
        with pytest.raises(DiskGone, match="disk 1: SCSI READ"):
            await gone.read(0)
        await settle()
        assert told == ["removed 1"]
        assert gone.gone
        assert "gone" in repr(gone)
        assert [disk.lun for disk in storage.disks] == [0]
        await storage.disks[0].read(0)
        with pytest.raises(KeyError):
            await pair.vsp.remove_disk(1)


async def test_what_is_under_way_on_a_disk_that_goes_ends_well() -> None:
    """The removal waits for it; what comes after finds no disk."""
    slow = SlowBackend(MIB)
    async with serving({0: memory(), 1: ScsiTarget(slow)}) as pair:
        await ask(pair.guest_end, *handshake())
        await pair.guest_end.send(command(read_cdb(0, 1), [3], 512, transaction_id=1, lun=1))
        await settle()
        ended: list[str] = []

        async def remove() -> None:
            await pair.vsp.remove_disk(1)
            ended.append("removed")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(remove)
            await settle()
            await pair.guest_end.send(command(read_cdb(0, 1), [4], 512, transaction_id=2, lun=1))
            await settle()
            assert ended == []
            told, refused = pair.guest_end.try_receive_batch()
            assert (told.type, told.transaction_id) == (PacketType.INBAND, 0)
            assert PacketHeader.decode(told.body).operation == Operation.ENUMERATE_BUS
            assert Completion(refused).srb.srb_status == SrbStatus.INVALID_LUN
            slow.finish()
        (done,) = await pair.guest_end.receive_batch()
        assert (done.transaction_id, Completion(done).srb.srb_status) == (1, SrbStatus.SUCCESS)


async def test_a_removal_does_not_wait_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    """A disk that never answers is gone all the same."""
    slow = SlowBackend(MIB)
    async with serving({0: ScsiTarget(slow)}) as pair:
        await ask(pair.guest_end, *handshake())
        await pair.guest_end.send(command(read_cdb(0, 1), [3], 512))
        await settle()
        with trio.fail_after(6):
            await pair.vsp.remove_disk(0)
        slow.finish()


async def test_another_disk_in_its_place_is_not_taken_for_the_old_one() -> None:
    """Shortcuts to the old one are dropped, and the guest sees that it has another size."""
    async with serving({0: memory(), 1: memory()}) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        told = listen(storage)
        await storage.disks[1].read(0)
        await pair.vsp.remove_disk(1)
        pair.vsp.add_disk(1, ScsiTarget(MemoryBackend(b"other" * 512 * 8)))
        await settle()
        assert told == ["removed 1", "added 1"] or told == ["changed 1"]
        (disk,) = [disk for disk in storage.disks if disk.lun == 1]
        assert (await disk.read(0))[:5] == b"other"
        assert disk.blocks == 40


async def test_a_disk_that_grows() -> None:
    """The guest has the new capacity, and may use what is new."""
    backend = MemoryBackend(MIB)
    target = ScsiTarget(backend)
    async with serving({0: target}) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        told, disk = listen(storage), storage.disks[0]
        await disk.write(0, b"a" * 512)
        backend.resize(2 * MIB)
        target.resized()
        pair.vsp.disk_changed()
        await settle()
        assert told == ["changed 0"]
        assert disk.blocks == 4096
        await disk.write(4095, b"z" * 512)
        assert await disk.read(0) == b"a" * 512


async def test_a_unit_attention_is_nobodys_failure() -> None:
    """It costs a command a second try: the program does not hear of it, the driver looks again."""
    backend = MemoryBackend(MIB)
    target = ScsiTarget(backend)
    async with serving({0: target}) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        backend.resize(2 * MIB)
        target.resized()  # and no ENUMERATE_BUS
        assert await storage.disks[0].read(0) == bytes(512)
        await settle()
        assert storage.disks[0].blocks == 4096


async def test_a_reset_of_the_guests_own_is_nobodys_failure() -> None:
    """What was under way is sent again, and all of it is done once more."""
    slow = SlowBackend(MIB)
    async with serving({0: ScsiTarget(slow)}) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(storage.disks[0].write, 0, b"w" * 1024))
            await settle()
            nursery.start_soon(storage.reset)
            await settle()
            slow.finish()
            while not slow.jobs:
                await settle()
            slow.finish()
        slow.cached = True
        assert await storage.disks[0].read(0) == b"w" * 512
        await storage.reset(0)
        assert await storage.disks[0].read(0) == b"w" * 512
        assert pair.vsp.statistics().resets == 2


async def test_news_that_the_guest_does_not_read_do_not_pile_up() -> None:
    """One ENUMERATE_BUS waits for room, however many disks come."""
    async with serving({0: memory()}, ring_bytes=8192) as pair:
        await ask(pair.guest_end, *handshake())
        for lun in range(1, 200):
            pair.vsp.add_disk(lun, memory(4096))
            await settle()
        said = 0
        while batch := pair.guest_end.try_receive_batch():
            said += len(batch)
            await settle()
        assert said <= 2 * 8192 // 88 + 2


# --- versions


@pytest.mark.parametrize("version", Version)
async def test_disks_come_in_every_version(version: Version) -> None:
    """From 4.2 on the host says so; in 2.0 the guest has to look by itself, which it may in all."""
    async with (
        serving({0: memory()}) as pair,
        open_storage(pair.guest_end, pair.platform, versions=[version]) as storage,
    ):
        pair.vsp.add_disk(1, memory())
        await settle()
        heard = version is not NO_ENUMERATE_BUS
        assert storage.transactions.bus_changes == heard
        assert len(storage.disks) == 1 + heard
        await storage.rescan()
        assert len(storage.disks) == 2
        await storage.reset(1)
        await storage.disks[1].write(8, b"v" * 512)
        assert await storage.disks[1].read(8) == b"v" * 512


async def test_a_subchannel_says_nothing_of_disks() -> None:
    """The primary channel does, once."""
    async with serving({0: memory()}, max_sub_channels=1) as pair:
        await ask(pair.guest_end, *handshake())
        sub = pair.open_sub_channel(1)
        await settle()
        pair.vsp.add_disk(1, memory())
        await settle()
        assert len(pair.guest_end.try_receive_batch()) == 1
        assert sub.try_receive_batch() == []


# --- bounds


async def test_a_disk_has_so_many_commands_under_way_and_no_more() -> None:
    """Past the bound, TASK SET FULL with SRB status BUSY: the guest keeps the command. Other disks do not notice."""
    slow = SlowBackend(MIB)
    channels = 1 + MAX_AT_DISK // 256
    async with serving({0: ScsiTarget(slow), 1: memory()}, max_sub_channels=channels) as pair:
        await ask(pair.guest_end, *handshake())
        ends = [pair.guest_end, *(pair.open_sub_channel(index + 1) for index in range(channels - 1))]

        def reads(count: int) -> list[Packet]:
            return [command(read_cdb(0, 1), [3], 512, transaction_id=index + 1) for index in range(count)]

        for end in ends[:-1]:
            await end.send_batch(reads(256))
        await settle()
        assert len(slow.jobs) == MAX_AT_DISK
        (busy,) = await ask(ends[-1], *reads(1))
        assert (busy.srb.srb_status, busy.srb.scsi_status) == (SrbStatus.BUSY, ScsiStatus.TASK_SET_FULL)
        (other,) = await ask(ends[-1], command(read_cdb(0, 1), [3], 512, lun=1))
        assert other.srb.srb_status == SrbStatus.SUCCESS
        assert pair.vsp.statistics().turned_away == 1
        slow.finish()


# --- a full host disk


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """What a full disk is like, without filling one: the system refuses to let files grow past a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_host_disk_is_told_and_survived(tmp_path: Path) -> None:
    """A write that finds no room ends with SPACE ALLOCATION FAILED; what has room, and all that is read, works on."""
    create_image(tmp_path / "thin.raw", 4 * MIB)
    backend = RawFileBackend.open(tmp_path / "thin.raw")
    async with serving({0: ScsiTarget(backend)}) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        disk = storage.disks[0]
        with no_file_larger_than(MIB):
            with pytest.raises(ScsiError, match="space allocation failed write protect"):
                await disk.write(3 * 2048, b"x" * 512)
            with pytest.raises(ScsiError, match="space allocation failed"):
                await disk.write(2047, b"x" * 1024)  # the first half has room
            await disk.write(100, b"y" * 512)
            await disk.flush()
            assert await disk.read(100) == b"y" * 512
        await disk.write(3 * 2048, b"x" * 512)
        assert await disk.read(3 * 2048) == b"x" * 512
    backend.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_whatever_finds_no_room_says_so(code: int) -> None:
    """Writes, discards and flushes; the next ones are tried again, since room may come back."""
    slow = SlowBackend(MIB, cached=True)
    async with serving({0: ScsiTarget(slow)}) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        disk = storage.disks[0]

        async def refused(pair: StoragePair) -> None:
            async with trio.open_nursery() as nursery:
                for operation in (partial(disk.write, 0, bytes(512)), disk.flush, partial(disk.discard, 0, 8)):
                    nursery.start_soon(expect_no_room, operation)
                for _ in range(3):
                    await settle()
                    slow.finish()

        async def expect_no_room(operation: partial[None]) -> None:
            with pytest.raises(ScsiError, match="space allocation failed"):
                await operation()

        slow.error = code
        await refused(pair)
        slow.error = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(disk.write, 0, b"w" * 512))
            await settle()
            slow.finish()
        assert await disk.read(0) == b"w" * 512


# --- blocks of 4 KiB


async def test_blocks_of_4_kib() -> None:
    """The guest learns the size and counts in it; half a block is nothing."""
    async with (
        serving({0: memory(8 * MIB, block_size=4096)}) as pair,
        open_storage(pair.guest_end, pair.platform) as storage,
    ):
        disk = storage.disks[0]
        assert (disk.block_size, disk.blocks, disk.size) == (4096, 2048, 8 * MIB)
        data = [bytes((index,)) * 4096 for index in range(64)]
        await disk.write_many(list(enumerate(data)))
        assert await disk.read_many([(index, 1) for index in range(64)]) == data
        assert await disk.read(0, 64) == b"".join(data)
        with pytest.raises(ValueError, match="whole blocks of 4096"):
            await disk.write(0, bytes(512))
        with pytest.raises(ScsiError, match="out of range"):
            await disk.read(2048)


# --- drives


async def test_a_drive_and_its_disc() -> None:
    """Read-only, blocks of 2048; a disc that is taken out is missed, another one is looked at before it is read."""
    first = MemoryBackend(b"1" * 2048 * 40, read_only=True)
    drive = DvdDrive(first, identity="drive")
    async with serving({0: memory(), 1: drive}) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        told, unit = listen(storage), storage.disks[1]
        assert (unit.facts.kind, unit.blocks, unit.block_size) == (DiskKind.DVD, 40, 2048)
        assert unit.read_only
        assert await unit.read(39) == b"1" * 2048
        drive.eject()
        pair.vsp.disk_changed()
        await settle()
        assert told == ["changed 1"]
        assert unit.blocks == 0
        with pytest.raises(ScsiError, match="medium not present"):
            await unit.read(0)
        drive.insert(MemoryBackend(b"2" * 2048 * 8, read_only=True))
        with pytest.raises(ScsiError, match="medium may have changed"):
            await unit.read(0)
        await settle()
        assert unit.blocks == 8
        assert await unit.read(7) == b"2" * 2048
        with pytest.raises(ScsiError, match="invalid command operation code"):
            await unit.write(0, bytes(2048))
        assert told[-1] == "changed 1"
        assert ChangeKind("changed") in told[-1]


# --- what the disks have to say


def drive() -> DvdDrive:
    return DvdDrive(MemoryBackend(2048 * 4, read_only=True), identity="drive")


def told_by(pair: StoragePair, lun: int) -> tuple[Reason, ...]:
    (nexus,) = pair.vsp.disks[lun].nexuses.values()
    return nexus.attentions


async def test_who_tells_of_what() -> None:
    """Disks of each other, a new one of its power on; a drive not, where it would pass for another disc."""
    async with serving({0: memory(), 1: drive()}) as pair:
        await ask(pair.guest_end, *handshake())
        pair.vsp.add_disk(2, memory())
        assert told_by(pair, 0) == (Reason.REPORTED_LUNS_DATA_HAS_CHANGED,)
        assert told_by(pair, 1) == ()
        assert told_by(pair, 2) == (Reason.POWER_ON_OR_RESET,)


async def test_who_has_asked_need_not_be_told() -> None:
    """REPORT LUNS takes away what tells to ask it, and nothing else."""
    async with serving({0: memory()}) as pair:
        await ask(pair.guest_end, *handshake())
        pair.vsp.add_disk(2, memory())
        await settle()
        pair.guest_end.try_receive_batch()
        await ask(pair.guest_end, command(report_luns_cdb(64), [3], 64))
        assert told_by(pair, 0) == ()
        assert told_by(pair, 2) == (Reason.POWER_ON_OR_RESET,)


async def test_a_closed_channel_ends_what_disks_knew_of_the_guest() -> None:
    """Whoever opens it next is not told of the past, and holds no disc."""
    async with serving({0: memory(), 1: drive()}) as pair:
        await ask(pair.guest_end, *handshake())
        await ask(pair.guest_end, command(bytes.fromhex("1E0000000100").ljust(16, b"\0"), lun=1))
        pair.vsp.add_disk(2, memory())
        assert pair.vsp.disks[1].preventing
        pair.scope.cancel()
        await pair.ended.wait()
        assert [told_by(pair, lun) for lun in (0, 1, 2)] == [(), (), ()]
        assert not pair.vsp.disks[1].preventing


async def test_reads_of_4_kib_blocks_move_what_was_asked_for() -> None:
    """By the short way too, which counts in the disk's own blocks."""
    backend = MemoryBackend(MIB)
    disks = {0: ScsiTarget(backend, block_size=4096)}
    async with serving(disks) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        before = backend.statistics().bytes_read
        for block in range(10):
            await storage.disks[0].read(block)
        assert backend.statistics().bytes_read - before == 10 * 4096


@pytest.mark.parametrize("version", Version)
async def test_the_guest_asks_for_as_much_sense_data_as_its_version_has(version: Version) -> None:
    """18 bytes before Windows 8, 20 since."""
    async with (
        serving({0: memory()}) as pair,
        open_storage(pair.guest_end, pair.platform, versions=[version]) as storage,
    ):
        sent: list[Packet] = []
        pair.guest_end.on_packets = lambda way, packets: sent.extend(packets) if way == SENT else None
        await storage.disks[0].read(0)
        await storage.disks[0].flush()
        assert {packet.payload[12 + 9] for packet in sent} == {18 if version < Version.WIN8 else 20}
