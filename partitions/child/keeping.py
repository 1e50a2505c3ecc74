"""What a guest keeps in its own memory for the day on which it is saved and wakes up in another host. Child side.

A program's frames are Python's and cannot be saved; the VM's memory can. So a program that wants to be saved keeps
what it needs as bytes in memory, and the kernel keeps how far it has handed out pages. Both lie in conventional memory,
below the pages that the allocator knows:

    RECORD_GPA       magic u64, pages used before u64, length u64, CRC-32 u32 of the program's bytes
    RECORD_GPA + 64  the program's bytes, as far as 640 KiB
"""

from __future__ import annotations

import struct
import zlib

RECORD_GPA = 0x1_0000
_DATA_GPA = RECORD_GPA + 64
_END_GPA = 0xA_0000
MOST_BYTES = _END_GPA - _DATA_GPA
"""That a program can keep: some 575 KiB."""
_MAGIC = int.from_bytes(b"PARTKEEP", "little")
_HEADER = struct.Struct("<QQQI")


class Keeper:
    """The record in one guest's memory."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory

    def begin(self) -> None:
        """A fresh boot: nothing is kept."""
        self._write(0, b"")

    @property
    def used_before(self) -> int:
        """The first page that was never handed out; 0 where no kernel has said so."""
        magic, used, _, _ = self._header()
        return used if magic == _MAGIC else 0

    def note_used(self, page: int) -> None:
        """The allocator has come so far."""
        magic, _, length, checksum = self._header()
        if magic == _MAGIC:
            _HEADER.pack_into(self._memory, RECORD_GPA, _MAGIC, page, length, checksum)

    @property
    def kept(self) -> bytes:
        """The program's bytes; empty where there are none, or where something else lies there now."""
        magic, _, length, checksum = self._header()
        if magic != _MAGIC or length > MOST_BYTES:
            return b""
        data = bytes(self._memory[_DATA_GPA : _DATA_GPA + length])
        return data if zlib.crc32(data) == checksum else b""

    def keep(self, data: bytes) -> None:
        """Replace them. Nobody can be saved in the middle of it: that happens where a program awaits."""
        if len(data) > MOST_BYTES:
            raise ValueError(f"{len(data)} bytes to keep, {MOST_BYTES} are the limit")
        self._write(self.used_before, data)

    def _write(self, used: int, data: bytes) -> None:
        self._memory[_DATA_GPA : _DATA_GPA + len(data)] = data
        _HEADER.pack_into(self._memory, RECORD_GPA, _MAGIC, used, len(data), zlib.crc32(data))

    def _header(self) -> tuple[int, int, int, int]:
        magic, used, length, checksum = _HEADER.unpack_from(self._memory, RECORD_GPA)
        return magic, used, length, checksum
