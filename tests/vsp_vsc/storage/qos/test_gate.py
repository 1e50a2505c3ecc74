"""A disk's gate, packet by packet: what waits, what passes, and how each way of ending finds what waits."""

from __future__ import annotations

import trio
import trio.testing

from tests.doubles.disk_control import HandClock, controlled
from tests.doubles.storage import SlowBackend, StoragePair, serving
from tests.doubles.storage_guest import Completion, ask, command, control, handshake
from vmbus.ring import Packet, PacketType
from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.protocol import MAX_AT_CHANNEL, NtStatus, Operation, Srb, SrbStatus
from vsp_vsc.storage.qos.arbiter import DiskQos, Flow
from vsp_vsc.storage.qos.policy import IopsPolicy
from vsp_vsc.storage.scsi.cdb import Direction, inquiry_cdb, read_cdb, synchronize_cache_cdb, write_cdb
from vsp_vsc.storage.scsi.target import ScsiTarget

TEN = IopsPolicy(limit=10)
CHANNEL = 5


def read(transaction_id: int, *, lun: int = 0, lba: int = 0) -> Packet:
    return command(read_cdb(lba, 1), [3], 512, transaction_id=transaction_id, lun=lun)


def write(transaction_id: int, page: int, *, lba: int = 0) -> Packet:
    return command(write_cdb(lba, 1), [page], 512, Direction.OUT, transaction_id=transaction_id)


def reads(count: int, first: int = 1) -> list[Packet]:
    return [read(first + number) for number in range(count)]


async def answers(pair: StoragePair) -> list[Completion]:
    await trio.testing.wait_all_tasks_blocked()
    return [Completion(packet) for packet in pair.guest_end.try_receive_batch()]


async def numbers(pair: StoragePair) -> list[int]:
    return [completion.transaction_id for completion in await answers(pair)]


def disk(size: int = 1 << 20, identity: str = "a") -> ScsiTarget:
    return ScsiTarget(MemoryBackend(size, identity=identity))


def limited(pair: StoragePair, clock: HandClock, *policies: IopsPolicy) -> tuple[DiskQos, list[Flow]]:
    qos = DiskQos(clock, clock.timers)
    return qos, controlled(pair, qos, *policies)


async def test_requests_wait_for_their_time() -> None:
    """Ten a second: the first at once, each other a tenth of a second after the one before; none is lost."""
    clock = HandClock()
    async with serving({0: disk()}, clock=clock) as pair:
        limited(pair, clock, TEN)
        await ask(pair.guest_end, *handshake())
        await pair.guest_end.send_batch(reads(4))
        assert await numbers(pair) == [1]
        assert pair.vsp.statistics().in_flight == 3
        for number in (2, 3, 4):
            clock.wait(0.0999999)
            assert await answers(pair) == []
            clock.wait(0.0000001)
            assert await numbers(pair) == [number]
        assert len(clock.timers) == 0, "nothing waits, so nothing is armed"


async def test_a_disk_without_control_has_no_gate() -> None:
    """Nor has one beside a disk that is limited; it is as fast as ever, and its short way is open."""
    clock = HandClock()
    async with serving({0: disk(), 1: disk(identity="b")}, clock=clock) as pair:
        qos, (_, free) = limited(pair, clock, TEN, IopsPolicy())
        assert (free.gate, pair.vsp.unit(1).nexus.hindered) == (None, False)
        await ask(pair.guest_end, *handshake())
        await pair.guest_end.send_batch([read(number, lun=number % 2) for number in range(1, 21)])
        assert await numbers(pair) == [1, 2, *range(3, 21, 2)]
        qos.set_group("vm/web", "", IopsPolicy(limit=5))
        assert free.gate is not None
        qos.set_group("vm/web", "", IopsPolicy())
        assert (free.gate, pair.vsp.unit(1).nexus.hindered) == (None, False)


