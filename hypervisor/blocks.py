"""Host memory behind guest pages: blocks, and page lists stitched into one mapping. Hypervisor.

Every mapping is an anonymous reservation by `mmap.mmap`, with pages of a memfd fixed on top of it where they are to be
seen at more than one address. Each memoryview keeps the reservation alive, so memory is unmapped when its last view
dies, and no view needs a descriptor of its own.

A block of huge pages is plain anonymous memory. Kernels back that by pages of 2 MiB and a memfd by pages of 4 KiB, and
every page of a virtual machine's memory costs KVM a fault of its own: a Debian kernel boots in two thirds of the time.
The price is that such memory has one address. Pages that a stitched mapping needs move to a memfd once, on demand.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import weakref
from collections.abc import Sequence

from hypervisor.pages import PAGE_MASK, PAGE_SHIFT

_MAP_FIXED = 0x10  # the same number on Linux and macOS; the mmap module does not name it
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_FAILED = ctypes.c_void_p(-1).value
HUGE_PAGE = 2 << 20
MAX_STITCHED_PIECES = 32_768
"""Host-wide. The kernel gives a process some 65,000 mappings, and without a free one not even Python gets memory: the
other half stays for blocks, threads and the interpreter."""
_stitched_pieces = 0
"""In mappings of several pieces that still have a view, and in blocks of which pages have moved."""


class MemoryBlock:
    """Host memory behind guest pages: one mapping, sparse until touched."""

    __slots__ = ("_map", "_moved", "_start", "deposited", "fd", "name", "shown", "size", "view")

    def __init__(self, size: int, name: str, fd: int | None) -> None:
        """`fd` holds the whole block; without one it is anonymous memory that wants huge pages."""
        self.fd: int | None = fd
        """Where the pages are that can be mapped again: all of them, or those that have moved."""
        self.size = size
        self.name = name
        self.shown = 0
        """Extents of all GPA spaces that lie in this block."""
        self.deposited = 0
        """Its pages that are in pools."""
        self._moved: set[int] | None = None if fd is not None else set()
        """Pages of a block of huge pages that a memfd has now."""
        self._start = 0
        """Of the block in its mapping."""
        if fd is not None:
            self._map = stitch(size, [(fd, 0, size)])
        else:
            self._map = _reserve(size + HUGE_PAGE)
            self._start = -_address(self._map) % HUGE_PAGE
            if hasattr(mmap, "MADV_HUGEPAGE"):
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(self._map)[self._start : self._start + size]
        """All of it, writable, format `B`."""

    @classmethod
    def allocate(cls, size: int, name: str, *, huge_pages: bool = False) -> MemoryBlock:
        """`size` bytes, a page multiple, all zero. Raises OSError or MemoryError when the host has no more."""
        if size <= 0 or size & PAGE_MASK:
            raise ValueError(f"{size} bytes are not a whole number of pages")
        if huge_pages:
            return cls(size, name, None)
        fd = _open_memory(size, name)
        try:
            return cls(size, name, fd)
        except BaseException:
            os.close(fd)
            raise

    def pieces(self, page: int, count: int) -> list[tuple[int, int, int]]:
        """A run of pages as (descriptor, offset, length) for `stitch`. Raises MemoryError.

        Pages of a block of huge pages move to its memfd first. A processor that writes them meanwhile may lose what it
        wrote: whoever hands pages over to be mapped, a ring above all, leaves them alone until that is answered.
        """
        if self._moved is not None:
            self._move(page, count)
        assert self.fd is not None, "a mapped block is open"
        return [(self.fd, page << PAGE_SHIFT, count << PAGE_SHIFT)]

    @property
    def resident(self) -> int:
        """Bytes of the host's behind it, as far as a descriptor tells: nothing of huge pages."""
        return 0 if self.fd is None else os.fstat(self.fd).st_blocks * 512

    def zero(self, page: int, count: int) -> None:
        """Make pages read as zero and give their memory back to the host where it can take it."""
        offset, length = page << PAGE_SHIFT, count << PAGE_SHIFT
        try:
            if self._moved is None:
                self._map.madvise(mmap.MADV_REMOVE, offset, length)
            else:
                self._map.madvise(mmap.MADV_DONTNEED, self._start + offset, length)
                for moved in self._moved.intersection(range(page, page + count)):
                    self._map.madvise(mmap.MADV_REMOVE, self._start + (moved << PAGE_SHIFT), 1 << PAGE_SHIFT)
        except (AttributeError, OSError):
            # Page by page: a fill of the whole would need as much memory again.
            for start in range(offset, offset + length, 1 << PAGE_SHIFT):
                self.view[start : start + (1 << PAGE_SHIFT)] = bytes(1 << PAGE_SHIFT)

    def close(self) -> None:
        """Give up our references; the memory goes with its last view. Harmless when repeated."""
        if self.view.nbytes:
            self.view = memoryview(b"")
            del self._map
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def __del__(self) -> None:
        # A block that nobody closed, as after a failure half-way, must not keep its descriptor.
        if getattr(self, "fd", None) is not None:
            self.close()

    def _move(self, page: int, count: int) -> None:
        assert self._moved is not None
        for run, length in runs([at for at in range(page, page + count) if at not in self._moved]):
            if self.fd is None:
                self.fd = _open_memory(self.size, self.name)
            offset, size = run << PAGE_SHIFT, length << PAGE_SHIFT
            _allow_pieces(2)
            written = 0
            while written < size:
                written += os.pwrite(self.fd, self.view[offset + written : offset + size], offset + written)
            _fix(_address(self._map) + self._start + offset, self.fd, offset, size)
            self._moved.update(range(run, run + length))
            _hold_pieces(2, self._map)  # the mapping is in one piece more on each side


