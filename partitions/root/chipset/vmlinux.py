"""The kernel proper inside a Linux bzImage: unpacked here, so that the guest need not do it on its own. Root side.

A bzImage is a small program that unpacks an ELF file and jumps into it. Under KVM that takes as long as it takes; a
thread here has it done while the host is still being started. What is left out is what that program does besides: it
moves the kernel to a random place (KASLR). A guest whose kernel is unpacked here lies where it was linked to.

Source: Linux Documentation/arch/x86/boot.rst, `payload_offset`; LZ4's legacy frame format; ELF-64.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

import attrs

LZ4_MAGIC: Final = b"\x02\x21\x4c\x18"
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_LZ4_BLOCK: Final = 8 << 20
"""What each block of LZ4's legacy format unpacks to, but for the last."""
MOST_UNPACKED: Final = 512 << 20
"""A file that claims more is no kernel."""
_SIZE_AT_END: Final = 4
"""Linux appends the unpacked size to the compressed data."""

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_ELF64_LITTLE: Final = b"\x7fELF\x02\x01"
_EXECUTABLE, _X86_64, _LOAD = 2, 62, 1


class NotUnpacked(Exception):
    """This kernel is left to unpack itself; the text says why."""


@attrs.frozen
class Segment:
    """One part of the kernel: where it goes, and where it lies in the unpacked file."""

    gpa: int
    offset: int
    size: int


@attrs.frozen
class Vmlinux:
    """An unpacked kernel."""

    entry: int
    """GPA of startup_64, which wants what a bzImage's 64-bit entry wants."""
    segments: tuple[Segment, ...]
    pieces: tuple[bytes, ...] = attrs.field(repr=False)
    """The file, as it came out of the unpacking; joining would be one copy more."""

    def content(self, segment: Segment) -> Iterator[tuple[int, memoryview]]:
        """What to write where: GPAs with bytes."""
        start = 0
        for piece in self.pieces:
            first = max(segment.offset, start)
            last = min(segment.offset + segment.size, start + len(piece))
            if first < last:
                yield segment.gpa + first - segment.offset, memoryview(piece)[first - start : last - start]
            start += len(piece)


def payload_of(image: memoryview) -> memoryview:
    """The compressed kernel in a bzImage whose header was checked. Raises `NotUnpacked`."""
    setup = ((image[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    if length <= _SIZE_AT_END or setup + offset + length > len(image):
        raise NotUnpacked("the header names no payload")
    return image[setup + offset :][:length]


def unpack(image: memoryview) -> Vmlinux:
    """The kernel out of a bzImage. Takes tens to hundreds of milliseconds, most of them without the interpreter.

    Raises `NotUnpacked` for a way of packing that is not known or whose library is not installed, and for a payload
    that is damaged: what is wrong with it is then the guest's to find.
    """
    payload = payload_of(image)
    (size,) = struct.unpack("<I", payload[-_SIZE_AT_END:])
    if size > MOST_UNPACKED:
        raise NotUnpacked(f"it claims to unpack to {size >> 20} MiB")
    unpacker = _unpacker(bytes(payload[:4]))
    pieces = unpacker(payload[:-_SIZE_AT_END], size)
    found = sum(map(len, pieces))
    if found != size:
        raise NotUnpacked(f"it unpacks to {found} bytes in place of {size}")
    return _read_elf(pieces, size)


_Unpacker = Callable[[memoryview, int], tuple[bytes, ...]]


def _unpacker(magic: bytes) -> _Unpacker:
    """Libraries are imported when they are wanted: neither is needed to run Partita."""
    try:
        if magic == LZ4_MAGIC:
            import lz4.block

            return _lz4(lz4.block)
        if magic == ZSTD_MAGIC:
            import zstandard

            return _zstd(zstandard)
    except ImportError as error:
        raise NotUnpacked(f"{error.name} is not installed") from None
    raise NotUnpacked(f"packed in a way that starts with {magic.hex()}")


def _lz4(library: object) -> _Unpacker:
    decompress = library.decompress  # type: ignore[attr-defined]  # the library has no types
    error = library.LZ4BlockError  # type: ignore[attr-defined]

    def unpacked(data: memoryview, size: int) -> tuple[bytes, ...]:
        pieces: list[bytes] = []
        at, left = len(LZ4_MAGIC), size
        while at < len(data):
            (length,) = struct.unpack_from("<I", data, at) if len(data) - at >= 4 else (0,)
            block = data[at + 4 : at + 4 + length]
            if not length or len(block) < length:
                raise NotUnpacked("a block of it is cut short")
            try:
                pieces.append(decompress(block, uncompressed_size=min(left, _LZ4_BLOCK)))
            except error as damage:
                raise NotUnpacked(str(damage)) from None
            left -= len(pieces[-1])
            at += 4 + length
        return tuple(pieces)

    return unpacked


def _zstd(library: object) -> _Unpacker:
    decompressor = library.ZstdDecompressor  # type: ignore[attr-defined]
    error = library.ZstdError  # type: ignore[attr-defined]

    def unpacked(data: memoryview, size: int) -> tuple[bytes, ...]:
        try:
            with decompressor().stream_reader(data) as reader:
                return (reader.read(size),)
        except error as damage:
            raise NotUnpacked(str(damage)) from None

    return unpacked


def _read_elf(pieces: tuple[bytes, ...], size: int) -> Vmlinux:
    first = pieces[0] if pieces else b""
    if len(first) < _ELF_HEADER.size or first[:6] != _ELF64_LITTLE:
        raise NotUnpacked("what it unpacks to is no ELF file")
    _, kind, machine, _, entry, table, _, _, _, entry_size, count, *_ = _ELF_HEADER.unpack_from(first)
    if (kind, machine, entry_size) != (_EXECUTABLE, _X86_64, _PROGRAM_HEADER.size):
        raise NotUnpacked("what it unpacks to is no kernel for x86-64")
    if table + count * _PROGRAM_HEADER.size > len(first):
        raise NotUnpacked("its program headers are cut short")
    segments = []
    for index in range(count):
        what, _, offset, _, gpa, length, _, _ = _PROGRAM_HEADER.unpack_from(first, table + index * entry_size)
        if what == _LOAD:
            if offset + length > size:
                raise NotUnpacked("a segment is cut short")
            segments.append(Segment(gpa, offset, length))
    if not any(segment.gpa <= entry < segment.gpa + segment.size for segment in segments):
        raise NotUnpacked("it begins outside itself")
    return Vmlinux(entry, tuple(segments), pieces)
