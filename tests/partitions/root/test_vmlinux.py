"""The kernel inside a bzImage, unpacked by the host: what is taken, what is left to the guest, and where it goes."""

from __future__ import annotations

import struct
import threading
from pathlib import Path

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.memory import Access, GuestMemory, MemoryBlock
from hypervisor.pages import PAGE_SHIFT
from partitions.root.chipset import kernel_file, vmlinux
from partitions.root.chipset.kernel_file import KernelFile
from partitions.root.chipset.linux_boot import KERNEL_GPA, LinuxImage
from partitions.root.chipset.vmlinux import NotUnpacked, Segment, unpack

MIB = 1 << 20
ENTRY = 0x200000
CODE = b"kernel code " * 40_000
DATA = bytes(range(256)) * 64


def elf(*, entry: int = ENTRY, machine: int = 62, segments: tuple[tuple[int, bytes], ...] = ((ENTRY, CODE),)) -> bytes:
    """A file of one piece for each segment, at its guest address."""
    head = 64 + 56 * (len(segments) + 1)
    table, body = [], b""
    for gpa, content in segments:
        at = head + len(body)
        table.append(struct.pack("<IIQQQQQQ", 1, 5, at, 0, gpa, len(content), len(content), 0x200000))
        body += content
    table.append(struct.pack("<IIQQQQQQ", 4, 0, head, 0, 0, 16, 16, 4))  # a note, which is not loaded
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, machine, 1, entry, 64, 0, 0, 64, 56, len(table), 0, 0, 0
    )
    return header + b"".join(table) + body


def lz4_legacy(file: bytes) -> bytes:
    """As `lz4 -l` writes it."""
    blocks = [lz4.block.compress(file[at : at + 8 * MIB], store_size=False) for at in range(0, len(file), 8 * MIB)]
    return vmlinux.LZ4_MAGIC + b"".join(struct.pack("<I", len(block)) + block for block in blocks)


def bzimage(packed: bytes, size: int) -> bytes:
    """A bzImage around a packed kernel."""
    payload = packed + struct.pack("<I", size)
    image = bytearray(5 * 512)
    image[0x1F1] = 4
    image[0x201] = 0x6A
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, 0x20F)
    struct.pack_into("<H", image, 0x236, 1)
    struct.pack_into("<I", image, 0x238, 255)
    struct.pack_into("<II", image, 0x248, 0x300, len(payload))
    struct.pack_into("<I", image, 0x260, 2 * MIB)
    return bytes(image) + bytes(0x300) + payload


def packed(file: bytes, how: str = "lz4") -> bytes:
    """A whole bzImage."""
    done = lz4_legacy(file) if how == "lz4" else zstandard.ZstdCompressor(write_content_size=False).compress(file)
    return bzimage(done, len(file))


@pytest.fixture
def memory() -> GuestMemory:
    block = MemoryBlock.allocate(32 * MIB, "guest")
    memory = GuestMemory()
    memory.map_block(0, block, 0, block.size >> PAGE_SHIFT, Access.ALL)
    return memory


def boot(path: Path, memory: GuestMemory, *, memory_mib: int = 32) -> int:
    """Load it; where it starts."""
    image = LinuxImage.open(KernelFile(path), initrd=None, command_line="", memory_bytes=memory_mib * MIB, processors=1)
    return image.load(memory).entry


@pytest.mark.parametrize("how", ["lz4", "zstd"])
def test_the_kernel_goes_where_it_was_linked_to(how: str, memory: GuestMemory, tmp_path: Path) -> None:
    """Every segment lies at its physical address, and processor 0 starts at the ELF file's entry."""
    path = tmp_path / "vmlinuz"
    path.write_bytes(packed(elf(entry=ENTRY + 0x100, segments=((ENTRY, CODE), (12 * MIB, DATA))), how))
    assert boot(path, memory) == ENTRY + 0x100
    assert memory.read(ENTRY, len(CODE)) == CODE
    assert memory.read(12 * MIB, len(DATA)) == DATA
    assert memory.read(12 * MIB + len(DATA), 4096) == bytes(4096)


