"""The two buffers that a guest lends its adapter: the receive buffer in pieces, the send buffer in sections. Root side.

A buffer may lie in pages all over the guest's memory. It is never stitched together, which would cost the host a
mapping a page: bytes that cross from one run of pages to the next go in two steps.
"""

from __future__ import annotations

from bisect import bisect_right

from hypervisor.inspect import Branch
from hypervisor.memory import GuestMemory
from hypervisor.pages import Access
from hypervisor.wire import BadValue
from vmbus.server.opened import ChannelGpadls, GpadlHold
from vsp_vsc.network.protocol import CONTROL_PIECES, RECEIVE_FOOTER


class LentBuffer:
    """Guest pages as one run of bytes."""

    def __init__(self, memory: GuestMemory, gpadls: ChannelGpadls, untrusted_gpadl_id: int, access: Access) -> None:
        """Raises `BadValue` for no GPADL of one range of whole pages, `GpaFault` for pages that are not there."""
        ranges = gpadls.ranges(untrusted_gpadl_id)
        if len(ranges) != 1 or not ranges[0].whole_pages:
            raise BadValue(f"GPADL {untrusted_gpadl_id:#x} is not one range of whole pages")
        self.gpadl_id = untrusted_gpadl_id
        self.size = ranges[0].byte_count
        self._views = memory.page_views(ranges[0].gpns, 0, self.size, access)
        self._starts: list[int] = []
        position = 0
        for view in self._views:
            self._starts.append(position)
            position += len(view)
        self.flat = self._views[0] if len(self._views) == 1 else None
        """The whole of it, where it is contiguous."""
        self._hold: GpadlHold | None = gpadls.hold(untrusted_gpadl_id)

    def read(self, offset: int, size: int) -> bytes:
        """A private copy of bytes that lie within."""
        if self.flat is not None:
            return bytes(self.flat[offset : offset + size])
        return b"".join(bytes(view) for view in self._pieces(offset, size))

    def write(self, offset: int, data: bytes) -> None:
        """Store bytes where they fit."""
        if self.flat is not None:
            self.flat[offset : offset + len(data)] = data
            return
        done = 0
        for view in self._pieces(offset, len(data)):
            view[:] = data[done : done + len(view)]
            done += len(view)

    def release(self) -> None:
        """The guest may have its pages back; nothing may be read or written any more."""
        self._views, self.flat = [], None
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def _pieces(self, offset: int, size: int) -> list[memoryview]:
        index = bisect_right(self._starts, offset) - 1
        pieces = []
        while size > 0:
            start = offset - self._starts[index]
            piece = self._views[index][start : start + size]
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
            index += 1
        return pieces


class ReceiveBuffer:
    """Pieces of one size, and which of them are free. Piece numbers are transaction IDs too."""

    def __init__(self, buffer: LentBuffer, buffer_id: int, piece_size: int) -> None:
        """Raises `BadValue` for a buffer that has no piece for frames."""
        self.count = buffer.size // piece_size
        if self.count <= CONTROL_PIECES:
            raise BadValue(f"a receive buffer of {buffer.size} bytes for pieces of {piece_size}")
        self.buffer = buffer
        self.buffer_id = buffer_id
        self.piece_size = piece_size
        self.usable = piece_size - RECEIVE_FOOTER
        # From the end, so that the first ones are used again and again and stay in the processor's cache.
        self.free = list(range(self.count - 1, CONTROL_PIECES - 1, -1))
        self.free_control = list(range(CONTROL_PIECES - 1, -1, -1))

    def take_away(self, pieces: list[int]) -> None:
        """Pieces that the guest had already when it was saved. Raises `BadValue` for one that is not free."""
        for piece in pieces:
            free = self.free_control if piece < CONTROL_PIECES else self.free
            try:
                free.remove(piece)
            except ValueError:
                raise BadValue(f"piece {piece} of a receive buffer is in two places") from None

    def give_back(self, pieces: list[int]) -> None:
        """The guest has done with them."""
        if pieces[0] < CONTROL_PIECES:
            self.free_control += pieces
        else:
            self.free += pieces

    def inspect(self) -> Branch:
        """Sizes, and how many pieces are where."""
        return Branch(
            {
                "id": self.buffer_id,
                "bytes": self.buffer.size,
                "contiguous": self.buffer.flat is not None,
                "piece_bytes": self.piece_size,
                "pieces": self.count,
                "free": len(self.free),
                "free_for_control": len(self.free_control),
            }
        )
