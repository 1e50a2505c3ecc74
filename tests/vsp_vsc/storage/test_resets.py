"""Resets of a bus, an adapter and a disk: what becomes of commands under way, on every channel, and what is told."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.doubles.storage import SlowBackend, StoragePair, serving
from tests.doubles.storage_guest import Completion, ask, command, control, handshake
from vmbus.ring import Packet
from vsp_vsc.storage.protocol import NtStatus, Operation, Srb, SrbStatus, Version
from vsp_vsc.storage.scsi.cdb import read_cdb
from vsp_vsc.storage.scsi.sense import Reason, decode_sense
from vsp_vsc.storage.scsi.target import ScsiTarget

ALL = (Operation.RESET_LUN, Operation.RESET_ADAPTER, Operation.RESET_BUS)


def read(lun: int = 0, *, transaction_id: int = 1) -> Packet:
    return command(read_cdb(0, 1), [3], 512, transaction_id=transaction_id, lun=lun)


def reset(operation: Operation, lun: int = 0) -> Packet:
    return control(operation, Srb(lun=lun).encode(), transaction_id=99)


async def answers(pair: StoragePair) -> list[Completion]:
    await trio.testing.wait_all_tasks_blocked()
    return [Completion(packet) for packet in pair.guest_end.try_receive_batch()]


def words(completion: Completion) -> str:
    return decode_sense(completion.srb.cdb_or_sense).words


@pytest.mark.parametrize("operation", ALL)
async def test_a_reset_is_answered_after_all_that_it_ended(operation: Operation) -> None:
    """Those with SRB status BUS_RESET, once the host's storage has let go of their pages, and not before."""
    slow = SlowBackend(1 << 20)
    async with serving({0: ScsiTarget(slow)}) as pair:
        await ask(pair.guest_end, *handshake())
        await pair.guest_end.send_batch([*(read(transaction_id=index) for index in (1, 2, 3)), reset(operation)])
        assert await answers(pair) == []
        slow.finish(2)
        first = await answers(pair)
        assert [(done.transaction_id, done.srb.srb_status) for done in first] == [(1, 0x0E), (2, 0x0E)]
        assert {done.status for done in first} == {NtStatus.IO_DEVICE_ERROR}
        slow.finish()
        last, done = await answers(pair)
        assert (last.transaction_id, last.srb.srb_status) == (3, SrbStatus.BUS_RESET)
        assert (done.transaction_id, done.status) == (99, NtStatus.SUCCESS)
        statistics = pair.vsp.statistics()
        assert (statistics.resets, statistics.ended_by_reset, statistics.in_flight) == (1, 3, 0)


@pytest.mark.parametrize("operation", ALL)
async def test_the_first_command_afterwards_hears_of_it(operation: Operation) -> None:
    """By a unit attention of the kind of reset, once; then all is as before."""
    async with serving({0: ScsiTarget(SlowBackend(1 << 20, cached=True))}) as pair:
        await ask(pair.guest_end, *handshake())
        done, told, well = await ask(pair.guest_end, reset(operation), read(), read())
        assert done.status == NtStatus.SUCCESS
        assert (told.srb.srb_status, told.srb.scsi_status) == (0x84, 2)
        reason = Reason.DEVICE_RESET if operation is Operation.RESET_LUN else Reason.BUS_RESET
        assert reason.value[3] in words(told)
        assert well.srb.srb_status == SrbStatus.SUCCESS


async def test_a_reset_of_one_disk_leaves_the_others_alone() -> None:
    """RESET_LUN names its disk by the address of an SRB, without one disk 0; one that is not there is an error."""
    slow = {lun: SlowBackend(1 << 20) for lun in (0, 7)}
    async with serving({lun: ScsiTarget(backend) for lun, backend in slow.items()}) as pair:
        await ask(pair.guest_end, *handshake())
        await pair.guest_end.send_batch([read(0, transaction_id=1), read(7, transaction_id=2)])
        await pair.guest_end.send(reset(Operation.RESET_LUN, 7))
        await trio.testing.wait_all_tasks_blocked()
        slow[0].finish()
        slow[7].finish()
        got = await answers(pair)
        assert [(done.transaction_id, done.srb.srb_status) for done in got[:2]] == [(1, 1), (2, SrbStatus.BUS_RESET)]
        assert got[2].transaction_id == 99
        missing, short = await ask(
            pair.guest_end, reset(Operation.RESET_LUN, 5), control(Operation.RESET_LUN, size=16, transaction_id=4)
        )
        assert missing.status == NtStatus.DEVICE_DOES_NOT_EXIST
        assert short.status == NtStatus.SUCCESS


async def test_a_reset_reaches_every_channel() -> None:
    """The bus is one, however many channels lead to it; each command is answered where it came from."""
    slow = SlowBackend(1 << 20)
    async with serving({0: ScsiTarget(slow)}, max_sub_channels=1) as pair:
        await ask(pair.guest_end, *handshake())
        sub = pair.open_sub_channel(1)
        await pair.guest_end.send(read(transaction_id=10))
        await sub.send(read(transaction_id=20))
        await trio.testing.wait_all_tasks_blocked()
        await sub.send(reset(Operation.RESET_BUS))
        await trio.testing.wait_all_tasks_blocked()
        slow.finish()
        (on_primary,) = await answers(pair)
        on_sub = [Completion(packet) for packet in sub.try_receive_batch()]
        assert on_primary.srb.srb_status == SrbStatus.BUS_RESET
        assert [(done.transaction_id, done.status) for done in on_sub] == [(20, NtStatus.IO_DEVICE_ERROR), (99, 0)]


async def test_resets_may_overlap() -> None:
    """The later one waits for what came in between too; each is answered once."""
    slow = SlowBackend(1 << 20)
    async with serving({0: ScsiTarget(slow), 1: ScsiTarget(SlowBackend(512))}) as pair:
        await ask(pair.guest_end, *handshake())
        await pair.guest_end.send_batch(
            [
                read(transaction_id=1),
                reset(Operation.RESET_BUS),
                read(transaction_id=2),  # told of the reset
                read(transaction_id=3),
                control(Operation.RESET_LUN, Srb(lun=0).encode(), transaction_id=100),
            ]
        )
        (told,) = await answers(pair)
        assert (told.transaction_id, told.srb.srb_status) == (2, 0x84)
        slow.finish()
        assert sorted(done.transaction_id for done in await answers(pair)) == [1, 3, 99, 100]


async def test_a_closed_channel_leaves_no_reset_behind() -> None:
    """The guest closes while a reset waits: the channel ends when the disk has let go, and a new one begins afresh."""
    slow = SlowBackend(1 << 20)
    async with serving({0: ScsiTarget(slow)}) as pair:
        await ask(pair.guest_end, *handshake())
        await pair.guest_end.send_batch([read(), reset(Operation.RESET_BUS)])
        await trio.testing.wait_all_tasks_blocked()
        pair.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        slow.finish()
        await pair.ended.wait()
        assert pair.vsp.statistics().state == "closed"


@pytest.mark.parametrize("version", Version)
async def test_every_version_has_resets(version: Version) -> None:
    """And the short SRBs of the old ones have an address too."""
    async with serving({3: ScsiTarget(SlowBackend(512))}) as pair:
        await ask(pair.guest_end, *handshake(version))
        size = 48 if version < Version.WIN8 else 64
        body = Srb(lun=3).encode()
        (done,) = await ask(pair.guest_end, control(Operation.RESET_LUN, body, size=size))
        assert done.status == NtStatus.SUCCESS
