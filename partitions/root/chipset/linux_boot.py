"""Lay a Linux bzImage, its initrd and its command line into guest memory and say how processor 0 starts. Root side.

Source: Linux Documentation/arch/x86/boot.rst, protocol 2.12, section "64-bit boot protocol": long mode, pages mapped to
themselves, a flat code segment at selector 0x10 and data at 0x18, RSI at the zero page, entry 0x200 into the kernel.
"""

from __future__ import annotations

import struct
from pathlib import Path

import attrs
import msgspec

from hypervisor.memory import GuestMemory
from partitions import ports
from partitions.root.chipset import acpi
from partitions.root.exits import CannotStart

GDT_GPA = 0x500
ZERO_PAGE_GPA = 0x7000
STACK_GPA = 0x8FF0
PAGE_TABLES_GPA = 0x9000
COMMAND_LINE_GPA = 0x20000
RESET_VECTOR_GPA = 0xFFFF0
"""Where a processor begins in real mode. A kernel on hardware-reduced ACPI without EFI restarts by jumping there."""
RESET_CODE = bytes.fromhex(
    "ba" + ports.RESET.to_bytes(2, "little").hex()  # mov dx, RESET
    + "b0" + bytes([ports.RESET_NOW]).hex()  # mov al, RESET_NOW
    + "ee" + "f4" + "ebfd"  # out dx, al; hlt, for ever
)  # fmt: skip
LOW_MEMORY_END = 0x9FC00
KERNEL_GPA = 0x100000
MOST_MEMORY = 0xC000_0000
"""RAM is one run that ends below the windows of devices."""
_INITRD_END = 0x3800_0000
"""Where every kernel's direct map reaches."""

_RAM, _RESERVED = 1, 2
_XLOADFLAG_64BIT = 0x01
_LOADER_UNDEFINED = 0xFF


class BootError(CannotStart):
    """A kernel, initrd or command line that cannot be started; the text says which file, why and what to do."""


class ProcessorStart(msgspec.Struct, frozen=True):
    """How VP 0 begins: long mode, paging on."""

    entry: int
    """RIP."""
    zero_page: int
    """RSI."""
    stack: int
    page_table: int
    """CR3."""
    gdt: int
    gdt_limit: int


