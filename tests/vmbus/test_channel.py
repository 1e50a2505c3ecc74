"""The channel: batches, waiting, cancellation, closing, signals that come back at once. Both sides."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
import trio
import trio.testing

from hypervisor.pages import PAGE_SIZE
from vmbus.channel import RECEIVED, SENT, Channel, ChannelClosed
from vmbus.ring import Packet, PacketType, RingError, RingReader, ring_bytes


class Pair:
    """Two ends in one thread; a signal calls the other end's `wake`."""

    def __init__(self, data_pages: int = 1, *, shared: bool = False) -> None:
        self.up = memoryview(bytearray(PAGE_SIZE * (1 + data_pages)))
        self.down = memoryview(bytearray(PAGE_SIZE * (1 + data_pages)))
        self.guest = Channel(outgoing=self.up, incoming=self.down, signal=self.signal_host, shared=shared)
        self.host = Channel(outgoing=self.down, incoming=self.up, signal=self.signal_guest, shared=shared)

    def signal_host(self) -> None:
        self.host.wake()

    def signal_guest(self) -> None:
        self.guest.wake()


def packets(count: int, body: int = 8, first: int = 1) -> list[Packet]:
    return [Packet(PacketType.INBAND, 0, number, 0, bytes(body)) for number in range(first, first + count)]


def ids(batch: list[Packet]) -> list[int]:
    return [packet.transaction_id for packet in batch]


async def test_batch_there() -> None:
    """What one end sends in a batch the other receives in one, at the price of one checkpoint each."""
    pair = Pair()
    with trio.testing.assert_checkpoints():
        await pair.guest.send_batch(packets(5))
    with trio.testing.assert_checkpoints():
        assert await pair.host.receive_batch() == packets(5)
    assert pair.guest.statistics().signals_sent == 0  # nobody slept


async def test_receiver_sleeps_and_is_woken_once() -> None:
    """A waiting receiver is signalled once for a batch, and the mask is set again before packets are taken."""
    pair = Pair()
    got: list[list[Packet]] = []

    async def receiver() -> None:
        for _ in range(2):
            got.append(await pair.host.receive_batch())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver)
        await trio.testing.wait_all_tasks_blocked()
        assert mask(pair.up) == 0
        await pair.guest.send_batch(packets(3))
        await trio.testing.wait_all_tasks_blocked()
        await pair.guest.send_batch(packets(3))
    assert got == [packets(3), packets(3)]
    assert mask(pair.up) == 1
    assert pair.guest.statistics().signals_sent == 2
    assert pair.host.statistics().wakes == 2
    assert pair.host.statistics().spurious_wakes == 0


async def test_masked_until_somebody_waits() -> None:
    """A channel that nobody waits on asks for no signals; polling does not change that."""
    pair = Pair()
    assert mask(pair.up) == mask(pair.down) == 1
    assert pair.host.try_receive_batch() == []
    assert mask(pair.up) == 1
    await pair.guest.send_batch(packets(1))
    assert pair.host.statistics().wakes == 0


async def test_spurious_wake() -> None:
    """A wake without packets is counted, and the receiver sleeps on."""
    pair = Pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.host.receive_batch)
        await trio.testing.wait_all_tasks_blocked()
        pair.host.wake()
        await trio.testing.wait_all_tasks_blocked()
        assert pair.host.statistics().spurious_wakes == 1
        await pair.guest.send_batch(packets(1))


async def test_sender_waits_for_room() -> None:
    """A batch larger than the ring goes through in pieces, in order, and each piece costs one signal."""
    pair = Pair()
    sent = packets(500)
    got: list[Packet] = []

    async def receiver() -> None:
        while len(got) < len(sent):
            got.extend(await pair.host.receive_batch())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.guest.send_batch, sent)
        await trio.testing.wait_all_tasks_blocked()
        assert pair.guest.statistics().ring_full_waits == 1
        nursery.start_soon(receiver)
    assert got == sent
    assert struct.unpack_from("<I", pair.up, 12) == (0,)


