"""What a controller shows: commands that wait and for how long, how long they took, and a queue depth that counts."""

from __future__ import annotations

import pytest
import trio.testing

from hypervisor.inspect import Gone, Histogram, Setting
from partitions.inspect.answers import update
from partitions.inspect.path import find
from tests.doubles.looking import seen
from tests.doubles.storage import SlowBackend, StoragePair, serving
from tests.doubles.storage_guest import Completion, ask, command, handshake
from vmbus.ring import Packet
from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.protocol import MAX_AT_DISK, SrbStatus
from vsp_vsc.storage.scsi.cdb import Direction, read_cdb, write_cdb
from vsp_vsc.storage.scsi.target import ScsiTarget

CHANNEL = 5
DEPTH = "disks/0/queue_depth"


def read(transaction_id: int, lba: int = 0) -> Packet:
    return command(read_cdb(lba, 1), [3], 512, transaction_id=transaction_id)


async def answers(pair: StoragePair) -> list[Completion]:
    await trio.testing.wait_all_tasks_blocked()
    return [Completion(packet) for packet in pair.guest_end.try_receive_batch()]


async def test_commands_that_wait_are_shown_with_their_age() -> None:
    """By transaction, disk and words, until they have ended; then the histogram has how long they took."""
    slow, now = SlowBackend(1 << 20), 0
    async with serving({0: ScsiTarget(slow)}, clock=lambda: now) as pair:
        await ask(pair.guest_end, *handshake())
        now = 1_000
        await pair.guest_end.send(read(0x10, lba=7))
        await trio.testing.wait_all_tasks_blocked()
        now = 4_000
        await pair.guest_end.send(read(0x11))
        await trio.testing.wait_all_tasks_blocked()
        now = 6_000  # 100 ns units
        session = seen(pair.vsp.inspect_channel(CHANNEL))
        assert (session["state"], session["version"], session["in_flight"]) == ("ready", "6.2", 2)
        assert list(session["pending"].values()) == [
            {"transaction": 0x10, "lun": 0, "age_us": 500, "words": "SCSI READ(10) lba=7 blocks=1"},
            {"transaction": 0x11, "lun": 0, "age_us": 200, "words": "SCSI READ(10) lba=0 blocks=1"},
        ]
        assert seen(pair.vsp.inspect(), "disks/0/under_way") == 2

        slow.finish(1)
        assert len(await answers(pair)) == 1
        now = 6_010
        slow.finish()
        await answers(pair)
        assert seen(pair.vsp.inspect_channel(CHANNEL), "pending") == {}
        waits = seen(pair.vsp.inspect(), "disks/0/latency_of_waits")
        assert waits == Histogram("us", (*[0] * 8, 1, 1))  # 500 us are below 512, 201 us below 256
        with pytest.raises(Gone):
            pair.vsp.inspect_channel(CHANNEL + 1)


async def test_one_transaction_number_for_many_commands(autojump_clock: trio.testing.MockClock) -> None:
    """A guest may number them as it likes: each is there once, and goes when it has ended."""
    slow = SlowBackend(1 << 20)
    async with serving({0: ScsiTarget(slow)}) as pair:
        await ask(pair.guest_end, *handshake())
        await pair.guest_end.send_batch([read(7)] * 3)
        await trio.testing.wait_all_tasks_blocked()
        assert len(seen(pair.vsp.inspect_channel(CHANNEL), "pending")) == 3
        slow.finish(2)
        await answers(pair)
        assert len(seen(pair.vsp.inspect_channel(CHANNEL), "pending")) == 1


async def test_what_is_answered_at_once_has_not_waited() -> None:
    """Neither what comes out of memory, nor what a backend does before it returns: on the virtual clock all does."""
    async with serving({0: ScsiTarget(MemoryBackend(1 << 20))}) as pair:
        await ask(pair.guest_end, *handshake())
        write = command(write_cdb(0, 1), [3], 512, Direction.OUT)
        for done in await ask(pair.guest_end, read(1), write, write, read(2)):
            assert done.srb.srb_status == SrbStatus.SUCCESS
        assert seen(pair.vsp.inspect_channel(CHANNEL), "pending") == {}
        assert seen(pair.vsp.inspect(), "disks/0/latency_of_waits").total == 0
        assert seen(pair.vsp.inspect(), "disks/0/backend/counters/writes") == 2


async def test_past_the_queue_depth_a_guest_is_told_to_come_again(autojump_clock: trio.testing.MockClock) -> None:
    """The depth counts from the next command on, one disk at a time, and what is under way goes on."""
    slow, other = SlowBackend(1 << 20), SlowBackend(1 << 20)
    async with serving({0: ScsiTarget(slow), 1: ScsiTarget(other)}) as pair:
        await ask(pair.guest_end, *handshake())
        depth = find(pair.vsp.inspect(), DEPTH)
        assert isinstance(depth, Setting)
        assert depth.value == MAX_AT_DISK
        assert update(pair.vsp.inspect(), DEPTH, "2") == "2"
        assert seen(pair.vsp.inspect(), DEPTH) == 2
        await pair.guest_end.send_batch([read(number) for number in (1, 2, 3)])
        (refused,) = await answers(pair)
        assert (refused.transaction_id, refused.srb.srb_status) == (3, SrbStatus.BUSY)
        await pair.guest_end.send_batch(
            [command(read_cdb(0, 1), [3], 512, transaction_id=number, lun=1) for number in (4, 5, 6)]
        )
        assert await answers(pair) == []
        update(pair.vsp.inspect(), DEPTH, "3")
        await pair.guest_end.send(read(7))
        assert await answers(pair) == []
        slow.finish()
        assert [done.transaction_id for done in await answers(pair)] == [1, 2, 7]
