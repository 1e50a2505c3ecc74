"""A checked reader for the variable tails of messages. Both sides.

It reads from `bytes` only: the snapshot of what a peer wrote, never the memory that the peer can still change.
"""

from __future__ import annotations

import struct

from hypervisor.wire.errors import ShortMessage, TooMany

_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Cursor:
    """Walks forward through a snapshot; every step that would leave it raises a `WireError`."""

    __slots__ = ("data", "position", "what")

    def __init__(self, data: bytes, position: int = 0, *, what: str = "message") -> None:
        self.data = data
        self.position = position
        self.what = what

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return len(self.data) - self.position

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        start = self._advance(count)
        return self.data[start : self.position]

    def u16(self) -> int:
        """The next two bytes, little-endian."""
        return int(_U16.unpack_from(self.data, self._advance(2))[0])

    def u32(self) -> int:
        """The next four bytes, little-endian."""
        return int(_U32.unpack_from(self.data, self._advance(4))[0])

    def u64(self) -> int:
        """The next eight bytes, little-endian."""
        return int(_U64.unpack_from(self.data, self._advance(8))[0])

    def u64s(self, count: int, *, limit: int) -> tuple[int, ...]:
        """The next `count` 64-bit words; `limit` is the most that the caller's protocol can mean."""
        if count > limit:
            raise TooMany(f"{self.what}: {count} words, {limit} are the limit")
        return struct.unpack_from(f"<{count}Q", self.data, self._advance(8 * count))

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.remaining)

    def _advance(self, count: int) -> int:
        start = self.position
        if count > len(self.data) - start:
            raise ShortMessage(self.what, start + count, len(self.data))
        self.position = start + count
        return start
