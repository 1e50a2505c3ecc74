"""The file of a saved VM: bytes and nothing else, whatever they say. Root side.

    FileHeader, then sections {SectionHeader, body}, the last of them the END section

Each body has a checksum, and END one of all section headers, so nothing can be lost, added or moved. What is large is
compressed; how large it may become is known before it is unpacked. Written to a temporary name beside the file, synced,
and renamed: there is never half a file under the name.
"""

from __future__ import annotations

import enum
import os
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from hypervisor.pages import PAGE_MASK, PAGE_SHIFT
from hypervisor.wire import ShortMessage, Wire, at, wire
from hypervisor.wire.scalars import bytes8, u32, u64
from partitions.root.saving_records import Facts, MemoryRun, SavedChipset, SavedVm
from vmbus.server.saved import CannotRestore, SavedBus

MAGIC = b"PARTITA\0"
VERSION = 1
RUN_PAGES = 256
"""Pages that one memory section has at most: 1 MiB."""
_MOST_RECORD = 64 << 20
"""Bytes of any section but memory, unpacked."""
_LEVEL = 1
T = TypeVar("T")


class Section(enum.IntEnum):
    """What a section is."""

    END = 0
    FACTS = 1
    PARTITION = 2
    BUS = 3
    CHIPSET = 4
    MEMORY = 5


@wire(size=16, spec="partitions/root/saving_file.py")
class FileHeader(Wire):
    """The same in every version."""

    magic: bytes8 = at(0x00)
    version: u32 = at(0x08)
    checksum: u32 = at(0x0C)
    """CRC-32 of the twelve bytes before."""


@wire(size=32, spec="partitions/root/saving_file.py")
class SectionHeader(Wire):
    """Before each section."""

    kind: u32 = at(0x00)
    checksum: u32 = at(0x04)
    """CRC-32 of the body as it stands in the file."""
    stored: u64 = at(0x08)
    """Bytes of the body."""
    size: u64 = at(0x10)
    """The same, unpacked."""
    gpn: u64 = at(0x18)
    """Of memory: the first page."""


# --- writing


def encode_file(saved: SavedVm) -> Iterator[bytes]:
    """The file, piece by piece."""
    start = FileHeader(MAGIC, VERSION, 0).encode()[:12]
    yield start + zlib.crc32(start).to_bytes(4, "little")
    headers = 0
    records = (
        (Section.FACTS, msgspec.msgpack.encode(saved.facts)),
        (Section.PARTITION, saved.partition),
        (Section.BUS, msgspec.msgpack.encode(saved.bus)),
        (Section.CHIPSET, msgspec.msgpack.encode(saved.chipset)),
    )
    sections = [(kind, body, 0) for kind, body in records]
    sections += [(Section.MEMORY, run.data, run.gpn) for run in saved.memory]
    for kind, body, gpn in sections:
        packed = zlib.compress(body, _LEVEL)
        header = SectionHeader(kind, zlib.crc32(packed), len(packed), len(body), gpn).encode()
        headers = zlib.crc32(header, headers)
        yield header
        yield packed
    yield SectionHeader(Section.END, headers, 0, 0, 0).encode()


