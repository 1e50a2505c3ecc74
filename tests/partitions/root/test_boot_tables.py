"""What a real kernel reads before VMBus: ACPI tables, the CMOS clock, the boot protocol."""

from __future__ import annotations

import datetime
import itertools
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from hypervisor.blocks import MemoryBlock
from hypervisor.memory import GuestMemory
from hypervisor.pages import PAGE_SHIFT, Access
from partitions.root.chipset import acpi, aml, cmos, linux_boot
from partitions.root.chipset.cmos import CmosClock
from partitions.root.chipset.linux_boot import BootError, LinuxImage

MIB = 1 << 20


def tables(layout: bytes) -> dict[bytes, bytes]:
    """Every table reached from the RSDP, by signature."""

    def at(gpa: int, length: int) -> bytes:
        start = gpa - acpi.TABLES_GPA
        return layout[start : start + length]

    (xsdt_gpa,) = struct.unpack_from("<Q", layout, 24)
    xsdt = at(xsdt_gpa, struct.unpack("<I", at(xsdt_gpa + 4, 4))[0])
    found = {b"XSDT": xsdt}
    for (gpa,) in struct.iter_unpack("<Q", xsdt[36:]):
        table = at(gpa, struct.unpack("<I", at(gpa + 4, 4))[0])
        found[table[:4]] = table
    (dsdt_gpa,) = struct.unpack_from("<Q", found[b"FACP"], 140)
    found[b"DSDT"] = at(dsdt_gpa, struct.unpack("<I", at(dsdt_gpa + 4, 4))[0])
    return found


def test_every_table_is_reached_and_sums_to_zero() -> None:
    layout = acpi.build_tables(4)

    assert layout[:8] == b"RSD PTR "
    assert sum(layout[:20]) & 0xFF == 0
    assert sum(layout[:36]) & 0xFF == 0
    found = tables(layout)
    assert set(found) == {b"XSDT", b"FACP", b"APIC", b"DSDT"}
    for signature, table in found.items():
        assert sum(table) & 0xFF == 0, signature


def test_the_madt_names_each_processor_and_the_io_apic() -> None:
    body = tables(acpi.build_tables(3))[b"APIC"][44:]
    entries = []
    while body:
        entries.append((body[0], body[3] if body[0] == 0 else body[2]))
        body = body[body[1] :]

    assert entries == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_acpica_reads_our_byte_code_back(tmp_path: Path) -> None:
    """The disassembler of the reference implementation finds the device that Linux looks for, and no error."""
    iasl = shutil.which("iasl")
    if iasl is None:
        pytest.skip("iasl is not installed (Debian: acpica-tools)")
    (tmp_path / "dsdt.aml").write_bytes(tables(acpi.build_tables(1))[b"DSDT"])
    done = subprocess.run([iasl, "-d", "dsdt.aml"], cwd=tmp_path, capture_output=True, text=True, check=True)
    text = (tmp_path / "dsdt.dsl").read_text()

    assert "Error" not in done.stderr
    assert 'Name (_HID, "VMBus")' in text
    assert "0xF8000000,         // Range Minimum" in text
    assert "0xFBFFFFFF,         // Range Maximum" in text
    assert 'EisaId ("PNP0501")' in text


@pytest.mark.parametrize("length", [0, 62, 63, 64, 4093, 4094, 4095, 70000])
def test_aml_package_lengths_count_themselves(length: int) -> None:
    """ACPI 20.2.4: one byte up to 63, then four bits and whole bytes; read back by the specification's rule."""
    encoded = aml.device("DEV0", bytes(length))
    lead = encoded[2]
    extra = lead >> 6
    value = lead & 0x3F if extra == 0 else lead & 0xF | int.from_bytes(encoded[3 : 3 + extra], "little") << 4

    assert value == len(encoded) - 2


def test_the_clock_answers_in_binary_coded_decimal() -> None:
    clock = CmosClock(lambda: datetime.datetime(2026, 11, 23, 21, 58, 7, tzinfo=datetime.UTC))

    def read(register: int) -> int:
        clock.write(cmos.INDEX, 1, register | 0x80)
        return clock.read(cmos.DATA, 1)

    assert [read(register) for register in (0, 2, 4, 6, 7, 8, 9, 0x32)] == [7, 0x58, 0x21, 2, 0x23, 0x11, 0x26, 0x20]
    assert read(0x0A) & 0x80 == 0, "an update in progress would make Linux poll"
    assert read(0x0D) == 0x80


# --- the boot protocol


def kernel_image(
    *, version: int = 0x20F, xloadflags: int = 1, preferred: int = 0, payload: bytes = b"\xf4" * 4096
) -> bytes:
    """As much of a bzImage as a loader looks at."""
    image = bytearray(5 * 512)
    image[0x1F1] = 4
    image[0x201] = 0x6A
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    struct.pack_into("<H", image, 0x236, xloadflags)
    struct.pack_into("<I", image, 0x238, 255)
    struct.pack_into("<QI", image, 0x258, preferred, 2 * MIB)
    return bytes(image) + payload


