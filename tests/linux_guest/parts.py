"""Kernels, busybox and modules, unpacked from Debian's packages and never installed.

`apt-get download` and `dpkg -x` are all that is used; what was fetched stays in `.build/linux`.
"""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

INNER = "linux-image-cloud-amd64"
"""The guest of most tests: Debian 12's own kernel, 6.1."""
NEWER = "linux-image-6.12-cloud-amd64"
"""A second guest: the kernel that Debian 12's security suite carries beside it."""
OUTER = "linux-image-amd64"
"""The outer machine's kernel, where one is needed: it has 9p, overlay and kvm-amd."""
BUILD = Path(__file__).parents[2] / ".build" / "linux"


class MissingPart(Exception):
    """Something that these tests need is not on this machine and cannot be fetched; the text says what."""


@attrs.frozen
class Kernel:
    """A kernel package, unpacked."""

    root: Path
    release: str

    @property
    def image(self) -> Path:
        """The bzImage."""
        return self.root / "boot" / f"vmlinuz-{self.release}"

    def modules(self, names: Iterable[str]) -> list[Path]:
        """Module files for these names and what they depend on, in the order of loading; built-in ones have no file."""
        wanted = list(names)
        if not wanted:
            return []
        words = ["modprobe", "-d", str(self.root), "-S", self.release, "--show-depends", "--all", *wanted]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise MissingPart(f"modules of {self.release}: {done.stderr.strip()}")
        files = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("insmod ")]
        return [Path(file) for file in dict.fromkeys(files)]


def kernel(meta_package: str) -> Kernel:
    """Fetch and unpack the kernel that a meta package stands for, such as linux-image-cloud-amd64."""
    place = BUILD / meta_package
    if not place.exists():
        _need_tools("apt-get", "apt-cache", "dpkg", "depmod", "modprobe")
        scratch = BUILD / f"{meta_package}.part"
        shutil.rmtree(scratch, ignore_errors=True)
        unpack([_dependency(meta_package)], scratch / "root")
        (release,) = os.listdir(scratch / "root" / "lib" / "modules")
        subprocess.run(["depmod", "-b", scratch / "root", release], check=True)
        (scratch / "root").rename(place)
        shutil.rmtree(scratch)
    (release,) = os.listdir(place / "lib" / "modules")
    return Kernel(place, release)


def _dependency(meta_package: str) -> str:
    """The package with the kernel's version in its name, on which the meta package depends."""
    shown = subprocess.run(["apt-cache", "depends", meta_package], capture_output=True, text=True, check=False)
    names = [line.split()[1] for line in shown.stdout.splitlines() if line.strip().startswith("Depends: linux-image")]
    if not names:
        raise MissingPart(f"{meta_package} is not known here: run apt-get update")
    return names[0]


def initramfs(place: Path, script: str, modules: Iterable[Path], extra: Mapping[str, bytes] | None = None) -> Path:
    """An initramfs with busybox, these modules as /modules/NN-name.ko, more files by path, and `script` as /init."""
    archive = _Archive()
    for folder in ("bin", "dev", "proc", "sys", "modules", "mnt", "new"):
        archive.add(folder, b"", 0o040755)
    archive.add("bin/busybox", busybox().read_bytes())
    for number, module in enumerate(modules):
        data = module.read_bytes()
        if module.suffix == ".xz":
            data = lzma.decompress(data)
        archive.add(f"modules/{number:02d}-{module.name.removesuffix('.xz')}", data)
    for name, data in (extra or {}).items():
        archive.add(name, data)
    archive.add("init", script.encode())
    place.write_bytes(archive.finish())
    return place


class _Archive:
    """A cpio archive in the "newc" format, which is what kernels unpack. Source: initramfs buffer format of Linux."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._number = 0

    def add(self, name: str, data: bytes, mode: int = 0o100755) -> None:
        self._number += 1
        encoded = name.encode() + b"\0"
        fields = (self._number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        self._data += b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        self._align()
        self._data += data
        self._align()

    def finish(self) -> bytes:
        self.add("TRAILER!!!", b"", 0)
        return bytes(self._data)

    def _align(self) -> None:
        self._data += bytes(-len(self._data) % 4)


def busybox() -> Path:
    """The static one: a guest has no libraries."""
    place = BUILD / "busybox-static"
    if not place.exists():
        scratch = place.with_suffix(".part")
        shutil.rmtree(scratch, ignore_errors=True)
        unpack(["busybox-static"], scratch)
        scratch.rename(place)
    return place / "bin" / "busybox"


def unpack(packages: Iterable[str], place: Path) -> None:
    """Fetch these packages and unpack all of them into one tree."""
    _need_tools("apt-get", "dpkg")
    files = place.with_suffix(".packages")
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir(parents=True)
    done = subprocess.run(["apt-get", "download", *packages], cwd=files, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MissingPart(f"apt-get download {' '.join(packages)}: {done.stderr.strip()}")
    place.mkdir(parents=True, exist_ok=True)
    for file in sorted(files.glob("*.deb")):
        subprocess.run(["dpkg", "-x", file, place], check=True)
    shutil.rmtree(files)


def _need_tools(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            raise MissingPart(f"{tool} is not here: these tests unpack Debian's packages")