async def test_sender_stays_asleep_while_little_is_free() -> None:
    """A waiting sender is not woken for each packet taken: a quarter of the ring is asked for."""
    pair = Pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.guest.send_batch, packets(150))
        await trio.testing.wait_all_tasks_blocked()
        pair.host.try_receive_batch(3)
        assert pair.guest.statistics().wakes == 0
        pair.host.try_receive_batch(64)
        assert pair.guest.statistics().wakes == 1
        await trio.testing.wait_all_tasks_blocked()
        assert pair.guest.statistics().packets_out == 150


async def test_single_send_and_receive() -> None:
    """`send`, `receive` and iteration move one packet at a time, in order, mixed with batches."""
    pair = Pair()
    for packet in packets(3):
        await pair.guest.send(packet)
    assert await pair.host.receive() == packets(3)[0]
    assert await pair.host.receive_batch() == packets(3)[1:]
    await pair.guest.send_batch(packets(2))
    assert await pair.host.receive() == packets(2)[0]
    assert pair.host.try_receive_batch() == packets(2)[1:]
    await pair.guest.send_batch(packets(3))
    seen = []
    async for packet in pair.host:
        seen.append(packet)
        if len(seen) == 3:
            break
    assert seen == packets(3)


async def test_single_send_waits_for_room() -> None:
    """`send` into a full ring waits like a batch."""
    pair = Pair()
    while pair.guest.try_send_batch(packets(1, body=1000)):
        pass
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.guest.send, packets(1, body=1000, first=99)[0])
        await trio.testing.wait_all_tasks_blocked()
        assert len(await pair.host.receive_batch()) == 3
    assert ids(await pair.host.receive_batch()) == [99]


async def test_single_calls_share_the_thread() -> None:
    """A task that only sends or only receives lets others run at least once in 64 packets."""
    pair = Pair(data_pages=8)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for packet in packets(256):
            await pair.guest.send(packet)
        assert turns >= 2
        turns = 0
        for _ in range(256):
            await pair.host.receive()
        assert turns >= 2
        nursery.cancel_scope.cancel()


async def test_cancelled_receive_loses_nothing() -> None:
    """A receive that is cancelled, before or while it waits, has taken no packet."""
    pair = Pair()
    await pair.guest.send_batch(packets(3))
    for receive in (pair.host.receive_batch, pair.host.receive):
        with trio.CancelScope() as scope:
            scope.cancel()
            await receive()
        assert scope.cancelled_caught
    assert await pair.host.receive_batch() == packets(3)
    with trio.move_on_after(0):
        await pair.host.receive_batch()
    assert mask(pair.up) == 1
    await pair.guest.send_batch(packets(2))
    assert await pair.host.receive() == packets(2)[0]
    with trio.CancelScope() as scope:
        scope.cancel()
        await pair.host.receive()
    assert await pair.host.receive() == packets(2)[1]


async def test_cancel_after_the_wake_loses_nothing() -> None:
    """Where the packets and the cancellation come in the same turn, the packets are either returned or still there."""
    for _ in range(20):
        pair = Pair()
        got: list[Packet] = []
        async with trio.open_nursery() as nursery:

            async def receiver(pair: Pair = pair, got: list[Packet] = got) -> None:
                got.extend(await pair.host.receive_batch())

            nursery.start_soon(receiver)
            await trio.testing.wait_all_tasks_blocked()
            pair.guest.try_send_batch(packets(2))
            nursery.cancel_scope.cancel()
        got += pair.host.try_receive_batch()
        assert got == packets(2)


async def test_cancelled_send_stops_asking_for_room() -> None:
    """A send that is cancelled while it waits has sent whole packets, the first ones, and asks for no signal."""
    pair = Pair()
    with trio.move_on_after(0):
        await pair.guest.send_batch(packets(200))
    assert struct.unpack_from("<I", pair.up, 12) == (0,)
    got = pair.host.try_receive_batch(200)
    assert got == packets(len(got))
    assert pair.guest.statistics().packets_out == len(got)


@pytest.mark.parametrize("operation", ["receive", "receive_batch"])
async def test_one_receiver(operation: str) -> None:
    """A second receiver is a bug that is named, not queued; so is one while the first yields with packets in hand."""
    pair = Pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(getattr(pair.host, operation))
        await trio.testing.wait_all_tasks_blocked()
        for receive in (pair.host.receive, pair.host.receive_batch):
            with pytest.raises(trio.BusyResourceError):
                await receive()
        await pair.guest.send_batch(packets(1))