def runs(pages: Sequence[int]) -> list[tuple[int, int]]:
    """A page list as runs of (first page, pages)."""
    if isinstance(pages, range) and pages and pages.step == 1:
        return [(pages.start, len(pages))]  # what the root's calls name, hundreds of pages at a time
    found: list[tuple[int, int]] = []
    first = following = -1
    for page in pages:
        if page != following:
            if following != -1:
                found.append((first, following - first))
            first = page
        following = page + 1
    if following != -1:
        found.append((first, following - first))
    return found


def stitch(size: int, parts: Sequence[tuple[int, int, int]]) -> mmap.mmap:
    """A mapping of `size` bytes made of (descriptor, offset, length) one after the other.

    Raises MemoryError where the host refuses, or where too many pieces are in use: guests choose how scattered their
    rings are, and many guests together must not use up what all live on.
    """
    pieces = len(parts) if len(parts) > 1 else 0
    _allow_pieces(pieces)
    whole = _reserve(size)
    address = _address(whole)
    for fd, offset, length in parts:
        _fix(address, fd, offset, length)
        address += length
    if pieces:
        _hold_pieces(pieces, whole)
    return whole


def _open_memory(size: int, name: str) -> int:
    """A descriptor of `size` bytes of zeros that take no memory yet. Raises OSError."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
    else:  # no memfd on this system: an unlinked file serves the same mappings, only slower to start
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _reserve(size: int) -> mmap.mmap:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        return mmap.mmap(-1, size, flags=flags)
    except OSError as error:
        raise MemoryError(f"the host refuses a mapping of {size} bytes: {error}") from None


def _address(mapping: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def _fix(address: int, fd: int, offset: int, length: int) -> None:
    """Pages of a descriptor in place of what is mapped there."""
    got = _libc.mmap(address, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED, fd, offset)
    if got == _FAILED:
        raise MemoryError(f"the host refuses a mapping of {length} bytes: {os.strerror(ctypes.get_errno())}")


def _allow_pieces(more: int) -> None:
    if _stitched_pieces + more > MAX_STITCHED_PIECES:
        raise MemoryError(f"{MAX_STITCHED_PIECES} pieces of stitched mappings are the limit of a host")


def _hold_pieces(count: int, mapping: mmap.mmap) -> None:
    """Count pieces for as long as the mapping lives."""
    _count_pieces(count)
    weakref.finalize(mapping, _count_pieces, -count).atexit = False


def _count_pieces(more: int) -> None:
    global _stitched_pieces
    _stitched_pieces += more
