"""Holes in image files: ranges that take no room on the host and read as zeros. Root side.

Linux's fallocate(2) with FALLOC_FL_PUNCH_HOLE, which Python's os module does not have. Elsewhere, and on file systems
that refuse it, nothing can be given back, and clearing a range means writing zeros.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys

_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
_REFUSED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_ZEROS = bytes(1 << 20)
_SEEK_DATA: int = getattr(os, "SEEK_DATA", 3)
_SEEK_HOLE: int = getattr(os, "SEEK_HOLE", 4)
_PROBE_BYTES = 4096


def _load() -> ctypes._NamedFuncPointer | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    function = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if function is not None:
        # Off the interpreter's lock while it works, as every function of a CDLL is: a large hole may take a while.
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        function.restype = ctypes.c_int
    return function


_fallocate = _load()


def punch(fd: int, offset: int, length: int) -> None:
    """Make a hole. Raises OSError, with EOPNOTSUPP where there is no such thing."""
    if _fallocate is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    while _fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length) != 0:
        error = ctypes.get_errno()
        if error != errno.EINTR:
            raise OSError(error, os.strerror(error))


def can_punch(fd: int, size: int) -> bool:
    """Whether this file, open for writing, takes holes. Tried past its end, where there is nothing to lose.

    A block device has no such place; whether it takes any is not known before it was tried, so it counts as one that
    does not.
    """
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return False
    try:
        punch(fd, size, _PROBE_BYTES)
    except OSError:
        return False
    return True


def clear(fd: int, offset: int, length: int) -> None:
    """Have a range read as zeros: by a hole, or by writing where the file system refuses one. Raises OSError."""
    try:
        punch(fd, offset, length)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        _write_zeros(fd, offset, length)


def extents(fd: int, offset: int, end: int, most: int) -> list[tuple[int, int, bool]]:
    """What of a range takes room: (offset, length, whether it does), without gaps, `most` at most. Raises OSError.

    Where the file system, or a block device, has no answer, all of it does.
    """
    found: list[tuple[int, int, bool]] = []
    while offset < end and len(found) < most:
        data = _seek(fd, offset, _SEEK_DATA, end)
        if data > offset:
            found.append((offset, data - offset, False))
            offset = data
        else:
            hole = _seek(fd, offset, _SEEK_HOLE, end)
            found.append((offset, hole - offset, True))
            offset = hole
    return found


def _seek(fd: int, offset: int, whence: int, end: int) -> int:
    """Where data or a hole is next, at most at `end`. Raises OSError."""
    try:
        found = os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return end  # no data from here on
        if error.errno in _REFUSED:
            return offset if whence == _SEEK_DATA else end
        raise
    return min(found, end)


def _write_zeros(fd: int, offset: int, length: int) -> None:
    end = offset + length
    while offset < end:
        offset += os.pwrite(fd, _ZEROS[: end - offset] if end - offset < len(_ZEROS) else _ZEROS, offset)
