"""What a guest's closed sockets cost the host while nobody receives what was sent on them."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.doubles.socket_guest import socket_guest
from vmbus.pipe import frame
from vmbus.protocol.hvsocket import service_of
from vmbus.server import sockets
from vmbus.server.socket_stream import HostSocket

PORT = service_of(80)


async def test_sockets_that_are_filled_and_closed(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """A guest fills a ring with tiny packets, closes, and does it again with the same memory. A listener that is slow
    gets what there was room for, and the rest is lost and told; else 1,024 sockets were gigabytes of the host's.
    """
    monkeypatch.setattr(sockets, "MAX_LATE", 100_000)
    streams: list[HostSocket] = []
    lengths: list[int] = []

    async def slow(stream: HostSocket) -> None:
        streams.append(stream)
        await trio.sleep(1000)
        lengths.append(len(b"".join([piece async for piece in stream])))

    async with socket_guest() as guest:
        guest.server.listen(PORT, slow)
        for number in range(6):
            await guest.ask(number + 1, PORT)
            channel_id = guest.offers()[-1].channel_id
            await guest.open(channel_id)
            sent = 0
            while count := guest.channels[channel_id].try_send_batch([frame(b"x")] * 10):
                sent += count
            await guest.close(channel_id)
        kept = [stream.channel.ahead for stream in streams]
        assert kept == [sent, sent, 0, 0, 0, 0]
        live = guest.server.sockets.live.values()
        assert [bool(one.late) for one in live] == [True, True, False, False, False, False]
        assert guest.trace.warnings[7, "socket_broken"] == 4
        await trio.sleep(1001)
        assert sorted(lengths) == [0, 0, 0, 0, sent, sent]
        guest.nothing_left()
