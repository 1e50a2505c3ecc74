"""What a driver may ask of the bus for its own device: pages to share, and subchannels. Child side."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import trio

from vmbus.channel import Channel
from vmbus.client.service import VmbusClient
from vmbus.client.state import OfferedDevice

MAX_SUB_CHANNELS = 64
"""Offers that a driver may leave unopened; more than a guest has processors."""


class DriverBus:
    """The bus, as the driver of one device sees it."""

    def __init__(
        self,
        client: VmbusClient,
        offer: OfferedDevice,
        *,
        nursery: trio.Nursery,
        processors: int = 1,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """What a driver leaves behind runs in `nursery`, which outlives it."""
        self._nursery = nursery
        self._client = client
        self._offer = offer
        self.processors = processors
        """How many virtual processors there are to take interrupts."""
        self.options = options or {}
        """What the guest was started with, as a boot command line: the `args` of its topology entry."""
        self._add, self._sub_channels = trio.open_memory_channel[OfferedDevice](MAX_SUB_CHANNELS)

    async def create_gpadl(self, gpns: Sequence[int], byte_count: int) -> int:
        """Show these pages to the host: the ID to name them by. `VmbusError`."""
        return await self._client.create_gpadl(self._offer.channel_id, gpns, byte_count)

    async def teardown_gpadl(self, gpadl_id: int) -> None:
        """Take pages back: returns when the host does not look at them any more; at once if the device is gone."""
        await self._client.teardown_gpadl(gpadl_id)

    async def open_sub_channel(self, *, ring_bytes: int) -> Channel:
        """The next subchannel that the host offers, once it does, open; they come in order.

        Their interrupts go round the processors, as the primary channel has number 0. `VmbusError`, `MemoryError`.
        """
        offer = await self._sub_channels.receive()
        return await self._client.open(
            offer,
            outgoing_bytes=ring_bytes,
            incoming_bytes=ring_bytes,
            target_vp=offer.subchannel_index % self.processors,
        )

    async def close(self, channel: Channel) -> None:
        """Close one of the device's channels; returns when the host has let go of it."""
        await self._client.close(channel)

    def start_soon(self, function: Callable[[], Awaitable[object]]) -> None:
        """Run what has to be done after a driver was cancelled. It is cancelled too where the guest is switched off."""
        self._nursery.start_soon(function)

    def offered(self, offer: OfferedDevice) -> None:
        """For the kernel: the host offers a subchannel of this device."""
        try:
            self._add.send_nowait(offer)
        except (trio.WouldBlock, trio.BrokenResourceError):
            pass  # a driver that asked for fewer, or for none
