"""File copy messages: the host names a file, sends its bytes in pieces, and says that it is whole. Both sides.

The answer's status is what counts; bodies need not come back. Layouts after Linux 6.12 include/uapi/linux/hyperv.h,
struct hv_start_fcopy and struct hv_do_fcopy. Linux turns both names into UTF-8 and keeps 259 bytes of each, so longer
ones are refused before they can name another file.
"""

from __future__ import annotations

import enum
from typing import Annotated

from hypervisor.wire import BadValue, Guid, Wire, at, wire
from hypervisor.wire.scalars import guid, u32, u64

_SPEC = "Linux 6.12 include/uapi/linux/hyperv.h"
NAME_BYTES = 520
"""Of a name and of a folder, each in UTF-16 with its NUL."""
_UTF8_BYTES = 257
"""Of each as Linux keeps it, with the slash that its daemon adds."""
FRAGMENT = 6144
"""Bytes of the file in one message."""
bytes520 = Annotated[bytes, "520s"]


class FileCopyOperation(enum.IntEnum):
    """What the host does with a file in the guest (enum hv_fcopy_op)."""

    START_FILE_COPY = 0
    WRITE_TO_FILE = 1
    COMPLETE_FCOPY = 2
    CANCEL_FCOPY = 3


class CopyFlags(enum.IntFlag):
    """How a copy begins."""

    NONE = 0
    OVERWRITE = 1
    """Replace a file that is there."""
    CREATE_PATH = 2
    """Make the folders that are not."""


@wire(size=36, spec=f"{_SPEC}, struct hv_fcopy_hdr")
class FileCopyHeader(Wire):
    """In front of a file copy message."""

    operation: u32 = at(0, default=0)
    service_id0: guid = at(4, default=Guid())
    service_id1: guid = at(20, default=Guid())


@wire(size=1052, spec=f"{_SPEC}, struct hv_start_fcopy after its header")
class StartFileCopy(Wire):
    """The body of START_FILE_COPY."""

    file_name: bytes520 = at(0, default=b"")
    path_name: bytes520 = at(520, default=b"")
    copy_flags: u32 = at(1040, default=0)
    file_size: u64 = at(1044, default=0)


@wire(size=16, spec=f"{_SPEC}, struct hv_do_fcopy after its header; the data follow")
class WriteToFile(Wire):
    """The body of WRITE_TO_FILE."""

    padding: u32 = at(0, default=0)
    file_offset: u64 = at(4, default=0)
    size: u32 = at(12, default=0)


def encode_start(folder: str, name: str, size: int, flags: CopyFlags) -> bytes:
    """The first message of a copy. Raises `ValueError` for names that cannot be."""
    if not name or set(name) & set("/\\"):
        raise ValueError(f"a file's name is not empty and has no slash: {name!r}")
    body = StartFileCopy(_encode_name(name, "name"), _encode_name(folder, "folder"), int(flags), size)
    return FileCopyHeader(FileCopyOperation.START_FILE_COPY).encode() + body.encode()


def encode_write(offset: int, data: bytes) -> bytes:
    """A piece of the file; every message is as long as the longest, as Linux's daemon reads them."""
    header = FileCopyHeader(FileCopyOperation.WRITE_TO_FILE).encode()
    return header + WriteToFile(0, offset, len(data)).encode() + data.ljust(FRAGMENT, b"\0")


def encode_end(operation: FileCopyOperation) -> bytes:
    """COMPLETE_FCOPY or CANCEL_FCOPY."""
    return FileCopyHeader(operation).encode()


def decode_name(untrusted: bytes) -> str:
    """A name up to its NUL. Raises `BadValue` where it has none, or is no UTF-16."""
    end = next((at for at in range(0, len(untrusted) - 1, 2) if untrusted[at : at + 2] == b"\0\0"), None)
    try:
        if end is not None:
            return untrusted[:end].decode("utf-16-le")
    except UnicodeDecodeError:
        pass
    raise BadValue("a file's name without an end, or not in UTF-16")


def _encode_name(name: str, what: str) -> bytes:
    if "\0" in name:
        raise ValueError(f"a {what} has no NUL in it: {name!r}")
    try:
        raw, kept = name.encode("utf-16-le") + b"\0\0", name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} {name!r}: {error.reason}") from None
    if len(raw) > NAME_BYTES or len(kept) > _UTF8_BYTES:
        raise ValueError(f"a {what} of {len(kept)} bytes in UTF-8, {_UTF8_BYTES} are the limit: {name[:40]!r}...")
    return raw


def describe(body: bytes) -> str:
    """The host's message in words: `write 6144 bytes at 0`. Any bytes are fine."""
    if len(body) < FileCopyHeader.SIZE:
        return "file copy"
    operation, rest = int.from_bytes(body[:4], "little"), body[FileCopyHeader.SIZE :]
    match operation:
        case FileCopyOperation.START_FILE_COPY if len(rest) >= StartFileCopy.SIZE:
            start = StartFileCopy.decode(rest)
            return f"start of {_shown(start.path_name, start.file_name)!r}, {start.file_size} bytes"
        case FileCopyOperation.WRITE_TO_FILE if len(rest) >= WriteToFile.SIZE:
            piece = WriteToFile.decode(rest)
            return f"write {piece.size} bytes at {piece.file_offset}"
        case FileCopyOperation.COMPLETE_FCOPY:
            return "copy complete"
        case FileCopyOperation.CANCEL_FCOPY:
            return "copy cancelled"
        case _:
            return f"file copy operation {operation}"


def _shown(folder: bytes, name: bytes) -> str:
    parts = (raw.decode("utf-16-le", "replace").split("\0", 1)[0] for raw in (folder, name))
    return "/".join(parts).replace("//", "/")
