"""A channel that always has another packet: others on the host have their turns all the same."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import trio

from hypervisor.trace import Trace
from tests.vsp_vsc.memory.test_session import packet
from vsp_vsc.memory.ranges import PageSet
from vsp_vsc.memory.vsp import MemoryVsp

PACKETS = 100


class _Full:
    """A ring that the guest never leaves empty, as far as it goes."""

    def __init__(self) -> None:
        self.taken = 0

    async def receive(self) -> object:
        if self.taken == PACKETS:
            raise trio.EndOfChannel
        self.taken += 1
        return packet(1, struct.pack("<II", 0x99, 0))

    def try_send_batch(self, packets: list[object]) -> int:
        return len(packets)


async def test_a_full_ring_leaves_others_their_turns() -> None:
    """I8: what a packet costs the host (510 runs of pages to give back: milliseconds) it does not cost at one go."""
    owner: Any = SimpleNamespace(ram=PageSet(), most_pages=0, session_ended=lambda offered: None)
    channel, opened = _Full(), SimpleNamespace(restored=None, channel_id=1)
    vsp = MemoryVsp(Trace(lambda: 0), 2, owner)
    seen: list[int] = []
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            while True:
                seen.append(channel.taken)
                await trio.lowlevel.checkpoint()

        nursery.start_soon(watch)
        await vsp.serve(channel, opened)  # type: ignore[arg-type]
        nursery.cancel_scope.cancel()
    assert len(set(seen)) > PACKETS // 2
