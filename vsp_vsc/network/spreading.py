"""By which channel a frame goes to its guest: receive side scaling, with the guest's key and table. Root side.

The hash is Toeplitz's as NDIS has it: over the addresses and ports as they stand in the frame. All frames of a flow go
one way and stay in order, so what is known of a flow is kept.
"""

from __future__ import annotations

from functools import cached_property

import attrs

from vsp_vsc.network.ndis import HashInfo

KEPT_FLOWS = 4096
_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_TCP, _UDP = 6, 17
_FRAGMENT = 0x3FFF
_PORTS = {
    (4, _TCP): HashInfo.TCP_IPV4,
    (4, _UDP): HashInfo.UDP_IPV4,
    (6, _TCP): HashInfo.TCP_IPV6,
    (6, _UDP): HashInfo.UDP_IPV6,
}
_ADDRESSES = {4: HashInfo.IPV4 | HashInfo.TCP_IPV4 | HashInfo.UDP_IPV4, 6: HashInfo.IPV6 | HashInfo.TCP_IPV6}
LONGEST_INPUT = 36
"""Two IPv6 addresses and two ports."""


class Toeplitz:
    """The hash under one key of 40 bytes."""

    def __init__(self, key: bytes) -> None:
        self.key = key

    @cached_property
    def _tables(self) -> list[list[int]]:
        """By place and value of a byte: what it adds to the hash."""
        bits = int.from_bytes(self.key, "big")
        total = len(self.key) * 8
        tables = []
        for place in range(LONGEST_INPUT):
            table = [0] * 256
            for bit in range(8):
                window = bits >> (total - 32 - (place * 8 + 7 - bit)) & 0xFFFF_FFFF
                for low in range(1 << bit):
                    table[1 << bit | low] = table[low] ^ window
            tables.append(table)
        return tables

    def hash(self, data: bytes) -> int:
        """Of at most `LONGEST_INPUT` bytes."""
        result = 0
        for table, byte in zip(self._tables, data, strict=False):
            result ^= table[byte]
        return result


def hash_input(frame: bytes, info: int) -> bytes:
    """The bytes of a frame that are hashed, by `HashInfo`; none if it is not hashed."""
    at = 18 if frame[12:14] == b"\x81\x00" else 14
    kind = frame[at - 2 : at]
    if kind == _IPV4 and len(frame) >= at + 20:
        version, protocol = 4, frame[at + 9]
        addresses = frame[at + 12 : at + 20]
        ports = at + (frame[at] & 15) * 4
        if int.from_bytes(frame[at + 6 : at + 8], "big") & _FRAGMENT:
            protocol = 0
    elif kind == _IPV6 and len(frame) >= at + 40:
        version, protocol = 6, frame[at + 6]
        addresses = frame[at + 8 : at + 40]
        ports = at + 40
    else:
        return b""
    if info & _PORTS.get((version, protocol), 0) and len(frame) >= ports + 4:
        return addresses + frame[ports : ports + 4]
    return addresses if info & _ADDRESSES[version] else b""


@attrs.define(eq=False)
class Spreading:
    """What a guest has set."""

    key: bytes
    table: tuple[int, ...]
    """Channels by hash; as many as a power of two."""
    info: int
    """`HashInfo` bits."""
    _toeplitz: Toeplitz = attrs.field(init=False)
    _flows: dict[bytes, int] = attrs.field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self._toeplitz = Toeplitz(self.key)

    def channel_of(self, frame: bytes) -> int:
        """The channel that the frame goes by; 0 for one that is not hashed."""
        data = hash_input(frame, self.info)
        if not data:
            return 0
        channel = self._flows.get(data)
        if channel is None:
            channel = self.table[self._toeplitz.hash(data) & (len(self.table) - 1)]
            if len(self._flows) >= KEPT_FLOWS:
                self._flows.clear()
            self._flows[data] = channel
        return channel
