"""IPv4 packets in pieces: cutting ours to the MTU, and putting others' together. Child side.

Pieces that overlap, or that disagree about the end, cost the whole packet: nobody honest sends them. What is being put
together is bounded in number, bytes and time.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from hypervisor.clock import TICKS_PER_SECOND
from partitions.child.net.frames import IPV4_HEADER, MORE_FRAGMENTS, OFFSET_MASK, BadPacket, Ipv4

MAX_PACKETS = 16
"""That are put together at a time; one more, and the oldest is given up."""
TIMEOUT = 30 * TICKS_PER_SECOND
"""For all pieces of a packet, from when the first has come; Linux's."""
MAX_PAYLOAD = 0xFFFF - IPV4_HEADER

_Key = tuple[bytes, bytes, int, int]


def cut(payload: bytes, mtu: int) -> Iterator[tuple[int, bytes]]:
    """The pieces of a packet's payload for packets of at most `mtu` bytes: fragment word and bytes of each."""
    room = mtu - IPV4_HEADER
    if len(payload) <= room:
        yield 0, payload
        return
    room &= ~7
    for start in range(0, len(payload), room):
        more = MORE_FRAGMENTS if start + room < len(payload) else 0
        yield start >> 3 | more, payload[start : start + room]


@attrs.define
class _Partial:
    """A packet of which something has come."""

    since: int
    pieces: dict[int, bytes] = attrs.field(factory=dict)
    end: int = -1
    """Bytes of payload in all, when the last piece has come."""
    first: Ipv4 | None = None


class Reassembly:
    """Packets of which some pieces have come."""

    def __init__(self) -> None:
        self._partial: dict[_Key, _Partial] = {}
        self.given_up = 0
        """Packets whose rest never came, or that made room for others."""

    @property
    def deadline(self) -> int | None:
        """When the oldest is given up."""
        return min((partial.since + TIMEOUT for partial in self._partial.values()), default=None)

    def tick(self, now: int) -> None:
        """Give up what has waited too long."""
        for key in [key for key, partial in self._partial.items() if now - partial.since >= TIMEOUT]:
            del self._partial[key]
            self.given_up += 1

    def add(self, packet: Ipv4, now: int) -> Ipv4 | None:
        """The whole packet, if this piece was what it lacked. Raises `BadPacket`, and then the packet is forgotten."""
        key = packet.source, packet.destination, packet.protocol, packet.ident
        partial = self._partial.get(key)
        if partial is None:
            if len(self._partial) >= MAX_PACKETS:
                del self._partial[min(self._partial, key=lambda one: self._partial[one].since)]
                self.given_up += 1
            partial = self._partial[key] = _Partial(now)
        try:
            whole = self._add(partial, packet)
        except BadPacket:
            del self._partial[key]
            raise
        if whole is not None:
            del self._partial[key]
        return whole

    def _add(self, partial: _Partial, packet: Ipv4) -> Ipv4 | None:
        start = (packet.fragment & OFFSET_MASK) << 3
        end = start + len(packet.payload)
        more = packet.fragment & MORE_FRAGMENTS
        if (more and (len(packet.payload) & 7 or not packet.payload)) or end > MAX_PAYLOAD:
            raise BadPacket(f"a fragment of {len(packet.payload)} bytes at {start}")
        if partial.pieces.get(start) == packet.payload and (more or partial.end == end):
            return None  # the same once more
        if any(start < at + len(piece) and at < end for at, piece in partial.pieces.items()):
            raise BadPacket("fragments that overlap")
        if not more:
            if partial.end >= 0:
                raise BadPacket("fragments that disagree about the end")
            partial.end = end
        partial.pieces[start] = packet.payload
        if not start:
            partial.first = packet
        if partial.end >= 0 and any(at + len(piece) > partial.end for at, piece in partial.pieces.items()):
            raise BadPacket("a fragment past the end")
        if partial.first is None or sum(map(len, partial.pieces.values())) != partial.end:
            return None
        payload = b"".join(partial.pieces[at] for at in sorted(partial.pieces))
        return partial.first._replace(fragment=0, payload=payload)
