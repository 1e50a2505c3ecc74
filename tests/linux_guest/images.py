"""Disk images that the guests of these tests get, and what they hold when a guest has gone. Root side."""

from __future__ import annotations

import hashlib
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECTOR = 512
FIRST_SECTOR = 2048
"""Where the partition starts: 1 MiB, as every tool of today has it."""
LINUX = 0x83


def tree(place: Path, *, files: int, seed: int) -> dict[str, str]:
    """Make a file tree with sizes from nothing to some hundred KiB; SHA-256 by path."""
    chance = random.Random(seed)
    digests: dict[str, str] = {}
    for number in range(files):
        file = place / f"folder{number % 5}" / f"file{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        data = chance.randbytes(chance.choice((0, 1, 511, 4096, 4097, 70_000, 300_001)))
        file.write_bytes(data)
        digests[str(file.relative_to(place))] = hashlib.sha256(data).hexdigest()
    return digests


def partitioned(place: Path, source: Path, *, mebibytes: int) -> Path:
    """An image with a partition table and one partition, an ext4 with the files of `source`."""
    size = mebibytes << 20
    with place.open("wb") as image:
        image.truncate(FIRST_SECTOR * SECTOR + size)
        image.seek(446)
        # One entry: not bootable, cylinders and heads at their ends, type, first sector, sectors. Then the signature.
        image.write(struct.pack("<B3sB3sII", 0, b"\xfe\xff\xff", LINUX, b"\xfe\xff\xff", FIRST_SECTOR, size // SECTOR))
        image.seek(510)
        image.write(b"\x55\xaa")
    words = [
        "mke2fs",
        "-q",
        "-F",
        "-t",
        "ext4",
        "-d",
        str(source),
        "-E",
        f"offset={FIRST_SECTOR * SECTOR},root_owner=0:0",
    ]
    subprocess.run([*words, str(place), f"{mebibytes}M"], check=True, capture_output=True)
    return place


def check_partition(image: Path) -> str:
    """What e2fsck, which changes nothing, says of the first partition; raises `AssertionError` if that is not clean."""
    with _partition(image) as part:
        done = subprocess.run(["e2fsck", "-f", "-n", part], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout.strip().splitlines()[-1].replace(str(part), image.name)


def file_in_partition(image: Path, path: str) -> bytes:
    """A file's content in the first partition, an ext4."""
    with _partition(image) as part:
        return subprocess.run(["debugfs", "-R", f"cat {path}", part], capture_output=True, check=True).stdout


@contextmanager
def _partition(image: Path) -> Iterator[Path]:
    """The first partition as a file of its own."""
    copy = image.with_suffix(".partition")
    with image.open("rb") as whole, copy.open("wb") as part:
        whole.seek(FIRST_SECTOR * SECTOR)
        shutil.copyfileobj(whole, part, 1 << 20)
    try:
        yield copy
    finally:
        copy.unlink()


def digest(image: Path, start: int = 0, length: int | None = None) -> str:
    """SHA-256 of a piece of an image."""
    with image.open("rb") as file:
        file.seek(start)
        return hashlib.sha256(file.read(-1 if length is None else length)).hexdigest()
