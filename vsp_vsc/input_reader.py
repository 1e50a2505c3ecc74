"""How programs read from the drivers of keyboard and mouse: straight from the channel. Child side."""

from __future__ import annotations

import trio

from vmbus.channel import Channel
from vmbus.ring import Packet


async def received(channel: Channel) -> Packet:
    """The next packet. Its kernel closes the channel, never its reader: that is `trio.EndOfChannel` too."""
    try:
        return await channel.receive()
    except trio.ClosedResourceError:
        raise trio.EndOfChannel from None