def write_file(path: Path, saved: SavedVm) -> None:
    """All or nothing under that name. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            for piece in encode_file(saved):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # else the name may be gone after a power failure, and the VM with it
    finally:
        os.close(folder)


# --- reading


def read_file(path: Path) -> SavedVm:
    """A file of `write_file`. Raises `CannotRestore`, for a file that cannot be read too."""
    try:
        with open(path, "rb") as file:
            return decode_file(file)
    except CannotRestore as error:
        raise CannotRestore(f"{path}: {error}") from None
    except OSError as error:
        raise CannotRestore(f"{path}: {error.strerror or error}") from error


def decode_file(file: BinaryIO) -> SavedVm:
    """Any bytes at all: a saved VM, or `CannotRestore` and nothing else (but what reading raises)."""
    start = file.read(FileHeader.SIZE)
    if start[:8] != MAGIC:
        raise CannotRestore("not a saved VM")
    if len(start) < FileHeader.SIZE or zlib.crc32(start[:12]) != FileHeader.decode(start).checksum:
        raise CannotRestore("damaged: the header")
    version = FileHeader.decode(start).version
    if version != VERSION:
        raise CannotRestore(f"of version {version}; this host reads version {VERSION}")
    return _Reader(file).read()


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._headers = 0
        self._records: dict[Section, bytes] = {}
        self._facts: Facts | None = None
        self._memory: list[MemoryRun] = []

    def read(self) -> SavedVm:
        while self._section():
            pass
        if self._file.read(1):
            raise CannotRestore("damaged: something follows the end")
        if self._facts is None or len(self._records) != 4:
            raise CannotRestore("damaged: a section is missing")
        return SavedVm(
            self._facts,
            self._records[Section.PARTITION],
            self._record(Section.BUS, SavedBus),
            self._record(Section.CHIPSET, SavedChipset),
            tuple(self._memory),
        )

    def _section(self) -> bool:
        """One section; False at the end."""
        raw = self._file.read(SectionHeader.SIZE)
        try:
            header = SectionHeader.decode(raw)
        except ShortMessage:
            raise CannotRestore("damaged: it ends in the middle") from None
        if header.kind == Section.END:
            if header.checksum != self._headers or header.stored or header.size or header.gpn:
                raise CannotRestore("damaged: the end")
            return False
        self._headers = zlib.crc32(raw, self._headers)
        self._take(header)
        return True

    def _take(self, header: SectionHeader) -> None:
        try:
            kind = Section(header.kind)
        except ValueError:
            raise CannotRestore(f"damaged: a section of kind {header.kind}") from None
        words = f"damaged: the {kind.name.lower()} section"
        memory = kind is Section.MEMORY
        limit = RUN_PAGES << PAGE_SHIFT if memory else _MOST_RECORD
        # Deflate never adds more than a few bytes a block; so much is believed before the checksum is seen.
        if header.size > limit or header.stored > header.size + (header.size >> 8) + 64:
            raise CannotRestore(words)
        packed = self._file.read(header.stored)
        if len(packed) < header.stored:
            raise CannotRestore("damaged: it ends in the middle")
        if zlib.crc32(packed) != header.checksum:
            raise CannotRestore(words)
        body = _unpacked(packed, header.size, words)
        if memory:
            self._take_memory(header.gpn, body, words)
            return
        if header.gpn or kind in self._records:
            raise CannotRestore(words)
        self._records[kind] = body
        if kind is Section.FACTS:
            self._facts = self._record(kind, Facts)

    def _take_memory(self, gpn: int, body: bytes, words: str) -> None:
        """Pages of this VM, in rising order: so memory that was never there cannot make the host's grow."""
        if self._facts is None or not body or len(body) & PAGE_MASK:
            raise CannotRestore(words)
        before = self._memory[-1] if self._memory else None
        first = 0 if before is None else before.gpn + (len(before.data) >> PAGE_SHIFT)
        if gpn < first or (gpn << PAGE_SHIFT) + len(body) > self._facts.memory:
            raise CannotRestore(words)
        self._memory.append(MemoryRun(gpn, body))

    def _record(self, kind: Section, layout: type[T]) -> T:
        try:
            return msgspec.msgpack.decode(self._records[kind], type=layout)
        except (ValueError, KeyError, RecursionError) as error:  # msgspec's errors are ValueErrors
            raise CannotRestore(f"damaged: the {kind.name.lower()} section: {error}") from None


def _unpacked(packed: bytes, size: int, words: str) -> bytes:
    unpacker: Any = zlib.decompressobj()
    try:
        body: bytes = unpacker.decompress(packed, size + 1)
    except zlib.error:
        raise CannotRestore(words) from None
    if len(body) != size or not unpacker.eof or unpacker.unused_data:
        raise CannotRestore(words)
    return body