@pytest.fixture
def memory() -> GuestMemory:
    block = MemoryBlock.allocate(16 * MIB, "guest")
    memory = GuestMemory()
    memory.map_block(0, block, 0, block.size >> PAGE_SHIFT, Access.ALL)
    return memory


def image_of(kernel: Path, *, initrd: Path | None = None, command_line: str = "") -> LinuxImage:
    return LinuxImage.open(kernel, initrd=initrd, command_line=command_line, memory_bytes=16 * MIB, processors=1)


def test_kernel_initrd_and_command_line_lie_where_the_zero_page_says(memory: GuestMemory, tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(kernel_image())
    (tmp_path / "initrd").write_bytes(b"initrd!" * 1000)
    image = image_of(tmp_path / "vmlinuz", initrd=tmp_path / "initrd", command_line="console=ttyS0")
    start = image.load(memory)
    zero_page = memory.read(start.zero_page, 4096)

    assert memory.read(start.entry - 0x200, 4096) == b"\xf4" * 4096
    (command_line,) = struct.unpack_from("<I", zero_page, 0x228)
    assert memory.read(command_line, 14) == b"console=ttyS0\0"
    initrd, size = struct.unpack_from("<II", zero_page, 0x218)
    assert memory.read(initrd, size) == b"initrd!" * 1000
    assert initrd % 4096 == 0
    (rsdp,) = struct.unpack_from("<Q", zero_page, 0x70)
    assert memory.read(rsdp, 8) == b"RSD PTR "
    regions = [struct.unpack_from("<QQI", zero_page, 0x2D0 + 20 * i) for i in range(zero_page[0x1E8])]
    assert regions[-1] == (MIB, 15 * MIB, 1)


def test_the_page_tables_map_each_address_to_itself(memory: GuestMemory, tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(kernel_image())
    start = image_of(tmp_path / "vmlinuz").load(memory)

    def entry(table: int, index: int) -> int:
        return int(struct.unpack("<Q", memory.read((table & ~0xFFF) + 8 * index, 8))[0])

    for address in (0, start.entry, 3 * (1 << 30) + 5 * 2 * MIB):
        directory = entry(entry(start.page_table, 0), address >> 30)
        leaf = entry(directory, address >> 21 & 0x1FF)
        assert leaf & 0x81 == 0x81
        assert leaf & ~0x1FFFFF == address & ~0x1FFFFF


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"\x7fELF" + bytes(4096), "is no Linux bzImage: name the vmlinuz file"),
        (b"", "is no Linux bzImage"),
        (kernel_image(version=0x20A), "boot protocol 2.12 or later"),
        (kernel_image(xloadflags=0), "64-bit kernel"),
        (kernel_image(payload=bytes(20 * MIB)), "give it more memory"),
        (kernel_image(preferred=15 * MIB), "needs 17 MiB to unpack itself and the VM has 16 MiB"),
    ],
)
def test_a_file_that_cannot_be_started_is_refused_by_name(tmp_path: Path, image: bytes, words: str) -> None:
    (tmp_path / "vmlinuz").write_bytes(image)
    with pytest.raises(BootError, match=words) as caught:
        image_of(tmp_path / "vmlinuz")
    assert str(tmp_path / "vmlinuz") in str(caught.value)


def test_an_initrd_that_does_not_fit_and_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(kernel_image())
    (tmp_path / "initrd").write_bytes(bytes(14 * MIB))
    with pytest.raises(BootError, match="give the VM more"):
        image_of(tmp_path / "vmlinuz", initrd=tmp_path / "initrd")
    with pytest.raises(BootError, match=r"initrd .*none: No such file"):
        image_of(tmp_path / "vmlinuz", initrd=tmp_path / "none")
    with pytest.raises(BootError, match="300 characters"):
        image_of(tmp_path / "vmlinuz", command_line="x" * 300)


def test_low_memory_layout_has_no_overlaps() -> None:
    """Descriptor table, zero page, stack, page tables and command line each have their own place below 640 KiB."""
    places = [
        (linux_boot.GDT_GPA, 32),
        (linux_boot.ZERO_PAGE_GPA, 4096),
        (linux_boot.PAGE_TABLES_GPA, 6 * 4096),
        (linux_boot.COMMAND_LINE_GPA, 4096),
    ]
    for (first, size), (second, _) in itertools.pairwise(places):
        assert first + size <= second
    assert linux_boot.ZERO_PAGE_GPA + 4096 <= linux_boot.STACK_GPA <= linux_boot.PAGE_TABLES_GPA
