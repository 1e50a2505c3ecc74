"""A file of the host's on its way into a guest. Root side."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from partitions.surroundings import is_virtual
from vsp_vsc.integration.file_copy.protocol import FRAGMENT, CopyFlags
from vsp_vsc.integration.file_copy.vsp import FileCopyVsp

_AHEAD: Final = 64 * FRAGMENT
"""Bytes that are read at once: a hop to another thread for each message would take longer than the message."""


async def copy_into(
    component: FileCopyVsp, source: str | os.PathLike[str], path: str, *, overwrite: bool, create_path: bool
) -> int:
    """Copy a file to a path in the guest; its size. Raises as `Vm.copy_file` says."""
    folder, name = split(path, os.path.basename(os.fspath(source)))
    flags = CopyFlags.OVERWRITE if overwrite else CopyFlags.NONE
    if create_path:
        flags |= CopyFlags.CREATE_PATH
    # A pipe that nobody writes to must not hold the host up.
    descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{os.fspath(source)} is not a file that could be copied")
        await component.copy(_reader(descriptor), status.st_size, folder, name, flags)
        return status.st_size
    finally:
        os.close(descriptor)


def split(path: str, name: str) -> tuple[str, str]:
    """Folder and name in the guest; `name` for one that ends in a slash. Raises `ValueError`."""
    at = max(path.rfind("/"), path.rfind("\\"))
    if at < 0:
        raise ValueError(f'"{path}": a path in the guest begins with a folder, such as /tmp/')
    return path[: at + 1], path[at + 1 :] or name


def _reader(descriptor: int) -> Callable[[int, int], Awaitable[bytes]]:
    """Reads ahead; a message's worth of it at a time."""
    held, begin, inline = b"", 0, is_virtual(None)

    async def read(offset: int, count: int) -> bytes:
        nonlocal held, begin
        if not begin <= offset < begin + len(held):
            begin = offset
            if inline:  # the virtual clock would jump while another thread works
                held = os.pread(descriptor, _AHEAD, offset)
            else:
                held = await trio.to_thread.run_sync(os.pread, descriptor, _AHEAD, offset)
        return held[offset - begin : offset - begin + count]

    return read