async def test_one_sender() -> None:
    """A second sender is a bug that is named."""
    pair = Pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.guest.send_batch, packets(200))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await pair.guest.send_batch(packets(1))
        with pytest.raises(trio.BusyResourceError):
            await pair.guest.send(packets(1)[0])
        pair.host.try_receive_batch(200)


async def test_waiting_until_all_is_taken() -> None:
    """It ends with the last packet out of the ring, at once for an empty ring, and asks for one signal and no more."""
    pair = Pair()
    taken: list[str] = []

    async def wait() -> None:
        await pair.guest.wait_taken()
        taken.append("all")

    await pair.guest.wait_taken()
    await pair.guest.send_batch(packets(5))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await pair.guest.send(packets(1)[0])
        pair.host.try_receive_batch(4)
        await trio.testing.wait_all_tasks_blocked()
        assert taken == []
        signals = pair.host.statistics().signals_sent
        pair.host.try_receive_batch(1)
        assert pair.host.statistics().signals_sent == signals + 1
    assert taken == ["all"]
    assert struct.unpack_from("<I", pair.up, 12) == (0,), "no signal is asked for any more"
    await pair.guest.send_batch(packets(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, ChannelClosed, pair.guest.wait_taken)
        await trio.testing.wait_all_tasks_blocked()
        pair.guest.close(by_peer=True)
    await expect(ChannelClosed, pair.guest.wait_taken)


async def expect(kind: type[BaseException], call: Callable[[], object]) -> None:
    with pytest.raises(kind):
        await call()  # type: ignore[misc]


@pytest.mark.parametrize("by_peer", [False, True])
async def test_close_wakes_and_ends_everything(by_peer: bool) -> None:
    """Waiting tasks and all later calls get the reason; the rings' memory is free; the peer's close comes too late."""
    pair = Pair()
    reason = ChannelClosed if by_peer else trio.ClosedResourceError
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, reason, pair.guest.receive_batch)
        nursery.start_soon(expect, reason, lambda: pair.guest.send_batch(packets(200)))
        await trio.testing.wait_all_tasks_blocked()
        pair.guest.close(by_peer=by_peer)
    pair.guest.close(by_peer=True)
    assert pair.guest.closed
    await expect(reason, pair.guest.receive)
    await expect(reason, pair.guest.receive_batch)
    await expect(reason, lambda: pair.guest.send(packets(1)[0]))
    await expect(reason, lambda: pair.guest.send_batch(packets(1)))
    with pytest.raises(reason):
        pair.guest.try_receive_batch()
    with pytest.raises(reason):
        pair.guest.try_send_batch(packets(1))
    pair.guest.wake()
    assert pair.guest.statistics().packets_out > 0
    pair.host.close()
    pair.up.release()  # BufferError if a view were left
    pair.down.release()


async def test_local_close_after_the_peers() -> None:
    """Whoever closed an end and still uses it has a bug of its own, whatever the peer did before."""
    pair = Pair()
    pair.guest.close(by_peer=True)
    await pair.guest.aclose()
    await expect(trio.ClosedResourceError, pair.guest.receive)


def test_closed_by_peer_is_both_ends_error() -> None:
    """To a receiver it is the end of the channel, to a sender a broken one."""
    assert issubclass(ChannelClosed, trio.EndOfChannel)
    assert issubclass(ChannelClosed, trio.BrokenResourceError)


async def test_iteration_ends_with_the_peer() -> None:
    """`async for` ends quietly when the peer closes."""
    pair = Pair()
    pair.guest.close(by_peer=True)
    async for _ in pair.guest:
        raise AssertionError("nothing was sent")


async def test_packets_in_hand_when_closed() -> None:
    """Packets read ahead by `receive` go when the channel closes: a channel that has ended delivers nothing."""
    pair = Pair()
    await pair.guest.send_batch(packets(3))
    await pair.host.receive()
    await pair.host.aclose()
    await expect(trio.ClosedResourceError, pair.host.receive)