async def test_a_count_in_a_cdb_is_no_claim_on_others() -> None:
    """I6: 31 days of I/O by its CDB, and half a minute's worth of zeros; a neighbour under the same limit goes on."""
    clock = HandClock()
    async with serving({0: disk(), 1: ScsiTarget(MemoryBackend(64 << 20, identity="b"))}, clock=clock) as pair:
        qos, _ = limited(pair, clock, IopsPolicy(), IopsPolicy())
        qos.set_group("vm/web", "", IopsPolicy(limit=200))
        await ask(pair.guest_end, *handshake())
        huge = bytes.fromhex("88 00 0000000000000000 FFFFFFFF 00 00")
        zeros = bytes.fromhex("93 01 0000000000000000 00020000 00 00")
        await pair.guest_end.send_batch(
            [command(huge, [4], 512, transaction_id=1, lun=1), command(zeros, transaction_id=2, lun=1), *reads(9, 3)]
        )
        assert await numbers(pair) == [1]
        clock.wait(10)
        assert sorted(await numbers(pair)) == list(range(3, 12))
        clock.wait(31.1)
        assert await numbers(pair) == [2]


async def test_what_is_not_io_passes() -> None:
    """A guest may ask what the disk is while its reads wait."""
    clock = HandClock()
    async with serving({0: disk()}, clock=clock) as pair:
        limited(pair, clock, TEN)
        await ask(pair.guest_end, *handshake())
        await pair.guest_end.send_batch([*reads(2), command(inquiry_cdb(36), [4], 36, transaction_id=9)])
        assert await numbers(pair) == [1, 9]


async def test_a_flush_stays_behind_the_writes_before_it() -> None:
    """It costs nothing, and covers what was sent before it, as without a limit."""
    clock = HandClock()
    slow = SlowBackend(1 << 20)
    async with serving({0: ScsiTarget(slow)}, clock=clock) as pair:
        limited(pair, clock, TEN)
        await ask(pair.guest_end, *handshake())
        flush = command(synchronize_cache_cdb(), transaction_id=9)
        await pair.guest_end.send_batch([write(1, 5), write(2, 6), flush, write(3, 7)])
        for _ in range(4):
            await trio.testing.wait_all_tasks_blocked()
            slow.finish()
            clock.wait(0.1)
        slow.finish()
        assert slow.log == ["write", "write", "flush", "write"]
        assert await numbers(pair) == [1, 2, 9, 3]
        await pair.guest_end.send(command(synchronize_cache_cdb(), transaction_id=10))
        await trio.testing.wait_all_tasks_blocked()
        slow.finish()
        assert await numbers(pair) == [10], "with nothing before it, it does not wait at all"


async def test_requests_of_a_disk_keep_their_order() -> None:
    """A read behind a write to the same block finds what was written."""
    clock = HandClock()
    async with serving({0: disk()}, clock=clock) as pair:
        limited(pair, clock, TEN)
        await ask(pair.guest_end, *handshake())
        pair.platform.memory[5 << 12 : (5 << 12) + 512] = b"x" * 512
        await pair.guest_end.send_batch([read(1), write(2, 5), read(3)])
        assert await numbers(pair) == [1]
        clock.wait(0.3)
        assert await numbers(pair) == [2, 3]
        assert bytes(pair.platform.memory[3 << 12 : (3 << 12) + 512]) == b"x" * 512


async def test_a_reset_ends_what_waits() -> None:
    """At once, since nothing has touched its pages; it is never carried out, and the reset is answered after it."""
    clock = HandClock()
    slow = SlowBackend(1 << 20)
    async with serving({0: ScsiTarget(slow)}, clock=clock) as pair:
        qos, (flow,) = limited(pair, clock, TEN)
        await ask(pair.guest_end, *handshake())
        await pair.guest_end.send_batch(reads(3))
        await trio.testing.wait_all_tasks_blocked()
        await pair.guest_end.send(control(Operation.RESET_LUN, Srb().encode(), transaction_id=99))
        assert [(one.transaction_id, one.srb.srb_status) for one in await answers(pair)] == [
            (2, SrbStatus.BUS_RESET),
            (3, SrbStatus.BUS_RESET),
        ]
        slow.finish()
        first, reset = await answers(pair)
        assert (first.transaction_id, first.srb.srb_status) == (1, SrbStatus.BUS_RESET)
        assert (reset.transaction_id, reset.status) == (99, NtStatus.SUCCESS)
        clock.wait(10)
        assert (slow.jobs, flow.node.waiting, qos.core.root.waiting) == ([], 0, 0)


