"""The guest's half: opens the echo device's channel and fills its rings."""

import trio

from vmbus.ring import COMPLETION_REQUESTED, Packet, PacketType

ECHO = "6d3ec1f0-5c04-4d4f-9b7c-e6f1d1a0ec40"
RING_BYTES = 16 * 1024


def packet(number, payload):
    return Packet(PacketType.INBAND, COMPLETION_REQUESTED, number, 0, payload)


async def main(guest):
    channel = await guest.open_channel(ECHO, ring_bytes=RING_BYTES)

    # One packet there and back. The ring pads to 8 bytes, so a protocol says in its packets how long its data is.
    await channel.send(packet(1, b"hello..."))
    answer = await channel.receive()
    print(f"packet {answer.transaction_id}: {answer.payload.decode()}")

    # A batch is written in one go and costs one hypercall, not one a packet.
    before = channel.statistics()
    await channel.send_batch([packet(number, b"one of a batch..") for number in range(100, 132)])
    answers = []
    while len(answers) < 32:
        answers += await channel.receive_batch()
    after = channel.statistics()
    print("answers in order:", [answer.transaction_id for answer in answers] == list(range(100, 132)))
    print("signals for 32 packets:", after.signals_sent - before.signals_sent)

    # The host cannot run while we do not let go, so the ring fills: 12 KiB of data pages, 1,048 bytes a packet. It is
    # never filled to the last byte, or full would look like empty.
    block = [packet(number, b"x" * 1024) for number in range(1000, 1040)]
    fitted = channel.try_send_batch(block)
    print("packets until the ring is full:", fitted)

    # `send_batch` waits for room: it writes down how much it needs, and the host signals when there is as much. The
    # answers need room, too: without a task that takes them, both sides would wait for each other.
    taken = trio.Event()
    guest.start_soon(take, channel, len(block), taken)
    await channel.send_batch(block[fitted:])
    await taken.wait()

    total = channel.statistics()
    print("packets out and in:", total.packets_out, total.packets_in)
    print("fewer signals than packets:", total.signals_sent < total.packets_out)
    print("waited for room:", total.ring_full_waits > 0)


async def take(channel, count, taken):
    while count:
        count -= len(await channel.receive_batch())
    taken.set()
