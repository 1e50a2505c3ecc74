"""The interrupt page of versions 0.13 and 1.1: a bit for each channel, a half for each way. Both sides.

The guest names the page in INITIATE_CONTACT. Its first 2,048 bytes are the host's to set and the guest's to clear, the
other half the opposite. A bit alone wakes nobody: the host also sets event flag 0, which belongs to no channel, and
the guest signals the one connection that all channels share. From 2.4 on channels have event flags of their own.
(Linux before 5.10, drivers/hv; openvmm vmbus_server, channel_bitmap.)
"""

from __future__ import annotations

from typing import Final

from hypervisor.atomic import set_bits, take_word
from vmbus.protocol.identifiers import MAX_CHANNELS

HALF: Final = 2048
"""Bytes a way."""
USED: Final = (MAX_CHANNELS + 1) // 8
"""Bytes of each half that can name a channel. The rest is nobody's, and is not looked at."""
_NOTHING: Final = bytes(USED)


class InterruptPage:
    """One page, as the host or the guest uses it."""

    __slots__ = ("_incoming", "_outgoing")

    def __init__(self, view: memoryview, *, host: bool) -> None:
        """`view` is the whole page, writable."""
        first, second = view[:USED], view[HALF : HALF + USED]
        self._outgoing, self._incoming = (first, second) if host else (second, first)

    def set(self, channel_id: int) -> None:
        """Say that the peer shall look at this channel."""
        word, bit = divmod(channel_id, 32)
        set_bits(self._outgoing, 4 * word, 1 << bit)

    def take(self) -> list[int]:
        """The channels that we shall look at, which the peer has not to say again. Bit 0 is no channel's."""
        snapshot = self._incoming.tobytes()
        if snapshot == _NOTHING:
            return []
        found: list[int] = []
        for word in range(USED // 4):
            if snapshot[4 * word : 4 * word + 4] == b"\0\0\0\0":
                continue
            bits = take_word(self._incoming, 4 * word)
            while bits:
                lowest = bits & -bits
                bits ^= lowest
                found.append(32 * word + lowest.bit_length() - 1)
        return found