def test_a_kernel_of_several_lz4_blocks(memory: GuestMemory, tmp_path: Path) -> None:
    """LZ4's legacy format cuts a file each 8 MiB; segments reach over the cuts."""
    long = bytes(1000) + struct.pack("<I", 1) * (5 * MIB)
    (tmp_path / "vmlinuz").write_bytes(packed(elf(segments=((ENTRY, long),))))
    assert boot(tmp_path / "vmlinuz", memory) == ENTRY
    assert memory.read(ENTRY, len(long)) == long


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (bzimage(b"BZh9" + bytes(100), 100), "starts with 425a6839"),
        (bzimage(b"", 0), "no payload"),
        (packed(elf())[:-100], "no payload"),
        (bzimage(lz4_legacy(elf())[:-100], len(elf())), "cut short"),
        (bzimage(lz4_legacy(elf()), len(elf()) + 1), "unpacks to"),
        (bzimage(lz4_legacy(elf()), 1 << 30), "1024 MiB"),
        (bzimage(vmlinux.LZ4_MAGIC + struct.pack("<I", 50) + b"\xff" * 50, 1000), "."),
        (bzimage(vmlinux.ZSTD_MAGIC + bytes(50), 1000), "."),
        (packed(b"MZ" + bytes(1000)), "no ELF file"),
        (packed(elf(machine=183)), "no kernel for x86-64"),
        (packed(elf(entry=ENTRY - 1)), "outside itself"),
        (packed(elf()[:100].ljust(70_000, b"\0")), "cut short"),
    ],
)
def test_what_cannot_be_unpacked_is_left_to_the_guest(
    image: bytes, words: str, memory: GuestMemory, tmp_path: Path
) -> None:
    """The bzImage goes in as it is, and the reason is kept."""
    (tmp_path / "vmlinuz").write_bytes(image)
    with pytest.raises(NotUnpacked, match=words):
        unpack(memoryview(image))
    assert boot(tmp_path / "vmlinuz", memory) == KERNEL_GPA + 0x200
    assert memory.read(KERNEL_GPA, 0x300) == bytes(0x300)


def test_a_segment_outside_memory_is_left_to_the_guest(memory: GuestMemory, tmp_path: Path) -> None:
    """A damaged file must not make the host write where nothing is, nor over what it has laid down itself."""
    for gpa in (31 * MIB + 0x80000, 0x7000):
        (tmp_path / "vmlinuz").write_bytes(packed(elf(segments=((ENTRY, CODE), (gpa, CODE + CODE)))))
        assert boot(tmp_path / "vmlinuz", memory) == KERNEL_GPA + 0x200


def test_without_the_library_the_guest_unpacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither library is needed to run Partita."""
    monkeypatch.setitem(__import__("sys").modules, "lz4.block", None)
    with pytest.raises(NotUnpacked, match=r"lz4.* is not installed"):
        unpack(memoryview(packed(elf())))


def test_the_topology_may_leave_it_to_the_guest(memory: GuestMemory, tmp_path: Path) -> None:
    """For a kernel that is to lie at a random place."""
    (tmp_path / "vmlinuz").write_bytes(packed(elf()))
    file = KernelFile(tmp_path / "vmlinuz", unpack=False)
    assert file.vmlinux() is None
    assert file.why_not


@given(st.binary(max_size=300), st.integers(0, 2000))
def test_no_bytes_are_more_than_not_unpacked(noise: bytes, size: int) -> None:
    """Whatever is in the payload, the answer is a kernel or a reason."""
    for magic in (vmlinux.LZ4_MAGIC, vmlinux.ZSTD_MAGIC, b""):
        with pytest.raises(NotUnpacked):
            unpack(memoryview(bzimage(magic + noise, size)))


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=8), st.data())
def test_a_segment_is_the_same_however_the_file_is_cut(pieces: list[bytes], data: st.DataObject) -> None:
    """`content` gives each byte of a segment once, in order."""
    whole = b"".join(pieces)
    offset = data.draw(st.integers(0, len(whole)))
    size = data.draw(st.integers(0, len(whole) - offset))
    kernel = vmlinux.Vmlinux(0, (), tuple(pieces))
    at, found = 1000, b""
    for gpa, part in kernel.content(Segment(1000, offset, size)):
        assert gpa == at + len(found)
        found += part
    assert found == whole[offset : offset + size]


def test_what_was_begun_ahead_is_asked_for_once(tmp_path: Path) -> None:
    """A second VM, or a second start, has a file of its own; what was begun does not stay."""
    path = tmp_path / "vmlinuz"
    path.write_bytes(packed(elf()))
    kernel_file.read_ahead([path])
    first, second = kernel_file.kernel_file(path), kernel_file.kernel_file(path)
    assert first is not second
    for thread in threading.enumerate():
        if thread.name == "unpack vmlinuz":
            thread.join()
    path.unlink()
    assert first.vmlinux() is not None
    with pytest.raises(FileNotFoundError):
        second.image()


def test_a_missing_file_is_told_when_it_is_asked_for(tmp_path: Path) -> None:
    """The thread that reads ahead says nothing."""
    kernel_file.read_ahead([tmp_path / "none"])
    with pytest.raises(FileNotFoundError):
        kernel_file.kernel_file(tmp_path / "none").image()