@attrs.frozen
class LinuxImage:
    """A kernel, read and checked for a VM of a certain size; `load` cannot fail for a person's mistake any more."""

    memory_bytes: int
    """The VM's RAM, one run from GPA 0."""
    header: bytes = attrs.field(repr=False)
    payload: memoryview = attrs.field(repr=False)
    initrd: bytes = attrs.field(repr=False)
    initrd_gpa: int
    command_line: bytes
    processors: int

    @classmethod
    def open(
        cls, kernel: Path, *, initrd: Path | None, command_line: str, memory_bytes: int, processors: int
    ) -> LinuxImage:
        """Read the files. Raises `BootError`."""
        image = _read(kernel, "kernel")
        header = _header_of(image, kernel)
        payload = memoryview(image)[((header[0] or 4) + 1) * 512 :]
        (init_size,) = struct.unpack_from("<I", header, 0x260 - 0x1F1)
        # It unpacks itself to where it was linked to, or higher.
        (preferred,) = struct.unpack_from("<Q", header, 0x258 - 0x1F1)
        end = max(KERNEL_GPA, preferred) + max(init_size, len(payload))
        if memory_bytes > MOST_MEMORY:
            raise BootError(f"a VM with a kernel has at most {MOST_MEMORY >> 20} MiB of memory in this version")
        if end > memory_bytes:
            raise BootError(
                f"{kernel}: the kernel needs {end >> 20} MiB to unpack itself and the VM has "
                f"{memory_bytes >> 20} MiB; give it more memory"
            )
        (limit,) = struct.unpack_from("<I", header, 0x238 - 0x1F1)
        encoded = command_line.encode() + b"\0"
        if len(encoded) > limit:
            raise BootError(f"cmdline has {len(encoded) - 1} characters, {kernel} takes {limit - 1}")
        data = b"" if initrd is None else _read(initrd, "initrd")
        start = (min(memory_bytes, _INITRD_END) - len(data)) & ~0xFFF
        if start < end:
            raise BootError(
                f"{initrd}: {len(data) >> 20} MiB do not fit beside the kernel in {memory_bytes >> 20} MiB of memory; "
                "give the VM more"
            )
        return cls(memory_bytes, header, payload, data, start, encoded, processors)

    def load(self, memory: GuestMemory) -> ProcessorStart:
        """Write everything that the kernel expects: itself, initrd, command line, ACPI and page tables, memory map."""
        memory.write(KERNEL_GPA, self.payload)
        memory.write(COMMAND_LINE_GPA, self.command_line)
        memory.write(acpi.TABLES_GPA, acpi.build_tables(self.processors))
        memory.write(RESET_VECTOR_GPA, RESET_CODE)
        zero_page = bytearray(4096)
        zero_page[0x1F1 : 0x1F1 + len(self.header)] = self.header
        zero_page[0x210] = _LOADER_UNDEFINED
        struct.pack_into("<I", zero_page, 0x228, COMMAND_LINE_GPA)
        struct.pack_into("<Q", zero_page, 0x070, acpi.TABLES_GPA)
        if self.initrd:
            memory.write(self.initrd_gpa, self.initrd)
            struct.pack_into("<II", zero_page, 0x218, self.initrd_gpa, len(self.initrd))
        _write_memory_map(zero_page, self.memory_bytes)
        memory.write(ZERO_PAGE_GPA, bytes(zero_page))
        gdt = struct.pack("<4Q", 0, 0, 0x00AF9B00_0000FFFF, 0x00CF9300_0000FFFF)
        memory.write(GDT_GPA, gdt)
        _write_page_tables(memory)
        return ProcessorStart(KERNEL_GPA + 0x200, ZERO_PAGE_GPA, STACK_GPA, PAGE_TABLES_GPA, GDT_GPA, len(gdt) - 1)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BootError(f"{what} {path}: {error.strerror}") from error


def _header_of(image: bytes, kernel: Path) -> bytes:
    """The setup header, from 0x1F1 to the end that byte 0x201 names."""
    if len(image) < 0x300 or image[0x202:0x206] != b"HdrS":
        raise BootError(f"{kernel} is no Linux bzImage: name the vmlinuz file of a kernel package")
    (version,) = struct.unpack_from("<H", image, 0x206)
    (xloadflags,) = struct.unpack_from("<H", image, 0x236)
    if version < 0x20C or not xloadflags & _XLOADFLAG_64BIT:
        raise BootError(
            f"{kernel}: a 64-bit kernel with boot protocol 2.12 or later is needed, this one has {version:#x}"
        )
    return image[0x1F1 : 0x202 + image[0x201]]


def _write_memory_map(zero_page: bytearray, room: int) -> None:
    entries = [
        (0, LOW_MEMORY_END, _RAM),
        (LOW_MEMORY_END, 0x100000 - LOW_MEMORY_END, _RESERVED),
        (0x100000, room - 0x100000, _RAM),
    ]
    zero_page[0x1E8] = len(entries)
    for index, entry in enumerate(entries):
        struct.pack_into("<QQI", zero_page, 0x2D0 + 20 * index, *entry)


def _write_page_tables(memory: GuestMemory) -> None:
    """Identity-map the first 4 GiB by 2 MiB pages: one PML4, one PDPT, four page directories."""
    present_writable, large = 0x3, 0x80
    pml4, pdpt, directories = PAGE_TABLES_GPA, PAGE_TABLES_GPA + 0x1000, PAGE_TABLES_GPA + 0x2000
    memory.write(pml4, struct.pack("<Q", pdpt | present_writable))
    memory.write(pdpt, struct.pack("<4Q", *(directories + 0x1000 * i | present_writable for i in range(4))))
    memory.write(directories, struct.pack("<2048Q", *(i << 21 | present_writable | large for i in range(2048))))