async def test_an_abort_ends_the_one_that_is_meant() -> None:
    """ABORT TASK, of front ends that know it."""
    clock = HandClock()
    async with serving({0: disk()}, clock=clock) as pair:
        limited(pair, clock, TEN)
        nexus, ended = pair.vsp.unit(0).nexus, []
        cdb, view = read_cdb(0, 1).ljust(16, b"\0"), memoryview(bytearray(512))
        tags = [object(), object(), object()]
        for tag in tags:
            nexus.start(cdb, [view], 512, tag, lambda tag, result: ended.append((tags.index(tag), result.status)))
        nexus.abort(tags[1])
        assert ended == [(1, 0x40)]
        clock.wait(1)
        assert ended == [(1, 0x40), (2, 0)]
        assert nexus.under_way == 0


async def test_a_disk_that_goes_takes_what_waits_with_it() -> None:
    """There is no such disk any more: what has not begun ends so, without waiting for its turn."""
    clock = HandClock()
    async with serving({0: disk()}, clock=clock) as pair:
        _, (flow,) = limited(pair, clock, IopsPolicy(limit=1))
        await ask(pair.guest_end, *handshake())
        await pair.guest_end.send_batch(reads(5))
        assert await numbers(pair) == [1]
        await pair.vsp.remove_disk(0)
        flow.close()
        await trio.testing.wait_all_tasks_blocked()
        packets = [packet for packet in pair.guest_end.try_receive_batch() if packet.type == PacketType.COMPLETION]
        assert [Completion(packet).srb.srb_status for packet in packets] == [SrbStatus.INVALID_LUN] * 4
        assert len(clock.timers) == 0


async def test_a_channel_that_closes_leaves_nothing_behind(autojump_clock: trio.abc.Clock) -> None:
    """What waits is never carried out, and the close does not wait for it: its time may be minutes away."""
    clock = HandClock()
    slow = SlowBackend(1 << 20, cached=True)
    async with serving({0: ScsiTarget(slow)}, clock=clock) as pair:
        qos, (flow,) = limited(pair, clock, IopsPolicy(limit=1))
        await ask(pair.guest_end, *handshake())
        await pair.guest_end.send_batch([write(number, 5) for number in range(1, 6)])
        await trio.testing.wait_all_tasks_blocked()
        slow.finish()
        assert flow.node.waiting == 4
        before = trio.current_time()
        pair.scope.cancel()
        await pair.ended.wait()
        assert trio.current_time() == before
        assert (flow.node.waiting, qos.core.root.waiting) == (0, 0)
        clock.wait(60)
        assert slow.log == ["write"]
        assert pair.vsp.unit(0).nexus.gate is flow.gate, "the next guest is limited too"


async def test_a_vm_is_saved_with_requests_in_the_gate() -> None:
    """They are turned away, as by a full queue, and sent again later; those at the host's storage are waited for."""
    clock = HandClock()
    slow = SlowBackend(1 << 20)
    async with serving({0: ScsiTarget(slow)}, clock=clock) as pair:
        limited(pair, clock, IopsPolicy(limit=1))
        await ask(pair.guest_end, *handshake())
        await pair.guest_end.send_batch(reads(3))
        await trio.testing.wait_all_tasks_blocked()
        assert pair.vsp.save(CHANNEL) is None
        turned = await answers(pair)
        assert [(one.transaction_id, one.srb.srb_status, one.srb.scsi_status) for one in turned] == [
            (2, SrbStatus.BUSY, 0x28),
            (3, SrbStatus.BUSY, 0x28),
        ]
        assert pair.vsp.save(CHANNEL) is None
        slow.finish()
        assert await numbers(pair) == [1]
        assert pair.vsp.save(CHANNEL) is not None


