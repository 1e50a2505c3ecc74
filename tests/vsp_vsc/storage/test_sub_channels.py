"""Subchannels of a storage controller: who serves them, from when, and where answers go."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.doubles.storage import INSTANCE, SlowBackend, StoragePair, serving
from tests.doubles.storage_guest import ask, command, control, handshake
from vmbus.channel import Channel
from vmbus.ring import Packet
from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.protocol import MAX_SUB_CHANNELS, NtStatus, Operation, SubChannelCount, Version
from vsp_vsc.storage.scsi.cdb import Direction, read_cdb, write_cdb
from vsp_vsc.storage.scsi.target import ScsiTarget
from vsp_vsc.storage.vsp import StorageVsp

PATTERN = bytes(range(256)) * 4096


def read(lba: int = 0, page: int = 3, transaction_id: int = 1) -> Packet:
    return command(read_cdb(lba, 8), [page], 4096, transaction_id=transaction_id)


def create(count: int) -> Packet:
    return control(Operation.CREATE_SUB_CHANNELS, SubChannelCount(count).encode())


def page(pair: StoragePair, number: int) -> bytes:
    return bytes(pair.platform.memory[number * 4096 : (number + 1) * 4096])


async def initialize(pair: StoragePair, version: int = Version.WIN10) -> None:
    await ask(pair.guest_end, *handshake(version))


async def test_a_subchannel_reaches_the_same_disks() -> None:
    """What is written by one is read by another; each answers on its own channel, with the same transaction IDs."""
    async with serving({0: ScsiTarget(MemoryBackend(PATTERN))}, max_sub_channels=3) as pair:
        await initialize(pair)
        await ask(pair.guest_end, create(3))
        assert pair.sub_channels == [3]
        channels = [pair.guest_end, *(pair.open_sub_channel(index) for index in (1, 2, 3))]
        pair.platform.memory[4096 : 2 * 4096] = b"w" * 4096
        write = command(write_cdb(8, 8), [1], 4096, Direction.OUT, transaction_id=9)
        assert (await ask(channels[2], write))[0].transaction_id == 9
        for number, channel in enumerate(channels, 4):
            await channel.send_batch([read(8, number)])
        await trio.testing.wait_all_tasks_blocked()
        for number, channel in enumerate(channels, 4):
            (answer,) = channel.try_receive_batch()
            assert answer.transaction_id == 1
            assert page(pair, number) == b"w" * 4096
        statistics = pair.vsp.statistics()
        assert (statistics.channels, statistics.state, statistics.requests) == (4, "ready", 10)


async def test_late_answers_find_their_channel() -> None:
    """A disk that takes its time may answer in any order."""
    slow = SlowBackend(PATTERN)
    async with serving({0: ScsiTarget(slow)}, max_sub_channels=1) as pair:
        await initialize(pair)
        sub = pair.open_sub_channel(1)
        await pair.guest_end.send(read(transaction_id=10))
        await sub.send(read(transaction_id=20))
        await trio.testing.wait_all_tasks_blocked()
        assert pair.vsp.statistics().in_flight == 2
        slow.jobs.reverse()
        slow.finish()
        assert [p.transaction_id for p in await sub.receive_batch()] == [20]
        assert [p.transaction_id for p in await pair.guest_end.receive_batch()] == [10]


async def test_a_subchannel_carries_nothing_before_the_primary_is_ready() -> None:
    """A guest may ask for it, and open it, before END_INITIALIZATION: what it sends waits in the ring."""
    async with serving({0: ScsiTarget(MemoryBackend(PATTERN))}, max_sub_channels=1) as pair:
        *most, end = handshake()
        await ask(pair.guest_end, *most, create(1))
        sub = pair.open_sub_channel(1)
        await sub.send(read())
        await trio.testing.wait_all_tasks_blocked()
        assert sub.try_receive_batch() == []
        await ask(pair.guest_end, end)
        assert len(await sub.receive_batch()) == 1


async def test_an_older_versions_srbs_are_taken_on_subchannels_too() -> None:
    """The primary's version is the controller's."""
    async with serving({0: ScsiTarget(MemoryBackend(PATTERN))}, max_sub_channels=1) as pair:
        await initialize(pair, Version.WIN8)
        sub = pair.open_sub_channel(1)
        (answer,) = await ask(sub, control(Operation.RESET_BUS))
        assert answer.status == NtStatus.SUCCESS
        assert pair.vsp.statistics().version == Version.WIN8


async def test_a_subchannel_without_a_primary_is_not_served() -> None:
    """Its primary has just closed: the bus will withdraw it."""
    async with serving(max_sub_channels=1) as pair:
        pair.scope.cancel()
        await pair.ended.wait()
        sub: Channel = pair.open_sub_channel(1)
        await sub.send(read())
        await trio.testing.wait_all_tasks_blocked()
        assert sub.try_receive_batch() == []
        assert pair.vsp.statistics().channels == 0


@pytest.mark.parametrize("count", [-1, MAX_SUB_CHANNELS + 1])
def test_the_number_of_subchannels_is_bounded(count: int) -> None:
    """The host's own mistake, and an error."""
    with pytest.raises(ValueError, match="subchannels"):
        StorageVsp({}, INSTANCE, None, 1, max_sub_channels=count)  # type: ignore[arg-type]