async def test_signal_may_come_back_at_once() -> None:
    """A signal whose peer answers, or closes, before it returns does no harm."""
    pair = Pair()

    def answer() -> None:
        pair.host.wake()
        pair.host.try_send_batch(pair.host.try_receive_batch())
        pair.guest.wake()

    pair.guest._signal = answer
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, trio.Cancelled, pair.host.receive_batch)
        await trio.testing.wait_all_tasks_blocked()
        await pair.guest.send_batch(packets(2))
        assert await pair.guest.receive_batch() == packets(2)
        pair.guest._signal = pair.guest.close
        await trio.testing.wait_all_tasks_blocked()
        await pair.guest.send_batch(packets(2))
        nursery.cancel_scope.cancel()
    assert pair.guest.closed


async def test_ring_error_from_receive_and_send() -> None:
    """Nonsense in a ring is `RingError` from each call after it; the channel stays open until somebody closes it."""
    pair = Pair()
    struct.pack_into("<I", pair.up, 0, 3)
    await expect(RingError, pair.host.receive_batch)
    await expect(RingError, pair.host.receive)
    struct.pack_into("<I", pair.down, 4, 3)
    await expect(RingError, lambda: pair.host.send(packets(1)[0]))
    await expect(RingError, lambda: pair.host.send_batch(packets(1)))
    assert not pair.host.closed
    pair.host.close()
    await expect(trio.ClosedResourceError, pair.host.receive_batch)


async def test_ring_error_wakes_a_sleeper() -> None:
    """A receiver that sleeps when its ring goes bad raises at the next signal."""
    pair = Pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, RingError, pair.host.receive_batch)
        await trio.testing.wait_all_tasks_blocked()
        struct.pack_into("<I", pair.up, 0, 3)
        pair.host.wake()


async def test_good_packets_before_bad_ones() -> None:
    """What came before the nonsense is delivered first."""
    pair = Pair()
    await pair.guest.send_batch(packets(2))
    struct.pack_into("<I", pair.up, 0, 2 * ring_bytes(8) + 32)
    assert await pair.host.receive_batch() == packets(2)
    await expect(RingError, pair.host.receive_batch)


async def test_never_spins_on_a_moving_index() -> None:
    """Where the peer shows packets and takes them back, the receiver still lets others run, and can be cancelled."""
    pair = Pair()

    class Teasing(RingReader):
        def unmask(self) -> bool:
            return True

    pair.host._reader = Teasing(pair.up, shared=False)
    with trio.move_on_after(0.01) as scope:
        await pair.host.receive_batch()
    assert scope.cancelled_caught


async def test_statistics_and_tap() -> None:
    """Counts and the tap see each batch once, as this end sees it."""
    pair = Pair()
    seen: list[tuple[str, list[int]]] = []
    pair.host.on_packets = lambda direction, batch: seen.append((direction, ids(batch)))
    await pair.guest.send_batch(packets(3))
    await pair.host.receive()
    await pair.host.receive()
    await pair.host.send_batch(packets(2, first=7))
    assert seen == [(RECEIVED, [1, 2, 3]), (SENT, [7, 8])]
    statistics = pair.host.statistics()
    assert (statistics.packets_in, statistics.packets_out) == (3, 2)
    assert (statistics.bytes_in, statistics.bytes_out) == (3 * ring_bytes(8), 2 * ring_bytes(8))


@pytest.mark.parametrize("shared", [False, True])
async def test_ping_pong_under_any_schedule(shared: bool) -> None:
    """Two busy ends with a small ring each way never deadlock, whichever task Trio runs first."""
    pair = Pair(shared=shared)

    async def echo() -> None:
        async for packet in pair.host:
            await pair.host.send(packet)

    async def send() -> None:
        for start in range(1, 1001, 100):
            await pair.guest.send_batch(packets(100, body=start % 90, first=start))

    got: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        nursery.start_soon(send)
        with trio.fail_after(20):
            while len(got) < 1000:
                got += ids(await pair.guest.receive_batch())
        nursery.cancel_scope.cancel()
    assert got == list(range(1, 1001))


def mask(region: memoryview) -> int:
    return int(struct.unpack_from("<I", region, 8)[0])