async def test_the_guests_own_queue_fills() -> None:
    """No more than a channel may have open is taken off its ring; past the queue depth the guest is told."""
    clock = HandClock()
    async with serving({0: disk()}, clock=clock) as pair:
        _, (flow,) = limited(pair, clock, IopsPolicy(limit=1))
        await ask(pair.guest_end, *handshake())
        for batch in range(8):
            await pair.guest_end.send_batch(reads(64, 1 + 64 * batch))
            await trio.testing.wait_all_tasks_blocked()
        assert flow.node.waiting in range(MAX_AT_CHANNEL - 1, MAX_AT_CHANNEL + 64)
        assert pair.host_end.unread
        pair.vsp.unit(0).queue_depth = 1
        clock.wait(400)
        await trio.testing.wait_all_tasks_blocked()
        assert pair.vsp.statistics().turned_away > 100


async def test_a_limit_counts_sizes() -> None:
    """Two reads of 64 KiB a second are sixteen normalized I/Os."""
    clock = HandClock()
    async with serving({0: disk()}, clock=clock) as pair:
        _, (flow,) = limited(pair, clock, IopsPolicy(limit=16))
        await ask(pair.guest_end, *handshake())
        pages = list(range(16, 32))
        large = [command(read_cdb(0, 128), pages, 65536, transaction_id=number) for number in (1, 2, 3)]
        await pair.guest_end.send_batch(large)
        assert await numbers(pair) == [1]
        clock.wait(0.5)
        assert await numbers(pair) == [2]
        clock.wait(0.5)
        assert await numbers(pair) == [3]
        assert (flow.meter.requests, flow.meter.normalized, flow.meter.bytes) == (3, 24, 3 << 16)


async def test_figures() -> None:
    """Delivered in the last second, what is due, who waits, and where the time goes: DAVG, KAVG and GAVG."""
    clock = HandClock()
    slow = SlowBackend(1 << 20)
    async with serving({0: ScsiTarget(slow)}, clock=clock) as pair:
        qos, (flow,) = limited(pair, clock, IopsPolicy(limit=10, reserve=5))
        await ask(pair.guest_end, *handshake())
        await pair.guest_end.send_batch(reads(30))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(20):
            clock.wait(0.025)
            slow.finish()
            clock.wait(0.075)
        figures = qos.figures()["vm/web/disk/0"]
        assert (figures.delivered, figures.entitled, figures.limit, figures.reserve) == (10, 10.0, 10, 5)
        assert (figures.requests, figures.waiting, figures.under_way, figures.status) == (20, 9, 1, "Ok")
        device, kernel, guest = flow.meter.averages()
        assert device == 25
        assert kernel == guest - device == 950, "0, 100, ... 1900 ms"
        assert qos.figures()["vm/web"].requests == qos.figures()["host"].requests == 20
        slow.finish()


async def test_a_reservation_that_the_host_cannot_give() -> None:
    """InsufficientThroughput, as Hyper-V names it, once it has waited for a second; Ok again without a backlog."""
    clock = HandClock()
    async with serving({0: disk(), 1: disk(identity="b")}, clock=clock) as pair:
        qos = DiskQos(clock, clock.timers, capacity=10)
        one, other = controlled(pair, qos, IopsPolicy(reserve=8), IopsPolicy(reserve=8))
        await ask(pair.guest_end, *handshake())
        await pair.guest_end.send_batch([read(number, lun=number % 2) for number in range(1, 41)])
        await trio.testing.wait_all_tasks_blocked()
        clock.wait(2)
        await answers(pair)
        assert {qos.figures_of(flow.node).status for flow in (one, other)} == {"InsufficientThroughput"}
        assert [qos.figures_of(flow.node).entitled for flow in (one, other)] == [5, 5]
        clock.wait(10)
        await answers(pair)
        assert {qos.figures_of(flow.node).status for flow in (one, other)} == {"Ok"}
