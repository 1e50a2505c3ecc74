"""The file copy VSC: files that the host puts into this guest, for its programs. Child side.

A model guest has no file system, so the driver keeps one in memory: names with their bytes, and the folders that they
may lie in. What the host sends is checked as any stranger's word is: pieces come one after the other and are no more
than was said at the start.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import trio

from hypervisor.wire import ShortMessage
from vmbus.channel import Channel
from vmbus.client.platform import GuestPlatform
from vsp_vsc.integration.file_copy.protocol import (
    CopyFlags,
    FileCopyHeader,
    FileCopyOperation,
    StartFileCopy,
    WriteToFile,
    decode_name,
)
from vsp_vsc.integration.protocol import Component, Status, Version
from vsp_vsc.integration.responder import Reply, Responder, responding

ROOM = 16 << 20
"""Bytes that all files may have together, unless the program gives them more."""


@attrs.define
class _Open:
    path: str
    size: int
    data: bytearray = attrs.field(factory=bytearray)


class FileCopyDriver:
    """The files of one guest."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        """By path, such as `/etc/motd`."""
        self.folders = {"/"}
        """Where files may lie; the host may have others made."""
        self.room = ROOM
        self.on_start: Callable[[str, int], bool] | None = None
        """Hears the path and size of each file before it comes; says whether it may."""
        self.cancelled = 0
        self._arrived, self._arrivals = trio.open_memory_channel[str](math.inf)
        self._open: _Open | None = None

    async def receive(self) -> str:
        """The path of the next file that is whole; `files` has its bytes."""
        return await self._arrivals.receive()

    def answer(self, untrusted: bytes, version: Version) -> Reply:
        """One message of a copy. Raises `WireError`."""
        body = FileCopyHeader.SIZE
        match FileCopyHeader.decode(untrusted).operation:
            case FileCopyOperation.START_FILE_COPY:
                status = self._start(StartFileCopy.decode(untrusted, body))
            case FileCopyOperation.WRITE_TO_FILE:
                piece = WriteToFile.decode(untrusted, body)
                begin = body + WriteToFile.SIZE
                if begin + piece.size > len(untrusted):
                    raise ShortMessage("piece of a file", begin + piece.size, len(untrusted))
                status = self._write(piece.file_offset, untrusted[begin : begin + piece.size])
            case FileCopyOperation.COMPLETE_FCOPY:
                status = self._complete()
            case FileCopyOperation.CANCEL_FCOPY:
                self.cancelled += self._open is not None
                self._open = None
                status = Status.SUCCESS
            case _:
                status = Status.NOT_SUPPORTED
        return Reply(untrusted[:body], status)

    def _start(self, start: StartFileCopy) -> Status:
        name, folder = decode_name(start.file_name), decode_name(start.path_name)
        folder = "/" + "/".join(part for part in folder.split("/") if part)
        path = f"{folder.rstrip('/')}/{name}"
        self._open = None
        if not name or "/" in name or path in self.folders:
            return Status.INVALID_ARGUMENT
        if folder not in self.folders and not start.copy_flags & CopyFlags.CREATE_PATH:
            return Status.PATH_NOT_FOUND
        if path in self.files and not start.copy_flags & CopyFlags.OVERWRITE:
            return Status.ALREADY_EXISTS
        if self.on_start is not None and not self.on_start(path, start.file_size):
            return Status.FAIL
        self._open = _Open(path, start.file_size)
        return Status.SUCCESS

    def _write(self, offset: int, data: bytes) -> Status:
        file = self._open
        if file is None or offset != len(file.data) or offset + len(data) > file.size:
            return Status.INVALID_ARGUMENT
        others = sum(len(held) for path, held in self.files.items() if path != file.path)
        if others + len(file.data) + len(data) > self.room:
            return Status.DISK_FULL
        file.data += data
        return Status.SUCCESS

    def _complete(self) -> Status:
        file, self._open = self._open, None
        if file is None or len(file.data) != file.size:
            return Status.INVALID_ARGUMENT
        folder = file.path
        while folder := folder.rpartition("/")[0]:
            self.folders.add(folder)
        self.files[file.path] = bytes(file.data)
        self._arrived.send_nowait(file.path)
        return Status.SUCCESS


@asynccontextmanager
async def open_file_copy(channel: Channel, platform: GuestPlatform) -> AsyncIterator[FileCopyDriver]:
    """Answer until the block ends."""
    driver = FileCopyDriver()
    async with responding(channel, Responder(Component.FILE_COPY, driver.answer)):
        yield driver
