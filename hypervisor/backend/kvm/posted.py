"""Posted writes: OUTs to a port that KVM collects in a ring instead of coming back for each. Hypervisor.

Source: Linux Documentation/virt/kvm/api.rst, KVM_REGISTER_COALESCED_MMIO; struct kvm_coalesced_mmio_ring. There is one
ring a VM; KVM writes `last`, we write `first`. When it is full, the next write is an exit again.

Order is kept for each port's device as long as all else about it is an exit and the ring is emptied first: a driver
that reads its line status, or changes what the port means, finds all earlier bytes taken.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

import attrs

_HEAD = struct.Struct("<II")
"""first (ours), last (KVM's)."""
ENTRY = struct.Struct("<QIIQ")
"""address or port, length, 1 for a port, data."""
ENTRIES = (mmap.PAGESIZE - _HEAD.size) // ENTRY.size


@attrs.define
class PostedWrites:
    """Reads the ring in a vCPU's mapping; any vCPU's will do, all have the same page."""

    page: mmap.mmap
    offset: int
    """Of the ring in the mapping, bytes."""

    def take(self) -> Iterator[tuple[int, int, int]]:
        """(port, size, value) of what has been written, oldest first, each taken out as it is given."""
        while True:
            first, last = _HEAD.unpack_from(self.page, self.offset)
            if first == last or first >= ENTRIES:
                return
            port, size, _, data = ENTRY.unpack_from(self.page, self.offset + _HEAD.size + first * ENTRY.size)
            # One store of four bytes: KVM compares this word meanwhile, and `pack_into` would show it a zero.
            self.page[self.offset : self.offset + 4] = ((first + 1) % ENTRIES).to_bytes(4, "little")
            yield port, size, data & (1 << 8 * size) - 1
