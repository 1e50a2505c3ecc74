"""Kernels, busybox and modules, unpacked from Debian's packages and never installed.

`apt-get download` and `dpkg -x` are all that is used; what was fetched stays in `.build/linux`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import attrs

BUILD = Path(__file__).parents[2] / ".build" / "linux"
BUSYBOX = Path("/bin/busybox")


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
        files: list[Path] = []
        for name in names:
            done = subprocess.run(
                ["modprobe", "-d", self.root, "-S", self.release, "--show-depends", name],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise MissingPart(f"module {name} of {self.release}: {done.stderr.strip()}")
            for line in done.stdout.splitlines():
                verb, _, path = line.partition(" ")
                if verb == "insmod" and Path(path.strip()) not in files:
                    files.append(Path(path.strip()))
        return files


def kernel(meta_package: str) -> Kernel:
    """Fetch and unpack the kernel that a meta package stands for, such as linux-image-cloud-amd64."""
    place = BUILD / meta_package
    if not place.exists():
        for tool in ("apt-get", "apt-cache", "dpkg", "depmod", "modprobe"):
            if shutil.which(tool) is None:
                raise MissingPart(f"{tool} is not here: these tests unpack Debian's kernel packages")
        package = _dependency(meta_package)
        scratch = BUILD / f"{meta_package}.part"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        done = subprocess.run(
            ["apt-get", "download", package], cwd=scratch, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise MissingPart(f"apt-get download {package}: {done.stderr.strip()}")
        subprocess.run(["dpkg", "-x", next(scratch.glob("*.deb")), scratch / "root"], check=True)
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


def initramfs(place: Path, script: str, modules: Iterable[Path], extra: Iterable[Path] = ()) -> Path:
    """An initramfs with busybox, these modules as /modules/NN-name, more files at the top, and `script` as /init."""
    if not BUSYBOX.exists():
        raise MissingPart("busybox is not here (Debian: busybox-static)")
    tree = place.with_suffix(".tree")
    shutil.rmtree(tree, ignore_errors=True)
    for folder in ("bin", "dev", "proc", "sys", "modules", "mnt"):
        (tree / folder).mkdir(parents=True)
    shutil.copy(BUSYBOX, tree / "bin" / "busybox")
    for number, module in enumerate(modules):
        shutil.copy(module, tree / "modules" / f"{number:02d}-{module.name}")
    for file in extra:
        shutil.copy(file, tree / file.name)
    init = tree / "init"
    init.write_text(script)
    init.chmod(0o755)
    with place.open("wb") as image:
        listing = subprocess.run(["find", "."], cwd=tree, capture_output=True, check=True).stdout
        archive = subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet"], cwd=tree, input=listing, capture_output=True, check=True
        ).stdout
        subprocess.run(["gzip", "-1"], input=archive, stdout=image, check=True)
    shutil.rmtree(tree)
    return place
