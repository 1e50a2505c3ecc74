"""A controller that takes its leave: what the guest asked for has its answer before the bus rescinds.

A stock Linux reads nothing after a rescind, and a command that it then sends is lost without a word: a kernel whose
controller was pulled out under a reader waited for that read for ever, and its driver for the reader.
"""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing

from tests.doubles.storage import SlowBackend, StoragePair, serving
from tests.doubles.storage_guest import Completion, ask, command, control, handshake
from vmbus.ring import Packet, PacketType
from vsp_vsc.storage.protocol import Operation, PacketHeader, SrbStatus, SubChannelCount
from vsp_vsc.storage.scsi.cdb import read_cdb
from vsp_vsc.storage.scsi.target import ScsiTarget
from vsp_vsc.storage.vsp import LEAVE_SECONDS, LOOK_SECONDS, SILENT_LOOKS

MIB = 1 << 20
SILENCE = LOOK_SECONDS * SILENT_LOOKS


def read(transaction_id: int = 1, lun: int = 0) -> Packet:
    return command(read_cdb(0, 1), [3], 512, transaction_id=transaction_id, lun=lun)


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def took(pair: StoragePair) -> float:
    began = trio.current_time()
    await pair.vsp.leave()
    return trio.current_time() - began


async def test_all_that_is_under_way_is_answered_first(autojump_clock: trio.testing.MockClock) -> None:
    """On every channel; what comes meanwhile finds no disk, and the guest is told once to look."""
    slow = {lun: SlowBackend(MIB) for lun in (0, 1)}
    async with serving({lun: ScsiTarget(one) for lun, one in slow.items()}, max_sub_channels=1) as pair:
        await ask(pair.guest_end, *handshake(), control(Operation.CREATE_SUB_CHANNELS, SubChannelCount(1).encode()))
        sub = pair.open_sub_channel(1)
        await pair.guest_end.send(read(1))
        await sub.send(read(2, lun=1))
        await settle()
        left: list[float] = []

        async def leave() -> None:
            left.append(await took(pair))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            await settle()
            (told,) = pair.guest_end.try_receive_batch()
            assert told.type == PacketType.INBAND
            assert PacketHeader.decode(told.body).operation == Operation.ENUMERATE_BUS
            for channel in (pair.guest_end, sub):
                (refused,) = await ask(channel, read(3))
                assert refused.srb.srb_status == SrbStatus.INVALID_LUN
            await trio.sleep(SILENCE + LOOK_SECONDS)
            assert left == []
            for one in slow.values():
                one.finish()
            for channel, number in ((pair.guest_end, 1), (sub, 2)):
                done = Completion(await channel.receive())
                assert (done.transaction_id, done.srb.srb_status) == (number, SrbStatus.SUCCESS)
        assert 2 * SILENCE < left[0] <= 2 * SILENCE + 2 * LOOK_SECONDS < LEAVE_SECONDS
        assert pair.vsp.disks == {}
        assert pair.vsp.statistics().in_flight == 0


async def test_a_guest_that_is_silent_is_left_soon(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as pair:
        await ask(pair.guest_end, *handshake())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.guest_end.receive)  # the news
            assert await took(pair) == pytest.approx(SILENCE)


async def test_nobody_is_waited_for_where_nobody_is(autojump_clock: trio.testing.MockClock) -> None:
    """The guest has not opened the controller, or has closed it."""
    async with serving() as pair:
        pair.scope.cancel()
        await pair.ended.wait()
        assert await took(pair) == 0


async def test_a_guest_that_closes_meanwhile_is_gone(autojump_clock: trio.testing.MockClock) -> None:
    """As when the VM is reset."""
    async with serving() as pair:
        await ask(pair.guest_end, *handshake())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(close_after, pair, SILENCE / 2))
            assert await took(pair) <= SILENCE / 2 + LOOK_SECONDS


async def close_after(pair: StoragePair, seconds: float) -> None:
    await trio.sleep(seconds)
    pair.scope.cancel()


async def test_the_hosts_storage_is_not_waited_for_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    slow = SlowBackend(MIB)
    async with serving({0: ScsiTarget(slow)}) as pair:
        await ask(pair.guest_end, *handshake())
        await pair.guest_end.send(read())
        await settle()
        assert await took(pair) == pytest.approx(LEAVE_SECONDS)
        slow.finish()


async def test_a_guest_that_does_not_listen_is_not_waited_for_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    """It leaves the news in its ring, as a paused one does."""
    async with serving() as pair:
        await ask(pair.guest_end, *handshake())
        assert await took(pair) == pytest.approx(LEAVE_SECONDS)


async def test_a_guest_that_goes_on_asking_is_not_waited_for_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as pair:
        await ask(pair.guest_end, *handshake())

        async def ask_on() -> None:
            while True:
                await pair.guest_end.send(read())
                await pair.guest_end.receive()
                await trio.sleep(LOOK_SECONDS / 2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_on)
            assert await took(pair) == pytest.approx(LEAVE_SECONDS)
            nursery.cancel_scope.cancel()


async def test_a_cancelled_leave_leaves_nothing_behind(autojump_clock: trio.testing.MockClock) -> None:
    """The disks are free for another controller."""
    target = ScsiTarget(SlowBackend(MIB))
    async with serving({0: target}) as pair:
        await ask(pair.guest_end, *handshake())
        with trio.move_on_after(LOOK_SECONDS):
            await pair.vsp.leave()
        assert target.nexuses == {}
